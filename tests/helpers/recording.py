"""What is seen during a step, and what interrupts it."""
import math
from collections import Counter

import torch
from fastai.callback.core import Callback

from fastcontrast.step import Step
from fastcontrast.views import RoleViews, ViewMaker, Views
from helpers.pictures import STAGES

# a step's fields, for callbacks that look at them

def step_pictures(learn) -> torch.Tensor:
    "The batch of pictures, as the data gave it; None between steps"
    return None if learn.step is None else learn.step.images


def step_inputs(learn) -> dict:
    "What the model is given: pictures by role"
    return learn.step.views


def step_route(learn):
    "Through which levels the pictures go"
    return learn.step.route


def step_keys(learn) -> dict:
    "The keys by level, once a target has made them"
    return learn.step.keys


def step_wholes(learn) -> torch.Tensor:
    "The views that keys are made of"
    return learn.step.key_views


def step_is_over(learn) -> bool:
    "Whether nothing of a batch is left"
    return learn.step is None


class Recording(RoleViews):
    "Views in float64, kept"
    def __init__(self, views):
        super().__init__(*views.makers.values())
        self.makers, self.operations = views.makers, views.operations
        self.views, self.made = views, []
    def forward(self, x, size=None):
        self.made.append({role: v.double() for role, v in self.views(x, size).items()})
        return self.made[-1]


class RecordingMaker(ViewMaker):
    "Views of one role in float64, kept"
    def __init__(self, maker):
        super().__init__(maker.size, maker.n, maker.role)
        self.maker, self.made = maker, []
    def forward(self, x, size=None):
        self.made.append({role: v.double() for role, v in self.maker(x, size).items()})
        return self.made[-1]


class Script(RoleViews):
    "Views that were drawn beforehand, whatever the pictures"
    def __init__(self, made):
        super().__init__(Views(made[0]['views'].shape[-1]))
        self.made, self.step = made, 0
    def forward(self, x, size=None):
        self.step += 1
        return self.made[self.step - 1]


class Diary(Callback):
    "Losses and gradients of every step, and the weights before the first and after each"
    order = 70
    def before_fit(self): self.losses, self.grads, self.weights = [], [], [self.now()]
    def before_step(self):
        self.losses.append(self.loss.item())
        self.grads.append({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None})
    def after_step(self): self.weights.append(self.now())
    def now(self): return {n: t.detach().clone() for n, t in self.model.state_dict().items() if t.is_floating_point()}


class After(Callback):
    "Does something once, in one event of one step"
    order = 65
    def __init__(self, event: str, step: int, do):
        setattr(self, event, lambda: do() if self.train_iter == step else None)


def interrupt(): raise KeyboardInterrupt


class Seen(Callback):
    "Queries by role, keys and queue of every step, as a target (order 21), a memory (25) or prototypes (29) left them"
    def __init__(self, order): self.order, self.steps = order, []
    def after_pred(self):
        step, q = self.learn.step, {role: levels['final'].p.detach().clone() for role, levels in self.pred.items()}
        known = (step.keys, *([] if step.queue is None else [step.queue]))
        self.steps.append((q, *(rows['final'].detach().clone() for rows in known)))


def train_two_steps(learn):
    losses = []
    class Trace(Callback):
        order = 70
        def before_step(self): losses.append(self.loss.item())
    before = {n: p.detach().clone() for n, p in learn.model.encoder.named_parameters()}
    learn.fit_contrastive(1, cbs=Trace())
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    for n, t in learn.model.state_dict().items(): assert t.isfinite().all(), n
    moved = {n for n, p in learn.model.encoder.named_parameters() if not torch.equal(p, before[n])}
    assert 'conv1.0.weight' in moved and len(moved) > len(before) / 2


class Keys(Callback):
    order = 25
    def __init__(self): self.dtypes = set()
    def after_pred(self): self.dtypes |= {k.dtype for k in step_keys(self.learn).values()}


class Where(Callback):
    "Which parameters have gradients, and whether all is finite"
    order = 70
    def __init__(self): self.steps = []
    def before_step(self):
        drawn = self.partial_backprop.drawn if hasattr(self.learn, 'partial_backprop') else None
        grads = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        finite = bool(self.loss.isfinite()) and all(bool(g.isfinite().all()) for g in grads.values())
        self.steps.append((drawn, set(grads), finite))


class Untouched(Callback):
    "What a step changes and what not, and who ran"
    order = 80
    def __init__(self): self.steps, self.ran = [], []
    def before_fit(self):
        self.hooks = []
        networks = {'model': self.model}
        if 'ema' in self.model.memory: networks['target'] = self.model.memory['ema']
        for whose, net in networks.items():
            watched = {name: net.encoder.get_submodule(name) for name in [*STAGES, 'conv1', 'global_pool']}
            watched |= {f'head {level}': head.projector for level, head in net.heads.items()}
            for name, module in watched.items():
                def note(*_, place=(whose, name)): self.now.append(place)
                self.hooks.append(module.register_forward_hook(note))
        self.now = []
    def snapshot(self):
        out = {n: t.detach().clone() for n, t in self.model.state_dict().items() if not n.startswith('memory')}
        for n, p in self.model.named_parameters():
            for k, v in self.opt.opt.state.get(p, {}).items():
                if torch.is_tensor(v): out[f'{n} {k}'] = v.detach().clone()
        return out
    def before_batch(self): self.before = self.snapshot()
    def before_step(self): self.grads = {n for n, p in self.model.named_parameters() if p.grad is not None}
    def after_batch(self):
        after = self.snapshot()
        moved = {n for n in after if n not in self.before or not torch.equal(after[n], self.before[n])}
        self.steps.append((self.partial_backprop.drawn, moved, self.grads, set(after)))
        self.ran.append((self.partial_backprop.drawn, Counter(self.now)))
        self.now.clear()
    def after_fit(self):
        for h in self.hooks: h.remove()


def draws(cb, steps: int) -> list[str]:
    "The levels a callback of a learner draws"
    cb.before_fit()
    out = []
    for _ in range(steps):
        cb.learn.step = Step()
        cb.before_batch()
        out.append(cb.drawn)
        assert step_route(cb.learn).levels == (cb.drawn,)
    return out


def contents(learn) -> tuple:
    return (list(learn.model.encoder.state_dict()), list(learn.model.memory), learn.views, {**learn.views.makers},
            sorted(str(cb) for cb in learn.cbs))


def traces(learn) -> tuple:
    "Everything that a callback could leave in a learner"
    groups = None if learn.opt is None else [len(g) for g in learn.opt.param_lists]
    return (sorted(n for n in learn.model.state_dict() if n != 'memory.losses.final.center'),
            list(learn.model.encoder.state_dict()), list(learn.model.memory), dict(learn.loss_func.weights),
            list(learn.loss_func.losses),
            +learn.model.users, learn.model.levels(), dict(learn.views.makers.items()), {**vars(learn.plan)},
            sorted(str(cb) for cb in learn.cbs)), groups
