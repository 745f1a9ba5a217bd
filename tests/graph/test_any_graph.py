"""The fold of graphs that are no classifiers: several inputs and outputs of any rank and type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper, parser

from repzoo import verbs
from repzoo.console import models as views
from repzoo.errors import CertificateError, InputError
from repzoo.graph.certificate.any_graph import make_inputs
from repzoo.graph.fold import algebra

Array = npt.NDArray[Any]

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'
BACKBONE = "a = Conv<pads = [1, 1, 1, 1]>(x, w)\nb = BatchNormalization(a, gamma, beta, mean, var)\n"


def weights() -> dict[str, Array]:
    random = np.random.default_rng(0)
    drawn = {"w": random.standard_normal((8, 3, 3, 3))}
    for name in ("gamma", "beta", "mean"):
        drawn[name] = random.standard_normal(8)
    drawn["var"] = random.uniform(0.5, 2, 8)
    return {name: values.astype(np.float32) for name, values in drawn.items()}


def model_of(signature: str, body: str, **more: Array) -> onnx.ModelProto:
    model = parser.parse_model(f"{HEADER}main {signature} {{ {body} }}")
    for name, values in {**weights(), **more}.items():
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


GRAPHS = {
    "feature maps": (
        "(float[N, 3, H, W] x) => (float[N, 8, H2, W2] b, float[N, 8, H3, W3] y)",
        BACKBONE + "y = Relu(b)",
        ["Conv", "Relu"],
    ),
    "segmentation": (
        "(float[N, 3, H, W] x) => (int64[N, A, B] y)",
        BACKBONE + "y = ArgMax<axis = 1, keepdims = 0>(b)",
        ["Conv", "ArgMax"],
    ),
    "three inputs": (
        "(float[N, 3, H, W] x, float[N, 2] size, int64[1] k) "
        "=> (float[N, 8, A, B] b, float[N, 2] y, float[1] z)",
        BACKBONE + "y = Sqrt(size)\nz = Cast<to = 1>(k)",
        ["Conv", "Sqrt", "Cast"],
    ),
    "rows": (
        "(float[N, 5, 8] x) => (float[N, 5, 8] y)",
        "a = MatMul(x, v)\nb = Add(a, beta)\ny = Mul(b, gamma)",
        ["MatMul", "Add"],
    ),
    "the input is an output": (
        "(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] x, float[N, 8, 8, 8] b)",
        BACKBONE,
        ["Conv"],
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_any_graph_folds_with_a_certificate(name: str) -> None:
    signature, body, operators = GRAPHS[name]
    square = np.eye(8, dtype=np.float32) + 1
    folded = verbs.fold(model_of(signature, body, v=square))
    assert [node.op_type for node in folded.model.graph.node] == operators
    assert folded.certificate is not None
    assert folded.certificate.equal
    assert folded.certificate.comparison.top1_agreement is None


@pytest.mark.parametrize("name", ["feature maps", "segmentation", "three inputs"])
def test_a_wrong_fold_of_any_graph_is_caught_by_its_outputs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = algebra.from_batchnorm

    def without_mean(gamma: Any, beta: Any, mean: Any, *rest: Any) -> Any:
        return original(gamma, beta, 0 * mean, *rest)

    signature, body, _ = GRAPHS[name]
    monkeypatch.setattr(algebra, "from_batchnorm", without_mean)
    # The proof of single nodes would catch it first.
    monkeypatch.setattr("repzoo.graph.certificate.certify.prove", lambda *_: ())
    with pytest.raises(CertificateError, match="not proven equal"):
        verbs.fold(model_of(signature, body))


def test_an_input_that_is_no_number_is_refused_with_a_sentence() -> None:
    with pytest.raises(InputError, match="'x' is no tensor of numbers"):
        verbs.fold(model_of("(string[N] x) => (string[N] y)", "y = Identity(x)"))


def test_sides_of_one_name_get_one_size() -> None:
    model = model_of(
        "(float[N, 4] x, int64[N, M] k, uint8[2] u) => (float[N, 4] y)", "y = Relu(x)"
    )
    for feeds in make_inputs(model, 0):
        assert len(feeds["x"]) == len(feeds["k"])
        assert set(np.unique(feeds["k"])) <= {0, 1}
        assert feeds["u"].dtype == np.uint8


def test_the_summary_counts_and_verbose_lists() -> None:
    signature, body, _ = GRAPHS["feature maps"]
    folded = verbs.fold(model_of(signature, body))
    again = verbs.fold(folded)
    assert folded.certificate is not None
    assert again.certificate is not None
    path = Path("out.onnx")
    summary = views.certificate(folded.certificate, path).shown
    assert summary[0] == "2 nodes folded into 1"
    assert summary[-1] == "out.onnx written"
    verbose = views.certificate(folded.certificate, path, verbose=True).shown
    assert verbose[0].row_count == 1
    assert views.certificate(again.certificate, path).shown[0] == "nothing to fold"
