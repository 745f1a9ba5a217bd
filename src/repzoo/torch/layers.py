"""The torch layers that the fold understands: each as an ONNX node, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn
from torch.nn import functional

PASS_THROUGH = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
)


@dataclass(frozen=True)
class OnnxNode:
    """An ONNX node of one input; `weights` by name, in the order of its further inputs."""

    op_type: str
    attributes: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)


def _conv(layer: nn.Module, _: ir.Value) -> OnnxNode | None:
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    attributes = {
        "strides": layer.stride,
        "pads": layer.padding * 2,
        "dilations": layer.dilation,
        "group": layer.groups,
    }
    return OnnxNode("Conv", attributes, _weight_and_bias(layer))


def _linear(layer: nn.Module, source: ir.Value) -> OnnxNode | None:
    assert isinstance(layer, nn.Linear)
    if source.shape is None or len(source.shape) != 2:
        return None
    return OnnxNode("Gemm", {"transB": 1}, _weight_and_bias(layer))


def _weight_and_bias(layer: nn.Conv2d | nn.Linear) -> dict[str, torch.Tensor]:
    weights = {"weight": layer.weight.data}
    if layer.bias is not None:
        weights["bias"] = layer.bias.data
    return weights


def _batch_norm(layer: nn.Module, _: ir.Value) -> OnnxNode | None:
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    mean, variance = layer.running_mean, layer.running_var
    if mean is None or variance is None:
        return None
    weights = {
        "weight": layer.weight.data if layer.affine else torch.ones_like(mean),
        "bias": layer.bias.data if layer.affine else torch.zeros_like(mean),
        "running_mean": mean,
        "running_var": variance,
    }
    return OnnxNode("BatchNormalization", {"epsilon": layer.eps}, weights)


def _average_pool(layer: nn.Module, _: ir.Value) -> OnnxNode | None:
    assert isinstance(layer, nn.AvgPool2d)
    if layer.divisor_override is not None:
        return None
    attributes = {
        "kernel_shape": _pair(layer.kernel_size),
        "strides": _pair(layer.stride),
        "pads": _pair(layer.padding) * 2,
        "ceil_mode": int(layer.ceil_mode),
        "count_include_pad": int(layer.count_include_pad),
    }
    return OnnxNode("AveragePool", attributes)


def _functional_batch_norm(
    node: fx.Node, values: Mapping[fx.Node, ir.Value]
) -> ir.Node | None:
    """torch.nn.functional.batch_norm, whose parameters are tensors of the graph."""
    names = (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    )
    arguments: dict[str, Any] = {
        **dict(zip(names, node.args, strict=False)),
        **node.kwargs,
    }
    if arguments.get("training"):
        return None
    inputs = []
    for name in ("input", "weight", "bias", "running_mean", "running_var"):
        argument = arguments.get(name)
        if not isinstance(argument, fx.Node):
            return None
        inputs.append(values[argument])
    attributes = {"epsilon": float(arguments.get("eps", 1e-5))}
    return ir.node("BatchNormalization", inputs, attributes=attributes, name=node.name)


MODULES: dict[type[nn.Module], Callable[[nn.Module, ir.Value], OnnxNode | None]] = {
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.SyncBatchNorm: _batch_norm,
    nn.Linear: _linear,
    nn.AvgPool2d: _average_pool,
}
FUNCTIONS: dict[
    Any, Callable[[fx.Node, Mapping[fx.Node, ir.Value]], ir.Node | None]
] = {functional.batch_norm: _functional_batch_norm}


def layer_from_ir(node: ir.Node) -> nn.Module:
    """The torch layer of a Conv or Gemm that the fold wrote."""
    weight, *bias = (
        torch.from_numpy(np.array(value.const_value.numpy()))
        for value in node.inputs[1:]
        if value is not None and value.const_value is not None
    )
    state = {"weight": weight, **dict(zip(("bias",), bias, strict=False))}
    if node.op_type == "Gemm":
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs, bool(bias), dtype=weight.dtype)
        linear.load_state_dict(state)
        return linear
    conv = _conv2d(node, weight, bool(bias))
    conv.load_state_dict(state)
    top, left, bottom, right = _ints(node, "pads")
    if (top, left) == (bottom, right):
        return conv
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)


def _conv2d(node: ir.Node, weight: torch.Tensor, bias: bool) -> nn.Conv2d:
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
    return tuple(node.attributes.get_ints(name, ()) or ())


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
