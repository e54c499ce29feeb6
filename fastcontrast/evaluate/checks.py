"""What every measure asks of its features and labels. Pictures without a known label (-1) are left out; what remains
must be usable, and the reasons why it may not be are the same for every measure."""
import torch
from torch import Tensor

from ..core import InputError


def finite(
    h: Tensor,       # features of any shape
    measure: str,    # for the message
    split: str = '', # 'training' or 'test' where there are both, for the message
) -> Tensor:         # h in float32 (float64 stays)
    "Features as numbers to compute with; `InputError` if one is NaN or infinite"
    if not h.isfinite().all():
        raise InputError(f"{measure} cannot use the {split + ' ' if split else ''}features: they hold NaN or infinite "
                         "values, so the encoder has probably diverged; train it with a lower learning rate.")
    return h if h.dtype == torch.float64 else h.float()


def unlabelled(
    h: Tensor,    # [N, D] features
    measure: str, # for the message
) -> Tensor:      # [N, D]: h in float32 (float64 stays)
    "Features that a measure without labels can use; `InputError` for another shape, no picture, NaN or infinite values"
    h = torch.as_tensor(h)
    if h.ndim != 2 or not h.numel():
        raise InputError(f"{measure} cannot use features of shape {list(h.shape)}: "
                         "give features [N, D] of one picture or more.")
    return finite(h, measure)


def labelled(
    h: Tensor,    # [N, D] features
    y: Tensor,    # [N] class numbers; -1: unknown
    split: str,   # 'training' or 'test', for the message
    measure: str, # for the message
) -> tuple[Tensor, Tensor]: # the rows with a known label: h in float32 (float64 stays), y in int64
    "Features and labels that a measure can use; `InputError` for no labels, other shapes, and NaN or infinite values"
    h, y = torch.as_tensor(h), torch.as_tensor(y)
    if h.ndim != 2 or y.shape != h.shape[:1] or y.is_floating_point():
        raise InputError(f"{measure} cannot use {split} features of shape {list(h.shape)} with labels of shape "
                         f"{list(y.shape)} and type {y.dtype}: give features [N, D] and N whole numbers.")
    y = y.to(h.device, torch.int64)
    known = y != -1
    if not known.any():
        raise InputError(f"{measure} needs {split} pictures with labels and got none (-1 means unknown): "
                         "give labels for some.")
    return finite(h[known], measure, split), y[known]


def labelled_pair(
    train_h: Tensor, # [N, D]
    train_y: Tensor, # [N]; -1: unknown
    test_h: Tensor,  # [M, D]
    test_y: Tensor,  # [M]; -1: unknown
    measure: str,    # for the message
) -> tuple[Tensor, Tensor, Tensor, Tensor]: # the rows with a known label, on the device and in the type of `train_h`
    "`labelled` of both parts, which must have the same features, and training two classes at least"
    train_h, train_y = labelled(train_h, train_y, 'training', measure)
    test_h, test_y = labelled(test_h, test_y, 'test', measure)
    if train_h.shape[1] != test_h.shape[1]:
        raise InputError(f"{measure} needs the same features for training and test, not {train_h.shape[1]} and "
                         f"{test_h.shape[1]} of them: take both from one encoder.")
    if (train_y == train_y[0]).all():
        raise InputError(f"{measure} needs at least two classes; "
                         f"the training labels have only class {train_y[0].item()}.")
    return train_h, train_y, test_h.to(train_h), test_y.to(train_h.device)
