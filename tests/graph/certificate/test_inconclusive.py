"""In a network that amplifies rounding, the certificate says that the outputs cannot tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.graph.certificate.conftest import Certify

from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.errors import CertificateError
from repzoo.graph.certificate import certify, float64
from repzoo.graph.certificate.certify import (
    InputCertificate,
    certify_input,
)
from repzoo.graph.certificate.comparison import Comparison, Equality, combine, compare
from repzoo.graph.certificate.proof import prove
from repzoo.graph.fold.engine import fold
from repzoo.graph.tools.fold_result import FoldResult

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]

# Two branches that differ by 1e-6, and 1e7 times their difference: rounding fills the outputs.
BODY = """
a = Conv<pads = [1, 1, 1, 1]>(data, wa)
ab = BatchNormalization(a, gamma, beta, mean, var)
ar = Relu(ab)
b = Conv<pads = [1, 1, 1, 1]>(data, wb)
bb = BatchNormalization(b, gamma, beta, mean, var)
br = Relu(bb)
d = Sub(ar, br)
e = Mul(d, large)
z = GlobalAveragePool(e)
f = Flatten(z)
output = Gemm<transB = 1>(f, wh, bh)
"""


@pytest.fixture
def amplifying(graph: Graph) -> Artifact:
    """A training form in which float32 cannot tell a fold from another network."""
    kernel = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)
    close = kernel * (1 + 1e-6 * np.random.default_rng(1).standard_normal(kernel.shape))
    weights: dict[str, Any] = {
        "wa": kernel.tolist(),
        "wb": close.tolist(),
        "large": [1e7],
        "wh": (5, 6),
        "bh": (5,),
        **dict.fromkeys(("gamma", "beta", "mean", "var"), (6,)),
    }
    model = graph(BODY, weights, "N, 3, 16, 16", "N, 5")
    return Artifact(model, "amplifying", Preprocess(size=16))


# --- the verdict ----------------------------------------------------------------------------------


OUTPUTS = np.array([[0.0, 1.0, 4.0], [3.0, 2.0, -1.0]])


@pytest.mark.parametrize(
    ("error", "change", "equality"),
    [
        (0.0, 0.01, Equality.EQUAL),
        (0.6, 0.01, Equality.EQUAL),
        (0.7, 0.01, Equality.DIFFERENT),
        (0.7, 0.05, Equality.INCONCLUSIVE),
        (9.0, 0.05, Equality.DIFFERENT),
    ],
)
def test_a_bound_beyond_half_the_spread_of_the_outputs_is_no_evidence(
    error: float, change: float, equality: Equality
) -> None:
    """The outputs spread over 5; the bound is 64 times the change."""
    comparison = compare(OUTPUTS, OUTPUTS + error, OUTPUTS + change, 2.0**-24)
    assert comparison.equality is equality
    assert combine([comparison]).equal == {"equal": True, "different": False}.get(
        equality.value
    )


def test_equal_outputs_without_any_spread_are_equal() -> None:
    zeros = np.zeros((2, 3))
    assert compare(zeros, zeros, zeros, 2.0**-24).equality is Equality.EQUAL
    assert compare(zeros, zeros + 1e-9, zeros, 2.0**-24).equality is Equality.DIFFERENT


def group(error: float, change: float) -> Comparison:
    return compare(OUTPUTS, OUTPUTS + error, OUTPUTS + change, 2.0**-24)


def test_the_verdict_rests_on_the_groups_that_can_tell() -> None:
    telling, vague = group(0.1, 0.01), group(3.0, 0.05)
    combined = combine([vague, telling])
    assert combined.equality is Equality.EQUAL
    assert combined.max_abs_error == pytest.approx(0.1)
    assert combined.inputs == 2
    assert combine([vague, vague]).equality is Equality.INCONCLUSIVE
    assert combine([vague, telling, group(9.0, 0.05)]).equality is Equality.DIFFERENT


# --- an amplifying network ------------------------------------------------------------------------


def test_the_outputs_cannot_tell_and_float64_can(
    amplifying: Artifact, certify_fold: Certify
) -> None:
    certificate = certify_fold(amplifying)
    comparison, whole = certificate.comparison, certificate.float64
    assert certificate.equal is None
    assert comparison.bound > comparison.spread / 2
    assert whole is not None
    assert whole.equality is Equality.EQUAL
    assert whole.comparison is not None
    assert whole.comparison.bound < 1e-3 * whole.comparison.spread
    line = certificate.line()
    assert line.startswith("the outputs cannot tell whether the graph is equal")
    assert "each of the 2 folded nodes was proven in float64" in line
    assert "in float64 at 16x16 the whole graph agrees" in line
    assert "Top-1" not in line.split(";")[0]
    document = json.loads(json.dumps(certificate.to_json()))
    assert document["equal"] is None
    assert document["basis"] in line
    assert document["float64"]["equal"] is True


def test_a_wrong_fold_is_refused_there_too(
    amplifying: Artifact, certify_fold: Certify, break_algebra: Callable[[], None]
) -> None:
    break_algebra()
    with pytest.raises(CertificateError, match="differs from what it replaces"):
        certify_fold(amplifying)


def test_the_comparison_in_float64_alone_refuses_a_wrong_fold(
    amplifying: Artifact,
    certify_fold: Certify,
    break_algebra: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(certify, "prove", lambda *_: ())
    # So wide a bound lets the wrong outputs pass in float32.
    monkeypatch.setattr("repzoo.graph.certificate.comparison.SAFETY", 1e6)
    assert certify_fold(amplifying).equal is None
    break_algebra()
    with pytest.raises(
        CertificateError, match="in float64 at 16x16 the whole graph DIFFERS"
    ):
        certify_fold(amplifying)


def scale_weight(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """`model` with one weight of its first convolution multiplied."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = copy.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] *= factor
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


