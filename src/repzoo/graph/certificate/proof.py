"""Proof of a fold, node by node: every tensor of the folded graph is the tensor of that name in the training form.

A node that was not folded must be there unchanged. One that was is retraced: the old expression between its two tensors and the
new node run in float64 on PROBES, borders included: Gaussian noise, the same far from zero, the same very loud, a constant, and a
few spikes. The operators (operators.py) are written from the ONNX specification and share nothing with algebra.py.

The bound is derived. The only inexact step of a fold is the cast of kernel w and bias b to the graph's type (unit roundoff u), so
for every x, in each value of output channel o,
    |new - old| <= u (|w_o| * |x| + |b_o|)
and for x ~ N(0, s), where the error is Gaussian with a standard deviation of at most u s |w_o|_2, also
    |new - old| <= u (SIGMAS s |w_o|_2 + |b_o|).
The smaller of the two holds. An expression folded in several passes was cast between them; each such cast adds u times the
expression of absolute values. So do the roundings in a border of constants (borders.py), as large as what they border.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from repzoo.errors import CertificateError
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.operators import (
    MOVES,
    OPERATORS,
    Array,
    Stored,
    Unknown,
    Window,
    batchnorm,
    integer,
    scatter,
)
from repzoo.graph.tools.constant_folding import KnownValues, at_batch_size, known_values
from repzoo.graph.tools.pieces import inline_functions, without_weights

SIGMAS = 10.0  # one value in 10^23 of a Gaussian lies beyond
FLOAT64_NOISE = (
    2.0**-46
)  # of the expression of absolute values: sums of up to some 10^4 terms in float64, with room
BORDER_ROUNDINGS = 8  # in a constant that a BatchNorm's four gave
ROUNDOFF: dict[int, float] = {
    onnx.TensorProto.FLOAT16: 2.0**-11,
    onnx.TensorProto.BFLOAT16: 2.0**-8,
    onnx.TensorProto.DOUBLE: 2.0**-53,
}
SUBNORMAL: dict[int, float] = {onnx.TensorProto.FLOAT16: 2.0**-24, onnx.TensorProto.DOUBLE: 0.0}

OPEN_SIDE = 3  # of a probe, where nothing says how long it is
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


@dataclass(frozen=True)
class TrainingForm:
    """The training form with what a retrace needs to know of its sizes.

    at     its index for one image; other than `index` only where a node writes by index, which is where sizes are values
    sides  of tensors, for paddings and writes that depend on them
    """

    index: TensorIndex
    at: TensorIndex
    sides: Mapping[str, tuple[int, ...]]
    model: onnx.ModelProto

    @classmethod
    def of(cls, model: onnx.ModelProto) -> TrainingForm:
        """Of a model with or without functions of its own."""
        model = inline_functions(model)
        types = _types_for_casts(model)
        known = known_values(model)
        index = TensorIndex.of(model.graph, known, types)
        if not any(node.op_type == "ScatterND" for node in model.graph.node):
            return cls(index, index, _sides_for_padding(model), model)
        fixed = at_batch_size(model, 1)
        return cls(
            index,
            TensorIndex.of(model.graph, KnownValues(fixed.values, known.repeats), types),
            fixed.sides,
            model,
        )

    @functools.cached_property
    def _rows(self) -> tuple[TensorIndex, Mapping[str, tuple[int, ...]]]:
        """The index for one image and all shapes: what is reshaped to rows and back depends on them."""
        fixed = at_batch_size(self.model, 1)
        return TensorIndex.of(
            self.model.graph, KnownValues(fixed.values, self.index.aliases), self.index.types
        ), fixed.shapes

    def before(self, node: onnx.NodeProto) -> TensorIndex:
        """In which to look for what the folded `node` replaces."""
        return self._rows[0] if node.op_type == "MatMul" else self.at

    def probe(self, node: onnx.NodeProto, new: TensorIndex) -> tuple[int, ...] | None:
        """The shape of one probe of the folded `node`; None where it is no fold, or nothing is known of its size."""
        weight, source = (
            weight_of(node, new),
            self.index.resolve(node.input[0] if node.input else ""),
        )
        if weight is None:
            return None
        if node.op_type == "MatMul":
            *sides, _ = self._rows[1].get(self._rows[0].resolve(node.input[0])) or (1, 0, 0)
            return (*(side or OPEN_SIDE for side in sides), weight.shape[1])
        if self.at is not self.index and self._writes(source, self.index.resolve(node.output[0])):
            return self.sides.get(source)
        return _probe_shape(node, weight, self.sides.get(source))

    def evaluated(
        self,
        node: onnx.NodeProto,
        probes: Array,
        passing: Mapping[str, int],
        absolute: bool = False,
    ) -> tuple[Array, int]:
        """As `_Run.evaluate`, what the folded `node` replaces; probe by probe where sizes are values."""
        at = self.before(node)
        source, target = at.resolve(node.input[0]), at.resolve(node.output[0])
        parts = 1 if at is self.index else len(PROBES)
        made = [
            _Run(at, {source: part}, passing, absolute).evaluate(target)
            for part in np.split(probes, parts)
        ]
        return np.concatenate([values for values, _ in made]), made[0][1]

    def _writes(self, source: str, target: str) -> bool:
        return any(node.op_type == "ScatterND" for node in self.at.between(source, target))


def _types_for_casts(model: onnx.ModelProto) -> dict[str, int]:
    read = {node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    if not read:
        return {}
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    return {
        item.name: item.type.tensor_type.elem_type
        for item in (*graph.input, *graph.value_info)
        if item.name in read
    }


def prove(
    before: onnx.ModelProto | TrainingForm,
    after: onnx.ModelProto,
    written: Collection[str],
    seed: int = 0,
) -> tuple[Proof, ...]:
    """Retrace every node of `after` that `before` does not have; `written` names the tensors of all folds made on the way.

    Raises:
        CertificateError: a node is neither unchanged nor equal to what it replaces; says which and by how much.
    """
    origin, new = (
        before if isinstance(before, TrainingForm) else TrainingForm.of(before),
        TensorIndex.of(after.graph),
    )
    passing = Counter(written) - Counter(
        {name for node in after.graph.node for name in node.output}
    )
    proofs = []
    for node in changed_nodes(after, origin, new):
        shape = origin.probe(node, new)
        proof = (
            None
            if shape is None
            else _retraced(node, origin, new, passing, _probes(shape, np.random.default_rng(seed)))
        )
        ratio = math.inf if proof is None else proof.ratio
        if proof is None or not ratio <= 1:
            raise CertificateError(
                f"{node.name or node.output[0]}: the folded node differs from what it replaces by {ratio:.3g} times the rounding "
                "that its weights allow, so nothing is written; this is a defect in repzoo unless the weights are not finite"
            )
        proofs.append(proof)
    return tuple(proofs)


def changed_nodes(
    after: onnx.ModelProto, origin: TrainingForm, new: TensorIndex
) -> Iterator[onnx.NodeProto]:
    """The nodes of `after` that the training form does not have; a MatMul and the Add of its bias as one, with three inputs.

    The product between the two is no tensor of the training form, so what else reads it counts as changed, and is retraced.
    """
    given = {item.name for item in after.graph.output}
    for node in after.graph.node:
        inner = (
            node.op_type == "MatMul"
            and node.output[0] not in given
            and node.output[0] not in origin.index.producers
        )
        if node.op_type == "Constant" or inner or is_unchanged(node, origin.index, new):
            continue
        product = new.producers.get(node.input[0]) if node.op_type == "Add" else None
        if (
            product is not None
            and product.op_type == "MatMul"
            and weight_of(product, new) is not None
        ):
            yield onnx.helper.make_node(
                "MatMul", [*product.input, node.input[1]], node.output, node.name
            )
        else:
            yield node


# --- unchanged ------------------------------------------------------------------------------------------------------------


def is_unchanged(node: onnx.NodeProto, old: TensorIndex, new: TensorIndex) -> bool:
    """Whether `node` of the folded graph does what the training form does there, with the same values."""
    if node.op_type == "Identity" and old.resolve(node.output[0]) == old.resolve(node.input[0]):
        return True
    there = (old.producers.get(name) for name in (node.output[0], old.resolve(node.output[0])))
    was = next(
        (
            item
            for item in there
            if item is not None and (item.op_type, item.domain) == (node.op_type, node.domain)
        ),
        None,
    )
    if was is None:
        return False
    pairs = list(itertools.zip_longest(_read(was), _read(node), fillvalue=""))
    return _settings(was, old) == _settings(node, new) and all(
        _is_same(one, two, old, new) for one, two in pairs
    )


def _read(node: onnx.NodeProto) -> list[str]:
    """Its inputs without the omitted ones at the end."""
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    return names


def _settings(node: onnx.NodeProto, index: TensorIndex) -> dict[str, bytes]:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for item in copy.attribute:
        for graph in (item.g, *item.graphs) if item.HasField("g") else item.graphs:
            _plain(graph, index, {})
    kept = [
        item for item in copy.attribute if item.name != "training_mode" or item.i
    ]  # 0 is its default, which onnx-ir leaves out
    return {item.name: item.SerializeToString(deterministic=True) for item in kept}


def _plain(graph: onnx.GraphProto, index: TensorIndex, outer: Mapping[str, str]) -> None:
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
            for inner in (
                (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs
            ):
                _plain(inner, index, local)


def _origin(name: str, index: TensorIndex) -> str:
    held = index.constants.get(index.resolve(name)) if name else None
    if held is None:
        return index.resolve(name)
    values = numpy_helper.to_array(held)
    return f"{values.dtype} {values.shape} {hashlib.sha256(values.tobytes()).hexdigest()}"


def _is_same(was: str, name: str, old: TensorIndex, new: TensorIndex) -> bool:
    one, two = old.constants.get(old.resolve(was)), new.constants.get(new.resolve(name))
    if one is None or two is None:
        return one is two and old.resolve(was) == old.resolve(name)
    left, right = numpy_helper.to_array(one), numpy_helper.to_array(two)
    return left.dtype == right.dtype and np.array_equal(left, right)


# --- retraced -------------------------------------------------------------------------------------------------------------


def _retraced(
    node: onnx.NodeProto,
    origin: TrainingForm,
    new: TensorIndex,
    passing: Mapping[str, int],
    probes: Array,
) -> Proof | None:
    """The folded `node` against what it replaces; None when it is no fold, or when a value is not finite."""
    weight = weight_of(node, new)
    if weight is None or not np.isfinite(weight).all():
        return None
    try:
        with np.errstate(all="ignore"):
            return _compared(node, weight, origin, new, passing, probes)
    except Unknown:
        return None


def _compared(
    node: onnx.NodeProto,
    weight: Stored,
    origin: TrainingForm,
    new: TensorIndex,
    passing: Mapping[str, int],
    probes: Array,
) -> Proof | None:
    own = new.resolve(node.input[0])
    expected, casts = origin.evaluated(node, probes, passing)
    got, _ = _Run(new, {own: probes}).evaluate(node.output[0])
    if expected.shape != got.shape or not all(
        np.isfinite(values).all() for values in (expected, got)
    ):
        return None
    reach, _ = _Run(new, {own: np.abs(probes)}, absolute=True).evaluate(node.output[0])
    kind = new.constants[new.resolve(node.input[1])].data_type
    roundoff = ROUNDOFF.get(kind, 2.0**-24)
    gaussian = _gaussian(node, weight, new, roundoff, got)
    bound = np.minimum(roundoff * reach, gaussian) + _underflow(weight, kind, np.abs(probes))
    error = np.abs(expected - got)
    made = _proof(node.output[0], expected, error, bound)
    if made.ratio <= 1 and not casts:
        return made
    scale, _ = origin.evaluated(
        node, np.abs(probes), passing, absolute=True
    )  # casts before the last one, and float64 itself
    if not np.isfinite(scale).all():
        return None
    return _proof(
        node.output[0], expected, error, bound + (FLOAT64_NOISE + casts * roundoff) * scale
    )


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


def weight_of(node: onnx.NodeProto, index: TensorIndex) -> Stored | None:
    """[outputs, inputs per group, ...] of a node that a fold may write."""
    weight = index.stored(node.input[1]) if node.op_type in ("Conv", "Gemm", "MatMul") else None
    if weight is not None and node.op_type == "MatMul" and weight.ndim != 2:
        return None
    turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not integer(node, "transB", 0))
    return weight.T if weight is not None and turned else weight


def _sides_for_padding(model: onnx.ModelProto) -> Mapping[str, tuple[int, ...]]:
    """[.., .., height, width] of every tensor where it is fixed; empty for a graph in which no padding depends on it."""
    settings = (
        item.s for node in model.graph.node for item in node.attribute if item.name == "auto_pad"
    )
    if not any(setting.startswith(b"SAME") for setting in settings):
        return {}
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    dims = {
        item.name: item.type.tensor_type.shape.dim
        for item in (*graph.input, *graph.value_info, *graph.output)
    }
    sides = {
        name: (0, 0, of[2].dim_value, of[3].dim_value) for name, of in dims.items() if len(of) == 4
    }
    return {name: of for name, of in sides.items() if all(of[2:])}


def _probe_shape(
    node: onnx.NodeProto, weight: Stored, like: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Shape of one probe: taller than it is wide, with just the room for windows that touch one border, the other, and none.

    Where padding depends on the size (`like`), the probe leaves the same remainder by the stride, and so gets the same padding.
    """
    if weight.ndim == 2:
        return 4, weight.shape[1]
    window = Window.of(node, (weight.shape[2], weight.shape[3]))
    sides = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    rows, columns = (
        side + (stride if stride > 1 else 0)
        for side, stride in zip(sides, window.strides, strict=True)
    )
    rows += 1
    if like is not None:
        rows, columns = (
            side + (of - side) % stride
            for side, of, stride in zip((rows, columns), like[2:], window.strides, strict=True)
        )
        rows += window.strides[0] * (rows == columns)
    return 1, weight.shape[1] * integer(node, "group", 1), rows, columns


