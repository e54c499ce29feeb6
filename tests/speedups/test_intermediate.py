"""IntermediateLoss: the method's own loss after every stage."""
import itertools
import math

import pytest
import torch
from fastai.callback.core import Callback
from helpers.learners import build, one_step, quick, small
from helpers.loops import unit
from helpers.pictures import LEVELS, LR, B, K
from helpers.recording import step_keys, traces
from helpers.refusals import refusal, said
from helpers.slow import BY_HAND, TEMPS, Slow, agree, whole_views
from torch import nn

from fastcontrast.speedups.intermediate import IntermediateLoss
from fastcontrast.targets import EMATarget, NearestNeighbours, Queue, SharedTarget, StopGradTarget

close = torch.testing.assert_close
SEED = 3


@pytest.mark.parametrize('name,weights', [
    (name, weights) for name in [*BY_HAND, 'dino'] for weights in (1., (0.5, 2., 0.25))
    if name != 'barlow_twins' or weights == 1.], ids=str)
def test_every_level_has_the_methods_loss_and_the_targets_key_of_that_level(name, weights):
    learn = one_step(name, [IntermediateLoss(weights=weights)])
    slow = Slow(learn, LEVELS, dict(zip(LEVELS, [*([weights] * 3 if weights == 1. else weights), 1])))
    # heads of levels are of the same make, and have weights of their own
    for level in LEVELS[:-1]:
        assert [type(m) for m in learn.model.heads[level].modules()] == [type(m)
                                                                         for m in learn.model.heads.final.modules()]
    last = [[m for m in learn.model.heads[level].projector if isinstance(m, nn.Linear)][-1].weight for level in LEVELS]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(last, 2))
    learn.fit(1, LR)
    agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))


@pytest.mark.parametrize('target', [SharedTarget, StopGradTarget, EMATarget])
def test_levels_with_every_target(target, monkeypatch):
    learn = one_step('moco_v3', [IntermediateLoss(('layer2',)), target()])
    slow = Slow(learn, ('layer2', 'final'))
    if target is StopGradTarget: slow.name, slow.pair_simsiam = 'simsiam', slow.pair_moco_v3
    monkeypatch.setitem(TEMPS, 'simsiam', TEMPS['moco_v3'])
    learn.fit(1, LR)
    agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))


@pytest.mark.parametrize('stages', [('layer3', 'layer1'), (3, 1), ('layer1', 3), ['layer1', 'layer3']], ids=str)
def test_stages_by_name_and_by_place_in_any_order(stages):
    learn = one_step('moco_v3', [IntermediateLoss(stages, (2., 2.))])
    assert learn.model.levels() == ('layer1', 'layer3', 'final')
    slow = Slow(learn, ('layer1', 'layer3', 'final'), dict(layer1=2, layer3=2, final=1))
    learn.fit(1, LR)
    agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))


def test_weights_go_with_their_stage():
    learn = one_step('simclr', [IntermediateLoss(('layer3', 'layer1'), (2., 0.5))])
    slow = Slow(learn, ('layer1', 'layer3', 'final'), dict(layer1=0.5, layer3=2., final=1))
    learn.fit(1, LR)
    agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))


@pytest.mark.parametrize('weights', [(1., 2.), (1., 2., 3., 4.), ()], ids=str)
def test_one_weight_for_each_of_the_default_stages(weights):
    "Else stages would be left out, or weights"
    text = refusal(one_step, 'simclr', [IntermediateLoss(weights=weights)])
    assert 'weights' in text or 'weight' in text


@pytest.mark.parametrize('name,ring', [('moco_v2', 'queue'), ('nnclr', 'neighbours'), ('swav', 'queue')])
def test_every_level_remembers_its_own_keys(name, ring):
    seen = {}
    class Look(Callback):
        order = 21
        def after_pred(self):
            for level, k in step_keys(self.learn).items(): seen.setdefault(level, []).append(k.detach().clone())
    size = 2 * B if name == 'swav' else B
    learn = build(small(name, 'cifar', opt='sgd'), n=2 * B,
                  cbs=[IntermediateLoss(), (NearestNeighbours if name == 'nnclr' else Queue)(2 * size), Look()])
    rings = learn.model.memory[ring]
    assert set(rings) == set(LEVELS)
    learn.fit(1, LR)
    for level in LEVELS:
        keys = [k[:1] if name == 'nnclr' else k for k in seen[level]]
        close(rings[level].in_order(), unit(torch.cat([k.flatten(0, 1) for k in keys])))
    assert len({r.rows.sum().item() for r in rings.values()}) == 4


