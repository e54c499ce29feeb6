"""One step with speedups, slowly: loops over views, patches, combinations, pictures and locations."""
import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.learners import one_step
from helpers.loops import codes, cos, same_gradients, soft_cross_entropy, unit
from helpers.pictures import LR, STAGES, B, D

close = torch.testing.assert_close
TEMPS = dict(simclr=0.2, moco_v2=0.2, moco_v3=0.2, fast_moco=0.2, nnclr=0.2)
BY_HAND = ['simclr', 'moco_v2', 'moco_v3', 'byol', 'simsiam', 'nnclr', 'swav', 'barlow_twins', 'vicreg']


def walk(encoder, x, start=None, upto=None) -> dict:
    "What the stages of timm's ResNet give, by hand, from after `start` to `upto`; `final` is pooled"
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
    places = [slice(start + i * side, start + (i + 1) * side) for i in range(n)]
    return [x[..., rows, columns] for rows in places for columns in places]


def mean_of(parts) -> torch.Tensor: return sum(parts) / len(parts)


class Slow:
    "One step of a method, from its paper, with a list of queries for every view"
    def __init__(self, learn, levels=('final',), weights=None):
        self.recipe, self.name, self.levels = learn.recipe, learn.recipe.name, levels
        self.weights = weights or dict.fromkeys(levels, 1)
        memory = learn.model.memory
        rings = memory['queue'] if 'queue' in memory else memory['neighbours'] if 'neighbours' in memory else {}
        self.rows = {level: [r.clone() for r in ring.rows] for level, ring in rings.items()}
        self.teacher = copy.deepcopy(learn.ema_target.target) if 'ema' in memory else None
        learn.model.memory = nn.ModuleDict()  # not copied
        self.net = copy.deepcopy(learn.model).train()
        learn.model.memory = memory
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
            if head.predictor is not None:
                p = {v: edit('predictor', rows) for v, rows in apply(head.predictor, some, z).items()}
            for v in some: zs[v], ps[v] = z[v], p[v]
        return zs, ps

    def keys(self, views) -> list[dict]:
        "What the target makes of whole views, by level"
        net = self.teacher or self.net
        with torch.set_grad_enabled(self.teacher is None and not self.stops):
            encoded = self.encode([[x] for x in views], net)
            z = {level: self.heads([[e[level] for e in view] for view in encoded], level, net)[0]
                 for level in self.levels}
        return [{level: z[level][v][0] for level in self.levels} for v in range(len(views))]

    stops = property(lambda self: self.name == 'simsiam')

    def pair(self, level: str, q, k):
        "The loss of one query of each picture, [B, D], with the keys [B, D]"
        if hasattr(self, f'pair_{self.name}'): return getattr(self, f'pair_{self.name}')(level, q, k)
        temp = TEMPS[self.name]
        return sum(-torch.log((cos(q[i], k[i]) / temp).exp() / sum((cos(q[i], k[j]) / temp).exp() for j in range(B)))
                   for i in range(B)) / B

    # ctr(q1, k2) + ctr(q2, k1), each times 2τ; the mean over both directions is taken later
    def pair_moco_v3(self, level, q, k):
        temp = TEMPS[self.name]
        return 2 * 2 * temp * F.cross_entropy(unit(q) @ unit(k).T / temp, torch.arange(B))

    def pair_moco_v2(self, level, q, k):
        def sim(a, b): return (cos(a, b) / TEMPS[self.name]).exp()
        return -sum(torch.log(sim(q[i], k[i]) / (sim(q[i], k[i]) + sum(sim(q[i], row) for row in self.rows[level])))
                    for i in range(B)) / B

    def pair_simclr(self, level, q, k):
        z = unit(torch.cat([q, k]))
        s = (z @ z.T / TEMPS[self.name]).exp()
        return -sum(torch.log(s[i, (i + B) % (2 * B)] / sum(s[i, j] for j in range(2 * B) if j != i))
                    for i in range(2 * B)) / (2 * B)

    # both directions are summed in the paper
    def pair_byol(self, level, q, k): return 2 * ((unit(q) - unit(k))**2).sum(1).mean()

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
        def level_loss(level):
            return mean_of([mean_of([self.pair(level, q, keys[j][level]) for q in queries[level][i]])
                            for i, j in pairs])
        weighted = sum(self.weights[level] * level_loss(level) for level in self.levels)
        return weighted / sum(self.weights[level] for level in self.levels)

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


