"""Two processes that died go on as if they had not; and one goes on where two were, with a word about it."""
import copy
import os
import time
import traceback
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from helpers.deaths import history, run, same_state, tensors
from helpers.folders import image_folder
from helpers.forks import CONTEXT, start
from helpers.halves import take_bf16
from helpers.learners import small
from helpers.pictures import ARCH, Dots
from helpers.refusals import refusal

from fastcontrast import checkpoint
from fastcontrast.checkpoint import Checkpoint, newest
from fastcontrast.data import image_dls
from fastcontrast.distributed import rank
from fastcontrast.learner import contrastive_learner
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.suncet import SuNCEt

RUNS = {
    **{name: lambda name=name: dict(method=small(name, 'cifar')) for name in ('nnclr', 'swav')},
    'all': lambda: dict(method=small('moco_v2', 'cifar'),
                        cbs=[CombinePatches(), IntermediateLoss(), PartialBackprop(), SuNCEt(per_class=3),
                             ProgressiveSize()]),
    'dino in bfloat16': lambda: take_bf16() or dict(method=small('dino', 'cifar'), precision='bf16'),
    'parts': lambda: dict(method=small('byol', 'cifar'), accumulate=2),
}
DEATHS = {'all': (2, 7), 'dino in bfloat16': (5,), 'parts': (6,)}
USUAL = (7,)  # of the recipes: in the second epoch
SPOILT = ['001.png', '004.png', '008.png', '011.png']


def learner(name):
    torch.manual_seed(rank())  # Together has them begin alike
    dls = image_dls(Dots(40), bs=8, valid=0.2, labels='all', workers=0, device='cpu')
    learn = contrastive_learner(dls, ARCH, small_input=False, knn_pictures=16, **RUNS[name]())
    learn.logger = print if not rank() else learn.logger
    return learn


def process(r, folder, told):
    "One of the two"
    torch.set_num_threads(1)
    try:
        dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=r, world_size=2,
                                timeout=timedelta(seconds=60))
        for name in RUNS:
            whole = run(partial(learner, name), folder/name/'whole', 2, cost=name == 'all')
            broken = run(partial(learner, name), folder/name/'broken', 2, *DEATHS.get(name, USUAL), cost=name == 'all')
            same_state(whole, broken)  # in each process, its own statistics of BatchNorm too
        planned_longer(folder/'longer')
        kept_after_seconds(folder/'seconds')
        undecodable_is_known(folder/'pictures')
        folders_apart(folder)
        rate_is_looked_for()
        told.put('')
    except BaseException: told.put(traceback.format_exc())
    finally:
        if dist.is_initialized(): dist.destroy_process_group()


def plain_learner(n=40):
    torch.manual_seed(0)
    dls = image_dls(Dots(n), bs=8, valid=0, workers=0, device='cpu')
    return contrastive_learner(dls, ARCH, small('simclr', 'cifar', warmup=0), small_input=False, knn_pictures=0)


def planned_longer(folder):
    "What begins to depend on the length of the run is kept in both, in the middle of an epoch too"
    for length in (4, 6):
        grown = plain_learner()
        grown.fit_contrastive(length, resume=folder/'grown', schedule='wsd')
    whole = plain_learner()
    whole.fit_contrastive(6, resume=folder/'whole', schedule='wsd')
    same_state(grown, whole)


def kept_after_seconds(folder):
    "Each time once, at the step after the one at which the first process wished it, and at the end"
    clock = [0.]
    class Tick(Callback):
        def before_batch(self): clock[0] += 1
    checkpoint.time = SimpleNamespace(monotonic=lambda: clock[0], sleep=time.sleep)
    try: plain_learner(80).fit_contrastive(1, cbs=[Checkpoint(4., keep=9), Tick()], resume=folder)
    finally: checkpoint.time = time
    if rank(): return  # the first may still be writing
    steps = [int(path.stem.removeprefix('step-')) for path in sorted(folder.rglob('step-*.json'))]
    assert steps == [5, 10], steps


def undecodable_is_known(folder):
    "Each process has read half of the pictures, and knows of all that could not be decoded"
    dls = image_dls(folder, bs=8, size=16, valid=0, memory=1e-12, workers=0, device='cpu')
    contrastive_learner(dls, ARCH, small('simclr', 'cifar'), small_input=False, knn_pictures=0).fit_contrastive(1)
    assert sorted(Path(name).name for name in dls.train.data.failed) == SPOILT


def folders_apart(folder):
    "As on the disks of two machines: all processes refuse, before the first step"
    keeper, learn = Checkpoint(), plain_learner()
    keeper.look = 0.5
    words = refusal(learn.fit_contrastive, 1, cbs=keeper, resume=folder/f'of_{rank()}')
    assert 'process 1 does not find in' in words and 'that they share' in words and not learn.train_iter
    assert rank() or not list((folder/'of_0/checkpoints').iterdir())


def rate_is_looked_for():
    "All processes have afterwards what they had before"
    learn = learner('dino in bfloat16')
    learn.fit_contrastive(1)
    before = copy.deepcopy([learn.model.state_dict(), learn.opt.state_dict()])
    os.environ['RANK'] = str(rank())  # by which fastai saves in one process alone, as launchers set it
    learn.lr_find(num_it=5, show_plot=False)
    del os.environ['RANK']
    kept, now = (tensors(state) for state in (before, [learn.model.state_dict(), learn.opt.state_dict()]))
    assert kept.keys() == now.keys()
    for name, t in kept.items(): assert torch.equal(t, now[name]) if torch.is_tensor(t) else t == now[name], name
    learn.fit_contrastive(1)


def test_two_processes(tmp_path, capsys):
    "All that two processes do here they do in one launch"
    image_folder(tmp_path/'pictures', dict(a=16))
    for name in SPOILT: (tmp_path/'pictures/a'/name).write_bytes(b'')
    told = CONTEXT.SimpleQueue()
    spawned, end = start(process, tmp_path, told), time.monotonic() + 570
    try:
        while not spawned.join(timeout=1): assert time.monotonic() < end
    finally:
        for p in spawned.processes: p.kill()
    results = [told.get(), told.get()]
    assert results == ['', ''], '\n'.join(results)
    for name in RUNS: check_folders(tmp_path/name)
    check_parts(tmp_path/'all'/'whole'/'checkpoints')
    check_that_one_goes_on(tmp_path/'all'/'whole', capsys)


def check_folders(folder):
    # the first process's table: both have written it
    assert history(folder/'whole') == history(folder/'broken')
    parts = [path.name for path in (folder/'broken'/'checkpoints').glob('*.pt')]
    assert len(parts) == 4 and {part.split('.')[1] for part in parts} == {'0', '1'}


def check_parts(folder):
    "The second holds what is not the same in both"
    first, second = (torch.load(folder/f'step-000000008.{r}.pt', weights_only=True) for r in (0, 1))
    assert second['optimizer'] is None and len(second['model']) < len(first['model'])
    differ = [name for name, t in second['model'].items() if not torch.equal(t, first['model'][name])]
    assert differ and all('running' in name for name in differ)


def check_that_one_goes_on(folder, capsys):
    learn = learner('all')
    learn.fit_contrastive(3, resume=folder)
    assert 'processes: 1 in place of 2, so what follows is no longer identical' in capsys.readouterr().out
    assert learn.train_iter == newest(folder)['step'] == 12
