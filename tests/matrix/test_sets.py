"""Every set of speedups trains with every method."""
import copy
import itertools

import pytest
import torch
from helpers.learners import small
from helpers.pictures import ARCH, LEVELS, STAGES, pictures
from helpers.recording import Keys, Where
from helpers.slow import above
from helpers.speedups import REMOVABLE, SEVEN

from fastcontrast.core import InputError
from fastcontrast.learner import contrastive_learner
from fastcontrast.losses import DCL
from fastcontrast.recipes import RECIPES
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.multi_view import MultiView
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.regions import HardRegions
from fastcontrast.speedups.suncet import SuNCEt

SEED = 3
PARTS = ('comb_patches', 'intermediate', 'regions', 'suncet', 'dcl', 'multi_view', 'progressive_size')


def parts(chosen) -> tuple[list, object]:
    make = dict(comb_patches=lambda: [CombinePatches()],
                intermediate=lambda: [IntermediateLoss(), PartialBackprop(seed=1)],
                regions=lambda: [HardRegions('layer2')],
                suncet=lambda: [SuNCEt()], multi_view=lambda: [MultiView(3)],
                progressive_size=lambda: [ProgressiveSize(steps=(24,), strength=0.5)])
    return [cb for part in chosen if part != 'dcl' for cb in make[part]()], DCL(0.2) if 'dcl' in chosen else None


SETS = [some for k in range(1, len(PARTS) + 1) for some in itertools.combinations(PARTS, k)]
ALL_SETS = ('moco_v2', 'simsiam', 'nnclr')  # methods that train with every set, the others with a few


def relations(chosen) -> set:
    "Of any two speedups, whether both are in a set, one of them or none"
    return {(a, a in chosen, b, b in chosen) for a, b in itertools.combinations(PARTS, 2)}


def few_sets() -> list:
    "Sets in which any two speedups are together, each without the other, and both are missing; all at once first"
    few, missing = [], set.union(*map(relations, SETS))
    while missing:
        few.append(max(SETS, key=lambda chosen: (not few and len(chosen), len(relations(chosen) & missing))))
        missing -= relations(few[-1])
    return few


def sets_for(name) -> list:
    "All sets, of one size of views too; with a size that grows all of them for one method, a few for the others"
    few = few_sets()
    if name not in ALL_SETS: return few
    return [some for some in SETS if name == ALL_SETS[0] or 'progressive_size' not in some or some in few]


def kinds(name) -> list:
    "Of a method's target and memory"
    recipe = RECIPES[name].resolve('cifar')
    return [type(part()) for part in (recipe.target, recipe.memory) if part is not None]


def test_every_kind_of_target_and_memory_meets_every_set():
    assert {kind for name in SEVEN for kind in kinds(name)} == {kind for name in ALL_SETS for kind in kinds(name)}
    assert PARTS in few_sets() and len(few_sets()) < 9


@pytest.mark.filterwarnings('error:You are shadowing')  # an attribute of the learner
@pytest.mark.parametrize('name', SEVEN)
def test_sets_of_speedups_train_with(name):
    train_with(name, few_sets())


@pytest.mark.slow
@pytest.mark.filterwarnings('error:You are shadowing')
@pytest.mark.parametrize('name', ALL_SETS)
def test_every_set_of_speedups_trains_with(name): train_with(name, sets_for(name))


def train_with(name, sets):
    "Train a method with each of the sets"
    data = pictures(18, 32, 6, labels='all')
    refused = {}
    for chosen in sets:
        cbs, loss = parts(chosen)
        together = f"{name} + {', '.join(chosen)}"
        recipe = small(name, 'cifar', **(dict(prototypes_frozen=0) if name == 'swav' else {}))
        try:
            learn = contrastive_learner(data, ARCH, method=recipe, loss=loss, small_input=False,
                                        knn_pictures=0, cbs=[*cbs, look := Where()])
        except InputError as e:
            refused[chosen] = str(e)
            continue
        learn.create_mbar = False
        learn.fit_contrastive(1, 1e-3)
        params = {n for n, _ in learn.model.named_parameters()}
        levels = learn.model.levels()
        assert levels == (LEVELS if 'intermediate' in chosen else ('layer2', 'final') if 'regions' in chosen
                          else ('final',)), together
        assert len(look.steps) == 3, together
        for drawn, grads, finite in look.steps:
            assert finite, together
            trained = levels if drawn is None else (drawn,)
            def has(n, trained=trained):
                if n.startswith('heads.'): return n.split('.')[1] in trained
                return n.startswith('encoder.') and not above(n, max(trained, key=[*STAGES, 'final'].index))
            assert grads == {n for n in params if has(n)}, (
                together, drawn, sorted(grads ^ {n for n in params if has(n)})[:4])
        for m in learn.model.modules(): assert not m._forward_hooks, together
    # refusals are few, and name both
    assert not refused, refused


def test_regions_and_patches_under_autocast(bf16):
    from fastcontrast.device import Autocast
    for cbs in (REMOVABLE['all'](), [PatchVariants(alpha=2.), HardRegions('layer1')],
                [PatchVariants(merge='max'), IntermediateLoss()], [PatchVariants(patches='montage')],
                [HardRegions(cells=None)]):
        for name in ('moco_v2', 'swav', 'moco_v3'):
            learn = contrastive_learner(pictures(16, 64, 8), ARCH, method=small(name, 'cifar'), small_input=False,
                                        cbs=[Autocast('bf16'), *copy.deepcopy(cbs), look := Where(), seen := Keys()])
            learn.create_mbar = False
            learn.fit_contrastive(1, 1e-3)
            assert len(look.steps) == 2 and all(finite for *_, finite in look.steps)
            assert seen.dtypes == {torch.float32}
