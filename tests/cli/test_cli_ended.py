"Runs that end early keep what they have, and say so"
import csv
import errno
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from fastai.callback.core import Callback
from helpers.cli import TINY, config, finish, forked, started, until
from helpers.folders import image_folder, picture
from helpers.runs import run_folder
from webdataset import TarWriter

from fastcontrast import pictures
from fastcontrast.cli import training
from fastcontrast.cli.job import Job
from fastcontrast.cli.problems import sentence
from fastcontrast.export import load_encoder
from fastcontrast.learner import ContrastiveLearner
from fastcontrast.records import setting_of


def test_diverging_run(run, folder):
    image_folder(folder/'p', dict(a=10, bb=10))
    code, out, err = run('pretrain', 'p', *TINY[:2], '--epochs', 3, '--batch-size', 4, '--lr', 1e30,
                         '--setting', 'digits', '--out', 'r', '--no-controls')
    assert code == 2 and err.startswith('error: ') and err.count('\n') == 1 and 'lr' in err
    assert config('r')['state'] == 'stopped' and 'lr' in config('r')['reason'] and not Path('r/error.txt').exists()
    assert 'are not finite numbers, so no encoder was saved' in err and not Path('r/encoder.safetensors').exists()


def test_ctrl_c_in_training_on_a_terminal(folder):
    "There is a bar, and what was trained so far is kept"
    image_folder(folder/'p', dict(a=20, bb=20))
    master, slave = pty.openpty()
    process = started('pretrain', 'p', *TINY[:2], '--epochs', 5000, '--batch-size', 4, '--out', 'r [i]',
                      '--no-controls', cwd=folder, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                      preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(slave)
    text, history, end = b'', folder/'r [i]/history.csv', time.monotonic() + 300
    while time.monotonic() < end:
        try: text += os.read(master, 4096)
        except OSError: break  # the program has gone
        trained = history.exists() and history.read_text().count('\n') > 2
        if b'^C' not in text and trained: os.write(master, b'\x03')
    assert process.wait(120) == 130, text.decode()
    text, c = text.decode(), config(folder/'r [i]')
    last = text.replace('\r', '\n').strip().splitlines()[-1]
    moves = text.count('\r') - text.count('\r\n')
    assert '━' in text and ' to go' in text
    assert moves > 10 and text.count('\n') < 40 and 'Warning' not in text, "a bar that moves"
    assert c['state'] == 'interrupted' and 2 <= c['epochs_done'] < 5000
    assert (f"interrupted after {c['epochs_done']} of 5000 epochs: the encoder as it was then is in "
            "r [i]/encoder.safetensors; go on with: fastcontrast pretrain --resume 'r [i]'") in last
    encoder = load_encoder(folder/'r [i]/encoder.safetensors')
    assert all(tensor.isfinite().all() for tensor in encoder.state_dict().values())
    assert len(list(csv.DictReader(history.open()))) == c['epochs_done'] and (folder/'r [i]/curves.png').exists()


def read_slowly():
    "And say when a picture is read"
    def pixels(*args):
        os.write(1, b'.')
        time.sleep(3)
    pictures.Files.pixels = pixels


def test_interrupted_while_pictures_are_read(folder):
    image_folder(folder/'p', dict(a=4, bb=4))
    process = forked('pretrain', 'p', *TINY, cwd=folder, prepare=read_slowly)
    assert process.stdout.read(1) == '.'
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 130)
    assert (out.strip('.'), err) == ('', 'interrupted\n')
    assert not (folder/'runs').exists()


def test_interrupted_before_training(run, folder, monkeypatch):
    image_folder(folder/'p', dict(a=4, bb=4))
    def interrupt(learn): raise KeyboardInterrupt
    monkeypatch.setattr(training, 'control_results', interrupt)
    code, _, err = run('pretrain', 'p', *TINY, '--out', 'r')
    assert code == 130
    assert err == 'interrupted after 0 of 1 epochs: training had not begun, so there is no encoder.\n'
    assert config('r')['state'] == 'interrupted' and not Path('r/encoder.safetensors').exists()


def test_interrupted_after_training(run, folder, monkeypatch):
    image_folder(folder/'p', dict(a=4, bb=4))
    def interrupt(*args): raise KeyboardInterrupt
    monkeypatch.setattr(training, 'file_embedder', interrupt)
    code, _, err = run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')
    assert code == 130 and 'interrupted after 1 of 1 epochs' in err and config('r')['epochs_done'] == 1
    load_encoder('r/encoder.safetensors')


def test_a_run_without_its_encoder_is_not_finished(run, folder, monkeypatch):
    image_folder(folder/'p', dict(a=4, bb=4))
    def export(*args, **kwargs): raise MemoryError
    with monkeypatch.context() as m:
        m.setattr(ContrastiveLearner, 'export', export)
        code, out, err = run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')
    assert code == 1 and err.startswith('warning: this machine is out of memory') and config('r')['state'] == 'failed'
    assert not Path('r/encoder.safetensors').exists() and 'encoder.safetensors' not in out
    assert run('pretrain', '--resume', 'r')[0] == 0 and config('r')['state'] == 'finished'
    load_encoder('r/encoder.safetensors')


