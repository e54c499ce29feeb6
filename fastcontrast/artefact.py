"""The folder that an encoder is handed on in, as timm, transformers and the Hub of Hugging Face know such folders.

Docs: https://fastcontrast.github.io/fastcontrast/use_everywhere.html.md"""
import ctypes
import glob
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (HFValidationError, HfHubHTTPError, LocalTokenNotFoundError,
                                    RepositoryNotFoundError)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from timm.models import get_deprecated_models
from timm.models._hub import download_from_hf, save_config_for_hf
from torch import nn

from .core import InputError, MissingPath, clipped, is_number, waiting
from .distributed import rank
from .files import left_by_system, read_json, user_path, write_whole
from .models import HUB, LOCAL, quiet_hub
from .records import ENCODER
from .stems import SUFFIX

__all__ = ['CARD', 'CONFIG', 'FORMAT', 'OURS', 'VERSION', 'WEIGHTS', 'card', 'check_config',
           'check_free', 'check_repo', 'config_of', 'facts_beside', 'find_classifier', 'find_encoder', 'hub_file',
           'is_file_name', 'is_ours', 'looking_for', 'metadata_of', 'push_folder', 'training_facts', 'usage',
           'write_files']

FORMAT = 'fastcontrast-encoder' # how a file says that this library wrote it
VERSION = 2 # of its header; 1 had no `classes`, and 'format' in place of 'kind'
CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'README.md'
OURS = 'fastcontrast' # the field of config.json that has what other libraries do not ask for

# --- config.json

# what timm knows of weights that it has for an architecture, and of no others
_OF_OTHER_WEIGHTS = ('tag', 'test_input_size', 'test_crop_pct', 'test_pool_size', 'min_input_size', 'license',
                     'description', 'origin_url', 'paper_name', 'paper_ids', 'notes', 'label_names',
                     'label_descriptions', 'label_offset')


