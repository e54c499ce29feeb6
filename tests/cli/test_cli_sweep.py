"Ablations: the runs that a section of settings.ini stands for, made so that nothing that ends one ends the others"
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from helpers.cli import ENV, config, started
from helpers.deaths import TIMES, history
from helpers.folders import image_folder
from helpers.forks import Program
from helpers.pretrained import Pretended
from helpers.refusals import refusal, said

from fastcontrast.all import sweep
from fastcontrast.cli import app, sweeping
from fastcontrast.cli.expand import (LONGEST, Range, Search, expand, make_sweep, plain, read_seeds, read_sweep,
                                     run_name)
from fastcontrast.cli.searching import Searching
from fastcontrast.core import InputError
from fastcontrast.records import history_rows, owner_lives
from fastcontrast.cli.settings import Run, as_options, check_names, named_run, resolve

ROOT = Path(__file__).parents[2]


def settings(text): Path('settings.ini').write_text(text)


def names(made): return [setting.name for setting in made]


def plan(folder): return json.loads((Path(folder)/'sweep.json').read_text())


def names_of(kind, folder): return [entry['setting'] for entry in plan(folder)[kind]]

# ---------------------------------------------------------------- what a base and axes stand for


def test_grid():
    made = expand(dict(data='p', lr=.1), dict(loss=[None, 'dcl'], speedups=[None, 'comb_patches, partial'], size=[32]))
    assert names(made) == ['loss=none--with=none', 'loss=none--with=comb_patches+partial', 'loss=dcl--with=none',
                           'loss=dcl--with=comb_patches+partial']
    assert made[0].chosen == dict(data='p', lr=.1, size=32) and made[0].differs == dict(loss=None, speedups=None)
    assert made[3].chosen == dict(data='p', lr=.1, size=32, loss='dcl', speedups='comb_patches, partial')
    assert made[3].differs == dict(loss='dcl', speedups='comb_patches, partial')


def test_the_default_takes_the_place_of_the_bases_value():
    first, second = expand(dict(speedups='suncet', loss='dcl'), dict(speedups=[None, 'partial']))
    assert (first.chosen, second.chosen) == (dict(loss='dcl'), dict(loss='dcl', speedups='partial'))


def test_no_axis():
    made, = expand(dict(data='p'), {})
    assert (made.name, made.differs, made.chosen) == ('', {}, dict(data='p'))
    assert run_name(made, 3) == 'seed=3'


def test_one_at_a_time():
    "The base, and one change each; what the base has already is no change, be it given, a default, or of the digits"
    made = expand(dict(loss='dcl'), dict(loss=['dcl', 'info_nce'], method=['fast', 'byol'], batch_size=[64, 32]),
                  'one_at_a_time')
    assert names(made) == ['base', 'loss=info_nce', 'method=byol', 'batch_size=32']
    assert made[0].chosen == dict(loss='dcl') and made[2].chosen == dict(loss='dcl', method='byol')
    assert made[2].differs == dict(loss='dcl', method='byol', batch_size=None)
    made = expand(dict(data='digits'), dict(epochs=[None, 18, 50], precision=['auto', None]), 'one_at_a_time')
    assert names(made) == ['base', 'epochs=50']


@pytest.mark.parametrize('base, axes', [
    ({}, dict(speedups=['comb_patches', 'intermediate(), partial', 'suncet(until=9)'])),
    (dict(speedups='comb_patches, suncet(until=9)'), {}),
    ({}, dict(speedups=['comb_patches, suncet(until=9)'], loss=['dcl'])),
])
def test_leave_one_out(base, axes):
    full, *others = expand(base, axes, 'leave_one_out')
    assert full.name == 'all' and full.chosen['speedups'].startswith('comb_patches, ')
    assert others[0].name == 'without=comb_patches' and 'comb_patches' not in others[0].chosen['speedups']
    assert others[-1].name == 'without=suncet-until=9' and 'suncet' not in others[-1].chosen['speedups']
    if len(others) == 3: assert others[1].chosen['speedups'] == 'comb_patches, suncet(until=9)'  # a line is one part
    assert full.chosen.get('loss') == axes.get('loss', [None])[0]


@pytest.mark.parametrize('value, name', [
    (None, 'none'), (True, 'true'), (.5, '0.5'), ('data/cifar10', 'data-cifar10'), ('-1000, 3000', '1000+3000'),
    ("intermediate(('layer2', 'layer3')), partial", 'intermediate-layer2+layer3+partial'),
    ("suncet(weight=2, until=50)", 'suncet-weight=2+until=50'), ('../..', '..-..'), ('a b;$(c)\n', 'ab-c'),
])
def test_names_need_no_quotes(value, name): assert plain(value) == name


def test_names_are_told_apart_and_not_too_long():
    made = expand({}, dict(data=['p/q', 'p-q', 'p' * 300, 'p' * 301]))
    assert len(set(names(made))) == 4 and all(len(name) <= LONGEST for name in names(made))
    assert names(made) == names(expand({}, dict(data=['p/q', 'p-q', 'p' * 300, 'p' * 301])))
    search = Search(dict(data='p'), dict(speedups=['suncet, ' * 20, 'partial'], lr=[Range(.001, 1., True)]), [0], 4)
    chosen = [search.setting(dict(speedups='suncet, ' * 20, lr=lr)).name for lr in (.1, .01, .1)]
    assert chosen[0] != chosen[1] and chosen[0] == chosen[2] and len(chosen[0]) <= LONGEST


