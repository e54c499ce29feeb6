"""Large batches in parts: a step with `accumulate=8` over eight plain steps of an eighth of its batch.

Time: of as many pictures, so the second forward pass is what is paid for. Goal: at most 1.5. Peak memory: over a plain step of one
part; on CUDA the allocator's peak, on a CPU the growth of the process's resident memory from before the model is made to the peak,
each in a process of its own. Goal: at most 1.1.

    python benchmarks/accumulate.py
    python benchmarks/accumulate.py --methods simclr moco_v3 --arch resnet50 --bs 512
"""
import argparse
import json
import statistics
import subprocess
import sys

import torch
from common import alternate, device, save
from memory import peak_since, resident
from step_time import LR, Pictures, settled_learner

from fastcontrast.accumulate import Accumulate
from fastcontrast.all import image_dls


def learner(a, method, chunks):
    """The method with batches of `chunks` parts"""
    torch.manual_seed(0)
    dls = image_dls(Pictures(a.bs * a.steps, a.size), size=a.size, bs=a.bs * chunks // a.chunks, valid=0, device=device())
    before = resident()
    learn = settled_learner(dls, a.arch, method, a.small_input, rows=a.bs)
    if chunks > 1: learn.add_cb(Accumulate(chunks))

    def epoch():
        with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1, lr=LR)
    return epoch, before


def memory(a, method, chunks) -> float:
    """Bytes at the peak"""
    epoch, before = learner(a, method, chunks)
    epoch()
    return peak_since(before)


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--methods", nargs="+", default=["simclr", "moco_v3"])
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--small-input", action="store_true", help="give the ResNet the stem for small pictures")
    arg.add_argument("--size", type=int, default=128)
    arg.add_argument("--bs", type=int, default=256, help="pictures in a large batch")
    arg.add_argument("--chunks", type=int, default=8)
    arg.add_argument("--steps", type=int, default=2, help="large steps in a measurement")
    arg.add_argument("--rounds", type=int, default=5)
    arg.add_argument("--out", help="folder for the results")
    arg.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    a = arg.parse_args()
    if a.run:
        print(json.dumps(memory(a, a.run[0], int(a.run[1]))))
        return
    result = dict(arch=a.arch, small_input=a.small_input, size=a.size, bs=a.bs, chunks=a.chunks, goal="time at most 1.5, memory at most 1.1")
    for method in a.methods:
        peaks: dict[int, list[float]] = {a.chunks: [], 1: []}
        for _ in range(a.rounds):
            for chunks, values in peaks.items():
                out = subprocess.run([sys.executable, *sys.argv, "--run", method, str(chunks)], capture_output=True, text=True)
                if out.returncode: sys.exit(out.stderr)
                values.append(float(out.stdout.splitlines()[-1]))
        ratios = [x / y for x, y in zip(*peaks.values(), strict=True)]
        time = alternate(learner(a, method, a.chunks)[0], learner(a, method, 1)[0], a.rounds)
        result[method] = dict(time_ratio=time["ratio"], time_ratio_quartiles=time["ratio_quartiles"], accumulated_s_per_step=time["a_s"] / a.steps,
                              plain_s_per_chunks=time["b_s"] / a.steps, memory_ratio=statistics.median(ratios), memory_ratios=ratios,
                              accumulated_mib=[x / 2**20 for x in peaks[a.chunks]], plain_mib=[x / 2**20 for x in peaks[1]])
        print(f"{method}: {time['ratio']:.3f} of the time of {a.chunks} plain steps (quartiles {time['ratio_quartiles'][0]:.3f} to {time['ratio_quartiles'][1]:.3f}), "
              f"{statistics.median(ratios):.3f} of the memory of one ({peaks[a.chunks][0] / 2**20:.0f} MiB against {peaks[1][0] / 2**20:.0f} MiB)", flush=True)
    save(f"accumulate_{device()}", result, a.out)


if __name__ == "__main__": main()
