"The folder that an encoder is handed on in: what other libraries make of it, what may lie where it is written, the Hub"
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from helpers.odd import KINDS, no_file, within
from helpers.refusals import said
from huggingface_hub import constants, errors
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import get_model

from fastcontrast import artefact
from fastcontrast.artefact import check_free, find_encoder, push_folder, training_facts, usage, write_files
from fastcontrast.core import InputError, MissingPath
from fastcontrast.export import (digest, encoder_info, export_copy, export_encoder, load_classifier, load_encoder,
                                 read_header, write_folder)
from fastcontrast.models import make_encoder

SIDE = 32
FRAME = dict(size=SIDE, mean=[.4, .5, .6], std=[.2, .25, .3])
MADE = dict(resnet=dict(arch='test_resnet'), small=dict(arch='test_resnet', small_input=True),
            vit=dict(arch='test_vit'))
CLASSES = ['cat', 'dog', 'a | b']


def close(a, b): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope='module', params=MADE)
def exported(request, tmp_path_factory):
    "An encoder whose batch norms have seen something, its folder, pictures, and its features of them"
    torch.manual_seed(0)
    kind, made = request.param, MADE[request.param]
    encoder, x = make_encoder(**made, size=SIDE), torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        encoder(torch.randn(8, 3, SIDE, SIDE))
        folder = write_folder(encoder, tmp_path_factory.mktemp('net')/kind, **FRAME, **made, recipe='simclr')
        return kind, folder, encoder.eval(), x, encoder(x)


@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    return make_encoder('test_resnet').eval()


@pytest.fixture
def folder(tiny, tmp_path): return write_folder(tiny, tmp_path/'net', 'test_resnet', **FRAME)


# ---------------------------------------------------------------- what other libraries make of it

@torch.no_grad()
def test_timm(exported):
    kind, folder, encoder, x, h = exported
    made = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    close(made(x), h)
    close(load_encoder(folder)(x), h)
    about = timm.data.resolve_data_config({}, model=made)
    assert tuple(about['input_size']) == (3, SIDE, SIDE)
    assert about['crop_pct'] == 1 and about['interpolation'] == 'bilinear'
    assert tuple(about['mean']) == (.4, .5, .6) and tuple(about['std']) == (.2, .25, .3)
    assert made.num_classes == 0 and made.pretrained_cfg['architecture'] == encoder.pretrained_cfg['architecture']
    maps = timm.create_model(f'local-dir:{folder}', pretrained=True, features_only=True).eval()(x)
    if kind != 'vit': close(maps[-1].mean((2, 3)), h)
    else: close(maps[-1], encoder.forward_intermediates(x, intermediates_only=True)[-1])


@torch.no_grad()
def test_timm_with_other_channels_and_sizes(exported):
    kind, folder, encoder, x, h = exported
    grey = timm.create_model(f'local-dir:{folder}', pretrained=True, in_chans=1).eval()
    close(grey(x[:, :1]), encoder(x[:, :1].expand(-1, 3, -1, -1)))
    larger, size = torch.rand(2, 3, 64, 64), dict(img_size=64) if kind == 'vit' else {}
    made = timm.create_model(f'local-dir:{folder}', pretrained=True, **size).eval()
    close(made(larger), load_encoder(folder)(larger))


@pytest.mark.parametrize('channels', [1, 4])
@torch.no_grad()
def test_encoders_of_other_channels(tmp_path, channels):
    from transformers import AutoModel
    encoder = make_encoder('test_resnet', in_chans=channels).eval()
    write_folder(encoder, tmp_path/'net', 'test_resnet', SIDE, [.5] * channels, [.2] * channels)
    x = torch.rand(2, channels, SIDE, SIDE)
    for made in (load_encoder(tmp_path/'net'), timm.create_model(f"local-dir:{tmp_path/'net'}", pretrained=True)):
        close(made.eval()(x), encoder(x))
    close(AutoModel.from_pretrained(str(tmp_path/'net')).eval()(x).pooler_output, encoder(x))
    if channels == 1: return  # else other channels are refused, which older releases of timm would get wrong
    with pytest.raises(RuntimeError, match='size mismatch'):
        timm.create_model(f"local-dir:{tmp_path/'net'}", pretrained=True, in_chans=3)


