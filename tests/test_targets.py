"""Who makes the keys, and what is remembered: moving averages against their closed form, queues against lists."""
import copy
import math
from functools import partial

import pytest
import timm.layers
import torch
import torchvision
from fastai.callback.core import Callback
from helpers.learners import build, plain_learner, quick, random_views, sized_learner, small, tiny_model
from helpers.loops import closed_form, cos, cosine_momentum, unit
from helpers.pictures import ARCH, LR, SIDE, B, Dots, K, KnownViews, plain_batches
from helpers.recording import After, Diary, Script, Seen, contents, interrupt, step_keys, train_two_steps
from helpers.refusals import refusal

from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import DINOLoss, InfoNCE
from fastcontrast.models import Embedding
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.recipes import METHODS, RECIPES
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.step import OTHER, Step
from fastcontrast.targets import EMATarget, NearestNeighbours, Queue, SharedTarget, StopGradTarget

close = torch.testing.assert_close
SEED = 7


@pytest.mark.parametrize('schedule,ahead', [('constant', 0), ('cosine', 0), ('cosine', 1), ('cosine', 4)])
def test_the_target_is_the_closed_form(schedule, ahead):
    ema = EMATarget(0.7, schedule, ahead=ahead)
    assert repr(eval(repr(ema))) == repr(ema)
    learn = plain_learner(tiny_model(), InfoNCE(0.2), ema, Diary(), batches=plain_batches(3))
    learn.fit(2, LR)
    n = 6
    shares = [min(1, (i + ahead) / n) for i in range(n)]
    ms = [0.7 if schedule == 'constant' else 1 - 0.3 * (math.cos(math.pi * t) + 1) / 2 for t in shares]
    seen = learn.diary.weights
    params = dict(learn.ema_target.target.named_parameters())
    assert len(seen) == n + 1 and 'encoder.0.weight' in params and 'heads.final.projector.0.weight' in params
    for name, p in params.items():
        close(p, closed_form([w[name] for w in seen], ms))
        if p.ndim > 1: assert not torch.allclose(p, seen[-1][name]) and not torch.allclose(p, seen[0][name])


def test_the_target_is_no_part_of_what_trains():
    learn = plain_learner(tiny_model(), InfoNCE(0.2), EMATarget(0.7), Diary())
    target = learn.ema_target.target
    started = {k: v.clone() for k, v in target.state_dict().items()}
    for k, v in started.items(): assert torch.equal(v, learn.model.state_dict()[k])  # an exact copy, buffers included
    learn.fit(1, LR)
    assert target is learn.model.memory['ema'] and target.heads.final.predictor is None
    assert not any('predictor' in k for k in started) and not any('memory' in k for k in started)
    assert all(p.grad is None and not p.requires_grad for p in target.parameters())
    assert not any(n.startswith('memory') for n in learn.diary.grads[0])
    assert any('predictor' in n for n in learn.diary.grads[0])
    held = {id(p) for group in learn.opt.param_lists for p in group}
    assert held.isdisjoint(id(p) for p in target.parameters()) and id(learn.model.encoder[0].weight) in held
    shared = {p.data_ptr() for p in learn.model.encoder.parameters()} & {p.data_ptr() for p in target.parameters()}
    assert not shared


def test_the_target_has_its_own_batchnorm_statistics():
    learn = plain_learner(tiny_model(), InfoNCE(0.2), EMATarget(1.0, 'constant'))  # its weights stay where they began
    twin = copy.deepcopy(learn.ema_target.target)
    learn.fit(1, 0.5)
    for x, _ in learn.dls.train:
        with torch.no_grad(): twin.embed(KnownViews()(x)['views'])
    ours, theirs, online = (m.encoder[1].running_mean for m in (learn.ema_target.target, twin, learn.model))
    close(ours, theirs)
    assert not torch.allclose(ours, online)


@pytest.mark.parametrize('skip, field', [
    (timm.layers.DropPath(0.5), 'drop_prob'), (torchvision.ops.StochasticDepth(0.5, 'row'), 'p')])
