"""What the verbs are given: pictures, and encoders of earlier runs."""
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core import InputError, MissingPath
from ..files import user_path
from .folder import read_record
from .output import errors
from .settings import Run


def read_pictures(
    data: str, # a folder of pictures, shards, or 'digits'
    bs: int,   # pictures in a batch
    **kwargs,  # the other arguments of `image_dls`
):             # its `DataLoaders`
    "`image_dls` for the command line, which has another name for `bs`"
    from ..data import image_dls
    if not data: raise InputError("the name of the data is empty: give a folder of pictures, or 'digits'.")
    try: return image_dls(data, bs=bs, **kwargs)
    except InputError as e:
        few = re.match(rf'bs={bs} is larger than the training part of .* \((\d+) pictures\)', str(e))
        if not few: raise
        advice = "a smaller --batch-size" if bs > 2 else "more pictures"
        raise InputError(f"too few pictures to train on in {data}: a batch takes {bs} and there are {few[1]}, "
                         f"give {advice}.") from None


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
) -> dict[str, Any]:
    "Share and seed of the pictures that the run of an encoder held out, or the defaults"
    run: dict[str, Any] = {}
    with suppress(InputError): run = read_record(encoder.parent)
    return dict(valid=run.get('valid', Run.valid), seed=run.get('seed', Run.seed))
