"""The steps of the methods as bare `for` loops: the same arithmetic as the learner's, without fastai and callbacks.

A loop has the learner's encoder, heads, loss, views, pictures and PyTorch optimizer; everything else is written
out. It is what `speed step-time` and `memory step` compare with, and `tests/benchmarks` checks that weights and
losses are the learner's.

Its convolutions are PyTorch's own. On a CPU in bfloat16 these leave part of a gradient unwritten where a kernel with a
stride meets a map smaller than it, which a learner's do not (nbs/180): so pictures for it have 32 pixels at least.
"""
import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcontrast.device import reuse_memory
from fastcontrast.optim import OPTIMIZERS, SCHEDULES, parameter_groups, warmup_then
from fastcontrast.recipes import make_part
from fastcontrast.targets import EMA_SCHEDULES


class Loop:
    """A learner's method by hand, on a copy of its model or (copied=False) the model itself"""
    def __init__(self, learn, copied: bool = True, lr: float | None = None):
        self.recipe, self.device, self.train = learn.recipe, learn.dls.device, learn.dls.train
        self.model = copy.deepcopy(learn.model) if copied else learn.model
        self.views, self.normalize, self.half = learn.views, learn.normalize, learn.precision == "bf16"
        r, memory = self.recipe, self.model.memory
        self.loss, self.prototypes = memory["losses"]["final"], self.model.heads["final"].prototypes
        self.method = METHODS[r.name]
        self.peak = r.peak_lr(self.train.bs) if lr is None else lr
        groups = parameter_groups(self.model, r.wd, r.opt == "lars", r.predictor_constant_lr, r.wd_all, r.wd_tokens)
        self.opt = OPTIMIZERS[r.opt](groups, lr=self.peak, **r.opt_args)
        self.decaying = [group for group in self.opt.param_groups if group["weight_decay"]]
        self.rate = warmup_then(r.schedule, self.peak, min(r.warmup, r.warmup_share), r.warmup_from, r.lr_end)
        rings = [memory[name]["final"] for name in ("queue", "neighbours") if name in memory]
        self.rows, self.oldest = rings[0].rows if rings else None, 0
        self.target = memory["ema"] if "ema" in memory else None
        if self.target is not None:
            self.average = make_part(r.target)
            names, self.averaged = zip(*self.target.named_parameters())
            self.online = [self.model.get_parameter(name) for name in names]

    def epoch(self, order: Tensor | None = None) -> list[Tensor]:
        """The steps of an epoch, as of `learn.fit_contrastive(1, lr)`, with the pictures in a random order or a
        given one

        Returns the losses.
        """
        self.model.train()
        images, bs = self.train.images, self.train.bs
        self.steps = steps = len(images) // bs
        if order is None: order = torch.randperm(len(images), device=self.device)
        with reuse_memory(self.device):  # as a fit does
            losses = [self.step(images.index_select(0, index), number / steps)
                      for number, index in enumerate(order.split(bs)[:steps])]
        assert torch.isfinite(losses[-1])
        return losses

    def step(self, images: Tensor, done: float) -> Tensor:
        """A step on pictures, after a share of the run; returns the loss"""
        x = self.normalize(self.views(images)["views"])
        self.set_schedules(done)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half): loss, keys = self.method(self, x)
        loss.backward()
        self.clip()
        if keys is not None: self.remember(keys)
        self.opt.step()
        self.opt.zero_grad()
        self.after(done)
        return loss.detach()

    def set_schedules(self, done: float) -> None:
        r = self.recipe
        for group in self.opt.param_groups: group["lr"] = self.peak if group.get("constant_lr") else self.rate(done)
        if r.wd_end is None: return
        for group in self.decaying: group["weight_decay"] = r.wd_end - (r.wd_end - r.wd) * SCHEDULES["cosine"](done)

    def clip(self) -> None:
        """Each gradient alone, as DINO does"""
        if (most := self.recipe.clip_each) is None: return
        for p in self.model.parameters():
            if p.grad is not None: p.grad.mul_((most / (p.grad.norm() + 1e-6)).clamp_(max=1))

    def remember(self, keys: Tensor) -> None:
        """Write them over the oldest rows"""
        size, new = self.rows.shape[-2], keys.shape[-2]
        places = (self.oldest + torch.arange(new, device=self.device)) % size
        self.rows[..., places, :] = F.normalize(keys.float(), dim=-1)
        self.oldest = (self.oldest + new) % size

    @torch.no_grad()
    def after(self, done: float) -> None:
        """The moving average, and prototypes of length one"""
        if self.target is not None:
            share = min(1., done + self.average.ahead / self.steps)
            momentum = EMA_SCHEDULES[self.average.schedule](self.average.momentum, self.average.end, share)
            torch._foreach_lerp_(self.averaged, self.online, 1 - momentum)
        if self.prototypes and not self.prototypes.weight_norm:
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight))

    def head(self, net, x: Tensor) -> list[tuple[Tensor, ...]]:
        """The head's outputs, `(z,)` or `(z, p)`, view by view; BatchNorm sees each view alone, or all of them"""
        head = net.heads["final"]
        if self.recipe.per_view: return [head(net.encoder(v)) for v in x]
        return list(zip(*(t.unflatten(0, x.shape[:2]) for t in head(net.encoder(x.flatten(0, 1))))))

    def online_head(self, x: Tensor) -> list[tuple[Tensor, ...]]: return self.head(self.model, x)

    @torch.no_grad()
    def keys(self, x: Tensor) -> Tensor: return torch.stack([k for (k,) in self.head(self.target, x)])

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False): return self.rows[(z.float() @ self.rows.T).argmax(1)]


