"""A run told to TensorBoard, Weights & Biases, MLflow or a CSV file: settings, views, losses and the epoch table."""
import io
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from fastai.callback.core import Callback
from fastai.imports import noop
from PIL import Image

from .checkpoint import Checkpoint, surroundings
from .core import InputError, Registry, clipped, is_number
from .distributed import rank
from .figures import Figure, png_of
from .generators import OwnDraws
from .history import History
from .records import HISTORY
from .step import Phase

LOGS = Registry('log') # by name: what is called without arguments and gives a callback; `needs` is a package
PROJECT = 'fastcontrast' # what services call it where nobody has said otherwise


def check_logs(
    log: str | Sequence[str] | None, # names in `LOGS`, in a text with commas between them
) -> list[str]:
    "The names. Raises `InputError` for one that is unknown, or needs what is not installed"
    names = [] if log is None else log.split(',') if isinstance(log, str) else log
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(f"log={clipped(log)} names nothing to log to: give some of {', '.join(LOGS)}, with commas "
                         "between them.")
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    for name in names:
        package = LOGS.find(name).needs
        if not package or find_spec(package): continue
        raise InputError(f"logging to {name} needs the package {package}, which is not installed: pip install "
                         f"{package}.")
    return names


def make_logs(
    names: Iterable[str],     # from `check_logs`
    there: Iterable[Callback], # the callbacks of the fit
) -> list[Callback]:
    "What tells a run to these, but for those that do it already"
    kinds = [LOGS.find(name) for name in names]
    there = list(there)
    return [kind() for kind in kinds if not any(isinstance(cb, kind.same) for cb in there)]


def place_of(
    learn, # a fastai `Learner`
) -> Path:
    "The folder of a run: that of its checkpoints, else the learner's path"
    return _checkpoint_folder(learn) or Path(learn.path)


def _checkpoint_folder(learn) -> Path | None:
    "The folder that is a run's own, where its checkpoints have one"
    return next((cb.folder for cb in learn.cbs if isinstance(cb, Checkpoint) and cb.folder is not None), None)


class RunLog(Callback):
    """Tells a service of a run: its settings and views, loss and learning rate on the way, and every epoch's row

    A run that is taken up goes on in the same log. What the service fails at later costs the log and not the run (see
    `problem`). Nothing is drawn from anybody's generators, and of several processes the first tells."""
    order, run_valid = Phase.KEEP + 1, False # where a run is taken up, it is there again
    every = 50  # steps between looks at the loss, each of which makes the host wait for the device
    needs: ClassVar[str] = '' # a package
    same: ClassVar[type]      # what tells the same

    def __init__(self): self.id, self.problem, self.rows_told, self.opened = '', '', 0, False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.same = cls

    # --- what a service does

    def open(self) -> None:
        "Begin a log, and say by `id` which it is, or go on with the one that has the `id`"
        raise NotImplementedError

    def tell(self,
        values: Mapping[str, float],
        step: int, # of the run
    ) -> None: raise NotImplementedError

    def tell_settings(self, settings: Mapping[str, str | float]) -> None: raise NotImplementedError
    def tell_views(self, drawn: Figure) -> None: raise NotImplementedError

    def close(self,
        failed: bool, # whether the run ended early
    ) -> None: raise NotImplementedError

    # --- in a fit

    def before_fit(self):
        self.id, self.problem, self.opened = '', '', False
        self.run = not rank()

    def before_epoch(self):  # where Ctrl-C still ends the run at once: a service may ask who somebody is, and wait
        if not getattr(self.learn, 'goes_on', False): self._begin()

    def before_train(self): self._begin()  # of a run that is taken up: its checkpoint has said by now which log it has

    def _begin(self):
        if self.opened: return
        goes_on, self.rows_told = bool(self.id), len(self.recorder.values)
        with OwnDraws(next(self.model.parameters()).device, 0):
            try: self.open()
            except Exception as e:  # a service's own errors are of any kind
                raise InputError(f"{type(self).__name__} could not begin ({clipped(e)}): see to that, or leave it out "
                                 "of log.") from None
            self.opened = True
            if goes_on: return
            self.attempt(self.tell_settings, settings_of(self.learn))
            if hasattr(self.learn, 'show_views'): self.attempt(lambda: self.tell_views(self.learn.show_views()))

    def after_batch(self):
        if self.train_iter % self.every: return  # of the run: an epoch may have fewer steps
        self.attempt(self.tell, dict(loss=self.learn.smooth_loss.item(), lr=self.opt.hypers[-1]['lr']), self.train_iter)

    def after_epoch(self):
        row = zip(self.recorder.metric_names, self.recorder.log)
        self.attempt(self.tell, {name: float(value) for name, value in row if _is_value(value)}, self.train_iter)
        self.rows_told = len(self.recorder.values)

    def after_fit(self):
        if not self.opened: return
        if self.rows_told < len(self.recorder.values): self.after_epoch()  # another callback has ended the fit first
        self.attempt(self.close, getattr(self.learn, 'stopped', None) is not None)
        self.opened = False

    def attempt(self, function: Callable, *args: Any) -> None:
        "Call what a service does; where that fails it is said, once"
        try: function(*args)
        except Exception as e:
            if not self.problem and self.learn.logger is not noop:
                print(f"warning: {type(self).__name__} could not be told everything ({clipped(e)}); the run goes on",
                      flush=True)
            self.problem = clipped(e)

    def state_dict(self) -> dict[str, Any]: return dict(id=self.id)
    def load_state_dict(self, state: dict[str, Any]): self.id = state['id']


