"""A CUDA device that is none: its tensors compute on the CPU, and refuse whatever would have the host wait for them.

With it the paths that only a GPU takes run on any machine, on numbers that can be compared. What it can't show:
kernels, their rounding and their speed; autocast; and waits inside of PyTorch's own C++ code.
"""
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

aten, CUDA = torch.ops.aten, torch.device("cuda", 0)
INDEXES = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


# what reads values into the host, or has a result whose shape depends on them
WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount}


READS = {"cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__index__"}
SENDS = {"to", "tensor", "as_tensor", "new_tensor", "cuda"}  # from pageable memory, unless non_blocking is said


def mapped(f, x):
    """`f` of all that is in lists, tuples and dicts within one another; PyTorch's `tree_map` takes thrice as long"""
    kind = type(x)
    if kind is dict: return {key: mapped(f, value) for key, value in x.items()}
    if kind is tuple or kind is list: return kind([mapped(f, value) for value in x])
    if isinstance(x, tuple) and kind.__module__ == "torch.return_types": return kind([mapped(f, value) for value in x])
    return f(x)


class Waited(Exception):
    """The host would have waited for the device"""


class OnDevice(torch.Tensor):
    """A tensor on the pretended device; `held` is the one that it stands for"""
    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(),
                                                   storage_offset=held.storage_offset(), dtype=held.dtype)
        made.held = held
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self): return f"OnDevice({list(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        tensors, packet, kwargs = [], func.overloadpacket, kwargs or {}
        mapped(lambda x: tensors.append(x) if isinstance(x, torch.Tensor) else None, (args, kwargs))
        copies = packet is aten.copy_
        if Pretend.strict:
            if packet in WAITS or packet is aten.repeat_interleave and kwargs.get("output_size") is None:
                raise Waited(f"{func}")
            if copies and not (isinstance(args[0], OnDevice)
                               and (isinstance(args[1], OnDevice) or args[2:] == (True,))):
                raise Waited(f"{func} between the CPU and the device")
            if packet in INDEXES and any(i is not None
                                         and (i.dtype in (torch.bool, torch.uint8) or not isinstance(i, OnDevice))
                                         for i in args[1]):
                raise Waited(f"{func} by a mask, or by an index on the CPU")
        # where zeros for what got no gradient are made on the CPU, by what knows no better
        backward = torch._C._current_graph_task_id() != -1
        strange = [t for t in tensors if not isinstance(t, OnDevice) and t.ndim]
        if strange and not (copies or backward or packet in INDEXES):
            shape = list(strange[0].shape)
            raise RuntimeError(f"{func} mixes tensors on the device with one on the CPU, of shape {shape}")
        plain, options = mapped(lambda x: x.held if isinstance(x, OnDevice) else x, (args, kwargs))
        # what works in place gives back what it was given
        known = {id(t.held): t for t in tensors if isinstance(t, OnDevice)}
        def wrap(x): return known[id(x)] if id(x) in known else OnDevice(x) if isinstance(x, torch.Tensor) else x
        return mapped(wrap, func(*plain, **options))


class Pretend(TorchFunctionMode):
    """Within it, what is made on 'cuda', or sent there, is `OnDevice`"""
    strict = False  # whether waiting is refused

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name, asked = kwargs or {}, getattr(func, "__name__", ""), set()

        def here(x):
            if not (isinstance(x, torch.device) or isinstance(x, str) and x in ("cpu", "cuda")): return x
            asked.add(torch.device(x).type)
            return torch.device("cpu")
        if "device" in kwargs or name == "to": args, kwargs = mapped(here, args), mapped(here, kwargs)
        there = bool(args) and isinstance(args[0], OnDevice)
        if there and name == "new_tensor": asked.add("cuda")
        sent = name == "new_tensor" or name in SENDS and not there
        if self.strict and "cuda" in asked and sent and not kwargs.get("non_blocking"):
            raise Waited(f"{name}, to the device")
        if self.strict and (name in READS or "cpu" in asked) and there: raise Waited(f"{name}, to the CPU")
        out = func(*args, **kwargs)
        if "cuda" not in asked: return out
        return mapped(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) else x,
                        out)


def move_(module: nn.Module) -> None:
    """Move a module to the pretended device, in place"""
    for m in module.modules():
        for name, p in m._parameters.items():
            if p is not None and not isinstance(p, OnDevice):
                m._parameters[name] = nn.Parameter(OnDevice(p.detach().clone()), p.requires_grad)
        for name, b in m._buffers.items():
            if b is not None and not isinstance(b, OnDevice): m._buffers[name] = OnDevice(b.clone())
