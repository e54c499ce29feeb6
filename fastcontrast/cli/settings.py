"""What a run is made of. Its settings come, in rising order of weight, from the defaults of `Run`, from what suits the
built-in digits if those are the data, from a section of `settings.ini` (`--run NAME`), and from the command's
options."""
import ast
import configparser
import inspect
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from ..core import (LARGEST_SIDE, InputError, MissingPath, clipped, is_number, is_whole, number, one_of, suggest,
                    whole)
from ..files import read_text, user_path
from .registries import architectures, registry, speedups


@dataclass(frozen=True)
class Run:
    "The settings of a pretraining run; a section of `settings.ini` may give any of them"
    data: str = 'digits'            # a folder of pictures, a table, shards like 'shards/{000..146}.tar', or 'digits'
    method: str = 'fast'            # a recipe, like 'moco_v3(wd=0.05)': see `parse_method`
    loss: str | None = None         # a loss in place of the recipe's, like 'dcl(0.1)': see `parse_loss`
    speedups: str | None = None     # speedups, like 'comb_patches, suncet(weight=1)': see `parse_speedups`
    arch: str = 'resnet18'          # any timm architecture; that of the weights if they say it
    weights: str | None = None      # that the encoder begins with: a timm tag, a file or a folder
    head_epochs: int | None = None  # epochs in which the head learns alone; one with weights if not given
    size: int | None = None         # side of the pictures in pixels
    store_size: int | None = None   # short side at which they are kept, at most their own; 1.5 times that if not given
    epochs: int = 100
    batch_size: int | None = None   # of all processes together; 256, or the pictures there are, if not given
    lr: float | None = None         # peak learning rate; the recipe's if not given
    labels: str | None = None       # labels that training may use: 'all', a fraction, or a file of names
    valid: float | str = 0.2        # share to judge by, where the data has no folder for it; or other pictures
    small_input: bool | None = None # the stem for small pictures; a ResNet's, up to 64 pixels, if not given
    setting: str | None = None      # the recipe's constants: 'small', 'cifar'…; by the pictures if not given
    precision: str = 'auto'         # of the model's arithmetic; 'auto': the device's best
    compile: bool = False           # the encoder, with torch.compile
    accumulate: int = 1             # parts of a batch, for batches larger than the memory; the result is the same
    unlabelled: bool = False        # leave labels alone, and take a folder as it is
    column: str | None = None       # of a table, that has the pictures; path, file, filename or image if not given
    label_column: str | None = None # and that has their labels; label, class or target if not given
    channels: int | None = None     # of the pictures; 3, or those of the first picture if it isn't grey or colour
    value_range: str | None = None  # values that become 0 and 1, like '0, 4095'; 0 and 255 or found if not given
    controls: bool = True           # also judge raw pixels and the untrained encoder
    seed: int = 0                   # of the split, the weights and the views
    workers: int | None = None      # processes that decode
    device: str | None = None       # where it trains; a GPU if there is one
    processes: int = 1              # that train together, one a GPU, or sharing the CPU's cores
    cache: bool = False             # keep the pictures decoded on the disk, in a folder beside theirs
    cache_folder: str | None = None # …or in this one
    schedule: str | None = None     # of the learning rate, after the warm-up; the recipe's if not given
    checkpoint: str = 'epoch, 10 minutes' # when the run's whole state is kept, as `Checkpoint` takes it; 'none': never
    stop_on_collapse: bool = False  # end the run when all pictures get the same embedding
    log: str | None = None          # who else is told of the run: 'tensorboard, wandb'


DIGITS = dict(arch='resnet10t', epochs=18, batch_size=64)  # enough for 1,797 pictures of 8x8

ALIASES = {'with': 'speedups', 'range': 'value_range'}  # options that have another name than their field
_NAMES = {field: name for name, field in ALIASES.items()}

SETTINGS_FILE, SHARED = 'settings.ini', 'DEFAULT' # the latter is the section that all runs share…
_NBDEV = 'lib_name'  # …and that of an nbdev project's own settings, which have this key
_SWEEP = re.compile(r'sweep\s*:\s*(.*)')  # a section that stands for many runs

_LEAST = dict(size=2, store_size=2, epochs=1, batch_size=2, channels=1, accumulate=1, seed=0, workers=0, processes=1,
              head_epochs=0)
