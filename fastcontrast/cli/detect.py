"""`fastcontrast detect`: what an encoder is worth where something is to be found in pictures."""
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

from rich.table import Column, Table
from typer import Argument, Option

from ..core import InputError, number, whole
from ..files import read_json
from .inputs import encoder_file, encoder_name, names_in, numbered
from .output import console, out_file, save_json
from .verbs import verb

MEASURES = ('AP', 'AP50', 'AP75')
RANDOM = ('random', 'untrained') # the same architecture, with other random weights for every seed


@dataclass(frozen=True)
class Start:
    "What a detector begins with"
    name: str                # which others may have too
    source: str              # for `detector`
    pretrained: bool = True

    @property
    def weights(self) -> str:
        "What tells its weights from others: the digest in a file's header, or timm's name; of random ones their kind"
        from ..export import encoder_info
        known = self.source
        if os.path.exists(known):
            info = encoder_info(known)
            known = info.get('sha256', '') if self.pretrained else _kind(info)
        return known if self.pretrained else f'{RANDOM[0]} {known}'

    @property
    def place(self) -> str:
        "Where its weights lie, by which a run is known that was trained anew; '' if in no file"
        return os.path.abspath(self.source) if self.pretrained and os.path.exists(self.source) else ''


def _kind(
    info: dict[str, Any], # what the header of a file says
) -> str:
    "All that makes an untrained network: the same for runs that differ in their seeds"
    from ..models import pretrained_config
    sized = ('size',) if pretrained_config(info['arch']).get('fixed_input_size') else ()
    return ', '.join(f'{name} {info[name]}' for name in ('arch', 'small_input', 'in_chans', 'mean', 'std', *sized))


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
    there = Trainings(file, settings, contenders)
    console.print(f"{train} to train with, {judged} to judge by")
    began, runs = time.monotonic(), [(k, i) for k in range(seeds) for i, own in enumerate(there.own)
                                     if k >= len(own.rows)]
    if before := seeds * len(contenders) - len(runs):
        console.print(f"{before} of {before + len(runs)} trainings are in {file} already")
    for done, (k, i) in enumerate(runs, 1):
        start, name = contenders[i], there.names[i]
        console.print(f"{name}, seed {k}")
        scores = detection_transfer(start.source, train, judged, size, start.pretrained, k, epochs=epochs, lr=lr,
                                    bs=batch_size, precision=precision)
        there.own[i].rows.append(scores)
        to_go = (time.monotonic() - began) / done * (len(runs) - done)
        said = ', '.join(f'{measure} {100 * scores[measure]:.1f}' for measure in MEASURES)
        console.print(f"{name}, seed {k}: {said}; {clock(to_go)} to go")  # before the disk may refuse them
        there.save()
    console.print(_table(there.all))
    console.print(f"results in {file}")


def starts(
    encoder: str,        # as the user gave it
    against: str | None, # others, with commas between them
) -> list[Start]:        # folders of one name lie in many places
    "What detectors begin with. Raises `InputError` where that can't be told"
    first, *others = dict.fromkeys(RANDOM[0] if name in RANDOM else name for name in (encoder, *names_in(against)))
    if first in RANDOM:
        raise InputError(f"{encoder} of which architecture? Give an encoder first, and it as --against.")
    start = _start(first)
    return [start, *(Start(given, start.source, False) if given in RANDOM else _start(given) for given in others)]


def _start(given: str) -> Start:
    "A file, or a name of timm's"
    if not os.path.exists(os.path.expanduser(given)): return Start(given, given)
    path = encoder_file(given)
    return Start(encoder_name(path), str(path))


@dataclass
class Trained:
    "What detectors had that began with one encoder"
    weights: str # as `Start` says it…
    place: str   # …and this; '' also where an older file does not say it
    rows: list[dict[str, Any]] # of the seeds from 0 on


class Trainings:
    "What detectors had, in a file that other programs may add to as well: what they have written stays"
    def __init__(self,
        file: Path,
        settings: dict[str, Any], # of all trainings
        starts: Sequence[Start],  # with which they begin here
    ):
        self.file, self.settings, self.starts = file, settings, starts
        self.own = [Trained(start.weights, start.place, []) for start in starts]
        self.names: list[str] = []         # of each in the file
        self.all: dict[str, Trained] = {}  # in the file, by name
        self.join()
        for own, name in zip(self.own, self.names): own.rows = list(self.all[name].rows)

    def join(self) -> None:
        "Take what the file has by now, and find names in it. Raises `InputError` as `_written_before` does"
        there, self.names, self.all = _written_before(self.file, self.settings), [], {}
        for start, own in zip(self.starts, self.own):
            name = self._name(start, own, there)
            old = there.get(name, own)
            if old.weights != own.weights: old = own  # of a run that was trained anew
            self.names.append(name)
            # another program may have come further with the same
            self.all[name] = replace(old, place=own.place or old.place, rows=max(own.rows, old.rows, key=len))
        self.all |= {name: old for name, old in there.items() if name not in self.all}

    def _name(self, start: Start, own: Trained, there: dict[str, Trained]) -> str:
        "What the file calls these weights; else those that lay in their place before; else a name that none in it has"
        names = [name for name in islice(numbered(start.name), len(there) + len(self.starts)) if name not in self.names]
        known, weights = [name for name in names if name in there], {own.weights for own in self.own}
        same = [name for name in known if there[name].weights == own.weights]
        gone = [name for name in known if own.place and there[name].place == own.place
                and there[name].weights not in weights]
        return [*same, *gone, *(name for name in names if name not in there)][0]

    def save(self) -> None:
        "Write the file, with what others have written there meanwhile"
        self.join()
        found = {name: trained for name, trained in self.all.items() if trained.rows}
        save_json(self.file, dict(self.settings, weights={name: trained.weights for name, trained in found.items()},
                                  places={name: trained.place for name, trained in found.items()},
                                  encoders={name: _summary(trained.rows) for name, trained in found.items()}))


def _written_before(
    file: Path,
    settings: dict[str, Any], # of all trainings
) -> dict[str, Trained]:      # by name
    "What a file has of trainings with these settings. Raises `InputError` for one of others, or of something else"
    try:
        old = read_json(file)
        changed = {name: (old[name], value) for name, value in settings.items() if old[name] != value}
        there = {name: Trained(old['weights'][name], old.get('places', {}).get(name, ''), _rows(summary))
                 for name, summary in old['encoders'].items()}
    except FileNotFoundError: return {}  # a new one
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise InputError(f"{file} is no table of detectors, and would be replaced: give another --out.") from None
    if changed:
        words = ', '.join(f'{name} {before}, now {now}' for name, (before, now) in changed.items())
        raise InputError(f"{file} has trainings with other settings ({words}): give another --out.")
    return there


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


def _table(found: dict[str, Trained]) -> Table:
    "A row for each encoder, in percent"
    table = Table(Column('encoder', overflow='fold'), *(Column(name, justify='right') for name in MEASURES))
    for name, trained in found.items():
        summary = _summary(trained.rows)
        table.add_row(name, *(_written(summary[measure]) for measure in MEASURES))
    return table


def _written(over: dict[str, Any]) -> str:
    spread = '' if over['std'] is None else f" ± {100 * over['std']:.1f}"
    return f"{100 * over['mean']:.1f}{spread}"
