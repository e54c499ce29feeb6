"""What a user gives, as pictures with classes: lists of paths, arrays, tables, and data sets of any items.

Docs: https://fastcontrast.github.io/fastcontrast/data.html.md"""
import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from .core import InputError, MissingPath, clipped, suggest
from .files import read_text, user_path
from .pictures import Files, Items, Pictures, evenly_spread, in_decoder, picture_suffixes, skipped
from .shards import Shards

PATH_COLUMNS = ('path', 'file', 'filename', 'image')
PICTURE_COLUMNS = ('image', 'img', 'picture', *PATH_COLUMNS)
LABEL_COLUMNS = ('label', 'class', 'target')
TABLES = ('.csv', '.tsv')
LONGEST_PATH = 4096 # bytes of a path: systems take no longer ones
MOST_CLASSES = 1_000_000 # a label above that is a number of something else


@dataclass(frozen=True)
class Labels:
    "What the labels of some pictures say: classes, or why they are none"
    y: np.ndarray          # int64 [N]; -1: none
    classes: list[str] | None = None # None: there are none
    named: bool = False    # do classes have names to be told by? Else their numbers count
    reason: str = ''       # why the labels that are there are no classes; '' if they are, or there are none


@dataclass(frozen=True)
class Part:
    "Pictures of one place, with classes of their own"
    pictures: Pictures | Shards
    labels: Labels
    name: str        # what messages call it
    origin: str = '' # where names of classes come from, if nobody has said that they are classes
    place: Sequence[str] | None = None # names of all pictures of the place, where these are some; None: they are all

    @property
    def y(self) -> np.ndarray: return self.labels.y
    @property
    def classes(self) -> list[str] | None: return self.labels.classes
    def __len__(self) -> int: return len(self.pictures)

    def subset(self,
        indices: np.ndarray, # which of the pictures, int64
    ) -> 'Part':
        "Some of the pictures, in this order"
        return replace(self, pictures=self.pictures.subset(indices), labels=replace(self.labels, y=self.y[indices]))

    def renumbered(self,
        other: 'Part', # with classes
    ) -> 'Part | None':
        """The same pictures with the classes of another part; None: it lacks some of theirs, or nothing tells

        Classes that have no names are the same where their numbers are; a folder's or a table's have names alone."""
        own, known = self.labels, other.labels
        if not own.classes or not known.classes: return None
        used = np.unique(own.y[own.y >= 0])
        if own.named and known.named:
            place = {name: i for i, name in enumerate(known.classes)}
            numbers = np.array([place.get(name, -1) for name in own.classes])
        elif own.named or other.origin: return None
        else: numbers = np.array([c if c < len(known.classes) else -1 for c in range(len(own.classes))])
        if (numbers[used] < 0).any(): return None
        return replace(self, labels=replace(known, y=np.where(own.y < 0, -1, numbers[own.y])))


def without_labels(
    pictures: Pictures | Shards,
    name: str,
) -> Part:
    "Pictures of which nothing more is known"
    return Part(pictures, Labels(np.broadcast_to(np.int64(-1), len(pictures))), name)


@dataclass(frozen=True)
class Columns:
    "Which columns of a table, or of items that are dicts, hold what; None: those with the usual names"
    pictures: str | None = None
    labels: str | None = None
    strict: bool = True # must those that are named be there?

    def refuse(self,
        owner: str, # what has no columns
    ) -> None:
        "Raise `InputError` if columns are named all the same"
        named = [name for name in (self.pictures, self.labels) if name is not None]
        if named and self.strict:
            raise InputError(f"column (--column) and label_column (--label-column) name parts of items that are dicts, "
                             f"or columns of a table, and {owner} has none: leave out {' and '.join(named)}")

    def find(self,
        names: Iterable[str], # of the columns that there are
        owner: str,           # for messages
        usual: Sequence[str] = PICTURE_COLUMNS,
    ) -> tuple[str, str | None]: # the column of pictures, and that of labels (None: there is none)
        "The columns to be read. Raises `InputError` where a named one, or one of pictures, is not there"
        names = [str(name) for name in names]
        named = [None if name is None else str(name) for name in (self.pictures, self.labels)]
        unknown = [name for name in named if name is not None and name not in names]
        if unknown and self.strict: raise InputError(suggest(unknown[0], names, f"column of {owner}"))
        pictures, labels = (None if name in unknown else name for name in named)
        found, labels = pictures or _usual(names, usual), labels or _usual(names, LABEL_COLUMNS)
        if found is None:
            raise InputError(f"{owner} has no column {' or '.join(dict.fromkeys(usual))}, but {', '.join(names[:20])}: "
                             "say which one has the pictures by column (--column)")
        for name in (found, labels):
            if names.count(name) < 2: continue
            raise InputError(f"{owner} has {names.count(name)} columns '{name}': give them names of their own")
        return found, labels


