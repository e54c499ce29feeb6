"""What watches over a run, keeps its gradients in bounds, and ends it in good order."""
from typing import Any

import torch
import torch.nn.functional as F
from fastai.imports import noop
from torch import Tensor, nn

from .core import InputError, moved, number
from .distributed import gather_objects
from .models import Embedding
from .step import Phase, StepCallback


class FiniteLoss(StepCallback):
    "Ends the run when the loss is not a finite number, and says where that comes from"
    phase = Phase.GUARDS
    every = 50 # steps between looks, and one at the end of an epoch, where a look makes the host wait for the device
    begun = False # whether this fit has changed the weights

    def before_fit(self): self.begun = False
    def after_step(self): self.begun = True

    def after_loss(self):
        if self.loss.device.type != 'cpu' and (self.iter + 1) % self.every and self.iter + 1 < self.n_iter: return
        if torch.isfinite(self.loss): return
        place = f"in epoch {self.epoch}, step {self.iter}"
        self.stop(InputError(f"the loss is {self.loss.item()} {place}: {self.reason()}"))

    def reason(self) -> str:
        "Where the loss got it from, and what to do"
        step, lr = self.learn.step, max(h['lr'] for h in self.opt.hypers)
        if found := not_finite(step.images):
            return f"the pictures of the batch hold {found}; mend or leave out those that do."
        for role, views in step.views.items():  # of all pictures, or chunk by chunk
            if found := next(filter(None, (not_finite(views[i]) for i in range(len(views)))), ''):
                return (f"the pictures are finite numbers, but the views '{role}' made of them hold {found}; look at "
                        "what makes them (learn.views, learn.normalize).")
        advice = (f"try a lower lr (it was {lr:.3g}), a longer warm-up, a higher temperature, or GradientClip among "
                  "cbs.")
        if not (name := first_not_finite(self.model)): return advice
        if not self.begun: return f"{name} was not finite before training began; give other weights."
        return f"{advice[:-1]}; {name} is no longer finite."


class FiniteScores(FiniteLoss):
    "The same where a model learns from labels, or boxes"
    def reason(self): return f"try a lower lr (it was {max(h['lr'] for h in self.opt.hypers):.3g})."


def not_finite(
    t: Tensor,
) -> str:
    "'NaN' or 'inf' if a tensor holds such, else nothing"
    if torch.isnan(t).any(): return 'NaN'
    return 'inf' if torch.isinf(t).any() else ''


def first_not_finite(
    model: nn.Module, # a `ContrastiveModel`
) -> str:
    """The name of a weight that is not finite, or of a buffer that holds NaN; nothing if there is none

    Buffers that the forward pass itself changes are no reason: BatchNorm's statistics in training mode, and memories.
    A buffer may hold infinities on purpose, as masks do."""
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all(): return name
    for prefix in ('encoder', 'heads'):
        for name, module in getattr(model, prefix).named_modules(prefix=prefix):
            if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm): continue
            for buffer, t in module.named_buffers(recurse=False):
                if torch.isnan(t).any(): return f'{name}.{buffer}'
    return ''


