"""fastai's habits, each of which works or says what to do instead; and what stands behind them."""
import csv
import os
import signal
import sys
import warnings
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback, ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastprogress.fastprogress import ConsoleMasterBar
from habits import HABITS, TITLES, Habit, on_the_page, table
from helpers.deaths import Death, DieAt, same_state, tensors
from helpers.refusals import refusal, said
from helpers.telling import Told, epochs_told
from sklearn.datasets import load_digits

from fastcontrast import logs, optim
from fastcontrast.checkpoint import Checkpoint, plain
from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.figures import Figure
from fastcontrast.history import History
from fastcontrast.learner import contrastive_learner
from fastcontrast.logs import check_logs
from fastcontrast.recipes import moco_v3, simclr
from fastcontrast.signals import Interrupted
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.suncet import SuNCEt

ROWS = [row for rows in HABITS.values() for row in rows]


@pytest.fixture(scope='module')
def dls():
    "400 of the digits, in epochs of ten steps"
    digits = load_digits()
    pictures = (digits.images[:400] * 15).astype(np.uint8), digits.target[:400]
    dls = image_dls(pictures, size=16, bs=32, valid=0.2, labels='all', device='cpu', tell=lambda note: None)
    dls.source = 'digits'  # whose constants they have, and whose stem
    return dls


