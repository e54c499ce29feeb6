"""What it costs that a run can't be lost, and whether it is true: checkpoints' price, and runs that are killed."""
import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from common import (Group, Run, alternate, apart, chosen, hiding_gpus, noise_folder, random_dls, spelled, train,
                    with_library)
from fastai.callback.core import Callback, CancelFitException

from fastcontrast.all import contrastive_learner, image_dls
from fastcontrast.checkpoint import FOLDER, Checkpoint, newest
from fastcontrast.recipes import METHODS

group = Group("checkpoints", "What checkpoints cost, how fast a run is taken up, and whether it survives being killed")
MIB = 2**20


def plain_learner(dls, method: str, arch: str):
    """A learner that judges nothing"""
    return contrastive_learner(dls, arch, METHODS[method](setting="cifar"), small_input=False, knn_pictures=0)


def learner(method: str, arch: str, size: int, bs: int, steps: int, device: str):
    """One with so many steps an epoch"""
    return plain_learner(random_dls(bs * steps, size, bs, device), method, arch)


# ---- the price ----


class StepTimes(Callback):
    """Seconds of every step, with what follows it"""
    order = 100

    def before_fit(self): self.stamps = []
    def before_batch(self): self.stamps.append(time.perf_counter())
    def after_batch(self): self.stamps[-1] = time.perf_counter() - self.stamps[-1]


