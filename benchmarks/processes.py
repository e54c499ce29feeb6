"""Time of training on two CPU processes over training on one: the same batches, and together as many threads.

One process has all the threads, two have half of them each and half of every batch; both train SimCLR (with `--method`, another) on
the same pictures in memory, by `accelerate launch`'s engine in the second case. Each measurement is a run of its own; they alternate.
Only steps are on the clock, not the start of the processes. Goal: at most 1.15.

    python benchmarks/processes.py                       # resnet18 with its ImageNet stem, 32 px, batch 256
    python benchmarks/processes.py --size 128 --bs 64
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from common import save


def measure(a) -> None:
    """Seconds of the steps, as this process (of those that train together) sees them"""
    import torch
    from fastai.callback.core import Callback, CancelFitException
    from step_time import Pictures

    from fastcontrast.all import contrastive_learner, image_dls
    from fastcontrast.distributed import rank

    class Clock(Callback):
        order = 100

        def before_batch(self):
            if self.train_iter == a.warm: self.began = time.perf_counter()
            if self.train_iter == a.warm + a.steps:
                self.seconds = time.perf_counter() - self.began
                raise CancelFitException

    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    clock, dls = Clock(), image_dls(Pictures(4 * a.bs, a.size), size=a.size, bs=a.bs, valid=0, device="cpu")
    learn = contrastive_learner(dls, a.arch, a.method, small_input=False, cbs=clock)
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(-(-(a.warm + a.steps + 1) // len(dls.train)), lr=0.01)
    if not rank(): print(json.dumps(clock.seconds))


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--method", default="simclr")
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--size", type=int, default=32)
    arg.add_argument("--bs", type=int, default=256)
    arg.add_argument("--warm", type=int, default=2, help="steps before the clock starts")
    arg.add_argument("--steps", type=int, default=8, help="steps on the clock")
    arg.add_argument("--rounds", type=int, default=5)
    arg.add_argument("--cores", type=int, default=2, help="threads of one process, and of two together")
    arg.add_argument("--out", help="folder for the results")
    arg.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    a = arg.parse_args()
    if a.threads: return measure(a)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    commands = dict(one=([sys.executable], a.cores), two=(launch, max(1, a.cores // 2)))
    got: dict[str, list[float]] = dict(one=[], two=[])
    for r in range(a.rounds):
        for name in sorted(got, reverse=bool(r % 2)):
            command, threads = commands[name]
            out = subprocess.run([*command, *sys.argv, f"--threads={threads}"], capture_output=True, text=True,
                                 env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)})
            if out.returncode: sys.exit(out.stderr)
            got[name].append(json.loads(out.stdout.splitlines()[-1]) / a.steps)
            print(f"{name}: {got[name][-1]:.3f} s a step", flush=True)
    ratios = [two / one for one, two in zip(got["one"], got["two"], strict=True)]
    print(f"two processes over one: {statistics.median(ratios):.3f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")
    save(f"processes_{a.size}px_cpu", dict(settings={k: v for k, v in vars(a).items() if k not in ("out", "threads")}, goal="ratio at most 1.15",
         ratio=statistics.median(ratios), ratios=ratios, one_s=got["one"], two_s=got["two"]), a.out)


if __name__ == "__main__":
    main()
