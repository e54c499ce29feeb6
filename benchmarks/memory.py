"""How much memory: of a step, of large batches in parts, and what it is worth that freed memory stays.

On CUDA the peak is the allocator's; on a CPU the growth of the process's resident memory from before the model is
made to the peak. Each is measured in a process of its own.
"""
import resource
import statistics
from typing import Any

from common import (LR, Group, Lacking, Run, alternate, apart, chosen, peak_since, random_dls, resident,
                    seconds_a_step, settled_learner, spelled, train, turns, words)
from fastai.callback.core import Callback
from loops import Loop

from fastcontrast import device as device_module
from fastcontrast.accumulate import Accumulate
from fastcontrast.all import (CombinePatches, HardRegions, IntermediateLoss, PartialBackprop, contrastive_learner,
                              moco_v3)
from fastcontrast.recipes import METHODS

group = Group("memory", "How much memory: of a step, of large batches in parts, and what reusing it is worth")
MIB = 2**20


def mib(values: list[float]) -> list[float]: return [value / MIB for value in values]


# ---- a step ----


@group.measurement(quick=dict(arch="test_resnet", size=32, bs=8, rounds=1))
def step(
    run: Run,
    arch: str = "resnet18", # encoder
    size: int = 32,         # side of a picture
    bs: int = 256,          # batch
    rounds: int = 3,        # measurements of each
) -> None:
    """How much more memory does a MoCo v3 step of the learner need than the same step in a bare loop?

    The ratio is the learner's peak over that of the loop in benchmarks/loops.py. Goal: at most 1.05.
    """
    got: dict[str, list[float]] = dict(ours=[], bare=[])
    for _, name in turns(got, rounds):
        peak = apart(peak_of_steps, by_hand=name == "bare", arch=arch, size=size, bs=bs, device=run.device)
        got[name].append(peak)
    ratios = [x / y for x, y in zip(got["ours"], got["bare"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"ours over bare: {ratio:.3f} ({', '.join(f'{r:.3f}' for r in ratios)}); "
          f"{got['ours'][0] / MIB:.0f} MiB against {got['bare'][0] / MIB:.0f} MiB")
    run.save(dict(goal="ratio at most 1.05", ratio=ratio, ratios=ratios, ours_mib=mib(got["ours"]),
                  bare_mib=mib(got["bare"])))


def peak_of_steps(by_hand: bool, arch: str, size: int, bs: int, device: str) -> float:
    """Bytes at the peak of four steps"""
    dls = random_dls(bs * 4, size, bs, device)
    before = resident()
    learn = contrastive_learner(dls, arch, moco_v3(setting="cifar"), small_input=False, knn_pictures=0)
    if by_hand: Loop(learn, copied=False).epoch()
    else: train(learn, lr=0.1)
    return peak_since(before, device)


# ---- large batches ----


@group.measurement(quick=dict(methods="simclr", arch="test_resnet", size=16, bs=16, chunks=4, steps=1, rounds=1))
def accumulate(
    run: Run,
    methods: str = "simclr,moco_v3", # with commas between them
    arch: str = "resnet18", # encoder
    size: int = 128,        # side of a picture
    bs: int = 256,          # pictures in a large batch
    chunks: int = 8,        # parts of it
    steps: int = 2,         # large steps in a measurement
    rounds: int = 5,        # measurements of each
    small_input: bool = False, # give the ResNet the stem for small pictures
) -> None:
    """What does `accumulate=8` cost in time, and how much memory does a batch of eight parts need over one part?

    Time: a step in parts over as many plain steps of a part, so of as many pictures; the second forward pass is
    what is paid for. Goal: at most 1.5. Memory: its peak over that of a plain step of one part. Goal: at most 1.1.
    """
    shape = dict(size=size, bs=bs, parts=chunks, steps=steps, device=run.device)
    model = dict(arch=arch, rows=bs, small_input=small_input)
    result: dict[str, Any] = dict(goal="time at most 1.5, memory at most 1.1")
    for method in chosen(methods, METHODS, "method"):
        peaks: dict[int, list[float]] = {chunks: [], 1: []}
        for _, number in turns(peaks, rounds):
            peaks[number].append(apart(peak_of_parts, method=method, chunks=number, shape=shape, model=model))
        ratios = [x / y for x, y in zip(*peaks.values(), strict=True)]
        large, plain = (in_parts(pictures_of(number, **shape), method, number, **model) for number in (chunks, 1))
        time = alternate(lambda large=large: train(large), lambda plain=plain: train(plain), rounds)
        result[method] = dict(
            time_ratio=time["ratio"], time_ratio_quartiles=time["ratio_quartiles"],
            accumulated_s_per_step=time["a_s"] / steps, plain_s_per_chunks=time["b_s"] / steps,
            memory_ratio=statistics.median(ratios), memory_ratios=ratios,
            accumulated_mib=mib(peaks[chunks]), plain_mib=mib(peaks[1]))
        print(f"{method}: {spelled(time)} of the time of {chunks} plain steps, {statistics.median(ratios):.3f} of the "
              f"memory of one ({peaks[chunks][0] / MIB:.0f} MiB against {peaks[1][0] / MIB:.0f} MiB)", flush=True)
    run.save(result)


def pictures_of(chunks: int, size: int, bs: int, parts: int, steps: int, device: str):
    """Loaders of the large batches' pictures, in batches of so many of their parts"""
    return random_dls(bs * steps, size, bs * chunks // parts, device)


def in_parts(dls, method: str, chunks: int, arch: str, rows: int, small_input: bool):
    """A learner whose batch is run in so many parts"""
    learn = settled_learner(dls, arch, method, small_input, rows)
    if chunks > 1: learn.add_cb(Accumulate(chunks))
    return learn


def peak_of_parts(method: str, chunks: int, shape: dict[str, Any], model: dict[str, Any]) -> float:
    """Bytes at the peak of an epoch"""
    dls = pictures_of(chunks, **shape)
    before = resident()
    train(in_parts(dls, method, chunks, **model))
    return peak_since(before, shape["device"])


# ---- freed memory ----


@group.measurement(quick=dict(runs="simclr test_resnet 32 8", warm=1, steps=1, rounds=1))
def reuse(
    run: Run,
    runs: str = "simclr resnet18 32 256, simclr resnet18 128 64, moco_v3 resnet10t 64 64", # method encoder side batch
    warm: int = 3,   # steps before the clock starts
    steps: int = 10, # steps on the clock
    rounds: int = 3, # measurements of each
) -> None:
    """What is it worth on a CPU that a step's freed memory stays with the process for the next, and what does it cost?

    Time and page faults of a step, and the peak memory, with it over without it; each run is a process of its own,
    and they alternate. `moco_v3` is with `IntermediateLoss`, `PartialBackprop`, `CombinePatches` and `HardRegions`,
    whose maps are of many sizes.
    """
    if run.device != "cpu": raise Lacking("it is about a CPU's memory: --device=cpu")
    if not can_reuse(): raise Lacking("it needs glibc, and no MALLOC_… or GLIBC_TUNABLES in the environment")
    result: dict[str, Any] = {}
    for name in words(runs):
        method, arch, size, bs = name.split()
        shape = dict(method=method, arch=arch, size=int(size), bs=int(bs), warm=warm, steps=steps)
        got: dict[str, list[dict]] = {"without": [], "with": []}
        for _, kind in turns(got, rounds): got[kind].append(apart(time_and_faults, reused=kind == "with", **shape))
        ratios = {key: [x[key] / y[key] for x, y in zip(got["with"], got["without"], strict=True)]
                  for key in ("step_s", "peak_mib")}
        time, memory = (statistics.median(ratios[key]) for key in ("step_s", "peak_mib"))
        result[name] = dict(time_ratio=time, time_ratios=ratios["step_s"], memory_ratio=memory,
                            memory_ratios=ratios["peak_mib"], **got)
        faults = {kind: statistics.median(row["faults_a_step"] for row in rows) for kind, rows in got.items()}
        rounds_s = ", ".join(f"{r:.2f}" for r in ratios["step_s"])
        print(f"{name}: {time:.2f} of the time ({rounds_s}), {memory:.2f} of the peak memory; "
              f"{faults['with']:,.0f} page faults a step, {faults['without']:,.0f} without", flush=True)
    run.save(result)


def can_reuse() -> bool:
    """Whether a fit keeps what is freed here"""
    return device_module._glibc() is not None


def never_reuse() -> None:
    """Let fits of this process leave memory as they find it"""
    device_module._glibc = lambda: None


class Faults(Callback):
    """The page faults of the process so far, at the beginning of every step"""
    order = -101  # before the clock
    def before_fit(self): self.counts = []
    def before_batch(self): self.counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


def time_and_faults(method: str, arch: str, size: int, bs: int, warm: int, steps: int,
                    reused: bool) -> dict[str, float]:
    """Seconds and page faults of a step, and the peak"""
    dls = random_dls(bs * (warm + steps + 1), size, bs, "cpu")
    before, faults = resident(), Faults()
    speedups = []
    if method == "moco_v3": speedups = [IntermediateLoss(), PartialBackprop(), CombinePatches(), HardRegions("layer2")]
    learn = contrastive_learner(dls, arch, method, cbs=[*speedups, faults], small_input=False, knn_pictures=0)
    if not reused: never_reuse()
    seconds = seconds_a_step(learn, warm, steps, lr=LR)
    return dict(step_s=seconds, faults_a_step=(faults.counts[-1] - faults.counts[warm]) / steps,
                peak_mib=peak_since(before, "cpu") / MIB)
