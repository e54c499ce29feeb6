"""A sweep carried out: every run is `fastcontrast pretrain` in a process of its own, so that the end of one is not the
end of the others, and has a folder, in which it goes on."""
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.live import Live
from rich.table import Column, Table

from ..core import InputError, clipped, usable_cores, whole
from ..files import user_path
from ..records import (CARRIED_OUT, PLAN, RECORD, changed_since, history_rows, owner_lives, read_plan,
                       read_record)
from ..signals import Interrupted, Signals, watched
from .expand import BETWEEN, TRIALS, Setting, Sweep, make_sweep, plain, run_name
from .launch import end_all, kill_all, rank
from .output import Ended, console, save_json, unwritable
from .resume import begun_with, check_same
from .runs import run_row
from .settings import SETTINGS_FILE, Run, as_options, check_names, clash, gathered, named_run

PROGRAM = (sys.executable, '-m', 'fastcontrast')
_GPUS = 'CUDA_VISIBLE_DEVICES'


@dataclass(frozen=True)
class Planned:
    "A run of a sweep"
    setting: Setting
    seed: int
    config: Run
    path: Path # of its folder

    @property
    def row(self) -> dict[str, Any]:
        "How it stands, as `run_row` says it"
        if (self.path/RECORD).exists(): return run_row(self.path)
        return dict(run=str(self.path), state='new', epochs_done=0, epochs=self.config.epochs, knn=None, reason=None)

    @property
    def finished(self) -> bool: return self.row['state'] == 'finished'

    @property
    def clash(self) -> str:
        "Why its settings can't go together; '' where that is not known before it is tried"
        return clash(self.config)

    @property
    def share(self) -> float:
        "Of its epochs, that are done"
        return min(1, len(history_rows(self.path))/self.config.epochs)

    @property
    def command(self) -> list[str]:
        chosen = self.setting.chosen | dict(seed=self.seed, out=str(self.path))
        return ['pretrain', *as_options(chosen)]


def plan_run(
    setting: Setting,
    seed: int,
    folder: Path, # of the runs' folders
) -> Planned:
    return Planned(setting, seed, gathered(setting.chosen | dict(seed=seed)), folder/run_name(setting, seed))


def planned(
    sweep: Sweep,
    folder: Path, # of the runs' folders
) -> list[Planned]:
    "The runs of a sweep. Raises `InputError` for a value that can't be, or another one than a run was begun with"
    if (folder/RECORD).exists(): raise InputError(f"{folder} is the folder of a run: give the runs another --out.")
    for i, setting in enumerate(sweep.search.corners() if sweep.search else sweep.settings):
        try: check_names(gathered(setting.chosen))
        except InputError as e:
            # what is wrong in the first may be so in all
            raise type(e)(f"{setting.name}: {e}" if i and setting.name else str(e)) from None
    runs = [plan_run(setting, seed, folder) for setting, seed in sweep.runs]
    if not sweep.search and all(run.clash for run in runs): raise InputError(runs[0].clash)  # of the base, then
    for run in runs:
        if not (run.path/RECORD).exists(): continue
        # not what a run may be given that goes on: one that was made longer is not one that was begun so long
        check_same(run.path, begun_with(run.path) | changed_since(read_record(run.path)), run.config, CARRIED_OUT,
                   remedy="give the runs another --out, or remove that folder")
    return runs


def show_plan(
    sweep: Sweep,
    folder: Path, # of the runs' folders
) -> None:
    "Say which runs there are to be, and how they stand. Raises `InputError` as `planned` does"
    sweep, _ = _begun(sweep, folder)
    runs = planned(sweep, folder)
    rows = _Plan(sweep, runs, folder).rows()
    table = Table(Column('run', overflow='fold'), 'state', Column('epoch', justify='right'),
                  Column('kNN', justify='right'))
    for run, row in zip(runs, rows):
        knn = '–' if row['knn'] is None else f"{row['knn']:.1%}"
        table.add_row(run.path.name, row['state'], f"{row['epochs_done'] or 0}/{run.config.epochs}", knn)
    console.print(table)
    ready = sum(row['state'] == 'finished' for row in rows)
    chosen = f", {len(runs)} chosen" if sweep.search else ''
    console.print(f"{sweep.size} runs in {folder}{chosen}, {ready} finished; nothing was done")


