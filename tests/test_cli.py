"The command line: what a run leaves, what each command prints, and every mistake answered with one sentence"
import csv
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

import fastcontrast.cli as cli
from fastcontrast import __version__
from fastcontrast.data import image_dls
from fastcontrast.export import encoder_info, load_encoder
from fastcontrast.learner import contrastive_learner
from fastcontrast.recipes import LOSSES, METHODS, RECIPES, SPEEDUPS, simclr
from fastcontrast.views import VIEW_KINDS

PROGRAM = [sys.executable, '-m', 'fastcontrast']
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'COLUMNS': '80'}
COST = ('seconds', 'tflop', 'images_s', 'memory_mb')
TINY = ('--arch', 'resnet10t', '--epochs', 1, '--batch-size', 4)


@pytest.fixture
def run(monkeypatch, capsys):
    "Run the program here: exit code, stdout, stderr"
    def run(*args):
        capsys.readouterr()
        monkeypatch.setattr(sys, 'argv', ['fastcontrast', *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as e: code = e.code or 0
        return code, *capsys.readouterr()
    yield run
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def refused(run):
    "Run the program, which must answer with exit code 2 and nothing but one line, on stderr"
    def refused(*args):
        code, out, err = run(*args)
        assert code == 2 and out == '', (code, out, err)
        assert err.startswith('error: ') and err.count('\n') == 1 and '\x1b' not in err, err
        return err
    return refused


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(i, side=32): return Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8))


def pictures(folder, counts, side=32):
    for c, n in counts.items():
        (folder/c).mkdir(parents=True, exist_ok=True)
        for i in range(n): picture(i + 100 * len(c), side).save(folder/c/f'{i:03}.png')
    return folder


def config(run_folder): return json.loads((Path(run_folder)/'config.json').read_text())


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    "A run on the digits: its folder and what it printed"
    out = tmp_path_factory.mktemp('cli')/'digits [run] :smile:'
    got = subprocess.run([*PROGRAM, 'pretrain', '--epochs', '1', '--batch-size', '256', '--out', out], env=ENV, capture_output=True, text=True, timeout=120)
    assert got.returncode == 0, got.stderr
    return out, got


# ---------------------------------------------------------------- a run, and what it leaves

def test_run_folder(digits):
    out, _ = digits
    assert {p.name for p in out.iterdir()} == {'encoder.safetensors', 'config.json', 'history.csv', 'curves.png', 'views.png'}
    for name in ('curves.png', 'views.png'): assert matplotlib.image.imread(out/name).std() > .05
    rows = list(csv.DictReader((out/'history.csv').open()))
    assert list(rows[0]) == ['epoch', 'train_loss', 'knn', 'std', *COST, 'time'] and len(rows) == 1
    assert 0 < float(rows[0]['knn']) < 1 < float(rows[0]['train_loss'])


def test_config_has_every_setting_resolved(digits):
    c, recipe = config(digits[0]), simclr().resolve('digits')
    expected = dict(data='digits', method='simclr', loss=str(recipe.loss()), arch='resnet10t', size=32, epochs=1, batch_size=256, lr=recipe.lr, labels=None,
                    valid=.2, small_input=False, setting='digits', controls=True, seed=0, workers=None, target='SharedTarget()', n_train=1400, n_valid=397,
                    state='finished', epochs_done=1, unjudged='', undecodable={}, speedups=[], n_labeled=0)
    assert {k: c[k] for k in expected} == expected
    assert c['precision'] in ('fp32', 'bf16') and c['recipe']['opt'] == 'adamw' and c['versions']['torch'] == torch.__version__.split('+')[0]
    cost, row = c['cost'], next(csv.DictReader((digits[0]/'history.csv').open()))
    assert cost['steps'] == 5 and cost['images'] == 1280 and cost['tflop'] == float(row['tflop']) > .1 and 0 < cost['seconds'] < c['seconds']
    assert c['versions']['fastcontrast'] == __version__ and {'python', 'device', 'commit', 'command', 'seconds'} <= set(c)


def test_what_a_run_prints(digits):
    out, got = digits
    assert got.stderr == '' and '\x1b' not in got.stdout and '\r' not in got.stdout
    lines, results = got.stdout.splitlines(), config(out)['results']
    assert lines[0].startswith('1,400 pictures to train on, 397 to judge by') and lines[0].endswith(f'results in {out}')
    assert lines[-1].endswith(f'curves.png and views.png are in {out}') and re.match(r'\d+ seconds; ', lines[-1])
    table = [re.split(r' *│ *', line)[1:-1] for line in lines[-5:-2]]
    assert table == [[n, f"{r['knn']:.1%}", f"{r['few_labels']:.1%} ± {r['few_labels_std']:.1%}"] for n, r in results.items()]
    assert [row[0] for row in table] == ['raw pixels', 'untrained encoder', 'trained encoder']
    assert sum(line.split()[:1] == ['0'] for line in lines) == 1  # one line an epoch
    assert 40 < 100 * results['trained encoder']['knn'] <= 100 and results['raw pixels']['knn'] == pytest.approx(.9496, abs=1e-3)


