"""Modules of other makes as encoders: pooled, without classifier, with stages that speedups find, exported."""
import copy

import pytest
import timm
import torch
import torchvision
from helpers.deaths import run, same_state
from helpers.learners import small
from helpers.pictures import Dots
from helpers.refusals import said
from torch import nn

from fastcontrast.data import image_dls
from fastcontrast.export import encoder_info, export_copy, export_encoder, load_encoder
from fastcontrast.learner import contrastive_learner
from fastcontrast.models import encoder_stages, feature_dim, level_flops, make_encoder
from fastcontrast.modules import as_encoder, class_path, fit_side, timm_name
from fastcontrast.multi_crop import MultiCrop
from fastcontrast.recipes import simclr
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.regions import HardRegions

SIDE = 32
close = torch.testing.assert_close
SEED = 3


def block(d_in, d_out, stride):
    return nn.Sequential(nn.Conv2d(d_in, d_out, 3, stride, 1), nn.BatchNorm2d(d_out), nn.ReLU())


class Maps(nn.Module):
    "Gives maps; its stages have odd names"
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.keys, self.final, self.last = block(8, 12, 2), block(12, 16, 1), block(16, 20, 2)
    def forward(self, x): return self.last(self.final(self.keys(self.act(self.norm(self.stem(x))))))


class Wrapped(nn.Module):
    "Gives features, by a trunk in a list, and a classifier that it does not use"
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict(dict(trunk=nn.Sequential(block(3, 8, 2), block(8, 16, 2), block(16, 24, 2))))
        self.fc = nn.Linear(24, 10)
    def forward(self, x): return self.body['trunk'](x).mean((2, 3))


class Topped(nn.Module):
    "Has most of its parameters after its maps, as VGG has"
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(block(3, 8, 2), block(8, 16, 2), nn.MaxPool2d(2))
        self.top = nn.Sequential(nn.Flatten(), nn.Linear(256, 99))
    def forward(self, x): return self.top(self.features(x))


class Plain(nn.Module):
    "Gives features without anything that could be a stage"
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))
    def forward(self, x): return x.mean((2, 3)) @ self.weight


def small_vit():
    return torchvision.models.VisionTransformer(SIDE, 8, num_layers=6, num_heads=2, hidden_dim=32, mlp_dim=48)


def small_swin():
    return torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4])


MAKES = dict( # the net, its stages at 32 pixels, and what is left out
    maps=(Maps, dict(act=(8, 2), keys=(12, 4), final=(16, 4), last=(20, 8)), ''),
    wrapped=(Wrapped, {'body.trunk.0': (8, 2), 'body.trunk.1': (16, 4), 'body.trunk': (24, 8)}, ''),
    plain=(Plain, {}, ''),
    sequential=(lambda: nn.Sequential(*list(torchvision.models.resnet18().children())[:-1]),
                {'2': (64, 2), '4': (64, 4), '5': (128, 8), '6': (256, 16), '7': (512, 32)}, ''),
    resnet=(torchvision.models.resnet18, dict(relu=(64, 2), layer1=(64, 4), layer2=(128, 8), layer3=(256, 16),
                                              layer4=(512, 32)), 'fc'),
    vit=(small_vit, {'conv_proj': (32, 8), **{f'encoder.layers.encoder_layer_{i}': (32, 8) for i in range(5)},
                     'encoder': (32, 8)}, 'heads.head'),
    swin=(small_swin, None, 'head'),
    mobilenet=(torchvision.models.mobilenet_v3_small, None, 'classifier.3'),
    topped=(Topped, {'features.0': (8, 2), 'features.1': (16, 4), 'features': (16, 8)}, ''),
    squeezenet=(torchvision.models.squeezenet1_1, None, 'classifier'),
    timm=(lambda: timm.create_model('test_resnet', num_classes=7), None, 'fc'),
    timm_headless=(lambda: timm.create_model('test_vit', num_classes=0, img_size=SIDE), None, ''))


