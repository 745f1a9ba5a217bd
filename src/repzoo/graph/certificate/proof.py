"""Proof of a fold: each tensor of the folded graph is the tensor of that name before.

A node that was not folded must be there unchanged (unchanged.py). For a node that was, the
expression between the same two tensors of the training form and the new node both run in float64 on
probes (probes.py), borders included. The operators are written from the ONNX specification
(operators.py). What the proof may see through, it finds out itself (known_values.py, index.py).

The bound is derived. The only inexact step of a fold is the cast of kernel w and bias b to the
number type of the graph, with unit roundoff u. So for every input x, each value of output channel o
satisfies
    |new - old| <= u (|w_o| * |x| + |b_o|)
and for x ~ N(0, s), where the error is Gaussian with a standard deviation of at most u s |w_o|_2,
    |new - old| <= u (SIGMAS s |w_o|_2 + |b_o|).
The smaller of the two holds. An expression that was folded in several passes was cast between them;
each such cast adds u times the expression of absolute values. So do the roundings in border
constants, which are as large as what they surround.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from repzoo.errors import CertificateError
from repzoo.graph.certificate.evaluation import Evaluation
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.probes import (
    PROBES,
    gaussian_deviations,
    make_probes,
    weight_of,
)
from repzoo.graph.certificate.training_form import TrainingForm
from repzoo.graph.certificate.unchanged import changed_nodes
from repzoo.graph.certificate.window import Array, UnknownExpression

SIGMAS = 10.0  # one value in 10^23 of a Gaussian lies further from its mean
UNIT_ROUNDOFF: dict[int, float] = {
    onnx.TensorProto.FLOAT: 2.0**-24,
    onnx.TensorProto.FLOAT16: 2.0**-11,
    onnx.TensorProto.BFLOAT16: 2.0**-8,
    onnx.TensorProto.DOUBLE: 2.0**-53,
}
FLOAT32_ROUNDOFF = 2.0**-24
SMALLEST_SUBNORMAL: dict[int, float] = {
    onnx.TensorProto.FLOAT16: 2.0**-24,
    onnx.TensorProto.DOUBLE: 0.0,  # the proof itself has no more
}
SMALLEST_FLOAT32 = 2.0**-149
# Of sums of up to some 10^4 terms in float64, relative to their absolute values.
FLOAT64_NOISE = 2.0**-46


@dataclass(frozen=True)
class Proof:
    """A folded node that computes `output` was compared with what it replaces, on every probe.

    max_abs_error  the largest error, in units of the tensor
    max_rel_error  the largest error on one probe over the largest magnitude of the tensor there
    ratio          the largest error over its bound, at most 1
    bound          what the error may be where `ratio` was found
    probe          the one of PROBES where it was found
    """

    output: str
    max_abs_error: float
    max_rel_error: float
    ratio: float
    bound: float
    probe: str


def prove(
    before: onnx.ModelProto | TrainingForm,
    after: onnx.ModelProto,
    written: Collection[str],
    seed: int = 0,
) -> tuple[Proof, ...]:
    """A proof for every node of `after` that `before` does not have.

    written  the tensors that folds computed on the way, also those that a later fold removed again
    seed     of the probes

    Raises:
        CertificateError: a node is neither unchanged nor equal to what it replaces; says which, and
            by how much.
    """
    origin = before if isinstance(before, TrainingForm) else TrainingForm.of(before)
    new = TensorIndex.of(after.graph)
    remaining = {name for node in after.graph.node for name in node.output}
    casts = Counter(written) - Counter(remaining)
    proofs = []
    for node in changed_nodes(after, origin, new):
        proof = _prove_node(node, origin, new, casts, seed)
        ratio = math.inf if proof is None else proof.ratio
        if proof is None or not ratio <= 1:
            raise CertificateError(
                f"{node.name or node.output[0]}: the folded node differs from what it replaces by "
                f"{ratio:.3g} times the rounding that its weights allow, so nothing is written; "
                "this is a defect in repzoo unless the weights are not finite"
            )
        proofs.append(proof)
    return tuple(proofs)


def _prove_node(
    node: onnx.NodeProto,
    origin: TrainingForm,
    new: TensorIndex,
    casts: Mapping[str, int],
    seed: int,
) -> Proof | None:
    """The proof of the folded `node`; None when it is no fold, or when a value is not finite."""
    weight = weight_of(node, new)
    if weight is None or not np.isfinite(weight).all():
        return None
    try:
        shape = origin.probe_shape(node, new)
        if shape is None:
            return None
        probes = make_probes(shape, np.random.default_rng(seed))
        with np.errstate(all="ignore"):
            return _compare(node, origin, new, casts, probes)
    except UnknownExpression:
        return None


def _compare(
    node: onnx.NodeProto,
    origin: TrainingForm,
    new: TensorIndex,
    casts: Mapping[str, int],
    probes: Array,
) -> Proof | None:
    """The proof from all `probes` at once."""
    target = node.output[0]
    expected = origin.evaluate(node, probes, casts)
    actual = _evaluate_new(node, new, probes)
    if expected.values.shape != actual.shape:
        return None
    if not np.isfinite(expected.values).all() or not np.isfinite(actual).all():
        return None
    error = np.abs(expected.values - actual)
    bound = _cast_bound(node, new, probes, actual)
    proof = _proof(target, expected.values, error, bound)
    if proof.ratio <= 1 and not expected.roundings:
        return proof
    # Casts before the last one, and the rounding of float64 itself, are bounded by the expression
    # of absolute values. It is computed only where it is needed, for it takes as long as the rest.
    scale = origin.evaluate(node, np.abs(probes), casts, absolute=True).values
    if not np.isfinite(scale).all():
        return None
    relative = FLOAT64_NOISE + expected.roundings * _roundoff(node, new)
    return _proof(target, expected.values, error, bound + relative * scale)


def _evaluate_new(
    node: onnx.NodeProto,
    new: TensorIndex,
    probes: Array,
    absolute: bool = False,
) -> Array:
    """What the folded `node` computes."""
    source = new.resolve(node.input[0])
    evaluation = Evaluation(new, {source: probes}, absolute=absolute)
    return evaluation.evaluate(node.output[0]).values


def _number_type(node: onnx.NodeProto, new: TensorIndex) -> int:
    """The ONNX element type of the weight of `node`."""
    return new.constants[new.resolve(node.input[1])].data_type


def _roundoff(node: onnx.NodeProto, new: TensorIndex) -> float:
    """The unit roundoff of the weight of `node`."""
    return UNIT_ROUNDOFF.get(_number_type(node, new), FLOAT32_ROUNDOFF)


# --- bounds ---------------------------------------------------------------------------------------


def _cast_bound(
    node: onnx.NodeProto,
    new: TensorIndex,
    probes: Array,
    output: Array,
) -> Array:
    """What casting kernel and bias to the number type of the graph can change, see above."""
    roundoff = _roundoff(node, new)
    linear = roundoff * _evaluate_new(node, new, np.abs(probes), absolute=True)
    gaussian = _gaussian_bound(node, new, roundoff, output)
    bound: Array = np.minimum(linear, gaussian) + _underflow_bound(node, new, probes)
    return bound


def _gaussian_bound(
    node: onnx.NodeProto,
    new: TensorIndex,
    roundoff: float,
    output: Array,
) -> Array:
    """The bound for Gaussian probes, infinite on others; its shape broadcasts with `output`."""
    weight = weight_of(node, new)
    assert weight is not None  # _prove_node
    rows = weight.reshape(len(weight), -1)
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    # The smallest float stands for 0: an infinite deviation times 0 would be NaN.
    lengths = np.maximum(np.sqrt(squares), np.finfo(float).tiny)
    images = len(output) // len(PROBES)
    deviations = gaussian_deviations(images)[:, None]
    spread = SIGMAS * deviations * lengths
    bound: Array = roundoff * (spread + _bias_magnitude(node, new, len(weight)))
    ones = [1] * (output.ndim - 2)
    if node.op_type == "MatMul":
        return bound.reshape(len(bound), *ones, -1)  # channels are the last axis
    return bound.reshape(*bound.shape, *ones)


def _bias_magnitude(node: onnx.NodeProto, new: TensorIndex, outputs: int) -> Array:
    if len(node.input) < 3:
        return np.zeros(outputs)
    bias = new.values(node.input[2])
    return np.zeros(outputs) if bias is None else np.abs(bias)


def _underflow_bound(node: onnx.NodeProto, new: TensorIndex, probes: Array) -> Array:
    """What weights below the normal range add: at most the smallest number for each."""
    weight = weight_of(node, new)
    assert weight is not None  # _prove_node
    smallest = SMALLEST_SUBNORMAL.get(_number_type(node, new), SMALLEST_FLOAT32)
    largest = np.abs(probes).reshape(len(probes), -1).max(1)
    bound: Array = smallest * (weight[0].size * largest + 1)
    ones = [1] * (probes.ndim - 1)
    return bound.reshape(-1, *ones)


# --- the proof as a document ----------------------------------------------------------------------


def _proof(output: str, expected: Array, error: Array, bound: Array) -> Proof:
    """The proof from arrays [PROBES * images, ...]."""
    tiny = np.finfo(float).tiny
    ratio = np.where(error == 0, 0.0, error / np.maximum(bound, tiny))
    worst = int(ratio.argmax())
    largest = error.reshape(len(PROBES), -1).max(1)
    magnitude = np.abs(expected).reshape(len(PROBES), -1).max(1)
    relative = np.zeros(len(PROBES))
    np.divide(largest, magnitude, out=relative, where=largest > 0)
    bounds = np.broadcast_to(bound, ratio.shape)
    return Proof(
        output=output,
        max_abs_error=_four_digits(largest.max()),
        max_rel_error=_four_digits(relative.max()),
        ratio=_four_digits(ratio.flat[worst]),
        bound=_four_digits(bounds.flat[worst]),
        probe=PROBES[worst * len(PROBES) // ratio.size],
    )


def _four_digits(value: float) -> float:
    """A certificate is stored in the metadata of the model, so it is kept short."""
    return float(f"{value:.4g}")
