"embed: features of pictures with their names and labels, as a table and in files"
import io
import tarfile

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers.folders import STREAM, image_folder, picture
from helpers.pictures import ARCH
from helpers.refusals import said
from PIL import Image
from torch import nn

from fastcontrast.core import InputError, MissingPath
from fastcontrast.data import image_dls
from fastcontrast.embed import Embedded, embed, embed_picture, load_embedded
from fastcontrast.evaluate.finetune import Classifier
from fastcontrast.learner import contrastive_learner
from fastcontrast.loaders import ShardLoader
from fastcontrast.models import make_encoder
from fastcontrast.views import Normalize, plain_view


@pytest.fixture(scope='module')
def encoder():
    torch.manual_seed(0)
    encoder = make_encoder(ARCH, small_input=True, size=32).eval()
    encoder.pretrained_cfg.update(input_size=(3, 32, 32))
    return encoder


@pytest.fixture
def folder(tmp_path):
    image_folder(tmp_path/'p/train', dict(a=3, b=2))
    image_folder(tmp_path/'p/valid', dict(a=1, b=2))
    return tmp_path/'p'


@torch.no_grad()
def expected(encoder, path, side=32):
    "Features of one picture, by hand"
    x = torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1)[None]
    cfg = encoder.pretrained_cfg
    return encoder(Normalize(cfg['mean'], cfg['std'])(plain_view(x, side)))[0]


def test_every_picture_by_its_name(encoder, folder):
    embedded = embed(encoder, folder, precision='fp32')
    assert embedded.parts == ['train'] * 5 + ['valid'] * 3
    assert embedded.names == ['a/000.png', 'a/001.png', 'a/002.png', 'b/000.png', 'b/001.png',
                              'a/000.png', 'b/000.png', 'b/001.png']
    assert embedded.labels == list('aaabbabb') and embedded.features.dtype == torch.float32
    for part, name, row in zip(embedded.parts, embedded.names, embedded.features):
        torch.testing.assert_close(row, expected(encoder, folder/part/name), rtol=1e-4, atol=1e-5)


def test_loaders_that_are_there(encoder, folder):
    alike = embed(encoder, folder, precision='fp32')
    for memory in (None, 1e-12):  # in memory, and streamed
        dls = image_dls(folder, bs=2, size=32, memory=memory, workers=0) if memory else image_dls(folder, bs=2, size=32)
        embedded = embed(encoder, dls, precision='fp32')
        assert embedded.names == alike.names and embedded.labels == alike.labels
        torch.testing.assert_close(embedded.features, alike.features, rtol=1e-5, atol=1e-6)


def test_pictures_that_judge_by_themselves_have_classes_of_their_own(encoder, folder, tmp_path):
    other = image_folder(tmp_path/'o', dict(b=5, c=5))
    for settings, classes in ((dict(), ['a', 'b', 'c']), (dict(unlabelled=True), ['b', 'c'])):
        embedded = embed(encoder, image_dls(folder/'train', size=32, bs=2, valid=other, **settings))
        named = [name[0] for name in embedded.names]
        if settings: named = [name if part == 'valid' else '' for part, name in zip(embedded.parts, named)]
        assert embedded.labels == named and embedded.classes == classes and set(embedded.parts) == {'train', 'valid'}


@pytest.mark.parametrize('how', [{}, STREAM])
def test_all_pictures_that_judge_by_themselves(encoder, folder, how):
    "Those among which neighbours are looked for stand between the queries, as they lie"
    image_folder(folder/'valid', dict(a=6, b=11))
    (folder/'valid/b/003.png').write_text('broken')
    dls = image_dls(folder, size=32, bs=2, unlabelled=True, **dict(workers=0) | how)
    assert dls.within == 'valid' and 0 < len(dls.valid.data) < 4
    embedded = embed(encoder, dls, precision='fp32')
    names = sorted(f'{path.parent.name}/{path.name}' for path in (folder/'valid').rglob('*.png'))
    names.remove('b/003.png')
    assert embedded.parts == ['train'] * 5 + ['valid'] * 16 and embedded.names[5:] == names
    assert embedded.labels == [''] * 5 + [name[0] for name in names] and len(set(embedded.paths)) == 21
    for part, name, row in zip(embedded.parts, embedded.names, embedded.features):
        torch.testing.assert_close(row, expected(encoder, folder/part/name), rtol=1e-4, atol=1e-5)
    rows = [20, 0, 6, 12]
    for row, square in zip(rows, embedded.squares(rows, 32)):
        x = np.array(Image.open(folder/embedded.paths[row]))
        assert torch.equal((square * 255).round().byte(), torch.from_numpy(x).permute(2, 0, 1))
    assert embedded.with_pictures(folder, size=32, unlabelled=True).pictures.within == 'valid'


