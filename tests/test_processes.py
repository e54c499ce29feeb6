"""Several processes train one batch: for every recipe and speedup, two of them do what one does with the whole batch; how they are
started, stopped and told apart, and what is said when one of them fails."""
import hashlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fastai.callback.core import Callback
from timm.layers import GroupNorm1
from torch import nn
from torch.utils.data import Dataset

import fastcontrast.step
from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.distributed import MeanGradients, gather_objects, join_processes, rank
from fastcontrast.export import load_encoder
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import DCL, DCLW, NegCosine
from fastcontrast.recipes import METHODS, RECIPES, SPEEDUPS
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm
from fastcontrast.step import MultiCrop, StepCallback
from fastcontrast.targets import Queue
from fastcontrast.views import Views

BS, N, SIDE, EPOCHS = 8, 18, 32, 2  # two batches an epoch, and two pictures that fill none
CROPS = partial(MultiCrop, (2, None, (0.4, 1.0)), (2, None, (0.05, 0.4)))
SUPPORT = dict(classes_per_batch=2, per_class=4)


class Pictures(Dataset):
    "Noise in two classes"
    def __init__(self, n=N, side=SIDE, seed=0): self.x, self.targets = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)), [i % 2 for i in range(n)]
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.targets[i]


class Diary(Callback):
    "Losses of all steps; gradients of the last one, before anything clips them"
    order = 0
    def before_fit(self): self.losses, self.seen = [], []
    def before_batch(self): self.seen.append(self.xb[0].flatten(1).double().mean(1))
    def before_step(self): self.grads = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
    def after_batch(self): self.losses.append(self.loss.item())


class OwnLoss(Callback):
    "Backward passes of a callback's own, through a part of the encoder and through all of it"
    order = 0
    def __init__(self, event): setattr(self, event, self.add)
    def add(self):
        for stage in (self.model.encoder.layer1, self.model.encoder):
            def keep(module, args, out): self.out = out
            with stage.register_forward_hook(keep): self.model.encoder(self.learn.normalize(self.images / 255))
            self.out.square().mean().backward()


make_views = Views.forward

def views_by_picture(self, images):
    "Views that depend on the picture alone, in whichever process it is"
    def of(x):
        torch.manual_seed(int(x.long().sum()))
        return make_views(self, x[None])[self.role]
    return {self.role: torch.cat([of(x) for x in images], 1).double()}


def small(name, **changes):
    "A recipe with small heads of the same depths"
    r = RECIPES[name]
    few = dict(projector=(16,) * (len(r.projector) - 1) + (8,))
    if r.predictor: few['predictor'] = (16, 8)
    if r.prototypes: few |= dict(prototypes=12, multi_crop=CROPS)
    return METHODS[name](**{**few, **changes})


def without_batchnorm(model):
    for name, m in list(model.named_modules()):
        if isinstance(m, nn.modules.batchnorm._BatchNorm): model.set_submodule(name, GroupNorm1(m.num_features, affine=m.affine))


RUNS = {  # what `contrastive_learner` is given
    **{name: lambda name=name: dict(method=small(name)) for name in METHODS},
    'swav with its queue': lambda: dict(method=small('swav', memory=partial(Queue, 8, start=1), multi_crop=None)),
    'dcl': lambda: dict(method=small('simclr', loss=DCL)),
    'dclw with a queue': lambda: dict(method=small('moco_v2', loss=DCLW)),
    'neg_cosine': lambda: dict(method=small('byol', loss=NegCosine)),
    'comb_patches': lambda: dict(method=small('moco_v3'), cbs=[CombinePatches()]),
    'comb_patches stitched': lambda: dict(method=small('simclr'), cbs=[CombinePatches(combine='layer2')]),
    'comb_patches sampled': lambda: dict(method=small('byol'), cbs=[CombinePatches(patches='sample')]),
    'intermediate': lambda: dict(method=small('dino'), cbs=[IntermediateLoss()]),
    'partial': lambda: dict(method=small('moco_v3'), cbs=[IntermediateLoss(), PartialBackprop()]),
    'regions': lambda: dict(method=small('moco_v3'), cbs=[HardRegions()]),
    'regions, own keys': lambda: dict(method=small('simclr', loss=DCL), cbs=[HardRegions()]),
    'regions, negative cosines': lambda: dict(method=small('vicreg'), cbs=[HardRegions()]),
    'suncet': lambda: dict(method=small('simclr'), cbs=[SuNCEt(**SUPPORT, views=2)]),
    'supervised': lambda: dict(method=small('simclr'), cbs=[SupervisedTerm('ce', **SUPPORT)]),
    'supcon': lambda: dict(method=small('nnclr'), cbs=[SupervisedTerm('supcon', **SUPPORT)]),
    # patches have maps of 2 x 2 cells there: were they looked at as one, rounding would choose the window
    'all': lambda: dict(method=small('moco_v3'), cbs=[CombinePatches(), IntermediateLoss(), PartialBackprop(), HardRegions(cells=None), SuNCEt(**SUPPORT)]),
    **{f"a callback's own loss, {event}": lambda event=event: dict(method=small('simclr'), cbs=[OwnLoss(event)]) for event in ('before_backward', 'after_backward')},
    "a callback's own loss, in parts": lambda: dict(method=small('simclr'), cbs=[OwnLoss('after_backward')], accumulate=2),
    'streamed': lambda: dict(method=small('simclr'), memory=1e-12),
    'in parts': lambda: dict(method=small('moco_v3'), accumulate=2),
    'in parts, partial': lambda: dict(method=small('simclr'), cbs=[IntermediateLoss(), PartialBackprop()], accumulate=2),
}


