"""MoCo v3's own program, written down from its published code: heads, momentum, learning rate, LARS and AdamW, on the
library's encoders, weights and views."""
import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from fastcontrast.learner import contrastive_learner
from fastcontrast.models import fix_positions
from fastcontrast.recipes import byol, moco_v3, simclr
from helpers.learners import build
from helpers.pictures import ARCH, VIT, B, D, pictures
from helpers.refusals import refusal

close = torch.testing.assert_close
EPOCHS = 10
SEED = 7


def their_mlp(layers: int, d_in: int, hidden: int, out: int, last_bn: bool = True) -> nn.Sequential:
    "moco/builder.py, `_build_mlp`"
    mlp = []
    for i in range(layers):
        dim1, dim2 = d_in if i == 0 else hidden, out if i == layers - 1 else hidden
        mlp.append(nn.Linear(dim1, dim2, bias=False))
        if i < layers - 1: mlp += [nn.BatchNorm1d(dim2), nn.ReLU(inplace=True)]
        elif last_bn: mlp.append(nn.BatchNorm1d(dim2, affine=False))
    return nn.Sequential(*mlp)


class TheirLars:
    "moco/optimizer.py"
    def __init__(self, wd): self.wd, self.mu = wd, {}
    def step(self, name, p, lr):
        dp = p.grad
        if p.ndim > 1:
            dp = dp + self.wd * p
            norm, update = p.norm(), dp.norm()
            if norm > 0 and update > 0: dp = dp * 0.001 * norm / update
        self.mu[name] = 0.9 * self.mu.get(name, 0) + dp
        p -= lr * self.mu[name]


class TheirAdamW:
    "`torch.optim.AdamW`, as main_moco.py makes it: every parameter decays"
    def __init__(self, wd, eps): self.wd, self.eps, self.state = wd, eps, {}
    def step(self, name, p, lr):
        m, s, t = self.state.get(name, (0, 0, 0))
        m, s, t = 0.9 * m + 0.1 * p.grad, 0.999 * s + 0.001 * p.grad**2, t + 1
        self.state[name] = m, s, t
        p *= 1 - lr * self.wd
        p -= lr * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + self.eps)


class Theirs:
    "moco/builder.py and main_moco.py"
    def __init__(self, learn, projector, predictor, temp, optimizer, lr, warmup):
        self.encoder, self.predictor = nn.Sequential(copy.deepcopy(learn.model.encoder), projector), predictor
        head = learn.model.heads.final
        for ours, theirs in ((head.projector, projector), (head.predictor, predictor)):
            theirs.double().load_state_dict(ours.state_dict())  # strictly: the same layers
        self.target = copy.deepcopy(self.encoder)
        self.temp, self.optimizer, self.lr, self.warmup = temp, optimizer, lr, warmup

    def loss(self, q, k):
        q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
        return F.cross_entropy(q @ k.T / self.temp, torch.arange(len(q))) * 2 * self.temp

    def adjusted(self, epoch):
        if epoch < self.warmup: return self.lr * epoch / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup) / (EPOCHS - self.warmup)))

    @torch.no_grad()
    def move_target(self, epoch):
        m = 1 - 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS)) * (1 - 0.99)
        for p, t in zip(self.encoder.parameters(), self.target.parameters(), strict=True): t.copy_(t * m + p * (1 - m))

    def step(self, x1, x2, epoch):
        q1, q2 = self.predictor(self.encoder(x1)), self.predictor(self.encoder(x2))
        self.move_target(epoch)
        with torch.no_grad(): k1, k2 = self.target(x1), self.target(x2)
        loss = self.loss(q1, k2) + self.loss(q2, k1)
        named = [*self.encoder.named_parameters(), *self.predictor.named_parameters('predictor')]
        for _, p in named: p.grad = None
        loss.backward()
        with torch.no_grad():
            for name, p in named:
                if p.requires_grad: self.optimizer.step(name, p, self.adjusted(epoch))
        return loss.item()

    def state(self):
        heads = {'heads.final.projector': self.encoder[1], 'heads.final.predictor': self.predictor}
        named = {f'encoder.{n}': t for n, t in self.encoder[0].state_dict().items()}
        for prefix, module in heads.items(): named |= {f'{prefix}.{n}': t for n, t in module.state_dict().items()}
        return {n: t for n, t in named.items() if t.is_floating_point()}


