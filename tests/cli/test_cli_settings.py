"What a run is made of: options, speedups as they are written, and named runs"
import configparser
import os
from pathlib import Path

import pytest
import torch
from helpers.cli import config, judged_knn
from helpers.folders import image_folder, picture

from fastcontrast.cli.settings import (Run, check_names, named_run, parse_loss, parse_method, parse_speedups,
                                       resolve)
from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import DCL, LOSSES, NTXent
from fastcontrast.recipes import METHODS
from fastcontrast.records import history_rows
from fastcontrast.speedups import SPEEDUPS

# ---------------------------------------------------------------- speedups


def test_parse_speedups():
    assert parse_speedups(None) == parse_speedups('') == []
    patches, levels, labels = parse_speedups(
        " comb_patches(m=1),\n intermediate(('layer2', 'layer3'), weights=[.5, 1]), suncet(weight=2)")
    classes = [SPEEDUPS[name] for name in ('comb_patches', 'intermediate', 'suncet')]
    assert [type(patches), type(levels), type(labels)] == classes
    assert repr(levels) == repr(SPEEDUPS['intermediate'](('layer2', 'layer3'), weights=[.5, 1])) and labels.weight == 2
    assert {type(parse_speedups(name)[0]) for name in SPEEDUPS} == set(SPEEDUPS.values())
    partial, = parse_speedups("partial(probs={'layer2': .25, 'final': .75}, stop_forward=False)")
    assert (partial.probs, partial.stop_forward) == ({'layer2': .25, 'final': .75}, False)


@pytest.mark.parametrize('text, words', [
    ('comb_patch', "unknown speedup 'comb_patch': did you mean comb_patches?"),
    ('suncet(wieght=1)', "unknown argument of suncet 'wieght': suncet takes weight=1.0, classes"),
    ('comb_patches, suncet(', "'comb_patches, suncet(' can't be read"),
    ('suncet weight=1', "can't be read"),
    ('suncet] + [suncet', "can't be read"),
    ('suncet(weight=print(1))', "'suncet(weight=print(1))' is neither a name nor a call with constants"),
    ('suncet(**{})', 'neither a name nor'),
    ('suncet(*[1])', 'neither a name nor'),
    ('"suncet"', 'neither a name nor'),
    ('os.remove("x")', 'neither a name nor'),
    ('-1', 'neither a name nor'),
    ('suncet(weight=-1)', 'weight=-1'),
    ('suncet(1, weight=1)', "multiple values for argument 'weight'"),
    ('partial(1, 2, 3, 4, 5, 6, 7)', 'too many positional'),
    ('intermediate(stages=3.5)', 'IntermediateLoss'),
    ('(' * 9999, "can't be read"),
    ('suncet(weight="a" "b")', "weight='ab'"),
    ('comb_patches(n=0)', 'n=0'),
])
def test_speedups_that_cannot_be(refused, folder, text, words):
    assert words in refused('pretrain', 'digits', '--with', text)
    assert not any(folder.iterdir())
    (folder/'settings.ini').write_text(f'[fast]\nspeedups = {text}\n')
    assert words in refused('pretrain', '--run', 'fast')


# ---------------------------------------------------------------- methods and losses

def test_a_method_is_a_name_or_a_call_of_fields():
    for name, make in METHODS.items(): assert parse_method(name) == parse_method(f'{name}()') == make()
    assert parse_method('byol', 'small') == METHODS['byol']('small')
    written = " moco_v2(memory=None,\n projector=(64, 32), opt_args=dict(momentum=.8)) "
    with pytest.raises(InputError, match='neither a name nor a call with constants'): parse_method(written)
    written = written.replace('dict(momentum=.8)', "{'momentum': .8}")
    changes = dict(memory=None, projector=(64, 32), opt_args=dict(momentum=.8))
    assert parse_method('fast(speedups=())').changes == dict(speedups=())
    assert parse_method(written, 'cifar') == METHODS['moco_v2']('cifar', **changes)


def test_a_loss_is_a_name_or_a_call():
    assert parse_loss(None) is None and {parse_loss(name) for name in LOSSES} == {*LOSSES}
    for text, loss in {'dcl(0.25)': DCL(.25), 'nt_xent(temp = .3)': NTXent(.3)}.items():
        assert repr(parse_loss(text)) == repr(loss) and type(parse_loss(text)) is type(loss)


