"""A training step with a speedup over the same method's step without it, and what the arithmetic predicts.

A step is the learner's, as users run it: pictures in memory, views made, forward and backward pass, optimizer, moving average.
Beside each ratio: the same less the time that making the views takes (measured in the same rounds), and the ratio of the
floating-point operations, counted by PyTorch over whole steps. All functions of a part take turns, in every round once, so
that they see the same machine; ratios are of one round, and their median and quartiles are given.

    comb_patches  MoCo v3 + CombinePatches over MoCo v3; goal: at most 1.07
    partial       MoCo v3 + IntermediateLoss + PartialBackprop, the mean of its four levels, over MoCo v3; goals: at most 0.75,
                  and within 10 % of the FLOPs. Beside it steps drawn at random, and the loss at all levels without PartialBackprop
    regions       the stages after the second, forward and backward, on the window that HardRegions(layer2, keep=.5) leaves, over
                  the whole map; goal: at most 0.60. Beside it the step, and what choosing takes
    together      CombinePatches, IntermediateLoss, PartialBackprop and HardRegions, the mean of the levels, over MoCo v3; goal: at most 0.60
    suncet        SimCLR and MoCo v3 with SuNCEt, whose support batch is a tenth of the batch, over those without; goal: at most 1.12

    python benchmarks/speedups.py                              # resnet50 at 128 px; batch 16 without a GPU, 256 on one
    python benchmarks/speedups.py --parts partial together --bs 32 --rounds 3
"""
import argparse
import functools
import gc
import statistics
import time
from collections.abc import Callable

import torch
from common import autocast, device, save, sync
from fastai.callback.core import Callback
from step_time import Pictures
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcontrast.all import CombinePatches, HardRegions, IntermediateLoss, PartialBackprop, contrastive_learner, image_dls, moco_v3, simclr
from fastcontrast.speedups.regions import best_window, take_windows, window_sides
from fastcontrast.speedups.suncet import SuNCEt

LR = 0.01  # small, so that random pictures and a warm-up of a step do not end in numbers that are none


