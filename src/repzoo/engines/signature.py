"""What a model takes, and whether an array fits: several runtimes convert, pad or overrun silently.

An engine calls `signature_of` when it opens a model, and `Signature.accept` on the inputs of every
run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.engines import Array, Feeds
from repzoo.errors import InputError
from repzoo.onnx_file import model_inputs

FLOAT_KINDS = "fV"  # NumPy's kinds of its own floats and of ml_dtypes' bfloat16
NUMBER_KINDS = "iub" + FLOAT_KINDS


def require_one_input(model: onnx.ModelProto, engine: str) -> None:
    """Refuse several inputs before a runtime does, whose sentences do not say why.

    Raises:
        InputError: `model` takes more than one input.
    """
    names = [item.name for item in model_inputs(model)]
    if len(names) > 1:
        raise InputError(
            f"{engine} cannot run graphs with several inputs here; this one takes {len(names)} "
            f"({', '.join(names)}); use onnxruntime"
        )


@dataclass(frozen=True)
class Signature:
    """What the first input of a model takes.

    name   of the input
    dtype  of the array; float16 and bfloat16 stand for float32 too, see `adapt`
    dims   sides of the array, 0 where any size is accepted; () where the model does not say
    """

    name: str
    dtype: np.dtype[np.generic]
    dims: tuple[int, ...]

    def accept(self, inputs: Array | Feeds, engine: str) -> Array:
        """`inputs` as the model takes it, for an engine that runs graphs with one input.

        Raises:
            InputError: several inputs, or an array of another type or shape.
        """
        array = self.adapt(inputs)
        self._require(array, engine)
        return array

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

    def _require(self, inputs: npt.NDArray[np.generic], engine: str) -> None:
        """Refuse an array of another type or shape."""
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
    inputs = model_inputs(model)
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
    is_numeric = isinstance(output, np.ndarray) and output.dtype.kind in NUMBER_KINDS
    return np.asarray(output if is_numeric else [], np.float32)


def describe(inputs: Array | Feeds) -> str:
    """Type and shape of what a model was given, for a message."""
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {describe(item)}" for name, item in inputs.items())
    return f"{inputs.dtype} {inputs.shape}"