def agree(learn, slow, loss=None, rel=1e-8):
    "The learner's first step, loss and gradients, and the slow version's; None: the one of last time"
    value, grads = learn.diary.losses[0], learn.diary.grads[0]
    if loss is not None:
        loss.backward()
        slow.loss = loss.item()
    assert slow.loss == pytest.approx(value, rel=rel)
    same_gradients(grads, slow.net, rel)


def patched(name, cb, cbs=(), levels=('final',), **how):
    "A step with CombinePatches against the slow one"
    learn = one_step(name, [cb, *cbs])
    slow = Slow(learn, levels)
    learn.fit(1, LR)
    agree(learn, slow, slow.combined(learn.views.made[0]['views'], **how))
    return learn


def whole_views(slow, views): return slow.combined(views, 1, [(0,)])


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
                groups = dict(rows=[range(r * n, r * n + n) for r in range(n)],
                              columns=[range(c, n * n, n) for c in range(n)], whole=[range(n * n)])[how]
                maps[level] = torch.cat([mean_of([hs[i * n * n + g] for g in group]) for i in range(len(some))
                                         for group in groups])
        features = pooled(maps)
        per = len(lists[0])
        for level in levels:
            for i, v in enumerate(some): queries[level][v] = list(features[level].split(B)[i * per:(i + 1) * per])
    queries = {level: slow.heads(h, level)[1] for level, h in queries.items()}
    return slow.total(queries, keys, pairs)


def sampled(slow, made_views, queries_of, levels=('final',)):
    "Crops, in lists of queries, find the keys of all whole views"
    _, whole, _ = slow.split(made_views['views'])
    keys = slow.keys(whole)
    features, grouped = queries_of(made_views['patches'])
    queries = {level: slow.heads([[f[level] for f in view] for view in features], level)[1] for level in levels}
    assert grouped == len(queries['final'])
    return slow.total(queries, keys, slow.pairs(grouped, len(whole), apart=True))


def each_query(slow, q, k):
    "A number for every query [B, D]: InfoNCE among all keys if the method's loss is of that kind, else minus cosine"
    temp = TEMPS.get(slow.name)
    if temp is None: return -cos(q, k)
    scale = 4 * temp if slow.name == 'moco_v3' else 1
    e = (unit(q) @ unit(k).T / temp).exp()
    return -scale * torch.log(e.diagonal() / e.sum(1))


def texture(m, cells=None):
    "How far every cell of maps [B, C, H, W], or the next not at the rim, lies from the mean of those around, [B, H, W]"
    B, _, H, W = m.shape
    rim = 2 if min(H, W) >= 9 else 1 if min(H, W) >= 5 else 0
    out = torch.zeros(B, H, W, dtype=m.dtype)
    for b, row, column in itertools.product(range(B), range(H), range(W)):
        y, x = min(max(row, rim), H - 1 - rim), min(max(column, rim), W - 1 - rim)
        near = [m[b, :, i, j] for i in range(max(0, y - 1), min(H, y + 2)) for j in range(max(0, x - 1), min(W, x + 2))]
        out[b, row, column] = ((m[b, :, y, x] - mean_of(near))**2).sum().sqrt()
    return F.adaptive_avg_pool2d(out[:, None], cells)[:, 0] if cells else out


def unlike(slow, q, k, whole, grain):
    return torch.stack([(1 - cos(q[b], whole[b])) * grain[b] for b in range(len(q))])


def loss_score(slow, q, k, whole, grain): return each_query(slow, q, k)


SLOW_SCORES = dict(loss=loss_score, unlike=unlike, texture=lambda slow, q, k, whole, grain: grain)


