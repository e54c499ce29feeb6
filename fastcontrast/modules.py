"""Any `nn.Module` as an encoder: without its classifier, pooled, and with its stages measured.

Docs: https://fastcontrast.github.io/fastcontrast/modules.html.md"""
import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import timm
import torch
import torch._dynamo
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .core import LARGEST_SIDE, InputError, clipped, is_whole, whole
from .models import Stage, architecture, channels_of, evaluating, made_for, make_encoder, resample_positions

__all__ = ['MODULE', 'as_encoder', 'bare', 'check_trains', 'class_path', 'fit_side', 'measured_stages', 'timm_name']

MODULE = 'module:' # how the name of an encoder begins that nothing but its class can make
# a module with more than this share of the parameters is what holds the stages, and not one of them: the last stage of
# a ResNet has three quarters
HOLDS_ALL = 0.85
MOST_EXTRA = 8 # tokens beside those of a grid, at most: class and registers
_CLASSIFIERS = ('fc', 'classifier', 'heads', 'head') # torchvision's names of it


def bare(
    module: nn.Module,
) -> nn.Module:
    "A module out of what runs it in several processes, or compiled"
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel): module = module.module
        elif isinstance(module, torch._dynamo.OptimizedModule): module = module._orig_mod
        else: return module


def class_path(
    module: nn.Module,
) -> str:
    "Where its class is found, like 'torchvision.models.resnet.ResNet'"
    return clipped(f'{type(module).__module__}.{type(module).__qualname__}')


def _is_of(library: str, module: nn.Module) -> bool:
    "Whether its class, or one that it is derived from, is a library's"
    return any(cls.__module__.split('.')[0] == library for cls in type(module).__mro__)


# forward hooks
def _float(module: nn.Module, args: tuple, out: Tensor) -> Tensor: return out.float() # as heads have it
def _pool(module: nn.Module, args: tuple, maps: Tensor) -> Tensor: return maps.mean((2, 3))
def _pool_last(module: nn.Module, args: tuple, maps: Tensor) -> Tensor: return maps.mean((1, 2))


def as_encoder(
    module: nn.Module,  # pictures `[N, C, S, S]` to features `[N, D]`, or to maps `[N, D, H, W]`, which are pooled
    size: int,          # side of the pictures in pixels
    in_chans: int = 3,  # channels of the pictures
    resample: bool = True, # position embeddings for another side, see `fit_side`
) -> tuple[nn.Module, list[str]]: # and what was changed, in sentences
    """A copy of a module that serves as an encoder, on the CPU in float32; the module stays as it is

    The classifier of timm's and torchvision's models is left out. `pretrained_cfg` says the mean and standard deviation
    of its pictures, ImageNet's where the module has none; `feature_info` its stages, measured where it has none. Raises
    `InputError` for a module that can't be copied, has nothing to train, gives something else, or describes its stages
    wrongly."""
    module = bare(module)
    name = type(module).__name__
    if not isinstance(module, nn.Module):
        raise InputError(f"{clipped(repr(module), 60)} is no module: give an instance of a class of nn.Module.")
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(f"arch={name}(…) is a program of TorchScript, whose layers can't be looked into: give the "
                         "module that it was made of.")
    if any(map(is_lazy, module.parameters())):
        raise InputError(f"arch={name}(…) has layers without shapes yet: run a picture through it before.")
    try: encoder = copy.deepcopy(module).cpu().float()
    except Exception as e:
        raise InputError(f"arch={name}(…) can't be copied ({clipped(e)}), and a learner trains a copy: give a module "
                         "that copy.deepcopy takes.") from None
    if next(encoder.parameters(), None) is None:
        raise InputError(f"arch={name}(…) has no parameters, so there is nothing to train: give a network.")
    _check_state(encoder, name)
    left_out = _leave_out_classifier(encoder)
    out, shapes = _try_out(encoder, name, size, in_chans)
    if out.dtype != torch.float32: encoder.register_forward_hook(_float)
    if out.ndim == 4: encoder.register_forward_hook(_pool_last if _channels_last(out.shape) else _pool)
    described = dict(pretrained_cfg=_config_of(encoder, name))
    if not _describes_stages(encoder, name):
        described['feature_info'] = _as_infos(measured_stages(encoder, shapes, size))
    for key, value in described.items():
        try: setattr(encoder, key, value)
        except AttributeError:
            raise InputError(f"arch={name}(…) has a {key} that can't be set, as a property: make it an attribute, or "
                             "call it something else.") from None
    notes = [f"{name}'s classifier '{left_out}' was left out"] if left_out else []
    before = fit_side(encoder, size, in_chans) if resample else None
    if before: notes.append(f"position embeddings for pictures of {before} pixels were resampled for {size}")
    return encoder, notes


