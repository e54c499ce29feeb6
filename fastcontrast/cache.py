"""Pictures decoded and resized once, into a file that memory is mapped onto.

Docs: https://fastcontrast.github.io/fastcontrast/cache.html.md"""
import contextlib
import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch.utils.data import DataLoader, Dataset

from .core import InputError, NoSpace, shown
from .files import FULL, NotAFile, check_file, check_utf8, megabytes, user_path
from .formats import PixelFormat
from .pictures import Files, attempt, by_reason, check_decoded, progress

FORMAT = 'fastcontrast pictures 1' # another one whenever the same files would be decoded to other bytes
HEADER = 4096                      # bytes before the first picture, so that their places are known before anything else
OUTSIDE = 'outside'                # of the header: how many pictures have values outside of the range, and are clipped
BEHIND = 8                         # chunks after which the disk is asked to write them, if it is not still writing
T = TypeVar('T')
_NO_STORE = "is truncated, or no store of pictures"


def store_path(
    cache: bool | str | Path, # True: a folder beside the pictures, 'NAME.cache'; or the folder for the store
    root: str | Path,         # the folder of pictures
    split: str,               # which of its pictures: 'all', 'train' or 'valid'
    side: int,                # of the stored pictures, pixels
    label: str = '',          # what else is unusual in them, see `PixelFormat`
) -> Path:                    # the store's file
    "Where the store of a folder of pictures lies"
    root = Path(os.path.abspath(Path(root).expanduser()))
    folder, name = root.with_name(f'{root.name}.cache'), root.name
    if cache is not True:  # where those of other folders may lie, too, and many are called train
        folder = user_path(cache, 'cache')
        name += f'-{hashlib.blake2b(os.fsencode(root), digest_size=4).hexdigest()}'
    return folder/f'{name}-{split}-{side}px{label}.safetensors'


