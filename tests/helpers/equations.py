"""The losses as loops, one term at a time, and what they are compared on."""
import math

import torch

from helpers.loops import unit

DEVICES = ['cpu'] + ['cuda'] * torch.cuda.is_available()


def pair(B=5, D=7, seed=0, dtype=torch.float64, device='cpu'):
    g = torch.Generator().manual_seed(seed)
    return [leaf((torch.randn(B, D, generator=g, dtype=torch.float64) * 3).to(device, dtype)) for _ in range(2)]


def leaf(x): return x.detach().clone().requires_grad_()


def value_and_grads(loss, zs, *args):
    value = loss(*zs, *args)
    return value.detach(), torch.autograd.grad(value, zs)


def cosine(a, b): return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


# the equations

def loop_info_nce(q, k, temp):
    terms = []
    for queries in q if q.ndim == 3 else [q]:
        for i in range(len(k)):
            e = [torch.exp(cosine(queries[i], k[j]) / temp) for j in range(len(k))]
            terms.append(-torch.log(e[i] / sum(e)))
    return sum(terms) / len(terms)


def loop_nt_xent(z1, z2, temp):
    z, n = [*z1, *z2], 2 * len(z1)
    terms = []
    for i in range(n):
        e = {j: torch.exp(cosine(z[i], z[j]) / temp) for j in range(n) if j != i}
        terms.append(-torch.log(e[(i + len(z1)) % n] / sum(e.values())))
    return sum(terms) / n


def loop_dcl(z1, z2, temp, weights=None):
    views, B = (z1, z2), len(z1)
    terms = []
    for k in range(2):
        for i in range(B):
            e = [torch.exp(cosine(views[k][i], views[l][j]) / temp) for l in range(2) for j in range(B) if j != i]
            w = 1 if weights is None else weights[i]
            terms.append(-w * cosine(z1[i], z2[i]) / temp + torch.log(sum(e)))
    return sum(terms) / (2 * B)


def loop_dclw(z1, z2, temp, sigma=0.5):
    e = [math.exp(cosine(a, b).item() / sigma) for a, b in zip(z1, z2, strict=True)]
    return loop_dcl(z1, z2, temp, [2 - x / (sum(e) / len(e)) for x in e])


def rows(scale, B=6, D=5): return torch.randn(B, D, generator=torch.Generator().manual_seed(3)) * scale


EXTREMES = dict(
    zeros=(torch.zeros(6, 5), torch.zeros(6, 5)),
    zeros_against_ones=(torch.zeros(6, 5), torch.ones(6, 5)),
    one_zero_row=(rows(1.) * torch.tensor([0., 1, 1, 1, 1, 1])[:, None], rows(2.)),
    all_the_same=(torch.ones(6, 5), torch.ones(6, 5)),
    duplicates=(rows(1.)[[0, 0, 1, 1, 2, 2]], rows(1.)[[0, 0, 1, 1, 2, 2]]),
    equal_views=(rows(1.), rows(1.)),
    opposite_views=(rows(1.), -rows(1.)),
    one_hot=(torch.eye(6, 5), torch.eye(6, 5)),
    huge=(rows(1e30), rows(1e30).flip(0)),
    largest=(torch.full((6, 5), torch.finfo(torch.float32).max), -rows(1e37)),
    tiny=(rows(1e-30), rows(1e-30).flip(0)),
    subnormal=(rows(1e-41), rows(1e-44)),
    all_scales=(rows(torch.logspace(-38, 38, 6)[:, None]), rows(torch.logspace(38, -38, 6)[:, None])),
)


# the other methods' losses, in the order of the papers' formulas

def loop_neg_cosine(q, k, scale=1., offset=0.):
    return sum(offset - scale * cosine(a, b) for a, b in zip(q, k, strict=True)) / len(q)


