"""What ended a run that was no wish of its user's, in a sentence."""
import re

from ..core import InputError, NoSpace
from ..files import FULL

NOBODY_READS = BrokenPipeError, SystemExit  # as with `| head`; the latter is rich's

_CALLBACK = re.compile(r'Exception occured in `.*?` when calling event `.*?`:\s*', re.S)  # fastai's words before ours
_IN_WORKER = re.compile(r'Caught (\w+) in DataLoader worker process.*\n', re.S)
_WORKER = re.compile(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited)')
_CPU_MEMORY = re.compile(r"not enough memory|can't allocate memory|Cannot allocate memory")
_PEER = re.compile(r'gloo|NCCL|Connection closed by peer|Connection reset by peer|Broken pipe')


def is_peers(
    problem: BaseException, # what ended one of several processes
) -> bool:
    "Whether it is what the end of another process looks like from here"
    return isinstance(problem, RuntimeError) and bool(_PEER.search(str(problem)))


def exit_code(
    problem: BaseException,
) -> int:
    "What the program ends with: 2 for a user's mistake, 1 for what else went wrong, want of space among it"
    return 2 if isinstance(problem, InputError) and not isinstance(problem, NoSpace) else 1


def sentence(
    problem: BaseException,
    device: str,            # where it happened, in words
    verb: str,              # of the command
) -> str:                   # without a full stop
    "What has happened, and what to do about it where that is known"
    if isinstance(problem, NOBODY_READS): return "nobody reads what it prints"
    return _memory(problem, device, verb) or _decoding(problem) or _file(problem) or _named(problem)


def wants_memory(
    problem: BaseException,
) -> str: # 'device', or 'machine'; '' if it is something else
    "Whose memory has run out"
    import torch
    if isinstance(problem, torch.OutOfMemoryError): return 'device'
    short = isinstance(problem, MemoryError) or isinstance(problem, RuntimeError) and _CPU_MEMORY.search(str(problem))
    return 'machine' if short else ''


_ANEW = "begin anew with a smaller --batch-size or --size"
_LESS = dict(pretrain=f"give a larger --accumulate, or {_ANEW}", finetune=_ANEW,
             detect="give a smaller --batch-size or --size") # what takes less memory, by verb

def _memory(problem: BaseException, device: str, verb: str) -> str | None:
    whose, advice = wants_memory(problem), _LESS.get(verb, "close what else uses it, or give fewer pictures")
    if whose == 'device': return f"out of memory on {device}: {advice}"
    fewer = "; fewer --workers take less, too" * (verb in ('pretrain', 'finetune'))
    return f"this machine is out of memory: {advice}{fewer}" if whose else None


def _decoding(problem: BaseException) -> str | None:
    killed = _WORKER.search(str(problem))
    if not killed: return None
    pids, by = killed[1].strip(', '), f" by the signal '{killed[2].strip()}'" if killed[2] else ''
    return f"a process that decodes pictures ({pids}) was ended{by}; if for want of memory, give fewer --workers"


def _file(problem: BaseException) -> str | None:
    if not isinstance(problem, OSError) or problem.errno is None: return None
    name = f" '{problem.filename}'" if problem.filename else ''
    if problem.errno in FULL: return f"no space is left on the disk{name and f' for{name}'}"
    return f"the file{name} can't be used: {problem.strerror}" if name else None


def _named(problem: BaseException) -> str:
    message = _CALLBACK.sub('', str(problem)).strip()
    if _IN_WORKER.match(message): return message.splitlines()[-1]  # of a traceback in text
    first = message.splitlines()[0] if message else ''
    if isinstance(problem, InputError): return first.rstrip('.')
    return f"{type(problem).__name__}: {first}".rstrip('.: ')
