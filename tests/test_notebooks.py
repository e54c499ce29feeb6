"""Every notebook is a test: its lessons assert."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(notebook):
    # a process of its own, so that no notebook sees what another one imported or seeded
    run = "import sys; from nbdev.test import test_nb; sys.exit(not test_nb(sys.argv[1])[0])"
    got = subprocess.run([sys.executable, "-c", run, str(notebook)], cwd=ROOT, capture_output=True, text=True,
                         env={**os.environ, "MPLBACKEND": "Agg"}, timeout=600)
    assert got.returncode == 0, got.stdout[-3000:] + got.stderr[-6000:]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 10