def _probes(sides: tuple[int, ...], random: np.random.Generator) -> Array:
    """[PROBES * images, ...]"""
    noise = random.standard_normal(sides)
    spikes = random.choice([-1.0, 1.0], sides) * (random.random(sides) < SPARSE)
    spikes.flat[random.integers(spikes.size)] = 1.0
    return np.concatenate([noise, FAR + noise, LOUD * noise, np.ones(sides), spikes])


def _gaussian(
    node: onnx.NodeProto, weight: Stored, new: TensorIndex, roundoff: float, like: Array
) -> Array:
    """The Gaussian bound, infinite on probes that are not Gaussian; shaped to broadcast with `like`, the output."""
    images, rank = len(like) // len(PROBES), like.ndim
    bias = new.values(node.input[2]) if len(node.input) > 2 else None
    rows = weight.reshape(len(weight), -1)
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    shift = np.zeros(len(weight)) if bias is None else np.abs(bias)
    deviations = np.repeat([1.0, math.inf, LOUD, math.inf, math.inf], images)[:, None]
    bound: Array = roundoff * (
        SIGMAS * deviations * np.maximum(length, np.finfo(float).tiny) + shift
    )
    if node.op_type == "MatMul":
        return bound.reshape(len(bound), *[1] * (rank - 2), -1)
    return bound.reshape(*bound.shape, *[1] * (rank - 2))


