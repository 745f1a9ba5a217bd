"""What a certificate says, of which models, and that a wrong fold leaves no file."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.graph.certificate.conftest import BODY, WEIGHTS, Certify, change, nodes

from repzoo import verbs
from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.errors import CertificateError, InputError
from repzoo.graph.certificate import certify, whole_graph
from repzoo.graph.certificate.probes import PROBES
from repzoo.graph.fold import engine as fold
from repzoo.graph.tools.pieces import split_model
from repzoo.graph.tools.skeleton import sha256_of_graph

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]
Mutant = Callable[[onnx.ModelProto], None]


def test_certificate_of_a_correct_fold_states_errors_costs_and_proofs(
    before: Artifact, certify_fold: Certify
) -> None:
    certificate = certify_fold(before)
    assert certificate.equal
    assert certificate.proven == len(certificate.folds) == 4
    assert 0 < certificate.proof_ratio <= 1
    assert 0 < certificate.comparison.max_abs_error <= certificate.comparison.bound
    assert certificate.comparison.top1_agreement == 1
    assert certificate.comparison.inputs == 8
    text = str(certificate)  # what print() shows must not list every fold
    assert text.startswith("equal: largest error ")
    assert "each of the 4 folded nodes" in text
    assert certificate.before["operators"]["BatchNormalization"] == 6
    assert certificate.after["operators"] == {
        "Conv": 3,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "HardSigmoid": 1,
        "Relu": 2,
    }
    folds = certificate.to_json()["folds"]
    assert [document["output"] for document in folds] == [
        item.output for item in certificate.folds
    ]
    for document in folds:
        proof = document["proof"]
        assert proof.keys() == {
            "max_abs_error",
            "max_rel_error",
            "ratio",
            "bound",
            "probe",
        }
        assert 0 < proof["max_rel_error"] < 1e-6 < 1e-3 < proof["ratio"] <= 1
        assert proof["probe"] in PROBES
    assert (
        certificate.before["sha256"]
        == sha256_of_graph(before.model)
        != certificate.after["sha256"]
    )
    assert certificate.line().startswith("equal: largest error")


# --- unusual inputs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vard", np.nan),
        *itertools.product(["wa", "bd", "meanx", "wh"], [np.nan, np.inf]),
    ],
)
def test_weights_that_are_not_finite_are_refused(
    name: str, value: float, before: Artifact, certify_fold: Certify
) -> None:
    def by(values: Array) -> Array:
        values.flat[0] = value
        return values

    change(before.model, name, by)
    with pytest.raises(CertificateError):
        certify_fold(before)


def test_a_network_with_zero_outputs_is_certified(
    before: Artifact, certify_fold: Certify
) -> None:
    """Zero-initialized heads exist; no division by their magnitude."""
    for name in ("wh", "bh"):
        change(before.model, name, np.zeros_like)
    certificate = certify_fold(before)
    assert certificate.equal
    assert certificate.comparison.max_rel_error == 0


def test_a_fixed_batch_size_is_certified_in_batches_of_that_size(
    graph: Graph, certify_fold: Certify
) -> None:
    before = Artifact(
        graph(BODY, WEIGHTS, "2, 4, 16, 17", "2, 5"), "fixed", Preprocess(size=16)
    )
    real = np.random.default_rng(3).standard_normal((5, 4, 16, 17)).astype(np.float32)
    assert certify_fold(before).comparison.inputs == 4
    assert certify_fold(before, images=real).comparison.inputs == 4 + 5, (
        "the last batch is filled up"
    )


def test_real_images_are_counted_and_compared(
    before: Artifact, certify_fold: Certify
) -> None:
    real = np.random.default_rng(3).standard_normal((5, 4, 16, 17)).astype(np.float32)
    assert certify_fold(before, images=real).comparison.inputs == 13


def with_constant_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    constants = [
        onnx.helper.make_node("Constant", [], [item.name], value=item)
        for item in model.graph.initializer
    ]
    rest = list(moved.graph.node)
    del moved.graph.initializer[:], moved.graph.node[:]
    moved.graph.node.extend([*constants, *rest])
    return moved


def test_weights_in_constant_nodes_are_jittered(
    before: Artifact, certify_fold: Certify
) -> None:
    certificate = certify_fold(replace(before, model=with_constant_nodes(before.model)))
    assert certificate.comparison.bound == certify_fold(before).comparison.bound
    assert certificate.proven == 4


def test_a_wrong_fold_raises_and_the_command_leaves_no_file(
    before: Artifact, run: Any, tmp_path: Path, break_algebra: Callable[[], None]
) -> None:
    before.save(tmp_path / "in.onnx")
    good = run("fold", tmp_path / "in.onnx", "-o", tmp_path / "good.onnx", "--json")
    assert good.code == 0
    assert good.document["equal"] is True
    break_algebra()
    with pytest.raises(CertificateError):
        verbs.fold(before)
    report = tmp_path / "certificate.json"
    bad = run(
        "fold",
        tmp_path / "in.onnx",
        "-o",
        tmp_path / "bad.onnx",
        "--certificate",
        report,
    )
    assert bad.code == 3
    assert "Traceback" not in bad.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.onnx", "in.onnx"]


# --- number types, sizes, pieces ------------------------------------------------------------------


def as_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` computing in float16 between float32 ends."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for item in half.graph.initializer:
        item.CopyFrom(
            numpy_helper.from_array(
                numpy_helper.to_array(item).astype(np.float16), item.name
            )
        )
    for node in half.graph.node:
        node.input[:] = ["half" if name == "data" else name for name in node.input]
        node.output[:] = ["whole" if name == "output" else name for name in node.output]
    half.graph.node.insert(
        0,
        onnx.helper.make_node(
            "Cast", ["data"], ["half"], "first", to=onnx.TensorProto.FLOAT16
        ),
    )
    half.graph.node.append(
        onnx.helper.make_node(
            "Cast", ["whole"], ["output"], "last", to=onnx.TensorProto.FLOAT
        )
    )
    return half


def test_float16_is_certified_against_float16_rounding(
    before: Artifact,
    certify_fold: Certify,
    break_algebra: Callable[[], None],
) -> None:
    half = replace(before, model=as_halves(before.model))
    certificate = certify_fold(half)
    assert certificate.proven == 4
    assert certificate.comparison.bound > 100 * certify_fold(before).comparison.bound
    break_algebra()
    with pytest.raises(CertificateError):
        certify_fold(half)


def test_open_sides_are_certified_at_the_size_of_the_images(
    graph: Graph, certify_fold: Certify
) -> None:
    before = Artifact(graph(BODY, WEIGHTS, "N, 4, H, W", "N, 5"), "open", None)
    real = np.random.default_rng(3).standard_normal((5, 4, 20, 24)).astype(np.float32)
    assert certify_fold(before, images=real).comparison.inputs == 4 + 4 + 5


def test_images_of_another_size_are_bad_input(
    before: Artifact, certify_fold: Certify
) -> None:
    with pytest.raises(
        InputError, match=r"the images are \[4, 8, 8\], but subject takes \[4, 16, 17\]"
    ):
        certify_fold(before, images=np.zeros((1, 4, 8, 8), np.float32))


def test_a_model_beyond_one_file_is_refused_in_a_sentence(
    before: Artifact,
    certify_fold: Certify,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(certify, "MAX_MODEL_BYTES", 100)
    with pytest.raises(
        InputError,
        match=r"subject folds to [\d,]+ bytes of weights; one ONNX file holds at most 100",
    ):
        certify_fold(before)


@pytest.mark.parametrize("held", ["initializers", "Constant nodes"])
def test_the_pieces_of_a_model_compute_what_the_model_computes(
    held: str, before: Artifact, execute: Execute
) -> None:
    model = (
        before.model if held == "initializers" else with_constant_nodes(before.model)
    )
    data = np.random.default_rng(0).standard_normal((3, 4, 16, 17)).astype(np.float32)
    seen = data
    parts = list(split_model(model, limit=600))
    assert len(parts) == 3
    for part in parts:
        seen = execute(part, seen)[0]
    assert np.array_equal(seen, execute(model, data)[0])
    assert len(list(split_model(model))) == 1


def test_a_fold_can_be_certified_piece_by_piece(
    before: Artifact,
    certify_fold: Certify,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = certify_fold(before)
    monkeypatch.setattr(
        whole_graph,
        "split_model",
        lambda model, **more: split_model(model, 600, **more),
    )
    assert certify_fold(before).comparison == whole.comparison
    model = onnx.ModelProto()
    model.CopyFrom(fold.fold(before.model).model)
    weight = nodes(model, "Conv")[2].input[1]
    change(model, weight, lambda values: values[:, ::-1])
    monkeypatch.setattr(certify, "prove", lambda *_: ())
    with pytest.raises(CertificateError, match="NOT EQUAL"):
        certify_fold(before, model)


def test_the_hash_covers_the_graph_but_not_its_metadata(before: Artifact) -> None:
    known = sha256_of_graph(before.model)
    assert (
        sha256_of_graph(Artifact.from_bytes(before.to_bytes(), "again").model) == known
    )
    change(before.model, "wa", lambda values: np.nextafter(values, np.float32(0)))
    assert sha256_of_graph(before.model) != known


# --- model families -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("repghostnet_050", 1e-6),
        ("repvgg_a0", 1e6),
        ("repvit_m0_6", 1e-6),
        ("fasternet_t0", 1e6),
    ],
)
def test_models_of_every_family_are_certified_at_any_scale(
    name: str, factor: float, aged: Any
) -> None:
    """Very large and very small activations, by the weights of the first convolution."""
    pytest.importorskip("timm", reason="the torch extra is not installed")
    from repzoo.graph.tools.export import export
    from repzoo.zoo import families

    module = aged(families.seeded(name, 10, 0))
    exported = export(module, name, Preprocess(size=32), (), Step("build", "0"))
    scaled = replace(exported, model=_scaled(exported.model, factor))
    certificate = verbs.fold(scaled).certificate
    assert certificate is not None
    assert certificate.equal
    assert certificate.proven == len(certificate.folds)


def _scaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy, nodes(copy, "Conv")[0].input[1], lambda values: values * factor)
    return copy
