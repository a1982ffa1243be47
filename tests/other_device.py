"""A device that is not the CPU, for machines that have none: its tensors hold real values, and mixing is an error.

A tensor of the device `other:0` or `other:1` (torch's private backend, renamed) wraps a plain tensor of the CPU. An
operation takes the plain ones out, runs on the CPU and wraps what comes out:

1. every operation below autograd passes through `run`, by the mode that `other_device()` switches on;
2. factories (`torch.zeros(..., device="other")`) and copies (`x.to("other")`, `x.cpu()`) are the only ways in and out;
3. an operation with tensors of several devices raises a RuntimeError, as CUDA's do. CUDA's exceptions hold here too: a
   0-dim tensor of the CPU in arithmetic, an index of the CPU into a tensor of the device (`x[index]`), `copy_`;
4. `x.numpy()` raises; `.cpu()`, `.item()` and `.tolist()` give values of the CPU.

A sparse gradient becomes dense here. It cannot show what only a real device has: kernels and their rounding,
asynchronous errors, streams, memory, speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["NAME", "OtherTensor", "other_device"]

NAME = "other"

_CPU, _ANY = torch.device("cpu"), torch.device("privateuseone")  # whose type is renamed later
_ops = torch.ops.aten
#: What reads an index of the CPU into a tensor of the device (its second argument).
_BY_INDEX = {
    _ops.index.Tensor,
    _ops.index_put.default,
    _ops.index_put_.default,
    _ops._index_put_impl_.default,
}
#: What takes a number as a 0-dim tensor of the CPU, beside the elementwise operations.
_BY_NUMBER = {
    *_BY_INDEX,
    *(_ops.fill.Tensor, _ops.fill_.Tensor, _ops.masked_fill.Tensor, _ops.masked_fill_.Tensor),
}
_BETWEEN_DEVICES = {_ops._to_copy.default, _ops.copy.default, _ops.copy_.default}


class OtherTensor(Tensor):
    """A tensor on the device; `plain` holds its values on the CPU."""

    plain: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, plain: Tensor, index: int = 0) -> OtherTensor:
        layout = {"strides": plain.stride(), "storage_offset": plain.storage_offset(), "dtype": plain.dtype}
        make: Any = Tensor._make_wrapper_subclass
        made: OtherTensor = make(cls, plain.shape, device=torch.device(_ANY.type, index), **layout)
        made.plain = plain
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.plain!r} on {self.device}"

    def __deepcopy__(self, memo: dict[int, Any]) -> OtherTensor:
        if id(self) not in memo:
            copied = OtherTensor(self.plain.clone(), self.device.index).requires_grad_(self.requires_grad)
            copied.__dict__.update({key: value for key, value in self.__dict__.items() if key != "plain"})
            memo[id(self)] = copied
        return memo[id(self)]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.plain.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.plain.untyped_storage()

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, values: Tensor) -> None:
        assert isinstance(values, OtherTensor), f"a tensor on {NAME} was given values on the CPU"
        torch._C.TensorBase.data.__set__(self, values)  # type: ignore[attr-defined]
        self.plain = values.plain


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation: its tensors checked, its values computed on the CPU, its result on the device that is due."""
    asked = kwargs.get("device")
    leaves = [*_leaves(args), *_leaves(kwargs.values())]
    wrapped = {id(x.plain): x for x in leaves if isinstance(x, OtherTensor)}
    if not wrapped and (asked is None or asked.type != _ANY.type):
        return func(*args, **kwargs)
    if wrapped and func not in _BETWEEN_DEVICES:
        _check(func, args, leaves)
    if func is _ops._fused_sdp_choice.default:
        return 0  # attention by products: a fused kernel belongs to a device
    if func is _ops.copy_.default and not isinstance(args[0], OtherTensor):
        return func(args[0], args[1].plain, *args[2:])
    plain_kwargs = {
        key: _CPU if key == "device" and value else _on_cpu(value) for key, value in kwargs.items()
    }
    result = func(*_on_cpu(args), **plain_kwargs)
    if asked is not None and asked.type != _ANY.type:
        return result
    device = next(iter(wrapped.values())).device if asked is None else asked
    return _on_device(result, device.index or 0, wrapped)


def _leaves(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        elif isinstance(value, Tensor):
            yield value


def _on_cpu(value: Any) -> Any:
    if isinstance(value, OtherTensor):
        return value.plain
    return type(value)(map(_on_cpu, value)) if type(value) in (list, tuple) else value


def _on_device(value: Any, index: int, known: dict[int, OtherTensor]) -> Any:
    """A result of the CPU on the device; what was written in place is the tensor that it was."""
    if isinstance(value, Tensor):
        if id(value) in known:
            return known[id(value)]
        return OtherTensor(value if value.layout == torch.strided else value.to_dense(), index)
    return type(value)(_on_device(x, index, known) for x in value) if type(value) in (list, tuple) else value


def _check(func: Any, args: tuple[Any, ...], leaves: list[Tensor]) -> None:
    """Raise where a tensor lies elsewhere than the first one that is not the CPU's, but for CUDA's exceptions."""
    device = next(x.device for x in leaves if isinstance(x, OtherTensor))
    indices = {id(x) for x in args[1]} if func in _BY_INDEX else set()
    numbers = torch.Tag.pointwise in func.tags or func in _BY_NUMBER
    for place, x in enumerate(leaves):
        if x.device == device or (x.device == _CPU and id(x) in indices):
            continue
        written = place == 0 and func._schema.is_mutable
        if x.device != _CPU or x.dim() > 0 or not numbers or written:
            raise RuntimeError(
                f"{func}: expected all tensors on {device}, found one of {tuple(x.shape)} on {x.device}"
            )


@cache
def _register() -> None:
    """The device's name and guard, once a process: torch has no way back."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)


@contextmanager
def other_device() -> Iterator[torch.device]:
    """The devices `other:0`, which is given, and `other:1` exist inside.

    Modules keep their parameters' identity when they move, as with CUDA.
    """
    _register()
    lifted, swapped = (
        torch._C._only_lift_cpu_tensors(),
        torch.__future__.get_swap_module_params_on_conversion(),
    )
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) copies where the mode sees it
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        # Torch counts one device of a backend in Python, and has no thread for gradients on the second: they run here.
        with _Mode(), torch.autograd.set_multithreading_enabled(False):
            yield torch.device(_ANY.type, 0)
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_swap_module_params_on_conversion(swapped)
