"""Every method: against the loops of the papers and against lightly, step by step; what is remembered, followed and frozen;
every loss with every method and every target; and what is refused.

The loops use a learner's modules (copies of them) and its views, and nothing else of the library."""
import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Recorder
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, VICRegLoss
from lightly.loss import DINOLoss as LightlyDINOLoss
from lightly.models.modules import NNMemoryBankModule
from lightly.models.utils import update_momentum
from test_step import After, Diary, Dots, KnownViews, Plain, closed_form, interrupt, sgd, tiny_model
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.device import Autocast
from fastcontrast.learner import ContrastiveLearner, contrastive_learner
from fastcontrast.losses import DCL, DCLW, BarlowTwins, DINOLoss, InfoNCE, NegCosine, NTXent, SwAVLoss, VICReg
from fastcontrast.models import Embedding
from fastcontrast.recipes import LOSSES, METHODS, RECIPES, refused_pairs, simclr
from fastcontrast.step import Contrast, MultiCrop, PairLoss
from fastcontrast.targets import EMATarget, NearestNeighbours, Queue, SharedTarget, StopGradTarget
from fastcontrast.views import RoleViews

close = torch.testing.assert_close
ARCH, SIDE = 'test_resnet', 32  # timm's smallest ResNet: 15 BatchNorms, 96 features
B, LR, D, K = 6, 0.05, 8, 12    # batch, learning rate, width of projections, prototypes
SMALL_CROPS = partial(MultiCrop, (2, None, (0.4, 1.0)), (2, None, (0.05, 0.4)))


@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(7)


# --- learners of the recipes, made small, in float64

class Recording(nn.Module):
    "Views in float64, kept"
    def __init__(self, views):
        super().__init__()
        self.views, self.made = views, []
    def forward(self, x):
        self.made.append({role: v.double() for role, v in self.views(x).items()})
        return self.made[-1]


class Script(nn.Module):
    "Views that were drawn beforehand, whatever the pictures"
    def __init__(self, made):
        super().__init__()
        self.made, self.step = made, 0
    def forward(self, x):
        self.step += 1
        return self.made[self.step - 1]


class Seen(Callback):
    "Queries by role, keys and queue of every step: as a target (order 21), a memory (25) or the prototypes (29) left them"
    def __init__(self, order): self.order, self.steps = order, []
    def after_pred(self):
        q = {role: levels['final'].p.detach().clone() for role, levels in self.pred.items()}
        self.steps.append((q, *(k['final'].detach().clone() for k in self.yb)))


def small(name: str, setting: str = 'imagenet', **changes):
    "A recipe with small heads of the same depths"
    r = RECIPES[name].resolve(setting)
    few = dict(projector=(16,) * (len(r.projector) - 1) + (D,))
    if r.predictor: few['predictor'] = (16, D)
    if r.prototypes: few['prototypes'] = K
    if r.multi_crop: few['multi_crop'] = SMALL_CROPS
    return METHODS[name](setting, **{**few, **changes})


def pictures(n: int, side: int = SIDE, bs: int = B, **kwargs):
    return image_dls(Dots(n, side), bs=bs, valid=0, workers=0, device='cpu', **kwargs)


def build(recipe, n=3 * B, cbs=(), **kwargs) -> ContrastiveLearner:
    "What `contrastive_learner` makes of a recipe, in float64, with views that are kept"
    learn = contrastive_learner(pictures(n), ARCH, method=recipe, small_input=False, cbs=[Diary(), *cbs], **kwargs)
    learn.create_mbar = False
    learn.model.double()
    for rows in (b for n, b in learn.model.memory.named_buffers() if n.endswith('rows')): rows.copy_(unit(rows))  # was so in float32
    learn.views, learn.normalize = Recording(learn.views), Plain()
    return learn


def random_views(steps: int, local: bool = False) -> list[dict]:
    def crops(side): return torch.rand(2, B, 3, side, side, dtype=torch.float64)
    return [{'views': crops(SIDE), **({'local': crops(16)} if local else {})} for _ in range(steps)]


def quick(name: str, loss=None, cbs=(), n=16, setting='cifar', arch=ARCH, **changes) -> ContrastiveLearner:
    "A small float32 learner as a user makes it: real views of two batches of 8 pictures of 16 pixels"
    learn = contrastive_learner(pictures(n, 16, 8), arch, method=small(name, setting, **changes), loss=loss, small_input=False, cbs=cbs)
    learn.create_mbar = False
    return learn


# --- the papers' loops

class MomentumSGD:
    "v <- 0.9 v + g + wd w, w <- w - lr v; weight decay for matrices and filters only, in MoCo and SimSiam for everything"
    def __init__(self, wd, everything): self.wd, self.everything, self.v = wd, everything, {}
    def step(self, n, p, lr):
        g = p.grad + (self.wd * p if p.ndim > 1 or self.everything else 0)
        self.v[n] = 0.9 * self.v[n] + g if n in self.v else g
        p -= lr * self.v[n]


class PlainAdamW:
    "Loshchilov & Hutter 2019, Algorithm 2, with a step count for each parameter"
    def __init__(self, wd, _): self.wd, self.state = wd, {}
    def step(self, n, p, lr):
        m, s, t = self.state.get(n, (0, 0, 0))
        m, s, t = 0.9 * m + 0.1 * p.grad, 0.999 * s + 0.001 * p.grad**2, t + 1
        self.state[n] = m, s, t
        if p.ndim > 1: p *= 1 - lr * self.wd
        p -= lr * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + 1e-8)


def unit(x): return x / (x * x).sum(-1, keepdim=True).sqrt()


def cos(a, b): return (unit(a) * unit(b)).sum(-1)


def codes(scores, eps=0.05):
    "SwAV, Algorithm 1: three rounds of Sinkhorn and Knopp; rows are samples"
    Q = (scores / eps).exp().T
    Q = Q / Q.sum()
    for _ in range(3):
        for row in range(len(Q)): Q[row] = Q[row] / Q[row].sum() / len(Q)
        for col in range(Q.shape[1]): Q[:, col] = Q[:, col] / Q[:, col].sum() / Q.shape[1]
    return (Q * Q.shape[1]).T


def soft_cross_entropy(target, scores, temp): return -(target * (scores / temp).log_softmax(1)).sum(1).mean()