def _begun(sweep: Sweep, folder: Path) -> tuple[Sweep, type['Work']]:
    "A sweep with what it has chosen so far, if it is one that chooses, and what carries it out"
    if sweep.search is None: return sweep, Work
    from .searching import Searching, with_earlier
    return with_earlier(sweep, folder), Searching


def carry_out(
    sweep: Sweep,
    folder: Path,   # of the runs' folders
    jobs: int = 1,  # runs at a time
) -> 'Work':
    "Make all runs that are not finished, until a signal comes. Raises `InputError` before the first"
    whole(least=1, **{'--jobs': jobs})
    if rank() is not None:
        raise InputError("a launcher's processes train one run together, and these are several, which start processes "
                         "of their own: call the program without a launcher.")
    sweep, kind = _begun(sweep, folder)
    runs = planned(sweep, folder)
    with watched() as signals:
        work = kind(sweep, runs, folder, jobs)
        work.do(signals)
    return work


def conclude(
    work: 'Work',
    again: str, # the command that goes on with it
) -> None:
    "Say what came of a sweep. Raises `Ended` if it was interrupted, a run failed, or none could be made"
    states = [row['state'] for row in work.plan.rows()]
    finished, refused = states.count('finished'), states.count('refused')
    told = f"{finished} of {len(states)} runs are finished{f', {refused} refused' if refused else ''}: {work.folder}"
    if work.signal is not None:
        raise Ended(f"interrupted: {told}, and what was under way is kept; go on with: {again}", 128 + work.signal)
    if work.failed: raise Ended(f"error: {len(work.failed)} failed; {told}; try them again with: {again}", 1)
    if not finished: raise Ended(f"error: {told}.", 2)
    console.print(told + work.result())


class _Child:
    "A run under way in a process of its own"
    def __init__(self,
        run: Planned,
        environment: dict[str, str],
    ):
        self.run, self.began = run, time.monotonic()
        self.gpus = environment.get(_GPUS, '').split(',')  # that it sees; none are named where it sees all
        self.first = self.share = run.share  # of the epochs, done when it began and now
        self.until = 0.  # seconds, when that was seen
        self.before = run.row['reason']  # why an earlier process has ended
        self.errors = tempfile.TemporaryFile('w+', errors='replace')
        self.process = subprocess.Popen([*PROGRAM, *run.command], env=environment, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=self.errors)

    @property
    def seconds(self) -> float: return time.monotonic() - self.began

    def left(self) -> float | None:
        "Seconds that it still takes at its pace; None before its first epoch"
        share = self.run.share
        if share != self.share: self.share, self.until = share, self.seconds
        if share == self.first: return None
        return max(0., self.until*(1 - self.first)/(share - self.first) - self.seconds)

    def said(self) -> str:
        "What it had to say on stderr last, which is why it ended"
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
        why = [line for line in lines if line.startswith('error: ')] or lines or ['']
        return why[-1].removeprefix('error: ').rstrip('.')

    def refused(self) -> bool:
        "Whether its settings were, rather than that it went wrong: then it leaves nothing"
        path = self.run.path
        return self.process.returncode == 2 and not (path.is_dir() and any(path.iterdir()))

    def reason(self) -> str:
        "Why it ended"
        code = self.process.returncode
        if code < 0: return f"it was ended by {signal.Signals(-code).name}"
        kept = self.run.row['reason']
        if code == 2 or kept == self.before: kept = None  # it may have left that of an earlier process
        return kept or self.said() or f"it ended with code {code}"


