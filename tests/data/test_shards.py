"Tar files of pictures, streamed: every picture once, the same batches for the same seed, and every broken shard"
import io
import json
import os
import shutil
import sys
import tarfile

import numpy as np
import pytest
import torch
from helpers.folders import as_process, everything
from helpers.odd import KINDS, no_file, within
from helpers.refusals import said
from PIL import Image
from torch import nn
from webdataset import TarWriter

from fastcontrast import shards as shards_module
from fastcontrast.core import InputError, MissingPath
from fastcontrast.data import StratifiedLoader, image_dls
from fastcontrast.evaluate.finetune import finetune
from fastcontrast.shards import INDEX, MARK, Shards, shard_paths


def encoded(i, kind='png', size=(8, 8)):
    "A picture whose grey is its number"
    file = io.BytesIO()
    Image.new('RGB', size, (i % 256,) * 3).save(file, {'jpg': 'JPEG', 'webp': 'WEBP'}.get(kind, kind.upper()))
    return file.getvalue()


def write(path, numbers, labels=True, kind='png', **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path), **kwargs) as tar:
        for i in numbers:
            label = dict(cls=i % 3) if labels else {}
            tar.write(dict(__key__=f'some/{i:05}', **{kind: encoded(i, kind)}, **label))
    return path


def dls_of(source, **kwargs): return image_dls(source, **dict(bs=4, size=8, workers=0, valid=0, device='cpu') | kwargs)
def numbers(loader): return everything(loader)[0][:, 0, 4, 4].tolist()


@pytest.fixture(scope='module')
def three(tmp_path_factory):
    "Three shards of 70, 100 and 30 pictures, more than there are between two marks"
    folder = tmp_path_factory.mktemp('three')
    for k, (a, b) in enumerate(((0, 70), (70, 170), (170, 200))): write(folder/f'{k:03}.tar', range(a, b))
    return folder


@pytest.fixture
def root(tmp_path, three):
    "A copy of them, to be changed and written to"
    for file in three.glob('*.tar'): shutil.copy(file, tmp_path)
    return tmp_path


# ---------------------------------------------------------------- which pictures

@pytest.mark.parametrize('workers', [0, 3])
def test_every_picture_once_a_pass(root, workers):
    train = dls_of(f'{root}/{{000..002}}.tar', labels='all', workers=workers).train
    assert len(train) == 50 and len(train.data) == 200 and train.data.classes == ['0', '1', '2']
    passes = []
    for _ in range(2):
        batches = list(train)
        assert all(x.shape == (4, 3, 8, 8) and x.dtype == torch.uint8 and y.dtype == torch.int64 for x, y in batches)
        x, y = everything(batches)
        assert sorted(x[:, 0, 0, 0].tolist()) == list(range(200)) and torch.equal(x[:, 0, 0, 0].long() % 3, y)
        passes.append(x[:, 0, 0, 0].tolist())
    assert passes[0] != passes[1]
    again = dls_of(root, workers=workers).train
    assert [numbers(again), numbers(again)] == passes and (everything(again)[1] == -1).all()
    assert numbers(dls_of(root, workers=workers, seed=1).train) != passes[0]
    train.epoch = 1
    first = train.one_batch()[0][:, 0, 0, 0].tolist()
    assert first == passes[1][:4] and numbers(train) == passes[1]  # looking takes nothing away