def test_eval_says_the_same_as_the_run(digits, run, folder):
    code, out, err = run('eval', digits[0], 'digits', '-o', 'results/e.json')
    assert code == 0 and err == '' and '1,400 pictures to learn the classes from, 397 to judge by' in out
    r = config(digits[0])['results']['trained encoder']
    assert f"{r['knn']:.1%} " in out and f"{r['few_labels']:.1%} ± {r['few_labels_std']:.1%}" in out
    e = json.loads((folder/'results/e.json').read_text())
    assert {k: e[k] for k in r} == pytest.approx(r, abs=1e-9) and f"linear, all labels: {e['linear_probe']:.1%}" in out
    assert e['arch'] == 'resnet10t' and (e['n_train'], e['n_valid'], e['seed'], e['valid']) == (1400, 397, 0, .2)


@torch.no_grad()
def test_the_encoder_is_timms(digits, run):
    file, x = digits[0]/'encoder.safetensors', torch.randn(2, 3, 32, 32)
    assert run('export', digits[0], '--out', 'new/e.safetensors')[0] == 0
    plain = timm.create_model('resnet10t', num_classes=0).eval()
    plain.load_state_dict(safetensors.torch.load_file('new/e.safetensors'), strict=True)
    assert torch.equal(plain(x), load_encoder('new/e.safetensors')(x)) and torch.equal(plain(x), load_encoder(file)(x))
    info = encoder_info(file)
    assert info['recipe'] == 'simclr' and info['size'] == 32


def test_eval_holds_out_the_pictures_that_the_run_held_out(run, folder):
    pictures(folder/'p', dict(a=10, bb=10))
    assert run('pretrain', 'p', *TINY, '--seed', 5, '--valid', .4, '--out', 'r', '--no-controls')[0] == 0
    assert list(config('r')['results']) == ['trained encoder']
    assert (folder/'p/a').exists() and run('eval', 'r', 'p', '-o', 'e.json')[0] == 0
    e = json.loads(Path('e.json').read_text())
    assert e['seed'] == 5 and e['n_valid'] == 8 and e['knn'] == config('r')['results']['trained encoder']['knn']
    assert run('eval', 'r/encoder.safetensors', 'p', '--seed', 1, '--valid', .2, '--no-probe', '-o', 'f.json')[0] == 0
    f = json.loads(Path('f.json').read_text())
    assert f['seed'] == 1 and f['n_valid'] == 4 and 'linear_probe' not in f
    Path('r/config.json').write_text('[1]')  # somebody else's
    assert run('eval', 'r', 'p', '-o', 'g.json')[0] == 0 and json.loads(Path('g.json').read_text())['n_valid'] == 4


def test_runs_get_names_and_numbers(run, folder):
    pictures(folder/'my pictures', dict(a=4, bb=4))
    for n in ('', '-2'): (folder/f'runs/simclr-resnet10t-my pictures{n}').mkdir(parents=True)
    code, out, err = run('pretrain', 'my pictures', *TINY, '--no-controls')
    assert (code, err) == (0, '') and out.endswith('are in runs/simclr-resnet10t-my pictures-3\n')


def test_odd_pictures_are_reported_and_recorded(run, folder):
    pictures(folder/'p', dict(a=8, bb=8))
    (folder/'p/a/[bold]:smile:.png').write_bytes(b'not a picture')
    code, out, err = run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')
    assert code == 0 and config('r')['undecodable'] == {'p/a/[bold]:smile:.png': 'not a picture'}
    assert '1 of 17 pictures could not be decoded' in err and 'p/a/[bold]:smile:.png (not a picture)' in err and 'r/config.json lists them' in err
    assert config('r')['n_train'] + config('r')['n_valid'] == 16
    code, out, err = run('eval', 'r', 'p')
    assert code == 0 and 'could not be decoded' in err


@pytest.mark.parametrize('counts, valid, reason', [
    ({'': 8}, .2, 'have no labels'), (dict(a=10), .2, 'one class'), (dict(a=4, bb=4), 0, '--valid'),
], ids=['loose', 'one class', 'none held out'])
def test_pictures_that_cannot_judge(run, refused, folder, counts, valid, reason):
    pictures(folder/'p', counts)
    code, out, err = run('pretrain', 'p', *TINY, '--valid', valid, '--out', 'r')
    assert (code, err) == (0, '') and '\nnot judged: ' in out and reason in out and 'features' not in out
    assert reason in config('r')['unjudged'] and config('r')['results'] == {} and config('r')['state'] == 'finished'
    assert next(csv.reader(Path('r/history.csv').open())) == ['epoch', 'train_loss', 'std', *COST, 'time']
    assert reason in refused('eval', 'r', 'p')


