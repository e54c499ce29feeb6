"Pictures that are changed: what each change does, for how many channels, and that all encoders see the same"
import numpy as np
import pytest
import torch
from helpers.channels import bands
from helpers.refusals import said
from scipy.ndimage import gaussian_filter

from fastcontrast.evaluate.knn import pixels
from fastcontrast.evaluate.robust import ANGLE, BLUR, CHANGES, NOISE, changed_features, changes_of, view_features
from fastcontrast.views import ViewKind, plain_view

SIDE = 32


def embed(loader): return pixels(loader, SIDE)
def noise(n=3, side=64): return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_blur_is_scipys():
    x = noise(side=100)
    expected = gaussian_filter(x.numpy(), (0, 0, BLUR * 100, BLUR * 100), mode='mirror', truncate=3)
    np.testing.assert_allclose(CHANGES['blur'].apply(x), expected, atol=1e-5)
    assert CHANGES['blur'].apply(noise(side=2)).shape == (3, 3, 2, 2)


def test_noise_has_its_deviation():
    x = torch.full((4, 3, 64, 64), .5)
    torch.manual_seed(0)
    added = CHANGES['noise'].apply(x) - x
    assert added.std() == pytest.approx(NOISE, rel=.02) and abs(added.mean()) < .01
    assert len(added.unique()) > 10_000 and x.unique() == .5
    dark = CHANGES['noise'].apply(torch.zeros(1, 1, 9, 9))
    assert dark.min() == 0 and dark.max() <= 1


def test_grey_has_no_colour():
    x = noise()
    grey = CHANGES['grey'].apply(x)
    assert torch.equal(grey[:, 0], grey[:, 2])
    torch.testing.assert_close(grey[:, 1], .299 * x[:, 0] + .587 * x[:, 1] + .114 * x[:, 2])


def test_rotation_turns_to_either_side():
    "A bright spot to the right of the middle goes up or down by the angle, and keeps its distance"
    side = 65
    x = torch.zeros(40, 1, side, side)
    x[:, :, 31:34, 51:54] = 1
    torch.manual_seed(0)
    turned = CHANGES['rotation'].apply(x)
    place = torch.arange(side, dtype=torch.float32) - side // 2
    mass = turned.sum((1, 2, 3))
    right, down = ((turned * place).sum((1, 2, 3)) / mass, (turned * place[:, None]).sum((1, 2, 3)) / mass)
    angles = torch.atan2(down, right).rad2deg()
    assert (angles.abs() - ANGLE).abs().max() < .5 and (right.hypot(down) - 20).abs().max() < .3
    assert 5 < (angles > 0).sum() < 35
    still = CHANGES['rotation'].apply(torch.full((2, 4, 16, 16), .7))
    torch.testing.assert_close(still, torch.full((2, 4, 16, 16), .7))  # the corners are the picture's, not black


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_features_of_changed_pictures(channels):
    dls = bands(channels, n=12, side=40)
    state = torch.get_rng_state()
    features = changed_features(embed, dls.valid, SIDE, channels)
    assert list(features) == ['blur', 'noise', *['grey'] * (channels == 3), 'rotation'] == list(changes_of(channels))
    assert torch.equal(torch.get_rng_state(), state), "everybody's draws have moved"
    x = plain_view(torch.cat([x for x, _ in dls.valid]), SIDE)
    torch.testing.assert_close(features['blur'], CHANGES['blur'].apply(x).flatten(1))
    for name, h in features.items():
        assert h.shape == (6, channels * SIDE ** 2) and not torch.equal(h, x.flatten(1)), name
    again, other = (changed_features(embed, dls.valid, SIDE, channels, seed) for seed in (0, 1))
    assert all(torch.equal(again[name], h) for name, h in features.items())
    assert not torch.equal(other['noise'], features['noise'])


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_features_of_views(channels):
    dls = bands(channels, n=12, side=40, bs=2)
    first, second = view_features(embed, dls.valid, SIDE, 'moco_v2')
    again, _ = view_features(embed, dls.valid, SIDE, 'moco_v2')
    other, _ = view_features(embed, dls.valid, SIDE, 'moco_v2', seed=1)
    assert first.shape == second.shape == (6, channels * SIDE ** 2)
    assert torch.equal(first, again) and not torch.equal(first, second) and not torch.equal(first, other)
    still = ViewKind(scale=(1, 1), ratio=(1, 1), flip=(0, 0, 0), jitter_p=0, grey=0, blur=0)
    first, second = view_features(embed, dls.valid, 40, still)  # the second of a picture is not of another
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, embed(dls.valid)[0], atol=1e-5, rtol=0)


def test_pictures_that_are_kept_whole():
    "They are squashed, and seen as they were: the square in their middle"
    class Whole:
        device = torch.device('cpu')
        def __iter__(self): yield noise(), torch.tensor([1., 2., .5]), torch.zeros(3, dtype=torch.int64)
    features = changed_features(embed, Whole(), SIDE)
    for h, x in zip(features['grey'], plain_view(noise(), SIDE, torch.tensor([1., 2., .5]))):
        torch.testing.assert_close(h, CHANGES['grey'].apply(x[None]).flatten())
    assert view_features(embed, Whole(), SIDE)[0].shape == (3, 3 * SIDE ** 2)


def test_what_is_refused():
    dls = bands(3)
    said(['seed=-1 of the views'], view_features, embed, dls.valid, SIDE, seed=-1)
    said(['seed=-1 of the changes'], changed_features, embed, dls.valid, SIDE, seed=-1)
    said(["unknown kind of views 'simclear'"], view_features, embed, dls.valid, SIDE, 'simclear')
