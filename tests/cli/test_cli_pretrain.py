"pretrain: what a run leaves, what it prints, and every mistake answered with one sentence"
import csv
import re
from pathlib import Path

import matplotlib.image
import pytest
import torch
from helpers.cli import COST, TINY, config, judged_knn
from helpers.folders import image_folder, picture

from fastcontrast import __version__
from fastcontrast.cli import evaluate, parse_speedups, training, views
from fastcontrast.cli.inputs import read_pictures
from fastcontrast.cli.settings import number_or_name
from fastcontrast.recipes import fast

# ---------------------------------------------------------------- a run, and what it leaves


def test_run_folder(digits):
    out, _ = digits
    names = {'encoder.safetensors', 'config.json', 'history.csv', 'curves.png', 'views.png', 'checkpoints'}
    assert {p.name for p in out.iterdir()} == names
    for name in ('curves.png', 'views.png'): assert matplotlib.image.imread(out/name).std() > .05
    rows = list(csv.DictReader((out/'history.csv').open()))
    assert list(rows[0]) == ['epoch', 'train_loss', 'knn', 'spread', 'rankme', *COST, 'time'] and len(rows) == 1
    assert 0 < float(rows[0]['knn']) < 1 < float(rows[0]['train_loss'])


def test_config_has_every_setting_resolved(digits):
    c, recipe = config(digits[0]), fast().resolve('digits')
    expected = dict(
        data='digits', method='fast', loss=str(recipe.loss()), arch='resnet10t', size=32, epochs=1, batch_size=256,
        lr=recipe.lr, labels=None, valid=.2, small_input=False, setting='digits', controls=True, seed=0, workers=None,
        target='SharedTarget()', n_train=1400, n_valid=397, state='finished', epochs_done=1, unjudged='',
        undecodable={}, n_labeled=0,
        speedups=['ProgressiveSize(start=0.3333333333333333)', "MultiView(4, 'mean')"])
    assert {k: c[k] for k in expected} == expected
    assert c['precision'] in ('fp32', 'bf16') and c['recipe']['opt'] == 'adamw'
    assert c['versions']['torch'] == torch.__version__.split('+')[0] and c['versions']['fastcontrast'] == __version__
    cost, row = c['cost'], next(csv.DictReader((digits[0]/'history.csv').open()))
    assert cost['steps'] == 5 and cost['images'] == 1280 and cost['tflop'] == float(row['tflop']) > .1
    assert 0 < cost['seconds'] < c['seconds']
    assert {'python', 'device', 'commit', 'command', 'seconds'} <= set(c)


def test_what_a_run_prints(digits):
    out, got = digits
    assert got.stderr == '' and '\x1b' not in got.stdout and '\r' not in got.stdout
    lines, results = got.stdout.splitlines(), config(out)['results']
    assert lines[0].startswith('1,400 pictures to train on, 397 to judge by') and lines[0].endswith(f'results in {out}')
    assert lines[-1].endswith(f'curves.png and views.png are in {out}') and re.match(r'\d+ seconds; ', lines[-1])
    table = [re.split(r' *│ *', line)[1:-1] for line in lines[-5:-2]]
    assert table == [[name, f"{r['knn']:.1%}", f"{r['few_labels']:.1%} ± {r['few_labels_std']:.1%}"]
                     for name, r in results.items()]
    assert [row[0] for row in table] == ['raw pixels', 'untrained encoder', 'trained encoder']
    assert sum(line.split()[:1] == ['0'] for line in lines) == 1  # one line an epoch
    assert 40 < 100 * results['trained encoder']['knn'] <= 100
    assert results['raw pixels']['knn'] == pytest.approx(.9496, abs=1e-3)


def test_runs_get_names_and_numbers(run, folder):
    image_folder(folder/'my pictures', dict(a=4, bb=4))
    for n in ('', '-2'): (folder/f'runs/fast-test_resnet-my pictures{n}').mkdir(parents=True)
    code, out, err = run('pretrain', 'my pictures', *TINY, '--no-controls')
    assert (code, err) == (0, '') and out.endswith('are in runs/fast-test_resnet-my pictures-3\n')


