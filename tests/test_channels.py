"""Any number of channels: mean and deviation, views and drawings, weights made for others, exports and what judges."""
import json

import kornia.augmentation as K
import numpy as np
import pytest
import timm
import torch
import torchvision
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import RandomSplitter, get_image_files, parent_label
from fastai.vision.augment import Resize
from fastai.vision.core import PILImageBW, TensorImage
from fastai.vision.data import ImageBlock, ImageDataLoaders
from helpers.channels import CHANNELS, as_type, bands, loaders, noise
from helpers.pairs import paired
from helpers.learners import small
from helpers.pictures import ARCH, VIT
from helpers.refusals import refusal, said
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import adapt_input_conv
from torch import nn

from fastcontrast.channels import channel_statistics, statistics_of
from fastcontrast.checkpoint import Checkpoint
from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.evaluate.cost import Cost
from fastcontrast.evaluate.knn import extract_features
from fastcontrast.export import encoder_info, export_copy, load_encoder
from fastcontrast.learner import contrastive_learner
from fastcontrast.models import ContrastiveModel, Head, level_flops, make_encoder, mlp
from fastcontrast.modules import as_encoder
from fastcontrast.stems import is_mark
from fastcontrast.together import settings
from fastcontrast.views import VIEW_KINDS, ModuleViews, RoleViews, ViewKind, Views, as_views, draw_views, plain_view
from fastcontrast.weights import Weights, adapt_filters, fit_tensors

close = torch.testing.assert_close
SEED = 5


def learner(dls, arch=ARCH, **kwargs):
    kwargs = {'knn_pictures': 0, 'method': small('simclr', 'cifar'), **kwargs}
    learn = contrastive_learner(dls, arch, **kwargs)
    learn.create_mbar = False
    return learn


def first_filters(encoder) -> torch.Tensor:
    return next(m for m in encoder.modules() if isinstance(m, nn.Conv2d)).weight


# --- mean and standard deviation

@pytest.mark.parametrize('kind', [torch.uint8, torch.uint16, torch.float32, torch.float64])
@pytest.mark.parametrize('channels', CHANNELS)
def test_mean_and_deviation_are_those_of_all_pixels(channels, kind):
    x = as_type(noise(7, channels, 9), kind)
    found = statistics_of(x.split(3))
    full = {torch.uint8: 255, torch.uint16: 65535}.get(kind, 1)
    exact = x.numpy().astype(np.float64) / full
    np.testing.assert_allclose(found.mean, exact.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.std, exact.std((0, 2, 3)), rtol=1e-5)
    assert found == statistics_of([x]) and found.pictures == 7 and not found.still
    assert len(found.mean) == len(found.std) == channels


def test_sums_of_whole_numbers_are_exact():
    "Where float32, or a difference of two large sums, would see a deviation or lose it"
    x = torch.full((4, 2, 600, 600), 65535, dtype=torch.uint16)
    x[0, 1, 0, 0] = 0
    found = statistics_of([x])
    assert found.still == (0,) and found.mean[0] == 1 and found.std[0] == 1
    share = 1 / x[:, 0].numel()
    assert found.std[1] == pytest.approx((share * (1 - share)) ** 0.5, rel=1e-5)


@pytest.mark.parametrize('kind', [torch.uint8, torch.float32])
@pytest.mark.parametrize('still,words', [((1,), 'channel 1 is the same everywhere in them'),
                                         ((0, 3), 'channels 0, 3 are the same everywhere in them')])
def test_a_channel_without_spread_is_divided_by_one(still, words, kind):
    x = noise(8, 4, 12)
    x[:, list(still)] = 77
    learn = learner(loaders(as_type(x, kind), as_type(x, kind)), ARCH)
    assert all(learn.std[c] == 1 and abs(learn.mean[c] - 77 / 255) < 1e-6 for c in still)
    assert [note for note in learn.notes if words in note]
    learn.fit_contrastive(1, 1e-3)
    assert learn.embed()[0].isfinite().all()


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_values_that_are_no_numbers(value):
    x = as_type(noise(8, 4, 12), torch.float32)
    x[3, 2, 1, 1] = value
    said(['channel 2', 'NaN or infinite'], learner, loaders(x, x))


