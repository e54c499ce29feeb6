"""A pretraining run of the command line: prepared, trained, judged, kept in its folder and reported."""
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..core import InputError
from .inputs import read_pictures, tell_undecodable
from .judging import control_results, features, file_embedder, judge, results_table, unjudged
from .output import console, save_json
from .registries import methods, speedups
from .settings import Run, check_names, number_or_name, parse_speedups


@dataclass
class Training:
    "A run under way, and what came of it so far"
    config: Run
    folder: Path               # of the results
    learn: Any                 # a `ContrastiveLearner`
    unjudged: str              # why the encoder can't be judged; '' if it can
    record: dict[str, Any]     # what config.json says
    cost: Any                  # a `Cost`
    results: dict[str, dict[str, float]] = field(default_factory=dict) # what `judge` said, by whose features
    encoder: Path | None = None # the exported file


def make_learner(
    config: Run,
    folder: Path | None, # where fastai keeps its files
) -> Any:                # a `ContrastiveLearner`
    "The learner of a training. Raises `InputError` for settings that can't be"
    import torch
    from ..learner import contrastive_learner
    check_names(config)
    torch.manual_seed(config.seed)
    dls = read_pictures(config.data, config.batch_size, size=config.size, labels=number_or_name(config.labels),
                        valid=config.valid, seed=config.seed, workers=config.workers,
                        cache=config.cache_folder or config.cache)
    return contrastive_learner(
        dls, config.arch, methods()[config.method](config.setting), loss=config.loss,
        cbs=parse_speedups(config.speedups), small_input=config.small_input, precision=config.precision,
        compile=config.compile, accumulate=config.accumulate, path=folder)


def accompany(config: Run) -> None:
    "What all processes but the first do: train"
    from ..evaluate.cost import Cost
    make_learner(config, None).fit_contrastive(config.epochs, lr=config.lr, cbs=Cost())


def train(
    config: Run,
    folder: Path, # empty
) -> None:
    "A whole run. Raises `InputError` or `KeyboardInterrupt` if it ended early, after all that it has was kept"
    start = time.time()
    training = _prepare(config, folder)
    problem = _attempt(training)
    _keep(training, problem, start)
    tell_undecodable(training.learn.dls, f"{folder}/config.json lists them all")
    if problem is not None: raise _told(training, problem)
    _report(training)


def _prepare(config: Run, folder: Path) -> Training:
    from ..evaluate.cost import Cost
    learn = make_learner(config, folder)
    data = learn.dls.train.data
    reason = unjudged(data.y, learn.dls.valid.data.y)
    training = Training(config, folder, learn, reason, _record(config, learn), Cost())
    save_json(folder/'config.json', training.record)
    if 0 < training.record['n_labeled'] < len(data):  # --labels takes such a file
        names = [f'{name}\n' for name, known in zip(data.names, data.labeled) if known]
        (folder/'labeled.txt').write_text(''.join(names), encoding='utf-8')
    return training


def _attempt(training: Training) -> BaseException | None:
    "Train, and give what ended it early, if that is something to be told; what is a mistake of ours is raised"
    import torch
    try: _fit_and_judge(training)
    except InputError as e: return e
    except KeyboardInterrupt as e:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the moment that saving takes is not to be cut short
        return e
    except torch.OutOfMemoryError:
        return InputError(f"out of memory on {training.record['device']}: give a larger --accumulate, "
                          "or a smaller --batch-size or --size.")
    except BaseException as e:
        save_json(training.folder/'config.json', training.record | dict(state=f'failed: {type(e).__name__}: {e}'))
        raise
    return None


def _fit_and_judge(training: Training) -> None:
    from fastai.callback.progress import CSVLogger
    config, learn, folder = training.config, training.learn, training.folder
    learn.show_views(path=folder/'views.png')
    _announce(training)
    if config.controls and not training.unjudged:
        console.print("judging raw pixels and the untrained encoder, to compare with")
        training.results.update(control_results(learn))
    learn.fit_contrastive(config.epochs, lr=config.lr, cbs=[CSVLogger('history.csv'), training.cost])
    if not _finite(learn.model.encoder):
        raise InputError("the encoder's weights are no longer finite numbers: try a lower --lr.")
    training.encoder = learn.export(folder/'encoder.safetensors')
    # from its file, so that the table is true of what the user keeps, and `eval` says the same
    if not training.unjudged:
        training.results['trained encoder'] = judge(*features(learn.dls, file_embedder(training.encoder)))


