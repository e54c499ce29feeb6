"""Methods as data: the decorator that registers one, what its call takes, what settings share, what is refused."""
import json
import os
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
import torchvision
from fastai.callback.core import Callback
from helpers.learners import quick
from helpers.pictures import ARCH, pictures
from helpers.refusals import brief
from torch import nn

import fastcontrast
from fastcontrast import recipes
from fastcontrast.all import (
    DCL, VIEW_KINDS, EMATarget, InfoNCE, InputError, MultiCrop, Queue, SharedTarget, contrastive_learner, image_dls)
from fastcontrast.optim import optimizer
from fastcontrast.recipes import (
    LOSSES, METHODS, RECIPES, SETTINGS, Recipe, check_parts, encoder_kind, make_part, method, recipe_table,
    refused_pairs, simclr)
from fastcontrast.recipes.recipe import ENCODERS

FIELDS = dict(projector=(32, 16), loss=DCL, target=SharedTarget, views='simclr', lr=0.3)
SEED = 7


@pytest.fixture
def added():
    "Registers a method for the length of a test"
    before = dict(METHODS)
    yield method
    METHODS.clear()
    METHODS.update(before)


# --- the decorator

def test_a_method_is_registered_under_its_functions_name(added):
    @added
    def mine():
        """What is said
        of it.

        And more."""
        return Recipe(paper='Nobody 2030', **FIELDS)
    assert METHODS['mine'] is mine and list(METHODS)[-1] == 'mine' and list(RECIPES) == list(METHODS)
    assert (mine.__name__, mine.__module__, mine.__doc__) == ('mine', __name__, 'What is said of it. (Nobody 2030)')
    recipe = mine('cifar', lr=0.1)
    assert (recipe.name, recipe.about, recipe.setting) == ('mine', 'What is said of it.', 'cifar')
    assert recipe.lr == 0.3 and recipe.resolve('digits').lr == 0.1 and RECIPES['mine'] == replace(mine(), changes={})
    assert recipe_table().loc['mine', 'loss'] == 'DCL(temp=0.1)'
    assert 'mine' in set(refused_pairs().recipe)  # it has no prototypes


def test_names_are_taken_once(added):
    first = METHODS['simclr']
    def simclr(): return Recipe(**FIELDS)
    text = brief(added, simclr)
    assert "there is a method 'simclr' already" in text and 'fastcontrast.recipes.methods.simclr' in text
    assert METHODS['simclr'] is first and RECIPES['simclr'].projector == (2048, 128)


def test_what_gives_no_recipe_is_refused(added):
    def mine(): pass
    assert 'mine() gives None' in brief(added, mine)
    assert 'mine' not in METHODS


def test_a_method_that_is_made_again_replaces_itself(added):
    for lr in (0.1, 0.2):
        @added
        def mine(lr=lr): return Recipe(**FIELDS | dict(lr=lr))
    assert RECIPES['mine'].lr == 0.2 and METHODS['mine'] is mine


def test_calls_are_checked():
    assert "unknown field of simclr() 'projecter': did you mean projector" in brief(simclr, projecter=(8,))
    assert "unknown setting of simclr() 'cifar10': did you mean cifar" in brief(simclr, 'cifar10')
    assert "unknown schedule 'cosin'" in brief(simclr, schedule='cosin')
    assert 'moco_v3() or fast_moco() or byol()' in brief(simclr, predictor=(8,))
    assert 'take swav() or dino()' in brief(simclr, prototypes_frozen=2)
    with pytest.raises(FrozenInstanceError): simclr().lr = 1


def test_every_method_is_an_attribute_of_the_package():
    assert all(getattr(recipes, name) is make and name in recipes.__all__ for name, make in METHODS.items())


# --- settings