class Work:
    "The runs of a sweep, while they are made"
    def __init__(self,
        sweep: Sweep,
        runs: list[Planned],
        folder: Path, # of their folders
        jobs: int,    # that are made at a time
    ):
        self.sweep, self.runs, self.folder, self.jobs = sweep, runs, folder, jobs
        self.waiting = [run for run in runs if not run.finished]
        self.children: list[_Child] = []
        self.refused: set[str] = set()     # settings by their names
        self.failed: dict[str, str] = {}   # why, by the runs' folders
        self.seconds: dict[str, list[float]] = {}  # that whole runs took, by the settings' names
        self.signal: int | None = None  # that has ended it
        self.idle = False  # until others have ended
        self.data = {run.config.data for run in runs if os.path.exists(run.config.data)}
        for run in runs:
            if run not in self.waiting: self.took(run)
        self.plan = _Plan(sweep, runs, folder)

    @property
    def size(self) -> int:
        "Runs, when all are there"
        return self.sweep.size

    def do(self, signals: Signals) -> None:
        "Make them, until all are there or a signal comes"
        self.plan.save()
        ready = len(self.runs) - len(self.waiting)
        several = f" of {len(self.sweep.settings)} settings" if len(self.sweep.settings) > 1 else ''
        console.print(f"{self.size} runs{several}, in {self.folder}{f'; {ready} are finished' if ready else ''}")
        try:
            with suppress(Interrupted), signals.held(), _shown() as show:  # a signal is passed on, and waited for
                while signals.caught is None and self.step():
                    show(self.now())
                    time.sleep(0.1)
                if signals.caught is not None: end_all(self.processes, signals.caught)
        except BaseException:  # of one of them, or a full disk: the others save what they have
            end_all(self.processes, signal.SIGTERM)
            raise
        finally:
            self.signal = signals.caught
            kill_all(self.processes)

    @property
    def processes(self) -> list[subprocess.Popen]: return [child.process for child in self.children]

    def more(self) -> bool:
        "Whether there are runs now, that wait, which were not known before"
        return False

    def result(self) -> str:
        "What the last line says beside how many runs there are"
        return ''

    def step(self) -> bool:
        "Take leave of the runs that have ended, and start others; whether there are any left"
        for child in [child for child in self.children if child.process.poll() is not None]:
            self.children.remove(child)
            self.ended(child)
        while len(self.children) < self.jobs and (self.waiting or self.more()):
            run = next((run for run in self.waiting if not owner_lives(run.path)), None)
            if run is None:
                self.wait_for_others()
                break
            self.waiting.remove(run)
            if run.finished: self.tell(run, "was finished by another process")
            elif run.clash: self.refuse(run, run.clash)
            else: self.start(run)
        return bool(self.waiting or self.children)

    def wait_for_others(self) -> None:
        "Other processes are at work in all that is left: another sweep, or what one that was killed has left behind"
        if self.children or self.idle: return
        self.idle = True
        console.print(f"waiting for {self.waiting[0].path.name}, in which another process is at work")

    def start(self, run: Planned) -> None:
        taken = [gpu for child in self.children for gpu in child.gpus]
        self.children.append(_Child(run, _environment(self.jobs, run.config.processes, taken)))

    def ended(self, child: _Child) -> None:
        from ..bar import clock
        run = child.run
        row = run.row
        if row['state'] == 'finished' and child.process.returncode == 0:
            self.took(run, child.seconds)
            self.plan.accept(run.setting)
            return self.tell(run, ', '.join([*_knn(row['knn']), clock(child.seconds)]))
        gone = run.config.data in self.data and not os.path.exists(run.config.data)  # a disk, say, that is needed again
        if child.refused() and not gone: return self.refuse(run, child.said())
        self.failed[str(run.path)] = child.reason()
        self.tell(run, f"failed: {child.reason()}")

    def refuse(self, run: Planned, reason: str) -> None:
        "Note that the settings of a run can't be, with whatever seed"
        name = run.setting.name
        self.waiting = [other for other in self.waiting if other.setting.name != name]  # it would be with every seed
        if name in self.refused: return  # already, with another seed
        self.refused.add(name)
        self.plan.refuse(run.setting, reason)
        several = sum(other.setting.name == name for other in self.runs) > 1
        self.tell(run, f"refused{', as with any seed' if several else ''}: {reason}")

    def took(self, run: Planned, seconds: float = 0.) -> None:
        "Note how long a run took; one that went on took more than its last process"
        with suppress(InputError): seconds = max(seconds, read_record(run.path).get('seconds') or 0.)
        self.seconds.setdefault(run.setting.name, []).append(seconds)

    def tell(self, run: Planned, words: str) -> None:
        left = self.size - len(self.runs) + len(self.waiting) + len(self.children)
        to_go = f"; {self.to_go()} to go" if left else ''
        console.print(f"{self.size - left} of {self.size}  {run.path.name}: {words}{to_go}")

    def now(self) -> str:
        "What is under way"
        if not self.children: return ''
        first, *others = self.children
        epochs = first.run.config.epochs
        epoch = f"epoch {min(epochs, len(history_rows(first.run.path)) + 1)} of {epochs}"
        more = f", and {len(others)} more" if others else ''
        return f"{first.run.path.name}: {epoch}{more}; {self.to_go()} to go for all"

    def to_go(self) -> str:
        "How long all that is left will take"
        from ..bar import clock
        usual = [fmean(seconds) for seconds in self.seconds.values()]
        paces = [left + child.seconds for child in self.children if (left := child.left()) is not None]
        if not (usual or paces): return '-:--'
        def whole_run(run): return fmean(self.seconds.get(run.setting.name) or usual or paces)
        left = [whole_run(run)*(1 - run.share) for run in self.waiting]
        left += [fmean(usual or paces)]*(self.size - len(self.runs))
        for child in self.children:
            at_pace = child.left()
            left.append(max(0., whole_run(child.run) - child.seconds) if at_pace is None else at_pace)
        return clock(sum(left)/max(1, min(self.jobs, len(left))))


