"""Encoders against timm's own, their stages against what comes out of them, and the heads and the model around them."""
from functools import partial
from itertools import product

import pytest
import timm
import torch
from fastai.torch_core import apply, to_detach, to_float
from helpers.refusals import brief
from timm.models.cait import Cait
from timm.models.convit import ConVit
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.xcit import Xcit
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.models import (ContrastiveModel, Embedding, Head, Route, architecture, channels_of, correct_prefixes,
                                 drop_paths, encoder_stages, feature_dim, find_stage, fix_positions, flop_counter,
                                 level_flops, made_for, make_encoder, mlp, patch_side, pretrained_config,
                                 resample_positions, side_of)

ARCHS = {  # features, and the stages' modules, channels and strides, as the papers' tables give them
    'resnet18': (512, dict(act1=(64, 2), layer1=(64, 4), layer2=(128, 8), layer3=(256, 16), layer4=(512, 32))),
    'resnet50': (2048, dict(act1=(64, 2), layer1=(256, 4), layer2=(512, 8), layer3=(1024, 16), layer4=(2048, 32))),
    'convnext_atto': (320, {f'stages.{i}': (40 * 2**i, 4 * 2**i) for i in range(4)}),
    'vit_tiny_patch16_224': (192, {f'blocks.{i}': (192, 16) for i in range(12)}),
    'efficientnet_b0': (1280, {'blocks.0': (16, 2), 'blocks.1': (24, 4), 'blocks.2': (40, 8), 'blocks.4': (112, 16),
                               'blocks.6': (320, 32)}),
    'regnety_002': (368, dict(stem=(32, 2), s1=(24, 4), s2=(56, 8), s3=(152, 16), s4=(368, 32))),
}
SMALL = {'resnet18': dict(act1=(64, 1), layer1=(64, 1), layer2=(128, 2), layer3=(256, 4), layer4=(512, 8)),
         'resnet10t': dict(act1=(64, 1), layer1=(64, 1), layer2=(128, 2), layer3=(256, 4), layer4=(512, 8))}

SEED = 3


@torch.no_grad()
def outputs(encoder, size: int, names) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    "What the encoder and its submodules of these names give for a picture"
    seen, hooks = {}, []
    for name in names:
        def keep(module, args, out, name=name): seen[name] = out
        hooks.append(encoder.get_submodule(name).register_forward_hook(keep))
    h = encoder.eval()(torch.randn(1, 3, size, size))
    for hook in hooks: hook.remove()
    return h, seen


def check_stages(encoder, size: int, expected: dict[str, tuple[int, int]]) -> torch.Tensor:
    "The stages are the expected ones, and their modules give what they say; the encoder's features"
    stages = encoder_stages(encoder)
    assert {name: (s.channels, s.stride) for name, s in stages.items()} == expected
    assert list(stages) == list(expected) and all(s.module == name for name, s in stages.items())
    h, seen = outputs(encoder, size, stages)
    assert list(seen) == list(stages)  # the order of the forward pass
    for name, s in stages.items():
        out, cells = seen[name], size // s.stride
        if out.ndim == 4: assert list(out.shape) == [1, s.channels, cells, cells], name
        else: assert list(out.shape) == [1, cells**2 + encoder.num_prefix_tokens, s.channels], name
    return h


# --- encoders

@pytest.mark.parametrize('arch', ARCHS)
def test_encoder_is_timms(arch):
    dim, stages = ARCHS[arch]
    encoder = make_encoder(arch, size=96)
    fixed = arch.startswith('vit')
    timms = timm.create_model(arch, num_classes=0, **({'img_size': 96} if fixed else {}))
    assert {k: v.shape for k, v in encoder.state_dict().items()} == {k: v.shape for k, v in timms.state_dict().items()}
    timms.load_state_dict(encoder.state_dict(), strict=True)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        h = encoder.eval()(x)
        torch.testing.assert_close(h, timms.eval()(x), rtol=0, atol=0)
    assert h.shape == (2, dim) and feature_dim(encoder, 96) == dim
    assert check_stages(encoder, 96, stages).shape == (1, dim)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())