def test_no_block_of_the_target_is_skipped(skip, field):
    "Of networks whose blocks are at times, in timm's way or torchvision's"
    model = tiny_model()
    model.encoder.append(copy.deepcopy(skip))
    target = plain_learner(model, InfoNCE(0.2), EMATarget(0.7)).ema_target.target.train()
    assert [getattr(m.encoder[-1], field) for m in (model, target)] == [0.5, 0]
    x = torch.rand(32, 3, 9, 9, dtype=torch.float64)
    assert (model.train().encoder(x) == 0).all(-1).any()
    close(target.encoder(x), target.encoder(x), rtol=0, atol=0)


def test_targets_come_and_go():
    learn = plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget())
    found = list(learn.model.state_dict())
    learn.fit(1, LR)
    learn.remove_cb(SharedTarget)
    learn.add_cb(EMATarget(0.9))
    assert any(k.startswith('memory.ema.encoder') for k in learn.model.state_dict())
    learn.fit(1, LR)
    learn.remove_cb(learn.ema_target)
    assert list(learn.model.state_dict()) == found and not hasattr(learn, 'ema_target')
    ema = EMATarget(0.9)
    with learn.added_cbs(ema): learn.fit(1, LR)
    assert list(learn.model.state_dict()) == found and ema.target is None
    learn.fit(1, LR, cbs=SharedTarget())
    assert list(learn.model.state_dict()) == found


def test_a_target_added_late_starts_from_the_weights_of_then():
    learn = plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget())
    learn.fit(1, LR)
    learn.remove_cb(SharedTarget)
    learn.add_cb(EMATarget(0.9))
    close(learn.ema_target.target.encoder[0].weight, learn.model.encoder[0].weight, rtol=0, atol=0)


def test_fit_again_goes_on_with_the_target():
    learn = plain_learner(tiny_model(), InfoNCE(0.2), EMATarget(0.6, 'constant'), Diary())
    name, weights = 'encoder.0.weight', []
    for _ in range(2):
        learn.fit(1, LR)
        weights += [w[name] for w in learn.diary.weights][bool(weights):]
    assert len(weights) == 5
    close(learn.ema_target.target.get_parameter(name), closed_form(weights, [0.6] * 4))


