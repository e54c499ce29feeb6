"""What the runners of other libraries share: the settings they are given, and the clocks. None of this is ours."""
import json
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def settings() -> SimpleNamespace:
    """What a measurement gives to a runner, as JSON

    Of `speed throughput`: data, arch, size, bs, hidden and out (widths of the projector), warm and steps (before and
    on the clock), workers, precision ('fp32' or 'bf16'), channels_last (bool) and device ('cpu' or 'cuda'). Of
    `race`: data, size, bs, epochs, seed, method, workers, precision, device, folder (of the run's state and of the
    untrained encoder), and what race.py recommends for the library.
    """
    a = SimpleNamespace(**json.loads(sys.argv[1]))
    torch.manual_seed(getattr(a, "seed", 0))
    return a


# ---- pictures per second ----


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


# ---- a race ----

MARK = "EPOCH "  # before what is told


def tell(**report: Any) -> None:
    """Tell the racing program of an epoch, and wait until it has judged the encoder; ends with that program"""
    print(MARK + json.dumps(report), flush=True)
    if not sys.stdin.readline(): sys.exit("the racing program has ended")


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, with what it lacks: attention on CPUs, whose kernel makes queries with keys anew going back"""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(display=False, custom_mapping={
        forward: lambda query, key, value, *args, **kwargs: sdpa_flop_count(query, key, value),
        backward: lambda gradient, query, key, value, *args, **kwargs: (
            sdpa_backward_flop_count(gradient, query, key, value))})


class Race:
    """The clock of a run that is judged after every epoch, and its state, from which it goes on if it is broken off

    The clock stands still while the state is written and the encoder judged.
    """
    def __init__(self, a: SimpleNamespace, *packages: str):
        self.a, self.file, self.packages = a, Path(a.folder, "state.pt"), ("torch", "torchvision", "timm", *packages)
        self.epoch, self.seconds, self.tflop_a_step, self.steps = 0, 0.0, 0.0, 0
        self.mean, self.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures that the encoder sees
        self.state = torch.load(self.file, weights_only=False) if self.file.exists() else None

    def encoder(self) -> torch.nn.Module:
        """The encoder that every contestant begins with"""
        return torch.load(Path(self.a.folder, "encoder.pt"), weights_only=False)

    def count(self, loss_of: Callable[[int], torch.Tensor], n: int = 4) -> None:
        """Count the operations of a step; loss_of: the loss of some pictures' views, by a copy of the model"""
        with torch.random.fork_rng(), flop_counter() as counter: loss_of(n).backward()
        self.tflop_a_step = counter.get_total_flops() * self.a.bs / n / 1e12

    def start(self, steps: int) -> None:
        """Start the clock, where the run was if it goes on; steps: of an epoch"""
        self.steps = steps
        if self.state is not None:
            self.epoch, self.seconds = self.state["epoch"], self.state["seconds"]
            self.set_generators()
            self.report()  # the racing program may have ended before it heard of this
        self.began = time.perf_counter()

    def end_epoch(self, encoder: torch.nn.Module, **rest: Any) -> None:
        """Write the state of a run, and have the encoder judged; rest: what else the run needs to go on"""
        if self.a.device == "cuda": torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self.began
        self.epoch += 1
        weights = {name: t.detach().cpu() for name, t in encoder.state_dict().items()}
        generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
        partial = self.file.with_suffix(".partial")
        state = dict(encoder=weights, epoch=self.epoch, seconds=self.seconds, steps=self.steps, generators=generators,
                     **rest)
        torch.save(state, partial)
        os.replace(partial, self.file)
        self.report()
        self.began = time.perf_counter()

    def set_generators(self) -> None:
        """Go on drawing where the run was"""
        numbers, numpy_state, python_state = self.state["generators"]
        torch.set_rng_state(numbers)
        np.random.set_state(numpy_state)
        random.setstate(python_state)

    def report(self) -> None:
        """Tell of the epoch that the state is of"""
        versions = {package: version(package) for package in self.packages}
        tell(epoch=self.epoch, seconds=self.seconds, tflop=self.tflop_a_step * self.steps * self.epoch,
             weights=str(self.file), mean=self.mean, std=self.std, versions=versions)


class RacingCallback:
    """The race in Lightning's trainer; to be mixed with its `Callback`

    encoder_of: gives the encoder of a module.
    """
    def __init__(self, race: Race, encoder_of: Callable[[Any], torch.nn.Module]):
        self.race, self.encoder_of = race, encoder_of

    @property
    def checkpoint(self) -> str | None:
        """Lightning's checkpoint to go on from"""
        return str(Path(self.race.a.folder, self.race.state["checkpoint"])) if self.race.state else None

    def on_fit_start(self, trainer, module):
        race = self.race  # a training that is over does not start again, and its end may not have been heard of
        if race.state and race.state["epoch"] == race.a.epochs: race.start(race.state.get("steps", 0))

    def on_train_start(self, trainer, module): self.race.start(trainer.num_training_batches)

    def on_train_epoch_end(self, trainer, module):
        race = self.race
        path = Path(race.a.folder, f"epoch_{race.epoch + 1}.ckpt")
        began = time.perf_counter()
        trainer.save_checkpoint(path)
        race.began += time.perf_counter() - began  # off the clock
        race.end_epoch(self.encoder_of(module), checkpoint=path.name)
        for old in path.parent.glob("epoch_*.ckpt"):
            if old != path: old.unlink()
