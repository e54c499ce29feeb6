"""What watches over a run, keeps its gradients in bounds, tells how it goes, and ends it in good order."""
import sys

import torch
from fastai.callback.core import Callback
from fastai.imports import noop
from fastai.learner import AvgSmoothLoss
from fastprogress.fastprogress import IN_NOTEBOOK

from .core import InputError, number
from .step import Phase, StepCallback


class FiniteLoss(StepCallback):
    "Ends the run with advice when the loss is not a finite number"
    phase = Phase.GUARDS
    every = 50 # steps between looks, and one at the end of an epoch, where a look makes the host wait for the device

    def after_loss(self):
        if self.loss.device.type != 'cpu' and (self.iter + 1) % self.every and self.iter + 1 < self.n_iter: return
        if torch.isfinite(self.loss): return
        lr = max(h['lr'] for h in self.opt.hypers)
        self.stop(InputError(f"the loss is {self.loss.item()} in epoch {self.epoch}, step {self.iter}: try a lower lr "
                             f"(it was {lr:.3g}), a longer warm-up, a higher temperature, or GradientClip among cbs."))


class ClipEach(StepCallback):
    "Scales the gradient of every parameter down to a norm of at most `max_norm`, each by itself (DINO)"
    phase = Phase.GRADIENTS

    def __init__(self,
        max_norm: float, # above 0
    ):
        number(self, above=0, max_norm=max_norm)
        self.max_norm = max_norm

    def before_step(self):
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        shares = torch._foreach_add(torch._foreach_norm(grads), 1e-6)
        torch._foreach_reciprocal_(shares)
        torch._foreach_mul_(shares, self.max_norm)
        torch._foreach_clamp_max_(shares, 1.)
        torch._foreach_mul_(grads, shares)


class EpochLines(Callback):
    "One line an epoch, in columns, in place of a progress bar"
    order = Phase.LAST - 1

    def before_fit(self):
        self.old_logger = self.learn.logger
        if self.old_logger is noop: return
        self.learn.logger = self._write
        self._write(self.recorder.metric_names)

    def _write(self, row):
        print('  '.join(f'{v:10.4f}' if isinstance(v, float) else f'{v!s:>10}' for v in row), flush=True)

    def after_fit(self): self.learn.logger = self.old_logger


def shows_bar() -> bool:
    "Whether a progress bar can be drawn: in a notebook that fastprogress knows, or on a terminal"
    return IN_NOTEBOOK or sys.stdout.isatty()


class DeviceLoss(AvgSmoothLoss):
    "fastai's smoothed loss, kept on the device: reading it there in every step would make the host wait"
    def reset(self): self.count, self.val = 0, None
    def accumulate(self, learn):
        loss = learn.loss.detach().float()
        self.count += 1
        self.val = torch.lerp(loss, torch.zeros_like(loss) if self.val is None else self.val, self.beta)
