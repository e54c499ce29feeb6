"Features with labels, made up"
import math

import torch


def clusters(n, classes=6, d=12, spread=1.5, seed=0, dtype=torch.float64):
    "Features around one centre a class; spread=inf: without any relation to the class"
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99), dtype=dtype)
    y = torch.randint(classes, (n,), generator=g)
    noise = torch.randn(n, d, generator=g, dtype=dtype)
    return (noise if math.isinf(spread) else centres[y] + spread * noise), y
