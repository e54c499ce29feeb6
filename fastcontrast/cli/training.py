"""A pretraining run of the command line: prepared, trained, judged, kept in its folder and reported."""
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core import InputError
from ..files import listed, megabytes, whole_file, write_whole
from ..signals import Interrupted, Signals
from .folder import ERROR, HISTORY, RunFolder, resume_command
from .inputs import read_pictures, tell_notes, tell_undecodable
from .judging import control_results, features, file_embedder, judge, results_table, unjudged
from .launch import ended_peer, meet, rank
from .output import Ended, console, errors
from .problems import NOBODY_READS, is_peers, sentence
from .record import record_of
from .registries import methods
from .resume import kept_settings
from .settings import Run, check_names, number_or_name, parse_speedups, read_range

KEPT = 2  # checkpoints
_NEVER = 1e12 # seconds between them, where only the end of the run is kept


@dataclass
class Training:
    "A run under way, and what came of it so far"
    config: Run
    folder: RunFolder          # of the results
    signals: Signals           # that may end it
    start: float = field(default_factory=time.time)
    learn: Any = None          # a `ContrastiveLearner`
    unjudged: str = ''         # why the encoder can't be judged; '' if it can
    cost: Any = None           # a `Cost`
    history: Any = None        # a `History`
    keeper: Any = None         # a `Checkpoint`
    results: dict[str, dict[str, float]] = field(default_factory=dict) # what `judge` said, by whose features
    encoder: Path | None = None # the exported file
    goes_on: bool = False      # whether from a checkpoint of an earlier process
    unsaved: str = ''          # why the encoder is not in the run's folder; '' if it is there
    kept: Any = None           # the `KeptStart` of a run whose checkpoint takes the place of its --weights
    notes: list[str] = field(default_factory=list) # what went wrong and did not end it

    @property
    def begun(self) -> bool:
        "Whether a step has been done"
        return self.learn is not None and self.learn.train_iter > 0

    @property
    def epochs_done(self) -> int: return len(self.learn.recorder.values) if self.begun else 0

    def hold(self, keep: Callable[[], None]) -> None:
        "Do what is not to be broken off; what does not succeed is noted"
        with self.signals.held():
            try: keep()
            except Exception as e: self.note(sentence(e, self.device))

    def note(self, problem: str) -> None:
        "Warn of what does not end the run"
        self.notes.append(problem)
        with suppress(OSError): errors.print(f"warning: {problem}.")

    @property
    def device(self) -> str: return self.folder.record.get('device', 'this machine')


def make_learner(
    config: Run,
    folder: Path | None, # where fastai keeps its files
    kept: Any = None,    # a `KeptStart` in place of --weights
) -> Any:                # a `ContrastiveLearner`
    "The learner of a training. Raises `InputError` for settings that can't be"
    import torch
    from ..learner import contrastive_learner
    check_names(config, read=kept is None)
    meet()
    torch.manual_seed(config.seed)
    dls = read_pictures(config.data, config.batch_size, size=config.size, labels=number_or_name(config.labels),
                        valid=config.valid, seed=config.seed, workers=config.workers,
                        cache=config.cache_folder or config.cache, unlabelled=config.unlabelled, column=config.column,
                        label_column=config.label_column, store_size=config.store_size,
                        channels=config.channels, value_range=read_range(config.value_range))
    return contrastive_learner(
        dls, config.arch, methods()[config.method](config.setting), loss=config.loss,
        cbs=parse_speedups(config.speedups), small_input=config.small_input, weights=kept or config.weights,
        head_epochs=config.head_epochs, precision=config.precision, compile=config.compile,
        accumulate=config.accumulate, stop_on_collapse=config.stop_on_collapse, path=folder)


def make_keeper(
    config: Run,
) -> Any: # a `Checkpoint`
    "What keeps the state of a run, as often as the settings say"
    from ..checkpoint import Checkpoint
    return Checkpoint(_NEVER if config.checkpoint == 'none' else config.checkpoint, keep=KEPT)