@pytest.mark.parametrize('make', MAKES)
@torch.no_grad()
def test_an_encoder_of_another_make(make):
    make, stages, left_out = MAKES[make]
    net = make()
    before, names = {k: v.clone() for k, v in net.state_dict().items()}, set(vars(net))
    encoder, notes = as_encoder(net, SIDE)
    assert set(vars(net)) == names and not net._forward_hooks  # it stays as it was
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    assert notes == ([f"{type(net).__name__}'s classifier '{left_out}' was left out"] if left_out else [])
    kept = {k: v for k, v in before.items() if not left_out or not k.startswith(left_out)}
    assert encoder.state_dict().keys() == kept.keys()
    x = torch.rand(3, 3, SIDE, SIDE)
    h = encoder.eval()(x)
    assert h.ndim == 2 and h.shape == (3, feature_dim(encoder, SIDE))
    theirs = net.eval()
    if left_out: theirs.set_submodule('fc' if make is MAKES['timm'][0] else left_out, nn.Identity())
    own = theirs(x)
    close(h, own.mean((2, 3)) if own.ndim == 4 else own, rtol=0, atol=0)
    found = {name: (s.channels, s.stride) for name, s in encoder_stages(encoder).items()}
    if stages is not None: assert found == stages and list(found) == list(stages)
    seen = {}
    for name in found:
        def keep(module, args, out, name=name): seen[name] = out
        encoder.get_submodule(name).register_forward_hook(keep)
    encoder(x)
    assert list(seen) == list(found)
    for name, s in encoder_stages(encoder).items(): assert s.pool(seen[name]).shape == (3, s.channels), name
    again, _ = as_encoder(encoder, SIDE)  # one that is one already
    close(again.eval()(x), h, rtol=0, atol=0)


def test_stages_that_a_module_describes_itself():
    net = Maps()
    net.feature_info = [dict(module='keys.0', num_chs=12, reduction=4), dict(module='last', num_chs=20, reduction=8)]
    assert list(encoder_stages(as_encoder(net, SIDE)[0])) == ['keys.0', 'last']
    net.feature_info = 'mine'
    assert len(encoder_stages(as_encoder(net, SIDE)[0])) == 4


def test_stages_of_a_module_inside_are_measured():
    "Whose names a net that holds it has copied"
    net = Wrapped()
    net.feature_info = [dict(module='0', num_chs=8, reduction=2), dict(module='1', num_chs=16, reduction=4)]
    assert list(encoder_stages(as_encoder(net, SIDE)[0])) == ['body.trunk.0', 'body.trunk.1', 'body.trunk']


@pytest.mark.parametrize('key,value', [
    ('module', ['keys']), ('module', None), ('num_chs', '12'), ('num_chs', None), ('num_chs', 0), ('num_chs', [12]),
    ('reduction', 0), ('reduction', 2.5), ('reduction', (4, 4)), ('prefix', -1), ('prefix', 'one'), ('last', 1)])
def test_stages_that_a_module_describes_wrongly(dls, key, value):
    net = Maps()
    net.feature_info = [dict(module='keys', num_chs=12, reduction=4) | {key: value}]
    said(['arch=Maps(…)', f'{key}={value!r}', 'feature_info'], contrastive_learner, dls, net)


@pytest.mark.parametrize('wrap', [nn.DataParallel, torch.compile, lambda net: torch.compile(nn.DataParallel(net))])
def test_what_runs_a_module_is_left_out(dls, wrap):
    net = Maps()
    learn = learner(dls, wrap(net))
    assert learn.arch == f'module:{class_path(net)}'
    assert learn.model.encoder.state_dict().keys() == net.state_dict().keys()


class Gives(nn.Module):
    def __init__(self, make, train=None):
        super().__init__()
        self.weight, self.make, self.train_make = nn.Parameter(torch.ones(3)), make, train or make
    def forward(self, x): return (self.train_make if self.training else self.make)(x * self.weight[:, None, None])


class InPlace(Plain):
    def forward(self, x): return super().forward(x.sub_(0.5))


class Fixed(Plain):
    @property
    def pretrained_cfg(self): return {}


class Growing(Plain):
    def forward(self, x):
        self.register_buffer(f'seen{len(self._buffers)}', torch.ones(1))
        return super().forward(x)


def hooked():
    net = Plain()
    net.register_state_dict_post_hook(lambda net, state, prefix, local: state.update(extra=torch.ones(1)))
    return net


def described(**config):
    net = Plain()
    net.pretrained_cfg = dict(architecture=5) | config
    return net


