"""Runs of one configuration beside another, seed by seed: what trains them, and the file, table and figure of their
results, to which several sittings add."""
import dataclasses
import gc
import json
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import (Lacking, Run, embedded, environment, loss_temperature, seconds_a_step, steps_to_time, table_of,
                    train, turns)
from fastai.callback.core import Callback
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from tried import TRIED

from fastcontrast.all import (DCL, Cost, InputError, NTXent, ProgressiveSize, SuNCEt, ViewKind,
                              contrastive_learner, few_label_accuracy, image_dls, linear_probe)
from fastcontrast.cli.settings import parse_speedups
from fastcontrast.data import VALID_FOLDERS, stratified
from fastcontrast.files import write_whole
from fastcontrast.recipes import METHODS, pick_setting

AXES = dict(epoch="epochs", seconds="seconds of training", tflop="TFLOP")


# ---- configurations ----


@dataclasses.dataclass(frozen=True)
class Config:
    """A run: a method, its speedups, and what differs from the measurement's settings"""
    method: str                # recipe
    speedups: str = ""         # as on the command line of fastcontrast; '{seed}' stands for the run's
    dcl: bool = False          # DCL, at the temperature of the method's loss, in place of SimCLR's NT-Xent
    bs: int | None = None      # batch
    temp: float | None = None  # of the loss, instead of the recipe's
    share: float = 1.0         # of the epochs
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the recipe
    more: Callable[[], Callback] | None = None  # another callback

    @property
    def figure(self) -> str:
        """The row of panels it is drawn in"""
        if self.method in ("moco_v3", "fast_moco"): return "moco_v3"
        return "simclr" if self.bs is None else f"simclr, batch {self.bs}"

    def recipe(self, setting: str | None) -> Any:
        """With its changes"""
        return METHODS[self.method](setting=setting, **self.changes)

    def with_seed(self, seed: int) -> str:
        """Its speedups, as they are written"""
        return self.speedups.format(seed=seed)

    def make_speedups(self, seed: int) -> list[Callback]:
        """New ones"""
        return parse_speedups(self.with_seed(seed)) + ([self.more()] if self.more else [])

    def make_loss(self, setting: str | None) -> torch.nn.Module | None:
        """The loss; None: the recipe's"""
        if not self.dcl and not self.temp: return None
        temp = self.temp or loss_temperature(self.recipe(setting), setting)
        return DCL(temp) if self.dcl else NTXent(temp)


PARTIAL = "intermediate, partial(seed={seed})"
PATCHES = "comb_patches"
REGIONS = "regions('layer2')"
SUNCET = "suncet(seed={seed})"
SEVERAL, GROWING = METHODS["fast"].recipe.speedups
AT_TWO_THIRDS = partial(ProgressiveSize, GROWING.keywords["end"], end=GROWING.keywords["end"])
# lightly's benchmark of Imagenette, at the best of three rates of its own (`race`)
AS_LIGHTLY = dict(projector=(512, 128), loss=partial(NTXent, 0.5), opt="sgd", lr=0.12, wd=5e-4, wd_all=True, warmup=0,
                  views=ViewKind(jitter=(0.4, 0.4, 0.4, 0.1)))
