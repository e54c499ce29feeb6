"""One picture as a square of bytes, many as a list that is read at any place, and what to say of those that are broken.

Docs: https://fastcontrast.github.io/fastcontrast/pictures.html.md"""
import functools
import hashlib
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from operator import eq
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset

from .arrays import (Raster, as_raster, few, is_tiff, open_array, open_tiff, orientation_of, oriented,
                     whole_picture)
from .core import InputError, first_of, shown
from .decoding import MEMORY, check_icon, decoding_memory
from .files import check_file
from .formats import PixelFormat
from .values import (BAND, UNIT, Unfit, as_pixels, count_outside, extremes, fitted, is_deep, scaled, seen_share,
                     span_of, stretched, unit_plane)

T = TypeVar('T')
TRIES = 100 # so many failures in a row are no longer a matter of a few bad files
USUAL = 'JPEG', 'PNG'
REASONS, NAMED = 5, 3 # that are told of pictures that can't be decoded, and pictures that are named for each
_NUMBERS = re.compile(r'\d[\d,.]*') # by which reasons of one kind differ

# --- one picture

def on_white(picture: Image.Image) -> Image.Image:
    "A picture of 8 bits as it is where nothing of it is transparent, else what is seen of it on white: RGBA"
    if picture.mode == 'La': picture = picture.convert('LA')  # of which alone Pillow makes others
    if not picture.has_transparency_data: return picture
    return Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture.convert('RGBA'))


def _plain(
    picture: Image.Image, # of any mode
    form: PixelFormat,    # what it is to become
) -> Image.Image:         # L or RGB; F in [0, 1] where more than 8 bits are kept
    "Grey or colour, with white under what is transparent"
    if is_deep(picture): return scaled(picture, form)
    picture = on_white(picture)
    if picture.mode not in ('L', 'RGB'): picture = picture.convert('RGB')
    return stretched(picture, form.span) if _is_stretched(form) else picture


def _is_stretched(form: PixelFormat) -> bool: return form.span is not None and form.span.eight_bits


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


