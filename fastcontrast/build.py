"""Assembling a learner: what a user gave and what the recipe says become parts, checked against one another."""
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastcore.foundation import L
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from .artefact import looking_for
from .channels import channel_statistics
from .core import InputError, clipped, whole
from .export import needs_module
from .guards import ClipEach
from .loaders import ImageLoader
from .losses import LOSSES, Loss, as_step_loss
from .models import (SOURCES, ContrastiveModel, architecture, correct_prefixes, drop_paths, feature_dim,
                     first_convolutions, fix_positions, make_encoder, patch_side)
from .modules import MODULE, as_encoder, check_trains, class_path, timm_name
from .multi_crop import MultiCrop
from .optim import optimizer_name
from .recipes import METHODS, Recipe, check_parts, encoder_kind, make_part, pick_setting
from .recipes.recipe import SMALL_PICTURES
from .speedups.suncet import LabeledTerm
from .stems import PATCH, has_large_patches, has_large_stem, plain_name, small_stem
from .step import StepCallback
from .targets import Memory, Queue, Target
from .values import other_range
from .warmup import HeadWarmup
from .weights import (Weights, architecture_of, changed_channels, fit_tensors, has_small_stem, read_weights,
                      timm_source)


@dataclass
class Parts:
    "What a learner is assembled of"
    recipe: Recipe             # resolved
    loss: Loss                 # of a pair of views
    target: Target             # makes the keys
    memory: Memory | None      # what outlives the batch
    crops: MultiCrop | None    # small crops beside the large ones
    speedups: list[Callback]   # and whatever else the user gave
    notes: list[str] = field(default_factory=list) # what was chosen for these data in place of the recipe's

    @property
    def callbacks(self) -> list[Callback]:
        "In the order in which they are added: a target that copies the model has to find the heads that others add"
        ordered = sorted(self.speedups, key=lambda cb: cb.order)
        return [cb for cb in (self.crops, *ordered, self.memory, self.target) if cb is not None]


def as_recipe(
    method: Recipe | str | Callable[[], Recipe], # a recipe, its name, or what makes it
) -> Recipe:
    "A recipe, not yet resolved. Raises `InputError` for anything else"
    recipe = METHODS.find(method) if isinstance(method, str) else method
    if callable(recipe): recipe = recipe()
    if not isinstance(recipe, Recipe):
        raise InputError(f"method={method!r} is no recipe: give one like simclr(), or its name.")
    return recipe


def choose_loss(
    loss: Any,      # a loss, its class, its name, or None for the recipe's
    recipe: Recipe, # resolved
) -> Loss:
    "The loss of a pair of views, this learner's own. Raises `InputError` for what is none"
    if loss is None: loss = recipe.loss
    if isinstance(loss, nn.Module):
        _check_compares(loss)
        return as_step_loss(copy.deepcopy(loss))  # what it remembers is this learner's
    if isinstance(loss, str): loss = LOSSES.find(loss)
    # a recipe's function makes its loss, or is it
    makes = inspect.isclass(loss) or loss is recipe.loss and callable(loss) and not _reason_against(loss)
    if makes: _check_makes('loss', loss)
    if not makes and loss is recipe.loss and not callable(loss):
        raise InputError(f"loss={loss!r} of {recipe.name}() is neither a loss nor makes one: give one like DCL(0.1).")
    made = loss() if makes else loss
    _check_compares(made)
    return as_step_loss(made)


_DISTANCES = ( # PyTorch's losses of tensors of one kind…
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.CosineEmbeddingLoss, nn.TripletMarginLoss,
    nn.TripletMarginWithDistanceLoss)
_DISTANCE_FUNCTIONS = ( # …and its functions
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.cosine_embedding_loss, F.triplet_margin_loss,
    F.triplet_margin_with_distance_loss)


def _check_compares(loss: Any) -> None:
    "Raise `InputError` for a loss of PyTorch that compares predictions with labels or chances, and not embeddings"
    loss = getattr(loss, 'func', loss)  # of a `partial`
    if isinstance(loss, nn.Module): other = _is_of(nn.modules.loss, type(loss).forward)
    else: other = _is_of(F, loss) and loss not in _DISTANCE_FUNCTIONS
    if not other or isinstance(loss, _DISTANCES): return
    raise _no_embeddings(loss)


