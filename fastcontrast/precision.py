"""Number formats: which ones a device computes in, and the context in which a model does.

Docs: https://fastcontrast.github.io/fastcontrast/precision.html.md"""
import torch

from .core import InputError, one_of

__all__ = ['PRECISIONS', 'has_bf16', 'pick_precision', 'autocast']

PRECISIONS = ('auto', 'fp32', 'bf16', 'fp16')


def has_bf16(
    device: torch.device | str,
) -> bool:
    "Whether a device has instructions for bfloat16: CUDA from compute capability 8.0, a CPU with AVX512-BF16 or AMX"
    kind = torch.device(device).type
    if kind == 'cuda': return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != 'cpu': return False
    questions = (getattr(torch.cpu, f'_is_{name}_supported', bool) for name in ('avx512_bf16', 'amx_tile'))
    return any(supported() for supported in questions)


def pick_precision(
    precision: str, # a name in `PRECISIONS`
    device: torch.device | str,
) -> str:           # 'fp32', 'bf16' or 'fp16'
    "What a precision means on a device. Raises `InputError` for an unknown one, or one that the device lacks"
    one_of(PRECISIONS, precision=precision)
    kind = torch.device(device).type
    if precision == 'auto': return 'bf16' if has_bf16(device) else 'fp32'
    if precision == 'bf16' and not has_bf16(device):
        raise InputError(f"precision='bf16' needs a device with instructions for bfloat16, which this {kind} has not: "
                         "use 'fp32'.")
    if precision == 'fp16' and kind != 'cuda':
        raise InputError(f"precision='fp16' is for CUDA devices, not for {kind}: use 'bf16' or 'fp32'.")
    return precision


def autocast(
    precision: str, # 'fp32', 'bf16' or 'fp16', as `pick_precision` gives it
    device: torch.device | str,
) -> torch.autocast:
    "A context that runs convolutions and matrix products on a device in this precision; 'fp32' lowers none"
    dtype = torch.float16 if precision == 'fp16' else torch.bfloat16
    return torch.autocast(torch.device(device).type, dtype, enabled=precision != 'fp32')
