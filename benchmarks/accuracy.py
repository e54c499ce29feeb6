"""How good the features get: of methods and speedups, in epochs, in seconds and in arithmetic."""
import dataclasses
import gc
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import (Group, Lacking, Run, chosen, embedded, environment, loss_temperature, seconds_a_step,
                    seconds_of, sync, table_of, train, turns, with_library, words)
from fastai.callback.core import Callback, CancelFitException
from matplotlib.figure import Figure
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from fastcontrast.all import (DCL, CombinePatches, Cost, HardRegions, InputError, IntermediateLoss, NTXent,
                              PartialBackprop, SuNCEt, contrastive_learner, fast_moco, few_label_accuracy,
                              image_dls, knn_accuracy, linear_probe, moco_v3, simclr)
from fastcontrast.cli.settings import parse_speedups
from fastcontrast.data import VALID_FOLDERS, stratified
from fastcontrast.evaluate.knn import pixels
from fastcontrast.evaluate.metrics import spread
from fastcontrast.recipes import METHODS

group = Group("accuracy", "How good the features get: of methods and speedups, in epochs, in seconds and in arithmetic")


# ---- what a newcomer gets ----


@group.measurement(quick=dict(seeds="0", epochs=1))
def digits(
    run: Run,
    seeds: str = "0,1,2",       # with commas between them
    method: str = "simclr",     # recipe
    epochs: int | None = None,  # the command line's if not given
) -> None:
    """What does `fastcontrast pretrain` achieve on the built-in digits, as a newcomer runs it, and in how long?

    Beside the trained encoder the controls that the command prints: raw pixels, and the untrained encoder. Goals:
    at most 180 s on two cores; kNN at least 0.95; a linear classifier on 10 labels a class at least 0.90.
    """
    rows = []
    for seed in words(seeds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "fastcontrast", "pretrain", "--seed", seed, "--method", method]
            command += ["--out", f"{folder}/run"] + (["--epochs", str(epochs)] if epochs else [])
            start = time.time()
            subprocess.run(command, check=True, env=with_library())
            config = json.loads(Path(folder, "run", "config.json").read_text())
            rows.append(dict(seed=int(seed), wall_s=round(time.time() - start, 1), epochs=config["epochs"],
                             batch_size=config["batch_size"], **config["results"]))
    run.save(dict(goal="180 s, kNN .95, few labels .90", runs=rows), method)


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
    small_input: bool | None = None, # the ResNets' stem for small pictures (by the setting if not given)
    setting: str = "",      # of the recipes: imagenet, cifar, digits (by the pictures if not given)
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
    small_input: bool | None = None, # the ResNets' stem for small pictures (by the setting if not given)
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


def needs(data: str) -> None:
    """Raise `Lacking` unless data are given, and there"""
    if not data: raise Lacking("it needs pictures: --data=FOLDER")
    if data != "digits" and not Path(data).is_dir(): raise Lacking(f"there is no folder '{data}'")


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
    small_input: bool | None = None, # the ResNets' stem for small pictures (by the setting if not given)
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
    step = seconds_a_step(learn, warm, batches - warm - 1 if batches < 40 else 30, lr=None)
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


@dataclasses.dataclass(frozen=True)
class Config:
    """A run: a method, its speedups, and what differs from the measurement's settings"""
    method: Callable
    speedups: Callable[[int], list] = lambda seed: []  # what makes them, with a seed
    dcl: bool = False          # DCL, at the temperature of the method's loss, in place of SimCLR's NT-Xent
    bs: int | None = None      # batch
    temp: float | None = None  # of the loss, instead of the recipe's
    share: float = 1.0         # of the epochs

    @property
    def figure(self) -> str:
        """The row of panels it is drawn in"""
        if self.method is not simclr: return "moco_v3"
        return "simclr" if self.bs is None else f"simclr, batch {self.bs}"


def _partial(seed): return [IntermediateLoss(), PartialBackprop(seed=seed)]
def _patches(seed): return [CombinePatches()]
def _suncet(seed): return [SuNCEt(seed=seed)]
def _regions(seed): return [HardRegions("layer2")]


def _sum(*makers): return lambda seed: [speedup for make in makers for speedup in make(seed)]


