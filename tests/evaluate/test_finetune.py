"Fine-tuning: which labels, what learns, by which steps, and how good it becomes"
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from helpers.folders import dls_of, image_folder
from helpers.pictures import ARCH
from helpers.refusals import refusal, said
from helpers.stripes import encoder_for, loaders, stripes
from torch import nn

from fastcontrast.core import InputError, MissingPath
from fastcontrast.data import image_dls
from fastcontrast.evaluate.finetune import (PROTOCOLS, Classifier, LabelledViews, Protocol, chosen_labels,
                                            classifier_learner, rate_groups, fifths, finetune)
from fastcontrast.learner import contrastive_learner

# ---------------------------------------------------------------- which labels

def test_labels_of_a_share_are_those_that_pretraining_may_know():
    known, every = loaders(labels=0.5), loaders()
    expected = known.train.data.labeled.nonzero().squeeze(1)
    assert torch.equal(chosen_labels(every.train.data, 0.5, 0), expected)
    assert torch.equal(chosen_labels(known.train.data, None, 0), expected)
    assert torch.equal(chosen_labels(every.train.data, None, 0), torch.arange(36))
    assert not torch.equal(chosen_labels(every.train.data, 0.5, 1), expected)


def test_so_many_labels_of_each_class():
    data = loaders().train.data
    indices = chosen_labels(data, 3, 0)
    assert data.y[indices].bincount().tolist() == [3, 3]
    assert torch.equal(indices, chosen_labels(data, 3, 0)) and not torch.equal(indices, chosen_labels(data, 3, 1))


@pytest.mark.parametrize('labels, words', (
    (0, 'labels=0 must'), (19, 'labels=19 must'), (0., 'labels=0.0 must'), (1.1, 'labels=1.1 must'),
    ((1, 2), 'labels=(1, 2) must'), (True, 'labels=True must'), (['1', 'x'], "labels[1] is 'x': no picture has it")))
def test_labels_that_cannot_be(labels, words):
    said([words], finetune, nn.Identity(), loaders(), labels)


def test_labels_of_pictures_that_are_named(tmp_path):
    data = loaders().train.data
    assert torch.equal(chosen_labels(data, 'all', 0), torch.arange(36))
    names = [data.names[i] for i in (3, 8, 30)]
    file = tmp_path/'names.txt'
    file.write_text('# of three\n' + '\n'.join(names) + '\n')
    for labels in (names, tuple(names), file, str(file)): assert chosen_labels(data, labels, 0).tolist() == [3, 8, 30]
    with pytest.raises(MissingPath, match='give labels a share'): chosen_labels(data, tmp_path/'none.txt', 0)
    held = [name for name in map(str, range(48)) if name not in data.names]
    file.write_text('\n'.join([*held, *names]))
    for labels in ([*names, *held], file): assert chosen_labels(data, labels, 0).tolist() == [3, 8, 30]
    file.write_text('48')
    assert f"line 1 of '{file}' is '48': no picture has it" in str(pytest.raises(
        InputError, chosen_labels, data, file, 0).value)


def test_names_of_pictures_that_training_does_not_see(tmp_path):
    "Held out, or broken: in a list they are known, as they are to image_dls"
    folder = image_folder(tmp_path/'p', dict(a=6, b=6))
    (folder/'a/broken.png').write_bytes(b'')
    data = dls_of(folder, valid=0.3).train.data
    names = ['a/broken.png', 'b/000.png', 'a/001.png', 'b/003.png', 'a/005.png']
    (tmp_path/'names.txt').write_text('\n'.join(names))
    for labels in (names, tmp_path/'names.txt'):
        assert {data.names[i] for i in chosen_labels(data, labels, 0).tolist()} == {*names} & {*data.names}
    every = [*names[:1], *(f'{c}/{i:03}.png' for c in 'ab' for i in range(6))]
    assert len(data) < 12 and chosen_labels(data, every, 0).tolist() == [*range(len(data))]
    said(["labels[1] is 'a/x.png': no picture has it"], chosen_labels, data, ['b/000.png', 'a/x.png'], 0)


def test_rates_that_are_given():
    dls = loaders()
    def shares(**settings):
        groups = classifier_learner(encoder_for(dls), dls, bs=16, **settings).opt.opt.param_groups
        return [group['share'] for group in groups[:-2]]
    assert shares() == [pytest.approx(1)] and shares(encoder_lr=0.) == []
    assert shares(lr=0.2, encoder_lr=0.05) == [pytest.approx(0.25)]
    falling = shares(lr=0.2, encoder_lr=0.1, decay=0.5)
    assert max(falling) == pytest.approx(0.5) and min(falling) < 0.1


