"""ONNX operators as torch functions: tensors first, attributes as keywords.

Those that move elements are in movement.py, convolutions and pools in windows.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from repzoo.torch import movement
from repzoo.torch.movement import integers
from repzoo.torch.windows import Ints, average_pool, conv, max_pool

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
        chosen = integers(axes if axes_input is None else axes_input)
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
    "Cast": movement.cast,
    "Concat": movement.concat,
    "Constant": movement.constant,
    "ConstantOfShape": movement.constant_of_shape,
    "Expand": movement.expand,
    "Flatten": movement.flatten,
    "Gather": movement.gather,
    "Pad": movement.pad,
    "Reshape": movement.reshape,
    "Resize": movement.resize,
    "Shape": movement.shape_of,
    "Slice": movement.slices,
    "Split": movement.split,
    "Squeeze": movement.squeeze,
    "Transpose": movement.transpose,
    "Unsqueeze": movement.unsqueeze,
}
