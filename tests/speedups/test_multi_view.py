"""MultiView against slow versions with loops over views and pictures; what it leaves alone; whom it meets."""
import itertools
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from helpers.equations import loop_dcl
from helpers.pairs import paired
from helpers.learners import SMALL_CROPS, build, one_step, quick, small, three_steps
from helpers.loops import cos, unit
from helpers.pictures import LEVELS, LR, B, KnownViews
from helpers.recording import Seen, traces, train_two_steps
from helpers.refusals import refusal, said
from helpers.slow import BY_HAND, TEMPS, Slow, agree, cut, mean_of
from lightly.loss import NegativeCosineSimilarity

from fastcontrast.device import Autocast
from fastcontrast.losses import DCL
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.recipes import RECIPES
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.multi_view import MultiView
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.step import Step
from fastcontrast.views import VIEW_KINDS, Views

close = torch.testing.assert_close
TARGETS = ('mean', 'each')
every_target = pytest.mark.parametrize('target', TARGETS)
SEED = 3


class SlowViews(Slow):
    "One step with any number of views"
    def pair_nnclr(self, level, q, k):
        "Keys are neighbours already"
        return F.cross_entropy(unit(k) @ unit(q).T / TEMPS[self.name], torch.arange(B))

    def keys_of(self, views) -> list[dict]:
        keys = self.keys(views)
        if self.name != 'nnclr': return keys
        def near(level, key): return max(self.rows[level], key=lambda row: cos(key, row).item())
        return [{level: torch.stack([near(level, key) for key in k.detach()]) for level, k in view.items()}
                for view in keys]

    def several(self, views, target, parts=lambda x: [x], subsets=((0,),), local=()) -> torch.Tensor:
        "Every view looks for the mean of the others' keys, or for each of them; small crops for every such key"
        one_way = self.recipe.one_way
        asked, answering = ([views[0]], [*views[1:]]) if one_way else ([*views], [*views])
        keys = self.keys_of(answering)
        others = [[j for j in range(len(keys)) if one_way or j != i] for i in range(len(asked))]
        roles = [self.encode([parts(x) for x in asked])]
        if len(local): roles.append(self.encode([[x] for x in local]))

        def loss(level, q, k): return mean_of([self.pair(level, one, k) for one in q])
        def mean_key(level, i): return mean_of([keys[j][level] for j in others[i]])
        losses = []
        for level in self.levels:
            h = [[mean_of([view[i][level] for i in subset]) for subset in subsets] for view in roles[0]]
            terms, p = [], self.heads(h, level)[1]
            for i, q in enumerate(p):
                goals = [mean_key(level, i)] if target == 'mean' else [keys[j][level] for j in others[i]]
                terms += [loss(level, q, k) for k in goals]
            # NT-Xent says the same of (i, j) and (j, i), which are scored as one pair where keys are the queries
            if self.name == 'simclr' and target == 'each' and roles[1:]: terms = [mean_of(terms)] * (len(terms) // 2)
            for features in roles[1:]:
                goals = [mean_key(level, i) if target == 'mean' else keys[i][level] for i in range(len(views))]
                p = self.heads([[e[level] for e in view] for view in features], level)[1]
                terms += [loss(level, q, k) for q in p for k in goals]
            losses.append(mean_of(terms))
        return mean_of(losses)


def agrees(name, cb, cbs=(), levels=('final',), slow=SlowViews, recipe=None, **how):
    "A step with MultiView against the slow one, loss and gradients"
    learn = one_step(name, [cb, *cbs], **recipe or {})
    by_hand = slow(learn, levels)
    learn.fit(1, LR)
    made, = learn.views.made
    assert len(made['views']) == cb.n
    agree(learn, by_hand, by_hand.several(made['views'], cb.target, local=made.get('local', ()), **how))
    return learn


# --- the step, by hand

@pytest.mark.parametrize('name, target', paired([*BY_HAND, 'dino'], TARGETS))
def test_four_views(name, target): agrees(name, MultiView(4, target))


@every_target
@pytest.mark.parametrize('n', [3, 5])
def test_other_numbers_of_views(n, target):
    for name in ('simclr', 'moco_v2', 'simsiam'): agrees(name, MultiView(n, target))


@every_target
def test_dcl(target):
    class SlowDCL(SlowViews):
        def pair_simclr(self, level, q, k): return loop_dcl(q, k, 0.2)
    agrees('simclr', MultiView(4, target), slow=SlowDCL, recipe=dict(loss=DCL(0.2)))


@every_target
@pytest.mark.parametrize('name', ['simclr', 'moco_v3', 'swav', 'dino'])
def test_small_crops_look_for_every_key_that_large_ones_look_for(name, target):
    agrees(name, MultiView(4, target), [SMALL_CROPS()], recipe=dict(per_view=False, joint_head=False))


@every_target
@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'simclr', 'swav'])
def test_combinations_of_patches(name, target):
    agrees(name, MultiView(3, target), [CombinePatches()], parts=lambda x: cut(x, 2),
           subsets=[*itertools.combinations(range(4), 2)])


