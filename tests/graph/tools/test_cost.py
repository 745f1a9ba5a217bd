"""Costs against hand counts, against torch's own count of parameters, and between forms of the
same network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from repzoo.artifact import Artifact, Preprocess
from repzoo.graph.tools.cost import count
from repzoo.graph.tools.skeleton import without_weights
from repzoo.quant.network.placement import Placement
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.parameters.scales import ActivationParameters

Graph = Callable[..., onnx.ModelProto]

NETWORK = """
a = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(data, w1, b1)
b = BatchNormalization(a, gamma, beta, mean, var)
c = Relu(b)
d = Conv<group = 8, pads = [1, 1, 1, 1]>(c, w2)
e = GlobalAveragePool(d)
f = Flatten(e)
output = Gemm<transB = 1>(f, w3, b3)
"""
WEIGHTS: dict[str, Any] = {
    "w1": (8, 3, 3, 3), "b1": (8,), "gamma": (8,), "beta": (8,), "mean": (8,), "var": (8,), "w2": (8, 1, 3, 3), "w3": (5, 8), "b3": (5,)
}  # fmt: skip
CONV = 8 * 8 * (8 * 3 * 9)  # 16 px in, stride 2: 8 x 8 pixels
DEPTHWISE = 8 * 8 * (8 * 9)
GEMM = 5 * 8


@pytest.fixture
def network(graph: Graph) -> Artifact:
    """A strided convolution, BatchNorm, a depthwise convolution and a head on 16 px."""
    return Artifact(
        graph(NETWORK, WEIGHTS, "N, 3, 16, 16", "N, 5"), "network", Preprocess(size=16)
    )


def test_a_network_counted_by_hand(network: Artifact) -> None:
    cost = count(network)
    assert cost.macs == CONV + DEPTHWISE + GEMM
    assert cost.parameters == (216 + 8) + (8 + 8) + 72 + (40 + 5)
    assert cost.bytes == 4 * (216 + 8 + 4 * 8 + 72 + 45)
    assert cost.nodes == 7
    assert cost.operators == {
        "BatchNormalization": 1,
        "Conv": 2,
        "Flatten": 1,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "Relu": 1,
    }
    assert cost.uncounted == {
        "BatchNormalization": 1,
        "GlobalAveragePool": 1,
        "Relu": 1,
    }


@pytest.mark.parametrize(("transposed", "shape"), [(0, (3, 7)), (1, (7, 3))])
def test_a_gemm_sums_over_the_side_that_both_factors_share(
    transposed: int, shape: tuple[int, int], graph: Graph
) -> None:
    body = f"output = Gemm<transA = 1, transB = {transposed}>(data, w)"
    model = graph(body, {"w": shape}, "3, 5", "5, 7")
    assert count(Artifact(model, "gemm")).macs == 5 * 7 * 3


@pytest.mark.parametrize("batch", ["1", "8"])
def test_a_fixed_batch_costs_what_an_open_one_does_for_each_image(
    batch: str, graph: Graph, network: Artifact
) -> None:
    fixed = Artifact(
        graph(NETWORK, WEIGHTS, f"{batch}, 3, 16, 16", f"{batch}, 5"),
        "network",
        Preprocess(size=16),
    )
    assert count(fixed) == count(network)


def test_open_sides_take_the_artifacts_size_or_the_given_one(
    graph: Graph, network: Artifact
) -> None:
    free = Artifact(
        graph(NETWORK, WEIGHTS, "N, 3, H, W", "N, 5"), "network", Preprocess(size=16)
    )
    assert count(free) == count(network)
    assert count(free, size=32).macs == 4 * (CONV + DEPTHWISE) + GEMM
    unknown = count(replace(free, preprocess=None))
    assert unknown.macs == GEMM
    assert unknown.uncounted["Conv"] == 2, "what cannot be counted is named"


def test_int8_models_have_the_counts_of_their_float_form(network: Artifact) -> None:
    tensors = ("data", "c", "d", "f")
    placement = Placement(
        name="all", tensors=tensors, nodes=frozenset({"a", "d", "output"})
    )
    quantized = qdq.insert_qdq(
        network.model,
        placement,
        {name: ActivationParameters(0.02, 128) for name in tensors},
        per_channel=True,
    )
    onnx.checker.check_model(quantized)
    before, after = count(network), count(replace(network, model=quantized))
    assert (after.parameters, after.macs) == (before.parameters, before.macs)
    assert after.bytes < before.bytes
    assert after.uncounted["QuantizeLinear"] == len(tensors)


def test_counting_leaves_the_model_and_copies_none_of_its_weights(graph: Graph) -> None:
    model = graph(
        NETWORK, WEIGHTS | {"w3": (500, 8), "b3": (500,)}, "N, 3, 16, 16", "N, 500"
    )
    known = model.SerializeToString(deterministic=True)
    assert count(Artifact(model, "network")).bytes == 4 * (
        216 + 8 + 4 * 8 + 72 + 4000 + 500
    )
    assert model.SerializeToString(deterministic=True) == known
    assert without_weights(model).ByteSize() < len(known) - 4 * 4000


def test_a_shared_weight_is_one_parameter_and_two_layers_of_work(graph: Graph) -> None:
    body = "t = Conv(data, w)\nu = Relu(t)\nv = Conv(u, w)\noutput = Flatten(v)"
    cost = count(
        Artifact(graph(body, {"w": (4, 4, 1, 1)}, "N, 4, 5, 6", "N, C"), "tied")
    )
    assert cost.parameters == 16
    assert cost.macs == 2 * 16 * 30


def test_constant_nodes_are_weights_too(graph: Graph) -> None:
    body = "w = Constant<value = float[2, 4, 1, 1] {1, 2, 3, 4, 5, 6, 7, 8}>()\nt = Conv(data, w)\noutput = Flatten(t)"
    cost = count(Artifact(graph(body, {}, "N, 4, 5, 6", "N, C"), "constant"))
    assert (cost.parameters, cost.bytes, cost.nodes, cost.macs) == (8, 32, 2, 8 * 30)


@pytest.mark.parametrize(
    ("body", "weights", "data", "macs"),
    [
        ("t = Flatten(data)\noutput = MatMul(t, w)", {"w": (7, 5)}, "N, 7, 1, 1", 35),
        ("t = Flatten(data)\noutput = Gemm(t, w)", {"w": (7, 5)}, "N, 7, 1, 1", 35),
        (
            "t = Conv(data, w)\nu = GlobalAveragePool(t)\noutput = Flatten(u)",
            {"w": (6, 2, 3, 2)},
            "N, 2, 9, 10",
            7 * 9 * 6 * 12,
        ),
        (
            "t = Conv<group = 2, dilations = [2, 2]>(data, w)\noutput = Flatten(t)",
            {"w": (6, 2, 3, 3)},
            "N, 4, 9, 10",
            5 * 6 * 6 * 18,
        ),
    ],
)
def test_layers_counted_by_hand(
    body: str, weights: dict[str, Any], data: str, macs: int, graph: Graph
) -> None:
    assert count(Artifact(graph(body, weights, data, "N, C"), "layer")).macs == macs


def test_parameters_are_those_that_torch_counts(aged: Any) -> None:
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    from repzoo.artifact import Step
    from repzoo.graph.tools.export import export

    def numbers(module: Any) -> int:
        return sum(int(np.prod(item.shape)) for item in module.parameters())

    nn = torch.nn
    fresh = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8),
        nn.BatchNorm2d(8), nn.PReLU(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 5),
    )  # fmt: skip
    for module in (fresh.eval(), aged(fresh)):
        exported = export(module, "mixed", Preprocess(size=12), (), Step("build", "0"))
        assert count(exported).parameters == numbers(module), (
            "equal tensors of a fresh module stay apart"
        )
