"""The head learns alone: the encoder stands still to the bit, nothing is spent on it, and a run goes on amidst."""
import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException
from helpers.deaths import Death, DieAt, run, same_state
from helpers.learners import SMALL_CROPS, small
from helpers.pairs import paired
from helpers.pictures import ARCH, VIT, Dots
from helpers.refusals import said
from torch import nn

from fastcontrast.checkpoint import Checkpoint
from fastcontrast.data import image_dls
from fastcontrast.evaluate.cost import Cost
from fastcontrast.learner import contrastive_learner
from fastcontrast.models import make_encoder
from fastcontrast.recipes import RECIPES
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.multi_view import MultiView
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm
from fastcontrast.warmup import HeadWarmup

SPEEDUPS = dict(
    none=list, patches=lambda: [CombinePatches()], levels=lambda: [IntermediateLoss()],
    partial=lambda: [IntermediateLoss(), PartialBackprop()], regions=lambda: [HardRegions('layer2')],
    suncet=lambda: [SuNCEt()], supervised=lambda: [SupervisedTerm('ce')], views=lambda: [MultiView(3)],
    all=lambda: [CombinePatches(), IntermediateLoss(), PartialBackprop(), HardRegions('layer2'), SuNCEt()])


def dots(n=20): return image_dls(Dots(n, 32), bs=4, valid=0.2, labels='all', workers=0, device='cpu')


def weights_of(folder, arch=ARCH):
    "A file of weights that are not those of the seed"
    torch.manual_seed(5)
    torch.save(make_encoder(arch, size=32).state_dict(), folder/'w.pth')
    return folder/'w.pth'


def learner(file, method='simclr', cbs=(), arch=ARCH, head_epochs=1, accumulate=1, **changes):
    torch.manual_seed(0)
    learn = contrastive_learner(dots(), arch, method=small(method, 'cifar', **changes), cbs=list(cbs), weights=file,
                                small_input=None, knn_pictures=8, head_epochs=head_epochs, accumulate=accumulate)
    learn.create_mbar = False
    return learn


class Watch(Callback):
    "The encoder's state and the heads' after every step, what has a gradient, and the mode of the encoder"
    order = 70
    def before_fit(self): self.encoders, self.states, self.grads, self.modes = [self.state()], [], [], []
    def state(self): return {name: t.clone() for name, t in self.model.encoder.state_dict().items()}
    def before_step(self):
        def having(net): return sum(p.grad is not None for p in net.parameters())
        self.grads.append((having(self.model.encoder), having(self.model.heads)))
        self.modes.append(any(m.training for m in self.model.encoder.modules()))
    def after_batch(self):
        self.encoders.append(self.state())
        self.states.append({name: t.clone() for name, t in self.model.heads.state_dict().items()})


def moved(first, other): return [name for name in first if not torch.equal(first[name], other[name])]


def check_still(learn, epochs=2, held=1):
    watch = Watch()
    learn.fit_contrastive(epochs, 1e-2, cbs=watch)
    steps = len(learn.dls.train)
    for i in range(held * steps):
        assert moved(watch.encoders[0], watch.encoders[i + 1]) == []
        assert watch.grads[i][0] == 0 and watch.grads[i][1] > 0 and not watch.modes[i]
    assert moved(watch.states[0], watch.states[held * steps - 1])
    last = moved(watch.encoders[0], watch.encoders[-1])
    assert any('running_mean' in name for name in last) and any(name.endswith('weight') for name in last)
    assert all(grads for grads, _ in watch.grads[held * steps:]) and all(watch.modes[held * steps:])
    assert all(p.requires_grad for p in learn.model.encoder.parameters())
    return watch


@pytest.mark.parametrize('method', RECIPES)
def test_the_encoder_stands_still_in_every_method(tmp_path, method):
    changes = dict(multi_crop=SMALL_CROPS) if RECIPES[method].multi_crop else {}
    check_still(learner(weights_of(tmp_path), method, **changes))


@pytest.mark.parametrize('speedups, method', paired(SPEEDUPS, ['simclr', 'moco_v3'], always=('all',)))
def test_the_encoder_stands_still_with_every_speedup(tmp_path, speedups, method):
    check_still(learner(weights_of(tmp_path), method, SPEEDUPS[speedups]()))


