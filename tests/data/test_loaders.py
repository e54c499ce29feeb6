"Batches: resident and streaming ones are the same, and what cannot be decoded is left out or replaced"
import io
import os
import struct
import zlib

import numpy as np
import psutil
import pytest
import torch
from helpers.folders import STREAM, Given, as_process, dls_of, everything, image_folder, picture, same
from helpers.pictures import Dots, Dots20
from PIL import Image

from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.loaders import DecodedChunks, StratifiedLoader, Workers
from fastcontrast.pictures import by_reason


def test_no_more_workers_than_cores_that_may_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {2, 3, 7}, raising=False)
    image_folder(tmp_path, dict(a=4, b=4))
    assert dls_of(tmp_path, memory=1e-12, workers=None).train.workers == 3


@pytest.mark.parametrize('workers', [0, 2])
def test_streamed_batches_are_the_resident_ones(tmp_path, workers):
    image_folder(tmp_path, dict(a=9, b=8), size=(70, 50), suffix='jpg')
    kwargs = dict(size=32, bs=4, labels=0.5)
    resident, streamed = dls_of(tmp_path, **kwargs), dls_of(tmp_path, memory=1e-12, workers=workers, **kwargs)
    assert not resident.train.streaming and streamed.train.streaming
    for _ in range(2): same(resident.train, streamed.train)
    next(iter(streamed.train))  # a pass that is given up, one that is only looked at
    next(iter(resident.train))
    same([streamed.train.one_batch()], [resident.train.one_batch()])
    same(resident.train, streamed.train)
    same(resident.train.ordered(), streamed.train.ordered())
    same(resident.valid, streamed.valid)


def test_looking_at_a_batch_disturbs_no_pass(tmp_path):
    root = image_folder(tmp_path, dict(a=12))
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
    root = image_folder(tmp_path, dict(a=11, b=10))
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
    root = image_folder(tmp_path, dict(a=3, b=3))
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
    root = image_folder(tmp_path, dict(a=5, b=5))
    spoil(root/'a')
    dls = dls_of(root, valid=0)
    assert len(dls.train.data) == 10 == len(everything(dls.train.ordered())[0])
    assert dls.train.data.y.tolist() == [0] * 5 + [1] * 5
    report = dls.report()
    assert report.startswith('4 of 14 pictures could not be decoded, they are left out')
    reasons = {'bad0.png': 'empty file', 'bad1.jpg': 'not a picture', 'bad2.png': 'truncated',
               'bad3.png': '178,956,970 pixels'}
    for name, why in reasons.items(): assert f"{root/'a'/name} (" in report and why in report
    for bad in (root/'a').glob('bad*'): bad.unlink()
    good = dls_of(root, valid=0)
    same(dls.train.ordered(), good.train.ordered())
    assert dls.train.data.names == good.train.data.names and good.report() == ''


def test_undecodable_pictures_are_replaced_in_streams(tmp_path):
    root = image_folder(tmp_path, dict(a=5, b=5))
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


def test_report_says_every_reason_once(tmp_path):
    root = image_folder(tmp_path, dict(a=4))
    for i in range(13): (root/f'a/z{i:02}.png').write_bytes(b'')
    for i in range(2): (root/f'a/text{i}.png').write_text('words')
    good = (root/'a/000.png').read_bytes()
    for i in range(3): (root/f'a/cut{i}.png').write_bytes(good[:-400 - i])
    report = dls_of(root, valid=0).report()
    z, cut, text = (root/'a'/name for name in ('z', 'cut', 'text'))
    assert report.startswith("18 of 22 pictures could not be decoded, they are left out: "
                             f"{z}00.png, {z}01.png, {z}02.png and 10 more (empty file); "
                             f"{cut}0.png, {cut}1.png, {cut}2.png (")
    assert report.endswith(f"; {text}0.png, {text}1.png (not a picture).") and report.count('(') == 3