def test_what_cannot_be_fine_tuned():
    x, y = stripes()
    said(['fine-tuning needs labels'], finetune, nn.Identity(), image_dls(x, size=16, bs=16))
    for words, settings in (('did you mean linear', dict(protocol='linaer')), ('epochs=0', dict(epochs=0)),
                            ('lr=-1', dict(lr=-1)), ('bs=1', dict(bs=1))):
        said([words], finetune, nn.Identity(), loaders(), **settings)
    said(['image_dls'], finetune, nn.Identity(), [1])
    for words, settings in (('encoder_lr=-1', dict(encoder_lr=-1)), ('decay=2', dict(decay=2)),
                            ('patience=0', dict(patience=0)), ('seed=-1', dict(seed=-1)),
                            ("'0' has one alone", dict(labels=1, patience=3))):
        said([words], finetune, nn.Identity(), loaders(), **settings)
    one_class = [name for name, c in zip(loaders().train.data.names, loaders().train.data.y.tolist()) if c]
    said([f"all {len(one_class)} labels are of the class '1'"], finetune, nn.Identity(), loaders(), one_class)


def test_encoders_that_do_not_fit():
    dls = loaders()
    grey = image_dls(stripes(channels=1), size=16, bs=16, channels=1)
    assert 'takes no pictures with 1 channels and a side of 16 pixels' in refusal(finetune, encoder_for(dls), grey)
    tuned = Classifier(encoder_for(dls), 96, 'ab')
    for model in (tuned, timm.create_model(ARCH, num_classes=2)):
        said(['this is a classifier, which gives scores'], finetune, model, dls)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for model in (plain, nn.Identity()): said(['does not say for what pictures it is'], finetune, model, dls)
    maps, picky = encoder_for(dls), encoder_for(dls)
    maps.global_pool = nn.Identity()
    said(['gives no pooled feature'], finetune, maps, dls)
    def forward(x): raise ValueError("I want more of them")
    picky.forward = forward
    said(['takes no pictures with 3 channels', 'I want more of them'], finetune, picky, dls)


def test_an_encoder_that_timm_made_for_grey():
    "It describes three channels"
    grey = image_dls(stripes(channels=1), size=16, bs=16, channels=1)
    encoder = encoder_for(grey)
    said_mean = encoder.pretrained_cfg['mean']
    learn = finetune(encoder, grey, epochs=1)
    assert len(said_mean) == 3 and learn.model.pretrained_cfg['mean'] == pytest.approx([sum(said_mean) / 3])


# ---------------------------------------------------------------- what learns

def test_an_encoder_stands_still():
    dls = loaders()
    encoder = encoder_for(dls)
    before = copy.deepcopy(encoder.state_dict())
    learn = finetune(encoder, dls, protocol='linear', epochs=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learn.model.encoder.state_dict().items())
    assert learn.model.head.weight.grad is not None or learn.opt.opt.state  # and the layer on top has learned
    assert not learn.model.encoder.training
    assert all(p.requires_grad for p in encoder.parameters())  # elsewhere it may learn again


def test_the_pretrained_encoder_stays_as_it_is():
    learn = contrastive_learner(loaders(), ARCH)
    before = copy.deepcopy(learn.model.state_dict())
    tuned = learn.finetune(epochs=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learn.model.state_dict().items())
    assert any(not torch.equal(tensor, before[f'encoder.{name}'])
               for name, tensor in tuned.model.encoder.state_dict().items())


def test_the_protocols_of_the_papers():
    at = {name: [protocol(share) for share in (0.01, 0.1)] for name, protocol in PROTOCOLS.items()}
    assert [[p.epochs for p in at[name]] for name in ('linear', 'semi', 'full')] == [[90, 90], [60, 20], [60, 30]]
    assert [[p.encoder_lr for p in at[name]] for name in ('linear', 'semi', 'full')] == [[0, 0], [0, 1e-6], [.05, .05]]
    assert at['full'][0].lr * 4096 / 256 == at['linear'][0].lr == 0.8 and not at['linear'][0].scaled
    assert [fifths(t) for t in (0, .59, .6, .79, .8, 1)] == [1, 1, .2, .2, .04, .04]


def test_few_pictures_have_a_thousand_steps_unless_somebody_says_how_many_epochs():
    dls = loaders()
    def epochs(**settings): return classifier_learner(encoder_for(dls), dls, protocol='linear', **settings).epochs
    assert epochs(bs=12) == 334 and epochs(bs=12, epochs=7) == 7  # of 36 pictures: three steps an epoch
    assert epochs(bs=3) == 90  # the protocol's are more


