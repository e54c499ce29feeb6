"""DropPatches against a slow version; what it draws, and when; what goes on as before; whom it meets, and refuses."""
import copy
from operator import attrgetter

import pytest
import torch
from fastai.callback.core import Callback
from helpers.learners import SMALL_CROPS, learner_of, one_step, small, vit_learner
from helpers.pictures import LR, VIT, B, pictures
from helpers.recording import traces
from helpers.refusals import refusal, said
from helpers.slow import Slow, agree, cut, mean_of, tokens

from fastcontrast.evaluate.cost import Cost
from fastcontrast.learner import contrastive_learner
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.drop_patches import DropPatches
from fastcontrast.speedups.intermediate import IntermediateLoss
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt

close = torch.testing.assert_close
PATCHES = 16  # of a picture of 64 pixels


@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(5)


class Noted(DropPatches):
    "It notes where the random numbers were, and how many tokens went in and out"
    states, tokens = [], []
    def before_fit(self): self.states, self.tokens = [], []  # without those of a trial
    def choose(self, tokens):
        self.states.append(torch.get_rng_state())
        kept = super().choose(tokens)
        self.tokens.append((tokens.shape[-2], kept.shape[-2]))
        return kept


def drawn(state, n, keep, patches=PATCHES):
    "The patches that are kept, picture by picture"
    torch.set_rng_state(state)
    chances = torch.rand(n, patches).tolist()
    n = max(1, round(keep * patches))
    return [sorted(range(patches), key=row.__getitem__, reverse=True)[:n] for row in chances]


class SlowViT(Slow):
    "A step whose queries see some patches"
    def keys(self, views):
        keys = []
        for some in self.in_passes(views):
            with torch.no_grad(): _, h = tokens(self.teacher.encoder, torch.cat([views[v] for v in some]))
            keys += [{'final': self.teacher.heads['final'].projector(part)} for part in h.split(B)]
        return keys

    def encode_some(self, views, states, keep, n_patches=PATCHES):
        "Lists of parts of views to their features"
        out = [[] for _ in views]
        for some in self.in_passes(views):
            parts = [x for v in some for x in views[v]]
            kept = drawn(states.pop(0), B * len(parts), keep, n_patches)
            _, h = tokens(self.net.encoder, torch.cat(parts), lambda x, kept=kept: kept, at=-1)
            h = list(h.split(B))
            for v in some: out[v] = [h.pop(0) for _ in views[v]]
        return out


@pytest.mark.parametrize('keep', [0.5, 0.25, 0.01])
@pytest.mark.parametrize('name', ['simclr', 'moco_v2', 'moco_v3'])
def test_a_step(name, keep):
    learn = vit_learner(name, [cb := Noted(keep)])
    slow = SlowViT(learn)
    learn.fit(1, LR)
    asked, whole, pairs = slow.split([*learn.views.made[0]['views']])
    h = slow.encode_some([[x] for x in asked], cb.states, keep)
    assert not cb.states  # one draw for each pass
    zs, ps = slow.heads(h, 'final')
    keys = slow.keys(whole) if slow.teacher else [{'final': z[0]} for z in zs]  # of the same patches
    agree(learn, slow, slow.total({'final': ps}, keys, pairs))
    assert set(cb.tokens) == {(1 + PATCHES, 1 + max(1, round(keep * PATCHES)))}


