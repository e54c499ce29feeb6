"The store of decoded pictures: the same tensors, built once, believed only when it is whole and of now"
import errno
import json
import os
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections import namedtuple
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import everything, image_folder, picture, same
from helpers.odd import KINDS, no_file, within
from helpers.refusals import said
from PIL import Image
from safetensors import safe_open

from fastcontrast import cache as cache_module
from fastcontrast.cache import open_store, store_path
from fastcontrast.core import InputError
from fastcontrast.data import StratifiedLoader, find_pictures, image_dls
from fastcontrast.formats import PixelFormat, Span
from fastcontrast.loaders import load_rows
from fastcontrast.pictures import Files


JPEGS = dict(size=(40, 40), suffix='jpg')


def dls_of(source, **kwargs):
    return image_dls(source, **dict(bs=4, size=24, store_size=28, workers=0, device='cpu', cache=True) | kwargs)


def store(root, part='all'): return store_path(True, root, part, 28)
def left(root): return sorted(p.name for p in store(root).parent.glob('*') if not p.name.endswith('.lock'))


@pytest.fixture
def root(tmp_path): return image_folder(tmp_path/'pictures', dict(a=9, b=8), **JPEGS)


# ---------------------------------------------------------------- the same tensors

@pytest.mark.parametrize('workers', [0, 2])
def test_cached_batches_are_the_uncached_ones(root, workers):
    kwargs = dict(labels=0.5, workers=workers)
    plain, built, found = (dls_of(root, cache=c, **kwargs) for c in (None, True, True))
    for dls in (built, found):
        plain.train.epoch = 0
        for _ in range(2): same(plain.train, dls.train)
        next(iter(dls.train)), next(iter(plain.train))  # a pass that is given up
        same([plain.train.one_batch()], [dls.train.one_batch()])
        same(plain.train.ordered(), dls.train.ordered())
        same(plain.train.ordered(5), dls.train.ordered(5))
        same(plain.valid, dls.valid)
        by_class = [StratifiedLoader(d.train, seed=3) for d in (plain, dls)]
        same(*[[next(b) for _ in range(3)] for b in by_class])
        assert dls.train.data.names == plain.train.data.names
        assert torch.equal(dls.train.data.labeled, plain.train.data.labeled)
    assert not dls.train.streaming


def test_a_pass_that_is_given_up_waits_for_no_thread(root, monkeypatch):
    "The garbage collector may end it where `threading` has its own lock, and waiting would not end"
    waited, given_up = [], iter(dls_of(root, cache=True, bs=2, workers=0).train)
    next(given_up)
    monkeypatch.setattr(threading.Thread, 'join', lambda thread, *_: waited.append(thread))
    given_up.close()
    assert not waited


def test_building_and_reading_draw_no_random_numbers(root):
    "A run is the same whether it builds the store, finds it, decodes, or has the pictures in memory"
    before = torch.get_rng_state()
    for kwargs in (dict(workers=2), {}, dict(cache=None, memory=1e-12, workers=2)): list(dls_of(root, **kwargs).train)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_store_serves_every_split_and_batch_size(root):
    dls_of(root)
    built = store(root).stat().st_mtime_ns
    for kwargs in (dict(seed=1), dict(valid=0), dict(bs=2, labels='all'), dict(valid=.5)):
        same(dls_of(root, **kwargs).train, dls_of(root, cache=None, **kwargs).train)
    assert store(root).stat().st_mtime_ns == built and left(root) == [store(root).name]
    dls_of(root, store_size=20)
    assert len(left(root)) == 2


def test_parts_in_folders_of_their_own(tmp_path):
    image_folder(tmp_path/'x/train', dict(a=5, b=4), **JPEGS)
    image_folder(tmp_path/'x/val', dict(b=3), **JPEGS)
    cached, plain = (dls_of(tmp_path/'x', cache=c) for c in (tmp_path/'there', None))
    same(cached.train, plain.train)
    same(cached.valid, plain.valid)
    stores = sorted((tmp_path/'there').glob('*.safetensors'))
    assert stores == [store_path(tmp_path/'there', tmp_path/'x', part, 28) for part in ('train', 'valid')]
    assert not (tmp_path/'x.cache').exists()


