"--range and --channels: how a run sees its pictures is a setting like others, and what judges it sees them alike"
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.cli import TINY, config, ended_after_an_epoch, judged_knn
from helpers.folders import image_folder
from helpers.deep import folder_of

from fastcontrast.cli.settings import read_range, resolve
from fastcontrast.core import InputError
from fastcontrast.embed import embed

DRAWN = True  # what is odd here is in the drawings too


def deep(folder, top=4000):
    "12-bit pictures of two classes"
    for c in range(2):
        g = np.random.default_rng(c)
        folder_of(folder/'ab'[c], [g.integers(0, top, (16, 16), dtype=np.uint16) // (c + 1) for _ in range(8)], 'png')


def test_the_range_that_was_found_is_kept(run, folder):
    deep(folder/'p')
    code, out, err = run('pretrain', 'p', *TINY, '--size', 16, '--out', 'r', '--no-controls')
    assert (code, err) == (0, '') and '12-bit values, 0 to 4,095, become 0 to 1 in all pictures' in out
    assert config('r')['value_range'] == [0, 4095] and config('r')['channels'] == 3
    assert config('r')['settings']['value_range'] is None
    code, out, err = run('eval', 'r', 'p', '-o', 'e.json')
    assert code == 0 and judged_knn('e.json') == config('r')['results']['trained encoder']['knn']
    assert 'become 0 to 1' not in out  # nothing was found: it is the run's


def test_a_range_that_is_given(run, refused, folder, monkeypatch):
    deep(folder/'p')
    command = ('pretrain', 'p', *TINY[:2], '--batch-size', 4, '--epochs', 2, '--size', 16, '--range', '-5,2000')
    with ended_after_an_epoch(monkeypatch): assert run(*command, '--out', 'r', '--no-controls')[0] == 143
    assert config('r')['settings']['value_range'] == '-5,2000' and config('r')['value_range'] == [-5, 2000]
    assert 'was begun with --range -5,2000, and is now given 0,9' in refused(
        'pretrain', '--resume', 'r', '--range', '0,9')
    assert run('pretrain', '--resume', 'r')[0] == 0 and config('r')['value_range'] == [-5, 2000]
    (folder/'settings.ini').write_text('[x]\nrange = 0 3000\ndata = p\nsize = 16\n')
    assert run('pretrain', '--run', 'x', *TINY, '--out', 's', '--no-controls')[0] == 0
    assert config('s')['value_range'] == [0, 3000]
    deep(folder/'q', 60000)  # of other pictures the range that was given holds, too
    assert run('eval', 's', 'q', '-o', 'e.json')[0] == 0
    assert json.loads(Path('e.json').read_text())['value_range'] == [0, 3000]


@pytest.mark.parametrize('text', ['', '5', '5,5', '9 3', 'a,b', '1,2,3', '0,nan', '0,inf', '0,1e400', '\x1b[2J'])
def test_bad_ranges(refused, text):
    err = refused('pretrain', 'digits', '--range', text)
    assert "--range '" in err and 'like 0,4095' in err
    with pytest.raises(InputError): resolve(dict(value_range=text))


def test_ranges():
    assert read_range(None) is None and read_range('-1000, 3000') == (-1000, 3000) == read_range('-1e3 3e3')


def test_channels(run, refused, folder):
    image_folder(folder/'p', dict(a=4, bb=4), (16, 16))
    for value in (0, -1, 10**30): assert '--channels' in refused('pretrain', 'p', *TINY, '--channels', value)
    assert 'has 3 channels, and 5 are wanted (channels, --channels)' in refused('pretrain', 'p', *TINY, '--channels', 5)
    assert run('pretrain', 'p', *TINY, '--channels', 3, '--out', 'r', '--no-controls')[0] == 0
    assert config('r')['settings']['channels'] == config('r')['channels'] == 3


def test_an_encoder_of_another_range(run, refused, folder):
    "What judges it, and what goes on with its weights, is told; a range that is given is right for both"
    deep(folder/'p')
    deep(folder/'q', 60000)
    assert run('pretrain', 'p', *TINY, '--size', 16, '--out', 'r', '--no-controls')[0] == 0
    words = 'it was trained with 0 to 4,095 as 0 to 1, and here it is 0 to 65,535: where the same value means the same'
    assert words in run('eval', 'r', 'q')[1]
    go_on = ('pretrain', 'q', *TINY, '--size', 16, '--weights', 'r', '--head-epochs', 0, '--no-controls')
    assert words in run(*go_on, '--out', 's')[1]
    for command in (('eval', 'r', 'q', '-o', 'e.json'), (*go_on, '--out', 't')):
        code, out, err = run(*command, '--range', '0,4095')
        assert (code, err) == (0, '') and 'trained with' not in out
    assert json.loads(Path('e.json').read_text())['value_range'] == [0, 4095]
    assert 'like 0,4095' in refused('eval', 'r', 'q', '--range', '5')
    image_folder(folder/'bytes', dict(a=4, bb=4), (16, 16))  # 0 to 1 is the same share of what they can be
    assert 'trained with' not in run('eval', 'r', 'bytes')[1]


def test_features_of_darker_pictures_are_scaled_as_in_training(run, folder):
    "As in Python; so is one that others are searched for, and those that are drawn"
    deep(folder/'p')
    deep(folder/'q', 2000)
    assert run('pretrain', 'p', *TINY, '--size', 16, '--out', 'r', '--no-controls')[0] == 0
    code, out, err = run('embed', 'r', 'q', '-o', 'f.npz')
    assert (code, err) == (0, '') and 'become 0 to 1' not in out
    with np.load('f.npz') as file: h = file['features']
    np.testing.assert_allclose(h, embed('r', 'q').features.numpy(), rtol=1e-5, atol=1e-6)
    code, out, err = run('embed', 'f.npz', 'q', '--encoder', 'r', '--search', 'q/a/000.png', '--grid', 'g.png')
    assert (code, err) == (0, '') and 'become 0 to 1' not in out


def test_a_fine_tuning_keeps_the_range_that_its_encoder_was_given(run, folder):
    deep(folder/'p')
    deep(folder/'q', 60000)
    assert run('pretrain', 'p', *TINY, '--size', 16, '--range', '0,3000', '--out', 'r', '--no-controls')[0] == 0
    assert run('finetune', 'r', '--labels', 2, '--epochs', 1, '--out', 'f')[0] == 0
    assert config('f')['value_range'] == [0, 3000] and config('f')['split']['value_range'] == '0,3000'
    code, out, err = run('predict', 'f', 'q')
    assert (code, err) == (0, '') and 'trained with' not in out and 'it was tuned with' not in out
