"""Every notebook is a test: its lessons assert."""
import os
import sys
from pathlib import Path

import pytest
from helpers.forks import CONTEXT

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))


def run(notebook, report):
    "Run a notebook in this process, and end it"
    from nbdev.test import test_nb
    os.environ["MPLBACKEND"] = "Agg"
    os.chdir(ROOT)
    with report.open("w") as file:
        for stream in (1, 2): os.dup2(file.fileno(), stream)
    passed, _ = test_nb(notebook)
    sys.stdout.flush()
    sys.exit(not passed)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(notebook, tmp_path):
    report = tmp_path / "report.txt"
    # none sees what another one imported, registered or seeded
    process = CONTEXT.Process(target=run, args=(notebook, report))
    process.start()
    process.join(600)
    if process.is_alive(): process.kill()
    assert process.exitcode == 0, report.read_text()[-9000:]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 10