def build(method, cbs=(), memory=0.25, lr=None, accumulate=1):
    torch.manual_seed(3 + rank())  # the weights are those of process 0
    dls = image_dls(Pictures(), bs=BS, labels='all', valid=Pictures(seed=1), workers=0, device='cpu', memory=memory)
    learn = contrastive_learner(dls, 'test_resnet', method=method, small_input=False, cbs=[Diary(), *cbs], accumulate=accumulate)
    learn.create_mbar = False
    without_batchnorm(learn.model)
    learn.model.double().encoder.register_forward_pre_hook(lambda _, x: x[0].double())  # pictures to judge by are in float32
    return learn


def train(name):
    "What a run leaves"
    learn = build(**RUNS[name]())
    with learn.no_logging(): learn.fit_contrastive(EPOCHS)
    return dict(losses=learn.diary.losses, grads=learn.diary.grads, weights=learn.model.state_dict(), seen=learn.diary.seen,
                table=[row[:3] for row in learn.recorder.values])


def refusal(f, *args, **kwargs):
    with pytest.raises(InputError) as e: f(*args, **kwargs)
    return str(e.value)


class NoNumber(Callback):
    order = 29
    def after_loss(self): self.learn.loss_grad = self.learn.loss = self.loss_grad * (math.nan if self.train_iter == 1 else 1)


class Draw(StepCallback):
    "Random numbers of a process, and the levels of the steps"
    order = 18
    def before_fit(self): self.drawn, self.levels = torch.rand(4), []
    def before_batch(self): self.levels.append(self.xb[1].levels)


def others():
    "What else two processes do, by name"
    learn, out = build(small('simclr'), cbs=[Draw(), IntermediateLoss(), PartialBackprop()]), {}
    with learn.distrib_ctx() as same, learn.no_logging(): learn.fit_contrastive(1)
    out['distrib_ctx'], out['draws'], out['levels'] = same is learn, learn.draw.drawn, learn.draw.levels
    with learn.no_logging():
        out['other lr'] = refusal(learn.fit_contrastive, 1, lr=0.1 * (1 + rank()))
        out['other epochs'] = refusal(learn.fit_contrastive, 1 + rank())
        learn.add_cb(NoNumber())
        out['no number'] = refusal(learn.fit_contrastive, 1)
        for what, kwargs in (('other weight', dict(cbs=[SuNCEt(weight=1 + rank())])), ('other width', dict(method=small('simclr', projector=(16, 8 + rank()))))):
            out[what] = refusal(build(**dict(dict(method=small('simclr')), **kwargs)).fit_contrastive, 1)
    out['odd batch'] = refusal(image_dls, Pictures(), bs=5, device='cpu')
    learn.remove_cb(learn.together)
    out['alone'] = refusal(learn.to_distributed)
    out['logger'] = len(build(small('simclr')).cbs.filter(lambda cb: type(cb).__name__ in ('ProgressCallback', 'EpochLines')))
    return out


