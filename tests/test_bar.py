"""What tells how a run goes: one bar for the whole of it on a terminal, and lines elsewhere."""
import os
import pty
import re
import select
import sys
import warnings
from io import StringIO
from types import SimpleNamespace

import pytest
from fastai.callback.core import Callback, CancelEpochException
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.learner import ValueMetric
from helpers.forks import CONTEXT
from helpers.learners import real_learner
from rich.console import Console

from fastcontrast import bar
from fastcontrast.bar import EpochLines, NotebookTable, Pace, RunBar, clock, in_columns, in_width, shows_bar, teller
from fastcontrast.core import InputError
from fastcontrast.learner import ContrastiveLearner
from fastcontrast.step import Phase, StepCallback

HIDE, SHOW = '\x1b[?25l', '\x1b[?25h'
SEED = 5


def with_bar(width=120, **kwargs) -> tuple[ContrastiveLearner, StringIO]:
    "A learner of two steps an epoch that draws its bar on a pretended terminal after every step"
    learn, out = real_learner(knn_pictures=0, precision='fp32', **kwargs), StringIO()
    learn.create_mbar = True
    learn.remove_cbs([EpochLines, ProgressCallback])
    learn.add_cb(RunBar(Console(file=out, force_terminal=True, width=width)))
    learn.progress.interval = 0
    return learn, out


def plain(text: str) -> str: return re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', text)


def drawings(out: StringIO) -> list[str]:
    "The lines of the bar, one a drawing, without their strokes"
    lines = re.split(r'[\r\n]+', plain(out.getvalue()))
    return [re.sub(r'[━╸╺ ]+', ' ', line).strip() for line in lines if line.startswith('epoch ')]


class Fails(Callback):
    "Raises an error at an event of the second epoch, or of the fit"
    def __init__(self, event, error, order=0):
        self.order = order
        def fail():
            if event.endswith('_fit') or self.learn.epoch: raise error
        setattr(self, event, fail)


@pytest.mark.parametrize('seconds,text', [(0, '0:00'), (7.4, '0:07'), (59.6, '1:00'), (754, '12:34'), (5025, '1:23:45'),
                                          (360000, '100:00:00')])
def test_clock(seconds, text): assert clock(seconds) == text


def test_the_time_to_go_is_judged_by_the_steps_of_this_fit(monkeypatch):
    now = [100.]
    monkeypatch.setattr(bar.time, 'monotonic', lambda: now[0])
    pace = Pace()
    assert (pace.to_go(10), pace.to_go(0)) == ('-:--', '0:00')
    pace.steps, now[0] = 4, 120.
    assert pace.elapsed() == 20 and pace.to_go(6) == '0:30'


def test_one_bar_over_all_steps_and_a_line_an_epoch_above_it():
    learn, out = with_bar()
    learn.fit(3, 1e-3)
    text, drawn = out.getvalue(), drawings(out)
    lines = [line for line in re.split(r'[\r\n]+', plain(text)) if re.match(r' +\d? *(epoch|\d)', line)]
    assert [line.split()[0] for line in lines if 'epoch of' not in line][:4] == ['epoch', '0', '1', '2']
    assert len({len(line) for line in lines}) == 1  # in columns
    steps = [int(re.search(r'(\d)/6', line).group(1)) for line in drawn]
    assert steps == sorted(steps) and set(steps) == set(range(7))
    assert [f'epoch {i} of 3' in ' '.join(drawn) for i in range(5)] == [False, True, True, True, False]
    assert '-:-- to go' in drawn[0] and drawn[-1].endswith(', 0:00 to go')
    losses = [values[0] for values in learn.recorder.values]
    assert f'loss {losses[0]:.3f}' in ' '.join(drawn) and f'loss {losses[-1]:.3f}' in drawn[-1]
    assert text.count(HIDE) == text.count(SHOW) == 1 and text.index(HIDE) < text.index(SHOW)
    assert learn.progress.bar is None and learn.logger is print


def test_the_loss_is_read_now_and_then_and_knn_stands_beside_it():
    learn, out = with_bar(width=140)
    learn.progress.every = 1
    learn.metrics = [ValueMetric(lambda: 0.25, 'knn'), ValueMetric(lambda: 3., 'other')]
    learn.fit(2, 1e-3)
    drawn = drawings(out)
    assert sum('loss' in line for line in drawn) >= 4 and 'kNN 0.250' in drawn[-1] and 'other' not in ' '.join(drawn)


