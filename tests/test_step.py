"""The step: against the papers' loops and lightly, the pair rule against a double loop, the moving average against its
closed form, and what is left behind when a fit ends, well or badly."""
import copy
import gc
import math
import weakref

import pytest
import timm
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner, Recorder
from fastai.optimizer import OptimWrapper
from fastai.torch_core import TensorImage
from fastai.vision.data import DataBlock, ImageBlock
from lightly.loss import NTXentLoss
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.learner import ContrastiveLearner, contrastive_learner
from fastcontrast.losses import DCL, InfoNCE, NTXent
from fastcontrast.models import ContrastiveModel, Embedding, Head, mlp
from fastcontrast.recipes import RECIPES, simclr
from fastcontrast.step import Contrast, FiniteLoss, PairLoss, StepCallback, embedding_std
from fastcontrast.targets import EMATarget, SharedTarget
from fastcontrast.views import Normalize, two_views

close = torch.testing.assert_close
B, LR = 6, 0.05


@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(5)


# --- a small learner whose views are known

class KnownViews(nn.Module):
    "A picture and a darker mirror image of it"
    def forward(self, x): return {'views': torch.stack([x, x.flip(-1) * 0.8 - 0.1])}


class Plain(Normalize):
    "No normalisation"
    def forward(self, x): return x


class Diary(Callback):
    "Losses and gradients of every step, and the weights before the first and after each"
    order = 70
    def before_fit(self): self.losses, self.grads, self.weights = [], [], [self.now()]
    def before_step(self):
        self.losses.append(self.loss.item())
        self.grads.append({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None})
    def after_step(self): self.weights.append(self.now())
    def now(self): return {n: t.detach().clone() for n, t in self.model.state_dict().items() if t.is_floating_point()}


class After(Callback):
    "Does something once, in one event of one step"
    order = 65
    def __init__(self, event: str, step: int, do): setattr(self, event, lambda: do() if self.train_iter == step else None)


def interrupt(): raise KeyboardInterrupt


def tiny_encoder(norm: bool) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), *([nn.BatchNorm2d(6)] if norm else []), nn.ReLU(),
                         nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def tiny_model(norm: bool = True, predictor: bool = True, per_view: bool = False) -> ContrastiveModel:
    head = Head(mlp((8, 10, 5), bn=norm), mlp((5, 9, 5), bn=norm) if predictor else None)
    return ContrastiveModel(tiny_encoder(norm), head, per_view=per_view).double()


def sgd(params, lr): return OptimWrapper(params, torch.optim.SGD, lr=lr)


def pictures(n: int = 2) -> list:
    "n batches of float64 pictures"
    return [(torch.rand(B, 3, 9, 9, dtype=torch.float64), torch.arange(B)) for _ in range(n)]


def learner(model, loss, *cbs, batches=None, path=None, cls=ContrastiveLearner):
    dls = DataLoaders(pictures() if batches is None else batches, [], device='cpu')
    dls.n_inp = 1
    learn = cls(dls, model, PairLoss(loss), opt_func=sgd, cbs=[Contrast(KnownViews(), Plain()), *cbs], path=path)
    learn.remove_cbs([Recorder, ProgressCallback])  # fastai's mean of the losses is float32
    return learn


def real_learner(method='simclr', n=16, bs=8, **kwargs):
    "`contrastive_learner` on a few random pictures"
    learn = contrastive_learner(image_dls(Dots(n), bs=bs, valid=0, workers=0, device='cpu'), 'resnet10t', method=method,
                                **{'small_input': False, **kwargs})
    learn.create_mbar = False
    return learn


class Dots:
    "A data set of random pictures"
    def __init__(self, n: int, size: int = 16):
        g = torch.Generator().manual_seed(1)
        self.x = torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)
        self.targets = [i % 2 for i in range(n)]
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.targets[i]


def same_grads(ours: dict, model: nn.Module, rel: float = 1e-8):
    theirs = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and len(ours) > 3
    # biases in front of a normalisation have no gradient but rounding
    for n, g in theirs.items(): close(ours[n], g, rtol=rel, atol=rel * max(t.abs().max().item() for t in theirs.values()))


