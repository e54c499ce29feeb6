"Every source, its splits and labels, and every bad input"
import os

import numpy as np
import pytest
import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import GrandparentSplitter, Normalize, RandomSplitter, get_image_files, parent_label
from fastai.learner import Learner
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageBlock
from helpers.folders import STREAM, Given, dls_of, everything, image_folder, picture, same
from helpers.refusals import said as said_of
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from fastcontrast.core import InputError, MissingPath
from fastcontrast.data import ImageLoader, find_pictures, has_valid, image_dls


# ---------------------------------------------------------------- sources

@pytest.mark.parametrize('name', ['val', 'valid', 'validation', 'test'])
def test_train_and_validation_folders(tmp_path, name):
    image_folder(tmp_path/'train', dict(b=3, a=4))
    image_folder(tmp_path/name, dict(b=2))
    dls = dls_of(tmp_path)
    assert dls.classes == ['a', 'b'] and dls.size == 32 and dls.source == str(tmp_path) and dls.n_inp == 1
    assert dls.train.data.names[0] == 'a/000.png' and dls.train.data.y.tolist() == [0] * 4 + [1] * 3
    x, y = everything(dls.valid)
    assert y.tolist() == [1, 1] and x.dtype == torch.uint8 and y.dtype == torch.int64
    assert np.array_equal(x[1].permute(1, 2, 0), np.asarray(Image.open(tmp_path/name/'b/001.png')))


@pytest.mark.parametrize('how', [{}, dict(cache=True), STREAM])
def test_a_split_without_labels_judges_nothing(tmp_path, how):
    "As Kaggle's test/ beside a train/ with classes"
    image_folder(tmp_path/'p/train', dict(a=10, b=10))
    image_folder(tmp_path/'p', dict(test=4))
    notes, data = notes_of(tmp_path/'p', **how)
    said = f"the pictures in '{tmp_path}/p/test' have no labels to judge by and are left out; a share of 0.2 of those"
    assert any(note.startswith(said) for note in notes) and len(data) == 16
    dls, alone = (dls_of(tmp_path/folder, **how) for folder in ('p', 'p/train'))
    for one, other in zip(dls.loaders, alone.loaders, strict=True): same(one.ordered(), other.ordered())
    assert torch.bincount(dls.valid.data.y).tolist() == [2, 2] and not has_valid(tmp_path/'p')
    notes, data = notes_of(tmp_path/'p', valid=0, **how)  # nothing else is to judge
    assert len(data) == 20 and not any('have no labels' in note for note in notes)
    assert dls_of(tmp_path/'p', valid=0, **how).valid.data.y.tolist() == [-1] * 4
    assert len(dls_of(tmp_path/'p', unlabelled=True, **how).valid.data) == 4  # training has none either
    image_folder(tmp_path/'p/val', dict(a=2, b=2))
    assert len(dls_of(tmp_path/'p', **how).valid.data) == 4 and has_valid(tmp_path/'p')


def test_flat_parts_and_flat_folder(tmp_path):
    image_folder(tmp_path, dict(train=6, val=3))
    dls = dls_of(tmp_path)
    assert has_valid(tmp_path)
    assert dls.classes is None and len(dls.valid.data) == 3 and (everything(dls.valid)[1] == -1).all()
    dls = dls_of(tmp_path/'train')
    assert len(dls.train.data) == 6 and len(dls.valid) == 0 and list(dls.valid) == []
    assert (everything(dls.train.ordered())[1] == -1).all()
    with pytest.raises(InputError, match='empty'): dls.valid.one_batch()


def test_split_is_seeded_and_stratified(tmp_path):
    image_folder(tmp_path, dict(a=20, b=5, c=2, d=1))
    parts = [dls_of(tmp_path, seed=s, valid=0.3) for s in (0, 0, 1)]
    held = [p.valid.data.names for p in parts]
    assert held[0] == held[1] != held[2]
    assert torch.bincount(parts[0].valid.data.y, minlength=4).tolist() == [6, 2, 1, 0]
    assert torch.bincount(parts[0].train.data.y).tolist() == [14, 3, 1, 1]
    assert not set(held[0]) & set(parts[0].train.data.names)
    assert len(dls_of(tmp_path, valid=0).valid) == 0
    assert torch.bincount(dls_of(tmp_path, valid=.99).train.data.y).tolist() == [1, 1, 1, 1]