class Collapse(StepCallback):
    """Warns once in a fit when the model learns nothing, or ends the fit then

    That is so when embeddings or features of all pictures are the same; when the spread of the embeddings at a level
    was under a twentieth of what it began with in the last two looks (a hundredth where prototypes score them); when a
    kNN is no better than chance in five epochs running, after the first third of the run; and when the pictures of
    every batch are one picture. Spreads stay on the device until the epoch ends."""
    phase = Phase.LAST # the epoch's metrics are known
    every = 50         # steps between looks, besides those at the first step of a level and the last of an epoch
    fallen = 1 / 20    # of the spread at the start…
    with_prototypes = 1 / 100 # …less, as scores are divided by hundredths, and what all embeddings share is centred
    least = 1e-6       # what is smaller comes of rounding
    patience = 5       # epochs

    def __init__(self,
        stop: bool = False,          # end the fit by an `InputError`
        chance: float | None = None, # the kNN accuracy that says nothing, see `chance_level`; None: leave kNN alone
    ):
        self.ends, self.chance = stop, chance
        self.before_fit()

    def __repr__(self): return f"Collapse({self.ends})"

    def before_fit(self):
        self.start: dict[str, Tensor] = {}        # spread of features and embeddings in a level's first step, `[2]`
        self.looks: dict[str, list[Tensor]] = {}  # and in the last two looks after that
        self.differ: Tensor | None = None         # whether any two pictures of a batch did
        self.accuracies: list[float] = []         # of the last epochs
        self.warnings: list[str] = []             # what was said: one sentence at most

    def state_dict(self) -> dict[str, Any]:
        "What a fit that is taken up has to know: plain values and tensors"
        return dict(start=self.start, looks=self.looks, differ=self.differ, accuracies=self.accuracies,
                    warnings=self.warnings)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.dls.device
        def there(t): return None if t is None else t.to(device)
        self.start = {level: there(t) for level, t in state['start'].items()}
        self.looks = {level: [there(t) for t in looks] for level, looks in state['looks'].items()}
        self.differ = there(state['differ'])
        self.accuracies = list(state['accuracies'])
        self.warnings = [] if self.ends else list(state['warnings'])  # what had been warned of may end it now

    def after_pred(self):
        levels = next((self.pred[role] for role in self.step.queries if role in self.pred), {})
        due = (self.iter + 1) % self.every == 0 or self.iter + 1 == self.n_iter
        if not due and self.start.keys() >= levels.keys(): return
        images = self.step.images
        if self.warnings or len(images) < 2: return
        differ = (images != images[:1]).any()
        self.differ = differ if self.differ is None else self.differ | differ
        with torch.autocast(images.device.type, enabled=False):
            for level, e in levels.items(): self.look(level, e)

    def look(self,
        level: str,
        e: Embedding, # of a role's views
    ) -> None:
        spreads = torch.stack([batch_spread(e.h), batch_spread(e.z)])
        if level in self.start: self.looks[level] = [*self.looks[level], spreads][-2:]
        else: self.start[level], self.looks[level] = spreads, []

    def after_epoch(self):
        if self.warnings: return
        knn = next((metric.value for metric in self.learn.metrics if metric.name == 'knn'), None)
        if knn is not None: self.accuracies = [*self.accuracies, knn][-self.patience:]
        # each process has seen its own pictures, and what one found ends the fit of all
        found = next(filter(None, gather_objects(self.found())), '')
        if not found: return
        self.warnings = [found]
        if self.ends: self.stop(InputError(found))
        if self.learn.logger is not noop: print(f"warning: {found}", flush=True)

    def found(self) -> str:
        "What is wrong, in a sentence that says what to try; nothing if all is well"
        if self.differ is not None and not self.differ:
            return "the pictures of every batch are one and the same picture: check that those of the data differ."
        return next(filter(None, map(self.collapsed, self.start)), '') or self.ignorant()

    def collapsed(self, level: str) -> str:
        start, looks = self.start[level].tolist(), [look.tolist() for look in self.looks[level]]
        for name, first, spreads in zip(('features', 'embeddings'), start, zip(*(looks or [start]))):
            if max(spreads) < self.least:
                return (f"the {name} of all pictures are the same at the level '{level}' (their spread is "
                        f"{spreads[-1]:.1g}, and was {first:.1g} in the first step): try a lower lr, a longer warm-up "
                        "or other weights.")
        fallen = self.fallen if self.model.heads['final'].prototypes is None else self.with_prototypes
        enough = len(looks) == 2 or looks and self.epoch + 1 == self.n_epoch
        if not enough or max(z for _, z in looks) >= start[1] * fallen: return ''
        return (f"the embeddings of different pictures became the same at the level '{level}': their spread fell from "
                f"{start[1]:.2g} to {looks[-1][1]:.2g}; try a lower lr, a longer warm-up, or what the recipe itself "
                "has against collapse (its target, predictor and loss).")

    def ignorant(self) -> str:
        done, known = self.epoch + 1, self.accuracies
        if self.chance is None or len(known) < self.patience or done < self.n_epoch / 3: return ''
        if not max(known) <= self.chance: return ''
        return (f"kNN is {known[-1]:.3f} after {done} epochs, and knowing nothing gives up to {self.chance:.3f}: try a "
                "lower lr, a longer warm-up or milder views, and check that the labels are those of the pictures.")


@torch.no_grad()
def batch_spread(
    z: Tensor, # vectors `[…, B, D]` of any length, B of at least 2
) -> Tensor:   # a float32 scalar on their device
    "Mean over dimensions, and views, of the standard deviation over a batch's pictures of L2-normalised vectors"
    return F.normalize(z.detach().float(), dim=-1).std(-2).mean()


def chance_level(
    labels: Tensor, # of the test pictures, `[N]`; -1: unknown
) -> float | None:
    """The accuracy up to which a classifier may know nothing: the share of the largest class and two standard errors

    None where no accuracy is above that: there are no labels, all are alike, or they are too few."""
    known = labels[labels >= 0]
    if not len(known): return None
    share = known.bincount().max().item() / len(known)
    level = share + 2 * (share * (1 - share) / len(known)) ** 0.5
    return level if level < 1 else None


class ClipEach(StepCallback):
    "Scales the gradient of every parameter down to a norm of at most `max_norm`, each by itself (DINO)"
    phase = Phase.GRADIENTS

    def __init__(self,
        max_norm: float, # above 0
    ):
        number(self, above=0, max_norm=max_norm)
        self.max_norm = float(max_norm)

    def __repr__(self): return f"ClipEach({self.max_norm})"

    def before_step(self):
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        shares = torch._foreach_add(torch._foreach_norm(grads), 1e-6)
        torch._foreach_reciprocal_(shares)
        torch._foreach_mul_(shares, self.max_norm)
        torch._foreach_clamp_max_(shares, 1.)
        torch._foreach_mul_(grads, shares)


__getattr__ = moved('guards', EpochLines='bar', shows_bar='bar', DeviceLoss='history')