def follows(learn, theirs: Theirs, exact: int):
    "Every loss and weight of a run, and where its target ends; its first steps exactly, then rounding has grown"
    diary, views = learn.diary, learn.views.made
    each = len(views) // EPOCHS
    assert len(views) == len(diary.losses) == EPOCHS * each
    for i, (made, value, weights) in enumerate(zip(views, diary.losses, diary.weights[1:], strict=True)):
        tolerance = 1e-10 if i < exact else 1e-5
        assert theirs.step(*made['views'], i / each) == pytest.approx(value, rel=tolerance)
        for name, t in theirs.state().items():
            close(weights[name], t, rtol=tolerance, atol=tolerance,
                  msg=lambda m, place=f'step {i}, {name}': f'{place}: {m}')
    theirs.move_target(EPOCHS)  # theirs moves at the beginning of the next step
    for ours, t in zip(learn.ema_target.target.parameters(), theirs.target.parameters(), strict=True):
        close(ours, t, rtol=tolerance, atol=tolerance)


def test_a_resnets_steps_are_those_of_the_authors_program():
    learn = build(moco_v3('imagenet', projector=(16, D), predictor=(16, D), wd=1e-3), n=2 * B)
    width = learn.model.encoder.num_features
    theirs = Theirs(learn, their_mlp(2, width, 16, D), their_mlp(2, D, 16, D, last_bn=False), 1.0, TheirLars(1e-3),
                    lr=0.3, warmup=1)
    began = copy.deepcopy(learn.model.encoder.state_dict())
    learn.fit_contrastive(EPOCHS, 0.3)
    follows(learn, theirs, 2 * EPOCHS)
    assert all((t - began[n]).abs().max() > 1e-4 for n, t in learn.model.encoder.named_parameters() if t.ndim > 1)


def vit(**changes):
    return build(moco_v3('imagenet', **changes), n=2 * B, arch=VIT, side=64, small_input=None, precision='fp32')


def test_a_transformers_steps_are_those_of_the_authors_program():
    # the last bias is taken out again by BatchNorm: a smaller eps would make steps of its gradient's rounding
    learn = vit(projector=(16, 16, D), predictor=(16, D), opt_args=dict(eps=1e-4))
    width = learn.model.encoder.num_features
    theirs = Theirs(learn, their_mlp(3, width, 16, D), their_mlp(2, D, 16, D), 0.2, TheirAdamW(0.1, 1e-4),
                    lr=1e-3, warmup=EPOCHS * 40 / 300)
    frozen = {'encoder.patch_embed.proj.weight', 'encoder.patch_embed.proj.bias', 'encoder.pos_embed'}
    online = {n: p for n, p in learn.model.named_parameters() if not n.startswith('memory')}
    assert {n for n, p in online.items() if not p.requires_grad} == frozen
    began = {n: learn.model.state_dict()[n].clone() for n in frozen}
    learn.fit_contrastive(EPOCHS, 1e-3)
    follows(learn, theirs, 5)
    ended, target = learn.model.state_dict(), learn.ema_target.target.state_dict()
    for n in frozen:
        assert torch.equal(ended[n], began[n])
        close(target[n], began[n], rtol=1e-12, atol=0)


def test_what_the_recipe_has_for_transformers():
    r = moco_v3().resolve('imagenet', 224, 'vit')
    assert (r.opt, r.opt_args, r.lr, r.wd, r.wd_all, r.warmup) == ('adamw', {}, 1.5e-4, 0.1, True, 40)
    assert (r.projector, r.predictor, r.projector_out_bn) == ((4096, 4096, 256), (4096, 256), 'plain')
    assert r.predictor_out_bn == 'plain' and r.loss().temp == 0.2 and r.loss().scale == pytest.approx(0.8)
    assert (r.views, moco_v3().resolve('imagenet', 224, 'cnn').views) == ('byol', 'moco_v3')
    learn = vit()
    assert learn._warmup(300) * 300 == pytest.approx(40) and learn._warmup(30) * 30 == pytest.approx(4)
    head = learn.model.heads.final
    shapes = [tuple(m.weight.shape) for m in head.projector if isinstance(m, nn.Linear)]
    assert shapes == [(4096, learn.model.encoder.num_features), (4096, 4096), (256, 4096)]


