"What a run costs: operations against hand counts, kinds of steps, the clock, memory, the table's columns"
import csv
import math
import resource
import time

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelEpochException, CancelTrainException
from fastai.callback.progress import CSVLogger
from helpers.learners import SMALL_CROPS, Dots, small
from helpers.pictures import VIT, pictures
from helpers.recording import After, interrupt
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcontrast.accumulate import Accumulate
from fastcontrast.data import image_dls
from fastcontrast.device import SmallMaps
from fastcontrast.evaluate import cost as module
from fastcontrast.evaluate.cost import Cost, peak_memory
from fastcontrast.evaluate.plots import plot_history
from fastcontrast.learner import contrastive_learner
from fastcontrast.pairs import add_level
from fastcontrast.step import EVERY, Phase, StepCallback
from fastcontrast.targets import Queue

COLUMNS = ['seconds', 'tflop', 'images_s', 'memory_mb']


def learner(name, *cbs, n=16, valid=0, **changes):
    dls = image_dls(Dots(n), bs=8, valid=valid, workers=0, device='cpu')
    learn = contrastive_learner(dls, 'test_resnet', method=small(name, 'cifar', **changes), small_input=False, cbs=cbs,
                                precision='fp32')  # in which each layer does what a hand counts
    learn.create_mbar = False
    return learn


def fit(learn, epochs=1, cbs=None):
    with learn.no_logging(): learn.fit_contrastive(epochs, cbs=cbs)
    return learn


@pytest.fixture
def counted(monkeypatch):
    "A list with an entry for every step that is counted"
    counters = []
    class Counter(FlopCounterMode):
        def __enter__(self):
            counters.append(self)
            return super().__enter__()
    monkeypatch.setattr(module, 'flop_counter', lambda: Counter(display=False))
    yield counters
    assert torch._C._len_torch_dispatch_stack() == 0, "a counter was left on"


# operations

