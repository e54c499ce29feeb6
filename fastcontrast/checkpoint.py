"""A run's whole state, written so that a kill at any instant leaves one that is whole, and taken up where it was.

Docs: https://fastcontrast.github.io/fastcontrast/checkpoint.html.md"""
import hashlib
import io
import json
import pickle
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import TrackerCallback
from fastai.imports import noop
from fastai.optimizer import Optimizer
from fastai.torch_core import to_device
from fastcore.foundation import L
from torch import Tensor

from . import __version__
from .core import InputError, is_whole, whole
from .distributed import gather_objects, rank, world_size
from .files import sweep, user_path, write_whole
from .generators import generator_states, set_generators
from .loaders import ImageLoader
from .signals import Interrupted, Signals, watched
from .stems import marked
from .step import Phase, StepCallback
from .together import difference

FORMAT, VERSION = 'fastcontrast-checkpoint', 1
FOLDER = 'checkpoints'  # of a run's folder
USUAL = ('epoch', '10 minutes')
_UNITS = {'step': None, 'second': 1., 's': 1., 'minute': 60., 'min': 60., 'hour': 3600., 'h': 3600.}

# --- moments

@dataclass(frozen=True)
class Moments:
    "When checkpoints are due"
    epoch: bool = False          # after the last step of every epoch
    steps: int | None = None     # after so many steps
    seconds: float | None = None # so long after the one before


def _moment(every: str | int | float) -> dict[str, Any]:
    if every == 'epoch': return dict(epoch=True)
    if is_whole(every) and every > 0: return dict(steps=int(every))
    if isinstance(every, float) and 0 < every < float('inf'): return dict(seconds=every)
    words = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*([a-z]+?)?s?\s*', every) if isinstance(every, str) else None
    if words and not words[2]: return _moment(float(words[1]) if '.' in words[1] else int(words[1]))
    if words and words[2] in _UNITS and float(words[1]):
        unit, count = _UNITS[words[2]], float(words[1])
        if unit: return dict(seconds=count * unit)
        if count == int(count): return dict(steps=int(count))
    raise InputError(f"every={every!r} of Checkpoint is no moment: give 'epoch', '10 minutes', '500 steps', a whole "
                     "number of steps, seconds as a float, or several of these.")


def moments(
    every: str | int | float | Iterable, # see `Checkpoint`
) -> Moments:
    "When checkpoints are due. Raises `InputError` for what says no moment"
    if isinstance(every, str): every = every.split(',')
    if not isinstance(every, Iterable): every = [every]
    found: dict[str, Any] = {}
    for moment in every: found |= _moment(moment.strip() if isinstance(moment, str) else moment)
    if not found: raise InputError("every of Checkpoint names no moment: give 'epoch', say.")
    return Moments(**found)

# --- the state

_NUMBERS = '?bBhHiIlLqQefdFD'  # NumPy's types that PyTorch has too

def plain(
    value: Any,
    owner: str, # whose value it is, for the message
) -> Any:
    "A copy in tensors on the CPU and plain values, which reading needs no pickle for. Raises `InputError` for the rest"
    if isinstance(value, Tensor) and value.layout is torch.strided:
        return value.detach().as_subclass(Tensor).to('cpu', copy=True)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.char in _NUMBERS:
        return value.item() if isinstance(value, np.generic) else torch.from_numpy(value.copy())
    if value is None or type(value) in (bool, int, float, str): return value
    for kind in (int, float, str):  # classes of their own are none that a reader would know
        if isinstance(value, kind): return kind(value)
    if isinstance(value, Path): return str(value)
    if isinstance(value, Mapping): return {plain(k, owner): plain(v, owner) for k, v in value.items()}
    if isinstance(value, tuple): return tuple(plain(v, owner) for v in value)
    if isinstance(value, list | set | frozenset | L): return [plain(v, owner) for v in value]
    raise InputError(f"{owner} keeps a {type(value).__name__} in its state_dict(), which a checkpoint can't hold: give "
                     "tensors, numbers, text, and lists and dicts of these.")


