"""Weights that an encoder begins with: what may be given, how it is read, and which of its tensors fit.

Docs: https://fastcontrast.github.io/fastcontrast/weights.html.md"""
import argparse
import inspect
import pickle
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.models import is_model_pretrained
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .artefact import CONFIG, OURS, WEIGHTS, hub_file, is_ours
from .core import InputError, MissingPath, clipped
from .export import encoder_info, load_encoder, needs_module
from .files import check_file, check_utf8, read_json, user_path
from .models import HUB, LOCAL, SOURCES, architecture, first_convolutions, made_for, pretrained_config
from .records import ENCODER
from .stems import PATCH, is_mark, plain_name

__all__ = ['Fitted', 'LEAST_SHARE', 'Weights', 'adapt_filters', 'architecture_of', 'changed_channels',
           'fit_tensors', 'has_small_stem', 'read_weights', 'timm_source']

# under which training programs keep a state dict, the online network's before its moving average's
_WRAPPERS = ('state_dict', 'model', 'model_state_dict', 'network', 'net', 'student', 'teacher', 'encoder', 'backbone',
             'module', 'state_dict_ema', 'model_ema')
_AVERAGES = ('momentum', 'encoder_k', 'ema', 'teacher', 'target', 'key')  # words in the names of moving averages
_HEADS = ('fc', 'head', 'heads', 'head_dist', 'classifier', 'projector', 'projection_head', 'predictor',
          'prediction_head', 'prototypes', 'aux', 'aux1', 'aux2', 'AuxLogits')
_SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt', '.tar', '.safetensors') # of files, and of no tag
_LOOKED_FOR = ('.safetensors', '.pth', '.pth.tar', '.bin') # of files in which timm looks for weights
_SMALL_KERNELS = {'conv1.weight': 3, 'patch_embed.proj.weight': PATCH} # sides of kernels of stems for small pictures
MOST_NAMED = 4 # tensors that a note names
# of an encoder's numbers that a file has to have: of a ResNet-50's those of a ResNet-18 have 27 %, by names and shapes
LEAST_SHARE = 1 / 3
_USUAL_SHARE = 0.9 # less is told as a warning
_SCALES = re.compile(r'gamma|scale|^ls\d?$') # in names of what scales a block's residual branch, as LayerScale does
_MOCO_V3 = ('base_encoder', 'momentum_encoder') # what MoCo v3's authors call their networks…
_MOCO_V3_HEADS, _OTHER_HEADS = 12, (192, 384)    # …whose ViTs have 12 heads, and timm's of these widths have others
_NEXT_TO_NOTHING = 0.2 # such scales begin with 0.1 at most, where they do not begin with 1


@dataclass(frozen=True)
class Weights:
    "What a file holds"
    origin: str                # what messages call it
    tensors: dict[str, Tensor] # by the names they have there
    info: dict[str, Any] = field(default_factory=dict) # what its header says, if this library wrote it


def _names_timm(weights: str) -> bool:
    "Whether timm knows weights by this name, or there is nothing else that could have it"
    name, _, tag = weights.partition('.')
    if weights.startswith(SOURCES) or is_model_pretrained(weights): return True
    return timm.is_model(name) and (not tag or not weights.endswith(_SUFFIXES) and not Path(weights).exists())


def _folder_file(folder: Path) -> Path | None:
    "The file in a folder that this library wrote, a run's (cut short or not) or one by itself; None if there is none"
    run, file = folder/ENCODER, folder/WEIGHTS
    if run.is_file(): return run
    return file if file.is_file() and is_ours(file) else None


def _hub_encoder(weights: str | Path) -> Path | None:
    "The file of an encoder on the Hub that this library wrote; None if it is another's. Raises `InputError` for none"
    if not isinstance(weights, str) or not weights.startswith(HUB): return None
    file = hub_file(weights, CONFIG)  # which timm needs too
    try: config = read_json(file)
    except (OSError, ValueError): return None  # timm says why
    return hub_file(weights, WEIGHTS) if isinstance(config, dict) and OURS in config else None


def _check_files(folder: Path) -> None:
    "Raise `InputError` for a folder of timm's with weights that are no file: it opens whatever has the name"
    for file in (file for suffix in _LOOKED_FOR for file in folder.glob(f'*{suffix}')):
        try: check_file(file)
        except OSError as e: raise InputError(f"the weights '{clipped(file)}' can't be read: {e.strerror}.") from None


