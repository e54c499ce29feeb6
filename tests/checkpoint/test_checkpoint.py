"Checkpoints that are damaged, of another run, that can't be written, and moments at which they are written"
import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastcore.foundation import L
from helpers.deaths import Death, DieAt, history, same_state
from helpers.learners import small
from helpers.pictures import ARCH, Dots
from helpers.refusals import refusal

from fastcontrast import checkpoint
from fastcontrast.checkpoint import Checkpoint, moments, newest, plain, size_of
from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.guards import ClipEach
from fastcontrast.history import History
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import DCL
from fastcontrast.signals import Interrupted
from fastcontrast.speedups.intermediate import IntermediateLoss
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm
from fastcontrast.step import Phase


def learner(method='simclr', arch=ARCH, n=24, cbs=(), loss=None, weights=None, **changes):
    torch.manual_seed(0)
    dls = image_dls(Dots(n, 16), bs=6, valid=0, labels='all', workers=0, device='cpu')
    return contrastive_learner(dls, arch, method=small(method, 'cifar', **changes), cbs=list(cbs), loss=loss,
                               weights=weights, knn_pictures=0, small_input=False)


def died(folder, *steps, epochs=3, make=learner, every='2 steps', **kwargs):
    "A run that died"
    for step in steps:
        with pytest.raises(Death):
            make().fit_contrastive(epochs, cbs=[Checkpoint(every, **kwargs), DieAt(step)], resume=folder)
    return folder/'checkpoints'


def resume(folder, make=learner, epochs=3, **kwargs):
    learn = make()
    learn.fit_contrastive(epochs, resume=folder, **kwargs)
    return learn


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path): path.write_bytes(path.read_bytes()[:-100])


class Evil:
    "Writes a file when it is unpickled"
    def __reduce__(self): return os.mkdir, ('it_was_run',)


def with_digest(path, content):
    "A part of a checkpoint that its manifest vouches for"
    path.write_bytes(content)
    manifest = path.with_name(path.name.replace('.0.pt', '.json'))
    said = json.loads(manifest.read_text())
    said['files'][path.name] = hashlib.sha256(content).hexdigest()
    manifest.write_text(json.dumps(said))


def holding_a_pickle(path):
    torch.save(dict(format=checkpoint.FORMAT, version=1, evil=Evil()), path)
    with_digest(path, path.read_bytes())


def a_bare_pickle(path): with_digest(path, pickle.dumps(Evil()))
def of_something_else(path): with_digest(path, b'nothing')


def newer(path):
    manifest = path.with_name(path.name.replace('.0.pt', '.json'))
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 99'))


def garbled(path): path.with_name(path.name.replace('.0.pt', '.json')).write_text('{"format"')
def gone(path): path.unlink()


DAMAGES = dict(flip=(flip, 'digest'), cut=(cut, 'digest'), pickle=(holding_a_pickle, 'was not unpickled'),
               bare=(a_bare_pickle, 'was not unpickled'), other=(of_something_else, "step-000000006.0.pt"),
               newer=(newer, 'update fastcontrast'), garbled=(garbled, 'step-000000006.json'), gone=(gone, 'read'))


@pytest.fixture(scope='module')
def seventh(tmp_path_factory):
    "The folder of a run that died after its seventh step, and the learner of one that did not"
    folder = tmp_path_factory.mktemp('seventh')
    died(folder/'run', 7)
    return folder/'run', resume(folder/'whole')


@pytest.mark.parametrize('name', DAMAGES)
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path, seventh, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    damage, words = DAMAGES[name]
    shutil.copytree(seventh[0], tmp_path/'run')
    folder = tmp_path/'run'/'checkpoints'
    damage(folder/'step-000000006.0.pt')
    capsys.readouterr()
    learn = resume(tmp_path/'run')
    said = capsys.readouterr().out
    assert words in said and 'going on from step 4,' in said and not (tmp_path/'it_was_run').exists()
    same_state(learn, seventh[1])


def test_a_damaged_one_falls_back_when_the_run_grows(tmp_path, capsys):
    folder = died(tmp_path, 7)
    flip(folder/'step-000000006.0.pt')
    assert resume(tmp_path, epochs=4).train_iter == 16
    assert 'going on from step 4,' in capsys.readouterr().out


