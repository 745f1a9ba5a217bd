"""What a model's one input takes, checked before a runtime sees the array: several of them
convert, pad or overrun in silence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.errors import InputError


@dataclass(frozen=True)
class Signature:
    """Name, element type and dimensions (0: any) of the input; no dimensions at all where the
    model does not say.
    """

    name: str
    dtype: np.dtype[np.generic]
    dims: tuple[int, ...]

    def require(self, inputs: npt.NDArray[np.generic], engine: str) -> None:
        """Refuse `inputs` of another type or shape with an InputError."""
        fits = len(self.dims) in (0, inputs.ndim) and all(
            not dim or dim == got
            for dim, got in zip(self.dims, inputs.shape, strict=False)
        )
        if inputs.dtype != self.dtype or not fits:
            raise InputError(
                f"{engine} cannot run this model on {inputs.dtype} {list(inputs.shape)}: "
                f"it takes {self.dtype} {list(self.dims) or 'of any shape'} (0: any)"
            )


def signature_of(model: onnx.ModelProto) -> Signature:
    """The signature of `model`'s first input that is not an initializer.

    Raises:
        InputError: the model has no input, or not one of numbers.
    """
    weights = {item.name for item in model.graph.initializer}
    source = next(
        (item for item in model.graph.input if item.name not in weights), None
    )
    if source is None or not source.type.HasField("tensor_type"):
        raise InputError(
            "a model without a tensor as its input cannot be run; export it again"
        )
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(source.type.tensor_type.elem_type)
    except KeyError:
        raise InputError(
            "a model whose input has no element type cannot be run; export it again"
        ) from None
    return Signature(
        source.name,
        np.dtype(dtype),
        tuple(dim.dim_value for dim in source.type.tensor_type.shape.dim),
    )
