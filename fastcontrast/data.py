"""From a folder, shards, a name or a data set to `DataLoaders` whose batches are plain tensors, already on the device.

Docs: https://fastcontrast.github.io/fastcontrast/data.html.md"""
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import Normalize
from fastai.torch_core import default_device
from torch.utils.data import Dataset

from .cache import open_store, store_path
from .core import InputError, MissingPath, is_number, number, suggest, whole
from .distributed import join_processes, local_world_size, rank, world_size
from .files import from_list, read_text
from .folders import by_folder, find_pictures
from .loaders import (FastaiLoader, ImageData, ImageLoader, ImageLoaders, MappedLoader, PictureStream, ResidentLoader,
                      ShardLoader, StratifiedLoader, StreamingLoader, decode_all, empty_loader, load_rows)
from .pictures import MOST_SIDE, Files, Items, Pictures, common_size, first_ten
from .shards import Shards, shard_paths

__all__ = ['SOURCES', 'VALID_FOLDERS', 'ImageData', 'ImageLoader', 'ImageLoaders', 'StratifiedLoader', 'find_pictures',
           'image_dls', 'stratified']

SOURCES = ('digits',)
VALID_FOLDERS = ('val', 'valid', 'validation', 'test')


@dataclass
class _Source:
    "The pictures that a source has"
    train: Pictures | Shards
    valid: Pictures | Shards | None # None: to be split off
    classes: list[str] | None       # None: unlabelled
    name: str                       # what messages call the source

# --- folders

def _scan(folder: Path, classes: list[str] | None = None) -> tuple[Files, list[str] | None]:
    "The pictures of one split and its classes (None: unlabelled); `classes` given: there must be no others"
    loose, below, left_out = by_folder(folder)
    if loose and below:
        raise InputError(f"'{folder}' holds loose pictures ({loose[0]}) beside folders of pictures "
                         f"({next(iter(below))}): put every picture into a class folder, or none")
    if not loose and not below:
        raise InputError(f"there is no picture in '{folder}' or in its folders" + (left_out and f": {left_out}"))
    if left_out and not rank(): print(left_out, file=sys.stderr)
    if loose: return Files(folder, loose, np.full(len(loose), -1)), None
    unknown = sorted(set(below) - set(classes or below))
    if unknown:
        raise InputError(f"the validation folder '{folder}' has classes that training lacks: "
                         f"{', '.join(unknown[:10])}")
    classes = classes or list(below)
    names = [f'{f}/{name}' for f in below for name in below[f]]
    y = np.repeat([classes.index(f) for f in below], [len(below[f]) for f in below])
    return Files(folder, names, y), classes


def _valid_folder(root: Path) -> Path | None:
    "The folder beside train/ that holds the validation split"
    return next((root/f for f in VALID_FOLDERS if (root/f).is_dir()), None)


def _open_folder(source: str | Path, valid: float | str | Path) -> _Source:
    root = Path(source).expanduser()
    folder = root/'train' if (root/'train').is_dir() else root
    held = _valid_folder(root)
    if folder == root and held: raise InputError(f"'{root}' has a folder {held.name}/ but no train/")
    if isinstance(valid, (str, Path)): held = Path(valid).expanduser()
    if held and not held.is_dir(): raise MissingPath(f"there is no validation folder '{held}'")
    train, classes = _scan(folder)
    return _Source(train, _scan(held, classes or [])[0] if held else None, classes, str(source))


def _open_path(source: str | Path, valid: Any) -> _Source:
    "A name that is to be a folder"
    root = Path(source).expanduser()
    if not root.exists():
        if root.name == str(source): raise MissingPath(suggest(source, SOURCES, 'folder or data set'))
        raise MissingPath(f"there is no folder '{source}'")
    if not root.is_dir(): raise InputError(f"'{source}' is a file: give the folder that holds the pictures")
    if not (is_number(valid) or isinstance(valid, (str, Path))):
        raise InputError(f"for a folder, valid is a share or another folder, not {type(valid).__name__}")
    return _open_folder(source, valid)

# --- data sets

