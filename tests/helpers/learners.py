"""Small learners: encoders, recipes with small heads, and what `contrastive_learner` makes of them."""
from functools import partial

import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Recorder
from fastai.optimizer import OptimWrapper
from torch import nn

from fastcontrast.data import image_dls
from fastcontrast.learner import ContrastiveLearner, contrastive_learner
from fastcontrast.losses import InfoNCE
from fastcontrast.models import ContrastiveModel, Head, mlp
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.pairs import PairLoss
from fastcontrast.recipes import METHODS, RECIPES
from fastcontrast.step import Contrast
from fastcontrast.targets import EMATarget, NearestNeighbours, Queue
from fastcontrast.views import Views
from helpers.loops import unit
from helpers.pictures import ARCH, SIDE, VIT, B, D, Dots, K, KnownViews, Plain, batches_of, pictures, plain_batches
from helpers.recording import Diary, Recording

BARE = dict(small_input=False, knn_pictures=0)  # the ResNets' usual stem, and an epoch's end without metrics
SMALL_CROPS = partial(MultiCrop, (2, None, (0.4, 1.0)), (2, None, (0.05, 0.4)))


def tiny_encoder(norm: bool) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), *([nn.BatchNorm2d(6)] if norm else []), nn.ReLU(),
                         nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def tiny_model(norm: bool = True, predictor: bool = True, per_view: bool = False) -> ContrastiveModel:
    head = Head(mlp((8, 10, 5), bn=norm), mlp((5, 9, 5), bn=norm) if predictor else None)
    return ContrastiveModel(tiny_encoder(norm), head, per_view=per_view).double()


def sgd(params, lr): return OptimWrapper(params, torch.optim.SGD, lr=lr)


def plain_learner(model, loss, *cbs, batches=None, path=None, cls=ContrastiveLearner, one_way=False):
    "A learner of the step's parts alone, without `contrastive_learner`"
    dls = DataLoaders(plain_batches() if batches is None else batches, [], device='cpu')
    dls.n_inp = 1
    learn = cls(dls, model, PairLoss(loss), opt_func=sgd, path=path,
                cbs=[Contrast(KnownViews(), Plain(), one_way), *cbs])
    learn.remove_cbs([Recorder, ProgressCallback])  # fastai's mean of the losses is float32
    return learn


def real_learner(method='simclr', n=16, bs=8, **kwargs):
    "`contrastive_learner` on a few random pictures"
    learn = contrastive_learner(image_dls(Dots(n), bs=bs, valid=0, workers=0, device='cpu'), 'resnet10t', method=method,
                                **{'small_input': False, **kwargs})
    learn.create_mbar = False
    return learn


def sized_learner(loss, *cbs, data=(B,) * 3, one_way=False, predictor=False) -> ContrastiveLearner:
    "A learner on plain batches of given sizes, with a small convolutional net in float64"
    batches = batches_of(*data)
    learn = plain_learner(tiny_model(predictor=predictor), loss, *cbs, batches=batches, one_way=one_way)
    learn.model.double()  # what the callbacks remember, too
    return learn


def small(name: str, setting: str = 'imagenet', **changes):
    "A recipe with small heads of the same depths"
    r = RECIPES[name].resolve(setting)
    few = dict(projector=(16,) * (len(r.projector) - 1) + (D,))
    if r.predictor: few['predictor'] = (16, D)
    if r.prototypes: few['prototypes'] = K
    if r.multi_crop: few['multi_crop'] = SMALL_CROPS
    return METHODS[name](setting, **{**few, **changes})


def narrow(method, setting: str, width=64):
    "The recipe with heads of few channels and nothing else changed: what takes the same steps, and less time"
    usual = method().resolve(setting)
    heads = {name: tuple(min(n, width) for n in getattr(usual, name)) for name in ('projector', 'predictor')}
    return method(setting, **{name: widths for name, widths in heads.items() if widths})


def random_views(steps: int, local: bool = False) -> list[dict]:
    def crops(side): return torch.rand(2, B, 3, side, side, dtype=torch.float64)
    return [{'views': crops(SIDE), **({'local': crops(16)} if local else {})} for _ in range(steps)]


def build(recipe, n=3 * B, cbs=(), arch=ARCH, side=SIDE, **kwargs) -> ContrastiveLearner:
    "What `contrastive_learner` makes of a recipe, in float64, with views that are kept"
    learn = contrastive_learner(pictures(n, side), arch, method=recipe, cbs=[Diary(), *cbs], **BARE | kwargs)
    learn.create_mbar = False
    learn.model.double()
    # was so in float32
    for rows in (b for n, b in learn.model.memory.named_buffers() if n.endswith('rows')): rows.copy_(unit(rows))
    learn.views, learn.normalize = Recording(learn.views), Plain()
    return learn


