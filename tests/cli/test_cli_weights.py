"""`fastcontrast pretrain --weights`: from the file of a run to a run of its own, with its record, and taken up."""
import json
import os
import shutil

import pytest
import timm
import torch
from helpers.cli import TINY, config, ended_after_an_epoch
from helpers.folders import image_folder
from safetensors.torch import load_file

from fastcontrast.export import encoder_info

FAST = ('--no-controls', '--seed', 1)


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    "Pictures and a run on them"
    from fastcontrast.data import image_dls
    from fastcontrast.learner import contrastive_learner
    folder = tmp_path_factory.mktemp('first')
    image_folder(folder/'data', dict(a=8, b=8))
    torch.manual_seed(0)
    dls = image_dls(folder/'data', size=32, bs=4, valid=0.2, device='cpu', workers=0)
    learn = contrastive_learner(dls, 'test_resnet', small_input=True, knn_pictures=0)
    (folder/'run').mkdir()
    learn.export(folder/'run'/'encoder.safetensors')
    (folder/'run'/'config.json').write_text(json.dumps(dict(arch='test_resnet', settings={})))
    return folder


def differing(run, other):
    "Names of the tensors that two runs' encoders do not have alike, and by how much"
    there, here = (load_file(folder/'encoder.safetensors') for folder in (run, other))
    return [(name, (t - here[name]).abs().max().item()) for name, t in there.items() if not torch.equal(t, here[name])]


def rest(first): return (first/'data', '--batch-size', 4, *FAST)


@pytest.mark.parametrize('form', ['run', 'run/encoder.safetensors'])
def test_a_run_from_the_weights_of_another(run, first, folder, form):
    given = os.path.relpath(first/form)
    code, out, err = run('pretrain', *rest(first), '--epochs', 2, '--weights', given, '--out', 'r')
    assert code == 0, err
    assert 'before training: knn' in out and 'the encoder stands still in the first epoch' in out
    n = len(timm.create_model('test_resnet', num_classes=0).state_dict())
    assert f'{n} of {n} tensors' in out
    c = config('r')
    assert c['arch'] == 'test_resnet' and c['small_input'] and c['weights'] == given and c['head_epochs'] is None
    assert c['settings']['weights'] == str(first/form) and c['settings']['arch'] == 'test_resnet'
    assert encoder_info('r/encoder.safetensors')['small_input']
    if form != 'run': return
    code, out, err = run('pretrain', '--resume', 'r', '--epochs', 3)
    assert code == 0, err
    assert 'before training' not in out and 'stands still' not in out and config('r')['epochs_done'] == 3
    code, out, err = run('pretrain', '--resume', 'r', '--epochs', 4, '--head-epochs', 2)
    assert code == 2 and '--head-epochs' in err


def test_a_run_that_is_taken_up_while_the_head_learns(run, first, folder, monkeypatch):
    "It ends as one in one piece, from another folder too"
    common = ('pretrain', *rest(first), '--head-epochs', 2, '--epochs', 3)
    code, out, err = run(*common, '--weights', first/'run', '--out', 'whole')
    assert code == 0, (code, out, err)
    with ended_after_an_epoch(monkeypatch):
        code, out, err = run(*common, '--weights', os.path.relpath(first/'run'), '--out', 'cut')
    assert code == 143 and config('cut')['epochs_done'] == 1, (code, out, err)
    assert encoder_info('cut/encoder.safetensors')['sha256'] != encoder_info('whole/encoder.safetensors')['sha256']
    assert differing(folder/'cut', first/'run') == []  # it has stood still so far
    (folder/'elsewhere').mkdir()
    monkeypatch.chdir(folder/'elsewhere')
    code, out, err = run('pretrain', '--resume', folder/'cut')
    assert code == 0 and 'before training' not in out, (code, out, err)
    assert differing(folder/'cut', folder/'whole') == [], out
    assert (encoder_info(folder/'cut/encoder.safetensors')['sha256']
            == encoder_info(folder/'whole/encoder.safetensors')['sha256'])


@pytest.mark.parametrize('form', ['run', 'w.pth'])
def test_a_run_goes_on_without_the_file_of_its_weights(run, first, folder, monkeypatch, form):
    "Its checkpoint has all tensors; it ends as one in one piece"
    shutil.copytree(first/'run', folder/'run')
    file = folder/'run'/'encoder.safetensors'
    torch.save(load_file(file), folder/'w.pth')
    arch = () if form == 'run' else ('--arch', 'test_resnet', '--small-input')
    common = ('pretrain', *rest(first), *arch, '--weights', form, '--epochs', 3)
    assert run(*common, '--out', 'whole')[0] == 0
    with ended_after_an_epoch(monkeypatch): assert run(*common, '--out', 'cut')[0] == 143
    started = config('cut')['start']
    shutil.rmtree('run')
    os.remove('w.pth')
    code, out, err = run('pretrain', '--resume', 'cut')
    assert code == 0 and 'going on from step' in out and 'weights from' not in out, (out, err)
    assert (encoder_info('cut/encoder.safetensors')['sha256'] == encoder_info('whole/encoder.safetensors')['sha256'])
    c = config('cut')
    assert c['start'] == started and c['settings']['weights'] == str(folder/form) and c['epochs_done'] == 3
    code, out, err = run('pretrain', '--resume', 'cut', '--weights', 'other.pth')
    assert code == 2 and 'neither a file' in err


