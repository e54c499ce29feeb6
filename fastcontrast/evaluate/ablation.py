"""From runs to numbers: those that differ in their seeds are one setting, compared with a control seed by seed."""
import ast
import difflib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from ..core import InputError, clipped, first_of
from ..records import ENCODER, RECORD, Run, given_settings, read_plan, setting_of
from .plots import EMPTY, read_history


# --- what is measured

@dataclass(frozen=True)
class Column:
    "What a number of a run means"
    title: str
    share: bool = False # a share, shown in per cent?
    better: int = 0     # 1: more is better, -1: less, 0: neither
    main: bool = True   # in the tables to read, or only in those for programs?


COLUMNS = dict(
    knn=Column('kNN', True, 1), accuracy=Column('accuracy', True, 1), held_out=Column('held-out labels', True, 1),
    seconds=Column('seconds', better=-1), tflop=Column('TFLOP', better=-1),
    images_s=Column('pictures a second', better=1), memory_mb=Column('memory, MB', better=-1),
    epochs_to=Column("epochs to the control's kNN", better=-1),
    tflop_to=Column("TFLOP to the control's kNN", better=-1),
    seconds_to=Column("seconds to the control's kNN", better=-1),
    total_seconds=Column('seconds with judging', better=-1, main=False))
_NUMBERS = {'alignment', 'uniformity', 'RankMe', 'spread'} # of `eval`, which are no shares
PRODUCTS = 'trained encoder', 'classifier' # in a run's results; others are what they are compared with
_COSTS = ('seconds', 'tflop', 'images_s', 'memory_mb')
_FOR_ALL = {'epoch', 'lr', 'time'} # columns of a history that say nothing of how good a run is


def column(
    name: str, # of a column: in `COLUMNS`, of the epoch table, or a measure of `eval`
) -> Column:
    "What the numbers of a column mean"
    if name in COLUMNS: return COLUMNS[name]
    measure = name.removeprefix('eval: ')
    if name == measure and not name.startswith('linear, '): return Column(name, main=False)
    share = measure not in _NUMBERS
    return Column(name, share, int(share))


def judged_values(
    results: Mapping[str, float], # what a run's closing table says of features
) -> dict[str, float]: # by column
    "Accuracies of features"
    values = {name: results[name] for name in ('knn', 'accuracy', 'held_out') if name in results}
    if 'few_labels' in results:
        n = results.get('per_class', 10)
        values[f"linear, {n:g} label{'s' * (n > 1)} a class"] = results['few_labels']
    return {name: finite(value) for name, value in values.items()}


def judged_another(
    run: Run,
) -> bool: # False where that can't be told
    "Whether what `eval` has written beside a run is of another encoder than the run's: as of before it went on"
    said = run.judged_by.get('encoder_sha256')
    if said is None: return False
    from ..artefact import WEIGHTS, metadata_of  # here, because it takes seconds that most reports need not spend
    files = (run.path/ENCODER, run.path/'classifier'/WEIGHTS)
    own = next((metadata_of(file).get('sha256') for file in files if file.is_file()), None)
    return own not in (None, said)


def values_of(
    run: Run,
) -> dict[str, float]: # by column, NaN for what is no finite number
    "What is known of a run once it has ended"
    record, last = run.record, run.rows[-1] if run.rows else {}
    results = record.get('results') or {}
    values = judged_values(next((results[name] for name in PRODUCTS if name in results), {}))
    if not judged_another(run): values |= {f'eval: {measure}': value for measure, value in run.judged.items()}
    cost = record.get('cost') if isinstance(record.get('cost'), dict) else {}
    values |= {name: cost[name] for name in _COSTS if name in cost}
    values |= {name: cell for name, cell in last.items()
               if name and name not in values and name not in _FOR_ALL and cell not in EMPTY}
    if 'seconds' in record: values['total_seconds'] = record['seconds']
    return {name: finite(value) for name, value in values.items()}


def finite(
    value: Any, # a number, or what may be written for one
) -> float:
    "A finite number, or NaN"
    try: value = float(value)
    except (TypeError, ValueError, OverflowError): return math.nan
    return value if math.isfinite(value) else math.nan


