"""Optimizers, parameter groups and schedules: plain values in, what a fastai `Learner` takes out.

Docs: https://fastcontrast.github.io/fastcontrast/optim.html.md"""
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from numbers import Real
from typing import Any

import torch
from fastai.optimizer import Optimizer, OptimWrapper, set_item_pg
from timm.optim.lars import Lars
from torch import Tensor, nn

from .core import InputError, Registry, clipped
from .muon import Muon

__all__ = ['OPTIMIZERS', 'SCHEDULES', 'AdamW', 'JointLars', 'Sgd', 'cosine', 'groups_of', 'keep_hypers', 'lars', 'muon',
           'optimizer', 'optimizer_name', 'parameter_groups', 'put_back_hypers', 'schedule_words', 'schedules',
           'stable_until', 'steps', 'warmup_then', 'wsd']

OPTIMIZERS = Registry('optimizer') # called as `make(groups, lr=…, **args)`
SCHEDULES = Registry('schedule')   # the share of the run after the warm-up, in [0, 1], to the share of the peak
# Muon multiplies a matrix fifteen times a step, in time that grows with the square of its shorter side: two layers of
# 2,048 by 2,048 in a projector took some three times as long as the rest of a ResNet-10's step at 32 pixels
WIDEST = 1024
# weight decay and momentum of a group, by PyTorch's names and by fastai's
_KEPT = ('weight_decay', 'wd', 'momentum', 'betas', 'mom')


def _laid_out(t: Tensor, p: Tensor) -> Tensor:
    "`t`, in memory as `p` is"
    alike = t.stride() == p.stride() or t.is_contiguous() and p.is_contiguous()
    return t if alike else torch.empty_like(p).copy_(t)


class _Fused:
    "What PyTorch's optimizers in one kernel want of tensors, which it goes through as they lie in memory, not by index"
    def _init_group(self, group, params, grads, *states):
        if not group['fused']: return super()._init_group(group, params, grads, *states)
        for p in group['params']:  # its memory format may have changed
            state = self.state.get(p, {})
            for name, t in state.items():
                if t is not None and t.shape == p.shape: state[name] = _laid_out(t, p)
        special = super()._init_group(group, params, grads, *states)
        # PyTorch's CPU kernel copies gradients that are not contiguous, and then does without the copies
        for i, (p, g) in enumerate(zip(params, grads)):
            g = _laid_out(g, p)
            grads[i] = g.as_strided((g.numel(),), (1,)) if g.is_cpu and not g.is_contiguous() else g
        return special


class JointLars(Lars):
    "timm's, but the trust ratio divides by |g + wd p|, as SimCLR, BYOL and MoCo v3 have it, not by |g| + wd |p|"
    @torch.no_grad()
    def step(self):
        decays = [group['weight_decay'] for group in self.param_groups]
        for group in self.param_groups:
            pairs = [(p.grad, p) for p in group['params'] if p.grad is not None]
            if group['weight_decay'] and pairs:
                torch._foreach_add_(*map(list, zip(*pairs)), alpha=group['weight_decay'])
            group['weight_decay'] = 0.  # it is in the gradients
        try: super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True): group['weight_decay'] = decay


@OPTIMIZERS.register('lars')
def lars(
    params,
    *,
    momentum: float = 0.9,
    joint: bool = False, # see `JointLars`
    **kwargs,            # of timm's `Lars`
) -> Lars:
    "timm's, multi-tensor by itself in newer releases"
    if joint: return JointLars(params, momentum=momentum, **{'eps': 0., **kwargs})
    return Lars(params, momentum=momentum, **kwargs)


@OPTIMIZERS.register('sgd')
class Sgd(_Fused, torch.optim.SGD):
    "PyTorch's in one kernel, also where parameters get their first gradients at different steps: its own fails there"
    def __init__(self,
        params,
        *,
        momentum: float = 0.9,
        dampening: float = 0,
        fused: bool | None = None,   # None: unless `foreach` or `dampening` is asked for
        foreach: bool | None = None, # None: where it is not fused
        **kwargs,                    # of `torch.optim.SGD`
    ):
        if fused is None: fused = not (foreach or dampening)
        if foreach is None: foreach = not fused
        super().__init__(params, momentum=momentum, dampening=dampening, fused=fused, foreach=foreach, **kwargs)

    def _init_group(self, group, params, grads, momenta):
        sparse = super()._init_group(group, params, grads, momenta)
        if group['fused'] and not group['dampening']:  # zeros in place of no momentum give the same first step
            momenta[:] = (torch.zeros_like(p) if m is None else m for p, m in zip(params, momenta))
        return sparse


