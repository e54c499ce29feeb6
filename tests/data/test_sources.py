"Every kind of source gives the same pictures and classes; what has none trains all the same; what can't be says so"
import csv
import os
import pickle
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from fastai.data.block import DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.transforms import RandomSplitter, get_image_files
from fastai.vision.data import ImageBlock
from helpers.folders import (STREAM, ClassLabel, Given, HuggingFace, Image, as_process, dls_of, everything,
                             image_folder, picture, same)
from helpers.odd import KINDS, no_file, within
from torch.utils.data import IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from fastcontrast.core import InputError, MissingPath
from fastcontrast.data import image_dls
from fastcontrast.pictures import Files, Names
from fastcontrast.sources import read_labels

N = 12
Y = [i % 3 for i in range(N)]
NAMES = ['ant', 'bee', 'cat']
WORDS = [NAMES[c] for c in Y]
PICTURES = [picture(i) for i in range(N)]
ARRAY = np.stack([np.asarray(p) for p in PICTURES])
TENSOR = torch.from_numpy(ARRAY).permute(0, 3, 1, 2)
Pair = namedtuple('Pair', 'picture label')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A folder of the pictures and tables of their paths"
    root = tmp_path_factory.mktemp('files')
    (root/'data').mkdir()
    for i, p in enumerate(PICTURES): p.save(root/f'data/{i:02}.png')
    return root


def paths(files): return [files/f'data/{i:02}.png' for i in range(N)]


def table(path, header, *columns, delimiter=','):
    with path.open('w', newline='') as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([header, *zip(*columns, strict=True)])
    return path


def relative(files): return [f'data/{i:02}.png' for i in range(N)]


UNLABELLED = dict(
    paths=lambda f: paths(f),
    strings=lambda f: [str(p) for p in paths(f)],
    mixed=lambda f: [*map(str, paths(f)[:5]), *paths(f)[5:]],
    tuple=lambda f: tuple(paths(f)),
    text_array=lambda f: np.array([str(p) for p in paths(f)]),
    object_array=lambda f: np.array(paths(f), dtype=object),
    series=lambda f: pandas.Series([str(p) for p in paths(f)]),
    csv=lambda f: table(f/'plain.csv', ['file'], relative(f)),
    frame=lambda f: pandas.DataFrame(dict(path=paths(f), width=32)),
    array=lambda f: ARRAY,
    channels_first=lambda f: ARRAY.transpose(0, 3, 1, 2),
    floats=lambda f: ARRAY / 255,
    float32=lambda f: (ARRAY / 255).astype(np.float32),
    tensor=lambda f: TENSOR,
    channels_last=lambda f: TENSOR.permute(0, 2, 3, 1),
    doubles=lambda f: TENSOR.double() / 255,
    memmap=lambda f: mapped(f),
    pictures=lambda f: PICTURES,
    arrays=lambda f: list(ARRAY),
    dicts=lambda f: [dict(image=p) for p in PICTURES],
    dicts_of_paths=lambda f: [dict(image=p) for p in paths(f)],
    hugging=lambda f: HuggingFace(dict(image=PICTURES)),
    hugging_typed=lambda f: HuggingFace(dict(photo=PICTURES, id=list(range(N))), dict(photo=Image())),
    hugging_files=lambda f: HuggingFace(dict(image=[dict(bytes=p.read_bytes(), path=None) for p in paths(f)])),
    hugging_paths=lambda f: HuggingFace(dict(path=[str(p) for p in paths(f)])),
    hugging_tensors=lambda f: HuggingFace(dict(image=PICTURES), transform=as_tensor))