class _Digits(Dataset):
    "scikit-learn's handwritten digits, enlarged: the first 1,400, or the others, which have other writers"
    def __init__(self, size: int, training: bool):
        from sklearn.datasets import load_digits  # here, because it takes a second that most runs need not spend
        digits, split = load_digits(), slice(1400) if training else slice(1400, None)
        x = torch.from_numpy(digits.images[split]).float()[:, None] * (255 / 16)
        self.x = F.interpolate(x, (size, size), mode='bilinear', align_corners=False).round().to(torch.uint8)
        self.targets, self.classes = digits.target[split], [str(c) for c in range(10)]

    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], int(self.targets[i])


def _open_digits(size: int, valid: Any) -> _Source:
    if not is_number(valid): raise InputError(f"valid={valid} should be a share in [0, 1) for the digits")
    return _open_datasets('digits', _Digits(size, training=True), _Digits(size, training=False))


def _dataset_labels(dataset: Dataset) -> np.ndarray:
    "int64 [N]; -1 where there is none"
    def label(i):
        try: item = dataset[i]
        except Exception: return -1  # a picture that cannot be decoded: it is reported when it is read
        return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else -1
    y = getattr(dataset, 'targets', getattr(dataset, 'labels', None))
    if y is None or len(y) != len(dataset) or getattr(dataset, 'target_transform', None) is not None:
        y = [label(i) for i in range(len(dataset))]
    try: y = np.array([int(c) for c in y], dtype=np.int64)
    except (TypeError, ValueError):
        raise InputError(f"the labels of {type(dataset).__name__} should be one integer a picture") from None
    if y.min() < -1:
        raise InputError(f"the labels of {type(dataset).__name__} should be 0 or more, or -1 for none, not {y.min()}")
    return y


def _open_datasets(name: str, *datasets: Dataset) -> _Source:
    "A data set, and another one to validate if there is one; `name`: what messages call the first"
    for dataset in datasets:
        if isinstance(dataset, (str, Path)) or not (hasattr(dataset, '__getitem__') and hasattr(dataset, '__len__')):
            raise InputError(f"a {type(dataset).__name__} has no pictures to index: give a folder, "
                             "a data set with len() and [i] (for both parts), or fastai DataLoaders")
    splits = []
    for dataset in datasets:
        if not len(dataset): raise InputError(f"{type(dataset).__name__} is empty: there is no picture in it")
        splits.append(Items(dataset, np.arange(len(dataset)), _dataset_labels(dataset)))
    y, classes = splits[0].y, None
    if y.max() >= 0: classes = [str(c) for c in getattr(datasets[0], 'classes', None) or range(y.max() + 1)]
    for items, role in zip(splits, ('training', 'validation'), strict=False):
        if items.y.max() >= len(classes or ()):
            raise InputError(f"the {role} data {type(items.dataset).__name__} has label {items.y.max()}, "
                             f"but training has {len(classes or ())} classes")
    return _Source(splits[0], splits[1] if len(splits) > 1 else None, classes, name)

# --- which split, which labels

def stratified(
    y: np.ndarray,             # int [N], classes; those below 0 are never chosen
    share: float,              # of every class, in (0, 1]
    seed: int | Sequence[int], # the same seed chooses the same pictures, on every machine
    leave: int = 0,            # at least this many of each class are not chosen
) -> np.ndarray:               # bool [N]
    "Choose the same share of every class at random, at least one picture of each (where `leave` allows)"
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind='stable')]
    classes, counts = np.unique(y, return_counts=True)
    chosen = np.zeros(len(y), dtype=bool)
    for c, members in zip(classes, np.split(order, np.cumsum(counts)[:-1]), strict=True):
        if c >= 0: chosen[members[:min(max(1, round(share * len(members))), len(members) - leave)]] = True
    return chosen


