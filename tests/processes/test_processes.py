"""Several processes train one batch: for every recipe and speedup, two do what one does with the whole batch.

All that two processes do here they do in one launch."""
import hashlib
import math
import os
import re
import time
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from timm.layers import BatchNormAct2d, GroupNorm1, SyncBatchNormAct
from helpers.forks import start
from helpers.pictures import Dots20
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

import fastcontrast.together
from fastcontrast.core import InputError
from fastcontrast.data import StratifiedLoader, image_dls
from fastcontrast.distributed import MeanGradients, gather, gather_objects, rank
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import DCL, DCLW, NegCosine
from fastcontrast.models import Embedding
from fastcontrast.recipes import METHODS, RECIPES, SPEEDUPS
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.multi_view import MultiView
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.step import Phase, StepCallback
from fastcontrast.targets import Queue
from fastcontrast.together import synchronise
from fastcontrast.views import Views

BS, N, SIDE = 8, 18, 16  # two batches an epoch, and two pictures that fill none
STAGED = dict(side=32)  # where a stage before the last is looked at, it has several cells
CROPS = partial(MultiCrop, (2, None, (0.4, 1.0)), (2, None, (0.05, 0.4)))
SUPPORT = dict(classes_per_batch=2, per_class=4)


class Pictures(Dataset):
    "Noise in two classes"
    def __init__(self, n=N, side=SIDE, seed=0):
        self.x, self.targets = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8,
                                             generator=torch.Generator().manual_seed(seed)), [i % 2 for i in range(n)]
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.targets[i]