def plan_before(
    folder: Path, # of a sweep's runs
) -> dict[str, Any]:
    "What the folder says of a sweep so far. Raises `InputError` for somebody's file, or a damaged one: it is kept"
    return read_plan(folder, "move it away, or give the runs another --out") or dict(runs=[], refused=[])


class _Plan:
    "What the folder of a sweep says of it"
    def __init__(self, sweep: Sweep, runs: list[Planned], folder: Path):
        self.sweep, self.runs, self.folder = sweep, runs, folder
        before = plan_before(folder)
        self.before = {entry['run'] for entry in before['runs']}
        lost = [entry['run'] for entry in self._others(before) if not self._is_known(entry, before)]
        if lost and before.get('name') != sweep.name:  # they would no longer be anybody's
            raise InputError(f"{folder} holds runs of another sweep, like {clipped(lost[0])}: give the runs another "
                             "--out.")
        # what was refused stays in it until it is tried again
        self.refused = {entry['setting']: entry for entry in before['refused'] if self._is_known(entry, before)}

    def _is_known(self, entry: dict[str, Any], plan: dict[str, Any]) -> bool:
        "Whether an entry of a plan is of a setting of this sweep, or of one that the same search has chosen elsewhere"
        if self.sweep.search: return plan.get('axes') == self.sweep.origin['axes']
        return any(setting.name == entry['setting'] and setting.differs == entry['differs']
                   for setting in self.sweep.settings)

    def _others(self, plan: dict[str, Any]) -> list[dict[str, Any]]:
        "The runs in a plan that are not made here: with other seeds, or another process's, also if it is yet to begin"
        names = {run.path.name for run in self.runs}
        return [entry for entry in plan['runs'] if entry['run'] not in names
                and (entry['run'] not in self.before or (self.folder/entry['run']/RECORD).exists())]

    def save(self) -> None:
        "Write it, and keep what other processes have written there meanwhile. Raises `InputError` where that can't be"
        plan, own = plan_before(self.folder), {run.setting.name for run in self.runs}
        runs = [dict(run=run.path.name, setting=run.setting.name, seed=run.seed, differs=run.setting.differs)
                for run in self.runs] + [entry for entry in self._others(plan) if self._is_known(entry, plan)]
        refused = self.refused | {entry['setting']: entry for entry in plan['refused']
                                  if entry['setting'] not in own and self._is_known(entry, plan)}
        content = dict(name=self.sweep.name, **self.sweep.origin, control=runs[0]['setting'] if runs else None,
                       seeds=sorted({run['seed'] for run in runs}), runs=runs, refused=[*refused.values()])
        file = self.folder/PLAN
        try: save_json(file, content)
        except OSError as e: raise unwritable(str(file), e) from None

    def refuse(self, setting: Setting, reason: str) -> None:
        self.refused[setting.name] = dict(setting=setting.name, differs=setting.differs, reason=reason)
        self.save()

    def accept(self, setting: Setting) -> None:
        self.refused.pop(setting.name, None)
        self.save()  # in any case: another process drops, as it starts, what it finds listed and not begun

    def rows(self) -> list[dict[str, Any]]:
        "Each run: the settings in which it differs, and how it stands"
        rows = [run.setting.differs | dict(seed=run.seed, setting=run.setting.name) | run.row for run in self.runs]
        for run, row in zip(self.runs, rows):
            reason = self.refused.get(row['setting'], {}).get('reason') or run.clash
            if row['state'] == 'new' and reason: row |= dict(state='refused', reason=reason)
        return rows


