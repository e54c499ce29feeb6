"""torchvision's Faster R-CNN on top of an encoder.

Docs: https://fastcontrast.github.io/fastcontrast/detect.html.md"""
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from ..core import LARGEST_SIDE, InputError, MissingPath, clipped, suggest, whole
from ..artefact import find_encoder
from ..export import encoder_info, load_encoder
from ..files import user_path
from ..models import (SOURCES, Stage, architecture, channels_of, described, encoder_stages, evaluating, make_encoder,
                      mean_and_std, pretrained_config, side_of)
from ..modules import as_encoder, bare
from .boxes import LONGEST

PAPERS = 320   # pixels of the short side from which on the pyramid is that of the papers: less does for small pictures
POOLED = 7     # cells along a side of what the pyramid shows of a box
MOST_CELLS = 8 # along a side of an anchor, at most
FEW = dict(    # of Faster R-CNN, for small pictures
    box_batch_size_per_image=64, rpn_batch_size_per_image=128, rpn_pre_nms_top_n_train=1000,
    rpn_pre_nms_top_n_test=500, rpn_post_nms_top_n_train=500, rpn_post_nms_top_n_test=200)


class Pyramid(nn.Module):
    """Maps of an encoder's stages, joined from the coarsest on: pictures `[N, C, H, W]` to `{level: [N, width, h, w]}`

    Lin et al. 2017 (arXiv:1612.03144), with BatchNorm on what the pyramid adds, as MoCo has it. The encoder's own
    BatchNorm is trained along: with its statistics as they were, an encoder that was never trained would have none,
    and one of other pictures the wrong ones."""
    def __init__(self,
        encoder: nn.Module, # with stages, see `encoder_stages`; it is trained along
        width: int = 256,   # channels of all levels
        finest: int = 4,    # pixels to a cell of the first level, where the encoder has a coarser stage twice over
    ):
        super().__init__()
        self.encoder, self.stages = encoder, _pyramid_stages(encoder, finest)
        self.fpn = FeaturePyramidNetwork([stage.channels for stage in self.stages], width, LastLevelMaxPool(),
                                         norm_layer=nn.BatchNorm2d)
        self.out_channels = width # where torchvision looks for it

    @property
    def strides(self) -> list[int]:
        "Pixels to a cell, by level; the last is every second cell of the one before"
        return [*(stage.stride for stage in self.stages), 2 * self.stages[-1].stride]

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        "What the encoder's stages give, `[N, C, h, w]` by level"
        found: dict[str, Tensor] = {}
        def tap(stage):
            def hook(module, args, out): found[stage.level] = stage.grid(out).movedim(-1, 1)
            return hook
        hooks = [self.encoder.get_submodule(stage.module).register_forward_hook(tap(stage)) for stage in self.stages]
        try: self.encoder(x)
        finally:
            for hook in hooks: hook.remove()
        return {stage.level: found[stage.level] for stage in self.stages}

    def forward(self, x: Tensor) -> dict[str, Tensor]: # float32: boxes need it, whatever maps are computed in
        return {level: out.float() for level, out in self.fpn(self.maps(x)).items()}


