"""Profiles of OpenVINO, from the graph that it executes and the counters of a request.

Source: OpenVINO, `CompiledModel.get_runtime_model` (originalLayersNames, primitiveType) and
`InferRequest.get_profiling_info`.
"""

from __future__ import annotations

from typing import Any

from repzoo.engines import Array
from repzoo.engines.executed import ExecutedOperator, LabeledModel

WARM_UP_RUNS = 3
NOT_TIMED = frozenset({"Const", "Input", "Output"})


def profile(
    compiled: Any, labeled: LabeledModel, inputs: Array, runs: int
) -> list[ExecutedOperator]:
    """What `compiled` executes, in its order.

    compiled  `labeled.model`, compiled with PERF_COUNT
    """
    request = compiled.create_infer_request()
    for _ in range(WARM_UP_RUNS):
        request.infer([inputs], share_inputs=True)
    durations: dict[str, list[float]] = {}
    for _ in range(runs):
        request.infer([inputs], share_inputs=True)
        for item in request.get_profiling_info():
            seconds = item.real_time.total_seconds()
            durations.setdefault(item.node_name, []).append(seconds * 1e6)
    operators: list[ExecutedOperator] = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: _text(value) for key, value in node.rt_info.items()}
        times = durations.get(node.friendly_name, [0.0])
        if facts["layerType"] in NOT_TIMED or not max(times):
            continue
        nodes = labeled.nodes_in(facts.get("originalLayersNames", "").split(","))
        operators.append(
            ExecutedOperator(
                facts["layerType"],
                facts["primitiveType"],
                nodes,
                float(min(times)),
            )
        )
    return operators


def _text(value: Any) -> str:
    """A fact of the runtime's, which may be wrapped."""
    return str(value.astype(str) if hasattr(value, "astype") else value)
