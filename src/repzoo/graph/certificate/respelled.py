"""Functions that the fold wrote in other operators: are they the same?

Each is a function of one tensor. Where it is elementwise, both spellings are computed in float64
on a grid of numbers, which is dense where activation functions bend and reaches to where they are
straight. Where it is the mean over height and width, on random images. The operators are written
from the ONNX specification. Spellings may differ by the rounding of their constants only.

What is proven equal replaces the old nodes in the training form, and the folds are then proven
against that (proof.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from repzoo.errors import CertificateError
from repzoo.graph.certificate.attributes import integer, is_standard, real, text
from repzoo.graph.certificate.number_types import unit_roundoff
from repzoo.graph.certificate.training_form import TrainingForm
from repzoo.graph.certificate.window import Array
from repzoo.graph.tools.fold_result import Respelling
from repzoo.graph.tools.functions import inline_functions
from repzoo.protobuf_stream import clone

# Activation functions bend within this distance from 0. The grid goes far beyond it.
BEND = 16.0
FAR = (30.0, 1e2, 1e3, 1e4)
# Roundings of constants, and their effect: no activation function is steeper than 1.2.
ROUNDINGS = 8
SPATIAL = ("ReduceMean", "GlobalAveragePool")
IMAGES = (2, 3, 5, 4)  # the sides of a random batch


def apply_respellings(
    before: onnx.ModelProto, respellings: Sequence[Respelling]
) -> onnx.ModelProto:
    """`before` with its functions spelled anew; itself where there is nothing to spell.

    Raises:
        CertificateError: a new spelling is another function.
    """
    if not respellings:
        return before
    origin = TrainingForm.of(before)
    for item in respellings:
        _require_equal(item, origin)
    model = clone(inline_functions(before))
    by_output = {item.output: item for item in respellings}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        respelling = by_output.get(node.output[0]) if node.output else None
        if respelling is None:
            nodes.append(node)
            continue
        nodes += respelling.nodes
        model.graph.initializer.extend(respelling.constants)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _require_equal(item: Respelling, origin: TrainingForm) -> None:
    """Refuse a respelling that is another function.

    Raises:
        CertificateError: says where the two differ, or that they cannot be compared.
    """
    index = origin.index
    source = index.resolve(item.source)
    old = index.between(source, index.resolve(item.output))
    constants = {tensor.name: tensor for tensor in item.constants}
    try:
        rank = len(origin.known.shapes.get(source, ()))
        probes = _probes([*old, *item.nodes], rank)
        expected = _evaluate(old, index.constants, source, probes)
        actual = _evaluate(item.nodes, constants, item.source, probes)
        if expected.size != actual.size:
            raise _Unknown("its result has another shape")
    except _Unknown as error:
        raise CertificateError(
            f"{item.output}: it was written in other operators, and {error}, so nothing is "
            "written; this is a defect in repzoo"
        ) from None
    roundoff = unit_roundoff(_element_type(item))
    bound = ROUNDINGS * roundoff * (np.abs(probes).max() if probes.ndim == 4 else 1)
    difference = np.abs(expected - actual)
    if probes.ndim == 1:
        difference = difference / (1 + np.abs(probes))
    largest = difference.max()
    # A comparison with NaN is false, and NaN must be refused.
    if not largest <= bound:
        raise CertificateError(
            f"{item.output}: written in other operators it differs by {largest:.3g}, so "
            "nothing is written; this is a defect in repzoo"
        )


def _element_type(item: Respelling) -> int:
    """The number type of the constants; that of most graphs where there are none."""
    for tensor in item.constants:
        return int(tensor.data_type)
    return onnx.TensorProto.FLOAT


class _Unknown(Exception):
    """A spelling cannot be computed; says why in one clause."""


def _probes(nodes: Sequence[onnx.NodeProto], rank: int) -> Array:
    """Numbers [n], or random images [n, C, H, W] for a mean over height and width."""
    if any(node.op_type in SPATIAL for node in nodes):
        if rank != len(IMAGES):
            raise _Unknown("it is not known to be a function of images")
        return np.random.default_rng(0).standard_normal(IMAGES)
    near = np.linspace(-BEND, BEND, 4801)
    small = np.logspace(-8, 0, 33)
    far = np.asarray(FAR)
    return np.concatenate([near, small, -small, far, -far])


def _evaluate(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
    source: str,
    probes: Array,
) -> Array:
    """What `nodes` compute of `probes`, in float64 and in the shape of `probes` or of its means."""
    values: dict[str, Array] = {source: probes}
    for node in nodes:
        function = FUNCTIONS.get(node.op_type)
        if function is None or not is_standard(node):
            raise _Unknown(f"{node.op_type} is not known to the certificate")
        inputs: list[Array | None] = []
        for name in node.input:
            inputs.append(_operand(name, values, constants))
        with np.errstate(all="ignore"):
            values[node.output[0]] = function(node, *inputs)
    result = values[nodes[-1].output[0]]
    if result.size not in (probes.size, math.prod(probes.shape[:2])):
        raise _Unknown("it is not a function of single numbers")
    return result.reshape(-1)


def _operand(
    name: str, values: Mapping[str, Array], constants: Mapping[str, onnx.TensorProto]
) -> Array | None:
    """An input of a node; None where it is left out."""
    if not name:
        return None
    if name in values:
        return values[name]
    if name not in constants:
        raise _Unknown(f"it reads {name} too")
    stored = numpy_helper.to_array(constants[name])
    if stored.ndim and stored.size == 1 and stored.dtype.kind == "f":
        stored = stored.reshape(())
    return stored.astype(np.float64)


# --- operators, from the ONNX specification -------------------------------------------------------

Node = onnx.NodeProto
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _clip(node: Node, x: Array, low: Any = None, high: Any = None) -> Array:
    low = real(node, "min", -math.inf) if low is None else low
    high = real(node, "max", math.inf) if high is None else high
    return np.asarray(np.minimum(np.maximum(x, low), high))


def _hard_sigmoid(node: Node, x: Array) -> Array:
    return np.clip(real(node, "alpha", 0.2) * x + real(node, "beta", 0.5), 0.0, 1.0)


def _sigmoid(x: Array) -> Array:
    return np.asarray((1 + np.tanh(x / 2)) / 2)


def _gelu(node: Node, x: Array) -> Array:
    if text(node, "approximate", "none") == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return np.asarray(x / 2 * (1 + np.tanh(inner)))
    return np.asarray(x / 2 * (1 + _erf(x / math.sqrt(2))))


def _leaky_relu(node: Node, x: Array) -> Array:
    return np.where(x < 0, real(node, "alpha", 0.01) * x, x)


def _reduce_mean(node: Node, x: Array, axes: Array | None = None) -> Array:
    if axes is None:
        listed = [item for item in node.attribute if item.name == "axes"]
        if not listed:
            raise _Unknown("its mean is over all axes")
        axes = np.asarray(listed[0].ints)
    keeps = bool(integer(node, "keepdims", 1))
    mean = x.mean(tuple(int(axis) for axis in axes), keepdims=keeps)
    if mean.shape != (*x.shape[:2], 1, 1):
        raise _Unknown("its mean is not that of a GlobalAveragePool")
    return np.asarray(mean)


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Add": lambda _, a, b: a + b,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
    "Div": lambda _, a, b: a / b,
    "Pow": lambda _, a, b: a**b,
    "Max": lambda _, *inputs: functools.reduce(np.maximum, inputs),
    "Min": lambda _, *inputs: functools.reduce(np.minimum, inputs),
    "Erf": lambda _, x: _erf(x),
    "Tanh": lambda _, x: np.tanh(x),
    "Sigmoid": lambda _, x: _sigmoid(x),
    "Relu": lambda _, x: np.maximum(x, 0),
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Gelu": _gelu,
    "Swish": lambda node, x: x * _sigmoid(real(node, "alpha", 1.0) * x),
    "LeakyRelu": _leaky_relu,
    "PRelu": lambda _, x, slope: np.where(x < 0, slope * x, x),
    "ReduceMean": _reduce_mean,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdims=True),
}
