"""Peak memory of a MoCo v3 step: the learner over a hand-written loop with the same parts. Goal: at most 1.05.

On CUDA the allocator's peak; on a CPU the growth of the process's resident memory from before the model is made to the peak
while stepping, each in a process of its own.

    python benchmarks/memory.py
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys

import torch
from common import device, save
from step_time import Pictures, bare_loop

from fastcontrast.all import contrastive_learner, image_dls, moco_v3


def resident() -> int:
    with open("/proc/self/statm") as f: return int(f.read().split()[1]) * resource.getpagesize()


def peak_since(before: int) -> float:
    """Bytes at the peak: on CUDA of the allocator, else what the process has grown by"""
    if device() == "cuda": return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def measure(a) -> float:
    """Bytes at the peak"""
    torch.manual_seed(0)
    dls = image_dls(Pictures(a.bs * 4, a.size), size=a.size, bs=a.bs, valid=0, device=device())
    before = resident()
    learn = contrastive_learner(dls, a.arch, moco_v3(setting="cifar"), small_input=False)
    if a.run == "ours":
        with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1, lr=0.1)
    else: bare_loop(learn, dls.train, copied=False)()
    return peak_since(before)


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--size", type=int, default=32)
    arg.add_argument("--bs", type=int, default=256)
    arg.add_argument("--rounds", type=int, default=3)
    arg.add_argument("--out", help="folder for the results")
    arg.add_argument("--run", choices=["ours", "bare"], help=argparse.SUPPRESS)
    a = arg.parse_args()
    if a.run:
        print(json.dumps(measure(a)))
        return
    got: dict[str, list[float]] = dict(ours=[], bare=[])
    for _ in range(a.rounds):
        for name, values in got.items():
            out = subprocess.run([sys.executable, *sys.argv, "--run", name], capture_output=True, text=True)
            if out.returncode: sys.exit(out.stderr)
            values.append(float(out.stdout.splitlines()[-1]))
    ratios = [x / y for x, y in zip(got["ours"], got["bare"], strict=True)]
    print(f"ours over bare: {statistics.median(ratios):.3f} ({', '.join(f'{r:.3f}' for r in ratios)}); {got['ours'][0] / 2**20:.0f} MiB against {got['bare'][0] / 2**20:.0f} MiB")
    save(f"memory_{device()}", dict(arch=a.arch, size=a.size, bs=a.bs, goal="ratio at most 1.05", ratio=statistics.median(ratios), ratios=ratios,
         ours_mib=[x / 2**20 for x in got["ours"]], bare_mib=[x / 2**20 for x in got["bare"]]), a.out)


if __name__ == "__main__": main()
