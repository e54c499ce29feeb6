"""Pictures per second of SimCLR training, data and augmentation included: this library over others, and over its own encoder.

lightly runs as its own examples do: `SimCLRTransform` in a `DataLoader` with workers, `SimCLRProjectionHead`, `NTXentLoss`.
stable-pretraining and solo-learn run as they do themselves (`benchmarks/peers/`), each in an interpreter of its own. All train the
same resnet18 (with the stem for large pictures; contiguous in the others' loops, as there) on the same files with the same widths,
batch and optimizer; the others' pictures come from two workers (`--workers`).

`encoder` is what the hardware could do at best: forward and backward pass of this library's encoder, in its precision and memory
format, on two views of a batch that are ready and normalised; no pictures are read or augmented, and there is no head, no loss and
no optimizer. It is measured in the middle of whole steps, on pictures in memory, one pass for each, and compared with those.

Each measurement is a process of its own, so that no worker prefetches during the other's turn; they take turns. The one-off
decoding of the pictures into memory is reported beside, not counted. All are timed as they run by themselves (here bfloat16 where
the device has it; in the others mixed precision on a GPU only), and all in float32 and in bfloat16 where that differs: what the
precision gives can be told from what the rest does. Goals: at least 1.35 over lightly, ahead of the other two, and 0.93 of the encoder.

    python benchmarks/throughput.py data/cifar10/train --size 32 --bs 256
    python benchmarks/throughput.py data/imagenette-128/train --size 128 --bs 64
    python benchmarks/throughput.py data/cifar10/train --small-input --steps 3
    python benchmarks/throughput.py data/cifar10/train --peer stable-pretraining=spt/bin/python --peer solo-learn=solo/bin/python

An interpreter for either of the two, with the torch that is used here, since they are to be compared and not their releases:

    python -m venv spt; spt/bin/pip install torch==VERSION torchvision==VERSION stable-pretraining
    python -m venv solo; solo/bin/pip install torch==VERSION torchvision==VERSION timm scipy einops
    solo/bin/pip install pytorch-lightning==1.9.5 torchmetrics==0.11.4 lightning-bolts==0.7.0; solo/bin/pip install --no-deps solo-learn

The registry's only solo-learn, 1.0.2, asks for torch 1.9.1 and Lightning 1.4.7, for which pip (in Python 3.8) had found no set of
versions after half an hour; it runs with the later ones above. What it has done since then is not in the registry.
"""
import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import device, save, sync

HIDDEN, OUT = 2048, 256
PEERS = {"stable-pretraining": "stable_pretraining_simclr.py", "solo-learn": "solo_learn_simclr.py"}  # in benchmarks/peers


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
    learn = contrastive_learner(dls, a.arch, method, small_input=a.small_input, cbs=Clock(), precision=precision)
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(-(-(a.warm + a.steps) // len(dls.train)), lr=0.06)
    return dict(images_per_s=a.steps * a.bs / (stamps[1] - stamps[0]), decode_s=decode)


def encoder(a, precision="auto") -> dict:
    """The encoder alone and whole steps by turns, so that both see the same machine: after a step's views are made, and before anything else"""
    import torch
    from fastai.callback.core import Callback, CancelFitException
    from step_time import Pictures

    from fastcontrast.all import contrastive_learner, image_dls, simclr

    class Encoder(Callback):
        order = 100  # the views are made and autocast is on
        took = 0.0

        def before_batch(self):
            sync()
            start = time.perf_counter()
            x = self.learn.xb[0]["views"].flatten(0, 1)
            h = self.model.encoder(x)
            with torch.autocast(x.device.type, enabled=False): h.backward(torch.ones_like(h))  # the learner's backward pass is outside as well
            self.model.encoder.zero_grad()
            torch.clear_autocast_cache()  # each step has weights of its own, to be cast once
            sync()
            self.took += time.perf_counter() - start

        def after_batch(self):
            if self.train_iter in (a.warm, a.warm + a.steps):
                sync()
                stamps.append((time.perf_counter(), self.took))
            if self.train_iter == a.warm + a.steps: raise CancelFitException

    stamps: list[tuple[float, float]] = []
    torch.manual_seed(0)
    dls = image_dls(Pictures(a.bs * (a.warm + a.steps), a.size), size=a.size, bs=a.bs, valid=0, device=device())
    learn = contrastive_learner(dls, a.arch, simclr(opt="sgd", projector=(HIDDEN, OUT)), small_input=a.small_input, cbs=Encoder(), precision=precision)
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1, lr=0.06)
    total, alone = (end - start for start, end in zip(*stamps, strict=True))
    return dict(images_per_s=a.steps * a.bs / alone, step_over_encoder=alone / (total - alone))


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


RUNS = {"ours": ours, "encoder": encoder, "lightly": lightly}
FP32 = {"ours": functools.partial(ours, precision="fp32"), "encoder": functools.partial(encoder, precision="fp32")}
BF16 = {"lightly": functools.partial(lightly, half=True)}
RUNS |= {f"{name} fp32": run for name, run in FP32.items()} | {f"{name} bf16": run for name, run in BF16.items()}


def peer(text: str) -> tuple[str, str]:
    name, _, python = text.partition("=")
    if name not in PEERS: raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PEERS)}")
    if not Path(python).is_file(): raise argparse.ArgumentTypeError(f"there is no interpreter {python!r}: give {name}=PATH/bin/python")
    return name, python


