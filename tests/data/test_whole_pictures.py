"Pictures that are no squares are kept whole: squashed to squares, with their aspects beside them, however they come"
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import Given, dls_of, everything, image_folder, picture, same
from helpers.forks import CONTEXT
from helpers.memory import small_pages
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from fastcontrast import pictures as pictures_module
from fastcontrast.core import InputError
from fastcontrast.data import StratifiedLoader, image_dls
from fastcontrast.formats import LONGEST, PixelFormat
from fastcontrast.pictures import decoded, square_pixels
from fastcontrast.views import plain_view, two_views

SIZES = [(60, 40), (40, 60), (48, 48), (90, 40), (52, 44)]
KINDS = dict(resident={}, mapped=dict(memory=1e-12, workers=0, cache=True), streamed=dict(memory=1e-12, workers=2),
             in_this_process=dict(memory=1e-12, workers=0))


def ramp(width, height):
    "Red grows from left to right, green from top to bottom"
    x, y = np.meshgrid((np.arange(width) + .5) / width, (np.arange(height) + .5) / height)
    return Image.fromarray((np.stack([x, y, x * 0], 2) * 255).round().astype(np.uint8))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Twelve pictures in two classes, of five shapes, one of them broken"
    root = tmp_path_factory.mktemp('folder')/'x'
    for c in 'ab':
        (root/c).mkdir(parents=True)
        for i in range(6): picture(i + 6 * (c == 'b'), SIZES[i % 5]).save(root/c/f'{i}.png')
    (root/'a/9.png').write_bytes(b'no picture')
    return root


@pytest.fixture(scope='module')
def shards(folder, tmp_path_factory):
    "The same"
    root = tmp_path_factory.mktemp('shards')
    for k in range(2):
        with tarfile.open(root/f'{k}.tar', 'w') as tar:
            for i, path in enumerate(p for p in sorted(folder.rglob('*.png')) if p.name != '9.png'):
                if i % 2 != k: continue
                tar.add(path, f'{i:03}.png')
                label = tarfile.TarInfo(f'{i:03}.cls')
                label.size = 1
                tar.addfile(label, io.BytesIO(b'01'[i > 5:(i > 5) + 1]))
    return root


# ---------------------------------------------------------------- one picture

def test_the_whole_picture_is_kept_with_its_aspect():
    form = PixelFormat(20, whole=True)
    for width, height in SIZES:
        kept = square_pixels(picture(1, (width, height)), form)
        assert kept.shape == form.shape == (3 * 20 * 20 + 4,) and kept.nbytes == form.nbytes
        images, aspects = form.unpacked(torch.from_numpy(kept)[None])
        expected = picture(1, (width, height)).resize((20, 20), Image.Resampling.BILINEAR)
        assert np.array_equal(images[0].permute(1, 2, 0), np.asarray(expected))
        assert aspects.dtype == torch.float32 and aspects.tolist() == [np.float32(width / height)]


def test_a_square_is_as_it_was():
    "Also where nobody says that pictures are to be whole: nothing behind it, and no other values"
    form = PixelFormat(20)
    x = torch.from_numpy(square_pixels(picture(1, (60, 40)), form))[None]
    assert form.shape == (3, 20, 20) and form.unpacked(x)[0] is x and len(form.unpacked(x)) == 1
    middle = picture(1, (60, 40)).resize((20, 20), Image.Resampling.BILINEAR, (10, 0, 50, 40))
    assert np.array_equal(x[0].permute(1, 2, 0), np.asarray(middle))


