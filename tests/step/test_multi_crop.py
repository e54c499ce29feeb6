"""Crops of several sizes."""
import math

import pytest
import torch
from fastai.callback.core import Callback
from helpers.learners import quick, small
from helpers.pictures import SIDE, D, pictures
from helpers.recording import Seen
from helpers.refusals import refusal

from fastcontrast.learner import contrastive_learner
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.recipes import METHODS
from fastcontrast.targets import Queue
from fastcontrast.views import RoleViews, Views

SEED = 7


def test_multi_crop_makes_its_crops_from_the_learners_views():
    learn = quick('moco_v3', cbs=[MultiCrop((3, None, (0.5, 1.0)), (4, 8, (0.1, 0.5)))])
    assert isinstance(learn.views, RoleViews)
    made = learn.views(torch.rand(8, 3, 16, 16))
    assert {role: [*v.shape] for role, v in made.items()} == {'views': [3, 8, 3, 16, 16], 'local': [4, 8, 3, 8, 8]}
    large, crops = learn.views.makers.values()
    assert large.strength.scale == (0.5, 1.0) and crops.strength.scale == (0.1, 0.5)
    # byol's pair has 0 and 0.2: each view gets the mean
    assert large.strength.solarise == crops.strength.solarise == 0.1
    target, steps = Seen(21), []
    class Passes(Callback):
        def before_batch(self): steps.clear()
    def note(module, x):
        if module.training: steps.append([*x[0].shape])  # not those of the epoch table
    learn.model.encoder.register_forward_pre_hook(note)
    learn.model.per_view = False
    learn.fit(1, 1e-3, cbs=[target, Passes()])
    assert steps == [[24, 3, 16, 16], [32, 3, 8, 8]]  # a pass for each size
    q, k = target.steps[0]
    assert [*k.shape] == [3, 8, D] and {role: len(v) for role, v in q.items()} == {'views': 3, 'local': 4}


def test_views_that_lack_the_small_crops():
    "A maker of views alone, or several of which none makes these"
    learn = quick('moco_v3', cbs=[MultiCrop((2, None, (0.4, 1.0)), (2, 8, (0.1, 0.4)))])
    before = learn.views
    large, crops, others = (Views(side, 'simclr_cifar', role=role)
                            for side, role in ((16, 'views'), (8, 'local'), (8, 'others')))
    for views in ('byol', large, RoleViews(large), RoleViews(large, others)):
        assert 'of the roles local' in refusal(setattr, learn, 'views', views)
        assert learn.views is before
    learn.views = RoleViews(large, crops)
    learn.fit(1, 1e-3)


@pytest.mark.parametrize('field', ['globals', 'locals'])
@pytest.mark.parametrize('crops', [
    None, 2, (2,), (2, 16), (0, 16, (.1, 1)), (-1, 16, (.1, 1)), (2.5, 16, (.1, 1)), (2, 0, (.1, 1)), (2, -16, (.1, 1)),
    (2, 16.5, (.1, 1)), (2, 16, (.5, .1)), (2, 16, (0, 1)), (2, 16, (.1, 1.1)),
    (2, 16, .5), (2, 16, (.5,)),
    (2, 16, ('a', 'b')), (2, 16, (.1, .5, .9)), (2, 16, (math.nan, 1)), '2x16'], ids=str)
def test_malformed_crops(field, crops):
    text = refusal(MultiCrop, **{field: crops})
    assert f'{field}={crops!r}' in text and 'MultiCrop' in text


def test_crops_of_one_pixel():
    text = refusal(quick, 'moco_v3', cbs=[MultiCrop(locals=(2, 1, (.1, .4)))])
    assert '1' in text


def test_colours_of_small_crops_by_a_name():
    "As everywhere else a kind of views has a name; what is none is refused"
    assert 'nosuch' in refusal(lambda: quick('moco_v3',
                                             cbs=[MultiCrop((2, None, (.4, 1)), (2, 8, (.1, .4)), 'nosuch')]))


@pytest.mark.parametrize('side,role', [(8, 'locals'), (24, 'globals')])
def test_crops_that_the_encoder_cannot_take(side, role):
    "A ViT without position embeddings for other sizes, and a ConvNeXt whose patches are too large"
    arch = 'test_convnext' if role == 'locals' else 'test_vit3'
    def make(): return contrastive_learner(pictures(16, SIDE, 8), arch, method=small('moco_v3', 'cifar'),
                                           cbs=[MultiCrop(**{role: (2, side, (.2, 1)),
                                                             **({'locals': (2, SIDE, (.2, 1))} if role == 'globals'
                                                                else {})})])
    text = refusal(make)
    assert f"{side} pixels" in text and arch in text and text.endswith('.')


def test_one_large_crop_leaves_no_keys_for_one_way_methods():
    text = refusal(quick, 'moco_v2', cbs=[Queue(16), MultiCrop((1, None, (.4, 1)), (2, 8, (.1, .4)))])
    assert 'MultiCrop' in text


def test_small_crops_are_whole_patches_of_a_transformer():
    learn = contrastive_learner(pictures(16, 128, 8), 'vit_tiny_patch16_224',
                                method=METHODS['dino'](projector=(16, 8), prototypes=12))
    assert {role: maker.size for role, maker in learn.views.makers.items()} == {'views': 128, 'local': 48}