def test_the_sample_is_bounded_and_the_same_every_time():
    dls = bands(4, 40)
    found = [channel_statistics(dls.train, 16) for _ in range(2)]
    assert found[0] == found[1] and found[0].pictures == 16
    assert dls.train.epoch == 0  # no pass was used up
    chosen = dls.train.ordered(16)
    assert found[0] == statistics_of(x for x, _ in chosen) != channel_statistics(dls.train)
    assert statistics_of([dls.train.images]) == channel_statistics(dls.train)


@pytest.mark.parametrize('channels', CHANNELS)
def test_the_learner_has_those_of_its_pictures(channels):
    dls = bands(channels)
    learn = learner(dls)
    found = channel_statistics(dls.train)
    assert (learn.mean, learn.std) == (found.mean, found.std)
    x = plain_view(dls.train.images, 32)
    seen = learn.normalize(x)
    close(seen.mean((0, 2, 3)), torch.zeros(channels), rtol=0, atol=1e-4)
    close(seen.std((0, 2, 3), correction=0), torch.ones(channels), rtol=0, atol=1e-4)
    note, *_ = learn.notes
    count = f"{channels} channel{'s' * (channels > 1)}"
    assert note == f"mean and standard deviation of {count} are those of 12 pictures"
    assert learn.notes[1:] == (f"{count}: views without saturation, hue, grey",)


def test_of_three_channels_they_are_imagenets_and_nothing_is_said():
    learn = learner(bands(3), 'resnet10t')
    assert learn.mean == IMAGENET_DEFAULT_MEAN and learn.std == IMAGENET_DEFAULT_STD
    assert learn.notes == () and learn.plan.channels == learn.model.in_chans == 3


def test_runs_differ_in_what_they_were_normalised_by():
    "Also where one goes on from a checkpoint, or is one of several processes"
    learn = learner(bands(4))
    learn.n_epoch = 1
    learn.create_opt()
    said_of = settings(learn)
    assert said_of['mean of the channels'] == list(learn.mean)
    assert said_of['standard deviation of the channels'] == list(learn.std)
    other = learner(bands(3))
    other.n_epoch = 1
    other.create_opt()
    assert not [name for name in settings(other) if 'channels' in name]


def test_a_run_goes_on_with_its_own(tmp_path):
    def run(epochs, folder, dls=None):
        torch.manual_seed(1)
        learn = learner(dls or bands(4, 16))
        learn.fit_contrastive(epochs, 1e-3, resume=folder, schedule='wsd', cbs=Checkpoint('epoch'))
        return learn
    whole = run(2, tmp_path/'whole')
    first = run(1, tmp_path/'parts')
    second = run(2, tmp_path/'parts')
    assert first.mean == second.mean == whole.mean
    brighter = bands(4, 16)
    brighter.train.images += 9
    said(['mean of the channels'], run, 3, tmp_path/'parts', brighter)


# --- views

@pytest.mark.parametrize('kind,left_out', [
    ('simclr', ('saturation', 'hue', 'grey')), ('digits', ()), (ViewKind(jitter_p=0.), ('grey',)),
    (ViewKind(grey=0., jitter=(.4, .4, .2, 0.)), ('saturation',)),
    (ViewKind(grey=(0., .5)), ('saturation', 'hue', 'grey')),
    (ViewKind(grey=(0., 0.), jitter_p=(0., 0.)), ())])
def test_what_is_left_out(kind, left_out):
    views = Views(16, kind)
    assert views.left_out(4) == views.left_out(1) == left_out and views.left_out(3) == ()
    assert RoleViews(views, Views(8, 'simclr', role='local')).left_out(4)[:len(left_out)] == left_out
    learn = learner(bands(4, side=16), views=kind)
    assert [note for note in learn.notes if 'views without' in note] == (
        [f"4 channels: views without {', '.join(left_out)}"] if left_out else [])


def only(**strength) -> ViewKind:
    none = dict(scale=(1., 1.), ratio=(1., 1.), flip=0., jitter=(0., 0., 0., 0.), jitter_p=1., grey=0., blur=0.)
    return ViewKind(**none | strength)


@pytest.mark.parametrize('channels', [2, 4, 13])
def test_brightness_keeps_the_ratios_of_bands(channels):
    x = 0.05 + 0.3 * torch.rand(20, channels, 12, 12)
    for view in Views(12, only(jitter=(.8, 0., 0., 0.)))(x)['views']:
        factor = view / x
        close(factor, factor[:, :1, :1, :1].expand_as(factor), rtol=1e-3, atol=1e-3)
        assert factor[:, 0, 0, 0].std() > 0.1