def test_streaming_draws_no_random_numbers(root):
    before = torch.get_rng_state()
    list(dls_of(root, workers=2).train)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_buffer_mixes(root):
    mixed = numbers(dls_of(root).train)
    assert np.abs(np.diff(mixed)).mean() > 30  # neighbours in a batch are far apart in the shards
    assert len(set(np.array(mixed[:20]) // 10)) > 5


@pytest.mark.parametrize('processes, bs, workers', [(2, 8, 0), (3, 21, 2), (7, 196, 0)])
def test_processes_share_a_pass(root, monkeypatch, processes, bs, workers):
    "Equally many whole batches on all of them, and no picture twice"
    seen = []
    for r in range(processes):
        as_process(monkeypatch, r, processes)
        train = dls_of(root, bs=bs, workers=workers).train
        share = numbers(train)
        assert len(train) == 200 // bs and len(share) == len(train) * bs // processes
        seen += share
        assert numbers(train.ordered()) == list(range(200))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize('workers', [0, 3])
def test_evaluation_is_in_order(root, workers):
    write(root/'held/0.tar', range(100, 150))
    dls = dls_of(root/'000.tar', valid=root/'held', workers=workers)
    assert numbers(dls.train.ordered()) == list(range(70)) == numbers(dls.train.ordered(1000))
    few = dls.train.ordered(66)
    assert numbers(few) == list(range(66)) and len(few) == 17 and few.labels().tolist() == [i % 3 for i in range(66)]
    x, y = everything(dls.valid)
    assert x[:, 0, 0, 0].tolist() == list(range(100, 150))
    assert torch.equal(y, dls.valid.data.y) and y.tolist() == [i % 3 for i in range(100, 150)]
    assert numbers(dls.valid.ordered(3)) == [100, 101, 102] and numbers(dls.valid) == list(range(100, 150))
    assert len(dls.train) == 17 and len(numbers(dls.train)) == 68  # ...and training drops what makes no batch
    assert dls.train.epoch == 1  # of which no evaluation took one


def test_sources_and_parts(root, tmp_path):
    paths = [root/f'{k:03}.tar' for k in range(3)]
    patterns = f'{root}/00{{0,1,2}}.tar', f'{root}/000.tar::{root}/{{001..002}}.tar'
    for source in (root, str(root), paths, [str(root)], *patterns): assert shard_paths(source) == paths
    assert dls_of(paths).source == '3 shards' and dls_of(root).source == str(root)
    write(root/'x/train/a.tar', range(20))
    write(root/'x/val/b.tar', range(20, 26))
    dls = dls_of(root/'x', valid=0.2)
    assert (len(dls.train.data), len(dls.valid.data)) == (20, 6)
    held = dls_of(root, valid=0.4)  # one of three whole shards
    again = dls_of(root, valid=0.4)
    assert sorted(numbers(held.valid) + numbers(held.train.ordered())) == list(range(200))
    assert numbers(held.valid) == numbers(again.valid) and len(held.valid.data) in (70, 100, 30)
    assert len(dls_of(root/'000.tar', valid=0.2).valid) == 0  # one shard is not divided
    unlabelled = write(root/'u/0.tar', range(10), labels=False).parent
    write(unlabelled/'1.tar', range(10), labels=False)
    dls = dls_of(unlabelled, valid=0.2)
    assert dls.classes is None and len(dls.valid) == 0 and (everything(dls.train.ordered())[1] == -1).all()


def test_shards_without_labels_judge_nothing(tmp_path):
    for k in range(3): write(tmp_path/f'train/{k}.tar', range(12 * k, 12 * k + 12))
    write(tmp_path/'test/0.tar', range(100, 105), labels=False)
    notes = []
    dls = dls_of(tmp_path, valid=.3, tell=notes.append)
    assert (len(dls.train.data), len(dls.valid.data)) == (24, 12) and (dls.valid.data.y >= 0).all()
    assert "test' have no labels to judge by" in notes[0]
    assert len(dls_of(tmp_path).valid.data) == 5  # where nothing is held out


def test_pictures_are_looked_at_in_any_order(root, monkeypatch):
    "Also where no suffix or a label comes first; and headers that were passed over once are not read again"
    write(root/'003.tar', range(90), kind='png', labels=False)
    pictures, headers, read = Shards([root/f'{k:03}.tar' for k in range(4)], 0), [], tarfile.TarInfo.frombuf.__func__
    expected = [*range(200), *range(90)]
    def counted(cls, *args):
        headers.append(args)
        return read(cls, *args)
    monkeypatch.setattr(tarfile.TarInfo, 'frombuf', classmethod(counted))
    def grey(i): return pictures.look(i, lambda picture: picture.getpixel((0, 0))[0], None)
    order = np.random.default_rng(0).permutation(290).tolist()
    for most in (30, 8):
        headers.clear()
        assert [grey(i) for i in order] == [expected[i] for i in order]
        assert len(headers) < most * 290


def test_an_archive_beside_its_pictures_is_no_shard(root):
    (root/'a').mkdir()
    Image.new('RGB', (8, 8)).save(root/'a/0.png')
    Image.new('RGB', (8, 8)).save(root/'a/1.png')
    dls = dls_of(root, bs=2, valid=root)
    assert dls.train.data.names == dls.valid.data.names == ['a/0.png', 'a/1.png']


@pytest.mark.parametrize('kind', ['jpg', 'webp', 'bmp', 'gif', 'tiff'])
def test_kinds_of_pictures(tmp_path, kind):
    write(tmp_path/'0.tar', range(0, 80, 10), kind=kind)
    seen = everything(dls_of(tmp_path).train.ordered())[0][:, :, 4, 4]
    assert (seen.int() - torch.arange(0, 80, 10)[:, None]).abs().max() <= 2


def test_samples_of_other_members(tmp_path):
    with TarWriter(str(tmp_path/'0.tar')) as tar:
        for i in range(100):
            members = {'json': dict(i=i), 'PNG': encoded(i), 'seg.png': encoded(255), 'txt': 'words'}
            tar.write({'__key__': f'{i:03}'} | members | (dict(cls=1) if i % 2 else {}))
            tar.write({'__key__': f'{i:03}-words', 'txt': 'words only', 'cls': 7})
    dls = dls_of(tmp_path, labels='all')
    assert numbers(dls.train.ordered()) == list(range(100)) == sorted(numbers(dls.train))
    assert dls.train.data.y.tolist() == [-1, 1] * 50 and dls.train.data.labeled.sum() == 50
    read = Shards([tmp_path/'0.tar'], 0)
    assert [n for n, *_ in read.read(0, MARK + 3, MARK + 7)] == list(range(MARK + 3, MARK + 7))


@pytest.mark.parametrize('form', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_formats_of_tar(tmp_path, form):
    "Names too long for a header, or in other scripts, come in headers of their own"
    long = 'x' * (90 if form == tarfile.USTAR_FORMAT else 200)
    with tarfile.open(tmp_path/'0.tar', 'w', format=form) as tar:
        for i in range(130):
            member = tarfile.TarInfo(f'{long}é{i:03}.png')
            member.size = len(encoded(i))
            tar.addfile(member, io.BytesIO(encoded(i)))
    assert sorted(numbers(dls_of(tmp_path, bs=2, workers=2).train)) == list(range(130))


def test_size_of_the_pictures(tmp_path):
    write(tmp_path/'0.tar', range(100))
    dls = dls_of(tmp_path, size=None)
    assert dls.size == 8 and dls.train.one_batch()[0].shape[-1] == 8
    assert [dls_of(tmp_path, size=n).train.one_batch()[0].shape[-1] for n in (20, 4)] == [8, 6]
    with TarWriter(str(tmp_path/'1.tar')) as tar: tar.write(dict(__key__='0', png=encoded(0, size=(9, 8))))
    assert dls_of(tmp_path, size=None).size == 224


# ---------------------------------------------------------------- the index

def test_the_index_is_kept_and_believed_only_while_true(root, monkeypatch):
    looked = []
    look = shards_module._look_into
    monkeypatch.setattr(shards_module, '_look_into', lambda path: looked.append(os.path.basename(path)) or look(path))
    dls_of(root)
    assert looked == ['000.tar', '001.tar', '002.tar'] and len(json.loads((root/INDEX).read_text())['shards']) == 3
    dls_of([root/'001.tar'])
    assert len(looked) == 3
    write(root/'001.tar', range(50))
    write(root/'003.tar', range(50, 60))
    expected = [*range(70), *range(50), *range(170, 200), *range(50, 60)]
    assert sorted(numbers(dls_of(root, bs=2).train)) == sorted(expected)
    assert looked[3:] == ['001.tar', '003.tar']
    for spoilt in ('', '{"shards": 3}', '[]', '{"shards": {"000.tar": 1}}'):
        (root/INDEX).write_text(spoilt)
        assert len(dls_of(root).train.data) == 160
    (root/INDEX).unlink()
    (root/INDEX).mkdir()  # it cannot be written
    assert len(dls_of(root).train.data) == 160 and not [p for p in os.listdir(root) if p.startswith('.')]


# ---------------------------------------------------------------- what cannot work

def broken(path, at, n=10, bad=b'not a picture'):
    with TarWriter(str(path)) as tar:
        for i in range(n): tar.write(dict(__key__=f'{i:03}', png=bad if i in at else encoded(i)))
    return path


def test_what_lies_in_a_folder_of_shards(tmp_path):
    broken(tmp_path/'0.tar', ())
    (tmp_path/'._0.tar').write_bytes(b'of macOS')
    assert len(dls_of(tmp_path).train.data) == 10
    (tmp_path/'1.tar').symlink_to(tmp_path/'gone')
    with pytest.raises(InputError, match="^the shard '.*1.tar' cannot be read: No such file or directory[.]$"):
        dls_of(tmp_path)


@pytest.mark.parametrize('workers', [0, 2])
def test_undecodable_pictures_are_replaced(tmp_path, workers):
    path = broken(tmp_path/'0.tar', (0, 4, 5, 9))
    dls = dls_of(path, bs=5, workers=workers)
    seen = numbers(dls.train.ordered())
    # a worker does not see what another reads
    assert seen == ([1, 1, 2, 3, 3, 6, 6, 7, 8, 8] if workers else [1, 1, 2, 3, 6, 6, 6, 7, 8, 8])
    assert dls.report() == ("4 of 10 pictures could not be decoded, the next picture stands in for each: "
                            f"{path}/000, {path}/004, {path}/005 and 1 more (not a picture).")
    assert [len(x) for x, _ in dls.train] == [5, 5]
    with pytest.raises(InputError, match='0.tar/00. could not be decoded .not a picture'):
        list(dls_of(path, strict=True, workers=workers).train)


@pytest.mark.parametrize('workers', [0, 2])
def test_nothing_can_be_decoded(tmp_path, workers):
    first = "^no picture could be decoded, the first is picture 0 of '.*0.tar' .not a picture.: "
    with pytest.raises(InputError, match=first):
        dls_of(broken(tmp_path/'0.tar', range(10)), workers=workers)
    bad = encoded(0)[:45]  # with a good header
    with pytest.raises(InputError, match="^no picture could be decoded: "):
        list(dls_of(broken(tmp_path/'1.tar', range(10), 10, bad), workers=workers).train)
    with pytest.raises(InputError, match="^100 pictures in a row could not be decoded: "):
        list(dls_of(broken(tmp_path/'2.tar', range(300), 300, bad), workers=workers).train)


def test_broken_shards(root, tmp_path):
    path, whole = root/'000.tar', (root/'000.tar').read_bytes()
    for n, fault in ((len(whole) // 2, 'is truncated'), (len(whole) // 1024 * 512 + 100, 'is truncated'),
                     (40 * 1024, 'is truncated'), (0, 'is truncated, or no plain tar file'),
                     (100, 'is truncated, or no plain')):
        path.write_bytes(whole[:n])
        with pytest.raises(InputError, match=f"^the shard '{path}' {fault}"): dls_of(root, workers=2)
    path.write_bytes(whole[:20 * 512] + b'garbage.' * 64 + whole[21 * 512:])
    with pytest.raises(InputError, match=f"^the shard '{path}' is truncated: it breaks off after"): dls_of(root)
    path.write_text('no tar file at all' * 100)
    with pytest.raises(InputError, match=f"^the shard '{path}' is truncated, or no plain tar file"): dls_of(root)
    write(path, range(5), compress=True)
    with pytest.raises(InputError, match=f"^the shard '{path}' is truncated, or no plain tar file"): dls_of(root)
    with TarWriter(str(path)) as tar: tar.write(dict(__key__='0', txt='words'))
    with pytest.raises(InputError, match=f"^the shard '{path}' holds no pictures"): dls_of(root)
    with TarWriter(str(path)) as tar: tar.write(dict(__key__='0', png=encoded(0), cls='cat'))
    with pytest.raises(InputError, match=f"^the shard '{path}' cannot be used: .*'cat'"): dls_of(root)
    with TarWriter(str(path)) as tar: tar.write(dict(__key__='0', png=encoded(0), cls=-2))
    with pytest.raises(InputError, match=f"^the shard '{path}' cannot be used: the class of 0 is -2"): dls_of(root)
    with tarfile.open(path, 'w') as tar:
        for _ in range(2):
            member = tarfile.TarInfo('twice.png')
            tar.addfile(member, io.BytesIO())
    with pytest.raises(InputError, match=f"^the shard '{path}' cannot be used: .*duplicate"): dls_of(root)


def members(path, *files, form=tarfile.PAX_FORMAT):
    "A tar file of (name, content, fields of the header)"
    with tarfile.open(path, 'w', format=form) as tar:
        for name, content, fields in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in fields.items(): setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content))
    return path


def header(name, size, kind=b'0'):
    "One that a writer would not write"
    block = tarfile.TarInfo(name)
    block.type = kind
    content = bytearray(block.tobuf(tarfile.GNU_FORMAT))
    content[124:136] = (b'\xff' if size < 0 else b'\x80') + (size % 2**88).to_bytes(11, 'big')
    content[148:156] = b' ' * 8
    content[148:156] = b'%06o\0 ' % sum(content)
    return bytes(content)


@pytest.mark.parametrize('label, message', [
    ('3000000000', "has class 3000000000, and there are names for 1,048,576 classes at most"),
    ('1048576', "has class 1048576, and"), (str(10**30), "has class 10{30}, and"), ('-2', 'is -2, which is below 0'),
    ('-' + '9' * 40, 'which is below 0'), ('cat', "of 0 is 'cat', and classes are whole numbers"),
    ('1.5', "is '1.5', and"), ('', "is '', and"), ('1' * 101, "0.cls has 101 bytes, and 100 is the most"),
    ('0' * 5000, 'has 5,000 bytes'),
    ('\x1b[2J', "is '.x1b.2J', and"), ('\u0661\u0662', "is '\u0661\u0662', and"), (' 7\n', None), ('1048575', None),
])
def test_classes_are_plausible(tmp_path, label, message):
    write(tmp_path/'b.tar', range(8))
    path = members(tmp_path/'a.tar', ('0.png', encoded(0), {}), ('0.cls', label.encode(), {}))
    for _ in range(2):  # read, and from the index
        if message is None: dls_of(tmp_path)
        else:
            with pytest.raises(InputError, match=f"^the shard '{path}' .*{message}") as caught: dls_of(tmp_path)
            assert caught.value.message.isprintable()


def test_as_many_classes_as_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, 'CLASSES', 4)
    members(tmp_path/'a.tar', *[(f'{i}.{k}', c, {}) for i in range(8) for k, c in (('png', encoded(i)), ('cls', b'7'))])
    assert len(dls_of(tmp_path).classes) == 8
    members(tmp_path/'b.tar', ('9.png', encoded(9), {}), ('9.cls', b'9', {}))
    with pytest.raises(InputError, match="class 9, and there are names for 9 classes"): dls_of(tmp_path)


SPARSE = {'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.name': '0.png',
          'GNU.sparse.realsize': str(2**42)}


@pytest.mark.parametrize('name, content, message', [
    ('sparse', lambda path: members(path, ('x/0.png', b'1\n0\n1\n'.ljust(512, b'\0') + b'x', dict(pax_headers=SPARSE))),
     "cannot be used: 0.png is a sparse file"),
    ('picture', lambda path: path.write_bytes(header('0.png', 2**40) + bytes(1024)),
     "cannot be used: 0.png has 1,099,511,627,776 bytes, and 268,435,456 is the most"),
    ('label', lambda path: path.write_bytes(header('0.cls', 2**40) + bytes(1024)),
     "cannot be used: 0.cls has 1,099,511,627,776 bytes"),
    ('backwards', lambda path: path.write_bytes(header('a.txt', -512) + bytes(1024)),
     "truncated, or no plain tar file .the size of a.txt is -512"),
    ('backwards label', lambda path: path.write_bytes(header('a.cls', -1024) + bytes(1024)), "size of a.cls is -1024"),
    ('long name', lambda path: path.write_bytes(header('a', 2**40, tarfile.GNUTYPE_LONGNAME) + bytes(1024)),
     "no plain tar file .a name in it takes 1,099.5 GB"),
    ('fields', lambda path: path.write_bytes(header('a', 2**40, tarfile.XHDTYPE) + bytes(1024)), "a name in it takes"),
    ('headers in headers', lambda path: path.write_bytes((header('a', 0, tarfile.XHDTYPE)) * 3000 + bytes(1024)),
     "headers in headers"),
    ('escapes', lambda path: members(path, ('\x1b[2J\n.png', encoded(0), {}), ('\x1b[2J\n.cls', b'-3', {})),
     r"the class of \\x1b\[2J\\n is -3"),
])
def test_members_that_lie(tmp_path, name, content, message):
    content(tmp_path/'a.tar')
    with pytest.raises(InputError, match=f"^the shard '{tmp_path}/a.tar' .*{message}") as caught, within(30):
        dls_of(tmp_path)
    assert caught.value.message.isprintable()


def test_a_large_file_that_is_not_wanted(tmp_path):
    "...is passed over"
    with tarfile.open(tmp_path/'a.tar', 'w') as tar:
        member = tarfile.TarInfo('weights.bin')
        member.size = 3 * 2**20
        tar.addfile(member, io.BytesIO(bytes(member.size)))
        for i in range(8):
            member = tarfile.TarInfo(f'{i}.png')
            member.size = len(encoded(i))
            tar.addfile(member, io.BytesIO(encoded(i)))
    assert numbers(dls_of(tmp_path).train.ordered()) == list(range(8))


@pytest.mark.parametrize('kind', KINDS)
def test_only_files_are_opened(tmp_path, kind):
    write(tmp_path/'s/b.tar', range(8))
    path = no_file(tmp_path/'s/a.tar', kind)
    for source in (tmp_path/'s', [tmp_path/'s']):
        with pytest.raises(InputError, match=f"^the shard '{path}' cannot be read: {KINDS[kind]}"), within(20):
            dls_of(source)
    for source in (path, [path, tmp_path/'s/b.tar'], f'{tmp_path}/s/{{a,b}}.tar'):
        with pytest.raises(MissingPath, match='there is no shard'), within(20): dls_of(source)
    path.unlink()
    (tmp_path/'s'/INDEX).unlink(missing_ok=True)
    no_file(tmp_path/'s'/INDEX, kind)
    with within(20): assert len(dls_of(tmp_path/'s').train.data) == 8


def test_a_file_that_becomes_a_pipe(root):
    train = dls_of(root).train
    (root/'001.tar').unlink()
    no_file(root/'001.tar', 'pipe')
    with pytest.raises(InputError, match='001.tar. cannot be read: a named pipe, not a file'), within(20):
        list(train.ordered())


LIES = [
    dict(count=10**12), dict(count=0), dict(count=-5), dict(count='70'), dict(marks=[]), dict(marks=[0]),
    dict(marks=[0, 10**15]), dict(marks=[-512, 512]), dict(marks=[512, 0]), dict(marks=[0.5, 512]), dict(y=[0]),
    dict(y=['a'] * 70), dict(y=[-7] * 70), dict(y=[[0]] * 70), dict(y=None), dict(marks=None), dict(count=None),
]


def test_an_index_that_lies_is_not_believed(root):
    paths = sorted(root.glob('*.tar'))
    expected = Shards(paths, 0).index
    for change in LIES:
        index = json.loads((root/INDEX).read_text())
        index['shards']['000.tar'] |= change
        (root/INDEX).write_text(json.dumps(index))
        assert Shards(paths, 0).index == expected, change
        assert json.loads((root/INDEX).read_text())['shards']['000.tar']['count'] == 70, change


def test_an_index_that_is_no_list_of_shards(root):
    half = '"\\ud800"'
    for content in ('[' * 100_000, '{"shards": {"000.tar": {"size": 1e999}}}', half, '{"shards": []}', ' ' * 2**22):
        (root/INDEX).write_text(content)
        assert len(dls_of(root).train.data) == 200


@pytest.mark.parametrize('workers', [0, 2])
def test_a_shard_that_changes_during_training(root, workers):
    train = dls_of(root, workers=workers).train
    write(root/'001.tar', range(80))  # of 100
    with pytest.raises(InputError, match="^the shard '.*001.tar' ended after .* of 100 pictures: has it changed"):
        list(train.ordered())
    (root/'001.tar').unlink()
    with pytest.raises(InputError, match="^the shard '.*001.tar' cannot be read: No such file"): list(train)


@pytest.mark.parametrize('kwargs, message', [
    (dict(source='{root}/{{000..005}}.tar'), "no shard '.*003.tar', nor 2 others of 6"),
    (dict(source='{root}/9.tar'), "no shard '.*9.tar'[.]$"),
    (dict(source='https://a.b/{{000..005}}.tar'), 'is an address: download or mount'),
    (dict(source='pipe:cat x.tar'), 'is an address'),
    (dict(source='{root}/{{000..x.tar'), 'the braces in .* cannot be read'),
    (dict(labels=0.1), "labels=0.1 does not work with shards.*give None or 'all'"),
    (dict(labels='names.txt'), "labels=names.txt does not work with shards"),
    (dict(valid='{root}/none'), "no validation folder '.*none'"),
    (dict(cache=True), 'leave cache .--cache. out'),
    (dict(valid='{root}/held'), "the validation data .*held has label 9, but training has 3 classes: give valid="),
])
def test_bad_values(root, kwargs, message):
    (root/'held').mkdir()
    with TarWriter(str(root/'held/0.tar')) as tar: tar.write(dict(__key__='0', png=encoded(0), cls=9))
    kwargs = {k: v.format(root=root) if isinstance(v, str) else v for k, v in kwargs.items()}
    with pytest.raises(InputError, match=message) as caught: dls_of(**dict(source=root) | kwargs)
    assert isinstance(caught.value, MissingPath) == message.startswith(('no shard', 'no validation'))


def test_what_needs_chosen_pictures(root):
    write(root/'u/0.tar', range(10), labels=False)
    with pytest.raises(InputError, match='labels=all but the shards have no labels: put a .cls file'):
        dls_of(root/'u', labels='all')
    for labels in (None, 'all'):
        with pytest.raises(InputError, match='shards are read from front to back.*give image_dls a folder'):
            StratifiedLoader(dls_of(root, labels=labels).train)
    (root/'names.txt').write_text('some/00000')
    for labels in (None, 'all', 0.5, 2, ['0'], ['some/00000'], root/'names.txt'):
        said(['shards are read from front to back', 'give image_dls a folder'], finetune, nn.Identity(),
             dls_of(root, labels='all'), labels)
    with pytest.raises(InputError, match='a.txt. in the list of shards is no .tar file'):
        dls_of([root/'000.tar', 'a.txt'])


def test_a_method_leaves_out_what_needs_chosen_pictures(root):
    from fastcontrast.learner import contrastive_learner
    learn = contrastive_learner(dls_of(root, size=16, labels='all'), 'test_resnet', method='fast', knn_pictures=0)
    assert not hasattr(learn, 'suncet')
    assert any(note.startswith('SuNCEt() of fast() is left out: shards are read') for note in learn.notes)


def test_without_the_library(root, monkeypatch):
    monkeypatch.setitem(sys.modules, 'webdataset.filters', None)
    missing = r"webdataset library, which is not installed: run pip install 'fastcontrast\[webdataset\]'"
    with pytest.raises(InputError, match=missing): dls_of(root)
