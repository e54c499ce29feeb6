"""What the speedups do to accuracy: kNN after every epoch against epochs, seconds of training and floating-point operations.

Every configuration trains with its base method's recipe, with the same pictures and epochs for all. The results are
written after every run; started again with the same --out, the program goes on with the runs that are not there yet, so
several of it may share a folder if their --seeds or --configs differ. A folder of pictures is cut down to a stratified
choice of --pictures, always the same one (0: all of them). SuNCEt sees the labels of a tenth of the training pictures; kNN uses all.

Runs that were made at different times, beside other work, have seconds that can't be compared. With --time the program measures
all configurations in turn instead, some steps of each in every round, and the table and the figure then use these seconds.

    python benchmarks/speedups_accuracy.py digits --size 64 --epochs 6 --threads 1
    python benchmarks/speedups_accuracy.py digits --size 64 --epochs 6 --time   # on a machine that does nothing else
    python benchmarks/speedups_accuracy.py data/cifar10 --no-small-input --epochs 8 --seeds 0 1 --configs moco_v3 moco_v3+all --threads 1
    python benchmarks/speedups_accuracy.py digits --plot       # draw what is there, train nothing
"""
import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import RESULTS, device, environment, save, seconds_a_step
from matplotlib.figure import Figure
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from fastcontrast.all import (DCL, CombinePatches, HardRegions, InputError, IntermediateLoss, NTXent, PartialBackprop, contrastive_learner, fast_moco,
                              few_label_accuracy, image_dls, linear_probe, moco_v3, simclr)
from fastcontrast.data import VALID_FOLDERS, stratified
from fastcontrast.evaluate.cost import Cost
from fastcontrast.speedups.suncet import SuNCEt


@dataclass(frozen=True)
class Config:
    method: Callable
    speedups: Callable[[int], list] = lambda seed: []  # what makes them, with a seed
    dcl: bool = False  # DCL, at the temperature of the method's loss, in place of SimCLR's NT-Xent
    bs: int | None = None  # instead of the program's
    temp: float | None = None  # of the loss, instead of the recipe's
    share: float = 1.0  # of the program's epochs

    @property
    def figure(self) -> str: return "moco_v3" if self.method is not simclr else "simclr" if self.bs is None else f"simclr, batch {self.bs}"


def _partial(seed): return [IntermediateLoss(), PartialBackprop(seed=seed)]


CONFIGS: dict[str, Config] = {
    "moco_v3": Config(moco_v3),
    "moco_v3+comb_patches": Config(moco_v3, lambda seed: [CombinePatches(seed=seed)]),
    "moco_v3+partial": Config(moco_v3, _partial),
    "moco_v3+regions": Config(moco_v3, lambda seed: [IntermediateLoss(), HardRegions("layer2")]),
    "moco_v3+all": Config(moco_v3, lambda seed: [*_partial(seed), CombinePatches(seed=seed), HardRegions("layer2")]),
    "moco_v3+suncet": Config(moco_v3, lambda seed: [SuNCEt(seed=seed)]),
    "fast_moco": Config(fast_moco),
    "simclr": Config(simclr),
    "simclr+suncet": Config(simclr, lambda seed: [SuNCEt(seed=seed)]),
    "simclr+dcl": Config(simclr, dcl=True),
    **{f"simclr{'+dcl' * dcl} bs{bs}": Config(simclr, dcl=dcl, bs=bs) for bs in (16, 64) for dcl in (False, True)},
    **{f"simclr{'+dcl' * dcl} bs32 temp{temp}": Config(simclr, dcl=dcl, bs=32, temp=temp) for temp in (0.1, 0.2, 0.5) for dcl in (False, True)},
    "moco_v3+partial+regions": Config(moco_v3, lambda seed: [*_partial(seed), HardRegions("layer2")]),
    "fast_moco half": Config(fast_moco, share=0.5),
    "simclr+suncet half": Config(simclr, lambda seed: [SuNCEt(seed=seed)], share=0.5),
}
DEFAULT = [name for name in CONFIGS if " " not in name and name != "moco_v3+partial+regions"]
AXES = dict(epoch="epochs", seconds="seconds of training", tflop="TFLOP")


