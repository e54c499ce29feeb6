"""The site's pages, its reference and its links; docs/build.py, which the gate runs, builds it."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sphinx", reason="the site needs pip install -e '.[docs]'")
import links
import notebooks
import reference

import fastcontrast.all as everything

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


def cell(source, kind="code"):
    more = dict(outputs=[], execution_count=None) if kind == "code" else {}
    return dict(cell_type=kind, id=f"{abs(hash(source)) % 10**8:08d}", metadata={}, source=source, **more)


@pytest.fixture
def page(tmp_path):
    "What becomes of a notebook of some cells"
    def write(*cells, indexed=(), name="100_losses"):
        path = tmp_path / f"{name}.ipynb"
        path.write_text(json.dumps(dict(cells=list(cells), metadata={}, nbformat=4, nbformat_minor=5)))
        made = notebooks.Page(path)
        (tmp_path / "site").mkdir(exist_ok=True)
        made.write(tmp_path / "site", set(indexed))
        return json.loads((tmp_path / "site" / f"{made.name}.ipynb").read_text())["cells"], made
    return write


def test_every_public_name_has_exactly_one_entry(tmp_path):
    reference.write(tmp_path)
    text = "\n".join(path.read_text() for path in sorted((tmp_path / "api").glob("*.rst")))
    found = re.findall(r"^\.\. (?:auto\w+:: [\w.]+\.|py:data:: )(\w+)$", text, re.M)
    assert sorted(found) == sorted(set(everything.__all__))


def test_the_overview_lists_every_public_name_with_a_line(tmp_path):
    reference.write(tmp_path)
    rows = dict(re.findall(r"^   \* - ``(\w+)``\n     - (.*)$", (tmp_path / "api.rst").read_text(), re.M))
    assert rows.keys() == set(everything.__all__) and all(rows.values())


def test_entries_are_found_where_names_are_defined():
    for entry in reference.entries():
        assert getattr(sys.modules[entry.module], entry.name) is entry.value


def test_parameters_are_those_of_the_docments():
    def scale(
        x: torch.Tensor,  # features `[N, D]`
        by: float = 2.,     # how much
        *, names: tuple[str, ...] = (),
    ) -> None:
        "Scaled"
    assert reference.parameters(scale) == [
        ("x: Tensor", "features `[N, D]`"), ("by: float = 2.0", "how much"), ("names: tuple[str, ...] = ()", "")]
    rows = dict(reference.parameters(everything.info_nce))
    assert "q: Tensor" in rows and "`[B, D]`" in rows["q: Tensor"] and any(term.startswith("→") for term in rows)


def test_an_enumeration_has_its_members():
    assert dict(reference.parameters(everything.Phase))["VIEWS = 6"] == "its pictures become views"


def test_docstrings_become_restructured_text():
    assert reference.rst("of `x_` and *args, |x|: a_ b") == r"of ``x_`` and \*args, \|x\|: a\_ b"
    assert reference.rst("k=`x`s") == r"k=\ ``x``\ s"


def test_every_notebook_is_a_page_of_the_tree_once():
    pages = [page for part in notebooks.tree(NOTEBOOKS).values() for page in part]
    assert sorted(pages) == sorted({path.stem.split("_", 1)[-1] for path in NOTEBOOKS} - {"index"})
    assert len(set(pages)) == len(pages)
    assert not set(pages) & {"search", "genindex", "api"}  # pages of Sphinx, and the reference
    assert notebooks.tree(NOTEBOOKS).keys() == notebooks.TREE.keys()


def test_docstrings_lead_to_pages():
    pages = {notebooks.page_name(path) for path in NOTEBOOKS}
    modules = (ROOT / "fastcontrast").rglob("*.py")
    said = {name for path in modules for name in reference.LESSON.findall(path.read_text())}
    assert said and said <= pages


def test_a_page_hides_what_is_hidden_and_folds_the_modules_code(page):
    cells, _ = page(
        cell("# losses\n\n> What they are.", "markdown"),
        cell("#| default_exp losses"),
        cell("#| export\nimport torch"),
        cell("#| hide\nsecret = 1"),
        cell("#| export\ndef info_nce(q, k): return q"),
        cell("info_nce(1, 2)") | dict(outputs=[dict(output_type="stream", name="stdout", text="1")]),
    )
    first, entry, code, shown = cells
    assert "".join(entry["source"]).startswith("```{entry} autofunction fastcontrast.losses.info_nce")
    assert code["metadata"]["tags"] == ["hide-input"] and "#|" not in "".join(code["source"])
    assert "tags" not in shown["metadata"] and shown["outputs"]


def test_what_only_imports_is_folded_but_a_readers_first_line(page):
    cells, _ = page(cell("import torch\nfrom fastcore.test import test_eq"), cell("from fastcontrast.all import *"),
                    cell("import torch\nx = 1"))
    assert [c["metadata"].get("tags", []) for c in cells] == [["hide-input"], [], []]


def test_what_the_index_has_is_not_indexed_again(page):
    show = [cell("from fastcontrast.core import Registry"), cell("show_doc(Registry)"),
            cell("show_doc(Registry.find)")]
    sources = ["".join(c["source"]) for c in page(*show)[0]]
    assert "autoclass fastcontrast.core.Registry\n```" in sources[1]
    assert ":no-index:" not in sources[2]
    again = ["".join(c["source"]) for c in page(*show, indexed=["fastcontrast.core.Registry"])[0]]
    assert ":no-index:" in again[1] and ":no-index:" not in again[2]


def test_what_the_reference_has_is_not_indexed_on_a_page(page):
    imports = cell("from fastcontrast.embed import Embedded")
    cells, _ = page(imports, cell("show_doc(Embedded)"), cell("show_doc(Embedded.search)"))
    assert all(":no-index:" in "".join(c["source"]) for c in cells[1:])


def test_what_cannot_be_found_is_said(page):
    with pytest.raises(LookupError, match="nowhere is documented"): page(cell("show_doc(nowhere)"))


def test_links_between_pages_are_those_that_sphinx_checks(page):
    cells, _ = page(cell("[a](410_pictures.ipynb#channels) [b](data.html) "
                         f"[c]({links.SITE}/step.html) ![d]({links.REPOSITORY}/raw/main/benchmarks/x.png)", "markdown"))
    text = "".join(cells[0]["source"])
    assert "(pictures.ipynb#channels)" in text and "(data.ipynb)" in text and "(step.ipynb)" in text
    assert f"{links.REPOSITORY}/raw" not in text and "/benchmarks/x.png)" in text


def test_a_page_as_text_has_its_code_and_what_it_prints(page):
    _, made = page(cell("# A\n\n> About.", "markdown"), cell("#| hide\n1"),
                   cell("print(2)") | dict(outputs=[dict(output_type="stream", name="stdout", text="2\n")]))
    assert (made.title, made.about) == ("A", "About.")
    assert made.markdown() == "# A\n\n> About.\n\n```python\nprint(2)\n```\n\n```text\n2\n```\n"


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top">A</h1>')
    def links_of(*hrefs):
        (tmp_path / "index.html").write_text("".join(f'<a href="{href}">x</a>' for href in hrefs))
        return [line.split(": ")[1] for line in links.broken(tmp_path, ROOT)]
    return links_of


def test_links_that_lead_somewhere_pass(site):
    assert site("a.html", "a.html#top", "#", "https://arxiv.org/abs/2101.06983", "mailto:a@b.org",
                f"{links.SITE}/a.html#top", f"{links.REPOSITORY}/blob/main/README.md") == []


@pytest.mark.parametrize("link", [
    "b.html", "a.html#bottom", "#bottom", "htps://arxiv.org", "https://arxiv", "https://arxiv.org/a b", "mailto:b.org",
    f"{links.SITE}/b.html", f"{links.REPOSITORY}/blob/main/NOTHING.md"])
def test_a_link_that_leads_nowhere_is_found(site, link): assert site("a.html", link) == [link]


def test_sources_are_held_to_the_pages_that_they_name(tmp_path):
    (tmp_path / "fastcontrast").mkdir()
    (tmp_path / "fastcontrast" / "x.py").write_text(f'"Docs: {links.SITE}/gone.html.md"')
    assert links.written(tmp_path, tmp_path) == [f"fastcontrast/x.py: {links.SITE}/gone.html.md"]


@pytest.mark.slow
def test_the_site_builds_and_one_with_a_broken_page_does_not(tmp_path):
    for part in ("docs", "nbs", "fastcontrast", "benchmarks"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.*"):
        if path.is_file(): shutil.copy(path, tmp_path)
    def built(): return subprocess.run([sys.executable, "-W", "ignore", "docs/build.py"], cwd=tmp_path, text=True,
                                       capture_output=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    good = built()
    assert good.returncode == 0, good.stderr
    assert (tmp_path / "_docs/search.html").exists() and (tmp_path / "_docs/losses.html.md").exists()
    (tmp_path / "nbs" / "099_broken.ipynb").write_text(json.dumps(dict(
        cells=[cell("# Broken\n\n[x](999_gone.ipynb)", "markdown")], metadata={}, nbformat=4, nbformat_minor=5)))
    bad = built()
    assert bad.returncode and "gone" in bad.stderr