def open_store(
    pictures: Files,      # a folder's
    form: PixelFormat,    # of the stored pictures
    path: Path,           # the store's file, see `store_path`
    workers: int,         # processes that decode; 0: this one
    strict: bool = False, # is a picture that cannot be decoded an error?
) -> tuple[torch.Tensor, dict[int, str]]: # [N, *form.shape], mapped onto the file; failed pictures, and why
    "The store of these pictures, built if there is none that is whole and of now. Raises `InputError`"
    check_utf8(path, 'cache')
    store = _Store(pictures, form, path, dict(format=FORMAT, digest=pictures.digest(), side=str(form.side),
                                              **form.described()))
    content, _ = store.read()
    now = {} if content is None else store.tried_again(content[1])
    if content is None or '' in now.values():
        try: content = store.renewed(workers, strict, now)
        except InputError as e:
            if content is None or strict: raise
            now = {i: reason or f"it can be decoded now, but {e}".rstrip('.') for i, reason in now.items()}
    pixels, failed, outside = content
    failed = {i: now.get(i) or reason for i, reason in failed.items()}
    if store.count is not None: store.count.add_(outside)
    check_decoded(store.named(failed), strict)
    return pixels, failed


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is in here for the same path

    A lock, and no barrier between ranks: the system lets go of a lock when its process dies, and so each machine's own
    disk gets a store."""
    lock = FileLock(path.with_name(f'.{path.name}.lock'))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try: lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for the process that builds '{shown(path)}'", file=sys.stderr)
            lock.acquire()
    except (OSError, NotImplementedError) as e:
        raise _unwritable(path, getattr(e, 'strerror', None) or str(e)) from None
    try: yield
    finally: lock.release()


def _unwritable(path: Path, reason: str | None) -> InputError:
    kind = NoSpace if reason in map(os.strerror, FULL) else InputError
    return kind(f"the cache '{path}' cannot be written ({reason}): give cache (--cache-folder) a folder that can")


class _Chunks(Dataset):
    "What the worker processes run: chunk `k` of some pictures is decoded and written to the file"
    size = 32  # pictures
    def __init__(self,
        pictures: Files,
        which: Sequence[int], # of the pictures
        form: PixelFormat,
        path: Path,
    ):
        self.pictures, self.which, self.form, self.path = pictures, which, form, path
        self.rows: np.ndarray | None = None  # the chunk, in memory that each worker takes once

    def __len__(self): return -(-len(self.which) // self.size)

    def __getitem__(self, k: int) -> tuple[dict[int, str], str]:
        "The pictures that could not be decoded, and the error that kept the chunk from being written, or ''"
        indices = self.which[k * self.size:(k + 1) * self.size]
        if self.rows is None: self.rows = np.empty((self.size, *self.form.shape), dtype=self.form.array_type)
        rows, failed = self.rows[:len(indices)], {}
        for row, i in zip(rows, indices, strict=True):
            pixels, reason = attempt(self.pictures.pixels, i, self.form)
            row[:] = 0 if pixels is None else pixels
            if pixels is None: failed[i] = reason
        try:
            # a disk that is full answers this with an error, and writing to a mapping by killing the process
            with open(self.path, 'r+b') as file:
                for i, row in zip(indices, rows, strict=True):
                    file.seek(HEADER + i * self.form.nbytes)
                    file.write(row)
        except OSError as e: return failed, e.strerror
        return failed, ''


def _written_behind(
    file: Path,        # that is being filled
    steps: Iterable[T],
) -> Iterator[T]:
    """The steps; while they go on, the disk is made to write what is in the file so far, some steps at a time

    Else all of it waits for the end, when nothing else is left to do."""
    with file.open('r+b') as out, ThreadPoolExecutor(1) as disk:
        writing = None
        for number, step in enumerate(steps, 1):
            yield step
            if number % BEHIND or writing and not writing.done(): continue
            if writing: writing.result()  # the error of a disk, which it tells once
            writing = disk.submit(os.fsync, out.fileno())
        if writing: writing.result()


@dataclass
class _Store:
    "One file of decoded pictures, there or to be built"
    pictures: Files
    form: PixelFormat        # of the stored pictures
    path: Path
    metadata: dict[str, str] # what the file says of itself if it is of these pictures as they are now

    @property
    def shape(self) -> tuple[int, ...]: return len(self.pictures), *self.form.shape
    @property
    def end(self) -> int: return HEADER + len(self.pictures) * self.form.nbytes # bytes before what failed

    def named(self, failed: dict[int, str]) -> dict[str, str]:
        "Failures by what messages call the pictures"
        return {self.pictures.shown(i): reason for i, reason in failed.items()}

    @property
    def count(self) -> torch.Tensor | None:
        "Where pictures are counted that have values outside of the range; None: it was given, and nobody counts"
        return self.form.span and self.form.span.outside

    def read(self) -> tuple[tuple[torch.Tensor, dict[int, str], int] | None, str]:
        """What a store holds that is whole and of these pictures: pixels, failures, and how many pictures were clipped;
        or None and its fault ('': there is none)"""
        try:
            check_file(self.path)
            with safe_open(self.path, 'np') as file:  # which looks whether everything that the header promises is there
                metadata = file.metadata() or {}
                if metadata.get('format') != FORMAT: return None, "was written by another program or version"
                outside = int(metadata.pop(OUTSIDE, 0))  # stores of before don't say it
                if metadata != self.metadata: return None, "is of other pictures, or these have changed since"
                if not 0 <= outside <= len(self.pictures): return None, _NO_STORE
                if not self._is_shaped(file): return None, _NO_STORE
                failed = self._failures(file.get_tensor('failed').tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # nobody may write to it: that is meant
                pixels = torch.from_numpy(np.memmap(self.path, self.form.array_type, 'r', HEADER, self.shape))
            return (pixels, failed, outside), ''
        except (FileNotFoundError, NotADirectoryError): return None, ''
        except NotAFile: return None, _NO_STORE
        except OSError as e:  # the system's: the store may be a good one
            raise InputError(f"the cache '{self.path}' can't be read: {e.strerror or e}.") from None
        # the values are those of a header that promises something else
        except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError): return None, _NO_STORE

    def _is_shaped(self, file: Any) -> bool:
        "Do the header's tensors have the shapes, types and places that `_header` gives them?"
        if set(file.keys()) != {'pixels', 'failed'}: return False
        pixels, failed = file.get_slice('pixels'), file.get_slice('failed')
        with open(self.path, 'rb') as start: length = int.from_bytes(start.read(8), 'little')
        return (pixels.get_shape() == list(self.shape) and len(failed.get_shape()) == 1 and length == HEADER - 8
                and pixels.get_dtype() == f'U{self.form.bits}' and failed.get_dtype() == 'U8'
                and self.path.stat().st_size == self.end + failed.get_shape()[0])

    def _failures(self, content: bytes) -> dict[int, str]:
        "What the tail says could not be decoded, and why. Raises `ValueError` for anything else"
        failed = {int(i): str(reason) for i, reason in json.loads(content).items()}
        if any(not 0 <= i < len(self.pictures) for i in failed): raise ValueError
        return failed

    @property
    def _counted(self) -> int: return 0 if self.count is None else self.count.item()

    def _uncount(self, before: int) -> int:
        "How many pictures were counted since then; they are no longer, as whoever reads the store counts them"
        more = self._counted - before
        if more: self.count.fill_(before)
        return more

    def tried_again(self,
        failed: dict[int, str],
    ) -> dict[int, str]: # '': it can be decoded
        "Why pictures can't be decoded now that couldn't be before: it may have been for want of memory, or a right"
        before = self._counted
        tried = progress(list(failed), "trying again what could not be decoded")
        reasons = {i: attempt(self.pictures.pixels, i, self.form)[1] for i in tried}
        self._uncount(before)
        return reasons

    def renewed(self,
        workers: int, # processes that decode; 0: this one
        strict: bool, # is a picture that cannot be decoded an error?
        now: dict[int, str], # from `tried_again`
    ) -> tuple[torch.Tensor, dict[int, str], int]:
        "What `read` gives once the store is built, or has the pictures that can be decoded now; raises `InputError`"
        with _alone(self.path):
            content, fault = self.read()  # somebody else may have been faster
            if content is None: self.build(workers, strict, fault)
            else: self._mend(content[1], content[2], [i for i in content[1] if now.get(i) == ''], workers, strict)
            content, fault = self.read()
        if content is None: raise InputError(f"the cache '{self.path}' {fault or 'was removed'} once it was built.")
        return content

    def _mend(self,
        failed: dict[int, str], # of the file that is there
        outside: int,     # how many of its pictures were clipped
        which: list[int], # of those that failed, to be decoded into their places
        workers: int,
        strict: bool,
    ):
        "Write pictures to places of the file that nobody looks at, and only then that they are there"
        if not which: return
        print(f"the cache '{shown(self.path)}' gets {len(which):,} of the pictures that could not be decoded before",
              file=sys.stderr)
        try:
            broken, more = self._decode(self.path, which, workers, strict)
            there = {*which} - {*broken}
            self._finish(self.path, {i: reason for i, reason in failed.items() if i not in there}, outside + more)
        except OSError as e: raise _unwritable(self.path, e.strerror) from None

    def build(self,
        workers: int, # processes that decode; 0: this one
        strict: bool, # is a picture that cannot be decoded an error?
        fault: str,   # why the store that is there will not do; '': there is none
    ):
        "Decode all pictures into a hidden file, and give it the store's name once it is whole"
        partial = self.path.with_name(f'.{self.path.name}.partial')
        try:
            for old in (partial, self.path): old.unlink(missing_ok=True)
            self._check_space()
            partial.touch()
            self._announce(fault)
            self._finish(partial, *self._decode(partial, range(len(self.pictures)), workers, strict))
            os.replace(partial, self.path)
        except OSError as e: raise _unwritable(self.path, e.strerror) from None
        finally:
            with contextlib.suppress(OSError): partial.unlink(missing_ok=True)

    def _check_space(self):
        free = shutil.disk_usage(self.path.parent).free
        if self.end <= free: return
        raise NoSpace(f"the cache '{self.path}' of {len(self.pictures):,} pictures takes {megabytes(self.end)} "
                      f"and its disk has {megabytes(free)} left: give cache (--cache-folder) a folder on another "
                      "disk, or a smaller size")

    def _announce(self, fault: str):
        path = shown(self.path)
        again = f"the cache '{path}' {fault}, it is built again: " if fault else ''
        where = '' if fault else f" into '{path}'"
        print(f"{again}decoding {len(self.pictures):,} pictures at {self.form.side} px{where} ({megabytes(self.end)})",
              file=sys.stderr)

    def _decode(self,
        file: Path,
        which: Sequence[int], # of the pictures
        workers: int,
        strict: bool,
    ) -> tuple[dict[int, str], int]:
        "Write the pixels of pictures; those that could not be decoded, and why, and how many others were clipped"
        failed: dict[int, str] = {}
        before = self._counted
        # the generator: the loader draws a number from one, and were it everybody's, a run would depend on who built
        chunks = _Chunks(self.pictures, which, self.form, file)
        workers = min(workers, len(chunks)) if len(chunks) > 1 else 0
        chunks = DataLoader(chunks, batch_size=None, num_workers=workers, generator=torch.Generator())
        with contextlib.closing(_written_behind(file, progress(chunks, "decoding"))) as written:
            for broken, error in written:
                if error: raise _unwritable(self.path, error)
                failed.update(broken)
                check_decoded(self.named(broken), strict)
        if len(failed) < len(self.pictures): return failed, self._uncount(before)
        raise InputError(f"no picture could be decoded: {by_reason(self.named(failed).items())}")

    def _finish(self, file: Path, failed: dict[int, str], outside: int):
        "Write the header and the failures, and see that all of it is on the disk"
        with file.open('r+b') as out:
            os.fsync(out.fileno())  # after a cut of the power no picture is believed to be there that is not
            tail = json.dumps(failed).encode().ljust(os.fstat(out.fileno()).st_size - self.end)  # it may become shorter
            out.write(self._header(len(tail), outside))
            out.seek(self.end)
            out.write(tail)
            out.flush()
            os.fsync(out.fileno())

    def _header(self, tail: int, outside: int) -> bytes:
        "The first page of a safetensors file with the tensors `pixels` and `failed`, the latter of `tail` bytes"
        size = self.end - HEADER
        metadata = self.metadata | ({OUTSIDE: str(outside)} if outside else {})
        head = json.dumps(dict(__metadata__=metadata,
                               pixels=dict(dtype=f'U{self.form.bits}', shape=self.shape, data_offsets=[0, size]),
                               failed=dict(dtype='U8', shape=[tail], data_offsets=[size, size + tail]))).encode()
        return (HEADER - 8).to_bytes(8, 'little') + head.ljust(HEADER - 8)
