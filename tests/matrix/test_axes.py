"""Every pair of values from different axes trains, or is refused in a sentence."""
import pytest
import torch
from helpers.learners import quick, small
from helpers.pictures import ARCH, pictures
from helpers.recording import Seen, train_two_steps
from helpers.refusals import refusal

from fastcontrast.core import InputError
from fastcontrast.device import Autocast
from fastcontrast.learner import contrastive_learner
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.recipes import LOSSES, METHODS, RECIPES, refused_pairs
from fastcontrast.targets import EMATarget, NearestNeighbours, Queue, SharedTarget, StopGradTarget

close = torch.testing.assert_close

pytestmark = pytest.mark.filterwarnings('error:You are shadowing')  # an attribute of the learner
SEED = 7
TARGETS = [SharedTarget, StopGradTarget, EMATarget]


def own_target(name) -> type: return type(RECIPES[name].resolve('cifar').target())


@pytest.mark.parametrize('name,target', [
    pytest.param(name, target, marks=[] if target is own_target(name) or name == 'moco_v3' else pytest.mark.slow)
    for name in METHODS for target in TARGETS])
def test_every_loss_trains_with_every_method_and_target_or_is_refused(name, target):
    table = refused_pairs('cifar')
    listed = dict(zip(*(table[table.recipe == name][c] for c in ('loss', 'why')), strict=True))
    refused = {}
    for loss, make in LOSSES.items():
        try: learn = quick(name, loss=loss, cbs=target)
        except InputError as e: refused[make.__name__] = str(e)
        else: train_two_steps(learn)
    assert refused.keys() == listed.keys()
    for loss, why in refused.items():
        assert loss in why and name in why and '\n' not in why and why.endswith('.')
        # sizes of memories are made smaller for few pictures; the rest is the listed sentence
        assert why.split('Queue(')[0] == listed[loss].split('Queue(')[0]


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('name', METHODS)
def test_every_method_takes_every_target(name, target): train_two_steps(quick(name, cbs=target))


@pytest.mark.parametrize('name', METHODS)
def test_every_method_takes_the_other_memories_and_views(name):
    loss = type(RECIPES[name].resolve('cifar').loss()).__name__
    for part in (Queue(16), NearestNeighbours(16), MultiCrop((2, None, (.4, 1)), (2, 8, (.1, .4)))):
        if isinstance(part, Queue) and (loss not in ('InfoNCE', 'SwAVLoss') or name == 'nnclr'):
            why = refusal(quick, name, cbs=[part])
            assert loss in why and 'Queue(16)' in why
        else:
            learn = quick(name, cbs=[part])
            assert part in learn.cbs
            train_two_steps(learn)
            if not isinstance(part, MultiCrop):
                assert next(n for n in learn.model.memory if n not in ('losses',)) == part.name_of_rings
                assert sum(isinstance(cb, (Queue, NearestNeighbours)) for cb in learn.cbs) == 1
                per_step = 8 if name in ('moco_v1', 'moco_v2') or isinstance(part, NearestNeighbours) else 16
                assert int(part.rings['final'].written) == 2 * per_step


@pytest.mark.parametrize('loss', ['swav', 'dino'])
@pytest.mark.parametrize('name', [name for name, recipe in RECIPES.items() if not recipe.prototypes])
def test_losses_of_scores_need_prototypes(name, loss):
    text = refusal(quick, name, loss=loss)
    assert LOSSES[loss].__name__ in text and name in text and 'prototypes' in text
    if name != 'moco_v1': quick(name, loss=loss, prototypes=24, memory=None)


@pytest.mark.parametrize('name', ['moco_v2', 'byol', 'nnclr', 'swav', 'dino'])
def test_keys_scores_and_rows_are_full_precision_under_autocast(name, bf16):
    seen = Seen(29)
    # large enough for a CPU's bfloat16 convolutions, whose gradients are not always numbers at one pixel
    learn = contrastive_learner(pictures(16, 64, 8), ARCH, method=small(name, 'cifar'), small_input=False,
                                cbs=[Autocast('bf16'), seen])
    learn.create_mbar = False
    learn.fit_contrastive(1)
    (q, *ks), scored = seen.steps[-1], bool(learn.recipe.prototypes)
    assert learn.model.heads.final.projector[0].weight.dtype == torch.float32
    assert all(k.dtype == torch.float32 for k in ks)
    if scored: assert q['views'].dtype == torch.float32
    for n, rows in learn.model.memory.named_buffers():
        if n.endswith('rows'): close(rows.norm(dim=-1), torch.ones(rows.shape[:-1]), rtol=0, atol=1e-6)