def test_files_that_are_none_of_ours_and_damaged_manifests(tmp_path):
    "They are passed over, and those of ours go when they are old"
    folder = died(tmp_path, 7)
    garbled(folder/'step-000000004.0.pt')
    (folder/'step-copy.json').write_text('{}')
    (folder/'step-old').mkdir()
    keeper = Checkpoint('2 steps')
    resume(tmp_path, cbs=keeper)
    assert keeper.saved == 12 and sorted(path.name for path in folder.iterdir()) == [
        'step-000000010.0.pt', 'step-000000010.json', 'step-000000012.0.pt', 'step-000000012.json', 'step-copy.json',
        'step-old']


def test_parts_without_any_manifest_are_removed(tmp_path):
    "Those of a run in several processes that was killed before its first checkpoint was whole"
    folder = tmp_path/'checkpoints'
    folder.mkdir()
    (folder/'step-000000001.1.pt').write_bytes(b'part')
    class Look(Callback):
        def before_batch(self): assert self.train_iter or not list(folder.iterdir())
    resume(tmp_path, cbs=Look())
    assert newest(tmp_path)['step'] == 12


def test_all_damaged(tmp_path):
    folder = died(tmp_path, 7)
    for step in (4, 6): flip(folder/f'step-00000000{step}.0.pt')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert 'Begin anew in another folder' in refusal(lambda: resume(tmp_path))
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


OTHERS = dict(
    architecture=lambda: learner(arch='resnet10t'), loss=lambda: learner(loss=DCL(0.2)),
    pictures=lambda: learner(n=26), callbacks=lambda: learner(cbs=[SuNCEt()]), name=lambda: learner('byol'),
    opt_args=lambda: learner(opt_args=dict(momentum=0.5)), frozen=lambda: learner(frozen=('layer1',)))


@pytest.mark.parametrize('name', OTHERS)
def test_another_run_is_refused_and_nothing_touched(tmp_path, name):
    died(tmp_path, 7)
    learn = OTHERS[name]()
    before = {key: t.clone() for key, t in learn.model.state_dict().items()}
    message = refusal(lambda: learn.fit_contrastive(3, resume=tmp_path))
    assert name in message and str(tmp_path) in message
    assert all(torch.equal(t, before[key]) for key, t in learn.model.state_dict().items())
    assert not any(isinstance(cb, Checkpoint) for cb in learn.cbs)
    learn.fit_contrastive(1)  # it trains as if nothing had been


@pytest.mark.parametrize('was,now', [
    (lambda: PatchVariants(seed=1), lambda: PatchVariants(seed=2)), (lambda: ClipEach(1.), lambda: ClipEach(2.))])
def test_callbacks_with_other_settings_are_others(tmp_path, was, now):
    died(tmp_path, 3, make=lambda: learner(cbs=[was()]))
    message = refusal(lambda: resume(tmp_path, lambda: learner(cbs=[now()])))
    assert 'callbacks' in message and repr(was()) in message and repr(now()) in message


def test_a_checkpoint_of_an_earlier_version_is_taken_up(tmp_path):
    "It tells neither arguments of the optimizer nor modules that are frozen, nor all of two callbacks"
    def make():
        return learner(cbs=[PatchVariants(seed=5), ClipEach(3.)], opt_args=dict(momentum=0.5), frozen=('layer1',))
    folder = died(tmp_path, 3, make=make)
    path = folder/'step-000000002.0.pt'
    state, content = torch.load(path, weights_only=True), io.BytesIO()
    told = state['settings']
    del told['opt_args of the recipe'], told['frozen of the recipe'], told['first weights']
    told['callbacks'] = [cb.replace(', seed=5', '').replace('(3.0)', '') for cb in told['callbacks']]
    assert {'PatchVariants(n=2, m=2)', 'ClipEach'} <= set(told['callbacks'])
    torch.save(state, content)
    with_digest(path, content.getvalue())
    assert resume(tmp_path, make).train_iter == 12
    others = refusal(lambda: resume(tmp_path, lambda: learner(cbs=[PatchVariants(seed=5)])))
    assert 'opt_args' in others  # what it writes tells all