Square = tuple[np.ndarray, float] # [C, R, R], and width / height of the part of the picture that it shows


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
    rows, narrow = max(1, BAND // (right - left)), None
    for start in range(top, bottom, rows):
        stop = min(start + rows, bottom)
        band = _plain(_part(picture, turn, (left, start, right, stop)), form)
        if narrow is None: narrow = Image.new(band.mode, (side, bottom - top))
        box = (x - left, 0, end - left, stop - start)
        narrow.paste(band.resize((side, stop - start), Image.Resampling.BILINEAR, box), (0, start - top))
    return narrow.resize((side, side), Image.Resampling.BILINEAR, (0, y - top, side, foot - top))


def _decoded_square(picture: Image.Image, form: PixelFormat) -> Square:
    "Of a picture in grey or colour, and so many channels"
    picture.load()  # what says how it lies may stand behind its pixels
    if is_deep(picture): count_outside(*extremes(picture), span_of(form, picture.mode == 'F'))
    turn = _TURNS.get(orientation_of(picture))
    left, top, right, bottom = box = form.box(*_turned_size(picture, turn))
    odd = picture.mode != 'RGB' or 'transparency' in picture.info or _is_stretched(form)
    if (turn or odd) and picture.width * picture.height > BAND: picture = _fit_in_bands(picture, form, turn)
    else:
        if turn: picture = picture.transpose(turn[0])
        if odd: picture = _plain(picture, form)
        picture = picture.resize((form.side, form.side), Image.Resampling.BILINEAR, box)
    return as_pixels(picture, form), (right - left) / (bottom - top)


def _joined(channels: Iterable[Square]) -> Square:
    "Channels that were made one by one"
    squares, aspects = zip(*channels, strict=True)
    return np.concatenate(squares), aspects[0]


def _by_channel(picture: Image.Image, form: PixelFormat) -> Square:
    "Of a picture with another number of channels: each by itself, what is transparent is one of them"
    if not is_deep(picture) and (picture.has_transparency_data or picture.mode == 'RGBa'):
        picture.load()
        if picture.mode not in ('LA', 'RGBA'): picture = _with_alpha(picture)
    n = len(picture.getbands())
    if n != form.channels: raise Unfit(few(n, form.channels))
    picture.load()
    orientation, grey = orientation_of(picture), replace(form, channels=1)
    return _joined(_decoded_square(oriented(picture.getchannel(k), orientation), grey) for k in range(n))


def _with_alpha(picture: Image.Image) -> Image.Image:
    "RGBA of what a palette or a colour makes transparent"
    if 4 * picture.width * picture.height > MEMORY.limit:
        raise ValueError(f"{picture.width:,} x {picture.height:,} pixels are too many to have a fourth channel each: "
                         "make it smaller")
    return oriented(picture.convert('LA' if picture.mode == 'La' else 'RGBA'), orientation_of(picture))


def _image(x: np.ndarray) -> Image.Image: return Image.fromarray(np.ascontiguousarray(x))


def _raster_square(raster: Raster, form: PixelFormat) -> Square:
    "Of an array: each channel by itself, but bytes of colour"
    x = raster.read(form.channels)  # first: without the channels that are wanted, its values say nothing
    grey, orientation = replace(form, channels=1), raster.orientation
    if raster.deep:
        seen = seen_share(x) if raster.on_white(form.channels) else None
        if seen is not None: x = x[..., :-1]
        low, high = extremes(x)  # first: what holds NaN has no range
        span = span_of(form, raster.floats)
        count_outside(low, high, span)
        grey = replace(grey, span=UNIT)
        def plane(k): return Image.fromarray(unit_plane(x[..., k], span, seen))
    elif x.shape[-1] == 3 or raster.on_white(form.channels):
        return _decoded_square(oriented(_image(x), orientation), form)
    else:
        def plane(k): return _image(x[..., k])
    # one after the other, so that only one is in memory
    square, aspect = _joined(_decoded_square(oriented(plane(k), orientation), grey) for k in range(x.shape[-1]))
    return fitted(square, form.channels), aspect


def _square(picture: Image.Image | Raster, form: PixelFormat) -> np.ndarray:
    if isinstance(picture, Raster): square = _raster_square(picture, form)
    else: square = _decoded_square(picture, form) if form.channels in (1, 3) else _by_channel(picture, form)
    return form.packed(*square)


def square_pixels(
    picture: Image.Image | Raster, # a picture of any mode and shape
    form: PixelFormat,    # what it is to become
) -> np.ndarray:          # `form.shape`
    """A picture or its centre square, resized with antialiasing; pictures of that size already keep their values

    A large one waits until the process has the memory for it, see `decoding.MEMORY`. Raises `ValueError` for one that
    is larger than all of that, or has other channels or values than wanted (`Unfit`), and whatever its decoder
    raises."""
    need = picture.memory() if isinstance(picture, Raster) else decoding_memory(picture)
    if not need: return _square(picture, form)
    with MEMORY.taken(need): return _square(picture, form)


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
    channels: int | None = None, # that are wanted; None: as many as there are
    complete: bool = True, # with all bits and channels? Else as Pillow reads it
) -> Image.Image | Raster: # not decoded yet; to be used in a `with` statement
    """A picture file in one of `picture_formats`, or one that holds an array

    Raises `UnidentifiedImageError` if it is none, `OSError`, also where a path leads to a pipe or a device, and
    `ValueError` for a picture of more pixels than Pillow opens (twice its `Image.MAX_IMAGE_PIXELS`)."""
    is_path = isinstance(file, (str, os.PathLike))
    if is_path: check_file(file)
    try: picture = _opened_picture(file, is_path)
    except Image.DecompressionBombError:
        raise ValueError(f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, where Pillow suspects an attack") from None
    if not complete or isinstance(picture, Raster): return picture
    found = None
    try: found = whole_picture(picture, file, channels)
    finally:
        if is_path and found is not picture: picture.close()
    return found


def _opened_picture(file: Any, is_path: bool) -> Image.Image | Raster:
    try: return Image.open(file, formats=USUAL)
    except UnidentifiedImageError: pass
    array = open_array(file)
    if array is not None: return array
    with open(file, 'rb') if is_path else nullcontext(file) as content: check_icon(content)
    try: return Image.open(file, formats=tuple(picture_formats()))
    except UnidentifiedImageError:
        if is_tiff(file): return open_tiff(file)
        raise


def decoded(
    file: Any,         # a path or a binary file
    form: PixelFormat, # what it is to become
) -> np.ndarray:       # `form.shape`
    "`square_pixels` of a picture file; raises whatever its decoder raises"
    complete = form.span is not None or form.channels not in (1, 3)
    with open_picture(file, form.channels, complete) as picture:
        if isinstance(picture, Raster): return square_pixels(picture, form)
        picture.draft(None, (form.side, form.side))  # a JPEG far too large is decoded at 1/2, 1/4 or 1/8 of its size
        need = decoding_memory(picture)
        if not need: return _square(picture, form)
    with MEMORY.taken(need):
        picture = open_picture(file, form.channels, complete)
        try:
            picture.draft(None, (form.side, form.side))
            return _square(picture, form)
        finally:  # while the memory is taken
            picture.close()
            del picture

# --- many pictures

class Names(Sequence[str]):
    """Names of many files as one text, of which each becomes a string when it is asked for

    Of a million, strings would take a second to make and 80 MB, and be copied, page by page, into every worker."""
    def __init__(self,
        text: bytes, # the names as the system has them, each with a NUL behind it
        starts: np.ndarray | None = None, # int64 [N], where those that count begin in it; None: all do
    ):
        self.text, self.starts = text, starts
        if starts is None:
            ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 0)
            self.starts = np.concatenate([[0], ends + 1])[:-1]

    @classmethod
    def of(cls,
        names: Iterable[str],
    ) -> 'Names':
        return cls(os.fsencode('\0'.join([*names, ''])))

    @classmethod
    def in_folders(cls,
        folders: Mapping[str, list[str]], # names of files, one or more, by that of their folder
    ) -> 'Names':
        "Paths that begin with the folders' names, in this order"
        return cls(os.fsencode(''.join(f'{folder}/' + f'\0{folder}/'.join(names) + '\0'
                                       for folder, names in folders.items())))

    def raw(self, i: int) -> bytes:
        "A name as the system has it"
        start = self.starts[i]
        return self.text[start:self.text.index(b'\0', start)]

    def __len__(self) -> int: return len(self.starts)
    def __iter__(self) -> Iterator[str]:
        return (os.fsdecode(self.text[start:self.text.index(b'\0', start)]) for start in self.starts.tolist())

    def __getitem__(self, i):
        if isinstance(i, (slice, np.ndarray)): return Names(self.text, self.starts[i])
        return os.fsdecode(self.raw(i))

    def __eq__(self, other) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    def __repr__(self) -> str: return first_of(self)