_MOST = 2**63 - 1  # what torch takes…
_MOST_OF = dict(size=LARGEST_SIDE, store_size=LARGEST_SIDE) # …and where less makes sense

_TYPES = {field.name: get_args(field.type) or (field.type,) for field in fields(Run)}
SETTINGS = tuple(_TYPES)


def key_name(
    key: str, # a field of `Run`
) -> str:
    "What users write for it"
    return _NAMES.get(key, key)


def option(
    key: str, # a field of `Run`
) -> str:
    "The option that gives it"
    return f"--{key_name(key).replace('_', '-')}"


def is_numeric(
    key: str, # a field of `Run`
) -> bool:
    "Whether it is a number and nothing else"
    return str not in _TYPES[key] and bool not in _TYPES[key]


def as_options(
    chosen: dict[str, Any], # settings; None where not given
) -> list[str]:
    "What gives them to `fastcontrast pretrain`"
    words = [chosen['data']] if chosen.get('data') else []
    for key, value in chosen.items():
        if value is None or key == 'data': continue
        if not isinstance(value, bool): words += [option(key), str(value)]
        elif value != getattr(Run, key): words += [option(key) if value else f'--no-{key_name(key).replace("_", "-")}']
    return words


def read_value(
    key: str,   # a field of `Run`
    text: str,
    place: str, # where it is written, for the message
) -> Any:
    "The value of a setting that was written as text; None (the default) for an empty one. Raises `InputError`"
    text, types = text.strip(), _TYPES[key]
    if not text or text.lower() == 'none' and types != (str,): return None
    if bool in types:
        known = configparser.ConfigParser.BOOLEAN_STATES
        if text.lower() not in known: raise InputError(f"{place}: {key} = {text} is neither true nor false.")
        return known[text.lower()]
    if key in ('method', 'loss'): return _one_writing(text)
    kind = next(kind for kind in (str, int, float) if kind in types)
    try: return kind(text)
    except ValueError:
        raise InputError(f"{place}: {key} = {text} is not a {'whole ' if kind is int else ''}number.") from None


def given_value(
    key: str,   # a field of `Run`
    value: Any, # of Python's; text is read as a settings file's
    place: str, # for the message
) -> Any:
    "The value of a setting. Raises `InputError` for one that can't be"
    if isinstance(value, os.PathLike): value = os.fspath(value)
    if isinstance(value, str): return read_value(key, value, place)
    if value is None: return None
    kinds = _TYPES[key]
    if bool in kinds and isinstance(value, bool): return value
    if float in kinds and is_number(value): return float(value)
    if int in kinds and is_whole(value): return int(value)
    raise InputError(f"{place}: {key_name(key)} = {clipped(repr(value))} is of another kind: write it as in a settings "
                     "file.")


def check_key(
    key: str,   # of a section
    place: str, # where it is written, for the message
    *more: str, # keys that are taken there beside the settings
) -> None:
    "Raise `InputError` for a key that is no setting"
    if key not in _TYPES: raise InputError(f"{place}: {suggest(key, [*_TYPES, *ALIASES, *more], 'key')}")


def read_sections(
    file: str | Path,
    asking: str,  # who needs it, for the message
    section: str, # and what is looked for there
) -> dict[str, dict[str, str]]:
    "The sections of a settings file, with their own keys; two names of a setting are one key. Raises `InputError`"
    file = user_path(file, '--config')
    if not file.exists():
        where = f"{file}, which is not there" if file != Path(SETTINGS_FILE) else (
            f"the current folder, and there is none in {Path.cwd()}")
        raise MissingPath(f"{asking} needs a {file.name} with a section [{section}] in {where}.")
    ini = configparser.ConfigParser(interpolation=None, default_section='')  # so that a section has its own keys only
    ini.optionxform = lambda key: ALIASES.get(key.lower(), key.lower())
    try: ini.read_string(read_text(file), source=str(file))
    except (configparser.Error, ValueError, OSError) as e:
        raise InputError(f"{file} can't be read: {' '.join(str(e).split()).rstrip('.')}.") from None
    return {name: dict(ini[name]) for name in ini.sections()}


