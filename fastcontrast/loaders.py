"""Loaders: from a list of pictures to batches of plain tensors on the device.

Docs: https://fastcontrast.github.io/fastcontrast/data.html.md"""
import contextlib
import copy
import os
import random
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from multiprocessing import current_process, get_start_method
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.data.core import DataLoaders
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from .core import InputError, first_of, number_of, shown, usable_cores, whole
from .distributed import rank, world_size
from .figures import Figure
from .formats import PixelFormat, Span
from .generators import OwnDraws
from .pictures import TRIES, Pictures, attempt, by_reason, check_decoded, progress
from .shards import Shards, ShardStream

Batch = tuple[torch.Tensor, ...]


@dataclass
class ImageData:
    "What is known about the pictures of one split"
    names: Sequence[str]     # [N]; a file's path in the split's folder, or an item's number
    y: torch.Tensor          # int64 [N], the true classes; -1: unknown
    labeled: torch.Tensor    # bool [N]: may training use the label?
    classes: list[str] | None # None: unlabelled
    failed: dict[str, str] = field(default_factory=dict) # pictures that could not be decoded, and why
    reason: str = ''         # why the labels that the source has are no classes; '' if they are, or there are none
    listed: Sequence[str] | None = None # the names of all pictures in their place, also of those that are not here
    def __len__(self): return len(self.names)


class ImageLoader:
    """Batches `(images [B, C, R, R], y int64 [B])` of one split of the data, on the device; base of all such loaders

    Of pictures that are kept whole (see `PixelFormat`) they are `(images, aspects, y)`: squashed to squares, and what
    their width / height was before, float32 [B].

    In training it shuffles by a generator of its own: the same seed and `epoch` give the same batches. The last,
    smaller batch is left out, as the number of negatives in a loss is the batch's size. Where several processes train,
    each reads its share of every batch; in order, every process gets everything.

    With `epoch` and `begin` set, the next pass is the rest of pass `epoch` from batch `begin` on, counted from 0, and
    what comes before is not read. A pass uses both up; a copy of a loader begins at the start."""
    streaming = False # are pictures decoded for every batch? Then those that can't be show only as training goes on
    selects = True    # can `only` choose pictures?
    place = ''        # where its pictures come from, in words
    def __init__(self,
        data: ImageData,
        bs: int,               # pictures a batch, of all processes together
        device: torch.device,  # where the batches go
        training: bool = False, # shuffled, whole batches only, labels hidden (-1) unless `data.labeled`
        seed: int = 0,         # of the shuffle
        form: PixelFormat | None = None, # how its pictures are kept; None: as they come
    ):
        self.data, self.bs, self.seed, self.form = data, bs, seed, form
        self.shuffle = self.drop_last = training
        self.epoch = 0  # number of the next pass
        self.begin = 0  # batches of the next pass that are passed over
        self.picked: torch.Tensor | None = None  # which pictures, int64 on the CPU; None: all
        self.y = data.y.where(data.labeled, -1) if training and data.classes else data.y
        self.to(device)

    @property
    def dataset(self) -> ImageData: return self.data  # fastai's name for it
    @property
    def share(self) -> int:
        "Pictures of a batch that this process reads: all of them, except in training"
        return self.bs // world_size() if self.shuffle else self.bs
    @property
    def whole(self) -> bool:
        "Are its pictures kept whole, so that a batch has aspects?"
        return self.form is not None and self.form.whole
    @property
    def count(self) -> int:
        "How many pictures it makes batches of"
        return len(self.data) if self.picked is None else len(self.picked)
    @property
    def indices(self) -> torch.Tensor:
        "Which pictures of `data` those are, int64 [count] on the CPU"
        return torch.arange(len(self.data)) if self.picked is None else self.picked

    def __len__(self): return self.count // self.bs if self.drop_last else -(-self.count // self.bs)

    def __repr__(self) -> str:
        parts = [number_of(self.count, 'picture'), self.form.words() if self.form else '', self.place,
                 f"{number_of(len(self), 'batch')} of {self.bs:,} on {self.device}"]
        return ', '.join(filter(None, parts))

    def show_batch(self,
        b: Batch | None = None,  # a batch of this loader; None: the first of the next pass
        max_n: int = 9,          # pictures at most
        ncols: int | None = None, # pictures in a row; None: about as many as rows
        path: str | Path | None = None, # also save it there; the ending tells the format
        bands: Sequence[int] | None = None, # channels drawn as red, green and blue; None: see `draw_views`
    ) -> Figure:                 # shown by a notebook as it is
        "Draw pictures as they are before views are made of them, with their classes, as far as they may be known"
        from .views import draw_pictures
        whole(max_n=max_n)
        images, *aspects, y = (t[:max_n] for t in (self.one_batch() if b is None else b))
        classes = self.data.classes or []
        return draw_pictures(images, [classes[c] if 0 <= c < len(classes) else '' for c in y.tolist()], path, ncols,
                             *aspects, bands=bands)

    def to(self, device: torch.device) -> 'ImageLoader':
        "Batches go to this device from now on"
        self.device = torch.device(device)
        self.y = self.y.to(self.device)
        return self

    def __getstate__(self) -> dict[str, Any]: return self.__dict__ | dict(begin=0)  # of a copy

    def __iter__(self) -> Iterator[Batch]:
        if not len(self): return
        epoch, begin = self._next_pass()
        if begin < len(self): yield from self._with_labels(self._images(self._order(epoch, begin)))

    def _next_pass(self) -> tuple[int, int]:
        "Number of a pass that begins, and the batches that it passes over"
        begun = self.epoch, self.begin
        self.epoch, self.begin = self.epoch + 1, 0
        return begun

    def one_batch(self) -> Batch:
        "The first batch of the next pass, which is not used up by it. Raises `InputError` if there is no picture"
        if not len(self): raise InputError("there is no picture to take a batch from: this part of the data is empty")
        return self._first_batch()

    def _first_batch(self) -> Batch:
        return next(self._with_labels(self._images(self._order(self.epoch)[:self.share])))

    def ordered(self,
        n: int | None = None, # that many of them at most, drawn by the seed (the same ones every time); None: all
    ) -> 'ImageLoader':
        "A loader over the same pictures in order, none left out, with their true labels"
        few = n is not None and n < len(self.data)
        if not (self.shuffle or few): return self
        other = copy.copy(self)
        other.shuffle = other.drop_last = False
        other.y = self.data.y.to(self.device)
        if few:
            drawn = np.random.default_rng((self.seed, 4)).permutation(len(self.data))[:n]
            other.picked = torch.from_numpy(np.sort(drawn))
        return other

    def new(self, **kwargs) -> 'ImageLoader':
        "fastai's, which predicts by it: the same pictures in order"
        return self.ordered()

    def only(self,
        indices: torch.Tensor, # which pictures of `data`, int64 on the CPU
        bs: int,               # pictures a batch
    ) -> 'ImageLoader':
        "A loader over some of its pictures, which it takes for all there are. Raises `InputError` where that can't be"
        other, data = copy.copy(self), self.data
        other.data = replace(data, names=[data.names[i] for i in indices.tolist()], y=data.y[indices],
                             labeled=data.labeled[indices])
        other.bs, other.picked = bs, None
        other.y = self.y.index_select(0, indices.to(self.device, non_blocking=True))
        other.shuffle = other.drop_last = False
        return other

    def labels(self) -> torch.Tensor:
        "The true labels of its pictures, int64 [N] on the CPU; -1: unknown"
        return self.data.y if self.picked is None else self.data.y[self.picked]

    def _order(self, epoch: int, begin: int = 0) -> torch.Tensor:
        "The pictures of a pass from batch `begin` on, int64 [N]; in training this process's share of each whole batch"
        if not self.shuffle: return self.indices[begin * self.bs:]
        order = torch.from_numpy(np.random.default_rng((self.seed, 3, epoch)).permutation(len(self.data)))
        return order[:len(self) * self.bs].view(-1, world_size(), self.share)[begin:, rank()].flatten()

    def _with_labels(self, images: Iterable[Batch]) -> Iterator[Batch]:
        "What `_images` gives, with labels in place of indices"
        for kept, indices in images:
            pictures = self.form.unpacked(kept) if self.form else (kept,)
            yield *pictures, self.y.index_select(0, indices)

    def _images(self, order: torch.Tensor) -> Iterator[Batch]:
        "Batch by batch, the pictures in this order as they are kept, and their indices in the data, on the device"
        raise NotImplementedError

