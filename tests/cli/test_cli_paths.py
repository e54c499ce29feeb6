"Paths and names on the command line: home folders, empty ones, pipes, what a terminal would obey, garbled records"
import csv
import json
import os
from pathlib import Path

import pytest
from helpers.cli import TINY, config
from helpers.folders import image_folder, picture
from helpers.odd import KINDS, no_file, within

from fastcontrast.data import image_dls

DRAWN = True  # what is odd here is in the drawings too

ODD = '\x1b[31m\x1b]0;title\x07\nred\u202e'
SHOWN = '\\x1b[31m\\x1b]0;title\\x07\\nred\\u202e'
RUN = ('pretrain', 'p', *TINY, '--no-controls')


@pytest.fixture
def home(folder, monkeypatch):
    (folder/'home').mkdir()
    monkeypatch.setenv('HOME', str(folder/'home'))
    return folder/'home'


# ---------------------------------------------------------------- the home folder, and no folder

def test_the_home_folder_in_every_option(run, home, folder):
    image_folder(home/'p', dict(a=6, bb=6))
    image_folder(home/'q', dict(a=3, bb=3))
    (home/'names.txt').write_text('a/000.png\na/001.png\nbb/002.png\nbb/003.png\n')
    command = ('pretrain', '~/p', *TINY, '--no-controls', '--with', 'suncet', '--labels', '~/names.txt',
               '--valid', '~/q')
    assert run(*command, '--cache-folder', '~/kept', '--out=~/r')[0] == 0
    assert (home/'r/encoder.safetensors').is_file() and len(list((home/'kept').glob('*.safetensors'))) == 2
    assert config(home/'r')['n_labeled'] == 4 and config(home/'r')['n_valid'] == 6
    assert run('pretrain', '--resume', '~/r', '--epochs', 2)[0] == 0 and config(home/'r')['epochs_done'] == 2
    assert run('pretrain', *command[1:], '--cache-folder', '~/kept', '--epochs', 3, '--out', '~/r')[0] == 0
    assert config(home/'r')['epochs_done'] == 3
    assert run('eval', '~/r', '~/p', '--valid', '~/q', '-o', '~/new/e.json')[0] == 0
    assert run('export', '~/r', '-o', '~/new/e.safetensors')[0] == 0
    assert run('eval', '~/new/e.safetensors', '~/p')[0] == 0
    assert run('views', '~/p', '-n', 2, '-o', '~/new/v.png')[0] == 0
    assert run('compare', '~/r', '~/r', '-o', '~/new/c.png')[0] == 0
    assert json.loads(run('runs', '~', '--json')[1])[0]['run'] == str(home/'r')
    assert {file.name for file in (home/'new').iterdir()} == {'e.json', 'e.safetensors', 'v.png', 'c.png'}
    assert not [path for path in folder.rglob('*') if '~' in path.name]


@pytest.mark.parametrize('path', ['', '~nobody_is_called_this/x'])
def test_no_path_is_refused(refused, folder, path):
    image_folder(folder/'p', dict(a=4, bb=4))
    words = 'is no path' if not path else 'begins with the home folder of somebody unknown here'
    for option in ('--out', '--resume', '--cache-folder', '--labels', '--valid', *(['--weights'] if path else [])):
        assert words in refused(*RUN, f'{option}={path}'), option
    for command in (('eval', path, 'p'), ('export', path, '-o', 'x.safetensors'),
                    ('runs', path), ('compare', path, path), ('views', 'p', '-o', path)):
        assert words in refused(*command), command
    assert not (folder/'runs').exists() and {file.name for file in folder.iterdir()} == {'p'}


@pytest.mark.parametrize('args, words', [
    (('--size', 10**9), 'size=1000000000 must be a whole number from 2 to 8192'),
    (('--size', 10**30), 'must be a whole number'),
    (('--lr', '1e300'), '--lr=1e+300 must be a finite number above 0 and at most 1e+30'),
    (('--batch-size', 10**30), 'must be a whole number from 2 to'),
])
def test_numbers_that_no_machine_has(refused, folder, args, words):
    image_folder(folder/'p', dict(a=4, bb=4))
    for data in ('p', 'digits'): assert words in refused('pretrain', data, *args)
    assert not (folder/'runs').exists()


# ---------------------------------------------------------------- pipes

