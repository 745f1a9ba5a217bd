"""Certificate: how equal a folded graph is to its training form, against bounds that are derived or measured, not assumed.

First every folded node is retraced on its own in float64 (proof.py): no depth blurs a wrong one there. Then a specimen of each
kind of expression is folded and retraced with adversarial BatchNorms in place of its own (specimens.py), so that an error which
this model's numbers hide shows all the same. Then both graphs run with
every runtime optimization off, on random images (normal, and of large amplitude) and on real ones where given. That bound comes
from the training form itself: its weights are jittered by one unit in the last place, and the largest change that this makes in
the output, times SAFETY, is what its number type cannot tell apart.

Large graphs run piece by piece (pieces.py), so the check needs little memory besides the two models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from repzoo.artifact import MAX_MODEL_BYTES, Artifact, classifier_input
from repzoo.errors import CertificateError, InputError
from repzoo.graph.certificate.adversarial import adversarial_cases
from repzoo.graph.certificate.operators import BLOCK
from repzoo.graph.certificate.proof import ROUNDOFF, Proof, TrainingForm, prove
from repzoo.graph.fold.engine import Fold, FoldResult, fold
from repzoo.graph.fold.rules import Refusal
from repzoo.graph.tools.cost import Cost, count
from repzoo.graph.tools.pieces import sha256_of_graph, split_model, trim_heap

SAFETY = 64.0  # jittering moves each weight once; a fold also reorders sums of up to some 10^4 terms in every layer
FLOOR = 16.0  # unit roundoffs of the output's largest magnitude: 8 units in the last place, for networks too robust to jitter
IMAGES = range(1, 5)  # of each random kind: as many as ENOUGH_MACS pay for, one in any case
ENOUGH_MACS = 2**34

_LAYERS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Add", "Sub", "Mul", "Div"}
)

_FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
)

Images = npt.NDArray[Any]  # float32, or uint8 for a model that takes bytes
Bytes = npt.NDArray[np.uint8]
Runner = Callable[[onnx.ModelProto, Images], Images]  # exact: no graph optimization


@dataclass(frozen=True)
class Certificate:
    """The verdict and all that it rests on. Errors and bound are absolute, in units of the output (logits).

    proven      folded nodes retraced one by one in float64
    proof_ratio the largest error among them, over the bound that the rounding of its weights allows
    proofs      one for each of them, from tensors of the training form: it covers the folds that a later one took in
    specimens   kinds of expressions that were also folded and retraced with adversarial BatchNorms
    before      sha256 (of the graph without metadata, see pieces.sha256_of_graph) and cost of the training form
    after       the same of the deploy form
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
    proofs: tuple[Proof, ...] = ()
    adversarial_cases: int = 0

    def to_json(self) -> dict[str, Any]:
        """A plain JSON document; each fold has its proof, or None where a later fold took its node in."""
        document = dataclasses.asdict(self)
        proofs = {one.pop("output"): one for one in document.pop("proofs")}
        document["folds"] = [
            {**one, "proof": proofs.pop(one["output"], None)} for one in document["folds"][::-1]
        ][::-1]
        return document

    def line(self) -> str:
        """The verdict in one line."""
        verdict = "equal" if self.equal else "NOT EQUAL"
        return (
            f"{verdict}: largest error {self.max_abs_error:.2g} (bound {self.bound:.2g}), "
            f"Top-1 agreement {100 * self.top1_agreement:.4g} % on {self.inputs} inputs"
        )


@dataclass(frozen=True)
class Comparison:
    """What one group of inputs showed; `agrees` holds one truth for each image."""

    error: float
    bound: float
    magnitude: float
    agrees: npt.NDArray[np.bool_]

    @property
    def ratio(self) -> float:
        return _over(self.error, self.bound)


@dataclass(frozen=True)
class InputCertificate:
    """How equal a model that takes bytes is to the float model; errors and bound as in Certificate."""

    equal: bool
    max_abs_error: float
    max_rel_error: float
    bound: float
    top1_agreement: float
    inputs: int

    def line(self) -> str:
        """The verdict in one line."""
        return (
            f"{'equal' if self.equal else 'NOT EQUAL'} to the float input: largest error {self.max_abs_error:.2g} "
            f"(bound {self.bound:.2g}), Top-1 agreement {100 * self.top1_agreement:.4g} % on {self.inputs} inputs"
        )


def certify_input(
    before: Artifact,
    after: onnx.ModelProto,
    run: Runner,
    pairs: Sequence[tuple[Images, Bytes]],
    seed: int = 0,
) -> InputCertificate:
    """Compare `before` on float32 tensors with `after` on the bytes that these were made from, group by group.

    pairs  (float32 [n, 3, H, W], uint8 [n, ...]) of the same n images; made apart from the graph, so that they can convict it

    Raises:
        CertificateError: an output differs by more than the bound, or is not finite.
    """
    floats, raw = [one for one, _ in pairs], [two for _, two in pairs]
    compared = _compared(before.model, after, floats, run, seed, raw)
    certificate = InputCertificate(
        **_verdict(compared),
        inputs=sum(map(len, floats)),
    )
    if not certificate.equal:
        raise CertificateError(
            f"{before.name}: the graph with bytes as its input is not proven equal, so it is not written. {certificate.line()}"
        )
    return certificate


