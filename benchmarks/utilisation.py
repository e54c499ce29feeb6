"""Model FLOPs utilisation: the arithmetic of a training step over its time, as a share of what matrix products reach on this device.

The ceiling is the best of a few large square matrix products in the learner's precision, timed in the same run. A step's operations
are counted by PyTorch (matrix products and convolutions, forward and backward; a multiplication and an addition are two). Beside the
learner's step, what holds back the rest, each as a share of the same ceiling and in milliseconds a step:

    encoder       forward and backward pass of the encoder alone, on views that are ready
    convolutions  those of the encoder alone, one after the other, forward and backward: what is left of the encoder's time is
                  BatchNorm, activations and pooling, which move memory and are not counted

Goal: at least 30 % for the step of resnet50 at 128 px in bfloat16, batch 512, on a GPU.

    python benchmarks/utilisation.py              # SimCLR, resnet50, 128 px, batch 512 on a GPU; resnet18, 64 px, batch 16 without one
    python benchmarks/utilisation.py --compile
"""
import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from common import autocast, device, save, seconds_a_step, sync
from step_time import LR, Pictures
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcontrast.all import contrastive_learner, image_dls
from fastcontrast.recipes import METHODS

DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


def timed(f: Callable[[], object], repeats: int, rounds: int) -> float:
    """Seconds of a call: the median over the rounds"""
    for _ in range(3): f()
    times = []
    for _ in range(rounds):
        sync()
        start = time.perf_counter()
        for _ in range(repeats): f()
        sync()
        times.append((time.perf_counter() - start) / repeats)
    return statistics.median(times)


def ceiling(side: int, dtype: torch.dtype, a) -> float:
    """FLOPs a second of a product of two square matrices"""
    x, y = torch.randn(2, side, side, device=device(), dtype=dtype)
    return 2 * side**3 / timed(lambda: x @ y, a.steps, a.rounds)


def counted(f: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as count: f()
    return count.get_total_flops()


def convolutions(encoder: nn.Module, x: torch.Tensor) -> Counter:
    """Those that a forward pass runs, as (channels in and out, kernel, stride, padding, groups, shape of the input)"""
    seen: Counter = Counter()

    def note(m, args): seen[m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.groups, m.dilation, tuple(args[0].shape)] += 1
    hooks = [m.register_forward_pre_hook(note) for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad(), autocast(x.device): encoder(x)
    for hook in hooks: hook.remove()
    return seen


def convolution(key, dtype, first: bool) -> Callable[[], object]:
    """A function that runs one, forward and backward; first: without the gradient of its input, which nobody needs of pictures"""
    c_in, c_out, kernel, stride, padding, groups, dilation, shape = key
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, dilation=dilation, bias=False, device=device(), dtype=dtype).to(memory_format=torch.channels_last)
    x = torch.randn(shape, device=device(), dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_(not first)
    grad = torch.randn_like(conv(x))

    def run():
        conv(x).backward(grad)
        conv.weight.grad = x.grad = None
    return run


def main():
    cuda = device() == "cuda"
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--method", default="simclr")
    arg.add_argument("--arch", default="resnet50" if cuda else "resnet18")
    arg.add_argument("--size", type=int, default=128 if cuda else 64)
    arg.add_argument("--bs", type=int, default=512 if cuda else 16)
    arg.add_argument("--precision", default="auto")
    arg.add_argument("--compile", action="store_true")
    arg.add_argument("--matrix", type=int, nargs="+", default=[4096, 8192, 16384] if cuda else [1024, 2048], help="sides of the matrices; the best counts")
    arg.add_argument("--warm", type=int, default=10 if cuda else 2, help="steps before the clock starts")
    arg.add_argument("--steps", type=int, default=20 if cuda else 3, help="steps in a measurement")
    arg.add_argument("--rounds", type=int, default=3, help="measurements of all but the step")
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    torch.manual_seed(0)
    dls = image_dls(Pictures(a.bs * (a.warm + a.steps + 1), a.size), size=a.size, bs=a.bs, valid=0, device=device())
    learn = contrastive_learner(dls, a.arch, METHODS[a.method](setting="cifar" if a.size <= 64 else "imagenet"), small_input=False, precision=a.precision, knn_pictures=0)
    dtype, encoder = DTYPES[learn.precision], learn.model.encoder
    flops_s = {side: ceiling(side, dtype, a) for side in a.matrix}
    most = max(flops_s.values())
    parts: dict[str, tuple[float, float]] = {}  # seconds, FLOPs

    step_flops = counted(lambda: seconds_a_step(learn, 0, 1, lr=LR)) # as it is, since what is compiled can't be counted
    if a.compile: learn = contrastive_learner(dls, a.arch, learn.recipe, small_input=False, precision=a.precision, knn_pictures=0, compile=True)
    parts["step"] = seconds_a_step(learn, a.warm, a.steps, lr=LR), step_flops

    images, _ = dls.train.one_batch()
    x = learn.normalize(learn.views(images)["views"]).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    forward = torch.compile(encoder) if a.compile else encoder

    def passes(forward=forward):
        with torch.autocast(device(), dtype, enabled=dtype != torch.float32): h = forward(x)
        h.float().mean().backward()
        encoder.zero_grad()
    encoder.train()
    parts["encoder"] = timed(passes, a.steps, a.rounds), counted(lambda: passes(encoder))

    seconds = flops = 0.0
    rows = []
    for i, (key, n) in enumerate(convolutions(encoder, x).items()):
        run = convolution(key, dtype, first=i == 0)
        row = dict(channels=key[:2], kernel=key[2], stride=key[3], input=key[-1], times=n, ms=1e3 * timed(run, a.steps, a.rounds), gflop=counted(run) / 1e9)
        rows.append(dict(row, utilisation=row["gflop"] / row["ms"] * 1e12 / most))
        seconds, flops = seconds + n * row["ms"] / 1e3, flops + n * row["gflop"] * 1e9
    parts["convolutions"] = seconds, flops

    result = {k: v for k, v in vars(a).items() if k not in ("precision", "out", "matrix")} | dict(
        goal="utilisation of the step at least 0.30", model_precision=learn.precision, ceiling_tflops=most / 1e12, matrix_tflops={side: f / 1e12 for side, f in flops_s.items()},
        **{name: dict(ms=1e3 * s, tflop=f / 1e12, utilisation=f / s / most) for name, (s, f) in parts.items()},
        images_per_s=a.bs / parts["step"][0],
        share_of_step=dict(convolutions=seconds / parts["step"][0], rest_of_encoder=(parts["encoder"][0] - seconds) / parts["step"][0], outside_encoder=1 - parts["encoder"][0] / parts["step"][0]),
        each_convolution=rows)
    print(f"ceiling {most / 1e12:.3g} TFLOP/s ({learn.precision}); of it: " + ", ".join(f"{n} {result[n]['utilisation']:.1%} ({result[n]['ms']:.3g} ms)" for n in parts))
    print("of the step's time: " + ", ".join(f"{n.replace('_', ' ')} {s:.1%}" for n, s in result["share_of_step"].items()))
    save(f"utilisation_{a.arch}_{a.size}px_{'compiled_' * a.compile}{device()}", result, a.out)


if __name__ == "__main__": main()
