"""PartialBackprop: the drawn level alone learns, and nothing above it runs."""
import copy
import itertools
import math
from collections import Counter
from functools import partial

import pytest
import torch
from fastai.callback.core import Callback
from helpers.learners import build, one_step, quick, small
from helpers.pairs import paired
from helpers.pictures import ARCH, LEVELS, LR, SIDE, STAGES, B, pictures
from helpers.recording import Script, Untouched, draws
from helpers.refusals import said
from helpers.slow import Slow, above, agree, walk, whole_views
from helpers.speedups import only
from torch import nn

from fastcontrast.learner import contrastive_learner
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.targets import Queue

SEED = 3


@pytest.mark.parametrize('name, level', paired(['moco_v2', 'moco_v3', 'simclr', 'swav', 'nnclr'], LEVELS, 2))
def test_the_drawn_levels_loss_alone(name, level):
    "Whether the forward pass stops there or goes on: from the same weights, with the same views"
    learn = one_step(name, [IntermediateLoss(weights=0.3), drawing := PartialBackprop(only(level))])
    began, slow = copy.deepcopy(learn.model.state_dict()), Slow(learn, (level,))
    learn.fit(1, LR)
    assert drawing.drawn == level
    agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))
    learn.model.load_state_dict(began)
    learn.views, drawing.drawn, drawing.stop_forward, reached = Script(learn.views.made), None, False, []
    hook = learn.model.encoder.layer4.register_forward_hook(lambda *_: reached.append(1))
    learn.fit(1, LR)
    hook.remove()
    assert drawing.drawn == level and reached
    agree(learn, slow)


@pytest.mark.parametrize('level', LEVELS)
def test_the_drawn_level_of_combined_patches(level):
    learn = one_step('moco_v3', [CombinePatches(), IntermediateLoss(), PartialBackprop(only(level))])
    slow = Slow(learn, (level,))
    learn.fit(1, LR)
    agree(learn, slow, slow.combined(learn.views.made[0]['views'], 2, list(itertools.combinations(range(4), 2))))


@pytest.mark.parametrize('stop', [True, False], ids=['stop', 'go on'])
@pytest.mark.parametrize('name, opt', paired(['moco_v3', 'simclr', 'swav'], ['sgd', 'lars', 'adamw']))
def test_nothing_above_the_drawn_level_moves(name, opt, stop):
    "Nor by momentum or weight decay: after a step at the end everything has momentum"
    look = Untouched()
    learn = build(small(name, 'cifar', opt=opt, wd=0.1,
                        **(dict(prototypes_frozen=0, memory=None) if name == 'swav' else {})), n=5 * B,
                  cbs=[IntermediateLoss(), PartialBackprop((0.25, 0.2, 0.2, 0.35), stop_forward=stop, seed=21), look])
    learn.fit(1, LR)
    drawn = [d for d, *_ in look.steps]
    assert drawn == ['final', 'layer1', 'layer2', 'layer3', 'final']
    for level, moved, grads, everything in look.steps:
        params = {n for n in dict(learn.model.named_parameters()) if not n.startswith('memory')}
        assert grads == {n for n in params if not above(n, level)}
        # without the stop BatchNorm's statistics above go on
        still = {n for n in everything if above(n, level)
                 and not (not stop and n.startswith('encoder') and ('running' in n or 'tracked' in n))}
        still -= set() if stop else {n for n in everything if n.startswith('heads')
                                     and ('running' in n or 'tracked' in n) and name != 'moco_v3'}
        assert not moved & still, (level, sorted(moved & still)[:5])
        below = {n for n in params if not above(n, level)}
        assert len(moved & below) > 0.8 * len(below)


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'simsiam', 'moco_v2'])
@pytest.mark.parametrize('stop', [True, False], ids=['stop', 'go on'])
def test_no_module_above_the_drawn_level_runs(name, stop):
    look = Untouched()
    memory = dict(memory=partial(Queue, 8)) if name == 'moco_v2' else {}
    learn = quick(name, cbs=[IntermediateLoss(), PartialBackprop(stop_forward=stop, seed=5), look], n=32, **memory)
    learn.fit(1, 1e-3)
    assert {d for d, _ in look.ran} == set(LEVELS)
    for level, ran in look.ran:
        at = len(STAGES) if level == 'final' else STAGES.index(level) + 1
        ours, theirs = ({n: c for (whose, n), c in ran.items() if whose == side} for side in ('model', 'target'))
        encoder = {'conv1', *STAGES[:at],
                   *(['global_pool'] if level == 'final' else [])} if stop else {'conv1', *STAGES, 'global_pool'}
        assert {n for n in ours if 'head' not in n} == encoder
        assert {n for n in ours if 'head' in n} == {f'head {level}'}
        passes = 2 if name in ('moco_v3', 'simsiam') else 1
        assert set(ours.values()) == {passes}
        if name in ('moco_v3', 'moco_v2'):
            assert {n for n in theirs if 'head' not in n} == encoder
            assert {n for n in theirs if 'head' in n} == ({f'head {level}'} if stop
                                                          else {f'head {one}' for one in LEVELS})
        else: assert not theirs


@pytest.mark.parametrize('probs', [
    (0.1, 0.2, 0.3, 0.4), None, (0.5, 0., 0.5, 0.), {'final': 0.25, 'layer1': 0.75}, {1: 0.5, 'layer3': 0.5},
    (0., 0., 0., 1.)], ids=str)
