"pretrain goes on with a run that did not finish: by its own settings, and where it was"
import csv
import json
import os
import shutil
import signal
from collections import namedtuple
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers.cli import TINY, config, ended_after_an_epoch, forked
from helpers.folders import image_folder

from fastcontrast.cli import training
from fastcontrast.cli.job import Job
from fastcontrast.cli.resume import MAY_CHANGE, kept_settings
from fastcontrast.cli.settings import Run
from fastcontrast.cli.tuning import Tuning
from fastcontrast.export import load_encoder
from fastcontrast.records import CARRIED_OUT
from fastcontrast.signals import Interrupted

COMMAND = ('pretrain', 'p', *TINY[:2], '--batch-size', 4, '--epochs', 3)


@pytest.fixture
def interrupted(run, folder, monkeypatch):
    "What was said of a run in the folder r, of which one epoch of three is done"
    image_folder(folder/'p', dict(a=6, bb=6))
    with ended_after_an_epoch(monkeypatch): code, _, err = run(*COMMAND, '--out', 'r')
    assert code == 143 and config('r')['state'] == 'interrupted', err
    return err


def weights(path): return load_encoder(Path(path)/'encoder.safetensors').state_dict()
def rows(path): return [{key: row[key] for key in ('epoch', 'train_loss', 'knn')} for row in
                        csv.DictReader((Path(path)/'history.csv').open())]


def same(a, b): return all(torch.equal(t, b[name]) for name, t in a.items())


def test_it_ends_as_if_nothing_had_happened(run, folder, interrupted, monkeypatch):
    "From another folder too; and the untrained encoder, which is gone, need not be judged again"
    assert interrupted.endswith('; go on with: fastcontrast pretrain --resume r\n')
    assert run(*COMMAND, '--out', 's')[0] == 0
    (folder/'elsewhere').mkdir()
    monkeypatch.chdir(folder/'elsewhere')
    known = config(folder/'r')['results']
    monkeypatch.setattr(training, 'control_results', None)
    code, out, err = run('pretrain', '--resume', folder/'r')
    assert (code, err) == (0, '')
    assert out.startswith(f"going on with {folder/'r'}\n") and out.count('going on from') == 1
    r, s = config(folder/'r'), config(folder/'s')
    assert r['results'] == s['results'] and known.items() <= r['results'].items() and len(known) == 2
    assert r['state'] == 'finished' and 'reason' not in r and r['epochs_done'] == 3
    assert rows(folder/'r') == rows(folder/'s') and same(weights(folder/'r'), weights(folder/'s'))
    assert r['cost']['steps'] == s['cost']['steps']


def test_too_little_space_to_go_on(run, folder, interrupted, monkeypatch):
    "What is there stays, and is gone on with when there is room"
    usage = namedtuple('usage', 'total used free')(1, 1, 0)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    code, _, err = run('pretrain', '--resume', 'r')
    assert code == 1 and 'the disk of r has 0.0 MB free' in err and 'what was there is as it was' in err
    assert err.endswith('; go on with: fastcontrast pretrain --resume r\n') and 'traceback' not in err
    assert config('r')['state'] == 'interrupted' and 'disk' not in config('r')['reason']


def test_a_run_that_was_killed_keeps_its_seconds(run, folder, monkeypatch):
    "Those until its last checkpoint: its record says nothing of them"
    image_folder(folder/'p', dict(a=6, bb=6))
    announce = training._announce
    def long_ago(job):
        announce(job)
        job.clock.began -= 36000
    with monkeypatch.context() as patch:
        patch.setattr(training, '_announce', long_ago)
        with ended_after_an_epoch(monkeypatch): assert run(*COMMAND, '--out', 'r')[0] == 143
    record = config('r')
    assert record.pop('seconds') > 36000
    Path('r/config.json').write_text(json.dumps(record | dict(state='running')))
    assert run('pretrain', '--resume', 'r')[0] == 0 and 36000 < config('r')['seconds'] < 40000


def test_a_process_that_does_not_get_to_train_leaves_the_seconds(run, folder, interrupted, monkeypatch):
    Path('r/config.json').write_text(json.dumps(config('r') | dict(seconds=36000.)))
    def broken(*args): raise RuntimeError('broken')
    with monkeypatch.context() as patch:
        patch.setattr(training, 'make_learner', broken)
        assert run('pretrain', '--resume', 'r')[0] == 1
    assert config('r')['state'] == 'failed' and config('r')['seconds'] >= 36000
    assert run('pretrain', '--resume', 'r')[0] == 0 and 36000 < config('r')['seconds'] < 40000


