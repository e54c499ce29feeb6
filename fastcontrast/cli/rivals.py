"""What is judged: an encoder's file, one of timm's, one that was never trained, or the pixels themselves."""
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core import InputError
from ..records import read_record
from .inputs import encoder_file, encoder_name
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
    extra: dict[str, Any] = field(default_factory=dict) # what else an encoder's file says


def rival(
    name: str,                  # as the user gave it
    first: Rival | None = None, # beside which it stands; None: it is the first
) -> Rival:
    "What a name means. Raises `InputError` for one that means nothing"
    from ..artefact import HUB, LOCAL
    from ..weights import timm_source
    if name.startswith((HUB, LOCAL)) and (first is None or timm_source(name) is None):
        return replace(_of_file(encoder_file(name)), name=name)
    if first is None or os.path.exists(os.path.expanduser(name)): return _of_file(encoder_file(name))
    if name == 'pixels': return _pixels(first)
    return _untrained(first) if name == 'untrained' else _timms(name, first)


def views_of_run(
    encoder: Path, # a file of a run
    usual: str | None = 'simclr', # where its run is not there, or had views of its own
) -> str | None:   # a kind of views, or the usual
    "The kind of views that an encoder was trained on"
    from ..views import VIEW_KINDS
    record: dict[str, Any] = {}
    with suppress(InputError): record = read_record(encoder.parent)
    recipe = record.get('recipe')
    kind = recipe.get('views') if isinstance(recipe, dict) else None
    return kind if isinstance(kind, str) and kind in VIEW_KINDS else usual


def told_apart(
    first: Rival,
    others: list[Rival],
) -> list[Rival]: # the others, those whose name another has already with a number
    "Encoders by names of their own: folders of one name lie in many places"
    names, apart = {first.name: 1}, []
    for other in others:
        n = names[other.name] = names.get(other.name, 0) + 1
        apart.append(other if n == 1 else replace(other, name=f'{other.name} ({n})'))
    return apart


def _of_file(path: Path) -> Rival:
    from ..export import encoder_info
    info = encoder_info(path)
    about = f"{info['arch']}, {info['size']} px"
    return Rival(encoder_name(path), about, info['size'], info['in_chans'], info['small_input'], info['arch'],
                 file_embedder(path), info['extra'])


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
                 _embedder(encoder, first.size))


def _timms(name: str, first: Rival) -> Rival:
    from ..models import make_encoder
    if '/' in name and not name.startswith(('hf-hub:', 'local-dir:')):
        raise InputError(f"--against {name} is neither a file nor a folder: give one that is there, a name of timm's, "
                         "'untrained' or 'pixels'.")
    encoder = make_encoder(name, pretrained=True, in_chans=first.channels, size=first.size)
    return Rival(name, name, first.size, first.channels, False, name, _embedder(encoder, first.size))


def _embedder(encoder, size: int) -> Callable:
    from ..evaluate.knn import extract_features
    cfg = encoder.pretrained_cfg
    return lambda dl: extract_features(encoder.to(dl.device), dl, size, cfg['mean'], cfg['std'])
