"Reports: means, deviations and paired differences of runs, and what they are told with"
import csv
import json
import math
import os
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.odd import no_file
from helpers.refusals import said
from helpers.runs import run_folder
from safetensors.numpy import save_file
from scipy import stats

from fastcontrast.core import MissingPath
from fastcontrast.evaluate.ablation import column, is_clear, summary
from fastcontrast.evaluate.report import report
from fastcontrast.evaluate.report_page import page

KNN = dict(a=(.50, .52, .57), b=(.61, .60, .70), c=(.40, .55, .65)) # by setting and seed
DCL = dict(settings=dict(loss='dcl'))
PATCHES = dict(settings=dict(speedups='comb_patches'), speedups=['CombinePatches()'])


def runs(folder, name, values=KNN['a'], seeds=(0, 1, 2), settings=None, **record):
    "A run for each seed"
    return [run_folder(folder/f'{name}--seed={seed}', knn=(.1, .9 * value, value), few=value - .1, seconds=10 + seed,
                       settings=dict(settings or {}, seed=seed), **record) for seed, value in zip(seeds, values)]


@pytest.fixture
def three(tmp_path):
    "Three settings with three seeds"
    runs(tmp_path/'r', 'a', KNN['a'])
    runs(tmp_path/'r', 'b', KNN['b'], **DCL)
    runs(tmp_path/'r', 'c', KNN['c'], **PATCHES)
    return tmp_path/'r'


def row(made, setting, measure):
    table = made.table
    found, = table[(table.setting == setting) & (table.measure == measure)].itertuples()
    return found


# ---------------------------------------------------------------- numbers

def test_means_errors_and_differences_are_those_of_scipy(three):
    made = report(three)
    assert (made.base, made.why) == ('simclr', 'the first of 2 settings with the fewest speedups')
    assert [setting.name for setting in made.settings] == ['simclr', 'loss=dcl', '+ comb_patches']
    for setting, values in zip(made.settings, KNN.values()):
        for measure, shift in (('knn', 0), ('linear, 10 labels a class', -.1)):
            got, values_of = row(made, setting.name, measure), np.array(values) + shift
            assert got.mean == pytest.approx(statistics.fmean(values_of), rel=1e-12)
            assert got.std == pytest.approx(statistics.stdev(values_of), rel=1e-12) and got.n == 3
    for name, values in (('loss=dcl', KNN['b']), ('+ comb_patches', KNN['c'])):
        got, differences = row(made, name, 'knn'), np.subtract(values, KNN['a'])
        assert got.difference == pytest.approx(differences.mean(), rel=1e-12) and got.pairs == 3
        assert got.error == pytest.approx(stats.sem(differences), rel=1e-12)
        test = stats.ttest_rel(values, KNN['a'])
        assert got.difference / got.error == pytest.approx(test.statistic, rel=1e-9)
        assert is_clear(got) == (test.pvalue < .05)
    assert is_clear(row(made, 'loss=dcl', 'knn')) and not is_clear(row(made, '+ comb_patches', 'knn'))
    assert pd.isna(row(made, 'simclr', 'knn').difference) and pd.isna(row(made, 'simclr', 'knn').error)