def _usual(names: list[str], usual: Sequence[str]) -> str | None:
    "The first of the usual names that is there, in whatever case"
    there = {name.strip().lower(): name for name in reversed(names)}
    return next((there[name] for name in usual if name in there), None)

# --- labels

def _plain(value: Any) -> Any:
    "A label without the array, tensor or scalar type around it"
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)) and math.prod(value.shape) == 1: return value.item()
    return value


def _missing(value: Any) -> bool:
    "Also what pandas has in an empty cell"
    return value is None or isinstance(value, float) and math.isnan(value) or type(value).__name__ == 'NAType'


def _kind(value: Any) -> str:
    "What a label is, in words for a message"
    if isinstance(value, int): return 'whole numbers'
    if isinstance(value, str): return 'names'
    if isinstance(value, float): return 'floats'
    if isinstance(value, os.PathLike): return 'paths'
    if isinstance(value, Mapping): return 'dicts'
    if isinstance(value, (list, tuple, set, np.ndarray, torch.Tensor)): return 'several values each'
    return f'objects of the type {type(value).__name__}'


def _shown(value: Any) -> str:
    "A label in a message"
    text = str(value) if isinstance(value, (int, float)) else repr(value)
    return text if len(text) <= 40 and '\n' not in text else ''


def read_labels(
    values: Any,      # [N], a label for each picture, of any kind; None: no label
    owner: str,       # whose labels they are, for messages
    names: Sequence[str] | None = None, # of the classes, where labels are their numbers
    asked: bool = False,    # has the user named them as classes? Then rare names are no reason
    by_value: bool = False, # is a whole number a name too, and not a place among the classes?
) -> Labels:
    """Labels as classes, where they can be that: whole numbers, or names, which are sorted

    Floats are no classes, whole ones neither: nothing tells a class from a measured value. Nor are dicts, several
    labels a picture, paths, or names that most pictures have for themselves."""
    if isinstance(values, (np.ndarray, torch.Tensor)):
        values = (values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values).tolist()
    values = [_plain(value) for value in values]
    try: return _as_classes(values, names, asked, by_value)
    except _NoClasses as e: return Labels(np.full(len(values), -1), reason=f"the labels of {owner} {e}")


class _NoClasses(Exception):
    "Labels are no classes; the message goes on from whose they are"


def _as_classes(values: list, names: Sequence[str] | None, asked: bool, by_value: bool) -> Labels:
    kinds = {_kind(value): value for value in reversed(values) if not _missing(value)}
    if not kinds: return Labels(np.full(len(values), -1))
    if len(kinds) > 1: raise _NoClasses(f"are {' and '.join(sorted(kinds))}: give one kind of them")
    (kind, first), = kinds.items()
    if kind == 'names': return _names(values, names, asked)
    if kind == 'whole numbers':
        indices = names is None and _are_indices(values)
        if indices: raise _NoClasses("are another one for every picture, which are no classes")
        return _values(values) if by_value else _numbers(values, names)
    like = f" like {_shown(first)}" if _shown(first) else ''
    raise _NoClasses(f"are {kind}{like}, which are no classes: give whole numbers or names")


def _numbers(values: list, names: Sequence[str] | None) -> Labels:
    "Labels that are numbers of classes, from 0"
    known = [value for value in values if not _missing(value)]
    low, top = min(known), max(known)
    if low < -1: raise _NoClasses(f"should be 0 or more, or -1 for none, not {low}")
    if names is not None and top >= len(names):
        there = f"there {'is 1 class' if len(names) == 1 else f'are {len(names)} classes'}"
        raise _NoClasses(f"go up to label {top}, but {there}")
    if top >= MOST_CLASSES: raise _NoClasses(f"go up to {top}, which is no number of a class")
    y = np.array([-1 if _missing(value) else int(value) for value in values], dtype=np.int64)
    if top < 0: return Labels(y)
    return Labels(y, [str(c) for c in (range(top + 1) if names is None else names)], names is not None)


