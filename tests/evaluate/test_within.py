"Training on some pictures, judging within others: kNN and probes know neither the training pictures nor their classes"
import csv
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from fastai.callback.core import Callback
from helpers.cli import TINY, config
from helpers.folders import STREAM, Given, dls_of, everything, image_folder, picture, same
from helpers.learners import small
from PIL import Image

from fastcontrast.bar import column_names, in_columns
from fastcontrast.cli import main
from fastcontrast.core import InputError, MissingPath
from fastcontrast.evaluate.knn import knn_accuracy
from fastcontrast.evaluate.linear import linear_probe
from fastcontrast.learner import contrastive_learner

COLOURS = dict(blue=(0, 0, 200), green=(0, 200, 0), red=(200, 0, 0))


def coloured(folder, n=10, names=COLOURS):
    "Pictures that any encoder tells apart: by their colour"
    for name in names:
        (folder/name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            x = np.asarray(picture(i + sum(map(ord, name)))) // 8 + np.array(COLOURS[name], dtype=np.uint8)
            Image.fromarray(x).save(folder/name/f'{i:03}.png')
    return folder


@pytest.fixture
def a(tmp_path):
    "Pictures without labels, 40 pixels wide"
    return image_folder(tmp_path/'a', {'': 12}, size=(40, 40))


@pytest.fixture
def b(tmp_path): return coloured(tmp_path/'b')


def learner(dls, **kwargs):
    learn = contrastive_learner(dls, 'test_resnet', method=small('simclr', 'cifar'), small_input=False, **kwargs)
    learn.create_mbar = False
    return learn


def parts(dls): return sorted(dls.bank.data.names), sorted(dls.valid.data.names)


def test_a_labelled_folder_judges_within_itself(a, b, capsys):
    dls = dls_of(a, valid=b, bs=4)
    assert capsys.readouterr().out == 'judged within b: 3 classes, 6 pictures by their neighbours among 24\n'
    assert dls.classes is None and dls.bank.data.classes == ['blue', 'green', 'red'] and dls.within == 'b'
    assert torch.bincount(dls.valid.data.y).tolist() == [2, 2, 2]
    assert torch.bincount(dls.bank.data.y).tolist() == [8, 8, 8]
    assert not set(dls.bank.data.names) & set(dls.valid.data.names) and len(dls.train.data) == 12
    alone = dls_of(b, bs=4)
    assert parts(dls) == (sorted(alone.train.data.names), parts(alone)[1])  # as where it is given alone
    assert dls_of(a, valid=b, bs=4, seed=1).valid.data.names != dls.valid.data.names
    assert dls.size == 40 and dls.bank.one_batch()[0].shape[-1] == 32 and dls.train.one_batch()[0].shape[-1] == 40
    streamed = dls_of(a, valid=b, bs=4, **STREAM)
    for one, other in zip(dls.loaders, streamed.loaders, strict=True): same(one.ordered(), other.ordered())
    cached = dls_of(a, valid=b, bs=4, cache=a.parent/'c')
    for one, other in zip(dls.loaders, cached.loaders, strict=True): same(one.ordered(), other.ordered())


def test_metrics_and_probes_run_within_it(a, b):
    dls = dls_of(a, valid=b, bs=4)
    learn = learner(dls)
    h = [*learn.embed(dls.bank), *learn.embed(dls.valid)]
    assert len(h[0]) == 24 and learn.knn() == knn_accuracy(*h) and learn.linear_probe() == linear_probe(*h)
    with learn.no_logging(): learn.fit_contrastive(1)
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[0]))
    assert row['knn'] == learn.knn()
    # what needs no labels still looks at the pictures that train
    train_h, _ = learn.embed(dls.train.ordered())
    z = torch.nn.functional.normalize(train_h, dim=1)
    assert row['spread'] == pytest.approx(z.std(0).mean().item(), abs=1e-6)


def test_the_column_says_so(a, b, capsys):
    learn = learner(dls_of(a, valid=b, bs=4))
    learn.fit_contrastive(1)
    header, row = capsys.readouterr().out.splitlines()[-2:]
    assert re.search(r'train_loss +knn in b +spread', header) and len(header) == len(row)
    learn.dls.within = 'a data set with a long name'
    assert column_names(learn)[2] == 'knn in a data set with…'
    assert in_columns([1, .5], ['x' * 12, 'y' * 11]) == f"{1:>12}  {.5:>11.3f}"
    assert dls_of(a, valid=b.rename(b.with_name('\x1b[2J')), bs=4).within == '\\x1b[2J'
    learn.dls.within = ''
    assert column_names(learn) == learn.recorder.metric_names


