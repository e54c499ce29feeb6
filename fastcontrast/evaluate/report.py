"""What runs say together: tables to read and for programs, what a reader has to know, and all of it in a folder.

Docs: https://fastcontrast.github.io/fastcontrast/report.html.md"""
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..core import InputError, clipped, number, shown, suggest
from ..files import user_path
from ..records import JUDGED, Run, find_runs, other_pictures, pictures_of, read_run
from .ablation import (COLUMNS, PRODUCTS, Setting, choose_base, column, curves_of, finite, grouped, judged_another,
                       judged_values, name_settings, read_sweep, summary, values_of)
from .plots import joined, last_knn, reached
from .tables import markdown


@dataclass(repr=False)
class Report:
    "What runs say together; `save` writes it to a folder, and a notebook shows its table"
    title: str
    settings: list[Setting]    # the control first
    why: str                   # it is the control
    runs: list[Run]            # all that were found
    missing: list[str]         # names of runs of a sweep that have no folder
    refused: list[tuple[str, str]] # combinations of a sweep that can't be, and why
    knn: float | None = None   # the accuracy to be reached; None: the control's last, of the same seed
    chosen: Sequence[str] = () # columns of the tables to read; none: the main ones

    def __repr__(self): return f'{self.counts}; the control is {self.base}, {self.why}\n{self.wide().T.to_string()}'

    def _repr_markdown_(self): return markdown(self.wide())

    @property
    def base(self) -> str:
        "The name of the control"
        return self.settings[0].name

    @property
    def counts(self) -> str:
        "How much there is, in words"
        numbers = dict(finished=len(self.values), setting=len(self.settings), seed=self.values['seed'].nunique())
        run, setting, seed = (f'{n} {word}' for word, n in numbers.items())
        plural = ['s' * (n != 1) for n in numbers.values()]
        return f'{run} run{plural[0]} of {setting}{plural[1]}, {seed}{plural[2]}'

    @cached_property
    def curves(self) -> dict[str, dict[str, list[float]]]:
        "By setting: the mean of its finished runs' histories"
        found = {setting.name: [columns for run in setting.counted if (columns := curves_of(run))]
                 for setting in self.settings}
        return {name: joined(histories) for name, histories in found.items() if histories}

    @cached_property
    def values(self) -> pd.DataFrame:
        "A row for each finished run: 'run', 'setting', 'seed', and its numbers"
        control = {run.seed: last_knn(curves_of(run)) for run in self.settings[0].counted}
        rows = []
        for setting in self.settings:
            for run in setting.counted:
                columns, target = curves_of(run), control.get(run.seed, math.nan) if self.knn is None else self.knn
                costs = reached(columns, target) if 'knn' in columns and not math.isnan(target) else {}
                about = dict(run=shown(run.path), setting=setting.name, seed=run.seed)
                rows.append(about | values_of(run) | {name: finite(cost) for name, cost in costs.items()} | about)
        table = pd.DataFrame(rows)
        order = sorted(table.columns[3:], key=_place)
        return table[['run', 'setting', 'seed', *(name for name in order if table[name].notna().any())]]

    @cached_property
    def table(self) -> pd.DataFrame:
        "The numbers, from `summary`"
        return summary(self.values.drop(columns='run'), self.base)

    @cached_property
    def references(self) -> pd.DataFrame:
        "What the control's runs say of features that they did not train, such as raw pixels, as `summary` does"
        rows = [dict(setting=name, seed=run.seed, **judged_values(results))
                for run in self.settings[0].counted for name, results in (run.record.get('results') or {}).items()
                if name not in PRODUCTS]
        return summary(pd.DataFrame(rows), rows[0]['setting']) if rows else pd.DataFrame()

    @property
    def measures(self) -> list[str]:
        "The columns that any run has a number for"
        return list(self.values.columns[3:])

    @property
    def uncounted(self) -> list[tuple[str, str, str]]: # run, state, why
        "Runs that are in no mean"
        found = [(shown(run.path), run.state, run.reason) for run in self.runs if run.state != 'finished']
        return found + [(shown(name), 'not begun', '') for name in self.missing]

    def wide(self,
        measures: Sequence[str] | None = None, # columns; None: the main ones
        refused: bool = True, # also those that could not be?
    ) -> pd.DataFrame: # a row for each setting, and for each combination that could not be; cells are text
        "The table to read: mean ± standard deviation, and behind it the difference to the control with its error"
        if measures is None: measures = self.chosen or [name for name in self.measures if column(name).main]
        cells = {(row.setting, row.measure): cell_text(row, len(self._named(row.setting).seeds))
                 for row in self.table.itertuples()}
        rows = [[seeds_text(setting), *(cells.get((setting.name, name), '–') for name in measures)]
                for setting in self.settings]
        others = self.refused if refused else []
        rows += [['refused', *['–'] * len(measures)] for _ in others]
        names = [setting.name for setting in self.settings] + [name for name, _ in others]
        heads = ['runs', *(head(name, self.knn) for name in measures)]
        return pd.DataFrame(rows, pd.Index(names, name='setting', dtype=object), heads)

    def _named(self, name: str) -> Setting: return next(setting for setting in self.settings if setting.name == name)

    @cached_property
    def differing(self) -> pd.DataFrame:
        "What settings differ in, a column for each of them; '' where one lacks it"
        keys = dict.fromkeys(key for setting in self.settings for key in setting.identity)
        rows = {key: [setting.identity.get(key, '') for setting in self.settings] for key in keys}
        rows = {key: cells for key, cells in rows.items() if len(set(cells)) > 1}
        return pd.DataFrame.from_dict(rows, 'index', object, [setting.name for setting in self.settings])

    @cached_property
    def facts(self) -> dict[str, list[tuple[str, int]]]:
        "Versions and machines: what runs say of them, and how many do"
        said: dict[str, Counter] = {}
        for run in self.runs:
            versions = run.record.get('versions')
            facts = dict(versions if isinstance(versions, dict) else {},
                         **{key: run.record.get(key) for key in ('python', 'device', 'processes', 'commit')})
            for key, value in facts.items():
                if value is not None: said.setdefault(str(key), Counter())[str(value)] += 1
        return {key: counts.most_common() for key, counts in said.items()}

    @cached_property
    def notes(self) -> list[str]:
        "What a reader has to know, in sentences"
        return [*_pairing_notes(self), *_comparability_notes(self), *_judged_notes(self), *_lack_notes(self)]

    def save(self,
        out: str | Path, # a folder; what an earlier report has left there is replaced
    ) -> list[Path]: # the files
        "Write tables, figures and a page. Raises `InputError` where that can't be"
        from .report_page import save_report
        return save_report(self, out)