def _is_none(value: Any) -> bool:
    "Does a whole number, or nothing, say that there is no label?"
    return _missing(value) or value == -1


def _are_indices(values: list) -> bool:
    "Are whole numbers, of which there are many, another one for every picture?"
    known = [value for value in values if not _is_none(value)]
    return len(known) >= 20 and len(set(known)) == len(known)


def _values(values: list) -> Labels:
    "Whole numbers as names of classes, in the order of the numbers; -1 is none"
    values = [None if _is_none(value) else int(value) for value in values]
    return _placed(values, sorted({value for value in values if value is not None}))


def _names(values: list, names: Sequence[str] | None, asked: bool) -> Labels:
    "Labels that are names of classes"
    values = [None if _missing(value) else value for value in values]
    known = [value for value in values if value is not None]
    suffixes = picture_suffixes()
    if any(value.lower().endswith(suffixes) for value in known):
        raise _NoClasses("are paths of pictures, which are no classes")
    distinct, counts = np.unique(np.array(known, dtype=object), return_counts=True)
    if not asked and (counts == 1).sum() > len(known) / 2:
        raise _NoClasses("are names that most pictures have for themselves, which are no classes")
    if names is not None and set(distinct) <= set(names): return _placed(values, list(names))
    return _placed(values, distinct.tolist())


def _placed(values: list, known: list) -> Labels:
    "Labels by their places among the known ones; what is not there is none"
    place = {value: i for i, value in enumerate(known)}
    y = np.array([place.get(value, -1) for value in values], dtype=np.int64)
    return Labels(y, [str(value) for value in known] or None, named=True)

# --- paths

def are_paths(
    source: Any,
) -> bool:
    "Is this a list of paths?"
    if isinstance(source, np.ndarray): listed = source.ndim == 1 and source.dtype.kind in 'UO'
    else: listed = isinstance(source, (list, tuple)) or _is_a(source, 'Series')
    return listed and isinstance(_beginning(source), (str, os.PathLike))


def _is_a(source: Any, kind: str) -> bool:
    "Is this a kind of thing of pandas or polars, neither of which is imported for it?"
    return any(base.__name__ == kind for base in type(source).__mro__)


def _beginning(source: Any) -> Any:
    "The first element of a sequence; None: there is none"
    return next(iter(source), None)


def are_shards(
    source: Any,
) -> bool:
    "Is this a list with shards in it, or with folders of them?"
    if not are_paths(source): return False
    for path in source:
        kind = os.path.splitext(path)[1] if isinstance(path, (str, os.PathLike)) else ''
        if kind == '.tar' or not kind and isinstance(path, (str, os.PathLike)) and os.path.isdir(path): return True
    return False


def _may_exist(path: str | os.PathLike) -> bool:
    "Could a file have this name?"
    try: name = os.fsencode(path)
    except UnicodeEncodeError: return False  # half a character
    return b'\0' not in name and len(name) <= LONGEST_PATH


def open_paths(
    paths: Iterable[Any], # str or Path, of picture files
    base: Path,           # the folder that relative ones begin in
    owner: str,           # whose paths they are, for messages
) -> Files:               # without labels
    "The files of a list. Raises `InputError` for what is no path, and `MissingPath` if none of the first is there"
    names = []
    for place, path in enumerate(paths):
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            kind = 'nothing' if isinstance(path, str) or _missing(path) else f'a {type(path).__name__}'
            raise InputError(f"{owner} should hold the paths of picture files, and has {kind} at place {place}")
        if not _may_exist(path):
            raise InputError(f"{owner} should hold the paths of picture files, and has '{clipped(path, 40)}' at place "
                             f"{place}, which can be none")
        names.append(os.path.expanduser(path))
    if not names: raise InputError(f"{owner} is empty: there is no picture in it")
    folder = base
    if any(map(os.path.isabs, names)):  # a folder that all are in
        joined = (os.path.join(base, name) for name in names)
        # '..' stays: behind a link it leads elsewhere
        names = [os.fspath(Path(name)) if '..' in name else os.path.normpath(name) for name in joined]
        if os.sep == '/': names = ['/' + name.lstrip('/') for name in names]  # POSIX keeps two slashes
        try: folder = Path(os.path.commonpath({os.path.dirname(name) for name in names}))
        except ValueError: raise InputError(f"{owner} has files on several drives: give those of one.") from None
        names = [name[len(os.path.join(folder, '')):] for name in names]
    if not any(os.path.exists(folder/names[i]) for i in evenly_spread(len(names), 10)):
        raise MissingPath(f"{owner} names files that are not there, the first is '{folder/names[0]}': "
                          f"relative paths begin in '{base}'")
    return Files(folder, names, np.full(len(names), -1))

