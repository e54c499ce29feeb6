"""What all measurements share: how they are registered and run, turns and ratios, pictures and learners, results.

The last section, "inside a learner", has every place that looks behind the library's public names.
"""
import dataclasses
import importlib
import inspect
import json
import math
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from fastai.callback.core import Callback, CancelFitException
from fastcore.docments import docments
from PIL import Image
from torch import Tensor, nn

from fastcontrast.all import Contrast, ProgressiveSize, Queue, contrastive_learner, image_dls
from fastcontrast.files import write_whole
from fastcontrast.models import flop_counter
from fastcontrast.pairs import PrototypeScores
from fastcontrast.precision import autocast as autocast_to, pick_precision
from fastcontrast.recipes import METHODS, make_part
from fastcontrast.speedups.regions import best_window, take_windows, window_sides
from fastcontrast.speedups.suncet import LabeledTerm
from fastcontrast.targets import Memory, Target

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
LR = 0.01  # small, so that random pictures and a warm-up of a step do not end in numbers that are none


# ---- measurements, and how one is run ----


class Lacking(Exception):
    """What a measurement needs is not there; the message says what"""


@dataclasses.dataclass
class Run:
    """A measurement being made: where it runs, with which settings, and where its results go"""
    group: str
    name: str
    device: str    # 'cpu' or 'cuda'
    quick: bool    # a trial, which measures nothing
    folder: Path   # for the results
    settings: dict[str, Any]
    command: str   # that makes it again

    def file(self, *labels: str) -> Path:
        """Where results go, `GROUP_MEASUREMENT_LABELS_DEVICE.json`; empty labels are left out"""
        return self.folder / f"{'_'.join(filter(None, [self.group, self.name, *labels, self.device]))}.json"

    def save(self, result: dict, *labels: str) -> Path:
        """Write settings, results, machine, versions and commit; says where, and returns it"""
        path = self.file(*labels)
        about = dict(environment(self.device), command=self.command, date=time.strftime("%Y-%m-%d"))
        write_whole(path, json.dumps(dict(settings=self.settings, **result, **about), indent=1) + "\n")
        print(f"results in {path}", flush=True)
        return path


@dataclasses.dataclass
class Measurement:
    """A function `measure(run, **settings)`, with the settings that a GPU and a trial have instead of its defaults"""
    group: str
    measure: Callable[..., None]
    quick: dict[str, Any]
    gpu: dict[str, Any]
    alone: bool  # it is not among those of its group that run together
    lone: bool   # it is the only one of its group, and called by the group's name

    @property
    def name(self) -> str: return self.measure.__name__

    @property
    def words(self) -> list[str]:
        """What it is called on the command line"""
        return [self.group] if self.lone else [self.group, self.name.replace("_", "-")]

    @property
    def question(self) -> str:
        """The first paragraph of its help"""
        return " ".join(inspect.getdoc(self.measure).split("\n\n")[0].split())

    def parameters(self) -> list[inspect.Parameter]:
        """Its settings, without the run"""
        return list(inspect.signature(self.measure).parameters.values())[1:]

    def run(self, device: str | None = None, quick: bool = False, out: str | None = None, **given) -> None:
        """Measure; given: settings, of which those that are None stay as they are by default"""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device not in ("cpu", "cuda"): raise Lacking(f"a device '{device}' is not known here: cpu or cuda")
        if device == "cuda" and not torch.cuda.is_available(): raise Lacking("there is no CUDA device")
        given = {name: value for name, value in given.items() if value is not None}
        usual = {p.name: p.default for p in self.parameters()} | (self.gpu if device == "cuda" else {})
        settings = usual | (self.quick if quick else {}) | given
        command = ["python", "benchmarks/run.py", *self.words]
        command += [option(name, value) for name, value in given.items()]
        command += [f"--device={device}"] + ["--quick"] * quick
        with results_folder(out, quick) as folder:
            shown = {name: without_folder(value) for name, value in settings.items()}
            name = "" if self.lone else self.name
            self.measure(Run(self.group, name, device, quick, folder, shown, shlex.join(command)), **settings)