def test_reasons_are_told_in_bounds():
    assert by_reason([('a', 'is cut after 7 bytes'), ('b', 'is cut after 1,9 bytes')]) == (
        'a, b (is cut after 7 bytes, and the like)')
    many = by_reason([(f'{i}.png', chr(97 + i)) for i in range(9)])
    assert many == '0.png (a); 1.png (b); 2.png (c); 3.png (d); 4.png (e); and 4 more'
    assert '\x1b' not in by_reason([('\x1b[2J', '\x1b[2J')]) and by_reason([]) == ''


def test_strict(tmp_path):
    root = image_folder(tmp_path, dict(a=5))
    (root/'a/002.png').write_bytes(b'')
    with pytest.raises(InputError, match='002.png could not be decoded .empty file'): dls_of(root, valid=0, strict=True)
    for workers in (0, 1):
        dls = dls_of(root, valid=0, strict=True, memory=1e-12, workers=workers)
        with pytest.raises(InputError, match='002.png could not be decoded .empty file'):
            list(dls.train.ordered())


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
    assert 'item 50 of Holes, item 150 of Holes, item 250 of Holes and 3 more (cannot be read)' in dls.report()
    for name, pixels, label in zip(map(int, dls.train.data.names), x, y, strict=True):
        assert label == name % 3 and np.array_equal(pixels.permute(1, 2, 0), np.asarray(pictures[name]))


@pytest.mark.parametrize('how', ['processes', 'threads', 'few pictures', 'no workers', 'no forks'])
@pytest.mark.parametrize('deep', [False, True])
def test_however_they_are_decoded_they_are_the_same(tmp_path, monkeypatch, how, deep):
    "In their order, without those that cannot be decoded; and whoever helped has ended"
    root = image_folder(tmp_path, dict(a=23, b=8), (16, 16))
    if deep:
        for path in root.rglob('*.png'):
            values = np.random.default_rng(int(path.stem)).integers(0, 65536, (16, 16), dtype=np.uint16)
            Image.fromarray(values).save(path)
    spoil(root/'a')
    plain, begun = dls_of(root, valid=0, workers=0), []
    def workers(data, n, **kwargs):
        begun.append(n)
        return Workers(data, n, **kwargs)
    monkeypatch.setattr('fastcontrast.loaders.Workers', workers)
    monkeypatch.setattr(DecodedChunks, 'size', 4)
    monkeypatch.setattr(DecodedChunks, 'worth', 1e9 if how == 'few pictures' else 1e-9)
    if how == 'no forks': monkeypatch.setattr('fastcontrast.loaders._can_fork', lambda: False)
    if how == 'threads': monkeypatch.setattr(DecodedChunks, 'threads_from', 16)
    children = set(psutil.Process().children())
    def others(): return set(psutil.Process().children()) - children
    dls = dls_of(root, valid=0, workers=0 if how == 'no workers' else 2)
    assert begun == {'processes': [2], 'no forks': [0]}.get(how, []) and not others()
    assert dls.train.images.dtype == (torch.uint16 if deep else torch.uint8)
    same(plain.train.ordered(), dls.train.ordered())
    assert dls.train.data.names == plain.train.data.names and dls.report() == plain.report()
    with pytest.raises(InputError, match='bad0.png could not be decoded'): dls_of(root, valid=0, workers=2, strict=True)
    assert not others()


@pytest.mark.parametrize('how', [{}, STREAM])
def test_ordered_takes_a_seeded_few(tmp_path, how):
    dls = dls_of(image_folder(tmp_path, dict(a=9, b=9)), bs=4, **how)
    few = dls.train.ordered(5)
    x, y = everything(few)
    assert len(few) == 2 and len(x) == 5 == len(y)
    for again in (few, dls.train.ordered(5)): assert (everything(again)[0] == x).all()  # the same ones every time
    known = everything(dls.train.ordered())[0]
    assert all((known == p).flatten(1).all(1).any() for p in x)
    assert few.count == 5 and torch.equal(few.labels(), dls.train.data.y[few.indices]) and torch.equal(few.labels(), y)
    assert len(everything(dls.train.ordered(100))[0]) == len(dls.train.data) == len(everything(dls.train.ordered())[0])
    assert len(everything(dls.valid.ordered(1))[0]) == 1 and len(everything(dls.valid)[0]) == len(dls.valid.data)


