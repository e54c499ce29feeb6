"What a folder holds: every picture once, whatever is linked, and what looks like one and can't be read is named"
import io
import os

import pytest
from helpers.folders import dls_of, image_folder, picture
from helpers.odd import no_file, within
from PIL import Image

from fastcontrast import folders
from fastcontrast.core import InputError
from fastcontrast.folders import find_pictures, left_out, list_folder

# ---------------------------------------------------------------- links


@pytest.mark.parametrize('place, target', [
    ('b/up', '..'), ('b/up', '../../x'), ('b/up', '../..'), ('b/deep/up', '../..'), ('b/other', '../a'),
    ('b/itself', '.'), ('up', '.'), ('up', '..'), ('c', 'a'), ('b/deep/other', '../../a/more'), ('b/away', 'ABOVE'),
])
def test_a_link_within_is_followed_to_nothing(tmp_path, place, target):
    "Each file once, with its own label, and neither a class of links nor a circle"
    root = image_folder(tmp_path/'x', dict(a=3, b=2))
    image_folder(root/'a', dict(more=1))
    image_folder(root/'b', dict(deep=1))
    before = dls_of(root, valid=0).train.data
    (root/place).symlink_to(str(tmp_path) if target == 'ABOVE' else target)
    with within(20): after = dls_of(root, valid=0).train.data
    assert after.names == before.names and after.y.tolist() == before.y.tolist() and after.classes == before.classes
    assert find_pictures(root) == sorted(before.names)


def test_links_to_elsewhere_are_followed(tmp_path):
    "Once in a class, however many lead there, and as often as classes have them"
    root = image_folder(tmp_path/'x', dict(a=1))
    image_folder(tmp_path/'far', dict(c=2))
    (tmp_path/'far/c/back').symlink_to(root)
    (tmp_path/'far/c/round').symlink_to(tmp_path/'far')
    for name in ('c', 'a/one', 'a/two'): (root/name).symlink_to(tmp_path/'far/c')
    (root/'file').mkdir()
    (root/'file/0.png').symlink_to(root/'a/000.png')  # a link to a file is a picture
    data = dls_of(root, valid=0).train.data
    assert data.classes == ['a', 'c', 'file'] and data.names.count('file/0.png') == 1
    assert [n for n in data.names if n.startswith('c/')] == ['c/000.png', 'c/001.png']
    linked = [n for n in data.names if n.startswith(('a/one/', 'a/two/'))]
    assert len(linked) == 2 and len(data.names) == 6


def test_the_folder_may_be_a_link(tmp_path):
    image_folder(tmp_path/'far', dict(a=2, b=2))
    (tmp_path/'x').symlink_to(tmp_path/'far')
    assert dls_of(tmp_path/'x', valid=0).train.data.names == dls_of(tmp_path/'far', valid=0).train.data.names


def test_parts_may_link_to_each_other(tmp_path):
    image_folder(tmp_path/'x/train', dict(a=3, b=3))
    (tmp_path/'x/val').mkdir()
    (tmp_path/'x/val/b').symlink_to('../train/b')
    assert dls_of(tmp_path/'x').valid.data.names == ['b/000.png', 'b/001.png', 'b/002.png']


def test_links_in_a_circle_and_to_nothing(tmp_path):
    root = image_folder(tmp_path, dict(a=2))
    (root/'a/circle').symlink_to('circle')
    (root/'a/gone').symlink_to('nowhere')
    (root/'a/gone.png').symlink_to('nowhere.png')
    assert find_pictures(root) == ['a/000.png', 'a/001.png', 'a/gone.png']
    assert 'gone.png (No such file or directory)' in dls_of(root, valid=0).report()


@pytest.mark.skipif(os.getuid() == 0, reason='root may look into everything')
def test_a_folder_that_may_not_be_looked_into(tmp_path):
    image_folder(tmp_path, dict(a=2, b=2))
    (tmp_path/'a').chmod(0)
    with pytest.raises(InputError, match="cannot look into '.*a': Permission denied"): dls_of(tmp_path)


# ---------------------------------------------------------------- what is left out

def encoded(name):
    file = io.BytesIO()
    Image.new('RGB', (8, 8)).save(file, name)
    return file.getvalue()