def sweep_sections(
    sections: dict[str, dict[str, str]], # from `read_sections`
) -> dict[str, dict[str, str]]:
    "Those that stand for many runs, by the names of the sweeps. Raises `InputError` for two of a name"
    found: dict[str, dict[str, str]] = {}
    for section, keys in sections.items():
        match = _SWEEP.fullmatch(section.strip())
        if match is None: continue
        if match[1] in found: raise InputError(f"there are two sections of the sweep {match[1]}: leave one out.")
        found[match[1]] = keys
    return found


def folder_of(
    name: str, # of a section
) -> Path:
    "Where runs go that are called so. Raises `InputError` for a name that leads anywhere else"
    if Path(name).name == name != '..': return Path('runs')/name
    raise InputError(f"'{clipped(name)}' can't be the name of a folder in runs: call the section otherwise, or give "
                     "--out.")


def shared_settings(
    sections: dict[str, dict[str, str]], # from `read_sections`
) -> dict[str, str]:
    "What all runs share; an nbdev project's settings, which are in a section of the same name, are passed over"
    shared = sections.get(SHARED, {})
    return {key: text for key, text in shared.items() if key in _TYPES or _NBDEV not in shared}


def named_run(
    name: str | None,                      # the section; None: what all runs share
    file: str | Path = SETTINGS_FILE,
) -> dict[str, Any]:                       # its settings, with those of [DEFAULT]
    "The settings that a section of `settings.ini` gives. Raises `InputError` for a section, key or value that can't be"
    sections = read_sections(file, f"--run {name}", f"{name}")
    runs = [section for section in sections if section != SHARED and not _SWEEP.fullmatch(section)]
    if name is not None and not runs: raise InputError(f"{file} has no section: write one that begins with [{name}].")
    if name is not None and name not in runs: raise InputError(f"{file}: {suggest(name, runs, 'run')}")
    place = f"{file}, [{name or SHARED}]"
    texts = shared_settings(sections) | sections.get(name, {})
    for key in texts: check_key(key, place)
    values = {key: read_value(key, text, place) for key, text in texts.items()}
    return {key: value for key, value in values.items() if value is not None}


def _call(node: ast.expr) -> tuple[str, list, dict]:
    "Name and arguments of a name or a call. Raises `ValueError` for anything else"
    if isinstance(node, ast.Name): return node.id, [], {}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name): raise ValueError
    if any(keyword.arg is None for keyword in node.keywords): raise ValueError
    names = [keyword.arg for keyword in node.keywords]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice: raise InputError(f"{node.func.id} is given {twice} twice: leave one out.")
    args = [ast.literal_eval(arg) for arg in node.args]
    return node.func.id, args, {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}


# what Python's parser and `_call` raise, memory and recursion at thousands of brackets
_UNREADABLE = ValueError, TypeError, SyntaxError, MemoryError, RecursionError


def read_calls(
    text: str | None, # speedups as they are written
) -> list[tuple[str, list, dict]]: # the name and the arguments of each
    "Names and calls with constant arguments, separated by commas. Raises `InputError` for anything else"
    text, nodes = (text or '').strip(), None
    try: nodes = ast.parse(f'[{text}\n]', mode='eval').body
    except _UNREADABLE: pass
    if not isinstance(nodes, ast.List):
        raise InputError(f"--with '{text}' can't be read: write names with commas between them, "
                         "and arguments as in comb_patches,suncet(weight=1).")
    calls = []
    for node in nodes.elts:
        try: calls.append(_call(node))
        except InputError: raise
        except _UNREADABLE:
            raise InputError(f"--with: '{ast.unparse(node)}' is neither a name nor a call with constants, "
                             "like suncet(weight=1).") from None
    return calls


def _read_call(
    option: str, # that it was given to, for the message
    text: str,
    example: str,
) -> tuple[str, list, dict]:
    "The name and the arguments of one name or call. Raises `InputError` for anything else"
    text = text.strip()
    if '(' not in text: return text, [], {}  # whatever it is: who looks for it suggests the nearest name
    try: return _call(ast.parse(text, mode='eval').body)
    except InputError: raise
    except _UNREADABLE:
        raise InputError(f"{option} '{clipped(text)}' is neither a name nor a call with constants, like "
                         f"{example}.") from None


def _one_writing(text: str) -> str:
    "A name or a call as it is always written, so that spaces or digits make no other setting of it"
    try: node = ast.parse(text.strip(), mode='eval').body
    except _UNREADABLE: return text.strip()
    if isinstance(node, ast.Call) and not node.args and not node.keywords: node = node.func
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Call) else text.strip()


