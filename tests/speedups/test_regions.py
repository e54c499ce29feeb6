"""HardRegions: the window, or the tokens, with the highest loss go on."""
import copy
import dataclasses
import itertools
import math

import pytest
import torch
from fastai.callback.core import Callback
from helpers.learners import learner_of, one_step, quick, vit_learner
from helpers.loops import cos
from helpers.pictures import LEVELS, LR, SIDE, STAGES, B, D
from helpers.recording import Script, traces
from helpers.refusals import said
from helpers.slow import Slow, agree, agree_without, each_query, mean_of, regions, tokens, walk, whole_views
from helpers.speedups import only
from helpers.pairs import paired

from fastcontrast.losses import DCL, DCLW, InfoNCE, NTXent
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.models import Head, mlp
from fastcontrast.speedups.regions import HardRegions, Look

OWN_SCORES = 'loss', 'unlike', 'texture'  # the benchmarks register others
close = torch.testing.assert_close
SEED = 3
WINDOWS = [('layer1', 0.5), ('layer2', 0.5), ('layer2', 0.25)]


def chosen(learn):
    "The window of a fit of one step, and the scores that it was chosen by: after the fit they are gone"
    seen = []
    class Look(Callback):
        order = 25
        def after_pred(self): seen.append((self.hard_regions.kept, self.hard_regions.heat))
    learn.fit(1, LR, cbs=Look())
    return seen[0]


@pytest.mark.parametrize('name, where', paired(
    ['moco_v2', 'moco_v3', 'byol', 'simclr', 'simsiam', 'nnclr', 'swav', 'barlow_twins'], WINDOWS), ids=str)
def test_the_window_with_the_highest_mean_loss_goes_on(name, where):
    stage, keep = where
    learn = one_step(name, [HardRegions(stage, keep, cells=None, score='loss')])
    slow, sizes = Slow(learn, (stage, 'final')), []
    after = learn.model.encoder.get_submodule(STAGES[STAGES.index(stage) + 1])
    hook = after.register_forward_pre_hook(lambda m, x: sizes.append([*x[0].shape[-2:]]))
    (top, left, h, w), _ = chosen(learn)
    hook.remove()
    H = SIDE // {'layer1': 4, 'layer2': 8}[stage]
    assert abs(h * w / H**2 - keep) <= 0.13 and {tuple(s) for s in sizes} == {(h, w)}  # what comes later is smaller
    loss, windows = regions(slow, learn.views.made[0]['views'], stage, (h, w), (stage, 'final'))
    agree(learn, slow, loss)


@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'simsiam', 'byol', 'moco_v2'])
def test_the_losses_and_windows_are_kept_for_drawing(name):
    "Of all views, in their order"
    learn = one_step(name, [cb := HardRegions('layer1', cells=None, score='loss')])
    slow, heats = Slow(learn, ('layer1', 'final')), []
    (top, left, h, w), heat = chosen(learn)
    _, windows = regions(slow, learn.views.made[0]['views'], 'layer1', (h, w), ('layer1', 'final'), heats=heats)
    n = 1 if name == 'moco_v2' else 2
    assert [*heat.shape] == [n * B, 8, 8] and len(top) == len(left) == n * B
    close(heat, torch.cat([one_heat for _, one_heat in heats]), rtol=1e-8, atol=1e-9)
    assert [*zip(top.tolist(), left.tolist())] == sum(windows, [])
    assert cb.kept is None and cb.heat is None  # after the fit


@pytest.mark.parametrize('name, score, cells', [
    pytest.param(name, score, cells, marks=[] if (i + j) % 2 == (cells is None) else pytest.mark.slow)
    for i, name in enumerate(['moco_v3', 'simclr', 'simsiam', 'moco_v2', 'byol'])
    for j, score in enumerate(['loss', 'unlike', 'texture']) for cells in (None, 4)])
