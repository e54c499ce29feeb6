"The program as a user starts it, and what its runs leave"
import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import matplotlib.figure
import numpy as np
from PIL import Image

from fastcontrast.history import History
from helpers.forks import Program

PROGRAM = [sys.executable, '-m', 'fastcontrast']
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'COLUMNS': '80'}
COST = ('seconds', 'tflop', 'images_s', 'memory_mb')  # columns of history.csv
TINY = ('--arch', 'test_resnet', '--epochs', 1, '--batch-size', 4)


def config(run_folder): return json.loads((Path(run_folder)/'config.json').read_text())


def disk_full(path, content): raise OSError(errno.ENOSPC, 'No space left on device', str(path))


def judged_knn(file):
    "The kNN accuracy of the first encoder in a file of `eval`; the run's own with few pictures"
    scores, *_ = json.loads(Path(file).read_text())['encoders'].values()
    return scores['kNN, k=20, τ=0.1']['mean']


def started(*args, cwd, **kwargs):
    "The program as a process of its own"
    return subprocess.Popen([*PROGRAM, *map(str, args)], cwd=cwd, env=ENV, text=True, **kwargs)


def forked(*args, cwd, prepare=None):
    """The program as a process that need not import what takes seconds, where it does not matter how it was started

    Nor does it draw: see `no_drawings`."""
    return Program(args, cwd, ENV, partial(_undrawn, prepare))


def _undrawn(prepare):
    no_drawings(partial(setattr, matplotlib.figure.Figure, 'savefig'))
    if prepare: prepare()


def _of_run(file):
    "Whether a figure is one of the two that every run draws"
    return str(file).endswith('.partial.png') and Path(file).name.startswith(('.curves.', '.views.'))


def coarse_drawings(put):
    "What runs draw has few pixels, and no layout; `put` takes the place of `Figure.savefig`"
    save = matplotlib.figure.Figure.savefig
    def savefig(drawn, file, **kwargs):
        if _of_run(file):
            drawn.set_layout_engine('none')
            kwargs['dpi'] = 40
        save(drawn, file, **kwargs)
    put(savefig)


def no_drawings(put):
    "The files that runs draw are there, and are noise"
    save = matplotlib.figure.Figure.savefig
    def savefig(drawn, file, **kwargs):
        if not _of_run(file): return save(drawn, file, **kwargs)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(file)
    put(savefig)


def finish(process, code):
    "What a process printed on stdout and stderr, after it ended with that exit code"
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, (process.returncode, out, err)
    return out, err


def until(process, history, epochs=1):
    "Wait until the run of a process has done so many epochs"
    end = time.monotonic() + 240
    while not history.exists() or history.read_text().count('\n') <= epochs:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def ended_after_an_epoch(monkeypatch):
    "Runs of this process are sent SIGTERM when an epoch's row is written"
    after_epoch = History.after_epoch
    def signalled(self):
        after_epoch(self)
        signal.raise_signal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(History, 'after_epoch', signalled)
        yield
