"""Placements that an engine refuses leave the search; the others go on."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("sklearn", reason="the demo extra, with the digits, is not there")

from tests.small_model import add, sets, small

from repzoo.artifact import Artifact, Step
from repzoo.engines import Array
from repzoo.engines.onnxruntime import OnnxRuntime, OnnxRuntimeSession
from repzoo.engines.onnxruntime_profile import OnnxRuntimeProfiler
from repzoo.errors import InputError
from repzoo.protobuf_stream import clone
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.search import engine_race
from repzoo.quant.search.engine_race import Contest, RaceResult
from repzoo.quant.search.ladder import Target
from repzoo.quant.search.verdict import Budget


def with_depthwise() -> Artifact:
    """`small`, with a depthwise convolution that changes nothing in front of Flatten."""
    model = clone(small().model)
    kernel = np.zeros((16, 1, 3, 3), np.float32)
    kernel[:, :, 1, 1] = 1
    add(model, {"kernel": kernel})
    flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
    position = list(model.graph.node).index(flatten)
    inputs = [flatten.input[0], "kernel"]
    depthwise = onnx.helper.make_node(
        "Conv", inputs, ["e"], group=16, pads=[1, 1, 1, 1]
    )
    model.graph.node.insert(position, depthwise)
    flatten.input[0] = "e"
    return small().then(model, Step("fold", "0", {}))


def quantized_layers(model: onnx.ModelProto) -> set[str]:
    """The kinds of layers with INT8 weights. "Depthwise" is a convolution in groups."""
    written: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            written.update(node.output)
    kinds: set[str] = set()
    for node in model.graph.node:
        if len(node.input) > 1 and node.input[1] in written:
            groups = {item.name: item.i for item in node.attribute}.get("group", 1)
            kinds.add("Depthwise" if groups > 1 else node.op_type)
    return kinds


class Refusing(OnnxRuntime):
    """Refuses models in which one of `kinds` is in INT8, and profiles nothing if told so."""

    def __init__(self, *kinds: str, profiles: bool = True) -> None:
        super().__init__()
        self._kinds = set(kinds)
        self._profiles = profiles
        self.refused = 0

    def profiler(
        self, model: onnx.ModelProto, inputs: Array, threads: int = 1
    ) -> OnnxRuntimeProfiler:
        if not self._profiles:
            raise InputError("no profiles here")
        self._check(model)
        return super().profiler(model, inputs, threads)

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> OnnxRuntimeSession:
        self._check(model)
        return super().open(model, threads, exact, streams)

    def _check(self, model: onnx.ModelProto) -> None:
        if self._kinds & quantized_layers(model):
            self.refused += 1
            raise InputError(f"no INT8 {', '.join(self._kinds)} here")


def quantized_on(runner: OnnxRuntime) -> RaceResult:
    target = Target(runner, load_scheme("ort-cpu"), new_search=True)
    race = Contest((target,))
    return engine_race.quantize(with_depthwise(), sets(), race, Budget(5))


@pytest.mark.parametrize("profiles", [True, False])
def test_a_refused_placement_is_left_out(profiles: bool) -> None:
    runner = Refusing("Depthwise", profiles=profiles)
    result = quantized_on(runner)
    assert runner.refused
    kinds = quantized_layers(result.int8.model)
    assert "Conv" in kinds
    assert "Depthwise" not in kinds
    assert result.report.verdict.passes


def test_an_engine_that_refuses_all_of_them_says_why() -> None:
    with pytest.raises(InputError, match=r"no INT8 .* here"):
        quantized_on(Refusing("Conv", "Gemm", "Depthwise"))
