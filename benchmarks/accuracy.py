"""How good the features get: of methods and speedups, in epochs, in seconds and in arithmetic."""
import dataclasses
import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import (Group, Lacking, Run, chosen, embedded, hiding_gpus, seconds_a_step, seconds_of, steps_to_time, sync,
                    table_of, train, with_library, words)
from fastai.callback.core import Callback, CancelFitException
from matplotlib.figure import Figure
from trials import CONFIGS, Trial, needs

from fastcontrast.all import InputError, contrastive_learner, few_label_accuracy, image_dls, knn_accuracy
from fastcontrast.cli.settings import parse_speedups
from fastcontrast.evaluate.knn import pixels
from fastcontrast.evaluate.metrics import spread
from fastcontrast.recipes import METHODS

group = Group("accuracy", "How good the features get: of methods and speedups, in epochs, in seconds and in arithmetic")


# ---- what a newcomer gets ----


@group.measurement(quick=dict(seeds="0", epochs=1))
def digits(
    run: Run,
    seeds: str = "0,1,2",       # with commas between them
    method: str = "fast",       # recipe
    epochs: int | None = None,  # the command line's if not given
) -> None:
    """What does `fastcontrast pretrain` achieve on the built-in digits, as a newcomer runs it, and in how long?

    Beside the trained encoder the controls that the command prints: raw pixels, and the untrained encoder. Goals:
    at most 30 s of training on two cores; kNN at least 0.965; a linear classifier on 10 labels a class at least 0.95.
    """
    rows = []
    for seed in words(seeds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "fastcontrast", "pretrain", "--seed", seed, "--method", method]
            command += ["--out", f"{folder}/run"] + (["--epochs", str(epochs)] if epochs else [])
            start = time.time()
            subprocess.run(command, check=True, env=with_library(hiding_gpus(run.device)))
            config = json.loads(Path(folder, "run", "config.json").read_text())
            rows.append(dict(seed=int(seed), wall_s=round(time.time() - start, 1),
                             training_s=round(config["cost"]["seconds"], 1), epochs=config["epochs"],
                             batch_size=config["batch_size"], **config["results"]))
    run.save(dict(goal="30 s of training, kNN .965, few labels .95", runs=rows), method)


# ---- methods beside one another ----


@group.measurement(quick=dict(methods="moco_v2,byol", arch="test_resnet", size=8, bs=512, epochs=1, seeds="3",
                              small_input=False))
def methods(
    run: Run,
    data: str = "digits",   # 'digits', or a folder of class folders
    methods: str = "",      # with commas between them; all if not given
    arch: str = "resnet10t", # encoder
    size: int = 32,         # side of a picture
    bs: int = 64,           # batch
    epochs: int = 25,       # of each run
    seeds: str = "0",       # with commas between them
    small_input: bool | None = None, # the ResNets' stem for small pictures (up to 64 px if not given)
    setting: str = "",      # of the recipes: imagenet, cifar, small, digits (by the pictures if not given)
) -> None:
    """How do methods compare that are trained alike, and does any collapse?

    kNN accuracy, and for the digits that of a linear classifier on 10 labels a class, beside two controls: the
    pictures' pixels (at 32 px at most) and the encoder before training. Seconds are those of training alone. The
    spread of the features at the end (the standard deviation of their dimensions over the pictures, at length one)
    is 0 for collapsed ones and `even_spread` for evenly spread ones.
    """
    names = chosen(methods, METHODS, "method")
    compare(run, data, names, ["auto"], arch, size, bs, epochs, seeds, small_input, setting)