def _place(name: str) -> tuple[int, int]:
    "Where a column stands: accuracies first, then costs, then what is for programs"
    known, about = list(COLUMNS), column(name)
    accuracy = about.share
    return (0 if accuracy else 1 if about.main else 2, known.index(name) if name in known else len(known))


def head(
    name: str, # of a column
    knn: float | None = None, # accuracy that costs are told to; None: the control's last
) -> str:
    "What stands above it in tables to read"
    about = column(name)
    title = about.title if knn is None else about.title.replace("the control's kNN", f'{knn:.1%} kNN')
    return f'{title}, %' if about.share else title


def decimals(
    mean: float,
    share: bool = False, # is it a share, shown in per cent?
) -> int:
    "Decimals that a number is shown with: three digits in all, and one decimal of per cent"
    if share: return 1
    return 0 if not mean else min(6, max(0, 2 - math.floor(math.log10(abs(mean)))))


def cell_text(
    row: Any,       # of a summary
    seeds: int = 0, # with finished runs of the setting; 0: don't say where some have no number
) -> str:
    "A cell of a table to read"
    if pd.isna(row.mean): return '–'
    text = ' ± '.join(number_texts(row, row.mean, row.std))
    if not pd.isna(row.difference):
        text += f" ({' ± '.join(number_texts(row, row.difference, row.error, signed=True))})"
    return f'{text} [{row.n} of {seeds}]' if row.n < seeds else text


