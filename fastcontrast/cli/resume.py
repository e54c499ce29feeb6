"""Going on with a run: which one is meant, by which settings it was begun, and which of them may change."""
import os
from collections.abc import Collection
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

from ..core import InputError, is_number
from ..files import user_path
from ..records import CARRIED_OUT, RECORD, history_rows, read_record
from .settings import Run, number_or_name, option

# beside how a run is carried out: how long it is, its rounding, and in how many parts batches go through the model;
# none of them is what it has learned so far
MAY_CHANGE = CARRIED_OUT | {'epochs', 'precision', 'compile', 'accumulate'}

# what a run that goes on takes from config.json, and its types
_KEPT = dict(epochs_done=int, seconds=int | float, results=dict)
_PATHS = ('encoder', 'data', 'valid', 'labels', 'cache_folder')


def run_to_resume(
    resume: str | None, # the folder that --resume names
    out: str | None,    # the folder that --out names
) -> Path | None:       # None: a new run is to begin
    "The folder of the run to go on with: also that of --out, if a run has begun there. Raises `InputError`"
    path = None if resume is None else user_path(resume, '--resume')
    other = None if out is None else user_path(out, '--out')
    if path and other and path.absolute() != other.absolute():
        raise InputError(f"--resume {resume} goes on in that folder, and --out {out} is another: give one of them.")
    if path: return path
    try: return other if other and 'settings' in read_record(other) else None
    except InputError: return None


def begun_with(
    path: Path,             # a run's folder
    kind: type = Run,       # of settings
    verb: str = 'pretrain', # of which they are
) -> dict[str, Any]:
    "The settings that a run was begun with. Raises `InputError` if it has none that are known, or is of another verb"
    record = read_record(path)
    other = record.get('verb', 'pretrain')
    if other != verb:
        raise InputError(f"{path} is a run of another kind: go on with it by fastcontrast {other} --resume, or give "
                         "another folder.")
    settings = record.get('settings')
    if not isinstance(settings, dict):
        raise InputError(f"{path} was begun by an older version of fastcontrast, which kept no settings to go on with: "
                         "begin anew, with another --out.")
    types = {field.name: _type(field.type) for field in fields(kind)}
    unknown = [name for name in settings if name not in types]
    if unknown:
        raise InputError(f"{path} was begun by a version of fastcontrast with a setting that this one lacks, "
                         f"'{unknown[0]}': go on with that version.")
    kept = [(record, name, kinds) for name, kinds in _KEPT.items()]
    for values, name, kinds in (*kept, *((settings, name, types[name]) for name in settings)):
        if name in values and not isinstance(values[name], kinds):
            raise InputError(f"{path/RECORD} can't be read: its {name} is {values[name]!r}.")
    return settings


def _type(annotation: Any) -> Any:
    "What a setting may be in JSON, where a float may be written as a whole number"
    return int | annotation if float in get_args(annotation) else annotation


def kept_settings(
    config: Any, # the settings of a run
    begun: dict[str, Any] | None = None, # from `begun_with`, of one that goes on
) -> dict[str, Any]:
    "What config.json keeps of settings: names of files as they are found from anywhere"
    settings = asdict(config)
    for key in _PATHS:
        if _is_path(key, settings.get(key)): settings[key] = _absolute(settings[key])
    weights, known = settings.get('weights'), (begun or {}).get('weights')  # which may be gone by now
    if weights not in (None, known): settings['weights'] = _kept_weights(weights)
    return settings


def start_of(
    learn, # a `ContrastiveLearner` of a run that begins
) -> dict[str, Any] | None:
    "What config.json keeps of weights that a run begins with; None if there are none, or no name makes the encoder"
    from ..export import needs_module
    if learn.weights_from is None or needs_module(learn.arch): return None
    return dict(arch=learn.arch, small_input=learn.small_input, origin=learn.weights_from,
                mean=[float(m) for m in learn.mean], std=[float(s) for s in learn.std], doubts=list(learn.doubts))


def kept_start(
    path: Path,  # a run's folder
    config: Run, # the settings that it goes on with
) -> Any:        # a `KeptStart`, or None
    "What a run needs of its --weights, which are not read again, as they may be gone; None if it has no checkpoint yet"
    from ..build import KeptStart
    from ..checkpoint import newest
    record = read_record(path)
    start = record.get('start')
    if config.weights is None or not _is_start(start) or newest(path) is None: return None
    if config.controls and not record.get('results') and not record.get('unjudged'): return None  # to be judged yet
    return KeptStart(**start)


_START = dict(arch=str, small_input=bool, origin=str, mean=list, std=list, doubts=list) # what `start_of` gives


def _is_start(start: Any) -> bool:
    "Whether a record's start is one that can be gone on with"
    from ..export import needs_module
    if not isinstance(start, dict) or start.keys() != _START.keys(): return False
    if not all(isinstance(start[name], kind) for name, kind in _START.items()): return False
    return all(map(is_number, start['mean'] + start['std'])) and not needs_module(start['arch'])


def _kept_weights(weights: str) -> str:
    "What `--weights` names, from anywhere: what timm knows stays as it is, whatever lies here by that name"
    from ..models import HUB, LOCAL
    from ..weights import timm_source
    if weights.startswith(HUB): return weights  # wherever it is called; who asks the Hub waits
    source, prefix = timm_source(weights), LOCAL if weights.startswith(LOCAL) else ''
    if source is not None and not source.startswith(LOCAL): return weights
    return prefix + _absolute(weights.removeprefix(LOCAL))


def _absolute(path: str) -> str: return os.path.abspath(Path(path).expanduser())


_NAMES = dict(data='digits', valid='digits', labels='all') # that are no path, even where there is one of that name


def _is_path(key: str, value: Any) -> bool:
    if not isinstance(value, str) or not value or value == _NAMES.get(key): return False
    if key == 'labels' and not isinstance(number_or_name(value), str): return False
    return key in ('cache_folder', 'encoder') or value.endswith('.tar') or Path(value).expanduser().exists()


def check_changes(
    path: Path,  # a run's folder
    begun: dict[str, Any], # from `begun_with`
    config: Run, # the settings that it is to go on with
) -> None:
    "Raise `InputError`, which names the setting, for one that can't change any more, and for a run that is done"
    check_same(path, begun, config)
    record = read_record(path)
    done = max(len(history_rows(path)), record.get('epochs_done') or 0)
    if config.epochs < done:
        raise InputError(f"{path} has done {done} epochs already, and --epochs is {config.epochs}: give no fewer.")
    if record.get('state') == 'finished' and config.epochs <= done:
        raise InputError(f"{path} is finished; give --epochs more than {done} to go on, or another --out "
                         "and no --resume for a new run.")


def check_same(
    path: Path,            # a run's folder
    begun: dict[str, Any], # from `begun_with`
    config: Any,           # the settings that it is to go on with
    may_change: Collection[str] = MAY_CHANGE, # those that may differ
    remedy: str = "leave that out, or begin a new run with another --out and no --resume",
) -> None:
    "Raise `InputError`, which names it, for a setting that differs"
    begun = asdict(type(config)()) | begun
    for key, value in kept_settings(config, begun).items():
        if key in may_change or value == begun[key]: continue
        given = 'given without one' if value is None else f'now given {value}'
        raise InputError(f"{path} was begun with {_said(key, begun[key])}, and is {given}: {remedy}.")


def _said(key: str, value: Any) -> str:
    name = f'the {key}' if key in ('data', 'encoder') else option(key)
    return f'the default of {name}' if value is None else f'{name} {value}'
