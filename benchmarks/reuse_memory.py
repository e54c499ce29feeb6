"""What it is worth on a CPU that a step's freed memory stays with the process for the next (`reuse_memory`), and what it costs.

Time and page faults of a step, and the peak memory, with it over without it; each run is a process of its own, and they alternate.
`moco_v3` is with `IntermediateLoss`, `PartialBackprop`, `CombinePatches` and `HardRegions`, whose maps are of many sizes.

    python benchmarks/reuse_memory.py
    python benchmarks/reuse_memory.py --runs "simclr resnet50 224 16"
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys

import torch
from common import save, seconds_a_step
from fastai.callback.core import Callback
from memory import peak_since, resident
from step_time import LR, Pictures

from fastcontrast import device
from fastcontrast.all import CombinePatches, HardRegions, IntermediateLoss, PartialBackprop, contrastive_learner, image_dls

RUNS = ["simclr resnet18 32 256", "simclr resnet18 128 64", "moco_v3 resnet10t 64 64"]


def page_faults() -> int: return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Faults(Callback):
    order = -101  # before the clock of `seconds_a_step`
    def before_fit(self): self.at = []
    def before_batch(self): self.at.append(page_faults())


def measure(a) -> dict:
    method, arch, size, bs = a.runs[0].split()
    torch.manual_seed(0)
    dls = image_dls(Pictures(int(bs) * (a.warm + a.steps + 1), int(size)), size=int(size), bs=int(bs), valid=0, device="cpu")
    before = resident()
    speedups = [IntermediateLoss(), PartialBackprop(), CombinePatches(), HardRegions("layer2")] if method == "moco_v3" else []
    learn = contrastive_learner(dls, arch, method, cbs=speedups, small_input=False)
    if a.run == "without": device._glibc = lambda: None
    faults = Faults()
    learn.add_cb(faults)
    seconds = seconds_a_step(learn, a.warm, a.steps, lr=LR)
    return dict(step_s=seconds, faults_a_step=(faults.at[-1] - faults.at[a.warm]) / a.steps, peak_mib=peak_since(before) / 2**20)


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--runs", nargs="+", default=RUNS, metavar="RUN", help="each method, encoder, side and batch, by default: " + "; ".join(RUNS))
    arg.add_argument("--warm", type=int, default=3, help="steps before the clock starts")
    arg.add_argument("--steps", type=int, default=10, help="steps on the clock")
    arg.add_argument("--rounds", type=int, default=3)
    arg.add_argument("--out", help="folder for the results")
    arg.add_argument("--run", choices=["with", "without"], help=argparse.SUPPRESS)
    a = arg.parse_args()
    if a.run: return print(json.dumps(measure(a)))
    if device._glibc() is None: sys.exit("there is nothing to measure: no glibc here, or MALLOC_… or GLIBC_TUNABLES is set in the environment")
    result = dict(warm=a.warm, steps=a.steps)
    for run in a.runs:
        got: dict[str, list[dict]] = {"without": [], "with": []}
        for r in range(a.rounds):
            for which in list(got)[::-1 if r % 2 else 1]:
                options = [f"--{k}={getattr(a, k)}" for k in ("warm", "steps")]
                out = subprocess.run([sys.executable, sys.argv[0], *options, "--runs", run, "--run", which], capture_output=True, text=True)
                if out.returncode: sys.exit(out.stderr)
                got[which].append(json.loads(out.stdout.splitlines()[-1]))
        ratios = {k: [x[k] / y[k] for x, y in zip(got["with"], got["without"], strict=True)] for k in ("step_s", "peak_mib")}
        result[run] = dict(time_ratio=statistics.median(ratios["step_s"]), time_ratios=ratios["step_s"],
                           memory_ratio=statistics.median(ratios["peak_mib"]), memory_ratios=ratios["peak_mib"], **got)
        faults = {which: statistics.median(x["faults_a_step"] for x in rows) for which, rows in got.items()}
        print(f"{run}: {result[run]['time_ratio']:.2f} of the time ({', '.join(f'{r:.2f}' for r in ratios['step_s'])}), {result[run]['memory_ratio']:.2f} of the peak memory; "
              f"{faults['with']:,.0f} page faults a step, {faults['without']:,.0f} without", flush=True)
    save("reuse_memory_cpu", result, a.out)


if __name__ == "__main__": main()
