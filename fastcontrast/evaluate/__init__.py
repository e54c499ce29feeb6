"""Judging features. A metric is a function of features, or of features and labels, that gives a number; those that are
registered here can be columns of the epoch table, whichever module they stand in."""
import inspect
from collections.abc import Callable
from functools import partial

from ..core import InputError, Registry, import_all

METRICS = Registry('metric')
LABELLED, UNLABELLED = ('train_h', 'train_y', 'test_h', 'test_y'), ('h',)  # the parameters that a metric may have


def needs_labels(
    metric: Callable[..., float], # of `(train_h, train_y, test_h, test_y)` or of `(h)`; more parameters need a default
) -> bool:
    "Whether a metric takes labels. Raises `InputError` for a function of other parameters"
    try: parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError): parameters = ()  # no function, or a built-in one that does not tell
    required = [p for p in parameters if p.default is p.empty]
    by_name = all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in required)
    for names in (LABELLED, UNLABELLED):
        if by_name and {p.name for p in required} == set(names): return names == LABELLED
    raise InputError(f"the metric '{metric_name(metric)}' has the parameters "
                     f"({', '.join(map(str, parameters))}): a metric is a function of ({', '.join(LABELLED)}), "
                     "or of (h) if it needs no labels, and all others of its parameters have a default.")


def metric_name(
    metric: Callable[..., float],
) -> str:
    "What its column and messages call it: a `partial` goes by the name of its function, an object by that of its class"
    function = metric.func if isinstance(metric, partial) else metric
    return getattr(function, '__name__', type(function).__name__)


def metric(
    function: Callable[..., float], # of `(train_h, train_y, test_h, test_y)` or of `(h)`, see `Features`
) -> Callable[..., float]:          # the same function
    "A decorator: registers a function under its own name as a column that the epoch table can have"
    needs_labels(function)
    return METRICS.register(function.__name__)(function)


def load() -> Registry:
    "`METRICS`, after importing every module of this package: a new file needs no line elsewhere"
    import_all(__name__)
    return METRICS


def find_metric(
    metric: str | Callable[..., float], # a name in `METRICS`, or any function of the parameters of a metric
) -> Callable[..., float]:
    "The function that a user asks for. Raises `InputError` for an unknown name and for a function of other parameters"
    function = metric if callable(metric) else load().find(metric)
    needs_labels(function)
    return function
