"""Encoders that begin with weights from elsewhere: every form they come in, what fits, and what becomes of it."""
import argparse
import json
import logging
import os
import re
import shutil
from functools import partial

import pytest
import timm
import torch
import torchvision
from helpers.learners import small
from helpers.odd import KINDS, no_file, within
from helpers.pictures import ARCH, Dots
from helpers.refusals import said
from helpers.timers import await_timers
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn

from fastcontrast import artefact
from fastcontrast.core import InputError, MissingPath, waiting
from fastcontrast.data import image_dls
from fastcontrast.export import digest, encoder_info, export_encoder, load_encoder, read_header
from fastcontrast.learner import contrastive_learner
from fastcontrast.models import make_encoder
from fastcontrast.recipes import simclr
from fastcontrast.stems import small_stem
from fastcontrast.weights import (Weights, _timm_filter, architecture_of, fit_tensors, has_small_stem, read_weights,
                                  timm_source)

SIDE = 32
close = torch.testing.assert_close
FRAME = dict(mean=[.1, .2, .3], std=[.5, .6, .7])
SEED = 3


def trained(arch=ARCH, size=SIDE, **kw):
    "An encoder whose weights and statistics are not the initial ones"
    torch.manual_seed(7)
    encoder = make_encoder(arch, size=size, **kw)
    with torch.no_grad():
        for p in encoder.parameters(): p.add_(0.01 * torch.randn_like(p))
        encoder.train()(torch.rand(4, kw.get('in_chans', 3), size, size))
    return encoder.eval()


@pytest.fixture(scope='module')
def source(): return trained()


@pytest.fixture(scope='module')
def dls(): return dots()


def dots(size=SIDE, n=12): return image_dls(Dots(n, SIDE), size=size, bs=4, valid=0.3, workers=0, device='cpu')


def learner(dls, arch=ARCH, **kwargs):
    kwargs = {'knn_pictures': 8, **kwargs}
    learn = contrastive_learner(dls, arch, method=small('simclr', 'cifar'), **kwargs)
    learn.create_mbar = False
    return learn


@torch.no_grad()
def same_features(encoder, source, size=SIDE):
    x = torch.rand(2, 3, size, size)
    encoder.cpu().eval().to(memory_format=torch.contiguous_format)  # that of training sums in another order
    close(encoder(x), source(x), rtol=0, atol=1e-6)


def under(prefix, state): return {f'{prefix}{name}': t for name, t in state.items()}


def noise(state): return {name: torch.randn(t.shape) for name, t in state.items()}


def moco(s):
    return under('module.encoder_k.', noise(s)) | under('module.encoder_q.', s) | {
        'module.encoder_q.fc.0.weight': torch.ones(3, 3), 'module.queue': torch.ones(4, 4)}


def by_number(encoder):
    "As in lightly's examples, where the backbone is a sequence of the children"
    numbers = {name: i for i, (name, _) in enumerate(encoder.named_children())}
    return {f"backbone.{numbers[name.split('.')[0]]}.{name.split('.', 1)[1]}": t
            for name, t in encoder.state_dict().items()}


FORMS = dict(
    plain=lambda s: s, data_parallel=lambda s: under('module.', s), wrapped=lambda s: dict(state_dict=s, epoch=3),
    model=lambda s: dict(model=under('module.', s), args=argparse.Namespace(lr=1)),
    compiled=lambda s: under('_orig_mod.', s), named=lambda s: under('model.', s),
    backbone=lambda s: dict(state_dict=under('backbone.', s) | under('projector.', dict(weight=torch.ones(2, 2)))),
    encoder=lambda s: under('encoder.', s), online=lambda s: under('encoder_q.', s),
    moco=lambda s: dict(state_dict=moco(s)),
    moco_v3=lambda s: dict(state_dict=under('module.momentum_encoder.', noise(s)) | under('module.base_encoder.', s)),
    solo=lambda s: dict(state_dict=under('momentum_backbone.', noise(s)) | under('backbone.', s)),
    deep=lambda s: dict(state_dict=dict(model=under('net.student.backbone.', s))),
    dino=lambda s: dict(student=under('module.backbone.', s), teacher=under('backbone.', noise(s)), epoch=1),
    classifier=lambda s: s | {'fc.weight': torch.ones(10, 96), 'fc.bias': torch.ones(10)})


FLAT = ('plain', 'solo', 'classifier') # such files have no dicts in dicts


@pytest.mark.parametrize('form, suffix', [
    *((form, '.pth') for form in FORMS), *((form, '.safetensors') for form in FLAT)])