def test_of_combined_patches():
    "Each part of a view has its own"
    learn = vit_learner('moco_v3', [cb := Noted(), CombinePatches()])
    slow = SlowViT(learn)
    learn.fit(1, LR)
    views = [*learn.views.made[0]['views']]
    h = slow.encode_some([cut(x, 2) for x in views], cb.states, 0.5, PATCHES // 4)
    subsets = [(i, j) for i in range(4) for j in range(i)]
    ps = slow.heads([[mean_of([view[i] for i in s]) for s in subsets] for view in h], 'final')[1]
    agree(learn, slow, slow.total({'final': ps}, slow.keys(views), slow.pairs(2, 2)))


class Sizes(Callback):
    "How many tokens the blocks of an encoder had in every step, by pass"
    def __init__(self, of='model.encoder'): self.of, self.seen = attrgetter(of), []
    def before_batch(self): self.seen = []
    def before_fit(self):
        self.steps = []
        def note(module, args): self.seen.append(args[0].shape[1])
        self.hook = self.of(self.learn).blocks[0].register_forward_pre_hook(note)
    def after_batch(self): self.steps.append(self.seen)
    def after_fit(self): self.hook.remove()


def test_until():
    learn = vit_learner('simclr', [DropPatches(0.5, until=0.5), sizes := Sizes(), cost := Cost()])
    learn.fit(4, LR)
    assert sizes.steps == [[9]] * 2 + [[17]] * 2
    few, all_of_them = cost.flops.values()
    assert 0.45 < few / all_of_them < 0.65


def test_every_role_and_size():
    "Crops, labelled pictures, and views that grow; the keys of a moving average are of all patches"
    learn = learner_of(VIT, [DropPatches(), SMALL_CROPS(), ProgressiveSize(steps=(32, 64), until=0.5), sizes := Sizes(),
                             keys := Sizes('ema_target.target.encoder')], 64)
    learn.fit(2, LR)
    assert sizes.steps == [[3, 3, 2, 2]] * 2 + [[9, 9, 3, 3]] * 2
    assert keys.steps == [[5, 5]] * 2 + [[17, 17]] * 2


def test_labelled_pictures():
    learn = contrastive_learner(pictures(8, 64, 4, labels='all'), VIT, method=small('moco_v3', 'cifar'), knn_pictures=0,
                                cbs=[DropPatches(), SuNCEt(per_class=2), sizes := Sizes()])
    learn.create_mbar = False
    learn.fit(1, LR)
    assert all(set(seen) == {9} and len(seen) > 1 for seen in sizes.steps)


def test_regions_and_levels_of_what_is_left():
    learn = vit_learner('moco_v3', [DropPatches(), IntermediateLoss(), cb := HardRegions('blocks.2')])
    class Look(Callback):
        def after_pred(self): self.shapes = cb.heat.shape, cb.kept.shape
    learn.fit(1, LR, cbs=[look := Look()])
    assert look.shapes == ((2 * B, 8), (2 * B, 4))


def test_one_that_keeps_all_is_not_there():
    def weights(cbs):
        torch.manual_seed(3)
        learn = vit_learner('moco_v3', cbs)
        learn.fit(2, LR)
        return learn.diary.losses, learn.model.state_dict()
    close(weights([]), weights([DropPatches(1)]), rtol=0, atol=0)


def test_it_leaves_nothing(tmp_path):
    learn = vit_learner('simclr', [])
    before, x = traces(learn)[0], torch.rand(2, 3, 64, 64).double()
    encoder = copy.deepcopy(learn.model.encoder)
    learn.add_cb(DropPatches())
    close(learn.model.encoder.eval()(x), encoder.eval()(x))  # whoever judges it sees whole pictures
    close(learn.model.encoder.train()(x), encoder.train()(x))
    learn.remove_cb(DropPatches)
    assert traces(learn)[0] == before


def test_other_draws_for_every_view_picture_and_step():
    learn = vit_learner('simclr', [cb := Noted()])
    learn.fit(3, LR)
    choices = [drawn(state, 2 * B, 0.5) for state in cb.states]
    assert len(choices) == 3 and choices[0] != choices[1] != choices[2]
    assert all(len({tuple(row) for row in rows}) > B for rows in choices)


def test_what_it_is_not_for():
    said(['DropPatches(keep=0.5)', "'test_resnet' is none", 'vit_tiny'], one_step, 'simclr', cbs=[DropPatches()])
    learn = one_step('simclr')
    before = traces(learn)[0]
    refusal(learn.add_cb, DropPatches())
    assert traces(learn)[0] == before
    one_step('simclr', cbs=[DropPatches(1)])


def test_patches_too_few():
    said(['DropPatches(keep=0.5)', 'all 1 patches', '16 x 16 pixels'], learner_of, VIT, [DropPatches()], 16)
    # views that grow may begin with as few
    learn = learner_of(VIT, [DropPatches(0.8), ProgressiveSize(steps=(16, 64), until=0.5), sizes := Sizes()], 64)
    learn.fit(2, LR)
    assert sizes.steps == [[2, 2]] * 2 + [[14, 14]] * 2


def test_two_of_them():
    said(['DropPatches(keep=0.5)', 'already'], vit_learner, 'simclr', [DropPatches(), DropPatches(0.25)])


@pytest.mark.parametrize('name', ['keep', 'until'])
@pytest.mark.parametrize('value', [0, -0.5, 1.5, None, '0.5', True], ids=str)
def test_what_cannot_be(name, value): said([f'{name}=', 'DropPatches'], DropPatches, **{name: value})


def test_its_name(): assert repr(DropPatches(0.25, 0.8)) == 'DropPatches(keep=0.25, until=0.8)'
