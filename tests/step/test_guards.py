"""Fits that end badly."""
import copy
import io
import math
from functools import partial

import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from helpers.learners import plain_learner, quick, small, tiny_model
from helpers.pairs import paired
from helpers.loops import paper_step, same_gradients
from helpers.pictures import ARCH, LR, Dots, KnownViews, Plain, plain_batches
from helpers.recording import After, Diary, interrupt, step_is_over
from torch import nn

from fastcontrast import guards
from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.evaluate.metrics import spread
from fastcontrast.guards import Collapse, FiniteLoss, batch_spread, chance_level
from fastcontrast.history import History
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import InfoNCE, NegCosine, NTXent
from fastcontrast.pairs import PairLoss
from fastcontrast.recipes import METHODS
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.step import OTHER, Step
from fastcontrast.targets import EMATarget, SharedTarget

SEED = 5


class TurnsNaN(nn.Module):
    "NT-Xent, until it is something else from step k on"
    symmetric = True
    def __init__(self, k: int, value: float = math.nan):
        super().__init__()
        self.calls, self.k, self.value = 0, k, value
    def forward(self, q, k):
        self.calls += 1
        return NTXent(0.5)(q, k) * (1 if self.calls <= self.k else self.value)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_fit_before_it_reaches_the_weights(value):
    learn = plain_learner(tiny_model(predictor=False), TurnsNaN(4, value), SharedTarget(), FiniteLoss(), Diary(),
                          batches=plain_batches(3))
    extra = After('before_fit', -1, lambda: None)
    with pytest.raises(InputError) as e: learn.fit(3, 0.0125, cbs=extra)
    text = str(e.value)
    assert '\n' not in text and 'epoch 1, step 1' in text and '0.0125' in text and str(value) in text
    assert len(learn.diary.weights) == 5
    for n, w in learn.diary.weights[-1].items():
        if 'running' not in n: assert torch.equal(w, learn.model.state_dict()[n]) and w.isfinite().all()
    assert extra not in learn.cbs and step_is_over(learn)
    learn.loss_func = PairLoss(NTXent(0.5))
    learn.fit(1, LR)  # and it can go on
    assert len(learn.diary.losses) == 3 and all(map(math.isfinite, learn.diary.losses))


def test_the_fit_stops_with_fastais_own_learner_too():
    learn = plain_learner(tiny_model(predictor=False), TurnsNaN(1), SharedTarget(), FiniteLoss(), cls=Learner)
    with pytest.raises(InputError, match='the loss is nan'): learn.fit(1, LR)


@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_backward', 'after_step', 'after_batch'])
def test_ctrl_c_ends_a_fit_in_good_order(event):
    ended = []
    class Ends(Callback):
        def after_fit(self): ended.append(True)
    learn = plain_learner(tiny_model(), InfoNCE(0.2), EMATarget(0.6), FiniteLoss(), Diary(), Ends(),
                          batches=plain_batches(4))
    extra = After(event, 2, interrupt)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, LR, cbs=extra)
    assert ended == [True] and extra not in learn.cbs and step_is_over(learn)
    assert len(learn.diary.weights) == 3
    before = {n: t.clone() for n, t in learn.model.state_dict().items()}
    assert all(t.isfinite().all() for t in before.values())
    learn.fit(1, LR)
    assert len(learn.diary.losses) == 4 and learn.stopped is None
    assert not torch.equal(before['encoder.0.weight'], learn.model.encoder[0].weight)


def test_ctrl_c_leaves_no_gradient_for_the_next_fit():
    batches = plain_batches(2)
    learn = plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget(), Diary(), batches=batches)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, LR, cbs=After('after_backward', 1, interrupt))
    twin = copy.deepcopy(learn.model)
    twin.zero_grad()
    learn.fit(1, LR)
    e = twin({'views': KnownViews()(batches[0][0])['views']})
    step = Step(keys={'final': e['views']['final'].z}, queries={'views': OTHER})
    paper_step(twin, PairLoss(InfoNCE(0.2))(e, step))
    same_gradients(learn.diary.grads[0], twin)


# --- a loss that is no number because something else is none

