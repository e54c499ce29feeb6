"""Pictures per second of SimCLR with lightly, as its own examples train it: a loop, its transform in a `DataLoader`
with workers, its projection head and its loss; run by `speed throughput`."""
import timm
import torch
from clock import Clock, settings
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform


def main():
    a = settings()
    device, small = torch.device(a.device), a.size <= 64
    pictures = LightlyDataset(a.data, transform=SimCLRTransform(input_size=a.size, gaussian_blur=0.0 if small else 0.5))
    loader = torch.utils.data.DataLoader(
        pictures, batch_size=a.bs, shuffle=True, drop_last=True, num_workers=a.workers,
        persistent_workers=a.workers > 0, pin_memory=device.type == "cuda")
    encoder = timm.create_model(a.arch, num_classes=0).to(device)
    if a.channels_last: encoder.to(memory_format=torch.channels_last)
    head = SimCLRProjectionHead(encoder.num_features, a.hidden, a.out).to(device)
    loss_of = NTXentLoss(0.2 if small else 0.1)
    parameters = [*encoder.parameters(), *head.parameters()]
    opt = torch.optim.SGD(parameters, lr=0.06, momentum=0.9, weight_decay=1e-4)
    clock = Clock(a, lambda views: views)

    def step(batch):
        views = [x.to(device, non_blocking=True) for x in batch[0]]
        clock.on_train_batch_start(None, None, views)
        with torch.autocast(device.type, torch.bfloat16, enabled=a.precision == "bf16"):
            loss = loss_of(*(head(encoder(x)) for x in views))
        loss.backward()
        opt.step()
        opt.zero_grad()
        clock.on_train_batch_end(None, None, dict(loss=loss))

    while not clock.over:
        for batch in loader:
            step(batch)
            if clock.over: break
    clock.report("lightly", "timm")


if __name__ == "__main__": main()