def test_every_score_against_slow_loops(name, score, cells):
    "Scores, windows, the loss, and gradients: none comes through the choice"
    learn = one_step(name, [HardRegions('layer1', cells=cells, score=score)])
    slow, heats = Slow(learn, ('layer1', 'final')), []
    (top, left, h, w), heat = chosen(learn)
    loss, windows = regions(slow, learn.views.made[0]['views'], 'layer1', (h, w), ('layer1', 'final'), heats=heats,
                            cells=cells, score=score)
    close(heat, torch.cat([one_heat for _, one_heat in heats]), rtol=1e-8, atol=1e-9)
    assert [*zip(top.tolist(), left.tolist())] == sum(windows, [])
    agree(learn, slow, loss)


@pytest.mark.parametrize('small', ['patches', 'tokens'])
@pytest.mark.parametrize('score', ['loss', 'unlike'])
def test_small_maps_have_places_to_choose_from(small, score):
    "The grid has four cells at least: of one alone all locations would have the same score, and the first be chosen"
    cb = HardRegions(score=score)
    if small == 'patches': learn = learner_of('resnet10t', [cb, CombinePatches(3)], 96)  # of 32 pixels, 4 x 4 cells
    else: learn = vit_learner('moco_v3', [cb, ProgressiveSize(0.5, until=1)])  # 2 x 2 tokens at first
    spreads, shapes = [], []
    class See(Callback):
        order = 25
        def after_pred(self):
            heat = cb.heat.flatten(1)
            spreads.append((heat.amax(1) - heat.amin(1)) / heat.abs().amax(1))
    looked = HardRegions.look
    def look(self, *args):
        found = looked(self, *args)
        shapes.append(found.shape)
        return found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HardRegions, 'look', look)
        learn.fit(1, LR, cbs=See())
    assert set(shapes) == {(2, 2)} and all((x > 1e-4).all() for x in spreads)


def test_one_cell_is_no_grid(): said(['cells=1 of HardRegions', 'of at least 2'], HardRegions, cells=1)


@pytest.mark.parametrize('score', ['unlike', 'texture'])
def test_scores_of_patches(score):
    learn = one_step('moco_v3', [CombinePatches(), HardRegions('layer1', cells=None, score=score)])
    slow, sizes = Slow(learn, ('layer1', 'final')), []
    learn.model.encoder.layer2.register_forward_pre_hook(lambda m, x: sizes.append([*x[0].shape]))
    learn.fit(1, LR)
    loss, _ = regions(slow, learn.views.made[0]['views'], 'layer1', min(s[-2:] for s in sizes), ('layer1', 'final'),
                      list(itertools.combinations(range(4), 2)), n=2, score=score)
    agree(learn, slow, loss)


