"Pictures in: every source, every kind of picture, resident and streaming, and every bad input"
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner
from fastai.vision.data import ImageBlock
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import GrandparentSplitter, Normalize, RandomSplitter, get_image_files, parent_label
from fastai.vision.augment import Resize, aug_transforms
from PIL import Image
from torch import nn
from torchvision.datasets import FakeData
from sklearn.datasets import load_digits
from torchvision.transforms import v2

from fastcontrast.core import InputError, MissingPath
from fastcontrast.data import ImageLoader, find_pictures, image_dls
from fastcontrast.pictures import progress, square_pixels

STREAM = dict(memory=1e-12, workers=0)


def picture(i, size=(32, 32)):
    "A picture of its own for every number"
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def make(folder, counts, size=(32, 32), suffix='png'):
    "A folder of class folders"
    for c, n in counts.items():
        (folder/c).mkdir(parents=True)
        for i in range(n): picture(sum(map(ord, c)) * 1000 + i, size).save(folder/c/f'{i:03}.{suffix}')
    return folder


def dls_of(source, **kwargs): return image_dls(source, **dict(bs=2, device='cpu') | kwargs)
def everything(loader): return [torch.cat(t) for t in zip(*loader, strict=True)]


def same(a, b):
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x[0], y[0]) and torch.equal(x[1], y[1])


# ---------------------------------------------------------------- sources

@pytest.mark.parametrize('name', ['val', 'valid', 'validation', 'test'])
def test_train_and_validation_folders(tmp_path, name):
    make(tmp_path/'train', dict(b=3, a=4))
    make(tmp_path/name, dict(b=2))
    dls = dls_of(tmp_path)
    assert dls.classes == ['a', 'b'] and dls.size == 32 and dls.source == str(tmp_path) and dls.n_inp == 1
    assert dls.train.data.names[0] == 'a/000.png' and dls.train.data.y.tolist() == [0] * 4 + [1] * 3
    x, y = everything(dls.valid)
    assert y.tolist() == [1, 1] and x.dtype == torch.uint8 and y.dtype == torch.int64
    assert np.array_equal(x[1].permute(1, 2, 0), np.asarray(Image.open(tmp_path/name/'b/001.png')))


def test_flat_parts_and_flat_folder(tmp_path):
    make(tmp_path, dict(train=6, val=3))
    dls = dls_of(tmp_path)
    assert dls.classes is None and len(dls.valid.data) == 3 and (everything(dls.valid)[1] == -1).all()
    dls = dls_of(tmp_path/'train')
    assert len(dls.train.data) == 6 and len(dls.valid) == 0 and list(dls.valid) == []
    assert (everything(dls.train.ordered())[1] == -1).all()
    with pytest.raises(InputError, match='empty'): dls.valid.one_batch()


def test_split_is_seeded_and_stratified(tmp_path):
    make(tmp_path, dict(a=20, b=5, c=2, d=1))
    parts = [dls_of(tmp_path, seed=s, valid=0.3) for s in (0, 0, 1)]
    held = [p.valid.data.names for p in parts]
    assert held[0] == held[1] != held[2]
    assert torch.bincount(parts[0].valid.data.y, minlength=4).tolist() == [6, 2, 1, 0]
    assert torch.bincount(parts[0].train.data.y).tolist() == [14, 3, 1, 1]
    assert not set(held[0]) & set(parts[0].train.data.names)
    assert len(dls_of(tmp_path, valid=0).valid) == 0
    assert torch.bincount(dls_of(tmp_path, valid=.99).train.data.y).tolist() == [1, 1, 1, 1]


def test_train_folder_without_validation_is_split(tmp_path):
    make(tmp_path/'train', dict(a=10, b=10))
    dls = dls_of(tmp_path)
    assert len(dls.train.data) == 16 and len(dls.valid.data) == 4


def test_other_folder_validates(tmp_path):
    make(tmp_path/'x', dict(a=4, b=4))
    make(tmp_path/'y', dict(b=3))
    dls = dls_of(tmp_path/'x', valid=tmp_path/'y')
    assert len(dls.train.data) == 8 and dls.valid.data.y.tolist() == [1] * 3


