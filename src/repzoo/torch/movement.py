"""ONNX operators on shapes and on the places of elements, as torch functions.

A shape, axes or sizes may be a tuple (a constant) or a tensor (computed by the graph); `integers`
reads both.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from repzoo.errors import InputError
from repzoo.torch.windows import Ints


def integers(value: Any) -> list[int]:
    """A shape, axes or sizes, constant or computed."""
    if isinstance(value, int):
        return [value]
    items = value.tolist() if isinstance(value, Tensor) else value
    return [int(item) for item in items]


def reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    """Reshape; 0 keeps a side."""
    sides = integers(shape)
    for axis, side in enumerate(sides):
        if side == 0 and not allowzero:
            sides[axis] = x.shape[axis]
    return x.reshape(sides)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Flatten to two dimensions."""
    if axis == 1:
        return x.flatten(1)
    rows = math.prod(x.shape[:axis])
    return x.reshape(rows, -1)


def squeeze(x: Tensor, axes_input: Any = None, *, axes: Ints = ()) -> Tensor:
    """Squeeze; the axes were an attribute before opset 13."""
    chosen = integers(axes if axes_input is None else axes_input)
    if not chosen:
        return x.squeeze()
    return x.squeeze(tuple(chosen))


def unsqueeze(x: Tensor, axes_input: Any = None, *, axes: Ints = ()) -> Tensor:
    """Unsqueeze; the axes were an attribute before opset 13."""
    chosen = integers(axes if axes_input is None else axes_input)
    rank = x.dim() + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def transpose(x: Tensor, *, perm: Ints = ()) -> Tensor:
    """Transpose; without `perm` in reverse order."""
    in_reverse = range(x.dim() - 1, -1, -1)
    return x.permute(tuple(perm or in_reverse))


def concat(*parts: Any, axis: int) -> Tensor:
    """Concat of tensors and of computed sizes."""
    return torch.cat([_as_tensor(part) for part in parts], axis)


def _as_tensor(part: Any) -> Tensor:
    return part if isinstance(part, Tensor) else torch.tensor(integers(part))


