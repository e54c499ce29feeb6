"""What there is to choose from, as the command line reads it: no other file of this package knows where a registry is.

The registries import torch, so that each is imported when it is read."""
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

REGISTRIES = dict( # the module and the name of each
    methods=('recipes', 'METHODS'), losses=('losses', 'LOSSES'), view_kinds=('views', 'VIEW_KINDS'),
    precisions=('precision', 'PRECISIONS'), schedules=('optim', 'SCHEDULES'),
    protocols=('evaluate.finetune', 'PROTOCOLS'), libraries=('export', 'LIBRARIES'), logs=('logs', 'LOGS'))


def registry(
    name: str, # in `REGISTRIES`
) -> Any:      # a `Registry`, or names alone
    "What there is of a kind"
    module, attribute = REGISTRIES[name]
    return getattr(import_module(f'fastcontrast.{module}'), attribute)


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
    return [name for name, recipe in registry('methods').items() if recipe().with_labels]


def settings() -> list[str]:
    "The settings that recipes have constants for"
    from ..recipes import SETTINGS
    own = (setting for recipe in registry('methods').values() for setting in recipe().settings)
    return [*dict.fromkeys([*SETTINGS, *own])]


def architectures() -> Iterable[str]:
    "timm's"
    import timm
    return timm.list_models()


LISTS: dict[str, Callable[[], Iterable[str]]] = dict(
    {name: partial(registry, name) for name in REGISTRIES}, speedups=speedups, labelled_speedups=labelled_speedups,
    labelled_methods=labelled_methods, settings=settings)


def with_names(
    text: str, # with the names of `LISTS` in braces
) -> str:      # with what they list, separated by commas
    "A text with the registered names in their places; other braces stay"
    return re.sub(r'\{([a-z_]+)\}', lambda match: ', '.join(LISTS[match[1]]()), text)
