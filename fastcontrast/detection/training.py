"""A detector is trained, and judged by what it finds.

Docs: https://fastcontrast.github.io/fastcontrast/detect.html.md"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import default_device
from fastcore.foundation import L
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from ..bar import show_progress
from ..core import InputError, number, whole
from ..device import number_format, reuse_memory
from ..distributed import world_size
from ..guards import FiniteScores
from ..history import DeviceRecorder
from ..models import evaluating
from ..optim import optimizer, warmup_then
from ..precision import autocast, pick_precision
from .boxes import BoxLoader, BoxPictures
from .model import detector
from .scores import average_precision

LR = 0.02     # of a batch of 16, as the papers have it
WARMUP = 0.1  # share of the run
DECAY = 1e-4  # of weights; biases and norms have none


class WithTargets(Callback):
    "torchvision's detectors take pictures together with what is in them, and give their losses by name"
    def before_batch(self): self.learn.xb = (*self.xb, *self.yb)


def total(
    losses: Mapping[str, Tensor],
    targets: Any = None, # which the detector has seen
) -> Tensor:
    "The sum of a detector's losses"
    return sum(losses.values())


def loader_for(
    model: FasterRCNN, # from `detector`
    pictures: BoxPictures,
    bs: int,
    seed: int | None,  # see `BoxLoader`
) -> BoxLoader:
    "Batches of the size and the channels that a detector is for"
    transform = model.transform
    return BoxLoader(pictures, transform.min_size[-1], len(transform.image_mean), bs, seed)


def train_detector(
    model: FasterRCNN,        # from `detector`, for the classes of the pictures; it is changed in place
    pictures: BoxPictures,
    epochs: int = 30,
    lr: float | None = None,  # at its peak; None: 0.02 for a batch of 16, and in proportion
    bs: int = 8,              # pictures a batch
    precision: str = 'auto',  # of the arithmetic, see `pick_precision`
    device: torch.device | str | None = None, # None: a GPU where there is one
    seed: int = 0,            # of the order of pictures, their flips, and the boxes that a step looks at
    cbs: Callback | Sequence[Callback] | None = None, # of fastai
) -> Learner:
    """A fastai `Learner` that has trained a detector: SGD, a tenth of the run to warm up, then a cosine to 0

    Everything learns, the encoder too. Raises `InputError` for pictures of other classes, where several processes
    train, and where the loss is no number any more."""
    if world_size() > 1: raise InputError("a detector is trained by one process: start it without a launcher.")
    whole(epochs=epochs, bs=bs)
    whole(least=0, seed=seed)
    number(above=0, optional=True, lr=lr)
    check_classes(model, pictures)
    device = default_device() if device is None else torch.device(device)
    autocasts = number_format(precision, device)
    loader = loader_for(model, pictures, bs, seed)
    peak = LR * bs / 16 if lr is None else lr
    nothing = loader_for(model, BoxPictures([], pictures.classes), bs, None)  # what it finds is judged after the fit
    dls = DataLoaders(loader, nothing, device=device)
    dls.n_inp = loader.n_inp
    with torch.random.fork_rng(), reuse_memory(device):
        torch.manual_seed(seed)
        learn = Learner(dls, model.to(device), total, optimizer('sgd'), lr=peak,
                        splitter=lambda model: param_groups_weight_decay(model, DECAY),
                        cbs=[WithTargets(), FiniteScores(), *autocasts, *L(cbs)])
        DeviceRecorder.into(learn, valid_metrics=False)
        show_progress(learn)
        learn.fit(epochs, cbs=ParamScheduler(dict(lr=warmup_then('cosine', peak, WARMUP))))
    return learn


def check_classes(
    model: FasterRCNN,
    pictures: BoxPictures,
) -> None:
    "Raise `InputError` unless a detector is for the classes of the pictures"
    if model.classes == pictures.classes: return
    raise InputError(f"the detector is for {len(model.classes)} classes ({', '.join(model.classes[:5])}), and the "
                     f"pictures have {len(pictures.classes)} ({', '.join(pictures.classes[:5])}): give those.")


def detection_scores(
    model: FasterRCNN,       # from `detector`, trained
    pictures: BoxPictures,   # to judge by
    bs: int = 8,             # pictures at a time
    precision: str = 'auto', # of the arithmetic, see `pick_precision`
) -> dict[str, Any]: # see `average_precision`
    "How well a detector finds what is in pictures"
    check_classes(model, pictures)
    device = next(model.parameters()).device
    found, objects = [], []
    with evaluating(model), autocast(pick_precision(precision, device), device):
        for images, targets in loader_for(model, pictures, bs, None):
            out = model([image.to(device) for image in images])
            found += [{name: tensor.cpu() for name, tensor in detections.items()} for detections in out]
            objects += targets
    return average_precision(found, objects, pictures.classes)


def detection_transfer(
    encoder: nn.Module | str | Path, # see `detector`
    train: BoxPictures,      # from `box_pictures`
    valid: BoxPictures,      # to judge by
    size: int = 224,         # side that the short side of a picture is brought to, in pixels
    pretrained: bool = True, # with the encoder's weights; else with random ones, other ones for every seed
    seed: int = 0,           # of all that is drawn
    settings: Mapping[str, Any] | None = None, # of `detector`: width, finest, …
    **training: Any,         # of `train_detector`: epochs, lr, bs, …
) -> dict[str, Any]: # see `average_precision`
    "What a detector finds that begins with an encoder and is trained along with it"
    model = detector(encoder, train.classes, size, pretrained, seed=seed, **settings or {})
    train_detector(model, train, seed=seed, **training)
    return detection_scores(model, valid, precision=training.get('precision', 'auto'))