def _make(option: str, make: Callable, name: str, args: list, kwargs: dict) -> Any:
    "What a call of a name makes. Raises `InputError` for arguments that it does not take"
    signature = inspect.signature(make)
    parameters = [param.replace(annotation=param.empty) for param in signature.parameters.values()]
    named = [param for param in parameters if param.kind is not param.VAR_KEYWORD]
    refuses = named != parameters  # itself, and says why
    known = f"{name} takes {', '.join(map(str, named)) or 'no argument'}"
    for key in kwargs:
        if key not in signature.parameters and not refuses:
            raise InputError(f"unknown argument of {name} '{key}': {known}.")
    try: signature.bind(*args, **kwargs)
    except TypeError as e: raise InputError(f"{option}: {known}, and was given {e}.") from None
    try: return make(*args, **kwargs)
    except (TypeError, AttributeError) as e:
        raise InputError(f"{option}: {name} can't be made of these values ({e}): {known}.") from None


def parse_speedups(
    text: str | None, # names and calls in Python's writing, separated by commas; values are constants
) -> list:            # callbacks
    "The speedups that a text names, made. Raises `InputError` for a name, an argument or a value that is not taken"
    return [_make('--with', speedups().find(name), name, *given) for name, *given in read_calls(text)]


_OWN_OPTIONS = dict(setting='--setting', lr='--lr', schedule='--schedule', loss='--loss', speedups='--with')


def parse_method(
    text: str, # a name, or a call that gives fields of `Recipe` other values, constants: 'moco_v3(wd=0.05)'
    setting: str | None = None, # whose constants; None: picked by the pictures
) -> Any:      # a `Recipe`
    "The recipe that a text names. Raises `InputError` for a name, a field or a value that is not taken"
    name, args, changes = _read_call('--method', text, 'moco_v3(wd=0.05)')
    make = registry('methods').find(name)
    if args:
        raise InputError(f"--method '{clipped(text)}' gives a value without the name of its field: write it as in "
                         f"{name}(wd=0.05).")
    own = next((name for name in changes if name in _OWN_OPTIONS and changes[name] != ()), None)  # () leaves them out
    if own:
        raise InputError(f"--method '{clipped(text)}' has {own}, for which there is an option: give "
                         f"{_OWN_OPTIONS[own]} in its place.")
    return make(setting, **changes)


def parse_loss(
    text: str | None, # a name, or a call with constants: 'dcl(0.1)'
) -> Any:             # a loss, its name if it has no arguments, or None
    "The loss that a text names. Raises `InputError` for a name, an argument or a value that is not taken"
    if text is None: return None
    name, args, kwargs = _read_call('--loss', text, 'dcl(0.1)')
    make = registry('losses').find(name)
    return _make('--loss', make, name, args, kwargs) if args or kwargs else name


def number_or_name(text: str | float | None) -> float | str | None:
    "What --labels and --valid take: a share, or a name"
    try: return float(text)
    except (TypeError, ValueError): return text


def read_range(
    text: str | None, # what --range takes
) -> tuple[float, float] | None:
    "Two values with a comma or a space between them. Raises `InputError` for anything else"
    if text is None: return None
    try: low, high = map(float, text.replace(',', ' ').split())
    except ValueError: low, high = 0., 0.
    if not math.isfinite(high - low) or low >= high:
        raise InputError(f"--range '{clipped(text)}' should be two numbers, the values that become 0 and 1, like "
                         "0,4095.")
    return low, high


def resolve(
    given: dict[str, Any],   # the command's options; None where not given
    run: str | None = None,  # a section of `settings.ini`
    begun: dict[str, Any] | None = None, # the settings of the run that goes on
    file: str | Path = SETTINGS_FILE,
) -> Run:
    "The settings of a run from all of their sources. Raises `InputError` for a number that is out of range"
    config = gathered(given, run, begun, file)
    if reason := clash(config): raise InputError(reason)
    return config


