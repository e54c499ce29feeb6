"""Speedups with encoders of other makes: they train, or are refused in a sentence."""
import pytest
import timm
import torch
from helpers.learners import Plainest, learner_of, local_learner, small
from helpers.pictures import pictures
from helpers.recording import Where
from helpers.refusals import said
from helpers.speedups import REMOVABLE

from fastcontrast.core import InputError
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import InfoNCE
from fastcontrast.models import ContrastiveModel, Head, mlp
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.targets import SharedTarget

close = torch.testing.assert_close

pytestmark = pytest.mark.filterwarnings('error:You are shadowing')  # an attribute of the learner
SEED = 3


@pytest.mark.parametrize('cb,words', [
    (lambda: IntermediateLoss(), ['IntermediateLoss', 'no stages']),
    (lambda: HardRegions(), ['HardRegions', 'no stages']),
    (lambda: IntermediateLoss(('layer1',)), ['layer1', 'none is known of it']),
    (lambda: HardRegions('layer1'), ['layer1', 'none']),
    (lambda: PatchVariants(combine='layer1'), ['layer1', 'none']),
    (lambda: PatchVariants(patches='montage'), ['montage', 'no stages'])])
def test_encoders_without_stages(cb, words):
    learn = local_learner()
    learn.model = ContrastiveModel(Plainest(), Head(mlp((8, 9, 5), bn=False)))
    said(words, learn.add_cb, cb())


def test_an_encoder_without_stages_takes_patches():
    learn = local_learner(CombinePatches(), loss=InfoNCE(0.2), target=SharedTarget)
    learn.fit(1, 1e-2)


@pytest.mark.parametrize('speedups,n', [('levels', 4), ('regions', 2), ('patches', 1), ('all', 4)])
@pytest.mark.parametrize('arch,side', [
    ('test_convnext', 64), ('test_efficientnet', 64), ('mobilenetv3_small_050', 64), ('test_vit', 64)])
def test_other_encoders_train_with(arch, side, speedups, n):
    "Or say when they are put together that they can't"
    cbs = REMOVABLE[speedups]()
    try: learn = learner_of(arch, [*cbs, seen := Where()], side)
    except InputError as e:
        assert speedups == 'all' and arch == 'test_convnext' and 'HardRegions' in str(e) and '\n' not in str(e)
        return
    assert len(learn.model.levels()) == n
    learn.fit_contrastive(1, 1e-3)
    assert len(seen.steps) == 2 and all(finite for *_, finite in seen.steps)
    assert learn.model.encoder.state_dict().keys() == timm.create_model(arch, num_classes=0).state_dict().keys()


@pytest.mark.parametrize('make', [
    lambda: IntermediateLoss(), lambda: HardRegions(), lambda: CombinePatches(),
    lambda: PatchVariants(combine='input'), lambda: PatchVariants(combine=1),
    lambda: PatchVariants(patches='montage'), lambda: PatchVariants(patches='sample')],
                         ids=['levels', 'regions', 'patches', 'strips', 'stitched', 'montage', 'sampled'])
@pytest.mark.parametrize('arch,side', [
    ('test_vit3', 64), ('test_vit', 48), ('test_efficientnet', 40), ('test_byobnet', 32)])
def test_it_trains_or_is_refused(arch, side, make):
    try:
        learn = contrastive_learner(pictures(2, side, 2), arch, method=small('simclr', 'cifar'),
                                    cbs=[make(), seen := Where()])
    except InputError as e:
        text = str(e)
        assert '\n' not in text and text.endswith('.') and len(text) < 400, text
        return
    learn.create_mbar = False
    learn.fit_contrastive(1, 1e-3)
    assert all(finite for *_, finite in seen.steps)


@pytest.mark.parametrize('make', [
    lambda: IntermediateLoss(), lambda: HardRegions(), lambda: CombinePatches()], ids=['levels', 'regions', 'patches'])
def test_swin(make): test_it_trains_or_is_refused('swin_tiny_patch4_window7_224', 64, make)


def test_patches_that_a_transformer_cannot_take():
    said(['CombinePatches', '24 pixels', 'test_vit'], learner_of, 'test_vit', [CombinePatches(2, 2)], 48)
    said(['PatchVariants', 'tokens'], learner_of, 'test_vit', [PatchVariants(combine='blocks.2')], 64)
    said(['montage', 'tokens', "'sample'"], learner_of, 'test_vit', [PatchVariants(patches='montage')], 64)


def test_names_of_levels_with_dots():
    learn = learner_of('test_convnext',
                       [IntermediateLoss('stages.1'), PartialBackprop({'stages.1': 0.5, 'final': 0.5})], 64)
    assert learn.model.levels() == ('stages_1', 'final')
    learn.fit(1, 1e-3)
    assert learn.partial_backprop.drawn in ('stages_1', 'final')
    assert learner_of('test_convnext',
                      [IntermediateLoss(('stages.0', 'stages.2')), PartialBackprop({0: 0.5, 'stages_2': 0.5})],
                      64).partial_backprop.chances() == {'stages_0': .5, 'stages_2': .5, 'final': 0.}


def test_a_feature_map_with_as_many_cells_as_channels():
    "Channels come last in Swin; where a side is as long as there are channels they are still told apart"
    from fastcontrast.models import Stage
    x = torch.rand(2, 12, 12, 12)
    close(Stage('layers.0', 12, 4).pool(x), x.mean((2, 3)))  # channels first, as most have it
