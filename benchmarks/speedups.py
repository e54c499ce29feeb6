"""What a speedup does to the time of a step, and what its arithmetic predicts.

A step is the learner's, as users run it: pictures in memory, views made, forward and backward pass, optimizer,
moving average. Beside each ratio: the same less the time that making the views takes (measured in the same rounds),
and the ratio of the floating-point operations, counted over whole steps. All functions of a measurement take turns,
in every round once, so that they see the same machine; ratios are of one round, and their median and quartiles are
given.
"""
import functools
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import (CHOOSING, Group, Labelled, Pictures, Run, Window, autocast, flops, labelled_views_of,
                    random_dls, seconds_of, spelled, spread, sync, train, turns)
from fastai.callback.core import Callback

from fastcontrast.all import (CombinePatches, HardRegions, IntermediateLoss, PartialBackprop, SuNCEt,
                              contrastive_learner, moco_v3, simclr)

group = Group("speedups", "What a speedup does to the time of a step, and what its arithmetic predicts")
QUICK = dict(arch="resnet10t", size=32, bs=4, steps=1, rounds=1)
GPU = dict(bs=256, steps=10)
Times, Counts = dict[str, list[float]], dict[str, float]


# ---- what all of them share ----


def learner(run: Run, arch: str, size: int, bs: int, steps: int, recipe: Callable, *speedups, pictures=Pictures,
            **data):
    """A learner whose epoch has so many steps"""
    dls = random_dls(bs * steps, size, bs, run.device, pictures, **data)
    return contrastive_learner(dls, arch, recipe(setting="imagenet"), cbs=list(speedups), knn_pictures=0)


def making_views(learn) -> Callable[[], None]:
    """A function that makes a batch's views, those of labelled pictures too"""
    images, _ = learn.dls.train.one_batch()

    def make():
        learn.views(images)
        labelled_views_of(learn, images)
    return make


def take_turns(functions: dict[str, tuple[Callable[[], Any], int]], rounds: int) -> tuple[Times, Counts]:
    """Seconds a step of each function in every round, and its GFLOP a step; functions: and how many steps a call takes

    The operations are counted in a first call, which is not timed.
    """
    gflop = {name: flops(function) / 1e9 / steps for name, (function, steps) in functions.items()}
    times: Times = {name: [] for name in functions}
    for _, name in turns(functions, rounds):
        function, steps = functions[name]
        times[name].append(seconds_of(function) / steps)
    return times, gflop


def over(times: Times, gflop: Counts, top: str, bottom: str, views: tuple[str, str] | None = None) -> dict[str, Any]:
    """How `top` compares with `bottom`; views: the names of what makes their views"""
    def ratio(x, y): return spread(p / q for p, q in zip(x, y, strict=True))
    def less(name, made): return [t - v for t, v in zip(times[name], times[made], strict=True)]

    result = dict(ratio(times[top], times[bottom]), flop_ratio=gflop[top] / gflop[bottom])
    result["time_over_flops"] = result["ratio"] / result["flop_ratio"]
    if views: result["without_views"] = ratio(less(top, views[0]), less(bottom, views[1]))
    return result


def described(times: Times, gflop: Counts) -> dict[str, Any]:
    """Seconds and operations of a step of each"""
    return dict(step_s={name: statistics.median(t) for name, t in times.items()}, gflop=gflop)


def finish(run: Run, result: dict[str, Any]) -> None:
    """Print the ratios and save the result"""
    rows = {"": result} if "ratio" in result else {}
    rows |= {name: row for name, row in result.items() if isinstance(row, dict) and "time_over_flops" in row}
    rows |= result.get("levels", {})
    for name, row in rows.items():
        rest = f", {row['without_views']['ratio']:.3f} without the views" if "without_views" in row else ""
        title = f"{run.name} {name}".strip().replace("_", " ")
        print(f"{title}: {spelled(row)}{rest}; by the FLOPs {row['flop_ratio']:.3f}")
    if drawn := result.get("drawn"):
        print(f"{run.name}, drawn at random: {drawn['ratio']:.3f}; by the FLOPs {drawn['flop_ratio']:.3f}")
    if "choosing_share" in result: print(f"{run.name}: choosing takes {result['choosing_share']:.1%} of a step")
    run.save(result)
    gc.collect()


# ---- one speedup ----


