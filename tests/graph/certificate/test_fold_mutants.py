"""Wrong algebra, rules and writing, one at a time: the certificate refuses each.

test_wrong_folds.py has 25 more, of the algebra and of the folded graph; those here are of the code on
the way from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import pytest
from tests.graph.certificate.conftest import Certify

from repzoo.artifact import Artifact, Preprocess
from repzoo.errors import CertificateError
from repzoo.graph.certificate import certify
from repzoo.graph.certificate.proof import prove
from repzoo.graph.certificate.whole_graph import Runner
from repzoo.graph.fold import algebra, tensors, write
from repzoo.graph.fold import engine as fold
from repzoo.graph.fold.affine_node import AffineNode
from repzoo.graph.fold.algebra import AffineMap
from repzoo.graph.fold.rules import RULES, layers, movement, per_channel

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]

BODY = """
p = Pad(data, frame)
c = Conv<strides = [2, 2]>(p, wc, bc)
cb = BatchNormalization<epsilon = 0.1>(c, gammac, betac, meanc, varc)
r = Relu(cb)
a, b = Split<axis = 1>(r, sizes)
ca = Conv(a, wa)
cc = Conv(b, wb)
s = Sub(ca, cc)
t4 = Relu(s)
t = Conv(t4, wt)
jg = Conv<pads = [1, 1, 1, 1], group = 2>(t, wj)
jd = Conv<pads = [1, 1, 1, 1]>(t, wd)
ja = Add(jg, jd)
jb = Conv<pads = [1, 1, 1, 1]>(t, wk)
j = Concat<axis = 1>(ja, jb)
u = Relu(j)
q = AveragePool<
    kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1
