"""The losses against loops written from the papers' equations, against lightly, and at the ends of the number range."""
import copy
import math
import re
import threading
from functools import partial

import lightly.loss
import pytest
import torch
import torch.nn.functional as F
from helpers.equations import (
    DEVICES, EXTREMES, cosine, leaf, loop_barlow, loop_dcl, loop_dclw, loop_dino, loop_info_nce, loop_neg_cosine,
    loop_nt_xent, loop_queue, loop_sinkhorn, loop_soft, loop_swav, loop_vicreg, pair, rows, scored, unit_rows,
    value_and_grads)
from helpers.refusals import refusal
from torch.utils._python_dispatch import TorchDispatchMode

from fastcontrast.core import InputError
from fastcontrast.losses import (
    DCL, DCLW, BarlowTwins, DINOLoss, InfoNCE, Loss, NegCosine, NTXent, SwAVLoss, VICReg, _vmf_weights, as_step_loss,
    dcl, dclw, info_nce, nt_xent, sinkhorn)

LOSSES = dict(info_nce=info_nce, nt_xent=nt_xent, dcl=dcl, dclw=dclw)
MODULES = dict(info_nce=InfoNCE, nt_xent=NTXent, dcl=DCL, dclw=DCLW)
every_loss = pytest.mark.parametrize('name', LOSSES)
every_device = pytest.mark.parametrize('device', DEVICES)


LOOPS = dict(info_nce=loop_info_nce, nt_xent=loop_nt_xent, dcl=loop_dcl, dclw=loop_dclw)


@every_device
@pytest.mark.parametrize('B,D,temp', [(2, 3, 1.), (5, 7, .1), (6, 2, .05), (3, 1, .5), (8, 4, .2)])
@every_loss
def test_equals_the_equation(name, B, D, temp, device):
    z = pair(B, D, seed=B, device=device)
    value, grads = value_and_grads(LOSSES[name], z, temp)
    expected, expected_grads = value_and_grads(LOOPS[name], z, temp)
    assert value.dtype == torch.float64 and value.shape == ()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-12)


@every_loss
def test_equals_the_equation_on_the_axes(name):
    "Rows with a single entry, whose length is their largest entry"
    z = [leaf(torch.eye(4, dtype=torch.float64)[axes]) for axes in ([0, 1, 2, 3, 0], [1, 0, 2, 2, 3])]
    value, grads = value_and_grads(LOSSES[name], z, .3)
    expected, expected_grads = value_and_grads(LOOPS[name], z, .3)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('M', [1, 2, 6])
def test_several_queries_per_key(M):
    q, k = torch.randn(M, 4, 5, dtype=torch.float64, requires_grad=True), pair(4, 5)[0]
    value, grads = value_and_grads(info_nce, (q, k), .2)
    expected, expected_grads = value_and_grads(loop_info_nce, (q, k), .2)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(InfoNCE(.2, scale=3.)(q, k), 3 * value)


@pytest.mark.parametrize('sigma', [.1, .5, 2.])
def test_sigma(sigma):
    z = pair()
    value, grads = value_and_grads(DCLW(.1, sigma=sigma), z)
    expected, expected_grads = value_and_grads(loop_dclw, z, .1, sigma)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('temp', [.1, 1.])
@pytest.mark.parametrize('name', ['info_nce', 'nt_xent', 'dcl'])  # not dclw: no gradient goes through its weights
def test_gradcheck(name, temp):
    assert torch.autograd.gradcheck(lambda *z: LOSSES[name](*z, temp), pair(4, 3))
    assert torch.autograd.gradgradcheck(lambda *z: LOSSES[name](*z, temp), pair(3, 2))


def test_dclw_weights_average_one_without_gradient():
    cos = torch.linspace(-1, 1, 9, dtype=torch.float64, requires_grad=True)
    for sigma in (1e-3, .5, 10.):
        w = _vmf_weights(cos, sigma)
        assert not w.requires_grad and w.isfinite().all()
        torch.testing.assert_close(w.mean().item(), 1.)
        assert (w.diff() <= 0).all() and w[0] > w[-1]  # the closer the pair, the less it weighs
    z = pair()
    torch.testing.assert_close(dclw(*z, .1, sigma=1e9), dcl(*z, .1))
    assert not torch.allclose(dclw(*z, .1), dcl(*z, .1), rtol=1e-3)


@pytest.mark.filterwarnings('ignore::UserWarning')  # lightly copies a tensor in its weights
@pytest.mark.parametrize('name,theirs', [('nt_xent', 'NTXentLoss'), ('dcl', 'DCLLoss'), ('dclw', 'DCLWLoss')])
def test_agrees_with_lightly(name, theirs):
    "Eq. 6 has one logsumexp over both views; lightly's DCL has it since 1.5.21"
    z = pair(9, 12)
    value, grads = value_and_grads(LOSSES[name], z, .1)
    expected, expected_grads = value_and_grads(getattr(lightly.loss, theirs)(temperature=.1), z)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-12)


def test_one_logsumexp_is_less_than_two():
    "A logarithm for each view, as in older implementations, exceeds Eq. 6 by the mean of log(ab / (a + b))"
    z1, z2 = (z.detach() for z in pair(6, 4))
    extra = []
    for k in (z1, z2):
        for i in range(6):
            a, b = (sum(math.exp(cosine(k[i], v[j]) / .1) for j in range(6) if j != i) for v in (z1, z2))
            extra.append(math.log(a) + math.log(b) - math.log(a + b))
    two = two_logsumexps(z1, z2, .1)
    torch.testing.assert_close(two.item(), dcl(z1, z2, .1).item() + sum(extra) / len(extra), rtol=1e-10, atol=0)
    assert two > dcl(z1, z2, .1) + 1


def two_logsumexps(z1, z2, temp):
    total = 0
    for k in (z1, z2):
        for i in range(len(z1)):
            rows = [torch.stack([cosine(k[i], v[j]) for j in range(len(z1)) if j != i]) / temp for v in (z1, z2)]
            total = total - cosine(z1[i], z2[i]) / temp + sum(r.logsumexp(0) for r in rows)
    return total / (2 * len(z1))


@every_device
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@every_loss
def test_low_precision_is_computed_in_float32(name, dtype, device):
    z = pair(dtype=dtype, device=device)
    value, grads = value_and_grads(LOSSES[name], z, .1)
    as_float = [leaf(x.float()) for x in z]
    expected, expected_grads = value_and_grads(LOSSES[name], as_float, .1)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    exact = LOSSES[name](*[x.double() for x in z], .1)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    for g, e in zip(grads, expected_grads, strict=True):
        assert g.dtype == dtype and torch.equal(g, e.to(dtype))