@group.measurement(quick=dict(arch="test_resnet", size=8, bs=512, epochs=1, seeds="3", precisions="fp32,fp32"))
def precision(
    run: Run,
    data: str = "digits",    # 'digits', or a folder of class folders
    method: str = "simclr",  # recipe
    precisions: str = "fp32,bf16", # of the model, with a comma between them
    arch: str = "resnet10t", # encoder
    size: int = 32,          # side of a picture
    bs: int = 64,            # batch
    epochs: int = 25,        # of each run
    seeds: str = "0,1,2",    # with commas between them
) -> None:
    """Does bfloat16 end where float32 does?

    The same method, trained alike in either, with each seed; accuracies as in `accuracy methods`.
    """
    compare(run, data, [method], words(precisions), arch, size, bs, epochs, seeds, None, "")


def compare(run: Run, data: str, names: list[str], precisions: list[str], arch: str, size: int, bs: int, epochs: int,
            seeds: str, small_input: bool | None, setting: str) -> None:
    """Train and judge every method in every precision with every seed; results are written after every run"""
    result: dict[str, Any] = dict(controls=[], rows=[])

    def keep(rows, row, name):
        rows.append(row)
        print(f"{name}, seed {row['seed']}: {spelled_row(row)}", flush=True)
        run.save(result, Path(data).name, arch)

    for seed in map(int, words(seeds)):
        dls = image_dls(data, size=size, bs=bs, seed=seed, device=run.device)

        def learner(method, precision="auto", dls=dls, seed=seed):
            torch.manual_seed(seed)
            dls.train.epoch = 0  # every method sees the pictures in the same order
            return contrastive_learner(dls, arch, METHODS[method](setting=setting or None), small_input=small_input,
                                       knn_pictures=0, precision=precision)
        small = min(size, 32)
        raw = judge(data, (*pixels(dls.train, small), *pixels(dls.valid, small)))
        keep(result["controls"], dict(features="raw pixels", seed=seed, **raw), "raw pixels")
        untrained = judge(data, embedded(learner(names[0])))
        keep(result["controls"], dict(features="untrained encoder", seed=seed, **untrained), "untrained encoder")
        for method, precision in product(names, precisions):
            row = trained(learner(method, precision), method, seed, data, epochs)
            keep(result["rows"], row, f"{method}, {row['precision']}")
            gc.collect()  # a learner and its callbacks hold each other, and the GPU's memory


def judge(data: str, features: tuple) -> dict[str, float]:
    """Accuracies from the features and labels of both parts"""
    result = dict(knn=knn_accuracy(*features))
    if data == "digits": result["few_labels"], result["few_labels_std"] = few_label_accuracy(*features, per_class=10)
    return result


def trained(learn, method: str, seed: int, data: str, epochs: int) -> dict[str, Any]:
    """A run's row; what stopped it instead of its accuracies if it did not get to the end"""
    row = dict(method=method, seed=seed, precision=learn.precision, setting=learn.recipe.setting,
               small_input=learn.small_input, notes=learn.notes)
    try: seconds = seconds_of(lambda: train(learn, epochs, lr=None))
    except InputError as e: return dict(row, stopped=str(e))
    images, features = epochs * len(learn.dls.train) * learn.dls.train.bs, embedded(learn)
    return dict(row, seconds=seconds, images_per_s=images / seconds, spread=spread(features[0]),
                even_spread=features[0].shape[1] ** -0.5, **judge(data, features))


def spelled_row(row: dict[str, Any]) -> str:
    """What became of a run"""
    if "stopped" in row: return f"stopped: {row['stopped']}"
    text = f"kNN {row['knn']:.1%}"
    if "few_labels" in row: text += f", 10 labels a class {row['few_labels']:.1%} ± {row['few_labels_std']:.1%}"
    if "seconds" not in row: return text
    share = row["spread"] / row["even_spread"]
    return f"{text}, {row['seconds']:.0f} s, {row['images_per_s']:.0f} images/s, spread {share:.2f} of even"


# ---- a curve ----


