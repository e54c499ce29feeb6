"embed: features of pictures in a file, and what is drawn, searched and listed by them"
import csv
import os
import shutil

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers.cli import config, disk_full
from helpers.folders import image_folder, picture
from helpers.pictures import ARCH

from fastcontrast.export import export_encoder
from fastcontrast.models import make_encoder


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    "An exported encoder that has learnt nothing"
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('embed')/'encoder.safetensors'
    encoder = make_encoder(ARCH, small_input=True, size=32)
    return export_encoder(encoder, path, ARCH, 32, [0.5] * 3, [0.25] * 3, small_input=True)


@pytest.fixture
def pictures(folder):
    image_folder(folder/'p/train', dict(a=4, b=3))
    image_folder(folder/'p/valid', dict(a=1, b=1))
    picture(123).save(folder/'p/train/b/own.png')
    picture(124).save(folder/'q.png')
    return folder/'p'


def rows_of(path):
    with open(path) as file: return list(csv.DictReader(file))


def test_embed(run, refused, digits, folder):
    code, out, err = run('embed', digits[0], 'digits', '-o', 'new/f.npz', '--device', 'cpu')
    assert (code, err) == (0, '') and out.endswith('1,797 pictures, 512 features each, are in new/f.npz\n')
    with np.load('new/f.npz') as file: h, labels, parts = file['features'], file['labels'], file['parts']
    assert h.shape == (1797, 512) and (parts == 'valid').sum() == config(digits[0])['n_valid']
    assert len(set(labels)) == 10
    assert '--out f.txt must end in .npz or .csv or .parquet' in refused('embed', digits[0], 'digits', '-o', 'f.txt')
    assert 'no encoder at' in refused('embed', 'none', 'digits')
    assert 'device=xpu:9 cannot be used here' in refused('embed', digits[0], 'digits', '--device', 'xpu:9')


def test_without_labels(run, encoder, folder):
    image_folder(folder/'p', {'': 4})
    assert run('embed', encoder, 'p', '-o', 'f.csv')[0] == 0
    rows = (folder/'f.csv').read_text().splitlines()
    assert len(rows) == 5 and rows[0].startswith('part,name,f0,f1,') and rows[1].startswith('train,000.png,')


def test_everything_at_once(run, encoder, pictures, folder):
    code, out, err = run('embed', encoder, 'p', '--map', 'map.png', '--search', 'q.png', '--top', 3, '--grid',
                         'new/grid.png', '--duplicates', '--threshold', 0.99999, '--outliers', 2, '--tables', 'lists')
    assert (code, err) == (0, '')
    for said in ('a map of 10 pictures is in map.png', 'the nearest pictures are drawn in new/grid.png',
                 '4 of 10 pictures have near copies (a similarity of 0.99999 or more), in 2 groups; 4 are in groups of '
                 'train and valid both', 'duplicates: 4 rows in lists/duplicates.csv', 'found: 3 rows in lists/found'):
        assert said in out, out
    assert {path.name for path in (folder/'lists').iterdir()} == {'found.csv', 'duplicates.csv', 'outliers.csv'}
    for name in ('map.png', 'new/grid.png'): assert matplotlib.image.imread(name).std() > 0.05
    assert len(rows_of('lists/found.csv')) == 3 and len(rows_of('lists/outliers.csv')) == 2
    copies = rows_of('lists/duplicates.csv')
    assert {row['name'] for row in copies} == {'a/000.png', 'b/000.png'}
    assert not list(folder.glob('*.npz'))  # features are written where they are asked for, or nothing else is


def test_a_folder_that_is_called_like_features_is_none_of_these(run, encoder, pictures, folder):
    "As that of a run on a table"
    (folder/'runs/fast-p.csv').mkdir(parents=True)
    shutil.copy(encoder, folder/'runs/fast-p.csv/encoder.safetensors')
    code, out, err = run('embed', 'runs/fast-p.csv', 'p')
    assert (code, err) == (0, '') and out.endswith('10 pictures, 96 features each, are in features.npz\n')


def test_a_full_disk_is_one_sentence(run, encoder, pictures, monkeypatch):
    monkeypatch.setattr('fastcontrast.cli.embed.write_whole', disk_full)
    code, out, err = run('embed', encoder, 'p', '--outliers', 2, '--tables', 'lists')
    assert (code, err) == (1, "error: no space is left on the disk for 'lists/outliers.csv'.\n")