def fit(
    learn, # from `make_learner`
    config: Run,
    folder: Path | None, # for checkpoints; None: without. The first process says which one it is
    keeper,    # from `make_keeper`
    cbs: list, # other callbacks
) -> None:
    "Train, from the newest checkpoint on if there is one: alike in all processes"
    from ..distributed import gather_objects
    folder = gather_objects(folder)[0]
    kept = [] if folder is None else [keeper]
    learn.fit_contrastive(config.epochs, lr=config.lr, cbs=[*kept, *cbs], resume=folder, schedule=config.schedule)


def accompany(
    config: Run,
    kept: Any = None, # a `KeptStart` in place of --weights
) -> None:
    "What all processes but the first do: train"
    from ..evaluate.cost import Cost
    learn = make_learner(config, None, kept)
    try: fit(learn, config, None, make_keeper(config), [Cost()])
    except Interrupted:
        if not learn.train_iter: raise
        # the first process keeps what there is, and says how it ended


def train(
    config: Run,
    folder: RunFolder,
    signals: Signals,
    kept: Any = None, # a `KeptStart` in place of --weights
) -> None:
    "A whole run. Raises `Ended` if it ended early, after all that it has was kept"
    try: folder.running(kept_settings(config, folder.before.get('settings')))
    except OSError as e: raise InputError(f"the run folder {folder} can't be written: {e.strerror or e}.") from None
    training, problem = Training(config, folder, signals, kept=kept), None
    try: _run(training)
    except BaseException as e: problem = e
    try:
        with signals.held(): problem = _keep(training, problem and _cause(training, problem))
    except Interrupted as e:  # a second signal breaks it off; one that came meanwhile found it done
        if folder.record['state'] == 'running': problem = problem or e
    if training.learn is not None: tell_undecodable(training.learn.dls, f"{folder}/config.json lists them all")
    if problem is not None: raise _told(training, problem)
    _report(training)


class Failure(Exception):
    "What has ended a run, in words for its user"


def _cause(training: Training, problem: BaseException) -> BaseException:
    "What has ended a run, where that is not what was raised: another process, or a signal that others saw first"
    if isinstance(problem, InputError): return problem
    caught, lost = training.signals.caught, rank() is not None and is_peers(problem)
    ended = ended_peer(wait=lost and caught is None)
    if ended: cause: BaseException = Failure(ended)
    elif isinstance(problem, Exception) and caught is not None: cause = Interrupted(caught)
    elif lost: cause = Failure("another of the processes has ended")
    else: return problem
    cause.__cause__ = problem
    return cause


def _run(training: Training) -> None:
    _prepare(training)
    _draw_views(training)
    _announce(training)
    _judge_controls(training)
    kept = training.config.checkpoint != 'none' or training.goes_on
    fit(training.learn, training.config, training.folder.path if kept else None, training.keeper,
        [training.history, training.cost])
    if not _finite(training.learn.model.encoder):
        raise InputError("the encoder's weights are no longer finite numbers: try a lower --lr.")
    training.hold(lambda: _export(training))
    # from its file, so that the table is true of what the user keeps, and `eval` says the same
    if training.encoder and not training.unjudged:
        training.results['trained encoder'] = judge(*features(training.learn.dls, file_embedder(training.encoder)))


def _prepare(training: Training) -> None:
    "Make the learner, and write what is known before it trains"
    from ..evaluate.cost import Cost
    from ..history import History
    config, folder = training.config, training.folder
    learn = training.learn = make_learner(config, folder.path, training.kept)
    training.cost, training.history, training.keeper = Cost(), History(folder/HISTORY), make_keeper(config)
    training.goes_on = folder.resumed and _checkpoint_in(folder)
    training.unjudged = unjudged(learn.dls.bank.data, learn.dls.valid.data)
    record = record_of(config, learn)
    _check_space(training)
    folder.worth_keeping = True
    folder.save(**record, unjudged=training.unjudged)
    data = learn.dls.train.data
    if 0 < record['n_labeled'] < len(data):  # --labels takes such a file
        names = [f'{listed(name)}\n' for name, known in zip(data.names, data.labeled) if known]
        write_whole(folder/'labeled.txt', ''.join(names))


def _checkpoint_in(folder: RunFolder) -> bool:
    "Whether there is something to go on from"
    from ..checkpoint import newest
    return newest(folder.path) is not None


