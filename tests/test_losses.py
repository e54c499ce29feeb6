"""The losses against loops written from the papers' equations, against lightly, and at the ends of the number range."""
import math

import lightly.loss
import pytest
import torch

from fastcontrast.core import InputError
from fastcontrast.losses import DCL, DCLW, InfoNCE, NTXent, _vmf_weights, dcl, dclw, info_nce, nt_xent

LOSSES = dict(info_nce=info_nce, nt_xent=nt_xent, dcl=dcl, dclw=dclw)
MODULES = dict(info_nce=InfoNCE, nt_xent=NTXent, dcl=DCL, dclw=DCLW)
DEVICES = ['cpu'] + ['cuda'] * torch.cuda.is_available()
every_loss = pytest.mark.parametrize('name', LOSSES)
every_device = pytest.mark.parametrize('device', DEVICES)


def pair(B=5, D=7, seed=0, dtype=torch.float64, device='cpu'):
    g = torch.Generator().manual_seed(seed)
    return [leaf((torch.randn(B, D, generator=g, dtype=torch.float64) * 3).to(device, dtype)) for _ in range(2)]


def leaf(x): return x.detach().clone().requires_grad_()


def value_and_grads(loss, zs, *args):
    value = loss(*zs, *args)
    return value.detach(), torch.autograd.grad(value, zs)


def cosine(a, b): return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


# The equations, one term at a time.

def loop_info_nce(q, k, temp):
    terms = []
    for queries in q if q.ndim == 3 else [q]:
        for i in range(len(k)):
            e = [torch.exp(cosine(queries[i], k[j]) / temp) for j in range(len(k))]
            terms.append(-torch.log(e[i] / sum(e)))
    return sum(terms) / len(terms)


def loop_nt_xent(z1, z2, temp):
    z, n = [*z1, *z2], 2 * len(z1)
    terms = []
    for i in range(n):
        e = {j: torch.exp(cosine(z[i], z[j]) / temp) for j in range(n) if j != i}
        terms.append(-torch.log(e[(i + len(z1)) % n] / sum(e.values())))
    return sum(terms) / n


def loop_dcl(z1, z2, temp, weights=None):
    views, B = (z1, z2), len(z1)
    terms = []
    for k in range(2):
        for i in range(B):
            e = [torch.exp(cosine(views[k][i], views[l][j]) / temp) for l in range(2) for j in range(B) if j != i]
            w = 1 if weights is None else weights[i]
            terms.append(-w * cosine(z1[i], z2[i]) / temp + torch.log(sum(e)))
    return sum(terms) / (2 * B)


def loop_dclw(z1, z2, temp, sigma=0.5):
    e = [math.exp(cosine(a, b).item() / sigma) for a, b in zip(z1, z2, strict=True)]
    return loop_dcl(z1, z2, temp, [2 - x / (sum(e) / len(e)) for x in e])


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


def rows(scale, B=6, D=5): return torch.randn(B, D, generator=torch.Generator().manual_seed(3)) * scale


EXTREMES = dict(
    zeros=(torch.zeros(6, 5), torch.zeros(6, 5)),
    zeros_against_ones=(torch.zeros(6, 5), torch.ones(6, 5)),
    one_zero_row=(rows(1.) * torch.tensor([0., 1, 1, 1, 1, 1])[:, None], rows(2.)),
    all_the_same=(torch.ones(6, 5), torch.ones(6, 5)),
    duplicates=(rows(1.)[[0, 0, 1, 1, 2, 2]], rows(1.)[[0, 0, 1, 1, 2, 2]]),
    equal_views=(rows(1.), rows(1.)),
    opposite_views=(rows(1.), -rows(1.)),
    one_hot=(torch.eye(6, 5), torch.eye(6, 5)),
    huge=(rows(1e30), rows(1e30).flip(0)),
    largest=(torch.full((6, 5), torch.finfo(torch.float32).max), -rows(1e37)),
    tiny=(rows(1e-30), rows(1e-30).flip(0)),
    subnormal=(rows(1e-41), rows(1e-44)),
    all_scales=(rows(torch.logspace(-38, 38, 6)[:, None]), rows(torch.logspace(38, -38, 6)[:, None])),
)


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
    assert repr(InfoNCE()) == 'InfoNCE(temp=0.2, scale=1.0)' and repr(DCL(.07)) == 'DCL(temp=0.07)'


@pytest.mark.parametrize('temp', [0, -1., math.nan, math.inf, '0.1', None])
@every_loss
def test_bad_temperature(name, temp):
    for call in (lambda: MODULES[name](temp), lambda: LOSSES[name](*pair(), temp)):
        with pytest.raises(InputError, match='temp must be a positive, finite number'): call()


@pytest.mark.parametrize('call', [
    lambda: DCLW(.1, sigma=0), lambda: dclw(*pair(), .1, sigma=-.5), lambda: InfoNCE(.1, scale=math.nan)])
def test_bad_sigma_and_scale(call):
    with pytest.raises(InputError, match='(sigma|scale) must be a positive, finite number'): call()


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
