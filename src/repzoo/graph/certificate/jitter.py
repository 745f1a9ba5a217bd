"""Move every weight by one unit in the last place, to measure what rounding can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from repzoo.graph.certificate.attributes import attribute
from repzoo.graph.certificate.number_types import FLOATS
from repzoo.graph.certificate.operators import BLOCK

LAYERS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "BatchNormalization",
        "Add",
        "Sub",
        "Mul",
        "Div",
    }
)


def jitter(tensor: TensorProto, random: np.random.Generator) -> TensorProto:
    """Every value of a float tensor moved to one of its two neighbors; another tensor as it is.

    Zeros stay: those around a padded kernel are exact.
    """
    if tensor.data_type not in FLOATS:
        return tensor
    values = _move(numpy_helper.to_array(tensor), random)
    # The array is freed before the message copies its bytes.
    raw = values.tobytes()
    del values
    return TensorProto(
        dims=tensor.dims, data_type=tensor.data_type, name=tensor.name, raw_data=raw
    )


def jitter_constants(graph: onnx.GraphProto, random: np.random.Generator) -> None:
    """Move, in place, the weights that Constant nodes hold."""
    for tensor in layer_constants(graph):
        tensor.CopyFrom(jitter(tensor, random))


def layer_constants(graph: onnx.GraphProto) -> list[TensorProto]:
    """The weights of layers that Constant nodes hold. Other constants may be shapes or axes."""
    read: set[str] = set()
    for node in graph.node:
        if node.op_type in LAYERS:
            read.update(node.input)
    tensors = []
    for node in graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if value is not None and node.output[0] in read:
            tensors.append(value.t)
    return tensors


def _move(stored: npt.NDArray[Any], random: np.random.Generator) -> npt.NDArray[Any]:
    """`stored`, flat, with every value moved; in place where it can be written."""
    values = stored.ravel() if stored.flags.writeable else stored.flatten()
    # The bits of a float, read as an integer, count through all floats of one sign in order.
    bits = values.view(f"i{values.itemsize}")
    for start in range(0, bits.size, BLOCK):
        end = start + BLOCK
        block = bits[start:end]
        up = _coins(block.size, random).astype(block.dtype)
        nonzero = values[start:end] != 0
        block += (2 * up - 1) * nonzero
    return values


def _coins(count: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """So many random zeros and ones. One byte of randomness makes eight of them."""
    count_bytes = -(-count // 8)
    packed = np.frombuffer(random.bytes(count_bytes), np.uint8)
    return np.unpackbits(packed, count=count)
