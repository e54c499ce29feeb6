"What a run notes of its steps; history.csv is read by the tests of the program"
import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException, CancelTrainException
from helpers.learners import real_learner
from helpers.stripes import encoder_for, loaders
from matplotlib.figure import Figure

from fastcontrast.evaluate.finetune import classifier_learner
from fastcontrast.history import DeviceRecorder, TrainRecorder


class Noted(Callback):
    "The smoothed loss of every step, as it was then"
    order = TrainRecorder.order + 1
    def before_fit(self): self.losses = []
    def after_batch(self):
        if self.training: self.losses.append(self.learn.smooth_loss.item())


def fine_tuning(): return classifier_learner(encoder_for(loaders()), loaders(), 'all', epochs=3, bs=12)


def pieces(losses): return len({loss.untyped_storage().data_ptr() for loss in losses})


@pytest.mark.parametrize('make', (real_learner, fine_tuning))
@pytest.mark.parametrize('every', (2, 100))
def test_losses_are_a_few_pieces_of_memory(make, every, monkeypatch):
    monkeypatch.setattr(DeviceRecorder, 'every', every)
    learn, noted = make(), Noted()
    with learn.no_logging(), learn.no_bar(): learn.fit(2, 1e-3, cbs=noted)
    losses, steps = learn.recorder.losses, len(learn.dls.train)
    assert torch.stack(losses).tolist() == noted.losses and len(losses) == 2 * steps > 2
    assert pieces(losses) == 2 * -(-steps // every)
    drawn = learn.recorder.plot_loss(skip_start=0, ax=Figure().subplots()).lines
    assert drawn[0].get_ydata().tolist() == noted.losses and len(drawn) == (1 if make is real_learner else 2)


@pytest.mark.parametrize('event, end, steps', (('before_train', CancelTrainException, 0),
                                               ('after_batch', CancelEpochException, 1)))
@pytest.mark.parametrize('make', (real_learner, fine_tuning))
def test_an_epoch_that_is_broken_off(make, event, end, steps):
    class Ends(Callback):
        order = TrainRecorder.order + (1 if steps else -1)
        def __init__(self): setattr(self, event, self.finish)
        def finish(self):
            if self.epoch == 0: raise end
    learn = make()
    with learn.no_logging(), learn.no_bar(): learn.fit(2, 1e-3, cbs=Ends())
    losses = learn.recorder.losses
    assert len(losses) == steps + len(learn.dls.train) and pieces(losses) == 1