# --- batches by class, picture by picture

def alike(a, b) -> bool:
    "Whether batches are the same"
    return all(torch.equal(x, other_x) and torch.equal(y, other_y)
               for (x, y), (other_x, other_y) in zip(a, b, strict=True))


def by_class(folder, n=3, how=(), **kwargs):
    "The first batches of a loader over a folder, whose labels may all be used"
    loader = StratifiedLoader(dls_of(folder, **{**dict(labels='all', valid=0), **dict(how)}).train, **kwargs)
    batches = [next(loader) for _ in range(n)]
    loader.close()
    return batches


def test_every_batch_is_stratified(class_folder):
    whole = {x.numpy().tobytes(): y.item() for xs, ys in dls_of(class_folder, valid=0).train.ordered()
             for x, y in zip(xs, ys)}
    seen = []
    for images, y in by_class(class_folder, 250, classes_per_batch=3, per_class=3):
        assert images.shape == (9, 3, 32, 32) and images.dtype == torch.uint8 and y.dtype == torch.int64
        names = [x.numpy().tobytes() for x in images]
        assert [whole[n] for n in names] == y.tolist()
        classes, counts = y.unique(return_counts=True)
        assert counts.tolist() == [3] * 3
        for c in classes.tolist():
            different = len({n for n, k in zip(names, y.tolist()) if k == c})
            assert different == 3 if c != 3 else different <= 2  # class d has two pictures, and repeats them
        seen += zip(names, y.tolist())
    n = torch.bincount(torch.tensor([y for _, y in seen]))
    # every class as often as the others, however many pictures it has
    assert n.sum() == 9 * 250 and (n - 450).abs().max() < 90
    for c, pictures, uneven in ((0, 12, 2), (3, 2, 1.2)):  # and within a class, every picture
        of_c = [n for n, y in seen if y == c]
        counts = [of_c.count(n) for n in set(of_c)]
        assert len(counts) == pictures and max(counts) < uneven * min(counts)


