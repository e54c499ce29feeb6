"""Steps of training written by hand from the papers.

They use a learner's modules (copies of them) and its views, and nothing else of the library.
"""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.pictures import LR, D, K, KnownViews

close = torch.testing.assert_close

def unit(x): return x / (x * x).sum(-1, keepdim=True).sqrt()


def cos(a, b): return (unit(a) * unit(b)).sum(-1)


def paper_nt_xent(z1, z2, temp):
    "SimCLR, Algorithm 1: rows 2k-1 and 2k are the two views of a picture"
    z = F.normalize(torch.stack([z1, z2], 1).flatten(0, 1), dim=1)
    s, n = z @ z.T / temp, len(z)
    ell = lambda i, j: -torch.log(s[i, j].exp() / sum(s[i, k].exp() for k in range(n) if k != i))  # noqa: E731
    return sum(ell(2 * k, 2 * k + 1) + ell(2 * k + 1, 2 * k) for k in range(n // 2)) / n


def paper_ctr(q, k, temp):
    "MoCo v3, Algorithm 1: cross-entropy of the logits, times 2τ"
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    return 2 * temp * F.cross_entropy(q @ k.T / temp, torch.arange(len(q)))


def simclr_loop(model, x, loss):
    v = KnownViews()(x)['views']
    z = model.heads.final.projector(model.encoder(torch.cat([v[0], v[1]])))
    return loss(z[:len(x)], z[len(x):])


def moco_v3_loop(model, momentum_model, x, temp):
    v, head, key_head = KnownViews()(x)['views'], model.heads.final, momentum_model.heads.final
    q1, q2 = (head.predictor(head.projector(model.encoder(x))) for x in v)
    with torch.no_grad(): k1, k2 = (key_head.projector(momentum_model.encoder(x)) for x in v)
    return paper_ctr(q1, k2, temp) + paper_ctr(q2, k1, temp)


def paper_step(model, loss):
    model.zero_grad()
    loss.backward()
    return loss.item()


@torch.no_grad()
def descend(model, lr):
    for p in model.parameters():
        if p.grad is not None: p -= lr * p.grad


@torch.no_grad()
def follow(momentum_model, model, m):
    online = dict(model.named_parameters())
    for n, p in momentum_model.named_parameters(): p.copy_(m * p + (1 - m) * online[n])


def closed_form(seen: list, ms: list[float]):
    "Weights that start as seen[0], then keep the share ms[i] of themselves and take the rest from seen[i + 1]"
    n = len(ms)
    return math.prod(ms) * seen[0] + sum((1 - ms[i]) * math.prod(ms[i + 1:]) * seen[i + 1] for i in range(n))


class MomentumSGD:
    "v <- 0.9 v + g + wd w, w <- w - lr v; weight decay for matrices and filters, in MoCo and SimSiam for everything"
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
    def __init__(self, name, learn, steps, epoch_steps, opt=MomentumSGD, temp=None, momentum=None, frozen=0, clip=None,
                 start=0, loss='info_nce'):
        self.name, self.steps, self.epoch_steps, self.temp, self.momentum = name, steps, epoch_steps, temp, momentum
        self.frozen, self.clip, self.start, self.loss_name = frozen, clip, start, loss
        memory = learn.model.memory
        ring = memory['queue'] if 'queue' in memory else memory['neighbours'] if 'neighbours' in memory else None
        self.rows = None if ring is None else [r.clone() for r in ring['final'].rows]
        self.entered = 0
        self.net = copy.deepcopy(learn.model)
        self.net.memory.clear()
        self.teacher = copy.deepcopy(self.net) if momentum else None
        self.opt = opt(learn.recipe.wd, name in ('moco_v1', 'moco_v2', 'simsiam'))
        self.center, self.i = torch.zeros(K, dtype=torch.float64), 0

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
        # large and small crops meet in the head
        h = torch.cat([self.net.encoder(x.flatten(0, 1)) for x in (v, local) if x is not None])
        crops = self.net.heads.final.projector(h).split(v.shape[1])
        large, scores = crops[:len(v)], [self.scores(z) for z in crops]
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
        with torch.no_grad():
            teacher = [self.scores(z, self.teacher) for z in self.key(v.flatten(0, 1)).split(v.shape[1])]
        temp, loss, n = torch.linspace(0.04, 0.07, 30, dtype=torch.float64)[self.epoch], 0, 0
        for i, t in enumerate(teacher):
            for j, s in enumerate(student):
                if j != i: loss, n = loss + soft_cross_entropy(((t - self.center) / temp).softmax(1), s, 0.1), n + 1
        self.center = 0.9 * self.center + 0.1 * torch.cat(teacher).mean(0)
        return loss / n


def cosine_momentum(m, end=1.0): return lambda t: end - (end - m) * (math.cos(math.pi * t) + 1) / 2


def same_gradients(grads: dict, net: nn.Module, rel: float = 1e-8):
    "Gradients by name, and those of a network written by hand"
    theirs = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert grads.keys() == theirs.keys() and len(theirs) > 3
    assert all(n.startswith(('encoder', 'heads')) for n in theirs)
    for part in ('encoder', 'heads'):
        # biases in front of a normalisation have no gradient but rounding
        most = max(g.abs().max().item() for n, g in theirs.items() if n.startswith(part))
        assert most > 1e-6
        for n, g in theirs.items():
            if n.startswith(part):
                close(grads[n], g, rtol=rel, atol=rel * most, msg=lambda m, n=n: f'gradient of {n}: {m}')


def parity(learn, loop, lr=lambda name, t: LR, rel=1e-8):
    "The learner's steps, after its fit, against the loop's"
    diary = learn.diary
    assert len(diary.losses) == len(learn.views.made) == loop.steps
    for views, value, grads, weights in zip(learn.views.made, diary.losses, diary.grads, diary.weights[1:],
                                            strict=True):
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