def test_forms_of_a_state_dict(tmp_path, dls, source, form, suffix):
    content, file = FORMS[form](dict(source.state_dict())), tmp_path/f'w{suffix}'
    if suffix == '.pth': torch.save(content, file)
    else: save_file({name: t.clone() for name, t in content.get('state_dict', content).items()}, file)
    learn = learner(dls, weights=file)
    same_features(learn.model.encoder, source)
    n = len(source.state_dict())
    note, values = learn.notes
    assert note.startswith(f"weights from '{file}': {n} of {n} tensors") and 'not there' not in note
    assert f"'{file}' does not say its mean" in values
    assert ('heads left out' in note) == (form == 'classifier' or form == 'moco'), note


def test_the_children_by_number(tmp_path, dls):
    source = trained('resnet18', small_input=True)
    torch.save(dict(state_dict=by_number(source)), tmp_path/'w.ckpt')
    learn = learner(dls, 'resnet18', weights=tmp_path/'w.ckpt')
    assert learn.small_input  # the stem follows the weights
    same_features(learn.model.encoder, source)


def test_torchvisions(tmp_path):
    net = torchvision.models.resnet18(num_classes=10)
    torch.save(net.state_dict(), tmp_path/'resnet18.pth')
    net.fc = nn.Identity()
    for arch in ('resnet18', torchvision.models.resnet18()):
        learn = learner(dots(64), arch, weights=tmp_path/'resnet18.pth')
        assert not learn.small_input and '2 of its heads left out' in learn.notes[-1]
        same_features(learn.model.encoder, net.eval(), 64)


@pytest.mark.parametrize('arch, advice', [
    ('vit_small_patch16_224', "arch='vit_small_patch16_224.dino', whose they are"),
    ('test_resnet', 'a module with them in its pretrained_cfg')])
def test_a_mean_that_no_file_says_is_told_if_it_is_not_imagenets(tmp_path, arch, advice):
    "As those of timm's ViTs, 0.5, with which no self-supervised one was trained"
    def made(name): return timm.create_model(name, num_classes=0, **small)
    small = dict(img_size=SIDE, depth=1, embed_dim=24, num_heads=2) if arch.startswith('vit') else {}
    torch.save(made(arch).state_dict(), tmp_path/'w.pth')
    learn = learner(dots(), made(arch), weights=tmp_path/'w.pth')
    note, = (note for note in learn.notes if 'does not say its mean' in note)
    assert f"of '{arch}', (0.5, 0.5, 0.5) and (0.5, 0.5, 0.5)" in note and note.endswith(advice)
    assert learn.mean == (.5, .5, .5)
    if not small: return
    learn = learner(dots(), made(f'{arch}.dino'), weights=tmp_path/'w.pth')
    assert not any('does not say' in note for note in learn.notes) and learn.mean == (.485, .456, .406)


def test_imagenets_mean_needs_no_word(tmp_path, source):
    torch.save(make_encoder('resnet18').state_dict(), tmp_path/'w.pth')
    assert not any('does not say' in note for note in learner(dots(), 'resnet18', weights=tmp_path/'w.pth').notes)
    file = export_encoder(source, tmp_path/'e.safetensors', ARCH, SIDE, **FRAME)
    assert not any('does not say' in note for note in learner(dots(), weights=file).notes)
    one = image_dls(Dots(12, SIDE), channels=1, size=SIDE, bs=4, valid=0.3, workers=0, device='cpu')
    torch.save(source.state_dict(), tmp_path/'w.pth')
    assert not any('does not say' in note for note in learner(one, weights=tmp_path/'w.pth').notes)


# --- what this library and timm write

@pytest.mark.parametrize('form', ['file', 'path', 'text', 'folder', 'model.safetensors'])
def test_our_own(tmp_path, dls, source, form):
    name = form if form.endswith('.safetensors') else 'encoder.safetensors'
    file = export_encoder(source, tmp_path/name, ARCH, SIDE, **FRAME)
    given = dict(file=file, path=file, text=os.path.relpath(file)).get(form, tmp_path)
    (tmp_path/'config.json').write_text(json.dumps(dict(arch=ARCH, settings={})))  # as a run has it
    for arch in (ARCH, None):
        learn = learner(dls, arch, weights=given)
        same_features(learn.model.encoder, source)
        assert learn.arch == ARCH and learn.mean == (.1, .2, .3) and learn.std == (.5, .6, .7)
        close(learn.normalize(torch.ones(3, 1, 1)).flatten(), torch.tensor([.9 / .5, .8 / .6, .7 / .7]))
    assert architecture_of(given) == ARCH
    for other in ('resnet18', 10**9): said([ARCH, str(other)], contrastive_learner, dls, other, weights=given)
    exported = learn.export(tmp_path/'again')
    assert read_weights(exported).info['mean'] == [.1, .2, .3]


