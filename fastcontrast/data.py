"""From a folder, shards, a name or a data set to `DataLoaders` whose batches are plain tensors, already on the device.

Docs: https://fastcontrast.github.io/fastcontrast/data.html.md"""
import difflib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
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
from .core import (LARGEST_SIDE, InputError, MissingPath, clipped, first_of, is_number, number, number_of, shown,
                   usable_cores, whole)
from .distributed import join_processes, local_world_size, own_cores, rank, world_size
from .files import from_list, megabytes, read_text, user_path
from .formats import LONGEST, PixelFormat
from .folders import Left, by_folder, find_pictures, folders_beside, list_folder, loose_kind
from .loaders import (FastaiLoader, ImageData, ImageLoader, ImageLoaders, MappedLoader, PictureStream, ResidentLoader,
                      ShardLoader, StratifiedLoader, StreamingLoader, decode_all, empty_loader, load_rows, outside)
from .pictures import Files, Names, Pictures, by_reason, common_size, short_and_long
from .sample import Kept, check_range, kept_of
from .shards import Shards, shard_paths
from .sources import (TABLES, Columns, Labels, Part, are_labelled, are_shards, is_table, open_collection,
                      without_labels)

__all__ = ['BUILT_IN', 'VALID_FOLDERS', 'ImageData', 'ImageLoader', 'ImageLoaders', 'StratifiedLoader', 'find_pictures',
           'image_dls', 'stratified']

BUILT_IN = ('digits',)
VALID_FOLDERS = ('val', 'valid', 'validation', 'test')
# beginning of a name like test1 or Val_2, which is no class
_VALIDATES = re.compile(f"(?:{'|'.join(VALID_FOLDERS)})(?![a-z])", re.IGNORECASE)
BATCH = 256  # pictures, where nobody says how many
MOST_CHANNELS = 4096 # as of the finest spectrometers, many times over
SOME_LABELS = "'all', a fraction in (0, 1], like 0.1, or a file of names (without it, training knows none)"
WITHIN = 0.2 # share of pictures that are judged within themselves which is tested on the others
# short side at which pictures are kept, over that of the views, so that more than half of the crops of 0.08 to 1
# of their area have as many pixels as the view. The median of these is 0.54, and 1 / sqrt(0.54) = 1.36; large ones of
# another shape than the picture don't fit and are drawn anew, so it takes 1.4; and what is squashed has fewer across
SPARE = 1.5

# --- folders

def _scan(folder: Path, classes: list[str] | None = None) -> tuple[Files, list[str] | None]:
    "The pictures of one split and its classes (None: unlabelled); `classes` given: there must be no others"
    loose, below, left = by_folder(folder)
    if loose and below:
        raise InputError(f"'{folder}' holds loose pictures ({loose[0]}) beside folders of pictures "
                         f"({next(iter(below))}): put every picture into a class folder, or take them all as they lie, "
                         "without classes, by unlabelled=True (--unlabelled)")
    _check_found(folder, [loose] if loose else [*below.values()], left)
    if loose: return Files(folder, loose, np.full(len(loose), -1)), None
    unknown = sorted(set(below) - set(classes or below))
    if unknown:
        raise InputError(f"the validation folder '{folder}' has classes that training lacks: "
                         f"{', '.join(unknown[:10])}")
    classes = classes or list(below)
    y = np.repeat([classes.index(f) for f in below], [len(below[f]) for f in below])
    return Files(folder, Names.in_folders(below), y), classes


def _train_folder(root: Path, note: Callable[[str], None]) -> Path | None:
    """The folder train/ of a training split; None: there is none, or it is a class like those beside it

    Where none validates it is a class, if it holds loose pictures alone, and a folder beside it has some, too."""
    folder = root/'train'
    if not folder.is_dir(): return None
    beside, alike = folders_beside(folder, but=('train', *VALID_FOLDERS))
    validates = _valid_folder(root) or any(map(_VALIDATES.match, beside))
    if alike and not validates: return None
    if beside: note(f"folders of pictures beside train/ are left out: {first_of(beside)}")
    return folder


def _valid_folder(root: Path) -> Path | None:
    "The folder beside train/ that holds the validation split"
    return next((root/f for f in VALID_FOLDERS if (root/f).is_dir()), None)


def has_valid(
    source: str, # a folder, a table, shards or 'digits'
) -> bool:
    "Whether a source has a validation split of its own, so that no share of it is drawn for one"
    root = user_path(source, 'source')
    beside = _valid_folder(root) if (root/'train').is_dir() else None
    # without labels it judges nothing, and where training has some, a share of its pictures does: see `_judge_nothing`
    return source in BUILT_IN or beside is not None and not (loose_kind(beside) and not loose_kind(root/'train'))


def _folder_part(folder: Path, name: str, unlabelled: bool) -> Part:
    "The pictures of a folder, with its folders as classes; `unlabelled`: as they lie"
    if not unlabelled:
        files, classes = _scan(folder)
        return Part(files, Labels(files.y, classes, named=True), name, origin='folders')
    listing = list_folder(folder)
    names = listing.pictures
    _check_found(folder, [names], listing.left)
    return without_labels(Files(folder, names, np.full(len(names), -1)), name)


