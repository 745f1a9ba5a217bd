"""A build on another placement reuses parameters, and equals a build from scratch."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.small_model import sets, small

from repzoo.engines import engine
from repzoo.measure import latency
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import activation_ranges, compute
from repzoo.quant.parameters.gptq import round_rows
from repzoo.quant.rewrites.stages import STAGES, Stage
from repzoo.quant.search import ladder
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.evaluator import Evaluator
from repzoo.quant.search.fallback import with_fallback
from repzoo.quant.search.gate import Gate
from repzoo.quant.search.ladder import Target
from repzoo.quant.search.verdict import Budget


@functools.cache
def make_evaluator(scheme: str = "ort-cpu") -> Evaluator:
    target = Target(engine("onnxruntime"), load_scheme(scheme), search_seconds=0)
    gate = Gate(FloatComparison(small(), sets().gate, target.engine), Budget())
    return ladder.calibrate(gate, sets(), target)[0]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_fewer_layers_in_int8_reuse_the_parameters_of_the_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving a layer in float changes no number of the others, so nothing is computed again."""
    builder = make_evaluator().builder
    everything = builder.space.starting_placements()[0]
    fewer = with_fallback(builder, everything, ["c"])
    first = builder.build(stage, everything)
    expected = make_evaluator.__wrapped__().builder.build(stage, fewer)
    with monkeypatch.context() as patch:
        patch.setattr(compute, "compute_parameters", None)
        reused = builder.build_from(first, fewer)
    assert reused.plan.weights.keys() == expected.plan.weights.keys()
    inputs = latency.random_input(small().model, (4, 3, 16, 16), 0)
    runtime = engine("onnxruntime")
    logits = runtime.open(reused.artifact.model).run(inputs)
    expected_logits = runtime.open(expected.artifact.model).run(inputs)
    tolerance = 1e-4 * np.abs(expected_logits).max()
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=tolerance)


def test_parameters_that_the_first_build_lacks_are_computed() -> None:
    builder = make_evaluator().builder
    everything = builder.space.starting_placements()[0]
    fewer = with_fallback(builder, everything, ["c"])
    small_build = builder.build(STAGES[0], fewer)
    larger = builder.build_from(small_build, everything)
    scratch = make_evaluator.__wrapped__().builder.build(STAGES[0], everything)
    assert larger.artifact.sha256 == scratch.artifact.sha256


def test_16_bit_activations_are_computed_anew() -> None:
    builder = make_evaluator("rdk-x5").builder
    everything = builder.space.starting_placements()[0]
    wide = with_fallback(builder, everything, ["c"])
    assert wide.int16_tensors
    assert wide.nodes == everything.nodes
    reused = builder.build_from(builder.build(STAGES[0], everything), wide)
    assert {reused.plan.activations[name].bits for name in wide.int16_tensors} == {16}


def test_ranges_are_chosen_once_for_stages_that_differ_in_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builder = make_evaluator().builder
    everything = builder.space.starting_placements()[0]
    calls = []
    choose_ranges = activation_ranges.choose_ranges

    def count_call(*arguments: object) -> activation_ranges.ChosenRanges:
        calls.append(arguments)
        return choose_ranges(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(activation_ranges, "choose_ranges", count_call)
    builder.build(STAGES[0], with_fallback(builder, everything, ["c"]))
    builder.build(STAGES[0], everything)
    builder.build(STAGES[1], everything)
    assert STAGES[0].rewrites == STAGES[1].rewrites
    assert len(calls) == 2


def test_weights_are_rounded_once_for_placements_and_ranges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluator = make_evaluator.__wrapped__()
    space = evaluator.builder.space
    everything = space.starting_placements()[0]
    least = with_fallback(evaluator.builder, everything, ["c"])
    rounded: list[int] = []

    def count_call(*arguments: Any) -> Any:
        rounded.append(arguments[0].size)
        return round_rows(*arguments)

    monkeypatch.setattr(compute, "round_rows", count_call)
    gptq = next(stage for stage in STAGES if stage.corrections.gptq)
    for placement in (least, everything, least):
        built = evaluator.builder.build(gptq, placement)
        assert set(built.plan.weights) == {
            node.output[0] for node in space.layers if node.output[0] in placement.nodes
        }
    assert len(rounded) == len(space.layers)
    nearest = next(stage for stage in STAGES if not stage.corrections.gptq)
    evaluator.builder.build(nearest, everything)
    assert len(rounded) == 2 * len(space.layers)


def test_a_built_model_is_valid_and_has_its_history() -> None:
    builder = make_evaluator().builder
    build = builder.build(STAGES[0], builder.space.starting_placements()[0])
    onnx.checker.check_model(build.artifact.model, full_check=True)
    assert build.artifact.form == "int8"
    assert build.artifact.steps[-1].verb == "quantize"
