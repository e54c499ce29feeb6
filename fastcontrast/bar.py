"""Tells how a run goes: one bar for the whole of it on a terminal, a line an epoch elsewhere, and the time to go."""
import atexit
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import accumulate

from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.imports import noop
from fastprogress.fastprogress import IN_NOTEBOOK
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from .distributed import rank
from .evaluate import METRICS, needs_labels
from .step import Phase


def clock(
    seconds: float, # 0 or more
) -> str:
    "Like 0:07, 12:34 or 1:23:45"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def column_names(
    learn, # a fastai `Learner`
) -> list[str]:
    "What stands above the columns of the epoch table: accuracies say within which pictures they are"
    within = getattr(learn.dls, 'within', '')  # fastai's own have none
    if not within: return list(learn.recorder.metric_names)
    within = within if len(within) <= 16 else within[:15] + '…'
    return [f'{name} in {within}' if name in METRICS and needs_labels(METRICS[name]) else name
            for name in learn.recorder.metric_names]


def _widths(row, names) -> list[int]:
    "Of the columns of a row"
    return [max(10, len(name)) for name in names] if names else [10] * len(row)


def decimals(
    value, # of the epoch table
) -> str:
    "As a table has it: three decimals, and nothing for what was not looked at"
    if value is None: return ''
    return f'{value:.3f}' if isinstance(value, float) else str(value)


def _cell(value, width: int) -> str: return f'{decimals(value):>{width}}'


def in_columns(
    row, # of the epoch table, or its names
    names: Sequence[str] = (), # what stands above its columns; none is longer than 10 letters if they are not given
) -> str:
    "A line of the epoch table"
    return '  '.join(map(_cell, row, _widths(row, names)))


def in_width(
    row, # of the epoch table, or its names
    width: int, # of the terminal
    names: Sequence[str] = (), # as in `in_columns`
) -> str:
    "A line of the epoch table with as many columns as there is room for: none is broken in two"
    line = in_columns(row, names)
    if len(line) <= width: return line
    more = ' ...'  # in ASCII, which every terminal has
    ends = accumulate((column + 2 for column in _widths(row, names)), initial=len(more) - 2)
    return in_columns(row[:max(1, sum(end <= width for end in ends) - 1)], names) + more


class Pace:
    "How fast a fit goes. It knows this fit alone: a run that was taken up is as fast as it is now"
    def __init__(self): self.began, self.steps = time.monotonic(), 0

    def elapsed(self) -> float:
        "Seconds since the fit began"
        return time.monotonic() - self.began

    def to_go(self,
        left: int, # steps of the run that are not done
    ) -> str:
        "How long they will take, judging by those of this fit with all that came between them"
        if not left: return clock(0)
        return clock(self.elapsed() / self.steps * left) if self.steps else '-:--'


LINES = 100  # epochs up to which each has a line


def has_line(learn) -> bool:
    "Whether this epoch has a line: of few pictures' thousand epochs, the judged ones and the last"
    done = learn.epoch + 1
    return learn.n_epoch <= LINES or done == learn.n_epoch or done % getattr(learn, 'judge_every', 1) == 0


class EpochLines(Callback):
    "One line an epoch, in columns, in place of a progress bar; the last column is the time to go of the whole run"
    order, run_valid = Phase.LAST - 1, False
    old_logger: Callable | None = None # while a fit has this one

    def before_fit(self):
        self.old_logger, self.pace = self.learn.logger, Pace()
        if self.old_logger is noop: return
        self.learn.logger = self._write
        self.names = [*column_names(self.learn), 'to go']
        print(in_columns(self.names, self.names), flush=True)

    def after_batch(self): self.pace.steps += 1

    def _write(self, row):
        if not has_line(self.learn): return
        left = (self.n_epoch - self.epoch - 1) * len(self.dls.train)
        print(in_columns([*row, self.pace.to_go(left)], self.names), flush=True)

    def after_fit(self):
        if self.old_logger is None: return  # another callback has ended the fit before it began here
        self.learn.logger, self.old_logger = self.old_logger, None


