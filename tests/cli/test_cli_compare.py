"compare: what each run took to reach an accuracy"
import csv
import json
import re

import matplotlib.image
from helpers.runs import run_folder


def test_compare(run, refused, digits, folder):
    code, out, err = run('compare', digits[0], digits[0], '-o', 'new/c.png', '--knn', .01)
    assert (code, err) == (0, '') and 'fast, NTXent + ProgressiveSize' in out
    assert out.endswith('the drawing is in new/c.png\n')
    assert matplotlib.image.imread('new/c.png').std() > .05
    row = next(csv.DictReader((digits[0]/'history.csv').open()))
    table = [re.split(r' *│ *', line)[2:-1] for line in out.splitlines() if re.search(r'│ +1 │', line)]
    knn, tflop, seconds = (float(row[k]) for k in ('knn', 'tflop', 'seconds'))
    assert table == [['1', f'{knn:.1%}', f'{knn:.1%}', '1', f'{tflop:.3g}', f'{seconds:.3g}']] * 2
    (folder/'short').mkdir()
    (folder/'short/history.csv').write_text('epoch,train_loss,knn\n0,1.5,0.001\n')
    written = dict(method='byol', loss='NegCosine()', speedups=['A()'], state='interrupted')
    (folder/'short/config.json').write_text(json.dumps(written))
    code, out, err = run('compare', digits[0], 'short')
    assert code == 0 and 'short (interrupted): byol, NegCosine + A()\n' in out
    assert re.search(r'│ short +│ +1 │ +0.1% │ +0.1% │ +– │ +– │ +– │', out)
    assert (folder/'compare.png').is_file()
    assert 'one run' in refused('compare', 'short') and "no folder 'nowhere'" in refused('compare', 'short', 'nowhere')
    assert '--knn=90.0 must be a finite number above 0' in refused('compare', 'short', 'short', '--knn', 90)
    assert 'must end in' in refused('compare', 'short', 'short', '-o', 'c.txt')
    assert 'RUN' in refused('compare')


def test_runs_that_are_not_finished_are_left_out(run, folder):
    for seed, state in enumerate(('finished', 'running')):
        run_folder(folder/'many'/str(seed), (.5, .6)[seed:], settings=dict(seed=seed), state=state)
    code, out, err = run('compare', 'many', 'many/1')
    assert (code, err) == (0, '') and 'many: simclr, NTXent\nleft out of many: 1 (killed)\n' in out
    assert '\n1 (killed): simclr, NTXent\n' in out and re.search(r'│ many +│ +2 │ +60.0% │', out)


def test_runs_on_other_pictures(run, folder):
    def record(name, **said):
        (folder/name).mkdir()
        (folder/name/'history.csv').write_text('epoch,train_loss,knn\n0,1.5,0.5\n')
        (folder/name/'config.json').write_text(json.dumps(said))
        return name
    base = dict(data='x', settings=dict(data='/p/x'), n_train=80, n_valid=20, classes=['a', 'b'], judged_within='')
    a = record('a', **base)
    same = record('same', **base | dict(data='elsewhere/x', seed=3))
    old = record('old', data='/p/x')
    code, out, err = run('compare', a, same, old)
    assert (code, err) == (0, '')
    other = record('other', **base | dict(settings=dict(data='/p/y'), n_train=1200, classes=['a', 'c', 'd']))
    within = record('within', **base | dict(judged_within='b'))
    code, out, err = run('compare', a, same, other, within)
    assert code == 0 and err.count('\n') == 2 and err.count('warning: ') == 2
    assert ("warning: other has other pictures than a, and accuracies can't be compared: data '/p/y', not '/p/x', "
            "pictures to train on 1,200, not 80, classes 3 (a, c, d), not 2 (a, b).") in err
    assert "warning: within has other pictures" in err and "judged within 'b', not none." in err