def test_folders_of_one_name_share_a_folder_for_their_stores(tmp_path, capsys):
    roots = [image_folder(tmp_path/part/'train', dict(a=5, b=4), **JPEGS) for part in ('birds', 'cars')]
    for built in (2, 0):
        for root in roots: same(dls_of(root, cache=tmp_path/'kept').train, dls_of(root, cache=None).train)
        assert capsys.readouterr().err.count('decoding 9 pictures') == built
    assert len(list((tmp_path/'kept').glob('*.safetensors'))) == 2


def test_undecodable_pictures(root):
    (root/'a/bad0.png').write_bytes(b'')
    (root/'b/bad1.jpg').write_text('<html>not found</html>')
    for _ in range(2):
        cached, plain = (dls_of(root, cache=c, valid=0) for c in (True, None))
        assert cached.report() == plain.report() and cached.report().startswith('2 of 19 pictures')
        same(cached.train, plain.train)
        assert cached.train.data.names == plain.train.data.names
    held, plain = (dls_of(root, cache=c, valid=.3) for c in (True, None))
    same(held.valid, plain.valid)
    assert held.train.data.failed == plain.train.data.failed and held.valid.data.failed == plain.valid.data.failed
    with pytest.raises(InputError, match='bad0.png could not be decoded .empty file'): dls_of(root, strict=True)
    shutil.rmtree(store(root).parent)
    with pytest.raises(InputError, match='bad0.png could not be decoded .empty file'): dls_of(root, strict=True)
    assert left(root) == []


def test_nothing_can_be_decoded(tmp_path):
    (tmp_path/'x/a').mkdir(parents=True)
    for i in range(4):
        picture(i, (60, 60)).save(tmp_path/f'x/a/{i}.png')
        os.truncate(tmp_path/f'x/a/{i}.png', 200)
    with pytest.raises(InputError, match='no picture could be decoded.*truncated'): dls_of(tmp_path/'x', valid=0)
    assert left(tmp_path/'x') == []


# ---------------------------------------------------------------- what could not be decoded, tried again

@contextmanager
def unreadable(monkeypatch, *names, error=errno.EMFILE):
    "Within the block the system has none of these files"
    decode = Files.pixels
    def pixels(self, i, form):
        if self.names[i] in names: raise OSError(error, os.strerror(error))
        return decode(self, i, form)
    with monkeypatch.context() as patch:
        patch.setattr(Files, 'pixels', pixels)
        yield


@pytest.mark.parametrize('workers', [0, 2])
def test_a_picture_that_can_be_decoded_again_gets_its_place(root, monkeypatch, capsys, workers):
    monkeypatch.setattr(cache_module._Chunks, 'size', 1)
    (root/'a/bad.png').write_bytes(b'')
    kwargs = dict(valid=0, workers=workers)
    with unreadable(monkeypatch, 'a/000.jpg', 'b/003.jpg', 'b/007.jpg'): first = dls_of(root, **kwargs)
    assert first.report().startswith('4 of 18 pictures') and 'Too many open files' in first.report()
    seen = everything(first.train.ordered())
    with unreadable(monkeypatch, 'b/003.jpg'): assert dls_of(root, **kwargs).report().startswith('2 of 18 pictures')
    capsys.readouterr()
    for line in (f"the cache '{store(root)}' gets 1 of the pictures that could not be decoded before\n", ''):
        cached, plain = (dls_of(root, cache=c, **kwargs) for c in (True, None))
        assert cached.report() == plain.report() and cached.report().startswith('1 of 18 pictures')
        same(cached.train, plain.train)
        assert cached.train.data.names == plain.train.data.names and capsys.readouterr().err == line
    assert all(map(torch.equal, everything(first.train.ordered()), seen)) and left(root) == [store(root).name]


def test_a_picture_that_still_cannot_be_decoded_has_the_reason_of_now(root, monkeypatch):
    with unreadable(monkeypatch, 'a/000.jpg'): dls_of(root)
    before = store(root).stat()
    with unreadable(monkeypatch, 'a/000.jpg', error=errno.EIO):
        report = dls_of(root).report()
        said(['a/000.jpg could not be decoded (Input/output error)'], dls_of, root, strict=True)
    assert 'a/000.jpg (Input/output error)' in report and store(root).stat() == before


