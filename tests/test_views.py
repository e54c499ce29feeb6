"""Views against torchvision's transforms of the same names, operation by operation.

The draws differ, so distributions are compared: continuous ones by the two-sample Kolmogorov-Smirnov test, shares by
four standard errors. All seeds are fixed."""
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from scipy.stats import ks_2samp, kstest

from fastcontrast import views as views_module
from fastcontrast.core import InputError
from fastcontrast.views import (VIEW_KINDS, ModuleViews, Normalize, RoleViews, ViewKind, ViewMaker, Views, draw_views,
                                plain_view, random_boxes, two_views)

DEVICES = ['cpu'] + ['cuda'] * torch.cuda.is_available()
N = 1500
SEED = 7


def only(**strength) -> ViewKind:
    "A kind that does nothing but what is named"
    none = dict(scale=(1., 1.), ratio=(1., 1.), flip=0., jitter=(0., 0., 0., 0.), jitter_p=0., grey=0., blur=0.)
    return ViewKind(**none | strength)

def drawn(picture: torch.Tensor, size: int, **strength) -> torch.Tensor:
    "[N, C, size, size]: views of one picture"
    return two_views(size, only(**strength))(picture.expand(N // 2, *picture.shape))['views'].flatten(0, 1)

def same(ours, theirs):
    # no ties lost to rounding
    ours, theirs = (torch.as_tensor(v).double().round(decimals=5).numpy() for v in (ours, theirs))
    p = ks_2samp(ours, theirs).pvalue
    assert p > 1e-3, f"distributions differ: p = {p:.1g}, means {ours.mean()} and {theirs.mean()}"

def share(hits: torch.Tensor, p: float):
    "`hits` are as many as chances of `p` give, within four standard errors"
    assert abs(hits.float().mean().item() - p) <= 4 * (p * (1 - p) / len(hits)) ** 0.5

def flat(*rgb: float) -> torch.Tensor: return torch.tensor(rgb).view(-1, 1, 1).expand(-1, 4, 4).contiguous()

# --- geometry

@pytest.mark.parametrize('height,width,scale', [(64, 64, (.08, 1.)), (48, 80, (.2, 1.)), (40, 120, (.5, 1.))])
def test_crop_boxes_are_torchvisions(height, width, scale):
    ramp = torch.stack([((torch.arange(width) + .5) / width).expand(height, -1),
                        ((torch.arange(height) + .5) / height)[:, None].expand(-1, width)])
    x = drawn(ramp, 16, scale=scale, ratio=(3 / 4, 4 / 3))[:, :, 4:12, 4:12].double()  # the middle is no border's
    w, h = ((x[:, c].diff(dim=d).mean((1, 2)) * 16 * side) for c, d, side in ((0, 2, width), (1, 1, height)))
    left, top = x[:, 0].mean((1, 2)) * width - w / 2, x[:, 1].mean((1, 2)) * height - h / 2
    for side in (w, h, left, top): torch.testing.assert_close(side, side.round(), atol=2e-2, rtol=0)
    boxes = torch.tensor([T.RandomResizedCrop.get_params(ramp, scale, (3 / 4, 4 / 3)) for _ in range(N)])
    for ours, theirs in zip((top, left, h, w), boxes.T, strict=True): same(ours.round(), theirs)
    same((w.round() * h.round()), boxes[:, 2] * boxes[:, 3])
    same((w.round() / h.round()), boxes[:, 3] / boxes[:, 2])

def test_every_place_of_a_crop_is_equally_likely():
    left, top, w, h = random_boxes(3000, 6, 6, (16 / 36, 16 / 36), (1., 1.)).unbind(1)
    assert (w == 4).all() and (h == 4).all()
    for start in (left, top):
        for place in (0, 1, 2): share(start == place, 1 / 3)

@pytest.mark.parametrize('side', [32, 45])
def test_whole_crop_is_the_picture_or_its_mirror(side):
    x = torch.rand(8, 3, side, side)
    for flip, want in ((0., x), (1., x.flip(-1))):
        for view in two_views(side, only(flip=flip))(x)['views']:
            torch.testing.assert_close(view, want, atol=2e-5, rtol=0)

def test_flip_share():
    x = torch.rand(3, 8, 8)
    views = drawn(x, 8, flip=.5)
    flipped = (views - x.flip(-1)).abs().amax((1, 2, 3)) < 1e-4
    assert ((views - x).abs().amax((1, 2, 3)) < 1e-4).eq(~flipped).all()
    share(flipped, .5)

def test_rotation_is_uniform_in_its_range():
    y, x = torch.meshgrid(torch.arange(32.), torch.arange(32.), indexing='ij')
    v = drawn(torch.stack([x, y]) / 32, 32, rotate=15.)[:, :, 12:20, 12:20]
    angle = torch.atan2(v[:, 1].diff(dim=2).mean((1, 2)), v[:, 0].diff(dim=2).mean((1, 2))).rad2deg()
    assert kstest(angle.numpy(), 'uniform', args=(-15, 30)).pvalue > 1e-3

# --- pictures that are kept whole

def squashed(x, side): return TF.resize(x, [side, side], antialias=True)

def smooth(height, width, n=1):
    "Waves, a few pixels long"
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing='ij')
    return torch.stack([(torch.stack([5 * x + k, 4 * y - k, 3 * x + 3 * y]).sin() + 1) / 2 for k in range(n)])

@pytest.mark.parametrize('height,width', [(48, 75), (75, 48), (60, 60), (30, 120)])
def test_crops_of_whole_pictures_are_torchvisions_of_the_true_ones(height, width):
    side, scale = round((height * width) ** .5), (.08, 1.)
    ramp = torch.stack([((torch.arange(side) + .5) / side).expand(side, -1),
                        ((torch.arange(side) + .5) / side)[:, None].expand(-1, side)])
    batch, aspects = ramp.expand(N // 2, -1, -1, -1), torch.full((N // 2,), width / height)
    x = two_views(16, only(scale=scale, ratio=(3 / 4, 4 / 3)))(batch, None, aspects)['views'].flatten(0, 1)
    x = x[:, :, 4:12, 4:12].double()
    w, h = ((x[:, c].diff(dim=d).mean((1, 2)) * 16 * side) for c, d, side in ((0, 2, width), (1, 1, height)))
    left, top = x[:, 0].mean((1, 2)) * width - w / 2, x[:, 1].mean((1, 2)) * height - h / 2
    for edge in (w, h, left, top): torch.testing.assert_close(edge, edge.round(), atol=3e-2, rtol=0)
    true = torch.empty(3, height, width)
    boxes = torch.tensor([T.RandomResizedCrop.get_params(true, scale, (3 / 4, 4 / 3)) for _ in range(N)])
    for ours, theirs in zip((top, left, h, w), boxes.T, strict=True): same(ours.round(), theirs)
    same((w.round() / h.round()), boxes[:, 3] / boxes[:, 2])

def test_boxes_of_pictures_of_many_shapes():
    shapes = [(20, 200), (60, 80), (333, 100), (50, 50)]
    height, width = torch.tensor(shapes, dtype=torch.float32).repeat(N, 1).unbind(1)
    boxes = random_boxes(len(height), height, width, (.3, 1.), (3 / 4, 4 / 3)).view(N, len(shapes), 4)
    for i, (h, w) in enumerate(shapes):
        theirs = torch.tensor([T.RandomResizedCrop.get_params(torch.empty(3, h, w), (.3, 1.), (3 / 4, 4 / 3))
                               for _ in range(N)])
        for ours, place in zip(boxes[:, i].unbind(1), (1, 0, 3, 2), strict=True): same(ours, theirs[:, place])
        torch.manual_seed(3)
        one = random_boxes(N, h, w, (.3, 1.), (3 / 4, 4 / 3))
        torch.manual_seed(3)
        each = random_boxes(N, torch.full((N,), float(h)), torch.full((N,), float(w)), (.3, 1.), (3 / 4, 4 / 3))
        assert torch.equal(one, each)

@pytest.mark.parametrize('height,width', [(96, 150), (150, 96)])
def test_views_of_a_squashed_picture_are_those_of_the_picture(height, width):
    "The same draws: crops, flips, rotations, colours"
    kind = replace(VIEW_KINDS['simclr'], rotate=30., solarise=.2, blur=0.)
    true = smooth(height, width, 5)
    maker, aspects, results = Views(64, kind, n=3), torch.full((5,), width / height), []
    for pictures in ((true,), (squashed(true, 120), None, aspects)):
        torch.manual_seed(5)
        results.append(maker(*pictures)['views'])
    assert (results[0] - results[1]).abs().mean() < .005
    assert ((results[0] - results[1]).abs() > .05).float().mean() < .01  # what is near 0.5 is solarised or not

def test_squares_with_an_aspect_are_squares():
    x, maker = torch.rand(6, 3, 40, 40), Views(24, 'byol')
    results = []
    for pictures in ((x,), (x, None, torch.ones(6))):
        torch.manual_seed(5)
        results.append(maker(*pictures)['views'])
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)
    for size in (24, 40, 60): torch.testing.assert_close(plain_view(x, size, torch.ones(6)), plain_view(x, size))

def test_each_picture_of_a_batch_by_its_own_shape():
    "On the CPU in blocks, too"
    x, aspects = torch.rand(40, 3, 120, 120), torch.rand(40) * 3 + .3
    kind = only(scale=(1., 1.), ratio=(.3, 3.3))  # the largest crop of that shape: all of it, if it is as wide
    views = Views(120, kind)(x, None, aspects)['views'][0]
    plain = plain_view(x, 120, aspects)
    assert views.shape == plain.shape
    for i in range(40): torch.testing.assert_close(plain_view(x[i:i + 1], 120, aspects[i:i + 1])[0], plain[i])

@pytest.mark.parametrize('height,width', [(48, 76), (76, 48)])
def test_a_plain_view_of_a_whole_picture_is_its_centre_square(height, width):
    true, aspects = smooth(height, width, 3), torch.full((3,), width / height)
    def square(size): return TF.resize(TF.center_crop(true, 48), [size, size], antialias=True)
    for size in (16, 48, 70):
        got = plain_view(squashed(true, 60), size, aspects)
        assert (got - square(size))[..., 1:-1, 1:-1].abs().max() < .02
    got = plain_view((squashed(true, 60) * 255).round().to(torch.uint8), 32, aspects)
    assert got.dtype == torch.float32 and (got - square(32))[..., 1:-1, 1:-1].abs().max() < .03

def test_rotation_of_a_whole_picture_is_one():
    "A right angle stays one, where the picture was squashed"
    y, x = torch.meshgrid(torch.arange(40.), torch.arange(40.), indexing='ij')
    ramp = torch.stack([x * 64, y * 25]) / (40 * 64)  # of a picture of 64 x 25, in its own pixels
    kind, n = only(rotate=15., ratio=(2.56, 2.56)), N // 2
    v = two_views(32, kind)(ramp.expand(n, -1, -1, -1), None, torch.full((n,), 2.56))['views'].flatten(0, 1)
    v = v[:, :, 12:20, 12:20]
    along, down = v.diff(dim=3).mean((2, 3)), v.diff(dim=2).mean((2, 3))  # [n, 2]: where a step to the right goes
    angle = torch.atan2(along[:, 1], along[:, 0]).rad2deg()
    assert kstest(angle.numpy(), 'uniform', args=(-15, 30)).pvalue > 1e-3
    assert ((along * down).sum(1) / along.norm(dim=1) / down.norm(dim=1)).abs().max() < 1e-3

class Given(ViewMaker):
    "Gives what it is given"
    def __init__(self): super().__init__(24, 1, 'views')
    def forward(self, images, size=None): return {'views': images[None]}

def test_makers_that_know_of_no_aspects_get_centre_squares():
    true = smooth(48, 76, 2)
    x, aspects = squashed(true, 60), torch.full((2,), 76 / 48)
    for views in (RoleViews(Given()), RoleViews(ModuleViews(24, torch.nn.Identity(), n=1))):
        got = views(x, None, aspects)['views'][0]
        assert (plain_view(got, 24) - plain_view(TF.center_crop(true, 48), 24)).abs().mean() < .01
        assert torch.equal(views(x)['views'][0], x if got.shape[-1] == 60 else plain_view(x, 24))
    crops = ModuleViews(24, torch.nn.Identity(), n=1, scale=(.1, .2))
    assert crops(x, None, aspects)['views'].shape == (1, 2, 3, 24, 24)

# --- crops much larger than the view

def reference(x, boxes, size):
    return torch.stack([TF.resized_crop(p, int(top), int(left), int(h), int(w), [size, size], antialias=True)
                        for p, (left, top, w, h) in zip(x, boxes)])

def cut(x, boxes, size, sides=None):
    still = torch.zeros(len(boxes))
    return views_module._warped(x, boxes, still > 0, still, sides or x.shape[-2:], size)

@pytest.mark.parametrize('side,size', [(400, 96), (401, 96), (300, 32), (257, 100)])
def test_large_crops_are_antialiased(side, size):
    "Noise, which is where aliasing is worst: without, the distance is several times as large"
    x = torch.rand(60, 3, side, side)
    boxes = random_boxes(60, side, side, (.2, 1.), (3 / 4, 4 / 3))
    ours, theirs = cut(x, boxes, size), reference(x, boxes, size)
    grid = views_module._sampling_grid(boxes, torch.zeros(60) > 0, torch.zeros(60), side, side, size)
    alone = torch.nn.functional.grid_sample(x, grid, padding_mode='border', align_corners=False)
    large = (boxes[:, 2:].amin(1) > 2 * size)
    assert large.sum() > 5
    inner = (..., slice(2, -2), slice(2, -2))
    away, before = ((v[inner] - theirs[inner]).abs().mean((1, 2, 3)) for v in (ours, alone))
    assert away[large].mean() < before[large].mean() / 2
    torch.testing.assert_close(ours[~large], alone[~large], atol=1e-4, rtol=0)  # and the others are as they were

def test_copies_are_read_where_they_are():
    "A ramp is the same in all of them, up to its edges"
    ramp = torch.stack([((torch.arange(203) + .5) / 203).expand(155, -1),
                        ((torch.arange(155) + .5) / 155)[:, None].expand(-1, 203)])[None].expand(50, -1, -1, -1)
    boxes = random_boxes(50, 155, 203, (.05, 1.), (3 / 4, 4 / 3))
    got = cut(ramp, boxes, 16)
    for ours, (left, top, w, h) in zip(got, boxes, strict=True):
        u = (torch.arange(16) + .5) / 16
        assert (ours[0] - (left + w * u) / 203).abs().max() < 4 / 203
        assert (ours[1] - ((top + h * u) / 155)[:, None]).abs().max() < 4 / 155

def test_nothing_changes_where_no_crop_is_that_large(monkeypatch):
    "To the bit: pictures up to twice the view, and small crops of larger ones"
    monkeypatch.setattr(views_module, '_with_halves', None)
    for side, size, scale in ((64, 32, (.08, 1.)), (128, 32, (.05, .24)), (48, 64, (.2, 1.))):
        Views(size, replace(VIEW_KINDS['simclr'], scale=scale))(torch.rand(4, 3, side, side))
    with pytest.raises(TypeError): Views(32)(torch.rand(4, 3, 66, 66))

def test_views_of_large_pictures_repeat_and_may_be_of_any_type():
    for x in (torch.randint(0, 256, (9, 3, 150, 210), dtype=torch.uint8), torch.rand(9, 1, 150, 210).double()):
        results = []
        for _ in range(2):
            torch.manual_seed(1)
            results.append(Views(32, 'byol')(x)['views'])
        assert torch.equal(*results) and 0 <= results[0].min() and results[0].max() <= 1

# --- colour

def chroma(x): return x.amax(1) - x.amin(1)

@pytest.mark.parametrize('step,strength,picture,measure', [
    ('brightness', .8, flat(.3, .4, .5), lambda x: x[:, 1, 0, 0]),
    ('contrast', .8, torch.cat([flat(.4, .4, .4), flat(.55, .55, .55)], 2), lambda x: x[:, 0, 0, -1] - x[:, 0, 0, 0]),
    ('saturation', .8, flat(.6, .5, .4), lambda x: chroma(x)[:, 0, 0]),
    ('hue', .2, flat(.8, .5, .2), lambda x: ((x[:, 0] - x[:, 1]) / chroma(x))[:, 0, 0]),
])
def test_jitter_step_is_torchvisions(step, strength, picture, measure):
    names = ['brightness', 'contrast', 'saturation', 'hue']
    square = picture[:, :4, :4] if step != 'contrast' else picture[:, :, :].repeat(1, 2, 1)
    ours = drawn(square, square.shape[-1], jitter=tuple(strength * (n == step) for n in names), jitter_p=1.)
    theirs = T.ColorJitter(**{step: strength})
    same(measure(ours), measure(torch.stack([theirs(square) for _ in range(N)])))

@pytest.mark.parametrize('step,factor', [('brightness', 1.6), ('contrast', .4), ('contrast', 1.7), ('saturation', .3),
                                         ('saturation', 1.8), ('hue', -.2), ('hue', .13)])
def test_jitter_step_is_exactly_torchvisions_for_one_factor(step, factor):
    x, names = torch.rand(4, 3, 16, 16), ['brightness', 'contrast', 'saturation', 'hue']
    views = two_views(16, only(jitter=tuple(.5 * (n == step) for n in names), jitter_p=1.))
    views.factors = lambda n, device: [torch.full((n, 1, 1, 1), factor)] * 4
    if step == 'contrast': want = torch.stack([TF.adjust_contrast(picture, factor) for picture in x])
    else: want = getattr(TF, f'adjust_{step}')(x, factor)
    torch.testing.assert_close(views(x)['views'], want.expand(2, -1, -1, -1, -1), atol=3e-4, rtol=0)

def test_jitter_share():
    changed = (drawn(flat(.3, .4, .5), 4, jitter=(.8, 0., 0., 0.), jitter_p=.8)
               - flat(.3, .4, .5)).abs().amax((1, 2, 3)) > 1e-6
    share(changed, .8)

def test_jitter_order_varies():
    # (x * brightness, cut) then hue, against hue then (x * brightness, cut): for a colour so bright the results differ,
    # and with the same factors in both only the order can make them differ
    views, seen = two_views(4, only(jitter=(.8, .8, .8, .2), jitter_p=1.)), set()
    views.factors = lambda n, device: [torch.full((n, 1, 1, 1), f) for f in (1.6, .5, 1.7, .15)]
    for _ in range(100):
        seen.add(tuple(views(flat(.9, .5, .3)[None])['views'][0, 0, :, 0, 0].mul(1e4).round().tolist()))
    assert len(seen) > 8

def test_jitter_order_is_each_views_own():
    views = two_views(4, only(jitter=(.8, .8, .8, .2), jitter_p=1.))
    views.factors = lambda n, device: [torch.full((n, 1, 1, 1), f) for f in (1.6, .5, 1.7, .15)]
    pairs = torch.cat([views(flat(.9, .5, .3).expand(6, -1, -1, -1))['views'][..., 0, 0] for _ in range(40)], 1)
    assert (pairs[0] - pairs[1]).abs().amax(1).gt(1e-3).float().mean() > .6  # of 24 orders some come to the same

def test_grey_share_and_value():
    x = torch.rand(3, 4, 4)
    views = drawn(x, 4, grey=.2)
    grey = (views[:, 0] == views[:, 1]).all(-1).all(-1)
    share(grey, .2)
    want = TF.rgb_to_grayscale(x, 3)
    torch.testing.assert_close(views[grey], want.expand(grey.sum(), -1, -1, -1), atol=2e-4, rtol=0)
    torch.testing.assert_close(views[~grey], x.expand((~grey).sum(), -1, -1, -1), atol=1e-5, rtol=0)

@pytest.mark.parametrize('size,taps', [(32, 3), (96, 9), (128, 13), (224, 23)])
def test_blur_kernel_is_a_tenth_of_the_view(size, taps):
    impulse = torch.zeros(1, 1, size, size)
    impulse[..., size // 2, size // 2] = 1
    view = two_views(size, only(blur=1., sigma=(4., 4.)))(impulse)['views'][0, 0, 0]
    assert (view.amax(0) > 1e-6).sum() == taps and (view.amax(1) > 1e-6).sum() == taps
    torch.testing.assert_close(view, TF.gaussian_blur(impulse[0], taps, 4.)[0], atol=1e-5, rtol=0)

def test_blur_is_torchvisions():
    impulse = torch.zeros(1, 48, 48)
    impulse[:, 24, 24] = 1
    theirs = T.RandomApply([T.GaussianBlur(5, (.1, 2.))], p=.5)
    same(drawn(impulse, 48, blur=.5)[:, 0, 24, 24].round(decimals=4),
         torch.stack([theirs(impulse)[0, 24, 24] for _ in range(N)]).round(decimals=4))

def test_solarise_share_and_value():
    x = torch.rand(3, 4, 4)
    views = drawn(x, 4, solarise=.2)
    done = (views - TF.solarize(x, .5)).abs().amax((1, 2, 3)) < 1e-4
    share(done, .2)
    assert ((views - x).abs().amax((1, 2, 3)) < 1e-4).eq(~done).all()

def test_simclr_as_a_whole_is_torchvisions():
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), 20, mode='bicubic').clamp(0, 1)
    theirs = T.Compose([
        T.RandomResizedCrop(20, (.08, 1.)), T.RandomHorizontalFlip(),
        T.RandomApply([T.ColorJitter(.8, .8, .8, .2)], p=.8),
        T.RandomGrayscale(.2), T.RandomApply([T.GaussianBlur(3, (.1, 2.))], p=.5)])
    views = two_views(20, 'simclr')  # one picture a call, one view of it: each has an order of its own
    a = torch.cat([views(x)['views'][0] for _ in range(N)])
    b = torch.cat([theirs(x) for _ in range(N)])
    inner = a[..., 3:-3, 3:-3], b[..., 3:-3, 3:-3]  # away from the crop's border
    for measure in (lambda v: v.mean((1, 2, 3)), lambda v: v.std((1, 2, 3)), lambda v: chroma(v).mean((1, 2)),
                    lambda v: v[:, 0].mean((1, 2)), lambda v: v.diff(dim=-1).square().mean((1, 2, 3)).sqrt()):
        same(*(measure(v) for v in inner))