@pytest.mark.parametrize('method', ['simclr', 'moco_v3'])
@pytest.mark.parametrize('speedups', ['none', 'all'])
def test_the_encoder_stands_still_where_batches_come_in_parts(tmp_path, speedups, method):
    "PyTorch's own graph of the second pass: what stands still has none"
    learn, watch = learner(weights_of(tmp_path), method, SPEEDUPS[speedups](), accumulate=2), Watch()
    learn.fit_contrastive(2, 1e-2, cbs=watch)
    assert moved(watch.encoders[0], watch.encoders[4]) == [] and moved(watch.encoders[0], watch.encoders[-1])
    assert moved(watch.states[0], watch.states[3])


def test_heads_of_stages_learn_too(tmp_path):
    watch = check_still(learner(weights_of(tmp_path), cbs=[IntermediateLoss()]))
    changed = moved(watch.states[0], watch.states[3])
    assert {name.split('.')[0] for name in changed} == {'layer1', 'layer2', 'layer3', 'final'}


def test_an_average_stands_still_too(tmp_path):
    learn = learner(weights_of(tmp_path), 'moco_v3')
    target, seen = learn.ema_target.target.encoder, []
    class Look(Callback):
        order = 70
        def after_batch(self): seen.append({name: t.clone() for name, t in target.state_dict().items()})
    learn.fit_contrastive(2, 1e-2, cbs=Look())
    assert moved(seen[0], seen[3]) == [] and moved(seen[0], seen[-1])
    assert moved(seen[0], torch.load(tmp_path/'w.pth')) == []


def test_a_transformer_of_which_the_recipe_freezes_a_part(tmp_path):
    learn = learner(weights_of(tmp_path, VIT), 'moco_v3', arch=VIT)
    frozen = {name for name, p in learn.model.encoder.named_parameters() if not p.requires_grad}
    learn.fit_contrastive(2, 1e-2)
    assert frozen and frozen == {name for name, p in learn.model.encoder.named_parameters() if not p.requires_grad}


def test_compute_is_saved_and_counted(tmp_path):
    learn, cost = learner(weights_of(tmp_path)), Cost()
    learn.fit_contrastive(2, 1e-2, cbs=cost)
    flops, steps = cost.steps['flops'], len(learn.dls.train)
    assert len(set(flops[:steps])) == len(set(flops[steps:])) == 1 and flops[0] < 0.5 * flops[-1]


def test_schedules_stay_as_they_are(tmp_path):
    with_it, without = (learner(weights_of(tmp_path), head_epochs=n) for n in (1, 0))
    for learn in (with_it, without): learn.fit_contrastive(2, 1e-2)
    assert with_it.recorder.lrs == without.recorder.lrs
    assert not any(isinstance(cb, HeadWarmup) for cb in without.cbs)


# --- how many

def test_how_many_epochs(tmp_path, capsys):
    file = weights_of(tmp_path)
    assert repr(learner(file, head_epochs=None).head_warmup) == 'HeadWarmup()'
    check_still(learner(file, head_epochs=None))
    check_still(learner(file, head_epochs=2), epochs=3, held=2)
    capsys.readouterr()
    learn = learner(file, head_epochs=None)  # a single epoch would leave the encoder none
    learn.fit_contrastive(1, 1e-2)
    out = capsys.readouterr().out
    assert 'stands still' not in out and 'before training: ' in out
    assert moved(torch.load(file), learn.model.encoder.state_dict())
    said(['head_epochs=2', 'none of 2 epochs'], learner(file, head_epochs=2).fit_contrastive, 2)
    said(['head_epochs=-1'], learner, file, head_epochs=-1)
    said(['head_epochs=1', 'drawn at random'], learner, None, head_epochs=1)
    assert not any(isinstance(cb, HeadWarmup) for cb in learner(None, head_epochs=None).cbs)
    assert learner(file, cbs=[HeadWarmup(2)], head_epochs=None).head_warmup.epochs == 2
    said(['HeadWarmup'], learner, file, cbs=[HeadWarmup(2)])


def test_a_module_is_warmed_up_where_that_is_asked_for():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2))
    for head_epochs in (None, 1):
        learn = contrastive_learner(dots(), net, method=small('simclr', 'cifar'), knn_pictures=8,
                                    head_epochs=head_epochs)
        learn.create_mbar = False
        if head_epochs: check_still(learn)
        else: assert not any(isinstance(cb, HeadWarmup) for cb in learn.cbs)


# --- once in a learner's life

def held_steps(learn, epochs, **kwargs):
    "Whether the encoder stood still, in each step of a fit"
    watch = Watch()
    learn.fit_contrastive(epochs, 1e-2, cbs=watch, **kwargs)
    return [encoder == 0 for encoder, _ in watch.grads]


