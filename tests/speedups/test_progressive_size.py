"""Views that grow over the run: their sizes and strength step by step, what follows them, and what is refused."""
from fractions import Fraction
from functools import partial

import pytest
import torch
from fastai.callback.core import Callback
from helpers.learners import SMALL_CROPS, learner_of, small
from helpers.pairs import paired
from helpers.pictures import ARCH, VIT, pictures
from helpers.recording import Where
from helpers.refusals import refusal, said
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from fastcontrast.checkpoint import Checkpoint
from fastcontrast.core import InputError
from fastcontrast.device import Compile
from fastcontrast.evaluate.cost import Cost
from fastcontrast.learner import contrastive_learner
from fastcontrast.models import make_encoder
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.recipes import RECIPES
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize, size_steps, spread_sizes
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt
from fastcontrast.step import Phase
from fastcontrast.views import VIEW_KINDS, ViewKind

SEED = 7


class Sizes(Callback):
    "Sides of views by role, of key views, and the strength, step by step"
    order = Phase.KEYS + 1
    def before_fit(self): self.roles, self.keys, self.strengths = [], [], []
    def before_batch(self):
        step = self.learn.step
        self.roles.append({role: v.shape[-1] for role, v in step.views.items()})
        self.keys.append(step.key_views.shape[-1])
        self.strengths.append(step.strength)

    @property
    def views(self) -> list[int]: return [sides['views'] for sides in self.roles]


