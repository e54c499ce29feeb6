"""SwAV and DINO step by step as their authors' programs train: crops, heads, queue, optimizer, schedules.

The programs' steps are written out here on copies of a learner's modules, from its views."""
import copy
import math
from functools import partial

import pytest
import torch
import torchvision
from fastai.callback.core import Callback
from helpers.learners import BARE
from helpers.loops import unit
from helpers.pictures import ARCH, VIT, B, D, K, Plain, pictures
from helpers.recording import Diary, Recording
from helpers.refusals import refusal
from timm.layers import DropPath
from torch import nn

from fastcontrast.learner import contrastive_learner
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.recipes import METHODS, RECIPES
from fastcontrast.targets import Queue

EPOCHS, BATCHES = 2, 3
close = torch.testing.assert_close
SEED = 7


def authors_learner(recipe, arch, side=32):
    "A learner in float64 whose views are kept"
    learn = contrastive_learner(pictures(BATCHES * B, side), arch, method=recipe, cbs=[Diary(), Draws()], **BARE)
    learn.create_mbar = False
    learn.model.double()
    learn.views, learn.normalize = Recording(learn.views), Plain()
    return learn


class Draws(Callback):
    "The generator's state in front of the online network's pass"
    order = 80
    def before_fit(self): self.states = []
    def before_batch(self): self.states.append(torch.get_rng_state())


def swav_learner(recipe):
    learn = authors_learner(recipe, ARCH)
    prototypes = learn.model.heads['final'].prototypes
    with torch.no_grad():
        prototypes.weight.copy_(unit(prototypes.weight))  # were so in float32
        # timm's ResNets begin with residual branches of zero, whose gradients apex leaves alone, and timm's LARS decays
        for module in learn.model.encoder.modules():
            if isinstance(module, nn.BatchNorm2d): module.weight.fill_(1)
    return learn


def cosine(first, last, steps):
    "numpy's schedules of both programs, without warm-up"
    return [last + 0.5 * (first - last) * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]


def same_weights(ours, net):
    theirs = {n: t for n, t in net.state_dict().items() if t.is_floating_point()}
    for n, t in theirs.items(): close(ours[n], t, rtol=1e-10, atol=1e-12, msg=lambda m, n=n: f'{n}: {m}')


class SwAVProgram:
    "Its training loop: one network, a queue for each of the two large crops, LARC around SGD"
    def __init__(self, model, queue=0, used_from=0, frozen=BATCHES, lrs=(), wd=1e-6):
        self.net = copy.deepcopy(model)
        self.net.memory.clear()
        self.prototypes = self.net.heads['final'].prototypes.weight
        self.queue = torch.zeros(2, queue, D, dtype=torch.float64)
        self.used_from, self.frozen, self.lrs, self.wd = used_from, frozen, lrs, wd
        self.sgd = torch.optim.SGD(self.net.parameters(), lr=1., momentum=0.9)
        self.number, self.queue_used = 0, []

    @torch.no_grad()
    def codes(self, scores):
        Q = (scores / 0.05).exp().T
        Q /= Q.sum()
        for _ in range(3):
            Q /= Q.sum(1, keepdim=True) * len(Q)
            Q /= Q.sum(0, keepdim=True) * Q.shape[1]
        return (Q * Q.shape[1]).T

    @torch.no_grad()
    def assigned(self, i, z, scores):
        "The codes of large crop i, worked out together with its own queue, which then takes its embeddings"
        rows = self.queue[i]
        full = len(rows) and bool(rows[-1].any())
        use = full and self.number // BATCHES >= self.used_from
        self.queue_used.append(bool(use))
        code = self.codes(torch.cat([rows @ self.prototypes.T, scores]) if use else scores)[-B:]
        if len(rows): self.queue[i] = torch.cat([z, rows[:-B]])
        return code

    def loss(self, views):
        h = torch.cat([self.net.encoder(views[role].flatten(0, 1)) for role in ('views', 'local') if role in views])
        z = unit(self.net.heads['final'].projector(h))
        scores, total = (z @ self.prototypes.T).split(B), 0
        for i in range(2):
            code = self.assigned(i, z.detach().split(B)[i], scores[i].detach())
            others = [v for v in range(len(scores)) if v != i]
            total += sum(-(code * (scores[v] / 0.1).log_softmax(1)).sum(1).mean() for v in others) / len(others)
        return total / 2

    @torch.no_grad()
    def larc(self, lr):
        "apex's, without clipping: biases and norms too; a parameter or gradient of zeros is left to SGD"
        for p in self.net.parameters():
            if p.grad is None: continue
            size, steep = p.norm(), p.grad.norm()
            if size and steep: p.grad.add_(self.wd * p).mul_(0.001 * size / (steep + size * self.wd + 1e-8))
        self.sgd.param_groups[0]['lr'] = lr
        self.sgd.step()

    def step(self, views):
        with torch.no_grad(): self.prototypes.copy_(unit(self.prototypes))
        loss = self.loss(views)
        self.sgd.zero_grad()
        loss.backward()
        if self.number < self.frozen: self.prototypes.grad = None
        self.larc(self.lrs[self.number])
        self.number += 1
        return loss.item()


