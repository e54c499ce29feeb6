"""SuNCEt: the step against one written by hand, and what it leaves behind."""
import copy
import math

import pytest
import torch
from fastai.callback.core import Callback
from helpers.equations import loop_label_loss
from helpers.folders import STREAM, dls_of, same
from helpers.learners import small
from helpers.loops import codes, paper_ctr, paper_nt_xent, same_gradients, soft_cross_entropy, unit
from helpers.pictures import ARCH, B, Dots, KnownViews, Plain
from helpers.recording import After, Diary, Recording, RecordingMaker, interrupt, step_inputs, step_route
from helpers.refusals import refusal
from helpers.pairs import paired
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import InfoNCE
from fastcontrast.recipes import METHODS
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm
from fastcontrast.step import Phase
from fastcontrast.views import ViewMaker
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.pairs import add_level

close = torch.testing.assert_close
SEED = 11


def make_learner(recipe, n, bs, side, cbs, labels='all', **kwargs):
    "A learner of a few pictures of two classes, whose labels may be used"
    dls = image_dls(Dots(n, side), bs=bs, valid=0, workers=0, device='cpu', labels=labels)
    learn = contrastive_learner(dls, ARCH, method=recipe, small_input=False, knn_pictures=0, cbs=cbs, **kwargs)
    learn.create_mbar = False
    return learn


def quick(name, *cbs, labels='all', **changes):
    "A small float32 learner as a user makes it, of two batches"
    return make_learner(small(name, 'cifar', **changes), 16, 8, 16, cbs, labels)


class Wrapped(Callback):
    "What makes a term's views, which it has anew in every fit, within something that looks at them"
    order = Phase.LABELS + 1
    def __init__(self, term, wrap): self.term, self.wrap = term, wrap
    def before_fit(self): self.term.maker = self.wrap(self.term.maker)


def labelled(name, cb):
    "A learner of `test_methods` in float64 whose labels may be used"
    learn = make_learner(small(name), B, B, 32, [Diary(), cb])
    learn.model.double()
    learn.views, learn.normalize = Recording(learn.views), Plain()
    labels = []
    learn.add_cbs([Wrapped(cb, RecordingMaker), After('after_pred', 0, lambda: labels.append(cb.support_y))])
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


@pytest.mark.parametrize('term', [
    SuNCEt(), SuNCEt(weight=0.3, per_class=3, views=2, temp=0.5), SupervisedTerm('supcon', weight=2.),
    SupervisedTerm('ce', views=2)], ids=repr)
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
    if classifier:
        own = -sum((h[i] @ classifier.weight.T + classifier.bias).log_softmax(0)[c] for i, c in enumerate(y)) / len(y)
    else: own = loop_label_loss('suncet' if isinstance(term, SuNCEt) else 'supcon', z, y, term.temp)
    twin.zero_grad()
    total = loss + term.weight * own
    total.backward()
    assert diary.losses == [pytest.approx(total.item(), rel=1e-8)] and term.value == pytest.approx(own.item(), rel=1e-8)
    grads = {n: g for n, g in diary.grads[0].items() if not n.startswith('memory')}
    same_gradients(grads, twin)
    if classifier:
        for n, p in classifier.named_parameters():
            close(diary.grads[0][f'memory.classifier.{n}'], p.grad, rtol=1e-8, atol=1e-10)
        assert not torch.equal(learn.model.memory['classifier'].weight, classifier.weight)  # the optimizer knows it
    else: assert diary.grads[0].keys() == grads.keys()


def test_swav_scores_projections_not_prototypes():
    term = SuNCEt(weight=0.5)
    learn, labels = labelled('swav', term)
    twin = twin_of(learn)
    learn.fit(1, 0.05)
    (views,), (extra,) = learn.views.made, term.maker.made
    h = [twin.encoder(torch.cat([*views['views'], *extra['labeled']])), twin.encoder(views['local'].flatten(0, 1))]
    z, local = twin.heads.final.projector(torch.cat(h)).split([len(x) for x in h])  # in one pass of the head
    scores = [unit(x) @ twin.heads.final.prototypes.weight.T for x in [*z[:2 * B].split(B), *local.split(B)]]
    targets = [codes(s.detach()) for s in scores[:2]]
    pairs = [soft_cross_entropy(targets[i], scores[j], 0.1) for i in range(2) for j in range(4) if i != j]
    total = sum(pairs) / len(pairs) + 0.5 * loop_label_loss('suncet', z[2 * B:], labels[0], 0.1)
    assert learn.diary.losses == [pytest.approx(total.item(), rel=1e-8)]
    total.backward()
    for p in (twin.heads.final.prototypes.weight,): p.grad = None  # frozen in the first epoch
    same_gradients(learn.diary.grads[0], twin)


