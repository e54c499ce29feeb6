"""What metrics are computed from, and some of them: `knn`, `spread`, and alignment and uniformity."""
import math
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import shorten

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import InputError, number
from ..guards import batch_spread
from . import LABELLED, metric, metric_name, needs_labels
from .checks import unlabelled
from .knn import BLOCK, knn_accuracy


@dataclass(frozen=True)
class Features:
    """An encoder's features of the pictures that classifiers learn from and, where pictures have labels, of the test's

    The first are those of training, unless others judge by themselves: then `h` are training's."""
    train_h: Tensor              # [N, D]
    train_y: Tensor | None = None # [N] class numbers; -1: unknown
    test_h: Tensor | None = None # [M, D]
    test_y: Tensor | None = None # [M]
    h: Tensor | None = None      # [L, D], for metrics without labels; None: `train_h`

    @property
    def has_labels(self) -> bool:
        "Whether a metric that needs labels can be computed of them"
        return not any(x is None for x in (self.train_y, self.test_h, self.test_y))

    def compute(self,
        metric: Callable[..., float], # of `(train_h, train_y, test_h, test_y)`, or of `(h)`
    ) -> float:
        "What a metric says of these features. Raises `InputError` if it needs labels and there are none"
        name = metric_name(metric)
        if not needs_labels(metric): value = metric(h=self.train_h if self.h is None else self.h)
        elif self.has_labels: value = metric(**{name: getattr(self, name) for name in LABELLED})
        else: raise InputError(f"the metric '{name}' needs labels and test pictures, which these features are without.")
        try: return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"the metric '{name}' gave {shorten(repr(value), 80)}, which is not a number.") from None


@metric
def knn(
    train_h: Tensor, # [N, D]
    train_y: Tensor, # [N] class numbers; -1: unknown
    test_h: Tensor,  # [M, D]
    test_y: Tensor,  # [M]
) -> float:          # in [0, 1]
    "`knn_accuracy` as a column: the share of test pictures whose class the nearest training pictures find"
    return knn_accuracy(train_h, train_y, test_h, test_y)


@metric
@torch.no_grad()
def spread(
    h: Tensor, # [N, D] features, of any length; N of at least 2
) -> float:    # 0 when collapsed to one direction, 1/sqrt(D) when all directions are used alike
    """Mean over dimensions of the standard deviation, over the pictures, of L2-normalised features (Chen & He 2021,
    section 4.1). Raises `InputError` for another shape, a single picture, and features that are not finite"""
    h = unlabelled(h, 'the spread')
    if len(h) < 2: raise InputError("the spread needs the features of two pictures at least.")
    return batch_spread(h).item()


@metric
@torch.no_grad()
def uniformity(
    h: Tensor,      # [N, D] features, of any length; N of at least 2
    t: float = 2.0, # of the potential exp(-t d²), d the distance of two L2-normalised features
) -> float:         # 0 where all features point in one direction; the less, the more evenly directions are used
    """Logarithm of the mean potential of two pictures, over all pairs of different ones (Wang & Isola 2020, section
    4.1). Raises `InputError` for another shape, a single picture, features that are not finite, and `t` not above 0"""
    number('the uniformity', above=0, t=t)
    h = unlabelled(h, 'the uniformity')
    if len(h) < 2: raise InputError("the uniformity needs the features of two pictures at least.")
    n, h = len(h), F.normalize(h, dim=1)
    lengths = h.square().sum(1)  # one, but of features that are zero
    rows = max(1, BLOCK // n)
    total = 0.  # over ordered pairs, a picture with itself among them
    for start in range(0, n, rows):
        block = h[start:start + rows]
        squares = (lengths[start:start + rows, None] + lengths[start:] - 2 * block @ h[start:].T).clamp_(min=0)
        potential = squares.mul_(-t).exp_()
        within = potential[:, :len(block)].sum(dtype=torch.float64)
        total += (2 * potential.sum(dtype=torch.float64) - within).item()
    mean = (total - n) / (n * (n - 1))
    return math.log(mean) if mean > 0 else -math.inf


def squared_distances(
    h: Tensor,     # [N, D] features of a view of each picture, of any length
    other: Tensor, # [N, D] of another view
) -> Tensor:       # float64 [N], from 0 to 4
    "How far the two are apart on the sphere of L2-normalised features"
    return (F.normalize(h, dim=1) - F.normalize(other, dim=1)).square().sum(1).double()


@torch.no_grad()
def alignment(
    h: Tensor,     # [N, D] features of a view of each picture, of any length
    other: Tensor, # [N, D] of another view
) -> float:        # from 0, where both views are seen alike, to 4
    """Mean squared distance of the L2-normalised features of two views of a picture (Wang & Isola 2020, section 4.1,
    α = 2). Raises `InputError` for other shapes, and for features that are not finite"""
    h, other = unlabelled(h, 'the alignment'), unlabelled(other, 'the alignment')
    if h.shape != other.shape:
        raise InputError(f"the alignment needs two views of the same pictures, not features of shape {list(h.shape)} "
                         f"and {list(other.shape)}.")
    return squared_distances(h, other).mean().item()
