"""The torch layers and functions that the fold understands: each as an ONNX node, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

PASS_THROUGH = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
)
ATEN = torch.ops.aten

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class OnnxNode:
    """An ONNX node of one input; `weights` by name, in the order of its further inputs."""

    op_type: str
    attributes: Mapping[str, Any]
    weights: Mapping[str, Tensor] = field(default_factory=dict)


# A node, or a sentence that says why there is none; "" where nobody would expect one.
Description = OnnxNode | str


# --- to ONNX ------------------------------------------------------------------------------------


def _convolution(arguments: Arguments, rank: int) -> Description:
    weight = arguments["weight"]
    if not isinstance(weight, Tensor):
        return "its weight is computed from the input"
    if weight.dim() != 4 or rank != 4:
        return "only convolutions of images in two dimensions fold"
    strides = _pair(arguments.get("stride", 1))
    dilations = _pair(arguments.get("dilation", 1))
    attributes = {
        "strides": strides,
        "pads": _pads(arguments.get("padding", 0), weight.shape[2:], dilations),
        "dilations": dilations,
        "group": arguments.get("groups", 1),
    }
    return OnnxNode("Conv", attributes, _weight_and_bias(weight, arguments.get("bias")))


def _pads(padding: Any, kernel: Any, dilations: tuple[int, ...]) -> tuple[int, ...]:
    """ONNX's pads: top, left, bottom, right."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding != "same":
        return _pair(padding) * 2
    # torch.nn.modules.conv._ConvNd: the larger half comes last.
    before = []
    after = []
    for side, dilation in zip(kernel, dilations, strict=True):
        total = dilation * (side - 1)
        before.append(total // 2)
        after.append(total - total // 2)
    return (*before, *after)


def _linear(arguments: Arguments, rank: int) -> Description:
    # Gemm takes [N, C] alone; torch's linear layer takes any axes before the channels.
    if rank != 2 or not isinstance(arguments["weight"], Tensor):
        return ""
    weights = _weight_and_bias(arguments["weight"], arguments.get("bias"))
    return OnnxNode("Gemm", {"transB": 1}, weights)


def _weight_and_bias(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    weights = {"weight": weight}
    if bias is not None:
        weights["bias"] = bias
    return weights


def _batch_norm(arguments: Arguments, rank: int) -> Description:
    mean = arguments.get("running_mean")
    variance = arguments.get("running_var")
    if arguments.get("training"):
        return "it normalizes with the statistics of each batch; call eval() before the export"
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return "it has no running statistics, so its scale depends on the input"
    if rank not in (2, 4):
        return "only BatchNorms of [N, C] and [N, C, H, W] fold"
    scale = arguments.get("weight")
    shift = arguments.get("bias")
    weights = {
        "weight": torch.ones_like(mean) if scale is None else scale,
        "bias": torch.zeros_like(mean) if shift is None else shift,
        "running_mean": mean,
        "running_var": variance,
    }
    epsilon = float(arguments.get("eps", 1e-5))
    return OnnxNode("BatchNormalization", {"epsilon": epsilon}, weights)


def _average_pool(arguments: Arguments, rank: int) -> Description:
    if arguments.get("divisor_override") is not None or rank != 4:
        return ""
    kernel = _pair(arguments["kernel_size"])
    attributes = {
        "kernel_shape": kernel,
        # torch takes an absent stride for that of the kernel.
        "strides": _pair(arguments.get("stride") or kernel),
        "pads": _pair(arguments.get("padding", 0)) * 2,
        "ceil_mode": int(arguments.get("ceil_mode", False)),
        "count_include_pad": int(arguments.get("count_include_pad", True)),
    }
    return OnnxNode("AveragePool", attributes)


def _pair(value: Any) -> tuple[int, ...]:
    """(height, width) from what torch takes for it: a number, or a sequence of one or two."""
    if isinstance(value, int):
        return (value, value)
    items = tuple(value)
    return items * 2 if len(items) == 1 else items


# (arguments by torch's names, axes of the input): the node
Converter = Callable[[Arguments, int], Description]

MODULES: dict[type[nn.Module], Converter] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.SyncBatchNorm: _batch_norm,
    nn.Linear: _linear,
    nn.AvgPool2d: _average_pool,
}
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_POOL = (
    "input",
    "kernel_size",
    "stride",
    "padding",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
)
_NORM = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)
_ATEN_NORM = (
    "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps",
)  # fmt: skip
# Functions, and the names of their arguments by position.
FUNCTIONS: dict[Any, tuple[Converter, tuple[str, ...]]] = {
    functional.conv2d: (_convolution, _CONV),
    ATEN.conv2d.default: (_convolution, _CONV),
    ATEN.conv2d.padding: (_convolution, _CONV),
    functional.linear: (_linear, _CONV[:3]),
    ATEN.linear.default: (_linear, _CONV[:3]),
    functional.batch_norm: (_batch_norm, _NORM),
    ATEN.batch_norm.default: (_batch_norm, _ATEN_NORM),
    functional.avg_pool2d: (_average_pool, _POOL),
    ATEN.avg_pool2d.default: (_average_pool, _POOL),
}


def is_leaf(layer: nn.Module) -> bool:
    """Whether tracing stops at `layer`.

    A convolution that computes its weight before it is called is traced through.
    """
    for kind in (nn.Conv2d, nn.Linear):
        if isinstance(layer, kind):
            return type(layer).forward is kind.forward
    return can_absorb_norm(layer)


def can_absorb_norm(layer: nn.Module) -> bool:
    """Whether it is a convolution that folds with the BatchNorm after it, and with nothing else.

    Its output is linear in its weight and bias, whatever its padding does.
    """
    kind = type(layer)
    if kind is nn.Conv2d:
        return layer.padding_mode != "zeros"
    if kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        # torch's function scales the wrong axis where there are groups.
        return bool(layer.groups == 1)
    # timm's Conv2dSame has the padding of TensorFlow, which follows the input size.
    return kind in (nn.Conv1d, nn.Conv3d) or kind.__name__ == "Conv2dSame"


def describe_layer(layer: nn.Module, rank: int) -> Description:
    """`layer`, called with an input of `rank` axes, as an ONNX node."""
    convert = MODULES.get(type(layer))
    if convert is not None and not can_absorb_norm(layer):
        values = {**vars(layer), **layer._parameters, **layer._buffers}
        values.pop("training")
        return convert(values, rank)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return f"a {_title(layer)} folds only with a BatchNorm after it that reads it alone"
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        return f"a {type(layer).__name__} is none of the norms that fold"
    return ""


def _title(layer: nn.Module) -> str:
    mode = getattr(layer, "padding_mode", "zeros")
    title = type(layer).__name__
    if mode == "zeros":
        return title
    return f"{title} with padding_mode={mode!r}"


def describe_call(
    target: Any, arguments: Mapping[int | str, Any], rank: int
) -> Description:
    """A call of the function `target` as an ONNX node; arguments by position or by name."""
    if target not in FUNCTIONS:
        return ""
    convert, names = FUNCTIONS[target]
    by_name: dict[str, Any] = {}
    for key, value in arguments.items():
        if isinstance(key, str):
            by_name[key] = value
        elif key < len(names):
            by_name[names[key]] = value
        # Arguments after these, such as cudnn_enabled, change nothing that the fold computes.
    return convert(by_name, rank)


# --- from ONNX ----------------------------------------------------------------------------------


def layer_from_ir(node: ir.Node) -> nn.Module:
    """The torch layer of a Conv or Gemm that the fold wrote."""
    state: dict[str, Tensor] = {}
    for name, value in zip(("weight", "bias"), node.inputs[1:], strict=False):
        if value is not None and value.const_value is not None:
            state[name] = torch.from_numpy(np.array(value.const_value.numpy()))
    weight = state["weight"]
    if node.op_type == "Gemm":
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs, "bias" in state, dtype=weight.dtype)
        linear.load_state_dict(state)
        return linear
    conv = _conv2d(node, weight, "bias" in state)
    conv.load_state_dict(state)
    top, left, bottom, right = _ints(node, "pads")
    if (top, left) == (bottom, right):
        return conv
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)


def _conv2d(node: ir.Node, weight: Tensor, bias: bool) -> nn.Conv2d:
    """A convolution of that shape. It pads only where it pads alike on both sides, as torch can."""
    groups = node.attributes.get_int("group", 1)
    pads = _ints(node, "pads")
    options: dict[str, Any] = {
        "kernel_size": tuple(weight.shape[2:]),
        "stride": _ints(node, "strides"),
        "padding": pads[:2] if pads[:2] == pads[2:] else 0,
        "dilation": _ints(node, "dilations"),
        "groups": groups,
        "bias": bias,
        "dtype": weight.dtype,
    }
    return nn.Conv2d(weight.shape[1] * groups, weight.shape[0], **options)


def _ints(node: ir.Node, name: str) -> tuple[int, ...]:
    values = node.attributes.get_ints(name, ())
    return tuple(values or ())
