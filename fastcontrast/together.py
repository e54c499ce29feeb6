"""Several processes train as one: they begin alike, read parts of one batch, and use the mean of their gradients."""
import hashlib
import re
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .core import InputError
from .distributed import MeanGradients, broadcast_, gather_objects, launcher_ended
from .step import Phase, StepCallback


def settings(
    learn, # a `ContrastiveLearner` that is about to train
) -> dict[str, Any]:
    "What makes a run the one it is, by name: the same in all processes, and when it is taken up again"
    train, state = learn.dls.train, learn.model.state_dict()
    recipe = {f'{name} of the recipe': value for name, value in vars(learn.recipe).items()
              if isinstance(value, str | int | float | None)}
    recipe['opt_args of the recipe'] = told(learn.recipe.opt_args)
    recipe['frozen of the recipe'] = list(learn.recipe.frozen)
    reporting = int(Phase.TABLE) + 1  # what comes later only reports
    return recipe | {
        'architecture': learn.arch,
        'first weights': learn.first_weights,
        'loss': repr(learn.loss_func.loss),
        'views': repr(learn.views),
        'callbacks': [repr(cb) for cb in learn.cbs if cb.order < reporting],
        'metrics': [metric.name for metric in learn.metrics],
        'epochs': learn.n_epoch,
        'batch size': train.bs,  # before what follows from it, so that a message names the cause
        'learning rate': learn.opt.hypers[-1]['lr'],
        **pictures(learn.dls),  # before what follows from them
        **_normalisation(learn),
        'model': {name: (*t.shape, t.dtype, t.stride()) for name, t in state.items()},
        'draws': {name: t.tolist() for name, t in state.items() if name.endswith('_extra_state')},
    }


def _normalisation(learn) -> dict[str, Any]:
    "Mean and standard deviation, where they may have been worked out of the pictures"
    if learn.model.in_chans == 3: return {}
    return {'mean of the channels': list(learn.mean), 'standard deviation of the channels': list(learn.std)}


def told(
    arguments: Mapping[str, Any], # by name
) -> str:
    "Arguments in words that are the same in every process, where a function has another address"
    return re.sub(' at 0x[0-9a-f]+', '', repr(sorted(arguments.items())))


def pictures(
    dls, # `ImageLoaders`
) -> dict[str, Any]:
    "What tells the pictures that are trained on from others, by name"
    train = dls.train
    names = '\n'.join(map(str, (*train.data.names, train.data.labeled.nonzero().tolist())))
    digest = hashlib.sha256(names.encode(errors='surrogateescape')).hexdigest()[:16]
    return {'seed of the data': train.seed, 'size': dls.size,
            'pictures to train on': f'{len(train.data)} ({digest})', **_kept(dls)}


def _kept(dls) -> dict[str, Any]:
    "How pictures are kept, where that is unusual: other crops and other values are seen of others"
    form = dls.train.form
    if form is None: return {}
    unusual = form.described()
    if form.whole or form.side != dls.size: unusual['side'] = str(form.side)
    return {f'pictures that are kept, {name}': value for name, value in unusual.items()}


def synchronise(
    model: nn.Module, # changed in place
) -> None:
    "BatchNorm of all processes. What is such already stays: timm's would lose its activation in a second conversion"
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
                setattr(parent, name, convert_sync_batchnorm(module))


class Together(StepCallback):
    "All processes train as one: they begin alike, and use the mean of their gradients"
    phase = Phase.PROCESSES  # the model is on its device; what unscales, clips or freezes gradients comes later
    gradients: MeanGradients | None = None

    def before_fit(self):
        self.after_fit()  # of a fit that ended before it began
        first, *others = gather_objects(settings(self.learn))
        for process, own in enumerate(others, 1):
            for name, value in first.items():
                if value == own.get(name): continue
                values = difference(value, own.get(name), 'in process 0', f'in process {process}')
                raise InputError(f"the processes do not have the same {name}: {values}: start all with the same "
                                 "settings.")
        if torch.device(self.dls.device).type == 'cuda': synchronise(self.model)
        broadcast_([*self.model.parameters(), *self.model.buffers()])
        self.gradients = MeanGradients(self.model.parameters())

    def before_batch(self):
        if not launcher_ended(): return
        self.stop(InputError("the program that launched this process has ended, and with it the training."))

    @property
    def in_one_piece(self) -> bool:
        "Whether the batch is not run in parts"
        return self.learn.plan.chunks == 1

    def before_backward(self): self.gradients.begin(early=self.in_one_piece)
    def after_backward(self):
        if self.in_one_piece: self.gradients.finish()
    def before_step(self):
        if self.gradients.new: self.gradients.finish()  # parts had backward passes since, or a callback one of its own

    def after_train(self): broadcast_(self.model.buffers())  # statistics of BatchNorm that are not synchronised

    def after_epoch(self):  # of pictures that are decoded for every batch each has met others that can't be
        known = [loader.data.failed for loader in self.dls.loaders]
        for everyone in gather_objects(known):
            for own, others in zip(known, everyone): own.update(others)

    def after_fit(self):
        if self.gradients: self.gradients.remove()
        self.gradients = None


def difference(
    first: Any, # the value of a setting…
    other: Any, # …and another one
    here: str,  # what to say of the first
    there: str, # and of the other
) -> str:
    "Where two values of a setting differ, in words"
    both = (first, other), (other, first)
    if isinstance(first, dict) and isinstance(other, dict):
        first, other = ({n: v for n, v in x.items() if y.get(n) != v} for x, y in both)
    if isinstance(first, list) and isinstance(other, list):
        first, other = ([v for v in x if v not in y] for x, y in both)
    return f"{shorten(str(first), 100)} {here} and {shorten(str(other), 100)} {there}"