def _is_value(value: Any) -> bool: return is_number(value) or isinstance(value, float)  # also one that is not finite


def settings_of(
    learn, # a `ContrastiveLearner`, or one that tunes a classifier
) -> dict[str, str | float]:
    "What makes the run the one it is, in numbers and words"
    def told(value):
        if is_number(value): return value
        return clipped(', '.join(map(str, value)) if isinstance(value, list | tuple) else str(value), 500)
    own = {name: value for name, value in learn.settings().items() if name not in ('model', 'draws')}
    return {name: told(value) for name, value in (own | surroundings(learn)).items()}


@LOGS.register('tensorboard')
class TensorBoardLog(RunLog):
    "Event files in the folder `tensorboard` of the run, which `tensorboard --logdir` draws"
    needs = 'tensorboard'

    def open(self):
        from torch.utils.tensorboard import SummaryWriter
        # what an earlier process has told of steps that are done again is not shown twice
        purge = self.train_iter + 1 if self.id else 0
        self.id = self.id or self._new_folder()
        self.writer = SummaryWriter(str(place_of(self.learn)/self.id), purge_step=purge)

    def _new_folder(self) -> str:
        "`tensorboard`; a numbered one in it if there is a log already, unless checkpoints say whose place this is"
        place, n = place_of(self.learn)/'tensorboard', 2
        if _checkpoint_folder(self.learn) is not None or not any(place.glob('events.*')): return place.name
        while (place/str(n)).exists(): n += 1
        return f'{place.name}/{n}'

    def tell(self, values, step):
        for name, value in values.items(): self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def tell_settings(self, settings):
        rows = (f"| {name} | {value} |".replace('\n', ' ') for name, value in settings.items())
        self.writer.add_text('settings', '\n'.join(['| setting | value |', '|---|---|', *rows]), 0)

    def tell_views(self, drawn): self.writer.add_figure('views', drawn, 0)
    def close(self, failed): self.writer.close()


@LOGS.register('wandb')
class WandbLog(RunLog):
    """A run of Weights & Biases, called like the folder; or the one that is there after `wandb.init(…)`

    `WANDB_PROJECT`, `WANDB_MODE=offline` and the like in the environment count, as always."""
    needs = 'wandb'
    first = 0  # step of its run at which this fit's begin: it takes none that is smaller than the last

    def open(self):
        import wandb
        self.own, place = wandb.run is None, place_of(self.learn).absolute()
        if not self.id: self.first = 0
        if not self.own and self.id != wandb.run.id:
            self.id = wandb.run.id
            with suppress(Exception): self.first = wandb.run.step  # one that several processes share has none
        if self.own:
            self.id = self.id or uuid.uuid4().hex[:8]
            wandb.init(project=os.environ.get('WANDB_PROJECT', PROJECT), name=place.name, id=self.id, resume='allow',
                       dir=str(place))
        self.service = wandb

    def tell(self, values, step): self.service.log(dict(values), step=self.first + step)
    def tell_settings(self, settings): self.service.config.update(dict(settings), allow_val_change=True)

    def tell_views(self, drawn):
        picture = Image.open(io.BytesIO(png_of(drawn)))
        self.service.log(dict(views=self.service.Image(picture)), step=self.first)

    def close(self, failed):
        if self.own: self.service.finish(exit_code=int(failed))

    def state_dict(self): return dict(super().state_dict(), first=self.first)
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.first = state.get('first', 0)  # earlier versions kept none


@LOGS.register('mlflow')
class MlflowLog(RunLog):
    """A run of MLflow, called like the folder; or the one that is there after `mlflow.start_run(…)`

    Where `MLFLOW_TRACKING_URI` is not in the environment it is kept in the folder: `mlflow.db` and `mlruns`."""
    needs = 'mlflow'

    def open(self):
        import mlflow
        self.service, active, place = mlflow, mlflow.active_run(), place_of(self.learn).absolute()
        self.own = active is None
        if self.own:
            self.choose_place(place)
            active = mlflow.start_run(run_id=self.id or None, run_name=None if self.id else place.name)
        self.id = active.info.run_id

    def choose_place(self, folder: Path) -> None:
        "The server or the files that runs are kept by, and the experiment that they are part of"
        name, given = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT), os.environ.get('MLFLOW_TRACKING_URI')
        self.service.set_tracking_uri(given or f"sqlite:///{folder/'mlflow.db'}")
        if not given: os.environ.pop('MLFLOW_TRACKING_URI', None)  # which MLflow sets: the next run has its own place
        if not given and self.service.get_experiment_by_name(name) is None:
            self.service.create_experiment(name, artifact_location=(folder/'mlruns').as_uri())
        self.service.set_experiment(name)

    def tell(self, values, step):
        self.service.log_metrics({_plain_name(name): value for name, value in values.items()}, step=step)

    def tell_settings(self, settings):
        self.service.log_params({_plain_name(name): value for name, value in settings.items()})

    def tell_views(self, drawn): self.service.log_figure(drawn, 'views.png')

    def close(self, failed):
        if self.own: self.service.end_run('FAILED' if failed else 'FINISHED')


def _plain_name(name: str) -> str:
    "A name that MLflow takes"
    return re.sub(r'[^\w\-. /]', '_', name)


@LOGS.register('csv')
class CsvLog(History):
    "The epoch table in the run's `history.csv`"
    needs, same = '', History

    def __init__(self): super().__init__(HISTORY)

    def before_fit(self):
        super().before_fit()
        self.path_of_file = place_of(self.learn)/HISTORY
        self.run = not rank()