def _is_of(module: Any, function: Any) -> bool:
    return getattr(function, '__module__', '') == module.__name__


def _no_embeddings(loss: Any) -> InputError:
    written = clipped(getattr(loss, '__name__', repr(loss)), 60)
    return InputError(f"loss={written} compares predictions with labels or probabilities, and a step has embeddings of "
                      "two views: give one like DCL(0.1), or its name; cbs=SupervisedTerm('ce') adds cross-entropy "
                      "with the labels there are.")


def _check_makes(
    name: str,      # of the argument, for the message
    make: Callable, # a class, or a function
) -> None:
    "Raise `InputError` for what can't be called without arguments"
    if not (reason := _reason_against(make)): return
    called = getattr(make, '__name__', repr(make))
    raise InputError(f"{name}={called} can't be made without its arguments ({reason}): give {called}(…) with them.")


def _reason_against(
    make: Callable, # a class, or a function
) -> str:
    "Why it can't be called without arguments; '' if it can"
    try: inspect.signature(make).bind()
    except ValueError: pass  # a built-in one does not tell
    except TypeError as e: return str(e)
    return ''


def _callback(
    given: Any, # a callback, or its class
) -> Callback:
    "The callback. Raises `InputError` for what is none"
    if isinstance(given, Callback): return given
    if not (isinstance(given, type) and issubclass(given, Callback)):
        raise InputError(f"{given!r} among cbs is no callback: give one like CombinePatches().")
    _check_makes('cbs', given)
    return given()


def try_loss(
    loss: Loss,
    recipe: Recipe,        # resolved
    memory: Memory | None,
) -> None:
    """Raise `InputError` unless the loss makes a scalar of what it will be given, by which embeddings can learn

    It is left as it was."""
    width = recipe.prototypes if loss.prototypes else recipe.projector[-1]
    z = torch.linspace(-1, 1, 4 * width).sin().view(4, -1)  # any embeddings, without drawing random numbers
    queue = [F.normalize(z)] if isinstance(memory, Queue) else []
    def score(q, k): return copy.deepcopy(loss)(q, k, *queue)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try: scalar, reason = score(z.clone().requires_grad_(), z.flip(0)), ''
        except InputError: raise
        except Exception as e: scalar, reason = None, f" ({type(e).__name__}: {clipped(e, 100)})"  # other people's
        if getattr(scalar, 'ndim', None) != 0:
            raise InputError(f"loss={clipped(repr(loss), 100)} does not make a scalar of queries and keys "
                             f"[B, D]{reason}: give one like DCL(0.1), or its name.")
        if not scalar.requires_grad:
            raise InputError(f"loss={clipped(repr(loss), 100)} gives a number through which no gradient passes, so "
                             "nothing would learn: leave detach() and argmax out of it.")
        if _takes_chances(score, z): raise _no_embeddings(loss)


@torch.no_grad()
def _takes_chances(
    score: Callable[[Tensor, Tensor], Tensor], # queries and keys `[B, D]` to a scalar
    z: Tensor, # embeddings `[B, D]`
) -> bool:
    """Whether a loss is a cross-entropy with keys for probabilities, so that it falls without end as they grow

    It doubles with the keys and not with the queries, and does not see what is added to all numbers of a query."""
    k = z.flip(0)
    try: first, keys, queries, moved = score(z, k), score(z, 2 * k), score(2 * z, k), score(z + 1, k)
    except Exception: return False  # it takes no embeddings like these
    def same(a, b): return torch.allclose(a, b, rtol=1e-3, atol=1e-5)
    return same(keys, 2 * first) and same(moved, first) and not same(queries, 2 * first)


def _axis(
    kind: type,          # of callback
    means: str,          # what such callbacks are, for the message
    default: Any,        # the recipe's, or what makes it
    given: Sequence[Callback], # the user's callbacks
    recipe: Recipe,
    required: bool = False,
) -> Any:
    "The value of an axis: the one among the user's callbacks, else the recipe's"
    chosen = [cb for cb in given if isinstance(cb, kind)]
    if len(chosen) > 1: raise InputError(f"{chosen[0]} and {chosen[1]} are both {means}: give one.")
    if chosen: return chosen[0]
    if not (default is None or callable(default) or isinstance(default, kind)):
        raise InputError(f"{default!r} of {recipe.name}() is no {kind.__name__}, nor makes one.")
    made = make_part(default)
    if isinstance(made, kind) or made is None and not required: return made
    raise InputError(f"{made!r} of {recipe.name}() is no {kind.__name__}.")