def test_an_empty_folder_is_taken(run, folder):
    image_folder(folder/'p', {'': 4})
    (folder/'r').mkdir()
    assert run('pretrain', 'p', *TINY, '--out', 'r')[0] == 0 and (folder/'r/encoder.safetensors').is_file()


# ---------------------------------------------------------------- pictures

def test_what_are_classes_is_the_first_line(run, refused, folder):
    image_folder(folder/'p', {'2023/jan': 6, '2024/feb': 6})
    code, out, err = run('pretrain', 'p', *TINY, '--no-controls', '--out', 'r')
    assert (code, err) == (0, '') and out.startswith('2 classes from folders: 2023, 2024\n10 pictures to train on')
    assert run('eval', 'r', 'p')[1].startswith('2 classes from folders: 2023, 2024\n')
    picture(0).save(folder/'p/loose.png')
    assert 'loose.png' in refused('pretrain', 'p', *TINY)
    code, out, err = run('pretrain', 'p', '--unlabelled', *TINY, '--out', 's')
    assert (code, err) == (0, '') and out.startswith('13 pictures to train on; ') and 'not judged' in out
    assert config('s')['n_valid'] == 0 and config('s')['classes'] is None
    assert 'give one of the two' in refused('pretrain', 'p', '--unlabelled', '--labels', .5, *TINY)
    assert run('views', 'p', '--unlabelled', '-n', 2)[0] == 0


def test_odd_pictures_are_reported_and_recorded(run, folder):
    image_folder(folder/'p', dict(a=8, bb=8))
    (folder/'p/a/[bold]:smile:.png').write_bytes(b'not a picture')
    code, out, err = run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')
    assert code == 0 and config('r')['undecodable'] == {'p/a/[bold]:smile:.png': 'not a picture'}
    assert '1 of 17 pictures could not be decoded' in err and 'p/a/[bold]:smile:.png (not a picture)' in err
    assert 'r/config.json lists them' in err
    assert config('r')['n_train'] + config('r')['n_valid'] == 16
    code, out, err = run('eval', 'r', 'p')
    assert code == 0 and 'could not be decoded' in err


@pytest.mark.parametrize('counts, valid, reason', [
    ({'': 8}, .2, 'have no labels'), (dict(a=10), .2, 'one class'), (dict(a=4, bb=4), 0, '--valid'),
], ids=['loose', 'one class', 'none held out'])
def test_pictures_that_cannot_judge(run, refused, folder, counts, valid, reason):
    image_folder(folder/'p', counts)
    code, out, err = run('pretrain', 'p', *TINY, '--valid', valid, '--out', 'r')
    assert (code, err) == (0, '') and '\nnot judged: ' in out and 'features' not in out
    early, late = out.split('\nepoch ')[0], out.split('\nnot judged: ')[1]
    assert reason in early and 'will not be judged' in early and reason in late
    assert reason in config('r')['unjudged'] and config('r')['results'] == {} and config('r')['state'] == 'finished'
    assert next(csv.reader(Path('r/history.csv').open())) == ['epoch', 'train_loss', 'spread', 'rankme', *COST, 'time']
    assert reason in refused('eval', 'r', 'p')


def test_a_class_of_which_no_picture_can_be_read(run, folder):
    image_folder(folder/'p', dict(a=10))
    (folder/'p/b').mkdir()
    for i in range(5): (folder/f'p/b/{i}.png').write_bytes(b'?')
    code, out, err = run('pretrain', 'p', *TINY, '--out', 'r')
    assert code == 0 and 'not judged: all pictures are of one class' in out
    early, late = err.strip().splitlines()  # before training, and at the end
    assert '5 of 15' in early and early in late and 'r/config.json lists them' in late