def test_other_weights_to_begin_with_are_refused(tmp_path):
    def begun_with(name): return lambda: learner(weights=tmp_path/f'{name}.safetensors')
    for seed, name in enumerate('ab'):
        first = learner()
        torch.manual_seed(seed)
        for p in first.model.encoder.parameters(): torch.nn.init.normal_(p)
        first.export(tmp_path/f'{name}.safetensors')
    died(tmp_path/'run', 7, make=begun_with('a'))
    assert 'first weights' in refusal(lambda: resume(tmp_path/'run', begun_with('b')))
    died(tmp_path/'run', 9, make=begun_with('a'))  # what goes on says so again
    assert 'first weights' in refusal(lambda: resume(tmp_path/'run', begun_with('b')))
    assert resume(tmp_path/'run', begun_with('a')).train_iter == 12


def test_another_learning_rate_is_refused(tmp_path):
    died(tmp_path, 7)
    assert 'learning rate' in refusal(lambda: resume(tmp_path, lr=0.3))


def test_a_checkpoint_of_another_run_is_not_written_over(tmp_path):
    died(tmp_path, 7)
    assert 'of a run already' in refusal(lambda: learner().fit_contrastive(3, cbs=Checkpoint(folder=tmp_path)))


@pytest.mark.parametrize('folder', [5, True, __file__])
def test_what_is_no_folder(folder):
    assert 'is no folder' in refusal(lambda: learner().fit_contrastive(1, resume=folder))


def test_another_library_s_loader():
    dls = DataLoaders([(torch.rand(2, 3), torch.zeros(2))], [], device='cpu')
    learn = Learner(dls, torch.nn.Linear(3, 1), loss_func=torch.nn.MSELoss())
    assert 'contrastive_learner' in refusal(lambda: learn.add_cb(Checkpoint()))


def test_fewer_epochs_than_are_done(tmp_path):
    died(tmp_path, 7)
    assert '1.5 epochs' in refusal(lambda: resume(tmp_path, epochs=1))


def test_a_finished_run_is_left_as_it_is(tmp_path):
    first = resume(tmp_path)
    same_state(first, resume(tmp_path))
    assert newest(tmp_path)['step'] == 12


def test_more_epochs_with_cosine_are_worked_out_anew(tmp_path, capsys):
    resume(tmp_path)
    learn = resume(tmp_path, epochs=4)
    assert 'planned for 3 epochs and now for 4' in capsys.readouterr().out
    assert learn.train_iter == 16 and learn.recorder.lrs[-1] < learn.recorder.lrs[5]


def test_a_longer_run_is_as_if_it_had_been_planned_so(tmp_path):
    def make(): return learner(schedule='wsd', warmup=0)
    short = resume(tmp_path/'grown', make, epochs=5)
    assert short.recorder.lrs[-1] < short.recorder.lrs[0]
    grown = resume(tmp_path/'grown', make, epochs=8)
    same_state(grown, resume(tmp_path/'whole', make, epochs=8))


@pytest.mark.parametrize('make', [IntermediateLoss, lambda: HardRegions('layer1'), lambda: SupervisedTerm('ce')])
def test_callbacks_for_a_fit_that_have_parameters(tmp_path, make):
    def cbs(): return [make(), Checkpoint('2 steps')]
    whole = resume(tmp_path/'whole', epochs=2, cbs=cbs())
    with pytest.raises(Death): resume(tmp_path/'broken', epochs=2, cbs=[*cbs(), DieAt(5)])
    again = resume(tmp_path/'broken', epochs=2, cbs=cbs())
    assert again.train_iter == whole.train_iter
    for name, t in whole.model.state_dict().items(): assert torch.equal(t, again.model.state_dict()[name]), name


def test_a_schedule_is_of_one_fit():
    learn = learner()
    for schedule, usual in (('wsd', 'cosine'), (None, 'cosine')):
        learn.fit_contrastive(2, schedule=schedule)
        assert learn.recipe.schedule == usual
        peak = max(learn.recorder.lrs)
        assert (learn.recorder.lrs.count(peak) > 2) == (schedule == 'wsd')


