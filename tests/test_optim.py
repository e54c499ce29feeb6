"""Optimizers and schedules by name, from plain values."""
import math
from functools import partial

import pytest
import timm.optim.muon
import torch
from fastai.optimizer import OptimWrapper
from timm.models.xcit import Xcit
from timm.optim.lars import Lars
from torch import nn

from fastcontrast import muon
from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.learner import contrastive_learner
from fastcontrast.models import ContrastiveModel, Head, make_encoder, mlp
from fastcontrast.muon import QUINTIC, Muon, by_gram_matrix, orthogonalized
from fastcontrast.optim import (OPTIMIZERS, SCHEDULES, AdamW, JointLars, Sgd, optimizer, parameter_groups,
                                schedule_words, schedules, stable_until, warmup_then)
from fastcontrast.recipes import METHODS, simclr


def model(predictor: bool = True) -> ContrastiveModel:
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ContrastiveModel(encoder, Head(mlp((6, 8, 5)), mlp((5, 8, 5)) if predictor else None))


OURS = dict(lars=(Lars, dict(trust_coeff=0.02)), sgd=(Sgd, dict(nesterov=True)), adamw=(AdamW, dict(betas=(0.9, 0.95))),
            muon=(Muon, dict(ns_steps=3)))


@pytest.mark.parametrize('name', OURS)
def test_optimizers_by_name(name):
    cls, args = OURS[name]
    opt = optimizer(name, args)([dict(params=[nn.Parameter(torch.ones(2, 2))], weight_decay=0.1)], lr=0.3)
    assert isinstance(opt, OptimWrapper) and type(opt.opt) is cls
    group, = opt.opt.param_groups
    assert (group['lr'], group['weight_decay']) == (0.3, 0.1)
    assert all(group[key] == value for key, value in args.items())
    if name != 'adamw': assert group['momentum'] == (0.95 if name == 'muon' else 0.9)


def test_lars_by_the_norm_of_gradient_and_decay_together():
    "MoCo v3's optimizer.py: with decay, matrices alone are adapted; without a gradient nothing moves"
    matrix, bias, idle = (nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in ((3, 4), (4,), (2, 2)))
    groups = [dict(params=[matrix, idle], weight_decay=0.5, always_adapt=True), dict(params=[bias], weight_decay=0.5)]
    opt = optimizer('lars', dict(joint=True))(groups, lr=0.3).opt
    assert type(opt) is JointLars and type(optimizer('lars')(groups, lr=0.3).opt) is Lars
    w, b, still, v, u = matrix.data.clone(), bias.data.clone(), idle.data.clone(), 0, 0
    for _ in range(3):
        matrix.grad, bias.grad = torch.randn_like(matrix), torch.randn_like(bias)
        g, d = matrix.grad + 0.5 * w, bias.grad + 0.5 * b
        v, u = 0.9 * v + g * 0.001 * w.norm() / g.norm(), 0.9 * u + d
        w, b = w - 0.3 * v, b - 0.3 * u
        opt.step()
        torch.testing.assert_close((matrix.data, bias.data, idle.data), (w, b, still), rtol=1e-13, atol=1e-13)
    assert [g['weight_decay'] for g in opt.param_groups] == [0.5, 0.5]


WITH_LARS = [name for name, method in METHODS.items() if method.recipe.own('cifar', 32, 'cnn').opt == 'lars']


@pytest.mark.parametrize('name', WITH_LARS)
def test_small_pictures_are_trained_by_the_clipped_lars_of_solo_learn(name):
    "Its lars.py by hand: the trust ratio, 0.02 of the norms, is at most the rate; vectors have neither that nor decay"
    heads = dict(projector=(16, 8)) | (dict(predictor=(16, 8)) if METHODS[name].recipe.predictor else {})
    learn = contrastive_learner(image_dls('digits', bs=64), 'test_resnet', METHODS[name](setting='cifar', **heads))
    learn.model.double()
    learn.create_opt()
    lr, wd = 0.3, learn.recipe.own('cifar', 32, 'cnn').wd
    params = [p for p in learn.model.parameters() if p.requires_grad]
    by_hand, speeds, clipped = [p.detach().clone() for p in params], [0] * len(params), set()
    for group in learn.opt.opt.param_groups: group['lr'] = lr
    for scale in (1e-4, 1., 1e-2):  # beside a small gradient the ratio is large
        for i, p in enumerate(params):
            w, g = by_hand[i], scale * torch.randn_like(p)
            p.grad = g.clone()
            if w.ndim > 1 and w.any():
                ratio = 0.02 * w.norm() / (g.norm() + wd * w.norm() + 1e-8)
                clipped.add(bool(ratio > lr))
                g = (g + wd * w) * min(ratio / lr, 1)
            speeds[i] = 0.9 * speeds[i] + g
            by_hand[i] = w - lr * speeds[i]
        learn.opt.opt.step()
    torch.testing.assert_close([p.detach() for p in params], by_hand, rtol=1e-9, atol=1e-12)
    assert clipped == {False, True}


