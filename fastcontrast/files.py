"""A user's files: named so that they can be shown, opened only if they are files, and written whole or not at all."""
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .core import InputError, clipped, shown

# --- names

def listed(
    name: str,
) -> str: # one line
    "A name as a line of a list of names, for `from_list` to read: any but a plain one in quotes, as JSON has it"
    plain = name.isprintable() and name == name.strip() and not name.startswith(('#', '"'))
    return name if plain else json.dumps(name)


def from_list(
    line: str, # of a list of names
) -> str:      # '': it names nothing
    "The name in a line that `listed` or somebody's editor has written; comments begin with #"
    line = line.strip()
    if line.startswith('#'): return ''
    if not line.startswith('"'): return line
    try: name = json.loads(line)
    except ValueError: return line
    return name if isinstance(name, str) else line


# of Finder, of Windows' and KDE's browsers of files, and of Jupyter
_LEFT = {'.ds_store', '.localized', 'thumbs.db', 'desktop.ini', '.directory', '.ipynb_checkpoints'}


def left_by_system(
    name: str, # of a file or folder, without the folder that it is in
) -> bool:
    "Whether it is nobody's: programs leave such in folders that they show. Not all that is hidden is: .git is not"
    return name.lower() in _LEFT or name.startswith('._')


def user_path(
    path: str | os.PathLike, # as a user wrote it
    name: str,               # of the option or argument, for the message
) -> Path:                   # with the home folder in place of ~
    "A path that a user gave. Raises `InputError` if it is empty, or ~ stands for nobody"
    text = os.fspath(path)
    if not text or '\0' in text: raise InputError(f"{name}={text!r} is no path: give the name of a file or folder.")
    found = os.path.expanduser(text)
    if text[0] == found[0] == '~':
        raise InputError(f"{name}={text} begins with the home folder of somebody unknown here: write it in full.")
    try: os.lstat(found)
    except UnicodeEncodeError: raise InputError(f"{name}={text} holds half a character: give a path.") from None
    except OSError as e: _check_lookup(e, f'{name}={clipped(text, 60)}', many='{' in text)
    return Path(found)


def _check_lookup(
    error: OSError, # from where a path was looked for
    given: str,     # the path, for the message
    many: bool,     # whether braces in it stand for many names
) -> None:
    "Raise `InputError` where it says more than that nothing is there"
    if error.errno == errno.ENAMETOOLONG and not many:
        raise InputError(f"{given} is too long to be the name of a file: give a path.")
    if error.errno == errno.EACCES:
        raise InputError(f"{given} lies in a folder that you may not look into: give another, or have it opened.")


def check_utf8(
    path: Path,
    name: str, # of the option or argument, for the message
) -> None:
    "Raise `InputError` for a path that safetensors can't open"
    try: os.fspath(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{name}={shown(path)} is no UTF-8, and files of safetensors are opened by no other name: "
                         "give it another one.") from None

# --- what is read

_KINDS = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
          (stat.S_ISBLK, "a device"), (stat.S_ISDIR, "a folder"))


class NotAFile(OSError):
    "Where a file was looked for there is a pipe, a socket, a device or a folder; opening it might wait for ever"


def check_file(
    path: str | os.PathLike,
) -> os.stat_result:
    "Raise `NotAFile`, unless a path leads to a regular file, or another `OSError` if it leads nowhere"
    found = os.stat(path)
    if stat.S_ISREG(found.st_mode): return found
    kind = next((words for is_kind, words in _KINDS if is_kind(found.st_mode)), "something else")
    raise NotAFile(errno.EINVAL, f"{kind}, not a file", os.fspath(path))


def read_text(
    path: str | os.PathLike,
    most: int = 2**26, # bytes
) -> str:              # UTF-8, with or without a mark
    "A whole file of text. Raises `OSError`, and `ValueError` for one that is larger or no text"
    if check_file(path).st_size > most: raise ValueError(f"it is larger than {megabytes(most)}")
    with open(path, 'rb') as file: content = file.read(most + 1)
    try: return content.decode('utf-8-sig')
    except UnicodeDecodeError as e: raise ValueError(f"it is no text in UTF-8, at byte {e.start:,}") from None


def read_json(
    path: str | os.PathLike,
    most: int = 2**26, # bytes
) -> Any:
    "What a JSON file holds. Raises `OSError`, and `ValueError` for what is none or can't be used"
    text = read_text(path, most)
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode(errors='surrogateescape')  # names are looked for as they are
    except RecursionError: raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError: raise ValueError("it holds half a character") from None
    return content

# --- what is written

FULL = errno.ENOSPC, errno.EDQUOT # what a disk without room answers


def _to_disk(path: Path) -> None:
    "Wait until what is in a file, or which files a folder has, is on the disk"
    handle = os.open(path, os.O_RDWR if os.name == 'nt' else os.O_RDONLY)  # Windows wants to write what it syncs
    try: os.fsync(handle)
    finally: os.close(handle)


@contextmanager
def whole_file(
    path: str | Path, # of the file; its folder is made if it is not there
) -> Iterator[Path]:  # where to write it: another name in the same folder, with the same ending
    """A file that takes its place when the block has ended, and does not change what is there if it fails

    A process that is killed in between leaves the other name behind: `sweep` removes it. Raises `OSError`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.stem}.{os.getpid()}.partial{path.suffix}')
    try:
        yield partial
        _to_disk(partial)
        os.replace(partial, path)
    except BaseException as e:
        with suppress(OSError): partial.unlink()
        if isinstance(e, OSError) and e.filename is None: e.filename = str(path)  # a full disk's error has none
        raise
    if os.name == 'posix':
        with suppress(OSError): _to_disk(path.parent)  # some file systems sync no folder; the file is there


def write_whole(
    path: str | Path,     # of the file
    content: bytes | str, # text is written as UTF-8, and names of files as the system has them
) -> None:
    "Write a file whole, or leave the one that is there; makes its folder. Raises `OSError`"
    with whole_file(path) as partial:
        partial.write_bytes(content.encode(errors='surrogateescape') if isinstance(content, str) else content)


def copy_whole(
    source: Path, # a file or a folder
    path: Path,   # takes the place of a file or folder that is there
) -> None:
    "Copy it whole, or leave what is there. Raises `OSError`"
    if not source.is_dir(): return write_whole(path, source.read_bytes())
    partial = path.with_name(f'.{path.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)  # of a program that was killed
    shutil.copytree(source, partial)
    if path.is_dir(): shutil.rmtree(path)
    partial.rename(path)


def megabytes(
    count: int, # bytes
) -> str:
    "Like 30.0 MB or 1.2 GB"
    return f'{count / 1e9:,.1f} GB' if count >= 1e9 else f'{count / 1e6:,.1f} MB'


def sweep(
    folder: str | Path, # in which nobody else writes
) -> None:
    "Remove what programs that were killed while they wrote have left in a folder"
    for partial in Path(folder).glob('.*.partial*'):
        with suppress(OSError): partial.unlink()