@torch.no_grad()
def test_fastai(exported):
    from fastai.vision.all import DynamicUnet, create_body, create_timm_model
    kind, folder, encoder, x, h = exported
    net, about = create_timm_model(f'local-dir:{folder}', 10)  # what vision_learner calls
    y = net.eval()[0](x)
    close(y.mean((2, 3)) if y.ndim == 4 else y, h)
    assert net(x).shape == (2, 10) and about['mean'] == [.4, .5, .6]
    if kind != 'resnet': return
    body = create_body(timm.create_model(f'local-dir:{folder}', pretrained=True)).eval()
    close(body(x).mean((2, 3)), h)
    assert DynamicUnet(body, 2, (SIDE, SIDE)).eval()(x).shape == (2, 2, SIDE, SIDE)


@torch.no_grad()
def test_torchvisions_detectors(exported):
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    kind, folder, encoder, x, h = exported
    if kind == 'vit': return  # it has no stages of several scales
    body = timm.create_model(f'local-dir:{folder}', pretrained=True, features_only=True, out_indices=(1, 2, 3, 4))
    stages = {f'layer{i}': str(i - 1) for i in (1, 2, 3, 4)}
    backbone = BackboneWithFPN(body, stages, body.feature_info.channels(), 32).eval()
    close(backbone.body(x)['3'].mean((2, 3)), h)
    model = FasterRCNN(backbone, num_classes=2, min_size=SIDE, max_size=SIDE).eval()
    assert kind != 'resnet' or model([x[0]])[0].keys() == {'boxes', 'labels', 'scores'}


@torch.no_grad()
def test_transformers(exported):
    from transformers import AutoImageProcessor, AutoModel
    kind, folder, encoder, x, h = exported
    close(AutoModel.from_pretrained(str(folder)).eval()(x).pooler_output, h)
    picture = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    found = AutoImageProcessor.from_pretrained(str(folder))(Image.fromarray(picture), return_tensors='pt').pixel_values
    mean, std = (torch.tensor(FRAME[name]).view(3, 1, 1) for name in ('mean', 'std'))
    close(found[0], (torch.from_numpy(picture).permute(2, 0, 1) / 255 - mean) / std)


@torch.no_grad()
def test_segmentation_models(exported):
    import segmentation_models_pytorch as smp
    kind, folder, encoder, x, h = exported
    if kind != 'resnet':  # stages that begin with the pictures' own side, or have but one
        with pytest.raises(ValueError, match='Unsupported model downsampling'): smp.Unet(f'tu-local-dir:{folder}')
        return
    unet = smp.Unet(f'tu-local-dir:{folder}').eval()
    close(unet.encoder(x)[-1].mean((2, 3)), h)
    assert unet(x).shape == (2, 1, SIDE, SIDE)


@pytest.mark.slow
@torch.no_grad()
def test_onnx(exported, tmp_path):
    import onnxruntime
    kind, folder, encoder, x, h = exported
    session = onnxruntime.InferenceSession(export_copy(folder, tmp_path/'e.onnx', to='onnx'))
    for n in (1, 2): close(torch.from_numpy(session.run(['features'], dict(pictures=x[:n].numpy()))[0]), h[:n])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about['mean']) == FRAME['mean'] and about['size'] == str(SIDE)
    assert os.listdir(tmp_path) == ['e.onnx']


def test_onnx_refused(folder, tmp_path, monkeypatch):
    said(["'e.safetensors'", '.onnx'], export_copy, folder, tmp_path/'e.safetensors', to='onnx')
    said(['push'], export_copy, folder, tmp_path/'e.onnx', push='a/b')  # the name says what is to load it
    def broken(*args, **kwargs): raise RuntimeError('no such operation\nat all')
    monkeypatch.setattr('torch.onnx.export', broken)
    said(['test_resnet', 'no such operation'], export_copy, folder, tmp_path/'e.onnx', to='onnx')
    assert os.listdir(tmp_path) == ['net']
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    said(['onnxscript', "pip install 'fastcontrast[hub]'"], export_copy, folder, tmp_path/'e.onnx', to='onnx')


