"""Values that are sizes of tensors: what Shape gives, cut, chosen and joined; each is known, or
is the open side of some tensor.

That is more than shape inference keeps: of a shape [N, 4, 512] that is put together, two sides
are known, and whose the third is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

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
        """What the graph calls it."""
        return _name(self.tensor, self.axis) if self.times == 1 else None


Size = int | Open
Sizes = Mapping[ir.Value, list[Size]]


def sizes_in(graph: ir.Graph) -> Sizes:
    """What the tensors of sizes that `graph` computes hold, in order; shapes must be inferred,
    nodes sorted.
    """
    found: dict[ir.Value, list[Size]] = {}
    for node in graph:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        made = rule(node, found) if rule is not None else None
        if made is not None and len(made) <= MOST:
            found[node.outputs[0]] = made
    return found


def target(node: ir.Node, known: Sizes) -> list[int] | None:
    """Constants that say the same as the computed shape that `node` (Reshape) is given; None
    where none do.

    0 stands for the size that the tensor has on that axis already, -1 for the one size that the
    others leave.
    """
    source, shape = (
        node.inputs[0],
        known.get(node.inputs[1]) if node.inputs[1] is not None else None,
    )
    if (
        source is None
        or shape is None
        or 0 in shape
        or node.attributes.get_int("allowzero", 0) != 0
    ):
        return None
    kept = [
        0 if _is_side(size, source, axis) else size for axis, size in enumerate(shape)
    ]
    made = [size if isinstance(size, int) else -1 for size in kept]
    return (
        made
        if made.count(-1) <= 1 and any(isinstance(size, Open) for size in shape)
        else None
    )


def _is_side(size: Size, tensor: ir.Value, axis: int) -> bool:
    """Whether `size` is that of `tensor` along `axis`: the same side, or one of the same name."""
    if not isinstance(size, Open) or tensor.shape is None or axis >= len(tensor.shape):
        return False
    return size == Open(tensor, axis) or (
        size.name is not None and size.name == _name(tensor, axis)
    )


def _name(tensor: ir.Value, axis: int) -> str | None:
    """That of an open side; shape inference gives the sides that it cannot tell names of their
    own, and hands these on.
    """
    side = tensor.shape[axis] if tensor.shape is not None else None
    return side.value if isinstance(side, ir.SymbolicDim) else None


def made_up(side: int | ir.SymbolicDim) -> bool:
    """Whether shape inference had to give this side a name."""
    return isinstance(side, ir.SymbolicDim) and (
        side.value is None or side.value.startswith("unk__")
    )


def same_shape(one: ir.Value, two: ir.Value) -> bool:
    """Whether two tensors with the same elements have the same shape: one side follows from all
    the others.
    """
    if one.shape is None or two.shape is None or len(one.shape) != len(two.shape):
        return False
    pairs = list(zip(one.shape, two.shape, strict=True))
    unlike = sum(
        not (a == b != 0 if isinstance(a, int) else _is_named_alike(a, b))
        for a, b in pairs
    )
    return unlike == 0 or (
        unlike == 1
        and not any(
            isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs
        )
    )


def _is_named_alike(one: ir.SymbolicDim, two: int | ir.SymbolicDim) -> bool:
    return (
        isinstance(two, ir.SymbolicDim)
        and one.value is not None
        and one.value == two.value
    )


def integers(value: ir.Value | None) -> Integers | None:
    """The integers that `value` holds, known before the graph runs."""
    tensor = (
        None
        if value is None or value.is_graph_input()
        else ir.convenience.get_const_tensor(value)
    )
    if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.size > MOST:
        return None
    return np.asarray(tensor.numpy(), np.int64)


def _read(value: ir.Value | None, known: Sizes) -> list[Size] | None:
    given = integers(value)
    if given is not None:
        return [int(item) for item in given.flat]
    return known.get(value) if value is not None else None


def _shape(node: ir.Node, _: Sizes) -> list[Size] | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    every: list[Size] = [
        side if isinstance(side, int) else Open(source, axis)
        for axis, side in enumerate(source.shape)
    ]
    return every[
        node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(every))
    ]


def _gather(node: ir.Node, known: Sizes) -> list[Size] | None:
    read, which = _read(node.inputs[0], known), integers(node.inputs[1])
    if (
        read is None
        or which is None
        or not all(-len(read) <= item < len(read) for item in which.flat)
    ):
        return None
    return [read[item] for item in which.flat]


def _slice(node: ir.Node, known: Sizes) -> list[Size] | None:
    """Along the one axis that sizes have."""
    read, steps = (
        _read(node.inputs[0], known),
        node.inputs[4] if len(node.inputs) > 4 else None,
    )
    start, end = (integers(value) for value in (*node.inputs, None, None)[1:3])
    step = np.ones(1, np.int64) if steps is None else integers(steps)
    if read is None or any(one is None or one.size != 1 for one in (start, end, step)):
        return None
    first, last, stride = (
        int(one.flat[0]) for one in (start, end, step) if one is not None
    )
    return read[first:last] if stride == 1 else None


def _concat(node: ir.Node, known: Sizes) -> list[Size] | None:
    made: list[Size] = []
    for value in node.inputs:
        part = _read(value, known)
        if part is None or len(made) + len(part) > MOST:
            return None
        made += part
    return made


def _product(node: ir.Node, known: Sizes) -> list[Size] | None:
    """Of sizes, each by the other's or all by one; of two that are open nothing is known."""
    one, two = (_read(value, known) for value in node.inputs)
    if not one or not two or (len(one) != len(two) and 1 not in (len(one), len(two))):
        return None
    longest = max(len(one), len(two))
    made = [
        _times(*pair)
        for pair in zip(
            one * (longest // len(one)), two * (longest // len(two)), strict=True
        )
    ]
    return [size for size in made if size is not None] if None not in made else None


def _times(one: Size, two: Size) -> Size | None:
    if isinstance(one, int) and isinstance(two, int):
        return one * two
    number, side = (one, two) if isinstance(one, int) else (two, one)
    return (
        replace(side, times=side.times * number)
        if isinstance(side, Open) and isinstance(number, int)
        else None
    )


def _same(node: ir.Node, known: Sizes) -> list[Size] | None:
    return _read(node.inputs[0], known)


def _cast(node: ir.Node, known: Sizes) -> list[Size] | None:
    return (
        _read(node.inputs[0], known)
        if node.attributes.get_int("to", 0) == ir.DataType.INT64
        else None
    )


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
