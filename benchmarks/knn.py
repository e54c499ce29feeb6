"""The kNN classifier over scikit-learn's brute force: the same vote of the same neighbours, on features of the size of CIFAR-10's.

Both find the 200 nearest of 50,000 features of 512 numbers for each of 10,000 by cosine, and let them vote with weights exp(cosine /
0.1). Both give the same accuracy, which is checked. Goal: at most 1.0.

    python benchmarks/knn.py
"""
import argparse

import numpy as np
import torch
import torch.nn.functional as F
from common import alternate, save
from sklearn.neighbors import KNeighborsClassifier

from fastcontrast.all import knn_accuracy

TEMP = 0.1


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--train", type=int, default=50_000)
    arg.add_argument("--test", type=int, default=10_000)
    arg.add_argument("--dim", type=int, default=512)
    arg.add_argument("--classes", type=int, default=10)
    arg.add_argument("--k", type=int, default=200)
    arg.add_argument("--rounds", type=int, default=3)
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(a.classes, a.dim, generator=g)
    y = torch.arange(a.train + a.test) % a.classes
    h = centres[y] + 6 * torch.randn(len(y), a.dim, generator=g)  # classes that overlap
    h, h_test, y, y_test = *h.split([a.train, a.test]), *y.split([a.train, a.test])
    accuracies: dict[str, set[float]] = {"ours": set(), "sklearn": set()}

    def ours(): accuracies["ours"].add(round(knn_accuracy(h, y, h_test, y_test, k=a.k, temp=TEMP), 6))

    def sklearn():
        # unit vectors: the cosine is 1 - half of the squared distance
        units, units_test = (F.normalize(x).numpy() for x in (h, h_test))
        vote = KNeighborsClassifier(a.k, algorithm="brute", weights=lambda d: np.exp((1 - d ** 2 / 2) / TEMP), n_jobs=-1).fit(units, y.numpy())
        accuracies["sklearn"].add(round(float(np.mean(vote.predict(units_test) == y_test.numpy())), 6))
    got = alternate(ours, sklearn, a.rounds)
    (accuracy,), (theirs,) = accuracies["ours"], accuracies["sklearn"]
    if abs(accuracy - theirs) > 2 / a.test: raise SystemExit(f"the accuracies differ: {accuracy} and scikit-learn's {theirs}")
    print(f"kNN of {a.train:,} x {a.dim} against {a.test:,}: {got['ratio']:.3f} of scikit-learn's time ({got['a_s']:.2f} s and {got['b_s']:.2f} s); accuracy {accuracy:.2%}")
    save("knn_cpu", dict({k: v for k, v in vars(a).items() if k != "out"}, goal="ratio at most 1.0", accuracy=accuracy, sklearn_accuracy=theirs, **got), a.out)


if __name__ == "__main__": main()
