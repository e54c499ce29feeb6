"kNN and linear probes against scikit-learn and plain loops; features of a loader; plots of a run"
import math

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from fastcontrast.core import InputError, MissingPath
from fastcontrast.evaluate import knn
from fastcontrast.evaluate.knn import embed, knn_accuracy, knn_predict, pixels
from fastcontrast.evaluate.linear import draw, few_label_accuracy, linear_probe, logistic_path, numbered, standardised
from fastcontrast.evaluate.plots import plot_history
from fastcontrast.views import plain_view


def clusters(n, classes=6, d=12, spread=1.5, seed=0, dtype=torch.float64):
    "Features around one centre a class; spread=inf: without any relation to the class"
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99), dtype=dtype)
    y = torch.randint(classes, (n,), generator=g)
    noise = torch.randn(n, d, generator=g, dtype=dtype)
    return (noise if math.isinf(spread) else centres[y] + spread * noise), y


# kNN

@pytest.mark.parametrize('spread', [.5, 1.5, math.inf])
@pytest.mark.parametrize('k, temp', [(1, .1), (7, .1), (50, .01), (200, .07), (400, 1.)])
def test_knn_is_scikit_learns(spread, k, temp):
    (h, y), (test_h, test_y) = clusters(400, spread=spread), clusters(150, spread=spread, seed=1)
    oracle = KNeighborsClassifier(k, metric='cosine', algorithm='brute', weights=lambda d: np.exp((1 - d) / temp)).fit(h, y)
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
    assert knn_accuracy(h, y, test_h, test_y, 9) == knn_accuracy(h[known], y[known], test_h[test_known], test_y[test_known], 9)


def test_knn_of_unrelated_features_is_chance():
    (h, y), (test_h, test_y) = clusters(2000, spread=math.inf), clusters(2000, spread=math.inf, seed=1)
    assert abs(knn_accuracy(h, y, test_h, test_y) - 1 / 6) < 4 * math.sqrt(1 / 6 * 5 / 6 / 2000)


MEASURES = [knn_accuracy, linear_probe, few_label_accuracy]


@pytest.mark.parametrize('measure', MEASURES)
def test_input_that_no_measure_can_use(measure):
    (h, y), (test_h, test_y) = clusters(90), clusters(30, seed=1)
    def refused(match, h=h, y=y, test_h=test_h, test_y=test_y):
        with pytest.raises(InputError, match=match) as e:
            measure(h, y, test_h, test_y)
        assert '\n' not in str(e.value)
    nan = h.clone()
    nan[3, 2] = math.nan
    refused('training pictures with labels', y=torch.full_like(y, -1))
    refused('training pictures with labels', h=h[:0], y=y[:0])
    refused('test pictures with labels', test_h=test_h[:0], test_y=test_y[:0])
    refused('test pictures with labels', test_y=torch.full_like(test_y, -1))
    refused('at least two classes; the training labels have only class 4', y=torch.full_like(y, 4))
    refused('not 12 and 5 of them', test_h=test_h[:, :5])
    refused('training features: they hold NaN', h=nan)
    refused('test features: they hold NaN', test_h=test_h / 0)
    refused(r'shape \[90, 12\] with labels of shape \[89\]', y=y[1:])
    refused(r'shape \[90\]', h=h[:, 0])
    refused('whole numbers', y=y.double())


@pytest.mark.parametrize('kw', [dict(k=0), dict(k=-1), dict(temp=0), dict(temp=-.1), dict(temp=math.nan), dict(temp=math.inf)])
def test_knn_refuses_impossible_settings(kw):
    h, y = clusters(30)
    with pytest.raises(InputError, match=next(iter(kw))):
        knn_accuracy(h, y, h, y, **kw)


# features of a loader

def batches(sizes=(4, 4, 3), side=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randint(256, (n, 3, side, side), generator=g, dtype=torch.uint8), torch.arange(n) - 1) for n in sizes]


class Recorder(nn.Module):
    "Notes what it is called with"
    def __init__(self):
        super().__init__()
        self.w, self.seen = nn.Parameter(torch.ones(1)), []

    def forward(self, x):
        self.seen.append((tuple(x.shape), x.dtype, x.is_contiguous(memory_format=torch.channels_last), self.training, torch.is_grad_enabled()))
        return (x * self.w).mean((2, 3))


def test_embed_shows_the_encoder_plain_normalised_views():
    encoder, loader = Recorder(), batches()
    mean, std = [.4, .5, .6], [.2, .25, .3]
    h, y = embed(encoder, loader, 8, mean, std)
    assert encoder.seen == [((n, 3, 8, 8), torch.float32, True, False, False) for n in (4, 4, 3)]
    expected = torch.cat([plain_view(x, 8) for x, _ in loader]).mean((2, 3))
    torch.testing.assert_close(h, (expected - torch.tensor(mean)) / torch.tensor(std), atol=1e-5, rtol=0)
    assert y.tolist() == [-1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1] and y.dtype == torch.int64
    assert torch.is_grad_enabled() and not h.requires_grad