@pytest.mark.parametrize('opt', ['lars', 'sgd', 'adamw'])
def test_a_recipe_without_settings_has_what_all_share(opt):
    recipe = Recipe(**FIELDS, opt=opt, wd=0.3, multi_crop=MultiCrop, warmup_from=0.25, opt_args=dict(eps=1.))
    imagenet, cifar, small, digits = resolved = [recipe.resolve(setting) for setting in SETTINGS]
    assert replace(imagenet, setting=None) == recipe
    args = dict(trust_coeff=0.02, trust_clip=True)
    assert (cifar.wd, cifar.opt_args) == ((1e-4, args) if opt == 'lars' else (0.3, dict(eps=1.)))
    assert (cifar.views, cifar.multi_crop, cifar.lr, cifar.opt) == ('simclr_cifar', None, 0.3, opt)
    kept = ('adamw', 0.3, 0.3, dict(eps=1.), 0.25)
    of_muon = ('muon', 0.01, 0.01, {}, 0)
    assert (small.opt, small.lr, small.wd, small.opt_args, small.warmup_from) == (kept if opt == 'adamw' else of_muon)
    assert (small.views, small.multi_crop) == ('simclr', MultiCrop)
    assert (digits.views, digits.multi_crop, digits.opt, digits.opt_args) == ('digits', None, 'adamw', {})
    assert (digits.lr, digits.wd, digits.warmup_from) == (8e-3, 1e-4, 0)
    assert all(r == r.resolve('imagenet') for r in resolved)  # once resolved, always the same
    assert all(r.projector == (32, 16) for r in resolved)


def test_a_recipes_own_values_lie_on_top_and_the_calls_on_top_of_them():
    settings = dict(digits=dict(lr=0.5, views='byol'), cifar=dict(multi_crop=MultiCrop), mine=dict(lr=0.7))
    recipe = Recipe(**FIELDS, settings=settings)
    assert (recipe.resolve('digits', 65).lr, recipe.resolve('digits', 65).views) == (0.5, 'byol')
    assert recipe.resolve('digits').views == 'byol_cifar'  # at 32 pixels
    assert recipe.resolve('cifar', 65).multi_crop is MultiCrop and recipe.resolve('mine').lr == 0.7
    changed = replace(recipe, setting='digits', changes=dict(lr=0.9, opt='sgd')).resolve('cifar', 65)
    assert (changed.lr, changed.opt, changed.opt_args, changed.views, changed.wd) == (0.9, 'sgd', {}, 'byol', 1e-4)


def test_small_begins_with_what_a_recipe_has_in_cifar():
    settings = dict(cifar=dict(lr=0.4, wd=0.5, projector=(8,)), small=dict(projector=(4,)))
    recipe = Recipe(**FIELDS, warmup=3, settings=settings)
    cifar, small = recipe.resolve('cifar'), recipe.resolve('small')
    assert (cifar.opt, cifar.lr, cifar.wd, cifar.projector, cifar.warmup) == ('lars', 0.4, 0.5, (8,), 3)
    assert (small.opt, small.lr, small.wd, small.projector, small.warmup) == ('muon', 0.01, 0.01, (4,), 10)
    assert replace(recipe, opt='sgd').resolve('small') == small
    adamw = replace(recipe, opt='adamw').resolve('small')
    assert (adamw.opt, adamw.lr, adamw.wd, adamw.warmup) == ('adamw', 0.4, 0.5, 3)
    assert recipe.resolve('imagenet').lr == 0.3


@pytest.mark.parametrize('encoder', ENCODERS)
@pytest.mark.parametrize('name', METHODS)
def test_in_small_the_rate_of_muon_stays_up(name, encoder):
    "And of no other optimizer: half a cosine is the others' own"
    recipe = METHODS[name].recipe.own('small', 128, encoder)
    assert recipe.schedule == ('wsd' if recipe.opt == 'muon' else 'cosine')


def test_the_rate_of_fast_stays_up_everywhere():
    assert {METHODS['fast'].recipe.own(setting).schedule for setting in SETTINGS} == {'wsd'}


