"""What the folder of a run says, and which runs there are in folders; nothing here writes."""
import csv
import errno
import json
import reprlib
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .core import InputError, MissingPath, clipped, is_number, is_whole
from .files import check_file, read_json, read_text

try: import fcntl
except ImportError: fcntl = None  # Windows

LOCK, RECORD, HISTORY, ENCODER = '.lock', 'config.json', 'history.csv', 'encoder.safetensors'
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what file systems without them answer
PLAN = 'sweep.json'  # in a folder of runs: of which settings they are, and which settings could not be
_DEPTHS = ('', '*/', '*/*/')  # of runs in a folder: itself, those in it, and those in its folders


def _is(*kinds: type) -> Callable[[Any], bool]: return lambda value: isinstance(value, kinds)


def _are_names(value: Any) -> bool:
    return isinstance(value, str) or isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_results(value: Any) -> bool:
    rows = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values()) for row in rows)


# what readers rely on in a record, where it is there
_FIELDS: dict[str, Callable[[Any], bool]] = dict(
    state=_is(str), reason=_is(str), epochs=is_whole, epochs_done=is_whole, seconds=is_number, pid=is_whole,
    host=_is(str), settings=_is(dict), split=_is(dict), results=_are_results, speedups=_are_names, seed=is_whole,
    valid=_is(int, float, str), method=_is(str), loss=_is(str), verb=_is(str))


def owner_lives(
    path: Path, # a run's folder
) -> bool:      # also where that can't be told
    "Whether a process is at work in a run's folder; not to be asked by that process"
    try:
        check_file(path/LOCK)
        if fcntl is None: return _signer_lives(path/LOCK)
        with (path/LOCK).open() as handle:  # to read, which a folder of another user's allows too
            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError: return False
    except OSError as e: return e.errno not in NO_LOCKS or _signer_lives(path/LOCK)


def signature(
    pid: int, # of a process of this machine
) -> str:
    "What a process writes into the lock that it takes, for those who can't ask whether it is locked"
    return f'{pid} {socket.gethostname()}'


def _signer_lives(lock: Path) -> bool:
    "Whether the process that has signed a lock is there; of another machine's nobody knows"
    from psutil import pid_exists  # here, as it is hardly ever needed
    try:
        text = read_text(lock)
        pid = int(text.split()[0])
        return text != signature(pid) or pid_exists(pid)
    except (OSError, ValueError, IndexError): return True


def read_record(
    path: Path, # a run's folder
) -> dict[str, Any]:
    "What the config.json of a run says. Raises `MissingPath` if there is none, `InputError` if it can't be read"
    file = path/RECORD
    try: record = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        reason = f"there is no {RECORD} in it" if path.is_dir() else "there is no such folder"
        raise MissingPath(f"{path} is no run to go on with: {reason}.") from None
    except (OSError, ValueError) as e: raise InputError(f"{file} can't be read: {e}.") from None
    if not isinstance(record, dict): raise InputError(f"{file} can't be read: it is no record of a run.")
    for name, is_right in _FIELDS.items():
        if record.get(name) is None or is_right(record[name]): continue
        raise InputError(f"{file} can't be read: its {name} is {reprlib.repr(record[name])}.")
    return record


def state_of(
    path: Path, # a run's folder
    record: dict[str, Any], # from `read_record`
) -> str: # 'finished', 'running', 'killed', 'interrupted', 'stopped', 'failed', or 'unknown'
    "How a run stands: one that says it runs and has no process was killed"
    state = str(record.get('state') or 'unknown').split(':')[0]
    return 'killed' if state == 'running' and not owner_lives(path) else state


def history_rows(
    path: Path, # a run's folder
) -> list[dict[str, str]]: # none where there is no history
    "A row for each epoch that a run has done"
    try:
        check_file(path/HISTORY)
        with (path/HISTORY).open(newline='', encoding='utf-8') as file: return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error): return []