def test_these_are_all_there_are(): assert OURS.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize('name,args,words', [
    ('lras', {}, "unknown optimizer 'lras': did you mean lars"), (7, {}, 'there are adamw, lars, muon, sgd'),
    ('sgd', dict(fused=True, foreach=True), 'do not suit sgd'),
    ('adamw', dict(momentum=0.9), "opt_args={'momentum': 0.9} do not suit adamw"),
    ('adamw', dict(betas=(0.9,)), r"opt_args={'betas': \(0.9,\)} do not suit adamw"),
    ('muon', dict(momentum=2.), "opt_args={'momentum': 2.0} do not suit muon"),
    ('adamw', dict(lr=1e-3, weight_decay=0.05), 'lr=0.001 and weight_decay=0.05 among the arguments of adamw would '
     'come to nothing: give lr=… and wd=… of the recipe'),
    (torch.optim.AdamW, dict(wd=0.05), 'wd=0.05 among the arguments of AdamW'),
    (partial(torch.optim.AdamW, weight_decay=0.05), {}, 'weight_decay=0.05 among the arguments of AdamW')])
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


@pytest.mark.parametrize('wd_tokens', [True, False])
def test_position_and_class_tokens(wd_tokens):
    net = ContrastiveModel(make_encoder('test_vit', size=32), Head(mlp((64, 8, 5))))
    decayed, rest = parameter_groups(net, 0.1, adapt=False, wd_tokens=wd_tokens)
    for token in (net.encoder.pos_embed, net.encoder.cls_token):
        assert any(p is token for p in (decayed if wd_tokens else rest)['params'])
    assert all(p.ndim == 1 or p is net.encoder.pos_embed or p is net.encoder.cls_token for p in rest['params'])
    assert (decayed['weight_decay'], rest['weight_decay']) == (0.1, 0)


@pytest.mark.parametrize('wd_tokens', [True, False])
def test_encoders_name_exceptions_by_patterns(wd_tokens):
    "XCiT's are {'pos_embed.*', 'cls_token'}"
    encoder = Xcit(img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2, cls_attn_layers=1, num_classes=0)
    net = ContrastiveModel(encoder, Head(mlp((16, 8, 5))))
    decayed, rest = ({id(p) for p in group['params']}
                     for group in parameter_groups(net, 0.1, adapt=False, wd_tokens=wd_tokens))
    for p in (encoder.pos_embed.token_projection.weight, encoder.cls_token):
        assert id(p) in (decayed if wd_tokens else rest)
    assert id(encoder.blocks[0].attn.qkv.weight) in decayed and id(encoder.blocks[0].attn.qkv.bias) in rest


def test_schedules_over_a_run():
    groups = [dict(decays=True), dict(decays=False), dict(decays=True, constant_lr=True)]
    run = schedules(groups, 2., 0.2, 'cosine', 0.25, 0.1, 0.3)
    assert run['lr'](0.) == [0.5, 0.5, 2.] and run['lr'](0.1) == [1.25, 1.25, 2.] and run['lr'](0.2) == [2., 2., 2.]
    assert run['lr'](0.6) == pytest.approx([1., 1., 2.]) and run['lr'](1.) == pytest.approx([0., 0., 2.])
    for t in (0., 0.3, 1.):
        wd = 0.3 - 0.2 * (1 + math.cos(math.pi * t)) / 2
        assert run['wd'](t) == pytest.approx([wd, 0, wd])
    assert list(schedules(groups, 2., 0.2)) == ['lr']  # a constant decay is the groups'
    floor = schedules(groups, 2., 0.2, lr_end=0.1)['lr']
    assert [floor(t)[0] for t in (0.1, 0.2, 0.6, 1.)] == pytest.approx([1, 2, 1.1, 0.2])


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


# --- Muon

assert QUINTIC == timm.optim.muon._COEFFICIENTS['quintic']
COEFFICIENTS = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
                (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012))


def newton_schulz(m: torch.Tensor) -> torch.Tensor:
    "As it is written down: every singular value of a matrix comes near one"
    x = m / m.norm()
    for a, b, c in COEFFICIENTS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def with_singular_values(rows: int, columns: int, least: float) -> torch.Tensor:
    "A matrix in float64 whose singular values go from 1 down to the least"
    u, v = (torch.linalg.qr(torch.randn(n, min(rows, columns), dtype=torch.float64)).Q for n in (rows, columns))
    return u * torch.logspace(0, math.log10(least), min(rows, columns), dtype=torch.float64) @ v.T