def _underflow(weight: Stored, kind: int, loudness: Array) -> Array:
    """What values below the type's normal range add: half the smallest number for each weight."""
    loudest = loudness.reshape(len(loudness), -1).max(1)
    bound: Array = SUBNORMAL.get(kind, 2.0**-149) * (weight[0].size * loudest + 1)
    return bound.reshape(-1, *[1] * (loudness.ndim - 1))


@dataclass
class _Run:
    """One evaluation in float64; `absolute` takes the magnitude of every constant, and of every difference the sum."""

    index: TensorIndex
    known: dict[str, Array]
    passing: Mapping[str, int] = field(default_factory=dict)
    absolute: bool = False
    borders: bool = False  # whether constants were written into the image: they were computed in the type of the graph

    def evaluate(self, name: str) -> tuple[Array, int]:
        """(values of tensor `name`, how many roundings were on the way: casts of a fold that a later one took in, and borders)."""
        seen: set[str] = set()
        values = self._value(name, seen)
        return values, sum(
            self.passing.get(item, 0) for item in seen
        ) + self.borders * BORDER_ROUNDINGS

    def _value(self, name: str, seen: set[str]) -> Array:
        seen.add(name)
        name = self.index.resolve(name)
        seen.add(name)
        if name not in self.known:
            self.known[name] = self._computed(name, seen)
        return self.known[name]

    def _computed(self, name: str, seen: set[str]) -> Array:
        if (constant := self.index.values(name)) is not None:
            return np.abs(constant) if self.absolute else constant
        node = self.index.producers.get(name)
        if (
            node is None
            or node.domain not in ("", "ai.onnx")
            or node.op_type not in {**OPERATORS, **MOVES, "ScatterND": scatter}
        ):
            raise Unknown(name)
        if node.op_type == "BatchNormalization":
            return batchnorm(
                node, [self._value(node.input[0], seen), *self._statistics(node)], self.absolute
            )
        if (
            node.op_type in ("Conv", "Gemm")
            and (weight := self.index.stored(node.input[1])) is not None
        ):
            bias = [self._value(item, seen) for item in node.input[2:] if item]
            return OPERATORS[node.op_type](
                node, [self._value(node.input[0], seen), weight, *bias], self.absolute
            )
        if node.op_type == "ScatterND":
            self.borders = True
            return scatter(
                node, self._value(node.input[0], seen), list(self._statistics(node)), self.absolute
            )
        if node.op_type in MOVES:
            settings = list(self._statistics(node))
            return MOVES[node.op_type](
                node, self._value(node.input[0], seen), settings, list(node.output).index(name)
            )
        return OPERATORS[node.op_type](
            node, [self._value(item, seen) for item in node.input if item], self.absolute
        )

    def _statistics(self, node: onnx.NodeProto) -> Iterator[Array]:
        for name in node.input[1:]:
            values = self.index.values(name) if name else np.zeros(0)
            if values is None:
                raise Unknown(name)
            yield values
