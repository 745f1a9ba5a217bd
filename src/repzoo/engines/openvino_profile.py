"""Profiles of OpenVINO, from the graph that it executes and the counters of a request.

Source: OpenVINO, `CompiledModel.get_runtime_model` (originalLayersNames, primitiveType) and
`InferRequest.get_profiling_info`.
"""

from __future__ import annotations

from typing import Any

from repzoo.engines import Array
from repzoo.engines.executed import ExecutedOperator, LabeledModel
from repzoo.errors import InputError, first_line

WARM_UP_RUNS = 3
NOT_TIMED = frozenset({"Const", "Input", "Output"})


class OpenVinoProfiler:
    """See `engines.Profiler`."""

    def __init__(self, compiled: Any, labeled: LabeledModel, inputs: Array) -> None:
        """`compiled` is `labeled.model`, compiled with PERF_COUNT."""
        self._compiled = compiled
        self._labeled = labeled
        self._inputs = inputs

    def run(self, runs: int) -> list[ExecutedOperator]:
        """See `engines.Profiler.run`."""
        try:
            durations = self._durations(runs)
        except RuntimeError as error:
            raise InputError(
                f"openvino cannot profile this model: {first_line(error)}"
            ) from None
        operators: list[ExecutedOperator] = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = {key: _text(value) for key, value in node.rt_info.items()}
            times = durations.get(node.friendly_name, [0.0])
            if facts["layerType"] in NOT_TIMED or not max(times):
                continue
            origins = facts.get("originalLayersNames", "").split(",")
            operators.append(
                ExecutedOperator(
                    facts["layerType"],
                    facts["primitiveType"],
                    self._labeled.nodes_in(origins),
                    float(min(times)),
                )
            )
        return operators

    def _durations(self, runs: int) -> dict[str, list[float]]:
        """Microseconds of each node in each run, by its name."""
        request = self._compiled.create_infer_request()
        for _ in range(WARM_UP_RUNS):
            request.infer([self._inputs], share_inputs=True)
        durations: dict[str, list[float]] = {}
        for _ in range(runs):
            request.infer([self._inputs], share_inputs=True)
            for item in request.get_profiling_info():
                seconds = item.real_time.total_seconds()
                durations.setdefault(item.node_name, []).append(seconds * 1e6)
        return durations


def _text(value: Any) -> str:
    """A fact of the runtime's, which may be wrapped."""
    return str(value.astype(str) if hasattr(value, "astype") else value)
