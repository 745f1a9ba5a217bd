"""Two small models timed in turns: what `fold --timed` asks of an engine."""

from __future__ import annotations

import numpy as np
import onnx

from repzoo.artifact import Artifact
from repzoo.engines import Engine
from repzoo.graph.fold.timing import Timing
from repzoo.measure import latency

ROUNDS = 12


def compare_latency(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    engine: Engine,
    seconds: float = 0.4,
) -> Timing:
    """Time both (a fixed input, one output) in turns on one thread, for about `seconds` in all,
    warm-up apart.

    Raises:
        InputError: the engine cannot compile or run one of them.
    """
    first, second = (
        latency.case(Artifact(model, "timed"), engine) for model in (before, after)
    )
    latency.run([first, second], seconds / 2, rounds=ROUNDS)
    found = latency.ratio(second, first).values
    before_ms, after_ms = (
        float(np.median(one.medians_us())) / 1000 for one in (first, second)
    )
    return Timing(before_ms, after_ms, found.ratio_low, found.ratio_high)