# --- tables

def is_table(
    source: Any,
) -> bool:
    "Is this the name of a CSV file?"
    return isinstance(source, (str, Path)) and os.fspath(source).lower().endswith(TABLES)


def _typed(cells: list[str]) -> list[Any]:
    "Cells of a file as whole numbers, floats or names, whichever all of them are; None for empty ones"
    cells = [cell.strip() for cell in cells]
    names = [cell or None for cell in cells]
    for kind in () if any('_' in cell for cell in cells) else (int, float):  # Python takes 1_1 for 11
        try: values = [kind(cell) if cell else None for cell in cells]
        except ValueError: continue
        # 007 is a name, and another one than 7; of floats, which are no classes, 1.50 is a usual text
        as_written = kind is float or all(name is None or str(value) == name for value, name in zip(values, names))
        return values if as_written else names
    return names


def _read_csv(path: Path) -> list[tuple[str, list[str]]]:
    "The columns of a CSV file with a header, by name; what stands between them is what the header has most of"
    try:
        text = read_text(path, most=2**32)
        header = next((line for line in io.StringIO(text) if line.strip()), '')
        reader = csv.reader(io.StringIO(text, newline=''), delimiter=max(',;\t', key=header.count))
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except FileNotFoundError: raise MissingPath(f"there is no file '{path}'") from None
    except (OSError, ValueError, csv.Error) as e:
        raise InputError(f"'{path}' can't be read: {getattr(e, 'strerror', None) or e}") from None
    names = [name.strip() for name in rows[0][1]] if rows else []
    if any(name.lower().endswith(picture_suffixes()) for name in names):
        raise InputError(f"'{path}' begins with a picture, {names[0]}: write the names of the columns above it, "
                         "like path,label")
    if len(rows) < 2: raise InputError(f"'{path}' is empty: there is no picture in it")
    for line, row in rows:
        if len(row) == len(names): continue
        raise InputError(f"'{path}' has {len(names)} columns, but {len(row)} in line {line}")
    return [(name, [row[i] for _, row in rows[1:]]) for i, name in enumerate(names)]


def open_table(
    source: Any,       # the path of a CSV file, or a data frame
    columns: Columns,
    unlabelled: bool,  # are its labels left alone?
) -> Part:
    "The pictures that a table names, relative to the folder of its file, or to the current one"
    from_file = isinstance(source, (str, Path))
    path = user_path(source, 'source') if from_file else None
    owner = f"'{source}'" if from_file else f"the {type(source).__name__}"
    table = _read_csv(path) if from_file else [(str(name), name) for name in source.columns]
    pictures, labels = columns.find([name for name, _ in table], owner, PATH_COLUMNS)
    found = {name: column if from_file else source[column] for name, column in table if name in (pictures, labels)}
    base = Path(os.path.abspath(path)).parent if from_file else Path.cwd()
    files = open_paths((cell.strip() for cell in found[pictures]) if from_file else found[pictures], base, owner)
    part = without_labels(files, str(source) if from_file else type(source).__name__)
    if unlabelled: return part
    others = [name for name, _ in table if name != pictures]
    if labels is None and others:
        reason = f"{owner} has no column {' or '.join(LABEL_COLUMNS)}, but {', '.join(others[:20])}"
        return replace(part, labels=replace(part.labels, reason=reason))
    if labels is None: return part
    values = _typed(found[labels]) if from_file else list(found[labels])
    read = read_labels(values, f"{owner}, column '{labels}',", asked=columns.labels is not None, by_value=True)
    return replace(part, labels=read, origin=f"column '{labels}'")

# --- arrays

