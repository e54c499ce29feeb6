"""Trials of what is not in the library, so that their measurements can be made, and made again; the page has those that
were: ReSA, means of weights, the easy quarter left out, settled statistics, and half of a transformer's patches."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from timm.layers import PatchDropout
from torch import Tensor

from fastcontrast.all import StepCallback
from fastcontrast.losses import sinkhorn
from fastcontrast.precision import autocast, pick_precision
from fastcontrast.speedups.regions import SCORES, Score
from fastcontrast.step import Phase
from fastcontrast.views import plain_view


def pairs(n: int) -> list[tuple[int, int]]:
    """Every view with every other"""
    return [(i, j) for i in range(n) for j in range(n) if i != j]


def embedded(pred: dict) -> tuple[Tensor, Tensor]:
    """Of the views: features without gradient and projections, `[n, B, D]` each, of length one, in float32"""
    final = pred["views"]["final"]
    return F.normalize(final.h.detach().float(), dim=-1), F.normalize(final.z.float(), dim=-1)


class SelfAssign(StepCallback):
    """ReSA (Weng et al. 2025, arXiv:2501.18452): how alike pictures are by their features, balanced by Sinkhorn-Knopp,
    is the target of how alike they are to be by their projections. In place of the method's loss, or beside it; without
    the momentum network with which the authors have it a little higher"""
    phase = Phase.LABELS

    def __init__(self, temp: float = 0.4, weight: float | None = None): self.temp, self.weight = temp, weight
    def __repr__(self): return f"SelfAssign({self.temp}, {self.weight})"

    def after_loss(self):
        with torch.autocast(self.dls.device.type, enabled=False):
            h, z = embedded(self.pred)
            targets = sinkhorn(h[0] @ h[1].T, 0.05)
            loss = torch.stack([-(targets * F.log_softmax(z[i] @ z[j].T / self.temp, 1)).sum(1).mean()
                                for i, j in pairs(len(z))]).mean()
        if self.weight is not None: return self.step.add_term("resa", self.weight, loss)
        self.learn.loss_grad = loss
        self.learn.loss = loss.detach()


class MeanWeights(StepCallback):
    """Judged are the means of the encoder's latest weights, which training does not see"""
    phase = Phase.GUARDS

    def __init__(self, keep: float = 0.95): self.keep, self.means, self.own, self.n = keep, [], [], 0
    def __repr__(self): return f"MeanWeights({self.keep})"

    @property
    def state(self) -> list[Tensor]:
        """What there are means of: parameters, and statistics of BatchNorm"""
        encoder = self.model.encoder
        return [t.detach() for t in (*encoder.parameters(), *encoder.buffers()) if t.is_floating_point()]

    @torch.no_grad()
    def after_batch(self):
        if not self.training: return
        if not self.means: self.means = [t.clone() for t in self.state]
        self.n += 1
        torch._foreach_lerp_(self.means, self.state, 1 - min(self.keep, self.n / (self.n + 9)))

    @torch.no_grad()
    def after_train(self):
        self.own = [t.clone() for t in self.state]
        torch._foreach_copy_(self.state, self.means)

    @torch.no_grad()
    def before_train(self):
        if self.own: torch._foreach_copy_(self.state, self.own)


