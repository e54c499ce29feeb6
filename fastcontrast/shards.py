"""Tar files of pictures, streamed: data that no listing of a folder can hold.

Docs: https://fastcontrast.github.io/fastcontrast/shards.html.md"""
import functools
import io
import json
import os
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from .arrays import ARRAY_SUFFIXES, Raster
from .core import InputError, MissingPath, clipped, is_whole, shown
from .files import check_file, megabytes, read_json, user_path, write_whole
from .formats import PixelFormat
from .pictures import TRIES, attempt, by_reason, decoded, open_picture, picture_suffixes, progress

T = TypeVar('T')
MARK = 64 # pictures between two places at which reading a shard may begin
PICTURE = 2**28 # bytes of a picture's file in a shard, at most: it is read whole
LABEL = 100     # bytes of a label, at most
EXTRA = 2**20   # bytes of a name or of other fields of a header, at most
CLASSES = 2**20 # for which there are names, at least; for more if there are more pictures
INDEX = 'fastcontrast-shards.json'

# --- which files

def _webdataset():
    "The library, which is an extra"
    try:
        import webdataset.filters
        import webdataset.shardlists
        import webdataset.tariterators
    except ImportError:
        raise InputError("shards are read with the webdataset library, which is not installed: "
                         "run pip install 'fastcontrast[webdataset]'") from None
    return webdataset


def shard_paths(
    source: Any, # 'shards/{000..146}.tar', a .tar file, a list of such, or a folder of .tar files
) -> list[Path] | None: # None: it names no shards
    "The shards that a source names. Raises `InputError` (`MissingPath`) for those that are not there"
    if isinstance(source, (list, tuple)) and source and all(isinstance(s, (str, Path)) for s in source):
        return _listed(source)
    if not isinstance(source, (str, Path)): return None
    pattern = os.fspath(source)
    # what begins with a dot is a system's, as macOS writes beside files
    if not pattern.endswith('.tar'): return sorted(user_path(pattern, 'source').glob('[!.]*.tar')) or None
    return _expanded(pattern)


def _listed(sources: Sequence[str | Path]) -> list[Path]:
    "The shards of a list"
    named = [shard_paths(s) for s in sources]
    if None in named:
        raise InputError(f"'{sources[named.index(None)]}' in the list of shards is no .tar file, nor a folder of them")
    return [path for paths in named for path in paths]


def _expanded(pattern: str) -> list[Path]:
    "The shards that a name with braces stands for"
    if re.match(r'\w\w+:', pattern):
        raise InputError(f"shards are read from files, and '{pattern}' is an address: download or mount them")
    try: paths = [Path(name).expanduser() for name in _webdataset().shardlists.expand_urls(pattern)]
    except ValueError as e:
        raise InputError(f"the braces in '{pattern}' cannot be read ({e}): "
                         "write them like shards/{000..146}.tar") from None
    missing = [path for path in paths if not path.is_file()]
    if not missing: return paths
    more = f", nor {len(missing) - 1:,} others of {len(paths):,}" if missing[1:] else ''
    raise MissingPath(f"there is no shard '{missing[0]}'{more}")

# --- what is in them

@dataclass
class Shard:
    "A tar file of pictures"
    size: int         # bytes
    mtime: int        # ns
    count: int        # pictures
    marks: list[int]  # bytes before the first, 65th, 129th, … of them
    y: list[int]      # [count], their classes, -1 where there is none; [] if none has one

    def is_plausible(self) -> bool:
        "Could a tar file be like this? What an index says is not believed without"
        numbers = [self.size, self.mtime, self.count, *self.marks, *self.y]
        if not all(map(is_whole, numbers)) or not 0 < self.count <= self.size // tarfile.BLOCKSIZE: return False
        if len(self.marks) != -(-self.count // MARK) or len(self.y) not in (0, self.count): return False
        places = [-1, *self.marks, self.size]
        return all(a < b for a, b in zip(places, places[1:])) and min(self.y, default=-1) >= -1


class _Member(tarfile.TarInfo):
    "The header of a file in a shard, believed within bounds"
    _EXTRA = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
              tarfile.GNUTYPE_LONGLINK)

    def _proc_member(self, tar):
        "tarfile's, for subclasses to extend; before it reads what a header says"
        if self.size < 0: raise tarfile.ReadError(f"the size of {shown(self.name)} is {self.size}")
        if self.type in self._EXTRA and self.size > EXTRA:
            raise tarfile.ReadError(f"a name in it takes {megabytes(self.size)}")
        return super()._proc_member(tar)