def test_a_fit_that_is_taken_up_begins_at_its_place(monkeypatch):
    learn, out = with_bar()
    def last_epochs():
        for learn.epoch in (2, 3): learn._with_events(learn._do_epoch, 'epoch', CancelEpochException)
    monkeypatch.setattr(learn, '_do_fit', last_epochs)
    learn.fit(4, 1e-3)
    steps = [int(re.search(r'(\d)/8', line).group(1)) for line in drawings(out)]
    assert steps[0] == 4 and steps[-1] == 8 and learn.progress.pace.steps == 4


ERRORS = [(InputError('told'), 'after_pred'), (KeyboardInterrupt(), 'after_step'), (RuntimeError('o'), 'after_batch'),
          (ValueError('x'), 'before_epoch'), (MemoryError('z'), 'after_epoch'), (InputError('y'), 'after_train')]


@pytest.mark.parametrize('error,event', ERRORS, ids=[event for _, event in ERRORS])
def test_an_error_leaves_the_terminal_in_order(error, event):
    learn, out = with_bar()
    before = sys.stdout, learn.logger
    with pytest.raises(type(error)): learn.fit(2, 1e-3, cbs=Fails(event, error))
    assert out.getvalue().count(HIDE) == out.getvalue().count(SHOW) == 1
    assert (sys.stdout, learn.logger) == before and learn.progress.bar is None
    learn.fit(1, 1e-3)
    assert out.getvalue().count(HIDE) == out.getvalue().count(SHOW) == 2


@pytest.mark.parametrize('order', [0, 70])
@pytest.mark.parametrize('event', ['before_fit', 'after_cancel_fit', 'after_fit'])
def test_so_does_one_outside_of_the_epochs(event, order):
    learn, out = with_bar()
    cbs = [Fails(event, RuntimeError('oops'), order)]
    if event == 'after_cancel_fit': cbs.append(Fails('after_pred', InputError('told')))
    with pytest.raises(RuntimeError): learn.fit(2, 1e-3, cbs=cbs)
    if learn.progress.bar is not None: learn.progress._stop()  # as at the end of the program, or before the next fit
    assert out.getvalue().count(HIDE) == out.getvalue().count(SHOW)


class Stops(StepCallback):
    phase = Phase.TABLE
    def before_fit(self): self.stop(InputError('told'))


@pytest.mark.parametrize('make', [RunBar, EpochLines])
def test_a_fit_that_ends_before_it_begins_here_says_why(make):
    "As where the weights that it begins with give features that are no numbers"
    learn, _ = with_bar()
    learn.remove_cbs(RunBar)
    learn.add_cb(make())
    logger = learn.logger
    with pytest.raises(InputError, match='told'): learn.fit(1, 1e-3, cbs=Stops())
    assert learn.logger is logger
    learn.fit(1, 1e-3)
    assert learn.logger is logger


def test_quiet_where_asked(capsys):
    learn, out = with_bar()
    capsys.readouterr()
    with learn.no_logging(): learn.fit(1, 1e-3)
    with learn.no_mbar(): learn.fit(1, 1e-3)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert out.getvalue() == '' == capsys.readouterr().out


def test_the_bar_comes_back_after_no_bar():
    learn, out = with_bar()
    mine = learn.progress
    with learn.no_bar(): assert not learn.cbs.filter(lambda cb: isinstance(cb, ProgressCallback))
    assert learn.progress is mine and sum(isinstance(cb, ProgressCallback) for cb in learn.cbs) == 1
    learn.remove_cbs(ProgressCallback)
    learn.add_cb(EpochLines())
    with learn.no_bar(): pass
    assert not any(isinstance(cb, ProgressCallback) for cb in learn.cbs)


def test_beside_other_loggers(tmp_path):
    learn, out = with_bar()
    learn.path = tmp_path
    learn.fit(2, 1e-3, cbs=CSVLogger('h.csv'))
    header, *rows = (tmp_path/'h.csv').read_text().splitlines()
    assert header == 'epoch,train_loss,time' and len(rows) == 2 and drawings(out)[-1].count('4/4') == 1
    learn.fit(1, 1e-3)
    assert drawings(out)[-1].count('2/2') == 1