class Arrays(Dataset):
    "Pictures that are one array, as items"
    def __init__(self,
        x: np.ndarray | torch.Tensor, # [N, H, W], [N, H, W, C] or [N, C, H, W]
    ):
        if x.ndim not in (3, 4):
            raise InputError(f"an array of pictures should be [N, H, W], [N, H, W, C] or [N, C, H, W], "
                             f"not {list(x.shape)}")
        self.x = x

    def __len__(self) -> int: return len(self.x)
    def __getitem__(self, i: int) -> np.ndarray | torch.Tensor: return self.x[i]


def _is_array(source: Any) -> bool: return isinstance(source, (np.ndarray, torch.Tensor)) and not are_paths(source)


def are_labelled(
    source: Any,
) -> bool:
    "Is this a tuple of pictures, as an array or a list, and their labels?"
    if not isinstance(source, tuple) or len(source) != 2: return False
    pictures, labels = source
    if not (_is_array(pictures) or are_paths(pictures) or isinstance(pictures, list)): return False
    if isinstance(labels, (np.ndarray, torch.Tensor)): return labels.ndim < 3
    if are_paths(labels): return not str(_beginning(labels)).lower().endswith(picture_suffixes())
    if not (isinstance(labels, (list, tuple)) or _is_a(labels, 'Series')): return False
    return not _is_path_and_label(_beginning(labels))  # but two lists of such


def _is_path_and_label(item: Any) -> bool:
    "As in the `samples` of torchvision's folders"
    return isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], (str, os.PathLike))


def _open_labelled(source: tuple, columns: Columns, unlabelled: bool) -> Part:
    "Pictures with their labels beside them"
    pictures, labels = source
    if len(pictures) != len(labels):
        raise InputError(f"there are {len(pictures):,} pictures and {len(labels):,} labels: give one for each picture")
    part = open_collection(pictures, columns, unlabelled=True)
    return part if unlabelled else _with_labels(part, read_labels(labels, part.name), None)


def _with_labels(part: Part, labels: Labels, names: list[str] | None) -> Part:
    "A part whose labels have been read; `names`: of classes, where their owner has them"
    return replace(part, labels=labels, origin='labels' if labels.named and names is None else '')

# --- data sets

def _check_dataset(dataset: Any):
    "Raise `InputError` for what has no items to choose from"
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        raise InputError(f"a {kind} of {', '.join(map(str, list(dataset)[:10]))} is not one data set: give one of "
                         "them, and another as valid")
    def indexable(data): return hasattr(data, '__getitem__') and hasattr(data, '__len__')
    indexed = indexable(dataset)
    if not indexed and indexable(getattr(dataset, 'dataset', None)):
        raise InputError(f"a {kind} makes batches, and training makes its own, of other pictures in every epoch: give "
                         "what it reads from, its dataset")
    if isinstance(dataset, IterableDataset) or hasattr(dataset, '__iter__') and not indexed:
        raise InputError(f"a {kind} gives its pictures only one after the other, and training draws them anew in every "
                         "epoch: write it into shards (.tar files), which are streamed, or give a data set with len() "
                         "and [i]")
    if isinstance(dataset, (str, Path)) or not indexed:
        raise InputError(f"a {kind} has no pictures to index: give a folder, a list of paths, arrays, a table, "
                         "a data set with len() and [i] (for both parts), or fastai DataLoaders")
    if not len(dataset): raise InputError(f"{kind} is empty: there is no picture in it")


def _first_item(dataset: Any) -> Any:
    """The first item of a data set that can be read; None if none of ten can be decoded

    Where the system has none of them for it, what it raises says more than we could."""
    error = None
    for i in range(min(10, len(dataset))):
        try: return dataset[i]
        except Exception as e:
            if not skipped(e): raise
            error = error or e
    if in_decoder(error): return None
    raise error


def _item_labels(dataset: Any, key: str | int) -> list[Any]:
    "The label of every item; None where there is none, or the item can't be read"
    def label(i):
        try: item = dataset[i]
        except Exception as e:
            if not skipped(e): raise
            return None  # it is reported when its picture is read
        if isinstance(key, str): return item.get(key)
        return item[key] if isinstance(item, (tuple, list)) and len(item) > key else None
    return [label(i) for i in range(len(dataset))]


