"""A command in several processes. `--processes 4` starts the command itself four times, watches the four, and ends when
they do: process 0 does what one process would do, and the others train along."""
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from ..core import InputError, usable_cores
from ..files import write_whole
from ..signals import ENDING, Interrupted, Signals
from .output import LAUNCHER, fail, orphaned

PATIENCE = 120  # seconds that processes which were told to end may take to save what they have
REST = 5        # seconds that those which have nothing to save may take after that
NOTICE = 20     # seconds in which the end of a process is known here, at most: a busy machine buries slowly
_ENDED = 'ended'  # the file that says which process has ended before its time


def rank() -> int | None:
    "Which of several processes this is; None for a program that was not launched as one of them"
    several = int(os.environ.get('WORLD_SIZE', 1)) > 1  # some schedulers number a process that is the only one
    return int(os.environ['RANK']) if several and 'RANK' in os.environ else None


def check_size(
    processes: int, # how many are asked for
) -> None:
    "Raise `InputError` where a launcher has started more than one, and not so many"
    if rank() is None: return
    size = int(os.environ['WORLD_SIZE'])
    if processes in (1, size): return
    raise InputError(f"--processes {processes} is asked for, and a launcher has started {size}: give --processes "
                     f"{size}, or call the program without a launcher.")


def hear_signals() -> None:
    "A process was started deaf to signals, so that none came before it could answer; it hears them from now on"
    if LAUNCHER in os.environ: signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def meet() -> None:
    """Wait until all processes of the launcher are up: here, because where they join nobody answers signals

    Raises `InputError` if the launcher has ended."""
    if LAUNCHER not in os.environ: return
    folder = Path(os.environ[LAUNCHER])
    (folder/f'{rank()}.here').touch()
    while not all((folder/f'{other}.here').exists() for other in range(int(os.environ['WORLD_SIZE']))):
        if orphaned():
            raise InputError("the program that launched this process has ended, and with it the training.")
        time.sleep(0.02)


def ended_peer(
    wait: bool = False, # until the launcher has noticed it, which takes a moment
) -> str:               # '' if there was none
    "Which of the other processes has ended, and how, as the launcher has it"
    if LAUNCHER not in os.environ: return ''
    file, end = Path(os.environ[LAUNCHER])/_ENDED, time.monotonic() + NOTICE
    while wait and not file.exists() and not orphaned() and time.monotonic() < end: time.sleep(0.05)
    try: return file.read_text(encoding='utf-8')
    except OSError: return ''