@pytest.mark.parametrize('mode, axes, words', [
    ('grids', {}, "unknown mode 'grids': did you mean grid?"),
    ('grid', dict(loss=[]), 'loss has no value'),
    ('grid', dict(speedups=['suncet(1, 2)', 'suncet(1,2)']), 'with has the value suncet(1,2) twice'),
    ('leave_one_out', dict(speedups=['suncet']), 'not two of them'),
    ('leave_one_out', {}, 'not two of them'),
    ('leave_one_out', dict(speedups=['suncet', 'partial'], loss=[None, 'dcl']), 'loss has 2 values'),
    ('leave_one_out', dict(speedups=['suncet, partial, (']), "can't be read"),
])
def test_axes_that_cannot_be(mode, axes, words): said([words], expand, {}, axes, mode)


def test_a_search_without_values():
    said(['lr has no value to try'], make_sweep, 's', dict(data='p'), dict(lr=[], loss=[None, 'dcl']), mode='search')


@pytest.mark.parametrize('seeds, words', [
    ('', 'names no seed'), ('0 x', "'0 x' should be whole numbers"), ('0 -1', 'at least 0'), ([0, 0], 'twice'),
    ([.5], 'whole number'), ([True], 'whole number'), (-1, 'at least 0')])
def test_seeds_that_cannot_be(seeds, words): said([words], read_seeds, seeds)


def test_seeds():
    assert read_seeds('0 1,2, 3') == read_seeds(range(4)) == [0, 1, 2, 3] and read_seeds(7) == [7]


def test_options_say_what_settings_say():
    "For every setting that there is: the program reads them as they were"
    chosen = dict(data='my p', method='byol', loss='dcl', speedups="suncet(weight=.5), partial", arch='resnet10t',
                  weights='w.pth', head_epochs=0, size=24, store_size=30, epochs=3, batch_size=8, lr=1e-5, labels='0.1',
                  valid='.3', unlabelled=True, column='c', label_column='l', channels=1, value_range='-1,3',
                  small_input=False, setting='small', precision='fp32', compile=True, accumulate=2, controls=False,
                  seed=5, workers=0, device=None, processes=2, cache=True, cache_folder='c', schedule='cosine',
                  stop_on_collapse=True, checkpoint='none', log='csv')
    def read(chosen):
        pretrain = typer.main.get_command(app).commands['pretrain']
        given = pretrain.make_context('pretrain', as_options(chosen)).params
        return resolve({key: given[key] for key in Run.__dataclass_fields__})
    assert set(chosen) == set(Run.__dataclass_fields__) and read(chosen) == resolve(chosen)
    for key in ('small_input', 'unlabelled', 'compile', 'controls', 'cache', 'stop_on_collapse'):
        chosen[key] = not chosen[key]
        assert read(chosen) == resolve(chosen), key
    chosen |= dict(device='cpu', processes=1)  # which don't go together with several processes
    assert read(chosen) == resolve(chosen)

# ---------------------------------------------------------------- sections


SECTION = """
[DEFAULT]
seed = 4
epochs = 2

[small]
data = digits
size = 16
with = suncet

[sweep: speedups]
base = small
seed = 0 1 2
loss = dcl
with =
    none
    comb_patches
    # a comment is no value
    intermediate(('layer2', 'layer3')), partial
"""


def test_a_section():
    settings(SECTION)
    made = read_sweep('speedups')
    base = dict(data='digits', size=16, epochs=2, loss='dcl')
    assert [setting.chosen.get('speedups') for setting in made.settings] == [
        None, 'comb_patches', "intermediate(('layer2', 'layer3')), partial"]
    assert made.settings[0].chosen == base
    assert [(setting.name, seed) for setting, seed in made.runs[:4]] == [
        ('with=none', 0), ('with=comb_patches', 0), ('with=intermediate-layer2+layer3+partial', 0), ('with=none', 1)]
    assert [seed for _, seed in read_sweep('speedups', seeds=[7]).runs] == [7, 7, 7]
    assert made.origin == dict(base='small', mode='grid', axes=dict(loss=['dcl'], speedups=[
        None, 'comb_patches', "intermediate(('layer2', 'layer3')), partial"]))


@pytest.mark.parametrize('text, values', [
    ('with =\n  none\n  partial', [None, 'partial']), ('with = none\n  partial', [None, 'partial']),
    ('speedups = partial\n\n  suncet', ['partial', None, 'suncet']), ('with =\n\n  partial', [None, 'partial']),
    ('With = suncet, partial', ['suncet, partial']), ('with =', [None]),
])
def test_a_value_is_a_line(text, values):
    settings(f'[sweep:a]\n{text}\n')
    assert read_sweep('a').origin['axes'] == dict(speedups=values)


def test_seeds_of_a_section():
    "Its own, else its base's, else what all runs share, else the default"
    settings('[DEFAULT]\nseed = 4\n[x]\nseed = 5\n[sweep: a]\nseed = 1, 2\n[sweep: b]\nbase = x\n[sweep: c]\n')
    assert [[seed for _, seed in read_sweep(name).runs] for name in 'abc'] == [[1, 2], [5], [4]]
    settings('[sweep: a]\n')
    assert [seed for _, seed in read_sweep('a').runs] == [0]


NBDEV = '[DEFAULT]\nrepo = mine\nlib_name = %(repo)s\nversion = 1.0\nepochs = 3\n[tool]\nanything = goes\n'


def test_what_is_not_ours_is_passed_over():
    "nbdev's settings of a project are in a section [DEFAULT] of a settings.ini; sections of others have other names"
    settings(NBDEV + '[x]\nsize = 16\n[sweep: a]\nbase = x\nloss = dcl\n')
    assert named_run('x') == dict(size=16, epochs=3)
    assert read_sweep('a').settings[0].chosen == dict(size=16, epochs=3, loss='dcl')


def test_a_file_of_settings_and_no_section(refused):
    assert 'give --run NAME too' in refused('pretrain', 'p', '--config', 'own.ini')
    assert not os.listdir()


