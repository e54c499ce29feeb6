"finetune and predict: from a run to a classifier, and what it takes pictures for"
import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.cli import TINY, config, ended_after_an_epoch
from helpers.folders import image_folder, picture
from safetensors.torch import load_file

from fastcontrast.cli import main
from fastcontrast.cli.rivals import views_of_run
from fastcontrast.export import export_encoder, load_classifier, load_encoder
from fastcontrast.models import make_encoder

FEW = ('--labels', 3, '--epochs', 2, '--bs', 8)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp('pictures')/'p', dict(a=10, bb=10))


@pytest.fixture(scope='module')
def pretrained(pictures):
    "A run that knew the labels of 8 pictures of 16"
    command = ('pretrain', pictures, *TINY, '--arch', 'test_resnet', '--with', 'suncet', '--labels', 0.5,
               '--no-controls', '--out', pictures.parent/'r')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['fastcontrast', *map(str, command)])
        main()
    return pictures.parent/'r'


def rows(folder):
    return [{key: row[key] for key in row if key != 'time'} for row in csv.DictReader((folder/'history.csv').open())]


def test_a_run_like_others(run, refused, digits, folder):
    code, out, err = run('finetune', digits[0], *FEW, '--out', 'f')
    assert (code, err) == (0, '') and '30 labels of 10 classes, 2 epochs, batches of 8' in out, (out, err)
    assert 'accuracy ' in out and ' of 397 pictures to judge by' in out and 'results in f\n' in out
    assert {path.name for path in (folder/'f').iterdir()} == {
        'classifier', 'config.json', 'history.csv', 'curves.png', 'checkpoints', 'labeled.txt'}
    c = config('f')
    expected = dict(verb='finetune', state='finished', epochs=2, epochs_done=2, batch_size=8, protocol='full',
                    n_train=30, n_valid=397, seed=0, data='digits', size=32, arch='resnet10t', labels='3', n_held=0)
    assert {key: c[key] for key in expected} == expected and 0 <= c['results']['classifier']['accuracy'] <= 1
    assert [*rows(folder/'f')[0]] == ['epoch', 'train_loss', 'valid_loss', 'accuracy']
    assert float(rows(folder/'f')[-1]['accuracy']) == pytest.approx(c['results']['classifier']['accuracy'], abs=0.01)
    assert len((folder/'f/labeled.txt').read_text().split()) == 30
    assert 'f is finished: give --epochs more than 2 to go on, or another --out' in refused('finetune', '--resume', 'f')
    assert 'f was begun with --labels 3, and is now given 4' in refused('finetune', '--resume', 'f', '--labels', 4)
    assert 'f is a run of another kind: go on with it by fastcontrast finetune' in refused('pretrain', '--resume', 'f')
    for command in (('eval', 'f', 'digits'), ('finetune', 'f')):
        assert 'f is a fine-tuning, and this takes an encoder: give the run' in refused(*command)
    assert run('export', 'f', '-o', 'handed')[1] == 'the classifier is in handed\n'
    assert load_classifier('handed').num_classes == 10
    accuracy = f"{c['results']['classifier']['accuracy']:.1%}"
    assert f"| accuracy | {accuracy} of 397 other pictures |" in Path('handed/README.md').read_text()
    assert run('export', 'f', '-o', 'e.safetensors')[1] == 'the encoder is in e.safetensors\n'
    assert load_encoder('f/classifier').num_features == 512
    code, out, _ = run('runs', 'f')
    assert code == 0 and 'finished' in out and '2/2' in out and 'classifier' not in out
    assert accuracy in out
    (row,) = json.loads(run('runs', 'f', '--json')[1])
    assert row['accuracy'] == c['results']['classifier']['accuracy'] and row['knn'] is None

    code, out, err = run('predict', 'f', 'digits', '--top', 2, '-o', 'new/p.csv', '--device', 'cpu')
    assert (code, err) == (0, '') and 'and 1,777 more\n' in out
    assert 'of 1,797 pictures with a label\nit was tuned with 30 pictures of these data, and does better' in out
    written = list(csv.DictReader((folder/'new/p.csv').open()))
    assert len(written) == 1797 and [*written[0]][-2:] == ['class_2', 'probability_2']
    right = [row['class'] == row['label'] for row in written if row['part'] == 'valid']
    assert sum(right) / 397 == pytest.approx(c['results']['classifier']['accuracy'], abs=0.01)


