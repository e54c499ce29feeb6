"""Pictures that are arrays: those of data sets, NumPy's files, and what Pillow would cut down.

Docs: https://fastcontrast.github.io/fastcontrast/pictures.html.md"""
import logging
import math
import os
import re
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from .core import number_of
from .decoding import MEMORY, ORIENTATION, SMALL, decoding_memory
from .files import check_file, megabytes
from .values import Unfit, row_bands

ARRAY_SUFFIXES = '.npy', '.npz'
NAMES = 'image', 'img', 'picture', 'x', 'arr_0' # of the picture among several arrays of an .npz
KINDS = 'buif' # of numbers that are values of pixels: bool, integers, floats
_SAMPLES, _BITS, _KIND = 277, 258, 339 # tags of TIFF
_MISREAD = (8, 2), (32, 1) # bits and kinds (1: from 0 up, 2: with a sign) that Pillow takes for the other kind

def _unheard(record: logging.LogRecord) -> bool: return 'samples per pixel' not in str(record.msg).lower()


logging.getLogger('PIL.TiffImagePlugin').addFilter(_unheard)  # it tells of every TIFF that tifffile then reads

# --- what they are

@dataclass(frozen=True)
class Raster:
    "A picture that is an array, [H, W], or [H, W, C] or [C, H, W]; its values are read when they are needed"
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray] # gives the array
    first: bool = False   # where the first and the last axis could both be channels: are they the first?
    last: bool = False    # is it known that they are the last?
    alpha: bool = False   # is the last one of them transparency? Then they are
    multiplied: bool = False # are the others multiplied by it?
    held: bool = False    # is it in memory already?
    orientation: int = 1  # as EXIF counts
    beside: int = 0       # bytes that `load` takes beside the array

    @property
    def size(self) -> tuple[int, int]:
        "Width and height, pixels"
        if len(self.shape) == 2: return self.shape[1], self.shape[0]
        axis = -1 if self.last else channel_axis(self.shape, self.first) or (-3 if self.first else -1)
        height, width = self.shape[:-1] if axis == -1 else self.shape[1:]
        return width, height

    def count(self,
        channels: int | None, # that are wanted; None: as many as there are
    ) -> int:
        "How many channels there are"
        if len(self.shape) == 2: return 1
        return self.shape[-1 if self.alpha else self._axis(channels)]

    @property
    def deep(self) -> bool:
        "Has it more than 8 bits?"
        return self.dtype.kind not in 'b' and self.dtype != np.uint8
    @property
    def floats(self) -> bool: return self.dtype.kind == 'f'

    def on_white(self, channels: int | None) -> bool:
        "Does its last channel only say how much of the others is seen, where so many are wanted?"
        return self.alpha and channels in (1, 3)

    def _axis(self, channels: int | None) -> int:
        if self.last and (channels is None or do_for(self.shape[-1], channels)): return -1
        if self.last: raise Unfit(few(self.shape[-1], channels))
        axis = channel_axis(self.shape, self.first, channels)
        if axis is not None: return axis
        wanted = '' if channels is None else f", and pictures are to have {number_of(channels, 'channel')}"
        raise Unfit(f"is an array of the shape {list(self.shape)}{wanted}: say how many there are by channels "
                    "(--channels)")

    def read(self,
        channels: int | None, # that are wanted; None: as many as it has
    ) -> np.ndarray:          # [H, W, C]
        "The values. Raises `Unfit` where there are not so many channels, `ValueError` and `OSError`"
        flat = len(self.shape) == 2
        if flat and channels not in (None, 1, 3): raise Unfit(few(1, channels))
        axis = -1 if flat or self.on_white(channels) else self._axis(channels)
        x = self.load()
        if x.shape != self.shape or (x.dtype.kind, x.itemsize) != (self.dtype.kind, self.dtype.itemsize):
            raise ValueError("is not what its header says")
        if x.dtype.kind == 'b': x = x.astype(np.uint8) * 255
        if self.multiplied: x = _divided(x)
        return x[..., None] if flat else np.moveaxis(x, axis, -1)

    def colours(self, channels: int | None) -> np.ndarray:
        "What `read` gives without transparency, unless that is a channel like others"
        x = self.read(channels)
        return x[..., :-1] if self.on_white(channels) else x

    def memory(self) -> int:
        "Bytes that reading it takes, about; 0 for little. Raises `ValueError` for more than a process may have"
        width, height = self.size
        need = (13 if self.alpha and self.deep else 9) * width * height
        if self.held: return min(need, MEMORY.limit) if need > 4 * SMALL else 0
        need += math.prod(self.shape) * self.dtype.itemsize + self.beside
        if need > MEMORY.limit:
            raise ValueError(f"an array of the shape {list(self.shape)} takes {megabytes(need)} to read, and "
                             f"{megabytes(MEMORY.limit)} is the most: make it smaller")
        return need if need > 4 * SMALL else 0

    def __enter__(self) -> 'Raster': return self
    def __exit__(self, *error: Any) -> None: pass


