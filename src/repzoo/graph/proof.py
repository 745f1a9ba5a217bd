"""Proof of a fold, node by node: every tensor of the folded graph is the tensor of that name in the training form.

A node that was not folded must be there unchanged. One that was is retraced: the old expression between its two tensors and the
new node run in float64 on Gaussian noise, borders included. The operators are written here from the ONNX specification, one tap
at a time, and share nothing with algebra.py.

The bound is derived. The only inexact step of a fold is the cast of kernel w and bias b to the graph's type (unit roundoff u), so
for x ~ N(0, 1) the error is Gaussian with a standard deviation of at most u |w|_2, shifted by at most u |b|:
    |new - old| <= u (SIGMAS |w_o|_2 + |b_o|) in each output channel o.
An expression folded in several passes was cast between them; each such cast adds u times the expression of absolute values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.errors import CertificateError

Array = npt.NDArray[np.float64]

SIGMAS = 10.0  # one value in 10^23 of a Gaussian lies beyond
FLOAT64_NOISE = 2.0**-46  # of the expression of absolute values: sums of up to some 10^4 terms in float64, with room
ROUNDOFF: dict[int, float] = {
    onnx.TensorProto.FLOAT16: 2.0**-11,
    onnx.TensorProto.BFLOAT16: 2.0**-8,
    onnx.TensorProto.DOUBLE: 2.0**-53,
}
SUBNORMAL: dict[int, float] = {onnx.TensorProto.FLOAT16: 2.0**-24, onnx.TensorProto.DOUBLE: 0.0}


@dataclass(frozen=True)
class Proof:
    """`output` was retraced; `ratio` is the largest error over its bound, at most 1."""

    output: str
    ratio: float


class _Unknown(Exception):
    """The expression holds something that no fold replaces."""


@dataclass(frozen=True)
class _Index:
    """A graph by tensor names."""

    producers: Mapping[str, onnx.NodeProto]
    constants: Mapping[str, onnx.TensorProto]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Index:
        producers = {name: node for node in graph.node for name in node.output if name}
        constants = {item.name: item for item in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                constants[node.output[0]] = node.attribute[0].t
        return cls(producers, constants)

    def behind(self, name: str) -> str:
        """The tensor that `name` merely repeats."""
        while (node := self.producers.get(name)) is not None and self._repeats(node) and name == node.output[0]:
            name = node.input[0]
        return name

    def _repeats(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            flag = self.values(node.input[2])
            return flag is not None and not flag.any()
        return node.op_type in ("Identity", "Dropout")

    def values(self, name: str) -> Array | None:
        item = self.constants.get(self.behind(name))
        return None if item is None else np.asarray(numpy_helper.to_array(item), np.float64)


def prove(before: onnx.ModelProto, after: onnx.ModelProto, written: Collection[str], seed: int = 0) -> tuple[Proof, ...]:
    """Retrace every node of `after` that `before` does not have; `written` names the tensors of all folds made on the way.

    Raises:
        CertificateError: a node is neither unchanged nor equal to what it replaces; says which and by how much.
    """
    old, new = _Index.of(before.graph), _Index.of(after.graph)
    passing = Counter(written) - Counter({name for node in after.graph.node for name in node.output})
    proofs = []
    for node in after.graph.node:
        if node.op_type == "Constant" or _is_unchanged(node, old, new):
            continue
        ratio = _retraced(node, old, new, passing, np.random.default_rng(seed))
        if not ratio <= 1:
            raise CertificateError(
                f"{node.name or node.output[0]}: the folded node differs from what it replaces by {ratio:.3g} times the rounding "
                "that its weights allow, so nothing is written; this is a defect in repzoo unless the weights are not finite"
            )
        proofs.append(Proof(node.output[0], ratio))
    return tuple(proofs)


# --- unchanged ------------------------------------------------------------------------------------------------------------


def _is_unchanged(node: onnx.NodeProto, old: _Index, new: _Index) -> bool:
    if node.op_type == "Identity" and old.behind(node.output[0]) == old.behind(node.input[0]):
        return True
    was = old.producers.get(old.behind(node.output[0]))
    if was is None or (was.op_type, was.domain, len(was.input)) != (node.op_type, node.domain, len(node.input)):
        return False
    return _settings(was) == _settings(node) and all(
        _is_same(one, two, old, new) for one, two in zip(was.input, node.input, strict=True)
    )


def _settings(node: onnx.NodeProto) -> dict[str, bytes]:
    return {item.name: item.SerializeToString(deterministic=True) for item in node.attribute}


def _is_same(was: str, name: str, old: _Index, new: _Index) -> bool:
    one, two = old.constants.get(old.behind(was)), new.constants.get(new.behind(name))
    if one is None or two is None:
        return one is two and old.behind(was) == old.behind(name)
    left, right = numpy_helper.to_array(one), numpy_helper.to_array(two)
    return left.dtype == right.dtype and np.array_equal(left, right)


# --- retraced -------------------------------------------------------------------------------------------------------------


def _retraced(node: onnx.NodeProto, old: _Index, new: _Index, passing: Mapping[str, int], random: np.random.Generator) -> float:
    """Largest error of the folded `node` over its bound; infinite when it is no fold, or when a value is not finite."""
    weight = new.values(node.input[1]) if node.op_type in ("Conv", "Gemm") else None
    if weight is None or not np.isfinite(weight).all():
        return math.inf
    source, target = old.behind(node.input[0]), old.behind(node.output[0])
    noise = random.standard_normal(_probe(node, weight))
    try:
        with np.errstate(all="ignore"):
            expected, casts = _Run(old, {source: noise}, passing).evaluate(target)
            scale, _ = _Run(old, {source: np.abs(noise)}, passing, absolute=True).evaluate(target)
            got, _ = _Run(new, {new.behind(node.input[0]): noise}).evaluate(node.output[0])
    except _Unknown:
        return math.inf
    if not (np.isfinite(expected).all() and np.isfinite(got).all() and np.isfinite(scale).all()):
        return math.inf
    if expected.shape != got.shape:
        return math.inf
    kind = new.constants[new.behind(node.input[1])].data_type
    bound = _bound(node, weight, new, kind) + (FLOAT64_NOISE + casts * ROUNDOFF.get(kind, 2.0**-24)) * scale
    error = np.abs(expected - got)
    return float(np.max(np.where(error == 0, 0.0, error / np.maximum(bound, np.finfo(float).tiny)))) if error.size else 0.0


def _probe(node: onnx.NodeProto, weight: Array) -> tuple[int, ...]:
    """Shape of the noise: taller than it is wide, and large enough for windows that touch no border."""
    if node.op_type == "Gemm":
        return 4, weight.shape[1]
    window = _Window.of(node, (weight.shape[2], weight.shape[3]))
    sides = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    rows, columns = (2 * side + 2 * stride for side, stride in zip(sides, window.strides, strict=True))
    return 1, weight.shape[1] * _int(node, "group", 1), rows + 1, columns


def _bound(node: onnx.NodeProto, weight: Array, new: _Index, kind: int) -> Array:
    bias = new.values(node.input[2]) if len(node.input) > 2 else None
    length = np.sqrt((weight**2).reshape(len(weight), -1).sum(1))
    shift = np.zeros(len(weight)) if bias is None else np.abs(bias)
    smallest = SUBNORMAL.get(kind, 2.0**-149) * math.sqrt(weight[0].size)
    bound: Array = ROUNDOFF.get(kind, 2.0**-24) * (SIGMAS * length + shift) + SIGMAS * smallest
    return bound.reshape(1, -1, *[1] * (weight.ndim - 2))


@dataclass
class _Run:
    """One evaluation in float64; `absolute` takes the magnitude of every constant, and of every difference the sum."""

    index: _Index
    known: dict[str, Array]
    passing: Mapping[str, int] = field(default_factory=dict)
    absolute: bool = False

    def evaluate(self, name: str) -> tuple[Array, int]:
        """(values of tensor `name`, how often a fold wrote a tensor on the way that a later fold took in)."""
        seen: set[str] = set()
        values = self._value(name, seen)
        return values, sum(self.passing.get(item, 0) for item in seen)

    def _value(self, name: str, seen: set[str]) -> Array:
        seen.add(name)
        name = self.index.behind(name)
        seen.add(name)
        if name not in self.known:
            self.known[name] = self._computed(name, seen)
        return self.known[name]

    def _computed(self, name: str, seen: set[str]) -> Array:
        if (constant := self.index.values(name)) is not None:
            return np.abs(constant) if self.absolute else constant
        node = self.index.producers.get(name)
        operator = _OPERATORS.get(node.op_type) if node is not None and node.domain in ("", "ai.onnx") else None
        if node is None or operator is None:
            raise _Unknown(name)
        if node.op_type == "BatchNormalization":
            return _batchnorm(node, [self._value(node.input[0], seen), *self._statistics(node)], self.absolute)
        return operator(node, [self._value(item, seen) for item in node.input if item], self.absolute)

    def _statistics(self, node: onnx.NodeProto) -> Iterator[Array]:
        for name in node.input[1:]:
            values = self.index.values(name)
            if values is None:
                raise _Unknown(name)
            yield values


# --- operators ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def of(cls, node: onnx.NodeProto, kernel: tuple[int, ...]) -> _Window:
        valid = any(item.name == "auto_pad" and item.s == b"VALID" for item in node.attribute)
        pads = (0, 0, 0, 0) if valid else _ints(node, "pads", (0, 0, 0, 0))
        return cls(kernel, _ints(node, "strides", (1, 1)), _ints(node, "dilations", (1, 1)), pads)

    def taps(self, image: Array) -> Iterator[tuple[int, int, Array]]:
        """(row, column, what the tap there sees [N, C, height, width]) of `image` [N, C, H, W]."""
        top, left, bottom, right = self.pads
        padded = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)))
        height, width = (
            (padded.shape[a + 2] - (self.kernel[a] - 1) * self.dilations[a] - 1) // self.strides[a] + 1 for a in (0, 1)
        )
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                y, x = row * self.dilations[0], column * self.dilations[1]
                rows = slice(y, y + (height - 1) * self.strides[0] + 1, self.strides[0])
                columns = slice(x, x + (width - 1) * self.strides[1] + 1, self.strides[1])
                yield row, column, padded[:, :, rows, columns]


def _conv(node: onnx.NodeProto, inputs: list[Array], _: bool) -> Array:
    image, weight, *bias = inputs
    groups = _int(node, "group", 1)
    if image.ndim != 4 or weight.ndim != 4 or image.shape[1] != weight.shape[1] * groups:
        raise _Unknown(node.name)
    total: Array = np.zeros(())
    for row, column, seen in _Window.of(node, (weight.shape[2], weight.shape[3])).taps(image):
        left = weight[:, :, row, column].reshape(groups, -1, weight.shape[1])
        product = left @ seen.reshape(len(seen), groups, weight.shape[1], -1)
        total = total + product.reshape(len(seen), len(weight), *seen.shape[2:])
    return total + bias[0][:, None, None] if bias else total


def _batchnorm(node: onnx.NodeProto, inputs: list[Array], absolute: bool) -> Array:
    image, *parameters = inputs
    shape = (-1, *[1] * (image.ndim - 2))
    gamma, beta, mean, variance = (values.reshape(shape) for values in parameters)
    epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
    deviation = np.sqrt(variance + epsilon)
    if absolute:
        return np.abs(gamma) * (image + np.abs(mean)) / deviation + np.abs(beta)
    return gamma * (image - mean) / deviation + beta


def _gemm(node: onnx.NodeProto, inputs: list[Array], absolute: bool) -> Array:
    left, right, *bias = inputs
    alpha, beta = (next((item.f for item in node.attribute if item.name == name), 1.0) for name in ("alpha", "beta"))
    alpha, beta = (abs(alpha), abs(beta)) if absolute else (alpha, beta)
    product = (left.T if _int(node, "transA", 0) else left) @ (right.T if _int(node, "transB", 0) else right)
    return alpha * product + (beta * bias[0] if bias else 0.0)


def _average_pool(node: onnx.NodeProto, inputs: list[Array], _: bool) -> Array:
    if _int(node, "ceil_mode", 0):
        raise _Unknown(node.name)
    window = _Window.of(node, _ints(node, "kernel_shape", (1, 1)))
    whole = _int(node, "count_include_pad", 0) or not any(window.pads)
    ones = np.ones_like(inputs[0])
    seen = math.prod(window.kernel) if whole else sum(part for *_, part in window.taps(ones))
    return np.asarray(sum(part for *_, part in window.taps(inputs[0])) / seen)


def _difference(_: onnx.NodeProto, inputs: list[Array], absolute: bool) -> Array:
    return inputs[0] + inputs[1] if absolute else inputs[0] - inputs[1]


_OPERATORS: dict[str, Callable[[onnx.NodeProto, list[Array], bool], Array]] = {
    "Conv": _conv,
    "BatchNormalization": _batchnorm,
    "Gemm": _gemm,
    "AveragePool": _average_pool,
    "Add": lambda _node, inputs, _absolute: inputs[0] + inputs[1],
    "Sub": _difference,
    "Mul": lambda _node, inputs, _absolute: inputs[0] * inputs[1],
    "Div": lambda _node, inputs, _absolute: inputs[0] / inputs[1],
}


def _int(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def _ints(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return next((tuple(item.ints) for item in node.attribute if item.name == name), default) or default
