"""One training step of the learner over a hand-written loop that does the same arithmetic.

Both have the same encoder, heads, views, loss functions, optimizer and pictures already in memory; what is compared is the
machinery around them: fastai's loop and this library's callbacks against a bare `for` loop. Goal: at most 1.05.

    python benchmarks/step_time.py            # SimCLR and MoCo v3, resnet18, 32 px, batch 256
"""
import argparse
import copy

import torch
from common import alternate, device, save

from fastcontrast.all import InfoNCE, NTXent, contrastive_learner, image_dls, moco_v3, simclr
from fastcontrast.recipes import OPTIMIZERS, parameter_groups, warmup_then


class Pictures:
    """Random pictures, as a data set"""
    classes = None

    def __init__(self, n, size): self.x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], -1


def bare_loop(learn, batches, copied=True):
    """The same steps as `learn.fit`, by hand, on a copy of its model or the model itself; returns a function that runs one epoch"""
    r, size, dev = learn.recipe, learn.dls.size, learn.dls.device
    model = copy.deepcopy(learn.model) if copied else learn.model
    encoder, head = model.encoder, model.heads["final"]
    views, normalize = learn.views, learn.contrast.normalize
    opt = OPTIMIZERS[r.opt](parameter_groups(model, r.wd, r.opt == "lars"), lr=0.1, **r.opt_args)
    images = batches.images
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=dev.type == "cuda")

    nt_xent = NTXent(learn.loss_func.loss.temp)

    def simclr_loss(v):
        h = encoder(v.flatten(0, 1))
        (z,) = head(h)
        return nt_xent(*z.unflatten(0, v.shape[:2]))

    if r.name == "moco_v3":
        target_encoder, target_head = model.memory["ema"].encoder, model.memory["ema"].heads["final"]
        online = [p for m in (encoder, head.projector) for p in m.parameters()]
        averaged = [p for m in (target_encoder, target_head.projector) for p in m.parameters()]
        nce = InfoNCE(learn.loss_func.loss.temp, scale=learn.loss_func.loss.scale)

    def moco_loss(v):
        p1, p2 = (head(encoder(x))[-1] for x in v)
        with torch.no_grad(): k1, k2 = (target_head(target_encoder(x))[0] for x in v)
        return (nce(p1, k2) + nce(p2, k1)) / 2

    def epoch():
        model.train()
        lr, n = warmup_then("cosine", 0.1, 0.1), len(images) // batches.bs
        order = torch.randperm(len(images), device=dev)
        for i, at in enumerate(order.split(batches.bs)[:n]):
            v = normalize(views(images.index_select(0, at))["views"])
            for g in opt.param_groups: g["lr"] = lr(i / n)
            with autocast: loss = moco_loss(v) if r.name == "moco_v3" else simclr_loss(v)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if r.name == "moco_v3":
                with torch.no_grad(): torch._foreach_lerp_(averaged, online, 0.01)
        assert torch.isfinite(loss) and v.shape[-1] == size
    return epoch


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--size", type=int, default=32)
    arg.add_argument("--bs", type=int, default=256)
    arg.add_argument("--steps", type=int, default=3, help="steps in a measurement")
    arg.add_argument("--rounds", type=int, default=7, help="measurements of each")
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    result = dict(arch=a.arch, size=a.size, bs=a.bs, steps=a.steps, rounds=a.rounds, goal="ratio at most 1.05")
    for method in (simclr, moco_v3):
        torch.manual_seed(0)
        dls = image_dls(Pictures(a.bs * a.steps, a.size), size=a.size, bs=a.bs, valid=0, device=device())
        learn = contrastive_learner(dls, a.arch, method(setting="cifar"), small_input=False)
        bare = bare_loop(learn, dls.train)

        def ours(learn=learn):
            with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1, lr=0.1)

        got = alternate(ours, bare, a.rounds)
        result[method.__name__] = dict(ours_s_per_step=got["a_s"] / a.steps, bare_s_per_step=got["b_s"] / a.steps, ratio=got["ratio"],
                                       ratio_quartiles=got["ratio_quartiles"])
        print(f"{method.__name__}: {got['ratio']:.3f} (quartiles {got['ratio_quartiles'][0]:.3f} to {got['ratio_quartiles'][1]:.3f}), "
              f"{got['a_s'] / a.steps:.3f} s against {got['b_s'] / a.steps:.3f} s a step", flush=True)
    save(f"step_time_{device()}", result, a.out)


if __name__ == "__main__": main()