@pytest.mark.parametrize('name, content', [
    ('a.heic', b''), ('A.HEIC', b'x'), ('a.cr2', b'x'), ('a.jxl', b''), ('a.svg', b'<svg/>'), ('a', encoded('JPEG')),
    ('IMG_0001', encoded('PNG')), ('a.jpg_large', encoded('JPEG')), ('a.jpeg~', encoded('JPEG')),
    ('a.1', encoded('GIF')), ('a.img', encoded('BMP')), ('a.x', encoded('TIFF')), ('a.x', encoded('WEBP')),
    ('a.x', encoded('JPEG2000')),
    ('photo', b'\0\0\0\x18ftypheic\0\0\0\0'), ('photo', b'\0\0\0\x1cftypavif\0\0\0\0'),
])
def test_what_looks_like_a_picture_is_named(tmp_path, name, content, capsys):
    image_folder(tmp_path, dict(a=3))
    (tmp_path/'a'/name).write_bytes(content)
    dls_of(tmp_path, valid=0)
    said = f"1 file that looks like a picture was left out, since its name has no suffix that is read here: a/{name}.\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize('name, content', [
    ('a.txt', encoded('JPEG')), ('a.csv', b'x'), ('a.json', b'{}'), ('.hidden', encoded('JPEG')), ('._a.jpg', b'x'),
    ('.DS_Store', b'x'), ('Thumbs.db', b'x'), ('README', b'words'), ('a.x', b''), ('a.x', b'BM, says the text'),
    ('labels', b'0 1 2'), ('a.xmp', b'<x:xmpmeta>'),
])
def test_what_stands_beside_pictures_is_not(tmp_path, name, content, capsys):
    image_folder(tmp_path, dict(a=3))
    (tmp_path/'a'/name).write_bytes(content)
    dls_of(tmp_path, valid=0)
    assert capsys.readouterr().err == ''


def test_many_are_counted(tmp_path, capsys):
    image_folder(tmp_path, dict(a=30, b=10))
    for i in range(300): (tmp_path/f'a/{i:03}').write_bytes(encoded('JPEG'))
    for i in range(5): (tmp_path/f'b/{i}.heic').write_bytes(b'')
    (tmp_path/'loose.heic').write_bytes(b'')
    no_file(tmp_path/'b/pipe', 'pipe')
    with within(20): dls_of(tmp_path, valid=0)
    said = capsys.readouterr().err
    assert said.startswith('306 files that look like pictures were left out, since their names have no suffix')
    assert said.count('\n') == 1 and said.endswith('a/008, ….\n') and 'loose.heic, a/000' in said


def test_few_are_looked_into_where_none_is_one(tmp_path, monkeypatch):
    image_folder(tmp_path, dict(a=1))
    for i in range(300): (tmp_path/f'a/{i:03}.xyz').write_bytes(b'x')
    seen = []
    monkeypatch.setattr(folders, '_looks_like_one', lambda path: seen.append(path))
    assert list_folder(tmp_path).left.others == [] and len(seen) == folders.SNIFFED


@pytest.mark.parametrize('unlabelled', [False, True])
def test_what_may_be_meant_is_counted_by_suffix(tmp_path, unlabelled, capsys):
    image_folder(tmp_path, dict(a=3, b=2))
    names = ('a/0.npy', 'a/1.NPY', 'a/x.npz', 'b/x.tar.gz', 'b/t.csv', 'b/README', 'b/x.dat')
    for name in names: (tmp_path/name).write_bytes(b'x')
    dls = dls_of(tmp_path, valid=0, unlabelled=unlabelled)
    assert capsys.readouterr().err == (
        '4 other files were left out (2 .npy, 1 .gz, 1 .npz), and 5 pictures taken (5 .png).\n')
    assert len(dls.train.data) == 5
    for i in range(6): (tmp_path/f'b/{i}.\x1b[2J').write_bytes(b'x')  # more than there are pictures
    dls_of(tmp_path, valid=0, unlabelled=unlabelled)
    assert capsys.readouterr().err == ('12 other files were left out (6 .\\x1b[2j, 2 .npy, 1 .dat, 1 .gz, 1 .npz, '
                                       '…), and 5 pictures taken (5 .png).\n')