def curves_of(
    run: Run,
) -> dict[str, list[float]]: # none where there is nothing to draw
    "The history of a run"
    try: return read_history(run.rows)
    except InputError: return {}


# --- means, deviations, differences

def summary(
    values: pd.DataFrame, # a row for each run: 'setting', 'seed', and columns of numbers
    base: str,            # the setting that the others are compared with
) -> pd.DataFrame: # 'setting', 'measure', 'mean', 'std', 'n', 'difference', 'error', 'pairs'
    """Of every setting and column: mean, standard deviation and number of seeds that have a number; and the mean of the
    differences to the control's run of the same seed, with its standard error (the deviation of the differences over
    the root of their number) and the number of such pairs. Runs of one setting and seed count once, by their mean. NaN
    for what too few seeds have"""
    names = [name for name in values if name not in ('setting', 'seed')]
    seeds = values.groupby(['setting', 'seed'], sort=False)[names].mean()
    control, rows = seeds.loc[base], []
    for setting in dict.fromkeys(values['setting']):
        own = seeds.loc[setting]
        gains = own - control
        for name in names:
            row = dict(setting=setting, measure=name, mean=own[name].mean(), std=own[name].std(), n=own[name].count())
            if setting != base:
                row |= dict(difference=gains[name].mean(), error=gains[name].sem(), pairs=gains[name].count())
            rows.append(row)
    columns = ['setting', 'measure', 'mean', 'std', 'n', 'difference', 'error', 'pairs']
    return pd.DataFrame(rows, columns=columns).astype({'n': 'Int64', 'pairs': 'Int64'})


def is_clear(
    row: Any, # of a summary
) -> bool:
    "Whether zero lies outside of the 95% confidence interval of a difference (Student's t over the pairs)"
    if pd.isna(row.error) or not row.difference: return False
    return bool(abs(row.difference) > stats.t.ppf(.975, row.pairs - 1) * row.error)


# --- settings

@dataclass
class Setting:
    "Runs that differ in their seeds alone"
    identity: dict[str, str] # all that makes them what they are
    given: dict[str, Any]    # of that, what somebody chose
    runs: list[Run] = field(default_factory=list)
    name: str = ''

    @property
    def speedups(self) -> int:
        found = self.runs[0].record.get('speedups')
        return len(found) if isinstance(found, list) else bool(found)

    @property
    def counted(self) -> list[Run]: return [run for run in self.runs if run.state == 'finished']

    @property
    def seeds(self) -> set[int]:
        "Of the runs that count; one may have several"
        return {run.seed for run in self.counted}


def grouped(
    runs: Iterable[Run],
    keep: Sequence[str] = (), # settings that tell runs apart in any case
) -> list[Setting]: # in the order of their first runs, without names
    "Runs by what they are"
    found: dict[tuple, Setting] = {}
    for run in runs:
        if not run.record: continue
        identity = setting_of(run.record, keep, run.origin)
        given = given_settings(run.record, keep)
        if run.origin: given = {key: identity[key] for key in identity if key in given or key.startswith('encoder.')}
        setting = found.setdefault(tuple(sorted(identity.items())), Setting(identity, given))
        setting.runs.append(run)
    return list(found.values())


_PATHS = ('data', 'valid', 'labels', 'weights')


def _calls(text: Any) -> list[str]:
    "Speedups as they were written, one by one"
    if isinstance(text, list): return text
    try: nodes = ast.parse(f'[{text or ""}]', mode='eval').body
    except (SyntaxError, ValueError, MemoryError, RecursionError): return [str(text)]
    return [ast.unparse(node) for node in nodes.elts] if isinstance(nodes, ast.List) else [str(text)]


def _said(key: str, value: Any) -> str:
    if value is None: return f'{key}=default'
    return f"{key}={Path(str(value)).name if key in _PATHS else value}"


