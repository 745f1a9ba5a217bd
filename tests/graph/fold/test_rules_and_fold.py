"""What folds, what is refused and why, and what is left alone; then random linear graphs. Each
fold is run against its origin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repzoo.errors import CertificateError, InputError
from repzoo.graph.certificate.proof import prove
from repzoo.graph.fold.engine import fold
from repzoo.graph.tools.fold_result import FoldResult

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]
Folded = Callable[[onnx.ModelProto], FoldResult]

# of the largest output: float32 noise of a few layers; a wrong fold is off by the size of a
# weight
RELATIVE = 2e-5


@dataclass(frozen=True)
class Case:
    """A graph, what its fold holds, and a part of the one refusal (none when empty)."""

    name: str
    body: str
    weights: dict[str, Any]
    left: dict[str, int]
    refusal: str = ""
    data: str = "N, 4, 9, 10"
    output: str = "N, C, H, W"
    more: tuple[tuple[str, Any], ...] = ()


@pytest.fixture(scope="session")
def fold_and_compare(execute: Execute) -> Folded:
    """Fold and check all that must hold of any fold."""

    def run(model: onnx.ModelProto) -> FoldResult:
        given_bytes = model.SerializeToString(deterministic=True)
        result = fold(model)
        assert model.SerializeToString(deterministic=True) == given_bytes, (
            "the given model was changed"
        )
        onnx.checker.check_model(result.model, full_check=True)
        _assert_same_contract(model, result.model)
        _assert_same_values(model, result.model, execute)
        again = fold(result.model)
        assert not again.folds
        assert _bytes(again.model) == _bytes(result.model), "not idempotent"
        assert _bytes(fold(model).model) == _bytes(result.model), "not deterministic"
        return result

    return run


def _bytes(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def _assert_same_contract(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    assert [item.name for item in after.graph.output] == [
        item.name for item in before.graph.output
    ]
    assert list(after.graph.input) == list(before.graph.input)
    assert [item.type.tensor_type.elem_type for item in after.graph.output] == [
        item.type.tensor_type.elem_type for item in before.graph.output
    ]
    if name := before.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        assert after.graph.output[0].type.tensor_type.shape.dim[0].dim_param == name
    assert after.opset_import == before.opset_import
    assert after.ir_version == before.ir_version
    assert after.metadata_props == before.metadata_props


def _assert_same_values(
    before: onnx.ModelProto, after: onnx.ModelProto, execute: Execute
) -> None:
    dims = before.graph.input[0].type.tensor_type.shape.dim
    sizes = [
        [
            dim.dim_value or default
            for dim, default in zip(dims, (batch, 4, 9, 10), strict=False)
        ]
        for batch in (1, 3)
    ]
    for shape in sizes:
        data = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        for expected, got in zip(
            execute(before, data), execute(after, data), strict=True
        ):
            assert expected.shape == got.shape
            assert np.abs(expected - got).max() <= RELATIVE * max(
                np.abs(expected).max(), 1e-3
            )


def operators(model: onnx.ModelProto) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph.node))


def bn(name: str, channels: int = 8) -> dict[str, Any]:
    return {f"{part}{name}": (channels,) for part in ("gamma", "beta", "mean", "var")}


def normal(output: str, source: str, name: str, settings: str = "") -> str:
    return f"{output} = BatchNormalization{settings}({source}, gamma{name}, beta{name}, mean{name}, var{name})"


REFUSED_PADS = "borders would differ"
W3 = {"w3": (8, 4, 3, 3)}
SQUARE = {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1)}

FIRES = [
    Case("conv, bn", f"t = Conv(data, w3)\n{normal('output', 't', 'a')}", W3 | bn("a"), {"Conv": 1}),
    Case(
        "conv with bias, strides, dilations, groups and uneven pads, bn with its own epsilon",
        "t = Conv<strides = [2, 1], dilations = [1, 2], pads = [0, 1, 2, 3], group = 2>(data, w, b)\n"
        + normal("output", "t", "a", "<epsilon = 0.3>"),
        {"w": (8, 2, 3, 2), "b": (8,)} | bn("a"),
        {"Conv": 1},
    ),
    Case("depthwise conv, bn", f"t = Conv<group = 4>(data, w)\n{normal('output', 't', 'a', '')}", {"w": (4, 1, 3, 3)} | bn("a", 4), {"Conv": 1}),
    Case("bn alone", normal("output", "data", "a"), bn("a", 4), {"Conv": 1}),
    Case("bn, unpadded conv", f"{normal('t', 'data', 'a')}\noutput = Conv(t, w3)", W3 | bn("a", 4), {"Conv": 1}),
    Case("bn, grouped conv", f"{normal('t', 'data', 'a')}\noutput = Conv<group = 2>(t, w)", {"w": (8, 2, 3, 3)} | bn("a", 4), {"Conv": 1}),
    Case(
        "3x3, 1x1 and identity branches, each with bn",
        "a = Conv<pads = [1, 1, 1, 1]>(data, w3)\n" + normal("ab", "a", "a") + "\nb = Conv(data, w1)\n" + normal("bb", "b", "b")
        + "\n" + normal("cb", "data", "c") + "\ns = Add(ab, bb)\nt = Add(s, cb)\noutput = Relu(t)",
        SQUARE | bn("a", 4) | bn("b", 4) | bn("c", 4),
        {"Conv": 1, "Relu": 1},
    ),
    Case(
        "1x3 and 3x1",
        "a = Conv<pads = [0, 1, 0, 1]>(data, wa)\nb = Conv<pads = [1, 0, 1, 0]>(data, wb)\nc = Conv<pads = [1, 1, 1, 1]>(data, wc)\n"
        "s = Add(a, b)\noutput = Add(c, s)",
        {"wa": (8, 4, 1, 3), "wb": (8, 4, 3, 1), "wc": (8, 4, 3, 3)},
        {"Conv": 1},
    ),
    Case(
        "depthwise 7x7 and 3x3 and the input itself",
        "a = Conv<pads = [3, 3, 3, 3], group = 4>(data, wa)\nb = Conv<pads = [1, 1, 1, 1], group = 4>(data, wb)\ns = Add(a, b)\noutput = Add(data, s)",
        {"wa": (4, 1, 7, 7), "wb": (4, 1, 3, 3)},
        {"Conv": 1},
    ),
    Case(
        "strided 3x3 and 1x1",
        "a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(data, wa)\nb = Conv<strides = [2, 2]>(data, wb)\noutput = Add(a, b)",
        {"wa": (8, 4, 3, 3), "wb": (8, 4, 1, 1)},
        {"Conv": 1},
    ),
    Case(
        "average pool that counts its padding, beside a conv",
        "a = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(data)\n"
        "b = Conv<pads = [1, 1, 1, 1]>(data, w)\noutput = Add(a, b)",
        {"w": (4, 4, 3, 3)},
        {"Conv": 1},
    ),
    Case(
        "average pool without padding, then a scale",
        "t = AveragePool<kernel_shape = [3, 2], strides = [2, 2]>(data)\noutput = Mul(t, s)",
        {"s": (4, 1, 1)},
        {"Conv": 1},
    ),
    Case("layer scale and residual", "t = Conv(data, w)\nu = Mul(s, t)\noutput = Add(u, data)", {"w": (4, 4, 1, 1), "s": (4, 1, 1)}, {"Conv": 1}),
    Case("scalar scale", "t = Conv(data, w)\noutput = Mul(t, s)", {"w": (4, 4, 1, 1), "s": [0.5]}, {"Conv": 1}),
    Case("constant minus", "t = Conv(data, w)\noutput = Sub(s, t)", {"w": (4, 4, 1, 1), "s": (1, 4, 1, 1)}, {"Conv": 1}),
    Case("minus constant", "t = Conv(data, w)\noutput = Sub(t, s)", {"w": (4, 4, 1, 1), "s": (1, 4, 1, 1)}, {"Conv": 1}),
    Case("difference of branches", "a = Conv(data, wa)\nb = Conv(data, wb)\noutput = Sub(a, b)", {"wa": (8, 4, 1, 1), "wb": (8, 4, 1, 1)}, {"Conv": 1}),
    Case("divided by a constant", "t = Conv(data, w)\noutput = Div(t, s)", {"w": (4, 4, 1, 1), "s": [[[2.0]], [[-3.0]], [[4.0]], [[0.5]]]}, {"Conv": 1}),
    Case("dropout and identity between", f"t = Conv(data, w3)\nu = Identity(t)\nv, mask = Dropout(u)\n{normal('output', 'v', 'a')}", W3 | bn("a"), {"Conv": 1}),
    Case("identity writes the output", f"t = Conv(data, w3)\n{normal('u', 't', 'a')}\noutput = Identity(u)", W3 | bn("a"), {"Conv": 1}),
    Case(
        "weights in Constant nodes",
        "w = Constant<value = float[2, 4, 1, 1] {1, 2, 3, 4, 5, 6, 7, 8}>()\ns = Constant<value = float[2, 1, 1] {2, 3}>()\n"
        "t = Conv(data, w)\noutput = Mul(t, s)",
        {},
        {"Conv": 1},
    ),
    Case("auto_pad VALID", f"t = Conv<auto_pad = \"VALID\">(data, w3)\n{normal('output', 't', 'a')}", W3 | bn("a"), {"Conv": 1}),
    *(
        Case(
            f"auto_pad {kind}, strides {down}",
            f"r = AveragePool<kernel_shape = [2, 2], auto_pad = \"{kind}\", strides = [2, 2], count_include_pad = 1>(data)\n"
            f"s = Conv<group = 4>(r, w1)\n{normal('v', 's', 'b')}\nq = Relu(v)\n"
            f"t = Conv<auto_pad = \"{kind}\", strides = {down}>(q, w)\n{normal('output', 't', 'a')}",
            {"w": (2, 4, 4, 3), "w1": (4, 1, 1, 1)} | bn("a", 2) | bn("b", 4),
            {"Conv": 2, "Relu": 1},
        )
        for kind in ("SAME_UPPER", "SAME_LOWER")
        for down in ([1, 1], [2, 3], [3, 4])
    ),
    Case(
        "two 1x1 convolutions that narrow",
        "t = Conv(data, wa)\noutput = Conv(t, wb)",
        {"wa": (8, 4, 1, 1), "wb": (4, 8, 1, 1)},
        {"Conv": 1},
    ),
    Case(
        "a scale joins the convolution before it, not the one after",
        f"t = Conv<group = 4>(data, wa)\n{normal('u', 't', 'a')}\noutput = Conv(u, wb)",
        {"wa": (4, 1, 3, 3), "wb": (8, 4, 1, 1)} | bn("a", 4),
        {"Conv": 2},
        "one 3x3 convolution in place of 2 nodes",
    ),
]  # fmt: skip

FRAME = "frame = Constant<value = int64[8] {0, 0, 1, 2, 0, 0, 0, 1}>()\n"
SPLIT = "a, b = Split<axis = 1>(data, sizes)\n"
W4 = {"wa": (4, 4, 3, 3), "wb": (4, 4, 1, 1), "wc": (2, 4, 3, 3)}

FIRES += [
    Case("pad, conv", FRAME + "t = Pad(data, frame)\noutput = Conv(t, w3)", W3, {"Conv": 1}),
    Case("pad, padded and dilated conv, bn", FRAME + f"t = Pad(data, frame)\nu = Conv<pads = [0, 1, 2, 0], dilations = [2, 1]>(t, w3)\n{normal('output', 'u', 'a')}", W3 | bn("a"), {"Conv": 1}),
    Case("pad, strided conv, as TF pads", FRAME + "t = Pad(data, frame)\noutput = Conv<strides = [2, 2], group = 4>(t, w)", {"w": (4, 1, 3, 3)}, {"Conv": 1}),
    Case("conv 1x1, pad, bn, conv", FRAME + f"s = Conv(data, wb)\nt = Pad(s, frame)\n{normal('u', 't', 'a')}\noutput = Conv(u, wa)", W4 | bn("a", 4), {"Conv": 1}),
    Case("pad of a sum's branch", FRAME + "t = Pad(data, frame)\na = Conv(t, wc)\nb = Conv<pads = [1, 2, 0, 1]>(data, wd)\noutput = Add(a, b)", {"wc": (2, 4, 3, 3), "wd": (2, 4, 3, 3)}, {"Conv": 1}),
    Case("concat of two convolutions", "a = Conv(data, wa)\nb = Conv(data, wc)\noutput = Concat<axis = 1>(a, b)", W4, {"Conv": 1}),
    Case("concat of three, an axis from behind, then bn", f"a = Conv(data, wb)\nb = Conv(data, wd)\nc = Conv(data, we)\nt = Concat<axis = -3>(a, c, b)\n{normal('output', 't', 'a')}", {"wb": (4, 4, 1, 1), "wd": (1, 4, 1, 1), "we": (3, 4, 1, 1)} | bn("a"), {"Conv": 1}),
    Case("split, two convolutions, sum", SPLIT + "c = Conv(a, wd)\nd = Conv(b, we)\noutput = Add(c, d)", {"wd": (4, 1, 3, 3), "we": (4, 3, 3, 3), "sizes": np.array([1, 3])}, {"Conv": 1}),
    Case("channels that nobody reads", "s = Constant<value = int64[1] {-3}>()\ne = Constant<value = int64[1] {4}>()\nx = Constant<value = int64[1] {1}>()\nt = Conv(data, wa)\noutput = Slice(t, s, e, x)", W4, {"Conv": 1}),
    Case("weights behind arithmetic", "w = Transpose<perm = [3, 2, 0, 1]>(flat)\nv = Identity(w)\nh = Cast<to = 10>(v)\nf = Cast<to = 1>(h)\nt = Conv(data, f)\nu = Unsqueeze(vec, axes)\noutput = Mul(t, u)", {"flat": (3, 3, 4, 8), "vec": (8,), "axes": np.array([1, 2])}, {"Conv": 1}),
    Case("pads from the shape", "sh = Shape(data)\ni = Constant<value = int64[1] {2}>()\nh = Gather(sh, i)\nt = Constant<value = int64[1] {2}>()\nm = Mod(h, t)\nz = Constant<value = int64[1] {0}>()\np = Concat<axis = 0>(z, z, m, m, z, z, m, z)\nq = Pad(data, p)\noutput = Conv(q, w3)", W3, {"Conv": 1}),
]  # fmt: skip

FLAT = [
    Case("matmul, add", "t = MatMul(data, w)\noutput = Add(t, b)", {"w": (5, 8), "b": (8,)}, {"Gemm": 1}),
    Case("bn, matmul, add, bn", f"{normal('t', 'data', 'a')}\nu = MatMul(t, w)\nv = Add(b, u)\n{normal('output', 'v', 'b')}", {"w": (5, 8), "b": (8,)} | bn("a", 5) | bn("b"), {"Gemm": 1}),
    Case("two matmuls that narrow", "t = MatMul(data, w)\noutput = MatMul(t, v)", {"w": (5, 8), "v": (8, 3)}, {"Gemm": 1}),
    Case("concat of two linear layers", "a = MatMul(data, w)\nb = Gemm(data, v, c)\noutput = Concat<axis = 1>(a, b)", {"w": (5, 8), "v": (5, 3), "c": (3,)}, {"Gemm": 1}),
    Case("bn, gemm", f"{normal('t', 'data', 'a')}\noutput = Gemm<transB = 1>(t, w, b)", {"w": (8, 5), "b": (8,)} | bn("a", 5), {"Gemm": 1}),
    Case("gemm, bn", f"t = Gemm(data, w, b)\n{normal('output', 't', 'a')}", {"w": (5, 8), "b": (1, 8)} | bn("a"), {"Gemm": 1}),
    Case("alpha and beta", f"t = Gemm<alpha = 0.5, beta = 3.0>(data, w, b)\n{normal('output', 't', 'a')}", {"w": (5, 8), "b": (1,)} | bn("a"), {"Gemm": 1}),
    Case(
        "two averaged heads",
        f"{normal('a', 'data', 'a')}\nb = Gemm<transB = 1>(a, wa, ba)\n{normal('c', 'data', 'c')}\nd = Gemm<transB = 1>(c, wc, bc)\n"
        "s = Add(b, d)\noutput = Div(s, two)",
        {"wa": (8, 5), "ba": (8,), "wc": (8, 5), "bc": (8,), "two": [2.0]} | bn("a", 5) | bn("c", 5),
        {"Gemm": 1},
    ),
    Case("linear residual", "t = Gemm(data, w, b)\noutput = Add(data, t)", {"w": (5, 5), "b": (5,)}, {"Gemm": 1}),
    Case("bn of a vector alone", normal("output", "data", "a"), bn("a", 5), {"BatchNormalization": 1}, "no cheaper operator"),
    Case("scale and bn of a vector", f"t = Mul(data, s)\n{normal('output', 't', 'a')}", {"s": (5,)} | bn("a", 5), {"Mul": 1, "BatchNormalization": 1}, "no cheaper operator"),
    Case(
        "a bias for each row",
        f"t = Gemm(data, w, b)\n{normal('output', 't', 'a')}",
        {"w": (5, 3), "b": (3, 1)} | bn("a", 3),
        {"Gemm": 1, "BatchNormalization": 1},
        "not one number for each output",
        "3, 5",
    ),
    Case("gemm of a transposed input", f"t = Gemm<transA = 1>(data, w)\n{normal('output', 't', 'a')}", {"w": (5, 8)} | bn("a"), {"Gemm": 1, "BatchNormalization": 1}, "transposed", "5, 3"),
]  # fmt: skip

REFUSES = [
    Case("pad with ones", FRAME + "one = Constant<value = float {1}>()\nt = Pad(data, frame, one)\noutput = Conv(t, w3)", W3, {"Constant": 2, "Pad": 1, "Conv": 1}, "something other than zeros"),
    Case("pad that reflects", FRAME + "t = Pad<mode = \"reflect\">(data, frame)\noutput = Conv(t, w3)", W3, {"Constant": 1, "Pad": 1, "Conv": 1}, "something other than zeros"),
    Case("bn, pad, conv", FRAME + f"{normal('s', 'data', 'a')}\nt = Pad(s, frame)\noutput = Conv(t, w3)", W3 | bn("a", 4), {"Conv": 2}, REFUSED_PADS),
    Case("conv with a bias, pad, conv", FRAME + "s = Conv(data, wb, b)\nt = Pad(s, frame)\noutput = Conv(t, wa)", W4 | {"b": (4,)}, {"Conv": 2}, REFUSED_PADS),
    Case("partial convolution", SPLIT + "c = Conv<pads = [1, 1, 1, 1]>(a, wd)\noutput = Concat<axis = 1>(c, b)", {"wd": (1, 1, 3, 3), "sizes": np.array([1, 3])}, {"Split": 1, "Conv": 1, "Concat": 1}, "one 3x3 convolution in place of 3 nodes would take 144 MACs for each input pixel and 144 weights"),
    Case("concat of unlike windows", "a = Conv<pads = [1, 1, 1, 1]>(data, wa)\nb = Conv(data, wb)\noutput = Concat<axis = 1>(a, b)", W4, {"Conv": 2, "Concat": 1}, "would take 288 MACs"),
    Case("bn, padded conv", f"{normal('t', 'data', 'a')}\noutput = Conv<pads = [1, 1, 1, 1]>(t, w3)", W3 | bn("a", 4), {"Conv": 2}, REFUSED_PADS),
    Case("conv, padded conv", "t = Conv(data, wa)\noutput = Conv<pads = [1, 1, 1, 1]>(t, wb)", {"wa": (4, 4, 3, 3), "wb": (4, 4, 3, 3)}, {"Conv": 2}, REFUSED_PADS),
    Case(
        "conv with a second reader",
        f"t = Conv(data, w)\n{normal('u', 't', 'a')}\nv = Relu(t)\noutput = Mul(u, v)",
        {"w": (4, 4, 1, 1)} | bn("a", 4),
        {"Conv": 2, "Relu": 1, "Mul": 1},
    ),
    Case(
        "one weight, two convolutions",
        f"t = Conv(data, w)\n{normal('u', 't', 'a')}\nv = Relu(u)\noutput = Conv(v, w)",
        {"w": (4, 4, 1, 1)} | bn("a", 4),
        {"Conv": 3, "Relu": 1},
        "shared with 1 other reader",
    ),
    Case(
        "auto_pad SAME on an open size",
        f"t = Conv<auto_pad = \"SAME_UPPER\", strides = [2, 1]>(data, w3)\n{normal('u', 't', 'a')}\noutput = Relu(u)",
        W3 | bn("a"),
        {"Conv": 2, "Relu": 1},
        "auto_pad=SAME",
        "N, 4, H, 10",
    ),
    Case(
        "average pool that leaves its padding out",
        "a = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 0>(data)\n"
        "b = Conv<pads = [1, 1, 1, 1]>(data, w)\noutput = Add(a, b)",
        {"w": (4, 4, 3, 3)},
        {"AveragePool": 1, "Conv": 1, "Add": 1},
        "count_include_pad=0",
    ),
    Case("sum of different strides", "a = Conv<pads=[1,1,1,1], strides=[2,2]>(data, wa)\nb = Conv<strides=[2,1]>(data, wb)\nc = GlobalAveragePool(a)\noutput = Add(b, c)",
         {"wa": (4, 4, 3, 3), "wb": (4, 4, 1, 1)}, {"Conv": 2, "GlobalAveragePool": 1, "Add": 1}),
    Case("sum that broadcasts a single pixel", "a = Conv(data, wa)\nb = Conv(data, wb)\noutput = Add(a, b)", {"wa": (4, 4, 9, 10), "wb": (4, 4, 1, 1)}, {"Conv": 2, "Add": 1}, "different sizes"),
    Case("sum that broadcasts channels", "a = Conv(data, wa)\nb = Conv(data, wb)\noutput = Add(a, b)", {"wa": (1, 4, 1, 1), "wb": (4, 4, 1, 1)}, {"Conv": 2, "Add": 1}, "channels do not add"),
    Case("training mode", "output, m, v = BatchNormalization<training_mode = 1>(data, gammaa, betaa, meana, vara)", bn("a", 4), {"BatchNormalization": 1}, "training mode"),
]  # fmt: skip

UNCHANGED = [
    Case("pad that crops", "frame = Constant<value = int64[8] {0, 0, -1, 0, 0, 0, 0, 0}>()\nt = Pad(data, frame)\noutput = Conv(t, w3)", W3, {"Constant": 1, "Pad": 1, "Conv": 1}),
    Case("pad of channels", "frame = Constant<value = int64[8] {0, 1, 0, 0, 0, 0, 0, 0}>()\nt = Pad(data, frame)\noutput = Conv(t, w)", {"w": (4, 5, 1, 1)}, {"Constant": 1, "Pad": 1, "Conv": 1}),
    Case("concat along the height", "a = Conv(data, wa)\nb = Conv(data, wd)\noutput = Concat<axis = 2>(a, b)", {"wa": (4, 4, 3, 3), "wd": (4, 4, 3, 3)}, {"Conv": 2, "Concat": 1}),
    Case("one tensor twice", "a = Conv(data, wa)\noutput = Concat<axis = 1>(a, a)", W4, {"Conv": 1, "Concat": 1}),
    Case("a part that is read twice", SPLIT + "c = Conv(a, wd)\nd = Conv(b, we)\ns = Add(c, d)\nr = Relu(a)\nz = GlobalAveragePool(r)\noutput = Mul(s, z)", {"wd": (4, 1, 3, 3), "we": (4, 3, 3, 3), "sizes": np.array([1, 3])}, {"Split": 1, "Conv": 2, "Add": 1, "Relu": 1, "GlobalAveragePool": 1, "Mul": 1}),
    Case("every second channel", "s = Constant<value = int64[1] {0}>()\ne = Constant<value = int64[1] {4}>()\nx = Constant<value = int64[1] {1}>()\nd = Constant<value = int64[1] {2}>()\nt = Conv(data, wa)\noutput = Slice(t, s, e, x, d)", W4, {"Constant": 4, "Conv": 1, "Slice": 1}),
    Case("one convolution", "output = Conv(data, w3)", W3, {"Conv": 1}),
    Case("conv, relu, conv", "t = Conv(data, wa)\nu = Relu(t)\noutput = Conv(u, wb)", {"wa": (4, 4, 1, 1), "wb": (4, 4, 1, 1)}, {"Conv": 2, "Relu": 1}),
    Case("product of activations", "a = Sigmoid(data)\noutput = Mul(a, data)", {}, {"Sigmoid": 1, "Mul": 1}),
    Case("constant over constant scale", "t = Conv(data, w)\noutput = Div(s, t)", {"w": (4, 4, 1, 1), "s": [2.0]}, {"Conv": 1, "Div": 1}),
    Case("a map that varies over pixels", "t = Conv(data, w)\noutput = Add(t, s)", {"w": (4, 4, 1, 1), "s": (1, 1, 9, 10)}, {"Conv": 1, "Add": 1}),
    Case("a constant that widens the channels", "t = Mul(data, s)\noutput = Conv(t, w)", {"s": (1, 4, 1, 1), "w": (4, 4, 1, 1)}, {"Mul": 1, "Conv": 1}, "", "N, 1, 9, 10"),
    Case("a tensor added to itself", "t = Conv(data, w)\noutput = Add(t, t)", {"w": (4, 4, 1, 1)}, {"Conv": 1, "Add": 1}),
    Case("a tensor minus itself", "t = Conv(data, w)\noutput = Sub(t, t)", {"w": (4, 4, 1, 1)}, {"Conv": 1, "Sub": 1}),
    Case("average pool of rounded-up size", "t = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(data)\noutput = Mul(t, s)", {"s": (4, 1, 1)}, {"AveragePool": 1, "Mul": 1}),
]  # fmt: skip


def check(case: Case, graph: Graph, folded: Folded, **more: Any) -> FoldResult:
    model = graph(
        case.body, case.weights, case.data, case.output, **{**dict(case.more), **more}
    )
    result = folded(model)
    assert operators(result.model) == case.left
    reasons = [refusal.reason for refusal in result.refusals]
    if case.refusal:
        assert any(case.refusal in reason for reason in reasons), reasons
        assert all(
            refusal.node
            in {node.name for node in result.model.graph.node}
            | {node.name for node in model.graph.node}
            for refusal in result.refusals
        )
    return result


def by_name(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", FIRES, ids=by_name)
def test_fires(case: Case, graph: Graph, fold_and_compare: Folded) -> None:
    result = check(case, graph, fold_and_compare)
    assert result.folds
    assert all(item.macs_after <= item.macs_before for item in result.folds)
    assert case.refusal or not result.refusals


@pytest.mark.parametrize("case", FLAT, ids=by_name)
def test_vectors(case: Case, graph: Graph, fold_and_compare: Folded) -> None:
    data = "N, 5" if case.data.count(",") > 1 else case.data
    vector = Case(
        **{
            **vars(case),
            "data": data,
            "output": "N, C" if data.startswith("N") else "A, C",
        }
    )
    result = check(vector, graph, fold_and_compare)
    assert bool(result.folds) != bool(case.refusal)


@pytest.mark.parametrize("case", REFUSES, ids=by_name)
def test_refuses(case: Case, graph: Graph, fold_and_compare: Folded) -> None:
    check(case, graph, fold_and_compare)


@pytest.mark.parametrize("case", UNCHANGED, ids=by_name)
def test_unchanged(case: Case, graph: Graph, fold_and_compare: Folded) -> None:
    result = check(case, graph, fold_and_compare)
    assert not result.folds
    assert not result.refusals


@pytest.mark.parametrize("opset", range(11, 21))
def test_every_opset(opset: int, graph: Graph, fold_and_compare: Folded) -> None:
    case = next(case for case in FIRES if case.name == "dropout and identity between")
    check(case, graph, fold_and_compare, opset=opset)


def test_the_refusal_of_a_costlier_map_names_both_costs(
    graph: Graph, fold_and_compare: Folded
) -> None:
    body = "t = Conv(data, wa)\noutput = Conv<group = 16>(t, wb)"
    result = fold_and_compare(graph(body, {"wa": (16, 4, 1, 1), "wb": (16, 1, 3, 3)}))
    assert operators(result.model) == {"Conv": 2}
    (refusal,) = result.refusals
    assert refusal.node == "Conv_1"
    assert (
        "would take 576 MACs for each input pixel and 576 weights; they take 208 and 208"
        in refusal.reason
    )


def test_weights_that_a_caller_may_replace_are_not_folded(graph: Graph) -> None:
    body = f"t = Conv(data, w)\n{normal('output', 't', 'a')}"
    model = graph(
        body, {"w": (4, 4, 1, 1)} | bn("a", 4), inputs=["float[4, 4, 1, 1] w"]
    )
    result = fold(model)
    assert {node.op_type for node in result.model.graph.node} == {"Conv"}
    assert result.model.graph.node[0].input[1] == "w"
    assert "not constant (a graph input or computed)" in result.refusals[0].reason
    assert [item.name for item in result.model.graph.input] == ["data", "w"]


def test_a_tensor_that_is_an_output_stays(
    graph: Graph, fold_and_compare: Folded
) -> None:
    body = f"t = Conv(data, w)\n{normal('output', 't', 'a')}"
    result = fold_and_compare(
        graph(body, {"w": (4, 4, 1, 1)} | bn("a", 4), outputs=", float[N, C, H, W] t")
    )
    assert operators(result.model) == {"Conv": 2}


def test_other_ranks_are_refused_in_words(
    graph: Graph, fold_and_compare: Folded
) -> None:
    result = fold_and_compare(
        graph(normal("output", "data", "a"), bn("a", 4), "N, 4, 9", "N, C, L")
    )
    assert not result.folds
    assert "rank 3" in result.refusals[0].reason
    body = f"t = Conv(data, w)\n{normal('output', 't', 'a')}"
    convolution = fold_and_compare(
        graph(body, {"w": (8, 4, 3)} | bn("a"), "N, 4, 9", "N, C, L")
    )
    assert not convolution.folds
    assert any("1-D convolution" in refusal.reason for refusal in convolution.refusals)
    pool = "output = AveragePool<kernel_shape = [3], pads = [1, 1]>(data)"
    assert not fold_and_compare(graph(pool, {}, "N, 4, 9", "N, C, L")).folds


def test_before_opset_14_a_second_output_means_training(graph: Graph) -> None:
    body = "t = Conv(data, w)\noutput, m, v, n, u = BatchNormalization(t, gammaa, betaa, meana, vara)"
    result = fold(graph(body, {"w": (4, 4, 1, 1)} | bn("a", 4), opset=13))
    assert not result.folds
    assert "training mode" in result.refusals[0].reason


def test_a_scale_between_two_layers_joins_the_first(
    graph: Graph, fold_and_compare: Folded
) -> None:
    """The layer behind it keeps its weights to the bit: a scale of input channels is what INT8
    weights cannot absorb.
    """
    body = (
        f"t = Conv<group = 4>(data, wa)\n{normal('u', 't', 'a')}\noutput = Conv(u, wb)"
    )
    model = graph(body, {"wa": (4, 1, 3, 3), "wb": (8, 4, 1, 1)} | bn("a", 4))
    after = fold_and_compare(model).model
    first, second = after.graph.node
    assert (len(first.input), len(second.input)) == (3, 2)
    was, kept = (
        next(item for item in network.graph.initializer if item.name == "wb")
        for network in (model, after)
    )
    assert np.array_equal(numpy_helper.to_array(was), numpy_helper.to_array(kept))


def test_integers_are_left_alone(graph: Graph) -> None:
    body = "two = Constant<value = int64 {2}>()\ni = Cast<to = 7>(data)\nj = Mul(i, two)\nk = Add(j, two)\noutput = Cast<to = 1>(k)"
    assert not fold(graph(body, {}, "N, 4", "N, 4")).folds


def test_a_quantized_graph_is_an_input_error(graph: Graph) -> None:
    body = "q = QuantizeLinear(data, s)\noutput = DequantizeLinear(q, s)"
    with pytest.raises(InputError, match="quantized already"):
        fold(graph(body, {"s": [0.5]} | {}))


def test_names_in_use_are_not_used_again(
    graph: Graph, fold_and_compare: Folded
) -> None:
    """The fold's own name for a bias is already a tensor of this graph."""
    body = f"t = Conv(data, w)\n{normal('w.folded_bias', 't', 'a')}\noutput = Relu(w.folded_bias)"
    model = graph(
        body.replace("w.folded_bias", "taken"), {"w": (4, 4, 1, 1)} | bn("a", 4)
    )
    model.graph.node[1].output[0] = model.graph.node[2].input[0] = "w.folded_bias"
    result = fold_and_compare(model)
    assert operators(result.model) == {"Conv": 1, "Relu": 1}