def find_runs(
    folder: Path, # of runs, of folders of runs, or a run's own
) -> list[Path]:
    "The folders of runs, the one that changed last at the end. Raises `InputError` if there is none"
    if not folder.is_dir(): raise MissingPath(f"no folder '{folder}': give a folder of runs.")
    found = {file.parent for depth in _DEPTHS for file in folder.glob(depth + RECORD) if not _is_exported(file.parent)}
    if not found: raise InputError(f"no run in '{folder}': give a folder of runs, whose folders have a {RECORD}.")
    return sorted(found, key=lambda path: (changed(path), path))


def _is_exported(folder: Path) -> bool:
    "Whether a folder is that of an exported encoder or classifier, whose config.json is none of a run"
    return (folder/'model.safetensors').exists()


def changed(
    path: Path, # a run's folder
) -> float:
    "When something in a run's folder was last written, in seconds since 1970"
    times = [0.]
    with suppress(OSError):  # gone meanwhile
        times.append(path.stat().st_mtime)
        for file in path.iterdir():
            with suppress(OSError): times.append(file.stat().st_mtime)
    return max(times)


def runs_in(
    folder: Path, # a run's own, or one of runs
) -> list[Path]:
    "The folders of runs that a folder stands for, by name; itself if there are none in it"
    if (folder/HISTORY).exists(): return [folder]
    return sorted(file.parent for file in folder.glob(f'*/{HISTORY}')) or [folder]


# what readers rely on in the plan of a sweep
_ENTRIES: dict[str, dict[str, type]] = dict(runs=dict(run=str, setting=str, seed=int, differs=dict),
                                            refused=dict(setting=str, differs=dict, reason=str))


def read_plan(
    folder: Path, # of a sweep's runs
    remedy: str = "move it away", # from a file that can't be read, for the message
) -> dict[str, Any] | None: # None: it is no sweep's
    "What a folder says that its runs are, and which settings were refused. Raises `InputError` for no sweep's file"
    file = folder/PLAN
    try: plan = read_json(file)
    except (FileNotFoundError, NotADirectoryError): return None
    except (OSError, ValueError) as e: raise InputError(f"{file} can't be read ({e}): {remedy}.") from None
    if not isinstance(plan, dict) or not isinstance(plan.get('axes'), dict | list) or not all(
            _are_entries(plan.get(name), kinds) for name, kinds in _ENTRIES.items()):
        raise InputError(f"{file} can't be read, as it is no sweep's: {remedy}.")
    return plan


def _are_entries(value: Any, kinds: dict[str, type]) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())
        for entry in value)


def known_record(
    path: Path, # a run's folder
) -> dict[str, Any]:
    "What the config.json of a run says; nothing if it can't be read"
    try: return read_record(path)
    except InputError: return {}


# --- what a run is

# settings by which a run is carried out or looked at, and not what it is; they may change while it goes on
CARRIED_OUT = {'controls', 'cache', 'cache_folder', 'checkpoint', 'workers', 'processes', 'device', 'stop_on_collapse',
               'log'}
# what a record says as the run had it, where the settings leave it to a default; of pictures they say it better
_RESOLVED = ('verb', 'method', 'arch', 'loss', 'speedups', 'epochs', 'size', 'batch_size', 'lr', 'small_input',
             'setting', 'precision', 'channels', 'target', 'memory', 'multi_crop', 'recipe', 'protocol',
             'protocol_values')


def given_settings(
    record: dict[str, Any], # of a run, from `read_record`
    keep: Collection[str] = (), # settings that count in any case
) -> dict[str, Any]: # in the order of the record, None left out
    "The settings that make a run what it is, as they were given: without its seed and what is the machine's"
    settings = record.get('settings') or {key: record[key] for key in ('data', *_RESOLVED) if key in record}
    settings = settings | changed_since(record)
    return {key: value for key, value in settings.items()
            if value is not None and (key in keep or key not in CARRIED_OUT | {'seed'})}


def changed_since(
    record: dict[str, Any], # of a run, from `read_record`
) -> dict[str, Any]:
    "What a run was begun with, and has been given otherwise since to be able to go on: it stays the same setting"
    begun = record.get('begun')
    return begun if isinstance(begun, dict) else {}