def test_the_code_of_the_card_runs(exported, monkeypatch):
    kind, folder, encoder, x, h = exported
    monkeypatch.chdir(folder.parent)
    text = (folder/'README.md').read_text()
    code, found = text.split('```python\n')[1].split('```')[0], {}
    assert ('import fastcontrast' in code.splitlines()[0]) == (kind == 'small')
    assert ('segmentation_models' in code) == (kind == 'resnet')
    exec(code, found)
    close(found['encoder'](found['x']), encoder(found['x']))
    close(found['y'], encoder(found['x']))
    close(found['model'](found['x']).pooler_output, encoder(found['x']))


# ---------------------------------------------------------------- classifiers

@torch.no_grad()
def test_classifiers(exported, tmp_path, monkeypatch):
    from transformers import AutoModelForImageClassification
    kind, _, encoder, x, h = exported
    head = nn.Linear(h.shape[1], 3)
    folder = write_folder(encoder, tmp_path/'net', **FRAME, **MADE[kind], head=head, classes=CLASSES)
    model = load_classifier(folder)
    assert model.pretrained_cfg['label_names'] == CLASSES and model.num_classes == 3
    for made in (model, timm.create_model(f'local-dir:{folder}', pretrained=True).eval()): close(made(x), head(h))
    theirs = AutoModelForImageClassification.from_pretrained(str(folder)).eval()
    close(theirs(x).logits, head(h))
    assert list(theirs.config.id2label.values()) == CLASSES
    close(load_encoder(folder)(x), h)
    (tmp_path/'photos').mkdir()
    Image.new('RGB', (SIDE, SIDE), 'red').save(tmp_path/'photos'/'red.png')
    monkeypatch.chdir(tmp_path)
    code, names = (folder/'README.md').read_text().split('```python\n')[1].split('```')[0], {}
    exec(code, names)
    assert names['found'].classes == CLASSES and names['found'].names == ['red.png']
    copy = export_copy(folder, tmp_path/'copy')
    close(load_classifier(copy)(x), head(h))
    close(load_encoder(export_copy(folder, tmp_path/'e.safetensors'))(x), h)
    again = write_folder(model, tmp_path/'again', **FRAME, **MADE[kind], classes=CLASSES)
    close(load_classifier(again)(x), head(h))


def test_a_classifier_for_torchvision(tmp_path):
    encoder = timm.create_model('resnet18', num_classes=0)
    folder = write_folder(encoder, tmp_path/'net', 'resnet18', **FRAME, head=nn.Linear(512, 3), classes=CLASSES)
    copy = export_copy(folder, tmp_path/'copy', 'torchvision')
    theirs, x = get_model('resnet18', num_classes=3).eval(), torch.rand(2, 3, SIDE, SIDE)
    theirs.load_state_dict(load_file(copy/'model.safetensors'))
    close(theirs(x), load_classifier(copy)(x))


def test_classifiers_refused(tiny, tmp_path, folder):
    def refused(words, head=None, encoder=tiny, arch='test_resnet', **kw):
        said(words, write_folder, encoder, tmp_path/'new', arch, **FRAME, head=head, **kw)
    refused(['4 scores', '3 names'], nn.Linear(96, 4), classes=CLASSES)
    refused(['4 scores', '0 names'], nn.Linear(96, 4))
    refused(['classes=[]'], classes=[])
    refused(['classes='], nn.Linear(96, 2), classes=[1, 2])
    with pytest.raises(InputError, match="'fc.weight' has shape"):
        write_folder(tiny, tmp_path/'new', 'test_resnet', **FRAME, head=nn.Linear(9, 3), classes=CLASSES)
    with pytest.raises(InputError, match="'fc.weight' is missing"):
        write_folder(tiny, tmp_path/'new', 'test_resnet', **FRAME, classes=CLASSES)
    vit = make_encoder('deit_tiny_distilled_patch16_224', size=SIDE)
    refused(['no single layer'], nn.Linear(192, 3), vit, 'deit_tiny_distilled_patch16_224', classes=CLASSES)
    said(['tells no classes apart'], load_classifier, folder)
    assert os.listdir(tmp_path) == ['net']