class SettleNorms(StepCallback):
    """Judged is the encoder with BatchNorm's statistics of whole pictures, as they are evaluated, and not those of the
    smaller views that training has seen: the means of `n` batches"""
    phase = Phase.SIZE  # before the seconds of an epoch are counted

    def __init__(self, n: int = 16): self.n = n
    def __repr__(self): return f"SettleNorms({self.n})"

    def attached(self):
        train = self.dls.train
        drawn = torch.randperm(len(train.data), generator=torch.Generator().manual_seed(0))[:self.n * train.bs]
        self.pictures = train.only(drawn, train.bs)

    @torch.no_grad()
    def after_train(self):
        encoder = self.model.encoder
        norms = [m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        usual = [m.momentum for m in norms]
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # the mean of all batches
        encoder.train()
        for images, *aspects, _ in self.pictures:
            views = self.learn.plan.normalize(plain_view(images, self.dls.size, *aspects))
            with autocast(pick_precision(self.learn.precision, views.device), views.device): encoder(views)
        for m, momentum in zip(norms, usual, strict=True): m.momentum = momentum


class DropPatches(StepCallback):
    """Until a share of the run training sees a share of a transformer's patches only, others in every picture of every
    step"""
    phase = Phase.INPUT

    def __init__(self, share: float = 0.5, until: float = 1): self.share, self.until = share, until
    def __repr__(self): return f"DropPatches({self.share}, {self.until})"

    def attached(self):
        self.vit = next(m for m in self.model.encoder.modules() if hasattr(m, "patch_drop"))
        self.vit.patch_drop = PatchDropout(1 - self.share, num_prefix_tokens=self.vit.num_prefix_tokens)

    def before_batch(self): self.vit.patch_drop.prob = 1 - self.share if self.pct_train < self.until - 1e-6 else 0


class LeaveOut(StepCallback):
    """Each epoch leaves out a share of the pictures: those whose last loss (InfoNCE at 0.2) was the lowest, or by
    chance. In one process, and not of shards"""
    phase = Phase.LABELS

    def __init__(self, share: float, by_chance: bool = False): self.share, self.by_chance = share, by_chance
    def __repr__(self): return f"LeaveOut({self.share}, {self.by_chance})"

    def attached(self):
        train, kind = self.dls.train, type(self.dls.train)
        self.losses = torch.full((len(train.data),), 1e6, dtype=torch.float64)  # whoever was never seen comes first

        class Some(kind):
            count = property(lambda loader: kind.count.fget(loader) - self.n_left_out * loader.shuffle)

            def _order(loader, epoch, begin=0):
                return self.drawn(epoch, len(loader) * loader.bs)[begin * loader.bs:] if loader.shuffle else (
                    kind._order(loader, epoch, begin))

        self.n_left_out = int(self.share * len(train.data))
        train.__class__ = Some

    def drawn(self, epoch: int, n: int) -> Tensor:
        """The pictures of an epoch, in a random order"""
        draws = torch.Generator().manual_seed(epoch)
        chance = torch.rand(len(self.losses), generator=draws)
        kept = (chance if self.by_chance else self.losses + 1e-6 * chance).topk(n).indices
        self.of_epoch = kept[torch.randperm(n, generator=draws)]
        return self.of_epoch

    @torch.no_grad()
    def after_loss(self):
        if not self.training: return
        with torch.autocast(self.dls.device.type, enabled=False):
            _, z = embedded(self.pred)
            own = torch.arange(z.shape[1], device=z.device)
            losses = [F.cross_entropy(z[i] @ z[j].T / 0.2, own, reduction="none") for i, j in pairs(len(z))]
        batch = slice(self.iter * len(own), (self.iter + 1) * len(own))
        self.losses[self.of_epoch[batch]] = torch.stack(losses).mean(0).double().cpu()


@SCORES.register("disagreement")
class Disagreement(Score):
    """One minus the cosine of a location with the whole other view, times its texture"""
    keys = True
    def contrasts(self, loss): return False

    def __call__(self, look):
        def far(i, keys): return 1 - F.cosine_similarity(look.queries[i], keys[:look.lead[-1]], dim=-1)
        return look.over_keys(far) * look.texture


@SCORES.register("loss beyond its own")
class BeyondOwn(Score):
    """The loss of a location against the other view's keys, less that against its own whole view's"""
    keys = True
    def contrasts(self, loss): return loss.contrasts

    def __call__(self, look):
        each = look.loss.each
        return look.over_keys(lambda i, keys: each(look.queries[i], keys) - each(look.queries[i], look.whole[i]))


@SCORES.register("unlike beyond others")
class BeyondOthers(Score):
    """`unlike`, less its mean over the pictures of the batch at the same place: what is hard in every picture is not"""
    def contrasts(self, loss): return True

    def __call__(self, look):
        hard = SCORES["unlike"]()(look)
        return hard - hard.mean(-1, keepdim=True)


# by the name that follows the method's in a configuration, and the share of the epochs: what takes less goes on longer
TRIED: dict[str, tuple[Callable[[], Callback], float]] = {
    "resa": (SelfAssign, 1), "resa 0.2": (lambda: SelfAssign(0.2), 1), "beside resa": (lambda: SelfAssign(0.4, 1.0), 1),
    "mean weights": (MeanWeights, 1), "settled": (SettleNorms, 1),
    "half the patches": (DropPatches, 1), "half the patches longer": (DropPatches, 1.6),
    "half the patches until 0.75": (lambda: DropPatches(until=0.75), 4 / 3),
    "without the easy quarter": (lambda: LeaveOut(0.25), 4 / 3), "without the easy half": (lambda: LeaveOut(0.5), 2),
    "without any quarter": (lambda: LeaveOut(0.25, by_chance=True), 4 / 3),
}