@pytest.mark.parametrize('opt', ['lars', 'sgd'])
def test_an_optimizer_of_the_calls_has_no_rates_of_another(opt):
    recipe = Recipe(**FIELDS, settings=dict(cifar=dict(lr=0.4, wd=1e-5)), changes=dict(opt=opt))
    small, cifar = recipe.resolve('small', 65), recipe.resolve('cifar', 65)
    assert small == replace(cifar, setting='small') and (small.opt, small.lr) == (opt, 0.4)
    assert small.opt_args == (dict(trust_coeff=0.02, trust_clip=True) if opt == 'lars' else {})
    muon = replace(recipe, changes=dict(opt='muon', lr=0.1)).resolve('small')
    assert (muon.opt, muon.lr, muon.wd) == ('muon', 0.1, 0.01)


def test_arguments_of_the_optimizer_are_added_to_its_own():
    own, given = dict(trust_coeff=0.02, trust_clip=True), dict(momentum=0.95)
    recipe = Recipe(**FIELDS, opt_args=dict(joint=True))
    def args(*setting, **changes):
        changed = replace(recipe, changes=changes).resolve(*setting)
        assert changed.resolve(*setting) == changed  # once resolved, always the same
        return changed.opt_args
    assert args('imagenet', opt_args=given) == dict(joint=True) | given
    for no_dict in (3, ['momentum'], None):
        with pytest.raises(InputError, match='must be a dict like'): args('imagenet', opt_args=no_dict)
    assert args('cifar', opt_args=given) == args('small', opt='lars', opt_args=given) == own | given
    assert args('cifar', opt_args=dict(trust_clip=False)) == own | dict(trust_clip=False)
    assert args('cifar', opt_args={}) == {} and args('cifar') == own
    # another optimizer has none of these
    assert args('cifar', opt='sgd', opt_args=given) == args('digits', opt='lars', opt_args=given) == given
    learn = quick('simclr', opt_args=given)
    learn.create_opt()
    group, *_ = learn.opt.opt.param_groups
    assert {name: group[name] for name in own | given} == own | given


@pytest.mark.parametrize('side,of_the_side', [(64, ('simclr_cifar', None)), (65, ('simclr', MultiCrop))])
def test_what_follows_from_the_side_is_the_same_in_every_setting(side, of_the_side):
    recipe = Recipe(**FIELDS, multi_crop=MultiCrop, settings=dict(mine={}))
    for setting in ('imagenet', 'cifar', 'small', 'mine'):
        resolved = recipe.resolve(setting, side)
        assert (resolved.views, resolved.multi_crop) == of_the_side
        asked = replace(recipe, changes=dict(views='byol', multi_crop=MultiCrop)).resolve(setting, side)
        assert (asked.views, asked.multi_crop) == ('byol', MultiCrop)


def test_kinds_of_encoders_change_what_their_recipe_says():
    encoders = dict(vit=dict(opt='adamw', lr=0.01, multi_crop=MultiCrop), cnn=dict(wd=0.2),
                    **{'vit small': dict(lr=0.02), 'vit digits': dict(clip=3.)})
    recipe = Recipe(**FIELDS, settings=dict(cifar=dict(lr=0.4)), encoders=encoders)
    assert recipe.resolve('cifar') == recipe.resolve('cifar', encoder=None)
    for setting in ('imagenet', 'cifar', 'small'):
        vit, cnn = (recipe.resolve(setting, 65, kind) for kind in ('vit', 'cnn'))
        assert (vit.opt, vit.opt_args, vit.lr) == ('adamw', {}, 0.02 if setting == 'small' else 0.01)
        assert vit.multi_crop is MultiCrop and recipe.resolve(setting, 64, 'vit').multi_crop is None
        assert cnn == replace(recipe.resolve(setting, 65), wd=0.2)
        assert cnn.opt == ('muon' if setting == 'small' else 'lars')
        changed = replace(recipe, changes=dict(lr=0.9, opt='sgd')).resolve(setting, 65, 'vit')
        assert (changed.lr, changed.opt) == (0.9, 'sgd')
    # the digits' optimizer is chosen for all encoders
    assert recipe.resolve('digits', encoder='vit') == replace(recipe.resolve('digits'), clip=3.)
    assert recipe.resolve('digits', encoder='cnn') == recipe.resolve('digits')


