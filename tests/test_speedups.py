"""The speedups: each against a slow version with loops over views, patches, combinations, pictures and locations; what they leave
alone, bit for bit; every set of them with every method; what a removed one leaves behind; and what is refused.

The slow versions use a learner's modules (copies of them) and its views, and nothing else of the library."""
import copy
import itertools
import math
import signal
from collections import Counter
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Recorder
from test_methods import ARCH, LR, SIDE, B, D, K, Seen, build, codes, cos, pictures, quick, refusal, small, soft_cross_entropy, unit, same_gradients
from test_step import After, Plain, interrupt, sgd
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.learner import ContrastiveLearner, contrastive_learner
from fastcontrast.losses import DCL, DCLW, InfoNCE, NTXent
from fastcontrast.models import ContrastiveModel, Head, mlp
from fastcontrast.recipes import METHODS
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt
from fastcontrast.step import Contrast, MultiCrop, PairLoss
from fastcontrast.targets import EMATarget, NearestNeighbours, Queue, SharedTarget, StopGradTarget
from fastcontrast.views import Views

close = torch.testing.assert_close
STAGES = ('layer1', 'layer2', 'layer3', 'layer4')
LEVELS = ('layer1', 'layer2', 'layer3', 'final')  # what IntermediateLoss() scores
TEMPS = dict(simclr=0.2, moco_v2=0.2, moco_v3=0.2, fast_moco=0.2, nnclr=0.2)


@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(3)


# --- the slow version

def made(name: str, cbs=(), n=B, **changes) -> ContrastiveLearner:
    "A small learner in float64, one batch long; a moving average is moved off, so that it is told from the network"
    if name == 'moco_v2': cbs = [*cbs, Queue(9)]
    if name == 'nnclr': cbs = [*cbs, NearestNeighbours(9)]
    learn = build(small(name, 'cifar', **{'opt': 'sgd', **({'prototypes_frozen': 0, 'memory': None} if name in ('swav', 'dino') else {}),
                                         **({'clip_each': None} if name == 'dino' else {}), **changes}), n=n, cbs=cbs)
    if 'ema' in learn.model.memory:
        with torch.no_grad():
            for p in learn.ema_target.target.parameters(): p.mul_(1 + 0.2 * torch.randn_like(p))
    return learn


def walk(encoder, x, start=None, upto=None) -> dict:
    "What the stages of timm's ResNet give, by hand; `final` is pooled. From after the stage `start`, to the stage `upto`"
    out = {}
    if start is None: x = encoder.maxpool(encoder.act1(encoder.bn1(encoder.conv1(x))))
    for stage in STAGES[0 if start is None else STAGES.index(start) + 1:]:
        x = out[stage] = encoder.get_submodule(stage)(x)
        if stage == upto: return out
    out['final'] = x.mean((2, 3))
    return out


def pooled(maps: dict) -> dict: return {level: x.mean((2, 3)) if x.ndim == 4 else x for level, x in maps.items()}


def cut(x, n: int) -> list:
    "The patches of pictures [B, C, S, S], row by row"
    side = x.shape[-1] // n
    start = (x.shape[-1] - n * side) // 2
    return [x[..., start + i * side:start + (i + 1) * side, start + j * side:start + (j + 1) * side] for i in range(n) for j in range(n)]


def mean_of(parts) -> torch.Tensor: return sum(parts) / len(parts)


class Slow:
    "One step of a method, from its paper, with a list of queries for every view"
    def __init__(self, learn, levels=('final',), weights=None):
        self.recipe, self.name, self.levels, self.weights = learn.recipe, learn.recipe.name, levels, weights or dict.fromkeys(levels, 1)
        memory = learn.model.memory
        rings = memory['queue'] if 'queue' in memory else memory['neighbours'] if 'neighbours' in memory else {}
        self.rows = {level: [r.clone() for r in ring.rows] for level, ring in rings.items()}
        self.teacher = copy.deepcopy(learn.ema_target.target) if 'ema' in memory else None
        self.net = copy.deepcopy(learn.model).train()
        self.net.memory.clear()
        if self.teacher: assert self.teacher.train().heads.keys() >= set(levels)

    def in_passes(self, views: list) -> list[list[int]]:
        "Which views share a pass, hence BatchNorm's statistics"
        return [[v] for v in range(len(views))] if self.recipe.per_view else [list(range(len(views)))]

    def encode(self, views: list[list], net=None) -> list[list[dict]]:
        "Parts of views, [B, C, h, w] each, to their features by level; views in a list, their parts in lists"
        out = [[] for _ in views]
        for some in self.in_passes(views):
            parts = [x for v in some for x in views[v]]
            features = pooled(walk((net or self.net).encoder, torch.cat(parts)))
            split = {level: h.split([len(x) for x in parts]) for level, h in features.items()}
            i = 0
            for v in some:
                for _ in views[v]:
                    out[v].append({level: h[i] for level, h in split.items()})
                    i += 1
        return out

    def heads(self, views: list[list], level: str, net=None, edit=lambda place, x: x) -> tuple[list[list], list[list]]:
        "Features [B, C] to projections and predictions; all that share a pass share BatchNorm's statistics"
        zs, ps = [[] for _ in views], [[] for _ in views]
        head = (net or self.net).heads[level]
        def apply(f, some, rows):
            done = f(torch.cat([x for v in some for x in rows[v]])).split(B)
            return {v: [done[sum(len(rows[u]) for u in some if u < v) + i] for i in range(len(rows[v]))] for v in some}
        for some in self.in_passes(views):
            z = {v: edit('projector', rows) for v, rows in apply(head.projector, some, views).items()}
            p = z
            if head.predictor is not None: p = {v: edit('predictor', rows) for v, rows in apply(head.predictor, some, z).items()}
            for v in some: zs[v], ps[v] = z[v], p[v]
        return zs, ps

    def keys(self, views) -> list[dict]:
        "What the target makes of whole views, by level"
        net = self.teacher or self.net
        with torch.set_grad_enabled(self.teacher is None and not self.stops):
            encoded = self.encode([[x] for x in views], net)
            z = {level: self.heads([[e[level] for e in view] for view in encoded], level, net)[0] for level in self.levels}
        return [{level: z[level][v][0] for level in self.levels} for v in range(len(views))]

    stops = property(lambda self: self.name == 'simsiam')

    def pair(self, level: str, q, k):
        "The loss of one query of each picture, [B, D], with the keys [B, D]"
        if hasattr(self, f'pair_{self.name}'): return getattr(self, f'pair_{self.name}')(level, q, k)
        temp = TEMPS[self.name]
        return sum(-torch.log((cos(q[i], k[i]) / temp).exp() / sum((cos(q[i], k[j]) / temp).exp() for j in range(B))) for i in range(B)) / B

    def pair_moco_v3(self, level, q, k):  # ctr(q1, k2) + ctr(q2, k1), each times 2τ; the mean over both directions is taken later
        temp = TEMPS[self.name]
        return 2 * 2 * temp * F.cross_entropy(unit(q) @ unit(k).T / temp, torch.arange(B))

    def pair_moco_v2(self, level, q, k):
        def sim(a, b): return (cos(a, b) / TEMPS[self.name]).exp()
        return -sum(torch.log(sim(q[i], k[i]) / (sim(q[i], k[i]) + sum(sim(q[i], row) for row in self.rows[level]))) for i in range(B)) / B

    def pair_simclr(self, level, q, k):
        z = unit(torch.cat([q, k]))
        s = (z @ z.T / TEMPS[self.name]).exp()
        return -sum(torch.log(s[i, (i + B) % (2 * B)] / sum(s[i, j] for j in range(2 * B) if j != i)) for i in range(2 * B)) / (2 * B)

    def pair_byol(self, level, q, k): return 2 * ((unit(q) - unit(k))**2).sum(1).mean()  # both directions are summed in the paper

    def pair_simsiam(self, level, q, k): return -cos(q, k).mean()

    def pair_nnclr(self, level, q, k):
        near = torch.stack([max(self.rows[level], key=lambda row: cos(one, row).item()) for one in k.detach()])
        return F.cross_entropy(unit(near) @ unit(q).T / TEMPS[self.name], torch.arange(B))

    def scores(self, level, z, net=None):
        weight = (net or self.net).heads[level].prototypes.weight
        return unit(z) @ (unit(weight) if self.name == 'dino' else weight).T

    def pair_swav(self, level, q, k):
        with torch.no_grad(): code = codes(self.scores(level, k))
        return soft_cross_entropy(code, self.scores(level, q), 0.1)

    def pair_dino(self, level, q, k):
        with torch.no_grad(): t = (self.scores(level, k, self.teacher) / 0.04).softmax(1)  # the centre begins at 0
        return soft_cross_entropy(t, self.scores(level, q), 0.1)

    def pair_barlow_twins(self, level, q, k):
        z1, z2 = (F.batch_norm(z, None, None, training=True, eps=1e-5) for z in (q, k))
        c = z1.T @ z2 / B
        return 0.1 * sum((1 - c[i, i])**2 if i == j else 5.1e-3 * c[i, j]**2 for i in range(D) for j in range(D))

    def pair_vicreg(self, level, q, k):
        def std(z): return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        def cov(z):
            c = (z - z.mean(0)).T @ (z - z.mean(0)) / (B - 1)
            return sum(c[i, j]**2 for i in range(D) for j in range(D) if i != j) / D
        return 25 * F.mse_loss(q, k) + 25 * (std(q) + std(k)) + cov(q) + cov(k)

    def pairs(self, n_queries: int, n_keys: int, apart: bool = False) -> list:
        "Which query view meets which key view"
        if apart: return list(itertools.product(range(n_queries), range(n_keys)))
        return [(i, j) for i in range(n_queries) for j in range(n_keys) if i != j]

    def total(self, queries: dict[str, list[list]], keys: list[dict], pairs) -> torch.Tensor:
        "The weighted mean over levels of the mean over pairs of views of the mean over queries"
        def level_loss(level): return mean_of([mean_of([self.pair(level, q, keys[j][level]) for q in queries[level][i]]) for i, j in pairs])
        return sum(self.weights[level] * level_loss(level) for level in self.levels) / sum(self.weights[level] for level in self.levels)

    def split(self, views) -> tuple[list, list, list]:
        "Query views, key views, and who meets whom"
        if self.recipe.one_way: return [views[0]], [views[1]], [(0, 0)]
        return [*views], [*views], self.pairs(2, 2)

    def combined(self, views, n, subsets, merge=mean_of, place='final', same=False) -> torch.Tensor:
        "Patches of the query views are encoded, every subset of them is merged, and meets the key of the other view"
        asked, whole, pairs = self.split(views)
        if same:
            whole = asked
            pairs = [(i, i) for i in range(len(asked))]
        keys = self.keys(whole)
        patches = self.encode([cut(x, n) for x in asked])
        def every(rows): return [merge([rows[i] for i in subset]) for subset in subsets]
        queries = {}
        for level in self.levels:
            h = [[part[level] for part in view] for view in patches]
            if place == 'final': h = [every(rows) for rows in h]
            queries[level] = self.heads(h, level, edit=lambda at, rows: every(rows) if at == place else rows)[1]
        return self.total(queries, keys, pairs)


def agree(learn, slow, loss, rel=1e-8):
    "The learner's first step, loss and gradients, and the slow version's"
    value, grads = learn.diary.losses[0], learn.diary.grads[0]
    assert loss.item() == pytest.approx(value, rel=rel)
    loss.backward()
    same_gradients(grads, slow.net, rel)


# --- CombinePatches

ALL = ['simclr', 'moco_v2', 'moco_v3', 'byol', 'simsiam', 'nnclr', 'swav', 'barlow_twins', 'vicreg']


def patched(name, cb, cbs=(), levels=('final',), **how):
    "A step with CombinePatches against the slow one"
    learn = made(name, [cb, *cbs])
    slow = Slow(learn, levels)
    learn.fit(1, LR)
    agree(learn, slow, slow.combined(learn.views.made[0]['views'], **how))
    return learn


