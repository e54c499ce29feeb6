"""Views of the user's own: Kornia, torchvision or any module in place of a kind, with all that is made of views."""
import re
import math
import warnings

import kornia.augmentation as K
import pytest
import torch
from helpers.learners import learner_of, small
from helpers.pairs import paired
from helpers.pictures import ARCH, VIT, pictures
from helpers.recording import Where
from helpers.refusals import refusal, said
from torch import nn
from torchvision.transforms import v2

from fastcontrast.core import InputError
from fastcontrast.learner import contrastive_learner
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.multi_view import MultiView
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt
from fastcontrast.step import Contrast
from fastcontrast.views import VIEW_KINDS, ModuleViews, RoleViews, ViewKind, ViewMaker, Views, as_views

SIDE = 16
SEED = 5


class Noise(nn.Module):
    "A module of somebody's own, with a buffer"
    def __init__(self, share=0.3):
        super().__init__()
        self.register_buffer('share', torch.tensor(share))
    def forward(self, x): return (1 - self.share) * x + self.share * torch.rand_like(x)


def crops_by_kornia(side=SIDE): return K.RandomResizedCrop((side, side), scale=(0.3, 1.))


# whole pipelines, which choose the crop as well
PIPELINES = dict(
    name=lambda: 'moco_v2', kind=lambda: ViewKind(scale=(0.3, 1.), grey=0.5),
    kornia=lambda: K.AugmentationSequential(crops_by_kornia(), K.RandomHorizontalFlip(), data_keys=['input']),
    sequential=lambda: nn.Sequential(crops_by_kornia(), K.ColorJitter(.4, .4, .4, .1)),
    other_side=lambda: nn.Sequential(crops_by_kornia(24), K.RandomGrayscale(p=0.3)),
    torchvision=lambda: v2.Compose([v2.RandomResizedCrop(SIDE, (0.3, 1.)), v2.RandomHorizontalFlip()]),
    module=Noise)
# those that leave the crop alone, as MultiCrop asks
COLOURS = dict(
    name=PIPELINES['name'], kind=PIPELINES['kind'],
    kornia=lambda: K.AugmentationSequential(K.RandomHorizontalFlip(), K.ColorJitter(.4, .4, .4, .1)),
    sequential=lambda: nn.Sequential(K.ColorJitter(.4, .4, .4, .1), K.RandomGaussianBlur((3, 3), (.1, 2.))),
    torchvision=lambda: v2.Compose([v2.ColorJitter(.4, .4, .4, .1), v2.RandomGrayscale(0.2)]), module=Noise)


def crops(): return MultiCrop((2, SIDE, (.4, 1)), (3, 8, (.1, .4)))


TOGETHER = dict(
    alone=(lambda: [], {}), patches=(lambda: [CombinePatches()], {}), labelled=(lambda: [SuNCEt(views=2)], {}),
    levels=(lambda: [IntermediateLoss(), PartialBackprop(), HardRegions('layer1')], {}),
    parts=(lambda: [], dict(accumulate=2)),
    parts_of_all=(lambda: [CombinePatches(), SuNCEt(), IntermediateLoss('layer2')], dict(accumulate=2)))
WITH_CROPS = dict(
    crops=(lambda: [crops()], {}), labelled=(lambda: [crops(), SuNCEt()], {}),
    sampled=(lambda: [crops(), PatchVariants(patches='sample')], {}),
    all=(lambda: [crops(), CombinePatches(), SuNCEt(), IntermediateLoss(), HardRegions('layer1')],
         dict(accumulate=2)))


def learner_with(views=None, cbs=(), name='byol', **kwargs):
    learn = contrastive_learner(pictures(16, SIDE, 8, labels='all'), ARCH, small_input=False, knn_pictures=0, cbs=cbs,
                                **{'method': small(name, 'cifar'), 'views': views, **kwargs})
    learn.create_mbar = False
    return learn


def trains(learn):
    learn.add_cb(look := Where())
    learn.fit(1, 1e-3)
    assert len(look.steps) == 2 and all(finite and grads for _, grads, finite in look.steps)


# --- what they are and what they make