def learner(*cbs, side=32, n=24, name='simclr', changes=None, arch=ARCH, labels='all', **kwargs):
    "Four steps an epoch"
    recipe = small(name, 'cifar', **changes or {})
    learn = contrastive_learner(pictures(n, side, n // 4, labels=labels), arch, method=recipe, knn_pictures=0, cbs=cbs,
                                small_input=False if arch == ARCH else None, **kwargs)
    learn.create_mbar = False
    return learn


def swin(side):
    "Patches of 4 pixels, then of 8"
    return SwinTransformer(side, 4, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=3, strict_img_size=False,
                           num_classes=0)


def slow_schedule(growing, full, until, steps) -> list[int]:
    "Of every step, in exact numbers: each size has an equal share of the run up to `until`"
    until, out = Fraction(until).limit_denominator(1000), []
    for step in range(steps):
        done, size = Fraction(step, steps), full
        for i, smaller in reversed(list(enumerate(growing))):
            if done < until * Fraction(i + 1, len(growing)): size = smaller
        out.append(size)
    return out


# --- sizes

@pytest.mark.parametrize('first,full,steps,sizes', [
    (48, 96, (16, 2), (48, 64, 80, 96)), (16, 32, (8, 2), (16, 24, 32)), (32, 64, (16, 2), (32, 48, 64)),
    (14, 28, (16, 2), (16, 24, 28)), (112, 224, (16, 16), (112, 144, 192, 224)), (8, 16, (16, 2), (8, 12, 16)),
    (24, 48, (16, 2), (24, 32, 40, 48)), (9.6, 96, (16, 2), (8, 40, 64, 96)), (91.2, 96, (16, 2), (92, 94, 96)),
    (56, 112, (14, 14), (56, 70, 98, 112)), (16, 16, (16, 16), (16,)), (12, 24, (8, 4), (12, 16, 20, 24)),
    (6, 12, (8, 4), (8, 12)), (48, 96, (32, 32), (64, 96))])
def test_few_sizes_that_suit(first, full, steps, sizes): assert spread_sizes(first, full, steps) == sizes


def test_a_number_of_sizes():
    for full, first in ((96, 48), (224, 112), (28, 14), (64, 10)):
        for n in range(2, 7):
            sizes = spread_sizes(first, full, (16, 2), n)
            assert len(sizes) == n and sizes[-1] == full and sizes == tuple(sorted(set(sizes)))
            assert abs(sizes[0] - first) <= first / 4
            gaps = [b - a for a, b in zip(sizes, sizes[1:])]
            assert max(gaps) - min(gaps) <= 16
    assert len(spread_sizes(8, 16, (16, 2), 12)) == 5


@pytest.mark.parametrize('arch,small_input,steps', [
    ('resnet18', False, (16, 2)), ('resnet18', True, (8, 2)), ('test_vit', False, (16, 16)),
    ('convnext_atto', False, (16, 2)), ('efficientnet_b0', False, (16, 2)), ('pvt_v2_b0', False, (16, 2))])
def test_steps_of_encoders(arch, small_input, steps):
    "The patches of a PVT overlap, so that it takes any size"
    assert size_steps(make_encoder(arch, small_input=small_input, size=64)) == steps


def test_steps_of_patches():
    assert size_steps(swin(24)) == (8, 4)
    assert [size_steps(swin(24), n) for n in (2, 3)] == [(8, 8), (12, 12)]  # views are cut into n by n
    assert size_steps(make_encoder(VIT, size=64), 2) == (32, 32)
    assert size_steps(make_encoder('resnet18'), 2) == (16, 2)  # a part of any size will do


@pytest.mark.parametrize('until_epochs, steps', paired([(0.75, 3), (0.5, 1), (1, 3), (0.1, 1), (1 / 3, 3)],
                                                       [None, 2, 4, (16, 24, 24, 28), (8, 32)], 2), ids=str)
def test_the_size_of_every_step(until_epochs, steps):
    until, epochs = until_epochs
    learn = learner(ProgressiveSize(until=until, steps=steps), seen := Sizes())
    learn.fit(epochs, 1e-3)
    *growing, full = learn.progressive_size.sizes
    assert growing == {None: [16, 24], 2: [16], 4: [16, 20, 28]}.get(steps, [s for s in steps or () if s < 32]
                                                                  if isinstance(steps, tuple) else None)
    assert seen.views == slow_schedule(growing, full, until, 4 * epochs)
    assert seen.keys == seen.views and set(seen.strengths) == {1}
    assert learn.views.size == 32  # as before: drawings, exports and evaluation have the full size


@pytest.mark.parametrize('kwargs,sizes', [
    (dict(end=0.75), (16, 20, 24)), (dict(start=0.75, end=0.75), (24,)), (dict(steps=(16, 20), end=0.75), (16, 20, 24)),
    (dict(start=3 / 8, end=0.75, steps=2), (12, 24)), (dict(end=0.5), (16,)), (dict(steps=3, end=1), (16, 24, 32)),
    (dict(start=0.25, floor=16), (16, 24, 32)), (dict(start=0.25, end=0.5, floor=16), (16,)),
    (dict(start=0.25, steps=2, floor=20), (24, 32))])
def test_a_run_ends_with_the_size_that_it_is_given(kwargs, sizes):
    learn = learner(ProgressiveSize(**kwargs), seen := Sizes())
    learn.fit(2, 1e-3)
    assert learn.progressive_size.sizes == sizes
    assert seen.views == slow_schedule(list(sizes[:-1]), sizes[-1], 0.75, 8)
    assert learn.views.size == 32


def test_every_fit_grows_anew():
    learn = learner(ProgressiveSize(), seen := Sizes())
    for _ in range(2):
        learn.fit_contrastive(1, 1e-3)
        assert seen.views == [16, 16, 24, 32]
    learn.remove_cb(ProgressiveSize)
    learn.fit_contrastive(1, 1e-3)
    assert seen.views == [32] * 4
    learn.fit_contrastive(1, 1e-3, cbs=ProgressiveSize(steps=2))
    assert seen.views == [16] * 3 + [32]


def test_what_is_drawn_has_the_full_size():
    learn = learner(ProgressiveSize(strength=0))
    learn.fit(1, 1e-3)
    shown = learn.show_views(2)
    assert {ax.images[0].get_array().shape[:2] for ax in shown.axes} == {(32, 32)}


# --- the same without it

FULL = {'1': lambda: ProgressiveSize(start=1), 'strength': lambda: ProgressiveSize(start=1, strength=1),
        'given': lambda: ProgressiveSize(steps=(32,), until=0.5)}


@pytest.mark.parametrize('name, make', paired(['simclr', 'moco_v1', 'dino'], FULL))
def test_nothing_grows_bit_for_bit(make, name):
    def weights(*cbs):
        torch.manual_seed(3)
        learn = learner(*cbs, name=name, accumulate=2)
        learn.fit_contrastive(1, 1e-2)
        return learn.model.state_dict()
    without, there = weights(), weights(FULL[make]())
    assert without.keys() == there.keys() and all(torch.equal(t, there[n]) for n, t in without.items())


def test_full_strength_is_the_kinds_own():
    def weights(**kwargs):
        torch.manual_seed(3)
        learn = learner(ProgressiveSize(**kwargs))
        learn.fit_contrastive(1, 1e-2)
        return learn.model.state_dict()
    without, there = weights(), weights(strength=1)
    assert all(torch.equal(t, there[n]) for n, t in without.items())


# --- strength

def test_weaker_kinds_by_hand():
    kind = VIEW_KINDS['byol'].weaker(0.25)
    assert kind == ViewKind(scale=(1 - 0.25 * (1 - 0.08), 1.0), jitter=(0.1, 0.1, 0.05, 0.025), grey=0.05,
                            blur=(0.25, 0.025), solarise=(0.0, 0.05))
    assert VIEW_KINDS['digits'].weaker(0.5).rotate == 7.5
    small_crop = ViewKind(scale=(0.05, 0.25)).weaker(0.5)
    assert small_crop.scale == pytest.approx((0.15, 0.25))  # it stays a small one
    nothing = VIEW_KINDS['byol'].weaker(0)
    assert nothing == ViewKind(scale=(1., 1.), jitter=(0,) * 4, grey=0, blur=(0, 0), solarise=(0, 0))


def test_no_strength_leaves_the_pictures_as_they_are():
    learn = learner()
    images = torch.rand(5, 3, 32, 32)
    views = learn.views.softened(0)(images)['views']
    for view in views:
        for one, picture in zip(view, images):
            assert min((one - picture).abs().max(), (one - picture.flip(-1)).abs().max()) < 1e-5


@pytest.mark.parametrize('strength', [0, 0.2])
def test_strength_grows_with_the_size(strength):
    learn = learner(ProgressiveSize(strength=strength, steps=(16, 28)), seen := Sizes())
    learn.fit(1, 1e-3)
    assert seen.views == [16, 16, 28, 32]
    assert seen.strengths == pytest.approx([strength, strength, strength + (1 - strength) * 12 / 16, 1])


def test_views_of_a_step_are_those_of_its_strength():
    "Small crops and the support batch too"
    kept, learn = [], learner(ProgressiveSize(strength=0, steps=(28,)), SuNCEt(per_class=2),
                              MultiCrop((2, None, (.4, 1)), (2, 16, (.1, .1))), views=ViewKind(ratio=(1, 1), flip=0))
    class Keep(Callback):
        order = Phase.LABELS + 1
        def before_batch(self): kept.append({**self.learn.step.views})
    learn.fit(1, 1e-3, cbs=Keep())
    first = kept[0]
    assert {role: v.shape[-1] for role, v in first.items()} == {'views': 28, 'local': 14, 'labeled': 28}
    assert torch.equal(first['views'][0], first['views'][1])
    assert not torch.equal(first['local'][0], first['local'][1])  # where they are cut is still drawn
    assert not torch.equal(kept[-1]['views'][0], kept[-1]['views'][1])


def test_a_module_of_the_users_grows_in_size_alone():
    learn = learner(ProgressiveSize(), seen := Sizes(), views=nn.Identity())
    learn.fit(1, 1e-3)
    assert seen.views == [16, 16, 24, 32]
    said(['Identity', 'strength', 'leave strength out'], learner, ProgressiveSize(strength=0.5), views=nn.Identity())


# --- what follows

@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_trains(name):
    crops = dict(multi_crop=SMALL_CROPS) if RECIPES[name].multi_crop else {}
    learn = learner(ProgressiveSize(strength=0.5), seen := Sizes(), look := Where(), name=name, changes=crops)
    learn.fit_contrastive(1, 1e-3)
    assert all(finite for *_, finite in look.steps)
    assert seen.keys == [16, 16, 24, 32]
    if name != 'fast_moco': assert seen.views == seen.keys
    if crops: assert [sides['local'] for sides in seen.roles] == [8, 8, 12, 16]


@pytest.mark.parametrize('name, kwargs', paired(['byol', 'moco_v1'],
                                                [dict(), dict(accumulate=2), dict(precision='bf16')]), ids=str)
def test_everything_follows(name, kwargs, request):
    "Patches, the support batch, small crops, the teacher's views"
    if 'precision' in kwargs: request.getfixturevalue('bf16')
    learn = learner(ProgressiveSize(), CombinePatches(), SuNCEt(per_class=2), seen := Sizes(), look := Where(),
                    MultiCrop((2, None, (.4, 1)), (2, 16, (.1, .4))), IntermediateLoss(), name=name, **kwargs)
    learn.fit_contrastive(1, 1e-3)
    assert all(finite for *_, finite in look.steps) and seen.keys == [16, 16, 24, 32]
    assert seen.roles == [dict(views=side // 2, local=side // 2, labeled=side) for side in seen.keys]


def test_sampled_patches_follow():
    learn = learner(ProgressiveSize(), PatchVariants(patches='sample'), seen := Sizes(), name='byol')
    learn.fit(1, 1e-3)
    assert [sides['patches'] for sides in seen.roles] == [8, 8, 12, 16]


def test_small_crops_of_a_transformer_are_whole_patches():
    crops = MultiCrop((2, None, (.4, 1)), (2, 48, (.1, .4)))
    learn = learner(ProgressiveSize(), crops, seen := Sizes(), side=96, arch=VIT)
    learn.fit(1, 1e-3)
    assert learn.progressive_size.sizes == (48, 64, 80, 96)
    assert [(sides['views'], sides['local']) for sides in seen.roles] == [(48, 32), (64, 32), (80, 32), (96, 48)]
    views = learn.views
    assert views.multiple == 16
    learn.remove_cb(ProgressiveSize)
    assert views.multiple == 1


def test_pyramids_of_patches_get_whole_ones():
    learn = learner(ProgressiveSize(), MultiCrop((2, None, (.4, 1)), (2, 12, (.1, .4))), seen := Sizes(), side=24,
                    arch=swin(24))
    learn.fit(1, 1e-3)
    assert [(sides['views'], sides['local']) for sides in seen.roles] == [(12, 8), (16, 8), (20, 8), (24, 12)]
    assert learner(ProgressiveSize(), side=12, arch=swin(12)).progressive_size.sizes == (8, 12)


@pytest.mark.parametrize('cbs', [(ProgressiveSize, CombinePatches), (CombinePatches, ProgressiveSize)],
                         ids=['before', 'after'])
def test_views_of_a_transformer_are_cut_into_whole_patches(cbs):
    learn = learner(*[cb() for cb in cbs], seen := Sizes(), side=96, arch=VIT)
    learn.fit(1, 1e-3)
    assert learn.progressive_size.sizes == (64, 96)
    assert [(sides['views'], key) for sides, key in zip(seen.roles, seen.keys)] == [(32, 64)] * 3 + [(48, 96)]
    learn.remove_cb(CombinePatches)
    learn.fit(1, 1e-3)
    assert seen.views == [48, 64, 80, 96]


def test_the_large_crops_are_the_full_size():
    learn = learner(ProgressiveSize(), MultiCrop((2, 24, (.4, 1)), (2, 12, (.1, .4))), seen := Sizes())
    learn.fit(1, 1e-3)
    assert [(sides['views'], sides['local']) for sides in seen.roles] == [(12, 6), (16, 8), (20, 10), (24, 12)]
    learn = learner(ProgressiveSize(), seen := Sizes())
    learn.add_cb(MultiCrop((2, 24, (.4, 1)), (2, 12, (.1, .4))))  # later: it is what counts when a fit begins
    learn.fit(1, 1e-3)
    assert seen.views == [12, 16, 20, 24]


# --- cost

def test_operations_are_those_of_the_sizes():
    def flops(*cbs):
        learn = learner(*cbs, cost := Cost())
        learn.fit(1, 1e-3)
        return cost.steps['flops'], cost.totals()['tflop']
    fixed = {side: flops(ProgressiveSize(steps=(side,), until=1))[0][0] for side in (16, 24, 32)}
    steps, total = flops(ProgressiveSize())
    assert steps == [fixed[16], fixed[16], fixed[24], fixed[32]] and fixed[16] < fixed[24] < fixed[32]
    assert total == pytest.approx((2 * fixed[16] + fixed[24] + fixed[32]) / 1e12)
    assert flops(ProgressiveSize(start=1))[0] == flops()[0] == [fixed[32]] * 4


def test_compiled_once_for_few_shapes():
    learn, counts = learner(ProgressiveSize(steps=2), compiling := Compile(backend='eager', views=False)), []
    class Count(Callback):
        order = Phase.LAST + 1
        def before_fit(self): torch._dynamo.utils.counters.clear()
        def after_batch(self): counts.append(torch._dynamo.utils.counters['stats']['unique_graphs'])
    learn.fit(1, 1e-3, cbs=Count())
    assert counts[0] == counts[1] and counts[-1] <= 2 * counts[0], (counts, compiling)


# --- a run that is taken up (see also tests/checkpoint) and one that is told of

@pytest.mark.parametrize('at', [1, 3, 5])
def test_taken_up_in_the_midst_of_growing(at, tmp_path):
    class Stop(Callback):
        order = 1000
        def after_batch(self):
            if self.train_iter == at: raise KeyboardInterrupt
    seen, later = Sizes(), Sizes()
    cbs = [Checkpoint('1 step')]
    with pytest.raises(KeyboardInterrupt):
        learner(ProgressiveSize(), seen).fit_contrastive(3, 1e-3, cbs=[*cbs, Stop()], resume=tmp_path)
    learner(ProgressiveSize(), later).fit_contrastive(3, 1e-3, cbs=[Checkpoint('1 step')], resume=tmp_path)
    assert seen.views + later.views == slow_schedule([16, 24], 32, 0.75, 12)
    assert len(seen.views) == at


def test_a_longer_run_grows_by_its_own_length(tmp_path):
    learner(ProgressiveSize(), seen := Sizes()).fit_contrastive(1, 1e-3, resume=tmp_path)
    assert seen.views == [16, 16, 24, 32]
    learner(ProgressiveSize(), seen := Sizes()).fit_contrastive(2, 1e-3, resume=tmp_path)
    assert seen.views == slow_schedule([16, 24], 32, 0.75, 8)[4:] == [24, 24, 32, 32]


def test_a_fit_says_how_views_grow(capsys):
    learn = learner(ProgressiveSize(strength=0.5))
    learn.fit_contrastive(2, 1e-3)
    assert capsys.readouterr().out.count('views grow: 16, 24 px, then 32 from epoch 1.5 of 2 on; '
                                         'their strength from 0.5 on\n') == 1
    with learn.no_logging(): learn.fit_contrastive(1, 1e-3)
    learner(ProgressiveSize(start=1)).fit_contrastive(1, 1e-3)
    assert 'grow' not in capsys.readouterr().out
    learner(ProgressiveSize(until=1)).fit_contrastive(1, 1e-3)
    assert 'views grow: 16, 24 px\n' in capsys.readouterr().out


def test_it_is_shown_as_it_is_written():
    assert repr(ProgressiveSize()) == 'ProgressiveSize()'
    assert repr(cb := ProgressiveSize(0.25, 0.5, (8, 16), 0.)) == (
        'ProgressiveSize(start=0.25, until=0.5, steps=(8, 16), strength=0.0)')
    assert repr(eval(repr(cb))) == repr(cb)


# --- encoders of other makes

@pytest.mark.parametrize('arch,side', [
    ('test_vit', 64), ('vit_tiny_patch16_224', 64), ('deit_tiny_distilled_patch16_224', 64), ('convnext_atto', 64),
    ('efficientnet_b0', 64), ('swin_tiny_patch4_window7_224', 64), ('beit_base_patch16_224', 32),
    ('mixer_s32_224', 64), ('coatnet_pico_rw_224', 64), ('mobilenetv3_small_050', 64)])
def test_an_encoder_trains_or_is_refused(arch, side):
    refused = arch.startswith(('beit', 'mixer', 'coatnet'))
    try: learn = learner_of(arch, [ProgressiveSize(until=0.5, steps=2), seen := Sizes(), look := Where()], side)
    except InputError as e:
        assert refused and all(word in str(e) for word in (arch, 'ProgressiveSize', 'pixels')) and '\n' not in str(e)
        return
    assert not refused
    learn.fit_contrastive(1, 1e-3)
    assert seen.views == [side // 2, side] and all(finite for *_, finite in look.steps)


# --- refusals

@pytest.mark.parametrize('kwargs,words', [
    (dict(start=0), 'start=0 of ProgressiveSize must be a finite number above 0 and at most 1'),
    (dict(start=1.5), 'start=1.5'), (dict(start='half'), "start='half'"), (dict(until=0), 'until=0'),
    (dict(until=2), 'until=2'), (dict(strength=-0.1), 'strength=-0.1'), (dict(strength=2), 'at most 1, or None'),
    (dict(end=0), 'end=0'), (dict(end=1.5), 'end=1.5'),
    (dict(floor=1), 'floor=1 of ProgressiveSize must be a whole number of at least 2'),
    (dict(end=0.25), 'start=0.5 of ProgressiveSize is above end=0.25'),
    (dict(steps=1), 'steps=1 of ProgressiveSize must be a whole number of at least 2'),
    *((dict(steps=steps), 'must be a number of sizes, at least 2, or sizes in pixels')
      for steps in (2.5, 'many', (), (64, 48), (1, 8), (8, 12.5), True))], ids=str)
def test_values_that_cannot_be(kwargs, words): assert words in refusal(ProgressiveSize, **kwargs)


@pytest.mark.parametrize('cbs,kwargs,words', [
    ([lambda: ProgressiveSize(steps=(48,))], {}, ['steps=(48,)', 'beyond the 32 pixels', 'smaller sizes']),
    ([lambda: ProgressiveSize(start=0.99)], {}, ['start=0.99', '0 sizes below 32 pixels', 'a smaller start']),
    ([lambda: ProgressiveSize(steps=20)], {}, ['steps=20', 'fewer steps']),
    ([ProgressiveSize], dict(arch=VIT, side=16), ['0 sizes below 16 pixels, in steps of 16', 'larger pictures']),
    ([lambda: ProgressiveSize(start=1, strength=0.5)], {}, ['strength=0.5', 'does not grow', 'below its end']),
    ([lambda: ProgressiveSize(steps=(16, 28), end=0.75)], {}, ['goes beyond the 24 pixels', 'larger end']),
    ([ProgressiveSize, ProgressiveSize], {}, ['ProgressiveSize()', 'the size of a step']),
    ([lambda: ProgressiveSize(steps=(40,))], dict(arch=VIT, side=64), ['(40,)', '40 pixels', 'test_vit']),
    ([lambda: ProgressiveSize(steps=(48,)), lambda: CombinePatches(2)], dict(arch=VIT, side=64),
     ['views of 48 pixels', 'CombinePatches(n=2, m=2) makes patches of 24', 'larger start']),
    ([ProgressiveSize, lambda: CombinePatches(2)], dict(arch=VIT, side=32),
     ['0 sizes below 32 pixels, in steps of 32']),
    ([ProgressiveSize, lambda: CombinePatches(20, 1)], {}, ['16 pixels', 'more patches than they have pixels']),
    ([ProgressiveSize, lambda: PatchVariants(combine=0)], dict(arch=VIT, side=64), ['PatchVariants']),
    ([ProgressiveSize, lambda: HardRegions('layer3')], {}, ['16 pixels', 'HardRegions', 'would keep all']),
    ([ProgressiveSize, CombinePatches, lambda: HardRegions('layer2', keep=0.8)], {},
     ['ProgressiveSize', 'pixels', 'HardRegions'])])
def test_what_does_not_go_together(cbs, kwargs, words):
    text = refusal(learner, *[make() for make in cbs], **kwargs)
    assert all(word in text for word in words), text


def test_what_comes_later_is_refused_before_a_fit():
    learn = learner(ProgressiveSize())
    learn.add_cb(CombinePatches(20, 1))
    assert 'ProgressiveSize() has views of 16 pixels' in refusal(partial(learn.fit, 1, 1e-3))
    learn.remove_cb(CombinePatches)
    learn.fit(1, 1e-3)