def _listed_labels(dataset: Any) -> Any:
    "The labels that a data set in torchvision's sense lists; None: it lists none, or changes them in its items"
    if getattr(dataset, 'target_transform', None) is not None: return None
    y = getattr(dataset, 'targets', getattr(dataset, 'labels', None))
    # of a dict, say, nothing tells whose labels its values are
    is_list = hasattr(y, '__len__') and not isinstance(y, (str, bytes, Mapping, Set))
    return y if is_list and len(y) == len(dataset) else None


def _column(dataset: Any, name: str) -> list[Any]:
    "A column of dicts; of a Hugging Face data set, without what its format or transforms make of it"
    if not hasattr(dataset, 'column_names'): return _item_labels(dataset, name)
    raw = dataset.with_format(None) if hasattr(dataset, 'with_format') else dataset
    return list(raw[name])


def _labels_of(
    dataset: Any,
    key: str | int | None, # of the label in an item; None: it has none
    listed: bool,          # may they be read from what the data set lists?
) -> Any:
    "A label for each item, of any kind"
    values = _listed_labels(dataset) if listed else None
    if values is not None: return values
    if key is None: return [None] * len(dataset)
    return _item_labels(dataset, key) if isinstance(key, int) else _column(dataset, key)


def _features(dataset: Any) -> Mapping[str, Any]:
    "The types of a Hugging Face data set's columns; of others nothing"
    features = getattr(dataset, 'features', None)
    return features if isinstance(features, Mapping) else {}


def _class_names(dataset: Any, label: str | None) -> list[str] | None:
    "The names of classes that a data set has for its numbers"
    names = getattr(dataset, 'classes', None)
    if names is None and _is_a(vocab := getattr(dataset, 'vocab', None), 'CategoryMap'): names = [*vocab]  # fastai's
    if label in _features(dataset): names = getattr(_features(dataset)[label], 'names', None)
    return [str(name) for name in names] if isinstance(names, (list, tuple)) and names else None


def _picture_column(dataset: Any, columns: Columns) -> Columns:
    "Columns of a Hugging Face data set, where one of them alone is of pictures by its type"
    typed = [name for name, feature in _features(dataset).items() if type(feature).__name__ == 'Image']
    if columns.pictures or len(typed) != 1: return columns
    return replace(columns, pictures=typed[0])


def _open_dataset(dataset: Any, columns: Columns, unlabelled: bool) -> Part:
    "A data set whose items are pictures, tuples that begin with one, or dicts"
    _check_dataset(dataset)
    name, first, label, column = type(dataset).__name__, _first_item(dataset), None, None
    keys = getattr(dataset, 'column_names', list(first) if isinstance(first, Mapping) else None)
    if keys is not None: column, label = _picture_column(dataset, columns).find(keys, name)
    else: columns.refuse(name)
    if column is not None and isinstance(first, Mapping) and isinstance(first[column], (str, os.PathLike)):
        pictures = open_paths(_column(dataset, column), Path.cwd(), name)
    else: pictures = Items(dataset, np.arange(len(dataset)), np.full(len(dataset), -1), column)
    part = without_labels(pictures, name)
    if unlabelled: return part
    names = _class_names(dataset, label)
    values = _labels_of(dataset, label if keys is not None else 1, listed=columns.labels is None)
    read = read_labels(values, name, names, asked=columns.labels is not None)
    return _with_labels(part, read, names)


def open_collection(
    source: Any,       # paths, arrays, a table or a data set, perhaps with labels beside it
    columns: Columns,
    unlabelled: bool,  # are its labels left alone?
) -> Part:
    "What is neither a folder nor shards. Raises `InputError`, and what a data set itself raises"
    if is_table(source) or _is_a(source, 'DataFrame'): return open_table(source, columns, unlabelled)
    if are_labelled(source): return _open_labelled(source, columns, unlabelled)
    if are_paths(source):
        kind = type(source).__name__
        return without_labels(open_paths(source, Path.cwd(), f"the {kind} of paths"),
                              f"{kind} of {len(source):,} paths")
    if isinstance(source, (list, tuple)) and source and all(map(_is_path_and_label, source)):
        return _open_labelled(tuple(map(list, zip(*source))), columns, unlabelled)
    if _is_array(source):
        kind = 'tensor' if isinstance(source, torch.Tensor) else 'array'
        part = _open_dataset(Arrays(source), columns, unlabelled=True)
        return replace(part, name=f"{kind} of {len(source):,} pictures")
    return _open_dataset(source, columns, unlabelled)
