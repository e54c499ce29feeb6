"""The paper's other ways with patches: weighted, stitched, sampled, in montages; against slow versions."""
import copy
import itertools
import math
from collections import Counter

import pytest
import torch
from fastai.callback.core import Callback
from helpers.learners import build, local_learner, one_step, quick, small
from helpers.pairs import paired
from helpers.pictures import ARCH, LR, SIDE, B, D, pictures
from helpers.recording import Recording, Seen, step_inputs
from helpers.refusals import refusal, said
from helpers.slow import Slow, agree, beside, cut, mean_of, patched, sampled, stitched

from fastcontrast.learner import contrastive_learner
from fastcontrast.speedups.intermediate import IntermediateLoss
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.multi_crop import MultiCrop

close = torch.testing.assert_close
SEED = 3


@pytest.mark.parametrize('weights', [(0.7, 0.3), (3, 1), (0.5, 0.5), (1, 0)], ids=str)
@pytest.mark.parametrize('count', [None, 4])
def test_a_weighted_mean(weights, count):
    cb = PatchVariants(weights=weights, combinations=count)
    # every patch has every weight equally often
    for place in range(2): assert len(set(Counter(c[place] for c in cb.subsets).values())) == 1 or weights == (0.5, 0.5)
    patched('moco_v3', cb, n=2, subsets=cb.subsets,
            merge=lambda hs: sum(w / sum(weights) * h for w, h in zip(weights, hs)))


def test_a_weighted_mean_has_every_pair_of_patches_equally_often():
    "All pairs in one order, or in both: none counts more than another"
    pairs = Counter(map(frozenset, PatchVariants(weights=(0.7, 0.3)).subsets))
    assert len(pairs) == 6 and len(set(pairs.values())) == 1, pairs


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'byol', 'swav'])
def test_the_maximum(name):
    patched(name, PatchVariants(merge='max'), n=2, subsets=list(itertools.combinations(range(4), 2)),
            merge=lambda hs: torch.stack(hs).amax(0))


@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'simclr', 'simsiam', 'swav'])
def test_keys_of_the_same_view(name):
    patched(name, PatchVariants(keys='same'), n=2, subsets=list(itertools.combinations(range(4), 2)), same=True)


@pytest.mark.parametrize('name,place', [
    ('moco_v3', 'projector'), ('moco_v3', 'predictor'), ('byol', 'predictor'), ('nnclr', 'predictor'),
    ('simclr', 'projector'), ('swav', 'projector')])
def test_combined_after_the_head(name, place):
    learn = patched(name, PatchVariants(combine=place), n=2, subsets=list(itertools.combinations(range(4), 2)),
                    place=place)
    assert learn.recipe.predictor or place == 'projector'


@pytest.mark.parametrize('name', ['simclr', 'moco_v2', 'swav'])
def test_combined_after_a_predictor_that_is_not_there(name):
    "Without a predictor nothing would be combined at all: refused, naming both"
    text = refusal(one_step, name, [PatchVariants(combine='predictor')])
    assert 'predictor' in text and 'PatchVariants' in text


def test_drawn_weights_are_beta_and_each_combinations_own():
    for alpha in (0.5, 1., 4.):
        cb = PatchVariants(alpha=alpha)
        eye = torch.eye(4, dtype=torch.float64)[None, :, None].expand(2, 4, 500, 4)  # features that tell the patch
        torch.manual_seed(1)
        c = cb.combined(eye)
        assert [*c.shape] == [2, 6, 500, 4]
        close(c.sum(-1), torch.ones(2, 6, 500, dtype=torch.float64))
        for (i, j), one in zip(itertools.combinations(range(4), 2), c.transpose(0, 1)):
            close(one[..., i] + one[..., j], torch.ones(2, 500, dtype=torch.float64))
            assert one.min() >= 0 and one.max() <= 1
        share = torch.stack([c[:, k, :, i] for k, (i, _) in enumerate(cb.subsets)])
        assert share.unique().numel() > 5900
        assert share.mean().item() == pytest.approx(0.5, abs=0.02)
        assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
        torch.manual_seed(1)
        assert torch.equal(cb.combined(eye), c)


def test_drawn_weights_in_a_step():
    learn = one_step('moco_v3', [cb := PatchVariants(alpha=2.)])
    drawn, real = [], torch.distributions.Beta.sample
    class Keep(torch.distributions.Beta):
        def sample(self, *args):
            drawn.append(real(self, *args))
            return drawn[-1]
    slow = Slow(learn)
    torch.distributions.Beta, old = Keep, torch.distributions.Beta
    try: learn.fit(1, LR)
    finally: torch.distributions.Beta = old
    shares = iter([drawn[v][0, k].double() for v in range(2) for k in range(6)])  # a pass for each view
    assert len(drawn) == 2 and cb.subsets == list(itertools.combinations(range(4), 2))
    def merge(hs):
        s = next(shares)
        return s * hs[0] + (1 - s) * hs[1]
    agree(learn, slow, slow.combined(learn.views.made[0]['views'], n=2, subsets=cb.subsets, merge=merge))


