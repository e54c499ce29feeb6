"""Every method learns something in two epochs on the digits (BYOL in four), and none collapses."""
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback

from fastcontrast.data import image_dls
from fastcontrast.precision import has_bf16
from fastcontrast.evaluate.linear import few_label_accuracy
from fastcontrast.learner import contrastive_learner
from fastcontrast.recipes import METHODS


@pytest.fixture(scope='module')
def dls(): return image_dls('digits', size=24, bs=64)


def few_labels(learn) -> float:
    return few_label_accuracy(*learn.embed(learn.dls.train), *learn.embed(learn.dls.valid))[0]


@pytest.fixture(scope='module')
def untrained(dls) -> float:
    torch.manual_seed(0)
    return few_labels(contrastive_learner(dls, 'resnet10t'))


class Projections(Callback):
    "The last step's projections of a role that asks"
    def after_pred(self):
        role = next(role for role in self.learn.step.queries if 'final' in self.pred.get(role, ()))
        self.z = self.pred[role]['final'].z.detach().float()

    def spread(self) -> float:
        "1 / sqrt(dim) where they use all directions alike, and 0 where they have collapsed"
        return F.normalize(self.z, dim=-1).std(dim=-2).mean().item()


# those that take long, and are like another here
LONG = ('barlow_twins', 'byol', 'fast_moco', 'moco_v1', 'moco_v2', 'moco_v3', 'nnclr', 'simsiam', 'vicreg')


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in METHODS])
def test_few_epochs_teach_something(dls, untrained, name):
    torch.manual_seed(0)
    dls.train.epoch = 0  # the same order of pictures for all
    learn = contrastive_learner(dls, 'resnet10t', method=name, knn_pictures=0)
    # which is the slowest at first
    projections = Projections()
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(4 if name == 'byol' else 2, cbs=projections)
    accuracy, dim = few_labels(learn), learn.recipe.projector[-1]
    assert accuracy > untrained + 0.01, (accuracy, untrained)
    assert projections.spread() > 0.05 / dim ** 0.5


@pytest.mark.slow
@pytest.mark.skipif(not has_bf16('cpu'), reason="this CPU has no instructions for bfloat16")
def test_bfloat16_ends_where_float32_does(dls):
    "Within a point of each other after 25 epochs of SimCLR, over three seeds: kNN, and ten labels a class"
    ends = {}
    for precision in ('fp32', 'bf16'):
        rows = []
        for seed in range(3):
            torch.manual_seed(seed)
            dls.train.epoch = 0
            learn = contrastive_learner(dls, 'resnet10t', knn_pictures=0, precision=precision)
            with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(25)
            rows.append((learn.knn(), few_labels(learn)))
        ends[precision] = [sum(column) / len(rows) for column in zip(*rows)]
    assert ends['bf16'] == pytest.approx(ends['fp32'], abs=0.01), ends
