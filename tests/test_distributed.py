"""Two processes with half a batch each compute the loss and the gradient of one process with the whole batch."""
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from helpers.forks import start
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastcontrast import distributed
from fastcontrast.distributed import MeanGradients, broadcast_, gather, rank, world_size
from fastcontrast.losses import dcl, dclw, info_nce, nt_xent

WORLD, HALF = 2, 3
LOSSES = dict(info_nce=info_nce, nt_xent=nt_xent, dcl=dcl, dclw=dclw)


@pytest.mark.parametrize('usable, launcher, own', [
    (8, 'TORCHELASTIC_RUN_ID', 2), (64, 'FASTCONTRAST_LAUNCHER', 16), (2, 'TORCHELASTIC_RUN_ID', 1),
    (8, 'SLURM_PROCID', 8), (64, 'SLURM_PROCID', 16)])
def test_cores_of_one_of_four_processes(monkeypatch, usable, launcher, own):
    for name in distributed._LAUNCHERS: monkeypatch.delenv(name, raising=False)
    for name, value in {'LOCAL_WORLD_SIZE': '4', launcher: '0'}.items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed.os, 'cpu_count', lambda: 64)
    monkeypatch.setattr(distributed, 'usable_cores', lambda: usable)
    assert distributed.own_cores() == own


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def pictures():
    "Two views of a whole batch"
    return torch.randn(2, WORLD * HALF, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def score(loss, z):
    "The loss of the two views' embeddings `[2, B, D]`, gathered from all processes; `several` has two queries a key"
    if loss == 'several': return info_nce(gather(z, dim=1), gather(z[1]), .1)
    return LOSSES[loss](gather(z[0]), gather(z[1]), .1)


def value_and_grads(net, x, loss):
    net.zero_grad()
    value = score(loss, net(x.flatten(0, 1)).unflatten(0, (2, -1)))
    value.backward()
    return value.item(), [p.grad.clone() for p in net.parameters()]


class Three(nn.Module):
    "A channels-last convolution, a layer in another dtype, and one that a step may leave out"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.wide, self.last = nn.Linear(8, 5).double(), nn.Linear(5, 4)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x, whole):
        h = self.wide(self.conv(x).mean((2, 3)).double())
        return (self.last(h.float()) if whole else h).square().sum()


STEPS = [(True, 1), (False, 1), (True, 2)]  # does it go to the end; backward passes


def picture(number): return torch.full((1, 3, 4, 4), float(number))


def means(size, r):
    "The gradients of three steps, on this process's picture, and how many buckets left before the backward pass ended"
    net, steps = Three(), []
    gradients = MeanGradients(net.parameters(), size)
    for i, (whole, passes) in enumerate(STEPS):
        net.zero_grad()
        gradients.begin(early=passes == 1)
        for k in range(passes):
            net(picture(1 + r + 10 * i + k).to(memory_format=torch.channels_last), whole).backward()
        early = len(gradients.sent)
        gradients.finish()
        steps.append((early, [None if p.grad is None else p.grad.clone() for p in net.parameters()]))
    if not r: net(picture(1), True).backward()  # not a step's: nobody else has one, and nothing may be sent
    for p in net.parameters(): p.requires_grad_()
    net.zero_grad()
    net.frozen.grad = torch.full((3,), 1. + r)  # frozen no more
    gradients.begin()
    gradients.finish()
    thawed = net.frozen.grad
    gradients.begin()
    gradients.remove()
    net.zero_grad()
    net(picture(1), True).backward()
    return thawed, len(gradients.buckets), steps, len(gradients.sent)


