"Neighbours, near copies and planes against loops and scikit-learn"
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.features import clusters
from helpers.refusals import said
from sklearn.decomposition import PCA

from fastcontrast.evaluate import neighbours
from fastcontrast.evaluate.neighbours import near_copies, nearest_others, plane, principal


def similarities(h): return F.normalize(h, dim=1) @ F.normalize(h, dim=1).T


def by_loop(h, threshold):
    "Groups, as sets of rows, by walking from row to row"
    near, groups, seen = similarities(h) >= threshold, [], set()
    for start in range(len(h)):
        if start in seen: continue
        group, open_ = {start}, [start]
        while open_:
            row = open_.pop()
            new = {i for i in range(len(h)) if near[row, i]} - group
            group |= new
            open_ += new
        seen |= group
        if len(group) > 1: groups.append(group)
    return groups


@pytest.mark.parametrize('tile', [7, 16, 2048])
@pytest.mark.parametrize('threshold', [0.6, 0.85, 0.97])
def test_near_copies_against_a_loop(monkeypatch, tile, threshold):
    monkeypatch.setattr(neighbours, 'TILE', tile)
    h = clusters(60, spread=0.6)[0]
    best, other, label = near_copies(h, threshold)
    expected = by_loop(h, threshold)
    found = [set((label == value).nonzero().flatten().tolist()) for value in label.unique() if value >= 0]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))
    assert (threshold, len(expected) > 1) != (0.85, False)
    s = similarities(h).fill_diagonal_(-1)
    grouped = label >= 0
    torch.testing.assert_close(best[grouped], s.max(1).values[grouped])
    assert torch.equal(other[grouped], s.argmax(1)[grouped])
    assert (best[~grouped] == -1).all() and (other[~grouped] == -1).all()


def test_exact_copies_are_found_at_one():
    h = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    h[31] = h[4] * 3
    best, other, label = near_copies(h, 1)
    assert (label >= 0).nonzero().flatten().tolist() == [4, 31] and other[[4, 31]].tolist() == [31, 4]
    assert best.max() <= 1


def test_everything_alike_is_one_group(monkeypatch):
    monkeypatch.setattr(neighbours, 'TILE', 16)
    label = near_copies(torch.ones(100, 3), 0.99)[2]
    assert label.unique().numel() == 1 and label[0] >= 0


def test_nearest_others_against_a_loop():
    h = clusters(50)[0]
    similarity, found = nearest_others(h, torch.arange(50), 4)
    s = similarities(h).fill_diagonal_(-2)
    expected = s.topk(4)
    torch.testing.assert_close(similarity, expected.values)
    assert torch.equal(found, expected.indices)


def test_principal_components_are_those_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(neighbours, 'TILE', 16)
    h = clusters(50, d=9)[0]
    expected = PCA(3, svd_solver='full').fit_transform(F.normalize(h, dim=1).numpy())
    places = principal(h.float(), 3).numpy()
    for component in range(3):
        sign = np.sign((places[:, component] * expected[:, component]).sum())
        assert np.allclose(places[:, component], sign * expected[:, component], atol=1e-5)


def test_a_direction_does_not_depend_on_the_order_of_rows():
    h = clusters(50, d=9)[0].float()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plane(h[order]), plane(h)[order], rtol=1e-4, atol=1e-6)
    assert plane(torch.rand(5, 1)).shape == (5, 2)  # one feature: the second coordinate is 0


def test_tsne_is_the_same_again_and_keeps_classes_together():
    h, y = clusters(60, classes=2, spread=0.3)
    places = plane(h.float(), 'tsne', seed=1)
    assert places.shape == (60, 2) and torch.equal(places, plane(h.float(), 'tsne', seed=1))
    assert torch.equal(y[torch.cdist(places, places).fill_diagonal_(1e9).argmin(1)], y)


def test_tsne_of_pictures_that_are_all_one():
    places = plane(torch.ones(6, 4), 'tsne')
    assert places.shape == (6, 2) and places.isfinite().all()


@pytest.mark.slow  # it compiles for a minute
@pytest.mark.parametrize('n', [3, 4])
def test_umap_of_few_pictures(n):
    pytest.importorskip('umap')
    places = plane(clusters(n, dtype=torch.float32)[0], 'umap')
    assert places.shape == (n, 2) and places.isfinite().all()


def test_umap_if_it_is_installed(monkeypatch):
    h = torch.rand(6, 4)
    monkeypatch.setattr(neighbours.importlib.util, 'find_spec', lambda name: None)
    said(["pip install 'fastcontrast[embed]'", 'pca'], plane, h, 'umap')
    monkeypatch.undo()
    class UMAP:
        def __init__(self, **settings): self.settings = settings
        def fit_transform(self, x):
            assert self.settings['n_neighbors'] == len(x) - 1 and self.settings['random_state'] == 3
            assert self.settings['init'] == ('random' if len(x) == 3 else 'spectral')
            return x[:, :2].astype(np.float64)
    module = types.ModuleType('umap')
    module.UMAP, module.__spec__ = UMAP, types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, 'umap', module)
    for n in (6, 3): assert plane(h[:n], 'umap', seed=3).dtype == torch.float32
    said(['isomap'], plane, h, 'isomap')