class Group:
    """Measurements of one kind, as a sub-command of `run.py` with a command for each of them

    lone: there is one, which is the sub-command.
    """
    def __init__(self, name: str, about: str, lone: bool = False):
        self.name, self.about, self.lone, self.measurements = name, about, lone, {}

    def measurement(self, quick: dict[str, Any], gpu: dict[str, Any] | None = None,
                    alone: bool = False) -> Callable[[Callable], Callable]:
        """A decorator for a function `measure(run, **settings)`

        quick, gpu: other values of its settings, in a trial and on a GPU; alone: it runs when it is asked for by name.
        """
        def add(measure):
            made = Measurement(self.name, measure, quick, gpu or {}, alone, self.lone)
            self.measurements[measure.__name__] = made
            return measure
        return add

    def add_to(self, app: typer.Typer) -> None:
        """Make it a part of the program"""
        if not self.lone: return app.add_typer(self.app(), name=self.name)
        (measurement,) = self.measurements.values()
        app.command(self.name, short_help=self.about)(command_of(measurement))

    def app(self) -> typer.Typer:
        """The sub-command: alone it makes all measurements of the group"""
        app = typer.Typer(help=self.about, rich_markup_mode=None, add_completion=False)

        @app.callback(invoke_without_command=True)
        def everything(context: typer.Context, device: DEVICE = None, quick: QUICK = False, out: OUT = None):
            if context.invoked_subcommand is None and not self.run_all(device, quick, out): raise typer.Exit(1)
        for measurement in self.measurements.values():
            app.command(measurement.words[-1], short_help=measurement.question)(command_of(measurement))
        return app

    def run_all(self, device: str | None, quick: bool, out: str | None) -> bool:
        """Make all measurements; one that lacks something is left out. Returns whether all others ended well"""
        failed = []
        for measurement in self.measurements.values():
            if measurement.alone: continue
            print(f"\n{self.name} {measurement.name} …", flush=True)
            try: measurement.run(device, quick, out)
            except Lacking as e: print(f"left out: {e}")
            except SystemExit as e:
                print(e)
                failed.append(measurement.name)
        if failed: print(f"\nfailed: {', '.join(failed)}")
        return not failed


DEVICE = Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda where there is one")]
QUICK = Annotated[bool, typer.Option("--quick", help="Try the program with tiny settings, which measure nothing")]
OUT = Annotated[str | None, typer.Option(help="Folder for the results, by default benchmarks/results")]


def command_of(measurement: Measurement) -> Callable[..., None]:
    """A function whose arguments are the options of a measurement, for Typer; help is the comment beside a setting"""
    notes = docments(measurement.measure)

    def command(context: typer.Context, device: str | None, quick: bool, out: str | None, **given):
        # the group's options may stand before the measurement's name
        whole = dict(device=None, quick=False, out=None) if measurement.lone else context.parent.params
        try: measurement.run(device or whole["device"], quick or whole["quick"], out or whole["out"], **given)
        except Lacking as e:
            print(f"{' '.join(measurement.words)}: {e}", file=sys.stderr)
            raise typer.Exit(2) from e

    def parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)

    def setting(p: inspect.Parameter) -> inspect.Parameter:
        values = {"by default": p.default}
        if p.name in measurement.gpu: values["on a GPU"] = measurement.gpu[p.name]
        usual = ", ".join(f"{where} {value}" for where, value in values.items() if value not in (None, "", False))
        text = (notes.get(p.name) or "") + (f" [{usual}]" if usual else "")
        return parameter(p.name, Annotated[p.annotation | None, typer.Option(help=text, show_default=False)], None)

    command.__signature__ = inspect.Signature([
        parameter("context", typer.Context), parameter("device", DEVICE, None), parameter("quick", QUICK, False),
        parameter("out", OUT, None), *(setting(p) for p in measurement.parameters())])
    command.__annotations__ = {p.name: p.annotation for p in command.__signature__.parameters.values()}
    command.__doc__ = measurement.measure.__doc__
    return command


def option(name: str, value: Any) -> str:
    """A setting as it is written on the command line"""
    name = name.replace("_", "-")
    if isinstance(value, bool): return f"--{'' if value else 'no-'}{name}"
    return f"--{name}={value}"


def without_folder(value: Any) -> Any:
    """A setting for the results: of a path that is there its last parts, which name the data"""
    if not isinstance(value, str) or not os.path.isabs(value): return value
    return "/".join(Path(value).parts[-2:])


@contextmanager
def results_folder(out: str | None, quick: bool) -> Iterator[Path]:
    """Where results go: a trial's are forgotten, unless somebody says where to keep them"""
    if quick and not out:
        with tempfile.TemporaryDirectory() as folder: yield Path(folder)
    else: yield Path(out or RESULTS)