@pytest.mark.parametrize('score', OWN_SCORES)
def test_scores_of_tokens(score):
    "On their grid, and, after a first cut, without one"
    learn = vit_learner('moco_v3', [cb := HardRegions(stages=('blocks.1', 'blocks.2'), cells=None, score=score)])
    seen = {}
    class Keep(Callback):
        order = 25
        def after_pred(self): seen.update({c.stage.module: (c.heat, c.kept) for c in cb.choices})
    learn.fit(1, LR, cbs=Keep())
    for module, n in (('blocks.1', 16), ('blocks.2', 8)):
        heat, kept = seen[module]
        assert [*heat.shape] == [2 * B, n] and [*kept.shape] == [2 * B, n // 2] and heat.isfinite().all()
        for row, tokens_of in zip(heat.tolist(), kept.tolist()):
            assert tokens_of == sorted(sorted(range(n), key=row.__getitem__, reverse=True)[:n // 2])


def test_fewer_tokens_than_a_view_has_lie_on_no_grid():
    "Nine of sixteen would make a square"
    def look(tokens):
        grid = torch.rand(2, 9, 5)
        return Look(grid, (1, 2), tokens, 2, Head(mlp((5, 4), bn=False)), InfoNCE(0.2), int.__ne__, None)
    assert look(9).shape == (2, 2) and look(16).shape == (9,)
    x = (scattered := look(16)).grid
    close(scattered.texture[0], (x - x.mean(1, keepdim=True)).norm(dim=-1).T)


def test_the_tokens_of_a_strip_lie_on_no_square():
    "Four in a row, or in a column, are not two by two"
    cb, looked = HardRegions('blocks.2', score='texture'), []
    learn = vit_learner('moco_v3', [PatchVariants(4, 4, combine='input'), cb])
    def look(*args):
        looked.append(HardRegions.look(cb, *args))
        return looked[-1]
    cb.look = look
    learn.fit(1, LR)
    assert looked and all(one.grid.shape[1] == 4 and one.shape == (4,) for one in looked)


def test_what_no_score_asks_for_is_not_made():
    "'unlike' needs no keys, and 'texture' no head"
    made = {}
    for score in OWN_SCORES:
        cb = HardRegions('layer1', score=score)
        learn = quick('moco_v3', cbs=[cb], n=8)
        seen = made[score] = set()
        def look(*args, cb=cb, seen=seen):
            looked = HardRegions.look(cb, *args)
            cb.looked.append((seen, looked))
            return looked
        cb.looked, cb.look = [], look
        learn.fit(1, 1e-3)
        for names, looked in cb.looked: names |= {'queries', 'whole', 'keys', 'texture'} & vars(looked).keys()
    assert made == dict(loss={'queries', 'keys'}, unlike={'queries', 'whole', 'texture'}, texture={'texture'})


@pytest.mark.parametrize('score', ['unlikely', '', None, 3, ['loss']], ids=str)
def test_scores_that_there_are_not(score): said(['unknown score of regions', 'l'], HardRegions, score=score)


# --- after several stages

def later_map(slow, x, windows, stages):
    "Maps of views `x` after each stage in turn, each cut to its windows"
    maps, start = [], None
    for stage, places in zip(stages, windows):
        m = walk(slow.net.encoder, x, start=start, upto=stage)[stage]
        maps.append(m)
        top, left, h, w = places
        x = torch.stack([m[b, :, top[b]:top[b] + h, left[b]:left[b] + w] for b in range(len(m))])
        start = stage
    return maps, x


@pytest.mark.parametrize('score', OWN_SCORES)
@pytest.mark.parametrize('name', ['moco_v3', 'simclr', 'moco_v2', 'simsiam'])
@pytest.mark.parametrize('several', [True, False], ids=['one callback', 'a callback each'])
def test_each_stage_keeps_a_part_of_what_reaches_it(several, name, score):
    "One callback for two stages, or one each: the windows are the best there are, and the loss that of what they leave"
    stages, settings = ('layer1', 'layer2'), dict(cells=None, score=score)
    cbs = [HardRegions(stages=stages[::-1], **settings)] if several else [HardRegions(s, **settings) for s in stages]
    learn = one_step(name, cbs)
    levels = (*stages, 'final')
    slow, seen = Slow(learn, levels), []
    class Keep(Callback):
        order = 25
        def after_pred(self): seen.extend((c.heat, c.kept) for cb in cbs for c in cb.choices)
    learn.fit(1, LR, cbs=Keep())
    assert learn.model.levels() == ('layer1', 'layer2', 'final')
    (_, first), (_, second) = seen
    assert first[2:] == (4, 8) and second[2:] == (2, 2)
    for heat, (top, left, h, w) in seen:
        H, W = heat.shape[1:]
        for b in range(len(heat)):
            means = {(y, x): heat[b, y:y + h, x:x + w].mean().item() for y in range(H - h + 1)
                     for x in range(W - w + 1)}
            assert (top[b].item(), left[b].item()) == max(means, key=means.get)
    asked, whole, pairs = slow.split(learn.views.made[0]['views'])
    own, queries = slow.teacher is None, {level: [[] for _ in asked] for level in levels}
    keys = None if own else slow.keys(whole)
    joint = own and score == 'loss'  # the only one that needs the keys there
    passes = [[*range(len(asked))]] if joint else slow.in_passes(asked)
    for order in passes:
        rows = torch.cat([torch.arange(v * B, v * B + B) for v in order])
        windows = [(top[rows], left[rows], h, w) for _, (top, left, h, w) in seen]
        maps, x = later_map(slow, torch.cat([asked[v] for v in order]), windows, stages)
        end = walk(slow.net.encoder, x, start='layer2')['final']
        for level, h in zip(levels, [*(m.mean((2, 3)) for m in maps), end]):
            for v, one in zip(order, h.split(B)): queries[level][v].append(one)
    if joint:
        slow.recipe = dataclasses.replace(slow.recipe, per_view=False)
    heads = {level: slow.heads(h, level) for level, h in queries.items()}
    if own: keys = [{level: heads[level][0][v][0].detach() if slow.stops else heads[level][0][v][0]
                     for level in levels} for v in range(len(asked))]
    agree(learn, slow, slow.total({level: p for level, (_, p) in heads.items()}, keys, pairs))


def test_the_second_stage_is_scored_by_what_the_first_left():
    "Slowly: the loss of every location of the map that the first window made"
    learn = one_step('moco_v3', [cb := HardRegions(stages=('layer1', 'layer2'), cells=None, score='loss')])
    slow, seen = Slow(learn, ('layer1', 'layer2', 'final')), []
    class Keep(Callback):
        order = 25
        def after_pred(self): seen.extend((c.heat, c.kept) for c in cb.choices)
    learn.fit(1, LR, cbs=Keep())
    (_, (top, left, h, w)), (heat, _) = seen
    views = learn.views.made[0]['views']
    with torch.no_grad():
        keys = slow.keys([*views])
        for v in range(2):
            rows = slice(v * B, v * B + B)
            maps, _ = later_map(slow, views[v], [(top[rows], left[rows], h, w), (top[rows] * 0, left[rows] * 0, 1, 1)],
                                ('layer1', 'layer2'))
            m, net = maps[1], copy.deepcopy(slow.net.heads.layer2)
            H, W = m.shape[2:]
            places = [(y, x) for y in range(H) for x in range(W)]
            z = net.projector(torch.cat([m[:, :, y, x] for y, x in places]))
            p = net.predictor(z).split(B)
            for (y, x), q in zip(places, p):
                close(heat[rows, y, x], each_query(slow, q, keys[1 - v]['layer2']), rtol=1e-8, atol=1e-9)


def test_a_step_that_ends_between_the_stages():
    "What comes after the level of the step is neither run nor cut"
    for level, cut_at in (('layer1', []), ('layer2', ['layer1']), ('final', ['layer1', 'layer2'])):
        cb = HardRegions(stages=('layer1', 'layer2'))
        learn, seen = one_step('moco_v3', [IntermediateLoss(), PartialBackprop(only(level)), cb]), []
        for c in cb.choices: c.passes = 'of an earlier step'
        class Keep(Callback):
            order = 25
            def after_pred(self, cb=cb, seen=seen): seen.extend(c.stage.module for c in cb.choices if c.passes)
        learn.fit(1, LR, cbs=Keep())
        assert seen == cut_at


def test_a_forward_pass_that_goes_on_after_the_level_of_the_step():
    "It runs on what was chosen, as in other steps, and leaves the loss of the level alone"
    learn = one_step('moco_v3', [IntermediateLoss(), PartialBackprop(only('layer1'), stop_forward=False),
                                 HardRegions('layer2')])
    slow, sizes = Slow(learn, ('layer1',)), []
    learn.model.encoder.layer3.register_forward_pre_hook(lambda m, x: sizes.append([*x[0].shape[-2:]]))
    learn.fit(1, LR)
    assert len(sizes) == 2 and all(h * w < 16 for h, w in sizes)
    agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))


def test_stages_come_and_go_together():
    learn = quick('moco_v3')
    before = traces(learn)[0]
    learn.add_cb(cb := HardRegions(stages=('layer2', 1)))
    assert learn.model.levels() == ('layer1', 'layer2', 'final') and cb.choices[0].stage.level == 'layer1'
    assert repr(cb) == "HardRegions(stages=('layer2', 1), keep=0.5, score='loss')"
    learn.fit(1, 1e-3)
    learn.remove_cb(cb)
    learn.fit(1, 1e-3)
    assert traces(learn)[0] == before and not cb.choices


@pytest.mark.parametrize('stages', [('layer2',), ('layer2', 'layer1'), (2, 1)], ids=str)
def test_two_who_choose_at_one_of_their_stages(stages):
    for first, second in ((dict(stages=stages), dict(stage='layer2')), (dict(stage=2), dict(stages=stages))):
        said(['HardRegions', 'regions at layer2'], quick, 'moco_v3', cbs=[HardRegions(**first), HardRegions(**second)])
    quick('moco_v3', cbs=[HardRegions(stages=('layer1',)), HardRegions('layer2')])


@pytest.mark.parametrize('stages', [(), 'layer1', 3, {'layer1'}, (None,), ['layer1', None]], ids=str)
def test_stages_that_are_none(stages): said([f'stages={stages!r}', 'HardRegions'], HardRegions, stages=stages)


def test_a_stage_and_stages(): said(["stage='layer1'", "stages=('layer2',)"], HardRegions, 'layer1', stages=('layer2',))


@pytest.mark.parametrize('stages,words', [
    (('layer1', 'layer1'), ['twice']), (('layer1', 1), ['twice']), (('layer1', 'layer4'), ['layer4', 'layer3']),
    (('layer1', 'layer9'), ['layer9']), (('layer2', 'layer3'), ['layer3', '1 x 1 cells'])], ids=str)
def test_stages_that_cannot_be(stages, words):
    "Of 16 pixels the third stage makes a single cell"
    learn = quick('moco_v3')
    before = traces(learn)[0]
    said(words, learn.add_cb, HardRegions(stages=stages))
    assert traces(learn)[0] == before


@pytest.mark.parametrize('first,second', [('stages.1', 'stages.2'), ('stages.2', 'stages.1')])
def test_several_callbacks_are_tried_out_together(first, second):
    "Of 48 pixels they leave one cell by two to a filter of two by two, and each alone enough"
    learn = learner_of('convnext_atto', [cb := HardRegions(first)], 48)
    before = traces(learn)[0]
    said([f"stage='{second}'", 'beside another', 'do not take a part'], learn.add_cb, HardRegions(second))
    assert traces(learn)[0] == before and list(learn.plan.cuts) == [cb.choices[0].stage.level]
    learn.remove_cb(cb)
    learn.add_cb(HardRegions(second))
    both = [HardRegions(first), HardRegions(second)]
    said(['HardRegions', 'beside another'], learner_of, 'convnext_atto', both, 48)
    for cbs in ([HardRegions(first)], [HardRegions(second)], both):
        growing, parts = ProgressiveSize(steps=(48,)), [HardRegions(cb.places[0]) for cb in cbs]
        if len(cbs) == 1: learner_of('convnext_atto', [growing, *parts], 96)
        else: said(['48 pixels', 'beside another'], learner_of, 'convnext_atto', [growing, *parts], 96)


@pytest.mark.parametrize('name', ['moco_v2', 'swav', 'simclr'])
def test_a_coarse_look_at_the_losses(name):
    learn = one_step(name, [HardRegions('layer1', cells=4, score='loss')])
    slow = Slow(learn, ('layer1', 'final'))
    window, _ = chosen(learn)
    loss, _ = regions(slow, learn.views.made[0]['views'], 'layer1', window[2:], ('layer1', 'final'), cells=4)
    agree(learn, slow, loss)


@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'simclr', 'simsiam'])
def test_regions_of_patches(name):
    learn = one_step(name, [CombinePatches(), HardRegions('layer1', cells=None, score='loss')])
    slow, sizes = Slow(learn, ('layer1', 'final')), []
    learn.model.encoder.layer2.register_forward_pre_hook(lambda m, x: sizes.append([*x[0].shape]))
    learn.fit(1, LR)
    sides = min(s[-2:] for s in sizes)
    assert [8, 8] in [s[-2:] for s in sizes] or name not in ('simclr',)  # whole views for the keys
    loss, _ = regions(slow, learn.views.made[0]['views'], 'layer1', sides, ('layer1', 'final'),
                      list(itertools.combinations(range(4), 2)), n=2)
    agree(learn, slow, loss)


