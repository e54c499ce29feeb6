"""Number formats: what a name means on a device, and what the context does to a model's arithmetic."""
import pytest
import torch
from torch import nn

from fastcontrast.core import InputError
from fastcontrast.precision import PRECISIONS, autocast, has_bf16, pick_precision


@pytest.mark.parametrize('has', [(), ('avx512_bf16',), ('amx_tile',), ('avx512_bf16', 'amx_tile')], ids=str)
def test_auto_is_what_the_cpu_has_instructions_for(monkeypatch, has):
    for name in ('avx512_bf16', 'amx_tile'):
        monkeypatch.setattr(torch.cpu, f'_is_{name}_supported', lambda name=name: name in has)
    assert has_bf16('cpu') == bool(has)
    assert pick_precision('auto', 'cpu') == ('bf16' if has else 'fp32') and pick_precision('fp32', 'cpu') == 'fp32'
    if has: assert pick_precision('bf16', torch.device('cpu')) == 'bf16'
    else:
        lacks = "instructions for bfloat16, which this cpu has not: use 'fp32'"
        with pytest.raises(InputError, match=lacks): pick_precision('bf16', 'cpu')


def test_other_devices():
    assert not has_bf16('meta') and pick_precision('auto', 'meta') == 'fp32'
    if not torch.cuda.is_available(): assert not has_bf16('cuda')
    assert pick_precision('fp16', 'cuda') == 'fp16'
    with pytest.raises(InputError, match="'fp16' is for CUDA devices, not for cpu"): pick_precision('fp16', 'cpu')


NAMES = [('fp61', 'did you mean fp16'), ('half', 'there are auto'), (16, 'fp16'), (None, 'there are auto')]


@pytest.mark.parametrize('precision,words', NAMES)
def test_unknown_ones_are_refused(precision, words):
    with pytest.raises(InputError, match=words) as e: pick_precision(precision, 'cpu')
    assert 'unknown precision' in str(e.value) and PRECISIONS[0] == 'auto'


def test_the_context_rounds_products_and_leaves_weights():
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    for precision, dtype in (('fp32', torch.float32), ('bf16', torch.bfloat16), ('fp16', torch.float16)):
        with autocast(precision, 'cpu'): assert layer(x).dtype == dtype
        assert not torch.is_autocast_enabled('cpu')
    with autocast('bf16', 'cpu'), autocast('fp32', torch.device('cpu')): assert layer(x).dtype == torch.float32
    assert layer.weight.dtype == torch.float32