@pytest.mark.parametrize('kind', ['pipe', 'device'])  # that nothing writes to, and that never ends
def test_only_files_are_opened(run, refused, folder, kind):
    image_folder(folder/'p', dict(a=6, bb=6))
    no_file(folder/'p/a/pipe.jpg', kind)
    with within(60):
        code, _, err = run(*RUN, '--out', 'r')
        assert code == 0 and f'p/a/pipe.jpg ({KINDS[kind]})' in err
        (folder/'r/history.csv').unlink()
        no_file(folder/'r/history.csv', kind)
        (folder/'r/encoder.safetensors').unlink()
        no_file(folder/'r/encoder.safetensors', kind)
        assert run('runs', 'r')[0] == 0
        assert 'encoder' in refused('eval', 'r', 'p') and 'history.csv' in refused('compare', 'r', 'r')
        (folder/'r/config.json').unlink()
        no_file(folder/'r/config.json', kind)
        assert KINDS[kind] in refused('pretrain', '--resume', 'r')
        no_file(folder/'settings.ini', kind)
        assert f"settings.ini can't be read: [Errno 22] {KINDS[kind]}" in refused('pretrain', '--run', 'x')
        no_file(folder/'v.png', kind)
        assert f"--out v.png can't be written: {KINDS[kind]}" in refused('views', 'p', '-o', 'v.png')
        no_file(folder/'out', kind)
        assert "the run folder out can't be written" in refused(*RUN, '--out', 'out')
        no_file(folder/'s/.lock', kind)
        assert "the run folder s can't be written" in refused(*RUN, '--out', 's')


# ---------------------------------------------------------------- names

def test_names_are_shown_and_not_obeyed(run, refused, folder):
    image_folder(folder/'p', dict(a=6, bb=6))
    (folder/f'p/a/{ODD}.png').write_bytes(b'?')
    (folder/f'p/a/{ODD}.heic').write_bytes(b'')
    outputs = [run(*RUN, '--out', f'r{ODD}')]
    assert outputs[0][0] == 0 and f'p/a/{SHOWN}.png (not a picture)' in outputs[0][2]
    assert f'a/{SHOWN}.heic' in outputs[0][2] and outputs[0][1].endswith(f'are in r{SHOWN}\n')
    for command in (('runs', '.'), ('compare', f'r{ODD}', f'r{ODD}'), ('eval', f'r{ODD}', 'p')):
        outputs.append(run(*command))
        assert outputs[-1][0] == 0, outputs[-1]
    (folder/f'p/a/{ODD}.heic').unlink()
    for command in (('eval', f'no{ODD}', 'p'), ('pretrain', f'no{ODD}'), ('views', 'p', '-o', f'{ODD}.xyz'),
                    ('pretrain', 'p', '--arch', ODD), ('compare', f'no{ODD}', 'x'),
                    ('pretrain', '--resume', f'no{ODD}'), (*RUN, '--labels', f'no{ODD}'), (*RUN, '--run', ODD)):
        assert SHOWN in refused(*command), command
    for _, out, err in outputs: assert not any(c in out + err for c in '\x1b\x07\u202e')


def test_a_class_s_name_is_shown(run, folder):
    image_folder(folder/'p', {'a': 6, ODD: 6})
    code, out, err = run(*RUN, '--with', 'suncet', '--labels', 'all')
    assert code == 0 and '\x1b' not in out + err
    image_folder(folder/'q', {'a': 6, ODD: 1})
    code, out, err = run('pretrain', 'q', *TINY[:2], '--batch-size', 4, '--with', 'suncet', '--labels', 'all')
    assert code == 2 and err.count('\n') == 1 and f"class '{SHOWN}' has one picture" in err


def test_odd_names_come_through_labeled_txt(run, folder):
    image_folder(folder/'p', dict(a=10, bb=10))
    odd = [ODD, '# no comment', '"quoted"', ' space ', 'two\nlines', os.fsdecode(b'\xff'), '\u2028']
    for i, name in enumerate(odd): picture(i).save((folder/'p/a'/name).with_name(f'{name}.png'))
    command = (*RUN, '--with', 'suncet', '--labels')
    assert run(*command, .7, '--out', 'r')[0] == 0
    lines = (folder/'r/labeled.txt').read_text(encoding='utf-8').splitlines()
    assert len(lines) == config('r')['n_labeled'] and any('"' in line for line in lines)
    assert run(*command, 'r/labeled.txt', '--out', 's')[0] == 0
    assert (folder/'s/labeled.txt').read_text() == (folder/'r/labeled.txt').read_text()
    names = image_dls('p', bs=4, valid=0, labels='r/labeled.txt', device='cpu').train.data
    assert names.labeled.sum() >= len(lines) - 5