def test_what_is_passed_over(tmp_path):
    root = make(tmp_path/'x', dict(a=2, b=2))
    for junk in ('.hidden', '.ipynb_checkpoints', '__MACOSX'): make(root/junk, dict(z=1))
    picture(0).save(root/'a'/'.secret.png')
    (root/'a/readme.txt').write_text('no picture')
    (root/'b/features.h5').write_bytes(b'no picture')
    (root/'empty').mkdir()
    (root/'a/more').mkdir()
    picture(1).save(root/'a/more/0.JPG', format='JPEG')
    (root/'a/loop').symlink_to(root/'a')
    make(tmp_path/'far', dict(c=2))
    (root/'c').symlink_to(tmp_path/'far/c')
    (root/'b/linked').symlink_to(tmp_path/'far/c')
    dls = dls_of(root, valid=0)
    assert dls.classes == ['a', 'b', 'c']
    assert dls.train.data.names == ['a/000.png', 'a/001.png', 'a/more/0.JPG', 'b/000.png', 'b/001.png',
                                    'b/linked/000.png', 'b/linked/001.png', 'c/000.png', 'c/001.png']
    assert find_pictures(root/'a', nested=False) == ['000.png', '001.png']


def test_one_class(tmp_path): assert dls_of(make(tmp_path, dict(a=5))).classes == ['a']


def test_digits():
    dls = image_dls('digits', bs=64, device='cpu')
    assert dls.size == 32 and dls.train.one_batch()[0].shape == (64, 3, 32, 32) and dls.source == 'digits'
    assert (len(dls.train.data), len(dls.valid.data)) == (1400, 397) and dls.train.data.y.unique().tolist() == list(range(10))
    whole = load_digits().target
    assert torch.cat([dls.train.data.y, dls.valid.data.y]).tolist() == whole.tolist()  # in the order of their writers
    assert image_dls('digits', size=16, device='cpu').valid.one_batch()[0].shape[2:] == (16, 16)
    x = everything(dls.valid)[0]
    assert x.max() > 250 and x.min() == 0 and (x[:, 0] == x[:, 2]).all()


def test_torchvision_datasets():
    kwargs = dict(num_classes=3, image_size=(3, 20, 20))
    fake = FakeData(40, transform=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]), **kwargs)
    dls = dls_of(fake, size=20, valid=FakeData(7, random_offset=100, **kwargs))
    assert dls.classes == ['0', '1', '2'] and len(dls.valid.data) == 7 and dls.source == 'FakeData'
    x, y = everything(dls.train.ordered())
    assert torch.equal(x[3], (fake[3][0] * 255).round().to(torch.uint8))
    assert y.tolist() == [int(fake[i][1]) for i in range(40)]
    streamed = dls_of(fake, size=20, valid=FakeData(7, random_offset=100, **kwargs), **STREAM)
    same(dls.train, streamed.train)
    same(dls.valid, streamed.valid)


class Given(torch.utils.data.Dataset):
    "A data set of whatever items it is given"
    def __init__(self, items, **attrs):
        self.items = items
        for k, v in attrs.items(): setattr(self, k, v)

    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]


def test_datasets_of_other_shapes(tmp_path):
    tensors = [torch.full((1, 9, 12), i, dtype=torch.uint8) for i in range(6)]
    dls = dls_of(Given(tensors), size=8)
    assert dls.classes is None and len(dls.valid.data) == 0 and dls.train.one_batch()[0].shape == (2, 3, 9, 9)
    labelled = Given([(picture(i), i % 2) for i in range(8)], targets=[0, 1] * 3 + [-1, -1], classes=['x', 'y', 'z'])
    dls = dls_of(labelled, labels='all', valid=0.4)
    assert dls.classes == ['x', 'y', 'z'] and dls.train.data.y.tolist()[-2:] == [-1, -1]
    assert not dls.train.data.labeled[-2:].any() and dls.train.data.labeled[:-2].all()
    (tmp_path/'names.txt').write_text('1\n7\n')  # the last item has no label to be used
    dls = dls_of(labelled, labels=tmp_path/'names.txt', valid=0)
    assert dls.train.data.labeled.nonzero().tolist() == [[1]]


