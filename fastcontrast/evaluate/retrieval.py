"""Retrieval: how early pictures of its class come when others are ranked by their similarity to a picture."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import InputError, whole
from .checks import labelled_pair
from .knn import BLOCK, nearest
from .linear import numbered
from .neighbours import nearest_others


def _ascending(
    x: Tensor, # [m, n], changed in place on a CPU
) -> Tensor:   # each row sorted
    "NumPy's sort keeps no places and is vectorised: a tenth of the time of torch's on a CPU"
    if x.device.type != 'cpu': return x.sort(1).values
    x.numpy().sort(1)
    return x


def _at_least(
    ascending: Tensor, # [m, n], rows sorted
    least: Tensor,     # [m, r]
) -> Tensor:           # int64 [m, r]
    "How many numbers of the row are at least so large"
    return ascending.shape[1] - torch.searchsorted(ascending, least)


def average_precisions(
    bank_h: Tensor, # [N, D] features, of any length
    bank_y: Tensor, # [N] class numbers
    h: Tensor,      # [M, D] features of the queries
    y: Tensor,      # [M] their class numbers
    itself: bool = False, # are the queries the bank, where none finds itself?
) -> Tensor:        # float64 [M]; 0 where there is nothing to find
    """Average precision of each query: the mean, over the pictures of its class, of the share of such among those that
    are at least as similar (cosine). Where no two are equally similar that is the precision at each of their ranks"""
    bank, queries = F.normalize(bank_h, dim=1), F.normalize(h, dim=1)
    scores = torch.zeros(len(y), dtype=torch.float64, device=h.device)
    for c in y.unique():
        members = (bank_y == c).nonzero()[:, 0]
        if len(members) <= itself: continue
        for rows in (y == c).nonzero()[:, 0].split(max(1, BLOCK // len(bank))):
            similarity = queries[rows] @ bank.T
            # below all cosines: the first of its row when sorted, and left out
            if itself: similarity[torch.arange(len(rows), device=rows.device), rows] = -2
            sought = _ascending(similarity[:, members])[:, int(itself):].contiguous()
            ranked = _ascending(similarity)[:, int(itself):].contiguous()
            scores[rows] = (_at_least(sought, sought) / _at_least(ranked, sought).double()).mean(1)
    return scores


def hits(
    found_y: Tensor, # [M, k'] classes of the nearest pictures, from the nearest on
    y: Tensor,       # [M] classes of the queries
    k: int,          # how many of them count
) -> Tensor:         # float64 [M], 0 or 1
    "Whether one of the nearest is of the query's class, whose mean is recall at k"
    return (found_y[:, :k] == y[:, None]).any(1).double()


@torch.no_grad()
def retrieval(
    h: Tensor,                # [N, D] features of the pictures that are ranked, of any length
    y: Tensor,                # [N] class numbers; -1: unknown, left out
    query_h: Tensor | None = None, # [M, D] of the pictures that search; None: those of `h`, each among the others
    query_y: Tensor | None = None, # [M]; -1: unknown, left out
    k: Sequence[int] = (1, 5, 10), # of the recalls
) -> dict[str, float]:        # 'mAP' and 'recall@k', in [0, 1]
    """How well a picture finds those of its class by cosine similarity, as the mean over the queries that have any to
    find: average precision, and whether there is one among the k nearest. Raises `InputError` for features or labels
    that it cannot use, and where there is nothing to find"""
    whole('retrieval', **{f'k[{i}]': n for i, n in enumerate(k)})
    if (query_h is None) != (query_y is None):
        raise InputError("retrieval needs both features and labels of the pictures that search: give query_h and "
                         "query_y, or neither.")
    itself = query_h is None
    queries = (h, y) if itself else (query_h, query_y)
    h, y, query_h, query_y = labelled_pair(h, y, *queries, 'retrieval')
    y, query_y = numbered(y, query_y)
    members = torch.where(query_y < 0, 0, y.bincount()[query_y])
    asks = members > int(itself)
    if not asks.any():
        raise InputError("no picture has another one of its class to find: give two pictures of a class or more.")
    most = max(k, default=1)
    _, found = nearest_others(h, torch.arange(len(h), device=h.device), most) if itself else nearest(h, query_h, most)
    scores = {'mAP': average_precisions(h, y, query_h, query_y, itself)}
    scores |= {f'recall@{n}': hits(y[found], query_y, n) for n in k}
    return {name: score[asks].mean().item() for name, score in scores.items()}
