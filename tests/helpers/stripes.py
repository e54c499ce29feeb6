"Pictures of stripes that a small encoder tells apart, and such an encoder"
import torch

from fastcontrast.data import image_dls
from fastcontrast.models import make_encoder
from helpers.pictures import ARCH


def stripes(n=48, side=16, channels=3, seed=0, kinds=2):
    "Pictures of stripes that lie, stand or slant, and which of these they do"
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % kinds
    across = torch.arange(side).expand(side, side)
    patterns = torch.stack([across, across.T, across + across.T])[y]
    phase = torch.randint(8, (n, 1, 1), generator=draws)
    light = torch.rand(n, 1, 1, generator=draws) * 0.5 + 0.5
    x = ((patterns + phase) // 2 % 2 * light).mul(255).to(torch.uint8)
    return x[:, None].expand(-1, channels, -1, -1).contiguous(), y


def loaders(n=48, bs=16, **kwargs):
    x, y = stripes(n)
    return image_dls((x, y), size=16, bs=bs, valid=0.25, **kwargs)


def encoder_for(dls, arch=ARCH, small_input=True):
    torch.manual_seed(0)
    return make_encoder(arch, small_input=small_input, in_chans=dls.channels, size=dls.size)