def words(text: str) -> list[str]:
    """The words between commas"""
    return [word.strip() for word in text.split(",") if word.strip()]


def chosen(text: str, known: Iterable[str], kind: str) -> list[str]:
    """The words between commas, all of which are known; all known ones if there are none"""
    known = list(known)
    names = words(text) or known
    if unknown := [name for name in names if name not in known]:
        raise Lacking(f"{', '.join(unknown)} is no {kind}: there are {', '.join(known)}")
    return names


def environment(device: str) -> dict[str, Any]:
    """The machine, versions and commit, as results name them"""
    def installed(package):
        try: return version(package)
        except PackageNotFoundError: return None

    def git(*arguments):
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT).stdout.strip()

    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":", 1)[1] for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = (names or [processor])[0].strip()
    changed = git("status", "--porcelain", "--", "fastcontrast")
    packages = ("fastcontrast", "torch", "torchvision", "fastai", "timm", "kornia", "lightly")
    return dict(device=torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores, {processor}",
                threads=torch.get_num_threads(), precision=pick_precision("auto", device),
                python=platform.python_version(), versions={package: installed(package) for package in packages},
                commit=git("rev-parse", "HEAD") + (" with changes" if changed else ""))


# ---- turns, clocks and counts ----


def sync() -> None:
    """Wait for a GPU, if there is one"""
    if torch.cuda.is_available(): torch.cuda.synchronize()


def seconds_of(function: Callable[[], Any]) -> float:
    """What a call takes"""
    sync()
    start = time.perf_counter()
    function()
    sync()
    return time.perf_counter() - start


