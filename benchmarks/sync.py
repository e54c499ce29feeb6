"""Where a training step makes the host wait for the device: every recipe and every speedup, by PyTorch's synchronisation debug mode.

A few steps after the first are watched, with the fetching of their batches; the look at the loss every fifty steps and what an
epoch's end reads are not among them. Any wait is reported with the line of the library it came from, and the program then ends with
an error. Without CUDA there is nothing to watch, which it says.

    python benchmarks/sync.py
    python benchmarks/sync.py --cases simclr moco_v3+suncet
"""
import argparse
import gc
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from common import device, save
from fastai.callback.core import Callback, CancelFitException
from speedups import Labelled
from step_time import LR

import fastcontrast
from fastcontrast.all import CombinePatches, HardRegions, IntermediateLoss, PartialBackprop, contrastive_learner, image_dls
from fastcontrast.evaluate.cost import Cost
from fastcontrast.recipes import METHODS
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm

LIBRARY = Path(fastcontrast.__file__).parent
SPEEDUPS: dict[str, Callable[[], list]] = dict(
    comb_patches=lambda: [CombinePatches()], intermediate=lambda: [IntermediateLoss()], partial=lambda: [IntermediateLoss(), PartialBackprop()],
    regions=lambda: [HardRegions("layer2")], suncet=lambda: [SuNCEt()], supervised=lambda: [SupervisedTerm()], cost=lambda: [Cost()],
    all=lambda: [CombinePatches(), IntermediateLoss(), PartialBackprop(), HardRegions("layer2"), SuNCEt()])
OPTIONS = dict(accumulate=dict(accumulate=2), fp16=dict(precision="fp16"), fp32=dict(precision="fp32"), compile=dict(compile=True))
CASES = [*METHODS, *(f"{m}+{s}" for m in ("simclr", "moco_v3") for s in SPEEDUPS), *(f"moco_v3+{o}" for o in OPTIONS)]


class Watch(Callback):
    """Steps `warm` to `warm + steps` under `switch`, which turns the debug mode on ('warn') and off ('default'); where waits came from, in `seen`"""
    order = -100

    def __init__(self, warm: int, steps: int, switch: Callable[[str], None]): self.warm, self.steps, self.switch, self.seen = warm, steps, switch, Counter()

    def before_batch(self):
        if self.train_iter == self.warm: self.switch("warn")
        if self.train_iter == self.warm + self.steps:
            self.switch("default")  # the end of an epoch may wait
            raise CancelFitException

    def note(self, message, category, filename, lineno, file=None, line=None):
        if "synchronizing" not in str(message): return
        stack = [f"{Path(f.filename).name}:{f.lineno} {f.line}" for f in traceback.extract_stack() if Path(f.filename).is_relative_to(LIBRARY)]
        here = [] if Path(filename).is_relative_to(LIBRARY) else [f"{Path(filename).name}:{lineno}"]  # in the backward pass, in fastai, in PyTorch
        self.seen[" < ".join(here + stack[:-3:-1])] += 1


def waits(learn, warm: int = 2, steps: int = 6, switch: Callable[[str], None] = torch.cuda.set_sync_debug_mode) -> dict[str, float]:
    """Waits of the host in a training step of a learner, by where they came from"""
    watch = Watch(warm, steps, switch)
    with warnings.catch_warnings(), learn.no_logging(), learn.no_mbar():
        warnings.simplefilter("always")
        warnings.showwarning = watch.note
        try: learn.fit_contrastive(1, lr=LR, cbs=watch)
        finally: switch("default")
    return {where: n / steps for where, n in watch.seen.items()}


def make(a, case):
    torch.manual_seed(0)
    method, *more = case.split("+")
    options = {k: v for name in more if name in OPTIONS for k, v in OPTIONS[name].items()}
    dls = image_dls(Labelled(9 * a.bs, a.size), size=a.size, bs=a.bs, valid=0, labels="all", device=device())
    return contrastive_learner(dls, a.arch, METHODS[method](setting="imagenet"), cbs=[cb for name in more if name in SPEEDUPS for cb in SPEEDUPS[name]()], knn_pictures=0, **options)


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--size", type=int, default=64)
    arg.add_argument("--bs", type=int, default=64)
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    if device() == "cpu": return print("no CUDA device: a host that is the device has nothing to wait for, so nothing was checked")
    result = dict(arch=a.arch, size=a.size, bs=a.bs, goal="no wait in a step", waits={})
    for case in a.cases:
        try: found = waits(make(a, case))
        except Exception as e: found = {f"not checked: {type(e).__name__}: {e}": 0}
        result["waits"][case] = found
        print(f"{case}: " + ("no wait" if not found else "; ".join(f"{n:.3g} a step at {where}" if n else where for where, n in found.items())), flush=True)
        save(f"sync_{device()}", result, a.out)
        gc.collect()
    if any(result["waits"].values()): sys.exit("some steps make the host wait")


if __name__ == "__main__": main()