def test_what_a_run_without_its_weights_still_needs(run, first, folder, monkeypatch):
    shutil.copytree(first/'run', folder/'run')
    common = ('pretrain', *rest(first), '--weights', 'run', '--epochs', 2)
    for out, more in (('none', ('--checkpoint', 'none')), ('cut', ())):
        with ended_after_an_epoch(monkeypatch): run(*common, *more, '--out', out)
    shutil.rmtree('run')
    code, _, err = run('pretrain', '--resume', 'none')  # which begins anew
    assert code == 2 and str(folder/'run') in err
    whole, file = config('cut'), folder/'cut'/'config.json'
    for start in (None, 3, {}, whole['start'] | dict(mean=['a']), whole['start'] | dict(arch='hf-hub:a/b'),
                  whole['start'] | dict(doubts=3), whole['start'] | dict(more=1)):
        file.write_text(json.dumps(whole | dict(start=start)))
        code, _, err = run('pretrain', '--resume', 'cut')
        assert code == 2 and str(folder/'run') in err, (start, err)
    file.write_text(json.dumps(whole))
    code, _, err = run('pretrain', '--resume', 'cut', '--controls')  # which judge the weights as they were given
    assert code == 2 and str(folder/'run') in err
    code, _, err = run('pretrain', '--resume', 'cut')
    assert code == 0, err


@pytest.mark.slow
def test_half_of_an_encoder(run, first, folder, monkeypatch):
    torch.save(timm.create_model('resnet18', num_classes=0).state_dict(), 'w.pth')
    common = ('pretrain', *rest(first), '--arch', 'resnet34', '--no-small-input', '--weights', 'w.pth')
    with ended_after_an_epoch(monkeypatch): code, out, err = run(*common, '--epochs', 2, '--out', 'r')
    assert code == 143 and "warning: 52 % of the numbers of 'resnet34' are from 'w.pth'" in out, (out, err)
    assert run('pretrain', '--resume', 'r')[0] == 0
    assert any('52 % of the numbers' in note for note in config('r')['notes'])


def test_a_state_dict(run, first, folder):
    net = timm.create_model('test_resnet', num_classes=0)
    torch.save(dict(state_dict={f'module.{name}': t for name, t in net.state_dict().items()}), 'w.pth')
    code, out, err = run('pretrain', *rest(first), '--arch', 'test_resnet', '--weights', 'w.pth', '--epochs', 2,
                         '--out', 'r')
    assert code == 0, err
    assert config('r')['settings']['weights'] == str(folder/'w.pth') and "weights from 'w.pth'" in out


def test_settings_take_them(run, first, folder):
    (folder/'settings.ini').write_text(f"[a]\nweights = {first/'run'}\nhead_epochs = 0\nepochs = 1\n")
    code, out, err = run('pretrain', *rest(first), '--run', 'a', '--out', 'r')
    assert code == 0, err
    assert 'stands still' not in out and config('r')['head_epochs'] == 0 and config('r')['arch'] == 'test_resnet'


def test_controls_judge_the_weights(run, first, folder):
    code, out, err = run('pretrain', first/'data', '--batch-size', 4, '--epochs', 1, '--weights', first/'run',
                         '--out', 'r')
    assert code == 0, err
    assert list(config('r')['results'])[1:] == ['weights as given', 'trained encoder']
    assert 'the weights as given, to compare with' in out


def test_refusals(refused, first, folder):
    torch.save(dict(a=torch.ones(2, 2)), 'w.pth')
    data = first/'data'
    assert 'give --arch' in refused('pretrain', data, '--weights', 'w.pth')
    assert 'neither a file' in refused('pretrain', data, '--weights', 'nowhere.pth')
    assert 'neither a file' in refused('pretrain', data, '--arch', 'resnet18', '--weights', 'nowhere.pth')
    assert 'fits' in refused('pretrain', data, '--batch-size', 4, '--arch', 'test_resnet', '--weights', 'w.pth')
    assert 'leave arch out' in refused('pretrain', data, '--batch-size', 4, '--arch', 'resnet18', '--weights',
                                       first/'run')
    assert 'there are none' in refused('pretrain', data, '--head-epochs', 1)
    assert 'none of --epochs 2' in refused('pretrain', data, '--weights', first/'run', '--head-epochs', 2, '--epochs',
                                           2)
    assert '--head-epochs=-1' in refused('pretrain', data, '--weights', first/'run', '--head-epochs', -1)
    assert "unknown tag of 'resnet18'" in refused('pretrain', data, *TINY, '--arch', 'resnet18.nonsense')
    assert 'size=1000000000' in refused('pretrain', data, '--size', 10**9)
    assert 'is no name' in refused('pretrain', data, '--weights', '')