def test_a_bank_of_another_place(encoder, folder, tmp_path):
    "Its pictures have names of their own; none is there twice where the training part is the bank"
    other = image_folder(tmp_path/'o', dict(a=2, b=3))
    dls = image_dls(folder/'train', size=32, bs=2, valid=(folder/'valid', other))
    embedded = embed(encoder, dls, precision='fp32')
    assert embedded.names[5:] == ['a/000.png', 'a/001.png', 'b/000.png', 'b/001.png', 'b/002.png',
                                  'bank/a/000.png', 'bank/b/000.png', 'bank/b/001.png']
    assert embedded.parts == ['train'] * 5 + ['valid'] * 8 and embedded.labels[5:] == list('aabbbabb')
    row, path = embedded.row('bank/b/001.png'), folder/'valid/b/001.png'
    torch.testing.assert_close(embedded.features[row], expected(encoder, path), rtol=1e-4, atol=1e-5)
    x = np.array(Image.open(path))
    assert torch.equal((embedded.squares([row], 32)[0] * 255).round().byte(), torch.from_numpy(x).permute(2, 0, 1))
    for name in ('000.png', '001.png', '002.png'): (other/'b'/name).rename(other/f'b/own{name}')
    for name in ('000.png', '001.png'): (other/'a'/name).rename(other/f'a/own{name}')
    apart = embed(encoder, image_dls(folder/'train', size=32, bs=2, valid=(folder/'valid', other)))
    assert apart.names[10:] == ['a/000.png', 'b/000.png', 'b/001.png']
    assert len(embed(encoder, image_dls(folder/'train', size=32, bs=2, valid=folder/'valid'))) == 8


def test_arrays_without_labels(encoder):
    x = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    embedded = embed(encoder, x)
    assert len(embedded) == 4 and embedded.labels == [''] * 4 and list(embedded.about()) == ['part', 'name']


def test_an_encoder_of_timms(folder):
    timms = timm.create_model(ARCH, num_classes=0).eval()
    assert embed(timms, folder).features.shape == (8, timms.num_features)


def test_a_transformer_of_timms_by_the_side_that_it_is_made_for(folder):
    "And not by that of timm's weights, which it describes"
    for arch in ('test_vit', 'test_vit3'):  # the one takes other sides too
        vit = timm.create_model(arch, num_classes=0, img_size=48).eval()
        h = embed(vit, folder, precision='fp32').features[0]
        torch.testing.assert_close(h, expected(vit, folder/'train/a/000.png', 48), rtol=1e-4, atol=1e-4)
    uneven = timm.create_model('test_vit', num_classes=0, img_size=40)
    said(["size=40 does not suit the encoder 'test_vit'"], embed, uneven, folder)


def test_a_classifier_gives_no_features(folder, encoder):
    for model in (timm.create_model(ARCH, num_classes=5), Classifier(encoder, 96, ['a', 'b'])):
        said(['this is a classifier', 'num_classes=0'], embed, model, folder)
    bare = timm.create_model(ARCH, num_classes=5)
    bare.fc = nn.Identity()
    assert embed(bare, folder).features.shape == (8, bare.num_features)


def test_timms_encoders_of_other_channels(folder):
    "timm's description of them is that of three"
    grey = timm.create_model(ARCH, num_classes=0, in_chans=1)
    assert embed(grey, folder).features.shape == (8, grey.num_features)
    said(['takes pictures with 5 channels', 'the mean of 3'], embed,
         timm.create_model(ARCH, num_classes=0, in_chans=5), folder)
    del grey.pretrained_cfg['input_size']
    said(['does not say for what pictures it is'], embed, grey, folder)