# ---------------------------------------------------------------- what is written where

def test_what_a_folder_holds(folder, tiny):
    assert sorted(os.listdir(folder)) == ['README.md', 'config.json', 'model.safetensors']
    config, header = json.loads((folder/'config.json').read_text()), read_header(folder)
    assert config['architecture'] == 'test_resnet' and config['num_classes'] == 0 and 'model_args' not in config
    assert header['format'] == 'pt' and config['fastcontrast']['sha256'] == encoder_info(folder)['sha256']
    assert config['fastcontrast']['recipe'] is None
    assert not config['pretrained_cfg'].keys() & {'url', 'tag', 'hf_hub_id'}
    for name, t in load_file(folder/'model.safetensors').items(): assert torch.equal(t, tiny.state_dict()[name])


def test_the_card(tiny, tmp_path):
    facts = training_facts('DCL(0.1)', ['CombinePatches()', 'SuNCEt()'], 12345, 20, 754., .81234, .7, 10)
    folder = write_folder(tiny, tmp_path/'my net', 'test_resnet', **FRAME, recipe='fast', facts=facts,
                          extra=dict(value_range=[0, 4095]))
    text = (folder/'README.md').read_text()
    for row in ('method | fast', 'loss | DCL(0.1)', 'speedups | CombinePatches(), SuNCEt()', 'epochs | 20',
                'pictures to train on | 12,345', 'minutes | 12.6', 'kNN accuracy | 81.2%',
                'black and white | [0, 4095]', 'linear accuracy with 10 labels a class | 70.0%',
                'pictures | 3 channels, 32 x 32 pixels'):
        assert f'| {row} |' in text, row
    assert '# my net\n' in text and "load_encoder('my net')" in text
    assert 'accuracy' not in (write_folder(tiny, folder, 'test_resnet', **FRAME)/'README.md').read_text()
    odd = write_folder(tiny, folder, 'test_resnet', **FRAME, facts={'a|b': '<script>\n\x1b[31m'})
    assert '| a\\|b | &lt;script>\\n\\x1b[31m |' in (odd/'README.md').read_text()
    copied = export_copy(write_folder(tiny, folder, 'test_resnet', **FRAME, facts=facts), tmp_path/'copy')
    assert 'kNN accuracy | 81.2%' in (copied/'README.md').read_text()


@pytest.mark.parametrize('content', ['note.txt', 'README.md', 'config.json', 'model.safetensors', 'dir/x'])
def test_folders_with_something_else_stay_as_they_are(tiny, tmp_path, content):
    file = tmp_path/'net'/content
    file.parent.mkdir(parents=True)
    file.write_text('mine')
    said(['net', content.split('/')[0], 'no part'], write_folder, tiny, tmp_path/'net', 'test_resnet', **FRAME)
    assert file.read_text() == 'mine' and len(os.listdir(tmp_path/'net')) == 1 == len(os.listdir(tmp_path))


def test_what_else_may_lie_there(tiny, folder, tmp_path, monkeypatch):
    (folder/'note.txt').write_text('mine')
    said(['note.txt'], write_folder, tiny, folder, 'test_resnet', **FRAME)
    (folder/'note.txt').unlink()
    before = encoder_info(folder)
    write_folder(tiny, folder, 'test_resnet', **FRAME, recipe='byol')
    assert (before['recipe'], encoder_info(folder)['recipe']) == (None, 'byol')
    (tmp_path/'empty').mkdir()
    write_folder(tiny, tmp_path/'empty', 'test_resnet', **FRAME)
    (tmp_path/'file').write_text('')
    said(['file', 'is a file'], write_folder, tiny, tmp_path/'file', 'test_resnet', **FRAME)
    (tmp_path/'link').symlink_to(folder)
    check_free(tmp_path/'link')
    write_folder(tiny, tmp_path/'link', 'test_resnet', **FRAME, recipe='dino')
    assert (tmp_path/'link').is_symlink() and encoder_info(folder)['recipe'] == 'dino'
    monkeypatch.chdir(tmp_path/'empty')
    write_folder(tiny, '.', 'test_resnet', **FRAME)
    assert "load_encoder('empty')" in (tmp_path/'empty/README.md').read_text()
    assert sorted(os.listdir(tmp_path)) == ['empty', 'file', 'link', 'net']


