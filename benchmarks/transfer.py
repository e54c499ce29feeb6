"""What an encoder is worth elsewhere: a detector that begins with it, beside one that begins with nothing."""
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import Group, Lacking, Run, words
from trials import Sheet, deviation, provenance, spelled_table

from fastcontrast.all import box_pictures, detection_transfer, draw_rectangles, encoder_info, make_encoder

group = Group("transfer", "Whether a detector finds more that begins with an encoder of ours")

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