@pytest.mark.parametrize('name', ['moco_v2', 'simclr', 'swav'])
def test_regions_beside_losses_at_all_levels(name):
    learn = one_step(name, [IntermediateLoss(weights=(1., 0.5, 2.)), HardRegions('layer2', cells=None, score='loss')])
    slow = Slow(learn, LEVELS, dict(zip(LEVELS, (1., 0.5, 2., 1.))))
    window, _ = chosen(learn)
    loss, _ = regions(slow, learn.views.made[0]['views'], 'layer2', window[2:], LEVELS)
    agree(learn, slow, loss)


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('name', ['moco_v2', 'simclr'])
def test_regions_at_the_drawn_level(name, level):
    regions_at = HardRegions('layer2', cells=None, score='loss')
    learn = one_step(name, [IntermediateLoss(), PartialBackprop(only(level)), regions_at])
    slow, ran = Slow(learn, (level,)), []
    if 'ema' in learn.model.memory:
        learn.ema_target.target.encoder.layer3.register_forward_hook(lambda *a: ran.append(1))
    window, _ = chosen(learn)
    if level in ('layer1', 'layer2'):
        assert not ran  # nothing comes after it
        agree(learn, slow, whole_views(slow, learn.views.made[0]['views']))
    else:
        slow.levels = ('layer2', level)  # keys to choose by
        slow.weights = {'layer2': 0, level: 1}
        loss, _ = regions(slow, learn.views.made[0]['views'], 'layer2', window[2:], ('layer2', level))
        slow.net.heads.layer2.requires_grad_(False)
        agree_without(learn, slow, loss, 'heads.layer2')


