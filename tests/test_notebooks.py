"""Every notebook is a test: its lessons assert. Cells with `#| slow` train what other tests train too: they are run by
`pytest -m slow`, as are on all digits those that otherwise have few."""
import os
import sys
from pathlib import Path

import pytest
from helpers.forks import CONTEXT
from helpers.pictures import few_digits

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))

# pages whose lessons hold for one of so many digits as well; a reader has all
FEW = {"010_tutorial": 2, "012_how_it_thinks": 2, "020_ablation": 3, "026_transformers": 2, "200_comb_patches": 3,
       "220_intermediate": 3, "230_regions": 3, "240_suncet": 3, "255_methods_one_by_one": 3, "332_report": 3,
       "355_weights": 3, "358_search_pictures": 3, "360_learner": 3, "480_cli": 4, "490_checkpoint": 4}


def run(notebook, report, skipped, every):
    "Run a notebook in this process, all but the cells with one of these flags, and end it"
    from nbdev.test import test_nb
    few_digits(pytest.MonkeyPatch(), every)
    os.environ["MPLBACKEND"] = "Agg"
    os.chdir(ROOT)
    with report.open("w") as file:
        for stream in (1, 2): os.dup2(file.fileno(), stream)
    passed, _ = test_nb(notebook, skip_flags=skipped)
    sys.stdout.flush()
    sys.exit(not passed)


def passes(notebook, tmp_path, skipped, every=1):
    report = tmp_path / "report.txt"
    # none sees what another one imported, registered or seeded
    process = CONTEXT.Process(target=run, args=(notebook, report, skipped, every))
    process.start()
    process.join(500)
    if process.is_alive(): process.kill()
    assert process.exitcode == 0, report.read_text()[-9000:]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(notebook, tmp_path): passes(notebook, tmp_path, ["slow"], FEW.get(notebook.stem, 1))


SLOW = [path for path in NOTEBOOKS if path.stem in FEW or '"#| slow' in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", SLOW, ids=lambda p: p.stem)
def test_whole_notebook(notebook, tmp_path): passes(notebook, tmp_path, [])


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 10 and SLOW and FEW.keys() <= {path.stem for path in NOTEBOOKS}
