"The stem for small pictures as an architecture of timm's"
import copy
from functools import partial

import pytest
import timm
import torch
from helpers.learners import small
from helpers.pictures import Dots

from fastcontrast.data import image_dls
from fastcontrast.learner import contrastive_learner
from fastcontrast.export import load_encoder
from fastcontrast.models import encoder_stages, feature_dim, make_encoder, patch_side
from fastcontrast.stems import (_RESNETS, VITS, SmallStem, has_large_patches, has_large_stem, is_mark, marked,
                                plain_name, small_name, small_stem)

ARCHS = ['resnet18', 'test_resnet', 'test_vit']
RESNETS = ARCHS[:2]


def made(arch, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(arch, num_classes=0, **kwargs)


@pytest.mark.parametrize('arch', ARCHS)
@torch.no_grad()
def test_the_same_network(arch):
    "By its name and by small_input, with the weights that a seed gives"
    one = made(small_name(arch))
    others = [partial(make_encoder, arch, small_input=True, size=32), partial(make_encoder, small_name(arch), size=32),
              partial(make_encoder, small_name(arch), small_input=True, size=32)]
    x = torch.rand(2, 3, 32, 32)
    for make in others:
        torch.manual_seed(0)
        other = make()
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())
        assert torch.equal(one.eval()(x), other.eval()(x)) and other.pretrained_cfg['architecture'] == small_name(arch)
        assert encoder_stages(one) == encoder_stages(other) and feature_dim(other, 32) == one.num_features
    assert other.pretrained_cfg['mean'] == make_encoder(arch).pretrained_cfg['mean']


@pytest.mark.parametrize('arch', RESNETS)
def test_a_strict_load_of_the_other_stem_fails_by_name(arch):
    plain, other = made(arch), made(small_name(arch))
    for here, there in ((plain, other), (other, plain)):
        with pytest.raises(RuntimeError, match='maxpool.small_stem'): here.load_state_dict(there.state_dict())
    other.load_state_dict(marked(other, {name: t for name, t in other.state_dict().items() if not is_mark(name)}))
    assert marked(plain, plain.state_dict()).keys() == plain.state_dict().keys()
    assert not any(map(is_mark, dict(other.named_parameters())))