def _check_space(training: Training) -> None:
    "Raise `InputError` unless the disk has room for what the run will write"
    from ..checkpoint import size_of
    learn, path = training.learn, training.folder.path
    encoder = sum(tensor.nbytes for tensor in learn.model.encoder.state_dict().values())
    checkpoint = 0 if training.config.checkpoint == 'none' else size_of(learn)
    there = sum(file.stat().st_size for file in path.rglob('*') if file.is_file())
    needed, free = encoder + (KEPT + 1) * checkpoint, shutil.disk_usage(path).free
    if needed <= there + free: return
    parts = f"the encoder {megabytes(encoder)}"
    if checkpoint:
        parts += f", and {KEPT + 1} checkpoints of {megabytes(checkpoint)}, of which the last {KEPT} are kept"
    advice = ", or --checkpoint none" if checkpoint else ''
    raise InputError(f"the disk of {path} has {megabytes(free)} free, and this run needs {megabytes(needed)} "
                     f"({parts}): make room, or give --out on another disk{advice}.")


def _draw_views(training: Training) -> None:
    if training.goes_on and (training.folder/'views.png').exists(): return
    with whole_file(training.folder/'views.png') as file: training.learn.show_views(path=file)


def _announce(training: Training) -> None:
    dls, processes = training.learn.dls, training.folder.record['processes']
    to_judge = f", {len(dls.valid.data):,} to judge by" if len(dls.valid) else ''
    if dls.within: to_judge += f" within {dls.within}"
    together = f" in {processes} processes" if processes > 1 else ''
    if training.folder.resumed:
        since = '' if training.goes_on else ", from its beginning: it has no checkpoint"
        console.print(f"going on with {training.folder}{since}")
    tell_notes(dls)
    console.print(f"{len(dls.train.data):,} pictures to train on{to_judge}; "
                  f"{training.config.arch} on {training.device}{together}; results in {training.folder}")


def _judge_controls(training: Training) -> None:
    "Raw pixels and the untrained encoder; of a run that goes on they are known already"
    config, folder = training.config, training.folder
    known = folder.before.get('results') if training.goes_on else None
    training.results.update({name: result for name, result in (known or {}).items() if name != 'trained encoder'})
    if training.results or not config.controls or training.unjudged or training.kept: return
    encoder = 'the untrained encoder' if config.weights is None else 'the weights as given'
    console.print(f"judging raw pixels and {encoder}, to compare with")
    training.results.update(control_results(training.learn))
    folder.save(results=training.results)


def _places(folder: RunFolder) -> Iterator[Path]:
    "Where an encoder can be written, the best first"
    yield folder/'encoder.safetensors'
    name = f'{folder.path.absolute().name}-{os.getpid()}-encoder.safetensors'
    for place in (tempfile.gettempdir(), Path.home(), Path.cwd()): yield Path(place)/name


def _export(training: Training) -> None:
    "Write the encoder to the run's folder, or, where that can't be, to another place"
    reason = ''
    for path in _places(training.folder):
        try: training.encoder = training.learn.export(path)
        except InputError as e: reason = reason or str(e).rstrip('.')
        else: break
    if reason: training.unsaved = reason if training.encoder else f"{reason}; nor could it be written anywhere else"


def _keep(training: Training, problem: BaseException | None) -> BaseException | None:
    "Write what the run has, however it ended, and give what is to be told of that"
    folder = training.folder
    if training.learn is None or (folder.resumed and not training.begun):
        folder.worth_keeping = _is_failure(problem)
        if not folder.worth_keeping: return problem
    if training.begun and training.encoder is None: training.hold(lambda: _export_finite(training))
    if training.epochs_done: training.hold(lambda: _draw_curves(training))
    if problem is None and training.unsaved: problem = Failure(training.unsaved)
    training.hold(lambda: _write_error(training, problem))
    training.hold(lambda: folder.save('pid', 'host', 'reason', **_outcome(training, problem)))
    if folder.vanished: training.note(f"{folder} was removed while the run was going on, and has been made again")
    return problem


def _is_failure(problem: BaseException | None) -> bool:
    return problem is not None and not isinstance(problem, (KeyboardInterrupt, InputError))