LABELLED = dict(
    arrays_and_labels=lambda f: (ARRAY, np.array(Y)),
    arrays_and_names=lambda f: (ARRAY, WORDS),
    tensors_and_labels=lambda f: (TENSOR, torch.tensor(Y)),
    column_of_labels=lambda f: (ARRAY, np.array(Y)[:, None]),
    paths_and_labels=lambda f: (paths(f), Y),
    paths_and_names=lambda f: ([str(p) for p in paths(f)], WORDS),
    pairs=lambda f: list(zip(paths(f), Y)),
    pairs_of_names=lambda f: [[str(p), c] for p, c in zip(paths(f), WORDS)],
    list_and_labels=lambda f: (PICTURES, Y),
    series_and_series=lambda f: (pandas.Series(paths(f)), pandas.Series(WORDS)),
    dicts=lambda f: Given([dict(image=p, label=c) for p, c in zip(PICTURES, Y)]),
    dicts_of_names=lambda f: Given([dict(img=p, target=c) for p, c in zip(PICTURES, WORDS)]),
    dicts_and_targets=lambda f: Given([dict(image=p) for p in PICTURES], targets=Y),
    tuples_of_names=lambda f: Given(list(zip(PICTURES, WORDS))),
    named_tuples=lambda f: [Pair(*x) for x in zip(PICTURES, Y)],
    numpy_labels=lambda f: Given([(p, np.int64(c)) for p, c in zip(ARRAY, Y)]),
    zero_dimensions=lambda f: TensorDataset(TENSOR, torch.tensor(Y)),
    one_dimension=lambda f: TensorDataset(TENSOR, torch.tensor(Y)[:, None]),
    subset=lambda f: Subset(TensorDataset(torch.cat([TENSOR, TENSOR]), torch.tensor(Y + Y)), range(N, 2 * N)),
    hugging=lambda f: HuggingFace(dict(image=PICTURES, label=Y), dict(image=Image(), label=ClassLabel(NAMES))),
    hugging_plain=lambda f: HuggingFace(dict(image=PICTURES, label=Y)),
    hugging_names=lambda f: HuggingFace(dict(image=PICTURES, label=WORDS)),
    csv=lambda f: table(f/'names.csv', ['Path', 'Label'], relative(f), WORDS),
    csv_numbers=lambda f: table(f/'numbers.csv', ['class', 'filename'], Y, relative(f)),
    semicolons=lambda f: table(f/'semi.csv', ['file', 'class'], relative(f), WORDS, delimiter=';'),
    tsv=lambda f: table(f/'tabs.tsv', ['image', 'target'], paths(f), WORDS, delimiter='\t'),
    frame=lambda f: pandas.DataFrame(dict(path=paths(f), label=WORDS)),
    frame_numbers=lambda f: pandas.DataFrame(dict(file=[str(p) for p in paths(f)], target=Y)),
    frame_categories=lambda f: pandas.DataFrame(dict(image=paths(f), label=pandas.Categorical(WORDS))))


def as_tensor(row): return dict(image=torch.from_numpy(np.array(row['image'])).permute(2, 0, 1))


def mapped(files):
    np.save(files/'x.npy', ARRAY)
    return np.load(files/'x.npy', mmap_mode='r')


def expected(labelled=True): return TENSOR, torch.tensor(Y if labelled else [-1] * N)


@pytest.mark.parametrize('kind, labelled', [*((k, False) for k in UNLABELLED), *((k, True) for k in LABELLED)])
def test_every_source_gives_the_same(files, kind, labelled):
    source = (LABELLED if labelled else UNLABELLED)[kind](files)
    dls = dls_of(source, valid=0)
    same([everything(dls.train.ordered())], [expected(labelled)])
    assert (dls.classes is not None) == labelled and dls.classes in (None, NAMES, ['0', '1', '2']) and dls.size == 32
    same(dls.train, dls_of(source, valid=0, **STREAM).train)
    assert pickle.loads(pickle.dumps(dls.train)).data.names == dls.train.data.names
    if not labelled: return
    held = dls_of(source, valid=.25, labels=.3)
    assert torch.bincount(held.valid.data.y).tolist() == [1, 1, 1] and held.train.data.labeled.sum() == 3
    bare = dls_of(source, unlabelled=True)
    same([everything(bare.train.ordered())], [expected(labelled=False)])
    assert len(bare.valid) == 0 and bare.train.data.names == dls.train.data.names


@pytest.mark.parametrize('kind', ['paths', 'array', 'tensor', 'hugging', 'csv', 'memmap'])
def test_worker_processes_read_every_source(files, kind):
    source = UNLABELLED[kind](files)
    same(dls_of(source).train, dls_of(source, memory=1e-12, workers=2).train)


def test_greys(files):
    grey = ARRAY[..., 0]
    for source in (grey, grey[..., None], grey[:, None], torch.from_numpy(grey), list(grey),
                   [torch.from_numpy(x) for x in grey], grey.astype(np.float32) / 255):
        x, _ = everything(dls_of(source).train.ordered())
        assert torch.equal(x, torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1))


