"Folders of pictures with boxes: what is read, and what is refused"
import io
import shutil

import numpy as np
import pytest
import torch
from helpers.folders import picture
from helpers.odd import chunk
from helpers.refusals import refusal, said
from PIL import ExifTags, Image

from fastcontrast.core import InputError
from fastcontrast.detection import BoxLoader, box_pictures, draw_rectangles

BOMB = ('<?xml version="1.0"?><!DOCTYPE bomb [<!ENTITY a "aaaaaaaaaa">'
        + ''.join(f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip('abcdefgh', 'bcdefghi'))
        + ']><annotation><object><name>&i;</name></object></annotation>')


def annotation(*objects, filename='', size=None):
    "The text of one; objects: a name and xmin, ymin, xmax, ymax each"
    extent = f'<size><width>{size[0]}</width><height>{size[1]}</height></size>' if size else ''
    def item(name, *box, difficult=0):
        sides = ''.join(f'<{side}>{value}</{side}>' for side, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box))
        return f'<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>'
    items = ''.join(item(*o[:5], difficult=o[5] if len(o) > 5 else 0) for o in objects)
    return f'<annotation><filename>{filename}</filename>{extent}{items}</annotation>'


@pytest.fixture
def folder(tmp_path):
    "A function that writes a folder: annotations by name, of pictures of 40 x 20"
    def write(texts, pictures=None, names=('images', 'annotations')):
        root = tmp_path/'set'
        for name in names: (root/name).mkdir(parents=True, exist_ok=True)
        for i, stem in enumerate(pictures or texts): picture(i, (40, 20)).save(root/names[0]/f'{stem}.png')
        for stem, text in texts.items(): (root/names[1]/f'{stem}.xml').write_text(text)
        return root
    return write


TWO = dict(a=annotation(('cat', 1, 1, 40, 20), ('dog', 3, 2, 5, 9, 1)), b=annotation(('cat', 2.0, 2, 3, 3)))


@pytest.mark.parametrize('names', (('images', 'annotations'), ('JPEGImages', 'Annotations')))
def test_boxes_are_in_pixels_from_the_corner(folder, names):
    train, valid = box_pictures(folder(TWO, names=names), 0.5)
    assert len(train) == len(valid) == 1 and train.classes == valid.classes == ['cat', 'dog']
    a = next(scene for part in (train, valid) for scene in part.scenes if scene.picture.stem == 'a')
    # Pascal VOC counts from 1, and the last pixel is in the box: 1 to 40 is all of 40 pixels
    assert a.boxes.tolist() == [[0, 0, 40, 20], [2, 1, 5, 9]] and a.names == ('cat', 'dog')
    assert a.difficult.tolist() == [False, True] and a.size == (40, 20)


def test_a_box_that_begins_at_0_says_how_the_folder_counts(folder):
    train, valid = box_pictures(folder(TWO | dict(c=annotation(('cat', 0, 3, 4, 5)))), 0.4)
    boxes = {scene.picture.stem: scene.boxes.tolist() for part in (train, valid) for scene in part.scenes}
    assert boxes['a'][0] == [1, 1, 40, 20] and boxes['c'] == [[0, 3, 4, 5]]


def test_a_picture_and_its_objects_are_brought_to_a_size(folder):
    train, _ = box_pictures(folder(dict(a=TWO['a'], b=TWO['a'])), 0.5)
    x, target = train.read(0, 10)
    assert x.shape == (3, 10, 20) and x.dtype == torch.uint8 and target['labels'].tolist() == [1, 2]
    assert target['boxes'].tolist() == [[0, 0, 20, 10], [1, .5, 2.5, 4.5]] and target['difficult'].tolist() == [0, 1]
    assert train.read(0, 10, channels=1)[0].shape == (1, 10, 20)
    expected = Image.open(train.scenes[0].picture).resize((20, 10), Image.Resampling.BILINEAR)
    assert np.array_equal(x.movedim(0, -1).numpy(), np.array(expected))


