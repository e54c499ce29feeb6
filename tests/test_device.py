"""Precision on the CPU: what is autocast, what stays exact, and where bfloat16 would be wrong."""
import copy
import itertools
import os
import resource
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastcore.basics import AttrDict
from helpers.forks import CONTEXT
from helpers.pictures import ARCH, pictures
from torch import nn

from fastcontrast import device
from fastcontrast.all import (CombinePatches, Cost, EMATarget, HardRegions, InputError, IntermediateLoss,
                              PartialBackprop, contrastive_learner, moco_v3, nnclr, simclr, simsiam)
from fastcontrast.device import Autocast, Compile, SmallMaps, _CompiledModule, _glibc, reuse_memory
from fastcontrast.precision import has_bf16
from fastcontrast.views import OPERATIONS, Views

SEED = 3


@pytest.fixture(scope='module')
def dls(): return pictures(96, 16, 32)


def learner(dls, method=None, arch='resnet10t', **kwargs):
    method = method or moco_v3(projector=(32, 16), predictor=(32, 16))
    learn = contrastive_learner(dls, arch, method, small_input=False, knn_pictures=0, **kwargs)
    learn.create_mbar = False
    return learn


def in_half(model, f):
    "What `f` gives within the callback's context"
    autocast = Autocast('bf16')
    autocast.learn = AttrDict(model=model)
    autocast.before_fit()
    autocast.before_batch()
    try: return f()
    finally:
        autocast.after_loss()
        autocast.after_fit()


CONVOLUTIONS = [c for c in itertools.product((1, 2, 3, 5), (1, 2, 3, 5, 7), (1, 2, 4), (1, 64))
                if c[0] + c[1] // 2 * 2 >= c[1]]


@pytest.mark.parametrize('side,kernel,stride,groups', CONVOLUTIONS)
def test_gradients_in_half_precision_are_rounded_ones(side, kernel, stride, groups):
    conv = nn.Conv2d(64, 64, kernel, stride, kernel // 2, groups=groups).to(memory_format=torch.channels_last)
    x = torch.randn(16, 64, side, side).to(memory_format=torch.channels_last).requires_grad_()

    def results():
        y = conv(x)
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
        return [t.float() for t in (y, *torch.autograd.grad(y, (x, *conv.parameters()), weights))]
    exact = results()
    for _ in range(3):  # what is not written holds what the memory held
        torch.full((200_000,), torch.nan)
        for a, b in zip(exact, in_half(conv, results), strict=True): assert (a - b).norm() < 0.02 * a.norm() + 1e-3


@pytest.mark.parametrize('kernel,padding,side,dtype', [(3, 'same', 4, torch.bfloat16), (3, 'valid', 4, torch.bfloat16),
                                                       (3, (2, 0), 4, torch.bfloat16), (5, 'same', 2, torch.float32)])
def test_other_padding(kernel, padding, side, dtype):
    conv = nn.Conv2d(8, 8, kernel, padding=padding)
    assert in_half(conv, lambda: conv(torch.randn(2, 8, side, side))).dtype == dtype


def test_double_precision_is_left_alone(dls):
    learn = learner(dls)
    learn.model.double()
    x = torch.randn(2, 4, 3, 16, 16, dtype=torch.float64)
    learn.model.eval()
    exact = learn.model({'views': x})['views']['final']
    half = in_half(learn.model, lambda: learn.model({'views': x})['views']['final'])
    for a, b in zip(exact, half, strict=True): assert torch.equal(a, b)


def test_what_training_in_half_precision_touches(dls):
    class See(Callback):
        order = 29
        def after_pred(self):
            (embedding,) = self.pred['views'].values()
            self.learn.seen = {t.dtype for t in (*embedding, *self.learn.step.keys.values())}
            self.learn.inside = torch.is_autocast_enabled('cpu')
    if has_bf16('cpu'): learn = learner(dls, cbs=See(), precision='fp32').to_bf16()
    else: learn = learner(dls, cbs=[See(), Autocast('bf16')])
    assert learn.precision == 'bf16'
    before = [p.clone() for p in learn.model.parameters()]
    learn.fit_contrastive(1)
    assert learn.inside and learn.seen == {torch.float32} and not torch.is_autocast_enabled('cpu')
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in learn.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, learn.model.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())
    learn.to_fp32()
    assert learn.precision == 'fp32'
    learn.fit_contrastive(1)
    assert not learn.inside


def test_in_float32_small_maps_are_products_where_convolutions_are_slow(monkeypatch):
    "Of pictures of 32 pixels the last stage sees one cell: the same weights but for rounding, with less arithmetic"
    trained, costs = {}, {}
    for cpu in ('AVX2', 'AVX512', 'DEFAULT'):
        monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda cpu=cpu: cpu)
        torch.manual_seed(SEED)
        learn = learner(pictures(32, 32, 16), precision='fp32', cbs=(cost := Cost()))
        assert learn.precision == 'fp32' and any(isinstance(cb, SmallMaps) for cb in learn.cbs) == (cpu == 'AVX2')
        learn.fit_contrastive(1)
        trained[cpu], costs[cpu] = copy.deepcopy(learn.model.state_dict()), cost.totals()
        assert not any('forward' in vars(m) for m in learn.model.modules())
    for name, x in trained['DEFAULT'].items():
        assert torch.equal(x, trained['AVX512'][name])
        torch.testing.assert_close(x, trained['AVX2'][name], rtol=1e-3, atol=1e-4)
    network = {cpu: cost['tflop'] - cost['optimizer_tflop'] for cpu, cost in costs.items()}
    assert network['AVX2'] < 0.9 * network['AVX512'] == 0.9 * network['DEFAULT']