def test_a_class_of_which_no_picture_can_be_read(run, folder):
    pictures(folder/'p', dict(a=10))
    (folder/'p/b').mkdir()
    for i in range(5): (folder/f'p/b/{i}.png').write_bytes(b'?')
    code, out, err = run('pretrain', 'p', *TINY, '--out', 'r')
    assert code == 0 and 'not judged: all pictures are of one class' in out and '5 of 15' in err


def test_few_pictures_a_class(run, folder):
    "As many labels as the smallest class has"
    pictures(folder/'p/train', dict(a=8, bb=1))
    pictures(folder/'p/valid', dict(a=2, bb=2))
    code, out, err = run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')
    assert code == 0 and 'linear, 1 label a class' in out and config('r')['results']['trained encoder']['per_class'] == 1


def test_large_pictures_have_small_raw_pixels(run, folder):
    pictures(folder/'p', dict(a=4, bb=4), side=48)
    code, out, err = run('pretrain', 'p', *TINY, '--out', 'r')
    assert code == 0 and list(config('r')['results']) == ['raw pixels (32 x 32)', 'untrained encoder', 'trained encoder']


# ---------------------------------------------------------------- speedups

def test_parse_speedups():
    assert cli.parse_speedups(None) == cli.parse_speedups('') == []
    one, two, three = cli.parse_speedups(" comb_patches(m=1),\n intermediate(('layer2', 'layer3'), weights=[.5, 1]), suncet(weight=2)")
    assert (type(one), type(two), type(three)) == tuple(SPEEDUPS[name] for name in ('comb_patches', 'intermediate', 'suncet'))
    assert repr(two) == repr(SPEEDUPS['intermediate'](('layer2', 'layer3'), weights=[.5, 1])) and three.weight == 2
    assert {type(cli.parse_speedups(name)[0]) for name in SPEEDUPS} == set(SPEEDUPS.values())
    probs = cli.parse_speedups("partial(probs={'layer2': .25, 'final': .75}, stop_forward=False)")[0]
    assert (probs.probs, probs.stop_forward) == ({'layer2': .25, 'final': .75}, False)


@pytest.mark.parametrize('text, words', [
    ('comb_patch', "unknown speedup 'comb_patch': did you mean comb_patches?"), ('suncet(wieght=1)', "unknown argument of suncet 'wieght': suncet takes weight=1.0, classes"),
    ('comb_patches, suncet(', "'comb_patches, suncet(' can't be read"), ('suncet weight=1', "can't be read"), ('suncet] + [suncet', "can't be read"),
    ('suncet(weight=print(1))', "'suncet(weight=print(1))' is neither a name nor a call with constants"), ('suncet(**{})', 'neither a name nor'),
    ('suncet(*[1])', 'neither a name nor'), ('"suncet"', 'neither a name nor'), ('os.remove("x")', 'neither a name nor'), ('-1', 'neither a name nor'),
    ('suncet(weight=-1)', 'weight=-1'), ('suncet(1, weight=1)', "multiple values for argument 'weight'"), ('partial(1, 2, 3, 4, 5, 6, 7)', 'too many positional'),
    ('intermediate(stages=3.5)', 'IntermediateLoss'), ('(' * 9999, "can't be read"), ('suncet(weight="a" "b")', "weight='ab'"), ('comb_patches(n=0)', 'n=0'),
])
def test_speedups_that_cannot_be(refused, folder, text, words):
    assert words in refused('pretrain', 'digits', '--with', text)
    assert not any(folder.iterdir())
    (folder/'settings.ini').write_text(f'[fast]\nspeedups = {text}\n')
    assert words in refused('pretrain', '--run', 'fast')


def test_speedups_of_a_run(run, folder):
    "They train, name the folder, and are recorded, as are the pictures whose labels they used"
    pictures(folder/'p', dict(a=10, bb=10))
    code, out, err = run('pretrain', 'p', *TINY, '--no-controls', '--with', 'comb_patches,suncet(weight=.5)', '--labels', .5)
    assert (code, err) == (0, '') and out.endswith('are in runs/simclr+comb_patches+suncet-resnet10t-p\n')
    r = folder/'runs/simclr+comb_patches+suncet-resnet10t-p'
    c, names = config(r), (r/'labeled.txt').read_text().split()
    assert set(c['speedups']) == {repr(cb) for cb in cli.parse_speedups('comb_patches,suncet(weight=.5)')}
    assert (c['n_labeled'], len(names), c['labels']) == (8, 8, '0.5') and sum(n.startswith('a/') for n in names) == 4
    assert run('pretrain', 'p', *TINY, '--no-controls', '--with', 'suncet', '--labels', r/'labeled.txt', '--out', 'r')[0] == 0
    assert (folder/'r/labeled.txt').read_text() == (r/'labeled.txt').read_text()
    assert run('pretrain', 'p', *TINY, '--no-controls', '--with', 'suncet', '--labels', 'all', '--out', 's')[0] == 0
    assert config('s')['n_labeled'] == 16 and not Path('s/labeled.txt').exists()


