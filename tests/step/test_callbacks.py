"""How callbacks of the step come and go: what they must say of themselves, and what a failed one leaves behind."""
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner, ValueMetric
from helpers.learners import plain_learner, quick, small, tiny_model
from helpers.pairs import paired
from helpers.pictures import ARCH, LR, pictures
from helpers.recording import train_two_steps, traces
from helpers.refusals import refusal

from fastcontrast.accumulate import Accumulate
from fastcontrast.core import InputError
from fastcontrast.guards import ClipEach
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import InfoNCE, NTXent
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.multi_view import MultiView
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm
from fastcontrast.step import Contrast, Phase, StepCallback
from fastcontrast.targets import EMATarget, NearestNeighbours, Queue, SharedTarget, StopGradTarget, Target

SEED = 5
PARTS = dict(
    patches=CombinePatches, sampled=lambda: PatchVariants(patches='sample'),
    stitched=lambda: PatchVariants(combine='layer1'), levels=lambda: IntermediateLoss(weights=0.5),
    regions=lambda: HardRegions('layer1'), size=ProgressiveSize, drawn=PartialBackprop, queue=lambda: Queue(16),
    neighbours=lambda: NearestNeighbours(16), crops=lambda: MultiCrop((2, None, (.4, 1)), (2, 8, (.1, .4))),
    several=MultiView,
    suncet=SuNCEt, supervised=SupervisedTerm, chunks=lambda: Accumulate(2), clip=lambda: ClipEach(1.),
    shared=SharedTarget, stopped=StopGradTarget, average=EMATarget)
every_part = pytest.mark.parametrize('make', PARTS.values(), ids=PARTS)


def learner_for(part):
    "A learner that a callback can be added to"
    learn = contrastive_learner(pictures(16, 16, 8, labels='all'), ARCH, method=small('moco_v3', 'cifar'),
                                small_input=False, knn_pictures=0)
    learn.create_mbar = False
    if isinstance(part, PartialBackprop): learn.add_cb(IntermediateLoss())
    if isinstance(part, Target): learn.remove_cb(learn.ema_target)
    return learn


def everything(learn) -> tuple:
    return traces(learn)[0], list(learn.metrics), sorted(n for n in vars(learn) if n not in ('cbs', 'opt'))


# --- a failed addition leaves nothing

@pytest.mark.parametrize('part, kind', paired(PARTS, [RuntimeError, KeyError, InputError, KeyboardInterrupt],
                                              always=(RuntimeError,)))
def test_a_callback_that_fails_at_the_end_leaves_nothing(part, kind):
    make, error = PARTS[part], kind('no')
    part = make()
    learn = learner_for(part)
    before = everything(learn)
    def attached(self):
        super(kind, self).attached()
        raise error
    kind = type(type(part).__name__, (type(part),), dict(attached=attached))
    object.__setattr__(part, '__class__', kind)
    with pytest.raises(type(error)) as e: learn.add_cb(part)
    assert e.value is error and everything(learn) == before and part.learn is None
    good = make()
    for _ in range(2):  # which may come, go, and come again
        learn.add_cb(good)
        assert everything(learn) != before
        learn.remove_cb(good)
        assert everything(learn) == before
    if isinstance(error, RuntimeError): learn.fit(1, 1e-3, cbs=[make()])


@pytest.mark.parametrize('make,good', [
    (lambda: IntermediateLoss(('layer1', 'layer9')), lambda: IntermediateLoss('layer1')),
    (lambda: IntermediateLoss(('layer1', 'layer2', 'layer1')), lambda: IntermediateLoss(('layer2', 'layer1'))),
    (lambda: HardRegions('layer3', keep=0.99), lambda: HardRegions('layer1', keep=0.3)),
    (lambda: MultiCrop(locals=(2, 1, (.1, .4))), lambda: MultiCrop(locals=(2, 8, (.1, .4)))),
    (lambda: PatchVariants(n=20, combinations=800, patches='sample'), CombinePatches),
    (lambda: CombinePatches(n=17, combinations=289), PatchVariants),
    (lambda: PatchVariants(combine='layer9'), CombinePatches), (lambda: Queue(5), lambda: Queue(16)),
    (lambda: SuNCEt(classes_per_batch=9), lambda: SuNCEt(classes_per_batch=2)),
    (lambda: Accumulate(3), lambda: Accumulate(2))])
def test_a_callback_that_does_not_fit_leaves_nothing(make, good):
    "They are found out early, or when some of what they change is changed already"
    learn = learner_for(None)
    before = everything(learn)
    with pytest.raises(InputError): learn.add_cb(make())
    assert everything(learn) == before
    learn.add_cb(good())
    learn.fit(1, 1e-3)