def _check_found(folder: Path, found: Sequence[list[str]], left: Left):
    "Raise `InputError` if there is no picture, or hardly one among what may be meant; else say what was left out"
    words = left.words(found)
    if not any(found):
        raise InputError(f"there is no picture in '{folder}' or in its folders" + (words and f": {words}"))
    left.check(folder, found)
    if words and not rank(): print(words, file=sys.stderr)


def _no_folder(root: Path, source: str) -> str:
    "The sentence for a folder that is not there, with what is called nearly so: beside it, or built in"
    by_name = root.name == source
    try: beside = [path.name for path in islice(root.parent.iterdir(), 1000) if path.is_dir()]
    except OSError: beside = []
    near = difflib.get_close_matches(root.name, [*(BUILT_IN if by_name else ()), *beside], n=3, cutoff=0.6)
    if near and not by_name: near = [str(root.with_name(name)) for name in near]
    if near: return f"there is no folder '{clipped(source)}': did you mean {' or '.join(map(clipped, near))}?"
    built_in = f", and no data set of that name is built in: there is {first_of(BUILT_IN)}." if by_name else ''
    return f"there is no folder '{clipped(source)}'{built_in}"


def _open_folder(
    source: str | Path,
    unlabelled: bool, # is it taken as it is?
    held: bool,       # is a validation split wanted?
    note: Callable[[str], None], # gets what is worth one
) -> tuple[Part, Part | None]:
    "The pictures of a name that is to be a folder, and those of its validation split, where it has one"
    root = user_path(source, 'source')
    if not root.exists():
        raise MissingPath(_no_folder(root, str(source)))
    if not root.is_dir():
        raise InputError(f"'{source}' is a file: give the folder that holds the pictures, or a table of their paths "
                         f"({', '.join(TABLES)})")
    folder, beside = _train_folder(root, note), _valid_folder(root)
    if folder is None:
        if beside and not unlabelled: raise InputError(f"'{root}' has a folder {beside.name}/ but no train/")
        return _folder_part(root, str(source), unlabelled), None
    train = _folder_part(folder, str(source), unlabelled)
    if not beside or not held: return train, None
    if train.classes:
        files, _ = _scan(beside, train.classes)
        return train, Part(files, replace(train.labels, y=files.y), str(beside))
    try: return train, _folder_part(beside, str(beside), unlabelled=False)
    except InputError:  # it has no classes to judge by, which nobody has asked for
        if unlabelled: return train, None
        raise

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


def _open_digits(size: int, columns: Columns, unlabelled: bool) -> tuple[Part, Part]:
    return tuple(replace(open_collection(_Digits(size, training), columns, unlabelled), name='digits')
                 for training in (True, False))

# --- which split, which labels

def stratified(
    y: np.ndarray,             # int [N], classes; those below 0 are never chosen
    share: float,              # of every class, in (0, 1]
    seed: int | Sequence[int], # the same seed chooses the same pictures, on every machine
    leave: int = 0,            # at least this many of each class are not chosen
) -> np.ndarray:               # bool [N]
    "Choose the same share of every class at random, at least one picture of each (where `leave` allows)"
    if len(y) and -2**15 <= y.min() and y.max() < 2**15: y = y.astype(np.int16)  # these are sorted ten times as fast
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind='stable')]
    classes, counts = np.unique(y, return_counts=True)
    chosen = np.zeros(len(y), dtype=bool)
    for c, members in zip(classes, np.split(order, np.cumsum(counts)[:-1]), strict=True):
        if c >= 0: chosen[members[:min(max(1, round(share * len(members))), len(members) - leave)]] = True
    return chosen


def named_pictures(
    wanted: Iterable[tuple[str, str]], # where a name stands, for the message, and the name: a path, or its last part
    names: Sequence[str],              # of N pictures
) -> np.ndarray:                       # bool [N]
    "Which pictures have the names that are wanted. Raises `InputError` for a name of none, or of several"
    known: dict[str, list[int]] = {}
    for i, name in enumerate(names): known.setdefault(name.rpartition('/')[2], []).append(i)
    for i, name in enumerate(names): known[name] = [i]  # a whole path goes before a file name
    chosen = np.zeros(len(names), dtype=bool)
    for place, name in wanted:
        found = known.get(name, [])
        if len(found) != 1:
            reason = "no picture has it"
            if found: reason = f"{len(found)} pictures have that name, write the folder before it"
            raise InputError(f"{place} is '{name}': {reason}.")
        chosen[found] = True
    return chosen


def pictures_in_list(
    path: Path,           # of a file with the name of a picture on each line
    names: Sequence[str], # of N pictures
) -> np.ndarray:          # bool [N]
    "Which of the names stand in a file. Raises `InputError` for a file that names others, or none"
    try: lines = read_text(path, most=2**30).splitlines()
    except (OSError, ValueError) as e: raise InputError(f"the names in '{path}' can't be read: {e}") from None
    wanted = ((f"line {row} of '{path}'", from_list(line)) for row, line in enumerate(lines, 1))
    chosen = named_pictures(((place, name) for place, name in wanted if name), names)
    if not chosen.any(): raise InputError(f"'{path}' names no picture")
    return chosen


