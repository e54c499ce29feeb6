"""A run's folder: claimed by one process, whole at every moment, and found again by whoever goes on with the run."""
import errno
import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ..core import InputError, moved
from ..files import check_file, check_utf8, left_by_system, shown, sweep, user_path
from ..records import LOCK, NO_LOCKS, RECORD, changed_since, known_record, read_record, signature
from .output import save_json, unwritable

try: import fcntl
except ImportError: fcntl = None  # Windows

ERROR, LABELED = 'error.txt', 'labeled.txt'
_LOOK = 0.2  # seconds that a lock may be another's who only looks, see `owner_lives`
__getattr__ = moved('cli.folder', HISTORY='records', history_rows='records', owner_lives='records')


class _Lock:
    """A file that its process holds while it lives: the system lets go of it, however the process ends

    Not `flock`'s kind, which the processes that it has forked would hold too."""
    def __init__(self,
        path: Path, # of the file
    ):
        self.path, self.handle = path, None

    def take(self) -> bool:
        "Whether the file is this process's now. Raises `OSError` where it can't be written"
        while True:
            if self.path.exists(): check_file(self.path)  # a pipe would have us wait
            handle = self.path.open('a')
            if not _locked(handle):
                handle.close()
                return False
            if self._is(handle): break
            handle.close()  # whoever had it has removed it meanwhile
        self.handle = handle
        with suppress(OSError):
            os.ftruncate(handle.fileno(), 0)  # it may be that of one who was killed
            os.write(handle.fileno(), signature(os.getpid()).encode())
        return True

    def _is(self, handle: TextIO) -> bool:
        try: return os.path.samestat(os.fstat(handle.fileno()), self.path.stat())
        except FileNotFoundError: return False

    @property
    def held(self) -> bool: return self.handle is not None and self._is(self.handle)

    def release(self) -> None:
        held = self.held
        if fcntl is None and held: self.handle.close()  # Windows removes no file that is open
        if held: self.path.unlink(missing_ok=True)
        if self.handle is not None: self.handle.close()
        self.handle = None


def _locked(handle: TextIO) -> bool:
    "Lock a file, if nobody else has; where that can't be, everybody may"
    if fcntl is None: return True
    end = time.monotonic() + _LOOK
    while True:
        try: fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in NO_LOCKS: return True
            if e.errno not in (errno.EACCES, errno.EAGAIN): raise
            if time.monotonic() > end: return False
            time.sleep(0.01)
        else: return True


def resume_command(
    path: Path,             # a run's folder
    verb: str = 'pretrain', # by which it was begun
) -> str:
    "What goes on with a run"
    return f"fastcontrast {verb} --resume {shlex.quote(str(path))}"


class RunFolder:
    "The folder of a run that this process has claimed, and its config.json"
    def __init__(self,
        path: Path,
        lock: _Lock,     # of the folder, taken
        new: list[Path], # the folders that were made for it, from the innermost to the outermost
    ):
        self.path, self.lock, self.new = path, lock, new
        self.before: dict[str, Any] = {}  # what config.json said of the run that goes on here
        self.record: dict[str, Any] = {}  # what it says
        self.worth_keeping = False # whether it holds more than the claim
        self.vanished = False  # whether somebody has removed it meanwhile

    def __str__(self) -> str: return shown(self.path)
    def __truediv__(self, name: str) -> Path: return self.path/name

    @property
    def resumed(self) -> bool:
        "Whether a run goes on in it"
        return bool(self.before)

    def take_up(self,
        record: dict[str, Any], # what its config.json says
    ) -> None:
        "A run goes on here"
        self.before, self.record = record, dict(record)

    def save(self,
        *gone: str,    # fields that config.json no longer has
        **fields: Any, # and those that it has now, beside the others
    ) -> None:
        "Write config.json. Raises `OSError`"
        self.record = {key: value for key, value in self.record.items() if key not in gone} | fields
        save_json(self/RECORD, self.record)
        if self.lock.held: return
        self.vanished = True  # and is here again
        self.lock.release()
        self.lock.take()

    def running(self,
        settings: dict[str, Any], # the run's
        verb: str,                # by which it was begun
    ) -> None:
        "Say in config.json that the run is this process's"
        started = self.record.get('started') or time.strftime('%Y-%m-%dT%H:%M:%S%z')
        before, parts = self.before.get('settings') or {}, 'accumulate'
        begun = {parts: before[parts]} if parts in before and before[parts] != settings[parts] else {}
        if begun := begun | changed_since(self.record): self.record['begun'] = begun
        self.save('reason', state='running', verb=verb, pid=os.getpid(), host=socket.gethostname(), started=started,
                  settings=settings)

    def leave(self) -> None:
        "Give the folder back; as it was found, if it holds nothing more"
        with suppress(OSError):
            if not self.worth_keeping: self._restore()
        with suppress(OSError): self.lock.release()
        with suppress(OSError):  # of the first that isn't empty
            for path in self.new: path.rmdir()

    def _restore(self) -> None:
        if not self.resumed: return (self/RECORD).unlink(missing_ok=True)
        killed = self.before.get('state') == 'running'
        save_json(self/RECORD, self.before | (dict(state='interrupted') if killed else {}))


def reserve(
    name: str, # of a run
) -> Path:     # the folder, made
    "A new folder under `runs/`: with a number if the name is taken. Raises `OSError`"
    folder, n = Path('runs')/name, 2
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try: folder.mkdir()
        except FileExistsError: folder, n = Path('runs')/f'{name}-{n}', n + 1
        else: return folder


def _missing(path: Path) -> list[Path]: return [folder for folder in (path, *path.parents) if not folder.exists()]


def _make(out: str | Path | None, name: str) -> tuple[Path, list[Path]]:
    "A run's folder, and those that were not there"
    if out is None:
        outer = _missing(Path('runs'))
        path = reserve(name)
        return path, [path, *outer]
    new = _missing(Path(out))
    Path(out).mkdir(parents=True, exist_ok=True)
    return Path(out), new


def _foreign(path: Path) -> bool:
    "Whether a folder holds what is no run's"
    return any(file.name != LOCK and '.partial' not in file.suffixes and not left_by_system(file.name)
               for file in path.iterdir())


def _refuse_second(path: Path) -> None:
    record = known_record(path)
    owner = f"process {record['pid']} on {record.get('host')}" if 'pid' in record else "another process"
    raise InputError(f"{owner} is at work in {path}: wait for its end, or give another --out.")


@contextmanager
def claimed(
    out: str | Path | None, # what the user asked for; None: a new folder
    name: str,              # what to call it under `runs/` then
    resumed: bool = False,  # whether a run is to go on in it
) -> Iterator[RunFolder]:
    "The folder of a run. Raises `InputError` if it can't be written, holds files, or another process is at work there"
    if isinstance(out, str): out = user_path(out, '--out')
    path = out or Path('runs')/name
    check_utf8(path, '--out')
    try:
        path, new = _make(out, name)
        lock = _Lock(path/LOCK)
        if not lock.take(): _refuse_second(path)
        if not resumed and _foreign(path):
            lock.release()
            raise InputError(f"--out {path} already holds files: give a new folder, or remove it.")
    except OSError as e: raise unwritable(f"the run folder {path}", e) from None
    folder = RunFolder(path, lock, new)
    try:
        if resumed: folder.take_up(read_record(path))
        sweep(path)
        yield folder
    finally: folder.leave()
