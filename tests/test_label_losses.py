"""The losses of labelled pictures against their equations."""
import math

import pytest
import torch
from helpers.equations import EXTREMES, leaf, loop_label_loss, members, value_and_grads
from torch._subclasses.fake_tensor import FakeTensorMode

from fastcontrast.core import InputError
from fastcontrast.losses import nt_xent, suncet_loss, supcon_loss

close = torch.testing.assert_close
SEED = 11
LOSSES = dict(suncet=suncet_loss, supcon=supcon_loss)
every_loss = pytest.mark.parametrize('name', LOSSES)


@pytest.mark.parametrize('y', [
    [0, 0], [0, 1, 0, 1], [3, 3, 3, -1, -1, 7], [0, 1, 2, 2, 3, 4], [5, 5, 5, 5, 5], list(range(5)) * 2 + [9]])
@pytest.mark.parametrize('temp', [0.05, 0.1, 1.])
@every_loss
def test_equals_the_equation(name, y, temp):
    z, y = members(len(y), seed=len(y))[0], torch.tensor(y)
    value, grads = value_and_grads(LOSSES[name], [z], y, temp)
    expected, expected_grads = value_and_grads(lambda z: loop_label_loss(name, z, y, temp), [z])
    assert value.dtype == torch.float64 and value.shape == ()
    close(value, expected, rtol=1e-10, atol=1e-12)
    close(grads, expected_grads, rtol=1e-8, atol=1e-10)
    close(LOSSES[name](z, y.to(torch.int32), temp), value)


@every_loss
def test_gradcheck(name):
    z, y = members(6, 3)[0], torch.tensor([0, 1, 0, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, y, 0.5), z)
    assert torch.autograd.gradgradcheck(lambda z: LOSSES[name](z, y, 0.5), z)


@every_loss
def test_neither_order_nor_the_classes_numbers_matter(name):
    z, y = members(10)
    value, (grad,) = value_and_grads(LOSSES[name], [z], y)
    order, other = torch.randperm(10), torch.tensor([40, -3, 7])
    permuted, (permuted_grad,) = value_and_grads(LOSSES[name], [leaf(z[order])], other[y[order]])
    close(permuted, value)
    close(permuted_grad, grad[order])


@every_loss
def test_pairs_are_nt_xent(name):
    z = members(12)[0]
    close(LOSSES[name](z, torch.arange(6).repeat(2), 0.2), nt_xent(z[:6], z[6:], 0.2))


def test_where_the_sum_is():
    "Mean inside the logarithm below the mean outside (Jensen); they agree where all of a class are equally near"
    z, _ = members(12)
    y = torch.arange(3).repeat(4)
    assert suncet_loss(z, y) + math.log(3) < supcon_loss(z, y)
    z = torch.eye(3, dtype=torch.float64)[y]
    close(suncet_loss(z, y) + math.log(3), supcon_loss(z, y))


@pytest.mark.parametrize('S', [1, 2, 5])
@every_loss
def test_nobody_has_a_neighbour(name, S):
    z = members(S)[0]
    value, (grad,) = value_and_grads(LOSSES[name], [z], torch.arange(S))
    assert value == 0 and torch.equal(grad, torch.zeros_like(z))


@every_loss
def test_the_lonely_only_push(name):
    "An anchor of its own class is left out of the mean, and still gets a gradient as somebody's negative"
    z, y = members(5)[0], torch.tensor([0, 0, 1, 1, 2])
    value, (grad,) = value_and_grads(LOSSES[name], [z], y)
    terms = LOSSES[name](z[:4], y[:4])
    assert value > terms and grad[4].abs().max() > 1e-6
    with torch.no_grad(): z[4] = -z[:4].mean(0) * 1e3  # as far from the others as it can be
    assert LOSSES[name](z, y) < value


LABELS = torch.tensor([0, 1, 0, 1, 2, 2])


@pytest.mark.parametrize('temp', [0.01, 1.])
@pytest.mark.parametrize('case', EXTREMES)
@every_loss
def test_finite_for_any_finite_input(name, case, temp):
    for x in EXTREMES[case]:
        for y in (LABELS, LABELS.clamp(max=1), torch.tensor([0, 1, 2, 3, 4, 4]), torch.arange(6)):
            value, (grad,) = value_and_grads(LOSSES[name], [leaf(x)], y, temp)
            assert value.isfinite() and value >= -1e-4 and grad.isfinite().all()
            assert (grad[(x == 0).all(-1)] == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@every_loss
def test_low_precision_is_computed_in_float32(name, dtype):
    z, y = members(dtype=dtype)
    value, (grad,) = value_and_grads(LOSSES[name], [z], y)
    expected, (expected_grad,) = value_and_grads(LOSSES[name], [leaf(z.float())], y)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    assert grad.dtype == dtype and torch.equal(grad, expected_grad.to(dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16): assert torch.equal(LOSSES[name](z, y), expected)
    close(value.double(), LOSSES[name](z.double(), y), rtol=1e-5, atol=1e-5)


@every_loss
def test_nothing_waits_for_the_device(name):
    "A tensor without contents can't be read: whatever looks at values, as .item() and boolean indices do, fails on it"
    with FakeTensorMode():
        z, y = torch.empty(6, 4, requires_grad=True), torch.empty(6, dtype=torch.long)
        with pytest.raises(Exception, match='item|nonzero'): z[y == 0].sum().item()
        value = LOSSES[name](z, y)
        value.backward()
    assert value.shape == () and z.grad.shape == z.shape


@pytest.mark.parametrize('z,y,words', [
    (torch.ones(4, 3), torch.zeros(3, dtype=torch.long), r'not as \[4, 3\] with labels \[3\]'),
    (torch.ones(2, 4, 3), torch.zeros(2, dtype=torch.long), 'one label each'),
    (torch.ones(4, 3), torch.zeros(4, 1, dtype=torch.long), 'one label each'),
    (torch.ones(0, 3), torch.zeros(0, dtype=torch.long), 'one label each'),
    (torch.ones(4, 0), torch.zeros(4, dtype=torch.long), 'one label each'),
    (torch.ones(4, 3), torch.zeros(4), 'not torch.float32')])
@every_loss
def test_bad_members(name, z, y, words):
    with pytest.raises(InputError, match=words): LOSSES[name](z, y)


@pytest.mark.parametrize('temp', [0, -1., math.nan, math.inf, None])
@every_loss
def test_bad_temperature(name, temp):
    with pytest.raises(InputError, match=rf'temp={temp!r} must be a finite number above 0\.'):
        LOSSES[name](*members(), temp)
