"Linear probes against scikit-learn; draws of labels"
import math

import numpy as np
import pytest
import torch
from helpers.features import clusters
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from fastcontrast.core import InputError
from fastcontrast.evaluate.linear import draw, few_label_accuracy, linear_probe, logistic_path, numbered, standardised


@pytest.fixture(scope='module')
def digits():
    "Raw 8x8 pixels, other writers in the test part"
    x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
    return x[:1437], y[:1437], x[1437:], y[1437:]


@pytest.mark.parametrize('C', [1e-3, .1, 1.])
@pytest.mark.parametrize('n, d', [(400, 12), (50, 80)])
def test_logistic_regression_is_scikit_learns(C, n, d):
    h, y = clusters(n, d=d)
    h = h * torch.logspace(0, -2, d, dtype=h.dtype)
    h = h - h.mean(0)
    (w, b), = logistic_path(h, y, [C], tol=1e-8)
    oracle = LogisticRegression(C=C, tol=1e-10, max_iter=10000).fit(h, y)
    np.testing.assert_allclose(w, oracle.coef_, atol=1e-3 * abs(oracle.coef_).max())
    np.testing.assert_allclose(b - b.mean(), oracle.intercept_ - oracle.intercept_.mean(), atol=1e-3)


def test_a_path_ends_where_each_strength_would_alone():
    h, y = clusters(300)
    h = h - h.mean(0)
    strengths = [1e-3, .03, 1.]
    for C, (w, _) in zip(strengths, logistic_path(h, y, strengths, tol=1e-8), strict=True):
        (alone, _), = logistic_path(h, y, [C], tol=1e-8)
        torch.testing.assert_close(w, alone, atol=1e-3, rtol=1e-3)


def test_more_features_than_are_rotated():
    "Beyond 4,096 features the axes stay as they are; the solution is the same"
    h, y = clusters(30, d=4100)
    h = h - h.mean(0)
    (w, _), = logistic_path(h, y, [.1], tol=1e-6)
    oracle = LogisticRegression(C=.1, tol=1e-8, max_iter=10000).fit(h, y)
    np.testing.assert_allclose(w, oracle.coef_, atol=1e-4)


def test_probe_picks_as_well_as_a_search_with_scikit_learn(digits):
    train_h, train_y, test_h, test_y = digits
    z, test_z = standardised(train_h, test_h)
    held = draw(train_y, train_y.bincount() // 5, seed=3)
    def classifier(e, h, y): return LogisticRegression(C=10 ** (e / 2), max_iter=5000).fit(h, y)
    scored = [(classifier(e, z[~held], train_y[~held]).score(z[held], train_y[held]), -e) for e in range(-6, 3)]
    oracle = classifier(-max(scored)[1], z, train_y).score(test_z, test_y)
    assert abs(linear_probe(*digits) - oracle) < .012
    assert abs(linear_probe(*(t.float() if t.is_floating_point() else t for t in digits)) - oracle) < .012


def test_probe_leaves_out_unknown_labels_and_repeats(digits):
    h, y, test_h, test_y = (t.clone() for t in digits)
    y[300:], test_y[::2] = -1, -1
    accuracy = linear_probe(h, y, test_h, test_y, seed=1)
    assert accuracy == linear_probe(h[:300], y[:300], test_h[1::2], test_y[1::2], seed=1)
    names = torch.tensor([5, 50, -3, 7, 0, 1, 2, 99, 100, 8])
    assert accuracy == linear_probe(h[:300], names[y[:300]], test_h[1::2], names[test_y[1::2]], seed=1)


def test_probe_of_few_pictures():
    (h, y), (test_h, test_y) = clusters(6, classes=2, spread=.1), clusters(50, classes=2, spread=.1, seed=1)
    assert linear_probe(h, y, test_h, test_y) == 1
    one = torch.tensor([0, 1, 1])  # a class of a single picture is trained on, not held out
    assert 0 <= linear_probe(h[:3], one, test_h, test_y) <= 1
    with pytest.raises(InputError, match='no class has two'):
        linear_probe(h[:2], torch.tensor([0, 1]), test_h, test_y)


def test_test_classes_that_training_does_not_know_count_as_wrong():
    y, test_y = numbered(torch.tensor([9, 4, 9]), torch.tensor([4, 5, 9, 10, 3]))
    assert (y.tolist(), test_y.tolist()) == ([1, 0, 1], [0, -1, 1, -1, -1])
    (h, y), (test_h, test_y) = clusters(200, spread=.1), clusters(60, spread=.1, seed=1)
    y[y == 5] = 2
    right = (test_y != 5).double().mean().item()
    assert linear_probe(h, y, test_h, test_y) == pytest.approx(right)
    assert few_label_accuracy(h, y, test_h, test_y)[0] == pytest.approx(right)


def test_constant_and_tiny_features():
    (h, y), (test_h, test_y) = clusters(200), clusters(60, seed=1)
    accuracy = linear_probe(h, y, test_h, test_y)
    constant = torch.full((200, 2), 3.3, dtype=h.dtype)
    assert linear_probe(torch.cat([h, constant], 1), y, torch.cat([test_h, constant[:60] + 1], 1), test_y) == accuracy
    assert linear_probe(h * 1e-9, y, test_h * 1e-9, test_y) == accuracy


def test_draw_takes_so_many_of_each_class():
    y = torch.tensor([0] * 5 + [1] * 9 + [2] * 2)[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    counts = torch.tensor([3, 0, 2])
    drawn = [draw(y, counts, seed) for seed in range(200)]
    assert all(y[d].bincount(minlength=3).tolist() == [3, 0, 2] for d in drawn)
    often = torch.stack(drawn).double().mean(0)[y == 0]  # each picture of class 0 is as likely as another
    assert (often - .6).abs().max() < 4 * math.sqrt(.6 * .4 / 200)


def test_few_labels(digits):
    mean, std = few_label_accuracy(*digits)
    assert .81 < mean < .87 and 0 < std < .05
    assert few_label_accuracy(*digits) == (mean, std) != few_label_accuracy(*digits, seed=100)
    assert few_label_accuracy(*digits, per_class=2, draws=1)[0] < mean
    assert few_label_accuracy(*digits, per_class=60, draws=2)[0] > mean
    assert few_label_accuracy(*digits, draws=1)[1] == 0


def test_few_labels_refuses(digits):
    h, y, test_h, test_y = digits
    with pytest.raises(InputError, match='class 7 has 4'):
        few_label_accuracy(h, torch.where((y == 7) & ((y == 7).cumsum(0) > 4), -1, y), test_h, test_y)
    for kw in (dict(per_class=0), dict(draws=0)):
        with pytest.raises(InputError, match='of the few-label probe must be a whole number of at least 1'):
            few_label_accuracy(*digits, **kw)
