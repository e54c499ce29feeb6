"""What decoding a picture takes, told from its header, and how much the threads of a process decode at a time.

Docs: https://fastcontrast.github.io/fastcontrast/pictures.html.md"""
import ctypes
import io
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from PIL import Image, ImageFile

from .files import megabytes

SMALL = 2**20 # pixels up to which a picture is decoded without asking
LARGE = 2**24 # bytes from which on freed memory goes back to the system at once
ICON = 2**22  # pixels of a picture in an icon, at most; systems show 2**20

# --- at a time

class Memory:
    """Bytes that several threads share: each takes what it needs, and waits until there is so much

    Who comes first is served first, so that a large need is not passed over for ever."""
    def __init__(self,
        limit: int, # bytes; may be set to another number
    ):
        self.limit = limit
        self._reset()
        # a fork may come while a thread, which the child has not got, holds some of it
        if hasattr(os, 'register_at_fork'): os.register_at_fork(after_in_child=self._reset)

    def _reset(self):
        self.used, self._waiting, self._change = 0, deque(), threading.Condition()

    @contextmanager
    def taken(self,
        need: int, # bytes; more than the limit waits until nobody else has any
    ) -> Iterator[None]:
        "Have so many bytes within the block"
        self._wait_for(need)
        try: yield
        finally:
            if need > LARGE: _give_back()
            with self._change:
                self.used -= need
                self._change.notify_all()

    def _wait_for(self, need: int) -> None:
        ticket = object()
        with self._change:
            self._waiting.append(ticket)
            def is_served(): return self._waiting[0] is ticket and (not self.used or self.used + need <= self.limit)
            try:
                self._change.wait_for(is_served)
                self.used += need
            finally:  # also where it is interrupted
                self._waiting.remove(ticket)
                self._change.notify_all()


def _give_back() -> None:
    "Have the system get what was freed: the C library keeps some of it for each thread"
    if _TRIM is not None: _TRIM(0)


try: _TRIM: Any = ctypes.CDLL(None).malloc_trim
except (OSError, AttributeError, TypeError): _TRIM = None  # not glibc

MEMORY = Memory(400 * 2**20) # what the pictures that are being decoded take in a process, and what one may take

# --- one picture

_STORED = {'1': 1, 'L': 1, 'P': 1, 'I;16': 2, 'I;16L': 2, 'I;16B': 2, 'I;16N': 2} # bytes a pixel in Pillow; others: 4
# bytes a pixel that decoders take beside: canvases, copies that are handed over, planes of 16 or 32 bits
_BESIDE = {'WEBP': 14, 'AVIF': 12, 'jpeg2k': 17}
_IN_PYTHON = 8 # …of those that are written in Python
_JPEGS = ('JPEG', 'MPO')
ORIENTATION = 274 # a tag of EXIF and of TIFF
_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH = 278, 322, 323 # TIFF's


def decoding_memory(
    picture: Image.Image, # not decoded yet, or already: then it takes nothing more
) -> int:                 # bytes, about; 0 for a small one
    "What decoding a picture takes. Raises `ValueError` for one that would take more than a process may"
    if not isinstance(picture, ImageFile.ImageFile) or picture.fp is None: return 0
    width, height = picture.size
    scale = picture.decoderconfig[0] if picture.decoderconfig and picture.format in _JPEGS else 1  # by `draft`
    if width * height * scale**2 <= SMALL and picture.format != 'TIFF': return 0
    need = _needed(picture, width * height, scale)
    if need > MEMORY.limit:
        raise ValueError(f"{width * scale:,} x {height * scale:,} pixels take {megabytes(need)} to decode, "
                         f"and {megabytes(MEMORY.limit)} is the most: make it smaller")
    return need if need > 4 * SMALL else 0


