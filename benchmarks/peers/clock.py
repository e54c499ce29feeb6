"""What the runners of other libraries share: the settings they are given, and the clock. They import nothing of this library."""
import argparse
import json
import math
import platform
import time
from importlib.metadata import version

import torch


def settings(doc: str) -> argparse.Namespace:
    """What `throughput.py` passes on to a runner"""
    arg = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--data", required=True, help="folder of class folders")
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--size", type=int, default=32)
    arg.add_argument("--bs", type=int, default=256)
    arg.add_argument("--hidden", type=int, default=2048, help="width of the projector")
    arg.add_argument("--out", type=int, default=256, help="what the projector gives")
    arg.add_argument("--warm", type=int, default=6, help="steps before the clock starts")
    arg.add_argument("--steps", type=int, default=20, help="steps on the clock")
    arg.add_argument("--workers", type=int, default=2)
    arg.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    a = arg.parse_args()
    torch.manual_seed(0)
    return a


class Clock:
    """Time, loss and views of a Lightning trainer's steps; to be mixed with the `Callback` of its package

    a: the settings; views_of: gives the list of views of a batch.
    """
    def __init__(self, a, views_of):
        self.a, self.views_of = a, views_of
        self.stamps, self.losses = [], []

    def on_train_batch_start(self, trainer, module, batch, *args):
        if self.losses: return
        views, shape = self.views_of(batch), (self.a.bs, 3, self.a.size, self.a.size)
        assert len(views) == 2 and all(v.shape == shape for v in views), f"expected two views {shape}, got {[tuple(v.shape) for v in views]}"
        assert (views[0] != views[1]).flatten(1).any(1).all(), "the two views of a picture are the same"

    def on_train_batch_end(self, trainer, module, outputs, *args):
        self.losses.append(outputs["loss"].detach())
        if len(self.losses) in (self.a.warm, self.a.warm + self.a.steps):
            if torch.cuda.is_available(): torch.cuda.synchronize()
            self.stamps.append(time.perf_counter())

    def report(self, *packages):
        """Print the figures as the last line"""
        losses = [float(loss) for loss in self.losses]
        assert len(losses) == self.a.warm + self.a.steps and all(map(math.isfinite, losses)), f"losses: {losses}"
        print(json.dumps(dict(images_per_s=self.a.steps * self.a.bs / (self.stamps[1] - self.stamps[0]), losses=[losses[0], losses[-1]],
                              versions=dict(python=platform.python_version(), **{p: version(p) for p in ("torch", "torchvision", *packages)}))), flush=True)
