"""Signals that end a program: answered at once, or, where work would be lost, when that is safe."""
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Ctrl-C, `kill` and whoever shares a machine among its users, and a terminal that is closed
ENDING = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]

_WORD = b"\nfinishing the step, and saving; Ctrl-C once more breaks the step off\n"
PATIENCE = 2.  # seconds after which a second signal is another wish, and no echo of the first


class Interrupted(KeyboardInterrupt):
    "A signal has ended the work"
    def __init__(self,
        number: int, # of the signal
    ):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def code(self) -> int:
        "What the program ends with: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP"
        return 128 + self.number


class Signals:
    """What happens at a signal of `ENDING`: an `Interrupted`, at once, or, in a block of `held`, at its end

    A launcher passes on what its processes get as well, so a second signal counts as one with the first; one that comes
    `PATIENCE` seconds later is somebody who waits no longer, and ends a held block too."""
    def __init__(self):
        self.caught: int | None = None  # the first signal
        self._wishes, self._when = 0, 0.  # signals that count, and when the last of them came
        self._depth = 0  # of what is held
        self._old: dict[int, Any] = {}  # handlers that were there before
        self._process = os.getpid()

    def install(self) -> None:
        "Answer signals from now on; one that the program was told to ignore (`nohup`) stays ignored"
        for number in ENDING:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._old[number] = signal.signal(number, self._answer)

    def remove(self) -> None:
        "Leave them to whoever had them"
        while self._old: signal.signal(*self._old.popitem())

    def _answer(self, number: int, frame) -> None:
        if os.getpid() != self._process: return _answer_in_worker(number)
        if self._wishes and time.monotonic() - self._when < PATIENCE: return
        self._wishes, self._when, self.caught = self._wishes + 1, time.monotonic(), self.caught or number
        if not self._depth or self._wishes > 1: raise Interrupted(self.caught)
        if number == signal.SIGINT and _tells() and os.isatty(2): os.write(2, _WORD)

    def check(self) -> None:
        "Raise `Interrupted` if there was a signal"
        if self.caught is not None: raise Interrupted(self.caught)

    def hold(self) -> None:
        "What follows, until `release`, is not broken off"
        self._depth += 1

    def release(self) -> None:
        "Undo one `hold`; whoever held has to `check`"
        self._depth -= 1

    @contextmanager
    def held(self) -> Iterator[None]:
        "A block that is not broken off; `Interrupted` is raised at its end"
        self.hold()
        try: yield
        finally: self.release()
        if not self._depth: self.check()


def _tells() -> bool:
    "Whether no other process says the same: of several the first does, or the launcher that has started them"
    return os.environ.get('RANK', '0') == '0' and 'FASTCONTRAST_LAUNCHER' not in os.environ


def _answer_in_worker(number: int) -> None:
    "A process that was forked off has the handlers of its parent, which ends it when that is right"
    if number == signal.SIGINT: return  # a terminal sends it to all
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


_active: Signals | None = None  # the handlers are the process's: there is one for all


@contextmanager
def watched() -> Iterator[Signals]:
    "The signals of this process, answered as `Signals` says; within another such block, the same ones"
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or Signals()  # Python has the main thread alone answer signals
        return
    _active = Signals()
    _active.install()
    try: yield _active
    finally:
        _active.remove()
        _active = None