@OPTIMIZERS.register('adamw')
class AdamW(_Fused, torch.optim.AdamW):
    "PyTorch's in one kernel"
    def __init__(self,
        params,
        *,
        fused: bool | None = None,   # None: unless `foreach` is asked for
        foreach: bool | None = None,
        **kwargs,                    # of `torch.optim.AdamW`
    ):
        super().__init__(params, fused=not foreach if fused is None else fused, foreach=foreach, **kwargs)


@OPTIMIZERS.register('muon')
def muon(
    params,
    **kwargs, # of timm's `Muon`
) -> Muon:
    """timm's (see `Muon` for CPUs): a matrix moves along its orthogonalized momentum (Jordan et al. 2024)

    The step is made as long as AdamW's, by 0.2 and the root of the longer side (Liu et al. 2025). Filters are
    matrices too, flattened to `[out, in * height * width]`. Biases, norms and whatever else has no weight decay move by
    AdamW at the same learning rate, and so do matrices of fewer than four rows or columns, of one side more than 128
    times the other, or of more than `WIDEST` both ways, and tensors with a size of 1 in one of the first two
    dimensions: depthwise filters, say."""
    groups = []
    for group in params:
        if not (isinstance(group, dict) and 'decays' in group):
            groups.append(group)
            continue
        parts = {True: [], False: []}
        for p in group['params']: parts[not group['decays'] or _shorter_side(p) > WIDEST].append(p)
        groups += [dict(group, params=part, use_fallback=fallback) for fallback, part in parts.items() if part]
    return Muon(groups, **kwargs)