def test_draws_are_uniform():
    "Each of the ten pairs among five pictures, each of the six pairs of four classes"
    loader = StratifiedLoader(image_dls(Dots20(), bs=2, valid=0, labels='all', workers=0, device='cpu').train,
                              classes_per_batch=2, seed=5)
    draws = np.concatenate([loader._draw(n) for n in range(30)]).reshape(-1, 2, 2).swapaxes(1, 2)
    # [batch, class, picture]
    assert (draws // 5 == draws[:, :, :1] // 5).all()
    classes = np.unique(np.sort(draws[:, :, 0] // 5, 1), axis=0, return_counts=True)
    pairs = np.unique(np.sort(draws.reshape(-1, 2) % 5, 1), axis=0, return_counts=True)
    for (kinds, counts), n in ((classes, 6), (pairs, 10)):
        assert len(kinds) == n and (kinds[:, 0] < kinds[:, 1]).all()
        expected = counts.sum() / n
        assert ((counts - expected) ** 2 / expected).sum() < 3 * n  # chi-squared: n - 1 on average


def test_every_part_of_a_batch_has_as_many_of_every_class(class_folder, monkeypatch):
    "Or one more: else BatchNorm would take the mean of a class away"
    kwargs = dict(classes_per_batch=3, per_class=4)
    def uneven(y, parts):
        counts = [(part[:, None] == y.unique()).sum(0) for part in y.tensor_split(parts)]
        return max((n.max() - n.min()).item() for n in counts)
    batches = by_class(class_folder, 3, dict(bs=4), **kwargs)
    assert all(uneven(y, parts) <= 1 for _, y in batches for parts in range(1, 7))
    for number in range(4):
        as_process(monkeypatch, number, 4)
        for (_, y), (_, whole) in zip(by_class(class_folder, 3, dict(bs=4), **kwargs), batches, strict=True):
            assert sorted(y.tolist()) == whole.unique().tolist()


def test_draws_repeat_and_leave_other_generators_alone(class_folder):
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    one, two, other = (by_class(class_folder, 120, per_class=2, seed=s) for s in (3, 3, 4))
    assert alike(one, two) and not alike(one, other)
    assert not any(alike([one[i]], [one[i + 1]]) for i in range(119))  # also from draw to draw
    assert torch.equal(torch.random.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize('workers', [0, 1])
def test_streamed_batches_by_class_are_the_resident_ones(class_folder, workers):
    n = 105 if not workers else 4  # more than are drawn at a time
    kwargs = dict(classes_per_batch=2, per_class=2)
    few = dict(labels=0.8)
    assert alike(by_class(class_folder, n, few, **kwargs),
                        by_class(class_folder, n, {**STREAM, **few, 'workers': workers}, **kwargs))


def test_workers_are_let_go(class_folder):
    dls = dls_of(class_folder, labels='all', valid=0, bs=8, **{**STREAM, 'workers': 4})
    loader = StratifiedLoader(dls.train, classes_per_batch=2)
    first, labeled = next(loader), loader._batches.gi_frame.f_locals['labeled']
    workers = labeled._workers.loader._iterator._workers
    assert len(workers) == 2 and all(w.is_alive() for w in workers)  # half a batch takes half the workers
    del labeled
    loader.close()
    for w in workers: w.join(60)
    assert not any(w.is_alive() for w in workers)
    assert not alike([first], [next(loader)])
    loader.close()
    assert dls.train._workers is None


@pytest.mark.parametrize('how', [{}, STREAM], ids=['resident', 'streaming'])
def test_a_share_and_a_file_of_labels(class_folder, tmp_path, how):
    names = ['a/000.png', 'a/007.png', 'e/001.png', 'e/002.png', 'e/004.png']
    (tmp_path/'few.txt').write_text('\n'.join(names))
    dls = dls_of(class_folder, labels=tmp_path/'few.txt', valid=0, **how)
    loader = StratifiedLoader(dls.train, per_class=2)
    assert [dls.train.data.names[i] for i in loader.indices] == names and loader.classes_per_batch == 2
    x = dict(zip(dls.train.data.names, torch.cat([x for x, _ in dls.train.ordered()])))
    for _ in range(20):
        images, y = next(loader)
        assert sorted(y.tolist()) == [0, 0, 4, 4]
        for image in images: assert any(torch.equal(image, x[n]) for n in names)


@pytest.mark.parametrize('how', [{}, STREAM], ids=['resident', 'streaming'])
def test_a_broken_picture_is_stood_in_for_by_a_labelled_one(tmp_path, how):
    image_folder(tmp_path, dict(a=8, b=8))
    (tmp_path/'few.txt').write_text('\n'.join(f'{c}/{i:03}.png' for c in 'ab' for i in (0, 4, 6)))
    (tmp_path/'a/004.png').write_bytes(b'not a picture')
    dls = dls_of(tmp_path, labels=tmp_path/'few.txt', valid=0, **how)
    loader = StratifiedLoader(dls.train, per_class=2)
    firsts = [next(dls.train.ordered()._images(index)) for index in loader.indices.split(1)]
    known = {x.numpy().tobytes() for x, _ in firsts}
    for _ in range(20):
        images, y = next(loader)
        assert (y >= 0).all() and {x.numpy().tobytes() for x in images} <= known
    assert 'a/004.png' in dls.report()


@pytest.mark.parametrize('how', [{}, STREAM], ids=['resident', 'streaming'])
def test_slices_of_two_processes_make_the_whole(class_folder, how, monkeypatch):
    kwargs = dict(classes_per_batch=5, per_class=2)
    whole, parts = by_class(class_folder, 4, how, **kwargs), []
    for number in range(2):
        as_process(monkeypatch, number, 2)
        parts.append(by_class(class_folder, 4, how, **kwargs))
    for batch, one, two in zip(whole, *parts):
        assert len(one[1]) == len(two[1]) == 5
        assert alike([batch], [[torch.cat(t) for t in zip(one, two)]])
    with pytest.raises(InputError, match='5 classes with 3 pictures each cannot be divided among 2 processes'):
        by_class(class_folder, classes_per_batch=5, per_class=3)


def test_at_most_twenty_classes():
    class Many(Dots):
        def __init__(self):
            super().__init__(50, 4)
            self.targets = [i % 25 for i in range(50)]
    dl = image_dls(Many(), bs=2, valid=0, labels='all', workers=0, device='cpu').train
    for loader, classes in ((StratifiedLoader(dl), 20), (StratifiedLoader(dl, classes_per_batch=25), 25)):
        assert next(loader)[1].unique(return_counts=True)[1].tolist() == [2] * classes


def test_bad_batches_by_class(class_folder, tmp_path):
    with pytest.raises(InputError, match=r'no label that training may use: give labels \(--labels\) a share like 0.1'):
        by_class(class_folder, how=dict(labels=None))
    with pytest.raises(InputError, match=r"class 'c' has one picture whose label .* larger share, or more names"):
        by_class(class_folder, how=dict(labels=0.4))
    for kwargs, words in ((dict(classes_per_batch=6), 'classes_per_batch=6 is more than the 5 classes'),
                          (dict(classes_per_batch=1), 'classes_per_batch=1 must be a whole number of at least 2'),
                          (dict(per_class=1), 'per_class=1 must be a whole number of at least 2'),
                          (dict(per_class=2.), 'per_class=2.0 must be a whole'),
                          (dict(seed=-1), 'seed=-1 must be a whole number of at least 0')):
        with pytest.raises(InputError, match=words): by_class(class_folder, **kwargs)
    with pytest.raises(InputError, match="only class 'x' has labels"):
        by_class(image_folder(tmp_path/'one', dict(x=4)))
    image_folder(tmp_path/'flat', dict(train=4))
    with pytest.raises(InputError, match='the pictures have no labels: use class folders'):
        by_class(tmp_path/'flat'/'train', how=dict(labels=None))
    with pytest.raises(InputError, match='need the training part of image_dls'): StratifiedLoader([1, 2])


def test_fastai_loaders_are_refused(tmp_path):
    from fastai.vision.data import ImageDataLoaders
    image_folder(tmp_path, dict(a=6, b=6))
    dls = image_dls(ImageDataLoaders.from_folder(tmp_path, valid_pct=0.2, seed=1, bs=4, num_workers=0, device='cpu'),
                    labels='all')
    with pytest.raises(InputError, match='fastai DataLoaders choose themselves .* give image_dls the folder'):
        StratifiedLoader(dls.train)


@pytest.mark.parametrize('bs,labels,support', [(44, 'all', 40), (22, 'all', 20), (4, 'all', 4), (44, 0.4, 4)])
def test_the_support_is_of_the_authors_proportion(bs, labels, support):
    dls = image_dls(Dots20(), bs=min(bs, 20), valid=0, labels=labels, workers=0, device='cpu')
    dls.train.bs = bs
    loader = StratifiedLoader(dls.train, classes_per_batch=2)
    most = 2 * loader.counts.min()  # no picture twice
    assert loader.bs == min(support, most)
    assert all(c == loader.bs // 2 for c in next(loader)[1].unique(return_counts=True)[1])


# ---------------------------------------------------------------- what there is, at a look

def test_what_is_printed(tmp_path):
    root = image_folder(tmp_path/'x', dict(a=10, b=10), size=(60, 40))
    dls = dls_of(root, size=20, labels=.5, valid=.2)
    assert repr(dls).splitlines() == [
        f'{root}, for views of 20 px', '  train: 16 pictures, whole, squashed to 37 x 37 px, 3 channels of 8 bits, '
        'in memory, 8 batches of 2 on cpu', '  valid: 4 pictures, whole, squashed to 37 x 37 px, 3 channels of 8 bits, '
        'in memory, 2 batches of 2 on cpu', '  classes: 2 (a, b); training knows those of 8 pictures']
    assert str(dls) == repr(dls) and repr(dls.valid) == repr(dls).splitlines()[2].removeprefix('  valid: ')
    streamed = dls_of(root, size=20, valid=0, **STREAM)
    assert 'decoded for every batch, 10 batches of 2' in repr(streamed) and '  valid: none' in repr(streamed)
    assert '3 channels of 8 bits, from the cache, ' in repr(dls_of(root, size=20, cache=tmp_path/'c'))
    deep = [np.full((8, 8), 1000 + i, np.uint16) for i in range(3)]
    printed = repr(dls_of(deep, bs=3, channels=1))
    assert '3 pictures, 8 x 8 px, 1 channel of 16 bits, in memory, 1 batch of 3' in printed
    assert printed.splitlines()[-2:] == ['  classes: none', '  values: 0 to 1,023 become 0 to 1']
    (root/'a/bad\x1b[2J.png').write_bytes(b'')
    judged = repr(dls_of(deep, bs=3, valid=root))
    assert '  bank: 16 pictures' in judged and '  judged within x, classes: 2 (a, b)' in judged
    assert '1 of 24 pictures could not be decoded' in judged and '\x1b' not in judged
    reasons = repr(dls_of([(picture(i), .5) for i in range(4)]))
    assert 'classes: the labels of list are floats like 0.5, which are no classes' in reasons


def test_printing_and_drawing_use_up_nothing(tmp_path):
    root, state = image_folder(tmp_path, dict(a=8, b=8)), torch.get_rng_state()
    dls, other = dls_of(root, labels='all'), dls_of(root, labels='all')
    repr(dls), dls.show_batch(), dls.valid.show_batch()
    same(dls.train, other.train)
    assert torch.equal(torch.get_rng_state(), state)


def drawn(figure): return [ax for ax in figure.axes if ax.images]


def test_a_batch_is_drawn_with_its_classes(tmp_path):
    root = image_folder(tmp_path/'x', dict(a=8, b=8))
    dls = dls_of(root, bs=12, labels='all', valid=0)
    figure, (images, y) = dls.show_batch(), dls.train.one_batch()
    assert [ax.get_title() for ax in drawn(figure)] == ['ab'[c] for c in y[:9]]
    assert figure.axes[0].get_gridspec().get_geometry() == (3, 3)
    for ax, image in zip(drawn(figure), images, strict=False):
        assert np.allclose(ax.images[0].get_array(), image.permute(1, 2, 0) / 255)
    hidden = dls_of(root, bs=12, valid=0)
    assert {ax.get_title() for ax in drawn(hidden.show_batch())} == {''}
    assert {ax.get_title() for ax in drawn(hidden.train.ordered().show_batch(max_n=99))} == {'a', 'b'}
    few = dls.show_batch(max_n=5, ncols=3, path=tmp_path/'x.png')
    assert len(drawn(few)) == 5 and len(few.axes) == 6 and Image.open(tmp_path/'x.png').width > 100
    assert len(drawn(dls.show_batch((images[:1], y[:1])))) == 1
    for wrong in (dict(max_n=0), dict(max_n=True), dict(ncols=0)):
        with pytest.raises(InputError, match='must be a whole number'): dls.show_batch(**wrong)
    with pytest.raises(InputError, match='there is no picture'): dls.valid.show_batch()


def test_whole_pictures_are_drawn_in_their_shapes(tmp_path):
    dls = dls_of(image_folder(tmp_path, dict(a=4), size=(60, 40)), valid=0)
    assert [ax.get_aspect() for ax in drawn(dls.show_batch())] == [pytest.approx(2 / 3)] * 2


@pytest.mark.parametrize('channels, dtype', [(1, np.uint8), (1, np.uint16), (2, np.uint8), (5, np.uint16)])
def test_any_channels_are_drawn(channels, dtype):
    x = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (4, 8, 8, channels)).astype(dtype)
    figure = dls_of(x, channels=channels, valid=0).show_batch()
    assert len(drawn(figure)) == 2 and figure.get_supxlabel() == ('channels 0, 2, 4' if channels > 3 else '')
    assert dls_of(x, channels=channels, valid=0).show_batch(bands=[0]).get_supxlabel() == 'channel 0'
