"""Several processes train as one: they begin alike, read parts of one batch, and use the mean of their gradients."""
import hashlib
import os
from textwrap import shorten
from typing import Any

import torch
from fastai.torch_core import set_seed
from timm.layers import convert_sync_batchnorm

from .core import InputError
from .distributed import MeanGradients, broadcast_, gather_objects, rank
from .step import Phase, StepCallback


class Together(StepCallback):
    "All processes train as one: they begin alike, and use the mean of their gradients"
    phase = Phase.PROCESSES  # the model is on its device; what unscales, clips or freezes gradients comes later
    gradients: MeanGradients | None = None

    def settings(self) -> dict[str, Any]:
        "What has to be the same in all processes, by name"
        train, state = self.dls.train, self.model.state_dict()
        names = '\n'.join(map(str, (*train.data.names, train.data.labeled.nonzero().tolist())))
        pictures = hashlib.sha256(names.encode()).hexdigest()[:16]
        recipe = {f'{name} of the recipe': value for name, value in vars(self.recipe).items()
                  if isinstance(value, str | int | float | None)}
        reporting = int(Phase.TABLE) + 1  # what comes later only reports
        return recipe | {
            'loss': repr(self.loss_func.loss),
            'callbacks': [repr(cb) for cb in self.learn.cbs if cb.order < reporting],
            'metrics': [metric.name for metric in self.learn.metrics],
            'epochs': self.n_epoch,
            'learning rate': self.opt.hypers[-1]['lr'],
            'batch size': train.bs,
            'seed of the data': train.seed,
            'size': self.dls.size,
            'pictures to train on': f'{len(train.data)} ({pictures})',
            'model': {name: (*t.shape, t.dtype, t.stride()) for name, t in state.items()},
            'draws': {name: int(t) for name, t in state.items() if name.endswith('_extra_state')},
        }

    def before_fit(self):
        self.after_fit()  # of a fit that ended before it began
        (first, seed), *others = gather_objects((self.settings(), torch.randint(2**31, ()).item()))
        for process, (settings, _) in enumerate(others, 1):
            for name, value in first.items():
                if value == settings.get(name): continue
                raise InputError(f"the processes do not have the same {name}: {_difference(value, settings.get(name))} "
                                 f"in process {process}: start all with the same settings.")
        set_seed(seed + rank())
        if torch.device(self.dls.device).type == 'cuda': convert_sync_batchnorm(self.model)
        broadcast_([*self.model.parameters(), *self.model.buffers()])
        self.gradients = MeanGradients(self.model.parameters())
        self.parent = os.getppid()

    def before_batch(self):
        if os.getppid() == self.parent: return
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
    def after_fit(self):
        if self.gradients: self.gradients.remove()
        self.gradients = None


def _difference(first: Any, other: Any) -> str:
    "Where the values of a setting in two processes differ, in words"
    both = (first, other), (other, first)
    if isinstance(first, dict) and isinstance(other, dict):
        first, other = ({n: v for n, v in x.items() if y.get(n) != v} for x, y in both)
    if isinstance(first, list) and isinstance(other, list):
        first, other = ([v for v in x if v not in y] for x, y in both)
    return f"{shorten(str(first), 100)} in process 0 and {shorten(str(other), 100)}"
