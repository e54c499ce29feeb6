"""What an encoder is worth: by every protocol, beside one at random and one that had all labels; and to a detector."""
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import Clock, Group, Lacking, Run, steps_to_time, table_of, train, turns, words
from trials import Sheet, deviation, needs, provenance, sources_of, spelled_table

from fastcontrast.all import (Cost, Protocol, box_pictures, classifier_learner, contrastive_learner,
                              detection_transfer, draw_rectangles, encoder_info, image_dls, judge_features,
                              make_encoder, simclr)
from fastcontrast.evaluate.judge import markdown, wide_table
from fastcontrast.evaluate.knn import extract_features
from fastcontrast.evaluate.robust import changed_features, view_features
from fastcontrast.evaluate.score_plot import plot_scores
from fastcontrast.files import write_whole
from fastcontrast.recipes import pick_setting

group = Group("transfer", "What an encoder of ours is worth: by every protocol, and to a detector")


# ---- every protocol ----


@group.measurement(quick=dict(data="digits", arch="test_resnet", size=16, bs=128, epochs=1))
def protocols(
    run: Run,
    data: str = "",         # 'digits', or a folder with train/ and val/ or test/
    arch: str = "resnet18", # encoder
    size: int = 32,         # side of a picture
    bs: int = 256,          # batch of SimCLR
    epochs: int = 20,       # of SimCLR
    pictures: int = 0,      # of train/, a stratified choice; 0: all
    small_input: bool | None = None, # the ResNets' stem for small pictures (up to 64 px if not given)
    lr: float = 0.1,        # of the training with labels, by SGD in batches of 128 with a weight decay of 5e-4
    seed: int = 0,          # of everything that is drawn
    state: str = "",        # folder of unfinished runs, 'runs' beside the results if not given
    threads: int | None = None, # of PyTorch on the CPU
) -> None:
    """What does every protocol say of SimCLR's encoder, beside one at random, and one trained with all labels?

    Everything that `fastcontrast eval --robust` prints. The three are of one architecture and begin with the same
    weights. First the steps of both trainings are timed in turn, and the one with labels gets as many epochs as fit
    into SimCLR's seconds; only this needs the machine for itself. What is broken off goes on when the command is
    given again.
    """
    if threads: torch.set_num_threads(threads)
    needs(data)
    dls = image_dls(**sources_of(data, pictures), size=size, bs=bs, seed=seed, device=run.device)
    setting = pick_setting(data, size, len(dls.train.data))
    sheet = Sheet(run, (Path(data).name, str(size), arch), dict(
        data=Path(data).name, arch=arch, size=size, bs=bs, epochs=epochs, lr=lr, seed=seed, setting=setting,
        small_input=small_input, n_train=len(dls.train.data), n_valid=len(dls.valid.data)), own=("epoch_s",))
    held = Path(state or run.folder / "runs") / sheet.path.stem

    def unlabelled():
        torch.manual_seed(seed)
        return contrastive_learner(dls, arch, simclr(setting=setting), cbs=Cost(), small_input=small_input)

    def labelled(n: int):
        protocol = Protocol(n, lr, lr, wd=5e-4, bs=128, scaled=False)
        start = unlabelled().model.encoder
        return classifier_learner(start, dls, "all", protocol, epochs=n, judge_every=n, seed=seed)

    kept = sheet.kept()
    if "epoch_s" not in kept:
        kept = dict(epoch_s=seconds_of_epochs(unlabelled, labelled, run.quick))
        sheet.write(**kept)
    own, others = (statistics.median(kept["epoch_s"][name]) for name in ("simclr", "labelled"))
    n = max(1, round(epochs * own / others))
    print(f"{epochs} epochs of SimCLR take {epochs * own:,.0f} s, {n} with labels {n * others:,.0f} s", flush=True)
    learn, tuned = unlabelled(), labelled(n)
    encoders = dict(zip((f"SimCLR, {epochs} epochs", "random", f"all labels, {n} epochs"),
                        (learn.model.encoder, copy.deepcopy(learn.model.encoder), tuned.model.encoder)))
    train(learn, epochs, lr=None, resume=held / "simclr")
    with tuned.no_logging(), tuned.no_bar(): tuned.fit_protocol(resume=held / "labelled")
    scores = {name: judged(encoder, dls) for name, encoder in encoders.items()}
    text = markdown(wide_table(scores))
    print(f"\n{text}")
    write_whole(sheet.path.with_suffix(".md"), text)
    plot_scores(scores, sheet.path.with_suffix(".png"))
    numbers = {name: {measure: dict(mean=score.mean, std=score.std) for measure, score in measures.items()}
               for name, measures in scores.items()}
    sheet.write(**kept, seconds=epochs * own, labelled_epochs=n, labelled_seconds=n * others,
                tflop=table_of(learn)[-1]["tflop"], labelled_accuracy=tuned.recorder.values[-1][-1], scores=numbers)


def seconds_of_epochs(unlabelled: Callable[[], Any], labelled: Callable[[int], Any], quick: bool
                      ) -> dict[str, list[float]]:
    """Seconds of an epoch without labels and with them, by round, from some of its steps"""
    took: dict[str, list[float]] = {"simclr": [], "labelled": []}
    for _, name in turns(took, 1 if quick else 3):
        learn = unlabelled() if name == "simclr" else labelled(1)
        clock = Clock(2, steps_to_time(learn, 2, 2 if quick else 12))
        if name == "simclr":
            learn.remove_cbs(Cost)  # it counts operations, which takes time
            train(learn, cbs=clock)
        else:
            with learn.no_logging(), learn.no_bar(): learn.fit_protocol(clock)
        took[name].append(clock.seconds / clock.steps * len(learn.dls.train))
    return took