def test_an_architecture_with_a_slash_leaves_no_folder(refused, folder):
    image_folder(folder/'p', dict(a=4, b=4))
    assert 'hf-hub:timm/resnet18' in refused('pretrain', 'p', '--arch', 'hf-hub:timm/resnet18')
    assert os.listdir() == ['p']


def test_a_misspelt_key_is_passed_over_nowhere(refused):
    settings('[DEFAULT]\nepoch = 3\n[x]\nsize = 16\n')
    assert "unknown key 'epoch'" in refused('pretrain', '--run', 'x')
    settings(NBDEV + '[x]\nsizes = 16\n')
    assert "unknown key 'sizes'" in refused('pretrain', '--run', 'x')


@pytest.mark.parametrize('text, words', [
    ('', 'has no sweep: write a section that begins with [sweep: a]'),
    ('[a]\nloss = dcl\n', 'has no sweep'),
    ('[sweep: b]\nloss = dcl\n', "unknown sweep 'a': there are b."),
    ('[sweep: a]\nloss = dcl\n[sweep: a]\n', 'already exists'),
    ('[sweep: a]\nloss = dcl\n[sweep:a]\n', 'two sections of the sweep a: leave one out.'),
    ('[sweep: a]\nwith = a\nspeedups = b\n', 'already exists.'),
    ('[sweep: a]\nlosses = dcl\n', "[sweep: a]: unknown key 'losses': did you mean loss"),
    ('[sweep: a]\nmodes = grid\n', "unknown key 'modes': did you mean mode"),
    ('[sweep: a]\nmode = grit\n', "[sweep: a]: unknown mode 'grit': did you mean grid?"),
    ('[sweep: a]\nbase = b\n[c]\nepochs = 1\n', "unknown run 'b': there are c."),
    ('[sweep: a]\nbase = sweep: a\n[c]\n', "unknown run 'sweep: a'"),
    ('[sweep: a]\nbase = c\n[c]\nepoch = 1\n', "[c]: unknown key 'epoch'"),
    ('[sweep: a]\nseed = 0 x\n', "[sweep: a]: seed: '0 x' should be whole numbers"),
    ('[sweep: a]\nepochs = 1\n  two\n', '[sweep: a]: epochs = two is not a whole number'),
    ('[sweep: a]\nepochs = 1\n  0\n', 'epochs=0: --epochs=0 must be a whole number of at least 1'),
    ('[sweep: a]\nloss = dcl\n  dlc\n', "loss=dlc: unknown loss 'dlc': did you mean dcl"),
    ('[sweep: a]\nwith = none\n  suncet(wieght=1)\n', "unknown argument of suncet 'wieght'"),
    ('[sweep: a]\nwith = none\n  partial\n  none\n', 'with has the value None twice'),
    ('[sweep: a]\narch = resnet10\n', "unknown architecture 'resnet10'"),
])
def test_sections_that_cannot_be(refused, text, words):
    settings(text)
    for dry in ((), ('--dry-run',)): assert words in refused('sweep', 'a', *dry)
    assert os.listdir() == ['settings.ini']


def test_no_file(refused, folder):
    assert f"the sweep a needs a settings.ini with a section [sweep: a] in the current folder, and there is none in " \
           f"{folder}" in refused('sweep', 'a')
    assert 'x.ini, which is not there' in refused('sweep', 'a', '--config', 'x.ini')
    assert 'x.ini, which is not there' in refused('pretrain', '--run', 'a', '--config', 'x.ini')


def test_another_file(run, folder):
    (folder/'my').mkdir()
    settings(SECTION)
    os.rename('settings.ini', 'my/own.ini')
    code, out, err = run('sweep', 'speedups', '--config', 'my/own.ini', '--dry-run')
    assert (code, err) == (0, '') and out.count('--seed=') == 9 and not Path('runs').exists()
    assert resolve({}, 'small', file='my/own.ini').size == 16


def test_the_repositorys_own_sweeps_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = Path('settings.ini').read_text()
    found = [line[1:-1].split(':')[1].strip() for line in text.splitlines() if line.startswith('[sweep:')]
    assert found
    for name in found:
        for setting in read_sweep(name).settings: check_names(resolve(setting.chosen))

# ---------------------------------------------------------------- making the runs


@pytest.fixture
def pretend(monkeypatch):
    "Runs are made by a program that takes no time for it, and soon seen to be there"
    monkeypatch.setattr(sweeping, 'subprocess', SimpleNamespace(Popen=Pretended, DEVNULL=None))
    monkeypatch.setattr(sweeping, 'time', SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: time.sleep(0.01)))


TINY = '[sweep: a]\nseed = 0 1\nepochs = 3\nloss =\n  none\n  dcl\n'


def test_a_sweep(run, pretend):
    settings(TINY)
    code, out, err = run('sweep', 'a', '--dry-run')
    assert code == 0 and out.count('│ new') == 4 and '4 runs in runs/a, 0 finished; nothing was done' in out
    assert not Path('runs').exists()
    code, out, err = run('sweep', 'a')
    first, *lines, last = out.splitlines()
    assert (code, err) == (0, '') and first == '4 runs of 2 settings, in runs/a'
    order = ['loss=none--seed=0', 'loss=dcl--seed=0', 'loss=none--seed=1', 'loss=dcl--seed=1']
    assert [line.split(': ')[0] for line in lines] == [f'{i + 1} of 4  {name}' for i, name in enumerate(order)]
    assert lines[1].startswith('2 of 4  loss=dcl--seed=0: kNN 5.0%, 0:0') and lines[1].endswith(' to go')
    assert ' to go' not in lines[3] and last == '4 of 4 runs are finished: runs/a'
    assert plan('runs/a') == dict(
        name='a', base={}, mode='grid', axes=dict(epochs=[3], loss=[None, 'dcl']), control='loss=none', seeds=[0, 1],
        runs=[dict(run=name, setting=name.split('--')[0], seed=int(name[-1]),
                   differs=dict(loss='dcl' if 'dcl' in name else None)) for name in order], refused=[])
    c = config('runs/a/loss=dcl--seed=1')
    assert (c['settings']['loss'], c['settings']['seed'], c['settings']['epochs']) == ('dcl', 1, 3)
    code, out, err = run('sweep', 'a')
    assert code == 0 and out == ('4 runs of 2 settings, in runs/a; 4 are finished\n'
                                 '4 of 4 runs are finished: runs/a\n')
    assert run('sweep', 'a', '--dry-run')[1].count('│ finished │   3/3 │') == 4


