"""`contrastive_learner` from outside: what it refuses, what it puts together, what a fit prints, and that it trains."""
import copy
import math
import pickle
import re
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from helpers.learners import small
from helpers.pictures import ARCH
from helpers.refusals import refusal
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

import fastcontrast.all
from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.evaluate.cost import Cost
from fastcontrast.evaluate.metrics import spread
from fastcontrast.evaluate.rankme import rankme
from fastcontrast.export import encoder_info, load_encoder
from fastcontrast.learner import ContrastiveLearner, contrastive_learner
from fastcontrast.losses import DCL, DCLW, InfoNCE, NTXent, dcl
from fastcontrast.models import make_encoder
from fastcontrast.optim import AdamW, Sgd, parameter_groups, warmup_then
from fastcontrast.recipes import METHODS, Recipe, byol, fast, moco_v3, pick_setting, simclr, swav
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt
from fastcontrast.targets import EMATarget, SharedTarget, Target

SEED = 11


class Dots:
    "A data set of random pictures; classes of different brightness"
    def __init__(self, n: int, size: int = 16, classes: int = 2, present: int | None = None):
        g = torch.Generator().manual_seed(1)
        present = present or classes
        y = [i % max(present, 1) for i in range(n)]
        self.x = torch.stack([torch.randint(0, 120 + 120 * (c % 2), (3, size, size), generator=g, dtype=torch.uint8)
                              for c in y])
        if classes: self.targets, self.classes = y, [f'class {c}' for c in range(classes)]
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return (self.x[i], self.targets[i]) if hasattr(self, 'targets') else self.x[i]


def dots(n=24, bs=8, valid=0.25, size=None, **kwargs):
    return image_dls(Dots(n, **kwargs), size=size, bs=bs, valid=valid, workers=0, device='cpu')


@pytest.fixture(scope='module')
def dls(): return dots()


@pytest.fixture(scope='module')
def digits(): return image_dls('digits', size=16, bs=128, device='cpu')


def make(dls, arch='test_resnet', **kwargs):
    "A learner that is quick on a CPU"
    return contrastive_learner(dls, arch, **{'small_input': False, **kwargs})


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda learn: pickle.loads(pickle.dumps(learn))],
                         ids=['deepcopy', 'pickle'])
@pytest.mark.parametrize('method, speedups', [('fast', [SuNCEt]), ('moco_v3', [IntermediateLoss, HardRegions])])
def test_a_copy_is_a_learner_of_its_own(method, speedups, copied):
    "Before its first fit and after; it trains as the other does, and shares nothing with it"
    dls = image_dls(Dots(24, size=32), bs=8, valid=0.25, labels='all', workers=0, device='cpu')
    cbs = [Cost(), *(speedup() for speedup in speedups)]
    learn = make(dls, method=method, knn_pictures=8, small_input=True, cbs=cbs)
    def fit(learn):
        torch.manual_seed(SEED)
        with learn.no_logging(): learn.fit_contrastive(1)
        rows = [dict(zip(learn.recorder.metric_names[1:], row)) for row in learn.recorder.values]
        clocks = ('seconds', 'images_s', 'memory_mb', 'time')
        return {key: value for key, value in rows[-1].items() if key not in clocks}
    for epochs in (1, 2):
        other, before = copied(learn), copy.deepcopy(learn.model.state_dict())
        row = fit(other)
        assert all(torch.equal(x, before[name]) for name, x in learn.model.state_dict().items())
        assert fit(learn) == row and {'knn', 'tflop'} <= row.keys()
        for name, x in learn.model.state_dict().items(): assert torch.equal(x, other.model.state_dict()[name]), name
        assert learn.recorder.epochs == other.recorder.epochs == epochs
    n = len(learn.metrics)
    other.remove_cb(other.cost)
    assert len(learn.metrics) == n > len(other.metrics)


class Steps(Callback):
    "Losses and learning rates, step by step"
    order = 70
    def before_fit(self): self.losses, self.lrs = [], []
    def before_step(self):
        self.losses.append(self.loss.item())
        self.lrs.append([h['lr'] for h in self.opt.hypers])


# --- refusals

@pytest.mark.parametrize('kwargs,words', [
    (dict(method='moco_v4'), 'moco_v3'), (dict(method='simclr_v1'), 'simclr'), (dict(method=3), 'method=3'),
    (dict(method=dict), 'no recipe'),
    (dict(loss='dlc'), 'dcl'), (dict(loss='ntxent'), 'nt_xent'), (dict(loss=0.1), 'loss=0.1'),
    (dict(arch='resnet81'), 'resnet'), (dict(arch='convnext_atto'), 'size=16'),
    (dict(arch='convnext_atto', small_input=True), 'small_input'),
    (dict(arch='resnet18', small_input=True, pretrained=True), 'pretrained'),
    (dict(cbs=[EMATarget, SharedTarget()]), 'EMATarget(0.99'),
    (dict(cbs=[SharedTarget, SharedTarget]), 'both the target'),
    (dict(precision='fp61'), 'fp32'), (dict(precision='fp16'), 'CUDA'),
    (dict(method=simclr(views='byoll')), 'byol'), (dict(method=simclr(opt='lras')), 'lars')])