@pytest.mark.parametrize('cls', [Learner, None], ids=['fastai', 'ours'])
def test_a_contrast_that_fails_takes_along_what_it_brought(cls):
    learn = plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget(), **({'cls': cls} if cls else {}))
    contrast = learn.contrast
    found = [type(cb).__name__ for cb in learn.cbs]
    learn.remove_cb(contrast)
    assert [type(cb).__name__ for cb in learn.cbs] == [n for n in found if n not in ('Contrast', 'MakeViews', 'Score')]
    assert 'plan' not in vars(learn)
    left = list(learn.cbs)
    class Fails(Contrast):
        def attached(self):
            super().attached()
            raise OSError('disk')
    with pytest.raises(OSError): learn.add_cb(Fails(*contrast.brought))
    assert list(learn.cbs) == left and 'plan' not in vars(learn)
    learn.add_cb(contrast)
    learn.fit(1, LR)


def test_a_callback_whose_removal_fails_is_undone_all_the_same():
    seen = []
    class Guest(StepCallback):
        phase = Phase.INPUT
        def attached(self): self.undo(seen.append, 'undone')
        def detached(self, learn): raise RuntimeError('of mine')
    learn = plain_learner(tiny_model(), InfoNCE(0.2), guest := Guest())
    with pytest.raises(RuntimeError, match='of mine'): learn.remove_cb(guest)
    assert seen == ['undone'] and guest.learn is None


def test_a_loss_that_cannot_be_copied_leaves_no_head():
    class Held(NTXent):
        def fresh(self): raise RuntimeError('only one of me')
    learn = quick('simclr', loss=Held(0.2))
    before = everything(learn)
    with pytest.raises(RuntimeError, match='only one of me'): learn.add_cb(IntermediateLoss())
    assert everything(learn) == before
    train_two_steps(learn)


@pytest.mark.parametrize('how', ['removed', 'failed'])
def test_what_was_changed_last_is_undone_first(how):
    seen = []
    class Guest(StepCallback):
        phase = Phase.INPUT
        def attached(self):
            for i in range(4): self.undo(seen.append, i)
            self.undo(lambda: seen.append('no arguments'))
            if how == 'failed': raise LookupError
        def detached(self, learn): seen.append('detached')
    learn, guest = plain_learner(tiny_model(), InfoNCE(0.2)), Guest()
    for _ in range(2):  # what was undone is not undone again
        if how == 'failed':
            with pytest.raises(LookupError): learn.add_cb(guest)
        else:
            learn.add_cb(guest)
            assert seen == []
            learn.remove_cb(guest)
        assert seen == [*['detached'] * (how == 'removed'), 'no arguments', 3, 2, 1, 0]
        seen.clear()


def test_columns_are_shown_as_long_as_their_callback_is_there():
    class Guest(StepCallback):
        phase = Phase.TABLE
        def attached(self): self.show(ValueMetric(lambda: 3., 'three'), ValueMetric(lambda: 4., 'four'))
    learn = quick('simclr')
    before = list(learn.metrics)
    learn.add_cb(guest := Guest())
    assert [m.name for m in learn.metrics] == [*(m.name for m in before), 'three', 'four']
    learn.fit(1, 1e-3)
    assert learn.recorder.values[-1][-2:] == [3., 4.]
    learn.metrics = [*learn.metrics, other := ValueMetric(lambda: 5., 'five')]
    learn.remove_cb(guest)
    assert list(learn.metrics) == [*before, other]


# --- when it acts

class Nameless(StepCallback): "Says no phase"
class Ordered(StepCallback): order = 12
class Between(StepCallback): order = 27.5
class Early(StepCallback): order = -70
class Both(StepCallback): phase, order = Phase.INPUT, 12
class Inherits(Both): "Says nothing of its own"
class Moves(CombinePatches): order = 13
class MovesOn(Moves): phase = Phase.LEVELS


@pytest.mark.parametrize('cls,words', [
    (Nameless, ['Nameless does not say when in a step it acts', 'phase = Phase.INPUT', *(p.name for p in Phase)]),
    (Ordered, ['Ordered has order = 12, which is called phase now: write phase = Phase.INPUT']),
    (Between, ['Between has order = 27.5', 'write phase = Phase.MEANS']),
    (Early, ['Early has order = -70', 'write phase = Phase.PROCESSES']),
    (Both, ['Both has order = 12']), (Inherits, ['Inherits has order = 12']), (Moves, ['Moves has order = 13']),
    (MovesOn, ['MovesOn has order'])], ids=lambda x: getattr(x, '__name__', ''))