class Pictures:
    "Many pictures, each with a name and a class, read at any place; `size` and `pixels` raise whatever decoders raise"
    threaded = False # may several threads or processes read at once? Of a stranger's data set nothing promises it
    def __init__(self,
        names: Sequence[str], # [N]
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
    ) -> np.ndarray:       # `form.shape`
        "`square_pixels` of picture `i`"
        raise NotImplementedError

    def look(self,
        i: int,
        see: Callable[[Image.Image | Raster], T], # asks a picture that was opened and not decoded
        channels: int | None,                     # that are wanted; None: as many as there are
    ) -> T:
        "What is seen of picture `i`"
        raise NotImplementedError


class Files(Pictures):
    "Picture files of one folder, named by their paths in it"
    threaded = True  # Pillow lets go of the interpreter lock while it decodes and resizes
    def __init__(self,
        folder: Path,         # where the files lie
        names: Sequence[str], # [N], their paths in the folder
        y: np.ndarray,        # int64 [N], classes; -1: none
    ):
        super().__init__(names if isinstance(names, Names) else Names.of(names), y)
        self.folder = folder

    def shown(self, i): return str(self.folder/self.names[i])
    def subset(self, indices): return Files(self.folder, self.names[indices], self.y[indices])
    def size(self, i):
        with open_picture(self.shown(i), complete=False) as picture: return picture.size

    def look(self, i, see, channels):
        with open_picture(self.shown(i), channels) as picture: return see(picture)

    def pixels(self, i, form):
        try: return decoded(self.shown(i), form)
        except UnidentifiedImageError:
            if os.path.getsize(self.shown(i)): raise
            raise ValueError('empty file') from None

    def digest(self) -> str:
        "A hash of the files' names, sizes and times of change: another one when the pictures are no longer the same"
        seen, folder = hashlib.blake2b(digest_size=16), os.fsencode(self.folder/'_')[:-1]
        for i in range(len(self)):
            path = self.names.raw(i)
            try: stat = os.stat(folder + path)
            except OSError: state = (0, 0)  # a broken link: a picture that cannot be decoded
            else: state = (stat.st_size, stat.st_mtime_ns)
            seen.update(b'%s\0%d\0%d\n' % (path, *state))
        return seen.hexdigest()