def test_labels_that_are_left_alone_cannot_judge(run, folder):
    image_folder(folder/'p', dict(a=6, b=6))
    code, out, err = run('pretrain', 'p', *TINY, '--unlabelled', '--out', 'r')
    assert (code, err) == (0, '') and '\nnot judged: --unlabelled leaves labels alone' in out


def test_the_stem_is_said(run, folder):
    "It makes a step many times as dear, and is picked by the side of the pictures"
    image_folder(folder/'p', dict(a=6, b=6))
    for small in ('', 'no-'):
        out = run('pretrain', 'p', *TINY, f'--{small}small-input', '--out', f'r{small}')[1]
        assert ('stem for small pictures' in out) == (not small)


def test_where_it_trains(run, refused, folder):
    image_folder(folder/'p', dict(a=6, b=6))
    assert run('pretrain', 'p', *TINY, '--device', 'cpu', '--out', 'r')[0] == 0
    assert config('r')['settings']['device'] == 'cpu' and config('r')['device'].startswith('cpu')
    assert 'device=xpu:9 cannot be used here' in refused('pretrain', 'p', *TINY, '--device', 'xpu:9', '--out', 's')
    assert '--device cpu is for one process' in refused('pretrain', 'p', *TINY, '--device', 'cpu', '--processes', 2)


def test_few_pictures_a_class(run, folder):
    "As many labels as the smallest class has"
    image_folder(folder/'p/train', dict(a=8, bb=1))
    image_folder(folder/'p/valid', dict(a=2, bb=2))
    code, out, err = run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')
    assert code == 0 and 'linear, 1 label a class' in out
    assert config('r')['results']['trained encoder']['per_class'] == 1


def test_large_pictures_have_small_raw_pixels(run, folder):
    image_folder(folder/'p', dict(a=4, bb=4), size=(48, 48))
    code, out, err = run('pretrain', 'p', *TINY, '--out', 'r')
    assert code == 0
    assert list(config('r')['results']) == ['raw pixels (32 x 32)', 'untrained encoder', 'trained encoder']


def test_labels(folder):
    image_folder(folder/'p', dict(a=8, bb=8))
    (folder/'some.txt').write_text('a/001.png\n# none\n\nbb/002.png\n')
    def known(labels):
        dls = read_pictures('p', 4, valid=0, labels=number_or_name(labels))
        return dls.train.data.labeled.sum().item()
    assert [known(labels) for labels in (None, 'all', '0.25', '1', 'some.txt')] == [0, 16, 4, 16, 2]


def test_cache(run, folder):
    image_folder(folder/'p', dict(a=8, bb=8), size=(40, 40))
    (folder/'settings.ini').write_text('[kept]\ndata = p\narch = test_resnet\nepochs = 1\nbatch_size = 4\n'
                                       'controls = no\ncache = true\n')
    said = f"decoding 16 pictures at 40 px into '{folder}/p.cache/p-all-40px.safetensors' (0.1 MB)\n"
    commands = ((('p', *TINY, '--no-controls', '--cache'), said), (('--run', 'kept'), ''),
                (('--run', 'kept', '--no-cache'), ''))
    results = []
    for args, expected in commands:
        code, _, err = run('pretrain', *args, '--out', folder/f'r{len(results)}')
        assert code == 0 and err == expected
        results.append(config(folder/f'r{len(results)}'))
    assert [r['cache'] for r in results] == [True, True, False]
    assert all(r['results']['trained encoder'] == results[0]['results']['trained encoder'] for r in results)
    assert run('pretrain', 'p', *TINY, '--no-controls', '--cache-folder', 'c')[0] == 0
    assert len(list((folder/'c').glob('p-*-all-40px.safetensors'))) == 1