@functools.cache
def _picture_kinds() -> frozenset[str]:
    "The suffixes of pictures, without the dot"
    return frozenset(suffix.removeprefix('.') for suffix in picture_suffixes())


_ARRAY_KINDS = frozenset(suffix.removeprefix('.') for suffix in ARRAY_SUFFIXES)


def _kind(name: str) -> str:
    "The suffix of a member of a tar file, as WebDataset has it"
    return os.path.basename(name).partition('.')[2].lower()


def _wanted(name: str) -> bool:
    "Is a member of a tar file a picture or a label?"
    kind = _kind(name)
    return not name.startswith('__') and (kind == 'cls' or kind in _picture_kinds() or kind in _ARRAY_KINDS)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    "The pictures and labels in a tar file. Raises `ValueError` for one that is not to be read into memory"
    for member in tar:
        tar.members = []  # else it keeps them all
        if not member.isreg() or not _wanted(member.name): continue
        if member.size > PICTURE and _kind(member.name) in _ARRAY_KINDS: continue
        most = LABEL if member.name.lower().endswith('.cls') else PICTURE
        if member.issparse(): raise ValueError(f"{shown(member.name)} is a sparse file")
        if member.size > most:
            raise ValueError(f"{shown(member.name)} has {member.size:,} bytes, and {most:,} is the most")
        yield member


def _picture(sample: dict[str, Any]) -> Any:
    "The picture of a sample, an array only where there is no other; None: it has none"
    kinds = (_picture_kinds(), _ARRAY_KINDS)
    return next((value for known in kinds for kind, value in sample.items() if kind in known), None)


def _begin(sample: dict[str, Any]) -> int:
    "Bytes before the first member of a sample"
    return min(member.offset for member in sample.values() if isinstance(member, tarfile.TarInfo))


def _class(tar: tarfile.TarFile, sample: dict[str, Any]) -> int:
    "The class of a sample, -1 if it has none. Raises `ValueError`"
    if 'cls' not in sample: return -1
    content = tar.extractfile(sample['cls']).read()
    try: c = int(content)
    except ValueError:
        raise ValueError(f"the class of {shown(sample['__key__'])} is '{clipped(content.decode(errors='replace'))}', "
                         "and classes are whole numbers") from None
    if c < -1: raise ValueError(f"the class of {shown(sample['__key__'])} is {c}, which is below 0")
    return c


def _look_into(path: str) -> Shard:
    "Read the headers of a shard. Raises `InputError` naming it"
    group = _webdataset().tariterators.group_by_keys
    stat = check_file(path)
    marks, y = [], []
    name = f"the shard '{shown(path)}'"
    try:
        with tarfile.open(path, 'r:', tarinfo=_Member) as tar:
            members = (dict(fname=m.name, data=m, __url__=path) for m in _members(tar))
            for sample in group(members):
                if _picture(sample) is None: continue
                if len(y) % MARK == 0: marks.append(_begin(sample))
                y.append(_class(tar, sample))
            tar.fileobj.seek(tar.offset)
            complete = tar.fileobj.read(512) == bytes(512)  # every tar file that was finished ends in zeros
    except tarfile.TarError as e: raise InputError(f"{name} is truncated, or no plain tar file ({e})") from None
    except RecursionError: raise InputError(f"{name} is no plain tar file (headers in headers)") from None
    except ValueError as e: raise InputError(f"{name} cannot be used: {shown(e.args[0])}") from None
    if not complete: raise InputError(f"{name} is truncated: it breaks off after {len(y):,} pictures")
    if not y: raise InputError(f"{name} holds no pictures")
    return Shard(stat.st_size, stat.st_mtime_ns, len(y), marks, y if max(y) >= 0 else [])