def _pyramid_stages(encoder: nn.Module, finest: int) -> list[Stage]:
    "The last stage of each stride. Raises `InputError` for an encoder that makes no pyramid"
    by_stride = {stage.stride: stage for stage in encoder_stages(encoder).values()}
    coarsest = max(by_stride, default=0)
    strides = sorted(stride for stride in by_stride if stride >= min(finest, coarsest // 4))
    name = architecture(encoder)
    if len(strides) < 2:
        cells = f"one size alone ({coarsest} pixels to a cell)" if coarsest else "no stage"
        raise InputError(f"a detector needs maps of several sizes, and the encoder '{name}' has {cells}: give one with "
                         "stages, like a ResNet.")
    powers = [strides[0] * 2**i for i in range(len(strides))]
    if strides != powers or strides[0] & (strides[0] - 1):
        raise InputError(f"a detector needs stages of which each has half as many cells along a side as the one "
                         f"before, and those of the encoder '{name}' have {', '.join(map(str, strides))} pixels to a "
                         "cell: give another.")
    return [by_stride[stride] for stride in strides]


def detector(
    encoder: nn.Module | str | Path, # a module, of which a copy is taken; the folder of a run; a file; timm's name
    classes: Sequence[str],   # names of what is to be found
    size: int = 224,          # side that the short side of a picture is brought to, in pixels
    pretrained: bool = True,  # with the encoder's weights; else with random ones, of a file or of timm's
    width: int | None = None, # channels of the pyramid; None: 256, as in the papers, or 128 where `size` is up to 320
    finest: int | None = None, # pixels to a cell of its first level; None: 4 or 8, likewise
    seed: int = 0,            # of what is not pretrained
    **settings: Any,          # of torchvision's `FasterRCNN`
) -> FasterRCNN:              # in training mode, on the CPU; `classes` has the names
    """Faster R-CNN (Ren et al. 2015) with a feature pyramid over the encoder's stages

    In training it takes pictures and what is in them, and gives losses; in evaluation it takes pictures, float32
    `[C, H, W]` in [0, 1] of any shape, and gives boxes, labels (from 1 on) and scores. Mean and standard deviation are
    the encoder's. Raises `InputError` for what is no encoder, and for one without stages of several sizes, like a
    plain ViT."""
    whole(most=LARGEST_SIDE, size=size)
    whole(optional=True, width=width, finest=finest)
    whole(least=0, seed=seed)
    names = list(classes)
    if isinstance(classes, str) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"classes={clipped(repr(classes), 60)} are no names: give a list like ['cat', 'dog'].")
    known = {*inspect.signature(FasterRCNN).parameters, *inspect.signature(GeneralizedRCNNTransform).parameters}
    for name in settings:
        if name not in known or name == 'kwargs': raise InputError(suggest(name, known, "setting of FasterRCNN"))
    small = size <= PAPERS
    width, finest = width or (128 if small else 256), finest or (8 if small else 4)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = encoder_of(encoder, pretrained)
        mean, std = _statistics(body)
        pyramid = Pyramid(body, width, finest)
        strides = pyramid.strides
        if size < 2 * strides[-2]:
            raise InputError(f"size={size} is too small for a detector: the coarsest maps of the encoder "
                             f"'{architecture(body)}' have {strides[-2]} pixels to a cell, so give {2 * strides[-2]} "
                             "or more.")
        _try_out(pyramid, len(mean))
        levels = [stage.level for stage in pyramid.stages]
        cells = min(MOST_CELLS, max(1, round(size / strides[-1])))
        anchors = AnchorGenerator([(cells * stride,) for stride in strides], [(0.5, 1., 2.)] * len(strides))
        given = dict(
            rpn_anchor_generator=anchors, box_roi_pool=MultiScaleRoIAlign(levels, POOLED, sampling_ratio=2),
            box_head=TwoMLPHead(width * POOLED**2, 4 * width),
            box_predictor=FastRCNNPredictor(4 * width, 1 + len(names)),
            min_size=size, max_size=LONGEST * size, image_mean=mean, image_std=std,
            size_divisible=max(32, strides[-2]))
        try: model = FasterRCNN(pyramid, **given | (FEW if small else {}) | settings)
        except (TypeError, ValueError) as e:
            raise InputError(f"torchvision's FasterRCNN does not take these settings ({clipped(e, 120)}): give "
                             "others.") from None
    for head in (model.rpn.head, model.roi_heads.box_predictor): head.register_forward_hook(_in_float32)
    model.classes = names
    return model.train()


def encoder_of(
    source: nn.Module | str | Path, # a module; the folder of a run; an exported file; a name of timm's
    pretrained: bool = True,        # with its weights; else with random ones
) -> nn.Module: # one of its own, on the CPU
    "The encoder that is meant. Raises `InputError` for what is none"
    if isinstance(source, nn.Module):
        if not pretrained: raise InputError("pretrained=False is for an encoder's file or name: of a module, give one "
                                            "that was not trained.")
        module = bare(source)
        known = described(module).get('input_size') or (64,)
        encoder, _ = as_encoder(module, side_of(module, known[-1]), channels_of(module))
        return encoder.requires_grad_()  # a classifier may have had it stand still
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"{clipped(repr(source), 60)} is no encoder: give a module, the folder of a run, a file, or a "
                         "name of timm's.")
    path = user_path(source, 'encoder')
    if path.exists(): return _of_file(find_encoder(path), pretrained)
    name = str(source)
    if (os.sep in name or path.suffix == '.safetensors') and not name.startswith(SOURCES):
        raise MissingPath(f"no encoder at {path}: give the folder of a run that has one, a file, or a name of timm's.")
    # made for a side, if only for its usual one, a Swin takes any other too (see `make_encoder`)
    known = pretrained_config(name).get('input_size') or (None,)
    return make_encoder(name, pretrained=pretrained, size=known[-1])


def _of_file(path: Path, pretrained: bool) -> nn.Module:
    if pretrained: return load_encoder(path)
    info = encoder_info(path)
    encoder = make_encoder(info['arch'], info['small_input'], in_chans=info['in_chans'], size=info['size'])
    encoder.pretrained_cfg.update(mean=tuple(info['mean']), std=tuple(info['std']),
                                  input_size=(info['in_chans'], info['size'], info['size']))
    return encoder


def _statistics(encoder: nn.Module) -> tuple[list[float], list[float]]:
    "Mean and standard deviation of its pictures. Raises `InputError` unless they are in colour or grey"
    channels = channels_of(encoder)
    if channels in (1, 3): return mean_and_std(encoder, channels)
    raise InputError(f"the encoder '{architecture(encoder)}' is for pictures of {channels} channels, and pictures with "
                     "boxes are in colour or grey: give another.")


def _try_out(pyramid: Pyramid, channels: int) -> None:
    "Raise `InputError` for an encoder that takes no pictures but squares, or makes other maps than it says"
    stride = pyramid.stages[-1].stride
    height, width = 2 * stride, 4 * stride
    name = architecture(pyramid.encoder)
    try:
        with evaluating(pyramid): maps = pyramid.maps(torch.zeros(1, channels, height, width))
    except Exception as e:  # other people's modules may raise anything
        raise InputError(f"the encoder '{name}' can't take pictures of {width} x {height} pixels ({clipped(e, 120)}), "
                         "and those with boxes have any shape: give another.") from None
    for stage in pyramid.stages:
        shape = tuple(maps[stage.level].shape[1:])
        wanted = stage.channels, height // stage.stride, width // stage.stride
        if shape == wanted: continue
        raise InputError(f"stage '{stage.module}' of the encoder '{name}' makes maps {list(shape)} of pictures of "
                         f"{width} x {height} pixels where {list(wanted)} are expected: give another.")


def _in_float32(module: nn.Module, args: tuple, out: Any) -> tuple:
    "A forward hook: scores and boxes, or lists of them, in float32, since bfloat16 has no room for a box's pixels"
    return tuple([t.float() for t in part] if isinstance(part, list) else part.float() for part in out)