class Loop:
    "A method's training loop, from its paper: `self.net` learns, `self.teacher` follows, `self.rows` are remembered"
    def __init__(self, name, learn, steps, epoch_steps, opt=MomentumSGD, temp=None, momentum=None, frozen=0, clip=None, start=0, loss='info_nce'):
        self.name, self.steps, self.epoch_steps, self.temp, self.momentum = name, steps, epoch_steps, temp, momentum
        self.frozen, self.clip, self.start, self.loss_name = frozen, clip, start, loss
        memory = learn.model.memory
        ring = memory['queue'] if 'queue' in memory else memory['neighbours'] if 'neighbours' in memory else None
        self.rows = None if ring is None else [r.clone() for r in ring['final'].rows]
        self.entered = 0
        self.net = copy.deepcopy(learn.model)
        self.net.memory.clear()
        self.teacher = copy.deepcopy(self.net) if momentum else None
        self.opt, self.center, self.i = opt(learn.recipe.wd, name in ('moco_v1', 'moco_v2', 'simsiam')), torch.zeros(K, dtype=torch.float64), 0

    # modules of the two networks
    def z(self, x, net=None): return (net or self.net).heads.final.projector((net or self.net).encoder(x))
    def p(self, z): return self.net.heads.final.predictor(z)
    def scores(self, z, net=None):
        weight = (net or self.net).heads.final.prototypes.weight
        return unit(z) @ (unit(weight) if self.name == 'dino' else weight).T
    @torch.no_grad()
    def key(self, x): return self.z(x, self.teacher)

    @property
    def epoch(self): return self.i // self.epoch_steps

    def step(self, views: dict, lr=lambda name, t: LR) -> float:
        v = views['views']
        loss = getattr(self, self.name)(v, views.get('local'))
        self.net.zero_grad()
        loss.backward()
        params = dict(self.net.named_parameters())
        if self.clip:
            norms = {n: (p.grad**2).sum().sqrt() for n, p in params.items()}  # of every tensor by itself
            for n, p in params.items(): p.grad *= min(1, self.clip / (norms[n] + 1e-6))
            self.clipped = sum(norm > self.clip for norm in norms.values()).item()
        with torch.no_grad():
            for n, p in params.items():
                if 'prototypes' in n and self.epoch < self.frozen: p.grad = None
                if p.grad is not None: self.opt.step(n, p, lr(n, self.i / self.steps))
                if 'prototypes' in n and self.name == 'swav': p.copy_(unit(p))
            if self.teacher:
                m = self.momentum(self.i / self.steps)
                for n, p in self.teacher.named_parameters(): p.copy_(m * p + (1 - m) * params[n])
        self.i += 1
        return loss.item()

    @torch.no_grad()
    def remember(self, x):
        self.rows = (self.rows + list(unit(x)))[-len(self.rows):]
        self.entered += len(x)

    def contrast(self, q, k):
        "MoCo, Eq. 1: one positive, the queue's rows as negatives; DCL leaves the positive out of the sum"
        total, weights = 0, 1 + 0 * cos(q, k)
        if self.loss_name == 'dclw':
            e = (cos(q, k).detach() / 0.5).exp()
            weights = 2 - e / e.mean()
        for i in range(len(q)):
            pos = cos(q[i], k[i]) / self.temp
            neg = sum((cos(q[i], n) / self.temp).exp() for n in self.rows)
            total = total - weights[i] * pos + (neg + pos.exp() if self.loss_name == 'info_nce' else neg).log()
        return total / len(q)

    def moco_v1(self, v, _):
        q, k = self.z(v[0]), self.key(v[1])
        loss = self.contrast(q, k)
        self.remember(k)
        return loss
    moco_v2 = moco_v1

    def byol(self, v, _):
        p1, p2 = (self.p(self.z(x)) for x in v)
        t1, t2 = (self.key(x) for x in v)
        return ((unit(p1) - unit(t2))**2).sum(1).mean() + ((unit(p2) - unit(t1))**2).sum(1).mean()

    def simsiam(self, v, _):
        (z1, p1), (z2, p2) = ((z := self.z(x), self.p(z)) for x in v)
        return -cos(p1, z2.detach()).mean() / 2 - cos(p2, z1.detach()).mean() / 2

    def nnclr(self, v, _):
        (z1, p1), (z2, p2) = ((z := self.z(x), self.p(z)) for x in v)
        def nearest(z): return torch.stack([max(self.rows, key=lambda row: cos(one, row).item()) for one in z.detach()])
        def ell(nn, p): return F.cross_entropy(unit(nn) @ unit(p).T / self.temp, torch.arange(len(p)))
        loss = ell(nearest(z1), p2) / 2 + ell(nearest(z2), p1) / 2
        self.remember(z1)
        return loss

    def swav(self, v, local):
        large = self.z(v.flatten(0, 1)).split(v.shape[1])
        crops = [*large, *(self.z(local.flatten(0, 1)).split(v.shape[1]) if local is not None else [])]
        scores = [self.scores(z) for z in crops]
        use = self.rows is not None and (not self.start or self.epoch >= self.start and self.entered >= len(self.rows))
        loss, n = 0, 0
        for i in range(len(large)):
            with torch.no_grad():
                old = self.scores(torch.stack(self.rows)) if use else scores[i][:0]
                q = codes(torch.cat([old, scores[i]]))[len(old):]
            for j in range(len(crops)):
                if j != i: loss, n = loss + soft_cross_entropy(q, scores[j], 0.1), n + 1
        if self.rows is not None: self.remember(torch.cat(large))
        return loss / n

    def barlow_twins(self, v, _):
        z1, z2 = (F.batch_norm(self.z(x), None, None, training=True, eps=1e-5) for x in v)
        c = z1.T @ z2 / len(z1)
        return self.scale * sum((1 - c[i, i])**2 if i == j else 5.1e-3 * c[i, j]**2 for i in range(D) for j in range(D))

    def vicreg(self, v, _):
        z1, z2 = (self.z(x) for x in v)
        def std(z): return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        def cov(z):
            z = z - z.mean(0)
            c = z.T @ z / (len(z) - 1)
            return sum(c[i, j]**2 for i in range(D) for j in range(D) if i != j) / D
        return 25 * F.mse_loss(z1, z2) + 25 * (std(z1) + std(z2)) + cov(z1) + cov(z2)

    def dino(self, v, local):
        large = self.z(v.flatten(0, 1)).split(v.shape[1])
        crops = [*large, *(self.z(local.flatten(0, 1)).split(v.shape[1]) if local is not None else [])]
        student = [self.scores(z) for z in crops]
        with torch.no_grad(): teacher = [self.scores(z, self.teacher) for z in self.key(v.flatten(0, 1)).split(v.shape[1])]
        temp, loss, n = torch.linspace(0.04, 0.07, 30, dtype=torch.float64)[self.epoch], 0, 0
        for i, t in enumerate(teacher):
            for j, s in enumerate(student):
                if j != i: loss, n = loss + soft_cross_entropy(((t - self.center) / temp).softmax(1), s, 0.1), n + 1
        self.center = 0.9 * self.center + 0.1 * torch.cat(teacher).mean(0)
        return loss / n