def test_fastai_dataloaders(tmp_path):
    make(tmp_path/'train', dict(a=6, b=7), size=(40, 30))
    make(tmp_path/'valid', dict(a=3, b=2), size=(40, 30))
    block = dict(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                 splitter=GrandparentSplitter(), item_tfms=Resize(24))
    made = DataBlock(batch_tfms=aug_transforms(), **block).dataloaders(tmp_path, bs=4, num_workers=0)
    dls = image_dls(made, labels='all', device='cpu')
    assert isinstance(dls.train, ImageLoader) and dls.size == 24 and dls.classes == ['a', 'b'] and len(dls.train) == 3
    x, y = dls.train.one_batch()
    assert type(x) is torch.Tensor and type(y) is torch.Tensor
    assert x.is_floating_point() and 0 <= x.min() and x.max() <= 1
    first, second = (everything(dls.train.ordered()) for _ in range(2))
    assert torch.equal(first[0], second[0]) and first[1].tolist() == dls.train.data.y.tolist()  # no random transform
    assert len(first[0]) == 13 and len(everything(dls.valid)[0]) == 5
    hidden = image_dls(made, device='cpu')
    assert (hidden.train.one_batch()[1] == -1).all() and (everything(hidden.train.ordered())[1] >= 0).all()
    normal = DataBlock(batch_tfms=Normalize.from_stats([.5] * 3, [.5] * 3), **block)
    with pytest.raises(InputError, match=r'\[0, 1\].*remove Normalize'):
        image_dls(normal.dataloaders(tmp_path, bs=4, num_workers=0))
    with pytest.raises(InputError, match="labels=0.5.*None or 'all'"): image_dls(made, labels=0.5)
    plain = DataBlock(blocks=ImageBlock, get_items=get_image_files, splitter=RandomSplitter(.3), item_tfms=Resize(24))
    dls = image_dls(plain.dataloaders(tmp_path, bs=4, num_workers=0), device='cpu')
    assert dls.classes is None and (everything(dls.valid)[1] == -1).all()


# ---------------------------------------------------------------- pictures

def saved(picture, **kwargs):
    "What a decoder makes of the picture"
    file = io.BytesIO()
    picture.save(file, **kwargs)
    file.seek(0)
    return Image.open(file)


GREY = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
DEEP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


@pytest.mark.parametrize('source, expected', [
    (saved(Image.fromarray(GREY), format='PNG'), GREY),
    (saved(Image.fromarray(GREY).convert('P'), format='PNG'), GREY),
    (saved(Image.fromarray(GREY).convert('P'), format='GIF'), GREY),
    (saved(Image.fromarray(np.stack([GREY] * 3, -1)).convert('CMYK'), format='TIFF'), GREY),
    (saved(Image.fromarray(GREY > 100), format='PNG'), (GREY > 100) * 255),
    (saved(Image.fromarray(DEEP), format='PNG'), np.rint(DEEP / 257)),
    (saved(Image.fromarray(DEEP), format='TIFF'), np.rint(DEEP / 257)),
    (saved(Image.fromarray(DEEP.astype(np.int32)), format='TIFF'), np.rint(DEEP / 257)),
    (Image.fromarray(DEEP.astype('>u2')), np.rint(DEEP / 257)),
    (Image.fromarray(DEEP.astype(np.int32) * 1000), np.rint(DEEP / 257)),
    (saved(Image.fromarray(DEEP.astype(np.float32) / 65535), format='TIFF'), np.rint(DEEP / 257)),
    (Image.fromarray(DEEP.astype(np.float32) / 100 - 7), np.rint(DEEP / 257)),
    (saved(Image.fromarray(np.stack([GREY, 255 * (GREY > 100).astype(np.uint8)], -1)), format='PNG'),
     np.where(GREY > 100, GREY, 255)),
], ids='grey palette gif cmyk bilevel png16 tiff16 tiff32 big-endian int32 float float-range alpha'.split())
def test_modes(source, expected):
    pixels = square_pixels(source, 8)
    assert pixels.shape == (3, 8, 8) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_transparency_is_white():
    red = Image.new('RGBA', (8, 8), (200, 0, 0, 128))
    assert square_pixels(saved(red, format='PNG'), 8)[:, 4, 4].tolist() == pytest.approx([227, 127, 127], abs=1)
    palette = Image.new('P', (8, 8), 3)
    palette.putpalette([0, 0, 0] * 256)
    assert (square_pixels(saved(palette, format='PNG', transparency=3), 4) == 255).all()


