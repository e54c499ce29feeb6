"eval: the same accuracies as the run's, of the same pictures, and other encoders beside it"
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from helpers.cli import TINY, config
from helpers.folders import image_folder
from helpers.pictures import few_digits
from timm.models import save_for_hf

from fastcontrast.cli.inputs import other_split
from fastcontrast.cli.rivals import rival
from fastcontrast.data import has_valid
from fastcontrast.export import encoder_info, export_encoder
from fastcontrast.models import make_encoder


def test_eval_says_the_same_as_the_run(digits, run, folder):
    code, out, err = run('eval', digits[0], 'digits', '-o', 'results/e.json')
    assert code == 0 and err == '' and '1,400 pictures to learn the classes from, 397 to judge by' in out
    r = config(digits[0])['results']['trained encoder']
    e = json.loads((folder/'results/e.json').read_text())
    scores, = e['encoders'].values()
    few = scores['linear, 10 labels a class']
    assert scores['kNN, k=20, τ=0.1']['mean'] == pytest.approx(r['knn'], abs=1e-9)
    assert (few['mean'], few['std']) == pytest.approx((r['few_labels'], r['few_labels_std']), abs=1e-9)
    assert f"{r['few_labels']:.1%} ± {r['few_labels_std']:.1%}" in out and 'RankMe' in out
    assert (e['n_train'], e['n_valid'], e['seed'], e['valid']) == (1400, 397, 0, .2)
    assert e['encoder_sha256'] == encoder_info(digits[0]/'encoder.safetensors')['sha256']


def test_eval_holds_out_the_pictures_that_the_run_held_out(run, folder):
    image_folder(folder/'p', dict(a=10, bb=10))
    assert run('pretrain', 'p', *TINY, '--seed', 5, '--valid', .4, '--out', 'r', '--no-controls')[0] == 0
    assert list(config('r')['results']) == ['trained encoder']
    assert (folder/'p/a').exists() and run('eval', 'r', 'p', '-o', 'e.json')[0] == 0
    e = json.loads(Path('e.json').read_text())
    assert run('eval', 'r', '-o', 'own.json')[0] == 0  # the run's pictures
    assert json.loads(Path('own.json').read_text()) == e | dict(data=str(folder/'p'))
    knn = config('r')['results']['trained encoder']['knn']
    assert e['seed'] == 5 and e['n_valid'] == 8 and e['encoders']['r']['kNN, k=20, τ=0.1']['mean'] == knn
    other = ('--seed', 1, '--valid', .2, '--draws', 2)
    code, out, _ = run('eval', 'r/encoder.safetensors', 'p', *other, '-o', 'f.json')
    f = json.loads(Path('f.json').read_text())
    assert code == 0 and f['seed'] == 1 and f['n_valid'] == 4
    assert len(f['encoders']['r']['linear, 1 label a class']['draws']) == 2
    assert 'left out: linear, 10 labels a class: a class has 8 training pictures only' in out
    assert 'r: it was trained on pictures that judge it here, as its run held out a share of 0.4 by the seed 5\n' in out
    Path('r/config.json').write_text('[1]')  # somebody else's
    assert run('eval', 'r', 'p', '-o', 'g.json')[0] == 0 and json.loads(Path('g.json').read_text())['n_valid'] == 4


def test_a_test_folder_without_labels_judges_nothing(run, folder):
    "Neither a run nor its encoder: a share of train/ does, the same in both"
    image_folder(folder/'p/train', dict(a=10, bb=10))
    image_folder(folder/'p', dict(test=4))
    code, out, err = run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')
    assert (code, err) == (0, '') and "the pictures in 'p/test' have no labels to judge by" in out
    assert (config('r')['n_train'], config('r')['n_valid'], config('r')['unjudged']) == (16, 4, '')
    assert run('eval', 'r', '-o', 'e.json')[0] == 0
    knn = config('r')['results']['trained encoder']['knn']
    encoders = json.loads(Path('e.json').read_text())['encoders']
    assert encoders['r']['kNN, k=20, τ=0.1']['mean'] == knn
    assert 'r: it was trained on pictures that judge it here, as its run held out' in run(
        'eval', 'r', 'p', '--seed', 1, '--draws', 1)[1]


