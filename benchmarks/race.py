"""The race: kNN against seconds of training, ours and the other libraries', each in its own training, in turn."""
import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import torch
from common import (BENCHMARKS, Group, Lacking, Run, chosen, noise_folder, train, with_library, words)
from fastai.callback.core import Callback
from matplotlib.figure import Figure
from peers.clock import MARK, tell
from speed import interpreters_of
from trials import (CONFIGS, PARTIAL, PATCHES, REGIONS, SUNCET, Chosen, Config, Sheet, deviation, draw_runs, needs,
                    parts_of, provenance, reach, slug, spelled_table)

from fastcontrast.all import (DCL, Cost, InputError, contrastive_learner, image_dls, knn_accuracy, linear_probe,
                              make_encoder)
from fastcontrast.evaluate.knn import extract_features
from fastcontrast.precision import has_bf16
from fastcontrast.recipes import SPEEDUPS
from fastcontrast.recipes.recipe import SMALL_PICTURES
from fastcontrast.stems import has_large_stem

group = Group("race", "How soon an accuracy is reached: ours and other libraries, each in its own training", lone=True)


# ---- who runs, and in which settings ----

SIZES = {"imagenette-128": 96, "cifar10": 32, "fashion": 28}  # sides of pictures, by the name of their folder

# Ours; whoever sees labels, or has settings for one data set, runs when asked for by name
OURS = {
    **{name: CONFIGS[name] for name in (
        "simclr", "simclr+progressive_size", "simclr+multi_view", "simclr+multi_view half-size",
        "simclr+multi_view+progressive_size", "simclr+dcl", "fast", "simclr as lightly", "simclr+suncet")},
    "simclr+comb_patches": Config("simclr", PATCHES),
    "simclr+partial": Config("simclr", PARTIAL),
    "simclr+regions": Config("simclr", f"intermediate, {REGIONS}"),
    "simclr+all": Config("simclr", f"{PARTIAL}, {PATCHES}, {REGIONS}, progressive_size"),
    "simclr+progressive_size+suncet": Config("simclr", f"progressive_size, {SUNCET}"),
}
USUAL = [name for name, config in OURS.items() if SUNCET not in config.speedups and name != "simclr as lightly"]


class Failed(Exception):
    """A run has ended before its last epoch; the message says how"""


@dataclasses.dataclass(frozen=True)
class Library:
    """Another library: the program that trains with it, and the settings that its own benchmarks have

    lr: for a batch of `lr_batch`, to which it is in proportion; methods: what differs from SimCLR's settings.
    """
    program: str
    large: dict[str, Any]  # for pictures like Imagenette's
    small: dict[str, Any]  # for pictures like CIFAR-10's
    methods: dict[str, dict[str, Any]] = dataclasses.field(default_factory=lambda: dict(simclr={}))

    def settings(self, method: str, size: int, bs: int, factor: float) -> dict[str, Any]:
        """What its program is given; factor: learning rate over the recommended one"""
        usual = (self.small if size <= SMALL_PICTURES else self.large) | self.methods[method]
        return usual | dict(lr=factor * usual["lr"] * bs / usual["lr_batch"])