@pytest.mark.parametrize('rows,columns', [(64, 576), (576, 64), (16, 27), (40, 40), (1, 9)])
@pytest.mark.parametrize('least', [1., 1e-2, 1e-5])
def test_powers_of_the_gram_matrix(rows, columns, least):
    "The same polynomial, without its errors adding up; directions that are hardly there too"
    torch.manual_seed(0)
    x = 37 * with_singular_values(rows, columns, least)
    whole, got = newton_schulz(x), by_gram_matrix(x.float())
    assert got.dtype == torch.float32 and (got - whole).norm() < 2e-3 * whole.norm()
    assert not by_gram_matrix(torch.zeros(rows, columns)).any()


@pytest.mark.parametrize('bf16', [False, True])
@pytest.mark.parametrize('shape', [(8, 72), (72, 8), (8, 24), (8, 9)])
def test_every_way_gives_the_same(monkeypatch, bf16, shape):
    monkeypatch.setattr(muon, 'has_bf16', lambda device: bf16)
    torch.manual_seed(0)
    x = torch.randn(shape)
    assert (orthogonalized(x) - newton_schulz(x.double())).norm() < (2e-2 if bf16 else 1e-5) * min(shape) ** 0.5
    assert orthogonalized(x).dtype == (torch.bfloat16 if bf16 and max(shape) < 6 * min(shape) else torch.float32)


@pytest.mark.parametrize('args', [{}, dict(nesterov=True, adjust_lr_fn='original'), dict(adjust_lr_fn=None),
                                  dict(ns_steps=3), dict(algo='adamuon'), dict(conv_mode='batched'),
                                  dict(ns_coefficients='original')], ids=str)
@pytest.mark.parametrize('flag', [{}, dict(use_fallback=True), dict(use_muon=False)], ids=str)
@pytest.mark.parametrize('bf16', [False, True])
def test_steps_are_timms(monkeypatch, args, bf16, flag):
    "But for rounding, with the same state; what is not usual is timm's own, and so is a step with a closure"
    monkeypatch.setattr(muon, 'has_bf16', lambda device: bf16)
    torch.manual_seed(0)
    shapes, usual = [(6, 8, 3, 3), (8, 80), (5, 7), (7,)], set(args) <= {'nesterov', 'adjust_lr_fn'}
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    one, other = (make([dict(params=ps, **flag)], lr=0.1, weight_decay=0.1, **args)
                  for make, ps in ((Muon, ours), (timm.optim.muon.Muon, theirs)))
    for step in range(4):
        for p, q in zip(ours, theirs, strict=True): p.grad = q.grad = torch.randn(p.shape)
        if step == 1: ours[0].grad = theirs[0].grad = None
        grads = [p.grad for p in ours]
        if step < 3: assert one.step() is other.step() is None
        else: assert one.step(lambda: 5.) == other.step(lambda: 5.) == 5.
        assert all(p.grad is grad for p, grad in zip(ours, grads, strict=True))
        for p, q in zip(ours, theirs, strict=True):
            assert (p - q).norm() <= (0.01 * (step + 1) * (q - 1).norm() if usual else 0)
    mine, timms = one.state_dict(), other.state_dict()
    assert mine['param_groups'] == timms['param_groups']
    for n, state in mine['state'].items():
        assert state.keys() == timms['state'][n].keys()
        for key, t in state.items(): torch.testing.assert_close(t, timms['state'][n][key])


def test_a_step_that_fails_leaves_the_gradients(monkeypatch):
    ps = [nn.Parameter(torch.ones(4, 40)) for _ in range(2)]
    for p in ps: p.grad = torch.ones(4, 40)
    def broken(x, eps):
        if ps[0].grad is None: raise MemoryError
        return orthogonalized(x, eps)
    monkeypatch.setattr(muon, 'orthogonalized', broken)
    with pytest.raises(MemoryError): Muon(ps, lr=0.1).step()
    assert all(torch.equal(p.grad, torch.ones(4, 40)) for p in ps)