@pytest.mark.parametrize('name', ALL)
def test_every_pair_of_patches_finds_the_whole_other_view(name):
    patched(name, CombinePatches(), n=2, subsets=[(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'swav', 'byol'])
@pytest.mark.parametrize('n,m', [(2, 1), (2, 3), (2, 4), (3, 4), (3, 1)])
def test_other_numbers_of_patches(name, n, m):
    if (n, m) == (3, 4) and name in ('simclr', 'swav'): return other_numbers_in_part(name)
    patched(name, CombinePatches(n, m), n=n, subsets=list(itertools.combinations(range(n * n), m)))


def other_numbers_in_part(name):
    "126 combinations, too many for a slow version with loops over pictures: nine of them"
    cb = CombinePatches(3, 4, combinations=9)
    assert Counter(i for c in cb.subsets for i in c) == dict.fromkeys(range(9), 4) and len(set(cb.subsets)) == 9
    patched(name, cb, n=3, subsets=cb.subsets)


@pytest.mark.parametrize('name', ['moco_v3', 'nnclr', 'swav'])
@pytest.mark.parametrize('count', [2, 4])
def test_fewer_combinations(name, count):
    cb = CombinePatches(combinations=count)
    assert len(set(map(frozenset, cb.subsets))) == count and set(Counter(i for c in cb.subsets for i in c).values()) == {count // 2}
    patched(name, cb, n=2, subsets=cb.subsets)


@pytest.mark.parametrize('n,m', [(2, 1), (2, 2), (2, 3), (2, 4), (3, 2), (3, 3), (3, 4), (3, 6), (4, 2), (4, 4)])
def test_every_allowed_number_of_combinations_uses_the_patches_alike(n, m):
    P = n * n
    with pytest.raises(InputError) as e: CombinePatches(n, m, combinations=10**9)
    allowed = [int(w) for w in str(e.value).split('one of ')[1].rstrip('.').split(', ')]
    assert allowed[-1] == math.comb(P, m) or len(allowed) == 20
    for count in allowed:
        subsets = CombinePatches(n, m, combinations=count).subsets
        assert len(subsets) == len(set(map(frozenset, subsets))) == count
        assert Counter(i for c in subsets for i in c) == dict.fromkeys(range(P), count * m // P)
    for count in {*range(1, allowed[-1])} - {*allowed}:
        # none is left out that could be: m * count has to be a multiple of P (and single orbits are whole)
        assert f'combinations={count}' in refusal(CombinePatches, n, m, combinations=count)


@pytest.mark.parametrize('weights', [(0.7, 0.3), (3, 1), (0.5, 0.5), (1, 0)], ids=str)
@pytest.mark.parametrize('count', [None, 4])
def test_a_weighted_mean(weights, count):
    cb = CombinePatches(weights=weights, combinations=count)
    # every patch has every weight equally often
    for place in range(2): assert len(set(Counter(c[place] for c in cb.subsets).values())) == 1 or weights == (0.5, 0.5)
    patched('moco_v3', cb, n=2, subsets=cb.subsets, merge=lambda hs: sum(w / sum(weights) * h for w, h in zip(weights, hs)))


def test_a_weighted_mean_has_every_pair_of_patches_equally_often():
    "All pairs in one order, or in both: none counts more than another"
    pairs = Counter(map(frozenset, CombinePatches(weights=(0.7, 0.3)).subsets))
    assert len(pairs) == 6 and len(set(pairs.values())) == 1, pairs


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'byol', 'swav'])
def test_the_maximum(name):
    patched(name, CombinePatches(merge='max'), n=2, subsets=list(itertools.combinations(range(4), 2)), merge=lambda hs: torch.stack(hs).amax(0))


@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'simclr', 'simsiam', 'swav'])
def test_keys_of_the_same_view(name):
    patched(name, CombinePatches(keys='same'), n=2, subsets=list(itertools.combinations(range(4), 2)), same=True)


@pytest.mark.parametrize('name,place', [('moco_v3', 'projector'), ('moco_v3', 'predictor'), ('byol', 'predictor'), ('nnclr', 'predictor'),
                                        ('simclr', 'projector'), ('swav', 'projector')])
def test_combined_after_the_head(name, place):
    learn = patched(name, CombinePatches(combine=place), n=2, subsets=list(itertools.combinations(range(4), 2)), place=place)
    assert learn.recipe.predictor or place == 'projector'


@pytest.mark.parametrize('name', ['simclr', 'moco_v2', 'swav'])
def test_combined_after_a_predictor_that_is_not_there(name):
    "Without a predictor nothing would be combined at all: refused, naming both"
    text = refusal(made, name, [CombinePatches(combine='predictor')])
    assert 'predictor' in text and 'CombinePatches' in text


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'swav', 'moco_v2'])
def test_combinations_at_every_level(name):
    learn = patched(name, CombinePatches(), [IntermediateLoss()], levels=LEVELS, n=2, subsets=list(itertools.combinations(range(4), 2)))
    assert learn.model.levels() == LEVELS


def test_drawn_weights_are_beta_and_each_combinations_own():
    for alpha in (0.5, 1., 4.):
        cb = CombinePatches(alpha=alpha)
        eye = torch.eye(4, dtype=torch.float64)[None, :, None].expand(2, 4, 500, 4)  # features that tell the patch
        torch.manual_seed(1)
        c = cb.combined(eye)
        assert [*c.shape] == [2, 6, 500, 4]
        close(c.sum(-1), torch.ones(2, 6, 500, dtype=torch.float64))
        for (i, j), one in zip(itertools.combinations(range(4), 2), c.transpose(0, 1)):
            close(one[..., i] + one[..., j], torch.ones(2, 500, dtype=torch.float64))
            assert one.min() >= 0 and one.max() <= 1
        share = torch.stack([c[:, k, :, i] for k, (i, _) in enumerate(cb.subsets)])
        assert share.unique().numel() > 5900
        assert share.mean().item() == pytest.approx(0.5, abs=0.02) and share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
        torch.manual_seed(1)
        assert torch.equal(cb.combined(eye), c)


def test_drawn_weights_in_a_step():
    learn = made('moco_v3', [cb := CombinePatches(alpha=2.)])
    drawn, real = [], torch.distributions.Beta.sample
    class Keep(torch.distributions.Beta):
        def sample(self, *args):
            drawn.append(real(self, *args))
            return drawn[-1]
    slow = Slow(learn)
    torch.distributions.Beta, old = Keep, torch.distributions.Beta
    try: learn.fit(1, LR)
    finally: torch.distributions.Beta = old
    shares = iter([drawn[v][0, k].double() for v in range(2) for k in range(6)])  # a pass for each view
    assert len(drawn) == 2 and cb.subsets == list(itertools.combinations(range(4), 2))
    def merge(hs):
        s = next(shares)
        return s * hs[0] + (1 - s) * hs[1]
    agree(learn, slow, slow.combined(learn.views.made[0]['views'], n=2, subsets=cb.subsets, merge=merge))


# stitched before the end

def beside(parts, n, how):
    "Patches or their maps, a list row by row, in rows, columns or all together"
    grid = [parts[i * n:(i + 1) * n] for i in range(n)]
    if how == 'rows': return [torch.cat(row, -1) for row in grid]
    if how == 'columns': return [torch.cat(column, -2) for column in zip(*grid)]
    return [torch.cat([torch.cat(row, -1) for row in grid], -2)]


def stitched(slow, views, n, how, stage, levels=('final',)):
    "Patches go as far as `stage` alone and on with their neighbours"
    asked, whole, pairs = slow.split(views)
    keys, queries = slow.keys(whole), {level: [[] for _ in asked] for level in levels}
    for some in slow.in_passes(asked):
        parts = [x for v in some for x in cut(asked[v], n)]
        if stage == 'input':
            lists = [beside(parts[i * n * n:(i + 1) * n * n], n, how) for i in range(len(some))]
            maps = walk(slow.net.encoder, torch.cat(sum(lists, [])))
        else:
            early = walk(slow.net.encoder, torch.cat(parts), upto=stage)
            split = early[stage].split(B)
            lists = [beside(split[i * n * n:(i + 1) * n * n], n, how) for i in range(len(some))]
            maps = walk(slow.net.encoder, torch.cat(sum(lists, [])), start=stage)
            # before the stitching, features of patches: the mean of those that will be stitched
            for level in early:
                hs = early[level].mean((2, 3)).split(B)
                groups = dict(rows=[range(r * n, r * n + n) for r in range(n)], columns=[range(c, n * n, n) for c in range(n)], whole=[range(n * n)])[how]
                maps[level] = torch.cat([mean_of([hs[i * n * n + g] for g in group]) for i in range(len(some)) for group in groups])
        features = pooled(maps)
        per = len(lists[0])
        for level in levels:
            for i, v in enumerate(some): queries[level][v] = list(features[level].split(B)[i * per:(i + 1) * per])
    queries = {level: slow.heads(h, level)[1] for level, h in queries.items()}
    return slow.total(queries, keys, pairs)


def chosen(seed: int) -> str: return ('rows', 'columns')[np.random.default_rng(seed).integers(2)]


@pytest.mark.parametrize('stage,name,seed', [('input', 'moco_v3', 0), ('input', 'simclr', 1), ('layer1', 'moco_v3', 2), ('layer2', 'byol', 0), ('layer3', 'swav', 1), ('layer4', 'moco_v3', 3)])
@pytest.mark.parametrize('n,m', [(2, 2), (2, 4), (3, 3)])
def test_patches_stitched_before_the_end(stage, name, seed, n, m):
    learn = made(name, [CombinePatches(n, m, combine=stage, seed=seed)])
    slow = Slow(learn)
    learn.fit(1, LR)
    views = learn.views.made[0]['views']
    losses = {how: stitched(slow, views, n, how, stage) for how in (['rows', 'columns'] if m == n else ['whole'])}
    # one of the two, the same for the whole batch
    right = [how for how, loss in losses.items() if loss.item() == pytest.approx(learn.diary.losses[0], rel=1e-8)]
    assert len(right) == 1
    agree(learn, slow, losses[right[0]])
    if stage == 'input' and m == 4: close(torch.stack(beside(cut(views[0], 2), 2, 'whole'))[0], views[0])


def test_rows_and_columns_in_equal_shares_and_seeded():
    def hows(seed, steps=40):
        cb, out = CombinePatches(combine='input', seed=seed), []
        learn = quick('moco_v3', cbs=[cb], n=8 * steps)
        class Look(Callback):
            order = 25
            def before_batch(self):
                out.append('rows' if self.xb[0]['views'].shape[-1] > self.xb[0]['views'].shape[-2] else 'columns')
                raise fastai_skip
        from fastai.callback.core import CancelBatchException as fastai_skip
        learn.fit(1, 1e-3, cbs=Look())
        return out
    a = hows(0)
    assert len(a) == 40 and 10 < a.count('rows') < 30 and a[:9] == hows(0, 9) != hows(1, 9)


@pytest.mark.parametrize('stage,levels', [('layer2', ('layer1', 'layer2', 'layer3', 'final')), ('layer1', ('layer3', 'final')), ('layer4', ('layer4', 'final'))])
@pytest.mark.parametrize('m', [2, 4])
def test_levels_before_and_after_the_stitching(stage, levels, m):
    learn = made('moco_v3', [CombinePatches(2, m, combine=stage), IntermediateLoss(levels[:-1])])
    slow = Slow(learn, levels)
    learn.fit(1, LR)
    losses = [stitched(slow, learn.views.made[0]['views'], 2, how, stage, levels) for how in (['rows', 'columns'] if m == 2 else ['whole'])]
    agree(learn, slow, min(losses, key=lambda loss: abs(loss.item() - learn.diary.losses[0])))


# crops of their own

def sampled(slow, made_views, queries_of, levels=('final',)):
    "Crops, in lists of queries, find the keys of all whole views"
    _, whole, _ = slow.split(made_views['views'])
    keys = slow.keys(whole)
    features, grouped = queries_of(made_views['patches'])
    queries = {level: slow.heads([[f[level] for f in view] for view in features], level)[1] for level in levels}
    assert grouped == len(queries['final'])
    return slow.total(queries, keys, slow.pairs(grouped, len(whole), apart=True))


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'swav', 'byol', 'moco_v2'])
def test_sampled_crops_combined(name):
    "Sample-Encode-Combine: eight crops, 28 pairs, for the keys of both views"
    cb = CombinePatches(patches='sample')
    learn = made(name, [cb])
    slow = Slow(learn)
    learn.fit(1, LR)
    assert {role: [*v.shape] for role, v in learn.views.made[0].items()} == {'views': [2, B, 3, SIDE, SIDE], 'patches': [8, B, 3, SIDE // 2, SIDE // 2]}
    def queries(crops):
        hs, = slow.encode([[*crops]])
        return [[{'final': (hs[i]['final'] + hs[j]['final']) / 2} for i in range(8) for j in range(i + 1, 8)]], 1
    agree(learn, slow, sampled(slow, learn.views.made[0], queries))


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'swav', 'simsiam', 'moco_v2'])
def test_sampled_crops_alone(name):
    "Encode-Only: four crops of half the area, each against the keys of both views"
    learn = made(name, [CombinePatches(patches='sample', combine=None)])
    slow = Slow(learn)
    learn.fit(1, LR)
    side = learn.views.made[0]['patches'].shape[-1]
    assert [*learn.views.made[0]['patches'].shape[:3]] == [4, B, 3] and abs(side**2 / SIDE**2 - 0.5) < 0.12
    agree(learn, slow, sampled(slow, learn.views.made[0], lambda crops: (slow.encode([[x] for x in crops]), 4)))