# --- the pair

def test_byol_pair_is_asymmetric():
    assert (VIEW_KINDS['byol'].blur, VIEW_KINDS['byol'].solarise) == ((1., .1), (0., .2))
    x = torch.rand(3, 32, 32)
    a, b = two_views(32, only(blur=(1., .1), sigma=(1., 2.), solarise=(0., .2)))(x.expand(N, -1, -1, -1))['views']
    def close(v, want): return (v - want).abs().amax((1, 2, 3)) < 1e-4
    share(close(b, x), .9 * .8)
    share(close(b, TF.solarize(x, .5)), .9 * .2)
    assert not close(a, x).any() and (a.mean((1, 2, 3)) - x.mean()).abs().max() < .02  # blurred, and not solarised
    assert a.diff(dim=-1).abs().mean((1, 2, 3)).max() < .7 * x.diff(dim=-1).abs().mean()

@pytest.mark.parametrize('kind', VIEW_KINDS)
def test_every_kind_every_sample_its_own(kind):
    x = torch.rand(3, 24, 24).expand(40, -1, -1, -1)
    views = two_views(32, kind)(x)['views']
    assert views.shape == (2, 40, 3, 32, 32) and views.is_contiguous()
    assert 0 <= views.min() and views.max() <= 1 and views.isfinite().all()
    assert views.flatten(0, 1).flatten(1).unique(dim=0).shape[0] == 80

