"Retrieval against loops: one set whose pictures search among each other, and queries in a bank"
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.features import clusters
from helpers.refusals import said
from sklearn.metrics import average_precision_score

from fastcontrast.evaluate import retrieval as module
from fastcontrast.evaluate.retrieval import average_precisions, retrieval


def looped(h, y, query_h=None, query_y=None, k=(1, 5, 10)):
    "Every query alone: rank all others, walk down the ranking"
    itself = query_h is None
    if itself: query_h, query_y = h, y
    precisions, hits = [], {n: [] for n in k}
    for i, (q, c) in enumerate(zip(query_h, query_y)):
        others = [j for j in range(len(h)) if not (itself and j == i)]
        if not any(y[j] == c for j in others): continue
        others.sort(key=lambda j: -F.cosine_similarity(q, h[j], dim=0).item())
        found, seen = [], 0
        for rank, j in enumerate(others, 1):
            if y[j] != c: continue
            seen += 1
            found.append(seen / rank)
        precisions.append(sum(found) / len(found))
        for n in k: hits[n].append(any(y[j] == c for j in others[:n]))
    def mean(values): return sum(values) / len(values)
    return {'mAP': mean(precisions), **{f'recall@{n}': mean(v) for n, v in hits.items()}}


def test_one_set():
    h, y = clusters(70, d=6)
    y[3], y[8] = 100, -1  # a picture without another of its class asks for nothing, and an unknown one does not count
    known = y >= 0
    assert retrieval(h, y) == pytest.approx(looped(h[known], y[known]), abs=1e-12)


def test_queries_in_a_bank(monkeypatch):
    (h, y), (query_h, query_y) = clusters(80, d=5), clusters(30, d=5, seed=1)
    query_y[:2], y[y == 5] = torch.tensor([-1, 77]), 3
    expected = looped(h, y, query_h[1:], query_y[1:], k=(2, 200))
    assert retrieval(h, y, query_h, query_y, k=(2, 200)) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(module, 'BLOCK', 100)  # a query at a time
    assert retrieval(h, y, query_h, query_y, k=(2, 200)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_equally_similar_pictures(dtype):
    "All of them come in at once, as scikit-learn has it: the order of a file is no merit"
    g = torch.Generator().manual_seed(0)
    axes = torch.cat([torch.eye(3), -torch.eye(3)]).to(dtype)  # the similarities are -1, 0 and 1
    h, y = axes[torch.randint(6, (60,), generator=g)], torch.randint(3, (60,), generator=g)
    scores = average_precisions(h, y, 2 * h[:9], y[:9])
    expected = [average_precision_score((y == c).numpy(), (h @ query).numpy()) for query, c in zip(h, y[:9])]
    assert scores.tolist() == pytest.approx(expected, abs=1e-12)


def test_collapsed_features_find_by_chance():
    y = torch.arange(40) % 4
    scores = retrieval(torch.ones(40, 5), y, torch.ones(40, 5), y)
    assert scores['mAP'] == pytest.approx(1 / 4)


def test_no_picture_finds_itself():
    "Not even where others have the same features"
    h, y = torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 3, 1, 0])
    scores = retrieval(h, y, k=[1])
    assert scores['recall@1'] == pytest.approx(2 / 4)  # of two of the four that have another of their class
    far = F.normalize(torch.tensor([[1., 0], [.9, .1], [0, 1], [.1, .9]]), dim=1)
    assert retrieval(far, torch.tensor([0, 0, 1, 1]), k=[1]) == {'mAP': 1, 'recall@1': 1}
    assert retrieval(far, torch.tensor([0, 1, 0, 1]), k=[1])['recall@1'] == 0


def test_what_retrieval_refuses():
    h, y = clusters(20)
    said(['query_h and query_y'], retrieval, h, y, h)
    said(['two pictures of a class'], retrieval, h[:5], torch.arange(5))
    said(['k[1]=0 of retrieval'], retrieval, h, y, k=(1, 0))
    with pytest.raises(ValueError, match='NaN'): retrieval(h * math.nan, y)
    with pytest.raises(ValueError, match='12 and 5'): retrieval(h, y, h[:, :5], y)