@pytest.mark.parametrize('name', ['moco_v3', 'simclr'])
def test_sampled_strips(name):
    "Sample-Combine-Encode: crops in the shape of two patches side by side"
    cb = CombinePatches(patches='sample', combine='input')
    learn = made(name, [cb])
    slow = Slow(learn)
    learn.fit(1, LR)
    crops = learn.views.made[0]['patches']
    assert [*crops.shape] == [4, B, 3, SIDE, SIDE]
    def of(slicing): return lambda crops: (slow.encode([[slicing(x) for x in crops]]), 1)
    quarter, three = SIDE // 4, 3 * SIDE // 4
    losses = [sampled(slow, learn.views.made[0], of(s)) for s in (lambda x: x[..., quarter:three, :], lambda x: x[..., quarter:three])]
    agree(learn, slow, min(losses, key=lambda loss: abs(loss.item() - learn.diary.losses[0])))


class Local(nn.Module):
    "An encoder whose cells see their own patch alone: 2 x 2 pixels, then 1 x 1 convolutions, without BatchNorm"
    def __init__(self):
        super().__init__()
        self.stem, self.mid, self.end = nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 10, 1)
        self.feature_info = [dict(module=m, num_chs=c, reduction=2) for m, c in (('stem', 8), ('mid', 8), ('end', 10))]
        self.pretrained_cfg = {}
    def forward(self, x): return torch.tanh(self.end(torch.tanh(self.mid(torch.tanh(self.stem(x)))))).mean((2, 3))


def local_learner(*cbs, target=EMATarget, loss=None, size=8, n=6):
    dls = DataLoaders([(torch.rand(n, 3, 10, 10, dtype=torch.float64), torch.zeros(n))], [], device='cpu')
    dls.n_inp, dls.size = 1, size
    model = ContrastiveModel(Local(), Head(mlp((10, 9, 5), bn=False)))
    learn = ContrastiveLearner(dls, model, PairLoss(loss or InfoNCE(0.2)), opt_func=sgd, cbs=[Contrast(Views(size), Plain())])
    learn.remove_cbs([Recorder, ProgressCallback])
    learn.add_cbs([*cbs, target()])
    learn.model.double()
    return learn


@pytest.mark.parametrize('n,size,batch', [(2, 8, 6), (2, 12, 5), (3, 12, 4)])
def test_a_montage_comes_apart_as_it_was_put_together(n, size, batch):
    "Where cells see their own patch alone, features of patches in a montage are those of patches alone, of the right picture and crop"
    learn, seen = local_learner(CombinePatches(n, 2, patches='montage', combinations=2 * n * n), size=size, n=batch), {}
    whole = []
    class Look(Callback):
        order = 22
        def before_batch(self): seen['xb'] = {role: x.clone() for role, x in self.xb[0].items()}
        def after_pred(self): seen['h'] = self.pred['patches']['final'].h.detach().clone()
    class Keep(nn.Module):
        def __init__(self, views):
            super().__init__()
            self.views = views
        def forward(self, x):
            whole.append(self.views(x))
            return whole[-1]
    learn.views = Keep(learn.views)
    encoder, cb = copy.deepcopy(learn.model.encoder), learn.combine_patches
    learn.fit(1, LR, cbs=Look())
    patches = whole[0]['patches']
    side = size // n
    assert [*patches.shape] == [2 * n * n, batch, 3, side, side]
    assert [*seen['xb']['patches'].shape] == [1, 2 * batch, 1, 3, n * side, n * side] and 'views' not in seen['xb']
    with torch.no_grad(): alone = torch.stack([encoder(x) for x in patches])
    for k, subset in enumerate(cb.subsets): close(seen['h'][0, k], mean_of([alone[i] for i in subset]), rtol=1e-12, atol=1e-12)
    # montages mix pictures, and hold every patch once
    tiles = [t for montage in seen['xb']['patches'][0, :, 0] for t in cut(montage, n)]
    where = [next((p, b) for p in range(2 * n * n) for b in range(batch) if torch.equal(patches[p, b], t)) for t in tiles]
    assert len(set(where)) == 2 * n * n * batch
    groups = [{b for _, b in where[i:i + n * n]} for i in range(0, len(where), n * n)]
    assert max(map(len, groups)) > 1


def test_a_montage_in_a_real_encoder_has_one_feature_for_each_patch():
    learn = contrastive_learner(pictures(2 * B, 64), ARCH, method=small('moco_v3', 'cifar'), small_input=False, cbs=[CombinePatches(patches='montage'), seen := Seen(25)])
    learn.create_mbar = False
    learn.fit(1, LR)
    assert [[*q['patches'].shape] for q, _ in seen.steps] == [[1, 28, B, D]] * 2


@pytest.mark.parametrize('n,m,combine,expected', [(2, 2, 'final', 1 / 4), (3, 4, 'final', 1 / 9), (2, 2, None, 1 / 2), (2, 2, 'input', 1)])
def test_sampled_crops_are_as_large_in_the_picture_as_what_they_stand_for(n, m, combine, expected):
    cb = CombinePatches(n, m, patches='sample', combine=combine, combinations=18 if n == 3 else None)
    quick('moco_v3', cbs=[cb])
    low, high = cb.maker.strength.scale
    assert (low, high) == pytest.approx((0.08 * expected, expected))


def test_small_crops_beside_the_patches_stay_whole():
    "Multi-crop: patches and small crops ask, whole large crops answer"
    learn = build(small('moco_v3', 'cifar', opt='sgd'), n=B, cbs=[CombinePatches(), MultiCrop((2, None, (.4, 1)), (2, 16, (.1, .4)))])
    slow = Slow(learn)
    learn.fit(1, LR)
    views = learn.views.made[0]
    keys = slow.keys(views['views'])
    large = [[mean_of([hs[i]['final'], hs[j]['final']]) for i, j in itertools.combinations(range(4), 2)] for hs in slow.encode([cut(x, 2) for x in views['views']])]
    crops = [[h['final'] for h in view] for view in slow.encode([[x] for x in views['local']])]
    (_, p), (_, p_local) = slow.heads(large, 'final'), slow.heads(crops, 'final')
    pairs = [mean_of([slow.pair('final', q, keys[j]['final']) for q in p[i]]) for i, j in ((0, 1), (1, 0))]
    pairs += [slow.pair('final', p_local[i][0], keys[j]['final']) for i in range(2) for j in range(2)]
    agree(learn, slow, mean_of(pairs))


@pytest.mark.parametrize('side,n', [(32, 3), (33, 2), (32, 2)])
def test_patches_are_the_middle_of_a_view_that_n_does_not_divide(side, n):
    learn = contrastive_learner(pictures(8, side, 8), ARCH, method=small('moco_v3', 'cifar'), small_input=False, cbs=[CombinePatches(n, 1)])
    seen = []
    class Look(Callback):
        order = 22
        def before_batch(self): seen.append((self.xb[0]['views'], self.key_views))
    learn.fit(1, 1e-3, cbs=Look())
    (patches, whole), = seen
    for v in range(2):
        for p, x in enumerate(cut(whole[v], n)): assert torch.equal(patches[v, p], x)


def test_one_pass_for_all_patches_and_one_for_the_keys():
    sizes, learn = [], quick('simclr', cbs=[CombinePatches()], n=8)
    learn.model.encoder.register_forward_pre_hook(lambda m, x: sizes.append([*x[0].shape]))
    learn.fit(1, 1e-3)
    assert sorted(sizes) == [[16, 3, 16, 16], [64, 3, 8, 8]]


def test_fast_moco_is_moco_v3_with_patches_and_the_papers_optimizer():
    learn = made('fast_moco')
    assert isinstance(learn.combine_patches, CombinePatches)
    slow = Slow(learn)
    learn.fit(1, LR)
    loss = slow.combined(learn.views.made[0]['views'], 2, list(itertools.combinations(range(4), 2)))
    assert loss.item() == pytest.approx(learn.diary.losses[0], rel=1e-8)
    r = METHODS['fast_moco']().resolve('imagenet')
    assert (r.opt, r.lr * 2, r.wd, r.clip, r.warmup, r.warmup_from * r.lr * 2, r.predictor_constant_lr) == ('sgd', 0.1, 1e-4, 1.0, 1, 0.025, True)
    assert (r.projector, r.predictor, r.loss().temp) == ((2048, 2048, 2048), (512, 2048), 1.0)
    target = r.target()
    assert (target.momentum, target.schedule) == (0.99, 'constant')


# --- IntermediateLoss

def whole_views(slow, views): return slow.combined(views, 1, [(0,)])


@pytest.mark.parametrize('weights', [1., (0.5, 2., 0.25)], ids=str)
@pytest.mark.parametrize('name', [*ALL, 'dino'])
def test_every_level_has_the_methods_loss_and_the_targets_key_of_that_level(name, weights):
    if name == 'barlow_twins' and weights != 1.: name = 'vicreg'
    learn = made(name, [IntermediateLoss(weights=weights)])
    slow = Slow(learn, LEVELS, dict(zip(LEVELS, [*([weights] * 3 if weights == 1. else weights), 1])))
    # heads of levels are of the same make, and have weights of their own
    for level in LEVELS[:-1]: assert [type(m) for m in learn.model.heads[level].modules()] == [type(m) for m in learn.model.heads.final.modules()]
    last = [[m for m in learn.model.heads[level].projector if isinstance(m, nn.Linear)][-1].weight for level in LEVELS]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(last, 2))
    learn.fit(1, LR)
    agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))


@pytest.mark.parametrize('target', [SharedTarget, StopGradTarget, EMATarget])
def test_levels_with_every_target(target, monkeypatch):
    learn = made('moco_v3', [IntermediateLoss(('layer2',)), target()])
    slow = Slow(learn, ('layer2', 'final'))
    if target is StopGradTarget: slow.name, slow.pair_simsiam = 'simsiam', slow.pair_moco_v3
    monkeypatch.setitem(TEMPS, 'simsiam', TEMPS['moco_v3'])
    learn.fit(1, LR)
    agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))


@pytest.mark.parametrize('stages', [('layer3', 'layer1'), (3, 1), ('layer1', 3), ['layer1', 'layer3']], ids=str)
def test_stages_by_name_and_by_place_in_any_order(stages):
    learn = made('moco_v3', [IntermediateLoss(stages, (2., 2.))])
    assert learn.model.levels() == ('layer1', 'layer3', 'final')
    slow = Slow(learn, ('layer1', 'layer3', 'final'), dict(layer1=2, layer3=2, final=1))
    learn.fit(1, LR)
    agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))


def test_weights_go_with_their_stage():
    learn = made('simclr', [IntermediateLoss(('layer3', 'layer1'), (2., 0.5))])
    slow = Slow(learn, ('layer1', 'layer3', 'final'), dict(layer1=0.5, layer3=2., final=1))
    learn.fit(1, LR)
    agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))


@pytest.mark.parametrize('weights', [(1., 2.), (1., 2., 3., 4.), ()], ids=str)
def test_one_weight_for_each_of_the_default_stages(weights):
    "Else stages would be left out, or weights"
    text = refusal(made, 'simclr', [IntermediateLoss(weights=weights)])
    assert 'weights' in text or 'weight' in text


@pytest.mark.parametrize('name,ring', [('moco_v2', 'queue'), ('nnclr', 'neighbours'), ('swav', 'queue')])
def test_every_level_remembers_its_own_keys(name, ring):
    seen = {}
    class Look(Callback):
        order = 21
        def after_pred(self):
            for level, k in self.yb[0].items(): seen.setdefault(level, []).append(k.detach().clone())
    size = 2 * B if name == 'swav' else B
    learn = build(small(name, 'cifar', opt='sgd'), n=2 * B, cbs=[IntermediateLoss(), (NearestNeighbours if name == 'nnclr' else Queue)(2 * size), Look()])
    rings = learn.model.memory[ring]
    assert set(rings) == set(LEVELS)
    learn.fit(1, LR)
    for level in LEVELS:
        keys = [k[:1] if name == 'nnclr' else k for k in seen[level]]
        close(rings[level].in_order(), unit(torch.cat([k.flatten(0, 1) for k in keys])))
    assert len({r.rows.sum().item() for r in rings.values()}) == 4


def test_every_level_has_a_centre_and_prototypes_of_its_own():
    seen = {}
    class Look(Callback):
        order = 29
        def after_pred(self):
            for level, k in self.yb[0].items(): seen.setdefault(level, []).append(k.clone())
    learn = build(small('dino', 'cifar', opt='sgd'), n=2 * B, cbs=[IntermediateLoss(), Look()])
    learn.fit(1, LR)
    for level in LEVELS:
        c = torch.zeros(K, dtype=torch.float64)
        for k in seen[level]: c = 0.9 * c + 0.1 * k.mean((0, 1))
        close(learn.loss_func.of(level).center, c)
    assert len({id(learn.model.heads[level].prototypes) for level in LEVELS}) == 4