@pytest.mark.parametrize('arch', SMALL)
def test_small_input_keeps_the_resolution(arch):
    encoder = make_encoder(arch, small_input=True)
    assert check_stages(encoder, 32, SMALL[arch]).shape == (1, 512)
    plain = timm.create_model(arch, num_classes=0).state_dict()
    differ = {k for k, v in plain.items() if v.shape != encoder.state_dict()[k].shape}
    assert encoder.state_dict().keys() == plain.keys() | {'maxpool.small_stem'}
    assert differ == ({'conv1.weight'} if arch == 'resnet18' else set())
    if arch == 'resnet18': assert encoder.conv1.weight.shape == (64, 3, 3, 3) and encoder.conv1.bias is None


def test_small_stem_of_one_channel_starts_like_timms_convolutions():
    conv = make_encoder('resnet18', small_input=True, in_chans=1).conv1
    assert conv.weight.shape == (64, 1, 3, 3)
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.15)  # fan-out


def test_in_chans():
    encoder = make_encoder('resnet10t', in_chans=1)
    assert feature_dim(encoder, 32, in_chans=1) == 512
    assert 'size=32' in brief(feature_dim, encoder, 32)
    assert '-1 channels' in brief(make_encoder, 'resnet10t', in_chans=-1)


def test_a_former_name_of_a_model():
    assert pretrained_config('vit_base_patch16_224_in21k') == pretrained_config('vit_base_patch16_224.augreg_in21k')


@pytest.mark.parametrize('name, channels', [('test_resnet', 1), ('test_resnet', 5), ('test_vit', 4), ('tresnet_m', 3)])
def test_channels_of_timms_encoders(name, channels):
    "The first convolution of a TResNet has sixteen times as many: pixels are channels there"
    with torch.device('meta'): encoder = timm.create_model(name, in_chans=channels, num_classes=0)
    assert channels_of(encoder) == channels


def test_channels_of_modules_that_say_nothing():
    assert channels_of(nn.Sequential(nn.Sequential(nn.Conv2d(5, 2, 3)), nn.Conv2d(2, 7, 3))) == 5
    assert channels_of(nn.Conv2d(6, 2, 3)) == 6
    assert channels_of(nn.Linear(2, 2)) == 3 and channels_of(nn.Linear(2, 2), 4) == 4


def test_wrong_encoders_are_refused_in_a_sentence():
    assert 'resnet18' in brief(make_encoder, 'resnet_18')
    assert 'convnext_atto' in brief(make_encoder, 'convnext_atto', small_input=True, size=32)
    assert 'regnety_002' in brief(make_encoder, 'regnety_002', small_input=True)
    assert 'pretrained' in brief(make_encoder, 'resnet18', small_input=True, pretrained=True)
    assert 'size=16' in brief(feature_dim, make_encoder('convnext_atto'), 16)
    assert 'size=90' in brief(feature_dim, make_encoder('vit_tiny_patch16_224', size=96), 90)


def test_feature_dim_leaves_the_encoder_as_it_was():
    encoder = make_encoder('resnet10t').train()
    encoder.layer1.eval()
    modes = [m.training for m in encoder.modules()]
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert feature_dim(encoder, 32) == 512
    encoder.conv1[0].stride = (1, 1)
    brief(feature_dim, encoder, 32, in_chans=5)  # after an error as well
    assert [m.training for m in encoder.modules()] == modes and len(set(modes)) == 2
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())


def test_feature_dim_refuses_maps():
    unpooled = make_encoder('resnet10t')
    unpooled.global_pool = nn.Identity()
    assert '(1, 512, 1, 1)' in brief(feature_dim, unpooled, 32)


def test_no_stages_where_timm_describes_none(): assert encoder_stages(nn.Linear(3, 3)) == {}


def test_stages_by_name_level_and_place():
    encoder = make_encoder('convnext_atto')
    stages = encoder_stages(encoder)
    assert [find_stage(encoder, i).module for i in range(4)] == list(stages)
    assert find_stage(encoder, 'stages.1') == find_stage(encoder, 'stages_1') == find_stage(encoder, 1)
    for other in (4, -1, True, 1.0, 'stages', None):
        text = brief(find_stage, encoder, other)
        assert f'no stage {other!r}' in text and "3 'stages.3'" in text


