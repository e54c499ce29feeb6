"""The head learns alone at first, so that what it says at random does not ruin the weights of a good encoder.

Docs: https://fastcontrast.github.io/fastcontrast/weights.html.md"""
from fastai.imports import noop

from .core import InputError, whole
from .models import ContrastiveModel
from .step import Phase, StepCallback

__all__ = ['HeadWarmup']


class HeadWarmup(StepCallback):
    """The encoder stands still in the first epochs of a fit, while heads learn; those of stages too

    It is in evaluation mode, so that its features are those it came with and its BatchNorm keeps its statistics; no
    gradient passes through it, so that a step costs its forward pass and the heads. So it is in a target that is a
    moving average. Which epochs these are depends on their number alone, and the schedules of learning rate and weight
    decay go on as without it."""
    phase, exclusive = Phase.INPUT, 'the first epochs of the heads'
    def __init__(self,
        epochs: int | None = None, # of a fit, from its beginning; None: one, where the fit has more than one
    ):
        whole(self, least=0, optional=True, epochs=epochs)
        self.epochs, self.held = epochs, []

    def __repr__(self): return f"HeadWarmup({'' if self.epochs is None else self.epochs})"

    @property
    def last(self) -> int:
        "The number of epochs in this fit"
        return min(1, self.n_epoch - 1) if self.epochs is None else self.epochs

    def attached(self): self.undo(self.release)

    def before_fit(self):
        self.release()  # of a fit that could not clean up
        if self.last >= self.n_epoch:
            raise InputError(f"head_epochs={self.epochs} leaves none of {self.n_epoch} epochs to the encoder: give "
                             "fewer, or train for more.")
        if not self.last or self.learn.goes_on or self.learn.logger is noop: return
        first = 'epoch' if self.last == 1 else f'{self.last} epochs'
        print(f"the encoder stands still in the first {first}, while the head learns", flush=True)

    def before_train(self):
        self.release()  # of an epoch that was broken off, after which nobody was called
        if self.epoch < self.last: self.hold()

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

    def after_train(self): self.release()
    after_cancel_train = after_cancel_fit = after_fit = after_train