@contextmanager
def _shown() -> Iterator[Callable[[str], None]]:
    "A line at the bottom of a terminal that says what is under way"
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda text: None
        return
    with Live('', console=console, auto_refresh=False, transient=True) as live:
        yield lambda text: live.update(text[:console.width - 1], refresh=True)


def _knn(accuracy: float | None) -> list[str]: return [] if accuracy is None else [f"kNN {accuracy:.1%}"]


def _environment(jobs: int, processes: int, taken: Iterable[str]) -> dict[str, str]:
    "Of one of several runs at a time, which share the cores, and have GPUs that the fewest others have taken"
    import torch
    environment = dict(os.environ)
    if jobs == 1: return environment
    environment.setdefault('OMP_NUM_THREADS', str(max(1, usable_cores()//(jobs*processes))))
    gpus = torch.cuda.device_count()
    if gpus > processes:
        visible, used = environment.get(_GPUS, ','.join(map(str, range(gpus)))).split(','), Counter(taken)
        environment[_GPUS] = ','.join(sorted(visible, key=lambda gpu: used[gpu])[:processes])
    return environment


def sweep(
    base: str | Mapping[str, Any], # settings, or a named run of the settings file
    axes: Mapping[str, Any],       # values of each setting that varies; speedups as text, and None is the default
    seeds: int | Iterable[int] | None = None, # None: the base's
    mode: str = 'grid',            # also 'one_at_a_time', 'leave_one_out', 'search'
    folder: str | Path | None = None, # of the runs; None: one in runs/, by the names of the base and the axes
    jobs: int = 1,                 # runs at a time
    config: str | Path = SETTINGS_FILE, # the settings file
    trials: int = TRIALS,          # settings that a search chooses
) -> list[dict[str, Any]]:
    """Train every setting that a base and axes stand for with every seed, as `fastcontrast sweep` does

    The runs are processes of their own, and know what is registered in installed modules. Those that are finished are
    not made again, others go on; gives a row for each, with its settings that differ, state and kNN accuracy, and the
    reason if it was refused or failed. Raises `InputError` for what can't be, before anything is trained."""
    named = isinstance(base, str)
    name = BETWEEN.join([plain(base) if named else 'sweep', *axes])
    chosen = named_run(base, config) if named else base
    made = make_sweep(name, chosen, axes, seeds, mode, base if named else '', trials)
    path = Path('runs')/name if folder is None else user_path(folder, 'folder')
    work = carry_out(made, path, jobs)
    if work.signal is not None: raise Interrupted(work.signal)
    return [row | dict(reason=work.failed.get(row['run'], row['reason'])) for row in work.plan.rows()]
