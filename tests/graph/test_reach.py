"""The fold on networks and re-parameterized blocks from outside the zoo.

SLIM holds the operators that the usual tools leave of the same network:
timm.utils.reparameterize_model, torch.onnx.export (TorchScript, opset 17, open batch, 64 px, with
its own constant folding), onnxslim. Constants are not counted. Made with timm 1.0.31, torch 2.14.1
and onnxslim 0.1.98:

    # families.seeded(name, 10, 0) for the models of the zoo
    model = timm.create_model(name, num_classes=10).eval()
    ...  # random BatchNorm statistics
    torch.onnx.export(
        reparameterize_model(model),
        (torch.zeros(1, 3, 64, 64),),
        "m.onnx",
        dynamo=False,
        opset_version=17,
        input_names=["data"],
        output_names=["output"],
        dynamic_axes={"data": {0: "N"}, "output": {0: "N"}},
    )
    onnxslim.slim("m.onnx", "slim.onnx")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repzoo import verbs
from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.graph.certificate.proof import prove
from repzoo.graph.fold.engine import fold

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]

SLIM: dict[str, dict[str, int]] = {
    "repvgg_a0": {
        "Conv": 22,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "Relu": 22,
    },
    "repghostnet_050": {
        "Add": 16,
        "Conv": 95,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "HardSigmoid": 7,
        "Mul": 7,
        "ReduceMean": 7,
        "Relu": 42,
    },
    "repvit_m0_9": {
        "Add": 53,
        "Conv": 103,
        "Div": 27,
        "Erf": 27,
        "Gemm": 1,
        "Mul": 64,
        "ReduceMean": 11,
        "Relu": 10,
        "Sigmoid": 10,
    },
    "fasternet_t0": {
        "Add": 27,
        "Concat": 13,
        "Conv": 44,
        "Div": 14,
        "Erf": 14,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "Mul": 28,
        "Split": 13,
    },
    "mobileone_s0": {
        "Conv": 43,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "Relu": 43,
    },
    "fastvit_sa12": {
        "Add": 33,
        "BatchNormalization": 2,
        "Conv": 59,
        "Div": 19,
        "Erf": 19,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "MatMul": 8,
        "Mul": 45,
        "ReduceMean": 1,
        "Relu": 1,
        "Reshape": 8,
        "Sigmoid": 1,
        "Softmax": 2,
        "Split": 2,
        "Squeeze": 6,
        "Transpose": 10,
    },
    "mobilenetv3_small_100": {
        "Add": 6,
        "Conv": 53,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "HardSigmoid": 9,
        "HardSwish": 19,
        "Mul": 9,
        "ReduceMean": 9,
        "Relu": 14,
    },
    "tf_efficientnet_lite0": {
        "Add": 9,
        "Clip": 33,
        "Conv": 49,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
    },
    "ghostnet_100": {
        "Add": 16,
        "Concat": 32,
        "Conv": 95,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "HardSigmoid": 7,
        "Mul": 7,
        "ReduceMean": 7,
        "Relu": 42,
        "Slice": 32,
    },
    "levit_conv_128s": {
        "Add": 21,
        "AveragePool": 2,
        "Conv": 50,
        "Div": 1,
        "Gemm": 2,
        "HardSwish": 25,
        "MatMul": 22,
        "Mul": 11,
        "ReduceMean": 1,
        "Reshape": 24,
        "Softmax": 11,
        "Split": 11,
        "Transpose": 21,
    },
    "efficientvit_m0": {
        "Add": 56,
        "Concat": 6,
        "Conv": 116,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "MatMul": 48,
        "Mul": 26,
        "ReduceMean": 2,
        "Relu": 31,
        "Reshape": 96,
        "Sigmoid": 2,
        "Slice": 24,
        "Softmax": 24,
        "Split": 24,
        "Transpose": 48,
    },
    "shvit_s1": {
        "Add": 24,
        "Concat": 9,
        "Conv": 77,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "InstanceNormalization": 9,
        "MatMul": 18,
        "Mul": 11,
        "ReduceMean": 2,
        "Relu": 33,
        "Reshape": 54,
        "Sigmoid": 2,
        "Softmax": 9,
        "Split": 18,
        "Transpose": 13,
    },
    # at 224 px, its own size
    "levit_128s": {
        "Add": 67,
        "Conv": 4,
        "Div": 1,
        "Gemm": 2,
        "HardSwish": 25,
        "MatMul": 68,
        "Mul": 11,
        "ReduceMean": 1,
        "Reshape": 29,
        "Slice": 2,
        "Softmax": 11,
        "Split": 11,
        "Transpose": 45,
    },
}
GOLDEN = {"repvgg_a0", "repghostnet_050", "repvit_m0_9", "fasternet_t0"}
SIZES = {"levit_128s": 224}
OPTIONS = {"levit_conv_128s": {"img_size": 64}, "efficientvit_m0": {"img_size": 64}}
LAYERS = ("Conv", "Gemm", "MatMul", "BatchNormalization", "Add", "Mul")


@pytest.fixture(scope="module")
def export_model(aged: Any) -> Callable[[str], Artifact]:
    pytest.importorskip("timm", reason="the torch extra is not installed")
    import timm
    import torch

    from repzoo.graph.tools.export import export
    from repzoo.zoo import catalog, families

    ours = {row.name for row in catalog.models()}

    def export_aged(name: str) -> Artifact:
        torch.manual_seed(0)
        module = (
            families.seeded(name, 10, 0)
            if name in ours
            else timm.create_model(name, num_classes=10, **OPTIONS.get(name, {}))
        )
        return export(
            aged(module),
            name,
            Preprocess(size=SIZES.get(name, 64)),
            (),
            Step("build", "0"),
        )

    return export_aged


# Others test attention and plain BatchNorms too.
LONG = {"efficientvit_m0", "levit_128s", "tf_efficientnet_lite0"}


@pytest.mark.parametrize("name", SLIM)
def test_other_networks_fold_at_least_as_far_as_with_onnxslim(
    name: str,
    export_model: Callable[[str], Artifact],
    request: pytest.FixtureRequest,
) -> None:
    if name in GOLDEN and not request.config.getoption("--all-variants"):
        pytest.skip("test_golden.py folds it; run with --all-variants")
    if name in LONG and not request.config.getoption("--all-variants"):
        pytest.skip("takes long; run with --all-variants")
    folded = verbs.fold(export_model(name))
    certificate = folded.certificate
    assert certificate is not None
    ours = Counter(
        node.op_type for node in folded.model.graph.node if node.op_type != "Constant"
    )
    assert certificate.equal is not False  # aged statistics can make it inconclusive
    assert certificate.proven > 0
    assert "BatchNormalization" not in ours
    assert ours.total() <= sum(SLIM[name].values())
    theirs = Counter(SLIM[name])
    theirs["Conv"] += theirs["BatchNormalization"]  # that they leave alone
    assert all(ours[kind] <= theirs[kind] for kind in LAYERS), ours


# --- blocks of the papers -------------------------------------------------------------------------


def normal(output: str, source: str, name: str) -> str:
    return f"{output} = BatchNormalization({source}, gamma{name}, beta{name}, mean{name}, var{name})\n"


def bn(*names: str) -> dict[str, Any]:
    return {
        f"{part}{name}": (4,)
        for name in names
        for part in ("gamma", "beta", "mean", "var")
    }


PADS = "pads = [1, 1, 1, 1]"
SQUARE = {
    "w": (4, 4, 3, 3),
    "w1": (4, 4, 1, 1),
    "v1": (4, 4, 1, 1),
    "v3": (4, 4, 3, 3),
    "p1": (4, 4, 1, 1),
}
BLOCKS: dict[str, tuple[str, dict[str, Any]]] = {
    # RepLKNet (arXiv 2203.06717): a large depthwise kernel with a small one beside it
    "replknet": (
        "a = Conv<pads = [6, 6, 6, 6], group = 4>(data, wl)\n"
        + normal("ab", "a", "a")
        + "b = Conv<pads = [2, 2, 2, 2], group = 4>(data, ws)\n"
        + normal("bb", "b", "b")
        + "output = Add(ab, bb)",
        {"wl": (4, 1, 13, 13), "ws": (4, 1, 5, 5)} | bn("a", "b"),
    ),
    # ACNet (arXiv 1908.03930): the skeleton 1x3 and 3x1 beside 3x3
    "acnet": (
        f"a = Conv<{PADS}>(data, w)\n"
        + normal("ab", "a", "a")
        + "b = Conv<pads = [0, 1, 0, 1]>(data, wh)\n"
        + normal("bb", "b", "b")
        + "c = Conv<pads = [1, 0, 1, 0]>(data, wv)\n"
        + normal("cb", "c", "c")
        + "s = Add(ab, bb)\noutput = Add(s, cb)",
        {"w": (4, 4, 3, 3), "wh": (4, 4, 1, 3), "wv": (4, 4, 3, 1)} | bn("a", "b", "c"),
    ),
    # DBB (arXiv 2103.13425): 1x1; 1x1-BN-kxk with the border that BN gives zeros; 1x1-BN-average;
    # kxk
    "dbb, padded in front of the first BN": (
        f"a = Conv<{PADS}>(data, w)\n"
        + normal("ab", "a", "a")
        + "b = Conv(data, w1)\n"
        + normal("bb", "b", "b")
        + "c = Conv(data, v1)\ncp = Pad(c, frame)\n"
        + normal("cb", "cp", "c")
        + "d = Conv(cb, v3)\n"
        + normal("db", "d", "d")
        + "e = Conv(data, p1)\nep = Pad(e, frame)\n"
        + normal("eb", "ep", "e")
        + "f = AveragePool<kernel_shape = [3, 3]>(eb)\n"
        + normal("fb", "f", "f")
        + "s = Add(ab, bb)\nt = Add(s, db)\noutput = Add(t, fb)",
        SQUARE | bn(*"abcdef"),
    ),
    "dbb, padded in the 1x1 convolution": (
        f"a = Conv<{PADS}>(data, w)\n"
        + normal("ab", "a", "a")
        + "b = Conv(data, w1)\n"
        + normal("bb", "b", "b")
        + f"c = Conv<{PADS}>(data, v1)\n"
        + normal("cb", "c", "c")
        + "d = Conv(cb, v3)\n"
        + normal("db", "d", "d")
        + f"e = Conv<{PADS}>(data, p1)\n"
        + normal("eb", "e", "e")
        + "f = AveragePool<kernel_shape = [3, 3]>(eb)\n"
        + normal("fb", "f", "f")
        + "s = Add(ab, bb)\nt = Add(s, db)\noutput = Add(t, fb)",
        SQUARE | bn(*"abcdef"),
    ),
    "dbb, strided": (
        f"a = Conv<{PADS}, strides = [2, 2]>(data, w)\n"
        + normal("ab", "a", "a")
        + "b = Conv<strides = [2, 2]>(data, w1)\n"
        + normal("bb", "b", "b")
        + "c = Conv(data, v1)\ncp = Pad(c, frame)\n"
        + normal("cb", "cp", "c")
        + "d = Conv<strides = [2, 2]>(cb, v3)\n"
        + normal("db", "d", "d")
        + "s = Add(ab, bb)\noutput = Add(s, db)",
        SQUARE | bn(*"abcd"),
    ),
    # MobileOne (arXiv 2206.04040): several kxk, a scale branch and BN alone, depthwise
    "mobileone": (
        f"a = Conv<{PADS}, group = 4>(data, wa)\n"
        + normal("ab", "a", "a")
        + f"b = Conv<{PADS}, group = 4>(data, wb)\n"
        + normal("bb", "b", "b")
        + "c = Conv<group = 4>(data, wc)\n"
        + normal("cb", "c", "c")
        + normal("db", "data", "d")
        + "s = Add(ab, bb)\nt = Add(s, cb)\noutput = Add(db, t)",
        {"wa": (4, 1, 3, 3), "wb": (4, 1, 3, 3), "wc": (4, 1, 1, 1)} | bn(*"abcd"),
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_becomes_one_convolution(
    name: str, graph: Graph, execute: Execute
) -> None:
    body, weights = BLOCKS[name]
    frame = "frame = Constant<value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}>()\n"
    model = graph((frame if "frame" in body else "") + body, weights)
    result = fold(model)
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    assert not result.refusals
    assert prove(model, result.model, result.outputs)
    data = np.random.default_rng(1).standard_normal((2, 4, 9, 10)).astype(np.float32)
    (expected,), (got,) = execute(model, data), execute(result.model, data)
    assert np.abs(expected - got).max() <= 1e-4 * np.abs(expected).max()