def cosine(m, end=1.0): return lambda t: end - (end - m) * (math.cos(math.pi * t) + 1) / 2


def same_gradients(grads, net, rel):
    "Gradients by name, and those of a network written by hand"
    theirs = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert grads.keys() == theirs.keys()
    for part in ('encoder', 'heads'):
        # biases in front of a normalisation have no gradient but rounding
        most = max(g.abs().max().item() for n, g in theirs.items() if n.startswith(part))
        assert most > 1e-6
        for n, g in theirs.items():
            if n.startswith(part): close(grads[n], g, rtol=rel, atol=rel * most, msg=lambda m, n=n: f'gradient of {n}: {m}')


def parity(learn, loop, lr=lambda name, t: LR, rel=1e-8):
    "The learner's steps, after its fit, against the loop's"
    diary = learn.diary
    assert len(diary.losses) == len(learn.views.made) == loop.steps
    for views, value, grads, weights in zip(learn.views.made, diary.losses, diary.grads, diary.weights[1:], strict=True):
        assert loop.step(views, lr) == pytest.approx(value, rel=rel)
        same_gradients(grads, loop.net, rel)
        for n, t in loop.net.state_dict().items():
            if t.is_floating_point(): close(weights[n], t, rtol=rel, atol=rel / 100, msg=lambda m, n=n: f'{n}: {m}')
    if loop.teacher:
        ours = learn.ema_target.target.state_dict()
        theirs = {n: t for n, t in loop.teacher.state_dict().items() if 'predictor' not in n}
        assert ours.keys() == theirs.keys()
        for n, t in theirs.items():
            close(ours[n], t, rtol=rel, atol=1e-12)
            if t.ndim > 1: assert not torch.equal(ours[n], learn.model.get_parameter(n)) or 'prototypes' in n
    if loop.rows is not None:
        ring = learn.model.memory['neighbours' if loop.name == 'nnclr' else 'queue']['final']
        close(ring.in_order(), torch.stack(loop.rows), rtol=rel, atol=rel)


@pytest.mark.parametrize('size', [9, 12, B], ids='queue of {}'.format)
@pytest.mark.parametrize('name,setting,momentum', [
    ('moco_v1', 'imagenet', lambda t: 0.999), ('moco_v2', 'imagenet', lambda t: 0.999),
    ('moco_v1', 'cifar', cosine(0.99, 0.999)), ('moco_v2', 'cifar', cosine(0.99, 0.999))],
    ids=['v1-imagenet', 'v2-imagenet', 'v1-cifar', 'v2-cifar'])
def test_moco_is_the_papers(name, setting, momentum, size):
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
    loop = Loop('byol', learn, 6, 3, momentum=cosine(0.99))
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


@pytest.mark.parametrize('setting', ['imagenet', 'cifar'], ids=['multi-crop', 'two views'])
@pytest.mark.parametrize('queue', [None, Queue(20, start=1), Queue(50, start=1), Queue(20, start=5), Queue(15)],
                         ids=['no queue', 'from epoch 1', 'when it is full', 'never', 'at once'])
