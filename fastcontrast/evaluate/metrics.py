"""What metrics are computed from, and two of them: `knn` and `spread`."""
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import shorten

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import InputError
from . import LABELLED, metric, metric_name, needs_labels
from .checks import unlabelled
from .knn import knn_accuracy


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
    return F.normalize(h.float(), dim=1).std(dim=0).mean().item()