def _config_of(encoder: nn.Module, name: str) -> dict[str, Any]:
    "What a module says of the pictures it is for, as timm has it; ImageNet's mean and standard deviation elsewhere"
    given = getattr(encoder, 'pretrained_cfg', None)
    config = dict(given) if isinstance(given, Mapping) else {}
    if not isinstance(config.get('architecture', ''), str): del config['architecture']
    for key, usual in (('mean', IMAGENET_DEFAULT_MEAN), ('std', IMAGENET_DEFAULT_STD)):
        value = config.get(key, usual)
        try: config[key] = tuple(float(number) for number in value)
        except (TypeError, ValueError): config[key] = ()
        if config[key] and all(map(math.isfinite, config[key])): continue
        raise InputError(f"arch={name}(…) has the {key} {clipped(repr(value), 60)} in its pretrained_cfg: give a "
                         "finite number for each channel.")
    return config


def _check_state(encoder: nn.Module, name: str) -> None:
    "Raise `InputError` for a state that no export could hold: before a run, and not after it"
    for key, value in encoder.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(f"arch={name}(…) keeps {clipped(key)} in its state_dict(), a {type(value).__name__}, and "
                             "a file of weights holds tensors alone: leave get_extra_state() out of it.")
    try: encoder.load_state_dict(encoder.state_dict())
    except Exception as e:
        raise InputError(f"arch={name}(…) can't take back its own state_dict() ({clipped(e, 120)}), nor what is saved "
                         "of it: look at its hooks.") from None


def check_trains(
    encoder: nn.Module, # from `as_encoder`
    name: str,          # of its class, for the message
    size: int,          # side of the pictures in pixels
    in_chans: int = 3,  # channels of the pictures
) -> None:
    "Raise `InputError` for a module that training would leave as it is, or could make nothing of"
    for key, p in encoder.named_parameters():
        if p.isfinite().all(): continue
        raise InputError(f"arch={name}(…) has weights that are not finite numbers, in '{clipped(key)}': give a module "
                         "that is whole.")
    if not any(p.requires_grad for p in encoder.parameters()):
        raise InputError(f"arch={name}(…) has no parameter that may change (requires_grad is False in all of them): "
                         "call its requires_grad_() before.")
    trained = [p for p in encoder.parameters() if p.requires_grad]
    def gradients(out): return out.requires_grad and torch.autograd.grad(out.float().sum(), trained, allow_unused=True)
    with torch.enable_grad(): found = _in_training(encoder, torch.zeros(2, in_chans, size, size), gradients)
    if isinstance(found, Exception):
        raise InputError(f"arch={name}(…) gives {_said(found)} when it is trained: give a module that can be.")
    if not found:
        raise InputError(f"arch={name}(…) gives features through which no gradient passes, so nothing in it would "
                         "learn: leave torch.no_grad() and detach() out of its forward.")
    if any(gradient is not None for gradient in found): return
    raise InputError(f"arch={name}(…) gives features that none of its own parameters has a part in, as where its "
                     "forward is that of another module, which its copy does not take along: give that one.")


def _leave_out_classifier(encoder: nn.Module) -> str:
    "Take the classifier of a model of timm or torchvision away; its name, or '' where there is none"
    if _is_of('timm', encoder) and hasattr(encoder, 'reset_classifier'):
        if not getattr(encoder, 'num_classes', 0): return ''
        encoder.reset_classifier(0)
        name = (getattr(encoder, 'pretrained_cfg', None) or {}).get('classifier') or 'head'
        return name if isinstance(name, str) else ', '.join(name)
    if not _is_of('torchvision', encoder): return ''
    for name in _CLASSIFIERS:
        head = getattr(encoder, name, None)
        if not isinstance(head, nn.Module) or isinstance([head, *head.children()][-1], nn.Identity): continue
        # of several layers the last linear one gives the classes; those before it belong to the features
        linear = [inner for inner, layer in head.named_modules() if isinstance(layer, nn.Linear)]
        place = f'{name}.{linear[-1]}' if linear and linear[-1] else name
        encoder.set_submodule(place, nn.Identity())
        return place
    return ''


