"Exported encoders: what timm makes of them, and what is said of files that are something else"
import json
import os
import pickle
import resource
import time

import pytest
import safetensors.torch
import timm
import torch
from helpers.odd import KINDS, no_file, within
from safetensors.torch import load_file, save_file

from fastcontrast.core import InputError, MissingPath
from fastcontrast.export import digest, encoder_info, export_encoder, load_encoder, read_header
from fastcontrast.models import make_encoder

RGB = dict(mean=[.4, .5, .6], std=[.2, .25, .3])


def trained(arch, size=64, **kw):
    "An encoder whose batch-norm statistics are not the initial ones"
    torch.manual_seed(0)
    encoder = make_encoder(arch, size=size, **kw)
    with torch.no_grad():
        encoder(torch.randn(4, kw.get('in_chans', 3), size, size))
    return encoder


@pytest.fixture(scope='module')
def small():
    return trained('resnet10t', 32)


@pytest.fixture
def exported(small, tmp_path):
    return export_encoder(small, tmp_path / 'e.safetensors', 'resnet10t', 32, **RGB)


def rewrite(path, tensors=None, **header):
    "The file again with other tensors or header fields, its digest made to fit"
    fields = {**read_header(path), **header}
    fields.pop('sha256')
    tensors = load_file(path) if tensors is None else tensors
    save_file(tensors, path, metadata={**fields, 'sha256': digest(tensors, fields)})


@pytest.mark.parametrize('arch, size, sized', [
    ('resnet18', 64, {}),
    ('vit_tiny_patch16_224', 96, dict(img_size=96)),
])
@torch.no_grad()
def test_timm_alone_gives_the_same_features(tmp_path, arch, size, sized):
    encoder, x = trained(arch, size).eval(), torch.randn(2, 3, size, size)
    path = export_encoder(encoder, tmp_path / 'e.safetensors', arch, size, **RGB)
    plain = timm.create_model(arch, num_classes=0, **sized).eval()
    plain.load_state_dict(safetensors.torch.load_file(path), strict=True)
    torch.testing.assert_close(plain(x), encoder(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(load_encoder(path)(x), encoder(x), atol=1e-6, rtol=0)


@torch.no_grad()
def test_small_input_and_other_channels(tmp_path):
    encoder, x = trained('resnet18', 32, small_input=True, in_chans=1).eval(), torch.randn(2, 1, 32, 32)
    path = export_encoder(encoder, tmp_path / 'e.safetensors', 'resnet18', 32, [.1], [.3], small_input=True)
    loaded = load_encoder(path)
    assert torch.equal(loaded(x), encoder(x))
    assert loaded.conv1.kernel_size == (3, 3) and loaded.conv1.in_channels == 1
    assert encoder_info(path)['in_chans'] == 1


@torch.no_grad()
def test_memory_layout_and_half_precision_survive(tmp_path):
    encoder = trained('resnet10t', 32).eval().to(torch.bfloat16).to(memory_format=torch.channels_last)
    path = export_encoder(encoder, tmp_path / 'e.safetensors', 'resnet10t', 32, **RGB)
    tensors = load_file(path)
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16, torch.int64}
    assert all(torch.equal(t, encoder.state_dict()[k]) for k, t in tensors.items())
    load_encoder(path)


def test_loaded_encoder_is_ready_for_timm(exported):
    loaded = load_encoder(exported)
    assert not any(m.training for m in loaded.modules())
    config = timm.data.resolve_data_config({}, model=loaded)
    assert config['input_size'] == (3, 32, 32) and config['mean'] == (.4, .5, .6) and config['std'] == (.2, .25, .3)
    assert loaded.default_cfg['mean'] == (.4, .5, .6)
    assert timm.create_model('resnet10t').pretrained_cfg['mean'] != (.4, .5, .6)  # others' are not touched


def test_info_has_types(small, tmp_path):
    extra = dict(epochs=3, loss='DCL(0.2)')
    file = export_encoder(small, tmp_path / 'e.safetensors', 'resnet10t', 32, **RGB, recipe='simclr', extra=extra)
    info = encoder_info(file)
    assert len(info.pop('sha256')) == 64
    assert info == dict(version=2, arch='resnet10t', in_chans=3, size=32, mean=RGB['mean'], std=RGB['std'],
                        small_input=False, classes=None, recipe='simclr', extra=extra)


def test_export_changes_neither_the_encoder_nor_the_random_numbers(small, tmp_path):
    small.train()
    before, state = {k: v.clone() for k, v in small.state_dict().items()}, torch.get_rng_state()
    export_encoder(small, tmp_path / 'e.safetensors', 'resnet10t', 32, **RGB)
    assert torch.equal(torch.get_rng_state(), state)
    assert small.training and all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_overwrites_whole_and_leaves_no_other_file(small, exported):
    old = exported.stat().st_ino
    export_encoder(small, exported, 'resnet10t', 32, **RGB, recipe='byol')
    assert encoder_info(exported)['recipe'] == 'byol' and exported.stat().st_ino != old
    assert os.listdir(exported.parent) == ['e.safetensors']


def test_failed_writing_leaves_the_old_file(small, exported):
    "As on a full disk: files of this process may not grow past 64 KiB for a while"
    before = exported.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(InputError, match='cannot be written'):
            export_encoder(small, exported, 'resnet10t', 32, **RGB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert exported.read_bytes() == before and os.listdir(exported.parent) == ['e.safetensors']


def test_makes_the_folder(small, tmp_path):
    assert export_encoder(small, tmp_path / 'a' / 'b' / 'e.safetensors', 'resnet10t', 32, **RGB).is_file()


@pytest.mark.parametrize('name', ['file/e.safetensors', 'folder.safetensors'])
def test_unwritable(small, tmp_path, name):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'folder.safetensors').mkdir()
    with pytest.raises(InputError, match='cannot be written'):
        export_encoder(small, tmp_path / name, 'resnet10t', 32, **RGB)
    assert sorted(os.listdir(tmp_path)) == ['file', 'folder.safetensors']


def test_refusals_before_writing(small, tmp_path):
    def refused(match, path='e', arch='resnet10t', **kw):
        with pytest.raises(InputError, match=match):
            export_encoder(small, tmp_path / path, arch, 32, **RGB, **kw)
    refused('.safetensors', path='e.pth')  # a file, and not a folder of that name
    refused("does not fit the architecture 'resnet18'", arch='resnet18')
    refused("unknown architecture", arch='resnet10x')
    refused('JSON', extra=dict(a=object()))
    with pytest.raises(InputError, match='does not fit'):  # a wrapper's names are not timm's
        export_encoder(torch.nn.Sequential(small), tmp_path / 'e.safetensors', 'resnet10t', 32, **RGB)
    assert not os.listdir(tmp_path)


def test_missing_file(tmp_path):
    for path in (tmp_path / 'none.safetensors', tmp_path):
        with pytest.raises(MissingPath, match='no file'):
            load_encoder(path)


@pytest.mark.parametrize('old_format', [False, True])
def test_pickles_are_not_opened(small, tmp_path, old_format):
    path = tmp_path / 'e.pth'
    torch.save(small.state_dict(), path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(InputError, match='pickle'):
        load_encoder(path)


def test_a_pickle_that_runs_code_does_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / 'sprung'), 'w'))
    (tmp_path / 'e.safetensors').write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match='pickle'):
        load_encoder(tmp_path / 'e.safetensors')
    assert not (tmp_path / 'sprung').exists()