def test_refused_in_a_sentence(dls, kwargs, words): assert words in refusal(make, dls, **kwargs)


class Old(NTXent):
    "A loss by the protocol of earlier versions"
    def at_epoch(self, epoch): pass


class OldUpdate(nn.Module):
    "The same, by somebody else"
    def forward(self, q, k): return (q - k).square().mean()
    def update(self, k): pass


@pytest.mark.parametrize('loss,words', [(Old, 'prepare(epoch)'), (OldUpdate, 'update(q, k)')])
def test_losses_of_earlier_versions_are_refused(dls, loss, words):
    for given in (dict(loss=loss), dict(loss=loss()), dict(method=simclr(loss=loss)), dict(method=simclr(loss=loss()))):
        assert words in refusal(make, dls, **given)


def test_other_data_are_refused():
    for other in (None, [1, 2], DataLoaders([], [], device='cpu')): assert 'image_dls' in refusal(make, other)


def test_recipes_refuse_unknown_fields_and_settings():
    assert 'projector' in refusal(simclr, projecter=(8,))
    assert 'lr' in refusal(moco_v3, name='mine')
    assert 'cifar' in refusal(moco_v3, 'cifar10')


@pytest.mark.parametrize('n_epoch', [0, -1, 1.5, '3', None])
def test_epochs_are_whole_numbers(dls, n_epoch):
    learn = make(dls)
    assert f'n_epoch={n_epoch!r}' in refusal(learn.fit, n_epoch)
    assert f'n_epoch={n_epoch!r}' in refusal(learn.fit_contrastive, n_epoch)


@pytest.mark.parametrize('arch', [None, 5])
def test_an_arch_that_is_no_name(dls, arch): assert 'architecture' in refusal(contrastive_learner, dls, arch)


@pytest.mark.parametrize('loss', [fastcontrast.all.dcl, partial(DCL, 0.1), DCL])
def test_a_loss_works_or_is_refused_at_once(dls, loss):
    try: learn = make(dls, loss=loss)
    except InputError as e: assert 'loss' in str(e)
    else: learn.fit(1, 1e-3)


@pytest.mark.parametrize('changes', [
    dict(loss=DCL(0.3)), dict(target=EMATarget(0.9)), dict(loss=partial(DCL, 0.3), target=partial(EMATarget, 0.9))])
def test_recipes_take_makers_and_made_things(dls, changes):
    try: learn = make(dls, method=simclr(**changes))
    except InputError: return  # a refusal is as good
    assert type(learn.loss_func.loss) is (DCL if 'loss' in changes else NTXent)
    assert [type(cb) for cb in learn.cbs
            if isinstance(cb, Target)] == [EMATarget if 'target' in changes else SharedTarget]


def test_a_recipe_of_ones_own(dls):
    mine = Recipe('mine', 'nowhere', projector=(16, 8), loss=partial(InfoNCE, 0.3), target=SharedTarget,
                  views='simclr_cifar', lr=0.1, opt='sgd')
    learn = make(dls, method=mine)
    learn.fit_contrastive(1)
    assert learn.recipe.name == 'mine'


def test_no_small_stem_for_what_only_sounds_like_a_resnet(dls):
    learn = contrastive_learner(dls, 'resnetv2_18' if timm.is_model('resnetv2_18') else 'resnetv2_50')
    assert not learn.small_input


# --- forms of a method and a loss

@pytest.mark.parametrize('method', ['moco_v3', moco_v3, moco_v3()])
def test_forms_of_a_method(dls, method):
    learn = make(dls, method=method)
    assert learn.recipe == moco_v3().resolve('small', dls.size, 'cnn') and isinstance(learn, ContrastiveLearner)
    assert learn.model.per_view and repr(learn.ema_target) == "EMATarget(0.99, 'cosine', ahead=1)"
    assert type(learn.loss_func.loss) is InfoNCE and list(learn.loss_func.losses) == ['final']
    assert learn.loss_func.loss.scale == pytest.approx(4 * 0.2)


@pytest.mark.parametrize('loss', ['dcl', DCL, DCL()])
def test_forms_of_a_loss(dls, loss):
    learn = make(dls, loss=loss)
    assert type(learn.loss_func.loss) is DCL and learn.loss_func.loss.temp == 0.1


def test_a_given_loss_is_the_one_that_is_used(dls):
    loss = DCLW(0.3, 0.7)
    for method in ('simclr', 'moco_v3'):
        own = make(dls, method=method, loss=loss).loss_func.loss
        assert repr(own) == repr(loss) and own is not loss  # what a loss remembers is its learner's
    assert type(make(dls).loss_func.loss) is NTXent and make(dls).loss_func.loss.temp == 0.2