def test_swav_is_the_papers(setting, queue):
    given = dict(cbs=[copy.deepcopy(queue)]) if queue else {}
    learn = build(small('swav', setting, opt='adamw', opt_args={}, **({} if queue else dict(memory=None))), **given)
    seen = Seen(29)
    learn.add_cb(seen)
    loop = Loop('swav', learn, 6, 3, PlainAdamW, frozen=1, start=queue.start if queue else 0)
    began = learn.model.heads.final.prototypes.weight.detach().clone()
    learn.fit(2, 0.01)
    parity(learn, loop, lr=lambda name, t: 0.01)
    assert learn.recipe.prototypes == K and [len(s) for s in seen.steps] == {
        'no queue': [2] * 6, '20, 1': [2, 2, 2, 3, 3, 3], '50, 1': [2, 2, 2, 2, 2, 3], '20, 5': [2] * 6, '15, 0': [3] * 6,
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
    loop.scale = {'imagenet': 0.024, 'cifar': 0.1}[setting]  # Barlow Twins' learning rate of biases and norms over that of weights
    learn.fit(1, LR)
    parity(learn, loop)


@pytest.mark.parametrize('setting', ['imagenet', 'cifar'], ids=['multi-crop', 'two views'])
def test_dino_is_the_papers(setting):
    learn = build(small('dino', setting, clip_each=0.05))
    loop = Loop('dino', learn, 6, 3, PlainAdamW, momentum=cosine(0.996), frozen=1, clip=0.05)
    began = learn.model.heads.final.prototypes.weight.detach().clone()
    learn.fit(2, 0.001)
    parity(learn, loop, lr=lambda name, t: 0.001)
    assert 0 < loop.clipped < len(list(learn.model.named_parameters()))
    close(learn.model.memory['loss'].center, loop.center, rtol=1e-8, atol=1e-12)
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


# --- lightly

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
        assert hinges > 0.1
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
    close(learn.model.memory['loss'].center, theirs.center.flatten())


# --- targets and memories

def batches(*sizes) -> list: return [(torch.rand(n, 3, 9, 9, dtype=torch.float64), torch.arange(n)) for n in sizes]


def tiny(loss, *cbs, data=(B,) * 3, one_way=False, predictor=False) -> ContrastiveLearner:
    "A learner on plain batches of given sizes, with a small convolutional net in float64"
    dls = DataLoaders(batches(*data), [], device='cpu')
    dls.n_inp = 1
    learn = ContrastiveLearner(dls, tiny_model(predictor=predictor), PairLoss(loss, one_way), opt_func=sgd,
                               cbs=[Contrast(KnownViews(), Plain(), one_way), *cbs])
    learn.remove_cbs([Recorder, ProgressCallback])
    learn.model.double()
    return learn


@pytest.mark.parametrize('m,schedule,end', [(0.7, 'constant', 1.0), (0.6, 'cosine', 1.0), (0.6, 'cosine', 0.9), (0.9, 'cosine', 0.2), (0.0, 'constant', 1.0)])
def test_the_moving_average_is_the_closed_form(m, schedule, end):
    learn = tiny(InfoNCE(0.2), EMATarget(m, schedule, end), Diary())
    learn.fit(2, LR)
    ms = [m if schedule == 'constant' else cosine(m, end)(i / 6) for i in range(6)]
    params = dict(learn.ema_target.target.named_parameters())
    assert len(learn.diary.weights) == 7 and len(params) > 6
    for name, p in params.items(): close(p, closed_form([w[name] for w in learn.diary.weights], ms))
    if m == 0: assert torch.equal(params['encoder.0.weight'], learn.model.encoder[0].weight)


@pytest.mark.parametrize('one_way', [True, False])
@pytest.mark.parametrize('size', [4, 6, 7, 13, 40])
@pytest.mark.parametrize('data', [(6, 6, 3), (6, 6, 6), (5, 2)], ids=str)
def test_a_queue_holds_the_last_keys_in_order(size, data, one_way):
    before, after = Seen(21), Seen(25)
    learn = tiny(InfoNCE(0.2), EMATarget(0.8), Queue(size), before, after, data=data, one_way=one_way)
    ring = learn.model.memory['queue']['final']
    rows = ring.rows.clone()
    close(rows.norm(dim=1), torch.ones(size, dtype=torch.float64), rtol=1e-6, atol=0)
    learn.fit(2, LR)
    written = 0
    for (_, k), (_, same, given) in zip(before.steps, after.steps, strict=True):
        assert torch.equal(k, same) and len(k) == (1 if one_way else 2)
        # what the loss was given: the last rows of before this batch
        assert sorted(map(tuple, given.tolist())) == sorted(map(tuple, given.roll(-written, 0).tolist()))
        close(given.roll(-(written % size), 0), rows)
        similar = unit(k).flatten(0, 1) @ given.T
        assert similar.max() < 1 - 1e-9  # a key is not among its own negatives
        rows = torch.cat([rows, *unit(k)])[-size:]
        written += k.shape[0] * k.shape[1]
    close(ring.in_order(), rows)
    assert int(ring.written) == written and ring.rows.shape == (size, 5)


def test_a_queue_that_starts_late_is_filled_before_and_given_when_full():
    seen = Seen(25)
    learn = tiny(InfoNCE(0.2), EMATarget(0.8), Queue(20, start=1), seen, one_way=True)
    learn.fit(3, LR)
    assert [len(s) - 2 for s in seen.steps] == [0, 0, 0, 0, 1, 1, 1, 1, 1]  # 24 rows after the fourth step
    ring = learn.model.memory['queue']['final']
    close(ring.in_order(), unit(torch.cat([s[1][0] for s in seen.steps]))[-20:])
    again = Seen(25)
    learn.remove_cb(seen)
    learn.fit(2, LR, cbs=again)
    assert [len(s) - 2 for s in again.steps] == [0, 0, 0, 1, 1, 1]  # it was full already; the epochs are this fit's


@pytest.mark.parametrize('target', [SharedTarget, StopGradTarget, EMATarget])
@pytest.mark.parametrize('size', [7, 20])
def test_neighbours_are_those_of_before_the_batch(size, target):
    own, found = Seen(21), Seen(25)
    learn = tiny(InfoNCE(0.2, anchors='keys'), target(), NearestNeighbours(size), own, found, data=(6, 6, 3), predictor=True)
    rows = learn.model.memory['neighbours']['final'].rows.clone()
    learn.fit(2, LR)
    for (_, z), (_, near) in zip(own.steps, found.steps, strict=True):
        assert near.shape == z.shape
        for v in range(2):
            for i in range(z.shape[1]):
                close(near[v, i], rows[max(range(size), key=lambda j: cos(z[v, i], rows[j]).item())])
        rows = torch.cat([rows, unit(z[0])])[-size:]  # the first view's keys enter
    close(learn.model.memory['neighbours']['final'].in_order(), rows)


def test_neighbours_have_no_gradient_and_keys_do():
    grads = {}
    class Look(Callback):
        order = 26
        def after_pred(self): grads[self.epoch] = self.yb[0]['final'].requires_grad
    tiny(InfoNCE(0.2), SharedTarget(), Look()).fit(1, LR)
    assert grads == {0: True}
    for cbs in ([SharedTarget(), NearestNeighbours(9)], [StopGradTarget()], [EMATarget()]):
        tiny(InfoNCE(0.2), *cbs, Look()).fit(1, LR)
        assert grads == {0: False}


def test_a_stopped_step_is_not_remembered():
    learn = tiny(InfoNCE(0.2), EMATarget(0.8), Queue(9), one_way=True)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, LR, cbs=After('after_backward', 1, interrupt))
    ring = learn.model.memory['queue']['final']
    assert int(ring.written) == B and learn.queue.keys is None
    learn.fit(1, LR)
    assert int(ring.written) == 4 * B


SAVED = [('moco_v2', lambda: [Queue(9), EMATarget(0.9, 'constant')]), ('byol', lambda: [EMATarget(0.9, 'constant')]),
         ('nnclr', lambda: [NearestNeighbours(9)]), ('swav', lambda: [Queue(15)]), ('dino', lambda: [EMATarget(0.9, 'constant')])]


@pytest.mark.parametrize('name,cbs', SAVED, ids=[n for n, _ in SAVED])
def test_save_and_load_go_on_as_if_nothing_had_happened(name, cbs, tmp_path):
    views = random_views(6, local=name in ('swav', 'dino'))
    recipe = small(name, opt='sgd', **(dict(prototypes_frozen=0) if name in ('swav', 'dino') else {}))
    one, other = (build(recipe, cbs=cbs(), path=tmp_path) for _ in range(2))
    one.views, other.views = Script(views), Script(views[3:])
    one.fit(1, LR)
    one.save('here')
    other.load('here')
    assert one.model.state_dict().keys() == other.model.state_dict().keys()
    kept = [k for k in other.model.state_dict() if k.startswith('memory')]
    words = dict(moco_v2='queue.final.rows ema.encoder', byol='ema.encoder', nnclr='neighbours.final.rows',
                 swav='queue.final.rows', dino='loss.center ema.heads.final.prototypes')[name].split()
    for word in words: assert any(word in k for k in kept)
    for learn in (one, other): learn.fit(1, LR)
    assert one.diary.losses == pytest.approx(other.diary.losses, rel=1e-12) and len(one.diary.losses) == 3
    for k, v in one.model.state_dict().items(): close(v, other.model.state_dict()[k], rtol=1e-12, atol=1e-14)
    third = build(recipe, cbs=cbs())  # and another state goes on otherwise
    third.views = Script(views[3:])
    third.fit(1, LR)
    assert third.diary.losses != pytest.approx(one.diary.losses, rel=1e-6)