def test_files(encoder, folder, tmp_path):
    embedded = embed(encoder, folder)
    h, about = embedded.features.numpy(), ['part', 'name', 'label']
    with np.load(embedded.save(tmp_path/'new/f.npz'), allow_pickle=False) as file:
        assert np.array_equal(file['features'], h) and file['names'].tolist() == embedded.names
        assert file['labels'].tolist() == embedded.labels and file['parts'].tolist() == embedded.parts
    frame = pd.read_csv(embedded.save(tmp_path/'f.csv'))
    assert list(frame) == [*about, *(f'f{i}' for i in range(h.shape[1]))]
    assert np.allclose(frame.iloc[:, 3:].to_numpy(), h, rtol=1e-5) and frame['label'].tolist() == embedded.labels
    pytest.importorskip('pyarrow')
    frame = pd.read_parquet(embedded.save(tmp_path/'f.parquet'))
    assert list(frame) == [*about, 'features'] and np.array_equal(np.stack(frame['features']), h)


def test_what_is_refused(encoder, folder, tmp_path):
    embedded = embed(encoder, folder)
    said(['.npz, .csv, .parquet', 'f.xls'], embedded.save, tmp_path/'f.xls')
    said(['a Linear does not say for what pictures'], embed, nn.Linear(2, 2), folder)
    grey = image_dls(torch.zeros(4, 1, 32, 32, dtype=torch.uint8), bs=2, channels=1)
    said(['3 channels', 'these have 1'], embed, encoder, grey)
    with pytest.raises(InputError, match='no file'): embed(tmp_path/'none.safetensors', folder)


def test_the_encoder_of_a_learner(folder):
    learn = contrastive_learner(image_dls(folder, size=48, bs=2), ARCH)
    h, _ = learn.embed()
    torch.testing.assert_close(embed(learn.model.encoder, folder).features[5:], h, rtol=1e-4, atol=1e-5)


# --- a single picture, and the pictures themselves

def test_a_single_picture_is_seen_like_any_other(encoder, folder):
    embedded = embed(encoder, folder, precision='fp32')
    path = folder/'train/a/002.png'
    x = Image.open(path)
    array = np.array(x)
    for query in (path, str(path), x, array, torch.from_numpy(array).permute(2, 0, 1)):
        seen = embed_picture(encoder, query, precision='fp32')
        assert len(seen) == 1 and seen.classes is None
        torch.testing.assert_close(seen.features[0], embedded.features[2], rtol=1e-4, atol=1e-5)
        assert torch.equal(seen.squares([0], 32), embedded.squares([2], 32))
        assert embedded.search(query, encoder, k=1).index.tolist() == [2]


def test_a_folder_of_a_single_picture(encoder, folder):
    alone = embed(encoder, folder/'valid/a', precision='fp32')
    assert alone.paths == ['000.png'] and len(alone.features) == 1
    assert alone.with_pictures(folder/'valid/a').paths == ['000.png']