def _labeled(
    part: Part,
    train: np.ndarray, # int64 [N], which of its pictures are for training
    settings: '_Settings',
) -> np.ndarray:       # bool [N]
    "May training use their labels?"
    y, labels = part.y[train], settings.labels
    if labels is None: return np.zeros(len(y), dtype=bool)
    if not part.classes or part.y.max() < 0:
        reason = part.labels.reason or "the pictures have no labels: use class folders or labels=None"
        raise InputError(f"labels={labels} but {reason}")
    if isinstance(labels, str) and labels == 'all' or labels is True: labels = 1.
    if isinstance(labels, (str, Path)):
        path = user_path(labels, 'labels')
        if not path.is_file():
            raise MissingPath(f"there is no file '{path}' with the names of labelled pictures: labels should be "
                              f"{SOME_LABELS}")
        return _not_held(pictures_in_list(path, part.pictures.names), part, train, path, settings.note)
    if not is_number(labels) or not 0 < labels <= 1:
        raise InputError(f"labels={labels} should be {SOME_LABELS}")
    return stratified(y, labels, (settings.seed, 2))


def _not_held(
    named: np.ndarray, # bool, for each picture of the part: is it named?
    part: Part,
    train: np.ndarray, # as in `_labeled`
    path: Path,        # of the names
    note: Callable[[str], None], # gets what is worth one
) -> np.ndarray:       # as of `_labeled`
    "Those of the named pictures that train and have a label, where it is said how many are lost to what judges"
    known, n = named[train] & (part.y[train] >= 0), int(named.sum())
    held = n - int(named[train].sum())
    lost = f"{held:,} of the {n:,} pictures named in '{path}' {'are' if held > 1 else 'is'} held out to judge by"
    if held and not known.any():
        raise InputError(f"labels={path} leaves no label to training, as {lost}: give valid=0 (--valid 0), other "
                         "pictures as valid, or other names.")
    if held: note(f"{lost}, and training does not use their labels")
    return known


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

@dataclass(kw_only=True)
class _Settings:
    "The arguments of `image_dls`, checked, and with what depends on this machine filled in"
    size: int | None
    store_size: int | None # None: what the usual crops want
    bs: int | None      # None: 256; fewer where there are fewer pictures
    labels: None | str | Path | float | bool
    valid: float | Any
    seed: int
    workers: int | None # processes that decode while the model trains
    memory: float
    strict: bool
    device: torch.device | str | None
    cache: None | bool | str | Path
    unlabelled: bool
    columns: Columns
    value_range: tuple[float, float] | None
    channels: int | None
    tell: Callable[[str], None] # gets each note
    training: bool         # or are pictures only looked at?
    builders: int = field(init=False) # processes that decode into a cache, or look into shards, before that
    decoders: int = field(init=False) # processes that decode into memory, of each that trains
    notes: list[str] = field(default_factory=list, init=False) # that were told

    def __post_init__(self):
        usual = self.bs is None
        if usual: self.bs = BATCH
        self._check()
        own = join_processes()
        if usual: self.bs -= self.bs % world_size()
        if self.bs % world_size():
            raise InputError(f"bs={self.bs} cannot be divided among {world_size()} processes, "
                             f"choose a multiple of {world_size()}")
        self.device = _device(own if self.device is None else self.device)
        self.builders = usable_cores() if self.workers is None else self.workers
        self.decoders = own_cores() if self.workers is None else self.workers
        if self.workers is None: self.workers = min(8, self.decoders)

    def _check(self):
        whole(size=self.size, most=LARGEST_SIDE, optional=True)
        whole(store_size=self.store_size, least=2, most=LARGEST_SIDE, optional=True)
        whole(bs=self.bs, least=2)  # a picture needs another to be told from
        whole(seed=self.seed, least=0)
        whole(workers=self.workers, least=0, optional=True)
        number(memory=self.memory, least=0, most=1)
        whole(channels=self.channels, most=MOST_CHANNELS, optional=True)
        if self.value_range is not None: check_range(self.value_range)
        self._check_labels()
        if self.valid is None or isinstance(self.valid, Real): self._check_share()
        if isinstance(self.valid, (str, Path)): user_path(self.valid, 'valid')
        if not isinstance(self.cache, (type(None), bool, str, Path)) or self.cache == '':
            raise InputError(f"cache={self.cache!r} should be True, for a folder beside the pictures, "
                             "or another folder")
        if self.unlabelled and self.labels is not None:
            raise InputError(f"labels={self.labels} (--labels) asks for labels, and unlabelled (--unlabelled) leaves "
                             "them out: give one of the two")

    def _check_share(self):
        if is_number(self.valid) and 0 <= self.valid < 1: return
        raise InputError(f"valid={self.valid} must be a finite number at least 0 and below 1, the share of the "
                         "pictures that validates (0: none), or the pictures that do: a folder or any other source")

    def _check_labels(self):
        if isinstance(self.labels, (type(None), bool, str, Path, Real)): return
        raise InputError(f"labels={clipped(repr(self.labels), 60)} should be {SOME_LABELS}; the classes of the "
                         "pictures stand beside them: image_dls((pictures, classes))")

    def note(self, sentence: str):
        "Tell what is worth a note, which may name columns and classes; of several processes the first does"
        self.notes.append(shown(sentence))
        if not rank(): self.tell(self.notes[-1])

    def check_batch(self, n: int, source: str):
        "A batch has no more than the `n` pictures of the training split"
        if self.bs <= n or n and not self.training: return
        if n < max(2, world_size()):
            raise InputError(f"{source} has {n} pictur{'es' if n != 1 else 'e'} to train on, and a picture needs "
                             "others to be told from: give more")
        self.bs = n - n % world_size()