class Stateful(Plain):
    def get_extra_state(self): return dict(version=1)


class NotCopied(Plain):
    def __deepcopy__(self, memo): raise TypeError('not this one')


class Wordy(Plain):
    def __repr__(self): return 'long ' * 3000


@pytest.mark.parametrize('net,words', [
    (nn.Identity(), ['Identity', 'no parameters']), (NotCopied(), ['NotCopied', 'copied', 'not this one']),
    (nn.Sequential(nn.LazyConv2d(4, 3)), ['without shapes']),
    (Gives(lambda x: x.flatten(2)), ['[2, 3, 1024]', '[N, D]']), (Gives(lambda x: x.mean((0, 2, 3))), ['[3]']),
    (Gives(lambda x: (x, x)), ['gives tuple for pictures']), (Gives(lambda x: dict(out=x)), ['gives dict for']),
    (Gives(lambda x: x.mean((2, 3)), lambda x: (x,)), ['tuple in training and [2, 3] in evaluation']),
    (Gives(lambda x: x.mean((2, 3)), lambda x: x / 'a'), ['TypeError (unsupported', 'in training']),
    (Gives(lambda x: x.mean((2, 3)).long()), ['[2, 3] of int64', '[N, D]']),
    (InPlace(), ['in place', 'a copy']),
    (torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), ['TorchScript']), (Plain, ['is no module']), (3, ['3 is no']),
    (Fixed(), ["has a pretrained_cfg that can't be set"]), (Growing(), ['other names in its state_dict()']),
    (hooked(), ["can't take back its own state_dict()", 'extra']),
    (described(mean=None), ['the mean None']), (described(std=(1, float('nan'), 1)), ['the std (1, nan, 1)']),
    (Gives(lambda x: torch.fft.fft(x.mean((2, 3)))), ['of complex64']), (Stateful(), ['_extra_state', 'a dict']),
    (nn.Sequential(nn.Conv2d(4, 4, 3)), ["can't take pictures [2, 3, 32, 32]"]),
    (nn.Sequential(nn.Conv2d(3, 4, 48)), ["can't take pictures"])])
def test_modules_that_are_no_encoders(net, words): said(words, as_encoder, net, SIDE)


def changed(change):
    net = Maps()
    change(net)
    return net


@pytest.mark.parametrize('net,words', [
    (changed(lambda net: net.requires_grad_(False)), 'requires_grad is False'),
    (Gives(lambda x: x.detach().mean((2, 3))), 'no gradient passes'),
    (Gives(torch.no_grad()(lambda x: x.mean((2, 3)))), 'no gradient passes'),
    (changed(lambda net: setattr(net, 'forward', Maps().forward)), 'none of its own parameters'),
    (changed(lambda net: nn.init.constant_(net.last[0].weight, torch.nan)), "not finite numbers, in 'last.0.weight'")])
def test_modules_that_would_learn_nothing(dls, net, words):
    said([words], contrastive_learner, dls, net)
    as_encoder(net, SIDE)  # as `load_encoder` takes them


@pytest.mark.parametrize('kind', [torch.float64, torch.float16])
def test_features_of_other_number_formats(dls, kind):
    class Cast(Maps):
        def forward(self, x): return super().forward(x).to(kind)
    learn = learner(dls, Cast(), precision='fp32')
    learn.fit_contrastive(1)
    assert all(torch.isfinite(loss) for loss in learn.recorder.losses)
    learn = learner(dls, described(mean=torch.zeros(3), std=(1, 2, 3)))
    assert learn.mean == (0., 0., 0.) and learn.std == (1., 2., 3.) and learn.arch.endswith('.Plain')


def test_a_class_that_is_in_no_module(dls, tmp_path):
    "As those are of which torch.hub has run the code"
    Lost = type('Lost', (Maps,), dict(__module__='gone'))
    torch.save(Lost().state_dict(), tmp_path/'w.pth')
    assert learner(dls, Lost(), weights=tmp_path/'w.pth').arch == 'module:gone.Lost'


