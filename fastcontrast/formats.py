"""How the pictures of a data set are kept, so that a batch is one tensor.

Docs: https://fastcontrast.github.io/fastcontrast/pictures.html.md"""
import math
from dataclasses import dataclass, field

import numpy as np
import torch

from .core import number_of

LONGEST = 4 # long side of a picture over the short one, at most, where it is kept whole: of a longer one the middle is


@dataclass(frozen=True)
class Span:
    "The values that become 0 and 1 in all pictures of a data set; those of 8-bit pictures are 0 and 255"
    low: float
    high: float
    given: bool = False      # by the user? Else it was found from a sample, and pictures with others are counted
    eight_bits: bool = False # is it that of 8-bit pictures, too?
    deep: bool = True        # are there pictures of more than 8 bits? Else they are refused
    outside: torch.Tensor | None = field(default=None, compare=False, repr=False) # int64 [1], how many were counted

    def __str__(self) -> str: return f'{self.low:.17g} to {self.high:.17g}'


@dataclass(frozen=True)
class PixelFormat:
    "The shape and type that pictures are brought to before batches are made of them"
    side: int         # of the squares, pixels
    channels: int = 3
    bits: int = 8     # of a value: 8, or 16 where 8 do not hold what the source has
    span: Span | None = None # which values become 0 and 1; None: 0 and the largest of their type, and of floats 0 and 1
    whole: bool = False # are pictures squashed to the squares, with their aspects beside them? Else cut to squares

    @property
    def square(self) -> tuple[int, int, int]: return self.channels, self.side, self.side
    @property
    def shape(self) -> tuple[int, ...]:
        "Of what is kept of a picture: the square; or a row of its numbers, with the four bytes of the aspect behind"
        return (math.prod(self.square) + 4 // self.dtype.itemsize,) if self.whole else self.square
    @property
    def dtype(self) -> torch.dtype: return torch.uint8 if self.bits == 8 else torch.uint16
    @property
    def array_type(self) -> np.dtype:
        "NumPy's name for `dtype`"
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)
    @property
    def nbytes(self) -> int:
        "Of a picture"
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def label(self) -> str:
        "What is unusual in it, as a part of a file's name; '' for three channels of 8 bits"
        parts = {f'{self.channels}ch': self.channels != 3, f'{self.bits}bit': self.bits != 8, 'whole': self.whole}
        return ''.join(f'-{part}' for part, unusual in parts.items() if unusual)

    def words(self) -> str:
        "What is kept of a picture, for the reader"
        shape = f"{'whole, squashed to ' if self.whole else ''}{self.side} x {self.side} px"
        return f"{shape}, {number_of(self.channels, 'channel')} of {self.bits} bits"

    def described(self) -> dict[str, str]:
        "The same with its range of values, for a file's header"
        described = {}
        if self.channels != 3: described['channels'] = str(self.channels)
        if self.bits != 8: described['bits'] = str(self.bits)
        if self.span is not None and self.span.deep: described['values'] = str(self.span)
        if self.whole: described['whole'] = 'True'
        return described

    def box(self,
        width: int, # of a picture, pixels
        height: int,
    ) -> tuple[float, float, float, float]: # left, top, right, bottom
        "What is kept of a picture: all of it, or the square in its centre"
        most = min(width, height) * (LONGEST if self.whole else 1)
        w, h = min(width, most), min(height, most)
        left, top = (width - w) / 2, (height - h) / 2
        return left, top, left + w, top + h

    def packed(self,
        pixels: np.ndarray, # `square`
        aspect: float,      # width / height of what it was before
    ) -> np.ndarray:        # `shape`
        "What is kept of a picture, in memory of its own"
        if not self.whole: return np.array(pixels, order='C')
        kept, end = np.empty(self.shape, pixels.dtype), pixels.size
        kept[:end].reshape(pixels.shape)[:] = pixels
        kept[end:] = np.array([aspect], np.float32).view(pixels.dtype)
        return kept

    def unpacked(self,
        kept: torch.Tensor, # [B, *shape]
    ) -> tuple[torch.Tensor, ...]: # images [B, *square]; and aspects, float32 [B], of whole pictures
        "The pictures of a batch"
        if not self.whole: return kept,
        end = math.prod(self.square)
        aspects = kept[:, end:].clone(memory_format=torch.contiguous_format).view(torch.float32)
        return kept[:, :end].unflatten(1, self.square), aspects.squeeze(1)
