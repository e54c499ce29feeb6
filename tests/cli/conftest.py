"The command line's tests run in an empty folder of their own"
import signal
import subprocess
import sys
from functools import partial

import matplotlib.figure
import pytest
from helpers.cli import ENV, PROGRAM, coarse_drawings, no_drawings

from fastcontrast.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    "Run the program here: exit code, stdout, stderr"
    def run(*args):
        capsys.readouterr()
        monkeypatch.setattr(sys, 'argv', ['fastcontrast', *map(str, args)])
        try:
            main()
            code = 0
        except SystemExit as e: code = e.code or 0
        return code, *capsys.readouterr()
    yield run
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def refused(run):
    "Run the program, which must answer with exit code 2 and nothing but one line, on stderr"
    def refused(*args):
        code, out, err = run(*args)
        assert code == 2 and out == '', (code, out, err)
        assert err.startswith('error: ') and err.count('\n') == 1 and '\x1b' not in err, err
        return err
    return refused


@pytest.fixture(autouse=True)
def drawings(request, monkeypatch):
    """Half the time of a small run went to its two drawings: to their layout and their many pixels

    They are made, and a picture of them written that is coarse, where a module says `DRAWN = True`, or else always the
    same. The run of `digits` draws them as they are; what other verbs draw stays as it is."""
    sketch = coarse_drawings if getattr(request.module, 'DRAWN', False) else no_drawings
    sketch(partial(monkeypatch.setattr, matplotlib.figure.Figure, 'savefig'))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    "A run on the digits: its folder and what it printed"
    out = tmp_path_factory.mktemp('cli')/'digits [run] :smile:'
    command = [*PROGRAM, 'pretrain', '--epochs', '1', '--batch-size', '256', '--out', out]
    got = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=500)
    assert got.returncode == 0, got.stderr
    return out, got
