"""SuNCEt: its losses against the equations, its batches picture by picture, and the step against one written by hand.

The hand-written steps use a learner's modules (copies of them) and its views, and nothing else of the library."""
import copy
import math
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fastai.callback.core import Callback
from test_data import STREAM, dls_of, make
from test_losses import EXTREMES, leaf, value_and_grads
from test_methods import ARCH, B, Recording, codes, small, soft_cross_entropy, unit
from test_step import After, Diary, Dots, KnownViews, Plain, interrupt, paper_ctr, paper_nt_xent, same_grads
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

import fastcontrast.data as data_module
from fastcontrast.core import InputError
from fastcontrast.data import StratifiedLoader, image_dls
from fastcontrast.distributed import gather
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import nt_xent, suncet_loss, supcon_loss
from fastcontrast.models import Embedding
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm
from fastcontrast.step import MultiCrop, add_level

close = torch.testing.assert_close
LOSSES = dict(suncet=suncet_loss, supcon=supcon_loss)
every_loss = pytest.mark.parametrize('name', LOSSES)


@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(11)


# --- the losses

def slow(name, z, y, temp):
    "Eq. 2 of either paper, anchor by anchor, in exponentials"
    u, losses = unit(z), []
    for i in range(len(z)):
        e = {j: (u[i] @ u[j] / temp).exp() for j in range(len(z)) if j != i}
        own = [e[j] for j in e if y[j] == y[i]]
        if not own: continue
        if name == 'suncet': losses.append(-(sum(own) / sum(e.values())).log())
        else: losses.append(-sum((one / sum(e.values())).log() for one in own) / len(own))
    return sum(losses) / len(losses)