@pytest.mark.parametrize('views', PIPELINES.values(), ids=PIPELINES)
def test_whatever_makes_views_makes_them_of_one_shape(views):
    made = as_views(views(), SIDE)
    assert isinstance(made, RoleViews) and list(made.makers) == ['views'] and made.size == SIDE
    for x in (torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8), torch.rand(5, 3, SIDE, SIDE)):
        kept = x.clone()
        for size in (None, SIDE, 24, 10):
            roles = made(x, size)
            side = size or SIDE
            assert list(roles) == ['views'] and roles['views'].shape == (2, 5, 3, side, side)
            assert roles['views'].dtype == torch.float32 and not roles['views'].requires_grad
            assert type(roles['views']) is torch.Tensor and 0 <= roles['views'].min() <= roles['views'].max() <= 1
        assert torch.equal(x, kept)


@pytest.mark.parametrize('views', [*COLOURS.values(), *PIPELINES.values()],
                         ids=[*(f'{n} of colours' for n in COLOURS), *PIPELINES])
def test_every_picture_has_draws_of_its_own(views):
    "Also with torchvision, which draws once for all pictures that it is given"
    x = torch.rand(3, SIDE, SIDE).expand(60, -1, -1, -1)
    made = as_views(views(), SIDE)(x)['views']
    assert made.shape == (2, 60, 3, SIDE, SIDE)
    for view in made: assert len(view.flatten(1).unique(dim=0)) > 20  # a flip alone makes two
    assert not torch.equal(made[0], made[1])


@pytest.mark.parametrize('make,singly', [
    (lambda: v2.RandomGrayscale(0.1), True), (lambda: v2.RandomSolarize(0.5, p=0.2), True),
    (lambda: v2.Compose([v2.RandomHorizontalFlip(), v2.RandomGrayscale(0.2)]), True),
    (lambda: K.RandomGrayscale(p=0.1), False), (lambda: K.RandomHorizontalFlip(p=0.5), False),
    (lambda: K.RandomHorizontalFlip(p=0.5, same_on_batch=True), True), (Noise, False),
    (lambda: nn.Identity(), False), (lambda: v2.Grayscale(3), False)])
def test_what_draws_once_for_a_batch_is_given_one_picture_at_a_time(make, singly):
    "Whatever the chance, and whatever the seed at which that is found out"
    for seed in range(12):
        torch.manual_seed(seed)
        maker = ModuleViews(SIDE, make())
        assert maker.singly == singly and ('picture by picture' in repr(maker)) == singly


def test_a_torchvision_flip_is_each_pictures_own():
    x = torch.arange(SIDE).div(SIDE).expand(1000, 3, SIDE, SIDE)
    view = as_views(v2.RandomHorizontalFlip(0.3), SIDE)(x)['views'][0]
    flipped = view[:, 0, 0, 0] > view[:, 0, 0, -1]
    assert torch.equal(view[flipped], x[flipped].flip(-1)) and torch.equal(view[~flipped], x[~flipped])
    assert abs(flipped.float().mean().item() - 0.3) < 4 * (0.3 * 0.7 / 1000) ** 0.5


def test_a_module_is_given_pictures_in_the_unit_range_and_full_precision():
    seen = []
    class Look(nn.Module):
        def forward(self, x):
            seen.append((x.dtype, [*x.shape], float(x.min()), float(x.max()), torch.is_autocast_enabled('cpu'),
                         torch.is_grad_enabled(), type(x)))
            return x
    made = as_views(Look(), SIDE)
    seen.clear()
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0, 255
    with torch.autocast('cpu', torch.bfloat16): views = made(x)['views']
    assert seen == [(torch.float32, [4, 3, 32, 32], 0., 1., False, False, torch.Tensor)] * 2
    assert views.shape == (2, 4, 3, SIDE, SIDE) and views.dtype == torch.float32


def test_what_works_in_place_sees_each_picture_as_it_was():
    class Halves(nn.Module):
        def forward(self, x): return x.mul_(0.5)
    images = torch.rand(3, 3, 8, 8)
    before = images.clone()
    views = ModuleViews(8, Halves(), n=3)(images)['views']
    assert torch.equal(images, before) and all(torch.equal(view, before * 0.5) for view in views)


def test_a_module_with_small_crops_of_any_number():
    local = ModuleViews(16, nn.Identity()).like('local', 6, kind=ViewKind(blur=(0.1,) * 6))
    assert (local.n, local.role, local.size) == (6, 'local', 16)