def test_shards(run, folder):
    from webdataset import TarWriter
    (folder/'shards').mkdir()
    for k in range(4):
        with TarWriter(f'shards/{k:03}.tar') as tar:
            for i in range(8): tar.write(dict(__key__=f'{k}{i}', png=picture(10 * k + i), cls=i % 2))
    code, out, err = run('pretrain', 'shards/{000..003}.tar', *TINY, '--workers', 1)
    assert code == 0 and err == '' and out.startswith('24 pictures to train on, 8 to judge by')
    c, = (config(p) for p in (folder/'runs').iterdir())
    assert (folder/'runs/fast-test_resnet-shards').exists()
    assert set(c['results']) == {'raw pixels', 'untrained encoder', 'trained encoder'}
    code, out, err = run('pretrain', 'shards/{000..002}.tar', '--valid', 'shards/003.tar', *TINY, '--no-controls',
                         '--workers', 0, '--out', 'r')
    assert code == 0 and config('r')['valid'] == 'shards/003.tar' and config('r')['n_valid'] == 8
    assert run('eval', 'r', 'shards/{000..002}.tar', '-o', 'e.json')[0] == 0
    assert judged_knn('e.json') == config('r')['results']['trained encoder']['knn']
    assert run('views', 'shards/000.tar', '-n', 2)[0] == 0
    assert 'not judged' in run('pretrain', 'shards/000.tar', *TINY, '--out', 's')[1]


# ---------------------------------------------------------------- speedups

def test_speedups_of_a_run(run, folder):
    "They train, name the folder, and are recorded, as are the pictures whose labels they used"
    image_folder(folder/'p', dict(a=10, bb=10))
    command = ('pretrain', 'p', *TINY, '--no-controls', '--with')
    code, out, err = run(*command, 'comb_patches,suncet(weight=.5)', '--labels', .5, '--arch', 'resnet10t')
    assert (code, err) == (0, '') and out.endswith('are in runs/fast+comb_patches+suncet-resnet10t-p\n')
    r = folder/'runs/fast+comb_patches+suncet-resnet10t-p'
    c, names = config(r), (r/'labeled.txt').read_text().split()
    assert set(c['speedups']) >= {repr(cb) for cb in parse_speedups('comb_patches,suncet(weight=.5)')}
    assert (c['n_labeled'], len(names), c['labels']) == (8, 8, '0.5') and sum(n.startswith('a/') for n in names) == 4
    assert run(*command, 'suncet', '--labels', r/'labeled.txt', '--out', 'r')[0] == 0
    assert (folder/'r/labeled.txt').read_text() == (r/'labeled.txt').read_text()
    assert run(*command, 'suncet', '--labels', 'all', '--out', 's')[0] == 0
    assert config('s')['n_labeled'] == 16 and not Path('s/labeled.txt').exists()


def test_speedups_that_the_pictures_do_not_suit(refused, folder):
    image_folder(folder/'p', dict(a=10, bb=10))
    assert 'labels' in refused('pretrain', 'p', *TINY, '--with', 'suncet')
    assert 'IntermediateLoss' in refused('pretrain', 'p', *TINY, '--with', 'partial')
    assert not (folder/'runs').exists()


def test_batches_in_chunks(run, refused, folder):
    image_folder(folder/'p', dict(a=10, bb=10))
    words = 'accumulate=3 does not divide a batch of 4 pictures: give one of 2.'
    assert words in refused('pretrain', 'p', *TINY, '--accumulate', 3)
    assert '--accumulate=0 must be a whole number of at least 1' in refused('pretrain', 'p', *TINY, '--accumulate', 0)
    assert not (folder/'runs').exists()
    code, _, err = run('pretrain', 'p', *TINY, '--accumulate', 2, '--out', 'r', '--no-controls')
    assert (code, err) == (0, '') and config('r')['accumulate'] == 2


# ---------------------------------------------------------------- mistakes