LARS = dict(opt="lars", lr=0.4, wd=1e-4, opt_args=dict(trust_coeff=0.02, trust_clip=True))  # of `cifar`
CONFIGS: dict[str, Config] = {
    "moco_v3": Config("moco_v3"),
    "moco_v3+comb_patches": Config("moco_v3", PATCHES),
    "moco_v3+partial": Config("moco_v3", PARTIAL),
    "moco_v3+intermediate": Config("moco_v3", "intermediate"),
    "moco_v3+regions": Config("moco_v3", f"intermediate, {REGIONS}"),
    **{f"moco_v3+regions {score}": Config("moco_v3", f"intermediate, regions('layer2', score='{score}')")
       for score in ("loss", "unlike", "texture", "disagreement", "loss beyond its own", "unlike beyond others")},
    "moco_v3+all": Config("moco_v3", f"{PARTIAL}, {PATCHES}, {REGIONS}"),
    "moco_v3+suncet": Config("moco_v3", SUNCET),
    "fast_moco": Config("fast_moco"),
    **{f"fast_moco {kind} views": Config("fast_moco", changes=dict(views=kind)) for kind in ("digits", "simsiam")},
    "simclr": Config("simclr"),
    "simclr+suncet": Config("simclr", SUNCET),
    "simclr+dcl": Config("simclr", dcl=True),
    "simclr+progressive_size": Config("simclr", "progressive_size"),
    "simclr+progressive_size strength": Config("simclr", "progressive_size(strength=0.5)"),
    "simclr+multi_view": Config("simclr", "multi_view"),
    "simclr+multi_view each": Config("simclr", "multi_view(target='each')"),
    "simclr+multi_view half-size": Config("simclr", "multi_view, progressive_size(0.5, end=0.5)"),
    "simclr+multi_view+progressive_size": Config("simclr", "multi_view, progressive_size"),
    "fast": Config("fast"),
    "fast+suncet": Config("fast", SUNCET),
    "fast+intermediate": Config("fast", "intermediate"),
    "fast+partial": Config("fast", PARTIAL),
    "fast+regions": Config("fast", f"intermediate, {REGIONS}"),
    "fast+comb_patches": Config("fast", PATCHES),
    "fast narrow head": Config("fast", changes=dict(projector=(512, 256))),
    **{f"simclr{'+dcl' * dcl} bs{bs}": Config("simclr", dcl=dcl, bs=bs)
       for bs in (16, 32, 64, 256) for dcl in (False, True)},
    **{f"simclr{'+dcl' * dcl} bs32 temp{temp}": Config("simclr", dcl=dcl, bs=32, temp=temp)
       for temp in (0.1, 0.2, 0.5) for dcl in (False, True)},
    "moco_v3+partial+regions": Config("moco_v3", f"{PARTIAL}, {REGIONS}"),
    "fast until 0.75": Config("fast", changes=dict(speedups=(SEVERAL, partial(GROWING, until=0.75)))),
    **{f"fast lr {lr:g}": Config("fast", changes=dict(lr=lr)) for lr in (0.0025, 0.005, 0.02, 0.04)},
    **{f"fast temp {temp:g}": Config("fast", temp=temp) for temp in (0.1, 0.4)},
    **{f"fast wd {wd:g}": Config("fast", changes=dict(wd=wd)) for wd in (0.001, 0.1)},
    **{f"fast bs {bs}": Config("fast", bs=bs) for bs in (32, 64, 128, 256)},
    "fast without warm-up": Config("fast", changes=dict(warmup=0)),
    "fast adamw 1e-3": Config("fast", changes=dict(opt="adamw", lr=1e-3, wd=0.05)),
    **{f"{method} cosine": Config(method, changes=dict(schedule="cosine")) for method in ("fast", "simclr")},
    **{f"fast {name}": Config("fast", share=share, more=more) for name, (more, share) in TRIED.items()},
    "fast without multi_view": Config("fast", changes=dict(speedups=(GROWING,))),
    "fast without growing": Config("fast", changes=dict(speedups=(SEVERAL, AT_TWO_THIRDS))),
    "fast without muon": Config("fast", changes=LARS),
    "fast without mild views": Config("fast", changes=dict(views="simclr")),
    "simclr as lightly": Config("simclr", changes=AS_LIGHTLY),
    "simclr without muon": Config("simclr", changes=LARS),
    "fast_moco half": Config("fast_moco", share=0.5),
    "simclr half": Config("simclr", share=0.5),
    "simclr+suncet half": Config("simclr", SUNCET, share=0.5),
}


# ---- pictures ----


def needs(data: str) -> None:
    """Raise `Lacking` unless data are given, and there"""
    if not data: raise Lacking("it needs pictures: --data=FOLDER")
    if data != "digits" and not Path(data).is_dir(): raise Lacking(f"there is no folder '{data}'")


def parts_of(data: str) -> tuple[Path, Path]:
    """The folders of training and held-out pictures in a folder; raises `Lacking` if they aren't there"""
    root = Path(data)
    held = next((root / f for f in VALID_FOLDERS if (root / f).is_dir()), None)
    if held is None or not (root / "train").is_dir():
        raise Lacking(f"'{root}' needs the folders train/ and val/ or test/, of class folders")
    return root / "train", held


class Chosen(Dataset):
    """A stratified choice of the pictures in a folder, always the same one"""
    def __init__(self, folder: Path, n: int):
        files = ImageFolder(folder)
        n = n or len(files)
        if n > len(files): raise Lacking(f"'{folder}' has {len(files)} pictures, not {n}")
        (index,) = stratified(torch.tensor(files.targets).numpy(), n / len(files), 0).nonzero()
        self.files, self.index, self.classes = files, index.tolist(), files.classes
        self.targets = [files.targets[i] for i in index]

    def __len__(self): return len(self.index)
    def __getitem__(self, i): return self.files[self.index[i]]

    def link(self, folder: Path) -> Path:
        """A folder of class folders with links to these pictures, for whoever reads files"""
        for i in self.index:
            path = Path(self.files.samples[i][0]).resolve()
            link = folder / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink(): link.symlink_to(path)
        return folder