def _labels_file(path: Path, names: list[str]) -> np.ndarray:
    "bool [N]: which of the names stand in the file"
    if not path.is_file(): raise MissingPath(f"there is no file '{path}' with the names of labelled pictures")
    known: dict[str, list[int]] = {}
    for i, name in enumerate(names): known.setdefault(name.rpartition('/')[2], []).append(i)
    for i, name in enumerate(names): known[name] = [i]  # a whole path goes before a file name
    chosen = np.zeros(len(names), dtype=bool)
    try: lines = read_text(path, most=2**30).splitlines()
    except (OSError, ValueError) as e: raise InputError(f"the names in '{path}' can't be read: {e}") from None
    for row, line in enumerate(lines, 1):
        name = from_list(line)
        if not name: continue
        found = known.get(name, [])
        if len(found) != 1:
            reason = "no picture has it"
            if found: reason = f"{len(found)} pictures have that name, write the folder before it"
            raise InputError(f"line {row} of '{path}' is '{name}': {reason}")
        chosen[found] = True
    if not chosen.any(): raise InputError(f"'{path}' names no picture")
    return chosen


def _labeled(labels: None | str | Path | float | bool, pictures: Pictures, train: np.ndarray, seed: int) -> np.ndarray:
    "bool, for each training picture: may training use its label? `train`: which of the pictures those are"
    y = pictures.y[train]
    if labels is None: return np.zeros(len(y), dtype=bool)
    if pictures.y.max() < 0:
        raise InputError(f"labels={labels} but the pictures have no labels: use class folders or labels=None")
    if isinstance(labels, str) and labels == 'all' or labels is True: labels = 1.
    if isinstance(labels, (str, Path)):
        return _labels_file(Path(labels).expanduser(), pictures.names)[train] & (y >= 0)
    if not is_number(labels) or not 0 < labels <= 1:
        raise InputError(f"labels={labels} should be None, 'all', a fraction in (0, 1] or a file of names")
    return stratified(y, labels, (seed, 2))


def _all_labels(
    labels: None | str | bool | float, # of `image_dls`, for a source whose pictures can't be chosen one by one
    classes: list[str] | None,
    unchosen: str,   # the sentence after `labels=…` where some are asked for
    unlabelled: str, # and where there are none
) -> bool:
    "May training use all labels? Else none"
    if labels is None: return False
    if labels not in ('all', True): raise InputError(f"labels={labels} {unchosen}")
    if not classes: raise InputError(f"labels={labels} {unlabelled}")
    return True

# --- what was asked for