def test_of_processes_that_start_together_one_writes_what_can_be_decoded_again(root, monkeypatch):
    with unreadable(monkeypatch, 'a/000.jpg', 'b/003.jpg'): dls_of(root)
    processes = [started(root, pause=.2) for _ in range(3)]
    for process, _ in processes: process.join(60)
    assert [process.exitcode for process, _ in processes] == [0, 0, 0]
    assert ''.join(file.read_text() for _, file in processes).count('gets 2 of the pictures') == 1
    same(dls_of(root).train, dls_of(root, cache=None).train)


@pytest.mark.parametrize('denied', ['lock', 'file'])
def test_a_store_that_nobody_may_write_lacks_what_can_be_decoded_again(root, monkeypatch, denied):
    with unreadable(monkeypatch, 'a/000.jpg'): dls_of(root)
    def fails(*args, **kwargs): raise OSError(errno.EROFS, 'Read-only file system')
    place = (cache_module.FileLock, 'acquire') if denied == 'lock' else (cache_module, '_written_behind')
    with monkeypatch.context() as patch:
        patch.setattr(*place, fails)
        words = f"it can be decoded now, but the cache '{store(root)}' cannot be written (Read-only file system)"
        assert f'a/000.jpg ({words}: give cache' in dls_of(root).report()
        said([words.partition('but ')[2]], dls_of, root, strict=True)
    assert dls_of(root, strict=True).report() == ''


def test_clipped_pictures_that_can_be_decoded_again_are_counted_once(tmp_path, monkeypatch):
    for i in range(4): Image.fromarray(np.full((8, 8), 1000 * i, np.uint16)).save(tmp_path/f'{i}.png')
    pictures = Files(tmp_path, [f'{i}.png' for i in range(4)], np.zeros(4, int))
    def counted():
        form = PixelFormat(8, channels=1, bits=16, span=Span(0, 500, outside=torch.zeros(1, dtype=torch.int64)))
        open_store(pictures, form, tmp_path/'s.safetensors', 0)
        return form.span.outside.item()
    with unreadable(monkeypatch, '0.png', '2.png'): assert counted() == 2
    assert [counted(), counted()] == [3, 3]


# ---------------------------------------------------------------- kept where, and read when

def test_resident_pictures_come_from_the_store(root):
    "As on a GPU whose memory they fit in"
    pictures = Files(root, find_pictures(root), np.zeros(17, dtype=int))
    pixels, _ = open_store(pictures, PixelFormat(28), store(root), 0)
    loaded = load_rows(pixels, torch.tensor([3, 0, 16]), torch.device('cpu'))
    form = PixelFormat(28)
    assert torch.equal(loaded, torch.stack([torch.from_numpy(pictures.pixels(i, form).copy()) for i in (3, 0, 16)]))


def test_epochs_do_not_decode(root, monkeypatch):
    dls_of(root)
    for path in root.rglob('*.jpg'):  # the same names, sizes and times, but nothing to be decoded
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    monkeypatch.setattr('fastcontrast.data.common_size', lambda lists: None)
    assert len(everything(dls_of(root).train)[0]) == 12


# ---------------------------------------------------------------- is it believed?

@pytest.mark.parametrize('change', ['picture', 'added', 'removed', 'renamed', 'truncated', 'shorter by a byte', 'empty',
                                    'foreign', 'other tensors', 'older'])
def test_rebuilt_with_one_line(root, change, capsys):
    dls_of(root)
    assert capsys.readouterr().err.splitlines() == [f"decoding 17 pictures at 28 px into '{store(root)}' (0.0 MB)"]
    dls_of(root)
    assert capsys.readouterr().err == ''
    path, first = store(root), root/'a/000.jpg'
    if change == 'picture': Image.new('RGB', (40, 40), 'red').save(first)
    if change == 'added': Image.new('RGB', (40, 40), 'red').save(root/'a/999.jpg')
    if change == 'removed': first.unlink()
    if change == 'renamed': first.rename(root/'a/zzz.jpg')
    if change == 'truncated': os.truncate(path, path.stat().st_size // 2)
    if change == 'shorter by a byte': os.truncate(path, path.stat().st_size - 1)
    if change == 'empty': os.truncate(path, 0)
    if change == 'foreign': path.write_text('this was something else')
    if change == 'other tensors':
        from safetensors.numpy import save_file
        save_file(dict(pixels=np.zeros((17, 3, 28, 28), np.uint8)), path)
    if change == 'older':
        path.write_bytes(path.read_bytes().replace(b'fastcontrast pictures 1', b'fastcontrast pictures 0'))
    same(dls_of(root).train, dls_of(root, cache=None).train)
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"the cache '{path}' ") and 'it is built again: decoding 1' in line
    faults = dict(truncated='truncated', empty='truncated', foreign='no store', older='another program or version')
    assert faults.get(change, '') in line
    dls_of(root)
    assert capsys.readouterr().err == '' and left(root) == [path.name]


