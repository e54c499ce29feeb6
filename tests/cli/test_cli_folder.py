"A run's folder: one owner at a time, whole whatever happens, and listed by `runs`"
import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from helpers.cli import ENV, TINY, config, finish, forked, until
from helpers.folders import image_folder
from helpers.pictures import ARCH

from fastcontrast import records
from fastcontrast.cli import folder as run_folders, training
from fastcontrast.cli.folder import claimed
from fastcontrast.cli.runs import find_runs, in_words, run_row
from fastcontrast.core import InputError
from fastcontrast.export import export_encoder, load_encoder
from fastcontrast.models import make_encoder
from fastcontrast.records import changed, owner_lives, read_run, setting_of

LONG = (*TINY[:2], '--batch-size', 4, '--epochs', 5000, '--no-controls')


def record(path, **fields):
    Path(path).mkdir(parents=True, exist_ok=True)
    (Path(path)/'config.json').write_text(json.dumps(fields))


# ---------------------------------------------------------------- one owner

def test_a_folder_has_one_owner(run, refused, folder):
    "Until it ends, also while pictures are read; one that was killed leaves it to the next"
    image_folder(folder/'p', dict(a=4, bb=4))
    owner = forked('pretrain', 'p', *LONG, '--out', 'r', cwd=folder)
    until(owner, folder/'r/history.csv')
    c = config('r')
    assert (c['state'], c['pid'], c['host']) == ('running', owner.pid, socket.gethostname()) and c['started']
    assert c['settings']['data'] == str(folder/'p') and c['settings']['epochs'] == 5000 and c['data'] == 'p'
    words = f"process {owner.pid} on {c['host']} is at work in r: wait for its end, or give another --out."
    assert words in refused('pretrain', 'p', *LONG, '--out', 'r') and words in refused('pretrain', '--resume', 'r')
    assert run_row(Path('r'))['state'] == 'running' and run_row(Path('r'))['resume'] is None
    owner.kill()
    owner.communicate()
    (folder/'r/.curves.1.partial.png').touch()
    assert run_row(Path('r'))['state'] == 'killed' and config('r')['state'] == 'running'
    assert run_row(Path('r'))['resume'] == 'fastcontrast pretrain --resume r'
    done = (folder/'r/history.csv').read_text().count('\n') - 1
    assert run('pretrain', '--resume', 'r', '--epochs', done + 1)[0] == 0
    assert config('r')['state'] == 'finished' and not [file for file in (folder/'r').iterdir() if file.name[0] == '.']


def test_a_run_that_is_gone_meanwhile(folder):
    assert changed(folder/'gone') == 0 and not owner_lives(folder/'gone')


def test_where_nobody_can_lock_a_new_run_is_nobodys(folder, monkeypatch):
    "As on Windows"
    monkeypatch.setattr(records, 'fcntl', None)
    (folder/'r').mkdir()
    assert not owner_lives(folder/'r')
    (folder/'r/.lock').touch()
    assert owner_lives(folder/'r')


@pytest.mark.parametrize('system', ['Windows', 'no locks'])
def test_where_nobody_can_lock_a_process_of_this_machine_that_was_killed_is_known(folder, monkeypatch, system):
    "Else a sweep would wait for it without end"
    def lockf(*args): raise OSError(errno.ENOLCK, 'No locks available')
    if system == 'Windows':
        for module in (records, run_folders): monkeypatch.setattr(module, 'fcntl', None)
    else: monkeypatch.setattr(fcntl, 'lockf', lockf)
    gone, host = subprocess.Popen([sys.executable, '-c', '']), socket.gethostname()
    gone.wait()
    (folder/'r').mkdir()
    lock = folder/'r/.lock'
    for text, lives in ((f'{os.getpid()} {host}', True), (f'{gone.pid} another', True), (f'{gone.pid}', True),
                        (f'x {host}', True), ('', True), (f'{gone.pid} {host}', False)):
        lock.write_text(text)
        assert owner_lives(folder/'r') == lives, text
    with claimed('r', 'x'): assert lock.read_text() == f'{os.getpid()} {host}' and owner_lives(folder/'r')
    assert not owner_lives(folder/'r')


def test_a_look_at_a_folder_keeps_nobody_from_it(folder, monkeypatch):
    "Who asks whether a process is at work there has its lock for an instant"
    lockf, looks = fcntl.lockf, [True, True]
    def locked(*args):
        if looks: raise BlockingIOError(errno.EAGAIN, looks.pop())
        lockf(*args)
    monkeypatch.setattr(fcntl, 'lockf', locked)
    with claimed('r', 'x') as claim: assert claim.lock.held and not looks


def test_a_lock_is_removed_where_no_open_file_can_be(folder, monkeypatch):
    "As on Windows"
    for module in (records, run_folders): monkeypatch.setattr(module, 'fcntl', None)
    unlinked = Path.unlink
    with claimed('r', 'x') as claim:
        handle = claim.lock.handle
        def unlink(path, **kwargs):
            if path.name == '.lock' and not handle.closed: raise PermissionError(errno.EACCES, 'in use', str(path))
            unlinked(path, **kwargs)
        monkeypatch.setattr(Path, 'unlink', unlink)
        assert owner_lives(folder/'r')
    assert not owner_lives(folder/'r') and not (folder/'r').exists()