class RunBar(ProgressCallback):
    "One bar over all steps of the run, and above it a line an epoch, in place of fastai's bar an epoch"
    order, run_valid = Phase.LAST - 1, False
    name = 'progress'  # of fastai's, which `learn.no_bar()` takes away
    every = 50         # steps between looks at the loss, each of which makes the host wait for the device
    interval = 0.2     # seconds between drawings; no thread draws, because decoding workers are forked beside it
    bar: Progress | None = None # while it is shown
    old_logger: Callable | None = None # while a fit has this one

    def __init__(self,
        console: Console | None = None, # where it is drawn; None: on standard output
    ): self.console = console

    def before_fit(self):
        self._stop()  # of a fit that could not clean up
        self.old_logger, self.pace, self.drawn = self.learn.logger, Pace(), 0.
        self.figures: dict[str, float] = {}
        self.shown = self.create_mbar and self.old_logger is not noop
        if self.old_logger is not noop: self.learn.logger = self._write

    def before_epoch(self):
        # not in `before_fit`: an error there, of another callback, is not followed by `after_fit`
        if self.shown and self.bar is None: self._start()
        self._draw(self.epoch * len(self.dls.train))

    def _start(self):
        text = [TextColumn(f'{{task.fields[{name}]}}', markup=False) for name in ('figures', 'times')]
        self.bar = Progress(TextColumn('{task.description}', markup=False), BarColumn(None), MofNCompleteColumn(),
                            *text, console=self.console or Console(), auto_refresh=False, transient=True, expand=True)
        atexit.register(self._stop)  # whatever happens, the cursor comes back
        self.task = self.bar.add_task('', total=self.n_epoch * len(self.dls.train), figures='', times='')
        self.bar.start()
        self.names = column_names(self.learn)
        self._print(self.names)

    def _stop(self):
        if self.bar is None: return
        bar, self.bar = self.bar, None
        bar.stop()
        atexit.unregister(self._stop)

    def before_train(self): pass  # fastai's bar of an epoch
    after_train = before_validate = after_validate = before_train

    def after_batch(self):
        self.pace.steps += 1
        if self.bar is None: return
        if (self.iter + 1) % self.every == 0: self.figures['loss'] = self.learn.smooth_loss.item()
        if time.monotonic() - self.drawn > self.interval: self._draw(self.epoch * self.n_iter + self.iter + 1)

    def _draw(self,
        done: int, # steps of the run
    ):
        if self.bar is None: return
        left = self.n_epoch * len(self.dls.train) - done
        times = f'{clock(self.pace.elapsed())}, {self.pace.to_go(left)} to go'
        self.bar.update(self.task, description=f'epoch {self.epoch + 1} of {self.n_epoch}', completed=done,
                        figures='  '.join(f'{name} {decimals(value)}' for name, value in self.figures.items()),
                        times=times, refresh=True)
        self.drawn = time.monotonic()

    def _write(self, row):
        if self.bar is None: return
        if has_line(self.learn): self._print(row)
        values = dict(zip(self.recorder.metric_names, row))
        for name, column in (('loss', 'train_loss'), ('kNN', 'knn'), ('accuracy', 'accuracy')):
            if isinstance(values.get(column), float): self.figures[name] = values[column]
        self._draw((self.epoch + 1) * len(self.dls.train))

    def _print(self, row): self.bar.console.out(in_width(row, self.bar.console.width, self.names), highlight=False)

    def after_cancel_fit(self): self._stop()  # before a callback whose `after_fit` fails

    def after_fit(self):
        self._stop()
        if self.old_logger is None: return  # another callback has ended the fit before it began here
        self.learn.logger, self.old_logger = self.old_logger, None


class NotebookTable(ProgressCallback):
    "fastai's bar an epoch and its table, as a notebook shows them, with three decimals"
    name = 'progress'
    def _write_stats(self, log):
        # the names of the columns come before the first epoch
        if not isinstance(log[0], int) or has_line(self.learn): super()._write_stats(list(map(decimals, log)))


def shows_bar() -> bool:
    "Whether a progress bar can be drawn: in a notebook that fastprogress knows, or on a terminal that moves its cursor"
    return IN_NOTEBOOK or sys.stdout.isatty() and os.environ.get('TERM') not in ('dumb', 'unknown')


def teller() -> Callback:
    "What tells of a run here: `RunBar` on a terminal, a table in a notebook, `EpochLines` elsewhere"
    if IN_NOTEBOOK: return NotebookTable()
    return RunBar() if shows_bar() else EpochLines()


def show_progress(learn) -> None:
    "Have a fastai `Learner` tell of its epochs as its surroundings allow, see `teller`; process 0 does"
    learn.remove_cbs(ProgressCallback)
    if rank(): learn.logger = noop
    else: learn.add_cb(teller())
