"""The certificate passes correct folds at any scale and refuses wrong ones."""

from __future__ import annotations

import dataclasses
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

from repzoo import verbs
from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.errors import CertificateError, InputError
from repzoo.graph.certificate import certify, whole_graph
from repzoo.graph.certificate.certify import Certificate
from repzoo.graph.certificate.probes import PROBES
from repzoo.graph.fold import algebra
from repzoo.graph.fold import engine as fold
from repzoo.graph.fold.algebra import AffineMap
from repzoo.graph.tools.pieces import sha256_of_graph, split_model

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]
Mutant = Callable[[onnx.ModelProto], None]

BODY = """
a = Conv<pads = [1, 1, 1, 1]>(data, wa)
ab = BatchNormalization(a, gammaa, betaa, meana, vara)
b = Conv(data, wb)
bb = BatchNormalization(b, gammab, betab, meanb, varb)
cb = BatchNormalization(data, gammac, betac, meanc, varc)
s = Add(ab, bb)
t = Add(s, cb)
u = Relu(t)
d = Conv<strides = [2, 2], pads = [0, 1, 2, 3], group = 2, dilations = [1, 2]>(u, wd, bd)
db = BatchNormalization(d, gammad, betad, meand, vard)
v = Relu(db)
x = Conv<strides = [2, 2]>(v, wx)
xb = BatchNormalization(x, gammax, betax, meanx, varx)
y = HardSigmoid(xb)
z = GlobalAveragePool(y)
f = Flatten(z)
h = BatchNormalization(f, gammah, betah, meanh, varh)
output = Gemm<transB = 1>(h, wh, bh)
"""