@pytest.mark.parametrize('bf16', [False, True])
@pytest.mark.parametrize('channels_last', [False, True])
def test_muon_by_hand(channels_last, bf16, monkeypatch):
    "Filters and matrices by Newton-Schulz in float64, all else by PyTorch's AdamW"
    monkeypatch.setattr(muon, 'has_bf16', lambda device: bf16)
    torch.manual_seed(0)
    net = model(predictor=False)
    if channels_last: net.to(memory_format=torch.channels_last)
    wd, lr, beta = 0.1, 0.01, 0.95
    opt = optimizer('muon')(parameter_groups(net, wd, False), lr=lr)
    rest = [p for p in net.parameters() if p.ndim == 1]
    copies = [p.detach().clone().requires_grad_() for p in rest]
    adamw = torch.optim.AdamW(copies, lr=lr, betas=(0.9, 0.95), eps=1e-7, weight_decay=0)
    matrices = {p: (p.detach().double().flatten(1), 0.) for p in net.parameters() if p.ndim > 1}
    assert {tuple(w.shape) for w, _ in matrices.values()} == {(6, 27), (8, 6), (5, 8)}
    for _ in range(4):
        for p in net.parameters(): p.grad = torch.empty_like(p).copy_(torch.randn(p.shape))
        for p, other in zip(rest, copies, strict=True): other.grad = p.grad.clone()
        for p, (w, m) in matrices.items():
            m = beta * m + (1 - beta) * p.grad.double().flatten(1)
            matrices[p] = (1 - lr * wd) * w - lr * 0.2 * max(w.shape) ** 0.5 * newton_schulz(m), m
        before = {p: p.detach().double().flatten(1) for p in matrices}
        opt.step()
        adamw.step()
        for p, (w, _) in matrices.items():
            assert (p.detach().flatten(1) - w).norm() < 0.03 * (before[p] - w).norm()
            moved = (p.detach().flatten(1) - (1 - lr * wd) * before[p]) / (lr * 0.2 * max(w.shape) ** 0.5)
            assert torch.linalg.svdvals(moved).sub(1).abs().max() < 0.1
            matrices[p] = p.detach().double().flatten(1), matrices[p][1]
        for p, other in zip(rest, copies, strict=True): torch.testing.assert_close(p, other)


def test_whatever_has_no_weight_decay_is_not_orthogonalized():
    net = model()
    net.encoder.no_weight_decay = lambda: {'0.weight'}  # as a transformer says of its tables of positions
    opt = optimizer('muon')(parameter_groups(net, 0.1, False), lr=0.1)
    for p in net.parameters(): p.grad = torch.ones_like(p)
    opt.step()
    by_muon = {name for name, p in net.named_parameters() if opt.opt.state[p]['use_muon']}
    assert by_muon == {f'heads.final.{head}.{i}.weight' for head in ('projector', 'predictor') for i in (0, 3)}


def test_matrices_that_are_wide_both_ways_are_not_orthogonalized(monkeypatch):
    monkeypatch.setattr('fastcontrast.optim.WIDEST', 16)
    net = nn.ModuleDict(dict(wide=nn.Linear(17, 17), flat=nn.Linear(40, 16), filters=nn.Conv2d(4, 17, 2)))
    params = dict(net.named_parameters())
    groups = [dict(params=[p for n, p in params.items() if 'weight' in n], weight_decay=0.1, decays=True, mark=1),
              dict(params=[p for n, p in params.items() if 'bias' in n], weight_decay=0., decays=False)]
    opt = optimizer('muon')(groups, lr=0.1)
    for p in net.parameters(): p.grad = torch.ones_like(p)
    opt.step()
    assert {n for n, p in params.items() if opt.opt.state[p]['use_muon']} == {'flat.weight', 'filters.weight'}
    decays = {id(p): group['weight_decay'] for group in opt.opt.param_groups for p in group['params']}
    assert {n: decays[id(p)] for n, p in params.items()} == {n: 0.1 if 'weight' in n else 0. for n in params}


def test_what_timm_takes_for_no_matrix_is_not_orthogonalized():
    "As the docstring has it"
    net = nn.ModuleDict(dict(depthwise=nn.Conv2d(8, 8, 3, groups=8), long=nn.Linear(4 * 129, 4), thin=nn.Linear(8, 3),
                             just=nn.Linear(4 * 128, 4)))
    group = dict(params=[part.weight for part in net.values()], weight_decay=0.1, decays=True)
    opt = optimizer('muon')([group], lr=0.1)
    for p in net.parameters(): p.grad = torch.ones_like(p)
    opt.step()
    assert [name for name, part in net.items() if opt.opt.state[part.weight]['use_muon']] == ['just']


def test_a_schedule_reaches_all_that_muon_moves():
    net = model(predictor=False)
    opt = optimizer('muon')(parameter_groups(net, 0., False), lr=0.1)
    def moved(lr):
        opt.set_hyper('lr', lr)
        old = [p.detach().clone() for p in net.parameters()]
        for p in net.parameters(): p.grad = torch.ones_like(p)  # the same direction every time
        opt.step()
        return [(p.detach() - before).norm() for p, before in zip(net.parameters(), old, strict=True)]
    assert not any(moved(0.))
    for one, two in zip(moved(0.01), moved(0.02), strict=True): assert two / one == pytest.approx(2, rel=0.02) and one


def test_the_momentum_of_muon_is_set_with_that_of_adamw():
    opt = optimizer('muon')([dict(params=[nn.Parameter(torch.randn(8, 8))])], 0.1)
    opt.set_hyper('mom', 0.7)
    assert [(group['momentum'], group['betas'][0]) for group in opt.opt.param_groups] == [(0.7, 0.7)]
