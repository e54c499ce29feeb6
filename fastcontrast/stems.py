"""The stem for small pictures: timm's ResNets and ViTs with it are architectures of timm, as `resnet18_small`.

Docs: https://fastcontrast.github.io/fastcontrast/models.html.md"""
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, model_entrypoint, register_model
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from .core import InputError

__all__ = ['PATCH', 'SUFFIX', 'SmallStem', 'has_large_patches', 'has_large_stem', 'is_mark', 'marked', 'plain_name',
           'small_name', 'small_stem']

SUFFIX = '_small' # of the names of architectures with the stem for small pictures
PATCH = 4         # pixels, the side of a ViT's patches with it


class SmallStem(nn.Identity):
    """In place of a ResNet's max-pooling, where the stem is for small pictures

    Its buffer, which is 1, has no other use than its name in the state dict: of deep stems all weights have the names
    and shapes of the usual one, and a strict load from one into the other is refused for this name alone."""
    def __init__(self):
        super().__init__()
        self.register_buffer('small_stem', torch.ones((), dtype=torch.long))


def is_mark(
    name: str, # of a tensor in a state dict
) -> bool:
    "Whether a tensor only says that the stem is for small pictures"
    return name.split('.')[-1] == 'small_stem'


def marked(
    module: nn.Module,         # an encoder, or what holds some
    state: Mapping[str, Tensor], # its state dict
) -> dict[str, Tensor]:
    """The state dict with the marks of stems for small pictures, which earlier versions did not write

    For state dicts that are known to be of such stems: from a run that goes on, or a file that says so."""
    stems = {name: part for name, part in module.named_modules() if isinstance(part, SmallStem)}
    marks = {f'{name}.small_stem': torch.ones_like(stem.small_stem) for name, stem in stems.items()}
    return {name: mark for name, mark in marks.items() if name not in state} | dict(state)


def has_large_stem(
    encoder: nn.Module, # a timm model
) -> bool:
    "Whether `small_stem` can be applied to it as a ResNet: one of timm whose pooling has no weights"
    return isinstance(encoder, ResNet) and isinstance(encoder.maxpool, nn.MaxPool2d)


def has_large_patches(
    encoder: nn.Module, # a timm model
) -> bool:
    "Whether `small_stem` can be applied to it as a ViT: one of `VITS` whose patches are larger than `PATCH` pixels"
    embed, config = getattr(encoder, 'patch_embed', None), getattr(encoder, 'pretrained_cfg', None) or {}
    if not isinstance(encoder, VisionTransformer) or config.get('architecture') not in VITS: return False
    return type(embed) is PatchEmbed and min(embed.patch_size) > PATCH  # others have more weights for patches


def small_stem(
    encoder: nn.Module, # a timm ResNet or ViT, not yet trained
) -> None:
    """Give an encoder the stem for small pictures, in place; once is enough

    A ResNet's is a 3x3 convolution of stride 1 without max-pooling, a ViT's has patches of `PATCH` pixels. Raises
    `InputError` for others."""
    embed = getattr(encoder, 'patch_embed', None)
    if isinstance(getattr(encoder, 'maxpool', None), SmallStem): return
    if isinstance(encoder, VisionTransformer) and getattr(embed, 'patch_size', None) == (PATCH, PATCH): return
    config = getattr(encoder, 'pretrained_cfg', {})
    name = config.get('architecture', type(encoder).__name__)
    if has_large_stem(encoder): _small_convolution(encoder)
    elif has_large_patches(encoder): _small_patches(encoder)
    else:
        raise InputError("small_input is for ResNets and ViTs of timm's, whose stem it replaces, and "
                         f"'{name}' has no such stem: leave it out or take a resnet or vit.")
    if config: config['architecture'] = small_name(name)  # in place: timm keeps the same dict as `default_cfg`


