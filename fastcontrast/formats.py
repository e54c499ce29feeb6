"""How the pictures of a data set are kept, so that a batch is one tensor.

Docs: https://fastcontrast.github.io/fastcontrast/pictures.html.md"""
from dataclasses import dataclass, field

import numpy as np
import torch


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

    @property
    def shape(self) -> tuple[int, int, int]: return self.channels, self.side, self.side
    @property
    def dtype(self) -> torch.dtype: return torch.uint8 if self.bits == 8 else torch.uint16
    @property
    def array_type(self) -> np.dtype:
        "NumPy's name for `dtype`"
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)
    @property
    def nbytes(self) -> int:
        "Of a picture"
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def label(self) -> str:
        "What is unusual in it, as a part of a file's name; '' for three channels of 8 bits"
        return f'-{self.channels}ch' * (self.channels != 3) + f'-{self.bits}bit' * (self.bits != 8)

    def described(self) -> dict[str, str]:
        "The same with its range of values, for a file's header"
        described = {}
        if self.channels != 3: described['channels'] = str(self.channels)
        if self.bits != 8: described['bits'] = str(self.bits)
        if self.span is not None and self.span.deep: described['values'] = str(self.span)
        return described