class Roles(Callback):
    "Roles and losses of every step"
    order = 60
    def before_fit(self): self.seen, self.losses, self.terms = [], [], []
    def after_batch(self):
        self.seen.append({role: tuple(x.shape[:2]) for role, x in step_inputs(self.learn).items()})
        self.losses.append(self.loss.item())


def run(name, *cbs, epochs=2, **kwargs):
    torch.manual_seed(3)
    learn = quick(name, Roles(), *cbs, **kwargs)
    with learn.no_logging(): learn.fit_contrastive(epochs, lr=0.01)
    return learn


def same_weights(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize('name, term', paired(['simclr', 'moco_v3', 'swav'], [
    SuNCEt(weight=0), SupervisedTerm('ce', weight=0), SupervisedTerm('supcon', 0)]), ids=str)
def test_without_weight_it_is_the_method_bit_by_bit(name, term):
    plain, learn = run(name, epochs=1), run(name, term := copy.deepcopy(term), epochs=1)
    assert same_weights(plain, learn) and plain.roles.losses == learn.roles.losses
    assert learn.recorder.metric_names == plain.recorder.metric_names and term.source.draws == 0
    assert term.source._batches is None
    torch.manual_seed(3)
    assert not same_weights(plain, run(name, SuNCEt(), epochs=1))


@pytest.mark.parametrize('kind', [SuNCEt, SupervisedTerm])
def test_until(kind):
    term = kind(until=1, per_class=3)
    held = []
    learn = run('simclr', term,
                *(After('before_backward', i, lambda: held.append(term.source._batches is not None)) for i in (1, 2)),
                epochs=3)
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


@pytest.mark.parametrize('name', METHODS)
def test_every_kind_of_recipe(name):
    learn = run(name, SuNCEt(), epochs=1,
                **dict(multi_crop=lambda: MultiCrop((2, None, (0.4, 1.)), (2, 8, (0.05, 0.4)))) if name == 'swav'
                else {})
    assert all(math.isfinite(loss) for loss in learn.roles.losses)
    assert learn.roles.seen[0]['labeled'] == (1, learn.suncet.source.bs)
    assert learn.suncet.maker.size == 16 and learn.suncet.maker.role == 'labeled'
    if name == 'swav': assert learn.suncet.maker.strength.scale == (0.4, 1.)


class Kept(ViewMaker):
    "A maker of views that keeps the pictures it is given"
    def __init__(self, maker):
        super().__init__(maker.size, maker.n, maker.role)
        self.maker, self.given = maker, []
    def forward(self, images, size=None):
        self.given.append(images)
        return self.maker(images, size)


def test_training_is_given_the_same_pictures_as_they_are_streamed(class_folder):
    def given(how):
        dls = dls_of(class_folder, size=16, bs=8, labels='all', valid=0, **how)
        term = SuNCEt(per_class=3)
        learn = contrastive_learner(dls, ARCH, method=small('simclr', 'cifar'), small_input=False, knn_pictures=0,
                                    cbs=[term, Wrapped(term, Kept)])
        learn.create_mbar = False
        with learn.no_logging(): learn.fit(2, 0.01)
        return term.maker.given
    resident, streamed = given({}), given(STREAM)
    assert len(resident) == 6 and resident[0].shape == (15, 3, 24, 24) and resident[0].dtype == torch.uint8
    for x, y in zip(resident, streamed, strict=True): assert torch.equal(x, y)


class OnlyUpTo(Callback):
    "A step that ends at a level"
    order = 15
    def __init__(self, level): self.level = level
    def before_batch(self): step_route(self.learn).levels = (self.level,)


@pytest.mark.parametrize('term,uses', [
    (SuNCEt(), True), (SupervisedTerm('supcon'), True), (SupervisedTerm('ce'), False)], ids=['suncet', 'supcon', 'ce'])
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
    if uses:
        total = total + loop_label_loss('suncet' if isinstance(term, SuNCEt) else 'supcon', z[2 * B:], labels[0], 0.1)
    assert learn.diary.losses == [pytest.approx(total.item(), rel=1e-8)]
    assert math.isnan(term.value) != uses


@pytest.mark.parametrize('make_term', [SuNCEt, SupervisedTerm], ids=['suncet', 'ce'])
def test_added_removed_and_added_again(make_term):
    learn = quick('moco_v3')
    keys, metrics, rng = set(learn.model.state_dict()), list(learn.metrics), torch.random.get_rng_state()
    for _ in range(2):
        term = make_term()
        learn.add_cb(term)
        assert len(learn.metrics) == len(metrics) + 1
        with pytest.raises(InputError, match='the only one for the labelled pictures'): learn.add_cb(SuNCEt())
        assert torch.equal(torch.random.get_rng_state(), rng)
        own = {'memory.support_draws._extra_state'}
        if make_term is SupervisedTerm: own |= {'memory.classifier.weight', 'memory.classifier.bias'}
        assert set(learn.model.state_dict()) - keys == own
        with learn.no_logging(): learn.fit(1, 0.01)
        assert term.support_y is None and term.source._batches is None
        assert sum(len(group['params'])
                   for group in learn.opt.opt.param_groups) == sum(p.requires_grad for p in learn.model.parameters())
        learn.remove_cb(term)
        assert set(learn.model.state_dict()) == keys and list(learn.metrics) == metrics
        assert term.source is None
        learn.add_cb(term)  # the very same one
        learn.remove_cb(term)
        with learn.no_logging(): learn.fit(1, 0.01)
        rng = torch.random.get_rng_state()
    assert set(learn.model.state_dict()) == keys
    assert not any(k.startswith(('memory.classifier', 'memory.support')) or 'memory.ema.memory' in k for k in keys)


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
    (dict(weight=-1), 'weight=-1 of SuNCEt must be a finite number at least 0'), (dict(weight=math.nan), 'weight=nan'),
    (dict(weight='1'), "weight='1'"),
    (dict(weight=True), 'weight=True'), (dict(temp=0), 'temp=0 of SuNCEt must be a finite number above 0'),
    (dict(temp=-0.1), 'temp=-0.1'),
    (dict(views=0), 'views=0 of SuNCEt must be a whole number of at least 1'), (dict(views=1.5), 'views=1.5'),
    (dict(until=0), 'until=0 of SuNCEt'),
    (dict(until=2.), 'until=2.0'), (dict(per_class=1), 'per_class=1 '),
    (dict(classes_per_batch=3), 'classes_per_batch=3 is more than the 2 classes'),
    (dict(classes_per_batch=0), 'classes_per_batch=0 '), (dict(seed=0.5), 'seed=0.5 ')])