def told(learn, n=1, lr=LR, **kwargs) -> str:
    with pytest.raises(InputError) as e: learn.fit(n, lr, **kwargs)
    text = str(e.value)
    assert '\n' not in text and text.endswith('.')
    return text


@pytest.mark.parametrize('value,name', [(math.nan, 'NaN'), (math.inf, 'inf')])
@pytest.mark.parametrize('where', [0, 1])
def test_pictures_that_are_no_numbers_are_named(value, name, where):
    batches = plain_batches(3)
    batches[where][0][2, 1, 3, 3] = value
    text = told(plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget(), FiniteLoss(), batches=batches))
    assert f'in epoch 0, step {where}: the pictures of the batch hold {name}' in text and 'lr' not in text


class Zeroth(Plain):
    "A normalisation that divides nothing by nothing"
    def forward(self, x): return x * 0 / 0


@pytest.mark.parametrize('accumulate', [1, 2])
def test_views_that_are_no_numbers_are_named(accumulate):
    learn = quick('simclr')
    if accumulate > 1: learn = quick_in_parts('simclr')
    learn.normalize = Zeroth()
    text = told(learn)
    assert "the pictures are finite numbers, but the views 'views' made of them hold NaN" in text and 'lr' not in text


def quick_in_parts(name):
    dls = image_dls(Dots(16), bs=8, valid=0, workers=0, device='cpu')
    return contrastive_learner(dls, ARCH, small(name, 'cifar'), accumulate=2, small_input=False, knn_pictures=0)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_weights_that_were_no_numbers_before_are_named(value):
    learn = quick('moco_v3')
    name, p = [(n, p) for n, p in learn.model.named_parameters() if n.startswith('encoder') and p.ndim == 4][3]
    with torch.no_grad(): p[0, 0] = value
    assert f'{name} was not finite before training began; give other weights' in told(learn)


def test_weights_that_training_made_so_are_laid_to_the_learning_rate():
    text = told(quick('simclr', opt='sgd'), 4, 1e38)
    assert 'try a lower lr (it was 1e+38)' in text and text.endswith(' is no longer finite.') and 'encoder.' in text


def test_buffers_are_named_where_the_forward_pass_reads_them():
    learn = quick('simclr')
    norm = next(m for m in learn.model.encoder.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_var[0] = math.nan
    learn.fit(1, LR)  # in training mode nobody reads it
    class Frozen(Callback):
        order = 0
        def before_train(self): norm.eval()
    assert 'running_var was not finite before training began' in told(learn, cbs=Frozen())


# --- is it learning?

SILENT = dict(knn_pictures=0, small_input=False)


def alike(n: int = 16):
    "A data set of one picture"
    data = Dots(n)
    data.x = data.x[:1].repeat(n, 1, 1, 1)
    return image_dls(data, bs=8, valid=0.25, workers=0, device='cpu')


def dead(learn):
    "Its encoder sees nothing"
    with torch.no_grad():
        for p in learn.model.encoder.parameters(): p.zero_()
    return learn


def said(learn, n: int, capsys, fit=None) -> list[str]:
    "The warnings of a fit, which are what is printed"
    capsys.readouterr()
    try: (fit or learn.fit)(n, LR)
    finally: lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('warning')]
    assert lines == [f'warning: {text}' for text in learn.collapse.warnings] and len(lines) < 2
    return learn.collapse.warnings


def test_the_spread_is_that_of_the_table():
    z = torch.randn(3, 4, 7, 5) * 3 + 1
    each = [spread(view) for view in z.flatten(0, 1)]
    assert batch_spread(z).item() == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert batch_spread(z.bfloat16()).dtype == torch.float32 and batch_spread(torch.zeros(2, 4, 3)) == 0


@pytest.mark.parametrize('name', METHODS)
def test_a_dead_encoder_is_told_of(name, capsys):
    text, = said(dead(quick(name)), 2, capsys)
    assert "the features of all pictures are the same at the level 'final'" in text


@pytest.mark.parametrize('name, precision', paired(METHODS, ['fp32', 'bf16']))
def test_what_learns_says_nothing(name, precision, capsys, request):
    if precision == 'bf16': request.getfixturevalue('bf16')
    learn = contrastive_learner(image_dls(Dots(32), bs=8, valid=0, device='cpu'), ARCH, small(name, 'cifar'),
                                precision=precision, **SILENT)
    assert said(learn, 2, capsys, learn.fit_contrastive) == []
    assert list(learn.collapse.start) == ['final'] and len(learn.collapse.looks['final']) == 2


