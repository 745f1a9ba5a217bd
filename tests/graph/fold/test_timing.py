"""Folds that save multiplications and may cost time: a timer, where one is given, has the last
word.
"""

from __future__ import annotations

import functools
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.graph.fold.engine import fold
from repzoo.graph.fold.timing import Timing
from repzoo.graph.tools.fold_result import FoldResult
from repzoo.measure import fold_timing
from repzoo.measure.fold_timing import compare_latency

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]

# depthwise, then narrow: 36 + 4 MACs a pixel become 36 in one dense convolution; twice, so that
# the second is timed from memory
TWICE = """
a = Conv<group = 4, pads = [1, 1, 1, 1]>(data, wd)
b = Conv(a, wp)
c = Relu(b)
d = Conv(c, up)
e = Relu(d)
f = Conv<group = 4, pads = [1, 1, 1, 1]>(e, vd)
output = Conv(f, vp)
"""
WEIGHTS = {
    "wd": (4, 1, 3, 3),
    "wp": (1, 4, 1, 1),
    "up": (4, 1, 1, 1),
    "vd": (4, 1, 3, 3),
    "vp": (1, 4, 1, 1),
}


class FakeTimer:
    """Gives one verdict, and keeps what it was asked to time."""

    def __init__(self, low: float, high: float) -> None:
        self.timing = Timing(1.0, (low + high) / 2, low, high)
        self.asked: list[tuple[onnx.ModelProto, onnx.ModelProto]] = []

    def __call__(self, before: onnx.ModelProto, after: onnx.ModelProto) -> Timing:
        self.asked.append((before, after))
        return self.timing


def kinds(result: FoldResult) -> Counter[str]:
    return Counter(node.op_type for node in result.model.graph.node)


def test_a_fold_that_is_proven_slower_is_refused_with_both_times(graph: Graph) -> None:
    timer = FakeTimer(1.3, 1.5)
    result = fold(graph(TWICE, WEIGHTS), timer)
    assert kinds(result) == {"Conv": 5, "Relu": 2}
    sentences = [
        refusal.reason for refusal in result.refusals if " ms " in refusal.reason
    ]
    assert len(sentences) == 2
    assert (
        "takes 1.4 ms here on 1x4x9x10; they take 1 ms (ratio 1.3 .. 1.5)"
        in sentences[0]
    )
    assert len(timer.asked) == 1, "one shape is timed once"


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.6), (0.9, 1.4)])
def test_a_fold_is_applied_unless_it_is_proven_slower(
    low: float, high: float, graph: Graph, execute: Execute
) -> None:
    timer, model = FakeTimer(low, high), graph(TWICE, WEIGHTS)
    result = fold(model, timer)
    assert kinds(result) == {"Conv": 3, "Relu": 2}
    assert timer.asked
    assert result.model == fold(model).model, "the timer leaves no trace"
    data = np.random.default_rng(0).standard_normal((1, 4, 9, 10)).astype(np.float32)
    for before, after in timer.asked:
        assert [node.op_type for node in after.graph.node] == ["Conv"]
        (expected,), (got,) = (
            execute_named(execute, model, data) for model in (before, after)
        )
        assert np.abs(expected - got).max() <= 1e-4 * np.abs(expected).max()


def execute_named(execute: Execute, model: onnx.ModelProto, data: Array) -> list[Array]:
    """`execute` feeds the input `data`."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    name = twin.graph.input[0].name
    twin.graph.input[0].name = "data"
    for node in twin.graph.node:
        node.input[:] = ["data" if item == name else item for item in node.input]
    return execute(twin, data)


def test_what_is_obviously_cheaper_or_of_open_size_is_not_timed(graph: Graph) -> None:
    timer = FakeTimer(2, 3)
    plain = (
        "a = Conv<pads = [1, 1, 1, 1]>(data, w)\nb = Conv(data, w1)\noutput = Add(a, b)"
    )
    assert kinds(
        fold(graph(plain, {"w": (4, 4, 3, 3), "w1": (4, 4, 1, 1)}), timer)
    ) == {"Conv": 1}
    assert kinds(fold(graph(TWICE, WEIGHTS, "N, 4, H, W"), timer)) == {
        "Conv": 3,
        "Relu": 2,
    }
    assert not timer.asked


def test_a_real_engine_times_both(graph: Graph) -> None:
    timings = []

    def timer(before: onnx.ModelProto, after: onnx.ModelProto) -> Timing:
        timings.append(
            compare_latency(before, after, engine("onnxruntime"), seconds=0.05)
        )
        return timings[-1]

    result = fold(graph(TWICE, WEIGHTS), timer)
    assert timings
    assert all(
        0 < timing.ratio_low <= timing.ratio_high
        and min(timing.before_ms, timing.after_ms) > 0
        for timing in timings
    )
    slower = [refusal for refusal in result.refusals if " ms " in refusal.reason]
    assert bool(slower) == any(timing.ratio_low > 1 for timing in timings)


def test_the_engine_that_loses_most_decides(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = {"onnxruntime": 0.8, "openvino": 1.2, "mnn": None}

    def compare(_before: Any, _after: Any, runner: Any) -> Timing:
        ratio = ratios[runner.name]
        if ratio is None:
            raise InputError("its converter failed")
        return Timing(1.0, ratio, ratio, ratio, runner.name)

    monkeypatch.setattr(fold_timing, "compare_latency", compare)
    runners = [types.SimpleNamespace(name=name) for name in ratios]
    timer = functools.partial(fold_timing.compare_on_engines, engines=runners)
    result = fold(graph(TWICE, WEIGHTS), timer)
    sentences = [item.reason for item in result.refusals if " ms " in item.reason]
    assert "takes 1.2 ms in openvino on 1x4x9x10; they take 1 ms" in sentences[0]
    with pytest.raises(InputError, match="its converter failed"):
        fold_timing.compare_on_engines(result.model, result.model, runners[2:])