def test_an_out_that_is_no_utf8_is_refused(refused, folder):
    "Before training: safetensors opens no such file, be it the encoder's or the cache's"
    image_folder(folder/'p', dict(a=6, bb=6))
    name = os.fsdecode(b'r\xff')
    assert '--out=r\\xff is no UTF-8, and files of safetensors' in refused(*RUN, '--out', name)
    text = refused(*RUN, '--cache-folder', name)
    assert '\\xff/p-' in text and '-all-32px.safetensors is no UTF-8' in text
    assert {path.name for path in folder.iterdir()} == {'p'}
    (folder/f'{name}.safetensors').write_bytes(b'')
    assert '\\xff.safetensors is no UTF-8' in refused('eval', f'{name}.safetensors', 'p')


def test_pictures_whose_names_are_no_utf8(run, folder):
    data = folder/os.fsdecode(b'p\xff')
    image_folder(data, {os.fsdecode(b'a\xfe'): 6, 'b': 6})
    (data/os.fsdecode(b'b/\xfd.png')).write_bytes(b'?')
    code, out, err = run('pretrain', data, *TINY, '--no-controls', '--out', 'r')
    assert code == 0 and '\\xff/b/\\xfd.png (not a picture)' in err and config('r')['classes'] == ['a\udcfe', 'b']
    assert run('eval', 'r', data)[0] == 0 and run('pretrain', '--resume', 'r', '--epochs', 2)[0] == 0


# ---------------------------------------------------------------- records

GARBLED = {
    'speedups': [5, {'a': 1}, [5], True], 'state': [5, ['finished'], {}],
    'results': [5, {'a': 5}, {'a': {'knn': 'x'}}, []],
    'epochs_done': ['3', 1.5, {}], 'settings': [5, 'x', []], 'seconds': ['x', []], 'reason': [5, {}], 'pid': ['x', {}],
    'host': [5], 'seed': ['x', 1.5], 'valid': [[1], {}], 'method': [5, {}], 'loss': [5], 'epochs': ['x'],
}


@pytest.mark.parametrize('field, value', [(field, value) for field in GARBLED for value in GARBLED[field]], ids=str)
def test_a_record_with_a_garbled_field(run, refused, folder, field, value):
    (folder/'r').mkdir()
    (folder/'r/history.csv').write_text('epoch,train_loss,knn\n0,1.0,0.25\n')
    (folder/'r/config.json').write_text(json.dumps(dict(state='failed', settings={}, method='simclr') | {field: value}))
    assert f"r/config.json can't be read: its {field} is " in refused('pretrain', '--resume', 'r')
    code, out, err = run('runs', 'r')
    assert (code, err) == (0, '') and f"r: r/config.json can't be read: its {field} is" in out
    code, out, err = run('compare', 'r', 'r')
    assert (code, err) == (0, '') and 'r' in out


@pytest.mark.parametrize('content, words', [
    (b'[' * 100_000, 'nested too deeply'), (b'{"a":' * 100_000, 'nested too deeply'), (b'', 'Expecting'),
    (b'{', 'Expecting'),
    (b'"\\ud800"', 'half a character'), (b'{"data": "\\ud800"}', 'half a character'), (b'\xff\xfe', 'no text in UTF-8'),
    (b'5', 'no record of a run'), (b'{"epochs": ' + b'9' * 5000 + b'}', ''),
], ids=lambda x: str(x)[:20])
def test_a_record_that_is_none(run, refused, folder, content, words):
    (folder/'r').mkdir()
    (folder/'r/history.csv').write_text('epoch,train_loss,knn\n0,1.0,0.25\n')
    (folder/'r/config.json').write_bytes(content)
    said = refused('pretrain', '--resume', 'r')
    assert "r/config.json can't be read" in said and words in said
    assert run('runs', 'r')[0] == 0 and run('compare', 'r', 'r')[0] == 0
    assert list(csv.reader(Path('r/history.csv').open()))
