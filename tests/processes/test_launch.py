"""How several processes are started, stopped and told apart, and what is said when one of them fails."""
import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from helpers.folders import image_folder
from helpers.forks import Member, Program
from helpers.refusals import refusal, said
from PIL import Image

from fastcontrast import distributed
from fastcontrast.cli import job, launch, training
from fastcontrast.core import usable_cores
from fastcontrast.distributed import join_processes
from fastcontrast.export import load_encoder
from fastcontrast.signals import Signals

# lines of two processes stay whole
ENV = {
    **os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONWARNINGS': 'ignore',
    'PYTHONUNBUFFERED': ''}


TINY = ('--arch', 'test_resnet', '--size', 16, '--batch-size', 700, '--no-controls')
LONG = ('pretrain', 'p', '--arch', 'test_resnet', '--epochs', 5000, '--batch-size', 4, '--no-controls',
        '--processes', 2, '--out', 'run')
SCRIPT = """
import sys
from fastcontrast.all import contrastive_learner, image_dls
dls = image_dls('digits', size=16, bs=700)
learn = contrastive_learner(dls, 'test_resnet', 'simclr')
learn.fit_contrastive(1)
sys.stdout.write(f'knn {learn.recorder.values[-1][1]}' + chr(10))  # in one piece
file = learn.export('encoder.safetensors')
learn.show_views(path='views.png')
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = tempfile.mkdtemp()  # sockets have short names
    monkeypatch.setenv('TMPDIR', short)
    yield tmp_path
    shutil.rmtree(short, ignore_errors=True)


def ended(processes): return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


def started(*args, until, prepare=None):
    """The program, when its output matches; the processes that it started; what waits for its exit code and output

    If something prepares it, all of them are forks, which import nothing anew."""
    if '--processes' in args and usable_cores() < 2: pytest.skip("two processes are refused where there is one core")
    env = ENV | dict(TMPDIR=os.environ['TMPDIR'])
    with open('log', 'w') as log:
        program = Program(args, '.', env, prepare, (log, log)) if prepare else subprocess.Popen(
            [sys.executable, '-m', 'fastcontrast', *map(str, args)], stdout=log, stderr=log, env=env,
            start_new_session=True)
    def wait():
        code = program.wait(300)
        return code, Path('log').read_text()
    end, children = time.monotonic() + 120, []
    while True:
        done = re.search(until, Path('log').read_text(), re.M)
        with suppress(psutil.NoSuchProcess):  # it has ended
            children = psutil.Process(program.pid).children(recursive=True) or children
        if done: return program, children, wait
        assert program.poll() is None and time.monotonic() < end, Path('log').read_text()
        time.sleep(0.1)


def forks():
    "The program's processes are forks too; a terminal sends its signals to all of them, and to nobody else"
    os.setsid()
    launch.subprocess = SimpleNamespace(Popen=Member)


@pytest.mark.slow
def test_accelerate_launches_a_plain_script(folder):
    (folder/'train.py').write_text(SCRIPT)
    done = subprocess.run([sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2',
                           '--main_process_port', '0', 'train.py'],
                          capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == 0, done.stderr
    out = done.stdout.splitlines()
    assert len([line for line in out if line.startswith('simclr (digits)')]) == 1, done.stdout
    assert len([line for line in out if line.split()[:1] == ['0']]) == 1, done.stdout
    knn = re.findall(r'knn (0\.\d+)', done.stdout)
    assert len(knn) == 2 and len(set(knn)) == 1
    assert load_encoder(folder/'encoder.safetensors').num_features
    assert {f.name for f in folder.iterdir()} == {'train.py', 'encoder.safetensors', 'views.png'}


def test_pretrain_in_two_processes(folder):
    _, children, wait = started('pretrain', *TINY, '--epochs', 1, '--processes', 2, '--out', 'run',
                                until='pictures to train on')
    code, out = wait()
    assert code == 0 and len(children) == 2 and ended(children), out
    lines = out.splitlines()
    assert lines[0].endswith('in 2 processes; results in run')
    assert lines[1].startswith('fast (digits): adamw, lr 0.02188 (0.008 x 700/256)')
    assert lines[-1].endswith('are in run')
    assert len([line for line in lines if line.split()[:1] == ['0']]) == 1
    assert len([line for line in lines if 'trained encoder' in line]) == 1
    assert {f.name for f in (folder/'run').iterdir()} == {'config.json', 'history.csv', 'encoder.safetensors',
                                                          'curves.png', 'views.png', 'checkpoints'}
    config = json.loads((folder/'run/config.json').read_text())
    assert config['processes'] == 2 and config['batch_size'] == 700 and config['state'] == 'finished'
    assert config['epochs_done'] == 1


@pytest.mark.slow
def test_shards_are_judged_by_every_process_itself(folder):
    "Pictures of shards can't be divided for the epoch table: each process embeds them all"
    draws = np.random.default_rng(0)
    for shard in range(3):
        with tarfile.open(folder/f's{shard}.tar', 'w') as tar:
            for i in range(24):
                picture = io.BytesIO()
                Image.fromarray(draws.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(picture, 'PNG')
                for suffix, content in (('png', picture.getvalue()), ('cls', str(i % 3).encode())):
                    member = tarfile.TarInfo(f'{shard}{i:02}.{suffix}')
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    _, _, wait = started('pretrain', 's{0..2}.tar', '--arch', 'test_resnet', '--size', 16, '--epochs', 1,
                         '--batch-size', 16, '--workers', 1, '--processes', 2, '--no-controls', '--out', 'run',
                         until='pictures to train on')
    code, out = wait()
    assert code == 0, out
    columns, values = ((folder/'run/history.csv').read_text().splitlines()[i].split(',') for i in (0, 1))
    row = dict(zip(columns, values))
    assert 0 <= float(row['knn']) <= 1 and 0 < float(row['spread']) < 1 and float(row['rankme']) >= 1


def left_over(): return {name for name in os.listdir(os.environ['TMPDIR'])
                         if name.startswith(('torchelastic_', 'fastcontrast-'))}


@pytest.mark.parametrize('number, code, group, prepare', [
    (signal.SIGINT, 130, True, forks), pytest.param(signal.SIGINT, 130, True, None, marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, 143, False, None, marks=pytest.mark.slow),
    pytest.param(signal.SIGHUP, 129, False, None, marks=pytest.mark.slow),
], ids=['Ctrl-C on a terminal', 'of programs that nobody forked', 'SIGTERM', 'SIGHUP'])
def test_a_signal_ends_all_and_keeps_everything(folder, number, code, group, prepare):
    "Soon: the launcher passes it on, or a terminal sends it to all"
    image_folder(folder/'p', dict(a=6, b=6))
    program, children, wait = started(*LONG, until='^ *0 ', prepare=prepare)
    start = time.monotonic()
    if group: os.killpg(program.pid, number)
    else: program.send_signal(number)
    got, out = wait()
    assert got == code and ended(children) and time.monotonic() - start < 60, out
    last = out.splitlines()[-1]
    words = (r'interrupted after \d+ of 5000 epochs: the encoder as it was then is in run/encoder.safetensors; '
             'go on with: fastcontrast pretrain --resume run')
    assert re.fullmatch(words, last) and out.count('interrupted') == 1 and 'Traceback' not in out
    assert load_encoder(folder/'run/encoder.safetensors').num_features
    config = json.loads((folder/'run/config.json').read_text())
    assert config['state'] == 'interrupted' and config['reason'] == f'interrupted by {number.name}'
    assert not (folder/'run/.lock').exists() and not left_over()
    done = config['epochs_done']
    if number != signal.SIGTERM: return
    _, _, wait = started('pretrain', '--resume', 'run', '--epochs', done + 1, until='going on with run')
    code, out = wait()
    assert code == 0 and f'of {done + 1} epochs done' in out, out


@pytest.mark.parametrize('env, says', [
    ({}, True), (dict(RANK='0'), True), (dict(RANK='1'), False), (dict(RANK='0', FASTCONTRAST_LAUNCHER='x'), False)])
def test_one_program_says_that_it_finishes_the_step(monkeypatch, env, says):
    "Ctrl-C goes to all on a terminal, the launcher too"
    for name in ('RANK', 'FASTCONTRAST_LAUNCHER'): monkeypatch.delenv(name, raising=False)
    for name, value in env.items(): monkeypatch.setenv(name, value)
    signals, written = Signals(), []
    signals.hold()
    with monkeypatch.context() as patch:
        patch.setattr(os, 'isatty', lambda number: True)
        patch.setattr(os, 'write', lambda number, text: written.append(text))
        signals._answer(signal.SIGINT, None)
    assert bool(written) == says


def test_a_signal_before_training(folder):
    program, children, wait = started('pretrain', *TINY, '--epochs', 500, '--processes', 2, '--out', 'run', until='')
    while len(children) < 2:
        assert program.poll() is None, Path('log').read_text()
        children = psutil.Process(program.pid).children()
    program.send_signal(signal.SIGTERM)
    code, out = wait()
    assert code == 143 and ended(children) and out.count('interrupted') == out.count('\n') == 1, out
    assert not (folder/'run').exists()


def forks_that_notice():
    "And leave the number of each, and a file when the first knows that it lost another"
    forks()
    class Numbered(Member):
        def __init__(self, command, env):
            super().__init__(command, env)
            Path(f"{env['RANK']}.pid").write_text(str(self.pid))
    launch.subprocess.Popen, ended_peer = Numbered, job.ended_peer
    def noticed(**kwargs):
        Path('noticed').touch()
        return ended_peer(**kwargs)
    job.ended_peer = noticed


def test_a_process_that_dies_ends_all(folder):
    "The first one keeps what was trained"
    image_folder(folder/'p', dict(a=6, b=6))
    program, children, wait = started(*LONG, until='^ *0 ', prepare=forks_that_notice)
    program.send_signal(signal.SIGSTOP)  # on a busy machine the launcher is not the first to notice
    os.kill(int(Path('1.pid').read_text()), signal.SIGKILL)
    end = time.monotonic() + 60
    while not Path('noticed').exists() and time.monotonic() < end: time.sleep(0.05)
    time.sleep(3)  # which is longer than the first once waited for the launcher
    program.send_signal(signal.SIGCONT)
    code, out = wait()
    assert code == 1 and ended(children), out
    assert out.splitlines()[-1] == (
        'error: process 1 of 2 was ended by SIGKILL; the encoder as it was then is in run/encoder.safetensors; '
        'the traceback is in run/error.txt; go on with: fastcontrast pretrain --resume run')
    assert 'Traceback' not in out and out.count('error:') == 1 and not left_over()
    config = json.loads((folder/'run/config.json').read_text())
    assert config['state'] == 'failed' and config['reason'] == 'process 1 of 2 was ended by SIGKILL'


def test_a_full_disk_does_not_keep_the_others_from_saving(tmp_path, monkeypatch):
    "They are told to end, if not which process has ended"
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    for name in ('write_text', 'write_bytes'): monkeypatch.setattr(Path, name, full)
    told = []
    monkeypatch.setattr(launch, 'end_all', lambda processes, number, first: told.append(number))
    team = launch._Team(tmp_path)
    team.processes = [SimpleNamespace(poll=lambda: None), SimpleNamespace(poll=lambda: 1)]
    team.end()
    assert team.ended == 1 and told == [signal.SIGTERM] and launch.ended_peer() == ''


def test_those_that_hear_nothing_are_not_waited_for_long(tmp_path, monkeypatch):
    "As on GPUs that wait for one another, once the first has saved what there is"
    monkeypatch.setattr(launch, 'REST', 0.2)
    team = launch._Team(tmp_path)
    for deaf in ('', 'trap "" TERM; '):
        team.processes.append(subprocess.Popen(['sh', '-c', f'{deaf}echo; exec sleep 60'], stdout=subprocess.PIPE))
        team.processes[-1].stdout.read(1)  # by now it is deaf
    begun = time.monotonic()
    try:
        team.end()
        first, second = (process.poll() for process in team.processes)
        assert first == -signal.SIGTERM and second is None and time.monotonic() - begun < 10
    finally: launch.kill_all(team.processes)


@pytest.mark.slow
def test_the_first_process_dies(folder):
    _, children, wait = started('pretrain', *TINY, '--epochs', 500, '--processes', 2, '--out', 'run', until='^ *0 ')
    next(p for p in children if p.environ()['RANK'] == '0').kill()
    code, out = wait()
    assert code == 1 and ended(children), out
    assert out.splitlines()[-1] == 'error: process 0 of 2 was ended by SIGKILL, and the others with it.'
    assert 'Traceback' not in out and out.count('error:') == 1


@pytest.mark.slow
def test_the_launcher_dies(folder):
    program, children, _ = started('pretrain', *TINY, '--epochs', 500, '--processes', 2, '--out', 'run', until='^ *0 ')
    program.kill()
    program.wait()
    psutil.wait_procs(children, timeout=20)
    out = Path('log').read_text()
    assert ended(children) and not left_over()
    assert 'error: the program that launched this process has ended' in out and 'Traceback' not in out, out
    assert json.loads((folder/'run/config.json').read_text())['state'] == 'stopped'
    assert load_encoder(folder/'run/encoder.safetensors').num_features


def forks_that_prepare_for_long():
    "The first process judges the controls until there is a file"
    forks()
    def judge(training):
        while not Path('go').exists(): time.sleep(0.02)
    training._judge_controls = judge


def test_the_launcher_dies_before_training(folder):
    image_folder(folder/'p', dict(a=6, b=6))
    program, children, _ = started(*LONG, until='results in run', prepare=forks_that_prepare_for_long)
    program.kill()
    program.wait()
    Path('go').touch()
    try:
        psutil.wait_procs(children, timeout=60)
        out = Path('log').read_text()
        assert ended(children) and not left_over(), out
        assert 'error: the program that launched this process has ended' in out and 'Traceback' not in out, out
    finally:
        for process in children:
            with suppress(psutil.NoSuchProcess): process.kill()


def test_what_process_0_refuses_is_told_once():
    Path('notes').touch()
    _, children, wait = started('pretrain', *TINY, '--processes', 2, '--out', '.', until='error', prepare=forks)
    code, out = wait()
    assert code == 2 and ended(children)
    assert out == "error: --out . already holds files: give a new folder, or remove it.\n"


# --- refused at once
@pytest.mark.parametrize('args, words', [
    (('--processes', 0), '--processes=0 must be a whole number of at least 1.'),
    (('--processes', 3, '--batch-size', 4), "--batch-size 4 can't be divided among 3 processes"),
    (('--processes', 1024, '--batch-size', 1024),
     r'--processes 1024 is more than the \d+ (cores|GPUs) that may be used here: give \d+ or fewer')])
def test_processes_that_cannot_be(args, words, monkeypatch, capsys):
    import fastcontrast.cli as cli
    monkeypatch.setattr(sys, 'argv', ['fastcontrast', 'pretrain', *map(str, args)])
    with pytest.raises(SystemExit) as e: cli.main()
    err = capsys.readouterr().err
    assert e.value.code == 2 and re.match(f'error: {words}', err) and err.count('\n') == 1


def test_a_world_of_one_is_no_launcher_s(monkeypatch):
    "Kubeflow numbers the process of a single pod"
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '1')
    assert launch.rank() is None
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert launch.rank() == 0


def test_another_number_of_processes_than_a_launcher_has_started(monkeypatch, capsys):
    import fastcontrast.cli as cli
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr('fastcontrast.cli.pretrain.train', lambda *args: pytest.fail('it trains'))
    monkeypatch.setattr(sys, 'argv', ['fastcontrast', 'pretrain', 'digits', '--processes', '4', '--batch-size', '4'])
    with pytest.raises(SystemExit) as e: cli.main()
    err = capsys.readouterr().err
    assert e.value.code == 2 and '--processes 4 is asked for, and a launcher has started 2' in err, err
    assert launch.check_size(2) is launch.check_size(1) is None


def test_windows(monkeypatch):
    "It holds no signals back, and processes of others can only be ended"
    monkeypatch.delattr(signal, 'pthread_sigmask')
    said(['--processes 2 needs Linux or macOS: leave it out'], launch.launch, 2, Signals())
    ended = []
    def send(number): raise ValueError(f'Unsupported signal: {number}')
    def process(code): return SimpleNamespace(poll=lambda: code, send_signal=send, terminate=lambda: ended.append(code))
    monkeypatch.setattr(launch, 'os', SimpleNamespace(name='nt'))
    launch._send([process(None), process(0)], signal.SIGINT)
    assert ended == [None]


def test_port_in_use(monkeypatch):
    from accelerate import PartialState
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        for k, v in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, MASTER_ADDR='127.0.0.1',
                         MASTER_PORT=taken.getsockname()[1], OMP_NUM_THREADS=1).items():
            monkeypatch.setenv(k, str(v))
        try:
            words = r"the processes can't meet at 127.0.0.1:\d+ \(the port is in use\): give the launcher another port "
            assert re.fullmatch(f'{words}.*', refusal(join_processes))
        finally: PartialState._reset_state()


def test_a_world_without_ranks(monkeypatch):
    "As where a batch script exports its size: accelerate would wait for the others, 12 hours"
    import accelerate
    monkeypatch.setattr(accelerate, 'PartialState', lambda **kwargs: pytest.fail('waits'))
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.delenv('RANK', raising=False)
    said(['WORLD_SIZE=2', 'RANK', 'unset WORLD_SIZE'], join_processes)


@pytest.mark.parametrize('name, noticed', [
    ('FASTCONTRAST_LAUNCHER', True), ('TORCHELASTIC_RUN_ID', True), ('MASTER_ADDR', False)])
def test_whose_end_is_noticed(monkeypatch, name, noticed):
    "A launcher's, and not that of a shell in which somebody has started the processes: `nohup` is to outlive it"
    import accelerate
    monkeypatch.setattr(accelerate, 'PartialState', lambda **kwargs: SimpleNamespace(device='cpu'))
    monkeypatch.setattr(distributed, 'world_size', lambda: 2)
    monkeypatch.setattr(distributed, '_parent', None)
    for other in ('FASTCONTRAST_LAUNCHER', 'TORCHELASTIC_RUN_ID'): monkeypatch.delenv(other, raising=False)
    for key, value in {'RANK': '0', 'WORLD_SIZE': '2', name: '127.0.0.1'}.items(): monkeypatch.setenv(key, value)
    join_processes()
    assert not distributed.launcher_ended()
    monkeypatch.setattr(distributed.os, 'getppid', lambda: -1)
    assert distributed.launcher_ended() == noticed


def test_accelerate_set_up_for_one_process(monkeypatch):
    from accelerate import PartialState
    try:
        PartialState()
        monkeypatch.setenv('WORLD_SIZE', '2')
        monkeypatch.setenv('RANK', '0')
        assert 'accelerate was set up for one process before' in refusal(join_processes)
    finally: PartialState._reset_state()