def sources_of(data: str, n: int = 0, n_valid: int = 0) -> dict[str, Any]:
    """What `image_dls` takes: the digits, or so many pictures of a folder's parts (0: all)"""
    if data == "digits": return dict(source="digits")
    folder, held = parts_of(data)
    return dict(source=Chosen(folder, n), valid=Chosen(held, n_valid))


# ---- results that several sittings add to ----


@dataclasses.dataclass
class Sheet:
    """The file of results of runs that have these settings in common"""
    run: Run
    names: Sequence[str]     # in the file's name
    settings: dict[str, Any]
    own: tuple[str, ...] = ("note", "rows", "epoch_s") # what sittings and readers add, and nothing makes anew

    @property
    def path(self) -> Path: return self.run.file(*self.names)

    def read(self) -> dict[str, Any]:
        """The file's content. Raises `Lacking` if there is none"""
        if not self.path.exists(): raise Lacking(f"there is no '{self.path}' to draw")
        return json.loads(self.path.read_text())

    def kept(self) -> dict[str, Any]:
        """What earlier sittings have added, `rows` at least. Raises `Lacking` if their settings were others"""
        if not self.path.exists(): return dict(rows=[])
        old = self.read()
        differs = [f"{k} ({old.get(k)}, now {v})" for k, v in self.settings.items() if old.get(k) != v]
        if differs:
            raise Lacking(f"'{self.path}' has the results of other settings: {', '.join(differs)}; give another --out")
        return {key: old[key] for key in self.own if key in old}

    def check_threads(self) -> None:
        """Raise `Lacking` if earlier runs on a CPU had another number of threads, and so other seconds"""
        now = torch.get_num_threads()
        others = {row["threads"] for row in self.kept()["rows"] if row.get("threads", now) != now}
        if self.run.device == "cpu" and others:
            raise Lacking(f"'{self.path}' has runs with {min(others)} threads, not {now}: give --threads={min(others)} "
                          "or another --out")

    def write(self, **results) -> None:
        """Write what sittings have added, and what was made of it"""
        self.run.save(dict(self.settings, **results), *self.names)

    def redo(self, **made) -> None:
        """Write anew what is made of the results; where and when they were added stays"""
        write_whole(self.path, json.dumps(self.read() | made, indent=1) + "\n")


def provenance(device: str) -> dict[str, Any]:
    """Where and when a run was made, for its row"""
    about = environment(device)
    return {key: about[key] for key in ("device", "threads", "commit")} | dict(date=time.strftime("%Y-%m-%d"))


def slug(*words: Any) -> str:
    """A name for a folder"""
    return re.sub(r"[^\w.+-]+", "-", " ".join(map(str, words)))


# ---- runs ----


class OnLabels(Callback):
    """After every epoch the accuracy of a linear classifier that sees the labels which training may use"""
    order = 46  # the clock of `Cost` stands still

    def __init__(self): self.values: list[float] = []
    def state_dict(self) -> dict[str, Any]: return dict(values=list(self.values))
    def load_state_dict(self, state: dict[str, Any]) -> None: self.values = list(state["values"])

    def after_train(self):
        data = self.dls.train.data
        labelled = self.dls.train.ordered().only((data.labeled & (data.y >= 0)).nonzero().flatten(), self.dls.train.bs)
        features = *self.learn.embed(labelled), *self.learn.embed()
        self.values.append(linear_probe(features[0].to(self.dls.device), *features[1:]))