@pytest.mark.parametrize('method', [simsiam, nnclr])
def test_a_pass_without_gradient_before_the_one_with_leaves_every_gradient(dls, method):
    seen = {}

    class See(Callback):
        order = 60
        def before_step(self):
            seen.update({n: p.grad is not None for n, p in self.model.named_parameters() if p.requires_grad})
    method = method(projector=(32, 16), predictor=(8, 16))
    learner(dls, method, cbs=[CombinePatches(), See(), Autocast('bf16')], precision='fp32').fit_contrastive(1)
    assert seen and all(seen.values())


@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'before_step'])
def test_an_error_in_a_step_ends_autocast(dls, event):
    def fail(*_): raise RuntimeError('no more')
    trouble = Callback(**{event: fail})
    trouble.order = 50
    learn = learner(dls, cbs=[trouble, Autocast('bf16')], precision='fp32')
    with pytest.raises(RuntimeError, match='no more'): learn.fit_contrastive(1)
    assert not torch.is_autocast_enabled('cpu') and not any('forward' in vars(m) for m in learn.model.modules())


def test_what_the_device_lacks_is_said(dls, monkeypatch):
    for name in ('avx512_bf16', 'amx_tile'): monkeypatch.setattr(torch.cpu, f'_is_{name}_supported', lambda: False)
    assert learner(dls).precision == 'fp32'
    lacks = "instructions for bfloat16, which this cpu has not: use 'fp32'"
    with pytest.raises(InputError, match=lacks): learner(dls, precision='bf16')
    with pytest.raises(InputError, match='instructions for bfloat16'): learner(dls).to_bf16()
    with pytest.raises(InputError, match="'fp16' is for CUDA"): learner(dls).to_fp16()
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: True)
    assert learner(dls).precision == 'bf16' and learner(dls, precision='fp32').precision == 'fp32'
    learn = learner(dls)
    with pytest.raises(InputError, match="'fp16' is for CUDA"): learn.to_fp16()
    assert learn.precision == 'bf16'  # as before
    assert learn.to_fp32().precision == 'fp32' and learn.to_bf16().precision == 'bf16'


def test_keys_of_an_average_too(dls):
    learn = learner(dls, precision='fp32', cbs=EMATarget(0.9))
    x = torch.rand(2, 4, 3, 16, 16)
    keys = in_half(learn.model, lambda: learn.model.memory['ema'].embed(x)['final'].z)
    assert keys.dtype == torch.bfloat16


# --- compilation

class Losses(Callback):
    order = 65
    def before_fit(self): self.losses, self.grads = [], []
    def after_loss(self): self.losses.append(self.loss.item())
    def before_step(self): self.grads.append({n for n, p in self.model.named_parameters() if p.grad is not None})


SPEEDUPS = dict(
    nothing=lambda: [], patches=lambda: [CombinePatches()], regions=lambda: [HardRegions('layer1')],
    levels=lambda: [IntermediateLoss(), PartialBackprop()])