@pytest.mark.parametrize('arch', ['resnet18', 'resnet10t'])
@pytest.mark.parametrize('small_stem', [True, False])
def test_the_stem_follows_the_weights(tmp_path, arch, small_stem):
    source = trained(arch, small_input=small_stem)
    file = export_encoder(source, tmp_path/'e', arch, SIDE, **FRAME, small_input=small_stem)
    for size in (SIDE, 80):
        learn = learner(dots(size), arch, weights=file)
        assert learn.small_input == small_stem
        same_features(learn.model.encoder, source, size)
        learner(dots(size), arch, weights=file, small_input=small_stem)
    said(['stem', f'small_input={not small_stem}'], contrastive_learner, dots(), arch, weights=file,
         small_input=not small_stem)
    state = source.state_dict()
    for marked in (True, False):  # as earlier versions wrote it
        torch.save({name: t for name, t in state.items() if marked or name != 'maxpool.small_stem'}, tmp_path/'w.pth')
        # without the mark, the shapes of a deep stem do not tell
        small = has_small_stem(make_encoder(arch), read_weights(tmp_path/'w.pth'))
        assert bool(small) == (small_stem and (marked or arch == 'resnet18'))
    learn = learner(dots(), arch, weights=tmp_path/'w.pth')
    n = len(timm.create_model(arch, num_classes=0).state_dict())
    assert f'{n} of {n} tensors' in learn.notes[0] and 'not there' not in learn.notes[0]


def test_weights_of_the_other_stem_in_a_module(tmp_path):
    torch.save(trained('resnet10t', small_input=True).state_dict(), tmp_path/'w.pth')
    said(['stem for small pictures', 'resnet10t', 'small_input=True'], contrastive_learner, dots(),
         timm.create_model('resnet10t', num_classes=0), weights=tmp_path/'w.pth')
    net = timm.create_model('resnet10t_small', num_classes=0)
    learn = learner(dots(), net, weights=tmp_path/'w.pth')
    assert (learn.arch, learn.small_input) == ('resnet10t', True)
    assert learner(dots(), 'resnet10t_small').small_input


@pytest.mark.parametrize('given', ['~/net', 'local-dir:~/net'])
def test_a_folder_of_timms(tmp_path, monkeypatch, dls, source, given):
    monkeypatch.setenv('HOME', str(tmp_path))
    save_for_hf(source, tmp_path/'net', safe_serialization=True)
    for arch in (ARCH, None):
        learn = learner(dls, arch, weights=given)
        same_features(learn.model.encoder, source)
        assert learn.arch == ARCH and 'local-dir' in learn.weights_from
    assert architecture_of(given) == ARCH
    said([ARCH, 'resnet18'], contrastive_learner, dls, 'resnet18', weights=given)


@pytest.fixture
def hub(tmp_path, monkeypatch, source):
    "A Hub of Hugging Face with one model, whatever it is called"
    save_for_hf(source, tmp_path/'hub', safe_serialization=True)
    asked = []
    def download(repo_id, filename, **kwargs):
        asked.append((repo_id, filename))
        return str(tmp_path/'hub'/('config.json' if filename == 'config.json' else 'model.safetensors'))
    monkeypatch.setattr('timm.models._hub.hf_hub_download', download)
    return asked


def test_the_hub_and_tags(hub, dls, source):
    learn = learner(dls, weights='hf-hub:somebody/net')
    same_features(learn.model.encoder, source)
    assert learn.arch == ARCH and learn.weights_from == "'hf-hub:somebody/net'"
    assert hub[0] == ('somebody/net', 'config.json')
    tag = next(name for name in timm.list_pretrained(f'{ARCH}.*'))
    for given in (dict(weights=tag), dict(weights=tag, arch=None), dict(pretrained=True),
                  dict(arch=tag, pretrained=True)):
        learn = learner(dls, **given)
        same_features(learn.model.encoder, source)
        assert learn.arch.split('.')[0] == ARCH and learn.weights_from and learn.head_warmup.epochs is None
    for other in ('resnet18', 10**9): said([ARCH, str(other)], contrastive_learner, dls, other, weights=tag)
    said(["unknown tag of 'test_resnet' 'nonsense'"], contrastive_learner, dls, None, weights=f'{ARCH}.nonsense')
    said(['pretrained', 'one of the two'], contrastive_learner, dls, ARCH, weights=tag, pretrained=True)
    said(['small_input'], contrastive_learner, dls, 'resnet18', weights='resnet18.a1_in1k', small_input=True)


@pytest.mark.parametrize('small_stem', [True, False])
def test_our_own_on_the_hub_and_in_a_folder(tmp_path, monkeypatch, small_stem):
    "Stem, frame and values follow, as from the file; nothing is asked for that would be unpickled"
    source, asked = trained('resnet10t', small_input=small_stem), []
    extra = dict(value_range=[0, 4095])
    export_encoder(source, tmp_path/'net', 'resnet10t', SIDE, **FRAME, small_input=small_stem, extra=extra)
    def download(repo_id, filename, **kwargs):
        asked.append(filename)
        return str(tmp_path/'net'/filename)
    monkeypatch.setattr('timm.models._hub.hf_hub_download', download)
    for given in ('hf-hub:somebody/net', f"local-dir:{tmp_path/'net'}", tmp_path/'net'):
        for arch in (None, 'resnet10t'):
            learn = learner(dots(), arch, weights=given)
            same_features(learn.model.encoder, source)
            assert (learn.arch, learn.small_input, learn.mean) == ('resnet10t', small_stem, (.1, .2, .3))
        assert architecture_of(given) == 'resnet10t' and read_weights(given).info['extra'] == extra
        said(['resnet10t', 'resnet18'], contrastive_learner, dots(), 'resnet18', weights=given)
    assert set(asked) == {'config.json', 'model.safetensors'}


