"Average precision against a loop that follows the definition, and against pycocotools' figures"
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcontrast.detection import average_precision


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0: return 0.
    def area(box): return (box[2] - box[0]) * (box[3] - box[1])
    return width * height / (area(a) + area(b) - width * height)


def by_hand(found, objects, label, threshold):
    "Average precision of a class at an overlap, one detection after the other"
    count, ranked = 0, []
    for k, (detections, target) in enumerate(zip(found, objects)):
        rows = [(s, b) for s, b, c in zip(*(detections[name].tolist() for name in ('scores', 'boxes', 'labels')))
                if c == label]
        rows = sorted(rows, key=lambda row: -row[0])[:100]
        difficult = target['difficult'].tolist() if 'difficult' in target else [False] * len(target['labels'])
        real = [[b, hard, False] for b, hard, c in zip(target['boxes'].tolist(), difficult, target['labels'].tolist())
                if c == label]
        count += sum(not hard for _, hard, _ in real)
        for score, box in rows:
            best, most = None, threshold
            for wanted in (False, True):  # what counts first
                for item in real:
                    if best is not None and best[1] != wanted: break
                    if item[1] == wanted and not item[2] and overlap(box, item[0]) >= most:
                        best, most = item, overlap(box, item[0])
            if best is None: ranked.append((score, k, False))
            elif not best[1]:
                best[2] = True
                ranked.append((score, k, True))
    if not count: return None
    ranked.sort(key=lambda row: -row[0])
    points, hits = [], 0
    for n, (_, _, hit) in enumerate(ranked, 1):
        hits += hit
        points.append((hits / count, hits / n))
    return np.mean([max((p for r, p in points if r >= level), default=0) for level in np.linspace(0, 1, 101)])


def scene(draws, n, jitter, difficult=0., classes=2):
    "Objects, and detections near some of them and elsewhere"
    corner, size = draws.uniform(0, 60, (n, 2)), draws.uniform(5, 40, (n, 2))
    boxes, labels = np.hstack([corner, corner + size]), draws.integers(1, classes + 1, n)
    target = dict(boxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(labels),
                  difficult=torch.tensor(draws.random(n) < difficult))
    near = boxes[draws.integers(n, size=2 * n)] + draws.normal(0, jitter, (2 * n, 4)) if n else boxes
    far = np.hstack([corner := draws.uniform(0, 60, (4, 2)), corner + draws.uniform(5, 40, (4, 2))])
    around = np.vstack([near, far])
    around[:, 2:] = np.maximum(around[:, 2:], around[:, :2] + 1)
    scores = draws.random(len(around)).round(2)  # some are equal
    return dict(boxes=torch.tensor(around), scores=torch.tensor(scores),
                labels=torch.tensor(draws.integers(1, classes + 1, len(around)))), target


def scenes(seed, jitter=2., difficult=0., n=12):
    draws = np.random.default_rng(seed)
    return tuple(zip(*(scene(draws, int(draws.integers(0, 7)), jitter, difficult) for _ in range(n))))


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('difficult', (0., 0.4))
def test_against_the_definition(seed, difficult):
    found, objects = scenes(seed, difficult=difficult)
    got = average_precision(found, objects, ['a', 'b'])
    table = {label: [by_hand(found, objects, label, t) for t in np.linspace(0.5, 0.95, 10)] for label in (1, 2)}
    mean = np.mean(list(table.values()), 0)
    assert (got['AP'], got['AP50'], got['AP75']) == pytest.approx((mean.mean(), mean[0], mean[5]), abs=1e-12)
    assert got['classes'] == pytest.approx(dict(a=np.mean(table[1]), b=np.mean(table[2])), abs=1e-12)
    assert 0 < got['AP'] < got['AP50'] < 1
    numbers = [target | dict(difficult=target['difficult'].to(torch.uint8)) for target in objects]  # as VOC has them
    assert average_precision(found, numbers, ['a', 'b']) == got


def test_against_pycocotools():
    "Figures of its COCOeval, over all areas and 100 detections; coco.json says how they were made"
    expected = json.loads((Path(__file__).parent/'coco.json').read_text())['figures']
    for row in expected:
        found, objects = scenes(row['seed'], row['jitter'])
        got = average_precision(found, [{k: v for k, v in t.items() if k != 'difficult'} for t in objects])
        for name in ('AP', 'AP50', 'AP75'): assert got[name] == pytest.approx(row[name], abs=1e-9), row


def detections(*rows):
    boxes, scores, labels = zip(*rows) if rows else ((), (), ())
    return dict(boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), scores=torch.tensor(scores),
                labels=torch.tensor(labels, dtype=torch.int64))


def objects(*boxes, difficult=()):
    target = detections(*((box, 1., 1) for box in boxes))
    if difficult: target['difficult'] = torch.tensor(difficult)
    return target


A, B = [0, 0, 10, 10], [20, 20, 30, 30]


def test_small_cases():
    def ap(found, target): return average_precision([detections(*found)], [target])
    assert ap([(A, .9, 1)], objects(A))['AP'] == 1
    assert ap([], objects(A))['AP'] == 0
    assert ap([(A, .9, 2)], objects(A))['AP'] == 0  # of another class
    assert ap([(A, .9, 1), (A, .8, 1)], objects(A))['AP'] == 1  # found twice, after all was found
    assert ap([(B, .9, 1), (A, .8, 1)], objects(A))['AP'] == 0.5
    assert ap([(A, .9, 1)], objects(A, B))['AP'] == pytest.approx(51 / 101)
    seven = [0, 0, 7, 10]  # of which the overlap is 0.7
    got = ap([(seven, .9, 1)], objects(A))
    assert (got['AP50'], got['AP75'], got['AP']) == (1, 0, pytest.approx(.5))
    # what is difficult is neither asked for nor wrong, however often it is found
    assert ap([(B, .95, 1), (B, .9, 1), (A, .8, 1)], objects(A, B, difficult=[False, True]))['AP'] == 1
    nothing = ap([(A, .9, 1)], objects())
    assert np.isnan(nothing['AP']) and nothing['classes'] == {}


def test_a_class_without_objects_is_left_out():
    got = average_precision([detections((A, .9, 1), (B, .9, 2))], [objects(A)], ['cat', 'dog'])
    assert got['AP'] == 1 and got['classes'] == {'cat': 1}
