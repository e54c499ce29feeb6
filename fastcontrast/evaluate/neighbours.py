"""What features say of how pictures lie to one another: the nearest others, near copies, and a plane to see all on.

Docs: https://fastcontrast.github.io/fastcontrast/search_pictures.html.md"""
import importlib.util
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import InputError, one_of
from .knn import nearest

TILE = 2048   # rows whose similarities to as many others are held at once: 16 MiB
SLACK = 1e-6  # of a similarity in float32: that of a picture and its copy is 1 but for this

# --- nearest others

def nearest_others(
    h: Tensor,    # [N, D] features, of any length
    rows: Tensor, # int64 [M], which of them ask
    k: int,       # neighbours of each; N - 1 where there are fewer
) -> tuple[Tensor, Tensor]: # [M, k] cosine similarities, from the largest on; [M, k] rows of `h`
    "The rows that are nearest to some of them, each but itself"
    k = min(k, len(h) - 1)
    similarity, found = nearest(h, h[rows], k + 1)
    itself = found == rows[:, None]
    itself[~itself.any(1), -1] = True  # behind so many copies
    return similarity[~itself].view(-1, k), found[~itself].view(-1, k)

# --- near copies

class _Groups:
    "Rows that pairs have joined"
    def __init__(self, n: int): self.label = np.arange(n)

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        from scipy.sparse import coo_matrix  # here: it takes a while that most runs need not spend
        from scipy.sparse.csgraph import connected_components
        first, second = self.label[first], self.label[second]
        apart = first != second
        if not apart.any(): return
        n = self.label.max() + 1
        pairs = coo_matrix((np.ones(apart.sum()), (first[apart], second[apart])), shape=(n, n))
        self.label = connected_components(pairs, directed=False)[1][self.label]


def near_copies(
    h: Tensor,        # [N, D] features, of any length
    threshold: float, # cosine similarity from which on two are near copies
) -> tuple[Tensor, Tensor, Tensor]: # [N] largest similarity to another; int64 [N] that row; int64 [N] numbers of groups
    """Which rows are near copies of others, and the groups that such pairs join; where a row has none: -1 in all three

    Of two members of a group one may be less like the other, and be joined to it by those between. Similarities are
    looked at tile by tile, those below the threshold are dropped: memory does not grow with the square of N."""
    unit = F.normalize(h, dim=1)
    tiles, groups = unit.split(TILE), _Groups(len(h))
    best, other = h.new_full((len(h),), -1.), torch.full((len(h),), -1)
    for a, rows in enumerate(tiles):
        for b, columns in enumerate(tiles[a:], a):
            similarity = rows @ columns.T
            if a == b: similarity.fill_diagonal_(-1)
            if similarity.max() < threshold - SLACK: continue
            first, second = (similarity >= threshold - SLACK).nonzero().T.numpy()
            groups.join(first + a * TILE, second + b * TILE)
            _note(best, other, similarity, a, b)
            _note(best, other, similarity.T, b, a)
    alone = best < threshold - SLACK
    label = torch.from_numpy(groups.label).long()
    return best.clamp(max=1).masked_fill(alone, -1), other.masked_fill(alone, -1), label.masked_fill(alone, -1)


def _note(best: Tensor, other: Tensor, similarity: Tensor, a: int, b: int) -> None:
    "Keep what is most like each row of tile `a` where that lies in tile `b`"
    largest, place = similarity.max(1)
    tile = slice(a * TILE, a * TILE + len(largest))
    better = largest > best[tile]
    best[tile] = largest.where(better, best[tile])
    other[tile] = (place + b * TILE).where(better, other[tile])

# --- a plane

def principal(
    h: Tensor, # [N, D] features, of any length
    n: int,    # dimensions
) -> Tensor:   # [N, n], as many as there are, those of most variance first
    """Principal components of features of length 1, worked out in float64

    Either direction of a component would do: the one is taken in which its largest weight is positive."""
    unit = F.normalize(h, dim=1)
    mean = unit.mean(0, dtype=torch.float64)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for chunk in unit.split(TILE):
        centred = chunk.double() - mean
        covariance.addmm_(centred.T, centred)
    weights = torch.linalg.eigh(covariance)[1].flip(1)[:, :n]
    weights = weights * weights.gather(0, weights.abs().argmax(0, keepdim=True)).sign()
    return torch.cat([(chunk.double() - mean) @ weights for chunk in unit.split(TILE)]).float()


def _pca(h: Tensor, seed: int) -> Tensor:
    places = principal(h, 2)
    return F.pad(places, (0, 2 - places.shape[1]))


def _tsne(h: Tensor, seed: int) -> Tensor:
    from sklearn.manifold import TSNE  # here: it takes seconds that most runs need not spend
    x = principal(h, 50)  # as its author has it
    perplexity = min(30., (len(x) - 1) / 3)
    begun_anywhere = x.shape[1] < 2 or bool((x == x[0]).all())  # components of what has no spread are scaled by 0
    return torch.from_numpy(TSNE(2, perplexity=perplexity, init='random' if begun_anywhere else 'pca',
                                 random_state=seed).fit_transform(x.numpy()))


def _umap(h: Tensor, seed: int) -> Tensor:
    from umap import UMAP
    x = F.normalize(h, dim=1).numpy()
    init = 'spectral' if len(x) > 3 else 'random'  # it takes three directions, of which scipy finds fewer than rows
    made = UMAP(n_neighbors=min(15, len(x) - 1), metric='cosine', init=init, random_state=seed,
                n_jobs=1).fit_transform(x)
    return torch.from_numpy(np.asarray(made, dtype=np.float32))


PLANES: dict[str, Callable[[Tensor, int], Tensor]] = dict(pca=_pca, tsne=_tsne, umap=_umap)


def check_plane(
    method: str, # a name in `PLANES`
) -> None:
    "Raise `InputError` unless such a map can be made here"
    one_of(PLANES, map_method=method)
    if method == 'umap' and importlib.util.find_spec('umap') is None:
        raise InputError("a map by UMAP needs umap-learn: pip install 'fastcontrast[embed]', or take pca or tsne.")


def plane(
    h: Tensor,            # [N, D] features, of any length, three rows or more
    method: str = 'pca',  # a name in `PLANES`
    seed: int = 0,        # of what tsne and umap draw
) -> Tensor:              # [N, 2]
    """A place in two dimensions for each row: principal components ('pca'), t-SNE of the first fifty of them ('tsne',
    minutes beyond ten thousand rows) or UMAP ('umap', with umap-learn). Raises `InputError` where that can't be"""
    check_plane(method)
    if len(h) < 3: raise InputError(f"a map needs three pictures or more, and got {len(h)}.")
    return PLANES[method](h, seed)