def test_a_shorter_run_is_no_stable_one(tmp_path, capsys):
    def make(): return learner(schedule='wsd', warmup=0)
    died(tmp_path, 16, epochs=20, make=make, every=1)
    resume(tmp_path, make, epochs=4)
    assert 'the schedule is worked out anew' in capsys.readouterr().out


@pytest.mark.parametrize('event', ['before_fit', 'before_epoch', 'before_train'])
def test_a_fit_that_fails_leaves_signals_alone(tmp_path, event):
    class Fails(Callback):
        order = 200
    setattr(Fails, event, lambda self: 1 / 0)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError) as kept: resume(tmp_path, cbs=Fails())
    assert kept and signal.getsignal(signal.SIGTERM) is handler


def test_signals_finish_the_step(tmp_path):
    class Signal(Callback):
        def before_batch(self):
            if self.train_iter == 5: os.kill(os.getpid(), number)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        folder, handler = tmp_path/str(code), signal.getsignal(number)
        with pytest.raises(Interrupted) as caught: resume(folder, cbs=Signal())
        assert caught.value.code == code and newest(folder)['step'] == 6
        assert [note for note in caught.value.__notes__ if 'step 6' in note and f'resume={str(folder)!r}' in note]
        assert signal.getsignal(number) is handler
    same_state(resume(folder), resume(tmp_path/'whole'))


@pytest.mark.parametrize('error', ['of another callback', 'of the last writing'])
def test_an_error_at_the_end_leaves_signals_to_whoever_had_them(tmp_path, monkeypatch, error):
    class Fails(Callback):
        def after_fit(self): raise MemoryError('x')
    def save(*args): raise MemoryError('x')
    if 'writing' in error: monkeypatch.setattr(checkpoint.torch, 'save', save)
    handler, threads = signal.getsignal(signal.SIGINT), set(threading.enumerate())
    with pytest.raises(MemoryError): resume(tmp_path, epochs=1, cbs=Fails() if 'another' in error else None)
    assert signal.getsignal(signal.SIGINT) is handler and not set(threading.enumerate()) - threads


def test_a_signal_while_features_are_judged(tmp_path):
    class Signal(Callback):
        def after_train(self):
            if self.epoch == 1: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted): resume(tmp_path/'a', cbs=Signal())
    assert newest(tmp_path/'a')['step'] == 8
    same_state(resume(tmp_path/'a'), resume(tmp_path/'whole'))


def test_a_signal_while_the_row_is_written_does_not_part_recorder_and_history(tmp_path):
    class Signal(Callback):
        order = Phase.LAST  # after the recorder, before the history
        def after_epoch(self):
            if self.epoch == 1: os.kill(os.getpid(), signal.SIGTERM)
    learn = learner()
    with pytest.raises(Interrupted):
        learn.fit_contrastive(3, resume=tmp_path/'a', cbs=[Signal(), History(tmp_path/'a/history.csv')])
    assert len(learn.recorder.values) == len(history(tmp_path/'a')) == 2 and newest(tmp_path/'a')['step'] == 9
    same_state(resume(tmp_path/'a'), resume(tmp_path/'whole'))


@pytest.mark.parametrize('epochs', [5, 6])  # the rate falls from the end of the fourth on, or within the fifth
def test_epochs_that_a_longer_run_makes_again_leave_the_history_at_once(tmp_path, epochs):
    def make(): return learner(schedule='wsd', warmup=0)
    def cbs(*more): return [History(tmp_path/'history.csv'), *more]
    resume(tmp_path, make, epochs=epochs, cbs=cbs())
    assert len(history(tmp_path)) == epochs
    rows = []
    class Look(Callback):
        def after_batch(self): rows.append(len(history(tmp_path)))
    resume(tmp_path, make, epochs=8, cbs=cbs(Look()))
    assert rows[0] == 4 and len(history(tmp_path)) == 8


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, monkeypatch, capsys):
    write, calls = checkpoint.write_whole, []
    def full(path, content):
        calls.append(path)
        if 3 < len(calls) < 7: raise OSError(errno.ENOSPC, 'No space left on device')
        write(path, content)
    monkeypatch.setattr(checkpoint, 'write_whole', full)
    keeper = Checkpoint('2 steps')
    learn = learner()
    learn.fit_contrastive(3, cbs=keeper, resume=tmp_path)
    assert learn.train_iter == 12 and len(keeper.problems) == 3 and 'No space left' in keeper.problems[0]
    assert keeper.problems[0] in capsys.readouterr().out and newest(tmp_path)['step'] == keeper.saved == 12