@pytest.mark.parametrize('arch,kind', [('test_resnet', 'cnn'), ('test_vit', 'vit')])
def test_the_learners_encoder_picks_its_kind(arch, kind):
    recipe = Recipe(**FIELDS, encoders=dict(vit=dict(lr=0.01), cnn=dict(lr=0.02)))
    learn = contrastive_learner(pictures(16, 160 if kind == 'vit' else 16, 8), arch, method=recipe, knn_pictures=0)
    assert encoder_kind(learn.model.encoder) == kind and learn.recipe.lr == dict(vit=0.01, cnn=0.02)[kind]


@pytest.mark.parametrize('kind,archs', [
    ('vit', ('hiera_tiny_224', 'mvitv2_tiny', 'volo_d1_224', 'crossvit_tiny_240', 'twins_svt_small', 'mixer_s32_224',
             'tnt_s_patch16_224', 'resmlp_12_224', 'vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224')),
    ('cnn', ('resnet18', 'resnet50_clip', 'convnext_atto', 'efficientnet_b0', 'coatnet_nano_rw_224', 'mobilevit_s',
             'maxvit_tiny_tf_224', 'skresnet18', 'botnet26t_256', 'vgg11'))])
def test_what_counts_as_a_transformer(kind, archs):
    with torch.device('meta'): found = {arch: encoder_kind(timm.create_model(arch, num_classes=0)) for arch in archs}
    assert found == dict.fromkeys(archs, kind)


def test_what_counts_as_a_transformer_of_torchvision():
    with torch.device('meta'):
        found = [encoder_kind(getattr(torchvision.models, name)(weights=None))
                 for name in ('vit_b_32', 'swin_t', 'swin_v2_t', 'maxvit_t', 'convnext_tiny', 'resnet18')]
    assert found == ['vit'] * 3 + ['cnn'] * 3


OWN_VIEWS = [VIEW_KINDS['byol'], nn.Sequential(nn.Identity(), nn.Identity())]


@pytest.mark.parametrize('views', OWN_VIEWS, ids=['kind', 'module'])
def test_views_of_ones_own_stay(views):
    recipe = Recipe(**FIELDS | dict(views=views))
    assert all(recipe.resolve(setting).views is views for setting in SETTINGS)


def test_views_that_are_no_name_are_shown_in_the_table(added):
    @added
    def mine(): return Recipe(**FIELDS | dict(views=VIEW_KINDS['byol'], multi_crop=MultiCrop, loss=DCL(0.3)))
    row = recipe_table().loc['mine']
    assert row.views.startswith('ViewKind(') and '…, MultiCrop(' in row.views and row.loss == 'DCL(temp=0.3)'


# --- its values, and which go together

@pytest.mark.parametrize('field,value', [
    ('projector', ()), ('projector', (8, 0)), ('projector', 8), ('predictor', (8, True)), ('prototypes', -1),
    ('prototypes', 2.5), ('lr', 0), ('lr', float('inf')), ('wd', -1), ('wd_end', 'x'), ('clip', 0), ('clip_each', -1),
    ('warmup', -1), ('warmup_from', 2), ('warmup_share', 1.5), ('frozen', 'norm'), ('lr_end', 1.5),
    ('drop_path', -0.1), ('joint_head', 1), ('per_view', 1), ('wd_all', None), ('speedups', 3),
    ('speedups', ('suncet',))])
def test_values_that_cannot_be(field, value):
    text = brief(Recipe('mine', **FIELDS | {field: value}).check)
    assert f'{field}={value!r} of mine() must be' in text


def test_all_methods_can_be():
    for setting in SETTINGS:
        for recipe in (r.resolve(setting, encoder=kind) for r in RECIPES.values() for kind in (None, *ENCODERS)):
            recipe.check()
            with torch.device('meta'): assert recipe.head(12).dim == recipe.projector[-1]
            optimizer(recipe.opt, recipe.opt_args)


def test_a_pass_for_every_view_and_one_of_the_head_for_all():
    text = brief(contrastive_learner, pictures(12), ARCH, simclr(per_view=True, joint_head=True))
    assert 'per_view' in text and 'joint_head' in text