def test_of_a_long_picture_the_long_side_counts(folder):
    root = folder(dict(a=TWO['a'], b=TWO['a']))
    for stem in 'ab': picture(0, (100, 20)).save(root/'images'/f'{stem}.png')
    x, target = box_pictures(root, 0.5)[0].read(0, 10)
    assert x.shape == (3, 4, 20) and target['boxes'][0].tolist() == pytest.approx([0, 0, 8, 4])


def test_a_picture_without_objects_is_one_with_nothing_to_find(folder):
    parts = box_pictures(folder(TWO | dict(c=annotation(), d=TWO['a'])), 0.5)
    target, = (part.read(i, 10)[1] for part in parts for i in range(2) if part.scenes[i].picture.stem == 'c')
    assert target['boxes'].shape == (0, 4) and target['labels'].shape == (0,)
    hard = annotation(('cat', 1, 1, 9, 9, 1))
    root = folder(dict(a=TWO['a'], b=hard, c=hard, d=hard))
    texts = {refusal(box_pictures, root, 0.5, seed) for seed in range(6)}
    assert texts == {f"none of the 2 pictures of {root} to {purpose} has an object that is not difficult: give others, "
                     "or another seed." for purpose in ('judge by', 'train with')}


def test_the_picture_has_the_name_of_its_annotation_else_the_one_that_it_names(folder):
    root = folder(dict(a=annotation(('cat', 1, 1, 9, 9), filename='old/place/zzz.jpg'),
                       b=annotation(('cat', 1, 1, 9, 9), filename=r'C:\photos\c.png')), pictures=('a', 'c'))
    found = {scene.picture.name for part in box_pictures(root, 0.5) for scene in part.scenes}
    assert found == {'a.png', 'c.png'}


def test_the_split_is_drawn_by_the_seed_unless_the_folder_lists_it(folder):
    root = folder({f'{i}': TWO['b'] for i in range(10)})
    def stems(**kwargs): return [[scene.picture.stem for scene in part.scenes] for part in box_pictures(root, **kwargs)]
    train, valid = stems()
    assert (len(train), len(valid)) == (8, 2) and sorted(train + valid) == sorted(map(str, range(10)))
    assert stems() == [train, valid] != stems(seed=1) and len(stems(valid=.5)[1]) == 5
    lists = root/'ImageSets/Main'
    lists.mkdir(parents=True)
    (lists/'train.txt').write_text('3\n1\n')
    assert stems() == [train, valid]  # one list says nothing
    (lists/'val.txt').write_text('7\n')
    assert stems() == [['3', '1'], ['7']] and stems(valid=.2) == [train, valid]
    (lists/'val.txt').write_text('7\n3\n')
    said(['val.txt lists 3', 'train.txt has too'], box_pictures, root)
    (lists/'val.txt').write_text('elsewhere\n')
    said(['val.txt lists elsewhere'], box_pictures, root)


def test_boxes_of_a_turned_picture(folder):
    "As it is shown; where the annotation says that it is of the stored one, as that"
    said_sizes = dict(a=(20, 40), b=(40, 20), c=None)
    root = folder({stem: annotation(('cat', 1, 1, 4, 2), size=size) for stem, size in said_sizes.items()})
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for stem in said_sizes:
        (root/'images'/f'{stem}.png').unlink()
        picture(0, (40, 20)).save(root/'images'/f'{stem}.jpg', exif=exif, quality=100)
    parts = box_pictures(root, 0.4)
    shapes = {part.scenes[i].picture.stem: part.read(i, 20)[0].shape[1:] for part in parts for i in range(len(part))}
    assert shapes == dict(a=(40, 20), b=(20, 40), c=(40, 20))


@pytest.mark.parametrize('exif', (b'none at all', b'Exif\0\0MM', b'II*\0\xff'))
def test_exif_that_is_damaged_costs_no_picture(folder, exif):
    root = folder(dict(a=TWO['a'], b=TWO['a']))
    for file in (root/'images').iterdir():
        content = file.read_bytes()
        file.write_bytes(content[:33] + chunk(b'eXIf', exif) + content[33:])  # behind the header
    scene, = box_pictures(root, 0.5)[0].scenes
    assert scene.orientation == 1 and scene.size == (40, 20)


