"Curves of a run, and of runs side by side"
import json
import math
import shutil

import pytest

from fastcontrast.core import InputError, MissingPath
from fastcontrast.evaluate import METRICS
from fastcontrast.evaluate.plots import compare_runs, draw_curves, joined, plot_history, reached, read_history

HISTORY = "epoch,train_loss,knn,lr,time\n0,5.5,,0.1,00:12\n1,4.5,0.5,0.2,00:12\n2,4.0,,0.1,00:12\n"


def test_plot_of_a_csv(tmp_path):
    (tmp_path / 'history.csv').write_text(HISTORY)
    figure = plot_history(tmp_path / 'history.csv', tmp_path / 'curves.png')
    lines = {a.get_title(): a.lines[0].get_xydata().tolist() for a in figure.axes}
    assert lines == {'training loss': [[1, 5.5], [2, 4.5], [3, 4]], 'kNN accuracy': [[2, .5]],
                     'learning rate': [[1, .1], [2, .2], [3, .1]]}, "epochs are counted as compare does"
    assert all(a.get_xlabel() == 'epoch' and a.lines[0].get_marker() == 'o' for a in figure.axes)
    assert (tmp_path / 'curves.png').read_bytes()[:4] == b'\x89PNG'


def test_plot_of_rows_and_of_a_diverged_run():
    rows = [dict(epoch=e, train_loss=1 / (e + 1) if e < 30 else math.nan, spread=.1) for e in range(40)]
    figure = plot_history(rows)
    assert [len(a.lines[0].get_xdata()) for a in figure.axes] == [30, 40]
    assert figure.axes[0].lines[0].get_marker() in (None, 'None')


@pytest.mark.parametrize('rows', [1, 19, 20])
def test_lines_of_few_epochs_have_points(rows):
    line, = plot_history([dict(epoch=e, train_loss=1.) for e in range(rows)]).axes[0].lines
    assert (line.get_marker() == 'o') == (rows < 20)


def test_accuracy_is_drawn_against_what_a_run_has_taken():
    def row(e): return dict(epoch=e, train_loss=2., knn=.6, spread=.1, lr=.1, seconds=2. + e, tflop=.5 + e, note='x')
    rows = [row(e) for e in range(3)]
    drawn = [(a.get_title(), a.get_xlabel(), a.lines[0].get_xdata().tolist()) for a in plot_history(rows).axes]
    epochs = [1, 2, 3]
    assert drawn == [('training loss', 'epoch', epochs), ('kNN accuracy', 'epoch', epochs),
                     ('kNN accuracy', 'seconds of training', [2, 3, 4]), ('kNN accuracy', 'TFLOP', [.5, 1.5, 2.5]),
                     ('spread of features', 'epoch', epochs), ('learning rate', 'epoch', epochs)]


def test_every_metric_is_drawn(monkeypatch):
    monkeypatch.setitem(METRICS, 'sharpness', lambda h: 0.)
    rows = [dict(epoch=e, train_loss=2., sharpness=3., spread=.1, rankme='', dullness=1.) for e in range(3)]
    axes = plot_history(rows).axes
    assert [a.get_title() for a in axes] == ['training loss', 'spread of features', 'sharpness']
    assert axes[1].get_ylim()[0] <= 0 and axes[1].get_ylim()[1] > .1, "how near to a collapse"
    assert list(read_history(rows)) == ['epoch', 'train_loss', 'spread']


@pytest.mark.parametrize('spreads', [[.1, .05, 0.], [0., 0., 0.], [.04, .04, .04], [1e-9, 2e-9, 1e-9]])
def test_the_line_of_the_spread_is_whole(spreads):
    axis = plot_history([dict(epoch=e, train_loss=1., spread=s) for e, s in enumerate(spreads)]).axes[1]
    line, zero = axis.lines
    low, high = axis.get_ylim()
    assert low < 0 and high > max(spreads) and line.get_ydata().tolist() == spreads
    assert zero.get_zorder() < line.get_zorder(), "a collapse lies on the line of 0, and is seen there"