def test_save_and_load_bring_the_target_back(tmp_path):
    batches = plain_batches()
    def make(): return plain_learner(tiny_model(), InfoNCE(0.2), EMATarget(0.6), batches=batches, path=tmp_path)
    one, other = make(), make()
    one.fit(1, LR)
    one.save('here')
    other.load('here')
    assert one.model.state_dict().keys() == other.model.state_dict().keys()
    for k, v in one.model.state_dict().items(): assert torch.equal(v, other.model.state_dict()[k]), k
    assert other.ema_target.target is other.model.memory['ema']
    for learn in (one, other): learn.fit(1, LR)  # what was loaded is what the callback goes on with
    close(one.ema_target.target.state_dict(), other.ema_target.target.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize('momentum', [-0.1, 1.01])
def test_momentum_outside_its_range(momentum):
    with pytest.raises(InputError, match=f'momentum={momentum}'): EMATarget(momentum)


def test_unknown_momentum_schedule():
    with pytest.raises(InputError, match='did you mean cosine'): EMATarget(schedule='cosin')
    with pytest.raises(InputError, match='ahead=-1'): EMATarget(ahead=-1)


@pytest.mark.parametrize('m,schedule,end', [
    (0.7, 'constant', 1.0), (0.6, 'cosine', 1.0), (0.6, 'cosine', 0.9), (0.9, 'cosine', 0.2), (0.0, 'constant', 1.0)])
def test_the_moving_average_is_the_closed_form(m, schedule, end):
    learn = sized_learner(InfoNCE(0.2), EMATarget(m, schedule, end), Diary())
    learn.fit(2, LR)
    ms = [m if schedule == 'constant' else cosine_momentum(m, end)(i / 6) for i in range(6)]
    params = dict(learn.ema_target.target.named_parameters())
    assert len(learn.diary.weights) == 7 and len(params) > 6
    for name, p in params.items(): close(p, closed_form([w[name] for w in learn.diary.weights], ms))
    if m == 0: assert torch.equal(params['encoder.0.weight'], learn.model.encoder[0].weight)


@pytest.mark.parametrize('one_way', [True, False])
@pytest.mark.parametrize('size', [4, 6, 7, 13, 40])
@pytest.mark.parametrize('data', [(6, 6, 3), (6, 6, 6), (5, 2)], ids=str)
def test_a_queue_holds_the_last_keys_in_order(size, data, one_way):
    before, after = Seen(21), Seen(25)
    learn = sized_learner(InfoNCE(0.2), EMATarget(0.8), Queue(size), before, after, data=data, one_way=one_way)
    ring = learn.model.memory['queue']['final']
    rows = ring.rows.clone()
    close(rows.norm(dim=1), torch.ones(size, dtype=torch.float64), rtol=1e-6, atol=0)
    learn.fit(2, LR)
    written = 0
    for (_, k), (_, same, given) in zip(before.steps, after.steps, strict=True):
        assert torch.equal(k, same) and len(k) == (1 if one_way else 2)
        # what the loss was given: the last rows of before this batch
        assert sorted(map(tuple, given.tolist())) == sorted(map(tuple, given.roll(-written, 0).tolist()))
        close(given.roll(-(written % size), 0), rows)
        similar = unit(k).flatten(0, 1) @ given.T
        assert similar.max() < 1 - 1e-9  # a key is not among its own negatives
        rows = torch.cat([rows, *unit(k)])[-size:]
        written += k.shape[0] * k.shape[1]
    close(ring.in_order(), rows)
    assert int(ring.written) == written and ring.rows.shape == (size, 5)


@pytest.mark.parametrize('size', [6, 7, 20])
def test_a_queue_for_each_view_holds_the_last_keys_of_each(size):
    before, after = Seen(21), Seen(25)
    learn = sized_learner(InfoNCE(0.2), EMATarget(0.8), Queue(size, per_view=True), before, after, Diary())
    rows, written = learn.model.memory['queue']['final'].rows.clone(), 0
    assert rows.shape == (2, size, 5)
    learn.fit(2, LR)
    for (q, k), (_, _, given), value in zip(before.steps, after.steps, learn.diary.losses, strict=True):
        close(given.roll(-(written % size), 1), rows)
        pairs = [InfoNCE(0.2)(q['views'][i], k[j], rows[j]) for i, j in ((0, 1), (1, 0))]  # the key's view's rows
        assert value == pytest.approx((sum(pairs) / 2).item(), rel=1e-8)
        rows = torch.cat([rows, unit(k)], 1)[:, -size:]
        written += k.shape[1]
    ring = learn.model.memory['queue']['final']
    close(ring.in_order(), rows)
    assert int(ring.written) == written and repr(learn.queue) == f'Queue({size}, per_view=True)'


def test_a_queue_for_each_view_one_way_and_of_other_views():
    learn = sized_learner(InfoNCE(0.2), EMATarget(0.8), Queue(9, per_view=True), one_way=True)
    assert learn.model.memory['queue']['final'].rows.shape == (1, 9, 5)
    learn.fit(1, LR)
    learn = quick('swav', memory=partial(Queue, 9, per_view=True))
    learn.add_cb(MultiCrop((3, None, (.4, 1)), (2, 8, (.1, .4))))
    text = refusal(learn.fit, 1, LR)
    assert 'Queue(9, per_view=True)' in text and '2 key views' in text and 'has 3' in text


def test_a_queue_that_starts_late_is_filled_before_and_given_when_full():
    seen = Seen(25)
    learn = sized_learner(InfoNCE(0.2), EMATarget(0.8), Queue(20, start=1), seen, one_way=True)
    learn.fit(3, LR)
    assert [len(s) - 2 for s in seen.steps] == [0, 0, 0, 0, 1, 1, 1, 1, 1]  # 24 rows after the fourth step
    ring = learn.model.memory['queue']['final']
    close(ring.in_order(), unit(torch.cat([s[1][0] for s in seen.steps]))[-20:])
    again = Seen(25)
    learn.remove_cb(seen)
    learn.fit(2, LR, cbs=again)
    assert [len(s) - 2 for s in again.steps] == [0, 0, 0, 1, 1, 1]  # it was full already; the epochs are this fit's


@pytest.mark.parametrize('target', [SharedTarget, StopGradTarget, EMATarget])
@pytest.mark.parametrize('size', [7, 20])
def test_neighbours_are_those_of_before_the_batch(size, target):
    own, found = Seen(21), Seen(25)
    learn = sized_learner(InfoNCE(0.2, anchors='keys'), target(), NearestNeighbours(size), own, found, data=(6, 6, 3),
                          predictor=True)
    rows = learn.model.memory['neighbours']['final'].rows.clone()
    learn.fit(2, LR)
    for (_, z), (_, near) in zip(own.steps, found.steps, strict=True):
        assert near.shape == z.shape
        for v in range(2):
            for i in range(z.shape[1]):
                close(near[v, i], rows[max(range(size), key=lambda j: cos(z[v, i], rows[j]).item())])
        rows = torch.cat([rows, unit(z[0])])[-size:]  # the first view's keys enter
    close(learn.model.memory['neighbours']['final'].in_order(), rows)


def test_neighbours_have_no_gradient_and_keys_do():
    grads = {}
    class Look(Callback):
        order = 26
        def after_pred(self): grads[self.epoch] = step_keys(self.learn)['final'].requires_grad
    sized_learner(InfoNCE(0.2), SharedTarget(), Look()).fit(1, LR)
    assert grads == {0: True}
    for cbs in ([SharedTarget(), NearestNeighbours(9)], [StopGradTarget()], [EMATarget()]):
        sized_learner(InfoNCE(0.2), *cbs, Look()).fit(1, LR)
        assert grads == {0: False}


def test_a_stopped_step_is_not_remembered():
    learn = sized_learner(InfoNCE(0.2), EMATarget(0.8), Queue(9), one_way=True)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, LR, cbs=After('after_backward', 1, interrupt))
    ring = learn.model.memory['queue']['final']
    assert int(ring.written) == B and learn.queue.keys is None
    learn.fit(1, LR)
    assert int(ring.written) == 4 * B