def test_grey_that_is_multiplied_by_its_transparency(folder):
    root = folder(dict(a=TWO['a'], b=TWO['a']))
    file = io.BytesIO()
    Image.new('LA', (40, 20), (50, 128)).save(file, 'TIFF')
    kind = bytes((0x52, 1, 3, 0, 1, 0, 0, 0))  # the tag that says so, if 1 follows
    content = file.getvalue().replace(kind + b'\2', kind + b'\1')
    for stem in 'ab':
        (root/f'images/{stem}.png').unlink()
        (root/f'images/{stem}.tif').write_bytes(content)
    with Image.open(root/'images/a.tif') as opened: assert opened.mode == 'La'
    x, _ = box_pictures(root, 0.5)[0].read(0, 20)
    assert x.unique().tolist() == [pytest.approx(50 + 127, abs=1)]


@pytest.mark.parametrize('box, words', (
    ((5, 1, 2, 9), 'has its sides in the wrong order'), ((5, 6, 9, 2), 'wrong order'), ((0, 0, 0, 5), 'is empty'),
    ((1, 1, 41, 9), 'does not lie within its picture of 40 x 20 pixels'), ((-3, 1, 5, 9), 'does not lie within'),
    ((1, 1, 9), 'no box of four numbers'), ((1, 1, 'x', 9), 'no box of four numbers'),
    ((1, 1, 'inf', 9), 'no box of four numbers'), ((1, 1, 'nan', 9), 'no box of four numbers')))
def test_boxes_that_cant_be(folder, box, words):
    said(['annotations/b.xml', words], box_pictures, folder(TWO | dict(b=annotation(('cat', *box)))))


@pytest.mark.parametrize('text, words', (
    ('<annotation><object>', 'no element found'), ('', 'no element found'), (BOMB, 'it has a DOCTYPE'),
    ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', 'it has a DOCTYPE'),
    ('<annotations/>', 'it begins with annotations'), (annotation(('', 1, 1, 2, 2)), 'an object without a name'),
    (annotation(('cat', 1, 1, 2, 2), size=(41, 20)), 'is of a picture of 41 x 20 pixels'),
    ('<?xml version="1.0" encoding="utf-16"?>' + annotation(('cat', 1, 1, 9, 9)), None)))
def test_annotations_that_cant_be(folder, text, words):
    root = folder(TWO | dict(b=text))
    if words is None: assert len(box_pictures(root)[0]) == 1  # it is UTF-8, whatever it says
    else: said(['annotations/b.xml', words], box_pictures, root)


def test_an_annotation_in_utf_16_hides_nothing(folder):
    root = folder(TWO)
    (root/'annotations/b.xml').write_text(BOMB.replace('1.0"', '1.0" encoding="utf-16"'), encoding='utf-16')
    said(['b.xml', 'no text in UTF-8'], box_pictures, root)


def test_folders_that_cant_be(folder, tmp_path):
    with pytest.raises(InputError, match='no folder .*: give one of pictures with annotations'):
        box_pictures(tmp_path/'none')
    said(['images/ and annotations/'], box_pictures, tmp_path)
    root = folder(TWO)
    for valid in (0, 1, 'a'): said(['valid='], box_pictures, root, valid)
    said(['seed=-1'], box_pictures, root, 0.5, -1)
    (root/'images/b.png').write_bytes(b'no picture')
    said(['b.png', "can't be read"], box_pictures, root)
    (root/'images/b.png').unlink()
    said(['b.xml has no picture'], box_pictures, root)
    (root/'annotations/b.xml').unlink()
    said(['too few pictures'], box_pictures, root)
    (root/'annotations/a.xml').write_text(annotation())
    said(['no annotation', 'has an object'], box_pictures, root)
    shutil.rmtree(root/'annotations')
    (root/'annotations').mkdir()
    said(['has no .xml file'], box_pictures, root)