def test_the_choice_is_made_without_gradient_and_tracks_nothing():
    "Statistics of the stage's head: those of the mean features alone"
    learn = one_step('moco_v2', [HardRegions('layer1', cells=None, score='loss')], projector_bn=True)
    bare = one_step('moco_v2', [IntermediateLoss(('layer1',))], projector_bn=True)
    bare.model.load_state_dict(learn.model.state_dict())
    learn.fit(1, LR)
    bare.views = Script(learn.views.made)
    bare.fit(1, LR)
    ours, theirs = learn.model.state_dict(), bare.model.state_dict()
    stats = [n for n in theirs if n.startswith('heads.layer1') and 'running' in n]
    assert len(stats) == 2
    for n in stats: close(ours[n], theirs[n])
    for n in theirs:
        if n.startswith('heads.layer1') and 'tracked' in n: assert torch.equal(ours[n], theirs[n]), n


def test_gradients_come_only_through_what_was_kept():
    "The loss at the end has no gradient at cells that were dropped, and one at those that were kept"
    grads, cb = [], HardRegions('layer2', cells=None, score='loss')
    learn = one_step('moco_v2', [IntermediateLoss(), PartialBackprop(only('final')), cb])
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
@pytest.mark.parametrize('shape', [
    (4, 4), (7, 7), (8, 8), (14, 14), (16, 16), (28, 28), (32, 32), (4, 8), (7, 14), (16, 8), (1, 1), (2, 2), (3, 3)],
    ids=str)