def test_refusals_are_sentences(dls):
    for words, arch in ((["unknown tag of 'resnet18' 'nonsense'", 'a1_in1k'], 'resnet18.nonsense'),
                        (['arch=1000000000'], 10**9), (['arch=[', '…'], list(range(9999))),
                        (["unknown architecture 'aaaa", '…'], 'a' * 9999), (['there is no architecture'], None)):
        said(words, contrastive_learner, dls, arch)
    for f in (lambda: make_encoder('resnet18', size=10**9), lambda: feature_dim(make_encoder('test_resnet'), 10**9),
              lambda: as_encoder(Maps(), 10**9)):
        said(['size=1000000000', '8192'], f)
    said(['small_input', 'Wordy'], contrastive_learner, dls, Wordy(), small_input=True)
    said(['pretrained', 'Wordy'], contrastive_learner, dls, Wordy(), pretrained=True)
    said(["no stage 'layer9'", "0 'act'"], contrastive_learner, dls, Maps(), cbs=IntermediateLoss('layer9'))


@pytest.fixture(scope='module')
def dls(): return image_dls(Dots(12, SIDE), bs=4, valid=0.3, workers=0, device='cpu')


def learner(dls, arch, *cbs, method='simclr', **kwargs):
    learn = contrastive_learner(dls, arch, method=small(method, 'cifar'), cbs=list(cbs), knn_pictures=8, **kwargs)
    learn.create_mbar = False
    return learn


@pytest.mark.parametrize('method', ['simclr', 'moco_v3'])
@pytest.mark.parametrize('make,stage', [
    (torchvision.models.resnet18, 'layer2'), (Maps, 'keys'), (Maps, 'final'), (Wrapped, 'body.trunk.0')])
def test_speedups_find_their_stages_by_name(dls, make, stage, method):
    net = make()
    learn = learner(dls, net, IntermediateLoss(stage), PartialBackprop(), HardRegions(stage), method=method)
    before = copy.deepcopy(net.state_dict())
    level, last = learn.model.levels()
    assert last == 'final' and level != 'final' and learn.model.stages[level].module == stage
    learn.fit_contrastive(2, 1e-2)
    assert all(torch.isfinite(loss) for loss in learn.recorder.losses)
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())  # a copy is trained
    assert not torch.equal(next(learn.model.encoder.parameters()).cpu(), next(net.parameters()))


@pytest.mark.parametrize('make', [torchvision.models.resnet18, Maps, Plain])
def test_speedups_that_need_no_stage(dls, make):
    learn = learner(dls, make(), CombinePatches(), ProgressiveSize(steps=(16,)))
    learn.fit_contrastive(2, 1e-2)
    assert all(torch.isfinite(loss) for loss in learn.recorder.losses) and learn.embed()[0].ndim == 2


class Flat(Maps):
    "Flattens its maps and pools nothing, so that its width goes with the size of the pictures"
    def forward(self, x): return super().forward(x).flatten(1)


class Fixed32(Topped):
    "And one with a layer after that, which takes one size alone"


@pytest.mark.parametrize('make', [Flat, Fixed32])
@pytest.mark.parametrize('cb,name', [
    (lambda: CombinePatches(), 'CombinePatches'), (lambda: ProgressiveSize(steps=(16,)), 'ProgressiveSize'),
    (lambda: ProgressiveSize(), 'ProgressiveSize'), (lambda: HardRegions(0), 'HardRegions'),
    (lambda: MultiCrop(), 'MultiCrop'), (lambda: PatchVariants(combine='input'), 'PatchVariants'),
    (lambda: PatchVariants(combine='projector'), 'PatchVariants'),
    (lambda: PatchVariants(patches='sample', combine=None), 'PatchVariants')])
def test_a_module_for_one_size_alone(dls, make, cb, name):
    "Is refused before it trains, by what would give it others"
    said([name, make.__name__] if make is Flat else [name], contrastive_learner, dls, make(), cbs=cb())
    learn = learner(dls, make(), IntermediateLoss(0))
    learn.fit_contrastive(1, 1e-3)
    assert torch.isfinite(learn.recorder.losses[-1])


