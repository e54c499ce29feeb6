"""What the time of a training step goes to: data, views, encoder, heads, loss, keys and their memory, optimizer, rest.

Real steps of a learner, three kinds in one epoch: undisturbed ones, which give the time of a step; ones with a stamp wherever a
part begins; and ones under PyTorch's profiler. On CUDA a stamp is an event in the stream, for which nothing waits: from one to the
next is the time that the device spent on a part, or waited for the host to get on with it. In the backward pass a part begins when
the gradient of its output is there. The parts add up to the steps with stamps; `stamps_cost` is how much longer those took.

    data        the next batch, from memory
    views       pictures to normalised views
    encoder     forward and backward; that of keys which need a pass of their own too (`encoder_keys`)
    heads       projector and predictor, forward and backward
    loss        forward and backward
    keys        what targets, memories and prototypes do beside those passes: moving average, queue, neighbours, scores
    optimizer   the step, and dropping the gradients
    rest        everything else: fastai's loop and all other callbacks

Goal: at most 20 % of a step outside the encoder, resnet18 at 128 px on a GPU. Beside it kernels a step and the share of an undisturbed
step in which the device is busy with one; without a GPU operators, nested ones too, which says nothing about speed.

    python benchmarks/step_share.py                                    # resnet18, 128 px; batch 256, 16 without a GPU
    python benchmarks/step_share.py --methods simclr moco_v3 --compile
"""
import argparse
import gc
import time

import torch
from common import device, save, sync
from fastai.callback.core import Callback, CancelFitException
from step_time import LR, Pictures
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fastcontrast.all import Queue, contrastive_learner, image_dls
from fastcontrast.recipes import METHODS, make_part
from fastcontrast.step import PrototypeScores
from fastcontrast.targets import Memory, Target

PARTS = ("data", "views", "encoder", "encoder_keys", "heads", "loss", "keys", "optimizer", "rest")
EVENTS = ("before_batch", "after_pred", "before_step", "after_step", "after_batch")


def stamp(cuda: bool):
    """Now, in the device's own time"""
    if not cuda: return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(a, b) -> float:
    """Seconds from one stamp to another that the device has reached"""
    return b - a if isinstance(a, float) else a.elapsed_time(b) / 1e3


class Stamps:
    """Which part of a step is running, and from when"""
    def __init__(self): self.on, self.now, self.all, self.cuda = False, "data", [], device() == "cuda"

    def begin(self, part: str) -> None:
        self.now = part
        if self.on: self.all.append((part, stamp(self.cuda)))

    def during(self, owner, name: str, part: str, backward: bool = False) -> None:
        """`owner.name` is that part from now on; backward: and so is the backward pass from its outputs on"""
        method = getattr(owner, name)

        def timed(*args, **kwargs):
            before = self.now
            self.begin(part)
            try: out = method(*args, **kwargs)
            finally: self.begin(before)
            if backward and self.on:
                for t in out.values() if isinstance(out, dict) else out:
                    if t.requires_grad: t.register_hook(lambda grad: self.begin(part))
            return out
        setattr(owner, name, timed)

    def watch(self, learn) -> None:
        learn.create_opt()
        for name, part in dict(one_batch="rest", make_roles="views", _backward="loss", _step="optimizer").items(): self.during(learn, name, part)
        self.during(learn.opt, "zero_grad", "optimizer")
        self.during(learn.loss_func, "forward", "loss")
        for model in (learn.model, *(m for name, m in learn.model.memory.items() if name == "ema")):
            self.during(model, "features", "encoder" if model is learn.model else "encoder_keys", backward=True)
            for head in model.heads.values(): self.during(head, "forward", "heads", backward=True)
        for cb in learn.cbs:
            if isinstance(cb, Target | Memory | PrototypeScores):
                for event in EVENTS:
                    if hasattr(cb, event): self.during(cb, event, "keys")

    def seconds(self) -> dict[str, float]:
        """By part"""
        took = dict.fromkeys(PARTS, 0.0)
        for (part, a), (_, b) in zip(self.all, self.all[1:]): took[part] += between(a, b)
        return took


def busy(spans) -> float:
    """The length of what intervals `(start, end)` cover together"""
    total, last = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