@group.measurement(quick=dict(data="digits", arch="test_resnet", size=16, bs=256, epochs=1, small_input=False))
def curves(
    run: Run,
    data: str = "",         # folder of class folders
    method: str = "simclr", # recipe
    arch: str = "resnet18", # encoder
    size: int = 32,         # side of a picture
    bs: int = 256,          # batch
    epochs: int = 3,        # of the run
    small_input: bool | None = None, # the ResNets' stem for small pictures (up to 64 px if not given)
) -> None:
    """Does a method learn something in a few epochs of a folder of pictures?

    kNN accuracy by epoch, beside the untrained encoder and raw pixels.
    """
    needs(data)
    torch.manual_seed(0)
    dls = image_dls(data, size=size, bs=bs, device=run.device)
    learn = contrastive_learner(dls, arch, method, small_input=small_input)
    raw, untrained = knn_accuracy(*pixels(dls.train, size), *pixels(dls.valid, size)), learn.knn()
    print(f"raw pixels {raw:.1%}, untrained {untrained:.1%}", flush=True)
    start = time.time()
    learn.fit_contrastive(epochs)
    seconds = round(time.time() - start, 1)
    trained_knn = learn.knn()
    print(f"trained {trained_knn:.1%} in {seconds} s")
    run.save(dict(raw_pixels_knn=raw, untrained_knn=untrained, epochs_table=table_of(learn), fit_s=seconds,
                  trained_knn=trained_knn), method, Path(data).name)


# ---- time to an accuracy ----

KNOWN = {"imagenette-128": dict(target=0.835, size=128, bs=256, epochs=200, minutes_of_lightly=50),
         "cifar10": dict(target=0.847, size=32, bs=256, epochs=80, minutes_of_lightly=98)}


@group.measurement(quick=dict(data="digits", target=0.2, arch="test_resnet", size=16, bs=512, epochs=3,
                              speedups="intermediate"))
def time_to_knn(
    run: Run,
    data: str = "",          # a folder with train/ and val/ or test/, or 'digits'
    target: float | None = None, # kNN accuracy, in (0, 1]; known for some data sets
    method: str = "simclr",  # recipe
    speedups: str = "",      # as on the command line of fastcontrast: "partial, regions"
    labels: float | None = None, # share of the labels that speedups may use; none if not given
    arch: str = "resnet18",  # encoder
    size: int | None = None, # side of a picture; known for some data sets
    bs: int | None = None,   # batch; known for some data sets
    epochs: int | None = None, # of the run, at most; known for some data sets
    lr: float | None = None, # the recipe's, in proportion to the batch, if not given
    small_input: bool | None = None, # the ResNets' stem for small pictures (up to 64 px if not given)
    precision: str = "auto", # of the model
    compile: bool = False,   # with torch.compile
    eval_every: int = 1,     # epochs between evaluations
    minutes: float | None = None, # of decoding, training and evaluation, after which the run ends
    seed: int = 0,           # of weights and views
) -> None:
    """How many seconds of training does it take until the kNN accuracy on the held-out part reaches a target?

    On the clock is everything that a user of `fit_contrastive` waits for, but for the kNN evaluation after every
    `eval_every` epochs (and writing its result), whose seconds are given beside, as are those of decoding the
    pictures at the start. The kNN is over all pictures of both parts. The run ends at the target, after its last
    epoch or when the minutes are over, and what was reached is written after every evaluation. The learning rate
    falls to 0 over the epochs, so fewer of them may be faster. If only minutes are given they are as many as fit
    in, by a trial of a few steps before the clock starts (not with --compile, whose minute would be lost).

    Data sets it knows (by the folder's name), with what lightly's SimCLR reaches after 200 epochs on one A6000, the
    target:

    \b
        imagenette-128    83.5 % (50 min); goal: at most 5 min on one H100
        cifar10           84.7 % (98 min); goal: at most 5 min on one H100
    """
    needs(data)
    name = Path(data).name
    known = KNOWN.get(name, {})
    trial = epochs is None and minutes is not None and not compile
    size = size or known.get("size")
    asked = {key: value or known.get(key) for key, value in dict(target=target, bs=bs, epochs=epochs).items()}
    if lacking := [f"--{key}" for key, value in asked.items() if value is None]:
        raise Lacking(f"'{name}' is not a data set whose target is known: give {' '.join(lacking)}")
    target, bs, epochs = asked.values()
    sync()
    start = time.perf_counter()
    dls = image_dls(data, size=size, bs=bs, seed=seed, labels=labels, device=run.device)
    sync()
    budget = Budget(target, eval_every, minutes, time.perf_counter() - start)

    def learner():
        torch.manual_seed(seed)
        dls.train.epoch = 0
        return contrastive_learner(dls, arch, method, cbs=parse_speedups(speedups or None), small_input=small_input,
                                   precision=precision, compile=compile, knn_pictures=0)
    if trial and len(dls.train) > 2: epochs = fitting(budget, epochs, learner())
    learn = learner()
    untrained = judged(learn)
    print(f"{len(dls.train.data):,} pictures in {budget.decode_s:.1f} s; kNN {untrained:.2%} untrained, "
          f"target {target:.2%}, {epochs} epochs", flush=True)

    def keep(judge):
        rows = judge.rows
        hit = next((r for r in rows if r["knn"] >= target), None)
        speed = rows[-1]["epoch"] * len(dls.train) * bs / rows[-1]["seconds"] if rows else None
        path = run.save(dict(
            goal="reached within 300 s on an H100", data=name, target=target, size=size, bs=bs, epochs=epochs,
            decode_s=budget.decode_s, model_precision=learn.precision, setting=learn.recipe.setting,
            small_stem=learn.small_input, notes=learn.notes, ended_by=judge.reason, untrained_knn=untrained,
            lightly_s=60 * known["minutes_of_lightly"] if known else None,
            best_knn=max([r["knn"] for r in rows], default=untrained), reached_s=hit and hit["seconds"],
            reached_epoch=hit and hit["epoch"], judging_s=judge.judging, images_per_s=speed, curve=rows),
            name, method, *"".join(c if c.isalnum() else " " for c in speedups).split())
        draw_curve([dict(seconds=0, knn=untrained), *rows], target, path.with_suffix(".png"))

    judge = Judge(budget, keep)
    try: train(learn, epochs, lr=lr, cbs=judge)
    except InputError as e:
        judge.reason = f"stopped: {e}"
        keep(judge)
    print(f"{method}: kNN {target:.2%} {judge.outcome()}; decoding {budget.decode_s:.1f} s, "
          f"evaluation {judge.judging:.1f} s")


