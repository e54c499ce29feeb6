"--log: who else is told of a run"
import csv

import pytest
from helpers.cli import config, ended_after_an_epoch
from helpers.folders import image_folder
from helpers.telling import epochs_told

from fastcontrast import logs

QUICK = ('--arch', 'test_resnet', '--batch-size', 4, '--no-controls')


def rows(folder): return list(csv.DictReader((folder/'history.csv').open()))


def test_a_run_that_is_taken_up_goes_on_in_its_log(run, folder, told, monkeypatch):
    image_folder(folder/'p', dict(a=6, bb=6))
    command = ('pretrain', 'p', *QUICK, '--epochs', 3, '--log', 'told, csv', '--out', 'r')
    with ended_after_an_epoch(monkeypatch): assert run(*command)[0] == 143
    assert run('pretrain', '--resume', 'r')[0] == 0 and config('r')['log'] == 'told, csv'
    assert len(rows(folder/'r')) == 3
    (mine,) = told.values()
    settings, views, *_ = mine
    assert settings['batch size'] == 4 and len(views.axes)
    epochs = epochs_told(mine)
    assert list(epochs) == [2, 4, 6] and mine[-1] is False
    for values, row in zip(epochs.values(), rows(folder/'r'), strict=True):
        assert {name: float(row[name]) for name in row if name != 'time'} == pytest.approx(values)
    assert {'seconds', 'tflop', 'images_s', 'memory_mb', 'knn'} <= set(epochs[2])


def test_a_fine_tuning_too(run, folder, told):
    image_folder(folder/'p', dict(a=6, bb=6))
    assert run('pretrain', 'p', *QUICK, '--epochs', 1, '--out', 'r')[0] == 0 and not told
    assert run('finetune', 'r', '--epochs', 2, '--bs', 4, '--log', 'told', '--out', 'f')[0] == 0
    (mine,) = told.values()
    assert [set(values) >= {'train_loss', 'accuracy'} for values in epochs_told(mine).values()] == [True, True]


def test_refused_before_pictures_are_read(refused, folder, monkeypatch):
    image_folder(folder/'p', dict(a=6, bb=6))
    assert "unknown log 'tensorbord': did you mean tensorboard?" in refused('pretrain', 'p', '--log', 'tensorbord')
    monkeypatch.setattr(logs, 'find_spec', lambda name: None)
    assert 'not installed: pip install mlflow.' in refused('pretrain', 'p', '--log', 'mlflow')
    assert not (folder/'runs').exists()