class Phases(Callback):
    """A warm-up, then `steps` of each kind of step"""
    order = -100

    def __init__(self, stamps: Stamps, warm: int, steps: int):
        self.stamps, self.at = stamps, {warm: self.plain, warm + steps: self.stamped, warm + 2 * steps: self.profiled, warm + 3 * steps: self.end}
        self.profiler = profile(activities=[ProfilerActivity.CUDA if device() == "cuda" else ProfilerActivity.CPU])

    def before_batch(self):
        if self.train_iter in self.at: self.at[self.train_iter]()

    def plain(self):
        sync()
        self.began = time.perf_counter()

    def stamped(self):
        sync()
        self.plain_s = time.perf_counter() - self.began
        self.stamps.on = True
        self.stamps.begin(self.stamps.now)

    def profiled(self):
        self.stamps.begin(self.stamps.now)
        self.stamps.on = False
        sync()
        self.profiler.start()

    def end(self):
        sync()
        self.profiler.stop()
        raise CancelFitException


def measure(a, method) -> dict:
    torch.manual_seed(0)
    dls = image_dls(Pictures(a.bs * (a.warm + 3 * a.steps + 1), a.size), size=a.size, bs=a.bs, valid=0, device=device())
    recipe = METHODS[method](setting=a.setting)
    memory = make_part(recipe.resolve(a.setting).memory)
    if memory is not None: memory.size = a.rows or memory.size  # given as a callback it isn't cut to the number of pictures
    if isinstance(memory, Queue): memory.start = 0
    learn = contrastive_learner(dls, a.arch, recipe, cbs=memory, small_input=a.small_input, precision=a.precision, compile=a.compile, knn_pictures=0)
    stamps = Stamps()
    phases = Phases(stamps, a.warm, a.steps)
    stamps.watch(learn)
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1, lr=LR, cbs=phases)
    took, step = stamps.seconds(), phases.plain_s / a.steps
    total = sum(took.values())
    share = {part: s / total for part, s in took.items()}
    kind = DeviceType.CUDA if device() == "cuda" else DeviceType.CPU
    ran = [e for e in phases.profiler.events() if e.device_type == kind and not e.is_user_annotation]
    kernels = [e for e in ran if not e.name.startswith(("Memcpy", "Memset"))]
    outside = 1 - share["encoder"] - share["encoder_keys"]
    return dict(precision=learn.precision, step_s=step, images_per_s=a.bs / step, stamped_step_s=total / a.steps, stamps_cost=total / a.steps / step, share=share,
                outside_encoder=outside, outside_encoder_and_heads=outside - share["heads"], **{"kernels" if kind == DeviceType.CUDA else "operators": len(kernels) / a.steps},
                copies=(len(ran) - len(kernels)) / a.steps, busy=busy((e.time_range.start, e.time_range.end) for e in ran) / 1e6 / a.steps / step)


def line(method, row) -> str:
    shares = ", ".join(f"{part.replace('_', ' ')} {s:.1%}" for part, s in row["share"].items() if s)
    return (f"{method}: {row['outside_encoder']:.1%} of a step of {row['step_s'] * 1e3:.3g} ms is outside the encoder ({shares}); "
            + (f"{row['kernels']:.0f} kernels a step, device busy {row['busy']:.1%}" if "kernels" in row else f"{row['operators']:.0f} operators a step"))


def main():
    cuda = device() == "cuda"
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--methods", nargs="+", default=["simclr"])
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--small-input", action="store_true", help="give the ResNet the stem for small pictures")
    arg.add_argument("--setting", help="of the recipes: imagenet or cifar (by the pictures if not given)")
    arg.add_argument("--size", type=int, default=128)
    arg.add_argument("--bs", type=int, default=256 if cuda else 16)
    arg.add_argument("--rows", type=int, help="of a method's memory, by default the recipe's")
    arg.add_argument("--precision", default="auto")
    arg.add_argument("--compile", action="store_true")
    arg.add_argument("--warm", type=int, default=10 if cuda else 2, help="steps before the clock starts")
    arg.add_argument("--steps", type=int, default=20 if cuda else 5, help="steps of each kind")
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    a.setting = a.setting or ("cifar" if a.size <= 64 else "imagenet")
    result = dict({k: v for k, v in vars(a).items() if k not in ("methods", "precision", "out")}, goal="outside_encoder at most 0.20")
    for method in a.methods:
        result[method] = measure(a, method)
        print(line(method, result[method]), flush=True)
        save(f"step_share_{a.size}px_{a.arch}_{'compiled_' * a.compile}{device()}", result, a.out)
        gc.collect()


if __name__ == "__main__": main()