def test_no_network(monkeypatch, dls, caplog, capsys):
    "One sentence, and nothing of what the client of the Hub says of each of its tries"
    hub, client = logging.getLogger('huggingface_hub'), logging.getLogger('huggingface_hub.utils._http')
    level = hub.level
    def broken(*args, **kwargs):
        client.warning('thrown while requesting HEAD')
        await_timers()
        raise OSError('nobody answers\n' * 900)
    monkeypatch.setattr('timm.models._hub.hf_hub_download', broken)
    monkeypatch.setattr(artefact, 'waiting', partial(waiting, patience=0.01))
    for name, arch, given in (('hf-hub:a/b', None, dict(weights='hf-hub:a/b')), (ARCH, ARCH, dict(pretrained=True))):
        said([name, 'nobody answers'], contrastive_learner, dls, arch, **given)
        told = capsys.readouterr().err
        assert told.startswith(f"looking for '{name}' here and on the network") and told.count('\n') == 1
    assert not caplog.messages and hub.level == level
    client.warning('thrown elsewhere')
    assert caplog.messages == ['thrown elsewhere']  # others may hear of it


def test_a_model_of_the_hub_is_exported_by_what_it_is(hub, dls, tmp_path):
    "So that whoever loads the file asks nobody"
    for given in (dict(), dict(small_input=True), dict(pretrained=True)):
        for arch in ('hf-hub:somebody/net', f"local-dir:{tmp_path/'hub'}"):
            learn = learner(dls, arch, **given)
            assert learn.arch == ARCH and learn.small_input == (not given or 'small_input' in given)
            file = learn.export(tmp_path/'e')
            hub.clear()
            same_features(learn.model.encoder, load_encoder(file))
            assert not hub and encoder_info(file)['arch'] == ARCH


@pytest.mark.parametrize('place', ['hf-hub:somebody/net', 'local-dir:/somewhere'])
def test_a_file_that_would_have_a_model_fetched(hub, tmp_path, dls, source, place):
    "As an earlier version wrote it, or whoever"
    said([place, 'a place to fetch'], export_encoder, source, tmp_path/'e', place, SIDE, **FRAME)
    file = export_encoder(source, tmp_path/'e.safetensors', ARCH, SIDE, **FRAME)
    header = read_header(file) | dict(arch=json.dumps(place))
    del header['sha256']
    tensors = load_file(file)
    save_file(tensors, file, metadata={**header, 'sha256': digest(tensors, header)})
    for f in (load_encoder, read_weights): said([place, 'not fetched here', 'model=…'], f, file)
    for arch in (None, ARCH): said([place, 'as arch'], contrastive_learner, dls, arch, weights=file)
    assert not hub
    net = make_encoder(ARCH, size=SIDE)
    same_features(load_encoder(file, model=net), source)
    same_features(learner(dls, net, weights=file).model.encoder, source)


# --- tensors that do not fit

def test_other_shapes_are_named_and_the_rest_is_taken(tmp_path, dls, source):
    state = dict(source.state_dict())
    state |= {name: torch.ones(*t.shape, 2) for name, t in list(state.items())[-40:-30]}
    gone = [name for name in list(state)[:9] if not name.endswith('tracked')]
    for name in gone: del state[name]
    state |= {f'odd\x1b[31m{i}': torch.ones(2) for i in range(7)}
    torch.save(state, tmp_path/'w.pth')
    learn = learner(dls, weights=tmp_path/'w.pth')
    note = learn.notes[0]
    assert f'not there: {gone[0]}, ' in note and f'and {len(gone) - 4} more' in note and 'of another shape: ' in note
    assert 'unknown: odd\\x1b[31m0' in note and '\x1b' not in note and len(note) < 900
    own = learn.model.encoder.state_dict()
    fit = [name for name, t in state.items() if name in own and t.shape == own[name].shape]
    assert len(fit) > 30 and all(torch.equal(own[name].cpu(), state[name]) for name in fit)


def test_nothing_fits(tmp_path, dls):
    torch.save({'a.weight': torch.ones(3, 3), 'bias': torch.ones(3)}, tmp_path/'w.pth')
    said(['nothing in', ARCH, 'a.weight'], contrastive_learner, dls, ARCH, weights=tmp_path/'w.pth')
    torch.save({name: torch.ones(3, 3, 9) for name in make_encoder(ARCH).state_dict()}, tmp_path/'w.pth')
    said(['nothing in', '[3, 3, 9] for ['], contrastive_learner, dls, ARCH, weights=tmp_path/'w.pth')
    said(['do not say', 'give arch'], contrastive_learner, dls, None, weights=tmp_path/'w.pth')


