"""`fastcontrast detect`: what an encoder is worth where something is to be found in pictures."""
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

from rich.table import Column, Table
from typer import Argument, Option

from ..core import InputError, number, whole
from ..files import read_json
from .inputs import encoder_file, encoder_name, told_apart
from .output import console, out_file, save_json
from .verbs import verb

MEASURES = ('AP', 'AP50', 'AP75')
RANDOM = ('random', 'untrained') # the same architecture, with other random weights for every seed


@dataclass(frozen=True)
class Start:
    "What a detector begins with"
    name: str
    source: str              # for `detector`
    pretrained: bool = True

    @property
    def weights(self) -> str:
        "What tells its weights from others: what the file's header says of them, or timm's name"
        from ..export import encoder_info
        known = encoder_info(self.source).get('sha256', '') if os.path.exists(self.source) else self.source
        return known if self.pretrained else f'{RANDOM[0]} {known}'


@verb(33, "fastcontrast detect runs/fast-resnet18-pictures raccoons --against random,resnet18.a1_in1k --seeds 3")
def detect(
    encoder: Annotated[str, Argument(help="A run's folder, an encoder.safetensors, or a name of timm's")],
    data: Annotated[str, Argument(
        help="A folder like Pascal VOC's: images/ and annotations/, or JPEGImages/ and Annotations/, with an .xml file "
             "for each picture")],
    against: Annotated[str | None, Option(
        help="Others to stand beside it, with commas between them: 'random' (the same architecture), runs, encoder "
             "files, timm's pretrained ones like resnet18.a1_in1k", show_default="none")] = None,
    seeds: Annotated[int, Option(help="How often each is trained")] = 3,
    epochs: Annotated[int, Option(help="Of training the detector")] = 30,
    batch_size: Annotated[int, Option(help="Pictures in a step")] = 8,
    lr: Annotated[float | None, Option(help="Learning rate at its peak", show_default="0.02 for 16 pictures")] = None,
    size: Annotated[int, Option(
        help="Pixels that the short side of a picture is brought to; up to 320 the detector is a small one")] = 224,
    valid: Annotated[float | None, Option(
        help="Share of the pictures to judge by", show_default="as ImageSets/Main/train.txt and val.txt say, else "
        "0.2")] = None,
    seed: Annotated[int, Option(help="Seed of that split")] = 0,
    precision: Annotated[str, Option(help="Of the arithmetic: {precisions}")] = 'auto',
    out: Annotated[str, Option('--out', '-o', help="The .json file for the results")] = 'detect.json',
):
    """Train a detector on top of an encoder, and say how well it finds what is in other pictures.

    It is torchvision's Faster R-CNN with a pyramid over the encoder's stages; encoder and detector learn together. The
    table has average precision as COCO defines it, over ten overlaps of the found box with the true one from 50 to
    95 % (AP), and at 50 % and 75 % alone (AP50, AP75), each as the mean ± standard deviation over the seeds. Without
    --against it says little: how far does the same architecture come that has learned nothing before? The results are
    written after every training: the same command goes on with those that are there, also for more seeds or others,
    and keeps them."""
    from fastai.torch_core import default_device
    from ..artefact import looking_for
    from ..bar import clock
    from ..detection import box_pictures, detection_transfer, detector
    from ..precision import pick_precision
    whole(**{'--seeds': seeds, '--epochs': epochs, '--batch-size': batch_size})
    number(above=0, optional=True, **{'--lr': lr})
    pick_precision(precision, default_device())
    file = out_file(out, '.json')
    train, judged = box_pictures(data, valid, seed)
    contenders = starts(encoder, against)
    for start in contenders:
        with looking_for(start.source, weights=start.pretrained and not os.path.exists(start.source)):
            detector(start.source, train.classes, size, start.pretrained)  # or say why it can't be
    settings = dict(data=data, epochs=epochs, batch_size=batch_size, lr=lr, size=size, valid=valid, seed=seed,
                    precision=precision, n_train=len(train), n_valid=len(judged))
    weights = {start.name: start.weights for start in contenders}
    results, others = _written_before(file, settings, weights)
    weights |= others
    console.print(f"{train} to train with, {judged} to judge by")
    began, runs = time.monotonic(), [(k, start) for k in range(seeds) for start in contenders
                                     if k >= len(results[start.name])]
    if there := seeds * len(contenders) - len(runs):
        console.print(f"{there} of {there + len(runs)} trainings are in {file} already")
    for done, (k, start) in enumerate(runs, 1):
        console.print(f"{start.name}, seed {k}")
        scores = detection_transfer(start.source, train, judged, size, start.pretrained, k, epochs=epochs, lr=lr,
                                    bs=batch_size, precision=precision)
        results[start.name].append(scores)
        to_go = (time.monotonic() - began) / done * (len(runs) - done)
        said = ', '.join(f'{measure} {100 * scores[measure]:.1f}' for measure in MEASURES)
        console.print(f"{start.name}, seed {k}: {said}; {clock(to_go)} to go")  # before the disk may refuse them
        save_json(file, dict(settings, weights=weights,
                             encoders={name: _summary(rows) for name, rows in results.items() if rows}))
    console.print(_table(results))
    console.print(f"results in {file}")