@pytest.mark.parametrize('name', METHODS)
def test_nothing_trains_that_should_not(name):
    recipe = small(name, **(dict(memory=partial(Queue, 9)) if name in ('moco_v1', 'moco_v2', 'swav') else dict(memory=partial(NearestNeighbours, 9)) if name == 'nnclr' else {}))
    learn = build(recipe)
    learn.fit(2, 0.001)
    memory = learn.model.memory
    assert set(memory) == {'loss', *dict(moco_v1=['ema', 'queue'], moco_v2=['ema', 'queue'], swav=['queue'], nnclr=['neighbours'],
                                         moco_v3=['ema'], fast_moco=['ema', 'patch_draws'], byol=['ema'], dino=['ema']).get(name, [])}
    held = {id(p) for group in learn.opt.param_lists for p in group}
    assert held == {id(p) for n, p in learn.model.named_parameters() if not n.startswith('memory')}
    for p in memory.parameters(): assert p.grad is None and not p.requires_grad
    for b in learn.model.buffers(): assert b.grad is None and not b.requires_grad
    for grads in learn.diary.grads: assert grads and not any(n.startswith('memory') for n in grads)
    has = ['prototypes' in ' '.join(grads) for grads in learn.diary.grads]
    assert has == ([False] * 3 + [True] * 3 if RECIPES[name].prototypes else [False] * 6)  # frozen in the first epoch


@pytest.mark.parametrize('opt', ['sgd', 'adamw', 'lars'])
@pytest.mark.parametrize('name', ['swav', 'dino'])
def test_frozen_prototypes_do_not_move_by_momentum_or_weight_decay(name, opt):
    moved = []
    class Compare(Callback):
        order = 27  # before they are brought back to unit length
        def weight(self): return self.model.heads.final.prototypes.weight.detach().clone()
        def before_step(self): self.old = self.weight()
        def after_step(self): moved.append(not torch.equal(self.old, self.weight()))
    learn = build(small(name, 'cifar', opt=opt, wd=0.1, prototypes_frozen=0), cbs=[Compare()])
    learn.fit(1, 0.01)
    assert moved == [True] * 3  # the optimizer has momentum for them now
    learn.prototype_scores.frozen = 1
    moved.clear()
    learn.fit(2, 0.01)
    assert moved == [False] * 3 + [True] * 3


def test_a_targets_prototypes_follow_and_keep_their_length():
    learn = build(small('swav', 'cifar', opt='sgd', prototypes_frozen=0), cbs=[EMATarget(0.5, 'constant')])
    began = learn.model.heads.final.prototypes.weight.detach().clone()
    learn.fit(1, 0.5)
    own, theirs = learn.model.heads.final.prototypes.weight, learn.ema_target.target.heads.final.prototypes.weight
    for w in (own, theirs): close(w.norm(dim=1), torch.ones(K, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (own - began).norm() > (theirs - began).norm() > 1e-3 and theirs.grad is None


@pytest.mark.parametrize('name', ['moco_v2', 'byol', 'dino'])
def test_the_targets_batchnorm_statistics_are_its_own(name):
    "A target whose weights stay where they began: its statistics are of its own activations"
    learn = build(small(name, opt='sgd'), cbs=[EMATarget(1.0, 'constant'), *([Queue(9)] if name == 'moco_v2' else [])])
    twin = copy.deepcopy(learn.ema_target.target)
    learn.fit(1, 0.5)
    with torch.no_grad():
        for made in learn.views.made:
            v = made['views'][1:] if name == 'moco_v2' else made['views']  # MoCo's target sees one view
            for x in v if name == 'byol' else [v.flatten(0, 1)]: twin.heads.final.projector(twin.encoder(x))
    ours, theirs = learn.ema_target.target.state_dict(), twin.state_dict()
    stats = [n for n in ours if n.endswith('running_mean') or n.endswith('running_var')]
    assert len(stats) >= 30
    for n in stats: close(ours[n], theirs[n])
    assert not torch.allclose(ours[stats[-1]], learn.model.state_dict()[stats[-1]])


def test_dinos_centre_moves_only_in_training():
    dls = image_dls(Dots(24, SIDE), bs=B, valid=0.25, workers=0, device='cpu')
    learn = contrastive_learner(dls, ARCH, method=small('dino', 'cifar'), small_input=False, cbs=Seen(29))
    learn.create_mbar = False
    assert not learn.model.memory['loss'].center.any()
    learn.fit(1, 0.001)
    center = learn.model.memory['loss'].center.clone()
    expected = torch.zeros(K)
    for _, k in learn.seen.steps: expected = 0.9 * expected + 0.1 * k.mean((0, 1))
    assert len(learn.seen.steps) == 3
    close(center, expected)
    learn.knn()
    learn.embed()
    learn.linear_probe()
    assert torch.equal(learn.model.memory['loss'].center, center)
    q, k = learn.seen.steps[0]
    args = {'views': {'final': Embedding(q['views'], q['views'])}}, {'final': k}
    learn.model.eval()
    learn.loss_func(*args)
    learn.loss_func.loss.update(k)
    assert torch.equal(learn.model.memory['loss'].center, center)
    learn.model.train()
    learn.loss_func(*args)
    assert not torch.equal(learn.model.memory['loss'].center, center)


@pytest.mark.parametrize('opt', ['sgd', 'adamw', 'lars'])
@pytest.mark.parametrize('name', ['swav', 'dino'])
def test_prototypes_thaw_with_every_optimizer(name, opt):
    learn = build(small(name, 'cifar', opt=opt, prototypes_frozen=1), n=2 * B)
    learn.fit_contrastive(2, 0.1)
    rows = [w['heads.final.prototypes.weight'] for w in learn.diary.weights]
    close(rows[2], rows[0], rtol=1e-6, atol=1e-6)
    assert len(rows) == 5 and (rows[4] - rows[2]).abs().max() > 2e-6


def found(learn) -> tuple: return (list(learn.model.encoder.state_dict()), list(learn.model.memory), learn.views, sorted(str(cb) for cb in learn.cbs))


@pytest.mark.parametrize('make', [partial(Queue, 16), partial(NearestNeighbours, 16), partial(MultiCrop, (2, 16, (.4, 1)), (2, 8, (.1, .4)))],
                         ids=['Queue', 'NearestNeighbours', 'MultiCrop'])
@pytest.mark.parametrize('stop', [False, True], ids=['finished', 'stopped'])
def test_a_removed_callback_leaves_no_trace(make, stop):
    learn = quick('moco_v3')
    before = found(learn)
    part = make()
    for _ in range(2):  # and it can come again
        learn.add_cb(part)
        assert found(learn)[1:] != before[1:]
        if stop:
            with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3, cbs=After('after_pred', 1, interrupt))
        else: learn.fit(1, 1e-3)
        learn.remove_cb(part)
        assert found(learn) == before
    with learn.added_cbs(part): pass
    assert found(learn) == before
    learn.fit(1, 1e-3, cbs=part)
    assert found(learn) == before
    for m in learn.model.modules(): assert not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks)