def _divided(
    x: np.ndarray, # [H, W, C], colours that are multiplied by the transparency behind them
) -> np.ndarray:   # the same
    "Colours as they were; 0 where nothing is seen"
    x, whole = x.copy(), x.dtype.kind == 'u'
    for rows in row_bands(x):
        seen = rows[..., -1:].astype(np.float64) / (np.iinfo(x.dtype).max if whole else 1)
        colours = np.divide(rows[..., :-1], seen, out=np.zeros(rows[..., :-1].shape), where=seen > 0)
        rows[..., :-1] = np.rint(colours).clip(0, np.iinfo(x.dtype).max) if whole else colours
    return x


def orientation_of(
    picture: Image.Image,
) -> int: # as EXIF counts; 1: upright
    "How a picture lies; upright where what says so is damaged"
    try: return picture.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, struct.error): return 1  # Pillow's, and the picture is good


def oriented(
    picture: Image.Image,
    orientation: int, # as EXIF counts; 1: upright
) -> Image.Image:     # the same
    "Say how a picture lies"
    if orientation != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        picture.info['exif'] = exif.tobytes()
    return picture


def few(
    there: int,  # channels that a picture has
    wanted: int, # and is to have
) -> str:
    "What is said of the picture"
    are = 'is' if wanted == 1 else 'are'
    return f"has {number_of(there, 'channel')}, and {wanted} {are} wanted (channels, --channels)"


def do_for(
    there: int,  # channels that a picture has
    wanted: int, # and is to have
) -> bool:
    "Are they as many, or grey for colour, or colour for grey?"
    return there == wanted or {there, wanted} == {1, 3}


def channel_axis(
    shape: tuple[int, ...], # of a picture: [H, W], [H, W, C] or [C, H, W]
    first: bool,            # where both could be meant: are its channels the first axis?
    channels: int | None = None, # how many there are to be; None: 1 or 3, or what stands beside a square, or the least
) -> int | None:            # counted from the end; None: it has none, or no picture is like this
    "Where the channels of a picture are; 1 and 3 do for each other, as grey and colour"
    if len(shape) == 2: return -1
    if len(shape) != 3: return None
    order = (-3, -1) if first else (-1, -3)
    found = [axis for axis in order if do_for(shape[axis], channels or 3)]
    if found or channels is not None: return found[0] if found else None
    if shape[0] == shape[1] != shape[2]: return -1
    if shape[0] != shape[1] == shape[2]: return -3
    least = min(order, key=lambda axis: shape[axis])
    return least if shape[least] < sorted(shape)[1] else None


def as_raster(
    x: Any, # from a data set
) -> Raster | None: # None: it is no array of numbers
    "An array or tensor; in a tensor the channels are the first axis, if both could be meant"
    if isinstance(x, torch.Tensor):
        x = x.detach().as_subclass(torch.Tensor).cpu()
        array, first = (x.float() if x.dtype == torch.bfloat16 else x).numpy(), True
    elif isinstance(x, np.ndarray): array, first = x, False
    else: return None
    if array.ndim not in (2, 3) or not array.size: return None
    if array.dtype.kind not in KINDS: raise Unfit(f"holds {array.dtype}, which is no value of a pixel")
    return Raster(array.shape, array.dtype, lambda: array, first, held=True)

# --- NumPy's files

@contextmanager
def _opened(file: Any) -> Iterator[BinaryIO]:
    "A path or a binary file, from its beginning"
    if isinstance(file, (str, os.PathLike)):
        check_file(file)
        with open(file, 'rb') as content: yield content
    else:
        file.seek(0)
        yield file


