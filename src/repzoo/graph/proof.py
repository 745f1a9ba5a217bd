"""Proof of a fold, node by node: every tensor of the folded graph is the tensor of that name in the training form.

A node that was not folded must be there unchanged. One that was is retraced: the old expression between its two tensors and the
new node run in float64 on PROBES, borders included: Gaussian noise, the same far from zero, the same very loud, a constant, and a
few spikes. The operators are written here from the ONNX specification and share nothing with algebra.py.

The bound is derived. The only inexact step of a fold is the cast of kernel w and bias b to the graph's type (unit roundoff u), so
for every x, in each value of output channel o,
    |new - old| <= u (|w_o| * |x| + |b_o|)
and for x ~ N(0, s), where the error is Gaussian with a standard deviation of at most u s |w_o|_2, also
    |new - old| <= u (SIGMAS s |w_o|_2 + |b_o|).
The smaller of the two holds. An expression folded in several passes was cast between them; each such cast adds u times the
expression of absolute values.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.errors import CertificateError
from repzoo.graph.constants import settled

Array = npt.NDArray[np.float64]
Stored = npt.NDArray[Any]

SIGMAS = 10.0  # one value in 10^23 of a Gaussian lies beyond
FLOAT64_NOISE = 2.0**-46  # of the expression of absolute values: sums of up to some 10^4 terms in float64, with room
ROUNDOFF: dict[int, float] = {
    onnx.TensorProto.FLOAT16: 2.0**-11,
    onnx.TensorProto.BFLOAT16: 2.0**-8,
    onnx.TensorProto.DOUBLE: 2.0**-53,
}
SUBNORMAL: dict[int, float] = {onnx.TensorProto.FLOAT16: 2.0**-24, onnx.TensorProto.DOUBLE: 0.0}


BLOCK = 2**20  # weights taken to float64 at once
LOUD, FAR, SPARSE = 1e4, 1e3, 1 / 16  # standard deviation; mean; share of spikes

PROBES = ("noise", "large mean", "large amplitude", "constant", "sparse")


@dataclass(frozen=True)
class Proof:
    """`output` was retraced on every probe.

    max_abs_error  largest error, in units of the tensor
    max_rel_error  largest error on one probe over the tensor's largest magnitude there
    ratio          largest error over its bound, at most 1
    bound          what the error may be where `ratio` was found
    probe          the one of PROBES that found it
    """

    output: str
    max_abs_error: float
    max_rel_error: float
    ratio: float
    bound: float
    probe: str


class _Unknown(Exception):
    """The expression holds something that no fold replaces."""


@dataclass(frozen=True)
class _Index:
    """A graph by tensor names."""

    producers: Mapping[str, onnx.NodeProto]
    constants: Mapping[str, onnx.TensorProto]

    @classmethod
    def of(cls, graph: onnx.GraphProto, computed: Mapping[str, onnx.TensorProto] | None = None) -> _Index:
        """`computed`: the tensors that nodes compute from constants alone."""
        producers = {name: node for node in graph.node for name in node.output if name}
        constants = {item.name: item for item in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                constants[node.output[0]] = node.attribute[0].t
        return cls(producers, constants | dict(computed or {}))

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
        stored = self.stored(name)
        return None if stored is None else np.asarray(stored, np.float64)

    def stored(self, name: str) -> Stored | None:
        """As `values`, of the type in the file."""
        item = self.constants.get(self.behind(name))
        return None if item is None else numpy_helper.to_array(item)


def prove(before: onnx.ModelProto, after: onnx.ModelProto, written: Collection[str], seed: int = 0) -> tuple[Proof, ...]:
    """Retrace every node of `after` that `before` does not have; `written` names the tensors of all folds made on the way.

    Raises:
        CertificateError: a node is neither unchanged nor equal to what it replaces; says which and by how much.
    """
    old, new = _Index.of(before.graph, settled(before)), _Index.of(after.graph)
    passing = Counter(written) - Counter({name for node in after.graph.node for name in node.output})
    proofs = []
    for node in after.graph.node:
        if node.op_type == "Constant" or _is_unchanged(node, old, new):
            continue
        proof = _retraced(node, old, new, passing, np.random.default_rng(seed))
        ratio = math.inf if proof is None else proof.ratio
        if proof is None or not ratio <= 1:
            raise CertificateError(
                f"{node.name or node.output[0]}: the folded node differs from what it replaces by {ratio:.3g} times the rounding "
                "that its weights allow, so nothing is written; this is a defect in repzoo unless the weights are not finite"
            )
        proofs.append(proof)
    return tuple(proofs)


# --- unchanged ------------------------------------------------------------------------------------------------------------


def _is_unchanged(node: onnx.NodeProto, old: _Index, new: _Index) -> bool:
    if node.op_type == "Identity" and old.behind(node.output[0]) == old.behind(node.input[0]):
        return True
    was = old.producers.get(old.behind(node.output[0]))
    if was is None or (was.op_type, was.domain) != (node.op_type, node.domain):
        return False
    pairs = list(itertools.zip_longest(_read(was), _read(node), fillvalue=""))
    return _settings(was, old) == _settings(node, new) and all(_is_same(one, two, old, new) for one, two in pairs)


def _read(node: onnx.NodeProto) -> list[str]:
    """Its inputs without the omitted ones at the end."""
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    return names


def _settings(node: onnx.NodeProto, index: _Index) -> dict[str, bytes]:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for item in copy.attribute:
        for graph in (item.g, *item.graphs) if item.HasField("g") else item.graphs:
            _plain(graph, index, {})
    return {item.name: item.SerializeToString(deterministic=True) for item in copy.attribute}


def _plain(graph: onnx.GraphProto, index: _Index, outer: Mapping[str, str]) -> None:
    """A subgraph as its arithmetic: no notes, and the outer tensors that it reads by origin and, where constant, by value."""
    own = (
        [item.name for item in graph.input]
        + [item.name for item in graph.initializer]
        + [name for node in graph.node for name in node.output]
    )
    local = {**outer, **{name: name for name in own}}
    for item in (*graph.input, *graph.output):
        item.ClearField("type")
    graph.ClearField("value_info")
    for node in graph.node:
        node.ClearField("doc_string")
        if not node.domain:
            node.ClearField("domain")
        for place, name in enumerate(node.input):
            node.input[place] = local.get(name) or _origin(name, index)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _plain(inner, index, local)


def _origin(name: str, index: _Index) -> str:
    held = index.constants.get(index.behind(name)) if name else None
    if held is None:
        return index.behind(name)
    values = numpy_helper.to_array(held)
    return f"{values.dtype} {values.shape} {hashlib.sha256(values.tobytes()).hexdigest()}"


def _is_same(was: str, name: str, old: _Index, new: _Index) -> bool:
    one, two = old.constants.get(old.behind(was)), new.constants.get(new.behind(name))
    if one is None or two is None:
        return one is two and old.behind(was) == old.behind(name)
    left, right = numpy_helper.to_array(one), numpy_helper.to_array(two)
    return left.dtype == right.dtype and np.array_equal(left, right)


# --- retraced -------------------------------------------------------------------------------------------------------------


def _retraced(
    node: onnx.NodeProto, old: _Index, new: _Index, passing: Mapping[str, int], random: np.random.Generator
) -> Proof | None:
    """The folded `node` against what it replaces; None when it is no fold, or when a value is not finite."""
    weight = _weight(node, new)
    if weight is None or not np.isfinite(weight).all():
        return None
    source, target, own = old.behind(node.input[0]), old.behind(node.output[0]), new.behind(node.input[0])
    probes = _probes(_sides(node, weight), random)
    loudness = np.abs(probes)
    try:
        with np.errstate(all="ignore"):
            expected, casts = _Run(old, {source: probes}, passing).evaluate(target)
            scale, _ = _Run(old, {source: loudness}, passing, absolute=True).evaluate(target)
            got, _ = _Run(new, {own: probes}).evaluate(node.output[0])
            reach, _ = _Run(new, {own: loudness}, absolute=True).evaluate(node.output[0])
    except _Unknown:
        return None
    if expected.shape != got.shape or not all(np.isfinite(values).all() for values in (expected, got, scale)):
        return None
    kind = new.constants[new.behind(node.input[1])].data_type
    roundoff = ROUNDOFF.get(kind, 2.0**-24)
    bound = np.minimum(roundoff * reach, _gaussian(node, weight, new, roundoff)) + _underflow(weight, kind, loudness)
    return _proof(node.output[0], expected, np.abs(expected - got), bound + (FLOAT64_NOISE + casts * roundoff) * scale)


def _proof(output: str, expected: Array, error: Array, bound: Array) -> Proof:
    """All [PROBES * images, ...]."""
    ratio = np.where(error == 0, 0.0, error / np.maximum(bound, np.finfo(float).tiny))
    worst = int(ratio.argmax())
    largest = error.reshape(len(PROBES), -1).max(1)
    magnitude = np.abs(expected).reshape(len(PROBES), -1).max(1)
    relative = np.divide(largest, magnitude, out=np.zeros(len(PROBES)), where=largest > 0)
    return Proof(
        output=output,
        max_abs_error=_short(largest.max()),
        max_rel_error=_short(relative.max()),
        ratio=_short(ratio.flat[worst]),
        bound=_short(np.broadcast_to(bound, ratio.shape).flat[worst]),
        probe=PROBES[worst * len(PROBES) // ratio.size],
    )


def _short(value: float) -> float:
    """Four digits: a certificate lives in the model's metadata."""
    return float(f"{value:.4g}")