SAVED = [('moco_v2', lambda: [Queue(9), EMATarget(0.9, 'constant')]), ('byol', lambda: [EMATarget(0.9, 'constant')]),
         ('nnclr', lambda: [NearestNeighbours(9)]), ('swav', lambda: [Queue(15)]),
         ('dino', lambda: [EMATarget(0.9, 'constant')])]


@pytest.mark.parametrize('name,cbs', SAVED, ids=[n for n, _ in SAVED])
def test_save_and_load_go_on_as_if_nothing_had_happened(name, cbs, tmp_path):
    views = random_views(6, local=name in ('swav', 'dino'))
    recipe = small(name, opt='sgd', **(dict(prototypes_frozen=0) if name in ('swav', 'dino') else {}))
    one, other = (build(recipe, cbs=cbs(), path=tmp_path) for _ in range(2))
    one.views, other.views = Script(views), Script(views[3:])
    one.fit(1, LR)
    one.save('here')
    other.load('here')
    assert one.model.state_dict().keys() == other.model.state_dict().keys()
    kept = [k for k in other.model.state_dict() if k.startswith('memory')]
    words = dict(moco_v2='queue.final.rows ema.encoder', byol='ema.encoder', nnclr='neighbours.final.rows',
                 swav='queue.final.rows', dino='losses.final.center ema.heads.final.prototypes')[name].split()
    for word in words: assert any(word in k for k in kept)
    for learn in (one, other): learn.fit(1, LR)
    assert one.diary.losses == pytest.approx(other.diary.losses, rel=1e-12) and len(one.diary.losses) == 3
    for k, v in one.model.state_dict().items(): close(v, other.model.state_dict()[k], rtol=1e-12, atol=1e-14)
    third = build(recipe, cbs=cbs())  # and another state goes on otherwise
    third.views = Script(views[3:])
    third.fit(1, LR)
    assert third.diary.losses != pytest.approx(one.diary.losses, rel=1e-6)


@pytest.mark.parametrize('name,learns', [
    ('nnclr', False), ('swav', False), ('simclr', True), ('barlow_twins', True), ('vicreg', True)])
