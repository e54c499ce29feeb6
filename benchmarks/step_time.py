"""One training step of the learner over a hand-written loop that does the same arithmetic, for every method.

Both have the same encoder, heads, views, loss functions, optimizer and pictures already in memory; what is compared is the
machinery around them: fastai's loop and this library's callbacks against a bare `for` loop. Every method is measured as it
is in most of a long run: its memory of full size and in use, its prototypes moving. Goal: at most 1.05.

    python benchmarks/step_time.py            # all methods, resnet18 with its ImageNet stem, 32 px, batch 256
    python benchmarks/step_time.py --methods simclr moco_v3 --small-input
"""
import argparse
import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from common import alternate, device, save

from fastcontrast.all import Queue, contrastive_learner, image_dls
from fastcontrast.device import reuse_memory
from fastcontrast.recipes import METHODS, OPTIMIZERS, RECIPES, SCHEDULES, make_part, parameter_groups, warmup_then
from fastcontrast.targets import EMA_SCHEDULES


class Pictures:
    """Random pictures, as a data set"""
    classes = None

    def __init__(self, n, size): self.x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], -1


def settled_learner(dls, arch, method, small_input=False, rows=None, **changes):
    """A learner as it is in most of a long run

    rows: of its memory, if it has one (None: as many as the recipe says); changes: of other fields of the recipe.
    """
    recipe = replace(METHODS[method](setting="cifar", **changes), prototypes_frozen=0)
    memory = make_part(recipe.resolve("cifar").memory)
    if memory is not None: memory.size = rows or memory.size  # given as a callback it isn't cut to the number of pictures
    if isinstance(memory, Queue): memory.start = 0
    return contrastive_learner(dls, arch, recipe, cbs=memory, small_input=small_input)


BASE = [name for name, recipe in RECIPES.items() if not recipe.speedups] # those with speedups: see speedups.py


def by_hand(model, recipe, rows):
    """The method's loss written out: a function of views `[V, B, C, S, S]` that returns it, and the keys to remember or None"""
    loss, prototypes = model.memory["loss"], model.heads["final"].prototypes
    target = model.memory["ema"] if "ema" in model.memory else None

    def head(net, x):
        "The head's outputs, `(z,)` or `(z, p)`, view by view; BatchNorm sees each view alone, or all of them"
        if recipe.per_view: return [net.heads["final"](net.encoder(v)) for v in x]
        return list(zip(*(t.unflatten(0, x.shape[:2]) for t in net.heads["final"](net.encoder(x.flatten(0, 1))))))

    @torch.no_grad()
    def keys(x): return torch.stack([k for (k,) in head(target, x)])

    @torch.no_grad()
    def nearest(z):
        with torch.autocast(z.device.type, enabled=False): return rows[(z.float() @ rows.T).argmax(1)]

    def both(x):
        (z1,), (z2,) = head(model, x)
        return loss(z1, z2), None

    def queued(x):
        (q,), k = *head(model, x[:1]), keys(x[1:])[0]
        return loss(q, k, rows), k

    def predicted(x):
        ((_, p1), (_, p2)), (k1, k2) = head(model, x), keys(x)
        return (loss(p1, k2) + loss(p2, k1)) / 2, None

    def simsiam(x):
        (z1, p1), (z2, p2) = head(model, x)
        return (loss(p1, z2.detach()) + loss(p2, z1.detach())) / 2, None

    def nnclr(x):
        (z1, p1), (z2, p2) = head(model, x)
        n1, n2 = nearest(torch.cat([z1.detach(), z2.detach()])).chunk(2)
        return (loss(p1, n2) + loss(p2, n1)) / 2, z1.detach()

    def swav(x):
        z = torch.stack([z for (z,) in head(model, x)])
        s1, s2 = prototypes(z)
        with torch.no_grad(): old = prototypes(rows)
        return (loss(s1, s2, old) + loss(s2, s1, old)) / 2, z.detach().flatten(0, 1)

    def dino(x):
        s1, s2 = prototypes(torch.stack([z for (z,) in head(model, x)]))
        with torch.no_grad(): k = target.heads["final"].prototypes(keys(x))
        value = (loss(s1, k[1]) + loss(s2, k[0])) / 2
        loss.update(k)
        return value, None

    return dict(simclr=both, moco_v1=queued, moco_v2=queued, moco_v3=predicted, byol=predicted, simsiam=simsiam, nnclr=nnclr, swav=swav,
                barlow_twins=both, vicreg=both, dino=dino)[recipe.name]


