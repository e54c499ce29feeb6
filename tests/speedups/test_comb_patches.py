"""CombinePatches against a slow version with loops over patches and combinations."""
import itertools
import math
import signal
from collections import Counter

import pytest
import torch
from fastai.callback.core import Callback
from helpers.learners import build, learner_of, one_step, quick, small
from helpers.pairs import paired
from helpers.pictures import ARCH, LEVELS, LR, B, pictures
from helpers.recording import step_inputs, step_wholes, traces
from helpers.refusals import refusal, said
from helpers.slow import BY_HAND, Slow, agree, cut, mean_of, patched
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.learner import contrastive_learner
from fastcontrast.models import Head, mlp
from fastcontrast.recipes import METHODS
from fastcontrast.speedups.comb_patches import CombinePatches, balanced_counts
from fastcontrast.speedups.intermediate import IntermediateLoss
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.views import RoleViews, Views


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    monkeypatch.setattr('fastcontrast.models.LEAST_WIDTH', 1)  # of narrow features, too, means come after a layer
    torch.manual_seed(3)


@pytest.mark.parametrize('name', BY_HAND)
def test_every_pair_of_patches_finds_the_whole_other_view(name):
    patched(name, CombinePatches(), n=2, subsets=[(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])


@pytest.mark.parametrize('patches, name', paired([(2, 1), (2, 3), (2, 4), (3, 4), (3, 1)],
                                                 ['moco_v3', 'simclr', 'swav', 'byol'], 2), ids=str)
def test_other_numbers_of_patches(name, patches):
    n, m = patches
    if (n, m) == (3, 4) and name in ('simclr', 'swav'): return other_numbers_in_part(name)
    patched(name, CombinePatches(n, m, 'all'), n=n, subsets=list(itertools.combinations(range(n * n), m)))


WIDE = dict(projector=(1024, 64), predictor=(1024, 64))


def heads_of(dim, projector, predictor): return [Head(mlp((dim, *projector)), mlp((projector[-1], *predictor)))]


@pytest.mark.parametrize('flops,head,n,count', [
    (8.2e9, (2048, (2048, 2048, 2048), (512, 2048)), 2, None),  # the paper's: ResNet-50 at 224 pixels
    (0.67e9, (512, (4096, 256), (4096, 256)), 2, None),         # ResNet-18 at 96 pixels, MoCo v3's heads
    (0.2e9, (512, (4096, 256), (4096, 256)), 2, 2),
    (0.1e9, (512, (4096, 256), (4096, 256)), 2, 2),
    (0.5e9, (512, (4096, 256), (4096, 256)), 2, 4),
    (8.2e9, (2048, (2048, 2048, 2048), (512, 2048)), 3, 18)])
def test_as_many_combinations_as_cost_little(flops, head, n, count):
    cb, heads = CombinePatches(n), heads_of(*head)
    assert cb.affordable(flops, heads) == count
    linears = [[m for m in part.modules() if isinstance(m, torch.nn.Linear)]
               for part in (heads[0].projector, heads[0].predictor)]
    def rows(k):  # multiplications of a view's k combinations, forward
        first = linears[0][0]
        return sum(k * m.weight.numel() for m in sum(linears, [])) + (min(k, n * n) - k) * first.weight.numel()
    def share(k): return 3 * (rows(k) - rows(1)) / (4 * flops / 2 + 3 * rows(1) + sum(
        m.weight.numel() for m in linears[0]))
    counts = list(balanced_counts(n * n, 2))
    chosen = counts.index(count or math.comb(n * n, 2))
    assert share(counts[chosen]) <= 0.05 or chosen == len(counts) - 1
    assert all(share(more) > 0.05 for more in counts[:chosen])


def test_the_number_of_combinations_is_said_and_taken_back():
    learn = quick('moco_v3', n=8, **WIDE)  # views of 16 pixels
    cb = CombinePatches()
    assert repr(cb) == 'CombinePatches(n=2, m=2)' and len(cb.subsets) == 6
    learn.add_cb(cb)
    few = len(cb.subsets)
    assert few == cb.affordable(cb.encoder_flops, learn.model.heads.values())
    assert few < 6 and repr(cb) == f'CombinePatches(n=2, m=2, combinations={few})'
    learn.remove_cb(cb)
    assert repr(cb) == 'CombinePatches(n=2, m=2)' and len(cb.subsets) == 6
    for count, number in (('all', 6), (6, 6), (4, 4)):
        learn.add_cb(cb := CombinePatches(combinations=count))
        assert len(cb.subsets) == number and repr(cb) == f'CombinePatches(n=2, m=2, combinations={count!r})'
        learn.remove_cb(cb)


def test_patches_follow_views_of_another_side():
    "What the network sees of them, and the number of combinations, are as if the learner had begun with these"
    learn = quick('moco_v3', cbs=[CombinePatches(3), ProgressiveSize()], n=8, **WIDE)  # views of 16 pixels
    assert learn.plan.query_shape == (5, 5)
    learn.views = Views(24)
    learn.fit(1, 1e-3)
    begun = quick('moco_v3', cbs=[CombinePatches(3), ProgressiveSize()], n=8, views=Views(24), **WIDE)
    assert learn.plan.query_shape == begun.plan.query_shape == (8, 8)
    assert repr(learn.combine_patches) == repr(begun.combine_patches)
    assert learn.combine_patches.encoder_flops == begun.combine_patches.encoder_flops
    assert learn.progressive_size.sizes == begun.progressive_size.sizes


@pytest.mark.parametrize('make,views,shapes', [
    (lambda: PatchVariants(combine='input'), lambda: Views(24), [(16, 8), (24, 12)]),
    (lambda: PatchVariants(patches='sample'), lambda: RoleViews(Views(24), Views(10, n=8, role='patches')),
     [(8, 8), (10, 10)]),
    (lambda: PatchVariants(combine='layer1'), lambda: Views(24), [None, None]),
    (lambda: CombinePatches(1, 1), lambda: Views(24), [None, None])], ids=['strips', 'sampled', 'stitched', 'idle'])
def test_so_do_their_variants(make, views, shapes):
    learn = quick('moco_v3', cbs=[make()], n=8)
    was = learn.plan.query_shape
    learn.views = views()
    learn.fit(1, 1e-3)
    assert [was, learn.plan.query_shape] == shapes


def test_views_whose_patches_the_encoder_cannot_take():
    "A ConvNeXt makes less than a cell of 16 pixels; what is known of them is right before that is said"
    learn = learner_of('convnext_atto', [CombinePatches()], 64)
    learn.views = Views(32)
    assert learn.plan.query_shape == (16, 16) and learn.plan.seen_shape(64) == (32, 32)
    for _ in range(2): said(['CombinePatches', 'patches of 16 pixels'], learn.fit, 1, 1e-3)
    learn.views = Views(96)
    learn.fit(1, 1e-3)
    assert learn.plan.query_shape == (48, 48)


def test_heads_at_other_levels_count_whoever_comes_first():
    def chosen(*cbs): return quick('moco_v3', cbs=cbs, n=8, **WIDE).combine_patches
    one, other = chosen(CombinePatches(), IntermediateLoss()), chosen(IntermediateLoss(), CombinePatches())
    assert one.subsets == other.subsets and repr(one) == repr(other)


@pytest.mark.parametrize('count,least,rows', [
    ('all', 1, [4, 4, 4, 4]), ('all', 90, [6, 6, 4, 4]), (4, 1, [4, 4, 4, 4]), (2, 1, [2, 2, 2, 2])])
def test_a_wide_first_layer_sees_patches_where_these_are_fewer(count, least, rows, monkeypatch):
    "It is the same function: see the slow versions"
    monkeypatch.setattr('fastcontrast.models.LEAST_WIDTH', least)
    learn, seen = one_step('moco_v3', [CombinePatches(combinations=count), IntermediateLoss()]), {}
    for level, head in learn.model.heads.items():
        def look(m, args, level=level): seen[level] = len(args[0]) // B
        head.projector[0].register_forward_pre_hook(look)
    learn.fit(1, LR)
    assert [learn.model.heads[level].projector[0].in_features for level in LEVELS] == [32, 48, 192, 96]
    assert [seen[level] for level in LEVELS] == rows


def test_a_projector_that_is_one_layer_or_begins_otherwise():
    for projector, wide in ((nn.Linear(6, 5), True), (nn.Sequential(nn.ReLU(), nn.Linear(6, 5)), False)):
        head, cb = Head(projector).double(), CombinePatches(combinations='all')
        h = torch.randn(2, 4, 3, 6, dtype=torch.float64)
        assert (head.first is not None) == wide
        z, = head(cb.combined(h))
        if wide: torch.testing.assert_close(head(h, means=[cb.combined])[0], z)


@pytest.mark.parametrize('precision,most', [('fp32', 1e-5), ('bf16', 0.01)])
def test_means_before_and_after_the_first_layer_are_the_same_in_low_precision(precision, most):
    model, cb = quick('moco_v3', n=8).model, CombinePatches(combinations='all')
    x = torch.rand(2, 4, 16, 3, 32, 32)
    def embed(place):
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bf16'):
            e = model.embed(x, edits={place: [cb.combined]})['final']
        return [t.detach().float() for t in e]
    for a, b in zip(embed('means'), embed('pooled')):
        assert a.shape == b.shape and ((a - b).norm() / b.norm()).item() < most


def other_numbers_in_part(name):
    "126 combinations, too many for a slow version with loops over pictures: nine of them"
    cb = CombinePatches(3, 4, combinations=9)
    assert Counter(i for c in cb.subsets for i in c) == dict.fromkeys(range(9), 4) and len(set(cb.subsets)) == 9
    patched(name, cb, n=3, subsets=cb.subsets)


@pytest.mark.parametrize('name', ['moco_v3', 'nnclr', 'swav'])
@pytest.mark.parametrize('count', [2, 4])
def test_fewer_combinations(name, count):
    cb = CombinePatches(combinations=count)
    assert len(set(map(frozenset, cb.subsets))) == count
    assert set(Counter(i for c in cb.subsets for i in c).values()) == {count // 2}
    patched(name, cb, n=2, subsets=cb.subsets)


@pytest.mark.parametrize('n,m', [(2, 1), (2, 2), (2, 3), (2, 4), (3, 2), (3, 3), (3, 4), (3, 6), (4, 2), (4, 4)])
def test_every_allowed_number_of_combinations_uses_the_patches_alike(n, m):
    P = n * n
    with pytest.raises(InputError) as e: CombinePatches(n, m, combinations=10**9)
    allowed = [int(w) for w in str(e.value).split('one of ')[1].rstrip('.').split(', ')]
    assert allowed[-1] == math.comb(P, m) or len(allowed) == 20
    for count in allowed:
        subsets = CombinePatches(n, m, combinations=count).subsets
        assert len(subsets) == len(set(map(frozenset, subsets))) == count
        assert Counter(i for c in subsets for i in c) == dict.fromkeys(range(P), count * m // P)
    for count in {*range(1, allowed[-1])} - {*allowed}:
        # none is left out that could be: m * count has to be a multiple of P (and single orbits are whole)
        assert f'combinations={count}' in refusal(CombinePatches, n, m, combinations=count)


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'swav', 'moco_v2'])
def test_combinations_at_every_level(name):
    learn = patched(name, CombinePatches(), [IntermediateLoss()], levels=LEVELS, n=2,
                    subsets=list(itertools.combinations(range(4), 2)))
    assert learn.model.levels() == LEVELS


def test_small_crops_beside_the_patches_stay_whole():
    "Multi-crop: patches and small crops ask, whole large crops answer"
    learn = build(small('moco_v3', 'cifar', opt='sgd'), n=B,
                  cbs=[CombinePatches(), MultiCrop((2, None, (.4, 1)), (2, 16, (.1, .4)))])
    slow = Slow(learn)
    learn.fit(1, LR)
    views = learn.views.made[0]
    keys = slow.keys(views['views'])
    large = [[mean_of([hs[i]['final'], hs[j]['final']]) for i, j in itertools.combinations(range(4), 2)]
             for hs in slow.encode([cut(x, 2) for x in views['views']])]
    crops = [[h['final'] for h in view] for view in slow.encode([[x] for x in views['local']])]
    (_, p), (_, p_local) = slow.heads(large, 'final'), slow.heads(crops, 'final')
    pairs = [mean_of([slow.pair('final', q, keys[j]['final']) for q in p[i]]) for i, j in ((0, 1), (1, 0))]
    pairs += [slow.pair('final', p_local[i][0], keys[j]['final']) for i in range(2) for j in range(2)]
    agree(learn, slow, mean_of(pairs))


@pytest.mark.parametrize('side,n', [(32, 3), (33, 2), (32, 2)])
def test_patches_are_the_middle_of_a_view_that_n_does_not_divide(side, n):
    learn = contrastive_learner(pictures(8, side, 8), ARCH, method=small('moco_v3', 'cifar'), small_input=False,
                                cbs=[CombinePatches(n, 1)])
    seen = []
    class Look(Callback):
        order = 22
        def before_batch(self): seen.append((step_inputs(self.learn)['views'], step_wholes(self.learn)))
    learn.fit(1, 1e-3, cbs=Look())
    (patches, whole), = seen
    for v in range(2):
        for p, x in enumerate(cut(whole[v], n)): assert torch.equal(patches[v, p], x)


def test_one_pass_for_all_patches_and_one_for_the_keys():
    sizes, learn = [], quick('simclr', cbs=[CombinePatches()], n=8)
    learn.model.encoder.register_forward_pre_hook(lambda m, x: sizes.append([*x[0].shape]))
    learn.fit(1, 1e-3)
    assert sorted(sizes) == [[16, 3, 16, 16], [64, 3, 8, 8]]


def test_fast_moco_is_moco_v3_with_patches_and_the_papers_optimizer():
    learn = one_step('fast_moco')
    assert isinstance(learn.combine_patches, CombinePatches)
    slow = Slow(learn)
    learn.fit(1, LR)
    loss = slow.combined(learn.views.made[0]['views'], 2, list(itertools.combinations(range(4), 2)))
    assert loss.item() == pytest.approx(learn.diary.losses[0], rel=1e-8)
    r = METHODS['fast_moco']().resolve('imagenet')
    assert (r.opt, r.lr * 2, r.wd, r.clip, r.warmup, r.warmup_from * r.lr * 2,
            r.predictor_constant_lr) == ('sgd', 0.1, 1e-4, 1.0, 1, 0.025, True)
    assert (r.projector, r.predictor, r.loss().temp) == ((2048, 2048, 2048), (512, 2048), 1.0)
    target = r.target()
    assert (target.momentum, target.schedule) == (0.99, 'constant')


@pytest.mark.parametrize('args,words', [
    (dict(n=0), ['n=0']), (dict(n=-1), ['n=-1']), (dict(n=1.5), ['n=1.5']), (dict(n='2'), ["n='2'"]),
    (dict(n=True), ['n=True']), (dict(n=None), ['n=None']), (dict(m=0), ['m=0', '4']), (dict(m=5), ['m=5', '4']),
    (dict(n=3, m=10), ['m=10', '9']), (dict(m=2.), ['m=2.0']), (dict(m=None), ['m=None']), (dict(n=1, m=2), ['m=2']),
    (dict(combinations=0), ['combinations=0', '2, 4, 6']), (dict(combinations=3), ['combinations=3', '2, 4, 6']),
    (dict(combinations=7), ['combinations=7']), (dict(combinations=-2), ['combinations=-2']),
    (dict(combinations='some'), ["combinations='some'"]), (dict(combinations=True), ['True']),
    (dict(combinations=2.5), ['2.5']), (dict(combinations=[2]), ['combinations']), (dict(n=5, m=12), ['combinations']),
    (dict(n=4, m=8), ['combinations'])], ids=str)
def test_patches_that_cannot_be(args, words):
    said(words if 'combinations' in args or args.get('n', 0) in (4, 5) else [*words, 'CombinePatches'], CombinePatches,
         **args)


@pytest.mark.parametrize('count', [None, 'all'])
def test_too_many_combinations_for_all_of_them(count):
    said(['1,820 combinations', "or for 'all', 1,000 are made at most", 'combinations=16'], CombinePatches, 4, 4, count)
    assert len(CombinePatches(4, 4, 16).subsets) == 16


@pytest.mark.parametrize('args', [
    dict(patches='sample'), dict(combine='layer2'), dict(merge='max'), dict(weights=(1, 2)), dict(alpha=1.),
    dict(keys='same'), dict(seed=1), dict(patches='sample', combine=None)], ids=str)
def test_the_papers_variants_are_a_class_of_their_own(args):
    given = ', '.join(f'{name}={value!r}' for name, value in args.items())
    said([*args, 'CombinePatches', f'write PatchVariants({given})'], CombinePatches, **args)
    assert isinstance(PatchVariants(**args), CombinePatches)


@pytest.mark.parametrize('args,words', [
    (dict(n=17, m=1), ['n=17', 'more patches than they have pixels'])], ids=str)
def test_patches_that_the_encoder_cannot_take(args, words): said(words, quick, 'moco_v3', cbs=[CombinePatches(**args)])


def test_two_who_cut_patches():
    said(['CombinePatches(n=2, m=2)', 'already'], quick, 'moco_v3', cbs=[CombinePatches(), CombinePatches(3, 1)])
    learn = quick('moco_v3', cbs=[CombinePatches()])
    before = traces(learn)[0]
    said(['already'], learn.add_cb, PatchVariants(patches='sample'))
    assert traces(learn)[0] == before


@pytest.mark.parametrize('n,m,count', [(4, 4, 16), (5, 4, 25), (5, 5, 25)])
def test_choosing_combinations_takes_no_time(n, m, count):
    "The numbers that the refusal suggests"
    def late(*_): raise AssertionError(f'{count} combinations of {m} of {n * n} patches take more than 4 seconds')
    old = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, 4)  # of this process's own time
    try: assert len(CombinePatches(n, m, combinations=count).subsets) == count
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