@group.measurement(QUICK, GPU)
def comb_patches(
    run: Run,
    arch: str = "resnet50", # encoder
    size: int = 128,        # side of a picture
    bs: int = 16,           # batch
    steps: int = 1,         # in a measurement
    rounds: int = 5,        # measurements of each
) -> None:
    """How much more time does MoCo v3 take with `CombinePatches`?

    The ratio is a step with it over one without. Goal: at most 1.07.
    """
    combining = CombinePatches()
    plain, patches = (learner(run, arch, size, bs, steps, moco_v3, *cbs) for cbs in ((), (combining,)))
    times, gflop = take_turns({
        "moco_v3": (lambda: train(plain), steps), "comb_patches": (lambda: train(patches), steps),
        "views": (making_views(plain), 1)}, rounds)
    finish(run, dict(goal="ratio at most 1.07", combinations=len(combining.subsets), **described(times, gflop),
                     **over(times, gflop, "comb_patches", "moco_v3", ("views", "views"))))


@group.measurement(QUICK, GPU)
def partial(
    run: Run,
    arch: str = "resnet50", # encoder
    size: int = 128,        # side of a picture
    bs: int = 16,           # batch
    steps: int = 1,         # in a measurement
    rounds: int = 5,        # measurements of each
) -> None:
    """How much less time does MoCo v3 take with `IntermediateLoss` and `PartialBackprop`?

    The ratio is the mean of the levels, which are drawn alike, over a step without the two. Beside it steps drawn
    at random, and the loss at all levels without PartialBackprop. Goals: at most 0.75, and within 10 % of the
    operations.
    """
    goal = "ratio at most 0.75, time over FLOPs from 0.9 to 1.1"
    finish(run, of_levels(run, (arch, size, bs, steps), rounds, goal, IntermediateLoss(), everywhere=True))


@group.measurement(QUICK, GPU)
def together(
    run: Run,
    arch: str = "resnet50", # encoder
    size: int = 128,        # side of a picture
    bs: int = 16,           # batch
    steps: int = 1,         # in a measurement
    rounds: int = 5,        # measurements of each
) -> None:
    """How much less time does MoCo v3 take with `CombinePatches`, `IntermediateLoss`, `PartialBackprop` and
    `HardRegions`?

    The ratio is the mean of the levels, which are drawn alike, over a step without the four. Goal: at most 0.60.
    """
    combining = CombinePatches()
    speedups = combining, IntermediateLoss(), HardRegions("layer2")
    result = of_levels(run, (arch, size, bs, steps), rounds, "ratio at most 0.60", *speedups)
    finish(run, dict(result, combinations=len(combining.subsets)))


class LevelCount(Callback):
    """Keeps the levels that were drawn"""
    def __init__(self, partial: PartialBackprop): self.partial, self.drawn = partial, []
    def after_batch(self): self.drawn.append(self.partial.drawn)