@pytest.mark.parametrize('values', [dict(blur=[1., 0.1]), dict(scale=0.5), dict(jitter=0.4), dict(sigma=(1., 2., 3.))])
def test_kinds_that_cannot_be(values): assert 'no such kind of views' in refusal(ViewKind, **values)


def test_makers_of_several_learners_stay_as_they_are():
    views = RoleViews(Views(SIDE))
    first, second = learner_with(views, cbs=[MultiView(4)]), learner_with(views)
    assert [v.main.n for v in (first.views, second.views, views)] == [4, 2, 2]


def test_with_small_crops_a_module_is_given_crops_of_their_size():
    seen = []
    class Look(nn.Module):
        def forward(self, x):
            seen.append([*x.shape])
            return x
    learn = learner_with(Look(), [crops()])
    seen.clear()
    x = torch.rand(4, 3, SIDE, SIDE)
    made = learn.views(x)
    assert {role: [*v.shape] for role, v in made.items()} == {'views': [2, 4, 3, 16, 16], 'local': [3, 4, 3, 8, 8]}
    assert seen == [[4, 3, 16, 16]] * 2 + [[4, 3, 8, 8]] * 3
    ramp = (torch.arange(SIDE) + .5).div(SIDE).expand(200, 3, SIDE, SIDE)
    for role, (low, high) in dict(views=(.4, 1.), local=(.1, .4)).items():
        width = (v := learn.views(ramp)[role][0, :, 0, 4]).diff(dim=-1)[:, 2:-2].mean(1) * v.shape[-1]
        assert width.min() > (low * 3 / 4) ** 0.5 - 0.08 and width.max() < min(1, (high * 4 / 3) ** 0.5) + 0.08
        assert width.max() - width.min() > 0.15


# --- with all that is made of views

@pytest.mark.parametrize('views, with_what', paired(PIPELINES, TOGETHER, 2))
def test_it_trains_with(views, with_what):
    cbs, kwargs = TOGETHER[with_what]
    trains(learner_with(PIPELINES[views](), cbs(), **kwargs))


@pytest.mark.parametrize('views, with_what', paired(COLOURS, WITH_CROPS, 2))
def test_it_trains_with_crops_and(views, with_what):
    views, (cbs, kwargs) = COLOURS[views], WITH_CROPS[with_what]
    learn = learner_with(views(), cbs(), **kwargs)
    assert {'views', 'local'} <= set(learn.views.makers)
    kinds = {type(maker) for maker in learn.views.makers.values()}
    assert kinds == {Views if isinstance(views(), str | ViewKind) else ModuleViews}
    trains(learn)


@pytest.mark.parametrize('views, name', paired(PIPELINES, ['simclr', 'moco_v1', 'swav', 'dino', 'nnclr'], 2))
def test_methods_train_with(views, name): trains(learner_with(PIPELINES[views](), name=name))


