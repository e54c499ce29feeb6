"Metrics: what they may be, what is registered, and the numbers: RankMe and the spread against their formulas"
import functools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.features import clusters

import fastcontrast.evaluate as package
from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.evaluate import METRICS, find_metric, load, metric, needs_labels
from fastcontrast.evaluate.knn import knn_accuracy
from fastcontrast.evaluate.linear import few_label_accuracy, linear_probe
from fastcontrast.evaluate.metrics import Features, alignment, knn, spread, uniformity
from fastcontrast.evaluate.rankme import rankme
from fastcontrast.evaluate.table import EpochTable


@pytest.fixture
def registry():
    "The registry, as it was before afterwards"
    before = dict(METRICS)
    yield METRICS
    METRICS.clear()
    METRICS.update(before)


# registry

def test_what_is_there():
    assert {name: METRICS[name] for name in ('knn', 'spread', 'rankme')} == dict(knn=knn, spread=spread, rankme=rankme)


def test_a_module_of_the_package_needs_no_line_elsewhere(registry, tmp_path, monkeypatch):
    "One file with one decorator"
    (tmp_path/'sharpness.py').write_text(
        "from fastcontrast.evaluate import metric\n\n@metric\ndef sharpness(h): return h.abs().max()\n")
    monkeypatch.setattr(package, '__path__', [*package.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, 'fastcontrast.evaluate.sharpness', None)
    del sys.modules['fastcontrast.evaluate.sharpness']  # so that it is none afterwards
    assert 'sharpness' not in registry
    sharpness = find_metric('sharpness')
    assert load()['sharpness'] is sharpness and sharpness.__module__ == 'fastcontrast.evaluate.sharpness'
    assert Features(torch.tensor([[3., -4.]])).compute(sharpness) == 4


def test_the_package_alone_is_light():
    code = "import sys, fastcontrast.evaluate; assert not {'torch', 'matplotlib', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)


def test_the_decorator(registry):
    def sharpness(h): return h.abs().max()
    assert metric(sharpness) is sharpness and registry['sharpness'] is sharpness is find_metric('sharpness')
    assert metric(sharpness) is sharpness, "running a cell again is fine"
    def other(h): return 0.
    other.__name__ = 'knn'
    with pytest.raises(InputError, match="there is a metric 'knn' already, fastcontrast.evaluate.metrics.knn"):
        metric(other)
    assert registry['knn'] is knn


@pytest.mark.parametrize('function, labels', [
    (knn, True), (spread, False), (rankme, False), (knn_accuracy, True), (linear_probe, True),
    (functools.partial(knn_accuracy, k=5), True), (lambda h, power=2: 0., False), (lambda *, h: 0., False),
    (lambda test_y, test_h, train_y, train_h: 0., True),
])
def test_parameters_say_whether_labels_are_needed(function, labels):
    assert needs_labels(function) == labels and find_metric(function) is function


@pytest.mark.parametrize('function', [
    lambda: 0., lambda x: 0., lambda h, y: 0., lambda train_h, train_y: 0., lambda h, /: 0., lambda *h: 0.,
    lambda **h: 0., lambda h, train_h, train_y, test_h, test_y: 0., torch.std, dict, torch.nn.Identity(),
])
def test_other_parameters_are_refused(registry, function):
    for refused in (metric, needs_labels, find_metric, Features(torch.ones(2, 2)).compute):
        with pytest.raises(InputError, match=r'train_h, train_y, test_h, test_y\), or of \(h\)') as e: refused(function)
        assert '\n' not in str(e.value)


def test_unknown_names():
    with pytest.raises(InputError, match="unknown metric 'rankmee': did you mean rankme"): find_metric('rankmee')
    with pytest.raises(InputError, match="unknown metric '3'"): find_metric(3)


# features

def test_a_metric_gets_the_features_by_name():
    (h, y), (test_h, test_y) = clusters(60), clusters(30, seed=1)
    features, got = Features(h, y, test_h, test_y), []
    def swapped(test_y, train_h, test_h, train_y):
        got.extend([train_h, train_y, test_h, test_y])
        return torch.tensor(2)
    assert features.has_labels and features.compute(swapped) == 2 and type(features.compute(swapped)) is float
    assert all(a is b for a, b in zip(got, [h, y, test_h, test_y]))
    assert features.compute(knn) == knn_accuracy(h, y, test_h, test_y)
    assert features.compute(linear_probe) == linear_probe(h, y, test_h, test_y)
    assert features.compute(rankme) == rankme(h) and features.compute(spread) == spread(h)
    assert features.compute(lambda h: h is got[0]) == 1


@pytest.mark.parametrize('names', [(), ('test_h', 'test_y'), ('train_y', 'test_h'), ('train_y', 'test_y')])
def test_features_without_labels(names):
    h, y = clusters(60)
    features = Features(h, **{name: h if name == 'test_h' else y for name in names})
    assert not features.has_labels and features.compute(spread) == spread(h)
    with pytest.raises(InputError, match="the metric 'knn' needs labels"): features.compute(knn)


@pytest.mark.parametrize('value', [None, 'high', torch.ones(2)])
def test_what_is_not_a_number(value):
    with pytest.raises(InputError, match='which is not a number'): Features(torch.ones(2, 2)).compute(lambda h: value)
    h, y = clusters(90)
    with pytest.raises(InputError, match='few_label_accuracy.* is not a number'):
        Features(h, y, h, y).compute(few_label_accuracy)


# spread

def test_spread():
    h, _ = clusters(50)
    unit = h.numpy() / np.linalg.norm(h.numpy(), axis=1, keepdims=True)
    assert spread(h) == pytest.approx(unit.std(0, ddof=1).mean(), rel=1e-5)
    assert spread(h * torch.rand(50, 1).add(.1)) == pytest.approx(spread(h), rel=1e-5), "lengths have no say"
    assert spread(torch.ones(8, 4) * torch.arange(1, 9).view(-1, 1)) < 1e-6, "one direction: collapsed"
    assert spread(torch.zeros(8, 4)) == 0
    alike = torch.randn(20000, 64, generator=torch.Generator().manual_seed(0))
    assert spread(alike) == pytest.approx(1 / 8, rel=.01)


# RankMe

def by_definition(h):
    "Eq. 1, with NumPy's singular values"
    sigma = np.linalg.svd(np.asarray(h, dtype=np.float64), compute_uv=False)
    entropy = 0.
    for value in sigma:
        p = (value / sigma.sum() if sigma.sum() else 0.) + 1e-7
        entropy -= p * math.log(p)
    return math.exp(entropy)


def random(n, d, rank=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    if rank is None: return torch.randn(n, d, generator=g, dtype=torch.float64)
    left, right = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, rank), (rank, d)))
    return left @ right