PEERS = {
    # docs/source/getting_started/benchmarks/{imagenette,cifar10}_benchmark.py
    "lightly": Library(
        "lightly_train.py",
        large=dict(lr=0.06, lr_batch=256, wd=5e-4, blur=0.5, byol_hidden=4096, swav_hidden=2048, swav_prototypes=3000),
        small=dict(lr=0.06, lr_batch=128, wd=5e-4, blur=0.0, byol_hidden=1024, swav_hidden=512, swav_prototypes=512),
        methods=dict(simclr={}, dcl={}, dclw={}, byol={}, swav=dict(lr=1e-3, wd=1e-6))),
    # bash_files/pretrain/{imagenet-100,cifar}/simclr.sh of release 1.0.2
    "solo-learn": Library(
        "solo_learn_train.py",
        large=dict(lr=0.3, lr_batch=256, wd=1e-4, blur=0.5, temp=0.2, hidden=2048, out=128, classifier_lr=0.3),
        small=dict(lr=0.4, lr_batch=256, wd=1e-5, blur=0.0, temp=0.2, hidden=2048, out=256, classifier_lr=0.1)),
    # benchmarks/{imagenet100/simclr-resnet50,cifar10/simclr-resnet18}.py
    "stable-pretraining": Library(
        "stable_pretraining_train.py",
        large=dict(lr=0.3, lr_batch=256, wd=1e-4, temp=0.5, hidden=[2048], out=128, head_bias=False,
                   lars=dict(clip_lr=True, eta=0.02, exclude_bias_n_norm=True)),
        small=dict(lr=5.0, lr_batch=256, wd=1e-6, temp=0.5, hidden=[2048, 2048], out=256, head_bias=True, lars={})),
}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Who runs: a configuration of ours, or a method of another library in a precision and with a learning rate"""
    method: str
    library: str = ""      # ours, if none
    precision: str = "auto"
    factor: float = 1.0    # learning rate over the recommended one

    @property
    def family(self) -> str:
        """Its name, whatever the learning rate"""
        if not self.library: return self.method
        half = self.precision if self.precision == "bf16" else ""
        return " ".join(filter(None, [self.library, self.method if self.method != "simclr" else "", half]))

    @property
    def name(self) -> str: return self.family if self.factor == 1 else f"{self.family} lr x{self.factor:g}"


def contestants(libraries: Iterable[str], methods: list[str], factors: list[float], only: str, device: str
                ) -> list[Contestant]:
    """Who runs, by the names of families or contestants and in their order; all if there are none"""
    result = [Contestant(name) for name in OURS]
    precisions = ["fp32", "bf16"] if has_bf16(device) else ["fp32"]
    for library, method in product(libraries, methods):
        if method not in PEERS[library].methods: continue
        result += [Contestant(method, library, *rest) for rest in product(precisions, factors)]
    usual = [c.name for c in result if c.library or c.method in USUAL]
    known = dict.fromkeys(name for c in result for name in (c.family, c.name))
    names = chosen(only, known, "contestant here") if only else usual
    def place(c: Contestant) -> int: return names.index(c.name if c.name in names else c.family)
    return sorted((c for c in result if c.name in names or c.family in names), key=place)


# ---- the measurement ----


@group.measurement(
    quick=dict(arch="test_resnet", sizes="16", bs=16, epochs=2, seeds="3", only="simclr,simclr+dcl",
               reference="simclr", k=20, workers=0),
    gpu=dict(workers=16))
def race(
    run: Run,
    data: str = "",         # folders with train/ and val/ or test/, of class folders, with commas between them
    sizes: str = "",        # sides of their pictures, with commas between them; known for some data sets
    arch: str = "resnet10t", # encoder
    bs: int = 128,          # batch
    epochs: int = 10,       # of the other libraries' runs
    our_epochs: int | None = None, # of ours; as many if not given
    seeds: str = "0,1,2",   # with commas between them
    only: str = "",         # who runs, in this order, with commas; all that see no labels if not given
    peers: str = "",        # other libraries, as NAME=PYTHON with commas between them: the interpreter that has it
    methods: str = "simclr", # of the other libraries, with commas between them
    lrs: str = "1",         # their learning rates, over the recommended ones, with commas between them
    reference: str = "lightly bf16", # whose last kNN is the goal, at its best learning rate; best: whichever ends best
    k: int = 200,           # neighbours of the kNN that counts: 20 or 200
    setting: str = "",      # of our recipes (by the pictures if not given)
    pictures: int = 0,      # of train/, a stratified choice; 0: all
    valid_pictures: int = 0, # of val/ or test/; 0: all
    workers: int = 2,       # DataLoader workers of the others
    threads: int | None = None, # of PyTorch on the CPU
    minutes: float | None = None, # after which no further run begins
    state: str = "",        # folder of unfinished runs, 'runs' beside the results if not given
    plot: bool = False,     # train nothing, and make the table and figure of the results that are there
) -> None:
    """How many seconds of training does it take to the kNN accuracy that another library's whole run ends with?

    Everybody trains the same architecture (timm's, with the stem for small pictures up to 64 px) on the same files,
    each in its own training: ours with what the recipes say, the others with the loader, augmentation, head, loss,
    optimizer and schedule of their own benchmarks (benchmarks/peers). Runs take turns, seed by seed, each in a process
    of its own that has the machine to itself. After every epoch the clock stands still, while the state is written
    and the encoder judged, by the same kNN for all (all pictures of both parts, temperature 0.1) and at the end by a
    linear probe. On the clock is what a user waits for: ours with the decoding of the pictures, the others' with
    decoding in every epoch. Arithmetic is counted: every kind of step for ours, one step for the others.

    `sooner` is the reference's whole time over the time to its last kNN, `sooner_than_it` over the time in which it
    first had that kNN itself. Where several learning rates have run, a library stands in the figure with its best.

    The results are written after every epoch. A race that is broken off goes on when it is started again: a run of
    ours at the step where it was, if a signal ended it, else any after its last epoch. `speed throughput --help`
    says how to make interpreters for the other libraries.
    """
    if threads: torch.set_num_threads(threads)
    base = Path(state or run.folder / "runs").resolve()
    if run.quick and not data: data = str(noise_parts(base / "noise", int(sizes)))
    for folder in words(data) or [""]: needs(folder)
    if k not in (20, 200): raise Lacking("k is 20 or 200")
    here = {"lightly": sys.executable} if importlib.util.find_spec("lightly") else {}
    interpreters = here | interpreters_of(peers)
    who = contestants(interpreters, words(methods), list(map(float, words(lrs))), only, run.device)
    rules = Rules(arch, bs, epochs, our_epochs or epochs, setting, pictures, valid_pictures, workers)
    courses = [Course(run, Path(folder), size, rules, base, reference, k, interpreters, threads)
               for folder, size in zip(words(data), sizes_of(words(data), words(sizes)), strict=True)]
    failed = [] if plot else hold(courses, who, list(map(int, words(seeds))), minutes)
    there = [course for course in courses if course.sheet.path.exists()]
    for course in there: course.conclude()
    if failed: raise SystemExit(f"failed: {', '.join(failed)}")
    draw(run, there)


def noise_parts(folder: Path, size: int) -> Path:
    """A folder of noise, for a trial"""
    for part, n in dict(train=64, val=32).items(): noise_folder(folder / part, n, size)
    return folder


def sizes_of(folders: list[str], sizes: list[str]) -> list[int]:
    """The side of the pictures of every folder"""
    if len(sizes) == len(folders): return list(map(int, sizes))
    if sizes: raise Lacking(f"--sizes has {len(sizes)} sides for {len(folders)} folders")
    names = [Path(folder).name for folder in folders]
    if unknown := [name for name in names if name not in SIZES]:
        raise Lacking(f"the size of {', '.join(unknown)} is not known: give --sizes")
    return [SIZES[name] for name in names]


def hold(courses: list['Course'], who: list[Contestant], seeds: list[int], minutes: float | None) -> list[str]:
    """Have everybody run who has not yet. Returns the names of those who failed, for the next sitting"""
    start, failed = time.perf_counter(), []
    for seed, course, contestant in product(seeds, courses, who):
        if course.row(contestant, seed).get("done"): continue
        if minutes and time.perf_counter() - start > 60 * minutes:
            print(f"{minutes:g} minutes are over before {contestant.name}, seed {seed}")
            break
        try: course.train(contestant, seed)
        except Failed as e:
            print(e, flush=True)
            failed.append(contestant.name)
    return list(dict.fromkeys(failed))


# ---- a data set, and the runs on it ----


@dataclasses.dataclass(frozen=True)
class Rules:
    """What all runs have in common"""
    arch: str
    bs: int
    epochs: int
    our_epochs: int
    setting: str
    pictures: int
    valid_pictures: int
    workers: int


@dataclasses.dataclass
class Course:
    """A data set at a size: its pictures, its runs, and the sheet of their results"""
    run: Run
    data: Path
    size: int
    rules: Rules
    state: Path       # folder of unfinished runs
    reference: str    # family of contestants, or 'best'
    k: int            # neighbours of the kNN that counts
    interpreters: dict[str, str]
    threads: int | None

    @property
    def sheet(self) -> Sheet:
        common = dict(data=self.data.name, size=self.size, small_stem=self.small, **dataclasses.asdict(self.rules))
        return Sheet(self.run, self.names, common)

    @property
    def names(self) -> list[str]: return [self.data.name, str(self.size), self.rules.arch]

    @property
    def metric(self) -> str: return f"knn{self.k}"

    @cached_property
    def small(self) -> bool:
        """Whether encoders have the stem for small pictures"""
        return self.size <= SMALL_PICTURES and has_large_stem(make_encoder(self.rules.arch, size=self.size))

    @cached_property
    def folders(self) -> tuple[Path, Path]:
        """Of the training pictures and those to judge by; of links, if only some are chosen"""
        counts, found = (self.rules.pictures, self.rules.valid_pictures), []
        for folder, n, part in zip(parts_of(str(self.data)), counts, ("train", "val")):
            link = self.state / slug(self.data.name, n) / part
            found.append(Chosen(folder, n).link(link) if n else folder.resolve())
        return tuple(found)

    @cached_property
    def pictures(self) -> Any:
        """Loaders, to judge by"""
        folder, held = self.folders
        return image_dls(folder, valid=held, size=self.size, bs=self.rules.bs, device=self.run.device)

    def row(self, contestant: Contestant, seed: int) -> dict[str, Any]:
        """What is known of a run; empty if it has not begun"""
        rows = self.sheet.kept()["rows"]
        return next((row for row in rows if (row["name"], row["seed"]) == (contestant.name, seed)), {})

    def keep(self, row: dict[str, Any]) -> None:
        """Write a run's row in place of what was known of it"""
        kept = self.sheet.kept()
        others = [other for other in kept["rows"] if (other["name"], other["seed"]) != (row["name"], row["seed"])]
        self.sheet.write(**kept | dict(rows=[*others, row]))

    def conclude(self) -> None:
        """Make the table of what is there"""
        rows = self.sheet.kept()["rows"]
        table, goal = standings(rows, self.reference, self.metric), best_of(rows, self.reference, self.metric)
        reference = goal[0]["family"] if goal else self.reference
        self.sheet.redo(reference=reference, metric=self.metric, table=table)
        print(f"\n{', '.join(self.names)}\n\n{spelled_table(table, COLUMNS)}\n")
        print(f"the reference is {goal[0]['name']}" if goal else
              f"there is no goal: no run of the reference, {reference}, has finished", flush=True)

    def train(self, contestant: Contestant, seed: int) -> None:
        """Have a contestant run, from the beginning or from where it was, and judge it after every epoch"""
        self.sheet.check_threads()
        folder = self.state / slug(*self.names, contestant.name, "seed", seed)
        folder.mkdir(parents=True, exist_ok=True)
        command, settings = self.command(contestant, seed, folder)
        print(f"{contestant.name}, seed {seed}, {', '.join(self.names)}", flush=True)
        epochs = settings["epochs"]
        row = dict(name=contestant.name, family=contestant.family, library=contestant.library, seed=seed,
                   lr=settings.get("lr"), factor=contestant.factor, precision=contestant.precision,
                   **self.untrained(seed, folder, contestant.library), epochs=[], **provenance(self.run.device))
        row |= self.row(contestant, seed)
        with closing(reports(command, self.threads, folder / "log.txt")) as told:
            for report in told:
                if "stopped" in report: row |= dict(stopped=report["stopped"], done=True)
                elif not self.note(row, report, report["epoch"] == epochs): continue
                self.keep(row)
                print(spelled_row(row, self.metric), flush=True)
        if not row.get("done"): raise Failed(f"{contestant.name} ended before its last epoch: see {folder}/log.txt")
        shutil.rmtree(folder)

    def note(self, row: dict[str, Any], report: dict[str, Any], last: bool) -> bool:
        """Judge what a run tells of an epoch, and add it to its row; False if that was there already"""
        epoch = report["epoch"]
        row.setdefault("decode_s", report.get("decode_s", 0.0))  # of the first sitting
        seconds = row["decode_s"] + report["seconds"]
        if any((e["epoch"], e["seconds"]) == (epoch, seconds) for e in row["epochs"]): return False
        row["epochs"] = [e for e in row["epochs"] if e["epoch"] < epoch]  # later ones run once more
        features = self.features(torch.load(report["weights"], weights_only=False)["encoder"], report)
        row["epochs"].append(dict(epoch=epoch, seconds=seconds, tflop=report["tflop"], **neighbours(features)))
        told = ("versions", "setting", "speedups", "notes", "precision", "lr")
        row |= {key: report[key] for key in told if key in report}
        if last: row["linear"] = linear_probe(features[0], *features[1:])
        row["done"] = last
        return True

    def features(self, weights: dict[str, torch.Tensor], report: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Features and labels of all pictures of both parts"""
        encoder = make_encoder(self.rules.arch, small_input=self.small, size=self.size).to(self.run.device)
        encoder.load_state_dict(weights)
        parts = [extract_features(encoder, loader, self.size, report["mean"], report["std"])
                 for loader in (self.pictures.train.ordered(), self.pictures.valid)]
        (h, y), (valid_h, valid_y) = parts
        return h.to(self.run.device), y, valid_h, valid_y

    def untrained(self, seed: int, folder: Path, library: str) -> dict[str, float]:
        """Make the encoder that a run begins with; its accuracies, as another run of the seed had them"""
        torch.manual_seed(seed)
        encoder = make_encoder(self.rules.arch, small_input=self.small, size=self.size)
        if library: as_others_begin(encoder)
        torch.save(encoder, folder / "encoder.pt")
        def alike(row): return row["seed"] == seed and bool(row["library"]) == bool(library)
        known = next(filter(alike, self.sheet.kept()["rows"]), None)
        if known: return {key: value for key, value in known.items() if key.startswith("untrained_")}
        normal = dict(mean=encoder.pretrained_cfg["mean"], std=encoder.pretrained_cfg["std"])
        judged = neighbours(self.features(encoder.state_dict(), normal))
        return {f"untrained_{key}": value for key, value in judged.items()}

    def command(self, contestant: Contestant, seed: int, folder: Path) -> tuple[list[str], dict[str, Any]]:
        """The program of a run, and what it is given"""
        rules, (pictures, _) = self.rules, self.folders
        settings = dict(data=str(pictures), size=self.size, bs=rules.bs, seed=seed, method=contestant.method,
                        precision=contestant.precision, device=self.run.device, folder=str(folder))
        if not contestant.library:
            settings |= dict(epochs=rules.our_epochs, arch=rules.arch, small=self.small, setting=rules.setting)
            program = [sys.executable, str(BENCHMARKS / "common.py"), "race", "train_ours"]
            return [*program, json.dumps(dict(settings=settings))], settings
        library = PEERS[contestant.library]
        settings |= dict(epochs=rules.epochs, workers=rules.workers)
        settings |= library.settings(contestant.method, self.size, rules.bs, contestant.factor)
        program = [self.interpreters[contestant.library], str(BENCHMARKS / "peers" / library.program)]
        return [*program, json.dumps(settings)], settings


def spelled_row(row: dict[str, Any], metric: str) -> str:
    """How far a run is"""
    if "stopped" in row: return f"stopped: {row['stopped']}"
    last = row["epochs"][-1]
    linear = f", linear {row['linear']:.2%}" if "linear" in row else ""
    return f"epoch {last['epoch']}: kNN {last[metric]:.2%}{linear} after {last['seconds']:.1f} s"


def as_others_begin(encoder: torch.nn.Module) -> None:
    """Have an encoder begin as in the other libraries' benchmarks, whose residual branches begin with ones where timm
    has zeros; and lay its maps out as processors work on them faster, which is a user's choice like half precision"""
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any(): torch.nn.init.ones_(module.weight)
    encoder.to(memory_format=torch.channels_last)


def neighbours(features: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """The kNN accuracies"""
    return {f"knn{k}": knn_accuracy(*features, k=k) for k in (20, 200)}


def reports(command: list[str], threads: int | None, log: Path) -> Iterator[dict[str, Any]]:
    """What a run tells of its epochs; it waits until the next is asked for, and ends with whoever asks"""
    environ = with_library(dict(OMP_NUM_THREADS=str(threads)) if threads else None)
    with log.open("a") as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
                                   env=environ)
        try:
            for line in process.stdout:
                if not line.startswith(MARK):
                    said.write(line)
                    continue
                yield json.loads(line.removeprefix(MARK))
                with suppress(BrokenPipeError):
                    process.stdin.write("\n")
                    process.stdin.flush()
            if process.wait():
                said.flush()
                raise Failed(f"{command[1]} failed ({process.returncode}):\n{log.read_text()[-2000:]}")
        finally: end(process)


def end(process: subprocess.Popen, grace: float = 60) -> None:
    """End a program that may be running: ours finishes the step and writes a checkpoint first"""
    with suppress(BrokenPipeError): process.stdin.close()
    if process.poll() is None: process.terminate()
    try: process.wait(grace)
    except subprocess.TimeoutExpired: process.kill()
    process.wait()


# ---- a run of ours ----


class Told(Callback):
    """Has the encoder judged after every epoch, while the clock of `Cost` stands still"""
    order = 46

    def __init__(self, folder: Path, decode_s: float): self.folder, self.decode_s = folder, decode_s

    def after_train(self):
        learn, weights = self.learn, self.folder / "weights.pt"
        torch.save(dict(encoder={name: t.cpu() for name, t in learn.model.encoder.state_dict().items()}), weights)
        totals = learn.cost.totals()
        tell(epoch=self.epoch + 1, seconds=totals["seconds"], tflop=totals["tflop"], decode_s=self.decode_s,
             weights=str(weights), mean=list(learn.mean), std=list(learn.std), precision=learn.precision,
             notes=list(learn.notes), lr=learn.recipe.peak_lr(self.dls.train.bs), setting=learn.recipe.setting,
             speedups=[repr(cb) for cb in learn.cbs if isinstance(cb, tuple(SPEEDUPS.values()))])


def train_ours(settings: dict[str, Any]) -> None:
    """Train a configuration of ours, in a process of its own, which tells of its epochs"""
    a, config = settings, OURS[settings["method"]]
    folder, seed = Path(a["folder"]), a["seed"]
    start = time.perf_counter()
    labels = 0.1 if SUNCET in config.speedups else None
    dls = image_dls(a["data"], size=a["size"], bs=a["bs"], valid=0, labels=labels, seed=seed, device=a["device"])
    told = Told(folder, time.perf_counter() - start)

    def learner(loss=None):
        torch.manual_seed(seed)
        recipe = config.recipe(a["setting"] or None)
        return contrastive_learner(dls, a["arch"], recipe, loss, [*config.make_speedups(seed), Cost(), told],
                                   small_input=a["small"], precision=a["precision"], knn_pictures=0)

    learn = learner()
    if config.dcl: learn = learner(DCL(learn.recipe.loss().temp))
    try: train(learn, a["epochs"], lr=None, resume=folder)
    except InputError as e: tell(stopped=str(e))


# ---- the table and the figure ----

COLUMNS = {
    "": "{name}", "seconds": "{seconds:,.0f}{seconds_std:,.0f}", "TFLOP": "{tflop:,.0f}",
    "kNN, k=20": "{knn20:.1%}{knn20_std:.1%}", "kNN, k=200": "{knn200:.1%}{knn200_std:.1%}",
    "linear": "{linear:.1%}{linear_std:.1%}", "seconds to the goal": "{seconds_to:,.0f}{seconds_to_std:,.0f}",
    "TFLOP to it": "{tflop_to:,.0f}", "sooner": "{sooner:.1f}", "than the reference had it": "{sooner_than_it:.1f}",
    "kNN at the reference's end": "{knn_at_end:.1%}{knn_at_end_std:.1%}",
}


def best_of(rows: list[dict], family: str, metric: str) -> list[dict]:
    """The finished runs of the contestant of a family, or ('best') of all other libraries, that ends with the highest
    mean"""
    def among(row): return row["library"] if family == "best" else row["family"] == family
    runs = [row for row in rows if among(row) and row.get("done") and "stopped" not in row]
    by_name = {row["name"]: [r for r in runs if r["name"] == row["name"]] for row in runs}
    return max(by_name.values(), default=[], key=lambda runs: mean(run["epochs"][-1][metric] for run in runs))


def curve(runs: list[dict]) -> list[dict[str, float]]:
    """The epochs of runs that are alike, each the mean over the seeds"""
    return [{key: mean(e[key] for e in epoch) for key in epoch[0]} for epoch in zip(*(run["epochs"] for run in runs))]


def accuracy_at(run: dict, seconds: float, metric: str) -> float:
    """The accuracy that a run had after so many seconds, between two epochs in proportion; its last one later"""
    points = [(0.0, run[f"untrained_{metric}"]), *((e["seconds"], e[metric]) for e in run["epochs"])]
    for (a, low), (b, high) in zip(points, points[1:]):
        if seconds < b: return low + (high - low) * (seconds - a) / (b - a)
    return points[-1][1]


def standings(rows: list[dict], reference: str, metric: str) -> list[dict[str, Any]]:
    """Everybody's runs, as means over the seeds with their standard deviation, and what it took to the goal: the mean
    accuracy with which the reference's runs end. `seconds_to` is of the mean curve, its deviation over the seeds if
    all reached the goal"""
    goal_runs = best_of(rows, reference, metric)
    goal = curve(goal_runs)[-1] if goal_runs else None
    own = goal and reach(curve(goal_runs), metric, goal[metric])
    result = []
    for name in dict.fromkeys(row["name"] for row in rows):
        runs = [row for row in rows if row["name"] == name and row.get("done") and "stopped" not in row]
        if not runs: continue
        last = curve(runs)[-1]
        best = best_of(rows, runs[0]["family"], metric)
        row = dict(name=name, seeds=len(runs), lr=runs[0]["lr"], is_best_lr=best[0]["name"] == name, **last)
        for key in ("seconds", "knn20", "knn200"): row[f"{key}_std"] = deviation(run["epochs"][-1][key] for run in runs)
        row |= dict(linear=mean(run["linear"] for run in runs), linear_std=deviation(run["linear"] for run in runs))
        result.append(row | (to_goal(runs, metric, goal, own) if goal else {}))
    return result


def to_goal(runs: list[dict], metric: str, goal: dict[str, float], own: dict[str, float]) -> dict[str, Any]:
    """What runs that are alike took to the goal; own: where the reference first was there itself"""
    at_end = [accuracy_at(run, goal["seconds"], metric) for run in runs]
    row: dict[str, Any] = dict(knn_at_end=mean(at_end), knn_at_end_std=deviation(at_end))
    hits = [reach(run["epochs"], metric, goal[metric]) for run in runs]
    row["seconds_to_by_seed"] = [hit and hit["seconds"] for hit in hits]
    hit = reach(curve(runs), metric, goal[metric])
    if hit is None: return row
    row |= dict(seconds_to=hit["seconds"], tflop_to=hit["tflop"], epochs_to=hit["epoch"],
                sooner=goal["seconds"] / hit["seconds"], sooner_than_it=own["seconds"] / hit["seconds"])
    if None not in hits: row["seconds_to_std"] = deviation(row["seconds_to_by_seed"])
    return row


def draw(run: Run, courses: list[Course]) -> None:
    """kNN against seconds, a panel for each data set: means over the seeds, within bands from the lowest to the
    highest; the others dashed, each with its best learning rate"""
    if not courses: raise Lacking("there are no results to draw")
    figure = Figure(figsize=(8 * len(courses), 5), layout="constrained")
    for axis, course in zip(figure.subplots(1, len(courses), squeeze=False).flat, courses):
        rows, metric = course.sheet.kept()["rows"], course.metric
        families = sorted({row["family"]: row["library"] for row in rows}.items(), key=lambda item: item[1] != "")
        for i, (family, library) in enumerate(families):
            runs = best_of(rows, family, metric)
            if not runs: continue
            style = dict(color=f"C{i % 10}", linestyle="--" if library else "-",
                         linewidth=2.5 if family == "fast" else 1.5, label=f"{runs[0]['name']} ({len(runs)})")
            draw_runs(axis, "seconds", runs, metric, **style)
        goal = best_of(rows, course.reference, metric)
        if goal: axis.axhline(curve(goal)[-1][metric], color="grey", linestyle=":", linewidth=1)
        axis.set(xlabel="seconds of training", ylabel=f"kNN accuracy, k={course.k}", xlim=(0, None),
                 title=f"{course.data.name}, {course.size} px, {course.rules.arch}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    path = run.file("+".join(course.data.name for course in courses), "+".join(str(course.size) for course in courses),
                    courses[0].rules.arch).with_suffix(".png")
    figure.savefig(path, dpi=150)
    print(f"figure in {path}")
