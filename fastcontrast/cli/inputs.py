"""What the verbs are given: pictures, and encoders of earlier runs."""
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ..core import InputError, MissingPath
from ..files import user_path
from ..records import ENCODER, known_record, read_record
from .output import console, errors
from .settings import Run, read_range


Column = Annotated[str | None, Option(
    help="The column of a .csv file that has the pictures' paths", show_default="as in pretrain")]
LabelColumn = Annotated[str | None, Option(
    help="The column of a .csv file that has their classes", show_default="as in pretrain")]
Device = Annotated[str | None, Option(
    help="Where to compute, like cpu or cuda:1", show_default="a GPU if there is one")]
Workers = Annotated[int | None, Option(
    help="Processes that decode: while it trains, where the pictures do not fit in memory, else before",
    show_default="one a core, at most 8")]

# these have another default in every verb
range_option = partial(Option, '--range', metavar='LOW,HIGH',
                       help="The values that become black and white in pictures of more than 8 bits")
unlabelled_option = partial(Option, '--unlabelled',
                            help="Leave labels alone, and take a folder as it is: loose pictures and nested ones")
valid_option = partial(Option, help="Share of the pictures (of the shards) to judge by, where the data has no folder "
                                    "for it; or a folder, .csv file or shards of other pictures, which are judged "
                                    "within themselves if their classes are others")


def read_pictures(
    data: str | list[Path], # a folder of pictures, a table of their paths, shards, 'digits', or files
    bs: int | None, # pictures in a batch; None: 256, or as many as there are
    **kwargs,       # the other arguments of `image_dls`
):             # its `DataLoaders`
    "`image_dls` for the command line; elsewhere than on a terminal its notes wait"
    from ..data import image_dls
    if not data: raise InputError("the name of the data is empty: give a folder of pictures, or 'digits'.")
    return image_dls(data, bs=bs, tell=console.print if console.is_terminal else lambda note: None, **kwargs)


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
    path: str, # a run's folder, an exported folder or file, or 'hf-hub:owner/name'
) -> Path:     # the file
    "The encoder that a path names. Raises `MissingPath` if there is none"
    from ..artefact import find_encoder
    with suppress(MissingPath):
        file = find_encoder(path, 'encoder')
        if file.exists(): return file
    if is_tuned(path):
        raise InputError(f"{path} is a fine-tuning, and this takes an encoder: give the run that it began with, or "
                         f"{path}/classifier for the encoder as it was tuned.")
    raise MissingPath(f"no encoder at {path}: give the folder of a run that has one, an encoder.safetensors, or a "
                      "folder that was exported.")


def encoder_name(
    path: Path, # of its file
) -> str:
    "What tables call it: a folder's name where every folder has a file so called"
    from ..artefact import WEIGHTS
    return path.parent.name if path.name in (ENCODER, WEIGHTS) and path.parent.name else path.name


def names_in(
    text: str | None, # what --against takes
) -> list[str]:
    "The names between commas, each once"
    names = [name.strip() for name in (text or '').split(',')]
    return list(dict.fromkeys(name for name in names if name))


def numbered(
    name: str,
) -> Iterator[str]: # without end
    "A name, then the same with numbers behind it: for what has the name of something else"
    yield name
    yield from (f'{name} ({n})' for n in count(2))


def told_apart(
    encoders: Sequence[Any], # of some dataclass with a `name`
) -> list[Any]: # those whose name one before has already with a number behind it
    "Encoders by names of their own: folders of one name lie in many places"
    apart: dict[str, Any] = {}
    for encoder in encoders:
        name = next(name for name in numbered(encoder.name) if name not in apart)
        apart[name] = replace(encoder, name=name)
    return list(apart.values())


def is_tuned(
    path: str, # that a user gave
) -> bool:
    "Whether it is the folder of a fine-tuning"
    record: dict[str, Any] = {}
    with suppress(InputError): record = read_record(user_path(path, 'encoder'))
    return record.get('verb') == 'finetune'


def run_of(
    encoder: Path, # its file
) -> Path:         # a folder; of an encoder that is no run's, the one that it lies in
    "The folder of the run that made an encoder: a fine-tuning's lies in a folder within it"
    from ..artefact import WEIGHTS
    folder = encoder.absolute().parent
    tuned = encoder.name == WEIGHTS and known_record(folder.parent).get('verb') == 'finetune'
    return folder.parent if tuned else folder


def _settings_of(record: dict[str, Any]) -> dict[str, Any]:
    "Those of a run; of a fine-tuning, with the split that it found"
    settings = record.get('settings') or record  # in those paths are found from anywhere; older runs have none
    return settings | (record.get('split') or {})


def own_pictures(
    record: dict[str, Any], # of a run, or nothing
    data: str,              # some pictures
) -> bool:
    "Whether they are those that the run was trained on"
    own = _settings_of(record).get('data')
    return isinstance(own, str) and os.path.abspath(own) == os.path.abspath(user_path(data, 'data'))


def own_data(
    encoder: Path, # its file
    given: str,    # what the user calls it
) -> str:
    "The pictures of the run that made an encoder. Raises `InputError` where nothing says which"
    data = _settings_of(known_record(run_of(encoder))).get('data')
    if isinstance(data, str): return data
    raise InputError(f"nothing beside {given} says of which pictures it is: give a folder of class folders as DATA.")


def held_out(
    record: dict[str, Any], # of a run, or nothing
    data: str,              # the pictures that are to judge what it made
) -> dict[str, Any]:        # settings
    """What a run held out of its pictures and by which seed, or the defaults; and how it read them

    Of other pictures it knows only the share; and those that judged it are held out of each other in the same way.
    Their range of values is their own, unless the run was given one."""
    settings = {key: value for key, value in _settings_of(record).items() if value is not None}
    known = {key: settings.get(key, getattr(Run, key)) for key in ('seed', 'valid', 'value_range', *_READ)}
    if own_pictures(record, data): return known
    valid = Run.valid if isinstance(known['valid'], str) else known['valid']
    return dict(seed=known['seed'], valid=valid, value_range=known['value_range'])


def split_of(
    encoder: Path, # a file of a run
    data: str,     # the pictures that are to judge it
) -> dict[str, Any]: # for `read_pictures`
    "What the run of an encoder held out of its pictures, and how it read and saw them: see `held_out`"
    record = known_record(run_of(encoder))
    split, used = held_out(record, data), record.get('value_range')
    values = split['value_range']
    values = read_range(values) if isinstance(values, str) else None
    if own_pictures(record, data) and isinstance(used, list): values = tuple(used)
    return split | dict(channels=record.get('channels'), value_range=values)


def other_split(
    encoder: Path | None,  # a file; None: there is none
    data: str,             # the pictures…
    split: dict[str, Any], # …of which some judge it
) -> str:
    "'' or what is to be said of an encoder whose run was trained on pictures that judge it"
    from ..data import has_valid
    record = known_record(run_of(encoder)) if encoder else {}
    if not own_pictures(record, data) or isinstance(split['valid'], str) or has_valid(data): return ''
    own = held_out(record, data)
    share = own['valid'] if record.get('n_valid') and not isinstance(own['valid'], str) else 0
    if own['seed'] == split['seed'] and split['valid'] <= share: return ''  # a smaller share is a part of a larger one
    labels = ' and on their labels' if record.get('verb') == 'finetune' or record.get('n_labeled') else ''
    held = f"a share of {share:g} by the seed {own['seed']}" if share else "nothing"
    return f"it was trained on pictures that judge it here{labels}, as its run held out {held}"


_READ = ('unlabelled', 'column', 'label_column', 'store_size') # settings of how data are read
