"""Models that would run for ever or fill the memory are stopped, in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from repzoo.engines import engine, limits
from repzoo.errors import InputError

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
INPUT = np.zeros((1, 3, 4, 4), np.float32)
HUGE = 2**40

ENDLESS = """
    trips = Constant<value_int = 9000000000000000000>()
    go = Constant<value = bool {1}>()
    output = Loop(trips, go, flat) <body = again
        (int64 i, bool on, float[N, 48] v) => (bool on2, float[N, 48] v2) {
            on2 = Identity(on)
            v2 = Relu(v) }>"""
DOUBLING = """
    trips = Constant<value_int = 60>()
    go = Constant<value = bool {1}>()
    output = Loop(trips, go, flat) <body = again
        (int64 i, bool on, float[N, M] v) => (bool on2, float[N, K] v2) {
            on2 = Identity(on)
            v2 = Concat<axis = 1>(v, v) }>"""
FILLED = f"""
    size = Constant<value_ints = [{HUGE}]>()
    many = ConstantOfShape(size)
    sum = ReduceSum<keepdims = 0>(many)
    output = Add(flat, sum)"""
COUNTED = f"""
    low = ReduceSum<keepdims = 0>(flat)
    span = Constant<value_float = {float(HUGE)}>()
    high = Add(low, span)
    step = Constant<value_float = 1.0>()
    many = Range(low, high, step)
    sum = ReduceSum<keepdims = 0>(many)
    output = Add(flat, sum)"""


def model(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"{HEADER} g (float[N, 3, 4, 4] data) => (float[N, C] output) {{\n"
        f"flat = Flatten(data)\n{body}\n}}"
    )


def run(body: str) -> Any:
    return engine("onnxruntime").open(model(body)).run(INPUT)


def test_a_loop_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repzoo.engines.onnxruntime.LOOP_SECONDS", 0.2)
    with pytest.raises(InputError, match="a Loop or Scan in it did not end within"):
        run(ENDLESS)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("body", [DOUBLING, FILLED, COUNTED])
def test_growth_without_bound_is_stopped(
    body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repzoo.engines.onnxruntime.VALUE_SIZED_BYTES", 2**28)
    with pytest.raises(InputError, match=r"needs more memory than there is|: \["):
        run(body)


def test_a_loop_that_ends_is_run() -> None:
    short = ENDLESS.replace("9000000000000000000", "3")
    assert run(short).shape == (1, 48)


def test_the_limit_is_that_of_before_afterward() -> None:
    resource = pytest.importorskip("resource", reason="not on this system")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limits.memory_limit(2**30):
        inside = resource.getrlimit(resource.RLIMIT_DATA)
        with limits.memory_limit(2**30):
            pass
        assert resource.getrlimit(resource.RLIMIT_DATA) != before
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert inside[1] == before[1]


def test_operators_of_subgraphs_and_functions_are_found() -> None:
    assert {"Loop", "Identity", "Relu"} <= limits.operators_in(model(ENDLESS))
    function = onnx.helper.make_function(
        "own",
        "act",
        ["v"],
        ["u"],
        [onnx.helper.make_node("Tile", ["v", "v"], ["u"])],
        [onnx.helper.make_opsetid("", 17)],
    )
    changed = model("output = Relu(flat)")
    changed.functions.append(function)
    assert limits.operators_in(changed) == {"Flatten", "Relu", "Tile"}


def test_a_system_that_does_not_say_has_no_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("_MEMINFO", "_STATM", "_CGROUP"):
        monkeypatch.setattr(limits, name, tmp_path / "absent")
    assert limits.available_memory() == 0
    ran: list[Callable[[], None]] = []
    with limits.memory_limit(2**30):
        ran.append(lambda: None)
    assert ran