@dataclasses.dataclass
class Budget:
    """What a run to a target may take"""
    target: float
    eval_every: int       # epochs
    minutes: float | None # of everything
    decode_s: float       # that are gone


class Judge(Callback):
    """The kNN by epoch with the seconds so far, and the end at the target or when the time is over"""
    order = 46

    def __init__(self, budget: Budget, keep: Callable[['Judge'], None]):
        self.budget, self.keep, self.rows, self.judging, self.reason = budget, keep, [], 0.0, "epochs"

    def before_fit(self): self.began = time.perf_counter()

    def after_train(self):
        epoch, budget = self.epoch + 1, self.budget
        sync()
        start = time.perf_counter()
        seconds = start - self.began - self.judging
        late = budget.minutes is not None and start - self.began + budget.decode_s > 60 * budget.minutes
        if epoch % budget.eval_every and epoch != self.n_epoch and not late: return
        knn = judged(self.learn)
        written = time.perf_counter()
        self.judging += written - start
        self.rows.append(dict(epoch=epoch, seconds=seconds, knn=knn))
        print(f"epoch {epoch}: kNN {knn:.2%} after {seconds:.1f} s", flush=True)
        self.reason = "target" if knn >= budget.target else "minutes" if late else "epochs"
        self.keep(self)
        self.judging += time.perf_counter() - written
        if self.reason != "epochs": raise CancelFitException

    def outcome(self) -> str:
        """How the run ended, for a line"""
        last = self.rows[-1] if self.rows else dict(seconds=math.nan, epoch=0)
        if self.reason == "target": return f"reached after {last['seconds']:.1f} s, in epoch {last['epoch']}"
        best = max([row["knn"] for row in self.rows], default=math.nan)
        return f"not reached: {best:.2%} at best in {last['seconds']:.1f} s, ended by {self.reason}"


