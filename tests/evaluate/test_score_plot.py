"The picture of what measures say"
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.refusals import said

from fastcontrast.core import InputError
from fastcontrast.evaluate.judge import judge_features
from fastcontrast.evaluate.score_plot import LEFT_OUT, largest_confusions, plot_scores


def scores(classes, noise, n=None, names=True, **kwargs):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n or 40 * classes) % classes
    h = torch.randn(classes, 8, generator=g)[y] + noise * torch.randn(len(y), 8, generator=g)
    train = len(y) * 3 // 4
    names = [f'class {i}$' for i in range(classes)] if names else None
    return judge_features(h[:train], y[:train], h[train:], y[train:], classes=names, **kwargs)[0]


@pytest.fixture(scope='module')
def results(): return {'_a$b$': scores(5, 1.), 'other': scores(5, 2., draws=2)}


def panels(figure): return {a.get_title(): a for a in figure.axes}


@pytest.mark.filterwarnings('error')
def test_picture(results, tmp_path):
    figure = plot_scores(results, tmp_path/'e.png')
    assert (tmp_path/'e.png').read_bytes()[:4] == b'\x89PNG'
    drawn = panels(figure)
    assert list(drawn) == ['accuracy', 'linear classifier of few labels', '% of a class, by what it is taken for',
                           'largest confusions']
    bars, curve, matrix, pairs = drawn.values()
    measures = [label.get_text() for label in bars.get_yticklabels()]
    assert measures == [name for name, score in results['other'].items() if score.share and name not in LEFT_OUT
                        and (score.labels is None or name == 'linear, all labels')]
    widths = [bar.get_width() for bar in bars.patches if bar.get_width()]
    assert widths == [pytest.approx(100 * of[name].mean) for of in results.values() for name in measures]
    lines = [line.get_xydata().tolist() for line in curve.lines]
    assert [[x for x, _ in line] for line in lines] == [[1, 1, 3, 5, 10, 30]] * 2  # 1 % are one of each, too
    assert [line[-1][1] for line in lines] == [100 * of['linear, all labels'].mean for of in results.values()]
    assert len(curve.collections) == 2
    confusion = results['_a$b$']['linear, all labels'].confusion
    share = 100 * confusion.div(confusion.sum(axis=1), axis=0)
    np.testing.assert_allclose(matrix.images[0].get_array(), share)
    assert [label.get_text() for label in matrix.get_xticklabels()] == [f'class {i}\\$' for i in range(5)]
    assert len(pairs.patches) == len(largest_confusions(confusion))
    legend, = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['_a$b$', 'other']


@pytest.mark.filterwarnings('error')
def test_many_classes_have_no_matrix(tmp_path):
    figure = plot_scores(dict(a=scores(25, 2., measures=['linear, all labels', 'recall at 1'])), tmp_path/'e.svg')
    assert list(panels(figure)) == ['accuracy', 'linear classifier of few labels', 'largest confusions']
    assert len(figure.axes[-1].get_yticks()) == 20


@pytest.mark.filterwarnings('error')
def test_what_is_not_there_is_not_drawn(tmp_path):
    alone = plot_scores(dict(a=scores(3, 1., measures=['recall at 1'])), tmp_path/'e.pdf')
    assert list(panels(alone)) == ['accuracy']
    right = plot_scores(dict(a=scores(3, .01, measures=['linear, all labels'])), tmp_path/'f.png')
    assert list(panels(right))[-1] == 'nothing is taken for anything else'
    said(['no accuracy to draw'], plot_scores, {})
    with pytest.raises(InputError, match='cannot be saved'): plot_scores(dict(a=scores(3, 1.)), tmp_path/'f.png/a.png')


def test_largest_confusions():
    table = pd.DataFrame([[5, 2, 0], [9, 1, 0], [1, 0, 4]], list('abc'), list('abc'))
    assert largest_confusions(table, 2).to_dict('records') == [
        {'class': 'b', 'taken_for': 'a', 'pictures': 9, 'share': .9},
        {'class': 'a', 'taken_for': 'b', 'pictures': 2, 'share': 2 / 7}]
    assert len(largest_confusions(table)) == 3 and len(largest_confusions(table * 0)) == 0