def _differences(own: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    "In what a setting differs from another, in a few words each"
    words = []
    for key in dict.fromkeys([*base, *own]):
        if own.get(key) == base.get(key): continue
        if key != 'speedups':
            words.append(_said(key, own.get(key)))
            continue
        mine, its = _calls(own.get(key)), _calls(base.get(key))
        words += [f'− {call}' for call in its if call not in mine] + [f'+ {call}' for call in mine if call not in its]
    return words


def name_settings(
    settings: Sequence[Setting],
    base: Setting, # one of them
) -> None:
    "Name settings by what differs: the control by its method, the others by what they change in it"
    kind = base.given.get('method') or base.given.get('protocol') or 'control'
    loss = [str(base.given['loss'])] if base.given.get('loss') and base.runs[0].record.get('settings') else []
    base.name = clipped(' + '.join([', '.join([str(kind), *loss]), *_calls(base.given.get('speedups'))]))
    taken = Counter([base.name])
    for setting in settings:
        if setting is base: continue
        own, its = setting.given, base.given
        if setting.identity.get('speedups') == base.identity.get('speedups'):  # a method may bring what another names
            own, its = ({key: value for key, value in one.items() if key != 'speedups'} for one in (own, its))
        words = _differences(own, its) or _differences(setting.identity, base.identity)
        name = clipped(first_of(words, 4))
        taken[name] += 1
        setting.name = f'{name} ({taken[name]})' if taken[name] > 1 else name


# --- sweeps

@dataclass
class Sweep:
    "What the folder of a sweep says of it"
    folder: Path
    control: str = '' # the setting that others are compared with
    axes: list[str] = field(default_factory=list) # settings that it varies
    runs: dict[Path, str] = field(default_factory=dict) # folders and their settings, in the sweep's order
    refused: dict[str, tuple[str, str]] = field(default_factory=dict) # by setting: in what it differs, and why not

    @property
    def missing(self) -> list[Path]:
        "Runs that have not begun, and may"
        return [path for path, setting in self.runs.items()
                if setting not in self.refused and not (path/RECORD).exists()]


def read_sweep(
    folder: Path, # of runs
) -> Sweep | None: # None: it is none of a sweep
    "What a sweep's folder says. Raises `InputError` for a file that can't be read"
    plan = read_plan(folder)
    if plan is None: return None
    control = str(plan.get('control'))
    runs = {folder/entry['run']: entry['setting'] for entry in plan['runs']}
    base = next((entry['differs'] for entry in plan['runs'] if entry['setting'] == control), {})
    refused = {entry['setting']: (', '.join(_differences(entry['differs'], base)) or entry['setting'], entry['reason'])
               for entry in plan['refused']}
    return Sweep(folder, control, [*map(str, plan['axes'])], runs, refused)


# --- the control

def choose_base(
    settings: Sequence[Setting],
    base: str | Path | None = None, # what the user named: a run's folder, its name, or a setting's
    sweeps: Sequence[Sweep] = (),
) -> tuple[Setting, str]: # the control, and why it is that
    "The setting that others are compared with. Raises `InputError` for one that no finished run has"
    finished = [setting for setting in settings if setting.counted]
    if base is not None: return _named_base(finished, str(base)), "as it was asked for"
    for sweep in sweeps:
        control = {path for path, name in sweep.runs.items() if name == sweep.control}
        found = next((setting for setting in finished if any(run.path in control for run in setting.runs)), None)
        if found: return found, "the control of the sweep"
    fewest = min(setting.speedups for setting in finished)
    plain = [setting for setting in finished if setting.speedups == fewest]
    if len(plain) == 1: return plain[0], "the setting with the fewest speedups"
    return plain[0], f"the first of {len(plain)} settings with the fewest speedups"


def _named_base(finished: Sequence[Setting], base: str) -> Setting:
    path = os.path.abspath(os.path.expanduser(base))
    def is_path(run): return os.path.abspath(run.path) == path
    def is_name(run): return base in (run.path.name, seedless(run.path.name))
    for same in (is_path, is_name):
        found = next((setting for setting in finished if any(map(same, setting.runs))), None)
        if found: return found
    for setting in finished:  # the names are those beside the usual control
        if setting.name == base: return setting
    known = [setting.name for setting in finished] + [run.path.name for setting in finished for run in setting.runs]
    near = difflib.get_close_matches(base, known, 3) or known[:5]
    raise InputError(f"--base {clipped(base)} is neither a run nor a setting with a finished one: there are "
                     f"{', '.join(map(clipped, near))}.")


def seedless(
    name: str, # of a run's folder in a sweep
) -> str:
    "The name of its setting there"
    return re.sub(r'(^|--)seed=\d+$', '', name) or name
