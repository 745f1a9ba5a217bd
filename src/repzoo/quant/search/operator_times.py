"""The time that each kind of operator takes in the float and in the INT8 model, for reports."""

from __future__ import annotations

from collections.abc import Sequence

from repzoo import engines
from repzoo.artifact import Artifact
from repzoo.engines import Engine
from repzoo.engines.executed import ExecutedOperator, time_by_kind
from repzoo.errors import InputError
from repzoo.measure import latency
from repzoo.measure.results import OperatorTime

RUNS = 12
SMALLEST_SHARE = 0.001  # of the time; less is not listed


def operator_times(
    engine: Engine,
    float_model: Artifact,
    int8_model: Artifact,
    threads: int = 1,
    known: Sequence[ExecutedOperator] | None = None,
) -> tuple[OperatorTime, ...] | None:
    """Of both models in a session of `threads`, each from the longest to the shortest.

    None where the engine has no profiles.

    known  the operators of `int8_model`, where the placement search profiled its placement:
           compiling it again takes OpenVINO seconds
    """
    times: list[OperatorTime] = []
    for form, artifact in (("float", float_model), ("int8", int8_model)):
        operators = known if form == "int8" else None
        if operators is None:
            operators = _profile(engine, artifact, threads)
        if operators is None:
            return None
        times.extend(_listed(form, operators))
    return tuple(times)


def _profile(
    engine: Engine, artifact: Artifact, threads: int
) -> list[ExecutedOperator] | None:
    try:
        inputs = latency.inputs_for(artifact)
        profiler = engines.profiler(engine, artifact.model, inputs, threads)
        return None if profiler is None else profiler.run(RUNS)
    except InputError:
        return None  # a report is worth having without it


def _listed(form: str, operators: Sequence[ExecutedOperator]) -> list[OperatorTime]:
    conversions = [item for item in operators if item.is_conversion]
    others = [item for item in operators if not item.is_conversion]
    # never 0: a runtime may count whole microseconds, and a small model may take none
    total = max(1.0, sum(item.microseconds for item in operators))
    times: list[OperatorTime] = []
    for group, is_conversion in ((others, False), (conversions, True)):
        for kind, microseconds in time_by_kind(group).items():
            share = microseconds / total
            if share >= SMALLEST_SHARE:
                times.append(
                    OperatorTime(
                        form,
                        kind,
                        round(microseconds, 1),
                        round(share, 4),
                        is_conversion,
                    )
                )
    return times
