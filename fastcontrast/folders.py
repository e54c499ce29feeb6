"""The pictures of a folder: each found once, and what looks like one and can't be read is named.

Docs: https://fastcontrast.github.io/fastcontrast/data.html.md"""
import functools
import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from .arrays import ARRAY_SUFFIXES
from .core import InputError, clipped, first_of, number_of, shown
from .files import check_file
from .pictures import picture_suffixes

LOOKED_INTO = 100 # folders of a folder, where it is only asked whether there is a picture
SNIFFED = 100 # files with other suffixes whose first bytes are looked at; if one is a picture, all are
MOST_LEFT = 9 # times as many files as pictures may be left out; where there are more, pictures are not what was meant
# suffixes of pictures that Pillow does not read, or not everywhere
_ELSEWHERE = {'.heic', '.heif', '.hif', '.avif', '.avifs', '.jxl', '.jxr', '.wdp', '.svg', '.svgz', '.exr',
              '.cr2', '.cr3', '.crw', '.nef', '.nrw', '.arw', '.sr2', '.srf', '.dng', '.orf', '.raf', '.rw2', '.pef',
              '.srw', '.x3f', '.webp', '.jp2', '.dcm', '.xcf', '.psb', '.eps', '.wmf', '.emf'}
# of files that often stand beside pictures and hold none
_BESIDE = {'.txt', '.json', '.jsonl', '.csv', '.tsv', '.xml', '.yaml', '.yml', '.md', '.html', '.htm', '.pdf', '.db',
           '.ini', '.log', '.xmp', '.thm', '.py', '.ipynb', '.mp3', '.wav', '.cls'}
# and that may hold some, which are not looked for
_PACKED = {'.pt', '.pth', '.pkl', '.safetensors', '.mat', '.h5', '.hdf5', '.parquet', '.arrow', '.tar', '.zip', '.gz',
           '.tgz', '.7z', '.mp4', '.mov', '.avi'}
# JPEG, PNG, GIF, BMP, TIFF (with DNG and most raw formats), JPEG 2000, JPEG XL; RIFF's WebP; HEIF and AVIF; Photoshop
_FIRST_BYTES = re.compile(
    rb'\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0\0\0\0|II[*+]\0|MM\0[*+]|\0\0\0\x0c(?:jP |JXL) '
    rb'|\xff\x4f\xff\x51|\xff\x0a|RIFF.{4}WEBP|.{4}ftyp(?:heic|heix|hevc|mif1|msf1|avif|avis)|8BPS\0', re.DOTALL)


@dataclass
class Left:
    "The files of a folder that may be meant and are not taken"
    others: list[str] = field(default_factory=list) # each is a picture that can't be read, or has another name
    kinds: Counter[str] = field(default_factory=Counter)   # how many hold arrays, or may hold pictures, by suffix
    unknown: Counter[str] = field(default_factory=Counter) # the same of files of which nothing is known

    def __len__(self) -> int: return len(self.others) + self.kinds.total()

    def add(self,
        other: 'Left',  # of a part of the folder
        folder: str = '', # its name; '': it is the folder itself
    ) -> None:
        self.others += [f'{folder}/{name}' for name in other.others] if folder else other.others
        self.kinds.update(other.kinds)
        self.unknown.update(other.unknown)

    def settle(self,
        taken: int, # pictures
    ) -> 'Left':
        "What nothing is known of counts where there is more of it than of pictures: some files stand beside any"
        if self.unknown.total() > taken: self.kinds.update(self.unknown)
        self.unknown = Counter()
        return self

    def words(self,
        taken: Sequence[list[str]], # names of pictures
    ) -> str:
        "'' or sentences"
        sentences, n, count = [left_out(self.others)], sum(map(len, taken)), self.kinds.total()
        if count:
            files = f"{count:,} other file{'s were' if count > 1 else ' was'} left out ({_counted(self.kinds)})"
            pictures = f", and {number_of(n, 'picture')} taken ({_counted(_by_suffix(taken))})" if n else ''
            sentences.append(f'{files}{pictures}.')
        return ' '.join(filter(None, sentences))

    def check(self,
        folder: Path,
        taken: Sequence[list[str]], # names of pictures
    ) -> None:
        "Raise `InputError` where nearly all that may be meant is left out"
        n = sum(map(len, taken))
        if len(self) <= MOST_LEFT * n: return
        pictures = f"{number_of(n, 'picture')} ({_counted(_by_suffix(taken))})"
        others = f"{len(self):,} other files ({_counted(self.kinds + _by_suffix([self.others]))})"
        raise InputError(f"'{folder}' holds {pictures} among {others}, which may be what is meant and would be left "
                         "out: give a folder of one kind, or a list or a .csv file of paths.")


@dataclass
class Listing:
    "What a folder holds: paths in it, with '/', sorted"
    pictures: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list) # files of arrays, which are pictures where there are no others
    left: Left = field(default_factory=Left)


