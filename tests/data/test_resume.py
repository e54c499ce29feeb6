"Passes that begin in the middle: the batches that the whole pass would have gone on with, and nothing before them read"
import random
from functools import partial

import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import GrandparentSplitter, get_image_files, parent_label
from fastai.vision.augment import RandomResizedCrop, aug_transforms
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from helpers.folders import as_process, dls_of, image_folder, picture, same
from webdataset import TarWriter

from fastcontrast import pictures as pictures_module
from fastcontrast.data import StratifiedLoader, image_dls
from fastcontrast.loaders import DecodingLoader, FastaiLoader, MappedLoader, PictureStream, ShardLoader, StreamingLoader
from fastcontrast.shards import Shards, ShardStream

STREAMED = dict(memory=1e-12)
FOLDERS = dict(resident={}, mapped=STREAMED | dict(cache=True, workers=0),
               **{f'streaming-{n}': STREAMED | dict(workers=n) for n in range(3)})
SHARDS = {f'shards-{n}': n for n in range(4)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return image_folder(tmp_path_factory.mktemp('folder')/'pictures', dict(a=13, b=12))


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    "Three shards of 70, 100 and 31 pictures, some of which cannot be decoded"
    root = tmp_path_factory.mktemp('shards')
    for k, (first, stop) in enumerate(((0, 70), (70, 170), (170, 201))):
        with TarWriter(str(root/f'{k}.tar')) as tar:
            for i in range(first, stop):
                tar.write(dict(__key__=f'{i:03}', png=b'' if i % 11 == 3 else picture(i, (8, 8)), cls=i % 3))
    return root


@pytest.fixture
def loader_of(request, monkeypatch):
    "What makes a training loader of a kind; the shards' draws come from a buffer that is smaller than they are"
    monkeypatch.setattr(ShardStream, 'buffer', 20)

    def loader(kind, **kwargs):
        if kind in FOLDERS:
            return dls_of(request.getfixturevalue('folder'), **dict(bs=4, valid=0, labels='all') | FOLDERS[kind]
                          | kwargs).train
        how = dict(bs=6, size=8, valid=0, labels='all', workers=SHARDS[kind], device='cpu')
        return image_dls(request.getfixturevalue('shards'), **how | kwargs).train
    return loader


def places(loader, kind) -> list[int]:
    "Where to begin; fewer where each pass starts processes, which take longer than all that they read"
    n = len(loader)
    return sorted({1, n - 1} if kind[-1] in '123' else {0, 1, n // 2, n - 1, n})


@pytest.mark.parametrize('kind', [*FOLDERS, 'shards-0', 'shards-3'])
def test_a_pass_begins_in_the_middle(loader_of, kind):
    loader = loader_of(kind)
    passes = [list(loader) for _ in range(2)]
    for begin in places(loader, kind):
        for resumed in (loader, loader_of(kind))[:1 + (begin == 1)]:  # one made anew, too
            resumed.epoch, resumed.begin = 1, begin
            assert len(resumed) == len(passes[1])
            same(resumed, passes[1][begin:])
            assert resumed.epoch == 2 and resumed.begin == 0
    loader.epoch, loader.begin = 0, 1
    same([loader.one_batch()], passes[0][:1])
    assert loader.begin == 1  # looking at a batch uses nothing up
    same(loader, passes[0][1:])
    same(loader, passes[1])  # and the next pass is a whole one


@pytest.mark.parametrize('kind', [*FOLDERS, 'shards-0', 'shards-3'])
def test_in_order_too(loader_of, kind):
    loader = loader_of(kind).ordered()
    whole = list(loader)
    for begin in places(loader, kind):
        loader.begin = begin
        same(loader, whole[begin:])


@pytest.mark.parametrize('kind', ['resident', 'mapped', 'streaming-1', 'shards-0', 'shards-2'])
def test_in_several_processes(loader_of, kind, monkeypatch):
    for process in range(3):
        as_process(monkeypatch, process, 3)
        loader = loader_of(kind, bs=9 if kind.startswith('shards') else 3)
        whole = list(loader)
        for begin in (1, len(loader) - 1):
            loader.epoch, loader.begin = 0, begin
            same(loader, whole[begin:])


@pytest.mark.parametrize('kind', [*FOLDERS, 'shards-0', 'shards-3'])
def test_copies_begin_at_the_start(loader_of, kind):
    loader = loader_of(kind)
    whole = list(loader.ordered())
    loader.begin = 2
    same(loader.ordered(), whole)
    assert loader.ordered(5).begin == 0 and len(list(loader.ordered(5))) == len(loader.ordered(5))
    if loader.selects: assert len(list(loader.only(torch.arange(6), 2))) == 3
    assert loader.begin == 2


def test_what_comes_before_is_not_decoded(loader_of, monkeypatch):
    loader, decoded = loader_of('streaming-0'), []
    whole, real = list(loader), PictureStream.__getitem__
    monkeypatch.setattr(PictureStream, '__getitem__', lambda stream, i: decoded.append(i) or real(stream, i))
    loader.epoch, loader.begin = 0, 4
    same(loader, whole[4:])
    assert len(decoded) == 4 * (len(whole) - 4)
    mapped = loader_of('mapped')
    monkeypatch.setattr(MappedLoader, '_read', lambda loader, rows: decoded.append(rows) or loader.pixels[rows])
    decoded.clear()
    mapped.begin = 4
    assert len(list(mapped)) == len(decoded) == len(mapped) - 4


@pytest.mark.parametrize('kind', ['streaming-2', 'shards-2'])
def test_at_the_end_no_worker_is_started(loader_of, kind, monkeypatch):
    loader = loader_of(kind)
    monkeypatch.setattr(DecodingLoader, '_arrived', None)
    monkeypatch.setattr(type(loader), '_images', None)
    loader.begin = len(loader)
    assert list(loader) == [] and (loader.epoch, loader.begin) == (1, 0)


def test_shards_are_not_read_from_their_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(ShardStream, 'buffer', 10)
    for k in range(4):
        with TarWriter(str(tmp_path/f'{k}.tar')) as tar:
            for i in range(200): tar.write(dict(__key__=f'{i:03}', png=picture(k * 200 + i, (8, 8))))
    loader, read = image_dls(tmp_path, bs=4, size=8, valid=0, workers=0, device='cpu').train, []
    whole, real, attempt = list(loader), Shards.read, pictures_module.attempt
    monkeypatch.setattr(Shards, 'read', lambda shards, *span: read.append(span) or real(shards, *span))
    tried = []
    monkeypatch.setattr('fastcontrast.shards.attempt', lambda *args: tried.append(args) or attempt(*args))
    for begin in (150, 190, 199):
        loader.epoch, loader.begin = 0, begin
        read.clear(), tried.clear()
        same(loader, whole[begin:])
        pictures = sum(stop - start for _, start, stop in read)
        left = 4 * (200 - begin)
        assert len(tried) == left and left <= pictures < left + 100


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('ordered', [False, True])
def test_the_last_pictures_cannot_be_decoded(tmp_path, workers, ordered, monkeypatch):
    "The one that stands in for them was passed over"
    with TarWriter(str(tmp_path/'0.tar')) as tar:
        for i in range(60): tar.write(dict(__key__=f'{i:02}', png=picture(i, (8, 8)) if i % 30 < 8 else b''))
    monkeypatch.setattr(ShardStream, 'buffer', 1)
    train = image_dls(tmp_path, bs=5, size=8, valid=0, workers=workers, device='cpu').train
    loader = train.ordered() if ordered else train
    whole = list(loader)
    for begin in {1, len(whole) // 2, len(whole) - 1}:
        loader.epoch, loader.begin = 0, begin
        same(loader, whole[begin:])


# --- fastai's

def fastai_loader(folder, workers=0, seed=0) -> FastaiLoader:
    "Random crops by Python's generator, other transforms by PyTorch's, and noise by NumPy's"
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                      splitter=GrandparentSplitter(), item_tfms=[RandomResizedCrop(16), noisy],
                      batch_tfms=aug_transforms())
    random.seed(random.SystemRandom().random())  # fastai draws the seed of a loader from there
    loader = image_dls(block.dataloaders(folder, bs=4, num_workers=workers), labels='all', device='cpu').train
    loader.seed = seed
    return loader


def noisy(x: PILImage):
    brighter = np.random.randint(20)
    return x.point(lambda value: min(255, value + brighter))


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    root = tmp_path_factory.mktemp('split')
    image_folder(root/'train', dict(a=9, b=9), size=(24, 24))
    image_folder(root/'valid', dict(a=2, b=2), size=(24, 24))
    return root


def generators():
    "The states of everybody's generators"
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.parametrize('workers', [0, 1])
def test_a_fastai_loader_is_a_function_of_seed_and_epoch(split, workers):
    make_loader = partial(fastai_loader, split, workers)
    loader, other = make_loader(), make_loader()
    before = generators()
    passes = [list(loader) for _ in range(2)]
    assert generators() == before and len(passes[0]) == 4
    torch.rand(1), np.random.rand(1), random.random()
    same(other, passes[0])
    for begin in (0, 1, 3, 4):
        other.epoch, other.begin = 1, begin
        same(other, passes[1][begin:])
        assert (other.epoch, other.begin) == (2, 0)
    order = [[y.tolist() for _, y in batches] for batches in passes]
    assert order[0] != order[1] and not any(torch.equal(x, z) for (x, _), (z, _) in zip(*passes))
    assert not torch.equal(next(iter(make_loader(seed=1)))[0], passes[0][0][0])


def test_a_fastai_pass_that_is_disturbed(split):
    whole, loader = list(fastai_loader(split)), fastai_loader(split)
    seen, before = [], generators()
    for batch in loader:
        seen.append(batch)
        assert generators() == before
        torch.rand(3), np.random.rand(3), random.random()
        before = generators()
        loader.one_batch()
        assert generators() == before
    same(seen, whole)
    loader.epoch = 0
    assert torch.equal(loader.one_batch()[0], whole[0][0])
    list(loader.ordered())
    assert generators() == before


# --- batches by class

@pytest.mark.parametrize('kind', FOLDERS)
def test_batches_by_class_go_on_at_a_place(loader_of, kind, monkeypatch):
    monkeypatch.setattr(StratifiedLoader, 'ahead', 5)
    make_loader = partial(StratifiedLoader, loader_of(kind), per_class=2, seed=3)
    loader, seen, taken = make_loader(), [], [(0, 0)]
    for _ in range(12):
        seen.append(next(loader))
        taken.append(loader.place)
    assert taken[4:8] == [(1, 4), (1, 5), (2, 1), (2, 2)]
    other = make_loader()
    for n in (9, 0, 3, 5, 6, 10):
        other.go_to(*taken[n])
        assert other.place == taken[n]
        same([next(other), next(other)], seen[n:n + 2])
    loader.go_to(1, 3)
    loader.close()
    assert loader.place == (1, 0)
    same([next(loader)], seen[5:6])
    loader.close(), other.close()


@pytest.mark.parametrize('kind', ['resident', 'streaming-0'])
def test_batches_by_class_go_on_in_several_processes(loader_of, kind, monkeypatch):
    whole = StratifiedLoader(loader_of(kind), per_class=2)
    images, y = [next(whole) for _ in range(8)][-1]
    for process in range(2):
        as_process(monkeypatch, process, 2)
        part = StratifiedLoader(loader_of(kind), per_class=2)
        part.go_to(1, 7)
        same([next(part)], [(images[2 * process:][:2], y[2 * process:][:2])])


def test_kinds_are_what_they_are_called(loader_of):
    assert isinstance(loader_of('mapped'), MappedLoader) and isinstance(loader_of('streaming-1'), StreamingLoader)
    assert isinstance(loader_of('shards-1'), ShardLoader) and not loader_of('resident').streaming
