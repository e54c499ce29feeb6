"""How it runs on a device: several processes, waits of the host, whether all trains, and all that needs a GPU."""
import gc
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import (BENCHMARKS, ROOT, Group, Labelled, Lacking, Run, apart, chosen, option, random_dls,
                    seconds_a_step, train, turns, with_library, words)
from fastai.callback.core import Callback, CancelFitException

import fastcontrast
from fastcontrast.all import (CombinePatches, Cost, HardRegions, IntermediateLoss, PartialBackprop, SuNCEt,
                              SupervisedTerm, contrastive_learner)
from fastcontrast.recipes import METHODS

group = Group("devices", "How it runs on a device: several processes, waits of the host, and all that needs a GPU")


# ---- several processes ----


@group.measurement(quick=dict(arch="test_resnet", size=16, bs=8, warm=1, steps=1, rounds=1))
def processes(
    run: Run,
    method: str = "simclr", # recipe
    arch: str = "resnet18", # encoder
    size: int = 32,         # side of a picture
    bs: int = 256,          # batch, of both together
    warm: int = 2,          # steps before the clock starts
    steps: int = 8,         # steps on the clock
    rounds: int = 5,        # measurements of each
    cores: int = 2,         # threads of one process, and of two together
) -> None:
    """How long does training on two CPU processes take, over training on one?

    The same batches, and together as many threads: one process has all of them, two have half of them each and half
    of every batch. Both train on the same pictures in memory, by accelerate's launcher in the second case. Each
    measurement is a run of its own; they alternate. Only steps are on the clock, not the start of the processes.
    Goal: at most 1.15.
    """
    if run.device != "cpu": raise Lacking("it is about processes on a CPU: --device=cpu")
    shape = dict(method=method, arch=arch, size=size, bs=bs, warm=warm, steps=steps)
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    kinds = dict(one=([], cores), two=(launcher, max(1, cores // 2)))
    got: dict[str, list[float]] = dict(one=[], two=[])
    for _, name in turns(got, rounds):
        launch, threads = kinds[name]
        environ = dict(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS=str(threads))
        got[name].append(apart(seconds_together, launch, environ, threads=threads, **shape))
        print(f"{name}: {got[name][-1]:.3f} s a step", flush=True)
    ratios = [two / one for one, two in zip(got["one"], got["two"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"two processes over one: {ratio:.3f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")
    result = dict(goal="ratio at most 1.15", ratio=ratio, ratios=ratios, one_s=got["one"], two_s=got["two"])
    run.save(result, f"{size}px")


def seconds_together(method: str, arch: str, size: int, bs: int, warm: int, steps: int, threads: int) -> float:
    """Seconds a step, as this process (of those that train together) sees them"""
    torch.set_num_threads(threads)
    dls = random_dls(4 * bs, size, bs, "cpu")
    learn = contrastive_learner(dls, arch, method, small_input=False, knn_pictures=0)
    return seconds_a_step(learn, warm, steps)


# ---- waits of the host ----

SPEEDUPS: dict[str, Callable[[], list]] = dict(
    comb_patches=lambda: [CombinePatches()], intermediate=lambda: [IntermediateLoss()],
    partial=lambda: [IntermediateLoss(), PartialBackprop()], regions=lambda: [HardRegions("layer2")],
    suncet=lambda: [SuNCEt()], supervised=lambda: [SupervisedTerm()], cost=lambda: [Cost()],
    all=lambda: [CombinePatches(), IntermediateLoss(), PartialBackprop(), HardRegions("layer2"), SuNCEt()])
OPTIONS = dict(accumulate=dict(accumulate=2), fp16=dict(precision="fp16"), fp32=dict(precision="fp32"),
               compile=dict(compile=True))
CASES = [*METHODS, *(f"{method}+{name}" for method in ("simclr", "moco_v3") for name in SPEEDUPS),
         *(f"moco_v3+{name}" for name in OPTIONS)]
LIBRARY = Path(fastcontrast.__file__).parent


@group.measurement(quick=dict(cases="simclr", arch="test_resnet", size=32, bs=8))
def waits(
    run: Run,
    cases: str = "",        # recipes, as "moco_v3+suncet" with more, with commas between them; all if not given
    arch: str = "resnet18", # encoder
    size: int = 64,         # side of a picture
    bs: int = 64,           # batch
) -> None:
    """Where does a training step make the host wait for the device?

    Every recipe and every speedup, by PyTorch's synchronisation debug mode. A few steps after the first are
    watched, with the fetching of their batches; the look at the loss every fifty steps and what an epoch's end
    reads are not among them. Any wait is reported with the line of the library it came from, and ends in an error.
    Goal: none.
    """
    if run.device == "cpu": raise Lacking("a host that is the device has nothing to wait for, so nothing was checked")
    found: dict[str, dict[str, float]] = {}
    for case in chosen(cases, CASES, "case"):
        try: found[case] = waits_in_step(learner_of(case, arch, size, bs, run.device))
        except Exception as e: found[case] = {f"not checked: {type(e).__name__}: {e}": 0}
        said = "; ".join(f"{n:.3g} a step at {place}" if n else place for place, n in found[case].items())
        print(f"{case}: {said or 'no wait'}", flush=True)
        run.save(dict(goal="no wait in a step", waits=found))
        gc.collect()
    if any(found.values()): raise SystemExit("some steps make the host wait")


def learner_of(case: str, arch: str, size: int, bs: int, device: str):
    """A recipe with speedups and options"""
    dls = random_dls(9 * bs, size, bs, device, Labelled, labels="all")
    method, *more = case.split("+")
    cbs = [cb for name in more if name in SPEEDUPS for cb in SPEEDUPS[name]()]
    options = {k: v for name in more if name in OPTIONS for k, v in OPTIONS[name].items()}
    return contrastive_learner(dls, arch, METHODS[method](setting="imagenet"), cbs=cbs, knn_pictures=0, **options)


class Watch(Callback):
    """Steps `warm` to `warm + steps` under `switch`, which turns the debug mode on ('warn') and off ('default');
    where waits came from, in `seen`"""
    order = -100

    def __init__(self, warm: int, steps: int, switch: Callable[[str], None]):
        self.warm, self.steps, self.switch, self.seen = warm, steps, switch, Counter()

    def before_batch(self):
        if self.train_iter == self.warm: self.switch("warn")
        if self.train_iter == self.warm + self.steps:
            self.switch("default")  # the end of an epoch may wait
            raise CancelFitException

    def note(self, message, category, filename, lineno, file=None, line=None):
        if "synchronizing" not in str(message): return
        frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(LIBRARY)]
        stack = [f"{Path(f.filename).name}:{f.lineno} {f.line}" for f in frames]
        # in the backward pass, in fastai, in PyTorch
        outside = [] if Path(filename).is_relative_to(LIBRARY) else [f"{Path(filename).name}:{lineno}"]
        self.seen[" < ".join(outside + stack[:-3:-1])] += 1


def waits_in_step(learn, warm: int = 2, steps: int = 6,
                  switch: Callable[[str], None] = torch.cuda.set_sync_debug_mode) -> dict[str, float]:
    """Waits of the host in a training step of a learner, by where they came from"""
    watch = Watch(warm, steps, switch)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = watch.note
        try: train(learn, cbs=watch)
        finally: switch("default")
    return {place: n / steps for place, n in watch.seen.items()}


# ---- whether everything trains ----

WAYS = dict(plain={}, accumulate=dict(accumulate=2), compile=dict(compile=True))


@group.measurement(quick=dict(methods="simclr", ways="plain,accumulate", arch="test_resnet", size=32, bs=8,
                              precision="auto"))
def trains(
    run: Run,
    methods: str = "",        # with commas between them; all if not given
    ways: str = "",           # plain, accumulate, compile, with commas between them; all if not given
    arch: str = "resnet18",   # encoder
    size: int = 64,           # side of a picture
    bs: int = 64,             # batch
    precision: str = "bf16",  # of the model
) -> None:
    """Does every recipe train on this device: plain, in parts (accumulate=2), and compiled?

    A check, not a measurement, of three steps: the loss is a finite number and all weights stay so, weights move, and a
    compiled step's first loss is that of a plain one. What fails is reported with its error, and ends in one.
    """
    losses: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for way, method in product(chosen(ways, WAYS, "way"), chosen(methods, METHODS, "method")):
        start, name = time.perf_counter(), f"{method}, {way}"
        try:
            losses[name] = losses_of(method, way, arch, size, bs, precision, run.device)
            plain = losses.get(f"{method}, plain")
            if way == "compile" and plain: same_first_loss(losses[name], plain)
        except Exception as e: failed[name] = f"{type(e).__name__}: {e}"
        print(f"{name}: {failed.get(name) or 'trains'} ({time.perf_counter() - start:.1f} s)", flush=True)
        run.save(dict(goal="all train", losses=losses, failed=failed))
        gc.collect()
    if failed: raise SystemExit(f"{len(failed)} failed: {'; '.join(failed)}")


class FirstLosses(Callback):
    """The losses of the first steps, after which the fit ends"""
    order = 100

    def __init__(self, steps: int): self.steps, self.each = steps, []
    def after_loss(self): self.each.append(self.loss.detach())

    def after_batch(self):
        if len(self.each) == self.steps: raise CancelFitException


def losses_of(method: str, way: str, arch: str, size: int, bs: int, precision: str, device: str) -> list[float]:
    """The losses of three steps, after which weights have moved and are finite"""
    dls = random_dls(4 * bs, size, bs, device)
    recipe = METHODS[method](setting="imagenet")
    learn = contrastive_learner(dls, arch, recipe, precision=precision, knn_pictures=0, **WAYS[way])
    before, seen = [p.detach().clone() for p in learn.model.encoder.parameters()], FirstLosses(3)
    train(learn, cbs=seen)
    assert len(seen.each) == 3 and torch.stack(seen.each).isfinite().all(), f"losses {seen.each}"
    assert all(p.isfinite().all() for p in learn.model.parameters()), "a weight is not finite"
    moved = [not torch.equal(p, q) for p, q in zip(before, learn.model.encoder.parameters())]
    assert any(moved), "no weight has moved"
    return torch.stack(seen.each).tolist()


def same_first_loss(compiled: list[float], plain: list[float]) -> None:
    assert abs(compiled[0] / plain[0] - 1) < 0.02, f"first loss {compiled[0]:.4f} compiled, {plain[0]:.4f} as it is"


# ---- all that needs a GPU ----


@dataclass(frozen=True)
class Part:
    """A measurement with its settings, and the minutes it may take; in a trial it runs with its own `--quick`"""
    group: int
    minutes: float
    command: str              # group and measurement, or pytest's arguments
    settings: dict[str, Any] = field(default_factory=dict) # {imagenette} and {cifar10} in them are folders

    def arguments(self, folders: dict[str, str], peers: str, quick: bool, out: Path) -> list[str]:
        """What Python is given"""
        if self.command.startswith("pytest"):
            found = {path.name: os.path.relpath(path) for path in (ROOT / "tests").rglob("test_*.py")}
            return ["-m", *(found.get(word, word) for word in self.command.split()), *["--collect-only"] * quick]
        given = {k: v.format(**folders) if isinstance(v, str) else v for k, v in self.settings.items()}
        if self.command == "speed throughput" and peers: given["peers"] = peers
        settings = ["--quick"] if quick else [option(name, value) for name, value in given.items()]
        return [os.path.relpath(BENCHMARKS / "run.py"), *self.command.split(), *settings, "--out", str(out)]

    def lacks(self, folders: dict[str, str]) -> str | None:
        """A folder that is not there"""
        paths = [path for name, path in folders.items() if f"{{{name}}}" in str(self.settings.get("data"))]
        return next((path for path in paths if not Path(path).is_dir()), None)


def accuracy_of(group: int, data: str, size: int, begin: float, configs: str) -> Part:
    """A comparison; begin: the minutes in which a run may begin, so that it ends in time"""
    settings = dict(data=data, arch="resnet18", size=size, bs=256, epochs=50, pictures=0, valid_pictures=0, seeds="0",
                    linear=True, minutes=begin, configs=configs)
    return Part(group, 8.5, "accuracy speedups", settings)


# pairs that a goal compares stay together
PAIRS = dict(fast_moco="moco_v3,fast_moco,fast_moco half", partial="moco_v3,moco_v3+partial+regions,moco_v3+all",
             suncet="simclr,simclr+suncet,simclr+suncet half", dcl="simclr bs64,simclr+dcl bs64")
PARTS: dict[str, Part] = dict(
    tests=Part(1, 1, "pytest -q -n 0 test_losses.py test_views.py -k cuda"),
    waits=Part(1, 2.5, "devices waits"),
    trains=Part(1, 1.5, "devices trains", dict(ways="plain,accumulate")),
    step_share=Part(1, 1, "speed step-share", dict(methods="simclr,moco_v3")),
    step_share_compiled=Part(1, 1, "speed step-share", dict(compile=True)),
    utilisation=Part(1, 1, "speed utilisation"),
    utilisation_compiled=Part(1, 1, "speed utilisation", dict(compile=True)),
    throughput_32=Part(2, 2, "speed throughput", dict(data="{cifar10}/train", size=32, bs=256, steps=100)),
    throughput_128=Part(2, 3, "speed throughput", dict(data="{imagenette}/train", size=128, bs=256, steps=60)),
    time_to_knn_imagenette=Part(2, 4, "accuracy time-to-knn", dict(data="{imagenette}", eval_every=2, minutes=3.5)),
    time_to_knn_cifar10=Part(3, 6, "accuracy time-to-knn", dict(data="{cifar10}", eval_every=2, minutes=5.5)),
    trains_compiled=Part(3, 3, "devices trains", dict(ways="compile")),
    comb_patches=Part(4, 1, "speedups comb-patches"),
    partial=Part(4, 1.5, "speedups partial"),
    regions=Part(4, 1, "speedups regions"),
    together=Part(4, 1.5, "speedups together"),
    suncet=Part(4, 1, "speedups suncet"),
    memory=Part(4, 1, "memory step"),
    accumulate=Part(4, 2, "memory accumulate", dict(rounds=3)),
    **{f"accuracy_imagenette_{name}": accuracy_of(number, "{imagenette}", 128, 6.5, configs)
       for number, (name, configs) in enumerate(PAIRS.items(), 5)},
    **{f"accuracy_cifar10_{name}": accuracy_of(number, "{cifar10}", 32, 4.5, configs)
       for number, (name, configs) in enumerate(PAIRS.items(), 9)},
    step_time=Part(13, 4, "speed step-time"),
    queue_share=Part(13, 2, "speed queue-share"),
    multi_crop=Part(13, 3, "speed multi-crop"),
)


@group.measurement(quick={}, alone=True)
def gpu(
    run: Run,
    parts: str = "",  # names of parts, with commas between them; all if not given
    groups: str = "", # numbers of groups of parts, with commas between them; all if not given
    minutes: float | None = None, # for everything; what does not fit in is left out
    imagenette: str = "data/imagenette-128", # folder with train/ and val/
    cifar10: str = "data/cifar10", # folder with train/ and test/
    peers: str = "",  # other libraries, as in `speed throughput`
    show: bool = False, # print what would be run
) -> None:
    """What does everything measure that needs a GPU? One measurement after the other, each with a limit of its own.

    The parts are in the order of what they tell in little time, in groups of at most nine minutes on an H100. A
    part that fails does not stop the rest, one whose data are not there is left out. Results go to --out, what the
    programs print to logs/ in it, and a table of how each part went ends the run. The accuracy parts go on where
    they were: run their group again until nothing is left. Paths are relative to the current folder.
    """
    if run.device == "cpu" and not (run.quick or show): raise Lacking("it needs a GPU (--show: what would run)")
    folders = dict(imagenette=imagenette, cifar10=cifar10)
    wanted = {int(number) for number in words(groups)} or {part.group for part in PARTS.values()}
    todo = {name: PARTS[name] for name in chosen(parts, PARTS, "part") if PARTS[name].group in wanted}
    commands = {name: part.arguments(folders, peers, run.quick, run.folder) for name, part in todo.items()}
    if show:
        for name, part in todo.items():
            print(f"{part.group:2}  {part.minutes:4g} min  {name}: python {shlex.join(commands[name])}")
        return
    logs = run.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    start, rows = time.perf_counter(), {}
    for name, part in todo.items():
        log, began, left = logs / f"{name}.log", time.perf_counter(), 60 * (10 if run.quick else part.minutes)
        if minutes: left = min(left, 60 * minutes - (began - start))
        if missing := part.lacks(folders): outcome = f"no data at {missing}"
        elif left < 10: outcome = "no time left"
        else:
            print(f"{name} …", flush=True)
            outcome = run_part(commands[name], log, left)
        ran = not outcome.startswith("no ")
        rows[name] = dict(outcome=outcome, seconds=time.perf_counter() - began, said=last_lines(log, 8) if ran else [],
                          command="python " + shlex.join(commands[name]))
        said = [f"{name}: {outcome} in {rows[name]['seconds']:.0f} s", *rows[name]["said"][-3:]]
        if ran: print(*said, sep="\n    ", flush=True)
        run.save(dict(parts=rows), "quick" * run.quick)
    width = max(map(len, rows), default=0)
    for name, row in rows.items():
        said = f": {row['said'][-1][:120]}" if row["said"] else ""
        print(f"{name:{width}}  {row['seconds']:4.0f} s  {row['outcome']}{said}")
    failed = [name for name, row in rows.items() if row["outcome"].startswith(("failed", "over"))]
    if failed: raise SystemExit(f"failed: {', '.join(failed)}")


def run_part(arguments: list[str], log: Path, seconds: float) -> str:
    """How it went; whatever it started ends with it"""
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-W", "ignore", *arguments], stdout=out, stderr=subprocess.STDOUT,
                                   start_new_session=True, env=with_library())
        try: code = process.wait(seconds)
        except subprocess.TimeoutExpired: return "over time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return "done" if not code else f"failed ({code})"


def last_lines(log: Path, n: int) -> list[str]:
    """Of what a program said, without where it wrote its results"""
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("results in", "figure in"))][-n:]