def timm_source(
    weights: str | Path, # see `read_weights`
) -> str | None:
    """The name by which timm makes a model with these weights itself; None for a file

    That is a tag, 'hf-hub:…', 'local-dir:…', or a folder as timm writes it. What this library has exported to a folder
    or to the Hub is its file. Raises `InputError` for what is neither known to timm nor there."""
    if not isinstance(weights, str | Path) or not str(weights):
        raise InputError(f"weights={clipped(repr(weights))} is no name: give a timm tag like 'resnet50.a1_in1k', or a "
                         "file or folder of weights.")
    if isinstance(weights, str) and weights.startswith(LOCAL):
        folder = _path(weights)
        if folder.is_dir() and _folder_file(folder) is not None: return None
        if folder.is_dir(): _check_files(folder)
        return f'{LOCAL}{folder}'
    if _hub_encoder(weights) is not None: return None
    if isinstance(weights, str) and _names_timm(weights): return weights
    path = _path(weights)
    if path.is_file(): return None
    if not path.is_dir():
        raise MissingPath(f"weights='{clipped(weights)}' is neither a file, nor a folder, nor a name that timm knows: "
                          "give one of these.")
    if _folder_file(path) is not None: return None
    try: config = read_json(path/CONFIG)
    except (OSError, ValueError): config = None
    if isinstance(config, dict) and 'architecture' in config:
        _check_files(path)
        return f'{LOCAL}{path}'
    raise InputError(f"the folder '{clipped(path)}' holds neither an encoder.safetensors of fastcontrast nor timm's "
                     "config.json with an architecture: give the file of weights itself.")


def architecture_of(
    weights: str | Path, # see `read_weights`
) -> str | None:
    "The architecture that weights say they are of; None if they say nothing. Raises `InputError` as `timm_source` does"
    source = timm_source(weights)
    if source is not None: return pretrained_config(source)['architecture'] if source.startswith(SOURCES) else source
    file = _file_of(weights)
    if is_ours(file): return encoder_info(file)['arch']
    if file.suffix.lower() == '.safetensors': _check_safetensors(file)  # one of ours that was cut short says nothing
    return None


def _path(weights: str | Path) -> Path:
    "A file or folder that a user named. Raises `InputError` for a name that can be none of weights"
    path = user_path(weights.removeprefix(LOCAL) if isinstance(weights, str) else weights, 'weights')
    check_utf8(path, 'weights')
    return path


def _file_of(weights: str | Path) -> Path:
    if (file := _hub_encoder(weights)) is not None: return file
    path = _path(weights)
    return _folder_file(path) if path.is_dir() else path


def read_weights(
    weights: str | Path,            # a file, the folder of a run or of an export, or an export on the Hub
    module: nn.Module | None = None, # what an exported file that holds a module's weights is for
) -> Weights:
    """The tensors of a file: `.safetensors`, or `.pth`, `.pt` and the like, of which nothing but tensors is unpickled

    What training programs wrap a state dict in is taken away. Raises `InputError` for a file that can't be read, needs
    more than that, or holds no tensors."""
    file = _file_of(weights)
    origin = f"'{clipped(file)}'"
    if is_ours(file):
        info = encoder_info(file)
        encoder = load_encoder(file, module if needs_module(info['arch']) else None)
        return Weights(origin, encoder.state_dict(), info)
    content = _read_safetensors(file) if file.suffix.lower() == '.safetensors' else _read_pickle(file)
    tensors = _unwrapped(content)
    if not tensors:
        raise InputError(f"{origin} holds no tensors by name: give a state dict, as torch.save(model.state_dict(), …) "
                         "writes it.")
    return Weights(origin, tensors)


def _check_safetensors(file: Path) -> None:
    "Raise `InputError` for a file that is no whole one of safetensors"
    check_utf8(file, 'weights')
    try:
        with safe_open(file, 'pt'): pass
    except (OSError, SafetensorError) as e:
        raise InputError(f"'{clipped(file)}' is no whole safetensors file ({clipped(e, 120)}): copy or export it "
                         "again.") from None


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    _check_safetensors(file)
    try: return load_file(file)
    except Exception as e:  # types of numbers that PyTorch has not, or no memory
        raise InputError(f"the tensors of '{clipped(file)}' can't be read ({clipped(e, 120)}): give a state dict in "
                         "float32, say.") from None