def test_a_table_keeps_files_on_the_disk(files, tmp_path):
    source = LABELLED['csv'](files)
    cached, plain = dls_of(source, cache=tmp_path), dls_of(source)
    same(cached.train, plain.train)
    same(cached.valid, plain.valid)
    kept, = (p.name for p in tmp_path.iterdir() if not p.name.startswith('.'))
    assert kept.startswith('names.csv-') and kept.endswith('-all-32px.safetensors')
    with pytest.raises(InputError, match='leave cache'): dls_of(paths(files), cache=True)


def test_paths_from_anywhere(files, tmp_path, monkeypatch):
    "Relative to the table's folder, or to the current one; in different folders, at home, and after a change of folder"
    picture(99).save(tmp_path/'far.png')
    monkeypatch.chdir(files/'data')
    monkeypatch.setenv('HOME', str(tmp_path))
    dls = dls_of(['00.png', str(tmp_path/'far.png'), '../data/02.png', '~/far.png', Path('03.png')], **STREAM)
    monkeypatch.chdir(tmp_path)
    x, _ = everything(dls.train.ordered())
    assert torch.equal(x[[0, 2, 4]], TENSOR[[0, 2, 3]]) and torch.equal(x[1], x[3])
    assert dls.report() == '' and len(set(dls.train.data.names)) == 4
    dls = dls_of(table(files/'up.csv', ['path'], [f'../{files.name}/data/00.png', str(tmp_path/'far.png')]))
    assert torch.equal(everything(dls.train.ordered())[0], x[[0, 1]])
    dls = dls_of([f'/{tmp_path}/far.png', f'//{files}/data/00.png'])
    assert torch.equal(everything(dls.train.ordered())[0], x[[1, 0]])
    (tmp_path/'link').symlink_to(files/'data')
    dls = dls_of([tmp_path/f'link/../data/{i:02}.png' for i in (0, 2)])  # not beside the link
    assert torch.equal(everything(dls.train.ordered())[0], TENSOR[[0, 2]])


def test_a_broken_file_of_a_list_is_left_out(files, tmp_path):
    (tmp_path/'broken.png').write_bytes(b'')
    dls = dls_of([*paths(files), tmp_path/'broken.png', tmp_path/'none.png'])
    assert len(dls.train.data) == N and '2 of 14 pictures' in dls.report()
    assert 'broken.png (empty file)' in dls.report() and 'none.png (No such file' in dls.report()


def test_labels_by_name_of_a_list(files, tmp_path):
    (tmp_path/'few.txt').write_text('00.png\n05.png\n')
    dls = dls_of((paths(files), WORDS), labels=tmp_path/'few.txt', valid=0)
    assert [n for n, known in zip(dls.train.data.names, dls.train.data.labeled) if known] == ['00.png', '05.png']


def test_many_names_are_one_text():
    "A worker process copies no strings: what it reads paths from is a text and an array"
    listed = ['a/é.png', 'b.png', '', 'a/\udcff.png', '…' * 9]
    files = Files(Path('/x'), listed, np.arange(5))
    names = files.names
    assert names.text == 'a/é.png\0b.png\0\0'.encode() + b'a/\xff.png\0' + ('…' * 9).encode() + b'\0'
    assert names == listed == list(names) and names != listed[:4]
    assert names[1:3] == ['b.png', ''] and names[-1] == '…' * 9
    assert names.raw(3) == b'a/\xff.png' and names.index('b.png') == 1 and 'c.png' not in names and len(names) == 5
    some = files.subset(np.array([3, 0, 0]))
    assert some.names == ['a/\udcff.png', 'a/é.png', 'a/é.png'] and some.names.text is names.text
    assert some.shown(1) == '/x/a/é.png' and some.y.tolist() == [3, 0, 0]
    assert pickle.loads(pickle.dumps(some)).names == some.names and len(Names.of([])) == len(Names(b'')) == 0
    folders = {'a': ['1', '2'], 'b-é': ['x/3']}
    assert Names.in_folders(folders) == ['a/1', 'a/2', 'b-é/x/3'] and Names.in_folders({}) == []
    assert repr(names) == 'a/é.png, b.png, , a/\udcff.png, ' + '…' * 9 and repr(Names.of(['x'] * 11)).endswith('x, …')
    with pytest.raises(IndexError): names[5]


