"""A long run of the command line, whatever it trains: carried out in its folder, kept and told of however it ends."""
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..core import InputError, NoSpace
from ..files import copy_whole, listed, megabytes, write_whole
from ..records import HISTORY
from ..signals import Interrupted, Signals
from .folder import ERROR, LABELED, RunFolder, resume_command
from .inputs import tell_undecodable
from .launch import ended_peer, rank
from .output import Ended, errors, unwritable
from .problems import NOBODY_READS, exit_code, is_peers, sentence

KEPT = 2  # checkpoints
FINISHED = 'finished_epochs' # field of config.json: of the product that is to be kept when a finished run goes on
_NEVER = 1e12 # seconds between them, where only the end of the run is kept


@dataclass
class Job:
    "A run under way, and what came of it so far; a subclass says what it does, and what it makes"
    config: Any                # the settings; `epochs`, `checkpoint` and `seed` are among them
    folder: RunFolder          # of the results
    signals: Signals           # that may end it
    start: float = field(default_factory=time.time)
    learn: Any = None          # a `ResumableLearner`
    unjudged: str = ''         # why what it makes can't be judged; '' if it can
    history: Any = None        # a `History`
    clock: Any = None          # a `Clock`
    keeper: Any = None         # a `Checkpoint`
    results: dict[str, dict[str, float]] = field(default_factory=dict) # how good it is, by what is judged
    product: Path | None = None # what it makes, exported
    stays: str = ''            # the name that the product of a finished run has, which is made longer; '' for others
    goes_on: bool = False      # whether from a checkpoint of an earlier process
    unsaved: str = ''          # why the product is not in the run's folder; '' if it is there
    notes: list[str] = field(default_factory=list) # what went wrong and did not end it

    verb: ClassVar[str]        # of the command line
    thing: ClassVar[str]       # what it makes, in a word
    suffix: ClassVar[str] = '' # of its file

    # --- what a kind of job says

    def kept_settings(self) -> dict[str, Any]:
        "What config.json keeps of the settings"
        raise NotImplementedError

    def work(self) -> None:
        "Do all of it"
        raise NotImplementedError

    def export(self, path: Path) -> Path:
        "Write what it makes. Raises `InputError`"
        raise NotImplementedError

    def trained(self) -> Any:
        "The module that it makes"
        raise NotImplementedError

    def doubts(self) -> list[str]:
        "What was warned of by the learner"
        return []

    def measures(self) -> dict[str, Any]:
        "Fields of config.json that are known once it has trained"
        return {}

    def report(self) -> None:
        "Say what came of it"
        raise NotImplementedError

    def but_with(self, problem: BaseException) -> str:
        "Options that go on where the same ones would come to the same problem; '' if there are none"
        return ''

    # --- how it stands

    @property
    def begun(self) -> bool:
        "Whether a step has been done"
        return self.learn is not None and self.learn.train_iter > 0

    @property
    def epochs_done(self) -> int: return len(self.learn.recorder.values) if self.begun else 0

    @property
    def epochs(self) -> int:
        "That it is to do"
        return self.config.epochs

    @property
    def products(self) -> int:
        "Of what it makes, how many its folder will hold"
        return 1 + (FINISHED in self.folder.record)

    @property
    def earlier(self) -> float:
        "Seconds that earlier processes have taken, as the record has it"
        return self.folder.before.get('seconds') or 0

    @property
    def seconds(self) -> float:
        "That the run has taken: with those of earlier processes where it goes on, or has not begun"
        return self.clock.seconds if self.begun else self.earlier + time.time() - self.start

    @property
    def device(self) -> str: return self.folder.record.get('device', 'this machine')

    # --- what its kinds share

    def hold(self, keep: Callable[[], None]) -> None:
        "Do what is not to be broken off; what does not succeed is noted"
        with self.signals.held():
            try: keep()
            except Exception as e: self.note(sentence(e, self.device, self.verb))

    def note(self, problem: str) -> None:
        "Warn of what does not end the run"
        self.notes.append(problem)
        with suppress(OSError): errors.print(f"warning: {problem}.")

    def prepare(self, learn: Any) -> None:
        "Take the learner, and what watches it"
        from ..history import Clock, History
        self.learn, self.history, self.keeper = learn, History(self.folder/HISTORY), make_keeper(self.config)
        self.goes_on = self.folder.resumed and has_checkpoint(self.folder)
        self.clock = Clock(self.start, self.earlier if self.goes_on else 0)

    def begin(self, record: dict[str, Any]) -> None:
        "Write what is known before it trains. Raises `NoSpace` where the disk has no room for what follows"
        _check_space(self)
        self.folder.worth_keeping = True
        self.folder.save(**record, unjudged=self.unjudged)
        self._keep_finished()

    def _keep_finished(self) -> None:
        """A run that had finished, and is made longer, keeps what it made by a name of its own: the new one is behind
        it for a while. Raises `InputError` where that can't be"""
        if FINISHED not in self.folder.record: return
        made = self.folder/f'{self.thing}{self.suffix}'
        if made.exists():
            kept = self.folder/f'{self.thing}-{self.folder.record[FINISHED]}{self.suffix}'
            try: copy_whole(made, kept)
            except OSError as e: raise unwritable(f"{kept}, where the finished {self.thing} is to stay,", e) from None
            self.stays = kept.name
        self.folder.save(FINISHED)

    def write_labeled(self, names: Iterable[str]) -> None:
        "Name the pictures whose labels training knows, in a file that --labels takes"
        write_whole(self.folder/LABELED, ''.join(f'{listed(name)}\n' for name in names))

    def announced(self) -> str:
        "A line that says with what it goes on, with its end; '' for a new run"
        if not self.folder.resumed: return ''
        begin = '' if self.goes_on else ', from its beginning: it has no checkpoint'
        stays = f"the {self.thing} that it had finished stays, as {self.stays}\n" if self.stays else ''
        return f"going on with {self.folder}{begin}\n{stays}"

    def finish(self) -> None:
        "Export what was trained. Raises `InputError` if it is of no use"
        if not _finite(self.trained()):
            raise InputError(f"the {self.thing}'s weights are no longer finite numbers: try a lower --lr.")
        self.hold(self.save)

    def save(self) -> None:
        "Write the product to the run's folder, or, where that can't be, to another place"
        reason = ''
        for path in self._places():
            try: self.product = self.export(path)
            except InputError as e: reason = reason or str(e).rstrip('.')
            else: break
        if reason: self.unsaved = reason if self.product else f"{reason}; nor could it be written anywhere else"

    def _places(self) -> Iterator[Path]:
        "Where the product can be written, the best first"
        yield self.folder/f'{self.thing}{self.suffix}'
        name = f'{self.folder.path.absolute().name}-{os.getpid()}-{self.thing}{self.suffix}'
        for place in (tempfile.gettempdir(), Path.home(), Path.cwd()): yield Path(place)/name

    def save_finite(self) -> None:
        "The same, unless it is of no use"
        if _finite(self.trained()): self.save()

    def draw_curves(self) -> None:
        "Draw the history"
        from ..evaluate.plots import plot_history
        plot_history(self.folder/HISTORY, self.folder/'curves.png')


