"A detector on top of an encoder: its maps, its parts, what it learns, and which encoders make none"
import copy
import inspect

import pytest
import timm
import torch
from helpers.pictures import ARCH, VIT
from helpers.refusals import said
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from fastcontrast.detection import (Pyramid, box_pictures, detection_scores, detection_transfer, detector,
                                    draw_rectangles, train_detector)
from fastcontrast.detection.model import encoder_of
from fastcontrast.export import export_encoder
from fastcontrast.models import make_encoder
from fastcontrast.modules import as_encoder

TINY = dict(size=64, width=32)
FEW = dict(TINY, box_batch_size_per_image=16, rpn_batch_size_per_image=32, rpn_post_nms_top_n_train=100,
           rpn_post_nms_top_n_test=50)
CLASSES = ['ellipse', 'rectangle']


@pytest.fixture(scope='module')
def encoder():
    torch.manual_seed(7)
    return make_encoder(ARCH).eval()


@pytest.fixture(scope='module')
def file(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp('run')/'encoder.safetensors'
    return export_encoder(encoder, path, ARCH, 32, [.1, .2, .3], [.4, .5, .6])


def swin():
    return SwinTransformer(img_size=64, window_size=2, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1),
                           num_classes=0)


# ---------------------------------------------------------------- the pyramid

def test_maps_are_those_of_timm(encoder):
    pyramid, peer = Pyramid(encoder, 16, 4), timm.create_model(ARCH, features_only=True, out_indices=(1, 2, 3, 4))
    peer.load_state_dict(encoder.state_dict())
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad(): maps, expected = pyramid.eval().maps(x), peer.eval()(x)
    assert list(maps) == ['layer1', 'layer2', 'layer3', 'layer4'] and pyramid.strides == [4, 8, 16, 32, 64]
    for ours, theirs in zip(maps.values(), expected, strict=True): torch.testing.assert_close(ours, theirs)
    out = pyramid(x)
    assert [tuple(out[level].shape) for level in out] == [(2, 16, 64 // s, 96 // s) for s in (4, 8, 16, 32)] + [
        (2, 16, 1, 2)]
    assert not any(module._forward_hooks for module in encoder.modules())


def test_levels_follow_the_strides():
    "Three at least, where there are: the stem for small pictures has finer maps"
    plain, small = make_encoder(ARCH), make_encoder(ARCH, small_input=True)
    assert Pyramid(plain, 8, 8).strides == [8, 16, 32, 64] and Pyramid(plain, 8, 64).strides == [8, 16, 32, 64]
    assert Pyramid(small, 8, 8).strides == [2, 4, 8, 16] and Pyramid(small, 8, 1).strides == [1, 2, 4, 8, 16]


def test_maps_with_channels_last_and_stages_that_were_measured():
    pyramid = Pyramid(swin(), 8, 4)
    channels = [stage.channels for stage in pyramid.stages]
    with torch.no_grad(): maps = pyramid.eval().maps(torch.rand(1, 3, 64, 64))
    assert [tuple(x.shape) for x in maps.values()] == [(1, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate(channels)]
    def block(a, b): return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
    body = nn.Sequential(block(3, 8), block(8, 12), block(12, 16), block(16, 20))
    own = as_encoder(body, 32)[0]
    assert Pyramid(own, 8, 4).strides == [4, 8, 16, 32] and detector(body, ['a'], **TINY).backbone.strides[0] == 4


# ---------------------------------------------------------------- what it is made of

def test_one_line_makes_a_detector(encoder, file):
    before = copy.deepcopy(encoder.state_dict())
    model = detector(file, ['cat', 'dog'])
    assert model.classes == ['cat', 'dog'] and all(module.training for module in model.modules())
    assert model.transform.image_mean == pytest.approx([.1, .2, .3])
    assert model.transform.image_std == pytest.approx([.4, .5, .6])
    assert model.transform.min_size == (224,) and model.transform.max_size == 448
    assert model.roi_heads.box_predictor.cls_score.out_features == 3
    for name, tensor in model.backbone.encoder.state_dict().items(): assert torch.equal(tensor, before[name])
    losses = model([torch.rand(3, 64, 80)], [dict(boxes=torch.tensor([[3., 3, 40, 50]]), labels=torch.tensor([2]))])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.rpn.anchor_generator.sizes[0] == (32,) and model.rpn.anchor_generator.sizes[-1] == (256,)
    out, = model.eval()([torch.rand(3, 50, 70)])
    assert {*out} == {'boxes', 'labels', 'scores'}
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in before.items())


def test_the_detector_of_the_papers(encoder):
    model = detector(encoder, ['cat'], size=800)
    assert model.backbone.out_channels == 256 and model.backbone.strides[0] == 4
    assert [side for side, in model.rpn.anchor_generator.sizes] == [32, 64, 128, 256, 512]
    assert model.roi_heads.box_head.fc6.out_features == 1024
    assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 512


def test_where_encoders_come_from(encoder, file):
    def weights(*args, **kwargs): return detector(*args, CLASSES, **TINY, **kwargs).backbone.encoder.state_dict()
    def same(a, b): return all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    assert same(weights(encoder), weights(file)) and same(weights(file), weights(file.parent))
    blank = weights(file.parent, pretrained=False)
    assert not same(blank, weights(file)) and same(blank, weights(file.parent, pretrained=False))
    assert not same(blank, weights(file.parent, pretrained=False, seed=1))
    assert same(blank, weights(ARCH, pretrained=False))
    small = make_encoder(ARCH, small_input=True)
    small = export_encoder(small, file.parent/'small', ARCH, 32, [.5] * 3, [.2] * 3, True)
    assert weights(small, pretrained=False)['conv1.0.weight'].shape == weights(small)['conv1.0.weight'].shape
    assert detector(small, CLASSES, pretrained=False, **TINY).backbone.strides == [2, 4, 8, 16]
    whole = timm.create_model(ARCH, num_classes=5)
    assert same({k: v for k, v in whole.state_dict().items() if 'fc' not in k}, weights(whole))


def test_an_encoder_that_stood_still_learns(encoder):
    still = copy.deepcopy(encoder).requires_grad_(False)
    assert all(p.requires_grad for p in encoder_of(still).parameters())
    assert not any(p.requires_grad for p in still.parameters())


def test_a_transformer_by_the_side_that_it_is_made_for():
    "And not by that of timm's weights, which it describes"
    vit = timm.create_model('test_vit3', num_classes=0, img_size=48)
    assert encoder_of(vit).patch_embed.img_size == (48, 48)


@pytest.mark.skipif('dynamic_img_size' not in inspect.signature(SwinTransformer).parameters, reason="timm is older")
def test_a_swin_by_its_name_takes_pictures_of_any_shape():
    model = detector('swin_tiny_patch4_window7_224', CLASSES, pretrained=False, **TINY)
    assert model.backbone.strides == [8, 16, 32, 64]


def test_a_stem_that_makes_channels_of_pixels():
    "It is for three, whatever its first convolution is given"
    tiny = timm.create_model('tresnet_m', num_classes=0, layers=[1, 1, 1, 1], width_factor=0.25)
    assert tiny.body.conv1.conv.in_channels == 48
    assert len(detector(tiny, CLASSES, **TINY).transform.image_mean) == 3


def test_grey_pictures(tmp_path):
    encoder = make_encoder(ARCH, in_chans=1)
    train, valid = box_pictures(draw_rectangles(tmp_path, 4))
    scores = detection_transfer(encoder, train, valid, **dict(size=64), settings=dict(width=8), epochs=1)
    assert 0 <= scores['AP'] <= 1


@pytest.mark.parametrize('encoder, words', (
    (lambda: make_encoder(VIT), 'has one size alone (16 pixels to a cell)'),
    (lambda: make_encoder(ARCH, in_chans=5), '5 channels'), (lambda: 3, 'is no encoder'),
    (lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 4, 4)), '4, 16 pixels to a cell'),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 8)), "no stage"),
    (swin, 'pictures of 128 x 64 pixels'),
    (lambda: 'resnet18z', 'resnet18')))