def test_views_stay_with_their_pictures():
    # more than one block of the CPU's, and each view shows its own picture
    x = torch.linspace(0, 1, 3000)[:, None, None, None].expand(-1, 3, 16, 16)
    views = Views(16, only(scale=(.1, 1.), ratio=(.5, 2.), flip=.5), n=3)(x)['views']
    torch.testing.assert_close(views, x.expand(3, -1, -1, -1, -1), atol=1e-6, rtol=0)

def test_cifar_kinds_differ_by_blur_alone():
    for name in ('simclr', 'moco_v2', 'simsiam', 'byol'):
        assert VIEW_KINDS[f'{name}_cifar'] == replace(VIEW_KINDS[name], blur=0.)

# --- the contract

@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_dtype_device_channels_and_input_kept(device, dtype, channels):
    x = (torch.rand(5, channels, 20, 30) * (255 if dtype == torch.uint8 else 1)).to(device, dtype)
    before = x.clone()
    for out in (two_views(24, 'byol')(x)['views'], plain_view(x, 24), plain_view(x, 20)):
        assert out.dtype == (torch.float32 if dtype == torch.uint8 else dtype) and out.device == x.device
        assert out.shape[-4:] == (5, channels, *out.shape[-1:] * 2) and 0 <= out.min() and out.max() <= 1
    assert torch.equal(x, before)