def test_every_level_has_a_centre_and_prototypes_of_its_own():
    seen = {}
    class Look(Callback):
        order = 29
        def after_pred(self):
            for level, k in step_keys(self.learn).items(): seen.setdefault(level, []).append(k.clone())
    learn = build(small('dino', 'cifar', opt='sgd'), n=2 * B, cbs=[IntermediateLoss(), Look()])
    learn.fit(1, LR)
    for level in LEVELS:
        c = torch.zeros(K, dtype=torch.float64)
        for k in seen[level]: c = 0.9 * c + 0.1 * k.mean((0, 1))
        close(learn.loss_func.losses[level].center, c)
    assert len({id(learn.model.heads[level].prototypes) for level in LEVELS}) == 4


def test_a_level_that_is_added_later_has_a_centre_that_starts_anew():
    learn = quick('dino')
    learn.fit(1, 1e-3)
    assert learn.loss_func.loss.center.abs().max() > 0
    learn.add_cb(IntermediateLoss())
    for level in LEVELS[:-1]:
        center = learn.loss_func.losses[level].center
        assert center is None or not center.any(), "the centre of other prototypes"


def test_the_moving_average_follows_the_heads_of_levels():
    learn = build(small('byol', 'cifar', opt='sgd'), n=2 * B, cbs=[IntermediateLoss(), EMATarget(0.5, 'constant')])
    began = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    learn.fit(1, LR)
    target = learn.ema_target.target
    for level in LEVELS:
        name = f'heads.{level}.projector.0.weight'
        ours = [w[name] for w in learn.diary.weights]
        close(target.get_parameter(name), 0.25 * began[name] + 0.25 * ours[1] + 0.5 * ours[2])
        assert target.heads[level].predictor is None


@pytest.mark.parametrize('args,words', [
    (dict(weights=0), ['weights']), (dict(weights=-1.), ['weights']), (dict(weights=math.nan), ['weights']),
    (dict(weights=math.inf), ['weights']), (dict(weights='abc'), ['weights']),
    (dict(weights=True), ['weights']), (dict(weights=None), ['weights']), (dict(weights=(1, 0, 1)), ['weights']),
    (dict(weights=(1, 'a', 1)), ['weights']),
    (dict(stages=('layer1',), weights=(1, 2)), ['1 stages', '2 weights']),
    (dict(stages=('layer1', 'layer2'), weights=(1,)), ['2 stages', '1 weights']),
    (dict(stages=3.5), ['3.5']), (dict(stages=(), weights=(1,)), ['0 stages'])], ids=str)
def test_weights_of_levels(args, words): said([*words, 'IntermediateLoss'], IntermediateLoss, **args)


@pytest.mark.parametrize('stages', [
    'layer9', ('layer1', 'layer9'), (9,), (-1,), (None,), (1.,), (True,), ('',), ('conv1',)], ids=str)
def test_stages_that_are_not_there_are_listed(stages):
    "At once, and later too"
    said(['layer1', 'layer2', 'layer3', 'layer4'], quick, 'moco_v3', cbs=[IntermediateLoss(stages)])
    learn = quick('moco_v3')
    before = traces(learn)[0]
    said(['layer1', 'layer2', 'layer3', 'layer4'], learn.add_cb, IntermediateLoss(stages))
    assert traces(learn)[0] == before
    learn.fit(1, 1e-3)


@pytest.mark.parametrize('stages', [('layer1', 'layer1'), (1, 'layer1')], ids=str)
def test_a_stage_twice(stages): said(['twice', 'layer1'], quick, 'moco_v3', cbs=[IntermediateLoss(stages)])