def test_multi_crop_makes_its_crops_from_the_learners_views():
    learn = quick('moco_v3', cbs=[MultiCrop((3, None, (0.5, 1.0)), (4, 8, (0.1, 0.5)))])
    assert isinstance(learn.views, RoleViews)
    made = learn.views(torch.rand(8, 3, 16, 16))
    assert {role: [*v.shape] for role, v in made.items()} == {'views': [3, 8, 3, 16, 16], 'local': [4, 8, 3, 8, 8]}
    large, crops = learn.views.makers
    assert large.strength.scale == (0.5, 1.0) and crops.strength.scale == (0.1, 0.5)
    assert large.strength.solarise == crops.strength.solarise == 0.1  # byol's pair has 0 and 0.2: each view gets the mean
    target, steps = Seen(21), []
    class Passes(Callback):
        def before_batch(self): steps.clear()
    learn.model.encoder.register_forward_pre_hook(lambda m, x: steps.append([*x[0].shape]))
    learn.model.per_view = False
    learn.fit(1, 1e-3, cbs=[target, Passes()])
    assert steps == [[24, 3, 16, 16], [32, 3, 8, 8]]  # a pass for each size
    q, k = target.steps[0]
    assert [*k.shape] == [3, 8, D] and {role: len(v) for role, v in q.items()} == {'views': 3, 'local': 4}


# --- the matrix

TARGETS = [SharedTarget, StopGradTarget, EMATarget]


def train_two_steps(learn):
    losses = []
    class Trace(Callback):
        order = 70
        def before_step(self): losses.append(self.loss.item())
    before = {n: p.detach().clone() for n, p in learn.model.encoder.named_parameters()}
    learn.fit_contrastive(1, cbs=Trace())
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    for n, t in learn.model.state_dict().items(): assert t.isfinite().all(), n
    moved = {n for n, p in learn.model.encoder.named_parameters() if not torch.equal(p, before[n])}
    assert 'conv1.0.weight' in moved and len(moved) > len(before) / 2


def refusal(f, *args, **kwargs) -> str:
    "What the `InputError` says: one sentence"
    with pytest.raises(InputError) as e: f(*args, **kwargs)
    text = str(e.value)
    assert type(e.value) is InputError and '\n' not in text and text.endswith(('.', '?')) and len(text) > 20, text
    return text


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('name', METHODS)
def test_every_loss_trains_with_every_method_and_target_or_is_refused(name, target):
    table = refused_pairs('cifar')
    listed = dict(zip(*(table[table.recipe == name][c] for c in ('loss', 'why')), strict=True))
    refused = {}
    for loss, make in LOSSES.items():
        try: learn = quick(name, loss=loss, cbs=target)
        except InputError as e: refused[make.__name__] = str(e)
        else: train_two_steps(learn)
    assert refused.keys() == listed.keys()
    for loss, why in refused.items():
        assert loss in why and name in why and '\n' not in why and why.endswith('.')
        # sizes of memories are made smaller for few pictures; the rest is the listed sentence
        assert why.split('Queue(')[0] == listed[loss].split('Queue(')[0]


def test_what_is_refused_is_what_cannot_be():
    "A loss on scores needs prototypes, and a queue needs a loss with a use for one"
    for setting in ('imagenet', 'cifar', 'digits'):
        table = refused_pairs(setting)
        scored, unqueued = {'SwAVLoss', 'DINOLoss'}, {'NTXent', 'NegCosine', 'BarlowTwins', 'VICReg', 'DINOLoss'}
        expected = {(name, loss) for name in METHODS for loss in (make.__name__ for make in LOSSES.values())
                    if loss in scored and name not in ('swav', 'dino') or loss in unqueued and name in ('moco_v1', 'moco_v2', 'swav')}
        assert set(zip(table.recipe, table.loss)) == expected and len(table) == len(expected)


@pytest.mark.parametrize('name', METHODS)
def test_every_method_takes_the_other_memories_and_views(name):
    loss = type(RECIPES[name].resolve('cifar').loss()).__name__
    for part in (Queue(16), NearestNeighbours(16), MultiCrop((2, None, (.4, 1)), (2, 8, (.1, .4)))):
        if isinstance(part, Queue) and (loss not in ('InfoNCE', 'SwAVLoss') or name == 'nnclr'):
            why = refusal(quick, name, cbs=[part])
            assert loss in why and 'Queue(16)' in why
        else:
            learn = quick(name, cbs=[part])
            assert part in learn.cbs
            train_two_steps(learn)
            if not isinstance(part, MultiCrop):
                assert next(n for n in learn.model.memory if n not in ('loss', 'patch_draws')) == part.name_of_rings
                assert sum(isinstance(cb, (Queue, NearestNeighbours)) for cb in learn.cbs) == 1
                per_step = 8 if name in ('moco_v1', 'moco_v2') or isinstance(part, NearestNeighbours) else 16
                assert int(part.rings['final'].written) == 2 * per_step


# --- bad input

@pytest.mark.parametrize('cbs,words', [
    (lambda: [Queue(4)], ['Queue(4)', 'batch of 8']), (lambda: [NearestNeighbours(7)], ['NearestNeighbours(7)', 'batch of 8'])])
def test_a_memory_smaller_than_a_batch(cbs, words):
    text = refusal(quick, 'moco_v3', cbs=cbs())
    assert all(w in text for w in words) and text.endswith('.')
    quick('moco_v3', cbs=[type(cbs()[0])(8)])


def test_a_recipes_queue_smaller_than_a_batch():
    assert 'Queue(5) is smaller than a batch of 8' in refusal(quick, 'moco_v2', memory=partial(Queue, 5))


@pytest.mark.parametrize('size', [0, -1, 1.5, True, None, '9'])
@pytest.mark.parametrize('make', [Queue, NearestNeighbours])
def test_sizes_of_memories(make, size):
    text = refusal(make, size)
    assert f'size={size!r}' in text and make.__name__ in text