def test_sides_of_windows_are_sensible(shape, keep):
    from fastcontrast.speedups.regions import window_sides
    h, w = window_sides(*shape, keep)
    H, W = shape
    assert 1 <= h <= H and 1 <= w <= W
    # later stages halve them
    def steps(n): return range(2, n + 1, 2) if n >= 8 and n % 2 == 0 and keep <= 0.8 else range(1, n + 1)
    assert h in steps(H) and w in steps(W)
    # all of it is no part
    some = [(a, b) for a in steps(H) for b in steps(W) if keep == 1 or (a, b) != shape] or [shape]
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
        expected = getattr(loss, 'scale', 1) * (torch.log(sum(s[j].exp() for j in others)) - s[i])
        assert got[v, m, i].item() == pytest.approx(expected.item(), rel=1e-10)
    if isinstance(loss, InfoNCE): close(got[0].mean(), loss(q[0], k))


@pytest.mark.parametrize('keep', [0.5, 0.25])
@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'simclr'])
def test_the_tokens_with_the_highest_loss_go_on(name, keep):
    learn = vit_learner(name, [HardRegions('blocks.2', keep, cells=None, score='loss')])
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
                    others = [found[j]['blocks_2'] for a, j in pairs if a == v]
                    losses = [mean_of([each_query(slow, p[i, :, t], k) for k in others]) for t in range(16)]
                    for row in torch.stack(losses, 1).tolist():
                        rows.append(sorted(sorted(range(16), key=row.__getitem__, reverse=True)[:round(16 * keep)]))
                return rows
        middle, end = tokens(net.encoder, torch.cat([asked[v] for v in some]), choose)
        for i, v in enumerate(some):
            h['blocks_2'][v], h['final'][v] = middle[:, 1:].mean(1).split(B)[i], end.split(B)[i]
    queries = {}
    for level in levels:
        zs, queries[level] = slow.heads([[x] for x in h[level]], level)
        if own:
            if level == 'blocks_2': keys = [{} for _ in asked]
            for v, z in enumerate(zs): keys[v][level] = z[0]
    agree(learn, slow, slow.total(queries, keys, pairs))