def test_header_whose_length_looks_like_a_pickle(small, tmp_path):
    "The first byte of a safetensors file is the low byte of the header's length, and may be that of a pickle"
    def export(n):
        return export_encoder(small, tmp_path / 'e.safetensors', 'resnet10t', 32, **RGB, extra=dict(note='x' * n))
    path = export((0x80 - export(0).read_bytes()[0]) % 256)
    assert path.read_bytes()[0] == 0x80
    load_encoder(path)


@pytest.mark.parametrize('keep', [0, 5, 100, -1000, -1])
def test_truncated(exported, keep):
    data = exported.read_bytes()
    exported.write_bytes(data[:keep])
    with pytest.raises(InputError, match='not a whole safetensors file'):
        load_encoder(exported)


def test_not_safetensors(tmp_path):
    (tmp_path / 'e.safetensors').write_text('a text that is longer than a header needs to be')
    with pytest.raises(InputError, match='not a whole safetensors file'):
        load_encoder(tmp_path / 'e.safetensors')


def test_foreign_safetensors(small, tmp_path):
    for metadata in (None, dict(format='pt')):
        save_file(small.state_dict(), tmp_path / 'e.safetensors', metadata=metadata)
        with pytest.raises(InputError, match='not one that fastcontrast exported'):
            load_encoder(tmp_path / 'e.safetensors')