def test_train_folder_without_validation_is_split(tmp_path):
    image_folder(tmp_path/'train', dict(a=10, b=10))
    dls = dls_of(tmp_path)
    assert len(dls.train.data) == 16 and len(dls.valid.data) == 4


def notes_of(source, **kwargs):
    "What is said of a source, and its training pictures"
    notes = []
    return notes, dls_of(source, tell=notes.append, **kwargs).train.data


@pytest.mark.parametrize('suffix', ['png', 'npy'])
def test_a_class_may_be_called_train(tmp_path, suffix):
    root = image_folder(tmp_path/'vehicles', dict(bus=4, car=4, train=4))
    (root/'train/models').mkdir()  # without pictures
    if suffix == 'npy':
        for path in root.rglob('*.png'):
            np.save(path.with_suffix('.npy'), np.asarray(Image.open(path)))
            path.unlink()
    notes, data = notes_of(root, valid=0)
    assert notes[0] == '3 classes from folders: bus, car, train' and data.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(notes_of(root, unlabelled=True)[1]) == 12
    (root/f'train/000.{suffix}').rename(root/f'train/models/000.{suffix}')
    notes, data = notes_of(root, unlabelled=True)  # it has folders of its own
    assert notes == ['folders of pictures beside train/ are left out: bus, car'] and len(data) == 4


def test_a_folder_called_train_is_taken_as_it_is(tmp_path):
    root = image_folder(tmp_path/'photos', {'train': 4, 'beach': 3, '2023/05': 2})
    notes, data = notes_of(root, unlabelled=True)
    assert not notes and data.names[0] == '2023/05/000.png' and len(data) == 9
    (root/'beach').rename(tmp_path/'beach')
    notes, data = notes_of(root, unlabelled=True)  # no other has loose ones, as train/ does
    assert notes == ['folders of pictures beside train/ are left out: 2023'] and len(data) == 4


@pytest.mark.parametrize('beside', ['test1', 'Val_2', 'TEST'])
def test_what_is_called_like_a_split_makes_no_class_of_train(tmp_path, beside):
    root = image_folder(tmp_path, {'train': 4, beside: 3, 'valley': 2})
    notes, data = notes_of(root)
    assert data.classes is None and len(data) == 4
    assert notes == [f'folders of pictures beside train/ are left out: {", ".join(sorted([beside, "valley"]))}']


def test_what_stands_beside_splits_is_told(tmp_path):
    image_folder(tmp_path/'p/train', dict(a=4, b=4))
    image_folder(tmp_path/'p', {'extra/a': 3, 'more': 2, '.hidden': 1})
    (tmp_path/'p/empty/deep').mkdir(parents=True)
    (tmp_path/'p/papers').mkdir()
    (tmp_path/'p/papers/list.txt').write_text('no picture')
    (tmp_path/'p/latest').symlink_to('train')
    left = 'folders of pictures beside train/ are left out: extra, more'
    for unlabelled in (False, True): assert left in notes_of(tmp_path/'p', unlabelled=unlabelled)[0]
    image_folder(tmp_path/'p/val', dict(a=1, b=1))
    image_folder(tmp_path/'p/test', dict(a=1, b=1))
    notes, data = notes_of(tmp_path/'p')
    assert left in notes and data.classes == ['a', 'b'] and len(data) == 8
    image_folder(tmp_path/'q', dict(a=4, b=4))
    assert left in notes_of(tmp_path/'q', valid=tmp_path/'p')[0]
    image_folder(tmp_path/'flat', dict(train=4, val=2, more=3))
    notes, data = notes_of(tmp_path/'flat')
    assert data.classes is None and notes == ['folders of pictures beside train/ are left out: more']


@pytest.mark.skipif(os.getuid() == 0, reason='root may look into everything')
def test_what_may_not_be_looked_into_is_no_matter_beside_splits(tmp_path):
    image_folder(tmp_path/'train', dict(a=4))
    (tmp_path/'lost+found').mkdir(mode=0)
    assert notes_of(tmp_path) == (['1 class from folders: a'], notes_of(tmp_path)[1])


def test_other_folder_validates(tmp_path):
    image_folder(tmp_path/'x', dict(a=4, b=4))
    image_folder(tmp_path/'y', dict(b=3))
    dls = dls_of(tmp_path/'x', valid=tmp_path/'y')
    assert len(dls.train.data) == 8 and dls.valid.data.y.tolist() == [1] * 3


