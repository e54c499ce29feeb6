"""Optimizers and schedules by name, from plain values."""
import math

import pytest
import torch
from fastai.optimizer import OptimWrapper
from timm.optim.lars import Lars
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.models import ContrastiveModel, Head, mlp
from fastcontrast.optim import (OPTIMIZERS, SCHEDULES, AdamW, Sgd, optimizer, parameter_groups, schedule_words,
                                schedules, stable_until, warmup_then)
from fastcontrast.recipes import simclr


def model(predictor: bool = True) -> ContrastiveModel:
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ContrastiveModel(encoder, Head(mlp((6, 8, 5)), mlp((5, 8, 5)) if predictor else None))


OURS = dict(lars=(Lars, dict(trust_coeff=0.02)), sgd=(Sgd, dict(nesterov=True)), adamw=(AdamW, dict(betas=(0.9, 0.95))))


@pytest.mark.parametrize('name', OURS)
def test_optimizers_by_name(name):
    cls, args = OURS[name]
    opt = optimizer(name, args)([dict(params=[nn.Parameter(torch.ones(2, 2))], weight_decay=0.1)], lr=0.3)
    assert type(opt) is OptimWrapper and type(opt.opt) is cls
    group, = opt.opt.param_groups
    assert (group['lr'], group['weight_decay']) == (0.3, 0.1)
    assert all(group[key] == value for key, value in args.items())
    if name != 'adamw': assert group['momentum'] == 0.9


def test_these_are_all_there_are(): assert OURS.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize('name,args,words', [
    ('lras', {}, "unknown optimizer 'lras': did you mean lars"), (None, {}, 'there are adamw, lars, sgd'),
    ('sgd', dict(fused=True, foreach=True), 'do not suit sgd'),
    ('adamw', dict(momentum=0.9), "opt_args={'momentum': 0.9} do not suit adamw")])
def test_what_cannot_be_is_refused(name, args, words):
    with pytest.raises(InputError, match=words): optimizer(name, args)


@pytest.mark.parametrize('predictor', [True, False])
@pytest.mark.parametrize('constant', [True, False])
@pytest.mark.parametrize('adapt', [True, False])
@pytest.mark.parametrize('wd_all', [True, False])
def test_every_parameter_is_in_one_group(predictor, constant, adapt, wd_all):
    net = model(predictor)
    net.encoder[0].bias.requires_grad_(False)
    groups = parameter_groups(net, 0.1, adapt, constant, wd_all)
    assert len(groups) == (4 if constant else 2)
    held = [p for g in groups for p in g['params']]
    assert len(held) == len(set(held)) and set(held) == {p for p in net.parameters() if p.requires_grad}
    of_predictor = set(net.heads.final.predictor.parameters()) if predictor else set()
    for i, g in enumerate(groups):
        matrices = i % 2 == 0
        assert all((p.ndim > 1) == matrices for p in g['params'])
        assert g['weight_decay'] == (0.1 if matrices or wd_all else 0) and bool(g['decays']) == (matrices or wd_all)
        assert ('always_adapt' in g) == (adapt and matrices) and ('constant_lr' in g) == (constant and i < 2)
        if constant: assert set(g['params']) <= of_predictor if i < 2 else not set(g['params']) & of_predictor


def test_schedules_over_a_run():
    groups = [dict(decays=True), dict(decays=False), dict(decays=True, constant_lr=True)]
    run = schedules(groups, 2., 0.2, 'cosine', 0.25, 0.1, 0.3)
    assert run['lr'](0.) == [0.5, 0.5, 2.] and run['lr'](0.1) == [1.25, 1.25, 2.] and run['lr'](0.2) == [2., 2., 2.]
    assert run['lr'](0.6) == pytest.approx([1., 1., 2.]) and run['lr'](1.) == pytest.approx([0., 0., 2.])
    for t in (0., 0.3, 1.):
        wd = 0.3 - 0.2 * (1 + math.cos(math.pi * t)) / 2
        assert run['wd'](t) == pytest.approx([wd, 0, wd])
    assert list(schedules(groups, 2., 0.2)) == ['lr']  # a constant decay is the groups'


def test_steps():
    lr = warmup_then('step', 1., 0.)
    assert [lr(t) for t in (0., 0.59, 0.6, 0.79, 0.8, 1.)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_warm_up_stable_decay():
    lr = warmup_then('wsd', 2., 0.2)
    assert [lr(t) for t in (0., 0.1, 0.2, 0.5, 0.84)] == [0, 1, 2, 2, 2] and lr(1.) == 0
    share = SCHEDULES['wsd']
    for t in (0.8, 0.85, 0.9, 0.99, 1.): assert share(t) == pytest.approx(1 - math.sqrt((t - 0.8) / 0.2), abs=1e-7)
    shares = [share(i / 1000) for i in range(1001)]
    assert shares == sorted(shares, reverse=True) and min(shares) == 0
    assert schedule_words('wsd') == 'stable, then down to 0 in the last fifth'


@pytest.mark.parametrize('warmup', [0, 3])
def test_a_longer_run_begins_as_the_shorter_one_while_its_schedule_is_stable(warmup):
    "In epochs: the rate of a run of 20 and of one of 50, up to where the shorter one says that it is stable"
    for name in SCHEDULES:
        short, long = (warmup_then(name, 0.3, warmup / n) for n in (20, 50))
        end = warmup + stable_until(name) * (20 - warmup)
        epochs = [i / 10 for i in range(200)]
        same = [short(e / 20) == pytest.approx(long(e / 50), rel=1e-12) for e in epochs]
        assert all(same[:int(end * 10)]) and not all(same)


def test_how_long_schedules_are_stable():
    assert stable_until('wsd') == 0.8 and stable_until('cosine') == stable_until('step') == 0
    with pytest.raises(InputError, match="unknown schedule 'wsb': did you mean wsd"): stable_until('wsb')
    assert simclr(schedule='wsd').resolve('cifar').schedule == 'wsd'
    with pytest.raises(InputError, match="did you mean wsd"): simclr(schedule='wsb')


def test_schedules_have_words_and_take_others():
    assert schedule_words('cosine') == 'cosine to 0' and schedule_words('step') == 'steps to a hundredth'
    with pytest.raises(InputError, match="unknown schedule 'cosin': did you mean cosine"): warmup_then('cosin', 1., 0.)
    try:
        @SCHEDULES.register('linear')
        def linear(t): return 1 - t
        assert warmup_then('linear', 2., 0.5)(0.75) == 1 and schedule_words('linear') == 'linear'
    finally: SCHEDULES.pop('linear', None)