def hardest(slow, views, stage, sides, levels, heats=None, cells=None, n=1, score='loss'):
    "The score at every location of a stage, the best window by trying all, and later stages on that; of n x n patches"
    asked, whole, pairs = slow.split(views)
    parts = [cut(x, n) for x in asked]
    divided, own_keys = n > 1, slow.teacher is None
    # a network that makes its keys on the way has both views in one pass
    together = own_keys and not divided
    joint = together and score == 'loss'  # the only one that needs them there
    keys = slow.keys(whole) if not together else None
    head, queries = slow.net.heads[stage], {level: [[] for _ in asked] for level in levels}
    kept = [[] for _ in asked]
    for some in ([[*range(len(asked))]] if joint else slow.in_passes(asked)):
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
            wholes = net.projector(torch.cat([m.mean((2, 3)) for m in maps])).split(B)
            found = [{stage: k} for k in wholes] if joint else keys or [{stage: None} for _ in views]
            rule, grains = SLOW_SCORES[score], [texture(m, cells) for m in maps]
            heat = []
            for i, (v, _) in enumerate(xs):
                others = [j for a, j in pairs if a == v]
                rows = [mean_of([rule(slow, p[(i * H + y) * W + x], found[j][stage], wholes[i], grains[i][:, y, x])
                                 for j in others])
                        for y in range(H) for x in range(W)]
                heat.append(torch.stack(rows, 1).view(B, H, W))
            if cells: heat = [F.interpolate(h[:, None], maps[0].shape[-2:], mode='bilinear')[:, 0] for h in heat]
        windows = []
        for (v, _), m, loss in zip(xs, maps, heat):
            h, w = sides
            out = []
            for b in range(B):
                top, left = max(((y, x) for y in range(m.shape[2] - h + 1) for x in range(m.shape[3] - w + 1)),
                                key=lambda a, b=b, loss=loss: loss[b, a[0]:a[0] + h, a[1]:a[1] + w].mean().item())
                out.append(m[b, :, top:top + h, left:left + w])
                kept[v].append((top, left))
            windows.append(torch.stack(out))
            if heats is not None: heats.append((v, loss))
        late = walk(slow.net.encoder, torch.cat(windows), start=stage)
        for level, h in pooled({**early, **late}).items():
            if level in levels:
                for (v, _), one_h in zip(xs, h.split(B)): queries[level][v].append(one_h)
    return asked, pairs, keys, queries, kept


def regions(slow, views, stage, sides, levels, subsets=None, heats=None, cells=None, n=1, score='loss'):
    asked, pairs, keys, h, kept = hardest(slow, views, stage, sides, levels, heats, cells, n, score)
    if subsets:
        h = {level: [[mean_of([view[i] for i in s]) for s in subsets] for view in rows] for level, rows in h.items()}
    per_view, slow.recipe = slow.recipe, slow.recipe
    if keys is None and score == 'loss':  # one pass: keys are the projections of what was kept
        import dataclasses
        slow.recipe = dataclasses.replace(slow.recipe, per_view=False)
    heads = {level: slow.heads(rows, level) for level, rows in h.items()}
    slow.recipe = per_view
    if keys is None:
        keys = [{level: heads[level][0][v][0].detach() if slow.stops else heads[level][0][v][0] for level in levels}
                for v in range(len(asked))]
    return slow.total({level: p for level, (_, p) in heads.items()}, keys, pairs), kept


def agree_without(learn, slow, loss, prefix):
    "As `agree`, where the slow version has a gradient of zeros and the learner none"
    assert loss.item() == pytest.approx(learn.diary.losses[0], rel=1e-8)
    loss.backward()
    theirs = {n: p.grad for n, p in slow.net.named_parameters() if p.grad is not None and not n.startswith(prefix)}
    grads = learn.diary.grads[0]
    assert grads.keys() == theirs.keys()
    most = max(g.abs().max().item() for g in theirs.values())
    for n, g in theirs.items(): close(grads[n], g, rtol=1e-8, atol=1e-8 * most)


def tokens(encoder, x, keep=None, at=2):
    "timm's ViT by hand: after block `at`, and the end; `keep` picks tokens of the patches on the way"
    x = encoder.norm_pre(encoder.patch_drop(encoder._pos_embed(encoder.patch_embed(x))))
    for i, block in enumerate(encoder.blocks):
        x = block(x)
        if i == at:
            middle = x
            if keep is not None:
                x = torch.stack([torch.cat([row[:1], row[1:][chosen]]) for row, chosen in zip(x, keep(x))])
    return middle, encoder.fc_norm(encoder.norm(x)[:, 0])


def above(name: str, level: str) -> bool:
    "Whether a parameter or buffer of the model has no part in the level's loss"
    if name.startswith('heads.'): return name.split('.')[1] != level
    if not name.startswith('encoder.layer') or level == 'final': return False
    return name.split('.')[1] > level