def _device(device: str | torch.device | None) -> torch.device:
    "A device that is there"
    if device is None: return default_device()
    try:
        device = torch.device(device)
        torch.empty(1).to(device).cpu()  # 'meta' has nothing to give back
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise InputError(f"device={device} cannot be used here: {str(e).splitlines()[0]}") from None
    return torch.device('cuda', torch.cuda.current_device()) if device == torch.device('cuda') else device


def _free_memory(device: torch.device) -> int:
    "Bytes"
    return torch.cuda.mem_get_info(device)[0] if device.type == 'cuda' else psutil.virtual_memory().available


def _sizes(
    lists: Sequence[Pictures | Shards],
    size: int | None,       # side of what the model sees; None: the pictures' own if that is clear, else 224
    store_size: int | None, # short side at which they are kept; None: what the usual crops want
) -> tuple[int, int, int | None]:
    """Side of what the model sees, and of the pictures in a batch; and their short side if they are kept whole, or None

    Only where all are squares they are cut to such. The others are squashed to squares of the area that they have at
    their short side, by what is usual among them. None is enlarged: a crop of a small picture is as sharp as one of the
    same picture made large. It depends on the pictures, and not on this machine's memory."""
    common = common_size(lists)
    size = size or (common if common and common <= 256 else 224)
    sides = short_and_long(lists) if common is None else np.array([[common, common]])
    side, (short, long) = store_size or round(SPARE * size), sides.T
    if len(sides): side = min(side, round(np.median(short)))  # else none of them can be read
    if (short == long).all(): return size, side, None
    return size, round(side * np.sqrt(np.median(np.minimum(long / short, LONGEST)))), side

# --- what judges

@dataclass
class _Judges:
    "The pictures by which features are judged, and those among which their neighbours are looked for"
    queries: Part | None = None # None: a share of the training pictures
    bank: Part | None = None    # None: the training part

    @property
    def within(self) -> str:
        "The name of the pictures that judge by themselves; '' where training's do"
        return '' if self.bank is None else shown(Path(self.bank.name).name)


def _open_any(
    source: Any, # folder, list, table, data set or 'digits'
    columns: Columns,
    size: int | None,        # side of the square the model will see
    note: Callable[[str], None], # gets what is worth one
    unlabelled: bool = False, # are its labels left alone?
    held: bool = True,       # is a validation split wanted?
) -> tuple[Part, Part | None]:
    "Pictures that can be read in any order, and those of their own validation split, where they have one"
    if isinstance(source, str) and source in BUILT_IN:
        train, test = _open_digits(size or 32, columns, unlabelled)
        return train, test if held else None
    if isinstance(source, (str, Path)) and not is_table(source):
        columns.refuse(f"the folder '{source}'")
        return _open_folder(source, unlabelled, held, note)
    return open_collection(source, columns, unlabelled), None


def _judges(train: Part, held: Part | None, settings: _Settings) -> _Judges:
    "What judges the features of training; `held`: what its source has for that"
    valid = settings.valid
    asked = held is not None and isinstance(held.pictures, Shards)  # when they were opened
    if held is not None and (asked or not _judge_nothing(held, train, settings)):
        return _fitting(train, [held], settings)
    if is_number(valid): return _Judges()
    if isinstance(valid, tuple) and len(valid) == 2 and not are_labelled(valid):
        return _pair(*(_open_judge(source, settings)[0] for source in valid))
    return _fitting(train, _open_judge(valid, settings), settings)


def _judge_nothing(held: Part, train: Part, settings: _Settings) -> bool:
    "Is a share of training to judge in place of pictures that have no label, as those of Kaggle's test/?"
    if not settings.valid or (held.y >= 0).any() or not (train.y >= 0).any(): return False
    settings.note(f"the pictures in '{held.name}' have no labels to judge by and are left out; a share of "
                  f"{settings.valid:g} of those that train is held out for that")
    return True


def _open_judge(source: Any, settings: _Settings) -> list[Part]:
    "The pictures of a source that is to judge, or its training and its validation split"
    if isinstance(source, (str, Path)) and not is_table(source) and source not in BUILT_IN:
        folder = user_path(source, 'valid')
        if paths := _tar_files(source): return [_shards_part(paths, settings, str(source))]
        if not folder.is_dir(): raise MissingPath(f"there is no validation folder '{source}'")
    if are_shards(source): return [_shards_part(shard_paths(source), settings, f'{len(source)} shards')]
    parts = _open_any(source, replace(settings.columns, strict=False), settings.size, settings.note)
    return [part for part in parts if part is not None]