def test_what_carries_a_run_out_may_change():
    "One table says it for pretraining and fine-tuning, and for reports"
    known = {field.name for kind in (Run, Tuning) for field in fields(kind)}
    assert CARRIED_OUT < MAY_CHANGE <= known and {'log', 'checkpoint'} <= CARRIED_OUT


def test_names_that_are_no_paths_stay_where_a_folder_has_them(folder):
    names = dict(labels='all', data='digits', valid='digits', weights='test_resnet')
    for name in names.values(): (folder/name).mkdir(exist_ok=True)
    kept = kept_settings(Run(**names))
    assert {key: kept[key] for key in names} == names
    (folder/'w.pth').touch()
    for given, absolute in (('w.pth', f'{folder}/w.pth'), ('local-dir:x', f'local-dir:{folder}/x'),
                            ('./test_resnet/../w.pth', f'{folder}/w.pth'), ('hf-hub:a/b', 'hf-hub:a/b')):
        assert kept_settings(Run(weights=given))['weights'] == absolute
    assert kept_settings(Run(data='all', labels='digits'))['data'] == str(folder/'all')


def test_the_same_command_goes_on(run, refused, folder, interrupted):
    for given, words in ((('--method', 'byol'), 'was begun with --method fast, and is now given byol: leave'),
                         (('--seed', 3), 'was begun with --seed 0, and is now given 3'),
                         (('--lr', .1), 'was begun with the default of --lr, and is now given 0.1'),
                         (('--with', 'comb_patches'), 'with the default of --with, and is now given comb_patches'),
                         (('--epochs', 1, '--arch', 'resnet18'), 'arch test_resnet')):
        assert words in refused(*COMMAND, *given, '--out', 'r')
        assert words in refused('pretrain', '--resume', 'r', *given)
    assert 'was begun with the data' in refused('pretrain', 'digits', '--out', 'r')
    assert config('r')['state'] == 'interrupted' and not Path('r/.lock').exists()
    assert run(*COMMAND, '--out', 'r', '--workers', 1, '--no-controls')[0] == 0
    assert [row['epoch'] for row in rows('r')] == ['0', '1', '2']
    assert 'r is finished; give --epochs more than 3 to go on, or another --out' in refused(*COMMAND, '--out', 'r')
    assert 'r has done 3 epochs already, and --epochs is 2: give no fewer' in refused(
        'pretrain', '--resume', 'r', '--epochs', 2)
    code, out, _ = run('pretrain', '--resume', 'r', '--epochs', 4)
    assert code == 0 and len(rows('r')) == 4 and config('r')['settings']['epochs'] == 4
    assert set(config('r')['results']) == {'raw pixels', 'untrained encoder', 'trained encoder'}


def test_other_pictures_are_refused(run, folder, interrupted):
    before = config('r')
    image_folder(folder/'p', dict(a=9, bb=9))
    code, _, err = run('pretrain', '--resume', 'r')
    assert code == 2 and err.startswith('error: the run in r differs in its ') and config('r') == before, err
    assert 'and what was there is as it was.' in err and not Path('r/error.txt').exists()