def test_what_is_passed_over(tmp_path):
    root = image_folder(tmp_path/'x', dict(a=2, b=2))
    for junk in ('.hidden', '.ipynb_checkpoints', '__MACOSX'): image_folder(root/junk, dict(z=1))
    picture(0).save(root/'a'/'.secret.png')
    (root/'a/readme.txt').write_text('no picture')
    (root/'b/features.h5').write_bytes(b'no picture')
    (root/'empty').mkdir()
    (root/'a/more').mkdir()
    picture(1).save(root/'a/more/0.JPG', format='JPEG')
    (root/'a/loop').symlink_to(root/'a')
    image_folder(tmp_path/'far', dict(c=2))
    (root/'c').symlink_to(tmp_path/'far/c')
    (root/'b/linked').symlink_to(tmp_path/'far/c')
    dls = dls_of(root, valid=0)
    assert dls.classes == ['a', 'b', 'c']
    assert dls.train.data.names == ['a/000.png', 'a/001.png', 'a/more/0.JPG', 'b/000.png', 'b/001.png',
                                    'b/linked/000.png', 'b/linked/001.png', 'c/000.png', 'c/001.png']
    assert find_pictures(root/'a', nested=False) == ['000.png', '001.png']


def test_one_class(tmp_path): assert dls_of(image_folder(tmp_path, dict(a=5))).classes == ['a']


def test_digits():
    dls = image_dls('digits', bs=64, device='cpu')
    assert dls.size == 32 and dls.train.one_batch()[0].shape == (64, 3, 32, 32) and dls.source == 'digits'
    assert (len(dls.train.data), len(dls.valid.data)) == (1400, 397)
    assert dls.train.data.y.unique().tolist() == list(range(10))
    whole = load_digits().target
    assert torch.cat([dls.train.data.y, dls.valid.data.y]).tolist() == whole.tolist()  # in the order of their writers
    assert image_dls('digits', size=16, device='cpu').valid.one_batch()[0].shape[2:] == (16, 16)
    with pytest.raises(InputError, match='device=meta cannot be used here'): image_dls('digits', device='meta')
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


def test_datasets_of_other_shapes(tmp_path):
    tensors = [torch.full((1, 9, 12), i, dtype=torch.uint8) for i in range(6)]
    dls = dls_of(Given(tensors), size=8)
    assert dls.classes is None and len(dls.valid.data) == 0 and dls.train.one_batch()[0].shape == (2, 3, 10, 10)
    labelled = Given([(picture(i), i % 2) for i in range(8)], targets=[0, 1] * 3 + [-1, -1], classes=['x', 'y', 'z'])
    dls = dls_of(labelled, labels='all', valid=0.4)
    assert dls.classes == ['x', 'y', 'z'] and dls.train.data.y.tolist()[-2:] == [-1, -1]
    assert not dls.train.data.labeled[-2:].any() and dls.train.data.labeled[:-2].all()
    (tmp_path/'names.txt').write_text('1\n7\n')  # the last item has no label to be used
    dls = dls_of(labelled, labels=tmp_path/'names.txt', valid=0)
    assert dls.train.data.labeled.nonzero().tolist() == [[1]]


def test_fastai_dataloaders(tmp_path):
    image_folder(tmp_path/'train', dict(a=6, b=7), size=(40, 30))
    image_folder(tmp_path/'valid', dict(a=3, b=2), size=(40, 30))
    block = dict(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                 splitter=GrandparentSplitter(), item_tfms=Resize(24))
    made = DataBlock(batch_tfms=aug_transforms(), **block).dataloaders(tmp_path, bs=4, num_workers=0)
    dls = image_dls(made, labels='all', device='cpu')
    assert image_dls(made.train_ds, size=24, device='cpu').classes == ['a', 'b']
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


def test_size_and_side(tmp_path):
    root = image_folder(tmp_path/'same', dict(a=4, b=4), size=(48, 48))
    dls = dls_of(root)
    assert dls.size == 48 and dls.train.one_batch()[0].shape[-1] == 48
    assert [dls_of(root, size=n).train.one_batch()[0].shape[-1] for n in (24, 32, 99)] == [36, 48, 48]
    picture(0, (50, 48)).save(root/'b/zzz.png')
    assert dls_of(root).size == 224
    assert dls_of(root, size=48).train.one_batch()[0].shape[-1] == 48  # whole, and not larger than they are
    assert dls_of(root, size=1).train.one_batch()[0].shape[-1] == 2
    assert dls_of(image_folder(tmp_path/'large', dict(a=2), size=(300, 300)), valid=0).size == 224