def test_exif_rotation():
    lying = np.zeros((10, 10, 3), np.uint8)
    lying[:, 7:] = 255  # white on the right
    exif = Image.Exif()
    exif[0x112] = 6     # to be turned by 90 degrees clockwise: what was right is then below
    pixels = square_pixels(saved(Image.fromarray(lying), format='PNG', exif=exif), 10)
    assert (pixels[:, 7:] == 255).all() and (pixels[:, :7] == 0).all()


def test_animation_shows_its_first_frame():
    frames = [Image.new('RGB', (6, 6), c) for c in ('red', 'blue')]
    pixels = square_pixels(saved(frames[0], format='GIF', save_all=True, append_images=frames[1:]), 6)
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]


def test_single_pixel_and_shapes():
    assert (square_pixels(Image.new('RGB', (1, 1), (1, 2, 3)), 9) == np.array([1, 2, 3])[:, None, None]).all()
    wide = np.zeros((10, 1000), np.uint8)
    wide[:, 495:505] = 255
    assert (square_pixels(Image.fromarray(wide), 10) == 255).all()  # the centre
    assert square_pixels(picture(0, (3, 500)), 7).shape == (3, 7, 7)


def test_size_and_side(tmp_path):
    root = make(tmp_path/'same', dict(a=4, b=4), size=(48, 48))
    dls = dls_of(root)
    assert dls.size == 48 and dls.train.one_batch()[0].shape[-1] == 48
    assert dls_of(root, size=32).train.one_batch()[0].shape[-1] == 37
    picture(0, (50, 48)).save(root/'b/zzz.png')
    assert dls_of(root).size == 224
    assert dls_of(root, size=48).train.one_batch()[0].shape[-1] == 55
    assert dls_of(root, size=1).train.one_batch()[0].shape[-1] == 1
    assert dls_of(make(tmp_path/'large', dict(a=2), size=(300, 300)), valid=0).size == 224


def test_large_jpegs_are_decoded_small(tmp_path):
    "...and look the same as the whole picture made small"
    tiles = np.asarray(picture(0, (12, 12)).convert('L').resize((168, 168), Image.Resampling.NEAREST))
    Image.fromarray(tiles).save(tmp_path/'a.jpg', quality=95)
    Image.fromarray(tiles).save(tmp_path/'b.png')
    x, _ = everything(dls_of(tmp_path, size=32).train.ordered())
    assert x.shape[-1] == 37 and (x[0].int() - x[1].int()).abs().float().mean() < 6



# ---------------------------------------------------------------- resident and streaming

@pytest.mark.parametrize('workers', [0, 2])
def test_streamed_batches_are_the_resident_ones(tmp_path, workers):
    make(tmp_path, dict(a=9, b=8), size=(70, 50), suffix='jpg')
    kwargs = dict(size=32, bs=4, labels=0.5)
    resident, streamed = dls_of(tmp_path, **kwargs), dls_of(tmp_path, memory=1e-12, workers=workers, **kwargs)
    assert hasattr(resident.train, 'images') and hasattr(streamed.train, 'stream')
    for _ in range(2): same(resident.train, streamed.train)
    next(iter(streamed.train))  # a pass that is given up, one that is only looked at
    next(iter(resident.train))
    same([streamed.train.one_batch()], [resident.train.one_batch()])
    same(resident.train, streamed.train)
    same(resident.train.ordered(), streamed.train.ordered())
    same(resident.valid, streamed.valid)


