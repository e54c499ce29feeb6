"""The step: its fields, what a callback is told, and what a fit leaves behind."""
import dataclasses
import gc
import weakref

import pytest
import timm
import torch
from fastai.callback.core import Callback
from fastai.torch_core import TensorImage
from fastai.vision.data import DataBlock, ImageBlock
from helpers.learners import plain_learner, real_learner, small, tiny_encoder, tiny_model
from helpers.pictures import ARCH, LR, B, Dots, Fresh, KnownViews, pictures, plain_batches
from helpers.recording import Diary, step_inputs, step_is_over, step_keys, step_pictures

from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.generators import seed_generators
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import DCL, InfoNCE, NTXent
from fastcontrast.models import ContrastiveModel, Head, Route, mlp
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.recipes import simclr
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt
from fastcontrast.step import OTHER, Phase, Plan, Step, StepCallback, plan_field_table, step_field_table
from fastcontrast.targets import EMATarget, Queue, SharedTarget
from fastcontrast.views import Normalize, two_views

close = torch.testing.assert_close
SEED = 5


def test_callbacks_are_told_when_they_come_and_go():
    class Guest(StepCallback):
        phase = Phase.INPUT
        def __init__(self): self.pages = []
        def attached(self): self.pages.append(('attached', self.learn))
        def detached(self, learn): self.pages.append(('detached', learn))
    guest, learn = Guest(), plain_learner(tiny_model(), InfoNCE(0.2))
    for _ in range(2):
        learn.add_cb(guest)
        learn.remove_cb(guest)
    assert guest.pages == [('attached', learn), ('detached', learn)] * 2 and guest.learn is None


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
    assert step_is_over(learn) and learn.pred is None and learn.yb == (None,) and learn.loss_grad is None


def test_after_fit_the_batch_is_free():
    seen = []
    class Watcher(Callback):
        def after_pred(self):
            tensors = step_pictures(self.learn), step_inputs(self.learn)['views'], self.pred['views']['final'].z
            seen.extend(map(weakref.ref, tensors))
    learn = plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget(), Watcher(), batches=Fresh())
    learn.fit(1, LR)
    gc.collect()
    assert len(seen) == 6 and all(r() is None for r in seen)


def test_fields_of_the_step():
    "What is written when, as the table of `step` has it"
    images, labels = plain_batches(1)[0]
    seen = {}
    class Reader(Callback):
        order = 6
        def before_batch(self): seen.update(vars(self.learn.step), views=dict(self.learn.step.views))
    class Later(Callback):
        order = 21
        def after_pred(self): seen.update(pred=self.pred, yb=self.yb, xb=self.xb, step=self.learn.step)
    learn = plain_learner(tiny_model(predictor=False), NTXent(0.5), SharedTarget(), Reader(), Later(),
                          batches=[(images, labels)])
    learn.fit(1, LR)
    assert torch.equal(seen['images'], images) and torch.equal(seen['labels'], labels)
    assert seen['size'] == 9 and seen['shared_views'] and seen['queries'] == {'views': OTHER}
    close(seen['views'], KnownViews()(images), rtol=0, atol=0)
    assert seen['key_views'] is seen['views']['views']
    assert seen['keys'] is None and seen['queue'] is None and not seen['keys_are_queries'] and not seen['own_key_pass']
    e, step = seen['pred']['views']['final'], seen['step']
    assert list(seen['pred']) == ['views'] and [tuple(t.shape) for t in e] == [(2, B, 8), (2, B, 5)]
    assert step.keys['final'] is e.z and step.keys_are_queries and not step.keys_first
    assert seen['yb'] == (step,) and seen['xb'][0] is step.views and seen['xb'][1] is step.route


@pytest.mark.parametrize('declared,table', [(Step, step_field_table), (Plan, plan_field_table)])
def test_the_tables_say_of_every_field_what_it_is(declared, table):
    rows = table()
    assert list(rows.index) == [f.name for f in dataclasses.fields(declared)] and rows.index.is_unique
    assert list(rows.columns) == ['holds', 'shape', 'writer', 'phase']
    for name, row in rows.iterrows():
        assert all(isinstance(said, str) and said.strip() == said and said for said in row), name
        assert row.phase in Phase.__members__ or declared is Plan and row.phase == 'when added', name
    assert rows.holds.is_unique
    if declared is Step:
        order = [Phase[phase] for phase in rows.phase if phase != 'BATCH']
        assert order == sorted(order)  # as a step goes on


def test_nothing_is_written_on_a_step_that_is_not_declared():
    "By any callback of the library"
    seen = set()
    class Look(Callback):
        order = Phase.LAST
        def after_batch(self): seen.update(vars(self.learn.step))
    crops = MultiCrop((2, None, (.4, 1)), (2, 8, (.1, .4)))
    for cbs, kwargs in (([crops, SuNCEt(), IntermediateLoss(), PartialBackprop(), HardRegions(1), Queue(16)], {}),
                        ([PatchVariants(patches='sample')], dict(accumulate=2)), ([CombinePatches()], {})):
        learn = contrastive_learner(pictures(16, 32, 8, labels='all'), ARCH, method=small('moco_v3', 'cifar'),
                                    small_input=False, knn_pictures=0, cbs=[*cbs, Look()], **kwargs)
        learn.create_mbar = False
        learn.fit(1, 1e-3)
        assert vars(learn.plan).keys() == {f.name for f in dataclasses.fields(Plan)}
    assert seen == {f.name for f in dataclasses.fields(Step)}