def test_what_cannot_be_whole_takes_no_space(tmp_path, monkeypatch):
    def full(self, *args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Checkpoint, '_commit', full)
    resume(tmp_path)
    assert not list((tmp_path/'checkpoints').iterdir())


def test_the_part_of_a_process_that_was_killed_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, 'world_size', lambda: 2)
    keeper = Checkpoint(folder=tmp_path)
    keeper.grace, keeper.signals.caught = 0.1, signal.SIGTERM  # by which a launcher tells of the death
    keeper.directory.mkdir()
    (keeper.directory/'step-000000001.0.pt').write_bytes(b'x')
    begun = time.monotonic()
    with pytest.raises(OSError, match='1.pt of another process did not arrive'): keeper._parts('step-000000001')
    assert time.monotonic() - begun < keeper.patience / 10


def test_a_part_that_is_removed_at_once_is_not_waited_for(tmp_path, monkeypatch):
    "As by somebody who removes the folder in that moment"
    write = checkpoint.write_whole
    def removed(path, content):
        write(path, content)
        if path.name == 'step-000000006.0.pt': path.unlink()
    monkeypatch.setattr(checkpoint, 'write_whole', removed)
    keeper, begun = Checkpoint('2 steps'), time.monotonic()
    learner().fit_contrastive(3, cbs=keeper, resume=tmp_path)
    assert time.monotonic() - begun < keeper.patience / 10 and newest(tmp_path)['step'] == 12
    assert keeper.problems == ["the checkpoint of step 6 could not be written (step-000000006.0.pt was removed); "
                               "the run goes on."]


def test_a_folder_that_is_removed_is_made_again(tmp_path):
    class Remove(Callback):
        def before_batch(self):
            if self.train_iter != 5: return
            self.checkpoint.writing.result()  # else what is still being written would be in the way
            shutil.rmtree(tmp_path/'run')
    resume(tmp_path/'run', cbs=Remove())
    assert newest(tmp_path/'run')['step'] == 12


def test_a_folder_that_is_removed_just_after_a_checkpoint(tmp_path, monkeypatch):
    commit = Checkpoint._commit
    def removed(self, stem, *args):
        commit(self, stem, *args)
        if stem == 'step-000000006': shutil.rmtree(tmp_path)
    monkeypatch.setattr(Checkpoint, '_commit', removed)
    keeper = Checkpoint('2 steps')
    learner().fit_contrastive(3, cbs=keeper, resume=tmp_path)
    assert newest(tmp_path)['step'] == 12 and keeper.problems == []


def test_what_a_kill_while_writing_leaves_counts_for_nothing_and_goes(tmp_path):
    folder = died(tmp_path/'a', 7)
    whole = (folder/'step-000000006.0.pt').read_bytes()
    for name in ('step-000000008.0.pt', 'step-000000006.1.pt', 'step-000000001.0.pt', '.step-000000008.9.partial.pt'):
        (folder/name).write_bytes(whole[:99])
    same_state(resume(tmp_path/'a'), resume(tmp_path/'whole'))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f'step-0000000{step:02}{end}' for step in (8, 12) for end in ('.0.pt', '.json'))


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    class Break(Callback):
        order = 70
        def after_batch(self):
            if self.train_iter == 4: next(self.model.encoder.parameters()).data.fill_(torch.nan)
    keeper = Checkpoint('2 steps')
    with pytest.raises(InputError): learner().fit_contrastive(3, cbs=[keeper, Break()], resume=tmp_path)
    assert newest(tmp_path)['step'] == 2 and 'no longer finite' in keeper.problems[0]