class Chosen(Dataset):
    """A stratified choice of the pictures in a folder"""
    def __init__(self, folder, n):
        files = ImageFolder(folder)
        n = n or len(files)
        if n > len(files): sys.exit(f"'{folder}' has {len(files)} pictures, not {n}: give other --pictures or --valid-pictures")
        (at,) = stratified(torch.tensor(files.targets).numpy(), n / len(files), 0).nonzero()
        self.files, self.at, self.classes, self.targets = files, at.tolist(), files.classes, [files.targets[i] for i in at]

    def __len__(self): return len(self.at)
    def __getitem__(self, i): return self.files[self.at[i]]


def pictures(a):
    """What `image_dls` takes"""
    if a.data == "digits": return dict(source="digits")
    root = Path(a.data)
    held = next((root / f for f in VALID_FOLDERS if (root / f).is_dir()), None)
    if held is None or not (root / "train").is_dir(): sys.exit(f"'{root}' needs the folders train/ and val/ or test/, of class folders")
    return dict(source=Chosen(root / "train", a.pictures), valid=Chosen(held, a.valid_pictures))


def learner(a, data, name, seed):
    """The learner of a run, and its speedups"""
    config = CONFIGS[name]
    torch.manual_seed(seed)
    speedups = config.speedups(seed)
    labels = 0.1 if any(isinstance(s, SuNCEt) for s in speedups) else None
    dls = image_dls(**data, size=a.size, bs=config.bs or a.bs, labels=labels, seed=seed, device=device())
    recipe = config.method(setting=a.setting)
    temp = config.temp or recipe.resolve(a.setting).loss().temp
    loss = DCL(temp) if config.dcl else NTXent(temp) if config.temp else None
    return contrastive_learner(dls, a.arch, recipe, loss, [*speedups, Cost()], small_input=a.small_input), speedups


def train(a, data, name, seed) -> dict:
    """A run's row; what stopped it instead of its last accuracies if it did not get to the end"""
    learn, speedups = learner(a, data, name, seed)
    row = dict(config=name, seed=seed, bs=learn.dls.train.bs, speedups=[repr(s) for s in speedups], loss=repr(learn.loss_func.loss), small_input=learn.small_input, precision=learn.precision,
               notes=learn.notes, untrained_knn=learn.knn())
    try:
        with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(max(1, round(CONFIGS[name].share * a.epochs)))
    except InputError as e: row["stopped"] = str(e)
    names = learn.recorder.metric_names[1:-1]  # without epoch and time
    table = [dict(zip(names, values, strict=True)) for values in learn.recorder.values]
    row.update(epochs=[dict({c: r[c] for c in ("knn", "seconds", "tflop", "train_loss", "std")}, epoch=i) for i, r in enumerate(table, 1)])
    if "stopped" not in row:
        row["knn"] = table[-1]["knn"]
        features = *learn.embed(learn.dls.train), *learn.embed()
        row["few_labels"], row["few_labels_std"] = few_label_accuracy(*features, per_class=10)
        if a.linear: row["linear"] = linear_probe(features[0].to(learn.dls.device), *features[1:])
    return row


def time_epochs(a, data, steps=10, rounds=3) -> dict[str, list[float]]:
    """Seconds of an epoch of each configuration, by round, from some of its steps"""
    learners = {name: learner(a, data, name, 0)[0] for name in a.configs}
    for learn in learners.values(): learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, Cost)])  # it counts operations, which takes time
    got: dict[str, list[float]] = {name: [] for name in learners}
    for r in range(rounds):
        for name in list(learners)[::1 if r % 2 else -1]:
            learn = learners[name]
            got[name].append(seconds_a_step(learn, 2, min(steps, len(learn.dls.train) - 3)) * len(learn.dls.train))
        print(f"round {r + 1}: " + ", ".join(f"{name} {v[-1]:.1f} s" for name, v in got.items()), flush=True)
    return got


