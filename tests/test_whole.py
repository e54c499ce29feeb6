"""Whatever takes a batch takes one of whole pictures: learners with every speedup, what judges and what draws."""
import numpy as np
import pytest
import torch
from helpers.folders import picture
from helpers.learners import SMALL_CROPS, small
from helpers.pictures import ARCH
from PIL import Image
from torch import nn

from fastcontrast.data import image_dls
from fastcontrast.evaluate.knn import extract_features, pixels
from fastcontrast.learner import contrastive_learner
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.multi_view import MultiView
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm
from fastcontrast.views import plain_view

SIZES = [(60, 40), (40, 60), (48, 48), (90, 40)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Two classes, of different brightness"
    root = tmp_path_factory.mktemp('whole')
    for c, dark in (('a', 1), ('b', 3)):
        (root/c).mkdir()
        for i in range(12):
            x = np.asarray(picture(i + 50 * dark, SIZES[i % 4])) // dark
            Image.fromarray(x).save(root/c/f'{i:02}.png')
    return root


def learner(folder, method='moco_v2', cbs=(), views=None, accumulate=1, **kwargs):
    torch.manual_seed(0)
    dls = image_dls(folder, size=32, bs=6, valid=.25, labels='all', workers=0, device='cpu', **kwargs)
    learn = contrastive_learner(dls, ARCH, method=small(method, 'cifar'), cbs=cbs, small_input=False, views=views,
                                accumulate=accumulate)
    learn.create_mbar = False
    return learn


SPEEDUPS = dict(
    none=list, comb_patches=lambda: [CombinePatches()], patch_variants=lambda: [PatchVariants(patches='sample')],
    levels=lambda: [IntermediateLoss(), PartialBackprop()], multi_view=lambda: [MultiView(3)],
    progressive_size=lambda: [ProgressiveSize(strength=0.5)], regions=lambda: [HardRegions('layer2')],
    suncet=lambda: [SuNCEt(per_class=3, views=2)], supervised=lambda: [SupervisedTerm('ce')])


@pytest.mark.parametrize('name', SPEEDUPS)
def test_every_speedup_trains(folder, name):
    learn = learner(folder, cbs=SPEEDUPS[name]())
    with learn.no_logging(): learn.fit_contrastive(2)
    assert len(learn.recorder.losses) == 6 and all(map(np.isfinite, learn.recorder.losses))
    assert all(np.isfinite(value) for value in learn.recorder.values[-1][:3])


def test_crops_of_two_sizes_and_lr_find(folder):
    learn = learner(folder, 'swav', cbs=[SMALL_CROPS()])
    assert 'local' in learn.views.makers
    with learn.no_logging(), learn.no_bar(): learn.lr_find(num_it=4, show_plot=False)
    with learn.no_logging(): learn.fit_contrastive(1)


def test_an_augmentation_of_ones_own(folder):
    seen = []
    class Flip(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flip(-1)
    learn = learner(folder, views=Flip(), cbs=[SuNCEt(per_class=3)])
    seen.clear()
    with learn.no_logging(): learn.fit_contrastive(1)
    images, aspects, _ = learn.dls.valid.one_batch()
    assert {x.shape[-1] for x in seen} == {images.shape[-1], 32}  # tried out on noise of the views' side
    crops = learner(folder, views=Flip(), cbs=[SMALL_CROPS()]).views(images, None, aspects)
    assert {role: len(x) for role, x in crops.items()} == dict(views=2, local=2)


def aspects_of_the_first_step(folder, parts):
    "Those that views are made by, part by part"
    learn, made = learner(folder, 'simclr', accumulate=parts), []
    make = learn.views.main.forward
    def forward(images, size=None, aspects=None):
        made.append(aspects)
        return make(images, size, aspects)
    learn.views.main.forward = forward
    with learn.no_logging(): learn.fit_contrastive(1)
    assert {len(aspects) for aspects in made} == {6 // parts}
    return torch.cat(made[:parts]).tolist()


def test_each_part_of_a_batch_has_its_own_aspects(folder):
    assert aspects_of_the_first_step(folder, 1) == aspects_of_the_first_step(folder, 3)


def test_what_a_step_has(folder):
    learn = learner(folder)
    seen = []
    make = learn.views.main.forward
    def forward(images, size=None, aspects=None):
        seen.append((learn.step.pictures, images, aspects))
        return make(images, size, aspects)
    learn.views.main.forward = forward
    with learn.no_logging(): learn.fit_contrastive(1)
    (images, aspects), x, shapes = seen[0]
    assert x is images and shapes is aspects and aspects.shape == (6,)
    assert {a.item() for a in aspects} <= {np.float32(w / h) for w, h in SIZES}


def test_judged(folder):
    "Features are those of the true centre squares, and so are raw pixels"
    learn = learner(folder)
    h, y = learn.embed()
    class Squares:
        def __iter__(self):
            for x, aspects, y in learn.dls.valid.ordered(): yield plain_view(x, 32, aspects), y
    h2, y2 = extract_features(learn.model.encoder, Squares(), 32, learn.mean, learn.std)
    torch.testing.assert_close(h, h2)
    assert torch.equal(y, y2)
    torch.testing.assert_close(pixels(learn.dls.valid, 32)[0], pixels(Squares(), 32)[0])
    assert learn.knn() > .5 and learn.linear_probe() > .5


def test_drawn_in_their_shapes(folder, tmp_path):
    learn = learner(folder)
    _, aspects, _ = learn.dls.train.one_batch()
    fig = learn.show_views(4, tmp_path/'v.png')
    columns = len(fig.axes) // 4
    shapes = [ax.get_aspect() for ax in fig.axes[::columns]]
    assert shapes == [1 / a.item() for a in aspects[:4]] and {ax.get_aspect() for ax in fig.axes[1::columns]} == {1}


def test_squares_are_two_tensors(tmp_path):
    for i in range(8): picture(i).save(tmp_path/f'{i}.png')
    dls = image_dls(tmp_path, bs=4, device='cpu')
    assert dls.n_inp == 1 and len(dls.train.one_batch()) == 2
    learn = contrastive_learner(dls, ARCH, method=small('simclr', 'cifar'), small_input=False, knn_pictures=0)
    learn.create_mbar, seen = False, []
    make = learn.views.main.forward
    def forward(*pictures):
        seen.append((len(pictures), learn.step.aspects, learn.step.pictures))
        return make(*pictures)
    learn.views.main.forward = forward
    with learn.no_logging(): learn.fit_contrastive(1)
    count, aspects, (images,) = seen[0]
    assert (count, aspects) == (2, None) and images.shape == (4, 3, 32, 32)