def test_a_callback_says_its_phase(cls, words):
    learn = plain_learner(tiny_model(), InfoNCE(0.2))
    before = list(learn.cbs)
    texts = refusal(learn.add_cb, cls()), refusal(learn.add_cb, cls), refusal(quick, 'moco_v3', cbs=[cls])
    assert len(set(texts)) == 1 and all(word in texts[0] for word in words)
    assert list(learn.cbs) == before


def test_callbacks_act_in_the_order_of_their_phases():
    "Whatever the order in which they were added; a phase is inherited"
    seen = []
    class Notes(StepCallback):
        phase = Phase.LAST
        def before_batch(self): seen.append(type(self).__name__)
    class First(Notes): phase = Phase.SIZE
    class Second(Notes): phase = Phase.LABELS
    class Third(Notes): phase = Phase.COUNT
    class Same(Third): "And one that acts when it does"
    class Plain(Callback):
        order = 17  # a fastai callback keeps its number
        def before_batch(self): seen.append('Plain')
    learn = plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget(), Third(), Same(), Notes(), Plain(), First(),
                          Second())
    learn.fit(1, LR)
    assert seen == ['First', 'Second', 'Plain', 'Third', 'Same', 'Notes'] * 2


# --- what only one can do

EXCLUDING = dict(
    patches=(CombinePatches, lambda: PatchVariants(patches='sample')), variants=(PatchVariants, CombinePatches),
    chunks=(lambda: Accumulate(2), lambda: Accumulate(4)), labels=(SuNCEt, SupervisedTerm),
    regions=(HardRegions, lambda: HardRegions(keep=0.3)), drawn=(PartialBackprop, lambda: PartialBackprop(seed=3)))


@pytest.mark.parametrize('first,second', EXCLUDING.values(), ids=EXCLUDING)
def test_two_that_exclude_each_other_are_refused(first, second):
    "In the call and later, with the first one's name; once that is gone the second may come"
    data = pictures(16, 16, 8, labels='all')
    def make(*cbs): return contrastive_learner(data, ARCH, method=small('moco_v3', 'cifar'), small_input=False,
                                               knn_pictures=0, cbs=[IntermediateLoss(), *cbs])
    learn = make(present := first())
    learn.create_mbar = False
    before = everything(learn)
    for text in (refusal(learn.add_cb, second()), refusal(make, first(), second())):
        assert f"this learner has {present!r} already, which is the only one for " in text
        assert text.endswith(': remove that first.')
    assert everything(learn) == before
    learn.remove_cb(present)
    learn.add_cb(second())
    learn.fit(1, 1e-3)


def test_what_is_exclusive_is_said_by_the_class_or_the_object():
    class Guest(StepCallback):
        phase = Phase.INPUT
        def __init__(self, kind): self.kind = kind
        @property
        def exclusive(self): return self.kind and f'the {self.kind}'
    class Other(StepCallback): phase, exclusive = Phase.LAST, 'the hats'
    learn = plain_learner(tiny_model(), InfoNCE(0.2), Guest('hats'), Guest('shoes'), Guest(None), Guest(None))
    for guest in (Guest('hats'), Guest('shoes'), Other()):
        assert f'this learner has Guest already, which is the only one for {guest.exclusive}: remove that first.' == \
            refusal(learn.add_cb, guest)
        assert guest.learn is None
    learn.add_cbs([Guest('gloves'), Guest(None)])


# --- what is checked before every fit

@pytest.mark.parametrize('make', [lambda *cbs: plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget(), *cbs),
                                  lambda *cbs: quick('simclr', cbs=cbs)], ids=['plain', 'whole'])
def test_check_is_called_before_every_fit(make):
    "Also where `before_fit` is a callback's own, without a word of super()"
    seen = []
    class Guest(StepCallback):
        phase = Phase.INPUT
        def check(self): seen.append('check')
        def before_fit(self): seen.append('fit')
    class Silent(StepCallback):
        phase = Phase.LAST
        def check(self): seen.append('silent')
    learn = make(Guest(), Silent())
    when_made = list(seen)
    assert when_made in ([], ['check', 'silent'])
    seen.clear()
    for _ in range(2): learn.fit(1, 1e-3)
    assert seen == ['check', 'fit', 'silent'] * 2