def certify(
    before: Artifact, result: FoldResult, run: Runner, images: Images | None = None, seed: int = 0
) -> Certificate:
    """Compare `before` with its fold on random inputs and, where given, `images` [n, ...] of the model's input type.

    Raises:
        CertificateError: a folded node or the whole graph differs by more than its bound, or an output is not finite.
        InputError: the folded model could not be written as one file.
    """
    after = dataclasses.replace(before, model=result.model)
    costs = count(before), count(after)
    _require_one_file(before.name, costs[1])
    origin = TrainingForm.of(before.model)
    proofs = prove(origin, result.model, [item.output for item in result.folds], seed)
    kinds = _drilled(before.model, result.model, origin, seed)
    groups = _inputs(before, costs[0], images, seed)
    compared = _compared(before.model, result.model, groups, run, seed)
    certificate = Certificate(
        **_verdict(compared),
        inputs=sum(map(len, groups)),
        proven=len(proofs),
        proof_ratio=max((proof.ratio for proof in proofs), default=0.0),
        folds=result.folds,
        refusals=result.refusals,
        before=_facts(before.model, costs[0]),
        after=_facts(result.model, costs[1]),
        proofs=proofs,
        adversarial_cases=kinds,
    )
    if not certificate.equal:
        raise CertificateError(
            f"{before.name}: the folded graph is not proven equal, so it is not written. {certificate.line()}"
        )
    return certificate


def _drilled(
    before: onnx.ModelProto, after: onnx.ModelProto, origin: TrainingForm, seed: int
) -> int:
    """How many kinds of expressions were folded and retraced with adversarial BatchNorms.

    Raises:
        CertificateError: one of them folds wrongly.
    """
    kinds = set()
    for kind, specimen in adversarial_cases(before, after, origin):
        made = fold(specimen)
        try:
            prove(specimen, made.model, [item.output for item in made.folds], seed)
        except CertificateError as error:
            raise CertificateError(f"with adversarial BatchNorm parameters, {error}") from None
        kinds.add(kind)
    return len(kinds)


def _require_one_file(name: str, cost: Cost) -> None:
    if cost.bytes > MAX_MODEL_BYTES:
        raise InputError(
            f"{name} folds to {cost.bytes:,} bytes of weights; one ONNX file holds at most {MAX_MODEL_BYTES:,}"
        )


