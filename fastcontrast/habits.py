"""fastai's own callbacks find what they look for in a contrastive run, or something alike; else their user is told."""
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler
from fastai.callback.progress import ProgressCallback, ShowGraphCallback
from fastai.callback.schedule import LRFinder, ParamScheduler
from fastai.callback.tracker import ReduceLROnPlateau, SaveModelCallback, TrackerCallback
from fastai.imports import noop
from fastai.learner import Recorder
from torch import Tensor, nn

from .bar import RunBar
from .checkpoint import stacked, stateful
from .core import InputError
from .distributed import rank
from .generators import generator_states, set_generators
from .models import evaluating
from .optim import optimizer_name

__all__ = ['Habits', 'Setting', 'check_habit', 'resting', 'summary_of', 'trial']

NO_LOSS = 'valid_loss' # what fastai's trackers watch where nobody says what
_PROJECTS = (" shows what a classifier predicts from, and there are no predictions: draw_map(embed("
             "learn.model.encoder, dls)) draws where pictures lie.")


class Setting(str):
    "A setting as fastai's `WandbCallback` takes it: it looks for attributes, which plain values have none of"


def check_habit(
    cb: Callback, # that is to be added to a contrastive learner
) -> None:
    "Raise `InputError` for one of fastai's that can do nothing there"
    name = type(cb).__name__
    if isinstance(cb, MixHandler):
        raise InputError(f"{name} mixes pictures and their labels, and a contrastive step has no labels to mix: leave "
                         "it out; views= takes any module that augments a batch of pictures.")
    if name == 'TensorBoardProjectorCallback':
        raise InputError(name + _PROJECTS)


class Habits(Callback):
    "Before a fit, has fastai's callbacks watch and log what there is; afterwards they are as they were"
    order, run_valid = Recorder.order + 0.5, False # the columns are known, and no tracker or logger has begun

    def __init__(self): self.replaced, self.counts = [], False

    def before_fit(self):
        self.put_back()  # of a fit that could not clean up
        self.counts = False
        for cb in list(self.learn.cbs):
            for kind, meet in _MET.items():
                if any(kind == base.__name__ for base in type(cb).__mro__): meet(self, cb)

    def after_batch(self):
        # it divides the first dimension of the input by the time: that of pictures, not of roles
        if self.counts: self.learn.xb = self.learn.step.pictures

    def after_fit(self):
        for cb in self.learn.cbs:  # what was never saved can't be loaded, and another run's file should not be
            saves = isinstance(cb, SaveModelCallback) and not (cb.every_epoch or cb.at_end)
            if saves and cb.best in (None, np.inf, -np.inf): cb.run = False  # until this event is over

    def put(self,
        cb: Callback,
        **values: Any, # attributes that it has until the fit is over
    ) -> None:
        self.replaced.append((cb, {name: vars(cb)[name] for name in values if name in vars(cb)}, tuple(values)))
        vars(cb).update(values)

    def put_back(self) -> None:
        "Give the callbacks back what they had"
        while self.replaced:
            cb, had, names = self.replaced.pop()
            for name in names: vars(cb).pop(name)
            vars(cb).update(had)

    def tell(self, sentence: str) -> None:
        if self.learn.logger is not noop: print(sentence, flush=True)


def _watch(habits: Habits, cb: TrackerCallback) -> None:
    "A tracker finds its column: in place of the validation loss kNN, or the training loss where there is no kNN"
    columns = [name for name in habits.recorder.metric_names if name not in ('epoch', 'time')]
    name = type(cb).__name__
    if cb.monitor not in (*columns, NO_LOSS):
        raise InputError(f"{name} watches '{cb.monitor}', and the epoch table has no such column: give monitor one of "
                         f"{', '.join(columns)}.")
    if isinstance(cb, ReduceLROnPlateau): _check_scheduled(habits)
    if cb.monitor in columns: return
    monitor = 'knn' if 'knn' in columns else 'train_loss'
    values = dict(monitor=monitor)
    if monitor == 'knn' and cb.comp == np.less: values |= dict(comp=np.greater, min_delta=-cb.min_delta)
    habits.put(cb, **values)
    habits.tell(f"{name} watches {monitor}, as there is no validation loss")


def _check_scheduled(habits: Habits) -> None:
    "Raise `InputError` where a schedule would set the learning rate anew in every step"
    for other in habits.learn.cbs:
        if isinstance(other, ParamScheduler) and not isinstance(other, LRFinder) and 'lr' in other.scheds:
            raise InputError("ReduceLROnPlateau lowers the learning rate, and the schedule of this fit sets it anew in "
                             "every step: train by learn.fit(n, lr), which has none, or leave it out.")


def _tensorboard(habits: Habits, cb: Callback) -> None:
    if cb.projector: raise InputError('TensorBoardCallback(projector=True)' + _PROJECTS)
    habits.put(cb, trace_model=False, log_preds=False)  # a trace would move BatchNorm's statistics


def _wandb(habits: Habits, cb: Callback) -> None:
    habits.put(cb, log_preds=False)
    habits.counts = True


