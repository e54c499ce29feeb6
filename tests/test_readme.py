from readme import ROOT, readme


def test_readme_agrees_with_its_notebook():
    assert (ROOT / "README.md").read_text() == readme(), "README.md and nbs/index.ipynb differ: run python tests/readme.py"