def test_a_pass_of_the_keys_own_has_a_graph_where_a_gradient_goes_through_them(name, learns):
    "Beside patches; what is computed is the same with and without"
    def run(always):
        torch.manual_seed(7)
        learn, graphs, losses = quick(name, cbs=[CombinePatches()]), [], []
        if always: learn.plan.key_gradient = learn.loss_func.loss.key_gradient = True
        def note(module, args, h): graphs.append((args[0].shape[-1], h.requires_grad))
        learn.model.encoder.register_forward_hook(note)
        learn.fit(1, LR, cbs=After('after_step', 1, lambda: losses.append(learn.loss.item())))
        return graphs, losses, learn.model.state_dict()
    (graphs, *ours), (all_graphs, *theirs) = run(False), run(True)
    assert set(graphs) == {(16, learns), (8, True)} and set(all_graphs) == {(16, True), (8, True)}
    close(ours, theirs, rtol=0, atol=0)


def test_neighbours_that_leave_give_the_keys_their_gradient_back():
    learn = quick('simclr', InfoNCE(0.2), [CombinePatches()])
    assert learn.plan.key_gradient
    learn.add_cb(memory := NearestNeighbours(16))
    assert not learn.plan.key_gradient
    learn.remove_cb(memory)
    assert learn.plan.key_gradient


@pytest.mark.parametrize('name', METHODS)
def test_nothing_trains_that_should_not(name):
    recipe = small(name, **(dict(memory=partial(Queue, 9)) if name in ('moco_v1', 'moco_v2', 'swav')
                            else dict(memory=partial(NearestNeighbours, 9)) if name == 'nnclr' else {}))
    learn = build(recipe)
    learn.fit(2, 0.001)
    memory = learn.model.memory
    assert set(memory) == {'losses',
                           *dict(moco_v1=['ema', 'queue'], moco_v2=['ema', 'queue'], swav=['queue'],
                                 nnclr=['neighbours'],
                                 moco_v3=['ema'], fast_moco=['ema'], byol=['ema'],
                                 dino=['ema']).get(name, [])}
    held = {id(p) for group in learn.opt.param_lists for p in group}
    assert held == {id(p) for n, p in learn.model.named_parameters() if not n.startswith('memory')}
    for p in memory.parameters(): assert p.grad is None and not p.requires_grad
    for b in learn.model.buffers(): assert b.grad is None and not b.requires_grad
    for grads in learn.diary.grads: assert grads and not any(n.startswith('memory') for n in grads)
    has = ['prototypes' in ' '.join(grads) for grads in learn.diary.grads]
    assert has == ([False] * 3 + [True] * 3 if RECIPES[name].prototypes else [False] * 6)  # frozen in the first epoch