def setting_of(
    record: dict[str, Any], # of a run, from `read_record`
    keep: Collection[str] = (), # settings that count in any case
    origin: dict[str, Any] | None = None, # the record of the run whose encoder it began with
) -> dict[str, str]:
    """All that makes a run what it is, as text: its settings with what became of their defaults, like the constants of
    its recipe. Runs that agree in it differ in their seeds, and in where and how they were carried out"""
    values = given_settings(record, keep) | {key: record[key] for key in _RESOLVED if record.get(key) is not None}
    for key in ('recipe', 'protocol_values'):
        parts = values.pop(key, None)
        if isinstance(parts, dict): values |= {f'{key}.{name}': value for name, value in parts.items()}
    if origin:
        values |= {f'encoder.{key}': value for key, value in setting_of(origin).items()}
        encoder = Path(str(values.pop('encoder', '')))
        labels = values.get('labels')  # few labels serve both
        if isinstance(labels, str) and Path(labels).parent == encoder.parent: values['labels'] = Path(labels).name
    return {key: _written(value) for key, value in values.items() if value is not None and value != []}


def _written(value: Any) -> str:
    if isinstance(value, str): return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value): return ', '.join(value)
    return json.dumps(value, sort_keys=True)


# what a record says of the pictures that judge a run
_PICTURES = dict(data="data", n_train="pictures to train on", n_valid="pictures to judge by", classes="classes",
                 judged_within="judged within")


def pictures_of(
    record: dict[str, Any], # of a run, from `read_record`
) -> dict[str, Any]: # by words for each; nothing where it says nothing
    "What a run says of its pictures"
    record = record | dict(data=(record.get('settings') or record).get('data'))  # as it is found from anywhere
    return {words: record[key] for key, words in _PICTURES.items() if record.get(key) is not None}


def other_pictures(
    first: dict[str, Any], # from `pictures_of`
    other: dict[str, Any], # alike
) -> str:
    "In what two runs differ of which both say it; '': they may have the same pictures"
    differ = [words for words in first if words in other and other[words] != first[words]]
    return ', '.join(f"{words} {_value(other[words])}, not {_value(first[words])}" for words in differ)


def _value(value: Any) -> str:
    if isinstance(value, list): return f"{len(value)} ({clipped(', '.join(map(str, value)), 40)})"
    if isinstance(value, int): return f'{value:,}'
    return f"'{clipped(value)}'" if value else 'none'


# --- all of it

VIEWS, JUDGED = 'views.png', 'eval.json'


@dataclass(frozen=True)
class Run:
    "What the folder of a run says"
    path: Path
    state: str  # as `state_of` says, or 'broken'
    reason: str = '' # why it is not finished, if that is known
    record: dict[str, Any] = field(default_factory=dict)     # nothing if it is broken
    rows: list[dict[str, str]] = field(default_factory=list) # for each epoch
    origin: dict[str, Any] = field(default_factory=dict)     # the record of the run whose encoder it began with
    judged: dict[str, float] = field(default_factory=dict)   # by measure: what `eval` has written beside it
    judged_by: dict[str, Any] = field(default_factory=dict)  # what that says of its encoder and pictures

    @property
    def seed(self) -> int:
        "Of all draws; 0 where it is not known"
        settings = self.record.get('settings') or {}
        return next((seed for seed in (settings.get('seed'), self.record.get('seed')) if is_whole(seed)), 0)


def read_run(
    path: Path, # a run's folder
) -> Run:
    "What the folder of a run says; one that can't be read is 'broken', with a reason"
    try: record = read_record(path)
    except InputError as e: return Run(path, 'broken', str(e))
    encoder = (record.get('settings') or {}).get('encoder')
    begun = Path(encoder).parent if isinstance(encoder, str) and encoder else None
    origin = {} if begun is None or _is_exported(begun) else known_record(begun)
    return Run(path, state_of(path, record), record.get('reason') or '', record, history_rows(path), origin,
               *_judged(path/JUDGED))


def _judged(file: Path) -> tuple[dict[str, float], dict[str, Any]]:
    "The means of the first encoder in what `fastcontrast eval RUN DATA -o RUN/eval.json` wrote, and the rest of that"
    try:
        content = read_json(file, 2**30)  # of many classes it has all confusions
        scores = next(iter(content.pop('encoders').values()))
        return {str(measure): float(score['mean']) for measure, score in scores.items()}, content
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StopIteration): return {}, {}