@pytest.mark.parametrize('cbs', [SharedTarget, SharedTarget(), [SharedTarget()], [Steps, SharedTarget]])
def test_a_given_target_replaces_the_recipes(dls, cbs):
    learn = make(dls, method='moco_v3', cbs=cbs)
    assert [type(cb) for cb in learn.cbs if isinstance(cb, Target)] == [SharedTarget]
    assert list(learn.model.memory) == ['losses'] and not any('memory' in k for k in learn.model.state_dict())


@pytest.mark.parametrize('loss', [
    F.cross_entropy, partial(F.kl_div, reduction='batchmean'), nn.CrossEntropyLoss(), nn.CrossEntropyLoss,
    nn.NLLLoss(), nn.BCEWithLogitsLoss(), nn.KLDivLoss(), SoftTargetCrossEntropy(), LabelSmoothingCrossEntropy()])
@pytest.mark.parametrize('method', ['simclr', 'moco_v3'])
def test_losses_of_labels_are_refused(dls, loss, method):
    text = refusal(make, dls, method=method, loss=loss)
    assert 'loss=' in text and 'DCL(0.1)' in text
    if not isinstance(loss, LabelSmoothingCrossEntropy): assert 'labels or probabilities' in text


class Contrasting(nn.CrossEntropyLoss):
    "InfoNCE, as many write it"
    def forward(self, q, k):
        q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
        return super().forward(q @ k.T / 0.2, torch.arange(len(q), device=q.device))


class Dot(nn.Module):
    def forward(self, q, k): return -(q * k).sum(-1).mean()


class Broken(nn.Module):
    def forward(self, q, k): return (q @ k).mean()


class Graded(nn.Module):
    def forward(self, q, k): return (q.argmax(-1) == k.argmax(-1)).float().mean()


def test_losses_of_embeddings_are_taken(dls):
    for loss in (Contrasting(), nn.MSELoss(), nn.SmoothL1Loss(), Dot(), F.mse_loss): make(dls, loss=loss)
    assert repr(make(dls, method=simclr(loss=F.mse_loss)).loss_func.loss) == 'mse_loss'
    assert 'does not make a scalar' in refusal(make, dls, loss=Broken())
    assert 'no gradient' in refusal(make, dls, loss=Graded())
    assert 'does not make a scalar' in refusal(make, dls, loss=nn.TripletMarginLoss())
    for given in (F.triplet_margin_loss, dcl):
        for call in (dict(loss=given), dict(method=simclr(loss=given))):
            assert 'queries and keys alone' in refusal(make, dls, **call)


def test_a_function_trains_like_the_loss_that_has_it():
    "Each level has its own, and patches meet it query by query"
    def trained(loss):
        torch.manual_seed(0)
        learn = make(dots(), method=byol(opt='sgd', lr=1.), loss=loss, cbs=[IntermediateLoss(), CombinePatches()])
        learn.fit_contrastive(1)
        return learn
    learn, same, other = (trained(loss) for loss in (partial(dcl, temp=.25), DCL(.25), DCL(.5)))
    assert [repr(loss) for loss in learn.loss_func.losses.values()] == 4 * ['dcl(temp=0.25)']
    def apart(other): return max(float((a - b).abs().max()) for a, b in zip(learn.model.parameters(),
                                                                            other.model.parameters()))
    assert apart(same) < 1e-5 < 1e-3 < apart(other)


# --- settings

def test_settings():
    many, more = 100_000, 100_001
    picked = {('digits', 32, 1797): 'digits', ('digits', 96, more): 'digits', ('a', 32, 8): 'small',
              ('a', 224, 8): 'small', ('a', 65, many): 'small', ('a', 32, many): 'small', ('a', 32, more): 'cifar',
              ('a', 64, more): 'cifar', ('a', 65, more): 'imagenet', ('a', 224, more): 'imagenet'}
    assert {given: pick_setting(*given) for given in picked} == picked


def few(monkeypatch, n): monkeypatch.setattr('fastcontrast.recipes.recipe.SMALL_SET', n)


@pytest.mark.parametrize('size,n,setting,projector,views,temp,lr', [
    (32, 18, 'small', (2048, 256), 'simclr_cifar', 0.2, 0.01), (80, 18, 'small', (2048, 256), 'simclr', 0.2, 0.01),
    (32, 17, 'cifar', (2048, 256), 'simclr_cifar', 0.2, 0.4), (80, 17, 'imagenet', (2048, 128), 'simclr', 0.1, 0.3)])
def test_pictures_pick_the_setting_and_the_call_has_the_last_word(monkeypatch, size, n, setting, projector, views, temp,
                                                                  lr):
    few(monkeypatch, n)
    dls = dots(size=size)
    assert len(dls.train.dataset) == 18
    learn = contrastive_learner(dls, 'resnet10t')
    r = learn.recipe
    assert (r.setting, r.projector, r.views, r.lr, learn.loss_func.loss.temp) == (setting, projector, views, lr, temp)
    assert learn.views.main.kind == views and learn.views.size == size
    assert learn.small_input == (size == 32) and learn.lr == (lr if setting == 'small' else lr * 8 / 256)
    out = [m for m in learn.model.heads.final.projector if isinstance(m, nn.Linear)][-1].out_features
    assert out == projector[-1]
    asked = 'cifar' if setting == 'imagenet' else 'imagenet'
    other = make(dls, method=simclr(asked, lr=0.7, projector=(24, 12)))
    assert other.recipe.setting == asked and other.recipe.views == other.views.main.kind == views  # by their side
    assert other.recipe.lr == 0.7 and other.model.heads.final.projector[0].out_features == 24
    assert other.recipe.wd == (1e-4 if setting == 'imagenet' else 1e-6)
    assert simclr(asked, views='byol').resolve(setting, size).views == 'byol'