def _weight(node: onnx.NodeProto, index: _Index) -> Stored | None:
    """[outputs, inputs per group, ...] of a node that a fold may write."""
    weight = index.stored(node.input[1]) if node.op_type in ("Conv", "Gemm") else None
    turned = node.op_type == "Gemm" and not _int(node, "transB", 0)
    return weight.T if weight is not None and turned else weight


def _sides(node: onnx.NodeProto, weight: Stored) -> tuple[int, ...]:
    """Shape of one probe: taller than it is wide, with room for windows that touch one border, the other, and none."""
    if weight.ndim == 2:
        return 4, weight.shape[1]
    window = _Window.of(node, (weight.shape[2], weight.shape[3]))
    sides = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    rows, columns = (side + stride for side, stride in zip(sides, window.strides, strict=True))
    return 1, weight.shape[1] * _int(node, "group", 1), rows + 1, columns


def _probes(sides: tuple[int, ...], random: np.random.Generator) -> Array:
    """[PROBES * images, ...]"""
    noise = random.standard_normal(sides)
    spikes = random.choice([-1.0, 1.0], sides) * (random.random(sides) < SPARSE)
    spikes.flat[random.integers(spikes.size)] = 1.0
    return np.concatenate([noise, FAR + noise, LOUD * noise, np.ones(sides), spikes])