def _fitting(train: Part, parts: list[Part], settings: _Settings) -> _Judges:
    "One part with training's classes is judged by training's pictures, and one with others by some of its own"
    if len(parts) == 2: return _pair(*parts)
    part, = parts
    same = part.renumbered(train)
    if not part.classes: return _Judges(part)
    if same is not None: return _Judges(same)
    if train.classes and not part.labels.named and not train.origin:
        raise InputError(f"the validation data {part.name} has label {part.y.max()}, but training has "
                         f"{len(train.classes)} classes: give valid=(bank, queries) if it has classes of its own")
    if isinstance(part.pictures, Shards): return _pair(*_split_shards(part, WITHIN, settings.seed))
    # as where the part itself is given, so that numbers are the same
    chosen = stratified(part.y, WITHIN, (settings.seed, 1), leave=1)
    if not chosen.any() and is_number(settings.valid): return _Judges(without_labels(part.pictures, part.name))
    whole = replace(part, place=part.pictures.names)
    return _pair(whole.subset(np.flatnonzero(~chosen)), whole.subset(np.flatnonzero(chosen)))


def _pair(bank: Part, queries: Part) -> _Judges:
    "Neighbours in one part judge the pictures of another"
    for part in (bank, queries):
        if part.classes and (part.y >= 0).any(): continue
        reason = part.labels.reason or f"'{part.name}' has no labels to judge by"
        raise InputError(f"valid: {reason}; give pictures with classes, two of each at least")
    same = queries.renumbered(bank)
    if same is not None: return _Judges(same, bank)
    raise InputError(f"'{queries.name}' has classes that '{bank.name}' lacks, so that none of its pictures would be "
                     "found: give both parts of valid the same classes")

# --- loaders of pictures

@dataclass
class _Split:
    "The pictures that train, that judge, or among which neighbours are looked for"
    listed: Part        # the pictures of the place that they come from
    rows: np.ndarray | None   # int64 [N], which of these they are; None: all
    labeled: np.ndarray | None = None # bool [N]: may training use its label? None: this is not to train on

    def __post_init__(self):
        self.part = self.listed if self.rows is None else self.listed.subset(self.rows)

    @property
    def training(self) -> bool: return self.labeled is not None
    @property
    def known(self) -> np.ndarray:
        "bool [N], which labels its loader may use"
        return self.labeled if self.training else self.part.y >= 0
    @property
    def sharded(self) -> bool: return isinstance(self.part.pictures, Shards)


def _splits(train: Part, judges: _Judges, settings: _Settings) -> list[_Split]:
    """Training, validation, and the bank where that is none of training

    Without a validation split a share of every class is set aside; of shards a share of them was."""
    chosen = np.zeros(0 if isinstance(train.pictures, Shards) else len(train), dtype=bool)
    if judges.queries is None and train.classes and settings.valid:
        chosen = stratified(train.y, settings.valid, (settings.seed, 1), leave=1)
    kept = np.flatnonzero(~chosen)
    if isinstance(train.pictures, Shards): first = _Split(train, None, _shard_labels(train, settings))
    else:
        labeled = _labeled(train, kept, settings)
        first = _Split(train, kept if chosen.any() else None, labeled)
    if judges.queries is None: return [first, _Split(train, np.flatnonzero(chosen))]
    return [first, *(_Split(part, None) for part in (judges.queries, judges.bank) if part is not None)]


def _stores(
    splits: list[_Split],
    judges: _Judges,
    source: str,      # beside which they lie
    forms: list[PixelFormat], # of the stored pictures
    settings: _Settings,
) -> list[tuple[torch.Tensor, dict[int, str]] | None]: # pixels and failures; None: there is no store
    "The store of each split, where there is to be one; of all pictures of its place, so that it does for any split"
    def opened(split, name, form):
        if not settings.cache or not isinstance(split.listed.pictures, Files): return None
        path = store_path(settings.cache, source, name, form.side, form.label)
        return open_store(split.listed.pictures, form, path, settings.builders, settings.strict)
    if judges.queries is None: return [opened(splits[0], 'all', forms[0])] * 2
    return [opened(*each) for each in zip(splits, ('train', 'valid', 'bank'), forms)]


def _make_loader(
    split: _Split,
    store: tuple[torch.Tensor, dict[int, str]] | None, # see `_stores`
    form: PixelFormat, # of the pictures in a batch
    resident: bool, # do they fit in the device's memory?
    settings: _Settings,
) -> ImageLoader:
    if split.sharded: return _shard_loader(split, form, settings)
    pictures, labels, device = split.part.pictures, split.part.labels, settings.device
    good, failed = np.ones(len(pictures), dtype=bool), {}
    if store:
        pixels, broken = store
        rows = np.arange(len(pictures)) if split.rows is None else split.rows
        good = ~np.isin(rows, list(broken))
        failed = {pictures.shown(i): broken[rows[i]] for i in np.flatnonzero(~good)}
        rows = torch.from_numpy(rows[good])
        # a CPU's memory would hold the mapped pages a second time
        if resident and device.type == 'cuda': make = partial(ResidentLoader, load_rows(pixels, rows, device))
        else: make = partial(MappedLoader, pixels, rows)
    elif resident:
        images, good, failed = decode_all(pictures, form, device, settings.strict, settings.decoders)
        make = partial(ResidentLoader, images)
    else: make = partial(StreamingLoader, PictureStream(pictures, form), settings.workers, settings.strict)
    names = pictures.names if good.all() else pictures.subset(np.flatnonzero(good)).names
    listed = split.listed.pictures.names if split.part.place is None else split.part.place
    data = ImageData(names, torch.from_numpy(labels.y[good]), torch.from_numpy(split.known[good]), labels.classes,
                     failed, labels.reason, listed)
    if failed and not len(data): raise InputError(f"no picture could be decoded: {by_reason(failed.items())}")
    return make(data, settings.bs, device, training=split.training, seed=settings.seed, form=form)


