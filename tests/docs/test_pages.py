"The pages' accuracies and ratios are those of the benchmarks, or a paper's that is named beside them"
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "nbs").glob("[02]*.ipynb"))
FIGURE = re.compile(r"(\d+\.\d+)(?= (?:±|%|times))|(?<=± )(\d+\.\d+)")


def paragraphs(path):
    "Those of its texts; what cells show is made by the page itself"
    cells = json.loads(path.read_text())["cells"]
    return [p for cell in cells if cell["cell_type"] == "markdown" for p in "".join(cell["source"]).split("\n\n")]


def figures(text):
    "Accuracies, their deviations, and ratios"
    return {"".join(groups) for groups in FIGURE.findall(text)}


def unknown(text, known):
    "Figures that nobody vouches for"
    return set() if re.search(r"et al\.|\bpaper", text) else figures(text) - known


@pytest.fixture(scope="module")
def known(): return set(re.findall(r"\d+\.\d+", (ROOT / "benchmarks" / "README.md").read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_figures_are_those_of_the_benchmarks(page, known):
    found = {text[:80]: unknown(text, known) for text in paragraphs(page)}
    assert not {text: bad for text, bad in found.items() if bad}


def test_an_invented_figure_is_found(known):
    assert unknown("It is 3.14159 times as fast, at 12.345 % or 6.7891 ± 0.98765.", known) == {
        "3.14159", "12.345", "6.7891", "0.98765"}
    assert not unknown("On ImageNet it has 12.345 % (Somebody et al. 2020).", known)


def test_there_are_figures(known): assert sum(len(figures(text)) for page in PAGES for text in paragraphs(page)) > 30
