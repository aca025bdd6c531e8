"""Tensors that are computed from stored ones: sparse tensors, and quantised numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lsa_cli.models.pickles.symbols import Call, Global, Refused, TensorSpec, shown, size_of

if TYPE_CHECKING:
    import torch

# Layouts of torch, with the tensors that each one holds.
SPARSE_PARTS = {
    "sparse_coo": ("_indices", "_values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
}
QUANTISED_TYPES = {"int8": "qint8", "uint8": "quint8", "int32": "qint32"}
_LARGEST = 2**32  # numbers
QUANTISED = (
    "it holds a quantised network, whose steps of rounding leave an attack no gradient: give the float checkpoint from "
    "before the quantisation, or the state_dict of the quantised network, whose weights can be made floats"
)


@dataclass(frozen=True)
class SparseSpec(TensorSpec):
    """A sparse tensor, which is read as a dense one. layout, parts: a key of SPARSE_PARTS, and its tensors."""

    layout: str = ""
    parts: tuple[TensorSpec, ...] = ()

    def load(self, load: Callable[[TensorSpec], "torch.Tensor"]) -> "torch.Tensor":
        """Raises Refused where indices do not fit the shape."""
        import torch

        made = [load(part) for part in self.parts]
        layout = getattr(torch, self.layout)
        try:
            if self.layout == "sparse_coo":
                found = torch.sparse_coo_tensor(*made, self.shape, check_invariants=True)
            else:
                found = torch.sparse_compressed_tensor(*made, self.shape, layout=layout, check_invariants=True)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise Refused("it holds a sparse tensor whose indices do not fit its shape; damaged or hostile") from error
        return found.to_dense()


@dataclass(frozen=True)
class QuantisedSpec(TensorSpec):
    """Quantised numbers, which are read as floats: (number - zero point) * scale.

    numbers: as stored. scale, zero_point: plain numbers, or a tensor of one for each index along the dimension `axis`.
    """

    numbers: TensorSpec | None = None
    scale: float | TensorSpec = 1.0
    zero_point: int | TensorSpec = 0
    axis: int = 0

    def load(self, load: Callable[[TensorSpec], "torch.Tensor"]) -> "torch.Tensor":
        """The floats that torch makes of them."""
        import torch

        assert self.numbers is not None
        whole = load(self.numbers)
        if isinstance(self.scale, TensorSpec) and isinstance(self.zero_point, TensorSpec):
            scale, zero_point = load(self.scale), load(self.zero_point)
            return torch._make_per_channel_quantized_tensor(whole, scale, zero_point, self.axis).dequantize()
        return torch._make_per_tensor_quantized_tensor(whole, self.scale, self.zero_point).dequantize()


def sparse(machine: Any, call: Call, layout: Any, data: Any) -> SparseSpec:
    """torch._utils._rebuild_sparse_tensor."""
    name = str(layout.arguments[0]) if isinstance(layout, Call) and len(layout.arguments) == 1 else ""
    named = name.removeprefix("torch.")
    if named not in SPARSE_PARTS or not isinstance(data, tuple):
        raise Refused(f"it holds a tensor of the layout {shown(name)}, which lsa does not read; save it dense")
    count = len(SPARSE_PARTS[named])
    parts, rest = data[:count], data[count:]
    shape = tuple(map(size_of, rest[0])) if rest and isinstance(rest[0], tuple) else None
    if shape is None or len(parts) != count or any(type(part) is not TensorSpec for part in parts):
        raise Refused("it holds a sparse tensor without indices, values or shape; damaged or hostile")
    values = parts[-1]
    return SparseSpec(values.storage, values.dtype, shape, _strides(shape), 0, named, parts)


def quantised(
    machine: Any, call: Call, storage: Any, offset: Any, shape: Any, stride: Any, parameters: Any, *rest: Any
) -> QuantisedSpec:  # fmt: skip
    """torch._utils._rebuild_qtensor."""
    numbers = machine.value_of(Global("torch._utils", "_rebuild_tensor"), (storage, offset, shape, stride))
    scheme, *numbers_of = parameters if isinstance(parameters, tuple) and parameters else (None,)
    name = str(scheme)
    by_channel = name == "torch.per_channel_affine"
    if not isinstance(numbers, TensorSpec) or numbers.dtype not in QUANTISED_TYPES:
        raise Refused("it holds quantised numbers that are no whole numbers; damaged or hostile")
    if by_channel and len(numbers_of) == 3 and all(type(part) is TensorSpec for part in numbers_of[:2]):
        scale, zero_point, axis = *numbers_of[:2], size_of(numbers_of[2])
        fits = axis < len(numbers.shape) and scale.shape == zero_point.shape == (numbers.shape[axis],)
    elif name == "torch.per_tensor_affine" and len(numbers_of) == 2:
        (scale, zero_point), axis = numbers_of, 0
        fits = isinstance(scale, float) and math.isfinite(scale) and type(zero_point) is int and abs(zero_point) < 2**31
    else:
        fits = None
    if fits is None or (by_channel and (scale.dtype, zero_point.dtype) != ("float64", "int64")):
        raise Refused(f"it holds numbers that are quantised by {shown(scheme)}, which lsa does not read; save floats")
    if not fits:
        raise Refused("it holds quantised numbers whose scales do not fit them; damaged or hostile")
    return QuantisedSpec(
        numbers.storage, "float32", numbers.shape, _strides(numbers.shape), 0, numbers, scale, zero_point, axis
    )


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a dense tensor. Raises Refused for impossible sizes."""
    if math.prod(filter(None, shape)) > _LARGEST:
        raise Refused("it holds a tensor of more numbers than any checkpoint's; damaged or hostile")
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
