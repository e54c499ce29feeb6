"""Pictures of other channels than three train with every recipe, speedup and make of encoder."""
import kornia.augmentation as K
import pytest
import torch
from helpers.channels import bands
from helpers.learners import SMALL_CROPS, small
from helpers.pictures import ARCH, VIT
from helpers.recording import Where
from torch import nn

from fastcontrast.device import Autocast
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import DCL
from fastcontrast.recipes import METHODS
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.multi_view import MultiView
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm

MANY = (1, 4, 13)
PARTS = dict(
    patches=lambda: [CombinePatches()], levels=lambda: [IntermediateLoss(), PartialBackprop(seed=1)],
    regions=lambda: [HardRegions('layer2')], suncet=lambda: [SuNCEt()], classified=lambda: [SupervisedTerm()],
    views=lambda: [MultiView(3)], crops=lambda: [SMALL_CROPS()],
    sizes=lambda: [ProgressiveSize(steps=(24,), strength=0.5)], strips=lambda: [PatchVariants(combine='input')],
    stitched=lambda: [PatchVariants(combine=1)], montage=lambda: [PatchVariants(patches='montage')],
    sampled=lambda: [PatchVariants(patches='sample')], bfloat16=lambda: [Autocast('bf16')],
    all=lambda: [CombinePatches(), IntermediateLoss(), PartialBackprop(seed=1), HardRegions('layer2'), SuNCEt(),
                 MultiView(3), ProgressiveSize(steps=(24,))])

SEED = 3


def trains(channels, method='moco_v2', arch=ARCH, cbs=(), side=32, **kwargs):
    cbs = [*cbs, look := Where()]
    learn = contrastive_learner(bands(channels, 8, side), arch, method=small(method, 'cifar'), cbs=cbs,
                                **{'knn_pictures': 0, 'small_input': False if 'resnet' in arch else None, **kwargs})
    learn.create_mbar = False
    learn.fit_contrastive(1, 1e-3)
    assert len(look.steps) == 2 and all(finite and grads for _, grads, finite in look.steps)
    return learn


@pytest.mark.parametrize('name', METHODS)
def test_methods(name): trains(4, name)


@pytest.mark.parametrize('part', PARTS)
def test_speedups(part): trains(13, cbs=PARTS[part](), side=64 if part == 'montage' else 32)


@pytest.mark.parametrize('channels', MANY)
@pytest.mark.parametrize('arch', ['resnet18', 'test_vit', 'test_convnext', 'test_efficientnet'])
def test_encoders(arch, channels):
    "A ResNet with the stem for small pictures, too"
    learn = trains(channels, arch=arch, small_input=None, loss=DCL(0.2), accumulate=2)
    assert learn.small_input == (arch == 'resnet18')
    first = next(m for m in learn.model.encoder.modules() if isinstance(m, nn.Conv2d))
    assert first.in_channels == channels == learn.model.in_chans


@pytest.mark.parametrize('cbs', [list, lambda: [SMALL_CROPS()], lambda: [SuNCEt(), CombinePatches()]],
                         ids=['alone', 'crops', 'with others'])
def test_views_of_ones_own(cbs):
    views = nn.Sequential(K.RandomHorizontalFlip(), K.RandomGaussianBlur((3, 3), (.1, 2.)))
    trains(1, cbs=cbs(), views=views)


@pytest.mark.parametrize('kind', [torch.uint16, torch.float32, torch.float16])
def test_other_types(kind):
    learn = contrastive_learner(bands(4, 8, kind=kind), VIT, method=small('simclr', 'cifar'), knn_pictures=8)
    learn.create_mbar = False
    learn.fit_contrastive(1, 1e-3)
    assert learn.embed()[0].isfinite().all()
