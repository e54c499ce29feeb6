"detect: a table of average precision, and its file"
import json

from helpers.cli import disk_full
from helpers.pictures import ARCH

from fastcontrast.cli.detect import Trainings, starts
from fastcontrast.detection import draw_rectangles
from fastcontrast.export import export_encoder
from fastcontrast.models import make_encoder

QUICK = ('--epochs', 1, '--size', 64, '--batch-size', 4)


def exported(place, small_input=False):
    "The folder of a run, with weights of its own"
    encoder = make_encoder(ARCH, small_input=small_input)
    export_encoder(encoder, place/'encoder.safetensors', ARCH, 32, [.5] * 3, [.2] * 3, small_input)


def average_precisions(file):
    "Of each encoder, that of every seed"
    return {name: scores['AP']['seeds'] for name, scores in json.loads(file.read_text())['encoders'].items()}


def test_detect(run, refused, folder):
    draw_rectangles(folder/'shapes', 6)
    export_encoder(make_encoder(ARCH), folder/'run/encoder.safetensors', ARCH, 32, [.5] * 3, [.2] * 3)
    args = ('--against', 'random', '--seeds', 2, '-o', 'new/d.json')
    code, out, err = run('detect', 'run', 'shapes', *QUICK, *args)
    assert (code, err) == (0, '') and '5 pictures with' in out and 'results in new/d.json' in out
    assert all(f'{name}, seed {k}: AP ' in out for name in ('run', 'random') for k in (0, 1)) and '±' in out
    content = json.loads((folder/'new/d.json').read_text())
    assert content['size'] == 64 and (content['n_train'], content['n_valid']) == (5, 1)
    encoders = content['encoders']
    assert list(encoders) == ['run', 'random']
    for scores in encoders.values():
        assert {*scores} == {'AP', 'AP50', 'AP75', 'classes'} and len(scores['AP']['seeds']) == 2
        assert 0 <= scores['AP']['mean'] <= scores['AP50']['mean'] <= 1 and scores['AP']['std'] is not None
    more = ('--against', 'random,run/', '--seeds', 2, '-o', 'new/d.json')
    code, out, err = run('detect', 'run', 'shapes', *QUICK, *more)
    assert code == 0 and '4 of 6 trainings are in new/d.json already' in out and 'run (2), seed 1: AP' in out
    assert 'random, seed' not in out and json.loads((folder/'new/d.json').read_text())['encoders'] == encoders | {
        'run (2)': encoders['run']}
    export_encoder(make_encoder(ARCH), folder/'run/encoder.safetensors', ARCH, 32, [.5] * 3, [.2] * 3)  # another
    assert 'already' not in run('detect', 'run', 'shapes', *QUICK, '--seeds', 1, '-o', 'new/d.json')[1]
    kept = json.loads((folder/'new/d.json').read_text())
    assert [*kept['encoders']] == [*kept['weights']] == ['run', 'random', 'run (2)']  # what others have had
    assert kept['encoders']['random'] == encoders['random'] and kept['encoders']['run'] != encoders['run']
    other = refused('detect', 'run', 'shapes', *QUICK[:-1], 2, '-o', 'new/d.json')
    assert 'new/d.json has trainings with other settings (batch_size 4, now 2): give another --out.' in other
    (folder/'mine.json').write_text('{"mine": 1}')
    assert 'mine.json is no table of detectors' in refused('detect', 'run', 'shapes', *QUICK, '-o', 'mine.json')
    assert (folder/'mine.json').read_text() == '{"mine": 1}' and json.loads((folder/'new/d.json').read_text()) == kept
    names = [start.name for start in starts('run', 'random, run/encoder.safetensors,resnet18,run,,untrained')]
    assert names == ['run', 'random', 'run', 'resnet18']  # the last is the second
    assert 'no folder nothing' in refused('detect', 'run', 'nothing')
    assert "unknown architecture 'restnet18'" in refused('detect', 'run', 'shapes', '--against', 'restnet18')
    assert 'random of which architecture?' in refused('detect', 'random', 'shapes')
    assert '--seeds=0' in refused('detect', 'run', 'shapes', '--seeds', 0)
    assert 'must end in .json' in refused('detect', 'run', 'shapes', '-o', 'd.txt')
    assert "did you mean bf16" in refused('detect', 'run', 'shapes', '--precision', 'bf61')


def test_what_has_the_name_of_another_is_kept_beside_it(run, folder, monkeypatch):
    "The folders of seeds are called alike everywhere; random weights are those of an architecture with its stem"
    draw_rectangles(folder/'shapes', 6)
    for place in 'xyz': exported(folder/place/'seed=0', small_input=place == 'z')
    trained = []
    def train(source, *args, **kwargs):
        trained.append(source)
        return dict(AP=len(trained) / 100, AP50=.5, AP75=.5, classes={})
    monkeypatch.setattr('fastcontrast.detection.detection_transfer', train)
    def detect(place):
        code, _, err = run('detect', f'{place}/seed=0', 'shapes', *QUICK, '--against', 'random', '--seeds', 1)
        assert (code, err) == (0, '')
        return average_precisions(folder/'detect.json')
    assert detect('x') == {'seed=0': [.01], 'random': [.02]}
    assert detect('y') == {'seed=0': [.01], 'random': [.02], 'seed=0 (2)': [.03]}
    everything = {'seed=0': [.01], 'random': [.02], 'seed=0 (2)': [.03], 'seed=0 (3)': [.04], 'random (2)': [.05]}
    for place in 'zyxz': assert detect(place) == everything and len(trained) == 5
    exported(folder/'y/seed=0')  # trained anew
    assert detect('y') == everything | {'seed=0 (2)': [.06]}
    (folder/'x').rename(folder/'w')
    assert detect('w') == everything | {'seed=0 (2)': [.06]} and len(trained) == 6


def test_two_programs_add_to_one_file(folder):
    for place in 'ab': exported(folder/place/'run')
    one, other = (Trainings(folder/'d.json', dict(data='p'), starts(f'{place}/run', 'random')) for place in 'ab')
    for table, i, score in ((one, 0, .1), (other, 0, .2), (one, 1, .3), (other, 1, .3), (one, 0, .4)):
        table.own[i].rows.append(dict(AP=score, AP50=.5, AP75=.5, classes={}))
        table.save()
    assert (one.names, other.names) == (['run', 'random'], ['run (2)', 'random'])
    assert average_precisions(folder/'d.json') == {'run': [.1, .4], 'random': [.3], 'run (2)': [.2]}


def test_a_full_disk_costs_no_scores(run, folder, monkeypatch):
    "They are told before they are saved"
    draw_rectangles(folder/'shapes', 6)
    export_encoder(make_encoder(ARCH), folder/'run/encoder.safetensors', ARCH, 32, [.5] * 3, [.2] * 3)
    scores = dict(AP=.1, AP50=.2, AP75=.3, classes={})
    monkeypatch.setattr('fastcontrast.detection.detection_transfer', lambda *args, **kwargs: scores)
    monkeypatch.setattr('fastcontrast.cli.detect.save_json', disk_full)
    code, out, err = run('detect', 'run', 'shapes', *QUICK, '--seeds', 1)
    assert code == 1 and 'run, seed 0: AP 10.0, AP50 20.0, AP75 30.0; ' in out
    assert err == "error: no space is left on the disk for 'detect.json'.\n"