@every_target
@pytest.mark.parametrize('name', ['moco_v2', 'simclr', 'nnclr', 'swav'])
def test_losses_at_stages(name, target): agrees(name, MultiView(3, target), [IntermediateLoss()], levels=LEVELS)


@every_target
@pytest.mark.parametrize('name', ['moco_v3', 'simclr'])
def test_a_drawn_level(name, target):
    drawn = PartialBackprop({'layer2': 1})
    learn = one_step(name, [MultiView(3, target), IntermediateLoss(), drawn])
    slow = SlowViews(learn, ('layer2',))
    learn.fit(1, LR)
    agree(learn, slow, slow.several(learn.views.made[0]['views'], target))


@pytest.mark.parametrize('name', ['simsiam', 'byol'])
@pytest.mark.parametrize('n', [3, 4])
def test_fast_siam_agrees_with_lightly(name, n):
    "The loop of lightly's FastSiam: every view's prediction, and the mean of the others' projections"
    seen = Seen(25)  # keys as the target made them
    learn = build(small(name, opt='sgd'), cbs=[MultiView(n), seen])
    learn.fit(1, LR)
    for (q, z), value in zip(seen.steps, learn.diary.losses, strict=True):
        loss, criterion = 0., NegativeCosineSimilarity()
        for i, p in enumerate(q['views']):
            mask = torch.arange(n) != i
            loss += criterion(p, torch.mean(z[mask], dim=0)) / n
        assert value == pytest.approx(4 + 4 * loss.item() if name == 'byol' else loss.item(), rel=1e-8)


def test_the_mean_of_cosines_is_the_cosine_with_the_mean_times_how_well_keys_agree():
    seen = Seen(25)
    learn = build(small('simsiam', opt='sgd'), cbs=[MultiView(4, 'each'), seen])
    learn.fit(1, LR)
    for (q, z), value in zip(seen.steps, learn.diary.losses, strict=True):
        m = [mean_of([unit(k) for j, k in enumerate(z) if j != i]) for i in range(4)]
        assert value == pytest.approx(-mean_of([(k.norm(dim=-1) * cos(p, k)).mean().item()
                                                for p, k in zip(q['views'], m, strict=True)]), rel=1e-8)


# --- the recipe without it

plain_steps = cache(three_steps)
# all but those that make several views by themselves
CASES = [(name, 'cifar') for name in RECIPES if MultiView not in RECIPES[name].speedups]
CASES += [('swav', 'imagenet'), ('dino', 'imagenet')]


@pytest.mark.parametrize('case, target', paired(CASES, TARGETS), ids=str)
def test_a_pair_is_bitwise_the_recipe_without_it(case, target):
    name, setting = case
    losses, weights = plain_steps(name, setting=setting)
    with_losses, with_weights = three_steps(name, setting=setting, cbs=[MultiView(2, target)])
    assert len(losses) == 3 and torch.equal(losses, with_losses)
    for n, w in weights.items(): assert torch.equal(w, with_weights[n]), n


def test_a_pair_of_sampled_patches_looks_for_each_key():
    losses = [three_steps('moco_v3', setting='cifar', cbs=[PatchVariants(patches='sample'), *cbs])[0]
              for cbs in ([], [MultiView(2)], [MultiView(4)])]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


# --- the views

def made(learn): return {role: len(v) for role, v in learn.views(torch.rand(4, 3, 16, 16)).items()}


def test_views_are_made_as_the_learners_own():
    pair = VIEW_KINDS['byol']
    learn = quick('byol', cbs=[MultiView(4)], views=pair)
    assert learn.views.main.strength.blur == pair.blur * 2 and learn.views.main.strength.solarise == pair.solarise * 2
    assert learn.views.main.size == 16 and made(learn) == dict(views=4)
    odd = quick('byol', cbs=[MultiView(3)], views=pair).views.main.strength
    assert odd.blur == 0.55 and odd.solarise == 0.1
    assert learn.views.main.strength.jitter == odd.jitter == pair.jitter