def test_the_figure_of_a_run_has_its_name_and_its_controls(tmp_path):
    controls = {'raw pixels': dict(knn=.95, few_labels=.8), 'untrained encoder': dict(knn=.8)}
    results = controls | {'trained encoder': dict(knn=.99), 'classifier': dict(accuracy=.5)}
    run = history(tmp_path/'_a$b$c', [.4, .7], config=dict(results=results))
    figure = plot_history(run/'history.csv', tmp_path/'c.png')
    assert figure.get_suptitle() == '_a$b$c' and not figure._suptitle.get_parse_math()
    for axis in figure.axes:
        lines = {line.get_label(): line.get_ydata()[0] for line in axis.lines[1:]}
        drawn = controls if 'kNN' in axis.get_title() else {}
        assert lines == {name: result['knn'] for name, result in drawn.items()}
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == list(controls)


@pytest.mark.parametrize('config', [None, '[', '[]', dict(results=None), dict(results=[1]), dict(results=dict(a=1)),
                                    dict(results=dict(a=dict(knn='x')))])
def test_a_folder_without_controls_has_none_drawn(tmp_path, config):
    run = history(tmp_path/'run', [.4, .7], config=config)
    figure = plot_history(run/'history.csv')
    assert figure.get_suptitle() == 'run' and [len(axis.lines) for axis in figure.axes] == [1] * len(figure.axes)


def test_a_loss_that_was_given_values_is_written_with_them(tmp_path):
    for name, given in dict(a=None, b='dcl', c='dcl(0.5)').items():
        said = dict(method='byol', loss='DCL(temp=0.5)', settings=dict(loss=given), state='finished')
        history(tmp_path/name, [.4, .7], config=said)
    _, rows = compare_runs([tmp_path/name for name in 'abc'])
    assert [row['setup'] for row in rows] == ['byol, DCL', 'byol, DCL', 'byol, dcl(0.5)']


def test_rows_have_no_name():
    assert plot_history([dict(epoch=0, train_loss=1.)]).get_suptitle() == ''


def test_plot_refuses(tmp_path):
    def refused(match, history, path=None):
        with pytest.raises(InputError, match=match):
            plot_history(history, path)
    csv = tmp_path / 'history.csv'
    with pytest.raises(MissingPath, match='no file'):
        plot_history(csv)
    csv.write_text('epoch,train_loss\n')
    refused('no rows', csv)
    csv.write_text('a,b\n1,2\n')
    refused("no column 'epoch'", csv)
    csv.write_text('epoch,train_loss\n0,oops\n')
    refused('not a number', csv)
    csv.write_bytes(b'\xff\xfe\x00\x01')
    refused('cannot be read', csv)
    rows = [dict(epoch=0, train_loss=1.)]
    refused('cannot be saved', rows, csv / 'a.png')
    refused('cannot be saved', rows, tmp_path / 'a.nonsense')


# runs side by side

def history(folder, knn, seconds=2., tflop=3., config=None):
    "The folder of a run; None in `knn` where an epoch was not judged"
    folder.mkdir()
    cost = [f'{seconds * (e + 1)},{tflop * (e + 1)}' for e in range(len(knn))] if seconds else [','] * len(knn)
    lines = [f"{e},{5 - e / 10},{'' if v is None else v},{c}" for e, (v, c) in enumerate(zip(knn, cost))]
    (folder/'history.csv').write_text('\n'.join(['epoch,train_loss,knn,seconds,tflop', *lines]))
    if config is not None: (folder/'config.json').write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


@pytest.fixture
def runs(tmp_path):
    base = dict(method='moco_v3', loss='DCL(temp=0.1)', state='finished')
    other = dict(method='simclr', loss='InfoNCE(0.1)', speedups=['A(2)', 'B()'], state='stopped: too hot')
    return [history(tmp_path/'base', [.3, .5, .7, .6], config=base),
            history(tmp_path/'_a$b$c', [.4, None, .65, .8, .9], 4, 1, other),
            history(tmp_path/'old', [.1, .2], None, config='[')]