@pytest.mark.parametrize('arch,size,side', [('vit_tiny_patch16_224', 96, 16), ('swin_tiny_patch4_window7_224', 224, 4),
                                           ('resnet10t', 32, None), ('convnext_atto', 32, None)])
def test_patches(arch, size, side):
    encoder = make_encoder(arch, size=size)
    assert patch_side(encoder) == side and architecture(encoder) == arch


def test_patches_of_a_naflexvit():
    cfg = NaFlexVitCfg(patch_size=8, embed_dim=16, depth=1, num_heads=2, global_pool='avg', pos_embed_grid_size=(4, 4))
    assert patch_side(NaFlexVit(cfg, num_classes=0)) == 8


@pytest.mark.parametrize('make, prefixes', [
    (partial(Cait, embed_dim=16, num_heads=2, depth_token_only=1), [0, 0]),
    (partial(Xcit, embed_dim=16, num_heads=2, cls_attn_layers=1), [0, 0]),
    (partial(ConVit, embed_dim=4, num_heads=4, local_up_to_layer=1), [0, 1]),
], ids=['CaiT', 'XCiT', 'ConViT'])
def test_a_class_token_that_joins_after_blocks(make, prefixes):
    "timm counts it from the first one on"
    encoder = make(img_size=32, patch_size=16, depth=2, num_classes=0)
    correct_prefixes(encoder, 32)
    assert not any(m._forward_hooks for m in encoder.modules())
    model = ContrastiveModel(encoder, Head(mlp((16, 8, 5))))
    assert [stage.prefix for stage in model.stages.values()] == prefixes
    _, seen = outputs(encoder, 32, [stage.module for stage in model.stages.values()])
    for stage, prefix in zip(model.stages.values(), prefixes):
        out = seen[stage.module]
        assert stage.grid(out).shape == (1, 4, 16)
        torch.testing.assert_close(stage.pool(out), out[:, prefix:].mean(1))


@pytest.mark.parametrize('arch', ['test_vit', 'test_vit3'])
def test_tokens_that_are_there_from_the_first_block_on(arch):
    encoder = make_encoder(arch, size=32)
    correct_prefixes(encoder, 32)
    assert {stage.prefix for stage in encoder_stages(encoder).values()} == {1}


def test_the_side_that_a_transformer_is_made_for():
    "Is not what timm describes, which is that of its weights; where training was here, that says it"
    vit = timm.create_model('test_vit3', num_classes=0, img_size=48)
    assert vit.pretrained_cfg['input_size'][-1] == 160 and made_for(vit) == side_of(vit, 160) == 48
    vit.value_range = None
    assert made_for(vit) == 48 and side_of(vit, 96) == 96
    for other in (make_encoder('test_resnet'), nn.Linear(3, 3)):
        assert made_for(other) is None and side_of(other, 7) == 7


@torch.no_grad()
def test_position_embeddings_for_another_side():
    "As the encoder resamples them in every pass, and none learns that did not"
    vit, x = make_encoder('test_vit', size=64).eval(), torch.rand(2, 3, 32, 32)
    assert fix_positions(vit)
    before = vit(x)
    assert resample_positions(vit, 32) == 64 and resample_positions(vit, 32) is None
    torch.testing.assert_close(vit(x), before)
    own, named = vit.state_dict(), make_encoder('test_vit', size=32).state_dict()
    assert {name: t.shape for name, t in own.items()} == {name: t.shape for name, t in named.items()}
    assert [name for name, p in vit.named_parameters() if not p.requires_grad] == ['pos_embed']
    others = (make_encoder('test_resnet'), timm.create_model('test_vit3', num_classes=0, img_size=64),
              make_encoder('swin_tiny_patch4_window7_224', size=64))
    for other in others: assert resample_positions(other, 32) is None


def test_encoders_that_are_not_timms():
    assert patch_side(nn.Linear(3, 3)) is None and architecture(nn.Linear(3, 3)) == 'Linear'
    assert feature_dim(nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8) == 5
    assert "encoder 'Sequential'" in brief(feature_dim, nn.Sequential(nn.Conv2d(3, 5, 3)), 8)


