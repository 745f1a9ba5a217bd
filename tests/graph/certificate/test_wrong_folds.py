"""The certificate refuses folds by wrong algebra, and folded graphs that were changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from tests.graph.certificate.conftest import BODY, WEIGHTS, Certify, change, nodes

from repzoo.artifact import Artifact, Preprocess
from repzoo.errors import CertificateError
from repzoo.graph.certificate import certify
from repzoo.graph.fold import algebra
from repzoo.graph.fold import engine as fold
from repzoo.graph.fold.algebra import AffineMap
from repzoo.graph.fold.geometry import Geometry

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]
Mutant = Callable[[onnx.ModelProto], None]


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
    return algebra.scale_output(ORIGINAL["identity"](channels), 2.0)


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


def off_center(affine: AffineMap, target: Geometry) -> Array:
    placed: Array = ORIGINAL["_fit_kernel"](affine, target)
    return np.roll(placed, 1, 2) if affine.geometry.kernel == (1, 1) else placed


def cast_to_half(outer: AffineMap, inner: AffineMap) -> Any:
    composed = ORIGINAL["compose"](outer, inner)
    return replace(
        composed, kernel=composed.kernel.astype(np.float16).astype(np.float64)
    )


def one_branch_lost(kept: AffineMap, lost: AffineMap) -> Any:
    return ORIGINAL["add"](kept, algebra.scale_output(lost, 0.0))


ORIGINAL: dict[str, Any] = {
    name: getattr(algebra, name)
    for name in ("from_batchnorm", "identity", "compose", "_fit_kernel", "add")
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
    ("_fit_kernel", off_center),
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
    certify_fold: Certify,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(algebra, name, mutant)
    with pytest.raises(CertificateError):
        certify_fold(before)


def test_an_identity_branch_that_counts_twice_is_caught(
    graph: Graph,
    certify_fold: Certify,
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
    certify_fold: Certify,
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
    certify_fold: Certify,
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


def setting(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(item for item in node.attribute if item.name == name)


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
    mutant: Mutant, before: Artifact, certify_fold: Certify
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
    certify_fold: Certify,
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