def judged(encoder: torch.nn.Module, dls) -> dict[str, Any]:
    """Every measure of an encoder"""
    cfg = encoder.pretrained_cfg
    def embed(dl): return extract_features(encoder, dl, dls.size, cfg["mean"], cfg["std"])
    valid = dls.valid.ordered()
    features = *embed(dls.train.ordered()), *embed(valid)
    return judge_features(*features, views=view_features(embed, valid, dls.size), classes=dls.classes,
                          changed=changed_features(embed, valid, dls.size, dls.channels))[0]


# ---- a detector ----


MEASURES = ("AP", "AP50", "AP75")
COLUMNS = {"begins with": "{start}", "seeds": "{seeds}", "seconds a seed": "{seconds:,.0f}",
           **{name: f"{{{name}:.1%}}{{{name}_std:.1%}}" for name in MEASURES}, "AP50 over random": "{ratio:.2f}"}


@group.measurement(quick=dict(seeds="3", epochs=1, size=64, bs=4))
def raccoon(
    run: Run,
    data: str = "",       # folder with images/ and annotations/, as Pascal VOC has them
    encoder: str = "",    # folder of a run, or an exported file
    against: str = "random", # random: the same architecture; timm's names, other runs; with commas between them
    seeds: str = "0,1,2", # with commas between them
    epochs: int = 24,     # of training the detector
    size: int = 192,      # pixels of a picture's short side
    bs: int = 8,          # pictures in a step
    lr: float | None = None, # at its peak (0.02 for 16 pictures, and in proportion, if not given)
    minutes: float | None = None, # after which no further training begins
    threads: int | None = None, # of PyTorch on the CPU
) -> None:
    """How much more does a detector find that begins with our encoder than one that begins at random?

    torchvision's Faster R-CNN, small as it is by default for small pictures, learns together with the encoder, from
    the same four fifths of the pictures for all seeds; the others judge it. Trainings that are done are kept: the
    command that is given again goes on with the next. `ratio` is AP50 over that of the random start.
    """
    if threads: torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if run.quick and not data: data, starts = str(draw_rectangles(folder, 8, size)), trial_starts()
        else: starts = find_starts(data, encoder, against)
        train, valid = box_pictures(data)
        settings = dict(data="shapes" if run.quick else Path(data).name, epochs=epochs, size=size, bs=bs, lr=lr,
                        n_train=len(train), n_valid=len(valid))
        first = next(iter(starts.values()))
        if isinstance(first["source"], str): settings["sha256"] = encoder_info(first["source"])["sha256"]
        sheet, began = Sheet(run, (str(size),), settings), time.perf_counter()
        for seed, name in product(map(int, words(seeds)), starts):
            kept = sheet.kept()
            rows = kept["rows"]
            if any((row["start"], row["seed"]) == (name, seed) for row in rows): continue
            if minutes and time.perf_counter() - began > 60 * minutes:
                print(f"{minutes:g} minutes are over before {name}, seed {seed}")
                break
            start = time.perf_counter()
            print(f"{name}, seed {seed}", flush=True)
            scores = detection_transfer(train=train, valid=valid, size=size, seed=seed, epochs=epochs, bs=bs, lr=lr,
                                        device=run.device, encoder=starts[name]["source"],
                                        pretrained=starts[name]["pretrained"])
            row = dict(start=name, seed=seed, seconds=time.perf_counter() - start, **scores) | provenance(run.device)
            sheet.write(**kept | dict(rows=[*rows, row], table=table([*rows, row])))
    print(f"\n{spelled_table(sheet.read()['table'], COLUMNS)}\n")


def trial_starts() -> dict[str, dict[str, Any]]:
    """For a trial: a tiny encoder that was never trained, and another one"""
    return dict(encoder=dict(source=make_encoder("test_resnet"), pretrained=True),
                random=dict(source="test_resnet", pretrained=False))


def find_starts(data: str, encoder: str, against: str) -> dict[str, dict[str, Any]]:
    """What the detectors begin with, the encoder first; raises `Lacking` where something isn't there"""
    if not data: raise Lacking("it needs pictures with boxes: --data=FOLDER")
    if not Path(data).is_dir(): raise Lacking(f"there is no folder '{data}'")
    if not encoder: raise Lacking("it needs an encoder: --encoder=RUN, of fastcontrast pretrain")
    path = Path(encoder)
    file = path / "encoder.safetensors" if path.is_dir() else path
    if not file.is_file(): raise Lacking(f"there is no encoder '{file}'")
    starts = {"encoder": dict(source=str(file), pretrained=True)}
    for name in words(against):
        random = name == "random"
        starts[name] = dict(source=str(file) if random else name, pretrained=not random)
    return starts


def table(rows: list[dict]) -> list[dict]:
    """Means and deviations over the seeds, and AP50 over that of the random start, of the seeds that both have"""
    result = []
    for name in dict.fromkeys(row["start"] for row in rows):
        runs = {row["seed"]: row for row in rows if row["start"] == name}
        base = {row["seed"]: row for row in rows if row["start"] == "random" and row["seed"] in runs}
        entry = dict(start=name, seeds=len(runs), seconds=statistics.fmean(row["seconds"] for row in runs.values()))
        for measure in MEASURES:
            values = [row[measure] for row in runs.values()]
            entry |= {measure: statistics.fmean(values), f"{measure}_std": deviation(values)}
        found = sum(row["AP50"] for row in base.values())
        entry["ratio"] = sum(runs[seed]["AP50"] for seed in base) / found if found else None
        result.append(entry)
    return result