@pytest.fixture(scope='module')
def names():
    "What a script has that imports all of fastai and of this library"
    space = {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        exec('from functools import partial\nfrom fastai.vision.all import *\nfrom fastcontrast.all import *', space)
        for package, line in dict(tensorboard='from fastai.callback.tensorboard import TensorBoardCallback',
                                  wandb='import wandb\nfrom fastai.callback.wandb import WandbCallback').items():
            if Habit('', needs=package).installed: exec(line, space)
    return space


def small(dls, path=None, method=None, **kwargs):
    "A learner that is quick"
    torch.manual_seed(1)
    return contrastive_learner(dls, 'test_resnet', method or simclr(projector=(32, 16)), path=path,
                               **{'knn_pictures': 200, 'precision': 'fp32'} | kwargs)


def quietly(learn):
    learn.create_mbar = False
    learn.logger = lambda row: None
    return learn


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    "A folder of its own, and services that look for no network"
    monkeypatch.chdir(tmp_path)
    for name, value in dict(WANDB_MODE='offline', WANDB_SILENT='true').items():
        monkeypatch.setenv(name, value)
    yield tmp_path
    if 'wandb' in sys.modules: sys.modules['wandb'].finish()
    plt.close('all')


# --- the table

@pytest.mark.parametrize('row', ROWS, ids=[row.writes.splitlines()[-1][:50] for row in ROWS])
def test_a_habit(row, dls, names, nowhere, capsys, request):
    if 'bf16' in row.writes: request.getfixturevalue('bf16')
    if not row.installed: pytest.skip(f"{row.needs} is not installed")
    learn = small(dls, nowhere, method=simclr(projector=(32, 16), lr=1e-3) if 'Early' in row.writes else None)
    space = {**names, 'dls': dls, 'learn': learn, 'x': dls.train.one_batch()[0][0], 'files': []}
    if row.says: return _check_says(row, space)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # what PyTorch and pandas tell fastai
        space['result'] = row.run(space)
    space['printed'] = capsys.readouterr().out
    assert not row.true or eval(row.true, space), space['result']
    assert row.shows in space['printed'], space['printed']


def _check_says(row, space):
    assert refusal(row.run, space) == row.says
    learn = space['learn']
    quietly(learn).fit(1, 1e-3)  # and nothing is broken
    assert len(learn.recorder.values) == 1


def test_there_is_a_row_for_each_of_the_habits():
    assert len(ROWS) > 45 and HABITS.keys() == TITLES.keys() and all(bool(row.works) != bool(row.says) for row in ROWS)


def test_the_page_has_the_table():
    assert on_the_page() == table(), "they differ: run python tests/habits.py"


def test_figures_are_pictures_where_nobody_drew_by_pyplot(dls):
    from IPython.core.formatters import PNGFormatter
    figure = small(dls).show_views(2)
    assert isinstance(figure, Figure) and PNGFormatter()(figure).startswith(b'\x89PNG')


# --- trackers

class Rows(Callback):
    "Has the epoch table say what is wanted"
    order = 49
    def __init__(self, *values): self.wanted = values
    def after_train(self): self.learn.epoch_table.values = dict(knn=self.wanted[self.epoch], spread=1., rankme=1.)


def test_trackers_know_which_way_is_better(dls, tmp_path):
    learn = quietly(small(dls, tmp_path))
    best, stop = SaveModelCallback(), EarlyStoppingCallback(patience=2, min_delta=0.05)
    learn.fit(5, 1e-3, cbs=[Rows(0.5, 0.6, 0.62, 0.61, 0.9), best, stop])
    assert len(learn.recorder.values) == 4 and (best.best, stop.best) == (0.62, 0.6)
    # they are as they were
    assert (best.monitor, best.comp, stop.monitor, stop.min_delta) == ('valid_loss', np.less, 'valid_loss', -0.05)
    learn.fit(3, 1e-3, cbs=[Rows(0.5, 0.6, 0.4), best])
    assert best.best == 0.6


def test_a_plateau_lowers_the_learning_rate(dls, tmp_path):
    "fastai's own lowers that of a copy, where an optimizer is PyTorch's"
    learn = quietly(small(dls, tmp_path))
    learn.fit(4, 1e-3, cbs=[Rows(0.5, 0.4, 0.6, 0.6), ReduceLROnPlateau()])
    assert [group['lr'] for group in learn.opt.opt.param_groups] == [pytest.approx(1e-5)] * len(learn.opt.hypers)
    assert learn.recorder.lrs[::10] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


def test_without_knn_the_training_loss_is_watched(dls, tmp_path, capsys):
    learn = small(dls, tmp_path, metrics=['rankme'])
    saved = SaveModelCallback()
    learn.fit(2, 1e-3, cbs=saved)
    assert "SaveModelCallback watches train_loss" in capsys.readouterr().out and saved.comp is np.less
    assert saved.best == min(row[0] for row in learn.recorder.values)


def test_a_column_that_is_named_is_the_one(dls, tmp_path):
    learn = quietly(small(dls, tmp_path))
    stop = EarlyStoppingCallback('rankme', comp=np.less)
    learn.fit(1, 1e-3, cbs=stop)
    assert (stop.monitor, stop.comp) == ('rankme', np.less) and stop.best == learn.recorder.values[0][3]


def test_what_was_never_saved_is_not_loaded(dls, tmp_path):
    "As fastai would: an error in place of the one that ended the fit, or somebody else's model"
    learn = quietly(small(dls, tmp_path))
    class Ends(Callback):
        def after_batch(self): raise RuntimeError('of mine')
    with pytest.raises(RuntimeError, match='of mine'): learn.fit(1, 1e-3, cbs=[Ends(), SaveModelCallback()])


def test_the_logger_comes_back(dls, tmp_path, names, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = small(dls, tmp_path)
    logger = learn.logger
    learn.fit(1, 1e-3, cbs=names['CSVLogger']())
    assert learn.logger is logger


@pytest.mark.parametrize('there', [False, True])
def test_graphs_show_no_metric_as_a_loss(dls, monkeypatch, there):
    drawn = []
    monkeypatch.setattr(ConsoleMasterBar, 'update_graph', lambda bar, *args: drawn.append(args))
    learn = quietly(small(dls))
    learn.create_mbar = there
    learn.remove_cbs(ProgressCallback)
    learn.add_cb(ProgressCallback())  # fastai's, as in a notebook
    learn.fit(2, 1e-3, cbs=ShowGraphCallback())
    assert len(drawn) == 2 * there
    if there:
        ((steps, losses),), x, y = drawn[-1]
        assert losses == pytest.approx([loss.item() for loss in learn.recorder.losses]) and len(steps) == 20 == x[1]


# --- what adds nothing, changes nothing

def trained(dls, before=None, **kwargs):
    "What a fit ends with, after something that should not count"
    train, cbs = dls.train, kwargs.pop('cbs', None)
    train.epoch = 0
    learn = quietly(small(dls, cbs=cbs, **kwargs))
    if before: before(learn)
    learn.fit_contrastive(2)
    return learn


def find(learn): learn.lr_find(num_it=25, show_plot=False)


MOCO = moco_v3(projector=(32, 16), predictor=(32, 16))

@pytest.mark.parametrize('kwargs', [{}, dict(cbs=SuNCEt), dict(method=MOCO)], ids=['simclr', 'suncet', 'moco'])
def test_after_lr_find_all_is_as_it_was(dls, tmp_path, kwargs):
    runs = [trained(dls, before, path=tmp_path, **kwargs) for before in (None, find)]
    same_state(*runs)
    assert not list((tmp_path/'models').glob('*'))


def test_in_the_middle_too(dls, tmp_path):
    def on(learn, look):
        learn.fit_contrastive(1)
        if look: find(learn)
    same_state(*[trained(dls, lambda learn, look=look: on(learn, look), path=tmp_path, cbs=SuNCEt) for look in (0, 1)])


def test_lr_find_keeps_and_tells_nothing(dls, tmp_path):
    learn = quietly(small(dls, tmp_path, cbs=[Checkpoint('1 step', folder=tmp_path), History(tmp_path/'history.csv')]))
    find(learn)
    assert [file.name for file in tmp_path.rglob('*') if file.is_file()] == []


def test_the_head_still_learns_alone_after_lr_find(dls, tmp_path):
    encoder = small(dls).model.encoder
    learn = quietly(contrastive_learner(dls, encoder, simclr(projector=(32, 16)), head_epochs=1, path=tmp_path,
                                        knn_pictures=0))
    find(learn)
    before = {name: p.clone() for name, p in learn.model.encoder.named_parameters()}
    seen = []
    class StillThere(Callback):
        def after_train(self):
            seen.append(all(torch.equal(p, before[n]) for n, p in self.model.encoder.named_parameters()))
    learn.fit_contrastive(2, cbs=StillThere())
    assert seen == [True, False]


def look_around(learn):
    learn.summary(), learn.show_results(), learn.validate(), learn.unfreeze()
    learn.opt = None


def test_looking_changes_nothing(dls, tmp_path):
    same_state(*[trained(dls, before, path=tmp_path) for before in (None, look_around)])


# --- looking

def test_show_results_are_the_nearest(dls):
    learn = small(dls)
    figure = learn.show_results(3, k=4)
    titles = [axis.get_title() for axis in figure.axes]
    assert len(titles) == 15
    asked = dls.valid.ordered(3)
    h, y = learn.embed(asked)
    bank, bank_y = learn.embed(dls.train.ordered(5000))
    normal = torch.nn.functional.normalize
    near, rows = (normal(h, dim=1) @ normal(bank, dim=1).T).topk(4)
    for i in range(3):
        assert titles[5 * i] == dls.vocab[y[i]]
        assert titles[5 * i + 1] == f'{dls.vocab[bank_y[rows[i, 0]]]} {near[i, 0]:.2f}'


def test_what_has_no_validation_part_shows_none():
    dls = image_dls('digits', size=16, bs=128, valid='digits', device='cpu')
    assert len(small(dls).show_results(2).axes) == 18
    pictures = [np.full((16, 16, 3), i, np.uint8) for i in range(20)]
    alone = small(image_dls(pictures, bs=8, device='cpu'))
    said(['validation', 'valid='], alone.show_results)
    assert len(alone.validate()) == 2 and alone.dls.vocab == [] and alone.dls.c == 0


def test_nothing_to_validate_by(dls):
    said(['no column but the loss'], small(dls, knn_pictures=0).validate)
    for other in (dict(ds_idx=0), dict(dl=dls.train)): said(['learn.embed(dl)'], small(dls).validate, **other)


def test_validate_says_what_the_epoch_table_said(dls):
    learn = quietly(small(dls))
    learn.fit(1, 1e-3)
    assert list(learn.validate()) == list(learn.recorder.values[-1][1:])


# --- optimizers

def test_an_optimizer_of_ones_own_is_the_one_by_name(dls):
    "The same steps, whoever gives the class; and groups keep their weight decay"
    runs = []
    for opt in ('sgd', torch.optim.SGD, optim.Sgd):
        torch.manual_seed(3)
        dls.train.epoch = 0
        args = dict(momentum=0.9)
        learn = quietly(small(dls, method=simclr(projector=(32, 16), opt=opt, opt_args=args, lr=0.1, wd=0.03)))
        learn.fit_contrastive(1)
        assert [group['weight_decay'] for group in learn.opt.opt.param_groups] == [0.03, 0]
        runs.append(learn.model.state_dict())
    for name, t in runs[0].items():
        for other in runs[1:]: torch.testing.assert_close(t, other[name], rtol=1e-3, atol=1e-4)


def test_fastais_optimizers_keep_groups_and_schedules(dls, names):
    learn = quietly(small(dls, method=simclr(projector=(32, 16), opt=names['Adam'], lr=1e-3, wd=0.05, wd_end=0.1)))
    learn.fit_contrastive(2)
    decayed, others = learn.opt.hypers
    assert others['wd'] == 0 and decayed['wd'] == pytest.approx(0.1, rel=0.1)
    assert decayed['lr'] == others['lr'] < 1e-4
    norms = [p for p in learn.opt.param_lists[1]]
    assert all(p.ndim < 2 for p in norms) and all(p.ndim > 1 for p in learn.opt.param_lists[0])


@pytest.mark.parametrize('name', ['Adam', 'ranger'])
def test_fastais_optimizers_begin_a_recipe_with_its_numbers(dls, names, name):
    learn = quietly(small(dls, method=simclr(projector=(32, 16), opt=names[name], lr=1e-3, wd=0.05)))
    learn.create_opt()
    def numbers(): return [(hyper['wd'], hyper['mom']) for hyper in learn.opt.hypers]
    began = numbers()
    learn.fit_one_cycle(1, 1e-4, wd=0.1)
    assert [wd for wd, _ in numbers()] == [0.1, 0] and all(mom == pytest.approx(0.95, abs=0.01) for _, mom in numbers())
    learn.fit_contrastive(1)
    assert numbers() == began and [wd for wd, _ in began] == [0.05, 0]


def test_fastais_optimizers_leave_alone_what_a_step_leaves_out(dls, names):
    "As PyTorch's do: neither momentum nor weight decay move it"
    learn = quietly(small(dls, method=simclr(projector=(32, 16), opt=names['Adam'], lr=1e-3, wd=.1),
                          cbs=[IntermediateLoss(), PartialBackprop(seed=0), moved := Moved()]))
    learn.fit_contrastive(2)
    assert {level for level, _ in moved.seen} >= {'layer1', 'final'}
    for level, those in moved.seen:
        ahead = [name for name in those if name.startswith(('encoder.layer4', 'heads.final'))]
        assert those and bool(ahead) == (level == 'final'), (level, those)


class Moved(Callback):
    "To which level a step went, and which parameters it has moved"
    order = 100
    def before_fit(self): self.seen = []
    def before_step(self): self.before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
    def after_step(self):
        if not self.opt.hypers[0]['lr']: return  # the first of a warm-up
        level = next(reversed(self.pred['views']))
        now = dict(self.model.named_parameters())
        self.seen.append((level, {name for name, p in self.before.items() if not torch.equal(p, now[name])}))


@pytest.mark.parametrize('name', ['Adam', 'ranger'])
def test_a_run_with_fastais_optimizer_is_taken_up(dls, names, tmp_path, name):
    def make(): return quietly(small(dls, method=simclr(projector=(32, 16), opt=names[name], lr=1e-3)))
    dls.train.epoch = 0
    whole = make()
    whole.fit_contrastive(2)
    dls.train.epoch = 0
    with pytest.raises(Death): make().fit_contrastive(2, cbs=[Checkpoint('3 steps'), DieAt(13)], resume=tmp_path)
    again = make()
    again.fit_contrastive(2, cbs=Checkpoint('3 steps'), resume=tmp_path)
    states = [tensors(plain(dict(opt=learn.opt.state_dict(), model=learn.model.state_dict()), 'the learner'))
              for learn in (whole, again)]
    assert states[0].keys() == states[1].keys()
    for name, t in states[0].items():
        assert torch.equal(t, states[1][name]) if isinstance(t, torch.Tensor) else t == states[1][name], name


@pytest.mark.parametrize('opt,words', [
    (torch.optim.LBFGS, 'several times'), (5, 'opt=5 is no optimizer'), (torch.nn.Linear, 'Linear'),
    (torch.optim.SGD([torch.zeros(1)]), 'give its class'), (lambda params, lr: None, 'no optimizer')])
def test_what_is_no_optimizer(dls, opt, words): said([words], small, dls, method=simclr(opt=opt))


def test_a_run_does_not_go_on_with_another_optimizer(dls, tmp_path):
    def make(opt): return quietly(small(dls, method=simclr(projector=(32, 16), opt=opt, lr=1e-3)))
    make(torch.optim.AdamW).fit_contrastive(1, resume=tmp_path)
    said(['opt of the recipe', 'AdamW', 'NAdam'], make(torch.optim.NAdam).fit_contrastive, 2, resume=tmp_path)


def test_hypers_are_numbers_that_can_be_set(dls):
    learn = small(dls, method=simclr(projector=(32, 16), opt='muon'))
    learn.create_opt()
    for hypers in learn.opt.hypers:
        assert {'lr', 'wd', 'mom'} <= set(hypers) and all(isinstance(value, float | int) for value in hypers.values())
    learn.opt.hypers[0]['lr'] = 0.25
    assert learn.opt.hypers[0]['lr'] == learn.opt.opt.param_groups[0]['lr'] == 0.25 != learn.opt.hypers[1]['lr']


# --- logs

def test_a_log_has_every_column_the_settings_and_the_views(dls, told, tmp_path):
    learn = quietly(small(dls, tmp_path, log='told'))
    learn.told.every = 4
    learn.fit_contrastive(2)
    (settings, views, *rows, failed), = told.values()
    assert (settings['name of the recipe'], settings['batch size']) == ('simclr', 32)
    assert isinstance(views, Figure) and failed is False
    steps = [values for _, values in rows if 'loss' in values]
    epochs = epochs_told(rows)
    assert [step for step, values in rows if 'loss' in values] == [4, 8, 12, 16, 20] and list(epochs) == [10, 20]
    assert all({'loss', 'lr'} == set(values) for values in steps)
    assert epochs[20] == dict(zip(['epoch', 'train_loss', 'knn', 'spread', 'rankme'], [1, *learn.recorder.values[-1]]))


def test_a_log_changes_nothing(dls, told, tmp_path):
    same_state(*[trained(dls, path=tmp_path/str(i), log=log) for i, log in enumerate((None, 'told,csv'))])


def test_a_run_that_is_taken_up_goes_on_in_its_log(dls, told, tmp_path):
    def fit(epochs, cbs=()):
        learn = quietly(small(dls))
        learn.fit_contrastive(2, resume=tmp_path, log='told,csv', cbs=[Checkpoint('3 steps'), *cbs])
    dls.train.epoch = 0
    with pytest.raises(Death): fit(2, [DieAt(13)])
    fit(2)
    (settings, views, *rows), = told.values()
    assert list(epochs_told(rows)) == [10, 20]
    assert [row for row in rows if not isinstance(row, tuple)] == [True, False]  # closed twice, told once
    with (tmp_path/'history.csv').open() as file: assert [row['epoch'] for row in csv.DictReader(file)] == ['0', '1']
    dls.train.epoch = 0
    quietly(small(dls, tmp_path/'new')).fit_contrastive(1, log='told')
    assert len(told) == 2


def test_a_row_is_told_when_a_tracker_ends_the_fit(dls, told, tmp_path):
    learn = quietly(small(dls, tmp_path))
    learn.fit(3, 1e-3, cbs=[Rows(0.5, 0.4, 0.3), EarlyStoppingCallback(), Told()])
    assert [row['knn'] for row in epochs_told(next(iter(told.values()))).values()] == [0.5, 0.4]


def test_a_service_that_fails_costs_the_log_and_not_the_run(dls, told, tmp_path, monkeypatch, capsys):
    def fails(*args): raise ConnectionError('nobody there')
    monkeypatch.setattr(Told, 'tell', fails)
    learn = small(dls, tmp_path)
    learn.fit_contrastive(2, log='told')
    out = capsys.readouterr().out
    assert out.count('could not be told everything (nobody there); the run goes on') == 1
    assert len(learn.recorder.values) == 2
    monkeypatch.setattr(Told, 'open', fails)
    said(['Told could not begin (nobody there)'], quietly(small(dls, tmp_path)).fit_contrastive, 2, log='told')


def test_two_fits_are_two_logs_of_tensorboard(dls, tmp_path):
    "And a run that began anew, in its own folder, is one"
    pytest.importorskip('tensorboard')
    learn = quietly(small(dls, tmp_path))
    for same_folder in (learn, learn, quietly(small(dls, tmp_path))): same_folder.fit_contrastive(1, log='tensorboard')
    (tmp_path/'run/tensorboard').mkdir(parents=True)
    (tmp_path/'run/tensorboard/events.out.tfevents.1').touch()  # of a process that was killed
    quietly(small(dls)).fit_contrastive(1, log='tensorboard', resume=tmp_path/'run')
    kept = {path: len(list((tmp_path/path).glob('events.*'))) for path in ('tensorboard', 'run/tensorboard')}
    assert kept == {'tensorboard': 1, 'run/tensorboard': 2}
    assert sorted(path.name for path in (tmp_path/'tensorboard').iterdir() if path.is_dir()) == ['2', '3']


def test_a_signal_ends_a_service_that_waits_for_somebody(dls, told, tmp_path, monkeypatch):
    "As one does at its login, before the first step"
    waited = []
    def asks(log):
        signal.raise_signal(signal.SIGTERM)
        waited.append(log)
    monkeypatch.setattr(Told, 'open', asks)
    learn = quietly(small(dls))
    with pytest.raises(Interrupted): learn.fit_contrastive(1, resume=tmp_path, log='told')
    assert not waited and not learn.train_iter


class Wandb:
    "As much of Weights & Biases as is asked which run it is, and where that stands"
    run = None
    def init(self, id, **settings): self.run = SimpleNamespace(id=id, step=0)
    def finish(self, exit_code): self.run = None

    def log(self, values, step):
        assert step >= self.run.step
        self.run.step = step


def test_two_fits_in_a_run_of_wandb_that_somebody_has_begun(tmp_path, monkeypatch):
    "The second goes on where the first has ended, and where it is taken up without that run, it goes on in it"
    service = Wandb()
    monkeypatch.setitem(sys.modules, 'wandb', service)
    def told(step, state):
        log = logs.WandbLog()
        log.learn = SimpleNamespace(cbs=[], path=tmp_path)
        if state: log.load_state_dict(state)
        log.open()
        log.tell({}, step)
        at = service.run.id, service.run.step
        log.close(failed=False)
        return at, log.state_dict()
    service.init('mine')
    assert told(20, None)[0] == ('mine', 20)
    at, state = told(4, None)
    assert at == ('mine', 24)
    assert told(9, state)[0] == ('mine', 29)  # taken up in that run
    service.finish(0)
    assert told(9, state)[0] == ('mine', 29) and service.run is None
    assert told(9, dict(id='before'))[0] == ('before', 9)  # an earlier version's
    (own, step), state = told(3, None)
    assert step == 3 and told(5, state)[0] == (own, 5) != ('mine', 5)


class Mlflow:
    "As much of MLflow as is asked where it keeps runs; it leaves what it was told in the environment"
    def __init__(self): self.uri, self.kept = None, {}

    def set_tracking_uri(self, uri):
        if uri != self.uri: self.uri = os.environ['MLFLOW_TRACKING_URI'] = uri

    def start_run(self, run_id, run_name):
        runs = self.kept.setdefault(self.uri, [])
        if run_id is None: runs.append(run_id := f'{run_name} {len(runs)}')
        assert run_id in runs
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def active_run(self): return None
    def get_experiment_by_name(self, name): return name
    def set_experiment(self, name): pass
    def end_run(self, state): pass


def test_mlflow_keeps_every_run_of_a_process_in_its_own_folder(tmp_path, monkeypatch):
    service = Mlflow()
    monkeypatch.setitem(sys.modules, 'mlflow', service)
    monkeypatch.setenv('MLFLOW_TRACKING_URI', '')
    def run(name, id=''):
        log = logs.MlflowLog()
        log.learn, log.id = SimpleNamespace(cbs=[], path=tmp_path/name), id
        log.open()
        log.close(failed=False)
        return log.id
    begun = {name: run(name) for name in 'ab'}
    assert all(run(name, id) == id for name, id in begun.items())  # taken up
    assert service.kept == {f"sqlite:///{tmp_path/name/'mlflow.db'}": [id] for name, id in begun.items()}
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://server')
    assert [run('c'), run('d')] == service.kept['http://server']
    assert os.environ['MLFLOW_TRACKING_URI'] == 'http://server'


@pytest.mark.slow
def test_two_runs_of_a_process_are_two_of_mlflow(dls, nowhere, monkeypatch):
    mlflow = pytest.importorskip('mlflow')
    monkeypatch.setenv('MLFLOW_TRACKING_URI', '')
    for name in 'ab': quietly(small(dls, nowhere/name)).fit_contrastive(1, log='mlflow')
    for name in 'ab':
        assert (nowhere/name/'mlflow.db').is_file() and list((nowhere/name/'mlruns').rglob('views.png'))
    assert not os.environ.get('MLFLOW_TRACKING_URI') and mlflow.active_run() is None


@pytest.mark.parametrize('log,words', [('tensorbord', "did you mean tensorboard"), (5, 'log=5'), ('csv,x', "log 'x'")])
def test_logs_that_are_none(dls, log, words):
    said([words], small, dls, log=log)
    said([words], quietly(small(dls)).fit_contrastive, 1, log=log)


def test_what_is_not_installed_is_said_before_training(dls, monkeypatch):
    monkeypatch.setattr(logs, 'find_spec', lambda name: None)
    text = refusal(small, dls, log='csv,wandb')
    assert text == ("logging to wandb needs the package wandb, which is not installed: pip install wandb.")
    assert check_logs('csv') == ['csv'] and check_logs(None) == []


def test_a_table_that_is_kept_already_is_kept_once(dls, tmp_path):
    learn = quietly(small(dls, tmp_path))
    kept = History(tmp_path/'mine.csv')
    learn.fit_contrastive(1, cbs=kept, log='csv')
    assert [file.name for file in tmp_path.iterdir()] == ['mine.csv']
    with pytest.raises(InputError): learn.fit_contrastive(1, log='nothing')