@dataclass
class _Settings:
    "The arguments of `image_dls`, checked, and with what depends on this machine filled in"
    size: int | None
    bs: int
    labels: None | str | Path | float | bool
    valid: float | str | Path | Sequence | Dataset
    seed: int
    workers: int | None # processes that decode while the model trains
    memory: float
    strict: bool
    device: torch.device | str | None
    cache: None | bool | str | Path
    builders: int = field(init=False) # processes that decode, or look into shards, before that

    def __post_init__(self):
        self._check()
        own = join_processes()
        if self.bs % world_size():
            raise InputError(f"bs={self.bs} cannot be divided among {world_size()} processes, "
                             f"choose a multiple of {world_size()}")
        self.device = _device(own if self.device is None else self.device)
        self.builders = os.cpu_count() if self.workers is None else self.workers
        if self.workers is None: self.workers = min(8, max(1, os.cpu_count() // local_world_size()))

    def _check(self):
        whole(size=self.size, most=MOST_SIDE, optional=True)
        whole(bs=self.bs, least=2)  # a picture needs another to be told from
        whole(seed=self.seed, least=0)
        whole(workers=self.workers, least=0, optional=True)
        number(memory=self.memory, above=0, most=1)
        if self.valid is None or isinstance(self.valid, Real): number(valid=self.valid, least=0, below=1)
        if not isinstance(self.cache, (type(None), bool, str, Path)) or self.cache == '':
            raise InputError(f"cache={self.cache!r} should be True, for a folder beside the pictures, "
                             "or another folder")

    def check_batch(self, n: int, source: str):
        "The training split, of `n` pictures, must fill a batch"
        if self.bs <= n: return
        raise InputError(f"bs={self.bs} is larger than the training part of {source} ({n} pictures), "
                         "choose a smaller bs")


def _device(device: str | torch.device | None) -> torch.device:
    "A device that is there"
    if device is None: return default_device()
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise InputError(f"device={device} cannot be used here: {str(e).splitlines()[0]}") from None
    return torch.device('cuda', torch.cuda.current_device()) if device == torch.device('cuda') else device


def _free_memory(device: torch.device) -> int:
    "Bytes"
    return torch.cuda.mem_get_info(device)[0] if device.type == 'cuda' else psutil.virtual_memory().available


def _sizes(splits: Sequence[Pictures | Shards], size: int | None) -> tuple[int, int]:
    "Side of what the model sees, and of the pictures in a batch"
    common = common_size(splits)
    size = size or (common if common and common <= 256 else 224)
    return size, size if common == size else round(1.15 * size)

# --- loaders of pictures

@dataclass
class _Split:
    "The pictures that train, or those that validate"
    pictures: Pictures
    labeled: np.ndarray # bool [N]: may its label be used?
    rows: np.ndarray    # int64 [N], where they stand in a store
    training: bool


def _split(source: _Source, settings: _Settings) -> tuple[_Split, _Split]:
    "Training and validation pictures, a share of every class where the source has no validation split of its own"
    listed, valid = source.train, source.valid
    chosen = np.zeros(len(listed), dtype=bool)
    if valid is None and source.classes and settings.valid:
        chosen = stratified(listed.y, settings.valid, (settings.seed, 1), leave=1)
    kept, rows = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    train = listed.subset(kept) if len(rows) else listed
    if valid is None: valid = listed.subset(rows)
    else: rows = np.arange(len(valid))
    labeled = _labeled(settings.labels, listed, kept, settings.seed)
    return _Split(train, labeled, kept, training=True), _Split(valid, valid.y >= 0, rows, training=False)


def _open_stores(source: _Source, side: int, settings: _Settings) -> list[tuple[torch.Tensor, dict[int, str]] | None]:
    "The store of each split, where there is to be one; of all pictures of a folder, so that it does for any split"
    def opened(pictures: Pictures, name: str):
        path = store_path(settings.cache, source.name, name, side)
        return open_store(pictures, side, path, settings.builders, settings.strict)
    if not settings.cache: return [None, None]
    if source.valid is None: return [opened(source.train, 'all')] * 2
    return [opened(source.train, 'train'), opened(source.valid, 'valid')]


def _make_loader(
    split: _Split,
    classes: list[str] | None,
    store: tuple[torch.Tensor, dict[int, str]] | None, # pixels and failures of all that were listed
    side: int,      # of the pictures in a batch
    resident: bool, # do they fit in the device's memory?
    settings: _Settings,
) -> ImageLoader:
    pictures, device = split.pictures, settings.device
    good, failed = np.ones(len(pictures), dtype=bool), {}
    if store:
        pixels, broken = store
        good = ~np.isin(split.rows, list(broken))
        failed = {pictures.shown(i): broken[split.rows[i]] for i in np.flatnonzero(~good)}
        rows = torch.from_numpy(split.rows[good])
        # a CPU's memory would hold the mapped pages a second time
        if resident and device.type == 'cuda': make = partial(ResidentLoader, load_rows(pixels, rows, device))
        else: make = partial(MappedLoader, pixels, rows)
    elif resident:
        images, good, failed = decode_all(pictures, side, device, settings.strict)
        make = partial(ResidentLoader, images)
    else: make = partial(StreamingLoader, PictureStream(pictures, side), settings.workers, settings.strict)
    data = ImageData([pictures.names[i] for i in np.flatnonzero(good)], torch.from_numpy(pictures.y[good]),
                     torch.from_numpy(split.labeled[good]), classes, failed)
    if failed and not len(data): raise InputError(f"no picture could be decoded: {first_ten(failed.items())}")
    return make(data, settings.bs, device, training=split.training, seed=settings.seed)


def _picture_loaders(source: _Source, settings: _Settings) -> ImageLoaders:
    "Loaders of pictures that can be read in any order"
    splits = _split(source, settings)
    train, valid = (split.pictures for split in splits)
    settings.check_batch(len(train), source.name)
    size, side = _sizes((train, valid), settings.size)
    copies = local_world_size() if settings.device.type == 'cpu' else 1
    need = (len(train) + len(valid)) * 3 * side * side * copies
    resident = need <= settings.memory * _free_memory(settings.device)
    loaders = [_make_loader(split, source.classes, store, side, resident, settings)
               for split, store in zip(splits, _open_stores(source, side, settings), strict=True)]
    settings.check_batch(len(loaders[0].data), source.name)  # what could not be decoded is left out
    return ImageLoaders(*loaders, size=size, source=source.name)

# --- loaders of shards

def _open_shards(source: Any, settings: _Settings) -> _Source | None:
    "None: the source is none of shards"
    valid, workers = settings.valid, settings.builders
    root = Path(source).expanduser() if isinstance(source, (str, Path)) else None
    nested = root is not None and (root/'train').is_dir()
    paths = shard_paths(root/'train' if nested else source)
    if not paths: return None
    if root is not None and root.is_dir() and find_pictures(root): return None  # an archive beside what was in it
    held = valid
    if is_number(valid): held = _valid_folder(root) if nested else None
    name = f'{len(source)} shards' if root is None else str(source)
    train = Shards(paths, workers)
    top = int(train.labels().max())
    classes = [str(c) for c in range(top + 1)] if top >= 0 else None
    if held is None:
        train, held = _split_shards(train, valid if classes else 0, settings.seed)
        return _Source(train, held, classes, name)
    if not (paths := shard_paths(held)):
        raise InputError(f"valid={held} names no shards: give .tar files, or a folder of them")
    held = Shards(paths, workers)
    if held.labels().max() > top:
        raise InputError(f"the validation shards have class {held.labels().max()}, but training has {top + 1} classes")
    return _Source(train, held, classes, name)


def _split_shards(shards: Shards, share: float, seed: int) -> tuple[Shards, Shards]:
    "A share of whole shards validates: at least one, and not all"
    n = min(max(1, round(share * len(shards.paths))), len(shards.paths) - 1) if share else 0
    chosen = np.zeros(len(shards.paths), dtype=bool)
    chosen[np.random.default_rng((seed, 1)).permutation(len(chosen))[:n]] = True
    return shards.subset(np.flatnonzero(~chosen)), shards.subset(np.flatnonzero(chosen))


def _shard_loaders(source: _Source, settings: _Settings) -> ImageLoaders:
    "Loaders that read shards from front to back"
    all_labels = _all_labels(settings.labels, source.classes,
        "does not work with shards, whose pictures are not chosen one by one: give None or 'all'",
        "but the shards have no labels: put a .cls file beside each picture in them")
    settings.check_batch(len(source.train), source.name)
    size, side = _sizes((source.train, source.valid), settings.size)
    loaders = []
    for shards, training in ((source.train, True), (source.valid, False)):
        y = shards.labels()
        labeled = y >= 0 if all_labels or not training else torch.tensor(False).expand(len(y))
        data = ImageData(range(len(y)), y, labeled, source.classes)
        loaders.append(ShardLoader(shards, side, settings.workers, settings.strict, data, settings.bs, settings.device,
                                   training=training, seed=settings.seed))
    return ImageLoaders(*loaders, size=size, source=source.name)

# --- loaders of fastai's

def _check_fastai(dls: DataLoaders):
    "Can these be used?"
    if world_size() > 1:
        raise InputError("fastai DataLoaders choose themselves what they read, so several processes can't share them: "
                         "give image_dls the folder instead")
    if not all(isinstance(dl, TfmdDL) for dl in dls.loaders):
        raise InputError("the DataLoaders hold loaders that are not fastai's: give their data set instead")
    if any(isinstance(t, Normalize) for dl in dls.loaders for t in dl.after_batch.fs):
        raise InputError("the DataLoaders normalise their batches, but views need pictures in [0, 1]: "
                         "remove Normalize from batch_tfms")


def _check_fastai_batch(x: torch.Tensor):
    if x.ndim != 4:
        raise InputError(f"the first input of the DataLoaders should be pictures [B, 3, H, W], not {list(x.shape)}")
    if x.is_floating_point() and (x.min() < 0 or x.max() > 1):
        raise InputError(f"the pictures of the DataLoaders go from {x.min():.2f} to {x.max():.2f}, "
                         "but views need them in [0, 1]")


def _fastai_data(dl: TfmdDL, classes: list[str] | None, labeled: bool) -> ImageData:
    items = getattr(dl.dataset, 'items', range(len(dl.dataset)))
    try: y = torch.tensor([int(c) for c in dl.dataset.tls[1]] if classes else [-1] * len(items), dtype=torch.int64)
    except (TypeError, ValueError, AttributeError):
        raise InputError("the labels of the DataLoaders should be one class a picture") from None
    return ImageData([str(i) for i in items], y, torch.full((len(y),), labeled), classes)


def _fastai_loaders(dls: DataLoaders, settings: _Settings) -> ImageLoaders:
    "fastai's `DataLoaders` as ours"
    _check_fastai(dls)
    classes = [str(c) for c in dls.vocab] if hasattr(dls, 'vocab') else None
    labeled = _all_labels(settings.labels, classes,
        "does not work with fastai DataLoaders, which offer None or 'all': give the folder instead",
        "but the DataLoaders have no classes")
    loaders = [FastaiLoader(dl, _fastai_data(dl, classes, labeled), dl.bs, settings.device, training=i == 0,
                            seed=settings.seed)
               for i, dl in enumerate(dls.loaders[:2])]
    if not len(loaders[0]):
        raise InputError("the training part of the DataLoaders has no whole batch: choose a smaller bs")
    if len(loaders) < 2: loaders.append(empty_loader(loaders[0]))
    x = loaders[0].one_batch()[0]
    _check_fastai_batch(x)
    return ImageLoaders(*loaders, size=settings.size or min(x.shape[-2:]), source='fastai DataLoaders')

# --- all together

def _open(source: Any, valid: Any, size: int | None) -> _Source:
    "A source of pictures that can be read in any order"
    if isinstance(source, str) and source in SOURCES: return _open_digits(size or 32, valid)
    if isinstance(source, (str, Path)): return _open_path(source, valid)
    datasets = (source,) if is_number(valid) else (source, valid)
    return _open_datasets(type(source).__name__, *datasets)


def image_dls(
    source: str | Path | Sequence | Dataset | DataLoaders, # where the pictures are, see below
    size: int | None = None,    # side of the square the model will see; None: the pictures' own if clear, else 224
    bs: int = 256,              # pictures a batch, 2 or more; of all processes together, where several train
    labels: None | str | Path | float | bool = None, # training may know: None, 'all', a share, or those in a file
    valid: float | str | Path | Sequence | Dataset = 0.2, # a share in [0, 1); or a folder, shards or data set
    seed: int = 0,              # of the split, the choice of labels and the shuffle, 0 or more
    workers: int | None = None, # processes that decode when streaming, of each that trains; None: its cores, at most 8
    memory: float = 0.25,       # share of the device's free memory, in (0, 1], that resident pictures may fill
    strict: bool = False,       # is a picture that cannot be decoded an error?
    device: str | torch.device | None = None, # where the batches go; None: the GPU if there is one
    cache: None | bool | str | Path = None, # keep a folder's pictures decoded in this one; True: NAME.cache beside it
) -> ImageLoaders:              # batches `(uint8 [bs, 3, R, R], int64 [bs])`; `classes`, `size`, `source`, `report()`
    """`DataLoaders` of pictures for contrastive training; whatever cannot work is an `InputError` (`MissingPath`)

    `source`: a folder, shards ('shards/{000..146}.tar', a list or folder of such), a torchvision-style data set, fastai
    `DataLoaders`, or 'digits'. A share as `valid` counts only for a source with classes and no validation split."""
    settings = _Settings(size, bs, labels, valid, seed, workers, memory, strict, device, cache)
    shards = None if isinstance(source, (DataLoaders, Dataset)) else _open_shards(source, settings)
    if cache and (shards or not isinstance(source, (str, Path)) or source in SOURCES):
        raise InputError(f"cache={cache} keeps a folder of pictures decoded, and the source is none: "
                         "leave cache (--cache) out")
    if isinstance(source, DataLoaders): return _fastai_loaders(source, settings)
    if shards: return _shard_loaders(shards, settings)
    return _picture_loaders(_open(source, valid, size), settings)