def number_texts(
    row: Any,                # of a summary, whose mean says how many decimals
    value: float,
    spread: float,           # NaN: left out
    signed: bool = False,    # also if it is positive?
) -> list[str]:
    "A value and what it may be off by, as text"
    share = column(row.measure).share
    places, scale = decimals(row.mean, share), 100 if share else 1
    texts = [f"{scale * value:{'+' if signed else ''},.{places}f}"]
    return texts if pd.isna(spread) else [*texts, f'{scale * spread:,.{places}f}']


def seeds_text(setting: Setting) -> str:
    counted, there = len(setting.counted), len(setting.runs)
    return str(counted) if counted == there else f'{counted} of {there}'


# --- what a reader has to know

def _pairing_notes(report: Report) -> list[str]:
    control, notes = report.settings[0].seeds, []
    for setting in report.settings:
        twice = [seed for seed, count in Counter(run.seed for run in setting.counted).items() if count > 1]
        if twice: notes.append(f"{setting.name}: runs of one seed ({_listed(twice)}) count once, by their mean.")
        common = control & setting.seeds
        if not setting.seeds or control == setting.seeds: continue
        pairs = f"by the seeds that both have ({_listed(sorted(common))})" if common else "by none: no seed is common"
        notes.append(f"{setting.name} has the seeds {_listed(sorted(setting.seeds))}, and the control "
                     f"{_listed(sorted(control))}: they are compared {pairs}.")
    single = [setting.name for setting in report.settings if len(setting.seeds) == 1]
    if single:
        notes.append(f"one seed has neither a deviation nor an error, and says little: {_listed(single)}.")
    return notes


def _comparability_notes(report: Report) -> list[str]:
    first, notes = pictures_of(report.settings[0].counted[0].record), []
    for setting in report.settings:
        others = (other_pictures(first, pictures_of(run.record)) for run in setting.counted or setting.runs)
        other = next(filter(None, others), '')
        if other and setting is report.settings[0]:
            notes.append(f"runs of the control have other pictures than its first, and a mean of them says little: "
                         f"{other}.")
        elif other:
            notes.append(f"{setting.name} has other pictures than the control, and accuracies can't be compared: "
                         f"{other}.")
    settings = [setting for setting in report.settings if setting.counted]
    tuned = [setting.name for setting in settings if setting.counted[0].record.get('verb') == 'finetune']
    if 0 < len(tuned) < len(settings):
        notes.append(f"fine-tunings ({_listed(tuned)}) stand beside pretrainings, which have other settings: "
                     "report each kind by itself.")
    devices = report.facts.get('device', [])
    if len(devices) > 1:
        notes.append(f"runs were on several machines ({_listed(name for name, _ in devices)}): seconds, pictures a "
                     "second and memory can't be compared.")
    others = [key for key, said in report.facts.items() if key not in ('device', 'commit') and len(said) > 1]
    if others: notes.append(f"runs differ in {_listed(others)}: see versions and machines.")
    return notes


def _judged_notes(report: Report) -> list[str]:
    "On what `eval` has written beside runs: of another encoder, or by other pictures"
    judged = [run for setting in report.settings for run in setting.counted if run.judged]
    others = [run for run in judged if judged_another(run)]
    notes = []
    if others:
        notes.append(f"{JUDGED} is of another encoder than the run's, which may have gone on since, and is left out: "
                     f"judge {_listed(run.path.name for run in others)} again, by fastcontrast eval.")
    pictures = [(run.path.name, _judging(run)) for run in judged if run not in others]
    differing = {name: other for name, own in pictures if (other := other_pictures(pictures[0][1], own))}
    if differing:
        notes.append(f"{JUDGED} is by other pictures in {_listed(differing)} than in {_listed([pictures[0][0]])}, and "
                     f"means and differences of both say little: {next(iter(differing.values()))}.")
    return notes