# --- all pictures in the device's memory

@contextlib.contextmanager
def _threads(
    count: int | None,
) -> Iterator[ThreadPoolExecutor]:
    """Threads for a generator, which end without being waited for

    A generator that was given up is ended by the garbage collector, at any line of any program: also where Python's
    `threading` has its own lock, for which waiting would wait for ever."""
    threads = ThreadPoolExecutor(count)
    try: yield threads
    finally: threads.shutdown(wait=False, cancel_futures=True)


class DecodedChunks(Dataset):
    """Chunks of the pictures, in order: those that can be decoded, `[n, *form.shape]`, and why each picture can't be

    Of large pictures threads decode some at a time. Of small ones so little is spent outside the interpreter lock that
    threads would only wait for one another: processes do it, where they are forks, and have enough to do."""
    size = 256          # pictures
    threads_from = 128  # pixels of a side
    worth = 1.          # seconds of work that a process is begun for
    def __init__(self,
        pictures: Pictures,
        form: PixelFormat, # what they become
        workers: int,      # processes at most; 0: this one
    ):
        self.pictures, self.form, self.workers = pictures, form, workers

    def __len__(self): return -(-len(self.pictures) // self.size)
    def __getitem__(self, k: int) -> tuple[np.ndarray, list[str | None]]: return self._chunk(k, map)

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[str | None]]]:
        if self.pictures.threaded and self.form.side >= self.threads_from:
            with _threads(usable_cores()) as pool:
                yield from (self._chunk(k, pool.map) for k in range(len(self)))
            return
        for k in range(len(self)):
            start, chunk, left = time.monotonic(), self[k], range(k + 1, len(self))
            seconds = (time.monotonic() - start) * len(left)
            yield chunk
            # the second tells how long one takes: in the first, libraries load what they need
            if k == 1 and self.pictures.threaded and (n := min(self.workers, int(seconds / self.worth), len(left))) > 1:
                # not as tensors, for which machines may have too little shared memory
                yield from Workers(Subset(self, left), n if _can_fork() else 0, batch_size=None, collate_fn=tuple)
                return

    def _chunk(self, k: int, through: Callable) -> tuple[np.ndarray, list[str | None]]:
        indices = range(k * self.size, min((k + 1) * self.size, len(self.pictures)))
        tried = list(through(lambda i: attempt(self.pictures.pixels, i, self.form), indices))
        pixels = [x for x, _ in tried if x is not None]
        pixels = np.array(pixels, self.form.array_type).reshape(len(pixels), *self.form.shape)
        return pixels, [reason if x is None else None for x, reason in tried]