def open_array(
    file: Any, # a path or a binary file
) -> Raster | None: # None: it is no file of NumPy's
    "An .npy, or the picture in an .npz, known by how they begin. Raises `ValueError` for what can't be used"
    with _opened(file) as content:
        beginning = content.read(6)
        if beginning == b'\x93NUMPY':
            length = content.seek(0, os.SEEK_END)
            content.seek(0)
            return _raster_of(content, length, partial(_opened, file))
        if beginning[:4] != b'PK\3\4': return None
        try: packed = zipfile.ZipFile(content)
        except (zipfile.BadZipFile, NotImplementedError): return None
        with packed:
            member = _picture_in(packed)
            if member is None: return None
            with packed.open(member) as inner:
                return _raster_of(inner, member.file_size, partial(_member, file, member.filename))


@contextmanager
def _member(file: Any, name: str) -> Iterator[BinaryIO]:
    "The opened member of an .npz"
    with _opened(file) as content, zipfile.ZipFile(content) as packed, packed.open(name) as inner: yield inner


def _picture_in(packed: zipfile.ZipFile) -> zipfile.ZipInfo | None:
    "The only array, or the one that has a picture's name; None: there is no array"
    arrays = {member.filename.removesuffix('.npy'): member for member in packed.infolist()
              if member.filename.endswith('.npy')}
    if not arrays: return None
    names = list(arrays)[:1] if len(arrays) == 1 else [name for name in NAMES if name in arrays]
    if not names:
        raise ValueError(f"holds the arrays {', '.join(list(arrays)[:5])}: call that of the picture '{NAMES[0]}'")
    member = arrays[names[0]]
    if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED): return member
    raise ValueError("is packed as NumPy does not")


def _raster_of(content: BinaryIO, length: int, opened: Callable[[], Any]) -> Raster:
    "An array by its header, which is believed only if the file is as long as it says"
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(content)
    if version not in read_header: raise ValueError(f"is in NumPy's format {version}, which no array of numbers needs")
    shape, by_column, dtype = read_header[version](content)
    if dtype.kind not in KINDS: raise ValueError(f"holds {dtype}, which is no value of a pixel")
    if len(shape) not in (2, 3) or min(shape) < 1: raise ValueError(f"has the shape {list(shape)}, and is no picture")
    start = content.tell()
    nbytes = math.prod(shape) * dtype.itemsize
    if start + nbytes != length:
        raise ValueError(f"has {length:,} bytes, and its header promises {start + nbytes:,}")
    return Raster(shape, dtype, partial(_read_array, opened, start, nbytes, shape, dtype, by_column))


def _read_array(opened: Callable[[], Any], start: int, nbytes: int, shape: tuple[int, ...], dtype: np.dtype,
                by_column: bool) -> np.ndarray:
    with opened() as content:
        content.seek(start)
        values = content.read(nbytes)
    if len(values) != nbytes: raise ValueError("has become shorter")
    return np.frombuffer(values, dtype).reshape(shape, order='F' if by_column else 'C')

# --- what Pillow cuts down

def whole_picture(
    picture: Image.Image, # that Pillow has opened
    file: Any,            # the path or binary file that it is in
    channels: int | None, # that are wanted; None: as many as there are
) -> Image.Image | Raster:
    """The same, unless Pillow would leave out half of its bits, or channels of it: then an array

    Raises `ValueError` where nothing reads the bits that Pillow leaves out."""
    if picture.format not in ('PNG', 'PPM', 'TIFF', 'JPEG2000') or not picture.tile: return picture
    if picture.format == 'PPM': return _open_ppm(picture, file)
    if picture.format == 'JPEG2000': return _open_jpeg2000(picture, file)
    bands = len(picture.getbands())
    if picture.format == 'PNG':
        mode = picture.tile[0].args
        return _open_png(picture, mode, file) if ';16' in mode and bands > 1 else picture
    samples, bits = picture.tag_v2.get(_SAMPLES, 1), max(picture.tag_v2.get(_BITS, (1,)))
    other = channels not in (None, 1, 3, bands) and (samples == channels or picture.n_frames > 1)
    other = other or channels in (None, 3) and bands == 1 and _has_pages(picture, 3)
    misread = bands == 1 and (bits, max(picture.tag_v2.get(_KIND, (1,)))) in _MISREAD
    deep = bits > 8 and bands > 1
    return open_tiff(file) if deep or misread or samples > max(4, bands) or other else picture


