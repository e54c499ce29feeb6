"""What losses remember: nothing of being tried out, one update a step whoever scores, and each level for itself."""
import pytest
import torch
from fastai.callback.core import Callback
from helpers.learners import small
from helpers.pairs import paired
from helpers.pictures import ARCH, LEVELS, D, K, pictures
from torch import nn

from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import DINOLoss, Loss, NTXent
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.recipes import LOSSES
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.suncet import SuNCEt
from fastcontrast.step import Phase, StepCallback

SEED = 5


class Counting(Loss):
    "NT-Xent that counts how often it is scored, in a buffer and in a list, and draws random numbers"
    def __init__(self):
        super().__init__()
        self.register_buffer('scored', torch.zeros((), dtype=torch.long))
        self.register_buffer('mean', None)
        self.seen, self.inner = [], NTXent(0.2)

    def forward(self, q, k):
        self.scored += 1
        self.mean = q.detach().mean(0)
        self.seen.append(torch.rand(()).item())
        return self.inner(q, k)

    def extra_repr(self): return ''


class Foreign(nn.Module):
    "The same, by somebody who knows nothing of the library"
    def __init__(self):
        super().__init__()
        self.register_buffer('scored', torch.zeros((), dtype=torch.long))
        self.register_buffer('mean', None)
        self.seen, self.norm = [], nn.BatchNorm1d(8, affine=False)

    def forward(self, q, k):
        self.scored += 1
        self.mean = q.detach().mean(0)
        self.seen.append(torch.rand(()).item())
        return ((self.norm(q) - self.norm(k.detach()))**2).mean()


class Remembering(NTXent):
    "Keeps the mean of what it was given, and says when"
    def __init__(self, temp=0.2):
        super().__init__(temp)
        self.register_buffer('mean', None)
        self.updates_seen, self.was_fresh = [], 0

    def update(self, q, k):
        assert not torch.is_grad_enabled() and not q.requires_grad and not k.requires_grad
        self.updates_seen.append(([*q.shape], [*k.shape]))
        self.mean = k.mean((0, 1)) if self.mean is None else 0.9 * self.mean + 0.1 * k.mean((0, 1))

    def fresh(self):
        new = type(self)(self.temp)
        new.was_fresh = self.was_fresh + 1
        return new


class ForeignRemembering(nn.Module):
    "The same, without the library's base"
    def __init__(self):
        super().__init__()
        self.updates_seen, self.mean, self.loss = [], None, NTXent(0.2)
    def forward(self, q, k): return self.loss(q, k)
    update = Remembering.update


def learner_with(loss=None, cbs=(), name='simclr', given=None, **kwargs):
    "A learner with a loss of its own, or whose recipe has one"
    changes = {} if given is None else {'loss': given}
    recipe = small(name, 'cifar', **changes, **({'memory': None} if name == 'moco_v1' else {}))
    learn = contrastive_learner(pictures(24, 16, 8, labels='all'), ARCH, method=recipe, loss=loss, cbs=cbs,
                                small_input=False, knn_pictures=0, **kwargs)
    learn.create_mbar = False
    return learn


def own(loss):
    "A loss as somebody wrote it"
    return getattr(loss, 'module', loss)


# --- being tried out

@pytest.mark.parametrize('make', [Counting, Foreign])
@pytest.mark.parametrize('how', ['instance', 'class', 'of the recipe', 'made by the recipe'])
def test_trying_a_loss_out_leaves_no_trace(make, how):
    loss, state = make(), torch.get_rng_state()
    learner_with(loss=NTXent(0.2))
    expected = torch.get_rng_state()  # what making any learner draws
    torch.set_rng_state(state)
    given = dict(given=loss if how == 'of the recipe' else make) if 'recipe' in how else \
        dict(loss=make if how == 'class' else loss)
    learn = learner_with(**given)
    assert torch.equal(torch.get_rng_state(), expected)
    used = own(learn.loss_func.loss)
    untouched = make().state_dict()
    for held in (used, loss):
        assert held.state_dict().keys() == untouched.keys() and held.seen == []
        for name, value in held.state_dict().items(): assert torch.equal(value, untouched[name]), name
    learn.fit(1, 1e-3)
    assert int(used.scored) == len(used.seen) > 0 and used.mean is not None and used is not loss
    assert int(loss.scored) == 0 and loss.mean is None and loss.seen == []  # what was given is left alone