@every_device
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
@every_loss
def test_autocast_changes_nothing(name, dtype, device):
    z = pair(dtype=dtype, device=device)
    expected, expected_grads = value_and_grads(MODULES[name](.05), z)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert (z[0] @ z[1].T).dtype == (torch.float64 if dtype == torch.float64 else torch.bfloat16)
        value = MODULES[name](.05)(*z)
    grads = torch.autograd.grad(value, z)
    assert value.dtype == expected.dtype and torch.equal(value, expected)
    assert all(torch.equal(g, e) for g, e in zip(grads, expected_grads, strict=True))


@every_loss
def test_mixed_dtypes_take_the_wider(name):
    a, b = pair()
    assert LOSSES[name](a.half(), b.float(), .1).dtype == torch.float32
    assert LOSSES[name](a, b.float(), .1).dtype == torch.float64


@every_device
@pytest.mark.parametrize('temp', [.01, 1.])
@pytest.mark.parametrize('case', EXTREMES)
@every_loss
def test_finite_for_any_finite_input(name, case, temp, device):
    z = [leaf(x.to(device)) for x in EXTREMES[case]]
    value, grads = value_and_grads(LOSSES[name], z, temp)
    assert value.isfinite() and all(g.isfinite().all() for g in grads)
    for x, g in zip(z, grads, strict=True):
        assert (g[(x == 0).all(-1)] == 0).all()


@every_loss
def test_finite_in_half_precision(name):
    z = pair(dtype=torch.float16)
    for scale in (2e4, 1e-2):
        value, grads = value_and_grads(LOSSES[name], [leaf(x.clamp(-3, 3) * scale) for x in z], .01)
        assert value.isfinite() and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize('scale', [1e30, 1e-30])
@every_loss
def test_length_does_not_matter(name, scale):
    "The value is that of any other length, and the gradient is as much smaller as the vectors are longer"
    z = pair(dtype=torch.float32)
    value, grads = value_and_grads(LOSSES[name], z, .1)
    scaled, scaled_grads = value_and_grads(LOSSES[name], [leaf(x * scale) for x in z], .1)
    torch.testing.assert_close(scaled, value, rtol=1e-5, atol=1e-5)
    for g, s in zip(grads, scaled_grads, strict=True):
        torch.testing.assert_close(s.double() * scale, g.double(), rtol=1e-4, atol=1e-5)


@every_loss
def test_order_of_the_batch_does_not_matter(name):
    z, order = pair(), torch.tensor([3, 0, 4, 1, 2])
    value, grads = value_and_grads(LOSSES[name], z, .1)
    permuted, permuted_grads = value_and_grads(LOSSES[name], [leaf(x[order]) for x in z], .1)
    torch.testing.assert_close(permuted, value)
    for g, p in zip(grads, permuted_grads, strict=True): torch.testing.assert_close(p, g[order])


@every_loss
def test_symmetric_flag_is_true(name):
    loss = MODULES[name]()
    same = []
    for seed in range(5):
        a, b = pair(seed=seed)
        same.append(torch.allclose(loss(a, b), loss(b, a), rtol=1e-10))
    assert same == [loss.symmetric] * 5
    assert type(loss).symmetric == (name != 'info_nce')


def test_info_nce_gives_only_keys_as_negatives():
    q, k = (x.detach() for x in pair())
    moved = q.clone()
    moved[1] = moved[1].roll(1)
    before, after = (value_and_grads(lambda x: info_nce(x, k, .1), [leaf(x)])[1][0] for x in (q, moved))
    torch.testing.assert_close(before[0], after[0])  # another query is no negative: where it is does not matter
    assert not torch.allclose(before[1], after[1])


def test_modules_hold_their_numbers():
    a, b = pair()
    torch.testing.assert_close(NTXent(.3)(a, b), nt_xent(a, b, .3))
    torch.testing.assert_close(DCL(.3)(a, b), dcl(a, b, .3))
    torch.testing.assert_close(DCLW(.3, sigma=.2)(a, b), dclw(a, b, .3, .2))
    torch.testing.assert_close(InfoNCE(.3)(a, b), info_nce(a, b, .3))
    assert repr(DCLW(.3, sigma=.2)) == 'DCLW(temp=0.3, sigma=0.2)' and repr(NTXent()) == 'NTXent(temp=0.1)'
    assert repr(InfoNCE()) == "InfoNCE(temp=0.2, scale=1.0, anchors='queries')" and repr(DCL(.07)) == 'DCL(temp=0.07)'


@pytest.mark.parametrize('temp', [0, -1., math.nan, math.inf, '0.1', None])
@every_loss
def test_bad_temperature(name, temp):
    for call in (lambda: MODULES[name](temp), lambda: LOSSES[name](*pair(), temp)):
        with pytest.raises(InputError, match=re.escape(f'temp={temp!r} must be a finite number above 0.')): call()


@pytest.mark.parametrize('call', [
    lambda: DCLW(.1, sigma=0), lambda: dclw(*pair(), .1, sigma=-.5), lambda: InfoNCE(.1, scale=math.nan)])
def test_bad_sigma_and_scale(call):
    with pytest.raises(InputError, match=r'(sigma=(0|-0\.5)|scale=nan) must be a finite number above 0\.'): call()


@pytest.mark.parametrize('B', [0, 1])
@every_loss
def test_batch_of_one(name, B):
    with pytest.raises(InputError, match='at least two pictures in a batch'):
        LOSSES[name](torch.ones(B, 4), torch.ones(B, 4), .1)


@pytest.mark.parametrize('a,b', [
    ((4, 8), (5, 8)), ((4, 8), (4, 9)), ((8,), (8,)), ((4, 8), (2, 4, 8)), ((2, 2, 4, 8), (4, 8)), ((4, 0), (4, 0))])
@every_loss
def test_shapes_that_do_not_match(name, a, b):
    with pytest.raises(InputError) as e: LOSSES[name](torch.ones(a), torch.ones(b), .1)
    assert str(list(a)) in str(e.value) and str(list(b)) in str(e.value)


def test_only_info_nce_takes_several_queries():
    q, k = torch.ones(3, 4, 8), torch.ones(4, 8)
    assert info_nce(q, k, .1).isfinite()
    for name in ('nt_xent', 'dcl', 'dclw'):
        with pytest.raises(InputError): LOSSES[name](q, k, .1)
    with pytest.raises(InputError, match='M, batch, dim'): info_nce(torch.ones(0, 4, 8), k, .1)