def test_bytes_and_floats_give_the_same_views():
    x = torch.randint(0, 256, (6, 3, 30, 30), dtype=torch.uint8)
    torch.manual_seed(1)
    a = two_views(32)(x)['views']
    torch.manual_seed(1)
    b = two_views(32)(x / 255)['views']
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)

@pytest.mark.parametrize('device', DEVICES)
def test_repeatable_by_seed_only(device):
    x, views = torch.rand(16, 3, 32, 32, device=device), two_views(32, 'byol')
    torch.manual_seed(5)
    a = views(x)['views']
    b = views(x)['views']
    torch.manual_seed(5)
    c = two_views(32, 'byol')(x)['views']
    assert torch.equal(a, c) and not torch.equal(a, b) and not torch.equal(a[0], a[1])

def test_no_gradient_and_no_mixed_precision():
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    torch.manual_seed(3)
    plain = two_views(32)(x)['views']
    with torch.autocast('cpu', torch.bfloat16):
        torch.manual_seed(3)
        mixed = two_views(32)(x)['views']
    assert not plain.requires_grad and torch.equal(plain, mixed)

def test_tensor_subclasses_come_out_plain():
    from fastai.vision.core import TensorImage
    assert type(two_views(16)(TensorImage(torch.rand(2, 3, 16, 16)))['views']) is torch.Tensor