@pytest.mark.parametrize('setting', ['imagenet', 'cifar', 'small'])
def test_blur_crops_and_stem_are_a_matter_of_the_pictures_side(setting):
    for size in (64, 80):
        learn = contrastive_learner(dots(size=size), 'resnet10t', method=swav(setting, prototypes=16, memory=None))
        assert learn.small_input == (size == 64) and learn.recipe.setting == setting
        kind, main = learn.recipe.views, learn.views.main.kind
        assert kind == ('simclr_cifar' if size == 64 else 'simclr') and ('local' in learn.views.makers) == (size == 80)
        assert main == kind if size == 64 else (main.blur, main.scale) == (0.5, (0.14, 1.0))


def test_a_short_run_hears_of_the_setting_for_short_ones(monkeypatch, capsys):
    monkeypatch.setattr('fastcontrast.recipes.recipe._SHORT_RUN', 5)
    def said(n, epochs, **setting):
        few(monkeypatch, n)
        make(dots(), method=simclr(**setting)).fit_contrastive(epochs)  # of two steps each
        return "steps are few for the setting" in capsys.readouterr().out
    assert said(17, 2) and not said(17, 3) and not said(18, 2)
    assert not said(17, 2, setting='cifar') and not said(17, 2, setting='imagenet')


def test_digits_have_a_setting_of_their_own(digits):
    r = make(digits, method='moco_v3').recipe
    assert (r.setting, r.opt, r.views, r.projector) == ('digits', 'adamw', 'digits', (512, 128))


def test_small_stems_are_for_resnets_of_small_pictures(dls, digits):
    assert contrastive_learner(dls, 'resnet18').model.encoder.conv1.kernel_size == (3, 3)
    assert contrastive_learner(digits, 'resnet18').model.encoder.conv1.kernel_size == (7, 7)  # they have 8 pixels
    assert contrastive_learner(dls, 'resnet18', small_input=False).model.encoder.conv1.kernel_size == (7, 7)
    assert not contrastive_learner(dls, 'vit_tiny_patch16_224').small_input


# --- optimizer

def test_parameter_groups(dls):
    learned = dict(frozen=(), fixed_positions=False)
    learn = make(dls, 'vit_tiny_patch16_224', method=moco_v3(opt='lars', wd=0.05, wd_all=False, **learned))
    names = {p: n for n, p in learn.model.named_parameters()}
    learn.create_opt()
    decayed, others = learn.opt.opt.param_groups
    assert (decayed['weight_decay'], others['weight_decay']) == (0.05, 0)
    assert (decayed.get('always_adapt'), others.get('always_adapt')) == (True, False)
    held = [names[p] for p in decayed['params'] + others['params']]
    # each exactly once, the target's none
    assert sorted(held) == sorted(n for n in names.values() if not n.startswith('memory'))
    without = {names[p] for p in others['params']}
    assert {'encoder.pos_embed', 'encoder.cls_token', 'encoder.blocks.0.norm1.weight', 'encoder.blocks.0.attn.qkv.bias',
            'encoder.patch_embed.proj.bias', 'heads.final.projector.1.weight',
            'heads.final.predictor.1.bias'} <= without
    assert {'encoder.blocks.0.attn.qkv.weight', 'encoder.patch_embed.proj.weight',
            'heads.final.projector.0.weight'} <= {names[p] for p in decayed['params']}
    assert all(n.endswith(('weight',)) for n in held if n not in without)


def test_frozen_parameters_are_in_no_group_and_only_lars_is_marked(dls):
    model = make(dls).model
    model.encoder.requires_grad_(False)
    groups = parameter_groups(model, 0.1, adapt=False)
    assert sum(len(g['params']) for g in groups) == len(list(model.heads.parameters()))
    assert all('always_adapt' not in g for g in groups)


@pytest.mark.parametrize('opt,cls', [('lars', 'Lars'), ('sgd', 'Sgd'), ('adamw', 'AdamW')])
def test_optimizers_keep_their_groups_weight_decay(dls, opt, cls):
    learn = make(dls, method=simclr(opt=opt, opt_args={}, wd=0.03))
    learn.create_mbar = False
    learn.fit_contrastive(1)
    assert type(learn.opt.opt).__name__ == cls
    assert [g['weight_decay'] for g in learn.opt.opt.param_groups] == [0.03, 0]