def _can_fork() -> bool:
    "Whether a process begins at once, with all that is imported; one of a pool may begin none"
    return get_start_method() == 'fork' and not current_process().daemon


def decode_all(
    pictures: Pictures,
    form: PixelFormat,     # what they become
    device: torch.device,  # where they go
    strict: bool,          # is a picture that cannot be decoded an error?
    workers: int = 0,      # processes at most
) -> tuple[torch.Tensor, np.ndarray, dict[str, str]]: # [n, *form.shape]; bool [N]; the others and why
    "All pictures that can be decoded, in one tensor, and which they are"
    n, done = len(pictures), 0
    images, good, failed = torch.empty(n, *form.shape, dtype=form.dtype, device=device), [], {}
    for pixels, reasons in progress(DecodedChunks(pictures, form, workers), f"decoding {n:,} pictures"):
        broken = {pictures.shown(i): why for i, why in enumerate(reasons, len(good)) if why is not None}
        check_decoded(broken, strict)
        failed |= broken
        images[done:done + len(pixels)] = torch.from_numpy(pixels)
        done += len(pixels)
        good += [why is None for why in reasons]
    return images[:done], np.array(good, dtype=bool), failed


def chosen_rows(
    images: torch.Tensor, # uint8 or uint16 [N, …], as they are kept
    rows: torch.Tensor,   # int64 [n], which of them
    out: torch.Tensor | None = None, # [n, …], where they go; None: into new memory
) -> torch.Tensor:        # [n, …]
    "Some of the pictures. torch selects no rows of uint16, but of int16, which has the same bytes"
    if images.dtype != torch.uint16: return torch.index_select(images, 0, rows, out=out)
    out = None if out is None else out.view(torch.int16)
    return torch.index_select(images.view(torch.int16), 0, rows, out=out).view(torch.uint16)


def load_rows(
    pixels: torch.Tensor, # [N, …], as they are kept, mapped onto a file
    rows: torch.Tensor,   # int64 [n], which of them
    device: torch.device, # where they go
) -> torch.Tensor:        # [n, …] of the same type
    "Read pictures of a mapped file into the device's memory"
    images = torch.empty(len(rows), *pixels.shape[1:], dtype=pixels.dtype, device=device)
    for chunk, chosen in zip(images.split(1024), rows.split(1024), strict=True):
        chunk.copy_(chosen_rows(pixels, chosen))
    return images


class ResidentLoader(ImageLoader):
    "All pictures of the split are one tensor on the device: a batch is one `index_select`"
    place = 'in memory'
    def __init__(self,
        images: torch.Tensor, # uint8 or uint16 [N, …], as they are kept
        *args, **kwargs,      # of `ImageLoader`
    ):
        self.images = images
        self.rows: torch.Tensor | None = None  # where its pictures stand among them, int64; None: all, in order
        super().__init__(*args, **kwargs)

    def to(self, device):
        super().to(device)
        self.images = self.images.to(self.device)
        if self.rows is not None: self.rows = self.rows.to(self.device)
        return self

    def only(self, indices, bs):
        other = super().only(indices, bs)
        other.rows = self._rows(indices.to(self.device, non_blocking=True))
        return other

    def _rows(self, indices: torch.Tensor) -> torch.Tensor:
        "Where pictures of the data stand among the images"
        return indices if self.rows is None else self.rows.index_select(0, indices)

    def _images(self, order):
        for indices in order.to(self.device, non_blocking=True).split(self.share):
            yield chosen_rows(self.images, self._rows(indices)), indices


def empty_loader(
    like: ImageLoader, # the training split
) -> ImageLoader:
    "A loader without pictures, for a validation split that is none"
    data = ImageData([], torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bool), like.data.classes)
    return ResidentLoader(torch.empty(0, 3, 1, 1, dtype=torch.uint8), data, like.bs, like.device)

# --- all pictures in a file that memory is mapped onto