def statistics(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{part}{name}": (channels,) for part in ("gamma", "beta", "mean", "var")}


WEIGHTS: dict[str, Any] = (
    {
        "wa": (4, 4, 3, 3),
        "wb": (4, 4, 1, 1),
        "wd": (6, 2, 3, 2),
        "bd": (6,),
        "wx": (8, 6, 1, 1),
        "wh": (5, 8),
        "bh": (5,),
    }
    | statistics("a", 4)
    | statistics("b", 4)
    | statistics("c", 4)
    | statistics("d", 6)
    | statistics("x", 8)
    | statistics("h", 8)
)


@pytest.fixture
def before(graph: Graph) -> Artifact:
    """Branches, a grouped and dilated convolution with uneven pads, and a head with BatchNorm."""
    return Artifact(
        graph(BODY, WEIGHTS, "N, 4, 16, 17", "N, 5"), "subject", Preprocess(size=16)
    )


@pytest.fixture
def certify_fold(execute: Execute) -> Callable[..., Certificate]:
    """`certified(before, folded model or None, images=..., seed=...)`: the certificate."""

    def run(
        before: Artifact, model: onnx.ModelProto | None = None, **more: Any
    ) -> Certificate:
        result = fold.fold(before.model)
        result = result if model is None else replace(result, model=model)
        return certify.certify(
            before,
            result,
            fold.fold,
            lambda model, data: execute(model, data)[0],
            **more,
        )

    return run


def test_certificate_of_a_correct_fold_states_errors_costs_and_proofs(
    before: Artifact, certify_fold: Callable[..., Certificate]
) -> None:
    certificate = certify_fold(before)
    assert certificate.equal
    assert certificate.proven == len(certificate.folds) == 4
    assert 0 < certificate.proof_ratio <= 1
    assert 0 < certificate.comparison.max_abs_error <= certificate.comparison.bound
    assert certificate.comparison.top1_agreement == 1
    assert certificate.comparison.inputs == 8
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


# --- wrong algebra --------------------------------------------------------------------------------


def epsilon_forgotten(gamma: Any, beta: Any, mean: Any, variance: Any, _: float) -> Any:
    return ORIGINAL["from_batchnorm"](gamma, beta, mean, variance, 0.0)


def gamma_sign_lost(gamma: Any, *rest: Any) -> Any:
    return ORIGINAL["from_batchnorm"](np.abs(gamma), *rest)


def mean_ignored(gamma: Any, beta: Any, mean: Any, *rest: Any) -> Any:
    return ORIGINAL["from_batchnorm"](gamma, beta, 0 * mean, *rest)


def deviation_is_variance(
    gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float
) -> Any:
    return ORIGINAL["from_batchnorm"](gamma, beta, mean, (variance + epsilon) ** 2, 0.0)


def identity_doubled(channels: int) -> Any:
    return algebra.scaled(ORIGINAL["identity"](channels), 2.0)


def inner_bias_dropped(outer: AffineMap, inner: AffineMap) -> Any:
    return replace(ORIGINAL["compose"](outer, inner), bias=outer.bias)


def outer_bias_dropped(outer: AffineMap, inner: AffineMap) -> Any:
    return ORIGINAL["compose"](replace(outer, bias=0 * outer.bias), inner)


def kernel_flipped(outer: AffineMap, inner: AffineMap) -> Any:
    composed = ORIGINAL["compose"](outer, inner)
    return replace(composed, kernel=composed.kernel[:, :, ::-1, ::-1])


def kernel_transposed(outer: AffineMap, inner: AffineMap) -> Any:
    composed = ORIGINAL["compose"](outer, inner)
    square = composed.kernel.shape[2] == composed.kernel.shape[3]
    return (
        replace(composed, kernel=composed.kernel.swapaxes(2, 3)) if square else composed
    )


def groups_swapped(outer: AffineMap, inner: AffineMap) -> Any:
    composed = ORIGINAL["compose"](outer, inner)
    return (
        replace(composed, kernel=np.roll(composed.kernel, len(composed.kernel) // 2, 0))
        if composed.geometry.groups == 2
        else composed
    )


def off_center(affine: AffineMap, target: algebra.Geometry) -> Array:
    placed: Array = ORIGINAL["_placed"](affine, target)
    return np.roll(placed, 1, 2) if affine.geometry.kernel == (1, 1) else placed


def cast_to_half(outer: AffineMap, inner: AffineMap) -> Any:
    composed = ORIGINAL["compose"](outer, inner)
    return replace(
        composed, kernel=composed.kernel.astype(np.float16).astype(np.float64)
    )


def one_branch_lost(kept: AffineMap, lost: AffineMap) -> Any:
    return ORIGINAL["add"](kept, algebra.scaled(lost, 0.0))


ORIGINAL: dict[str, Any] = {
    name: getattr(algebra, name)
    for name in ("from_batchnorm", "identity", "compose", "_placed", "add")
}
ALGEBRA_MUTANTS = [
    ("from_batchnorm", epsilon_forgotten),
    ("from_batchnorm", gamma_sign_lost),
    ("from_batchnorm", mean_ignored),
    ("from_batchnorm", deviation_is_variance),
    ("compose", inner_bias_dropped),
    ("compose", outer_bias_dropped),
    ("compose", kernel_flipped),
    ("compose", kernel_transposed),
    ("compose", groups_swapped),
    ("compose", cast_to_half),
    ("_placed", off_center),
    ("add", one_branch_lost),
]


@pytest.mark.parametrize(
    ("name", "mutant"),
    ALGEBRA_MUTANTS,
    ids=lambda item: getattr(item, "__name__", None),
)
def test_wrong_algebra_is_caught(
    name: str,
    mutant: Any,
    before: Artifact,
    certify_fold: Callable[..., Certificate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(algebra, name, mutant)
    with pytest.raises(CertificateError):
        certify_fold(before)


def test_an_identity_branch_that_counts_twice_is_caught(
    graph: Graph,
    certify_fold: Callable[..., Certificate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = (
        "a = Conv<pads = [1, 1, 1, 1]>(data, w)\n"
        "t = Add(data, a)\n"
        "z = GlobalAveragePool(t)\n"
        "output = Flatten(z)"
    )
    before = Artifact(
        graph(body, {"w": (4, 4, 3, 3)}, "N, 4, 8, 9", "N, C"), "residual"
    )
    assert certify_fold(before).proven == 1
    monkeypatch.setattr(algebra, "identity", identity_doubled)
    with pytest.raises(CertificateError, match="differs from what it replaces"):
        certify_fold(before)


@pytest.mark.parametrize("variance", [1e-6, 1e-2, 1.0])
def test_a_forgotten_epsilon_is_caught_at_any_usual_variance(
    variance: float,
    graph: Graph,
    certify_fold: Callable[..., Certificate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At variance 1 the error is 5e-6 of the weight: only the proof of the node finds it."""
    weights = {
        name: [variance] * shape[0] if name.startswith("var") else shape
        for name, shape in WEIGHTS.items()
    }
    before = Artifact(
        graph(BODY, weights, "N, 4, 16, 17", "N, 5"), "subject", Preprocess(size=16)
    )
    assert certify_fold(before).equal
    monkeypatch.setattr(algebra, "from_batchnorm", epsilon_forgotten)
    with pytest.raises(CertificateError, match="differs from what it replaces"):
        certify_fold(before)


HOSTILE: dict[str, dict[str, Callable[[Array], Array]]] = {
    "large mean": {"mean": lambda values: 1e4 * values},
    "tiny variance": {"var": lambda values: 1e-9 * values},
    "no variance": {"var": np.zeros_like},
    "variance at epsilon": {"var": lambda values: np.full_like(values, 1e-5)},
    "zero scale": {"gamma": lambda values: values * (np.arange(values.size) % 2)},
    "negative scale": {"gamma": lambda values: -np.abs(values)},
    "large mean over tiny variance": {
        "mean": lambda values: 1e3 * values,
        "var": lambda values: 1e-6 * values,
    },
}


def with_hostile_statistics(artifact: Artifact, kind: str) -> Artifact:
    model = onnx.ModelProto()
    model.CopyFrom(artifact.model)
    for start, by in HOSTILE[kind].items():
        for name in [
            item.name for item in model.graph.initializer if item.name.startswith(start)
        ]:
            change(model, name, by)
    return replace(artifact, model=model)


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_batchnorm_statistics_are_certified_and_wrong_algebra_on_them_is_not(
    kind: str,
    before: Artifact,
    certify_fold: Callable[..., Certificate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hostile = with_hostile_statistics(before, kind)
    certificate = certify_fold(hostile)
    assert certificate.equal
    assert certificate.proof_ratio <= 1
    for name, mutant in ALGEBRA_MUTANTS:
        with monkeypatch.context() as patched:
            patched.setattr(algebra, name, mutant)
            with pytest.raises(CertificateError):
                certify_fold(hostile)


# --- wrong graphs ---------------------------------------------------------------------------------


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def setting(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(item for item in node.attribute if item.name == name)


def change(model: onnx.ModelProto, name: str, by: Callable[[Array], Array]) -> None:
    item = next(item for item in model.graph.initializer if item.name == name)
    values = by(numpy_helper.to_array(item).copy()).astype(np.float32)
    item.CopyFrom(numpy_helper.from_array(values, name))


def pads_mirrored(model: onnx.ModelProto) -> None:
    pads = setting(nodes(model, "Conv")[1], "pads")
    pads.ints[:] = [pads.ints[i] for i in (2, 3, 0, 1)]


def stride_ignored(model: onnx.ModelProto) -> None:
    setting(nodes(model, "Conv")[2], "strides").ints[:] = [1, 1]


def stride_transposed_window(model: onnx.ModelProto) -> None:
    setting(nodes(model, "Conv")[1], "dilations").ints[:] = [2, 1]


def bias_dropped(model: onnx.ModelProto) -> None:
    del nodes(model, "Conv")[0].input[2]


def one_weight_off(model: onnx.ModelProto) -> None:
    def by(values: Array) -> Array:
        values.flat[7] *= 1 + 1e-4
        return values

    change(model, nodes(model, "Conv")[0].input[1], by)


def one_bias_off(model: onnx.ModelProto) -> None:
    def by(values: Array) -> Array:
        values.flat[-1] += 1e-4
        return values

    change(model, nodes(model, "Gemm")[0].input[2], by)


def weights_rounded_to_bfloat(model: onnx.ModelProto) -> None:
    change(
        model,
        nodes(model, "Conv")[1].input[1],
        lambda values: (values.view(np.uint32) & 0xFFFF0000).view(np.float32),
    )


def channels_permuted(model: onnx.ModelProto) -> None:
    change(model, nodes(model, "Conv")[2].input[1], lambda values: values[:, ::-1])


def activation_lost(model: onnx.ModelProto) -> None:
    nodes(model, "Relu")[1].op_type = "Identity"


def activation_changed(model: onnx.ModelProto) -> None:
    nodes(model, "HardSigmoid")[0].attribute.append(
        onnx.helper.make_attribute("alpha", 0.2001)
    )


def relu_bypassed(model: onnx.ModelProto) -> None:
    """The second convolution reads before the ReLU."""
    first, second = nodes(model, "Conv")[:2]
    second.input[0] = first.output[0]


def nan_weight(model: onnx.ModelProto) -> None:
    def by(values: Array) -> Array:
        values.flat[0] = np.nan
        return values

    change(model, nodes(model, "Conv")[1].input[1], by)


GRAPH_MUTANTS = [
    pads_mirrored,
    stride_ignored,
    stride_transposed_window,
    bias_dropped,
    one_weight_off,
    one_bias_off,
    weights_rounded_to_bfloat,
    channels_permuted,
    activation_lost,
    activation_changed,
    relu_bypassed,
    nan_weight,
]


@pytest.mark.parametrize("mutant", GRAPH_MUTANTS)
def test_a_change_of_the_folded_graph_is_caught(
    mutant: Mutant, before: Artifact, certify_fold: Callable[..., Certificate]
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(fold.fold(before.model).model)
    mutant(model)
    onnx.checker.check_model(model)
    with pytest.raises(CertificateError):
        certify_fold(before, model)


@pytest.mark.parametrize(
    "mutant",
    [
        pads_mirrored,
        stride_ignored,
        bias_dropped,
        channels_permuted,
        activation_lost,
        relu_bypassed,
    ],
)
def test_comparing_the_outputs_alone_catches_wrong_graphs(
    mutant: Mutant,
    before: Artifact,
    certify_fold: Callable[..., Certificate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second line of defense on its own: the outputs, against the jittered training form."""
    monkeypatch.setattr(certify, "prove", lambda *_: ())
    model = onnx.ModelProto()
    model.CopyFrom(fold.fold(before.model).model)
    assert certify_fold(before, model).equal
    mutant(model)
    with pytest.raises(
        CertificateError, match=r"not proven equal, so it is not written. NOT EQUAL"
    ):
        certify_fold(before, model)


# --- unusual inputs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vard", np.nan),
        *itertools.product(["wa", "bd", "meanx", "wh"], [np.nan, np.inf]),
    ],
)
def test_weights_that_are_not_finite_are_refused(
    name: str, value: float, before: Artifact, certify_fold: Callable[..., Certificate]
) -> None:
    def by(values: Array) -> Array:
        values.flat[0] = value
        return values

    change(before.model, name, by)
    with pytest.raises(CertificateError):
        certify_fold(before)


def test_a_network_with_zero_outputs_is_certified(
    before: Artifact, certify_fold: Callable[..., Certificate]
) -> None:
    """Zero-initialized heads exist; no division by their magnitude."""
    for name in ("wh", "bh"):
        change(before.model, name, np.zeros_like)
    certificate = certify_fold(before)
    assert certificate.equal
    assert certificate.comparison.max_rel_error == 0


def test_a_fixed_batch_size_is_certified_in_batches_of_that_size(
    graph: Graph, certify_fold: Callable[..., Certificate]
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
    before: Artifact, certify_fold: Callable[..., Certificate]
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
    before: Artifact, certify_fold: Callable[..., Certificate]
) -> None:
    certificate = certify_fold(replace(before, model=with_constant_nodes(before.model)))
    assert certificate.comparison.bound == certify_fold(before).comparison.bound
    assert certificate.proven == 4


def test_a_wrong_fold_raises_and_the_command_leaves_no_file(
    before: Artifact, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before.save(tmp_path / "in.onnx")
    good = run("fold", tmp_path / "in.onnx", "-o", tmp_path / "good.onnx", "--json")
    assert good.code == 0
    assert good.document["equal"] is True
    monkeypatch.setattr(algebra, "from_batchnorm", mean_ignored)
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
    certify_fold: Callable[..., Certificate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = replace(before, model=as_halves(before.model))
    certificate = certify_fold(half)
    assert certificate.proven == 4
    assert certificate.comparison.bound > 100 * certify_fold(before).comparison.bound
    monkeypatch.setattr(algebra, "from_batchnorm", mean_ignored)
    with pytest.raises(CertificateError):
        certify_fold(half)


def test_open_sides_are_certified_at_the_size_of_the_images(
    graph: Graph, certify_fold: Callable[..., Certificate]
) -> None:
    before = Artifact(graph(BODY, WEIGHTS, "N, 4, H, W", "N, 5"), "open", None)
    real = np.random.default_rng(3).standard_normal((5, 4, 20, 24)).astype(np.float32)
    assert certify_fold(before, images=real).comparison.inputs == 4 + 4 + 5


def test_images_of_another_size_are_bad_input(
    before: Artifact, certify_fold: Callable[..., Certificate]
) -> None:
    with pytest.raises(
        InputError, match=r"the images are \[4, 8, 8\], but subject takes \[4, 16, 17\]"
    ):
        certify_fold(before, images=np.zeros((1, 4, 8, 8), np.float32))


def test_a_model_beyond_one_file_is_refused_in_a_sentence(
    before: Artifact,
    certify_fold: Callable[..., Certificate],
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
    certify_fold: Callable[..., Certificate],
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
    channels_permuted(model)
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
    "name", ["repvgg_a0", "repghostnet_050", "repvit_m0_6", "fasternet_t0"]
)
def test_models_of_every_family_are_certified_at_any_scale(
    name: str, aged: Any
) -> None:
    """Also with very large and very small activations, by the weights of the first convolution."""
    pytest.importorskip("timm", reason="the torch extra is not installed")
    from repzoo.graph.tools.export import export
    from repzoo.zoo import families

    exported = export(
        aged(families.seeded(name, 10, 0)),
        name,
        Preprocess(size=32),
        (),
        Step("build", "0"),
    )
    folded = verbs.fold(exported).certificate
    assert folded is not None
    assert folded.equal
    for factor in (1e6, 1e-6):
        scaled = dataclasses.replace(exported, model=_scaled(exported.model, factor))
        certificate = verbs.fold(scaled).certificate
        assert certificate is not None
        assert certificate.equal
        assert certificate.proven == len(certificate.folds)


def _scaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy, nodes(copy, "Conv")[0].input[1], lambda values: values * factor)
    return copy
