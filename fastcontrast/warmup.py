"""The head learns alone at first, so that what it says at random does not ruin the weights of a good encoder.

Docs: https://fastcontrast.github.io/fastcontrast/weights.html.md"""
from typing import Any

from fastai.imports import noop

from .core import InputError, whole
from .models import ContrastiveModel
from .step import Phase, StepCallback

__all__ = ['HeadWarmup']


class HeadWarmup(StepCallback):
    """The encoder stands still in the first epochs of a learner's first fit, while heads learn; those of stages too

    It is in evaluation mode, so that its features are those it came with and its BatchNorm keeps its statistics; no
    gradient passes through it, so that a step costs its forward pass and the heads. So it is in a target that is a
    moving average. The schedules of learning rate and weight decay go on as without it. Once the encoder has learned,
    also in a run that was taken up, it does not stand still again; a fit that ended before that is no first one."""
    phase, exclusive = Phase.INPUT, 'the first epochs of the heads'
    def __init__(self,
        epochs: int | None = None, # of a fit, from its beginning; None: one, where the fit has more than one
    ):
        whole(self, least=0, optional=True, epochs=epochs)
        self.epochs, self.held = epochs, []
        self.over = False # whether the encoder has learned, so that it does not stand still any more

    def __repr__(self): return f"HeadWarmup({'' if self.epochs is None else self.epochs})"

    @property
    def last(self) -> int:
        "The number of epochs in this fit"
        return min(1, self.n_epoch - 1) if self.epochs is None else self.epochs

    def attached(self):
        self.over = False
        self.undo(self.release)

    def check_length(self):
        "Raise `InputError` for a fit without an epoch in which the encoder learns"
        if self.last < self.n_epoch: return
        raise InputError(f"head_epochs={self.epochs} leaves none of {self.n_epoch} epochs to the encoder: give fewer, "
                         "or train for more.")

    def before_fit(self):
        self.release()  # of a fit that could not clean up
        if self.over or self.learn.goes_on: return  # what the checkpoint says of it is known at the first step
        self.check_length()
        if not self.last or self.learn.logger is noop: return
        first = 'epoch' if self.last == 1 else f'{self.last} epochs'
        print(f"the encoder stands still in the first {first}, while the head learns", flush=True)

    def before_train(self): self.release()  # of an epoch that was broken off, after which nobody was called

    def before_batch(self):
        if self.held: return
        self.over = self.over or self.epoch >= self.last
        if self.over: return
        self.check_length()
        self.hold()

    def hold(self):
        "Have the encoder stand still"
        for net in self.model.modules():
            if isinstance(net, ContrastiveModel): net.encoder.eval()
        self.held = [p for p in self.model.encoder.parameters() if p.requires_grad]
        for p in self.held:
            p.requires_grad_(False)
            p.grad = None  # one of zeros would let weight decay and momentum move it

    def release(self):
        "Have it learn again; its mode is set when an epoch begins"
        for p in self.held: p.requires_grad_()
        self.held = []

    def state_dict(self) -> dict[str, Any]: return dict(over=self.over)
    def load_state_dict(self, state: dict[str, Any]): self.over = bool(state['over'])

    def after_train(self): self.release()
    after_cancel_train = after_cancel_fit = after_fit = after_train