def test_columns_by_name(files):
    rows = dict(where=relative(files), kind=WORDS, path=['x'] * N, label=[0.5] * N)
    source = table(files/'own.csv', list(rows), *rows.values())
    dls = dls_of(source, column='where', label_column='kind', valid=0)
    same([everything(dls.train.ordered())], [expected()])
    items = Given([dict(image=PICTURES[0], photo=p, coarse=0, fine=c) for p, c in zip(PICTURES, Y)])
    hugging = HuggingFace(dict(image=PICTURES[:1] * N, photo=PICTURES, fine=Y), dict(fine=ClassLabel(NAMES)))
    for source in (items, hugging):
        same([everything(dls_of(source, column='photo', label_column='fine', valid=0).train.ordered())], [expected()])
    with pytest.raises(InputError, match="unknown column of .*own.csv' 'wher': did you mean where"):
        dls_of(files/'own.csv', column='wher')
    with pytest.raises(InputError, match='no column path or .*, but a, b: say which .* by column'):
        dls_of(table(files/'ab.csv', ['a', 'b'], [1], [2]))
    for source in (files/'data', ARRAY, PICTURES, 'digits'):
        with pytest.raises(InputError, match='has none: leave out photo'): dls_of(source, column='photo')


# ---------------------------------------------------------------- labels that are no classes