def test_any_program_can_read_it(root):
    dls_of(root, valid=0)
    with safe_open(store(root), 'pt') as file:
        assert file.metadata()['format'] == cache_module.FORMAT and file.metadata()['side'] == '28'
        x = file.get_tensor('pixels')
        assert json.loads(bytes(file.get_tensor('failed').tolist())) == {}
    assert torch.equal(x, everything(dls_of(root, valid=0).train.ordered())[0])


def rewrite(path, head=lambda head: None, tail=None):
    "A store with another header or other failures, whole in itself"
    content = path.read_bytes()
    described = json.loads(content[8:4096])
    failed = content[4096 + described['pixels']['data_offsets'][1]:] if tail is None else tail
    begin = described['pixels']['data_offsets'][1]
    described['failed'] = dict(dtype='U8', shape=[len(failed)], data_offsets=[begin, begin + len(failed)])
    head(described)
    path.write_bytes(content[:8] + json.dumps(described).encode().ljust(4088) + content[4096:4096 + begin] + failed)


def shaped(shape, dtype='U8'):
    def change(head): head['pixels'] |= dict(shape=shape, dtype=dtype)
    return change


N = 17 * 3 * 28 * 28

@pytest.mark.parametrize('change', [
    dict(head=shaped([17, 3, 784])), dict(head=shaped([17, 28, 28, 3])), dict(head=shaped([N])),
    dict(head=shaped([17, 3, 14, 14], 'F32')), dict(head=shaped([17, 3, 28, 28], 'I8')),
    dict(head=shaped([17, 3, 28, 28], 'BOOL')), dict(head=shaped([34, 3, 14, 28])), dict(tail=b''), dict(tail=b'[]'),
    dict(tail=b'{'), dict(tail=b'{"99": "x"}'), dict(tail=b'{"-1": "x"}'), dict(tail=b'{"a": "x"}'), dict(tail=b'\xff'),
    dict(tail=b'[' * 100_000), dict(tail=b'5'), dict(head=lambda head: head.pop('failed')),
    dict(head=lambda head: head['failed'].update(dtype='I8')),
    dict(head=lambda head: head.update(other=head['failed'])),
], ids=[f"lie {i}" for i in range(19)])
def test_a_header_that_lies_is_refused_and_the_store_built_again(root, change, capsys):
    expected = everything(dls_of(root).train.ordered())
    rewrite(store(root), **change)
    capsys.readouterr()
    got = everything(dls_of(root).train.ordered())
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"the cache '{store(root)}' is truncated, or no store of pictures, it is built again: ")


def test_a_store_with_a_header_of_another_length(root, capsys):
    "Whose pixels so lie elsewhere"
    from safetensors.numpy import save_file
    dls_of(root)
    with safe_open(store(root), 'np') as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in ('pixels', 'failed')}
    store(root).unlink()
    save_file(tensors, store(root), metadata=metadata)
    capsys.readouterr()
    same(dls_of(root).train, dls_of(root, cache=None).train)
    assert 'no store of pictures, it is built again' in capsys.readouterr().err


def test_a_store_with_failures_written_anew_is_the_same(root):
    (root/'a/bad.png').write_bytes(b'')
    expected = dls_of(root).report()
    rewrite(store(root))
    assert dls_of(root).report() == expected


