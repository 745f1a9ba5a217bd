"""Checks an input array before a runtime sees it: several convert, pad or overrun silently."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.errors import InputError


@dataclass(frozen=True)
class Signature:
    """What a model's image input takes.

    dims  of the tensor, 0 where any size is accepted; () where the model does not say
    """

    name: str
    dtype: np.dtype[np.generic]
    dims: tuple[int, ...]

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
