"""Assembling a learner: what a user gave and what the recipe says become parts, checked against one another."""
import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastcore.foundation import L
from torch import nn

from .core import InputError
from .guards import ClipEach
from .losses import LOSSES, Loss, as_step_loss
from .models import (ContrastiveModel, architecture, drop_paths, feature_dim, fix_positions, has_large_stem,
                     make_encoder, small_stem)
from .multi_crop import MultiCrop
from .recipes import METHODS, Recipe, check_parts, encoder_kind, make_part, pick_setting
from .recipes.recipe import SMALL_PICTURES
from .step import StepCallback
from .targets import Memory, Queue, Target


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
    if isinstance(loss, nn.Module): return as_step_loss(copy.deepcopy(loss))  # what it remembers is this learner's
    if isinstance(loss, str): loss = LOSSES.find(loss)
    makes = inspect.isclass(loss) or loss is recipe.loss and callable(loss)
    if makes: _check_makes('loss', loss)
    if not makes and loss is recipe.loss:
        raise InputError(f"loss={loss!r} of {recipe.name}() is neither a loss nor makes one: give one like DCL(0.1).")
    return as_step_loss(loss() if makes else loss)


def _check_makes(
    name: str,      # of the argument, for the message
    make: Callable, # a class, or a function
) -> None:
    "Raise `InputError` for what can't be called without arguments"
    try: inspect.signature(make).bind()
    except ValueError: pass  # a built-in one does not tell
    except TypeError as e:
        called = getattr(make, '__name__', repr(make))
        raise InputError(f"{name}={called} can't be made without its arguments ({e}): give {called}(…) with "
                         "them.") from None


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
    "Raise `InputError` unless the loss makes a scalar of what it will be given; it is left as it was"
    width = recipe.prototypes if loss.prototypes else recipe.projector[-1]
    z = torch.linspace(-1, 1, 4 * width).sin().view(4, -1)  # any embeddings, without drawing random numbers
    given = [z, z.flip(0), *([F.normalize(z)] if isinstance(memory, Queue) else [])]
    with torch.random.fork_rng(devices=[]):
        try: scalar = copy.deepcopy(loss)(*given).ndim == 0
        except (TypeError, AttributeError): scalar = False
    if scalar: return
    raise InputError(f"loss={loss!r} does not make a scalar of queries and keys [B, D]: give one like DCL(0.1), or its "
                     "name.")


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


def choose_encoder(
    dls,                      # from `image_dls`
    arch: str,                # any timm architecture
    small_input: bool | None, # the ResNets' stem for small pictures; None: for a ResNet, up to 64 pixels
    pretrained: bool,         # start from timm's weights
) -> tuple[nn.Module, bool]:  # and whether it has the stem for small pictures
    "The encoder, for pictures of this size. Raises `InputError` for one that can't be"
    encoder = make_encoder(arch, small_input=bool(small_input), pretrained=pretrained, size=dls.size)
    if small_input is None:
        # digits have 8 pixels, however large they are shown
        small_input = dls.size <= SMALL_PICTURES and dls.source != 'digits' and not pretrained
        small_input = small_input and has_large_stem(encoder)
        if small_input: small_stem(encoder)
    return encoder, small_input


def choose_parts(
    dls,                       # from `image_dls`
    encoder: nn.Module,        # that is trained
    method: Recipe | str,      # a recipe, or its name
    loss: Any = None,          # see `choose_loss`
    cbs: Any = None,           # the user's callbacks: one, several, or classes of them
) -> Parts:
    "The parts of a learner. Raises `InputError` for parts that do not go together"
    recipe = as_recipe(method)
    had_none = not recipe.prototypes
    pictures = len(dls.train.dataset)
    own = recipe.own(pick_setting(dls.source, dls.size, pictures), dls.size, encoder_kind(encoder))
    recipe = own.over(recipe.changes)
    recipe.check()
    loss = choose_loss(loss, recipe)
    given, notes = [_callback(cb) for cb in L(cbs) if cb is not None], []
    if recipe.opt != own.opt and 'lr' not in recipe.changes:
        notes.append(f"the learning rate {own.lr:g} of {recipe.name}() is for opt='{own.opt}', and none was given for "
                     f"opt='{recipe.opt}'")
    target = _axis(Target, 'the target, which makes the keys of a step', recipe.target, given, recipe, required=True)
    memory = _axis(Memory, 'memories of earlier batches', recipe.memory, given, recipe)
    crops = _axis(MultiCrop, 'crops', recipe.multi_crop, given, recipe)
    if memory is not None and memory not in given and 'memory' not in recipe.changes:
        memory, adapted = _fit_memory(memory, pictures, dls.train.bs)
        notes += adapted
    check_parts(recipe, loss, memory)
    if recipe.one_way and crops is not None and crops.globals[0] < 2:
        raise InputError(f"{recipe.name}() asks with one large view and answers with the others, and {crops} makes "
                         "one: make at least two.")
    try_loss(loss, recipe, memory)
    if not loss.prototypes:
        if recipe.prototypes and had_none:
            raise InputError(f"{loss.name} has no use for the {recipe.prototypes} prototypes of {recipe.name}(): leave "
                             "them out, or take SwAVLoss or DINOLoss.")
        recipe = replace(recipe, prototypes=0)
    if any(isinstance(cb, GradientAccumulation) for cb in given):
        raise InputError("GradientAccumulation sums the losses of small batches, each with its own few negatives, "
                         "which is not the loss of the large batch: give contrastive_learner(…, accumulate=k), which "
                         "has it, instead.")
    others = [cb for cb in given if cb not in (target, memory, crops)]
    own = _own_speedups(recipe, given, bool(dls.train.data.labeled.any()))
    return Parts(recipe, loss, target, memory, crops, [*own, *others], notes)


def _own_speedups(recipe: Recipe, given: Sequence[Callback], labeled: bool) -> list[Callback]:
    "The callbacks that belong to the method, where the user has not given others that do the same"
    makers = (*recipe.speedups, *(recipe.with_labels if labeled else ()))
    def kind_of(maker): return type(maker) if isinstance(maker, Callback) else getattr(maker, 'func', maker)
    tasks = {type(cb).exclusive for cb in given if isinstance(cb, StepCallback)} - {None}
    def replaced(kind): return kind.exclusive in tasks or any(isinstance(cb, kind) for cb in given)
    return [make_part(maker) for maker in makers if not replaced(kind_of(maker))]


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
    pretrained: bool,   # the encoder has weights already
) -> ContrastiveModel:
    "The encoder with the method's head. Raises `InputError` where the call freezes what the encoder has not"
    _freeze(encoder, recipe)
    if recipe.fixed_positions and not pretrained: fix_positions(encoder)
    if recipe.drop_path: drop_paths(encoder, recipe.drop_path)
    model = ContrastiveModel(encoder, recipe.head(feature_dim(encoder, size)), recipe.per_view, recipe.joint_head)
    model.encoder.to(memory_format=torch.channels_last)
    return model


def _freeze(encoder: nn.Module, recipe: Recipe) -> None:
    "Modules that the recipe freezes do not train; the call's, or `InputError`, and the recipe's own where they are"
    known = {name for name, _ in encoder.named_modules()}
    for name in recipe.frozen:
        if name in known: encoder.get_submodule(name).requires_grad_(False)
        elif 'frozen' in recipe.changes:
            raise InputError(f"{recipe.name}() freezes '{name}', which '{architecture(encoder)}' has not: give the "
                             "names of other modules, or frozen=().")