@pytest.mark.parametrize('swaps', [True, False])
@pytest.mark.parametrize('fails', [1, 2, 3, 4])
def test_a_kill_leaves_one_that_is_whole(tiny, folder, tmp_path, monkeypatch, swaps, fails):
    "At whatever file it comes, or where the folders are exchanged"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    calls = []
    def call(*args):
        calls.append(args)
        if len(calls) == fails: raise KeyboardInterrupt
    written = artefact.write_whole
    def write(*args):
        call()
        return written(*args)
    def swap(one, other):
        call()
        return False
    monkeypatch.setattr(artefact, 'write_whole', write)
    if not swaps: monkeypatch.setattr(artefact, '_swap', swap)
    if fails < 4 or not swaps:
        with pytest.raises(KeyboardInterrupt): write_folder(tiny, folder, 'test_resnet', **FRAME, recipe='byol')
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    monkeypatch.setattr(artefact, 'write_whole', written)
    write_folder(tiny, folder, 'test_resnet', **FRAME, recipe='byol')  # as it goes on then
    assert encoder_info(folder)['recipe'] == 'byol' and os.listdir(tmp_path) == ['net']


def test_a_process_that_is_killed(tmp_path):
    "...at any instant, while it writes again and again"
    folder, content = tmp_path/'net', {name: name for name in ('a', 'b', 'c')}
    write_files(folder, content)
    ends = []
    for i in range(200):
        if i >= 8 and max(ends) > 1: break  # one was killed on the way
        child = os.fork()
        if not child:
            for n in count(): write_files(folder, {name: f'{name} {n}' for name in content})
        time.sleep(0.002 + 0.011 * (i % 7))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        words = {(folder/name).read_text()[1:] for name in content}
        assert len(words) == 1 and sorted(os.listdir(folder)) == ['a', 'b', 'c']
        ends.append(len(os.listdir(tmp_path)))
    write_files(folder, content)
    assert os.listdir(tmp_path) == ['net'] and max(ends) > 1


def test_what_a_killed_process_left_is_removed(tiny, folder, tmp_path):
    shutil.copytree(folder, tmp_path/'.net.123.partial')
    shutil.copytree(folder, tmp_path/'.other.123.partial')
    write_folder(tiny, folder, 'test_resnet', **FRAME)
    assert sorted(os.listdir(tmp_path)) == ['.other.123.partial', 'net']


def test_what_is_written_beside_it_stays(tmp_path):
    for name in ('net.123', 'net.123.old', 'net.v2.123', 'net.12.123', 'net.old.123'):
        (tmp_path/f'.{name}.partial').mkdir()
    write_files(tmp_path/'net', dict(a='b'))
    left = ['.net.12.123.partial', '.net.old.123.partial', '.net.v2.123.partial']
    assert sorted(os.listdir(tmp_path)) == [*left, 'net']


@pytest.mark.parametrize('name', ['.DS_Store', '._config.json', 'Thumbs.db', 'desktop.ini', '.ipynb_checkpoints/a.md'])
def test_what_a_system_leaves_in_a_folder(tiny, folder, tmp_path, name):
    "Is nobody's; other hidden files are"
    for place in (folder, tmp_path/'new'):
        (place/name).parent.mkdir(exist_ok=True, parents=True)
        (place/name).touch()
        write_folder(tiny, place, 'test_resnet', **FRAME, recipe='byol')
        assert encoder_info(place)['recipe'] == 'byol'
    (folder/'.git').mkdir()
    said(["holds '.git'"], write_folder, tiny, folder, 'test_resnet', **FRAME)