def test_bad_settings(kwargs, words):
    with pytest.raises(InputError, match=words) as e: quick('simclr', SuNCEt(**kwargs))
    assert '\n' not in str(e.value)


def test_bad_company():
    with pytest.raises(InputError, match=r'no label that training may use: give labels \(--labels\) a share like 0.1'):
        quick('simclr', SuNCEt(), labels=None)
    with pytest.raises(InputError, match="class '0' has one picture"): quick('simclr', SuNCEt(), labels=0.1)
    with pytest.raises(InputError, match=r"this learner has SuNCEt\(\) already"):
        quick('simclr', SuNCEt(), SupervisedTerm())
    with pytest.raises(InputError, match="unknown supervised loss 'cee': did you mean ce"): SupervisedTerm('cee')
    learn = quick('simclr')
    learn.views = KnownViews()
    with pytest.raises(InputError, match="KnownViews makes the views of one role alone"):
        learn.add_cb(SuNCEt())
    assert not any(isinstance(cb, SuNCEt) for cb in learn.cbs) and 'suncet' not in [m.name for m in learn.metrics]


def fast_learner(dls, **kwargs):
    method = small('fast', 'cifar', **kwargs)
    return contrastive_learner(dls, ARCH, method=method, small_input=False, knn_pictures=0)


def left_out(learn):
    "What is said of the method's own term, which is not there"
    assert not hasattr(learn, 'suncet')
    note, = (note for note in learn.notes if 'SuNCEt' in note)
    return note


@pytest.mark.parametrize('names,why', [
    (('a/000.png', 'a/001.png', 'b/000.png'), "class 'b' has one picture"),
    (('a/000.png', 'a/001.png'), "only class 'a' has labels")])
def test_a_methods_own_term_is_left_out_where_labels_are_too_few(class_folder, tmp_path, names, why):
    (tmp_path/'few.txt').write_text('\n'.join(names))
    dls = dls_of(class_folder, size=16, bs=8, valid=0, labels=tmp_path/'few.txt')
    assert f'SuNCEt() of fast() is left out: {why}' in left_out(fast_learner(dls))
    assert why in refusal(fast_learner, dls, with_labels=(SuNCEt,))  # which is asked for


def test_a_methods_own_term_is_left_out_where_pictures_cannot_be_chosen(class_folder):
    from fastai.vision.data import ImageDataLoaders
    given = ImageDataLoaders.from_folder(class_folder, valid_pct=0.2, seed=5, bs=8, num_workers=0, device='cpu')
    assert 'fastai DataLoaders choose themselves' in left_out(fast_learner(image_dls(given, labels='all')))
    assert isinstance(quick('fast').suncet, SuNCEt)