def test_what_was_not_learned_from_judges_the_tuned_encoder(run, folder):
    "And is set aside where that is tuned again; the run that it came from may be gone"
    image_folder(folder/'p', dict(a=10, bb=10))
    assert run('pretrain', 'p', *TINY, '--seed', 5, '--valid', .4, '--out', 'r', '--no-controls')[0] == 0
    assert run('finetune', 'r', '--labels', 3, '--epochs', 1, '--seed', 7, '--out', 'f')[0] == 0
    split = dict(seed=5, valid=.4, value_range=None, unlabelled=False, column=None, label_column=None, store_size=None)
    assert config('f')['split'] == split and config('f')['settings']['valid'] is None
    kinds = [views_of_run(Path(file)) for file in ('f/classifier/model.safetensors', 'r/encoder.safetensors')]
    assert kinds[0] == kinds[1] != views_of_run(Path('nothing'))
    shutil.rmtree('r')
    code, out, err = run('eval', 'f/classifier', 'p', '--draws', 1, '-o', 'e.json')
    e = json.loads(Path('e.json').read_text())
    assert (code, err) == (0, '') and (e['seed'], e['valid'], e['n_valid']) == (5, .4, 8)
    assert 'it was trained on' not in out
    assert 'it was tuned with labels of these data, which its rows of few labels do not count' in out
    assert run('finetune', 'f/classifier', '--epochs', 1, '--out', 'g')[0] == 0
    g = config('g')
    assert (g['n_valid'], g['seed'], g['split']) == (8, 7, split) and g['labels'].endswith('f/labeled.txt')


def test_it_ends_as_if_nothing_had_happened(run, folder, pretrained, monkeypatch):
    command = ('finetune', pretrained, '--labels', 'all', '--epochs', 3, '--bs', 8, '--patience', 3)
    assert run(*command, '--out', 's')[0] == 0
    with ended_after_an_epoch(monkeypatch): code, _, err = run(*command, '--out', 'r')
    assert code == 143 and err == ('interrupted after 1 of 3 epochs: the classifier as it was then is in r/classifier; '
                                   'go on with: fastcontrast finetune --resume r\n')
    assert run('runs', 'r')[1].splitlines()[-1] == 'fastcontrast finetune --resume r'
    (folder/'elsewhere').mkdir()
    monkeypatch.chdir(folder/'elsewhere')
    code, out, err = run('finetune', '--resume', folder/'r')
    assert (code, err) == (0, '') and f"going on with {folder/'r'}\n" in out and out.count('going on from') == 1
    assert rows(folder/'r') == rows(folder/'s') and len(rows(folder/'r')) == 3 and 'held_out' in rows(folder/'r')[0]
    r, s = (load_classifier(folder/name/'classifier').state_dict() for name in 'rs')
    assert all(torch.equal(tensor, s[name]) for name, tensor in r.items())
    assert config(folder/'r')['results'] == config(folder/'s')['results'] and config(folder/'r')['n_held'] == 2
    assert 'the weights are those of epoch ' in out and ' of 2 held-out pictures right' in out