@pytest.mark.parametrize('opt', ['lars', 'sgd', 'adamw', 'muon'])
def test_a_fit_by_the_recipe_has_its_weight_decay_and_momentum_whatever_came_before(dls, opt):
    learn = make(dls, method=simclr(opt=opt, opt_args={}, wd=0.03))
    learn.create_mbar = False
    learn.create_opt()
    def numbers():
        return [{name: group[name] for name in ('weight_decay', 'momentum', 'betas') if name in group}
                for group in learn.opt.opt.param_groups]
    began, seen = numbers(), []
    class Look(Callback):
        def before_batch(self): seen.append(numbers())
    learn.fit_one_cycle(1, 1e-4)
    assert numbers() != began and [g['weight_decay'] for g in numbers()] == [g['weight_decay'] for g in began]
    learn.fit(1, 1e-4, wd=0.1)
    assert [g['weight_decay'] for g in numbers()] == [0.1 * (g['weight_decay'] > 0) for g in began]
    learn.fit_contrastive(1, cbs=Look())
    assert seen == [began] * 2


OPTIMIZERS = [
    *[(Sgd, torch.optim.SGD, args)
      for args in ({}, dict(nesterov=True), dict(dampening=0.3), dict(momentum=0.), dict(foreach=True),
                   dict(fused=False))],
    *[(AdamW, torch.optim.AdamW, args)
                for args in ({}, dict(amsgrad=True), dict(foreach=True), dict(fused=False))]]

@pytest.mark.parametrize('ours,pytorchs,args', OPTIMIZERS)
def test_optimizers_are_pytorchs(ours, pytorchs, args):
    "Step by step; the second parameter has no gradient before the third step, and the first has none at the second"
    rng = torch.Generator().manual_seed(0)
    x = [torch.randn(s, dtype=torch.float64, generator=rng) for s in ((3, 4), (5,), (2, 3, 4, 5), (4, 3, 1, 1))]
    mine, theirs = ([t.clone().requires_grad_() for t in x] for _ in range(2))
    for p in mine[2:]: p.data = p.data.to(memory_format=torch.channels_last)
    plain = {k: v for k, v in args.items() if k not in ('foreach', 'fused')}
    optimizers = (ours(mine, lr=0.1, weight_decay=0.01, **args),
                  pytorchs(theirs, **(dict(momentum=0.9) if ours is Sgd else {}) | dict(lr=0.1, weight_decay=0.01)
                           | plain, foreach=False))
    steps = [[], []]
    for opt, mark in zip(optimizers, steps): opt.register_step_pre_hook(lambda *_, mark=mark: mark.append(1))
    for n, there in enumerate(((1, 0, 1, 1), (0, 0, 1, 1), (1, 1, 1, 1), (1, 0, 0, 0), (1, 1, 1, 1), (1, 1, 1, 1))):
        if n == 4: mine[2].data = mine[2].data.contiguous()  # another memory format, in the middle
        for a, b, has in zip(mine, theirs, there):
            b.grad = torch.randn(a.shape, dtype=torch.float64, generator=rng) if has else None
            a.grad = torch.empty_like(a).copy_(b.grad) if has else None
        if n == 5: mine[2].grad = mine[2].grad.to(memory_format=torch.channels_last)  # laid out unlike its parameter
        for opt in optimizers: opt.step()
        for a, b in zip(mine, theirs): torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert len(steps[0]) == len(steps[1]) == 6
    assert optimizers[0].param_groups[0]['fused'] == (not ({'foreach', 'fused', 'dampening'} & set(args)))
    assert not (optimizers[0].param_groups[0]['foreach'] and optimizers[0].param_groups[0]['fused'])


def test_a_rate_that_is_for_another_optimizer_is_said(dls):
    said = "the learning rate 0.01 of fast() is for opt='muon', and none was given for opt='lars'"
    assert make(dls, method=fast(opt='lars')).notes == (said,)
    for method in (fast(opt='lars', lr=0.1), fast(opt='muon'), simclr(opt='lars'), simclr()):
        assert not make(dls, method=method).notes


@pytest.mark.parametrize('opt', ['sgd', 'adamw'])
def test_optimizer_arguments_that_exclude_each_other(dls, opt):
    with pytest.raises(InputError, match=f'do not suit {opt}'):
        make(dls, method=simclr(opt=opt, opt_args=dict(fused=True, foreach=True)))


def test_lars_adapts_filters_only(dls):
    "One step of LARS by hand: trust ratio for what decays, plain SGD for biases and norms"
    learn = make(dls, method=simclr(opt='lars', wd=0.01))
    before = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    grads = {}
    class Keep(Callback):
        def before_step(self):
            if not grads: grads.update({n: p.grad.clone() for n, p in self.model.named_parameters()})
        def after_step(self):
            if 'after' not in grads: grads['after'] = {n: p.detach().clone() for n, p in self.model.named_parameters()}
    learn.create_mbar = False
    learn.fit(1, 0.1, cbs=Keep())
    for n in ('encoder.layer1.0.conv1.weight', 'heads.final.projector.0.weight', 'encoder.bn1.weight',
              'heads.final.projector.1.bias'):
        w, g, lr = before[n], grads[n], 0.1
        if w.ndim > 1:
            trust = min(0.02 * w.norm() / (g.norm() + 0.01 * w.norm() + 1e-8) / lr, torch.tensor(1.))
            g = (g + 0.01 * w) * trust
        torch.testing.assert_close(grads['after'][n], w - lr * g, rtol=1e-4, atol=1e-7)


