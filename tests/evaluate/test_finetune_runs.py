"""Fine-tuning as a run: taken up where it was, ended early, looked at, handed on."""
import copy
import json
from functools import partial

import pytest
import timm
import torch
from fastai.callback.tracker import SaveModelCallback
from helpers.deaths import Death, DieAt, draw_something, history, same_state
from helpers.refusals import said
from helpers.stripes import encoder_for, loaders, stripes
from helpers.telling import Told
from torch import nn

from fastcontrast.checkpoint import Checkpoint, size_of
from fastcontrast.data import image_dls
from fastcontrast.evaluate.finetune import classifier_learner, finetune, held_out
from fastcontrast.evaluate.plots import read_history
from fastcontrast.export import export_encoder, load_classifier, load_encoder
from fastcontrast.history import History
from fastcontrast.learner import contrastive_learner
from fastcontrast.models import make_encoder


def learner(**settings):
    dls = loaders(64, labels='all')
    return classifier_learner(encoder_for(dls), dls, epochs=3, bs=12, **settings)


def tuned(make, folder, *deaths):
    "A learner that has been trained; its processes have died after these steps"
    for step in (*deaths, None):
        learn = make()
        draw_something()
        cbs = [Checkpoint(('epoch', '3 steps')), History(folder/'history.csv'), *([DieAt(step)] if step else [])]
        try: learn.fit_protocol(cbs, folder)
        except Death: assert step
        else: assert not step
    return learn


@pytest.mark.parametrize('settings, deaths', [
    (dict(), (2, 7)), (dict(patience=1), (3, 6)), (dict(protocol='linear', patience=2), (4, 9)),
    (dict(precision='bf16', decay=0.7, protocol='semi'), (5,))], ids=str)
def test_a_run_that_died_ends_as_one_that_did_not(tmp_path, settings, deaths, request):
    if 'precision' in settings: request.getfixturevalue('bf16')
    make = partial(learner, **settings)
    whole, broken = tuned(make, tmp_path/'whole'), tuned(make, tmp_path/'broken', *deaths)
    same_state(whole, broken)
    assert history(tmp_path/'whole') == history(tmp_path/'broken')
    assert {'train_loss', 'valid_loss', 'accuracy'} <= set(history(tmp_path/'whole')[0])
    assert ('held_out' in history(tmp_path/'whole')[0]) == ('patience' in settings)


def test_another_run_is_refused(tmp_path):
    tuned(learner, tmp_path)
    for words, settings in (('encoder_lr of the protocol', dict(encoder_lr=0.01)), ('batch size', dict()),
                            ('pictures to train on', dict(labels=10)), ('patience', dict(patience=9, labels='all'))):
        learn = learner(**settings)
        if words == 'batch size': learn.dls.train.bs = 8
        if words == 'patience': learn.dls = learner().dls
        said([f'differs in its {words}'], learn.fit_protocol, resume=tmp_path)
    dls = loaders(64, labels='all')
    longer = encoder_for(dls)  # of a pretraining that went on meanwhile, say
    with torch.no_grad(): next(longer.parameters()).mul_(1.01)
    other = classifier_learner(longer, dls, epochs=3, bs=12)
    said(['differs in its first weights'], other.fit_protocol, resume=tmp_path)
    said(['is no folder'], finetune, nn.Identity(), loaders(), resume=3)


