"""A run that died and was taken up ends as one that did not: for every recipe and speedup, bit for bit."""
import io
import random
import tarfile
from functools import partial

import pytest
import torch
from fastai.vision.augment import RandomResizedCrop
from fastai.vision.data import ImageDataLoaders
from helpers.deaths import history, run, same_state
from helpers.folders import image_folder
from helpers.learners import SMALL_CROPS, small
from helpers.pictures import ARCH, VIT, Dots

from fastcontrast.data import image_dls
from fastcontrast.learner import contrastive_learner
from fastcontrast.recipes import RECIPES
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.multi_view import MultiView
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm
from fastcontrast.targets import Queue

EPOCHS, BATCHES = 2, 3
SPEEDUPS = dict(
    none=list, comb_patches=lambda: [CombinePatches()], patch_variants=lambda: [PatchVariants(patches='sample')],
    intermediate=lambda: [IntermediateLoss()], partial=lambda: [IntermediateLoss(), PartialBackprop()],
    multi_view=lambda: [MultiView(3)], progressive_size=lambda: [ProgressiveSize(strength=0.5)],
    regions=lambda: [HardRegions('layer2')], regions_by_loss=lambda: [HardRegions('layer2', score='loss')],
    two_regions=lambda: [HardRegions(stages=('layer1', 'layer2'))],
    suncet=lambda: [SuNCEt()], supervised=lambda: [SupervisedTerm('ce')],
    all=lambda: [CombinePatches(), IntermediateLoss(), PartialBackprop(), HardRegions('layer2'), SuNCEt(),
                 MultiView(3), ProgressiveSize(steps=(24,))])


def dots(side=32): return image_dls(Dots(24, side), bs=6, valid=0.2, labels='all', workers=0, device='cpu')


def learner(method='simclr', cbs=list, dls=dots, accumulate=1, precision='auto', **changes):
    torch.manual_seed(0)
    return contrastive_learner(dls(), ARCH, method=small(method, 'cifar', **changes), cbs=cbs(), small_input=False,
                               knn_pictures=16, accumulate=accumulate, precision=precision)


def check(tmp_path, make, deaths=1, cost=False):
    "A run without a death, and one with some, at random steps, of which the first can go on from a checkpoint"
    draw, kwargs = random.Random(str(tmp_path.name)), dict(every=('epoch', '2 steps'), cost=cost)
    whole = run(make, tmp_path/'whole', EPOCHS, **kwargs)
    died = sorted(draw.sample(range(2, EPOCHS * BATCHES + 1), deaths))
    broken = run(make, tmp_path/'broken', EPOCHS, *died, **kwargs)
    same_state(whole, broken)
    rows = history(tmp_path/'broken')
    assert rows == history(tmp_path/'whole') and [row['epoch'] for row in rows] == ['0', '1']
    assert sorted(path.name for path in (tmp_path/'broken').rglob('*')) == sorted(
        path.name for path in (tmp_path/'whole').rglob('*'))


@pytest.mark.parametrize('method', RECIPES)
def test_every_recipe(tmp_path, method): check(tmp_path, partial(learner, method, SPEEDUPS['none']))


# of every kind of target and memory one at once
@pytest.mark.parametrize('method', [name if name in ('simsiam', 'nnclr', 'swav', 'dino', 'fast')
                                    else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES])
def test_every_recipe_with_all_speedups(tmp_path, method):
    check(tmp_path, partial(learner, method, SPEEDUPS['all']), deaths=2)


@pytest.mark.parametrize('name', [name for name in SPEEDUPS if name not in ('none', 'all')])
def test_every_speedup(tmp_path, name):
    varies = name in ('partial', 'progressive_size')  # what a step costs
    check(tmp_path, partial(learner, 'moco_v3', SPEEDUPS[name]), cost=varies)


def test_bfloat16(tmp_path, bf16): check(tmp_path, partial(learner, 'byol', SPEEDUPS['all'], precision='bf16'))


def test_muon(tmp_path): check(tmp_path, partial(learner, 'moco_v3', SPEEDUPS['all'], opt='muon', lr=1e-3))


def test_batches_in_parts(tmp_path):
    check(tmp_path, partial(learner, 'moco_v2', SPEEDUPS['all'], accumulate=2), cost=True)


def test_a_queue_that_begins_late(tmp_path):
    def make(): return learner('swav', memory=partial(Queue, 12, start=1), prototypes_frozen=1)
    check(tmp_path, make, cost=True)


def test_crops_of_two_sizes_and_a_queue_for_each_view(tmp_path):
    def make():
        return learner('swav', memory=partial(Queue, 6, start=1, per_view=True), multi_crop=SMALL_CROPS)
    check(tmp_path, make, cost=True)


def test_stochastic_depth(tmp_path):
    def make():
        torch.manual_seed(0)
        return contrastive_learner(dots(), VIT, method=small('dino', 'cifar'), knn_pictures=16)
    check(tmp_path, make)


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return image_folder(tmp_path_factory.mktemp('pictures')/'all', dict(a=12, b=12))


@pytest.mark.parametrize('kind', [dict(), dict(memory=1e-12, workers=0), dict(memory=1e-12, workers=2),
                                  dict(memory=1e-12, workers=0, cache=True)], ids=str)
def test_every_way_to_read_pictures(tmp_path, folder, kind):
    def dls(): return image_dls(folder, size=32, bs=6, valid=0.2, labels='all', device='cpu', **kind)
    check(tmp_path, partial(learner, 'simclr', lambda: [SuNCEt(per_class=3)], dls))


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    "Pictures that are no squares"
    root = tmp_path_factory.mktemp('shapes')/'all'
    image_folder(root, dict(a=12), size=(60, 40))
    return image_folder(root, dict(b=12), size=(40, 50))


@pytest.mark.parametrize('kind', [dict(), dict(memory=1e-12, workers=2), dict(memory=1e-12, workers=0, cache=True)],
                         ids=str)
def test_whole_pictures(tmp_path, shapes, kind):
    def dls(): return image_dls(shapes, size=32, bs=6, valid=0.2, labels='all', device='cpu', **kind)
    check(tmp_path, partial(learner, 'moco_v2', lambda: [SuNCEt(per_class=3)], dls, accumulate=2))


def test_shards(tmp_path, folder):
    for k in range(2):
        with tarfile.open(tmp_path/f'{k}.tar', 'w') as tar:
            for i, path in enumerate(sorted(folder.rglob('*.png'))[k::2]):
                tar.add(path, f'{k}{i:03}.png')
                label = tarfile.TarInfo(f'{k}{i:03}.cls')
                label.size = 1
                tar.addfile(label, io.BytesIO(b'01'[i % 2:i % 2 + 1]))
    def dls(): return image_dls(str(tmp_path/'{0..1}.tar'), size=32, bs=6, valid=0, workers=1, device='cpu')
    check(tmp_path, partial(learner, 'simclr', dls=dls))


def test_fastais_loaders_with_random_transforms(tmp_path, folder):
    def dls():
        loaders = ImageDataLoaders.from_folder(folder, valid_pct=0.2, seed=0, bs=6, item_tfms=RandomResizedCrop(32),
                                               num_workers=0, device='cpu')
        return image_dls(loaders, device='cpu')
    check(tmp_path, partial(learner, 'simclr', dls=dls))