def test_speedups_that_the_pictures_do_not_suit(refused, folder):
    pictures(folder/'p', dict(a=10, bb=10))
    assert 'labels' in refused('pretrain', 'p', *TINY, '--with', 'suncet')
    assert 'IntermediateLoss' in refused('pretrain', 'p', *TINY, '--with', 'partial')
    assert not (folder/'runs').exists()


def test_batches_in_parts(run, refused, folder):
    pictures(folder/'p', dict(a=10, bb=10))
    assert 'accumulate=3 does not divide a batch of 4 pictures: give one of 2.' in refused('pretrain', 'p', *TINY, '--accumulate', 3)
    assert '--accumulate must be 1 or more' in refused('pretrain', 'p', *TINY, '--accumulate', 0)
    assert not (folder/'runs').exists()
    code, _, err = run('pretrain', 'p', *TINY, '--accumulate', 2, '--out', 'r', '--no-controls')
    assert (code, err) == (0, '') and config('r')['accumulate'] == 2


def test_compare(run, refused, digits, folder):
    code, out, err = run('compare', digits[0], digits[0], '-o', 'new/c.png', '--knn', .01)
    assert (code, err) == (0, '') and 'simclr, NTXent\n' in out and out.endswith('the drawing is in new/c.png\n') and matplotlib.image.imread('new/c.png').std() > .05
    row = next(csv.DictReader((digits[0]/'history.csv').open()))
    table = [re.split(r' *│ *', line)[2:-1] for line in out.splitlines() if re.search(r'│ +1 │', line)]
    knn, tflop, seconds = (float(row[k]) for k in ('knn', 'tflop', 'seconds'))
    assert table == [['1', f'{knn:.1%}', f'{knn:.1%}', '1', f'{tflop:.3g}', f'{seconds:.3g}']] * 2
    (folder/'short').mkdir()
    (folder/'short/history.csv').write_text('epoch,train_loss,knn\n0,1.5,0.001\n')
    (folder/'short/config.json').write_text(json.dumps(dict(method='byol', loss='NegCosine()', speedups=['A()'], state='interrupted')))
    code, out, err = run('compare', digits[0], 'short')
    assert code == 0 and 'short (interrupted): byol, NegCosine + A()\n' in out and re.search(r'│ short +│ +1 │ +0.1% │ +0.1% │ +– │ +– │ +– │', out)
    assert (folder/'compare.png').is_file()
    assert 'one run' in refused('compare', 'short') and "no folder 'nowhere'" in refused('compare', 'short', 'nowhere')
    assert '--knn must be above 0' in refused('compare', 'short', 'short', '--knn', 90) and 'must end in' in refused('compare', 'short', 'short', '-o', 'c.txt')
    assert 'RUN' in refused('compare')


# ---------------------------------------------------------------- settings

def test_run_from_the_settings_file(run, folder):
    pictures(folder/'p', dict(a=8, bb=8))
    (folder/'p.txt').write_text('a/001.png\nbb/002.png\n')
    (folder/'settings.ini').write_text('[DEFAULT]\nseed = 3\narch = resnet10t\nlr = \n[quick]\ndata = p\nbatch_size = 4\nepochs = 2\nlabels = p.txt\n'
                                       'loss = dcl\nsmall_input = no\ncontrols = no\nmethod = moco_v3\naccumulate = 2\n[other]\nepochs = 7\n')
    code, out, err = run('pretrain', '--run', 'quick', '--epochs', 1, '--lr', .01)
    assert (code, err) == (0, '') and out.endswith('are in runs/quick\n')
    c = config('runs/quick')
    expected = dict(data='p', batch_size=4, epochs=1, seed=3, lr=.01, small_input=False, labels='p.txt', method='moco_v3', arch='resnet10t', accumulate=2)
    assert {k: c[k] for k in expected} == expected and c['loss'].startswith('DCL(') and list(c['results']) == ['trained encoder']


def test_labels(folder):
    pictures(folder/'p', dict(a=8, bb=8))
    (folder/'some.txt').write_text('a/001.png\n# none\n\nbb/002.png\n')
    def known(labels):
        dls = cli._pictures('p', 4, valid=0, labels=cli._number_or_name(labels))
        return dls.train.data.labeled.sum().item()
    assert [known(x) for x in (None, 'all', '0.25', '1', 'some.txt')] == [0, 16, 4, 16, 2]