def test_seeds_of_the_command(run, pretend):
    "As the issue writes them, and with commas; those that are there already stay in the plan"
    settings(TINY)
    for seeds in (('0', '1'), ('2,1',)): assert run('sweep', 'a', '--seeds', *seeds, '-o', 'r')[0] == 0
    assert run('sweep', '--seeds', '2', '3', '--dry-run', '-o', 'r', 'a')[1].count('│ new') == 2
    assert sorted(os.listdir('r')) == [f'loss={loss}--seed={seed}' for loss in ('dcl', 'none') for seed in range(3)] + [
        'sweep.json']
    assert plan('r')['seeds'] == [0, 1, 2] and len(plan('r')['runs']) == 6
    settings(TINY.replace('none', 'info_nce'))
    assert run('sweep', 'a', '--seeds', '3', '-o', 'r')[0] == 0
    assert {entry['run'] for entry in plan('r')['runs']} == {
        'loss=info_nce--seed=3', *(f'loss=dcl--seed={seed}' for seed in range(4))}


def test_a_refused_combination_is_noted(run, pretend):
    settings(TINY.replace('dcl', 'barlow_twins'))
    code, out, err = run('sweep', 'a')
    line = '3 of 4  loss=barlow_twins--seed=0: refused, as with any seed: barlow_twins does not go with that; '
    assert (code, err) == (0, '') and line in out and out.endswith('2 of 4 runs are finished, 2 refused: runs/a\n')
    noted = [dict(setting='loss=barlow_twins', differs=dict(loss='barlow_twins'),
                  reason='barlow_twins does not go with that')]
    assert plan('runs/a')['refused'] == noted and not list(Path('runs/a').glob('*barlow*'))
    assert run('sweep', 'a', '--dry-run')[1].count('│ refused') == 2
    assert run('sweep', 'a')[0] == 0 and plan('runs/a')['refused'] == noted
    settings('[sweep: a]\nloss = barlow_twins\n')
    code, out, err = run('sweep', 'a', '-o', 'r')
    assert code == 2 and err == 'error: 0 of 1 runs are finished, 1 refused: r.\n'


def test_a_run_that_is_killed_does_not_end_the_others(run, pretend, monkeypatch):
    settings(TINY)
    monkeypatch.setenv('DIES', 'loss=dcl--seed=0')
    code, out, err = run('sweep', 'a')
    assert code == 1 and '2 of 4  loss=dcl--seed=0: failed: it was ended by SIGKILL; ' in out and out.count('kNN') == 3
    assert err == ('error: 1 failed; 3 of 4 runs are finished: runs/a; try them again with: fastcontrast sweep a\n')
    assert '│ killed   │   1/3 │' in run('sweep', 'a', '--dry-run')[1]
    code, out, err = run('sweep', 'a')
    assert (code, err) == (0, '') and '4 runs of 2 settings, in runs/a; 3 are finished\n4 of 4  loss=dcl--seed=0' in out


def test_a_full_disk_is_no_combination_that_cannot_be(run, pretend, monkeypatch):
    settings(TINY)
    monkeypatch.setenv('FULL', 'loss=dcl--seed=0')
    code, out, err = run('sweep', 'a')
    assert code == 1 and 'loss=dcl--seed=0: failed: there is no room for that; ' in out and out.count('kNN') == 3
    assert err.startswith('error: 1 failed; 3 of 4 runs are finished') and plan('runs/a')['refused'] == []
    monkeypatch.delenv('FULL')
    assert run('sweep', 'a')[0] == 0


APART = '[sweep: a]\nseed = 0 1\nepochs = 1\nbatch_size =\n  4\n  5\nprocesses =\n  1\n  2\n'


def test_settings_that_can_t_go_together_are_noted(run, refused, pretend):
    "Values that are right each by itself; the other settings are trained"
    settings(APART)
    assert run('sweep', 'a', '--dry-run')[1].count('│ refused') == 2
    code, out, err = run('sweep', 'a')
    reason = "--batch-size 5 can't be divided among 2 processes: give a multiple of 2"
    assert (code, err) == (0, '') and f'refused, as with any seed: {reason}; ' in out
    assert out.endswith('6 of 8 runs are finished, 2 refused: runs/a\n')
    noted, = plan('runs/a')['refused']
    assert noted == dict(setting='batch_size=5--processes=2', differs=dict(batch_size=5, processes=2), reason=reason)
    assert run('sweep', 'a')[0] == 0
    settings(APART.replace('  1\n  2', '  2\n  4').replace('  4\n  5', '  5\n  7'))
    assert reason in refused('sweep', 'a', '-o', 'none') and not Path('none').exists()


def test_several_at_a_time(run, pretend, monkeypatch, refused):
    settings(TINY)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: range(8), raising=False)
    assert run('sweep', 'a', '--jobs', 3)[0] == 0
    assert run('sweep', 'a', '-o', 'one')[0] == 0
    def threads(folder): return json.loads((Path(folder)/'loss=dcl--seed=1/environment.json').read_text())
    assert threads('runs/a')['OMP_NUM_THREADS'] == '2' and 'OMP_NUM_THREADS' not in threads('one')
    assert '--jobs=0 must be a whole number of at least 1' in refused('sweep', 'a', '--jobs', 0)


