"""Values of pictures that have more than 8 bits: one range becomes [0, 1] in all of them, and none is lost on the way.

Docs: https://fastcontrast.github.io/fastcontrast/pictures.html.md"""
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image

from .core import is_number
from .formats import PixelFormat, Span

BAND = 2**18 # pixels that are looked at, scaled or converted at a time
UNIT = Span(0, 1, given=True) # of floats that have been scaled already


class Unfit(ValueError):
    "A picture has other values or channels than those that are wanted; the message goes on from its name"


def is_deep(
    picture: Image.Image,
) -> bool:
    "Has it more than 8 bits? Integers of 16 or 32 bits, or floats"
    return picture.mode.startswith(('I', 'F'))


def _tiles(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    "A picture in pieces of at most `BAND` pixels"
    columns = min(width, BAND)
    rows = max(1, BAND // columns)
    for y in range(0, height, rows):
        for x in range(0, width, columns): yield x, y, min(x + columns, width), min(y + rows, height)


def row_bands(
    x: np.ndarray, # [H, W, …]
) -> Iterator[np.ndarray]:
    "An array in pieces of at most about `BAND` values"
    rows = max(1, BAND // max(1, x[0].size))
    for start in range(0, len(x), rows): yield x[start:start + rows]


def extremes(
    picture: Image.Image | np.ndarray, # deep; an array [H, W, …] of numbers
) -> tuple[float, float]:
    "The least and the greatest value. Raises `Unfit` for a picture with values that are not finite"
    if isinstance(picture, np.ndarray): pieces = row_bands(picture)
    else: pieces = (np.asarray(picture.crop(tile)) for tile in _tiles(*picture.size))
    found = np.array([(x.min(), x.max()) for x in pieces], dtype=np.float64)
    low, high = found[:, 0].min(), found[:, 1].max()
    if np.isfinite(low) and np.isfinite(high): return float(low), float(high)
    kind = 'NaN, which is no value' if np.isnan(low) else 'infinite values, which are none'
    raise Unfit(f"holds {kind} of a pixel: mend it")


def span_of(
    form: PixelFormat,
    floats: bool, # is the picture of floats, or of integers?
) -> Span:
    "Which of a picture's values become 0 and 1. Raises `Unfit` for one that is not to be so deep"
    if form.span is None: return UNIT if floats else Span(0, 65535, given=True)
    if form.span.deep: return form.span
    raise Unfit("has more than 8 bits, unlike those that were looked at: give value_range (--range), the values that "
                "become 0 and 1")


def counting(
    low: float,
    high: float,
) -> Span:
    "A range that was found, with a count that worker processes share"
    outside = torch.zeros(1, dtype=torch.int64)
    with suppress(RuntimeError, OSError): outside.share_memory_()  # where there is none, what workers count is not told
    return Span(low, high, outside=outside)


def count_outside(
    low: float,  # a picture's least value
    high: float, # and its greatest
    span: Span,
) -> None:
    "Note a picture with values outside of a range that was found from others: they are clipped"
    if span.outside is not None and (low < span.low or high > span.high): span.outside.add_(1)


def range_facts(value_range: tuple[float, float] | None) -> dict[str, list[float]]:
    "What an exported encoder's header says of a range of values, for `range_of`"
    return {} if value_range is None else dict(value_range=list(value_range))


def range_of(
    extra: Mapping[str, Any],       # of an exported encoder's header
) -> tuple[float, float] | None: # None: those of bytes, or it does not say it
    "The values that became 0 and 1 when an encoder was trained"
    there = extra.get('value_range')
    return tuple(there) if isinstance(there, list) and len(there) == 2 and all(map(is_number, there)) else None


def other_range(
    extra: Mapping[str, Any],         # of an exported encoder's header
    here: tuple[float, float] | None, # the values that become 0 and 1 in pictures; None: those of bytes
) -> str:
    "'' or what is to be said of an encoder that was trained with another range of values"
    there = range_of(extra)
    if here is None or there is None or there == tuple(here): return ''
    low, high = there
    return (f"it was trained with {low:,g} to {high:,g} as 0 to 1, and here it is {here[0]:,g} to {here[1]:,g}: where "
            f"the same value means the same, give value_range (--range) {low:g},{high:g}")


def scaled(
    picture: Image.Image, # deep, or a part of such a one
    form: PixelFormat,    # what it is to become
) -> Image.Image:         # F in [0, 1], or L where 8 bits are kept
    "Values as shares of the range, clipped to it"
    span = span_of(form, picture.mode == 'F')
    scale = as_bytes if form.bits == 8 else unit_plane
    return Image.fromarray(scale(np.asarray(picture), span))


def as_bytes(x: np.ndarray, span: Span) -> np.ndarray:
    "A range of values as 0 to 255: uint8"
    return np.rint((x.astype(np.float64) - span.low) * (255 / (span.high - span.low))).clip(0, 255).astype(np.uint8)


def unit_plane(
    x: np.ndarray, # [H, W], numbers of any type
    span: Span,
    seen: np.ndarray | None = None, # [H, W], how much of it is seen on white, see `seen_share`; None: all
) -> np.ndarray:   # float32 in [0, 1]
    "A range of values as 0 to 1"
    out = np.empty(x.shape, np.float32)
    for band, share in zip(row_bands(x), row_bands(out), strict=True):
        share[:] = ((band.astype(np.float64) - span.low) / (span.high - span.low)).clip(0, 1)
    if seen is None: return out
    for share, part in zip(row_bands(out), row_bands(seen), strict=True):
        share *= part
        share += 1 - part
    return out


def seen_share(
    x: np.ndarray, # [H, W, C], integers from 0 up, or floats, of which the last channel is transparency
) -> np.ndarray:   # float32 [H, W], 0 where the picture is transparent, 1 where it is not
    "How much is seen of a picture"
    seen = x[..., -1].astype(np.float32)
    if x.dtype.kind == 'f': return seen.clip(0, 1, out=seen)
    seen /= np.iinfo(x.dtype).max
    return seen


def stretched(
    picture: Image.Image, # L or RGB
    span: Span,
) -> Image.Image:
    "An 8-bit picture with the values of a range that the user gave for such ones as 0 and 255"
    return picture.point(as_bytes(np.arange(256), span).tolist() * len(picture.getbands()))


def fitted(
    pixels: np.ndarray, # [c, …], uint8 or uint16
    channels: int,      # c itself; or three from one, which is repeated; or one from three, their luminance
) -> np.ndarray:        # [channels, …]
    "Grey as colour, colour as grey"
    if len(pixels) == channels: return pixels
    if channels == 3: return np.repeat(pixels, 3, axis=0)
    red, green, blue = pixels.astype(np.int64)
    grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16  # as Pillow does
    return grey[None].astype(pixels.dtype)


def as_pixels(
    picture: Image.Image, # L or RGB, or F in [0, 1]; one that was resized
    form: PixelFormat,
) -> np.ndarray:          # [form.channels, …]
    "The values of a picture in the number of channels and bits that are kept"
    if picture.mode == 'F':
        x = np.rint(np.asarray(picture).astype(np.float64) * 65535).clip(0, 65535).astype(np.uint16)
        return fitted(x[None], form.channels)
    mode = 'L' if form.channels == 1 else 'RGB'
    if picture.mode != mode: picture = picture.convert(mode)
    # colour by colour: twice as fast as to sort out the colours of every pixel
    planes = b''.join(picture.tobytes('raw', colour) for colour in mode)
    x = np.frombuffer(planes, np.uint8).reshape(len(mode), picture.height, picture.width)
    return x if form.bits == 8 else x.astype(np.uint16) * 257
