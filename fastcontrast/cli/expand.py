"""What a sweep stands for: a base and axes become settings, each of which is trained with every seed.

They come from a section `[sweep: NAME]` of settings.ini, or from Python."""
import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from ..core import InputError, clipped, one_of, suggest, whole
from .settings import (ALIASES, SETTINGS_FILE, Run, check_key, given_value, is_numeric, key_name, named_run, read_calls,
                       read_sections, read_value, suited_to, sweep_sections)

BETWEEN = '--'  # what differs, in the names of folders: no comma, which lists of runs have
LONGEST = 120   # bytes of a setting's name
SEARCH, TRIALS = 'search', 20 # a mode, and how many settings it chooses if that is not said


@dataclass(frozen=True)
class Setting:
    "What is trained with every seed"
    name: str               # by what differs from the others, as folders have it; '' if there are no others
    differs: dict[str, Any] # the settings that do
    chosen: dict[str, Any]  # all that are given, as `resolve` takes them


@dataclass(frozen=True)
class Sweep:
    "Runs that belong together"
    name: str
    settings: list[Setting] # the first is what the others are compared with
    runs: list[tuple[Setting, int]] # with their seeds, in their order
    origin: dict[str, Any]  # of what they were expanded
    search: 'Search | None' = None # what chooses settings, where they are not known beforehand

    @property
    def size(self) -> int:
        "Runs, when all are there"
        return len(self.search.seeds)*max(self.search.trials, len(self.settings)) if self.search else len(self.runs)


def run_name(
    setting: Setting,
    seed: int,
) -> str:
    "What the folder of a run is called"
    return BETWEEN.join(filter(None, [setting.name, f'seed={seed}']))


# --- names


def plain(
    value: Any, # of a setting
) -> str:
    "A value as it can stand in the name of a folder, and need no quotes in a shell"
    if isinstance(value, bool) or value is None: return str(value).lower()
    text = re.sub(r'[\s\'"]+', '', str(value)).replace(',', '+')
    return re.sub(r'-(?=\+|$)|^-', '', re.sub(r'[^\w.=+]+', '-', text))


def _name(differs: Mapping[str, Any]) -> str:
    return BETWEEN.join(f'{key_name(key)}={plain(value)}' for key, value in differs.items())


def told_apart(
    chosen: Iterable[tuple[str, dict[str, Any]]], # names, and the settings that are given, None where they are not
) -> list[Setting]:
    "Settings with what differs among them, and with names that are not too long and no two alike"
    chosen = list(chosen)
    names = Counter(name for name, _ in chosen)
    keys = dict.fromkeys(key for _, given in chosen for key in given)
    varies = [key for key in keys if len({_written(given.get(key)) for _, given in chosen}) > 1]
    settings = []
    for name, given in chosen:
        differs = {key: given.get(key) for key in varies}
        if names[name] > 1 or len(name.encode()) > LONGEST: name = _marked(name, differs)
        settings.append(Setting(name, differs, {key: value for key, value in given.items() if value is not None}))
    return settings


def _written(value: Any) -> str:
    "By which values are alike"
    return re.sub(r'\s+', '', str(value))


def _marked(name: str, differs: dict[str, Any]) -> str:
    "A setting's name, cut, with a mark of what it is"
    given = {key: value for key, value in differs.items() if value is not None}  # another axis leaves it as it is
    mark = hashlib.sha256(repr(given).encode()).hexdigest()[:8]
    return name.encode()[:LONGEST - 10].decode(errors='ignore') + BETWEEN + mark


# --- the modes: each gives, from a base and axes, names with what differs


Points = Iterator[tuple[str, dict[str, Any]]]


def _grid(base: dict[str, Any], axes: dict[str, list]) -> Points:
    several = [key for key, values in axes.items() if len(values) > 1]
    for values in product(*axes.values()):
        point = dict(zip(axes, values))
        yield _name({key: point[key] for key in several}), point


def _one_at_a_time(base: dict[str, Any], axes: dict[str, list]) -> Points:
    def settings(given):
        given = {key: value for key, value in given.items() if value is not None}
        return {key: _written(value) for key, value in asdict(Run(**{**suited_to(given), **given})).items()}
    at_base = settings(base)
    yield 'base', {}
    for key, values in axes.items():
        for value in values:
            if settings(base | {key: value}) != at_base: yield _name({key: value}), {key: value}


def _leave_one_out(base: dict[str, Any], axes: dict[str, list]) -> Points:
    for key, values in axes.items():
        if key != 'speedups' and len(values) > 1:
            raise InputError(f"mode = leave_one_out leaves speedups out one by one, and {key_name(key)} has "
                             f"{len(values)} values: give it one, or another mode.")
    point = {key: value for key, (value, *_) in axes.items()}
    parts = [part for part in axes.get('speedups', [base.get('speedups')]) if part is not None]
    if len(parts) == 1: parts = split_calls(parts[0])
    if len(parts) < 2:
        raise InputError("mode = leave_one_out leaves speedups out one by one, and there are not two of them: give one "
                         "a line, or a base that has them.")
    yield 'all', point | dict(speedups=', '.join(parts))
    for part in parts:
        yield f'without={plain(part)}', point | dict(speedups=', '.join(other for other in parts if other != part))