def test_features_in_place_of_an_encoder(run, refused, encoder, pictures, folder):
    assert run('embed', encoder, 'p')[1].endswith('10 pictures, 96 features each, are in features.npz\n')
    first = run('embed', encoder, 'p', '--search', 'q.png', '--tables', 'one')[1]
    again = run('embed', 'features.npz', '--encoder', encoder, '--search', 'q.png', '--tables', 'two')[1]
    assert first.replace('one', 'two').endswith(again) and rows_of('one/found.csv') == rows_of('two/found.csv')
    out = run('embed', 'features.npz', '--search', 'train/a/000.png', '--top', 2, '--duplicates', '--outliers', 1)[1]
    assert 'a/000.png' in out and '1.0000' in out
    assert run('embed', 'features.npz', 'p', '--grid', 'g.png', '--top', 3, '--map', 'm.png', '--thumbnails')[0] == 0
    assert matplotlib.image.imread('g.png').shape[1] > 400 and (folder/'m.png').exists()
    assert run('embed', 'features.npz', '-o', 'f.csv')[0] == 0 and len(rows_of('f.csv')) == 10
    assert 'none of these is called' in refused('embed', 'features.npz', '--search', 'x.png')
    assert 'give the folder behind them' in refused('embed', 'features.npz', '--grid', 'g.png')
    assert 'say what to make of the features' in refused('embed', 'features.npz')
    assert 'there is no file' in refused('embed', 'none.npz', '--duplicates')
    assert '--device goes with an encoder' in refused('embed', 'features.npz', '--duplicates', '--device', 'cpu')
    (folder/'f.npz').write_text('nothing')
    assert 'holds no features' in refused('embed', 'f.npz', '--duplicates')
    image_folder(folder/'other', dict(a=2, c=2))
    assert "lack 'a/002.png' and 7 others" in refused('embed', 'features.npz', 'other', '--grid', 'g.png')


def test_what_is_refused_before_pictures_are_read(refused, encoder, pictures, folder, monkeypatch):
    (folder/'broken.png').write_text('nothing')
    for words, args in {
            'the pictures are missing': (), 'unknown map method': ('p', '--map', 'm.png', '--map-method', 'isomap'),
            '--map m.txt must end in': ('p', '--map', 'm.txt'), '--grid g must end in': ('p', '--grid', 'g'),
            '--top=0': ('p', '--search', 'q.png', '--top', 0), '--outliers=0': ('p', '--outliers', 0),
            '--threshold=2.0': ('p', '--duplicates', '--threshold', 2),
            '--tables goes with --search': ('p', '--tables', 't'),
            'there is no picture': ('p', '--search', 'x.png'), 'broken.png': ('p', '--search', 'broken.png'),
            '--encoder goes with features': ('p', '--duplicates', '--encoder', encoder),
            '--top goes with --search or --grid': ('p', '--top', 3), '--thumbnails goes with': ('p', '--thumbnails'),
            '--map-method goes with --map': ('p', '--map-method', 'tsne'),
            '--threshold goes with --duplicates': ('p', '--outliers', 2, '--threshold', .9)}.items():
        assert words in refused('embed', encoder, *args)
    assert 'there is no picture' in refused('embed', encoder, 'none', '--search', 'x.png')
    with monkeypatch.context() as patch:
        patch.setattr('fastcontrast.embed.find_spec', lambda name: None)
        assert "pip install 'fastcontrast[embed]'" in refused('embed', encoder, 'none', '-o', 'f.parquet')


def test_lists_in_the_home_folder(run, encoder, pictures, folder, monkeypatch):
    monkeypatch.setenv('HOME', str(folder/'home'))
    assert run('embed', encoder, 'p', '--outliers', 2, '--tables=~/lists')[0] == 0
    assert len(rows_of('home/lists/outliers.csv')) == 2 and not (folder/'~').exists()


def test_names_that_are_no_utf8(run, refused, encoder, folder):
    image_folder(folder/'p', {os.fsdecode(b'caf\xe9'): 2, 'b': 2})
    assert run('embed', encoder, 'p', '-o', 'f.npz', '--outliers', 2)[0] == 0
    code, out, err = run('embed', encoder, 'p', '-o', 'f.parquet', '--map', 'm.png')
    assert code == 2 and 'no UTF-8 have no place in a .parquet' in err and not (folder/'m.png').exists()


def test_a_grey_encoder_of_features(run, refused, folder):
    made = make_encoder(ARCH, in_chans=1)
    export_encoder(made, 'e.safetensors', ARCH, 32, [.5], [.5])
    image_folder(folder/'p', dict(a=2, b=2))
    assert run('embed', 'e.safetensors', 'p', '-o', 'f.npz')[0] == 0
    by = ('--encoder', 'e.safetensors', '--search', 'p/a/000.png', '--grid', 'g.png')
    assert run('embed', 'f.npz', 'p', *by)[0] == 0 and (folder/'g.png').exists()
    assert 'there is no picture' in refused('embed', 'f.npz', 'none', *by[:3], 'x.png', *by[4:])


def test_few_pictures(run, encoder, folder):
    image_folder(folder/'p', {'': 2})
    code, out, _ = run('embed', encoder, 'p', '--duplicates', '--threshold', 1, '--outliers', 5, '--grid', 'g.png')
    assert code == 0 and 'no two pictures have a similarity of 1 or more' in out
    assert 'three pictures or more' in run('embed', encoder, 'p', '--map', 'm.png')[2]