def test_rivals_that_were_trained_on_what_judges(digits, run, folder):
    "By another seed, or without a split; not by a larger share of the same seed, nor where the data have a split"
    image_folder(folder/'p', dict(a=10, bb=10))
    assert run('pretrain', 'p', *TINY, '--seed', 5, '--valid', .4, '--out', 'r', '--no-controls')[0] == 0
    for name, settings, record in (('seed', dict(seed=9), dict(n_labeled=8)), ('all', {}, dict(n_valid=0)),
                                   ('more', dict(valid=.5), {}), ('else', dict(seed=9, data=str(folder/'q')), {})):
        shutil.copytree('r', name)
        said = config('r') | record
        Path(name, 'config.json').write_text(json.dumps(said | dict(settings=said['settings'] | settings)))
    code, out, err = run('eval', 'r', 'p', '--against', 'seed,all,more,else,pixels', '--draws', 1)
    assert (code, err) == (0, '')
    said = 'it was trained on pictures that judge it here'
    assert f'seed: {said} and on their labels, as its run held out a share of 0.4 by the seed 9\n' in out
    assert f'all: {said}, as its run held out nothing\n' in out and out.count(said) == 2
    for part in ('train', 'test'): (folder/'q'/part).mkdir(parents=True)
    assert has_valid('q') and has_valid('digits') and not has_valid('p')
    assert other_split(digits[0]/'encoder.safetensors', 'digits', dict(seed=9, valid=.2)) == ''


def test_encoders_side_by_side(digits, run, refused, folder, monkeypatch):
    few_digits(monkeypatch, 3)
    against = f'pixels, untrained,{digits[0]}/encoder.safetensors'
    code, out, err = run('eval', digits[0], 'digits', '--against', against, '--draws', 2, '-o', 't.csv')
    assert (code, err) == (0, '') and 'untrained' in out
    rows = pd.read_csv('t.csv').set_index(['encoder', 'measure'])
    assert rows.loc[('pixels', 'kNN, k=20, τ=0.1'), 'mean'] == pytest.approx(.9098, abs=1e-3)
    assert rows.loc[('untrained', 'nearest class mean'), 'difference'] < 0
    itself = f'{digits[0].name} (2)'  # of the same name as the first
    assert rows.loc[(itself, 'recall at 1'), ['difference', 'error']].tolist() == [0, 0]
    assert '--against no/file is neither a file nor' in refused('eval', digits[0], 'digits', '--against', 'no/file')
    assert "unknown architecture 'pixel'" in refused('eval', digits[0], 'digits', '--against', 'pixel')
    assert 'device=xpu:9 cannot be used here' in refused('eval', digits[0], 'digits', '--device', 'xpu:9')
    assert '--draws=0' in refused('eval', digits[0], 'digits', '--draws', 0)
    assert '.csv or .json or .md or .tex or .png or .svg or .pdf' in refused('eval', digits[0], 'digits', '-o', 'e.txt')


def test_a_rival_of_timms_for_other_sides(run, refused, folder):
    "Sees the nearest multiple of its patches, which is said; what none helps is refused before pictures are read"
    for name, size in (('e', 40), ('small', 16)):
        export_encoder(make_encoder('test_resnet'), f'{name}.safetensors', 'test_resnet', size, [.5] * 3, [.2] * 3)
    save_for_hf(make_encoder('test_vit', size=32), folder/'vit', safe_serialization=True)
    save_for_hf(make_encoder('test_convnext'), folder/'net', safe_serialization=True)
    image_folder(folder/'p', dict(a=10, bb=10))
    code, out, err = run('eval', 'e.safetensors', 'p', '--against', 'local-dir:vit', '--draws', 1, '-o', 't.csv')
    assert (code, err) == (0, '') and {*pd.read_csv('t.csv')['encoder']} == {'e.safetensors', 'local-dir:vit'}
    assert 'local-dir:vit: it sees pictures of 32 pixels, since its patches of 16 do not divide 40\n' in out
    first = rival('e.safetensors')
    assert (other := rival('local-dir:vit', first)).size == 32 and other.about == 'local-dir:vit, 32 px'
    assert rival('local-dir:net', first).size == 40 and not rival('local-dir:net', first).note
    assert "--against local-dir:net: size=16 does not suit the encoder 'test_convnext'" in refused(
        'eval', 'small.safetensors', 'p', '--against', 'local-dir:net')