@pytest.mark.parametrize('arch', ['test_resnet', 'test_vit', 'test_efficientnet'])
def test_a_model_that_runs_its_stages_again_for_the_backward_pass(dls, arch):
    "Hooks at its stages are not called, or not a second time: so no speedup may use them"
    def running(*cbs, before=True):
        net = timm.create_model(arch, num_classes=0, **(dict(img_size=SIDE) if 'vit' in arch else {}))
        if before: net.set_grad_checkpointing()
        return learner(dls, net, *cbs)
    words = ['set_grad_checkpointing(False)', 'accumulate=2']
    for cbs in ([IntermediateLoss()], [IntermediateLoss(), PartialBackprop()], [HardRegions()]):
        said(words, running, *cbs)
        learn = running(*cbs, before=False)
        learn.model.encoder.set_grad_checkpointing()
        said(words, learn.fit_contrastive, 1, 1e-3)
        assert not any(module._forward_hooks for module in learn.model.encoder.modules())
        learn.model.encoder.set_grad_checkpointing(False)
        learn.fit_contrastive(1, 1e-3)
    learn = running(CombinePatches())  # which needs none
    learn.fit_contrastive(1, 1e-3)
    assert torch.isfinite(learn.recorder.losses[-1])


def test_stages_that_save_memory_within_are_right():
    "Where what runs again lies inside a stage, its output is that of the first time"
    dls = image_dls(Dots(8, 64), bs=4, valid=0, workers=0, device='cpu')
    def losses(again):
        torch.manual_seed(2)
        dls.train.epoch = 0
        learn = learner(dls, timm.create_model('test_convnext', num_classes=0), IntermediateLoss(), HardRegions(0),
                        precision='fp32')
        learn.model.encoder.set_grad_checkpointing(again)
        learn.fit_contrastive(2, 1e-3)
        return torch.stack(learn.recorder.losses)
    close(losses(True), losses(False), rtol=1e-5, atol=1e-6)


def test_defaults_of_the_speedups(dls):
    assert learner(dls, torchvision.models.resnet18(), IntermediateLoss()).model.levels() == (
        'layer1', 'layer2', 'layer3', 'final')
    assert learner(dls, small_vit(), IntermediateLoss()).model.levels() == (
        'encoder_layers_encoder_layer_0', 'encoder_layers_encoder_layer_2', 'encoder_layers_encoder_layer_3', 'final')


def test_operations_that_nobody_can_count(dls):
    class Uncounted(Plain):
        def forward(self, x): return (x.mean((2, 3))[..., None] * self.weight).sum(1)
    learn = learner(dls, Uncounted())
    said(['Uncounted', "can't be counted"], level_flops, learn.model, SIDE)


def test_compiled_passes_know_that_maps_are_pooled(dls):
    learn = learner(dls, Maps())
    learn.model.compiled = learn.model.encoder.forward  # as `Compile` has it, without hooks
    assert learn.model.features(torch.rand(2, 4, 3, SIDE, SIDE))['final'].shape == (2, 4, 20)


def test_what_is_said(dls, capsys):
    net = torchvision.models.resnet18()
    learn = learner(dls, net)
    learn.fit_contrastive(1)
    out = capsys.readouterr().out
    assert "ResNet's classifier 'fc' was left out" in out and 'head_epochs=1' in out
    assert out.count('before training: knn') == 1 and learn.given  # its weights may be good, and harm is to be seen
    learner(dls, 'test_resnet').fit_contrastive(1)
    assert 'before training' not in capsys.readouterr().out
    assert learn.arch == 'module:torchvision.models.resnet.ResNet' and not learn.small_input
    assert learn.mean == pytest.approx((0.485, 0.456, 0.406)) and learn.weights_from is None


@pytest.mark.parametrize('make', [torchvision.models.resnet18, Maps])
def test_export_and_back(dls, tmp_path, capsys, make):
    learn = learner(dls, make())
    learn.fit_contrastive(1, 1e-2)
    path = learn.export(tmp_path/'e.safetensors')
    where = class_path(learn.model.encoder)
    assert f"{path} holds the weights of a {where}: import that" in capsys.readouterr().out
    info = encoder_info(path)
    assert info['arch'] == f'module:{where}' and info['size'] == SIDE and not info['small_input']
    said([where, 'load_encoder(path, model=…)'], load_encoder, path)
    said([where], export_copy, path, tmp_path/'f')
    x, encoder = torch.rand(2, 3, SIDE, SIDE), learn.model.encoder.eval()
    loaded = load_encoder(path, model=make())
    assert not loaded.training
    loaded.to(memory_format=torch.channels_last)  # as in training: another order of sums
    with torch.no_grad(): close(loaded(x), encoder(x), rtol=0, atol=1e-6)
    text = str(pytest.raises(ValueError, load_encoder, path, model=Wrapped()).value)
    assert 'does not fit' in text and len(text) < 500
    again = learner(dls, make(), weights=path)
    with torch.no_grad(): close(again.model.encoder.eval()(x), encoder(x), rtol=0, atol=1e-6)
    said(['no name makes'], contrastive_learner, dls, 'resnet18', weights=path)


