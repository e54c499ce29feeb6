"""Seconds of training until the kNN accuracy on the held-out part reaches a target.

On the clock is everything that a user of `fit_contrastive` waits for, but for the kNN evaluation after every `--eval-every` epochs
(and writing its result), whose seconds are given beside, as are those of decoding the pictures at the start. The kNN is over all pictures of both parts. The run
ends at the target, after its last epoch or when `--minutes` are over, and what was reached is written after every evaluation.
The learning rate falls to 0 over `--epochs`, so fewer of them may be faster: a cosine's last epochs gain the most. If only `--minutes`
are given they are as many as fit in, by a trial of a few steps before the clock starts (not with --compile, whose minute would be lost).

Data sets it knows (by the folder's name), with what lightly's SimCLR reaches after 200 epochs on one A6000, the target:

    imagenette-128    83.5 % (50 min); goal: at most 5 min on one H100
    cifar10           84.7 % (98 min); goal: at most 5 min on one H100

    python benchmarks/time_to_knn.py data/imagenette-128
    python benchmarks/time_to_knn.py data/cifar10 --method moco_v3 --epochs 60 --with "partial, regions" --compile
    python benchmarks/time_to_knn.py digits --target 0.9 --arch resnet10t --size 32 --bs 64 --epochs 10
"""
import argparse
import math
import sys
import time
from pathlib import Path

import torch
from common import RESULTS, device, save, seconds_a_step, sync
from fastai.callback.core import Callback, CancelFitException
from matplotlib.figure import Figure

from fastcontrast.all import InputError, contrastive_learner, image_dls, knn_accuracy
from fastcontrast.cli import parse_speedups
from fastcontrast.recipes import METHODS

KNOWN = {"imagenette-128": dict(target=0.835, size=128, bs=256, epochs=200, minutes_of_lightly=50), "cifar10": dict(target=0.847, size=32, bs=256, epochs=80, minutes_of_lightly=98)}


class Judge(Callback):
    """The kNN by epoch with the seconds so far, and the end at the target or when the time is over"""
    order = 46

    def __init__(self, a, keep): self.a, self.keep, self.rows, self.judging, self.why = a, keep, [], 0.0, "epochs"

    def before_fit(self): self.began = time.perf_counter()

    def after_train(self):
        epoch, a = self.epoch + 1, self.a
        sync()
        start = time.perf_counter()
        seconds = start - self.began - self.judging
        late = a.minutes is not None and start - self.began + a.decode_s > 60 * a.minutes
        if epoch % a.eval_every and epoch != self.n_epoch and not late: return
        knn = judged(self.learn)
        written = time.perf_counter()
        self.judging += written - start
        self.rows.append(dict(epoch=epoch, seconds=seconds, knn=knn))
        print(f"epoch {epoch}: kNN {knn:.2%} after {seconds:.1f} s", flush=True)
        self.why = "target" if knn >= a.target else "minutes" if late else "epochs"
        self.keep(self)
        self.judging += time.perf_counter() - written
        if self.why != "epochs": raise CancelFitException


def judged(learn) -> float:
    (h, y), (valid_h, valid_y) = learn.embed(learn.dls.train), learn.embed()
    return knn_accuracy(h.to(learn.dls.device), y, valid_h, valid_y)  # on the device