@dataclasses.dataclass
class Trial:
    """All runs of the same settings, and the sheet of their results"""
    run: Run
    data: str
    arch: str
    size: int
    bs: int
    epochs: int
    small_input: bool | None
    setting: str                # '': the one that the pictures pick
    pictures: int
    valid_pictures: int
    labels: float | None = None # share of the labels that runs may use and are judged by, too; None: as they need
    state: Path | None = None   # folder in which a run's checkpoints are kept until its end; None: none are
    metric: str = "knn"         # that the table is about: of the row of an epoch
    protocol: str = ""          # by which the encoder is fine-tuned with the labels that runs may use; '': it isn't
    tune_epochs: int = 0        # of that; 0: the protocol's
    sources: dict[str, Any] = dataclasses.field(init=False) # what `image_dls` takes

    def __post_init__(self):
        self.sources = sources_of(self.data, self.pictures, self.valid_pictures)
        source = self.sources["source"]
        count = 0 if source == "digits" else len(source)
        self.setting = self.setting or pick_setting(self.data, self.size, count)

    @property
    def sheet(self) -> Sheet:
        return Sheet(self.run, (Path(self.data).name, str(self.size), self.arch, self.protocol), self.settings())

    def settings(self) -> dict[str, Any]:
        """What all runs of a file have in common"""
        result = dict(arch=self.arch, size=self.size, bs=self.bs, epochs=self.epochs, small_input=self.small_input,
                      setting=self.setting, data=Path(self.data).name)
        if self.data != "digits": result |= dict(pictures=self.pictures, valid_pictures=self.valid_pictures)
        if self.protocol: result |= dict(protocol=self.protocol, tune_epochs=self.tune_epochs)
        return result if self.labels is None else result | dict(labels=self.labels)

    def write(self, **changed) -> None:
        """Write the results, those of other processes too"""
        results = self.sheet.kept() | changed
        rows = timed(results["rows"], results.get("epoch_s", {}))
        self.sheet.write(table=table(rows, self.metric), **results)

    def sit(self, names: Iterable[str], seeds: Iterable[int], linear: bool = False, minutes: float | None = None
            ) -> bool:
        """Make the runs that are not there yet; returns whether all are

        linear: judge by a linear classifier with all labels, too; minutes: after which no further run begins.
        """
        start = time.perf_counter()
        for seed, name in product(seeds, names):
            if any((row["config"], row["seed"]) == (name, seed) for row in self.sheet.kept()["rows"]): continue
            if minutes and time.perf_counter() - start > 60 * minutes:
                print(f"{minutes:g} minutes are over before {name}, seed {seed}")
                return False
            self.sheet.check_threads()
            row = self.train(name, seed, linear) | provenance(self.run.device)
            print(spelled_run(row), flush=True)
            self.write(rows=[*self.sheet.kept()["rows"], row])
            if self.state: shutil.rmtree(self.folder(name, seed), ignore_errors=True)
            gc.collect()  # a learner and its callbacks hold each other
        return True

    def folder(self, name: str, seed: int) -> Path:
        """Where the checkpoints of a run are"""
        return self.state / slug(*filter(None, self.sheet.names), name, "seed", seed)

    def draw(self) -> None:
        """Draw the results that are there"""
        old = self.sheet.read()
        draw(timed(old["rows"], old.get("epoch_s", {})), self.sheet.path.with_suffix(".png"), self.metric)

    def learner(self, name: str, seed: int, *more: Callback) -> tuple[Any, list]:
        """The learner of a run, and its speedups"""
        config = CONFIGS[name]
        torch.manual_seed(seed)
        speedups = config.make_speedups(seed)
        labels = 0.1 if any(isinstance(s, SuNCEt) for s in speedups) else None
        dls = image_dls(**self.sources, size=self.size, bs=config.bs or self.bs, labels=self.labels or labels,
                        seed=seed, device=self.run.device)
        recipe, loss = config.recipe(self.setting), config.make_loss(self.setting)
        cbs = [*speedups, Cost(), *more]
        return contrastive_learner(dls, self.arch, recipe, loss, cbs, small_input=self.small_input), speedups

    def train(self, name: str, seed: int, linear: bool) -> dict[str, Any]:
        """A run's row; what stopped it instead of its last accuracies if it did not get to the end"""
        judges = [] if self.labels is None else [OnLabels()]
        learn, speedups = self.learner(name, seed, *judges)
        row = dict(config=name, seed=seed, bs=learn.dls.train.bs, speedups=[repr(s) for s in speedups],
                   loss=repr(learn.loss_func.loss), small_input=learn.small_input, precision=learn.precision,
                   notes=learn.notes, untrained_knn=learn.knn())
        epochs = max(1, round(CONFIGS[name].share * self.epochs))
        try: train(learn, epochs, lr=None, resume=self.folder(name, seed) if self.state else None)
        except InputError as e: row["stopped"] = str(e)
        rows, columns = table_of(learn), ("knn", "seconds", "tflop", "train_loss", "spread")
        row["epochs"] = [dict({c: r[c] for c in columns}, epoch=number) for number, r in enumerate(rows, 1)]
        for judge in judges:
            for epoch, value in zip(row["epochs"], judge.values): epoch["labelled"] = value
        if "stopped" in row: return row
        features = embedded(learn)
        row["knn"], row["optimizer_tflop"] = rows[-1]["knn"], learn.cost.totals()["optimizer_tflop"]
        row["few_labels"], row["few_labels_std"] = few_label_accuracy(*features, per_class=10)
        if linear: row["linear"] = linear_probe(features[0].to(learn.dls.device), *features[1:])
        if self.protocol: row["finetuned"] = self.finetuned(learn, seed)
        return row

    def finetuned(self, learn, seed: int) -> float:
        """Accuracy of a classifier that begins with the encoder and learns from the labels which training might use"""
        tuned = learn.finetune(protocol=self.protocol, epochs=self.tune_epochs or None, seed=seed)
        return tuned.recorder.values[-1][-1]

    def time_epochs(self, names: Sequence[str]) -> None:
        """Measure the seconds of an epoch of each configuration. Raises `Lacking` if others have run, too"""
        if others := {row["config"] for row in self.sheet.kept()["rows"]} - set(names):
            raise Lacking(f"{', '.join(sorted(others))} ran, too, and all are measured in turn: name them all, or give "
                          "these another --out")
        self.write(epoch_s=self.seconds_of_epochs(names))

    def seconds_of_epochs(self, names: Iterable[str], steps: int = 10, rounds: int = 3) -> dict[str, list[float]]:
        """Seconds of an epoch of each configuration, by round, from some of its steps"""
        learners = {name: self.learner(name, 0)[0] for name in names}
        for learn in learners.values():
            learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, Cost)])  # it counts operations, which takes time
        got: dict[str, list[float]] = {name: [] for name in learners}
        for number, name in turns(learners, rounds):
            learn = learners[name]
            step = seconds_a_step(learn, 2, steps_to_time(learn, 2, steps), lr=None)
            got[name].append(len(learn.dls.train) * step)
            print(f"round {number + 1}: {name} {got[name][-1]:.1f} s", flush=True)
        return got


