"""A fastai learner whose fits may be broken off at any step, and are taken up from a checkpoint.

Docs: https://fastcontrast.github.io/fastcontrast/checkpoint.html.md"""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback, CancelEpochException, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.imports import noop
from fastai.learner import Learner
from fastcore.foundation import L

from .checkpoint import Checkpoint
from .core import InputError, whole
from .device import reuse_memory
from .files import user_path


def true_error(
    e: BaseException, # from a fit
) -> BaseException:
    "fastai's callbacks add their name to an error, and trip over one without arguments, like `MemoryError()`"
    tripped = isinstance(e, IndexError) and e.__context__ is not None and not e.__context__.args
    return e.__context__ if tripped else e


def check_folder(
    resume: Any, # where checkpoints are to be kept; None: nowhere
) -> None:
    "Raise `InputError` for what can be no folder"
    if resume is None: return
    if isinstance(resume, str | Path) and not user_path(resume, 'resume').is_file(): return
    raise InputError(f"resume={resume!r} is no folder: give the name of one, there already or not.")


class ResumableLearner(Learner):
    "A fastai `Learner` that loses nothing at Ctrl-C or an error, and goes on from a `Checkpoint`, bit for bit"
    taken_up_by = 'fit_contrastive(n, ' # how the call begins that goes on with a run
    stopped: BaseException | None = None # why the last fit ended early
    train_iter: int = 0         # steps of the last fit that are done
    fit_seed: int = 0           # what the draws of its steps come from
    begin_epoch: int = 0        # where the next fit begins: not at 0 if it is taken up from a checkpoint…
    begin: int = 0              # …and the first batch of that epoch
    goes_on: bool = False       # whether it is taken up from a checkpoint

    def _do_fit(self):
        # Ctrl-C or an error ends a fit like any other cancellation: callbacks clean up, and what was learned stays
        try:
            for epoch in range(self.begin_epoch, self.n_epoch):
                self.epoch = epoch
                self._with_events(self._do_epoch, 'epoch', CancelEpochException)
        except CancelFitException: raise
        except BaseException as e:
            self.stopped = true_error(e)
            raise CancelFitException from e
        finally: self.opt.zero_grad()  # half a step's gradients would go into the next fit's first

    def all_batches(self):
        "fastai's, from the first batch of this fit on"
        self.n_iter, begin, self.begin = len(self.dl), self.begin, 0
        for i, batch in enumerate(self.dl, begin): self.one_batch(i, batch)

    def fit(self, n_epoch, *args, **kwargs):
        "fastai's `fit`; raises what a callback, an error or Ctrl-C stopped it for, after all callbacks have cleaned up"
        whole(n_epoch=n_epoch)
        self.stopped, logger = None, self.logger
        with reuse_memory(next(self.model.parameters()).device):
            try: super().fit(n_epoch, *args, **kwargs)
            except IndexError as e: raise true_error(e) from None
            finally: self.logger = logger  # callbacks that have put their own there put back one another's
        if self.stopped is not None: raise self.stopped

    @contextmanager
    def no_bar(self) -> Iterator['ResumableLearner']:
        "fastai's, which would bring another bar back than it took away"
        bars = [cb for cb in self.cbs if isinstance(cb, ProgressCallback)]
        self.remove_cbs(bars)
        try: yield self
        finally: self.add_cbs(bars)

    @property
    def precision(self) -> str:
        "Of the model's arithmetic: 'fp32', 'bf16' or 'fp16'"
        return next((cb.amp_mode.value for cb in self.cbs if isinstance(cb, MixedPrecision)), 'fp32')

    def settings(self) -> dict[str, Any]:
        "What makes a run the one it is, by name: tensors and plain values, the same when it is taken up again"
        raise NotImplementedError

    # --- taken up

    def _fit_from(self,
        n_epoch: int,           # epochs
        peak: float,            # learning rate, by which runs are told apart
        cbs: Sequence[Callback], # for this fit only
        resume: str | Path | None, # the folder of the checkpoints; None: there are none
    ) -> None:
        "Fit, from the newest checkpoint in a folder on, where there is one"
        keeper = [] if resume is None else self._keeper(resume, L(cbs))
        with self.added_cbs([*cbs, *keeper]):
            try:
                self._take_up(n_epoch, peak, resume)
                self.fit(n_epoch, lr=peak)
            finally: self.begin_epoch, self.begin, self.goes_on = 0, 0, False

    def _stable(self, n_epoch: int) -> int:
        "Steps of a fit after which its learning rate begins to depend on its length; 0 if it always does"
        return 0

    def _keeper(self, folder: str | Path, cbs: L) -> list[Checkpoint]:
        "The callback that keeps checkpoints in a folder, unless there is one"
        there = [cb for cb in (*self.cbs, *cbs) if isinstance(cb, Checkpoint)]
        made = [] if there else [Checkpoint()]
        for cb in (*there, *made): cb.folder = user_path(folder, 'resume')
        return made

    def _take_up(self, n_epoch: int, peak: float, folder: str | Path | None) -> None:
        "Begin where the newest checkpoint in the folder says, and say so"
        keeper = next((cb for cb in self.cbs if isinstance(cb, Checkpoint)), None)
        if keeper is None: return
        keeper.taken, keeper.pin_at = None, self._stable(n_epoch)
        if folder is None: return
        if self.opt is None: self.create_opt()  # callbacks for this fit have parameters of their own
        self.opt.set_hyper('lr', peak)
        notes = keeper.take_up(n_epoch, self._stable)
        self.goes_on = bool(notes)
        if notes and self.logger is not noop: print(*notes, sep='\n', flush=True)