def test_a_level_that_is_added_later_has_a_centre_that_starts_anew():
    learn = quick('dino')
    learn.fit(1, 1e-3)
    assert learn.loss_func.loss.center.abs().max() > 0
    learn.add_cb(IntermediateLoss())
    for level in LEVELS[:-1]:
        center = learn.loss_func.of(level).center
        assert center is None or not center.any(), "the centre of other prototypes"


def test_the_moving_average_follows_the_heads_of_levels():
    learn = build(small('byol', 'cifar', opt='sgd'), n=2 * B, cbs=[IntermediateLoss(), EMATarget(0.5, 'constant')])
    began = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    learn.fit(1, LR)
    target = learn.ema_target.target
    for level in LEVELS:
        name = f'heads.{level}.projector.0.weight'
        ours = [w[name] for w in learn.diary.weights]
        close(target.get_parameter(name), 0.25 * began[name] + 0.25 * ours[1] + 0.5 * ours[2])
        assert target.heads[level].predictor is None


# --- PartialBackprop

def one(level: str) -> dict: return {level: 1}


@pytest.mark.parametrize('stop', [True, False], ids=['stop', 'go on'])
@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'simclr', 'swav', 'nnclr'])
def test_the_drawn_levels_loss_alone(name, level, stop):
    learn = made(name, [IntermediateLoss(weights=0.3), PartialBackprop(one(level), stop_forward=stop)])
    slow = Slow(learn, (level,))
    learn.fit(1, LR)
    assert learn.partial_backprop.drawn == level
    agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))


@pytest.mark.parametrize('level', LEVELS)
def test_the_drawn_level_of_combined_patches(level):
    learn = made('moco_v3', [CombinePatches(), IntermediateLoss(), PartialBackprop(one(level))])
    slow = Slow(learn, (level,))
    learn.fit(1, LR)
    agree(learn, slow, slow.combined(learn.views.made[0]['views'], 2, list(itertools.combinations(range(4), 2))))


def above(name: str, level: str) -> bool:
    "Whether a parameter or buffer of the model has no part in the level's loss"
    if name.startswith('heads.'): return name.split('.')[1] != level
    if not name.startswith('encoder.layer') or level == 'final': return False
    return name.split('.')[1] > level


class Untouched(Callback):
    "What a step changes and what not, and who ran"
    order = 80
    def __init__(self): self.steps, self.ran = [], []
    def before_fit(self):
        self.hooks = []
        for whose, net in (('model', self.model), ('target', self.model.memory['ema'] if 'ema' in self.model.memory else None)):
            if net is None: continue
            for n in [*STAGES, 'conv1', 'global_pool']: self.hooks.append(net.encoder.get_submodule(n).register_forward_hook(lambda *a, at=(whose, n): self.now.append(at)))
            for n, head in net.heads.items(): self.hooks.append(head.projector.register_forward_hook(lambda *a, at=(whose, f'head {n}'): self.now.append(at)))
        self.now = []
    def snapshot(self):
        out = {n: t.detach().clone() for n, t in self.model.state_dict().items() if not n.startswith('memory')}
        for n, p in self.model.named_parameters():
            for k, v in self.opt.opt.state.get(p, {}).items():
                if torch.is_tensor(v): out[f'{n} {k}'] = v.detach().clone()
        return out
    def before_batch(self): self.before = self.snapshot()
    def before_step(self): self.grads = {n for n, p in self.model.named_parameters() if p.grad is not None}
    def after_batch(self):
        after = self.snapshot()
        moved = {n for n in after if n not in self.before or not torch.equal(after[n], self.before[n])}
        self.steps.append((self.partial_backprop.drawn, moved, self.grads, set(after)))
        self.ran.append((self.partial_backprop.drawn, Counter(self.now)))
        self.now.clear()
    def after_fit(self):
        for h in self.hooks: h.remove()


@pytest.mark.parametrize('stop', [True, False], ids=['stop', 'go on'])
@pytest.mark.parametrize('opt', ['sgd', 'lars', 'adamw'])
@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'swav'])
def test_nothing_above_the_drawn_level_moves(name, opt, stop):
    "Nor by momentum or weight decay: after a step at the end everything has momentum"
    look = Untouched()
    learn = build(small(name, 'cifar', opt=opt, wd=0.1, **(dict(prototypes_frozen=0, memory=None) if name == 'swav' else {})), n=8 * B,
                  cbs=[IntermediateLoss(), PartialBackprop((0.25, 0.2, 0.2, 0.35), stop_forward=stop, seed=2), look])
    learn.fit(1, LR)
    drawn = [d for d, *_ in look.steps]
    assert set(drawn) == set(LEVELS) and 'final' in drawn[:drawn.index('layer1')], drawn
    for level, moved, grads, everything in look.steps:
        params = {n for n in dict(learn.model.named_parameters()) if not n.startswith('memory')}
        assert grads == {n for n in params if not above(n, level)}
        # without the stop BatchNorm's statistics above go on
        still = {n for n in everything if above(n, level) and not (not stop and n.startswith('encoder') and ('running' in n or 'tracked' in n))}
        still -= set() if stop else {n for n in everything if n.startswith('heads') and ('running' in n or 'tracked' in n) and name != 'moco_v3'}
        assert not moved & still, (level, sorted(moved & still)[:5])
        below = {n for n in params if not above(n, level)}
        assert len(moved & below) > 0.8 * len(below)


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'simsiam', 'moco_v2'])
@pytest.mark.parametrize('stop', [True, False], ids=['stop', 'go on'])
def test_no_module_above_the_drawn_level_runs(name, stop):
    look = Untouched()
    memory = dict(memory=partial(Queue, 8)) if name == 'moco_v2' else {}
    learn = quick(name, cbs=[IntermediateLoss(), PartialBackprop(stop_forward=stop, seed=5), look], n=64, **memory)
    learn.fit(1, 1e-3)
    assert {d for d, _ in look.ran} == set(LEVELS)
    for level, ran in look.ran:
        at = len(STAGES) if level == 'final' else STAGES.index(level) + 1
        ours, theirs = ({n: c for (whose, n), c in ran.items() if whose == side} for side in ('model', 'target'))
        encoder = {'conv1', *STAGES[:at], *(['global_pool'] if level == 'final' else [])} if stop else {'conv1', *STAGES, 'global_pool'}
        assert {n for n in ours if 'head' not in n} == encoder
        assert {n for n in ours if 'head' in n} == {f'head {level}'}
        passes = 2 if name in ('moco_v3', 'simsiam') else 1
        assert set(ours.values()) == {passes}
        if name in ('moco_v3', 'moco_v2'):
            assert {n for n in theirs if 'head' not in n} == encoder
            assert {n for n in theirs if 'head' in n} == ({f'head {level}'} if stop else {f'head {one}' for one in LEVELS})
        else: assert not theirs


def draws(cb, steps: int) -> list[str]:
    "The levels a callback of a learner draws"
    from fastcontrast.models import Route
    cb.before_fit()
    out = []
    for _ in range(steps):
        cb.learn.xb = ({}, Route())
        cb.before_batch()
        out.append(cb.drawn)
        assert cb.xb[1].levels == (cb.drawn,)
    return out


@pytest.mark.parametrize('probs', [(0.1, 0.2, 0.3, 0.4), None, (0.5, 0., 0.5, 0.), {'final': 0.25, 'layer1': 0.75}, {1: 0.5, 'layer3': 0.5}, (0., 0., 0., 1.)], ids=str)
def test_levels_are_drawn_as_often_as_they_should_be(probs):
    learn = quick('simclr', cbs=[IntermediateLoss(), PartialBackprop(probs)], n=8)
    expected = dict(zip(LEVELS, [0.25] * 4 if probs is None else probs)) if not isinstance(probs, dict) else {('layer1' if k == 1 else k): p for k, p in probs.items()}
    n, counts = 4000, Counter(draws(learn.partial_backprop, 4000))
    for level in LEVELS:
        p = expected.get(level, 0)
        assert abs(counts[level] - n * p) <= 4 * math.sqrt(n * p * (1 - p)) + 1e-9
    assert learn.partial_backprop.chances() == pytest.approx({level: expected.get(level, 0) for level in LEVELS})


def test_draws_are_seeded_and_not_torchs():
    def run(seed, torch_seed):
        learn = quick('simclr', cbs=[IntermediateLoss(), PartialBackprop(seed=seed)], n=8)
        torch.manual_seed(torch_seed)
        state = torch.get_rng_state()
        out = draws(learn.partial_backprop, 60)
        assert torch.equal(torch.get_rng_state(), state)
        return out
    assert run(0, 1) == run(0, 2) != run(1, 1)


def test_draws_go_on_after_a_fit():
    "Two fits of 8 steps are not twice the same draws"
    drawn = []
    class Look(Callback):
        order = 21
        def after_pred(self): drawn.append(self.partial_backprop.drawn)
    learn = quick('simclr', cbs=[IntermediateLoss(), PartialBackprop(), Look()], n=64)
    learn.fit(1, 1e-3)
    learn.fit(1, 1e-3)
    assert drawn == draws(quick('simclr', cbs=[IntermediateLoss(), PartialBackprop()], n=8).partial_backprop, 16)
    assert drawn[:8] != drawn[8:]


def test_the_expected_cost_is_that_of_the_stages():
    learn = contrastive_learner(pictures(8, SIDE, 8), ARCH, method=small('simclr', 'cifar'), small_input=False, cbs=[IntermediateLoss(), PartialBackprop()])
    assert learn.partial_backprop.expected_cost() < 1
    def macs(level):
        total, encoder, hooks = [0], learn.model.encoder, []
        def count(m, args, out): total[0] += out.numel() * m.weight[0].numel()
        for m in encoder.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)): hooks.append(m.register_forward_hook(count))
        with torch.no_grad(): walk(encoder.eval(), torch.zeros(1, 3, SIDE, SIDE), upto=level)
        for h in hooks: h.remove()
        encoder.train()
        return total[0]
    costs = [macs(level) for level in LEVELS]
    mean = sum(costs) / 4 / costs[-1]
    assert learn.partial_backprop.expected_cost() == pytest.approx(mean, rel=1e-6)
    learn.remove_cb(PartialBackprop)
    learn.add_cb(cb := PartialBackprop((0.5, 0, 0, 0.5), stop_forward=False))
    assert cb.expected_cost() == pytest.approx((1 + 2 * (costs[0] + costs[-1]) / 2 / costs[-1]) / 3, rel=1e-6)


# --- HardRegions

def each(slow, q, k):
    "A number for every query [B, D]: InfoNCE's, of the query among all keys, where the method's loss is of that kind, else minus the cosine"
    temp = TEMPS.get(slow.name)
    if temp is None: return -cos(q, k)
    scale = 4 * temp if slow.name == 'moco_v3' else 1
    return torch.stack([-scale * torch.log((cos(q[i], k[i]) / temp).exp() / sum((cos(q[i], k[j]) / temp).exp() for j in range(len(k)))) for i in range(len(q))])


def hardest(slow, views, stage, sides, levels, heats=None, cells=None, n=1):
    "The stage's loss at every location, the best window by trying all, and the later stages on that; views in n x n patches"
    asked, whole, pairs = slow.split(views)
    parts = [cut(x, n) for x in asked]
    divided, own_keys = n > 1, slow.teacher is None
    # a network that makes its keys on the way has both views in one pass
    together = own_keys and not divided
    keys = slow.keys(whole) if not together else None
    head, queries = slow.net.heads[stage], {level: [[] for _ in asked] for level in levels}
    kept = [[] for _ in asked]
    for some in ([[*range(len(asked))]] if together else slow.in_passes(asked)):
        xs = [(v, x) for v in some for x in parts[v]]
        early = walk(slow.net.encoder, torch.cat([x for _, x in xs]), upto=stage)
        maps = early[stage].split(B)
        with torch.no_grad():
            fine = [F.adaptive_avg_pool2d(m, cells) if cells else m for m in maps]
            H, W = fine[0].shape[-2:]
            at = [m[:, :, y, x] for m in fine for y in range(H) for x in range(W)]
            net = copy.deepcopy(head)
            z = net.projector(torch.cat(at))
            p = (net.predictor(z) if net.predictor is not None else z).split(B)
            if together:
                small_keys = net.projector(torch.cat([m.mean((2, 3)) for m in maps])).split(B)
                found = [{stage: k} for k in small_keys]
            else: found = keys
            heat = []
            for i, (v, _) in enumerate(xs):
                others = [j for a, j in pairs if a == v]
                rows = [mean_of([each(slow, p[(i * H + y) * W + x], found[j][stage]) for j in others]) for y in range(H) for x in range(W)]
                heat.append(torch.stack(rows, 1).view(B, H, W))
            if cells: heat = [F.interpolate(h[:, None], maps[0].shape[-2:], mode='bilinear')[:, 0] for h in heat]
        windows = []
        for (v, _), m, loss in zip(xs, maps, heat):
            h, w = sides
            out = []
            for b in range(B):
                top, left = max(((y, x) for y in range(m.shape[2] - h + 1) for x in range(m.shape[3] - w + 1)), key=lambda a, b=b, loss=loss: loss[b, a[0]:a[0] + h, a[1]:a[1] + w].mean().item())
                out.append(m[b, :, top:top + h, left:left + w])
                kept[v].append((top, left))
            windows.append(torch.stack(out))
            if heats is not None: heats.append((v, loss))
        late = walk(slow.net.encoder, torch.cat(windows), start=stage)
        for level, h in pooled({**early, **late}).items():
            if level in levels:
                for (v, _), one_h in zip(xs, h.split(B)): queries[level][v].append(one_h)
    return asked, pairs, keys, queries, kept