@pytest.mark.parametrize('error, words', [
    (torch.OutOfMemoryError(), 'out of memory on .*: give a larger --accumulate, or begin anew with a smaller --batch'),
    (MemoryError(), 'this machine is out of memory: give a larger --accumulate'),
    (ZeroDivisionError('x\ny'), 'ZeroDivisionError: x'),
    (OSError(errno.ENOSPC, 'No space left on device', 'f'), "no space is left on the disk for 'f'"),
    (FileNotFoundError(errno.ENOENT, 'No such file', 'p/a.png'), "the file 'p/a.png' can't be used: No such file"),
])
def test_other_errors(run, folder, monkeypatch, error, words):
    "One sentence, and where to read more"
    image_folder(folder/'p', dict(a=4, bb=4))
    def broken(learn): raise error
    monkeypatch.setattr(training, 'control_results', broken)
    code, _, err = run('pretrain', 'p', *TINY, '--out', 'r')
    end = '; training had not begun, so there is no encoder; the traceback is in r/error.txt.\n'
    assert code == 1 and re.fullmatch(f'error: {words}.*{re.escape(end)}', err), err
    c = config('r')
    assert c['state'] == 'failed' and re.match(words, c['reason']) and 'pid' not in c and c['epochs_done'] == 0
    assert 'def broken' in Path('r/error.txt').read_text() or type(error).__name__ in Path('r/error.txt').read_text()


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError('broken')], ids=repr)
def test_errors_of_a_callback(run, folder, monkeypatch, error):
    "fastai wraps what a callback raises, and fails over an exception without arguments; what was trained is kept"
    image_folder(folder/'p', dict(a=4, bb=4))
    class Breaks(Callback):
        def after_epoch(self): raise error
    fit = training.fit
    def with_callback(*args): fit(*args[:-1], [*args[-1], Breaks()])
    monkeypatch.setattr(training, 'fit', with_callback)
    code, _, err = run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')
    words = dict(MemoryError='this machine is out of memory: .*', RuntimeError='RuntimeError: broken')
    start = f"error: {words[type(error).__name__]}; the encoder as it was then is in r/encoder.safetensors; "
    assert code == 1 and re.match(start, err) and 'the traceback is in r/error.txt' in err, err
    load_encoder('r/encoder.safetensors')


@pytest.mark.parametrize('error, words', [
    (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. '),
     "a process that decodes pictures (7) was ended by the signal 'Killed'; if for want of memory, give fewer "
     "--workers"),
    (RuntimeError('DataLoader worker (pid(s) 7, 8) exited unexpectedly'),
     "a process that decodes pictures (7, 8) was ended; if for want of memory, give fewer --workers"),
    (OSError('Caught OSError in DataLoader worker process 0.\nOriginal Traceback …\nOSError: cannot read a.png\n'),
     'OSError: cannot read a.png'),
    (RuntimeError('Exception occured in `Table` when calling event `after_epoch`:\n\tno rows\nmore'),
     'RuntimeError: no rows'),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
     'this machine is out of memory: give a larger --accumulate, or begin anew with a smaller --batch-size or --size; '
     'fewer --workers take less, too'),
    (OSError(errno.EIO, 'Input/output error'), 'OSError: [Errno 5] Input/output error'),
    (KeyError(), 'KeyError'),
])
def test_sentences(error, words): assert sentence(error, 'cpu', 'pretrain') == words


@pytest.mark.parametrize('verb, words', [
    ('finetune', 'begin anew with a smaller --batch-size or --size'),
    ('detect', 'give a smaller --batch-size or --size'), ('embed', 'close what else uses it, or give fewer pictures')])
def test_what_takes_less_memory(verb, words):
    "Only what the verb has"
    assert sentence(torch.OutOfMemoryError(), 'cuda', verb) == f'out of memory on cuda: {words}'
    assert sentence(MemoryError(), 'cuda', verb).startswith(f'this machine is out of memory: {words}')


def test_out_of_memory_without_a_run(run, folder, monkeypatch):
    image_folder(folder/'p', dict(a=4))
    def short(*args, **kwargs): raise torch.OutOfMemoryError
    monkeypatch.setattr('fastcontrast.cli.views.read_pictures', short)
    code, _, err = run('views', 'p')
    assert code == 1 and err == "error: out of memory on its device: close what else uses it, or give fewer pictures.\n"