def test_predictions_end_where_projections_do():
    text = brief(Recipe('mine', **FIELDS, predictor=(8, 12)).check)
    assert 'mine()' in text and '12' in text and '16' in text


def test_parts_that_do_not_go_together():
    recipe = Recipe('mine', **FIELDS)
    assert 'SwAVLoss scores embeddings against prototypes, and mine() has none' in \
        brief(check_parts, recipe, LOSSES['swav'](), None)
    text = brief(check_parts, recipe, LOSSES['neg_cosine'](), Queue(64))
    assert 'NegCosine has no use for Queue(64): take a loss that has (InfoNCE, DCL, DCLW, SwAVLoss)' in text
    check_parts(recipe, InfoNCE(), Queue(64))
    check_parts(replace(recipe, prototypes=4), LOSSES['swav'](), None)


def test_parts_are_made_or_copied():
    given, loss = EMATarget(0.9), DCL(0.3)
    assert make_part(None) is None and make_part(SharedTarget) is not make_part(SharedTarget)
    assert make_part(given) is not given and make_part(given).momentum == 0.9
    assert make_part(loss) is not loss and make_part(loss).temp == 0.3 and make_part(DCL).temp == 0.1


def test_what_is_refused_is_what_cannot_be():
    "A loss on scores needs prototypes, and a queue needs a loss with a use for one"
    for setting in SETTINGS:
        table = refused_pairs(setting)
        scored, unqueued = {'SwAVLoss', 'DINOLoss'}, {'NTXent', 'NegCosine', 'BarlowTwins', 'VICReg', 'DINOLoss'}
        expected = {(name, loss) for name in METHODS for loss in (make.__name__ for make in LOSSES.values())
                    if loss in scored and name not in ('swav', 'dino') or loss in unqueued
                    and name in ('moco_v1', 'moco_v2', 'swav')}
        assert set(zip(table.recipe, table.loss)) == expected and len(table) == len(expected)


@pytest.mark.parametrize('option', [
    dict(predictor=(16, 8)), dict(predictor_out_bn='plain'), dict(predictor_out_bias=False),
    dict(predictor_constant_lr=True)], ids=str)
@pytest.mark.parametrize('name', METHODS)
def test_options_of_a_predictor_need_one(name, option):
    (key, value), = option.items()
    if RECIPES[name].predictor:
        assert getattr(METHODS[name](**option).resolve('cifar'), key) == value
        return
    text = brief(METHODS[name], **option)
    assert f'{name}() has no predictor' in text and f'{key}={value!r}' in text


@pytest.mark.parametrize('option', [dict(prototypes_frozen=2), dict(prototypes_weight_norm=True)], ids=str)
def test_options_of_prototypes_need_some(option):
    assert 'simclr() has no prototypes' in brief(simclr, **option)
    simclr(prototypes=24, **option)


def test_predictions_as_wide_as_keys():
    "Else no loss can compare them, and the first step is late to say so"
    text = brief(quick, 'byol', projector=(16, 8), predictor=(16, 12))
    assert '12' in text and '8' in text


@pytest.mark.parametrize('n', [-3, 2.5, '24'])
def test_numbers_of_prototypes(n): assert f'prototypes={n!r}' in brief(quick, 'swav', prototypes=n)


@pytest.mark.parametrize('field,value', [
    ('projector', 128), ('projector', ()), ('predictor', (8, 'a')), ('one_way', 'x'), ('lr', -1), ('wd', -1.),
    ('warmup', 'x'),
    ('clip_each', 0), ('wd_end', -1), ('prototypes_frozen', -1), ('target', 'ema'),
    ('target', None), ('target', Queue),
    ('memory', 512), ('multi_crop', 3), ('loss', 3)])
def test_values_of_recipes_that_cannot_be(field, value):
    name = 'swav' if field.startswith('prototypes') else 'byol'
    text = brief(contrastive_learner, pictures(16, 16, 8), ARCH, method=METHODS[name]('cifar', **{field: value}))
    assert name in text and (field in text or repr(value) in text or 'Queue' in text)


