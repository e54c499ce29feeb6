"export: what another library loads"
import json
import os
import shutil

import safetensors.torch
import timm
import torch
from helpers.folders import image_folder

from fastcontrast import artefact
from fastcontrast.export import encoder_info, export_encoder, load_encoder, write_folder
from fastcontrast.models import make_encoder


@torch.no_grad()
def test_the_encoder_is_timms(digits, run):
    file, x = digits[0]/'encoder.safetensors', torch.randn(2, 3, 32, 32)
    assert run('export', digits[0], '--out', 'new/e.safetensors')[0] == 0
    plain = timm.create_model('resnet10t', num_classes=0).eval()
    plain.load_state_dict(safetensors.torch.load_file('new/e.safetensors'), strict=True)
    assert torch.equal(plain(x), load_encoder('new/e.safetensors')(x)) and torch.equal(plain(x), load_encoder(file)(x))
    info = encoder_info(file)
    assert info['recipe'] == 'fast' and info['size'] == 32


def test_export_for_torchvision(refused, digits):
    command = ('export', digits[0], '-o', 'e.safetensors')
    assert 'torchvision has no model' in refused(*command, '--to', 'torchvision')
    assert "unknown library 'torchvison': did you mean torchvision?" in refused(*command, '--to', 'torchvison')


@torch.no_grad()
def test_a_folder_with_what_the_run_was(digits, run):
    x, encoder = torch.randn(2, 3, 32, 32), load_encoder(digits[0]/'encoder.safetensors')
    code, out, err = run('export', digits[0], '-o', 'new/net')
    assert code == 0 and out == 'the encoder is in new/net\n', err
    assert torch.equal(timm.create_model('local-dir:new/net', pretrained=True).eval()(x), encoder(x))
    record, card = json.loads((digits[0]/'config.json').read_text()), open('new/net/README.md').read()
    result = record['results']['trained encoder']
    rows = ['method | fast', f"pictures to train on | {record['n_train']:,}", 'epochs | 1', f"loss | {record['loss']}",
            f"minutes | {record['seconds'] / 60:.1f}", f"kNN accuracy | {result['knn']:.1%}",
            f"linear accuracy with 10 labels a class | {result['few_labels']:.1%}"]
    for row in rows: assert f'| {row} |' in card, row
    assert record['speedups'] and all(name in card for name in record['speedups'])
    assert run('export', 'new/net', '-o', 'again')[0] == 0 and open('again/README.md').read().count('kNN accuracy') == 1
    assert run('export', 'new/net', '-o', 'again.safetensors')[0] == 0


def test_a_name_with_a_dot_is_a_folders(run, folder):
    export_encoder(make_encoder('test_resnet'), folder/'run/encoder.safetensors', 'test_resnet', 32, [.5] * 3, [.2] * 3)
    assert run('export', 'run', '-o', 'encoder-v1.2') == (0, 'the encoder is in encoder-v1.2\n', '')
    assert os.path.isdir('encoder-v1.2') and encoder_info('encoder-v1.2')['arch'] == 'test_resnet'
    assert run('export', 'encoder-v1.2', '-o', 'e.v2.safetensors')[0] == 0 and os.path.isfile('e.v2.safetensors')


def test_places_that_are_refused(refused, digits):
    assert 'give --out, or --push' in refused('export', digits[0])
    os.mkdir('mine')
    open('mine/note.txt', 'w').close()
    assert "holds 'note.txt'" in refused('export', digits[0], '-o', 'mine')
    assert 'must end in' in refused('export', digits[0], '-o', 'e.pth')
    assert 'no encoder at mine' in refused('export', 'mine', '-o', 'new')
    assert 'owner/name' in refused('export', digits[0], '-o', 'new', '--push', 'a/b/c')
    assert 'uploads a folder' in refused('export', digits[0], '-o', 'e.safetensors', '--push', 'a/b')
    assert sorted(os.listdir()) == ['mine']


def test_push(run, refused, digits, monkeypatch):
    pushed = []
    def push(folder, repo):
        pushed.append((repo, sorted(os.listdir(folder))))
    monkeypatch.setattr('fastcontrast.export.push_folder', push)
    files = ['README.md', 'config.json', 'model.safetensors']
    code, out, err = run('export', digits[0], '--push', 'somebody/net')
    assert code == 0 and "load_encoder('hf-hub:somebody/net')" in out and not os.listdir(), err
    assert run('export', digits[0], '-o', 'net', '--push', 'somebody/net')[0] == 0
    assert pushed == [('somebody/net', files)] * 2
    monkeypatch.undo()
    class Api:
        def create_repo(self, *args, **kwargs): raise artefact.LocalTokenNotFoundError('no token')
    monkeypatch.setattr(artefact, 'HfApi', Api)
    assert 'nobody is logged in' in refused('export', digits[0], '--push', 'somebody/net')


def test_a_model_of_the_hub_beside_others(run, refused, tmp_path, monkeypatch):
    from huggingface_hub import constants
    write_folder(make_encoder('test_resnet'), tmp_path/'made', 'test_resnet', 32, [.5] * 3, [.2] * 3)
    root = tmp_path/'cache'/'models--somebody--net'
    shutil.copytree(tmp_path/'made', root/'snapshots'/'abc')
    (root/'refs').mkdir()
    (root/'refs'/'main').write_text('abc')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    hub, folder = 'hf-hub:somebody/net', f"local-dir:{tmp_path/'made'}"
    image_folder(tmp_path/'data', dict(a=8, b=8))
    for place in (hub, 'made'): assert run('embed', place, 'data', '-o', 'features.npz')[0] == 0
    code, out, err = run('eval', hub, 'data', '--draws', 1, '--against', f'{folder},{hub}', '-o', 't.json')
    assert code == 0, err
    scores = json.loads(open('t.json').read())['encoders']
    assert list(scores) == [hub, folder, f'{hub} (2)']
    assert len({json.dumps(score) for score in scores.values()}) == 1
    assert 'has no config.json to give' in refused('eval', 'hf-hub:somebody/other', 'data')