# --- schedule

def half_a_cosine(t): return (1 + math.cos(math.pi * t)) / 2
def up_to_four_fifths(t): return 1 if t <= 0.8 else 1 - math.sqrt((t - 0.8) / 0.2)


@pytest.mark.parametrize('changes,share', [({}, up_to_four_fifths), (dict(schedule='cosine'), half_a_cosine)])
def test_learning_rate_during_a_fit(changes, share):
    learn = make(dots(32, bs=4, valid=0), method=simclr(projector=(16,), **changes), cbs=Steps)
    learn.create_mbar = False
    learn.fit_contrastive(5, lr=0.2)
    lrs = learn.steps.lrs
    n, warm = 40, 4  # half an epoch of 8 steps warms up: a tenth of the run
    assert len(lrs) == n and all(len(set(groups)) == 1 for groups in lrs)
    for i, (lr, *_) in enumerate(lrs):
        want = 0.2 * i / warm if i < warm else 0.2 * share((i - warm) / (n - warm))
        assert lr == pytest.approx(want, abs=1e-9)
    assert lrs[0][0] == 0 and lrs[warm][0] == pytest.approx(0.2) and lrs[-1][0] < 0.02


def test_warm_up_is_the_recipes_in_long_runs(capsys):
    for warmup, epochs, shown in ((2, 40, '2 of 40'), (10, 40, '4 of 40'), (0, 5, '0 of 5')):
        learn = make(dots(), method=simclr(warmup=warmup))
        seen = []
        learn.fit = lambda n, lr, learn=learn, seen=seen: seen.append((n, lr, learn.param_scheduler.scheds['lr']))
        learn.fit_contrastive(epochs)
        (n, lr, schedule), = seen
        share = min(warmup, epochs / 10) / epochs
        assert n == epochs and schedule(share) == pytest.approx([lr] * 2)
        assert schedule(1.) == pytest.approx([0] * 2, abs=1e-12)
        if share: assert schedule(share / 2) == pytest.approx([lr / 2] * 2)
        assert f'warm-up {shown} epochs' in capsys.readouterr().out


def test_warmup_then_cosine():
    lr = warmup_then('cosine', 2., 0.2)
    assert [lr(t) for t in (0., 0.1, 0.2)] == [0, 1, 2] and lr(0.6) == pytest.approx(1) and lr(1.) == pytest.approx(0)
    assert warmup_then('cosine', 2., 0.)(0.) == 2


@pytest.mark.parametrize('bs', [4, 16])
@pytest.mark.parametrize('opt, share_of_lr', [('sgd', lambda bs: bs / 256), ('muon', lambda bs: 1)])
def test_learning_rate_grows_with_the_batch_but_muons(bs, opt, share_of_lr):
    learn = make(dots(32, bs=bs, valid=0), method=simclr(projector=(16,), opt=opt, lr=0.02, schedule='wsd'), cbs=Steps)
    learn.create_mbar = False
    learn.fit_contrastive(1)
    n = 32 // bs
    warm = 0.1
    i = n - 1
    share = up_to_four_fifths((i / n - warm) / (1 - warm))
    assert learn.steps.lrs[i][0] == pytest.approx(0.02 * share_of_lr(bs) * share)
    learn.fit_contrastive(1, lr=0.03)
    assert learn.steps.lrs[i][0] == pytest.approx(0.03 * share)


# --- what a fit prints

def printed(learn, capsys, n: int) -> list[list[str]]:
    capsys.readouterr()
    learn.fit_contrastive(n)
    out = capsys.readouterr()
    assert out.err == ''
    first, *lines = out.out.splitlines()
    assert first.startswith(f'{learn.recipe.name} ({learn.recipe.setting}): {learn.recipe.opt}, lr ')
    assert f'of {n} epochs' in first
    return [line.split() for line in lines]


@pytest.mark.parametrize('method', ['simclr', 'moco_v3'])
def test_one_line_an_epoch(dls, capsys, method):
    for n in (2, 1):  # and in a second fit
        header, *rows = printed(make(dls, method=method), capsys, n)
        assert header == ['epoch', 'train_loss', 'knn', 'spread', 'rankme', 'time', 'to', 'go'] and len(rows) == n
        for i, (epoch, loss, knn, width, rank, time, left) in enumerate(rows):
            assert epoch == str(i) and math.isfinite(float(loss)) and 0 <= float(knn) <= 1 and 0 < float(width) < 1
            assert 1 <= float(rank) <= 18  # pictures of the training part
            assert re.fullmatch(r'\d\d:\d\d', time)
            assert re.fullmatch(r'\d+:\d\d', left) and (left == '0:00' or i < n - 1)