# ---------------------------------------------------------------- labels

def test_labels(tmp_path):
    root = image_folder(tmp_path/'x', dict(a=20, b=10, c=3))
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
    root = image_folder(tmp_path/'x', dict(a=4, b=4))
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


def test_labels_that_are_held_out_are_told(tmp_path):
    root, names = image_folder(tmp_path/'x', dict(a=10, b=10)), tmp_path/'names.txt'
    held = dls_of(root).valid.data.names
    kept = dls_of(root).train.data.names
    names.write_text('\n'.join([*held[:3], *kept[:5]]))
    notes, data = notes_of(root, labels=names)
    said = f"3 of the 8 pictures named in '{names}' are held out to judge by, and training does not use their labels"
    assert said in notes
    assert [name for name, known in zip(data.names, data.labeled) if known] == [*kept[:5]]
    for how in (dict(valid=0), dict(valid=image_folder(tmp_path/'y', dict(a=2, b=2)))):
        notes, data = notes_of(root, labels=names, **how)
        assert data.labeled.sum() == 8 and not any('names.txt' in note for note in notes)
    names.write_text('\n'.join(held))
    words = 'leaves no label to training, as 4 of the 4 pictures named in', names, 'held out', 'valid=0 (--valid 0)'
    said_of(words, dls_of, root, labels=names)
    assert notes_of(root, labels=names, valid=0)[1].labeled.sum() == 4
    picture_labels = [(picture(i), label) for i, label in enumerate([0] * 8 + [1] * 8 + [-1] * 2)]
    held = dls_of(Given(picture_labels)).valid.data.names
    names.write_text('\n'.join([held[0], '17']))  # and one without a label
    said_of(['1 of the 2 pictures named in', 'is held out'], dls_of, Given(picture_labels), labels=names)


def test_labels_file_may_name_a_broken_picture(tmp_path):
    root = image_folder(tmp_path/'x', dict(a=4))
    (root/'a/bad.png').write_bytes(b'')
    (tmp_path/'names.txt').write_text('a/bad.png\na/000.png')
    assert dls_of(root, labels=tmp_path/'names.txt', valid=0).train.data.labeled.sum() == 1


# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize('kwargs, message', [
    (dict(bs=1), 'bs=1 must be a whole number of at least 2'), (dict(bs=2.5), 'bs=2.5 must be a whole number'),
    (dict(bs=True), 'bs=True must be'),
    (dict(size=0), 'size=0 must be a whole number from 1 to 8192'), (dict(size=32.), 'size=32.0 must be'),
    (dict(size='32'), "size='32' must be"),
    (dict(valid=1.0), 'valid=1.0 must be a finite number at least 0 and below 1'), (dict(valid=-.1), 'valid=-0.1 must'),
    (dict(valid=None), 'valid=None must be'),
    (dict(valid=True), 'valid=True must be .* below 1, the share of the pictures that validates .*any other source'),
    (dict(labels=[0, 1] * 999), r'labels=\[0, 1, .{1,60}… should be .all., .*image_dls\(\(pictures, classes\)\)'),
    (dict(labels='0.1'), "there is no file '0.1' with the names .*: labels should be 'all'.*like 0.1"),
    (dict(valid=float('nan')), 'valid=nan must be'), (dict(valid=[1]), 'item 0 of list should begin with'),
    (dict(labels=0), 'labels=0'), (dict(labels=1.5), 'labels=1.5'), (dict(labels=False), 'labels=False'),
    (dict(labels=float('nan')), 'labels=nan'),
    (dict(memory=-1), 'memory=-1 must be a finite number at least 0 and at most 1'),
    (dict(memory=2), 'memory=2 must be'), (dict(memory='1'), "memory='1' must be"),
    (dict(seed=-1), 'seed=-1 must be a whole number of at least 0'),
    (dict(workers=-1), 'workers=-1 must be a whole number of at least 0'), (dict(device='nonsense'), 'device=nonsense'),
    (dict(device='cuda:99'), 'device=cuda:99'),
])
def test_bad_values(tmp_path, kwargs, message):
    image_folder(tmp_path, dict(a=5, b=5))
    with pytest.raises(InputError, match=message): dls_of(tmp_path, **kwargs)