def timed(rows, epoch_s) -> list[dict]:
    """The rows with the seconds that were measured in turn, where there are some"""
    def seconds(row):
        if row["config"] not in epoch_s: return row["epochs"]
        return [dict(e, seconds=e["epoch"] * statistics.median(epoch_s[row["config"]])) for e in row["epochs"]]
    return [dict(row, epochs=seconds(row)) for row in rows]


def kept(path, settings) -> dict:
    """The results of earlier runs: `rows`; `epoch_s` if it was measured; and a `note`, if somebody has written one into them"""
    if not path.exists(): return dict(rows=[])
    old = json.loads(path.read_text())
    differs = [f"{k} ({old.get(k)}, now {v})" for k, v in settings.items() if old.get(k) != v]
    if differs: sys.exit(f"'{path}' has the results of other settings: {', '.join(differs)}; give another --out")
    return {k: v for k, v in old.items() if k in ("note", "rows", "epoch_s")}


def table(rows) -> list[dict]:
    """Means over the seeds; and epochs, seconds and TFLOP until the kNN at which the figure's first method ends was reached, where it was"""
    bases: dict[str, float] = {}  # by figure
    result = []
    for name, config in CONFIGS.items():
        runs = [r for r in rows if r["config"] == name and "stopped" not in r]
        means = {k: [statistics.fmean(v) for v in zip(*([e[k] for e in r["epochs"]] for r in runs))] for k in ("knn", *AXES)}
        base = bases.setdefault(config.figure, means["knn"][-1] if runs else math.inf)
        if not runs: continue
        at = next((i for i, v in enumerate(means["knn"]) if v >= base), None)
        result.append(dict(config=name, seeds=len(runs), knn=means["knn"][-1], knn_std=statistics.stdev(r["knn"] for r in runs) if len(runs) > 1 else None,
                           few_labels=statistics.fmean(r["few_labels"] for r in runs),
                           **(dict(linear=statistics.fmean(r["linear"] for r in runs)) if all("linear" in r for r in runs) else {}), seconds=means["seconds"][-1], tflop=means["tflop"][-1],
                           **{f"{k}_to_base": None if at is None else means[k][at] for k in AXES}))
    return result


def draw(rows, path) -> None:
    """kNN against epochs, seconds and TFLOP: means over the seeds, within a band from the lowest to the highest; a row of panels for each base method"""
    rows = [r for r in rows if r["epochs"]]
    kinds = list(dict.fromkeys(CONFIGS[name].figure for name in CONFIGS if any(r["config"] == name for r in rows)))
    figure = Figure(figsize=(13, 3.8 * len(kinds)), layout="constrained")
    for panels, kind in zip(figure.subplots(len(kinds), len(AXES), squeeze=False, sharey="row"), kinds):
        names = [n for n in CONFIGS if CONFIGS[n].figure == kind and any(r["config"] == n for r in rows)]
        for axis, (x, label) in zip(panels, AXES.items()):
            for i, name in enumerate(names):
                runs = [r for r in rows if r["config"] == name]
                tables = list(zip(*(r["epochs"] for r in runs)))
                at = [0, *(statistics.fmean(e[x] for e in epoch) for epoch in tables)]
                knn = [[r["untrained_knn"] for r in runs], *([e["knn"] for e in epoch] for epoch in tables)]
                axis.plot(at, [statistics.fmean(v) for v in knn], color=f"C{i}", linewidth=2.5 if "+" not in name else 1.5, label=f"{name} ({len(runs)})")
                axis.fill_between(at, [min(v) for v in knn], [max(v) for v in knn], color=f"C{i}", alpha=0.15, linewidth=0)
            axis.set(xlabel=label, xlim=(0, None))
            axis.grid(alpha=0.3)
        panels[0].set(ylabel="kNN accuracy", title=kind)
        panels[-1].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)
    print(f"figure in {path}")