def test_looking_at_a_batch_disturbs_no_pass(tmp_path):
    root = make(tmp_path, dict(a=12))
    for how in ({}, dict(memory=1e-12, workers=1)):
        dls = dls_of(root, **how)
        whole = list(dls_of(root).train)
        seen = []
        for batch in dls.train:
            seen.append(batch)
            dls.train.one_batch()
            assert len(everything(dls.train.ordered())[0]) == len(dls.train.data)
        same(seen, whole)


def test_shuffle_repeats_and_differs(tmp_path):
    root = make(tmp_path, dict(a=11, b=10))
    one, two, other = (dls_of(root, bs=4, seed=s, valid=0).train for s in (3, 3, 4))
    torch.manual_seed(0)
    passes = [everything(one)[0] for _ in range(2)]
    torch.manual_seed(1)
    assert torch.equal(everything(two)[0], passes[0]) and torch.equal(everything(two)[0], passes[1])
    assert not torch.equal(*passes) and not torch.equal(everything(other)[0], passes[0])
    two.epoch = 0
    assert torch.equal(everything(two)[0], passes[0])
    assert len(passes[0]) == 20 and one.drop_last and len(one) == 5  # 21 pictures
    assert len(passes[0].flatten(1).unique(dim=0)) == 20
    ordered = one.ordered()
    assert len(ordered) == 6 and not ordered.drop_last and len(everything(ordered)[0]) == 21
    assert torch.equal(everything(ordered)[0], everything(ordered)[0])


def test_ordered_follows_names(tmp_path):
    root = make(tmp_path, dict(a=3, b=3))
    dls = dls_of(root, valid=0)
    x, y = everything(dls.train.ordered())
    for name, pixels, label in zip(dls.train.data.names, x, y, strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(Image.open(root/name))) and 'ab'[label] == name[0]


def bomb(path):
    "A picture of a few bytes that says it has 4 billion pixels"
    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', 65000, 65000, 8, 2, 0, 0, 0))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', b'') + chunk(b'IEND', b''))


def spoil(folder):
    "Four files that cannot be decoded"
    (folder/'bad0.png').write_bytes(b'')
    (folder/'bad1.jpg').write_text('<html>not found</html>')
    file = io.BytesIO()
    picture(0).save(file, format='PNG')
    (folder/'bad2.png').write_bytes(file.getvalue()[:2000])
    bomb(folder/'bad3.png')


def test_undecodable_pictures_are_left_out(tmp_path):
    root = make(tmp_path, dict(a=5, b=5))
    spoil(root/'a')
    dls = dls_of(root, valid=0)
    assert len(dls.train.data) == 10 == len(everything(dls.train.ordered())[0])
    assert dls.train.data.y.tolist() == [0] * 5 + [1] * 5
    report = dls.report()
    assert report.startswith('4 of 14 pictures could not be decoded, they are left out')
    reasons = {'bad0.png': 'empty file', 'bad1.jpg': 'not a picture', 'bad2.png': 'truncated', 'bad3.png': 'exceeds'}
    for name, why in reasons.items(): assert f"{root/'a'/name} (" in report and why in report
    for bad in (root/'a').glob('bad*'): bad.unlink()
    good = dls_of(root, valid=0)
    same(dls.train.ordered(), good.train.ordered())
    assert dls.train.data.names == good.train.data.names and good.report() == ''


def test_undecodable_pictures_are_replaced_in_streams(tmp_path):
    root = make(tmp_path, dict(a=5, b=5))
    spoil(root/'a')
    for workers in (0, 2):
        dls = dls_of(root, valid=0, labels='all', memory=1e-12, workers=workers)
        assert dls.report() == ''
        for _ in range(2): x, y = everything(dls.train)
        assert len(x) == 14
        good, labels = everything(dls_of(root, valid=0).train.ordered())
        assert all((good[labels == c] == p).flatten(1).all(1).any() for p, c in zip(x, y, strict=True))
        assert dls.report().startswith('4 of 14 pictures could not be decoded, the next picture stands in for each')
        assert dls.report().count('empty file') == 1