STITCHED = [('input', 'moco_v3', 0), ('input', 'simclr', 1), ('layer1', 'moco_v3', 2), ('layer2', 'byol', 0),
            ('layer3', 'swav', 1), ('layer4', 'moco_v3', 3)]


@pytest.mark.parametrize('where, patches', paired(STITCHED, [(2, 2), (2, 4), (3, 3)], 2), ids=str)
def test_patches_stitched_before_the_end(where, patches):
    (stage, name, seed), (n, m) = where, patches
    learn = one_step(name, [PatchVariants(n, m, combine=stage, seed=seed)])
    slow = Slow(learn)
    learn.fit(1, LR)
    views = learn.views.made[0]['views']
    losses = {how: stitched(slow, views, n, how, stage) for how in (['rows', 'columns'] if m == n else ['whole'])}
    # one of the two, the same for the whole batch
    right = [how for how, loss in losses.items() if loss.item() == pytest.approx(learn.diary.losses[0], rel=1e-8)]
    assert len(right) == 1
    agree(learn, slow, losses[right[0]])
    if stage == 'input' and m == 4: close(torch.stack(beside(cut(views[0], 2), 2, 'whole'))[0], views[0])


def test_rows_and_columns_in_equal_shares_and_seeded():
    def hows(seed, steps=40):
        cb, out = PatchVariants(combine='input', seed=seed), []
        learn = quick('moco_v3', cbs=[cb], n=8 * steps)
        class Look(Callback):
            order = 25
            def before_batch(self):
                height, width = step_inputs(self.learn)['views'].shape[-2:]
                out.append('rows' if width > height else 'columns')
                raise fastai_skip
        from fastai.callback.core import CancelBatchException as fastai_skip
        learn.fit(1, 1e-3, cbs=Look())
        return out
    a = hows(0)
    assert len(a) == 40 and 10 < a.count('rows') < 30 and a[:9] == hows(0, 9) != hows(1, 9)


@pytest.mark.parametrize('stage,levels', [
    ('layer2', ('layer1', 'layer2', 'layer3', 'final')), ('layer1', ('layer3', 'final')),
    ('layer4', ('layer4', 'final'))])
@pytest.mark.parametrize('m', [2, 4])
def test_levels_before_and_after_the_stitching(stage, levels, m):
    learn = one_step('moco_v3', [PatchVariants(2, m, combine=stage), IntermediateLoss(levels[:-1])])
    slow = Slow(learn, levels)
    learn.fit(1, LR)
    losses = [stitched(slow, learn.views.made[0]['views'], 2, how, stage, levels)
              for how in (['rows', 'columns'] if m == 2 else ['whole'])]
    agree(learn, slow, min(losses, key=lambda loss: abs(loss.item() - learn.diary.losses[0])))


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'swav', 'byol', 'moco_v2'])
def test_sampled_crops_combined(name):
    "Sample-Encode-Combine: eight crops, 28 pairs, for the keys of both views"
    cb = PatchVariants(patches='sample')
    learn = one_step(name, [cb])
    slow = Slow(learn)
    learn.fit(1, LR)
    assert {role: [*v.shape] for role, v in learn.views.made[0].items()} == {'views': [2, B, 3, SIDE, SIDE],
                                                                             'patches': [8, B, 3, SIDE // 2, SIDE // 2]}
    def queries(crops):
        hs, = slow.encode([[*crops]])
        return [[{'final': (hs[i]['final'] + hs[j]['final']) / 2} for i in range(8) for j in range(i + 1, 8)]], 1
    agree(learn, slow, sampled(slow, learn.views.made[0], queries))


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'swav', 'simsiam', 'moco_v2'])
def test_sampled_crops_alone(name):
    "Encode-Only: four crops of half the area, each against the keys of both views"
    learn = one_step(name, [PatchVariants(patches='sample', combine=None)])
    slow = Slow(learn)
    learn.fit(1, LR)
    side = learn.views.made[0]['patches'].shape[-1]
    assert [*learn.views.made[0]['patches'].shape[:3]] == [4, B, 3] and abs(side**2 / SIDE**2 - 0.5) < 0.12
    agree(learn, slow, sampled(slow, learn.views.made[0], lambda crops: (slow.encode([[x] for x in crops]), 4)))