class ByHand(Callback):
    "Operations of convolutions and linear layers: forward, for the weights, and for the input that needs a gradient"
    order = 19
    def before_fit(self):
        self.total, layers = 0, [m for m in self.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        self.hooks = [m.register_forward_hook(self.count) for m in layers]
    def count(self, layer, args, out):
        forward = 2 * out.numel() * layer.weight[0].numel()
        backward = layer.training and layer.weight.requires_grad and torch.is_grad_enabled()
        if backward: forward *= 2 + args[0].requires_grad
        self.total += forward * layer.training
    def after_fit(self):
        for h in self.hooks: h.remove()


@pytest.mark.parametrize('name, changes', [
    ('simclr', {}), ('moco_v2', {}), ('moco_v3', {}), ('simsiam', {}), ('nnclr', {}),
    ('swav', dict(multi_crop=SMALL_CROPS)),
], ids=['simclr', 'moco_v2 (one way)', 'moco_v3 (target)', 'simsiam (no gradient)', 'nnclr', 'swav (multi-crop)'])
def test_operations_are_those_of_the_layers(name, changes):
    cost, hand = Cost(), ByHand()
    learn = learner(name, cost, hand, n=24, **changes)
    learn.remove_cbs(SmallMaps)  # which multiply without the padding that a layer's operations count
    fit(learn, 2)
    steps = cost.steps
    assert len(steps['flops']) == 6 and len(set(steps['flops'])) == 1
    assert 1 <= sum(steps['flops']) / hand.total < 1.01  # products of the loss are not in the hand count
    assert cost.totals()['tflop'] == pytest.approx(sum(steps['flops']) / 1e12, rel=1e-12)


def test_attention_is_counted_on_a_cpu():
    "Of two views of 8 pictures: the class token and 4 patches of 64 numbers, in 6 blocks"
    def flops(fused):
        torch.manual_seed(3)
        learn = contrastive_learner(pictures(8, bs=8), VIT, method=small('simclr', 'cifar'), cbs=Cost(), knn_pictures=0,
                                    precision='fp32')
        learn.create_mbar = False
        for block in learn.model.encoder.blocks: block.attn.fused_attn = fused
        return fit(learn).cost.steps['flops']
    product = 2 * 16 * 5**2 * 64
    assert flops(True)[0] == flops(False)[0] + 6 * product  # going back, queries with keys are made once more


class StepsOperations(Callback):
    "Operations of the optimizer's steps, by a counter of its own"
    total = 0
    def before_fit(self):
        def counted(*args, step=self.opt.step, **kwargs):
            with FlopCounterMode(display=False) as counter: step(*args, **kwargs)
            self.total += counter.get_total_flops()
        self.opt.step = counted


@pytest.mark.parametrize('opt', ['muon', 'sgd'])
@pytest.mark.parametrize('accumulate', [1, 2])
def test_the_optimizers_part(opt, accumulate):
    cost, hand = Cost(), StepsOperations()
    fit(learner('simclr', cost, hand, *([Accumulate(accumulate)] if accumulate > 1 else []), opt=opt), 2)
    assert (hand.total > 0) == (opt == 'muon')
    part = cost.totals()['optimizer_tflop']
    assert part == pytest.approx(hand.total / 1e12, rel=1e-12) and part < cost.totals()['tflop']
    again = Cost()
    again.load_state_dict(cost.state_dict())
    assert again.totals()['optimizer_tflop'] == cost.totals()['optimizer_tflop']


@pytest.mark.parametrize('name', ['simclr', 'moco_v3', 'swav', 'dino'])
def test_training_is_the_same_bitwise(name):
    def end(*cbs):
        torch.manual_seed(3)
        return fit(learner(name, *cbs), 2).model.state_dict(), torch.rand(1)
    (a, x), (b, y) = end(), end(Cost())
    assert x == y and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# kinds

class Levels(StepCallback):
    "Scores a stage too, and runs each step as far as it is told"
    phase = Phase.LEVELS
    def __init__(self, *plan): self.plan = plan
    def attached(self): add_level(self.learn, 'layer2')
    def before_batch(self):
        levels = self.plan[self.train_iter % len(self.plan)]
        if levels: self.step.route.levels = self.step.route.key_levels = levels


def test_the_first_step_of_each_kind_is_counted(counted):
    cost = Cost()
    fit(learner('moco_v3', cost, Levels(None, ('layer2',), ('final',)), n=48), 2)  # 12 steps
    full, early, last = cost.steps['flops'][:3]
    assert len(counted) == 3 and early < last < full < early + last
    assert cost.steps['flops'] == [full, early, last] * 4 and cost.steps['kind'] == [0, 1, 2] * 4


def test_smaller_views_and_edits_are_another_kind(counted):
    class Later(Callback):
        order = Phase.COUNT - 1
        def before_batch(self):
            step = self.learn.step
            if self.epoch == 1: step.key_views = step.views['views'] = step.views['views'][..., :8, :8]
            if self.epoch == 2: step.route.edit('views', 'layer2', lambda y: y[..., :1])
    cost = Cost()
    fit(learner('simclr', cost, Later()), 3)
    flops = cost.steps['flops']
    assert len(counted) == 3 and flops[0] == flops[1] > flops[4] == flops[5] > flops[2] == flops[3]


def test_a_queue_that_starts_later_is_counted_when_it_has_started(counted):
    cost = Cost()
    fit(learner('swav', cost, Queue(8, start=1)), 3)  # two steps an epoch
    flops = cost.steps['flops']
    assert len(counted) == 2 and cost.steps['kind'] == [0, 0, 1, 1, 1, 1]
    assert flops[0] == flops[1] < flops[2] == flops[5], "scores of the queue; counted in the fourth step, not the third"
    fit(learn := learner('swav', cost := Cost(), Queue(8, start=1), n=8), 2)
    assert cost.steps['kind'] == [0, 1]
    assert len(set(cost.steps['flops'])) == 1, "never counted: as the step that began alike"
    assert learn.recorder.values


def test_outcomes_that_take_turns(counted):
    class Turns(Callback):
        order = 25
        def after_pred(self):
            if self.train_iter % 2 == 0: return
            self.learn.pred = {**self.pred, 'local': self.pred['views']}
            self.learn.step.queries['local'] = EVERY
    cost = Cost()
    fit(learner('simclr', cost, Turns(), n=64))
    a, b = cost.steps['flops'][:2]
    assert cost.steps['flops'] == [a, b] * 4 and a < b and len(counted) == 3  # the third step was to be like the second


# steps that end early

def test_cancelled_steps(counted):
    def cancel(): raise CancelBatchException
    cost = Cost()
    learn = fit(learner('moco_v3', cost, After('after_pred', 0, cancel), After('before_batch', 2, cancel), n=40))
    assert len(cost.steps['flops']) == 3 and cost.totals()['images'] == 24 and len(counted) == 2
    whole = fit(learner('moco_v3', other := Cost())).recorder
    assert cost.steps['flops'][0] == other.steps['flops'][0] and len(learn.recorder.values) == len(whole.values) == 1


@pytest.mark.parametrize('error', [CancelTrainException, CancelEpochException])
def test_an_epoch_that_ends_early(counted, error):
    def cancel():
        if not seen: raise error
    class Modes(Callback):
        order = 20
        def after_train(self): seen.append(torch._C._len_torch_dispatch_stack())
        after_epoch = after_train
    cost, seen = Cost(), []
    fit(learner('simclr', cost, After('after_loss', 0, cancel), Modes(), n=24), 2)
    assert not any(seen) and len(cost.steps['flops']) == 3 and len(counted) == 2
    assert cost.seconds > sum(cost.steps['seconds'])


@pytest.mark.parametrize('event', ['after_pred', 'after_loss', 'before_step', 'after_step', 'after_batch'])
def test_interrupted(counted, event):
    cost = Cost()
    learn = learner('moco_v3', cost, stop := After(event, int(event == 'after_batch'), interrupt), n=32)
    with pytest.raises(KeyboardInterrupt): fit(learn)
    assert torch._C._len_torch_dispatch_stack() == 0 and cost.seconds > 0
    assert len(cost.steps['flops']) == (event == 'after_batch')
    learn.remove_cb(stop)
    fit(learn)
    assert len(cost.steps['flops']) == 4 and cost.totals()['images'] == 32, "from zero"


# clock and memory

class Slow(Callback):
    "Sleeps in an event"
    def __init__(self, event, seconds): setattr(self, event, lambda: time.sleep(seconds))


def test_evaluation_is_not_in_the_time():
    cost, start = Cost(), time.perf_counter()
    slow = [Slow('before_batch', .05), Slow('before_validate', .2), Slow('before_epoch', .2)]
    learn = fit(learner('simclr', cost, *slow), 2)
    took, steps, t = time.perf_counter() - start, cost.steps, cost.totals()
    assert .2 < t['seconds'] < took - .8
    assert all(s > .05 for s in steps['seconds']) and sum(steps['seconds']) == pytest.approx(t['seconds'], abs=.2)
    assert t['images_s'] == pytest.approx(32 / t['seconds'])
    assert steps['images_s'] == pytest.approx([8 / s for s in steps['seconds']])
    first, second = (dict(zip(learn.recorder.metric_names[1:], v)) for v in learn.recorder.values)
    assert second['seconds'] == pytest.approx(t['seconds'], abs=1e-3) and .1 < first['seconds'] < second['seconds'] - .1
    assert second['tflop'] == 2 * first['tflop'] == t['tflop'] and second['memory_mb'] == round(t['memory_mb'])
    assert second['images_s'] == pytest.approx(16 / (second['seconds'] - first['seconds']), rel=.02)


def test_memory_of_the_process():
    before = peak_memory('cpu')
    free = max(0, before - 2**20 * 300)  # earlier tests may have taken more than is taken now
    torch.ones(free + 400 * 2**20, dtype=torch.uint8)
    assert before + 100 * 2**20 < peak_memory('cpu') == 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fit(learner('simclr', cost := Cost()))
    memory = cost.steps['memory']
    assert memory == sorted(memory) and memory[-1] == peak_memory('cpu')
    assert memory[-1] == pytest.approx(cost.totals()['memory_mb'] * 1e6)


def test_a_gpu_is_waited_for_at_the_ends_of_an_epoch_only(monkeypatch):
    "The calls that a CUDA device would get"
    calls, names = [], ('synchronize', 'reset_peak_memory_stats')
    for name in names: monkeypatch.setattr(torch.cuda, name, lambda device, name=name: calls.append(name))
    monkeypatch.setattr(module, 'peak_memory', lambda device: 7 * 10**6)
    monkeypatch.setattr(Cost, 'cuda', True)
    fit(learner('simclr', cost := Cost(), n=64), 2)  # 16 steps
    assert calls == ['reset_peak_memory_stats', 'synchronize', 'synchronize'] * 2 and cost.totals()['memory_mb'] == 7


# columns

def test_columns_of_the_epoch_table(tmp_path):
    learn = learner('simclr', n=20, valid=.2)
    learn.path, names = tmp_path, learn.metrics.attrgot('name')
    fit(learn, 2, cbs=[CSVLogger(), cost := Cost()])
    rows = list(csv.DictReader((tmp_path/'history.csv').open()))
    assert list(rows[0]) == ['epoch', 'train_loss', *names, *COLUMNS, 'time'] and len(rows) == 2
    assert float(rows[1]['tflop']) == cost.totals()['tflop']
    assert math.isclose(float(rows[1]['seconds']), cost.seconds, abs_tol=1e-3)
    assert learn.metrics.attrgot('name') == names, "of that fit only"
    learn.add_cb(cost)
    assert learn.metrics.attrgot('name') == [*names, *COLUMNS]
    learn.remove_cb(cost)
    assert learn.metrics.attrgot('name') == names
    titles = [(a.get_title(), a.get_xlabel()) for a in plot_history(tmp_path/'history.csv').axes]
    against = ['epoch', 'seconds of training', 'TFLOP']
    accuracy = [('kNN accuracy', x) for x in against]
    assert titles == [('training loss', 'epoch'), *accuracy, ('spread of features', 'epoch'), ('rankme', 'epoch')]
