"""What config.json says of a run: every setting as it was resolved, and where and by what it takes place."""
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from .. import __version__
from .registries import speedups
from .resume import start_of
from .settings import Run

# fields of a recipe that are no value, or stand elsewhere in the record
_NOT_RECORDED = ('about', 'settings', 'encoders', 'changes', 'loss', 'target', 'memory', 'multi_crop', 'speedups',
                 'with_labels')


def record_of(
    config: Run, # the settings
    learn,       # the `ContrastiveLearner` that was made of them
) -> dict[str, Any]:
    "What config.json says before training"
    dls, recipe = learn.dls, learn.recipe
    train = dls.train.data
    return dict(
        asdict(config), size=dls.size, batch_size=dls.train.bs, lr=config.lr or recipe.peak_lr(dls.train.bs),
        small_input=learn.small_input, setting=recipe.setting, precision=learn.precision,
        loss=str(learn.loss_func.loss), **_axes(learn),
        recipe={key: value for key, value in asdict(recipe).items() if key not in _NOT_RECORDED},
        n_train=len(train), n_labeled=int(train.labeled.sum()), n_valid=len(dls.valid.data), classes=dls.classes,
        start=start_of(learn), judged_within=dls.within, channels=dls.channels, value_range=dls.value_range,
        **surroundings(dls.device))


def _axes(learn) -> dict[str, Any]:
    "The callbacks that are a value of an axis, as they are written"
    from ..multi_crop import MultiCrop
    from ..targets import Memory, Target
    def written(kind): return [str(cb) for cb in learn.cbs if isinstance(cb, kind)]
    axes = dict(target=Target, memory=Memory, multi_crop=MultiCrop)
    return dict({name: next(iter(written(kind)), None) for name, kind in axes.items()},
                speedups=written(tuple(speedups().values())))


def surroundings(
    device, # torch's, or its name
) -> dict[str, Any]:
    "Where and by what a run was started"
    from ..distributed import world_size
    versions = {name: version(name) for name in ('torch', 'torchvision', 'fastai', 'timm', 'kornia')}
    return dict(processes=world_size(), versions=dict(fastcontrast=__version__, **versions),
                python=platform.python_version(), device=device_words(device), commit=_commit(), command=sys.argv)


def device_words(
    device, # torch's, or its name
) -> str:
    "The device in words"
    import torch
    device = torch.device(device)
    if device.type == 'cuda': return torch.cuda.get_device_name(device)
    return f'{device.type}, {os.cpu_count()} cores, {platform.machine()}'


def _commit() -> str | None:
    "The commit of the folder that the run was started in, if it is a checkout"
    try: got = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired): return None
    return got.stdout.strip() if got.returncode == 0 else None