def quick(name: str, loss=None, cbs=(), n=16, setting='cifar', arch=ARCH, **changes) -> ContrastiveLearner:
    "A small float32 learner as a user makes it: real views of two batches of 8 pictures of 16 pixels"
    learn = contrastive_learner(pictures(n, 16, 8), arch, method=small(name, setting, **changes), loss=loss,
                                cbs=cbs, **BARE)
    learn.create_mbar = False
    return learn


def one_step(name: str, cbs=(), n=B, **changes) -> ContrastiveLearner:
    "A small learner in float64, one batch long; a moving average is moved off, so that it is told from the network"
    if name == 'moco_v2': cbs = [*cbs, Queue(9)]
    if name == 'nnclr': cbs = [*cbs, NearestNeighbours(9)]
    simpler = dict(opt='sgd')
    if name in ('swav', 'dino'): simpler |= dict(prototypes_frozen=0, memory=None)
    if name == 'dino': simpler |= dict(clip_each=None)
    return moved_off(build(small(name, 'cifar', **simpler | changes), n=n, cbs=cbs))


@torch.no_grad()
def moved_off(learn) -> ContrastiveLearner:
    "A moving average, if there is one, is no longer what it follows"
    if 'ema' in learn.model.memory:
        for p in learn.ema_target.target.parameters(): p.mul_(1 + 0.2 * torch.randn_like(p))
    return learn


class Local(nn.Module):
    "An encoder whose cells see their own patch alone: 2 x 2 pixels, then 1 x 1 convolutions, without BatchNorm"
    def __init__(self):
        super().__init__()
        self.stem, self.mid, self.end = nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 10, 1)
        self.feature_info = [dict(module=m, num_chs=c, reduction=2) for m, c in (('stem', 8), ('mid', 8), ('end', 10))]
        self.pretrained_cfg = {}
    def forward(self, x): return torch.tanh(self.end(torch.tanh(self.mid(torch.tanh(self.stem(x)))))).mean((2, 3))


def local_learner(*cbs, target=EMATarget, loss=None, size=8, n=6):
    dls = DataLoaders([(torch.rand(n, 3, 10, 10, dtype=torch.float64), torch.zeros(n))], [], device='cpu')
    dls.n_inp, dls.size = 1, size
    model = ContrastiveModel(Local(), Head(mlp((10, 9, 5), bn=False)))
    learn = ContrastiveLearner(dls, model, PairLoss(loss or InfoNCE(0.2)), opt_func=sgd,
                               cbs=[Contrast(Views(size), Plain())])
    learn.remove_cbs([Recorder, ProgressCallback])
    learn.add_cbs([*cbs, target()])
    learn.model.double()
    return learn


def vit_learner(name, cbs, **changes):
    if name == 'moco_v2': cbs = [*cbs, Queue(9)]
    recipe = small(name, 'cifar', opt='sgd', **changes)
    return moved_off(build(recipe, n=B, cbs=cbs, arch=VIT, side=64, small_input=None))


def learner_of(arch, cbs, side, name='moco_v3', **kwargs):
    learn = contrastive_learner(pictures(8, side, 4), arch, method=small(name, 'cifar'),
                                small_input=False if 'resnet' in arch else None, cbs=cbs, knn_pictures=0, **kwargs)
    learn.create_mbar = False
    return learn


class Plainest(nn.Module):
    "An encoder that timm describes no stages of"
    def __init__(self):
        super().__init__()
        self.conv, self.num_features = nn.Conv2d(3, 8, 3), 8
        self.pretrained_cfg = dict(mean=(.5,) * 3, std=(.5,) * 3, architecture='plainest')
    def forward(self, x): return self.conv(x).mean((2, 3))


def three_steps(name, cbs=(), **kwargs):
    "Losses and weights of three steps, from one seed"
    torch.manual_seed(11)
    learn = quick(name, cbs=cbs, n=24, **dict(prototypes_frozen=0) if name == 'swav' else {}, **kwargs)
    losses = []
    class Trace(Callback):
        order = 70
        def before_step(self): losses.append(self.loss.clone())
    learn.fit_contrastive(1, 1e-2, cbs=Trace())
    return torch.stack(losses), learn.model.state_dict()
