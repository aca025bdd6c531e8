"""Watches a forward pass: the functions of torch that it calls, and whether it asks for values that depend on the input.

The code of a network can catch the exception with which torch refuses a value while the operations are read, and go another way.
So a pass that is read also records what it asks for, and its calls are compared with those of an ordinary pass.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Functions that give the values of a tensor, or the memory that holds them, to code outside torch.
VALUES = {
    "__array__", "__bool__", "__complex__", "__contains__", "__cuda_array_interface__", "__dlpack__", "__float__", "__format__",
    "__index__", "__int__", "__reduce_ex__", "__repr__", "_typed_storage", "allclose", "data_ptr", "equal", "is_nonzero", "item",
    "numpy", "storage", "tolist", "untyped_storage",
}  # fmt: skip


class Watch:
    """calls: the functions of torch that the network calls, in their order, and which of them fail.

    asked: the first request for a value that depends on the input, of a pass that is read; empty where there is none.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.asked = ""

    def run(self, model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        with ExitStack() as stack:
            stack.enter_context(_Functions(self))
            stack.enter_context(_Operations(self))
            return model(x)

    def note(self, name: str) -> None:
        self.asked = self.asked or f"it calls '{name}'"


class _Functions(TorchFunctionMode):
    """Sees the calls of Python code."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _name(function)
        self._watch.calls.append(name)
        if name in VALUES and any(_is_read(item) for item in tree_leaves((args, kwargs))):
            self._watch.note(name)
            raise RuntimeError(self._watch.asked)  # before any code reads memory that holds no values
        try:
            return function(*args, **(kwargs or {}))
        except Exception as error:
            self._watch.calls.append(f"{name} fails")
            if _is_refusal(error):
                self._watch.note(name)
            raise


class _Operations(TorchDispatchMode):
    """Sees the operations of compiled programs, too, and results whose size depends on values."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            with torch._C.DisableTorchFunction():  # what computes an operation is no call of the network
                out = function(*args, **(kwargs or {}))
        except Exception as error:
            if _is_refusal(error):
                self._watch.note(str(function))
            raise
        if any(_depends(item) for item in tree_leaves(out)):
            self._watch.note(str(function))
        return out


def _name(function: Any) -> str:
    """torch.Tensor.numpy -> numpy; torch.Tensor.shape.__get__ -> shape."""
    full = resolve_name(function) or getattr(function, "__name__", str(function))
    return str(full).removesuffix(".__get__").rpartition(".")[2]


def _is_read(value: Any) -> bool:
    """Whether this is a tensor without values, as in a pass that is read; parameters keep theirs."""
    return isinstance(value, torch.Tensor) and (isinstance(value, FakeTensor) or torch._is_functional_tensor(value))


def _depends(value: Any) -> bool:
    sizes = value.shape if isinstance(value, torch.Tensor) else [value]
    return any(isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) for size in sizes)


def _is_refusal(error: Exception) -> bool:
    """Whether torch refuses a value, because the pass is read."""
    return type(error).__module__.startswith(("torch._subclasses", "torch.fx"))