def _try_out(encoder: nn.Module, name: str, size: int, in_chans: int) -> tuple[Tensor, dict[str, tuple[int, ...]]]:
    "What the module makes of two pictures, and the shapes of what its parts made that ran once, the first to end first"
    whole(most=LARGEST_SIDE, size=size)
    shapes, calls = {}, Counter()
    def look(place):
        def hook(module, args, out):
            calls[place] += 1
            if isinstance(out, Tensor): shapes[place] = tuple(out.shape)
        return hook
    hooks = [module.register_forward_hook(look(place)) for place, module in encoder.named_modules() if place]
    given = f"[2, {in_chans}, {size}, {size}]"
    pictures = torch.zeros(2, in_chans, size, size)
    try:
        with evaluating(encoder): out = encoder(pictures)
    except Exception as e:
        raise InputError(f"arch={name}(…) can't take pictures {given} ({type(e).__name__}: {clipped(e, 120)}): give a "
                         f"module that can, {_other_pictures(encoder, in_chans)}.") from None
    finally:
        for hook in hooks: hook.remove()
    if not _are_features(out):
        raise InputError(f"arch={name}(…) gives {_said(out)} for pictures {given}: give a module that makes features "
                         "[N, D] or maps [N, D, H, W] of them.")
    if pictures._version:
        raise InputError(f"arch={name}(…) changes the pictures that it is given, in place, and others look at them "
                         "after it: have it change a copy.")
    state = encoder.state_dict().keys()
    with torch.no_grad(): trained = _in_training(encoder, torch.zeros(2, in_chans, size, size))
    if not isinstance(trained, Tensor) or trained.shape != out.shape:
        raise InputError(f"arch={name}(…) gives {_said(trained)} in training and {_said(out)} in evaluation, for "
                         f"pictures {given}: give a module that makes the same of them in both.")
    if encoder.state_dict().keys() != state:
        raise InputError(f"arch={name}(…) has other names in its state_dict() after each pass, so that no file would "
                         "fit it: make its buffers before.")
    return out, {place: shape for place, shape in shapes.items() if calls[place] == 1}


def _are_features(out: Any) -> bool:
    "Is it what an encoder makes of two pictures: features or maps of real numbers?"
    return isinstance(out, Tensor) and out.is_floating_point() and out.layout is torch.strided and (
        out.ndim in (2, 4) and len(out) == 2 and out.numel() > 0)


def _other_pictures(encoder: nn.Module, in_chans: int) -> str:
    "What else might be done about pictures that a module does not take"
    first = channels_of(encoder, in_chans)
    return "or another size" if first == in_chans else f"or image_dls(…, channels={first}) for its first convolution"


def _said(out: Any) -> str:
    "How a message speaks of what a module gives, or of its error"
    if isinstance(out, Tensor):
        return str(list(out.shape)) + ('' if out.is_floating_point() else f" of {out.dtype}".replace('torch.', ''))
    return type(out).__name__ + (f" ({clipped(out)})" if isinstance(out, Exception) else '')


def _in_training(encoder: nn.Module, pictures: Tensor, look: Callable[[Tensor], Any] | None = None) -> Any:
    """What it makes of pictures in training mode, or what `look` makes of that, or the error

    Its buffers and the random numbers stay as they were."""
    modes = {part: part.training for part in encoder.modules()}
    kept = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]): out = encoder.train()(pictures)
        return out if look is None else look(out)
    except Exception as e: return e
    finally:
        for part, mode in modes.items(): part.training = mode
        with torch.no_grad():
            for name, buffer in encoder.named_buffers(): buffer.copy_(kept.get(name, buffer))


_INFO: dict[str, Callable[[Any], bool]] = dict( # what timm says of a stage
    module=lambda value: isinstance(value, str), num_chs=lambda value: is_whole(value) and value > 0,
    reduction=lambda value: is_whole(value) and value > 0)
_MORE: dict[str, Callable[[Any], bool]] = dict( # and what may be said beside it
    prefix=lambda value: is_whole(value) and value >= 0, last=lambda value: isinstance(value, bool))


def _describes_stages(encoder: nn.Module, name: str) -> bool:
    "Whether it has a list of its stages like timm's. Raises `InputError` for one that tells them wrongly"
    infos = getattr(encoder, 'feature_info', None)
    if not isinstance(infos, list | tuple) or not all(isinstance(info, dict) for info in infos): return False
    if not all(_INFO.keys() <= info.keys() for info in infos): return False
    if _is_of('timm', encoder): return True
    for info in infos:
        for key, is_right in (_INFO | _MORE).items():
            if key not in info or is_right(info[key]): continue
            raise InputError(f"arch={name}(…) has {key}={clipped(repr(info[key]), 60)} in its feature_info: give a "
                             "list of dict(module='layer1', num_chs=64, reduction=4), the name of a module, the "
                             "channels of its output, and pixels to a cell, or leave it out, and it is measured.")
    there = {place for place, _ in encoder.named_modules()}
    return not infos or any(info['module'] in there for info in infos)  # else they are of another module, inside


def _as_infos(stages: list[Stage]) -> list[dict[str, Any]]:
    "Stages as timm describes them, and what it has no words for"
    return [dict(module=stage.module, num_chs=stage.channels, reduction=stage.stride, prefix=stage.prefix,
                 last=stage.last) for stage in stages]


def _channels_last(shape: tuple[int, ...]) -> bool:
    "Whether maps of square pictures have their channels at the end, as far as the shape tells"
    return shape[1] == shape[2] != shape[3]