@pytest.mark.parametrize('checkpoint', ['none', 'epoch'])
def test_what_has_no_checkpoint_begins_anew(run, folder, monkeypatch, checkpoint):
    image_folder(folder/'p', dict(a=6, bb=6))
    def interrupt(learn): raise Interrupted(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(training, 'control_results', interrupt)
        code, _, err = run(*COMMAND, '--out', 'r', '--checkpoint', checkpoint)
    assert code == 143
    assert err == 'interrupted after 0 of 3 epochs: training had not begun, so there is no encoder.\n'
    code, out, err = run('pretrain', '--resume', 'r')
    assert code == 0 and 'going on with r, from its beginning: it has no checkpoint\n' in out
    assert run(*COMMAND, '--out', 's')[0] == 0
    assert same(weights('r'), weights('s')) and config('r')['results'] == config('s')['results']
    assert Path('r/checkpoints').exists() == (checkpoint == 'epoch')


def test_judging_that_was_cut_short_is_made_up_for(run, folder, monkeypatch):
    image_folder(folder/'p', dict(a=6, bb=6))
    def interrupt(path): raise Interrupted(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(training, 'file_embedder', interrupt)
        code, _, err = run(*COMMAND, '--out', 'r')
    assert code == 130 and 'interrupted after 3 of 3 epochs' in err and err.endswith('--resume r\n')
    before = weights('r')
    assert run('pretrain', '--resume', 'r')[0] == 0
    assert config('r')['state'] == 'finished' and 'trained encoder' in config('r')['results']
    assert same(before, weights('r')) and len(rows('r')) == 3 and config('r')['epochs_done'] == 3


def killed_early(): Job._keep_finished = lambda job: os.kill(os.getpid(), signal.SIGKILL)


def test_a_finished_encoder_outlives_a_longer_run(run, folder, monkeypatch):
    "Under a name of its own, as the longer run's is behind it until its learning rate has come down"
    image_folder(folder/'p', dict(a=6, bb=6))
    assert run(*COMMAND, '--epochs', 1, '--out', 'r')[0] == 0
    first, names = weights('r'), {file.name for file in Path('r').iterdir()}
    assert forked('pretrain', '--resume', 'r', '--epochs', 3, cwd=folder, prepare=killed_early).wait(60) == -9
    assert config('r')['state'] == 'running'
    with ended_after_an_epoch(monkeypatch): assert run('pretrain', '--resume', 'r', '--epochs', 3)[0] == 143
    kept = load_encoder('r/encoder-1.safetensors').state_dict()
    assert same(first, kept) and not same(first, weights('r'))
    assert run('pretrain', '--resume', 'r')[0] == 0
    assert {file.name for file in Path('r').iterdir()} == names | {'encoder-1.safetensors'}
    assert same(first, load_encoder('r/encoder-1.safetensors').state_dict()) and len(rows('r')) == 3


def test_a_finished_encoder_that_cannot_be_kept_is_not_lost(run, folder):
    image_folder(folder/'p', dict(a=6, bb=6))
    assert run(*COMMAND, '--epochs', 1, '--out', 'r')[0] == 0
    first, before = weights('r'), config('r')
    Path('r/encoder-1.safetensors').mkdir()
    code, _, err = run('pretrain', '--resume', 'r', '--epochs', 3)
    assert code == 2 and "encoder-1.safetensors, where the finished encoder is to stay, can't be written" in err
    assert same(first, weights('r')) and config('r')['epochs_done'] == 1 and before['state'] == 'finished'
    Path('r/encoder-1.safetensors').rmdir()
    assert run('pretrain', '--resume', 'r', '--epochs', 3)[0] == 0
    assert same(first, load_encoder('r/encoder-1.safetensors').state_dict()) and len(rows('r')) == 3


def test_what_is_no_run(refused, folder):
    for name, content, words in (('a', None, 'there is no such folder'), ('b', '', 'there is no config.json in it'),
                                 ('c', '{', "c/config.json can't be read"), ('d', '[]', 'it is no record of a run'),
                                 ('e', '{"state": "interrupted"}', 'was begun by an older version of fastcontrast'),
                                 ('f', '{"settings": {"colour": 1}}', "a setting that this one lacks, 'colour'"),
                                 ('g', '{"settings": {"epochs": "ten"}}', "its epochs is 'ten'"),
                                 ('h', '{"settings": {"seed": null}}', "its seed is None"),
                                 ('i', '{"settings": {}, "seconds": "x"}', "its seconds is 'x'")):
        if content is not None: (folder/name).mkdir()
        if content: (folder/name/'config.json').write_text(content)
        assert words in refused('pretrain', '--resume', name)
    assert '--out e already holds files' in refused('pretrain', '--out', 'e')
    assert json.loads((folder/'e/config.json').read_text()) == dict(state='interrupted')
    assert 'is another: give one of them' in refused('pretrain', '--resume', 'e', '--out', 'f')


def test_names_that_are_files_here_too(folder):
    "What is kept of settings means the same from anywhere"
    for name in ('all', '0.5', 'resnet18'): (folder/name).mkdir()
    kept = kept_settings(Run(data='all', labels='all', weights='resnet18'))
    assert (kept['data'], kept['labels'], kept['weights']) == (str(folder/'all'), 'all', 'resnet18')
    assert kept_settings(Run(labels='0.5'))['labels'] == '0.5'


@pytest.mark.parametrize('args, words', [
    (('--checkpoint', 'often'), "--checkpoint 'often' is no moment"),
    (('--checkpoint', 'epoch, 0 steps'), "--checkpoint '0 steps' is no moment"),
    (('--schedule', 'cosin'), "unknown schedule 'cosin': did you mean cosine"),
])
def test_options_that_are_none(refused, args, words): assert words in refused('pretrain', 'digits', *args)
