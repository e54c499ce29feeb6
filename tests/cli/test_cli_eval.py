"eval: the same accuracies as the run's, of the same pictures"
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.cli import TINY, config
from helpers.folders import image_folder


def test_eval_says_the_same_as_the_run(digits, run, folder):
    code, out, err = run('eval', digits[0], 'digits', '-o', 'results/e.json')
    assert code == 0 and err == '' and '1,400 pictures to learn the classes from, 397 to judge by' in out
    r = config(digits[0])['results']['trained encoder']
    assert f"{r['knn']:.1%} " in out and f"{r['few_labels']:.1%} ± {r['few_labels_std']:.1%}" in out
    e = json.loads((folder/'results/e.json').read_text())
    assert {k: e[k] for k in r} == pytest.approx(r, abs=1e-9)
    assert f"linear, all labels: {e['linear_probe']:.1%}" in out
    assert e['arch'] == 'resnet10t' and (e['n_train'], e['n_valid'], e['seed'], e['valid']) == (1400, 397, 0, .2)


def test_eval_holds_out_the_pictures_that_the_run_held_out(run, folder):
    image_folder(folder/'p', dict(a=10, bb=10))
    assert run('pretrain', 'p', *TINY, '--seed', 5, '--valid', .4, '--out', 'r', '--no-controls')[0] == 0
    assert list(config('r')['results']) == ['trained encoder']
    assert (folder/'p/a').exists() and run('eval', 'r', 'p', '-o', 'e.json')[0] == 0
    e = json.loads(Path('e.json').read_text())
    assert e['seed'] == 5 and e['n_valid'] == 8 and e['knn'] == config('r')['results']['trained encoder']['knn']
    other = ('--seed', 1, '--valid', .2, '--no-probe')
    assert run('eval', 'r/encoder.safetensors', 'p', *other, '-o', 'f.json')[0] == 0
    f = json.loads(Path('f.json').read_text())
    assert f['seed'] == 1 and f['n_valid'] == 4 and 'linear_probe' not in f
    Path('r/config.json').write_text('[1]')  # somebody else's
    assert run('eval', 'r', 'p', '-o', 'g.json')[0] == 0 and json.loads(Path('g.json').read_text())['n_valid'] == 4


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
    assert 'no encoder at run/encoder.safetensors' in refused('eval', 'run', 'digits')
    assert not (folder/'e.safetensors').exists()
    assert 'valid=2' in refused('eval', digits[0], 'digits', '--valid', 2)
    assert 'of somebody unknown here' in refused('eval', digits[0], '~nobody_is_called_this/x')
