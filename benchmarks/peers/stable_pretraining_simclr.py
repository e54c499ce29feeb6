"""Pictures per second of stable-pretraining's own SimCLR training; run by `speed throughput` in
stable-pretraining's interpreter.

Its `Manager`, `Module` with `forward.simclr`, backbone, loss and data module; its transforms as in its own recipes,
for small pictures (no blur) or for large ones. It has two ways to make views, and runs in the one that takes less
processor time: whole batches with kornia in the training process (on a GPU, or small pictures), or single pictures
in the workers (large pictures on a CPU). Off are loggers, default callbacks (but the one its `Module` logs
through), progress bar, checkpoints and online probes.
"""
import tempfile
from contextlib import contextmanager

import lightning as pl
import stable_pretraining as spt
import torch
from clock import Clock, settings
from stable_pretraining.data import gpu_transforms as gt
from stable_pretraining.data import transforms as t
from stable_pretraining.forward import simclr
from torch import nn
from torchvision.datasets import ImageFolder

DEFAULTS = ("progress_bar", "logging", "env_dump", "trainer_info", "sklearn_checkpoint", "wandb_checkpoint",
            "trackio_checkpoint", "swanlab_checkpoint", "module_summary", "slurm_info", "unused_params",
            "hf_checkpoint")


class LightningClock(Clock, pl.Callback): pass


def in_workers(size):
    """Two views of one picture, for a worker"""
    def view(blur, *solarize):
        color = [t.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8), t.RandomGrayscale(p=0.2)]
        if size > 64: color += [t.PILGaussianBlur(p=blur), *solarize]
        return t.Compose(t.RGB(), t.RandomResizedCrop((size, size), scale=(0.08, 1.0)), *color,
                         t.RandomHorizontalFlip(p=0.5), t.ToImage(**spt.data.static.ImageNet))
    return t.MultiViewTransform([view(1.0), view(0.1, t.RandomSolarize(threshold=0.5, p=0.2))])


def in_batches(size):
    """Two views of a batch, for the training process"""
    blur = [gt.GPUGaussianBlur(kernel_size=23, sigma=(0.1, 2.0), p=0.5)] if size > 64 else []
    return gt.StackedMultiView(gt.GPUCompose([
        gt.GPURandomResizedCrop(size=size, scale=(0.08, 1.0)), gt.GPURandomHorizontalFlip(p=0.5),
        gt.GPUColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
        gt.GPURandomGrayscale(p=0.2), *blur, gt.GPUNormalize(**spt.data.static.ImageNet)]))


@contextmanager
def quiet():
    """Nothing is shown, logged or kept that was not asked for"""
    with tempfile.TemporaryDirectory() as folder:
        spt.set(verbose="ERROR", progress_bar="none", default_callbacks=dict.fromkeys(DEFAULTS, False),
                default_loggers=dict(registry=False), requeue_checkpoint=False, cache_dir=folder)
        yield


def loader_of(a):
    """Its data set and loader, with two views of each picture"""
    cuda = a.device == "cuda"
    batches = cuda or a.size <= 64
    ready = t.Compose(t.Resize((a.size, a.size)), t.ToImage(rgb=True, scale=True))
    pictures = spt.data.FromTorchDataset(
        ImageFolder(a.data), names=["image", "label"], transform=ready if batches else in_workers(a.size),
        gpu_transform=in_batches(a.size) if batches else None)
    return torch.utils.data.DataLoader(
        pictures, batch_size=a.bs, shuffle=True, drop_last=True, num_workers=a.workers,
        persistent_workers=a.workers > 0, pin_memory=cuda)


def fit(a, module, loader, callback, length, **options):
    """Its `Manager`, with a trainer that does nothing besides; length: the trainer's; options: the manager's"""
    trainer = pl.Trainer(
        **length, precision={"fp32": "32-true", "bf16": "bf16-mixed"}[a.precision],
        accelerator="gpu" if a.device == "cuda" else "cpu", devices=1, callbacks=[callback], num_sanity_val_steps=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    # `spt.set` cannot turn this one off
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, spt.callbacks.HardwareMonitor)]
    spt.Manager(trainer=trainer, module=module, data=spt.data.DataModule(train=loader), **options)()


def main():
    a = settings()
    with quiet():
        encoder = spt.backbone.from_timm(a.arch, low_resolution=False, num_classes=0)
        if a.channels_last: encoder.to(memory_format=torch.channels_last)
        projector = nn.Sequential(
            nn.Linear(encoder.num_features, a.hidden, bias=False), nn.BatchNorm1d(a.hidden), nn.ReLU(inplace=True),
            nn.Linear(a.hidden, a.out, bias=False), spt.backbone.BatchNorm1dNoBias(a.out))
        optim = dict(optimizer=dict(type="SGD", lr=0.06, momentum=0.9, weight_decay=1e-4),
                     scheduler=dict(type="LinearWarmupCosineAnnealing"), interval="epoch")
        module = spt.Module(backbone=encoder, projector=projector, forward=simclr,
                            simclr_loss=spt.losses.NTXEntLoss(temperature=0.5), optim=optim)
        clock = LightningClock(a, lambda batch: [v["image"] for v in batch["views"]])
        fit(a, module, loader_of(a), clock, dict(max_steps=a.warm + a.steps), seed=0)
    clock.report("stable-pretraining", "lightning", "timm")


if __name__ == "__main__": main()