def regions(slow, views, stage, sides, levels, subsets=None, heats=None, cells=None, n=1):
    asked, pairs, keys, h, kept = hardest(slow, views, stage, sides, levels, heats, cells, n)
    if subsets: h = {level: [[mean_of([view[i] for i in s]) for s in subsets] for view in rows] for level, rows in h.items()}
    per_view, slow.recipe = slow.recipe, slow.recipe
    if keys is None:  # one pass: keys are the projections of what was kept
        import dataclasses
        slow.recipe = dataclasses.replace(slow.recipe, per_view=False)
    heads = {level: slow.heads(rows, level) for level, rows in h.items()}
    slow.recipe = per_view
    if keys is None: keys = [{level: heads[level][0][v][0].detach() if slow.stops else heads[level][0][v][0] for level in levels} for v in range(len(asked))]
    return slow.total({level: p for level, (_, p) in heads.items()}, keys, pairs), kept


@pytest.mark.parametrize('stage,keep', [('layer1', 0.5), ('layer2', 0.5), ('layer2', 0.25)])
@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'byol', 'simclr', 'simsiam', 'nnclr', 'swav', 'barlow_twins'])
def test_the_window_with_the_highest_mean_loss_goes_on(name, stage, keep):
    learn = made(name, [cb := HardRegions(stage, keep, cells=None)])
    slow, sizes = Slow(learn, (stage, 'final')), []
    hook = learn.model.encoder.get_submodule(STAGES[STAGES.index(stage) + 1]).register_forward_pre_hook(lambda m, x: sizes.append([*x[0].shape[-2:]]))
    kept = []
    class Look(Callback):
        order = 25
        def after_pred(self): kept.append((cb.kept, cb.heat))
    learn.fit(1, LR, cbs=Look())
    hook.remove()
    (top, left, h, w), heat = kept[0]
    H = SIDE // {'layer1': 4, 'layer2': 8}[stage]
    assert abs(h * w / H**2 - keep) <= 0.13 and {tuple(s) for s in sizes} == {(h, w)}  # what comes later is smaller
    loss, windows = regions(slow, learn.views.made[0]['views'], stage, (h, w), (stage, 'final'))
    agree(learn, slow, loss)


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'simsiam', 'byol', 'moco_v2'])
def test_the_losses_and_windows_are_kept_for_drawing(name):
    "Of all views, in their order"
    learn = made(name, [cb := HardRegions('layer1', cells=None)])
    slow, kept, heats = Slow(learn, ('layer1', 'final')), [], []
    class Look(Callback):
        order = 25
        def after_pred(self): kept.append((cb.kept, cb.heat))
    learn.fit(1, LR, cbs=Look())
    (top, left, h, w), heat = kept[0]
    _, windows = regions(slow, learn.views.made[0]['views'], 'layer1', (h, w), ('layer1', 'final'), heats=heats)
    n = 1 if name == 'moco_v2' else 2
    assert [*heat.shape] == [n * B, 8, 8] and len(top) == len(left) == n * B
    close(heat, torch.cat([one_heat for _, one_heat in heats]), rtol=1e-8, atol=1e-9)
    assert [*zip(top.tolist(), left.tolist())] == sum(windows, [])
    assert cb.kept is None and cb.heat is None  # after the fit


@pytest.mark.parametrize('name', ['moco_v2', 'swav', 'simclr'])
def test_a_coarse_look_at_the_losses(name):
    learn = made(name, [cb := HardRegions('layer1', cells=4)])
    slow, kept = Slow(learn, ('layer1', 'final')), []
    class Look(Callback):
        order = 25
        def after_pred(self): kept.append(cb.kept)
    learn.fit(1, LR, cbs=Look())
    loss, _ = regions(slow, learn.views.made[0]['views'], 'layer1', kept[0][2:], ('layer1', 'final'), cells=4)
    agree(learn, slow, loss)


@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'simclr', 'simsiam'])
def test_regions_of_patches(name):
    learn = made(name, [CombinePatches(), HardRegions('layer1', cells=None)])
    slow, sizes = Slow(learn, ('layer1', 'final')), []
    learn.model.encoder.layer2.register_forward_pre_hook(lambda m, x: sizes.append([*x[0].shape]))
    learn.fit(1, LR)
    sides = min(s[-2:] for s in sizes)
    assert [8, 8] in [s[-2:] for s in sizes] or name not in ('simclr',)  # whole views for the keys
    loss, _ = regions(slow, learn.views.made[0]['views'], 'layer1', sides, ('layer1', 'final'), list(itertools.combinations(range(4), 2)), n=2)
    agree(learn, slow, loss)


@pytest.mark.parametrize('name', ['moco_v2', 'simclr', 'swav'])
def test_regions_beside_losses_at_all_levels(name):
    learn = made(name, [IntermediateLoss(weights=(1., 0.5, 2.)), HardRegions('layer2', cells=None)])
    slow, kept = Slow(learn, LEVELS, dict(zip(LEVELS, (1., 0.5, 2., 1.)))), []
    class Look(Callback):
        order = 25
        def after_pred(self): kept.append(self.hard_regions.kept)
    learn.fit(1, LR, cbs=Look())
    loss, _ = regions(slow, learn.views.made[0]['views'], 'layer2', kept[0][2:], LEVELS)
    agree(learn, slow, loss)


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('name', ['moco_v2', 'simclr'])
def test_regions_at_the_drawn_level(name, level):
    learn = made(name, [IntermediateLoss(), PartialBackprop(one(level)), HardRegions('layer2', cells=None)])
    slow, kept = Slow(learn, (level,)), []
    class Look(Callback):
        order = 25
        def after_pred(self): kept.append(self.hard_regions.kept)
    ran = []
    if 'ema' in learn.model.memory: learn.ema_target.target.encoder.layer3.register_forward_hook(lambda *a: ran.append(1))
    learn.fit(1, LR, cbs=Look())
    if level in ('layer1', 'layer2'):
        assert not ran  # nothing comes after it
        agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))
    else:
        slow.levels = ('layer2', level)  # keys to choose by
        slow.weights = {'layer2': 0, level: 1}
        loss, _ = regions(slow, learn.views.made[0]['views'], 'layer2', kept[0][2:], ('layer2', level))
        slow.net.heads.layer2.requires_grad_(False)
        agree_without(learn, slow, loss, 'heads.layer2')


def agree_without(learn, slow, loss, prefix):
    "As `agree`, where the slow version has a gradient of zeros and the learner none"
    assert loss.item() == pytest.approx(learn.diary.losses[0], rel=1e-8)
    loss.backward()
    theirs = {n: p.grad for n, p in slow.net.named_parameters() if p.grad is not None and not n.startswith(prefix)}
    grads = learn.diary.grads[0]
    assert grads.keys() == theirs.keys()
    most = max(g.abs().max().item() for g in theirs.values())
    for n, g in theirs.items(): close(grads[n], g, rtol=1e-8, atol=1e-8 * most)


def test_the_choice_is_made_without_gradient_and_tracks_nothing():
    "Statistics of the stage's head: those of the mean features alone"
    learn = made('moco_v2', [HardRegions('layer1', cells=None)], projector_bn=True)
    bare = made('moco_v2', [IntermediateLoss(('layer1',))], projector_bn=True)
    bare.model.load_state_dict(learn.model.state_dict())
    made_views = learn.views
    learn.fit(1, LR)
    class Same(nn.Module):
        def forward(self, x): return made_views.made[0]
    bare.views = Same()
    bare.fit(1, LR)
    ours, theirs = learn.model.state_dict(), bare.model.state_dict()
    stats = [n for n in theirs if n.startswith('heads.layer1') and 'running' in n]
    assert len(stats) == 2
    for n in stats: close(ours[n], theirs[n])
    for n in theirs:
        if n.startswith('heads.layer1') and 'tracked' in n: assert torch.equal(ours[n], theirs[n]), n


def test_gradients_come_only_through_what_was_kept():
    "The loss at the end has no gradient at cells that were dropped, and one at those that were kept"
    grads, cb = [], HardRegions('layer2', cells=None)
    learn = made('moco_v2', [IntermediateLoss(), PartialBackprop(one('final')), cb])
    def keep(m, args, out): out.register_hook(lambda g: grads.append((g.clone(), cb.kept)))
    hook = learn.model.encoder.layer2.register_forward_hook(keep)
    learn.fit(1, LR)
    hook.remove()
    (g, (top, left, h, w)), = grads
    assert [*g.shape[-2:]] == [4, 4] and h * w < 16
    for b in range(len(g)):
        inside = torch.zeros(4, 4, dtype=bool)
        inside[top[b]:top[b] + h, left[b]:left[b] + w] = True
        assert not g[b][:, ~inside].any() and (g[b][:, inside] != 0).any(0).all()


def test_the_target_sees_the_whole_picture():
    learn = quick('moco_v3', cbs=[HardRegions('layer1')], n=8)
    ours, theirs = [], []
    learn.model.encoder.layer2.register_forward_pre_hook(lambda m, x: ours.append([*x[0].shape[-2:]]))
    learn.ema_target.target.encoder.layer2.register_forward_pre_hook(lambda m, x: theirs.append([*x[0].shape[-2:]]))
    learn.fit(1, 1e-3)
    assert theirs == [[4, 4]] * 2 and len(ours) == 2 and all(h * w in (6, 8, 9) for h, w in ours)


@pytest.mark.parametrize('keep', [0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.])
@pytest.mark.parametrize('shape', [(4, 4), (7, 7), (8, 8), (14, 14), (16, 16), (28, 28), (32, 32), (4, 8), (7, 14), (16, 8), (1, 1), (2, 2), (3, 3)], ids=str)
def test_sides_of_windows_are_sensible(shape, keep):
    from fastcontrast.speedups.regions import window_sides
    h, w = window_sides(*shape, keep)
    H, W = shape
    assert 1 <= h <= H and 1 <= w <= W
    def steps(n): return range(2, n + 1, 2) if n >= 8 and n % 2 == 0 and keep <= 0.8 else range(1, n + 1)  # later stages halve them
    assert h in steps(H) and w in steps(W)
    some = [(a, b) for a in steps(H) for b in steps(W) if keep == 1 or (a, b) != shape] or [shape]  # all of it is no part
    assert (h, w) in some
    best = min(abs(a * b / (H * W) - keep) for a, b in some)
    assert abs(h * w / (H * W) - keep) <= best + 0.06
    assert max(h / H, w / W) / min(h / H, w / W) <= 2
    if keep == 1: assert (h, w) == shape


@pytest.mark.parametrize('loss', [InfoNCE(0.3, scale=2.), DCL(0.3), DCLW(0.3), NTXent(0.3)], ids=repr)
def test_the_loss_of_a_query_by_itself(loss):
    q, k = torch.randn(2, 5, B, D, dtype=torch.float64), torch.randn(B, D, dtype=torch.float64)
    got = loss.each(q, k)
    assert [*got.shape] == [2, 5, B]
    for v, m, i in itertools.product(range(2), range(5), range(B)):
        others = [j for j in range(B) if j != i or isinstance(loss, (InfoNCE, NTXent))]
        s = [cos(q[v, m, i], k[j]) / 0.3 for j in range(B)]
        assert got[v, m, i].item() == pytest.approx(getattr(loss, 'scale', 1) * (torch.log(sum(s[j].exp() for j in others)) - s[i]).item(), rel=1e-10)
    if isinstance(loss, InfoNCE): close(got[0].mean(), loss(q[0], k))