@pytest.mark.parametrize('suffix', ['npy', 'npz', 'heic', 'tar', 'nii', 'mp4'])
@pytest.mark.parametrize('place', ['', 'a'])
def test_hardly_a_picture_among_others_is_refused(tmp_path, suffix, place, capsys):
    image_folder(tmp_path, {place: 1})
    for i in range(20): (tmp_path/place/f'x{i}.{suffix}').write_bytes(b'x')
    for unlabelled in (False, True):
        with pytest.raises(InputError) as e: dls_of(tmp_path, valid=0, unlabelled=unlabelled)
        assert str(e.value).startswith(f"'{tmp_path}' holds 1 picture (1 .png) among 20 other files (20 .{suffix}), "
                                       "which may be what is meant") and str(e.value).endswith('.')
    assert capsys.readouterr().err == ''


def test_packed_files_alone_are_told(tmp_path):
    for i in range(3): (tmp_path/f'{i}.zip').write_bytes(b'x')
    with pytest.raises(InputError, match=r'no picture in .*: 3 other files were left out \(3 .zip\)\.$'):
        dls_of(tmp_path)


def test_nothing_else_is_there(tmp_path, capsys):
    for i in range(3): (tmp_path/f'{i}.heic').write_bytes(b'')
    with pytest.raises(InputError, match='no picture in .*: 3 files that look like pictures were left.* 0.heic, 1'):
        dls_of(tmp_path)
    assert capsys.readouterr().err == ''


def test_names_are_shown_and_not_obeyed(tmp_path, capsys):
    image_folder(tmp_path, dict(a=3))
    (tmp_path/'a/\x1b[31mred\n.heic').write_bytes(b'')
    (tmp_path/'a/\x1b]0;title\x07.png').write_bytes(b'?')
    dls = dls_of(tmp_path, valid=0)
    said = capsys.readouterr().err
    assert 'a/\\x1b[31mred\\n.heic' in said and '\x1b' not in said and said.count('\n') == 1
    assert 'a/\\x1b]0;title\\x07.png (not a picture)' in dls.report() and '\x1b' not in dls.report()
    assert left_out([]) == ''


def test_order_is_that_of_classes_and_then_of_names(tmp_path):
    "Which a split and a cache depend on"
    for name in ('a-b/0.png', 'a/z/1.png', 'a/0.png', 'a/z.png', 'B/0.png'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        picture(0).save(tmp_path/name)
    assert dls_of(tmp_path, valid=0).train.data.names == ['B/0.png', 'a/0.png', 'a/z.png', 'a/z/1.png', 'a-b/0.png']


def test_a_tree_is_what_a_walk_finds(tmp_path):
    "Whatever files are called, in whatever case, beside whichever others, and folders may have a picture's suffix"
    names = ('!.png', '-a.PNG', '.png', '.x.jpg', '0.Jpeg', 'A.b.png', 'a', 'png', 'b.txt', 'c.png.d', 'z.webp',
             'é.png')
    for folder in ('a', 'a/x.png', 'a/x.png/more', 'b', 'b/.hidden', 'b/__MACOSX', 'b/-', 'c/only/deep'):
        (tmp_path/folder).mkdir(parents=True)
        for name in names: (tmp_path/folder/name).touch()
    expected = {}
    for path, _, files in os.walk(tmp_path):
        place = os.path.relpath(path, tmp_path)
        if 'hidden' in place or 'MACOSX' in place: continue
        for name in files:
            if name.startswith('.') or not name.lower().endswith(('.png', '.jpeg', '.webp')): continue
            expected.setdefault(place.partition('/')[0], []).append(f"{place.partition('/')[2]}/{name}".lstrip('/'))
    loose, below, _ = folders.by_folder(tmp_path)
    assert loose == [] and below == {name: sorted(expected[name]) for name in 'abc'} and list(below) == ['a', 'b', 'c']
    assert find_pictures(tmp_path) == sorted(f'{c}/{name}' for c in expected for name in expected[c])
    assert find_pictures(tmp_path/'a', nested=False) == sorted(name for name in expected['a'] if '/' not in name)


def test_arrays_are_pictures_where_there_are_no_others(tmp_path):
    for name in ('a/0.npy', 'a/x/1.NPZ', 'b/2.npy'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).touch()
    assert folders.by_folder(tmp_path)[1] == {'a': ['0.npy', 'x/1.NPZ'], 'b': ['2.npy']}
    picture(0).save(tmp_path/'b/3.png')
    assert folders.by_folder(tmp_path)[1] == {'b': ['3.png']} and find_pictures(tmp_path) == ['b/3.png']