def test_empty_batch(): assert two_views(16)(torch.rand(0, 3, 16, 16))['views'].shape == (2, 0, 3, 16, 16)

@pytest.mark.parametrize('bad,word', [
    (lambda: two_views(32, 'simclear'), 'did you mean simclr'), (lambda: two_views(1), 'size'),
    (lambda: two_views(32.), 'size'),
    (lambda: two_views(True), 'size'), (lambda: plain_view(torch.rand(1, 3, 4, 4), 0), 'size'),
    (lambda: Views(32, n=0), 'n=0'),
    (lambda: Views(32, 'byol', n=3), 'probabilities'), (lambda: ViewKind(scale=(1., .2)), 'upwards'),
    (lambda: ViewKind(jitter=(.4, .4, .4, .6)), '0.5'), (lambda: two_views(32)(torch.rand(3, 8, 8)), r'\[B, C, H, W\]'),
    (lambda: two_views(32)(torch.ones(1, 3, 8, 8, dtype=torch.long)), 'int64'),
    (lambda: Normalize((0.,), (1., 1.)), 'std'),
    (lambda: Normalize((0.,), (0.,)), 'std'), (lambda: Normalize()(torch.rand(1, 1, 8, 8)), 'normalise')])
def test_bad_input_is_one_sentence(bad, word):
    with pytest.raises(InputError, match=word) as e: bad()
    assert '\n' not in str(e.value)