def test_regions_and_patches_under_autocast():
    from fastcontrast.device import Autocast
    for cbs in (REMOVABLE['all'](), [CombinePatches(alpha=2.), HardRegions('layer1')], [CombinePatches(merge='max'), IntermediateLoss()], [CombinePatches(patches='montage')], [HardRegions(cells=None)]):
        for name in ('moco_v2', 'swav', 'moco_v3'):
            learn = contrastive_learner(pictures(16, 64, 8), ARCH, method=small(name, 'cifar'), small_input=False, cbs=[Autocast('bf16'), *copy.deepcopy(cbs), look := Where(), seen := Keys()])
            learn.create_mbar = False
            learn.fit_contrastive(1, 1e-3)
            assert len(look.steps) == 2 and all(finite for *_, finite in look.steps)
            assert seen.dtypes == {torch.float32}


class Keys(Callback):
    order = 25
    def __init__(self): self.dtypes = set()
    def after_pred(self): self.dtypes |= {k.dtype for k in self.yb[0].values()}


# tokens

VIT = 'test_vit'


def vit_learner(name, cbs, side=64, **changes):
    learn = contrastive_learner(pictures(B, side, B), VIT, method=small(name, 'cifar', opt='sgd', **changes), cbs=[*cbs, *([Queue(9)] if name == 'moco_v2' else [])])
    learn.model.double()
    from test_step import Diary
    from test_methods import Recording
    learn.add_cb(Diary())
    learn.views, learn.normalize, learn.create_mbar = Recording(learn.views), Plain(), False
    if 'queue' in learn.model.memory:
        for ring in learn.model.memory['queue'].values(): ring.rows.copy_(unit(ring.rows))
    if 'ema' in learn.model.memory:
        with torch.no_grad():
            for p in learn.ema_target.target.parameters(): p.mul_(1 + 0.2 * torch.randn_like(p))
    return learn


def tokens(encoder, x, keep=None, at=2):
    "timm's ViT by hand: after block `at`, and the end; `keep` picks tokens of the patches on the way"
    x = encoder.norm_pre(encoder.patch_drop(encoder._pos_embed(encoder.patch_embed(x))))
    for i, block in enumerate(encoder.blocks):
        x = block(x)
        if i == at:
            middle = x
            if keep is not None: x = torch.stack([torch.cat([row[:1], row[1:][chosen]]) for row, chosen in zip(x, keep(x))])
    return middle, encoder.fc_norm(encoder.norm(x)[:, 0])


@pytest.mark.parametrize('keep', [0.5, 0.25])
@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'simclr'])
def test_the_tokens_with_the_highest_loss_go_on(name, keep):
    learn = vit_learner(name, [HardRegions('blocks.2', keep, cells=None)])
    slow = Slow(learn, ('blocks_2', 'final'))
    sizes = []
    hook = learn.model.encoder.blocks[3].register_forward_pre_hook(lambda m, x: sizes.append(x[0].shape[1]))
    learn.fit(1, LR)
    hook.remove()
    assert set(sizes) == {1 + round(16 * keep)}
    net, views = slow.net, [*learn.views.made[0]['views']]
    asked, whole, pairs = slow.split(views)
    levels = ('blocks_2', 'final')
    def keys_of(model):
        "Both levels of whole views"
        out = [{} for _ in whole]
        for some in slow.in_passes(whole):
            middle, end = tokens(model.encoder, torch.cat([whole[v] for v in some]))
            for level, h in (('blocks_2', middle[:, 1:].mean(1)), ('final', end)):
                for v, z in zip(some, model.heads[level].projector(h).split(B)): out[v][level] = z
        return out
    own = slow.teacher is None
    if not own:
        with torch.no_grad(): keys = keys_of(slow.teacher)
    h = {level: [None for _ in asked] for level in levels}
    for some in ([[0, 1]] if own else slow.in_passes(asked)):
        def choose(x, some=some):
            with torch.no_grad():
                head = copy.deepcopy(net.heads.blocks_2)
                z = head.projector(x[:, 1:].flatten(0, 1))
                p = (head.predictor(z) if head.predictor is not None else z).unflatten(0, (len(some), B, 16))
                found = [{'blocks_2': k} for k in head.projector(x[:, 1:].mean(1)).split(B)] if own else keys
                rows = []
                for i, v in enumerate(some):
                    loss = torch.stack([mean_of([each(slow, p[i, :, t], found[j]['blocks_2']) for a, j in pairs if a == v]) for t in range(16)], 1)
                    rows += [sorted(sorted(range(16), key=lambda t, b=b, loss=loss: -loss[b, t].item())[:round(16 * keep)]) for b in range(B)]
                return rows
        middle, end = tokens(net.encoder, torch.cat([asked[v] for v in some]), choose)
        for i, v in enumerate(some): h['blocks_2'][v], h['final'][v] = middle[:, 1:].mean(1).split(B)[i], end.split(B)[i]
    queries = {}
    for level in levels:
        zs, queries[level] = slow.heads([[x] for x in h[level]], level)
        if own:
            if level == 'blocks_2': keys = [{} for _ in asked]
            for v, z in enumerate(zs): keys[v][level] = z[0]
    agree(learn, slow, slow.total(queries, keys, pairs))


# --- what changes nothing, bit for bit

SEVEN = ['simclr', 'moco_v2', 'moco_v3', 'byol', 'simsiam', 'nnclr', 'swav']
NOTHING = {'one patch': lambda: [CombinePatches(n=1, m=1)], 'no stages': lambda: [IntermediateLoss(stages=())],
           'the last level, always': lambda: [IntermediateLoss(), PartialBackprop(probs={'final': 1})], 'one level': lambda: [PartialBackprop([1.0])],
           'all of the picture': lambda: [HardRegions(keep=1)],
           'all of these': lambda: [CombinePatches(n=1, m=1), IntermediateLoss(), PartialBackprop((0, 0, 0, 1)), HardRegions(keep=1)]}


def three_steps(name, cbs=(), **changes):
    "Losses and weights of three steps, from one seed"
    torch.manual_seed(11)
    learn, losses = quick(name, cbs=cbs, n=24, **changes), []
    class Trace(Callback):
        order = 70
        def before_step(self): losses.append(self.loss.clone())
    learn.fit_contrastive(1, 1e-2, cbs=Trace())
    return torch.stack(losses), learn.model.state_dict()


@pytest.mark.parametrize('what', NOTHING)
@pytest.mark.parametrize('name', SEVEN)
def test_bitwise_the_recipe_without_it(name, what):
    changes = dict(prototypes_frozen=0) if name == 'swav' else {}
    losses, weights = three_steps(name, **changes)
    with_losses, with_weights = three_steps(name, NOTHING[what](), **changes)
    assert len(losses) == 3 and torch.equal(losses, with_losses), (losses, with_losses)
    for n, w in weights.items(): assert torch.equal(w, with_weights[n]), n


@pytest.mark.parametrize('name', ['moco_v2', 'nnclr', 'swav', 'simclr'])
def test_the_same_views_with_and_without_losses_at_stages(name):
    "Heads, queues and prototypes of levels draw no number from torch's own generator"
    def first_views(cbs):
        torch.manual_seed(11)
        learn = quick(name, cbs=cbs, n=8)
        return learn.views(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)))['views']
    assert torch.equal(first_views([]), first_views([IntermediateLoss()]))


# --- the matrix

PARTS = ('comb_patches', 'intermediate', 'regions', 'suncet', 'dcl')


def parts(chosen) -> tuple[list, object]:
    make = dict(comb_patches=lambda: [CombinePatches()], intermediate=lambda: [IntermediateLoss(), PartialBackprop(seed=1)], regions=lambda: [HardRegions('layer2')],
                suncet=lambda: [SuNCEt()])
    return [cb for part in chosen if part != 'dcl' for cb in make[part]()], DCL(0.2) if 'dcl' in chosen else None


class Where(Callback):
    "Which parameters have gradients, and whether all is finite"
    order = 70
    def __init__(self): self.steps = []
    def before_step(self):
        drawn = self.partial_backprop.drawn if hasattr(self.learn, 'partial_backprop') else None
        grads = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        finite = bool(self.loss.isfinite()) and all(bool(g.isfinite().all()) for g in grads.values())
        self.steps.append((drawn, set(grads), finite))


@pytest.mark.parametrize('name', SEVEN)
def test_every_set_of_speedups_trains_with(name):
    data = pictures(18, 32, 6, labels='all')
    refused = {}
    for chosen in (some for k in range(1, len(PARTS) + 1) for some in itertools.combinations(PARTS, k)):
        cbs, loss = parts(chosen)
        what = f"{name} + {', '.join(chosen)}"
        recipe = small(name, 'cifar', **(dict(prototypes_frozen=0) if name == 'swav' else {}))
        try: learn = contrastive_learner(data, ARCH, method=recipe, loss=loss, small_input=False, cbs=[*cbs, look := Where()])
        except InputError as e:
            refused[chosen] = str(e)
            continue
        learn.create_mbar = False
        learn.fit_contrastive(1, 1e-3)
        params = {n for n, _ in learn.model.named_parameters()}
        levels = learn.model.levels()
        assert levels == (LEVELS if 'intermediate' in chosen else ('layer2', 'final') if 'regions' in chosen else ('final',)), what
        assert len(look.steps) == 3, what
        for drawn, grads, finite in look.steps:
            assert finite, what
            trained = levels if drawn is None else (drawn,)
            def has(n, trained=trained):
                if n.startswith('heads.'): return n.split('.')[1] in trained
                return n.startswith('encoder.') and not above(n, max(trained, key=[*STAGES, 'final'].index))
            assert grads == {n for n in params if has(n)}, (what, drawn, sorted(grads ^ {n for n in params if has(n)})[:4])
        for m in learn.model.modules(): assert not m._forward_hooks, what
    # refusals are few, and name both
    assert not refused, refused


# --- what is left behind

def trace(learn) -> tuple:
    "Everything that a callback could leave in a learner"
    groups = None if learn.opt is None else [len(g) for g in learn.opt.param_lists]
    return (sorted(n for n in learn.model.state_dict() if n != 'memory.loss.center'), list(learn.model.encoder.state_dict()), list(learn.model.memory), dict(learn.loss_func.weights), list(learn.loss_func.others),
            +learn.model.users, learn.model.levels(), learn.views, sorted(str(cb) for cb in learn.cbs), getattr(learn, 'patches_by', None)), groups


REMOVABLE = dict(
    patches=lambda: [CombinePatches()], sampled=lambda: [CombinePatches(patches='sample')], stitched=lambda: [CombinePatches(combine='layer1')],
    levels=lambda: [IntermediateLoss(weights=0.5)], drawn=lambda: [IntermediateLoss(), PartialBackprop()], regions=lambda: [HardRegions()],
    all=lambda: [CombinePatches(), IntermediateLoss(weights=(1., 2., 3.)), PartialBackprop(), HardRegions(1)])  # of patches of 8 pixels a later stage has one cell only


@pytest.mark.parametrize('what', REMOVABLE)
@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'nnclr', 'swav', 'dino'])
def test_a_removed_speedup_leaves_no_trace(name, what):
    "In the order they came or the other way round; the target's heads and the rings of levels go with the next fit at the latest"
    learn = quick(name, n=8, **(dict(memory=partial(Queue, 8)) if name == 'moco_v2' else {}))
    before, _ = trace(learn)
    for order in (1, -1):
        cbs = REMOVABLE[what]()
        learn.add_cbs(cbs)
        learn.fit(1, 1e-3)
        assert trace(learn)[0] != before
        for cb in cbs[::order]: learn.remove_cb(cb)
        learn.fit(1, 1e-3)
        assert trace(learn)[0] == before
        for m in learn.model.modules(): assert not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks)
    learn.fit(1, 1e-3, cbs=REMOVABLE[what]())
    learn.fit(1, 1e-3)
    assert trace(learn)[0] == before
    held = {id(p) for group in learn.opt.param_lists for p in group}
    assert held == {id(p) for n, p in learn.model.named_parameters() if not n.startswith('memory')}


@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'nnclr', 'swav', 'dino'])
def test_a_removed_level_is_gone_at_once(name):
    "What is saved now has no heads and rings of levels that are not there"
    learn = quick(name, n=8, **(dict(memory=partial(Queue, 8)) if name == 'moco_v2' else {}))
    before = set(learn.model.state_dict())
    learn.fit(1, 1e-3, cbs=IntermediateLoss())
    left = sorted(set(learn.model.state_dict()) - before - {'memory.loss.center'})
    assert not left, left[:3]


@pytest.mark.parametrize('stop', ['after_pred', 'after_backward'])
def test_a_stopped_fit_leaves_no_trace(stop):
    learn = quick('moco_v3')
    before, _ = trace(learn)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3, cbs=[*REMOVABLE['all'](), After(stop, 1, interrupt)])
    for m in learn.model.modules(): assert not m._forward_hooks
    learn.fit(1, 1e-3)
    assert trace(learn)[0] == before
    for m in learn.model.modules(): assert not m._forward_hooks


