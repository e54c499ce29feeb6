"""stable-pretraining's own SimCLR training, in the settings of its benchmarks for CIFAR-10 and ImageNet-100, against
the clock of `race`; run in stable-pretraining's interpreter.

Views are made as in stable_pretraining_simclr.py, in the way that takes less processor time. Off are loggers, default
callbacks (but the one its `Module` logs through), progress bar and online probes.
"""
import copy

import lightning as pl
import stable_pretraining as spt
import torch
from clock import Race, RacingCallback, settings
from stable_pretraining.forward import simclr
from stable_pretraining_simclr import fit, loader_of, quiet
from torch import nn


class LightningRace(RacingCallback, pl.Callback): pass


def projector(width, a):
    """The one of its benchmark"""
    layers = []
    for before, after in zip([width, *a.hidden], a.hidden):
        layers += [nn.Linear(before, after, bias=a.head_bias), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    last = nn.Linear(a.hidden[-1], a.out, bias=a.head_bias)
    return nn.Sequential(*layers, last, *([] if a.head_bias else [spt.backbone.BatchNorm1dNoBias(a.out)]))


def main():
    a = settings()
    race = Race(a, "stable-pretraining", "lightning")
    with quiet():
        encoder = race.encoder()
        head = projector(encoder.num_features, a)

        def loss_of(n):
            net = copy.deepcopy(nn.Sequential(encoder, head))
            return sum(net(torch.rand(n, 3, a.size, a.size)).square().sum() for _ in range(2))

        race.count(loss_of)
        optim = dict(optimizer=dict(type="LARS", lr=a.lr, weight_decay=a.wd, **a.lars),
                     scheduler=dict(type="LinearWarmupCosineAnnealing"), interval="epoch")
        module = spt.Module(backbone=encoder, projector=head, forward=simclr,
                            simclr_loss=spt.losses.NTXEntLoss(temperature=a.temp), optim=optim)
        callback = LightningRace(race, lambda module: module.backbone)
        fit(a, module, loader_of(a), callback, dict(max_epochs=a.epochs), seed=a.seed, ckpt_path=callback.checkpoint,
            weights_only=False)


if __name__ == "__main__": main()