def test_gpus_are_divided(run, pretend, monkeypatch):
    "Also among runs in several processes"
    import torch
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    def gpus(*args): return sweeping._environment(*args).get('CUDA_VISIBLE_DEVICES')
    assert [gpus(5, 1, taken) for taken in ('', '0', '012', '0123')] == ['0', '1', '3', '0']
    assert [gpus(3, 2, taken) for taken in ('', '01', '03', '0123', '01230')] == ['0,1', '2,3', '1,2', '0,1', '1,2']
    assert gpus(1, 1, '') is None and gpus(2, 4, '') is None  # one run at a time, or runs that take all
    settings(TINY.replace('epochs = 3', 'epochs = 1\nprocesses = 2'))
    assert run('sweep', 'a', '--jobs', 2)[0] == 0
    had = [json.loads(file.read_text())['CUDA_VISIBLE_DEVICES'] for file in Path('runs/a').glob('*/environment.json')]
    assert len(had) == 4 and set(had) == {'0,1', '2,3'}
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7,8,9')
    assert gpus(2, 2, '57') == '8,9'


@pytest.mark.parametrize('content', ['{', '[]', '{"program": "train.py"}', '{"axes": {}, "runs": [5], "refused": []}'])
def test_a_file_that_is_no_sweeps_is_kept(refused, pretend, content):
    settings(TINY)
    Path('runs/a').mkdir(parents=True)
    Path('runs/a/sweep.json').write_text(content)
    for more in ([], ['--dry-run']):
        assert 'move it away, or give the runs another --out' in refused('sweep', 'a', *more)
    assert os.listdir('runs/a') == ['sweep.json'] and Path('runs/a/sweep.json').read_text() == content


def test_a_run_that_was_begun_otherwise_is_not_gone_on_with(run, refused, pretend):
    settings(TINY)
    assert run('sweep', 'a')[0] == 0
    for old, new, words in (('epochs = 3', 'epochs = 4', '--epochs 3, and is now given 4'),
                            ('epochs = 3', 'epochs = 3\nlr = .5', 'the default of --lr, and is now given 0.5'),
                            ('epochs = 3', 'epochs = 3\nprecision = fp32', '--precision auto, and is now given fp32'),
                            ('epochs = 3', 'epochs = 3\naccumulate = 2', '--accumulate 1, and is now given 2')):
        settings(TINY.replace(old, new))
        err = refused('sweep', 'a')
        assert words in err and 'give the runs another --out, or remove that folder' in err
    settings(TINY)
    own = refused('sweep', 'a', '-o', 'runs/a/loss=dcl--seed=0')
    assert 'is the folder of a run: give the runs another --out' in own


def test_the_runs_of_another_sweep_stay_its_own(run, refused, pretend):
    settings(TINY + '[sweep: b]\nepochs = 3\nmethod =\n  fast\n  byol\n')
    assert run('sweep', 'a')[0] == 0
    before = Path('runs/a/sweep.json').read_text()
    for more in ([], ['--dry-run']):
        words = refused('sweep', 'b', '-o', 'runs/a', *more)
        assert 'runs/a holds runs of another sweep, like loss=none--seed=0: give the runs another --out' in words
    assert Path('runs/a/sweep.json').read_text() == before


@pytest.mark.parametrize('name', ['../../x', 'a/b', '..', '.', '/tmp/x'])
def test_a_name_that_leads_out_of_runs(run, refused, pretend, name):
    settings(f'[sweep: {name}]\nepochs = 3\n[{name}]\nepochs = 3\n')
    for command in (('sweep', name), ('sweep', name, '--dry-run'), ('pretrain', '--run', name)):
        assert f"'{name}' can't be the name of a folder in runs: call the section otherwise" in refused(*command)
    assert run('sweep', name, '-o', 'r')[0] == 0 and Path('r/sweep.json').exists()


def test_an_error_of_the_sweep_has_its_runs_end_whole(pretend, monkeypatch):
    "They are told, and waited for, as at a signal"
    settings(TINY.replace('epochs = 3', 'epochs = 600'))
    monkeypatch.setenv('EPOCH', '0.1')
    two, now, seen = [Path(f'runs/a/loss={loss}--seed=0') for loss in ('none', 'dcl')], sweeping.Work.now, []
    def breaks(work):
        if min(len(history_rows(run)) for run in two) < 2: return now(work)
        seen.extend(work.processes)
        raise InputError('the disk is full.')
    monkeypatch.setattr(sweeping.Work, 'now', breaks)
    with pytest.raises(InputError, match='the disk is full'): sweeping.carry_out(read_sweep('a'), Path('runs/a'), 2)
    assert [process.returncode for process in seen] == [143, 143]
    assert all(1 < len(history_rows(run)) < 600 for run in two)


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=['INT', 'TERM'])
def test_interrupted(run, pretend, monkeypatch, number, code):
    "What is under way ends whole, and the last line says how to go on"
    settings(TINY.replace('epochs = 3', 'epochs = 40'))
    second, now = Path('runs/a/loss=dcl--seed=0'), sweeping.Work.now
    def signalled(work):
        if len(history_rows(second)) >= 1: signal.raise_signal(number)
        return now(work)
    with monkeypatch.context() as patch:
        patch.setattr(sweeping.Work, 'now', signalled)
        patch.setenv('EPOCH', '.1')
        patch.setenv('SLOW', 'loss=dcl--seed=0')
        got, out, err = run('sweep', 'a')
    assert (got, out.count('kNN')) == (code, 1) and err == (
        'interrupted: 1 of 4 runs are finished: runs/a, and what was under way is kept; '
        'go on with: fastcontrast sweep a\n')
    assert 1 <= len(history_rows(second)) < 40 and not owner_lives(second)
    got, out, err = run('sweep', 'a')
    assert got == 0 and out.count('kNN') == 3 and out.endswith('4 of 4 runs are finished: runs/a\n')


