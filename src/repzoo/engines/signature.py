"""Checks an input array before a runtime sees it: several convert, pad or overrun silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.engines import Array, Feeds
from repzoo.errors import InputError

FLOAT_KINDS = "fV"  # NumPy's kinds of its own floats and of ml_dtypes' bfloat16


@dataclass(frozen=True)
class Signature:
    """What a model's image input takes.

    dims  of the tensor, 0 where any size is accepted; () where the model does not say
    """

    name: str
    dtype: np.dtype[np.generic]
    dims: tuple[int, ...]

    def adapt(self, inputs: Array | Feeds) -> Array:
        """float32 `inputs` in the other float type that the model takes; all others unchanged.

        Preprocessing makes float32 for every model; files in half precision take float16.

        Raises:
            InputError: several inputs.
        """
        if isinstance(inputs, Mapping):
            raise InputError(
                f"this engine runs graphs with one input, not with {len(inputs)}; use onnxruntime"
            )
        if inputs.dtype == np.float32 and self.dtype.kind in FLOAT_KINDS:
            return inputs.astype(self.dtype, copy=False)
        return inputs

    def feeds(self, inputs: Array | Feeds) -> Feeds:
        """What to feed by name: one array is that of the first input."""
        if isinstance(inputs, Mapping):
            return inputs
        return {self.name: self.adapt(inputs)}

    def require(self, inputs: npt.NDArray[np.generic], engine: str) -> None:
        """Refuse an array of another type or shape.

        Raises:
            InputError: what the model takes, and what it was given.
        """
        if inputs.dtype == self.dtype and self._accepts(inputs.shape):
            return
        raise InputError(
            f"{engine} cannot run this model on {inputs.dtype} {list(inputs.shape)}: "
            f"it takes {self.dtype} {list(self.dims) or 'of any shape'} (0: any)"
        )

    def _accepts(self, shape: tuple[int, ...]) -> bool:
        if not self.dims:
            return True
        if len(shape) != len(self.dims):
            return False
        return all(dim in (0, size) for dim, size in zip(self.dims, shape, strict=True))


def signature_of(model: onnx.ModelProto) -> Signature:
    """The signature of `model`'s first input that is not an initializer.

    Raises:
        InputError: the model has no input, or one without numbers.
    """
    weights = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in weights]
    if not inputs or not inputs[0].type.HasField("tensor_type"):
        raise InputError(
            "a model without a tensor as its input cannot be run; export it again"
        )
    tensor = inputs[0].type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    except KeyError:
        raise InputError(
            "a model whose input has no element type cannot be run; export it again"
        ) from None
    dims = tuple(dim.dim_value for dim in tensor.shape.dim)
    return Signature(inputs[0].name, np.dtype(dtype), dims)


def numbers(output: Any) -> Array:
    """An output as float32; empty where it is text, a sequence or a map."""
    is_numeric = isinstance(output, np.ndarray) and output.dtype.kind in "fiubV"
    return np.asarray(output if is_numeric else [], np.float32)


def describe(inputs: Array | Feeds) -> str:
    """Type and shape of what a model was given, for a message."""
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {describe(item)}" for name, item in inputs.items())
    return f"{inputs.dtype} {inputs.shape}"