def turns(names: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Round and name: all names in every round, in one order and in the other by turns"""
    names = list(names)
    for number in range(rounds):
        for name in names[::-1 if number % 2 else 1]: yield number, name


def spread(ratios: Iterable[float]) -> dict[str, Any]:
    """Median and quartiles"""
    ratios = sorted(ratios)
    quarter = len(ratios) // 4
    return dict(ratio=statistics.median(ratios), ratio_quartiles=[ratios[quarter], ratios[-1 - quarter]])


def spelled(got: dict[str, Any]) -> str:
    """A median and its quartiles, for a line"""
    low, high = got["ratio_quartiles"]
    return f"{got['ratio']:.3f} (quartiles {low:.3f} to {high:.3f})"


def alternate(a: Callable[[], Any], b: Callable[[], Any], rounds: int, warm: int = 1,
              before: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """Seconds of `a` and of `b`, in turn so that both see the same machine, and a / b of each round

    warm: rounds that are not counted; before: is called before each, off the clock.
    """
    functions, times = dict(a=a, b=b), dict(a=[], b=[])
    for number, name in turns(functions, warm + rounds):
        before()
        seconds = seconds_of(functions[name])
        if number >= warm: times[name].append(seconds)
    ratios = [x / y for x, y in zip(times["a"], times["b"], strict=True)]
    return dict(a_s=statistics.median(times["a"]), b_s=statistics.median(times["b"]), **spread(ratios),
                ratios=sorted(ratios))


def flops(function: Callable[[], Any]) -> int:
    """Operations of matrix products and convolutions in a call, which draws the same as any other; a multiplication
    and an addition are two"""
    torch.manual_seed(0)  # how many pictures are blurred, for one
    with flop_counter() as count: function()
    return count.get_total_flops()


def resident() -> int:
    """Bytes of memory that the process has now"""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_since(before: int, device: str) -> float:
    """Bytes at the peak: on CUDA of the allocator, else what the process has grown by since it had `before`"""
    if device == "cuda": return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def apart(function: Callable[..., Any], launch: Iterable[str] = (), environ: dict[str, str] | None = None,
          **arguments) -> Any:
    """What a function of a module here returns, called in a process of its own; arguments and result are JSON

    launch: what Python is given before the program, to start it; environ: for its environment.
    """
    call = [str(BENCHMARKS / "common.py"), function.__module__, function.__name__, json.dumps(arguments)]
    return last_line([sys.executable, *launch, *call], environ)


def last_line(command: list[str], environ: dict[str, str] | None = None) -> Any:
    """The last line that a program prints, which is JSON"""
    out = subprocess.run(command, capture_output=True, text=True, env=with_library(environ))
    if out.returncode: raise SystemExit(f"{shlex.join(command)} failed:\n{out.stderr}")
    return json.loads(out.stdout.splitlines()[-1])


def with_library(environ: dict[str, str] | None = None) -> dict[str, str]:
    """The environment for a process that finds this library, installed or not"""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **(environ or {})}


def hiding_gpus(device: str) -> dict[str, str]:
    """For the environment of a program that takes a GPU wherever it finds one: on a CPU it finds none"""
    return dict(CUDA_VISIBLE_DEVICES="") if device == "cpu" else {}


# ---- pictures and learners ----


class Pictures:
    """Random pictures, as a data set"""
    classes: list[str] | None = None

    def __init__(self, n: int, size: int):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)

    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], -1


class Labelled(Pictures):
    """Random pictures with a class each"""
    def __init__(self, n: int, size: int):
        super().__init__(n, size)
        self.classes = [str(c) for c in range(min(20, n // 2))]
        self.targets = [i % len(self.classes) for i in range(n)]

    def __getitem__(self, i): return self.x[i], self.targets[i]


def noise_folder(folder: Path, n: int, size: int) -> Path:
    """Files of noise in two class folders"""
    generator = np.random.default_rng(0)
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return folder


def random_dls(n: int, size: int, bs: int, device: str, pictures: type[Pictures] = Pictures, **options):
    """Loaders of random pictures in memory, all for training; the seed of what is made next is set"""
    torch.manual_seed(0)
    return image_dls(pictures(n, size), size=size, bs=bs, valid=0, device=device, **options)


def train(learn, epochs: int = 1, lr: float | None = LR, cbs=None, resume: Path | None = None) -> None:
    """Train without a word; resume: a folder of checkpoints, from which it goes on"""
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(epochs, lr=lr, cbs=cbs, resume=resume)


class Clock(Callback):
    """Ends a fit after `warm + steps` steps; has the seconds of the last `steps`, with the fetching of their batches"""
    order = -100

    def __init__(self, warm: int, steps: int): self.warm, self.steps, self.stamps = warm, steps, []

    @property
    def seconds(self) -> float: return self.stamps[1] - self.stamps[0]

    def before_batch(self):
        if self.train_iter not in (self.warm, self.warm + self.steps): return
        sync()
        self.stamps.append(time.perf_counter())
        if len(self.stamps) == 2: raise CancelFitException


def seconds_a_step(learn, warm: int, steps: int, lr: float | None = LR, cbs: Iterable[Callback] = ()) -> float:
    """Seconds of a training step; the first `warm` steps are not counted"""
    clock = Clock(warm, steps)
    epochs = math.ceil((warm + steps + 1) / len(learn.dls.train))  # the last batch is fetched and not trained on
    train(learn, epochs, lr, [clock, *cbs])
    return clock.seconds / steps


def steps_to_time(learn, warm: int, most: int) -> int:
    """How many steps of one epoch a clock can have after `warm`: at most `most`, but all if views grow over a run, as
    they do over an epoch then. Raises `Lacking` if none"""
    batches = len(learn.dls.train)
    steps = batches - warm - 1  # the last batch is fetched and not trained on
    if not any(isinstance(cb, ProgressiveSize) for cb in learn.cbs): steps = min(most, steps)
    if steps < 1:
        raise Lacking(f"an epoch of {batches} batches is too short to be timed: give more pictures or a smaller --bs")
    return steps


def autocast(device: str | torch.device):
    """What `precision='auto'` of the learner does, for a loop that is compared with it"""
    return autocast_to(pick_precision("auto", device), device)


def embedded(learn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels of both parts"""
    return *learn.embed(learn.dls.train), *learn.embed()


def table_of(learn) -> list[dict[str, float]]:
    """The epoch table of the last fit, without epoch and time"""
    names = learn.recorder.metric_names[1:-1]
    return [dict(zip(names, row, strict=True)) for row in learn.recorder.values]


# ---- inside a learner ----


def views_of(learn, images: Tensor) -> dict[str, Tensor]:
    """Normalised views of a batch of pictures, `[V, B, C, S, S]` by role"""
    return {role: learn.normalize(x) for role, x in learn.views(images).items()}


def labelled_views_of(learn, images: Tensor) -> None:
    """Make the views of a support batch, if the learner has one; it has trained before"""
    for cb in learn.cbs:
        if isinstance(cb, LabeledTerm): cb.maker(images[:cb.source.bs])


def views_in_step(learn) -> Tensor:
    """The normalised views of the step that is running, `[V, B, C, S, S]`"""
    return learn.step.views["views"]


def settled_learner(dls, arch: str, method: str, small_input: bool | None = False, rows: int | None = None,
                    setting: str = "cifar", changes: dict[str, Any] | None = None, **options):
    """A learner as in most of a long run, which judges nothing: its memory full-sized and in use, its prototypes moving

    rows: of its memory, if it has one (None: as many as the recipe says); changes: of other fields of the recipe.
    """
    moving = dict(prototypes_frozen=0) if METHODS[method].recipe.prototypes else {}
    recipe = METHODS[method](setting=setting, **moving, **(changes or {}))
    memory = make_part(recipe.resolve(setting).memory)
    if memory is not None: memory.size = rows or memory.size  # a callback's isn't cut to the number of pictures
    if isinstance(memory, Queue): memory.start = 0
    return contrastive_learner(dls, arch, recipe, cbs=memory, small_input=small_input, knn_pictures=0, **options)


def queue_and_loss(learn) -> tuple[Any, nn.Module]:
    """The ring of keys that a learner's queue keeps (`rows`, `push`), and the loss of a pair"""
    return learn.model.memory["queue"]["final"], learn.loss_func.loss


def prototype_scores(learn, roles: dict[str, Tensor]) -> list[Tensor]:
    """The forward pass of views by role, through encoder, head and prototypes"""
    prototypes = learn.model.heads["final"].prototypes
    return [prototypes(levels["final"].p) for levels in learn.model(roles).values()]


def loss_temperature(recipe, setting: str) -> float:
    """Of a recipe's loss in a setting"""
    return recipe.resolve(setting).loss().temp


def step_parts(learn) -> Iterator[tuple[Any, str, str, bool]]:
    """What runs in a step: `(owner, method, part, whether the backward pass from its outputs on is of that part)`"""
    learn.create_opt()
    for name, part in dict(one_batch="rest", _backward="loss", _step="optimizer").items():
        yield learn, name, part, False
    yield learn.opt, "zero_grad", "optimizer", False
    yield learn.loss_func, "forward", "loss", False
    keys = [module for name, module in learn.model.memory.items() if name == "ema"]
    for model, part in ((learn.model, "encoder"), *((model, "encoder_keys") for model in keys)):
        yield model, "features", part, True
        for head in model.heads.values(): yield head, "forward", "heads", True
    events = ("before_batch", "after_pred", "before_step", "after_step", "after_batch")
    for cb in learn.cbs:
        if isinstance(cb, Contrast): yield cb, "make_views", "views", False
        if isinstance(cb, Target | Memory | PrototypeScores):
            for event in events:
                if hasattr(cb, event): yield cb, event, "keys", False


CHOOSING = dict(scores="scores", scores_window_and_cut="hardest")  # methods of `HardRegions`, by what they do


class Window:
    """The stages after the one that `HardRegions` chooses at: `later(whole())`, `later(window())`, `later(cut())`"""
    def __init__(self, learn, regions):
        encoder, stages = learn.model.encoder, learn.model.stages
        after = list(stages)[list(stages).index(regions.choices[0].stage.level) + 1:]
        self.later = nn.Sequential(*(encoder.get_submodule(stages[n].module) for n in after), encoder.global_pool)
        images, _ = learn.dls.train.one_batch()
        maps = []
        stage = encoder.get_submodule(regions.choices[0].stage.module)
        hook = stage.register_forward_hook(lambda module, args, out: maps.append(out))
        with torch.no_grad(), autocast(images.device): encoder(views_of(learn, images)["views"][0])
        hook.remove()
        self.map = maps[0].requires_grad_()
        n, _, *self.sides = self.map.shape
        self.window_sides = window_sides(*self.sides, regions.keep)
        self.where = best_window(torch.rand(n, *self.sides, device=images.device), *self.window_sides)
        self.ready = self.cut().detach().requires_grad_()

    def whole(self) -> Tensor: return self.map
    def window(self) -> Tensor: return self.ready

    def cut(self) -> Tensor:
        """The window, cut out of the map"""
        return take_windows(self.map.movedim(1, -1), *self.where, *self.window_sides).movedim(-1, 1)

    def drop_gradients(self) -> None:
        """Forget what a backward pass has left"""
        self.map.grad = self.ready.grad = None
        self.later.zero_grad()


def call(module: str, function: str, arguments: str) -> None:
    """What `apart` runs; of several processes the first one prints"""
    result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    if os.environ.get("RANK", "0") == "0": print(json.dumps(result))


if __name__ == "__main__": call(*sys.argv[1:])