def test_a_failed_check_ends_the_fit_before_it_begins():
    class Guest(StepCallback):
        phase, wrong = Phase.INPUT, False
        def check(self):
            if self.wrong: raise InputError("it does not fit any more: take another.")
        def before_fit(self): "Nothing of super()"
    class Quits(Guest):
        wrong = True
    assert 'it does not fit any more' in refusal(quick, 'simclr', cbs=[Quits])
    learn = quick('simclr', cbs=[guest := Guest()])
    before = {n: t.clone() for n, t in learn.model.state_dict().items()}
    guest.wrong = True
    with pytest.raises(InputError, match='it does not fit any more'): learn.fit(1, 1e-3)
    assert all(torch.equal(t, before[n]) for n, t in learn.model.state_dict().items())
    guest.wrong = False
    train_two_steps(learn)


# --- a callback comes once, by any door, and a refused one takes along those that came with it

class Marks(StepCallback):
    "Leaves a mark on the learner while it is there"
    phase = Phase.INPUT
    def attached(self):
        self.undo(delattr, self.learn, 'mark')
        self.learn.mark = True


@pytest.mark.parametrize('make', [CombinePatches, Marks])
def test_a_callback_is_added_once(make):
    "Patches would be cut into patches once more"
    cb = make()
    learn = quick('simclr', cbs=[cb])
    before = list(learn.cbs)
    sentence = f"this very {make.__name__} is in this learner already: add it once."
    assert refusal(learn.add_cb, cb) == refusal(learn.fit, 1, 1e-3, cbs=[cb]) == sentence
    assert list(learn.cbs) == before and cb.learn is learn
    train_two_steps(learn)
    assert refusal(quick, 'simclr', cbs=[other := make(), other]) == sentence and other.learn is None


def test_of_several_callbacks_all_are_added_or_none():
    learn = quick('simclr')
    before = list(learn.cbs)
    good = [Marks(), CombinePatches()]
    for add in (learn.add_cbs, lambda cbs: learn.fit_contrastive(1, cbs=cbs)):
        assert 'the only one for patches' in refusal(add, [*good, PatchVariants()])
        assert list(learn.cbs) == before and not hasattr(learn, 'mark')
    learn.fit_contrastive(1, cbs=good)
    assert list(learn.cbs) == before


def test_the_callbacks_of_a_learner_that_could_not_be_made_can_go_into_another():
    class Doubts(StepCallback):
        phase = Phase.LAST
        def check(self): raise InputError("not with me: leave me out.")
    good = CombinePatches()
    for bad, words in ((CombinePatches(3), 'the only one for patches'), (Doubts(), 'not with me')):
        assert words in refusal(quick, 'simclr', cbs=[good, bad])
    assert good.learn is None
    train_two_steps(quick('simclr', cbs=[good]))


def test_a_callback_that_fails_on_its_way_out_is_gone():
    class Guest(StepCallback):
        phase = Phase.INPUT
        def detached(self, learn): raise RuntimeError('of mine')
    learn = quick('simclr', cbs=[guest := Guest()])
    with pytest.raises(RuntimeError, match='of mine'): learn.remove_cb(guest)
    assert not any(cb is guest for cb in learn.cbs)
    train_two_steps(learn)


@pytest.mark.parametrize('name', ['plan', 'step', 'views', 'precision', 'model'])
def test_a_callback_may_not_hide_what_the_learner_has(name):
    cls = type(f'{name.title()}Callback', (StepCallback,), dict(phase=Phase.INPUT))
    learn = quick('simclr')
    before = list(learn.cbs)
    assert f'would be called learn.{name}' in refusal(learn.add_cb, cls())
    assert list(learn.cbs) == before


class Own(StepCallback):
    def __init__(self): self.phase = Phase.INPUT
class Numbered(StepCallback):
    phase = Phase.INPUT
    def __init__(self): self.order = 50
class Worded(StepCallback): phase = 'INPUT'
class Halved(StepCallback): phase = 13.5


@pytest.mark.parametrize('cls,words', [
    (Own, 'Own does not say when in a step it acts: give its class a phase'), (Numbered, 'Numbered has order = 50'),
    (Worded, "phase='INPUT' of Worded is no moment of a step"), (Halved, 'phase=13.5 of Halved is no moment')])
def test_a_phase_is_one_of_the_moments_and_stands_in_the_class(cls, words):
    assert words in refusal(quick('simclr').add_cb, cls())


@pytest.mark.parametrize('given,words', [
    ('comb_patches', "'comb_patches' among cbs is no callback"), ([3], '3 among cbs is no callback'),
    ([NTXent], 'among cbs is no callback'), (Accumulate, "cbs=Accumulate can't be made without its arguments")])
def test_what_is_no_callback(given, words): assert words in refusal(quick, 'simclr', cbs=given)


def test_none_among_callbacks_is_passed_over(): train_two_steps(quick('simclr', cbs=[None, CombinePatches()]))
