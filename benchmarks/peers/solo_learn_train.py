"""solo-learn's own SimCLR training, in the settings of its scripts for CIFAR-10 and ImageNet-100, against the clock of
`race`; run in solo-learn's interpreter.

Its method class with its online classifier, its augmentations, data set and loader, LARS, and Lightning's trainer. The
learning rate rises and falls by steps, as in its repository today: by epochs, as in the release, the first of few would
be lost. Off are the logger and the progress bar.
"""
import copy

import pytorch_lightning as pl
import torch
import torchvision
from clock import Race, RacingCallback, settings
from pl_bolts.optimizers.lr_scheduler import LinearWarmupCosineAnnealingLR
from solo.methods import METHODS
from solo_learn_simclr import loader_of, trainer_of

WARM_UP = 10  # epochs, and a tenth of a short run


class LightningRace(RacingCallback, pl.Callback): pass


def by_steps(method):
    """A method whose schedule goes by steps"""
    class BySteps(method):
        def configure_optimizers(self):
            (optimizer,), _ = super().configure_optimizers()
            steps = self.trainer.estimated_stepping_batches
            warm = max(1, int(min(WARM_UP / self.max_epochs, 0.1) * steps))
            schedule = LinearWarmupCosineAnnealingLR(optimizer, warm, steps, warmup_start_lr=3e-5)
            return [optimizer], [dict(scheduler=schedule, interval="step")]
    return BySteps


def main():
    a = settings()
    race = Race(a, "solo-learn", "pytorch-lightning")
    loader, encoder = loader_of(a, a.blur), race.encoder()
    encoder.inplanes = encoder.num_features  # by which it tells their number
    torchvision.models.resnet18 = lambda **kwargs: encoder
    model = by_steps(METHODS[a.method])(
        encoder="resnet18", backbone_args=dict(cifar=False), num_classes=len(loader.dataset.classes),
        proj_hidden_dim=a.hidden, proj_output_dim=a.out, temperature=a.temp, max_epochs=a.epochs, batch_size=a.bs,
        optimizer="sgd", extra_optimizer_args=dict(momentum=0.9), lars=True, grad_clip_lars=True, eta_lars=0.02,
        exclude_bias_n_norm=True, lr=a.lr, weight_decay=a.wd, classifier_lr=a.classifier_lr,
        accumulate_grad_batches=1, scheduler="warmup_cosine", min_lr=0.0, warmup_start_lr=0.0, warmup_epochs=0,
        num_large_crops=2, num_small_crops=0)

    def loss_of(n):
        net = copy.deepcopy(torch.nn.Sequential(model.encoder, model.projector))
        return sum(net(torch.rand(n, 3, a.size, a.size)).square().sum() for _ in range(2))

    race.count(loss_of)
    callback = LightningRace(race, lambda module: module.encoder)
    trainer_of(a, callback, max_epochs=a.epochs).fit(model, loader, ckpt_path=callback.checkpoint)


if __name__ == "__main__": main()