def test_a_run_out_of_memory_goes_on_in_parts(run, folder, monkeypatch):
    "By the command that it is told"
    image_folder(folder/'p', dict(a=8, bb=8))
    class Full(Callback):
        def after_epoch(self): raise torch.OutOfMemoryError
    fit = training.fit
    def with_callback(*args): fit(*args[:-1], [*args[-1], Full()])
    with monkeypatch.context() as m:
        m.setattr(training, 'fit', with_callback)
        code, _, err = run('pretrain', 'p', *TINY, '--epochs', 2, '--out', 'r', '--no-controls')
    command = re.search('go on with: fastcontrast (pretrain --resume r --accumulate 2)', err)
    assert code == 1 and command, err
    code, out, err = run(*command[1].split())
    assert code == 0 and 'accumulate: 2 in place of 1' in out and config('r')['epochs_done'] == 2, (out, err)
    assert run('pretrain', 'p', *TINY, '--epochs', 2, '--out', 'whole', '--no-controls')[0] == 0
    assert config('r')['settings']['accumulate'] == 2 and setting_of(config('r')) == setting_of(config('whole'))


def test_a_decoding_worker_is_killed(folder):
    image_folder(folder/'p', dict(a=4, bb=4))
    with TarWriter('s.tar') as tar:
        for i in range(16): tar.write(dict(__key__=str(i), png=picture(i), cls=i % 2))
    process = forked('pretrain', 's.tar', *TINY[:2], '--batch-size', 4, '--epochs', 5000, '--workers', 1, '--out', 'r',
                     '--no-controls', cwd=folder)
    until(process, folder/'r/history.csv')
    while process.poll() is None:  # each epoch has one of its own
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(): child.kill()
    _, err = finish(process, 1)
    assert re.match(r"error: a process that decodes pictures \(\d+\) was ended( by the signal 'Killed')?; if", err), err
    assert 'give fewer --workers; the encoder as it was then is in r/encoder.safetensors' in err
    assert config('r')['state'] == 'failed' and err.count('\n') == 1


def test_a_terminal_that_is_closed(folder):
    "As any signal; SIGTERM ends runs elsewhere here"
    image_folder(folder/'p', dict(a=4, bb=4))
    process = forked('pretrain', 'p', *TINY[:2], '--batch-size', 4, '--epochs', 5000, '--out', 'r', '--no-controls',
                     cwd=folder)
    until(process, folder/'r/history.csv')
    process.send_signal(signal.SIGHUP)
    _, err = finish(process, 129)
    assert re.match(r'interrupted after \d+ of 5000 epochs: the encoder as it was then is in r/enc', err), err
    assert config('r')['state'] == 'interrupted' and config('r')['reason'] == 'interrupted by SIGHUP'
    assert err.endswith('; go on with: fastcontrast pretrain --resume r\n')
    assert err.count('\n') == 1 and not {file.name for file in (folder/'r').iterdir()} & {'.lock', 'error.txt'}


def test_ctrl_c_while_the_curves_are_drawn(run, folder, monkeypatch):
    "Nobody loses what is done: it is written whole, and the run is finished"
    image_folder(folder/'p', dict(a=4, bb=4))
    draw = Job.draw_curves
    def slow(job):
        os.kill(os.getpid(), signal.SIGINT)
        draw(job)
    monkeypatch.setattr(Job, 'draw_curves', slow)
    assert run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')[0] == 0
    assert config('r')['state'] == 'finished' and Path('r/curves.png').stat().st_size > 1000


def test_a_reader_that_goes_away(folder):
    "As with `| head`"
    image_folder(folder/'p', dict(a=4, bb=4))
    process = started('pretrain', 'p', *TINY, '--no-controls', '--out', 'r', cwd=folder,
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == '' and process.wait(60) == 1
    assert config('r')['state'] == 'failed' and config('r')['reason'] == 'nobody reads what it prints'


def print_to_full_disk():
    for i in (1, 2): os.dup2(os.open('/dev/full', os.O_WRONLY), i)


def test_a_log_that_cannot_be_written_does_not_end_the_run(folder):
    "It may lie on the disk that has run full"
    if not Path('/dev/full').exists(): pytest.skip("no such device here")
    image_folder(folder/'p', dict(a=4, bb=4))
    process = forked('pretrain', 'p', *TINY, '--no-controls', '--out', 'r', cwd=folder, prepare=print_to_full_disk)
    assert process.wait(60) == 0 and config('r')['state'] == 'finished'


def print_in_latin_1():
    sys.stdout = open(1, 'w', encoding='iso-8859-1', closefd=False)


def test_a_terminal_that_does_not_know_a_character(folder):
    run_folder(folder/'runs/漢字')
    out, _ = finish(forked('runs', cwd=folder, prepare=print_in_latin_1), 0)
    assert 'finished' in out and '漢' not in out


def print_to_nobody():
    "As after `>&- 2>&-`: Python finds neither open"
    for i in (1, 2): os.close(i)
    sys.stdout = sys.stderr = None


def test_nor_does_the_lack_of_one(folder):
    image_folder(folder/'p', dict(a=4, bb=4))
    process = forked('pretrain', 'p', *TINY, '--no-controls', '--out', 'r', cwd=folder, prepare=print_to_nobody)
    assert process.wait(60) == 0 and config('r')['state'] == 'finished'