def test_the_table_of_runs_gives_the_same(three, tmp_path):
    "By plain pandas, from the files"
    report(three, tmp_path/'out')
    each, table = pd.read_csv(tmp_path/'out/runs.csv'), pd.read_csv(tmp_path/'out/table.csv')
    measures = list(each.columns[3:])
    assert {'knn', 'linear, 10 labels a class', 'seconds', 'tflop', 'images_s', 'memory_mb', 'epochs_to', 'tflop_to',
            'seconds_to', 'total_seconds', 'train_loss', 'spread'} == {*measures}
    for key, how in (('mean', 'mean'), ('std', 'std'), ('n', 'count')):
        mine = table.pivot(index='setting', columns='measure', values=key)
        theirs = each.groupby('setting')[measures].agg(how)
        pd.testing.assert_frame_equal(mine[measures], theirs, check_names=False, check_dtype=False)
    seeds = each.set_index(['setting', 'seed'])[measures]
    for name in ('loss=dcl', '+ comb_patches'):
        differences = seeds.loc[name] - seeds.loc['simclr']
        own = table[table.setting == name].set_index('measure').loc[measures]
        np.testing.assert_allclose(own.difference, differences.mean(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(own.error, differences.sem(), rtol=1e-9, atol=1e-12)


def test_costs_to_what_the_control_has_at_its_end(tmp_path):
    "Of the same seed: kNN .8 and .6"
    def run(name, knn, seed, **kwargs): run_folder(tmp_path/'r'/name, knn, settings=dict(seed=seed), **kwargs)
    run('a0', (.5, .7, .8), 0, seconds=2., tflop=1.)
    run('a1', (.4, .5, .6), 1, seconds=2., tflop=1.)
    for seed, knn in enumerate(((.7, .75, .9), (.6, .7, .7))):
        run_folder(tmp_path/'r'/f'b{seed}', knn, seconds=3., tflop=4., settings=dict(seed=seed, loss='dcl'))
    run_folder(tmp_path/'r/c0', (.2, .3, .4), settings=dict(seed=0, loss='dclw'))
    run_folder(tmp_path/'r/c1', (.2, .3, .9), tflop=5., settings=dict(seed=1, loss='dclw'))
    made = report(tmp_path/'r')
    each = made.values.set_index(['setting', 'seed'])
    assert each.loc['simclr'].epochs_to.tolist() == [3, 3] and each.loc['loss=dcl'].epochs_to.tolist() == [3, 1]
    assert each.loc['loss=dcl'].tflop_to.tolist() == [12, 4] and each.loc['loss=dcl'].seconds_to.tolist() == [9, 3]
    missed = row(made, 'loss=dclw', 'tflop_to')
    assert (missed.mean, missed.n, missed.pairs) == (15, 1, 1) and pd.isna(missed.std) and pd.isna(missed.error)
    assert made.wide().loc['loss=dclw', "TFLOP to the control's kNN"] == '15.0 (+12.0) [1 of 2]'
    asked = report(tmp_path/'r', knn=.7)
    assert 'TFLOP to 70.0% kNN' in asked.wide() and 'Costs to 70.0% kNN are' in page(asked, {})
    assert 'Costs to the control' in page(made, {}) and 'Costs to the' not in page(asked, {})
    each = asked.values.set_index(['setting', 'seed'])
    assert each.loc['loss=dcl'].epochs_to.tolist() == [1, 2] and each.loc['simclr'].epochs_to.tolist()[0] == 2
    assert math.isnan(each.loc[('simclr', 1)].epochs_to)
    said(['knn=7'], report, tmp_path/'r', knn=7)


def test_one_seed_only(tmp_path):
    runs(tmp_path/'r', 'a', [.5], [0])
    runs(tmp_path/'r', 'b', [.6], [0], **DCL)
    made = report(tmp_path/'r', tmp_path/'out')
    got = row(made, 'loss=dcl', 'knn')
    assert (got.mean, got.n, got.pairs) == (.6, 1, 1) and got.difference == pytest.approx(.1)
    assert pd.isna(got.std) and pd.isna(got.error) and not is_clear(got)
    assert made.wide().loc['loss=dcl', 'kNN, %'] == '60.0 (+10.0)'
    assert any('one seed has neither a deviation nor an error' in note and 'simclr, loss=dcl' in note
               for note in made.notes)
    assert 'nan' not in (tmp_path/'out/index.html').read_text().lower().split('<script>')[0]


def test_one_setting_only(tmp_path):
    made = report(runs(tmp_path/'r', 'a'), tmp_path/'out')
    assert made.table.difference.isna().all() and len(made.differing) == 0
    assert (tmp_path/'out/curves.pdf').exists() and not (tmp_path/'out/differences.png').exists()


def test_seeds_that_only_one_of_two_has(tmp_path):
    runs(tmp_path/'r', 'a', KNN['a'], (0, 1, 2))
    runs(tmp_path/'r', 'b', (.6, .7, .9), (1, 2, 3), **DCL)
    runs(tmp_path/'r', 'c', (.3, .4), (7, 8), **PATCHES)
    made = report(tmp_path/'r')
    got, differences = row(made, 'loss=dcl', 'knn'), [.6 - .52, .7 - .57]
    assert got.pairs == 2 and got.n == 3 and got.mean == pytest.approx(2.2 / 3)
    assert got.difference == pytest.approx(np.mean(differences)) and got.error == pytest.approx(stats.sem(differences))
    assert ('loss=dcl has the seeds 1, 2, 3, and the control 0, 1, 2: they are compared by the seeds that both have '
            '(1, 2).') in made.notes
    got = row(made, '+ comb_patches', 'knn')
    assert got.pairs == 0 and pd.isna(got.difference) and any('no seed is common' in note for note in made.notes)


def test_runs_of_one_seed_count_once(tmp_path):
    runs(tmp_path/'r', 'a', (.5, .6), (0, 1))
    runs(tmp_path/'s', 'again', [.7], [1])
    made = report([tmp_path/'r', tmp_path/'s'])
    got = row(made, 'simclr', 'knn')
    assert got.n == 2 and got.mean == pytest.approx((.5 + .65) / 2)
    assert any('runs of one seed (1) count once' in note for note in made.notes)


def test_two_runs_of_a_seed_lack_no_number(tmp_path):
    "Seeds are counted, in the tables and on the page"
    runs(tmp_path/'r', 'a', (.5, .6), (0, 1))
    runs(tmp_path/'s', 'again', [.7], [1])
    made = report([tmp_path/'r', tmp_path/'s'], tmp_path/'out')
    assert made.wide().loc['simclr', 'runs'] == '3' and '[' not in ' '.join(made.wide().loc['simclr'])
    assert '</small>' not in (tmp_path/'out/index.html').read_text()


def test_numbers_that_are_none(tmp_path):
    "A run that diverged is missing from the means of what it has no number for, and that is said"
    runs(tmp_path/'r', 'a', (.5, .6, .7))
    runs(tmp_path/'r', 'b', (.5, math.nan, .7), **DCL)
    for seed in range(3):
        run_folder(tmp_path/'r'/f'c{seed}', (.5, math.nan, math.nan), few=math.inf,
                   settings=dict(seed=seed, loss='dclw'))
    made = report(tmp_path/'r', tmp_path/'out')
    got = row(made, 'loss=dcl', 'knn')
    assert (got.n, got.pairs, got.mean) == (2, 2, .6) and got.difference == pytest.approx(0)
    assert '[2 of 3]' in made.wide().loc['loss=dcl', 'kNN, %']
    assert any('kNN has no number in' in note and 'b--seed=1' in note for note in made.notes)
    assert row(made, 'loss=dclw', 'knn').n == 0 and made.wide().loc['loss=dclw', 'kNN, %'] == '–'
    assert 'Infinity' not in (tmp_path/'out/table.csv').read_text()


def test_summary_of_any_frame():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(dict(setting=['x'] * 5 + ['y'] * 5, seed=[*range(5)] * 2, value=rng.normal(size=10)))
    frame.loc[[2, 9], 'value'] = np.nan
    first, second = summary(frame, 'x').itertuples()
    x, y = frame.value[:5].to_numpy(), frame.value[5:].to_numpy()
    assert first.mean == pytest.approx(np.nanmean(x)) and first.std == pytest.approx(np.nanstd(x, ddof=1))
    pairs = (y - x)[[0, 1, 3]]
    assert (second.n, second.pairs) == (4, 3) and second.error == pytest.approx(stats.sem(pairs))
    assert second.difference == pytest.approx(pairs.mean())


def test_features_to_compare_with(three, tmp_path):
    "Those of the control's runs"
    made = report(three, tmp_path/'out')
    rows = {(row.setting, row.measure): (row.mean, row.n) for row in made.references.itertuples()}
    assert rows[('raw pixels', 'knn')] == (pytest.approx(.9), 3) and len(rows) == 4
    assert '<th scope="row">untrained encoder</th>' in (tmp_path/'out/index.html').read_text()
    assert not len(report(runs(tmp_path/'s', 'a', results=False)).references.columns)


# ---------------------------------------------------------------- settings and the control

def test_what_is_the_same_setting(tmp_path):
    "Seeds and what is the machine's are not: all else is, also what became of defaults"
    alike = (dict(), dict(workers=3), dict(processes=2, cache=True), dict(lr=.06), dict(log='tensorboard'))
    for seed, settings in enumerate(alike):
        run_folder(tmp_path/'r'/str(seed), settings=dict(settings, seed=seed), device=f'gpu {seed}')
    assert len(report(tmp_path/'r').settings) == 1
    run_folder(tmp_path/'r/8', settings=dict(lr=.07))
    run_folder(tmp_path/'r/9', recipe=dict(lr=.06, temp=.3))
    made = report(tmp_path/'r')
    assert [setting.name for setting in made.settings] == ['simclr', 'lr=0.07', 'recipe.temp=0.3']
    assert made.differing.loc['recipe.temp'].tolist() == ['0.2', '0.2', '0.3'] and 'data' not in made.differing.index
    assert any('several machines' in note for note in made.notes)


def test_names_of_settings(tmp_path):
    def run(n, **settings): run_folder(tmp_path/'r'/str(n), settings=settings)
    run(1, method='moco_v3', loss='dcl', speedups='regions, suncet(weight=1)')
    run(2, method='moco_v3', loss='dcl', speedups='suncet(weight=1)')
    run(3, method='moco_v3', speedups='regions, suncet(weight=2), x(a=(1, 2))', epochs=9)
    run(4, method='moco_v3', loss='dcl', speedups='regions, suncet(weight=1)', data='/far/away/flowers')
    names = [setting.name for setting in report(tmp_path/'r', base=tmp_path/'r/1').settings]
    assert names == ['moco_v3, dcl + regions + suncet(weight=1)', '− regions', 'loss=default, − suncet(weight=1), '
                     '+ suncet(weight=2), + x(a=(1, 2)), …', 'data=flowers']
    run_folder(tmp_path/'s/1')
    for n in range(3): run_folder(tmp_path/'s'/f'b{n}', versions={}, data='x', settings=dict(data=f'/{n}/flowers'))
    names = [setting.name for setting in report(tmp_path/'s').settings]
    assert names == ['simclr', 'data=flowers', 'data=flowers (2)', 'data=flowers (3)']


def test_speedups_that_a_method_brings_are_no_difference(tmp_path):
    "As fast() with labels brings SuNCEt, whether it is named or not"
    run_folder(tmp_path/'1', settings=dict(speedups='suncet'), speedups=['MultiView()', 'SuNCEt()'])
    run_folder(tmp_path/'2', settings=dict(epochs=9), epochs=9, speedups=['MultiView()', 'SuNCEt()'])
    run_folder(tmp_path/'3', speedups=['MultiView()'])
    assert [s.name for s in report(tmp_path, base=tmp_path/'1').settings] == ['simclr + suncet', 'epochs=9', '− suncet']


def test_which_setting_is_the_control(three):
    assert report(three, base='loss=dcl').base == 'simclr, dcl'
    assert report(three, base=three/'b--seed=1').base == report(three, base='b').base == 'simclr, dcl'
    assert report(three, base='+ comb_patches').base == 'simclr + comb_patches'
    made = report(three, base='+ comb_patches')
    assert made.why == 'as it was asked for' and '− comb_patches' in [setting.name for setting in made.settings]
    assert row(made, '− comb_patches', 'knn').difference == pytest.approx(np.mean(KNN['a']) - np.mean(KNN['c']))
    said(['base d is neither', 'there are'], report, three, base='d')
    chosen = report([three/f'{name}--seed={seed}' for name in 'cb' for seed in range(3)])
    assert (chosen.base, chosen.why) == ('simclr, dcl', 'the setting with the fewest speedups')


def test_a_fine_tuning_belongs_to_the_setting_of_its_encoder(tmp_path):
    for seed, run in enumerate(runs(tmp_path/'r', 'a') + runs(tmp_path/'r', 'b', **DCL)):
        settings = dict(encoder=str(run/'encoder.safetensors'), data='digits', labels=str(run/'labeled.txt'),
                        protocol='full', seed=seed % 3, method=None)
        tuned = run_folder(tmp_path/'t'/run.name, settings=settings, verb='finetune', recipe=None, method=None,
                           results=None, protocol='full')
        record = json.loads((tuned/'config.json').read_text())
        record['results'] = dict(classifier=dict(accuracy=.8 + seed / 100))
        (tuned/'config.json').write_text(json.dumps(record))
    made = report(tmp_path/'t')
    assert [setting.name for setting in made.settings] == ['full', 'encoder.loss=dcl']
    assert row(made, 'full', 'accuracy').mean == pytest.approx(.81)
    assert row(made, 'encoder.loss=dcl', 'accuracy').pairs == 3
    mixed = [note for folder in (tmp_path/'t', tmp_path) for note in report(folder).notes if 'fine-tunings' in note]
    assert len(mixed) == 1 and mixed[0].endswith('report each kind by itself.')


def test_what_eval_has_written_beside_runs_has_columns(three):
    for i, run in enumerate(sorted(three.iterdir())):
        scores = {'linear, 1% of the labels': dict(mean=.3 + i / 100), 'RankMe': dict(mean=20. + i)}
        (run/'eval.json').write_text(json.dumps(dict(encoders={run.name: scores, 'pixels': {}})))
    (three/'a--seed=0/eval.json').write_text('[')
    made = report(three)
    assert row(made, 'loss=dcl', 'eval: linear, 1% of the labels').mean == pytest.approx(.34)
    assert row(made, 'simclr', 'eval: RankMe').n == 2 and column('eval: linear, 1% of the labels').share
    assert not column('eval: RankMe').share and not column('rankme').share


def judged(run, **about):
    "What `eval` has written beside a run"
    (run/'eval.json').write_text(json.dumps(dict(about, encoders={run.name: {'RankMe': dict(mean=20.)}})))


def test_what_eval_has_written_of_another_encoder_is_left_out(three):
    "As of before a run went on: of a pretraining, or of a fine-tuning, whose encoder lies in a folder of its own"
    files = ['encoder.safetensors', 'classifier/model.safetensors', 'encoder.safetensors']
    for file, digest, run in zip(files, ('new', 'new', 'old'), sorted(three.glob('a--*'))):
        judged(run, encoder_sha256='old')
        (run/file).parent.mkdir(exist_ok=True)
        save_file(dict(x=np.zeros(1)), run/file, dict(sha256=digest))
    for run in three.glob('b--*'): judged(run, encoder_sha256='old')  # whose encoder is gone
    made = report(three)
    assert row(made, 'simclr', 'eval: RankMe').n == 1 and row(made, 'loss=dcl', 'eval: RankMe').n == 3
    note, = (note for note in made.notes if 'eval.json' in note)
    assert note.startswith("eval.json is of another encoder than the run's") and 'a--seed=0, a--seed=1 again' in note


def test_what_eval_has_written_by_other_pictures_is_said(three):
    "A name and the path of the same pictures are alike"
    for i, run in enumerate(sorted(three.glob('a--*'))):
        judged(run, data='/x/p' if i else 'p', n_train=80, n_valid=30 if i == 2 else 20)
    note, = (note for note in report(three).notes if 'eval.json' in note)
    assert 'by other pictures in a--seed=2 than in a--seed=0' in note and 'to judge by 30, not 20' in note


# ---------------------------------------------------------------- what does not count

def test_runs_that_do_not_count(three, tmp_path):
    "Are listed, and in no mean"
    states = dict(interrupted='interrupted by SIGTERM', failed='out of memory', stopped='the loss is not finite')
    for (state, reason), run in zip(states.items(), sorted(three.glob('c--*'))):
        record = json.loads((run/'config.json').read_text()) | dict(state=state, reason=reason)
        (run/'config.json').write_text(json.dumps(record))
    (three/'b--seed=0/config.json').write_text('{')
    run_folder(three/'d', state='running', settings=dict(loss='dclw'))  # whose process is gone
    made = report(three, tmp_path/'out')
    assert made.counts == '5 finished runs of 4 settings, 3 seeds'
    listed = {Path(name).name: (state, reason) for name, state, reason in made.uncounted}
    assert listed.pop('b--seed=0')[0] == 'broken' and listed.pop('d') == ('killed', '')
    assert listed == {f'c--seed={seed}': pair for seed, pair in enumerate(states.items())}
    assert row(made, 'loss=dcl', 'knn').n == 2 and row(made, 'loss=dcl', 'knn').pairs == 2
    assert '+ comb_patches' not in set(made.table.setting)
    assert made.wide().loc['+ comb_patches', 'runs'] == '0 of 3'
    assert 'runs in no mean: ' in made.notes[-1] and '1 killed' in made.notes[-1] and '1 broken' in made.notes[-1]
    page = (tmp_path/'out/index.html').read_text()
    for words in (*states, *states.values(), 'killed', 'broken', '0 of 3', 'be read: Expecting'): assert words in page


def test_nothing_to_report(three, tmp_path):
    (tmp_path/'empty').mkdir()
    said(['no run in', 'empty'], report, tmp_path/'empty')
    said(['no folder was given'], report, [])
    with pytest.raises(MissingPath, match='no folder'): report(tmp_path/'none')
    with pytest.raises(MissingPath, match='no folder'): report(three/'a--seed=0/config.json')
    (tmp_path/'t').mkdir()
    (tmp_path/'t/history.csv').write_text('epoch,train_loss,knn\n0,1,.5\n')
    said(['no run in'], report, tmp_path/'t')
    run_folder(tmp_path/'s/a', state='interrupted')
    said(['no run in', 'is finished (1 interrupted)', 'fastcontrast runs'], report, tmp_path/'s', out=tmp_path/'out')
    assert not (tmp_path/'out').exists()
    for columns in (['kn'], 'kn'): said(["unknown column 'kn': did you mean"], report, three, columns=columns)
    for wrong in (None, 5, [None], [three, 5]): said(['folders=', 'must be a text, or a list of such'], report, wrong)
    said(['columns=5 must be a text'], report, three, columns=5)
    (tmp_path/'file').write_text('')
    said(["the report can't be written to"], report, three, out=tmp_path/'file')


def test_runs_without_labels(tmp_path):
    "There is no accuracy to draw; costs are known"
    for seed in range(2): run_folder(tmp_path/'r'/str(seed), (None, None), results=None, settings=dict(seed=seed))
    made = report(tmp_path/'r', tmp_path/'out')
    assert 'knn' not in made.measures and row(made, 'simclr', 'tflop').mean == 4
    assert not (tmp_path/'out/curves.png').exists() and (tmp_path/'out/index.html').exists()


@pytest.mark.parametrize('history', ['', 'epoch,train_loss\n', 'epoch,train_loss,knn\n0,oops,.5\n', '\xff', None])
def test_a_history_that_is_none(three, tmp_path, history):
    file = three/'b--seed=1/history.csv'
    file.unlink()
    if history is None: no_file(file, 'pipe')
    else: file.write_bytes(history.encode('latin-1'))
    made = report(three, tmp_path/'out')
    assert row(made, 'loss=dcl', 'knn').n == 3 and row(made, 'loss=dcl', 'epochs_to').n == 2


def test_runs_on_other_pictures(three):
    run_folder(three/'d', settings=dict(loss='dclw', data='/p/flowers'), n_valid=20)
    made = report(three)
    assert any(note.startswith("loss=dclw, data=flowers has other pictures than the control") or
               note.startswith("data=flowers, loss=dclw has other pictures than the control") for note in made.notes)


# ---------------------------------------------------------------- sweeps

def sweep(folder, control='c', **said):
    runs = [dict(run=f'{name}--seed={seed}', setting=name, seed=seed, differs=dict(loss='dcl' if name == 'b' else None))
            for seed in range(3) for name in 'cbad']
    content = dict(name='x', base='digits', mode='grid', axes=dict(loss=[None, 'dcl', 'swav']), control=control,
                   seeds=[0, 1, 2], runs=runs, refused=[])
    (folder/'sweep.json').write_text(json.dumps(content | said))


def test_a_sweep_says_what_is_the_control_and_what_was_refused(three, tmp_path):
    refused = dict(setting='d', differs=dict(loss='swav'), reason='SwAVLoss <needs> prototypes.')
    sweep(three, refused=[refused])
    made = report(three, tmp_path/'out')
    assert (made.base, made.why) == ('simclr + comb_patches', 'the control of the sweep')
    assert [setting.name for setting in made.settings][1:] == ['− comb_patches, loss=dcl', '− comb_patches']
    assert made.refused == [('loss=swav', 'SwAVLoss <needs> prototypes.')] and not made.missing
    assert made.wide().iloc[-1].tolist() == ['refused', *['–'] * (made.wide().shape[1] - 1)]
    rows = list(csv.DictReader((tmp_path/'out/table.csv').open()))
    assert rows[-1]['setting'] == 'loss=swav' and rows[-1]['refused'] == 'SwAVLoss <needs> prototypes.'
    assert not any(row['refused'] for row in rows[:-1])
    for file in ('table.md', 'table.tex', 'index.html'): assert 'loss=swav' in (tmp_path/'out'/file).read_text()
    assert 'SwAVLoss &lt;needs&gt; prototypes.' in (tmp_path/'out/index.html').read_text()
    assert report(three, base='a').base == 'simclr'


def test_runs_of_a_sweep_that_have_not_begun(three):
    sweep(three)
    made = report(three)
    assert [Path(name).name for name, state, _ in made.uncounted if state == 'not begun'] == [
        f'd--seed={seed}' for seed in range(3)]
    assert made.notes[-1] == 'runs in no mean: 3 not begun.'


@pytest.mark.parametrize('content', ['{', '[]', '{}', '5', '{"control": "c", "axes": {}, "runs": [5], "refused": []}'])
def test_a_sweep_that_can_t_be_read(three, content):
    (three/'sweep.json').write_text(content)
    said(["sweep.json can't be read"], report, three)


def test_axes_of_a_sweep_may_be_anything(three):
    (three/'sweep.json').write_text('{"control": "c", "axes": [["x"]], "runs": [], "refused": []}')
    assert report(three).settings


def test_pictures_of_all_runs_of_a_setting_are_compared(tmp_path):
    for name, loss, seed, n in [('a0', None, 0, 100), ('a1', None, 1, 50), ('b0', 'dcl', 0, 100), ('b1', 'dcl', 1, 50)]:
        run_folder(tmp_path/name, settings=dict(seed=seed, loss=loss), n_train=n)
    notes = '\n'.join(report(tmp_path).notes)
    assert 'runs of the control have other pictures than its first' in notes
    assert 'loss=dcl has other pictures than the control' in notes
    assert notes.count('pictures to train on 50, not 100') == 2


def test_nobody_elses_file_gives_way(three, tmp_path):
    out = tmp_path/'own'
    out.mkdir()
    for name in ('index.html', 'curves.pdf', 'differences.png', 'table.csv'):
        (out/name).write_text('mine')
        said([name, "no earlier report's", 'another folder'], report, three, out)
        assert [file.name for file in out.iterdir()] == [name] and (out/name).read_text() == 'mine'
        (out/name).unlink()
    (out/'notes.txt').write_text('mine')
    for _ in range(2): report(three, out)
    assert (out/'notes.txt').read_text() == 'mine'


def test_what_a_sweep_varies_tells_runs_apart(tmp_path):
    "Also the machine's settings"
    for workers in (1, 2): run_folder(tmp_path/'r'/str(workers), settings=dict(workers=workers))
    assert len(report(tmp_path/'r').settings) == 1
    sweep(tmp_path/'r', axes=dict(workers=[1, 2]))
    assert [setting.name for setting in report(tmp_path/'r').settings] == ['simclr', 'workers=2']


# ---------------------------------------------------------------- files

ODD = '<img src=x onerror=alert(1)>"\'&amp;--></script><script>document.title="!"</script>\x1b[31m|$a_b$%\\'


@pytest.mark.filterwarnings('error')
def test_names_are_shown_and_not_obeyed(tmp_path):
    folder = tmp_path/os.fsdecode(b'r\xff')
    runs(folder, 'a')
    for seed in range(3):
        run_folder(folder/f'<b>&{seed}', settings=dict(loss=ODD, seed=seed), loss=ODD, notes=[ODD], device=ODD,
                   versions={ODD: ODD}, reason=ODD)
    run_folder(folder/'d', settings=dict(data='/p/\udcff'))
    run_folder(folder/os.fsdecode(b'\xfe\n<i>'), state=f'failed: {ODD}', reason=ODD, settings=dict(loss=ODD))
    made = report(folder, tmp_path/'out', base='a')
    page = (tmp_path/'out/index.html').read_text()
    assert page.count('<script') == 1 and '<img' not in page and '<b>' not in page and '<i>' not in page
    assert '\x1b' not in page and '\\x1b[31m' in page and 'r\\xff' in page and '\\xfe\\n&lt;i&gt;' in page
    assert '&lt;img src=x onerror=alert(1)&gt;' in page and made.settings[1].name.startswith('loss=<img')
    lines = (tmp_path/'out/table.md').read_text().splitlines()
    assert len({line.count('|') for line in lines[:4]}) == 1 and '<img' not in ''.join(lines)
    tex = (tmp_path/'out/table.tex').read_text().split('\\end{tabular}')[0]
    assert r'\textless{}img src=x' in tex and r'\$a\_b\$\%\textbackslash{}' in tex and '<' not in tex
    assert tex.count('\\\\\n') == 4
    assert pd.read_csv(tmp_path/'out/table.csv').setting.nunique() == 3


def test_the_folder(three, tmp_path):
    files = 'index.html table.csv runs.csv table.md table.tex curves.png curves.pdf differences.png differences.pdf'
    report(three, tmp_path/'new/out')
    out = tmp_path/'new/out'
    assert {file.name for file in out.iterdir()} == set(files.split())
    assert (out/'curves.pdf').read_bytes()[:5] == b'%PDF-' and (out/'differences.png').read_bytes()[:4] == b'\x89PNG'
    page = (out/'index.html').read_text()
    report(three, out)
    assert (out/'index.html').read_text() == page, "the same runs make the same page"
    (out/'mine.txt').write_text('')
    report(sorted(three.glob('a--*')), out)
    left = {file.name for file in out.iterdir()}
    assert 'differences.png' not in left and 'mine.txt' in left, "no figure of an earlier report stays"
    lines = (out/'table.md').read_text().splitlines()
    assert lines[0].startswith('| setting | runs | kNN, % |') and lines[2].startswith('| simclr | 3 | 53.0 ± 3.6 |')
    tex = (out/'table.tex').read_text()
    assert r'\usepackage{booktabs}' in tex
    for text in ('\n'.join(lines), tex): assert 'standard deviation over seeds; in parentheses' in text


def test_a_report_shows_its_table(three):
    made = report(three)
    assert repr(made).startswith(f'{made.counts}; the control is simclr') and '53.0 ± 3.6' in repr(made)
    assert made._repr_markdown_().startswith('| setting | runs | kNN, % |') and 'identity' not in repr(made)


def test_columns_of_the_tables_to_read(three, tmp_path):
    made = report(three, tmp_path/'out', columns=['tflop', 'knn'])
    assert made.wide().columns.tolist() == ['runs', 'TFLOP', 'kNN, %']
    assert (tmp_path/'out/table.tex').read_text().startswith('\\begin{tabular}{lrrr}')
    assert (tmp_path/'out/table.md').read_text().startswith('| setting | runs | TFLOP | kNN, % |\n')


def test_views_are_in_the_page_made_small(three, tmp_path):
    from PIL import Image
    Image.effect_noise((3000, 1500), 90).convert('RGB').save(three/'a--seed=1/views.png')
    (three/'b--seed=0/views.png').write_bytes(b'no picture')
    no_file(three/'b--seed=1/views.png', 'pipe')
    report(three, tmp_path/'out')
    page = (tmp_path/'out/index.html').read_text()
    assert page.count('src="data:image/jpeg;base64,') == 1 and len(page) < 500_000


def test_a_page_fetches_nothing(three, tmp_path):
    report(three, tmp_path/'out')
    page = (tmp_path/'out/index.html').read_text()
    links = page.replace('http://www.w3.org/', '')  # the names of SVG's
    assert '://' not in links and ' src=' not in links and 'url(' not in links.replace('url(#', '')
    assert "default-src 'none'" in page
    assert page.count('<svg') == 2 and 'name="viewport"' in page and 'prefers-color-scheme: dark' in page