CONFIGS: dict[str, Config] = {
    "moco_v3": Config(moco_v3),
    "moco_v3+comb_patches": Config(moco_v3, _patches),
    "moco_v3+partial": Config(moco_v3, _partial),
    "moco_v3+regions": Config(moco_v3, lambda seed: [IntermediateLoss(), *_regions(seed)]),
    "moco_v3+all": Config(moco_v3, _sum(_partial, _patches, _regions)),
    "moco_v3+suncet": Config(moco_v3, _suncet),
    "fast_moco": Config(fast_moco),
    "simclr": Config(simclr),
    "simclr+suncet": Config(simclr, _suncet),
    "simclr+dcl": Config(simclr, dcl=True),
    "simclr bs16": Config(simclr, bs=16),
    "simclr+dcl bs16": Config(simclr, dcl=True, bs=16),
    "simclr bs64": Config(simclr, bs=64),
    "simclr+dcl bs64": Config(simclr, dcl=True, bs=64),
    **{f"simclr{'+dcl' * dcl} bs32 temp{temp}": Config(simclr, dcl=dcl, bs=32, temp=temp)
       for temp in (0.1, 0.2, 0.5) for dcl in (False, True)},
    "moco_v3+partial+regions": Config(moco_v3, _sum(_partial, _regions)),
    "fast_moco half": Config(fast_moco, share=0.5),
    "simclr+suncet half": Config(simclr, _suncet, share=0.5),
}
DEFAULT = [name for name in CONFIGS if " " not in name and name != "moco_v3+partial+regions"]
AXES = dict(epoch="epochs", seconds="seconds of training", tflop="TFLOP")


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
    small_input: bool | None = None, # the ResNets' stem for small pictures (by the setting if not given)
    setting: str = "",      # of the recipes: imagenet, cifar, digits (by the pictures if not given)
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
    configurations in turn instead, some steps of each in every round, and table and figure then use these.
    """
    if threads: torch.set_num_threads(threads)
    needs(data)
    names = chosen(configs, CONFIGS, "configuration")
    setting = setting or ("digits" if data == "digits" else "cifar" if size <= 64 else "imagenet")
    trial = Trial(run, data, arch, size, bs, epochs, small_input, setting, pictures, valid_pictures)
    if plot:
        if not trial.path.exists(): raise Lacking(f"there is no '{trial.path}' to draw")
        old = json.loads(trial.path.read_text())
        return draw(timed(old["rows"], old.get("epoch_s", {})), trial.path.with_suffix(".png"))
    if seconds: return trial.write(epoch_s=trial.seconds_of_epochs(names))
    start = time.perf_counter()
    for seed, name in product(map(int, words(seeds)), names):
        if any((r["config"], r["seed"]) == (name, seed) for r in trial.kept()["rows"]): continue
        if minutes and time.perf_counter() - start > 60 * minutes:
            return print(f"{minutes:g} minutes are over before {name}, seed {seed}")
        row = trial.train(name, seed, linear)
        row |= {k: v for k, v in environment(run.device).items() if k in ("device", "threads", "commit")}
        row["date"] = time.strftime("%Y-%m-%d")
        print(spelled_run(row), flush=True)
        trial.write(rows=[*trial.kept()["rows"], row])
        gc.collect()  # a learner and its callbacks hold each other


class Chosen(Dataset):
    """A stratified choice of the pictures in a folder"""
    def __init__(self, folder: Path, n: int):
        files = ImageFolder(folder)
        n = n or len(files)
        if n > len(files): raise Lacking(f"'{folder}' has {len(files)} pictures, not {n}")
        (index,) = stratified(torch.tensor(files.targets).numpy(), n / len(files), 0).nonzero()
        self.files, self.index, self.classes = files, index.tolist(), files.classes
        self.targets = [files.targets[i] for i in index]

    def __len__(self): return len(self.index)
    def __getitem__(self, i): return self.files[self.index[i]]


@dataclasses.dataclass
class Trial:
    """All runs of the same settings, and the file of their results"""
    run: Run
    data: str
    arch: str
    size: int
    bs: int
    epochs: int
    small_input: bool | None
    setting: str
    pictures: int
    valid_pictures: int
    sources: dict[str, Any] | None = None

    @property
    def labels(self) -> tuple[str, ...]: return Path(self.data).name, str(self.size), self.arch

    @property
    def path(self) -> Path: return self.run.file(*self.labels)

    def settings(self) -> dict[str, Any]:
        """What all runs of a file have in common"""
        result = dict(arch=self.arch, size=self.size, bs=self.bs, epochs=self.epochs, small_input=self.small_input,
                      setting=self.setting, data=Path(self.data).name)
        if self.data != "digits": result |= dict(pictures=self.pictures, valid_pictures=self.valid_pictures)
        return result

    def kept(self) -> dict[str, Any]:
        """The results of earlier runs: `rows`; `epoch_s` if it was measured; a `note` if somebody has written one"""
        if not self.path.exists(): return dict(rows=[])
        old = json.loads(self.path.read_text())
        differs = [f"{k} ({old.get(k)}, now {v})" for k, v in self.settings().items() if old.get(k) != v]
        if differs:
            raise Lacking(f"'{self.path}' has the results of other settings: {', '.join(differs)}; give another --out")
        return {k: v for k, v in old.items() if k in ("note", "rows", "epoch_s")}

    def write(self, **changed) -> None:
        """Write the results, those of other processes too"""
        results = self.kept() | changed
        rows = timed(results["rows"], results.get("epoch_s", {}))
        self.run.save(dict(self.settings(), table=table(rows), **results), *self.labels)

    def learner(self, name: str, seed: int) -> tuple[Any, list]:
        """The learner of a run, and its speedups"""
        self.sources = self.sources or self.find_sources()
        config = CONFIGS[name]
        torch.manual_seed(seed)
        speedups = config.speedups(seed)
        labels = 0.1 if any(isinstance(s, SuNCEt) for s in speedups) else None
        dls = image_dls(**self.sources, size=self.size, bs=config.bs or self.bs, labels=labels, seed=seed,
                        device=self.run.device)
        recipe = config.method(setting=self.setting)
        temp = config.temp or loss_temperature(recipe, self.setting)
        loss = DCL(temp) if config.dcl else NTXent(temp) if config.temp else None
        cbs = [*speedups, Cost()]
        return contrastive_learner(dls, self.arch, recipe, loss, cbs, small_input=self.small_input), speedups

    def find_sources(self) -> dict[str, Any]:
        """What `image_dls` takes"""
        if self.data == "digits": return dict(source="digits")
        root = Path(self.data)
        held = next((root / f for f in VALID_FOLDERS if (root / f).is_dir()), None)
        if held is None or not (root / "train").is_dir():
            raise Lacking(f"'{root}' needs the folders train/ and val/ or test/, of class folders")
        return dict(source=Chosen(root / "train", self.pictures), valid=Chosen(held, self.valid_pictures))

    def train(self, name: str, seed: int, linear: bool) -> dict[str, Any]:
        """A run's row; what stopped it instead of its last accuracies if it did not get to the end"""
        learn, speedups = self.learner(name, seed)
        row = dict(config=name, seed=seed, bs=learn.dls.train.bs, speedups=[repr(s) for s in speedups],
                   loss=repr(learn.loss_func.loss), small_input=learn.small_input, precision=learn.precision,
                   notes=learn.notes, untrained_knn=learn.knn())
        try: train(learn, max(1, round(CONFIGS[name].share * self.epochs)), lr=None)
        except InputError as e: row["stopped"] = str(e)
        rows, columns = table_of(learn), ("knn", "seconds", "tflop", "train_loss", "spread")
        row["epochs"] = [dict({c: r[c] for c in columns}, epoch=number) for number, r in enumerate(rows, 1)]
        if "stopped" in row: return row
        features = embedded(learn)
        row["knn"] = rows[-1]["knn"]
        row["few_labels"], row["few_labels_std"] = few_label_accuracy(*features, per_class=10)
        if linear: row["linear"] = linear_probe(features[0].to(learn.dls.device), *features[1:])
        return row

    def seconds_of_epochs(self, names: Iterable[str], steps: int = 10, rounds: int = 3) -> dict[str, list[float]]:
        """Seconds of an epoch of each configuration, by round, from some of its steps"""
        learners = {name: self.learner(name, 0)[0] for name in names}
        for learn in learners.values():
            learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, Cost)])  # it counts operations, which takes time
        got: dict[str, list[float]] = {name: [] for name in learners}
        for number, name in turns(learners, rounds):
            batches = len(learners[name].dls.train)
            got[name].append(batches * seconds_a_step(learners[name], 2, min(steps, batches - 3), lr=None))
            print(f"round {number + 1}: {name} {got[name][-1]:.1f} s", flush=True)
        return got