def test_a_run_that_another_process_makes_is_waited_for(run, pretend, monkeypatch):
    "Another sweep's, or one that a sweep which was killed has left behind"
    settings(TINY)
    Path('hold').touch()
    made = read_sweep('a').settings[0].chosen
    command = ['pretrain', *as_options(made), '--seed', '0', '--out', 'runs/a/loss=none--seed=0']
    with open('errors', 'w') as errors: other = Pretended(command, ENV | dict(HOLD='hold'), errors)
    wait = sweeping.Work.wait_for_others
    end = time.monotonic() + 60
    while not owner_lives(Path('runs/a/loss=none--seed=0')) and time.monotonic() < end: time.sleep(0.05)
    def let_go(work):
        wait(work)
        if not work.children: Path('hold').unlink(missing_ok=True)
    monkeypatch.setattr(sweeping.Work, 'wait_for_others', let_go)
    code, out, err = run('sweep', 'a')
    assert (code, err, other.wait(60)) == (0, '', 0)
    assert 'waiting for loss=none--seed=0, in which another process is at work\n' in out
    assert '4 of 4  loss=none--seed=0: was finished by another process\n' in out and out.count('kNN') == 3

# ---------------------------------------------------------------- pretrain's own, and Python's


def test_pretrain_with_several_seeds(run, refused, pretend):
    code, out, err = run('pretrain', '--epochs', 1, '--arch', 'test_resnet', '--seeds', 0, 1)
    folder = 'runs/fast-test_resnet-digits-seeds'
    assert (code, err) == (0, '') and out.startswith(f'2 runs, in {folder}\n1 of 2  seed=0: kNN')
    assert [config(f'{folder}/seed={seed}')['settings']['seed'] for seed in (0, 1)] == [0, 1]
    code, out, err = run('pretrain', '--epochs', 1, '--arch', 'test_resnet', '--seeds', '0,1,2')
    assert code == 0 and '; 2 are finished' in out
    assert run('pretrain', 'digits', '--epochs', 1, '--seeds', '3', '--out', 'r')[0] == 0 and Path('r/seed=3').exists()
    assert '--seed and --seeds' in refused('pretrain', '--seed', 1, '--seeds', '1 2')
    assert 'leave out --seeds' in refused('pretrain', '--resume', 'r', '--seeds', '1 2')
    assert 'should be whole numbers' in refused('pretrain', '--seeds', 'some')


def test_pretrain_with_several_runs(run, refused, pretend):
    settings('[DEFAULT]\nepochs = 1\n[a]\nloss = dcl\nseed = 3\n[b]\nsize = 16\n')
    code, out, err = run('pretrain', '--run', 'a, b', '--batch-size', 32)
    assert (code, err) == (0, '') and sorted(os.listdir('runs/a+b')) == ['a--seed=3', 'b--seed=0', 'sweep.json']
    assert config('runs/a+b/a--seed=3')['settings']['batch_size'] == 32
    differs = dict(loss='dcl', size=None)
    assert plan('runs/a+b')['runs'][0] == dict(run='a--seed=3', setting='a', seed=3, differs=differs)
    assert run('pretrain', '--run', 'a,b', '--seeds', 0, 1, '--out', 'r')[0] == 0
    assert sorted(os.listdir('r')) == ['a--seed=0', 'a--seed=1', 'b--seed=0', 'b--seed=1', 'sweep.json']
    assert run('pretrain', '--run', 'a', '--seeds', 0, 1)[0] == 0 and sorted(os.listdir('runs/a-seeds'))[0] == 'seed=0'
    assert "unknown run 'c': there are a, b." in refused('pretrain', '--run', 'a,c')
    assert "unknown run ''" in refused('pretrain', '--run', 'a,')


def test_in_python(pretend, folder):
    "The same runs as from a section"
    axes = {'loss': [None, 'dcl', 'barlow_twins'], 'with': [None, 'partial, intermediate']}
    rows = sweep(dict(data='digits', epochs=2), axes, seeds=(0, 1), folder='p')
    assert len(rows) == 12 and rows[2] == rows[2] | dict(
        loss='dcl', speedups=None, seed=0, setting='loss=dcl--with=none', state='finished', knn=.04)
    refused = [row for row in rows if row['state'] == 'refused']
    assert len(refused) == 4 and all(row['reason'] == 'barlow_twins does not go with that' for row in refused)
    settings('[x]\ndata = digits\nepochs = 2\n[sweep: s]\nbase = x\nseed = 0 1\nloss =\n  none\n  dcl\n  barlow_twins\n'
             'with =\n  none\n  partial, intermediate\n')
    made, of_section = (make_sweep('s', base, axes, (0, 1)) for base in (named_run('x'), dict(data='digits', epochs=2)))
    assert made.runs == of_section.runs == read_sweep('s').runs
    assert make_sweep('s', {}, dict(size=['', 64])).settings[0].chosen == {}  # as an empty line of a section
    assert len(sweep('x', dict(loss='dcl'))) == 1 and sorted(os.listdir('runs/x--loss')) == ['seed=0', 'sweep.json']


def test_a_failure_in_python(pretend, monkeypatch):
    monkeypatch.setenv('DIES', 'loss=dcl--seed=0')
    rows = sweep(dict(epochs=2), dict(loss=[None, 'dcl']))
    assert [(row['state'], row['reason']) for row in rows] == [
        ('finished', None), ('killed', 'it was ended by SIGKILL')]