# --- heads

LAYERS = product([(), (6,), (6, 5)], [True, False], [None, 'affine', 'plain'])


@pytest.mark.parametrize('hidden,bn,out_bn', LAYERS)
def test_mlp_layers(hidden, bn, out_bn):
    dims = (8, *hidden, 4)
    layers = iter(mlp(dims, bn=bn, out_bn=out_bn))
    for i, (d_in, d_out) in enumerate(zip(dims, dims[1:])):
        last = i == len(hidden)
        normed = out_bn if last else bn
        linear = next(layers)
        assert type(linear) is nn.Linear and (linear.in_features, linear.out_features) == (d_in, d_out)
        assert (linear.bias is None) == bool(normed)  # a normalisation would take the bias away
        if normed:
            norm = next(layers)
            assert type(norm) is nn.BatchNorm1d and norm.num_features == d_out and norm.affine == (normed != 'plain')
        if not last: assert type(next(layers)) is nn.ReLU
    assert next(layers, None) is None


def test_mlp_refuses_other_norms_and_activations():
    assert "out_bn='layer'" in brief(mlp, (8, 4), out_bn='layer')
    assert "unknown activation 'rleu': did you mean relu" in brief(mlp, (8, 4), act='rleu')


# --- embeddings

def embedding(n: int) -> Embedding: return Embedding(*(torch.randn(2, 4, 5 - i, requires_grad=True) for i in range(n)))


CHANGES = [lambda e: apply(lambda t: t + 1, e), lambda e: to_float(apply(torch.Tensor.half, e)), to_detach]


@pytest.mark.parametrize('n', [2, 3])
@pytest.mark.parametrize('change', CHANGES)
def test_embedding_survives_fastai(n, change):
    e = embedding(n)
    out = change({'views': {'final': e}})['views']['final']
    assert type(out) is Embedding and len(out) == n
    assert all(a.shape == b.shape and a is not b for a, b in zip(out, e))
    assert out.h is out[0] and out.p is out[-1]
    if n == 2: assert out.p is out.z
    if n == 3: assert out.p is not out.z and out.z is out[1]


def test_embedding_says_its_shapes(): assert repr(embedding(2)) == 'Embedding(h=[2, 4, 5], z=[2, 4, 4])'


# --- the model

def small_model(norm: bool, predictor: bool = True, per_view: bool = False) -> ContrastiveModel:
    norms = [nn.BatchNorm2d(6)] if norm else []
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3), *norms, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = Head(mlp((6, 8, 5), bn=norm), mlp((5, 8, 5), bn=norm) if predictor else None)
    return ContrastiveModel(encoder, head, per_view=per_view).double()


def views(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 7, 3, 8, 8, dtype=torch.float64) * torch.arange(1, n + 1).view(-1, 1, 1, 1, 1)


def by_hand(model: ContrastiveModel, x: torch.Tensor) -> list[torch.Tensor]:
    "h, z, p of pictures [N, C, S, S]"
    h = model.encoder(x)
    z = model.heads.final.projector(h)
    return [h, z, z if model.heads.final.predictor is None else model.heads.final.predictor(z)]


@pytest.mark.parametrize('predictor', [True, False])
@pytest.mark.parametrize('n', [1, 2, 3])
def test_views_in_one_pass_or_each_in_its_own(n, predictor):
    x, close = views(n), torch.testing.assert_close
    model = small_model(True, predictor)
    together = model({'views': x})['views']['final']
    by_hands = by_hand(model, x.flatten(0, 1))
    for got, want in zip((together.h, together.z, together.p), by_hands): close(got.flatten(0, 1), want)
    model.per_view = True
    passes = []
    model.encoder[0].register_forward_hook(lambda m, args, out: passes.append(len(args[0])))
    apart = model({'views': x})['views']['final']
    assert passes == [7] * n
    for i in range(n):
        for got, want in zip((apart.h, apart.z, apart.p), by_hand(model, x[i])): close(got[i], want)
    assert torch.allclose(apart.z, together.z) == (n == 1)  # BatchNorm tells them apart
    assert (apart.p is apart.z) == (together.p is together.z) == (not predictor)
    assert type(apart) is type(together) is Embedding and apart.z.shape == (n, 7, 5)