def fitting(a, dls, learn) -> int:
    """How many epochs, with their evaluations, fit into what is left of the minutes; at most `a.epochs`"""
    warm = min(8, len(dls.train) // 3)
    step = seconds_a_step(learn, warm, len(dls.train) - warm - 1 if len(dls.train) < 40 else 30)
    judged(learn)
    sync()
    start = time.perf_counter()
    judged(learn)
    epoch = len(dls.train) * step + (time.perf_counter() - start) / a.eval_every
    return max(1, min(a.epochs, int((0.9 * 60 * a.minutes - a.decode_s) / epoch)))


def draw(rows, target, path) -> None:
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.plot([r["seconds"] for r in rows], [r["knn"] for r in rows], marker=".")
    axis.axhline(target, color="grey", linestyle="--", linewidth=1)
    axis.set(xlabel="seconds of training", ylabel="kNN accuracy", xlim=(0, None))
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("data", help="a folder with train/ and val/ or test/, or 'digits'")
    arg.add_argument("--target", type=float, help="kNN accuracy, in (0, 1]")
    arg.add_argument("--method", choices=METHODS, default="simclr", metavar="METHOD", help=f"of {', '.join(METHODS)}")
    arg.add_argument("--with", dest="speedups", help="speedups, as on the command line of fastcontrast")
    arg.add_argument("--labels", help="share of the labels that speedups may use; none if not given")
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--size", type=int)
    arg.add_argument("--bs", type=int)
    arg.add_argument("--epochs", type=int)
    arg.add_argument("--lr", type=float, help="the recipe's, in proportion to the batch, if not given")
    arg.add_argument("--small-input", action=argparse.BooleanOptionalAction, default=None, help="the ResNets' stem for small pictures (by the setting if not given)")
    arg.add_argument("--precision", default="auto")
    arg.add_argument("--compile", action="store_true")
    arg.add_argument("--eval-every", type=int, default=1, help="epochs between evaluations")
    arg.add_argument("--minutes", type=float, help="of decoding, training and evaluation, after which the run ends")
    arg.add_argument("--seed", type=int, default=0)
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    name = Path(a.data).name
    known, trial = KNOWN.get(name, {}), a.epochs is None and a.minutes is not None and not a.compile
    for key in ("target", "size", "bs", "epochs"):
        if getattr(a, key) is None: setattr(a, key, known.get(key))
    lacking = [f"--{key}" for key in ("target", "bs", "epochs") if getattr(a, key) is None]
    if lacking: sys.exit(f"'{name}' is not a data set whose target is known: give {' '.join(lacking)}")
    sync()
    start = time.perf_counter()
    dls = image_dls(a.data, size=a.size, bs=a.bs, seed=a.seed, labels=float(a.labels) if a.labels else None, device=device())
    sync()
    a.decode_s = time.perf_counter() - start

    def learner():
        torch.manual_seed(a.seed)
        dls.train.epoch = 0
        return contrastive_learner(dls, a.arch, a.method, cbs=parse_speedups(a.speedups), small_input=a.small_input, precision=a.precision, compile=a.compile, knn_pictures=0)
    if trial and len(dls.train) > 2: a.epochs = fitting(a, dls, learner())
    learn = learner()
    text = "_".join([name, a.method, *("".join(c if c.isalnum() else " " for c in a.speedups or "").split())])
    file = f"time_to_knn_{text}_{device()}"
    untrained = judged(learn)
    print(f"{len(dls.train.data):,} pictures in {a.decode_s:.1f} s; kNN {untrained:.2%} untrained, target {a.target:.2%}, {a.epochs} epochs", flush=True)

    def keep(judge):
        rows = judge.rows
        hit = next((r for r in rows if r["knn"] >= a.target), None)
        save(file, dict({k: v for k, v in vars(a).items() if k != "out"}, data=name, model_precision=learn.precision, setting=learn.recipe.setting, small_stem=learn.small_input, notes=learn.notes,
             goal="reached within 300 s on an H100", lightly_s=60 * known["minutes_of_lightly"] if known else None, ended_by=judge.why, untrained_knn=untrained,
             best_knn=max([r["knn"] for r in rows], default=untrained), reached_s=hit and hit["seconds"], reached_epoch=hit and hit["epoch"], judging_s=judge.judging,
             images_per_s=rows[-1]["epoch"] * len(dls.train) * a.bs / rows[-1]["seconds"] if rows else None, curve=rows), a.out)
        draw([dict(seconds=0, knn=untrained), *rows], a.target, Path(a.out or RESULTS) / f"{file}.png")

    judge = Judge(a, keep)
    try:
        with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(a.epochs, lr=a.lr, cbs=judge)
    except InputError as e:
        judge.why = f"stopped: {e}"
        keep(judge)
    best = max([r["knn"] for r in judge.rows], default=math.nan)
    last = judge.rows[-1] if judge.rows else dict(seconds=math.nan, epoch=0)
    print(f"{a.method}: kNN {a.target:.2%} " + (f"reached after {last['seconds']:.1f} s of training, in epoch {last['epoch']}" if judge.why == "target"
          else f"not reached: {best:.2%} at best in {last['seconds']:.1f} s, ended by {judge.why}") + f"; decoding {a.decode_s:.1f} s, evaluation {judge.judging:.1f} s")


if __name__ == "__main__": main()