@pytest.mark.parametrize('h', [
    random(100, 20), random(20, 100), random(30, 30), random(200, 50, rank=3), random(50, 200, rank=3), random(40, 1),
    random(100, 20) * torch.logspace(0, -9, 20), random(100, 20) + 50, random(100, 20) * 1e-6, random(100, 20) * 1e6,
    torch.ones(30, 8), torch.zeros(30, 8), random(1, 20), torch.zeros(1, 5), torch.zeros(1, 1), random(60, 10).float(),
], ids=lambda h: 'x'.join(map(str, h.shape)))
def test_rankme_is_its_formula(h):
    assert rankme(h) == pytest.approx(by_definition(h), rel=1e-9)


@pytest.mark.parametrize('n, d', [(300, 64), (64, 300), (128, 128)])
def test_rankme_of_float32_features_is_computed_in_float64(n, d):
    h = random(n, d, rank=5).float() * torch.logspace(0, -5, d)
    sigma = torch.linalg.svdvals(h.double())
    p = sigma / sigma.sum() + 1e-7
    assert rankme(h) == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-12)
    assert rankme(h.requires_grad_()) == rankme(h) and isinstance(rankme(h), float)


@pytest.mark.parametrize('k', [1, 2, 7, 16])
def test_rankme_counts_orthogonal_directions(k):
    rotation, _ = torch.linalg.qr(random(32, 32))
    pictures, _ = torch.linalg.qr(random(100, 16))
    assert rankme(pictures[:, :k] @ rotation[:k]) == pytest.approx(k, rel=1e-4)


def test_rankme_of_many_pictures_a_part_at_a_time():
    h = torch.randn(2**17 + 5, 3) * torch.tensor([1., 3, .2])
    share = (sigma := torch.linalg.svdvals(h.double())) / sigma.sum()
    assert rankme(h) == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-5)


