"""ONNX operators as torch functions: tensors first, attributes as keywords.

A shape, axes or sizes may be a tuple (a constant) or a tensor (computed by the graph); `_ints`
reads both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from repzoo.errors import InputError
from repzoo.torch.windows import Ints, average_pool, conv, max_pool


def _ints(value: Any) -> list[int]:
    """A shape, axes or sizes, constant or computed."""
    if isinstance(value, int):
        return [value]
    items = value.tolist() if isinstance(value, Tensor) else value
    return [int(item) for item in items]


# --- layers ---------------------------------------------------------------------------------------


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Gemm."""
    left = a.mT if transA else a
    right = b.mT if transB else b
    product = left @ right
    if alpha != 1:
        product = alpha * product
    if c is None:
        return product
    if beta != 1:
        c = beta * c
    return product + c


def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> Tensor:
    """BatchNormalization at inference."""
    return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
) -> Tensor:
    """LayerNormalization over all axes from `axis` on."""
    return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def softmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    """Softmax; before opset 13 over everything from `axis` on."""
    if axis is None:
        axis = -1 if opset >= 13 else 1
    if opset >= 13:
        return torch.softmax(x, axis)
    rows = x.flatten(axis)
    return torch.softmax(rows, -1).reshape(x.shape)


def clip(
    x: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Tensor:
    """Clip; the bounds were attributes before opset 11."""
    lower = min if low is None else low
    upper = max if high is None else high
    if lower is None and upper is None:
        return x
    return torch.clamp(x, _like(lower, x), _like(upper, x))


def _like(bound: Any, x: Tensor) -> Tensor | None:
    return None if bound is None else torch.as_tensor(bound, dtype=x.dtype)


# --- quantization ---------------------------------------------------------------------------------


def _per_axis_shape(x: Tensor, scale: Tensor, axis: int) -> list[int]:
    """The shape in which one scale, or one for each index of `axis`, broadcasts with `x`."""
    if scale.numel() <= 1:
        return []
    shape = [1] * x.dim()
    shape[axis] = -1
    return shape


def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    saturate: int = 1,
) -> Tensor:
    """QuantizeLinear; without a zero point to uint8."""
    dtype = torch.uint8 if zero is None else zero.dtype
    shape = _per_axis_shape(x, scale, axis)
    offset = 0.0 if zero is None else zero.reshape(shape).to(torch.float32)
    limits = torch.iinfo(dtype)
    steps = torch.round(x / scale.reshape(shape)) + offset
    return torch.clamp(steps, limits.min, limits.max).to(dtype)


def dequantize_linear(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    """DequantizeLinear."""
    shape = _per_axis_shape(x, scale, axis)
    offset = 0.0 if zero is None else zero.reshape(shape).to(torch.float32)
    return (x.to(torch.float32) - offset) * scale.reshape(shape)


# --- shapes and data movement ---------------------------------------------------------------------


def reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    """Reshape; 0 keeps a side."""
    sides = _ints(shape)
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
    chosen = _ints(axes if axes_input is None else axes_input)
    if not chosen:
        return x.squeeze()
    return x.squeeze(tuple(chosen))


def unsqueeze(x: Tensor, axes_input: Any = None, *, axes: Ints = ()) -> Tensor:
    """Unsqueeze; the axes were an attribute before opset 13."""
    chosen = _ints(axes if axes_input is None else axes_input)
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
    return part if isinstance(part, Tensor) else torch.tensor(_ints(part))


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
    sizes = _ints(split if sizes_input is None else sizes_input)
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
    firsts = _ints(starts)
    lasts = _ints(ends)
    chosen = list(range(len(firsts))) if axes is None else _ints(axes)
    strides = [1] * len(firsts) if steps is None else _ints(steps)
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
    amounts = _ints(pads if pads_input is None else pads_input)
    chosen = list(range(x.dim())) if axes is None else _ints(axes)
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
        target = _ints(sizes)
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
    return x * torch.ones(_ints(shape), dtype=x.dtype)


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
    return fill.expand(_ints(shape)).clone()


# --- elementwise ----------------------------------------------------------------------------------


def divide(a: Any, b: Any) -> Tensor:
    """Div; of integers toward zero."""
    a = torch.as_tensor(a)
    b = torch.as_tensor(b)
    rounding = None if a.is_floating_point() else "trunc"
    return torch.div(a, b, rounding_mode=rounding)


def p_relu(x: Tensor, slope: Tensor) -> Tensor:
    """PRelu; torch's own does not broadcast."""
    return torch.where(x < 0, slope * x, x)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """HardSigmoid of any slope."""
    return torch.clamp(alpha * x + beta, 0, 1)


def _binary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of two tensors, for computed sizes too."""
    return lambda a, b: function(torch.as_tensor(a), torch.as_tensor(b))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A function of two tensors, for any number of them."""

    def variadic(first: Tensor, *rest: Tensor) -> Tensor:
        for item in rest:
            first = function(first, item)
        return first

    return variadic


def _reduction(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A reduction; the axes were an attribute in older opsets."""

    def reduction(
        x: Tensor,
        axes_input: Any = None,
        *,
        axes: Ints = (),
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        chosen = _ints(axes if axes_input is None else axes_input)
        if not chosen and noop_with_empty_axes:
            return x
        every = list(range(x.dim()))
        return reduce(x, dim=chosen or every, keepdim=bool(keepdims))

    return reduction


OPERATORS: dict[str, Callable[..., Any]] = {
    # layers
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": torch.matmul,
    "BatchNormalization": batch_normalization,
    "LayerNormalization": layer_normalization,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": lambda x: x.mean(list(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(list(range(2, x.dim())), keepdim=True),
    "Dropout": lambda x, *_, ratio=0.5, seed=0: x,
    "Identity": lambda x: x,
    # activations
    "Clip": clip,
    "Elu": lambda x, *, alpha=1.0: functional.elu(x, alpha),
    "Erf": torch.erf,
    "Gelu": lambda x, *, approximate=b"none": functional.gelu(
        x, approximate=approximate.decode()
    ),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": functional.hardswish,
    "LeakyRelu": lambda x, *, alpha=0.01: functional.leaky_relu(x, alpha),
    "PRelu": p_relu,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softmax": softmax,
    "Softplus": functional.softplus,
    "Tanh": torch.tanh,
    # arithmetic
    "Abs": torch.abs,
    "Add": _binary(torch.add),
    "Ceil": torch.ceil,
    "Div": divide,
    "Equal": _binary(torch.eq),
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": _binary(torch.gt),
    "Less": _binary(torch.lt),
    "Log": torch.log,
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Mul": _binary(torch.mul),
    "Neg": torch.neg,
    "Pow": _binary(torch.pow),
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sqrt": torch.sqrt,
    "Sub": _binary(torch.sub),
    "Sum": _variadic(torch.add),
    "Where": torch.where,
    # reductions
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    # quantization
    "DequantizeLinear": dequantize_linear,
    "QuantizeLinear": quantize_linear,
    # shapes and data movement
    "Cast": cast,
    "Concat": concat,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Pad": pad,
    "Reshape": reshape,
    "Resize": resize,
    "Shape": shape_of,
    "Slice": slices,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
