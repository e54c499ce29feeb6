"""Speedups that are added and removed: what they change, what they leave, what they save."""
import copy
from functools import cache, partial

import pytest
import timm
import torch
from fastai.callback.core import Callback
from helpers.learners import build, quick, random_views, small, three_steps
from helpers.pairs import paired
from helpers.pictures import ARCH, LEVELS, LR, B
from helpers.recording import After, Script, interrupt, traces
from helpers.refusals import refusal
from helpers.speedups import REMOVABLE, SEVEN

from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.targets import NearestNeighbours, Queue
from fastcontrast.views import Views

close = torch.testing.assert_close
SEED = 3
NOTHING = {'one patch': lambda: [CombinePatches(n=1, m=1)], 'no stages': lambda: [IntermediateLoss(stages=())],
           'the last level, always': lambda: [IntermediateLoss(), PartialBackprop(probs={'final': 1})],
           'one level': lambda: [PartialBackprop([1.0])],
           'all of the picture': lambda: [HardRegions(keep=1)], 'the full size': lambda: [ProgressiveSize(start=1)],
           'all of these': lambda: [CombinePatches(n=1, m=1), IntermediateLoss(), PartialBackprop((0, 0, 0, 1)),
                                    HardRegions(keep=1), ProgressiveSize(start=1, strength=1)]}


plain_steps = cache(three_steps)


@pytest.mark.parametrize('name, what', paired(SEVEN, NOTHING, always=('all of these',)))
def test_bitwise_the_recipe_without_it(name, what):
    losses, weights = plain_steps(name)
    with_losses, with_weights = three_steps(name, NOTHING[what]())
    assert len(losses) == 3 and torch.equal(losses, with_losses), (losses, with_losses)
    for n, w in weights.items(): assert torch.equal(w, with_weights[n]), n


@pytest.mark.parametrize('name', ['moco_v2', 'nnclr', 'swav', 'simclr'])
def test_the_same_views_with_and_without_losses_at_stages(name):
    "Heads, queues and prototypes of levels draw no number from torch's own generator"
    def first_views(cbs):
        torch.manual_seed(11)
        learn = quick(name, cbs=cbs, n=8)
        return learn.views(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)))['views']
    assert torch.equal(first_views([]), first_views([IntermediateLoss()]))


@pytest.mark.parametrize('name, what', paired(['moco_v2', 'moco_v3', 'nnclr', 'swav', 'dino'], REMOVABLE, 2, ('all',)))
def test_a_removed_speedup_leaves_no_trace(name, what):
    "In either order; the target's heads and the rings of levels go with the next fit at the latest"
    learn = quick(name, n=8, **(dict(memory=partial(Queue, 8)) if name == 'moco_v2' else {}))
    before, _ = traces(learn)
    for order in (1, -1) if len(REMOVABLE[what]()) > 1 else (1,):
        cbs = REMOVABLE[what]()
        learn.add_cbs(cbs)
        learn.fit(1, 1e-3)
        assert traces(learn)[0] != before
        for cb in cbs[::order]: learn.remove_cb(cb)
        learn.fit(1, 1e-3)
        assert traces(learn)[0] == before
        for m in learn.model.modules(): assert not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks)
    learn.fit(1, 1e-3, cbs=REMOVABLE[what]())
    learn.fit(1, 1e-3)
    assert traces(learn)[0] == before
    held = {id(p) for group in learn.opt.param_lists for p in group}
    assert held == {id(p) for n, p in learn.model.named_parameters() if not n.startswith('memory')}


@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'nnclr', 'swav', 'dino'])
def test_a_removed_level_is_gone_at_once(name):
    "What is saved now has no heads and rings of levels that are not there"
    learn = quick(name, n=8, **(dict(memory=partial(Queue, 8)) if name == 'moco_v2' else {}))
    before = set(learn.model.state_dict())
    learn.fit(1, 1e-3, cbs=IntermediateLoss())
    left = sorted(set(learn.model.state_dict()) - before - {'memory.losses.final.center'})
    assert not left, left[:3]