@pytest.mark.parametrize('text, words', [
    ('[fast]\nepoch = 3\n', "unknown key 'epoch': did you mean epochs?"),
    ('[fast]\nbatch-size = 3\n', 'did you mean batch_size'),
    ('[fast]\nepochs = three\n', 'epochs = three is not a whole number'),
    ('[fast]\nlr = high\n', 'lr = high is not a number'),
    ('[fast]\nsmall_input = maybe\n', 'neither true nor false'),
    ('[fast]\nepochs = 0\n', '--epochs must be 1 or more, not 0'),
    ('[fest]\nepochs = 1\n', "unknown run 'fast': did you mean fest?"),
    ('[other]\n[third]\n', 'there are other, third'),
    ('', 'has no section'),
    ('epochs = 3\n', "can't be read"),
    ('[fast]\n[fast]\n', 'already exists'),
    ('[fast]\nepochs\n', "can't be read"),
    (b'[fast]\ndata = \xff\n', "can't be read"),
])
def test_mistakes_in_the_settings_file(refused, folder, text, words):
    (folder/'settings.ini').write_bytes(text if isinstance(text, bytes) else text.encode())
    err = refused('pretrain', '--run', 'fast')
    assert words in err and ('settings.ini' in err or '--epochs' in err) and os.listdir() == ['settings.ini']


def test_no_settings_file(refused, folder):
    assert 'needs a settings.ini' in refused('pretrain', '--run', '[fast]')
    (folder/'settings.ini').mkdir()
    assert "can't be read" in refused('pretrain', '--run', 'fast')