def test_rates_of_blocks():
    dls = loaders()
    model = Classifier(encoder_for(dls), 96, 'ab')
    flat = rate_groups(model, Protocol(1, lr=0.1, encoder_lr=0.02))
    assert [group['share'] for group in flat] == pytest.approx([0.2] * (len(flat) - 2) + [1, 1])
    falling = rate_groups(model, Protocol(1, lr=0.1, encoder_lr=0.1, decay=0.5))
    every = [p for group in falling for p in group['params']]
    assert {id(p) for p in every} == {id(p) for p in model.parameters()} and len(every) == len({*map(id, every)})
    by_share = {id(p): group['share'] for group in falling for p in group['params']}
    order = [by_share[id(p)] for p in (next(model.encoder.parameters()), model.encoder.layer1[0].conv1.weight,
                                       model.encoder.layer4[0].conv1.weight, model.head.weight)]
    assert order == sorted(order) and order[0] < order[2] <= 1 == order[3]


class Rates(Callback):
    "The learning rates of the groups in every step: the encoder's, and those of the layer on top"
    def before_fit(self): self.steps = []
    def before_step(self):
        lrs = [group['lr'] for group in self.opt.opt.param_groups]
        self.steps.append((lrs[:-2], lrs[-2:]))


FITS = {
    'fit': lambda learn, rates: learn.fit(1, cbs=rates), 'at a rate': lambda learn, rates: learn.fit(1, 0.1, cbs=rates),
    'one_cycle': lambda learn, rates: learn.fit_one_cycle(1, 0.1, cbs=rates),
    'flat_cos': lambda learn, rates: learn.fit_flat_cos(1, 0.1, cbs=rates),
    'fine_tune': lambda learn, rates: learn.fine_tune(1, cbs=rates)}

@pytest.mark.parametrize('fit', FITS.values(), ids=FITS)
def test_in_every_fit_the_encoder_learns_at_its_share(fit):
    dls, rates = loaders(), Rates()
    learn = classifier_learner(encoder_for(dls), dls, bs=12, lr=0.2, encoder_lr=0.02, decay=0.5)
    shares = [group['share'] for group in learn.opt.opt.param_groups[:-2]]
    assert max(shares) == pytest.approx(0.1) and min(shares) < 0.02
    fit(learn, rates)
    assert len(rates.steps) == 3
    for encoder, (weights, biases) in rates.steps:
        assert weights == biases > 0 and encoder == pytest.approx([weights * share for share in shares])
    if fit is FITS['fit']: assert weights == 0.2


@pytest.mark.parametrize('lr, lowest', [(slice(0.001, 0.1), 0.001), (slice(0.1), 0.01)], ids=str)
@pytest.mark.parametrize('decay', [1., 0.5])
def test_a_slice_of_rates_goes_up_to_the_layer_on_top(lr, lowest, decay):
    dls, rates = loaders(), Rates()
    learn = classifier_learner(encoder_for(dls), dls, bs=12, decay=decay)
    learn.fit(1, lr, cbs=rates)
    encoder, on_top = rates.steps[0]
    assert on_top == [0.1, 0.1] and min(encoder) == pytest.approx(lowest) and max(encoder) < 0.1
    shares = [group['share'] for group in learn.opt.opt.param_groups[:-2]]
    by_share = [rate for _, rate in sorted(zip(shares, encoder))]
    assert by_share == sorted(encoder) and len({*encoder}) == (1 if lr.start is None else len({*shares}))


def test_a_slice_where_the_encoder_stands_still():
    dls, rates = loaders(), Rates()
    classifier_learner(encoder_for(dls), dls, protocol='linear', bs=12).fine_tune(1, 0.1, lr_mult=10, cbs=rates)
    assert rates.steps and all(not encoder and weights == biases for encoder, (weights, biases) in rates.steps)


def test_what_is_frozen():
    dls = loaders()
    learn = classifier_learner(encoder_for(dls), dls, bs=12)
    def moved():
        before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
        learn.fit(1, 0.1)
        return {name for name, p in learn.model.named_parameters() if not torch.equal(p, before[name])}
    filters = {name for name, p in learn.model.named_parameters() if p.ndim == 4}
    learn.freeze()
    frozen = moved()
    assert {'head.weight', 'head.bias'} <= frozen and filters and not frozen & filters
    learn.unfreeze()
    assert moved() >= filters | {'head.weight', 'head.bias'}
    said(['freeze_to(-2)', 'unfreeze()'], learn.freeze_to, -2)


# ---------------------------------------------------------------- by which steps

