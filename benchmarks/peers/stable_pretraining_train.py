"""stable-pretraining's own SimCLR training, in the settings of its benchmarks for CIFAR-10 and ImageNet-100, against
the clock of `race`; run in stable-pretraining's interpreter.

Views are made as in stable_pretraining_simclr.py, in the way that takes less processor time. Off are loggers, default
callbacks (but the one its `Module` logs through), progress bar and online probes.
"""
import copy
import tempfile

import lightning as pl
import stable_pretraining as spt
import torch
from clock import Race, RacingCallback, settings
from stable_pretraining.data import transforms as t
from stable_pretraining.forward import simclr
from stable_pretraining_simclr import DEFAULTS, in_batches, in_workers
from torch import nn
from torchvision.datasets import ImageFolder


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
    race, cuda = Race(a, "stable-pretraining", "lightning"), a.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        spt.set(verbose="ERROR", progress_bar="none", default_callbacks=dict.fromkeys(DEFAULTS, False),
                default_loggers=dict(registry=False), requeue_checkpoint=False, cache_dir=folder)
        batches = cuda or a.size <= 64
        ready = t.Compose(t.Resize((a.size, a.size)), t.ToImage(rgb=True, scale=True))
        pictures = spt.data.FromTorchDataset(
            ImageFolder(a.data), names=["image", "label"], transform=ready if batches else in_workers(a.size),
            gpu_transform=in_batches(a.size) if batches else None)
        loader = torch.utils.data.DataLoader(
            pictures, batch_size=a.bs, shuffle=True, drop_last=True, num_workers=a.workers,
            persistent_workers=a.workers > 0, pin_memory=cuda)
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
        trainer = pl.Trainer(
            max_epochs=a.epochs, precision={"fp32": "32-true", "bf16": "bf16-mixed"}[a.precision],
            accelerator="gpu" if cuda else "cpu", devices=1, callbacks=[callback], num_sanity_val_steps=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        # `spt.set` cannot turn this one off
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, spt.callbacks.HardwareMonitor)]
        spt.Manager(trainer=trainer, module=module, data=spt.data.DataModule(train=loader), seed=a.seed,
                    ckpt_path=callback.checkpoint, weights_only=False)()


if __name__ == "__main__": main()