def test_without_batchnorm_both_are_the_same():
    model, x = small_model(False), views()
    together = model({'views': x})['views']['final']
    model.per_view = True
    for a, b in zip(model({'views': x})['views']['final'], together): torch.testing.assert_close(a, b)


def test_every_role_is_a_pass_of_its_own():
    model, sizes = small_model(True), []
    model.encoder[0].register_forward_hook(lambda m, args, out: sizes.append(tuple(args[0].shape)))
    local = torch.randn(3, 7, 3, 5, 5, dtype=torch.float64)
    out = model({'views': views(), 'local': local})
    assert sizes == [(14, 3, 8, 8), (21, 3, 5, 5)]
    assert {role: tuple(e['final'].z.shape) for role, e in out.items()} == {'views': (2, 7, 5), 'local': (3, 7, 5)}


@pytest.mark.parametrize('per_view,joint,side,edited,passes', [
    (False, False, 8, False, 1), (True, True, 8, False, 1), (True, False, 8, False, 3), (False, False, 6, False, 2),
    (False, False, 8, True, 2)])
def test_a_rider_goes_along_where_views_are_one_pass_of_its_size(per_view, joint, side, edited, passes):
    model, sizes = small_model(True, per_view=per_view), []
    model.encoder[0].register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    x, rider = views(), torch.randn(1, 5, 3, side, side, dtype=torch.float64)
    route = Route(joint=joint, rides='labeled')
    if edited: route.edit('views', 'pooled', lambda h: h)
    out = model({'views': x, 'labeled': rider}, route)
    assert len(sizes) == passes and sum(sizes) == 19
    assert {role: tuple(e['final'].h.shape) for role, e in out.items()} == {'views': (2, 7, 6), 'labeled': (1, 5, 6)}
    if passes == 1:
        both = by_hand(model, torch.cat([x.flatten(0, 1), rider[0]]))
        for i in range(3):
            torch.testing.assert_close(out['views']['final'][i].flatten(0, 1), both[i][:14])
            torch.testing.assert_close(out['labeled']['final'][i][0], both[i][14:])
    assert list(model({'views': x}, Route(rides='labeled'))) == ['views']  # a step without the rider


@pytest.mark.parametrize('predictor', [True, False])
@pytest.mark.parametrize('rides', [None, 'labeled'])
@pytest.mark.parametrize('edited', [None, 'projector', 'predictor'])
def test_one_pass_of_the_head_for_crops_of_all_sizes(predictor, rides, edited):
    "An encoder's pass for each size; what a role has of edits is done to its own part alone"
    model = small_model(True, predictor)
    model.joint_head = True
    sizes, widths = [], []
    model.encoder[0].register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    model.heads['final'].projector[0].register_forward_hook(lambda m, args, out: widths.append(len(out)))
    roles = {'views': views(), 'local': torch.randn(3, 7, 3, 5, 5, dtype=torch.float64),
             'labeled': torch.randn(1, 4, 3, 8, 8, dtype=torch.float64)}
    route = Route(rides=rides)
    if edited: route.edit('local', edited, lambda t: t[:2] * 3)
    out = model(roles, route)
    assert sizes == ([18, 21] if rides else [14, 21, 4]) and widths == [39] and list(out) == list(roles)
    # the encoder's BatchNorm too sees those together that share a pass
    passes = [['views', 'labeled'], ['local']] if rides else [['views'], ['local'], ['labeled']]
    h = {}
    for names in passes:
        pictures = [roles[role].flatten(0, 1) for role in names]
        h |= zip(names, model.encoder(torch.cat(pictures)).split([len(x) for x in pictures]))
    head, lengths = model.heads['final'], [len(h[role]) for role in roles]
    def split(t): return [x.unflatten(0, roles[role].shape[:2]) for role, x in zip(roles, t.split(lengths))]
    def join(ts): return torch.cat([t.flatten(0, 1) for t in ts])
    def edit(ts, place): return [ts[0], ts[1][:2] * 3, ts[2]] if edited == place else ts
    z = edit(split(head.projector(torch.cat([h[role] for role in roles]))), 'projector')
    lengths = [t.shape[0] * t.shape[1] for t in z]
    p = z
    if predictor:
        p = [x.unflatten(0, t.shape[:2]) for t, x in zip(z, head.predictor(join(z)).split(lengths))]
        p = edit(p, 'predictor')
    for i, role in enumerate(roles):
        e = out[role]['final']
        torch.testing.assert_close(e.h.flatten(0, 1), h[role])
        torch.testing.assert_close(e.z, z[i])
        torch.testing.assert_close(e.p, p[i])


