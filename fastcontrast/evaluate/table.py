"""The epoch table's columns that tell what the features are good for, from one embedding of the pictures an epoch."""
from collections.abc import Callable, Sequence
from functools import partial

import torch
from fastai.imports import noop
from fastai.learner import ValueMetric
from fastcore.foundation import L
from torch import Tensor

from ..core import InputError, whole
from ..distributed import gather_objects, rank, world_size
from ..step import Phase, StepCallback
from . import find_metric, metric_name, needs_labels
from .metrics import Features


USUAL = ('knn', 'spread', 'rankme') # the columns where nobody asks for others


class EpochTable(StepCallback):
    "Embeds pictures once an epoch, and has metrics say what they think of the features"
    phase = Phase.TABLE

    def __init__(self,
        dls,                                 # from `image_dls`
        metrics: Sequence[str | Callable] | None = None, # names in `METRICS`, or functions like those; None: `USUAL`
        n: int = 5000,                       # pictures of each part at most, drawn once; 0: no columns
    ):
        whole(least=0, knn_pictures=n)
        found = [find_metric(metric) for metric in (USUAL if metrics is None else L(metrics))]
        _check_names([metric_name(metric) for metric in found])
        self.metrics = found if n else []
        bank, valid = (dl.ordered(n) for dl in (dls.bank, dls.valid))
        if not judgeable(bank.labels(), valid.labels()):
            self.metrics = [metric for metric in self.metrics if not needs_labels(metric)]
        asked = {needs_labels(metric) for metric in self.metrics}
        self.parts = [bank, valid] if True in asked else []
        # where others judge by themselves, metrics without labels still look at the training pictures
        self.apart = False in asked and not (self.parts and dls.bank is dls.train)
        if self.apart: self.parts = [*self.parts, dls.train.ordered(n)]
        self.values: dict[str, float] = {}

    def columns(self) -> list[ValueMetric]:
        "For `learn.metrics`"
        names = map(metric_name, self.metrics)
        return [ValueMetric(partial(self.value_of, name), name) for name in names]

    def value_of(self, name: str) -> float | None:
        "What a metric said last; None: nothing yet"
        return self.values.get(name)

    def before_fit(self):
        self.share_out()
        if self.learn.given and not self.learn.goes_on: self.tell_start()

    def share_out(self):
        "Each process embeds its share, where pictures can be chosen; else all of them"
        self.divided = world_size() > 1 and all(dl.selects for dl in self.parts)
        def share(dl): return dl.only(dl.indices.tensor_split(world_size())[rank()], dl.bs)
        self.shares = [share(dl) if self.divided else dl for dl in self.parts]

    def tell_start(self):
        "Say what the weights are worth that training begins with, so that harm is seen"
        self.after_train()
        values = '  '.join(f'{name} {value:.3f}' for name, value in self.values.items())
        if values and self.learn.logger is not noop: print(f"before training: {values}", flush=True)

    def embedded(self, share) -> tuple[Tensor, Tensor]:
        "Features and labels of a part of which this process has a share"
        if not self.divided: return self.learn.embed(share)
        everyone = gather_objects(self.learn.embed(share) if len(share) else None)
        return tuple(torch.cat(t) for t in zip(*[x for x in everyone if x is not None]))

    def measured(self) -> dict[str, float]:
        "What the metrics say of the encoder as it is, by their names; all processes have to ask"
        self.share_out()
        return self.judged()

    def judged(self) -> dict[str, float]:
        "The same, of the shares that there are"
        if not self.shares: return {}
        judged = [self.embedded(share) for share in self.shares]
        h = judged.pop()[0] if self.apart else None
        features = Features(h) if not judged else Features(*(t for pair in judged for t in pair), h=h)
        return {metric_name(metric): features.compute(metric) for metric in self.metrics}

    def after_train(self):
        try: self.values = self.judged() or self.values
        except InputError as e: self.stop(e)  # features that are not numbers any more


def _check_names(names: Sequence[str]) -> None:
    "Raise `InputError` for two columns of a name"
    there = ['epoch', 'train_loss', 'time']
    for name in names:
        if name in there:
            raise InputError(f"the epoch table would have two columns '{name}': leave one out of metrics, or give its "
                             "function another __name__.")
        there.append(name)


def judgeable(
    train_y: Tensor, # labels `[N]` of the training part; -1: unknown
    valid_y: Tensor, # labels `[M]` of the validation part
) -> bool:
    "Whether pictures with these labels can tell how good features are"
    return bool((train_y.unique() >= 0).sum() > 1 and (valid_y >= 0).any())