def of_levels(run: Run, shape: tuple, rounds: int, goal: str, *speedups, everywhere: bool = False) -> dict[str, Any]:
    """MoCo v3 with `speedups` and PartialBackprop over MoCo v3; everywhere: measure it without PartialBackprop too"""
    partial, steps = PartialBackprop(), shape[-1]
    plain, learn = learner(run, *shape, moco_v3), learner(run, *shape, moco_v3, *speedups, partial)
    levels, seen = learn.model.levels(), LevelCount(partial)

    def up_to(level):
        partial.probs = {level: 1.0}
        train(learn)

    def drawn():
        partial.probs = None
        train(learn, 2, cbs=seen)

    def whole():
        with learn.removed_cbs(partial): train(learn)
    functions = {"moco_v3": (lambda: train(plain), steps)}
    if everywhere: functions["all levels"] = whole, steps
    functions |= {level: (functools.partial(up_to, level), steps) for level in levels}
    functions |= {"drawn": (drawn, 2 * steps), "views": (making_views(plain), 1)}
    times, gflop = take_turns(functions, rounds)
    times["mean of levels"] = [statistics.fmean(t) for t in zip(*(times[level] for level in levels), strict=True)]
    gflop["mean of levels"] = statistics.fmean(gflop[level] for level in levels)
    timed = seen.drawn[len(seen.drawn) // (1 + rounds):]  # the first call was for the operations
    views = "views", "views"
    result = dict(
        goal=goal, **described(times, gflop), **over(times, gflop, "mean of levels", "moco_v3", views),
        levels={level: over(times, gflop, level, "moco_v3", views) for level in levels},
        drawn=dict(ratio=statistics.fmean(times["drawn"]) / statistics.fmean(times["moco_v3"]),
                   flop_ratio=statistics.fmean(gflop[level] for level in timed) / gflop["moco_v3"],
                   levels={level: timed.count(level) for level in dict.fromkeys(timed)}))
    if everywhere: result["over_all_levels"] = over(times, gflop, "mean of levels", "all levels", views)
    return result


@group.measurement(QUICK, GPU)
def regions(
    run: Run,
    arch: str = "resnet50", # a ResNet of timm
    size: int = 128,        # side of a picture
    bs: int = 16,           # batch
    steps: int = 1,         # in a measurement
    rounds: int = 5,        # measurements of each
) -> None:
    """How much less time do the later stages take on the half that `HardRegions` leaves them, and the whole step?

    The ratio is the stages after the second, forward and backward, on the window that `HardRegions("layer2",
    keep=.5)` leaves over the whole map. Goal: at most 0.60. Beside it the step with it over one without, and what
    choosing takes.
    """
    shape, hard = (arch, size, bs, steps), HardRegions("layer2")
    plain, learn, scored = (learner(run, *shape, moco_v3, *cbs) for cbs in ((), (hard,), (IntermediateLoss("layer2"),)))
    train(learn)  # moves views to the device
    window = Window(learn, hard)

    def passes(x):
        with autocast(run.device): y = window.later(x()).float().mean()
        y.backward()
        window.drop_gradients()
    times, gflop = take_turns({
        "moco_v3": (lambda: train(plain), steps), "regions": (lambda: train(learn), steps),
        "same losses": (lambda: train(scored), steps), "views": (making_views(learn), 1),
        "whole": (lambda: passes(window.whole), 1), "window": (lambda: passes(window.window), 1),
        "cut and window": (lambda: passes(window.cut), 1)}, rounds)
    views = "views", "views"
    choosing = {name: statistics.median(spent_in(hard, method, lambda: train(learn)) / steps for _ in range(rounds))
                for name, method in CHOOSING.items()}
    finish(run, dict(
        goal="ratio at most 0.60", map=window.sides, window=list(window.window_sides), **described(times, gflop),
        **over(times, gflop, "window", "whole"), with_cutting=over(times, gflop, "cut and window", "whole"),
        step=over(times, gflop, "regions", "moco_v3", views),
        step_over_same_losses=over(times, gflop, "regions", "same losses", views), choosing_s=choosing,
        choosing_share=choosing["scores_window_and_cut"] / statistics.median(times["regions"])))


def spent_in(owner: Any, name: str, function: Callable[[], Any]) -> float:
    """Seconds in a method of `owner` while the function runs"""
    method, seconds = getattr(owner, name), []

    def timed(*args):
        sync()
        start = time.perf_counter()
        out = method(*args)
        sync()
        seconds.append(time.perf_counter() - start)
        return out
    setattr(owner, name, timed)
    try: function()
    finally: delattr(owner, name)
    return sum(seconds)


@group.measurement(QUICK, GPU | dict(size=128))
def suncet(
    run: Run,
    arch: str = "resnet50", # encoder
    size: int = 96,         # side of a picture
    bs: int = 40,           # batch; the support batch is a tenth, and at least 4
    steps: int = 1,         # in a measurement
    rounds: int = 5,        # measurements of each
) -> None:
    """How much more time do SimCLR and MoCo v3 take with `SuNCEt`, whose support batch is a tenth of the batch?

    The ratio is a step with it over one without. Goal: at most 1.12.
    """
    classes = max(2, round(0.1 * bs / 2))
    result: dict[str, Any] = dict(goal="ratio at most 1.12", support=2 * classes, share=2 * classes / bs)
    for recipe in (simclr, moco_v3):
        shape = run, arch, size, bs, steps, recipe
        plain = learner(*shape, pictures=Labelled, labels="all")
        learn = learner(*shape, SuNCEt(classes_per_batch=classes, per_class=2), pictures=Labelled, labels="all")
        name = recipe.__name__
        times, gflop = take_turns({
            name: (lambda learn=plain: train(learn), steps), "suncet": (lambda learn=learn: train(learn), steps),
            "views": (making_views(plain), 1), "views, labelled too": (making_views(learn), 1)}, rounds)
        views = "views, labelled too", "views"
        result[name] = dict(**described(times, gflop), **over(times, gflop, "suncet", name, views))
        del plain, learn
        gc.collect()
    finish(run, result)