# --- parity: one step as the papers write it

def paper_nt_xent(z1, z2, temp):
    "SimCLR, Algorithm 1: rows 2k-1 and 2k are the two views of a picture"
    z = F.normalize(torch.stack([z1, z2], 1).flatten(0, 1), dim=1)
    s, n = z @ z.T / temp, len(z)
    ell = lambda i, j: -torch.log(s[i, j].exp() / sum(s[i, k].exp() for k in range(n) if k != i))  # noqa: E731
    return sum(ell(2 * k, 2 * k + 1) + ell(2 * k + 1, 2 * k) for k in range(n // 2)) / n


def paper_ctr(q, k, temp):
    "MoCo v3, Algorithm 1: cross-entropy of the logits, times 2τ"
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    return 2 * temp * F.cross_entropy(q @ k.T / temp, torch.arange(len(q)))


def simclr_loop(model, x, loss):
    v = KnownViews()(x)['views']
    z = model.heads.final.projector(model.encoder(torch.cat([v[0], v[1]])))
    return loss(z[:len(x)], z[len(x):])


def moco_v3_loop(model, momentum_model, x, temp):
    v, head, key_head = KnownViews()(x)['views'], model.heads.final, momentum_model.heads.final
    q1, q2 = (head.predictor(head.projector(model.encoder(x))) for x in v)
    with torch.no_grad(): k1, k2 = (key_head.projector(momentum_model.encoder(x)) for x in v)
    return paper_ctr(q1, k2, temp) + paper_ctr(q2, k1, temp)


def paper_step(model, loss):
    model.zero_grad()
    loss.backward()
    return loss.item()


@torch.no_grad()
def descend(model, lr):
    for p in model.parameters():
        if p.grad is not None: p -= lr * p.grad


@torch.no_grad()
def follow(momentum_model, model, m):
    online = dict(model.named_parameters())
    for n, p in momentum_model.named_parameters(): p.copy_(m * p + (1 - m) * online[n])


@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.parametrize('loss', ['paper', 'lightly'])
@pytest.mark.parametrize('setting,temp', [('imagenet', 0.1), ('cifar', 0.2)])
def test_simclr_is_the_papers(norm, loss, setting, temp):
    recipe = RECIPES['simclr'].resolve(setting)
    model = tiny_model(norm, predictor=False, per_view=recipe.per_view)
    twin = copy.deepcopy(model)
    learn = learner(model, recipe.loss(), recipe.target(), Diary(), FiniteLoss())
    learn.fit(1, LR)
    theirs = NTXentLoss(temp) if loss == 'lightly' else lambda z1, z2: paper_nt_xent(z1, z2, temp)
    for (x, _), value, grads in zip(learn.dls.train, learn.diary.losses, learn.diary.grads, strict=True):
        assert paper_step(twin, simclr_loop(twin, x, theirs)) == pytest.approx(value, rel=1e-8)
        same_grads(grads, twin)
        descend(twin, LR)
    for n, t in twin.state_dict().items(): close(model.state_dict()[n], t, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.parametrize('setting,temp', [('imagenet', 1.0), ('cifar', 0.2)])
def test_moco_v3_is_the_papers(norm, setting, temp):
    recipe = RECIPES['moco_v3'].resolve(setting)
    model = tiny_model(norm, per_view=recipe.per_view)
    twin, momentum_model = copy.deepcopy(model), copy.deepcopy(model)
    momentum_model.heads.final.predictor = None
    learn = learner(model, recipe.loss(), recipe.target(), Diary(), FiniteLoss(), batches=pictures(3))
    learn.fit(1, LR)
    for i, ((x, _), value, grads) in enumerate(zip(learn.dls.train, learn.diary.losses, learn.diary.grads, strict=True)):
        assert paper_step(twin, moco_v3_loop(twin, momentum_model, x, temp)) == pytest.approx(value, rel=1e-8)
        same_grads(grads, twin)
        descend(twin, LR)
        follow(momentum_model, twin, 1 - (1 - 0.99) * (1 + math.cos(math.pi * i / 3)) / 2)
    for n, t in twin.state_dict().items(): close(model.state_dict()[n], t, rtol=1e-8, atol=1e-12)
    for n, t in momentum_model.state_dict().items(): close(learn.ema_target.target.state_dict()[n], t, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('name', ['simclr', 'moco_v3'])
def test_a_learner_of_contrastive_learner_takes_the_papers_step(name):
    "Everything that it puts together, on a ResNet: heads, passes, normalisation, loss, target"
    learn = real_learner(name, n=B, bs=B, cbs=Diary)
    learn.views = Halves()
    learn.model.double()
    twin, momentum_model = copy.deepcopy(learn.model), copy.deepcopy(learn.model)
    twin.memory.clear(); momentum_model.memory.clear()
    learn.fit(1, LR)
    cfg = timm.get_pretrained_cfg('resnet10t')
    mean, std = (torch.tensor(t, dtype=torch.float32).double().view(3, 1, 1) for t in (cfg.mean, cfg.std))
    v = learn.dls.train.images[learn.dls.train._order(0)].double() / 255
    v1, v2 = (v - mean) / std, (v.flip(-1) / 2 - mean) / std
    head = twin.heads.final
    if name == 'simclr':
        z = head.projector(twin.encoder(torch.cat([v1, v2])))
        loss = paper_nt_xent(z[:B], z[B:], 0.2)
    else:
        q1, q2 = (head.predictor(head.projector(twin.encoder(v))) for v in (v1, v2))
        with torch.no_grad(): k1, k2 = (momentum_model.heads.final.projector(momentum_model.encoder(v)) for v in (v1, v2))
        loss = paper_ctr(q1, k2, 0.2) + paper_ctr(q2, k1, 0.2)
    # the normalisation's constants are float32's, and deep BatchNorms of few values multiply their rounding
    assert paper_step(twin, loss) == pytest.approx(learn.diary.losses[0], rel=1e-5)
    ours, theirs = (torch.cat([g.flatten() for g in gs]) for gs in (learn.diary.grads[0].values(), [p.grad for p in twin.parameters()]))
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


class Halves(nn.Module):
    "A picture in [0, 1] and a darker mirror image, in float64"
    def forward(self, x):
        x = x.double() / 255
        return {'views': torch.stack([x, x.flip(-1) / 2])}


# --- the pair rule

class Spy(nn.Module):
    "A loss that tells its sides apart, and remembers the pairs"
    def __init__(self, symmetric=None):
        super().__init__()
        self.pairs = []
        if symmetric is not None: self.symmetric = symmetric
    def forward(self, q, k):
        self.pairs.append((q, k))
        return (q * k).sum() + (2 * q - k**2).mean()


def embeddings(V: int, *levels: str, predicted: bool = True) -> dict[str, Embedding]:
    def t(): return torch.randn(V, 4, 3, dtype=torch.float64)
    return {level: Embedding(t(), t(), t() if predicted else None) for level in levels}


def double_loop(pred, keys, loss, once=False):
    levels = []
    for level, k in keys.items():
        terms = []
        for role, ems in pred.items():
            q = ems[level].p
            for i in range(len(q)):
                for j in range(len(k)):
                    if role == 'views' and (i == j or once and i > j): continue
                    terms.append(loss(q[i], k[j]))
        levels.append(sum(terms) / len(terms))
    return sum(levels) / len(levels)


@pytest.mark.parametrize('symmetric', [None, False, True])
@pytest.mark.parametrize('V', [2, 3])
@pytest.mark.parametrize('local', [0, 2])
@pytest.mark.parametrize('levels', [('final',), ('layer2', 'layer3', 'final')])
@pytest.mark.parametrize('keys_are', ['projections', 'queries'])
def test_pairs(symmetric, V, local, levels, keys_are):
    own = keys_are == 'queries'
    pred = {'views': embeddings(V, *levels, predicted=not own)}
    if local: pred['local'] = embeddings(local, *levels)
    keys = {level: e.z for level, e in pred['views'].items()}
    once = own and symmetric is True  # only a pair of the very same tensors may be scored once
    spy = Spy(symmetric)
    close(PairLoss(spy)(pred, keys), double_loop(pred, keys, Spy(), once))
    assert len(spy.pairs) == len(levels) * (V * (V - 1) // (1 + once) + local * V)
    place = {t.data_ptr(): (name, i) for name, e in pred['views'].items() for i, t in enumerate(e.z)}
    for q, k in spy.pairs:
        if own and q.data_ptr() in place: assert place[q.data_ptr()] != place[k.data_ptr()]  # no view meets its own key


def test_equal_keys_that_are_other_tensors_are_scored_both_ways():
    pred, spy = {'views': embeddings(2, 'final', predicted=False)}, Spy(True)
    PairLoss(spy)(pred, {'final': pred['views']['final'].z.clone()})
    assert len(spy.pairs) == 2


def test_several_queries_for_each_key():
    V, M = 2, 3
    q = torch.randn(V, M, 4, 3, dtype=torch.float64, requires_grad=True)
    k = torch.randn(V, 4, 3, dtype=torch.float64)
    got = PairLoss(InfoNCE(0.3))({'views': {'final': Embedding(q, q, q * 2)}}, {'final': k})
    close(got, sum(InfoNCE(0.3)(q[i, m], k[1 - i]) for i in range(V) for m in range(M)) / (V * M))


def test_a_labelled_role_is_no_query():
    pred = {'views': embeddings(2, 'final'), 'labeled': embeddings(1, 'final')}
    spy = Spy()
    PairLoss(spy)(pred, {'final': pred['views']['final'].z})
    assert len(spy.pairs) == 2


def test_levels_without_keys_are_not_scored():
    pred, spy = {'views': embeddings(2, 'layer3', 'final')}, Spy()
    PairLoss(spy)(pred, {'layer3': pred['views']['layer3'].z})
    assert len(spy.pairs) == 2


def test_embedding_std():
    assert embedding_std(torch.ones(2, 8, 4) * torch.arange(1, 9).view(-1, 1)) < 1e-6  # one direction: collapsed
    z = torch.randn(3, 5, 4, dtype=torch.float64)
    by_hand = [[(u := z[v] / z[v].norm(dim=1, keepdim=True))[:, d].std().item() for d in range(4)] for v in range(3)]
    assert embedding_std(z).item() == pytest.approx(sum(map(sum, by_hand)) / 12, rel=1e-5)
    del u


# --- the moving average

def closed_form(seen: list, ms: list[float]):
    "Weights that start as seen[0], then keep the share ms[i] of themselves and take the rest from seen[i + 1]"
    n = len(ms)
    return math.prod(ms) * seen[0] + sum((1 - ms[i]) * math.prod(ms[i + 1:]) * seen[i + 1] for i in range(n))


@pytest.mark.parametrize('schedule', ['constant', 'cosine'])
def test_the_target_is_the_closed_form(schedule):
    learn = learner(tiny_model(), InfoNCE(0.2), EMATarget(0.7, schedule), Diary(), batches=pictures(3))
    learn.fit(2, LR)
    n = 6
    ms = [0.7 if schedule == 'constant' else 1 - 0.3 * (math.cos(math.pi * i / n) + 1) / 2 for i in range(n)]
    seen = learn.diary.weights
    params = dict(learn.ema_target.target.named_parameters())
    assert len(seen) == n + 1 and 'encoder.0.weight' in params and 'heads.final.projector.0.weight' in params
    for name, p in params.items():
        close(p, closed_form([w[name] for w in seen], ms))
        if p.ndim > 1: assert not torch.allclose(p, seen[-1][name]) and not torch.allclose(p, seen[0][name])


def test_the_target_is_no_part_of_what_trains():
    learn = learner(tiny_model(), InfoNCE(0.2), EMATarget(0.7), Diary())
    target = learn.ema_target.target
    started = {k: v.clone() for k, v in target.state_dict().items()}
    for k, v in started.items(): assert torch.equal(v, learn.model.state_dict()[k])  # an exact copy, buffers included
    learn.fit(1, LR)
    assert target is learn.model.memory['ema'] and target.heads.final.predictor is None
    assert not any('predictor' in k for k in started) and not any('memory' in k for k in started)
    assert all(p.grad is None and not p.requires_grad for p in target.parameters())
    assert not any(n.startswith('memory') for n in learn.diary.grads[0]) and any('predictor' in n for n in learn.diary.grads[0])
    held = {id(p) for group in learn.opt.param_lists for p in group}
    assert held.isdisjoint(id(p) for p in target.parameters()) and id(learn.model.encoder[0].weight) in held
    shared = {p.data_ptr() for p in learn.model.encoder.parameters()} & {p.data_ptr() for p in target.parameters()}
    assert not shared


def test_the_target_has_its_own_batchnorm_statistics():
    learn = learner(tiny_model(), InfoNCE(0.2), EMATarget(1.0, 'constant'))  # its weights stay where they began
    twin = copy.deepcopy(learn.ema_target.target)
    learn.fit(1, 0.5)
    for x, _ in learn.dls.train:
        with torch.no_grad(): twin.embed(KnownViews()(x)['views'])
    ours, theirs, online = (m.encoder[1].running_mean for m in (learn.ema_target.target, twin, learn.model))
    close(ours, theirs)
    assert not torch.allclose(ours, online)


def test_targets_come_and_go():
    learn = learner(tiny_model(), InfoNCE(0.2), SharedTarget())
    found = list(learn.model.state_dict())
    learn.fit(1, LR)
    learn.remove_cb(SharedTarget)
    learn.add_cb(EMATarget(0.9))
    assert any(k.startswith('memory.ema.encoder') for k in learn.model.state_dict())
    learn.fit(1, LR)
    learn.remove_cb(learn.ema_target)
    assert list(learn.model.state_dict()) == found and not hasattr(learn, 'ema_target')
    ema = EMATarget(0.9)
    with learn.added_cbs(ema): learn.fit(1, LR)
    assert list(learn.model.state_dict()) == found and ema.target is None
    learn.fit(1, LR, cbs=SharedTarget())
    assert list(learn.model.state_dict()) == found


def test_a_target_added_late_starts_from_the_weights_of_then():
    learn = learner(tiny_model(), InfoNCE(0.2), SharedTarget())
    learn.fit(1, LR)
    learn.remove_cb(SharedTarget)
    learn.add_cb(EMATarget(0.9))
    close(learn.ema_target.target.encoder[0].weight, learn.model.encoder[0].weight, rtol=0, atol=0)


def test_fit_again_goes_on_with_the_target():
    learn = learner(tiny_model(), InfoNCE(0.2), EMATarget(0.6, 'constant'), Diary())
    name, weights = 'encoder.0.weight', []
    for _ in range(2):
        learn.fit(1, LR)
        weights += [w[name] for w in learn.diary.weights][bool(weights):]
    assert len(weights) == 5
    close(learn.ema_target.target.get_parameter(name), closed_form(weights, [0.6] * 4))


def test_save_and_load_bring_the_target_back(tmp_path):
    batches = pictures()
    def make(): return learner(tiny_model(), InfoNCE(0.2), EMATarget(0.6), batches=batches, path=tmp_path)
    one, other = make(), make()
    one.fit(1, LR)
    one.save('here')
    other.load('here')
    assert one.model.state_dict().keys() == other.model.state_dict().keys()
    for k, v in one.model.state_dict().items(): assert torch.equal(v, other.model.state_dict()[k]), k
    assert other.ema_target.target is other.model.memory['ema']
    for learn in (one, other): learn.fit(1, LR)  # what was loaded is what the callback goes on with
    close(one.ema_target.target.state_dict(), other.ema_target.target.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize('momentum', [-0.1, 1.01])
def test_momentum_outside_its_range(momentum):
    with pytest.raises(InputError, match=f'momentum={momentum}'): EMATarget(momentum)


def test_unknown_momentum_schedule():
    with pytest.raises(InputError, match='did you mean cosine'): EMATarget(schedule='cosin')


def test_callbacks_are_told_when_they_come_and_go():
    class Guest(StepCallback):
        def __init__(self): self.pages = []
        def attached(self): self.pages.append(('attached', self.learn))
        def detached(self, learn): self.pages.append(('detached', learn))
    guest, learn = Guest(), learner(tiny_model(), InfoNCE(0.2))
    for _ in range(2):
        learn.add_cb(guest)
        learn.remove_cb(guest)
    assert guest.pages == [('attached', learn), ('detached', learn)] * 2 and guest.learn is None


# --- fits that end badly

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
    learn = learner(tiny_model(predictor=False), TurnsNaN(4, value), SharedTarget(), FiniteLoss(), Diary(), batches=pictures(3))
    extra = After('before_fit', -1, lambda: None)
    with pytest.raises(InputError) as e: learn.fit(3, 0.0125, cbs=extra)
    text = str(e.value)
    assert '\n' not in text and 'epoch 1, step 1' in text and '0.0125' in text and str(value) in text
    assert len(learn.diary.weights) == 5
    for n, w in learn.diary.weights[-1].items():
        if 'running' not in n: assert torch.equal(w, learn.model.state_dict()[n]) and w.isfinite().all()
    assert extra not in learn.cbs and learn.images is learn.labels is None
    learn.loss_func = PairLoss(NTXent(0.5))
    learn.fit(1, LR)  # and it can go on
    assert len(learn.diary.losses) == 3 and all(map(math.isfinite, learn.diary.losses))


def test_no_target_is_a_sentence():
    learn = learner(tiny_model(), InfoNCE(0.2))
    with pytest.raises(InputError, match='no callback has made keys in this step: add a target') as e: learn.fit(1, LR)
    assert e.value.args[0].splitlines()[-1].strip().startswith('no callback has made keys')


def test_predictions_are_refused_in_a_sentence():
    learn = learner(tiny_model(), InfoNCE(0.2), SharedTarget())
    learn.fit(1, LR)
    with pytest.raises(InputError, match=r'use learn\.embed\(dl\)'): learn.validate(dl=learn.dls.train)


@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_backward', 'after_step', 'after_batch'])
def test_ctrl_c_ends_a_fit_in_good_order(event):
    ended = []
    class Ends(Callback):
        def after_fit(self): ended.append(True)
    learn = learner(tiny_model(), InfoNCE(0.2), EMATarget(0.6), FiniteLoss(), Diary(), Ends(), batches=pictures(4))
    extra = After(event, 2, interrupt)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, LR, cbs=extra)
    assert ended == [True] and extra not in learn.cbs and learn.images is None
    assert len(learn.diary.weights) == 3
    before = {n: t.clone() for n, t in learn.model.state_dict().items()}
    assert all(t.isfinite().all() for t in before.values())
    learn.fit(1, LR)
    assert len(learn.diary.losses) == 4 and learn.stopped is None
    assert not torch.equal(before['encoder.0.weight'], learn.model.encoder[0].weight)


def test_ctrl_c_leaves_no_gradient_for_the_next_fit():
    batches = pictures(2)
    learn = learner(tiny_model(), InfoNCE(0.2), SharedTarget(), Diary(), batches=batches)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, LR, cbs=After('after_backward', 1, interrupt))
    twin = copy.deepcopy(learn.model)
    twin.zero_grad()
    learn.fit(1, LR)
    e = twin({'views': KnownViews()(batches[0][0])['views']})
    paper_step(twin, PairLoss(InfoNCE(0.2))(e, {'final': e['views']['final'].z}))
    same_grads(learn.diary.grads[0], twin)


# --- what a fit leaves behind

@pytest.mark.parametrize('name', ['simclr', 'moco_v3'])
def test_after_fit_the_encoder_is_timms(name):
    learn = real_learner(name)
    learn.fit_contrastive(1)
    encoder = learn.model.encoder
    timms = timm.create_model('resnet10t', num_classes=0)
    assert list(encoder.state_dict()) == list(timms.state_dict())
    timms.load_state_dict(encoder.state_dict(), strict=True)
    for m in learn.model.modules():
        assert not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)
        assert 'forward' not in vars(m)
    assert learn.images is learn.labels is learn.pred is None and learn.yb == (None,)


def test_after_fit_the_batch_is_free():
    seen = []
    class Watcher(Callback):
        def after_pred(self): seen.extend(weakref.ref(t) for t in (self.learn.images, self.xb[0]['views'], self.pred['views']['final'].z))
    learn = learner(tiny_model(), InfoNCE(0.2), SharedTarget(), Watcher(), batches=Fresh())
    learn.fit(1, LR)
    gc.collect()
    assert len(seen) == 6 and all(r() is None for r in seen)


class Fresh:
    "A loader that keeps no batch"
    dataset = ()
    def __len__(self): return 2
    def __iter__(self): return (pictures(1)[0] for _ in range(2))


def test_fields_of_the_step():
    "What is written when, as the table of `step` has it"
    images, labels = pictures(1)[0]
    seen = {}
    class Reader(Callback):
        order = 6
        def before_batch(self): seen.update(images=self.learn.images, labels=self.learn.labels, xb=self.xb, early=self.yb)
    class Later(Callback):
        order = 21
        def after_pred(self): seen.update(pred=self.pred, yb=self.yb)
    learn = learner(tiny_model(predictor=False), NTXent(0.5), SharedTarget(), Reader(), Later(), batches=[(images, labels)])
    learn.fit(1, LR)
    assert torch.equal(seen['images'], images) and torch.equal(seen['labels'], labels) and seen['early'] == ()
    close(seen['xb'][0], KnownViews()(images), rtol=0, atol=0)
    e = seen['pred']['views']['final']
    assert list(seen['pred']) == ['views'] and [tuple(t.shape) for t in e] == [(2, B, 8), (2, B, 5)]
    assert seen['yb'][0]['final'] is e.z


def test_views_are_normalised():
    views, seen = two_views(8, 'digits'), []
    class Reader(Callback):
        order = 6
        def before_batch(self): seen.append(self.xb[0]['views'])
    x = torch.rand(4, 3, 8, 8)
    model = ContrastiveModel(tiny_encoder(False), Head(mlp((8, 6, 4))))
    learn = learner(model, NTXent(0.5), SharedTarget(), Reader(), batches=[(x, torch.arange(4))])
    learn.views, learn.normalize = views, Normalize((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    torch.manual_seed(9)
    learn.fit(1, LR)
    torch.manual_seed(9)
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3)))
    close(seen[0], (views(x)['views'] - mean) / std)


def test_fastais_data_arrive_as_plain_tensors(tmp_path):
    from PIL import Image
    for i in range(8): Image.fromarray(Dots(8).x[i].permute(1, 2, 0).numpy()).save(tmp_path / f'{i}.png')
    types = set()
    class Types(Callback):
        order = 21
        def after_pred(self):
            tensors = [self.learn.images, *self.xb[0].values(), *self.pred['views']['final'], *self.yb[0].values()]
            types.update(map(type, tensors))
            self.seen = self.learn.images
        def after_loss(self): types.add(type(self.loss_grad))
    block = DataBlock((ImageBlock,), get_items=lambda p: sorted(p.glob('*.png')), splitter=lambda items: (range(8), []))
    theirs = block.dataloaders(tmp_path, bs=4, num_workers=0, device='cpu')
    assert type(theirs.one_batch()[0]) is TensorImage
    learn = contrastive_learner(image_dls(theirs, device='cpu'), 'resnet10t', small_input=False, cbs=Types)
    learn.create_mbar = False
    learn.fit_contrastive(1)
    assert types == {torch.Tensor}
    # and where the source's own loader gives the subclass
    types.clear()
    model = tiny_model()
    learn = learner(model, DCL(0.2), EMATarget(0.9), Types(), batches=[(pictures(1)[0][0].as_subclass(TensorImage), torch.arange(B))])
    learn.fit(1, LR)
    assert types == {torch.Tensor}


def test_one_view_has_no_pairs():
    class One(nn.Module):
        def forward(self, x): return {'views': x[None]}
    learn = learner(tiny_model(), InfoNCE(0.2), SharedTarget())
    learn.views = One()
    with pytest.raises(InputError, match='view'): learn.fit(1, LR)


def test_the_fit_stops_with_fastais_own_learner_too():
    learn = learner(tiny_model(predictor=False), TurnsNaN(1), SharedTarget(), FiniteLoss(), cls=Learner)
    with pytest.raises(InputError, match='the loss is nan'): learn.fit(1, LR)


def test_recipes_use_the_steps_parts(): assert isinstance(simclr().resolve('cifar').target(), SharedTarget)