def test_the_last_few_are_kept(tmp_path):
    folder = died(tmp_path, 9, every=2, keep=3)
    assert sorted(path.name for path in folder.glob('*.json')) == [f'step-00000000{n}.json' for n in (4, 6, 8)]
    assert len(list(folder.iterdir())) == 6


@pytest.mark.parametrize('every, expected', [
    ('epoch', (True, None, None)), (5, (False, 5, None)), (2.5, (False, None, 2.5)), ('10 minutes', (False, None, 600)),
    ('epoch, 90 seconds', (True, None, 90)), (['epoch', '1 step', '1 hour'], (True, 1, 3600)),
    ('3 steps', (False, 3, None)), ('500', (False, 500, None)), ('2.5', (False, None, 2.5)),
    ('epoch, 10 min', (True, None, 600)), ('1h', (False, None, 3600)), ('5 s', (False, None, 5))])
def test_moments(every, expected): assert tuple(vars(moments(every)).values()) == expected


@pytest.mark.parametrize('every', ['week', 0, -1, 0., True, None, '', '0', '1.5 steps', '0 steps', [], float('nan')])
def test_what_is_no_moment(every): assert 'Checkpoint' in refusal(lambda: Checkpoint(every))


def test_seconds(tmp_path, monkeypatch):
    clock = [0.]
    class Tick(Callback):
        def before_batch(self): clock[0] += 1
    monkeypatch.setattr(checkpoint.time, 'monotonic', lambda: clock[0])
    with pytest.raises(Death):
        learner().fit_contrastive(3, cbs=[Checkpoint(4., keep=9), Tick(), DieAt(11)], resume=tmp_path)
    assert sorted(path.name for path in tmp_path.rglob('*.json')) == [f'step-00000000{n}.json' for n in (4, 8)]


def test_it_is_written_beside_training(tmp_path, monkeypatch):
    threads, write = [], checkpoint.write_whole
    def slow(path, content):
        threads.append(threading.current_thread())
        write(path, content)
    monkeypatch.setattr(checkpoint, 'write_whole', slow)
    resume(tmp_path)
    assert threads and threading.main_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_callbacks_with_a_state(tmp_path):
    class Counter(Callback):
        def __init__(self): self.n = 0
        def after_batch(self): self.n += 1
        def state_dict(self): return dict(n=self.n, nested=[(1, 'a'), {2: None}])
        def load_state_dict(self, state): self.n, self.nested = state['n'], state['nested']
    died(tmp_path, 7, make=lambda: learner(cbs=[Counter(), EarlyStoppingCallback('train_loss', patience=9)]))
    learn = resume(tmp_path, lambda: learner(cbs=[Counter(), EarlyStoppingCallback('train_loss', patience=9)]))
    assert learn.counter.n == 12 and learn.counter.nested == [(1, 'a'), {2: None}]


def test_a_state_that_cannot_be_kept(tmp_path):
    class Bad(Callback):
        def state_dict(self): return dict(x=object())
        def load_state_dict(self, state): pass
    message = refusal(lambda: learner(cbs=[Bad()]).fit_contrastive(1, resume=tmp_path))
    assert 'Bad' in message and 'object' in message


def test_plain_values():
    values = dict(a=np.float32(2), b=L(1, 2), c=torch.__version__, d=torch.Size([1, 2]), e=np.arange(3),
                  f=signal.SIGINT)
    kept = plain(values, 'it')
    assert kept == dict(a=2., b=[1, 2], c=str(torch.__version__), d=(1, 2), e=kept['e'], f=2)
    assert [type(x) for x in kept.values()] == [float, list, str, tuple, torch.Tensor, int]


@pytest.mark.parametrize('value', [np.array(['a']), np.datetime64('2020-01-01'), np.longdouble(1), b'',
                                   torch.eye(2).to_sparse()])
def test_values_that_reading_would_need_a_pickle_for(value): assert 'it keeps a' in refusal(plain, value, 'it')


@pytest.mark.parametrize('method', ['simclr', 'moco_v2', 'dino'])
def test_size(tmp_path, method):
    learn = resume(tmp_path, lambda: learner(method))
    assert newest(tmp_path)['bytes'] == pytest.approx(size_of(learn), rel=0.5)