def timed(rows: list[dict], epoch_s: dict[str, list[float]]) -> list[dict]:
    """The rows with the seconds that were measured in turn, where there are some"""
    def epochs(row):
        if row["config"] not in epoch_s: return row["epochs"]
        return [dict(e, seconds=e["epoch"] * statistics.median(epoch_s[row["config"]])) for e in row["epochs"]]
    return [dict(row, epochs=epochs(row)) for row in rows]


def table(rows: list[dict]) -> list[dict]:
    """Means over the seeds; and what it took until the kNN was reached at which the figure's first method ends"""
    bases: dict[str, float] = {}  # by figure
    result = []
    for name, config in CONFIGS.items():
        runs = [r for r in rows if r["config"] == name and "stopped" not in r]
        columns = {k: zip(*([e[k] for e in r["epochs"]] for r in runs)) for k in ("knn", *AXES)}
        means = {k: [statistics.fmean(values) for values in rows] for k, rows in columns.items()}
        base = bases.setdefault(config.figure, means["knn"][-1] if runs else math.inf)
        if not runs: continue
        hit = next((i for i, v in enumerate(means["knn"]) if v >= base), None)
        row = dict(config=name, seeds=len(runs), knn=means["knn"][-1],
                   knn_std=statistics.stdev(r["knn"] for r in runs) if len(runs) > 1 else None,
                   few_labels=statistics.fmean(r["few_labels"] for r in runs), seconds=means["seconds"][-1],
                   tflop=means["tflop"][-1], **{f"{k}_to_base": None if hit is None else means[k][hit] for k in AXES})
        if all("linear" in r for r in runs): row["linear"] = statistics.fmean(r["linear"] for r in runs)
        result.append(row)
    return result