class Items(Pictures):
    """Some items of a data set, named by their numbers

    `dataset[i]` is a picture, a tuple that begins with one, or a dict: a PIL picture, or an array or tensor `[H, W]`,
    `[H, W, C]` or `[C, H, W]` of any numbers. One whose values or channels don't fit is an `InputError`.
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
    def size(self, i): return self.look(i, lambda picture: picture.size, None)
    def pixels(self, i, form): return self.look(i, lambda picture: square_pixels(picture, form), form.channels)

    def look(self, i, see, channels):
        try: return see(self._picture(i, channels))
        except Unfit as e: raise InputError(f"{self.shown(i)} {e}") from None

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

    def _picture(self, i: int, channels: int | None) -> Image.Image | Raster:
        x = self._content(i)
        if isinstance(x, Image.Image): return x
        # as Hugging Face has files
        if isinstance(x, dict) and x.get('bytes'): return open_picture(io.BytesIO(x['bytes']), channels)
        raster = as_raster(x)
        if raster is not None: return raster
        raise InputError(f"{self.shown(i)} should begin with a PIL picture, or an array or tensor [H, W], [H, W, C] or "
                         f"[C, H, W], not {list(getattr(x, 'shape', ())) or type(x).__name__}")


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


def by_reason(
    failed: Iterable[tuple[str, str]], # pictures and why they could not be decoded
) -> str:
    "The commonest reasons, each with the first pictures that it is of, and how many more there are"
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, reason in failed: groups.setdefault(_NUMBERS.sub('', reason), []).append((name, reason))
    groups = sorted(groups.values(), key=len, reverse=True)
    more = sum(map(len, groups[REASONS:]))
    return '; '.join([*map(_for_one_reason, groups[:REASONS]), *([f"and {more:,} more"] if more else [])])


def _for_one_reason(failed: list[tuple[str, str]]) -> str:
    names = ', '.join(shown(name) for name, _ in failed[:NAMED])
    more = f" and {len(failed) - NAMED:,} more" if len(failed) > NAMED else ''
    alike = ', and the like' if len({reason for _, reason in failed}) > 1 else ''
    return f"{names}{more} ({shown(failed[0][1])}{alike})"


def check_decoded(
    failed: dict[str, str], # pictures and why they could not be decoded
    strict: bool,           # is one an error?
) -> None:
    "Raise `InputError` for the first of them, if that is asked for"
    if not strict: return
    for name, reason in failed.items():
        raise InputError(f"{shown(name)} could not be decoded ({shown(reason)}): repair or remove it, or use "
                         "strict=False")


def evenly_spread(count: int, most: int) -> np.ndarray:
    "The numbers, rising, of at most so many of some things, from the first to the last"
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def common_size(
    lists: Iterable, # `Pictures` or `Shards`: what has a length, `size` and `shown`
) -> int | None:
    """The side of all pictures if they are squares of one size, else None

    Of each list a thousand, evenly spread, are looked at. Raises `InputError` if none of them can be decoded."""
    common, reason = None, ''
    for pictures in lists:
        for i in evenly_spread(len(pictures), 1000):
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
    sizes = [attempt(pictures.size, i)[0] for pictures in lists for i in evenly_spread(len(pictures), 100)]
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