class _Headers(Dataset):
    "What the worker processes run: a shard, or the sentence why it cannot be used"
    def __init__(self, paths: list[Path]): self.paths = paths
    def __len__(self): return len(self.paths)
    def __getitem__(self, k: int) -> Shard | str:
        try: return _look_into(str(self.paths[k]))
        except InputError as e: return e.message
        except OSError as e: return f"the shard '{shown(self.paths[k])}' cannot be read: {e.strerror}"


def _as_it_is(item: Any) -> Any: return item


def _read_index(folder: Path) -> dict[Path, Shard]:
    "What the index in a folder says of the shards there; nothing where there is none, or somebody else's"
    try:
        # a picture takes two blocks of its shard at least, and a few digits of the index
        most = 2**20 + sum(path.stat().st_size for path in folder.glob('*.tar')) // 64
        shards = read_json(folder/INDEX, most)['shards']
        known = {folder/name: Shard(**shard) for name, shard in shards.items()}
        return {path: shard for path, shard in known.items() if shard.is_plausible()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError): return {}


def _write_index(folder: Path, known: dict[Path, Shard]):
    "Keep what is known of a folder's shards; where it cannot be written, they are looked into again the next time"
    shards = {path.name: asdict(shard) for path, shard in known.items() if path.parent == folder}
    with suppress(OSError): write_whole(folder/INDEX, json.dumps(dict(shards=shards)))


def _unchanged(path: Path, shard: Shard | None) -> bool:
    "Is a shard still what the index says?"
    try: stat = path.stat()
    except OSError: return False
    return shard is not None and (shard.size, shard.mtime) == (stat.st_size, stat.st_mtime_ns)


def _index(paths: list[Path], workers: int) -> list[Shard]:
    "What is in the shards, from the index beside them where that is still true"
    known: dict[Path, Shard] = {}
    for folder in {path.parent for path in paths}: known |= _read_index(folder)
    new = [path for path in paths if not _unchanged(path, known.get(path))]
    if new:
        # a generator of its own: everybody's random numbers stay as they are
        loader = DataLoader(_Headers(new), batch_size=None, collate_fn=_as_it_is, generator=torch.Generator(),
                            num_workers=min(workers, len(new) - 1))
        for path, shard in zip(new, progress(loader, f"looking into {len(new):,} shards"), strict=True):
            if isinstance(shard, str): raise InputError(shard)
            known[path] = shard
    for folder in {path.parent for path in new}: _write_index(folder, known)
    return [known[path] for path in paths]

# --- pictures by number