def test_report_names_ten(tmp_path):
    root = make(tmp_path, dict(a=3))
    for i in range(13): (root/f'a/z{i:02}.png').write_bytes(b'')
    report = dls_of(root, valid=0).report()
    assert report.count('(empty file)') == 10 and report.endswith('and 3 more.')


def test_strict(tmp_path):
    root = make(tmp_path, dict(a=5))
    (root/'a/002.png').write_bytes(b'')
    with pytest.raises(InputError, match='002.png could not be decoded .empty file'): dls_of(root, valid=0, strict=True)
    for workers in (0, 1):
        dls = dls_of(root, valid=0, strict=True, memory=1e-12, workers=workers)
        with pytest.raises(InputError, match='002.png could not be decoded .empty file'): list(dls.train.ordered())


def test_nothing_can_be_decoded(tmp_path):
    (tmp_path/'a').mkdir()
    for i in range(4): (tmp_path/f'a/{i}.png').write_bytes(b'')
    for how in ({}, STREAM):
        with pytest.raises(InputError, match='no picture could be decoded'): dls_of(tmp_path, valid=0, **how)
    for i in range(4):  # the headers are good
        file = io.BytesIO()
        picture(i, (60, 60)).save(file, format='PNG')
        (tmp_path/f'a/{i}.png').write_bytes(file.getvalue()[:200])
    with pytest.raises(InputError, match='no picture could be decoded.*truncated'): dls_of(tmp_path, valid=0)
    with pytest.raises(InputError, match='4 pictures in a row could not be decoded'):
        list(dls_of(tmp_path, valid=0, **STREAM).train)