def _needed(picture: ImageFile.ImageFile, pixels: int, scale: int) -> int:
    "Bytes for a picture of so many pixels, which are 1 / `scale` ** 2 of the file's"
    stored = pixels * _STORED.get(picture.mode, 4)
    if picture.format in _JPEGS: return stored + _coefficients(picture, pixels * scale**2)
    codec = picture.tile[0][0] if picture.tile else ''
    if codec == 'fits_gzip': raise ValueError("FITS that is packed with gzip is not read")  # its size is nowhere told
    beside = _BESIDE.get(picture.format) or _BESIDE.get(codec) or (_IN_PYTHON if codec in Image.DECODERS else 0)
    turned = picture.format == 'TIFF' and picture.tag_v2.get(ORIENTATION, 1) != 1  # Pillow makes another one
    rows = 16 * picture.width  # two, of at most 64 bits a pixel
    return stored * (1 + turned) + pixels * beside + rows + (8 * _piece(picture) if codec == 'libtiff' else 0)


def _piece(picture: ImageFile.ImageFile) -> int:
    "Pixels of a TIFF that are unpacked at a time: a strip, or a tile, which may be larger than the picture"
    tags, (width, height) = picture.tag_v2, picture.size
    if _TILE_WIDTH in tags: return tags[_TILE_WIDTH] * tags.get(_TILE_LENGTH, height)
    return width * min(height, tags.get(_ROWS_PER_STRIP, height))


def _coefficients(picture: ImageFile.ImageFile, pixels: int) -> int:
    "Bytes of what a JPEG's decoder keeps of all of it: nothing if one scan has everything, else two a sample"
    samples = [across * down for _, across, down, _ in picture.layer]
    if 'progressive' not in picture.info and _first_scan(picture.fp) == len(samples): return 0
    most = max(across for _, across, _, _ in picture.layer) * max(down for _, _, down, _ in picture.layer)
    return 2 * pixels * sum(samples) // max(most, 1)


def _first_scan(file: BinaryIO) -> int:
    "How many components the first scan of a JPEG has; 0 where that can't be told"
    file.seek(2)
    marker = file.read(2)
    while len(marker) == 2 and marker[0] == 0xff:
        if marker[1] == 0xff: marker = marker[1:] + file.read(1)  # a fill byte
        elif 0xd0 <= marker[1] <= 0xd8 or marker[1] == 1: marker = file.read(2)  # alone
        else:
            length = int.from_bytes(file.read(2), 'big')
            if marker[1] == 0xda: return file.read(1)[0] if length > 2 else 0
            file.seek(max(length - 2, 0), os.SEEK_CUR)
            marker = file.read(2)
    return 0

# --- pictures in others

def check_icon(
    file: BinaryIO, # at any place
) -> None:
    "Raise `ValueError` for an icon whose picture is larger than icons are: Pillow decodes it when it opens the file"
    file.seek(0)
    kind = file.read(4)
    inner = {b'\0\0\1\0': _in_ico, b'icns': _in_icns}.get(kind)
    if inner is None: return
    file.seek(0)
    try: sizes = inner(file)
    except Exception: return  # Pillow reads it by the same functions, and says what is wrong
    for width, height in sizes:
        if width * height > ICON: raise ValueError(f"an icon of {width:,} x {height:,} pixels is none: save it as PNG")


def _in_ico(file: BinaryIO) -> list[tuple[int, int]]:
    "The size of the picture that Pillow takes out of an icon"
    from PIL.BmpImagePlugin import DibImageFile
    from PIL.IcoImagePlugin import IcoFile
    from PIL.PngImagePlugin import PngImageFile
    start = IcoFile(file).entry[0].offset
    file.seek(start)
    png = file.read(8) == b'\x89PNG\r\n\x1a\n'
    file.seek(start)
    return [(PngImageFile if png else DibImageFile)(file).size]


def _in_icns(file: BinaryIO) -> list[tuple[int, int]]:
    "The sizes of the pictures among which Pillow takes one out of an icon"
    from PIL.IcnsImagePlugin import IcnsFile
    icon, sizes = IcnsFile(file), []
    for code, _ in icon.SIZES[icon.bestsize()]:
        start, length = icon.dct.get(code, (0, 0))
        file.seek(start)
        sizes += _size_of(file.read(length))
    return sizes


def _size_of(content: bytes) -> list[tuple[int, int]]:
    "The size of a PNG or JPEG 2000; nothing for what is none"
    try: return [Image.open(io.BytesIO(content), formats=('PNG', 'JPEG2000')).size]
    except Exception: return []