class Shards:
    """The pictures of some shards, numbered one after the other; nothing in memory grows with them but their labels,
    and where those begin that were looked at"""
    def __init__(self,
        paths: Sequence[Path], # .tar files
        workers: int,          # processes that look into those that are new
        index: list[Shard] | None = None, # what is in them, if that is known
    ):
        self.paths, self.index = list(paths), _index(list(paths), workers) if index is None else index
        self.starts = np.cumsum([0, *(shard.count for shard in self.index)])
        self._places: dict[tuple[int, int], list[int]] = {}  # after marks that were looked behind: see `_see`
        most = max(CLASSES, len(self))
        for path, shard in zip(self.paths, self.index, strict=True):
            top = max(shard.y, default=-1)
            if top < most: continue
            raise InputError(f"the shard '{shown(path)}' has class {top}, and there are names for {most:,} classes at "
                             "most: number the classes from 0")

    def __len__(self) -> int: return int(self.starts[-1])
    def subset(self,
        indices: np.ndarray, # which of the shards, int64
    ) -> 'Shards':
        "Some of the shards, in this order"
        return Shards([self.paths[k] for k in indices], 0, [self.index[k] for k in indices])

    def labels(self) -> torch.Tensor:
        "int64 [N], -1 where there is none"
        if not any(shard.y for shard in self.index): return torch.tensor(-1).expand(len(self))
        y = np.concatenate([shard.y or np.full(shard.count, -1) for shard in self.index])
        return torch.from_numpy(y.astype(np.int64))

    def locate(self,
        i: int, # number of a picture
    ) -> tuple[int, int]:
        "The number of its shard, and how many of the shard's pictures stand before it"
        k = int(np.searchsorted(self.starts, i, side='right')) - 1
        return k, int(i - self.starts[k])

    def read(self,
        k: int,     # number of a shard
        start: int, # of its pictures, the first to read
        stop: int,  # and the first not to
        remember: bool = False, # where the pictures between the mark and the first one begin
    ) -> Iterator[tuple[int, str, bytes]]: # number of the picture among all, its name, its file
        "Stream some pictures of a shard. Raises `InputError` where the shard is not what it was"
        group, path, number = _webdataset().tariterators.group_by_keys, str(self.paths[k]), start
        mark, passed = divmod(start, MARK)
        places = [*self._places.get((k, mark), [self.index[k].marks[mark]])]
        known = min(passed, len(places) - 1)  # the nearest of them
        try:
            check_file(path)
            with open(path, 'rb') as file:
                file.seek(places[known])
                with tarfile.open(fileobj=file, mode='r:', tarinfo=_Member) as tar:
                    members = (dict(fname=m.name, data=m, __url__=path) for m in _members(tar))
                    found = ((s, x) for s in group(members) if (x := _picture(s)) is not None)
                    for i, (sample, picture) in zip(range(known, stop - mark * MARK), found):
                        if remember and i == len(places): places.append(_begin(sample))
                        if i < passed: continue
                        if remember: self._places[k, mark] = places
                        content = tar.extractfile(picture).read()
                        yield int(self.starts[k]) + number, f"{path}/{sample['__key__']}", content
                        number += 1
        except (OSError, tarfile.TarError, ValueError, RecursionError) as e:
            reason = getattr(e, 'strerror', None) or e.args[0]
            raise InputError(f"the shard '{shown(path)}' cannot be read: {shown(reason)}") from None
        if number < stop:
            raise InputError(f"the shard '{shown(path)}' ended after {number:,} of {self.index[k].count:,} pictures: "
                             "has it changed?")

    def shown(self, i: int) -> str:
        "What a message calls picture `i`"
        k, number = self.locate(i)
        return f"picture {number} of '{self.paths[k]}'"

    def size(self, i: int) -> tuple[int, int]:
        """Width and height, pixels, of a picture near the `i`-th: one of the eight after the last mark

        Others lie too far from where reading may begin."""
        k, number = self.locate(i)
        mark, offset = divmod(number, MARK)
        return self._see(k, mark * MARK + offset % 8, lambda picture: picture.size, None)

    def look(self,
        i: int,
        see: Callable[[Image.Image | Raster], T], # asks a picture that was opened and not decoded
        channels: int | None,                     # that are wanted; None: as many as there are
    ) -> T:
        "What is seen of picture `i`"
        return self._see(*self.locate(i), see, channels)

    def _see(self, k: int, number: int, see: Callable[[Image.Image | Raster], T], channels: int | None) -> T:
        "What is seen of a picture; where those before it begin is remembered, since of few shards many are looked at"
        (_, _, file), = self.read(k, number, number + 1, remember=True)
        with open_picture(io.BytesIO(file), channels) as picture: return see(picture)

# --- streaming