def test_a_finished_one_is_made_longer(run, refused, pretrained):
    assert run('finetune', pretrained, '--labels', 'all', '--bs', 8, '--epochs', 1, '--out', 'f')[0] == 0
    first = load_file('f/classifier/model.safetensors')
    code, out, _ = run('finetune', '--resume', 'f', '--epochs', 3)
    assert 'the classifier that it had finished stays, as classifier-1' in out
    kept, new = (load_file(f'{name}/model.safetensors') for name in ('f/classifier-1', 'f/classifier'))
    assert all(torch.equal(t, kept[name]) for name, t in first.items()) and load_classifier('f/classifier-1')
    assert not all(torch.equal(t, new[name]) for name, t in first.items())
    assert code == 0 and 'planned for 1 epochs and now for 3: the schedule' in out and len(rows(Path('f'))) == 3
    assert config('f')['state'] == 'finished' and config('f')['settings']['epochs'] == 3
    assert 'give --epochs more than 3' in refused('finetune', '--resume', 'f', '--epochs', 3)
    Path('f/config.json').write_text(json.dumps(config('f') | dict(epochs=9)))  # as where patience has ended it
    assert 'f is finished: give another --out' in refused('finetune', '--resume', 'f', '--epochs', 12)


def test_what_else_lies_in_the_classifiers_folder(run, refused, pretrained):
    "What the system leaves does no harm; anything else is named before it trains"
    assert run('finetune', pretrained, '--labels', 'all', '--bs', 8, '--epochs', 1, '--out', 'f')[0] == 0
    Path('f/classifier/.DS_Store').touch()
    assert run('finetune', '--resume', 'f', '--epochs', 2)[0] == 0 and load_classifier('f').num_classes == 2
    Path('f/classifier/note.txt').touch()
    assert "classifier' holds 'note.txt'" in refused('finetune', '--resume', 'f', '--epochs', 3)
    assert len(rows(Path('f'))) == 2 and config('f')['state'] == 'finished'


def test_a_loss_that_is_no_number_ends_it(run, pretrained):
    code, _, err = run('finetune', pretrained, '--labels', 'all', '--lr', 1e30, '--epochs', 50, '--out', 'f')
    assert code == 2 and err.startswith('error: the loss is ') and 'try a lower lr (it was ' in err
    assert config('f')['state'] == 'stopped' and config('f')['epochs_done'] < 5


def test_few_labels_serve_both(run, refused, pretrained, pictures):
    "SuNCEt's own question; and names in a file"
    names = (pretrained/'labeled.txt').read_text()
    code, out, err = run('finetune', pretrained, '--epochs', 1, '--out', 'f')
    assert code == 0 and '8 labels of 2 classes' in out, err
    assert Path('f/labeled.txt').read_text().split() == names.split() == names.split('\n')[:-1]
    assert config('f')['n_valid'] == 4 and config('f')['labels'].endswith('r/labeled.txt')
    code, out, _ = run('finetune', pretrained/'encoder.safetensors', pictures, '--labels', pretrained/'labeled.txt',
                       '--epochs', 1, '--protocol', 'linear', '--out', 'g')
    assert code == 0 and '8 labels' in out and config('g')['protocol'] == 'linear'
    before, after = load_encoder(pretrained/'encoder.safetensors'), load_classifier('g/classifier').state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.state_dict().items())
    assert run('finetune', pretrained, '--labels', 'all', '--epochs', 1)[0] == 0
    assert config('runs/finetune-full-r-p')['n_train'] == 16
    Path('x.txt').write_text(names + 'no-such.png\n')
    assert "line 9 of 'x.txt' is 'no-such.png': no picture has it" in refused(
        'finetune', pretrained, '--labels', 'x.txt')


def test_predict_one_picture(run, refused, pretrained, pictures):
    assert run('finetune', pretrained, '--epochs', 1, '--out', 'f')[0] == 0
    picture(3).save('one.png')
    code, out, err = run('predict', 'f/classifier', 'one.png', '-o', 'p.json')
    assert (code, err) == (0, '') and 'accuracy' not in out and 'one.png' in out
    (row,) = json.loads(Path('p.json').read_text())
    assert set(row['classes']) == {'a', 'bb'} and sum(row['classes'].values()) == pytest.approx(1)
    image_folder(Path('q'), dict(a=2, c=2))
    assert "does not know the pictures' class c" in run('predict', 'f', 'q')[1]
    assert 'holds an encoder that tells no classes apart' in refused('predict', pretrained, 'one.png')
    assert '--out p.txt must end in .csv or .json' in refused('predict', 'f', 'q', '-o', 'p.txt')
    assert "there is no classifier 'none'" in refused('predict', 'none', 'q')
    assert 'device=xpu:9 cannot be used here' in refused('predict', 'f', 'q', '--device', 'xpu:9')
    assert '--top=0 must be' in refused('predict', 'f', 'q', '--top', 0)


