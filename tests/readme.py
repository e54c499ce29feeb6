"""README.md is nbs/index.ipynb in Markdown: `python tests/readme.py` writes it, `test_readme.py` checks that they agree."""
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


def readme() -> str:
    """The notebook's text cells as they are, its code cells as Python blocks, their text results below"""
    parts = []
    for cell in json.loads((ROOT / "nbs" / "index.ipynb").read_text())["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown": parts.append(source)
        elif not source.startswith("#| hide"): parts.append(f"```python\n{source}\n```")
    return "\n\n".join(["<!-- made from nbs/index.ipynb by tests/readme.py: edit the notebook -->", *parts]) + "\n"


if __name__ == "__main__": (ROOT / "README.md").write_text(readme())