def test_how_they_are_written():
    assert repr(SuNCEt()) == 'SuNCEt()' and repr(SuNCEt(0.5, until=3)) == 'SuNCEt(weight=0.5, until=3)'
    assert repr(SupervisedTerm('supcon', per_class=4)) == "SupervisedTerm(loss='supcon', per_class=4)"
    assert repr(SupervisedTerm()) == 'SupervisedTerm()'
    for made in (SuNCEt(0.25, classes_per_batch=5, views=2), SupervisedTerm('supcon', 2.)):
        assert repr(eval(repr(made))) == repr(made)


def test_the_temperature_is_the_papers_whatever_that_of_the_loss():
    for name, temp in (('simclr', 0.2), ('moco_v3', 1.0), ('byol', None)):
        changes = dict(loss=InfoNCE(temp)) if name == 'moco_v3' else {}
        for term in (SuNCEt(), SuNCEt(temp=None)):
            learn = quick(name, term, **changes)
            assert learn.suncet.temp == 0.1 and learn.loss_func.loss.temp == temp
    assert quick('simclr', SuNCEt(temp=0.3)).suncet.temp == 0.3


# --- the place among the support batches

class Given(Callback):
    "The classes and pictures of every support batch; what is done before a step, at its number"
    order = Phase.LABELS + 1
    def __init__(self, **actions): self.seen, self.actions = [], {int(n[1:]): act for n, act in actions.items()}
    def before_batch(self):
        self.seen.append((self.learn.suncet.support_y.tolist(), self.learn.suncet.source.place))
        if act := self.actions.get(len(self.seen)): act(self.learn)


def given(epochs=3, load=None, **actions):
    "Support batches of a fit of two steps an epoch, after a state was loaded"
    learn = quick('simclr', SuNCEt(classes_per_batch=2, per_class=2), seen := Given(**actions))
    learn.suncet.source.ahead = 3
    batches, real = [], learn.suncet.support
    learn.suncet.support = lambda: batches.append(real()) or batches[-1]
    if load: load(learn)
    with learn.no_logging(): learn.fit(epochs, 0.01)
    return batches, seen.seen, learn


@pytest.mark.parametrize('steps', [1, 3, 4])
def test_a_model_that_is_loaded_goes_on_with_the_next_batches(tmp_path, steps):
    "Within a draw, at its end, and in the next one"
    whole, places, learn = given(3, **{f'n{steps}': lambda learn: learn.save(tmp_path/'model')})
    assert [place for _, place in places] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert learn.model.memory['support_draws'].place == (2, 0)  # a fit that ended begins the next draw
    rest, _, _ = given(1, load=lambda learn: learn.load(tmp_path/'model'))
    same(rest, whole[steps:steps + 2])


def test_a_state_that_is_loaded_in_a_fit(tmp_path):
    state = {}
    whole, _, _ = given(3, n2=lambda learn: state.update(learn.model.state_dict()))
    key = 'memory.support_draws._extra_state'
    assert state[key].tolist() == [1, 2]
    again, _, _ = given(3, n5=lambda learn: learn.model.load_state_dict(state))
    same(again, [*whole[:5], whole[2]])
    ended, _, _ = given(1, load=lambda learn: learn.model.memory['support_draws'].set_extra_state(torch.tensor([2, 0])))
    fresh, _, learn = given(1, load=lambda learn: learn.suncet.supports.set_extra_state(torch.tensor([3, 3])))
    with pytest.raises(AssertionError): same(ended, fresh)
    assert learn.suncet.source.draws == 4


def test_a_model_is_copied_without_the_pictures():
    learn = given(1)[2]
    place = copy.deepcopy(learn.model).memory['support_draws']
    assert place.place == (1, 0) and place is not learn.suncet.supports
    assert set(vars(place)) - set(vars(nn.Module())) == {'place'}


class Resumes(Callback):
    "Gives a callback its state back, once it has begun an epoch"
    order = Phase.LABELS + 1
    def __init__(self, cb, state): self.cb, self.state = cb, state
    def before_train(self): self.cb.load_state_dict(self.state)


def test_the_column_of_an_epoch_that_is_taken_up():
    kept, terms, term = {}, [], SuNCEt()
    assert term.state_dict()['steps'] == 0  # before any training, too
    learn = quick('simclr', SuNCEt(), After('after_batch', 1, lambda: kept.update(learn.suncet.state_dict())))
    with learn.no_logging(): learn.fit(1, 0.)
    assert kept['steps'] == 1 and math.isnan(kept['value']) and kept.keys() == {'total', 'steps', 'value'}
    resumed = quick('simclr', term, Resumes(term, kept))
    real = term.term
    term.term = lambda embeddings: terms.append(real(embeddings)) or terms[-1]
    with resumed.no_logging(): resumed.fit(1, 0.)
    assert term.value == pytest.approx((float(kept['total']) + sum(t.item() for t in terms)) / 3) and len(terms) == 2