>(u)
m = Mul(q, scale)
n = Sub(shift, m)
o = Div(n, divisor)
v = Relu(o)
l = Slice(v, start, end, axis)
w = Conv(l, wl)
x = Relu(w)
g = Sigmoid(x)
h = Mul(x, g)
z = GlobalAveragePool(h)
f = Flatten(z)
y = MatMul(f, wm)
d = Add(y, bm)
e = Relu(d)
k = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(e, wg, bg)
output = BatchNormalization(k, gammag, betag, meang, varg)
"""
WEIGHTS: dict[str, Any] = {
    "wc": (6, 4, 3, 3),
    "bc": (6,),
    "gammac": (6,),
    "betac": (6,),
    "meanc": (6,),
    "varc": (6,),
    "wa": (5, 2, 3, 1),
    "wb": (5, 4, 3, 1),
    "wj": (4, 2, 3, 3),
    "wk": (4, 4, 3, 3),
    "wd": (4, 4, 3, 3),
    "scale": (8, 1, 1),
    "shift": (8, 1, 1),
    "divisor": [2.0],
    "wl": (6, 3, 1, 1),
    "wt": (4, 5, 1, 1),
    "wm": (6, 5),
    "bm": (5,),
    "wg": (7, 5),
    "bg": (7,),
    "gammag": (7,),
    "betag": (7,),
    "meang": (7,),
    "varg": (7,),
    "sizes": np.array([2, 4]),
    "start": np.array([2]),
    "end": np.array([5]),
    "axis": np.array([1]),
    "frame": np.array([0, 0, 1, 0, 0, 0, 2, 1]),
}


@pytest.fixture
def before(graph: Graph) -> Artifact:
    """A network in which every rule of the fold applies."""
    return Artifact(
        graph(BODY, WEIGHTS, "N, 4, 17, 16", "N, 7"), "subject", Preprocess(size=16)
    )


def test_the_network_folds_with_every_rule_and_is_proven(
    before: Artifact, certify_fold: Certify
) -> None:
    certificate = certify_fold(before)
    kinds = "".join(item.kind for item in certificate.folds)
    assert all(
        kind in kinds
        for kind in (
            "Pad",
            "BatchNormalization",
            "Split",
            "Sub",
            "Concat",
            "AveragePool",
            "Mul",
            "Div",
            "MatMul",
            "Gemm",
        )
    )
    assert certificate.proven >= 6


# --- mutants: a function of the package, replaced by a function of the original -------------------

Original = Callable[..., Any]


def joined_in_reverse(original: Original) -> Original:
    return lambda left, right: (
        original(right, left)
        if left.geometry.outputs == right.geometry.outputs
        else original(left, right)
    )


def selected_one_off(original: Original) -> Original:
    return lambda channels, start, count: original(channels, max(start - 1, 0), count)


def selected_from_the_end(original: Original) -> Original:
    return lambda channels, start, count: original(
        channels, channels - start - count, count
    )


def pads_swapped(original: Original) -> Original:
    return lambda channels, pads: original(
        channels, (pads[2], pads[3], pads[0], pads[1])
    )


def pads_transposed(original: Original) -> Original:
    return lambda channels, pads: original(
        channels, (pads[1], pads[0], pads[3], pads[2])
    )


def padding_forgotten(original: Original) -> Original:
    def mutant(node: Any) -> Any:
        affine = original(node)
        shape = replace(affine.geometry, pads=(0, 0, 0, 0))
        return replace(
            affine,
            geometry=shape,
            build=lambda: replace(affine.build(), geometry=shape),
        )

    return mutant


def placed_at_the_other_end(original: Original) -> Original:
    return lambda part, total, start: original(
        part, total, total - start - part.geometry.outputs
    )


def joined_bias_lost(original: Original) -> Original:
    def mutant(part: AffineMap, total: int, start: int) -> AffineMap:
        joined: AffineMap = original(part, total, start)
        return replace(joined, kernel=joined.kernel * (start == 0))

    return mutant


def groups_put_together_wrongly(original: Original) -> Original:
    def mutant(affine: AffineMap, groups: int) -> AffineMap:
        merged: AffineMap = original(affine, groups)
        return (
            merged
            if groups == affine.geometry.groups
            else replace(merged, kernel=np.roll(merged.kernel, 1, 1))
        )

    return mutant


def difference_added(original: Original) -> Original:
    return lambda affine, factor: original(affine, abs(factor))


def pool_not_divided(original: Original) -> Original:
    return lambda channels, kernel, *rest: algebra.scale_output(
        original(channels, kernel, *rest), 9.0
    )


def pool_divided_by_what_is_inside(original: Original) -> Original:
    return lambda channels, kernel, strides, pads: original(
        channels, kernel, strides, (pads[0], pads[1], pads[2] + 1, pads[3] - 1)
    )


def division_is_multiplication(original: Original) -> Original:
    return lambda kind, *rest, **more: original(
        "Mul" if kind == "Div" else kind, *rest, **more
    )


def order_of_difference_ignored(original: Original) -> Original:
    return lambda kind, values, **_: original(kind, values, constant_first=False)


def shift_lost(original: Original) -> Original:
    def mutant(*arguments: Any, **more: Any) -> Any:
        scale, shift = original(*arguments, **more)
        return scale, 0 * shift

    return mutant


def change_map(
    change: Callable[[AffineMap], AffineMap],
) -> Callable[[Original], Original]:
    """A rule whose map is changed."""

    def mutate(original: Original) -> Original:
        def mutant(*arguments: Any) -> Any:
            result = original(*arguments)
            return (
                replace(result, build=lambda: change(result.build()))
                if isinstance(result, AffineNode)
                else result
            )

        return mutant

    return mutate


def matmul_not_transposed(affine: AffineMap) -> AffineMap:
    values = affine.kernel[:, :, 0, 0]
    return replace(affine, kernel=values.T.reshape(values.shape)[:, :, None, None])


def gemm_alpha_lost(affine: AffineMap) -> AffineMap:
    return replace(affine, kernel=affine.kernel * 2)


def gemm_beta_lost(affine: AffineMap) -> AffineMap:
    return replace(affine, bias=affine.bias / 2)


def conv_bias_lost(affine: AffineMap) -> AffineMap:
    return replace(affine, bias=0 * affine.bias)


def conv_bias_shifted(affine: AffineMap) -> AffineMap:
    return replace(affine, bias=np.roll(affine.bias, 1))


def conv_mirrored(affine: AffineMap) -> AffineMap:
    return replace(affine, kernel=affine.kernel[..., ::-1, :])


def default_epsilon(original: Original) -> Original:
    return lambda gamma, beta, mean, variance, _: original(
        gamma, beta, mean, variance, 1e-5
    )


def epsilon_outside_the_root(original: Original) -> Original:
    return lambda gamma, beta, mean, variance, eps: original(
        gamma, beta, mean, (np.sqrt(variance) + eps) ** 2, 0.0
    )


def epsilon_twice(original: Original) -> Original:
    return lambda gamma, beta, mean, variance, eps: original(
        gamma, beta, mean, variance, 2 * eps
    )


def mean_not_scaled(original: Original) -> Original:
    return lambda gamma, beta, mean, variance, eps: original(
        gamma, beta - mean, 0 * mean, variance, eps
    )


def variance_for_deviation(original: Original) -> Original:
    return lambda gamma, beta, mean, variance, eps: original(
        gamma, beta, mean, (variance + eps) ** 2, 0.0
    )


def magnitude_of_gamma(original: Original) -> Original:
    return lambda gamma, *rest: original(np.abs(gamma), *rest)


def written_without_bias(original: Original) -> Original:
    return lambda form, affine, *rest: original(
        form, replace(affine, bias=0 * affine.bias), *rest
    )


def written_with_other_pads(original: Original) -> Original:
    def mutant(form: Any, affine: AffineMap, *rest: Any) -> Any:
        top, left, bottom, right = affine.geometry.pads
        return original(
            form,
            replace(
                affine,
                geometry=replace(affine.geometry, pads=(bottom, right, top, left)),
            ),
            *rest,
        )

    return mutant


def written_with_stride_one(original: Original) -> Original:
    return lambda form, affine, *rest: original(
        form, replace(affine, geometry=replace(affine.geometry, strides=(1, 1))), *rest
    )


def written_in_half_precision(original: Original) -> Original:
    return lambda name, values: original(
        name, values.astype(np.float16).astype(values.dtype)
    )


def written_transposed(original: Original) -> Original:
    def mutant(name: str, values: Array) -> Any:
        square = values.ndim == 4 and values.shape[2] == values.shape[3] > 1
        return original(name, values.swapaxes(2, 3) if square else values)

    return mutant


def frame_read_backwards(original: Original) -> Original:
    """The ends of every axis taken for its beginnings."""

    def mutant(node: Any, name: str, index: int) -> Any:
        values = original(node, name, index)
        return (
            values.reshape(2, -1)[::-1].reshape(-1)
            if name == "pads" and values is not None
            else values
        )

    return mutant


MUTANTS: list[tuple[Any, str, Callable[[Original], Original]]] = [
    (algebra, "join", joined_in_reverse),
    (algebra, "select_channels", selected_one_off),
    (algebra, "select_channels", selected_from_the_end),
    (algebra, "zero_pad", pads_swapped),
    (algebra, "zero_pad", pads_transposed),
    (algebra, "_embed_outputs", placed_at_the_other_end),
    (algebra, "_embed_outputs", joined_bias_lost),
    (algebra, "regroup", groups_put_together_wrongly),
    (algebra, "scale_output", difference_added),
    (algebra, "from_average_pool", pool_not_divided),
    (algebra, "from_average_pool", pool_divided_by_what_is_inside),
    (algebra, "from_batchnorm", default_epsilon),
    (algebra, "from_batchnorm", epsilon_outside_the_root),
    (algebra, "from_batchnorm", epsilon_twice),
    (algebra, "from_batchnorm", mean_not_scaled),
    (algebra, "from_batchnorm", variance_for_deviation),
    (algebra, "from_batchnorm", magnitude_of_gamma),
    (per_channel, "_scale_and_shift", division_is_multiplication),
    (per_channel, "_scale_and_shift", order_of_difference_ignored),
    (per_channel, "_scale_and_shift", shift_lost),
    (RULES, "Pad", padding_forgotten),
    (RULES, "MatMul", change_map(matmul_not_transposed)),
    (RULES, "Gemm", change_map(gemm_alpha_lost)),
    (RULES, "Gemm", change_map(gemm_beta_lost)),
    (RULES, "Conv", change_map(conv_bias_lost)),
    (RULES, "Conv", change_map(conv_bias_shifted)),
    (RULES, "Conv", change_map(conv_mirrored)),
    (movement, "_setting", frame_read_backwards),
    (write, "nodes_for", written_without_bias),
    (write, "nodes_for", written_with_other_pads),
    (write, "nodes_for", written_with_stride_one),
    (write, "_initializer", written_in_half_precision),
    (write, "_initializer", written_transposed),
]


@pytest.mark.parametrize(
    ("place", "name", "mutate"),
    MUTANTS,
    ids=[f"{name}-{number}" for number, (_, name, _) in enumerate(MUTANTS)],
)
def test_a_wrong_fold_is_caught(
    place: Any,
    name: str,
    mutate: Callable[[Original], Original],
    before: Artifact,
    certify_fold: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if isinstance(place, dict):
        monkeypatch.setitem(place, name, mutate(place[name]))
    else:
        monkeypatch.setattr(place, name, mutate(getattr(place, name)))
    with pytest.raises(CertificateError):
        certify_fold(before)


def test_weights_that_a_caller_may_replace_are_not_proven_as_constants(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {
        "w": (5, 4, 1, 1),
        "gamma": (5,),
        "beta": (5,),
        "mean": (5,),
        "var": (5,),
    }
    body = "c = Conv(data, w)\noutput = BatchNormalization(c, gamma, beta, mean, var)"
    model = graph(body, weights, inputs=["float[5, 4, 1, 1] w"])
    assert not any(len(item.nodes) > 1 for item in fold.fold(model).folds)

    def stored(value: Any) -> Any:
        tensor = None if value is None else onnx_ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()

    monkeypatch.setattr(layers, "stored_values", stored)
    monkeypatch.setattr(tensors, "stored_values", stored)
    result = fold.fold(model)
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    with pytest.raises(CertificateError):
        prove(model, result.model, result.outputs)


def epsilon_forgotten(original: Original) -> Original:
    return lambda gamma, beta, mean, variance, _: original(
        gamma, beta, mean, variance, 0.0
    )


@pytest.mark.parametrize("mutate", [epsilon_forgotten, epsilon_twice, default_epsilon])
def test_an_epsilon_error_does_not_hide_behind_large_variances(
    mutate: Callable[[Original], Original],
    graph: Graph,
    execute: Execute,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside such variances epsilon is below the rounding of a weight: other variances show it."""
    body = (
        "c = Conv(data, w)\n"
        "b = BatchNormalization<epsilon = 0.001>(c, gamma, beta, mean, var)\n"
        "r = Relu(b)\n"
        "z = GlobalAveragePool(r)\noutput = Flatten(z)"
    )
    weights = {
        "w": (8, 4, 3, 3),
        "gamma": (8,),
        "beta": (8,),
        "mean": (8,),
        "var": np.full(8, 1e8).tolist(),
    }
    before = Artifact(graph(body, weights, output="N, 8"), "loud", Preprocess(size=9))
    run: Runner = lambda model, data: execute(model, data)[0]  # noqa: E731
    assert (
        certify.certify(
            before, fold.fold(before.model), fold.fold, run
        ).adversarial_cases
        == 1
    )
    monkeypatch.setattr(algebra, "from_batchnorm", mutate(algebra.from_batchnorm))
    result = fold.fold(before.model)
    prove(
        before.model, result.model, result.outputs
    )  # what the model's own numbers show: nothing
    with pytest.raises(CertificateError, match="with adversarial BatchNorm parameters"):
        certify.certify(before, result, fold.fold, run)