@pytest.mark.parametrize('name', SPEEDUPS)
def test_a_compiled_step_is_the_same_step(name, monkeypatch):
    versions = []

    def backend(graph, inputs):
        versions.append(sum(n.op == 'call_function' for n in graph.graph.nodes))
        return graph.forward

    def losses(*compiled):
        torch._dynamo.reset()
        torch.manual_seed(3)
        cbs = [*SPEEDUPS[name](), *compiled, seen := Losses()]
        learn = learner(pictures(32, 32, 16), arch=ARCH, cbs=cbs, precision='fp32')
        learn.fit_contrastive(2)
        return learn, seen
    (_, plain), (learn, compiled) = losses(), losses(Compile(backend))
    assert len(plain.losses) == 4
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5) and compiled.grads == plain.grads
    # queries and keys: the whole encoder once each, or a stage at a time where hooks are between them
    assert len(versions) == 2 if name in ('nothing', 'patches') else len(versions) >= 4
    assert learn.model.compiled is None and 'forward' not in vars(learn.model.encoder.layer1)
    assert torch._dynamo.config.recompile_limit != 128


def test_stages_that_take_more_than_maps(dls):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 4)
        def forward(self, x, power, scale=1.): return self.conv(x) ** power * scale

    class Net(nn.Module):
        num_features = 8
        def __init__(self):
            super().__init__()
            self.layer1, self.layer2 = Scaled(), nn.Conv2d(8, 8, 1)
        def forward(self, x): return self.layer2(self.layer1(x, 2, scale=.5)).mean((2, 3))
    compiled = _CompiledModule(net := Scaled(), 'it', 'eager', [])
    x = torch.rand(2, 3, 8, 8)
    for module in (net.train(), net.eval()): assert torch.equal(compiled(x, 2, scale=.5), module(x, 2, scale=.5))
    learner(dls, arch=Net(), cbs=[Compile('eager')], precision='fp32').fit_contrastive(1)


def test_a_fit_that_was_refused_leaves_the_next_one_alone(bf16):
    "Also where a stage is a convolution, which autocast had changed before"
    class Refuses(Callback):
        order = 90
        def before_fit(self): raise InputError('no.')

    class Net(nn.Module):
        num_features = 8
        def __init__(self):
            super().__init__()
            self.layer1, self.layer2 = nn.Conv2d(3, 8, 3, 4), nn.Conv2d(8, 8, 3)
        def forward(self, x): return self.layer2(self.layer1(x)).mean((2, 3))
    learn = learner(pictures(32, 32, 16), arch=Net(), cbs=[Compile('eager')], precision='bf16')
    with pytest.raises(InputError, match='no.'): learn.fit(1, 1e-3, cbs=Refuses())
    for _ in range(2): learn.fit(1, 1e-3)
    assert 'forward' not in vars(learn.model.encoder.layer1)


def test_half_precision_is_compiled_as_one_graph_too(dls):
    graphs = []
    torch._dynamo.reset()
    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    net = learner(dls).model.encoder.train()
    fast, x = torch.compile(net, backend=backend), torch.rand(4, 3, 16, 16).to(memory_format=torch.channels_last)
    def run(net): return torch.autograd.grad(net(x).float().square().mean(), net.layer4[0].conv2.weight)[0]
    want, got = (in_half(net, lambda net=net: run(net)) for net in (net, fast))
    assert len(graphs) == 1 and torch.isfinite(want).all() and torch.allclose(want, got, rtol=0.05, atol=1e-4)


def test_compiled_views_are_the_same_views(dls):
    x, compiled = torch.randint(0, 256, (24, 3, 20, 24), dtype=torch.uint8), set()

    def made(operations):
        torch.manual_seed(3)
        makers = [Views(16, kind) for kind in ('simclr', 'byol', 'moco_v1', 'digits')]
        for maker in makers: maker.operations = operations
        return torch.cat([maker(x)['views'] for maker in makers])

    def backend(graph, inputs):
        compiled.add(graph.code)
        return graph.forward
    torch._dynamo.reset()
    plain, during = made({}), []

    class Watch(Callback):
        order = 70
        def before_train(self): during.append(made(self.learn.plan.views.operations))
    learn = learner(dls, arch=ARCH, cbs=[Compile(backend, views=True), Watch()])
    with learn.no_logging(): learn.fit_contrastive(1)
    assert torch.allclose(during[0], plain, atol=2e-6) and not learn.plan.views.operations
    assert len(compiled) > len(OPERATIONS)  # the encoder as well

    # none falls apart
    for f in OPERATIONS:
        given = (torch.rand(3, 3, 8, 8), torch.rand(3, 1, 1, 1))[:f.__code__.co_argcount]
        want = f(*(g.clone() for g in given))
        torch.testing.assert_close(torch.compile(f, backend='eager', fullgraph=True)(*given), want)