@pytest.mark.parametrize('bar', [False, True])
def test_a_thousand_short_epochs_have_lines_where_they_are_judged(bar, capsys, monkeypatch):
    monkeypatch.setattr('fastcontrast.bar.LINES', 4)
    learn, out = with_bar()
    if not bar:
        learn.remove_cbs(RunBar)
        learn.add_cb(EpochLines())
    learn.judge_every = 3
    for epochs, told in ((4, [0, 1, 2, 3]), (7, [2, 5, 6])):
        capsys.readouterr()
        out.seek(0), out.truncate()
        learn.fit(epochs, 1e-3)
        lines = re.split(r'[\r\n]+', plain(out.getvalue()) if bar else capsys.readouterr().out)
        assert [int(line.split()[0]) for line in lines if re.match(r' *\d+ +\d+\.\d', line)] == told, lines


def test_lines_say_the_time_to_go(capsys):
    learn = real_learner(knn_pictures=0)
    capsys.readouterr()
    learn.fit(2, 1e-3)
    header, first, last = capsys.readouterr().out.splitlines()
    assert header.endswith('     to go')
    assert len(header) == len(first) == len(last) and last.endswith('0:00')
    assert re.search(r'  \d+:\d\d$', first)


@pytest.mark.parametrize('notebook,terminal,term,kind', [
    (True, False, 'xterm', NotebookTable), (False, True, 'xterm', RunBar), (False, True, 'dumb', EpochLines),
    (False, False, 'xterm', EpochLines)])
def test_who_tells(monkeypatch, notebook, terminal, term, kind):
    monkeypatch.setattr(bar, 'IN_NOTEBOOK', notebook)
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal, raising=False)
    monkeypatch.setenv('TERM', term)
    assert shows_bar() == (kind is not EpochLines)
    assert type(teller()) is kind
    learn = real_learner(knn_pictures=0)
    kinds = [type(cb) for cb in learn.cbs if isinstance(cb, ProgressCallback | EpochLines)]
    assert kinds == [kind]


def test_a_table_in_a_notebook_has_three_decimals(monkeypatch):
    monkeypatch.setattr(bar, 'IN_NOTEBOOK', True)
    rows, table = [], teller()
    table.learn = SimpleNamespace(epoch=3, n_epoch=9)
    table.mbar = SimpleNamespace(write=lambda row, table: rows.append(row))
    table._write_stats([3, 0.98765, None, '00:12'])
    assert rows == [['3', '0.988', '', '00:12']]


class Interrupts(Callback):
    def after_step(self):
        if self.learn.epoch == 1: raise KeyboardInterrupt


def program(terminal, stop):
    "What a script does on a terminal"
    os.setsid()
    file = os.open(terminal, os.O_RDWR)
    for stream in range(3): os.dup2(file, stream)
    os.close(file)
    os.environ.update(TERM='xterm', COLUMNS='100')
    sys.stdout = open(1, 'w', closefd=False)
    warnings.filterwarnings('ignore')
    learn = real_learner(knn_pictures=0, cbs=Interrupts() if stop else None)
    learn.create_mbar = True
    print('bar:', type(learn.progress).__name__)
    try: learn.fit(3, 1e-3)
    except KeyboardInterrupt: print('stopped')
    print('after', flush=True)


@pytest.mark.parametrize('how', ['end', 'stop'])
def test_on_a_real_terminal(how):
    main, terminal = pty.openpty()
    process = CONTEXT.Process(target=program, args=(os.ttyname(terminal), how == 'stop'))
    process.start()
    assert select.select([main], [], [], 60)[0], 'the program says nothing'
    text = os.read(main, 65536)  # by now it has the terminal
    os.close(terminal)
    while True:
        try: chunk = os.read(main, 65536)
        except OSError: break
        if not chunk: break
        text += chunk
    os.close(main)
    text = text.decode()
    process.join(60)
    assert process.exitcode == 0, text
    assert 'bar: RunBar' in text and text.rstrip().endswith('after')
    assert text.count(HIDE) == text.count(SHOW) and text.rindex(HIDE) < text.rindex(SHOW) < text.rindex('after')
    assert 'epoch 2 of 3' in text and ('stopped' in text) == (how == 'stop')


def test_a_line_is_not_broken_by_a_narrow_terminal():
    row = [0, *[1.5] * 9]
    assert in_width(row, 118) == in_columns(row) and len(in_columns(row)) == 118
    assert in_width(row, 80) == in_columns(row[:6]) + ' ...' and in_width(row, 5).endswith(' ...')
    assert [len(in_width(row, width)) for width in (73, 74, 75)] == [62, 74, 74] and in_width(row, 80).isascii()