@pytest.mark.parametrize('cut', [1, 100, 4096 + 10, 10**9])
def test_a_store_cut_short_is_no_bus_error(root, cut):
    "Were it mapped as its header has it, the first look would end the process"
    expected = everything(dls_of(root, valid=0).train.ordered())[0]
    os.truncate(store(root), max(0, store(root).stat().st_size - cut))
    assert torch.equal(everything(dls_of(root, valid=0).train.ordered())[0], expected)


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_no_file_in_the_store_s_place(root, kind):
    store(root).parent.mkdir()
    no_file(store(root), kind)
    with within(30): dls_of(root)
    assert store(root).is_file() and not store(root).is_symlink()


@pytest.mark.parametrize('n, workers, expected', [
    (1, 40, 0), (32, 40, 0), (33, 40, 2), (70, 40, 3), (70, 2, 2), (70, 0, 0)])
def test_no_more_processes_than_chunks(tmp_path, monkeypatch, n, workers, expected):
    seen = []
    class Loader(cache_module.DataLoader):
        def __init__(self, *args, **kwargs):
            seen.append(kwargs['num_workers'])
            super().__init__(*args, **kwargs | dict(num_workers=0))
    monkeypatch.setattr(cache_module, 'DataLoader', Loader)
    root = image_folder(tmp_path/'x', dict(a=n), size=(4, 4))
    open_store(Files(root, find_pictures(root), np.zeros(n, int)), PixelFormat(4), tmp_path/'s.safetensors', workers)
    assert seen == [expected]


def test_names_are_shown_and_not_obeyed(tmp_path, capsys):
    root = image_folder(tmp_path/'\x1b[2J\n', dict(a=4))
    dls_of(root, valid=0)
    said = capsys.readouterr().err
    assert '\\x1b[2J\\n.cache' in said and '\x1b' not in said and said.count('\n') == 1