def test_progress_speaks_only_when_it_takes_long(capsys):
    assert list(progress(range(5), 'decoding')) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ''
    assert list(progress(range(5), 'decoding', patience=0)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err.splitlines() == ['decoding: 0 s to go', 'decoding: done']


class Holes(Given):
    "Every hundredth item cannot be read"
    def __getitem__(self, i):
        if i % 100 == 50: raise OSError('cannot be read')
        return self.items[i], i % 3


def test_decoding_in_chunks_with_holes():
    pictures = [picture(i, (4, 4)) for i in range(600)]
    dls = dls_of(Holes(pictures), valid=0)
    x, y = everything(dls.train.ordered())
    assert len(x) == 594 and dls.report().startswith('6 of 600')
    assert 'item 550 of Holes (cannot be read)' in dls.report()
    for name, pixels, label in zip(map(int, dls.train.data.names), x, y, strict=True):
        assert label == name % 3 and np.array_equal(pixels.permute(1, 2, 0), np.asarray(pictures[name]))


# ---------------------------------------------------------------- labels

def test_labels(tmp_path):
    root = make(tmp_path/'x', dict(a=20, b=10, c=3))
    kwargs = dict(bs=33, valid=0)
    assert (everything(dls_of(root, **kwargs).train)[1] == -1).all()
    for labels in ('all', True, 1.0):
        train = dls_of(root, labels=labels, **kwargs).train
        assert torch.bincount(everything(train)[1]).tolist() == [20, 10, 3] and train.data.labeled.all()
    few, again, other = (dls_of(root, labels=0.1, seed=s, **kwargs).train for s in (0, 0, 1))
    assert torch.bincount(few.data.y[few.data.labeled]).tolist() == [2, 1, 1]
    assert torch.equal(few.data.labeled, again.data.labeled) and not torch.equal(few.data.labeled, other.data.labeled)
    y = everything(few)[1]
    assert torch.bincount(y[y >= 0]).tolist() == [2, 1, 1] and len(y) == 33
    assert (everything(few.ordered())[1] >= 0).all()
    streamed = dls_of(root, labels=0.1, **STREAM, **kwargs).train
    assert torch.equal(streamed.data.labeled, few.data.labeled) and torch.equal(everything(streamed)[1], y)


def test_labels_file(tmp_path):
    root = make(tmp_path/'x', dict(a=4, b=4))
    picture(0).save(root/'b/only.png')
    names = tmp_path/'names.txt'
    names.write_text('\ufeff# two of them\na/001.png\n\n  only.png  \n', encoding='utf-8')
    dls = dls_of(root, labels=names, valid=0)
    labelled = [n for n, l in zip(dls.train.data.names, dls.train.data.labeled, strict=True) if l]
    assert labelled == ['a/001.png', 'b/only.png']
    assert dls_of(root, labels=str(names), valid=0).train.data.labeled.sum() == 2
    for text, why in (('a/001.png\na/xyz.png', "line 2 .*'a/xyz.png': no picture has it"),
                      ('001.png', "line 1 .*2 pictures have that name"), ('# none', 'names no picture')):
        names.write_text(text)
        with pytest.raises(InputError, match=why): dls_of(root, labels=names)
    with pytest.raises(MissingPath, match='nowhere.txt'): dls_of(root, labels='nowhere.txt')


def test_labels_file_may_name_a_broken_picture(tmp_path):
    root = make(tmp_path/'x', dict(a=4))
    (root/'a/bad.png').write_bytes(b'')
    (tmp_path/'names.txt').write_text('a/bad.png\na/000.png')
    assert dls_of(root, labels=tmp_path/'names.txt', valid=0).train.data.labeled.sum() == 1


# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize('kwargs, message', [
    (dict(bs=1), 'bs=1 '), (dict(bs=2.5), 'bs=2.5'), (dict(bs=True), 'bs=True'), (dict(bs=100), 'bs=100 .*8 pictures'),
    (dict(size=0), 'size=0'), (dict(size=32.), 'size=32.0'), (dict(size='32'), 'size=32'),
    (dict(valid=1.0), 'valid=1.0'), (dict(valid=-.1), 'valid=-0.1'), (dict(valid=None), 'valid=None'),
    (dict(valid=True), 'valid=True'), (dict(valid=[1]), 'another folder, not list'),
    (dict(labels=0), 'labels=0'), (dict(labels=1.5), 'labels=1.5'), (dict(labels=False), 'labels=False'),
    (dict(labels=float('nan')), 'labels=nan'),
    (dict(memory=0), 'memory=0'), (dict(memory=2), 'memory=2'), (dict(memory='1'), 'memory=1'),
    (dict(seed=-1), 'seed=-1'), (dict(workers=-1), 'workers=-1'), (dict(device='nonsense'), 'device=nonsense'),
    (dict(device='cuda:99'), 'device=cuda:99'),
])
def test_bad_values(tmp_path, kwargs, message):
    make(tmp_path, dict(a=5, b=5))
    with pytest.raises(InputError, match=message): dls_of(tmp_path, **kwargs)


def test_bad_folders(tmp_path):
    with pytest.raises(MissingPath, match="there is no folder '.*/none'"): dls_of(tmp_path/'none')
    with pytest.raises(MissingPath, match='did you mean digits'): dls_of('digit')
    with pytest.raises(MissingPath, match='there are digits'): dls_of('qqq')
    (tmp_path/'file.zip').write_bytes(b'')
    with pytest.raises(InputError, match='is a file'): dls_of(tmp_path/'file.zip')
    (tmp_path/'empty').mkdir()
    with pytest.raises(InputError, match="no picture in '.*empty'"): dls_of(tmp_path/'empty')
    (tmp_path/'t/train').mkdir(parents=True)
    make(tmp_path/'t/val', dict(a=2))
    with pytest.raises(InputError, match="no picture in '.*train'"): dls_of(tmp_path/'t')
    make(tmp_path/'v/train', dict(a=4))
    (tmp_path/'v/valid').mkdir()
    with pytest.raises(InputError, match="no picture in '.*valid'"): dls_of(tmp_path/'v')
    make(tmp_path/'o/val', dict(a=4))
    with pytest.raises(InputError, match='has a folder val/ but no train/'): dls_of(tmp_path/'o')
    make(tmp_path/'s/train', dict(a=4))
    make(tmp_path/'s/val', dict(a=4, extra=2))
    with pytest.raises(InputError, match='classes that training lacks: extra'): dls_of(tmp_path/'s')
    with pytest.raises(MissingPath, match='no validation folder'): dls_of(tmp_path/'s', valid=tmp_path/'zzz')
    make(tmp_path/'m', dict(a=3))
    picture(0).save(tmp_path/'m/loose.png')
    with pytest.raises(InputError, match='loose.png.* beside folders'): dls_of(tmp_path/'m')
    with pytest.raises(InputError, match='labels=all but the pictures have no labels'):
        dls_of(tmp_path/'m/a', labels='all')