def _formats(splits: list[_Split], judges: _Judges, settings: _Settings) -> tuple[int, list[PixelFormat], int | None]:
    """Side of what the model sees, and how the pictures of each split are kept; and the short side of training's if
    they are whole, or None

    Training's is decided by its own pictures alone, with those that are held out from it. What judges is kept in a way
    of its own."""
    own, others = [splits[0].listed.pictures], [split.part.pictures for split in splits[1:]]
    size, side, short = _sizes(own, settings.size, settings.store_size)
    training = PixelFormat(side, whole=short is not None)
    if judges.queries is None or not any(map(len, others)): return size, [training] * len(splits), short
    _, side, other = _sizes(others, size, settings.store_size)
    return size, [training, *[PixelFormat(side, whole=other is not None)] * len(others)], short


def _values(splits: list[_Split], within: bool, settings: _Settings) -> list[Kept]:
    "How the values of each split are kept: alike in all; in those that judge by themselves, by their own"
    pictures = [split.part.pictures for split in splits]
    groups, channels, kept = [pictures[:1], pictures[1:]] if within else [pictures], settings.channels, []
    for group in groups:
        found = kept_of(group, settings.value_range, channels)
        channels = found.channels  # one encoder sees all of them
        for note in found.notes: settings.note(note)
        kept += [found] * len(group)
    return kept


def _load(train: Part, judges: _Judges, settings: _Settings) -> ImageLoaders:
    "Loaders of training pictures and of those that judge"
    splits, asked = _splits(train, judges, settings), settings.bs
    settings.check_batch(len(splits[0].part), train.name)
    _tell(train, judges, settings)
    size, forms, short = _formats(splits, judges, settings)
    values = _values(splits, judges.bank is not None, settings)
    forms = [replace(form, channels=kept.channels, bits=kept.bits, span=kept.span)
             for form, kept in zip(forms, values, strict=True)]
    copies = local_world_size() if settings.device.type == 'cpu' else 1
    need = sum(len(split.part) * form.nbytes for split, form in zip(splits, forms) if not split.sharded)
    resident = need * copies <= settings.memory * _free_memory(settings.device)
    if short: settings.note(_kept_whole(short, need, resident, settings))
    stores = _stores(splits, judges, train.name, forms, settings)
    loaders = [_make_loader(*each, resident, settings) for each in zip(splits, stores, forms, strict=True)]
    settings.check_batch(len(loaders[0].data), train.name)  # what could not be decoded is left out
    for loader in loaders: loader.bs = settings.bs
    if settings.bs < asked:
        settings.note(f"a batch has {settings.bs} pictures, as there are {len(loaders[0].data)} to train on")
    for span in {id(form.span): form.span for form in forms}.values():
        if clipped := outside(span, False): settings.note(clipped)
    return ImageLoaders(*loaders, size=size, source=train.name, channels=values[0].channels, span=values[0].span,
                        value_range=values[0].value_range, within=judges.within, notes=settings.notes)


def _kept_whole(short: int, need: int, resident: bool, settings: _Settings) -> str:
    "The note on pictures that are no squares; all of them take `need` bytes"
    place = f"at {short} px of their short side"
    if not need: return f"pictures are read whole for every batch, {place}"  # shards
    if not settings.memory: return f"pictures are kept whole, {place}"  # whoever asks for this wants only some of them
    if resident or settings.cache: return f"pictures are kept whole, {place}: {megabytes(need)}"
    return f"pictures are read whole for every batch, {place} ({megabytes(need)} in all)"


def _tell(train: Part, judges: _Judges, settings: _Settings):
    "Say what was taken for classes, and what judges, before anything is set aside or decoded"
    if train.origin and train.classes:
        settings.note(f"{_classes(train)} from {train.origin}: {first_of(train.classes)}")
    if train.labels.reason: settings.note(f"{train.labels.reason}; training needs none")
    if judges.bank is not None:
        settings.note(f"judged within {judges.within}: {_classes(judges.bank)}, {len(judges.queries):,} pictures by "
                      f"their neighbours among {len(judges.bank):,}")
    elif judges.queries is not None and judges.queries.labels.reason:
        settings.note(f"{judges.queries.labels.reason}; features are not judged by them")


def _classes(part: Part) -> str: return number_of(len(part.classes), 'class')


def _aloud(note: str): print(shown(note), flush=True)  # where the learner says what it is going to do

# --- loaders of shards

def _tar_files(source: Any) -> list[Path] | None:
    "The shards that a source names; None: none, or archives that lie beside pictures, which may have been in them"
    paths = shard_paths(source)
    if not paths or not isinstance(source, (str, Path)): return paths
    folder = Path(source).expanduser()
    return None if folder.is_dir() and find_pictures(folder) else paths


