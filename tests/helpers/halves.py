"bfloat16 on CPUs that have no instructions for it: PyTorch computes it there too, slowly, and the library refuses it"
import torch


def take_bf16(patch=setattr):
    "Have the library take this CPU for one that has them"
    patch(torch.cpu, '_is_avx512_bf16_supported', lambda: True)