def test_everybodys_draws_stay_as_they_are():
    dls = loaders()
    encoder = encoder_for(dls)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    finetune(encoder, dls, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_large_is_not_judged_by_in_every_epoch(tmp_path, capsys):
    dls = image_dls(stripes(64), size=16, bs=8, valid=0.75)
    def interval(labels=None, **settings):
        return classifier_learner(encoder_for(dls), dls, labels, **settings).judge_every
    assert interval(epochs=100, bs=8) == 1  # 16 learn, 48 judge
    assert interval(2, epochs=100, bs=2) == 4
    assert interval(epochs=100, bs=8, protocol='linear') == 3
    assert interval(epochs=101, bs=8) == 2 and interval(epochs=1000, bs=8) == 10
    learn = classifier_learner(encoder_for(dls), dls, epochs=5, bs=8, judge_every=3, patience=9)
    learn.fit_protocol(History(tmp_path/'history.csv'))
    rows = history(tmp_path)
    assert [bool(row['accuracy']) for row in rows] == [False, False, True, False, True]
    assert all(row['held_out'] for row in rows) and 'None' not in capsys.readouterr().out
    assert float(rows[-1]['accuracy']) == pytest.approx(learn.recorder.values[-1][2])
    assert 'accuracy' in read_history(tmp_path/'history.csv')


# ---------------------------------------------------------------- early stop

@pytest.mark.parametrize('accuracies, done, best', [
    ((.5, .7, .7, .6, .9), 4, 2), ((.5, .6, .7, .8, .9), 5, 5), ((.9, .1, .1, .2, .2), 3, 1)])
def test_training_ends_when_nothing_rises(monkeypatch, accuracies, done, best):
    dls, weights = loaders(64), []
    learn = classifier_learner(encoder_for(dls), dls, epochs=5, bs=16, patience=2)
    def scores(held):
        assert held is learn.stop.held
        weights.append({name: t.clone() for name, t in learn.model.state_dict().items()})
        right = round(accuracies[len(weights) - 1] * 10)
        return torch.eye(2)[[0] * 10], torch.tensor([0] * right + [1] * (10 - right))
    monkeypatch.setattr(learn, 'scores', scores)
    learn.fit_protocol()
    assert len(learn.recorder.values) == len(weights) == done
    assert learn.stop.best == pytest.approx(max(accuracies[:done]))
    assert [row[-1] for row in learn.recorder.values] == pytest.approx(accuracies[:done])
    assert all(torch.equal(t, weights[best - 1][name]) for name, t in learn.model.state_dict().items())
    assert learn.tuned_epochs == best


def test_what_is_held_out():
    data = loaders(64, labels='all').train.data
    chosen = torch.arange(len(data))
    used, held = held_out(data, chosen, 0)
    assert data.y[held].bincount().tolist() == [2, 2] and sorted([*used, *held]) == chosen.tolist()
    assert not torch.equal(held, held_out(data, chosen, 1)[1])
    few = torch.tensor([i for c in (0, 1) for i in (data.y == c).nonzero().squeeze(1)[:2].tolist()])
    assert data.y[held_out(data, few, 0)[1]].tolist() in ([0, 1], [1, 0])
    learn = learner(labels=8, patience=2)
    assert (len(learn.dls.train.data), len(learn.stop.held.data)) == (14, 2)
    assert not set(learn.stop.held.data.names) & {*learn.dls.train.data.names, *learn.dls.valid.data.names}
    assert '14 labels of 2 classes (2 more are held out to say when to stop)' in learn.labels


def test_a_checkpoint_has_room_for_the_best_weights():
    plain, patient = learner(labels=8), learner(labels=8, patience=2)
    assert size_of(patient) - size_of(plain) == sum(t.nbytes for t in plain.model.state_dict().values())


# ---------------------------------------------------------------- looked at

def test_looking_is_no_fit(tmp_path, monkeypatch):
    "What was kept and told of the fit stays, and so does what is known of it"
    monkeypatch.setattr(Told, 'kept', {})
    best = SaveModelCallback(monitor='accuracy')
    cbs = [Checkpoint(folder=tmp_path), History(tmp_path/'history.csv'), Told(), best]
    learn = learner(patience=9, cbs=cbs, path=tmp_path)
    learn.fit_protocol()
    told, = Told.kept.values()
    def known(): return learn.stop.best, learn.stop.waited, best.best, history(tmp_path), len(told), len(Told.kept)
    before, epochs = known(), learn.tuned_epochs
    assert before[0] >= 0 and len(before[3]) == 3 and 1 <= epochs == learn.stop.kept_epochs <= 3
    for _ in range(2):  # and all are there again
        assert len(learn.validate()) == 3
        scores, y = learn.get_preds()
        assert len(scores) == len(y) == 16 and known() == before
        assert all(cb.run for cb in learn.cbs)
    assert f'| epochs of fine-tuning | {epochs} |' in (learn.export(tmp_path/'classifier')/'README.md').read_text()
    learn.remove_cbs(cbs)
    learn.fine_tune(1)
    assert learn.tuned_epochs == epochs + 2


def test_what_was_not_fitted_is_looked_at_as_well():
    learn = learner(patience=2)
    assert len(learn.validate()) == 3 and len(learn.get_preds()[0]) == 16 and learn.tuned_epochs == 0


def test_a_run_that_is_taken_up_counts_all_its_epochs(tmp_path):
    assert tuned(learner, tmp_path, 6).tuned_epochs == 3


def test_after_lr_find_all_is_as_it_was(tmp_path):
    runs = [learner(patience=2, path=tmp_path) for _ in range(2)]
    runs[1].lr_find(num_it=12, show_plot=False)
    assert runs[1].tuned_epochs == 0
    for learn in runs: learn.fit_protocol()
    same_state(*runs)


class BreaksDown(torch.nn.CrossEntropyLoss):
    "It is no number from its 13th step on"
    steps = 0
    def forward(self, *args):
        self.steps += 1
        return super().forward(*args) * (1. if self.steps < 13 else torch.nan)


def test_lr_find_goes_on_where_the_loss_is_no_number(tmp_path):
    learn = learner(patience=2, path=tmp_path)
    learn.loss_func, before = BreaksDown(), copy.deepcopy(learn.model.state_dict())
    assert learn.lr_find(num_it=20, stop_div=False, show_plot=False).valley > 0
    assert learn.loss_func.steps == 20
    assert all(torch.equal(t, before[name]) for name, t in learn.model.state_dict().items())


# ---------------------------------------------------------------- handed on

@torch.no_grad()
@pytest.mark.parametrize('arch, small', [('test_resnet', False), ('test_convnext', False), ('test_vit', False),
                                         ('resnet10t', True)])
def test_a_folder_that_timm_loads(tmp_path, arch, small):
    x, y = stripes(12)
    size = 160 if arch == 'test_vit' else 32
    dls = image_dls((x, y), size=size, bs=4, valid=0.)
    learn = classifier_learner(encoder_for(dls, arch, small), dls, bs=4)
    learn.model.classes = ['a cat', 'Katze "ü"']
    folder = learn.export(tmp_path/'classifier')
    pictures = torch.rand(2, 3, size, size)
    expected = learn.model.eval()(pictures)
    for model in (timm.create_model(f'local-dir:{folder}', pretrained=True).eval(), load_classifier(folder)):
        torch.testing.assert_close(model(pictures), expected, rtol=1e-5, atol=1e-5)
        assert list(model.pretrained_cfg['label_names']) == learn.model.classes and model.num_classes == 2
        assert tuple(model.pretrained_cfg['input_size']) == (3, size, size)
    torch.testing.assert_close(load_encoder(folder)(pictures), learn.model.encoder(pictures), rtol=1e-5, atol=1e-5)
    config = json.loads((folder/'config.json').read_text())
    assert config['num_classes'] == 2 and config['label_names'] == learn.model.classes


@torch.no_grad()
@pytest.mark.parametrize('before, size', [(32, 48), (48, 32)])
def test_pictures_of_another_side_than_in_pretraining(tmp_path, before, size):
    "A ViT's position embeddings are resampled for them, in place, and so the folder can be written"
    torch.manual_seed(0)
    vit = make_encoder('test_vit', size=before)
    file = export_encoder(vit, tmp_path/'e.safetensors', 'test_vit', before, [.5] * 3, [.2] * 3)
    encoder, pictures = load_encoder(file), torch.rand(2, 3, size, size)
    seen = encoder(pictures)
    dls = image_dls(stripes(12, side=size), size=size, bs=4, valid=0., device='cpu')
    learn = classifier_learner(encoder, dls, bs=4, epochs=1)
    learn.check_export()
    assert learn.model.encoder is encoder and encoder.patch_embed.img_size == (size, size)
    torch.testing.assert_close(encoder.eval()(pictures), seen, rtol=1e-5, atol=1e-5)
    with torch.enable_grad(): learn.fit_protocol()
    made = load_classifier(learn.export(tmp_path/'classifier'))
    torch.testing.assert_close(made(pictures), learn.model.eval()(pictures), rtol=1e-4, atol=1e-4)


def test_what_timm_does_not_make(tmp_path):
    dls = loaders()
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    learn = contrastive_learner(dls, module, method='simclr').finetune(epochs=1)
    said(['timm makes no Sequential'], learn.export, tmp_path/'classifier')
