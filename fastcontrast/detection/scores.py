"""Average precision of detections, as COCO defines it.

Docs: https://fastcontrast.github.io/fastcontrast/detect.html.md"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

THRESHOLDS = np.linspace(0.5, 0.95, 10) # of the overlap from which on an object counts as found
RECALLS = np.linspace(0, 1, 101)        # at which precision is read off
MOST = 100                              # detections in a picture that count, those of the highest scores


def average_precision(
    found: Sequence[Mapping[str, Tensor]],   # a picture each, on the CPU: boxes [D, 4], scores, and labels from 1 on
    objects: Sequence[Mapping[str, Tensor]], # what is there: boxes [N, 4], labels [N], and, if known, difficult [N]
    classes: Sequence[str] = (),             # names of labels 1, 2, …
) -> dict[str, Any]: # AP, AP50 and AP75 in [0, 1], NaN where there is no object; and `classes`: AP by name
    """COCO's average precision: over ten overlaps (AP), and at an overlap of a half (AP50) and of three quarters (AP75)

    The detections of a class, those of the highest scores first, each find the object that they overlap with most and
    that none before has found. Precision is read off at 101 recalls, as the best at this recall or a higher one, and
    averaged over them and over the classes that have objects. Whether a difficult object is found does not count."""
    labels = sorted({label for target in objects for label in target['labels'].tolist()})
    curves = {label: _of_class(found, objects, label) for label in labels}
    curves = {label: ap for label, ap in curves.items() if ap is not None}
    mean = np.mean(list(curves.values()), 0) if curves else np.full(len(THRESHOLDS), np.nan)
    names = dict(enumerate(classes, 1))
    return dict(AP=float(mean.mean()), AP50=float(mean[0]), AP75=float(mean[5]),
                classes={names.get(label, str(label)): float(ap.mean()) for label, ap in curves.items()})


def _of_class(found: Sequence[Mapping[str, Tensor]], objects: Sequence[Mapping[str, Tensor]],
              label: int) -> np.ndarray | None:
    "Average precision by threshold, for a class; None if it has no object that counts"
    scores, hits, ignored, count = [], [], [], 0
    for detections, target in zip(found, objects, strict=True):
        chosen = (detections['labels'] == label).nonzero().squeeze(1)
        best = chosen[detections['scores'][chosen].argsort(descending=True, stable=True)][:MOST]
        places = target['labels'] == label
        difficult = target.get('difficult', torch.zeros_like(places))[places].bool().numpy()
        overlaps = box_iou(detections['boxes'][best].double(), target['boxes'][places].double()).numpy()
        hit, skipped = _matched(overlaps, difficult)
        scores.append(detections['scores'][best].double().numpy())
        hits.append(hit)
        ignored.append(skipped)
        count += int((~difficult).sum())
    if not count: return None
    order = np.argsort(-np.concatenate(scores), kind='stable')
    hits, ignored = np.concatenate(hits, 1)[:, order], np.concatenate(ignored, 1)[:, order]
    return np.array([_area(hit[~skipped], count) for hit, skipped in zip(hits, ignored)])


def _matched(
    overlaps: np.ndarray,  # [D, N], of detections, the best first, with objects
    difficult: np.ndarray, # bool [N]
) -> tuple[np.ndarray, np.ndarray]: # bool [T, D]: what finds an object; what finds a difficult one, and so is left out
    "Which detections find an object, by threshold"
    n_detections, n_objects = overlaps.shape
    hits, ignored = np.zeros((2, len(THRESHOLDS), n_detections), dtype=bool)
    if not n_objects: return hits, ignored
    rows, free = np.arange(len(THRESHOLDS)), np.ones((len(THRESHOLDS), n_objects), dtype=bool)
    for i, row in enumerate(overlaps):
        fits = free & (row >= THRESHOLDS[:, None])
        # an object that counts comes before any that does not; of several with the same overlap the last, as in COCO
        ranks = np.where(fits, row + 2 * ~difficult, -1)
        best = n_objects - 1 - ranks[:, ::-1].argmax(1)
        finds = fits[rows, best]
        hits[:, i], ignored[:, i] = finds & ~difficult[best], finds & difficult[best]
        free[rows[hits[:, i]], best[hits[:, i]]] = False
    return hits, ignored


def _area(
    hit: np.ndarray, # bool [D], by falling score
    count: int,      # objects
) -> float:
    "The mean precision over `RECALLS`"
    found = hit.cumsum()
    recall, precision = found / count, found / np.arange(1, len(hit) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = recall.searchsorted(RECALLS)
    return float(np.append(precision, 0)[place].mean())
