"embed: features of pictures with their names and labels, as a table and in files"
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers.folders import image_folder
from helpers.pictures import ARCH
from helpers.refusals import said
from PIL import Image
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.embed import embed
from fastcontrast.learner import contrastive_learner
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
def expected(encoder, path):
    "Features of one picture, by hand"
    x = torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1)[None]
    cfg = encoder.pretrained_cfg
    return encoder(Normalize(cfg['mean'], cfg['std'])(plain_view(x, 32)))[0]


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


def test_arrays_without_labels(encoder):
    x = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    embedded = embed(encoder, x)
    assert len(embedded) == 4 and embedded.labels == [''] * 4 and list(embedded.about()) == ['part', 'name']


def test_an_encoder_of_timms(folder):
    timms = timm.create_model(ARCH, num_classes=0).eval()
    assert embed(timms, folder).features.shape == (8, timms.num_features)


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
