"""What the pictures of a data set hold, told from some of them: how many bits and channels, and which values.

Docs: https://fastcontrast.github.io/fastcontrast/pictures.html.md"""
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from .arrays import Raster
from .core import InputError, clipped, is_number
from .decoding import MEMORY, decoding_memory
from .formats import Span
from .pictures import attempt, evenly_spread
from .values import counting, extremes, is_deep, row_bands

SAMPLE = 256   # pictures that are looked at, of all lists together
PIXELS = 2**27 # of which values are read, about; takes a few seconds
NEAR = 16      # of 0 and of 255, where the values of bytes usually begin and end
FEW = 8        # pictures of which is told how much of their values a range has that was given
SMALL = 256    # side at which 8-bit ones are looked at for that
HARDLY = 0.9   # share of values outside of it from which on it is said
BYTES = Span(0, 255, deep=False)
ASIDE = dict( # channels that may be meant as such, and are taken for something else
    pages="of TIFFs with several pages the first is read, unless as many channels are asked for (channels, --channels)",
    alpha="what has transparency as its last channel is put on white, unless all channels are asked for "
          "(channels, --channels)")


@dataclass(frozen=True)
class Look:
    "What a picture holds"
    kind: str     # 'bytes', 'integers', 'floats', or 'shares': floats that all are n / 255, as of bytes
    channels: int # 3 where that does for it
    low: float | None = None  # its least value, where that was asked for
    high: float | None = None # and its greatest
    aside: str = ''           # what of it is not read where nobody says how many channels there are: see `ASIDE`


@dataclass(frozen=True)
class Kept:
    "How the pictures of a data set are kept, and what is to be said of it"
    channels: int
    bits: int
    span: Span
    value_range: tuple[float, float] | None # that of the span, for the reader; None: they are as bytes
    notes: list[str]

# --- looking at pictures

def look_at(
    picture: Image.Image | Raster, # opened and not decoded
    channels: int | None, # that are wanted; None: as many as there are
    values: bool,         # are its values asked for?
) -> Look:
    "What a picture holds; where values are not asked for, or are bytes, its header says it"
    if isinstance(picture, Raster): return _look_at_raster(picture, channels, values)
    aside = 'pages' if picture.format == 'TIFF' and picture.is_animated else ''
    if not is_deep(picture): return Look('bytes', 3, aside=aside)
    kind = 'floats' if picture.mode == 'F' else 'integers'
    if not values: return Look(kind, 3, aside=aside)
    with MEMORY.taken(decoding_memory(picture)): low, high = extremes(picture)
    return Look(kind, 3, low, high, aside)


def _look_at_raster(raster: Raster, channels: int | None, values: bool) -> Look:
    there = 3 if raster.alpha else raster.count(channels)
    if there == 1: there = 3
    if not raster.deep: return Look('bytes', there)
    kind, aside = 'floats' if raster.floats else 'integers', 'alpha' if raster.alpha else ''
    if not values: return Look(kind, there, aside=aside)
    with MEMORY.taken(raster.memory()):
        x = raster.colours(channels or there)
        low, high = extremes(x)
        if kind == 'floats' and 0 <= low and high <= 1 and _are_shares(x): kind = 'shares'
    return Look(kind, there, low, high, aside)


def _are_shares(x: np.ndarray) -> bool:
    "Are all values n / 255, as far as their type can say? So a transform makes floats of bytes"
    rounding = min(0.1, 255 * float(max(np.finfo(x.dtype).eps, np.finfo(np.float32).eps)))  # float64 was float32
    levels = (band.astype(np.float64) * 255 for band in row_bands(x))
    return all(np.abs(level - np.rint(level)).max() <= rounding for level in levels)


def looks(
    lists: Sequence[Any], # `Pictures` or `Shards`
    channels: int | None, # that are wanted; None: as many as there are
    values: bool,         # are values asked for? Else headers are enough
) -> list[Look]:          # in the order of the lists; those that can't be decoded are left out
    """Some pictures, evenly spread over all lists

    Their values are read in an order drawn once for all, the first before others, up to `PIXELS`."""
    found, left = {}, PIXELS
    places = evenly_spread(sum(map(len, lists)), SAMPLE)
    for place in [0, *np.random.default_rng(0).permutation(places[1:]).tolist()]:
        seen = _seen(lists, place, partial(_see, channels=channels, values=values and left > 0), channels)
        if seen is None: continue
        found[place], pixels = seen
        if found[place].low is not None: left -= pixels
    return [found[place] for place in sorted(found)]


def _seen(lists: Sequence[Any], place: int, see: Callable[[Image.Image | Raster], Any], channels: int | None) -> Any:
    "What is seen of a picture, by its number among all; None: it can't be decoded, which is said when it is to be"
    ends = np.cumsum([len(pictures) for pictures in lists])
    k = int(np.searchsorted(ends, place, side='right'))
    return attempt(lists[k].look, place - int(ends[k] - len(lists[k])), see, channels)[0]


def _see(picture: Image.Image | Raster, channels: int | None, values: bool) -> tuple[Look, int]:
    "What a picture holds, and its number of pixels"
    width, height = picture.size
    return look_at(picture, channels, values), width * height

# --- what follows

def check_range(
    value_range: Any, # of `image_dls`
) -> None:
    "Raise `InputError` for what is no range of values"
    try: low, high = value_range
    except (TypeError, ValueError): low = high = None
    if is_number(low) and is_number(high) and low < high and _is_wide(low, high): return
    raise InputError(f"value_range={clipped(repr(value_range))} (--range) should be two finite numbers, the values "
                     "that become 0 and 1, like (0, 4095)")