class ShardStream(IterableDataset):
    """A pass over shards, in batches `(images, numbers, failures, error)`

    `images`: [B, *form.shape]; `numbers`: of the pictures, int64 [B]; `failures`: names of the pictures that
    could not be decoded on the way, and why; `error`: a sentence, after which nothing follows, or ''.

    Where batches are passed over, nothing of them is decoded, and reading begins with the first picture that none of
    them has: some thousands before the next batch's, as long as one may stay in the buffer."""
    buffer = 1000 # encoded pictures among which a worker draws the next
    def __init__(self,
        shards: Shards,
        form: PixelFormat,       # what pictures become
        bs: int,                 # pictures a batch
        order: Sequence[int],    # of the shards, which so make one row of pictures
        runs: list[list[tuple[int, int]]], # for each worker, stretches of that row
        seed: str | None = None, # of the draws from the buffer; None: none, in order
        begin: int = 0,          # batches that are passed over, of all workers together
    ):
        self.shards, self.form, self.bs, self.order, self.runs, self.seed = shards, form, bs, order, runs, seed
        self.begin = begin

    def __iter__(self):
        info = get_worker_info()
        # batches come from workers in turn, and the first process is the first to be asked
        return self.batches((self.begin + (info.id if info else 0)) % len(self.runs))

    def batches(self,
        worker: int, # its number
    ) -> Iterator[tuple[torch.Tensor | None, torch.Tensor | None, list[tuple[str, str]], str]]:
        "The batches of a worker; an error ends them"
        failed: list[tuple[str, str]] = []
        begin = len(range(worker, self.begin, len(self.runs))) * self.bs
        pictures = self._pictures(worker, begin, failed)
        try:
            while batch := list(islice(pictures, self.bs)):
                images, numbers = zip(*batch, strict=True)
                yield torch.from_numpy(np.stack(images)), torch.tensor(numbers), failed[:], ''
                failed.clear()
        # raised here, it would arrive with a traceback in its sentence
        except InputError as e: yield None, None, failed, e.message

    def _pictures(self,
        worker: int,
        begin: int, # pictures that are passed over
        failed: list[tuple[str, str]],
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Pixels and number of each picture of a worker's runs; what cannot be decoded is noted in `failed`

        The next picture that can be decoded stands in for it; at the end of the runs, the last."""
        owed, last = 0, None
        for number, name, file in self._files(worker, begin):
            pixels, reason = attempt(decoded, io.BytesIO(file), self.form)
            if pixels is None:
                failed.append((name, reason))
                owed += 1
                if owed < TRIES: continue
                raise InputError(f"{owed} pictures in a row could not be decoded: {by_reason(failed[-owed:])}")
            last = pixels, number
            for _ in range(1 + owed): yield last
            owed = 0
        if owed and last is None: last = self._last_before(worker, begin)
        if owed and last is None: raise InputError(f"no picture could be decoded: {by_reason(failed)}")
        for _ in range(owed): yield last

    def _last_before(self, worker: int, begin: int) -> tuple[np.ndarray, int] | None:
        "Pixels and number of the last picture that can be decoded of those that were passed over"
        passed = deque(islice(self._files(worker, 0), begin), maxlen=TRIES)
        for number, _, file in reversed(passed):
            pixels, _ = attempt(decoded, io.BytesIO(file), self.form)
            if pixels is not None: return pixels, number
        return None

    def _files(self, worker: int, begin: int) -> Iterator[tuple[int, str, bytes]]:
        "Number, name and file of pictures of a worker's runs, drawn from a buffer where there is a seed"
        if self.seed is None: return self._in_order(worker, begin)
        n = sum(stop - start for start, stop in self.runs[worker])
        drawn = np.zeros(n, dtype=bool)
        # what is drawn is a matter of places, so places alone show which pictures have been
        drawn[np.fromiter(islice(self._mixed(worker, iter(range(n))), begin), np.int64)] = True
        first = n if drawn.all() else int(drawn.argmin())
        files = chain(repeat(None, first), self._in_order(worker, first))
        return islice(self._mixed(worker, files), begin, None)

    def _mixed(self, worker: int, stream: Iterator[Any]) -> Iterator[Any]:
        "A worker's draws from a buffer that a stream fills"
        return _webdataset().filters.shuffle(self.buffer, initial=self.buffer, seed=f'{self.seed} {worker}')(stream)

    def _in_order(self, worker: int, begin: int) -> Iterator[tuple[int, str, bytes]]:
        "Number, name and file of pictures of a worker's runs, in the order of the row"
        starts = np.cumsum([0, *(self.shards.index[k].count for k in self.order)])
        for start, stop in self.runs[worker]:
            passed = min(begin, stop - start)
            begin, start = begin - passed, start + passed
            if start == stop: continue
            first = int(np.searchsorted(starts, start, side='right')) - 1
            for j in range(first, int(np.searchsorted(starts, stop))):
                before, after = int(starts[j]), int(starts[j + 1])
                yield from self.shards.read(self.order[j], max(start - before, 0), min(stop, after) - before)