# ---- tables and figures ----


def timed(rows: list[dict], epoch_s: dict[str, list[float]]) -> list[dict]:
    """The rows with the seconds that were measured in turn, where there are some"""
    def epochs(row):
        if row["config"] not in epoch_s: return row["epochs"]
        return [dict(e, seconds=e["epoch"] * statistics.median(epoch_s[row["config"]])) for e in row["epochs"]]
    return [dict(row, epochs=epochs(row)) for row in rows]


def deviation(values: Iterable[float]) -> float | None:
    """Standard deviation; None of a single value"""
    values = list(values)
    return statistics.stdev(values) if len(values) > 1 else None


def reach(epochs: Iterable[dict], metric: str, goal: float) -> dict | None:
    """The first epoch that reached the goal"""
    return next((epoch for epoch in epochs if epoch[metric] >= goal), None)


def table(rows: list[dict], metric: str = "knn") -> list[dict]:
    """Means over the seeds; and what it took until the base's final value of the metric was reached, the base being
    the first configuration of a figure that has runs: of the mean curve, and of each seed (None: it was not)"""
    bases: dict[str, float] = {}  # by figure
    result = []
    for name, config in CONFIGS.items():
        runs = [r for r in rows if r["config"] == name and "stopped" not in r]
        if not runs: continue
        means = [{k: statistics.fmean(e[k] for e in epoch) for k in {"knn", metric, *AXES}}
                 for epoch in zip(*(r["epochs"] for r in runs))]
        last = means[-1]
        base = bases.setdefault(config.figure, last[metric])
        hit, hits = reach(means, metric, base), [reach(r["epochs"], metric, base) for r in runs]
        row = dict(config=name, seeds=len(runs), knn=last["knn"], knn_std=deviation(r["knn"] for r in runs),
                   few_labels=statistics.fmean(r["few_labels"] for r in runs), seconds=last["seconds"],
                   tflop=last["tflop"], **{f"{k}_to_base": hit and hit[k] for k in AXES},
                   **{f"{k}_to_base_by_seed": [h and h[k] for h in hits] for k in AXES})
        if metric != "knn":
            row |= {metric: last[metric], f"{metric}_std": deviation(r["epochs"][-1][metric] for r in runs)}
        for name in ("linear", "optimizer_tflop"):
            if all(name in r for r in runs): row[name] = statistics.fmean(r[name] for r in runs)
        if all("finetuned" in r for r in runs):
            ends = [r["finetuned"] for r in runs]
            row |= dict(finetuned=statistics.fmean(ends), finetuned_std=deviation(ends))
        result.append(row)
    return result