def test_a_picture_that_is_cut_short_is_named_when_it_is_read(folder):
    root = folder(TWO)
    for stem in 'ab':
        content = (root/'images'/f'{stem}.png').read_bytes()
        (root/'images'/f'{stem}.png').write_bytes(content[:len(content) // 2])
    train, _ = box_pictures(root)
    said([train.scenes[0].picture, "can't be read"], next, iter(BoxLoader(train, 16)))


def test_pictures_of_more_than_8_bits_are_refused(folder):
    root = folder(TWO)
    Image.fromarray(np.zeros((20, 40), np.uint16)).save(root/'images/b.png')
    said(['b.png', '8 bits'], box_pictures, root)


# ---------------------------------------------------------------- batches

@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return box_pictures(draw_rectangles(tmp_path_factory.mktemp('boxes'), 20), 0.1)[0]


def test_batches_in_order(shapes):
    loader = BoxLoader(shapes, 32, bs=4)
    batches = list(loader)
    assert len(batches) == len(loader) == 5 and [len(x) for x, _ in batches] == [4, 4, 4, 4, 2]
    images, targets = ([item for batch in batches for item in batch[k]] for k in (0, 1))
    for i, (x, target) in enumerate(zip(images, targets)):
        expected, objects = shapes.read(i, 32)
        assert torch.equal(x, expected / 255) and torch.equal(target['boxes'], objects['boxes'])
    assert [x.shape for x in images] == [x.shape for batch, _ in loader for x in batch]


def test_training_batches_are_drawn_by_the_seed(shapes):
    def passes(seed):
        loader = BoxLoader(shapes, 32, bs=4, seed=seed)
        return [list(loader) for _ in range(2)]
    first, second = passes(0)
    again = passes(0)
    for batches, others in ((first, again[0]), (second, again[1])):
        pairs = [(x, y) for a, b in zip(batches, others, strict=True) for x, y in zip(a[0], b[0], strict=True)]
        assert len(pairs) == len(shapes) and all(torch.equal(x, y) for x, y in pairs)
    def sums(batches): return [sorted(x.sum().item() for x in images) for images, _ in batches]
    assert sums(first) != sums(second) and sums(first) != sums(passes(1)[0])
    every = sorted((shapes.read(i, 32)[0] / 255).sum().item() for i in range(len(shapes)))
    assert sorted(sum(sums(first), [])) == pytest.approx(every)
    # all but the rest lie, or all stand
    kinds = [{x.shape[2] > x.shape[1] for x in images} for images, _ in first]
    assert sum(len(kind) == 1 for kind in kinds) >= len(first) - 1


def test_a_flip_takes_the_boxes_along(tmp_path):
    "The colour of a box's centre tells what is in it, flipped or not"
    shapes, _ = box_pictures(draw_rectangles(tmp_path, 12, seed=3), 0.1)
    red = {'rectangle': 0, 'ellipse': 2}
    for images, targets in BoxLoader(shapes, 64, bs=3, seed=0):
        for x, target in zip(images, targets):
            for (left, top, right, bottom), label in zip(target['boxes'].tolist(), target['labels'].tolist()):
                colour = x[:, int(top + bottom) // 2, int(left + right) // 2]
                assert colour.argmax() == red[shapes.classes[label - 1]] and colour.sum() == colour.max()


@pytest.mark.parametrize('name, value', (('side', 0), ('bs', 0), ('channels', 4)))
def test_loaders_that_cant_be(shapes, name, value):
    said([f'{name}={value}'], lambda: BoxLoader(shapes, **dict(side=32) | {name: value}))


def test_the_generated_set_is_the_same_for_a_seed(tmp_path):
    a, b, c = (draw_rectangles(tmp_path/name, 3, seed=seed) for name, seed in (('a', 0), ('b', 0), ('c', 1)))
    def content(root): return {p.relative_to(root): p.read_bytes() for p in root.rglob('*') if p.is_file()}
    assert content(a) == content(b) != content(c) and len(content(a)) == 6
    said(['side=8'], draw_rectangles, tmp_path/'d', side=8)
