"""What is timed is what will be written; what an engine refuses leaves the search."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("sklearn", reason="the demo extra, with the digits, is not there")

from tests.small_model import add, sets, small

from repzoo.artifact import Artifact, Step
from repzoo.engines import Array, engine
from repzoo.engines.onnxruntime import OnnxRuntime, OnnxRuntimeSession
from repzoo.engines.onnxruntime_profile import OnnxRuntimeProfiler
from repzoo.errors import InputError
from repzoo.measure import latency
from repzoo.measure.stats import Interval
from repzoo.protobuf_stream import clone
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.network.placement import PlacementSpace
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters.activation_ranges import choose_ranges
from repzoo.quant.parameters.compute import activation_parameters
from repzoo.quant.search import (
    engine_race,
    ladder,
    placement_choice,
    placement_race,
)
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.contenders import Contest
from repzoo.quant.search.engine_race import RaceResult
from repzoo.quant.search.gate import Gate
from repzoo.quant.search.ladder import Target
from repzoo.quant.search.placement_race import PlacementRace
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


def quantized_on(runner: OnnxRuntime, *float_only: OnnxRuntime) -> RaceResult:
    target = Target(runner, load_scheme("ort-cpu"), new_search=True)
    race = Contest((target,), float_only)
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


class Rounding(Refusing):
    """Refuses nothing, and says that it computes float32 models in bfloat16."""

    def computes_float32_in(self) -> str:
        return "bfloat16"


def test_a_race_says_once_which_engine_computes_in_bfloat16() -> None:
    """Also of one whose INT8 did not win, or that has none."""
    for runners in ((Rounding(),), (Refusing(), Rounding())):
        warnings = quantized_on(*runners).report.warnings
        assert sum("in bfloat16" in warning for warning in warnings) == 1


CONCAT = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 3, 8, 8] data) => (float[1, 4] output)
    {
        stem = Conv (data, w0)
        left, right = Split <axis = 1> (stem, halves)
        mixed = Conv <pads = [1, 1, 1, 1]> (left, w1)
        joined = Concat <axis = 1> (mixed, right)
        maps = Conv (joined, w2)
        pooled = GlobalAveragePool (maps)
        output = Flatten (pooled)
    }"""
CONCAT_SHAPES = {"w0": (8, 3, 1, 1), "w1": (4, 4, 3, 3), "w2": (4, 8, 1, 1)}


@pytest.mark.parametrize(
    ("ratios", "races"),
    [
        ([Interval(0.9, 0.85, 0.95)], 1),
        ([Interval(0.9, 0.85, 1.05), Interval(0.9, 0.85, 0.95)], 2),
        ([Interval(0.9, 0.85, 1.05)] * 2, 2),
        # It gains too little to matter, whatever the interval.
        ([Interval(0.99, 0.9, 1.05)], 1),
        ([Interval(1.1, 0.9, 1.3)], 1),
    ],
)
def test_forms_are_raced_over_several_sessions_and_again_while_undecided(
    ratios: list[Interval], races: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    raced: list[list[latency.Case]] = []

    def race(cases: list[latency.Case], *_: Any) -> None:
        raced.append(cases)
        original(cases, placement_race.FORM_ROUNDS, 1, latency.OPENINGS)

    original = latency.race
    monkeypatch.setattr(latency, "race", race)
    monkeypatch.setattr(latency, "race_ratio", lambda *_: ratios[len(raced) - 1])
    target = Target(engine("onnxruntime"), load_scheme("ort-cpu"))
    split = sets()
    gate = Gate(FloatComparison(small(), split.gate, target.engine), Budget())
    evaluator = ladder.calibrate(gate, split, target)[0]
    scheme = evaluator.builder.scheme
    placement = evaluator.builder.space.starting_placements()[0]
    found = placement_choice._race(evaluator).form_ratios(placement, [scheme, scheme])
    assert found == [ratios[-1]]
    assert len(raced) == races
    # The second race goes on with the session that the first one ended with.
    sessions = raced[0][0].rounds_of
    assert sorted(set(sessions)) == list(range(races * (latency.OPENINGS - 1) + 1))


def test_what_a_concat_joins_has_one_scale_in_the_race_too() -> None:
    """With two scales and zero points OpenVINO computes what reads the Concat in float."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(CONCAT)
    halves = numpy_helper.from_array(np.array([4, 4], np.int64), "halves")
    model.graph.initializer.append(halves)
    values: dict[str, Array] = {}
    for name, shape in CONCAT_SHAPES.items():
        values[name] = rng.standard_normal(shape).astype(np.float32)
    add(model, values)
    scheme = load_scheme("openvino-cpu")
    space = PlacementSpace(model, scheme)
    everything = space.starting_placements()[0]
    tensors = list(everything.tensors)
    images = rng.standard_normal((8, 3, 8, 8)).astype(np.float32)
    stream = CalibrationStream([images], len(images))
    runner = OnnxRuntime()
    statistics = collect_statistics(model, tensors, [], stream, runner, 1)
    highs = [statistics.histograms[name].high.max() for name in ("mixed", "stem")]
    assert abs(highs[0] / highs[1] - 1) > 0.2
    artifact = replace(small(), model=model, labels=tuple("abcd"))
    gate: Any = SimpleNamespace(artifact=artifact)
    race = PlacementRace(gate, model, statistics, scheme, space)
    written = race.write(everything).model
    stored = {
        item.name: numpy_helper.to_array(item) for item in written.graph.initializer
    }
    scales = {name: float(stored[f"{name}_scale"]) for name in tensors}
    assert scales["mixed"] == scales["stem"]
    chosen = choose_ranges(model, everything, statistics, scheme, "minmax")
    expected = activation_parameters(everything, scheme, chosen)
    for name in tensors:
        assert scales[name] == pytest.approx(expected[name].scale)