@pytest.mark.parametrize('first', [0, 1], ids=['IntermediateLoss first', 'HardRegions first'])
def test_a_level_that_two_want_stays_until_both_are_gone(first):
    learn = quick('moco_v3')
    cbs = [IntermediateLoss(('layer1', 'layer2'), (0.5, 3.)), HardRegions('layer2')]
    learn.add_cbs(cbs if first == 0 else cbs[::-1])
    assert learn.model.levels() == ('layer1', 'layer2', 'final') and learn.loss_func.weights == {'layer1': 0.5, 'layer2': 3.}
    learn.remove_cb(cbs[0])
    assert learn.model.levels() == ('layer2', 'final')
    assert learn.loss_func.weights.get('layer2', 1.) == 1., "the weight was IntermediateLoss'"
    learn.remove_cb(cbs[1])
    assert learn.model.levels() == ('final',) and not learn.loss_func.weights and not +learn.model.users


@pytest.mark.parametrize('name,ring', [('moco_v3', None), ('moco_v2', 'queue'), ('nnclr', 'neighbours')])
def test_levels_that_come_again_begin_anew(name, ring):
    "The target's heads are copies of the new ones, and queues are random"
    learn = quick(name, n=8, **(dict(memory=partial(Queue, 8)) if name == 'moco_v2' else {}))
    learn.add_cb(IntermediateLoss())
    learn.fit(3, 1e-1)
    rows = {level: r.rows.clone() for level, r in learn.model.memory[ring].items()} if ring else {}
    learn.remove_cb(IntermediateLoss)
    learn.add_cb(IntermediateLoss())
    got = {}
    class Look(Callback):
        order = 21
        def before_batch(self):
            got['ours'] = copy.deepcopy(self.model.heads.layer1.projector.state_dict())
            if 'ema' in self.model.memory: got['theirs'] = copy.deepcopy(self.model.memory['ema'].heads.layer1.projector.state_dict())
            if ring: got['rows'] = self.model.memory[ring]['layer1'].rows.clone()
    learn.fit(1, 1e-3, cbs=Look())
    if 'theirs' in got:
        weights = [n for n in got['ours'] if n.endswith('weight')]
        for n in weights: assert torch.equal(got['ours'][n], got['theirs'][n]), f'{n} is of the head that was removed'
    if ring: assert not torch.equal(got['rows'], rows['layer1'])


@pytest.mark.parametrize('name', ['simclr', 'moco_v2', 'moco_v3', 'nnclr', 'swav', 'dino'])
def test_levels_added_to_a_learner_that_has_trained(name):
    "The optimizer knows them, the target follows them, the memory holds them"
    learn = quick(name, setting='digits', **(dict(memory=partial(Queue, 8)) if name == 'moco_v2' else {}))
    learn.fit_contrastive(1)
    learn.add_cb(IntermediateLoss())
    began = {n: p.detach().clone() for n, p in learn.model.heads.named_parameters()}
    learn.fit_contrastive(2, 1e-2)
    held = {id(p) for group in learn.opt.param_lists for p in group}
    for level in LEVELS:
        moved = [n for n, p in learn.model.heads.named_parameters() if n.startswith(level) and not torch.equal(p, began[n])]
        assert len(moved) >= 3 or name in ('moco_v2',) and moved, level
        assert all(id(p) in held for p in learn.model.heads[level].parameters())
        if 'ema' in learn.model.memory: assert not torch.equal(learn.ema_target.target.heads[level].projector[0].weight, began[f'{level}.projector.0.weight'])
        for ring in ('queue', 'neighbours'):
            if ring in learn.model.memory: assert int(learn.model.memory[ring][level].written) >= 16


def test_all_speedups_twice_in_turn():
    "Fit after fit, with callbacks that come and go"
    learn = quick('byol')
    learn.fit_contrastive(1)
    for cbs in (REMOVABLE['drawn'](), REMOVABLE['patches'](), REMOVABLE['all'](), REMOVABLE['regions']()):
        learn.add_cbs(cbs)
        learn.fit_contrastive(1)
        learn.fit_contrastive(1)
        learn.remove_cbs(cbs)
        learn.fit_contrastive(1)
    assert learn.model.levels() == ('final',) and all(p.isfinite().all() for p in learn.model.parameters())


def test_a_multi_crop_that_goes_leaves_the_sampled_patches():
    learn = quick('moco_v3', cbs=[MultiCrop((2, 16, (.4, 1)), (2, 8, (.1, .4))), CombinePatches(patches='sample')])
    learn.fit(1, 1e-3)
    learn.remove_cb(MultiCrop)
    assert set(learn.views(torch.rand(4, 3, 16, 16))) == {'views', 'patches'}
    learn.fit(1, 1e-3)
    learn.remove_cb(CombinePatches)
    assert isinstance(learn.views, Views)
    learn.fit(1, 1e-3)


def test_the_modes_of_all_modules_are_as_they_were():
    learn = quick('moco_v3')
    assert all(m.training for m in learn.model.modules())
    for cbs in ([CombinePatches(combine='layer1')], [IntermediateLoss()], [HardRegions()]):
        learn.add_cbs(cbs)
        assert all(m.training for m in learn.model.modules()), cbs
        learn.remove_cbs(cbs)


@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'nnclr', 'swav', 'dino'])
def test_save_and_load_go_on_as_if_nothing_had_happened(name, tmp_path):
    from test_methods import Script, random_views
    views = random_views(4)
    memory = dict(moco_v2=lambda: [Queue(9)], nnclr=lambda: [NearestNeighbours(9)], swav=lambda: [Queue(15)]).get(name, list)
    recipe = small(name, 'cifar', opt='sgd', **(dict(prototypes_frozen=0) if name in ('swav', 'dino') else {}))
    one, other = (build(recipe, n=2 * B, cbs=[CombinePatches(), IntermediateLoss(), HardRegions('layer1'), *memory()], path=tmp_path) for _ in range(2))
    one.views, other.views = Script(views), Script(views[2:])
    one.fit(1, LR)
    one.save('here')
    other.load('here')
    for learn in (one, other): learn.fit(1, LR)
    assert one.diary.losses == pytest.approx(other.diary.losses, rel=1e-12) and len(one.diary.losses) == 2
    for k, v in one.model.state_dict().items(): close(v, other.model.state_dict()[k], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('name', ['moco_v3', 'moco_v2'])
def test_a_learner_that_was_given_its_levels_later_takes_the_same_weights(name, tmp_path):
    "Built with the levels or given them afterwards, it has the same entries"
    memory = dict(memory=partial(Queue, 16)) if name == 'moco_v2' else {}
    one = quick(name, cbs=[IntermediateLoss()], **memory)
    one.path = tmp_path
    one.fit(1, 1e-3)
    one.save('here', with_opt=False)
    other = quick(name, **memory)
    other.path = tmp_path
    other.add_cb(IntermediateLoss())
    other.load('here', with_opt=False)
    for k, v in one.model.state_dict().items(): assert torch.equal(v, other.model.state_dict()[k])


def test_draws_go_on_where_they_were_after_a_load(tmp_path):
    "Else the first steps after a resumed run are those of its beginning"
    def make():
        learn = quick('simclr', cbs=[IntermediateLoss(), PartialBackprop()], n=64)
        learn.path = tmp_path
        return learn
    drawn = []
    class Look(Callback):
        order = 21
        def after_pred(self): drawn.append(self.partial_backprop.drawn)
    one = make()
    one.fit(1, 1e-3)
    one.save('here')
    other = make()
    other.load('here')
    other.fit(1, 1e-3, cbs=Look())
    whole = draws(make().partial_backprop, 16)
    assert drawn == whole[8:]


@pytest.mark.parametrize('what', REMOVABLE)
def test_the_exported_encoder_is_timms(what, tmp_path):
    from fastcontrast.export import load_encoder
    learn = quick('moco_v3', cbs=REMOVABLE[what]())
    learn.fit(1, 1e-3)
    assert learn.model.encoder.state_dict().keys() == timm.create_model(ARCH, num_classes=0).state_dict().keys()
    encoder = load_encoder(learn.export(tmp_path/'e.safetensors'))
    x = torch.rand(2, 3, 16, 16)
    close(encoder.eval()(x), learn.model.encoder.eval()(x))


@pytest.mark.parametrize('cb', [CombinePatches, IntermediateLoss, HardRegions])
def test_a_callback_of_another_learner(cb):
    one, other = quick('moco_v3', cbs=[first := cb()]), quick('moco_v3')
    before = trace(other)[0]
    assert 'another learner' in refusal(other.add_cb, first)
    assert trace(other)[0] == before
    one.remove_cb(first)
    other.add_cb(first)
    other.fit(1, 1e-3)


# --- bad input

def said(words, f, *args, **kwargs):
    text = refusal(f, *args, **kwargs)
    assert all(str(w) in text for w in words), text


@pytest.mark.parametrize('args,words', [
    (dict(n=0), ['n=0']), (dict(n=-1), ['n=-1']), (dict(n=1.5), ['n=1.5']), (dict(n='2'), ["n='2'"]), (dict(n=True), ['n=True']), (dict(n=None), ['n=None']),
    (dict(m=0), ['m=0', '4']), (dict(m=5), ['m=5', '4']), (dict(n=3, m=10), ['m=10', '9']), (dict(m=2.), ['m=2.0']), (dict(m=None), ['m=None']), (dict(n=1, m=2), ['m=2']),
    (dict(patches='cut'), ['cut']), (dict(patches=None), ['None']), (dict(merge='sum'), ['sum']), (dict(keys='both'), ['both']),
    (dict(patches='divide', combine=None), ['combine=None', 'sample']), (dict(patches='montage', combine='layer1'), ['montage']), (dict(n=1, m=1, patches='montage'), ['montage']),
    (dict(patches='sample', combine='layer1'), ['sample', 'layer1']), (dict(patches='montage', combine='input'), ['montage']),
    (dict(combine='input', m=3), ['not of 3', 'input']), (dict(combine='layer2', m=1), ['not of 1', 'layer2']), (dict(combine='input', combinations=2), ['combinations', 'input']),
    (dict(combine='layer1', weights=(1, 2)), ['weights', 'layer1']), (dict(combine='layer1', merge='max'), ['merge', 'layer1']), (dict(combine='input', alpha=1.), ['alpha', 'input']),
    (dict(keys='same', patches='sample'), ['same', 'sample']), (dict(merge='max', weights=(1, 2)), ['max', 'weights']), (dict(merge='max', alpha=1.), ['max', 'alpha']),
    (dict(alpha=0.), ['alpha=0.0']), (dict(alpha=-1.), ['alpha=-1.0']), (dict(alpha=math.nan), ['alpha=nan']), (dict(alpha=math.inf), ['alpha=inf']), (dict(alpha='2'), ["alpha='2'"]),
    (dict(alpha=1., m=3), ['alpha', 'm=2']), (dict(alpha=1., weights=(1, 2)), ['alpha', 'weights']),
    (dict(weights=(1,)), ['weights', '2']), (dict(weights=(1, 2, 3)), ['weights', '2']), (dict(weights=(-1, 2)), ['weights']), (dict(weights=(0, 0)), ['weights']),
    (dict(weights=(math.nan, 1)), ['weights']), (dict(weights=('a', 'b')), ['weights']), (dict(weights=0.5), ['weights', '0.5']),
    (dict(combinations=0), ['combinations=0', '2, 4, 6']), (dict(combinations=3), ['combinations=3', '2, 4, 6']), (dict(combinations=7), ['combinations=7']),
    (dict(combinations=-2), ['combinations=-2']), (dict(combinations='all'), ["combinations='all'"]), (dict(combinations=True), ['True']), (dict(combinations=2.5), ['2.5']),
    (dict(combinations=[2]), ['combinations']), (dict(n=5, m=12), ['combinations']), (dict(n=4, m=8), ['combinations']),
    (dict(seed=-1), ['seed=-1']), (dict(seed='a'), ['seed']), (dict(seed=None), ['seed=None'])], ids=str)
def test_patches_that_cannot_be(args, words): said(words if 'combinations' in args or args.get('n', 0) in (4, 5) else [*words, 'CombinePatches'], CombinePatches, **args)


@pytest.mark.parametrize('args,words', [
    (dict(combine='layer9'), ['layer9', 'layer1', 'layer4']), (dict(combine='final_'), ['final_', "'final'", "'projector'"]), (dict(combine=7), ['7', 'layer1']), (dict(combine=-1), ['-1']), (dict(combine=True), ['True']),
    (dict(n=17, m=1), ['17', '16 x 16']), (dict(patches='montage'), ['montage', '1 x 1', '2 x 2'])], ids=str)
def test_patches_that_the_encoder_cannot_take(args, words): said(words, quick, 'moco_v3', cbs=[CombinePatches(**args)])


def test_two_who_cut_patches():
    said(['CombinePatches(n=2, m=2)', 'already'], quick, 'moco_v3', cbs=[CombinePatches(), CombinePatches(3, 1)])
    learn = quick('moco_v3', cbs=[CombinePatches()])
    before = trace(learn)[0]
    said(['already'], learn.add_cb, CombinePatches(patches='sample'))
    assert trace(learn)[0] == before


def test_a_montage_beside_losses_of_stages():
    for cb in (IntermediateLoss(), HardRegions()):
        def make(cb=cb): return contrastive_learner(pictures(8, 64, 8), ARCH, method=small('moco_v3', 'cifar'), small_input=False, cbs=[CombinePatches(patches='montage'), cb])
        said(['montage', 'layer2'], make)
    learn = contrastive_learner(pictures(8, 64, 8), ARCH, method=small('moco_v3', 'cifar'), small_input=False, cbs=[CombinePatches(patches='montage')])
    learn.create_mbar = False
    learn.add_cb(IntermediateLoss())
    said(['montage'], learn.fit, 1, 1e-3)
    learn.remove_cb(IntermediateLoss)
    learn.fit(1, 1e-3)


def test_keys_of_the_same_view_are_for_two_views_and_it_is_said_at_once():
    said(['same', '3'], quick, 'moco_v3', cbs=[CombinePatches(keys='same'), MultiCrop((3, None, (.4, 1)), (2, 8, (.1, .4)))])


def test_keys_of_the_same_view_without_patches():
    "One patch is the whole view, which is then its own key: not silently the recipe"
    losses = []
    for cbs in ([], [CombinePatches(1, 1, keys='same')]):
        learn = build(small('moco_v3', 'cifar'), cbs=cbs)
        learn.fit(1, LR)
        losses.append(learn.diary.losses[0])
    assert losses[1] < losses[0]  # easier to find


@pytest.mark.parametrize('n,m,count', [(4, 4, 16), (5, 4, 25), (5, 5, 25)])
def test_choosing_combinations_takes_no_time(n, m, count):
    "The numbers that the refusal suggests"
    def late(*_): raise AssertionError(f'{count} combinations of {m} of {n * n} patches take more than 4 seconds')
    old = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, 4)  # of this process's own time
    try: assert len(CombinePatches(n, m, combinations=count).subsets) == count
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)