def test_a_single_picture_that_is_none(encoder, folder, tmp_path):
    (tmp_path/'text.png').write_text('nothing')
    content = (folder/'train/a/000.png').read_bytes()
    (tmp_path/'cut.png').write_bytes(content[:len(content) // 2])
    said(['text.png', 'no picture'], embed_picture, encoder, tmp_path/'text.png')
    with pytest.raises(InputError, match='could be decoded.*cut.png'): embed_picture(encoder, tmp_path/'cut.png')
    with pytest.raises(MissingPath, match="there is no picture '.*one.png'"): embed_picture(encoder, tmp_path/'one.png')
    said(['is no picture but has many'], embed_picture, encoder, folder)


def test_pictures_by_their_rows(encoder, folder):
    embedded, rows = embed(encoder, folder), [7, 0, 4, 7]
    squares = embedded.squares(rows, 32)
    for row, square in zip(rows, squares):
        x = np.array(Image.open(folder/embedded.paths[row]))
        assert torch.equal((square * 255).round().byte(), torch.from_numpy(x).permute(2, 0, 1))
    streamed = embed(encoder, image_dls(folder, bs=2, size=32, valid=0., **STREAM))
    assert torch.equal(streamed.squares(rows, 16), embedded.squares(rows, 16))


def test_what_can_not_be_decoded_has_no_row(encoder, folder):
    "Also where the next picture stands in for it in a batch"
    (folder/'train/a/001.png').write_text('broken')
    kept = embed(encoder, folder, precision='fp32')
    streamed = embed(encoder, folder, precision='fp32', **STREAM)
    assert kept.names == streamed.names == ['a/000.png', 'a/002.png', 'b/000.png', 'b/001.png', 'a/000.png',
                                            'b/000.png', 'b/001.png']
    assert kept.labels == streamed.labels == list('aabbabb')
    torch.testing.assert_close(streamed.features, kept.features, rtol=1e-4, atol=1e-5)
    assert torch.equal(streamed.squares([1, 2], 16), kept.squares([1, 2], 16))


def test_pictures_of_shards(encoder, tmp_path, monkeypatch):
    "Which are not read one by one, nor beyond the last that is wanted; two can't be decoded"
    with tarfile.open(tmp_path/'0.tar', 'w') as tar:
        for i in range(9):
            file = io.BytesIO()
            picture(i).save(file, 'PNG')
            content = b'nothing' if i in (3, 8) else file.getvalue()
            info = tarfile.TarInfo(f'{i}.png')
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    embedded = embed(encoder, tmp_path, workers=0)
    assert embedded.names == list('0124567')
    read, arrived = [], ShardLoader._arrived
    def noted(loader, images, *args):
        read.append(len(images))
        return arrived(loader, images, *args)
    with monkeypatch.context() as patch:
        patch.setattr(ShardLoader, '_arrived', noted)
        patch.setattr('fastcontrast.embed.BATCH', 3)
        embedded.squares([4, 1], 32)
    assert read == [3, 3]
    for row, square in zip((5, 3), embedded.squares([5, 3], 32)):
        x = torch.from_numpy(np.array(picture(int(embedded.names[row])))).permute(2, 0, 1)
        assert torch.equal((square * 255).round().byte(), x)
        assert embedded.search(picture(int(embedded.names[row])), encoder, k=1).index.tolist() == [row]


# --- neighbours

def features(h, names=None, parts=None, labels=None):
    "What files hold"
    names = names or [f'{i}.png' for i in range(len(h))]
    classes = sorted(set(labels)) if labels else None
    y = torch.tensor([classes.index(label) for label in labels] if labels else [-1] * len(h))
    return Embedded(torch.as_tensor(h, dtype=torch.float32), names, parts or ['train'] * len(h), y, classes)


def test_search_against_a_loop():
    g = torch.Generator().manual_seed(0)
    h, queries = torch.randn(40, 6, generator=g), torch.randn(3, 6, generator=g)
    embedded = features(h)
    cosine = torch.nn.functional.cosine_similarity
    for row in (0, 17, 39):
        others = sorted((-cosine(h[row], h[i], dim=0).item(), i) for i in range(40) if i != row)
        found = embedded.search(row, k=5)
        assert found.index.tolist() == [i for _, i in others[:5]] and list(found) == ['similarity', 'part', 'name']
        assert np.allclose(found['similarity'], [-s for s, _ in others[:5]], atol=1e-6)
    similarity, rows = embedded.nearest_to(features(queries), k=50)  # as many as there are
    assert rows.shape == (3, 40) and similarity[1, 0].item() == pytest.approx(cosine(queries[1:2], h).max().item())
    assert len(embedded.search(0, k=50)) == 39


def test_a_picture_is_not_its_own_neighbour_even_with_many_copies():
    embedded = features([[1., 0.]] * 30 + [[0., 1.]])
    _, rows = embedded.nearest_to(range(31), k=3)
    assert not (rows == torch.arange(31)[:, None]).any() and rows.shape == (31, 3)


def test_a_picture_by_its_name():
    embedded = features(np.eye(4), ['a', 'b', 'a', 'c'], ['train', 'train', 'valid', 'valid'])
    assert [embedded.row(name) for name in ('b', 'c', 'train/a', 'valid/a', 3)] == [1, 3, 0, 2, 3]
    said(["2 of these are called 'a'", 'train/ or valid/'], embedded.search, 'a')
    said(["none of these is called 'x.png'", 'needs the encoder'], embedded.search, 'x.png')
    said(['row=4', 'from 0 to 3'], embedded.search, 4)
    said(['a search for a ndarray needs the encoder'], embedded.search, np.zeros((3, 3)))


def test_features_that_can_not_be_searched(encoder, folder):
    embedded = features(np.eye(4))
    said(['4 features', 'another, which gives 96'], embedded.search, folder/'train/a/000.png', encoder)
    said(['two pictures or more'], features(np.eye(1)).search, 0)
    said(['k=0'], embedded.search, 0, k=0)
    said(['three pictures or more, and got 2'], features(np.eye(2)).map)
    said(['without their pictures'], embedded.squares, [0], 8)
    for f in (lambda e: e.search(0), Embedded.map):
        with pytest.raises(InputError, match='NaN'): f(features([[1, np.nan]] * 4))


# --- read again

def test_saved_features_are_read_again(encoder, folder, tmp_path):
    embedded = embed(encoder, folder)
    for suffix in ('.npz', '.csv', '.NPZ'):
        read = load_embedded(embedded.save(tmp_path/f'f{suffix}'))
        torch.testing.assert_close(read.features, embedded.features, rtol=1e-5, atol=1e-7)
        assert (read.names, read.parts, read.labels) == (embedded.names, embedded.parts, embedded.labels)
        assert read.pictures is None and read.classes == ['a', 'b'] and read.features.dtype == torch.float32
    assert torch.equal(read.with_pictures(folder).squares([6, 1], 16), embedded.squares([6, 1], 16))
    odd = features(np.eye(3), names=['nan', 'ä,"b"\n', '007'], labels=['NA', '1.0', 'nan'])
    for suffix in ('.npz', '.csv'):
        read = load_embedded(odd.save(tmp_path/f'odd{suffix}'))
        assert (read.names, read.labels) == (odd.names, odd.labels)
    assert load_embedded(features(np.eye(3)).save(tmp_path/'none.csv')).classes is None
    said(["lack 'nan' and 2 others"], read.with_pictures, folder)


def test_parquet_is_read_again(encoder, folder, tmp_path):
    pytest.importorskip('pyarrow')
    embedded = embed(encoder, folder)
    read = load_embedded(embedded.save(tmp_path/'f.parquet'))
    assert torch.equal(read.features, embedded.features) and read.labels == embedded.labels


def arrays(**changed):
    "Of a .npz file"
    return dict(features=np.eye(3, dtype=np.float32), names=np.array(list('abc')), parts=np.array(['train'] * 3),
                labels=np.array([''] * 3)) | changed


@pytest.mark.parametrize('words, changed', [
    (['3 rows of features, 2 names'], dict(names=np.array(list('ab')))),
    (['shape [3]'], dict(features=np.zeros(3))),
    (['shape [0, 4]'], dict(features=np.zeros((0, 4)))),
    (["part 'test'"], dict(parts=np.array(['train', 'train', 'test']))),
    (['allow_pickle=False'], dict(names=np.array([b'a', 'b', None], dtype=object))),
    (['could not convert'], dict(features=np.array([['x']] * 3))),
])
def test_arrays_that_do_not_go_together(tmp_path, words, changed):
    np.savez(tmp_path/'f.npz', **arrays(**changed))
    said(['f.npz', 'holds no features', *words], load_embedded, tmp_path/'f.npz')


def test_files_that_hold_no_features(tmp_path):
    np.savez(tmp_path/'less.npz', features=np.eye(3))
    np.save(tmp_path/'array.npy', np.eye(3))
    (tmp_path/'array.npy').rename(tmp_path/'array.npz')
    np.savez(tmp_path/'cut.npz', **arrays())
    (tmp_path/'cut.npz').write_bytes((tmp_path/'cut.npz').read_bytes()[:300])
    for name, text in {'empty.csv': '', 'other.csv': 'path,class\na,1\n', 'word.csv': 'part,name,f0\ntrain,a,x\n',
                       'bare.csv': 'part,name\ntrain,a\n', 'gap.csv': 'part,name,f0,f1\ntrain,a,,1\n'}.items():
        (tmp_path/name).write_text(text)
    (tmp_path/'folder.csv').mkdir()
    for name in ('less.npz', 'array.npz', 'cut.npz', 'empty.csv', 'other.csv', 'word.csv', 'bare.csv', 'gap.csv',
                 'folder.csv'):
        said([name, 'holds no features that were saved here'], load_embedded, tmp_path/name)
    with pytest.raises(MissingPath, match='there is no file'): load_embedded(tmp_path/'none.npz')
    said(['.npz, .csv, .parquet', 'f.xls'], load_embedded, tmp_path/'f.xls')