def loop_barlow(q, k, lambd=5.1e-3):
    B, D = q.shape
    columns = []
    for z in (q, k):
        for d in range(D):
            c = z[:, d] - sum(z[:, d]) / B
            columns.append(c / (sum(c * c) / B + 1e-5).sqrt())
    total = 0
    for i in range(D):
        for j in range(D):
            corr = (columns[i] * columns[D + j]).sum() / B
            total = total + ((1 - corr) ** 2 if i == j else lambd * corr ** 2)
    return total


def loop_vicreg(q, k, sim=25., var=25., cov=1., gamma=1., eps=1e-4):
    B, D = q.shape
    total = sim * sum((q[b, d] - k[b, d]) ** 2 for b in range(B) for d in range(D)) / (B * D)
    for z in (q, k):
        c = [z[:, d] - z[:, d].mean() for d in range(D)]
        for i in range(D):
            std = ((c[i] * c[i]).sum() / (B - 1) + eps).sqrt()
            if std < gamma: total = total + var * (gamma - std) / D
            for j in range(D):
                if i != j: total = total + cov * ((c[i] * c[j]).sum() / (B - 1)) ** 2 / D
    return total


def loop_sinkhorn(scores, eps=.05, iters=3):
    "SwAV, Section 3.1: prototypes are rows of Q, samples its columns"
    N, K = scores.shape
    Q = (scores.T / eps).exp()
    Q = Q / Q.sum()
    for _ in range(iters):
        for c in range(K): Q[c] = Q[c] / Q[c].sum() / K
        for n in range(N): Q[:, n] = Q[:, n] / Q[:, n].sum() / N
    return (Q * N).T


def loop_soft(q, targets, temp=.1):
    "Mean over the batch of the cross-entropy, one prototype at a time"
    terms = []
    for x, t in zip(q, targets, strict=True):
        p = (x / temp).exp() / (x / temp).exp().sum()
        terms.append(-sum(t[c] * p[c].log() for c in range(len(x))))
    return sum(terms) / len(terms)


def loop_swav(q, k, queue=None):
    scores = k.detach() if queue is None else torch.cat([queue, k.detach()])
    return loop_soft(q, loop_sinkhorn(scores)[-len(k):])


def loop_dino(q, k, center=0., teacher_temp=.04):
    targets = [((x - center) / teacher_temp).exp() for x in k.detach()]
    return loop_soft(q, [t / t.sum() for t in targets])


def loop_queue(q, k, temp, queue, decoupled=False, sigma=None):
    pos = [cosine(a, b) / temp for a, b in zip(q, k, strict=True)]
    w = [1.] * len(q)
    if sigma is not None:
        e = [math.exp(p.item() * temp / sigma) for p in pos]
        w = [2 - x / (sum(e) / len(e)) for x in e]
    terms = []
    for i in range(len(q)):
        e = [(cosine(q[i], n) / temp).exp() for n in queue] + ([] if decoupled else [pos[i].exp()])
        terms.append(-w[i] * pos[i] + torch.log(sum(e)))
    return sum(terms) / len(terms)


def unit_rows(N, D, seed=5): return torch.nn.functional.normalize(pair(N, D, seed)[0].detach())


def scored(B, K, seed=0): return [leaf(x.detach() / 5) for x in pair(B, K, seed)]


def loop_label_loss(name, z, y, temp):
    "Eq. 2 of either paper, anchor by anchor, in exponentials"
    u, losses = unit(z), []
    for i in range(len(z)):
        e = {j: (u[i] @ u[j] / temp).exp() for j in range(len(z)) if j != i}
        own = [e[j] for j in e if y[j] == y[i]]
        if not own: continue
        if name == 'suncet': losses.append(-(sum(own) / sum(e.values())).log())
        else: losses.append(-sum((one / sum(e.values())).log() for one in own) / len(own))
    return sum(losses) / len(losses)


def members(S=9, D=5, classes=3, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(S, D, generator=g, dtype=torch.float64) * 3
    return leaf(z.to(dtype)), torch.randint(0, classes, (S,), generator=g)