# Each takes the loop and views `[V, B, C, S, S]`, and gives the loss and what is to be remembered, or None.

def both_ways(loop, x):
    (z1,), (z2,) = loop.online_head(x)
    return loop.loss(z1, z2), None


def with_queue(loop, x):
    (q,), k = *loop.online_head(x[:1]), loop.keys(x[1:])[0]
    return loop.loss(q, k, loop.rows), k


def predicted(loop, x):
    ((_, p1), (_, p2)), (k1, k2) = loop.online_head(x), loop.keys(x)
    return (loop.loss(p1, k2) + loop.loss(p2, k1)) / 2, None


def simsiam(loop, x):
    (z1, p1), (z2, p2) = loop.online_head(x)
    return (loop.loss(p1, z2.detach()) + loop.loss(p2, z1.detach())) / 2, None


def nnclr(loop, x):
    (z1, p1), (z2, p2) = loop.online_head(x)
    n1, n2 = loop.nearest(torch.cat([z1.detach(), z2.detach()])).chunk(2)
    return (loop.loss(p1, n2) + loop.loss(p2, n1)) / 2, z1.detach()


def swav(loop, x):
    z = torch.stack([z for (z,) in loop.online_head(x)])
    s1, s2 = loop.prototypes(z)
    with torch.no_grad(): old = loop.prototypes(loop.rows)
    return (loop.loss(s1, s2, old[1]) + loop.loss(s2, s1, old[0])) / 2, z.detach()


def dino(loop, x):
    s1, s2 = loop.prototypes(torch.stack([z for (z,) in loop.online_head(x)]))
    with torch.no_grad(): k = loop.target.heads["final"].prototypes(loop.keys(x))
    value = (loop.loss(s1, k[1]) + loop.loss(s2, k[0])) / 2
    loop.loss.update(torch.cat([s1, s2]).detach(), k)
    return value, None


METHODS = dict(
    simclr=both_ways, moco_v1=with_queue, moco_v2=with_queue, moco_v3=predicted, byol=predicted, simsiam=simsiam,
    nnclr=nnclr, swav=swav, barlow_twins=both_ways, vicreg=both_ways, dino=dino)