def _suffix(name: str) -> str: return os.path.splitext(name)[1].lower() or 'without suffix'
def _by_suffix(lists: Iterable[list[str]]) -> Counter[str]: return Counter(map(_suffix, chain.from_iterable(lists)))


def _counted(kinds: Counter[str]) -> str:
    "Like 3,000 .npy, 1 .mat"
    commonest = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    return first_of([f'{count:,} {clipped(suffix, 20)}' for suffix, count in commonest], 5)


def left_out(
    names: list[str], # of files that look like pictures
) -> str:
    "'' or a sentence"
    if not names: return ''
    which, owner = ("files that look like pictures were", "their names have") if names[1:] else (
        "file that looks like a picture was", "its name has")
    return f"{len(names):,} {which} left out, since {owner} no suffix that is read here: {shown(first_of(names))}."


def visible(name: str) -> bool: return not name.startswith('.') and name != '__MACOSX'


def find_pictures(
    folder: Path,        # where to look, sub-folders included
    nested: bool = True, # also in sub-folders?
) -> list[str]:          # paths relative to the folder, with '/', sorted
    "Every file with a picture's suffix. Raises `InputError` for a folder that can't be looked into"
    return list_folder(folder, nested).pictures


def list_folder(
    folder: Path,        # where to look
    nested: bool = True, # also in sub-folders?
) -> Listing:
    """Every file with a picture's suffix, and those that only look like one or may hold some

    Arrays (.npy, .npz) are pictures where there are no others; beside such they are left. A link to a folder
    is followed, unless that is a part of this one, whose files are found where they lie, or holds it. Raises
    `InputError` for a folder that can't be looked into."""
    path, real = os.fspath(folder), os.path.realpath(folder)
    found = _listed(path, _files(path, real, real) if nested else [('', _entries(path)[0])])
    found = _without_arrays(found) if found.pictures else _with_arrays(found)
    found.left.settle(len(found.pictures))
    return found


def by_folder(
    folder: Path,
) -> tuple[list[str], dict[str, list[str]], Left]:
    "The pictures that lie in a folder itself, those in each of its folders that has any, and what is left of both"
    path, real = os.fspath(folder), os.path.realpath(folder)
    loose, folders = _entries(path)
    parts = {'': _listed(path, [('', loose)])}
    for entry in sorted(folders, key=lambda entry: entry.name):
        inner = _real_path(entry, real, real)
        if inner is not None: parts[entry.name] = _listed(entry.path, _files(entry.path, inner, real))
    settle = _without_arrays if any(part.pictures for part in parts.values()) else _with_arrays
    parts, left = {name: settle(part) for name, part in parts.items()}, Left()
    for name, part in parts.items(): left.add(part.left, name)
    found = {name: part.pictures for name, part in parts.items() if part.pictures}
    return found.pop('', []), found, left.settle(sum(len(part.pictures) for part in parts.values()))


def loose_kind(
    folder: Path,
) -> str: # 'pictures', or 'arrays' where there are no others; '': it is neither
    "What it is that lies in a folder itself, where none of it lies in its folders"
    names, inner = _entries(os.fspath(folder))
    kinds = set(map(_kind, _suffixes(names)))
    kind = next((kind for kind in ('pictures', 'arrays') if kind in kinds), '')
    return '' if kind and any(_has_loose(entry.path, kind) for entry in _followed(inner, folder)) else kind


def folders_beside(
    folder: Path,
    but: Container[str], # names of those that do not count, its own among them
) -> tuple[list[str], bool]: # the others' names, sorted; does it hold loose pictures alone, as one of them has some?
    "The folders beside one that hold pictures, or whose folders do. Each is looked into up to its first picture"
    others = [entry for entry in _folders(folder.parent) if entry.name not in but]
    if not others: return [], False
    own = loose_kind(folder)
    kind = own or ('pictures' if _has_any(folder, 'pictures') else 'arrays')
    loose = own and any(_has_loose(entry.path, own) for entry in others)
    return [entry.name for entry in others if _has_any(entry.path, kind)], bool(loose)


def _has_loose(
    folder: str | Path,
    kind: str, # of `_kind`
) -> bool:
    "Does a file of a kind lie in a folder itself? Not in one that can't be looked into"
    with suppress(OSError), os.scandir(folder) as entries:
        return any(_kind(entry.name[entry.name.rfind('.'):]) == kind and visible(entry.name) and not _is_folder(entry)
                   for entry in entries)
    return False


def _has_any(folder: str | Path, kind: str) -> bool:
    "Or in one of the first folders in it?"
    return _has_loose(folder, kind) or any(_has_loose(entry.path, kind) for entry in _folders(folder)[:LOOKED_INTO])


def _with_arrays(listing: Listing) -> Listing: return replace(listing, pictures=listing.arrays)


def _without_arrays(listing: Listing) -> Listing:
    listing.left.kinds.update(_by_suffix([listing.arrays]))
    return listing