def _gaussian(node: onnx.NodeProto, weight: Stored, new: _Index, roundoff: float) -> Array:
    """The Gaussian bound, infinite on probes that are not Gaussian; shaped to broadcast with the output."""
    bias = new.values(node.input[2]) if len(node.input) > 2 else None
    rows = weight.reshape(len(weight), -1)
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    shift = np.zeros(len(weight)) if bias is None else np.abs(bias)
    images = 4 if weight.ndim == 2 else 1
    deviations = np.repeat([1.0, math.inf, LOUD, math.inf, math.inf], images)[:, None]
    bound: Array = roundoff * (SIGMAS * deviations * np.maximum(length, np.finfo(float).tiny) + shift)
    return bound.reshape(*bound.shape, *[1] * (weight.ndim - 2))


def _underflow(weight: Stored, kind: int, loudness: Array) -> Array:
    """What values below the type's normal range add: half the smallest number for each weight."""
    loudest = loudness.reshape(len(loudness), -1).max(1)
    bound: Array = SUBNORMAL.get(kind, 2.0**-149) * (weight[0].size * loudest + 1)
    return bound.reshape(-1, *[1] * (weight.ndim - 1))


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
        if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in {**_OPERATORS, **_MOVES}:
            raise _Unknown(name)
        if node.op_type == "BatchNormalization":
            return _batchnorm(node, [self._value(node.input[0], seen), *self._statistics(node)], self.absolute)
        if node.op_type in ("Conv", "Gemm") and (weight := self.index.stored(node.input[1])) is not None:
            bias = [self._value(item, seen) for item in node.input[2:] if item]
            return _OPERATORS[node.op_type](node, [self._value(node.input[0], seen), weight, *bias], self.absolute)
        if node.op_type in _MOVES:
            settings = list(self._statistics(node))
            return _MOVES[node.op_type](node, self._value(node.input[0], seen), settings, list(node.output).index(name))
        return _OPERATORS[node.op_type](node, [self._value(item, seen) for item in node.input if item], self.absolute)

    def _statistics(self, node: onnx.NodeProto) -> Iterator[Array]:
        for name in node.input[1:]:
            values = self.index.values(name) if name else np.zeros(0)
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


