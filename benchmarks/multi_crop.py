"""A SwAV step with two large and six small crops over one with the two large ones: how many times the time, for how many times
the arithmetic.

The arithmetic is that of a forward and backward pass through encoder, head and prototypes, counted by PyTorch for each role;
the queue is left out. Goal: the ratio of the times is at most 1.10 of the ratio of the FLOPs. Beside it, in the same terms,
the passes alone, without augmentation, loss, optimizer and callbacks: what small crops cost on this device in any case.

    python benchmarks/multi_crop.py                                                        # resnet18, 64 and 24 px, batch 64
    python benchmarks/multi_crop.py --arch resnet50 --large 224 --small 96 --bs 256 --steps 10    # on a GPU
"""
import argparse

import torch
from common import alternate, autocast, device, save
from step_time import Pictures
from torch.utils.flop_counter import FlopCounterMode

from fastcontrast.all import MultiCrop, contrastive_learner, image_dls, swav


def training(learn):
    """A function that trains for an epoch"""
    def run():
        with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1)
    return run


def passes(learn, steps=1):
    """A function of no arguments: forward and backward passes of a batch of views, as often as there are steps"""
    images, _ = learn.dls.train.one_batch()
    roles = {role: learn.normalize(x) for role, x in learn.views(images).items()}

    def run(roles=roles):
        for _ in range(steps):
            with autocast(images.device):
                scores = [learn.model.heads["final"].prototypes(levels["final"].p) for levels in learn.model(roles).values()]
            sum(s.float().mean() for s in scores).backward()
            learn.model.zero_grad()

    def flops(role):
        with FlopCounterMode(display=False) as count: run({role: roles[role]})
        return count.get_total_flops() / steps
    return run, {role: flops(role) for role in roles}


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--large", type=int, default=64, help="side of the two large crops")
    arg.add_argument("--small", type=int, default=24, help="side of the six small crops")
    arg.add_argument("--bs", type=int, default=64)
    arg.add_argument("--steps", type=int, default=2, help="steps in a measurement")
    arg.add_argument("--rounds", type=int, default=7, help="measurements of each")
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    learners = []
    for crops in (MultiCrop((2, a.large, (0.14, 1.0)), (6, a.small, (0.05, 0.14))), None):
        torch.manual_seed(0)
        dls = image_dls(Pictures(a.bs * a.steps, a.large), size=a.large, bs=a.bs, valid=0, device=device())
        learners.append(contrastive_learner(dls, a.arch, swav(setting="imagenet", multi_crop=crops, memory=None)))
    (multi, multi_flops), (two, two_flops) = (passes(learn, a.steps) for learn in learners)
    flop_ratio = sum(multi_flops.values()) / sum(two_flops.values())
    result = dict(arch=a.arch, large=a.large, small=a.small, bs=a.bs, steps=a.steps, rounds=a.rounds, goal="time over FLOPs at most 1.10",
                  gflop={role: n / 1e9 for role, n in multi_flops.items()}, flop_ratio=flop_ratio)
    for name, pair in dict(step=[training(learn) for learn in learners], passes=(multi, two)).items():
        got = alternate(*pair, a.rounds)
        result[name] = dict(multi_crop_s=got["a_s"] / a.steps, two_views_s=got["b_s"] / a.steps, time_ratio=got["ratio"],
                            time_ratio_quartiles=got["ratio_quartiles"], time_over_flops=got["ratio"] / flop_ratio)
        print(f"{name}: {got['ratio']:.3f} times the time for {flop_ratio:.3f} times the arithmetic: {got['ratio'] / flop_ratio:.3f} "
              f"({got['a_s'] / a.steps:.3f} s against {got['b_s'] / a.steps:.3f} s)", flush=True)
    save(f"multi_crop_{device()}", result, a.out)


if __name__ == "__main__": main()