class MappedLoader(ImageLoader):
    "All pictures of the split lie in a file that memory is mapped onto; threads gather batches from it, some ahead"
    ahead = 2  # batches, each gathered by a thread of its own: it waits for the disk, and the training does not
    place = 'from the cache'
    def __init__(self,
        pixels: torch.Tensor, # uint8 or uint16 [M, …], as they are kept, mapped onto a file
        rows: torch.Tensor,   # int64 [N], where its pictures stand among them
        *args, **kwargs,      # of `ImageLoader`
    ):
        self.pixels, self.rows = pixels, rows
        super().__init__(*args, **kwargs)

    def only(self, indices, bs):
        other = super().only(indices, bs)
        other.rows = self.rows[indices]
        return other

    def _read(self, rows: torch.Tensor) -> torch.Tensor:
        "[n, …] on the CPU, pinned where it goes to a GPU"
        pinned = self.device.type == 'cuda'
        batch = torch.empty(len(rows), *self.pixels.shape[1:], dtype=self.pixels.dtype, pin_memory=pinned)
        return chosen_rows(self.pixels, rows, batch)

    def _images(self, order):
        plan = iter(order.split(self.share))
        with _threads(self.ahead) as threads:
            def begin(n): return [(i, threads.submit(self._read, self.rows[i])) for i in islice(plan, n)]
            coming = deque(begin(self.ahead))
            while coming:
                indices, batch = coming.popleft()
                coming.extend(begin(1))
                yield batch.result().to(self.device, non_blocking=True), indices.to(self.device, non_blocking=True)

# --- decoded for every batch

class DecodingLoader(ImageLoader):
    "Base of the loaders that decode pictures for every batch, in worker processes"
    streaming = True
    place = 'decoded for every batch'
    def __init__(self,
        workers: int,    # processes; 0: this one
        strict: bool,    # is a picture that cannot be decoded an error?
        *args, **kwargs, # of `ImageLoader`
    ):
        self.workers, self.strict = workers, strict
        super().__init__(*args, **kwargs)

    def _arrived(self, images: torch.Tensor, indices: torch.Tensor, failures: list[tuple[str, str]]) -> Batch:
        "A batch on the device; what could not be decoded is noted"
        failed = dict(failures)
        check_decoded(failed, self.strict)
        self.data.failed.update(failed)
        return images.to(self.device, non_blocking=True), indices.to(self.device, non_blocking=True)


class Workers:
    "Batches of a torch `DataLoader`, pass after pass; its worker processes end as soon as nothing needs this any more"
    def __init__(self,
        data: Dataset,
        workers: int, # processes; 0: this one
        **kwargs,     # of torch's `DataLoader`
    ):
        # a generator: views draw from everybody's, and get the same numbers however pictures come
        self.loader = DataLoader(data, num_workers=workers, persistent_workers=workers > 0,
                                 generator=torch.Generator(), **kwargs)
        # in a cycle of references that is collected, torch's iterator loses its queues before it can say by them that
        # workers are to end, and waits 5 s for each; whatever a finalizer holds is in no cycle
        self.close = weakref.finalize(self, self._end, self.loader, os.getpid())
        self.close.atexit = False

    def __iter__(self) -> Iterator[Any]:
        try: yield from self.loader  # it keeps the workers until the pass is over
        finally:  # while torch knows of a dead one, any child's signal has it raise, wherever the program is
            if not self.alive: self.close()

    @property
    def alive(self) -> bool:
        "Whether no worker has died"
        batches = self.loader._iterator
        started = () if batches is None else batches._workers
        return all(worker.is_alive() for worker in started)

    @staticmethod
    def _end(loader: DataLoader, owner: int):
        "Have the worker processes end; where a fork of their owner lets go of them, they go on"
        batches = loader._iterator
        if batches is None: return
        if os.getpid() != owner: batches._shutdown = True  # or torch would end the owner's
        elif all(worker.is_alive() for worker in batches._workers): batches._shutdown_workers()
        else: Workers._kill(batches)

    @staticmethod
    def _kill(batches: Any):
        """End the workers where one has died, with torch's own means but its event

        The dead one may have held the event's lock, and whoever sets it would wait for ever."""
        batches._shutdown = True
        if getattr(batches, '_pin_memory_thread_done_event', None): batches._pin_memory_thread_done_event.set()
        if batches._worker_pids_set:
            torch._C._remove_worker_pids(id(batches))
            batches._worker_pids_set = False
        for worker in batches._workers: worker.kill()
        for worker in batches._workers: worker.join()