def process(r, folder):
    "One of the two"
    torch.set_num_threads(1)
    Views.forward = views_by_picture
    fastcontrast.step.MeanGradients = partial(MeanGradients, size=2**12)  # all gradients of this encoder are less than one usual bucket
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=r, world_size=2, timeout=timedelta(seconds=60))
    def leave(name, what):
        torch.save(what, folder/'part')
        os.replace(folder/'part', folder/f'{name}.pt')
    try:
        for name in RUNS:
            result = train(name)
            mine = (result['losses'], result['table'], hashlib.sha256(b''.join(t.numpy().tobytes() for t in result['weights'].values())).hexdigest(), torch.stack(result['seen']))
            everyone = gather_objects(mine)
            if not r: leave(name, dict(result, everyone=everyone))
        everyone = gather_objects(others())
        if not r: leave('others', everyone)
    finally: dist.destroy_process_group()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "Waits for what the two processes leave under a name"
    folder = tmp_path_factory.mktemp('processes')
    spawned, end = mp.spawn(process, args=(folder,), nprocs=2, join=False), time.monotonic() + 400
    def wait(name):
        file = folder/f'{name}.pt'
        while not file.exists():
            if spawned.join(timeout=0.1) and not file.exists() or time.monotonic() > end: pytest.fail(f'the processes left no {name}')
        result = torch.load(file, weights_only=False)
        file.unlink()
        return result
    yield wait
    for p in spawned.processes:
        if p.is_alive(): p.kill()
        p.join()


# --- two processes do what one does

@pytest.mark.parametrize('name', RUNS)
def test_two_processes_make_the_steps_of_one(results, name, monkeypatch):
    monkeypatch.setattr(Views, 'forward', views_by_picture)
    one = train(name)
    two = results(name)
    assert len(one['losses']) == 4 and any(g.abs().max() > 1e-6 for g in one['grads'].values())
    torch.testing.assert_close(two['losses'], one['losses'], rtol=1e-8, atol=0)
    for what in ('grads', 'weights'):
        assert two[what].keys() == one[what].keys()
        for n, t in one[what].items(): assert (two[what][n] - t).double().norm() <= 1e-8 * t.double().norm() + 1e-10, (what, n)
    (losses, table, weights, seen), second = two['everyone']
    assert (losses, table, weights) == second[:3]  # bit by bit, and the epochs' kNN and spread too
    torch.testing.assert_close(table, one['table'])
    both = torch.cat([seen, second[3]], 1)
    torch.testing.assert_close(both, torch.stack(one['seen']))  # each batch is divided, and nothing read twice
    assert all(len(set(step.tolist())) == BS for step in both)


def test_every_speedup_is_among_them(): assert set(SPEEDUPS) <= set(RUNS)


@pytest.fixture(scope='module')
def both(results): return results('others')


def test_draws_of_the_batch_are_shared_and_those_of_pictures_are_not(both):
    a, b = both
    assert a['distrib_ctx'] and b['distrib_ctx']
    assert a['levels'] == b['levels'] and len(a['levels']) == 2 and all(len(levels) == 1 for levels in a['levels'])
    assert not (a['draws'][:, None] == b['draws']).any()


@pytest.mark.parametrize('what, words', {
    'other lr': 'the same learning rate: 0.1 in process 0 and 0.2 in process 1', 'other epochs': 'the same epochs: 1 in process 0 and 2 in process 1',
    'other weight': 'the same callbacks: .*SuNCEt.* in process 0 and .*SuNCEt\\(weight=2.*\\).* in process 1', 'other width': "the same model: .*8.* in process 0 and .*9.* in process 1",
    'no number': 'the loss is nan in epoch 0, step 1', 'odd batch': 'bs=5 cannot be divided among 2 processes', 'alone': 'made before its process joined the others'}.items())
def test_all_processes_raise_alike(both, what, words):
    a, b = (x[what] for x in both)
    assert a == b and re.search(words, a) and '\n' not in a, a


def test_process_0_tells(both): assert [x['logger'] for x in both] == [1, 0]