def _as_stage(module: str, shape: tuple[int, ...], size: int) -> Stage | None:
    "The stage that an output is, if it is maps or tokens on a grid"
    if len(shape) == 4 and (shape[2] == shape[3] or _channels_last(shape)):
        last = _channels_last(shape)
        return Stage(module, shape[3 if last else 1], max(1, round(size / shape[2])), last=last)
    if len(shape) != 3: return None
    side = int(shape[1] ** 0.5)
    if not side or size % side or shape[1] - side * side > MOST_EXTRA: return None
    return Stage(module, shape[2], size // side, prefix=shape[1] - side * side)


def _places(parent: nn.Module, prefix: str, found: Mapping[str, Stage], most: float) -> list[str]:
    "The names of the modules that may be stages: the outermost ones, and those in one that holds nearly all there is"
    places = []
    for name, child in parent.named_children():
        place = prefix + name
        inner = next(child.children(), None) is not None
        holds_all = inner and sum(p.numel() for p in child.parameters()) > most
        if place in found and not holds_all: places.append(place)
        elif inner: places += [*_places(child, f'{place}.', found, most), *([place] if place in found else [])]
    return places


def measured_stages(
    encoder: nn.Module,
    shapes: Mapping[str, tuple[int, ...]], # of what its modules gave, by name, in the order in which they ended
    size: int,                             # side of the pictures in pixels
) -> list[Stage]: # in that order
    """The stages of a module that describes none

    They are its outermost modules whose outputs are maps, or tokens on a grid. A convolution with the normalisation and
    the activation that follow is one stage, called after the last of them; what pools everything is none. The last
    stage within a module that holds nearly all there is goes by that module's name."""
    found = {place: stage for place, shape in shapes.items() if (stage := _as_stage(place, shape, size))}
    involved = {p for place in found for p in encoder.get_submodule(place).parameters()}  # and not in a classifier
    most = HOLDS_ALL * sum(p.numel() for p in involved)
    places = set(_places(encoder, '', found, most))
    return _merged(encoder, (stage for place, stage in found.items() if place in places), size)


def _merged(encoder: nn.Module, stages: Iterable[Stage], size: int) -> list[Stage]:
    "Of stages in a row that are alike the one that `measured_stages` names, up to the last that has matrices"
    merged: list[tuple[Stage, bool]] = []  # and whether it has matrices: a pooling before the first block has none
    for stage in stages:
        learns = any(p.ndim > 1 for p in encoder.get_submodule(stage.module).parameters())
        if not learns and stage.stride >= size: continue  # it pools everything
        before, has = merged[-1] if merged else (None, False)
        if before is not None and _measures(before) == _measures(stage):
            after_block = next(encoder.get_submodule(before.module).children(), None) is not None
            if after_block and not learns: continue
            is_around = before.module.startswith(f'{stage.module}.')  # and ends with it
            if is_around or not (learns and has):
                merged.pop()
                learns = learns or has
        merged.append((stage, learns))
    while merged and not merged[-1][1]: merged.pop()
    return [stage for stage, _ in merged]


def _measures(stage: Stage) -> tuple: return stage.channels, stage.stride, stage.prefix, stage.last


@torch.no_grad()
def timm_name(
    encoder: nn.Module, # from `as_encoder`
    size: int,          # side of the pictures in pixels
    in_chans: int = 3,  # channels of the pictures
) -> str | None:
    "timm's name of an architecture that takes the encoder's weights and gives its very features; None if there is none"
    name = architecture(encoder)
    if not timm.is_model(name): return None
    with torch.random.fork_rng(devices=[]):
        try:
            blank = make_encoder(name, in_chans=in_chans, size=size)
            blank.load_state_dict(encoder.state_dict())
        except (InputError, RuntimeError): return None
        pictures = torch.rand(2, in_chans, size, size)
    with evaluating(encoder), evaluating(blank):
        return name if torch.allclose(blank(pictures), encoder(pictures), rtol=1e-5, atol=1e-6) else None


def fit_side(
    encoder: nn.Module, # that takes pictures of this side
    size: int,          # the side, in pixels
    in_chans: int = 3,  # channels of the pictures
) -> int | None:        # the side that it was for until now; None: it stays as it is
    """Resample a transformer's position embeddings, in place, where it is then what its name makes for this side

    A file or folder that says the name can hold it then. An encoder that no name makes stays as it is: whoever loads
    what it has learned has to make one of the same shapes."""
    if made_for(encoder) in (None, size): return None
    other = copy.deepcopy(encoder).cpu().float()  # since there is no way back
    if resample_positions(other, size) is None or timm_name(other, size, in_chans) is None: return None
    return resample_positions(encoder, size)