def make_keeper(
    config: Any, # settings
) -> Any: # a `Checkpoint`
    "What keeps the state of a run, as often as the settings say"
    from ..checkpoint import Checkpoint
    return Checkpoint(_NEVER if config.checkpoint == 'none' else config.checkpoint, keep=KEPT)


def has_checkpoint(
    folder: RunFolder,
) -> bool:
    "Whether there is something to go on from"
    from ..checkpoint import newest
    return newest(folder.path) is not None


def carry_out(
    job: Job,
) -> None:
    "A whole run. Raises `Ended` if it ended early, after all that it has was kept"
    folder, signals, problem = job.folder, job.signals, None
    # it is written with the state that takes the place of 'finished': known however often the run is broken off
    if _made_longer(job): folder.record[FINISHED] = folder.before['epochs_done']
    try: folder.running(job.kept_settings(), job.verb)
    except OSError as e: raise unwritable(f"the run folder {folder}", e) from None
    try: job.work()
    except BaseException as e: problem = e
    try:
        with signals.held(): problem = _keep(job, problem and _cause(job, problem))
    except Interrupted as e:  # a second signal breaks it off; one that came meanwhile found it done
        if folder.record['state'] == 'running': problem = problem or e
    if job.learn is not None: tell_undecodable(job.learn.dls, f"{folder}/config.json lists them")
    if problem is not None: raise _told(job, problem)
    job.report()


class Failure(Exception):
    "What has ended a run, in words for its user"


def _cause(job: Job, problem: BaseException) -> BaseException:
    "What has ended a run, where that is not what was raised: another process, or a signal that others saw first"
    if isinstance(problem, InputError): return problem
    caught, lost = job.signals.caught, rank() is not None and is_peers(problem)
    ended = ended_peer(wait=lost and caught is None)
    if ended: cause: BaseException = Failure(ended)
    elif isinstance(problem, Exception) and caught is not None: cause = Interrupted(caught)
    elif lost: cause = Failure("another of the processes has ended")
    else: return problem
    cause.__cause__ = problem
    return cause


def _made_longer(job: Job) -> bool:
    "Whether the run had done all of its epochs, and has more to do"
    before, planned = job.folder.before, job.config.epochs
    done = before.get('epochs_done')
    return bool(done and planned and done == before.get('epochs') < planned)


