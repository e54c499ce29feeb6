"""The programs in benchmarks/ import one another by their names, as when they are run from there."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