def test_the_tables_figures_are_the_learners(capsys):
    learn = make(dots(64), cbs=Steps, precision='fp32')
    *_, row = printed(learn, capsys, 1)
    assert float(row[2]) == pytest.approx(learn.knn(), abs=1e-3)
    features, _ = learn.embed(learn.dls.train)
    assert float(row[3]) == pytest.approx(spread(features), abs=1e-3)
    assert float(row[4]) == pytest.approx(rankme(features), abs=1e-3)
    mean, beta = 0., 0.98
    for loss in learn.steps.losses: mean = mean * beta + loss * (1 - beta)
    assert float(row[1]) == pytest.approx(mean / (1 - beta ** len(learn.steps.losses)), abs=1e-3)
    assert learn.recorder.values[0][0] == pytest.approx(mean / (1 - beta ** len(learn.steps.losses)), rel=1e-5)


@pytest.mark.parametrize('data,kwargs,columns', [
    (dict(classes=0), {}, ['spread', 'rankme']), (dict(classes=1), {}, ['spread', 'rankme']),
    (dict(valid=0), {}, ['spread', 'rankme']), (dict(), dict(knn_pictures=0), []),
    (dict(), dict(metrics=['rankme']), ['rankme']), (dict(valid=0), dict(metrics=['knn']), [])])
def test_no_column_where_there_is_nothing_to_tell(capsys, data, kwargs, columns):
    header, *rows = printed(make(dots(**data), **kwargs), capsys, 1)
    assert header == ['epoch', 'train_loss', *columns, 'time', 'to', 'go'] and len(rows) == 1
    assert len(rows[0]) == len(header) - 1  # 'to go' is one column


def test_the_table_does_not_stop_a_run_whose_pictures_are_all_of_one_class(capsys):
    "Two classes by name, one of them without a picture"
    _, *rows = printed(make(dots(classes=2, present=1)), capsys, 1)
    assert len(rows) == 1


def test_quiet_when_asked(dls, capsys):
    learn = make(dls)
    capsys.readouterr()
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1)
    assert capsys.readouterr().out == ''
    with learn.no_logging(): learn.fit(1)
    assert capsys.readouterr().out == ''


def test_a_failed_fit_leaves_the_logger_as_it_was(dls):
    learn = make(dls)
    logger = learn.logger
    class Fails(Callback):
        def after_step(self): raise RuntimeError('of mine')
    with pytest.raises(RuntimeError, match='of mine'): learn.fit(1, cbs=Fails())
    assert learn.logger == logger


# --- training

def test_the_loss_falls_on_digits(digits):
    learn = make(digits, cbs=Steps, knn_pictures=0)
    learn.create_mbar = False
    learn.fit_contrastive(2)
    losses = learn.steps.losses
    assert len(losses) == 2 * len(digits.train) and sum(losses[-4:]) / 4 < sum(losses[:4]) / 4 - 0.5


@pytest.mark.parametrize('method', ['simclr', pytest.param('moco_v3', marks=pytest.mark.slow)])
def test_a_seed_repeats_a_run(method):
    def run(seed):
        torch.manual_seed(seed)
        learn = make(dots(32), method=METHODS[method](projector=(32, 256)), cbs=Steps)
        learn.create_mbar = False
        learn.fit_contrastive(2)
        return learn.steps.losses, learn.recorder.values
    a, b, c = run(1), run(1), run(2)
    assert a == b and a[0] != c[0] and len(a[0]) == 6


@pytest.mark.parametrize('arch,size', [
    ('vit_tiny_patch16_224', 32), ('convnext_atto', 32), ('regnety_002', 32), ('resnet18', 16)])
def test_other_encoders_train(arch, size):
    learn = contrastive_learner(dots(8, bs=4, valid=0, size=size), arch, method='moco_v3', cbs=Steps)
    learn.create_mbar = False
    learn.fit_contrastive(1)
    assert len(learn.steps.losses) == 2 and all(map(math.isfinite, learn.steps.losses))


# --- judging and keeping

def test_embed_knn_probe_export(tmp_path):
    dls = dots(40, bs=8)
    learn = make(dls, 'resnet10t', precision='fp32')
    learn.create_mbar = False
    learn.fit_contrastive(1)
    h, y = learn.embed()
    train_h, train_y = learn.embed(dls.train)
    assert h.shape == (len(dls.valid.data), 512) and torch.equal(y, dls.valid.data.y)
    assert torch.equal(train_y, dls.train.data.y)
    for accuracy in (learn.knn(), learn.knn(k=1), learn.linear_probe()): assert 0 <= accuracy <= 1
    assert learn.knn(k=1) == fastcontrast.all.knn_accuracy(train_h, train_y, h, y, k=1)
    assert learn.linear_probe() == fastcontrast.all.linear_probe(train_h, train_y, h, y)
    path = learn.export(tmp_path / 'encoder')
    info = encoder_info(path)
    assert (info['arch'], info['size'], info['recipe'], info['small_input']) == ('resnet10t', 16, 'simclr', False)
    encoder = load_encoder(path)
    timm.create_model('resnet10t', num_classes=0).load_state_dict(encoder.state_dict(), strict=True)
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (info['mean'], info['std']))
    x = torch.cat([x for x, _ in dls.valid.ordered()]).float() / 255
    with torch.no_grad(): torch.testing.assert_close(encoder((x - mean) / std), h, rtol=1e-4, atol=1e-5)


