"""Where the command line writes: the terminal, a run's folder, a file, and how a failed program ends."""
import codecs
import errno
import io
import json
import os
import shlex
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from ..core import InputError, NoSpace
from ..files import FULL, check_file, shown, user_path, write_whole

# folders may have any name: no markup, no :emoji:, and no line broken
_PLAIN = dict(soft_wrap=True, markup=False, emoji=False, highlight=False)
DRAWINGS = '.png', '.svg', '.pdf' # endings of files that figures are drawn to
LAUNCHER = 'FASTCONTRAST_LAUNCHER'  # in the environment of processes that `launch` has started: its folder


class _Terminal(Console):
    "A console that obeys nobody's names: what a terminal would act on is shown escaped, in tables too"
    def render_str(self, text, **kwargs): return super().render_str(shown(text, lines=True), **kwargs)


console, errors = _Terminal(**_PLAIN), _Terminal(stderr=True, **_PLAIN)


_DROPPED = {*FULL, errno.EFBIG, errno.EIO}  # full disks; a terminal that is gone


class _Lenient(io.FileIO):
    "A log that drops what there is no room for, rather than ending the run that it tells of"
    def write(self, content):
        try: return super().write(content)
        except OSError as e:
            if e.errno not in _DROPPED: raise
            return memoryview(content).nbytes


def make_lenient() -> None:
    """Have a full disk, or a terminal that is gone, cost what is printed and not the program; also where nobody listens

    A character that a terminal does not know becomes a question mark."""
    for number, name in enumerate(('stdout', 'stderr'), 1):
        old = getattr(sys, name)
        if old is None:  # closed, as by `>&-`
            setattr(sys, name, open(os.devnull, 'w'))
            continue
        raw = getattr(getattr(old, 'buffer', None), 'raw', getattr(old, 'buffer', None))
        if type(raw) is not io.FileIO or raw.fileno() != number: continue  # who calls `main` has put another there
        old.flush()
        buffer = io.BufferedWriter(_Lenient(number, 'w', closefd=False))
        # a terminal in ISO-8859-1, say, has no such dashes and names as a table may hold
        refuses = old.errors in ('strict', 'surrogateescape') and codecs.lookup(old.encoding).name != 'utf-8'
        setattr(sys, name, io.TextIOWrapper(buffer, old.encoding, 'replace' if refuses else old.errors,
                                            line_buffering=old.line_buffering, write_through=old.write_through))


def launched() -> str | None:
    "The file in which one of several processes says why it failed, for their launcher to tell it once"
    return None if orphaned() else os.environ.get('TORCHELASTIC_ERROR_FILE')


def orphaned() -> bool:
    "Whether the launcher has been killed, whose folder has its number in the name"
    return LAUNCHER in os.environ and f'-{os.getppid()}-' not in Path(os.environ[LAUNCHER]).name


class Ended(Exception):
    "A run has ended early, and what it has was kept; the message is what its user is told"
    def __init__(self,
        message: str,
        code: int, # of the exit
    ):
        super().__init__(message)
        self.code = code


def fail(
    sentence: str, # why
    code: int,     # of the exit: 2 for a user's mistake, above 128 for a signal, 1 for what else went wrong
) -> NoReturn:
    "End the program"
    if sentence.startswith('error: '): sentence = shown(sentence)  # one line, whatever a name in it holds
    file = launched()
    if orphaned(): shutil.rmtree(os.environ[LAUNCHER], ignore_errors=True)
    with suppress(OSError):  # of a terminal that is gone
        if file: Path(file).write_text(json.dumps(dict(message=sentence, timestamp=time.time())))
        if not file or (code > 128 and LAUNCHER not in os.environ): errors.print(sentence, style='red')
    sys.exit(code)


def this_command() -> str:
    "The program as it was called, to be called so again"
    return shlex.join(['fastcontrast', *sys.argv[1:]])


def out_file(
    path: str | Path, # where the user wants a file
    *suffixes: str,   # the endings it may have
    option: str = '--out', # that says so
) -> Path:            # the file
    "A file that can be written, found before the work is done. Raises `InputError` if it can't; makes its folder"
    path = user_path(path, option)
    if path.suffix.lower() not in suffixes: raise InputError(f"{option} {path} must end in {' or '.join(suffixes)}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        if not new: check_file(path)
        with path.open('ab'): pass
        if new: path.unlink()
    except OSError as e: raise unwritable(f"{option} {path}", e) from None
    return path


def unwritable(
    what: str, # a file or folder, in words
    error: OSError,
) -> InputError:
    "What says that it can't be written"
    kind = NoSpace if error.errno in FULL else InputError
    return kind(f"{what} can't be written: {error.strerror or error}.")


def save_json(
    path: Path,
    content: dict[str, Any], # what JSON has no form for is written as text
) -> None:
    "Write a file whole, or leave the one that is there"
    write_whole(path, json.dumps(content, indent=2, default=str) + '\n')
