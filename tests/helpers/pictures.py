"""Pictures, views of them that are known, and the sizes of what is small."""
import torch

from fastcontrast import data
from fastcontrast.data import image_dls
from fastcontrast.views import Normalize, ViewMaker

ARCH, SIDE = 'test_resnet', 32  # timm's smallest ResNet: 15 BatchNorms, 96 features
B, LR, D, K = 6, 0.05, 8, 12    # batch, learning rate, width of projections, prototypes
VIT = 'test_vit'
STAGES = ('layer1', 'layer2', 'layer3', 'layer4')
LEVELS = ('layer1', 'layer2', 'layer3', 'final')  # what IntermediateLoss() scores


def few_digits(monkeypatch, every: int):
    "Whoever reads the digits in this process gets one of so many"
    class Few(data._Digits):
        def __init__(self, *args):
            super().__init__(*args)
            self.x, self.targets = self.x[::every], self.targets[::every]
    monkeypatch.setattr(data, '_Digits', Few)


class KnownViews(ViewMaker):
    "A picture and a darker mirror image of it"
    def __init__(self): super().__init__(9, 2, 'views')
    def forward(self, x, size=None): return {'views': torch.stack([x, x.flip(-1) * 0.8 - 0.1])}


class Plain(Normalize):
    "No normalisation"
    def forward(self, x): return x


class Halves(ViewMaker):
    "A picture in [0, 1] and a darker mirror image, in float64"
    def __init__(self): super().__init__(16, 2, 'views')
    def forward(self, x, size=None):
        x = x.double() / 255
        return {'views': torch.stack([x, x.flip(-1) / 2])}


class Dots:
    "A data set of random pictures"
    def __init__(self, n: int, size: int = 16):
        g = torch.Generator().manual_seed(1)
        self.x = torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)
        self.targets = [i % 2 for i in range(n)]
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.targets[i]


class Dots20(Dots):
    "Four classes of five pictures"
    def __init__(self):
        super().__init__(20)
        self.targets = [i % 4 for i in range(20)]


def batches_of(*sizes) -> list:
    "Batches of float64 pictures, of these numbers of pictures"
    return [(torch.rand(n, 3, 9, 9, dtype=torch.float64), torch.arange(n)) for n in sizes]


def plain_batches(n: int = 2) -> list:
    "n batches of float64 pictures"
    return batches_of(*[B] * n)


class Fresh:
    "A loader that keeps no batch"
    dataset = ()
    def __len__(self): return 2
    def __iter__(self): return (plain_batches(1)[0] for _ in range(2))


def pictures(n: int, side: int = SIDE, bs: int = B, **kwargs):
    return image_dls(Dots(n, side), bs=bs, valid=0, workers=0, device='cpu', **kwargs)
