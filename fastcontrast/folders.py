"""The pictures of a folder: each found once, and what looks like one and can't be read is named.

Docs: https://fastcontrast.github.io/fastcontrast/data.html.md"""
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from .arrays import ARRAY_SUFFIXES
from .core import InputError
from .files import check_file, shown
from .pictures import picture_suffixes

SNIFFED = 100 # files with other suffixes whose first bytes are looked at; if one is a picture, all are
# suffixes of pictures that Pillow does not read, or not everywhere
_ELSEWHERE = {'.heic', '.heif', '.hif', '.avif', '.avifs', '.jxl', '.jxr', '.wdp', '.svg', '.svgz', '.exr',
              '.cr2', '.cr3', '.crw', '.nef', '.nrw', '.arw', '.sr2', '.srf', '.dng', '.orf', '.raf', '.rw2', '.pef',
              '.srw', '.x3f', '.webp', '.jp2', '.dcm', '.xcf', '.psb', '.eps', '.wmf', '.emf'}
# of files that often stand beside pictures and are none
_BESIDE = {'.txt', '.json', '.jsonl', '.csv', '.tsv', '.xml', '.yaml', '.yml', '.md', '.html', '.htm', '.pdf', '.db',
           '.ini', '.log', '.xmp', '.thm', '.py', '.ipynb', '.pt', '.pth', '.pkl', '.safetensors', '.mat', '.h5',
           '.parquet', '.tar', '.zip', '.gz', '.tgz', '.7z', '.mp4', '.mov', '.avi', '.mp3', '.wav', '.cls'}
# JPEG, PNG, GIF, BMP, TIFF (with DNG and most raw formats), JPEG 2000, JPEG XL; RIFF's WebP; HEIF and AVIF; Photoshop
_FIRST_BYTES = re.compile(
    rb'\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0\0\0\0|II[*+]\0|MM\0[*+]|\0\0\0\x0c(?:jP |JXL) '
    rb'|\xff\x4f\xff\x51|\xff\x0a|RIFF.{4}WEBP|.{4}ftyp(?:heic|heix|hevc|mif1|msf1|avif|avis)|8BPS\0', re.DOTALL)


@dataclass
class Listing:
    "What a folder holds: paths in it, with '/', sorted"
    pictures: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list) # files of arrays, which are pictures where there are no others
    others: list[str] = field(default_factory=list) # of which each is a picture that can't be read, or has another name


def left_out(
    names: list[str], # of files that look like pictures
) -> str:
    "'' or a sentence"
    if not names: return ''
    which, owner = ("files that look like pictures were", "their names have") if names[1:] else (
        "file that looks like a picture was", "its name has")
    first = ', '.join(shown(name) for name in names[:10]) + (', …' if names[10:] else '')
    return f"{len(names):,} {which} left out, since {owner} no suffix that is read here: {first}."


def visible(name: str) -> bool: return not name.startswith('.') and name != '__MACOSX'


def find_pictures(
    folder: Path,        # where to look, sub-folders included
    nested: bool = True, # also in sub-folders?
) -> list[str]:          # paths relative to the folder, with '/', sorted
    "Every file with a picture's suffix. Raises `InputError` for a folder that can't be looked into"
    return list_folder(folder, nested).pictures


def list_folder(
    folder: Path,               # where to look
    nested: bool = True,        # also in sub-folders?
    whole: Path | None = None,  # the folder that this one is a part of; None: it is a part of no other
) -> Listing:
    """Every file with a picture's suffix, and those that only look like one

    Arrays (.npy, .npz) are pictures where there are no others; beside such they are something else. A link to a folder
    is followed, unless that is a part of `whole`, whose files are found where they lie, or holds it. Raises
    `InputError` for a folder that can't be looked into."""
    found = _listed(folder, nested, whole)
    return found if found.pictures else replace(found, pictures=found.arrays)


def _listed(folder: Path, nested: bool, whole: Path | None = None) -> Listing:
    "What there is in a folder, arrays by themselves"
    suffixes, found, unsure = frozenset(picture_suffixes()), Listing(), []
    for name in _files(folder, nested, whole):
        suffix = name[name.rfind('.'):].lower()  # without a dot, the last letter
        if suffix in suffixes: found.pictures.append(name)
        elif suffix in ARRAY_SUFFIXES: found.arrays.append(name)
        elif suffix in _ELSEWHERE: found.others.append(name)
        elif suffix not in _BESIDE: unsure.append(name)
    if any(_looks_like_one(folder/name) for name in unsure[:SNIFFED]):
        found.others += [name for name in unsure if _looks_like_one(folder/name)]
    for names in (found.pictures, found.arrays, found.others): names.sort()
    return found


def by_folder(
    folder: Path,
) -> tuple[list[str], dict[str, list[str]], str]:
    """The pictures that lie in a folder itself, those in each of its folders that has any, and a note of what was left
    out, or ''; names are those of `list_folder`"""
    top = _listed(folder, nested=False)
    names = sorted(entry.name for entry in _entries(os.fspath(folder)) if _is_folder(entry))
    below = {name: _listed(folder/name, nested=True, whole=folder) for name in names}
    if not top.pictures and not any(found.pictures for found in below.values()):
        top, below = (replace(top, pictures=top.arrays),
                      {name: replace(found, pictures=found.arrays) for name, found in below.items()})
    others = top.others + [f'{name}/{other}' for name, listing in below.items() for other in listing.others]
    return top.pictures, {name: found.pictures for name, found in below.items() if found.pictures}, left_out(others)


def _files(folder: Path, nested: bool, whole: Path | None) -> Iterator[str]:
    "The visible files of a folder, by their paths in it"
    real = os.path.realpath(folder)
    root = real if whole is None else os.path.realpath(whole)
    if whole is not None and folder.is_symlink() and _overlap(real, root): return
    left, seen = [('', os.fspath(folder), real)], {real}
    while left:
        prefix, path, real = left.pop()
        for entry in _entries(path):
            if not _is_folder(entry): yield prefix + entry.name
            elif nested:
                link = entry.is_symlink()
                inner = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
                if inner in seen or link and _overlap(inner, root): continue
                seen.add(inner)
                left.append((f'{prefix}{entry.name}/', entry.path, inner))


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries: return [entry for entry in entries if visible(entry.name)]
    except OSError as e: raise InputError(f"cannot look into '{e.filename}': {e.strerror}") from None


def _is_folder(entry: os.DirEntry) -> bool:
    try: return entry.is_dir()
    except OSError: return False  # as of a link in a circle


def _overlap(a: str, b: str) -> bool:
    "Is one of two real folders the other, or in it?"
    return os.path.commonpath((a, b)) in (a, b)


def _looks_like_one(path: Path) -> bool:
    "Does a file begin as pictures do?"
    with suppress(OSError):
        check_file(path)
        with path.open('rb') as file: return bool(_FIRST_BYTES.match(file.read(16)))
    return False