def test_rows_of_runs(runs):
    figure, rows = compare_runs(runs)
    assert rows[0] == dict(run='base', setup='moco_v3, DCL', state='finished', runs=1, left_out=[], epochs=4,
                           knn=.6, knn_std=None, best=.7, target=.6, epochs_to=3, tflop_to=9, seconds_to=6)
    assert rows[1] == dict(run='_a$b$c', setup='simclr, InfoNCE + A(2) + B()', state='stopped', runs=1,
                           left_out=[], epochs=5, knn=.9, knn_std=None, best=.9, target=.6, epochs_to=3,
                           tflop_to=3, seconds_to=12)
    assert rows[2] == dict(run='old', setup='', state='', runs=1, left_out=[], epochs=2, knn=.2, knn_std=None,
                           best=.2, target=.6, epochs_to=None, tflop_to=None, seconds_to=None)
    rows = compare_runs(runs, target=.2)[1]
    assert [row['epochs_to'] for row in rows] == [1, 1, 2] and rows[2]['tflop_to'] is None


@pytest.mark.parametrize('before', [float('inf'), float('nan')])
def test_a_number_that_is_none_reaches_nothing(before):
    assert reached(dict(knn=[before, .7], seconds=[1, 2]), .6) == dict(epochs_to=2, tflop_to=None, seconds_to=2)


@pytest.mark.filterwarnings('error')
def test_picture_of_runs(runs, tmp_path):
    figure, _ = compare_runs(runs, tmp_path/'c.png')
    assert (tmp_path/'c.png').read_bytes()[:4] == b'\x89PNG'
    epochs, seconds, tflop = figure.axes
    assert [a.get_xlabel() for a in figure.axes] == ['epochs', 'seconds of training', 'TFLOP']
    assert epochs.lines[0].get_xydata().tolist() == [[1, .3], [2, .5], [3, .7], [4, .6]]
    assert seconds.lines[1].get_xydata().tolist() == [[4, .4], [12, .65], [16, .8], [20, .9]]
    assert len(tflop.lines) == 3, "two runs and the line to reach"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ['base', '_a$b$c', 'old']
    colours = [[line.get_color() for line in a.lines[:2]] for a in figure.axes]
    assert colours[0] == colours[1] == colours[2]


def test_runs_of_one_name(tmp_path):
    for d in 'ab': (tmp_path/d).mkdir()
    rows = compare_runs([history(tmp_path/d/'run', [.5]) for d in 'ab'])[1]
    assert [r['run'] for r in rows] == [str(tmp_path/d/'run') for d in 'ab']


def test_a_folder_of_runs_is_their_mean(runs, tmp_path):
    (tmp_path/'many').mkdir()
    said = dict(method='moco_v3', loss='DCL', state='finished')
    for seed, knn in enumerate(([.2, .4, .6], [.4, .6, None, .9], [.6, .8, .9])):
        history(tmp_path/'many'/str(seed), knn, 1 + seed, 2, dict(said, seed=seed))
    figure, rows = compare_runs([tmp_path/'many', runs[0]], target=.6)
    row = rows[0]
    assert (row['run'], row['runs'], row['state'], row['epochs']) == ('many', 3, 'finished', 3)
    assert row['knn'] == pytest.approx(.6) and row['knn_std'] == pytest.approx(.2), "of the last epoch that all have"
    assert (row['epochs_to'], row['tflop_to'], row['seconds_to']) == (2, 4, 4)
    band, = figure.axes[0].collections
    assert band.get_paths()[0].get_extents().bounds == pytest.approx((1, .2, 1, .6))
    assert compare_runs([runs[0], tmp_path/'many'])[1][1]['knn_std'] == pytest.approx(.2)
    other = dict(said, seed=3, method='simclr')
    history(tmp_path/'many/3', [.5], config=other)
    with pytest.raises(InputError, match='differ in more than their seeds'): compare_runs([tmp_path/'many', runs[0]])
    history(tmp_path/'many/4', [None, .5], config=said)
    for n in (1, 2, 3): (tmp_path/f'many/{n}').rename(tmp_path/f'{n}')
    history(tmp_path/'many/5', [.5], config=said)
    with pytest.raises(InputError, match='no epoch in common'): compare_runs([tmp_path/'many', runs[0]])