def test_pictures_that_are_one_picture(capsys):
    text, = said(contrastive_learner(alike(), ARCH, **SILENT), 2, capsys)
    assert text.startswith('the pictures of every batch are one and the same')


@pytest.mark.parametrize('name,lr,words', [
    ('moco_v2', 1000, "their spread fell from"), ('byol', 1e9, 'the loss is')])
def test_a_learning_rate_that_is_far_too_large(name, lr, words, capsys):
    torch.manual_seed(0)
    dls = image_dls('digits', size=16, bs=256, device='cpu')
    learn = contrastive_learner(dls, 'test_resnet', name, knn_pictures=0, stop_on_collapse=True)
    with pytest.raises(InputError, match=words): learn.fit_contrastive(3, lr=lr)


def falls(*cbs, levels=('final',)):
    "A learner whose embeddings at levels are the same from the second epoch on"
    learn = quick('byol', cbs=cbs)
    class Falls(Callback):
        order = 0
        def before_batch(self):
            for level in levels if self.learn.epoch else ():
                last = self.learn.model.heads[level].projector[-1]
                with torch.no_grad():
                    last.weight.zero_()
                    last.bias.fill_(1.)
    learn.add_cb(Falls())
    return learn


def test_embeddings_that_fall_are_told_of_once_a_fit_and_in_the_next_fit_again(capsys):
    learn = falls()
    text, = said(learn, 6, capsys)
    assert "the same at the level 'final'" in text and text in str(learn.collapse.state_dict()['warnings'])
    assert 'try a lower lr' in text and '\n' not in text
    with learn.no_logging(): learn.fit(3, 1e-6)
    assert learn.collapse.warnings and 'warning' not in capsys.readouterr().out


@pytest.mark.parametrize('speedup', [[], [CombinePatches()]], ids=str)
def test_a_level_is_named(speedup, capsys):
    learn = falls(IntermediateLoss(('layer2', 'layer3')), *speedup, levels=('layer3',))
    text, = said(learn, 4, capsys)
    assert "at the level 'layer3'" in text


def test_levels_that_only_some_steps_have(capsys):
    learn = falls(IntermediateLoss(), PartialBackprop(), HardRegions('layer2'), levels=('layer2',))
    text, = said(learn, 20, capsys)
    assert "at the level 'layer2'" in text
    assert set(learn.collapse.start) <= set(learn.model.levels())


def test_the_fit_ends_if_that_is_wished(tmp_path):
    "After an epoch, which stands in its table too"
    learn = contrastive_learner(alike(), ARCH, stop_on_collapse=True, **SILENT)
    table = History(tmp_path/'history.csv')
    for _ in range(2):
        with pytest.raises(InputError, match='one and the same picture'): learn.fit(3, LR, cbs=table)
        assert len(learn.recorder.values) == 1 and step_is_over(learn)
        assert [row['epoch'] for row in table.rows] == [0] and (tmp_path/'history.csv').read_text().count('\n') == 2
        with pytest.raises(InputError): learn.fit(1, LR, cbs=[table, Refuses()])
        assert len(table.rows) == 1


class Refuses(Callback):
    order = -100
    def before_fit(self): raise InputError('no.')


def test_it_looks_in_a_levels_first_step_every_fifty_and_the_last_of_an_epoch(monkeypatch):
    seen = []
    monkeypatch.setattr(Collapse, 'look', lambda self, level, e: seen.append((self.epoch, self.iter)) or
                        self.start.setdefault(level, torch.ones(2)) is None or self.looks.setdefault(level, []))
    model = tiny_model(predictor=False)
    plain_learner(model, NTXent(0.5), SharedTarget(), Collapse(), batches=plain_batches(104)).fit(2, 1e-3)
    assert seen == [(0, i) for i in (0, 49, 99, 103)] + [(1, i) for i in (49, 99, 103)]