class Shapes(Pictures):
    "Pictures that are no squares, but as large: by turns wide and tall"
    def __init__(self, n=N, side=SIDE, seed=0):
        super().__init__(n, side, seed)
        x = self.x.flatten(2)
        self.x = [x[i].unflatten(1, (side // 2, side * 2) if i % 2 else (side * 2, side // 2)) for i in range(n)]


class Diary(Callback):
    "Losses of all steps; gradients of the last one, before anything clips them"
    order = 0
    def before_fit(self): self.losses, self.seen = [], []
    def before_batch(self): self.seen.append(self.xb[0].flatten(1).double().mean(1))
    def before_step(self):
        self.grads = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
    def after_batch(self): self.losses.append(self.loss.item())


class OwnLoss(Callback):
    "Backward passes of a callback's own, through a part of the encoder and through all of it"
    order = 0
    def __init__(self, event): setattr(self, event, self.add)
    def add(self):
        for stage in (self.model.encoder.layer1, self.model.encoder):
            def keep(module, args, out): self.out = out
            pictures = self.learn.normalize(self.learn.step.images / 255)
            with stage.register_forward_hook(keep): self.model.encoder(pictures)
            self.out.square().mean().backward()


make_views = Views.forward


def views_by_picture(self, images, size=None, aspects=None):
    "Views that depend on the picture alone, in whichever process it is"
    def of(x, *aspect):
        torch.default_generator.manual_seed(int(x.long().sum()))
        return make_views(self, x[None], size, *aspect)[self.role]
    pictures = zip(images) if aspects is None else zip(images, aspects.split(1))
    return {self.role: torch.cat([of(*picture) for picture in pictures], 1).double()}


def small(name, **changes):
    "A recipe with small heads of the same depths"
    r = RECIPES[name]
    few = dict(projector=(16,) * (len(r.projector) - 1) + (8,))
    if r.predictor: few['predictor'] = (16, 8)
    if r.prototypes: few |= dict(prototypes=12, multi_crop=CROPS)
    return METHODS[name](**{**few, **changes})


def without_batchnorm(model):
    for name, m in list(model.named_modules()):
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            model.set_submodule(name, GroupNorm1(m.num_features, affine=m.affine))


RUNS = {  # what `contrastive_learner` is given
    **{name: lambda name=name: dict(method=small(name)) for name in METHODS},
    'swav with its queue': lambda: dict(method=small('swav', memory=partial(Queue, 8, start=1, per_view=True))),
    'dcl': lambda: dict(method=small('simclr', loss=DCL)),
    'dclw with a queue': lambda: dict(method=small('moco_v2', loss=DCLW)),
    'neg_cosine': lambda: dict(method=small('byol', loss=NegCosine)),
    'comb_patches': lambda: dict(method=small('moco_v3'), cbs=[CombinePatches()]),
    'multi_view': lambda: dict(method=small('simclr'), cbs=[MultiView(3)]),
    'multi_view, each': lambda: dict(method=small('moco_v3'), cbs=[MultiView(3, 'each')]),
    'multi_view, growing': lambda: dict(method=small('simclr'), cbs=[MultiView(4), ProgressiveSize()], **STAGED),
    'multi_view, one way': lambda: dict(method=small('moco_v2'), cbs=[MultiView(3)]),
    'patch_variants': lambda: dict(method=small('simclr'), cbs=[PatchVariants(combine='layer2')], **STAGED),
    'patch_variants sampled': lambda: dict(method=small('byol'), cbs=[PatchVariants(patches='sample')]),
    'intermediate': lambda: dict(method=small('dino'), cbs=[IntermediateLoss()], **STAGED),
    'partial': lambda: dict(method=small('moco_v3'), cbs=[IntermediateLoss(), PartialBackprop()], **STAGED),
    'regions': lambda: dict(method=small('moco_v3'), cbs=[HardRegions(score='loss')], **STAGED),
    'regions after two stages': lambda: dict(method=small('moco_v3'),
                                             cbs=[HardRegions(stages=('layer1', 'layer2'), cells=None)], **STAGED),
    'regions, own keys': lambda: dict(method=small('simclr', loss=DCL), cbs=[HardRegions(score='loss')], **STAGED),
    'regions, negative cosines': lambda: dict(method=small('vicreg'), cbs=[HardRegions(score='loss')], **STAGED),
    'suncet': lambda: dict(method=small('simclr'), cbs=[SuNCEt(**SUPPORT, views=2)]),
    'supervised': lambda: dict(method=small('simclr'), cbs=[SupervisedTerm('ce', **SUPPORT)]),
    'supcon': lambda: dict(method=small('nnclr'), cbs=[SupervisedTerm('supcon', **SUPPORT)]),
    'progressive_size': lambda: dict(method=small('moco_v3'), cbs=[ProgressiveSize()], **STAGED),
    'progressive_size, in parts': lambda: dict(method=small('dino'), cbs=[ProgressiveSize(strength=0.5)], accumulate=2,
                                               **STAGED),
    # patches have maps of 2 x 2 cells there: were they looked at as one, rounding would choose the window
    'all': lambda: dict(method=small('moco_v3'),
                        cbs=[CombinePatches(), IntermediateLoss(), PartialBackprop(), HardRegions(cells=None),
                             SuNCEt(**SUPPORT)], **STAGED),
    **{f"a callback's own loss, {event}": lambda event=event: dict(method=small('simclr'), cbs=[OwnLoss(event)])
       for event in ('before_backward', 'after_backward')},
    "a callback's own loss, in parts": lambda: dict(method=small('simclr'), cbs=[OwnLoss('after_backward')],
                                                    accumulate=2),
    'streamed': lambda: dict(method=small('simclr'), memory=1e-12),
    'whole pictures': lambda: dict(method=small('moco_v2'), cbs=[SuNCEt(**SUPPORT)], kind=Shapes),
    'whole pictures, in parts': lambda: dict(method=small('simclr'), accumulate=2, kind=Shapes, memory=1e-12),
    'in parts': lambda: dict(method=small('moco_v3'), accumulate=2),
    'in parts, partial': lambda: dict(method=small('simclr'), cbs=[IntermediateLoss(), PartialBackprop()],
                                      accumulate=2, **STAGED),
}


# prototypes that are frozen in the first epoch, a queue that begins in the second, and views that grow
LONG = ('swav', 'dino', 'swav with its queue', 'progressive_size', 'progressive_size, in parts', 'multi_view, growing',
        'intermediate')


def build(method, cbs=(), memory=0.25, accumulate=1, side=SIDE, kind=Pictures):
    torch.manual_seed(3 + rank())  # the weights are those of process 0
    train, valid = kind(side=side), kind(side=side, seed=1)
    dls = image_dls(train, size=side, bs=BS, labels='all', valid=valid, workers=0, device='cpu', memory=memory)
    learn = contrastive_learner(dls, 'test_resnet', method=method, small_input=False, cbs=[Diary(), *cbs],
                                accumulate=accumulate)
    learn.create_mbar = False
    without_batchnorm(learn.model)
    # pictures to judge by are in float32
    learn.model.double().encoder.register_forward_pre_hook(lambda _, x: x[0].double())
    return learn


def train(name):
    "What a run leaves"
    learn = build(**RUNS[name]())
    with learn.no_logging(): learn.fit_contrastive(2 if name in LONG else 1)
    return dict(losses=learn.diary.losses, grads=learn.diary.grads, weights=learn.model.state_dict(),
                seen=learn.diary.seen,
                table=[row[:4] for row in learn.recorder.values])


def refusal(f, *args, **kwargs):
    with pytest.raises(InputError) as e: f(*args, **kwargs)
    return str(e.value)


class NoNumber(Callback):
    order = Phase.SCORES
    def after_loss(self):
        self.learn.loss_grad = self.learn.loss = self.loss_grad * (math.nan if self.train_iter == 1 else 1)


class Draw(StepCallback):
    "Random numbers of a process, and the levels of the steps"
    phase = Phase.COUNT
    def before_fit(self): self.levels = []
    def before_batch(self):
        self.drawn = torch.rand(4)
        self.levels.append(self.step.route.levels)


def others():
    "What else two processes do, by name"
    learn, out = build(small('simclr'), cbs=[Draw(), IntermediateLoss(), PartialBackprop()]), {}
    with learn.distrib_ctx() as same, learn.no_logging(): learn.fit_contrastive(1)
    out['distrib_ctx'], out['draws'], out['levels'] = same is learn, learn.draw.drawn, learn.draw.levels
    with learn.no_logging():
        out['other lr'] = refusal(learn.fit_contrastive, 1, lr=0.1 * (1 + rank()))
        out['other epochs'] = refusal(learn.fit_contrastive, 1 + rank())
        learn.add_cb(NoNumber())
        out['no number'] = refusal(learn.fit_contrastive, 1)
        for what, kwargs in (('other weight', dict(cbs=[SuNCEt(weight=1 + rank())])),
                             ('other width', dict(method=small('simclr', projector=(16, 8 + rank()))))):
            out[what] = refusal(build(**dict(dict(method=small('simclr')), **kwargs)).fit_contrastive, 1)
    out['odd batch'] = refusal(image_dls, Pictures(), bs=5, device='cpu')
    learn.remove_cb(learn.together)
    out['alone'] = refusal(learn.to_distributed)
    out['logger'] = len(build(small('simclr')).cbs.filter(lambda cb: type(cb).__name__ in ('ProgressCallback',
                                                                                           'EpochLines')))
    return out


# the term of labelled pictures by itself

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def support_batches(n=2):
    loader = StratifiedLoader(image_dls(Dots20(), bs=2, valid=0, labels='all', workers=0, device='cpu').train,
                              classes_per_batch=3, per_class=2)
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


def support():
    "Support batches of this process, labels of all, and what two kinds of terms make of the first batch"
    model, batches = DistributedDataParallel(net()), support_batches()
    return batches, [gather(y) for _, y in batches], *(term_and_grads(model, kind, *batches[0])
                                                       for kind in (SuNCEt, supcon))


def process(r, folder, names):
    "One of the two"
    torch.set_num_threads(1)
    Views.forward = views_by_picture
    # all gradients of this encoder are less than one usual bucket
    fastcontrast.together.MeanGradients = partial(MeanGradients, size=2**12)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=r, world_size=2,
                            timeout=timedelta(seconds=60))
    def leave(name, what):
        torch.save(what, folder/'part')
        os.replace(folder/'part', folder/f'{name}.pt')
    try:
        for name in names:
            result = train(name)
            mine = (result['losses'], result['table'],
                    hashlib.sha256(b''.join(t.numpy().tobytes() for t in result['weights'].values())).hexdigest(),
                    torch.stack(result['seen']))
            everyone = gather_objects(mine)
            if not r: leave(name, dict(result, everyone=everyone))
        for make in (support, others):
            everyone = gather_objects(make())
            if not r: leave(make.__name__, everyone)
    finally: dist.destroy_process_group()


@pytest.fixture(scope='module')
def results(request, tmp_path_factory):
    "Waits for what the two processes leave under a name"
    folder = tmp_path_factory.mktemp('processes')
    tests = [test for test in request.session.items if test.module is request.module and hasattr(test, 'callspec')]
    asked = {test.callspec.params.get('name') for test in tests}
    spawned = start(process, folder, [name for name in RUNS if name in asked])
    def wait(name):
        file, end = folder/f'{name}.pt', time.monotonic() + 400
        while not file.exists():
            if spawned.join(timeout=0.1) and not file.exists() or time.monotonic() > end:
                pytest.fail(f'the processes left no {name}')
        result = torch.load(file, weights_only=False)
        file.unlink()
        return result
    yield wait
    for p in spawned.processes:
        if p.is_alive(): p.kill()
        p.join()


# --- two processes do what one does
# like another of them in what processes exchange
ALIKE = ('dclw with a queue', 'multi_view, one way', 'patch_variants sampled', 'regions after two stages',
         'regions, negative cosines', 'supervised', 'whole pictures', 'in parts')


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in RUNS])
def test_two_processes_make_the_steps_of_one(results, name, monkeypatch):
    monkeypatch.setattr(Views, 'forward', views_by_picture)
    one = train(name)
    two = results(name)
    assert len(one['losses']) == (4 if name in LONG else 2) and any(g.abs().max() > 1e-6 for g in one['grads'].values())
    torch.testing.assert_close(two['losses'], one['losses'], rtol=1e-8, atol=0)
    for what in ('grads', 'weights'):
        assert two[what].keys() == one[what].keys()
        for n, t in one[what].items():
            assert (two[what][n] - t).double().norm() <= 1e-8 * t.double().norm() + 1e-10, (what, n)
    (losses, table, weights, seen), second = two['everyone']
    assert (losses, table, weights) == second[:3]  # bit by bit, and the epochs' kNN, spread and rank too
    torch.testing.assert_close(table, one['table'])
    both = torch.cat([seen, second[3]], 1)
    torch.testing.assert_close(both, torch.stack(one['seen']))  # each batch is divided, and nothing read twice
    assert all(len(set(step.tolist())) == BS for step in both)


