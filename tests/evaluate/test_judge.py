"The measures of a paper's table: each against a loop or another library, and encoders side by side"
import json
import statistics

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.refusals import said
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, confusion_matrix
from torch import Tensor

from fastcontrast.core import InputError
from fastcontrast.evaluate.judge import (
    MEASURES, TABLES, Judged, Score, confusion, judge_features, long_table, wide_table)
from fastcontrast.evaluate.tables import latex, markdown
from fastcontrast.evaluate.knn import knn_accuracy
from fastcontrast.evaluate.linear import few_label_accuracy, linear_fit, linear_probe, standardised
from fastcontrast.evaluate.metrics import alignment, uniformity


def blobs(n=240, m=60, d=8, classes=4, noise=1.2, seed=0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    "Features of classes that overlap, and labels that are no numbers from 0 on"
    draws = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=draws)
    y = torch.arange(n + m) % classes
    h = centres[y] + noise * torch.randn(n + m, d, generator=draws) + 3
    return h[:n], y[:n] * 7, h[n:], y[n:] * 7


def judged(**kwargs):
    results, reasons = judge_features(*blobs(), **kwargs)
    assert reasons == []
    return results


def test_accuracies_are_those_of_the_single_measures():
    features, results = blobs(), judged()
    for k in (20, 200):
        for temp in (0.07, 0.1):
            assert results[f'kNN, k={k}, τ={temp}'].mean == pytest.approx(knn_accuracy(*features, k=k, temp=temp))
    assert results['linear, all labels'].mean == pytest.approx(linear_probe(*features))
    for n in (1, 5, 10):
        score = results[f"linear, {n} label{'s' * (n > 1)} a class"]
        assert (score.mean, score.std) == pytest.approx(few_label_accuracy(*features, per_class=n))


def test_classes_by_the_nearest_mean():
    train_h, train_y, test_h, test_y = (t.double().numpy() for t in blobs())
    def unit(h): return (h - train_h.mean(0)) / np.linalg.norm(h - train_h.mean(0), axis=1, keepdims=True)
    means = {y: unit(train_h)[train_y == y].mean(0) for y in set(train_y)}
    right = [min(means, key=lambda c: np.linalg.norm(h - means[c])) == y for h, y in zip(unit(test_h), test_y)]
    assert judged()['nearest class mean'].mean == pytest.approx(np.mean(right))


def test_retrieval_by_a_loop():
    train_h, train_y, test_h, test_y = (t.double() for t in blobs())  # in which no two are equally near
    results, _ = judge_features(train_h, train_y.long(), test_h, test_y.long())
    similarity = torch.nn.functional.cosine_similarity(test_h[:, None], train_h[None], dim=2)
    precision = [average_precision_score((train_y == y).numpy(), row.numpy()) for row, y in zip(similarity, test_y)]
    assert results['mean average precision'].mean == pytest.approx(np.mean(precision), abs=1e-6)
    for k in (1, 5, 10):
        found = [(train_y[row.argsort(descending=True)[:k]] == y).any().item() for row, y in zip(similarity, test_y)]
        assert results[f'recall at {k}'].mean == np.mean(found)