class PictureStream(Dataset):
    """What the worker processes run: item `i` is picture `i`, its index, and the failures on the way to it

    The next picture that can be decoded stands in for one that can't; where too many fail in a row the index is -1. A
    refusal is a failure without a name: raised here, it would arrive with a traceback in its sentence."""
    def __init__(self,
        pictures: Pictures,
        form: PixelFormat, # what they become
    ):
        self.pictures, self.form = pictures, form

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, list[tuple[str | None, str]]]:
        failures, n = [], len(self.pictures)
        try:
            for j in range(i, i + min(n, TRIES)):
                x, reason = attempt(self.pictures.pixels, j % n, self.form)
                if x is not None: return torch.from_numpy(x), j % n, failures
                failures.append((self.pictures.shown(j % n), reason))
        except InputError as e: failures.append((None, e.message))
        return torch.zeros(self.form.shape, dtype=self.form.dtype), -1, failures

    @staticmethod
    def collate(
        items: list[tuple],
    ) -> tuple[torch.Tensor, torch.Tensor, list[tuple[str | None, str]]]: # [B, *form.shape]; int64 [B]; all failures
        "A batch of items"
        images, indices, failures = zip(*items, strict=True)
        return PictureStream.stacked(images), torch.tensor(indices), list(chain.from_iterable(failures))

    @staticmethod
    def stacked(
        images: Sequence[torch.Tensor], # each of one shape, as they are kept, uint8 or uint16
    ) -> torch.Tensor:                  # [B, …], in memory that processes share
        "One tensor of all; of uint16 by way of int16, see `chosen_rows`"
        if images[0].dtype != torch.uint16: return default_collate(list(images))
        return default_collate([x.view(torch.int16) for x in images]).view(torch.uint16)


class _Batches(list[torch.Tensor]):
    "Which pictures each batch of a pass has, as torch asks for it: numbers are made when it is a batch's turn"
    def __iter__(self) -> Iterator[list[int]]: return (batch.tolist() for batch in super().__iter__())


