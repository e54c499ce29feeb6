"""What a run has noted: fastai's recorder, and the epoch table as a file that is whole at any time and goes on where a
run is taken up."""
import csv
import io
import time
from contextlib import AbstractContextManager, contextmanager
from math import inf
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.learner import AvgSmoothLoss, Recorder, replacing_yield
from fastcore.foundation import L

from .checkpoint import stacked
from .core import InputError
from .files import write_whole
from .step import Phase


class DeviceLoss(AvgSmoothLoss):
    "fastai's smoothed loss, kept on the device: reading it there in every step would make the host wait"
    def reset(self): self.count, self.val = 0, None
    @property
    def value(self): return torch.tensor(torch.nan) if self.val is None else super().value
    def accumulate(self, learn):
        loss = learn.loss.detach().float()
        self.count += 1
        self.val = torch.lerp(loss, torch.zeros_like(loss) if self.val is None else self.val, self.beta)


class DeviceRecorder(Recorder):
    "fastai's, which keeps the losses where they are computed, in a few pieces of memory"
    name = 'recorder'
    every = 100  # steps whose losses become one piece
    _stateattrs = ('lrs', 'iters', 'losses')  # what a copy goes without: fastai's leaves out the values, too

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.smooth_loss = DeviceLoss(self.smooth_loss.beta)
        self.values = []  # there are none before the first fit

    @classmethod
    def into(cls,
        learn, # a fastai `Learner`
        **kwargs,
    ):
        "Replace a learner's recorder by one of these"
        learn.remove_cbs([cb for cb in learn.cbs if type(cb) is Recorder])
        learn.add_cb(cls(**kwargs))

    def before_fit(self):
        super().before_fit()
        self.packed = 0

    def after_batch(self):
        super().after_batch()
        if len(self.losses) - self.packed >= self.every: self._pack()

    def after_train(self):
        super().after_train()
        self._pack()

    def _pack(self):
        # one by one, these small tensors stay between the blocks that a step frees, and the heap grows with every step
        self.losses[self.packed:] = stacked(self.losses[self.packed:]).unbind()
        self.packed = len(self.losses)

    def _on_the_host(self) -> AbstractContextManager:
        "A block in which the losses are plain numbers, wherever they are kept"
        return contextmanager(replacing_yield)(self, 'losses', stacked(self.losses).tolist())

    def plot_loss(self,
        skip_start: int = 5, # steps to leave out
        with_valid: bool | None = None, # the validation loss too; None: if there is one
        **kwargs,
    ):
        "fastai's, wherever the losses are kept"
        if with_valid and not self.valid_metrics:
            raise InputError("there is no validation loss to draw: leave with_valid out, and look at the epoch table, "
                             "which has what is measured instead.")
        with self._on_the_host():
            return super().plot_loss(skip_start, self.valid_metrics if with_valid is None else with_valid, **kwargs)

    def plot_lr_find(self, *args, **kwargs):
        "fastai's, wherever the losses are kept"
        with self._on_the_host(): return super().plot_lr_find(*args, **kwargs)


class TrainRecorder(DeviceRecorder):
    "Of a run without a validation loss: what the metrics say stands with the training loss, once an epoch"
    def __init__(self):
        super().__init__(train_metrics=True, valid_metrics=False)
        self.earlier = 0  # epochs of the learner's fits before the last

    @property
    def epochs(self) -> int:
        "Of all of the learner's fits"
        return self.earlier + len(self.values)

    def before_fit(self):
        self.earlier = self.epochs
        super().before_fit()

    def after_cancel_train(self): pass  # the steps that an epoch had, as with `ShortEpochCallback`, have a row as well

    # for runs that are taken up, and for `lr_find`, whose own epochs do not count
    def state_dict(self) -> dict[str, Any]: return dict(earlier=self.earlier, values=self.values)
    def load_state_dict(self, state: dict[str, Any]):
        self.earlier, self.values = state['earlier'], [L(row) for row in state['values']]


class History(Callback):
    "Writes the epoch table to a CSV file after every epoch, as one; a checkpoint holds its rows"
    order = Phase.LAST + 1  # the recorder has its row

    def __init__(self,
        path: str | Path, # of the file
    ):
        self.path_of_file, self.rows, self.problem = Path(path), [], ''
        self.epochs_told = inf # of the recorder's, when an epoch has ended that is not among them
        self.stale = False     # whether the file has epochs that a longer run makes again

    def before_fit(self): self.rows, self.stale = [], False

    def before_batch(self):  # a checkpoint puts the rows back when an epoch begins, later than this is told of that
        if self.stale: self.write()
    def after_train(self): self.epochs_told = len(self.recorder.values)

    def after_epoch(self):
        self.epochs_told = inf
        row = zip(self.recorder.metric_names, self.recorder.log, strict=True)
        self.rows.append({name: value if isinstance(value, int | float) else str(value) for name, value in row
                          if value is not None})
        self.write()

    def after_fit(self):
        if self.epochs_told < len(self.recorder.values): self.after_epoch()  # another one has ended the fit first
        self.epochs_told = inf

    def write(self):
        "Write the file; a full disk costs the file, which the next epoch writes anew, and not the run"
        self.stale, text = False, io.StringIO()
        writer = csv.DictWriter(text, self.recorder.metric_names, extrasaction='ignore', lineterminator='\n')
        writer.writeheader()
        writer.writerows(self.rows)
        try: write_whole(self.path_of_file, text.getvalue())
        except OSError as e: self.problem = f"{self.path_of_file} could not be written ({e.strerror or e})"
        else: self.problem = ''

    def state_dict(self) -> dict[str, Any]: return dict(rows=self.rows)
    def load_state_dict(self, state: dict[str, Any]): self.rows, self.stale = [dict(row) for row in state['rows']], True


class Clock(Callback):
    "How long a run takes, with its earlier processes: a checkpoint holds it, as one that is killed writes no more"
    order = Phase.LAST + 1  # one process may have it and others not, see `Together`
    def __init__(self,
        began: float,        # when this process did, in seconds since 1970
        earlier: float = 0., # seconds of those before that are known already
    ):
        self.began, self.earlier = began, earlier

    @property
    def seconds(self) -> float: return self.earlier + time.time() - self.began

    def state_dict(self) -> dict[str, Any]: return dict(seconds=self.seconds)
    def load_state_dict(self, state: dict[str, Any]): self.earlier = max(self.earlier, state['seconds'])
