"""The share of a MoCo v2 step that a queue of 65,536 keys of width 128 takes. Goal, for resnet50 at 224 px: at most 2 %.

The queue's part, measured alone: the loss of a batch with the queue, forward and backward, and writing the batch's keys into
it. The whole step is the learner's. The queue's arithmetic grows with the batch alone, the step's with the batch and the area
of the pictures, so small pictures make the share larger; the FLOPs of both are counted beside the times.

    python benchmarks/queue_share.py           # 224 px, batch 256 on a GPU; 64 and 224 px, batch 8 without one
    python benchmarks/queue_share.py --sizes 64 --bs 16
"""
import argparse

import torch
import torch.nn.functional as F
from common import alternate, device, save
from step_time import Pictures
from torch.utils.flop_counter import FlopCounterMode

from fastcontrast.all import Queue, contrastive_learner, image_dls, moco_v2


def gflop(f) -> float:
    with FlopCounterMode(display=False) as count: f()
    return count.get_total_flops() / 1e9


def main():
    cuda = device() == "cuda"
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--arch", default="resnet50")
    arg.add_argument("--sizes", type=int, nargs="+", default=[224] if cuda else [64, 224])
    arg.add_argument("--bs", type=int, default=256 if cuda else 8)
    arg.add_argument("--queue", type=int, default=65536, help="keys in the queue")
    arg.add_argument("--steps", type=int, default=10 if cuda else 1, help="steps in a measurement")
    arg.add_argument("--repeats", type=int, default=10, help="for every step, how often the queue's part runs")
    arg.add_argument("--rounds", type=int, default=5, help="measurements of each")
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    result = dict(arch=a.arch, bs=a.bs, queue=a.queue, steps=a.steps, repeats=a.repeats, rounds=a.rounds, goal="share at most .02 (resnet50, 224 px)", sizes={})
    for size in a.sizes:
        torch.manual_seed(0)
        dls = image_dls(Pictures(a.bs * a.steps, size), size=size, bs=a.bs, valid=0, device=device())
        learn = contrastive_learner(dls, a.arch, moco_v2(setting="imagenet"), cbs=Queue(a.queue))
        ring, loss = learn.model.memory["queue"]["final"], learn.loss_func.loss
        q, k = torch.randn(2, a.bs, ring.rows.shape[1], device=dls.device)
        q.requires_grad_()
        k = F.normalize(k, dim=-1)

        def queue_part(q=q, k=k, ring=ring, loss=loss):
            loss(q, k, ring.rows).backward()
            q.grad = None
            ring.push(k)

        def queue_parts(steps=a.steps * a.repeats, part=queue_part):
            for _ in range(steps): part()

        def step(learn=learn):
            with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1)

        got = alternate(queue_parts, step, a.rounds)
        share = got["ratio"] / a.repeats
        row = result["sizes"][size] = dict(step_s=got["b_s"] / a.steps, queue_s=got["a_s"] / a.steps / a.repeats, share=share,
                                           share_quartiles=[r / a.repeats for r in got["ratio_quartiles"]],
                                           step_gflop=gflop(step) / a.steps, queue_gflop=gflop(queue_part))
        print(f"{size} px, batch {a.bs}: the queue takes {row['queue_s'] * 1e3:.3g} ms of {row['step_s']:.3g} s, {share:.2%}, "
              f"for {row['queue_gflop'] / row['step_gflop']:.3%} of {row['step_gflop']:.4g} GFLOP", flush=True)
    save(f"queue_share_{device()}", result, a.out)


if __name__ == "__main__": main()
