"""Pictures per second of SimCLR training, data and augmentation included: this library over lightly.

lightly runs as its own examples do: `SimCLRTransform` in a `DataLoader` with workers, `SimCLRProjectionHead`, `NTXentLoss`. Both
train the same timm encoder (contiguous in lightly's loop, as there) on the same files with the same widths, batch and optimizer.
Each measurement is a process of its own, so that no worker prefetches during the other's turn; they take turns. The one-off
decoding of the pictures into memory is reported beside, not counted. Both are timed as they run by themselves (here bfloat16 where
the device has it; in lightly's examples mixed precision on a GPU only), and both in float32 and in bfloat16 where that differs:
what the precision gives can be told from what the rest does. Goal: at least 1.3.

    python benchmarks/throughput.py data/cifar10/train --size 32 --bs 256
    python benchmarks/throughput.py data/imagenette-128/train --size 128 --bs 64
"""
import argparse
import functools
import json
import statistics
import subprocess
import sys
import time

from common import device, save, sync

HIDDEN, OUT = 2048, 256


def ours(a, precision="auto") -> dict:
    import torch
    from fastai.callback.core import Callback, CancelFitException

    from fastcontrast.all import contrastive_learner, image_dls, simclr

    class Clock(Callback):
        order = 100

        def after_batch(self):
            if self.train_iter in (a.warm, a.warm + a.steps):
                sync()
                stamps.append(time.perf_counter())
            if self.train_iter == a.warm + a.steps: raise CancelFitException

    stamps: list[float] = []
    torch.manual_seed(0)
    start = time.perf_counter()
    dls = image_dls(a.data, size=a.size, bs=a.bs, valid=0, device=device())
    decode = time.perf_counter() - start
    method = simclr(opt="sgd", projector=(HIDDEN, OUT))
    learn = contrastive_learner(dls, a.arch, method, small_input=False, cbs=Clock(), precision=precision)
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(-(-(a.warm + a.steps) // len(dls.train)), lr=0.06)
    return dict(images_per_s=a.steps * a.bs / (stamps[1] - stamps[0]), decode_s=decode)


def lightly(a, half=False) -> dict:
    import timm
    import torch
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    dev = torch.device(device())
    torch.manual_seed(0)
    transform = SimCLRTransform(input_size=a.size, gaussian_blur=0.0 if a.size <= 64 else 0.5)
    loader = torch.utils.data.DataLoader(LightlyDataset(a.data, transform=transform), batch_size=a.bs, shuffle=True, drop_last=True,
                                         num_workers=a.workers, persistent_workers=True, pin_memory=dev.type == "cuda")
    encoder = timm.create_model(a.arch, num_classes=0).to(dev)
    head = SimCLRProjectionHead(encoder.num_features, HIDDEN, OUT).to(dev)
    loss_func = NTXentLoss(0.2 if a.size <= 64 else 0.1)
    opt = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.06, momentum=0.9, weight_decay=1e-4)
    stamps, step = [], 0
    while True:
        for batch in loader:
            x0, x1 = (x.to(dev, non_blocking=True) for x in batch[0])
            with torch.autocast(dev.type, torch.bfloat16, enabled=half or dev.type == "cuda"):
                loss = loss_func(head(encoder(x0)), head(encoder(x1)))
            loss.backward()
            opt.step()
            opt.zero_grad()
            step += 1
            if step in (a.warm, a.warm + a.steps):
                sync()
                stamps.append(time.perf_counter())
            if step == a.warm + a.steps: return dict(images_per_s=a.steps * a.bs / (stamps[1] - stamps[0]))


RUNS = {"ours": ours, "lightly": lightly, "ours fp32": functools.partial(ours, precision="fp32"), "lightly bf16": functools.partial(lightly, half=True)}


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("data", help="folder of class folders")
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--size", type=int, default=32)
    arg.add_argument("--bs", type=int, default=256)
    arg.add_argument("--warm", type=int, default=6, help="steps before the clock starts (more than lightly's workers prefetch)")
    arg.add_argument("--steps", type=int, default=20, help="steps on the clock")
    arg.add_argument("--rounds", type=int, default=3)
    arg.add_argument("--workers", type=int, default=2, help="lightly's DataLoader workers")
    arg.add_argument("--out", help="folder for the results")
    arg.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    a = arg.parse_args()
    if a.run:
        print(json.dumps(RUNS[a.run](a)))
        return
    from fastcontrast.device import has_bf16
    got: dict[str, list[dict]] = {name: [] for name in RUNS if name in ("ours", "lightly") or device() == "cpu" and has_bf16("cpu")}
    for r in range(a.rounds):
        for name in list(got)[::-1 if r % 2 else 1]:
            out = subprocess.run([sys.executable, *sys.argv, "--run", name], capture_output=True, text=True)
            if out.returncode: sys.exit(out.stderr)
            got[name].append(json.loads(out.stdout.splitlines()[-1]))
            print(name, got[name][-1], flush=True)
    over = {f"{x} over {y}": [p["images_per_s"] / q["images_per_s"] for p, q in zip(got[x], got[y], strict=True)]
            for x, y in (("ours", "lightly"), ("ours fp32", "lightly"), ("ours", "lightly bf16")) if x in got and y in got}
    for name, ratios in over.items(): print(f"{name}: {statistics.median(ratios):.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")
    data = a.data.rstrip("/").split("/")
    name = next((d for d in reversed(data) if d != "train"), "data")
    a.data = name
    save(f"throughput_{name}_{device()}", dict(settings={k: v for k, v in vars(a).items() if k not in ("run", "out")}, goal="ratio at least 1.3",
         ratio={name: statistics.median(r) for name, r in over.items()}, ratios=over, images_per_s={k: [g["images_per_s"] for g in v] for k, v in got.items()},
         decode_s=[g["decode_s"] for g in got["ours"]]), a.out)


if __name__ == "__main__":
    main()