def bare_loop(learn, batches, copied=True, lr=None):
    """The same steps as `learn.fit_contrastive(1, lr)`, by hand, on a copy of its model or the model itself

    Returns a function that runs one epoch, with the pictures in a random order or a given one, and returns the losses.
    """
    r, dev, images, bs = learn.recipe, learn.dls.device, batches.images, batches.bs
    model = copy.deepcopy(learn.model) if copied else learn.model
    views, normalize, prototypes = learn.views, learn.normalize, model.heads["final"].prototypes
    peak = r.lr * bs / 256 if lr is None else lr
    opt = OPTIMIZERS[r.opt](parameter_groups(model, r.wd, r.opt == "lars", r.predictor_constant_lr, r.wd_all), lr=peak, **r.opt_args)
    decaying = [g for g in opt.param_groups if g["weight_decay"]]
    rate = warmup_then(r.schedule, peak, min(r.warmup, 0.1))
    half = torch.autocast(dev.type, torch.bfloat16, enabled=learn.precision == "bf16")
    (ring,) = [model.memory[name]["final"] for name in ("queue", "neighbours") if name in model.memory] or [None]
    rows, oldest = ring.rows if ring else None, 0
    loss_of = by_hand(model, r, rows)
    if ema := make_part(r.target) if "ema" in model.memory else None:
        names, averaged = zip(*model.memory["ema"].named_parameters())
        online = [model.get_parameter(name) for name in names]

    @reuse_memory(dev)  # as a fit does
    def epoch(order=None):
        nonlocal oldest
        model.train()
        losses, n = [], len(images) // bs
        if order is None: order = torch.randperm(len(images), device=dev)
        for i, at in enumerate(order.split(bs)[:n]):
            x, t = normalize(views(images.index_select(0, at))["views"]), i / n
            for g in opt.param_groups: g["lr"] = peak if g.get("constant_lr") else rate(t)
            if r.wd_end is not None:
                for g in decaying: g["weight_decay"] = r.wd_end - (r.wd_end - r.wd) * SCHEDULES["cosine"](t)
            with half: loss, new = loss_of(x)
            loss.backward()
            if r.clip_each is not None:
                for p in model.parameters():
                    if p.grad is not None: p.grad.mul_((r.clip_each / (p.grad.norm() + 1e-6)).clamp_(max=1))
            if new is not None:
                rows[(oldest + torch.arange(len(new), device=dev)) % len(rows)] = F.normalize(new.float())
                oldest = (oldest + len(new)) % len(rows)
            opt.step()
            opt.zero_grad()
            with torch.no_grad():
                if ema: torch._foreach_lerp_(averaged, online, 1 - EMA_SCHEDULES[ema.schedule](ema.momentum, ema.end, t))
                if prototypes and not prototypes.weight_norm: prototypes.weight.copy_(F.normalize(prototypes.weight))
            losses.append(loss.detach())
        assert torch.isfinite(loss)
        return losses
    return epoch


LR = 0.01  # small, so that random pictures and a warm-up of a step do not end in numbers that are none


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--methods", nargs="+", choices=BASE, default=BASE, metavar="METHOD", help=f"of {', '.join(BASE)}")
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--small-input", action="store_true", help="give the ResNet the stem for small pictures")
    arg.add_argument("--size", type=int, default=32)
    arg.add_argument("--bs", type=int, default=256)
    arg.add_argument("--steps", type=int, default=2, help="steps in a measurement")
    arg.add_argument("--rounds", type=int, default=5, help="measurements of each")
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    result = dict(arch=a.arch, small_input=a.small_input, size=a.size, bs=a.bs, steps=a.steps, rounds=a.rounds, goal="ratio at most 1.05")
    for method in a.methods:
        torch.manual_seed(0)
        dls = image_dls(Pictures(a.bs * a.steps, a.size), size=a.size, bs=a.bs, valid=0, device=device())
        learn = settled_learner(dls, a.arch, method, a.small_input)
        bare = bare_loop(learn, dls.train, lr=LR)

        def ours(learn=learn):
            with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1, lr=LR)

        got = alternate(ours, bare, a.rounds)
        result[method] = dict(ours_s_per_step=got["a_s"] / a.steps, bare_s_per_step=got["b_s"] / a.steps, ratio=got["ratio"],
                              ratio_quartiles=got["ratio_quartiles"])
        print(f"{method}: {got['ratio']:.3f} (quartiles {got['ratio_quartiles'][0]:.3f} to {got['ratio_quartiles'][1]:.3f}), "
              f"{got['a_s'] / a.steps:.3f} s against {got['b_s'] / a.steps:.3f} s a step", flush=True)
    save(f"step_time_{device()}", result, a.out)


if __name__ == "__main__": main()