def test_encoders_that_make_no_detector(encoder, words):
    said([words], detector, encoder(), CLASSES)


def test_what_else_is_refused(encoder, tmp_path):
    with pytest.raises(FileNotFoundError, match='no encoder at runs/none'): detector('runs/none', CLASSES)
    for classes in ('cat', [], [1]): said(['are no names'], detector, encoder, classes)
    said(['size=32 is too small', 'give 64'], detector, encoder, CLASSES, 32)
    said(['pretrained=False'], detector, encoder, CLASSES, pretrained=False)
    said(['setting of FasterRCNN', 'box_nms_thresh'], detector, encoder, CLASSES, box_nms_tresh=.3)
    train, _ = box_pictures(draw_rectangles(tmp_path, 4))
    said(['for 1 classes (cat)', 'have 2'], train_detector, detector(encoder, ['cat'], **TINY), train)
    said(['epochs=0'], train_detector, detector(encoder, CLASSES, **TINY), train, 0)
    said(['the loss is', 'try a lower lr'], train_detector, detector(encoder, CLASSES, **TINY), train, 9, lr=1e20)


# ---------------------------------------------------------------- what it learns

@pytest.fixture(scope='module')
def parts(tmp_path_factory): return box_pictures(draw_rectangles(tmp_path_factory.mktemp('shapes'), 60), 0.2)


@pytest.mark.parametrize('epochs, least', ((12, 0.1), pytest.param(60, 0.8, marks=pytest.mark.slow)))
def test_it_learns_to_find_shapes(parts, encoder, epochs, least):
    train, valid = parts
    model = detector(encoder, train.classes, **FEW)
    before = detection_scores(model, valid)
    learn = train_detector(model, train, epochs, bs=4, lr=0.04, precision='fp32')
    after = detection_scores(model, valid)
    losses = [row[0] for row in learn.recorder.values]
    assert losses[-1] < losses[0] / 2 and len(losses) == epochs
    assert learn.recorder.metric_names[:2] == ['epoch', 'train_loss']
    assert before['AP50'] < 0.05 and after['AP50'] > least, (before, after)
    assert after['AP75'] <= after['AP50'] and {*after['classes']} == {*CLASSES}
    for name, p in model.backbone.encoder.named_parameters():  # all of it learns
        assert not torch.equal(p, encoder.get_parameter(name)), name


def test_a_seed_says_everything(parts, encoder):
    train, valid = parts
    train = copy.copy(train)
    train.scenes = train.scenes[:8]
    def weights(seed):
        model = detector(encoder, train.classes, **FEW, seed=seed)
        learn = train_detector(model, train, epochs=1, bs=4, seed=seed)
        assert len({loss.untyped_storage().data_ptr() for loss in learn.recorder.losses}) == 1
        return nn.utils.parameters_to_vector(model.parameters())
    first = weights(0)
    assert torch.equal(first, weights(0)) and not torch.equal(first, weights(1)) and first.isfinite().all()