def _announce(training: Training) -> None:
    dls, processes = training.learn.dls, training.record['processes']
    to_judge = f", {len(dls.valid.data):,} to judge by" if len(dls.valid) else ''
    together = f" in {processes} processes" if processes > 1 else ''
    console.print(f"{len(dls.train.data):,} pictures to train on{to_judge}; "
                  f"{training.config.arch} on {training.record['device']}{together}; results in {training.folder}")


def _keep(training: Training, problem: BaseException | None, start: float) -> None:
    "Write what the run has, however it ended: encoder, curves, config.json"
    from ..evaluate.plots import plot_history
    learn, folder = training.learn, training.folder
    begun, epochs_done = _progress(learn)
    if begun and training.encoder is None and _finite(learn.model.encoder):
        training.encoder = learn.export(folder/'encoder.safetensors')
    if epochs_done: plot_history(folder/'history.csv', folder/'curves.png')
    train, valid = learn.dls.train.data, learn.dls.valid.data
    training.record.update(
        state=_state(problem), epochs_done=epochs_done, results=training.results, cost=training.cost.totals(),
        unjudged=training.unjudged, undecodable={**train.failed, **valid.failed},
        seconds=round(time.time() - start, 1))
    save_json(folder/'config.json', training.record)


def _progress(learn) -> tuple[bool, int]:
    "Whether training has begun, and the epochs that are done"
    return learn.train_iter > 0, len(learn.recorder.values)


def _state(problem: BaseException | None) -> str:
    if problem is None: return 'finished'
    return 'interrupted' if isinstance(problem, KeyboardInterrupt) else f'stopped: {problem}'


def _told(training: Training, problem: BaseException) -> BaseException:
    "What ended a run, with a sentence that says what it leaves"
    begun, epochs_done = _progress(training.learn)
    if training.encoder: saved = f"the encoder as it was then is in {training.encoder}"
    elif begun: saved = "its weights are not finite numbers, so no encoder was saved"
    else: saved = "training had not begun, so there is no encoder"
    if isinstance(problem, KeyboardInterrupt):
        return KeyboardInterrupt(f"interrupted after {epochs_done} of {training.config.epochs} epochs: {saved}.")
    return InputError(f"{str(problem).rstrip('.')}; {saved}.")


def _report(training: Training) -> None:
    if training.results: console.print(results_table(training.results))
    if training.unjudged: console.print(f"not judged: {training.unjudged}")
    console.print(f"{training.record['seconds']:.0f} seconds; encoder.safetensors, config.json, history.csv, "
                  f"curves.png and views.png are in {training.folder}")


def _finite(model) -> bool: return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


# fields of a recipe that are no value, or stand elsewhere in the record
_NOT_RECORDED = ('about', 'settings', 'changes', 'loss', 'target', 'memory', 'multi_crop', 'speedups')


def _record(config: Run, learn) -> dict[str, Any]:
    "What config.json says before training: every setting as it was resolved, and where the run takes place"
    dls, recipe = learn.dls, learn.recipe
    train = dls.train.data
    return dict(
        asdict(config), size=dls.size, lr=config.lr or recipe.lr * config.batch_size / 256,
        small_input=learn.small_input, setting=recipe.setting, precision=learn.precision,
        loss=str(learn.loss_func.loss), **_axes(learn),
        recipe={key: value for key, value in asdict(recipe).items() if key not in _NOT_RECORDED},
        n_train=len(train), n_labeled=int(train.labeled.sum()), n_valid=len(dls.valid.data), classes=dls.classes,
        **_surroundings(dls.device), state='running')


def _axes(learn) -> dict[str, Any]:
    "The callbacks that are a value of an axis, as they are written"
    from ..multi_crop import MultiCrop
    from ..targets import Memory, Target
    def written(kind): return [str(cb) for cb in learn.cbs if isinstance(cb, kind)]
    axes = dict(target=Target, memory=Memory, multi_crop=MultiCrop)
    return dict({name: next(iter(written(kind)), None) for name, kind in axes.items()},
                speedups=written(tuple(speedups().values())))


def _surroundings(device) -> dict[str, Any]:
    "Where and by what a run was started"
    from ..distributed import world_size
    versions = {name: version(name) for name in ('torch', 'torchvision', 'fastai', 'timm', 'kornia')}
    return dict(processes=world_size(), versions=dict(fastcontrast=__version__, **versions),
                python=platform.python_version(), device=_device(device), commit=_commit(), command=sys.argv)


def _device(device) -> str:
    "The device in words"
    import torch
    device = torch.device(device)
    if device.type == 'cuda': return torch.cuda.get_device_name(device)
    return f'{device.type}, {os.cpu_count()} cores, {platform.machine()}'


def _commit() -> str | None:
    "The commit of the folder that the run was started in, if it is a checkout"
    try: got = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired): return None
    return got.stdout.strip() if got.returncode == 0 else None
