"""What there is to choose from, as the command line reads it: no other file of this package knows where a registry is.

The registries import torch, so that each import stands in its function."""
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def methods() -> Mapping[str, Callable[..., Any]]:
    "What makes a recipe, by name"
    from ..recipes import METHODS
    return METHODS


def losses() -> Mapping[str, Callable[..., Any]]:
    "What makes a loss, by name"
    from ..losses import LOSSES
    return LOSSES


def speedups() -> Mapping[str, Callable[..., Any]]:
    "What makes a speedup, by name"
    from ..speedups import load
    return load()


def labelled_speedups() -> list[str]:
    "The speedups that learn from labels"
    from ..speedups.suncet import LabeledTerm
    return [name for name, make in speedups().items() if isinstance(make, type) and issubclass(make, LabeledTerm)]


def labelled_methods() -> list[str]:
    "The methods that take such a speedup along where labels are known"
    return [name for name, recipe in methods().items() if recipe().with_labels]


def settings() -> list[str]:
    "The settings that recipes have constants for"
    from ..recipes import SETTINGS
    return [*dict.fromkeys([*SETTINGS, *(setting for recipe in methods().values() for setting in recipe().settings)])]


def view_kinds() -> Iterable[str]:
    "The kinds of views"
    from ..views import VIEW_KINDS
    return VIEW_KINDS


def precisions() -> Iterable[str]:
    "The number formats"
    from ..precision import PRECISIONS
    return PRECISIONS


def schedules() -> Iterable[str]:
    "The schedules of the learning rate"
    from ..optim import SCHEDULES
    return SCHEDULES


def protocols() -> Iterable[str]:
    "How an encoder is trained with labels"
    from ..evaluate.finetune import PROTOCOLS
    return PROTOCOLS


def libraries() -> Iterable[str]:
    "The libraries that an encoder is exported for"
    from ..export import LIBRARIES
    return LIBRARIES


def logs() -> Iterable[str]:
    "Who can be told of a run"
    from ..logs import LOGS
    return LOGS


def architectures() -> Iterable[str]:
    "timm's"
    import timm
    return timm.list_models()


LISTS: dict[str, Callable[[], Iterable[str]]] = dict(
    methods=methods, losses=losses, speedups=speedups, labelled_speedups=labelled_speedups,
    labelled_methods=labelled_methods, settings=settings, view_kinds=view_kinds, precisions=precisions,
    schedules=schedules, protocols=protocols, libraries=libraries, logs=logs)


def with_names(
    text: str, # with the names of `LISTS` in braces
) -> str:      # with what they list, separated by commas
    "A text with the registered names in their places; other braces stay"
    return re.sub(r'\{([a-z_]+)\}', lambda match: ', '.join(LISTS[match[1]]()), text)
