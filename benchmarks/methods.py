"""Every method trained alike: kNN accuracy, and for the digits that of a linear classifier on 10 labels a class, beside controls.

The controls are the pictures' pixels (at 32 px at most) and the encoder before training. The seconds are those of training
alone. The spread of the embeddings at the end (the standard deviation over a batch of their dimensions, at length one) is 0
for collapsed ones and `even_std` for evenly spread ones.

    python benchmarks/methods.py digits --arch resnet10t --bs 64 --epochs 25 --seeds 0 1 2
    python benchmarks/methods.py digits --arch resnet10t --bs 64 --epochs 25 --seeds 0 1 2 --methods simclr --precision fp32 bf16
    python benchmarks/methods.py data/cifar10 --size 32 --bs 512 --epochs 100 --methods simclr byol
"""
import argparse
import gc
import time
from itertools import product
from pathlib import Path

import torch
from common import device, save, sync

from fastcontrast.all import InputError, contrastive_learner, few_label_accuracy, image_dls, knn_accuracy
from fastcontrast.evaluate.knn import pixels
from fastcontrast.recipes import METHODS


def judge(data, features):
    """Accuracies from the features and labels of both parts"""
    result = dict(knn=knn_accuracy(*features))
    if data == "digits": result["few_labels"], result["few_labels_std"] = few_label_accuracy(*features, per_class=10)
    return result


def embedded(learn): return *learn.embed(learn.dls.train), *learn.embed()


def make(a, dls, method, seed, precision="auto"):
    torch.manual_seed(seed)
    dls.train.epoch = 0  # every method sees the pictures in the same order
    return contrastive_learner(dls, a.arch, METHODS[method](setting=a.setting), small_input=a.small_input, knn_pictures=0, precision=precision)


def train(a, dls, method, seed, precision):
    """One method's row; what stopped it instead of its accuracies if it did not get to the end"""
    learn = make(a, dls, method, seed, precision)
    row = dict(method=method, seed=seed, precision=learn.precision, setting=learn.recipe.setting, small_input=learn.small_input, notes=learn.notes)
    sync()
    start = time.perf_counter()
    try:
        with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(a.epochs)
        sync()
        seconds = time.perf_counter() - start
        (std,) = (v for n, v in zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]) if n == "std")
        row.update(seconds=seconds, images_per_s=a.epochs * len(dls.train) * a.bs / seconds, embedding_std=std,
                   even_std=learn.recipe.projector[-1] ** -0.5, **judge(a.data, embedded(learn)))
    except InputError as e: row["stopped"] = str(e)
    return row


def line(name, row):
    few = f", 10 labels a class {row['few_labels']:.1%} ± {row['few_labels_std']:.1%}" if "few_labels" in row else ""
    rest = f", {row['seconds']:.0f} s, {row['images_per_s']:.0f} images/s, spread {row['embedding_std'] / row['even_std']:.2f} of even" if "seconds" in row else ""
    return f"{name}: " + (f"stopped: {row['stopped']}" if "stopped" in row else f"kNN {row['knn']:.1%}{few}{rest}")


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("data", help="a folder of class folders, or 'digits'")
    arg.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=f"of {', '.join(METHODS)}")
    arg.add_argument("--arch", default="resnet18")
    arg.add_argument("--size", type=int, default=32)
    arg.add_argument("--bs", type=int, default=256)
    arg.add_argument("--epochs", type=int, default=30)
    arg.add_argument("--seeds", type=int, nargs="+", default=[0])
    arg.add_argument("--small-input", action=argparse.BooleanOptionalAction, default=None, help="the ResNets' stem for small pictures (by the setting if not given)")
    arg.add_argument("--setting", help="of the recipes: imagenet, cifar, digits (by the pictures if not given)")
    arg.add_argument("--precision", nargs="+", default=["auto"], help="of the models: each method is trained in each")
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    name = Path(a.data).name
    result = dict({k: v for k, v in vars(a).items() if k not in ("seeds", "methods", "precision", "out")}, data=name, controls=[], rows=[])

    def keep(rows, row, what):
        rows.append(row)
        print(line(f"{what}, seed {row['seed']}", row), flush=True)
        save(f"methods_{name}_{a.arch}_{device()}", result, a.out)

    for seed in a.seeds:
        dls = image_dls(a.data, size=a.size, bs=a.bs, seed=seed, device=device())
        small = min(a.size, 32)
        raw = judge(a.data, (*pixels(dls.train, small), *pixels(dls.valid, small)))
        keep(result["controls"], dict(features="raw pixels", seed=seed, **raw), "raw pixels")
        untrained = judge(a.data, embedded(make(a, dls, a.methods[0], seed)))
        keep(result["controls"], dict(features="untrained encoder", seed=seed, **untrained), "untrained encoder")
        for method, precision in product(a.methods, a.precision):
            row = train(a, dls, method, seed, precision)
            keep(result["rows"], row, f"{method}, {row['precision']}")
            gc.collect()  # a learner and its callbacks hold each other, and the GPU's memory


if __name__ == "__main__": main()
