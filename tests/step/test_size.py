"""The size of a step's views is a field of the step: whoever changes it, all that is made of pictures follows."""
import pytest
from fastai.callback.core import Callback
from helpers.learners import quick, small
from helpers.pairs import paired
from helpers.pictures import ARCH, pictures
from helpers.recording import Where
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.learner import contrastive_learner
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt
from fastcontrast.step import Phase, StepCallback

SEED = 5


class Sizes(StepCallback):
    "Views of another size in every step"
    phase = Phase.SIZE
    def __init__(self, *sizes): self.sizes = sizes
    def before_batch(self): self.step.size = self.sizes[self.train_iter % len(self.sizes)]


class Passes(Callback):
    "Pictures that go through the encoder, and views by role, step by step"
    order = Phase.COUNT + 1
    def before_fit(self):
        self.runs, self.shapes = [], []
        def note(module, x):
            if module.training: self.runs[-1].append([*x[0].shape])
        self.hook = self.model.encoder.register_forward_pre_hook(note)
    def before_batch(self):
        self.runs.append([])
        self.shapes.append({role: [*v.shape] for role, v in self.learn.step.views.items()})
    def after_fit(self): self.hook.remove()


def learner_of(*cbs, side=32, name='simclr', **kwargs):
    learn = contrastive_learner(pictures(24, side, 8, labels='all'), ARCH, method=small(name, 'cifar'),
                                small_input=False, knn_pictures=0, cbs=cbs, **kwargs)
    learn.create_mbar = False
    return learn


@pytest.mark.parametrize('name', ['simclr', 'moco_v3', 'moco_v1'])
def test_views_have_the_size_of_the_step(name):
    keys = []
    class Wholes(Callback):
        order = Phase.KEYS + 1
        def before_batch(self): keys.append([*self.learn.step.key_views.shape])
    learn = quick(name, n=24, cbs=[Sizes(16, 8, 24), seen := Passes(), Wholes()])
    learn.fit(1, 1e-3)
    views = 1 if name == 'moco_v1' else 2
    assert seen.shapes == [{'views': [views, 8, 3, side, side]} for side in (16, 8, 24)]
    assert keys == [[views, 8, 3, side, side] for side in (16, 8, 24)]
    assert learn.views.size == 16  # the maker's own is as it was
    learn.remove_cb(Sizes)
    learn.fit(1, 1e-3)
    assert seen.shapes == [{'views': [views, 8, 3, 16, 16]}] * 3


@pytest.mark.parametrize('views', [None, nn.Identity()], ids=['kind', 'module'])
@pytest.mark.parametrize('side,local,sizes', [(32, 16, {32: 16, 16: 8, 24: 12, 40: 20}), (32, 8, {20: 5, 32: 8, 30: 8}),
                                              (16, 6, {8: 3, 16: 6, 32: 12})])
def test_small_crops_keep_their_proportion(side, local, sizes, views):
    seen = Passes()
    learn = learner_of(MultiCrop((2, None, (.4, 1)), (3, local, (.1, .4))), Sizes(*sizes), seen, side=side, views=views)
    learn.fit(2, 1e-3)
    order = [*sizes.items()] * 6
    assert seen.shapes == [{'views': [2, 8, 3, large, large], 'local': [3, 8, 3, little, little]}
                          for large, little in order[:6]]


def test_large_crops_of_another_size_than_the_pictures():
    "A size is that of the large crops, whatever that of the pictures"
    seen = Passes()
    learn = learner_of(MultiCrop((2, 24, (.4, 1)), (2, 12, (.1, .4))), Sizes(24, 16), seen, SuNCEt())
    learn.fit(1, 1e-3)
    sides = [(v['views'][-1], v['local'][-1], v['labeled'][-1]) for v in seen.shapes]
    assert sides == [(24, 12, 24), (16, 8, 16), (24, 12, 24)]
    learn.remove_cb(Sizes)
    learn.fit(1, 1e-3)
    assert [v['views'][-1] for v in seen.shapes] == [24] * 3


@pytest.mark.parametrize('views', [None, nn.Identity()], ids=['kind', 'module'])
@pytest.mark.parametrize('sizes', [(32,), (16,), (32, 16, 24)], ids=str)
@pytest.mark.parametrize('n', [1, 2])
def test_the_support_batch_rides_along_at_any_size(sizes, n, views):
    "With SimCLR there is one pass a step, in which the labelled pictures have the size of the others"
    learn = learner_of(SuNCEt(views=n, per_class=4), Sizes(*sizes), seen := Passes(), views=views)
    learn.fit(2, 1e-3)
    assert len(seen.runs) == 6
    for step, (passes, shapes) in enumerate(zip(seen.runs, seen.shapes, strict=True)):
        side = sizes[step % len(sizes)]
        assert shapes == {'views': [2, 8, 3, side, side], 'labeled': [n, 8, 3, side, side]}
        assert passes == [[2 * 8 + n * 8, 3, side, side]]


CHANGING = dict(
    patches=lambda: [CombinePatches()], sampled=lambda: [PatchVariants(patches='sample')],
    stitched=lambda: [PatchVariants(combine='layer1')], regions=lambda: [IntermediateLoss(), HardRegions('layer1')],
    several=lambda: [SuNCEt(), MultiCrop((2, None, (.4, 1)), (2, 16, (.1, .4))), IntermediateLoss()])


@pytest.mark.parametrize('make, how', paired(CHANGING, [('byol', 1), ('moco_v1', 2), ('byol', 2), ('moco_v1', 1)], 2),
                         ids=str)
def test_speedups_train_at_changing_sizes(make, how):
    name, accumulate = how
    learn = learner_of(*CHANGING[make](), Sizes(32, 48, 40), look := Where(), name=name, accumulate=accumulate)
    learn.fit(1, 1e-3)
    assert len(look.steps) == 3 and all(finite for *_, finite in look.steps)


def test_patches_are_cut_from_views_of_the_steps_size():
    learn = learner_of(CombinePatches(), Sizes(32, 48, 40), seen := Passes())
    learn.fit(1, 1e-3)
    assert [v['views'] for v in seen.shapes] == [[2, 4, 8, 3, side, side] for side in (16, 24, 20)]
    learn = learner_of(PatchVariants(patches='sample'), Sizes(32, 48), seen := Passes())
    usual = learn.views.makers['patches'].size
    learn.fit(1, 1e-3)
    assert [v['patches'][-1] for v in seen.shapes] == [usual, usual * 3 // 2, usual]


def test_batches_in_parts_have_the_steps_size():
    shapes = []
    class Look(Callback):
        order = Phase.KEYS
        def before_batch(self): shapes.append([*self.learn.step.views['views'].shape])
    learn = learner_of(Sizes(16, 32), Look(), accumulate=4)
    passes = []
    learn.model.encoder.register_forward_pre_hook(lambda m, x: passes.append(x[0].shape[-1]))
    learn.fit(1, 1e-3)
    assert shapes == [[2, 8, 3, side, side] for side in (16, 32, 16)]
    assert passes == [16] * 8 + [32] * 8 + [16] * 8  # each part twice


@pytest.mark.parametrize('size', [0, -3, 1, 12.5, '12'])
def test_a_size_that_cannot_be(size):
    learn = quick('simclr', cbs=[Sizes(size)])
    with pytest.raises(InputError) as e: learn.fit(1, 1e-3)
    assert f'size={size!r} of this step must be a whole number of at least 2' in str(e.value)
