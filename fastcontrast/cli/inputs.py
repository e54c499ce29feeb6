"""What the verbs are given: pictures, and encoders of earlier runs."""
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core import InputError, MissingPath
from ..files import user_path
from .folder import read_record
from .output import console, errors
from .settings import Run


def read_pictures(
    data: str,      # a folder of pictures, a table of their paths, shards, or 'digits'
    bs: int | None, # pictures in a batch; None: 256, or as many as there are
    **kwargs,       # the other arguments of `image_dls`
):             # its `DataLoaders`
    "`image_dls` for the command line, which has another name for `bs`; elsewhere than on a terminal its notes wait"
    from ..data import image_dls
    if not data: raise InputError("the name of the data is empty: give a folder of pictures, or 'digits'.")
    try: return image_dls(data, bs=bs, tell=console.print if console.is_terminal else lambda note: None, **kwargs)
    except InputError as e:
        few = re.match(rf'bs={bs} is larger than the training part of .* \((\d+) pictures\)', str(e))
        if not few: raise
        advice = "a smaller --batch-size" if bs > 2 else "more pictures"
        raise InputError(f"too few pictures to train on in {data}: a batch takes {bs} and there are {few[1]}, "
                         f"give {advice}.") from None


def tell_notes(
    dls, # from `read_pictures`
) -> None:
    "What a log says of the source, once nothing is to be refused; on a terminal it was said before pictures were read"
    if console.is_terminal: return
    for note in dls.notes: console.print(note)


def tell_undecodable(
    dls,             # from `read_pictures`
    hint: str = '',  # where to read more, as the rest of a sentence
) -> None:
    "Say which pictures could not be decoded, if there are such"
    report = dls.report()
    if report: errors.print(f"{report} {hint}." if hint else report)


def encoder_file(
    path: str, # a run's folder, or an encoder's file
) -> Path:     # the file
    "The encoder that a path names. Raises `MissingPath` if there is none"
    file = user_path(path, 'encoder')
    if file.is_dir(): file = file/'encoder.safetensors'
    if file.exists(): return file
    raise MissingPath(f"no encoder at {file}: give the folder of a run that has one, or an encoder.safetensors.")


def split_of(
    encoder: Path, # a file of a run
    data: str,     # the pictures that are to judge it
) -> dict[str, Any]:
    """What the run of an encoder held out of its pictures and by which seed, or the defaults

    Of other pictures it knows only the share; and those that judged it are held out of each other in the same way."""
    run: dict[str, Any] = {}
    with suppress(InputError): run = read_record(encoder.parent)
    if isinstance(run.get('settings'), dict): run = run['settings']  # whose paths are found from anywhere
    valid, seed = run.get('valid', Run.valid), run.get('seed', Run.seed)
    if os.path.abspath(str(run.get('data'))) == os.path.abspath(Path(data).expanduser()):
        return dict(valid=valid, seed=seed, **{key: run.get(key, getattr(Run, key)) for key in _READ})
    return dict(valid=Run.valid if isinstance(valid, str) else valid, seed=seed)


_READ = ('unlabelled', 'column', 'label_column', 'store_size') # settings of how data are read