@pytest.mark.parametrize('args, words', [
    (('--epochs', 0), '--epochs=0 must be a whole number of at least 1'),
    (('--batch-size', 1), '--batch-size=1 must be a whole number of at least 2'),
    (('--lr', 0), '--lr=0.0 must be a finite number above 0'),
    (('--lr', -1), '--lr=-1.0 must'),
    (('--lr', 'nan'), '--lr=nan must'),
    (('--lr', 'inf'), '--lr=inf must'),
    (('--valid', 1.5), '--valid=1.5 must'),
    (('--valid', -.1), '--valid=-0.1 must'),
    (('--valid', 'nan'), '--valid=nan must'),
    (('--size', 0), '--size=0 must'),
    (('--seed', -1), '--seed=-1 must'),
    (('--seed', 2**70), f'--seed={2**70} must be a whole number from 0 to {2**63 - 1}'),
    (('--workers', -1), '--workers=-1 must'),
    (('--epochs', 'ten'), "'--epochs'"),
    (('--setting', 'cifra'), "unknown setting of fast() 'cifra': did you mean cifar?"),
    (('--precision', 'fp61'), "unknown precision 'fp61'"),
    (('--method', 'simclear'), "unknown method 'simclear': did you mean simclr"),
    (('--loss', 'dlc'), "unknown loss 'dlc': did you mean dcl"),
    (('--arch', 'resnet1'), "unknown architecture 'resnet1'"),
    (('--labels', 1.5), 'labels=1.5'),
    (('--labels', 'nowhere.txt'), 'nowhere.txt'),
    (('--epoch', 3), '--epoch'),
    (('more',), 'more'),
    (('--cache',), 'leave cache (--cache) out'),
    (('--valid', 'x.tar'), "there is no shard 'x.tar'"),
    (('--small-input', '--arch', 'convnext_atto'), 'small_input'),
])
def test_options_out_of_range(refused, args, words):
    assert words in refused('pretrain', 'digits', *args)
    assert not any(Path('runs').rglob('*')), "a run that never began leaves nothing"


def test_data_that_is_none(refused, folder):
    (folder/'empty').mkdir()
    (folder/'text.txt').write_text('text')
    image_folder(folder/'one', {'': 1})
    image_folder(folder/'mixed', {'': 1, 'a': 2})
    (folder/'bad').mkdir()
    for i in range(3): (folder/f'bad/{i}.jpg').write_bytes(b'?')
    mistakes = {'nowhere': "'nowhere'", 'digit': 'did you mean digits?', 'a/[b]': 'a/[b]', 'empty': 'no picture',
                'text.txt': 'is a file', 'bad': 'no picture could be decoded', 'mixed': 'loose pictures',
                '': 'is empty'}
    for data, words in mistakes.items():
        assert words in refused('pretrain', data, '--batch-size', 2)
        assert words in refused('views', data)
    for command in (('pretrain', 'one', '--batch-size', 2), ('views', 'one')):
        assert 'one has 1 picture to train on' in refused(*command)
    assert not any(p for p in Path('runs').rglob('*') if p.is_file()) and not Path('runs').exists()


def test_folders_that_cannot_be_written(refused, digits, folder, monkeypatch):
    "Found before any picture is read or anything heavy is imported"
    (folder/'file').write_text('')
    for module in (training, evaluate, views): monkeypatch.setattr(module, 'read_pictures', None)
    for out in ('file', 'file/below', 'file/below/it'):
        assert "can't be written" in refused('pretrain', '--out', out)
    assert 'is too long to be the name of a file' in refused('pretrain', '--out', 'x' * 300)
    (folder/'full').mkdir()
    (folder/'full/file').write_text('')
    assert '--out full already holds files' in refused('pretrain', '--out', 'full')
    (folder/'runs').write_text('')
    assert "can't be written" in refused('pretrain')
    commands = {'png': ('views', 'digits'), 'json': ('eval', digits[0], 'digits'), 'safetensors': ('export', digits[0])}
    for suffix, command in commands.items():
        assert "can't be written" in refused(*command, '-o', f'file/below.{suffix}')
        assert 'is too long to be the name' in refused(*command, '-o', f"{'x' * 300}.{suffix}")
        assert 'must end in' in refused(*command, '-o', 'e.pth')
    (folder/'f.png').mkdir()
    assert "can't be written" in refused('views', '-o', 'f.png')