def _read_pickle(file: Path) -> Any:
    try:
        # timm's and DINO's checkpoints keep their arguments, which are plain attributes
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location='cpu', weights_only=True)
    except Exception as e:
        if isinstance(e, pickle.UnpicklingError) and 'GLOBAL' in str(e):
            raise InputError(f"'{clipped(file)}' needs more than tensors to be unpickled, which can run any code: save "
                             "the state dict alone, torch.save(model.state_dict(), …), where it is trusted.") from None
        raise InputError(f"'{clipped(file)}' can't be read as weights ({type(e).__name__}): give a whole file that "
                         "torch.save has written, or a .safetensors.") from None


def _unwrapped(
    content: Any,
    most: int = 4, # wrappers
) -> dict[str, Tensor]:
    "The named tensors in what was read, out of the wrappers around them"
    if not isinstance(content, Mapping) or not most: return {}
    for key in _WRAPPERS:
        inner = _unwrapped(content.get(key), most - 1)
        if inner: return inner
    return {name: t for name, t in content.items() if isinstance(name, str) and isinstance(t, Tensor)
            and t.layout is torch.strided and t.device.type != 'meta'}

# --- what fits

@dataclass(frozen=True)
class Fitted:
    "Tensors of a file by the names of an encoder, and those that found no place"
    taken: dict[str, Tensor]
    missing: list[str] = field(default_factory=list) # of the encoder, not in the file
    other: list[str] = field(default_factory=list)   # of another shape, or type of numbers, and which
    unused: list[str] = field(default_factory=list)  # of the file, unknown to the encoder
    changed: list[str] = field(default_factory=list) # filters that were made for other channels, and how many
    heads: int = 0                                   # tensors of the file's classifier and heads
    share: float = 1.                                # of the numbers in the encoder's parameters, that were taken
    told: list[str] = field(default_factory=list)    # what else there is to be warned of

    @property
    def percent(self) -> str: return f'{int(self.share * 100)} %'

    def doubts(self,
        origin: str, # what messages call the file
        arch: str,   # and the encoder
    ) -> list[str]:
        "Warnings, where much of the encoder is not from the file, or what is from it can't do what it did"
        if self.share >= _USUAL_SHARE: return self.told
        return [f"{self.percent} of the numbers of '{clipped(arch)}' are from {origin}, and the others are drawn at "
                "random: if that is not meant, give the architecture that these weights are of", *self.told]

    def note(self,
        origin: str, # what messages call the file
    ) -> str:
        "What was taken and what was not, in a sentence"
        wanted = len(self.taken) + len(self.missing) + len(self.other)
        share = f', {self.percent} of its numbers' if self.share < 1 else ''
        parts = [f"weights from {origin}: {len(self.taken)} of {wanted} tensors{share}"]
        for words, names in (('not there', self.missing), ('of another shape', self.other), ('unknown', self.unused)):
            if names: parts.append(f"{words}: {_listed(names)}")
        parts += [changed_channels(self.changed)] if self.changed else []
        if self.heads: parts.append(f"{self.heads} of its heads left out")
        return '; '.join(parts)


def _listed(names: list[str]) -> str:
    more = f' and {len(names) - MOST_NAMED} more' if len(names) > MOST_NAMED else ''
    return ', '.join(clipped(name, 100) for name in names[:MOST_NAMED]) + more


def changed_channels(
    filters: list[str], # names, and from how many channels to how many
) -> str:
    "That filters were made for another number of channels, as a part of a note"
    return f"filters changed to other channels: {_listed(filters)}"


def _spellings(encoder: nn.Module, own: Iterable[str]) -> list[dict[str, str]]:
    "Own names by what they are called in files: the same, or, in `nn.Sequential(*encoder.children())`, by number"
    numbers = {name: str(i) for i, (name, _) in enumerate(encoder.named_children())}
    def numbered(name):
        first, dot, rest = name.partition('.')
        return f'{numbers.get(first, first)}{dot}{rest}'
    return [{name: name for name in own}, {numbered(name): name for name in own}]