def test_rankme_of_collapsed_features_is_one():
    direction = random(1, 512)
    for h in (direction.expand(300, -1), direction * torch.linspace(-2, 3, 300).view(-1, 1), torch.zeros(300, 512)):
        assert rankme(h) == pytest.approx(1, abs=1e-3)
    assert rankme(random(1, 512)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize('measure', [rankme, spread])
def test_features_that_cannot_be_measured(measure):
    def refused(match, h):
        with pytest.raises(InputError, match=match) as e: measure(h)
        assert '\n' not in str(e.value)
    for shape in ((8,), (2, 3, 4), (0, 4), (4, 0), ()):
        refused(r'features of shape \[.*give features \[N, D\]', torch.ones(shape))
    for value in (math.nan, math.inf, -math.inf):
        h = random(6, 4)
        h[2, 1] = value
        refused('NaN or infinite values', h)
    assert measure(random(6, 4).numpy()) == measure(random(6, 4))


def test_spread_needs_two_pictures():
    with pytest.raises(InputError, match='two pictures'): spread(torch.ones(1, 4))


def half(h, share=0.5): return share


@pytest.mark.parametrize('metrics,words', [
    (['knn', 'knn'], "two columns 'knn'"), ([lambda h: 1., lambda h: 2.], "two columns '<lambda>'"),
    ([half, functools.partial(half, share=1)], "two columns 'half'"), (3, "unknown metric '3'")])
def test_columns_have_names_of_their_own(metrics, words):
    "The second would show what the first says"
    dls = image_dls('digits', bs=64, device='cpu')
    with pytest.raises(InputError, match=words): EpochTable(dls, metrics)


def test_functions_without_a_name_are_columns():
    class Whole:
        def __call__(self, h): return 1.
    table = EpochTable(image_dls('digits', bs=64, device='cpu'), [functools.partial(half, share=1), Whole()])
    assert [column.name for column in table.columns()] == ['half', 'Whole']


def test_a_long_value_that_is_no_number_is_shortened():
    features = Features(torch.rand(99, 9))
    with pytest.raises(InputError, match='gave .* which is not a number') as e: features.compute(whole_h)
    assert len(str(e.value)) < 200


def whole_h(h): return h


# alignment and uniformity

def unit(v): return [x / math.sqrt(sum(y * y for y in v)) for x in v]
def distance(v, w): return sum((x - y) ** 2 for x, y in zip(v, w))


def test_alignment_and_uniformity_by_loops(monkeypatch):
    (h, _), (other, _) = clusters(23, d=4), clusters(23, d=4, seed=1)
    first, second = ([unit(row.tolist()) for row in x] for x in (h, other))
    expected = sum(distance(v, w) for v, w in zip(first, second)) / 23
    assert alignment(h, other) == pytest.approx(expected, abs=1e-12)
    assert alignment(h.float(), 3 * other.float()) == pytest.approx(expected, abs=1e-6)
    for t in (2, .5):
        potentials = [math.exp(-t * distance(v, w)) for i, v in enumerate(first) for w in first[:i]]
        expected = math.log(sum(potentials) / len(potentials))
        assert uniformity(h, t) == pytest.approx(expected, abs=1e-12)
    assert uniformity(h.float() * 5, t) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr('fastcontrast.evaluate.metrics.BLOCK', 100)  # four pictures at a time
    assert uniformity(h, t) == pytest.approx(expected, abs=1e-12)


def test_ends_of_alignment_and_uniformity():
    h = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    assert alignment(h, 2 * h) == pytest.approx(0, abs=1e-12) and alignment(h, -h) == pytest.approx(4, abs=1e-5)
    assert uniformity(torch.ones(50, 3)) == pytest.approx(0, abs=1e-5)
    # of two directions that are opposite: half of the pairs are at distance 2
    assert uniformity(torch.tensor([[1.], [-1.]] * 200)) == pytest.approx(math.log(.5), abs=.01)
    assert -4 < uniformity(h) < -3.7  # evenly in many dimensions: nearly all pairs at a squared distance of 2
    assert uniformity(h, 1e6) == -math.inf
    assert METRICS['uniformity'] is uniformity and Features(h).compute(uniformity) == uniformity(h)


def test_features_that_are_zero_are_not_uniform():
    assert uniformity(torch.zeros(9, 4)) == pytest.approx(0)
    h = torch.cat([torch.zeros(2, 4), torch.eye(4)[:2]])
    pairs = [0] + 4 * [1] + [2]  # squared distances of the six
    assert uniformity(h, t=1) == pytest.approx(math.log(sum(math.exp(-d) for d in pairs) / 6))


def test_alignment_and_uniformity_refuse():
    h = torch.randn(4, 3)
    for f, words in ((lambda: uniformity(h[:1]), 'two pictures'), (lambda: uniformity(h, 0), 't=0'),
                     (lambda: alignment(h, h[1:]), 'two views of the same'), (lambda: uniformity(h[0]), 'shape'),
                     (lambda: alignment(h, h * math.nan), 'NaN')):
        with pytest.raises(InputError, match=words): f()
