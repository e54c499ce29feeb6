"""Fits that die on the way, as a process does at SIGKILL: without a word, whatever it was doing."""
import csv
import random

import torch
from fastai.callback.core import Callback

from fastcontrast.checkpoint import Checkpoint, newest
from fastcontrast.evaluate.cost import Cost
from fastcontrast.history import History

TIMES = ('time', 'seconds', 'images_s', 'memory_mb')  # columns that no two runs have alike


class Death(BaseException): "The end of a process"


class DieAt(Callback):
    "Ends a process after a step; nothing that it has not kept by then is kept"
    order = 1000
    def __init__(self, step): self.step = step
    def after_batch(self):
        if self.train_iter == self.step: raise Death


def run(make, folder, epochs, *deaths, every=('epoch', '3 steps'), cost=True):
    """A learner that has been trained for so many epochs; its processes have died after these steps of the run

    To count operations, which `cost` does, takes a third of the time of so few steps."""
    for life, step in enumerate((*deaths, None)):
        learn, dying = make(), [DieAt(step)] if step else []
        if life and newest(folder): draw_something()
        cbs = [Checkpoint(every), History(folder/'history.csv'), *([Cost()] if cost else []), *dying]
        try: learn.fit_contrastive(epochs, cbs=cbs, resume=folder)
        except Death: assert step
        else: assert not step
    return learn


def draw_something():
    "A new process's generators are anywhere"
    torch.rand(random.randint(1, 9))
    random.random()


def history(folder) -> list[dict]:
    "Rows without the times"
    with (folder/'history.csv').open() as file:
        return [{name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def tensors(state, name='') -> dict:
    "Everything in nested dicts and lists, by its path"
    if isinstance(state, list | tuple): state = dict(enumerate(state))
    if not isinstance(state, dict): return {name: state}
    return {path: x for key, member in state.items() for path, x in tensors(member, f'{name}.{key}').items()}


def same_state(a, b) -> None:
    "Two learners have the same weights, buffers, queues and optimizer's state, and told the same, bit for bit"
    everything = [tensors(dict(model=learn.model.state_dict(), opt=learn.opt.state_dict(), losses=learn.recorder.losses,
                               lrs=learn.recorder.lrs, values=[list(row) for row in learn.recorder.values],
                               steps=learn.train_iter)) for learn in (a, b)]
    assert everything[0].keys() == everything[1].keys() and len(everything[0]) > 20
    for name, x in everything[0].items():
        if name.startswith('.values') and _is_time(a, name): continue
        other = everything[1][name]
        assert torch.equal(x, other) if isinstance(x, torch.Tensor) else x == other, name


def _is_time(learn, name: str) -> bool:
    "Whether a value of the recorder is of a column of times"
    column = int(name.rsplit('.', 1)[1])
    return learn.recorder.metric_names[1:][column] in TIMES