def _is_wide(low: float, high: float) -> bool:
    "Can values be divided by the width of a range?"
    width = float(high) - float(low)
    return 65535 / sys.float_info.max < width <= sys.float_info.max


def kept_of(
    lists: Sequence[Any], # `Pictures` or `Shards` of one data set
    value_range: tuple[float, float] | None, # the values that become 0 and 1; None: told from a sample
    channels: int | None, # that are wanted; None: 3, or what the first picture has if 3 won't do
) -> Kept:
    "One rule for all pictures of a data set"
    seen, notes = looks(lists, channels, value_range is None), []
    if channels is None:
        channels = seen[0].channels if seen else 3
        if channels != 3: notes.append(f"{channels} channels, as the first picture has (channels, --channels)")
        notes += [note for aside, note in ASIDE.items() if any(look.aside == aside for look in seen)]
    if not seen: return Kept(channels, 8, BYTES, None, notes)  # what is wrong is told by who decodes them
    deep = [look for look in seen if look.kind in ('integers', 'floats')]
    if not deep:
        span, found = _of_bytes(seen, value_range, notes)
        if span.eight_bits: notes += _hardly_used(lists, span, channels)
        return Kept(channels, 8, span, found, notes)
    mixed = "; those of 8-bit pictures are 0 and 255" if any(look.kind == 'bytes' for look in seen) else ''
    if value_range is None:
        span, name = _found([look for look in seen if look.low is not None])
        again = "; if a transform has normalised them, leave it out" if name == 'float values' and span.low < 0 else ''
        notes.append(f"{name}, {_words(span)}, become 0 to 1 in all pictures{mixed}{again} (value_range, --range)")
    else:
        span = Span(*map(float, value_range), given=True)
        if mixed: notes.append(f"values {_words(span)} become 0 to 1{mixed}")
        notes += _hardly_used(lists, span, channels)
    integral = all(look.kind == 'integers' for look in deep) and span.low % 1 == span.high % 1 == 0
    bits = 8 if integral and span.high - span.low <= 255 else 16
    return Kept(channels, bits, span, (span.low, span.high), notes)


def _of_bytes(seen: list[Look], value_range: tuple[float, float] | None, notes: list[str]) -> (
        tuple[Span, tuple[float, float] | None]):
    "The range of pictures that have no more than 8 bits, or are floats made of such"
    if any(look.kind == 'shares' for look in seen): return counting(0, 1), None
    if value_range is None: return BYTES, None
    low, high = map(float, value_range)
    if low >= 0 and high <= 255: return Span(low, high, given=True, eight_bits=True), (low, high)
    notes.append("the pictures have 8 bits, and 0 and 255 become 0 and 1: "
                 f"the range {low:,g} to {high:,g} (value_range, --range) is not of such")
    return BYTES, None


def _found(seen: list[Look]) -> tuple[Span, str]:
    "The range of pictures of more than 8 bits, and what such values are called"
    low, high = min(look.low for look in seen), max(look.high for look in seen)
    integral = {look.kind == 'integers' for look in seen}
    if integral == {True} and low >= 0:
        bits = max(1, int(high).bit_length())
        return counting(0, 2**bits - 1), f'{bits}-bit values'
    if integral == {False} and 0 <= low and high <= 1: return counting(0, 1), 'float values'
    if integral == {False} and 0 <= low < NEAR and 255 - NEAR < high <= 255:
        return counting(0, 255), 'float values, as of bytes that were not divided by 255'
    name = {(True,): 'values', (False,): 'float values'}.get((*integral,), 'values of integers and of floats')
    return counting(low, high if high > low else min(low + max(1, abs(low)), sys.float_info.max)), name


def _hardly_used(lists: Sequence[Any], span: Span, channels: int) -> list[str]:
    "What is to be said where a range that was given has hardly a value of some pictures"
    see = partial(_outside, span=span, channels=channels)
    seen = [_seen(lists, place, see, channels) for place in evenly_spread(sum(map(len, lists)), FEW).tolist()]
    seen = [counts for counts in seen if counts is not None]
    outside, count = (sum(counts) for counts in zip(*seen)) if seen else (0, 0)
    if outside <= HARDLY * count: return []
    share = 'all' if outside == count else f'{min(outside / count, 0.999):.1%} of the'
    return [f"{share} values of the pictures that were looked at are outside of {_words(span)} and become 0 or 1 "
            "(value_range, --range)"]


def _outside(picture: Image.Image | Raster, span: Span, channels: int) -> tuple[int, int]:
    "How many values of a picture are outside of a range, and how many there are that it is for"
    if isinstance(picture, Raster):
        if not (picture.deep or span.eight_bits): return 0, 0
        with MEMORY.taken(picture.memory()): return _count_outside(picture.colours(channels), span)
    if not (is_deep(picture) or span.eight_bits): return 0, 0
    with MEMORY.taken(decoding_memory(picture)):
        if is_deep(picture): return _count_outside(np.asarray(picture), span)
        picture.thumbnail((SMALL, SMALL))
        return _count_outside(np.asarray(picture.convert('RGB')), span)


def _count_outside(x: np.ndarray, span: Span) -> tuple[int, int]:
    return sum(int(((band < span.low) | (band > span.high)).sum()) for band in row_bands(x)), x.size


def _words(span: Span) -> str: return f'{_number(span.low)} to {_number(span.high)}'
def _number(value: float) -> str: return f'{int(value):,}' if value % 1 == 0 and abs(value) < 1e15 else f'{value:.4g}'
