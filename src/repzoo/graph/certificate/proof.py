"""Proof of a fold: each tensor of the folded graph is the tensor of that name before.

A node that was not folded must be there unchanged (unchanged.py). For a node that was, the
expression between the same two tensors of the training form and the new node both run in float64 on
probes (probes.py), borders included. The operators are written from the ONNX specification
(operators.py). What the proof may see through, it finds out itself (known_values.py, index.py).

The bound is derived here and computed in bounds.py. The only inexact step of a fold is the cast of
kernel w and bias b to the number type of the graph, with unit roundoff u. So for every input x,
each value of output channel o satisfies
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
from repzoo.graph.certificate.bounds import cast_bound
from repzoo.graph.certificate.folded_node import FoldedNode
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.number_types import unit_roundoff
from repzoo.graph.certificate.probes import PROBES, make_probes
from repzoo.graph.certificate.training_form import TrainingForm
from repzoo.graph.certificate.unchanged import changed_nodes
from repzoo.graph.certificate.window import Array, UnknownExpression
from repzoo.progress import Progress, silent, tracked

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
    progress: Progress = silent,
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
    nodes = list(changed_nodes(after, origin, new))
    for node in tracked(nodes, "prove folded nodes", len(nodes), progress):
        folded = FoldedNode.of(node, new)
        proof = None if folded is None else _prove_node(folded, origin, casts, seed)
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
    folded: FoldedNode,
    origin: TrainingForm,
    casts: Mapping[str, int],
    seed: int,
) -> Proof | None:
    """The proof of a folded node; None when it is no fold, or when a value is not finite."""
    if not np.isfinite(folded.weight).all():
        return None
    try:
        shape = origin.probe_shape(folded.node, folded.index)
        if shape is None:
            return None
        probes = make_probes(shape, np.random.default_rng(seed))
        with np.errstate(all="ignore"):
            return _compare(folded, origin, casts, probes)
    except UnknownExpression:
        return None


def _compare(
    folded: FoldedNode,
    origin: TrainingForm,
    casts: Mapping[str, int],
    probes: Array,
) -> Proof | None:
    """The proof from all `probes` at once."""
    node = folded.node
    target = node.output[0]
    expected = origin.evaluate(node, probes, casts)
    actual = folded.evaluate(probes)
    if expected.values.shape != actual.shape:
        return None
    if not np.isfinite(expected.values).all() or not np.isfinite(actual).all():
        return None
    error = np.abs(expected.values - actual)
    bound = cast_bound(folded, probes, actual)
    proof = _proof(target, expected.values, error, bound)
    if proof.ratio <= 1 and not expected.roundings:
        return proof
    # Casts before the last one, and the rounding of float64 itself, are bounded by the expression
    # of absolute values. It is computed only where it is needed, for it takes as long as the rest.
    scale = origin.evaluate(node, np.abs(probes), casts, absolute=True).values
    if not np.isfinite(scale).all():
        return None
    relative = FLOAT64_NOISE + expected.roundings * unit_roundoff(folded.element_type)
    return _proof(target, expected.values, error, bound + relative * scale)


def _proof(output: str, expected: Array, error: Array, bound: Array) -> Proof:
    """The proof from arrays [PROBES * images, ...]."""
    tiny = np.finfo(
        float
    ).tiny  # no error within a bound of zero has the ratio 0, not NaN
    ratio = np.where(error == 0, 0.0, error / np.maximum(bound, tiny))
    worst = int(ratio.argmax())
    bounds = np.broadcast_to(bound, ratio.shape)
    largest = _largest_by_probe(error)
    magnitude = _largest_by_probe(np.abs(expected))
    relative = np.zeros(len(PROBES))
    np.divide(largest, magnitude, out=relative, where=largest > 0)
    return Proof(
        output=output,
        max_abs_error=_four_digits(largest.max()),
        max_rel_error=_four_digits(relative.max()),
        ratio=_four_digits(ratio.flat[worst]),
        bound=_four_digits(bounds.flat[worst]),
        probe=PROBES[worst * len(PROBES) // ratio.size],
    )


def _largest_by_probe(values: Array) -> Array:
    """The largest of the values [PROBES * images, ...] on each probe, [PROBES]."""
    return np.asarray(values.reshape(len(PROBES), -1).max(1))


def _four_digits(value: float) -> float:
    """A certificate is stored in the metadata of the model, so it is kept short."""
    return float(f"{value:.4g}")