def test_other_sides_of_a_transformer(tmp_path):
    source = trained('test_vit', 64)
    file = export_encoder(source, tmp_path/'e.safetensors', 'test_vit', 64, **FRAME)
    learn = learner(dots(SIDE), 'test_vit', weights=file)
    n = len(source.state_dict())
    assert f'{n} of {n} tensors' in learn.notes[0] and 'shape' not in learn.notes[0]
    theirs = timm.create_model('test_vit', num_classes=0, img_size=SIDE, dynamic_img_size=True)
    timm.models.load_checkpoint(theirs, str(file), filter_fn=timm.models.vision_transformer.checkpoint_filter_fn)
    same_features(learn.model.encoder, theirs.eval())


# --- names of the authors' own, which timm changes

DEIT_3 = dict(embed_dim=24, depth=2, num_heads=2, img_size=SIDE, num_classes=0)


def renamed(state, *rules):
    "A state dict with names changed by patterns, one after the other"
    for pattern, new in rules: state = {re.sub(pattern, new, name): t for name, t in state.items()}
    return state


def moved(encoder):
    "An encoder whose every number is another than when it was made"
    with torch.no_grad():
        for p in encoder.parameters(): p.add_(0.1 * torch.randn_like(p))
    return encoder.eval()


@pytest.mark.parametrize('small_patches', [False, True])
def test_scales_of_deit_3(small_patches):
    "Facebook's file has 'gamma_1' where timm has 'ls1.gamma'"
    source, encoder = (timm.create_model('deit3_small_patch16_224', **DEIT_3) for _ in range(2))
    for net in (source, encoder) if small_patches else (): small_stem(net)
    theirs = renamed(moved(source).state_dict(), (r'ls(\d)\.gamma', r'gamma_\1'))
    assert 'blocks.1.gamma_2' in theirs
    fitted = fit_tensors(encoder, Weights('x', under('module.', theirs)))
    assert not (fitted.missing or fitted.unused or fitted.other or fitted.doubts('x', 'a'))
    same_features(encoder, source)


def test_scales_that_are_not_there_are_told_as_a_warning():
    encoder = timm.create_model('deit3_small_patch16_224', **DEIT_3)
    plain = {name: t for name, t in encoder.state_dict().items() if 'gamma' not in name}
    fitted = fit_tensors(encoder, Weights("'w.pth'", plain))
    assert fitted.share > 0.99
    doubt, = fitted.doubts("'w.pth'", 'deit3')
    assert doubt.startswith("'w.pth' has no blocks.0.ls1.gamma, ") and 'begin with 1e-06' in doubt and '\n' not in doubt
    with torch.no_grad():  # those of a module that has learnt some are its own
        for block in encoder.blocks: block.ls1.gamma.fill_(1), block.ls2.gamma.fill_(0.5)
    assert not fit_tensors(encoder, Weights("'w.pth'", plain)).doubts("'w.pth'", 'deit3')


def test_torchvisions_regnet(tmp_path):
    net = torchvision.models.regnet_x_400mf(num_classes=10)
    torch.save(net.state_dict(), tmp_path/'w.pth')
    learn = learner(dots(64), 'regnetx_004_tv', weights=tmp_path/'w.pth')
    net.fc = nn.Identity()
    assert 'not there' not in learn.notes[0] and '2 of its heads left out' in learn.notes[0]
    same_features(learn.model.encoder, net.eval(), 64)