def test_dino_has_no_centre_before_the_first_step():
    centres = []
    class Look(StepCallback):
        phase = Phase.LAST
        def before_fit(self): self.look()
        def after_loss(self): self.look()
        def look(self):
            centre = self.loss_func.loss.center
            centres.append(None if centre is None else centre.clone())
    learn = learner_with(name='dino', cbs=[Look(), IntermediateLoss('layer1')])
    assert not any('center' in n for n in learn.model.state_dict())
    for level in ('layer1', 'final'): assert learn.model.memory['losses'][level].center is None
    learn.fit(1, 1e-3)
    assert centres[0] is None and [c.shape for c in centres[1:]] == [(K,)] * 3
    assert {n for n in learn.model.state_dict() if 'center' in n} == {
        'memory.losses.final.center', 'memory.losses.layer1.center'}


# --- one update a step

class ScoresAgain(StepCallback):
    "Scores the pairs a second time, of a mixture of the embeddings; `share`: of its loss in the step's"
    phase = Phase.LABELS
    def __init__(self, share): self.share = share
    def mixed(self):
        def mix(e): return type(e)([0.6 * t + 0.4 * t.flip(-2) for t in e])
        return {role: {level: mix(e) for level, e in levels.items()} for role, levels in self.pred.items()}
    def after_loss(self):
        again = self.loss_func(self.mixed(), self.learn.step)
        if self.share: self.learn.loss_grad = (1 - self.share) * self.loss_grad + self.share * again


class ScoresBefore(ScoresAgain):
    "And before the learner does so"
    phase = Phase.TERMS
    def after_pred(self): self.loss_func(self.pred, self.learn.step)


class Heard(Callback):
    "The keys of every step, as they were scored"
    order = Phase.TABLE
    def before_fit(self): self.steps = []
    def after_loss(self): self.steps.append({level: k.detach().clone() for level, k in self.learn.step.keys.items()})


MIXERS = dict(none=lambda: [], again=lambda: [ScoresAgain(0)], mixed=lambda: [ScoresAgain(0.5)],
              twice=lambda: [ScoresBefore(0.5), ScoresAgain(0.1)])
every_mixer = pytest.mark.parametrize('mixers', MIXERS.values(), ids=MIXERS)


@every_mixer
@pytest.mark.parametrize('accumulate', [1, 2])
def test_the_centre_moves_once_a_step_whoever_scores(mixers, accumulate):
    learn = learner_with(name='dino', cbs=[*mixers(), IntermediateLoss(), heard := Heard()], accumulate=accumulate)
    learn.fit(2, 1e-3)
    assert len(heard.steps) == 6
    for level in LEVELS:
        centre = torch.zeros(K)
        for keys in heard.steps: centre = 0.9 * centre + 0.1 * keys[level].mean((0, 1))
        torch.testing.assert_close(learn.loss_func.losses[level].center, centre)


@every_mixer
@pytest.mark.parametrize('name, make', paired(['simclr', 'moco_v3', 'moco_v1'], [Remembering, ForeignRemembering]))
def test_a_loss_is_updated_once_a_step(make, mixers, name):
    "With all queries and all keys of the step, after it was scored"
    order = []
    class Order(Callback):
        order = Phase.TABLE
        def after_loss(self): order.append(len(own(self.loss_func.loss).updates_seen))
    learn = learner_with(make(), [*mixers(), Order()], name)
    learn.fit(2, 1e-3)
    views = 1 if name == 'moco_v1' else 2
    assert own(learn.loss_func.loss).updates_seen == [([views, 8, D], [views, 8, D])] * 6
    assert order == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize('make', [Remembering, ForeignRemembering])