MODES = dict(grid=_grid, one_at_a_time=_one_at_a_time, leave_one_out=_leave_one_out)


def split_calls(
    text: str, # speedups, as `parse_speedups` reads them
) -> list[str]:
    "Each of them as text"
    read_calls(text)
    return [ast.unparse(node) for node in ast.parse(f'[{text}\n]', mode='eval').body.elts]


def expand(
    base: dict[str, Any],       # settings
    axes: dict[str, list[Any]], # values of each setting that varies; None is its default
    mode: str = 'grid',         # in `MODES`
) -> list[Setting]:
    "The settings that a base and axes stand for, the control first. Raises `InputError`"
    one_of(MODES, mode=mode)
    for key, values in axes.items():
        _check_some(key, values)
        written = [_written(value) for value in values]
        twice = next((value for value in written if written.count(value) > 1), None)
        if twice is not None: raise InputError(f"{key_name(key)} has the value {twice} twice: leave one out.")
    return told_apart((name, base | point) for name, point in MODES[mode](base, axes))


# --- a search, whose settings are chosen one after the other


_RANGE = re.compile(r'(.*?)\s*\.\.\s*(.*?)(\s+log)?')


@dataclass(frozen=True)
class Range:
    "All numbers between two"
    low: float
    high: float
    log: bool # whether each power of ten is tried as often as the others

    def __str__(self) -> str: return f"{self.low} .. {self.high}{' log' if self.log else ''}"


@dataclass(frozen=True)
class Search:
    "Of what settings are chosen, and how many"
    base: dict[str, Any]
    axes: dict[str, list[Any]] # values, or one `Range`
    seeds: list[int]
    trials: int

    def setting(self,
        point: dict[str, Any], # a value for each axis
    ) -> Setting:
        several = {key: value for key, value in point.items() if len(self.axes[key]) > 1 or self.range(key)}
        setting, = told_apart([('', self.base | point)])
        name = _name(several)
        return Setting(_marked(name, several) if len(name.encode()) > LONGEST else name, several, setting.chosen)

    def range(self, key: str) -> Range | None:
        first = self.axes[key][0]
        return first if isinstance(first, Range) else None

    def corners(self) -> Iterator[Setting]:
        "Settings that have every value, and both ends of every range, once"
        values = {key: [span.low, span.high] if (span := self.range(key)) else self.axes[key] for key in self.axes}
        first = {key: options[0] for key, options in values.items()}
        for key, options in values.items():
            for value in options: yield self.setting(first | {key: value})


def read_span(
    key: str,    # a field of `Run`
    value: Any,  # what an axis has, like '1e-4 .. 1e-1 log'
    place: str,  # where it is written, for the message
) -> Range | None:
    "A range of numbers; None if it is something else. Raises `InputError` for one that can't be"
    match = _RANGE.fullmatch(value.strip()) if isinstance(value, str) and is_numeric(key) else None
    if match is None: return None
    low, high = (read_value(key, end, place) for end in match.groups()[:2])
    if low is None or high is None or low >= high or match[3] and low <= 0:
        raise InputError(f"{place}: {key_name(key)} = {clipped(value)} is no range: write it as 0.1 .. 10, the smaller "
                         "number first, or as 0.1 .. 10 log, of numbers above 0.")
    return Range(low, high, bool(match[3]))


def _check_some(key: str, values: list[Any]) -> None:
    if not values: raise InputError(f"{key_name(key)} has no value to try: give one or more.")


def _check_search(axes: dict[str, list[Any]], mode: str, trials: int) -> None:
    for key, values in axes.items():
        _check_some(key, values)
        spans = [value for value in values if isinstance(value, Range)]
        if spans and mode != SEARCH:
            raise InputError(f"{key_name(key)} = {spans[0]} is a range, of which mode = search chooses: give values, "
                             "or that mode.")
        if spans and len(values) > 1: raise InputError(f"{key_name(key)} has a range and more: give the range alone.")
    if mode == SEARCH:
        whole(least=1, trials=trials)
        if all(len(values) == 1 and not isinstance(values[0], Range) for values in axes.values()):
            raise InputError("mode = search has nothing to choose: give a key several lines, or a range.")


# --- where sweeps come from