def draw(rows: list[dict], path: Path) -> None:
    """kNN against epochs, seconds and TFLOP: means over the seeds, within a band from the lowest to the highest; a
    row of panels for each base method"""
    rows = [r for r in rows if r["epochs"]]
    there = [name for name in CONFIGS if any(r["config"] == name for r in rows)]
    kinds = list(dict.fromkeys(CONFIGS[name].figure for name in there))
    figure = Figure(figsize=(13, 3.8 * len(kinds)), layout="constrained")
    for panels, kind in zip(figure.subplots(len(kinds), len(AXES), squeeze=False, sharey="row"), kinds):
        names = [name for name in there if CONFIGS[name].figure == kind]
        for axis, (x, label) in zip(panels, AXES.items()):
            for i, name in enumerate(names): draw_runs(axis, x, [r for r in rows if r["config"] == name], name, f"C{i}")
            axis.set(xlabel=label, xlim=(0, None))
            axis.grid(alpha=0.3)
        panels[0].set(ylabel="kNN accuracy", title=kind)
        panels[-1].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)
    print(f"figure in {path}")


def draw_runs(axis, x: str, runs: list[dict], name: str, color: str) -> None:
    """The line and the band of a configuration"""
    tables = list(zip(*(r["epochs"] for r in runs)))
    places = [0, *(statistics.fmean(e[x] for e in epoch) for epoch in tables)]
    knn = [[r["untrained_knn"] for r in runs], *([e["knn"] for e in epoch] for epoch in tables)]
    width = 1.5 if "+" in name else 2.5
    axis.plot(places, [statistics.fmean(v) for v in knn], color=color, linewidth=width, label=f"{name} ({len(runs)})")
    axis.fill_between(places, [min(v) for v in knn], [max(v) for v in knn], color=color, alpha=0.15, linewidth=0)


def spelled_run(row: dict[str, Any]) -> str:
    """What became of a run"""
    if "stopped" in row: return f"{row['config']}, seed {row['seed']}: stopped: {row['stopped']}"
    last = row["epochs"][-1]
    linear = f"all labels, linear {row['linear']:.1%}; " if "linear" in row else ""
    return (f"{row['config']}, seed {row['seed']}: kNN {row['untrained_knn']:.1%} untrained, {row['knn']:.1%}; "
            f"10 labels a class {row['few_labels']:.1%}; {linear}{last['seconds']:.0f} s, {last['tflop']:.3g} TFLOP")