def _renamed(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file that lie under the prefix with the most of the encoder's names, without it

    Files have it from what was trained around the encoder: 'module.', 'backbone.', 'module.encoder_q.'… Of prefixes
    that do equally well that of the online network is taken, not of its moving average."""
    best: tuple[Any, ...] = (0,)
    prefix, spelling = '', {}
    for names in _spellings(encoder, encoder.state_dict()):
        counts: Counter[str] = Counter()
        for name in tensors:
            parts = name.split('.')
            counts.update('.'.join(parts[:i]) for i in range(len(parts)) if '.'.join(parts[i:]) in names)
        for found, count in counts.items():
            rank = (count, not any(word in found for word in _AVERAGES), -len(found))
            if rank > best: best, prefix, spelling = rank, found, names
    prefix = prefix and f'{prefix}.'
    under = {name[len(prefix):]: t for name, t in tensors.items() if name.startswith(prefix)}
    return {spelling.get(name, name): t for name, t in under.items()}


def adapt_filters(
    filters: Tensor, # [D, B, h, w], of a convolution that takes pictures of B channels
    channels: int,   # C of those here
) -> Tensor:         # [D, C, h, w]
    """Filters for another number of channels: their sum for one, else repeated in turn and scaled by B / C

    So what comes out keeps its size. It is the rule of timm's `adapt_input_conv`, which takes other B from 1.0.31 on
    only."""
    given = filters.shape[1]
    if channels == given: return filters
    if channels == 1: return filters.sum(1, keepdim=True)
    return filters.repeat(1, -(-channels // given), 1, 1)[:, :channels] * (given / channels)


class _Asked(Exception):
    "What timm's builder is asked for"


def _builders_filter(arch: str) -> Callable | None:
    """What timm gives its builder to change files of this model with; None if it gives nothing

    No table has it. So copies of the functions that make the model are run, and in place of the builder they find one
    that tells. Raises whatever for a model that is made otherwise."""
    def tell(*args: Any, pretrained_filter_fn: Callable | None = None, **kwargs: Any) -> None:
        raise _Asked(pretrained_filter_fn)
    entrypoint = timm.model_entrypoint(arch)
    names = dict(vars(sys.modules[entrypoint.__module__]), build_model_with_cfg=tell)
    for name, f in list(names.items()):
        if not isinstance(f, FunctionType) or f.__globals__ is not entrypoint.__globals__: continue
        names[name] = FunctionType(f.__code__, names, f.__name__, f.__defaults__, f.__closure__)
        names[name].__kwdefaults__ = f.__kwdefaults__
    try:
        with torch.device('meta'): names[entrypoint.__name__]()
    except _Asked as asked: return asked.args[0]
    raise LookupError(arch)


def _timm_filter(encoder: nn.Module) -> Callable | None:
    "What timm changes files for this encoder with: what its builder is given, or else what its module has by that name"
    module = type(encoder).__module__
    if not module.startswith('timm.'): return None
    arch, _ = plain_name(architecture(encoder))
    try: return _builders_filter(arch.partition('.')[0])
    except Exception: return getattr(sys.modules.get(module), 'checkpoint_filter_fn', None)


def _as_timm_does(encoder: nn.Module, change: Callable | None, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    "What timm does to tensors of other releases, or of other sides of the pictures (position embeddings)"
    if change is None: return tensors
    try: return dict(change(dict(tensors), *[encoder] * (len(inspect.signature(change).parameters) > 1)))
    except Exception: return tensors  # they are none that it knows: what fits is found out next


def _large_prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    "Prefixes of at most three words, and none, under which a quarter of the names lie or more; moving averages' last"
    counts: Counter[str] = Counter()
    for name in tensors:
        words = name.split('.')[:-1][:3]
        counts.update('.'.join(words[:i]) + '.' * (i > 0) for i in range(len(words) + 1))
    large = [prefix for prefix, count in counts.items() if 4 * count >= len(tensors)]
    return sorted(large, key=lambda prefix: (any(word in prefix for word in _AVERAGES), len(prefix)))


def _converted(
    encoder: nn.Module, tensors: Mapping[str, Tensor], found: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a file without a prefix, and as timm changes them, by the encoder's names

    `found` are those under the prefix with the most of these names. Where that leads to little, the names may be the
    authors' own, which timm knows without a prefix, or under any."""
    change, own = _timm_filter(encoder), encoder.state_dict()
    def share(given): return _share(encoder, {name for name, t in given.items() if name in own and _fits(t, own[name])})
    before = _unmarked(found)
    best = _as_timm_does(encoder, change, before)
    if change is None or share(best) >= _USUAL_SHARE: return before, best
    for prefix in _large_prefixes(tensors):
        under = _unmarked({name[len(prefix):]: t for name, t in tensors.items() if name.startswith(prefix)})
        given = _as_timm_does(encoder, change, under)
        if share(given) > share(best): before, best = under, given
    return before, best


def _to_channels(encoder: nn.Module, tensors: dict[str, Tensor], known: int | None) -> list[str]:
    """Change filters that were made for another number of channels, in place; their names and both numbers

    `known`: how many channels the file says. Where it does not, one of the two has three, so that filters of what is
    rearranged before (blocks of pixels) are not taken for such."""
    own, changed = encoder.state_dict(), []
    for name in (f'{conv}.weight' for conv in first_convolutions(encoder)):
        there, here = tensors.get(name), own.get(name)
        if there is None or here is None or there.ndim != 4 or here.ndim != 4: continue
        before, after = there.shape[1], here.shape[1]
        if before == after or there.shape[0] != here.shape[0] or there.shape[2:] != here.shape[2:]: continue
        if before != known and 3 not in (before, after): continue
        tensors[name] = adapt_filters(there, after)
        changed.append(f'{name} ({before} to {after})')
    return changed


def _fits(tensor: Tensor, own: Tensor) -> bool:
    "Whether a tensor may take the place of an encoder's; whole numbers are no weights, but what was quantised"
    return tensor.shape == own.shape and tensor.is_floating_point() == own.is_floating_point() and (
        tensor.is_complex() == own.is_complex())


def _form(tensor: Tensor, other: Tensor) -> str:
    "What tells a tensor from another: its shape, or its type"
    return str(list(tensor.shape)) if tensor.shape != other.shape else str(tensor.dtype).removeprefix('torch.')


def _check_finite(taken: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: str) -> None:
    "Raise `InputError` for a tensor that is no number in some place, or is none of the encoder's type"
    for name, t in taken.items():
        if (t.to(own[name].dtype).isfinite() | ~own[name].isfinite()).all(): continue  # masks may be so by intention
        raise InputError(f"{origin} holds values that are not finite numbers, in '{clipped(name, 100)}': give weights "
                         "of a run that went well.")


def has_small_stem(
    encoder: nn.Module, # a ResNet or ViT of timm with the usual stem
    weights: Weights,
) -> bool | None:
    "Whether weights are of an encoder with the stem for small pictures; None where they can't tell"
    if weights.info: return bool(weights.info['small_input'])
    state, tensors = encoder.state_dict(), _renamed(encoder, weights.tensors)
    if any(map(is_mark, tensors)): return True
    for name, side in _SMALL_KERNELS.items():
        own, there = state.get(name), tensors.get(name)
        if own is None or there is None or there.ndim != 4: continue
        return there.shape[2:] != own.shape[2:] and tuple(there.shape[2:]) == (side, side)
    return None


@torch.no_grad()
def fit_tensors(
    encoder: nn.Module, # gets those that fit, in place
    weights: Weights,
) -> Fitted:
    """Give an encoder the tensors of a file that fit: by name, with a prefix taken away, and by shape and type

    Raises `InputError`, which names some that do not, if less than `LEAST_SHARE` of the encoder's numbers is there, and
    for a tensor that is not finite."""
    tensors = _renamed(encoder, weights.tensors)
    _check_stem(encoder, tensors, weights)
    own, (before, tensors) = _unmarked(encoder.state_dict()), _converted(encoder, weights.tensors, tensors)
    changed = _to_channels(encoder, tensors, weights.info.get('in_chans'))
    taken = {name: t for name, t in tensors.items() if name in own and _fits(t, own[name])}
    other = [f"{name} {_form(t, own[name])} for {_form(own[name], t)}" for name, t in tensors.items()
             if name in own and name not in taken]
    missing = [name for name in own if name not in tensors and not name.endswith('num_batches_tracked')]
    spare = [name for name in tensors if name not in own]
    heads = [name for name in spare if name.split('.')[0] in _HEADS]
    told = [*_vanishing(encoder, missing, weights.origin), *_resampled(encoder, before, tensors, weights.origin),
            *_of_other_heads(encoder, weights)]
    fitted = Fitted(taken, missing, other, [name for name in spare if name not in heads], changed, len(heads),
                    _share(encoder, taken), told)
    if fitted.share >= LEAST_SHARE:
        _check_finite(taken, own, weights.origin)
        encoder.load_state_dict(taken, strict=False)
        return fitted
    first = f"it has {_listed(list(weights.tensors)[:2])}, the encoder {_listed(list(own)[:2])}"
    if other: first = f"the first is {_listed(other[:1])}"
    if any(t.ndim > 1 for t in taken.values()):
        if not other: first = f"the first that is missing is {_listed(missing[:1])}"
        raise InputError(f"{weights.origin} has {fitted.percent} of the numbers of '{architecture(encoder)}', in "
                         f"{len(taken)} tensors ({first}): give the architecture of these weights, or, if so little "
                         "is meant, a module as arch that has loaded it by load_state_dict(…, strict=False).")
    raise InputError(f"nothing in {weights.origin} fits '{architecture(encoder)}' ({first}): give the weights of that "
                     "architecture, or the architecture of these weights.")


def _vanishing(encoder: nn.Module, missing: list[str], origin: str) -> list[str]:
    "A warning, where the scales of residual branches are not in the file, and begin with next to nothing"
    scales = {name: p for name, p in encoder.named_parameters() if any(map(_SCALES.search, name.split('.')[-2:]))}
    gone = [name for name in missing if name in scales and scales[name].detach().abs().max() < _NEXT_TO_NOTHING]
    if not gone: return []
    value = scales[gone[0]].detach().abs().max().item()
    return [f"{origin} has no {_listed(gone)}: they scale what blocks add, and begin with {value:.1g}, so that these "
            "blocks do next to nothing; if that is not meant, give the architecture that these weights are of"]


def _resampled(
    encoder: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor], origin: str,
) -> list[str]:
    "A warning, where timm has changed the filters of patches of another side"
    def sides(t): return 'x'.join(map(str, t.shape[2:]))
    for name in (f'{conv}.weight' for conv in first_convolutions(encoder)):
        there, here = before.get(name), after.get(name)
        if there is None or here is None or there.ndim != 4 or there.shape[2:] == here.shape[2:]: continue
        return [f"'{name}' of {origin} has filters of {sides(there)} pixels, and was resampled for the {sides(here)} "
                f"of '{clipped(architecture(encoder))}': if that is not meant, give the architecture that these "
                "weights are of"]
    return []


