"""Whether every recipe trains on this device: three steps in bfloat16: plain, in parts (accumulate=2), and compiled.

A check, not a measurement: the loss is a finite number and all weights stay so, weights move, and a compiled step's first loss is
that of a plain one. What fails is reported with its error, and the program then ends with one.

    python benchmarks/trains.py
    python benchmarks/trains.py --methods simclr swav --ways plain
"""
import argparse
import gc
import sys
import time

import torch
from common import device, save
from fastai.callback.core import Callback, CancelFitException
from step_time import LR, Pictures

from fastcontrast.all import contrastive_learner, image_dls
from fastcontrast.recipes import METHODS

WAYS = dict(plain={}, accumulate=dict(accumulate=2), compile=dict(compile=True))


class Seen(Callback):
    order = 100

    def __init__(self, steps): self.steps, self.each = steps, []
    def after_loss(self): self.each.append(self.loss.detach())

    def after_batch(self):
        if len(self.each) == self.steps: raise CancelFitException


def trains(a, method, way) -> list[float]:
    """The losses"""
    torch.manual_seed(0)
    dls = image_dls(Pictures(4 * a.bs, a.size), size=a.size, bs=a.bs, valid=0, device=device())
    learn = contrastive_learner(dls, a.arch, METHODS[method](setting="imagenet"), precision=a.precision, knn_pictures=0, **WAYS[way])
    before, seen = [p.detach().clone() for p in learn.model.encoder.parameters()], Seen(3)
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1, lr=LR, cbs=seen)
    assert len(seen.each) == 3 and torch.stack(seen.each).isfinite().all(), f"losses {seen.each}"
    assert all(p.isfinite().all() for p in learn.model.parameters()), "a weight is not finite"
    assert any(not torch.equal(p, q) for p, q in zip(before, learn.model.encoder.parameters())), "no weight has moved"
    return torch.stack(seen.each).tolist()


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=f"of {', '.join(METHODS)}")
    arg.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--size", type=int, default=64)
    arg.add_argument("--bs", type=int, default=64)
    arg.add_argument("--precision", default="bf16")
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    result = dict(arch=a.arch, size=a.size, bs=a.bs, wanted=a.precision, goal="all train", losses={}, failed={})
    for way in a.ways:
        for method in a.methods:
            start, what = time.perf_counter(), f"{method}, {way}"
            try:
                result["losses"][what] = losses = trains(a, method, way)
                plain = result["losses"].get(f"{method}, plain")
                assert way != "compile" or plain is None or abs(losses[0] / plain[0] - 1) < 0.02, f"first loss {losses[0]:.4f} compiled, {plain[0]:.4f} as it is"
            except Exception as e: result["failed"][what] = f"{type(e).__name__}: {e}"
            print(f"{what}: {result['failed'].get(what) or 'trains'} ({time.perf_counter() - start:.1f} s)", flush=True)
            save(f"trains_{device()}", result, a.out)
            gc.collect()
    if result["failed"]: sys.exit(f"{len(result['failed'])} of {len(a.ways) * len(a.methods)} failed")


if __name__ == "__main__": main()