def test_a_second_fit_goes_on_with_the_encoder(tmp_path, capsys):
    learn = learner(weights_of(tmp_path), head_epochs=2)
    steps = len(learn.dls.train)
    assert held_steps(learn, 3) == [True] * 2 * steps + [False] * steps
    capsys.readouterr()
    assert held_steps(learn, 1) == [False] * steps  # nor has it to be longer than the first
    assert not any(held_steps(learn, 3)) and 'stands still' not in capsys.readouterr().out
    cb = learn.head_warmup
    learn.remove_cb(cb)
    learn.add_cb(cb)  # it is asked for anew
    assert held_steps(learn, 3) == [True] * 2 * steps + [False] * steps
    short = learner(weights_of(tmp_path), head_epochs=None)
    assert not any(held_steps(short, 1) + held_steps(short, 2))


def test_a_fit_that_ended_before_the_head_was_done_is_no_first_one(tmp_path):
    learn = learner(weights_of(tmp_path), head_epochs=2)
    class Ends(Callback):
        def after_batch(self):
            if self.train_iter == 6: raise ValueError('oops')
    with pytest.raises(ValueError): learn.fit_contrastive(3, 1e-2, cbs=Ends())
    assert sum(held_steps(learn, 3)) == 2 * len(learn.dls.train)


def test_a_second_fit_that_died_is_taken_up_with_the_encoder(tmp_path):
    "By a process that knows nothing of the first fit"
    file, steps = weights_of(tmp_path), 4
    learn = learner(file, head_epochs=2)
    learn.fit_contrastive(3, 1e-2)
    with pytest.raises(Death):
        learn.fit_contrastive(3, 1e-2, cbs=[DieAt(2), Checkpoint('1 step')], resume=tmp_path/'run')
    again = learner(file, head_epochs=2)
    assert held_steps(again, 3, resume=tmp_path/'run') == [False] * (3 * steps - 2)
    whole = learner(file, head_epochs=2)
    with pytest.raises(Death):
        whole.fit_contrastive(3, 1e-2, cbs=[DieAt(2), Checkpoint('1 step')], resume=tmp_path/'first')
    said(['head_epochs=2', 'none of 2 epochs'], learner(file, head_epochs=2).fit_contrastive, 2, 1e-2,
         resume=tmp_path/'first')
    assert sum(held_steps(learner(file, head_epochs=2), 3, resume=tmp_path/'first')) == 2 * steps - 2


# --- come and go

def test_it_leaves_nothing_behind(tmp_path):
    learn = learner(weights_of(tmp_path), head_epochs=2)
    class Broken(Callback):
        def after_batch(self): raise ValueError('oops')
    with pytest.raises(ValueError): learn.fit_contrastive(3, 1e-2, cbs=Broken())
    assert all(p.requires_grad for p in learn.model.encoder.parameters())
    class Skips(Callback):
        def before_batch(self):
            if self.epoch == 0: raise CancelEpochException
    learn.fit_contrastive(3, 1e-2, cbs=Skips())
    assert all(p.requires_grad for p in learn.model.encoder.parameters())
    learn.head_warmup.hold()
    learn.remove_cb(learn.head_warmup)
    assert all(p.requires_grad for p in learn.model.encoder.parameters())


@pytest.mark.parametrize('method,speedups', [
    ('simclr', 'none'), ('moco_v3', 'all'), ('swav', 'none'), ('dino', 'none'), ('byol', 'partial')])
def test_a_run_that_died_while_the_head_learned_alone(tmp_path, method, speedups):
    (tmp_path/'w').mkdir()
    file = weights_of(tmp_path/'w')
    def make(): return learner(file, method, SPEEDUPS[speedups](), head_epochs=2)
    whole = run(make, tmp_path/'whole', 3, cost=False)
    same_state(whole, run(make, tmp_path/'broken', 3, 2, 6, 10, cost=False))
    other = learner(file, method, SPEEDUPS[speedups](), head_epochs=1)
    said(['differs', 'HeadWarmup'], other.fit_contrastive, 3, resume=tmp_path/'whole')


def test_a_run_taken_up_does_not_tell_of_weights_that_are_no_more(tmp_path, capsys):
    (tmp_path/'w').mkdir()
    file = weights_of(tmp_path/'w')
    run(lambda: learner(file), tmp_path/'run', 2, 3)
    out = capsys.readouterr().out
    assert out.count('before training: ') == 1 and out.count('stands still') == 1
    run(lambda: learner(file), tmp_path/'other', 2, 5)
    assert capsys.readouterr().out.count('stands still') == 1