def test_a_folder_that_cannot_be_moved_away_stays(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(artefact, '_swap', lambda one, other: False)
    move = os.replace
    def broken(one, other):
        if Path(other) == folder and '.old.' not in Path(one).name: raise OSError('no room')
        return move(one, other)
    monkeypatch.setattr(os, 'replace', broken)
    with pytest.raises(OSError, match='no room'): write_files(folder, dict(a='b'))
    assert len(os.listdir(folder)) == 3 and os.listdir(tmp_path) == ['net']


def test_unwritable(tiny, tmp_path):
    (tmp_path/'file').write_text('')
    for place in ('file/net', 'file/a/net'):
        with pytest.raises(InputError, match='cannot be written'):
            write_folder(tiny, tmp_path/place, 'test_resnet', **FRAME)
    said(['facts'], write_folder, tiny, tmp_path/'net', 'test_resnet', **FRAME, facts=dict(a=object()))
    said(['no library makes'], export_encoder, nn.Identity(), tmp_path/'net', 'module:torch.nn.Identity', **FRAME)
    with pytest.raises(InputError, match='a place to fetch'):
        write_folder(tiny, tmp_path/'net', 'hf-hub:a/b', **FRAME)
    assert os.listdir(tmp_path) == ['file']


# ---------------------------------------------------------------- what is read

def test_places(folder, tmp_path, tiny):
    for place in (folder, str(folder), f'local-dir:{folder}', folder/'model.safetensors'):
        assert find_encoder(place) == folder/'model.safetensors'
        assert encoder_info(place)['arch'] == 'test_resnet'
    export_encoder(tiny, tmp_path/'run'/'encoder.safetensors', 'test_resnet', **FRAME)
    assert find_encoder(tmp_path/'run').name == 'encoder.safetensors'
    for read in (load_encoder, encoder_info, load_classifier):
        with pytest.raises(MissingPath, match='no file of an encoder'): read(tmp_path)


@pytest.mark.parametrize('change, words', [
    (lambda c: c | dict(architecture='resnet18'), ['architecture', 'resnet18']),
    (lambda c: c | dict(num_classes=5), ['num_classes']),
    (lambda c: c | dict(label_names=['a']), ['label_names']),
    (lambda c: c | dict(model_args=dict(in_chans=1)), ['in_chans']),
    (lambda c: c | dict(model_args=dict(img_size=10**9)), ['img_size', '1000000000']),
    (lambda c: c | dict(model_args=[]), ['pictures']),
    (lambda c: c | dict(pretrained_cfg=None), ['pictures']),
    (lambda c: c | dict(pretrained_cfg=c['pretrained_cfg'] | dict(mean=[0, 0, 0])), ['mean', '[0, 0, 0]']),
    (lambda c: c | dict(pretrained_cfg=c['pretrained_cfg'] | dict(input_size=[3, 64, 64])), ['input_size']),
    (lambda c: [c], ['no description'])])
def test_a_config_that_lies(folder, change, words):
    file = folder/'config.json'
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    for read in (load_encoder, encoder_info): said(['config.json', *words], read, folder)


@pytest.mark.parametrize('text', ['', '{', '[' * 10**5, '"\\ud800"'])
def test_a_config_that_is_none(folder, text):
    (folder/'config.json').write_text(text)
    said(['config.json', "can't be read"], load_encoder, folder)


@pytest.mark.parametrize('kind', KINDS)
def test_only_files_are_opened(folder, kind):
    (folder/'config.json').unlink()
    no_file(folder/'config.json', kind)
    with within(10): said([KINDS[kind]], load_encoder, folder)


def test_a_header_that_lies_of_classes(folder, tiny):
    tensors = load_file(folder/'model.safetensors')
    (folder/'config.json').unlink()
    for text, words in (('["a"]', "'fc.weight' is missing"), ('5', 'its classes is 5'), ('[]', 'its classes'),
                        (json.dumps(['a'] * 10**6), "'fc.weight' is missing")):
        header = {name: value for name, value in read_header(folder).items() if name != 'sha256'} | dict(classes=text)
        save_file(tensors, folder/'model.safetensors', metadata={**header, 'sha256': digest(tensors, header)})
        with pytest.raises(InputError, match=words): load_encoder(folder)


def test_nothing_is_unpickled(folder, tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'ran'),)
    (folder/'model.safetensors').unlink()
    (folder/'pytorch_model.bin').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(MissingPath): load_encoder(folder)
    (folder/'model.safetensors').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match='pickle'): load_encoder(folder)
    assert not (tmp_path/'ran').exists()