def test_terms_are_added_by_name():
    class Adds(StepCallback):
        phase = Phase.LABELS
        def __init__(self, name, weight, value): self.said = name, weight, value
        def after_loss(self): self.step.add_term(*self.said)
    def loss_of(*cbs):
        torch.manual_seed(3)
        learn = plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget(), *cbs, diary := Diary())
        learn.fit(1, LR)
        return diary.losses[0]
    three, five = torch.tensor(3., dtype=torch.float64), torch.tensor(5., dtype=torch.float64)
    plain = loss_of()
    assert loss_of(Adds('a', 0.5, three)) == pytest.approx(plain + 1.5)
    assert loss_of(Adds('a', 0.5, three), Adds('b', 2., five)) == pytest.approx(plain + 11.5)
    with pytest.raises(InputError, match="this step has a term 'a' already: give the second another name"):
        loss_of(Adds('a', 1., three), Adds('a', 1., five))


def test_a_loss_that_was_replaced_before_the_terms_keeps_its_gradient():
    "What callbacks of earlier versions did still works, beside terms that are added"
    class Replaces(Callback):
        order = Phase.LABELS
        def after_loss(self): self.learn.loss_grad = self.loss_grad * 0 + self.model.encoder[0].weight.sum()
    class Adds(StepCallback):
        phase = Phase.LABELS
        def after_loss(self): self.step.add_term('a', 2., self.model.encoder[0].weight.sum())
    learn = plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget(), Replaces(), Adds(), diary := Diary())
    learn.fit(1, LR)
    grad = diary.grads[0]['encoder.0.weight']
    close(grad, torch.full_like(grad, 3.))


def test_views_are_normalised():
    views, seen = two_views(8, 'digits'), []
    class Reader(Callback):
        order = 6
        def before_batch(self): seen.append(step_inputs(self.learn)['views'])
    x = torch.rand(4, 3, 8, 8)
    model = ContrastiveModel(tiny_encoder(False), Head(mlp((8, 6, 4))))
    learn = plain_learner(model, NTXent(0.5), SharedTarget(), Reader(), batches=[(x, torch.arange(4))])
    learn.views, learn.normalize = views, Normalize((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    learn.fit(1, LR)
    seed_generators(learn.fit_seed, 0, 0)
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3)))
    close(seen[0], (views(x)['views'] - mean) / std)


def test_fastais_data_arrive_as_plain_tensors(tmp_path):
    from PIL import Image
    for i in range(8): Image.fromarray(Dots(8).x[i].permute(1, 2, 0).numpy()).save(tmp_path / f'{i}.png')
    types = set()
    class Types(Callback):
        order = 21
        def after_pred(self):
            given, keys = step_inputs(self.learn), step_keys(self.learn)
            tensors = [step_pictures(self.learn), *given.values(), *self.pred['views']['final'], *keys.values()]
            types.update(map(type, tensors))
            self.seen = step_pictures(self.learn)
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
    learn = plain_learner(model, DCL(0.2), EMATarget(0.9), Types(),
                          batches=[(plain_batches(1)[0][0].as_subclass(TensorImage), torch.arange(B))])
    learn.fit(1, LR)
    assert types == {torch.Tensor}


def test_recipes_use_the_steps_parts(): assert isinstance(simclr().resolve('cifar').target(), SharedTarget)


def test_no_target_is_a_sentence():
    learn = plain_learner(tiny_model(), InfoNCE(0.2))
    with pytest.raises(InputError, match='no callback has made keys in this step: add a target') as e: learn.fit(1, LR)
    assert e.value.args[0].splitlines()[-1].strip().startswith('no callback has made keys')


def test_predictions_are_refused_in_a_sentence():
    learn = plain_learner(tiny_model(), InfoNCE(0.2), SharedTarget())
    learn.fit(1, LR)
    with pytest.raises(InputError, match=r'use learn\.embed\(dl\)'): learn.validate(dl=learn.dls.train)


@pytest.mark.parametrize('make', [Step, Route])
def test_a_field_that_is_not_declared_is_refused(make):
    "A misspelt one, or one of an earlier version (`Route.stop`), would be written in silence"
    with pytest.raises(InputError, match=f"unknown field of {make.__name__} 'stop'"): make().stop = False


def test_what_the_learner_had_before_is_told_of():
    learn = plain_learner(tiny_model(), InfoNCE(0.2))
    for name, now in dict(images='learn.step.images', query_shape='learn.plan.query_shape', claims='exclusive').items():
        with pytest.raises(AttributeError, match=f'{name} of the learner is gone: it is {now}'): getattr(learn, name)
        with pytest.raises(AttributeError, match=f'it is {now}'): setattr(learn, name, None)
        assert not hasattr(learn, name)
    with pytest.raises(AttributeError, match='claim of the learner is gone: it is exclusive'):
        learn.contrast.claim('the hats')
