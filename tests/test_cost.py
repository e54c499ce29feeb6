"What a run costs: operations against hand counts, kinds of steps, the clock, memory, the table's columns; runs drawn side by side"
import csv
import json
import math
import resource
import time

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelEpochException, CancelTrainException
from fastai.callback.progress import CSVLogger
from test_methods import SMALL_CROPS, small
from test_step import After, Dots, interrupt
from torch import nn

from fastcontrast.core import InputError, MissingPath
from fastcontrast.data import image_dls
from fastcontrast.evaluate import cost as module
from fastcontrast.evaluate.cost import Cost, peak_memory
from fastcontrast.evaluate.plots import compare_runs, plot_history
from fastcontrast.learner import contrastive_learner
from fastcontrast.step import StepCallback, add_level
from fastcontrast.targets import Queue

COLUMNS = ['seconds', 'tflop', 'images_s', 'memory_mb']


def learner(name, *cbs, n=16, valid=0, **changes):
    dls = image_dls(Dots(n), bs=8, valid=valid, workers=0, device='cpu')
    learn = contrastive_learner(dls, 'test_resnet', method=small(name, 'cifar', **changes), small_input=False, cbs=cbs)
    learn.create_mbar = False
    return learn


def fit(learn, epochs=1, cbs=None):
    with learn.no_logging(): learn.fit_contrastive(epochs, cbs=cbs)
    return learn


@pytest.fixture
def counted(monkeypatch):
    "A list with an entry for every step that is counted"
    counters = []
    class Counter(module.FlopCounterMode):
        def __enter__(self):
            counters.append(self)
            return super().__enter__()
    monkeypatch.setattr(module, 'FlopCounterMode', Counter)
    yield counters
    assert torch._C._len_torch_dispatch_stack() == 0, "a counter was left on"


# operations