def _states_of(cb: Callback) -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
    "What gives a callback's state, and takes it; None if it has none"
    if isinstance(cb, TrackerCallback): return _attributes(cb, 'best', 'new_best', 'wait')
    if isinstance(cb, ParamScheduler): return _attributes(cb, 'hps')
    own = [getattr(type(cb), name, None) for name in ('state_dict', 'load_state_dict')]
    return (cb.state_dict, cb.load_state_dict) if all(map(callable, own)) else None


def _attributes(cb: Callback, *names: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    "The state of one of fastai's callbacks, which has no `state_dict`"
    return lambda: {name: vars(cb)[name] for name in names if name in vars(cb)}, vars(cb).update


def stateful(learn) -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    "The callbacks that have a state, by name and number"
    found, counts = {}, {}
    for cb in learn.cbs.sorted('order'):
        states, name = _states_of(cb), type(cb).__name__
        if states is None: continue
        counts[name] = counts.get(name, 0) + 1
        found[f'{name} {counts[name]}'] = states
    return found


def stacked(
    losses: Sequence[Tensor], # of steps, as a recorder keeps them
) -> Tensor:                  # [steps], where they are kept
    "The losses of some steps as one tensor"
    return torch.stack([loss.detach().reshape(()) for loss in losses]) if losses else torch.empty(0)


def _recorded(learn) -> dict[str, Any] | None:
    "What fastai's recorder has noted"
    recorder = getattr(learn, 'recorder', None)
    if recorder is None: return None
    smooth = recorder.smooth_loss
    return dict(losses=stacked(recorder.losses), lrs=torch.tensor(recorder.lrs, dtype=torch.float64),
                iters=recorder.iters, values=recorder.values, smooth=(smooth.count, smooth.val))


def _record_again(learn, recorded: dict[str, Any] | None) -> None:
    recorder = getattr(learn, 'recorder', None)
    if recorder is None or recorded is None: return
    device = next(learn.model.parameters()).device
    recorder.losses, recorder.lrs = list(recorded['losses'].to(device).unbind()), recorded['lrs'].tolist()
    recorder.iters, recorder.values = list(recorded['iters']), [L(row) for row in recorded['values']]
    count, value = recorded['smooth']
    recorder.smooth_loss.count = count
    recorder.smooth_loss.val = value.to(device) if isinstance(value, Tensor) else value


def surroundings(learn) -> dict[str, Any]:
    "What the last digits of a step depend on beside the settings"
    device = next(learn.model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type
    parts = [cb.chunks for cb in learn.cbs if isinstance(cb, StepCallback) and cb.phase is Phase.CHUNKS]
    return dict(processes=world_size(), device=name, threads=torch.get_num_threads(), precision=learn.precision,
                accumulate=max([1, *parts]), torch=torch.__version__, fastcontrast=__version__)


# what only watches and reports, or is free to change
_FREE = (Phase.PROCESSES, Phase.CHUNKS, Phase.COUNT, Phase.GUARDS, Phase.TABLE, Phase.LAST, Phase.KEEP)

def _identity(learn) -> dict[str, Any]:
    "The settings that a run can't change on its way"
    leave = ('epochs', 'model', 'draws', 'metrics', 'callbacks')
    named = {name: value for name, value in learn.settings().items() if name not in leave}
    own = [cb for cb in learn.cbs.sorted('order') if isinstance(cb, StepCallback) and cb.phase not in _FREE]
    return plain(dict(named, callbacks=[repr(cb) for cb in own]), 'the learner')


# settings that checkpoints of earlier versions lack
_LATER = {'opt_args of the recipe', 'frozen of the recipe', 'opt_args of the protocol', 'first weights'}

def _as_before(
    settings: dict[str, Any], # of `_identity`
) -> dict[str, Any]:
    "Settings as earlier versions told them, when two callbacks left something of theirs out"
    def told(cb): return re.sub(r'^(ClipEach)\(.*\)$|^(PatchVariants\(.*), seed=\d+(\))$', r'\1\2\3', cb)
    known = {name: value for name, value in settings.items() if name not in _LATER}
    return dict(known, callbacks=[told(cb) for cb in settings['callbacks']])


def _without_parts(
    settings: dict[str, Any], # of `_identity`, also of earlier versions, which told of `Accumulate`
) -> dict[str, Any]:
    "Settings but for in how many parts batches go through the model"
    return dict(settings, callbacks=[cb for cb in settings['callbacks'] if not cb.startswith('Accumulate(')])


def capture(
    learn, # a `ResumableLearner` that is training, after a step
    identity: dict[str, Any], # what `_identity` said when the fit began
) -> dict[str, Any]:
    """Everything that the next step depends on, copied: tensors and plain values

    Processes but the first leave out what is the same in all: parameters and the optimizer's state."""
    model, first = learn.model.state_dict(), rank() == 0
    if not first:
        parameters = {name for name, _ in learn.model.named_parameters()}
        model = {name: t for name, t in model.items() if name not in parameters}
    place = dict(epoch=learn.epoch, batches=learn.iter + 1, n_iter=learn.n_iter, epochs=learn.n_epoch,
                 step=learn.train_iter, share=learn.pct_train, fit_seed=learn.fit_seed, pass_=learn.dls.train.epoch - 1)
    scaler = learn.scaler.state_dict() if any(isinstance(cb, MixedPrecision) for cb in learn.cbs) else {}
    states = {name: plain(give(), name) for name, (give, _) in stateful(learn).items()}
    device = next(learn.model.parameters()).device
    rest = dict(place=place, scaler=scaler, recorder=_recorded(learn), generators=generator_states(device),
                optimizer=learn.opt.state_dict() if first else None)
    return dict(plain(rest, 'the learner'), model=plain(model, 'the model'), callbacks=states, settings=identity,
                surroundings=plain(surroundings(learn), 'the learner'), format=FORMAT, version=VERSION)


def size_of(
    learn, # a `ResumableLearner`
) -> int:  # bytes
    "What a checkpoint of a learner takes on the disk, about"
    models = 1 + sum(getattr(cb, 'keeps_model', False) for cb in learn.cbs)
    if learn.opt is None: learn.create_opt()
    moments_kept = 2 if 'sqr_mom' in learn.opt.hypers[0] else 1  # Adam's and the like
    return models * sum(t.nbytes for t in learn.model.state_dict().values()) + (
        moments_kept * sum(p.nbytes for p in learn.model.parameters() if p.requires_grad))

# --- the files

class _Damaged(Exception):
    "A checkpoint that can't be used, and why"


def _files(folder: Path) -> list[Path]:
    "Of the checkpoints in a folder, and nobody else's; the newest first"
    ours = re.compile(r'step-\d{9,}\.(json|\d+\.pt)')
    return sorted((path for path in folder.glob('step-*')
                  if ours.fullmatch(path.name) and path.is_file()), reverse=True)


def _manifests(folder: Path) -> list[Path]: return [path for path in _files(folder) if path.suffix == '.json']


def _is_pinned(path: Path) -> bool:
    "Whether a manifest says that its checkpoint is kept for good; one that can't be read says nothing"
    try: return bool(_manifest(path).get('pinned'))
    except _Damaged: return False


def _manifest(path: Path) -> dict[str, Any]:
    "What a manifest says. Raises `_Damaged`"
    try: content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError): raise _Damaged(f"{path.name} can't be read") from None
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise _Damaged(f"{path.name} is of something else")
    if content.get('version') != VERSION:
        raise _Damaged(f"{path.name} is of version {content.get('version')}, and only {VERSION} is known here: update "
                       "fastcontrast")
    return content


def newest(
    folder: str | Path, # of a run
) -> dict[str, Any] | None:
    "What the newest manifest of a run's checkpoints says (`step`, `epoch`, `epochs`, `bytes`…); None if there is none"
    for path in _manifests(Path(folder)/FOLDER):
        with suppress(_Damaged): return _manifest(path)
    return None


def _read_part(path: Path, digest: str) -> dict[str, Any]:
    "One process's part of a checkpoint. Raises `_Damaged`"
    try: content = path.read_bytes()
    except OSError as e: raise _Damaged(f"{path.name} can't be read ({e.strerror or e})") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise _Damaged(f"{path.name} was cut short or altered: its digest is another")
    try: state = torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        raise _Damaged(f"{path.name} holds more than tensors and plain values, and was not unpickled") from None
    except Exception as e: raise _Damaged(f"{path.name} can't be read ({type(e).__name__})") from None
    if not isinstance(state, dict) or state.get('format') != FORMAT or state.get('version') != VERSION:
        raise _Damaged(f"{path.name} is no checkpoint of this version")
    return state


@dataclass
class _Found:
    "A whole checkpoint"
    parts: dict[str, str] # digests of the processes' files, by name
    state: dict[str, Any] # the first process's
    notes: list[str]      # what is to be said of those that were passed over


def _find(folder: Path, suits: Callable[[dict], bool]) -> _Found | None:
    "The newest checkpoint that is whole; None if there is none that suits. Raises `InputError` if all are damaged"
    damages, others = [], False
    for path in _manifests(folder):
        try:
            manifest = _manifest(path)
            if not suits(manifest):
                others = True
                continue
            parts = dict(manifest['files'])
            first, *_ = [_read_part(folder/name, digest) for name, digest in parts.items()]
        except _Damaged as e: damages.append(f"{e}.")
        except (KeyError, TypeError, ValueError): damages.append(f"{path.name} is not whole.")
        else: return _Found(parts, first, damages and [*damages, f"Taken instead: {path.stem}."])
    if others or not damages: return None
    raise InputError(f"no checkpoint in {folder} can be used: {' '.join(damages)} Begin anew in another folder.")


def load(
    folder: Path, # of checkpoints
    suits: Callable[[dict], bool] = lambda manifest: True, # whether a manifest is of a checkpoint that will do
) -> tuple[dict[str, Any], list[str]] | None: # this process's state, and what is to be said; None if there is none
    "The newest checkpoint that is whole; all processes take the same. Raises `InputError` if there are only others"
    found, error = None, ''
    if not rank():
        try: found = _find(folder, suits)
        except InputError as e: error = e.message
    chosen, error = gather_objects((found and (found.parts, found.notes), error))[0]
    if error: raise InputError(error)
    if not chosen: return None
    parts, notes = chosen
    if found: return found.state, notes
    try: state, *others = [_read_part(folder/name, digest) for name, digest in parts.items()]
    except _Damaged as e:  # the first process has just read it
        raise InputError(f"process {rank()} can't read the checkpoint in {folder} that the first has chosen ({e}): "
                         "give all processes the same folder.") from None
    if len(parts) != world_size(): return state, notes
    own = others[rank() - 1]
    return dict(own, model=state['model'] | own['model'], optimizer=state['optimizer']), notes

# --- the callback

class _Consensus:
    "What the processes wish, known to all after the same step, and without waiting for a device"
    def __init__(self):
        self.group = dist.new_group(backend='gloo', timeout=timedelta(hours=12))
        self.flag, self.journey = torch.zeros(1, dtype=torch.int64), None

    def __call__(self,
        wish: int,  # of this process; 0: none
        wait: bool, # whether the wishes of this step are to be known; else those of the step before
    ) -> int:       # the largest one
        if self.journey: self.journey.wait()
        known, self.flag = int(self.flag), torch.tensor([wish])
        self.journey = dist.all_reduce(self.flag, dist.ReduceOp.MAX, group=self.group, async_op=True)
        if not wait: return known
        self.journey.wait()
        known, self.journey = max(known, int(self.flag)), None
        self.flag = torch.zeros(1, dtype=torch.int64)
        return known

    def end(self): dist.destroy_process_group(self.group)


_SAVE = 1  # a wish; larger ones are numbers of signals, and 1


class Checkpoint(StepCallback):
    """Keeps a run's whole state on the disk, so that it can be taken up at the step where it was

    It is copied in the step and written beside training: whole, with a digest, and the one before stays until then.
    Processes write a part each, and the first has them count once all are there. At SIGINT, SIGTERM or SIGHUP the step
    is finished, a checkpoint written, and `fit` raises `Interrupted`. A disk that is full costs the checkpoint and not
    the run: see `problems`."""
    phase, exclusive = Phase.KEEP, 'checkpoints'
    patience = 600.  # seconds that the first process waits for the others' parts…
    grace = 5.       # …and once the run is to end: those of a process that was killed never come
    look = 5.        # seconds in which the others see a file that the first has written, wherever the disk is

    def __init__(self,
        every: str | int | float | Iterable = USUAL, # 'epoch', '10 minutes', '500 steps', a whole number of steps,
                                                     # seconds as a float; or several of these
        keep: int = 2,                       # checkpoints
        folder: str | Path | None = None,    # of the run; None: the learner's path
    ):
        self.moments = moments(every)
        whole(self, keep=keep)
        self.every, self.keep = every, keep
        self.folder = None if folder is None else user_path(folder, 'folder')
        self.problems: list[str] = []    # what could not be written, and why
        self.saved: int | None = None    # step of the newest that is whole
        self.pin_at = 0                  # step of one that is kept for good; 0: of none
        self.taken: dict[str, Any] | None = None # the state that the next fit begins with
        self.signals, self.consensus = Signals(), None
        self.holding, self.writer, self.writing = False, None, None
        self.borrowed = ExitStack()      # what a fit gives back

    def __repr__(self): return f"Checkpoint({self.every!r}, keep={self.keep})"

    @property
    def directory(self) -> Path:
        "The folder of the checkpoints"
        return Path(self.learn.path if self.folder is None else self.folder)/FOLDER

    def take_up(self,
        epochs: int, # of the fit that follows
        stable: Callable[[int], int] = lambda epochs: 0, # steps of a fit of so many epochs up to which the learning
                                                         # rate does not depend on how many they are
    ) -> list[str]:  # what to say of it; [] if it begins anew
        """Have the learner go on from the newest checkpoint that is whole, and the next fit begin there

        Raises `InputError` if it is of another run, or none of several is whole."""
        def is_stable(place): return place['step'] <= min(stable(place['epochs']), stable(epochs))
        def suits(manifest): return epochs == manifest['epochs'] or is_stable(manifest)
        found = load(self.directory, suits) or load(self.directory)
        if found is None:
            if not rank(): self._forget_later(-1)  # parts that no manifest names would pass for new ones
            return []
        state, notes = found
        _check_same(self.learn, state, epochs, self.directory)
        self.learn.first_weights = state['settings'].get('first weights')
        _load_model(self.learn, state, self.directory)
        self.taken, place = state, state['place']
        self.learn.begin_epoch = place['epoch']
        if not rank(): self._forget_later(place['step'])
        done = place['epoch'] + place['batches'] / place['n_iter']
        return [*notes, f"going on from step {place['step']:,}, {round(done, 2):g} of {epochs} epochs done",
                *_changes(self.learn, state, epochs, is_stable(place))]

    def _forget_later(self, step: int) -> None:
        "Remove what was written after a step, and what was cut off"
        sweep(self.directory)
        for path in _files(self.directory):
            if _step_of(path) > step: path.unlink()

    # --- in a fit

    def attached(self):
        if not isinstance(self.dls.train, ImageLoader):
            raise InputError("Checkpoint is for a learner of contrastive_learner(…), whose place in the data is known.")
        self.undo(self._give_back)

    def before_fit(self):
        self._give_back()
        self.identity, self.problems, self.saved = _identity(self.learn), [], None
        if self.taken is None and gather_objects(not rank() and newest(self.directory.parent) is not None)[0]:
            raise InputError(f"{self.directory} holds the checkpoints of a run already: go on with that by "
                             f"{self.learn.taken_up_by}resume=…), or give Checkpoint another folder.")
        if world_size() > 1: self._check_shared()

    def _check_shared(self):
        "Raise `InputError` where the processes do not see one folder: no checkpoint would ever be whole"
        sign = self.directory/f'.{uuid.uuid4().hex}.partial'
        if not rank():
            with suppress(OSError): write_whole(sign, '')
        sign = self.directory/gather_objects(sign.name)[0]  # which is there by now
        end = time.monotonic() + self.look
        while not (seen := sign.exists()) and time.monotonic() < end: time.sleep(0.05)
        everyone = gather_objects(seen)
        with suppress(OSError): sign.unlink()
        if everyone[0] and not all(everyone):
            raise InputError(f"process {everyone.index(False)} does not find in {self.directory} what the first has "
                             "written there: give all a folder on a disk that they share, or keep no checkpoints.")

    def before_epoch(self):
        if self.writer is None: self._begin()

    def _begin(self):
        "Watch for signals and be ready to write, from where on `after_fit` is called whatever happens"
        self.signals = self.borrowed.enter_context(watched())
        self.borrowed.callback(self._release)
        if world_size() > 1:
            self.consensus = _Consensus()
            self.borrowed.callback(self.consensus.end)
        self.writer, self.writing = ThreadPoolExecutor(1, 'checkpoint'), None
        self.borrowed.callback(self.writer.shutdown)
        self.last = time.monotonic()

    def before_train(self):
        if self.taken is not None: self._put_back()
        if self.learn.begin < len(self.dls.train): self._hold()

    def _hold(self):
        if not self.holding: self.signals.hold()
        self.holding = True

    def _release(self):
        if self.holding: self.signals.release()
        self.holding = False

    def _put_back(self):
        "What `fit` and the callbacks have set for a beginning becomes what it was"
        learn, state, self.taken = self.learn, self.taken, None
        place, device = state['place'], next(self.model.parameters()).device
        _load_model(learn, state, self.directory)
        kept = state['optimizer']  # fastai's own take tensors where they are
        learn.opt.load_state_dict(to_device(kept, device) if isinstance(learn.opt, Optimizer) else kept)
        if state['scaler']: learn.scaler.load_state_dict(state['scaler'])
        learn.train_iter, learn.fit_seed = place['step'], place['fit_seed']
        same = place['epochs'] == learn.n_epoch
        learn.pct_train = place['share'] if same else place['step'] / (place['n_iter'] * learn.n_epoch)
        learn.begin = learn.dls.train.begin = place['batches']
        learn.dls.train.epoch = place['pass_']
        _record_again(learn, state['recorder'])
        found = stateful(learn)
        for name, kept in state['callbacks'].items():
            if name in found: found[name][1](kept)
        set_generators(state['generators'], device)
        self.saved = place['step']

    def after_batch(self):
        last = self.iter + 1 == self.n_iter
        wish = self._wish(last)
        # where all know that they wish for one, they have that of this step
        if self.consensus: wish = self.consensus(wish, last or self._is_due())
        if wish: self._save()
        if wish > _SAVE:
            self._finish()
            raise self._interrupted(wish - 1)
        if last: self._release()

    def after_train(self): self._hold()  # its features are judged: until the epoch's row stands everywhere
    def after_epoch(self): self._release()  # a signal that came meanwhile is seen after the next step

    def _interrupted(self, number: int) -> Interrupted:
        "What ends the fit at a signal, with a note below its traceback that says how to go on"
        ended = Interrupted(number)
        if self.saved: ended.add_note(f"The state of step {self.saved:,} is in {self.directory}: "
                                      f"{self.learn.taken_up_by}resume={str(self.directory.parent)!r}) goes on there.")
        return ended

    def _wish(self, last: bool) -> int:
        "What this process wants after a step: nothing, a checkpoint, or an end"
        if self.signals.caught is not None: return self.signals.caught + 1
        when = self.moments
        if last and (when.epoch or self.epoch + 1 == self.n_epoch): return _SAVE
        if self._is_due(): return _SAVE
        if not when.seconds or rank() or time.monotonic() - self.last < when.seconds: return 0
        self.last = time.monotonic()  # several processes save a step later: until then this is not wished once more
        return _SAVE

    def _is_due(self) -> bool:
        "Whether a checkpoint is due for the number of steps"
        step, every = self.train_iter, self.moments.steps
        return step == self.pin_at or bool(every) and step % every == 0

    def after_fit(self):
        if self.writer is None: return
        self._hold()
        try: self._finish()
        finally: self._give_back()
        caught = self.signals.caught
        if caught is not None and self.learn.stopped is None: self.learn.stopped = self._interrupted(caught)

    def _give_back(self):
        "Signals, thread and group of processes, also after a fit that could not clean up"
        self.borrowed.close()
        self.writer = self.consensus = None

    # --- writing

    def _save(self):
        "Copy the state, and have it written"
        state = capture(self.learn, self.identity)
        self._finish()  # the one before
        self.last = time.monotonic()
        self.writing = self.writer.submit(self._write, state)

    def _finish(self):
        "Wait for what is being written"
        writing: Future | None = self.writing
        self.writing = None
        if writing is None: return
        problem = writing.result()
        if not problem: return
        self.problems.append(problem)
        if self.learn.logger is not noop: print(problem, flush=True)

    def _write(self, state: dict[str, Any]) -> str:
        "Write this process's part and, in the first, the manifest that makes it count; '' or what went wrong"
        step = state['place']['step']
        stem = f'step-{step:09d}'
        trained = [name for name, _ in self.model.named_parameters() if name in state['model']]
        if not all(bool(state['model'][name].isfinite().all()) for name in trained):
            return f"no checkpoint of step {step:,} was kept: the weights are no longer finite."
        content = io.BytesIO()
        torch.save(state, content)
        try:
            write_whole(self.directory/f'{stem}.{rank()}.pt', content.getbuffer())
            if rank(): return ''
            files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self._parts(stem)}
            self._commit(stem, state, files)
        except OSError as e:
            with suppress(OSError): self._give_up(stem)
            return f"the checkpoint of step {step:,} could not be written ({e.strerror or e}); the run goes on."
        self.saved = step
        self._forget_older()
        return ''

    @property
    def _cut_short(self) -> bool:
        "Whether the fit is to end before its time"
        return self.signals.caught is not None or self.learn.stopped is not None

    def _parts(self, stem: str) -> list[Path]:
        "The files of all processes, once they are there"
        paths = [self.directory/f'{stem}.{process}.pt' for process in range(world_size())]
        until, ending = time.monotonic() + self.patience, False
        while missing := [path for path in paths if not path.exists()]:
            if paths[0] in missing: raise OSError(f"{paths[0].name} was removed")  # its own, which was there
            if self._cut_short and not ending:
                until, ending = min(until, time.monotonic() + self.grace), True
            if time.monotonic() > until: raise OSError(f"{missing[0].name} of another process did not arrive")
            time.sleep(0.01)
        for path in paths:
            if not path.stat().st_size: raise OSError(f"another process could not write {path.name}")
        return paths

    def _give_up(self, stem: str):
        "Leave nothing of a checkpoint that can't be whole; processes but the first tell that one by an empty part"
        if rank(): return (self.directory/f'{stem}.{rank()}.pt').touch()
        if (self.directory/f'{stem}.json').exists(): return
        for path in self.directory.glob(f'{stem}.*.pt'): path.unlink()

    def _commit(self, stem: str, state: dict[str, Any], files: dict[str, str]):
        place = state['place']
        kept = {name: place[name] for name in ('step', 'epoch', 'batches', 'n_iter', 'epochs')}
        manifest = dict(format=FORMAT, version=VERSION, **kept, pinned=place['step'] == self.pin_at,
                        bytes=sum((self.directory/name).stat().st_size for name in files), files=files)
        write_whole(self.directory/f'{stem}.json', json.dumps(manifest, indent=2) + '\n')

    def _forget_older(self):
        "Remove all but the newest few, and the one that is kept for good"
        with suppress(OSError):
            manifests = _manifests(self.directory)
            kept = {_step_of(path) for i, path in enumerate(manifests)
                    if i < self.keep or _is_pinned(path)}
            oldest = min(map(_step_of, manifests[:self.keep]), default=0)  # none where the folder was removed
            stale = [path for path in _files(self.directory) if _step_of(path) not in kept]
            # manifests first: without one, a part counts for nothing
            for path in sorted(stale, key=lambda path: path.suffix != '.json'):
                if _step_of(path) < oldest: path.unlink()