def test_a_run_that_left_labels_alone(run, pretrained):
    "Its pictures have them all the same"
    shutil.copytree(pretrained, 'u')
    record = config('u')
    record['settings'] |= dict(unlabelled=True, labels=None)
    Path('u/config.json').write_text(json.dumps(record))
    Path('u/labeled.txt').unlink()
    code, out, _ = run('finetune', 'u', '--epochs', 1, '--encoder-lr', 0, '--out', 'f')
    assert code == 0 and '16 labels of 2 classes' in out and config('f')['protocol_values']['encoder_lr'] == 0


def test_larger_pictures_than_in_pretraining(run, refused, folder):
    "A ViT's usual step; the side at which the run kept its pictures was for theirs"
    image_folder(folder/'p', dict(a=6, bb=6), size=(48, 48))
    (folder/'r').mkdir()
    export_encoder(make_encoder('test_vit', size=32), 'r/encoder.safetensors', 'test_vit', 32, [.5] * 3, [.2] * 3)
    Path('r/config.json').write_text(json.dumps(dict(settings=dict(data=str(folder/'p'), store_size=40))))
    command = ('finetune', 'r', '--epochs', 1, '--bs', 4)
    code, _, err = run(*command, '--size', 48, '--out', 'f')
    f = config('f')
    assert (code, err) == (0, '') and f['size'] == f['settings']['size'] == 48 and f['split']['store_size'] is None
    assert tuple(load_classifier('f').pretrained_cfg['input_size']) == (3, 48, 48)
    assert run(*command, '--out', 'g')[0] == 0
    assert config('g')['size'] == 32 and config('g')['split']['store_size'] == 40
    assert 'f was begun with --size 48, and is now given 64' in refused('finetune', '--resume', 'f', '--size', 64)
    assert "size=40 does not suit the encoder 'test_vit'" in refused(*command, '--size', 40, '--out', 'h')
    assert '--size=1 must be a whole number from 2 to 8192' in refused(*command, '--size', 1)


def test_what_cannot_be(refused, run, digits, folder):
    image_folder(folder/'loose', {'': 4})
    for args, words in ((('none', 'digits'), 'no encoder at'), ((), 'nothing says whose encoder'),
                        ((digits[0], 'loose'), 'fine-tuning needs labels'),
                        ((digits[0], '--labels', 500), 'must be from 1 to the pictures of the smallest class'),
                        ((digits[0], '--labels', 'none.txt'), "there is no file 'none.txt'"),
                        ((digits[0], '--protocol', 'lienar'), 'did you mean linear?'),
                        ((digits[0], '--patience', 0), '--patience=0 must be'), ((digits[0], '--lr', -1), '--lr=-1.0'),
                        ((digits[0], '--bs', 1), '--batch-size=1 must be'), ((digits[0], '--decay', 2), '--decay=2.0'),
                        ((digits[0], '--labels', 1, '--patience', 2), 'has one alone'),
                        ((digits[0], '--device', 'xpu:9'), 'device=xpu:9 cannot be used here'),
                        (('--resume', digits[0]), 'is a run of another kind: go on with it by fastcontrast pretrain')):
        assert words in refused('finetune', *args), words
    assert not Path('runs').exists()
    distilled = 'deit_tiny_distilled_patch16_224'  # whose scores come of two layers
    export_encoder(make_encoder(distilled, size=32), 'vit.safetensors', distilled, 32, [.5] * 3, [.2] * 3)
    assert 'has no single layer of class scores' in refused('finetune', 'vit.safetensors', 'digits')
    (folder/'alone').mkdir()
    (folder/'alone/encoder.safetensors').write_bytes((digits[0]/'encoder.safetensors').read_bytes())
    assert 'says of which pictures it is: give a folder' in refused('finetune', 'alone')