def _conv(node: onnx.NodeProto, inputs: list[Stored], absolute: bool) -> Array:
    image, weight, *bias = inputs
    groups = _int(node, "group", 1)
    if image.ndim != 4 or weight.ndim != 4 or image.shape[1] != weight.shape[1] * groups or len(weight) % groups:
        raise _Unknown(node.name)
    window = _Window.of(node, (weight.shape[2], weight.shape[3]))
    seen = np.stack([part for *_, part in window.taps(image)], 2).swapaxes(0, 1)  # [C, N, taps, height, width]
    columns = seen.swapaxes(1, 2).reshape(groups, -1, len(image) * seen.shape[3] * seen.shape[4])
    product = _product(weight.reshape(groups, len(weight) // groups, -1), columns, absolute)
    total = product.reshape(len(weight), len(image), *seen.shape[3:]).swapaxes(0, 1)
    return total + bias[0][:, None, None] if bias else total


def _product(weight: Stored, columns: Array, absolute: bool) -> Array:
    """weight [G, O, K] (its magnitude where `absolute`) times columns [G, K, P] in float64, without a float64 copy of it all."""
    groups, outputs, taps = weight.shape
    product = np.empty((groups, outputs, columns.shape[2]))
    rows = max(1, BLOCK // (groups * taps))
    for start in range(0, outputs, rows):
        part = weight[:, start : start + rows].astype(np.float64)
        np.matmul(np.abs(part, out=part) if absolute else part, columns, out=product[:, start : start + rows])
    return product


def _batchnorm(node: onnx.NodeProto, inputs: list[Array], absolute: bool) -> Array:
    image, *parameters = inputs
    shape = (-1, *[1] * (image.ndim - 2))
    gamma, beta, mean, variance = (values.reshape(shape) for values in parameters)
    epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
    deviation = np.sqrt(variance + epsilon)
    if absolute:
        return np.abs(gamma) * (image + np.abs(mean)) / deviation + np.abs(beta)
    return gamma * (image - mean) / deviation + beta


def _gemm(node: onnx.NodeProto, inputs: list[Stored], absolute: bool) -> Array:
    left, right, *bias = inputs
    if left.ndim != 2 or right.ndim != 2:
        raise _Unknown(node.name)
    alpha, beta = (next((item.f for item in node.attribute if item.name == name), 1.0) for name in ("alpha", "beta"))
    alpha, beta = (abs(alpha), abs(beta)) if absolute else (alpha, beta)
    rows = right if _int(node, "transB", 0) else right.T
    product: Array = _product(rows[None], (left if _int(node, "transA", 0) else left.T)[None], absolute)[0].T
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


def _concat(node: onnx.NodeProto, inputs: list[Array], _: bool) -> Array:
    return np.concatenate(inputs, _int(node, "axis", 1))


def _pad(node: onnx.NodeProto, image: Array, settings: list[Array], _: int) -> Array:
    """`pads` lists every axis's beginning, then every axis's end; an attribute before opset 11."""
    empty = np.zeros(0)
    sizes, value, axes = [*settings, empty, empty, empty][:3]
    sizes = sizes if sizes.size else np.asarray(_ints(node, "pads", ()), float)
    widths = [(0, 0)] * image.ndim
    for axis, (before, after) in zip(axes if axes.size else range(image.ndim), sizes.reshape(2, -1).T, strict=True):
        widths[int(axis)] = int(before), int(after)
    constant = float(value.reshape(-1)[0]) if value.size else next((item.f for item in node.attribute if item.name == "value"), 0.0)
    if any(item.name == "mode" and item.s != b"constant" for item in node.attribute):
        raise _Unknown(node.name)
    return np.pad(image, widths, constant_values=constant)


def _split(node: onnx.NodeProto, image: Array, settings: list[Array], output: int) -> Array:
    """Sizes are given, or equal with a smaller last one."""
    axis = _int(node, "axis", 0)
    each = -(-image.shape[axis] // len(node.output))
    sizes = [int(size) for size in (settings[0] if settings else _ints(node, "split", (each,) * (len(node.output) - 1)))]
    return np.split(image, np.cumsum(sizes)[: len(node.output) - 1], axis)[output]


def _slice(node: onnx.NodeProto, image: Array, settings: list[Array], _: int) -> Array:
    empty = np.zeros(0)
    given = [*settings, empty, empty, empty, empty][:4]
    starts, ends, axes = (item if item.size else np.asarray(_ints(node, name, ()), float)
                          for item, name in zip(given, ("starts", "ends", "axes"), strict=False))  # fmt: skip
    cut = [slice(None)] * image.ndim
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        step = int(given[3][index]) if given[3].size else 1
        cut[int(axes[index]) if axes.size else index] = slice(int(start), int(end), step)
    return image[tuple(cut)]


_MOVES: dict[str, Callable[[onnx.NodeProto, Array, list[Array], int], Array]] = {"Pad": _pad, "Split": _split, "Slice": _slice}
_OPERATORS: dict[str, Callable[[onnx.NodeProto, list[Stored], bool], Array]] = {
    "Conv": _conv,
    "BatchNormalization": _batchnorm,
    "Gemm": _gemm,
    "AveragePool": _average_pool,
    "MatMul": lambda _node, inputs, _absolute: inputs[0] @ inputs[1],
    "Concat": _concat,
    "Add": lambda _node, inputs, _absolute: inputs[0] + inputs[1],
    "Sub": _difference,
    "Mul": lambda _node, inputs, _absolute: inputs[0] * inputs[1],
    "Div": lambda _node, inputs, _absolute: inputs[0] / inputs[1],
}


def _int(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def _ints(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return next((tuple(item.ints) for item in node.attribute if item.name == name), default) or default
