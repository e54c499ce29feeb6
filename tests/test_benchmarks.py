"""The benchmark programs run, in a small form, and write what they promise; their figures are for benchmarks/results."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = dict(
    step_time="--arch resnet10t --size 16 --bs 8 --steps 1 --rounds 1",
    memory="--arch resnet10t --size 16 --bs 8 --rounds 1",
    curves="digits --arch resnet10t --size 16 --bs 256 --epochs 1 --no-small-input",
)


@pytest.mark.parametrize("program", SMALL)
def test_benchmark(program, tmp_path):
    got = subprocess.run([sys.executable, ROOT / "benchmarks" / f"{program}.py", *SMALL[program].split(), "--out", tmp_path], cwd=tmp_path,
                         capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert got.returncode == 0, got.stderr[-3000:]
    (file,) = tmp_path.glob("*.json")
    result = json.loads(file.read_text())
    assert result["command"].startswith(f"python benchmarks/{program}.py") and result["device"] and result["versions"]["torch"]
    ratios = {"step_time": lambda: [result[m]["ratio"] for m in ("simclr", "moco_v3")], "memory": lambda: result["ratios"],
              "curves": lambda: [result["untrained_knn"], result["trained_knn"]]}[program]()
    assert all(0 < r < 100 for r in ratios)