def test_bad_folders(tmp_path, monkeypatch):
    with pytest.raises(MissingPath, match="there is no folder '.*/none'"): dls_of(tmp_path/'none')
    with pytest.raises(MissingPath, match='did you mean digits'): dls_of('digit')
    root = image_folder(tmp_path/'root', dict(a=2, b=2))
    for path, words in (('', 'is no path'), ('~nobody_is_called_this/x', 'begins with the home folder of somebody')):
        for given in (dict(source=path), dict(valid=path), dict(labels=path)):
            with pytest.raises(InputError, match=words): dls_of(**dict(source=root) | given)
    with pytest.raises(InputError, match='the home folder of somebody'): dls_of('~nobody_is_called_this/x.csv')
    with pytest.raises(MissingPath, match="no data set of that name is built in: there is digits"): dls_of('qqq')
    (tmp_path/'photos').mkdir()
    with pytest.raises(MissingPath, match="did you mean .*/photos"): dls_of(tmp_path/'photso')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingPath, match="there is no folder 'photso': did you mean photos"): dls_of('photso')
    (tmp_path/'file.zip').write_bytes(b'')
    with pytest.raises(InputError, match='is a file'): dls_of(tmp_path/'file.zip')
    (tmp_path/'empty').mkdir()
    with pytest.raises(InputError, match="no picture in '.*empty'"): dls_of(tmp_path/'empty')
    (tmp_path/'t/train').mkdir(parents=True)
    image_folder(tmp_path/'t/val', dict(a=2))
    with pytest.raises(InputError, match="no picture in '.*train'"): dls_of(tmp_path/'t')
    image_folder(tmp_path/'v/train', dict(a=4))
    (tmp_path/'v/valid').mkdir()
    with pytest.raises(InputError, match="no picture in '.*valid'"): dls_of(tmp_path/'v')
    image_folder(tmp_path/'o/val', dict(a=4))
    with pytest.raises(InputError, match='has a folder val/ but no train/'): dls_of(tmp_path/'o')
    image_folder(tmp_path/'s/train', dict(a=4))
    image_folder(tmp_path/'s/val', dict(a=4, extra=2))
    with pytest.raises(InputError, match='classes that training lacks: extra'): dls_of(tmp_path/'s')
    with pytest.raises(MissingPath, match='no validation folder'): dls_of(tmp_path/'s', valid=tmp_path/'zzz')
    image_folder(tmp_path/'m', dict(a=3))
    picture(0).save(tmp_path/'m/loose.png')
    with pytest.raises(InputError, match='loose.png.* beside folders.*unlabelled=True'): dls_of(tmp_path/'m')
    with pytest.raises(InputError, match='labels=all but the pictures have no labels'):
        dls_of(tmp_path/'m/a', labels='all')


def test_bad_datasets():
    pictures = [(picture(i), i % 2) for i in range(6)]
    with pytest.raises(InputError, match='Given is empty'): dls_of(Given([]))
    with pytest.raises(InputError, match='not -2'): dls_of(Given(pictures, targets=[-2] * 6), labels='all')
    with pytest.raises(InputError, match='label 1, but there is 1 class'):
        dls_of(Given(pictures, classes=['x']), labels='all')
    with pytest.raises(InputError, match='validation data Given has label 5'):
        dls_of(Given(pictures), valid=Given([(picture(0), 5)]))
    with pytest.raises(InputError, match='item 0 of Given should begin with .* not str'): dls_of(Given(['x.png'] * 4))
    with pytest.raises(InputError, match='item 0 of Given should begin with .* not .3.'):
        dls_of(Given([torch.zeros(3).int()] * 4))
    with pytest.raises(InputError, match='NoneType has no pictures'): dls_of(None)
    for source in (Given(pictures), 'digits'):
        with pytest.raises(MissingPath, match="no validation folder 'folder'"): dls_of(source, valid='folder')


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
    dls = dls_of(image_folder(tmp_path, dict(a=6))/'a', **how)
    learn = Learner(dls, Tiny(), loss_func=lambda p, y: p.square().mean())
    learn.remove_cbs(ProgressCallback)
    learn.fit(1)
    assert learn.recorder.values[0][0] > 0 and not learn.training
    assert dls.device == torch.device('cpu') and dls.to('cpu') is dls
