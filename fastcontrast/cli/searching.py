"""`mode = search`: the settings of a sweep are chosen one after the other, by the kNN accuracy of those before them."""
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from ..core import InputError
from .expand import Range, Search, Setting, Sweep
from .sweeping import Work, plan_before, plan_run

_TRIES = 100  # for a setting that there is not yet


def _optuna() -> Any:
    try: import optuna
    except ImportError:
        raise InputError("mode = search needs optuna, which is not installed: "
                         "pip install 'fastcontrast[search]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def with_earlier(
    sweep: Sweep,
    folder: Path, # of its runs
) -> Sweep:
    "A search with what it has chosen before, in that order. Raises `InputError` for a folder of another one"
    _optuna()
    before, search = plan_before(folder), sweep.search
    entries = {entry['setting']: entry['differs'] for entry in before['runs'] + before['refused']}
    if entries and before.get('axes') != sweep.origin['axes']:
        raise InputError(f"{folder} has the runs of other axes: give the runs another --out.")
    settings = [search.setting(constants(search) | differs) for differs in entries.values()]
    runs = [(setting, seed) for setting in settings for seed in search.seeds]
    return replace(sweep, settings=settings, runs=runs)


def constants(
    search: Search,
) -> dict[str, Any]:
    "The axes that have one value"
    return {key: values[0] for key, values in search.axes.items() if len(values) == 1 and not search.range(key)}


class Searching(Work):
    "The runs of a search, while they are made"
    spent = False  # whether there is no other setting

    @property
    def size(self) -> int:
        trials = len(self.sweep.settings) if self.spent else self.sweep.search.trials
        return max(len(self.runs), len(self.sweep.search.seeds)*trials)

    def more(self) -> bool:
        search, settings = self.sweep.search, self.sweep.settings
        if self.spent or len(settings) >= search.trials: return False
        setting = self.choose()
        self.spent = setting is None
        if self.spent: return False
        settings.append(setting)
        runs = [plan_run(setting, seed, self.folder) for seed in search.seeds]
        self.runs += runs
        self.waiting += runs
        self.plan.save()
        return True

    def choose(self) -> Setting | None:
        "The next setting; None if there is no other"
        optuna, search, settings = _optuna(), self.sweep.search, self.sweep.settings
        kinds = {key: _distribution(values) for key, values in search.axes.items() if key not in constants(search)}
        # made anew each time, of what is in the folder: what has ended in between makes no difference
        study = optuna.create_study(direction='maximize', sampler=optuna.samplers.TPESampler(seed=len(settings)))
        for setting in settings:
            value, states = self.value(setting), optuna.trial.TrialState
            state = states.COMPLETE if value is not None else states.RUNNING if self.under_way(setting) else states.FAIL
            study.add_trial(optuna.trial.create_trial(state=state, value=value, params=setting.differs,
                                                      distributions=kinds))
        def chosen():
            for _ in range(_TRIES):
                yield {key: self.rounded(key, value) for key, value in study.ask(kinds).params.items()}
        names = {setting.name for setting in settings}
        new = (search.setting(constants(search) | point) for points in (chosen(), self.all()) for point in points)
        return next((setting for setting in new if setting.name not in names), None)

    def rounded(self, key: str, value: Any) -> Any:
        "A number with three digits, as one would write it"
        span = self.sweep.search.range(key)
        return min(max(float(f'{value:.3g}'), span.low), span.high) if span and isinstance(value, float) else value

    def all(self) -> Iterable[dict[str, Any]]:
        "Every combination, if they can be counted"
        axes = self.sweep.search.axes
        if any(map(self.sweep.search.range, axes)): return []
        return (dict(zip(axes, values)) for values in product(*axes.values()))

    def under_way(self, setting: Setting) -> bool:
        return any(run.setting.name == setting.name for run in [*self.waiting, *(child.run for child in self.children)])

    def value(self, setting: Setting) -> float | None:
        "The mean accuracy of a setting over its seeds; None if it is not known. Raises `InputError` if there is none"
        rows = [run.row for run in self.runs if run.setting.name == setting.name]
        if not rows or any(row['state'] != 'finished' for row in rows): return None
        if any(row['knn'] is None for row in rows):
            raise InputError(f"{rows[0]['run']} has no kNN accuracy, by which mode = search chooses: give pictures "
                             "with labels, or another mode.")
        return fmean(row['knn'] for row in rows)

    def result(self) -> str:
        values = {setting.name: value for setting in self.sweep.settings if (value := self.value(setting)) is not None}
        if not values: return ''
        best = max(values, key=lambda name: values[name])
        return f"; the best is {best}, kNN {values[best]:.1%}"


def _distribution(values: list[Any]) -> Any:
    "What optuna draws from"
    kinds, (first, *_) = _optuna().distributions, values
    if not isinstance(first, Range): return kinds.CategoricalDistribution(values)
    kind = kinds.IntDistribution if isinstance(first.low, int) else kinds.FloatDistribution
    return kind(first.low, first.high, log=first.log)
