"""The three generators that random numbers come from, PyTorch's, NumPy's and Python's: seeded, kept and put back."""
import random
from typing import Any

import numpy as np
import torch


def seed_generators(
    *numbers: int, # 0 or more: whose draws they are
) -> None:
    "Seed all generators by a few numbers: what is drawn next depends on these alone"
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence(numbers).generate_state(3, np.uint64).tolist()
    # those of all devices; where there is none, this one would note the stack for each kind of device, every step
    if torch.accelerator.is_available(): torch.manual_seed(torch_seed)
    else: torch.default_generator.manual_seed(torch_seed)
    np.random.seed(numpy_seed % 2**32)
    random.seed(python_seed)


def generator_states(
    device: torch.device, # whose generator is meant beside the CPU's
) -> dict[str, Any]:
    "Where all generators are: tensors and plain values"
    kind, keys, *rest = np.random.get_state()
    states = dict(torch=torch.get_rng_state(), numpy=[kind, torch.from_numpy(keys.copy()), *rest],
                  python=random.getstate())
    if device.type == 'cuda' and torch.cuda.is_available(): states['cuda'] = torch.cuda.get_rng_state(device)
    return states


def set_generators(
    states: dict[str, Any], # from `generator_states`
    device: torch.device,
) -> None:
    "Put all generators where they were"
    torch.set_rng_state(states['torch'])
    if device.type == 'cuda' and 'cuda' in states: torch.cuda.set_rng_state(states['cuda'], device)
    kind, keys, *rest = states['numpy']
    np.random.set_state((kind, keys.numpy(), *rest))
    version, internal, gauss = states['python']
    random.setstate((version, tuple(internal), gauss))


class OwnDraws:
    "Within it the generators are ones of its own, which go on where they were last left"
    def __init__(self,
        device: torch.device, # whose generator is meant beside the CPU's
        *numbers: int,        # 0 or more: what they are seeded by
    ):
        self.device, everybodys = device, generator_states(device)
        seed_generators(*numbers)
        self.states = generator_states(device)
        set_generators(everybodys, device)

    def _swap(self):
        states = generator_states(self.device)
        set_generators(self.states, self.device)
        self.states = states

    def __enter__(self): self._swap()
    def __exit__(self, *error): self._swap()
