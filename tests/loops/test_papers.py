"""Every method against its paper's loop, step by step: losses, gradients, weights, what is followed and remembered."""
import copy
import math
from functools import partial

import pytest
import timm
import torch
from fastai.callback.core import Callback
from helpers.learners import build, plain_learner, real_learner, small, tiny_model
from helpers.loops import (
    Loop, PlainAdamW, cosine_momentum, descend, follow, moco_v3_loop, paper_ctr, paper_nt_xent, paper_step, parity,
    same_gradients, simclr_loop)
from helpers.pictures import LR, SIDE, B, Halves, K, plain_batches
from helpers.recording import Diary, Seen
from helpers.pairs import paired
from lightly.loss import NTXentLoss

from fastcontrast.guards import FiniteLoss
from fastcontrast.losses import DCL, DCLW, DINOLoss
from fastcontrast.recipes import RECIPES
from fastcontrast.targets import EMATarget, NearestNeighbours, Queue

close = torch.testing.assert_close
SEED = 7


@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.parametrize('loss', ['paper', 'lightly'])
@pytest.mark.parametrize('setting,temp', [('imagenet', 0.1), ('cifar', 0.2)])
def test_simclr_is_the_papers(norm, loss, setting, temp):
    recipe = RECIPES['simclr'].resolve(setting)
    model = tiny_model(norm, predictor=False, per_view=recipe.per_view)
    twin = copy.deepcopy(model)
    learn = plain_learner(model, recipe.loss(), recipe.target(), Diary(), FiniteLoss())
    learn.fit(1, LR)
    theirs = NTXentLoss(temp) if loss == 'lightly' else lambda z1, z2: paper_nt_xent(z1, z2, temp)
    for (x, _), value, grads in zip(learn.dls.train, learn.diary.losses, learn.diary.grads, strict=True):
        assert paper_step(twin, simclr_loop(twin, x, theirs)) == pytest.approx(value, rel=1e-8)
        same_gradients(grads, twin)
        descend(twin, LR)
    for n, t in twin.state_dict().items(): close(model.state_dict()[n], t, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.parametrize('setting,temp', [('imagenet', 1.0), ('cifar', 0.2)])
def test_moco_v3_is_the_papers(norm, setting, temp):
    recipe = RECIPES['moco_v3'].resolve(setting)
    model = tiny_model(norm, per_view=recipe.per_view)
    twin, momentum_model = copy.deepcopy(model), copy.deepcopy(model)
    momentum_model.heads.final.predictor = None
    learn = plain_learner(model, recipe.loss(), recipe.target(), Diary(), FiniteLoss(), batches=plain_batches(3))
    learn.fit(1, LR)
    for i, ((x, _), value, grads) in enumerate(zip(learn.dls.train, learn.diary.losses, learn.diary.grads,
                                                   strict=True)):
        assert paper_step(twin, moco_v3_loop(twin, momentum_model, x, temp)) == pytest.approx(value, rel=1e-8)
        same_gradients(grads, twin)
        descend(twin, LR)
        follow(momentum_model, twin, 1 - (1 - 0.99) * (1 + math.cos(math.pi * (i + 1) / 3)) / 2)  # before step i + 1
    for n, t in twin.state_dict().items(): close(model.state_dict()[n], t, rtol=1e-8, atol=1e-12)
    for n, t in momentum_model.state_dict().items():
        close(learn.ema_target.target.state_dict()[n], t, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('name', ['simclr', 'moco_v3'])
def test_a_learner_of_contrastive_learner_takes_the_papers_step(name):
    "Everything that it puts together, on a ResNet: heads, passes, normalisation, loss, target"
    learn = real_learner(name, n=B, bs=B, cbs=Diary, knn_pictures=0)
    learn.views = Halves()
    learn.model.double()
    twin, momentum_model = copy.deepcopy(learn.model), copy.deepcopy(learn.model)
    twin.memory.clear()
    momentum_model.memory.clear()
    learn.fit(1, LR)
    cfg = timm.get_pretrained_cfg('resnet10t')
    mean, std = (torch.tensor(t, dtype=torch.float32).double().view(3, 1, 1) for t in (cfg.mean, cfg.std))
    v = learn.dls.train.images[learn.dls.train._order(0)].double() / 255
    v1, v2 = (v - mean) / std, (v.flip(-1) / 2 - mean) / std
    head = twin.heads.final
    if name == 'simclr':
        z = head.projector(twin.encoder(torch.cat([v1, v2])))
        loss = paper_nt_xent(z[:B], z[B:], 0.2)
    else:
        q1, q2 = (head.predictor(head.projector(twin.encoder(v))) for v in (v1, v2))
        with torch.no_grad():
            k1, k2 = (momentum_model.heads.final.projector(momentum_model.encoder(v)) for v in (v1, v2))
        loss = paper_ctr(q1, k2, 0.2) + paper_ctr(q2, k1, 0.2)
    # the normalisation's constants are float32's, and deep BatchNorms of few values multiply their rounding
    assert paper_step(twin, loss) == pytest.approx(learn.diary.losses[0], rel=1e-5)
    ours, theirs = (torch.cat([g.flatten() for g in gs])
                    for gs in (learn.diary.grads[0].values(), [p.grad for p in twin.parameters()]))
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


MOCO = {
    ('moco_v1', 'imagenet'): lambda t: 0.999, ('moco_v2', 'imagenet'): lambda t: 0.999,
    ('moco_v1', 'cifar'): cosine_momentum(0.99, 0.999), ('moco_v2', 'cifar'): cosine_momentum(0.99, 0.999)}


@pytest.mark.parametrize('which, size', paired(MOCO, [9, 12, B], 2), ids=str)
def test_moco_is_the_papers(which, size):
    (name, setting), momentum = which, MOCO[which]
    learn = build(small(name, setting), cbs=[Queue(size)])
    loop = Loop(name, learn, 3, 3, temp=0.07 if name == 'moco_v1' else 0.2, momentum=momentum)
    assert len(loop.rows) == size
    learn.fit(1, LR)
    parity(learn, loop)


@pytest.mark.parametrize('loss', [DCL(0.2), DCLW(0.2)], ids=['dcl', 'dclw'])
def test_moco_with_a_decoupled_loss_has_no_positive_in_the_sum(loss):
    learn = build(small('moco_v2'), cbs=[Queue(9)], loss=loss)
    loop = Loop('moco_v2', learn, 3, 3, temp=0.2, momentum=lambda t: 0.999, loss=type(loss).__name__.lower())
    learn.fit(1, LR)
    parity(learn, loop)


def test_mocos_own_queue_is_that_of_the_loop():
    learn = build(small('moco_v2', memory=partial(Queue, 8)))
    loop = Loop('moco_v2', learn, 3, 3, temp=0.2, momentum=lambda t: 0.999)
    assert len(loop.rows) == 8
    learn.fit(1, LR)
    parity(learn, loop)


@pytest.mark.parametrize('setting', ['imagenet', 'cifar'])
def test_byol_is_the_papers(setting):
    learn = build(small('byol', setting, opt='sgd'))
    loop = Loop('byol', learn, 6, 3, momentum=cosine_momentum(0.99))
    learn.fit(2, LR)
    parity(learn, loop)


@pytest.mark.parametrize('setting', ['imagenet', 'cifar'])
def test_simsiam_is_the_papers(setting):
    learn = build(small('simsiam', setting))
    loop = Loop('simsiam', learn, 3, 3)
    learn.fit(1, LR)
    parity(learn, loop)


def test_simsiams_predictor_keeps_its_learning_rate():
    learn = build(small('simsiam'))
    loop = Loop('simsiam', learn, 6, 3)
    learn.fit_contrastive(2, 0.04)
    parity(learn, loop, lr=lambda name, t: 0.04 if 'predictor' in name else 0.04 * (1 + math.cos(math.pi * t)) / 2)


def test_moco_v1_descends_in_steps():
    learn = build(small('moco_v1'), n=B, cbs=[Queue(9)])
    loop = Loop('moco_v1', learn, 10, 1, temp=0.07, momentum=lambda t: 0.999)
    learn.fit_contrastive(10, 0.04)
    parity(learn, loop, lr=lambda name, t: 0.04 if t < 0.5999 else 0.004 if t < 0.7999 else 0.0004)


@pytest.mark.parametrize('setting,temp', [('imagenet', 0.1), ('cifar', 0.2)])
@pytest.mark.parametrize('size', [9, 20], ids='support set of {}'.format)
def test_nnclr_is_the_papers(setting, temp, size):
    learn = build(small('nnclr', setting, opt='sgd'), cbs=[NearestNeighbours(size)])
    loop = Loop('nnclr', learn, 3, 3, temp=temp)
    assert len(loop.rows) == size
    learn.fit(1, LR)
    parity(learn, loop)


QUEUES = {'no queue': None, 'from epoch 1': Queue(20, start=1), 'when it is full': Queue(50, start=1),
          'never': Queue(20, start=5), 'at once': Queue(15)}


# with crops of two sizes, and with two views alone
@pytest.mark.parametrize('queue, setting', paired(QUEUES, ['imagenet', 'cifar'], always=('from epoch 1',)))
def test_swav_is_the_papers(setting, queue):
    queue = QUEUES[queue]
    given = dict(cbs=[copy.deepcopy(queue)]) if queue else {}
    simpler = dict(opt='adamw', wd_all=False, prototypes_frozen=1)
    learn = build(small('swav', setting, **simpler, **({} if queue else dict(memory=None))), **given)
    seen = Seen(29)
    learn.add_cb(seen)
    loop = Loop('swav', learn, 6, 3, PlainAdamW, frozen=1, start=queue.start if queue else 0)
    began = learn.model.heads.final.prototypes.weight.detach().clone()
    learn.fit(2, 0.01)
    parity(learn, loop, lr=lambda name, t: 0.01)
    assert learn.recipe.prototypes == K and [len(s) for s in seen.steps] == {
        'no queue': [2] * 6, '20, 1': [2, 2, 2, 3, 3, 3], '50, 1': [2, 2, 2, 2, 2, 3], '20, 5': [2] * 6,
        '15, 0': [3] * 6,
    }[f'{queue.size}, {queue.start}' if queue else 'no queue']
    name = 'heads.final.prototypes.weight'
    rows = [w[name] for w in learn.diary.weights]
    for w in rows[:4]: close(w, began, rtol=1e-6, atol=1e-6)  # they began at unit length in float32
    for w, next_w in zip(rows[3:], rows[4:]): assert (w - next_w).abs().max() > 1e-4
    for w in rows[1:]: close(w.norm(dim=1), torch.ones(K, dtype=torch.float64), rtol=0, atol=1e-12)
    crops = {role: [*v.shape] for role, v in learn.views.made[0].items()}
    assert crops == {'views': [2, B, 3, SIDE, SIDE], **({'local': [2, B, 3, 16, 16]} if setting == 'imagenet' else {})}
    assert seen.steps[0][1].shape == (2, B, K)  # keys of the large crops alone


@pytest.mark.parametrize('setting', ['imagenet', 'cifar'])
@pytest.mark.parametrize('name', ['barlow_twins', 'vicreg'])
def test_barlow_twins_and_vicreg_are_the_papers(name, setting):
    learn = build(small(name, setting, opt='sgd'))
    loop = Loop(name, learn, 3, 3)
    # Barlow Twins' learning rate of biases and norms over that of weights
    loop.scale = {'imagenet': 0.024, 'cifar': 0.1}[setting]
    learn.fit(1, LR)
    parity(learn, loop)


@pytest.mark.parametrize('setting', ['imagenet', 'cifar'], ids=['multi-crop', 'two views'])
def test_dino_is_the_papers(setting):
    plain = dict(opt='adamw', wd=0.04, clip_each=0.05, loss=DINOLoss, target=partial(EMATarget, 0.996))
    learn = build(small('dino', setting, **plain))
    loop = Loop('dino', learn, 6, 3, PlainAdamW, momentum=cosine_momentum(0.996), frozen=1, clip=0.05)
    began = learn.model.heads.final.prototypes.weight.detach().clone()
    learn.fit(2, 0.001)
    parity(learn, loop, lr=lambda name, t: 0.001)
    assert 0 < loop.clipped < len(list(learn.model.named_parameters()))
    close(learn.model.memory['losses']['final'].center, loop.center, rtol=1e-8, atol=1e-12)
    rows = [w['heads.final.prototypes.weight'] for w in learn.diary.weights]
    assert all(torch.equal(w, began) for w in rows[:4]) and not torch.equal(rows[4], began)
    crops = {role: [*v.shape] for role, v in learn.views.made[0].items()}
    assert crops == {'views': [2, B, 3, SIDE, SIDE], **({'local': [2, B, 3, 16, 16]} if setting == 'imagenet' else {})}


def test_dinos_teacher_warms_up_over_the_epochs():
    temps = []
    class Temps(Callback):
        def after_batch(self): temps.append(self.loss_func.loss.key_temp)
    learn = build(small('dino', 'cifar', loss=partial(DINOLoss, warmup_epochs=3)), n=2 * B, cbs=[Temps()])
    learn.fit(4, 0.001)
    assert temps == pytest.approx([0.04] * 2 + [0.055] * 2 + [0.07] * 4)