@pytest.mark.parametrize('name', ['moco_v3', 'simclr'])
def test_sampled_strips(name):
    "Sample-Combine-Encode: crops in the shape of two patches side by side"
    cb = PatchVariants(patches='sample', combine='input')
    learn = one_step(name, [cb])
    slow = Slow(learn)
    learn.fit(1, LR)
    crops = learn.views.made[0]['patches']
    assert [*crops.shape] == [4, B, 3, SIDE, SIDE]
    def of(slicing): return lambda crops: (slow.encode([[slicing(x) for x in crops]]), 1)
    quarter, three = SIDE // 4, 3 * SIDE // 4
    losses = [sampled(slow, learn.views.made[0], of(s))
              for s in (lambda x: x[..., quarter:three, :], lambda x: x[..., quarter:three])]
    agree(learn, slow, min(losses, key=lambda loss: abs(loss.item() - learn.diary.losses[0])))


@pytest.mark.parametrize('n,size,batch', [(2, 8, 6), (2, 12, 5), (3, 12, 4)])
def test_a_montage_comes_apart_as_it_was_put_together(n, size, batch):
    "Where cells see their own patch alone, its features in a montage are those of the patch alone"
    learn, seen = local_learner(PatchVariants(n, 2, patches='montage', combinations=2 * n * n), size=size, n=batch), {}
    class Look(Callback):
        order = 22
        def before_batch(self): seen['given'] = {role: x.clone() for role, x in step_inputs(self.learn).items()}
        def after_pred(self): seen['h'] = self.pred['patches']['final'].h.detach().clone()
    learn.views = Recording(learn.views)
    encoder, cb = copy.deepcopy(learn.model.encoder), learn.patch_variants
    learn.fit(1, LR, cbs=Look())
    patches = learn.views.made[0]['patches']
    side = size // n
    assert [*patches.shape] == [2 * n * n, batch, 3, side, side]
    assert [*seen['given']['patches'].shape] == [1, 2 * batch, 1, 3, n * side, n * side]
    assert 'views' not in seen['given']
    with torch.no_grad(): alone = torch.stack([encoder(x) for x in patches])
    for k, subset in enumerate(cb.subsets):
        close(seen['h'][0, k], mean_of([alone[i] for i in subset]), rtol=1e-12, atol=1e-12)
    # montages mix pictures, and hold every patch once
    tiles = [t for montage in seen['given']['patches'][0, :, 0] for t in cut(montage, n)]
    where = [next((p, b) for p in range(2 * n * n) for b in range(batch) if torch.equal(patches[p, b], t))
             for t in tiles]
    assert len(set(where)) == 2 * n * n * batch
    groups = [{b for _, b in where[i:i + n * n]} for i in range(0, len(where), n * n)]
    assert max(map(len, groups)) > 1


def test_a_montage_in_a_real_encoder_has_one_feature_for_each_patch():
    learn = contrastive_learner(pictures(2 * B, 64), ARCH, method=small('moco_v3', 'cifar'), small_input=False,
                                cbs=[PatchVariants(patches='montage'), seen := Seen(25)])
    learn.create_mbar = False
    learn.fit(1, LR)
    assert [[*q['patches'].shape] for q, _ in seen.steps] == [[1, 28, B, D]] * 2


@pytest.mark.parametrize('n,m,combine,expected', [
    (2, 2, 'final', 1 / 4), (3, 4, 'final', 1 / 9), (2, 2, None, 1 / 2), (2, 2, 'input', 1)])
def test_sampled_crops_are_as_large_in_the_picture_as_what_they_stand_for(n, m, combine, expected):
    cb = PatchVariants(n, m, patches='sample', combine=combine, combinations=18 if n == 3 else None)
    low, high = quick('moco_v3', cbs=[cb]).views.makers['patches'].scale
    assert (low, high) == pytest.approx((0.2 * expected, expected))