@pytest.mark.parametrize('start', [-1, 0.5, None, True])
def test_starts_of_queues(start): assert f'start={start!r}' in refusal(Queue, 9, start)


@pytest.mark.parametrize('temp', [0, -0.1, math.inf, math.nan, None, '0.1'])
@pytest.mark.parametrize('make', [InfoNCE, NTXent, DCL, DCLW, SwAVLoss, DINOLoss])
def test_temperatures(make, temp):
    text = refusal(make, temp)
    assert 'temp must' in text and repr(temp) in text


@pytest.mark.parametrize('make,value', [
    (lambda: DINOLoss(teacher_temp=-0.07), '-0.07'), (lambda: DINOLoss(warmup_temp=0), '0'), (lambda: DINOLoss(center=1.2), '1.2'),
    (lambda: SwAVLoss(eps=0), '0'), (lambda: SwAVLoss(iters=0), '0'), (lambda: BarlowTwins(-0.005), '-0.005'), (lambda: VICReg(sim=-1), '-1'),
    (lambda: NegCosine(0), '0'), (lambda: InfoNCE(0.2, anchors='key'), 'key')])
def test_other_numbers_of_losses(make, value): assert value in refusal(make)


@pytest.mark.parametrize('what', ['momentum', 'end'])
@pytest.mark.parametrize('m', [-0.01, 1.5, math.nan, None, '0.9'])
def test_momenta(what, m):
    text = refusal(EMATarget, **{what: m})
    assert f'{what}={m!r}' in text and '[0, 1]' in text


@pytest.mark.parametrize('what', ['globals', 'locals'])
@pytest.mark.parametrize('crops', [None, 2, (2,), (2, 16), (0, 16, (.1, 1)), (-1, 16, (.1, 1)), (2.5, 16, (.1, 1)), (2, 0, (.1, 1)), (2, -16, (.1, 1)),
                                   (2, 16.5, (.1, 1)), (2, 16, (.5, .1)), (2, 16, (0, 1)), (2, 16, (.1, 1.1)), (2, 16, .5), (2, 16, (.5,)),
                                   (2, 16, ('a', 'b')), (2, 16, (.1, .5, .9)), (2, 16, (math.nan, 1)), '2x16'], ids=str)
def test_malformed_crops(what, crops):
    text = refusal(MultiCrop, **{what: crops})
    assert f'{what}={crops!r}' in text and 'MultiCrop' in text


def test_crops_of_one_pixel():
    text = refusal(quick, 'moco_v3', cbs=[MultiCrop(locals=(2, 1, (.1, .4)))])
    assert '1' in text


def test_colours_of_small_crops_by_a_name():
    "As everywhere else a kind of views has a name; what is none is refused"
    assert 'nosuch' in refusal(lambda: quick('moco_v3', cbs=[MultiCrop((2, None, (.4, 1)), (2, 8, (.1, .4)), 'nosuch')]))


@pytest.mark.parametrize('side,role', [(8, 'locals'), (24, 'globals')])
def test_crops_that_the_encoder_cannot_take(side, role):
    "A ViT without position embeddings for other sizes, and a ConvNeXt whose patches are too large"
    arch = 'test_convnext' if role == 'locals' else 'test_vit3'
    def make(): return contrastive_learner(pictures(16, SIDE, 8), arch, method=small('moco_v3', 'cifar'),
                                           cbs=[MultiCrop(**{role: (2, side, (.2, 1)), **({'locals': (2, SIDE, (.2, 1))} if role == 'globals' else {})})])
    text = refusal(make)
    assert f"{side} pixels" in text and arch in text and text.endswith('.')


def test_one_large_crop_leaves_no_keys_for_one_way_methods():
    text = refusal(quick, 'moco_v2', cbs=[Queue(16), MultiCrop((1, None, (.4, 1)), (2, 8, (.1, .4)))])
    assert 'MultiCrop' in text


@pytest.mark.parametrize('loss', ['swav', 'dino'])
@pytest.mark.parametrize('name', [n for n in METHODS if n not in ('swav', 'dino')])
def test_losses_of_scores_need_prototypes(name, loss):
    text = refusal(quick, name, loss=loss)
    assert LOSSES[loss].__name__ in text and name in text and 'prototypes' in text
    if name != 'moco_v1': quick(name, loss=loss, prototypes=24, memory=None)


@pytest.mark.parametrize('call', ['knn', 'linear_probe'])
def test_judging_by_labels_needs_labels(call):
    class Unlabelled(Dots):
        def __init__(self, n):
            super().__init__(n)
            del self.targets
        def __getitem__(self, i): return self.x[i]
    learn = contrastive_learner(image_dls(Unlabelled(16), bs=8, workers=0, device='cpu'), ARCH, method=small('simclr', 'cifar'), small_input=False)
    text = refusal(getattr(learn, call))
    assert 'labels' in text and 'Unlabelled' in text


@pytest.mark.parametrize('option', [dict(predictor=(16, 8)), dict(predictor_out_bn='plain'), dict(predictor_constant_lr=True)], ids=str)
@pytest.mark.parametrize('name', METHODS)
def test_options_of_a_predictor_need_one(name, option):
    (key, value), = option.items()
    if name in ('moco_v3', 'fast_moco', 'byol', 'simsiam', 'nnclr'):
        assert getattr(METHODS[name](**option).resolve('cifar'), key) == value
        return
    text = refusal(METHODS[name], **option)
    assert f'{name}() has no predictor' in text and f'{key}={value!r}' in text


@pytest.mark.parametrize('option', [dict(prototypes_frozen=2), dict(prototypes_weight_norm=True)], ids=str)
def test_options_of_prototypes_need_some(option):
    assert 'simclr() has no prototypes' in refusal(simclr, **option)
    simclr(prototypes=24, **option)


def test_predictions_as_wide_as_keys():
    "Else no loss can compare them, and the first step is late to say so"
    text = refusal(quick, 'byol', projector=(16, 8), predictor=(16, 12))
    assert '12' in text and '8' in text


@pytest.mark.parametrize('n', [-3, 2.5, '24'])
def test_numbers_of_prototypes(n): assert f'prototypes={n!r}' in refusal(quick, 'swav', prototypes=n)


def test_two_of_an_axis():
    assert all(w in refusal(quick, 'moco_v3', cbs=[Queue(16), NearestNeighbours(16)]) for w in ('Queue(16)', 'NearestNeighbours(16)'))
    assert 'SharedTarget()' in refusal(quick, 'moco_v3', cbs=[SharedTarget, EMATarget])
    assert 'MultiCrop' in refusal(quick, 'moco_v3', cbs=[MultiCrop(), MultiCrop()])