def test_any_augmentation_makes_several_views():
    learn = quick('simclr', cbs=[MultiView(3)])
    class Noise(torch.nn.Module):
        def forward(self, x): return (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    learn.views = Noise()
    train_two_steps(learn)
    assert made(learn) == dict(views=3)
    learn.remove_cb(MultiView)
    assert made(learn) == dict(views=2) and isinstance(learn.views.main.augment, Noise)


def test_a_maker_of_views_that_has_no_others_like_it_is_refused():
    learn = quick('simclr')
    learn.views = KnownViews()
    before = traces(learn)[0]
    assert 'KnownViews' in refusal(learn.add_cb, MultiView(4)) and traces(learn)[0] == before
    learn.add_cb(MultiView(2))
    assert isinstance(learn.views.main, KnownViews)


def test_views_smaller_than_the_pictures():
    learn = quick('simclr', cbs=[MultiView(4)])
    learn.views = Views(8, 'simclr', n=4)
    shapes = []
    learn.model.encoder.register_forward_pre_hook(lambda m, x: shapes.append([*x[0].shape]) if m.training else None)
    learn.fit(1, 1e-3)
    assert shapes == [[32, 3, 8, 8]] * 2


@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'nnclr', 'swav', 'dino'])
@pytest.mark.parametrize('first', [0, 1], ids=['MultiView first', 'MultiCrop first'])
def test_removed_it_leaves_no_trace(name, first):
    "Alone, and after crops, in either order"
    learn = quick(name, n=8, **(dict(memory=None) if name in ('moco_v2', 'swav') else {}))
    before, _ = traces(learn)
    learn.fit(1, 1e-3, cbs=MultiView())
    assert traces(learn)[0] == before
    cbs = [MultiView(3), MultiCrop((2, 16, (.4, 1)), (2, 8, (.1, .4)))]
    learn.add_cbs(cbs[::-1])
    assert made(learn) == dict(views=3, local=2)
    learn.fit(1, 1e-3)
    learn.remove_cb(cbs[first])
    learn.fit(1, 1e-3)
    assert made(learn) == (dict(views=2, local=2) if first == 0 else dict(views=3))
    learn.remove_cb(cbs[1 - first])
    assert traces(learn)[0] == before
    learn.fit(1, 1e-3)


@pytest.mark.parametrize('args,words', [
    (dict(n=1), ['n=1', 'at least 2']), (dict(n=0), ['n=0']), (dict(n=2.), ['n=2.0']), (dict(n=True), ['n=True']),
    (dict(n='4'), ["n='4'"]), (dict(n=None), ['n=None']), (dict(target='means'), ["'means'", 'did you mean mean']),
    (dict(target=None), ['None', 'each, mean']), (dict(target=['mean']), ['target'])], ids=str)
def test_what_cannot_be(args, words): said([*words, 'MultiView'], MultiView, **args)


def test_two_of_them(): said(['MultiView(3, ', 'already'], quick, 'simclr', cbs=[MultiView(3), MultiView(4)])


# --- with others

@every_target
def test_a_queue_is_given_every_single_key(target):
    seen = Seen(25)
    learn = build(small('moco_v2'), cbs=[MultiView(4, target), seen])
    learn.fit(1, LR)
    keys = torch.cat([unit(k).flatten(0, 1) for _, k, _ in seen.steps])
    ring = learn.model.memory['queue']['final']
    assert keys.shape[:1] == (3 * 3 * B,) and [len(k) for _, k, _ in seen.steps] == [3] * 3
    close(ring.in_order(), keys[-len(ring.rows):])


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'moco_v2'])
def test_regions_are_hard_by_each_of_the_others_keys(name):
    heats = []
    for target in TARGETS:
        torch.manual_seed(3)
        learn = one_step(name, [MultiView(3, target), cb := HardRegions('layer1', score='loss')])
        class Look(Callback):
            order = 25
            def after_pred(self, cb=cb): heats.append(cb.heat)
        learn.fit(1, LR, cbs=Look())
    assert len(heats[0]) == (1 if name == 'moco_v2' else 3) * B and torch.equal(*heats)


def test_a_control_that_finds_its_own_view_has_no_others():
    losses = [three_steps('moco_v3', setting='cifar', cbs=[PatchVariants(keys='same'), MultiView(4, target)])[0]
              for target in TARGETS]
    assert torch.equal(*losses)


@every_target
@pytest.mark.parametrize('name', ['simclr', 'moco_v2', 'swav', 'vicreg'])
def test_bfloat16(name, target):
    seen = Seen(27)  # the keys' means, before prototypes score them

    learn = quick(name, cbs=[MultiView(3, target), seen, Autocast('bf16')])
    train_two_steps(learn)
    assert all(k.dtype == torch.float32 for _, *ks in seen.steps for k in ks)
    n = 1 if target == 'mean' and name == 'moco_v2' else 2 if name == 'moco_v2' else 3
    assert {len(k) for _, k, *_ in seen.steps} == {n}


def test_one_key_of_all_views_has_the_negatives_of_all():
    "Where each view has a queue of its own"
    k, rows = torch.randn(3, 4, 2), torch.randn(3, 5, 2)
    class Alone(MultiView): step = Step(keys=dict(final=k), queries=dict(patches='every'), queue=dict(final=rows))
    views = Alone(3)
    views.after_pred()
    assert torch.equal(views.step.keys['final'], k.mean(0, keepdim=True))
    assert torch.equal(views.step.queue['final'], rows.flatten(0, 1))