def test_a_montage_beside_losses_of_stages():
    for cb in (IntermediateLoss(), HardRegions()):
        def make(cb=cb):
            return contrastive_learner(pictures(8, 64, 8), ARCH, method=small('moco_v3', 'cifar'), small_input=False,
                                       cbs=[PatchVariants(patches='montage'), cb])
        said(['montage', 'layer2'], make)
    learn = contrastive_learner(pictures(8, 64, 8), ARCH, method=small('moco_v3', 'cifar'), small_input=False,
                                cbs=[PatchVariants(patches='montage')])
    learn.create_mbar = False
    learn.add_cb(IntermediateLoss())
    said(['montage'], learn.fit, 1, 1e-3)
    learn.remove_cb(IntermediateLoss)
    learn.fit(1, 1e-3)


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'swav'])
def test_keys_of_the_same_view_among_three(name):
    "The patches of each large view find the whole of it, and small crops find every whole"
    learn = one_step(name, [PatchVariants(keys='same'), MultiCrop((3, None, (.4, 1)), (2, 16, (.1, .4)))])
    slow = Slow(learn)
    learn.fit(1, LR)
    views = learn.views.made[0]
    assert len(views['views']) == 3 and len(views['local']) == 2
    keys = slow.keys(views['views'])
    large = [[mean_of([hs[i]['final'], hs[j]['final']]) for i, j in itertools.combinations(range(4), 2)]
             for hs in slow.encode([cut(x, 2) for x in views['views']])]
    crops = [[h['final'] for h in view] for view in slow.encode([[x] for x in views['local']])]
    # in one pass of the head, or in two
    passes = [[*large, *crops]] if learn.recipe.joint_head else [large, crops]
    p = [queries for features in passes for queries in slow.heads(features, 'final')[1]]
    p, p_local = p[:3], p[3:]
    pairs = [mean_of([slow.pair('final', q, keys[i]['final']) for q in p[i]]) for i in range(3)]
    pairs += [slow.pair('final', p_local[i][0], keys[j]['final']) for i in range(2) for j in range(3)]
    agree(learn, slow, mean_of(pairs))


def test_keys_of_the_same_view_without_patches():
    "One patch is the whole view, which is then its own key: not silently the recipe"
    losses = []
    for cbs in ([], [PatchVariants(1, 1, keys='same')]):
        torch.manual_seed(0)
        learn = build(small('simclr', 'cifar'), cbs=cbs)
        learn.fit(1, LR)
        losses.append(learn.diary.losses[0])
    assert losses[1] < losses[0]  # easier to find


@pytest.mark.parametrize('args,words', [
    (dict(patches='cut'), ['cut']), (dict(patches=None), ['None']), (dict(merge='sum'), ['sum']),
    (dict(keys='both'), ['both']), (dict(patches='divide', combine=None), ['combine=None', 'sample']),
    (dict(patches='montage', combine='layer1'), ['montage']), (dict(n=1, m=1, patches='montage'), ['montage']),
    (dict(patches='sample', combine='layer1'), ['sample', 'layer1']),
    (dict(patches='montage', combine='input'), ['montage']), (dict(combine='input', m=3), ['not of 3', 'input']),
    (dict(combine='layer2', m=1), ['not of 1', 'layer2']), (dict(seed=-1), ['seed=-1']), (dict(seed='a'), ['seed']),
    (dict(seed=None), ['seed=None']),
    (dict(combine='input', combinations=2), ['combinations', 'input']),
    (dict(combine='layer1', weights=(1, 2)), ['weights', 'layer1']),
    (dict(combine='layer1', merge='max'), ['merge', 'layer1']), (dict(combine='input', alpha=1.), ['alpha', 'input']),
    (dict(keys='same', patches='sample'), ['same', 'sample']), (dict(merge='max', weights=(1, 2)), ['max', 'weights']),
    (dict(merge='max', alpha=1.), ['max', 'alpha']), (dict(alpha=0.), ['alpha=0.0']), (dict(alpha=-1.), ['alpha=-1.0']),
    (dict(alpha=math.nan), ['alpha=nan']), (dict(alpha=math.inf), ['alpha=inf']), (dict(alpha='2'), ["alpha='2'"]),
    (dict(alpha=1., m=3), ['alpha', 'm=2']), (dict(alpha=1., weights=(1, 2)), ['alpha', 'weights']),
    (dict(weights=(1,)), ['weights', '2']), (dict(weights=(1, 2, 3)), ['weights', '2']),
    (dict(weights=(-1, 2)), ['weights']), (dict(weights=(0, 0)), ['weights']),
    (dict(weights=(math.nan, 1)), ['weights']), (dict(weights=('a', 'b')), ['weights']),
    (dict(weights=0.5), ['weights', '0.5'])], ids=str)
def test_variants_that_cannot_be(args, words):
    said(words if 'combinations' in args else [*words, 'PatchVariants'], PatchVariants, **args)


@pytest.mark.parametrize('args,words', [
    (dict(combine='layer9'), ['layer9', 'layer1', 'layer4']),
    (dict(combine='final_'), ['final_', "'final'", "'projector'"]), (dict(combine=7), ['7', 'layer1']),
    (dict(combine=-1), ['-1']), (dict(combine=True), ['True']),
    (dict(patches='montage'), ['montage', '1 x 1', '2 x 2'])], ids=str)
def test_variants_that_the_encoder_cannot_take(args, words): said(words, quick, 'moco_v3', cbs=[PatchVariants(**args)])
