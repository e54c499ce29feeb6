"""How the pictures of a data set are kept, so that a batch is one tensor.

Docs: https://fastcontrast.github.io/fastcontrast/pictures.html.md"""
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class PixelFormat:
    "The shape and type that pictures are brought to before batches are made of them"
    side: int         # of the squares, pixels
    channels: int = 3

    @property
    def shape(self) -> tuple[int, int, int]: return self.channels, self.side, self.side
    @property
    def dtype(self) -> torch.dtype: return torch.uint8
    @property
    def nbytes(self) -> int:
        "Of a picture"
        return int(np.prod(self.shape)) * self.dtype.itemsize
