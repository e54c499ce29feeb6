"""Where the command line writes: the terminal, a run's folder, a file, and how a failed program ends."""
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from ..core import InputError

# folders may have any name: no markup, no :emoji:, and no line broken
_PLAIN = dict(soft_wrap=True, markup=False, emoji=False, highlight=False)
console, errors = Console(**_PLAIN), Console(stderr=True, **_PLAIN)


def launched() -> str | None:
    "The file in which one of several processes says why it failed, for their launcher to tell it once"
    return os.environ.get('TORCHELASTIC_ERROR_FILE')


def fail(
    sentence: str, # why
    code: int,     # of the exit: 2 for a user's mistake, 130 for Ctrl-C, 1 for what else went wrong
) -> NoReturn:
    "End the program"
    file = launched()
    if file and code != 130: Path(file).write_text(json.dumps(dict(message=sentence, timestamp=time.time())))
    else: errors.print(sentence, style='red')
    sys.exit(code)


def _unused(name: str) -> Path:
    "A folder under `runs/` that is not there: with a number if the name is taken"
    folder, n = Path('runs')/name, 2
    while folder.exists(): folder, n = Path('runs')/f'{name}-{n}', n + 1
    return folder


@contextmanager
def run_folder(
    out: str | None, # what the user asked for
    name: str,       # what to call it under `runs/` otherwise
) -> Iterator[Path]:
    "A new folder for a run, removed if it is left empty. Raises `InputError` if it can't be written or holds files"
    folder = Path(out or Path('runs')/name)
    try:
        if not out: folder = _unused(name)
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"--out {folder} already holds files: give a new folder, or remove it.")
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        (folder/'.writable').touch()
        (folder/'.writable').unlink()
    except OSError as e: raise InputError(f"the run folder {folder} can't be written: {e.strerror or e}.") from None
    try: yield folder
    finally:
        with suppress(OSError):  # of the first that isn't empty
            for path in new: path.rmdir()


def out_file(
    path: str | Path, # where the user wants a file
    *suffixes: str,   # the endings it may have
) -> Path:            # the file
    "A file that can be written, found before the work is done. Raises `InputError` if it can't; makes its folder"
    path = Path(path)
    if path.suffix.lower() not in suffixes: raise InputError(f"--out {path} must end in {' or '.join(suffixes)}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open('ab'): pass
        if new: path.unlink()
    except OSError as e: raise InputError(f"--out {path} can't be written: {e.strerror or e}.") from None
    return path


def save_json(
    path: Path,
    content: dict[str, Any], # what JSON has no form for is written as text
) -> None:
    "Write a file whole, or leave the one that is there"
    temporary = path.with_name(f'.{path.name}.partial')
    temporary.write_text(json.dumps(content, indent=2, default=str) + '\n')
    os.replace(temporary, path)
