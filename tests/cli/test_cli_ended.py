"Runs that end early keep what they have, and say so"
import csv
import fcntl
import os
import pty
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest
import torch
from helpers.cli import TINY, config, finish, pictures, started

from fastcontrast.cli import training
from fastcontrast.export import load_encoder


def test_diverging_run(run, folder):
    pictures(folder/'p', dict(a=10, bb=10))
    code, out, err = run('pretrain', 'p', *TINY[:2], '--epochs', 3, '--batch-size', 4, '--lr', 1e30,
                         '--setting', 'digits', '--out', 'r', '--no-controls')
    assert code == 2 and err.startswith('error: ') and err.count('\n') == 1 and 'lr' in err
    assert config('r')['state'].startswith('stopped: ')
    assert 'are not finite numbers, so no encoder was saved' in err and not Path('r/encoder.safetensors').exists()


def test_ctrl_c_in_training_on_a_terminal(folder):
    "There is a bar, and what was trained so far is kept"
    pictures(folder/'p', dict(a=20, bb=20))
    master, slave = pty.openpty()
    process = started('pretrain', 'p', *TINY[:2], '--epochs', 5000, '--batch-size', 4, '--out', 'r [i]',
                      '--no-controls', cwd=folder, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                      preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(slave)
    text, history, end = b'', folder/'r [i]/history.csv', time.monotonic() + 90
    while time.monotonic() < end:
        try: text += os.read(master, 4096)
        except OSError: break  # the program has gone
        trained = history.exists() and history.read_text().count('\n') > 2
        if b'^C' not in text and trained: os.write(master, b'\x03')
    assert process.wait(10) == 130, text.decode()
    text, c = text.decode(), config(folder/'r [i]')
    last = text.replace('\r', '\n').strip().splitlines()[-1]
    moves = text.count('\r') - text.count('\r\n')
    assert '█' in text and moves > 10 and text.count('\n') < 40 and 'Warning' not in text, "a bar that moves"
    assert c['state'] == 'interrupted' and 2 <= c['epochs_done'] < 5000
    assert (f"interrupted after {c['epochs_done']} of 5000 epochs: the encoder as it was then is in "
            "r [i]/encoder.safetensors.") in last
    encoder = load_encoder(folder/'r [i]/encoder.safetensors')
    assert all(tensor.isfinite().all() for tensor in encoder.state_dict().values())
    assert len(list(csv.DictReader(history.open()))) == c['epochs_done'] and (folder/'r [i]/curves.png').exists()


def test_interrupted_while_pictures_are_read(folder):
    pictures(folder/'p', dict(a=4, bb=4))
    os.mkfifo(folder/'p/a/0.png')  # a reader waits here until there is a writer, so the moment is known
    process = started('pretrain', 'p', *TINY, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer = os.open(folder/'p/a/0.png', os.O_WRONLY)
    process.send_signal(signal.SIGINT)
    assert finish(process, 130) == ('', 'interrupted\n')
    os.close(writer)
    assert not (folder/'runs').exists()


def test_interrupted_before_training(run, folder, monkeypatch):
    pictures(folder/'p', dict(a=4, bb=4))
    def interrupt(learn): raise KeyboardInterrupt
    monkeypatch.setattr(training, 'control_results', interrupt)
    code, _, err = run('pretrain', 'p', *TINY, '--out', 'r')
    assert code == 130
    assert err == 'interrupted after 0 of 1 epochs: training had not begun, so there is no encoder.\n'
    assert config('r')['state'] == 'interrupted' and not Path('r/encoder.safetensors').exists()


def test_interrupted_after_training(run, folder, monkeypatch):
    pictures(folder/'p', dict(a=4, bb=4))
    def interrupt(*args): raise KeyboardInterrupt
    monkeypatch.setattr(training, 'file_embedder', interrupt)
    code, _, err = run('pretrain', 'p', *TINY, '--out', 'r', '--no-controls')
    assert code == 130 and 'interrupted after 1 of 1 epochs' in err and config('r')['epochs_done'] == 1
    load_encoder('r/encoder.safetensors')


def test_out_of_memory_and_our_own_mistakes(run, folder, monkeypatch):
    pictures(folder/'p', dict(a=4, bb=4))
    def no_memory(learn): raise torch.OutOfMemoryError
    monkeypatch.setattr(training, 'control_results', no_memory)
    code, _, err = run('pretrain', 'p', *TINY, '--out', 'r')
    assert code == 2 and 'give a larger --accumulate, or a smaller --batch-size or --size' in err
    assert config('r')['state'].startswith('stopped: out of memory')
    def broken(learn): raise ZeroDivisionError('x')
    monkeypatch.setattr(training, 'control_results', broken)
    with pytest.raises(ZeroDivisionError): run('pretrain', 'p', *TINY, '--out', 's')
    assert config('s')['state'] == 'failed: ZeroDivisionError: x'


def test_a_reader_that_goes_away(folder):
    "As with `| head`"
    pictures(folder/'p', dict(a=4, bb=4))
    process = started('pretrain', 'p', *TINY, '--no-controls', '--out', 'r', cwd=folder,
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == '' and process.wait(60) == 1
    assert config('r')['state'].startswith('failed: ')