@pytest.mark.parametrize('args, words', [
    ((dict(epoch=1), {}), "base: unknown key 'epoch'"),
    (({}, dict(losses=['dcl'])), "axes: unknown key 'losses'"),
    (({}, dict(seed=[0, 1])), 'give seeds'),
    (({}, dict(speedups=[object()])), 'is of another kind'),
    ((dict(epochs=[1, 2]), {}), 'base: epochs = [1, 2] is of another kind'),
    ((dict(epochs=1.5), {}), 'base: epochs = 1.5 is of another kind'),
    ((dict(lr='fast'), {}), 'base: lr = fast is not a number'),
    ((dict(compile=1), {}), 'base: compile = 1 is of another kind'),
    (({}, dict(loss=['dlc'])), "unknown loss 'dlc': did you mean dcl or dclw?"),
    (({}, {}, 0, 'all'), 'unknown mode'),
])
def test_python_refuses(args, words, folder):
    assert words in refusal(sweep, *args)
    assert not any(folder.iterdir())

# ---------------------------------------------------------------- settings that are chosen


SEARCH = '[sweep: a]\nmode = search\ntrials = 4\nseed = 0 1\nepochs = 1\nlr = 1e-3 .. 1 log\nbatch_size = 8 .. 64\n'


def test_a_range(refused):
    settings(SEARCH)
    made = read_sweep('a')
    assert made.search.axes['lr'] == [Range(.001, 1., True)] and made.search.axes['batch_size'] == [Range(8, 64, False)]
    assert made.origin['axes'] == dict(epochs=[1], lr=['0.001 .. 1.0 log'], batch_size=['8 .. 64']) and made.size == 8
    assert [setting.chosen for setting in made.search.corners()][-2:] == [
        dict(epochs=1, lr=.001, batch_size=8), dict(epochs=1, lr=.001, batch_size=64)]
    assert make_sweep('a', {}, dict(data=['../p', 'p/../q'])).settings[1].chosen == dict(data='p/../q')


@pytest.mark.parametrize('text, words', [
    ('lr = 1 .. 0', 'lr = 1 .. 0 is no range'), ('lr = 0 .. 1 log', 'is no range'), ('lr = .. 1', 'is no range'),
    ('lr = a .. b', 'lr = a is not a number'), ('epochs = 1 .. 2.5', 'epochs = 2.5 is not a whole number'),
    ('lr = 0.1 .. 1\n  2', 'lr has a range and more'), ('lr = 0.1', 'nothing to choose'), ('', 'nothing to choose'),
    ('loss = dcl\n  dlc', "unknown loss 'dlc'"), ('epochs = 0 .. 3', '--epochs=0'),
    ('trials = 0\nlr = .1 .. 1', 'trials=0 must be'), ('trials = some\nlr = .1 .. 1', 'trials'),
    ('trials = 20, 30\nlr = .1 .. 1', 'trials = 20, 30 is not a whole number'),
])
def test_searches_that_cannot_be(refused, text, words):
    if words.startswith(('unknown', '--')): pytest.importorskip('optuna')  # names are looked up later
    settings(f'[sweep: a]\nmode = search\n{text}\n')
    assert words in refused('sweep', 'a')


def test_what_only_a_search_has(refused, monkeypatch):
    settings('[sweep: a]\nlr = .1 .. 1\n')
    assert 'lr = 0.1 .. 1.0 is a range, of which mode = search chooses' in refused('sweep', 'a')
    settings('[sweep: a]\ntrials = 3\n')
    assert 'trials are of mode = search' in refused('sweep', 'a')
    monkeypatch.setitem(sys.modules, 'optuna', None)
    settings(SEARCH)
    assert "needs optuna, which is not installed: pip install 'fastcontrast[search]'." in refused('sweep', 'a')
    assert os.listdir() == ['settings.ini']


def test_a_search(run, refused, pretend, monkeypatch):
    "Ended and begun again it chooses the same; it is known by its axes"
    pytest.importorskip('optuna')
    settings(SEARCH)
    code, out, err = run('sweep', 'a')
    assert (code, err) == (0, '') and out.startswith('8 runs, in runs/a\n1 of 8  lr=0.') and '; the best is lr=' in out
    chosen = [entry['differs'] for entry in plan('runs/a')['runs'][::2]]
    assert len(chosen) == len({tuple(point.values()) for point in chosen}) == 4
    assert all(.001 <= point['lr'] <= 1 and 8 <= point['batch_size'] <= 64 for point in chosen)
    settings(SEARCH.replace('trials = 4', 'trials = 2'))
    assert run('sweep', 'a', '-o', 'r')[0] == 0 and len(plan('r')['runs']) == 4
    settings(SEARCH)
    assert '8 runs in r, 4 chosen, 4 finished' in run('sweep', 'a', '--dry-run', '-o', 'r')[1]
    assert run('sweep', 'a', '-o', 'r', '--jobs', 1)[0] == 0 and plan('r') == plan('runs/a')
    settings(SEARCH.replace('64', '32'))
    assert 'has the runs of other axes' in refused('sweep', 'a')


def test_a_search_goes_where_it_is_better(run, pretend):
    "Pretended accuracy is that of the longest name of a loss; what is refused is not chosen again"
    pytest.importorskip('optuna')
    settings('[sweep: a]\nmode = search\nepochs = 1\nloss =\n  none\n  dcl\n  info_nce\n  barlow_twins\n')
    code, out, err = run('sweep', 'a', '--jobs', 2)
    assert code == 0 and out.endswith('3 of 4 runs are finished, 1 refused: runs/a; the best is loss=info_nce, '
                                      'kNN 8.0%\n')
    assert [entry['setting'] for entry in plan('runs/a')['refused']] == ['loss=barlow_twins']
    rows = sweep(dict(epochs=1), dict(lr='.01 .. 1', loss=['dcl', 'info_nce']), mode='search', trials=3, folder='p')
    assert len(rows) == 3 and all(.01 <= row['lr'] <= 1 and row['state'] == 'finished' for row in rows)

