"""What is judged: an encoder's file, one of timm's, one that was never trained, or the pixels themselves."""
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core import InputError, clipped
from ..records import known_record
from .inputs import encoder_file, encoder_name, run_of
from .judging import PIXELS, file_embedder


@dataclass(frozen=True)
class Rival:
    "What gives features to be judged"
    name: str
    about: str          # what it is
    size: int           # side of the pictures that it sees, in pixels
    channels: int
    small_input: bool
    arch: str
    embed: Callable     # features and labels of a loader
    frame: tuple[list[float], list[float]] = ([], []) # mean and standard deviation of the pictures' channels
    extra: dict[str, Any] = field(default_factory=dict) # what else an encoder's file says
    file: Path | None = None # it, where there is one
    note: str = ''      # what is to be said of how it sees the pictures


def rival(
    name: str,                  # as the user gave it
    first: Rival | None = None, # beside which it stands; None: it is the first
) -> Rival:
    "What a name means. Raises `InputError` for one that means nothing"
    from ..models import SOURCES
    from ..weights import timm_source
    if name.startswith(SOURCES) and (first is None or timm_source(name) is None):
        return replace(_of_file(encoder_file(name)), name=name)
    if first is None or os.path.exists(os.path.expanduser(name)): return _of_file(encoder_file(name))
    if name == 'pixels': return _pixels(first)
    return _untrained(first) if name == 'untrained' else _timms(name, first)


def views_of_run(
    encoder: Path, # a file of a run
    usual: str | None = 'simclr', # where its run is not there, or had views of its own
) -> str | None:   # a kind of views, or the usual
    "The kind of views that an encoder was trained on, before it was tuned"
    from ..views import VIEW_KINDS
    record = known_record(run_of(encoder))
    if record.get('verb') == 'finetune' and isinstance(own := record['settings'].get('encoder'), str):
        return views_of_run(Path(own), usual)
    recipe = record.get('recipe')
    kind = recipe.get('views') if isinstance(recipe, dict) else None
    return kind if isinstance(kind, str) and kind in VIEW_KINDS else usual


def _of_file(path: Path) -> Rival:
    from ..export import encoder_info
    info = encoder_info(path)
    about = f"{info['arch']}, {info['size']} px"
    return Rival(encoder_name(path), about, info['size'], info['in_chans'], info['small_input'], info['arch'],
                 file_embedder(path), (info['mean'], info['std']), info['extra'], path)


def _pixels(first: Rival) -> Rival:
    from ..evaluate.knn import pixels
    side = min(first.size, PIXELS)
    return Rival('pixels', f'{side} px', side, first.channels, False, '', lambda dl: pixels(dl, side))


def _untrained(first: Rival) -> Rival:
    import torch
    from ..models import make_encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = make_encoder(first.arch, first.small_input, in_chans=first.channels, size=first.size)
    return Rival('untrained', first.about, first.size, first.channels, first.small_input, first.arch,
                 _embedder(encoder, first, first.size))


def _timms(name: str, first: Rival) -> Rival:
    from ..artefact import looking_for
    from ..models import SOURCES, feature_dim, make_encoder, patch_side
    if '/' in name and not name.startswith(SOURCES):
        raise InputError(f"--against {name} is neither a file nor a folder: give one that is there, a name of timm's, "
                         "'untrained' or 'pixels'.")
    def made(size): return make_encoder(name, pretrained=True, in_chans=first.channels, size=size)
    about, note, size = name, '', first.size
    try:
        with looking_for(name, weights=True):
            encoder = made(size)
            patch = patch_side(encoder) or 1
            if size % patch and not _takes(encoder, first):
                size = patch * max(1, round(size / patch))
                about = f'{name}, {size} px'
                note = f"it sees pictures of {size} pixels, since its patches of {patch} do not divide {first.size}"
                encoder = made(size)
        feature_dim(encoder, size, first.channels)  # or say why not, before pictures are read
    except InputError as e: raise InputError(f"--against {clipped(name)}: {e}") from None
    return Rival(name, about, size, first.channels, False, name, _embedder(encoder, first, size), note=note)


def _takes(encoder, first: Rival) -> bool:
    "Whether a model of timm's can be shown what the first is shown"
    from ..models import feature_dim
    try: feature_dim(encoder, first.size, first.channels)
    except InputError: return False
    return True


def _embedder(encoder, first: Rival, size: int) -> Callable:
    "What a model of timm's makes of pictures of this side, which it may know in three channels only"
    from ..evaluate.knn import extract_features
    frame = [encoder.pretrained_cfg[name] for name in ('mean', 'std')]
    mean, std = frame if len(frame[0]) == first.channels else first.frame
    return lambda dl: extract_features(encoder.to(dl.device), dl, size, mean, std)