def _judging(run: Run) -> dict[str, Any]:
    "What `eval` says of the pictures that it judged by; of their place the name, which it has as it was called"
    said = {key: run.judged_by.get(key) for key in ('data', 'n_train', 'n_valid')}
    return pictures_of(said | dict(data=isinstance(said['data'], str) and Path(said['data']).name or None))


def _lack_notes(report: Report) -> list[str]:
    notes = []
    for _, rows in report.values.groupby('setting', sort=False):
        for name in filter(lambda name: column(name).share, report.measures):
            lacks = rows.loc[rows[name].isna(), 'run']
            if 0 < len(lacks) < len(rows):
                notes.append(f"{column(name).title} has no number in {_listed(lacks)}: the mean is of the others.")
    states = Counter(state for _, state, _ in report.uncounted)
    if states:
        words = ', '.join(f"{count} {state}" for state, count in states.items())
        notes.append(f"runs in no mean: {words}.")
    return notes


def _listed(names: Iterable[Any]) -> str: return ', '.join(clipped(str(name), 80) for name in names)


# --- from folders

def report(
    folders: str | Path | Sequence[str | Path], # of runs, of folders of runs such as a sweep's, or runs' own
    out: str | Path | None = None,  # a folder for tables, figures and a page; None: nothing is written
    base: str | Path | None = None, # the control: a run, or the name of a setting; None: see `choose_base`
    knn: float | None = None,       # accuracy that costs are told to; None: the control's last, of the same seed
    columns: Sequence[str] | None = None, # of the tables to read, like 'knn'; None: accuracies and costs
) -> Report:
    """What runs say together: means over seeds, and paired differences to a control. Raises `InputError` where there is
    no finished run, for a column that none has, and for a folder that can't be written"""
    number(above=0, most=1, optional=True, knn=knn)
    folders = [user_path(folder, 'folder') for folder in _several('folders', folders, str | Path)]
    if not folders: raise InputError("no folder was given: give one of runs.")
    found = {path.resolve(): path for folder in folders for path in sorted(find_runs(folder), key=_natural)}
    places = dict.fromkeys([*folders, *(path.parent for path in found.values())])
    sweeps = [sweep for place in places if (sweep := read_sweep(place))]
    order = [path for sweep in sweeps for path in sweep.runs]
    paths = sorted(found.values(), key=lambda path: order.index(path) if path in order else len(order))
    runs = [read_run(path) for path in paths]
    settings = grouped(runs, {axis for sweep in sweeps for axis in sweep.axes} - {'seed'})
    if not any(setting.counted for setting in settings): raise InputError(_none_finished(runs, folders))
    control, why = choose_base(settings, None, sweeps)
    name_settings(settings, control)
    if base is not None:
        control, why = choose_base(settings, base)
        name_settings(settings, control)
    settings = [control, *(setting for setting in settings if setting is not control)]
    refused = dict.fromkeys((clipped(name), clipped(reason, 400))
                            for sweep in sweeps for name, reason in sweep.refused.values())
    missing = [str(path) for sweep in sweeps for path in sweep.missing]
    title = ', '.join(folder.resolve().name for folder in folders)
    chosen = _several('columns', columns or (), str)
    made = Report(clipped(title), settings, why, runs, missing, list(refused), knn, chosen)
    for name in made.chosen:
        if name not in made.measures: raise InputError(suggest(name, made.measures, 'column'))
    if out is not None: made.save(out)
    return made


def _several(name: str, given: Any, kind: type) -> list[Any]:
    found = [given] if isinstance(given, kind) else given
    if isinstance(found, list | tuple) and all(isinstance(item, kind) for item in found): return list(found)
    raise InputError(f"{name}={clipped(repr(given), 60)} must be a text, or a list of such.")


def _natural(path: Path) -> list[str | int]:
    "By which names sort as a person would: 2 before 10"
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r'(\d+)', str(path)))]


def _none_finished(runs: Sequence[Run], folders: Sequence[Path]) -> str:
    states = ', '.join(f'{count} {state}' for state, count in Counter(run.state for run in runs).items())
    return (f"no run in {_listed(folders)} is finished ({states}): go on with them, see fastcontrast runs "
            f"{clipped(str(folders[0]))}.")