def test_embed_leaves_the_encoder_as_it_was():
    torch.manual_seed(0)
    encoder = timm.create_model('resnet10t', num_classes=0).train()
    encoder.layer1.eval()
    encoder.bn1.eval()
    modes = {n: m.training for n, m in encoder.named_modules()}
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    h, _ = embed(encoder, batches(side=32), 32, [.5] * 3, [.25] * 3)
    assert h.shape == (11, encoder.num_features)
    assert {n: m.training for n, m in encoder.named_modules()} == modes and len(set(modes.values())) == 2
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    one_by_one = [(x[i:i + 1], y[i:i + 1]) for x, y in batches(side=32) for i in range(len(x))]
    torch.testing.assert_close(embed(encoder, one_by_one, 32, [.5] * 3, [.25] * 3)[0], h, atol=1e-4, rtol=1e-4)


def test_embed_restores_the_mode_after_an_error():
    class Broken(Recorder):
        def forward(self, x): raise ArithmeticError
    encoder = Broken().train()
    with pytest.raises(ArithmeticError):
        embed(encoder, batches(), 8, [.5] * 3, [.25] * 3)
    assert encoder.training and torch.is_grad_enabled()


def test_ordered_is_what_is_read_where_a_loader_has_it():
    class Shuffled:
        def __iter__(self): raise AssertionError('the training order')
        def ordered(self): return batches()
    h, y = embed(Recorder(), Shuffled(), 8, [.5] * 3, [.25] * 3)
    assert len(h) == len(pixels(Shuffled(), 8)[0]) == 11


def test_pixels_are_the_plain_view():
    loader = batches(side=8)
    h, y = pixels(loader, 8)
    assert torch.equal(h, torch.cat([x for x, _ in loader]).flatten(1) / 255)
    assert h.dtype == torch.float32 and h.shape == (11, 3 * 8 * 8) and len(y) == 11


def test_empty_loader():
    with pytest.raises(InputError, match='empty'):
        embed(Recorder(), [], 8, [.5] * 3, [.25] * 3)
    with pytest.raises(InputError, match='empty'):
        pixels([], 8)


# linear probes

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
    scored = [(LogisticRegression(C=10 ** (e / 2), max_iter=5000).fit(z[~held], train_y[~held]).score(z[held], train_y[held]), -e)
              for e in range(-6, 3)]
    oracle = LogisticRegression(C=10 ** (-max(scored)[1] / 2), max_iter=5000).fit(z, train_y).score(test_z, test_y)
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
    assert [t.tolist() for t in numbered(torch.tensor([9, 4, 9]), torch.tensor([4, 5, 9, 10, 3]))] == [[1, 0, 1], [0, -1, 1, -1, -1]]
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
    assert few_label_accuracy(*digits, per_class=2, draws=1)[0] < mean < few_label_accuracy(*digits, per_class=60, draws=2)[0]
    assert few_label_accuracy(*digits, draws=1)[1] == 0


def test_few_labels_refuses(digits):
    h, y, test_h, test_y = digits
    with pytest.raises(InputError, match='class 7 has 4'):
        few_label_accuracy(h, torch.where((y == 7) & ((y == 7).cumsum(0) > 4), -1, y), test_h, test_y)
    for kw in (dict(per_class=0), dict(draws=0)):
        with pytest.raises(InputError, match='1 or more'):
            few_label_accuracy(*digits, **kw)


# plots

HISTORY = "epoch,train_loss,knn,lr,time\n0,5.5,,0.1,00:12\n1,4.5,0.5,0.2,00:12\n2,4.0,,0.1,00:12\n"


def test_plot_of_a_csv(tmp_path):
    (tmp_path / 'history.csv').write_text(HISTORY)
    figure = plot_history(tmp_path / 'history.csv', tmp_path / 'curves.png')
    lines = {a.get_title(): a.lines[0].get_xydata().tolist() for a in figure.axes}
    assert lines == {'training loss': [[0, 5.5], [1, 4.5], [2, 4]], 'kNN accuracy': [[1, .5]], 'learning rate': [[0, .1], [1, .2], [2, .1]]}
    assert all(a.get_xlabel() == 'epoch' and a.lines[0].get_marker() == 'o' for a in figure.axes)
    assert (tmp_path / 'curves.png').read_bytes()[:4] == b'\x89PNG'


def test_plot_of_rows_and_of_a_diverged_run():
    rows = [dict(epoch=e, train_loss=1 / (e + 1) if e < 30 else math.nan, std=.1) for e in range(40)]
    figure = plot_history(rows)
    assert [len(a.lines[0].get_xdata()) for a in figure.axes] == [30, 40]
    assert figure.axes[0].lines[0].get_marker() in (None, 'None')


def test_plot_refuses(tmp_path):
    def refused(match, history, path=None):
        with pytest.raises(InputError, match=match):
            plot_history(history, path)
    csv = tmp_path / 'history.csv'
    with pytest.raises(MissingPath, match='no file'):
        plot_history(csv)
    csv.write_text('epoch,train_loss\n')
    refused('no rows', csv)
    csv.write_text('a,b\n1,2\n')
    refused("no column 'epoch'", csv)
    csv.write_text('epoch,train_loss\n0,oops\n')
    refused('not a number', csv)
    csv.write_bytes(b'\xff\xfe\x00\x01')
    refused('cannot be read', csv)
    rows = [dict(epoch=0, train_loss=1.)]
    refused('cannot be saved', rows, tmp_path / 'none' / 'a.png')
    refused('cannot be saved', rows, tmp_path / 'a.nonsense')