def line(row):
    if "stopped" in row: return f"{row['config']}, seed {row['seed']}: stopped: {row['stopped']}"
    last = row["epochs"][-1]
    return (f"{row['config']}, seed {row['seed']}: kNN {row['untrained_knn']:.1%} untrained, {row['knn']:.1%}; 10 labels a class {row['few_labels']:.1%}; "
            f"{'all labels, linear {:.1%}; '.format(row['linear']) if 'linear' in row else ''}"
            f"{last['seconds']:.0f} s, {last['tflop']:.3g} TFLOP")


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("data", help="'digits', or a folder with train/ and val/ or test/")
    arg.add_argument("--configs", nargs="+", choices=CONFIGS, default=DEFAULT, metavar="CONFIG", help=f"of {', '.join(repr(c) if ' ' in c else c for c in CONFIGS)}")
    arg.add_argument("--arch", default="resnet10t")
    arg.add_argument("--size", type=int, default=32)
    arg.add_argument("--bs", type=int, default=64)
    arg.add_argument("--epochs", type=int, default=10)
    arg.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arg.add_argument("--pictures", type=int, default=5000, help="of a folder's train/")
    arg.add_argument("--valid-pictures", type=int, default=1000, help="of a folder's val/ or test/")
    arg.add_argument("--small-input", action=argparse.BooleanOptionalAction, default=None, help="the ResNets' stem for small pictures (by the setting if not given)")
    arg.add_argument("--setting", help="of the recipes: imagenet, cifar, digits (by the pictures if not given)")
    arg.add_argument("--linear", action="store_true", help="judge the features by a linear classifier with all labels, too")
    arg.add_argument("--minutes", type=float, help="after which no further run begins")
    arg.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    arg.add_argument("--time", action="store_true", help="train nothing, and measure what an epoch takes")
    arg.add_argument("--plot", action="store_true", help="draw the results that are there, and train nothing")
    arg.add_argument("--out", help="folder for the results and the figure")
    a = arg.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    a.setting = a.setting or ("digits" if a.data == "digits" else "cifar" if a.size <= 64 else "imagenet")
    file = f"speedups_accuracy_{Path(a.data).name}_{a.size}_{a.arch}_{device()}"
    path = Path(a.out or RESULTS) / f"{file}.json"
    if a.plot:
        if not path.exists(): sys.exit(f"there is no '{path}' to draw")
        old = json.loads(path.read_text())
        return draw(timed(old["rows"], old.get("epoch_s", {})), path.with_suffix(".png"))
    settings = {k: v for k, v in vars(a).items() if k in ("arch", "size", "bs", "epochs", "small_input", "setting")} | dict(data=Path(a.data).name)
    if a.data != "digits": settings.update(pictures=a.pictures, valid_pictures=a.valid_pictures)

    def write(**changed):
        results = kept(path, settings) | changed  # read again: another process may have written to it
        save(file, dict(settings, table=table(timed(results["rows"], results.get("epoch_s", {}))), **results), a.out)
    if a.time: return write(epoch_s=time_epochs(a, pictures(a)))
    data, start = None, time.perf_counter()
    for seed in a.seeds:
        for name in a.configs:
            if any((r["config"], r["seed"]) == (name, seed) for r in kept(path, settings)["rows"]): continue
            if a.minutes and time.perf_counter() - start > 60 * a.minutes: return print(f"{a.minutes:g} minutes are over before {name}, seed {seed}")
            data = data or pictures(a)
            row = train(a, data, name, seed)
            row |= {k: v for k, v in environment().items() if k in ("device", "threads", "commit", "date")}
            print(line(row), flush=True)
            write(rows=[*kept(path, settings)["rows"], row])
            gc.collect()  # a learner and its callbacks hold each other


if __name__ == "__main__": main()
