"""`fastcontrast pretrain` as a newcomer runs it, on the built-in digits: what it achieves, and in how long.

Goals: at most 180 s on two cores; kNN at least 95 %; a linear classifier on 10 labels a class at least 90 %.

    python benchmarks/digits.py --seeds 0 1 2
"""
import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from common import save


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arg.add_argument("--method", default="simclr")
    a = arg.parse_args()
    runs = []
    for seed in a.seeds:
        with tempfile.TemporaryDirectory() as d:
            start = time.time()
            subprocess.run(["fastcontrast", "pretrain", "--seed", str(seed), "--method", a.method, "--out", f"{d}/run"], check=True)
            config = json.loads(Path(d, "run", "config.json").read_text())
            runs.append(dict(seed=seed, wall_s=round(time.time() - start, 1), epochs=config["epochs"], batch_size=config["batch_size"], **config["results"]))
    save(f"digits_{a.method}", dict(method=a.method, goal="180 s, kNN .95, few labels .90", runs=runs))


if __name__ == "__main__": main()