def test_a_bias_is_written_only_where_there_is_one(
    graph: Graph, fold_and_compare: Folded
) -> None:
    """A scale in front of a layer without a bias costs nothing; a BatchNorm always brings one."""
    scale = fold_and_compare(
        graph("t = Mul(data, s)\noutput = Conv(t, w)", {"s": [0.5], "w": (4, 4, 1, 1)})
    ).model
    assert len(scale.graph.node[0].input) == 2
    still = {**bn("a", 4), "betaa": [0.0] * 4, "meana": [0.0] * 4}
    fresh = fold_and_compare(
        graph(
            f"t = Conv(data, w)\n{normal('output', 't', 'a')}",
            {"w": (4, 4, 1, 1)} | still,
        )
    ).model
    assert len(fresh.graph.node[0].input) == 3


def test_random_linear_graphs_do_fold(graph: Graph, fold_and_compare: Folded) -> None:
    """The random graphs above are worth their name: a fixed one of their kind has folds on two
    levels.
    """
    body = (
        "a = Conv<pads = [1, 1, 1, 1]>(data, wa)\nb = Mul(data, s)\nc = Add(a, b)\nd = Conv(c, wb)\ne = Add(c, d)\n"
        + normal("f", "e", "a")
        + "\noutput = Add(f, data)"
    )
    result = fold_and_compare(
        graph(
            body, {"wa": (4, 4, 3, 3), "wb": (4, 4, 1, 1), "s": (4, 1, 1)} | bn("a", 4)
        )
    )
    assert operators(result.model) == {"Conv": 1}


