"""A few epochs of SimCLR from a folder of pictures: kNN accuracy by epoch, beside the untrained encoder.

    python benchmarks/curves.py data/cifar10 --size 32 --bs 256 --epochs 3
    python benchmarks/curves.py data/imagenette-128 --size 128 --bs 128 --epochs 3
"""
import argparse
import time
from pathlib import Path

import torch
from common import device, save

from fastcontrast.all import contrastive_learner, image_dls
from fastcontrast.evaluate.knn import knn_accuracy, pixels


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("data")
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--method", default="simclr")
    arg.add_argument("--size", type=int, default=32)
    arg.add_argument("--bs", type=int, default=256)
    arg.add_argument("--epochs", type=int, default=3)
    arg.add_argument("--small-input", action=argparse.BooleanOptionalAction, default=None)
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    torch.manual_seed(0)
    dls = image_dls(a.data, size=a.size, bs=a.bs, device=device())
    learn = contrastive_learner(dls, a.arch, a.method, small_input=a.small_input)
    result = dict(vars(a), data=Path(a.data).name, raw_pixels_knn=knn_accuracy(*pixels(dls.train, a.size), *pixels(dls.valid, a.size)), untrained_knn=learn.knn())
    result.pop("out")
    print(f"raw pixels {result['raw_pixels_knn']:.1%}, untrained {result['untrained_knn']:.1%}", flush=True)
    start = time.time()
    learn.fit_contrastive(a.epochs)
    names = learn.recorder.metric_names[1:-1]
    result.update(epochs_table=[dict(zip(names, row, strict=True)) for row in learn.recorder.values], fit_s=round(time.time() - start, 1), trained_knn=learn.knn())
    print(f"trained {result['trained_knn']:.1%} in {result['fit_s']} s")
    save(f"curve_{a.method}_{result['data']}_{device()}", result, a.out)


if __name__ == "__main__": main()