def read_seeds(
    seeds: str | int | Iterable[int], # text has spaces or commas between them
    place: str = '--seeds', # where they are written, for the message
) -> list[int]:
    "Seeds, each once. Raises `InputError`"
    if isinstance(seeds, str):
        try: seeds = [int(word) for word in seeds.replace(',', ' ').split()]
        except ValueError:
            raise InputError(f"{place}: '{clipped(seeds)}' should be whole numbers, like 0 1 2.") from None
    seeds = _listed(seeds)
    if not seeds: raise InputError(f"{place} names no seed: give whole numbers, like 0 1 2.")
    for seed in seeds: whole(least=0, **{place: seed})
    if len(set(seeds)) < len(seeds): raise InputError(f"{place} names a seed twice: leave one out.")
    return [int(seed) for seed in seeds]


def _lines(text: str) -> list[str]:
    "The values of an axis as they are written; one that begins below its key has no empty first"
    first, *others = [line.strip() for line in text.split('\n')]
    return others if others and not first else [first, *others]


def read_sweep(
    name: str,
    file: str | Path = SETTINGS_FILE,
    seeds: list[int] | None = None, # None: those of the section, or the base's
) -> Sweep:
    "The sweep of a section of `settings.ini`. Raises `InputError` for a section, key or value that can't be"
    sections = read_sections(file, f"the sweep {name}", f'sweep: {name}')
    try: sweeps = sweep_sections(sections)
    except InputError as e: raise InputError(f"{file}: {e}") from None
    if not sweeps:
        raise InputError(f"{file} has no sweep: write a section that begins with [sweep: {name}].")
    if name not in sweeps: raise InputError(f"{file}: {suggest(name, sweeps, 'sweep')}")
    place, texts = f"{file}, [sweep: {name}]", dict(sweeps[name])
    base, mode, own, trials = (texts.pop(key, '').strip() for key in ('base', 'mode', 'seed', 'trials'))
    if seeds is None and own: seeds = read_seeds(own, f"{place}: seed")
    for key in texts: check_key(key, place, 'base', 'mode', 'trials')
    axes = {key: [read_span(key, line, place) or read_value(key, line, place) for line in _lines(text)]
            for key, text in texts.items()}
    chosen = named_run(base or None, file)
    if trials and mode != SEARCH: raise InputError(f"{place}: trials are of mode = search: leave them out.")
    try: many = int(trials or TRIALS)
    except ValueError: raise InputError(f"{place}: trials = {clipped(trials)} is not a whole number.") from None
    try: return make_sweep(name, chosen, axes, seeds, mode or 'grid', base, many)
    except InputError as e: raise InputError(f"{place}: {e}") from None


def make_sweep(
    name: str,
    base: Mapping[str, Any], # settings
    axes: Mapping[str, Any], # a value, or a list of them, for each setting that varies
    seeds: int | Iterable[int] | None = None, # None: the base's
    mode: str = 'grid',      # in `MODES`, or 'search'
    base_name: str = '',     # the section that the base is from
    trials: int = TRIALS,    # settings that a search chooses
) -> Sweep:
    "A sweep of a base and axes. Raises `InputError` for what can't be"
    chosen = {key: given_value(key, value, 'base') for key, value in _named(base, 'base')}
    axes = {key: [_given(key, value) for value in _listed(values)] for key, values in _named(axes, 'axes')}
    if 'seed' in axes: raise InputError("axes: the seed is none, because every setting has all seeds: give seeds.")
    own = chosen.pop('seed', None) or Run.seed
    seeds = read_seeds(own if seeds is None else seeds, 'seeds')
    one_of([*MODES, SEARCH], mode=mode)
    _check_search(axes, mode, trials)
    origin = dict(base=base_name or chosen, mode=mode, axes=axes)
    if mode == SEARCH:
        written = {key: [str(v) if isinstance(v, Range) else v for v in values] for key, values in axes.items()}
        if not any(isinstance(values[0], Range) for values in axes.values()):
            trials = min(trials, prod(map(len, axes.values())))
        return Sweep(name, [], [], origin | dict(axes=written), Search(chosen, axes, seeds, trials))
    settings = expand(chosen, axes, mode)
    runs = [(setting, seed) for seed in seeds for setting in settings]  # a table of one seed is there first
    return Sweep(name, settings, runs, origin)


def _given(key: str, value: Any) -> Any:
    "A value of an axis, checked"
    if isinstance(value, Range): return value
    return read_span(key, value, 'axes') or given_value(key, value, 'axes')


def sweep_of_runs(
    name: str,
    chosen: Mapping[str, dict[str, Any]], # settings of each run, by its name
    seeds: list[int] | None = None, # None: each has its own
) -> Sweep:
    "A sweep of runs that have names"
    own = [given.pop('seed', None) or Run.seed for given in chosen.values()]
    settings = told_apart((plain(run) if len(chosen) > 1 else '', given) for run, given in chosen.items())
    runs = list(zip(settings, own))
    if seeds is not None: runs = [(setting, seed) for seed in seeds for setting in settings]
    return Sweep(name, settings, runs, dict(base=None, mode='runs', axes=dict(run=list(chosen))))


def _named(settings: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    "Settings by the names of their fields"
    for key, value in settings.items():
        check_key(key := ALIASES.get(key, key), place)
        yield key, value


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