def test_torchvisions_densenet():
    "Its files have the names of an earlier release, and no counts of batches"
    source, encoder = (timm.create_model('densenet121', growth_rate=4, block_config=(1, 1, 2, 1), num_classes=0)
                       for _ in range(2))
    theirs = renamed(moved(source).state_dict(), (r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2'))
    assert 'features.denseblock3.denselayer2.norm.1.weight' in theirs
    theirs = {name: t for name, t in theirs.items() if not name.endswith('tracked')}
    fitted = fit_tensors(encoder, Weights('x', theirs))
    assert not (fitted.missing or fitted.unused or fitted.other)
    same_features(encoder, source)


def of_meta(state):
    "The names of Meta's ConvNeXts"
    return renamed(state, (r'^stem\.', 'downsample_layers.0.'), ('conv_dw', 'dwconv'), (r'mlp\.fc', 'pwconv'),
                   (r'^stages\.(\d)\.downsample', r'downsample_layers.\1'), (r'^(stages\.\d)\.blocks', r'\1'),
                   (r'mlp\.grn\.weight', 'grn.gamma'), (r'mlp\.grn\.bias', 'grn.beta'), (r'^head\.norm', 'norm'))


@pytest.mark.parametrize('arch', ['test_convnext', 'convnextv2_atto'])
@pytest.mark.parametrize('wrapped', [
    lambda s: s, lambda s: dict(model=s), lambda s: under('module.', s),
    lambda s: dict(state_dict=under('momentum_backbone.', noise(s)) | under('backbone.', s)),
    lambda s: s | {'head.weight': torch.ones(5, 64), 'head.bias': torch.ones(5)}])
def test_metas_convnexts(tmp_path, arch, wrapped):
    "Four of whose tensors have names of timm's children by number, under the prefix 'downsample_layers'"
    source = trained(arch)
    theirs = of_meta(source.state_dict())
    assert 'downsample_layers.0.0.weight' in theirs and 'stages.1.0.pwconv1.weight' in theirs
    torch.save(wrapped(theirs), tmp_path/'w.pth')
    learn = learner(dots(), arch, weights=tmp_path/'w.pth')
    n = len(source.state_dict())
    assert f'{n} of {n} tensors' in learn.notes[0] and 'unknown' not in learn.notes[0] and not learn.doubts
    same_features(learn.model.encoder, source)


def test_patches_of_another_side_are_told_as_a_warning():
    "As where a file of patches of 8 pixels is given for an architecture with 16, whose filters timm resamples"
    small = dict(img_size=64, embed_dim=24, depth=1, num_heads=2, num_classes=0)
    fine, coarse = (timm.create_model(f'vit_small_patch{side}_224', **small) for side in (8, 16))
    doubt, = fit_tensors(coarse, Weights("'w.pth'", under('backbone.', fine.state_dict()))).doubts("'w.pth'", 'a')
    assert doubt.startswith("'patch_embed.proj.weight' of 'w.pth' has filters of 8x8 pixels")
    assert "for the 16x16 of 'vit_small_patch16_224'" in doubt
    assert not fit_tensors(coarse, Weights('x', coarse.state_dict())).doubts('x', 'a')


@pytest.mark.parametrize('word', ['base_encoder', 'momentum_encoder'])
def test_the_heads_of_moco_v3_are_told_as_a_warning(tmp_path, word):
    "Its ViT-S has 12, and timm's, with the same tensors, has 6"
    def made(**more): return timm.create_model('vit_small_patch16_224', depth=1, img_size=SIDE, num_classes=0, **more)
    source = made(num_heads=12)
    theirs = under(f'module.{word}.', source.state_dict())
    doubt, = fit_tensors(made(), Weights("'w.pth'", theirs)).doubts("'w.pth'", 'a')
    assert doubt.startswith("'w.pth' has the names of MoCo v3, whose ViT of width 384 has 12 heads, and ")
    assert "'vit_small_patch16_224' has 6" in doubt
    assert f"timm.create_model('vit_small_patch16_224', num_heads=12, img_size={SIDE})" in doubt
    torch.save(dict(state_dict=theirs), tmp_path/'w.pth')
    learn = learner(dots(), made(num_heads=12), weights=tmp_path/'w.pth')
    assert not learn.doubts
    same_features(learn.model.encoder, source.eval())
    assert not fit_tensors(made(), Weights('x', under('backbone.', source.state_dict()))).doubts('x', 'a')


@pytest.mark.parametrize('arch, name', [('vgg11', '_filter_fn'), ('crossvit_tiny_240', 'pretrained_filter_fn'),
                                        ('convnext_atto', 'checkpoint_filter_fn'), ('resnet18', None)])
def test_what_timm_changes_files_with_is_the_models_own(arch, name):
    with torch.device('meta'): encoder = timm.create_model(arch)
    assert getattr(_timm_filter(encoder), '__name__', None) == name
    assert _timm_filter(nn.Linear(2, 2)) is None and _timm_filter(torchvision.models.resnet18()) is None


def test_a_model_that_no_name_makes_has_what_its_module_has():
    net = timm.models.VisionTransformer(img_size=SIDE, embed_dim=24, depth=1, num_heads=2, num_classes=0)
    assert _timm_filter(net) is timm.models.vision_transformer.checkpoint_filter_fn


def test_other_channels():
    "As timm does it from three, and from others alike"
    source = make_encoder('resnet18')
    one = make_encoder('resnet18', in_chans=1)
    fitted = fit_tensors(one, Weights('x', source.state_dict()))
    assert not fitted.missing and not fitted.other
    close(one.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
    assert fitted.changed == ['conv1.weight (3 to 1)']
    back = make_encoder('resnet18')
    fitted = fit_tensors(back, Weights('x', one.state_dict()))
    assert not fitted.missing and not fitted.other and fitted.changed == ['conv1.weight (1 to 3)']
    close(back.conv1.weight, one.conv1.weight.expand(-1, 3, -1, -1) / 3)
    assert '; filters changed to other channels: conv1.weight (1 to 3)' in fitted.note('x')


def test_half_of_an_encoder_is_told_as_a_warning(tmp_path, capsys):
    "As where the weights are of another architecture, whose tensors have the same names and shapes"
    torch.save(make_encoder('resnet18').state_dict(), tmp_path/'w.pth')
    for arch in ('resnet34', timm.create_model('resnet34', num_classes=0)):
        learn = learner(dots(), arch, weights=tmp_path/'w.pth')
        capsys.readouterr()
        learn.fit_contrastive(1, 1e-3)
        line, = [line for line in capsys.readouterr().out.splitlines() if line.startswith('warning: ')]
        assert "52 % of the numbers of 'resnet34' are from" in line and 'drawn at random' in line
        assert [f'warning: {doubt}' for doubt in learn.doubts] == [line] and '52 % of its numbers' in learn.notes[-1]
    state = make_encoder('resnet34').state_dict()
    del state['layer4.2.conv2.weight']
    torch.save(state, tmp_path/'w.pth')
    assert '88 %' in learner(dots(), 'resnet34', weights=tmp_path/'w.pth').doubts[0]
    state = make_encoder('resnet34').state_dict()
    del state['conv1.weight']
    torch.save(state, tmp_path/'w.pth')
    learn = learner(dots(), 'resnet34', weights=tmp_path/'w.pth')
    assert not learn.doubts and '99 % of its numbers; not there: conv1.weight' in learn.notes[0]


@pytest.mark.parametrize('there, arch, percent', [('resnet18', 'resnet50', 26), ('resnet10t', 'resnet34', 22)])
def test_a_small_part_of_an_encoder_is_refused(there, arch, percent):
    encoder = make_encoder(arch)
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    said([f"{percent} % of the numbers of '{arch}'", 'give the architecture of these weights', 'strict=False'],
         fit_tensors, encoder, Weights('w.pth', make_encoder(there).state_dict()))
    assert all(torch.equal(t, before[name]) for name, t in encoder.state_dict().items())
    # the way out
    encoder.load_state_dict({name: t for name, t in make_encoder(there).state_dict().items()
                             if name in before and t.shape == before[name].shape}, strict=False)
    assert learner(dots(), encoder).arch == arch


# --- files that are something else

class Evil:
    def __reduce__(self): return os.mkdir, ('ran',)


def test_pickles_that_need_more_are_refused(tmp_path, monkeypatch, dls, source):
    monkeypatch.chdir(tmp_path)
    for content in (dict(state_dict=source.state_dict(), more=Evil()), source):
        torch.save(content, 'w.pth')
        said(['w.pth', 'more than tensors', 'state dict alone'], contrastive_learner, dls, ARCH, weights='w.pth')
    assert not os.path.exists('ran')


@pytest.mark.parametrize('content,words', [
    (b'', ["can't be read"]), (b'hello world, hello', ["can't be read"]), (b'PK\x03\x04', ["can't be read"]),
    (b'\x80\x02' + bytes(9), ["can't be read"])])
def test_files_that_are_something_else(tmp_path, dls, content, words):
    (tmp_path/'w.pth').write_bytes(content)
    said(words, contrastive_learner, dls, ARCH, weights=tmp_path/'w.pth')
    (tmp_path/'w.safetensors').write_bytes(content)
    said(['no whole safetensors file'], contrastive_learner, dls, ARCH, weights=tmp_path/'w.safetensors')


def test_what_is_no_weights(tmp_path, dls):
    torch.save([1, 2], tmp_path/'w.pth')
    said(['no tensors by name'], contrastive_learner, dls, ARCH, weights=tmp_path/'w.pth')
    said(['config.json'], contrastive_learner, dls, ARCH, weights=tmp_path)
    said(['weights=3'], contrastive_learner, dls, ARCH, weights=3)
    said(["weights=''"], contrastive_learner, dls, ARCH, weights='')
    for name in ('nowhere/w.pth', 'resnet18.pth', 'resnet18.safetensors'):
        with pytest.raises(MissingPath, match='neither a file'): contrastive_learner(dls, ARCH, weights=name)
    for name in ('~nobody_is_called_this/x', 'local-dir:~nobody_is_called_this/x'):
        said(['somebody unknown here'], contrastive_learner, dls, ARCH, weights=name)
    said(['w\\xff.pth is no UTF-8'], contrastive_learner, dls, ARCH, weights=os.fsdecode(b'w\xff.pth'))
    with within(10): said(['config.json'], timm_source, no_file(tmp_path/'f/config.json', 'pipe').parent)
    shutil.copy(tmp_path/'w.pth', tmp_path/'x.safetensors')
    said(['no whole safetensors'], contrastive_learner, dls, ARCH, weights=tmp_path/'x.safetensors')


def test_files_that_are_called_like_a_model(tmp_path, monkeypatch, dls, source):
    monkeypatch.chdir(tmp_path)
    torch.save(source.state_dict(), f'{ARCH}.pth')
    assert timm_source(f'{ARCH}.pth') is None and timm_source(ARCH) == ARCH
    same_features(learner(dls, weights=f'{ARCH}.pth').model.encoder, source)


def test_an_altered_export_is_refused(tmp_path, dls, source):
    file = export_encoder(source, tmp_path/'e.safetensors', ARCH, SIDE, **FRAME)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match='altered or damaged'): learner(dls, weights=file)


@pytest.mark.parametrize('change, words', [
    (lambda t: (t * 100).to(torch.int8), 'int8 for float32'),
    (lambda t: t.to(torch.complex64), 'complex64 for float32'),
    (lambda t: t > 0, 'bool for float32')])
def test_numbers_of_another_type_are_no_weights(tmp_path, dls, source, change, words):
    state = dict(source.state_dict())
    changed = {name: change(t) if t.is_floating_point() else t for name, t in state.items()}
    torch.save(changed, tmp_path/'w.pth')
    said(['nothing in', words], contrastive_learner, dls, ARCH, weights=tmp_path/'w.pth')
    name = next(iter(state))
    torch.save(state | {name: changed[name]}, tmp_path/'w.pth')
    assert f'of another shape: {name} {words}' in learner(dls, weights=tmp_path/'w.pth').notes[0]


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e300])
def test_weights_that_are_no_numbers(tmp_path, dls, source, value):
    state = {name: t.double() if t.is_floating_point() else t for name, t in source.state_dict().items()}
    name = [name for name, t in state.items() if t.ndim > 1][1]
    state[name][0] = value
    torch.save(state, tmp_path/'w.pth')
    said(['not finite', f"'{name}'"], contrastive_learner, dls, ARCH, weights=tmp_path/'w.pth')