def test_the_home_folder(root, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    for cache in ('~/kept', Path('~/kept')): assert store_path(cache, root, 'all', 28).parent == tmp_path/'kept'
    assert store_path(True, '~/x', 'all', 28).parent == tmp_path/'x.cache'


def slow_build(said, root, pause, workers, limit, hold):
    "In a process of its own"
    sys.stderr = open(said, 'w', buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    torch.set_num_threads(1)
    decode = Files.pixels
    def slowly(self, i, side):
        time.sleep(pause)
        while hold and hold.exists(): time.sleep(.02)
        return decode(self, i, side)
    Files.pixels = slowly
    if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try: dls_of(root, workers=workers)
    except (InputError, KeyboardInterrupt) as e:
        print(f'{type(e).__name__}: {e}', file=sys.stderr)
        os._exit(1)


def started(root, pause=0., workers=0, limit=0, hold=None):
    "A process that builds the store, but decodes nothing while there is a file `hold`; and the file with what it says"
    said = root.parent/f'said-{time.monotonic_ns()}'
    process = get_context('fork').Process(target=slow_build, args=(said, root, pause, workers, limit, hold))
    process.start()
    return process, said


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f'{path} never came'
        time.sleep(.02)


@pytest.mark.parametrize('workers, sign', [(0, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGINT)])
def test_a_killed_build_leaves_no_store(root, workers, sign):
    image_folder(root, dict(a=80), **JPEGS)
    process, _ = started(root, pause=.1, workers=workers)
    partial = store(root).with_name(f'.{store(root).name}.partial')
    wait_for(partial)
    time.sleep(.3)
    os.kill(process.pid, sign)
    process.join(60)
    assert process.exitcode and not store(root).exists()
    assert partial.exists() == (sign == signal.SIGKILL)
    same(dls_of(root).train, dls_of(root, cache=None).train)
    assert left(root) == [store(root).name]


def test_of_processes_that_start_together_one_builds(root, tmp_path):
    hold = tmp_path/'hold'
    hold.touch()
    processes = [started(root, hold=hold) for _ in range(3)]
    def told(): return ''.join(file.read_text() for _, file in processes if file.exists())
    end = time.monotonic() + 60
    while told().count('waiting for the process that builds') < 2 and time.monotonic() < end: time.sleep(.02)
    hold.unlink()
    for process, _ in processes: process.join(60)
    assert [process.exitcode for process, _ in processes] == [0, 0, 0]
    said = told()
    assert said.count('decoding 17 pictures') == 1 and said.count('waiting for the process that builds') == 2
    assert left(root) == [store(root).name]


# ---------------------------------------------------------------- what cannot work

def test_disk_too_small(root, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(cache_module.shutil, 'disk_usage', lambda path: usage(10**9, 10**9 - 40_000, 40_000))
    with pytest.raises(InputError, match='17 pictures takes 0.0 MB and its disk has 0.0 MB left: give cache'):
        dls_of(root)
    assert left(root) == []


@pytest.mark.parametrize('workers', [0, 2])
def test_disk_full_half_way(root, workers):
    image_folder(root, dict(a=80), **JPEGS)
    process, said = started(root, workers=workers, limit=100_000)
    process.join(60)
    line = said.read_text().splitlines()[-1]
    assert process.exitcode == 1 and line.startswith('InputError: the cache')
    assert 'File too large' in line and 'give cache' in line
    assert left(root) == []


def test_unwritable_folders(root, tmp_path):
    (tmp_path/'file').write_text('')
    for folder in (tmp_path/'file', tmp_path/'file/below', '/proc/nowhere'):
        with pytest.raises(InputError, match='cannot be written .*: give cache'): dls_of(root, cache=folder)


def test_a_store_that_is_there_needs_no_writing(root):
    dls_of(root)
    shutil.move(store(root), root.parent/'kept')
    shutil.rmtree(store(root).parent)
    store(root).parent.mkdir()
    shutil.move(root.parent/'kept', store(root))
    store(root).parent.chmod(0o555)
    try: assert len(dls_of(root).train) == 3 and os.listdir(store(root).parent) == [store(root).name]  # not even a lock
    finally: store(root).parent.chmod(0o755)


@pytest.mark.parametrize('kwargs, message', [
    (dict(cache=''), 'cache=.. should be True'), (dict(cache=3), 'cache=3 should be True'),
    (dict(source='digits'), 'leave cache .--cache. out'), (dict(source=[1, 2]), 'leave cache .--cache. out')])
def test_bad_values(root, kwargs, message):
    with pytest.raises(InputError, match=message): dls_of(**dict(source=root) | kwargs)


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store_path(True, 'data/x/', 'all', 32) == tmp_path/'data/x.cache/x-all-32px.safetensors'
    name = tmp_path.name
    assert store_path(True, '.', 'all', 32) == tmp_path.parent/f'{name}.cache/{name}-all-32px.safetensors'
    kept = store_path('~/c', 'x', 'train', 32)
    assert kept.parent == Path.home()/'c' and re.fullmatch(r'x-[0-9a-f]{8}-train-32px.safetensors', kept.name)
    assert kept == store_path('~/c', tmp_path/'x/', 'train', 32) != store_path('~/c', 'y/x', 'train', 32)


# ---------------------------------------------------------------- the disk

def test_the_disk_writes_while_pictures_are_decoded(root, monkeypatch):
    "Now and then, and one time after the other"
    calls, steps, end = [], [], time.monotonic() + 60
    monkeypatch.setattr(os, 'fsync', lambda handle: calls.append(len(steps)))
    file = root/'a/000.jpg'
    for step in cache_module._written_behind(file, range(3 * cache_module.BEHIND + 1)):
        steps.append(step)
        while len(calls) < step // cache_module.BEHIND and time.monotonic() < end: time.sleep(.01)
        time.sleep(.01)
    assert steps == list(range(3 * cache_module.BEHIND + 1)) and len(calls) == 3 and calls[0] >= cache_module.BEHIND


def test_a_store_that_the_system_cannot_read_now_is_kept(root, monkeypatch):
    "It may be a good one: memory for it is short, or a disk is not there for a moment"
    dls_of(root)
    before = store(root).stat()
    def fails(*args, **kwargs): raise OSError(errno.ENOMEM, 'Cannot allocate memory')
    with monkeypatch.context() as m:
        m.setattr(np, 'memmap', fails)
        said([f"the cache '{store(root)}' can't be read: Cannot allocate memory."], dls_of, root)
    assert store(root).stat() == before
    dls_of(root)


def test_a_disk_that_fails_while_it_writes_is_said(root, monkeypatch):
    def fsync(handle): raise OSError(5, 'Input/output error')
    monkeypatch.setattr(os, 'fsync', fsync)
    monkeypatch.setattr(cache_module._Chunks, 'size', 1)
    with pytest.raises(InputError, match='cannot be written .Input/output error.: give cache'): dls_of(root)
    assert left(root) == []