class Labelled(Pictures):
    """Random pictures with a class each"""
    def __init__(self, n, size):
        super().__init__(n, size)
        self.classes = [str(c) for c in range(min(20, n // 2))]
        self.targets = [i % len(self.classes) for i in range(n)]
    def __getitem__(self, i): return self.x[i], self.targets[i]


def learner(a, recipe, *speedups, pictures=Pictures, **data):
    torch.manual_seed(0)
    dls = image_dls(pictures(a.bs * a.steps, a.size), size=a.size, bs=a.bs, valid=0, device=device(), **data)
    return contrastive_learner(dls, a.arch, recipe(setting="imagenet"), cbs=list(speedups), knn_pictures=0)


def train(learn, epochs=1, cbs=None):
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(epochs, lr=LR, cbs=cbs)


def views_of(learn) -> Callable[[], object]:
    """A function that makes a batch's views, those of labelled pictures too"""
    images, _ = learn.dls.train.one_batch()
    labeler = getattr(learn, "labeler", None)

    def make():
        learn.views(images)
        if labeler is not None: labeler.maker(images[:labeler.source.bs])
    return make


def take_turns(todo: dict[str, tuple[Callable[[], object], int]], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds a step of each function in every round, and its GFLOP a step; `todo`: the function, and how many steps a call takes

    The operations are counted in a first call, which is not timed.
    """
    gflop, times = {}, {name: [] for name in todo}
    for name, (f, steps) in todo.items():
        with FlopCounterMode(display=False) as count: f()
        gflop[name] = count.get_total_flops() / 1e9 / steps
    for r in range(rounds):
        for name in list(todo)[::1 if r % 2 else -1]:
            f, steps = todo[name]
            sync()
            start = time.perf_counter()
            f()
            sync()
            times[name].append((time.perf_counter() - start) / steps)
    return times, gflop


def median_and_quartiles(values) -> dict:
    ratios = sorted(values)
    return dict(ratio=statistics.median(ratios), ratio_quartiles=[ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]])


def over(times, gflop, top, bottom, views=None) -> dict:
    """How `top` compares with `bottom`; views: the names of what makes their views"""
    def ratio(x, y): return median_and_quartiles(p / q for p, q in zip(x, y, strict=True))

    def less(name, made): return [t - v for t, v in zip(times[name], times[made], strict=True)]
    result = dict(ratio(times[top], times[bottom]), flop_ratio=gflop[top] / gflop[bottom])
    result["time_over_flops"] = result["ratio"] / result["flop_ratio"]
    if views: result["without_views"] = ratio(less(top, views[0]), less(bottom, views[1]))
    return result


def described(times, gflop) -> dict: return dict(step_s={name: statistics.median(t) for name, t in times.items()}, gflop=gflop)


def mean_of(levels, times, gflop, name="mean of levels") -> None:
    """Add the mean of the levels, which are drawn alike"""
    times[name] = [statistics.fmean(t) for t in zip(*(times[level] for level in levels), strict=True)]
    gflop[name] = statistics.fmean(gflop[level] for level in levels)


class LevelCount(Callback):
    """Counts the levels that were drawn"""
    def __init__(self, partial): self.partial, self.levels = partial, []
    def after_batch(self): self.levels.append(self.partial.drawn)


def at_levels(a, learn, partial, seen):
    """For `take_turns`: steps that stop at each of the levels, and steps whose level is drawn"""
    def up_to(level):
        partial.probs = {level: 1.0}
        train(learn)

    def draw(epochs=2):
        partial.probs = None
        train(learn, epochs, seen)
    return {**{level: (functools.partial(up_to, level), a.steps) for level in learn.model.levels()}, "drawn": (draw, 2 * a.steps)}


def drawn_over(times, gflop, base, seen, counted) -> dict:
    """Mean seconds of the timed steps that were drawn, over those of `base`; predicted for what was drawn"""
    levels = seen.levels[counted:]
    return dict(ratio=statistics.fmean(times["drawn"]) / statistics.fmean(times[base]), flop_ratio=statistics.fmean(gflop[level] for level in levels) / gflop[base],
                levels={level: levels.count(level) for level in dict.fromkeys(levels)})


def comb_patches(a):
    plain, patches = learner(a, moco_v3), learner(a, moco_v3, CombinePatches())
    times, gflop = take_turns({"moco_v3": (lambda: train(plain), a.steps), "comb_patches": (lambda: train(patches), a.steps), "views": (views_of(plain), 1)}, a.rounds)
    return dict(goal="ratio at most 1.07", **described(times, gflop), **over(times, gflop, "comb_patches", "moco_v3", ("views", "views")))


def of_levels(a, goal, *speedups, everywhere=False):
    """MoCo v3 with `speedups` and PartialBackprop over MoCo v3; everywhere: measure it without PartialBackprop too"""
    partial = PartialBackprop()
    plain, learn, seen = learner(a, moco_v3), learner(a, moco_v3, *speedups, partial), LevelCount(partial)
    levels = learn.model.levels()

    def whole():
        with learn.removed_cbs(partial): train(learn)
    todo = {"moco_v3": (lambda: train(plain), a.steps), **({"all levels": (whole, a.steps)} if everywhere else {}),
            **at_levels(a, learn, partial, seen), "views": (views_of(plain), 1)}
    times, gflop = take_turns(todo, a.rounds)
    mean_of(levels, times, gflop)
    views = ("views", "views")
    result = dict(goal=goal, **described(times, gflop), **over(times, gflop, "mean of levels", "moco_v3", views),
                  levels={level: over(times, gflop, level, "moco_v3", views) for level in levels},
                  drawn=drawn_over(times, gflop, "moco_v3", seen, len(seen.levels) // (1 + a.rounds)))
    if everywhere: result["over_all_levels"] = over(times, gflop, "mean of levels", "all levels", views)
    return result


def partial(a): return of_levels(a, "ratio at most 0.75, time over FLOPs from 0.9 to 1.1", IntermediateLoss(), everywhere=True)


def together(a): return of_levels(a, "ratio at most 0.60", CombinePatches(), IntermediateLoss(), HardRegions("layer2"))


def later_stages(learn, regions):
    """Functions that run the stages after the one that `regions` chooses at: on the whole map, on a window of it, and with the cutting out"""
    encoder, stages, maps = learn.model.encoder, learn.model.stages, []
    names = list(stages)
    later = nn.Sequential(*(encoder.get_submodule(stages[n].module) for n in names[names.index(regions.level) + 1:]), encoder.global_pool)
    images, _ = learn.dls.train.one_batch()
    hook = encoder.get_submodule(regions.stage.module).register_forward_hook(lambda module, args, out: maps.append(out))
    half = autocast(images.device)
    with torch.no_grad(), half: encoder(learn.normalize(learn.views(images)["views"][0]))
    hook.remove()
    whole = maps[0].requires_grad_()
    n, _, height, width = whole.shape
    sides = window_sides(height, width, regions.keep)
    where = best_window(torch.rand(n, height, width, device=images.device), *sides)

    def cut(): return take_windows(whole.movedim(1, -1), *where, *sides).movedim(-1, 1)
    window = cut().detach().requires_grad_()

    def passes(x):
        with half: y = later(x()).float().mean()
        y.backward()
        whole.grad = window.grad = None
        later.zero_grad()
    todo = {"whole": (lambda: passes(lambda: whole), 1), "window": (lambda: passes(lambda: window), 1), "cut and window": (lambda: passes(cut), 1)}
    return todo, dict(map=[height, width], window=list(sides))


def spent_in(owner, name, run) -> float:
    """Seconds in a method of `owner` while `run` runs"""
    method, seconds = getattr(owner, name), []

    def timed(*args):
        sync()
        start = time.perf_counter()
        out = method(*args)
        sync()
        seconds.append(time.perf_counter() - start)
        return out
    setattr(owner, name, timed)
    try: run()
    finally: delattr(owner, name)
    return sum(seconds)


def regions(a):
    hard = HardRegions("layer2")
    plain, learn, scored = learner(a, moco_v3), learner(a, moco_v3, hard), learner(a, moco_v3, IntermediateLoss("layer2"))
    steps = {"moco_v3": (lambda: train(plain), a.steps), "regions": (lambda: train(learn), a.steps), "same losses": (lambda: train(scored), a.steps)}
    train(learn)  # moves views to the device
    later, sizes = later_stages(learn, hard)
    times, gflop = take_turns({**steps, "views": (views_of(learn), 1), **later}, a.rounds)
    views = ("views", "views")
    choosing = {part: statistics.median(spent_in(hard, method, lambda: train(learn)) / a.steps for _ in range(a.rounds))
                for part, method in dict(scores="losses", scores_window_and_cut="hardest").items()}
    return dict(goal="ratio at most 0.60", **sizes, **described(times, gflop), **over(times, gflop, "window", "whole"),
                with_cutting=over(times, gflop, "cut and window", "whole"), step=over(times, gflop, "regions", "moco_v3", views),
                step_over_same_losses=over(times, gflop, "regions", "same losses", views), choosing_s=choosing,
                choosing_share=choosing["scores_window_and_cut"] / statistics.median(times["regions"]))


def suncet(a):
    classes = max(2, round(0.1 * a.bs / 2))
    result = dict(goal="ratio at most 1.12", support=2 * classes, share=2 * classes / a.bs)
    for recipe in (simclr, moco_v3):
        plain = learner(a, recipe, pictures=Labelled, labels="all")
        learn = learner(a, recipe, SuNCEt(classes_per_batch=classes, per_class=2), pictures=Labelled, labels="all")
        times, gflop = take_turns({recipe.__name__: (lambda plain=plain: train(plain), a.steps), "suncet": (lambda learn=learn: train(learn), a.steps),
                                   "views": (views_of(plain), 1), "views, labelled too": (views_of(learn), 1)}, a.rounds)
        result[recipe.__name__] = dict(**described(times, gflop), **over(times, gflop, "suncet", recipe.__name__, ("views, labelled too", "views")))
        del plain, learn
        gc.collect()
    return result


PARTS = dict(comb_patches=comb_patches, partial=partial, regions=regions, together=together, suncet=suncet)


def line(what, row):
    rest = f", {row['without_views']['ratio']:.3f} without the views" if "without_views" in row else ""
    quartiles = " to ".join(f"{q:.3f}" for q in row["ratio_quartiles"])
    return f"{what}: {row['ratio']:.3f} (quartiles {quartiles}){rest}; by the FLOPs {row['flop_ratio']:.3f}"


def lines(name, result):
    rows = {"": result} if "ratio" in result else {}
    rows |= {key: row for key, row in result.items() if isinstance(row, dict) and {"ratio_quartiles", "flop_ratio"} <= set(row)} | result.get("levels", {})
    for what, row in rows.items(): yield line(f"{name} {what}".strip().replace("_", " "), row)
    if "drawn" in result: yield f"{name}, drawn at random: {result['drawn']['ratio']:.3f}; by the FLOPs {result['drawn']['flop_ratio']:.3f}"
    if "choosing_share" in result: yield f"{name}: choosing takes {result['choosing_share']:.1%} of a step"


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    arg.add_argument("--arch", default="resnet50", help="a ResNet of timm")
    arg.add_argument("--size", type=int, help="by default 128; 96 for suncet without a GPU")
    arg.add_argument("--bs", type=int, help="by default 256; without a GPU 16, and 40 for suncet, whose support batch is at least 4")
    arg.add_argument("--steps", type=int, help="in a measurement, by default 1, 10 on a GPU")
    arg.add_argument("--rounds", type=int, default=5, help="measurements of each")
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    cuda, result = device() == "cuda", dict(arch=a.arch, rounds=a.rounds)
    for part in a.parts:
        small = part == "suncet" and not cuda
        one = argparse.Namespace(arch=a.arch, rounds=a.rounds, size=a.size or (96 if small else 128), bs=a.bs or (256 if cuda else 40 if small else 16),
                                 steps=a.steps or (10 if cuda else 1))
        result[part] = dict(size=one.size, bs=one.bs, steps=one.steps, **PARTS[part](one))
        print(*lines(part, result[part]), sep="\n", flush=True)
        save(f"speedups_{device()}" + (f"_{'_'.join(a.parts)}" if a.parts != list(PARTS) else ""), result, a.out)
        gc.collect()


if __name__ == "__main__": main()