def _small_convolution(encoder: ResNet) -> None:
    "A ResNet's first convolution as one of stride 1, and no pooling"
    if isinstance(encoder.conv1, nn.Conv2d):
        old = encoder.conv1
        encoder.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=old.bias is not None,
                                  device=old.weight.device, dtype=old.weight.dtype)
        nn.init.kaiming_normal_(encoder.conv1.weight, mode='fan_out', nonlinearity='relu')  # timm's rule for ResNets
    else:
        for m in encoder.conv1.modules():
            if isinstance(m, nn.Conv2d): m.stride = (1, 1)
    stem, pool = (info['reduction'] for info in encoder.feature_info[:2])
    encoder.maxpool = SmallStem().to(next(encoder.parameters()).device)
    encoder.feature_info = [{**info, 'reduction': info['reduction'] // (pool if i else stem)}
                            for i, info in enumerate(encoder.feature_info)]


def _small_patches(encoder: VisionTransformer) -> None:
    "A ViT's patches of `PATCH` pixels, with weights and places drawn as timm draws them"
    embed, old = encoder.patch_embed, encoder.patch_embed.proj
    embed.proj = nn.Conv2d(old.in_channels, old.out_channels, PATCH, PATCH, bias=old.bias is not None,
                           device=old.weight.device, dtype=old.weight.dtype)
    embed.patch_size = PATCH, PATCH
    embed.set_input_size(patch_size=PATCH)  # counts them anew
    if encoder.pos_embed is not None:
        count = embed.num_patches + (0 if encoder.no_embed_class else encoder.num_prefix_tokens)
        encoder.pos_embed = nn.Parameter(encoder.pos_embed.new_empty(1, count, encoder.embed_dim))
        trunc_normal_(encoder.pos_embed, std=0.02)
    encoder.feature_info = [{**info, 'reduction': PATCH} for info in encoder.feature_info]

# --- as architectures of timm

# those whose pooling has no weights, nor is smoothed
_RESNETS = timm.list_models(module=['resnet', 'res2net', 'resnest', 'sknet'],
                            exclude_filters=['resnetblur*', '*resnetaa*', '*resnextaa*', 'resnetrs*'])
# those whose stem is a layer of patches, and whose places are those of a ViT
VITS = [name for module in ('vision_transformer', 'deit')
        for name in timm.list_models(['vit_*patch*', 'test_vit*', 'deit*'], module=module)]
SIDE = 32 # pixels that timm is told their pictures have


def plain_name(
    arch: str,                        # timm's name, or one of ours
    small_input: bool | None = False, # whether the stem is for small pictures, where the name does not say it
) -> tuple[str, bool | None]:
    "An architecture and its stem by themselves: 'resnet18_small' is ('resnet18', True)"
    name = arch.removesuffix(SUFFIX)
    return (name, True) if name != arch and name in _SMALL else (arch, small_input)


def small_name(
    arch: str, # timm's name, with or without a tag
) -> str:
    "What timm calls an architecture with the stem for small pictures"
    return f"{arch.partition('.')[0]}{SUFFIX}"


def _make(name: str, **kwargs: Any) -> nn.Module:
    "timm's architecture with the other stem, its weights drawn"
    model = model_entrypoint(name)(pretrained=False, **kwargs)
    small_stem(model)
    return model


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    "What timm calls for such an architecture"
    # as timm makes a ViT: maps of its blocks, and position embeddings resampled for another side
    more = dict(feature_cfg=dict(out_indices=3, feature_cls='getter'),
                pretrained_filter_fn=checkpoint_filter_fn) if name in VITS else {}
    def make(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(partial(_make, name), small_name(name), pretrained, **more, **kwargs)
    make.__name__ = make.__qualname__ = small_name(name)
    make.__doc__ = f"timm's {name} with the stem for small pictures"
    return make


def _config(name: str) -> Any:
    "What timm knows of an architecture, without its weights: those are for the other stem"
    known = timm.get_pretrained_cfg(name)
    pool = None if known.pool_size is None else tuple(4 * side * SIDE // known.input_size[-1]
                                                      for side in known.pool_size)
    nothing = dict.fromkeys(('url', 'file', 'hf_hub_id', 'hf_hub_filename', 'source', 'architecture', 'tag',
                             'test_input_size', 'test_crop_pct', 'test_pool_size', 'license', 'origin_url',
                             'paper_ids', 'paper_name', 'notes'))
    return replace(known, **nothing, input_size=(3, SIDE, SIDE), pool_size=pool)


_SMALL = [*_RESNETS, *VITS]
default_cfgs = generate_default_cfgs({small_name(name): _config(name) for name in _SMALL}) # timm looks for this
for _name in _SMALL: globals()[small_name(_name)] = register_model(_entrypoint(_name))