def test_the_fold_in_float64_must_have_the_same_nodes_and_weights(
    amplifying: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = amplifying.model, fold(amplifying.model).model
    assert float64.compare_in_float64(before, after, fold, 0).equality is Equality.EQUAL
    with pytest.raises(
        CertificateError, match="differ from those of the fold in float64"
    ):
        float64.compare_in_float64(before, scale_weight(after, 1.1), fold, 0)

    def fold_nothing(model: onnx.ModelProto) -> FoldResult:
        return FoldResult(model, (), ())

    other = float64.compare_in_float64(before, after, fold_nothing, 0)
    assert other.equality is Equality.INCONCLUSIVE
    assert other.sentence().endswith("the fold in float64 makes other nodes")
    monkeypatch.setattr(float64, "MOST_WEIGHTS", 100)
    large = float64.compare_in_float64(before, after, fold, 0)
    assert large.to_json()["equal"] is None
    assert "at most 100 are converted" in large.sentence()


def test_a_graph_of_a_fixed_size_is_not_compared_at_a_smaller_size(
    graph: Graph,
) -> None:
    body = "c = Conv<pads = [1, 1, 1, 1]>(data, w)\nr = Reshape(c, rows)\noutput = Gemm(r, wh)"
    weights = {"w": (2, 3, 3, 3), "rows": np.array([-1, 2 * 40 * 40]), "wh": (3200, 5)}
    model = graph(body, weights, "1, 3, 40, 40", "1, 5")
    comparison = float64.compare_in_float64(model, fold(model).model, fold, 0)
    assert comparison.comparison is None
    assert (
        "at [1, 3, 32, 32]" in comparison.reason
        or "on [1, 3, 32, 32]" in comparison.reason
    )


def test_the_command_writes_the_file_and_says_what_the_claim_rests_on(
    amplifying: Artifact, run: Any, tmp_path: Path
) -> None:
    amplifying.save(tmp_path / "in.onnx")
    folded = run("fold", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx", "--json")
    assert folded.code == 0
    assert folded.document["equal"] is None
    assert "proven in float64" in folded.document["basis"]
    assert (tmp_path / "out.onnx").is_file()
    text = run("fold", tmp_path / "in.onnx", "-o", tmp_path / "again.onnx")
    assert "the outputs cannot tell whether the graph is equal" in " ".join(
        text.out.split()
    )


def test_an_input_certificate_is_inconclusive_there_too(
    amplifying: Artifact, execute: Execute
) -> None:
    """Bytes are cast to float in front of the graph; their conversion is exact."""
    model = onnx.ModelProto()
    model.CopyFrom(amplifying.model)
    for node in model.graph.node:
        node.input[:] = ["float" if name == "data" else name for name in node.input]
    cast = onnx.helper.make_node("Cast", ["data"], ["float"], to=onnx.TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    raw = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), np.uint8)
    pairs = [(raw.astype(np.float32), raw)]
    certificate: InputCertificate = certify_input(
        amplifying, model, lambda *arguments: execute(*arguments)[0], pairs
    )
    assert certificate.equal is None
    assert certificate.line().startswith(
        "the outputs cannot tell whether the graph is equal to the float input"
    )
    assert json.loads(json.dumps(certificate.to_json()))["equal"] is None


# --- RepVGG-D2se, where it was found --------------------------------------------------------------


def test_repvgg_d2se_with_random_statistics_is_proven_but_its_outputs_cannot_tell(
    aged: Any, request: pytest.FixtureRequest, certify_fold: Certify
) -> None:
    """48 blocks amplify the rounding of float32 to the size of the outputs, and that of float64
    as well: only the proofs remain.
    """
    if not request.config.getoption("--all-variants"):
        pytest.skip("large; run with --all-variants")
    families = pytest.importorskip(
        "repzoo.zoo.families", reason="the torch extra is not installed"
    )
    from repzoo.graph.tools.export import export

    module = aged(families.seeded("repvgg_d2se", 10, 0))
    before = export(module, "d2se", Preprocess(size=32), (), Step("build", "0"))
    certificate = certify_fold(before)
    assert certificate.equal is None
    assert certificate.comparison.bound > certificate.comparison.spread
    assert certificate.proven == len(certificate.folds) == 48
    assert certificate.proof_ratio <= 1
    assert certificate.float64 is not None
    assert "each of the 48 folded nodes was proven in float64" in certificate.line()
    result = fold(before.model)
    with pytest.raises(CertificateError, match="differs from what it replaces"):
        prove(before.model, scale_weight(result.model, 1 + 1e-3), result.outputs)
