"""Fits that end badly."""
import copy
import math

import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from helpers.learners import plain_learner, tiny_model
from helpers.loops import paper_step, same_grads
from helpers.pictures import LR, KnownViews, plain_batches
from helpers.recording import After, Diary, interrupt, step_is_over
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.guards import FiniteLoss
from fastcontrast.losses import InfoNCE, NTXent
from fastcontrast.pairs import PairLoss
from fastcontrast.step import OTHER, Step
from fastcontrast.targets import EMATarget, SharedTarget


@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(5)


class TurnsNaN(nn.Module):
    "NT-Xent, until it is something else from step k on"
    symmetric = True
    def __init__(self, k: int, value: float = math.nan):
        super().__init__()
        self.calls, self.k, self.value = 0, k, value
    def forward(self, q, k):
        self.calls += 1
        return NTXent(0.5)(q, k) * (1 if self.calls <= self.k else self.value)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_fit_before_it_reaches_the_weights(value):
    learn = plain_learner(tiny_model(predictor=False), TurnsNaN(4, value), SharedTarget(), FiniteLoss(), Diary(),
                          batches=plain_batches(3))
    extra = After('before_fit', -1, lambda: None)
    with pytest.raises(InputError) as e: learn.fit(3, 0.0125, cbs=extra)
    text = str(e.value)
    assert '\n' not in text and 'epoch 1, step 1' in text and '0.0125' in text and str(value) in text
    assert len(learn.diary.weights) == 5
    for n, w in learn.diary.weights[-1].items():
        if 'running' not in n: assert torch.equal(w, learn.model.state_dict()[n]) and w.isfinite().all()
    assert extra not in learn.cbs and step_is_over(learn)
    learn.loss_func = PairLoss(NTXent(0.5))
    learn.fit(1, LR)  # and it can go on
    assert len(learn.diary.losses) == 3 and all(map(math.isfinite, learn.diary.losses))


def test_the_fit_stops_with_fastais_own_learner_too():
    learn = plain_learner(tiny_model(predictor=False), TurnsNaN(1), SharedTarget(), FiniteLoss(), cls=Learner)
    with pytest.raises(InputError, match='the loss is nan'): learn.fit(1, LR)


@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_backward', 'after_step', 'after_batch'])
def test_ctrl_c_ends_a_fit_in_good_order(event):
    ended = []
    class Ends(Callback):
        def after_fit(self): ended.append(True)
    learn = plain_learner(tiny_model(), InfoNCE(0.2), EMATarget(0.6), FiniteLoss(), Diary(), Ends(),
                          batches=plain_batches(4))
    extra = After(event, 2, interrupt)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, LR, cbs=extra)
    assert ended == [True] and extra not in learn.cbs and step_is_over(learn)
    assert len(learn.diary.weights) == 3
    before = {n: t.clone() for n, t in learn.model.state_dict().items()}
    assert all(t.isfinite().all() for t in before.values())
    learn.fit(1, LR)
    assert len(learn.diary.losses) == 4 and learn.stopped is None
    assert not torch.equal(before['encoder.0.weight'], learn.model.encoder[0].weight)


def test_ctrl_c_leaves_no_gradient_for_the_next_fit():
    batches = plain_batches(2)
    learn = plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget(), Diary(), batches=batches)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, LR, cbs=After('after_backward', 1, interrupt))
    twin = copy.deepcopy(learn.model)
    twin.zero_grad()
    learn.fit(1, LR)
    e = twin({'views': KnownViews()(batches[0][0])['views']})
    step = Step(keys={'final': e['views']['final'].z}, queries={'views': OTHER})
    paper_step(twin, PairLoss(InfoNCE(0.2))(e, step))
    same_grads(learn.diary.grads[0], twin)