def members(S=9, D=5, classes=3, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return leaf((torch.randn(S, D, generator=g, dtype=torch.float64) * 3).to(dtype)), torch.randint(0, classes, (S,), generator=g)


@pytest.mark.parametrize('y', [[0, 0], [0, 1, 0, 1], [3, 3, 3, -1, -1, 7], [0, 1, 2, 2, 3, 4], [5, 5, 5, 5, 5], list(range(5)) * 2 + [9]])
@pytest.mark.parametrize('temp', [0.05, 0.1, 1.])
@every_loss
def test_equals_the_equation(name, y, temp):
    z, y = members(len(y), seed=len(y))[0], torch.tensor(y)
    value, grads = value_and_grads(LOSSES[name], [z], y, temp)
    expected, expected_grads = value_and_grads(lambda z: slow(name, z, y, temp), [z])
    assert value.dtype == torch.float64 and value.shape == ()
    close(value, expected, rtol=1e-10, atol=1e-12)
    close(grads, expected_grads, rtol=1e-8, atol=1e-10)
    close(LOSSES[name](z, y.to(torch.int32), temp), value)


@every_loss
def test_gradcheck(name):
    z, y = members(6, 3)[0], torch.tensor([0, 1, 0, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, y, 0.5), z)
    assert torch.autograd.gradgradcheck(lambda z: LOSSES[name](z, y, 0.5), z)


@every_loss
def test_neither_order_nor_the_classes_numbers_matter(name):
    z, y = members(10)
    value, (grad,) = value_and_grads(LOSSES[name], [z], y)
    order, other = torch.randperm(10), torch.tensor([40, -3, 7])
    permuted, (permuted_grad,) = value_and_grads(LOSSES[name], [leaf(z[order])], other[y[order]])
    close(permuted, value)
    close(permuted_grad, grad[order])


@every_loss
def test_pairs_are_nt_xent(name):
    z = members(12)[0]
    close(LOSSES[name](z, torch.arange(6).repeat(2), 0.2), nt_xent(z[:6], z[6:], 0.2))


def test_where_the_sum_is():
    "Mean inside the logarithm below the mean outside (Jensen); they agree where all of a class are equally near"
    z, _ = members(12)
    y = torch.arange(3).repeat(4)
    assert suncet_loss(z, y) + math.log(3) < supcon_loss(z, y)
    z = torch.eye(3, dtype=torch.float64)[y]
    close(suncet_loss(z, y) + math.log(3), supcon_loss(z, y))


@pytest.mark.parametrize('S', [1, 2, 5])
@every_loss
def test_nobody_has_a_neighbour(name, S):
    z = members(S)[0]
    value, (grad,) = value_and_grads(LOSSES[name], [z], torch.arange(S))
    assert value == 0 and torch.equal(grad, torch.zeros_like(z))


@every_loss
def test_the_lonely_only_push(name):
    "An anchor of its own class is left out of the mean, and still gets a gradient as somebody's negative"
    z, y = members(5)[0], torch.tensor([0, 0, 1, 1, 2])
    value, (grad,) = value_and_grads(LOSSES[name], [z], y)
    terms = LOSSES[name](z[:4], y[:4])
    assert value > terms and grad[4].abs().max() > 1e-6
    with torch.no_grad(): z[4] = -z[:4].mean(0) * 1e3  # as far from the others as it can be
    assert LOSSES[name](z, y) < value


LABELS = torch.tensor([0, 1, 0, 1, 2, 2])


@pytest.mark.parametrize('temp', [0.01, 1.])
@pytest.mark.parametrize('case', EXTREMES)
@every_loss
def test_finite_for_any_finite_input(name, case, temp):
    for x in EXTREMES[case]:
        for y in (LABELS, LABELS.clamp(max=1), torch.tensor([0, 1, 2, 3, 4, 4]), torch.arange(6)):
            value, (grad,) = value_and_grads(LOSSES[name], [leaf(x)], y, temp)
            assert value.isfinite() and value >= -1e-4 and grad.isfinite().all()
            assert (grad[(x == 0).all(-1)] == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@every_loss
def test_low_precision_is_computed_in_float32(name, dtype):
    z, y = members(dtype=dtype)
    value, (grad,) = value_and_grads(LOSSES[name], [z], y)
    expected, (expected_grad,) = value_and_grads(LOSSES[name], [leaf(z.float())], y)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    assert grad.dtype == dtype and torch.equal(grad, expected_grad.to(dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16): assert torch.equal(LOSSES[name](z, y), expected)
    close(value.double(), LOSSES[name](z.double(), y), rtol=1e-5, atol=1e-5)


@every_loss
def test_nothing_waits_for_the_device(name):
    "A tensor without contents can't be read: whatever looks at values, as .item() and boolean indices do, fails on it"
    with FakeTensorMode():
        z, y = torch.empty(6, 4, requires_grad=True), torch.empty(6, dtype=torch.long)
        with pytest.raises(Exception, match='item|nonzero'): z[y == 0].sum().item()
        value = LOSSES[name](z, y)
        value.backward()
    assert value.shape == () and z.grad.shape == z.shape


@pytest.mark.parametrize('z,y,words', [
    (torch.ones(4, 3), torch.zeros(3, dtype=torch.long), r'not as \[4, 3\] with labels \[3\]'),
    (torch.ones(2, 4, 3), torch.zeros(2, dtype=torch.long), 'one label each'), (torch.ones(4, 3), torch.zeros(4, 1, dtype=torch.long), 'one label each'),
    (torch.ones(0, 3), torch.zeros(0, dtype=torch.long), 'one label each'), (torch.ones(4, 0), torch.zeros(4, dtype=torch.long), 'one label each'),
    (torch.ones(4, 3), torch.zeros(4), 'not torch.float32')])
@every_loss
def test_bad_members(name, z, y, words):
    with pytest.raises(InputError, match=words): LOSSES[name](z, y)


@pytest.mark.parametrize('temp', [0, -1., math.nan, math.inf, None])
@every_loss
def test_bad_temperature(name, temp):
    with pytest.raises(InputError, match='temp must be'): LOSSES[name](*members(), temp)


# --- batches by class

def by_class(folder, n=3, how=(), **kwargs):
    "The first batches of a loader over a folder, whose labels may all be used"
    loader = StratifiedLoader(dls_of(folder, **{**dict(labels='all', valid=0), **dict(how)}).train, **kwargs)
    batches = [next(loader) for _ in range(n)]
    loader.close()
    return batches


def same_batches(a, b): return all(torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True))


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return make(tmp_path_factory.mktemp('pictures'), dict(a=12, b=5, c=3, d=2, e=9))


def test_every_batch_is_stratified(folder):
    whole = {x.numpy().tobytes(): y.item() for xs, ys in dls_of(folder, valid=0).train.ordered() for x, y in zip(xs, ys)}
    seen = []
    for images, y in by_class(folder, 250, classes_per_batch=3, per_class=3):
        assert images.shape == (9, 3, 32, 32) and images.dtype == torch.uint8 and y.dtype == torch.int64
        names = [x.numpy().tobytes() for x in images]
        assert [whole[n] for n in names] == y.tolist()
        classes, counts = y.unique(return_counts=True)
        assert counts.tolist() == [3] * 3
        for c in classes.tolist():
            different = len({n for n, k in zip(names, y.tolist()) if k == c})
            assert different == 3 if c != 3 else different <= 2  # class d has two pictures, and repeats them
        seen += zip(names, y.tolist())
    n = torch.bincount(torch.tensor([y for _, y in seen]))
    assert n.sum() == 9 * 250 and (n - 450).abs().max() < 90  # every class as often as the others, however many pictures it has
    for c, pictures, uneven in ((0, 12, 2), (3, 2, 1.2)):  # and within a class, every picture
        of_c = [n for n, y in seen if y == c]
        counts = [of_c.count(n) for n in set(of_c)]
        assert len(counts) == pictures and max(counts) < uneven * min(counts)


def test_draws_are_uniform():
    "Each of the ten pairs among five pictures, each of the six pairs of four classes"
    loader = StratifiedLoader(image_dls(Dots20(), bs=2, valid=0, labels='all', workers=0, device='cpu').train, classes_per_batch=2, seed=5)
    draws = np.concatenate([loader._draw() for _ in range(30)]).reshape(-1, 2, 2)  # [batch, class, picture]
    assert (draws // 5 == draws[:, :, :1] // 5).all()
    classes = np.unique(np.sort(draws[:, :, 0] // 5, 1), axis=0, return_counts=True)
    pairs = np.unique(np.sort(draws.reshape(-1, 2) % 5, 1), axis=0, return_counts=True)
    for (kinds, counts), n in ((classes, 6), (pairs, 10)):
        assert len(kinds) == n and (kinds[:, 0] < kinds[:, 1]).all()
        expected = counts.sum() / n
        assert ((counts - expected) ** 2 / expected).sum() < 3 * n  # chi-squared: n - 1 on average


class Dots20(Dots):
    "Four classes of five pictures"
    def __init__(self):
        super().__init__(20)
        self.targets = [i % 4 for i in range(20)]


def test_draws_repeat_and_leave_other_generators_alone(folder):
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    one, two, other = (by_class(folder, 120, per_class=2, seed=s) for s in (3, 3, 4))
    assert same_batches(one, two) and not same_batches(one, other)
    assert not any(same_batches([one[i]], [one[i + 1]]) for i in range(119))  # also from draw to draw
    assert torch.equal(torch.random.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize('workers', [0, 1])
def test_streamed_batches_are_the_resident_ones(folder, workers):
    n = 105 if not workers else 4  # more than are drawn at a time
    kwargs = dict(classes_per_batch=2, per_class=2)
    few = dict(labels=0.8)
    assert same_batches(by_class(folder, n, few, **kwargs), by_class(folder, n, {**STREAM, **few, 'workers': workers}, **kwargs))


def test_workers_are_let_go(folder):
    dls = dls_of(folder, labels='all', valid=0, bs=8, **{**STREAM, 'workers': 4})
    loader = StratifiedLoader(dls.train, classes_per_batch=2)
    first, part = next(loader), loader._batches.gi_frame.f_locals['part']
    workers = part._loader._iterator._workers
    assert len(workers) == 2 and all(w.is_alive() for w in workers)  # half a batch takes half the workers
    del part
    loader.close()
    for w in workers: w.join(5)
    assert not any(w.is_alive() for w in workers)
    assert not same_batches([first], [next(loader)])
    loader.close()
    assert dls.train._loader is None


@pytest.mark.parametrize('how', [{}, STREAM], ids=['resident', 'streaming'])
def test_a_share_and_a_file_of_labels(folder, tmp_path, how):
    names = ['a/000.png', 'a/007.png', 'e/001.png', 'e/002.png', 'e/004.png']
    (tmp_path/'few.txt').write_text('\n'.join(names))
    dls = dls_of(folder, labels=tmp_path/'few.txt', valid=0, **how)
    loader = StratifiedLoader(dls.train, per_class=2)
    assert [dls.train.data.names[i] for i in loader.at] == names and loader.classes_per_batch == 2
    x = dict(zip(dls.train.data.names, torch.cat([x for x, _ in dls.train.ordered()])))
    for _ in range(20):
        images, y = next(loader)
        assert sorted(y.tolist()) == [0, 0, 4, 4]
        for image in images: assert any(torch.equal(image, x[n]) for n in names)


@pytest.mark.parametrize('how', [{}, STREAM], ids=['resident', 'streaming'])
def test_a_broken_picture_is_stood_in_for_by_a_labelled_one(tmp_path, how):
    make(tmp_path, dict(a=8, b=8))
    (tmp_path/'few.txt').write_text('\n'.join(f'{c}/{i:03}.png' for c in 'ab' for i in (0, 4, 6)))
    (tmp_path/'a/004.png').write_bytes(b'not a picture')
    dls = dls_of(tmp_path, labels=tmp_path/'few.txt', valid=0, **how)
    loader = StratifiedLoader(dls.train, per_class=2)
    known = {x.numpy().tobytes() for x, _ in (dls.train.ordered()._images(loader.at.split(1)[i]).__next__() for i in range(len(loader.at)))}
    for _ in range(20):
        images, y = next(loader)
        assert (y >= 0).all() and {x.numpy().tobytes() for x in images} <= known
    assert 'a/004.png' in dls.report()


@pytest.mark.parametrize('how', [{}, STREAM], ids=['resident', 'streaming'])
def test_slices_of_two_processes_make_the_whole(folder, how, monkeypatch):
    kwargs = dict(classes_per_batch=5, per_class=2)
    whole, parts = by_class(folder, 4, how, **kwargs), []
    monkeypatch.setattr(data_module, 'world_size', lambda: 2)
    for r in range(2):
        monkeypatch.setattr(data_module, 'rank', lambda r=r: r)
        parts.append(by_class(folder, 4, how, **kwargs))
    for batch, one, two in zip(whole, *parts):
        assert len(one[1]) == len(two[1]) == 5
        assert same_batches([batch], [[torch.cat(t) for t in zip(one, two)]])
    with pytest.raises(InputError, match='5 classes with 3 pictures each cannot be divided among 2 processes'): by_class(folder, classes_per_batch=5, per_class=3)


def test_at_most_twenty_classes():
    class Many(Dots):
        def __init__(self):
            super().__init__(50, 4)
            self.targets = [i % 25 for i in range(50)]
    dl = image_dls(Many(), bs=2, valid=0, labels='all', workers=0, device='cpu').train
    for loader, classes in ((StratifiedLoader(dl), 20), (StratifiedLoader(dl, classes_per_batch=25), 25)):
        assert next(loader)[1].unique(return_counts=True)[1].tolist() == [2] * classes


def test_bad_batches_by_class(folder, tmp_path):
    with pytest.raises(InputError, match=r'no label that training may use: give labels \(--labels\) a share like 0.1'): by_class(folder, how=dict(labels=None))
    with pytest.raises(InputError, match=r"class 'c' has one picture whose label .* larger share, or more names"): by_class(folder, how=dict(labels=0.4))
    for kwargs, words in ((dict(classes_per_batch=6), 'classes_per_batch=6 is more than the 5 classes'), (dict(classes_per_batch=1), 'classes_per_batch=1 .*2 or more'),
                          (dict(per_class=1), 'per_class=1 .*2 or more'), (dict(per_class=2.), 'per_class=2.0 .*whole'), (dict(seed=-1), 'seed=-1 .*0 or more')):
        with pytest.raises(InputError, match=words): by_class(folder, **kwargs)
    with pytest.raises(InputError, match="only class 'x' has labels"): by_class(make(tmp_path/'one', dict(x=4)))
    make(tmp_path/'flat', dict(train=4))
    with pytest.raises(InputError, match='the pictures have no labels: use class folders'): by_class(tmp_path/'flat'/'train', how=dict(labels=None))
    with pytest.raises(InputError, match='need the training part of image_dls'): StratifiedLoader([1, 2])


def test_fastai_loaders_are_refused(tmp_path):
    from fastai.vision.data import ImageDataLoaders
    make(tmp_path, dict(a=6, b=6))
    dls = image_dls(ImageDataLoaders.from_folder(tmp_path, valid_pct=0.2, seed=1, bs=4, num_workers=0, device='cpu'), labels='all')
    with pytest.raises(InputError, match='fastai DataLoaders choose themselves .* give image_dls the folder'): StratifiedLoader(dls.train)


# --- the step

def make_learner(recipe, n, bs, side, cbs, labels='all', **kwargs):
    "A learner of a few pictures of two classes, whose labels may be used"
    dls = image_dls(Dots(n, side), bs=bs, valid=0, workers=0, device='cpu', labels=labels)
    learn = contrastive_learner(dls, ARCH, method=recipe, small_input=False, knn_pictures=0, cbs=cbs, **kwargs)
    learn.create_mbar = False
    return learn


def quick(name, *cbs, labels='all', **changes):
    "A small float32 learner as a user makes it, of two batches"
    return make_learner(small(name, 'cifar', **changes), 16, 8, 16, cbs, labels)


def labelled(name, cb):
    "A learner of `test_methods` in float64 whose labels may be used"
    learn = make_learner(small(name), B, B, 32, [Diary(), cb])
    learn.model.double()
    learn.views, learn.normalize = Recording(learn.views), Plain()
    cb.maker = Recording(cb.maker)
    labels = []
    learn.add_cb(After('after_pred', 0, lambda: labels.append(cb.support_y)))
    return learn, labels


def twin_of(learn):
    twin = copy.deepcopy(learn.model).train()
    twin.memory.clear()
    return twin


def by_hand_simclr(twin, views, extra):
    "One pass for all: BatchNorm sees the labelled pictures too"
    h = twin.encoder(torch.cat([*views, *extra]))
    z = twin.heads.final.projector(h)
    return paper_nt_xent(*z[:2 * B].split(B), 0.1), h[2 * B:], z[2 * B:]


def by_hand_moco_v3(twin, views, extra):
    "Every view by itself, and the labelled ones too"
    momentum, head = copy.deepcopy(twin), twin.heads.final
    q1, q2 = (head.predictor(head.projector(twin.encoder(x))) for x in views)
    with torch.no_grad(): k1, k2 = (momentum.heads.final.projector(momentum.encoder(x)) for x in views)
    h = [twin.encoder(x) for x in extra]
    return paper_ctr(q1, k2, 1.) + paper_ctr(q2, k1, 1.), torch.cat(h), torch.cat([head.projector(x) for x in h])


HANDS = dict(simclr=by_hand_simclr, moco_v3=by_hand_moco_v3)


@pytest.mark.parametrize('term', [SuNCEt(), SuNCEt(weight=0.3, per_class=3, views=2, temp=0.5), SupervisedTerm('supcon', weight=2.), SupervisedTerm('ce', views=2)], ids=repr)
@pytest.mark.parametrize('name', HANDS)
def test_a_step_is_the_one_by_hand(name, term):
    term = copy.deepcopy(term)
    learn, labels = labelled(name, term)
    twin, classifier = twin_of(learn), copy.deepcopy(dict(learn.model.memory.items()).get('classifier'))
    learn.fit(1, 0.05)
    diary, (views,), (extra,) = learn.diary, learn.views.made, term.maker.made
    assert extra['labeled'].shape == (term.n, 2 * term.source.per_class, 3, 32, 32)
    loss, h, z = HANDS[name](twin, views['views'], extra['labeled'])
    y = labels[0].repeat(term.n)
    if classifier: own = -sum((h[i] @ classifier.weight.T + classifier.bias).log_softmax(0)[c] for i, c in enumerate(y)) / len(y)
    else: own = slow('suncet' if isinstance(term, SuNCEt) else 'supcon', z, y, term.temp)
    twin.zero_grad()
    total = loss + term.weight * own
    total.backward()
    assert diary.losses == [pytest.approx(total.item(), rel=1e-8)] and term.value == pytest.approx(own.item(), rel=1e-8)
    grads = {n: g for n, g in diary.grads[0].items() if not n.startswith('memory')}
    same_grads(grads, twin)
    if classifier:
        for n, p in classifier.named_parameters(): close(diary.grads[0][f'memory.classifier.{n}'], p.grad, rtol=1e-8, atol=1e-10)
        assert not torch.equal(learn.model.memory['classifier'].weight, classifier.weight)  # the optimizer knows it
    else: assert diary.grads[0].keys() == grads.keys()


def test_swav_scores_projections_not_prototypes():
    term = SuNCEt(weight=0.5)
    learn, labels = labelled('swav', term)
    twin = twin_of(learn)
    learn.fit(1, 0.05)
    (views,), (extra,) = learn.views.made, term.maker.made
    z = twin.heads.final.projector(twin.encoder(torch.cat([*views['views'], *extra['labeled']])))
    local = twin.heads.final.projector(twin.encoder(views['local'].flatten(0, 1)))
    scores = [unit(x) @ twin.heads.final.prototypes.weight.T for x in [*z[:2 * B].split(B), *local.split(B)]]
    targets = [codes(s.detach()) for s in scores[:2]]
    pairs = [soft_cross_entropy(targets[i], scores[j], 0.1) for i in range(2) for j in range(4) if i != j]
    total = sum(pairs) / len(pairs) + 0.5 * slow('suncet', z[2 * B:], labels[0], 0.1)
    assert learn.diary.losses == [pytest.approx(total.item(), rel=1e-8)]
    total.backward()
    for p in (twin.heads.final.prototypes.weight,): p.grad = None  # frozen in the first epoch
    same_grads(learn.diary.grads[0], twin)


class Roles(Callback):
    "Roles and losses of every step"
    order = 60
    def before_fit(self): self.seen, self.losses, self.terms = [], [], []
    def after_batch(self):
        self.seen.append({role: tuple(x.shape[:2]) for role, x in self.xb[0].items()})
        self.losses.append(self.loss.item())


def run(name, *cbs, epochs=2, **kwargs):
    torch.manual_seed(3)
    learn = quick(name, Roles(), *cbs, **kwargs)
    with learn.no_logging(): learn.fit_contrastive(epochs, lr=0.01)
    return learn


def same_weights(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize('term', [SuNCEt(weight=0), SupervisedTerm('ce', weight=0), SupervisedTerm('supcon', 0)], ids=repr)
@pytest.mark.parametrize('name', ['simclr', 'moco_v3', 'swav'])
def test_without_weight_it_is_the_method_bit_by_bit(name, term):
    plain, learn = run(name, epochs=1), run(name, term := copy.deepcopy(term), epochs=1)
    assert same_weights(plain, learn) and plain.roles.losses == learn.roles.losses
    assert learn.recorder.metric_names == plain.recorder.metric_names and term.source.draws == 0 and term.source._batches is None
    torch.manual_seed(3)
    assert not same_weights(plain, run(name, SuNCEt(), epochs=1))


@pytest.mark.parametrize('kind', [SuNCEt, SupervisedTerm])
def test_until(kind):
    term = kind(until=1, per_class=3)
    held = []
    learn = run('simclr', term, *(After('before_backward', i, lambda: held.append(term.source._batches is not None)) for i in (1, 2)), epochs=3)
    assert held == [True, False]  # let go at once
    assert [roles.get('labeled') for roles in learn.roles.seen] == [(1, 6)] * 2 + [None] * 4
    column = [row[learn.recorder.metric_names.index(term.name) - 1] for row in learn.recorder.values]
    assert column[0] > 0 and all(math.isnan(v) for v in column[1:])
    assert term.source.draws == 1
    with learn.no_logging(): learn.fit(1, 0.01)  # the epochs of a fit: the next one begins anew
    assert 'labeled' in learn.roles.seen[0] and term.source.draws == 2
    assert all(p.grad is None for p in learn.model.parameters())


def test_the_table_has_the_mean_of_the_steps():
    terms, seen = [], SuNCEt()
    real = seen.term
    seen.term = lambda e: terms.append(real(e)) or terms[-1]
    learn = run('simclr', seen, epochs=1)
    assert learn.recorder.metric_names[-2:] == ['suncet', 'time']
    assert len(terms) == 2 and learn.recorder.values[0][-1] == pytest.approx(sum(t.item() for t in terms) / 2, rel=1e-6)


@pytest.mark.parametrize('name', ['moco_v2', 'byol', 'simsiam', 'nnclr', 'swav', 'dino', 'barlow_twins', 'vicreg'])
def test_every_kind_of_recipe(name):
    learn = run(name, SuNCEt(), epochs=1, **dict(multi_crop=lambda: MultiCrop((2, None, (0.4, 1.)), (2, 8, (0.05, 0.4)))) if name == 'swav' else {})
    assert all(math.isfinite(loss) for loss in learn.roles.losses) and learn.roles.seen[0]['labeled'] == (1, learn.suncet.source.bs)
    assert learn.suncet.maker.size == 16 and learn.suncet.maker.role == 'labeled'
    if name == 'swav': assert learn.suncet.maker.strength.scale == (0.4, 1.)


class Kept(nn.Module):
    "A maker of views that keeps the pictures it is given"
    def __init__(self, maker):
        super().__init__()
        self.maker, self.given = maker, []
    def forward(self, images):
        self.given.append(images)
        return self.maker(images)


def test_training_is_given_the_same_pictures_as_they_are_streamed(folder):
    def given(how):
        dls = dls_of(folder, size=16, bs=8, labels='all', valid=0, **how)
        term = SuNCEt(per_class=3)
        learn = contrastive_learner(dls, ARCH, method=small('simclr', 'cifar'), small_input=False, knn_pictures=0, cbs=term)
        learn.create_mbar, term.maker = False, Kept(term.maker)
        with learn.no_logging(): learn.fit(2, 0.01)
        return term.maker.given
    resident, streamed = given({}), given(STREAM)
    assert len(resident) == 6 and resident[0].shape == (15, 3, 18, 18) and resident[0].dtype == torch.uint8
    assert same_batches([resident], [streamed])


class OnlyUpTo(Callback):
    "A step that ends at a level"
    order = 15
    def __init__(self, level): self.level = level
    def before_batch(self): self.xb[1].levels = (self.level,)


@pytest.mark.parametrize('term,uses', [(SuNCEt(), True), (SupervisedTerm('supcon'), True), (SupervisedTerm('ce'), False)], ids=['suncet', 'supcon', 'ce'])
def test_a_step_that_ends_below(term, uses):
    term = copy.deepcopy(term)
    learn, labels = labelled('simclr', term)
    level = add_level(learn, 'layer2')
    learn.model.double()
    learn.add_cb(OnlyUpTo(level))
    twin = twin_of(learn)
    learn.fit(1, 0.05)
    with_gradient = {n.split('.')[1] for n in learn.diary.grads[0]}
    assert with_gradient == {'conv1', 'bn1', 'layer1', 'layer2', level}  # nothing above
    x = torch.cat([*learn.views.made[0]['views'], *term.maker.made[0]['labeled']])
    e = twin.embed(x[None], (level,))[level]
    z = e.z[0]
    total = paper_nt_xent(*z[:2 * B].split(B), 0.1)
    if uses: total = total + slow('suncet' if isinstance(term, SuNCEt) else 'supcon', z[2 * B:], labels[0], 0.1)
    assert learn.diary.losses == [pytest.approx(total.item(), rel=1e-8)]
    assert math.isnan(term.value) != uses


@pytest.mark.parametrize('make_term', [SuNCEt, SupervisedTerm], ids=['suncet', 'ce'])
def test_added_removed_and_added_again(make_term):
    learn = quick('moco_v3')
    keys, metrics, rng = set(learn.model.state_dict()), list(learn.metrics), torch.random.get_rng_state()
    for _ in range(2):
        term = make_term()
        learn.add_cb(term)
        assert len(learn.metrics) == len(metrics) + 1 and learn.claims == {'labels': term}
        assert torch.equal(torch.random.get_rng_state(), rng)
        assert set(learn.model.state_dict()) - keys == ({'memory.classifier.weight', 'memory.classifier.bias'} if make_term is SupervisedTerm else set())
        with learn.no_logging(): learn.fit(1, 0.01)
        assert term.support_y is None and term.source._batches is None
        assert sum(len(group['params']) for group in learn.opt.opt.param_groups) == sum(p.requires_grad for p in learn.model.parameters())
        learn.remove_cb(term)
        assert set(learn.model.state_dict()) == keys and list(learn.metrics) == metrics and not learn.claims and term.source is None
        learn.add_cb(term)  # the very same one
        learn.remove_cb(term)
        with learn.no_logging(): learn.fit(1, 0.01)
        rng = torch.random.get_rng_state()
    assert set(learn.model.state_dict()) == keys
    assert not any(k.startswith('memory.classifier') or 'memory.ema.memory' in k for k in keys)


def test_the_classifier_is_not_followed_by_the_average():
    learn = quick('byol', SupervisedTerm())
    assert not any('ema' in k and 'classifier' in k for k in learn.model.state_dict())
    one, two = (quick('byol', SupervisedTerm(seed=s)).model.memory['classifier'].weight for s in (0, 0))
    assert torch.equal(one, two)


def test_the_loss_is_watched():
    with pytest.raises(InputError, match='the loss is inf'): run('simclr', SuNCEt(weight=1e300), epochs=1)


def test_a_fit_that_is_interrupted_lets_go():
    learn = quick('simclr', SuNCEt(), After('after_loss', 1, interrupt))
    with pytest.raises(KeyboardInterrupt), learn.no_logging(): learn.fit(1, 0.01)
    assert learn.suncet.support_y is None and learn.suncet.source._batches is None


@pytest.mark.parametrize('kwargs,words', [
    (dict(weight=-1), 'weight=-1 of SuNCEt must be a finite number, 0 or more'), (dict(weight=math.nan), 'weight=nan'), (dict(weight='1'), "weight='1'"),
    (dict(weight=True), 'weight=True'), (dict(temp=0), 'temp=0 of SuNCEt must be a finite number, above 0'), (dict(temp=-0.1), 'temp=-0.1'),
    (dict(views=0), 'views=0 of SuNCEt must be a whole number of at least 1'), (dict(views=1.5), 'views=1.5'), (dict(until=0), 'until=0 of SuNCEt'),
    (dict(until=2.), 'until=2.0'), (dict(per_class=1), 'per_class=1 '), (dict(classes_per_batch=3), 'classes_per_batch=3 is more than the 2 classes'),
    (dict(classes_per_batch=0), 'classes_per_batch=0 '), (dict(seed=0.5), 'seed=0.5 ')])
def test_bad_settings(kwargs, words):
    with pytest.raises(InputError, match=words) as e: quick('simclr', SuNCEt(**kwargs))
    assert '\n' not in str(e.value)


def test_bad_company():
    with pytest.raises(InputError, match=r'no label that training may use: give labels \(--labels\) a share like 0.1'): quick('simclr', SuNCEt(), labels=None)
    with pytest.raises(InputError, match="class '0' has one picture"): quick('simclr', SuNCEt(), labels=0.1)
    with pytest.raises(InputError, match=r"this learner has SuNCEt\(\) already"): quick('simclr', SuNCEt(), SupervisedTerm())
    with pytest.raises(InputError, match="unknown supervised loss 'cee': did you mean ce"): SupervisedTerm('cee')
    learn = quick('simclr')
    learn.views = KnownViews()
    with pytest.raises(InputError, match="SuNCEt can't augment labelled pictures as KnownViews does"): learn.add_cb(SuNCEt())
    assert not getattr(learn, 'claims', {}) and 'suncet' not in [m.name for m in learn.metrics]


def test_how_they_are_written():
    assert repr(SuNCEt()) == 'SuNCEt()' and repr(SuNCEt(0.5, until=3)) == 'SuNCEt(weight=0.5, until=3)'
    assert repr(SupervisedTerm('supcon', per_class=4)) == "SupervisedTerm(loss='supcon', per_class=4)" and repr(SupervisedTerm()) == 'SupervisedTerm()'
    for made in (SuNCEt(0.25, classes_per_batch=5, views=2), SupervisedTerm('supcon', 2.)): assert repr(eval(repr(made))) == repr(made)


# --- two processes

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def support_batches(n=2):
    loader = StratifiedLoader(image_dls(Dots20(), bs=2, valid=0, labels='all', workers=0, device='cpu').train, classes_per_batch=3, per_class=2)
    return [next(loader) for _ in range(n)]


def term_and_grads(model, kind, images, y):
    "What a term makes of two views of a support batch: the pictures, and their mirror images"
    cb, z = kind(views=2), model(torch.cat([images, images.flip(-1)]).double() / 255).unflatten(0, (2, -1))
    cb.support_y = y
    model.zero_grad()
    value = cb.term({'final': Embedding(z, z)})
    value.backward()
    return value.item(), [p.grad.clone() for p in model.parameters()]


def supcon(views): return SupervisedTerm('supcon', views=views)


def work(r, folder):
    "What each of the processes does"
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=r, world_size=2, timeout=timedelta(seconds=90))
    try:
        model, batches = DistributedDataParallel(net()), support_batches()
        return batches, [gather(y) for _, y in batches], *(term_and_grads(model, kind, *batches[0]) for kind in (SuNCEt, supcon))
    finally: dist.destroy_process_group()


def second(_, folder): torch.save(work(1, folder), f'{folder}/second.pt')


def test_two_processes_make_the_step_of_one(tmp_path):
    "This process, and another one"
    child = mp.spawn(second, args=(str(tmp_path),), nprocs=1, join=False)
    try:
        results = [work(0, tmp_path)]
        assert child.join(30)
    finally:
        for p in child.processes:
            if p.is_alive(): p.kill()
            p.join()
    results.append(torch.load(tmp_path/'second.pt'))
    whole = support_batches()
    for i, (images, y) in enumerate(whole):
        assert torch.equal(torch.cat([r[0][i][0] for r in results]), images) and [len(r[0][i][1]) for r in results] == [3, 3]
        for r in results: assert torch.equal(r[1][i], y)
    for kind, place in ((SuNCEt, 2), (supcon, 3)):
        value, grads = term_and_grads(net(), kind, *whole[0])
        for r in results:
            assert r[place][0] == pytest.approx(value, rel=1e-10)
            close(r[place][1], grads, rtol=1e-10, atol=1e-12)
        assert all(g.abs().max() > 1e-4 for g in grads)


@pytest.mark.parametrize('bs,labels,support', [(44, 'all', 40), (22, 'all', 20), (4, 'all', 4), (44, 0.4, 4)])
def test_the_support_is_of_the_authors_proportion(bs, labels, support):
    dls = image_dls(Dots20(), bs=min(bs, 20), valid=0, labels=labels, workers=0, device='cpu')
    dls.train.bs = bs
    loader = StratifiedLoader(dls.train, classes_per_batch=2)
    most = 2 * loader.counts.min()  # no picture twice
    assert loader.bs == min(support, most) and all(c == loader.bs // 2 for c in next(loader)[1].unique(return_counts=True)[1])


def test_the_temperature_is_that_of_the_loss():
    for name, temp in (('simclr', None), ('byol', 0.1)):
        learn = quick(name, SuNCEt())
        assert learn.suncet.temp == (learn.loss_func.loss.temp if temp is None else temp)
    assert quick('simclr', SuNCEt(temp=0.3)).suncet.temp == 0.3
