"What a run notes, beside its file (which the program's tests read)"
import matplotlib.pyplot as plt
import pytest
import torch
from fastai.callback.core import Callback
from helpers.learners import real_learner
from helpers.stripes import encoder_for, loaders

from fastcontrast.evaluate.finetune import classifier_learner
from fastcontrast.history import TrainRecorder


class Noted(Callback):
    "The smoothed loss of every step, as it was then"
    order = TrainRecorder.order + 1
    def before_fit(self): self.losses = []
    def after_batch(self):
        if self.training: self.losses.append(self.learn.smooth_loss.item())


def fine_tuning(): return classifier_learner(encoder_for(loaders()), loaders(), 'all', epochs=3, bs=12)


@pytest.mark.parametrize('make', (real_learner, fine_tuning))
def test_losses_of_an_epoch_are_one_piece_of_memory(make):
    learn, noted = make(), Noted()
    with learn.no_logging(), learn.no_bar(): learn.fit(2, 1e-3, cbs=noted)
    losses = learn.recorder.losses
    assert torch.stack(losses).tolist() == noted.losses and len(losses) == 2 * len(learn.dls.train) > 2
    assert len({loss.untyped_storage().data_ptr() for loss in losses}) == 2
    drawn = learn.recorder.plot_loss(skip_start=0, ax=plt.subplots()[1]).lines[0]
    assert drawn.get_ydata().tolist() == noted.losses