def _fit_memory(
    memory: Memory, # the recipe's
    n: int,         # pictures there are
    bs: int,        # pictures in a batch
) -> tuple[Memory | None, list[str]]: # None: it is left out; and what to say of it
    "The recipe's memory, as large as suits the pictures"
    notes = []
    if memory.size > n:
        notes.append(f"{memory} has more rows than there are pictures: {n} here")
        memory.size = n
    if memory.size < bs and memory.start:
        return None, [*notes, f"{memory} is smaller than a batch: left out, since the batch is large enough without"]
    if memory.size < bs:
        notes.append(f"{memory} is smaller than a batch: {bs} rows here")
        memory.size = bs
    return memory, notes


@dataclass(frozen=True)
class KeptStart:
    "What came with weights that are not read again, since a checkpoint has what became of them"
    arch: str       # timm's name of the encoder
    small_input: bool # whether it has the stem for small pictures
    origin: str     # what messages call the weights
    mean: Sequence[float] # of the channels, that the encoder expects…
    std: Sequence[float]  # …and their standard deviation
    doubts: Sequence[str] = () # what was warned of


@dataclass
class Start:
    "The encoder that training begins with"
    encoder: nn.Module
    arch: str                   # what an export calls it: timm's name, or `MODULE` and the path of a class
    small_input: bool = False   # whether it has the stem for small pictures
    weights: str | None = None  # where its weights are from; None: drawn, or those that a module came with
    notes: list[str] = field(default_factory=list) # what is to be said of it
    module: bool = False        # whether it was given as one
    doubts: list[str] = field(default_factory=list) # what is to be warned of
    unread: bool = False        # whether its weights are still to come, from a checkpoint

    @property
    def given(self) -> bool:
        "Whether its weights are not drawn here"
        return self.weights is not None or self.module


def choose_encoder(
    dls,                             # from `image_dls`
    arch: str | nn.Module | None,    # any timm architecture, or a module; None: that of the weights
    small_input: bool | None = None, # the stem for small pictures; None: for a ResNet, up to 64 pixels
    pretrained: bool = False,        # start from timm's weights
    weights: str | Path | KeptStart | None = None, # or from these: see `read_weights`
) -> Start:
    """The encoder, for pictures of this size and these channels. Raises `InputError` for one that can't be

    Mean and standard deviation are its own, or of its weights, unless they are of another number of channels: then they
    are those of the pictures."""
    with looking_for(arch if weights is None else weights, pretrained):
        start = _begin(dls, arch, small_input, pretrained, weights)
    config = start.encoder.pretrained_cfg
    if len(config['mean']) != dls.channels:
        found = channel_statistics(dls.train)
        config.update(mean=found.mean, std=found.std, input_size=(dls.channels, dls.size, dls.size))
        start.notes.append(found.note())
    return start


def _begin(dls, arch: Any, small_input: bool | None, pretrained: bool, weights: Any) -> Start:
    "The encoder, as it or its weights are given"
    if isinstance(weights, KeptStart): return _from_kept(dls, weights)
    if pretrained and weights is not None:
        raise InputError(f"pretrained=True takes timm's weights of '{clipped(arch)}', and "
                         f"weights='{clipped(weights)}' are others: give one of the two.")
    if isinstance(arch, nn.Module): return _from_module(dls, arch, small_input, pretrained, weights)
    if isinstance(arch, str): arch, small_input = plain_name(arch, small_input)
    source = None if weights is None else timm_source(weights)
    if source is not None: return _from_timm(dls, arch, small_input, source)
    if weights is not None: return _from_file(dls, arch, small_input, weights)
    if arch is None:
        raise InputError("there is no architecture: give arch, like 'resnet18', or weights that say theirs.")
    encoder = make_encoder(arch, bool(small_input), pretrained, dls.channels, dls.size)
    if small_input is None:
        # digits have 8 pixels, however large they are shown
        small_input = dls.size <= SMALL_PICTURES and dls.source != 'digits' and not pretrained
        small_input = small_input and has_large_stem(encoder)
        if small_input: small_stem(encoder)
    name = _name_of(dls, encoder, arch, small_input)
    if not pretrained: return Start(encoder, *name, notes=_of_few_patches(encoder, dls.size))
    changed = _changed_by_timm(encoder, dls.channels)
    notes = [f"weights of timm's '{clipped(arch)}'; {changed}"] if changed else []
    return Start(encoder, *name, f"timm's '{arch}'", notes)