def test_a_targets_prototypes_follow_and_keep_their_length():
    learn = build(small('swav', 'cifar', opt='sgd', prototypes_frozen=0), cbs=[EMATarget(0.5, 'constant')])
    began = learn.model.heads.final.prototypes.weight.detach().clone()
    learn.fit(1, 0.5)
    own, theirs = learn.model.heads.final.prototypes.weight, learn.ema_target.target.heads.final.prototypes.weight
    for w in (own, theirs): close(w.norm(dim=1), torch.ones(K, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (own - began).norm() > (theirs - began).norm() > 1e-3 and theirs.grad is None


@pytest.mark.parametrize('name', ['moco_v2', 'byol', 'dino'])
def test_the_targets_batchnorm_statistics_are_its_own(name):
    "A target whose weights stay where they began: its statistics are of its own activations"
    learn = build(small(name, opt='sgd'), cbs=[EMATarget(1.0, 'constant'), *([Queue(9)] if name == 'moco_v2' else [])])
    twin = copy.deepcopy(learn.ema_target.target)
    learn.fit(1, 0.5)
    with torch.no_grad():
        for made in learn.views.made:
            v = made['views'][1:] if name == 'moco_v2' else made['views']  # MoCo's target sees one view
            for x in v if name == 'byol' else [v.flatten(0, 1)]: twin.heads.final.projector(twin.encoder(x))
    ours, theirs = learn.ema_target.target.state_dict(), twin.state_dict()
    stats = [n for n in ours if n.endswith('running_mean') or n.endswith('running_var')]
    assert len(stats) >= 30
    for n in stats: close(ours[n], theirs[n])
    assert not torch.allclose(ours[stats[-1]], learn.model.state_dict()[stats[-1]])


@pytest.mark.parametrize('opt', ['sgd', 'adamw', 'lars'])
@pytest.mark.parametrize('name', ['swav', 'dino'])
def test_frozen_prototypes_do_not_move_by_momentum_or_weight_decay(name, opt):
    moved = []
    class Compare(Callback):
        order = 27  # before they are brought back to unit length
        def weight(self): return self.model.heads.final.prototypes.weight.detach().clone()
        def before_step(self): self.old = self.weight()
        def after_step(self): moved.append(not torch.equal(self.old, self.weight()))
    learn = build(small(name, 'cifar', opt=opt, wd=0.1, prototypes_frozen=0), cbs=[Compare()])
    learn.fit(1, 0.01)
    assert moved == [True] * 3  # the optimizer has momentum for them now
    learn.prototype_scores.frozen = 1
    moved.clear()
    learn.fit(2, 0.01)
    assert moved == [False] * 3 + [True] * 3


def test_dinos_centre_moves_only_in_training():
    dls = image_dls(Dots(24, SIDE), bs=B, valid=0.25, workers=0, device='cpu')
    learn = contrastive_learner(dls, ARCH, method=small('dino', 'cifar'), small_input=False, cbs=Seen(29))
    learn.create_mbar = False
    loss = learn.model.memory['losses']['final']
    assert loss.center is None  # trying the loss out has left none
    learn.fit(1, 0.001)
    center = loss.center.clone()
    expected = torch.zeros(K)
    for _, k in learn.seen.steps: expected = 0.9 * expected + 0.1 * k.mean((0, 1))
    assert len(learn.seen.steps) == 3
    close(center, expected)
    learn.knn()
    learn.embed()
    learn.linear_probe()
    assert torch.equal(loss.center, center)
    q, k = learn.seen.steps[0]
    embeddings = {'views': {'final': Embedding(q['views'], q['views'])}}
    step = Step(keys={'final': k}, queries={'views': OTHER})
    learn.model.eval()
    learn.loss_func(embeddings, step)
    learn.loss_func.update(step)
    loss.update(q['views'], k)
    assert torch.equal(loss.center, center)
    learn.model.train()
    learn.loss_func(embeddings, step)
    assert torch.equal(loss.center, center)
    learn.loss_func.update(step)
    assert not torch.equal(loss.center, center)


@pytest.mark.parametrize('opt', ['sgd', 'adamw', 'lars'])
@pytest.mark.parametrize('name', ['swav', 'dino'])
def test_prototypes_thaw_with_every_optimizer(name, opt):
    learn = build(small(name, 'cifar', opt=opt, prototypes_frozen=1), n=2 * B)
    learn.fit_contrastive(2, 0.1)
    rows = [w['heads.final.prototypes.weight'] for w in learn.diary.weights]
    close(rows[2], rows[0], rtol=1e-6, atol=1e-6)
    assert len(rows) == 5 and (rows[4] - rows[2]).abs().max() > 2e-6


@pytest.mark.parametrize('make', [
    partial(Queue, 16), partial(NearestNeighbours, 16), partial(MultiCrop, (2, 16, (.4, 1)), (2, 8, (.1, .4)))],
                         ids=['Queue', 'NearestNeighbours', 'MultiCrop'])
@pytest.mark.parametrize('stop', [False, True], ids=['finished', 'stopped'])
def test_a_removed_callback_leaves_no_trace(make, stop):
    learn = quick('moco_v3')
    before = contents(learn)
    part = make()
    for _ in range(2):  # and it can come again
        learn.add_cb(part)
        assert contents(learn)[1:] != before[1:]
        if stop:
            with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3, cbs=After('after_pred', 1, interrupt))
        else: learn.fit(1, 1e-3)
        learn.remove_cb(part)
        assert contents(learn) == before
    with learn.added_cbs(part): pass
    assert contents(learn) == before
    learn.fit(1, 1e-3, cbs=part)
    assert contents(learn) == before
    for m in learn.model.modules(): assert not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks)