def _export_finite(training: Training) -> None:
    if _finite(training.learn.model.encoder): _export(training)


def _draw_curves(training: Training) -> None:
    from ..evaluate.plots import plot_history
    with whole_file(training.folder/'curves.png') as file: plot_history(training.folder/HISTORY, file)


def _write_error(training: Training, problem: BaseException | None) -> None:
    file = training.folder/ERROR
    file.unlink(missing_ok=True)  # an earlier one's, also where this one can't be written
    if not _is_failure(problem) or isinstance(problem, NOBODY_READS): return
    write_whole(file, ''.join(traceback.format_exception(problem)))


def _outcome(training: Training, problem: BaseException | None) -> dict[str, Any]:
    "What config.json says at the end"
    learn, before = training.learn, training.folder.before.get('seconds', 0) if training.goes_on else 0
    reason = {} if problem is None else dict(reason=_reason(training, problem))
    fields = dict(reason, state=_state(problem), seconds=round(before + time.time() - training.start, 1),
                  notes=_notes(training), unjudged=training.unjudged)
    if learn is not None:
        fields['undecodable'] = {name: why for dl in learn.dls.loaders for name, why in dl.data.failed.items()}
    if not training.begun:
        kept = training.folder.record
        return fields | dict(epochs_done=kept.get('epochs_done', 0), results=kept.get('results', training.results))
    return fields | dict(epochs_done=training.epochs_done, results=training.results, cost=training.cost.totals())


def _notes(training: Training) -> list[str]:
    "What was warned of: it did not end the run"
    if training.learn is None: return training.notes
    problems = filter(None, [training.history.problem, *training.keeper.problems])
    return [*training.learn.doubts, *training.learn.collapse.warnings, *problems, *training.notes]


def _state(problem: BaseException | None) -> str:
    if problem is None: return 'finished'
    if isinstance(problem, KeyboardInterrupt): return 'interrupted'
    return 'stopped' if isinstance(problem, InputError) else 'failed'


def _reason(training: Training, problem: BaseException) -> str:
    return str(problem).rstrip('.') if isinstance(problem, (KeyboardInterrupt, InputError, Failure)) else (
        sentence(problem, training.device))


def _told(training: Training, problem: BaseException) -> BaseException:
    "What ended a run, with a sentence that says what it leaves and how to go on"
    if isinstance(problem, NOBODY_READS): return problem
    folder, config = training.folder, training.config
    if isinstance(problem, KeyboardInterrupt):
        code = problem.code if isinstance(problem, Interrupted) else 130
        if training.learn is None and not folder.resumed: return Ended("interrupted", code)
        parts = [f"interrupted after {training.epochs_done} of {config.epochs} epochs: {_saved(training)}"]
    else:
        code = 2 if isinstance(problem, InputError) else 1
        reason = _reason(training, problem)
        if code == 2 and not folder.worth_keeping and not folder.resumed: return problem
        parts = [f"error: {reason}", _saved(training)]
    if code == 1 and (folder/ERROR).exists(): parts.append(f"the traceback is in {folder/ERROR}")
    if training.begun and code != 2 and not _checkpoint_in(folder):
        parts.append("without a checkpoint it can only begin anew")
    if code == 2 or not _checkpoint_in(folder): return Ended('; '.join(parts) + '.', code)
    return Ended('; '.join([*parts, f"go on with: {resume_command(folder.path)}"]), code)


def _saved(training: Training) -> str:
    if training.encoder: return f"the encoder as it was then is in {training.encoder}"
    if training.unsaved: return "the encoder could not be written anywhere"
    if training.begun: return "the weights are not finite numbers, so no encoder was saved"
    if training.folder.resumed: return "training had not gone on, and what was there is as it was"
    return "training had not begun, so there is no encoder"


def _report(training: Training) -> None:
    if training.results: console.print(results_table(training.results, training.learn.dls.within))
    if training.unjudged: console.print(f"not judged: {training.unjudged}")
    console.print(f"{training.folder.record['seconds']:.0f} seconds; encoder.safetensors, config.json, history.csv, "
                  f"curves.png and views.png are in {training.folder}")


def _finite(model) -> bool: return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