@pytest.mark.parametrize('name, is_empty', [('.DS_Store', True), ('._a.png', True), ('desktop.ini', True),
                                            ('Thumbs.db', True), ('.git', False), ('a.png', False)])
def test_what_a_system_leaves_in_a_folder_is_nobodys(folder, name, is_empty):
    (folder/'r').mkdir()
    (folder/'r'/name).touch()
    if is_empty:
        with claimed('r', 'x') as claim: assert claim.lock.held
    else:
        with pytest.raises(InputError, match='already holds files'), claimed('r', 'x'): pass
    assert os.listdir('r') == [name]


def test_an_accuracy_of_nothing_is_one(folder):
    results = {'trained encoder': dict(knn=0.), 'classifier': dict(accuracy=0.)}
    record('r', state='finished', settings={}, results=results)
    (folder/'r/history.csv').write_text('epoch,knn,accuracy\n0,.5,.5\n')
    row = run_row(folder/'r')
    assert (row['knn'], row['accuracy']) == (0, 0)


def test_encoders_that_were_exported_are_told_apart(folder):
    "Their config.json is timm's, and no record of a run"
    runs = []
    for name in 'ab':
        export_encoder(make_encoder(ARCH), folder/name, ARCH, 32, [.5] * 3, [.2] * 3)
        file = str(folder/name/'model.safetensors')
        record(f'tuned-{name}', state='finished', verb='finetune', settings=dict(encoder=file, data='p'))
        runs.append(read_run(folder/f'tuned-{name}'))
    a, b = (setting_of(run.record, origin=run.origin) for run in runs)
    assert a != b and all(run.origin == {} for run in runs)


def test_a_lock_left_behind_is_taken_over(folder):
    (folder/'r').mkdir()
    (folder/'r/.lock').touch()
    with claimed('r', 'x') as claim:
        assert claim.lock.held
        second = """
import sys
import tempfile
from fastcontrast.cli.folder import claimed
try:
    with claimed('r', 'x'): print('claimed')
except Exception as e: print(e)
"""
        def claim_too(): return subprocess.run([sys.executable, '-c', second], capture_output=True, text=True, env=ENV)
        assert 'another process is at work in r' in claim_too().stdout
    assert not (folder/'r/.lock').exists() and (folder/'r').is_dir()
    assert claim_too().stdout == 'claimed\n'


def test_a_claim_that_comes_to_nothing_leaves_nothing(folder):
    with claimed(None, 'x') as claim: claim.save(state='running')
    assert not (folder/'runs').exists()
    record('r', state='running', settings={})
    with claimed('r', 'x', resumed=True) as claim: claim.save(state='running', pid=1)
    assert config('r') == dict(state='interrupted', settings={})
    record('old', state='finished')
    with pytest.raises(InputError, match='already holds files'):
        with claimed('old', 'x'): pass
    assert config('old') == dict(state='finished') and not Path('old/.lock').exists()


def test_two_runs_without_a_name_get_two_folders(folder):
    with claimed(None, 'x') as first, claimed(None, 'x') as second:
        assert [str(first), str(second)] == ['runs/x', 'runs/x-2']
    assert not (folder/'runs').exists()


def test_a_file_system_without_locks(folder, monkeypatch):
    def lockf(*args): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'lockf', lockf)
    with claimed('r', 'x') as claim: assert claim.lock.held


def test_a_folder_that_vanishes_is_made_again(folder):
    image_folder(folder/'p', dict(a=4, bb=4))
    process = forked('pretrain', 'p', *LONG, '--out', 'r', cwd=folder)
    until(process, folder/'r/history.csv')
    shutil.rmtree('r', ignore_errors=True)
    until(process, folder/'r/history.csv', epochs=2)
    process.send_signal(signal.SIGTERM)
    _, err = finish(process, 143)
    assert 'warning: r was removed while the run was going on, and has been made again.\n' in err
    assert {'encoder.safetensors', 'config.json', 'history.csv', 'curves.png'} <= {f.name for f in Path('r').iterdir()}
    assert config('r')['state'] == 'interrupted'


# ---------------------------------------------------------------- the disk