def test_a_recipes_memory_fits_the_data():
    assert quick('moco_v2').queue.size == 16
    assert 'more rows than there are pictures: 16 here' in quick('moco_v2').notes[0]
    assert quick('moco_v2', memory=partial(Queue, 40)).queue.size == 40
    assert not quick('moco_v2', memory=partial(Queue, 40)).notes
    large = contrastive_learner(image_dls('digits', bs=600), ARCH, method='moco_v2')
    assert large.queue.size == 600 and '600 rows here' in large.notes[0]
    without = contrastive_learner(image_dls('digits', bs=600), ARCH, method='swav')
    assert list(without.model.memory) == ['losses'] and 'left out' in without.notes[0]
    large.create_mbar = False
    large.fit_contrastive(1)


def test_notes_are_printed_when_a_fit_begins(capsys):
    quick('moco_v2').fit_contrastive(1)
    assert 'more rows than there are pictures' in capsys.readouterr().out.splitlines()[1]


def test_parts_that_are_added_later_are_checked_as_well():
    learn = quick('byol')
    assert 'NegCosine has no use for Queue(64)' in refusal(learn.add_cb, Queue(64))
    learn = quick('simclr')
    assert 'SharedTarget() already' in refusal(learn.add_cb, EMATarget())
    train_two_steps(learn)
    learn.remove_cb(SharedTarget)
    learn.add_cb(EMATarget(0.9))
    learn.add_cb(NearestNeighbours(16))
    train_two_steps(learn)
    assert [*learn.model.memory] == ['losses', 'ema', 'neighbours']


def test_a_given_loss_keeps_what_it_remembers_apart():
    loss = DINOLoss()
    a, b = (quick('dino', loss=loss) for _ in range(2))
    train_two_steps(a)
    assert loss.center is None and b.loss_func.loss.center is None and a.loss_func.loss.center.any()


@pytest.mark.parametrize('cbs,words', [
    (lambda: [Queue(4)], ['Queue(4)', 'batch of 8']),
    (lambda: [NearestNeighbours(7)], ['NearestNeighbours(7)', 'batch of 8'])])
def test_a_memory_smaller_than_a_batch(cbs, words):
    text = refusal(quick, 'moco_v3', cbs=cbs())
    assert all(w in text for w in words) and text.endswith('.')
    quick('moco_v3', cbs=[type(cbs()[0])(8)])


def test_a_recipes_queue_smaller_than_a_batch():
    assert 'Queue(5) is smaller than a batch of 8' in refusal(quick, 'moco_v2', memory=partial(Queue, 5))


@pytest.mark.parametrize('size', [0, -1, 1.5, True, None, '9'])
@pytest.mark.parametrize('make', [Queue, NearestNeighbours])
def test_sizes_of_memories(make, size):
    text = refusal(make, size)
    assert f'size={size!r}' in text and make.__name__ in text


@pytest.mark.parametrize('start', [-1, 0.5, None, True])
def test_starts_of_queues(start): assert f'start={start!r}' in refusal(Queue, 9, start)


@pytest.mark.parametrize('field', ['momentum', 'end'])
@pytest.mark.parametrize('m', [-0.01, 1.5, math.nan, None, '0.9'])
def test_momenta(field, m):
    text = refusal(EMATarget, **{field: m})
    assert f'{field}={m!r} of EMATarget must be a finite number at least 0 and at most 1.' == text


def test_two_of_an_axis():
    assert all(w in refusal(quick, 'moco_v3', cbs=[Queue(16), NearestNeighbours(16)])
               for w in ('Queue(16)', 'NearestNeighbours(16)'))
    assert 'SharedTarget()' in refusal(quick, 'moco_v3', cbs=[SharedTarget, EMATarget])
    assert 'MultiCrop' in refusal(quick, 'moco_v3', cbs=[MultiCrop(), MultiCrop()])


@pytest.mark.parametrize('make', [
    partial(Queue, 16), partial(NearestNeighbours, 16)], ids=['Queue', 'NearestNeighbours'])
def test_a_second_memory_and_one_of_another_learner(make):
    one, other = quick('moco_v3', cbs=[first := make()]), quick('moco_v3')
    before = contents(one)
    assert 'already' in refusal(one.add_cb, make())
    assert 'another learner' in refusal(other.add_cb, first)
    assert list(one.model.memory) == before[1]