def test_timms_own_folder_is_left_to_timm(tiny, tmp_path):
    timm.models.save_for_hf(tiny, tmp_path/'net', safe_serialization=True)
    with pytest.raises(InputError, match='load it with timm itself'): load_encoder(tmp_path/'net')


# ---------------------------------------------------------------- the Hub

@pytest.fixture
def cache(folder, tmp_path, monkeypatch):
    "What the Hub's client keeps of models that it has downloaded, and no network"
    root = tmp_path/'cache'/'models--somebody--net'
    shutil.copytree(folder, root/'snapshots'/'abc')
    (root/'refs').mkdir()
    (root/'refs'/'main').write_text('abc')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    return root


@torch.no_grad()
def test_from_the_hub(cache, tiny):
    x = torch.rand(2, 3, SIDE, SIDE)
    close(load_encoder('hf-hub:somebody/net')(x), tiny(x))
    assert encoder_info('hf-hub:somebody/net@main')['arch'] == 'test_resnet'
    close(timm.create_model('hf-hub:somebody/net', pretrained=True).eval()(x), tiny(x))
    (cache/'snapshots'/'abc'/'config.json').write_text('{}')
    load_encoder('hf-hub:somebody/net')


def test_the_hub_is_asked_once_a_minute(folder, monkeypatch):
    asked = []
    def download(place, name):
        asked.append(name)
        return folder/name
    monkeypatch.setattr(artefact, 'download_from_hf', download)
    monkeypatch.setattr(artefact, '_GIVEN', {})
    for _ in range(2): load_encoder('hf-hub:a/net')
    assert encoder_info('hf-hub:a/net')['arch'] == 'test_resnet' and asked == ['config.json', 'model.safetensors']
    monkeypatch.setattr(artefact, 'FRESH', 0.)
    load_encoder('hf-hub:a/net')
    assert len(asked) == 4


def test_not_on_the_hub(cache):
    for place in ('hf-hub:somebody/other', 'hf-hub:', 'hf-hub:a/b/c', 'hf-hub:a@b@c', 'hf-hub:a\x1b[31m/b'):
        said(['has no config.json to give'], load_encoder, place)
    (cache/'snapshots'/'abc'/'model.safetensors').unlink()
    (cache/'snapshots'/'abc'/'pytorch_model.bin').write_bytes(b'\x80')
    said(['has no model.safetensors to give'], load_encoder, 'hf-hub:somebody/net')


class Api:
    "The Hub's client, of which it is kept what it was asked to upload"
    def __init__(self, log, error=None): self.log, self.error = log, error
    def create_repo(self, repo, **kwargs):
        if self.error: raise self.error
        self.log[repo] = kwargs
        class Url(str): repo_id = repo
        return Url(f'https://huggingface.co/{repo}')
    def upload_folder(self, repo_id, folder_path, **kwargs):
        self.log['files'] = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}


def test_upload(folder, tiny, tmp_path, monkeypatch):
    log = {}
    monkeypatch.setattr(artefact, 'HfApi', lambda: Api(log))
    assert push_folder(folder, 'somebody/net', private=True) == 'https://huggingface.co/somebody/net'
    assert log['somebody/net'] == dict(private=True, exist_ok=True)
    card = log['files'].pop('README.md').decode()
    assert log['files'] == {name: (folder/name).read_bytes() for name in ('config.json', 'model.safetensors')}
    info = encoder_info(folder)
    assert usage('hf-hub:somebody/net', info, True) in card and 'local-dir' not in card
    assert '\n# somebody/net\n' in card
    assert usage('net', info, True) in (folder/'README.md').read_text()
    for call in (export_encoder, write_folder):
        log.clear()
        call(tiny, tmp_path/'other', 'test_resnet', **FRAME, push='a/b')
        assert log.keys() == {'a/b', 'files'}
    said(['uploads a folder'], export_encoder, tiny, tmp_path/'e.safetensors', 'test_resnet', **FRAME, push='a/b')