def _has_pages(
    picture: Image.Image, # a TIFF
    n: int,
) -> bool:
    "Are there so many pages? No more are looked for than would tell"
    if not picture.is_animated: return False
    pages = 1
    with suppress(EOFError):
        while pages <= n:
            picture.seek(pages)
            pages += 1
    picture.seek(0)
    return pages == n


def _open_png(picture: Image.Image, mode: str, file: Any) -> Raster:
    "A PNG of 16 bits and several channels"
    channels = {'LA': 2, 'RGB': 3, 'RGBA': 4}[mode.partition(';')[0]]
    shape = picture.height, picture.width, channels
    orientation = orientation_of(picture) if 'exif' in picture.info else 1
    return Raster(shape, np.dtype(np.uint16), partial(_read_png, file), last=True, alpha=channels != 3,
                  orientation=orientation)


def _read_png(file: Any) -> np.ndarray:
    high, mode = _unpacked(file, '16B')
    if mode == 'LA': high, low = high[..., ::2], high[..., 1::2]  # as long as four bytes
    else: low, _ = _unpacked(file, '16L')  # so that Pillow takes the lower byte of two for the higher one
    x = high.astype(np.uint16)
    x <<= 8
    x |= low
    return x


def _unpacked(file: Any, order: str) -> tuple[np.ndarray, str]:
    "The bytes of a PNG of 16 bits that Pillow keeps where it takes its pixels for another kind, and the real kind"
    with _opened(file) as content, Image.open(content, formats=('PNG',)) as picture:
        mode = picture.tile[0].args.partition(';')[0]
        kind = 'RGBA' if mode == 'LA' else f'{mode};{order}'
        picture._mode, picture.tile = kind.partition(';')[0], [picture.tile[0]._replace(args=kind)]
        return np.asarray(picture), mode


def _open_ppm(picture: Image.Image, file: Any) -> Image.Image | Raster:
    "A PGM or PPM whose largest value is told: Pillow stretches those of 9 to 15 bits, and has 8 of colours"
    codec, _, start, args = picture.tile[0]
    if codec not in ('ppm', 'ppm_plain') or isinstance(args, str) or args[-1] < 256: return picture
    shape, dtype = (picture.height, picture.width, *([] if args[0] == 'L' else [3])), np.dtype('>u2')
    count = math.prod(shape)
    if codec == 'ppm':
        read = partial(_read_array, partial(_opened, file), start, count * dtype.itemsize, shape, dtype, False)
        return Raster(shape, dtype, read, last=True)
    with _opened(file) as content: length = content.seek(0, os.SEEK_END) - start
    if length > 16 * count + 2**20: raise ValueError(f"has {length:,} bytes of text for {count:,} values")
    return Raster(shape, np.dtype(np.uint16), partial(_read_plain, file, start, length, shape, args[-1]), last=True,
                  beside=2 * length + 8 * count)


def _read_plain(file: Any, start: int, length: int, shape: tuple[int, ...], top: int) -> np.ndarray:
    "Values that are written as text, with comments"
    with _opened(file) as content:
        content.seek(start)
        text = re.sub(rb'#[^\r\n]*', b'', content.read(length))
    if re.search(rb'[^\d\s]', text): raise ValueError("holds something else than numbers")
    values = np.fromstring(text, np.int64, sep=' ')[:math.prod(shape)]
    if len(values) < math.prod(shape): raise ValueError(f"has {len(values):,} values, and its header promises more")
    if values.max() > top: raise ValueError(f"has the value {values.max():,}, and its header promises {top:,} at most")
    return values.astype(np.uint16).reshape(shape)


def _open_jpeg2000(picture: Image.Image, file: Any) -> Image.Image | Raster:
    "A JPEG 2000: Pillow stretches grey of less than 16 bits to 16, and has 8 of colours"
    depths = _jpeg2000_depths(file)
    bits = max((bits for bits, _ in depths), default=8)
    if bits <= 8: return picture
    readable = 16 if picture.mode == 'I;16' else 8
    if bits > readable:
        raise ValueError(f"is a JPEG 2000 of {bits} bits, of which {readable} would be read: save it as TIFF or PNG")
    signed = depths[0][1]
    if bits == 16 and not signed: return picture
    dtype = np.dtype(np.int32 if signed else np.uint16)
    return Raster((picture.height, picture.width), dtype, partial(_read_jpeg2000, file, bits, dtype), last=True,
                  beside=decoding_memory(picture))