@pytest.mark.parametrize('stop', ['after_pred', 'after_backward'])
def test_a_stopped_fit_leaves_no_trace(stop):
    learn = quick('moco_v3')
    before, _ = traces(learn)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3, cbs=[*REMOVABLE['all'](), After(stop, 1, interrupt)])
    for m in learn.model.modules(): assert not m._forward_hooks
    learn.fit(1, 1e-3)
    assert traces(learn)[0] == before
    for m in learn.model.modules(): assert not m._forward_hooks


@pytest.mark.parametrize('first', [0, 1], ids=['IntermediateLoss first', 'HardRegions first'])
def test_a_level_that_two_want_stays_until_both_are_gone(first):
    learn = quick('moco_v3')
    cbs = [IntermediateLoss(('layer1', 'layer2'), (0.5, 3.)), HardRegions('layer2')]
    learn.add_cbs(cbs if first == 0 else cbs[::-1])
    assert learn.model.levels() == ('layer1', 'layer2', 'final')
    assert learn.loss_func.weights == {'layer1': 0.5, 'layer2': 3.}
    learn.remove_cb(cbs[0])
    assert learn.model.levels() == ('layer2', 'final')
    assert learn.loss_func.weights.get('layer2', 1.) == 1., "the weight was IntermediateLoss'"
    learn.remove_cb(cbs[1])
    assert learn.model.levels() == ('final',) and not learn.loss_func.weights and not +learn.model.users


@pytest.mark.parametrize('name,ring', [('moco_v3', None), ('moco_v2', 'queue'), ('nnclr', 'neighbours')])
def test_levels_that_come_again_begin_anew(name, ring):
    "The target's heads are copies of the new ones, and queues are random"
    learn = quick(name, n=8, **(dict(memory=partial(Queue, 8)) if name == 'moco_v2' else {}))
    learn.add_cb(IntermediateLoss())
    learn.fit(3, 1e-1)
    rows = {level: r.rows.clone() for level, r in learn.model.memory[ring].items()} if ring else {}
    learn.remove_cb(IntermediateLoss)
    learn.add_cb(IntermediateLoss())
    got = {}
    class Look(Callback):
        order = 21
        def before_batch(self):
            got['ours'] = copy.deepcopy(self.model.heads.layer1.projector.state_dict())
            if 'ema' in self.model.memory:
                got['theirs'] = copy.deepcopy(self.model.memory['ema'].heads.layer1.projector.state_dict())
            if ring: got['rows'] = self.model.memory[ring]['layer1'].rows.clone()
    learn.fit(1, 1e-3, cbs=Look())
    if 'theirs' in got:
        weights = [n for n in got['ours'] if n.endswith('weight')]
        for n in weights: assert torch.equal(got['ours'][n], got['theirs'][n]), f'{n} is of the head that was removed'
    if ring: assert not torch.equal(got['rows'], rows['layer1'])


@pytest.mark.parametrize('name', ['simclr', 'moco_v2', 'moco_v3', 'nnclr', 'swav', 'dino'])
def test_levels_added_to_a_learner_that_has_trained(name):
    "The optimizer knows them, the target follows them, the memory holds them"
    learn = quick(name, setting='digits', **(dict(memory=partial(Queue, 8)) if name == 'moco_v2' else {}))
    learn.fit_contrastive(1)
    learn.add_cb(IntermediateLoss())
    began = {n: p.detach().clone() for n, p in learn.model.heads.named_parameters()}
    learn.fit_contrastive(2, 1e-2)
    held = {id(p) for group in learn.opt.param_lists for p in group}
    for level in LEVELS:
        moved = [n for n, p in learn.model.heads.named_parameters() if n.startswith(level)
                 and not torch.equal(p, began[n])]
        assert len(moved) >= 3 or name in ('moco_v2',) and moved, level
        assert all(id(p) in held for p in learn.model.heads[level].parameters())
        if 'ema' in learn.model.memory:
            assert not torch.equal(learn.ema_target.target.heads[level].projector[0].weight,
                                   began[f'{level}.projector.0.weight'])
        for ring in ('queue', 'neighbours'):
            if ring in learn.model.memory: assert int(learn.model.memory[ring][level].written) >= 16


def test_all_speedups_twice_in_turn():
    "Fit after fit, with callbacks that come and go"
    learn = quick('byol')
    learn.fit_contrastive(1)
    for cbs in (REMOVABLE['drawn'](), REMOVABLE['patches'](), REMOVABLE['all'](), REMOVABLE['regions']()):
        learn.add_cbs(cbs)
        learn.fit_contrastive(1)
        learn.fit_contrastive(1)
        learn.remove_cbs(cbs)
        learn.fit_contrastive(1)
    assert learn.model.levels() == ('final',) and all(p.isfinite().all() for p in learn.model.parameters())


