"""The pair rule, against a double loop."""
import pytest
import torch
from helpers.learners import plain_learner, tiny_model
from helpers.pictures import LR
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.losses import DINOLoss, InfoNCE, NegCosine, SwAVLoss
from fastcontrast.models import Embedding
from fastcontrast.pairs import PairLoss
from fastcontrast.step import EVERY, OTHER, SAME, Step
from fastcontrast.targets import SharedTarget
from fastcontrast.views import ViewMaker

close = torch.testing.assert_close
SEED = 5


class Spy(nn.Module):
    "A loss that tells its sides apart, and remembers the pairs"
    def __init__(self, symmetric=None):
        super().__init__()
        self.pairs = []
        if symmetric is not None: self.symmetric = symmetric
    def forward(self, q, k):
        self.pairs.append((q, k))
        return (q * k).sum() + (2 * q - k**2).mean()


def embeddings(V: int, *levels: str, predicted: bool = True) -> dict[str, Embedding]:
    def t(): return torch.randn(V, 4, 3, dtype=torch.float64)
    return {level: Embedding(t(), t(), t() if predicted else None) for level in levels}


def step_of(keys, pred, **fields) -> Step:
    "A step with keys, in which views look for the other views' and all other roles for every one"
    queries = {role: OTHER if role == 'views' else EVERY for role in pred if role != 'labeled'}
    return Step(keys=keys, queries=queries, **fields)


def leveled(loss, *levels: str) -> PairLoss:
    "A pair loss with a loss for each level; they share what they remember, unlike those that `add_level` makes"
    pair = PairLoss(loss)
    pair.losses.update({level: pair.loss for level in levels})
    return pair


def double_loop(pred, keys, loss, once=False):
    levels = []
    for level, k in keys.items():
        terms = []
        for role, ems in pred.items():
            q = ems[level].p
            for i in range(len(q)):
                for j in range(len(k)):
                    if role == 'views' and (i == j or once and i > j): continue
                    terms.append(loss(q[i], k[j]))
        levels.append(sum(terms) / len(terms))
    return sum(levels) / len(levels)


@pytest.mark.parametrize('symmetric', [None, False, True])
@pytest.mark.parametrize('V', [2, 3])
@pytest.mark.parametrize('local', [0, 2])
@pytest.mark.parametrize('levels', [('final',), ('layer2', 'layer3', 'final')])
@pytest.mark.parametrize('keys_are', ['projections', 'queries'])
def test_pairs(symmetric, V, local, levels, keys_are):
    own = keys_are == 'queries'
    pred = {'views': embeddings(V, *levels, predicted=not own)}
    if local: pred['local'] = embeddings(local, *levels)
    keys = {level: e.z for level, e in pred['views'].items()}
    once = own and symmetric is True  # only a pair of the very same tensors may be scored once
    spy, step = Spy(symmetric), step_of(keys, pred, keys_are_queries=own)
    pair = leveled(spy, *levels)
    close(pair(pred, step), double_loop(pred, keys, Spy(), once))
    assert len(spy.pairs) == len(levels) * (V * (V - 1) // (1 + once) + local * V)
    place = {t.data_ptr(): (name, i) for name, e in pred['views'].items() for i, t in enumerate(e.z)}
    for q, k in spy.pairs:
        if own and q.data_ptr() in place: assert place[q.data_ptr()] != place[k.data_ptr()]  # no view meets its own key


@pytest.mark.parametrize('keys,meet', [(OTHER, int.__ne__), (EVERY, lambda i, j: True), (SAME, int.__eq__)])
@pytest.mark.parametrize('loss', [InfoNCE(0.3), NegCosine(), SwAVLoss(), DINOLoss()])
@pytest.mark.parametrize('V,M', [(2, 0), (3, 0), (2, 3), (3, 1)])
def test_a_role_meets_the_keys_that_it_looks_for(loss, keys, meet, V, M):
    "One query of each picture and view, or M; pairs that are scored one by one, and such as are scored together"
    q = torch.randn(V, *([M] if M else []), 4, 3, dtype=torch.float64)
    k = torch.randn(V, 4, 3, dtype=torch.float64)
    step = Step(keys={'final': k}, queries={'views': keys})
    pairs = [(i, j) for i in range(V) for j in range(V) if meet(i, j)]
    expected = [loss(each, k[j]) for i, j in pairs for each in (q[i] if M else q[i][None])]
    assert len(expected) == len(pairs) * max(M, 1)
    close(PairLoss(loss)({'views': {'final': Embedding(q, q)}}, step), sum(expected) / len(expected))


def test_equal_keys_that_are_other_tensors_are_scored_both_ways():
    pred, spy = {'views': embeddings(2, 'final', predicted=False)}, Spy(True)
    PairLoss(spy)(pred, step_of({'final': pred['views']['final'].z.clone()}, pred))
    assert len(spy.pairs) == 2


def test_several_queries_for_each_key():
    V, M = 2, 3
    q = torch.randn(V, M, 4, 3, dtype=torch.float64, requires_grad=True)
    k = torch.randn(V, 4, 3, dtype=torch.float64)
    pred = {'views': {'final': Embedding(q, q, q * 2)}}
    got = PairLoss(InfoNCE(0.3))(pred, step_of({'final': k}, pred))
    close(got, sum(InfoNCE(0.3)(q[i, m], k[1 - i]) for i in range(V) for m in range(M)) / (V * M))


def test_a_labelled_role_is_no_query():
    pred = {'views': embeddings(2, 'final'), 'labeled': embeddings(1, 'final')}
    spy = Spy()
    PairLoss(spy)(pred, step_of({'final': pred['views']['final'].z}, pred))
    assert len(spy.pairs) == 2


def test_levels_without_keys_are_not_scored():
    pred, spy = {'views': embeddings(2, 'layer3', 'final')}, Spy()
    leveled(spy, 'layer3')(pred, step_of({'layer3': pred['views']['layer3'].z}, pred))
    assert len(spy.pairs) == 2


def test_one_view_has_no_pairs():
    class One(ViewMaker):
        def forward(self, images, size=None): return {self.role: images[None]}
    learn = plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget())
    learn.views = One(9, 1, 'views')
    with pytest.raises(InputError, match='view'): learn.fit(1, LR)
