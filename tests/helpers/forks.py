"""Processes that need not import what takes seconds: each is a fork of a server that did, and of nothing else."""
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing.reduction import DupFd

import torch.multiprocessing as mp

from fastcontrast import signals

METHOD = "forkserver"
CONTEXT = multiprocessing.get_context(METHOD)
CONTEXT.set_forkserver_preload([
    "fastcontrast.all", "fastcontrast.cli", "matplotlib.pyplot", "nbdev.showdoc", "nbdev.test"])


def start(process, *args, count=2):
    "`process(rank, *args)` in that many processes, as `mp.spawn` has it; what waits for them"
    return mp.start_processes(process, args, count, join=False, start_method=METHOD)


class _Started:
    "A process as `subprocess.Popen` has it, but for the start"
    def __init__(self, process):
        self.process = process
        process.start()
        self.pid = process.pid

    @property
    def returncode(self): return self.process.exitcode

    def poll(self): return self.process.exitcode

    def send_signal(self, number):
        if self.poll() is None: os.kill(self.pid, number)

    def kill(self): self.send_signal(signal.SIGKILL)

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.poll() is None: raise subprocess.TimeoutExpired('fastcontrast', timeout)
        return self.poll()


class Program(_Started):
    "`python -m fastcontrast`, and pipes for what it prints, unless it has files to print to"
    def __init__(self, args, cwd, env, prepare=None, files=()):
        pipes = [] if files else [os.pipe() for _ in range(2)]
        files = [writing for _, writing in pipes] or [file.fileno() for file in files]
        super().__init__(CONTEXT.Process(target=_program, daemon=True, args=(
            [*map(str, args)], str(cwd), env, prepare, *map(_Passed, files))))
        for _, writing in pipes: os.close(writing)
        if pipes: self.stdout, self.stderr = (os.fdopen(reading, encoding='utf-8') for reading, _ in pipes)

    def communicate(self, timeout=None):
        "Few lines: neither pipe is ever full"
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()


class _Passed:
    "A file descriptor on its way to another process"
    def __init__(self, fd): self.fd = fd
    def __reduce__(self): return _open, (DupFd(self.fd),)


def _open(passed): return passed.detach()


def _program(args, cwd, env, prepare, out, err):
    multiprocessing.current_process()._config['daemon'] = False  # it may have workers, as a program; it ends with tests
    multiprocessing.set_start_method('fork', force=True)
    for i, fd in (1, out), (2, err):
        os.dup2(fd, i)
        os.close(fd)
    sys.stdout, sys.stderr = (open(i, 'w', encoding='utf-8', closefd=False) for i in (1, 2))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # the server's
    if prepare: prepare()
    _run(args)


def _run(args):
    sys.argv = ['fastcontrast', *args]
    runpy.run_module('fastcontrast', run_name='__main__', alter_sys=True)


class Member(_Started):
    "One of the processes that `--processes 2` starts: a fork of the program itself, in place of a new Python"
    def __init__(self, command, env):
        super().__init__(multiprocessing.get_context('fork').Process(target=_member, args=(command, env)))


def _member(command, env):
    "It has heard and printed nothing so far"
    signals._active.remove()
    signals._active = None
    sys.stdout, sys.stderr = (open(i, 'w', encoding='utf-8', closefd=False) for i in (1, 2))
    os.environ.clear()
    os.environ.update(env)
    _run(command[command.index('fastcontrast') + 1:])