def test_one_altered_bit_in_the_weights_or_the_header(exported):
    data = exported.read_bytes()
    header = 8 + int.from_bytes(data[:8], 'little')
    for at in (header, (header + len(data)) // 2, len(data) - 1, data.index(b'[0.4,') + 3):
        damaged = bytearray(data)
        damaged[at] ^= 1
        exported.write_bytes(damaged)
        with pytest.raises(InputError, match='digest'):
            load_encoder(exported)
    exported.write_bytes(data)
    load_encoder(exported)


def test_consistent_files_that_fit_no_architecture(exported):
    tensors = load_file(exported)
    rewrite(exported, {k: v for k, v in tensors.items() if k != 'bn1.weight'})
    with pytest.raises(InputError, match="'bn1.weight' is missing"):
        load_encoder(exported)
    rewrite(exported, {**tensors, 'fc.weight': torch.zeros(2)})
    with pytest.raises(InputError, match="'fc.weight' is unknown"):
        load_encoder(exported)
    rewrite(exported, {**tensors, 'bn1.weight': torch.zeros(2)})
    with pytest.raises(InputError, match="'bn1.weight' has shape"):
        load_encoder(exported)
    rewrite(exported, tensors)
    load_encoder(exported)
    rewrite(exported, arch=json.dumps('resnet10x'))
    with pytest.raises(InputError, match='unknown architecture'):
        load_encoder(exported)
    rewrite(exported, version='3')
    with pytest.raises(InputError, match='update fastcontrast'):
        load_encoder(exported)


# ---------------------------------------------------------------- files that lie

def edited(path, **fields):
    "The file with other header fields, as text; None: without. Its digest fits"
    header = {k: v for k, v in (read_header(path) | fields).items() if v is not None}
    header.pop('sha256', None)
    tensors = load_file(path)
    save_file(tensors, path, metadata={**header, 'sha256': digest(tensors, header)})


FIELDS = dict(
    arch=[None, '5', 'null', '["resnet10t"]', 'resnet10t', '"', '"\\ud800"', '""', '[' * 100_000],
    in_chans=[None, '"3"', '0', '-3', '1e9', 'true', '3.0', '4'],
    size=[None, '"32"', '0', '-1', '1e3', '16385', 'NaN', '[]'],
    mean=[None, '5', '[]', '[1, 2]', '["a", "b", "c"]', '[NaN, 0, 0]', '[1e999, 0, 0]', '{}'],
    std=[None, '5', '[0, 1, 1]', '[-1, 1, 1]', '[1, 1, 1, 1]', '[null, 1, 1]'], small_input=[None, '5', '"no"', 'null'],
    recipe=[None, '5', '[]'], extra=[None, '5', '[]', '{' * 100])


@pytest.mark.parametrize('field, text', [(field, text) for field, texts in FIELDS.items() for text in texts],
                         ids=lambda x: str(x)[:20])
def test_a_header_with_a_garbled_field(exported, field, text):
    edited(exported, **{field: text})
    for read in (encoder_info, load_encoder):
        with pytest.raises(InputError) as caught: read(exported)
        message = caught.value.message
        assert '\n' not in message and len(message) < 600 and ('was altered or damaged' in message or (
            field == 'arch' and read is load_encoder and "unknown architecture" in message)), message


@pytest.mark.parametrize('arch', ['vit_giant_patch14_dinov2', 'vit_base_patch16_224', 'resnet50', 'convnext_base',
                                  'swin_tiny_patch4_window7_224', 'efficientnet_b0'])
def test_an_architecture_larger_than_the_file(exported, arch):
    "...is refused in a moment, and before there is memory for it"
    edited(exported, arch=json.dumps(arch))
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=f"does not fit the architecture '{arch}': '.*' is missing and .* more"):
        load_encoder(exported)
    seconds, grown = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert seconds < 5 and grown < 30_000  # kB


@pytest.mark.parametrize('change, message', [
    (lambda t: t[:1], 'has shape'), (lambda t: t.long(), 'holds I64'), (lambda t: t.bool(), 'holds BOOL'),
    (lambda t: t.reshape(1, *t.shape), 'has shape'),
])
def test_tensors_of_other_shapes_and_types(exported, change, message):
    tensors = load_file(exported)
    rewrite(exported, tensors | {'bn1.weight': change(tensors['bn1.weight'])})
    with pytest.raises(InputError, match=f"does not fit .*'bn1.weight' {message}"): load_encoder(exported)


def test_loading_draws_no_more_numbers_than_before(exported):
    torch.manual_seed(0)
    make_encoder('resnet10t', size=32)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    load_encoder(exported)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('kind', KINDS)
def test_only_files_are_opened(tmp_path, kind):
    for read in (load_encoder, encoder_info):
        with pytest.raises(MissingPath), within(10): read(no_file(tmp_path/f'{read.__name__}.safetensors', kind))


def test_the_home_folder(small, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert export_encoder(small, '~/a/e.safetensors', 'resnet10t', 32, **RGB) == tmp_path/'a/e.safetensors'
    load_encoder('~/a/e.safetensors')
    assert encoder_info('~/a/e.safetensors')['arch'] == 'resnet10t'
    for call in (lambda: load_encoder(''), lambda: export_encoder(small, '', 'resnet10t', 32, **RGB)):
        with pytest.raises(InputError, match="path='' is no path"): call()