def _step_of(path: Path) -> int:
    "The number of the step in the name of a checkpoint's file"
    return int(path.name.removeprefix('step-').split('.')[0])


def _load_model(learn, state: dict[str, Any], folder: Path) -> None:
    "The model as it was. Raises `InputError` where it is another"
    device = next(learn.model.parameters()).device
    tensors = marked(learn.model, state['model'])
    try: learn.model.load_state_dict({name: t.to(device) for name, t in tensors.items()})
    except RuntimeError as e:
        reason = ' '.join(str(e).split())[:200]
        raise InputError(f"the checkpoints in {folder} are of another model ({reason}).") from None


def _check_same(learn, state: dict[str, Any], epochs: int, folder: Path) -> None:
    "Raise `InputError` where a run has settings that the one in the folder has not"
    was, now = _without_parts(state['settings']), _identity(learn)
    lacking, unread = _LATER - was.keys(), now.get('first weights') is None  # their file may be gone by now
    if lacking == _LATER: was, now = _as_before(was), _as_before(now)
    for name in dict.fromkeys([*was, *now]):
        if was.get(name) == now.get(name) or name in lacking or unread and name == 'first weights': continue
        values = difference(was.get(name), now.get(name), 'there', 'here')
        raise InputError(f"the run in {folder.parent} differs in its {name}, {values}: go on with the same settings, "
                         "or begin anew in another folder.")
    if len(learn.dls.train) != state['place']['n_iter']:
        raise InputError(f"the run in {folder.parent} has {state['place']['n_iter']} batches an epoch, and here are "
                         f"{len(learn.dls.train)}.")
    done = state['place']['step'] / state['place']['n_iter']
    if epochs < done:
        raise InputError(f"the run in {folder.parent} has done {round(done, 2):g} epochs: it can't go on to {epochs}, "
                         f"give {state['place']['epochs']} or more.")


def _changes(learn, state: dict[str, Any], epochs: int, stable: bool) -> list[str]:
    "What is no longer as it would have been, in sentences"
    was, now, said = state['surroundings'], surroundings(learn), []
    for name in was:
        if was[name] != now[name]:
            said.append(f"{name}: {now[name]} in place of {was[name]}, so what follows is no longer identical, bit for "
                        "bit, with the run as it was begun")
    planned = state['place']['epochs']
    if planned == epochs: return said
    if stable: return [*said, f"planned for {planned} epochs and now for {epochs}: taken up where the learning rate "
                       "had not begun to fall; what else depends on a run's length, like EMATarget's momentum, the "
                       "size of views that grow or the warm-up of a short run, is worked out anew"]
    return [*said, f"planned for {planned} epochs and now for {epochs}: the schedule is worked out anew from here on"]