@pytest.mark.parametrize('option, text, words', [
    ('method', 'mocov3(wd=1)', "unknown method 'mocov3': did you mean moco_v3"),
    ('method', 'moco_v3(wdd=1)', "unknown field of moco_v3() 'wdd': did you mean wd"),
    ('method', 'moco_v3(0.1)', 'write it as in moco_v3(wd=0.05)'),
    ('method', "moco_v3(setting='small')", 'has setting, for which there is an option: give --setting in its place'),
    ('method', 'moco_v3(lr=0.5)', 'give --lr in its place'), ('method', "byol(loss='dcl(0.2)')", 'give --loss in its'),
    ('method', "byol(speedups=('partial',))", 'give --with in its place'),
    ('method', 'byol(wd=1, wd=2)', 'byol is given wd twice: leave one out'),
    ('loss', 'dcl(temp=1, temp=2)', 'dcl is given temp twice: leave one out'),
    ('method', 'moco_v3(wd=', 'neither a name nor a call with constants, like moco_v3(wd=0.05)'),
    ('method', 'moco_v3(wd=2*3)', 'neither a name nor a call with constants'),
    ('method', 'moco_v3(wd=-1)', 'wd=-1 of moco_v3() must be a finite number'),
    ('method', 'moco_v3(projector=7)', 'projector=7 of moco_v3() must be the widths'),
    ('method', 'moco_v3(target=3)', '3 of moco_v3() is no Target'),
    ('loss', 'dcll(0.1)', "unknown loss 'dcll': did you mean dcl"),
    ('loss', 'dcl(temps=0.1)', "unknown argument of dcl 'temps': dcl takes temp=0.1"),
    ('loss', 'dcl(0.1, 2)', '--loss: dcl takes temp=0.1, and was given too many'),
    ('loss', 'dcl(-1)', 'temp=-1 must be a finite number above 0'),
    ('loss', 'dcl[0.1](', 'neither a name nor a call with constants, like dcl(0.1)'),
])
def test_methods_and_losses_that_cannot_be(refused, folder, option, text, words):
    assert words in refused('pretrain', 'digits', f'--{option}', text)


def test_a_run_of_a_method_with_other_values(run, folder):
    "They are in its record, in the name of a folder, and in what goes on with it"
    line = ['pretrain', 'digits', '--arch', 'test_resnet', '--batch-size', 64, '--size', 16, '--no-controls',
            '--epochs', 1, '--method', 'simclr(projector=(24, 8), wd=.125)', '--loss', 'dcl(.25)']
    assert run(*line)[0] == 0
    made, = Path('runs').iterdir()
    c = config(made)
    assert made.name == 'simclr-projector=-24+8+wd=0.125-test_resnet-digits'
    assert c['method'] == 'simclr(projector=(24, 8), wd=0.125)' and c['loss'] == 'DCL(temp=0.25)'
    assert (c['recipe']['name'], c['recipe']['projector'], c['recipe']['wd']) == ('simclr', [24, 8], .125)
    again = '--method', ' simclr( projector=(24,8), wd=125e-3 )'  # written otherwise
    assert run('pretrain', '--resume', made, '--epochs', 2, *again, '--loss', ' dcl(0.250)')[0] == 0
    assert config(made)['recipe'] == c['recipe'] and len(history_rows(made)) == 2


# ---------------------------------------------------------------- settings

def test_where_settings_come_from(folder):
    "From the weakest to the strongest: the defaults, what suits the digits, the shared ones, the run's, the options"
    (folder/'settings.ini').write_text('[DEFAULT]\nepochs = 3\nlr = .1\nvalid = .3\n'
                                       '[a]\nlr = .2\nvalid = others\nseed = none\n')
    given = dict(lr=None, size=64)
    assert resolve(given) == Run(arch='resnet10t', epochs=18, batch_size=64, size=64)
    assert resolve(given, 'a') == Run(arch='resnet10t', epochs=3, batch_size=64, size=64, lr=.2, valid='others')
    assert resolve(dict(data='p', lr=.4, valid='.5'), 'a') == Run(data='p', epochs=3, lr=.4, valid=.5)


def test_run_from_the_settings_file(run, folder):
    image_folder(folder/'p', dict(a=8, bb=8))
    (folder/'p.txt').write_text('a/001.png\nbb/002.png\n')
    (folder/'settings.ini').write_text(
        '[DEFAULT]\nseed = 3\narch = test_resnet\nlr = \n'
        '[quick]\ndata = p\nbatch_size = 4\nepochs = 2\nlabels = p.txt\nloss = dcl\nsmall_input = no\ncontrols = no\n'
        'method = moco_v3\naccumulate = 2\n'
        '[other]\nepochs = 7\n')
    code, out, err = run('pretrain', '--run', 'quick', '--epochs', 1, '--lr', .01)
    assert (code, err) == (0, '') and out.endswith('are in runs/quick\n')
    c = config('runs/quick')
    expected = dict(data='p', batch_size=4, epochs=1, seed=3, lr=.01, small_input=False, labels='p.txt',
                    method='moco_v3', arch='test_resnet', accumulate=2)
    assert {k: c[k] for k in expected} == expected
    assert c['loss'].startswith('DCL(') and list(c['results']) == ['trained encoder']