def judged(learn) -> float:
    """The kNN accuracy over all pictures, on the device"""
    h, y, valid_h, valid_y = embedded(learn)
    return knn_accuracy(h.to(learn.dls.device), y, valid_h, valid_y)


def fitting(budget: Budget, epochs: int, learn) -> int:
    """How many epochs, with their evaluations, fit into what is left of the minutes; at most `epochs`"""
    batches = len(learn.dls.train)
    warm = min(8, batches // 3)
    step = seconds_a_step(learn, warm, steps_to_time(learn, warm, 30), lr=None)
    judged(learn)
    epoch = batches * step + seconds_of(lambda: judged(learn)) / budget.eval_every
    return max(1, min(epochs, int((0.9 * 60 * budget.minutes - budget.decode_s) / epoch)))


def draw_curve(rows: list[dict], target: float, path: Path) -> None:
    """kNN against seconds, with the target"""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.plot([r["seconds"] for r in rows], [r["knn"] for r in rows], marker=".")
    axis.axhline(target, color="grey", linestyle="--", linewidth=1)
    axis.set(xlabel="seconds of training", ylabel="kNN accuracy", xlim=(0, None))
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


# ---- speedups beside their base ----


DEFAULT = [name for name in CONFIGS if " " not in name and name != "moco_v3+partial+regions"]


@group.measurement(quick=dict(arch="test_resnet", configs="moco_v3+all,simclr+suncet", bs=512, epochs=1, seeds="3"))
def speedups(
    run: Run,
    data: str = "digits",   # 'digits', or a folder with train/ and val/ or test/
    configs: str = ",".join(DEFAULT), # methods with speedups, with commas between them
    arch: str = "resnet10t", # encoder
    size: int = 32,         # side of a picture
    bs: int = 64,           # batch
    epochs: int = 10,       # of each run
    seeds: str = "0,1,2",   # with commas between them
    pictures: int = 5000,   # of a folder's train/; 0: all
    valid_pictures: int = 1000, # of a folder's val/ or test/; 0: all
    small_input: bool | None = None, # the ResNets' stem for small pictures (up to 64 px if not given)
    setting: str = "",      # of the recipes: imagenet, cifar, small, digits (by the pictures if not given)
    linear: bool = False,   # judge the features by a linear classifier with all labels, too
    minutes: float | None = None, # after which no further run begins
    threads: int | None = None, # of PyTorch on the CPU
    seconds: bool = False,  # train nothing, and measure in turn what an epoch of each takes
    plot: bool = False,     # train nothing, and draw the results that are there
) -> None:
    """What do the speedups do to accuracy, against epochs, seconds of training and arithmetic?

    Every configuration trains with its base method's recipe, with the same pictures and epochs for all; kNN is
    judged after every epoch. The results are written after every run; started again with the same --out, it goes on
    with the runs that are not there yet, so several may share a folder if their seeds or configs differ. A folder
    of pictures is cut down to a stratified choice, always the same one. SuNCEt sees the labels of a tenth of the
    training pictures; kNN uses all.

    `..._to_base` in the table is what it took until the kNN was reached at which the base method ends. Runs that
    were made at different times, beside other work, have seconds that can't be compared: --seconds measures all
    configurations in turn instead, some steps of each in every round, and table and figure then use these; --configs
    has to name all that have run.
    """
    if threads: torch.set_num_threads(threads)
    needs(data)
    names = chosen(configs, CONFIGS, "configuration")
    trial = Trial(run, data, arch, size, bs, epochs, small_input, setting, pictures, valid_pictures)
    if plot: return trial.draw()
    if seconds: return trial.time_epochs(names)
    trial.sit(names, map(int, words(seeds)), linear, minutes)