# --- names by their suffixes

@functools.lru_cache(1000)
def _kind(
    suffix: str, # with the dot, in any case; of a name without a dot its last letter
) -> str:
    "What files with this suffix are: a list of `Listing`; 'others'; 'packed'; 'beside' pictures; or 'unsure'"
    suffix = suffix.lower()
    if suffix in picture_suffixes(): return 'pictures'
    if suffix in ARRAY_SUFFIXES: return 'arrays'
    if suffix in _ELSEWHERE: return 'others'
    if suffix in _PACKED: return 'packed'
    return 'beside' if suffix in _BESIDE else 'unsure'


def _suffixes(names: list[str]) -> set[str]:
    last = {name[-4:] for name in names}
    if all(letters.rfind('.') == 0 for letters in last): return last  # as of .png and .jpg, without a search in each
    return {name[name.rfind('.'):] for name in names}


def _listed(
    folder: str,
    files: Iterable[tuple[str, list[str]]], # from `_files`
) -> Listing:
    "The files of a folder by what they are, arrays by themselves"
    found, beside, packed, unsure = Listing(), [], [], []
    others = found.left.others
    lists = dict(pictures=found.pictures, arrays=found.arrays, others=others, packed=packed, beside=beside,
                 unsure=unsure)
    for prefix, names in files:
        kinds = set(map(_kind, _suffixes(names)))
        if len(kinds) == 1: lists[kinds.pop()] += [prefix + name for name in names] if prefix else names
        else:
            for name in names: lists[_kind(name[name.rfind('.'):])].append(prefix + name)
    if any(_looks_like_one(os.path.join(folder, name)) for name in unsure[:SNIFFED]):
        like = {name for name in unsure if _looks_like_one(os.path.join(folder, name))}
        others += like
        unsure = [name for name in unsure if name not in like]
    found.left.kinds.update(_by_suffix([packed]))
    found.left.unknown.update(_by_suffix([unsure]))
    for names in (found.pictures, found.arrays, others): names.sort()
    return found

# --- what lies in folders

def _files(
    path: str, # of a folder
    real: str, # the same without links
    root: str, # without links, the folder that it is a part of, or itself
) -> Iterator[tuple[str, list[str]]]: # the beginning of paths in it, '' or 'a/b/', and the names that follow
    "The visible files of a folder, and of the folders in it, each of them once"
    left, seen = [('', path, real)], {real}
    while left:
        prefix, path, real = left.pop()
        names, folders = _entries(path)
        yield prefix, names
        for entry in folders:
            inner = _real_path(entry, real, root)
            if inner is None or inner in seen: continue
            seen.add(inner)
            left.append((f'{prefix}{entry.name}/', entry.path, inner))


def _folders(folder: str | Path) -> list[os.DirEntry]:
    "The visible folders in a folder, sorted; none in one that can't be looked into"
    try: return _followed(_entries(os.fspath(folder))[1], folder)
    except InputError: return []


def _followed(folders: list[os.DirEntry], folder: str | Path) -> list[os.DirEntry]:
    "Those of the folders in a folder that are no links to a part of it, or to what holds it; sorted"
    real = os.path.realpath(folder)
    followed = (entry for entry in folders if _real_path(entry, real, real) is not None)
    return sorted(followed, key=lambda entry: entry.name)


def _real_path(
    entry: os.DirEntry, # a folder
    real: str,          # that it lies in, without links
    root: str,          # that all of them are a part of, without links
) -> str | None:
    "Its path without links; None: it is a link that is not to be followed"
    if not entry.is_symlink(): return os.path.join(real, entry.name)
    inner = os.path.realpath(entry.path)
    return None if _overlap(inner, root) else inner


def _entries(folder: str) -> tuple[list[str], list[os.DirEntry]]:
    "The names of the visible files in a folder, sorted; and the visible folders in it. Of plain files nothing is asked"
    names, others, folders = [], [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False): names.append(entry.name)
                else: others.append(entry)
    except OSError as e: raise InputError(f"cannot look into '{e.filename}': {e.strerror}") from None
    for entry in others:
        if not _is_folder(entry): names.append(entry.name)
        elif visible(entry.name): folders.append(entry)
    names.sort()
    del names[bisect_left(names, '.'):bisect_left(names, '/')]  # what begins with a dot: '/' comes next, and is in none
    return names, folders


def _is_folder(entry: os.DirEntry) -> bool:
    try: return entry.is_dir()
    except OSError: return False  # as of a link in a circle


def _overlap(a: str, b: str) -> bool:
    "Is one of two real folders the other, or in it?"
    try: return os.path.commonpath((a, b)) in (a, b)
    except ValueError: return False  # on two drives


def _looks_like_one(path: str) -> bool:
    "Does a file begin as pictures do?"
    with suppress(OSError):
        check_file(path)
        with open(path, 'rb') as file: return bool(_FIRST_BYTES.match(file.read(16)))
    return False