@pytest.mark.parametrize('views', PIPELINES.values(), ids=PIPELINES)
def test_a_recipes_views_are_the_calls(views):
    "The recipe's argument, and that of the call, which comes first"
    torch.manual_seed(3)
    made = views()
    by_recipe = learner_with(method=small('byol', 'cifar', views=made))
    state, rng = by_recipe.model.state_dict(), torch.get_rng_state()
    torch.manual_seed(3)
    by_call = learner_with(made := views())
    for learn in (by_recipe, by_call): assert type(learn.views.main) is (ModuleViews if callable(made) else Views)
    assert all(torch.equal(t, state[n]) for n, t in by_call.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    x, both = torch.rand(4, 3, SIDE, SIDE), []
    for learn in (by_recipe, by_call):
        torch.manual_seed(9)
        both.append(learn.views(x)['views'])
    assert torch.equal(*both)
    trains(by_recipe)
    last = learner_with(VIEW_KINDS['byol'], method=small('byol', 'cifar', views=made))
    assert last.views.main.kind is VIEW_KINDS['byol']


@pytest.mark.parametrize('views', [PIPELINES['torchvision'], PIPELINES['kornia'], COLOURS['torchvision'], Noise])
def test_trying_a_module_out_moves_no_random_numbers(views):
    state = torch.get_rng_state()
    made = views()
    as_views(made, SIDE)
    assert torch.equal(torch.get_rng_state(), state)
    learner_with('simclr')
    by_kind = torch.get_rng_state()
    torch.set_rng_state(state)
    learner_with(made, [SuNCEt()])
    assert torch.equal(torch.get_rng_state(), by_kind)


@pytest.mark.parametrize('kwargs', [{}, dict(accumulate=2)], ids=['whole', 'parts'])
@pytest.mark.parametrize('views', [PIPELINES['torchvision'], PIPELINES['kornia'], Noise])
def test_a_seed_repeats_the_views(views, kwargs):
    def losses():
        torch.manual_seed(8)
        learn = learner_with(views(), name='simclr', **kwargs)
        learn.fit(1, 1e-3)
        return learn.recorder.values
    assert losses() == losses()


# --- what is refused

class Normalised(nn.Module):
    def forward(self, x): return (x - .5) / .25


class Oblong(nn.Module):
    def forward(self, x): return x[..., :x.shape[-1] // 2]


class Bytes(nn.Module):
    def forward(self, x): return (x * 255).byte()


class Roles(nn.Module):
    def forward(self, x): return {'views': torch.stack([x, x])}


class Pair(nn.Module):
    def forward(self, x): return x, x


class Stack(nn.Module):
    def forward(self, x): return torch.stack([x, x])


class Fewer(nn.Module):
    def forward(self, x): return x[1:]


class Grey(nn.Module):
    def forward(self, x): return x[:, :1]


class Breaks(nn.Module):
    def forward(self, x): raise KeyError("not\nfor me")


HALF = torch.full((3,), .5)
REFUSED = dict(
    roles=(Roles, ['Roles makes dict', 'one view of every picture']), pair=(Pair, ['Pair makes tuple']),
    stack=(Stack, ['Stack makes [2, 4, 3, 16, 16]', 'one view of every picture']),
    fewer=(Fewer, ['Fewer makes [3, 3,']),
    grey=(Grey, ['Grey makes [4, 1,']), oblong=(Oblong, ['Oblong makes views of 16 x 8 pixels', 'squares']),
    normalised=(Normalised, ['Normalised makes values from -2.00 to', 'leave its normalisation out']),
    normalised_by_kornia=(lambda: nn.Sequential(crops_by_kornia(), K.Normalize(HALF, HALF / 2)),
                          ['Sequential makes values', 'leave its normalisation out']),
    normalised_by_torchvision=(lambda: v2.Compose([v2.RandomResizedCrop(SIDE), v2.Normalize([.5] * 3, [.2] * 3)]),
                               ['Compose makes values', 'leave its normalisation out']),
    bytes=(Bytes, ['Bytes makes torch.uint8', 'let it make floats']),
    breaks=(Breaks, ["Breaks can't augment a batch of pictures [4, 3, 16, 16]", 'for me']),
    unknown=(lambda: 'simclear', ['did you mean simclr']), number=(lambda: 3, ['views=3 augments nothing', 'ViewKind']),
    cls=(lambda: Noise, ['augments nothing', 'a module that augments a batch']),
    none=(lambda: [Noise()], ['augments nothing']))


@pytest.mark.parametrize('views,words', REFUSED.values(), ids=REFUSED)
def test_what_makes_no_views_is_refused_in_a_sentence(views, words):
    learn = learner_with()
    before = learn.views
    def set_views(views): learn.views = views
    def set_contrasts_views(views): learn.contrast.views = views
    texts = {refusal(as_views, views(), SIDE), refusal(learner_with, views()), refusal(set_views, views()),
             refusal(set_contrasts_views, views()), refusal(learner_with, method=small('byol', 'cifar', views=views()))}
    same = {re.sub(r'-?\d+\.\d\d', '…', text) for text in texts}  # but for values that the trial happened to draw
    assert len(same) == 1 and all(word in text for text in texts for word in words), texts
    assert learn.views is before


@pytest.mark.parametrize('views,role', [
    (lambda: crops_by_kornia(24), 'views'), (lambda: crops_by_kornia(SIDE), 'local'),
    (lambda: v2.Compose([v2.RandomCrop(12), v2.ColorJitter(.4)]), 'views'),
    (lambda: v2.Compose([v2.Resize(SIDE), v2.ColorJitter(.4)]), 'local'),
    (lambda: nn.AvgPool2d(2), 'views')], ids=['crop', 'crop of local', 'random crop', 'resize', 'pool'])
@pytest.mark.parametrize('late', [False, True])
def test_a_module_that_changes_the_size_of_crops_is_refused(views, role, late):
    if late:
        learn = learner_with(views())
        before = dict(learn.views.makers)
        text = refusal(learn.add_cb, crops())
        assert dict(learn.views.makers) == before
        trains(learn)
    else: text = refusal(learner_with, views(), [crops()])
    side = dict(views=16, local=8)[role]
    assert f"pixels of a crop of {side} for the role '{role}'" in text and 'leave crops and resizing out of it' in text


@pytest.mark.parametrize('views', [*COLOURS, 'torchvision'])
def test_sampled_patches_of_a_module_are_refused(views):
    "Nobody knows how large a part of a picture its crops are"
    made = COLOURS[views]()
    if isinstance(made, str | ViewKind): return trains(learner_with(made, [PatchVariants(patches='sample')]))
    text = refusal(learner_with, made, [PatchVariants(patches='sample')])
    assert type(made).__name__ in text and "take patches='divide'" in text
    trains(learner_with(made, [PatchVariants(patches='divide')]))


# --- one door

@pytest.mark.parametrize('door', ['learner', 'callback'])
@pytest.mark.parametrize(
    'views', [*PIPELINES.values(), lambda: Views(20, 'byol'), lambda: RoleViews(Views(20, 'byol'))],
    ids=[*PIPELINES, 'maker', 'makers'])
def test_a_learners_views_may_be_set(views, door):
    learn = learner_with(name='simclr')
    made = views()
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='You are shadowing')
        if door == 'learner': learn.views = made
        else: learn.contrast.views = made
    assert learn.views is learn.contrast.views is learn.plan.views
    main = learn.views.main
    if isinstance(main, ModuleViews): assert main.augment is made and main.size == SIDE
    elif isinstance(made, str | ViewKind): assert main.kind is made and main.size == SIDE
    else: assert main is (made.main if isinstance(made, RoleViews) else made)
    calls = []
    main.register_forward_hook(lambda module, x, out: calls.append(1))
    trains(learn)
    assert len(calls) == 2


@pytest.mark.parametrize('part,role', [(crops, 'local'), (lambda: PatchVariants(patches='sample'), 'patches')],
                         ids=['crops', 'sampled'])
@pytest.mark.parametrize('views', PIPELINES.values(), ids=PIPELINES)
def test_views_that_others_are_made_after_are_not_set(views, part, role):
    learn = learner_with(cbs=[part := part()])
    before = dict(learn.views.makers)
    def set_views(): learn.views = views()
    text = refusal(set_views)
    assert role in text and 'contrastive_learner(views=…)' in text
    assert dict(learn.views.makers) == before
    learn.remove_cb(part)
    learn.views = views()
    trains(learn)


def test_views_of_a_side_that_the_encoder_cannot_take():
    "Patches of 16 pixels: given to a learner, or to one that there is"
    for views, side in ((Views(56), 56), (RoleViews(Views(64), Views(40, role='local')), 40)):
        said([f'views can\'t be {side} pixels wide', VIT], learner_of, VIT, [], 64, views=views)
    learn = learner_of(VIT, [], 64, views=Views(48))
    learn.views = Views(56)
    for _ in range(2): said(['views can\'t be 56 pixels wide', VIT], learn.fit, 1, 1e-3)
    learn.views = Views(32)
    trains(learn)


class Alone(ViewMaker):
    "Views of one role, by somebody who says nothing of others"
    def forward(self, images, size=None): return {self.role: (images.float() / 255).expand(2, *images.shape)}


@pytest.mark.parametrize('part', [crops, SuNCEt, lambda: PatchVariants(patches='sample')])
def test_a_maker_of_one_role_trains_alone(part):
    learn = learner_with(Alone(SIDE, 2, 'views'))
    before = dict(learn.views.makers)
    assert 'Alone' in refusal(learn.add_cb, part())
    assert 'Alone' in refusal(learner_with, Alone(SIDE, 2, 'views'), [part()])
    assert dict(learn.views.makers) == before
    trains(learn)


class Negative(Views):
    "Views with a forward of their own, whose class was not written for other roles"
    def forward(self, images, size=None, aspects=None):
        return {role: 1 - views for role, views in super().forward(images, size, aspects).items()}


class Negatives(Negative):
    def like(self, role, n, size=None, scale=None, kind=None):
        maker = super().like(role, n, size, scale, kind)
        return Negatives(maker.size, maker.strength, n, role)


class Twice(ModuleViews):
    def forward(self, images, size=None, aspects=None): return super().forward(1 - images, size, aspects)


OTHERS = dict(crops=crops, labelled=SuNCEt, sampled=lambda: PatchVariants(patches='sample'),
              several=lambda: MultiView(4))

@pytest.mark.parametrize('part', [*OTHERS.values(), lambda: ProgressiveSize(strength=0.5)], ids=[*OTHERS, 'growing'])
def test_views_with_a_forward_of_their_own_are_not_replaced_by_plain_ones(part):
    "Where others of their kind are needed they are refused, unless they say how to make these"
    learn = learner_with(Negative(SIDE))
    before = dict(learn.views.makers)
    said(['Negative', 'like(role, n, …)'], learn.add_cb, part())
    said(['Negative', 'like(role, n, …)'], learner_with, Negative(SIDE), [part()])
    assert dict(learn.views.makers) == before
    trains(learn)
    learn = learner_with(Negatives(SIDE), [part()])
    assert {type(maker) for maker in learn.views.softened(0.5).makers.values()} == {Negatives}
    trains(learn)


@pytest.mark.parametrize('part', OTHERS.values(), ids=OTHERS)
def test_nor_are_those_by_a_module(part):
    said(['Twice', 'like(role, n, …)'], learner_with, Twice(SIDE, nn.Identity(), scale=(0.4, 1.)), [part()])


def test_makers_that_work_together_in_a_way_of_their_own_grow_if_they_say_how():
    class Darker(RoleViews):
        def forward(self, *args): return {role: views / 2 for role, views in super().forward(*args).items()}
    class Growing(Darker):
        def softened(self, share): return Growing(*(maker.softened(share) for maker in self.makers.values()))
    said(['Darker', 'softened(share)'], learner_with, Darker(Views(SIDE)), [ProgressiveSize(strength=0.5)])
    for makers, strength in ((Darker, None), (Growing, 0.5)):
        trains(learner_with(makers(Views(SIDE)), [ProgressiveSize(strength=strength)]))


def test_a_second_contrast_is_refused():
    learn = learner_with()
    text = refusal(learn.add_cb, Contrast(Noise()))
    assert text == 'this learner has Contrast already, which is the only one for the views: remove that first.'
    text = refusal(learner_with, cbs=[Contrast(Noise())])
    assert 'Contrast already, which is the only one for the views' in text


def test_views_drawn_by_a_learner(tmp_path):
    figure = learner_with(PIPELINES['kornia']()).show_views(3, path=tmp_path/'views.png')
    assert len(figure.axes) == 9 and (tmp_path/'views.png').stat().st_size > 1000


def test_what_a_module_holds_is_where_the_pictures_are():
    "Before the first fit, too"
    class Held(Noise):
        places = []
        def _apply(self, move, recurse=True):
            self.places.append(move(torch.zeros(1)).device)
            return super()._apply(move, recurse)
    learn = learner_with(Held())
    learn.show_views(1)
    assert Held.places == [torch.device(learn.dls.device)]


class Times(nn.Module):
    "The pictures times a number, in a type"
    def __init__(self, dtype=torch.float32, by=1.):
        super().__init__()
        self.dtype, self.by = dtype, by
    def forward(self, x): return (x * torch.rand(len(x), 1, 1, 1) * self.by).to(self.dtype)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_other_floats_become_the_steps(dtype):
    learn = learner_with(Times(dtype))
    assert learn.views(torch.rand(2, 3, SIDE, SIDE))['views'].dtype == torch.float32
    trains(learn)


@pytest.mark.parametrize('views,words', [
    (Times(torch.uint8), 'makes torch.uint8 of pictures'), (Times(by=math.nan), 'makes NaN or infinite values'),
    (RoleViews(), 'makes no views')], ids=str)
def test_what_is_no_view(views, words): assert words in refusal(learner_with, views)


def test_some_views_are_the_ones_that_keys_are_made_of():
    learn = learner_with(Views(SIDE, 'simclr', 2, 'other'))
    with pytest.raises(InputError, match="have the role other, and none is called 'views'"): learn.fit(1, 1e-3)


def test_a_normalisation_is_a_module():
    learn = learner_with()
    def no_normalisation(): learn.normalize = None
    assert 'normalize=None is no module' in refusal(no_normalisation)