def test_runs_of_a_folder_that_are_not_finished_are_left_out(runs, tmp_path):
    "One at its first epoch would make the mean one epoch long; where none is finished all are taken"
    (tmp_path/'many').mkdir()
    said = dict(method='moco_v3', loss='DCL')
    for seed, (knn, state) in enumerate([([.2, .4, .6], 'finished'), ([.4, .6, .8], 'finished'), ([.1], 'running')]):
        history(tmp_path/'many'/str(seed), knn, config=dict(said, seed=seed, state=state))
    row = compare_runs([tmp_path/'many', runs[0]])[1][0]
    assert (row['runs'], row['state'], row['epochs'], row['left_out']) == (2, 'finished', 3, ['2 (killed)'])
    assert row['target'] == row['knn'] == pytest.approx(.7)
    for seed in '01': shutil.rmtree(tmp_path/'many'/seed)
    row = compare_runs([tmp_path/'many', runs[0]])[1][0]
    assert (row['runs'], row['state'], row['epochs'], row['left_out']) == (1, 'killed', 1, [])


def test_joined():
    assert joined([dict(epoch=[1, 2], knn=[.5, .7], tflop=[1, 2])]) == dict(epoch=[1, 2], knn=[.5, .7], tflop=[1, 2])
    got = joined([dict(epoch=[1., 2.], knn=[.5, .7], tflop=[1., 2.]), dict(epoch=[1., 2., 3.], knn=[.7, .7, .8])])
    assert got['epoch'] == [1, 2] and got['knn'] == pytest.approx([.6, .7]) and 'tflop' not in got
    assert got['knn_std'] == pytest.approx([.02 ** .5, 0])


def test_more_curves_than_colours():
    runs = [dict(epoch=[1, 2], knn=[.1, i / 20]) for i in range(12)]
    lines = draw_curves(runs, [f'{i}' for i in range(12)]).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12


def test_runs_that_cannot_be_compared(runs, tmp_path):
    def refused(error, match, folders, **kwargs):
        with pytest.raises(error, match=match): compare_runs(folders, **kwargs)
    refused(InputError, r'one run was given.* fastcontrast report\.$', runs[:1])
    refused(InputError, 'no run was given', [])
    refused(MissingPath, "no folder '.*nowhere'", [*runs, tmp_path/'nowhere'])
    refused(MissingPath, "no folder '.*history.csv'", [runs[0], runs[1]/'history.csv'])
    (tmp_path/'empty').mkdir()
    refused(MissingPath, "no history.csv in '.*empty'", [*runs, tmp_path/'empty'])
    refused(InputError, 'has no kNN accuracy', [*runs, history(tmp_path/'unjudged', [None, None])])
    tuned = history(tmp_path/'tuned', [None], config=dict(verb='finetune'))
    refused(InputError, 'compared: fastcontrast report compares fine-tunings', [*runs, tuned])
    refused(InputError, 'no rows', [*runs, history(tmp_path/'short', [])])
    (tmp_path/'empty/history.csv').write_bytes(b'\xff\xfe')
    refused(InputError, 'cannot be read', [*runs, tmp_path/'empty'])
    for target in (0, -1, 1.5, math.nan):
        refused(InputError, 'target=.* must be a finite number above 0 and at most 1', runs, target=target)
    refused(InputError, 'cannot be saved', runs, path=tmp_path/'empty/history.csv/c.png')
