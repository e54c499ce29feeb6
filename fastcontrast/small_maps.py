"""Convolutions on small feature maps as matrix products, without the taps of a kernel that would only meet padding.

Docs: https://fastcontrast.github.io/fastcontrast/small_maps.html.md"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['multiplies', 'convolved']

# Largest sides of what a convolution gives, in cells, up to which matrix products took less time than oneDNN, forward
# and backward in bfloat16 on an AVX512-BF16 CPU: kernels of one cell; others; others with so many maps at once. Beyond,
# what is saved (5 of the 9 taps of a 3 x 3 kernel on 2 x 2 cells, 32 of 81 on 3 x 3) is less than what copying takes.
MOST_POINTWISE, MOST, MOST_OF_MANY, MANY = 8, 2, 3, 64
# In float32 on a CPU with AVX2 alone: kernels of one cell, and others
MOST_IN_FLOAT32 = 0, 2


def _spans(
    side: int,     # of the map
    kernel: int, stride: int, padding: int,
) -> list[tuple[slice, slice]]: # for each output: the cells that it sees, and the taps that they meet
    starts = range(-padding, side + padding - kernel + 1, stride)
    return [(slice(max(0, start), min(side, start + kernel)), slice(max(0, -start), min(kernel, side - start)))
            for start in starts]


def multiplies(
    conv: nn.Conv2d,
    x: Tensor, # maps `[N, C, H, W]`
    reduced: bool = True, # is it computed in bfloat16? Else in float32
) -> bool:
    "Whether `convolved` can stand for a convolution of these maps, and pays where matrix products do"
    own = type(conv) is nn.Conv2d and conv.padding_mode == 'zeros' and not isinstance(conv.padding, str)
    if not own or conv.groups > 1 or conv.dilation != (1, 1) or x.ndim != 4: return False
    pointwise = conv.kernel_size == (1, 1)
    if reduced: most = MOST_POINTWISE if pointwise else MOST_OF_MANY if len(x) >= MANY else MOST
    else: most = MOST_IN_FLOAT32[not pointwise]
    sides = zip(x.shape[2:], conv.kernel_size, conv.stride, conv.padding)
    return all(padding < kernel and 1 <= (side + 2 * padding - kernel) // stride + 1 <= most
               for side, kernel, stride, padding in sides)


def convolved(
    conv: nn.Conv2d, # one that `multiplies`
    x: Tensor,       # maps `[N, C, H, W]`
) -> Tensor:         # `[N, D, h, w]`, channels last in memory
    "What the convolution makes of the maps: a matrix product for every cell of the result, or one for all"
    weight, bias = conv.weight, conv.bias
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)  # once for all products
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    cells, taps = x.movedim(1, -1), weight.movedim(1, -1)
    if conv.kernel_size == (1, 1):
        down, right = conv.stride
        cells = cells[:, ::down, ::right].contiguous()  # PyTorch multiplies others by itself, slowly
        return F.linear(cells, taps[:, 0, 0], bias).movedim(-1, 1)
    rows, columns = (_spans(*side) for side in zip(x.shape[2:], conv.kernel_size, conv.stride, conv.padding))
    out = [F.linear(cells[:, top, left].flatten(1), taps[:, down, right].flatten(1), bias)
           for top, down in rows for left, right in columns]
    return torch.stack(out, 1).unflatten(1, (len(rows), len(columns))).movedim(-1, 1)