def test_one_pass_for_every_view_and_one_for_all_exclude_each_other():
    model = small_model(True)
    with pytest.raises(InputError, match='per_view .* joint_head'):
        ContrastiveModel(model.encoder, model.heads['final'], per_view=True, joint_head=True)


def test_stochastic_depth_of_an_encoder():
    encoder = make_encoder('test_vit', size=32)
    drop_paths(encoder, 0.25)
    theirs = timm.create_model('test_vit', num_classes=0, img_size=32, drop_path_rate=0.25)
    for ours, block in zip(encoder.blocks, theirs.blocks):
        for name in ('drop_path1', 'drop_path2'):
            rate = getattr(getattr(block, name), 'drop_prob', 0.)  # timm has nothing there where it is 0
            assert getattr(ours, name).drop_prob == pytest.approx(rate)
    assert list(encoder.state_dict()) == list(theirs.state_dict())
    x = torch.rand(4, 3, 32, 32)
    assert not torch.equal(encoder(x), encoder(x)) and torch.equal(encoder.eval()(x), encoder(x))
    resnet = make_encoder('resnet18')
    with pytest.raises(InputError, match="drop_path=0.1 .*'resnet18' has none"): drop_paths(resnet, 0.1)


@pytest.mark.parametrize('backward', [False, True])
def test_attention_on_a_cpu_is_counted(backward):
    "As its products one by one; going back, the kernel, which kept no weights, makes queries with keys once more"
    encoder = make_encoder('test_vit', size=32)
    def flops(fused):
        for block in encoder.blocks: block.attn.fused_attn = fused
        with flop_counter() as counter:
            h = encoder(torch.rand(2, 3, 32, 32))
            if backward: h.sum().backward()
        return counter.get_total_flops()
    product = 2 * 2 * 5**2 * 64  # of 2 pictures, with a class token and 4 patches of 64 numbers
    assert flops(True) == flops(False) + backward * 6 * product


def test_levels_have_the_operations_of_attention():
    model = ContrastiveModel(make_encoder('test_vit', size=32), Head(mlp((64, 8, 5))))
    model.add_head('blocks_2')
    def flops(fused):
        for block in model.encoder.blocks: block.attn.fused_attn = fused
        return level_flops(model, 32)
    assert flops(True) == flops(False)


@pytest.mark.parametrize('early_exit', [True, False])
def test_the_encoder_stops_after_the_deepest_level(early_exit):
    encoder = make_encoder('resnet10t')
    model = ContrastiveModel(encoder, Head(mlp((512, 8, 5))))
    model.add_head('layer1')
    assert model.levels() == ('layer1', 'final')
    reached = []
    encoder.layer2.register_forward_hook(lambda *_: reached.append('layer2'))
    out = model({'views': torch.randn(2, 3, 3, 32, 32)}, Route(levels=('layer1',), early_exit=early_exit))
    assert list(out['views']) == ['layer1'] and out['views']['layer1'].z.shape == (2, 3, 5)
    assert reached == ([] if early_exit else ['layer2'])


def test_memory_is_saved_loaded_and_moved_with_the_model():
    def filled():
        model = small_model(True)
        model.memory['queue'] = nn.Module()
        model.memory['queue'].register_buffer('z', torch.randn(4, 5))
        return model
    first, second = filled(), filled()
    assert 'memory.queue.z' in first.state_dict()
    assert not torch.equal(first.memory['queue'].z, second.memory['queue'].z)
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first.memory['queue'].z, second.memory['queue'].z)
    assert first.to('meta').memory['queue'].z.device.type == 'meta'
    assert not any(k.startswith('memory') for k in small_model(True).state_dict())