def test_looking_changes_nothing():
    def weights(*cbs):
        torch.manual_seed(3)
        learn = plain_learner(tiny_model(), NegCosine(), EMATarget(0.9), *cbs)
        learn.fit(3, LR)
        return learn.model.state_dict(), torch.rand(1)
    (first, draw), (other, same) = weights(), weights(Collapse())
    assert all(torch.equal(t, other[n]) for n, t in first.items()) and draw == same


def test_a_fit_that_is_taken_up_knows_what_it_knew():
    learn = falls()
    learn.fit(1, LR)
    file = io.BytesIO()
    torch.save(learn.collapse.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = falls()
    class Loads(Callback):
        order = 70
        def before_train(self):
            if self.learn.epoch == 0: other.collapse.load_state_dict(state)
    with other.no_logging(): other.fit(1, LR, cbs=Loads())
    assert torch.equal(other.collapse.start['final'], learn.collapse.start['final'])
    assert len(other.collapse.looks['final']) == 2  # in the fit before, and in this one
    other.collapse.load_state_dict(state | dict(warnings=['said']))
    other.collapse.after_epoch()
    assert other.collapse.warnings == ['said']
    assert falls().collapse.ends is False
    other.collapse.ends = True  # one that is to end what another only warned of
    other.collapse.load_state_dict(state | dict(warnings=['said'], differ=torch.tensor(False)))
    with pytest.raises(CancelFitException): other.collapse.after_epoch()
    assert 'one and the same picture' in str(other.stopped)


def test_what_one_process_finds_is_told_and_ends_the_fit_of_all(monkeypatch, capsys):
    monkeypatch.setattr(guards, 'gather_objects', lambda x: [x, 'the other process found it.'])
    assert said(quick('simclr'), 2, capsys) == ['the other process found it.']
    learn = contrastive_learner(alike(), ARCH, stop_on_collapse=True, **SILENT)
    monkeypatch.setattr(guards, 'gather_objects', lambda x: ['', x])
    with pytest.raises(InputError, match='one and the same'): learn.fit(1, LR)


# --- kNN at chance

@pytest.mark.parametrize('labels,level', [
    ([0, 1] * 50, 0.6), ([-1] * 50 + [0, 1] * 50, 0.6), ([0] * 80 + [1] * 20, 0.88), ([0] * 9, None), ([], None),
    ([-1], None), ([0, 1, 0], None)])
def test_chance(labels, level):
    found = chance_level(torch.tensor(labels, dtype=torch.long))
    assert found is None if level is None else found == pytest.approx(level)


def judged(values, chance=0.2) -> tuple:
    "A learner whose kNN is this, epoch by epoch"
    def knn(h): return values[min(len(learn.recorder.values), len(values) - 1)]
    learn = contrastive_learner(image_dls(Dots(16), bs=8, valid=0, workers=0, device='cpu'), ARCH, 'simclr',
                                metrics=[knn], small_input=False)
    learn.collapse.chance = chance
    return learn


@pytest.mark.parametrize('values,epochs,first', [
    ([0.1], 5, 4), ([0.2], 6, 4), ([0.1], 4, None), ([0.1], 18, 5), ([0.1] * 4 + [0.3], 9, None), ([0.3], 6, None),
    ([0.3, 0.3] + [0.1] * 9, 8, 6), ([math.nan], 6, None)])
def test_knn_that_stays_at_chance_is_told_of(values, epochs, first, capsys):
    learn, when = judged(values), []
    class Sees(Callback):
        order = 99
        def after_epoch(self):
            if self.learn.collapse.warnings: when.append(self.learn.epoch)
    learn.add_cb(Sees())
    found = said(learn, epochs, capsys)
    assert (when[:1] or [None]) == [first] and len(found) == (first is not None)
    if found: assert f'kNN is {values[-1]:.3f} after {first + 1} epochs' in found[0] and '0.200' in found[0]


def test_the_chance_level_is_that_of_the_pictures_that_are_looked_at():
    dls = image_dls(Dots(200), bs=8, valid=0.5, workers=0, device='cpu')
    share = partial(contrastive_learner, dls, ARCH, small_input=False)
    assert share().collapse.chance == chance_level(dls.valid.labels())
    assert share(knn_pictures=40).collapse.chance == chance_level(dls.valid.ordered(40).labels())
    assert share(knn_pictures=0).collapse.chance is None
