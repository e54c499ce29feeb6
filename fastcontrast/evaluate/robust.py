"""What an encoder makes of pictures that were changed: of two views of each, and under blur, noise, without colour and
turned."""
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_grayscale
from kornia.filters import filter2d_separable, get_gaussian_kernel1d
from torch import Tensor

from ..core import Registry, whole
from ..generators import OwnDraws
from ..views import ViewKind, Views, plain_view

BLUR = 0.02   # standard deviation of the blur, as a share of the picture's side
NOISE = 0.1   # standard deviation of the noise, where black is 0 and white is 1
ANGLE = 20.   # of the rotation, in degrees


@dataclass(frozen=True)
class Change:
    "Something that is done to pictures, in one strength"
    apply: Callable[[Tensor], Tensor] # [B, C, S, S] in [0, 1] to the same; it may draw by torch's generator
    about: str           # what, and how much
    colour: bool = False # does it take three channels?


CHANGES = Registry('change of pictures')


def _blurred(x: Tensor) -> Tensor:
    sigma = BLUR * x.shape[-1]
    kernel = get_gaussian_kernel1d(2 * max(1, math.ceil(3 * sigma)) + 1, sigma, device=x.device, dtype=x.dtype)
    return filter2d_separable(x, kernel, kernel)


def _noisy(x: Tensor) -> Tensor: return (x + NOISE * torch.randn_like(x)).clamp_(0, 1)


def _grey(x: Tensor) -> Tensor: return rgb_to_grayscale(x).expand_as(x)


def _rotated(x: Tensor) -> Tensor:
    side = torch.randint(2, (len(x),), device=x.device) * 2 - 1  # which way each is turned
    angle = side * math.radians(ANGLE)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turns = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3).to(x.dtype)
    grid = F.affine_grid(turns, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode='reflection', align_corners=False)


CHANGES['blur'] = Change(_blurred, f"Gaussian, σ {BLUR:.0%} of the side")
CHANGES['noise'] = Change(_noisy, f"Gaussian, σ {NOISE:g} of the range from black to white")
CHANGES['grey'] = Change(_grey, "without colour", colour=True)
CHANGES['rotation'] = Change(_rotated, f"by {ANGLE:g}° to either side, the corners mirrored")


def changes_of(
    channels: int, # of the pictures
) -> dict[str, Change]: # by name
    "The changes that can be made; where channels are not red, green and blue there is no colour to lose"
    return {name: change for name, change in CHANGES.items() if channels == 3 or not change.colour}


class Changed:
    "The batches of a loader with something done to their pictures, at the side at which an encoder sees them"
    def __init__(self,
        loader: Iterable,    # batches `(images, y)`, or aspects between, in order
        change: Callable[..., Tensor], # of images and aspects as they come, to [b, C, S, S] in [0, 1], b / B of each
        seed: int = 0,       # of what it draws
    ):
        self.loader, self.change, self.seed = loader, change, seed
        self.device = loader.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draws = OwnDraws(self.device, self.seed, 7)  # so that every encoder is shown the same
        for *pictures, y in self.loader:
            with draws: x = self.change(*pictures)
            yield x, y.repeat_interleave(len(x) // len(y))


Embed = Callable[[Iterable], tuple[Tensor, Tensor]] # features and labels of a loader


@torch.no_grad()
def view_features(
    embed: Embed,
    loader: Iterable,        # pictures in order; it has a `device`
    size: int,               # side of the views, in pixels
    kind: str | ViewKind = 'simclr', # of the views
    seed: int = 0,
) -> tuple[Tensor, Tensor]:  # each [N, D], for `alignment`
    "The features of two random views of each picture"
    whole('the views', least=0, seed=seed)
    maker = Views(size, kind.shared_by(2) if isinstance(kind, ViewKind) else kind)
    def pairs(images, *aspects):
        views = maker.views_of(images, None, *aspects)[maker.role]
        return views.transpose(0, 1).flatten(0, 1)
    h, _ = embed(Changed(loader, pairs, seed))
    first, second = h.unflatten(0, (-1, 2)).unbind(1)
    return first, second


@torch.no_grad()
def changed_features(
    embed: Embed,
    loader: Iterable,     # pictures in order; it has a `device`
    size: int,            # side at which the encoder sees them, in pixels
    channels: int = 3,    # of the pictures
    seed: int = 0,
) -> dict[str, Tensor]:   # [N, D] by the name of the change
    "The features of the pictures under each of `CHANGES` that can be made"
    whole('the changes', least=0, seed=seed)
    def changed(change):
        return lambda images, *aspects: change.apply(plain_view(images, size, *aspects).float())
    return {name: embed(Changed(loader, changed(change), seed))[0] for name, change in changes_of(channels).items()}