# --- launched

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONWARNINGS': 'ignore', 'PYTHONUNBUFFERED': ''}  # lines of two processes stay whole
TINY = ('--arch', 'test_resnet', '--size', 16, '--batch-size', 700, '--no-controls')
SCRIPT = """
import torch
from fastcontrast.all import contrastive_learner, image_dls
dls = image_dls('digits', size=16, bs=700)
learn = contrastive_learner(dls, 'test_resnet', 'simclr')
learn.fit_contrastive(1)
print('knn', learn.recorder.values[-1][1])
file = learn.export('encoder.safetensors')
learn.show_views(path='views.png')
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(processes): return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


def started(*args, until):
    "The program, when its output matches: itself, the processes that it started, and a function that gives its exit code and output when it has ended"
    with open('log', 'w') as log: program = subprocess.Popen([sys.executable, '-m', 'fastcontrast', *map(str, args)], stdout=log, stderr=log, env=ENV)
    def wait():
        code = program.wait(60)
        return code, Path('log').read_text()
    end = time.monotonic() + 120
    while not re.search(until, Path('log').read_text(), re.M):
        assert program.poll() is None and time.monotonic() < end, Path('log').read_text()
        time.sleep(0.1)
    return program, psutil.Process(program.pid).children(recursive=True), wait


def test_accelerate_launches_a_plain_script(folder):
    (folder/'train.py').write_text(SCRIPT)
    done = subprocess.run([sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--main_process_port', '0', 'train.py'],
                          capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == 0, done.stderr
    out = done.stdout.splitlines()
    assert len([line for line in out if line.startswith('simclr (digits)')]) == len([line for line in out if line.split()[:1] == ['0']]) == 1, done.stdout
    knn = re.findall(r'knn (0\.\d+)', done.stdout)  # of two processes that may write into the same line
    assert len(knn) == 2 and len(set(knn)) == 1
    assert load_encoder(folder/'encoder.safetensors').num_features and {f.name for f in folder.iterdir()} == {'train.py', 'encoder.safetensors', 'views.png'}


def test_pretrain_in_two_processes(folder):
    _, children, wait = started('pretrain', *TINY, '--epochs', 1, '--processes', 2, '--out', 'run', until='pictures to train on')
    code, out = wait()
    assert code == 0 and len(children) == 2 and ended(children), out
    lines = out.splitlines()
    assert lines[0].endswith('in 2 processes; results in run') and lines[1].startswith('simclr (digits): adamw, lr 0.02188 (0.008 x 700/256)') and lines[-1].endswith('are in run')
    assert len([line for line in lines if line.split()[:1] == ['0']]) == 1 and len([line for line in lines if 'trained encoder' in line]) == 1
    assert {f.name for f in (folder/'run').iterdir()} == {'config.json', 'history.csv', 'encoder.safetensors', 'curves.png', 'views.png'}
    config = json.loads((folder/'run/config.json').read_text())
    assert config['processes'] == 2 and config['batch_size'] == 700 and config['state'] == 'finished' and config['epochs_done'] == 1


def test_ctrl_c_ends_all_and_keeps_the_encoder(folder):
    program, children, wait = started('pretrain', *TINY, '--epochs', 500, '--processes', 2, '--out', 'run', until='^ *0 ')
    program.send_signal(signal.SIGINT)
    code, out = wait()
    assert code == 130 and ended(children), out
    last = out.splitlines()[-1]
    assert re.fullmatch(r'interrupted after \d+ of 500 epochs: the encoder as it was then is in run/encoder.safetensors.', last) and out.count('interrupted') == 1 and 'Traceback' not in out
    assert load_encoder(folder/'run/encoder.safetensors').num_features


def test_a_process_that_dies_ends_all(folder):
    program, children, wait = started('pretrain', *TINY, '--epochs', 500, '--processes', 2, '--out', 'run', until='^ *0 ')
    second = next(p for p in children if p.environ()['RANK'] == '1')
    second.kill()
    code, out = wait()
    assert code == 1 and ended(children), out
    assert out.splitlines()[-1] == 'error: process 1 of 2 was ended by SIGKILL, and the others with it.' and 'Traceback' not in out and out.count('error') == 1


def test_what_process_0_refuses_is_told_once():
    Path('notes').touch()
    _, children, wait = started('pretrain', *TINY, '--processes', 2, '--out', '.', until='error')
    code, out = wait()
    assert code == 2 and ended(children) and out == "error: --out . already holds files: give a new folder, or remove it.\n"


# --- refused at once

@pytest.mark.parametrize('args, words', [(('--processes', 0), '--processes must be 1 or more, not 0'), (('--processes', 3, '--batch-size', 4), "--batch-size 4 can't be divided among 3 processes"),
                                         (('--processes', 1024, '--batch-size', 1024), r'--processes 1024 is more than the \d+ (cores|GPUs) of this machine: give \d+ or fewer')])
def test_processes_that_cannot_be(args, words, monkeypatch, capsys):
    import fastcontrast.cli as cli
    monkeypatch.setattr(sys, 'argv', ['fastcontrast', 'pretrain', *map(str, args)])
    with pytest.raises(SystemExit) as e: cli.main()
    err = capsys.readouterr().err
    assert e.value.code == 2 and re.match(f'error: {words}', err) and err.count('\n') == 1


def test_port_in_use(monkeypatch):
    from accelerate import PartialState
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        for k, v in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=taken.getsockname()[1], OMP_NUM_THREADS=1).items(): monkeypatch.setenv(k, str(v))
        try: assert re.fullmatch(r"the processes can't meet at 127.0.0.1:\d+ \(the port is in use\): give the launcher another port .*", refusal(join_processes))
        finally: PartialState._reset_state()


def test_accelerate_set_up_for_one_process(monkeypatch):
    from accelerate import PartialState
    try:
        PartialState()
        monkeypatch.setenv('WORLD_SIZE', '2')
        assert 'accelerate was set up for one process before' in refusal(join_processes)
    finally: PartialState._reset_state()