def test_positions_are_the_authors_waves():
    encoder = timm.create_model(VIT, num_classes=0, img_size=96)
    h, w = encoder.patch_embed.grid_size
    dim = encoder.embed_dim
    assert fix_positions(encoder)
    # vits.py, `build_2d_sincos_position_embedding`
    grid_w, grid_h = torch.meshgrid(torch.arange(w, dtype=torch.float32), torch.arange(h, dtype=torch.float32),
                                    indexing='ij')
    omega = 1. / (10000. ** (torch.arange(dim // 4, dtype=torch.float32) / (dim // 4)))
    out_w, out_h = (torch.einsum('m,d->md', grid.flatten(), omega) for grid in (grid_w, grid_h))
    theirs = torch.cat([out_w.sin(), out_w.cos(), out_h.sin(), out_h.cos()], dim=1)
    prefix = encoder.pos_embed.shape[1] - h * w
    assert (h, w) == (6, 6) and prefix == 1 and not encoder.pos_embed.requires_grad
    close(encoder.pos_embed[0, prefix:], theirs, rtol=0, atol=1e-5)
    assert (encoder.pos_embed[0, :prefix] == 0).all()
    convnet = timm.create_model(ARCH, num_classes=0)
    assert not fix_positions(convnet)  # has none
    assert all(p.requires_grad for p in convnet.parameters())


def test_positions_that_are_not_there_cannot_be_fixed():
    for arch, words in ((ARCH, "'test_resnet_small' has none"),
                        (timm.create_model(VIT, num_classes=0, img_size=32), 'comes with weights')):
        text = refusal(contrastive_learner, pictures(8), arch, method=moco_v3(fixed_positions=True))
        assert 'fixed_positions=True of moco_v3()' in text and words in text
        for recipe in ('moco_v3', moco_v3(fixed_positions=False)):  # nobody asked for it
            contrastive_learner(pictures(8), arch, method=recipe, knn_pictures=0)
    learn = contrastive_learner(pictures(8), VIT, method=moco_v3(fixed_positions=True), knn_pictures=0)
    assert not learn.model.encoder.pos_embed.requires_grad


def test_what_an_encoder_has_not_cannot_be_frozen():
    text = refusal(contrastive_learner, pictures(8), ARCH, method=moco_v3(frozen=('patch_embed.proj',)))
    assert "moco_v3() freezes 'patch_embed.proj', which 'test_resnet_small' has not" in text
    learn = contrastive_learner(pictures(8, 224), 'pit_ti_224', method='moco_v3', knn_pictures=0)  # calls it otherwise
    assert learn.recipe.opt == 'adamw' and all(p.requires_grad for p in learn.model.encoder.parameters())
    assert {"moco_v3() freezes 'patch_embed.proj', which 'pit_ti_224' has not: its patches are trained",
            "moco_v3() puts waves in place of a learnt position embedding, and 'pit_ti_224' has none like timm's "
            "transformers: that is left out"} <= {*learn.notes}
    for arch in (ARCH, VIT):  # nothing of the recipe is in vain
        notes = contrastive_learner(pictures(8), arch, method='moco_v3', knn_pictures=0).notes
        assert not any('freezes' in note or 'waves' in note for note in notes)
    given = contrastive_learner(pictures(8), timm.create_model(VIT, num_classes=0, img_size=32), method='moco_v3',
                                knn_pictures=0)
    assert any('waves' in note and 'comes with weights, which keep theirs' in note for note in given.notes)
    learn = contrastive_learner(pictures(8), ARCH, method=moco_v3(frozen=('layer1',)), knn_pictures=0)
    assert {n.split('.')[0] for n, p in learn.model.encoder.named_parameters() if not p.requires_grad} == {'layer1'}


@pytest.mark.parametrize('method', [simclr, byol, moco_v3])
def test_lars_is_that_of_the_authors_of_the_recipes_for_imagenet(method):
    learn = build(method('imagenet', wd=0.01), n=B)
    learn.create_opt()
    torch.manual_seed(1)
    named = {n: p for n, p in learn.model.named_parameters() if p.requires_grad}
    theirs = TheirLars(0.01)
    with torch.no_grad():
        for _ in range(3):
            twins = {}
            for n, p in named.items():
                p.grad = 1e-3 * torch.randn_like(p)
                twins[n] = p.clone()
                twins[n].grad = p.grad.clone()
                theirs.step(n, twins[n], 0.2)
            learn.opt.set_hyper('lr', 0.2)
            learn.opt.step()
            for n, p in named.items(): close(p, twins[n], rtol=1e-12, atol=1e-14)
    assert {g['weight_decay'] for g in learn.opt.opt.param_groups} == {0.01, 0.}
