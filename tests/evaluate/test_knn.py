"kNN against scikit-learn and a plain loop; features of a loader"
import math

import numpy as np
import pytest
import timm
import torch
from helpers.features import clusters
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.evaluate import knn
from fastcontrast.evaluate.knn import extract_features, knn_accuracy, knn_predict, pixels
from fastcontrast.views import plain_view


@pytest.mark.parametrize('spread', [.5, 1.5, math.inf])
@pytest.mark.parametrize('k, temp', [(1, .1), (7, .1), (50, .01), (200, .07), (400, 1.)])
def test_knn_is_scikit_learns(spread, k, temp):
    (h, y), (test_h, test_y) = clusters(400, spread=spread), clusters(150, spread=spread, seed=1)
    def weights(distance): return np.exp((1 - distance) / temp)
    oracle = KNeighborsClassifier(k, metric='cosine', algorithm='brute', weights=weights).fit(h, y)
    assert np.array_equal(knn_predict(h, y, test_h, k, temp).numpy(), oracle.predict(test_h))
    assert knn_accuracy(h, y, test_h, test_y, k, temp) == pytest.approx(oracle.score(test_h, test_y), abs=1e-12)


def test_knn_is_the_loop_of_its_definition():
    (h, y), (test_h, _) = clusters(60), clusters(25, seed=1)
    k, temp = 9, .2
    for q, predicted in zip(test_h, knn_predict(h, y, test_h, k, temp).tolist(), strict=True):
        s = [(torch.dot(q, x) / q.norm() / x.norm()).item() for x in h]
        score = {c: 0. for c in range(6)}
        for i in sorted(range(len(h)), key=lambda i: -s[i])[:k]:
            score[y[i].item()] += math.exp(s[i] / temp)
        assert predicted == max(score, key=score.get)


def test_knn_blocks_do_not_change_the_answer(monkeypatch):
    (h, y), (test_h, _) = clusters(100), clusters(37, seed=1)
    whole = knn_predict(h, y, test_h, 10)
    for block in (1, 500, 1000):
        monkeypatch.setattr(knn, 'BLOCK', block)
        assert torch.equal(knn_predict(h, y, test_h, 10), whole)


def test_knn_weights_do_not_overflow():
    h = torch.tensor([[1., 0], [1, .01], [1, -.02]])
    assert knn_predict(h, torch.tensor([5, 9, 9]), torch.tensor([[3., 0]]), temp=1e-6).item() == 5
    assert knn_predict(h, torch.tensor([5, 9, 9]), torch.tensor([[3., 0]]), temp=.01).item() == 9


def test_knn_takes_any_class_numbers_and_lengths():
    (h, y), (test_h, test_y) = clusters(200), clusters(80, seed=1)
    accuracy = knn_accuracy(h, y, test_h, test_y, k=10)
    names = torch.tensor([-7, 1000, 3, 0, -2, 12345678901])
    assert knn_accuracy(h, names[y], test_h, names[test_y], k=10) == accuracy
    assert knn_accuracy(h * torch.rand(200, 1).add(.1), y, test_h * 50, test_y, k=10) == accuracy
    assert knn_accuracy(h.half(), y.int(), test_h.float(), test_y.numpy(), k=10) == pytest.approx(accuracy, abs=.03)
    assert knn_accuracy(h, y, test_h, test_y + 100, k=10) == 0  # classes that training does not know


def test_knn_leaves_out_unknown_labels():
    (h, y), (test_h, test_y) = clusters(200), clusters(80, seed=1)
    y[::3], test_y[::4] = -1, -1
    test_h[test_y == -1] = math.nan  # not even looked at
    known, test_known = y != -1, test_y != -1
    expected = knn_accuracy(h[known], y[known], test_h[test_known], test_y[test_known], 9)
    assert knn_accuracy(h, y, test_h, test_y, 9) == expected


def test_knn_of_unrelated_features_is_chance():
    (h, y), (test_h, test_y) = clusters(2000, spread=math.inf), clusters(2000, spread=math.inf, seed=1)
    assert abs(knn_accuracy(h, y, test_h, test_y) - 1 / 6) < 4 * math.sqrt(1 / 6 * 5 / 6 / 2000)


@pytest.mark.parametrize('kw', [dict(k=0), dict(k=-1), dict(k=2.5),
                                dict(temp=0), dict(temp=-.1), dict(temp=math.nan), dict(temp=math.inf)])
