"""Profiles of ONNX Runtime, from the trace that a session writes.

A fused operator has the name of a node, to which ONNX Runtime may append something, or that of the
tensor that it writes, with `_nchwc` behind it.

Source: ONNX Runtime, "Profiling tools": events of category Node, `dur` in microseconds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from repzoo.engines import Array
from repzoo.engines.executed import ExecutedOperator, LabeledModel
from repzoo.errors import InputError, first_line

WARM_UP_RUNS = 3
KERNEL = "_kernel_time"
BLOCKED = "_nchwc"  # behind the name of a tensor in blocks of channels


class OnnxRuntimeProfiler:
    """See `engines.Profiler`. It runs once: ONNX Runtime ends the trace then."""

    def __init__(
        self,
        model: onnx.ModelProto,
        options: ort.SessionOptions,
        provider: str,
        inputs: Array,
    ) -> None:
        """A session of `model` with these `options`."""
        self._labeled = LabeledModel(model)
        self._inputs = inputs
        # Removed with the profiler, also where it never runs.
        self._folder = tempfile.TemporaryDirectory()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        self._session = ort.InferenceSession(
            self._labeled.model.SerializeToString(), options, providers=[provider]
        )

    def run(self, runs: int) -> list[ExecutedOperator]:
        """See `engines.Profiler.run`."""
        feeds = {self._session.get_inputs()[0].name: self._inputs}
        try:
            for _ in range(WARM_UP_RUNS + runs):
                self._session.run(None, feeds)
        except Exception as error:
            raise InputError(
                f"onnxruntime cannot profile this model: {first_line(error)}"
            ) from None
        events = json.loads(Path(self._session.end_profiling()).read_text())
        self._folder.cleanup()
        operators: list[ExecutedOperator] = []
        for name, (kind, durations) in _kernels(events).items():
            nodes = self._labeled.nodes_in([name.removesuffix(BLOCKED)])
            operators.append(ExecutedOperator(kind, "", nodes, float(min(durations))))
        return operators


def _kernels(
    events: list[Mapping[str, Any]],
) -> dict[str, tuple[str, list[float]]]:
    """(operator, microseconds of each run) of what ran after the warm-up, by the operator's name.

    What depends on constants alone runs while the session is made.
    """
    starts = [event["ts"] for event in events if event["name"] == "model_run"]
    measured_from = sorted(starts)[WARM_UP_RUNS]
    kernels: dict[str, tuple[str, list[float]]] = {}
    for event in events:
        is_kernel = event["cat"] == "Node" and event["name"].endswith(KERNEL)
        if not is_kernel or event["ts"] < measured_from:
            continue
        name = event["name"].removesuffix(KERNEL)
        _, durations = kernels.setdefault(name, (event["args"]["op_name"], []))
        durations.append(float(event["dur"]))
    return kernels