def http_error(status):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return errors.HfHubHTTPError(f'{status} says the server\nRequest ID: 7', response=response)


@pytest.mark.parametrize('error, words', [
    (errors.LocalTokenNotFoundError('Token is required\nto call'), ['nobody is logged in', 'hf auth login']),
    (http_error(401), ['nobody is logged in']), (http_error(403), ['token may not']), (http_error(500), ['500 says']),
    (ConnectionError('nobody answers\n' * 99), ['nobody answers', 'network']),
    (errors.OfflineModeIsEnabled('Cannot reach it: offline mode'), ['offline mode'])])
def test_uploads_that_fail(folder, monkeypatch, error, words):
    monkeypatch.setattr(artefact, 'HfApi', lambda: Api({}, error))
    said(["can't be uploaded to 'a/b'", *words], push_folder, folder, 'a/b')


def test_uploads_refused(folder, tmp_path, tiny):
    for repo in ('', 'a b', 'a/b/c', 'a--b', '-a', 'x' * 99, None, 5, 'a\x1b[31m'):
        if repo is not None: said(['push=', 'owner/name'], push_folder, folder, repo)
    said(['push='], write_folder, tiny, tmp_path/'new', 'test_resnet', **FRAME, push='a/b/c')
    said(['no exported encoder'], push_folder, tmp_path, 'a/b')
    assert os.listdir(tmp_path) == ['net']


# ---------------------------------------------------------------- the stem for small pictures

PROGRAM = """
import timm, sys
try: timm.create_model('local-dir:' + sys.argv[1], pretrained=True)
except RuntimeError as e: print(e)
import fastcontrast
print(type(timm.create_model('local-dir:' + sys.argv[1], pretrained=True).maxpool).__name__)
"""


def test_timm_without_the_small_stem_refuses_it(tmp_path, monkeypatch):
    folder = write_folder(make_encoder('test_resnet', True), tmp_path/'net', 'test_resnet', **FRAME, small_input=True)
    monkeypatch.delitem(timm.models._registry._model_entrypoints, 'test_resnet_small')
    with pytest.raises(RuntimeError, match='Unknown model'): timm.create_model(f'local-dir:{folder}', pretrained=True)


@pytest.mark.slow
def test_timm_alone_refuses_the_small_stem(tmp_path):
    write_folder(make_encoder('test_resnet', True), tmp_path/'net', 'test_resnet', **FRAME, small_input=True)
    command = [sys.executable, '-W', 'ignore', '-c', PROGRAM, tmp_path/'net']
    got = subprocess.run(command, capture_output=True, text=True)
    assert got.stdout.splitlines() == ['Unknown model (test_resnet_small)', 'SmallStem'], got.stderr


@torch.no_grad()
def test_files_of_the_first_version(tmp_path):
    for arch, small in (('test_resnet', True), ('test_resnet', False), ('test_vit', False)):
        encoder = make_encoder(arch, small, size=SIDE).eval()
        file = export_encoder(encoder, tmp_path/'e.safetensors', arch, **FRAME, small_input=small)
        tensors = {name: t for name, t in load_file(file).items() if name != 'maxpool.small_stem'}
        header = {name: text for name, text in read_header(file).items() if name not in ('kind', 'classes', 'sha256')}
        header |= dict(format='fastcontrast-encoder', version='1')
        save_file(tensors, file, metadata={**header, 'sha256': digest(tensors, header)})
        x = torch.rand(2, 3, SIDE, SIDE)
        assert torch.equal(load_encoder(file)(x), encoder(x)) and encoder_info(file)['classes'] is None
        assert load_encoder(export_copy(file, tmp_path/'new'))(x).equal(encoder(x))
