"""Convolutions on small maps against PyTorch's own."""
import pytest
import torch
from torch import nn

from fastcontrast.small_maps import convolved, multiplies

close = torch.testing.assert_close
SIDES = [(1, 1), (2, 2), (1, 2), (3, 2), (3, 3), (4, 4), (5, 5), (2, 5)]
KINDS = [(3, 1, 1), (3, 2, 1), (2, 1, 0), (7, 2, 3), (5, 1, 2), (3, 1, 0), ((1, 3), 1, (0, 1)), (1, 1, 0), (1, 2, 0)]
SEED = 3


def gradients(function, conv, x, seed):
    x = x.clone().requires_grad_()
    conv.zero_grad()
    y = function(x)
    y.backward(seed.to(y.dtype))
    return y, x.grad, *(p.grad for p in conv.parameters())


@pytest.mark.parametrize('side', SIDES, ids=str)
@pytest.mark.parametrize('kind', KINDS, ids=str)
@pytest.mark.parametrize('n,bias', [(3, False), (70, True)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
def test_it_is_the_same_function(side, kind, n, bias, layout):
    conv = nn.Conv2d(6, 5, *kind, bias=bias).double().to(memory_format=layout)
    x = torch.randn(n, 6, *side, dtype=torch.float64).to(memory_format=layout)
    try: shape = conv(x).shape
    except RuntimeError: return  # a kernel larger than the map
    most = 8 if kind[0] == 1 else 2 if n == 3 else 3
    assert multiplies(conv, x) == (max(shape[2:]) <= most)
    assert multiplies(conv, x, reduced=False) == (kind[0] != 1 and max(shape[2:]) <= 2)
    seed = torch.randn(shape, dtype=torch.float64)
    theirs = gradients(conv, conv, x, seed)
    for a, b in zip(gradients(lambda x: convolved(conv, x), conv, x, seed), theirs): close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('kind', [dict(groups=2, padding=1), dict(dilation=2, padding=2), dict(padding='same'),
                                  dict(padding=1, padding_mode='reflect'), dict(padding=3)], ids=str)
def test_others_are_left_to_pytorch(kind): assert not multiplies(nn.Conv2d(4, 4, 3, **kind), torch.randn(2, 4, 2, 2))


@pytest.mark.parametrize('side,kernel', [(1, 3), (2, 3), (3, 3), (2, 1)])
def test_in_bfloat16_it_is_right_also_where_a_kernel_overhangs(side, kernel):
    conv = nn.Conv2d(64, 64, kernel, padding=kernel // 2, bias=False).to(memory_format=torch.channels_last)
    x, seed = (torch.randn(80, 64, side, side).to(memory_format=torch.channels_last) for _ in range(2))
    exact = gradients(conv, conv, x, seed)
    assert multiplies(conv, x)
    with torch.autocast('cpu', torch.bfloat16): ours = gradients(lambda x: convolved(conv, x), conv, x, seed)
    assert ours[0].dtype == torch.bfloat16
    for a, b in zip(ours, exact): assert ((a.float() - b).norm() / b.norm()).item() < 0.01