def test_knn_refuses_impossible_settings(kw):
    h, y = clusters(30)
    (name, value), = kw.items()
    with pytest.raises(InputError, match=f'{name}={value} of kNN must be'):
        knn_accuracy(h, y, h, y, **kw)


# features of a loader

def batches(sizes=(4, 4, 3), side=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    def images(n): return torch.randint(256, (n, 3, side, side), generator=g, dtype=torch.uint8)
    return [(images(n), torch.arange(n) - 1) for n in sizes]


class Recorder(nn.Module):
    "Notes what it is called with"
    def __init__(self):
        super().__init__()
        self.w, self.seen = nn.Parameter(torch.ones(1)), []

    def forward(self, x):
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((tuple(x.shape), x.dtype, channels_last, self.training, torch.is_grad_enabled()))
        return (x * self.w).mean((2, 3))


def test_extract_features_shows_the_encoder_plain_normalised_views():
    encoder, loader = Recorder(), batches()
    mean, std = [.4, .5, .6], [.2, .25, .3]
    h, y = extract_features(encoder, loader, 8, mean, std)
    assert encoder.seen == [((n, 3, 8, 8), torch.float32, True, False, False) for n in (4, 4, 3)]
    expected = torch.cat([plain_view(x, 8) for x, _ in loader]).mean((2, 3))
    torch.testing.assert_close(h, (expected - torch.tensor(mean)) / torch.tensor(std), atol=1e-5, rtol=0)
    assert y.tolist() == [-1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1] and y.dtype == torch.int64
    assert torch.is_grad_enabled() and not h.requires_grad


def test_who_copies_to_a_cpu_waits(monkeypatch):
    "From a GPU it would read what is not there yet"
    asked, to = [], torch.Tensor.to
    def seen(self, *args, **kwargs):
        asked.append(kwargs.get('non_blocking', False))
        return to(self, *args, **kwargs)
    monkeypatch.setattr(torch.Tensor, 'to', seen)
    extract_features(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), [(torch.zeros(2, 3, 2, 2), torch.zeros(2))], 2,
                     [0.5] * 3, [0.5] * 3)
    assert asked and not any(asked)


def test_extract_features_leaves_the_encoder_as_it_was():
    torch.manual_seed(0)
    encoder = timm.create_model('resnet10t', num_classes=0).train()
    encoder.layer1.eval()
    encoder.bn1.eval()
    modes = {n: m.training for n, m in encoder.named_modules()}
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    h, _ = extract_features(encoder, batches(side=32), 32, [.5] * 3, [.25] * 3)
    assert h.shape == (11, encoder.num_features)
    assert {n: m.training for n, m in encoder.named_modules()} == modes and len(set(modes.values())) == 2
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    one_by_one = [(x[i:i + 1], y[i:i + 1]) for x, y in batches(side=32) for i in range(len(x))]
    alone, _ = extract_features(encoder, one_by_one, 32, [.5] * 3, [.25] * 3)
    torch.testing.assert_close(alone, h, atol=1e-4, rtol=1e-4)


def test_extract_features_restores_the_mode_after_an_error():
    class Broken(Recorder):
        def forward(self, x): raise ArithmeticError
    encoder = Broken().train()
    with pytest.raises(ArithmeticError):
        extract_features(encoder, batches(), 8, [.5] * 3, [.25] * 3)
    assert encoder.training and torch.is_grad_enabled()


def test_ordered_is_what_is_read_where_a_loader_has_it():
    class Shuffled:
        def __iter__(self): raise AssertionError('the training order')
        def ordered(self): return batches()
    h, y = extract_features(Recorder(), Shuffled(), 8, [.5] * 3, [.25] * 3)
    assert len(h) == len(pixels(Shuffled(), 8)[0]) == 11


def test_pixels_are_the_plain_view():
    loader = batches(side=8)
    h, y = pixels(loader, 8)
    assert torch.equal(h, torch.cat([x for x, _ in loader]).flatten(1) / 255)
    assert h.dtype == torch.float32 and h.shape == (11, 3 * 8 * 8) and len(y) == 11


def test_empty_loader():
    with pytest.raises(InputError, match='empty'):
        extract_features(Recorder(), [], 8, [.5] * 3, [.25] * 3)
    with pytest.raises(InputError, match='empty'):
        pixels([], 8)