def process(r, folder):
    "What each of the processes does; it leaves its results in a file"
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=r, world_size=WORLD,
                            timeout=timedelta(seconds=40))
    try:
        out = dict(rank=rank(), world_size=world_size())
        net = DistributedDataParallel(model())
        mine = pictures()[:, r * HALF:(r + 1) * HALF]
        for loss in [*LOSSES, 'several']: out[loss] = value_and_grads(net, mine, loss)

        part = torch.arange(6).view(2, 3) + 10 * r
        out['rows'], out['columns'], out['transposed'] = gather(part), gather(part, dim=1), gather(part.T)
        out['negative dim'] = gather(part, dim=-1)
        x = part.double().requires_grad_()
        weights = torch.arange(12.).view(4, 3).double() * (1 + r)  # every process's loss says something else
        (gather(x) * weights).sum().backward()
        out['grad'], out['plain'] = x.grad, gather(x.detach()).requires_grad
        out['means'] = {size: means(size, r) for size in (1, 30, 2**24)}
        out['broadcast'] = [torch.full((2, 3), r), torch.full((4,), r / 2), torch.full((), r)]
        broadcast_(out['broadcast'])
        torch.save(out, f'{folder}/{r}.pt')
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('processes')
    spawned, end = start(process, str(folder), count=WORLD), time.monotonic() + 60
    try:
        while not spawned.join(timeout=1):
            if time.monotonic() > end: pytest.fail('the processes did not finish within 60 s')
    finally:
        for p in spawned.processes:
            if p.is_alive(): p.kill()
            p.join()
    return [torch.load(folder / f'{r}.pt') for r in range(WORLD)]


def test_ranks(results):
    assert [(r['rank'], r['world_size']) for r in results] == [(0, 2), (1, 2)]


@pytest.mark.parametrize('loss', [*LOSSES, 'several'])
def test_equals_one_process_with_the_whole_batch(results, loss):
    value, grads = value_and_grads(model(), pictures(), loss)
    for r in results:
        their_value, their_grads = r[loss]
        assert their_value == pytest.approx(value, rel=1e-10)
        torch.testing.assert_close(their_grads, grads, rtol=1e-10, atol=1e-12)
    assert all(g.abs().max() > 1e-3 for g in grads)


def test_parts_come_in_the_order_of_ranks(results):
    parts = [torch.arange(6).view(2, 3) + 10 * r for r in range(WORLD)]
    for r in results:
        assert torch.equal(r['rows'], torch.cat(parts))
        assert torch.equal(r['columns'], torch.cat(parts, dim=1))
        assert torch.equal(r['transposed'], torch.cat([p.T for p in parts]))
        assert torch.equal(r['negative dim'], torch.cat(parts, dim=-1))


def test_gradient_is_the_sum_over_processes(results):
    weights = torch.arange(12.).view(4, 3).double()
    for i, r in enumerate(results):
        torch.testing.assert_close(r['grad'], 3 * weights[2 * i:2 * i + 2])  # once from rank 0, twice from rank 1
        assert not r['plain']


@pytest.mark.parametrize('size,n', [(1, 7), (30, 6), (2**24, 4)])
def test_gradients_become_means_bucket_by_bucket(results, size, n):
    for r in results:
        thawed, buckets, steps, after = r['means'][size]
        assert buckets == n and not after  # nothing is left of it
        assert thawed.tolist() == [1.5] * 3
        # the last layer's bucket is the first to leave: without its gradients all wait for the end, as in a step of
        # two passes; what is frozen waits too
        assert [early for early, _ in steps] == [n - 1, 0, 0]
        for i, ((whole, passes), (_, grads)) in enumerate(zip(STEPS, steps)):
            net = Three()
            for other in range(WORLD):
                for k in range(passes): (net(picture(1 + other + 10 * i + k), whole) / WORLD).backward()
            for p, g in zip(net.parameters(), grads, strict=True):
                assert (p.grad is None) == (g is None)
                if g is not None: torch.testing.assert_close(g, p.grad)


def test_broadcast_is_process_0s(results):
    for r in results: assert [float(t.flatten()[-1]) for t in r['broadcast']] == [0, 0, 0]


def test_one_process_gets_its_own_tensor_back():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather(x) is x and gather(x, dim=1) is x
    assert (world_size(), rank()) == (1, 0)


def test_group_of_one_process(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        x = torch.randn(3, 2)
        assert gather(x) is x and (world_size(), rank()) == (1, 0)
    finally:
        dist.destroy_process_group()