def test_prototypes_that_no_loss_scores_are_refused():
    text = brief(quick, 'simclr', prototypes=300)
    assert 'NTXent' in text and '300 prototypes' in text
    assert quick('swav', loss='dcl').model.heads.final.prototypes is None  # the loss takes their place


def test_weight_decay_of_biases_and_norms():
    def decays(name):
        learn = quick(name)
        learn.create_opt()
        return [g['weight_decay'] for g in learn.opt.opt.param_groups]
    assert decays('moco_v2') == [1e-4] * 2 and decays('simsiam') == [1e-5] * 4 and decays('simclr') == [1e-4, 0]


def test_a_decay_that_grows_from_nothing_grows():
    learn, seen = quick('dino', wd=0., wd_end=0.1), []
    class Decays(Callback):
        def after_step(self): seen.append([g['weight_decay'] for g in self.opt.opt.param_groups])
    learn.fit_contrastive(4, cbs=Decays())
    assert seen[0] == [0, 0] and seen[-1] == pytest.approx([0.1, 0], abs=0.005) and seen[-1][1] == 0


def test_the_documents_tables_are_those_of_the_recipes():
    cells = json.loads((Path(__file__).parents[1]/'nbs/260_methods.ipynb').read_text())['cells']
    shown = {''.join(c['source']).splitlines()[-1]: ''.join(o['data']['text/html']) for c in cells
             for o in c.get('outputs', []) if 'text/html' in o.get('data', {})}
    with pd.option_context('display.max_colwidth', None):
        made = {'recipe_table()': recipe_table(), 'refused': refused_pairs(),
                **{f"recipe_table('{setting}')": recipe_table(setting) for setting in ('cifar', 'small')}}
        for name, table in made.items():
            same = table._repr_html_().split() == shown[name].split()
            assert same, f"{name}: run `python tests/outputs.py 260_methods`"


# --- a method from outside

def test_ten_lines_from_outside_train_on_the_digits(added):
    @added
    def mine():
        "A method of ten lines"
        return Recipe(projector=(32, 16), loss=DCL, target=SharedTarget, views='simclr', lr=0.3)
    dls = image_dls('digits', size=16, bs=256, device='cpu')
    learn = contrastive_learner(dls, 'resnet10t', method='mine', knn_pictures=0)
    assert (learn.recipe.views, learn.recipe.opt) == ('digits', 'adamw')
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1)


FILE = '''
from torch import nn
from fastcontrast.recipes.recipe import LOSSES, Recipe, method
from fastcontrast.losses import DCL
from fastcontrast.targets import SharedTarget

@LOSSES.register('cold')
class ColdDCL(DCL):
    def __init__(self, temp=0.05): super().__init__(temp)

@method
def cold():
    "SimCLR, colder"
    return Recipe(projector=(32, 16), loss=ColdDCL, target=SharedTarget, views='simclr', lr=0.3)
'''
CHECK = '''
import warnings
import fastcontrast.all  # where every warning is an error
warnings.simplefilter('ignore')
from fastcontrast import recipes
from fastcontrast.recipes import METHODS, LOSSES, cold, recipe_table, simclr
assert callable(cold) and METHODS['cold'] is cold and LOSSES['cold'].__name__ == 'ColdDCL' and 'cold' in recipes.__all__
assert list(METHODS)[-1] == 'cold' and cold().resolve('digits').opt == 'adamw'
print(recipe_table().loc['cold', 'loss'])
'''


def test_a_new_method_is_one_new_file_and_the_import_warns_of_nothing(tmp_path):
    "In a copy of the package, beside the library's own; its module has the method's name"
    shutil.copytree(Path(fastcontrast.__file__).parent, tmp_path / 'fastcontrast')  # with what is compiled of it
    (tmp_path / 'fastcontrast/recipes/cold.py').write_text(FILE)
    got = subprocess.run([sys.executable, '-W', 'error', '-c', CHECK], capture_output=True, text=True, cwd=tmp_path,
                         env={**os.environ, 'PYTHONPATH': str(tmp_path), 'OMP_NUM_THREADS': '1'})
    assert (got.returncode, got.stdout, got.stderr) == (0, 'ColdDCL(temp=0.05)\n', '')