def _inputs(artifact: Artifact, cost: Cost, images: Images | None, seed: int) -> Sequence[Images]:
    """Groups to compare apart: noise, loud noise, real images."""
    dims = [
        dim.dim_value for dim in classifier_input(artifact.model).type.tensor_type.shape.dim
    ] or [0] * 4
    side = artifact.preprocess.input_shape if artifact.preprocess else (3, 224, 224)
    few = min(max(ENOUGH_MACS // max(cost.macs, 1), IMAGES.start), IMAGES.stop - 1)
    real = [] if images is None or len(images) == 0 else [images]
    usual = real[0].shape[1:] if real else side
    shape = [dim or other for dim, other in zip(dims, (few, *usual), strict=True)]
    if tuple(shape[1:]) != usual and real:
        raise InputError(
            f"the images are {list(usual)}, but {artifact.name} takes {shape[1:]}; prepare them at that size"
        )
    random = np.random.default_rng(seed)
    if classifier_input(artifact.model).type.tensor_type.elem_type == TensorProto.UINT8:
        return [
            random.integers(0, 256, shape, np.uint8),
            255 * random.integers(0, 2, shape, np.uint8),
            *real,
        ]
    noise = random.standard_normal(shape).astype(np.float32)
    return [noise, 30 * noise, *real]


def _verdict(compared: Sequence[Comparison]) -> dict[str, Any]:
    """What every certificate says of its comparisons: whether all hold, the worst, and how often Top-1 agrees."""
    worst = max(compared, key=lambda one: one.ratio)
    return {
        "equal": all(one.error <= one.bound for one in compared),
        "max_abs_error": worst.error,
        "max_rel_error": _over(worst.error, worst.magnitude),
        "bound": worst.bound,
        "top1_agreement": float(np.mean(np.concatenate([one.agrees for one in compared]))),
    }


def _over(part: float, whole: float) -> float:
    return part / whole if part else 0.0


def _compared(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    groups: Sequence[Images],
    run: Runner,
    seed: int,
    others: Sequence[Images] | None = None,
) -> list[Comparison]:
    """`groups` go into `before`, and into `after` where it takes no `others`."""
    expected, got = _outputs(before, groups, run), _outputs(after, others or groups, run)
    if not all(values.size for values in (*expected, *got)):
        raise InputError(
            "the graph gives no output for some images, so nothing can be compared; check what it cuts away"
        )
    if not all(np.isfinite(values).all() for values in (*expected, *got)):
        raise CertificateError(
            "an output is not finite (overflow or NaN), so nothing can be proven; check the model's weights"
        )
    jittered = _outputs(before, groups, run, np.random.default_rng(seed + 1))
    weights = (*before.graph.initializer, *_held(before.graph))
    roundoff = max(
        (ROUNDOFF[item.data_type] for item in weights if item.data_type in ROUNDOFF),
        default=2.0**-24,
    )
    return [compare(*three, roundoff) for three in zip(expected, got, jittered, strict=True)]


def compare(expected: Images, got: Images, jittered: Images, roundoff: float) -> Comparison:
    """The verdict on outputs [n, classes]: `jittered` is what the training form gives with each weight moved by one unit.

    roundoff  of the number type, the coarsest among the weights

    Raises:
        CertificateError: a weight that moves so makes an output overflow.
    """
    magnitude = float(np.abs(expected).max())
    bound = max(SAFETY * float(np.abs(expected - jittered).max()), FLOOR * roundoff * magnitude)
    if not np.isfinite(bound):
        raise CertificateError(
            "an output overflows when a weight moves by one unit in the last place; check the model's weights"
        )
    return Comparison(
        float(np.abs(expected - got).max()), bound, magnitude, _same_top1(expected, got, bound)
    )


def _same_top1(expected: Images, got: Images, bound: float) -> npt.NDArray[np.bool_]:
    """Whether Top-1 agrees; classes tied within the bound count as agreeing."""
    rows = np.arange(len(expected))
    return np.asarray(expected.max(1) - expected[rows, got.argmax(1)] <= bound)


def _outputs(
    model: onnx.ModelProto,
    groups: Sequence[Images],
    run: Runner,
    jitter: np.random.Generator | None = None,
) -> Sequence[Images]:
    """The outputs of `model` for each group, its weights moved by one unit in the last place where `jitter` is given."""
    dims = classifier_input(model).type.tensor_type.shape.dim
    batches = _batches(groups, dims[0].dim_value if dims else 0)
    for piece in (
        split_model(model)
        if jitter is None
        else split_model(model, change=lambda item: _jittered(item, jitter))
    ):
        if jitter is not None:
            for held in _held(piece.graph):
                held.CopyFrom(_jittered(held, jitter))
        batches = [run(piece, batch) for batch in batches]
        del piece  # before the next is made
        trim_heap()
    ends = np.cumsum([len(group) for group in groups])
    return np.split(np.concatenate(batches), ends)[:-1]


def _batches(groups: Sequence[Images], batch: int) -> list[Images]:
    """All images in the batches that the graph takes (0: any); the last is filled with the first again."""
    every = np.concatenate(groups)
    if not batch:
        return [every]
    filled = np.concatenate([every, *[every[:1]] * (-len(every) % batch)])
    return np.split(filled, len(filled) // batch)


def _jittered(item: TensorProto, random: np.random.Generator) -> TensorProto:
    """Every value of a float `item` moved to one of its two neighbors. Zeros stay: a padded kernel's are exact."""
    if item.data_type not in _FLOATS:
        return item
    raw = _moved(
        numpy_helper.to_array(item), random
    ).tobytes()  # what was moved is gone before the message takes its own copy
    return TensorProto(dims=item.dims, data_type=item.data_type, name=item.name, raw_data=raw)


def _moved(stored: npt.NDArray[Any], random: np.random.Generator) -> npt.NDArray[Any]:
    values = stored.ravel() if stored.flags.writeable else stored.flatten()
    bits = values.view(f"i{values.itemsize}")
    for start in range(0, bits.size, BLOCK):
        part = bits[start : start + BLOCK]
        signs = np.unpackbits(
            np.frombuffer(random.bytes(-(-part.size // 8)), np.uint8), count=part.size
        )
        part += (2 * signs.astype(part.dtype) - 1) * (values[start : start + BLOCK] != 0)
    return values


def _held(graph: onnx.GraphProto) -> list[TensorProto]:
    """The constants of the layers that Constant nodes hold."""
    read = {name for node in graph.node if node.op_type in _LAYERS for name in node.input}
    nodes = [node for node in graph.node if node.op_type == "Constant" and node.output[0] in read]
    return [item.t for node in nodes for item in node.attribute if item.name == "value"]


def _facts(model: onnx.ModelProto, cost: Cost) -> dict[str, Any]:
    facts = {"sha256": sha256_of_graph(model), **dataclasses.asdict(cost)}
    return {key: value for key, value in facts.items() if key != "uncounted"}