@pytest.mark.parametrize('metrics', [['knn'], ['spread'], ['knn', 'spread'], []])
def test_any_columns(a, b, metrics):
    learn = learner(dls_of(a, valid=b, bs=4), metrics=metrics)
    with learn.no_logging(): learn.fit_contrastive(1)
    assert learn.recorder.metric_names[2:-1] == metrics and len(learn.recorder.values[0]) == 1 + len(metrics)


SOURCES = dict(
    folder=lambda b: b, text=lambda b: str(b),
    frame=lambda b: pandas.DataFrame([(p, p.parent.name) for p in sorted(b.rglob('*.png'))], columns=['path', 'label']),
    arrays=lambda b: (np.stack([np.asarray(p) for p in loaded(b)]), [p.parent.name for p in sorted(b.rglob('*.png'))]),
    items=lambda b: Given([(p, i // 10) for i, p in enumerate(loaded(b))]),
    named=lambda b: Given([(p, i // 10) for i, p in enumerate(loaded(b))], classes=list(COLOURS)))


def loaded(b):
    return [Image.open(p) for p in sorted(b.rglob('*.png'))]


@pytest.mark.parametrize('kind', SOURCES)
def test_any_source_judges(a, b, kind):
    dls, other = (dls_of(a, valid=source, bs=4) for source in (SOURCES[kind](b), b))
    for one, two in zip(dls.loaders, other.loaders, strict=True): same(one.ordered(), two.ordered())
    bare = dls_of(Given([picture(i) for i in range(8)]), valid=SOURCES[kind](b), bs=4)
    assert len(bare.bank.data) == 24 and len(bare.valid.data) == 6
    again = dls_of(SOURCES[kind](b), valid=SOURCES[kind](b), bs=4)  # of the same classes
    assert again.bank is again.train and again.within == '' and len(again.valid.data) == 30


def test_bank_and_queries(a, b, tmp_path):
    queries = coloured(tmp_path/'q', 3, ['red', 'blue'])
    dls = dls_of(a, valid=(b, queries), bs=4)
    assert len(dls.bank.data) == 30 and dls.valid.data.y.tolist() == [0] * 3 + [2] * 3 and dls.within == 'b'
    x = np.zeros((6, 8, 8), np.uint8)
    dls = dls_of(a, valid=((x, [0, 1] * 3), (x, [1, 0] * 3)), bs=4)
    assert dls.bank.data.y.tolist() == [0, 1] * 3 and dls.valid.data.y.tolist() == [1, 0] * 3
    dls = dls_of(b, valid=(b, queries), bs=4, labels='all')
    assert dls.bank is not dls.train and len(dls.train.data) == 30 and dls.train.data.labeled.all()
    pairs = [(p, p.parent.name) for p in sorted(b.rglob('*.png'))]
    dls = dls_of(a, valid=(pairs, pairs[::3]), bs=4)  # not pictures and their labels
    assert len(dls.bank.data) == 30 and len(dls.valid.data) == 10
    image_folder(tmp_path/'other', dict(yellow=3))
    with pytest.raises(InputError, match="other' has classes that '.*b' lacks"):
        dls_of(a, valid=(b, tmp_path/'other'), bs=4)
    for pair in ((b, a), (a, b), (b, Given([picture(0)]))):
        with pytest.raises(InputError, match='has no labels to judge by'): dls_of(a, valid=pair, bs=4)
    with pytest.raises(InputError, match='are floats'): dls_of(a, valid=((x, [.5] * 6), b), bs=4)
    with pytest.raises(MissingPath, match='no validation folder'): dls_of(a, valid=(b, tmp_path/'none'), bs=4)


def test_a_folder_with_splits_of_its_own(a, tmp_path):
    coloured(tmp_path/'s/train', 5)
    coloured(tmp_path/'s/val', 2)
    dls = dls_of(a, valid=tmp_path/'s', bs=4)
    assert len(dls.bank.data) == 15 and len(dls.valid.data) == 6 and dls.within == 's'
    image_folder(tmp_path/'flat/train', {'': 8})
    coloured(tmp_path/'flat/val', 5)
    dls = dls_of(tmp_path/'flat', bs=4)  # its own validation split has classes, and training none
    assert len(dls.train.data) == 8 and len(dls.bank.data) == 12 and dls.within == 'val'
    dls = dls_of(tmp_path/'s', unlabelled=True, bs=4)
    assert dls.classes is None and len(dls.train.data) == 15 and len(dls.bank.data) == 3 and dls.within == 'val'


def test_other_classes_than_trainings(b, tmp_path):
    train = image_folder(tmp_path/'t', dict(red=4, yellow=4))
    dls = dls_of(train, valid=b, bs=4)
    assert dls.classes == ['red', 'yellow'] and dls.bank.data.classes == list(COLOURS) and dls.within == 'b'
    known = coloured(tmp_path/'known', 3, ['red'])
    dls = dls_of(train, valid=known, bs=4)
    assert dls.bank is dls.train and dls.valid.data.y.tolist() == [0] * 3 and dls.within == ''
    numbers = Given([(picture(i), i % 5) for i in range(20)])
    dls = dls_of(Given([(picture(i), i % 2) for i in range(8)], classes=['x', 'y']),
                 valid=Given([(picture(i), i % 5) for i in range(20)], classes=list('abcde')), bs=4)
    assert dls.bank.data.classes == list('abcde')
    with pytest.raises(InputError, match=r'has label 4, but training has 2 classes: give valid=\(bank, queries\)'):
        dls_of(Given([(picture(i), i % 2) for i in range(8)]), valid=numbers, bs=4)


def test_unlabelled_pictures_judge_nothing(a, b):
    dls = dls_of(b, valid=a, bs=4)
    assert dls.bank is dls.train and (dls.valid.data.y == -1).all()
    learn = learner(dls_of(a, bs=4))
    with pytest.raises(InputError, match="kNN needs labels, and the pictures of '.*a' have none"): learn.knn()
    learn = learner(dls_of(Given([(picture(i), i / 3) for i in range(8)]), bs=4))
    with pytest.raises(InputError, match='kNN needs labels, and the labels of Given are floats like 0.*: give whole'):
        learn.knn()
    single = image_folder(a.parent/'single', dict(x=1, y=1))
    with pytest.raises(InputError, match='two of each'): dls_of(a, valid=single, bs=4)


def test_shards_train_and_a_folder_judges(b, tmp_path):
    from webdataset import TarWriter
    (tmp_path/'w').mkdir()
    for k in range(2):
        with TarWriter(str(tmp_path/f'w/{k}.tar')) as tar:
            for i in range(8): tar.write(dict(__key__=f'{k}{i}', png=picture(10 * k + i), cls=i % 2))
    for unlabelled in (False, True):
        dls = dls_of(tmp_path/'w', valid=b, bs=4, workers=0, unlabelled=unlabelled)
        assert len(dls.train.data) == 16 and len(dls.bank.data) == 24 and dls.within == 'b'
        assert (everything(dls.train)[1] == -1).all()
    learn = learner(dls)
    with learn.no_logging(): learn.fit_contrastive(1)
    assert 0 <= learn.recorder.values[0][1] <= 1
    judged = dls_of(b, valid=tmp_path/'w', bs=4, workers=0)  # the other way round
    assert judged.within == 'w' and len(judged.bank.data) == len(judged.valid.data) == 8
    bare = dls_of(tmp_path/'w', bs=4, workers=0, unlabelled=True)
    assert bare.classes is None and len(bare.train.data) == 16 and len(bare.valid) == 0
    (tmp_path/'n').mkdir()
    (tmp_path/'w').rename(tmp_path/'n/train')
    b.rename(tmp_path/'n/val')
    dls = dls_of(tmp_path/'n', bs=4, workers=0)  # as its own validation split, too
    assert dls.classes == ['0', '1'] and len(dls.train.data) == 16 and dls.within == 'val' and len(dls.bank.data) == 24


def test_failures_of_the_bank_are_reported(a, b):
    (b/'red/000.png').write_bytes(b'')
    dls = dls_of(a, valid=(b, b), bs=4)
    assert dls.report().startswith('2 of 72 pictures') and dls.to('cpu').bank.device == torch.device('cpu')


# ---------------------------------------------------------------- the command line

@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    def run(*args):
        capsys.readouterr()
        monkeypatch.setattr('sys.argv', ['fastcontrast', *map(str, args)])
        try: main()
        except SystemExit as e: assert not e.code, capsys.readouterr().err
        return capsys.readouterr()
    return run


def test_a_run_is_judged_within_other_pictures(run, a, b):
    out, err = run('pretrain', 'a', '--unlabelled', '--valid', 'b', *TINY, '--out', 'r')
    lines = out.splitlines()
    assert err == '' and lines[0] == 'judged within b: 3 classes, 6 pictures by their neighbours among 24'
    assert lines[1].startswith('12 pictures to train on, 6 to judge by within b; ')
    assert 'knn in b' in out and 'kNN within b, all labels' in re.sub(r'\s+', ' ', out)
    c = config('r')
    assert c['judged_within'] == 'b' and c['unlabelled'] and c['n_train'] == 12 and c['n_valid'] == 6
    assert list(c['results']) == ['raw pixels (32 x 32)', 'untrained encoder', 'trained encoder']
    rows = list(csv.DictReader(Path('r/history.csv').open()))
    assert 0 <= float(rows[0]['knn']) <= 1
    knn = f"{c['results']['trained encoder']['knn']:.1%} "
    for data in ('b', 'a'):  # of its own pictures, as in the run
        out, _ = run('eval', 'r', data)
        assert '24 pictures to learn the classes from, 6 to judge by' in out and knn in out
    out, _ = run('pretrain', '--resume', 'r', '--epochs', 2)
    assert 'judged within b' in out and config('r')['epochs_done'] == 2


def test_a_run_on_a_table(run, b):
    rows = [(p.relative_to(b.parent), p.parent.name) for p in sorted(b.rglob('*.png'))]
    with Path('t.csv').open('w', newline='') as file: csv.writer(file).writerows([('where', 'kind'), *rows])
    given = ('--column', 'where', '--label-column', 'kind')
    out, err = run('pretrain', 't.csv', *given, *TINY, '--no-controls', '--out', 'r')
    assert err == '' and out.startswith("3 classes from column 'kind': blue, green, red\n24 pictures to train on")
    out, _ = run('eval', 'r', 't.csv')
    assert f"{config('r')['results']['trained encoder']['knn']:.1%} " in out
    Path('settings.ini').write_text('[odd]\ndata = t.csv\ncolumn = where\nunlabelled = true\narch = resnet10t\n'
                                    'epochs = 1\n')
    out, err = run('pretrain', '--run', 'odd')
    c = config('runs/odd')
    assert c['column'] == 'where' and c['unlabelled'] and c['classes'] is None and c['n_train'] == 30 == c['batch_size']
    assert out.startswith('a batch has 30 pictures, as there are 30 to train on\n') and 'not judged' in out


# ---------------------------------------------------------------- runs that are taken up

class Stop(Callback):
    def before_epoch(self):
        if self.epoch == 1: raise ZeroDivisionError


def run_of(source, folder, b, *cbs):
    "Weights and table of a run of two epochs"
    torch.manual_seed(3)
    learn = learner(dls_of(source, valid=b, bs=4, size=32))
    with learn.no_logging():
        try: learn.fit_contrastive(2, cbs=cbs, resume=folder)
        except ZeroDivisionError: pass
    return learn.model.state_dict(), [row[:2] for row in learn.recorder.values]


@pytest.mark.parametrize('kind', ['paths', 'array', 'items', 'frame', 'folder'])
def test_a_run_on_any_source_goes_on(a, b, tmp_path, kind):
    files = sorted(a.glob('*.png'))
    x = np.stack([np.asarray(Image.open(p)) for p in files])
    source = dict(paths=files, array=x, items=Given([dict(image=p) for p in x]), folder=a,
                  frame=pandas.DataFrame(dict(path=files)))[kind]
    whole, table = run_of(source, tmp_path/'whole', b)
    run_of(source, tmp_path/'cut', b, Stop())
    weights, rows = run_of(source, tmp_path/'cut', b)
    assert rows == table[-len(rows):] and all(torch.equal(whole[name], weights[name]) for name in whole)
    for other in (files[1:9], Given([dict(image=p) for p in x[:8]])):
        with pytest.raises(InputError, match='pictures to train on'): run_of(other, tmp_path/'cut', b)