def test_a_model_of_timm_that_a_name_makes_is_exported_by_that(dls, tmp_path):
    net = timm.create_model('test_resnet', num_classes=5)
    learn = learner(dls, net)
    assert learn.arch == 'test_resnet'
    with torch.no_grad(): close(load_encoder(learn.export(tmp_path/'e.safetensors'))(torch.ones(1, 3, SIDE, SIDE)),
                                learn.model.encoder.eval()(torch.ones(1, 3, SIDE, SIDE)), rtol=0, atol=1e-6)
    said(['leave model out'], load_encoder, tmp_path/'e.safetensors', model=net)
    assert learner(dls, net, head_epochs=1).head_warmup.epochs == 1  # its weights are given all the same
    # shapes and names may be alike, and features not
    odd = make_encoder('resnet10t')
    odd.maxpool = nn.Identity()
    assert timm_name(as_encoder(odd, SIDE)[0], SIDE) is None
    assert timm_name(as_encoder(make_encoder('resnet10t', small_input=True), SIDE)[0], SIDE) == 'resnet10t_small'
    assert timm_name(as_encoder(Maps(), SIDE)[0], SIDE) is None


def test_a_transformer_of_timm_for_another_side(dls, tmp_path):
    "Its position embeddings are resampled, so that it is exported by its name; the module stays as it is"
    net = make_encoder('test_vit', size=2 * SIDE)
    before = copy.deepcopy(net.state_dict())
    learn = learner(dls, net)
    assert learn.arch == 'test_vit'
    assert 'position embeddings for pictures of 64 pixels were resampled for 32' in learn.notes
    learn.fit_contrastive(1, 1e-2)
    x, encoder = torch.rand(2, 3, SIDE, SIDE), learn.model.encoder.eval()
    with torch.no_grad(): close(load_encoder(learn.export(tmp_path/'e'))(x), encoder(x), rtol=0, atol=1e-5)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_a_transformer_that_no_name_makes_keeps_its_shapes(dls, tmp_path):
    "By which a file is read again, as is one that was written by its class before"
    odd = timm.create_model('test_vit', num_classes=0, img_size=2 * SIDE, depth=2)
    encoder, notes = as_encoder(odd, SIDE)
    assert not notes and encoder.pos_embed.shape == odd.pos_embed.shape and fit_side(encoder, SIDE) is None
    file = learner(dls, odd).export(tmp_path/'odd.safetensors')
    assert load_encoder(file, model=odd).pos_embed.shape == odd.pos_embed.shape
    net = make_encoder('test_vit', size=2 * SIDE)
    file = export_encoder(net, tmp_path/'old.safetensors', f'module:{class_path(net)}', SIDE, [.5] * 3, [.2] * 3)
    assert load_encoder(file, model=net).pos_embed.shape == net.pos_embed.shape


def test_a_run_that_died_is_taken_up(tmp_path):
    net = Maps()
    def make():
        torch.manual_seed(0)
        dls = image_dls(Dots(20, SIDE), bs=4, valid=0.2, workers=0, device='cpu')
        return contrastive_learner(dls, net, method=small('moco_v3', 'cifar'), cbs=IntermediateLoss('keys'),
                                   knn_pictures=8, head_epochs=1)
    same_state(run(make, tmp_path/'whole', 2), run(make, tmp_path/'broken', 2, 2, 6))
    other = contrastive_learner(image_dls(Dots(20, SIDE), bs=4, valid=0.2, workers=0, device='cpu'), Wrapped(),
                                method=simclr('cifar'), knn_pictures=8)
    said(['differs'], other.fit_contrastive, 2, resume=tmp_path/'whole')
