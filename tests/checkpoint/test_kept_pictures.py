"How pictures are kept is a setting of a run: it does not go on with other values, or with other crops of its pictures"
import numpy as np
import pytest
import torch
from helpers.learners import BARE, small
from helpers.pictures import ARCH
from helpers.refusals import said_briefly

from fastcontrast.checkpoint import Checkpoint
from fastcontrast.data import image_dls
from fastcontrast.learner import contrastive_learner
from fastcontrast.together import settings

ODD, SQUARE = [(40, 30), (28, 40), (32, 32)], [(32, 32)]


def items(sizes, dtype=np.uint16, top=4000):
    return [(np.random.default_rng(i).random(sizes[i % len(sizes)][::-1]) * top).astype(dtype) for i in range(12)]


def learner(sizes=ODD, dtype=np.uint16, top=4000, **kwargs):
    torch.manual_seed(1)
    options = dict(size=16, bs=4, valid=0, workers=0, device='cpu', unlabelled=True)
    learn = contrastive_learner(image_dls(items(sizes, dtype, top), **options | kwargs), ARCH,
                                method=small('moco_v2', 'cifar'), **BARE)
    learn.create_mbar = False
    return learn


def fit(learn, epochs, folder):
    learn.fit_contrastive(epochs, 1e-3, resume=folder, schedule='wsd', cbs=Checkpoint('epoch'))


@pytest.mark.parametrize('change, words', [
    (dict(value_range=(0, 65535)), ['values', '0 to 4095 there', '0 to 65535 here']),
    (dict(top=9000), ['values', '0 to 4095 there', '0 to 16383 here']),
    (dict(store_size=20), ['side', 'here']), (dict(sizes=SQUARE), ['whole', 'True there and None here']),
    (dict(dtype=np.uint8, top=200), ['bits', '16 there and None here'])])
def test_a_run_does_not_go_on_with_others(tmp_path, change, words):
    fit(learner(), 1, tmp_path)
    said_briefly(['differs in its pictures that are kept', *words], fit, learner(**change), 2, tmp_path)


@pytest.mark.parametrize('same', [dict(value_range=(0, 4095)), dict(memory=1e-12)])
def test_it_goes_on_with_the_same(tmp_path, same):
    fit(learner(), 1, tmp_path)
    learn = learner(**same)
    fit(learn, 2, tmp_path)
    assert learn.train_iter == 6


def test_squares_of_bytes_are_as_they_were():
    "Nothing is said of those that are as large as the model sees them, so that earlier runs go on"
    def kept(**kwargs):
        learn = learner(SQUARE, np.uint8, 200, **kwargs)
        learn.n_epoch = 1
        learn.create_opt()
        return {name: value for name, value in settings(learn).items() if 'kept' in name}
    assert kept(size=32) == {} and kept() == {'pictures that are kept, side': '24'}
    assert kept(store_size=30) == {'pictures that are kept, side': '30'}