def test_levels_are_drawn_as_often_as_they_should_be(probs):
    learn = quick('simclr', cbs=[IntermediateLoss(), PartialBackprop(probs)], n=8)
    if isinstance(probs, dict): expected = {('layer1' if k == 1 else k): p for k, p in probs.items()}
    else: expected = dict(zip(LEVELS, [0.25] * 4 if probs is None else probs))
    n, counts = 4000, Counter(draws(learn.partial_backprop, 4000))
    for level in LEVELS:
        p = expected.get(level, 0)
        assert abs(counts[level] - n * p) <= 4 * math.sqrt(n * p * (1 - p)) + 1e-9
    assert learn.partial_backprop.chances() == pytest.approx({level: expected.get(level, 0) for level in LEVELS})


def test_draws_are_seeded_and_not_torchs():
    def run(seed, torch_seed):
        learn = quick('simclr', cbs=[IntermediateLoss(), PartialBackprop(seed=seed)], n=8)
        torch.manual_seed(torch_seed)
        state = torch.get_rng_state()
        out = draws(learn.partial_backprop, 60)
        assert torch.equal(torch.get_rng_state(), state)
        return out
    assert run(0, 1) == run(0, 2) != run(1, 1)


def test_draws_go_on_after_a_fit():
    "Two fits of 8 steps are not twice the same draws"
    drawn = []
    class Look(Callback):
        order = 21
        def after_pred(self): drawn.append(self.partial_backprop.drawn)
    learn = quick('simclr', cbs=[IntermediateLoss(), PartialBackprop(), Look()], n=64)
    learn.fit(1, 1e-3)
    learn.fit(1, 1e-3)
    assert drawn == draws(quick('simclr', cbs=[IntermediateLoss(), PartialBackprop()], n=8).partial_backprop, 16)
    assert drawn[:8] != drawn[8:]


def test_the_expected_cost_is_that_of_the_stages():
    learn = contrastive_learner(pictures(8, SIDE, 8), ARCH, method=small('simclr', 'cifar'), small_input=False,
                                cbs=[IntermediateLoss(), PartialBackprop()])
    assert learn.partial_backprop.expected_cost() < 1
    def macs(level):
        total, encoder, hooks = [0], learn.model.encoder, []
        def count(m, args, out): total[0] += out.numel() * m.weight[0].numel()
        for m in encoder.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)): hooks.append(m.register_forward_hook(count))
        with torch.no_grad(): walk(encoder.eval(), torch.zeros(1, 3, SIDE, SIDE), upto=level)
        for h in hooks: h.remove()
        encoder.train()
        return total[0]
    costs = [macs(level) for level in LEVELS]
    mean = sum(costs) / 4 / costs[-1]
    assert learn.partial_backprop.expected_cost() == pytest.approx(mean, rel=1e-6)
    learn.remove_cb(PartialBackprop)
    learn.add_cb(cb := PartialBackprop((0.5, 0, 0, 0.5), stop_forward=False))
    assert cb.expected_cost() == pytest.approx((1 + 2 * (costs[0] + costs[-1]) / 2 / costs[-1]) / 3, rel=1e-6)


def test_draws_go_on_where_they_were_after_a_load(tmp_path):
    "Else the first steps after a resumed run are those of its beginning"
    def make():
        learn = quick('simclr', cbs=[IntermediateLoss(), PartialBackprop()], n=64)
        learn.path = tmp_path
        return learn
    drawn = []
    class Look(Callback):
        order = 21
        def after_pred(self): drawn.append(self.partial_backprop.drawn)
    one = make()
    one.fit(1, 1e-3)
    one.save('here')
    other = make()
    other.load('here')
    other.fit(1, 1e-3, cbs=Look())
    whole = draws(make().partial_backprop, 16)
    assert drawn == whole[8:]


@pytest.mark.parametrize('probs', [
    (0.5, 0.4), (0.5, 0.6), (), (1.5, -0.5), (math.nan, 1), 'ab', 1, (True, False), {'final': 0.5}, {}, (0.5, '0.5'),
    ('a',), {'final': None}], ids=str)
def test_probabilities_that_cannot_be(probs): said(['probs', 'sum to 1'], PartialBackprop, probs)


@pytest.mark.parametrize('probs,words', [
    ((0.5, 0.5), ['2', '4', 'layer1', 'final']), ((0.2,) * 5, ['5', '4']),
    ({'layer4': 0.5, 'final': 0.5}, ['layer4', 'layer1']), ({'nosuch': 1.}, ['nosuch']),
    ({9: 1.}, ['9']), ({-1: 1.}, ['-1']), ({None: 1.}, ['None']),
    ((1.,), ['1', '4'])], ids=str)
def test_probabilities_of_other_levels(probs, words):
    said([*words, 'PartialBackprop'], quick, 'moco_v3', cbs=[IntermediateLoss(), PartialBackprop(probs)])


@pytest.mark.parametrize('seed', [-1, 1.5, 'a', None, True])
def test_seeds_of_draws(seed): said([f'seed={seed!r}', 'PartialBackprop'], PartialBackprop, seed=seed)


@pytest.mark.parametrize('cbs', [
    [PartialBackprop], [partial(PartialBackprop, (0.5, 0.5))], [partial(IntermediateLoss, ()), PartialBackprop]])
def test_drawing_among_one_level(cbs):
    said(['PartialBackprop'], quick, 'moco_v3', cbs=[cb() for cb in cbs])
    learn = quick('moco_v3')
    for cb in cbs: learn.add_cb(cb())
    said(['PartialBackprop'], learn.fit, 1, 1e-3)  # at the latest


def test_two_who_draw_levels():
    "Only the second would count"
    said(['PartialBackprop'], quick, 'moco_v3',
         cbs=[IntermediateLoss(), PartialBackprop({'final': 1}), PartialBackprop({'layer1': 1})])