BOXES = torch.tensor([[1, 2, 3, 4.]])
STRANGE = dict(
    floats=[3 * i / 80 for i in range(N)], whole_floats=[float(c) for c in Y], numpy_floats=list(np.float32(Y)),
    float_tensors=list(torch.rand(N)), nan=[float('nan'), *[.5] * (N - 1)], boxes=[BOXES] * N,
    box_lists=[[1, 2, 3, 4]] * N, several=[torch.randint(0, 2, (40,)) for _ in Y], sets=[{1, 2}] * N,
    dicts=[dict(boxes=BOXES, labels=torch.ones(1))] * N, voc=[dict(annotation=dict(object=[dict(name='dog')]))] * N,
    masks=PICTURES, mask_arrays=list(ARRAY[..., 0]), paths=[f'data/{i}.png' for i in range(N)],
    path_objects=[Path(f'{i}.png') for i in range(N)], captions=[f'a photo of {i}' for i in range(N)], below=[-2] * N,
    mixed=[0, 'cat'] * (N // 2), huge=[10**12] * N, beyond=[10**30] * N, objects=[object()] * N)


@pytest.mark.parametrize('listed', [False, True])
@pytest.mark.parametrize('kind', STRANGE)
def test_strange_labels_are_left_alone(capsys, kind, listed):
    labels = STRANGE[kind]
    source = Given(PICTURES, targets=labels) if listed else Given(list(zip(PICTURES, labels)))
    dls = dls_of(source)
    note = capsys.readouterr().out
    assert dls.classes is None and len(dls.train.data) == N and len(dls.valid) == 0 and not dls.train.data.labeled.any()
    assert note.startswith('the labels of Given ') and note.endswith('; training needs none\n')
    assert note.count('\n') == 1
    for asked in ('all', .5):
        with pytest.raises(InputError, match=f'^labels={asked} but the labels of Given ') as e:
            dls_of(source, labels=asked)
        assert '\n' not in str(e.value) and len(str(e.value)) < 250
    dls_of(source, unlabelled=True)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('labels', [
    torch.rand(N), torch.tensor(Y).double(), np.float64(Y), torch.rand(N, 1), torch.rand(N, 40), np.ones((N, 40), int)])
def test_arrays_of_labels_that_are_no_classes(labels):
    for source in (Given(PICTURES, targets=labels), (ARRAY, labels)):
        assert dls_of(source).classes is None
        with pytest.raises(InputError, match='are (floats|several values each)'): dls_of(source, labels='all')


@pytest.mark.parametrize('labels', [[None] * N, [-1] * N, [float('nan')] * N])
def test_no_labels_are_no_cause_for_a_note(capsys, labels):
    for source in (Given(list(zip(PICTURES, labels))), (ARRAY, labels)): assert dls_of(source).classes is None
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('targets', [dict.fromkeys(range(N), 'x'), 'abcdefghijkl', set(range(N))])
def test_targets_that_are_no_list_are_passed_over(targets):
    dls = dls_of(Given(list(zip(PICTURES, WORDS)), targets=targets), valid=0)
    assert dls.classes == NAMES


def test_indices_are_no_classes():
    source = [(picture(i, (8, 8)), i) for i in range(40)]
    assert dls_of(source).classes is None
    with pytest.raises(InputError, match='another one for every picture'): dls_of(source, labels='all')


def test_a_missing_label_is_none():
    for missing in (None, float('nan'), pandas.NA):
        read = read_labels(['b', missing, 'a', 'b', 'a'], 'x')
        assert read.y.tolist() == [1, -1, 0, 1, 0] and read.classes == ['a', 'b'] and read.named
    read = read_labels([1, None, 0, 1], 'x')
    assert read.y.tolist() == [1, -1, 0, 1] and read.classes == ['0', '1'] and not read.named
    assert read_labels([True, False, True, True], 'x').y.tolist() == [1, 0, 1, 1]
    assert read_labels(['a', 'b', 'c'], 'x', asked=True).classes == ['a', 'b', 'c']  # somebody has said that they are
    assert read_labels([2024, 2023, 2024], 'x', by_value=True).classes == ['2023', '2024']
    for missing in (None, -1): assert read_labels([*range(30), missing, missing], 'x', by_value=True).classes is None


def test_float_columns_are_no_classes(files):
    "Nor is a column of whole numbers that pandas has made floats, as some are missing"
    frame = pandas.DataFrame(dict(path=paths(files), label=[None, *Y[1:]]))
    assert dls_of(frame).classes is None
    with pytest.raises(InputError, match="column 'label', are floats like .*give whole numbers or names"):
        dls_of(frame, labels='all')
    assert dls_of(frame.astype(dict(label='Int64')), valid=0).train.data.y.tolist() == [-1, *Y[1:]]
    source = table(files/'floats.csv', ['path', 'label'], relative(files), [c / 2 for c in Y])
    assert dls_of(source).classes is None


@pytest.mark.parametrize('block, label', [(MultiCategoryBlock, lambda p: ['a', 'b'] if '1' in p.name else ['b']),
                                          (RegressionBlock, lambda p: .5)])
def test_strange_labels_of_fastai(files, block, label):
    made = DataBlock(blocks=(ImageBlock, block), get_items=get_image_files, get_y=label, splitter=RandomSplitter(.3, 0))
    made = made.dataloaders(files/'data', bs=4, num_workers=0)
    dls = image_dls(made, device='cpu')
    assert dls.classes is None and all((y == -1).all() for loader in dls.loaders for _, y in loader)
    with pytest.raises(InputError, match='not one class a picture|have no classes'): image_dls(made, labels='all')
    with pytest.raises(InputError, match='leave valid out'): image_dls(made, valid=files)


# ---------------------------------------------------------------- folders as they are

def odd(tmp_path):
    image_folder(tmp_path/'odd', dict([('2023/jan', 5), ('2024/feb', 4)]))
    for i in range(3): picture(900 + i).save(tmp_path/f'odd/loose{i}.png')
    return tmp_path/'odd'


def test_a_folder_as_it_is(tmp_path, capsys):
    root = odd(tmp_path)
    with pytest.raises(InputError, match='beside folders.* by unlabelled=True .--unlabelled.'): dls_of(root)
    dls = dls_of(root, unlabelled=True)
    assert dls.classes is None and len(dls.train.data) == 12 and len(dls.valid) == 0 and capsys.readouterr().out == ''
    assert {'loose0.png', '2023/jan/000.png'} < set(dls.train.data.names)
    same(dls.train, dls_of(root, unlabelled=True, **STREAM).train)
    same(dls.train.ordered(), dls_of(root, unlabelled=True, cache=tmp_path/'c').train.ordered())
    with pytest.raises(InputError, match='labels=all .* leaves them out: give one'):
        dls_of(root, unlabelled=True, labels='all')
    image_folder(tmp_path/'b', dict(x=5, y=5))
    judged = dls_of(root, unlabelled=True, valid=tmp_path/'b')
    assert len(judged.train.data) == 12 and judged.within == 'b'


def test_folders_named_as_splits_are_no_splits_without_train(tmp_path):
    image_folder(tmp_path/'x', dict(val=3, other=4))
    assert len(dls_of(tmp_path/'x', unlabelled=True).train.data) == 7
    with pytest.raises(InputError, match='val/ but no train/'): dls_of(tmp_path/'x')


def test_what_are_classes_is_said_first(tmp_path, capsys):
    image_folder(tmp_path/'x', {'2023/jan': 5, '2024/feb': 5})
    dls_of(tmp_path/'x')
    assert capsys.readouterr().out == '2 classes from folders: 2023, 2024\n'
    notes = []
    dls_of(image_folder(tmp_path/'y', {f'{c:02}': 2 for c in range(12)}), tell=notes.append)
    assert notes == ['12 classes from folders: 00, 01, 02, 03, 04, 05, 06, 07, 08, 09, …']
    dls_of(image_folder(tmp_path/'z', dict(only=3)), tell=notes.append)
    assert notes.pop() == '1 class from folders: only'
    dls_of((ARRAY, WORDS), tell=notes.append)
    assert notes.pop() == '3 classes from labels: ant, bee, cat'
    (tmp_path/'t.csv').write_text('file,breed\n' + ''.join(f'z/only/{i:03}.png,cat\n' for i in range(3)))
    dls_of(tmp_path/'t.csv', tell=notes.append)
    assert notes.pop().endswith("has no column label or class or target, but breed; training needs none")
    dls = dls_of(image_folder(tmp_path/'o', {'\x1b[2J': 2, 'b\n': 2}), tell=notes.append)
    assert notes.pop() == '2 classes from folders: \\x1b[2J, b\\n' == dls.notes[0]
    capsys.readouterr()
    for source in ((ARRAY, Y), 'digits'): dls_of(source)
    assert capsys.readouterr().out == ''


# ---------------------------------------------------------------- errors of a data set

class Own(Exception):
    def __init__(self, text): super().__init__(text)


class Raising(Given):
    "An item of which raises"
    def __getitem__(self, i):
        if i == 3: raise self.error
        return self.items[i]


ERRORS = [kind('oops') for kind in (ValueError, KeyError, TypeError, RuntimeError, Own, ZeroDivisionError,
                                    AssertionError)]


@pytest.mark.parametrize('error, how, listed', [
    # labels that are not listed are read before anything else, from the items
    *((error, {}, listed) for error in ERRORS for listed in (True, False)), (ERRORS[0], STREAM, True),
    # torch passes these on from another process in different ways
    *((error, dict(STREAM, workers=2), True) for error in ERRORS if type(error) in (ValueError, KeyError, Own))
], ids=repr)
def test_a_data_sets_own_error_is_passed_on(error, how, listed):
    source = Raising(list(zip(PICTURES, Y)), error=error, **dict(targets=Y) if listed else {})
    with pytest.raises(type(error), match='oops') as e: list(dls_of(source, size=32, valid=0, **how).train)
    assert type(e.value) is type(error)
    # an entry as text is looked up in its source, which takes a second for all of them
    assert any(entry.name == '__getitem__' for entry in e.traceback) or '__getitem__' in str(e.value)


def test_a_program_error_in_dicts_is_passed_on():
    source = Given([dict(image=p) for p in PICTURES[:4]] + [dict(picture=PICTURES[4])])
    with pytest.raises(KeyError, match='image'): dls_of(source)


def test_a_data_set_without_its_files(tmp_path):
    class Elsewhere(Given):
        def __getitem__(self, i): return open(tmp_path/self.items[i]), 0
    with pytest.raises(FileNotFoundError, match='none.png') as e: dls_of(Elsewhere(['none.png'] * 4))
    assert not isinstance(e.value, InputError)


def test_broken_files_of_a_data_set_are_left_out(tmp_path):
    "Whether the decoder raises where the data set opens it, or where we read it"
    root = image_folder(tmp_path/'x', dict(a=4, b=4))
    (root/'a/001.png').write_bytes((root/'a/001.png').read_bytes()[:300])
    (root/'b/002.png').write_bytes(b'not a picture')
    dls = dls_of(ImageFolder(str(root)), valid=0)
    assert len(dls.train.data) == 6 and dls.report().startswith('2 of 8 pictures')
    assert dls.classes == ['a', 'b'] and dls.train.data.y.tolist() == [0] * 3 + [1] * 3


# ---------------------------------------------------------------- small data

@pytest.mark.parametrize('how', [{}, STREAM])
def test_a_batch_becomes_what_fits(capsys, how):
    dls = image_dls(Given(PICTURES), device='cpu', **how)
    assert dls.train.bs == N and len(dls.train) == 1 and len(everything(dls.train)[0]) == N
    assert capsys.readouterr().out == 'a batch has 12 pictures, as there are 12 to train on\n'
    assert image_dls(Given(PICTURES), bs=N + 1, device='cpu', **how).train.bs == N  # of those that were asked for, too
    assert capsys.readouterr().out == 'a batch has 12 pictures, as there are 12 to train on\n'
    assert image_dls(Given(PICTURES), bs=N, device='cpu', **how).train.bs == N and not capsys.readouterr().out
    with pytest.raises(InputError, match='Given has 1 picture to train on'):
        image_dls(Given(PICTURES[:1]), device='cpu')
    held = image_dls((ARRAY, Y), valid=.25, device='cpu', **how)
    assert held.train.bs == 9 == len(held.train.data) and held.valid.bs == 9


def test_a_batch_becomes_what_can_be_decoded(tmp_path):
    root = image_folder(tmp_path/'x', dict(a=5))
    (root/'a/002.png').write_bytes(b'')
    dls = image_dls(root, valid=0, device='cpu')
    assert dls.train.bs == 4 and len(dls.train) == 1


def test_a_batch_that_fits_is_divided_among_processes(monkeypatch):
    as_process(monkeypatch, 0, 5)
    dls = image_dls(Given(PICTURES), device='cpu')
    assert dls.train.bs == 10 and dls.train.share == 2
    many = image_dls(Given(PICTURES * 30), device='cpu')
    assert many.train.bs == 255
    with pytest.raises(InputError, match='4 pictures to train on'): image_dls(Given(PICTURES[:4]), device='cpu')


# ---------------------------------------------------------------- what can't be

class Endless(IterableDataset):
    def __iter__(self): return iter(PICTURES)


class OnlyIterable:
    def __iter__(self): return iter(PICTURES)


@pytest.mark.parametrize('source, words', [
    (Endless(), 'shards'), (OnlyIterable(), 'shards'), ((p for p in PICTURES), 'shards'), (iter(PICTURES), 'shards'),
    (torch.utils.data.DataLoader(TensorDataset(TENSOR)), 'a DataLoader makes batches.* its dataset'),
    (dict(train=Given(PICTURES), test=Given(PICTURES)), 'a dict of train, test is not one data set'),
    (np.zeros((4, 8, 8, 8), np.uint8), r'item 0 of Arrays is an array of the shape \[8, 8, 8\]: say how many'),
    (np.zeros((4, 8), np.uint8), 'array of pictures'),
    (torch.zeros(3, dtype=torch.uint8), 'array of pictures'), (ARRAY.astype(complex), 'item 0 of Arrays holds complex'),
    (np.where(ARRAY > 9, np.nan, 0), 'item 0 of Arrays holds NaN'),
    ((ARRAY, Y[:-1]), '12 pictures and 11 labels'), ([], 'list is empty'), (3, 'int has no pictures'),
    (['none.png'] * 3, "files that are not there, the first is '.*none.png'"),
    (['a.png', 3], 'int at place 1'), (['a.png', None], 'nothing at place 1'),
    ([''], 'nothing at place 0'), (pandas.DataFrame(dict(a=[1])), 'no column path'),
    (pandas.DataFrame(dict(path=[1.5])), 'a float at place 0'), (pandas.DataFrame(dict(path=[])), 'is empty')])
def test_sources_that_cannot_be(source, words):
    with pytest.raises(InputError, match=words) as e: dls_of(source)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('text, words', [
    ('', 'is empty'), ('path\n', 'is empty'), ('a.png\nb.png\n', 'begins with a picture, a.png'),
    ('path,label\na.png\n', 'has 2 columns, but 1 in line 2'), ('path,label\n\na.png,b\n\n\na.png\n', 'in line 6'),
    (b'path\n\xff', "can't be read: it is no text in UTF-8"), ('path,path\na.png,b\n', "has 2 columns 'path'"),
    ('path,label,label\na.png,b,c\n', "has 2 columns 'label'"), ('path\n' + 'x' * 5000, 'xxx…. at place 0')])
def test_bad_tables(tmp_path, text, words):
    (tmp_path/'x.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words): dls_of(tmp_path/'x.csv')
    with pytest.raises(MissingPath, match="no file '.*none.csv'"): dls_of(tmp_path/'none.csv')


@pytest.mark.parametrize('kind', KINDS)
def test_a_table_that_is_no_file(tmp_path, kind):
    path = no_file(tmp_path/'x.csv', kind)
    with within(5), pytest.raises(InputError, match=f"can't be read: {KINDS[kind]}"): dls_of(path)


def test_columns_that_are_there_twice(files):
    frame = pandas.DataFrame(dict(path=paths(files), label=WORDS))
    for name in ('path', 'label'):
        with pytest.raises(InputError, match=f"the DataFrame has 2 columns '{name}'"):
            dls_of(pandas.concat([frame, frame[[name]]], axis=1))
    rows = zip(relative(files), WORDS, strict=True)
    (files/'twice.csv').write_text('\n\npath;id;label;id\n' + ''.join(f'{p};1;{c};2,3,4\n' for p, c in rows))
    assert dls_of(files/'twice.csv').classes == dls_of(frame.rename(columns=dict(path=0)), column=0).classes == NAMES


def test_names_that_python_takes_for_numbers(files):
    source = table(files/'codes.csv', ['path', 'label'], relative(files), [['1_1', '11', '1_2'][c] for c in Y])
    assert dls_of(source).classes == ['11', '1_1', '1_2']


@pytest.mark.parametrize('words, classes', [
    (['002', '001', '010'], ['001', '002', '010']), (['7', '07', '8'], ['07', '7', '8']),
    (['+1', '1', '2'], ['+1', '1', '2']), (['2', '10', '9'], ['2', '9', '10']), (['2', '-1', '10'], ['2', '10']),
    (['1.50', '0.5', '02'], None)])
def test_a_number_that_is_written_otherwise_is_a_name(files, words, classes):
    source = table(files/'zeros.csv', ['path', 'label'], relative(files), [words[c] for c in Y])
    assert dls_of(source).classes == classes


def test_names_of_classes_are_shown(tmp_path, capsys):
    for c in ('a\x1b[31m', os.fsdecode(b'b\xff')): image_folder(tmp_path, {c: 3})
    assert len(dls_of(tmp_path).classes) == 2
    assert "classes from folders: a\\x1b[31m, b\\xff\n" in capsys.readouterr().out


def test_names_that_lead_nowhere():
    for given in (dict(source=''), dict(source='x' * 300), dict(source='~nobody_is_called_this'),
                  dict(source=ARRAY, valid='x' * 300), dict(source=ARRAY, valid='~nobody_is_called_this'),
                  dict(source='~nobody_is_called_this/x.csv'),
                  dict(source=(ARRAY, Y), labels='~nobody_is_called_this')):
        with pytest.raises(InputError, match='no path|too long|somebody unknown'): dls_of(**given)
    for path in ('\ud800.png', 'a\0.png', 'x' * 5000):
        with pytest.raises(InputError, match='at place 1, which can be none'): dls_of(['a.png', path])
    with pytest.raises(MissingPath, match='names files that are not there'): dls_of(['x' * 300] * 3)


def test_hugging_face_itself(files):
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(dict(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES)))
    columns = dict(image=[str(p) for p in paths(files)], label=Y)
    try: source = datasets.Dataset.from_dict(columns, features=features)
    except pickle.PicklingError: pytest.skip('this release of datasets can make no data set here')
    for made in (source, source.with_format('torch'), source.with_format('numpy')):
        dls = dls_of(made, valid=0, labels='all')
        same([everything(dls.train.ordered())], [expected()])
        assert dls.classes == NAMES and dls.source == 'Dataset'
    same(dls_of(source).train, dls_of(source, memory=1e-12, workers=2).train)
    renamed = source.rename_columns(dict(image='photo', label='kind'))
    assert dls_of(renamed, label_column='kind', valid=0).classes == NAMES
    with pytest.raises(InputError, match='DatasetDict of train is not one data set'):
        dls_of(datasets.DatasetDict(train=source))
    with pytest.raises(InputError, match='shards'): dls_of(source.to_iterable_dataset())
