"""Every notebook is a test: its lessons assert. Cells with `#| slow` train what other tests train too: they are run by
`pytest -m slow`."""
import os
import sys
from pathlib import Path

import pytest
from helpers.forks import CONTEXT

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))


def run(notebook, report, skipped):
    "Run a notebook in this process, all but the cells with one of these flags, and end it"
    from nbdev.test import test_nb
    os.environ["MPLBACKEND"] = "Agg"
    os.chdir(ROOT)
    with report.open("w") as file:
        for stream in (1, 2): os.dup2(file.fileno(), stream)
    passed, _ = test_nb(notebook, skip_flags=skipped)
    sys.stdout.flush()
    sys.exit(not passed)


def passes(notebook, tmp_path, skipped):
    report = tmp_path / "report.txt"
    # none sees what another one imported, registered or seeded
    process = CONTEXT.Process(target=run, args=(notebook, report, skipped))
    process.start()
    process.join(600)
    if process.is_alive(): process.kill()
    assert process.exitcode == 0, report.read_text()[-9000:]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(notebook, tmp_path): passes(notebook, tmp_path, ["slow"])


SLOW = [path for path in NOTEBOOKS if '"#| slow' in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", SLOW, ids=lambda p: p.stem)
def test_whole_notebook(notebook, tmp_path): passes(notebook, tmp_path, [])


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 10 and SLOW