FEW_PATCHES = 16 # with fewer, a transformer sees next to nothing of where things are


def _of_few_patches(encoder: nn.Module, size: int) -> list[str]:
    "What to say of a ViT whose patches are large for the pictures"
    if not has_large_patches(encoder): return []
    side = patch_side(encoder)
    count = (size // side) ** 2
    if count >= FEW_PATCHES: return []
    return [f"pictures of {size} pixels are {count} {'patch' if count == 1 else 'patches'} of {side} pixels: "
            f"small_input=True gives '{clipped(architecture(encoder))}' patches of {PATCH}"]


def _from_kept(dls, kept: KeptStart) -> Start:
    "An encoder as it was made for weights that a checkpoint takes the place of"
    encoder = make_encoder(kept.arch, kept.small_input, in_chans=dls.channels, size=dls.size)
    encoder.pretrained_cfg.update(mean=tuple(kept.mean), std=tuple(kept.std))
    return Start(encoder, kept.arch, kept.small_input, kept.origin, doubts=list(kept.doubts), unread=True)


def _name_of(dls, encoder: nn.Module, arch: str, small_input: bool) -> tuple[str, bool]:
    """What an export calls an encoder that timm made, never a place where it would be looked for

    And whether it has the stem for small pictures, which a model that is described elsewhere may have had before."""
    if not arch.startswith(SOURCES): return arch, bool(small_input)
    # it may have been made with arguments of its own, which no name tells
    name = timm_name(encoder, dls.size, dls.channels)
    return plain_name(name) if name else (MODULE + class_path(encoder), bool(small_input))


def _changed_by_timm(encoder: nn.Module, channels: int) -> str:
    "What to say of weights that timm has changed for another number of channels; '' if it has not"
    made_for = (encoder.pretrained_cfg.get('input_size') or (3,))[0]
    convolutions = first_convolutions(encoder)
    if made_for == channels or not convolutions: return ''
    return changed_channels([f'{name}.weight ({made_for} to {channels})' for name in convolutions])


def _from_module(dls, module: nn.Module, small_input: bool | None, pretrained: bool, weights: Any) -> Start:
    "A copy of a module, with weights from a file if there are such"
    name = type(module).__name__
    if small_input:
        raise InputError("small_input replaces the stem of an encoder that is made here, and "
                         f"arch={name}(…) is a module already: change its stem before, or leave small_input out.")
    if pretrained:
        raise InputError(f"pretrained=True is for architectures by name, and arch={name}(…) is a module, which comes "
                         "with its weights: leave it out, and give head_epochs=1 if they are worth keeping.")
    encoder, notes = as_encoder(module, dls.size, dls.channels)
    check_trains(encoder, name, dls.size, dls.channels)
    known = timm_name(encoder, dls.size, dls.channels)
    arch, small = plain_name(known) if known else (MODULE + class_path(encoder), False)
    if weights is None: return Start(encoder, arch, small, notes=notes, module=True)
    if timm_source(weights) is not None:
        raise InputError(f"weights='{clipped(weights)}' are of a model that timm makes, and arch={name}(…) is one "
                         "already: give the name as arch, or a file as weights.")
    read = read_weights(weights, module)
    loaded, doubts = _load(encoder, read, dls)
    return Start(encoder, arch, small, read.origin, [*notes, *loaded], module=True, doubts=doubts)


def _from_timm(dls, arch: str | None, small_input: bool | None, source: str) -> Start:
    "A model that timm makes with its weights"
    with looking_for(source, weights=not source.startswith(SOURCES)):
        encoder = make_encoder(source, bool(small_input), True, dls.channels, dls.size)
    own, _ = plain_name(architecture(encoder))
    _check_arch(arch, own, source)
    name = _name_of(dls, encoder, source, False)
    changed = _changed_by_timm(encoder, dls.channels)
    return Start(encoder, *name, f"'{source}'", [f"weights of timm's '{source}'{changed and f'; {changed}'}"])


def _from_file(dls, arch: str | None, small_input: bool | None, weights: str | Path) -> Start:
    "An architecture with the tensors of a file that fit"
    own = architecture_of(weights)
    if own is not None and needs_module(own):
        raise InputError(f"weights='{clipped(weights)}' are of a {clipped(own.removeprefix(MODULE))}, which no name "
                         "makes: give such a module as arch.")
    if own is not None: _check_arch(arch, own, weights)
    arch = arch or own
    if arch is None:
        raise InputError(f"weights='{clipped(weights)}' do not say of which architecture they are: give arch.")
    encoder, read = make_encoder(arch, in_chans=dls.channels, size=dls.size), read_weights(weights)
    small = has_small_stem(encoder, read)
    if None not in (small_input, small) and small_input != small:
        stem = 'the stem for small pictures' if small else 'the usual stem'
        raise InputError(f"weights={read.origin} are of an encoder with {stem}, and small_input={small_input} asks for "
                         "the other: leave it out.")
    small = bool(small_input if small is None else small)
    if small: small_stem(encoder)
    notes, doubts = _load(encoder, read, dls)
    return Start(encoder, *_name_of(dls, encoder, arch, small), read.origin, notes, doubts=doubts)


def _check_arch(arch: str | None, own: str, weights: Any) -> None:
    "Raise `InputError` where weights are of another architecture than the one that was asked for"
    if arch is None or str(arch).split('.')[0] == own.split('.')[0]: return
    raise InputError(f"weights='{clipped(weights)}' are of '{clipped(own)}' and arch is '{clipped(arch)}': leave arch "
                     "out, or give other weights.")


def _load(encoder: nn.Module, weights: Weights, dls) -> tuple[list[str], list[str]]:
    """Give an encoder weights: what is to be said of it, and what is to be warned of

    Mean and standard deviation are those that they were trained with, where the file says them of as many channels;
    it is said where they were those of another range of values. Where it says none it is said which they are."""
    fitted, info = fit_tensors(encoder, weights), weights.info
    notes, doubts = [fitted.note(weights.origin)], fitted.doubts(weights.origin, architecture(encoder))
    if not info: return [*notes, *_of_no_values(encoder, weights.origin, dls.channels)], doubts
    if len(info['mean']) != dls.channels: return notes, doubts
    encoder.pretrained_cfg.update(mean=tuple(info['mean']), std=tuple(info['std']))
    other = other_range(info['extra'], dls.value_range)
    return [*notes, *([f"the encoder of {weights.origin}: {other}"] if other else [])], doubts


_USUAL = dict(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD) # what most programs normalise with


def _has_usual(config: Mapping[str, Any]) -> bool:
    "Whether mean and standard deviation are ImageNet's"
    return all(tuple(config.get(key) or ()) == value for key, value in _USUAL.items())


def _of_no_values(encoder: nn.Module, origin: str, channels: int) -> list[str]:
    "What to say of weights without mean and standard deviation, where those of the encoder are not ImageNet's"
    config = encoder.pretrained_cfg
    if len(config['mean']) != channels or _has_usual(config): return []
    mean, std = (', '.join(f'{number:g}' for number in config[key]) for key in _USUAL)
    said = (f"{origin} does not say its mean and standard deviation, and pictures have those of "
            f"'{clipped(architecture(encoder))}', ({mean}) and ({std})")
    advice = _with_usual(plain_name(architecture(encoder))[0].partition('.')[0])
    return [f"{said}: if it was trained with ImageNet's, as most are that no labels taught, give arch={advice}"]


def _with_usual(arch: str) -> str:
    "What to give as `arch` for an architecture with ImageNet's mean and standard deviation"
    for name in timm.list_pretrained(f'{arch}.*') if timm.is_model(arch) else ():
        if _has_usual(timm.get_pretrained_cfg(name).to_dict()): return f"'{name}', whose they are"
    return 'a module with them in its pretrained_cfg'


def head_warmup(
    start: Start,
    head_epochs: int | None, # epochs in which the head learns alone; None: one where weights are given
    cbs: Sequence[Callback], # the user's
) -> list[HeadWarmup]:
    "What has the encoder stand still at first. Raises `InputError` where there are no weights to keep"
    whole(least=0, optional=True, head_epochs=head_epochs)
    if head_epochs is None:
        if any(isinstance(cb, HeadWarmup) for cb in cbs) or not start.given: return []
        if start.weights is not None: return [HeadWarmup()]
        start.notes.append("weights that the module came with train from the first step on: give head_epochs=1 if they "
                           "are worth keeping, and a lower lr where kNN falls below theirs")
        return []
    if head_epochs and not start.given:
        raise InputError(f"head_epochs={head_epochs} keeps the weights of an encoder while the head learns, and those "
                         "of this one are drawn at random: give weights, or leave head_epochs out.")
    return [HeadWarmup(head_epochs)] if head_epochs else []


def choose_parts(
    dls,                       # from `image_dls`
    encoder: nn.Module,        # that is trained
    method: Recipe | str,      # a recipe, or its name
    loss: Any = None,          # see `choose_loss`
    cbs: Any = None,           # the user's callbacks: one, several, or classes of them
) -> Parts:
    "The parts of a learner. Raises `InputError` for parts that do not go together"
    method = as_recipe(method)
    recipe, notes = _resolved(method, dls, encoder)
    loss = choose_loss(loss, recipe)
    given = [_callback(cb) for cb in L(cbs) if cb is not None]
    target = _axis(Target, 'the target, which makes the keys of a step', recipe.target, given, recipe, required=True)
    memory = _axis(Memory, 'memories of earlier batches', recipe.memory, given, recipe)
    crops = _axis(MultiCrop, 'crops', recipe.multi_crop, given, recipe)
    if memory is not None and memory not in given and 'memory' not in recipe.changes:
        memory, adapted = _fit_memory(memory, len(dls.train.dataset), dls.train.bs)
        notes += adapted
    check_parts(recipe, loss, memory)
    _check_crops(recipe, crops)
    try_loss(loss, recipe, memory)
    recipe = replace(recipe, prototypes=_prototypes(recipe, loss, method))
    if any(isinstance(cb, GradientAccumulation) for cb in given):
        raise InputError("GradientAccumulation sums the losses of small batches, each with its own few negatives, "
                         "which is not the loss of the large batch: give contrastive_learner(…, accumulate=k), which "
                         "has it, instead.")
    others = [cb for cb in given if cb not in (target, memory, crops)]
    own, left_out = _own_speedups(recipe, given, dls.train)
    return Parts(recipe, loss, target, memory, crops, [*own, *others], [*notes, *left_out])


def _resolved(method: Recipe, dls, encoder: nn.Module) -> tuple[Recipe, list[str]]:
    "The recipe for these pictures and this encoder, and what to say of it"
    own = method.own(pick_setting(dls.source, dls.size, len(dls.train.dataset)), dls.size, encoder_kind(encoder))
    recipe = own.with_changes(method.changes)
    recipe.check()
    if recipe.opt == own.opt or 'lr' in recipe.changes: return recipe, []
    return recipe, [f"the learning rate {own.lr:g} of {recipe.name}() is for opt='{optimizer_name(own.opt)}', and "
                    f"none was given for opt='{optimizer_name(recipe.opt)}'"]


def _check_crops(recipe: Recipe, crops: MultiCrop | None) -> None:
    if recipe.one_way and crops is not None and crops.globals[0] < 2:
        raise InputError(f"{recipe.name}() asks with one large view and answers with the others, and {crops} makes "
                         "one: make at least two.")


def _prototypes(recipe: Recipe, loss: Loss, method: Recipe) -> int:
    "How many of a recipe's prototypes its loss has a use for; `InputError` where a method that has none was given some"
    if loss.prototypes: return recipe.prototypes
    if recipe.prototypes and not method.prototypes:
        raise InputError(f"{loss.name} has no use for the {recipe.prototypes} prototypes of {recipe.name}(): leave "
                         "them out, or take SwAVLoss or DINOLoss.")
    return 0


def _own_speedups(recipe: Recipe, given: Sequence[Callback], train: ImageLoader) -> tuple[list[Callback], list[str]]:
    """The callbacks that belong to the method, where the user has not given others that do the same

    And what to say of those that nobody asked for and these labels don't allow."""
    def kind_of(maker): return type(maker) if isinstance(maker, Callback) else getattr(maker, 'func', maker)
    tasks = {type(cb).exclusive for cb in given if isinstance(cb, StepCallback)} - {None}
    def replaced(kind): return kind.exclusive in tasks or any(isinstance(cb, kind) for cb in given)
    def made(makers): return [make_part(maker) for maker in makers if not replaced(kind_of(maker))]
    own, notes = made(recipe.speedups), []
    for cb in made(recipe.with_labels) if train.data.labeled.any() else ():
        reason = '' if 'with_labels' in recipe.changes else _no_support(cb, train)
        if reason: notes.append(f"{cb} of {recipe.name}() is left out: {reason}")
        else: own.append(cb)
    return own, notes


def _no_support(cb: Callback, train: ImageLoader) -> str:
    "'' or why there are no support batches for a callback that wants such"
    if not isinstance(cb, LabeledTerm): return ''
    try: cb.batches(train)
    except InputError as e: return clipped(e, 300)
    return ''


def gradient_clips(
    parts: Parts,
) -> list[Callback]:
    "What keeps the gradients in bounds, by the recipe"
    recipe, clips = parts.recipe, []
    if recipe.clip_each is not None: clips.append(ClipEach(recipe.clip_each))
    own = any(isinstance(cb, GradientClip) for cb in parts.speedups)
    if recipe.clip is not None and not own: clips.append(GradientClip(recipe.clip))
    return clips


def make_model(
    encoder: nn.Module, # from `choose_encoder`
    size: int,          # side of the pictures in pixels
    recipe: Recipe,     # resolved, and without prototypes that its loss has no use for
    given: bool,        # the encoder has weights already
    in_chans: int = 3,  # channels of the pictures
) -> tuple[ContrastiveModel, list[str]]: # and what to say of what the recipe asks for in vain
    "The encoder with the method's head. Raises `InputError` where the call asks for what the encoder has not"
    notes = [*_freeze(encoder, recipe), *_fix_positions(encoder, recipe, given), *_drop_paths(encoder, recipe)]
    head = recipe.head(feature_dim(encoder, size, in_chans))
    correct_prefixes(encoder, size, in_chans)
    model = ContrastiveModel(encoder, head, recipe.per_view, recipe.joint_head, in_chans)
    model.encoder.to(memory_format=torch.channels_last)
    return model, notes


def _drop_paths(encoder: nn.Module, recipe: Recipe) -> list[str]:
    "Blocks are skipped at times; `InputError` where the call asks for it in vain, else what to say of that"
    if not recipe.drop_path: return []
    try: drop_paths(encoder, recipe.drop_path)
    except InputError:
        if 'drop_path' in recipe.changes: raise
        return [f"drop_path={recipe.drop_path:g} of {recipe.name}() is left out: '{architecture(encoder)}' has no "
                "blocks that can be skipped"]
    return []


def _fix_positions(encoder: nn.Module, recipe: Recipe, given: bool) -> list[str]:
    """Positions are waves where they are drawn here; `InputError` where the call asks for it in vain

    And what to say of it where the recipe does, of a transformer."""
    if not recipe.fixed_positions or not given and fix_positions(encoder): return []
    reason = "comes with weights, which keep theirs" if given else "has none like timm's transformers"
    if 'fixed_positions' in recipe.changes:
        raise InputError(f"fixed_positions=True of {recipe.name}() puts waves in place of a learnt position embedding, "
                         f"and '{architecture(encoder)}' {reason}: leave it out.")
    if encoder_kind(encoder) != 'vit': return []
    return [f"{recipe.name}() puts waves in place of a learnt position embedding, and '{architecture(encoder)}' "
            f"{reason}: that is left out"]


def _freeze(encoder: nn.Module, recipe: Recipe) -> list[str]:
    """Modules that the recipe freezes do not train; the call's, or `InputError`, and the recipe's own where they are

    And what to say of a transformer that has them not."""
    known, notes = {name for name, _ in encoder.named_modules()}, []
    for name in recipe.frozen:
        if name in known: encoder.get_submodule(name).requires_grad_(False)
        elif 'frozen' in recipe.changes:
            raise InputError(f"{recipe.name}() freezes '{name}', which '{architecture(encoder)}' has not: give the "
                             "names of other modules, or frozen=().")
        elif encoder_kind(encoder) == 'vit':
            trained = "its patches are trained" if name.startswith('patch_embed') else "nothing is frozen in its place"
            notes.append(f"{recipe.name}() freezes '{name}', which '{architecture(encoder)}' has not: {trained}")
    return notes