@pytest.mark.parametrize('share', (0.01, 0.1))
def test_a_share_of_the_labels(share):
    "At least one of each class; the draws are of each class, and others in every draw"
    seen = []
    class Classifier(LogisticRegression):
        def fit(self, x, y):
            seen.append((x, y))
            return super().fit(x, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('fastcontrast.evaluate.linear.LogisticRegression', Classifier)
        results = judged(measures=[f'linear, {share:.0%} of the labels'], draws=3)
    assert [np.bincount(y).tolist() for _, y in seen] == [[max(1, round(60 * share))] * 4] * 3
    assert not np.array_equal(seen[0][0], seen[1][0])
    assert {score.labels for score in results.values()} == {max(1, round(60 * share))}
    train_h, _, test_h, _ = blobs()
    train_h, test_h = standardised(train_h, test_h)
    rows, judging = ({row.numpy().tobytes() for row in h} for h in (train_h, test_h))
    drawn = [{row.tobytes() for row in x} for x, _ in seen]
    assert all(draw <= rows and not draw & judging for draw in drawn), "the pictures that judge were learned from"
    score, = results.values()
    assert score.std == pytest.approx(statistics.stdev(score.scores.mean(1).tolist()))


def test_draws_are_those_of_the_seed():
    name = 'linear, 5 labels a class'
    one, other, same = (judged(measures=[name], draws=3, seed=seed)[name].scores for seed in (0, 1, 0))
    assert torch.equal(one, same) and not torch.equal(one, other) and torch.equal(one[1:], other[:2])


def test_confusion_is_scikit_learns():
    train_h, train_y, test_h, test_y = blobs(noise=2.)
    results, _ = judge_features(train_h, train_y, test_h, test_y)
    score = results['linear, all labels']
    train_h, test_h = standardised(train_h, test_h)
    predicted = 7 * torch.nn.functional.linear(test_h, *linear_fit(train_h, train_y // 7)).argmax(1)
    assert (score.confusion.to_numpy() == confusion_matrix(test_y, predicted)).all() and score.labels == 60
    assert list(score.confusion.index) == list(score.confusion.columns) == [0, 7, 14, 21]
    assert np.trace(score.confusion.to_numpy()) / len(test_y) == pytest.approx(score.mean) and score.mean < 1
    assert all(other.confusion is None for name, other in results.items() if name != 'linear, all labels')


def test_names_of_the_classes_and_classes_that_nobody_knows():
    train_h, train_y, test_h, test_y = blobs()
    names = ['ant', *'bcdefg', 'bee', *'ijklmn', 'cat']  # the last class has none
    results, _ = judge_features(train_h, train_y, test_h, test_y, measures=['linear, all labels'], classes=names)
    assert list(results['linear, all labels'].confusion.index) == ['ant', 'bee', 'cat', 21]
    table = confusion(torch.tensor([0, -1, 1, 1]), torch.tensor([1, 0, 1, 0]), ['a', 'b'])
    assert table.to_numpy().tolist() == [[0, 1], [1, 1]]


def test_what_needs_no_labels():
    train_h, train_y, test_h, test_y = blobs()
    test_y[::3] = -1
    views = test_h, test_h + torch.randn(test_h.shape, generator=torch.Generator().manual_seed(0))
    results, _ = judge_features(train_h, train_y, test_h, test_y, views=views)
    known = test_y >= 0
    score = results['alignment']
    assert score.mean == pytest.approx(alignment(*(h[known] for h in views))) and str(score) == f'{score.mean:.3g}'
    assert score.scores.shape == (1, known.sum()) and not score.share
    assert results['uniformity'].mean == uniformity(test_h[known])
    other, _ = judge_features(train_h, train_y, test_h, test_y, views=(test_h, test_h))
    difference, error = other['alignment'].less(score)
    assert difference == pytest.approx(-score.mean) and 0 < error < score.mean
    assert 'alignment' not in judged() and list(judged())[-3:] == ['uniformity', 'RankMe', 'spread']
    with pytest.raises(InputError, match='of shape'):
        judge_features(train_h, train_y, test_h, test_y, views=(test_h, test_h[1:]))


def test_under_a_change():
    "The classifier of the clean training features says of changed test pictures"
    train_h, train_y, test_h, test_y = blobs()
    test_y[::3] = -1
    changed = dict(still=test_h, shuffled=test_h.flip(1))
    results, _ = judge_features(train_h, train_y, test_h, test_y, measures=['linear, all labels'], changed=changed)
    assert list(results) == ['linear, all labels', 'linear under still', 'linear under shuffled']
    clean, still, shuffled = results.values()
    assert torch.equal(clean.scores, still.scores) and shuffled.mean < clean.mean
    z, flipped = standardised(train_h, test_h.flip(1))
    predicted = 7 * torch.nn.functional.linear(flipped, *linear_fit(z, train_y // 7)).argmax(1)
    known = test_y >= 0
    assert shuffled.mean == pytest.approx((predicted == test_y)[known].double().mean().item())


def test_the_difference_of_two_encoders():
    near, far = (judge_features(*blobs(noise=noise))[0] for noise in (1.2, 3.))
    score, other = near['linear, 5 labels a class'], far['linear, 5 labels a class']
    difference, error = score.less(other)
    assert difference == pytest.approx(score.mean - other.mean) and difference > 3 * error > 0
    each = (score.scores - other.scores).mean(0).numpy()
    assert error == pytest.approx(each.std(ddof=1) / np.sqrt(len(each)))
    assert score.less(score) == (0, 0)


def test_what_cannot_be_had_is_named():
    train_h, train_y, test_h, test_y = blobs()
    few = torch.cat([(train_y == y).nonzero()[:3, 0] for y in train_y.unique()])
    results, reasons = judge_features(train_h[few], train_y[few], test_h, test_y)
    assert [reason.split(':')[0] for reason in reasons] == ['linear, 5 labels a class', 'linear, 10 labels a class']
    assert '3 training pictures' in reasons[0] and 'linear, 1 label a class' in results
    said(["unknown measure 'kNN'"], judge_features, *blobs(), measures=['kNN'])
    said(['draws=0'], judge_features, *blobs(), draws=0)
    with pytest.raises(InputError, match='NaN'): judge_features(train_h * torch.nan, train_y, test_h, test_y)


def test_a_class_that_training_does_not_know_is_never_found():
    train_h, train_y, test_h, test_y = blobs()
    results, _ = judge_features(train_h, train_y, test_h, test_y * 0 + 99)
    assert {score.mean for score in results.values() if score.share} == {0}


def test_a_measure_of_ones_own(monkeypatch):
    monkeypatch.setitem(MEASURES, 'first', lambda judged: judged.right(torch.zeros_like(judged.test_y)))
    assert judged()['first'].mean == 0.25


def test_what_measures_share_is_worked_out_once():
    train_h, train_y, test_h, test_y = blobs()
    one = Judged(train_h, train_y // 7, test_h, test_y // 7)
    assert one.neighbours is one.neighbours and one.standard is one.standard and one.classifier is one.classifier


# ---------------------------------------------------------------- tables

@pytest.fixture(scope='module')
def results(): return dict(a=judge_features(*blobs())[0], b=judge_features(*blobs(noise=2.))[0])


def test_numbers(results, tmp_path):
    rows = long_table(results).set_index(['encoder', 'measure'])
    assert set(rows.index) == {(encoder, measure) for encoder in 'ab' for measure in results['a']}
    row, score = rows.loc['b', 'linear, 5 labels a class'], results['b']['linear, 5 labels a class']
    assert (row['mean'], row['std'], row['draws']) == (score.mean, score.std, 5)
    assert (row['difference'], row['error']) == score.less(results['a']['linear, 5 labels a class'])
    (tmp_path/'t.csv').write_text(TABLES['.csv'](results))
    assert np.allclose(pd.read_csv(tmp_path/'t.csv')['mean'], rows['mean'])
    read = json.loads(TABLES['.json'](results, data='d'))
    assert read['data'] == 'd' and len(read['encoders']['b']['linear, 5 labels a class']['draws']) == 5
    table = results['b']['linear, all labels'].confusion
    assert read['encoders']['b']['linear, all labels']['confusion'] == dict(
        classes=[0, 7, 14, 21], counts=table.to_numpy().tolist())
    assert read['encoders']['b']['linear, 5 labels a class']['labels_a_class'] == 5


def test_a_column_may_be_called_as_the_rows_are():
    table = pd.DataFrame({'measure': ['1'], 'b': ['2']}, index=pd.Index(['knn'], name='measure'))
    assert markdown(table).splitlines()[-1] == '| knn | 1 | 2 |' and 'knn & 1 & 2' in latex(table)


def test_names_and_lists_in_json():
    name = 'caf\udce9 [x]  y'
    counts = confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), [name, 'b'])
    score = Score(torch.ones(2, 3, dtype=torch.float64), confusion=counts)
    text = TABLES['.json']({name: dict(kNN=score)}, data=name)
    text.encode()  # it is UTF-8, whatever the names are
    assert '"draws": [1.0, 1.0]' in text and '[1, 0],\n' in text
    content = json.loads(text)
    assert content['data'] == name and list(content['encoders']) == [name]
    assert content['encoders'][name]['kNN']['confusion'] == dict(classes=[name, 'b'], counts=[[1, 0], [1, 1]])


def test_tables_to_read(results):
    table = wide_table(results)
    score = results['b']['recall at 1']
    difference, error = score.less(results['a']['recall at 1'])
    assert table.loc['recall at 1', 'a'] == f"{results['a']['recall at 1'].mean:.1%}"
    assert table.loc['recall at 1', 'b'] == f'{score.mean:.1%} ({100 * difference:+.1f} ± {100 * error:.1f})'
    lines = TABLES['.md'](results).splitlines()
    assert len(lines) == 2 + len(table) and {line.count('|') for line in lines} == {4}
    tex = latex(table)
    signs = latex(pd.DataFrame({'a-b': ['-1.0 (-2)', 'x-1, 1e-3']}, pd.Index(['n', 'm'], name='s')))
    for line in (r's & a-b \\', r'n & $-$1.0 ($-$2) \\', r'm & x-1, 1e-3 \\'): assert line in signs
    assert tex.count(r'\\') == 1 + len(table) and '±' not in tex and 'τ' not in tex and r'\%' in tex