def test_one_that_has_diverged_costs_the_others_nothing(run, folder, monkeypatch):
    few_digits(monkeypatch, 3)
    encoder = make_encoder('test_resnet')
    export_encoder(encoder, 'whole.safetensors', 'test_resnet', 32, [.5] * 3, [.2] * 3)
    encoder.layer4[0].conv1.weight.data.fill_(float('nan'))
    export_encoder(encoder, 'nan.safetensors', 'test_resnet', 32, [.5] * 3, [.2] * 3)
    others = ('--against', 'nan.safetensors,pixels', '--draws', 1, '-o', 't.csv')
    code, out, err = run('eval', 'whole.safetensors', 'digits', *others)
    assert code == 0 and 'left out: nan.safetensors: a measure cannot use the training features: they hold' in out, err
    assert set(pd.read_csv('t.csv')['encoder']) == {'whole.safetensors', 'pixels'}
    code, _, err = run('eval', 'nan.safetensors', 'digits')
    assert code == 2 and 'they hold NaN or infinite values' in err


def test_robustness_alignment_and_a_picture(digits, run, refused, folder):
    code, out, err = run('eval', digits[0], 'digits', '--robust', '--draws', 2, '-o', 'e.json', '--plot', 'p/e.png')
    assert (code, err) == (0, '') and 'alignment is of two views by digits' in out
    assert 'linear under blur: Gaussian, σ 2% of the side' in out and 'the drawing is in p/e.png' in out
    e = json.loads(Path('e.json').read_text())
    scores, = e['encoders'].values()
    assert list(e['changes']) == ['blur', 'noise', 'grey', 'rotation'] and e['views'] == 'digits'
    clean = scores['linear, all labels']
    assert scores['linear under grey']['mean'] == pytest.approx(clean['mean'], abs=.01)  # digits have no colour
    assert 0 < scores['linear under rotation']['mean'] < clean['mean']
    assert 0 < scores['alignment']['mean'] < 2 and -4 < scores['uniformity']['mean'] < 0
    assert clean['confusion']['classes'] == [str(c) for c in range(10)]
    assert sum(map(sum, clean['confusion']['counts'])) == 397 and clean['labels_a_class'] == 140
    assert Path('p/e.png').stat().st_size > 30_000
    assert "--plot e.md must end in .png" in refused('eval', digits[0], 'digits', '--plot', 'e.md')


def test_grey_pictures_have_no_colour_to_lose(run, folder):
    image_folder(folder/'p', dict(a=12, bb=12), size=(16, 16))
    assert run('pretrain', 'p', *TINY, '--channels', 1, '--out', 'r', '--no-controls')[0] == 0
    code, out, err = run('eval', 'r', 'p', '--robust', '--against', 'pixels', '-o', 'e.svg')
    assert (code, err) == (0, '') and 'left out: linear under grey: the pictures have 1 channel, and' in out
    assert 'linear under rotation' in out and 'the drawing is in e.svg' in out
    assert (folder/'e.svg').read_text().startswith('<?xml')


def test_files_that_are_no_encoder(refused, digits, folder):
    data = (digits[0]/'encoder.safetensors').read_bytes()
    tensors = safetensors.torch.load_file(digits[0]/'encoder.safetensors')
    (folder/'tampered.safetensors').write_bytes(data[:-8] + bytes(8))
    (folder/'cut.safetensors').write_bytes(data[:5000])
    (folder/'empty.safetensors').write_bytes(b'')
    safetensors.torch.save_file(tensors, folder/'foreign.safetensors')
    torch.save(tensors, folder/'pickle.safetensors')
    (folder/'run').mkdir()
    for name, words in dict(tampered='altered or damaged', cut='not a whole', empty='not a whole',
                            foreign='not one that fastcontrast exported', pickle='is a pickle',
                            missing='no encoder at').items():
        assert words in refused('eval', f'{name}.safetensors', 'digits')
        assert words in refused('export', f'{name}.safetensors', '-o', 'e.safetensors')
    assert 'no encoder at run:' in refused('eval', 'run', 'digits')
    (folder/'alone.safetensors').write_bytes(data)
    assert 'alone.safetensors says of which pictures it is: give a folder' in refused('eval', 'alone.safetensors')
    assert not (folder/'e.safetensors').exists()
    assert 'valid=2' in refused('eval', digits[0], 'digits', '--valid', 2)
    assert 'of somebody unknown here' in refused('eval', digits[0], '~nobody_is_called_this/x')