def split(
    x: Tensor,
    sizes_input: Any = None,
    *,
    axis: int = 0,
    split: Ints = (),
    num_outputs: int = 0,
    outputs: int = 1,
) -> Any:
    """Split into given sizes, or into equal parts of which the last may be smaller."""
    sizes = integers(split if sizes_input is None else sizes_input)
    if not sizes:
        count = num_outputs or outputs
        length = x.shape[axis]
        each = -(-length // count)
        sizes = [min(each, length - each * index) for index in range(count)]
    parts = torch.split(x, sizes, axis)
    return parts if outputs > 1 else parts[0]


def slices(
    x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> Tensor:
    """Slice, with steps of either sign."""
    firsts = integers(starts)
    lasts = integers(ends)
    chosen = list(range(len(firsts))) if axes is None else integers(axes)
    strides = [1] * len(firsts) if steps is None else integers(steps)
    for first, last, axis, stride in zip(firsts, lasts, chosen, strides, strict=True):
        indices = range(x.shape[axis])[first:last:stride]
        if stride == 1:
            x = x.narrow(axis, indices.start, len(indices))
        else:
            x = x.index_select(axis, torch.tensor(list(indices)))
    return x


def gather(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    """Gather."""
    axis %= x.dim()
    chosen = torch.as_tensor(indices) % x.shape[axis]
    rows = x.index_select(axis, chosen.reshape(-1))
    # torch has no index_select by a scalar; ONNX then leaves the axis out.
    shape = [*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :]]
    return rows.reshape(shape)


PAD_MODES = {
    b"constant": "constant",
    b"reflect": "reflect",
    b"edge": "replicate",
    b"wrap": "circular",
}


def pad(
    x: Tensor,
    pads_input: Any = None,
    value: Any = None,
    axes: Any = None,
    *,
    pads: Ints = (),
    mode: bytes = b"constant",
) -> Tensor:
    """Pad; the amounts were an attribute before opset 11."""
    amounts = integers(pads if pads_input is None else pads_input)
    chosen = list(range(x.dim())) if axes is None else integers(axes)
    by_axis = {}
    for index, axis in enumerate(chosen):
        by_axis[axis % x.dim()] = (amounts[index], amounts[index + len(chosen)])
    order: list[int] = []  # torch begins with the last axis
    for axis in reversed(range(x.dim())):
        order += by_axis.get(axis, (0, 0))
    # Modes other than constant take pads of the last axes only.
    while len(order) > 2 and order[-2:] == [0, 0]:
        order = order[:-2]
    kind = PAD_MODES[mode]
    fill = float(value) if kind == "constant" and value is not None else None
    return functional.pad(x, order, kind, fill)


def resize(
    x: Tensor,
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    *,
    mode: bytes = b"nearest",
    coordinate_transformation_mode: bytes = b"half_pixel",
    nearest_mode: bytes = b"round_prefer_floor",
) -> Tensor:
    """Resize by whole factors that repeats each pixel, as the chroma of NV12 needs."""
    shape = list(x.shape)
    if sizes is not None:
        target = integers(sizes)
    else:
        pairs = zip(scales, shape, strict=True)
        target = [round(float(scale) * side) for scale, side in pairs]
    is_whole = not any(new % old for new, old in zip(target, shape, strict=True))
    is_spatial = x.dim() == 4 and target[:2] == shape[:2]
    largest = max(new / old for new, old in zip(target, shape, strict=True))
    repeats = _repeats_pixels(coordinate_transformation_mode, nearest_mode, largest)
    if mode != b"nearest" or not is_whole or not is_spatial or not repeats:
        raise InputError(
            f"Resize ({mode.decode()}, {coordinate_transformation_mode.decode()}, "
            f"{nearest_mode.decode()}) of {shape} to {target} is not implemented; "
            "use another engine"
        )
    vertical = target[2] // shape[2]
    horizontal = target[3] // shape[3]
    return x.repeat_interleave(vertical, 2).repeat_interleave(horizontal, 3)


def _repeats_pixels(coordinates: bytes, rounding: bytes, factor: float) -> bool:
    """Whether a Resize by whole factors up to `factor` repeats each pixel equally often.

    ONNX specification, Resize: the coordinate of an output pixel x is (x + 0.5) / factor - 0.5
    (half_pixel) or x / factor (asymmetric), rounded to the pixel that is copied.
    """
    nearest = (b"round_prefer_floor", b"round_prefer_ceil")
    if coordinates in (b"half_pixel", b"half_pixel_symmetric", b"pytorch_half_pixel"):
        return rounding in nearest
    if coordinates != b"asymmetric":
        return False
    # 1/2 is rounded down, but 2/3 is not.
    return rounding == b"floor" or (rounding == nearest[0] and factor <= 2)


def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    """Cast to an ONNX element type."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(to)
    like = torch.from_numpy(np.empty(0, dtype))
    return x.to(like.dtype)


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Shape."""
    return torch.tensor(list(x.shape[start:end]))


def expand(x: Tensor, shape: Any) -> Tensor:
    """Expand. ONNX broadcasts both ways, torch's own only one."""
    return x * torch.ones(integers(shape), dtype=x.dtype)


def constant(
    *,
    value: Any = None,
    value_float: Any = None,
    value_floats: Any = None,
    value_int: Any = None,
    value_ints: Any = None,
) -> Tensor:
    """Constant, of whichever attribute is there."""
    for item in (value, value_float, value_floats, value_int, value_ints):
        if item is not None:
            return item if isinstance(item, Tensor) else torch.tensor(item)
    raise InputError(
        "a Constant of an unknown kind is not implemented; use another engine"
    )


def constant_of_shape(shape: Any, *, value: Any = None) -> Tensor:
    """ConstantOfShape; zeros by default."""
    fill = torch.zeros(1) if value is None else torch.as_tensor(value).reshape(1)
    return fill.expand(integers(shape)).clone()
