"""Muon where bfloat16 is slow: timm's, with less arithmetic for long matrices, and in float32 if need be.

Docs: https://fastcontrast.github.io/fastcontrast/optim.html.md"""
from collections.abc import Callable
from typing import Any

import timm.optim.muon
import torch
from timm.optim.muon import _is_suitable_for_muon, get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor

from .precision import has_bf16

# timm's 'quintic', of https://leloykun.github.io/ponder/muon-opt-coeffs
QUINTIC = [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
           (2.8366, -3.0525, 1.2012)]
_USUAL = dict(algo='muon', conv_mode='flatten', ns_coefficients='quintic', ns_steps=5, safety_factor=1.,
              scale_eps=False, capturable=False, verbose=False)
# sides' ratio from which the Gram matrix takes less time: where the alternative is bfloat16, and where it is float32
LONG, LONG_IN_FP32 = 6, 1.5


def by_gram_matrix(
    x: Tensor,         # [rows, columns], of any float type
    eps: float = 1e-7, # least norm
) -> Tensor:           # float32, in the same shape: its singular values come near one
    """Newton-Schulz, as Muon has it, of which only the first and the last product have the longer side

    Each step multiplies x [m, n] by a polynomial P = a + b A + c A² of A = x xᵀ. All of them commute, so that A becomes
    P² A, and x is multiplied once by the product of all P: 2 n/m + 17 times m³ multiplications in place of 10 n/m + 5.
    In float32: errors of A add up from step to step, and the product is large where x is small."""
    tall = len(x) > x.shape[1]
    x = (x.T if tall else x).float()
    x = x / x.norm().clamp(min=eps)
    gram, product = x @ x.T, None
    for step, (a, b, c) in enumerate(QUINTIC, 1):
        p = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal().add_(a)
        product = p if product is None else product @ p
        if step < len(QUINTIC): gram = p @ (p @ gram)
    x = product @ x
    return x.T if tall else x


def orthogonalized(
    x: Tensor, # [rows, columns]
    eps: float = 1e-7,
) -> Tensor:   # float32 or bfloat16
    "Newton-Schulz in the way that takes a CPU, or a device without instructions for bfloat16, the least time"
    bf16, ratio = has_bf16(x.device), max(x.shape) / min(x.shape)
    if ratio >= (LONG if bf16 else LONG_IN_FP32): return by_gram_matrix(x, eps)
    return zeropower_via_newtonschulz(x, len(QUINTIC), QUINTIC, eps, dtype=torch.bfloat16 if bf16 else torch.float32)


def _is_ours(group: dict[str, Any]) -> bool:
    device = next((p.device for p in group['params']), None)
    usual = all(group[name] == value for name, value in _USUAL.items())
    return usual and device is not None and (device.type == 'cpu' or not has_bf16(device))


class Muon(timm.optim.muon.Muon):
    """timm's, but for the way in which matrices are `orthogonalized` on a CPU, or without instructions for bfloat16

    timm's own, in bfloat16, takes a CPU that has AVX2 and no more a hundred times as long."""
    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        loss, moved = None, []
        if closure is not None:
            with torch.enable_grad(): loss = closure()
        try:
            for group in filter(_is_ours, self.param_groups):
                for p in group['params']:
                    if p.grad is None or p.grad.is_sparse or p.ndim < 2 or not self._is_matrix(p, group): continue
                    moved.append((p, p.grad))
                    self._move(p, group)
                    p.grad = None  # for timm's
            super().step()
        finally:
            for p, grad in moved: p.grad = grad
        return loss

    def _is_matrix(self, p: Tensor, group: dict[str, Any]) -> bool:
        state = self.state[p]
        if 'use_muon' not in state:
            state['use_muon'] = not group.get('use_fallback') and group.get('use_muon', _is_suitable_for_muon(p))
        if state['use_muon'] and 'momentum_buffer' not in state: state['momentum_buffer'] = torch.zeros_like(p)
        return state['use_muon']

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        momentum = self.state[p]['momentum_buffer'].lerp_(p.grad, 1 - group['momentum'])
        update = p.grad.lerp(momentum, group['momentum']) if group['nesterov'] else momentum
        rows = orthogonalized(update.reshape(len(p), -1), group['eps'])
        scale = get_lr_scale(rows.shape, group['adjust_lr_fn']) if group['adjust_lr_fn'] else 1.
        p.mul_(1 - group['lr'] * group['weight_decay']).add_(rows.reshape(p.shape), alpha=-group['lr'] * scale)