def test_a_search_notes_what_can_t_go_together(run, pretend):
    "And goes on with it when it is called again"
    pytest.importorskip('optuna')
    settings('[sweep: a]\nmode = search\ntrials = 4\nepochs = 1\nprocesses = 2\nbatch_size = 4 .. 7\n')
    for _ in range(2):
        code, out, err = run('sweep', 'a')
        assert (code, err) == (0, '') and '2 of 4 runs are finished, 2 refused: runs/a; the best is batch_size=' in out
        assert {entry['setting'] for entry in plan('runs/a')['refused']} == {'batch_size=5', 'batch_size=7'}


def test_two_searches_in_a_folder_keep_each_others_settings(folder):
    def searching(): return sweeping._Plan(make_sweep('a', {}, dict(lr='.01 .. 1'), mode='search'), [], Path('r'))
    def choose(work, lr):
        work.sweep.settings.append(work.sweep.search.setting(dict(lr=lr)))
        work.runs.append(sweeping.plan_run(work.sweep.settings[-1], 0, Path('r')))
        work.save()
    one, other = searching(), searching()
    choose(one, .1)
    choose(other, .2)
    other.refuse(other.sweep.settings[0], 'no')
    choose(one, .3)
    assert names_of('runs', 'r') == ['lr=0.1', 'lr=0.3', 'lr=0.2'] and names_of('refused', 'r') == ['lr=0.2']


def test_other_seeds_at_the_same_time_stay_in_the_plan(folder):
    "Also those whose runs had not begun when another process came"
    works = []
    for seed in (0, 1):
        made = make_sweep('a', {}, dict(loss=[None, 'dcl']), seeds=seed)
        works.append(sweeping._Plan(made, [sweeping.plan_run(*run, Path('r')) for run in made.runs], Path('r')))
        works[-1].save()
    works[0].accept(works[0].sweep.settings[0])
    assert plan('r')['seeds'] == [0, 1] and names_of('runs', 'r') == ['loss=none', 'loss=dcl'] * 2


def test_a_search_without_a_whole_setting_names_no_best():
    work = object.__new__(Searching)
    work.sweep = SimpleNamespace(settings=[])
    assert work.result() == ''

# ---------------------------------------------------------------- in earnest


def outcome(folder):
    "What a sweep leaves, but for times and places"
    left = {}
    for path in sorted(Path(folder).glob('*/config.json')):
        c = config(path.parent)
        left[path.parent.name] = (c['state'], c['settings'], c['results'], history(path.parent))
    return plan(folder), left


def reported(run, folder):
    "What a report has of each run, but for times and places"
    assert run('report', folder, '-o', f'of-{folder}')[0] == 0
    with open(f'of-{folder}/runs.csv') as file: rows = list(csv.DictReader(file))
    return [{key: cell for key, cell in row.items() if key not in ('run', *TIMES) and 'seconds' not in key}
            for row in rows]


PIPES = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_sweep_that_was_killed_leaves_the_same(run, folder):
    "2 x 2 settings with 2 seeds, of which one can't be combined: the machine goes down in the middle of the third run"
    settings('[small]\ndata = digits\nsize = 16\nepochs = 2\nbatch_size = 256\ncontrols = no\n'
             '[sweep: s]\nbase = small\nseed = 0 1\nmethod =\n  simclr\n  moco_v2\nloss =\n  none\n  nt_xent\n')
    def make(out, **kwargs): return started('sweep', 's', '-o', out, cwd=folder, **PIPES, **kwargs)
    def end(process):
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, '')
        return out
    end(make('whole'))
    killed, broken = make('killed', start_new_session=True), Path('killed/method=moco_v2--loss=none--seed=0')
    last = time.monotonic() + 300
    try:
        while not history_rows(broken) and time.monotonic() < last: time.sleep(0.05)
    finally: os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and config(broken)['state'] == 'running'
    assert end(make('killed')).startswith('8 runs of 4 settings, in killed; 2 are finished\n')
    assert outcome('killed') == outcome('whole')
    plan_of_it, runs = outcome('whole')
    assert len(runs) == 6 and all(state == 'finished' for state, *_ in runs.values())
    refused, = plan_of_it['refused']
    assert refused['setting'] == 'method=moco_v2--loss=nt_xent' and 'has no use for Queue' in refused['reason']
    assert reported(run, 'killed') == reported(run, 'whole') and 'knn' in reported(run, 'whole')[0]
    assert refused['reason'] in Path('of-killed/table.md').read_text()


def test_a_sweep_in_earnest(run, folder, monkeypatch):
    "A program of its own trains; that which is refused is a fork, as to import all takes as long in either"
    image_folder(folder/'p', dict(a=8, b=8))
    settings('[sweep: s]\ndata = p\narch = test_resnet\nepochs = 1\nbatch_size = 4\ncontrols = no\n'
             'with =\n  none\n  partial\n')
    popen, forked = subprocess.Popen, []
    def start(command, env, **files):
        if '--with' not in command: return popen(command, env=env, **files)
        forked.append(Program(command[command.index('pretrain'):], folder, env, files=[files['stderr']] * 2))
        return forked[-1]
    monkeypatch.setattr(sweeping, 'subprocess', SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL))
    code, out, err = run('sweep', 's')
    refused, = plan('runs/s')['refused']
    assert (code, err, refused['setting']) == (0, '', 'with=partial') and 'PartialBackprop' in refused['reason']
    assert len(forked) == 1
    assert config('runs/s/with=none--seed=0')['state'] == 'finished' and f"refused: {refused['reason']}" in out