def test_the_middle_of_a_long_one():
    form = PixelFormat(16, whole=True)
    for size in ((640, 20), (20, 640), (1, 500), (500, 1)):
        images, aspects = form.unpacked(torch.from_numpy(square_pixels(picture(2, size), form))[None])
        assert aspects.item() == (LONGEST if size[0] > size[1] else 1 / LONGEST)
        short = min(size)
        left, top = (size[0] - min(size[0], LONGEST * short)) / 2, (size[1] - min(size[1], LONGEST * short)) / 2
        box = (left, top, size[0] - left, size[1] - top)
        expected = picture(2, size).resize((16, 16), Image.Resampling.BILINEAR, box)
        assert np.array_equal(images[0].permute(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_turned_ones(monkeypatch, orientation):
    form, exif = PixelFormat(24, whole=True), Image.Exif()
    exif[0x112] = orientation
    for mode in ('RGB', 'L', 'RGBA'):
        rows = []
        for band in (2**20, 70):  # in one piece, and in bands
            monkeypatch.setattr(pictures_module, 'BAND', band)
            file = io.BytesIO()
            ramp(60, 40).convert(mode).save(file, 'PNG', exif=exif)
            rows.append(decoded(file, form))
        assert np.array_equal(*rows)
        _, aspects = form.unpacked(torch.from_numpy(rows[0])[None])
        assert aspects.item() == np.float32(60 / 40 if orientation < 5 else 40 / 60)


def test_a_jpeg_is_decoded_no_smaller_than_is_kept():
    form, file = PixelFormat(100, whole=True), io.BytesIO()
    ramp(1600, 440).save(file, 'JPEG', quality=95)
    images, aspects = form.unpacked(torch.from_numpy(decoded(file, form))[None])
    x = images[0].float() / 255
    steps = torch.arange(100) / 100 + .005
    assert (x[0] - steps).abs().max() < .03 and (x[1] - steps[:, None]).abs().max() < .03
    assert aspects.item() == pytest.approx(1600 / 440, rel=1e-2)


def _square(sender, mode, size):
    small_pages()
    form, x = PixelFormat(388, whole=True), Image.new(mode, size, 'white')
    square_pixels(Image.new(mode, (500, 400)), form)
    def memory(kind): return int(re.search(kind + r':\s*(\d+) kB', Path('/proc/self/status').read_text())[1])
    before = memory('VmRSS')
    white = square_pixels(x, form)[0] == 255
    sender.send((bool(white), memory('VmHWM') - before))


@pytest.mark.parametrize('mode, size', [('RGB', (1, 30_000_000)), ('L', (30_000_000, 1)), ('L', (2000, 14_000))])
def test_long_ones_take_no_more_memory(mode, size):
    "Pillow alone would make a picture in between of as many rows as there are, each as wide as the result"
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_square, args=(sender, mode, size))
    process.start()
    sender.close()
    assert receiver.poll(120)
    white, grown = receiver.recv()
    process.join(60)
    assert white and grown < 60_000  # kB


# ---------------------------------------------------------------- however they come

def loaders(folder, tmp_path, kind, **kwargs):
    "`image_dls`, its cache not beside the pictures"
    how = dict(KINDS[kind])
    if 'cache' in how: how['cache'] = tmp_path/'kept'
    return dls_of(folder, **dict(size=24, bs=3, labels='all', valid=.3) | how | kwargs)


@pytest.mark.parametrize('kind', ['mapped', 'streamed', 'in_this_process'])
def test_the_same_batches(folder, tmp_path, kind):
    resident, other = (loaders(folder, tmp_path, name) for name in ('resident', kind))
    if kind != 'mapped': (folder/'a/9.png').rename(tmp_path/'9.png')  # in a stream another picture stands in for it
    try:
        if kind != 'mapped': resident, other = (loaders(folder, tmp_path, name) for name in ('resident', kind))
        assert resident.n_inp == other.n_inp == 2 and resident.train.whole
        for _ in range(2): same(resident.train, other.train)
        same([resident.train.one_batch()], [other.train.one_batch()])
        same(resident.train.ordered(), other.train.ordered())
        same(resident.valid, other.valid)
        same(resident.train.ordered(4), other.train.ordered(4))
        by_class = [StratifiedLoader(dls.train, seed=3) for dls in (resident, other)]
        same(*[[next(batches) for _ in range(3)] for batches in by_class])
        assert len(next(by_class[0])) == 3
        same(*[dls.train.only(torch.tensor([4, 0, 2]), 2) for dls in (resident, other)])
        for dls in (resident, other): dls.train.epoch, dls.train.begin = 1, 1
        same(resident.train, other.train)
    finally:
        if (tmp_path/'9.png').exists(): (tmp_path/'9.png').rename(folder/'a/9.png')


def test_shards_too(folder, shards):
    how = dict(size=24, bs=3, valid=0, labels='all', store_size=40, device='cpu')
    plain = [dls_of(folder, **how).train.ordered()]
    for workers in (0, 2): plain.append(image_dls(shards, workers=workers, **how).train.ordered())
    kept = [sorted(zip(y.tolist(), aspects.tolist(), x.flatten(1).tolist()))
            for x, aspects, y in (everything(loader) for loader in plain)]
    assert kept[0] == kept[1] == kept[2] and len(kept[0]) == 12
    loader = image_dls(shards, workers=1, **how).train
    whole = list(loader)
    loader.epoch, loader.begin = 0, 2
    same(loader, whole[2:])


def test_what_a_batch_has(folder):
    notes = []
    dls = dls_of(folder, size=24, bs=4, valid=0, tell=notes.append)
    assert dls.size == 24 and len(dls.train.data) == 12
    images, aspects, y = dls.train.one_batch()
    side = round(36 * np.sqrt(np.median([max(s) / min(s) for s in [SIZES[i % 5] for i in range(6)]])))
    assert images.shape == (4, 3, side, side) and images.dtype == torch.uint8
    assert aspects.shape == y.shape == (4,) and aspects.dtype == torch.float32
    assert notes[-1] == f"pictures are kept whole, at 36 px of their short side: {13 * (3 * side**2 + 4) / 1e6:.1f} MB"
    _, aspects, _ = everything(dls.train.ordered())
    assert aspects.tolist() == [np.float32(w / h) for w, h in [SIZES[i % 5] for i in range(6)] * 2]


# ---------------------------------------------------------------- at which size

def test_the_side_that_is_kept(folder, tmp_path):
    def side(root=folder, **kwargs): return dls_of(root, valid=0, **kwargs).train.one_batch()[0].shape[-1]
    stretch = np.sqrt(52 / 44 * 48 / 48)
    usual = np.sqrt(np.median([max(s) / min(s) for s in [SIZES[i % 5] for i in range(6)]]))
    assert usual >= stretch
    assert side(size=20) == round(30 * usual)                 # 1.5 times the view
    assert side(size=200) == round(40 * usual)                # but not more than the pictures have
    assert side(size=24, store_size=25) == round(25 * usual)
    assert side(size=24, store_size=1000) == round(40 * usual)
    square = image_folder(tmp_path/'square', dict(a=4), size=(48, 48))
    assert side(square) == 48 and [side(square, size=n) for n in (20, 31, 32, 48, 60)] == [30, 46, 48, 48, 48]
    assert [side(square, size=32, store_size=n) for n in (20, 32, 44, 99)] == [20, 32, 44, 48]
    picture(9, (50, 50)).save(square/'a/z.png')  # squares of several sizes, too
    assert side(square, size=20) == 30 and side(square, size=99) == 48 and side(square, size=32, store_size=40) == 40
    assert len(dls_of(square, size=32, valid=0).train.one_batch()) == 2
    assert dls_of(square, size=32, valid=0).n_inp == 1
    for wrong in (1, 0, 2.5, 10**9):
        with pytest.raises(InputError, match='store_size='): side(store_size=wrong)


@pytest.mark.parametrize('size', [12, 20, 32])
def test_squares_not_larger_than_their_place_are_as_they_are(tmp_path, size):
    root = image_folder(tmp_path, dict(a=3), size=(12, 12))
    images, _ = everything(dls_of(root, size=size, valid=0, bs=3).train.ordered())
    expected = [np.asarray(Image.open(path)) for path in sorted(root.glob('a/*'))]
    assert np.array_equal(images.permute(0, 2, 3, 1), np.stack(expected))
    made = two_views(size)(images)['views']
    assert made.shape == (2, 3, 3, size, size) and plain_view(images, size).shape[-1] == size


OTHERS = dict(larger=(90, 90), smaller=(20, 20), wide=(90, 40), unlike=(16, 12))


@pytest.mark.parametrize('kind', OTHERS)
@pytest.mark.parametrize('training', [(40, 40), (60, 40)])
@pytest.mark.parametrize('how', ['no labels', 'the same classes', 'folders', 'other classes'])
def test_what_validates_does_not_change_training(tmp_path, kind, training, how):
    "Whatever its shape: training pictures are as they are without it, and so is the side that a model sees"
    root = image_folder(tmp_path/'x', dict(a=5, b=5), size=training)
    valid = image_folder(tmp_path/'y', {'': 4} if how == 'no labels' else dict(a=4, b=4), size=OTHERS[kind])
    if how == 'other classes': (valid/'b').rename(valid/'c')
    alone = dls_of(root, valid=0)
    if how == 'folders':
        (tmp_path/'both').mkdir()
        root.rename(tmp_path/'both/train'), valid.rename(tmp_path/'both/val')
        dls = dls_of(tmp_path/'both')
    else: dls = dls_of(root, valid=valid)
    assert dls.size == alone.size and dls.train.form == alone.train.form and dls.n_inp == alone.n_inp
    same(dls.train, alone.train)
    squares = len(set(OTHERS[kind])) == 1
    assert len(dls.valid.one_batch()) == (2 if squares else 3)
    assert dls.bank is dls.train or dls.bank.form == dls.valid.form
    own = round(min(1.5 * dls.size, min(OTHERS[kind])) * (max(OTHERS[kind]) / min(OTHERS[kind])) ** 0.5)
    assert dls.valid.one_batch()[0].shape[-1] == own
    if not squares: assert dls.valid.one_batch()[1].unique().tolist() == [np.float32(np.divide(*OTHERS[kind]))]


@pytest.mark.parametrize('valid', [0, 0.2, 0.5])
def test_a_share_is_kept_as_the_others_are(folder, valid):
    "And the side does not depend on which share is held out"
    forms = {loader.form for seed in range(3) for loader in dls_of(folder, size=20, valid=valid, seed=seed).loaders
             if len(loader)}
    assert forms == {dls_of(folder, size=20, valid=0).train.form}


def test_it_does_not_depend_on_the_memory(folder):
    sides = {dls_of(folder, size=24, valid=0, memory=memory, workers=0).train.one_batch()[0].shape[-1]
             for memory in (1e-12, 1)}
    assert len(sides) == 1


def test_notes(folder, shards):
    notes = []
    image_dls(shards, size=24, bs=3, valid=0, device='cpu', workers=0, tell=notes.append)
    assert notes[-1] == 'pictures are read whole for every batch, at 36 px of their short side'
    dls_of(folder, size=24, valid=0, memory=1e-12, workers=0, tell=notes.append)
    assert notes[-1].startswith('pictures are read whole for every batch, at 36 px of their short side (0.')
    dls_of(folder, size=24, valid=0, memory=0, workers=0, tell=notes.append)
    assert notes[-1] == 'pictures are kept whole, at 36 px of their short side'
    image_dls('digits', device='cpu', tell=notes.clear)
    assert len(notes) > 1


def test_pictures_that_judge_by_themselves(folder, tmp_path):
    "Each place is kept in its own way"
    square = image_folder(tmp_path/'pets', dict(cat=8, dog=8), size=(24, 24))
    dls = dls_of(folder, size=24, bs=3, unlabelled=True, valid=square)
    assert len(dls.train.one_batch()) == 3 and len(dls.bank.one_batch()) == len(dls.valid.one_batch()) == 2
    dls = dls_of(square, size=24, bs=3, unlabelled=True, valid=folder)
    assert dls.n_inp == 1 and len(dls.train.one_batch()) == 2
    assert len(dls.bank.one_batch()) == len(dls.valid.one_batch()) == 3


def test_arrays_and_data_sets():
    "All of one shape"
    x = np.stack([np.asarray(picture(i, (60, 40))) for i in range(6)])
    for source in (x, Given([(Image.fromarray(a), 0) for a in x])):
        images, aspects, _ = dls_of(source, size=20, valid=0).train.one_batch()
        assert images.shape[-1] == round(30 * np.sqrt(1.5)) and aspects.tolist() == [1.5] * 2


# ---------------------------------------------------------------- what is made of them

def test_views_and_plain_views_have_true_shapes(tmp_path):
    "A disc is one in every view, wherever it lies"
    for i, size in enumerate([(90, 60), (60, 90), (120, 60)]):
        y, x = np.mgrid[:size[1], :size[0]]
        disc = ((x - size[0] / 2 + .5)**2 + (y - size[1] / 2 + .5)**2 < 20**2) * 255
        (tmp_path/'a').mkdir(exist_ok=True)
        Image.fromarray(disc.astype(np.uint8)).save(tmp_path/f'a/{i}.png')
    images, aspects, _ = everything(dls_of(tmp_path, size=60, bs=3, valid=0).train.ordered())
    for view in plain_view(images, 60, aspects):
        across, down = (view[0] > .5).sum(1).max(), (view[0] > .5).sum(0).max()
        assert abs(across - 40) <= 1 and abs(down - 40) <= 1
    expected = [TF.center_crop(TF.resize(TF.to_tensor(Image.open(tmp_path/f'a/{i}.png')), 60, antialias=True), 60)
                for i in range(3)]
    assert (plain_view(images, 60, aspects)[:, :1] - torch.stack(expected)).abs().mean() < .03  # at the edges
    torch.manual_seed(0)
    views = two_views(60, 'digits')(images.repeat(40, 1, 1, 1), None, aspects.repeat(40))['views'].flatten(0, 1)[:, :1]
    seen = views[(F.max_pool2d(views, 60) > .8).flatten() & (views[..., [0, -1], :].amax((1, 2, 3)) < .1)
                 & (views[..., [0, -1]].amax((1, 2, 3)) < .1)]  # wholly inside
    assert len(seen) > 20
    across, down = ((seen > .5 * seen.amax((1, 2, 3), keepdim=True)).float().sum(d).amax(-1) for d in (-1, -2))
    ratio = across / down  # a crop may be 4/3 as wide as high
    assert (ratio > .7).all() and (ratio < 1.43).all() and abs(ratio.log().mean()) < .1
