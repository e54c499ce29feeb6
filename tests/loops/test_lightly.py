"""Every method against lightly, step by step."""
import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.learners import build, small
from helpers.loops import unit
from helpers.pictures import LR, B, D, K
from helpers.recording import Seen
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, VICRegLoss
from lightly.loss import DINOLoss as LightlyDINOLoss
from lightly.models.modules import NNMemoryBankModule
from lightly.models.utils import update_momentum

from fastcontrast.targets import NearestNeighbours, Queue

close = torch.testing.assert_close
SEED = 7


def both_ways(f, q, k): return (f(q[0], k[1]) + f(q[1], k[0])) / 2


@pytest.mark.parametrize('size', [12, 9])
def test_moco_agrees_with_lightlys_memory_bank(size):
    "lightly drops the end of a batch that does not fit before the bank's end, and starts over"
    seen = Seen(25)
    learn = build(small('moco_v2'), n=5 * B, cbs=[Queue(size), seen])
    theirs = NTXentLoss(0.2, memory_bank_size=(size, D))
    theirs.memory_bank.bank = learn.model.memory['queue']['final'].rows.clone()
    learn.fit(1, LR)
    agree = []
    for (q, k, _), value in zip(seen.steps, learn.diary.losses, strict=True):
        got = theirs(q['views'][0].requires_grad_(), k[0]).item()
        agree.append(got == pytest.approx(value, rel=1e-8))
        if len(agree) == 2:
            keys, bank = unit(torch.cat([k[0] for _, k, _ in seen.steps[:2]])), theirs.memory_bank.bank
            close(bank, keys if size == 12 else keys[:9])
            close(seen.steps[2][2], keys if size == 12 else torch.cat([keys[9:], keys[3:9]]))
    assert agree == ([True] * 5 if size == 12 else [True, True, False, False, False])


def test_the_target_agrees_with_lightlys_update_momentum():
    learn = build(small('moco_v2'), cbs=[Queue(9)])
    theirs, net = copy.deepcopy(learn.model), copy.deepcopy(learn.model)
    for m in (theirs, net): m.memory.clear()
    learn.fit(1, LR)
    for weights in learn.diary.weights[1:]:
        net.load_state_dict(weights, strict=False)
        update_momentum(net, theirs, 0.999)
    for n, p in theirs.named_parameters(): close(learn.ema_target.target.get_parameter(n), p, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('name', ['byol', 'simsiam'])
def test_byol_and_simsiam_agree_with_lightly(name):
    "BYOL's squared distance is 2 + 2 of lightly's negative cosine in each direction, and the directions are summed"
    seen = Seen(25)
    learn = build(small(name, opt='sgd'), cbs=[seen])
    learn.fit(1, LR)
    for (q, k), value in zip(seen.steps, learn.diary.losses, strict=True):
        theirs = both_ways(NegativeCosineSimilarity(), q['views'], k).item()
        assert value == pytest.approx(4 + 4 * theirs if name == 'byol' else theirs, rel=1e-8)


def test_nnclrs_neighbours_are_lightlys():
    targets, memories = Seen(21), Seen(25)
    learn = build(small('nnclr', opt='sgd'), n=5 * B, cbs=[NearestNeighbours(12), targets, memories])
    bank = NNMemoryBankModule((12, D))
    bank.bank = learn.model.memory['neighbours']['final'].rows.clone()
    learn.fit(1, LR)
    for (_, z), (_, found) in zip(targets.steps, memories.steps, strict=True):
        theirs = [bank(z[1]), bank(z[0], update=True)]
        close(found, torch.stack(theirs[::-1]))
        bank.bank = unit(bank.bank)  # lightly keeps what it is given as it is, and takes cosines later


@pytest.mark.parametrize('setting', ['imagenet', 'cifar'], ids=['multi-crop', 'two views'])
@pytest.mark.parametrize('start', [0, 1])
def test_swav_agrees_with_lightly(setting, start):
    seen = Seen(29)
    learn = build(small('swav', setting, opt='adamw', opt_args={}), cbs=[Queue(15, start), seen])
    learn.fit(2, 0.01)
    for (q, k, *queue), value in zip(seen.steps, learn.diary.losses, strict=True):
        theirs = SwaVLoss()([*k], [*q.get('local', [])], [queue[0]] * 2 if queue else None).item()
        assert value == pytest.approx(theirs, rel=1e-8)
    assert [len(s) - 2 for s in seen.steps] == ([0] * 3 + [1] * 3 if start else [1] * 6)


def test_barlow_twins_agrees_with_lightly():
    seen = Seen(25)
    learn = build(small('barlow_twins', opt='sgd'), cbs=[seen])
    learn.fit(1, LR)
    for (q, _), value in zip(seen.steps, learn.diary.losses, strict=True):
        assert value == pytest.approx(0.024 * BarlowTwinsLoss(lambda_param=5.1e-3)(*q['views']).item(), rel=1e-8)


def test_vicreg_has_twice_the_variance_term_of_lightly():
    seen = Seen(25)
    learn = build(small('vicreg', opt='sgd'), cbs=[seen])
    learn.fit(1, LR)
    for (q, _), value in zip(seen.steps, learn.diary.losses, strict=True):
        z = q['views']
        hinges = F.relu(1 - (z.var(1) + 1e-4).sqrt()).mean(1).sum().item()
        assert hinges > 0.05
        assert value == pytest.approx(VICRegLoss()(*z).item() + 25 / 2 * hinges, rel=1e-8)


@pytest.mark.parametrize('setting', ['imagenet', 'cifar'], ids=['multi-crop', 'two views'])
def test_dino_agrees_with_lightly(setting):
    seen = Seen(29)
    learn = build(small('dino', setting), cbs=[seen])
    theirs = LightlyDINOLoss(K, teacher_temp=0.07).double()
    learn.fit(1, 0.001)
    for (q, k), value in zip(seen.steps, learn.diary.losses, strict=True):
        got = theirs([*k], [*q['views'], *q.get('local', [])], teacher_temp=0.04).item()
        assert value == pytest.approx(got, rel=1e-6)  # its temperature is a float32
    close(learn.model.memory['losses']['final'].center, theirs.center.flatten())