def test_two_who_choose_regions_at_one_stage():
    "The part of a part would go on"
    said(['HardRegions'], quick, 'moco_v3', cbs=[HardRegions('layer1'), HardRegions('layer1', keep=0.25)])


@pytest.mark.parametrize('keep', [0, -0.5, 1.5, math.nan, math.inf, None, '0.5', True, (0.5,)], ids=str)
def test_shares_that_cannot_be(keep): said([f'keep={keep!r}', 'HardRegions'], HardRegions, keep=keep)


@pytest.mark.parametrize('cells', [0, -1, 2.5, '4', True])
def test_cells_that_cannot_be(cells): said([f'cells={cells!r}', 'HardRegions'], HardRegions, cells=cells)


@pytest.mark.parametrize('stage,words', [
    ('layer4', ['layer4', 'layer1, layer2, layer3']), (4, ['layer4']), ('layer9', ['layer9', 'layer1']), (-1, ['-1']),
    (9, ['9']), (1.5, ['1.5']), ([1], ['1']), ('', ["''"])], ids=str)
@pytest.mark.parametrize('keep', [0.5, 1])
def test_stages_to_choose_at(stage, words, keep):
    learn = quick('moco_v3')
    before = traces(learn)[0]
    said(words, learn.add_cb, HardRegions(stage, keep))
    assert traces(learn)[0] == before


def test_a_map_too_small_to_keep_a_part_of():
    "One cell is all or nothing: a level and a head would be paid for, and nothing saved"
    said(['HardRegions'], quick, 'moco_v3', cbs=[HardRegions('layer3')])  # 1 x 1 at 16 pixels