def _shorter_side(p: Tensor) -> int:
    "Of the matrix that a parameter is for Muon"
    rows = len(p) if p.ndim else 1
    return min(rows, p.numel() // max(rows, 1))


def parameter_groups(
    model: nn.Module,          # a `ContrastiveModel`
    wd: float,                 # weight decay of matrices and filters
    adapt: bool,               # whether to mark them for LARS' adaptation
    constant_lr: bool = False, # the predictors' learning rate does not follow the schedule: groups marked `constant_lr`
    wd_all: bool = False,      # weight decay for the rest as well
    wd_tokens: bool = False,   # for the encoder's own exceptions, at least: a ViT's position and class tokens
) -> list[dict]:
    "Parameters that train, with weight decay and without it (biases, norms, the encoder's own exceptions)"
    spared = getattr(model.encoder, 'no_weight_decay', set)() if not wd_tokens else ()
    exceptions = {f'encoder.{name}' for name, _ in model.encoder.named_parameters()
                  if any(fnmatchcase(name, pattern) for pattern in spared)}  # XCiT's are 'pos_embed.*'
    predictors = [head.predictor for head in model.heads.values() if constant_lr and head.predictor is not None]
    constant = {p for predictor in predictors for p in predictor.parameters()}
    groups = []
    for marks in (dict(constant_lr=True), {}) if constant_lr else ({},):
        matrices, rest = [], []
        for name, p in model.named_parameters():
            if p.requires_grad and (p in constant) == bool(marks):
                (matrices if p.ndim > 1 and name not in exceptions else rest).append(p)
        adapts = dict(always_adapt=True) if adapt else {}
        groups += [dict(params=matrices, weight_decay=wd, decays=True, **adapts, **marks),
                   dict(params=rest, weight_decay=wd * wd_all, decays=wd_all, **marks)]
    return groups


class _Hypers(dict):
    "The numbers of a group by fastai's names: what is set here is set in the optimizer"
    def __init__(self, numbers: Mapping[str, float], group: dict[str, Any], names: Mapping[str, str]):
        super().__init__(numbers)
        self.group, self.names = group, names

    def __setitem__(self, name: str, value: float):
        super().__setitem__(name, value)
        set_item_pg(self.group, self.names.get(name, name), value)


class Wrapped(OptimWrapper):
    """fastai's, whose `hypers` are numbers, which is what loggers take, and can be set, as `ReduceLROnPlateau` does

    fastai's own are copies, so that what it sets there comes to nothing."""
    @property
    def hypers(self) -> list[_Hypers]:
        found = []
        for group, values in zip(self.opt.param_groups, OptimWrapper.hypers.fget(self), strict=True):
            numbers = {k: v for k, v in values.items() if isinstance(v, Real) and not isinstance(v, bool)}
            found.append(_Hypers(numbers, group, self.bwd_map))
        return found

    def set_hyper(self, k: str, v: Any):
        "fastai's; a weight decay that is one number is for the groups that decay"
        super().set_hyper(k, _where_it_decays(v, self.opt.param_groups) if k == 'wd' else v)

    def _set_hyper(self, k: str, v: Iterable[float]):
        super()._set_hyper(k, v)
        if k != 'mom': return
        for group, value in zip(self.opt.param_groups, v):
            if 'momentum' in group: group['momentum'] = value  # Muon has AdamW's betas too, which fastai knows as this


def _where_it_decays(
    wd: Any,                        # weight decay, as fastai takes it
    groups: Iterable[Mapping[str, Any]], # of an optimizer
) -> Any:
    "Of a number that of every group, by what `parameter_groups` has said of it"
    return [wd * group.get('decays', True) for group in groups] if isinstance(wd, Real) else wd


def _own_groups(opt: OptimWrapper | Optimizer) -> Sequence[dict[str, Any]]:
    "What an optimizer reads its numbers from"
    return opt.opt.param_groups if isinstance(opt, OptimWrapper) else opt.hypers


def keep_hypers(
    opt: OptimWrapper | Optimizer, # as it was made
) -> None:
    "Have it remember every group's weight decay and momentum, for `put_back_hypers`"
    opt.begun = [{name: group[name] for name in _KEPT if name in group} for group in _own_groups(opt)]


def put_back_hypers(
    opt: OptimWrapper | Optimizer, # that `keep_hypers` was given; of another nothing is known, and nothing changed
) -> None:
    "Every group has the weight decay and momentum again that it began with"
    for group, numbers in zip(_own_groups(opt), getattr(opt, 'begun', ())): group.update(numbers)


def groups_of(
    opt: OptimWrapper | Optimizer, # a learner's
) -> list[dict[str, Any]]:
    "The groups of an optimizer with all that `parameter_groups` has said of them, whoever made it"
    return getattr(opt, 'opt', opt).param_groups


def optimizer_name(
    opt: str | Callable, # as `optimizer` takes it
) -> str:
    "What messages and settings call an optimizer"
    if isinstance(opt, str): return opt
    if not isinstance(opt, partial): return getattr(opt, '__name__', None) or clipped(repr(opt), 60)
    return optimizer_name(opt.keywords.get('opt', opt.func))  # fastai's partial(OptimWrapper, opt=…)


def optimizer(
    opt: str | Callable,          # a name in `OPTIMIZERS`, a class of PyTorch's, or what fastai calls an `opt_func`
    args: Mapping[str, Any] = {}, # what else it is given
    wrapper: type[Wrapped] = Wrapped, # what PyTorch's are wrapped in for fastai
) -> Callable[..., OptimWrapper | Optimizer]: # `opt_func` of a fastai `Learner`, for the groups of `parameter_groups`
    "An optimizer for fastai. Raises `InputError` for an unknown one, or arguments that it can't use"
    name = optimizer_name(opt)
    if isinstance(opt, torch.optim.Optimizer | Optimizer | OptimWrapper):
        raise InputError(f"opt={type(opt).__name__}(…) is made for some parameters already: give its class, like "
                         "torch.optim.AdamW, and arguments by opt_args.")
    if isinstance(opt, str): opt = OPTIMIZERS.find(opt)
    if not callable(opt):
        raise InputError(f"opt={clipped(name)} is no optimizer: there are {', '.join(sorted(OPTIMIZERS))}, and it may "
                         "be a class of PyTorch's like torch.optim.AdamW, or a fastai opt_func like ranger.")
    make = partial(opt, **args)
    if idle := [f'{key}={make.keywords[key]!r}' for key in ('lr', 'weight_decay', 'wd') if key in make.keywords]:
        raise InputError(f"{' and '.join(idle)} among the arguments of {name} would come to nothing: give lr=… and "
                         "wd=… of the recipe, or protocol, instead.")
    try: made = make([nn.Parameter(torch.zeros(1))], lr=0.1)
    except (TypeError, ValueError, RuntimeError, IndexError) as e:
        raise InputError(f"opt_args={dict(args)} do not suit {name}: {clipped(e).rstrip('.')}.") from None
    if isinstance(made, OptimWrapper | Optimizer): return partial(_fastais, make, wrapper)
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(f"opt={name} makes a {type(made).__name__}, and no optimizer: give a class like "
                         "torch.optim.AdamW.")
    closure = inspect.signature(made.step).parameters.get('closure')
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(f"opt={name} takes the loss several times a step, which draws views once: give another "
                         "optimizer, like torch.optim.AdamW.")
    return partial(_pytorchs, make, wrapper)


def _pytorchs(
    make: Callable,     # PyTorch's
    wrapper: type[Wrapped],
    groups: list[dict], # from `parameter_groups`
    lr: float,
) -> OptimWrapper:
    "An optimizer of PyTorch's for groups"
    return wrapper(groups, make, convert_groups=False, lr=lr)


def _fastais(
    make: Callable,     # fastai's `opt_func`, which takes lists of parameters
    wrapper: type[Wrapped],
    groups: list[dict], # from `parameter_groups`
    lr: float,
) -> OptimWrapper | Optimizer:
    "An optimizer of fastai's for groups, with what is said of them"
    opt = make([list(group['params']) for group in groups], lr=lr)
    wrapped = isinstance(opt, OptimWrapper)
    for own, group in zip(_own_groups(opt), groups, strict=True):
        said = {key: value for key, value in group.items() if key != 'params'}
        own.update(said if wrapped else said | dict(wd=said.pop('weight_decay')))
    if wrapped: return wrapper(opt=opt.opt)
    opt.zero_grad, opt.set_hyper = partial(_drop_gradients, opt), partial(_set_hyper, opt)
    return opt


def _drop_gradients(opt: Optimizer) -> None:
    "As PyTorch's do: fastai's zeroes would have a step move what it leaves out, by momentum and weight decay"
    for p, *_ in opt.all_params(with_grad=True): p.grad = None


def _set_hyper(opt: Optimizer, k: str, v: Any) -> None:
    "As `Wrapped` sets it"
    type(opt).set_hyper(opt, k, _where_it_decays(v, opt.hypers) if k == 'wd' else v)


@SCHEDULES.register('cosine')
def cosine(t: float) -> float:
    "cosine to 0"
    return (1 + math.cos(math.pi * t)) / 2


@SCHEDULES.register('step')
def steps(t: float) -> float:
    "steps to a hundredth"
    return 1. if t < 0.6 else 0.1 if t < 0.8 else 0.01  # MoCo v1: at 120 and 160 of 200 epochs


@SCHEDULES.register('wsd')
def wsd(t: float) -> float:
    """stable, then down to 0 in the last fifth

    Hu et al. 2024 (MiniCPM); the decay is one minus a square root, as in Hägele et al. 2024."""
    stable = wsd.stable_until
    return 1. if t <= stable else 1 - math.sqrt((t - stable) / (1 - stable))
wsd.stable_until = 0.8


def stable_until(
    schedule: str, # a name in `SCHEDULES`
) -> float:        # in [0, 1]
    """The share of a run, after its warm-up, up to which the learning rate is the same however long the run is

    A schedule's function says it by an attribute of this name; 0 where it says nothing."""
    return getattr(SCHEDULES.find(schedule), 'stable_until', 0.)


def schedule_words(
    schedule: str, # a name in `SCHEDULES`
) -> str:
    "How a log line speaks of a schedule: the first line of its docstring, else its name"
    return (inspect.getdoc(SCHEDULES.find(schedule)) or schedule).splitlines()[0]


def warmup_then(
    schedule: str,     # a name in `SCHEDULES`
    peak: float,       # learning rate at the end of the warm-up
    warmup: float,     # share of the run that warms up, in [0, 1)
    start: float = 0., # share of the peak that it starts from
    end: float = 0.,   # share of the peak that stands for the schedule's 0
) -> Callable[[float], float]: # share of the run that is done, in [0, 1], to the learning rate
    "Linear up to `peak`, then the schedule"
    share = SCHEDULES.find(schedule)
    def lr(t: float) -> float:
        if t < warmup: return peak * (start + (1 - start) * t / warmup)
        return peak * (end + (1 - end) * share((t - warmup) / (1 - warmup)))
    return lr


def schedules(
    groups: list[dict],           # the optimizer's, from `parameter_groups`
    peak: float,                  # learning rate at the end of the warm-up
    warmup: float,                # share of the run that warms up, in [0, 1)
    schedule: str = 'cosine',     # what follows, a name in `SCHEDULES`
    warmup_from: float = 0.,      # share of the peak that the warm-up starts from
    wd: float = 0.,               # weight decay at the beginning…
    wd_end: float | None = None,  # …and at the end, along a cosine; None: it stays as the groups have it
    lr_end: float = 0.,           # share of the peak that stands for the schedule's 0
) -> dict[str, Callable[[float], list[float]]]: # what `ParamScheduler` takes
    "Learning rate and, where it changes, weight decay of every group over the run"
    lr = warmup_then(schedule, peak, warmup, warmup_from, lr_end)
    over_run = {'lr': lambda t: [peak if g.get('constant_lr') else lr(t) for g in groups]}
    if wd_end is not None:
        over_run['wd'] = lambda t: [(wd_end - (wd_end - wd) * cosine(t)) * g['decays'] for g in groups]
    return over_run