def test_bad_datasets():
    pictures = [(picture(i), i % 2) for i in range(6)]
    with pytest.raises(InputError, match='Given is empty'): dls_of(Given([]))
    with pytest.raises(InputError, match='one integer a picture'): dls_of(Given([(p, 'cat') for p, _ in pictures]))
    with pytest.raises(InputError, match='not -2'): dls_of(Given(pictures, targets=[-2] * 6))
    with pytest.raises(InputError, match='label 1, but training has 1 classes'): dls_of(Given(pictures, classes=['x']))
    with pytest.raises(InputError, match='validation data Given has label 5'):
        dls_of(Given(pictures), valid=Given([(picture(0), 5)]))
    with pytest.raises(InputError, match='outside .0, 1.: remove Normalize'): dls_of(Given([torch.randn(3, 8, 8)] * 4))
    with pytest.raises(InputError, match='item 0 of Given should begin with .* not str'): dls_of(Given(['x.png'] * 4))
    with pytest.raises(InputError, match='uint8 or float'): dls_of(Given([torch.zeros(3, 8, 8).int()] * 4))
    with pytest.raises(InputError, match='NoneType has no pictures'): dls_of(None)
    with pytest.raises(InputError, match='str has no pictures'): dls_of(Given(pictures), valid='folder')
    with pytest.raises(InputError, match='for the digits'): image_dls('digits', valid='folder')


# ---------------------------------------------------------------- with fastai's Learner

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 16, 10)

    def forward(self, x): return self.head(nn.functional.adaptive_avg_pool2d(x.float() / 255, 4).flatten(1))


def test_learner_learns_the_digits():
    dls = image_dls('digits', size=16, bs=64, labels='all', device='cpu')
    learn = Learner(dls, Tiny(), loss_func=nn.CrossEntropyLoss())
    learn.remove_cbs(ProgressCallback)
    with learn.no_logging():
        before = learn.validate()[0]
        learn.fit(3, lr=3e-2)
        after = learn.validate()[0]
    assert after < before - .5 and dls.train.epoch == 3
    assert len(learn.get_preds(dl=dls.valid)[1]) == len(dls.valid.data)


@pytest.mark.parametrize('how', [{}, STREAM])
def test_learner_without_validation_part(tmp_path, how):
    dls = dls_of(make(tmp_path, dict(a=6))/'a', **how)
    learn = Learner(dls, Tiny(), loss_func=lambda p, y: p.square().mean())
    learn.remove_cbs(ProgressCallback)
    learn.fit(1)
    assert learn.recorder.values[0][0] > 0 and not learn.training
    assert dls.device == torch.device('cpu') and dls.to('cpu') is dls


@pytest.mark.parametrize('how', [{}, STREAM])
def test_ordered_takes_a_seeded_few(tmp_path, how):
    dls = dls_of(make(tmp_path, dict(a=9, b=9)), bs=4, **how)
    few = dls.train.ordered(5)
    x, y = everything(few)
    assert len(few) == 2 and len(x) == 5 == len(y)
    assert (everything(few)[0] == x).all() and (everything(dls.train.ordered(5))[0] == x).all()  # the same ones every time
    known = everything(dls.train.ordered())[0]
    assert all((known == p).flatten(1).all(1).any() for p in x)
    assert len(everything(dls.train.ordered(100))[0]) == len(dls.train.data) == len(everything(dls.train.ordered())[0])
    assert len(everything(dls.valid.ordered(1))[0]) == 1 and len(everything(dls.valid)[0]) == len(dls.valid.data)
