"""Certificate: how equal a folded graph is to its training form, against bounds that are derived or measured, not assumed.

First every folded node is retraced on its own in float64 (proof.py): no depth blurs a wrong one there. Then both graphs run in
float32 with every runtime optimisation off, on random images (normal, and of large amplitude) and on real ones where given. That
bound comes from the training form itself: its weights are jittered by one unit in the last place, and the largest change that
this makes in the output, times SAFETY, is what float32 cannot tell apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.artifact import Artifact, classifier_input
from repzoo.errors import CertificateError
from repzoo.graph.cost import Cost, count
from repzoo.graph.fold import Fold, FoldResult
from repzoo.graph.proof import prove
from repzoo.graph.rules import Refusal
from repzoo.storage import sha256_of

SAFETY = 64.0  # jittering moves each weight once; a fold also reorders sums of up to some 10^4 terms in every layer
FLOOR = 2.0**-20  # of the output's largest magnitude: 8 units in the last place, for networks too robust to jitter

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Add", "Sub", "Mul", "Div"})

Images = npt.NDArray[np.float32]
Runner = Callable[[onnx.ModelProto, Images], Images]  # exact: no graph optimisation


@dataclass(frozen=True)
class Certificate:
    """The verdict and all that it rests on. Errors and bound are absolute, in units of the output (logits).

    proven      folded nodes retraced one by one in float64
    proof_ratio the largest error among them, over the bound that the rounding of its weights allows
    """

    equal: bool
    max_abs_error: float
    max_rel_error: float
    bound: float
    top1_agreement: float
    inputs: int
    proven: int
    proof_ratio: float
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A plain JSON document."""
        return dataclasses.asdict(self)

    def line(self) -> str:
        """The verdict in one line."""
        verdict = "equal" if self.equal else "NOT EQUAL"
        return (
            f"{verdict}: largest error {self.max_abs_error:.2g} (bound {self.bound:.2g}), "
            f"Top-1 agreement {100 * self.top1_agreement:.4g} % on {self.inputs} inputs"
        )


def certify(before: Artifact, result: FoldResult, run: Runner, images: Images | None = None, seed: int = 0) -> Certificate:
    """Compare `before` with its fold on random inputs and, where given, `images` float32 [n, 3, size, size].

    Raises:
        CertificateError: a folded node or the whole graph differs by more than its bound, or an output is not finite.
    """
    proofs = prove(before.model, result.model, [item.output for item in result.folds], seed)
    after = dataclasses.replace(before, model=result.model)
    groups = _inputs(before, images, seed)
    errors, bounds, magnitudes, agreements = zip(
        *(_compare(before.model, result.model, group, run, seed) for group in groups), strict=True
    )
    worst = int(np.argmax([_over(error, bound) for error, bound in zip(errors, bounds, strict=True)]))
    certificate = Certificate(
        equal=bool(all(error <= bound for error, bound in zip(errors, bounds, strict=True))),
        max_abs_error=errors[worst],
        max_rel_error=_over(errors[worst], magnitudes[worst]),
        bound=bounds[worst],
        top1_agreement=float(np.mean(np.concatenate(agreements))),
        inputs=sum(len(group) for group in groups),
        proven=len(proofs),
        proof_ratio=max((proof.ratio for proof in proofs), default=0.0),
        folds=result.folds,
        refusals=result.refusals,
        before=_facts(before.model, count(before)),
        after=_facts(result.model, count(after)),
    )
    if not certificate.equal:
        raise CertificateError(f"{before.name}: the folded graph is not proven equal, so it is not written. {certificate.line()}")
    return certificate


def _inputs(artifact: Artifact, images: Images | None, seed: int) -> Sequence[Images]:
    dims = [dim.dim_value for dim in classifier_input(artifact.model).type.tensor_type.shape.dim] or [0] * 4
    side = artifact.preprocess.size if artifact.preprocess else 224
    shape = (dims[0] or 4, dims[1] or 3, dims[2] or side, dims[3] or side)
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    groups = [noise, 30 * noise]
    return [*groups, *_parts(images, dims[0])]


def _parts(images: Images | None, batch: int) -> Sequence[Images]:
    """`images` in the batches that the graph takes (0: any); of the last, only what fills one."""
    if images is None or len(images) == 0:
        return []
    if not batch:
        return [images]
    return [images[start : start + batch] for start in range(0, len(images) - batch + 1, batch)]


def _over(part: float, whole: float) -> float:
    return part / whole if part else 0.0


def _compare(
    before: onnx.ModelProto, after: onnx.ModelProto, images: Images, run: Runner, seed: int
) -> tuple[float, float, float, Any]:
    """(error, bound, magnitude, agreement for each image)."""
    expected, got = run(before, images), run(after, images)
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        raise CertificateError("an output is not finite (overflow or NaN), so nothing can be proven; check the model's weights")
    jittered = run(_jittered(before, seed), images)
    magnitude = float(np.abs(expected).max())
    error = float(np.abs(expected - got).max())
    bound = max(SAFETY * float(np.abs(expected - jittered).max()), FLOOR * magnitude)
    if not np.isfinite(bound):
        raise CertificateError("an output overflows when a weight moves by one unit in the last place; check the model's weights")
    return error, bound, magnitude, _same_top1(expected, got, bound)


def _same_top1(expected: Images, got: Images, bound: float) -> npt.NDArray[np.bool_]:
    """Whether Top-1 agrees; classes tied within the bound count as agreeing."""
    rows = np.arange(len(expected))
    return np.asarray(expected.max(1) - expected[rows, got.argmax(1)] <= bound)


def _jittered(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    generator = np.random.default_rng(seed + 1)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for item in _weights(copy.graph):
        if item.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(item)
            toward = np.where(generator.random(values.shape, np.float32) < 0.5, -np.inf, np.inf).astype(np.float32)
            item.CopyFrom(numpy_helper.from_array(np.nextafter(values, toward), item.name))
    return copy


def _weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Every constant of the layers, whether an initializer or a Constant node holds it."""
    read = {name for node in graph.node if node.op_type in _LAYERS for name in node.input}
    held = [node for node in graph.node if node.op_type == "Constant" and node.output[0] in read]
    return [*graph.initializer, *(item.t for node in held for item in node.attribute if item.name == "value")]


def _facts(model: onnx.ModelProto, cost: Cost) -> dict[str, Any]:
    facts = {"sha256": sha256_of(model.SerializeToString(deterministic=True)), **dataclasses.asdict(cost)}
    return {key: value for key, value in facts.items() if key != "uncounted"}
