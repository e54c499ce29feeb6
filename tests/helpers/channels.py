"""Pictures with any number of channels, as loaders."""
import torch

from fastcontrast.loaders import ImageData, ImageLoaders, ResidentLoader

CHANNELS = (1, 2, 4, 6, 13)


def noise(n: int, channels: int, side: int, seed: int = 1) -> torch.Tensor:
    "uint8 [n, C, side, side]; every channel has a level of its own"
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 120, (n, channels, side, side), generator=g)
    return (x + 10 * torch.arange(channels)[:, None, None]).to(torch.uint8)


def as_type(x: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    "The same pictures in another type"
    if kind == torch.uint8: return x
    return (x.int() * 257).to(torch.uint16) if kind == torch.uint16 else (x / 255).to(kind)


def loaders(train: torch.Tensor, valid: torch.Tensor, bs: int = 4, size: int | None = None) -> ImageLoaders:
    "Loaders of pictures of two classes, whose labels training may use"
    def part(x, training):
        y = torch.arange(len(x)) % 2
        data = ImageData([str(i) for i in range(len(x))], y, torch.ones(len(x), dtype=torch.bool), ['a', 'b'])
        return ResidentLoader(x, data, bs, torch.device('cpu'), training=training)
    return ImageLoaders(part(train, True), part(valid, False), size=size or train.shape[-1], source='bands',
                        channels=train.shape[1])


def bands(channels: int, n: int = 12, side: int = 32, bs: int = 4, kind: torch.dtype = torch.uint8) -> ImageLoaders:
    "Loaders of `noise`, and of half as many pictures to judge by"
    return loaders(as_type(noise(n, channels, side), kind), as_type(noise(n // 2, channels, side, 2), kind), bs)