class ByHand(Callback):
    "Operations of convolutions and linear layers: forward, for the weights, and for the input where that needs a gradient"
    order = 19
    def before_fit(self):
        self.total, layers = 0, [m for m in self.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        self.hooks = [m.register_forward_hook(self.count) for m in layers]
    def count(self, layer, args, out):
        forward = 2 * out.numel() * layer.weight[0].numel()
        if layer.training and layer.weight.requires_grad and torch.is_grad_enabled(): forward *= 2 + args[0].requires_grad
        self.total += forward * layer.training
    def after_fit(self):
        for h in self.hooks: h.remove()


@pytest.mark.parametrize('name, changes', [
    ('simclr', {}), ('moco_v2', {}), ('moco_v3', {}), ('simsiam', {}), ('nnclr', {}), ('swav', dict(multi_crop=SMALL_CROPS)),
], ids=['simclr', 'moco_v2 (one way)', 'moco_v3 (target)', 'simsiam (no gradient)', 'nnclr', 'swav (multi-crop)'])
def test_operations_are_those_of_the_layers(name, changes):
    cost, hand = Cost(), ByHand()
    learn = learner(name, cost, hand, n=24, **changes)
    fit(learn, 2)
    steps = cost.steps
    assert len(steps['flops']) == 6 and len(set(steps['flops'])) == 1
    assert 1 <= sum(steps['flops']) / hand.total < 1.01  # products of the loss are not in the hand count
    assert cost.totals()['tflop'] == pytest.approx(sum(steps['flops']) / 1e12, rel=1e-12)


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
    order = 19
    def __init__(self, *plan): self.plan = plan
    def attached(self): add_level(self.learn, 'layer2')
    def before_batch(self):
        levels = self.plan[self.train_iter % len(self.plan)]
        if levels: self.xb[1].levels = self.xb[1].key_levels = levels


def test_the_first_step_of_each_kind_is_counted(counted):
    cost = Cost()
    fit(learner('moco_v3', cost, Levels(None, ('layer2',), ('final',)), n=48), 2)  # 12 steps
    full, early, last = cost.steps['flops'][:3]
    assert len(counted) == 3 and early < last < full < early + last
    assert cost.steps['flops'] == [full, early, last] * 4 and cost.steps['kind'] == [0, 1, 2] * 4


def test_smaller_views_and_edits_are_another_kind(counted):
    class Later(Callback):
        order = 18
        def before_batch(self):
            roles, route = self.xb
            if self.epoch == 1: self.learn.key_views = roles['views'] = roles['views'][..., :8, :8]
            if self.epoch == 2: route.edit('views', 'layer2', lambda y: y[..., :1])
    cost = Cost()
    fit(learner('simclr', cost, Later()), 3)
    flops = cost.steps['flops']
    assert len(counted) == 3 and flops[0] == flops[1] > flops[4] == flops[5] > flops[2] == flops[3]


def test_a_queue_that_starts_later_is_counted_when_it_has_started(counted):
    cost = Cost()
    fit(learner('swav', cost, Queue(8, start=1)), 3)  # two steps an epoch
    flops = cost.steps['flops']
    assert len(counted) == 2 and cost.steps['kind'] == [0, 0, 1, 1, 1, 1]
    assert flops[0] == flops[1] < flops[2] == flops[5], "scores of the queue; the third step's were counted in the fourth"
    fit(learn := learner('swav', cost := Cost(), Queue(8, start=1), n=8), 2)
    assert cost.steps['kind'] == [0, 1] and len(set(cost.steps['flops'])) == 1, "never counted: as the step that began alike"
    assert learn.recorder.values


def test_outcomes_that_take_turns(counted):
    class Turns(Callback):
        order = 25
        def after_pred(self):
            if self.train_iter % 2: self.learn.pred = {**self.pred, 'local': self.pred['views']}
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
    assert not any(seen) and len(cost.steps['flops']) == 3 and len(counted) == 2 and cost.seconds > sum(cost.steps['seconds'])


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
    learn = fit(learner('simclr', cost, Slow('before_batch', .05), Slow('before_validate', .2), Slow('before_epoch', .2)), 2)
    took, steps, t = time.perf_counter() - start, cost.steps, cost.totals()
    assert .2 < t['seconds'] < took - .8
    assert all(s > .05 for s in steps['seconds']) and sum(steps['seconds']) == pytest.approx(t['seconds'], abs=.05)
    assert t['images_s'] == pytest.approx(32 / t['seconds']) and steps['images_s'] == pytest.approx([8 / s for s in steps['seconds']])
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
    assert memory == sorted(memory) and memory[-1] == peak_memory('cpu') == cost.totals()['memory_mb'] * 1e6


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
    assert float(rows[1]['tflop']) == cost.totals()['tflop'] and math.isclose(float(rows[1]['seconds']), cost.seconds, abs_tol=1e-3)
    assert learn.metrics.attrgot('name') == names, "of that fit only"
    learn.add_cb(cost)
    assert learn.metrics.attrgot('name') == [*names, *COLUMNS]
    learn.remove_cb(cost)
    assert learn.metrics.attrgot('name') == names
    titles = [(a.get_title(), a.get_xlabel()) for a in plot_history(tmp_path/'history.csv').axes]
    assert titles == [('training loss', 'epoch'), ('kNN accuracy', 'epoch'), ('kNN accuracy', 'seconds of training'), ('kNN accuracy', 'TFLOP'), ('std of embeddings', 'epoch')]


# runs side by side

def history(folder, knn, seconds=2., tflop=3., config=None):
    "The folder of a run; None in `knn` where an epoch was not judged"
    folder.mkdir()
    cost = [f'{seconds * (e + 1)},{tflop * (e + 1)}' for e in range(len(knn))] if seconds else [','] * len(knn)
    lines = [f"{e},{5 - e / 10},{'' if v is None else v},{c}" for e, (v, c) in enumerate(zip(knn, cost))]
    (folder/'history.csv').write_text('\n'.join(['epoch,train_loss,knn,seconds,tflop', *lines]))
    if config is not None: (folder/'config.json').write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


@pytest.fixture
def runs(tmp_path):
    return [history(tmp_path/'base', [.3, .5, .7, .6], config=dict(method='moco_v3', loss='DCL(temp=0.1)', state='finished')),
            history(tmp_path/'_a$b$c', [.4, None, .65, .8, .9], 4, 1, dict(method='simclr', loss='InfoNCE(0.1)', speedups=['A(2)', 'B()'], state='stopped: too hot')),
            history(tmp_path/'old', [.1, .2], None, config='[')]


def test_rows_of_runs(runs):
    figure, rows = compare_runs(runs)
    shared = dict(target=.6)
    assert rows[0] == dict(run='base', what='moco_v3, DCL', state='finished', epochs=4, knn=.6, best=.7, epochs_to=3, tflop_to=9, seconds_to=6, **shared)
    assert rows[1] == dict(run='_a$b$c', what='simclr, InfoNCE + A(2) + B()', state='stopped', epochs=5, knn=.9, best=.9, epochs_to=3, tflop_to=3, seconds_to=12, **shared)
    assert rows[2] == dict(run='old', what='', state='', epochs=2, knn=.2, best=.2, epochs_to=None, tflop_to=None, seconds_to=None, **shared)
    assert [r['epochs_to'] for r in compare_runs(runs, target=.2)[1]] == [1, 1, 2] and compare_runs(runs, target=.2)[1][2]['tflop_to'] is None


@pytest.mark.filterwarnings('error')
def test_picture_of_runs(runs, tmp_path):
    figure, _ = compare_runs(runs, tmp_path/'c.png')
    assert (tmp_path/'c.png').read_bytes()[:4] == b'\x89PNG'
    epochs, seconds, tflop = figure.axes
    assert [a.get_xlabel() for a in figure.axes] == ['epochs', 'seconds of training', 'TFLOP']
    assert epochs.lines[0].get_xydata().tolist() == [[1, .3], [2, .5], [3, .7], [4, .6]]
    assert seconds.lines[1].get_xydata().tolist() == [[4, .4], [12, .65], [16, .8], [20, .9]] and len(tflop.lines) == 3, "two runs and the line to reach"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ['base', '_a$b$c', 'old']
    colours = [[line.get_color() for line in a.lines[:2]] for a in figure.axes]
    assert colours[0] == colours[1] == colours[2]


def test_runs_of_one_name(tmp_path):
    for d in 'ab': (tmp_path/d).mkdir()
    rows = compare_runs([history(tmp_path/d/'run', [.5]) for d in 'ab'])[1]
    assert [r['run'] for r in rows] == [str(tmp_path/d/'run') for d in 'ab']


def test_runs_that_cannot_be_compared(runs, tmp_path):
    def refused(error, match, folders, **kwargs):
        with pytest.raises(error, match=match): compare_runs(folders, **kwargs)
    refused(InputError, 'one run was given', runs[:1])
    refused(InputError, 'no run was given', [])
    refused(MissingPath, "no folder '.*nowhere'", [*runs, tmp_path/'nowhere'])
    refused(MissingPath, "no folder '.*history.csv'", [runs[0], runs[1]/'history.csv'])
    (tmp_path/'empty').mkdir()
    refused(MissingPath, "no history.csv in '.*empty'", [*runs, tmp_path/'empty'])
    refused(InputError, 'has no kNN accuracy', [*runs, history(tmp_path/'unjudged', [None, None])])
    refused(InputError, 'no rows', [*runs, history(tmp_path/'short', [])])
    (tmp_path/'empty/history.csv').write_bytes(b'\xff\xfe')
    refused(InputError, 'cannot be read', [*runs, tmp_path/'empty'])
    for target in (0, -1, 1.5, math.nan): refused(InputError, 'is no accuracy', runs, target=target)
    refused(InputError, 'cannot be saved', runs, path=tmp_path/'none'/'c.png')