def config_of(
    model: nn.Module,      # of timm, as it is to be made by whoever reads the folder; its `pretrained_cfg` is changed
    size: int,             # side of the pictures in pixels
    mean: Sequence[float], # of each channel of pictures in [0, 1]
    std: Sequence[float],
    classes: Sequence[str] | None = None, # names of what the model tells apart; None: it gives features
    ours: Mapping[str, Any] | None = None, # what this library says beside that
) -> dict[str, Any]:
    "What timm writes into a config.json for the Hub, with these pictures in place of those of its own weights"
    known = model.pretrained_cfg
    if known.get('pool_size'): known['pool_size'] = (max(1, size // model.feature_info[-1]['reduction']),) * 2
    for name in _OF_OTHER_WEIGHTS: known.pop(name, None)
    known.update(input_size=(len(mean), size, size), mean=tuple(mean), std=tuple(std), crop_pct=1.0,
                 interpolation='bilinear', crop_mode='center', num_classes=len(classes or ()))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/CONFIG
        save_config_for_hf(model, file, dict(label_names=list(classes)) if classes else {})
        config = read_json(file)
    config.pop('model_args', None)  # timm's has num_classes, which transformers would be given twice
    # timm before 1.0.31 takes all filters for those of three channels, and draws others where they are not
    if len(mean) not in (1, 3): config['pretrained_cfg']['first_conv'] = None
    if args := _model_args(model, size, len(mean)): config['model_args'] = args
    return config | {OURS: dict(ours or {})}


def _model_args(model: nn.Module, size: int, channels: int) -> dict[str, Any]:
    "What makes the model beside its name; transformers reads the channels here alone"
    dynamic = bool(getattr(model, 'dynamic_img_size', False))
    sized = dynamic or bool(model.pretrained_cfg.get('fixed_input_size'))
    return (dict(img_size=size) if sized else {}) | (dict(dynamic_img_size=True) if dynamic else {}) | (
        dict(in_chans=channels) if channels != 3 else {})


def check_config(
    file: Path,            # of weights, in its folder
    arch: str,             # timm's name, as the file's header has it…
    channels: int,
    size: int,             # …with the pictures
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None,
) -> None:
    "Raise `InputError` where a config.json beside the weights, which other libraries go by, says something else"
    beside = file.with_name(CONFIG)
    if file.name != WEIGHTS or not os.path.lexists(beside): return
    try: config = read_json(beside)
    except (OSError, ValueError) as e: raise _lies(beside, f"it can't be read: {clipped(e)}") from None
    if not isinstance(config, dict): raise _lies(beside, "it is no description of a model")
    if 'architecture' not in config: return  # of a run
    about, args = config.get('pretrained_cfg'), config.get('model_args', {})
    if not isinstance(about, dict) or not isinstance(args, dict):
        raise _lies(beside, "it does not say for what pictures it is")
    arch = (get_deprecated_models().get(arch) or arch).partition('.')[0]
    expected = dict(architecture=arch, num_classes=len(classes or ()), label_names=classes)
    found = [(name, config.get(name), value) for name, value in expected.items()]
    pictures = dict(input_size=[channels, size, size], mean=list(mean), std=list(std))
    found += [(name, about.get(name), value) for name, value in pictures.items()]
    found += [(name, args.get(name, value), value) for name, value in dict(in_chans=channels, img_size=size).items()]
    for name, there, here in found:
        if there == here: continue
        raise _lies(beside, f"its {name} is {clipped(json.dumps(there), 60)} and that of {WEIGHTS} "
                            f"{clipped(json.dumps(here), 60)}")


def facts_beside(
    file: Path, # of weights, in its folder
) -> dict[str, Any]:
    "What a config.json beside the weights says of their training; {} where there is none of ours"
    try: config = read_json(file.with_name(CONFIG)) if file.name == WEIGHTS else {}
    except (OSError, ValueError): return {}
    ours = config.get(OURS) if isinstance(config, dict) else None
    facts = ours.get('facts') if isinstance(ours, dict) else None
    return facts if isinstance(facts, dict) else {}


def _lies(file: Path, reason: str) -> InputError:
    return InputError(f"'{clipped(file)}' was altered or damaged ({reason}): copy or export the folder again.")

# --- the folder


def metadata_of(
    file: Path, # of safetensors, or not
) -> dict[str, str]: # none of a file that is something else
    "What the header of a file says, beside its tensors"
    try:
        with safe_open(file, 'pt') as content: return content.metadata() or {}
    except (OSError, SafetensorError, UnicodeEncodeError): return {}


def is_ours(
    file: Path,
) -> bool:
    "Whether this library wrote a file of weights"
    metadata = metadata_of(file)
    return FORMAT in (metadata.get('kind'), metadata.get('format'))  # the latter in those of version 1


_FILES = '.safetensors', '.onnx', '.pth', '.pt', '.ckpt', '.bin', '.pkl' # of weights; the first two are written


def is_file_name(
    path: Path, # where an encoder is to be written
) -> bool:
    "Whether a name is that of a file, by its ending; any other, as of encoder-v1.2, is a part of a folder's name"
    return path.suffix.lower() in _FILES


def check_no_pickle(
    path: Path, # where an encoder is to be written
) -> None:
    "Raise `InputError` for what fastai would write a pickle to"
    if path.suffix != '.pkl': return
    raise InputError(f"'{clipped(path)}' would be a pickle, as fastai's learners are, and nothing is pickled here: "
                     "give the name of a folder, like 'encoder', which load_encoder (load_classifier) reads; "
                     "learn.save and learn.load keep a whole model.")


def check_free(
    folder: Path, # where an encoder is to be written
) -> None:
    "Raise `InputError` for a folder that holds anything but an encoder that was exported before"
    check_no_pickle(folder)
    if folder.is_dir():
        there = sorted(name for name in os.listdir(folder) if not left_by_system(name))
        other = [name for name in there if name not in (CONFIG, WEIGHTS, CARD)]
        if WEIGHTS in there and not is_ours(folder/WEIGHTS): other = [WEIGHTS, *other]
        if there and WEIGHTS not in there: other = other or there
        if not other: return
        raise InputError(f"the folder '{clipped(folder)}' holds '{clipped(other[0])}', which is no part of an exported "
                         "encoder: give another name, or remove it.")
    if os.path.lexists(folder):
        raise InputError(f"'{clipped(folder)}' is a file, and an encoder is written as a folder there: give another "
                         "name, or one that ends in .safetensors for a single file.")


def write_files(
    folder: Path,                    # see `check_free`
    files: Mapping[str, bytes | str], # by name
) -> None:
    """Write a folder that has these files and no others: whoever looks there finds the old one or the new, whole

    Where a system can't have two folders swap names, there is none for a moment. Raises `OSError`."""
    folder = Path(os.path.realpath(folder))  # a link stays one
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = re.compile(rf'\.{re.escape(folder.name)}\.\d+(\.old)?\.partial')  # encoder's, and not encoder.v2's
    for left in glob.glob(f'{glob.escape(str(folder.parent))}/.{glob.escape(folder.name)}.*.partial'):
        if own.fullmatch(Path(left).name): shutil.rmtree(left, ignore_errors=True)  # by a process that was killed
    partial = folder.with_name(f'.{folder.name}.{os.getpid()}.partial')
    try:
        for name, content in files.items(): write_whole(partial/name, content)
        empty = folder.is_dir() and not os.listdir(folder)
        if empty and os.name == 'nt': folder.rmdir()  # where an empty one is not replaced
        if empty or not folder.is_dir(): os.replace(partial, folder)
        elif not _swap(partial, folder): _move_aside(partial, folder)
    finally: shutil.rmtree(partial, ignore_errors=True)


def _move_aside(new: Path, folder: Path) -> None:
    "A folder takes the name of another, which is removed"
    old = new.with_name(f'{new.stem}.old.partial')
    os.replace(folder, old)
    try: os.replace(new, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    "Have two folders swap their names in one step; False where the system can't"
    if os.name != 'posix': return False
    here, names = -100, (os.fsencode(one), os.fsencode(other))  # AT_FDCWD
    calls = dict(renameat2=(here, names[0], here, names[1], 2), renamex_np=(*names, 2))  # Linux, macOS
    system = ctypes.CDLL(None)
    return any(getattr(system, name)(*args) == 0 for name, args in calls.items() if hasattr(system, name))

# --- the card


def training_facts(
    loss: str | None = None,
    speedups: str | Sequence[str] | None = None,
    pictures: int | None = None,  # that were trained on
    epochs: int | None = None,
    seconds: float | None = None,
    knn: float | None = None,     # accuracy in [0, 1]
    linear: float | None = None,  # accuracy in [0, 1]…
    per_class: int | None = None, # …with so many labels of each class
) -> dict[str, Any]:
    "What a card tells of a training, in its words; what is not known is left out"
    if not isinstance(speedups, str): speedups = ', '.join(speedups or ())
    labels = '' if per_class is None else f" with {per_class} labels a class"
    facts = {'loss': loss, 'speedups': speedups, 'pictures to train on': pictures, 'epochs': epochs,
             'minutes': None if seconds is None else round(seconds / 60, 1),
             'kNN accuracy': None if knn is None else f'{knn:.1%}',
             f'linear accuracy{labels}': None if linear is None else f'{linear:.1%}'}
    return {name: value for name, value in facts.items() if value not in (None, '')}


def usage(
    place: str,              # where the encoder is: 'hf-hub:owner/name', or a folder
    info: Mapping[str, Any], # what the header of the weights says
    pyramid: bool = False,   # whether its stages are for a U-Net: each half as wide as the one before
) -> str:
    "Python that loads an encoder in other libraries, and in this one"
    hub, scores = place.startswith(HUB), bool(info['classes'])
    name, bare = (place, place.removeprefix(HUB)) if hub else (f'{LOCAL}{place}', f'./{place}')
    auto = 'AutoModelForImageClassification' if scores else 'AutoModel'
    known = [f"import fastcontrast  # has timm know the stem for small pictures, '…{SUFFIX}'"]
    lines = [*known * info['small_input'], "import timm", "import torch", "",
             f"x = torch.rand(2, {info['in_chans']}, {info['size']}, {info['size']})", "",
             f"# timm: {'scores' if scores else 'features'}, and maps of its stages",
             f"y = timm.create_model({name!r}, pretrained=True).eval()(x)",
             f"maps = timm.create_model({name!r}, pretrained=True, features_only=True).eval()(x)", "",
             "# transformers", f"from transformers import AutoImageProcessor, {auto}", "",
             f"model = {auto}.from_pretrained({bare!r})", f"processor = AutoImageProcessor.from_pretrained({bare!r})",
             "", "# fastai", "from fastai.vision.all import create_timm_model, vision_learner", "",
             f"net, _ = create_timm_model({name!r}, 10, n_in={info['in_chans']})  # as vision_learner(dls, …) does"]
    unet = ["", "# segmentation-models-pytorch", "import segmentation_models_pytorch as smp", "",
            f"unet = smp.Unet({f'tu-{name}'!r}, in_channels={info['in_chans']})"]
    ours = [f"from fastcontrast.all import {'predict' if scores else 'load_encoder'}", "",
            f"found = predict({place!r}, 'photos')  # a picture, or a folder of them" if scores else
            f"encoder = load_encoder({place!r})"]
    return '\n'.join([*lines, *unet * pyramid, "", "# fastcontrast", *ours])


def card(
    title: str,
    info: Mapping[str, Any],  # what the header of the weights says
    facts: Mapping[str, Any], # of the training, by what they are; text and numbers
    code: str,                # from `usage`
) -> str:
    "A README.md as the Hub shows it: what was trained, how, how good it became, and how it is loaded"
    classes, arch, size = info['classes'], info['arch'], info['size']
    kind = 'image-classification' if classes else 'image-feature-extraction'
    head = ['---', 'library_name: timm', f'pipeline_tag: {kind}', 'tags:', f'- {kind}', '- timm', '- transformers',
            '- self-supervised-learning', '- fastcontrast', '---', '']
    gives = f"tells {len(classes)} classes apart" if classes else "gives features of pictures"
    stem = ', with the stem for small pictures' if info['small_input'] else ''
    rows = dict(architecture=arch + stem, pictures=f"{info['in_chans']} channels, {size} x {size} pixels",
                mean=_numbers(info['mean']), deviation=_numbers(info['std']))
    if 'value_range' in info['extra']: rows['black and white'] = info['extra']['value_range']
    if classes: rows['classes'] = ', '.join(classes)
    if info['recipe']: rows['method'] = info['recipe']
    table = [f'| {_cell(name)} | {_cell(value)} |' for name, value in (rows | dict(facts)).items()]
    return '\n'.join([
        *head, f'# {_cell(title)}', '', f"A {_cell(arch)} that {gives}, trained by fastcontrast.", '', '| | |',
        '|---|---|', *table, '', "Pictures are resized to that side by bilinear interpolation; mean and deviation are "
        "of values in [0, 1].", '', '## Load it', '', '```python', code, '```', ''])


def _numbers(values: Sequence[float]) -> str: return ', '.join(f'{value:.4g}' for value in values)


def _cell(value: Any) -> str:
    "What stands in a table, or in a line"
    text = f'{value:,}' if is_number(value) else str(value)
    return clipped(text, 500).replace('|', '\\|').replace('<', '&lt;')

# --- the Hub

FRESH = 60. # seconds for which the Hub is not asked again for a file: without a network every asking takes half of that
_GIVEN: dict[tuple[str, str], tuple[float, Path]] = {} # when the Hub gave which files, by place and name


def looking_for(
    name: Any, # of a model, or of its weights
    weights: bool = False, # does it come with weights from the network? Else it does if the Hub describes it
) -> AbstractContextManager:
    "A block that fetches a model, if it has not been fetched before; who waits for long is told"
    if rank() or not (weights or str(name).startswith(HUB)): return nullcontext()
    return waiting(f"looking for '{clipped(name)}' here and on the network; where there is none, that takes half a "
                   "minute to fail (HF_HUB_OFFLINE=1 in the environment: nothing is looked for there)")


def hub_file(
    place: str, # 'hf-hub:owner/name', or '…@revision'
    name: str,  # of the file: config.json or model.safetensors, and nothing that would have to be unpickled
) -> Path:      # on this disk, in the cache of the Hub's client
    "A file of a model on the Hub, as it was within the last minute. Raises `InputError` if it can't be had"
    when, file = _GIVEN.get((place, name), (-FRESH, Path()))
    if time.monotonic() - when < FRESH and file.is_file(): return file
    try:
        with quiet_hub(), looking_for(place): file = Path(download_from_hf(place.removeprefix(HUB), name))
    except Exception as e:
        raise InputError(f"'{clipped(place)}' has no {name} to give ({_hub_reason(e)}).") from None
    _GIVEN[place, name] = time.monotonic(), file
    return file


def find_encoder(
    path: str | Path, # a file of `export_encoder`, a folder of it or of a run, or 'hf-hub:owner/name'
    name: str = 'path', # of the option or argument, for the message
) -> Path:            # the file; not read
    "Where the weights of an encoder are: on the Hub, they are downloaded. Raises `MissingPath` if there are none"
    if isinstance(path, str) and path.startswith(HUB):
        hub_file(path, CONFIG)  # it lies beside the weights then
        return hub_file(path, WEIGHTS)
    path = user_path(path.removeprefix(LOCAL) if isinstance(path, str) else path, name)
    if not path.is_dir(): return path
    for file in (path/ENCODER, path/WEIGHTS):
        if file.is_file(): return file
    raise MissingPath(f"no file of an encoder in '{path}': give a folder that was exported, or that of a run.")


def find_classifier(
    path: str | Path, # the folder of a classifier, or of the run that made it; or 'hf-hub:owner/name'
) -> str | Path:      # what `find_encoder` takes
    "Where a classifier is: that of a run lies in a folder of its own. Raises `MissingPath` where nothing is"
    if str(path).startswith(HUB): return path
    place = user_path(path.removeprefix(LOCAL) if isinstance(path, str) else path, 'classifier')
    if not place.exists():
        raise MissingPath(f"there is no classifier '{place}': give the folder of a fine-tuning, or of a classifier.")
    return place/'classifier' if (place/'classifier').is_dir() else place


def push_folder(
    folder: str | Path, # of an exported encoder
    repo: str,          # 'owner/name' on the Hub; made if it is not there
    private: bool = False, # for a new one: hidden from others
) -> str:               # its address
    "Upload an exported encoder to the Hub of Hugging Face. Raises `InputError` if it can't be"
    folder = user_path(folder, 'folder')
    if not is_ours(folder/WEIGHTS):
        raise InputError(f"the folder '{clipped(folder)}' is no exported encoder: export one, to a name without an "
                         "ending.")
    check_repo(repo)
    api = HfApi()
    try:
        with quiet_hub(), tempfile.TemporaryDirectory() as copy:
            for name in (CONFIG, WEIGHTS, CARD):
                with suppress(FileNotFoundError): shutil.copy(folder/name, copy)
            _say_place(Path(copy)/CARD, folder.absolute().name, repo)
            url = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=url.repo_id, folder_path=copy, commit_message='Add the encoder')
        _GIVEN.clear()  # there are new ones
    except Exception as e:
        raise InputError(f"'{clipped(folder)}' can't be uploaded to '{repo}' ({_hub_reason(e)}).") from None
    return str(url)


def check_repo(
    repo: str,
) -> None:
    "Raise `InputError` for what is no name on the Hub"
    try: validate_repo_id(repo)
    except HFValidationError:
        raise InputError(f"push={clipped(repr(repo))} is no name on the Hub: give one like 'owner/name', of letters, "
                         "digits, '-', '_' and '.'.") from None


def _say_place(file: Path, name: str, repo: str) -> None:
    "In the card of an uploaded folder its place is the one on the Hub"
    if not file.exists(): return
    text = file.read_text(encoding='utf-8').replace(f'\n# {_cell(name)}\n', f'\n# {repo}\n', 1)
    for place, there in ((f"'{LOCAL}{name}'", f"'{HUB}{repo}'"), (f"'./{name}'", f"'{repo}'"),
                         (f"'tu-{LOCAL}{name}'", f"'tu-{HUB}{repo}'"), (f"'{name}'", f"'{HUB}{repo}'")):
        text = text.replace(place, there)
    file.write_text(text, encoding='utf-8')


def _hub_reason(e: Exception) -> str:
    "Why the Hub does not do what it was asked, and what to do about it"
    status = getattr(getattr(e, 'response', None), 'status_code', None)
    if isinstance(e, LocalTokenNotFoundError) or status == 401 and not isinstance(e, RepositoryNotFoundError):
        return "nobody is logged in: run 'hf auth login', or set HF_TOKEN"
    if isinstance(e, RepositoryNotFoundError): return "there is no such model, or it is private: check the name"
    if status == 403: return "your token may not do that: take one that may write there"
    if isinstance(e, HFValidationError | AssertionError): return "that is no name on the Hub: give one like owner/name"
    if isinstance(e, HfHubHTTPError): return clipped(e, 160)
    return f"{clipped(e, 160)}: check the name, and the network"
