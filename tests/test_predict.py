"""What a classifier takes pictures for"""
import json

import pandas as pd
import pytest
import torch
from helpers.folders import image_folder, picture
from helpers.refusals import refusal, said
from helpers.stripes import encoder_for, loaders
from torch import nn

from fastcontrast.core import MissingPath
from fastcontrast.data import image_dls
from fastcontrast.evaluate.finetune import classifier_learner, finetune
from fastcontrast.export import export_encoder, load_classifier
from fastcontrast.predict import predict

CLASSES = ['a', 'b', 'c']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Of a classifier that is no good, of three classes"
    root = tmp_path_factory.mktemp('predict')
    image_folder(root/'pictures', dict.fromkeys(CLASSES, 4))
    dls = image_dls(root/'pictures', size=16, bs=2, valid=0.)
    return classifier_learner(encoder_for(dls), dls).export(root/'classifier')


def test_probabilities(folder):
    source = folder.parent/'pictures'
    found, model = predict(folder, source), load_classifier(folder)
    assert (len(found), found.known, found.classes, found.unknown) == (12, 12, CLASSES, [])
    x, y = map(torch.cat, zip(*image_dls(source, size=16, bs=2, valid=0.).train.ordered()))
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[name])[:, None, None] for name in ('mean', 'std'))
    from fastcontrast.views import plain_view
    with torch.no_grad(): expected = model((plain_view(x, 16) - mean) / std).softmax(1)
    torch.testing.assert_close(found.probabilities, expected, rtol=1e-2, atol=1e-2)  # of bf16, maybe
    assert torch.equal(found.y, y) and found.accuracy == pytest.approx(
        found.probabilities.argmax(1).eq(y).double().mean().item())
    frame = found.frame(top=2)
    assert [*frame] == ['part', 'name', 'label', 'class', 'probability', 'class_2', 'probability_2']
    assert (frame.probability >= frame.probability_2).all() and frame.label[0] == frame.name[0][0] == 'a'
    assert len(found.rows(9)[0]['classes']) == 3 and found.rows()[0]['name'] == frame.name[0]


def test_the_folder_of_the_run_that_made_it(folder):
    for place in (folder.parent, f'local-dir:{folder.parent}', folder/'model.safetensors'):
        assert load_classifier(place).pretrained_cfg['label_names'] == CLASSES
    with pytest.raises(MissingPath, match='give the folder of a fine-tuning'): load_classifier(folder/'none')


def test_one_picture_and_loose_ones(folder, tmp_path):
    picture(1).save(tmp_path/'one.png')
    one = predict(load_classifier(folder), tmp_path/'one.png', precision='fp32')
    assert len(one) == 1 and one.accuracy is None and one.names[0].endswith('one.png')
    loose = predict(folder, tmp_path, precision='fp32')
    torch.testing.assert_close(loose.probabilities, one.probabilities)
    assert [*loose.frame()] == ['part', 'name', 'class', 'probability', 'class_2', 'probability_2', 'class_3',
                                'probability_3']


def test_every_picture_of_those_that_judge_by_themselves(folder, tmp_path):
    image_folder(tmp_path, dict(train=3))
    image_folder(tmp_path/'val', dict(a=6, b=6))
    found = predict(folder, tmp_path)
    assert found.parts == ['train'] * 3 + ['valid'] * 12 and found.known == 12
    assert found.names[3:] == [f'{c}/00{i}.png' for c in 'ab' for i in range(6)]


def test_pictures_without_labels_beside_those_that_train(folder, tmp_path):
    "All of them, as are those of test/ alone, which a share of train/ stands in for where features are to be judged"
    image_folder(tmp_path/'p/train', dict(a=5, b=5))
    image_folder(tmp_path/'p', dict(test=3))
    found, alone = (predict(folder, tmp_path/name, precision='fp32') for name in ('p', 'p/test'))
    assert found.parts == ['train'] * 10 + ['valid'] * 3 and found.known == 10 and alone.known == 0
    assert found.names[10:] == alone.names == ['000.png', '001.png', '002.png']
    torch.testing.assert_close(found.probabilities[10:], alone.probabilities)


def test_files(folder, tmp_path):
    found = predict(folder, folder.parent/'pictures')
    rows = pd.read_csv(found.save(tmp_path/'new/p.csv', top=1))
    assert len(rows) == 12 and rows.name.tolist() == found.names and set(rows['class']) <= set(CLASSES)
    first, *_ = json.loads(found.save(tmp_path/'P.JSON').read_text())
    assert sum(first['classes'].values()) == pytest.approx(1) and first['label'] == 'a'
    said(["not as 'p.txt'"], found.save, tmp_path/'p.txt')


def test_classes_that_it_does_not_know(folder, tmp_path):
    found = predict(folder, image_folder(tmp_path/'p', dict(a=2, zebra=2)))
    assert (found.accuracy, found.known, found.unknown) == (None, 0, ['zebra'])
    fewer = predict(folder, image_folder(tmp_path/'q', dict(c=2, b=2)))  # in another order, none of a
    assert fewer.y.tolist() == [1, 1, 2, 2] and fewer.known == 4


def test_what_is_no_classifier(folder, tmp_path):
    dls = loaders()
    encoder = encoder_for(dls)
    file = export_encoder(encoder, tmp_path/'encoder', 'test_resnet', 16, [.5] * 3, [.5] * 3, small_input=True)
    assert 'holds an encoder that tells no classes apart' in refusal(predict, file, dls)
    for path in (tmp_path, tmp_path/'none'):
        with pytest.raises(MissingPath): predict(path, dls)
    said(['does not say what its classes are called'], predict, encoder, dls)
    said(['does not say what its classes are called'], predict, nn.Identity(), dls)
    said(['top=0'], predict(finetune(encoder, dls, epochs=1, bs=36), dls).frame, 0)
