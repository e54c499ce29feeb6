"""The README is its notebook; its lists are the registries', its Python runs, its figures are the benchmarks'."""
import json
import re

import pytest
from readme import LISTS, NOTEBOOK, ROOT, fill, generated, listed, main, readme

import fastcontrast.all
import fastcontrast.speedups


@pytest.fixture
def notebook(): return json.loads(NOTEBOOK.read_text())


def test_readme_agrees_with_its_notebook(notebook):
    assert (ROOT / "README.md").read_text() == readme(notebook), "they differ: run python tests/readme.py"


def test_what_is_listed_is_in_the_registries(notebook):
    assert {kind for kind, _ in generated(notebook)} == set(LISTS)
    for kind, text in generated(notebook):
        names = listed(text)
        # somebody's own methods need not be there
        assert names and text == LISTS[kind](names), f"the list of {kind} is not up to date: run python tests/readme.py"


def test_a_new_speedup_joins_the_table_by_running_the_script(notebook, monkeypatch, tmp_path):
    class Mine:
        "Does something new\n\nAt length"
    monkeypatch.setitem(fastcontrast.speedups.SPEEDUPS, "mine", Mine)
    test_what_is_listed_is_in_the_registries(notebook)
    tables = dict(generated(fill(notebook)))
    assert "| `mine` | `Mine` | Does something new |" in tables["speedups"] and "mine" in listed(tables["speedups"])
    monkeypatch.setattr("readme.ROOT", tmp_path)
    monkeypatch.setattr("readme.NOTEBOOK", tmp_path / "index.ipynb")
    (tmp_path / "index.ipynb").write_text(NOTEBOOK.read_text())
    main()
    assert "Does something new" in (tmp_path / "README.md").read_text()
    assert readme(json.loads((tmp_path / "index.ipynb").read_text())) == (tmp_path / "README.md").read_text()


def test_its_figures_are_those_of_the_benchmarks(notebook):
    known = set(re.findall(r"\d+\.\d+", (ROOT / "benchmarks" / "README.md").read_text()))
    rows = [line for line in readme(notebook).splitlines() if line.startswith("|")]
    figures = re.findall(r"\d+\.\d+", "\n".join(rows))
    assert len(figures) > 20 and set(figures) <= known


def test_its_python_runs(notebook, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", readme(notebook), re.DOTALL)
    # short ones: how many epochs there are if nobody says is another test's
    for old, new in (("'imagenette-128', size=128", "'digits', size=16"), ("resnet18", "test_resnet"), ("100", "1"),
                     ("finetune(labels=0.1)", "finetune(labels=0.1, epochs=1)")):
        assert code.count(old) == 1
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    space = vars(fastcontrast.all).copy()
    exec(code, space)
    assert type(space["encoder"]).__module__.startswith("timm.") and (tmp_path / "encoder/model.safetensors").exists()