@pytest.mark.parametrize('args,words', [
    (dict(weights=0), ['weights']), (dict(weights=-1.), ['weights']), (dict(weights=math.nan), ['weights']), (dict(weights=math.inf), ['weights']), (dict(weights='abc'), ['weights']),
    (dict(weights=True), ['weights']), (dict(weights=None), ['weights']), (dict(weights=(1, 0, 1)), ['weights']), (dict(weights=(1, 'a', 1)), ['weights']),
    (dict(stages=('layer1',), weights=(1, 2)), ['1 stages', '2 weights']), (dict(stages=('layer1', 'layer2'), weights=(1,)), ['2 stages', '1 weights']),
    (dict(stages=3.5), ['3.5']), (dict(stages=(), weights=(1,)), ['0 stages'])], ids=str)
def test_weights_of_levels(args, words): said([*words, 'IntermediateLoss'], IntermediateLoss, **args)


@pytest.mark.parametrize('stages', ['layer9', ('layer1', 'layer9'), (9,), (-1,), (None,), (1.,), (True,), ('',), ('conv1',)], ids=str)
@pytest.mark.parametrize('later', [False, True])
def test_stages_that_are_not_there_are_listed(stages, later):
    learn = quick('moco_v3')
    before = trace(learn)[0]
    if later: said(['layer1', 'layer2', 'layer3', 'layer4'], learn.add_cb, IntermediateLoss(stages))
    else: said(['layer1', 'layer2', 'layer3', 'layer4'], quick, 'moco_v3', cbs=[IntermediateLoss(stages)])
    assert trace(learn)[0] == before
    learn.fit(1, 1e-3)


@pytest.mark.parametrize('stages', [('layer1', 'layer1'), (1, 'layer1')], ids=str)
def test_a_stage_twice(stages): said(['twice', 'layer1'], quick, 'moco_v3', cbs=[IntermediateLoss(stages)])


@pytest.mark.parametrize('probs', [(0.5, 0.4), (0.5, 0.6), (), (1.5, -0.5), (math.nan, 1), 'ab', 1, (True, False), {'final': 0.5}, {}, (0.5, '0.5'), ('a',), {'final': None}], ids=str)
def test_probabilities_that_cannot_be(probs): said(['probs', 'sum to 1'], PartialBackprop, probs)


@pytest.mark.parametrize('probs,words', [((0.5, 0.5), ['2', '4', 'layer1', 'final']), ((0.2,) * 5, ['5', '4']), ({'layer4': 0.5, 'final': 0.5}, ['layer4', 'layer1']), ({'nosuch': 1.}, ['nosuch']),
                                         ({9: 1.}, ['9']), ({-1: 1.}, ['-1']), ({None: 1.}, ['None']), ((1.,), ['1', '4'])], ids=str)
def test_probabilities_of_other_levels(probs, words): said([*words, 'PartialBackprop'], quick, 'moco_v3', cbs=[IntermediateLoss(), PartialBackprop(probs)])


@pytest.mark.parametrize('seed', [-1, 1.5, 'a', None, True])
def test_seeds_of_draws(seed): said([f'seed={seed!r}', 'PartialBackprop'], PartialBackprop, seed=seed)


@pytest.mark.parametrize('cbs', [[PartialBackprop], [partial(PartialBackprop, (0.5, 0.5))], [partial(IntermediateLoss, ()), PartialBackprop]])
def test_drawing_among_one_level(cbs):
    said(['PartialBackprop'], quick, 'moco_v3', cbs=[cb() for cb in cbs])
    learn = quick('moco_v3')
    for cb in cbs: learn.add_cb(cb())
    said(['PartialBackprop'], learn.fit, 1, 1e-3)  # at the latest


def test_two_who_draw_levels():
    "Only the second would count"
    said(['PartialBackprop'], quick, 'moco_v3', cbs=[IntermediateLoss(), PartialBackprop({'final': 1}), PartialBackprop({'layer1': 1})])


def test_two_who_choose_regions_at_one_stage():
    "The part of a part would go on"
    said(['HardRegions'], quick, 'moco_v3', cbs=[HardRegions('layer1'), HardRegions('layer1', keep=0.25)])


@pytest.mark.parametrize('keep', [0, -0.5, 1.5, math.nan, math.inf, None, '0.5', True, (0.5,)], ids=str)
def test_shares_that_cannot_be(keep): said([f'keep={keep!r}', 'HardRegions'], HardRegions, keep=keep)


@pytest.mark.parametrize('cells', [0, -1, 2.5, '4', True])
def test_cells_that_cannot_be(cells): said([f'cells={cells!r}', 'HardRegions'], HardRegions, cells=cells)


@pytest.mark.parametrize('stage,words', [('layer4', ['layer4', 'layer1, layer2, layer3']), (4, ['layer4']), ('layer9', ['layer9', 'layer1']), (-1, ['-1']), (9, ['9']), (1.5, ['1.5']), ([1], ['1']), ('', ["''"])], ids=str)
@pytest.mark.parametrize('keep', [0.5, 1])
def test_stages_to_choose_at(stage, words, keep):
    learn = quick('moco_v3')
    before = trace(learn)[0]
    said(words, learn.add_cb, HardRegions(stage, keep))
    assert trace(learn)[0] == before


def test_a_map_too_small_to_keep_a_part_of():
    "One cell is all or nothing: a level and a head would be paid for, and nothing saved"
    said(['HardRegions'], quick, 'moco_v3', cbs=[HardRegions('layer3')])  # 1 x 1 at 16 pixels


# --- other encoders

def other(arch, cbs, side, name='moco_v3', **kwargs):
    learn = contrastive_learner(pictures(8, side, 4), arch, method=small(name, 'cifar'), small_input=False if 'resnet' in arch else None, cbs=cbs, **kwargs)
    learn.create_mbar = False
    return learn


class Plainest(nn.Module):
    "An encoder that timm describes no stages of"
    def __init__(self):
        super().__init__()
        self.conv, self.pretrained_cfg, self.num_features = nn.Conv2d(3, 8, 3), dict(mean=(.5,) * 3, std=(.5,) * 3, architecture='plainest'), 8
    def forward(self, x): return self.conv(x).mean((2, 3))


@pytest.mark.parametrize('cb,words', [(lambda: IntermediateLoss(), ['IntermediateLoss', 'no stages']), (lambda: HardRegions(), ['HardRegions', 'no stages']),
                                      (lambda: IntermediateLoss(('layer1',)), ['layer1', 'none that timm describes']), (lambda: HardRegions('layer1'), ['layer1', 'none']),
                                      (lambda: CombinePatches(combine='layer1'), ['layer1', 'none']), (lambda: CombinePatches(patches='montage'), ['montage', 'no stages'])])
def test_encoders_without_stages(cb, words):
    learn = local_learner()
    learn.model = ContrastiveModel(Plainest(), Head(mlp((8, 9, 5), bn=False)))
    said(words, learn.add_cb, cb())


def test_an_encoder_without_stages_takes_patches():
    learn = local_learner(CombinePatches(), loss=InfoNCE(0.2), target=SharedTarget)
    learn.fit(1, 1e-2)


@pytest.mark.parametrize('what,n', [('levels', 4), ('regions', 2), ('patches', 1), ('all', 4)])
@pytest.mark.parametrize('arch,side', [('test_convnext', 64), ('test_efficientnet', 64), ('mobilenetv3_small_050', 64), ('test_vit', 64)])
def test_other_encoders_train_with(arch, side, what, n):
    "Or say when they are put together that they can't"
    cbs = REMOVABLE[what]()
    try: learn = other(arch, [*cbs, seen := Where()], side)
    except InputError as e:
        assert what == 'all' and arch == 'test_convnext' and 'HardRegions' in str(e) and '\n' not in str(e)
        return
    assert len(learn.model.levels()) == n
    learn.fit_contrastive(1, 1e-3)
    assert len(seen.steps) == 2 and all(finite for *_, finite in seen.steps)
    assert learn.model.encoder.state_dict().keys() == timm.create_model(arch, num_classes=0).state_dict().keys()


@pytest.mark.parametrize('make', [lambda: IntermediateLoss(), lambda: HardRegions(), lambda: CombinePatches(), lambda: CombinePatches(combine='input'), lambda: CombinePatches(combine=1),
                                  lambda: CombinePatches(patches='montage'), lambda: CombinePatches(patches='sample')],
                         ids=['levels', 'regions', 'patches', 'strips', 'stitched', 'montage', 'sampled'])
@pytest.mark.parametrize('arch,side', [('test_vit3', 64), ('test_vit', 48), ('test_efficientnet', 40), ('test_byobnet', 32)])
def test_it_trains_or_is_refused(arch, side, make):
    try: learn = contrastive_learner(pictures(2, side, 2), arch, method=small('simclr', 'cifar'), cbs=[make(), seen := Where()])
    except InputError as e:
        text = str(e)
        assert '\n' not in text and text.endswith('.') and len(text) < 400, text
        return
    learn.create_mbar = False
    learn.fit_contrastive(1, 1e-3)
    assert all(finite for *_, finite in seen.steps)


@pytest.mark.parametrize('make', [lambda: IntermediateLoss(), lambda: HardRegions(), lambda: CombinePatches()], ids=['levels', 'regions', 'patches'])
def test_swin(make): test_it_trains_or_is_refused('swin_tiny_patch4_window7_224', 64, make)


def test_patches_that_a_transformer_cannot_take():
    said(['CombinePatches', '24 pixels', 'test_vit'], other, 'test_vit', [CombinePatches(2, 2)], 48)
    said(['CombinePatches', 'tokens'], other, 'test_vit', [CombinePatches(combine='blocks.2')], 64)


def test_names_of_levels_with_dots():
    learn = other('test_convnext', [IntermediateLoss('stages.1'), PartialBackprop({'stages.1': 0.5, 'final': 0.5})], 64)
    assert learn.model.levels() == ('stages_1', 'final')
    learn.fit(1, 1e-3)
    assert learn.partial_backprop.drawn in ('stages_1', 'final')
    assert other('test_convnext', [IntermediateLoss(('stages.0', 'stages.2')), PartialBackprop({0: 0.5, 'stages_2': 0.5})], 64).partial_backprop.chances() == {'stages_0': .5, 'stages_2': .5, 'final': 0.}


def test_a_feature_map_with_as_many_cells_as_channels():
    "Channels come last in Swin; where a side is as long as there are channels they are still told apart"
    from fastcontrast.models import Stage
    x = torch.rand(2, 12, 12, 12)
    close(Stage('layers.0', 12, 4).pool(x), x.mean((2, 3)))  # channels first, as most have it