def test_the_repositorys_own_runs_are_valid(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    import configparser
    ini = configparser.ConfigParser()
    ini.read('settings.ini')
    assert ini.sections()
    made = set()
    for name in ini.sections():
        run = cli.resolve({}, name)
        cli.check_names(run)
        parts = (run.arch, run.method, run.loss, run.speedups, run.size or 32)
        if parts in made: continue
        made.add(parts)
        pictures = [(torch.zeros(3, run.size or 32, run.size or 32, dtype=torch.uint8), i % 2) for i in range(4)]
        dls = image_dls(pictures, bs=4, valid=0, size=run.size, labels='all' if run.labels else None)
        contrastive_learner(dls, run.arch, METHODS[run.method](), loss=run.loss, cbs=cli.parse_speedups(run.speedups))


# ---------------------------------------------------------------- larger data

def test_cache(run, folder):
    pictures(folder/'p', dict(a=8, bb=8), side=40)
    (folder/'settings.ini').write_text('[kept]\ndata = p\narch = resnet10t\nepochs = 1\nbatch_size = 4\ncontrols = no\ncache = true\n')
    said = f"decoding 16 pictures at 40 px into '{folder}/p.cache/p-all-40px.safetensors' (0.1 MB)\n"
    results = []
    for args, err in ((('p', *TINY, '--no-controls', '--cache'), said), (('--run', 'kept'), ''), (('--run', 'kept', '--no-cache'), '')):
        code, _, said = run('pretrain', *args, '--out', folder/f'r{len(results)}')
        assert code == 0 and said == err
        results.append(config(folder/f'r{len(results)}'))
    assert [r['cache'] for r in results] == [True, True, False]
    assert all(r['results']['trained encoder'] == results[0]['results']['trained encoder'] for r in results)
    assert run('pretrain', 'p', *TINY, '--no-controls', '--cache-folder', 'c')[0] == 0 and (folder/'c/p-all-40px.safetensors').exists()


def test_shards(run, folder):
    from webdataset import TarWriter
    (folder/'shards').mkdir()
    for k in range(4):
        with TarWriter(f'shards/{k:03}.tar') as tar:
            for i in range(8): tar.write(dict(__key__=f'{k}{i}', png=picture(10 * k + i), cls=i % 2))
    code, out, err = run('pretrain', 'shards/{000..003}.tar', *TINY, '--workers', 1)
    assert code == 0 and err == '' and out.startswith('24 pictures to train on, 8 to judge by')
    c, = (config(p) for p in (folder/'runs').iterdir())
    assert (folder/'runs/simclr-resnet10t-shards').exists() and set(c['results']) == {'raw pixels', 'untrained encoder', 'trained encoder'}
    code, out, err = run('pretrain', 'shards/{000..002}.tar', '--valid', 'shards/003.tar', *TINY, '--no-controls', '--workers', 0, '--out', 'r')
    assert code == 0 and config('r')['valid'] == 'shards/003.tar' and config('r')['n_valid'] == 8
    assert run('eval', 'r', 'shards/{000..002}.tar', '--no-probe', '-o', 'e.json')[0] == 0
    assert json.loads(Path('e.json').read_text())['knn'] == config('r')['results']['trained encoder']['knn']
    assert run('views', 'shards/000.tar', '-n', 2)[0] == 0
    assert 'not judged' in run('pretrain', 'shards/000.tar', *TINY, '--out', 's')[1]


# ---------------------------------------------------------------- mistakes

@pytest.mark.parametrize('args, words', [
    (('--epochs', 0), '--epochs must be 1 or more, not 0'), (('--batch-size', 1), '--batch-size must be 2 or more'), (('--lr', 0), '--lr must'),
    (('--lr', -1), '--lr must'), (('--lr', 'nan'), '--lr must'), (('--lr', 'inf'), '--lr must'), (('--valid', 1.5), '--valid must'),
    (('--valid', -.1), '--valid must'), (('--valid', 'nan'), '--valid must'), (('--size', 0), '--size must'), (('--seed', -1), '--seed must'),
    (('--seed', 2**70), '--seed must'), (('--workers', -1), '--workers must'), (('--epochs', 'ten'), "'--epochs'"),
    (('--setting', 'cifra'), "unknown setting of simclr() 'cifra': did you mean cifar?"), (('--precision', 'fp61'), "unknown precision 'fp61'"),
    (('--method', 'simclear'), 'did you mean simclr'), (('--loss', 'dlc'), 'did you mean dcl'), (('--arch', 'resnet1'), "unknown architecture 'resnet1'"),
    (('--labels', 1.5), 'labels=1.5'), (('--labels', 'nowhere.txt'), 'nowhere.txt'), (('--epoch', 3), '--epoch'), (('more',), 'more'),
    (('--cache',), 'leave cache (--cache) out'), (('--valid', 'x.tar'), 'valid=x.tar should be a share in [0, 1) for the digits'),
    (('--batch-size', 5000), 'a batch takes 5000 and there are 1400, give a smaller --batch-size'), (('--small-input', '--arch', 'vit_tiny_patch16_224'), 'small_input'),
])
def test_options_out_of_range(refused, args, words):
    assert words in refused('pretrain', 'digits', *args)
    assert not any(Path('runs').rglob('*')), "a run that never began leaves nothing"


def test_data_that_is_none(refused, folder):
    (folder/'empty').mkdir()
    (folder/'text.txt').write_text('text')
    pictures(folder/'one', {'': 1})
    pictures(folder/'mixed', {'': 1, 'a': 2})
    (folder/'bad').mkdir()
    for i in range(3): (folder/f'bad/{i}.jpg').write_bytes(b'?')
    for data, words in {'nowhere': "'nowhere'", 'digit': 'did you mean digits?', 'a/[b]': 'a/[b]', 'empty': 'no picture', 'text.txt': 'is a file',
                        'bad': 'no picture could be decoded', 'mixed': 'loose pictures', '': 'is empty'}.items():
        assert words in refused('pretrain', data, '--batch-size', 2)
        assert words in refused('views', data)
    for command in (('pretrain', 'one', '--batch-size', 2), ('views', 'one')): assert 'there are 1, give more pictures' in refused(*command)
    assert not any(p for p in Path('runs').rglob('*') if p.is_file()) and not Path('runs').exists()


def test_folders_that_cannot_be_written(refused, digits, folder, monkeypatch):
    "Found before any picture is read or anything heavy is imported"
    (folder/'file').write_text('')
    monkeypatch.setattr(cli, '_pictures', None)
    for out in ('file', 'file/below', 'file/below/it', 'x' * 300): assert "can't be written" in refused('pretrain', '--out', out)
    (folder/'full').mkdir()
    (folder/'full/file').write_text('')
    assert '--out full already holds files' in refused('pretrain', '--out', 'full')
    (folder/'runs').write_text('')
    assert "can't be written" in refused('pretrain')
    for command in (('views', 'digits', '-o', '{}.png'), ('eval', digits[0], 'digits', '-o', '{}.json'), ('export', digits[0], '-o', '{}.safetensors')):
        for where in ('file/below', 'x' * 300): assert "can't be written" in refused(*(str(a).format(where) for a in command))
        assert 'must end in' in refused(*(str(a).format('e')[:-4] + '.xyz' if str(a).startswith('{}') else a for a in command))
    (folder/'f.png').mkdir()
    assert "can't be written" in refused('views', '-o', 'f.png')


def test_an_empty_folder_is_taken(run, folder):
    pictures(folder/'p', {'': 4})
    (folder/'r').mkdir()
    assert run('pretrain', 'p', *TINY, '--out', 'r')[0] == 0 and (folder/'r/encoder.safetensors').is_file()


def test_files_that_are_no_encoder(refused, digits, folder):
    data = (digits[0]/'encoder.safetensors').read_bytes()
    tensors = safetensors.torch.load_file(digits[0]/'encoder.safetensors')
    (folder/'tampered.safetensors').write_bytes(data[:-8] + bytes(8))
    (folder/'cut.safetensors').write_bytes(data[:5000])
    (folder/'empty.safetensors').write_bytes(b'')
    safetensors.torch.save_file(tensors, folder/'foreign.safetensors')
    torch.save(tensors, folder/'pickle.safetensors')
    (folder/'run').mkdir()
    for name, words in dict(tampered='altered or damaged', cut='not a whole', empty='not a whole', foreign='not one that fastcontrast exported',
                            pickle='is a pickle', missing='no encoder at').items():
        assert words in refused('eval', f'{name}.safetensors', 'digits')
        assert words in refused('export', f'{name}.safetensors', '-o', 'e.safetensors')
    assert 'no encoder at run/encoder.safetensors' in refused('eval', 'run', 'digits')
    assert not (folder/'e.safetensors').exists()
    assert 'valid=2' in refused('eval', digits[0], 'digits', '--valid', 2)


def test_export_for_torchvision(run, refused, digits, folder):
    assert 'torchvision has no model' in refused('export', digits[0], '-o', 'e.safetensors', '--to', 'torchvision')
    assert "unknown library 'torchvison': did you mean torchvision?" in refused('export', digits[0], '-o', 'e.safetensors', '--to', 'torchvison')


def test_mistakes_on_the_command_line(refused):
    assert 'Missing argument' in refused('eval') and 'See fastcontrast eval --help.' in refused('eval')
    assert 'pretrain' in refused('pretrian')
    assert '--kind' in refused('views', '--kin', 'byol') and "unknown kind of views 'byl': did you mean byol" in refused('views', '--kind', 'byl')
    assert '--n' in refused('views', '-n', 0) and 'seed=-1' in refused('views', '--seed', -1) and 'size=0' in refused('views', '--size', 0)


# ---------------------------------------------------------------- runs that end early

def test_diverging_run(run, folder):
    pictures(folder/'p', dict(a=10, bb=10))
    code, out, err = run('pretrain', 'p', *TINY[:2], '--epochs', 3, '--batch-size', 4, '--lr', 1e30, '--setting', 'digits', '--out', 'r', '--no-controls')
    c = config('r')
    assert code == 2 and err.startswith('error: ') and err.count('\n') == 1 and 'lr' in err and c['state'].startswith('stopped: ')
    assert 'are not finite numbers, so no encoder was saved' in err and not Path('r/encoder.safetensors').exists()


def started(*args, cwd, **kwargs): return subprocess.Popen([*PROGRAM, *map(str, args)], cwd=cwd, env=ENV, text=True, **kwargs)


def finish(process, code):
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, (process.returncode, out, err)
    return out, err


def test_ctrl_c_in_training_on_a_terminal(folder):
    "There is a bar, and what was trained so far is kept"
    pictures(folder/'p', dict(a=20, bb=20))
    master, slave = pty.openpty()
    process = started('pretrain', 'p', *TINY[:2], '--epochs', 5000, '--batch-size', 4, '--out', 'r [i]', '--no-controls', cwd=folder,
                      stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(slave)
    text, history, end = b'', folder/'r [i]/history.csv', time.monotonic() + 90
    while time.monotonic() < end:
        try: text += os.read(master, 4096)
        except OSError: break  # the program has gone
        if b'^C' not in text and history.exists() and history.read_text().count('\n') > 2: os.write(master, b'\x03')
    assert process.wait(10) == 130, text.decode()
    text, c, last = text.decode(), config(folder/'r [i]'), text.decode().replace('\r', '\n').strip().splitlines()[-1]
    assert '█' in text and text.count('\r') - text.count('\r\n') > 10 and text.count('\n') < 40 and 'Warning' not in text, "a bar that moves"
    assert c['state'] == 'interrupted' and 2 <= c['epochs_done'] < 5000
    assert f"interrupted after {c['epochs_done']} of 5000 epochs: the encoder as it was then is in r [i]/encoder.safetensors." in last
    assert all(t.isfinite().all() for t in load_encoder(folder/'r [i]/encoder.safetensors').state_dict().values())
    assert len(list(csv.DictReader(history.open()))) == c['epochs_done'] and (folder/'r [i]/curves.png').exists()


def test_interrupted_while_pictures_are_read(folder):
    pictures(folder/'p', dict(a=4, bb=4))
    os.mkfifo(folder/'p/a/0.png')  # a reader waits here until there is a writer, so the moment is known
    process = started('pretrain', 'p', *TINY, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer = os.open(folder/'p/a/0.png', os.O_WRONLY)
    process.send_signal(signal.SIGINT)
    assert finish(process, 130) == ('', 'interrupted\n')
    os.close(writer)
    assert not (folder/'runs').exists()


def test_interrupted_before_training(run, folder, monkeypatch):
    pictures(folder/'p', dict(a=4, bb=4))
    def interrupt(learn): raise KeyboardInterrupt
    monkeypatch.setattr(cli, '_control_results', interrupt)
    code, _, err = run('pretrain', 'p', *TINY, '--out', 'r')
    assert code == 130 and err == 'interrupted after 0 of 1 epochs: training had not begun, so there is no encoder.\n'
    assert config('r')['state'] == 'interrupted' and not Path('r/encoder.safetensors').exists()


def test_interrupted_after_training(run, folder, monkeypatch):
    pictures(folder/'p', dict(a=4, bb=4))
    def interrupt(*args): raise KeyboardInterrupt
    monkeypatch.setattr(cli, '_file_embedder', interrupt)
    code, _, err = run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')
    assert code == 130 and 'interrupted after 1 of 1 epochs' in err and config('r')['epochs_done'] == 1
    load_encoder('r/encoder.safetensors')


def test_out_of_memory_and_our_own_mistakes(run, refused, folder, monkeypatch):
    pictures(folder/'p', dict(a=4, bb=4))
    def no_memory(learn): raise torch.OutOfMemoryError
    monkeypatch.setattr(cli, '_control_results', no_memory)
    code, _, err = run('pretrain', 'p', *TINY, '--out', 'r')
    assert code == 2 and 'give a larger --accumulate, or a smaller --batch-size or --size' in err and config('r')['state'].startswith('stopped: out of memory')
    def broken(learn): raise ZeroDivisionError('x')
    monkeypatch.setattr(cli, '_control_results', broken)
    with pytest.raises(ZeroDivisionError): run('pretrain', 'p', *TINY, '--out', 's')
    assert config('s')['state'] == 'failed: ZeroDivisionError: x'


def test_a_reader_that_goes_away(folder):
    "As with `| head`"
    pictures(folder/'p', dict(a=4, bb=4))
    process = started('pretrain', 'p', *TINY, '--no-controls', '--out', 'r', cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == '' and process.wait(60) == 1
    assert config('r')['state'].startswith('failed: ')


# ---------------------------------------------------------------- views, help, version

def test_views(run, folder):
    pictures(folder/'p', {'': 3})
    assert run('views', '-o', 'd.png', '-n', 2)[1] == '2 pictures and their views (digits, 32 px) are in d.png\n'
    assert run('views', 'p', '-o', '[a]/v.svg', '--kind', 'byol', '--size', 40)[1] == '3 pictures and their views (byol, 40 px) are in [a]/v.svg\n'
    assert (folder/'[a]/v.svg').stat().st_size > 1000
    said = run('views', 'p', '-o', 's.png', '--method', 'swav', '--size', 128)[1]
    assert said == '3 pictures and their views (simclr, MultiCrop((2, None, (0.14, 1.0)), (6, None, (0.05, 0.14))), 128 px) are in s.png\n'
    assert matplotlib.image.imread('s.png').shape[1] > 2 * matplotlib.image.imread('d.png').shape[1]  # nine columns, not three
    assert 'did you mean swav' in run('views', 'p', '--method', 'swaw')[2]
    for seed, name in ((0, 'a.png'), (0, 'b.png'), (1, 'c.png')): assert run('views', 'p', '--seed', seed, '-o', name)[0] == 0
    a, b, c = (matplotlib.image.imread(f) for f in ('a.png', 'b.png', 'c.png'))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and a.std() > .05


def test_help(run):
    "An example each, and every name that an option can have"
    def text(*args):
        code, out, _ = run(*args, '--help')
        assert code == 0
        return ' '.join(re.sub('[│╭╮╰╯─]', ' ', out).split())
    assert run()[0] == 0 and run()[1] == run('--help')[1]
    for command in ((), ('pretrain',), ('eval',), ('views',), ('export',), ('compare',)): assert 'Example: fastcontrast' in text(*command)
    pretrain, views = text('pretrain'), text('views')
    for name in (*METHODS, *LOSSES, *SPEEDUPS, *RECIPES['simclr'].settings, '100; for digits'): assert name in pretrain, name
    for name in VIEW_KINDS: assert name.removesuffix('_cifar') in views, name


def test_help_and_version_import_nothing_heavy():
    code = "import sys; sys.argv = ['x', {!r}]\nfrom fastcontrast.cli import main\ntry: main()\nfinally: print([m for m in ('torch', 'timm', 'fastai', 'matplotlib', 'sklearn') if m in sys.modules])"
    for arg in ('--help', '--version'):
        got = subprocess.run([sys.executable, '-c', code.format(arg)], capture_output=True, text=True, env=ENV, timeout=60)
        assert got.returncode == 0 and got.stdout.splitlines()[-1] == '[]', got
    assert f'fastcontrast {__version__}' in got.stdout


def test_the_program_is_installed_and_a_module():
    for program in (PROGRAM, [Path(sys.executable).with_name('fastcontrast')]):
        got = subprocess.run([*program, '--version'], capture_output=True, text=True, env=ENV, timeout=60)
        assert (got.returncode, got.stdout, got.stderr) == (0, f'fastcontrast {__version__}\n', '')