# --- plain_view, Normalize, draw_views

@pytest.mark.parametrize('shape', [(50, 81), (81, 50), (24, 33), (24, 24), (10, 17)])
def test_plain_view_is_resize_and_centre_crop(shape):
    x = torch.rand(2, 3, *shape)
    torch.testing.assert_close(plain_view(x, 24), TF.center_crop(TF.resize(x, 24, antialias=True), 24), atol=1e-5,
                               rtol=0)

@pytest.mark.parametrize('dtype,atol', [(torch.float32, 1e-5), (torch.float64, 1e-5), (torch.bfloat16, 5e-2)])
def test_normalize(dtype, atol):
    x = torch.rand(2, 5, 3, 8, 10).to(dtype)
    before = x.clone()
    mean, std = [.5, .4, .3], [.2, .3, .4]
    out = Normalize(mean, std)(x)
    assert out.dtype == dtype and torch.equal(x, before) and not Normalize().state_dict()
    flat = out.flatten(0, 1)
    assert flat.data_ptr() == out.data_ptr() and flat.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(flat.double(), TF.normalize(before.flatten(0, 1).double(), mean, std), atol=atol, rtol=0)
    torch.testing.assert_close(Normalize(mean, std)(x[0, 0]), out[0, 0])

def test_draw_views(tmp_path):
    x = torch.randint(0, 256, (5, 3, 20, 24), dtype=torch.uint8)
    roles = two_views(16)(x) | Views(8, n=3, role='local')(x) | {'y': torch.zeros(5)}
    fig = draw_views(x, roles, tmp_path / 'views.png', n=3)
    assert [a.get_title() for a in fig.axes[:6]] == ['original', 'view 1', 'view 2', 'local 1', 'local 2', 'local 3']
    assert len(fig.axes) == 3 * 6 and not any(a.axison for a in fig.axes)
    assert (tmp_path / 'views.png').read_bytes()[:4] == b'\x89PNG'
    np.testing.assert_allclose(fig.axes[7].images[0].get_array(), roles['views'][0, 1].permute(1, 2, 0).numpy())
    grey = x[:, :1]
    assert draw_views(grey, two_views(16)(grey)).axes[0].images[0].get_array().shape == (20, 24)