def test_with_is_speedups(folder):
    "The option is called --with: a run may use either name, and its own beats what all runs share"
    text = '[DEFAULT]\n{} = suncet\n[mine]\n{} = partial\n[shared]\nepochs = 1\n'
    for names in (('with', 'speedups'), ('speedups', 'with'), ('With', 'with')):
        (folder/'settings.ini').write_text(text.format(*names))
        assert named_run('mine') == dict(speedups='partial')
        assert named_run('shared') == dict(speedups='suncet', epochs=1)


@pytest.mark.parametrize('text, words', [
    ('[fast]\nepoch = 3\n', "unknown key 'epoch': did you mean epochs or head_epochs?"),
    ('[fast]\nbatch-size = 3\n', 'did you mean batch_size'),
    ('[fast]\nwiht = suncet\n', "unknown key 'wiht': did you mean with"),
    ('[fast]\nwith = suncet\nspeedups = suncet\n', 'already exists'),
    ('[fast]\nepochs = three\n', 'epochs = three is not a whole number'),
    ('[fast]\nlr = high\n', 'lr = high is not a number'),
    ('[fast]\nsmall_input = maybe\n', 'neither true nor false'),
    ('[fast]\nepochs = 0\n', '--epochs=0 must be a whole number of at least 1'),
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
    assert 'needs a settings.ini' in refused('pretrain', '--run', '')  # and is no wish for the defaults
    (folder/'settings.ini').mkdir()
    assert "can't be read" in refused('pretrain', '--run', 'fast')


def test_the_repositorys_own_runs_are_valid(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    ini = configparser.ConfigParser()
    ini.read('settings.ini')
    runs = [name for name in ini.sections() if not name.startswith('sweep:')]
    assert runs and len(runs) < len(ini.sections())
    made = set()
    for name in runs:
        run = resolve({}, name)
        check_names(run)
        choice = (run.arch, run.method, run.loss, run.speedups, run.size or 32)
        if choice in made: continue
        made.add(choice)
        side = run.size or 32
        data = [(torch.zeros(3, side, side, dtype=torch.uint8), i % 2) for i in range(4)]
        dls = image_dls(data, bs=4, valid=0, size=run.size, labels='all' if run.labels else None)
        contrastive_learner(dls, run.arch, parse_method(run.method), loss=parse_loss(run.loss),
                            cbs=parse_speedups(run.speedups))


def test_a_speedup_that_takes_any_argument_says_itself_what_it_refuses():
    "The command names the class that has the variants, too"
    with pytest.raises(InputError, match=r"write PatchVariants\(patches='sample'\)"):
        parse_speedups("comb_patches(patches='sample')")


def test_the_size_that_pictures_are_kept_at(run, refused, folder):
    "It reaches the data, is written down, is read from settings.ini, and a run goes on with it"
    for name in ('a', 'b'):
        (folder/'p'/name).mkdir(parents=True)
        for i in range(8): picture(i, (40, 40)).resize((60, 40)).save(folder/f'p/{name}/{i}.png')
    command = ('pretrain', 'p', '--arch', 'test_resnet', '--batch-size', 4, '--size', 24, '--no-controls')
    code, out, err = run(*command, '--epochs', 1, '--store-size', 30, '--out', 'r')
    assert (code, err) == (0, '') and 'pictures are kept whole, at 30 px of their short side: 0.1 MB\n' in out
    assert config('r')['settings']['store_size'] == 30
    again = refused(*command, '--epochs', 2, '--store-size', 28, '--out', 'r')
    assert 'begun with --store-size 30, and is now given 28' in again
    code, out, err = run('pretrain', '--resume', 'r', '--epochs', 2)
    assert code == 0 and 'at 30 px of their short side' in out
    assert run('eval', 'r', 'p', '-o', 'e.json')[0] == 0
    assert judged_knn('e.json') == config('r')['results']['trained encoder']['knn']
    (folder/'settings.ini').write_text('[kept]\ndata = p\narch = test_resnet\nepochs = 1\nbatch_size = 4\nsize = 24\n'
                                       'controls = no\nstore_size = 28\n')
    assert 'at 28 px of their short side' in run('pretrain', '--run', 'kept')[1]
    assert 'at 36 px of their short side' in run(*command, '--epochs', 1)[1]
    assert run('views', 'p', '-n', 2, '-o', 'v.png')[0] == 0
    for wrong in (1, 10**6): assert '--store-size' in refused(*command, '--store-size', wrong)