def command(name, a) -> list[str]:
    """What measures one of them, in a process of its own"""
    if name in RUNS: return [sys.executable, *sys.argv, "--run", name]
    which, _, half = name.partition(" ")
    asked = dict(data=a.data, arch=a.arch, size=a.size, bs=a.bs, hidden=HIDDEN, out=OUT, warm=a.warm, steps=a.steps, workers=a.workers,
                 precision="bf16" if half or device() == "cuda" else "fp32")
    return [dict(a.peer)[which], str(Path(__file__).parent / "peers" / PEERS[which]), *(f"--{k}={v}" for k, v in asked.items())]


def compare(got: dict[str, list[dict]]) -> dict[str, list[float]]:
    """Ours over each other in every round, steps over the encoder within its own process: as they run by themselves, both in float32, and both in bfloat16"""
    alone = {f"ours{name[7:]} over {name}": [g["step_over_encoder"] for g in got[name]] for name in ("encoder", "encoder fp32") if name in got}
    pairs = []
    for name in ("lightly", *PEERS): pairs += [("ours", name), ("ours fp32", name), ("ours", f"{name} bf16")]
    return alone | {f"{x} over {y}": [p["images_per_s"] / q["images_per_s"] for p, q in zip(got[x], got[y], strict=True)] for x, y in pairs if x in got and y in got}


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("data", help="folder of class folders")
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--size", type=int, default=32)
    arg.add_argument("--bs", type=int, default=256)
    arg.add_argument("--warm", type=int, default=6, help="steps before the clock starts (more than the others' workers prefetch)")
    arg.add_argument("--steps", type=int, default=20, help="steps on the clock")
    arg.add_argument("--rounds", type=int, default=3)
    arg.add_argument("--workers", type=int, default=2, help="DataLoader workers of the others")
    arg.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PYTHON", help=f"of {', '.join(PEERS)}: the interpreter that has it")
    arg.add_argument("--small-input", action="store_true", help="ours and the encoder alone, with the stem for small pictures that the learner gives a ResNet by itself")
    arg.add_argument("--only", nargs="+", metavar="NAME", help="measure these, in every precision (by default all: ours encoder lightly and the peers)")
    arg.add_argument("--out", help="folder for the results")
    arg.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    a = arg.parse_args()
    if a.run:
        print(json.dumps(RUNS[a.run](a)))
        return
    from fastcontrast.device import has_bf16
    names = ["ours", "encoder", "lightly", *dict(a.peer)]
    if unknown := set(a.only or ()) - set(names): arg.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(names)}")
    other = {name: f"{name} {'fp32' if name in FP32 else 'bf16'}" for name in names} if device() == "cpu" and has_bf16("cpu") else {}
    names = [name for name in names if name in (a.only or (names[:2] if a.small_input else names))]
    if a.small_input and set(names) - {"ours", "encoder"}: arg.error("--small-input is for ours and the encoder only: the others keep the stem for large pictures")
    got: dict[str, list[dict]] = {name: [] for name in [*names, *(other[name] for name in names if other)]}
    for r in range(a.rounds):
        for name in list(got)[::-1 if r % 2 else 1]:
            out = subprocess.run(command(name, a), capture_output=True, text=True)
            if out.returncode: sys.exit(f"{name}:\n{out.stderr}")
            got[name].append(json.loads(out.stdout.splitlines()[-1]))
            print(name, got[name][-1], flush=True)
    over = compare(got)
    for name, ratios in over.items(): print(f"{name}: {statistics.median(ratios):.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")
    data = a.data.rstrip("/").split("/")
    a.data = name = next((d for d in reversed(data) if d != "train"), "data")
    save(f"throughput_{name}_{'small_input_' * a.small_input}{device()}", dict(settings={k: v for k, v in vars(a).items() if k not in ("run", "out", "peer")},
         goal="ours at least 1.35 over lightly, above 1 over the others, 0.93 over the encoder", ratio={name: statistics.median(r) for name, r in over.items()},
         ratios=over, images_per_s={k: [g["images_per_s"] for g in v] for k, v in got.items()}, decode_s=[g["decode_s"] for g in got.get("ours", [])],
         peers={name: got[name][0]["versions"] for name in names if name in PEERS}, losses={k: [g["losses"] for g in v] for k, v in got.items() if "losses" in v[0]}), a.out)


if __name__ == "__main__":
    main()
