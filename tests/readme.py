"""README.md is nbs/index.ipynb in Markdown, and the lists between its marks are those of the registries.

`python tests/readme.py` fills the lists in the notebook and writes the README; `test_readme.py` checks that they agree.
"""
import inspect
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from fastcontrast.recipes import LOSSES, METHODS, SPEEDUPS

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "nbs" / "index.ipynb"
MARKED = re.compile(r"(<!-- generated: (\w+) -->)(.*?)(<!-- end -->)", re.DOTALL)


def methods(names: Iterable[str] = METHODS) -> str:
    """Those of these names, in the registry's order"""
    return ", ".join(f"`{name}`" for name in METHODS if name in names)


def losses(names: Iterable[str] = LOSSES) -> str:
    """The classes of the losses of these names, or whose names these are"""
    return ", ".join(f"`{loss.__name__}`" for name, loss in LOSSES.items() if {name, loss.__name__} & set(names))


def speedups(names: Iterable[str] = SPEEDUPS) -> str:
    """A table of what those of these names do, by the first line of their docstrings"""
    rows = ["| `--with` | callback | what it does |", "|---|---|---|"]
    for name, speedup in SPEEDUPS.items():
        sentence = (inspect.getdoc(speedup) or "").split("\n")[0]
        if name in names: rows.append(f"| `{name}` | `{speedup.__name__}` | {sentence} |")
    return "\n".join(["", "", *rows, "", ""])


LISTS: dict[str, Callable[..., str]] = dict(methods=methods, losses=losses, speedups=speedups)


def listed(text: str) -> list[str]:
    """The names in a list, or in the first column of a table"""
    rows = re.findall(r"^\| `(\w+)`", text, re.MULTILINE)
    return rows or re.findall(r"`(\w+)`", text)


def generated(notebook: dict) -> list[tuple[str, str]]:
    """What stands between the marks of a notebook: which list, and its text"""
    return [(m[2], m[3]) for cell in notebook["cells"] for m in MARKED.finditer("".join(cell["source"]))]


def fill(notebook: dict) -> dict:
    """The notebook with its lists as the registries have them"""
    def cell(old):
        text = MARKED.sub(lambda m: m[1] + LISTS[m[2]]() + m[4], "".join(old["source"]))
        return dict(old, source=text.splitlines(keepends=True))
    return dict(notebook, cells=[cell(old) for old in notebook["cells"]])


def readme(notebook: dict) -> str:
    """The notebook's text cells as they are, its code cells as Python blocks"""
    parts = ["<!-- made from nbs/index.ipynb by tests/readme.py: edit the notebook -->"]
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown": parts.append(source)
        elif not source.startswith("#| hide"): parts.append(f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write both"""
    notebook = fill(json.loads(NOTEBOOK.read_text()))
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    (ROOT / "README.md").write_text(readme(notebook))


if __name__ == "__main__": main()