@pytest.mark.parametrize('cbs,queries', [
    (lambda: [MultiCrop((2, None, (.4, 1)), (3, 8, (.1, .4)))], 5), (lambda: [CombinePatches()], 12),
    (lambda: [SuNCEt()], 2)], ids=['crops', 'patches', 'labelled'])
@pytest.mark.parametrize('accumulate', [1, 2])
def test_an_update_has_the_queries_of_all_roles(make, cbs, queries, accumulate):
    learn = learner_with(make(), cbs(), accumulate=accumulate)
    learn.fit(1, 1e-3)
    assert own(learn.loss_func.loss).updates_seen == [([queries, 8, D], [2, 8, D])] * 3


# --- a level has a state of its own

@pytest.mark.parametrize('make', [Counting, Foreign, Remembering, ForeignRemembering, lambda: NTXent(0.2)])
def test_levels_share_nothing(make):
    learn = learner_with(loss=make(), cbs=[IntermediateLoss()])
    losses = learn.loss_func.losses
    assert tuple(losses) != LEVELS and set(losses) == set(LEVELS)
    assert learn.model.memory['losses'] is losses
    assert len({id(loss) for loss in losses.values()}) == len({id(own(loss)) for loss in losses.values()}) == 4
    held = [{id(x) for x in (*own(loss).modules(), *own(loss).buffers())} for loss in losses.values()]
    held = [ids | {id(v) for v in vars(own(loss)).values() if isinstance(v, list)}
            for ids, loss in zip(held, losses.values(), strict=True)]
    assert sum(map(len, held)) == len(set().union(*held))
    learn.fit(1, 1e-3)
    for loss in map(own, losses.values()):
        if hasattr(loss, 'scored'): assert int(loss.scored) == len(loss.seen) > 0 == len(loss.seen) % 3
        if hasattr(loss, 'updates_seen'): assert len(loss.updates_seen) == 3
    if hasattr(own(losses['final']), 'mean'):
        means = torch.stack([own(loss).mean.flatten() for loss in losses.values()])
        assert len(means.unique(dim=0)) == 4


@pytest.mark.parametrize('mixers', [MIXERS['none'], MIXERS['twice']])
def test_only_a_level_that_was_scored_is_updated(mixers):
    drawn = []
    class Look(Callback):
        order = Phase.TABLE
        def after_loss(self): drawn.append(self.partial_backprop.drawn)
    learn = learner_with(Remembering(), [IntermediateLoss(), PartialBackprop(seed=2), Look(), *mixers()])
    learn.fit(3, 1e-3)
    assert len(drawn) == 9 and len(set(drawn)) > 1
    for level, loss in learn.loss_func.losses.items():
        assert len(loss.updates_seen) == drawn.count(level)


def test_a_level_is_given_a_fresh_loss():
    "By the loss's own word, also when it is added late"
    learn = learner_with(Remembering())
    learn.fit(1, 1e-3)
    first = learn.loss_func.loss
    assert first.mean is not None and first.was_fresh == 0
    learn.add_cb(IntermediateLoss('layer2'))
    late = learn.loss_func.losses['layer2']
    assert late.was_fresh == 1 and late.mean is None and late.updates_seen == [] and learn.loss_func.loss is first
    learn.fit(1, 1e-3)
    assert len(first.updates_seen) == 6 and len(late.updates_seen) == 3
    assert {'memory.losses.final.mean', 'memory.losses.layer2.mean'} <= set(learn.model.state_dict())
    learn.remove_cb(IntermediateLoss)
    assert list(learn.loss_func.losses) == ['final'] and 'memory.losses.layer2.mean' not in learn.model.state_dict()


@pytest.mark.parametrize('name', LOSSES)
def test_the_librarys_losses_are_fresh(name):
    "The same settings, and nothing of what they remember"
    loss = LOSSES[name]()
    z = torch.randn(2, 4, 6)
    loss.update(z, z)
    fresh = loss.fresh()
    assert type(fresh) is type(loss) and repr(fresh) == repr(loss) and fresh is not loss and not fresh.state_dict()
    assert bool(loss.state_dict()) == loss.updates == isinstance(loss, DINOLoss)