def gathered(
    given: dict[str, Any],   # as `resolve` takes them
    run: str | None = None,
    begun: dict[str, Any] | None = None,
    file: str | Path = SETTINGS_FILE,
) -> Run:
    "The same, where each is right by itself, and they may not go together"
    chosen = {} if run is None else named_run(run, file)
    chosen |= {key: value for key, value in given.items() if value is not None}
    suited = suited_to(chosen)
    if chosen.get('weights') and 'arch' not in {**(begun or {}), **chosen}:
        chosen['arch'] = weights_architecture(chosen['weights'])
    config = Run(**{**suited, **(begun or {}), **chosen})
    config = replace(config, valid=number_or_name(config.valid), method=_one_writing(config.method),
                     loss=config.loss and _one_writing(config.loss))
    read_calls(config.speedups)
    read_range(config.value_range)
    _check_numbers(config)
    _check_paths(config)
    return config


def suited_to(
    chosen: dict[str, Any], # settings that were given
) -> dict[str, Any]:
    "What suits their pictures better than the defaults"
    return DIGITS if chosen.get('data', Run.data) == 'digits' else {}


def weights_architecture(
    weights: str, # what --weights names
) -> str:
    "The architecture that weights say they are of. Raises `InputError` where they say none, or it is no name"
    from ..artefact import looking_for
    from ..export import needs_module
    from ..modules import MODULE
    from ..weights import architecture_of
    with looking_for(weights): arch = architecture_of(weights)
    if arch is None:
        raise InputError(f"--weights {weights} do not say of which architecture they are: give --arch.")
    if not needs_module(arch): return arch
    raise InputError(f"--weights {weights} are of a {arch.removeprefix(MODULE)}, which no name makes: train it in "
                     "Python, by contrastive_learner(dls, arch=module).")


def _check_numbers(config: Run) -> None:
    for key, least in _LEAST.items():
        value = getattr(config, key)
        if value is None: continue
        most = _MOST_OF.get(key, _MOST)
        whole(least=least, most=most if value > most else None, **{option(key): value})
    if config.lr is not None: number(above=0, most=1e30, **{'--lr': config.lr})  # 32 bits hold no more than 3e38
    if not isinstance(config.valid, str): number(least=0, below=1, **{'--valid': config.valid})


def clash(
    config: Run, # from `gathered`
) -> str:
    "Why settings can't go together, of which each may be right by itself; '' if they can"
    if config.batch_size is not None and config.batch_size % config.processes:
        return (f"--batch-size {config.batch_size} can't be divided among {config.processes} processes: "
                f"give a multiple of {config.processes}")
    if config.device is not None and config.processes > 1:
        return (f"--device {config.device} is for one process, and --processes {config.processes} take a GPU each, or "
                "share the CPU: leave one of the two out")
    if config.head_epochs and not config.weights:
        return (f"--head-epochs {config.head_epochs} keeps the weights of an encoder while the head learns, "
                "and there are none: give --weights, or leave it out")
    if (config.head_epochs or 0) >= config.epochs:
        return (f"--head-epochs {config.head_epochs} leaves none of --epochs {config.epochs} to the encoder: "
                "give fewer, or train for more")
    return ''


def _check_paths(config: Run) -> None:
    paths = dict(data=config.data or None, labels=config.labels, valid=config.valid, cache_folder=config.cache_folder)
    for key, path in paths.items():
        if isinstance(path, str): user_path(path, option(key))


def check_moments(
    text: str, # what --checkpoint takes
) -> None:
    "Raise `InputError` for what says no moment"
    from ..checkpoint import moments
    if text == 'none': return
    try: moments(text)
    except InputError as e:
        raise InputError(str(e).replace('every=', '--checkpoint ').replace(' of Checkpoint', '')) from None


def _check_weights(config: Run, read: bool) -> None:
    from ..artefact import looking_for
    from ..models import pretrained_config
    from ..weights import timm_source
    with looking_for(config.arch): pretrained_config(config.arch)
    if config.weights is not None and read: timm_source(config.weights)


def check_names(
    config: Run, # the settings
    read: bool = True, # whether --weights will be read
) -> None:
    "Raise `InputError` for a name that nothing has: before the pictures are read, which may take long"
    from ..logs import check_logs
    parse_method(config.method, config.setting)
    parse_loss(config.loss)
    one_of(architectures(), architecture=config.arch.split('.')[0])
    one_of(registry('precisions'), precision=config.precision)
    if config.schedule is not None: one_of(registry('schedules'), schedule=config.schedule)
    check_moments(config.checkpoint)
    check_logs(config.log)
    _check_weights(config, read)
    parse_speedups(config.speedups)