def test_features_only_and_channels():
    net = made('resnet10t_small', in_chans=1)
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 512)
    stages = timm.create_model('resnet10t_small', features_only=True, out_indices=(1, 4))
    assert [tuple(out.shape[1:]) for out in stages(torch.rand(2, 3, 32, 32))] == [(64, 32, 32), (512, 4, 4)]
    assert stages.feature_info.reduction() == [1, 8]
    stages = timm.create_model('test_vit_small', features_only=True, out_indices=(-1,))
    assert stages.feature_info.reduction() == [4]
    assert [out.shape[2:] for out in stages(torch.rand(2, 3, 32, 32))] == [(8, 8)]
    assert timm.create_model('resnet10t_small', num_classes=7)(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(RuntimeError, match='No pretrained weights'):
        timm.create_model('resnet18_small', pretrained=True)


@pytest.mark.parametrize('side', [8, 28, 32])
def test_a_vits_patches_have_four_pixels(side):
    net = make_encoder('test_vit', small_input=True, size=side)
    assert patch_side(net) == 4 and net.pos_embed.shape[1] == (side // 4) ** 2 + net.num_prefix_tokens
    assert {stage.stride for stage in encoder_stages(net).values() if stage.stride} == {4}
    assert 0.015 < net.pos_embed.std() < 0.025 and 0 < net.patch_embed.proj.weight.std() < 0.2
    with torch.no_grad():
        assert net(torch.rand(2, 3, side, side)).shape == (2, net.num_features)
        assert net(torch.rand(2, 3, 8, 8)).shape == (2, net.num_features)  # of other sizes, as those of `make_encoder`
    small_stem(net)
    assert patch_side(net) == 4 and not has_large_patches(net)


def test_a_vit_of_small_patches_is_trained_written_and_read(tmp_path):
    dls = image_dls(Dots(16), size=32, bs=4, valid=0, device='cpu', workers=0)
    learn = contrastive_learner(dls, 'test_vit', small_input=True, knn_pictures=0)
    assert learn.small_input and learn.arch == 'test_vit' and not any('patches' in note for note in learn.notes)
    learn.fit_contrastive(1)
    learn.export(tmp_path/'encoder')
    encoder = learn.model.encoder.eval()
    theirs = timm.create_model(f"local-dir:{tmp_path/'encoder'}", pretrained=True)
    for other in (load_encoder(tmp_path/'encoder'), theirs):
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad(): torch.testing.assert_close(other.eval()(x), encoder(x))
    larger = timm.create_model(f"local-dir:{tmp_path/'encoder'}", pretrained=True, img_size=48)
    assert larger.pos_embed.shape[1] == 12 * 12 + larger.num_prefix_tokens
    torch.save(encoder.state_dict(), tmp_path/'weights.pth')
    for given in (tmp_path/'encoder', tmp_path/'weights.pth'):  # the file's shapes tell the stem
        again = contrastive_learner(dls, 'test_vit', weights=given, knn_pictures=0)
        assert again.small_input and patch_side(again.model.encoder) == 4
    usual = contrastive_learner(dls, 'test_vit', knn_pictures=0)
    assert not usual.small_input
    assert any('pictures of 32 pixels are 4 patches of 16 pixels: small_input=True' in note for note in usual.notes)


def test_names():
    assert plain_name('resnet18_small') == ('resnet18', True) == plain_name('resnet18_small', None)
    assert plain_name('vit_small_patch16_224_small') == ('vit_small_patch16_224', True)
    for name in ('resnet18', 'mobilevit_small', 'x_small', 'hf-hub:a/resnet18_small', '_small'):
        assert plain_name(name, None) == (name, None)
    assert timm.is_model('resnet50_small') and 'resnet50_small' in timm.list_models('resnet*', module='stems')
    assert not timm.is_model('resnetrs50_small') and not timm.list_models('*_small*', pretrained=True, module='stems')


def test_once_is_enough():
    net = make_encoder('resnet18', small_input=True)
    before = dict(net.named_modules())
    small_stem(net)
    assert dict(net.named_modules()) == before and isinstance(net.maxpool, SmallStem)


@pytest.mark.slow
def test_every_architecture_that_can_have_it_is_known():
    there = set()
    for name in timm.list_models():
        module = timm.models.model_entrypoint(name).__module__.rpartition('.')[2]
        if module not in ('resnet', 'res2net', 'resnest', 'sknet'): continue
        if has_large_stem(timm.create_model(name, num_classes=0, device='meta')): there.add(name)
    assert there == set(_RESNETS)
    assert all(has_large_patches(timm.create_model(name, num_classes=0, device='meta')) for name in VITS)
    for name in _RESNETS + VITS: timm.create_model(small_name(name), num_classes=0, device='meta')


def test_a_checkpoint_from_before(tmp_path):
    "Of a run with teacher: both encoders have the mark, and what was written without is taken up"
    dls = image_dls(Dots(16), size=32, bs=4, valid=0, device='cpu', workers=0)
    learn = contrastive_learner(dls, 'test_resnet', method=small('moco_v3'), knn_pictures=0)
    assert learn.small_input and learn.arch == 'test_resnet'
    state = copy.deepcopy(learn.model.state_dict())
    marks = [name for name in state if is_mark(name)]
    assert len(marks) == 2
    assert marked(learn.model, {name: t for name, t in state.items() if not is_mark(name)}).keys() == state.keys()
    learn.create_mbar = False
    with learn.no_logging(): learn.fit_contrastive(1, 1e-3, resume=tmp_path)
    assert all(learn.model.state_dict()[name] == 1 for name in marks)
    file, = tmp_path.glob('checkpoints/*.pt')
    old = torch.load(file, weights_only=True)
    old['model'] = {name: t for name, t in old['model'].items() if not is_mark(name)}
    from fastcontrast.checkpoint import _load_model
    _load_model(learn, old, tmp_path)