@pytest.mark.parametrize('queue', [0, 2 * B, 3 * B], ids='queue of {}'.format)
@pytest.mark.parametrize('setting,peak', [('imagenet', 0.6), ('large_batch', 0.3)])
def test_swav(setting, peak, queue):
    recipe = METHODS['swav'](
        setting, projector=(16, D), prototypes=K, multi_crop=partial(MultiCrop, locals=(6, 16, (0.05, 0.14))), warmup=0,
        memory=partial(Queue, queue, start=1, per_view=True) if queue else None)
    learn = swav_learner(recipe)
    assert learn.recipe.lr == peak
    program = SwAVProgram(learn.model, queue, used_from=1, lrs=cosine(peak, peak / 1000, EPOCHS * BATCHES))
    learn.fit_contrastive(EPOCHS, peak)
    made = learn.views.made
    assert [*made[0]['views'].shape[:2], *made[0]['local'].shape[:2]] == [2, B, 6, B]
    for views, loss, weights in zip(made, learn.diary.losses, learn.diary.weights[1:], strict=True):
        assert program.step(views) == pytest.approx(loss, rel=1e-12)
        with torch.no_grad(): program.prototypes.copy_(unit(program.prototypes))  # as the next step does
        same_weights(weights, program.net)
    assert sum(program.queue_used) == (6 if queue else 0)  # of both crops, in the second epoch
    if queue:
        ring = learn.model.memory['queue']['final']
        for rows, theirs in zip(ring.in_order(), program.queue):
            close(rows, torch.cat(theirs.split(B)[::-1]), rtol=1e-10, atol=1e-12)


def test_swavs_biases_and_norms_are_adapted_too():
    recipe = METHODS['swav']('imagenet', projector=(16, D), prototypes=K, memory=None, wd=0., multi_crop=None)
    learn = swav_learner(recipe)
    program = SwAVProgram(learn.model, lrs=[0.6] * 6, wd=0.)
    learn.fit(EPOCHS, 0.6)
    for views in learn.views.made: program.step(views)
    with torch.no_grad(): program.prototypes.copy_(unit(program.prototypes))
    same_weights(learn.diary.weights[-1], program.net)


def test_swavs_two_commands():
    small, large = (RECIPES['swav'].resolve(setting) for setting in ('imagenet', 'large_batch'))
    assert [small.lr, small.lr * small.lr_end, small.warmup] == pytest.approx([0.6, 0.0006, 0])  # at 256
    peak = large.lr * 4096 / 256
    assert [peak, peak * large.warmup_from, peak * large.lr_end, large.warmup] == pytest.approx([4.8, 0.3, 0.0048, 10])
    assert repr(small.memory()) == 'Queue(3840, start=15, per_view=True)' and large.memory is None
    assert repr(small.multi_crop()) == 'MultiCrop((2, None, (0.14, 1.0)), (6, None, (0.05, 0.14)))'
    cifar = RECIPES['swav'].resolve('cifar')
    assert repr(cifar.memory()) == 'Queue(3840, start=50, per_view=True)'
    assert [cifar.prototypes_frozen, cifar.wd, cifar.wd_all, cifar.lr, cifar.warmup] == [2, 1e-6, False, 0.6, 10]
    assert cifar.opt_args == dict(trust_coeff=0.02, trust_clip=True)