@pytest.mark.parametrize('make', [partial(Queue, 16), partial(NearestNeighbours, 16)], ids=['Queue', 'NearestNeighbours'])
def test_a_second_memory_and_one_of_another_learner(make):
    one, other = quick('moco_v3', cbs=[first := make()]), quick('moco_v3')
    before = found(one)
    assert 'already' in refusal(one.add_cb, make())
    assert 'another learner' in refusal(other.add_cb, first)
    assert list(one.model.memory) == before[1]


# --- what data, precision and later additions change

@pytest.mark.parametrize('name', ['moco_v2', 'byol', 'nnclr', 'swav', 'dino'])
def test_keys_scores_and_rows_are_full_precision_under_autocast(name):
    seen = Seen(29)
    # large enough for a CPU's bfloat16 convolutions, whose gradients are not always numbers at one pixel
    learn = contrastive_learner(pictures(16, 64, 8), ARCH, method=small(name, 'cifar'), small_input=False, cbs=[Autocast('bf16'), seen])
    learn.create_mbar = False
    learn.fit_contrastive(1)
    (q, *ks), scored = seen.steps[-1], bool(learn.recipe.prototypes)
    assert learn.model.heads.final.projector[0].weight.dtype == torch.float32
    assert all(k.dtype == torch.float32 for k in ks)
    if scored: assert q['views'].dtype == torch.float32
    for n, rows in learn.model.memory.named_buffers():
        if n.endswith('rows'): close(rows.norm(dim=1), torch.ones(len(rows)), rtol=0, atol=1e-6)


def test_a_recipes_memory_fits_the_data():
    assert quick('moco_v2').queue.size == 16 and 'more rows than there are pictures: 16 here' in quick('moco_v2').notes[0]
    assert quick('moco_v2', memory=partial(Queue, 40)).queue.size == 40 and not quick('moco_v2', memory=partial(Queue, 40)).notes
    large = contrastive_learner(image_dls('digits', bs=600), ARCH, method='moco_v2')
    assert large.queue.size == 600 and '600 rows here' in large.notes[0]
    without = contrastive_learner(image_dls('digits', bs=600), ARCH, method='swav')
    assert list(without.model.memory) == ['loss'] and 'left out' in without.notes[0]
    large.create_mbar = False
    large.fit_contrastive(1)


def test_notes_are_printed_when_a_fit_begins(capsys):
    quick('moco_v2').fit_contrastive(1)
    assert 'more rows than there are pictures' in capsys.readouterr().out.splitlines()[1]


def test_parts_that_are_added_later_are_checked_as_well():
    learn = quick('byol')
    assert 'NegCosine has no use for Queue(64)' in refusal(learn.add_cb, Queue(64))
    learn = quick('simclr')
    assert 'SharedTarget() already' in refusal(learn.add_cb, EMATarget())
    train_two_steps(learn)
    learn.remove_cb(SharedTarget)
    learn.add_cb(EMATarget(0.9))
    learn.add_cb(NearestNeighbours(16))
    train_two_steps(learn)
    assert [*learn.model.memory] == ['loss', 'ema', 'neighbours']


@pytest.mark.parametrize('field,value', [('projector', 128), ('projector', ()), ('predictor', (8, 'a')), ('one_way', 'x'), ('lr', -1), ('wd', -1.), ('warmup', 'x'),
                                         ('clip_each', 0), ('wd_end', -1), ('prototypes_frozen', -1), ('target', 'ema'), ('target', None), ('target', Queue),
                                         ('memory', 512), ('multi_crop', 3), ('loss', 3)])
def test_values_of_recipes_that_cannot_be(field, value):
    name = 'swav' if field.startswith('prototypes') else 'byol'
    text = refusal(contrastive_learner, pictures(16, 16, 8), ARCH, method=METHODS[name]('cifar', **{field: value}))
    assert name in text and (field in text or repr(value) in text or 'Queue' in text)


def test_prototypes_that_no_loss_scores_are_refused():
    text = refusal(quick, 'simclr', prototypes=300)
    assert 'NTXent' in text and '300 prototypes' in text
    assert quick('swav', loss='dcl').model.heads.final.prototypes is None  # the loss takes their place


def test_a_given_loss_keeps_what_it_remembers_apart():
    loss = DINOLoss()
    a, b = (quick('dino', loss=loss) for _ in range(2))
    train_two_steps(a)
    assert loss.center is None and not torch.equal(a.loss_func.loss.center, b.loss_func.loss.center)


def test_weight_decay_of_biases_and_norms():
    def decays(name):
        learn = quick(name)
        learn.create_opt()
        return [g['weight_decay'] for g in learn.opt.opt.param_groups]
    assert decays('moco_v2') == [1e-4] * 2 and decays('simsiam') == [1e-4] * 4 and decays('simclr') == [1e-4, 0]


def test_a_decay_that_grows_from_nothing_grows():
    learn, seen = quick('dino', wd=0., wd_end=0.1), []
    class Decays(Callback):
        def after_step(self): seen.append([g['weight_decay'] for g in self.opt.opt.param_groups])
    learn.fit_contrastive(4, cbs=Decays())
    assert seen[0] == [0, 0] and seen[-1] == pytest.approx([0.1, 0], abs=0.005) and seen[-1][1] == 0


def test_small_crops_are_whole_patches_of_a_transformer():
    learn = contrastive_learner(pictures(16, 128, 8), 'vit_tiny_patch16_224', method=METHODS['dino'](projector=(16, 8), prototypes=12))
    assert {make.role: make.size for make in learn.views.makers} == {'views': 128, 'local': 48}


def test_the_documents_tables_are_those_of_the_recipes():
    import json
    from pathlib import Path

    import pandas as pd

    from fastcontrast.recipes import recipe_table
    cells = json.loads((Path(__file__).parents[1]/'nbs/20_recipes.ipynb').read_text())['cells']
    shown = {''.join(c['source']).splitlines()[-1]: ''.join(o['data']['text/html']) for c in cells for o in c.get('outputs', []) if 'text/html' in o.get('data', {})}
    with pd.option_context('display.max_colwidth', None):
        made = {'recipe_table()': recipe_table(), "recipe_table('cifar')": recipe_table('cifar'), 'refused': refused_pairs()}
        for what, table in made.items(): assert table._repr_html_().split() == shown[what].split(), f"{what}: run `python tests/outputs.py 20_recipes`"