def starts(
    encoder: str,        # as the user gave it
    against: str | None, # others, with commas between them
) -> list[Start]:        # each with a name of its own
    "What detectors begin with. Raises `InputError` where that can't be told"
    names = [encoder, *filter(None, map(str.strip, (against or '').split(',')))]
    first, *others = dict.fromkeys(RANDOM[0] if name in RANDOM else name for name in names)
    if first in RANDOM:
        raise InputError(f"{encoder} of which architecture? Give an encoder first, and it as --against.")
    found = [_start(first)]
    found += [Start(given, found[0].source, False) if given in RANDOM else _start(given) for given in others]
    return told_apart(found)


def _start(given: str) -> Start:
    "A file, or a name of timm's"
    if not os.path.exists(os.path.expanduser(given)): return Start(given, given)
    path = encoder_file(given)
    return Start(encoder_name(path), str(path))


def _written_before(
    file: Path,
    settings: dict[str, Any], # of all trainings
    weights: dict[str, str],  # that each begins with, by name
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]: # what the seeds from 0 on had; others' weights; by names
    "What a file has of trainings with these settings. Raises `InputError` for one of others, or of something else"
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in weights}
    try:
        old = read_json(file)
        changed = {name: (old[name], value) for name, value in settings.items() if old[name] != value}
        there = {name: (old['weights'][name], _rows(summary)) for name, summary in old['encoders'].items()}
    except FileNotFoundError: return results, {}  # a new one
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise InputError(f"{file} is no table of detectors, and would be replaced: give another --out.") from None
    if changed:
        words = ', '.join(f'{name} {before}, now {now}' for name, (before, now) in changed.items())
        raise InputError(f"{file} has trainings with other settings ({words}): give another --out.")
    results |= {name: rows for name, (begins, rows) in there.items() if begins == weights.get(name, begins)}
    return results, {name: begins for name, (begins, _) in there.items() if name not in weights}


def _rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    "What each seed had, from `_summary`"
    def at(k): return {measure: summary[measure]['seeds'][k] for measure in MEASURES} | dict(
        classes={name: over['seeds'][k] for name, over in summary['classes'].items()})
    return [at(k) for k in range(len(summary[MEASURES[0]]['seeds']))]


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    "Means and deviations over the seeds, and what each had"
    def over(values): return dict(mean=fmean(values), std=stdev(values) if len(values) > 1 else None, seeds=values)
    summary: dict[str, Any] = {measure: over([row[measure] for row in rows]) for measure in MEASURES}
    return summary | dict(classes={name: over([row['classes'][name] for row in rows]) for name in rows[0]['classes']})


def _table(results: dict[str, list[dict[str, Any]]]) -> Table:
    "A row for each encoder, in percent"
    table = Table(Column('encoder', overflow='fold'), *(Column(name, justify='right') for name in MEASURES))
    for name, rows in results.items():
        summary = _summary(rows)
        table.add_row(name, *(_written(summary[measure]) for measure in MEASURES))
    return table


def _written(over: dict[str, Any]) -> str:
    spread = '' if over['std'] is None else f" ± {100 * over['std']:.1f}"
    return f"{100 * over['mean']:.1f}{spread}"