@group.measurement(quick=dict(arch="test_resnet", size=16, bs=8, steps=2, rounds=1))
def epoch_time(
    run: Run,
    method: str = "moco_v3", # recipe
    arch: str = "resnet18", # encoder
    size: int = 128,        # side of a picture
    bs: int = 32,           # batch
    steps: int = 100,       # of an epoch
    rounds: int = 3,        # epochs of each
) -> None:
    """How much longer is an epoch with a checkpoint at its end, and how long the step in which its state is copied?

    The file is written beside training, and the epoch ends when it is on the disk. Goal: at most 1.02.
    """
    learn, times = learner(method, arch, size, bs, steps, run.device), StepTimes()
    copied: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        def kept():
            shutil.rmtree(Path(folder)/FOLDER, ignore_errors=True)
            train(learn, cbs=[Checkpoint("epoch", folder=folder), times])
            copied.append(times.stamps[-1] - sorted(times.stamps)[len(times.stamps) // 2])
        got = alternate(kept, lambda: train(learn, cbs=times), rounds)
        size_mib = newest(folder)["bytes"] / MIB
    print(f"an epoch of {steps} steps with a checkpoint over one without: {spelled(got)}; the step that copies "
          f"{size_mib:.0f} MiB took {1000 * sorted(copied)[len(copied) // 2]:.0f} ms longer than the median step",
          flush=True)
    run.save(dict(goal="ratio at most 1.02", checkpoint_mib=size_mib, longer_step_s=copied, **got))


@group.measurement(quick=dict(methods="moco_v2", arch="test_resnet", size=16, bs=8))
def size(
    run: Run,
    methods: str = "simclr,moco_v3,dino", # with commas between them
    arch: str = "resnet18", # encoder
    size: int = 64,         # side of a picture
    bs: int = 32,           # batch
) -> None:
    """How large is a checkpoint over what has to be kept: the model with its target and queues, and the optimizer?

    Goal: at most 1.05.
    """
    ratios = {}
    for method in chosen(methods, METHODS, "method"):
        learn = learner(method, arch, size, bs, 2, run.device)
        with tempfile.TemporaryDirectory() as folder:
            train(learn, cbs=Checkpoint("epoch", folder=folder))
            written = newest(folder)["bytes"]
        optimizer = [t for state in learn.opt.state_dict()["state"].values() for t in state.values()]
        tensors = [*learn.model.state_dict().values(), *(t for t in optimizer if hasattr(t, "nbytes"))]
        ratios[method] = written / sum(t.nbytes for t in tensors)
        print(f"{method}: {written / MIB:.1f} MiB, {ratios[method]:.4f} of what has to be kept", flush=True)
    run.save(dict(goal="ratio at most 1.05", ratios=ratios))


# ---- taking a run up ----


class FirstStep(Callback):
    """Ends a fit after its first step; has the seconds since the process began"""
    order = 100

    def after_batch(self):
        self.seconds = time.time() - psutil.Process().create_time()
        raise CancelFitException


def folder_learner(pictures: str, shape: dict[str, Any]):
    """A learner for a folder of pictures"""
    dls = image_dls(pictures, size=shape["size"], bs=shape["bs"], valid=0, device=shape["device"])
    return plain_learner(dls, "moco_v3", shape["arch"])


def first_step(folder: str, pictures: str, shape: dict[str, Any]) -> float:
    """Seconds from the start of a process to the end of the first step of a run in a folder"""
    first, learn = FirstStep(), folder_learner(pictures, shape)
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(9, resume=folder, cbs=first)
    return first.seconds


@group.measurement(quick=dict(arch="test_resnet", size=16, bs=8, pictures=32, rounds=1))
def restart(
    run: Run,
    arch: str = "resnet18", # encoder
    size: int = 64,         # side of a picture
    bs: int = 64,           # batch
    pictures: int = 2000,   # to be decoded
    rounds: int = 7,        # starts of each
) -> None:
    """How long does it take from the start of the program to the first new step, taken up over begun anew?

    Goal: at most 1.2.
    """
    shape = dict(arch=arch, size=size, bs=bs, device=run.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder, source = Path(temporary), str(noise_folder(Path(temporary)/"pictures", pictures, size))
        apart(half_of_a_run, folder=str(folder/"kept"), pictures=source, shape=shape)

        def start(name: str) -> float:
            shutil.rmtree(folder/"run", ignore_errors=True)
            if name == "resumed": shutil.copytree(folder/"kept", folder/"run")
            return apart(first_step, folder=str(folder/"run"), pictures=source, shape=shape)
        got = alternate(lambda: start("resumed"), lambda: start("fresh"), rounds)
    print(f"to the first step, taken up over begun anew: {spelled(got)}; {got['a_s']:.1f} s and {got['b_s']:.1f} s",
          flush=True)
    run.save(dict(goal="ratio at most 1.2", **got))


def half_of_a_run(folder: str, pictures: str, shape: dict[str, Any]) -> None:
    """A run that was broken off in its second epoch"""
    class Stop(Callback):
        order = 100
        def before_batch(self):
            if self.epoch == 1 and self.iter == 1: raise CancelFitException
    learn = folder_learner(pictures, shape)
    with learn.no_logging(), learn.no_mbar():
        learn.fit_contrastive(9, resume=folder, cbs=[Checkpoint("1 step"), Stop()])


# ---- kills ----


def pretrain(pictures: Path, out: Path, *options: str) -> list[str]:
    """The command of a small run that uses everything"""
    return [sys.executable, "-m", "fastcontrast", "pretrain", str(pictures), "--out", str(out), "--arch", "test_resnet",
            "--method", "moco_v3", "--with", "comb_patches, intermediate, partial, suncet", "--labels", "all",
            "--epochs", "20", "--batch-size", "16", "--size", "32", "--checkpoint", "epoch, 3 steps", *options]


def judged(out: Path) -> dict[str, Any]:
    """What a run has come to: its encoder's digest, its results, and its history without the times"""
    from fastcontrast.export import encoder_info
    times = ("time", "seconds", "images_s", "memory_mb")
    with (out/"history.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k not in times} for row in csv.DictReader(file)]
    config = json.loads((out/"config.json").read_text())
    return dict(encoder=encoder_info(out/"encoder.safetensors")["sha256"], state=config["state"], history=rows,
                results=config["results"])


def left_over(out: Path) -> list[str]:
    """Files that no run should leave"""
    return [str(path) for path in out.rglob("*") if "partial" in path.name or path.name == ".lock"]


@group.measurement(quick=dict(kills=1, pictures=64), alone=True)
def kills(
    run: Run,
    kills: int = 50,        # in all
    pictures: int = 200,    # to train on
    processes: int = 1,     # that train together
    seed: int = 0,          # of the moments
) -> None:
    """Does every run that is killed (SIGKILL) at a random moment come to the end it would have come to?

    A run is killed again and again, at moments drawn from the whole length of a run, and taken up by `pretrain
    --resume` until it ends; then the next one is. Weights, results and history have to be those of a run that nobody
    killed, and nothing may be left over. Goal: all.
    """
    draw, outcomes, moments = random.Random(seed), [], []
    options = ("--processes", str(processes)) if processes > 1 else ()
    env = with_library(hiding_gpus(run.device))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = noise_folder(folder/"pictures", pictures, 32)
        began = time.perf_counter()
        subprocess.run(pretrain(source, folder/"whole", *options), check=True, capture_output=True, env=env)
        length, expected = time.perf_counter() - began, judged(folder/"whole")
        while len(moments) < kills:
            out = folder/f"run{len(outcomes)}"
            died = kill_and_resume(source, out, env, options, draw, length, kills - len(moments))
            moments += died
            same, left = judged(out) == expected, left_over(out)
            outcomes.append(dict(kills=died, same=same, left=left))
            print(f"{len(died)} kills, then the end: {'the same' if same else 'ANOTHER'} encoder, results and history"
                  f"{', and left over: ' + ', '.join(left) if left else ''}", flush=True)
    survived = sum(len(outcome["kills"]) for outcome in outcomes if outcome["same"] and not outcome["left"])
    print(f"survived {survived} of {len(moments)} kills; a run takes {length:.1f} s", flush=True)
    run.save(dict(goal="all", survived=survived, kills=len(moments), length_s=length, runs=outcomes),
             *([f"{processes}_processes"] if processes > 1 else []))


def kill_and_resume(source: Path, out: Path, env: dict[str, str], options: tuple, draw: random.Random, length: float,
                    most: int) -> list[float]:
    """Seconds after its start at which each process of a run was killed; at the end it ends by itself"""
    died: list[float] = []
    while True:
        begun = state_of(out) is not None
        command = [*pretrain(source, out)[:4], "--resume", str(out)] if begun else pretrain(source, out, *options)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   env=env, start_new_session=True)
        moment = draw.uniform(0, length) if len(died) < most else None
        try: said, _ = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            if options: family = [draw.choice(family)]  # the others have to end by themselves
            for member in family: member.send_signal(signal.SIGKILL)
            process.communicate()
            died.append(moment)
            continue
        ended = "is finished" in said and state_of(out) == "finished"  # killed after its end
        if process.returncode and not ended: raise SystemExit(f"{' '.join(command)} failed:\n{said}")
        return died


def state_of(out: Path) -> str | None:
    """What config.json says of a run; None if there is none yet"""
    return json.loads((out/"config.json").read_text())["state"] if (out/"config.json").exists() else None
