"""Facts about the tensors of a graph: constants, ranks, sides and channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from repzoo.graph.tools.ir_facts import constant_tensor


def node_name(node: ir.Node) -> str:
    """A name that a person can find in a viewer."""
    return node.name or f"{node.op_type}({node.outputs[0].name})"


def constant_values(value: ir.Value | None) -> npt.NDArray[np.float64] | None:
    """The constant `value` as float64; None if it is computed, or may be fed by a caller."""
    values = stored_values(value)
    if values is None:
        return None
    return np.asarray(values, np.float64)


def stored_values(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """As `constant_values`, in the number type of the file.

    For large weights, which are converted only when a fold is written.
    """
    tensor = constant_tensor(value)
    if tensor is None:
        return None
    return tensor.numpy()


def rank_of(value: ir.Value) -> int:
    """Number of axes; 0 if it is not known."""
    if value.shape is None:
        return 0
    return len(value.shape)


def int_of(value: ir.Value, axis: int) -> int:
    """The size along `axis`; 0 if it is not known."""
    if value.shape is None:
        return 0
    side = value.shape[axis]
    return side if isinstance(side, int) else 0


def channels_of(value: ir.Value) -> int:
    """C of a tensor [N, C] or [N, C, H, W]; 0 if it is not known, or the tensor is another."""
    if rank_of(value) not in (2, 4):
        return 0
    return int_of(value, 1)


def sides_of(value: ir.Value | None) -> tuple[int | None, int | None]:
    """Height and width of [N, C, H, W]; None for one that is not known."""
    if value is None or rank_of(value) != 4:
        return None, None
    height = int_of(value, 2)
    width = int_of(value, 3)
    return height or None, width or None


def is_channel_axis(axis: int, value: ir.Value) -> bool:
    """Whether `axis`, which may count from the end, is that of C in [N, C] or [N, C, H, W]."""
    rank = rank_of(value)
    return rank in (2, 4) and axis in (1, 1 - rank)


def channel_axes(source: ir.Value, output: ir.Value) -> list[int]:
    """The axes of `source` that may be its channels: the second of images, the last of rows.

    None of them if `output` has another rank, or the numbers are no floats.
    """
    rank = rank_of(source)
    is_float = source.dtype is not None and source.dtype.is_floating_point()
    if not is_float or source.shape is None or output.shape is None:
        return []
    if rank != rank_of(output):
        return []
    candidates = [1] if rank in (2, 4) else []
    if rank > 1 and rank - 1 not in candidates:
        candidates.append(rank - 1)
    axes = []
    for axis in candidates:
        # An output that is wider than the source was broadcast.
        is_same_size = source.shape[axis] == output.shape[axis]
        if int_of(source, axis) and is_same_size:
            axes.append(axis)
    return axes
