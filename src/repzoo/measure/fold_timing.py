"""Time two small models in turns: what `fold --timed` asks of an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import onnx

from repzoo.artifact import Artifact
from repzoo.engines import Engine
from repzoo.errors import InputError
from repzoo.graph.fold.timing import Timing
from repzoo.measure import latency

ROUNDS = 12


def compare_latency(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    engine: Engine,
    seconds: float = 0.4,
) -> Timing:
    """Time two models in turns on one thread. Each has a fixed input and one output.

    seconds  for both together, without the warm-up

    Raises:
        InputError: the engine cannot compile or run one of them.
    """
    first = latency.case(Artifact(before, "timed"), engine)
    second = latency.case(Artifact(after, "timed"), engine)
    latency.run([first, second], seconds / 2, rounds=ROUNDS)
    ratio = latency.ratio(second, first).values
    return Timing(
        _median_ms(first),
        _median_ms(second),
        ratio.ratio_low,
        ratio.ratio_high,
        engine.name,
    )


def compare_on_engines(
    before: onnx.ModelProto, after: onnx.ModelProto, engines: Sequence[Engine]
) -> Timing:
    """As `compare_latency`, on the engine where `after` does worst.

    engines  the first must run both models, others may refuse them

    Raises:
        InputError: the first engine cannot compile or run one of them.
    """
    timings = [compare_latency(before, after, engines[0])]
    for engine in engines[1:]:
        # MNN's converter refuses some pieces of a graph that it takes as a whole.
        with contextlib.suppress(InputError):
            timings.append(compare_latency(before, after, engine))
    return max(timings, key=lambda timing: timing.ratio_low)


def _median_ms(case: latency.Case) -> float:
    return float(np.median(case.medians_us())) / 1000
