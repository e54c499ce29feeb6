"""Pictures per second of solo-learn's own SimCLR training; run by `speed throughput` in solo-learn's interpreter.

Its method class (with its online linear classifier, which is part of every method there), its augmentations with
the strengths of its own scripts, its data set and loader, and Lightning's trainer. Off are the logger, the progress
bar and checkpoints.
"""
from pathlib import Path

import pytorch_lightning as pl
import torch
from clock import Clock, settings
from solo.methods import METHODS
from solo.utils.pretrain_dataloader import (prepare_dataloader, prepare_datasets, prepare_n_crop_transform,
                                            prepare_transform)


class LightningClock(Clock, pl.Callback): pass


def loader_of(a, blur):
    """Its data set and loader, with two views of each picture"""
    data = Path(a.data).resolve()
    views = prepare_transform("custom", brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, gaussian_prob=blur,
                              crop_size=a.size)
    crops = prepare_n_crop_transform([views], num_crops_per_aug=[2])
    pictures = prepare_datasets("custom", crops, data_dir=data.parent, train_dir=data.name)
    return prepare_dataloader(pictures, batch_size=a.bs, num_workers=a.workers)


def trainer_of(a, callback, **length):
    """Lightning's, which does nothing besides"""
    return pl.Trainer(
        **length, precision={"fp32": 32, "bf16": "bf16"}[a.precision],
        accelerator={"cpu": "cpu", "cuda": "gpu"}[a.device], devices=1, callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)


def main():
    a = settings()
    loader = loader_of(a, 0.0 if a.size <= 64 else 0.5)
    model = METHODS["simclr"](
        encoder=a.arch, backbone_args=dict(cifar=False, zero_init_residual=False),
        num_classes=len(loader.dataset.classes), proj_hidden_dim=a.hidden, proj_output_dim=a.out, temperature=0.2,
        max_epochs=1, batch_size=a.bs, optimizer="sgd", extra_optimizer_args=dict(momentum=0.9), lars=False,
        exclude_bias_n_norm=False, lr=0.06, weight_decay=1e-4, classifier_lr=0.01, accumulate_grad_batches=1,
        scheduler="none", min_lr=0.0, warmup_start_lr=0.0, warmup_epochs=0, num_large_crops=2, num_small_crops=0)
    if a.channels_last: model.encoder.to(memory_format=torch.channels_last)
    clock = LightningClock(a, lambda batch: batch[1])
    trainer_of(a, clock, max_steps=a.warm + a.steps).fit(model, loader)
    clock.report("solo-learn", "pytorch-lightning")


if __name__ == "__main__": main()