@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("sides", ["9, 10", "10, 9", "11, 8"])
def test_a_proof_pads_as_on_the_true_size(kind: str, sides: str, graph: Graph) -> None:
    """Two strided convolutions: what each pads depends on the size of the image, and a proof
    runs on a small one.
    """
    body = (
        f's = Conv<auto_pad = "{kind}", strides = [2, 3], group = 4>(data, w)\n{normal("r", "s", "b")}\nq = Relu(r)\n'
        f't = Conv<auto_pad = "{kind}", strides = [3, 2]>(q, v)\n{normal("output", "t", "a")}'
    )
    model = graph(
        body,
        {"w": (4, 1, 4, 4), "v": (2, 4, 3, 4)} | bn("a", 2) | bn("b", 4),
        f"N, 4, {sides}",
    )
    result = fold(model)
    assert max(proof.ratio for proof in prove(model, result.model, result.outputs)) <= 1
    for node in result.model.graph.node:
        for item in node.attribute:
            if item.name == "pads":
                item.ints[:] = [
                    item.ints[0] + 1,
                    item.ints[1],
                    item.ints[2],
                    item.ints[3],
                ]
    with pytest.raises(CertificateError):
        prove(model, result.model, result.outputs)


def test_a_batchnorm_that_stays_as_exporters_write_it_is_proven_unchanged(
    graph: Graph,
) -> None:
    """training_mode = 0 is written out by torch and left out by onnx-ir; only training itself
    would be another node.
    """
    body = (
        normal("u", "data", "a").replace(
            "BatchNormalization", "BatchNormalization<training_mode = 0>"
        )
        + "output = Relu(u)"
    )
    model = graph(body, bn("a", 4), "N, 4, 9", "N, C, L")
    result = fold(model)
    assert [node.op_type for node in result.model.graph.node] == [
        "BatchNormalization",
        "Relu",
    ]
    assert prove(model, result.model, []) == ()
    result.model.graph.node[0].attribute.append(
        onnx.helper.make_attribute("training_mode", 1)
    )
    with pytest.raises(CertificateError):
        prove(model, result.model, [])