def test_what_cannot_be_compiled_runs_as_it_is(dls, capsys):
    def backend(graph, inputs): raise RuntimeError('no such operation')
    torch._dynamo.reset()
    learn = learner(dls, arch=ARCH, cbs=Compile(backend))
    learn.fit_contrastive(1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('compile:')]
    assert len(lines) == 1 and 'the encoder runs as it is' in lines[0] and 'no such operation' in lines[0]


def test_no_compiler_is_said(dls, monkeypatch):
    torch._inductor.cpp_builder.cpp_compiler_search.cache_clear()
    monkeypatch.setenv('PATH', '')
    with pytest.raises(InputError, match=r'needs a C\+\+ compiler'): learner(dls, compile=True)


def page_faults():
    "Of a tensor of 128 MB, after others as large were freed: small ones in their places have a few go elsewhere"
    found = []
    for _ in range(16):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**25)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(found[10:])


class Faults(Callback):
    def before_batch(self):
        self.found = page_faults()
        raise CancelFitException


def faults_around_a_fit(report):
    torch.set_num_threads(1)
    learn = learner(pictures(16, 8, 8), simclr(), cbs=(faults := Faults()), precision='fp32')
    before = page_faults()
    with learn.no_logging(): learn.fit_contrastive(1)
    report.send((before, faults.found, page_faults()))


HUGE = Path('/sys/kernel/mm/transparent_hugepage/enabled')


LARGE_PAGES = HUGE.exists() and '[always]' in HUGE.read_text()


@pytest.mark.skipif(_glibc() is None or LARGE_PAGES, reason="needs glibc, and pages of 4 kB")
def test_memory_that_a_step_has_freed_is_the_next_ones():
    "A process of its own, whose allocator nobody has touched"
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=faults_around_a_fit, args=(there,))
    process.start()
    there.close()
    before, kept, after = here.recv()
    process.join(60)
    assert process.exitcode == 0
    pages = 2**27 // resource.getpagesize()
    assert before > pages / 2, before
    assert kept < pages / 100, kept
    assert after > pages / 2, after  # the fit has put the allocator back


def test_memory_is_left_to_others_where_they_say_so(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'linux')
    for name in list(os.environ):
        if name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES': monkeypatch.delenv(name)
    usual = _glibc() is None
    for name, value in dict(MALLOC_ARENA_MAX='2', GLIBC_TUNABLES='glibc.malloc.hugetlb=1').items():
        with monkeypatch.context() as m:
            m.setenv(name, value)
            assert _glibc() is None
    with monkeypatch.context() as m:
        m.setenv('GLIBC_TUNABLES', 'glibc.pthread.rseq=0')
        assert (_glibc() is None) == usual
    monkeypatch.setattr(sys, 'platform', 'darwin')
    assert _glibc() is None


@pytest.mark.parametrize('event', ['before_fit', 'after_pred', None])
def test_memory_of_a_fit_is_given_back_however_it_ends(dls, monkeypatch, event):
    class Fails(Callback): pass
    def fail(self): raise InputError("no")
    if event: setattr(Fails, event, fail)
    told = []
    class Libc:
        def mallopt(self, name, value): told.append((name, value))
        def malloc_trim(self, pad): told.append('trim')
    monkeypatch.setattr(device, '_glibc', Libc)
    learn = contrastive_learner(dls, 'test_resnet', cbs=Fails())
    ends = pytest.raises(InputError) if event else nullcontext()
    with learn.no_logging(), learn.no_mbar(), ends: learn.fit_contrastive(1)
    assert told == [*device._KEEP.items(), *device._USUAL.items(), 'trim']


def test_a_gpus_fit_leaves_the_hosts_allocator_alone(monkeypatch):
    monkeypatch.setattr(device, '_glibc', lambda: pytest.fail("asked"))
    with reuse_memory('cuda'): pass
