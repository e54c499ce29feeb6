"""Pictures with any number of channels: the mean and standard deviation of each, where no weights say them.

Docs: https://fastcontrast.github.io/fastcontrast/channels.html.md"""
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from .core import InputError, number_of, whole
from .distributed import gather_objects
from .loaders import ImageLoader

__all__ = ['SAMPLE', 'ChannelStatistics', 'channel_statistics', 'statistics_of']

SAMPLE = 1024       # pictures that are looked at
LEAST_SPREAD = 1e-6 # of a channel that tells anything: a fifteenth of what 16 bits can
DIGITS = 6          # that are kept: what sums in another order change is far below
_BLOCK = 2 ** 22    # numbers worked on at a time: 32 MB


@dataclass(frozen=True)
class ChannelStatistics:
    "Mean and standard deviation of every channel of pictures in [0, 1]"
    mean: tuple[float, ...]
    std: tuple[float, ...]       # 1 for a channel that is the same everywhere
    pictures: int                # that they are of
    still: tuple[int, ...] = ()  # such channels, counted from 0

    def note(self) -> str:
        "Where they are from, in a sentence"
        n, pictures = len(self.mean), 'picture' if self.pictures == 1 else f'{self.pictures:,} pictures'
        said = f"mean and standard deviation of {number_of(n, 'channel')} are those of {pictures}"
        if not self.still: return said
        many = len(self.still) > 1
        return (f"{said}; channel{'s' * many} {', '.join(map(str, self.still))} {'are' if many else 'is'} the same "
                "everywhere in them")


def statistics_of(
    batches: Iterable[Tensor], # pictures [B, C, H, W]: uint8, uint16, or float in [0, 1]
) -> ChannelStatistics:
    """Mean and standard deviation over all pixels of all pictures, sqrt(mean(x²) - mean(x)²), to six digits

    Of whole numbers the sums are exact, of others they are in float64. Raises `InputError` for values that are no
    numbers."""
    pictures, count, full, sums, squares = 0, 0, 1, [], []
    for images in batches:
        pictures += len(images)
        full = 1 if images.is_floating_point() else torch.iinfo(images.dtype).max
        for chunk in _chunks(images):
            count += chunk[0].numel()
            first, second = chunk.sum(1).tolist(), chunk.square().sum(1).tolist()
            sums = [a + b for a, b in zip(sums or [0] * len(first), first, strict=True)]
            squares = [a + b for a, b in zip(squares or [0] * len(second), second, strict=True)]
    mean, std, still = [], [], []
    for channel, (total, square) in enumerate(zip(sums, squares)):
        if not (isfinite(total) and isfinite(square)):
            raise InputError(f"channel {channel} of the pictures holds NaN or infinite values, which have no mean: "
                             "give pictures of numbers.")
        variance = (count * square - total * total) / count ** 2  # whole numbers of any size have no rounding
        spread = max(0., variance) ** 0.5 / full
        if spread < LEAST_SPREAD: still.append(channel)
        mean.append(_rounded(total / count / full))
        std.append(1. if spread < LEAST_SPREAD else _rounded(spread))
    return ChannelStatistics(tuple(mean), tuple(std), pictures, tuple(still))


def _chunks(images: Tensor) -> Iterator[Tensor]:
    "Pictures `[C, N]` on the CPU, some at a time: int64 of whole numbers, else float64"
    kind = torch.float64 if images.is_floating_point() else torch.int64
    for chunk in images.split(max(1, _BLOCK // max(1, images[:1].numel()))):
        yield chunk.cpu().to(kind).movedim(1, 0).flatten(1)


def _rounded(value: float) -> float: return float(f'{value:.{DIGITS}g}')


def channel_statistics(
    loader: ImageLoader, # of the training part
    n: int = SAMPLE,     # pictures at most, the same ones every time
) -> ChannelStatistics:
    "`statistics_of` some of a loader's pictures, and nothing of the next pass is used up; alike in all processes"
    whole(n=n)
    return gather_objects(statistics_of(_sample(loader, n)))[0]


def _sample(loader: ImageLoader, n: int) -> Iterator[Tensor]:
    "The pictures of a sample, batch by batch"
    with contextlib.closing(iter(loader.ordered(n))) as batches:  # fastai's loaders always give all
        for images, *_ in batches:
            yield images[:n]
            n -= len(images)
            if n <= 0: return