def test_a_multi_crop_that_goes_leaves_the_sampled_patches():
    learn = quick('moco_v3', cbs=[MultiCrop((2, 16, (.4, 1)), (2, 8, (.1, .4))), PatchVariants(patches='sample')])
    learn.fit(1, 1e-3)
    learn.remove_cb(MultiCrop)
    assert set(learn.views(torch.rand(4, 3, 16, 16))) == {'views', 'patches'}
    learn.fit(1, 1e-3)
    learn.remove_cb(PatchVariants)
    assert list(learn.views.makers) == ['views'] and isinstance(learn.views.main, Views)
    learn.fit(1, 1e-3)


def test_the_modes_of_all_modules_are_as_they_were():
    learn = quick('moco_v3')
    assert all(m.training for m in learn.model.modules())
    for cbs in ([PatchVariants(combine='layer1')], [IntermediateLoss()], [HardRegions()]):
        learn.add_cbs(cbs)
        assert all(m.training for m in learn.model.modules()), cbs
        learn.remove_cbs(cbs)


@pytest.mark.parametrize('name', ['moco_v2', 'moco_v3', 'nnclr', 'swav', 'dino'])
def test_save_and_load_go_on_as_if_nothing_had_happened(name, tmp_path):
    views = random_views(4)
    memory = dict(moco_v2=lambda: [Queue(9)], nnclr=lambda: [NearestNeighbours(9)],
                  swav=lambda: [Queue(15)]).get(name, list)
    recipe = small(name, 'cifar', opt='sgd', **(dict(prototypes_frozen=0) if name in ('swav', 'dino') else {}))
    one, other = (build(recipe, n=2 * B, cbs=[CombinePatches(), IntermediateLoss(), HardRegions('layer1'), *memory()],
                        path=tmp_path) for _ in range(2))
    one.views, other.views = Script(views), Script(views[2:])
    one.fit(1, LR)
    one.save('here')
    other.load('here')
    for learn in (one, other): learn.fit(1, LR)
    assert one.diary.losses == pytest.approx(other.diary.losses, rel=1e-12) and len(one.diary.losses) == 2
    for k, v in one.model.state_dict().items(): close(v, other.model.state_dict()[k], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('name', ['moco_v3', 'moco_v2'])
def test_a_learner_that_was_given_its_levels_later_takes_the_same_weights(name, tmp_path):
    "Built with the levels or given them afterwards, it has the same entries"
    memory = dict(memory=partial(Queue, 16)) if name == 'moco_v2' else {}
    one = quick(name, cbs=[IntermediateLoss()], **memory)
    one.path = tmp_path
    one.fit(1, 1e-3)
    one.save('here', with_opt=False)
    other = quick(name, **memory)
    other.path = tmp_path
    other.add_cb(IntermediateLoss())
    other.load('here', with_opt=False)
    for k, v in one.model.state_dict().items(): assert torch.equal(v, other.model.state_dict()[k])


@pytest.mark.parametrize('what', REMOVABLE)
def test_the_exported_encoder_is_timms(what, tmp_path):
    from fastcontrast.export import load_encoder
    learn = quick('moco_v3', cbs=REMOVABLE[what]())
    learn.fit(1, 1e-3)
    assert learn.model.encoder.state_dict().keys() == timm.create_model(ARCH, num_classes=0).state_dict().keys()
    encoder = load_encoder(learn.export(tmp_path/'e.safetensors'))
    x = torch.rand(2, 3, 16, 16)
    close(encoder.eval()(x), learn.model.encoder.eval()(x))


@pytest.mark.parametrize('cb', [CombinePatches, IntermediateLoss, HardRegions])
def test_a_callback_of_another_learner(cb):
    one, other = quick('moco_v3', cbs=[first := cb()]), quick('moco_v3')
    before = traces(other)[0]
    assert 'another learner' in refusal(other.add_cb, first)
    assert traces(other)[0] == before
    one.remove_cb(first)
    other.add_cb(first)
    other.fit(1, 1e-3)