def test_the_first_steps_are_those_of_plain_pytorch():
    dls = loaders()
    protocol, views = Protocol(1, lr=0.1, encoder_lr=0.05, bs=16), []
    encoder = encoder_for(dls)
    mine = copy.deepcopy(encoder)

    class Seen(LabelledViews):
        "Keeps what the classifier sees"
        order = 20
        def __init__(self): pass
        def before_fit(self): self.layer = copy.deepcopy(self.model.head)
        def before_batch(self):
            if self.training: views.append((self.xb[0].clone(), self.yb[0].clone()))

    seen = Seen()
    learn = finetune(encoder, dls, protocol=protocol, epochs=1, bs=16, precision='fp32', cbs=seen)
    model = Classifier(mine, 96, 'ab').train()
    model.head = seen.layer
    optimizer = torch.optim.SGD([dict(params=mine.parameters(), lr=0.05), dict(params=model.head.parameters())],
                                lr=0.1, momentum=0.9, nesterov=True)
    steps, base = len(views), [group['lr'] for group in optimizer.param_groups]
    assert steps == 2
    for i, (x, y) in enumerate(views):
        share = (1 + torch.tensor(torch.pi * i / steps).cos().item()) / 2
        for group, lr in zip(optimizer.param_groups, base): group['lr'] = lr * share * 16 / 256
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for (name, tensor), own in zip(learn.model.state_dict().items(), model.state_dict().values()):
        torch.testing.assert_close(tensor, own, rtol=1e-4, atol=1e-6, msg=name)


# ---------------------------------------------------------------- how good it becomes

@pytest.mark.parametrize('channels', (1, 3, 4))
def test_it_learns(channels):
    x, y = stripes(64, channels=channels, kinds=3)
    dls = image_dls((x, y), size=16, bs=16, valid=0.25, channels=channels)
    torch.manual_seed(0)
    learn = contrastive_learner(dls, ARCH).finetune(lr=0.05, epochs=12, bs=16)
    _, accuracy = learn.validate()
    assert accuracy > 0.8
    scores, y = learn.get_preds()
    assert scores.argmax(1).eq(y).float().mean().item() == pytest.approx(accuracy)


@pytest.mark.parametrize('sizes', [((40, 40), (60, 40)), ((60, 40), (40, 40))], ids=str)
def test_one_part_of_squares_and_one_of_whole_pictures(tmp_path, sizes):
    "Their batches have aspects or not, each its own"
    train, valid = (image_folder(tmp_path/name, dict(a=5, b=5), size=size) for name, size in zip('xy', sizes))
    dls = dls_of(train, valid=valid)
    assert sorted([dls.train.whole, dls.valid.whole]) == [False, True]
    tuned = finetune(encoder_for(dls), dls, 'all', epochs=1, bs=4)
    loss, accuracy = tuned.validate()
    seen, y = tuned.get_preds()
    assert accuracy == seen.argmax(1).eq(y).float().mean().item() and y.tolist() == [0] * 5 + [1] * 5
    assert [*tuned.recorder.values[-1][-2:]] == pytest.approx([loss, accuracy])


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_every_protocol_learns(protocol):
    "As they are, from few labels too: an encoder that was never trained tells these stripes apart"
    x, y = stripes(144, kinds=3)
    dls = image_dls((x, y), size=16, bs=16, valid=2 / 3)
    torch.manual_seed(0)
    learn = contrastive_learner(dls, ARCH).finetune(protocol=protocol, epochs=100 if protocol == 'linear' else 30)
    assert learn.validate()[1] > 0.5  # by chance a third of 96


def test_fastais_trackers_have_a_number_after_every_epoch(tmp_path):
    dls, best = loaders(), SaveModelCallback(monitor='accuracy')
    learn = finetune(encoder_for(dls), dls, epochs=3, judge_every=2, cbs=best, path=tmp_path)
    assert len(learn.recorder.values) == 3 and best.best == max(row[-1] for row in learn.recorder.values)


def test_results_are_shown():
    dls = loaders()
    learn = classifier_learner(encoder_for(dls), dls)
    with torch.no_grad():  # all are taken for '0'
        learn.model.head.weight.zero_()
        learn.model.head.bias[0] = 1
    for ds_idx, part in enumerate((learn.dls.train, learn.dls.valid)):
        titles = [axis.get_title() for axis in learn.show_results(9, ds_idx).axes]
        assert titles == ['0, not 1' if c else '0' for c in part.ordered(9).labels().tolist()]


def test_what_predicts_is_named():
    dls = loaders()
    learn = classifier_learner(encoder_for(dls), dls)
    for function in (learn.predict, learn.dls.test_dl): said(["predict(learn, 'x.jpg')"], function, 'x.jpg')


def test_without_pictures_to_judge_by():
    x, y = stripes()
    learn = finetune(encoder_for(loaders()), image_dls((x, y), size=16, bs=16, valid=0.), epochs=1)
    assert len(learn.dls.valid) == 0


def test_fine_tune_says_where_it_is():
    with pytest.raises(InputError, match=r'learn\.finetune'): contrastive_learner(loaders(), ARCH).fine_tune(1)