def _open_shards(source: Any, settings: _Settings) -> tuple[Part, Part | None] | None:
    "The pictures of shards, and those of their own validation split; None: the source is none of shards"
    root = user_path(source, 'source') if isinstance(source, (str, Path)) else None
    if root is None and not are_shards(source): return None
    nested = root is not None and (root/'train').is_dir()
    paths = _tar_files(root/'train' if nested else source)
    if not paths: return None
    settings.columns.refuse("shards")
    train = _shards_part(paths, settings, str(source) if root else f'{len(source)} shards')
    if settings.unlabelled: train = without_labels(train.pictures, train.name)
    if not is_number(settings.valid): return train, None
    beside = _valid_folder(root) if nested else None
    held = _open_judge(beside, settings)[0] if beside else None
    if held is not None and not _judge_nothing(held, train, settings): return train, held
    return _split_shards(train, settings.valid if train.classes else 0, settings.seed)


def _shards_part(paths: list[Path], settings: _Settings, name: str) -> Part:
    "The pictures of shards, whose classes have no names"
    shards = Shards(paths, settings.builders)
    y = shards.labels().numpy()
    top = int(y.max())
    return Part(shards, Labels(y, [str(c) for c in range(top + 1)] if top >= 0 else None), name)


def _split_shards(part: Part, share: float, seed: int) -> tuple[Part, Part]:
    "A share of whole shards validates: at least one, and not all"
    shards = part.pictures
    n = min(max(1, round(share * len(shards.paths))), len(shards.paths) - 1) if share else 0
    chosen = np.zeros(len(shards.paths), dtype=bool)
    chosen[np.random.default_rng((seed, 1)).permutation(len(chosen))[:n]] = True
    train, held = (shards.subset(np.flatnonzero(mask)) for mask in (~chosen, chosen))
    if not part.classes: return without_labels(train, part.name), without_labels(held, part.name)
    return tuple(replace(part, pictures=split, labels=replace(part.labels, y=split.labels().numpy()))
                 for split in (train, held))


def _shard_labels(train: Part, settings: _Settings) -> np.ndarray:
    "bool [N]: may training use its label? That of all, or of none"
    known = _all_labels(settings.labels, train.classes,
        "does not work with shards, whose pictures are not chosen one by one: give None or 'all'",
        "but the shards have no labels: put a .cls file beside each picture in them")
    return train.y >= 0 if known else np.broadcast_to(False, len(train))


def _shard_loader(split: _Split, form: PixelFormat, settings: _Settings) -> ShardLoader:
    "A loader that reads shards from front to back"
    part = split.part
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # one value that stands for all may not be written to: that is meant
        data = ImageData(range(len(part)), torch.from_numpy(part.y), torch.from_numpy(split.known), part.classes)
    return ShardLoader(part.pictures, form, settings.workers, settings.strict, data, settings.bs, settings.device,
                       training=split.training, seed=settings.seed)

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
        raise InputError(f"the first input of the DataLoaders should be pictures [B, C, H, W], not {list(x.shape)}")
    if x.dtype not in (torch.uint8, torch.uint16) and not x.is_floating_point():
        raise InputError(f"the pictures of the DataLoaders are {x.dtype}, but views need uint8, uint16 or floats in "
                         "[0, 1]")
    if x.is_floating_point() and not (x.min() >= 0 and x.max() <= 1):  # nor NaN
        raise InputError(f"the pictures of the DataLoaders go from {x.min():.2f} to {x.max():.2f}, "
                         "but views need them in [0, 1]")


def _fastai_labels(dl: TfmdDL) -> torch.Tensor | None:
    "int64 [N]; None: they are not one class a picture"
    try: return torch.tensor([int(c) for c in dl.dataset.tls[1]], dtype=torch.int64)
    except (TypeError, ValueError, AttributeError, RuntimeError): return None


def _fastai_data(dl: TfmdDL, classes: list[str] | None, labeled: bool) -> ImageData:
    items = getattr(dl.dataset, 'items', range(len(dl.dataset)))
    y = _fastai_labels(dl) if classes else torch.full((len(items),), -1)
    return ImageData([str(i) for i in items], y, torch.full((len(y),), labeled), classes)


def _fastai_classes(dls: DataLoaders, settings: _Settings) -> list[str] | None:
    "Their names, where labels are one class a picture; None: training does without"
    if settings.unlabelled or not hasattr(dls, 'vocab'): return None
    if all(_fastai_labels(dl) is not None for dl in dls.loaders[:2]): return [str(c) for c in dls.vocab]
    reason = "the labels of the DataLoaders are not one class a picture"
    if settings.labels is not None: raise InputError(f"labels={settings.labels} but {reason}")
    settings.note(f"{reason}; training needs none")
    return None


def _fastai_loaders(dls: DataLoaders, settings: _Settings) -> ImageLoaders:
    "fastai's `DataLoaders` as ours"
    _check_fastai(dls)
    settings.columns.refuse("fastai DataLoaders")
    if not is_number(settings.valid):
        raise InputError("fastai DataLoaders have a validation part of their own: leave valid out")
    classes = _fastai_classes(dls, settings)
    labeled = _all_labels(settings.labels, classes,
        "does not work with fastai DataLoaders, which offer None or 'all': give the folder instead",
        "but the DataLoaders have no classes")
    loaders = [FastaiLoader(dl, _fastai_data(dl, classes, labeled), dl.bs, settings.device, training=i == 0,
                            seed=settings.seed)
               for i, dl in enumerate(dls.loaders[:2])]
    if not len(loaders[0]):
        raise InputError("the training part of the DataLoaders has no whole batch: choose a smaller bs")
    if len(loaders) < 2: loaders.append(empty_loader(loaders[0]))
    first, *others = [loader.one_batch()[0] for loader in loaders if len(loader)]
    for x in (first, *others): _check_fastai_batch(x)
    for x in others:
        if x.shape[1] == first.shape[1]: continue
        raise InputError(f"the training pictures of the DataLoaders have {first.shape[1]} channels and those that "
                         f"validate {x.shape[1]}: read both alike")
    if settings.channels not in (None, first.shape[1]):
        raise InputError(f"the pictures of the DataLoaders have {first.shape[1]} channels, and channels (--channels) "
                         f"asks for {settings.channels}: leave it out, or have them read otherwise")
    return ImageLoaders(*loaders, size=settings.size or min(first.shape[-2:]), channels=first.shape[1],
                        source='fastai DataLoaders', notes=settings.notes)