def _of_other_heads(encoder: nn.Module, weights: Weights) -> list[str]:
    "A warning, where a narrow ViT is MoCo v3's by its names: it fits timm's, whose heads are fewer, tensor by tensor"
    if not isinstance(encoder, VisionTransformer) or encoder.embed_dim not in _OTHER_HEADS: return []
    heads = getattr(getattr(next(iter(encoder.blocks), None), 'attn', None), 'num_heads', _MOCO_V3_HEADS)
    theirs = any(word in _MOCO_V3 for name in weights.tensors for word in name.split('.'))
    if heads == _MOCO_V3_HEADS or not theirs: return []
    arch = clipped(architecture(encoder))
    return [f"{weights.origin} has the names of MoCo v3, whose ViT of width {encoder.embed_dim} has {_MOCO_V3_HEADS} "
            f"heads, and '{arch}' has {heads}, with which the same tensors give other features: if its authors' "
            f"program trained it, give arch=timm.create_model('{arch}', num_heads={_MOCO_V3_HEADS}, "
            f"img_size={made_for(encoder)})"]


def _unmarked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    "Tensors that are weights, without what only tells stems apart"
    return {name: t for name, t in state.items() if not is_mark(name)}


def _check_stem(encoder: nn.Module, tensors: Mapping[str, Tensor], weights: Weights) -> None:
    "Raise `InputError` for weights of a stem for small pictures in an encoder without: their shapes may be the same"
    if not any(map(is_mark, tensors)) or any(map(is_mark, encoder.state_dict())): return
    raise InputError(f"{weights.origin} is of an encoder with the stem for small pictures, which this "
                     f"'{architecture(encoder)}' has not: give one that was made with small_input=True.")


def _share(encoder: nn.Module, taken: Collection[str]) -> float:
    "Of the numbers in an encoder's parameters, how many are in tensors that were taken"
    numbers = {name: p.numel() for name, p in encoder.named_parameters()}
    return sum(n for name, n in numbers.items() if name in taken) / max(1, sum(numbers.values()))