def test_a_run_that_was_cut_short_says_so(tmp_path, dls, source):
    file = export_encoder(source, tmp_path/'encoder.safetensors', ARCH, SIDE, **FRAME)
    export_encoder(trained('resnet10t'), tmp_path/'model.safetensors', 'resnet10t', SIDE, **FRAME)
    file.write_bytes(file.read_bytes()[:2000])
    for arch in (ARCH, None): said(['no whole safetensors'], contrastive_learner, dls, arch, weights=tmp_path)


def test_wrappers_that_are_empty_are_passed_over(tmp_path, dls, source):
    torch.save(dict(model=dict(name='net'), network={}, teacher=source.state_dict()), tmp_path/'w.pth')
    same_features(learner(dls, weights=tmp_path/'w.pth').model.encoder, source)


@pytest.mark.parametrize('kind', KINDS)
def test_only_files_are_opened(tmp_path, dls, source, kind):
    save_for_hf(source, tmp_path/'hub', safe_serialization=True)
    (tmp_path/'hub/model.safetensors').unlink()
    no_file(tmp_path/'hub/model.safetensors', kind)
    no_file(tmp_path/'other/config.json', kind)
    no_file(tmp_path/'run/encoder.safetensors', kind)
    with within(20):
        for given in (tmp_path/'hub', f"local-dir:{tmp_path/'hub'}"):
            said([KINDS[kind]], contrastive_learner, dls, ARCH, weights=given)
        for given in ('other', 'run'):
            said(['holds neither'], contrastive_learner, dls, ARCH, weights=tmp_path/given)


