"""Facts about the tensors of a graph: constant values, ranks, sides and channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


def constant(value: ir.Value | None) -> npt.NDArray[np.float64] | None:
    """The value as float64 when it is known at fold time and cannot be fed from outside, else
    None.
    """
    values = stored(value)
    return None if values is None else np.asarray(values, np.float64)


def stored(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """As `constant`, in the type of the file: large weights are only converted when a fold is
    made.
    """
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def node_name(node: ir.Node) -> str:
    """A name a person can find in a viewer."""
    return node.name or f"{node.op_type}({node.outputs[0].name})"


def sides_of(value: ir.Value | None) -> tuple[int | None, int | None]:
    """Height and width of [N, C, H, W] where they are known."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return None, None
    height, width = (
        side if isinstance(side, int) else None for side in value.shape[2:]
    )
    return height, width


def channel_axes(source: ir.Value, output: ir.Value) -> list[int]:
    """The axes that may be channels, where both are floats of one rank with as many: of images
    the second, of rows the last.
    """
    rank, floats = (
        rank_of(source),
        source.dtype is not None and source.dtype.is_floating_point(),
    )
    if (
        not floats
        or source.shape is None
        or output.shape is None
        or rank != rank_of(output)
    ):
        return []
    axes = dict.fromkeys(
        [*([1] if rank in (2, 4) else []), *([rank - 1] if rank > 1 else [])]
    )
    return [
        axis
        for axis in axes
        if source.shape[axis] == output.shape[axis] and int_of(source, axis)
    ]


def int_of(value: ir.Value, axis: int) -> int:
    """Its side along `axis`, 0 when it is not known."""
    side = value.shape[axis] if value.shape is not None else 0
    return side if isinstance(side, int) else 0


def rank_of(value: ir.Value) -> int:
    """Number of axes, 0 when it is not known."""
    return len(value.shape) if value.shape is not None else 0


def channels_of(value: ir.Value) -> int:
    """C of a tensor [N, C] or [N, C, H, W], 0 when it is not known or the tensor is another."""
    channels = (
        value.shape[1] if value.shape is not None and len(value.shape) in (2, 4) else 0
    )
    return channels if isinstance(channels, int) else 0
