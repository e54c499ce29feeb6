"""What all rooms share: the one error a user can cause, the checks of arguments, and registries of what has a name."""
import difflib
import importlib
import math
import operator
import os
import pkgutil
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any

LARGEST_SIDE = 8192 # pixels of a view's side; one picture of that side takes 800 MB before anything is made of it


# control characters, of which a terminal obeys some, line ends, marks that turn the direction of writing, and halves of
# characters, which Python also has in place of the bytes of a name that is no UTF-8
_UNSHOWN = re.compile('[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
_LINES = re.compile(r'(?!\n)' + _UNSHOWN.pattern)


def _escape(match: re.Match) -> str:
    "One character as Python writes it; a byte that is no UTF-8 as that byte"
    code = ord(match[0])
    if 0xdc80 <= code <= 0xdcff: return f'\\x{code - 0xdc00:02x}'
    return match[0].encode('unicode_escape', 'surrogatepass').decode('ascii')


def shown(
    name: object,        # of a file, a class, a picture: text, or what is shown as its text
    lines: bool = False, # keep line ends?
) -> str:
    "A name for a terminal, a log or a message: what could move the cursor, break a line or hide a part is escaped"
    return (_LINES if lines else _UNSHOWN).sub(_escape, str(name))


class InputError(ValueError):
    "What the user gave cannot work; the message is one sentence that says what to do"
    def __init__(self,
        message: str, # one sentence: what was wrong, with which value or file, and what to do
    ):
        self.message = shown(message)  # it names files and classes, which may be called anything
        if not self.message.endswith(('.', '!', '?')): self.message += '.'
        super().__init__(self.message)

    # the sentence stays as it is: fastai rewrites arguments of what a callback raises, and `OSError` has its own form
    def __str__(self) -> str: return self.message


class MissingPath(InputError, FileNotFoundError):
    "A file or folder that the user named is not there"


class NoSpace(InputError):
    "A disk has no room for what is to be written, whatever the settings are"


def clipped(
    value: Any,     # what a message speaks of; somebody else's name, error or object
    most: int = 160, # characters
) -> str:
    "Its text in one line, as `shown`, cut off where it is long; lines of an error are joined"
    text = shown(value if isinstance(value, str) else ' '.join(str(value).split()))
    if isinstance(value, InputError): text = text.removesuffix('.')  # it stands within another sentence
    return text if len(text) <= most else f'{text[:most - 1]}…'


def usable_cores() -> int:
    "How many of this machine's cores the program may use: a scheduler, a container or `taskset` may leave it some"
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def number_of(n: int, thing: str) -> str:
    "Like 1 picture, or 2,000 batches"
    return f"{n:,} {thing}{'' if n == 1 else 'es' if thing.endswith(('ch', 's')) else 's'}"


def first_of(names: Sequence[str], most: int = 10) -> str:
    "Names with commas between them, so many at most, and a sign that there are more"
    return ', '.join(names[:most]) + ', …' * (len(names) > most)


_WAITS = ContextVar('waits', default=False) # whether somebody is told already


@contextmanager
def waiting(
    sentence: str, # for what
    patience: float = 2., # seconds in which it is as well not said
) -> Iterator[None]:
    "Say on stderr what a block waits for, where it takes longer, so that nobody stares at nothing; blocks in it don't"
    if _WAITS.get():
        yield
        return
    timer = threading.Timer(patience, lambda: print(shown(sentence), file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    told = _WAITS.set(True)
    try: yield
    finally:
        _WAITS.reset(told)
        timer.cancel()


def suggest(
    name: str,            # what was asked for
    known: Iterable[str], # what there is
    kind: str,            # of thing, for the message
) -> str:                 # one sentence
    "The sentence for a name that is not known: the nearest known ones, or all of them if none is near"
    known, name = sorted(known), clipped(name)
    spellings = {other.lower(): other for other in reversed(known)}  # papers write SimCLR and DCL
    near = [spellings[low] for low in difflib.get_close_matches(name.lower(), spellings, n=3, cutoff=0.5)]
    if near: return f"unknown {kind} '{name}': did you mean {' or '.join(near)}?"
    return f"unknown {kind} '{name}': there are {first_of(known, 20)}."


class Declared:
    "A base of dataclasses that have their fields and no other attributes: a misspelt one is no silent new one"
    def __setattr__(self, name: str, value: Any) -> None:
        known = type(self).__dataclass_fields__
        if name not in known: raise InputError(suggest(name, known, f"field of {type(self).__name__}"))
        super().__setattr__(name, value)


def _owner(of: Any) -> str:
    "How a message says whose argument it speaks of"
    if of is None: return ''
    return f" of {of if isinstance(of, str) else type(of).__name__}"


def is_whole(value: Any) -> bool:
    "Whether a value is a whole number; True and False are none"
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    "Whether a value is a finite real number; True and False are none"
    if not isinstance(value, Real) or isinstance(value, bool): return False
    try: return math.isfinite(value)
    except OverflowError: return False  # a whole number beyond all floats


def whole(
    of: Any = None,         # whose arguments they are: an object, or a name
    least: int = 1,         # the smallest value that is taken
    most: int | None = None, # the largest; None: any
    optional: bool = False, # whether None is taken too
    **values: Any,          # the arguments, by name
) -> None:
    "Raise `InputError` unless all values are whole numbers in a range"
    for name, value in values.items():
        if optional and value is None: continue
        if is_whole(value) and least <= value and (most is None or value <= most): continue
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        given = f"{name}={clipped(repr(value))}{_owner(of)}"
        raise InputError(f"{given} must be a whole number {span}{', or None' * optional}.")


def number(
    of: Any = None,         # whose arguments they are: an object, or a name
    above: float | None = None, # the value must be larger than this…
    least: float | None = None, # …or not smaller than this
    below: float | None = None, # and smaller than this…
    most: float | None = None,  # …or not larger than this
    optional: bool = False, # whether None is taken too
    **values: Any,          # the arguments, by name
) -> None:
    "Raise `InputError` unless all values are finite numbers in a range"
    bounds = [(word, bound, holds) for word, bound, holds in (
        (' above', above, operator.gt), (' at least', least, operator.ge),
        (' below', below, operator.lt), (' at most', most, operator.le)) if bound is not None]
    for name, value in values.items():
        if optional and value is None: continue
        if is_number(value) and all(holds(value, bound) for _, bound, holds in bounds): continue
        span = ' and'.join(f"{word} {bound:g}" for word, bound, _ in bounds)
        given = f"{name}={clipped(repr(value))}{_owner(of)}"
        raise InputError(f"{given} must be a finite number{span}{', or None' * optional}.")


def one_of(
    known: Iterable[str],   # the values that are taken
    of: Any = None,         # whose arguments they are: an object, or a name
    **values: Any,          # the arguments, by name
) -> None:
    "Raise `InputError` unless all values are among the known ones"
    known = list(known)
    for name, value in values.items():
        if isinstance(value, str) and value in known: continue
        raise InputError(suggest(value, known, f"{name.replace('_', ' ')}{_owner(of)}"))


class Registry(dict[str, Any]):
    "What there is of a kind, by name; a decorator adds to it, and whoever lists the kind reads it"
    def __init__(self,
        kind: str, # what its members are, for messages
    ):
        super().__init__()
        self.kind = kind

    def register(self,
        name: str, # what the member is called on the command line and in messages
    ) -> Callable[[Any], Any]:
        """A decorator that adds a class or function. Raises `InputError` for a name that something else has

        A definition in `__main__` (a notebook, a script) takes the place of one with its name."""
        def add(member):
            old = self.get(name, member)
            modules = {old.__module__, member.__module__}
            if old.__qualname__ != member.__qualname__ or len(modules - {'__main__'}) > 1:
                raise InputError(f"there is a {self.kind} '{name}' already, {old.__module__}.{old.__qualname__}: "
                                 "choose another name.")
            self[name] = member
            return member
        return add

    def find(self,
        name: str, # as it was registered
    ) -> Any:
        "The member of that name. Raises `InputError` that suggests the nearest ones"
        if not isinstance(name, str) or name not in self: raise InputError(suggest(name, self, self.kind))
        return self[name]


def import_all(
    package: str, # its name; its modules register what they hold
) -> None:
    "Import every module of a package, so that a new file needs no line elsewhere"
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        importlib.import_module(f'{package}.{module.name}')


def moved(
    module: str,  # where the names were, without the package
    **places: str, # where they are now, by name
) -> Callable[[str], Any]: # a module's `__getattr__`
    "Names that have moved to another module are still found where they were"
    def get(name: str) -> Any:
        if name in places: return getattr(importlib.import_module(f'fastcontrast.{places[name]}'), name)
        raise AttributeError(f"module 'fastcontrast.{module}' has no attribute '{name}'")
    return get
