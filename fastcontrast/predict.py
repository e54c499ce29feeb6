"""A classifier that was fine-tuned, loaded again, and what it takes pictures for: classes with probabilities.

Docs: https://fastcontrast.github.io/fastcontrast/finetune.html.md"""
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from .arrays import ARRAY_SUFFIXES
from .core import InputError, moved, whole
from .embed import model_outputs, renumbered
from .evaluate.finetune import Classifier, ClassifierLearner
from .export import load_classifier
from .files import user_path, write_whole
from .pictures import picture_suffixes

__all__ = ['Predictions', 'as_source', 'predict']
__getattr__ = moved('predict', find_classifier='artefact')


@dataclass(frozen=True)
class Predictions:
    "What a classifier takes pictures for, in the order of their names"
    probabilities: Tensor # float32 [N, K], on the CPU
    names: list[str]      # [N], in the folder or list of their part
    parts: list[str]      # [N], 'train' or 'valid': where the pictures lie, if they have folders for both
    classes: list[str]    # K names
    y: Tensor             # int64 [N], places in `classes`, where the pictures have labels; -1: unknown
    unknown: list[str]    # classes of the pictures that the classifier does not know

    def __len__(self): return len(self.names)

    @property
    def known(self) -> int:
        "Pictures whose class is known"
        return int((self.y >= 0).sum())

    @property
    def accuracy(self) -> float | None:
        "Share of the pictures with a label for which the most likely class is right; None where there are none"
        known = self.y >= 0
        if not known.any(): return None
        return self.probabilities[known].argmax(1).eq(self.y[known]).double().mean().item()

    def best(self,
        top: int = 5, # classes of each picture; K if there are fewer
    ) -> tuple[Tensor, Tensor]: # probabilities `[N, top]`, from the largest on, and places in `classes`
        "The most likely classes"
        whole(top=top)
        return self.probabilities.topk(min(top, len(self.classes)))

    def labels(self) -> list[str]:
        "The name of each picture's class; '' where it is unknown"
        return [self.classes[place] if place >= 0 else '' for place in self.y.tolist()]

    def frame(self,
        top: int = 5, # classes of each picture
    ) -> pd.DataFrame:
        "A row for each picture: part, name, label if any is known, then its most likely classes with probabilities"
        text = dict(part=self.parts, name=self.names) | (dict(label=self.labels()) if self.known else {})
        frame = pd.DataFrame(text, dtype=object)  # a file's name may be no UTF-8, which columns of text have to be
        probabilities, places = self.best(top)
        for i in range(places.shape[1]):
            number = f'_{i + 1}' if i else ''
            frame[f'class{number}'] = [self.classes[place] for place in places[:, i].tolist()]
            frame[f'probability{number}'] = probabilities[:, i].numpy()
        return frame

    def rows(self,
        top: int = 5, # classes of each picture
    ) -> list[dict[str, Any]]:
        "The same as plain values, the classes of a picture as a dict"
        rows = [dict(part=part, name=name) for part, name in zip(self.parts, self.names)]
        if self.known: rows = [row | dict(label=label) for row, label in zip(rows, self.labels())]
        found = zip(rows, *(tensor.tolist() for tensor in self.best(top)), strict=True)
        return [row | dict(classes={self.classes[place]: p for p, place in zip(*of_picture)})
                for row, *of_picture in found]

    def save(self,
        path: str | Path, # ending in .csv or .json
        top: int = 5,     # classes of each picture
    ) -> Path:            # the file
        "Write `frame` or `rows`. Raises `InputError` for another ending, and where it can't be written"
        path = user_path(path, 'path')
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"predictions are written as {', '.join(SUFFIXES)}, not as '{path.name}': give such a "
                             "name.")
        try: write_whole(path, SUFFIXES[path.suffix.lower()](self, top))
        except OSError as e:
            raise InputError(f"the predictions cannot be written to '{path}' ({e.strerror or e}).") from e
        return path


SUFFIXES = {'.csv': lambda found, top: found.frame(top).to_csv(index=False),
            '.json': lambda found, top: json.dumps(found.rows(top), indent=2) + '\n'}


def _classes_of(model: nn.Module) -> list[str]:
    "The names of what a classifier tells apart. Raises `InputError` where it has none"
    if isinstance(model, Classifier): return model.classes
    config = getattr(model, 'pretrained_cfg', None)
    names = config.get('label_names') if isinstance(config, dict) else None
    if names: return list(names)
    raise InputError(f"a {type(model).__name__} does not say what its classes are called: give one of "
                     "load_classifier(…), or the learner of learn.finetune(…).")


def predict(
    classifier: nn.Module | ClassifierLearner | str | Path, # of `learn.finetune`, `load_classifier`, or its folder
    source: Any,             # pictures: loaders from `image_dls`, or what it takes; or one picture's file
    precision: str = 'auto', # of the arithmetic, see `pick_precision`
    **settings: Any,         # of `image_dls`, for pictures that are no loaders: column, value_range, …
) -> Predictions:
    "What a classifier takes pictures for, unaugmented. Raises `InputError` for what is no classifier, or no pictures"
    loaded = isinstance(classifier, str | Path)
    if loaded: classifier = load_classifier(classifier)
    if isinstance(classifier, ClassifierLearner): classifier = classifier.model
    classes = _classes_of(classifier)
    scored = model_outputs(classifier, as_source(source), precision, loaded, **dict(training=False) | settings)
    y, unknown = _known_labels(scored.y, scored.classes, classes)
    return Predictions(scored.features.softmax(1), scored.names, scored.parts, classes, y, unknown)


def as_source(
    source: Any,
) -> Any:
    "What `image_dls` takes: of one picture's file a list"
    if not isinstance(source, str | Path): return source
    path = user_path(source, 'source')
    return [path] if path.is_file() and path.suffix.lower() in {*picture_suffixes(), *ARRAY_SUFFIXES} else source


def _known_labels(y: Tensor, own: Sequence[str] | None, classes: Sequence[str]) -> tuple[Tensor, list[str]]:
    "Labels as places in the classes of a classifier, and the classes that it does not know; no label counts then"
    there = [own[i] for i in y[y >= 0].unique().tolist()] if own else []
    unknown = [name for name in there if name not in classes]
    if unknown or not there: return torch.full_like(y, -1), unknown
    return renumbered(y, own, classes), []