def spelled_table(rows: list[dict], columns: dict[str, str]) -> str:
    """Rows as a table in Markdown; columns: headings and what stands below, a format of a row's fields"""
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[text.format_map(Spelled(row)) for text in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Spelled(dict):
    """The fields of a row for a format: what is not known is a dash, and a spread that is not known nothing"""
    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        if value is None: return Unknown("" if key.endswith("_std") else "–")
        return Spread(value) if key.endswith("_std") else value


class Spread(float):
    """A standard deviation, which brings its sign along"""
    def __format__(self, text: str) -> str: return f" ± {float(self):{text}}"


class Unknown(str):
    """Stands for a number, in whichever format"""
    def __format__(self, text: str) -> str: return str(self)


def draw(rows: list[dict], path: Path, metric: str = "knn") -> None:
    """A metric against epochs, seconds and TFLOP: means over the seeds, within a band from the lowest to the highest;
    a row of panels for each base method. Runs that stopped are not in it"""
    rows = [r for r in rows if "stopped" not in r]
    if not rows: return
    there = [name for name in CONFIGS if any(r["config"] == name for r in rows)]
    kinds = list(dict.fromkeys(CONFIGS[name].figure for name in there))
    figure = Figure(figsize=(13, 3.8 * len(kinds)), layout="constrained")
    for panels, kind in zip(figure.subplots(len(kinds), len(AXES), squeeze=False, sharey="row"), kinds):
        names = [name for name in there if CONFIGS[name].figure == kind]
        for axis, (x, label) in zip(panels, AXES.items()):
            for i, name in enumerate(names):
                runs = [r for r in rows if r["config"] == name]
                style = dict(color=f"C{i}", linewidth=1.5 if "+" in name else 2.5, label=f"{name} ({len(runs)})")
                draw_runs(axis, x, runs, metric, **style)
            axis.set(xlabel=label, xlim=(0, None))
            axis.grid(alpha=0.3)
        panels[0].set(ylabel="kNN accuracy" if metric == "knn" else "accuracy, linear", title=kind)
        panels[-1].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)
    print(f"figure in {path}")


def draw_ends(rows: list[dict], path: Path) -> None:
    """Accuracies after fine-tuning, from `table`: means and standard deviations over the seeds"""
    rows = [row for row in rows if "finetuned" in row]
    if not rows: return
    figure = Figure(figsize=(6, 0.6 + 0.5 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for height, row in enumerate(reversed(rows)):
        axis.errorbar(100 * row["finetuned"], height, xerr=100 * (row["finetuned_std"] or 0), fmt="o", capsize=4)
    axis.set(yticks=range(len(rows)), yticklabels=[row["config"] for row in reversed(rows)],
             ylim=(-0.5, len(rows) - 0.5), xlabel="accuracy after fine-tuning, %")
    axis.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=150)
    print(f"figure in {path}")


def draw_runs(axis: Axes, x: str, runs: list[dict], metric: str, **style) -> None:
    """The line and the band of runs that are alike, from before training on where that is known"""
    tables = list(zip(*(r["epochs"] for r in runs)))
    points = [(statistics.fmean(e[x] for e in epoch), [e[metric] for e in epoch]) for epoch in tables]
    before = [r.get(f"untrained_{metric}") for r in runs]
    if None not in before: points.insert(0, (0, before))
    places, values = zip(*points)
    axis.plot(places, [statistics.fmean(v) for v in values], **style)
    low, high = [min(v) for v in values], [max(v) for v in values]
    axis.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)


def spelled_run(row: dict[str, Any]) -> str:
    """What became of a run"""
    if "stopped" in row: return f"{row['config']}, seed {row['seed']}: stopped: {row['stopped']}"
    last = row["epochs"][-1]
    linear = f"all labels, linear {row['linear']:.1%}; " if "linear" in row else ""
    if "labelled" in last: linear += f"the labels given, linear {last['labelled']:.1%}; "
    if "finetuned" in row: linear += f"fine-tuned {row['finetuned']:.1%}; "
    return (f"{row['config']}, seed {row['seed']}: kNN {row['untrained_knn']:.1%} untrained, {row['knn']:.1%}; "
            f"10 labels a class {row['few_labels']:.1%}; {linear}{last['seconds']:.0f} s, {last['tflop']:.3g} TFLOP")