def test_too_little_space(run, folder, monkeypatch):
    "Is no mistake in the settings"
    image_folder(folder/'p', dict(a=4, bb=4))
    usage = namedtuple('usage', 'total used free')(2e9, 2e9, 30_000_000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    code, out, err = run('pretrain', 'p', *TINY, '--out', 'r')
    assert (code, out, err.count('\n')) == (1, '', 1) and err.startswith('error: ')
    assert 'the disk of r has 30.0 MB free, and this run needs ' in err and 'or --checkpoint none.' in err
    assert '4 checkpoints of ' in err and 'the last 2, and the one before the learning rate falls, are kept' in err
    assert not Path('r').exists()
    _, _, err = run('pretrain', 'p', *TINY, '--out', 'r', '--schedule', 'cosine')
    assert '3 checkpoints of ' in err and 'of which the last 2 are kept' in err


def test_an_encoder_that_cannot_be_written_is_kept_elsewhere(run, folder, monkeypatch):
    image_folder(folder/'p', dict(a=4, bb=4))
    (folder/'tmp').mkdir()
    monkeypatch.setattr(tempfile, 'gettempdir', lambda: str(folder/'tmp'))
    announce = training._announce
    def spoil(training):
        announce(training)
        (folder/'r/encoder.safetensors').mkdir()
    monkeypatch.setattr(training, '_announce', spoil)
    code, _, err = run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')
    file = folder/f'tmp/r-{os.getpid()}-encoder.safetensors'
    assert code == 1 and f'may write to; the encoder as it was then is in {file}; the traceback' in err, err
    assert err.count('\n') == 1
    load_encoder(file)
    assert config('r')['state'] == 'failed' and 'encoder' in config('r')['reason']


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_full_disk(folder):
    "Files may not be larger than a limit: checkpoints and encoder don't fit, and the run goes on"
    image_folder(folder/'p', dict(a=4, bb=4))
    process = forked('pretrain', 'p', *TINY, '--out', 'r', '--no-controls', cwd=folder, prepare=limit_files)
    out, err = finish(process, 1)
    assert 'the checkpoint of step 1 could not be written (File too large); the run goes on.' in out
    assert re_line(err, 'error: the encoder cannot be written to', 'nor could it be written anywhere else')
    c = config('r')
    assert c['state'] == 'failed' and c['epochs_done'] == 1 and 'checkpoint' in c['notes'][0]
    assert {file.name for file in Path('r').iterdir()} >= {'history.csv', 'curves.png', 'error.txt', 'views.png'}


def re_line(text, *words): return text.count('\n') == 1 and all(word in text for word in words)


# ---------------------------------------------------------------- runs

def test_runs(run, refused, folder):
    assert "no folder 'runs'" in refused('runs')
    (folder/'runs').mkdir()
    assert "no run in 'runs'" in refused('runs')
    record('runs/a', state='finished', epochs=2, settings=dict(epochs=2))
    (folder/'runs/a/history.csv').write_text('epoch,knn\n0,0.25\n1,0.5\n')
    record('runs/more/b [i]', state='failed', reason='out of memory', epochs=3, settings=dict(epochs=3))
    record('runs/old', state='stopped: the loss is nan', epochs=5)
    (folder/'runs/broken').mkdir()
    (folder/'runs/broken/config.json').write_text('{')
    code, out, err = run('runs')
    assert (code, err) == (0, '') and ' 2/2 ' in out and '50.0%' in out and ' 0/3 ' in out
    assert out.count('--resume') == 1
    command = "fastcontrast pretrain --resume 'runs/more/b [i]'"
    assert f'{command}  # from its beginning: it has no checkpoint\n' in out
    (folder/'runs/more/b [i]/checkpoints').mkdir()
    (folder/'runs/more/b [i]/checkpoints/step-000000005.json').write_text('{}')
    assert f'{command}\n' in run('runs')[1]
    assert 'runs/more/b [i]: out of memory\n' in out and "runs/broken: runs/broken/config.json can't be read" in out
    rows = {row['run']: row for row in json.loads(run('runs', 'runs', '--json')[1])}
    assert {name: row['state'] for name, row in rows.items()} == {
        'runs/a': 'finished', 'runs/more/b [i]': 'failed', 'runs/old': 'stopped', 'runs/broken': 'broken'}
    record('runs/judged', state='finished', results={'trained encoder': dict(knn=.75)})
    assert run_row(Path('runs/judged'))['knn'] == .75, "as in the table that the run ended with"
    assert rows['runs/a']['knn'] == .5 and rows['runs/a']['age'] < 60
    assert find_runs(Path('runs/a')) == [Path('runs/a')]


def test_a_killed_run_is_told_where_nothing_can_be_written(folder, monkeypatch):
    record('r', state='running', settings={})
    (folder/'r/.lock').touch()
    opened = Path.open
    def read_only(path, mode='r', *args, **kwargs):
        if mode != 'r': raise OSError(errno.EROFS, 'Read-only file system')
        return opened(path, mode, *args, **kwargs)
    monkeypatch.setattr(Path, 'open', read_only)
    assert run_row(Path('r'))['state'] == 'killed'


def test_ages_in_words():
    ages = {0: '0 s', 59.9: '59 s', 60: '1 min', 3599: '59 min', 7200: '2 h', 86400 * 40: '40 d'}
    assert {seconds: in_words(seconds) for seconds in ages} == ages


def test_runs_imports_nothing_heavy(folder):
    record('r', state='finished')
    code = """
import sys
import tempfile
sys.argv = ['x', 'runs', 'r']
from fastcontrast.cli import main
main()
print([name for name in ('torch', 'fastai', 'pandas', 'matplotlib') if name in sys.modules])
"""
    got = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=ENV, timeout=60)
    assert got.returncode == 0 and got.stdout.splitlines()[-1] == '[]', got