class StreamingLoader(DecodingLoader):
    """Pictures are read one by one, in any order, by workers that stay from pass to pass

    A worker that dies is torch's `RuntimeError`, during the pass; the next pass starts workers anew."""
    def __init__(self,
        stream: PictureStream,
        *args, **kwargs, # of `DecodingLoader`
    ):
        self.stream = stream
        self._workers: Workers | None = None  # None: the next pass starts them
        self._batches = _Batches()            # what they read in this pass
        super().__init__(*args, **kwargs)

    def __getstate__(self): return super().__getstate__() | dict(_workers=None, _batches=_Batches())  # for a copy

    def to(self, device):
        self._workers = None  # whether their memory is pinned depends on the device
        return super().to(device)

    def only(self, indices, bs):
        other = super().only(indices, bs)
        other.stream = PictureStream(self.stream.pictures.subset(indices.numpy()), self.stream.form)
        other.workers = min(self.workers, -(-self.workers * bs // self.bs))  # in proportion to the pictures
        return other

    def _start_workers(self) -> Workers:
        # torch asks the list anew in every pass, so the workers live on while the order changes
        return Workers(self.stream, self.workers, batch_sampler=self._batches, collate_fn=PictureStream.collate,
                       pin_memory=self.device.type == 'cuda')

    def _read(self, plan: Sequence[torch.Tensor]) -> Iterable[tuple]:
        "Batches of these pictures, from the workers if there is more than one"
        if len(plan) < 2: return (PictureStream.collate([self.stream[i] for i in batch.tolist()]) for batch in plan)
        if self._workers is None or not self._workers.alive: self._workers = self._start_workers()
        self._batches[:] = plan
        return self._workers

    def _images(self, order):
        for images, indices, failures in self._read(order.split(self.share)):
            for name, refusal in failures:
                if name is None: raise InputError(refusal)
            batch = self._arrived(images, indices, failures)
            if indices.min() < 0:
                failed = dict(failures)
                raise InputError(f"{len(failed)} pictures in a row could not be decoded: {by_reason(failed.items())}")
            yield batch


class ShardLoader(DecodingLoader):
    "Pictures stream from shards, each process and each of its workers reading a run of its own"
    selects = False
    place = 'from shards, decoded for every batch'

    def __init__(self,
        shards: Shards,
        form: PixelFormat, # what pictures become
        *args, **kwargs, # of `DecodingLoader`
    ):
        self.shards = shards
        super().__init__(*args, form=form, **kwargs)

    def ordered(self, n=None):  # the first ones: those that lie anywhere would all have to be read past
        other = super().ordered()
        if n is None or n >= len(self.data): return other
        other = copy.copy(other)
        other.picked = torch.arange(n)
        return other

    def only(self, indices, bs):
        raise InputError("shards are read from front to back, so no batches of chosen pictures can be made of them: "
                         "give image_dls a folder of pictures instead")

    def _first_batch(self):
        return next(self._with_labels(self._hand_over(self._order(self.epoch).batches(0))))

    def _order(self, epoch: int, begin: int = 0) -> ShardStream:
        "The plan of a pass: the shards' order, and who reads which run of the row of pictures, from where on"
        order, runs, seed = np.arange(len(self.shards.paths)), self._turns(), None
        if self.shuffle:
            order = np.random.default_rng((self.seed, 3, epoch)).permutation(order)
            runs, seed = self._runs(), f'{self.seed} {epoch} {rank()}'
        return ShardStream(self.shards, self.form, self.share, order.tolist(), runs, seed, begin)

    def _runs(self) -> list[list[tuple[int, int]]]:
        "In training a run for each worker: whole batches, the same number in all processes"
        workers = max(1, self.workers)
        each, more = divmod(len(self), workers)
        batches = [each + (w < more) for w in range(workers)]
        cuts = (rank() * len(self) + np.cumsum([0, *batches])) * self.share
        return [[(int(start), int(stop))] for start, stop in zip(cuts, cuts[1:])]

    def _turns(self) -> list[list[tuple[int, int]]]:
        "In order, the batches that each worker reads: they take turns"
        workers = max(1, self.workers)
        batches = [(k * self.bs, min((k + 1) * self.bs, self.count)) for k in range(len(self))]
        return [batches[w::workers] for w in range(workers)]

    def _images(self, order):
        # workers of its own for each pass: starting them takes a tenth of a second, a pass over shards much longer
        workers = Workers(order, self.workers, batch_size=None, pin_memory=self.device.type == 'cuda')
        with contextlib.closing(workers): yield from self._hand_over(workers)

    def _hand_over(self, batches: Iterable[tuple]) -> Iterator[Batch]:
        for images, indices, failures, error in batches:
            if error: raise InputError(error)
            yield self._arrived(images, indices, failures)

# --- fastai's own

class FastaiLoader(ImageLoader):
    """The interface of `ImageLoader` around a fastai `DataLoader`, with its own batches, shuffle and transforms

    What these draw is a function of seed and `epoch` (and of the number of workers), and everybody's generators stay
    as they are. A pass that begins in the middle makes the batches before it, too."""
    selects = False
    place = 'made by fastai'

    def __init__(self,
        dl: Any,         # fastai's `TfmdDL`
        *args, **kwargs, # of `ImageLoader`
    ):
        self.dl = dl
        super().__init__(*args, **kwargs)
        self.drop_last = dl.drop_last
        self.hide = not self.data.classes or self.shuffle and not self.data.labeled.any() # the labels

    def to(self, device):
        super().to(device)
        self.dl.to(self.device)
        return self

    def ordered(self, n=None):  # always all: a fastai loader decides itself what it reads
        if not self.shuffle: return self
        other = super().ordered()
        with self._draws(0): other.dl = self.dl.new(shuffle=False, drop_last=False)  # which draws a seed
        other.hide = not self.data.classes
        return other

    def only(self, indices, bs):
        raise InputError("fastai DataLoaders choose themselves what they read, so no batches of chosen pictures can be "
                         "made of them: give image_dls the folder instead")

    def __len__(self): return len(self.dl)
    def __iter__(self):
        epoch, begin = self._next_pass()
        if begin and begin >= len(self): return
        still = not self.shuffle and hasattr(self.dl.dataset, 'set_split_idx')  # as in validation
        with self.dl.dataset.set_split_idx(1) if still else contextlib.nullcontext():
            yield from map(self._plain, islice(self._drawn(epoch), begin, None))

    def _draws(self, epoch: int) -> OwnDraws:
        "The generators of a pass, of which the loader's own is made"
        draws = OwnDraws(self.device, self.seed, 3, epoch if self.shuffle else 0)
        with draws: self.dl.rng = random.Random(random.getrandbits(64))
        return draws

    def _drawn(self, epoch: int) -> Iterator[tuple]:
        "fastai's batches of a pass"
        draws, batches = self._draws(epoch), iter(self.dl)
        while True:
            with draws: batch = next(batches, None)
            if batch is None: return
            yield batch

    def _first_batch(self):
        with self._draws(self.epoch): return self._plain(self.dl.one_batch())

    def _plain(self, batch: tuple) -> Batch:
        "Tensors without fastai's subclasses, whose dispatch slows every operation down"
        x = batch[0].as_subclass(torch.Tensor)
        if self.hide: return x, torch.full((len(x),), -1, device=x.device)
        return x, batch[-1].as_subclass(torch.Tensor)

# --- both splits, and batches by class

def outside(
    span: Span | None,
    streamed: bool, # are pictures met again and again?
) -> str:
    "'' or a sentence about pictures that had values outside of a range that was found from others"
    n = 0 if span is None or span.outside is None else span.outside.item()
    if not n: return ''
    times = f"{n:,} time{'s' * (n > 1)} a picture had" if streamed else f"{n:,} picture{'s have' if n > 1 else ' has'}"
    return (f"{times} values outside of {span.low:,g} to {span.high:,g}, the range of those that were looked at, and "
            "they are clipped: give a wider value_range (--range).")


class ImageLoaders(DataLoaders):
    """fastai `DataLoaders` of a training and a validation `ImageLoader`; the second may be empty (length 0)

    `bank` is the loader of the pictures among which kNN looks for neighbours of the validation pictures, and from which
    probes learn: the training part, unless other pictures judge the features by themselves. Then `within` is their
    name, and their classes are those of `bank` and `valid`, and not training's `classes`.

    `value_range` are the values that are 0 and 1 in its batches; None: 0 and 255, as of pictures of 8 bits."""
    def __init__(self,
        train: ImageLoader,
        valid: ImageLoader,
        bank: ImageLoader | None = None, # None: the training part
        *,
        size: int,       # side of the square the model will see
        source: str,     # where the pictures come from, for the reader
        channels: int = 3, # of the pictures
        span: Span | None = None, # which of their values become 0 and 1; None: those of bytes
        value_range: tuple[float, float] | None = None, # the same for the reader; None: 0 and 255
        within: str = '', # the same of those that judge by themselves
        notes: Iterable[str] = (), # what was said of the source when it was opened
    ):
        super().__init__(train, valid, *([] if bank is None else [bank]), device=train.device)
        self.size, self.channels, self.span, self.value_range = size, channels, span, value_range
        self.n_inp = 2 if train.whole else 1  # what fastai takes for inputs: pictures, and their aspects
        self.source, self.within, self.notes = source, within, list(notes)
        self.classes = train.data.classes

    @classmethod
    def like(cls, others: 'ImageLoaders', train: ImageLoader, valid: ImageLoader) -> 'ImageLoaders':
        "Loaders of some of others' pictures, or of pictures of the same kind"
        return cls(train, valid, size=others.size, source=others.source, channels=others.channels, span=others.span,
                   value_range=others.value_range, notes=others.notes)

    def __repr__(self) -> str:
        "What there is, how it is kept, and what training may know of it"
        names = ('train', 'valid', 'bank')
        lines = [f"{self.source}, for views of {self.size} px"]
        lines += [f"{name}: {loader}" if len(loader.data) else f"{name}: none"
                  for name, loader in zip(names, self.loaders)]
        lines.append(f"classes: {self._classes(self.train.data)}")
        if self.within: lines.append(f"judged within {self.within}, classes: {self._classes(self.bank.data)}")
        if self.value_range: lines.append("values: {:,g} to {:,g} become 0 to 1".format(*self.value_range))
        return shown('\n  '.join(filter(None, [*lines, self.report()])), lines=True)

    def _classes(self, data: ImageData) -> str:
        "Which there are, and for how many pictures training knows them"
        if not data.classes: return data.reason or 'none'
        known = f"; training knows those of {int(data.labeled.sum()):,} pictures" if data is self.train.data else ''
        return f"{len(data.classes):,} ({first_of(data.classes)}){known}"

    @property
    def bank(self) -> ImageLoader: return self.loaders[2] if len(self.loaders) > 2 else self.loaders[0]

    @property
    def vocab(self) -> list[str]:
        "fastai's name for the classes; none where the pictures are unlabelled"
        return list(self.classes or ())

    @property
    def c(self) -> int:
        "fastai's name for how many there are"
        return len(self.vocab)

    def test_dl(self, *args, **kwargs):
        "fastai's, of pictures that are to be predicted: always an `InputError`"
        raise InputError("there is nothing to predict for a contrastive learner, so no test_dl: "
                         "embed(learn.model.encoder, pictures) gives the features of any pictures.")

    def unjudged(self) -> str:
        "'' or why these pictures can't judge features, as the end of a sentence that says what to do"
        if self.bank.data.classes: return ''
        return self.bank.data.reason or f"the pictures of '{self.source}' have none: give a folder of class folders"

    def report(self) -> str:
        """'' or sentences about the pictures that could not be decoded, or whose values are outside of the range that
        was found (so far, where they are streamed)"""
        clipped = outside(self.span, True) if self.train.streaming else ''  # else it was said at the beginning
        return ' '.join(filter(None, [self._undecoded(), clipped]))

    def _undecoded(self) -> str:
        failed = [item for loader in self.loaders for item in loader.data.failed.items()]
        if not failed: return ''
        n = sum(len(loader.data) for loader in self.loaders)
        if self.train.streaming: fate = "the next picture stands in for each"
        else: n, fate = n + len(failed), "they are left out"
        return f"{len(failed):,} of {n:,} pictures could not be decoded, {fate}: {by_reason(failed)}."


class StratifiedLoader:
    """Batches like `dl`'s, without end, of `S` pictures: those with labels, drawn by class, on the device

    Classes are drawn without replacement, each as often as any other, and so are the pictures of a class; only a class
    that has fewer than `per_class` repeats them within a batch. Several processes make the same draw, and each takes
    its share. Where `per_class` is None there are 40 pictures with labels for every 44 of a training batch, as with
    SuNCEt's authors, as far as there are labels. Raises `InputError` where the labels don't allow such batches.
    Classes take turns in a batch: a process's share, or any other run of it, has nearly as many of each.

    The batches are a function of the seed, and `place` says how many of them were taken: `go_to` that place, and the
    next one is the next."""
    ahead = 100  # batches that are drawn at a time
    def __init__(self,
        dl: ImageLoader,                      # the training split of `image_dls`
        classes_per_batch: int | None = None, # classes in a batch, 2 or more; None: all that have labels, at most 20
        per_class: int | None = None,         # pictures of each, 2 or more; None: nearly as many in all as `dl` has
        seed: int = 0,                        # of the draws, 0 or more
    ):
        whole(classes_per_batch=classes_per_batch, per_class=per_class, least=2, optional=True)
        whole(seed=seed, least=0)
        if not isinstance(dl, ImageLoader):
            raise InputError(f"batches by class need the training part of image_dls(…), not a {type(dl).__name__}")
        dl.only(torch.empty(0, dtype=torch.int64), 1)  # can it?
        self.indices = self._by_class(dl.data)  # of the pictures with labels, int64
        classes, self.counts = np.unique(dl.data.y[self.indices], return_counts=True)
        self.starts = self.counts.cumsum() - self.counts
        self._check_classes([dl.data.classes[c] for c in classes], classes_per_batch)
        self.classes_per_batch = classes_per_batch or min(20, len(classes))
        self.per_class = int(per_class or self._usual_per_class(dl.bs))
        size = self.classes_per_batch * self.per_class
        if size % world_size():
            raise InputError(f"{self.classes_per_batch} classes with {self.per_class} pictures each cannot be divided "
                             f"among {world_size()} processes: choose another classes_per_batch or per_class")
        self.dl, self.seed, self.bs = dl, seed, size // world_size()
        self.draws = 0  # that were made, of `ahead` batches each
        self.used = 0   # batches of the last one that were handed out
        self._batches: Iterator[Batch] | None = None

    def _by_class(self, data: ImageData) -> torch.Tensor:
        "The pictures whose labels training may use, in the order of their classes: int64 [N]"
        labeled = torch.from_numpy(np.flatnonzero(data.labeled & (data.y >= 0)))
        if len(labeled): return labeled[data.y[labeled].argsort(stable=True)]
        raise InputError("there is no label that training may use: give labels (--labels) a share like 0.1, 'all' "
                         "or a file of names" if data.classes else
                         data.reason or "the pictures have no labels: use class folders")

    def _check_classes(self, names: list[str], classes_per_batch: int | None):
        "Are there classes enough, each of two pictures or more?"
        for name, n in zip(names, self.counts, strict=True):
            if n < 2:
                raise InputError(f"class '{name}' has one picture whose label training may use, and needs two: "
                                 "give labels (--labels) a larger share, or more names")
        if len(names) < 2:
            raise InputError(f"only class '{names[0]}' has labels that training may use: "
                             "it takes two to tell them apart")
        if classes_per_batch is not None and classes_per_batch > len(names):
            raise InputError(f"classes_per_batch={classes_per_batch} is more than the {len(names)} classes "
                             "that have labels")

    def _usual_per_class(self, bs: int) -> int:
        "40 for every 44 pictures, as far as there are labels, and the processes can share it"
        most = max(2, min(round(bs * 40 / 44 / self.classes_per_batch), self.counts.min()))
        return next((n for n in range(most, 1, -1) if self.classes_per_batch * n % world_size() == 0), most)

    def __iter__(self) -> Iterator[Batch]: return self
    def __next__(self) -> Batch:
        if self._batches is None: self._batches = self._endless()
        return next(self._batches)

    @property
    def place(self) -> tuple[int, int]:
        "Draws that were made, and batches of the last one that were handed out; 0 of them: it is done with"
        return self.draws, self.used

    def go_to(self,
        draws: int, # the numbers of a `place`, of this loader or one like it
        used: int,
    ) -> None:
        "The next batch is the one that followed there; nothing before it is read"
        self._batches, self.draws, self.used = None, draws, used

    def close(self) -> None:
        "Let go of pictures and workers; the next batch is the first of the next draw"
        self.go_to(self.draws, 0)

    def _endless(self) -> Iterator[Batch]:
        labeled = self.dl.only(self.indices, self.bs)
        while True:
            if not 0 < self.used < self.ahead: self.draws, self.used = self.draws + 1, 0
            order = torch.from_numpy(self._draw(self.draws - 1)[self.used:])
            share = order[:, rank() * self.bs:(rank() + 1) * self.bs].flatten()
            for batch in labeled._with_labels(labeled._images(share)):  # it may read ahead
                self.used += 1
                yield batch

    def _draw(self, number: int) -> np.ndarray:
        "The pictures of the batches of a draw, places among those with labels: int64 [ahead, S]"
        rng = np.random.default_rng((self.seed, 5, number))
        classes = rng.random((self.ahead, len(self.counts))).argsort(1)[:, :self.classes_per_batch]
        start, count = self.starts[classes], self.counts[classes]
        chosen = np.empty((*classes.shape, self.per_class), dtype=np.int64)
        # Floyd's way to draw k of n without replacement: in round j one of the first n - k + j + 1, and if that has
        # been drawn, the last of these; a class of fewer than k repeats itself
        enough = count >= self.per_class
        for j in range(self.per_class):
            last = np.where(enough, count - self.per_class + j, count - 1)
            drawn = rng.integers(last + 1)
            again = (chosen[..., :j] == drawn[..., None]).any(-1)
            chosen[..., j] = np.where(again & enough, last, drawn)
        # classes by turns: of a part that is of one class BatchNorm would take away what tells it from others
        return (start[..., None] + chosen).swapaxes(1, 2).reshape(self.ahead, -1)
