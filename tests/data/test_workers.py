"Worker processes end with what needs them, whatever holds it in a cycle, and one that dies is said and replaced"
import copy
import gc
import os
import pickle
import time
from contextlib import suppress

import psutil
import pytest
import torch
from helpers.folders import dls_of, image_folder, picture, same
from helpers.pictures import ARCH
from webdataset import TarWriter

from fastcontrast.data import image_dls
from fastcontrast.learner import contrastive_learner
from fastcontrast.loaders import StratifiedLoader, Workers

STREAMED = dict(size=16, bs=8, memory=1e-12, workers=2, labels='all')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp('folder'), dict(a=25, b=25), size=(16, 16))


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp('shards')
    with TarWriter(str(root/'0.tar')) as tar:
        for i in range(100): tar.write(dict(__key__=f'{i:03}', png=picture(i, (16, 16)), cls=i % 3))
    return root


@pytest.fixture(params=['streaming', 'shards'])
def loader(request):
    # more batches than two workers read ahead, so that a pass needs each of them to its end
    if request.param == 'streaming': return dls_of(request.getfixturevalue('folder'), **STREAMED | dict(bs=4)).train
    return image_dls(request.getfixturevalue('shards'), bs=8, size=16, valid=0, workers=2, device='cpu').train


@pytest.fixture
def started():
    "How many worker processes there are, beside those of before"
    gc.collect()
    before = set(psutil.Process().children())
    return lambda: set(psutil.Process().children()) - before


def kill(process: psutil.Process) -> None:
    """End a child, and wait until it is dead; whoever started it finds it so

    Its death is signalled before this returns, and torch's handler of that raises here: not later, in another test."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def seconds_to_collect() -> float:
    "With what torch waits for, a worker that doesn't end, so long that no slow machine is taken for it"
    begin = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, 'MP_STATUS_CHECK_INTERVAL', 60)
        gc.collect()
    return time.perf_counter() - begin


def test_a_learner_that_is_collected(folder, started):
    "Training, validation and the pass in order have workers each; they took 5 s apiece"
    dls = dls_of(folder, **STREAMED)
    learn = contrastive_learner(dls, ARCH, method='simclr', small_input=False)
    with learn.no_logging(), learn.no_mbar(): learn.fit(1, 0.01)
    list(dls.valid)
    dls.cycle = learn
    assert len(started()) >= 4
    gc.collect()
    del learn, dls
    assert seconds_to_collect() < 30 and not started()


def test_a_pass_that_an_error_breaks_off(loader, started):
    "The loop lets go of it, though the error holds the frames; workers that stay from pass to pass serve the next one"
    def train():
        for number, _ in enumerate(loader):
            if number == 1: raise OSError("the training broke off")
    with pytest.raises(OSError) as caught: train()
    stay = 2 if loader.selects else 0
    assert len(started()) == stay
    assert len(list(loader)) == len(loader) and len(started()) == stay
    del caught


def test_the_frames_of_a_broken_pass_are_collected(loader, started):
    class Broken(Exception): pass

    def train(loader):
        batches = iter(loader)
        next(batches)
        raise Broken

    def cycle(loader):
        try: train(loader)
        except Broken as error:
            error.cause = error
            error.frames, error.loader = error.__traceback__, loader
    loaders = [copy.copy(loader)]
    cycle(loaders.pop())
    assert len(started()) == 2
    assert seconds_to_collect() < 30 and not started()
    assert len(list(loader)) == len(loader)


def test_a_pass_over_shards_leaves_no_worker(shards, started):
    train = image_dls(shards, bs=8, size=16, valid=0, workers=2, device='cpu').train
    for _ in range(2): list(train)
    assert not started()
    batches = iter(train)
    next(batches)
    assert len(started()) == 2
    batches.close()
    assert not started()


def test_copies_have_workers_of_their_own(folder, started):
    loader = dls_of(folder, **STREAMED).train
    whole = list(loader)
    loader.epoch, pairs = 0, []
    for make_copy in (copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))):
        other = make_copy(loader)
        assert other._workers is None
        pairs.append(other)
        same(other, whole)
    assert len(started()) == 8
    other = pairs.pop()
    del pairs
    gc.collect()
    assert len(started()) == 4
    same(loader, whole)  # those of others have ended, and these have not
    first, rest = next(batches := iter(other)), []
    other.to('cpu')  # others' workers, and the pass that is under way keeps its own
    rest = [first, *batches]
    same(rest, list(loader))
    del batches, loader, other
    gc.collect()
    assert not started()


def test_a_forked_process_ends_no_workers(folder, started):
    loader = dls_of(folder, **STREAMED).train
    whole = list(loader)
    if not (child := os.fork()):
        try:
            del loader
            gc.collect()
        finally: os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(started()) == 2
    loader.epoch = 0
    same(loader, whole)


def test_a_worker_that_is_killed_is_said_and_replaced(loader, started):
    whole = list(loader)
    loader.epoch = 0
    with pytest.raises(RuntimeError, match=r'DataLoader worker \(pid.*\d+\) (is killed by signal|exited)'):
        for number, _ in enumerate(loader):
            if number == 1:
                kill(min(started(), key=lambda process: process.pid))
    loader.epoch = 0
    same(loader, whole)
    gc.collect()
    assert len(started()) == (2 if loader.selects else 0)


def test_a_worker_that_is_killed_between_passes(folder, started):
    loader = dls_of(folder, **STREAMED).train
    whole = list(loader)
    for process in started():  # torch's handler of signals raises at once, wherever the program is
        with suppress(RuntimeError): kill(process)
    loader.epoch = 0
    same(loader, whole)
    assert len([process for process in started() if process.status() != psutil.STATUS_ZOMBIE]) == 2


def test_batches_by_class_let_go_in_a_cycle(folder, started):
    source = StratifiedLoader(dls_of(folder, **STREAMED).train, per_class=4)
    next(source)
    source.cycle = source
    assert started()
    del source
    assert seconds_to_collect() < 30 and not started()


def test_workers_without_processes():
    data = list(range(4))
    workers = Workers(data, 0, batch_size=2)
    assert workers.alive and [batch.tolist() for batch in workers] == [[0, 1], [2, 3]] == [
        batch.tolist() for batch in workers]
    workers.close()
    assert torch.is_tensor(next(iter(workers)))
