"""What the runners of other libraries share: the settings they are given, and the clock. None of this is ours."""
import json
import math
import platform
import sys
import time
from importlib.metadata import version
from types import SimpleNamespace

import torch


def settings() -> SimpleNamespace:
    """What `speed throughput` gives to a runner, as JSON: data, arch, size, bs, hidden and out (widths of the
    projector), warm and steps (before and on the clock), workers, precision ('fp32' or 'bf16') and device ('cpu' or
    'cuda')"""
    torch.manual_seed(0)
    return SimpleNamespace(**json.loads(sys.argv[1]))


class Clock:
    """Time, loss and views of a trainer's steps; to be mixed with the `Callback` of Lightning

    a: the settings; views_of: gives the list of views of a batch.
    """
    def __init__(self, a, views_of):
        self.a, self.views_of = a, views_of
        self.stamps, self.losses = [], []

    def on_train_batch_start(self, trainer, module, batch, *args):
        if self.losses: return
        views, shape = self.views_of(batch), (self.a.bs, 3, self.a.size, self.a.size)
        shapes = [tuple(v.shape) for v in views]
        assert shapes == [shape, shape], f"expected two views {shape}, got {shapes}"
        assert (views[0] != views[1]).flatten(1).any(1).all(), "the two views of a picture are the same"

    def on_train_batch_end(self, trainer, module, outputs, *args):
        self.losses.append(outputs["loss"].detach())
        if len(self.losses) not in (self.a.warm, self.a.warm + self.a.steps): return
        if self.a.device == "cuda": torch.cuda.synchronize()
        self.stamps.append(time.perf_counter())

    @property
    def over(self) -> bool: return len(self.losses) == self.a.warm + self.a.steps

    def report(self, *packages):
        """Print the figures as the last line"""
        losses = [float(loss) for loss in self.losses]
        assert self.over and all(map(math.isfinite, losses)), f"losses: {losses}"
        images = self.a.steps * self.a.bs / (self.stamps[1] - self.stamps[0])
        versions = {package: version(package) for package in ("torch", "torchvision", *packages)}
        versions["python"] = platform.python_version()
        print(json.dumps(dict(images_per_s=images, losses=[losses[0], losses[-1]], versions=versions)), flush=True)