@pytest.mark.parametrize('channels', [1, 2, 4, 13])
def test_contrast_keeps_the_mean_of_every_band(channels):
    "And spreads all of them by one factor"
    level = torch.linspace(0.3, 0.6, channels)[:, None, None]
    x = level + 0.1 * torch.rand(20, channels, 12, 12)
    for view in Views(12, only(jitter=(0., .8, 0., 0.)))(x)['views']:
        close(view.mean((2, 3)), x.mean((2, 3)), rtol=0, atol=1e-4)
        factor = view.std((2, 3)) / x.std((2, 3))
        close(factor, factor[:, :1].expand_as(factor), rtol=1e-2, atol=1e-3)
        assert factor[:, 0].std() > 0.1


def test_pictures_of_three_channels_have_the_views_they_had():
    "Contrast mixes with the grey of the mean colour"
    x, views = torch.rand(6, 3, 8, 8), Views(8, only(jitter=(0., .8, 0., 0.)))
    views.factors = lambda n, device: [torch.full((n, 1, 1, 1), 0.5)] * 4
    grey = (x.mean((2, 3)) * torch.tensor([.299, .587, .114])).sum(1)
    close(views(x)['views'][0], (0.5 * x + 0.5 * grey[:, None, None, None]).clamp(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize('kind', VIEW_KINDS)
@pytest.mark.parametrize('channels', CHANNELS)
def test_every_kind_makes_views(channels, kind):
    x = noise(6, channels, 20)
    for made in (Views(16, kind)(x), Views(16, kind)(as_type(x, torch.uint16))):
        assert made['views'].shape == (2, 6, channels, 16, 16) and made['views'].dtype == torch.float32
        assert 0 <= made['views'].min() <= made['views'].max() <= 1


def test_sixteen_bits_give_the_same_views_as_floats():
    x = as_type(noise(5, 4, 20), torch.uint16)
    close(plain_view(x, 12), plain_view(x.float() / 65535, 12))
    torch.manual_seed(1)
    a = Views(16)(x)['views']
    torch.manual_seed(1)
    close(a, Views(16)(x.float() / 65535)['views'], rtol=0, atol=1e-5)


def test_a_module_is_tried_with_the_channels_there_are():
    colours = K.ColorJitter(.4, .4, .4, .1, p=1.)
    said(['ColorJitter', '[4, 4, 16, 16]'], as_views, colours, 16, 4)
    said(['[4, 13, 32, 32]'], learner, bands(13), views=colours)
    flips = K.RandomHorizontalFlip()
    maker = as_views(flips, 16, 13).main
    assert maker.channels == maker.like('labeled', 2).channels == 13
    learn = learner(bands(13), views=flips)
    learn.views = K.RandomVerticalFlip()
    assert learn.views.main.channels == 13
    with pytest.raises(ValueError, match='channels=0'): ModuleViews(16, flips, channels=0)
    assert learn.notes[-1].startswith('mean')  # nothing is known of what it does to colours


# --- drawings

def drawn(fig, place=0): return np.asarray(fig.axes[place].images[0].get_array())


@pytest.mark.parametrize('channels,chosen', [(4, (0, 2, 3)), (6, (0, 3, 5)), (13, (0, 6, 12))])
def test_three_channels_are_drawn(channels, chosen):
    x = as_type(noise(2, channels, 16), torch.float32)
    x = ((x - x.min()) / (x.max() - x.min())).expand(-1, -1, -1, -1)
    fig = draw_views(x, Views(16)(x))
    np.testing.assert_allclose(drawn(fig), x[0, list(chosen)].permute(1, 2, 0), atol=1e-6)
    assert fig.get_supxlabel() == f"channels {', '.join(map(str, chosen))}"
    fig = draw_views(x, {}, bands=(2, 1, 0))
    np.testing.assert_allclose(drawn(fig), x[0, [2, 1, 0]].permute(1, 2, 0), atol=1e-6)
    fig = draw_views(x, {}, bands=[1])
    np.testing.assert_allclose(drawn(fig), x[0, 1], atol=1e-6)
    assert fig.get_supxlabel() == 'channel 1'


def test_fewer_channels_are_drawn_as_they_are():
    for channels in (1, 2):
        x = noise(2, channels, 16)
        fig = draw_views(x, Views(16)(x))
        np.testing.assert_allclose(drawn(fig), (x[0] / 255).mean(0), atol=1e-6)
        assert fig.get_supxlabel() == ''
    x = noise(2, 3, 16)
    np.testing.assert_allclose(drawn(draw_views(x, {})), (x[0] / 255).permute(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize('kind', [torch.uint16, torch.float32])
def test_dark_bands_are_stretched_for_the_eye(kind):
    x = as_type(noise(3, 6, 16), torch.float32) / 10
    x[:, 5] = 0.02  # of a single value, which there is nothing to stretch in
    if kind == torch.uint16: x = (x * 65535).round().int().to(kind)
    views = Views(16, only())(x)
    fig = draw_views(x, views)
    assert fig.get_supxlabel() == 'channels 0, 3, 5, stretched'
    picture = drawn(fig)
    assert picture.min() >= 0 and picture.max() <= 1
    for band in (0, 1):
        assert (picture[..., band] < 0.05).any() and (picture[..., band] > 0.95).any()
    np.testing.assert_allclose(picture[..., 2], 0.02, atol=1e-4)
    np.testing.assert_allclose(drawn(fig, 1), picture, atol=1e-3)  # a view is drawn as its picture


@pytest.mark.parametrize('given,words', [
    ((0, 1), ['(0, 1)', 'three']), ('abc', ["'abc'"]), (3, ['bands=3']), ((0, 1, 4), ['bands[2]=4', 'from 0 to 3']),
    ((-1, 0, 1), ['bands[0]=-1']), ((True, 0, 1), ['bands[0]=True']), ((.5,), ['bands[0]=0.5'])])
def test_bands_that_there_are_not(given, words): said(words, draw_views, noise(2, 4, 8), {}, bands=given)


def test_a_learner_draws(tmp_path):
    learn = learner(bands(13))
    fig = learn.show_views(3, path=tmp_path/'v.png', bands=(3, 2, 1))
    assert fig.get_supxlabel().startswith('channels 3, 2, 1') and (tmp_path/'v.png').stat().st_size
    assert learn.show_views(2).get_supxlabel().startswith('channels 0, 6, 12')


# --- encoders and their weights

@pytest.mark.parametrize('channels', CHANNELS)
@pytest.mark.parametrize('given', [1, 3, 4])
def test_filters_for_other_channels(given, channels):
    filters = torch.randn(5, given, 3, 3)
    made = adapt_filters(filters, channels)
    assert made.shape == (5, channels, 3, 3)
    if given == 3: close(made, adapt_input_conv(channels, filters), rtol=0, atol=1e-7)
    if channels % given == 0:  # a picture that is repeated gives what it gave
        x = torch.rand(2, given, 8, 8)
        repeated = x.repeat(1, channels // given, 1, 1)
        close(nn.functional.conv2d(repeated, made), nn.functional.conv2d(x, filters), rtol=1e-4, atol=1e-5)
    if channels == given: assert made is filters


@pytest.mark.parametrize('there, here, arch', [
    pytest.param(there, here, arch, marks=[] if arch == ARCH or (there, here) in ((1, 1), (3, 4), (4, 13), (13, 3))
                 else pytest.mark.slow)
    for there in (1, 3, 4, 13) for here in (1, 3, 4, 13) for arch in (ARCH, VIT)])
def test_an_export_for_other_channels_is_a_beginning(tmp_path, arch, there, here):
    "And what was done to it is said; of as many, mean and deviation are the export's"
    source = learner(bands(there), arch)
    path = source.export(tmp_path/'there')
    learn = learner(bands(here, 16), None, weights=path)
    filters = first_filters(source.model.encoder)
    close(first_filters(learn.model.encoder), adapt_filters(filters, here), rtol=0, atol=1e-6)
    n = len([name for name in source.model.encoder.state_dict() if not is_mark(name)])
    weights, *others = learn.notes
    assert f'{n} of {n} tensors' in weights and ('filters changed' in weights) == (here != there)
    if here != there: assert f'.weight ({there} to {here})' in weights
    if here == there: assert (learn.mean, learn.std) == (source.mean, source.std)
    elif here != 3: assert learn.mean == channel_statistics(learn.dls.train).mean and 'mean and' in others[0]
    else: assert learn.mean == make_encoder(arch, size=32).pretrained_cfg['mean'] and not others
    learn.fit_contrastive(1, 1e-3)


@pytest.mark.parametrize('here', [1, 3, 4])
def test_a_state_dict_for_other_channels(tmp_path, here):
    torch.save(make_encoder('resnet18').state_dict(), tmp_path/'w.pth')
    learn = learner(bands(here), 'resnet18', weights=tmp_path/'w.pth')
    changed = f'filters changed to other channels: conv1.weight (3 to {here})'
    assert (changed in learn.notes[0]) == (here != 3)


def test_filters_that_are_none_of_pictures_stay_out():
    "Of files that do not say their channels, one of the two has three"
    four, six = (make_encoder('resnet18', in_chans=n) for n in (4, 6))
    fitted = fit_tensors(six, Weights('x', four.state_dict()))
    assert fitted.other == ['conv1.weight [64, 4, 7, 7] for [64, 6, 7, 7]'] and not fitted.changed
    assert fit_tensors(six, Weights('x', four.state_dict(), dict(in_chans=4))).changed == ['conv1.weight (4 to 6)']


def test_weights_of_timms(tmp_path):
    "Which changes them itself"
    source = timm.create_model(ARCH, num_classes=0)
    timm.models.save_for_hf(source, tmp_path/'timm', model_config=dict(num_classes=0))
    config = json.loads((tmp_path/'timm/config.json').read_text())
    assert config['architecture'] == ARCH
    learn = learner(bands(4), weights=f"local-dir:{tmp_path/'timm'}")
    close(first_filters(learn.model.encoder), adapt_filters(first_filters(source), 4), rtol=0, atol=1e-6)
    assert 'filters changed to other channels: conv1.0.weight (3 to 4)' in learn.notes[0]
    assert 'mean and standard deviation of 4 channels' in learn.notes[1]


class Net(nn.Module):
    "A module of somebody's own"
    def __init__(self, channels):
        super().__init__()
        self.stem, self.end = nn.Conv2d(channels, 8, 3, padding=1, stride=2), nn.Conv2d(8, 16, 3, padding=1, stride=2)
    def forward(self, x): return self.end(self.stem(x).relu())


@pytest.mark.parametrize('channels', [1, 4, 13])
def test_modules(tmp_path, channels):
    learn = learner(bands(channels), Net(channels))
    learn.fit_contrastive(1, 1e-3)
    path = learn.export(tmp_path/'net.safetensors')
    loaded = load_encoder(path, model=Net(channels))
    x = torch.rand(2, channels, 32, 32)
    with torch.no_grad(): close(loaded(x), learn.model.encoder.cpu().eval()(x))
    said([f'[2, {channels}, 32, 32]', 'image_dls(…, channels=3)'], load_encoder, path, Net(3))
    said(["can't take pictures", f'[2, {channels}, 32, 32]', 'channels=3'], learner, bands(channels), Net(3))
    said(['channels=3'], learner, bands(channels), torchvision.models.resnet18(num_classes=2))


def test_a_timm_module_is_known_by_its_name(tmp_path):
    learn = learner(bands(4), timm.create_model(ARCH, in_chans=4))
    assert learn.arch == ARCH and learn.mean == channel_statistics(learn.dls.train).mean
    encoder = load_encoder(learn.export(tmp_path/'e'))
    assert first_filters(encoder).shape[1] == 4
    again = learner(bands(4, 16), encoder)  # which says its own
    assert (again.mean, again.std) == (learn.mean, learn.std)


def test_level_flops_and_cost_count_the_channels():
    def flops(channels):
        model = ContrastiveModel(make_encoder(ARCH, in_chans=channels), Head(mlp((96, 8, 5))), in_chans=channels)
        return level_flops(model, 32)['final']
    one, two, three = map(flops, (1, 2, 3))
    assert one < two < three and two - one == three - two
    learn = learner(bands(13), cbs=Cost())
    learn.fit_contrastive(1, 1e-3)
    assert learn.cost.totals()['tflop'] > 0 and learn.cost.totals()['steps'] == 3


# --- exports, and what judges

@pytest.mark.parametrize('channels, arch', paired([1, 2, 4, 13], [ARCH, VIT, 'resnet18'], always=(ARCH,)))
def test_an_export_comes_back(tmp_path, arch, channels):
    learn = learner(bands(channels), arch)
    learn.fit_contrastive(1, 1e-3)
    path = learn.export(tmp_path/'e')
    info, encoder = encoder_info(path), load_encoder(path)
    assert info['in_chans'] == channels == len(info['mean']) and info['mean'] == list(learn.mean)
    assert info['std'] == list(learn.std) and encoder.pretrained_cfg['input_size'] == (channels, 32, 32)
    ours, y = learn.embed()
    theirs, _ = extract_features(encoder, learn.dls.valid, 32, info['mean'], info['std'], learn.precision)
    close(theirs, ours, rtol=1e-2, atol=1e-3)
    assert 0 <= learn.knn() <= 1 and 0 <= learn.linear_probe() <= 1
    copy = export_copy(path, tmp_path/'copy')
    assert encoder_info(copy)['mean'] == info['mean']
    refused = refusal(export_copy, path, tmp_path/'t', 'torchvision')
    assert arch != 'resnet18' or 'stem' in refused


def test_torchvision_has_none_for_other_channels(tmp_path):
    path = learner(bands(4), 'resnet18', small_input=False).export(tmp_path/'e')
    said(["torchvision", 'for 4 channels'], export_copy, path, tmp_path/'t', 'torchvision')


@pytest.mark.parametrize('here,there', [(4, 3), (3, 4), (1, 3), (3, 1), (13, 4)])
def test_an_encoder_and_pictures_of_other_channels(tmp_path, here, there):
    learn = learner(bands(there))
    path = learn.export(tmp_path/'e')
    info, encoder = encoder_info(path), load_encoder(path)
    words = [f"pictures of {here} channel", f"an encoder of {there} channel", f'channels={there}']
    said(words, extract_features, encoder, bands(here).valid, 32, info['mean'], info['std'])
    said(words, learn.embed, bands(here).valid)


def test_the_table_judges_every_epoch():
    learn = learner(bands(4, 24), knn_pictures=24)
    learn.fit_contrastive(2, 1e-3)
    assert all(0 <= row[1] <= 1 for row in learn.recorder.values)


# --- fastai's

def saved(folder, mode, n=12):
    for i in range(n):
        place = folder/'ab'[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, len(mode)), dtype=np.uint8).squeeze()
        Image.fromarray(pixels, mode).save(place/f'{i}.png')
    return folder


class Rgba(PILImageBW): _show_args, _open_args = {}, dict(mode='RGBA')


@pytest.mark.parametrize('cls,mode,channels', [(PILImageBW, 'L', 1), (Rgba, 'RGBA', 4)])
def test_fastai_loaders_of_grey_and_transparent_pictures(tmp_path, cls, mode, channels):
    block = DataBlock((ImageBlock(cls), CategoryBlock), get_items=get_image_files, get_y=parent_label,
                      splitter=RandomSplitter(0.4, seed=1), item_tfms=Resize(16))
    made = block.dataloaders(saved(tmp_path, mode if channels > 1 else 'L'), bs=4, num_workers=0, device='cpu')
    dls = image_dls(made, device='cpu')
    assert dls.channels == channels == dls.train.one_batch()[0].shape[1]
    with pytest.raises(InputError, match='channels .--channels. asks for 7'): image_dls(made, channels=7, device='cpu')
    learn = learner(dls, knn_pictures=8)
    assert len(learn.mean) == channels
    learn.fit_contrastive(1, 1e-3)
    assert 0 <= learn.knn() <= 1


def test_fastai_loaders_that_are_no_pictures(tmp_path):
    made = ImageDataLoaders.from_folder(saved(tmp_path, 'RGB'), valid_pct=0.4, seed=1, bs=4, num_workers=0,
                                        device='cpu', item_tfms=Resize(16))
    assert image_dls(made, device='cpu').channels == 3
    class Masks(type(made.train.after_batch.fs[0])):  # in place of fastai's that makes floats
        order = 0
        def encodes(self, x: TensorImage): return x.long()
    for dl in made.loaders: dl.after_batch.fs[:] = [Masks()]
    with pytest.raises(ValueError, match='are torch.int64'): image_dls(made, device='cpu')


def test_as_encoder_of_other_channels():
    encoder, _ = as_encoder(Net(6), 32, 6)
    assert encoder(torch.rand(2, 6, 32, 32)).shape == (2, 16)