def test_the_card_counts_the_epochs_of_all_fits(dls, tmp_path):
    "Those of a run that is taken up too, and none of lr_find's"
    def made():
        learn = make(dls, path=tmp_path)
        learn.create_mbar = False
        return learn
    def counted(learn):
        text = (learn.export(tmp_path/'net')/'README.md').read_text()
        return int(re.search(r'\| epochs \| (\d+) \|', text)[1]), re.search(r'\| kNN accuracy \| (\S+) \|', text)[1]
    learn = made()
    learn.fit(1, 1e-3)
    learn.fit_contrastive(2, resume=tmp_path/'run')
    before = counted(learn)
    learn.lr_find(num_it=6, show_plot=False)
    assert before[0] == 3 and counted(learn) == before
    learn.fit_contrastive(1)
    assert counted(learn)[0] == 4
    other = made()
    other.fit_contrastive(2, resume=tmp_path/'run')
    assert counted(other) == before


def test_a_small_stem_comes_back_with_the_export(tmp_path, dls):
    learn = contrastive_learner(dls, 'resnet18')
    encoder = load_encoder(learn.export(tmp_path / 'e.safetensors'))
    assert encoder.conv1.kernel_size == (3, 3) and encoder_info(tmp_path / 'e.safetensors')['small_input'] is True
    theirs = make_encoder('resnet18', small_input=True)
    theirs.load_state_dict(learn.model.encoder.state_dict(), strict=True)


def test_judging_leaves_the_training_as_it_is(dls):
    learn = make(dls, method='moco_v3')
    learn.model.train()
    before, rng = copy.deepcopy(learn.model.state_dict()), torch.get_rng_state()
    learn.knn()
    assert learn.model.training and all(m.training for m in learn.model.modules())
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


def test_unlabelled_pictures_train_but_are_not_classified():
    learn = make(dots(classes=0))
    learn.create_mbar = False
    learn.fit_contrastive(1)
    assert "kNN needs labels, and the pictures of 'Dots' have none" in refusal(learn.knn)
    assert 'a linear probe needs labels' in refusal(learn.linear_probe)
    h, y = learn.embed(learn.dls.train)
    assert len(h) == 24 and (y == -1).all()


def test_one_class_trains_and_knn_says_why_not():
    learn = make(dots(classes=1))
    learn.create_mbar = False
    learn.fit_contrastive(1)
    assert 'two classes' in refusal(learn.knn)


def test_no_validation_part():
    learn = make(dots(valid=0))
    learn.create_mbar = False
    learn.fit_contrastive(1)
    assert 'validation part' in refusal(learn.knn) and 'valid=' in refusal(learn.linear_probe)


def test_show_views(dls, tmp_path):
    figure = make(dls).show_views(3, path=tmp_path / 'views.png')
    assert len(figure.axes) == 3 * 3 and (tmp_path / 'views.png').stat().st_size > 1000


def test_predictions_are_refused_in_a_sentence(dls):
    learn = make(dls)
    learn.create_mbar = False
    with pytest.raises(InputError, match=r'learn\.embed'): learn.get_preds()


# --- names

def test_public_names():
    space = {}
    exec('from fastcontrast.all import *', space)
    design = """info_nce nt_xent dcl dclw InfoNCE NTXent DCL DCLW NegCosine SwAVLoss BarlowTwins VICReg DINOLoss
                image_dls make_encoder contrastive_learner simclr moco_v1 moco_v2 moco_v3 byol simsiam nnclr swav
                barlow_twins vicreg dino EMATarget StopGradTarget Queue NearestNeighbours MultiCrop knn_accuracy
                load_encoder suncet_loss CombinePatches IntermediateLoss PartialBackprop HardRegions SuNCEt""".split()
    assert set(design) <= set(space) and set(fastcontrast.all.__all__) <= set(space)
    assert all(space[n] is getattr(fastcontrast.all, n) for n in fastcontrast.all.__all__)
    for name in 'fit_contrastive embed knn linear_probe show_views export'.split():
        assert callable(getattr(space['ContrastiveLearner'], name))
    assert all(space[n] is m for n, m in METHODS.items())


def test_gradient_accumulation_is_not_the_large_batch(dls):
    with pytest.raises(InputError, match='negatives'): make(dls, cbs=GradientAccumulation(16))


@pytest.mark.parametrize('call', ['knn', 'linear_probe'])
def test_judging_by_labels_needs_labels(call):
    class Unlabelled(Dots):
        def __init__(self, n):
            super().__init__(n)
            del self.targets
        def __getitem__(self, i): return self.x[i]
    learn = contrastive_learner(image_dls(Unlabelled(16), bs=8, workers=0, device='cpu'), ARCH,
                                method=small('simclr', 'cifar'), small_input=False)
    text = refusal(getattr(learn, call))
    assert 'labels' in text and 'Unlabelled' in text
