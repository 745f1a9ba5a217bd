"""What tensors of sizes hold: each size is a number, or the open side of some tensor.

Exporters compute shapes by nodes: Shape, then Slice, Gather, Concat and products. Shape inference
does not keep that a shape [N, 4, 512] put together in this way has two known sides, and whose side
the third is. The rules here do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from repzoo.graph.tools.ir_facts import constant_tensor, is_standard

MOST = 4096  # sizes in one tensor

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Open:
    """The size of `tensor` along `axis`, which is not known before it runs, or `times` as much."""

    tensor: ir.Value
    axis: int
    times: int = 1

    @property
    def name(self) -> str | None:
        """The name of the size in the graph; None if it has none."""
        return _side_name(self.tensor, self.axis) if self.times == 1 else None


Size = int | Open
Sizes = Mapping[ir.Value, list[Size]]


def sizes_in(graph: ir.Graph) -> Sizes:
    """The sizes in each tensor of sizes that `graph` computes, in order.

    Shapes must have been inferred, and nodes must be sorted.
    """
    known: dict[ir.Value, list[Size]] = {}
    for node in graph:
        if not is_standard(node) or node.op_type not in _RULES:
            continue
        sizes = _RULES[node.op_type](node, known)
        if sizes is not None and len(sizes) <= MOST:
            known[node.outputs[0]] = sizes
    return known


def reshape_target(node: ir.Node, known: Sizes) -> list[int] | None:
    """Constants that mean the same as the computed shape of `node`, a Reshape; None if none do.

    0 stands for the size that the tensor has on that axis already, -1 for the one size that
    follows from the others.
    """
    source = node.inputs[0]
    shape_input = node.inputs[1]
    if source is None or shape_input is None:
        return None
    shape = known.get(shape_input)
    # A size of 0 cannot be written, for it would be read as the size of the source.
    if shape is None or 0 in shape:
        return None
    # With allowzero a 0 is a size of its own.
    if node.attributes.get_int("allowzero", 0) != 0:
        return None
    has_open = any(isinstance(size, Open) for size in shape)
    if not has_open:
        return None
    constants: list[int] = []
    for axis, size in enumerate(shape):
        if _is_side(size, source, axis):
            constants.append(0)
        else:
            constants.append(size if isinstance(size, int) else -1)
    return constants if constants.count(-1) <= 1 else None


def is_made_up(side: int | ir.SymbolicDim) -> bool:
    """Whether shape inference had to make up a name for this side."""
    if not isinstance(side, ir.SymbolicDim):
        return False
    return side.value is None or side.value.startswith("unk__")


def have_same_shape(first: ir.Value, second: ir.Value) -> bool:
    """Whether two tensors with the same elements have the same shape.

    One side may be unknown: it follows from the others.
    """
    if first.shape is None or second.shape is None:
        return False
    if len(first.shape) != len(second.shape):
        return False
    unknown = 0
    for left, right in zip(first.shape, second.shape, strict=True):
        if _is_same_side(left, right):
            continue
        are_numbers = isinstance(left, int) and isinstance(right, int)
        if are_numbers and left != right:
            return False
        unknown += 1
    return unknown <= 1


def integers(value: ir.Value | None) -> Integers | None:
    """The int64 values of the constant `value`; None if it is none, or too large for sizes."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.size > MOST:
        return None
    return np.asarray(tensor.numpy(), np.int64)


def _is_side(size: Size, tensor: ir.Value, axis: int) -> bool:
    """Whether `size` is that of `tensor` along `axis`: the same side, or one of the same name."""
    if not isinstance(size, Open):
        return False
    if tensor.shape is None or axis >= len(tensor.shape):
        return False
    if size == Open(tensor, axis):
        return True
    return size.name is not None and size.name == _side_name(tensor, axis)


def _side_name(tensor: ir.Value, axis: int) -> str | None:
    """The name of an open side. Shape inference names unknown sides, and hands the names on."""
    side = tensor.shape[axis] if tensor.shape is not None else None
    return side.value if isinstance(side, ir.SymbolicDim) else None