def _read_jpeg2000(file: Any, bits: int, dtype: np.dtype) -> np.ndarray:
    "Values as they are, of what Pillow stretches and, if they have a sign, begins at 0"
    with _opened(file) as content, Image.open(content, formats=('JPEG2000',)) as picture: x = np.asarray(picture)
    x = (x >> (16 - bits)).astype(dtype)
    return x - 2**(bits - 1) if dtype.kind == 'i' else x


def _jpeg2000_depths(file: Any) -> list[tuple[int, bool]]:
    "The bits of every channel of a JPEG 2000, and whether it has a sign; nothing where that isn't found"
    with _opened(file) as content, suppress(struct.error, OSError, OverflowError):
        beginning = content.read(4)
        content.seek(0)
        if beginning != b'\xff\x4f\xff\x51' and not _seek_codestream(content): return []
        _, _, channels = struct.unpack('>4sH34xH', content.read(42))
        depths = struct.unpack('BBB' * channels, content.read(3 * channels))[::3]
        return [((depth & 0x7f) + 1, depth > 0x7f) for depth in depths]
    return []


def _seek_codestream(content: BinaryIO) -> bool:
    "Go to the pixels of a JP2 file; False: it has none among its first boxes"
    for _ in range(1000):
        length, kind = struct.unpack('>I4s', content.read(8))
        if length == 1: length = struct.unpack('>Q', content.read(8))[0] - 8
        if kind == b'jp2c': return True
        if length < 8: return False  # the last one
        content.seek(length - 8, os.SEEK_CUR)
    return False


_here = threading.local()
logging.getLogger('tifffile').addFilter(lambda record: not getattr(_here, 'quiet', False))


@contextmanager
def _quietly() -> Iterator[None]:
    "In this thread tifffile does not tell of what is wrong with a file: an error says so, and shows its name escaped"
    _here.quiet = True
    try: yield
    finally: _here.quiet = False


def is_tiff(
    file: Any, # a path or a binary file
) -> bool:
    with _opened(file) as content: return content.read(4) in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def open_tiff(
    file: Any, # a path or a binary file
) -> Raster:
    "A TIFF of several channels of more than 8 bits, or of many. Raises `ValueError`"
    try: import tifffile
    except ImportError:
        raise ValueError("a TIFF like this is read with the tifffile library, which is not installed: run "
                         "pip install 'fastcontrast[tiff]'") from None
    with _quietly(), _opened(file) as content, tifffile.TiffFile(content) as tiff:
        if not tiff.series: raise ValueError("holds no picture")
        series, page = tiff.series[0], tiff.series[0].keyframe
        shape, axes = zip(*[(n, axis) for n, axis in zip(series.shape, series.axes) if n > 1 or axis in 'YX'])
        if len(shape) not in (2, 3) or series.dtype.kind not in KINDS:
            raise ValueError(f"has the shape {list(series.shape)}, and is no picture")
        if math.prod(page.chunks) * series.dtype.itemsize > MEMORY.limit:
            raise ValueError("has parts that are too large")
        extra = [int(kind) for kind in page.extrasamples]
        orientation = page.tags.valueof(ORIENTATION, 1)
    channel = [i - len(shape) for i, axis in enumerate(axes) if axis not in 'YX']
    whole = tuple(n for n, axis in zip(shape, axes) if axis in 'YX') + tuple(shape[k] for k in channel)
    alpha = bool(channel) and whole[-1] in (2, 4) and extra in ([1], [2]) and series.dtype.kind in 'uf'
    return Raster(whole, np.dtype(series.dtype), partial(_read_tiff, file, shape, channel), last=True, alpha=alpha,
                  multiplied=alpha and extra == [1], orientation=int(orientation))


def _read_tiff(file: Any, shape: tuple[int, ...], channel: list[int]) -> np.ndarray:
    import tifffile
    with _quietly(), _opened(file) as content, tifffile.TiffFile(content) as tiff:
        x = tiff.series[0].asarray(maxworkers=1).reshape(shape)
    return np.moveaxis(x, channel[0], -1) if channel else x