OTHERS = dict(neg_cosine=NegCosine, barlow=BarlowTwins, vicreg=VICReg, swav=SwAVLoss, dino=DINOLoss)
OTHER_LOOPS = dict(neg_cosine=loop_neg_cosine, barlow=loop_barlow, vicreg=loop_vicreg, swav=loop_swav, dino=loop_dino)
ALL = MODULES | OTHERS
QUEUED = dict(info_nce=(InfoNCE, {}), dcl=(DCL, dict(decoupled=True)), dclw=(DCLW, dict(decoupled=True, sigma=.5)))
every_other = pytest.mark.parametrize('name', OTHERS)
every_class = pytest.mark.parametrize('name', ALL)
every_queued = pytest.mark.parametrize('name', QUEUED)


def grads_of(value, zs):
    "Gradients, zero for what the value does not depend on (keys of SwAV and DINO)"
    return torch.autograd.grad(value, zs, allow_unused=True, materialize_grads=True)


def same(value, expected, zs, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(grads_of(value, zs), grads_of(expected, zs), rtol=rtol, atol=atol)


@every_device
@pytest.mark.parametrize('B,D', [(2, 5), (5, 7), (6, 6), (9, 4), (4, 1)])  # more dimensions than pictures, and fewer
@every_other
def test_other_losses_equal_the_equation(name, B, D, device):
    z = [leaf(x.to(device)) for x in scored(B, D, seed=B)]
    value = OTHERS[name]()(*z)
    assert value.dtype == torch.float64 and value.shape == ()
    same(value, OTHER_LOOPS[name](*z), z)


@pytest.mark.parametrize('loss,loop', [
    (NegCosine(4, 4), lambda q, k: loop_neg_cosine(q, k, 4, 4)),
    (BarlowTwins(.5), lambda q, k: loop_barlow(q, k, .5)),
    (VICReg(3, 2, 5, gamma=.7, eps=.01), lambda q, k: loop_vicreg(q, k, 3, 2, 5, .7, .01)),
    (VICReg(0, 0, 1), lambda q, k: loop_vicreg(q, k, 0, 0, 1)),
    (SwAVLoss(.3, .2, 5), lambda q, k: loop_soft(q, loop_sinkhorn(k.detach(), .2, 5), .3)),
    (DINOLoss(.2, warmup_temp=.1), lambda q, k: loop_soft(q, (k.detach() / .1).softmax(-1), .2)),
    (DINOLoss(warmup_epochs=0), lambda q, k: loop_dino(q, k, teacher_temp=.07))])
def test_other_losses_use_their_numbers(loss, loop):
    z = scored(5, 7)
    same(loss(*z), loop(*z), z)


@every_other
def test_other_losses_gradcheck(name):
    q, k = scored(4, 3)
    assert torch.autograd.gradcheck(lambda q: OTHERS[name]()(q, k.detach()), (q,))
    if name in ('neg_cosine', 'barlow', 'vicreg'): assert torch.autograd.gradcheck(OTHERS[name](), (q, k))


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('loss,theirs', [
    (NegCosine(), lightly.loss.NegativeCosineSimilarity()),
    (BarlowTwins(5e-3), lightly.loss.BarlowTwinsLoss(5e-3)),
    (VICReg(var=12.5), lightly.loss.VICRegLoss())])  # it halves the variance term, against Algorithm 1
@pytest.mark.parametrize('B,D', [(9, 12), (12, 9)])
def test_other_losses_agree_with_lightly(loss, theirs, B, D):
    z = scored(B, D)
    same(loss(*z), theirs(*z), z)


def test_lightly_halves_the_variance_term():
    z = scored(6, 5)
    hinge = sum((1 - (x.var(0) + 1e-4).sqrt()).relu().mean() for x in z)
    same(VICReg()(*z) - lightly.loss.VICRegLoss()(*z), 12.5 * hinge, z, atol=1e-10)
    assert hinge > .1


@every_queued
@every_device
@pytest.mark.parametrize('B,D,N', [(1, 3, 1), (5, 7, 11), (8, 2, 3)])
def test_queue_equals_the_equation(name, B, D, N, device):
    z, queue = pair(B, D, device=device), unit_rows(N, D).to(device)
    cls, how = QUEUED[name]
    same(cls(.2)(*z, queue), loop_queue(*z, .2, queue, **how), z)


@every_queued
def test_queue_rows_are_the_only_negatives(name):
    "The other keys of the batch are not, and the queue gets no say in the dtype"
    (q, k), queue = pair(6, 4), unit_rows(9, 4)
    loss = QUEUED[name][0]()
    g, = torch.autograd.grad(loss(q, k, queue), k)
    assert (g != 0).all()
    moved = torch.cat([k[:3], k[3:].roll(1, 0)]).detach()
    first = [torch.autograd.grad(loss(q[:3], x[:3].detach(), queue), q)[0][:3] for x in (k, moved)]
    assert torch.equal(*first)
    if name != 'dclw':  # whose weights are over the batch
        whole = [torch.autograd.grad(loss(q, x.detach(), queue), q)[0][:3] for x in (k, moved)]
        torch.testing.assert_close(*whole)
    assert loss(q.float(), k.float(), queue).dtype == torch.float32
    torch.testing.assert_close(loss(q, k, queue.float()), loss(q, k, queue), rtol=1e-5, atol=1e-5)


def test_queue_takes_several_queries():
    q, (k, _), queue = leaf(torch.randn(3, 4, 5, dtype=torch.float64)), pair(4, 5), unit_rows(6, 5)
    expected = sum(loop_queue(x, k, .2, queue) for x in q) / 3
    same(info_nce(q, k, .2, queue), expected, [q, k])


def test_dcl_leaves_the_positive_out_of_the_queue_sum():
    "MoCo's loss is DCL's with the positive added: the difference is the softplus of how far it is ahead"
    (q, k), queue = pair(6, 4), unit_rows(9, 4)
    units = [torch.nn.functional.normalize(x) for x in (q, k)]
    ahead = (units[0] * units[1]).sum(1) / .2 - (units[0] @ queue.T / .2).logsumexp(1)
    torch.testing.assert_close(info_nce(q, k, .2, queue) - dcl(q, k, .2, queue), ahead.exp().log1p().mean())


def test_queue_agrees_with_lightly():
    z = pair(9, 12)
    theirs = lightly.loss.NTXentLoss(temperature=.2, memory_bank_size=(32, 12)).double()
    bank = theirs.memory_bank.bank = torch.nn.functional.normalize(theirs.memory_bank.bank.double())
    before = bank.clone()  # as it is until the batch enters
    same(InfoNCE(.2)(*z, before), theirs(*z), z)


def test_keys_as_anchors():
    "NNCLR, Eq. 3: the neighbour (key) against all predictions (queries)"
    q, k = z = pair()
    loss = InfoNCE(.2, scale=3, anchors='keys')
    same(loss(q, k), 3 * loop_info_nce(k, q, .2), z)
    assert not torch.allclose(loss(q, k), InfoNCE(.2, scale=3)(q, k), rtol=1e-3)
    several = leaf(torch.randn(3, 5, 7, dtype=torch.float64))
    same(loss(several, k), sum(3 * loop_info_nce(k, x, .2) for x in several) / 3, [several, k])
    with pytest.raises(InputError, match='takes no queue'): loss(q, k, unit_rows(4, 7))
    with pytest.raises(InputError, match="unknown anchors 'key': did you mean keys"): InfoNCE(anchors='key')


@every_device
@pytest.mark.parametrize('N,K,eps,iters', [
    (1, 1, .05, 3), (7, 3, .05, 3), (3, 7, .1, 1), (12, 5, .03, 8), (2, 9, 1., 2)])
def test_sinkhorn_equals_the_paper_and_lightly(N, K, eps, iters, device):
    scores = pair(N, K)[0].detach().to(device) / 5
    expected = loop_sinkhorn(scores, eps, iters)
    codes = sinkhorn(scores, eps, iters)
    torch.testing.assert_close(codes, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(codes, lightly.loss.swav_loss.sinkhorn(scores, iters, eps), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(codes.sum(-1), torch.ones_like(codes[:, 0]), rtol=0, atol=1e-14)


def test_sinkhorn_shares_out_equally():
    scores = pair(48, 6)[0].detach() / 10 + torch.linspace(0, 1, 6, dtype=torch.float64)
    off = [(sinkhorn(scores, iters=i).sum(0) - 8).abs().max().item() for i in (1, 3, 10, 1000)]
    assert off == sorted(off, reverse=True) and off[-1] < 1e-9 < off[0]


def test_sinkhorn_leading_dimensions_are_separate():
    scores = torch.randn(2, 3, 10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = sinkhorn(scores, .3)
    for i in range(2):
        for j in range(3): torch.testing.assert_close(codes[i, j], loop_sinkhorn(scores[i, j], .3))


HARD_SCORES = dict(
    cosines=torch.nn.functional.normalize(rows(1., 40, 16)),
    equal=torch.zeros(9, 5),
    opposite=torch.cat([torch.ones(4, 5), -torch.ones(4, 5)]),
    one_hot=torch.eye(12)[[0] * 9 + [3, 3, 7]],  # most prototypes are nobody's
    infeasible=torch.cat([torch.eye(8)[:2].repeat(5, 1), torch.zeros(10, 8)]) * 1e4,
    huge=rows(1e38, 6, 9), largest=rows(1., 6, 9).sign() * torch.finfo(torch.float32).max,
    wide=rows(1e4, 300, 40))


@every_device
@pytest.mark.parametrize('iters', [1, 3, 60])
@pytest.mark.parametrize('eps', [.003, .05, 10.])
@pytest.mark.parametrize('case', HARD_SCORES)
def test_sinkhorn_is_finite(case, eps, iters, device):
    codes = sinkhorn(HARD_SCORES[case].to(device), eps, iters)
    assert codes.dtype == torch.float32 and codes.isfinite().all() and codes.min() >= 0
    torch.testing.assert_close(codes.sum(-1), torch.ones_like(codes[..., 0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize('eps', [.003, .01, .05])
def test_sinkhorn_in_float32_is_right_where_the_exponential_overflows(eps):
    "Against logarithms in float64"
    scores = HARD_SCORES['cosines']
    log = scores.double() / eps
    for _ in range(3): log = (log - log.logsumexp(0)).log_softmax(1)
    torch.testing.assert_close(sinkhorn(scores, eps).double(), log.exp(), rtol=0, atol=1e-4)
    assert (eps > .0113) == lightly.loss.swav_loss.sinkhorn(scores / scores.max(), epsilon=eps).isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_sinkhorn_dtypes(dtype):
    x = torch.randn(8, 4, requires_grad=True)
    assert not sinkhorn(x).requires_grad
    assert torch.equal(sinkhorn(x.to(dtype)), sinkhorn(x.to(dtype).float()))
    for y in (x, x.double()):
        with torch.autocast('cpu', dtype=torch.bfloat16): codes = sinkhorn(y)
        assert codes.dtype == y.dtype and torch.equal(codes, sinkhorn(y))


def soft_views(Vq, Vk, B, K):
    g = torch.Generator().manual_seed(1)
    return (leaf(torch.randn(Vq, B, K, generator=g, dtype=torch.float64) / 3),
            leaf(torch.randn(Vk, B, K, generator=g, dtype=torch.float64) / 3))


@pytest.mark.parametrize('B', [1, 6])
@pytest.mark.parametrize('name', ['swav', 'dino'])
def test_all_pairs_are_the_single_ones(name, B):
    q, k = soft_views(5, 2, B, 7)
    loss = OTHERS[name]()
    t = loss.targets(k)
    assert t.shape == k.shape and not t.requires_grad
    torch.testing.assert_close(t.sum(-1), torch.ones_like(t[..., 0]))
    table = loss.pairs(q, t)
    assert table.shape == (5, 2)
    expected = torch.stack([torch.stack([OTHER_LOOPS[name](a, b) for b in k]) for a in q])
    weights = torch.randn(5, 2, dtype=torch.float64)
    same((table * weights).sum(), (expected * weights).sum(), [q])
    torch.testing.assert_close(loss(q[3], k[1]), expected[3, 1], rtol=1e-10, atol=0)


def without_own(table): return (table.sum() - table.diagonal().sum()) / (table.numel() - min(table.shape))


def test_swav_with_local_views_and_queues_agrees_with_lightly():
    q, k = soft_views(5, 2, 6, 7)
    q = torch.cat([k, q[2:]])  # the first two queries are the keys
    queue = torch.stack([x.detach() for x in scored(9, 7)])
    theirs, ours = lightly.loss.SwaVLoss(), SwAVLoss()
    same(without_own(ours.pairs(q, ours.targets(k))), theirs([*q[:2]], [*q[2:]]).squeeze(), [k])
    expected = theirs([*q[:2]], [*q[2:]], [*queue]).squeeze()
    same(without_own(ours.pairs(q, ours.targets(k, queue))), expected, [k])  # a queue for each view
    expected = theirs([*q[:2]], [*q[2:]], [queue[0]] * 2).squeeze()
    same(without_own(ours.pairs(q, ours.targets(k, queue[0]))), expected, [k])  # one for both


def test_swav_queue_equals_the_equation():
    z, queue = scored(4, 6), scored(9, 6, seed=8)[0]
    same(SwAVLoss()(*z, queue), loop_swav(*z, queue.detach()), z)
    assert (grads_of(SwAVLoss()(*z, queue), [queue, z[1]])[0] == 0).all()
    assert not torch.allclose(SwAVLoss()(*z, queue), SwAVLoss()(*z), rtol=1e-3)


def test_dino_agrees_with_lightly():
    q, k = soft_views(4, 2, 6, 7)
    temps = 1 / 32, 1 / 16  # which, and the steps between them, are the same in its float32
    theirs = lightly.loss.DINOLoss(7, warmup_teacher_temp=temps[0], teacher_temp=temps[1],
                                   warmup_teacher_temp_epochs=5).double()
    ours = DINOLoss(warmup_temp=temps[0], teacher_temp=temps[1], warmup_epochs=5)
    for epoch in range(7):
        ours.prepare(epoch)
        x = k.detach() * (epoch + 1)
        expected = theirs([*x], [*q], epoch=epoch)  # it moves its centre in the call
        same(without_own(ours.pairs(q, ours.targets(x))), expected, [q])
        ours.update(q, x)
        torch.testing.assert_close(ours.center, theirs.center.squeeze())
    theirs.eval()
    before = theirs.center.clone()
    theirs([*k], [*q])
    assert not torch.equal(theirs.center, before)  # also in evaluation; ours does not


def test_dino_centre():
    q, k = soft_views(1, 3, 4, 5)
    loss, c = DINOLoss(center=.8), torch.zeros(5, dtype=torch.float64)
    for step in range(4):
        x = k + step
        before = None if loss.center is None else loss.center.clone()
        t = loss.targets(x)
        assert before is None or torch.equal(loss.center, before)  # targets and the loss itself leave it alone
        torch.testing.assert_close(t, ((x - c) / .04).softmax(-1).detach())
        loss.update(q, x)
        c = .8 * c + .2 * sum(row for view in x for row in view).detach() / 12
        torch.testing.assert_close(loss.center, c)
        loss.eval()
        loss.update(q, x * 9)
        torch.testing.assert_close(loss.center, c)
        loss.train()
    assert not loss.center.requires_grad
    x = k.detach().float()
    assert loss.targets(x).dtype == torch.float32 and loss.center.dtype == torch.float64  # scoring leaves it alone
    loss.update(q, x)
    assert loss.targets(x).dtype == loss.center.dtype == torch.float32  # it goes where the scores are
    shifted = DINOLoss()
    shifted.center = torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(shifted(k[0], k[1]), loop_dino(k[0], k[1], shifted.center))


@pytest.mark.parametrize('W,epochs', [
    (0, {0: .07, 9: .07}), (1, {0: .04, 1: .07}), (2, {0: .04, 1: .07, 5: .07}), (2.5, {0: .04, 1: .06, 2: .07}),
    (11, {0: .04, 1: .043, 5: .055, 10: .07, 11: .07, 999: .07})])
def test_dino_temperature_rises(W, epochs):
    loss = DINOLoss(warmup_epochs=W)
    first = loss.key_temp
    for epoch, temp in epochs.items():
        loss.prepare(epoch)
        assert loss.key_temp == pytest.approx(temp, rel=1e-12)
    loss.prepare(0)
    assert loss.key_temp == first == pytest.approx(epochs[0], rel=1e-12)


def test_dino_state_round_trip(tmp_path):
    loss, untouched = DINOLoss(), DINOLoss()
    loss.update(*torch.randn(2, 2, 4, 6))
    holder = torch.nn.Sequential(loss)  # a state with a prefix
    torch.save(holder.state_dict(), tmp_path / 'loss.pt')
    state = torch.load(tmp_path / 'loss.pt')
    fresh, used = (torch.nn.Sequential(DINOLoss()) for _ in range(2))
    used[0].update(*torch.ones(2, 1, 2, 9))  # another width
    for other in (fresh, used):
        assert str(other.load_state_dict(state)) == '<All keys matched successfully>'
        assert torch.equal(other[0].center, loss.center) and other[0].center is not loss.center
        q, k = torch.randn(2, 4, 6)
        assert torch.equal(other[0](q, k), loss(q, k))
    before = loss.center.clone()
    fresh[0].update(*torch.ones(2, 1, 2, 6))
    assert torch.equal(loss.center, before) and not torch.equal(fresh[0].center, before)
    loss.load_state_dict(untouched.state_dict())  # saved before the first step
    assert loss.center is None and loss(q, k).isfinite()


def test_dino_refuses_another_head():
    loss = DINOLoss()
    loss(torch.ones(4, 6), torch.ones(4, 6))
    loss(torch.ones(4, 8), torch.ones(4, 8))  # scoring leaves no centre behind, only a step's update does
    assert loss.center is None
    loss.update(*torch.ones(2, 1, 4, 6))
    with pytest.raises(InputError, match='centre of 6 prototypes and was given scores of 8'):
        loss(torch.ones(4, 8), torch.ones(4, 8))
    with pytest.raises(InputError, match='takes no queue'):
        loss(torch.ones(4, 6), torch.ones(4, 6), torch.ones(9, 6))


@every_device
@pytest.mark.parametrize('case', EXTREMES)
@every_other
def test_other_losses_are_finite(name, case, device):
    z = [leaf(x.to(device)) for x in EXTREMES[case]]
    if name == 'vicreg': z = [leaf(x.clamp(-1e6, 1e6)) for x in z]  # the fourth power of more is out of range
    small = dict(swav=dict(temp=.01, eps=.003), dino=dict(temp=.01, warmup_temp=.01)).get(name, {})
    loss = OTHERS[name](**small)
    for _ in range(2):  # once more with DINO's centre at these scores
        value = loss(*z)
        assert value.isfinite() and all(g.isfinite().all() for g in grads_of(value, z))
        if name == 'dino': loss.update(z[0][None], z[1][None])


@pytest.mark.parametrize('case', EXTREMES)
@every_queued
def test_queue_is_finite(name, case):
    z = [leaf(x) for x in EXTREMES[case]]
    for queue in (torch.zeros(3, 5), torch.eye(5), torch.nn.functional.normalize(EXTREMES[case][1])):
        value, grads = value_and_grads(QUEUED[name][0](.01), z, queue)
        assert value.isfinite() and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize('B,D', [(6, 9), (9, 6)])
@pytest.mark.parametrize('scale', [1e-3, 1e8, 1e30])
def test_barlow_twins_at_any_scale(scale, B, D):
    "Beside a variance that is large the 1e-5 is nothing: Eq. 2 has no unit"
    z = [leaf(x * scale) for x in pair(B, D)]
    same(BarlowTwins()(*z), loop_barlow(*z), z, atol=1e-30)
    if scale > 1:
        c = [x - x.mean(0) for x in z]
        corr = c[0].T @ c[1] / c[0].norm(dim=0)[:, None] / c[1].norm(dim=0)
        torch.testing.assert_close(BarlowTwins(1.)(*z), (corr - torch.eye(D, dtype=torch.float64)).square().sum())
        as_float = [leaf(x.float()) for x in z]
        value, grads = value_and_grads(BarlowTwins(), as_float)
        torch.testing.assert_close(value.double(), BarlowTwins()(*z), rtol=1e-4, atol=0)
        assert all(g.isfinite().all() and (g != 0).any() for g in grads)


@every_other
def test_other_losses_in_low_precision(name):
    "float32 arithmetic for half, the same inside autocast, and the wider of two dtypes"
    z = scored(6, 8)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        ours = [leaf(x.to(dtype)) for x in z]
        value = OTHERS[name]()(*ours)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        as_float = [leaf(x.to(value.dtype)) for x in ours]
        expected = OTHERS[name]()(*as_float)
        assert torch.equal(value, expected)
        with torch.autocast('cpu', dtype=torch.bfloat16): cast = OTHERS[name]()(*ours)
        assert torch.equal(cast, value) and cast.dtype == value.dtype
        for g, c, e in zip(*(grads_of(*x) for x in ((value, ours), (cast, ours), (expected, as_float))), strict=True):
            assert torch.equal(g, c) and torch.equal(g, e.to(dtype))
    torch.testing.assert_close(OTHERS[name]()(*[x.float() for x in z]).double(), OTHERS[name]()(*z), rtol=1e-5,
                               atol=1e-5)
    assert OTHERS[name]()(z[0], z[1].half()).dtype == OTHERS[name]()(z[0].half(), z[1]).dtype == torch.float64


@every_class
def test_flags(name):
    loss, (q, k) = ALL[name](), scored(6, 5)
    assert torch.allclose(loss(q, k), loss(k, q), rtol=1e-9) == loss.symmetric == (
        name in ('nt_xent', 'dcl', 'dclw', 'neg_cosine', 'barlow', 'vicreg'))
    assert loss.queued == (name in ('info_nce', 'dcl', 'dclw', 'swav'))
    assert loss.prototypes == (name in ('swav', 'dino')) == hasattr(loss, 'targets')
    queue = unit_rows(9, 5)
    if loss.queued: assert not torch.allclose(loss(q, k, queue), loss(q, k), rtol=1e-3)
    else:
        with pytest.raises((TypeError, InputError)): loss(q, k, queue)


@every_class
def test_order_of_the_batch_does_not_matter_to_any(name):
    z, order = scored(5, 7), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(ALL[name]()(*[x[order] for x in z]), ALL[name]()(*z))


@every_class
def test_batches_too_small(name):
    one = name in ('neg_cosine', 'swav', 'dino')
    for B in [0] if one else [0, 1]:
        with pytest.raises(InputError,
                           match=f"at least {'one picture' if one else 'two pictures'} in a batch, not {B}"):
            ALL[name]()(torch.ones(B, 4), torch.ones(B, 4))
    if one: assert ALL[name]()(torch.ones(1, 4), torch.ones(1, 4)).isfinite()


@pytest.mark.parametrize('a,b', [
    ((4, 8), (5, 8)), ((4, 8), (4, 9)), ((8,), (8,)), ((4, 8), (2, 4, 8)), ((4, 0), (4, 0))])
@every_other
def test_other_losses_shapes_that_do_not_match(name, a, b):
    with pytest.raises(InputError) as e: OTHERS[name]()(torch.ones(a), torch.ones(b))
    assert str(list(a)) in str(e.value) and str(list(b)) in str(e.value)


@pytest.mark.parametrize('shape', [(9, 5), (8,), (2, 9, 8), (0, 8)])
@pytest.mark.parametrize('name', [*QUEUED, 'swav'])
def test_queues_that_do_not_match(name, shape):
    with pytest.raises(InputError, match=r'the queue must have the shape \[size, 8\]') as e:
        ALL[name]()(torch.ones(4, 8), torch.ones(4, 8), torch.ones(shape))
    assert str(list(shape)) in str(e.value)


@pytest.mark.parametrize('make,words', [
    (lambda: NegCosine(0), 'scale=0 must be a finite number above 0'),
    (lambda: NegCosine(offset=math.nan), 'offset=nan must be a finite number.'),
    (lambda: BarlowTwins(-1), 'lambd=-1 must be a finite number at least 0.'),
    (lambda: BarlowTwins('a'), "lambd='a' must be"), (lambda: VICReg(sim=-1), 'sim=-1 must be'),
    (lambda: VICReg(var=-1), 'var=-1 must be'),
    (lambda: VICReg(cov=math.inf), 'cov=inf must be'), (lambda: VICReg(gamma=0), 'gamma=0 must be'),
    (lambda: VICReg(eps=0), 'eps=0 must be'),
    (lambda: SwAVLoss(0), 'temp=0 must be'), (lambda: SwAVLoss(eps=-.1), 'eps=-0.1 must be'),
    (lambda: SwAVLoss(iters=0), 'iters=0 must be a whole number of at least 1'),
    (lambda: SwAVLoss(iters=2.), 'iters=2.0 must be a whole'),
    (lambda: sinkhorn(torch.ones(2, 2), eps=0), 'eps=0 must be'),
    (lambda: sinkhorn(torch.ones(2, 2), iters=-1), 'iters=-1 must be'), (lambda: DINOLoss(-1), 'temp=-1 must be'),
    (lambda: DINOLoss(teacher_temp=0), 'teacher_temp=0 must be'),
    (lambda: DINOLoss(warmup_temp=0), 'warmup_temp=0 must be'),
    (lambda: DINOLoss(warmup_epochs=-1), 'warmup_epochs=-1 must be'),
    (lambda: DINOLoss(center=1.1), 'center=1.1 must be a finite number at least 0 and at most 1.'),
    (lambda: DINOLoss(center=-.1), 'center=-0.1 must be'), (lambda: DINOLoss(center=None), 'center=None must be')])
def test_bad_settings(make, words):
    with pytest.raises(InputError, match=re.escape(words)): make()


def test_representations():
    assert repr(VICReg()) == 'VICReg(sim=25.0, var=25.0, cov=1.0, gamma=1.0, eps=0.0001)'
    assert repr(SwAVLoss(iters=5)) == 'SwAVLoss(temp=0.1, eps=0.05, iters=5)'
    dino = DINOLoss(center=.5)
    dino.update(*torch.ones(2, 1, 2, 3))
    dino.prepare(9)
    assert repr(dino) == 'DINOLoss(temp=0.1, teacher_temp=0.07, warmup_temp=0.04, warmup_epochs=30, center=0.5)'


class Watch(TorchDispatchMode):
    "Notes the largest result of any operation, and operations that make the host wait for the device"
    largest, waits = 0, ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor): self.largest = max(self.largest, x.numel())
        if any(word in str(func) for word in ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'equal')):
            self.waits += (str(func),)
        return out


@every_class
def test_no_operation_waits_for_the_device(name):
    q, k = (x.float() for x in scored(6, 5))
    loss = ALL[name]()
    with Watch() as watch:
        loss(q, k).backward()
        if loss.queued: loss(q, k, unit_rows(9, 5)).backward()
        loss.update(q[None], k[None])
        loss.each(q, k)
        loss.prepare(3)
    assert watch.largest and not watch.waits


def test_nothing_larger_than_it_must_be():
    q, k = torch.randn(8, 16, 100, requires_grad=True), torch.randn(2, 16, 100)
    for loss in (SwAVLoss(), DINOLoss()):
        with Watch() as watch: loss.pairs(q, loss.targets(k)).sum().backward()
        assert watch.largest == q.numel()  # no tensor of all pairs
    a, b = torch.randn(2, 16, 100, requires_grad=True)
    with Watch() as watch: BarlowTwins()(a, b).backward()
    assert watch.largest < 100 * 100  # no matrix of the dimensions
    q, queue = torch.randn(16, 32, requires_grad=True), torch.randn(1000, 32)
    with Watch() as watch: InfoNCE()(q, q.detach(), queue).backward()
    assert watch.largest == 1000 * 32  # the queue as it is; the logits have 16,000
    with Watch() as watch: InfoNCE()(torch.randn(100, 32), torch.randn(100, 32), queue)
    assert watch.largest == 100 * 1000  # logits of the negatives, without a column for the positive


@pytest.mark.parametrize('steps', [200])
def test_descending_each_loss_does_what_it_says(steps):
    "Free embeddings, moved by the gradient alone"
    torch.manual_seed(0)
    q, k = (torch.randn(12, 6, dtype=torch.float64).requires_grad_() for _ in range(2))

    def descend(loss, lr):
        a, b = leaf(q), leaf(k)
        for _ in range(steps):
            g = grads_of(loss(a, b), (a, b))
            with torch.no_grad():
                a -= lr * g[0]
                b -= lr * g[1]
        return a.detach(), b.detach()

    a, b = descend(NegCosine(), 5.)
    assert torch.cosine_similarity(a, b).min() > .99
    a, b = descend(VICReg(), .05)
    assert (a - b).abs().mean() < .2 * (q - k).abs().mean() and a.std(0).min() > .8
    a, b = descend(BarlowTwins(.5), .5)
    corr = torch.corrcoef(torch.cat([a, b], 1).T)[:6, 6:]
    assert corr.diagonal().min() > .9 and (corr - corr.diag().diag()).abs().max() < .35


@pytest.mark.parametrize('temp', [0, -0.1, math.inf, math.nan, None, '0.1'])
@pytest.mark.parametrize('make', [InfoNCE, NTXent, DCL, DCLW, SwAVLoss, DINOLoss])
def test_temperatures(make, temp):
    text = refusal(make, temp)
    assert f'temp={temp!r} must' in text


@pytest.mark.parametrize('make,value', [
    (lambda: DINOLoss(teacher_temp=-0.07), '-0.07'), (lambda: DINOLoss(warmup_temp=0), '0'),
    (lambda: DINOLoss(center=1.2), '1.2'),
    (lambda: SwAVLoss(eps=0), '0'), (lambda: SwAVLoss(iters=0), '0'), (lambda: BarlowTwins(-0.005), '-0.005'),
    (lambda: VICReg(sim=-1), '-1'),
    (lambda: NegCosine(0), '0'), (lambda: InfoNCE(0.2, anchors='key'), 'key')])
def test_other_numbers_of_losses(make, value): assert value in refusal(make)


# --- the protocol of a step

class Distance(torch.nn.Module):
    "Somebody's own loss, with numbers of its own"
    def __init__(self, scale=2.):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale, dtype=torch.float64))
    def forward(self, q, k): return self.scale * (q - k).square().mean()


class Knowing(Distance):
    "And one that says what it can"
    symmetric, queued, many, temp = True, True, True, 0.3
    def __init__(self):
        super().__init__()
        self.calls = []
    def forward(self, q, k, *queue): return super().forward(q, k) + sum(rows.mean() for rows in queue)
    def each(self, q, k): return q.sum(-1)
    def prepare(self, epoch): self.calls.append(epoch)
    def update(self, q, k): self.calls.append((q, k))
    def fresh(self): return type(self)()


@every_class
def test_the_librarys_losses_are_taken_as_they_are(name):
    loss, (q, k) = ALL[name](), scored(6, 5)
    assert as_step_loss(loss) is loss and isinstance(loss, Loss) and loss.name == type(loss).__name__
    assert loss.updates == (name == 'dino') and loss.contrasts == (name in ('info_nce', 'nt_xent', 'dcl', 'dclw'))
    loss.prepare(2)
    several = torch.stack([q, q.flip(0)]).detach()
    each = loss.each(several[:, :4], k)
    assert each.shape == (2, 4)
    alone = loss.each(q[:1], k)  # a query's share is its own
    torch.testing.assert_close(each[0, :1], alone)
    if not loss.contrasts: torch.testing.assert_close(each[0], -torch.cosine_similarity(q[:4], k[:4]))


def test_a_plain_module_is_wrapped():
    module, (q, k) = Distance(), pair()
    loss = as_step_loss(module)
    assert isinstance(loss, Loss) and loss.module is module and loss.name == 'Distance' and repr(loss) == repr(module)
    flags = loss.symmetric, loss.queued, loss.many, loss.prototypes, loss.contrasts, loss.updates, loss.temp
    assert flags == (False,) * 6 + (None,)
    torch.testing.assert_close(loss(q, k), module(q, k))
    torch.testing.assert_close(loss.each(q, k), -torch.cosine_similarity(q, k))
    loss.prepare(3)
    assert dict(loss.named_parameters())['module.scale'] is module.scale
    fresh = loss.fresh()
    assert fresh.module is not module and type(fresh.module) is Distance and fresh.module.scale is not module.scale
    assert as_step_loss(loss) is loss


def test_what_a_plain_module_says_of_itself_is_heeded():
    module, (q, k) = Knowing(), pair()
    loss = as_step_loss(module)
    flags = loss.symmetric, loss.queued, loss.many, loss.prototypes, loss.contrasts, loss.updates, loss.temp
    assert flags == (True, True, True, False, True, True, 0.3)
    torch.testing.assert_close(loss(q, k, k), module(q, k, k))
    assert torch.equal(loss.each(q, k), q.sum(-1))
    loss.prepare(3)
    loss.update(q, k)
    assert module.calls == [3, (q, k)]
    assert loss.fresh().module.calls == [] and loss.fresh().module is not module


OLD = dict(
    at_epoch=(dict(at_epoch=lambda self, epoch: None), ['has at_epoch', 'prepare(epoch)', 'rename']),
    anew=(dict(anew=lambda self: self), ['has anew', 'fresh()', 'rename']),
    update=(dict(update=lambda self, k: None), ['update takes queries and keys now', 'update(q, k)']),
    no_parameters=(dict(update=lambda self: None), ['update takes queries and keys now']),
    three=(dict(update=lambda self, q, k, y: None), ['update takes queries and keys now']))


@pytest.mark.parametrize('base', [Distance, NTXent, DINOLoss, Loss])
@pytest.mark.parametrize('methods,words', OLD.values(), ids=OLD)
def test_the_protocol_of_earlier_versions_is_refused(base, methods, words):
    "In a sentence that names the new one, whoever's the loss is"
    made = type('Mine', (base,), methods)()
    text = refusal(as_step_loss, made)
    assert text.startswith('Mine') and all(word in text for word in words)


@pytest.mark.parametrize('base', [Distance, NTXent])
@pytest.mark.parametrize('update', [lambda self, q, k: None, lambda self, *views: None,
                                    lambda self, q, k, momentum=0.9: None])
def test_an_update_of_two_is_taken(base, update):
    made = type('Mine', (base,), dict(update=update))()
    assert as_step_loss(made).updates
    as_step_loss(made).update(*pair())


@pytest.mark.parametrize('given', [NTXent, 'nt_xent', 0.1, None, torch.ones(3)])
def test_what_is_no_module_is_no_loss(given):
    assert 'is no loss: give one like DCL(0.1)' in refusal(as_step_loss, given)


def test_a_function_is_a_loss():
    "By its name; what a `partial` is given is written with it"
    def mine(q, k, weight=2): return weight * (q - k).square().mean()
    q, k = pair()
    given = {'mine': mine, 'mine(weight=3)': partial(mine, weight=3), 'dcl(temp=0.1)': partial(dcl, temp=.1),
             'mse_loss': F.mse_loss, 'dist': torch.dist, '<lambda>': lambda q, k: mine(q, k)}
    for name, function in given.items():
        loss = as_step_loss(function)
        assert repr(loss) == repr(loss.fresh()) == name and loss.name == name.split('(')[0]
        assert torch.equal(loss(q, k), function(q, k)) and torch.equal(loss.fresh()(q, k), function(q, k))
        assert not (loss.many or loss.updates) and loss.queued == ('dcl' in name)


def test_a_function_with_a_queue():
    loss, queue = as_step_loss(partial(info_nce, temp=.2)), F.normalize(torch.randn(7, 6))
    q, k = torch.randn(2, 5, 6)
    assert loss.queued and torch.equal(loss(q, k, queue), InfoNCE(.2)(q, k, queue))


def test_a_function_is_never_copied_and_written_without_addresses():
    "What it holds may be anything"
    class Own:
        def __init__(self): self.lock = threading.Lock()
        def loss(self, q, k): return (q - k).square().mean()
    own = Own()
    assert copy.deepcopy(as_step_loss(own.loss)).function == own.loss
    assert repr(as_step_loss(partial(lambda q, k, f: f(q - k), f=torch.sum))) == '<lambda>(f=sum)'


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
    def loss(self, q, k): return self.scale * (q - k).square().mean()


@pytest.mark.parametrize('given', [Scaled().loss, partial(Scaled().loss),
                                   partial(lambda q, k, by: by(q, k), by=Scaled())])
def test_a_function_that_holds_a_module_is_refused(given):
    assert 'holds a module, whose parameters would not train' in refusal(as_step_loss, given)


@pytest.mark.parametrize('given', [nt_xent, partial(nt_xent, .1), partial(NTXent, temp=.1), lambda q: q.mean()])
def test_a_function_of_more_or_fewer_is_none(given):
    text = refusal(as_step_loss, given)
    assert "can't be called with queries and keys alone: give its other arguments by name" in text


class Remembering(NTXent):
    "Keeps the mean and the spread of its keys"
    def __init__(self, temp=.2):
        super().__init__(temp)
        self.remember('mean')
        self.remember('spread', 'count')
    def update(self, q, k): self.mean, self.spread, self.count = k.mean((0, 1)), k.std(), torch.tensor(len(k))


def test_what_a_loss_remembers_is_declared(tmp_path):
    "It is nothing before the first step, none of a fresh one, and comes back with the state, whatever its size"
    loss = Remembering(.3)
    assert loss.remembered == ('mean', 'spread', 'count') and not loss.state_dict() and loss.mean is None
    assert NTXent().remembered == () and DINOLoss().remembered == ('center',)
    loss.update(*torch.randn(2, 3, 4, 6))
    torch.save(torch.nn.Sequential(loss).state_dict(), tmp_path / 'loss.pt')
    fresh, used = loss.fresh(), Remembering(.3)
    assert fresh.temp == .3 and fresh.remembered == loss.remembered and not fresh.state_dict()
    assert loss.mean is not None and len(loss.mean) == 6
    used.update(*torch.randn(2, 2, 4, 9))  # another width
    for other in (fresh, used):
        torch.nn.Sequential(other).load_state_dict(torch.load(tmp_path / 'loss.pt'))
        for name in loss.remembered: assert torch.equal(getattr(other, name), getattr(loss, name))
        assert other.mean is not loss.mean
    used.load_state_dict(Remembering().state_dict())  # saved before the first step
    assert used.mean is used.spread is used.count is None
