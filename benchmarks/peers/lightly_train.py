"""A method of lightly, trained as lightly's own benchmarks for Imagenette and CIFAR-10 train it, against the clock of
`race`: their transforms in a `DataLoader` with workers, heads, loss, optimizer and schedule."""
import copy

import torch
from clock import Race, settings
from lightly import loss as losses
from lightly import transforms
from lightly.data import LightlyDataset
from lightly.models import utils
from lightly.models.modules import heads
from torch import nn


class Contrast(nn.Module):
    """SimCLR, and what differs from it by the loss"""
    def __init__(self, encoder, a, loss):
        super().__init__()
        self.encoder, self.loss = encoder, loss
        self.head = heads.SimCLRProjectionHead(encoder.num_features, encoder.num_features, 128)

    def embed(self, views): return [self.head(self.encoder(x)) for x in views]
    def forward(self, embedded): return self.loss(*embedded)

    @staticmethod
    def transform(a):
        return transforms.SimCLRTransform(input_size=a.size, cj_strength=0.5, gaussian_blur=a.blur)


class BYOL(nn.Module):
    def __init__(self, encoder, a):
        super().__init__()
        self.encoder, self.head = encoder, heads.BYOLProjectionHead(encoder.num_features, a.byol_hidden, 256)
        self.predictor = heads.BYOLPredictionHead(256, a.byol_hidden, 256)
        self.slow_encoder, self.slow_head = copy.deepcopy(self.encoder), copy.deepcopy(self.head)
        for module in (self.slow_encoder, self.slow_head): utils.deactivate_requires_grad(module)
        self.loss = losses.NegativeCosineSimilarity()

    def embed(self, views):
        utils.update_momentum(self.encoder, self.slow_encoder, m=0.99)
        utils.update_momentum(self.head, self.slow_head, m=0.99)
        predicted = [self.predictor(self.head(self.encoder(x))) for x in views]
        return predicted + [self.slow_head(self.slow_encoder(x)).detach() for x in views]

    def forward(self, embedded):
        p, q, y, z = embedded
        return 0.5 * (self.loss(p, z) + self.loss(q, y))

    @staticmethod
    def transform(a):
        blur = {} if a.blur else dict(gaussian_blur=0.0)
        return transforms.BYOLTransform(transforms.BYOLView1Transform(input_size=a.size, **blur),
                                        transforms.BYOLView2Transform(input_size=a.size, **blur))


class SwAV(nn.Module):
    def __init__(self, encoder, a):
        super().__init__()
        self.encoder, self.head = encoder, heads.SwaVProjectionHead(encoder.num_features, a.swav_hidden, 128)
        self.prototypes, self.loss = heads.SwaVPrototypes(128, a.swav_prototypes), losses.SwaVLoss()

    def embed(self, views): return [self.head(self.encoder(x)) for x in views]

    def forward(self, embedded):
        self.prototypes.normalize()
        scores = [self.prototypes(nn.functional.normalize(x, dim=1)) for x in embedded]
        return self.loss(scores[:2], scores[2:])

    @staticmethod
    def transform(a):
        if not a.blur:
            return transforms.SwaVTransform(crop_sizes=[a.size], crop_counts=[2], crop_min_scales=[0.14],
                                            crop_max_scales=[1.0], cj_strength=0.5, gaussian_blur=0)
        return transforms.SwaVTransform(crop_sizes=(a.size, a.size // 2), crop_counts=(2, 6), cj_strength=0.5)


METHODS = dict(simclr=lambda encoder, a: Contrast(encoder, a, losses.NTXentLoss()),
               dcl=lambda encoder, a: Contrast(encoder, a, losses.DCLLoss()),
               dclw=lambda encoder, a: Contrast(encoder, a, losses.DCLWLoss()), byol=BYOL, swav=SwAV)


def main():
    a = settings()
    race, device = Race(a, "lightly"), torch.device(a.device)
    model = METHODS[a.method](race.encoder(), a).to(device)
    pictures = LightlyDataset(a.data, transform=model.transform(a))
    loader = torch.utils.data.DataLoader(
        pictures, batch_size=a.bs, shuffle=True, drop_last=True, num_workers=a.workers,
        persistent_workers=a.workers > 0, pin_memory=device.type == "cuda")
    trained = [p for p in model.parameters() if p.requires_grad]
    if a.method == "swav": opt = torch.optim.Adam(trained, lr=a.lr, weight_decay=a.wd)
    else: opt = torch.optim.SGD(trained, lr=a.lr, momentum=0.9, weight_decay=a.wd)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, a.epochs)

    def loss_of(n):
        shapes = [x.shape for x in pictures[0][0]]
        net = copy.deepcopy(model)
        return net(net.embed([torch.rand(n, *shape, device=device) for shape in shapes]))

    race.count(loss_of)
    if race.state:
        model.load_state_dict(race.state["model"])
        opt.load_state_dict(race.state["optimizer"])
        schedule.load_state_dict(race.state["schedule"])
    race.start(len(loader))
    while race.epoch < a.epochs:
        for batch in loader:
            views = [x.to(device, non_blocking=True) for x in batch[0]]
            with torch.autocast(device.type, torch.bfloat16, enabled=a.precision == "bf16"):
                embedded = model.embed(views)
            model([x.float() for x in embedded]).backward()  # the loss is not in half precision
            opt.step()
            opt.zero_grad()
        schedule.step()
        race.end_epoch(model.encoder, model=model.state_dict(), optimizer=opt.state_dict(),
                       schedule=schedule.state_dict())


if __name__ == "__main__": main()
