"report: repeated runs become a table"
import csv
import json
import os
import re

import pytest
from helpers.cli import config
from helpers.runs import run_folder


@pytest.fixture
def sweep(folder):
    "Two settings with two seeds, of which one is not finished"
    for seed in range(2):
        run_folder(folder/'runs/x'/f'base--seed={seed}', (.5, .6 + seed / 10), settings=dict(seed=seed))
        run_folder(folder/'runs/x'/f'dcl--seed={seed}', (.5, .8), settings=dict(seed=seed, loss='dcl'))
    run_folder(folder/'runs/x/dcl--seed=2', (.5,), settings=dict(seed=2, loss='dcl'), state='interrupted',
               reason='interrupted by SIGTERM')
    (folder/'runs/x/sweep.json').write_text(json.dumps(dict(
        control='dcl', axes=dict(loss=[None, 'dcl']), runs=[dict(run='dcl--seed=0', setting='dcl', seed=0, differs={})],
        refused=[dict(setting='y', differs=dict(loss='swav'), reason='SwAVLoss needs prototypes.')])))
    return folder/'runs/x'


def test_report(run, refused, sweep, folder):
    code, out, err = run('report', 'runs/x')
    assert code == 0 and out.splitlines()[0] == ('4 finished runs of 2 settings, 2 seeds; the control is simclr, dcl, '
                                                 'the control of the sweep')
    cells = [re.split(r' *│ *', line)[1:-1] for line in out.splitlines() if '±' in line]
    assert [row[:3] for row in cells] == [['simclr, dcl', '2 of 3', '80.0 ± 0.0'], ['loss=default', '2', '65.0 ± 7.1'],
                                          ['', '', '(-15.0 ± 5.0)']]
    assert 'refused: loss=swav: SwAVLoss needs prototypes.\n' in out
    assert 'not counted: runs/x/dcl--seed=2 (interrupted): interrupted by SIGTERM\n' in out
    assert out.endswith('the report is in report: open index.html\n') and (folder/'report/index.html').is_file()
    assert err == 'note: runs in no mean: 1 interrupted.\n'
    code, out, _ = run('report', *sorted(sweep.glob('*seed*')), '-o', 'new/r', '--base', 'runs/x/base--seed=1',
                       '--columns', 'linear, 10 labels a class; tflop', '--knn', .6)
    assert code == 0 and 'the control is simclr, as it was asked for' in out
    assert 'TFLOP' in out and 'seconds' not in out
    assert (folder/'new/r/table.md').read_text().startswith('| setting | runs | linear, 10 labels a class, % | TFLOP |')
    rows = {(row['setting'], row['measure']): row for row in csv.DictReader((folder/'new/r/table.csv').open())}
    assert float(rows['loss=dcl', 'knn']['difference']) == pytest.approx(.15)
    assert float(rows['simclr', 'epochs_to']['mean']) == 2


def test_what_report_refuses(refused, sweep, folder):
    (folder/'empty').mkdir()
    (folder/'file').write_text('')
    assert "no run in 'empty'" in refused('report', 'empty')
    assert "no folder 'none'" in refused('report', 'none') and "no folder 'file'" in refused('report', 'file')
    assert 'FOLDER' in refused('report')
    assert '--base x is neither' in refused('report', 'runs/x', '--base', 'x')
    assert '--knn=90.0 must be' in refused('report', 'runs/x', '--knn', 90)
    assert "can't be written to file" in refused('report', 'runs/x', '-o', 'file')
    assert "unknown column 'kn'" in refused('report', 'runs/x', '--columns', 'kn')
    assert refused('report', 'runs/x', '--columns', 'knn, rankme').endswith(' Several have semicolons between them.\n')
    assert 'is finished (1 interrupted)' in refused('report', 'runs/x/dcl--seed=2')
    assert not (folder/'report').exists()


def test_names_that_are_no_utf8(run, sweep, folder):
    odd = folder/os.fsdecode(b'x\xff[bold]')
    sweep.rename(odd)
    code, out, err = run('report', odd)
    assert code == 0 and 'x\\xff[bold]/dcl--seed=2' in out and (folder/'report/index.html').is_file()


def test_compare_joins_seeds(run, refused, sweep, folder):
    for name in ('base', 'dcl'):
        (folder/name).mkdir()
        for seed in range(2): (sweep/f'{name}--seed={seed}').rename(folder/name/f'{seed}')
    code, out, err = run('compare', 'base', 'dcl', 'dcl/0')
    assert (code, err) == (0, '') and 'base: the mean of 2 runs, simclr, NTXent\n' in out
    cells = [re.split(r' *│ *', line)[1:-1] for line in out.splitlines() if re.search(r'│ +2 │', line)]
    assert [row[:4] for row in cells] == [['base', '2', '65.0% ± 7.1%', '65.0%'], ['dcl', '2', '80.0% ± 0.0%', '80.0%'],
                                          ['0', '2', '80.0%', '80.0%']]
    assert all(row[4] == '2' for row in cells)
    (folder/'dcl/0').rename(folder/'base/2')
    assert "'base' holds runs that differ in more than their seeds" in refused('compare', 'base', 'dcl')


@pytest.mark.slow
def test_real_runs(run, folder):
    "With two seeds and a speedup, and what `eval` says of one"
    tiny = ('--epochs', 2, '--batch-size', 256, '--arch', 'test_resnet', '--no-controls')
    for name, options in (('a', ()), ('b', ('--with', 'comb_patches')), ('c', ('--labels', .1, '--with', 'suncet'))):
        for seed in (0, 1):
            args = ('pretrain', 'digits', '--method', 'simclr', *tiny, *options, '--seed', seed)
            assert run(*args, '--out', f'runs/{name}{seed}')[0] == 0
    assert run('eval', 'runs/a0', 'digits', '-o', 'runs/a0/eval.json')[0] == 0
    code, out, err = run('report', 'runs')
    assert code == 0 and '6 finished runs of 3 settings, 2 seeds; the control is simclr, the setting with the' in out
    rows = list(csv.DictReader((folder/'report/runs.csv').open()))
    for row in rows:
        record = config(row['run'])
        assert float(row['knn']) == record['results']['trained encoder']['knn'] and row['seed'] == str(record['seed'])
        assert float(row['tflop']) == pytest.approx(record['cost']['tflop'], rel=1e-12)
    assert {row['setting'] for row in rows} == {'simclr', '+ comb_patches', '+ suncet, labels=0.1'}
    assert float(rows[0]['eval: linear, 1% of the labels']) > .2
    assert (folder/'report/index.html').read_text().count('data:image/jpeg') == 3