def _show_graph(habits: Habits, cb: ShowGraphCallback) -> None:
    "The second curve would be the first metric's, which is no loss; elsewhere than in a notebook nothing draws it"
    drawn = any(isinstance(bar, ProgressCallback) and not isinstance(bar, RunBar) for bar in habits.learn.cbs)
    if drawn: habits.put(cb, after_epoch=partial(_draw_losses, habits.learn))
    else:
        habits.put(cb, before_fit=noop, after_train=noop, after_epoch=noop)
        habits.tell("ShowGraphCallback draws in notebooks: learn.recorder.plot_loss() draws the losses afterwards")


def _draw_losses(learn) -> None:
    "The training losses so far, above the bar of a notebook"
    recorder, bar = learn.recorder, getattr(learn.progress, 'mbar', None)
    if bar is None or not recorder.losses: return
    losses = stacked(recorder.losses).tolist()
    bar.update_graph([(list(range(len(losses))), losses)], (0, learn.n_epoch * learn.n_iter), (0, max(losses)))


# by name, as importing fastai's loggers needs the packages that they log by
_MET: dict[str, Callable[[Habits, Callback], None]] = dict(
    TrackerCallback=_watch, TensorBoardCallback=_tensorboard, WandbCallback=_wandb, ShowGraphCallback=_show_graph)


@contextmanager
def resting(
    learn, # a fastai `Learner`
    kinds: tuple[type, ...], # of its callbacks
) -> Iterator[None]:
    "A block in which these callbacks do nothing"
    still = [cb for cb in learn.cbs if isinstance(cb, kinds) and cb.run]
    for cb in still: cb.run = False
    try: yield
    finally:
        for cb in still: cb.run = True


@contextmanager
def trial(
    learn, # a `ContrastiveLearner`, or one that tunes a classifier
    kinds: tuple[type, ...], # of callbacks that have no part in it
) -> Iterator[None]:
    "A block for fastai's `LRFinder`, which puts model and optimizer back: so are places in the data, draws"
    device, train = next(learn.model.parameters()).device, learn.dls.train
    generators, place, had_opt = generator_states(device), (train.epoch, train.begin), learn.opt is not None
    kept = [(take, copy.deepcopy(give())) for give, take in stateful(learn).values()]
    if rank():  # fastai puts back what it has saved, which it does in the first process alone
        parts = [learn.model, learn.opt] if had_opt else [learn.model]
        kept += [(part.load_state_dict, copy.deepcopy(part.state_dict())) for part in parts]
    rates = [hyper['lr'] for hyper in learn.opt.hypers] if had_opt else []  # it saves those that it begins with
    try:
        with resting(learn, kinds): yield
    finally:
        for take, state in kept: take(state)
        for hyper, rate in zip(learn.opt.hypers if had_opt else [], rates): hyper['lr'] = rate
        set_generators(generators, device)
        train.epoch, train.begin = place
        if not had_opt: learn.opt = None


def summary_of(
    learn, # a `ContrastiveLearner`
) -> str:
    "What a picture becomes on its way through the model, module by module, and what trains it"
    model, rows = learn.model, []
    head = model.heads['final']
    def note(name, module, args, y):
        shape = ' x '.join(map(str, y.shape[1:])) if isinstance(y, Tensor) else ''
        own = list(module.parameters())
        trains = any(p.requires_grad for p in own)
        rows.append((name, type(module).__name__, shape, sum(p.numel() for p in own), trains))
    hooks = [module.register_forward_hook(partial(note, f'{part}.{name}'.rstrip('.')))
             for part, net in (('encoder', model.encoder), ('projector', head.projector), ('predictor', head.predictor))
             for name, module in ([] if net is None else net.named_modules()) if _is_layer(module)]
    try:
        side, like = learn.dls.size, next(model.parameters())
        with evaluating(model): head(model.features(like.new_zeros(1, model.in_chans, side, side))['final'])
    finally:
        for hook in hooks: hook.remove()
    table = pd.DataFrame(rows, columns=['layer', 'kind', 'output', 'parameters', 'trains'])
    return '\n'.join([table.to_string(index=False), '', *_training(learn)])


def _is_layer(module: nn.Module) -> bool: return not (list(module.children()) or isinstance(module, nn.Identity))


def _training(learn) -> list[str]:
    "Lines on what trains a model"
    own = [p for net in (learn.model.encoder, learn.model.heads) for p in net.parameters()]
    trained, recipe = sum(p.numel() for p in own if p.requires_grad), learn.recipe
    at = " at a batch of 256" if recipe.scaled else ""
    return [f"{sum(p.numel() for p in own):,} parameters, of which {trained:,} train",
            f"method: {recipe.name} ({recipe.setting}), loss {learn.loss_func.loss}",
            f"optimizer: {optimizer_name(recipe.opt)}, lr {recipe.lr:g}{at}, wd {recipe.wd:g}",
            f"views: {learn.views}", f"callbacks: {', '.join(str(cb) for cb in learn.cbs.sorted('order'))}"]