class DINOProgram:
    "Its training loop: student, teacher, centre, two groups of parameters, and clipping of each gradient"
    def __init__(self, learn, opt, wds, lrs, temps, clip, momentum=0.996):
        self.net = copy.deepcopy(learn.model)
        self.net.memory.clear()
        self.teacher = copy.deepcopy(learn.ema_target.target)
        for p, q in zip(self.teacher.parameters(), self.net.parameters(), strict=True): assert torch.equal(p, q)
        decayed = [p for n, p in self.net.named_parameters() if not n.endswith('.bias') and p.ndim > 1]
        rest = [p for n, p in self.net.named_parameters() if n.endswith('.bias') or p.ndim == 1]
        self.opt = opt([dict(params=decayed), dict(params=rest, weight_decay=0.)])
        self.wds, self.lrs, self.temps, self.clip = wds, lrs, temps, clip
        self.momenta = cosine(momentum, 1, EPOCHS * BATCHES)
        self.center, self.number, self.clipped = torch.zeros(K, dtype=torch.float64), 0, 0

    @staticmethod
    def scores(net, crops):
        "Each resolution through the encoder, and all through the head, whose last layer has directions of length one"
        head = net.heads['final']
        h = torch.cat([net.encoder(x.flatten(0, 1)) for x in crops])
        return unit(head.projector(h)) @ unit(head.prototypes.weight).T

    def loss(self, views, state):
        with torch.no_grad(): k = self.scores(self.teacher, [views['views']])
        torch.set_rng_state(state)
        student = (self.scores(self.net, [views['views'], views['local']]) / 0.1).chunk(10)
        teacher = ((k - self.center) / self.temps[self.number // BATCHES]).softmax(-1).chunk(2)
        self.center = 0.9 * self.center + 0.1 * k.mean(0)
        terms = [-(t * s.log_softmax(-1)).sum(-1).mean() for i, t in enumerate(teacher)
                 for v, s in enumerate(student) if v != i]
        assert len(terms) == 18
        return sum(terms) / len(terms)

    def step(self, views, state):
        loss = self.loss(views, state)
        self.opt.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in self.net.parameters():
                share = self.clip / (p.grad.norm() + 1e-6)
                self.clipped += share < 1
                if share < 1: p.grad.mul_(share)
            if self.number < BATCHES: self.net.heads['final'].prototypes.weight.grad = None
        for group in self.opt.param_groups: group['lr'] = self.lrs[self.number]
        self.opt.param_groups[0]['weight_decay'] = self.wds[self.number]
        self.opt.step()
        m = self.momenta[self.number]
        with torch.no_grad():
            for q, k in zip(self.net.parameters(), self.teacher.parameters()): k.mul_(m).add_((1 - m) * q)
        self.number += 1
        return loss.item()


def follow_dino(learn, program, peak):
    learn.fit_contrastive(EPOCHS, peak)
    made = learn.views.made
    assert [*made[0]['views'].shape[:2], *made[0]['local'].shape[:2]] == [2, B, 8, B]
    for views, state, loss, weights in zip(made, learn.draws.states, learn.diary.losses, learn.diary.weights[1:],
                                           strict=True):
        assert program.step(views, state) == pytest.approx(loss, rel=1e-12)
        same_weights(weights, program.net)
    same_weights(learn.ema_target.target.state_dict(), program.teacher)
    close(learn.model.memory['losses']['final'].center, program.center, rtol=1e-10, atol=1e-12)
    assert 0 < program.clipped < EPOCHS * BATCHES * len([*program.net.parameters()])


HEADS = dict(projector=(16, 16, D), prototypes=K, warmup=0)


@pytest.mark.parametrize('drop_path', [0., 0.5])
def test_dino_with_a_vit(drop_path):
    recipe = METHODS['dino']('imagenet', drop_path=drop_path, clip_each=0.02,
                             multi_crop=RECIPES['dino'].multi_crop, **HEADS)
    learn = authors_learner(recipe, VIT, side=64)
    steps, peak = EPOCHS * BATCHES, 5e-3
    program = DINOProgram(learn, torch.optim.AdamW, cosine(0.04, 0.4, steps), cosine(peak, peak / 1000, steps),
                          [0.04, 0.04 + 0.03 / 29], clip=0.02)
    follow_dino(learn, program, peak)


def test_dino_with_a_resnet():
    multi_crop = RECIPES['dino'].encoders['cnn']['multi_crop']
    learn = authors_learner(METHODS['dino']('imagenet', clip_each=0.05, multi_crop=multi_crop, **HEADS), ARCH)
    steps, peak = EPOCHS * BATCHES, 0.03
    program = DINOProgram(learn, partial(torch.optim.SGD, lr=0., momentum=0.9), [1e-4] * steps, cosine(peak, 0, steps),
                          [0.04, 0.04], clip=0.05)
    follow_dino(learn, program, peak)


def test_dinos_two_commands():
    vit, cnn, cifar = (RECIPES['dino'].resolve(setting, encoder=kind) for setting, kind in
                       [('imagenet', 'vit'), ('imagenet', 'cnn'), ('cifar', 'cnn')])
    assert [vit.opt, vit.lr, vit.wd, vit.wd_end, vit.drop_path, vit.wd_tokens] == ['adamw', 5e-4, 0.04, 0.4, 0.1, True]
    assert [cnn.opt, cnn.lr, cnn.wd, cnn.wd_end, cnn.drop_path] == ['sgd', 0.03, 1e-4, None, 0.]
    assert [cifar.opt, cifar.lr, cifar.wd, cifar.wd_end, cifar.clip_each] == ['lars', 0.3, 1e-6, None, None]
    assert repr(vit.multi_crop()) == 'MultiCrop((2, None, (0.4, 1.0)), (8, None, (0.05, 0.4)))'
    assert repr(cnn.multi_crop()) == 'MultiCrop((2, None, (0.14, 1.0)), (8, None, (0.05, 0.14)))'
    for recipe in (vit, cnn):
        assert [recipe.clip_each, recipe.prototypes_frozen, recipe.projector_bn, recipe.warmup] == [3.0, 1, False, 10]
        assert repr(recipe.target()) == "EMATarget(0.996, 'cosine')"
    losses = vit.loss(), cnn.loss()
    for epoch, expected in [(0, [0.04, 0.04]), (29, [0.07, 0.04]), (90, [0.07, 0.04])]:
        for loss in losses: loss.prepare(epoch)
        assert [loss.key_temp for loss in losses] == pytest.approx(expected)


def test_only_the_student_drops_paths():
    learn = authors_learner(METHODS['dino']('imagenet', **HEADS), VIT, side=64)
    rates = [[m.drop_prob for m in net.modules() if isinstance(m, DropPath)]
             for net in (learn.model.encoder, learn.ema_target.target)]
    assert rates[0] == pytest.approx([r for i in range(6) for r in [0.02 * i] * 2]) and rates[1] == [0.] * 12
    text = refusal(contrastive_learner, pictures(BATCHES * B), ARCH, method=METHODS['dino'](drop_path=0.1))
    assert 'drop_path=0.1' in text and ARCH in text


def test_a_transformer_whose_blocks_cannot_be_skipped():
    "The recipe's own rate is left out, one that was asked for is refused"
    vit = torchvision.models.VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16)
    def learner(**changes):
        recipe = METHODS['dino']('imagenet', **HEADS, **changes)
        return contrastive_learner(pictures(BATCHES * B), vit, method=recipe, knn_pictures=0)
    learn = learner()
    assert learn.recipe.drop_path == 0.1
    assert "drop_path=0.1 of dino() is left out: 'VisionTransformer' has no blocks that can be skipped" in learn.notes
    assert not any('drop_path' in note for note in learner(drop_path=0.).notes)
    assert "drop_path=0.2 is for encoders" in refusal(learner, drop_path=0.2)