def _check_space(job: Job) -> None:
    "Raise `NoSpace` unless the disk has room for what the run will write"
    from ..checkpoint import size_of
    from ..optim import stable_until
    path = job.folder.path
    product = sum(tensor.nbytes for tensor in job.trained().state_dict().values())
    checkpoint = 0 if job.config.checkpoint == 'none' else size_of(job.learn)
    there = sum(file.stat().st_size for file in path.rglob('*') if file.is_file())
    recipe = getattr(job.learn, 'recipe', None)
    for_longer = bool(recipe) and stable_until(getattr(job.config, 'schedule', None) or recipe.schedule) > 0
    count = KEPT + 1 + for_longer
    needed, free = job.products * product + count * checkpoint, shutil.disk_usage(path).free
    if needed <= there + free: return
    parts = f"the {job.thing} {megabytes(product)}{' and the finished one as much' if job.products > 1 else ''}"
    if checkpoint:
        also = ", and the one before the learning rate falls," if for_longer else ''
        parts += f", and {count} checkpoints of {megabytes(checkpoint)}, of which the last {KEPT}{also} are kept"
    advice = ", or --checkpoint none" if checkpoint else ''
    raise NoSpace(f"the disk of {path} has {megabytes(free)} free, and this run needs {megabytes(needed)} "
                  f"({parts}): make room, or give --out on another disk{advice}.")


def _keep(job: Job, problem: BaseException | None) -> BaseException | None:
    "Write what the run has, however it ended, and give what is to be told of that"
    folder = job.folder
    if job.learn is None or (folder.resumed and not job.begun):
        folder.worth_keeping = _is_failure(problem)
        if not folder.worth_keeping: return problem
    if job.begun and job.product is None: job.hold(job.save_finite)
    if job.epochs_done: job.hold(job.draw_curves)
    if problem is None and (job.unsaved or job.product is None): problem = Failure(job.unsaved or job.notes[-1])
    job.hold(lambda: _write_error(job, problem))
    job.hold(lambda: folder.save('pid', 'host', 'reason', **_outcome(job, problem)))
    if folder.vanished: job.note(f"{folder} was removed while the run was going on, and has been made again")
    return problem


def _is_failure(problem: BaseException | None) -> bool:
    return problem is not None and not isinstance(problem, (KeyboardInterrupt, InputError))


def _write_error(job: Job, problem: BaseException | None) -> None:
    file = job.folder/ERROR
    file.unlink(missing_ok=True)  # an earlier one's, also where this one can't be written
    if not _is_failure(problem) or isinstance(problem, NOBODY_READS): return
    write_whole(file, ''.join(traceback.format_exception(problem)))


def _outcome(job: Job, problem: BaseException | None) -> dict[str, Any]:
    "What config.json says at the end"
    learn, reason = job.learn, {} if problem is None else dict(reason=_reason(job, problem))
    fields = dict(reason, state=_state(problem), seconds=round(job.seconds, 1), notes=_notes(job),
                  unjudged=job.unjudged)
    if learn is not None:
        fields['undecodable'] = {name: why for dl in learn.dls.loaders for name, why in dl.data.failed.items()}
    if not job.begun:
        kept = job.folder.record
        return fields | dict(epochs_done=kept.get('epochs_done', 0), results=kept.get('results', job.results))
    return fields | dict(epochs_done=job.epochs_done, results=job.results) | job.measures()


def _notes(job: Job) -> list[str]:
    "What was warned of: it did not end the run"
    if job.learn is None: return job.notes
    problems = filter(None, [job.history.problem, *job.keeper.problems])
    return [*job.doubts(), *problems, *job.notes]


def _state(problem: BaseException | None) -> str:
    if problem is None: return 'finished'
    if isinstance(problem, KeyboardInterrupt): return 'interrupted'
    return 'stopped' if isinstance(problem, InputError) else 'failed'


def _reason(job: Job, problem: BaseException) -> str:
    return str(problem).rstrip('.') if isinstance(problem, (KeyboardInterrupt, InputError, Failure)) else (
        sentence(problem, job.device, job.verb))


def _told(job: Job, problem: BaseException) -> BaseException:
    "What ended a run, with a sentence that says what it leaves and how to go on"
    if isinstance(problem, NOBODY_READS): return problem
    folder = job.folder
    if isinstance(problem, KeyboardInterrupt):
        code = problem.code if isinstance(problem, Interrupted) else 130
        if job.learn is None and not folder.resumed: return Ended("interrupted", code)
        parts = [f"interrupted after {job.epochs_done} of {job.epochs} epochs: {_saved(job)}"]
    else:
        code = exit_code(problem)
        reason = _reason(job, problem)
        if isinstance(problem, InputError) and not folder.worth_keeping and not folder.resumed: return problem
        parts = [f"error: {reason}", _saved(job)]
    if _is_failure(problem) and (folder/ERROR).exists(): parts.append(f"the traceback is in {folder/ERROR}")
    if job.begun and code != 2 and not has_checkpoint(folder):
        parts.append("without a checkpoint it can only begin anew")
    if code == 2 or not has_checkpoint(folder): return Ended('; '.join(parts) + '.', code)
    command = resume_command(folder.path, job.verb) + job.but_with(problem)
    return Ended('; '.join([*parts, f"go on with: {command}"]), code)


def _saved(job: Job) -> str:
    if job.product: return f"the {job.thing} as it was then is in {job.product}"
    if job.unsaved: return f"the {job.thing} could not be written anywhere"
    if job.begun: return f"the weights are not finite numbers, so no {job.thing} was saved"
    if job.folder.resumed: return "training had not gone on, and what was there is as it was"
    return f"training had not begun, so there is no {job.thing}"


def _finite(model) -> bool: return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