def test_names_that_lead_nowhere(tmp_path, dls, source):
    for given in ('~nobody_is_called_this/w.pth', 'x' * 300, 'a\0', '\ud800'):
        said(['weights='], contrastive_learner, dls, ARCH, weights=given)
    odd = tmp_path/os.fsdecode(b'\xff.safetensors')
    odd.write_bytes(b'')
    said(['no UTF-8'], contrastive_learner, dls, ARCH, weights=odd)


# --- training from them

def test_a_good_encoder_stays_good(tmp_path, capsys):
    "Its kNN before the first step is told, and that after the first epoch is within a point of it"
    dls = image_dls('digits', size=16, bs=128, device='cpu')
    first = contrastive_learner(dls, ARCH, method=simclr(), metrics='knn')
    first.create_mbar = False
    first.fit_contrastive(2)
    good = first.recorder.values[-1][1]
    file = first.export(tmp_path/'e')
    capsys.readouterr()
    learn = contrastive_learner(dls, weights=file, method=simclr(), metrics='knn')
    learn.create_mbar = False
    learn.fit_contrastive(2)
    out = capsys.readouterr().out
    assert f'before training: knn {good:.3f}' in out and 'the encoder stands still in the first epoch' in out
    assert "is the recipe's for training from scratch" in out and 'tensors' in out
    knn = [row[1] for row in learn.recorder.values]
    assert knn[0] == pytest.approx(good, abs=0.01) and knn[-1] > good - 0.1
    learn.fit_contrastive(1, 1e-3)
    assert 'from scratch' not in capsys.readouterr().out