def launch(
    processes: int, # how many
    signals: Signals, # of this program: they are the processes' too
) -> None:
    "This command in processes that train together. Ends the program with the one sentence that says why, if they fail"
    if not hasattr(signal, 'pthread_sigmask'):  # Windows
        raise InputError(f"--processes {processes} needs Linux or macOS: leave it out, and one process trains.")
    gpus, cores = _places()
    if processes > (gpus or cores):
        places = f'{gpus} GPUs' if gpus else f'{cores} cores'
        raise InputError(f"--processes {processes} is more than the {places} that may be used here: "
                         f"give {gpus or cores} or fewer.")
    with tempfile.TemporaryDirectory(prefix=f'fastcontrast-{os.getpid()}-') as folder:
        team = _Team(Path(folder))
        try:
            with suppress(Interrupted), signals.held():  # a signal is passed on, and what it ends is waited for
                team.start(processes, max(1, cores // processes))
                team.watch(signals)
                team.end()
        finally: kill_all(team.processes)
        if team.code: fail(*team.told())


def end_all(
    processes: list[subprocess.Popen],
    number: int, # of the signal that tells them
    first: subprocess.Popen | None = None, # the one of them that saves; None: each does, or its own processes do
) -> None:
    "Have processes end that have not, and wait until they have saved what they have"
    try:
        _send(processes, number)
        if first: _wait([first], PATIENCE)  # the others may wait for each other on their GPUs, for ever
        _wait(processes, REST if first else PATIENCE + 2*REST)
    except Interrupted as e: # somebody waits no longer
        _send(processes, e.number)
        _wait(processes, REST)


def kill_all(
    processes: list[subprocess.Popen],
) -> None:
    "End those that are still there"
    _send(processes, getattr(signal, 'SIGKILL', signal.SIGTERM))
    for process in processes: process.wait()


def _send(processes: list[subprocess.Popen], number: int) -> None:
    for process in processes:
        if process.poll() is not None: continue
        if os.name == 'nt': process.terminate()  # it knows no other signal
        else: process.send_signal(number)


def _wait(processes: list[subprocess.Popen], seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < end: time.sleep(0.02)


def _places() -> tuple[int, int]:
    "GPUs and cores that may be used; those of the former that may not talk to each other directly are told so"
    import torch
    gpus = torch.cuda.device_count()
    if gpus:
        from accelerate.utils import check_cuda_p2p_ib_support  # as accelerate's own launcher has it
        if not check_cuda_p2p_ib_support():
            for name in ('NCCL_P2P_DISABLE', 'NCCL_IB_DISABLE'): os.environ.setdefault(name, '1')
    return gpus, usable_cores()


class _Team:
    "The processes that train together, and how they end"
    def __init__(self,
        folder: Path, # empty; where they leave messages
    ):
        self.folder = folder
        self.processes: list[subprocess.Popen] = []  # by their ranks
        self.signal: int | None = None  # that this program got
        self.ended: int | None = None   # the process that has ended before its time

    def start(self,
        size: int,    # how many
        threads: int, # of each, unless the environment says how many
    ) -> None:
        "Start the processes, which find each other at a free port"
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        common = dict(os.environ, MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(size),
                      LOCAL_WORLD_SIZE=str(size)) | {LAUNCHER: str(self.folder)}
        common.setdefault('OMP_NUM_THREADS', str(threads))
        command = [sys.executable, '-u', '-m', 'fastcontrast', *sys.argv[1:]]
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # see `hear_signals`
        try:
            for rank in range(size):
                own = dict(RANK=str(rank), LOCAL_RANK=str(rank), TORCHELASTIC_ERROR_FILE=str(self._message_file(rank)))
                self.processes.append(subprocess.Popen(command, env=common | own))
        finally: signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def _message_file(self, rank: int) -> Path: return self.folder/f'{rank}.json'

    def message(self, rank: int) -> str:
        "What a process says of how it ended; '' if it died without a word"
        try: return json.loads(self._message_file(rank).read_text())['message'].rstrip()
        except (OSError, ValueError, KeyError): return ''

    def watch(self, signals: Signals) -> None:
        "Wait for the end of all, of the first that fails, or for a signal"
        while signals.caught is None:
            codes = [process.poll() for process in self.processes]
            if any(codes) or None not in codes: return
            time.sleep(0.05)
        self.signal = signals.caught

    def end(self) -> None:
        "Have all end that have not, and wait for them"
        if self.signal is None: self._tell_who_ended()
        end_all(self.processes, self.signal or signal.SIGTERM, self.processes[0])

    def _tell_who_ended(self) -> None:
        self.ended = next((i for i, process in enumerate(self.processes) if process.poll()), None)
        if self.ended is None: return
        with suppress(OSError):  # of a full disk: it is as well not said
            write_whole(self.folder/_ENDED, self._how_ended(self.ended))

    def _how_ended(self, rank: int) -> str:
        code, message = self.processes[rank].poll(), self.message(rank).removeprefix('error: ').rstrip('.')
        name = f"process {rank} of {len(self.processes)} was ended"
        if code < 0: return f"{name} by {signal.Signals(-code).name}"
        return f"{name}: {message}" if message else f"{name} with code {code}"

    @property
    def code(self) -> int:
        "Of the exit"
        codes = [process.returncode for process in self.processes]
        if 2 in codes: return 2  # a mistake of the user's is one in all, and some were ended before they could say so
        if self.signal is not None: return 128 + self.signal if any(codes) else 0
        return codes[0] if codes[0] > 0 else int(any(codes))

    def told(self) -> tuple[str, int]:
        "The sentence of the process that knows most, and the code of the exit"
        codes = [process.returncode for process in self.processes]
        first = codes.index(2) if self.code == 2 else 0
        failed = self.ended
        if failed is None: failed = next((i for i, code in enumerate(codes) if code), 0)
        words = self.message(first) or self.message(failed)
        if not words and self.signal is not None: words = "interrupted"
        return words or f"error: {self._how_ended(failed)}, and the others with it.", self.code
