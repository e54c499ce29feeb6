"""What a run has noted: fastai's recorder, and the epoch table as a file that is whole at any time and goes on where a
run is taken up."""
import csv
import io
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback
from fastai.learner import Recorder, replacing_yield

from .checkpoint import losses_of
from .core import InputError
from .files import write_whole
from .step import Phase


class TrainRecorder(Recorder):
    "fastai's, of a run without a validation loss: what the metrics say stands with the training loss, once an epoch"
    name = 'recorder'

    def __init__(self, smooth_loss: Any):
        super().__init__(train_metrics=True, valid_metrics=False)
        self.smooth_loss = smooth_loss
        self.values = []  # there are none before the first fit

    def after_cancel_train(self): pass  # the steps that an epoch had, as with `ShortEpochCallback`, have a row as well

    def _on_the_host(self) -> AbstractContextManager:
        "A block in which the losses are plain numbers, wherever they are kept"
        return contextmanager(replacing_yield)(self, 'losses', losses_of(self).tolist())

    def plot_loss(self, skip_start: int = 5, with_valid: bool = False, **kwargs):
        "fastai's, of the training loss alone"
        if with_valid:
            raise InputError("there is no validation loss to draw: leave with_valid out, and look at the epoch table's "
                             "knn, which curves.png of a run draws.")
        with self._on_the_host(): return super().plot_loss(skip_start, with_valid=False, **kwargs)

    def plot_lr_find(self, *args, **kwargs):
        "fastai's, wherever the losses are kept"
        with self._on_the_host(): return super().plot_lr_find(*args, **kwargs)


class History(Callback):
    "Writes the epoch table to a CSV file after every epoch, as one; a checkpoint holds its rows"
    order = Phase.LAST + 1  # the recorder has its row

    def __init__(self,
        path: str | Path, # of the file
    ): self.path_of_file, self.rows, self.problem = Path(path), [], ''

    def before_fit(self): self.rows = []

    def after_epoch(self):
        row = zip(self.recorder.metric_names, self.recorder.log, strict=True)
        self.rows.append({name: value if isinstance(value, int | float) else str(value) for name, value in row
                          if value is not None})
        self.write()

    def write(self):
        "Write the file; a full disk costs the file, which the next epoch writes anew, and not the run"
        text = io.StringIO()
        writer = csv.DictWriter(text, self.recorder.metric_names, extrasaction='ignore', lineterminator='\n')
        writer.writeheader()
        writer.writerows(self.rows)
        try: write_whole(self.path_of_file, text.getvalue())
        except OSError as e: self.problem = f"{self.path_of_file} could not be written ({e.strerror or e})"
        else: self.problem = ''

    def state_dict(self) -> dict[str, Any]: return dict(rows=self.rows)
    def load_state_dict(self, state: dict[str, Any]): self.rows = [dict(row) for row in state['rows']]