def _is_same_side(left: int | ir.SymbolicDim, right: int | ir.SymbolicDim) -> bool:
    """Whether two sides are the same number or have the same name.

    Sides of 0 do not count: with them, the others do not follow from the number of elements.
    """
    if isinstance(left, int):
        return left == right and left != 0
    if not isinstance(right, ir.SymbolicDim):
        return False
    return left.value is not None and left.value == right.value


# --- rules: the sizes in an output, or None if they are not known ---------------------------------


def _read(value: ir.Value | None, known: Sizes) -> list[Size] | None:
    """The sizes in `value`, be it a constant or computed."""
    constants = integers(value)
    if constants is not None:
        return [int(item) for item in constants.flat]
    return known.get(value) if value is not None else None


def _shape(node: ir.Node, _: Sizes) -> list[Size] | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    sizes: list[Size] = []
    for axis, side in enumerate(source.shape):
        sizes.append(side if isinstance(side, int) else Open(source, axis))
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(sizes))
    return sizes[start:end]


def _gather(node: ir.Node, known: Sizes) -> list[Size] | None:
    sizes = _read(node.inputs[0], known)
    indices = integers(node.inputs[1])
    if sizes is None or indices is None:
        return None
    gathered: list[Size] = []
    for index in indices.flat:
        if not -len(sizes) <= index < len(sizes):
            return None
        gathered.append(sizes[index])
    return gathered


def _slice(node: ir.Node, known: Sizes) -> list[Size] | None:
    """Along the only axis that a list of sizes has."""
    sizes = _read(node.inputs[0], known)
    # Before opset 10 the limits were attributes, which is rare enough to leave out.
    if sizes is None or len(node.inputs) < 3:
        return None
    start = _single(node.inputs[1])
    end = _single(node.inputs[2])
    step_input = node.inputs[4] if len(node.inputs) > 4 else None
    step = 1 if step_input is None else _single(step_input)
    if start is None or end is None or step != 1:
        return None
    return sizes[start:end]


def _single(value: ir.Value | None) -> int | None:
    """The only integer in the constant `value`."""
    constants = integers(value)
    if constants is None or constants.size != 1:
        return None
    return int(constants.flat[0])


def _concat(node: ir.Node, known: Sizes) -> list[Size] | None:
    sizes: list[Size] = []
    for value in node.inputs:
        part = _read(value, known)
        if part is None or len(sizes) + len(part) > MOST:
            return None
        sizes += part
    return sizes


def _product(node: ir.Node, known: Sizes) -> list[Size] | None:
    """Size by size, or all by one. The product of two open sizes is not known."""
    left, right = (_read(value, known) for value in node.inputs)
    if not left or not right:
        return None
    longest = max(len(left), len(right))
    if len(left) == 1:
        left = left * longest
    if len(right) == 1:
        right = right * longest
    if len(left) != len(right):
        return None
    sizes: list[Size] = []
    for first, second in zip(left, right, strict=True):
        size = _multiply(first, second)
        if size is None:
            return None
        sizes.append(size)
    return sizes


def _multiply(left: Size, right: Size) -> Size | None:
    """The product of two sizes; None if both are open."""
    if isinstance(left, int) and isinstance(right, int):
        return left * right
    if isinstance(left, Open) and isinstance(right, int):
        return replace(left, times=left.times * right)
    if isinstance(left, int) and isinstance(right, Open):
        return replace(right, times=right.times * left)
    return None


def _same(node: ir.Node, known: Sizes) -> list[Size] | None:
    return _read(node.inputs[0], known)


def _cast(node: ir.Node, known: Sizes) -> list[Size] | None:
    if node.attributes.get_int("to", 0) != ir.DataType.INT64:
        return None
    return _read(node.inputs[0], known)


_RULES: dict[str, Callable[[ir.Node, Sizes], list[Size] | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Mul": _product,
    "Cast": _cast,
    "Identity": _same,
    "Unsqueeze": _same,
    "Squeeze": _same,
}