def test_two_processes_make_the_support_batch_and_terms_of_one(results):
    two, whole = results('support'), support_batches()
    for i, (images, y) in enumerate(whole):
        assert torch.equal(torch.cat([r[0][i][0] for r in two]), images)
        assert [len(r[0][i][1]) for r in two] == [3, 3]
        for r in two: assert torch.equal(r[1][i], y)
    for kind, place in ((SuNCEt, 2), (supcon, 3)):
        value, grads = term_and_grads(net(), kind, *whole[0])
        for r in two:
            assert r[place][0] == pytest.approx(value, rel=1e-10)
            torch.testing.assert_close(r[place][1], grads, rtol=1e-10, atol=1e-12)
        assert all(g.abs().max() > 1e-4 for g in grads)


def test_every_speedup_is_among_them(): assert set(SPEEDUPS) <= set(RUNS)


@pytest.fixture(scope='module')
def both(results): return results('others')


def test_draws_of_the_batch_are_shared_and_those_of_pictures_are_not(both):
    a, b = both
    assert a['distrib_ctx'] and b['distrib_ctx']
    assert a['levels'] == b['levels'] and len(a['levels']) == 2 and all(len(levels) == 1 for levels in a['levels'])
    assert not (a['draws'][:, None] == b['draws']).any()


@pytest.mark.parametrize('what, words', {
    'other lr': 'the same learning rate: 0.1 in process 0 and 0.2 in process 1',
    'other epochs': 'the same epochs: 1 in process 0 and 2 in process 1',
    'other weight': 'the same callbacks: .*SuNCEt.* in process 0 and .*SuNCEt\\(weight=2.*\\).* in process 1',
    'other width': "the same model: .*8.* in process 0 and .*9.* in process 1",
    'no number': 'the loss is nan in epoch 0, step 1', 'odd batch': 'bs=5 cannot be divided among 2 processes',
    'alone': 'made before its process joined the others'}.items())
def test_all_processes_raise_alike(both, what, words):
    a, b = (x[what] for x in both)
    assert a == b and re.search(words, a) and '\n' not in a, a


def test_process_0_tells(both): assert [x['logger'] for x in both] == [1, 0]


def test_batchnorm_of_all_processes_keeps_its_activation():
    "In a second fit too"
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), nn.BatchNorm2d(4))
    for _ in range(2):
        synchronise(model)
        assert [type(module) for module in model[1:]] == [SyncBatchNormAct, nn.SyncBatchNorm]
        assert isinstance(model[1].act, nn.ReLU)
