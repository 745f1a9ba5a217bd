"""The share of a model that runs in INT8, counted by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import onnx
import pytest

from repzoo.artifact import Artifact, Preprocess
from repzoo.graph.tools.int8_share import Int8Share, int8_share
from repzoo.quant.network.placement import Placement
from repzoo.quant.parameters import qdq_writer
from repzoo.quant.parameters.scales import ActivationParameters

Graph = Callable[..., onnx.ModelProto]

# Two layers on 4 x 4 pixels: 16 * 3 * 8 and 10 * 8 multiply-accumulates.
BODY = """
a = Conv(data, w1)
b = Relu(a)
p = GlobalAveragePool(b)
f = Flatten(p)
output = Gemm<transB = 1>(f, w2)
"""
WEIGHTS: dict[str, Any] = {"w1": (8, 3, 1, 1), "w2": (10, 8)}


@pytest.fixture
def network(graph: Graph) -> Artifact:
    model = graph(BODY, WEIGHTS, "N, 3, 4, 4", "N, 10")
    return Artifact(model, "network", Preprocess(size=4))


def quantized(
    artifact: Artifact, nodes: Sequence[str], tensors: tuple[str, ...]
) -> Artifact:
    placement = Placement("some", frozenset(nodes), tensors)
    parameters = {name: ActivationParameters(0.02, 128) for name in tensors}
    model = qdq_writer.insert_qdq(artifact.model, placement, parameters, True)
    return replace(artifact, model=model)


def test_one_layer_of_two(network: Artifact) -> None:
    share = int8_share(quantized(network, ["a"], ("data", "b")))
    assert (share.int8_layers, share.layers) == (1, 2)
    assert share.macs == pytest.approx(384 / 464)
    assert share.bytes == pytest.approx(24 / 104)
    assert str(share) == "INT8: 1 of 2 layers, 83 % of MACs, 23 % of bytes"


def test_all_or_no_layers_in_int8(network: Artifact) -> None:
    everything = int8_share(quantized(network, ["a", "output"], ("data", "b", "f")))
    assert everything == Int8Share(layers=2, int8_layers=2, macs=1, bytes=1)
    assert everything.is_everything
    assert int8_share(network) == Int8Share(layers=2, int8_layers=0, macs=0, bytes=0)


def test_weights_alone_in_8_bits_are_computed_in_float(network: Artifact) -> None:
    share = int8_share(quantized(network, ["a"], ("b",)))
    assert share.int8_layers == 0


def test_open_sizes_leave_the_arithmetic_out(graph: Graph) -> None:
    model = graph(BODY, WEIGHTS, "N, 3, H, W", "N, 10")
    share = int8_share(quantized(Artifact(model, "open"), ["a"], ("data", "b")))
    assert math.isnan(share.macs)
    assert str(share) == "INT8: 1 of 2 layers, 23 % of bytes"


def test_all_but_a_little_is_not_rounded_to_all() -> None:
    share = Int8Share(layers=300, int8_layers=299, macs=0.999, bytes=0.001)
    assert str(share) == "INT8: 299 of 300 layers, > 99 % of MACs, < 1 % of bytes"
