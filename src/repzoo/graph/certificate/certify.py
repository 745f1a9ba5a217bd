"""The certificate: how equal a folded graph is to its training form, and what that claim rests on.

1. Every folded node is compared on its own with what it replaces, in float64 (proof.py). No depth
   can hide a wrong one there. Functions that were written in other operators are compared before
   that (respelled.py).
2. Each kind of folded expression is folded again with adversarial BatchNorms in place of its own
   (adversarial.py). An error that the numbers of this model hide shows there.
3. Both graphs run, without runtime optimizations, on random images and on real ones where given
   (whole_graph.py). The bound on their difference is measured (comparison.py).
4. Where that comparison cannot tell, because the network amplifies rounding, the whole graph is
   compared in float64 (float64.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.artifact import MAX_MODEL_BYTES, Artifact
from repzoo.errors import CertificateError, InputError
from repzoo.graph.certificate.adversarial import adversarial_cases
from repzoo.graph.certificate.any_graph import (
    FeedRunner,
    Feeds,
    compare_any_graphs,
    is_classifier,
)
from repzoo.graph.certificate.comparison import Equality, GraphComparison
from repzoo.graph.certificate.float64 import (
    Float64Comparison,
    Folder,
    compare_in_float64,
)
from repzoo.graph.certificate.proof import Proof, prove
from repzoo.graph.certificate.respelled import apply_respellings
from repzoo.graph.certificate.training_form import TrainingForm
from repzoo.graph.certificate.whole_graph import (
    Images,
    Runner,
    compare_graphs,
    random_inputs,
)
from repzoo.graph.tools.cost import count
from repzoo.graph.tools.cost_result import Cost
from repzoo.graph.tools.fold_result import Fold, FoldResult, Refusal
from repzoo.graph.tools.skeleton import sha256_of_graph
from repzoo.progress import Progress, silent
from repzoo.summary import Summary, Table

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Certificate:
    """The verdict on a fold, and all that it rests on.

    comparison         of the outputs, in the number type of the graph
    proven             folded nodes that were compared one by one in float64
    proof_ratio        the largest error among them, over the bound that the rounding of its weights
                       allows
    proofs             one for each of them; a proof covers the folds that a later fold took in
    adversarial_cases  kinds of expressions that were also folded with adversarial BatchNorms
    float64            the whole graph in float64, where the comparison of the outputs cannot tell
    before             SHA-256 (of the graph without metadata, see skeleton.sha256_of_graph) and
                       cost of the training form
    after              the same of the deploy form
    """

    comparison: GraphComparison
    proven: int
    proof_ratio: float
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    proofs: tuple[Proof, ...] = ()
    adversarial_cases: int = 0
    float64: Float64Comparison | None = None

    @property
    def equal(self) -> bool | None:
        """Whether the outputs are equal; None where their comparison cannot tell (see `basis`)."""
        return self.comparison.equal

    @property
    def differs(self) -> bool:
        """Whether a comparison of the whole graphs shows that they differ."""
        if self.float64 and self.float64.equality is Equality.DIFFERENT:
            return True
        return self.comparison.equality is Equality.DIFFERENT

    @property
    def basis(self) -> str:
        """What the claim rests on, in one sentence."""
        nodes = _proven_nodes(self.proven)
        if self.comparison.equality is not Equality.INCONCLUSIVE:
            return f"{nodes}, and the outputs of the whole graphs were compared"
        if self.float64 is None:
            return nodes
        return f"{nodes}; {self.float64.sentence()}"

    def __str__(self) -> str:
        """The verdict, what was measured, and what it rests on, in one sentence."""
        words = {True: "equal", False: "not equal", None: "outputs cannot tell"}
        return f"{words[self.equal]}: {self.comparison.summary()}; {self.basis}"

    def to_json(self) -> dict[str, Any]:
        """A plain JSON document. Each fold has its proof; None if a later fold took its node in."""
        return {
            "equal": self.equal,
            "basis": self.basis,
            **_without(self.comparison, "equality"),
            "proven": self.proven,
            "proof_ratio": self.proof_ratio,
            "folds": self._folds_with_proofs(),
            "refusals": [dataclasses.asdict(refusal) for refusal in self.refusals],
            "before": dict(self.before),
            "after": dict(self.after),
            "adversarial_cases": self.adversarial_cases,
            "float64": None if self.float64 is None else self.float64.to_json(),
        }

    def _repr_html_(self) -> str:
        """What Jupyter shows: costs before and after, and the verdict."""
        rows = []
        for key in ("nodes", "parameters", "macs"):
            cells = [f"{side[key]:,}" for side in (self.before, self.after)]
            rows.append([key, *cells])
        return Summary([Table(["", ">before", ">after"], rows)], [str(self)]).html()

    def _folds_with_proofs(self) -> list[dict[str, Any]]:
        proofs = {proof.output: _without(proof, "output") for proof in self.proofs}
        folds = []
        # Two folds may write one tensor; the proof is of the later one.
        for fold in reversed(self.folds):
            proof = proofs.pop(fold.output, None)
            folds.append({**dataclasses.asdict(fold), "proof": proof})
        return folds[::-1]

    def line(self) -> str:
        """The verdict in one line."""
        return _line(self.comparison, self.basis)


@dataclass(frozen=True)
class InputCertificate:
    """How equal a model that takes bytes is to the float model.

    comparison  of the outputs
    proven      folded nodes that were compared one by one in float64
    """

    comparison: GraphComparison
    proven: int = 0

    @property
    def equal(self) -> bool | None:
        """Whether the outputs are equal; None where their comparison cannot tell (see `basis`)."""
        return self.comparison.equal

    @property
    def basis(self) -> str:
        """What the claim rests on, in one sentence."""
        nodes = _proven_nodes(self.proven)
        if self.comparison.equality is Equality.INCONCLUSIVE:
            return f"{nodes}; the conversion of the bytes was only put in front of the graph"
        return f"{nodes}, and the outputs of the whole graphs were compared"

    def to_json(self) -> dict[str, Any]:
        """A plain JSON document."""
        return {
            "equal": self.equal,
            "basis": self.basis,
            **_without(self.comparison, "equality"),
            "proven": self.proven,
        }

    def line(self) -> str:
        """The verdict in one line."""
        return _line(self.comparison, self.basis, what=" to the float input")


def _cannot_run(_: onnx.ModelProto, feeds: Feeds) -> list[Any]:
    raise InputError(
        f"the engine takes one image, and the graph takes {len(feeds)} inputs or gives other "
        "outputs than [N, classes]; use the engine onnxruntime"
    )


def certify(  # noqa: PLR0913
    before: Artifact,
    result: FoldResult,
    fold: Folder,
    run: Runner,
    images: Images | None = None,
    seed: int = 0,
    run_feeds: FeedRunner = _cannot_run,
    progress: Progress = silent,
) -> Certificate:
    """Compare `before` with its fold, node by node and as a whole.

    result  what the fold made of `before`
    fold    the fold itself, for adversarial cases and for a comparison in float64
    run     computes the outputs of a model, without optimizing it
    images  [n, ...] to compare on besides random ones, for a classifier
    seed    of probes and random images

    run_feeds  in place of `run` for a graph that is no classifier: all outputs, for arrays by name
    progress   is told of the nodes that are proven, and of the runs that are compared

    Raises:
        CertificateError: a folded node or the whole graph differs by more than its bound, or an
            output is not finite.
        InputError: the folded model could not be written as one file.
    """
    cost = count(before)
    folded_cost = count(dataclasses.replace(before, model=result.model))
    _require_one_file(before.name, folded_cost)
    respelled = apply_respellings(before.model, result.respellings)
    origin = TrainingForm.of(respelled)
    proofs = prove(origin, result.model, result.outputs, seed, progress)
    kinds = _prove_adversarial_cases(respelled, result.model, origin, fold, seed)
    float64 = None
    if is_classifier(before.model):
        groups = random_inputs(before, cost, images, seed)
        comparison = compare_graphs(
            before.model, result.model, groups, run, seed, progress=progress
        )
        if comparison.equality is Equality.INCONCLUSIVE:
            float64 = compare_in_float64(before.model, result.model, fold, seed)
    else:
        progress("compare outputs", 0, 0)
        comparison = compare_any_graphs(before.model, result.model, run_feeds, seed)
    certificate = Certificate(
        comparison=comparison,
        proven=len(proofs),
        proof_ratio=max((proof.ratio for proof in proofs), default=0.0),
        folds=result.folds,
        refusals=result.refusals,
        before=_facts(before.model, cost),
        after=_facts(result.model, folded_cost),
        proofs=proofs,
        adversarial_cases=kinds,
        float64=float64,
    )
    if certificate.differs:
        raise CertificateError(
            f"{before.name}: the folded graph is not proven equal, so it is not written. "
            f"{certificate.line()}"
        )
    return certificate


def certify_input(
    before: Artifact,
    after: onnx.ModelProto,
    run: Runner,
    pairs: Sequence[tuple[Images, Bytes]],
    proofs: Sequence[Proof] = (),
    seed: int = 0,
) -> InputCertificate:
    """Compare `before` on float32 tensors with `after` on the bytes that these were made from.

    pairs   groups (float32 [n, 3, H, W], uint8 [n, ...]) of the same images; the graph made
            neither, so they can convict it
    proofs  of the nodes that were folded

    Raises:
        CertificateError: an output differs by more than the bound, or is not finite.
    """
    floats = [images for images, _ in pairs]
    raw = [images for _, images in pairs]
    comparison = compare_graphs(
        before.model, after, floats, run, seed, after_groups=raw
    )
    certificate = InputCertificate(comparison, len(proofs))
    if comparison.equality is Equality.DIFFERENT:
        raise CertificateError(
            f"{before.name}: the graph with bytes as its input is not proven equal, "
            f"so it is not written. {certificate.line()}"
        )
    return certificate


def _line(comparison: GraphComparison, basis: str, what: str = "") -> str:
    """The verdict in one line; `what` the graph is equal to, where that is not plain."""
    if comparison.equality is Equality.INCONCLUSIVE:
        return (
            f"the outputs cannot tell whether the graph is equal{what}: {comparison.summary()}; "
            f"the claim rests on this: {basis}"
        )
    word = "equal" if comparison.equality is Equality.EQUAL else "NOT EQUAL"
    return f"{word}{what}: {comparison.summary()}"


def _proven_nodes(count: int) -> str:
    if not count:
        return "no node was folded"
    return f"each of the {count} folded nodes was proven in float64 against a derived bound"


def _prove_adversarial_cases(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    origin: TrainingForm,
    fold: Folder,
    seed: int,
) -> int:
    """Fold and prove each kind of expression with adversarial BatchNorms; the number of kinds."""
    kinds = set()
    for kind, case in adversarial_cases(before, after, origin):
        folded = fold(case)
        try:
            respelled = apply_respellings(case, folded.respellings)
            prove(respelled, folded.model, folded.outputs, seed)
        except CertificateError as error:
            raise CertificateError(
                f"with adversarial BatchNorm parameters, {error}"
            ) from None
        kinds.add(kind)
    return len(kinds)


def _require_one_file(name: str, cost: Cost) -> None:
    if cost.bytes > MAX_MODEL_BYTES:
        raise InputError(
            f"{name} folds to {cost.bytes:,} bytes of weights; "
            f"one ONNX file holds at most {MAX_MODEL_BYTES:,}"
        )


def _facts(model: onnx.ModelProto, cost: Cost) -> dict[str, Any]:
    """`Certificate.before` or `after` for a graph."""
    return {"sha256": sha256_of_graph(model), **_without(cost, "uncounted")}


def _without(record: Any, name: str) -> dict[str, Any]:
    """The fields of a dataclass but one."""
    fields = dataclasses.asdict(record)
    del fields[name]
    return fields
