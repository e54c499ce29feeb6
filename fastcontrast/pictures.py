"""One picture as a square of bytes, many as a list that is read at any place, and what to say of those that are broken.

Docs: https://fastcontrast.github.io/fastcontrast/pictures.html.md"""
import functools
import hashlib
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset

from .core import InputError
from .decoding import MEMORY, check_icon, decoding_memory
from .files import check_file, shown
from .formats import PixelFormat

T = TypeVar('T')
TRIES = 100 # so many failures in a row are no longer a matter of a few bad files
BAND = 2**18 # pixels of a picture that are converted at a time
USUAL = 'JPEG', 'PNG'

# --- one picture

def _tiles(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    "A picture in pieces of at most `BAND` pixels"
    columns = min(width, BAND)
    rows = max(1, BAND // columns)
    for y in range(0, height, rows):
        for x in range(0, width, columns): yield x, y, min(x + columns, width), min(y + rows, height)


def _span(picture: Image.Image) -> tuple[float, float]:
    "The values that become 0 and 255 in integers of 16 or 32 bits, or floats"
    pieces = (np.asarray(picture.crop(tile)) for tile in _tiles(*picture.size))
    extremes = np.array([(x.min(), x.max()) for x in pieces], dtype=np.float64)
    low, high = extremes[:, 0].min(), extremes[:, 1].max()
    full = 1. if picture.mode == 'F' else 65535.
    if not np.isfinite(high - low): raise ValueError('holds values that are not finite')
    return (0., full) if 0 <= low and high <= full else (low, high)


def _to_8bit(
    picture: Image.Image,       # integers of 16 or 32 bits, or floats
    span: tuple[float, float],  # its values that become 0 and 255
) -> Image.Image:
    "8-bit grey: scaled, not clipped"
    x, (low, high) = np.asarray(picture).astype(np.float64), span
    return Image.fromarray(np.rint((x - low) * (255 / ((high - low) or 1))).astype(np.uint8))


def _plain(
    picture: Image.Image,                    # of any mode
    span: tuple[float, float] | None = None, # from `_span`, of the whole of which this is a part; None: this is all
) -> Image.Image:                            # L or RGB
    "Eight bits, and white under what is transparent"
    if picture.mode.startswith(('I', 'F')): picture = _to_8bit(picture, span or _span(picture))
    if picture.has_transparency_data:
        white = Image.new('RGBA', picture.size, 'white')
        picture = Image.alpha_composite(white, picture.convert('RGBA'))
    return picture if picture.mode in ('L', 'RGB') else picture.convert('RGB')


# by EXIF orientation: how to turn a picture, and of what it was before: are its rows columns, are these counted from
# the right, and rows from the bottom?
_TURNS = {2: (Image.Transpose.FLIP_LEFT_RIGHT, False, True, False), 3: (Image.Transpose.ROTATE_180, False, True, True),
          4: (Image.Transpose.FLIP_TOP_BOTTOM, False, False, True), 5: (Image.Transpose.TRANSPOSE, True, False, False),
          6: (Image.Transpose.ROTATE_270, True, False, True), 7: (Image.Transpose.TRANSVERSE, True, True, True),
          8: (Image.Transpose.ROTATE_90, True, True, False)}
Turn = tuple[Image.Transpose, bool, bool, bool]


def _part(
    picture: Image.Image,
    turn: Turn | None,               # of `_TURNS`
    box: tuple[int, int, int, int],  # in the turned picture
) -> Image.Image:
    "A part of the turned picture, of which no more is turned"
    if turn is None: return picture.crop(box)
    method, swapped, from_right, from_bottom = turn
    left, top, right, bottom = box
    if swapped: left, top, right, bottom = top, left, bottom, right
    if from_right: left, right = picture.width - right, picture.width - left
    if from_bottom: top, bottom = picture.height - bottom, picture.height - top
    return picture.crop((left, top, right, bottom)).transpose(method)


def _turned_size(picture: Image.Image, turn: Turn | None) -> tuple[int, int]:
    "Width and height of the turned picture"
    return picture.size[::-1] if turn and turn[1] else picture.size


def _fit_in_bands(picture: Image.Image, form: PixelFormat, turn: Turn | None) -> Image.Image:
    """What turning, `_plain` and resizing make of a picture, band by band: no other copy of the whole is made

    Pillow resizes along the rows and then along the columns, and so does this: the values are the same. Of tall
    pictures Pillow 13 does the columns first, and there they may differ by one."""
    width, height = _turned_size(picture, turn)
    side, (x, y, end, foot) = form.side, form.box(width, height)
    across, down = int(end - x) // side + 2, int(foot - y) // side + 2  # as far as the filter looks
    left, right = max(0, int(x) - across), min(width, int(end) + across)
    top, bottom = max(0, int(y) - down), min(height, int(foot) + down)
    span = _span(picture) if picture.mode.startswith(('I', 'F')) else None
    rows, narrow = max(1, BAND // (right - left)), None
    for start in range(top, bottom, rows):
        stop = min(start + rows, bottom)
        band = _plain(_part(picture, turn, (left, start, right, stop)), span)
        if narrow is None: narrow = Image.new(band.mode, (side, bottom - top))
        box = (x - left, 0, end - left, stop - start)
        narrow.paste(band.resize((side, stop - start), Image.Resampling.BILINEAR, box), (0, start - top))
    return narrow.resize((side, side), Image.Resampling.BILINEAR, (0, y - top, side, foot - top))


def _decoded_square(picture: Image.Image, form: PixelFormat) -> np.ndarray:
    picture.load()  # what says how it lies may stand behind its pixels
    turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    left, top, right, bottom = box = form.box(*_turned_size(picture, turn))
    odd = picture.mode != 'RGB' or 'transparency' in picture.info
    if (turn or odd) and picture.width * picture.height > BAND: picture = _fit_in_bands(picture, form, turn)
    else:
        if turn: picture = picture.transpose(turn[0])
        if odd: picture = _plain(picture)
        picture = picture.resize((form.side, form.side), Image.Resampling.BILINEAR, box)
    if picture.mode != 'RGB': picture = picture.convert('RGB')
    return form.packed(np.array(picture).transpose(2, 0, 1), (right - left) / (bottom - top))


def square_pixels(
    picture: Image.Image, # a picture of any mode and shape
    form: PixelFormat,    # what it is to become
) -> np.ndarray:          # `form.shape`, RGB
    """A picture or its centre square, resized with antialiasing; pictures of that size already keep their values

    A large one waits until the process has the memory for it, see `decoding.MEMORY`. Raises `ValueError` for one that
    is larger than all of that, and whatever its decoder raises."""
    need = decoding_memory(picture)
    if not need: return _decoded_square(picture, form)
    with MEMORY.taken(need): return _decoded_square(picture, form)


@functools.cache
def picture_formats() -> dict[str, list[str]]:
    "The formats Pillow can decode by itself, each with the suffixes of its files"
    # the first four are containers that Pillow recognises without reading; it hands the others to outside programs
    undecoded = {'BUFR', 'GRIB', 'HDF5', 'MPEG', 'EPS', 'WMF'}
    found: dict[str, list[str]] = {name: [] for name in USUAL}  # a file is tried in this order
    for suffix, name in Image.registered_extensions().items():
        if name in Image.OPEN and name not in undecoded: found.setdefault(name, []).append(suffix)
    return found


def picture_suffixes() -> tuple[str, ...]:
    "Those of the files of `picture_formats`, with the dot"
    return tuple(suffix for suffixes in picture_formats().values() for suffix in suffixes)


def open_picture(
    file: Any,      # a path or a binary file
) -> Image.Image:   # not decoded yet; to be used in a `with` statement
    """A picture file in one of `picture_formats`

    Raises `UnidentifiedImageError` if it is none, `OSError`, also where a path leads to a pipe or a device, and
    `ValueError` for a picture of more pixels than Pillow opens (twice its `Image.MAX_IMAGE_PIXELS`)."""
    is_path = isinstance(file, (str, os.PathLike))
    if is_path: check_file(file)
    try:
        try: return Image.open(file, formats=USUAL)
        except UnidentifiedImageError: pass
        with open(file, 'rb') if is_path else nullcontext(file) as content: check_icon(content)
        return Image.open(file, formats=tuple(picture_formats()))
    except Image.DecompressionBombError:
        raise ValueError(f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, where Pillow suspects an attack") from None


def decoded(
    file: Any,         # a path or a binary file
    form: PixelFormat, # what it is to become
) -> np.ndarray:       # `form.shape`, RGB
    "`square_pixels` of a picture file; raises whatever its decoder raises"
    with open_picture(file) as picture:
        picture.draft(None, (form.side, form.side))  # a JPEG far too large is decoded at 1/2, 1/4 or 1/8 of its size
        need = decoding_memory(picture)
        if not need: return _decoded_square(picture, form)
    with MEMORY.taken(need):
        picture = open_picture(file)
        try:
            picture.draft(None, (form.side, form.side))
            return _decoded_square(picture, form)
        finally:  # while the memory is taken
            picture.close()
            del picture

# --- many pictures

class Pictures:
    "Many pictures, each with a name and a class, read at any place; `size` and `pixels` raise whatever decoders raise"
    threaded = False # may several threads read at once? Of a stranger's data set nothing promises it
    def __init__(self,
        names: list[str], # [N]
        y: np.ndarray,    # int64 [N], classes; -1: none
    ):
        self.names, self.y = names, y

    def __len__(self) -> int: return len(self.y)
    def shown(self, i: int) -> str:
        "What a message calls picture `i`"
        raise NotImplementedError

    def subset(self,
        indices: np.ndarray, # which of the pictures, int64
    ) -> 'Pictures':
        "Some of the pictures, in this order"
        raise NotImplementedError

    def size(self, i: int) -> tuple[int, int]:
        "Width and height of picture `i`, pixels"
        raise NotImplementedError

    def pixels(self,
        i: int,            # which picture
        form: PixelFormat, # what it is to become
    ) -> np.ndarray:       # `form.shape`, RGB
        "`square_pixels` of picture `i`"
        raise NotImplementedError


class Files(Pictures):
    "Picture files of one folder, named by their paths in it"
    threaded = True  # Pillow lets go of the interpreter lock while it decodes and resizes
    def __init__(self,
        folder: Path,     # where the files lie
        names: list[str], # [N], their paths in the folder
        y: np.ndarray,    # int64 [N], classes; -1: none
    ):
        super().__init__(names, y)
        self.folder = folder
        # one array of bytes: a list of strings would be copied, page by page, into every worker process
        self.paths = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def shown(self, i): return str(self.folder/os.fsdecode(self.paths[i]))
    def subset(self, indices): return Files(self.folder, [self.names[i] for i in indices], self.y[indices])
    def size(self, i):
        with open_picture(self.shown(i)) as picture: return picture.size

    def pixels(self, i, form):
        try: return decoded(self.shown(i), form)
        except UnidentifiedImageError:
            if os.path.getsize(self.shown(i)): raise
            raise ValueError('empty file') from None

    def digest(self) -> str:
        "A hash of the files' names, sizes and times of change: another one when the pictures are no longer the same"
        seen, folder = hashlib.blake2b(digest_size=16), os.fsencode(self.folder/'_')[:-1]
        for path in self.paths:
            try: stat = os.stat(folder + path)
            except OSError: state = (0, 0)  # a broken link: a picture that cannot be decoded
            else: state = (stat.st_size, stat.st_mtime_ns)
            seen.update(b'%s\0%d\0%d\n' % (path, *state))
        return seen.hexdigest()


class Items(Pictures):
    """Some items of a data set, named by their numbers

    `dataset[i]` is a picture, a tuple that begins with one, or a dict: a PIL picture, or an array or tensor `[H, W]`,
    `[H, W, C]` or `[C, H, W]` of bytes or of floats in [0, 1], with `C` 1 or 3.
    What the data set itself raises is the user's to see, but for pictures that can't be read: see `skipped`."""
    def __init__(self,
        dataset: Dataset,    # in torchvision's sense
        indices: np.ndarray, # int64 [N], which of its items
        y: np.ndarray,       # int64 [N], their classes; -1: none
        column: str | None = None, # where the pictures are in items that are dicts
    ):
        super().__init__([str(i) for i in indices], y)
        self.dataset, self.indices, self.column = dataset, indices, column

    def shown(self, i): return f"item {self.indices[i]} of {type(self.dataset).__name__}"
    def subset(self, indices): return Items(self.dataset, self.indices[indices], self.y[indices], self.column)
    def size(self, i): return self._picture(i).size
    def pixels(self, i, form): return square_pixels(self._picture(i), form)

    def _content(self, i: int) -> Any:
        "What the data set has as picture `i`"
        try:
            item = self.dataset[int(self.indices[i])]
            if self.column is not None: return item[self.column]
        except Exception as e:
            if not skipped(e):
                e.add_note(f"(raised by {self.shown(i)})")
                e.of_data_set = True  # for `attempt`
            raise
        return item[0] if isinstance(item, (tuple, list)) and item else item

    def _picture(self, i: int) -> Image.Image:
        x = self._content(i)
        if isinstance(x, Image.Image): return x
        if isinstance(x, dict) and x.get('bytes'): return open_picture(io.BytesIO(x['bytes']))  # Hugging Face's files
        return Image.fromarray(self._bytes(x, i))

    def _bytes(self, x: Any, i: int) -> np.ndarray:
        "An array or tensor as uint8 [H, W, 3]. What values and channels a picture may have is decided here"
        axis = channel_axis(x)
        if axis is None:
            raise InputError(f"{self.shown(i)} should begin with a PIL picture, or an array or tensor [H, W], "
                             f"[H, W, 3] or [3, H, W], not {list(getattr(x, 'shape', ())) or type(x).__name__}")
        if isinstance(x, torch.Tensor): x = (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()
        x = x[..., None] if x.ndim == 2 else np.moveaxis(x, axis, -1)
        if x.dtype.kind == 'f': x = self._scaled(x, i)
        if x.dtype != np.uint8:
            raise InputError(f"{self.shown(i)} should be uint8 or float in [0, 1], not {x.dtype}")
        return np.ascontiguousarray(np.broadcast_to(x, (*x.shape[:2], 3)))

    def _scaled(self, x: np.ndarray, i: int) -> np.ndarray:
        "Floats in [0, 1] as bytes"
        if np.isnan(x).any(): raise InputError(f"{self.shown(i)} holds NaN, which is no value of a pixel: mend it")
        if x.min() < 0 or x.max() > 1:
            raise InputError(f"{self.shown(i)} has values outside [0, 1]: remove Normalize from its transforms, "
                             "views need pictures in [0, 1]")
        return np.rint(x * np.float32(255)).astype(np.uint8)


def channel_axis(
    x: Any,            # [H, W], or [H, W, C] or [C, H, W] with C of 1 or 3
    batch: bool = False, # or [N, …] of such?
) -> int | None:       # counted from the end; None: these are no pictures
    "Where the channels of a picture are: where both could be meant a tensor has them first, and an array last"
    if not isinstance(x, (np.ndarray, torch.Tensor)): return None
    shape = x.shape[1:] if batch else x.shape
    if len(shape) == 2: return -1
    order = (-3, -1) if isinstance(x, torch.Tensor) else (-1, -3)
    return next((axis for axis in order if len(shape) == 3 and shape[axis] in (1, 3)), None)


def skipped(
    e: Exception, # raised by an item of a data set
) -> bool:
    """Is a picture that can't be read the cause, rather than an error of the program?

    So it is with the system's errors, and with what is raised inside a decoder."""
    return isinstance(e, OSError) or in_decoder(e)


def in_decoder(
    e: Exception,
) -> bool:
    "Was it raised by Pillow, or by torchvision's decoders?"
    modules = (frame.f_globals.get('__name__', '') for frame, _ in traceback.walk_tb(e.__traceback__))
    return any(name.startswith(('PIL.', 'torchvision.io.')) for name in modules)

# --- those that cannot be decoded

def attempt(
    decode: Callable[..., T], # what may fail
    *args,                    # what it is given
) -> tuple[T | None, str]:    # what it makes of a picture, or None and the reason why it cannot
    "Decode a picture that may be broken"
    try: return decode(*args), ''
    except InputError: raise
    except UnidentifiedImageError: return None, 'not a picture'
    except Exception as e:  # codecs raise anything: OSError, SyntaxError, struct.error, DecompressionBombError, …
        if getattr(e, 'of_data_set', False): raise  # see `Items`
        return None, (getattr(e, 'strerror', None) or str(e) or type(e).__name__).rstrip('.')


def first_ten(
    failed: Iterable[tuple[str, str]], # pictures and why they could not be decoded
) -> str:
    "The first ten pictures with their reasons"
    failed = list(failed)
    more = f" and {len(failed) - 10:,} more" if len(failed) > 10 else ''
    return ', '.join(f"{shown(name)} ({shown(reason)})" for name, reason in failed[:10]) + more


def undecodable(
    failed: dict[str, str], # pictures and why they could not be decoded, one or more
) -> str:
    "The sentence for `strict=True`"
    name, reason = next(iter(failed.items()))
    return f"{shown(name)} could not be decoded ({shown(reason)}): repair or remove it, or use strict=False"


def common_size(
    lists: Iterable, # `Pictures` or `Shards`: what has a length, `size` and `shown`
) -> int | None:
    """The side of all pictures if they are squares of one size, else None

    Of each list a thousand, evenly spread, are looked at. Raises `InputError` if none of them can be decoded."""
    common, reason = None, ''
    for pictures in lists:
        for i in np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), 1000)).astype(int)):
            size, why = attempt(pictures.size, i)
            if size is None: reason = reason or f"{shown(pictures.shown(i))} ({shown(why)})"
            elif size[0] != size[1] or common not in (None, size[0]): return None
            else: common = size[0]
    if common is None: raise InputError(f"no picture could be decoded, the first is {reason}: are these picture files?")
    return common


def short_and_long(
    lists: Iterable, # as `common_size` takes
) -> np.ndarray:     # int64 [n, 2], pixels
    "The short and the long side of some pictures: of each list a hundred, evenly spread, as far as they can be read"
    sizes = [attempt(pictures.size, i)[0] for pictures in lists
             for i in np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), 100)).astype(int))]
    return np.array([sorted(size) for size in sizes if size is not None], dtype=np.int64).reshape(-1, 2)


def progress(
    steps: Sequence,      # what to go through
    task: str,            # for the reader
    patience: float = 5., # seconds before anything is said, off a terminal
) -> Iterable:
    "A progress bar on a terminal; elsewhere nothing, or two lines if it takes long"
    if sys.stderr.isatty() and len(steps) > 1:
        yield from track(steps, task, console=Console(stderr=True), transient=True)
        return
    start, announced = time.monotonic(), False
    for done, step in enumerate(steps, 1):
        yield step
        spent = time.monotonic() - start
        if announced or spent < patience or done == len(steps): continue
        print(f"{task}: {spent * (len(steps) / done - 1):.0f} s to go", file=sys.stderr)
        announced = True
    if announced: print(f"{task}: done", file=sys.stderr)