# --- all together

def image_dls(
    source: Any,                # where the pictures are, see below
    size: int | None = None,    # side of the square the model will see; None: the pictures' own if clear, else 224
    bs: int | None = None,      # pictures a batch, 2 or more, of all processes together, or what there is; None: 256
    labels: None | str | Path | float | bool = None, # training may know: None, 'all', a share, or those in a file
    valid: float | Any = 0.2,   # a share in [0, 1); or a source of its own, or two: (bank, queries), see below
    seed: int = 0,              # of the split, the choice of labels and the shuffle, 0 or more
    workers: int | None = None, # processes that decode, of each that trains; None: its cores, at most 8 in training
    memory: float = 0.25,       # share of the device's free memory, in [0, 1], that resident pictures may fill; 0: none
    strict: bool = False,       # is a picture that cannot be decoded an error?
    device: str | torch.device | None = None, # where the batches go; None: the GPU if there is one
    cache: None | bool | str | Path = None, # keep files' pictures decoded in this folder; True: NAME.cache beside them
    unlabelled: bool = False,   # leave labels alone, and take a folder as it is: loose pictures and nested ones
    column: str | None = None,  # of a table or of items that are dicts: where the pictures are; None: a usual name
    label_column: str | None = None, # and their labels; None: label, class or target, if there is one
    value_range: tuple[float, float] | None = None, # values that become 0 and 1; None: 0 and 255, or found, see below
    channels: int | None = None, # of the pictures; None: 3, or those of the first picture where it isn't grey or colour
    tell: Callable[[str], None] | None = None, # gets what is worth a note, a sentence each; None: it is printed
    store_size: int | None = None, # short side at which pictures are kept, at most their own; None: see below
    training: bool = True,      # False: they are only looked at, and may be fewer than a batch
) -> ImageLoaders:              # batches `(uint8 [bs, C, R, R], int64 [bs])`; `classes`, `size`, `source`, `report()`
    """`DataLoaders` of pictures for contrastive training; whatever cannot work is an `InputError` (`MissingPath`)

    `source`: a folder, a list of paths, a CSV file or data frame of paths, shards ('shards/{000..146}.tar', a list or
    folder of such), a torchvision or Hugging Face data set or what is indexed like one, an array or tensor of pictures,
    a tuple of an array or list and its labels, fastai `DataLoaders`, or 'digits'.

    `valid`: a share counts only for a source with classes and no labelled validation split. A source whose classes are
    not training's is judged within itself: kNN and probes learn from its train/, or from four fifths of it, and are
    tested on the rest; of (bank, queries) they learn from the first and are tested on the second. What a data set
    itself raises is not an `InputError`: it is passed on.

    Pictures are kept at a `store_size` of 1.5 times `size`, or as they are if they are smaller. If all are squares,
    batches are `(images, y)`. Else pictures are kept whole, and batches are `(images, aspects, y)`: see `ImageLoader`;
    `for images, *aspects, y in dls.train` takes both.
    What validates has no part in how the training pictures are kept.

    Pictures of more than 8 bits, integers or floats, are scaled by one range for all of them: `value_range`, or one
    that a sample of them tells and a note says; batches are then uint16, and `value_range` of the loaders has it.
    `channels` is 1 for grey, 3, or any other number: that of arrays, of .npy files, or 4 where transparency counts."""
    settings = _Settings(
        size=size, store_size=store_size, bs=bs, labels=labels, valid=valid, seed=seed, workers=workers, memory=memory,
        strict=strict, device=device, cache=cache, unlabelled=unlabelled, columns=Columns(column, label_column),
        value_range=value_range, channels=channels, tell=tell or _aloud, training=training)
    if isinstance(source, DataLoaders):
        if value_range is not None:
            raise InputError("fastai DataLoaders scale their pictures themselves: leave value_range (--range) out")
        if store_size is not None:
            raise InputError("fastai DataLoaders resize their pictures themselves: leave store_size (--store-size) out")
        return _fastai_loaders(source, settings)
    shards = None if isinstance(source, Dataset) or is_table(source) else _open_shards(source, settings)
    if cache and (shards or not isinstance(source, (str, Path)) or source in BUILT_IN):
        raise InputError(f"cache={cache} keeps a folder of pictures decoded, and the source is none: "
                         "leave cache (--cache) out")
    train, held = shards or _open_any(source, settings.columns, size, settings.note, unlabelled, held=is_number(valid))
    return _load(train, _judges(train, held, settings), settings)
