"""Times placements of Q/DQ pairs in turns on the target engine, and profiles them.

Latency does not depend on the values of weights and scales, but for the bits that weights have:
where ONNX Runtime's sessions are exact, 8 bits take longer than 7. So weights are rounded to
nearest with the scheme's bits, once for all placements, and ranges are min-max here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import onnx

from repzoo import engines
from repzoo.artifact import Artifact
from repzoo.data.batches import map_in_order
from repzoo.engines import probe as probing
from repzoo.engines.executed import ExecutedOperator
from repzoo.errors import InputError
from repzoo.graph.tools.skeleton import initializer_bytes
from repzoo.measure import latency
from repzoo.measure.results import LatencyRatio
from repzoo.measure.stats import Interval
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters import qdq_writer, ranges, scales
from repzoo.quant.parameters.compute import in_form
from repzoo.quant.parameters.gemm_convolution import layer_of
from repzoo.quant.search.gate import Gate

# Rounds of each race: the 95 % interval of a median of 9 is from the 2nd to the 8th.
ROUNDS = 9
CALLS = 3  # of each model in a round, about
# Placements in one race, besides the one they are compared with. Each is a session that holds
# the weights: with weights of RACE_BYTES or more there are fewer than LARGEST_RACE.
SMALLEST_RACE = 4
LARGEST_RACE = 12
RACE_BYTES = 2**26
PROFILED_RUNS = 12
# A smaller gain may be due to where a session's memory happens to lie (see measure/latency.py).
SMALLEST_GAIN = 0.98
# In place of the ratio of what the engine refuses.
REFUSED = Interval(math.inf, math.inf, math.inf)

Timing = TypeVar("Timing")


class PlacementRace:
    """Times placements of one float model in turns.

    space       the placements of the model
    group_size  placements in one race, besides the one they are compared with
    """

    def __init__(
        self,
        gate: Gate,
        model: onnx.ModelProto,
        statistics: Statistics,
        scheme: QuantScheme,
        space: PlacementSpace,
    ) -> None:
        self.space = space
        self._gate = gate
        self._model = model
        self._scheme = scheme
        self._parameters = {
            name: scales.uint8_parameters(
                *ranges.minmax(histogram), scheme.activation_symmetric
            )
            for name, histogram in statistics.histograms.items()
        }
        self._weights = qdq_writer.round_weights(
            model,
            layer_names(space),
            self._parameters,
            scheme.per_channel,
            scheme.weight_max,
        )
        weight_bytes = max(1, initializer_bytes(gate.artifact.model))
        self.group_size = min(
            max(RACE_BYTES // weight_bytes, SMALLEST_RACE), LARGEST_RACE
        )

    def profiles(
        self, placements: Sequence[Placement | None]
    ) -> list[list[ExecutedOperator] | None]:
        """What the engine executes for each of `placements` (None: for the float model).

        None where the engine has no profiles, or cannot profile this model. All cores compile;
        then each runs alone.
        """
        inputs = latency.inputs_for(self._gate.artifact)

        def open_profiler(placement: Placement | None) -> engines.Profiler | None:
            model = self._model
            if placement is not None:
                model = self._write_all([placement])[0].model
            return engines.profiler(self._gate.engine, model, inputs)

        profiles: list[list[ExecutedOperator] | None] = []
        for profiler in list(map_in_order(open_profiler, placements)):
            profiles.append(_run(profiler))
        return profiles

    def ratios_to_float(
        self, placements: Sequence[Placement], seconds: float
    ) -> list[LatencyRatio | None]:
        """The latency of each placement over the float model's; None if the engine refuses it.

        seconds  of timing for each

        Raises:
            InputError: the engine refuses all of them, or the float model.
        """

        def time(accepted: Sequence[Placement]) -> list[LatencyRatio]:
            return self._gate.time_against_float(self._write_all(accepted), seconds)

        return self._time_accepted(placements, time)

    def ratios_to(
        self, base: Placement, placements: Sequence[Placement], openings: int = 1
    ) -> list[Interval]:
        """The latency of each placement over that of `base`; REFUSED if the engine refuses it.

        openings  of each session; with 1, a placement leaves the race when it cannot win it
        """
        rounds = max(ROUNDS, 2 * openings)
        lost = cannot_win if openings == 1 else None

        def time(accepted: Sequence[Placement]) -> list[Interval]:
            artifacts = self._write_all([base, *accepted])
            first, *others = self._gate.open_cases(artifacts)
            latency.race([first, *others], rounds, CALLS, openings, lost)
            return [latency.race_ratio(case, first) for case in others]

        intervals: list[Interval] = []
        for start in range(0, len(placements), self.group_size):
            group = placements[start : start + self.group_size]
            for interval in self._time_accepted(group, time):
                intervals.append(interval or REFUSED)
        return intervals

    def _time_accepted(
        self,
        placements: Sequence[Placement],
        time: Callable[[Sequence[Placement]], list[Timing]],
    ) -> list[Timing | None]:
        """What `time` says of `placements`; None of those that the engine refuses.

        Only where it fails with all together is each one opened alone.
        """
        try:
            return [*time(placements)]
        except InputError:
            accepted = self.accepted(placements)
            if len(accepted) in (0, len(placements)):
                raise
        timings = dict(zip(accepted, time(accepted), strict=True))
        return [timings.get(placement) for placement in placements]

    def accepted(self, placements: Sequence[Placement]) -> list[Placement]:
        """Those of `placements` whose QDQ model the engine runs; each one is opened."""
        return [placement for placement in placements if self._is_accepted(placement)]

    def _is_accepted(self, placement: Placement) -> bool:
        """Whether the engine runs the QDQ model of `placement`."""
        try:
            self._gate.open_cases(self._write_all([placement]))
        except InputError:
            return False
        return True

    def form_ratios(
        self, placement: Placement, forms: Sequence[QuantScheme]
    ) -> list[Interval]:
        """The latency of `placement` as each of `forms` writes it over that as none does.

        REFUSED for all where the engine refuses one.

        forms  the scheme with different settings of what `compute.in_form` writes
        """
        plain = self._write(placement)
        artifacts = [plain]
        for form in forms:
            artifacts.append(replace(plain, model=in_form(plain.model, form)))
        try:
            cases = self._gate.open_cases(artifacts)
        except InputError:
            return [REFUSED] * len(forms)
        latency.race(cases, ROUNDS, CALLS)
        return [latency.race_ratio(case, cases[0]) for case in cases[1:]]

    def probe(self, placement: Placement) -> None:
        """Run the QDQ model of `placement` once in a child process.

        Raises:
            CrashError: the engine crashes or hangs. Where it refuses the model, others may do.
        """
        artifact = self._write_all([placement])[0]
        inputs = latency.inputs_for(artifact)
        try:
            probing.probe(self._gate.engine.name, artifact.model, inputs)
        except probing.CrashError:
            raise
        except InputError:
            return

    def _write_all(self, placements: Sequence[Placement]) -> list[Artifact]:
        """The QDQ model of each placement."""
        artifacts = []
        for placement in placements:
            artifact = self._write(placement)
            model = in_form(artifact.model, self._scheme)
            artifacts.append(replace(artifact, model=model))
        return artifacts

    def _write(self, placement: Placement) -> Artifact:
        """The QDQ model, with min-max ranges and weights rounded to nearest."""
        graph = qdq_writer.insert_qdq(
            self._model,
            placement,
            self._parameters,
            self._scheme.per_channel,
            self._weights,
            signed=self._scheme.activation_type == "int8",
        )
        return replace(self._gate.artifact, model=graph)


def _run(profiler: engines.Profiler | None) -> list[ExecutedOperator] | None:
    if profiler is not None:
        with contextlib.suppress(InputError):
            return [_of_layers(item) for item in profiler.run(PROFILED_RUNS)]
    return None


def _of_layers(operator: ExecutedOperator) -> ExecutedOperator:
    """`operator` with the names that its nodes have in the float model."""
    return replace(operator, nodes=tuple(map(layer_of, operator.nodes)))


def layer_names(space: PlacementSpace) -> list[str]:
    """The layers that may run in INT8, by their outputs, in graph order."""
    return [node.output[0] for node in space.layers]


def cannot_win(ratios: Sequence[float]) -> bool:
    """Whether a placement has lost its race, whatever its remaining rounds up to ROUNDS say.

    ratios  of its latency to that of the base, in the rounds so far. To win, the interval of the
            ratio must be below 1 (at most one round may be slower) and the median at most
            SMALLEST_GAIN.
    """
    slower = sum(ratio >= 1 for ratio in ratios)
    no_gain = sum(ratio > SMALLEST_GAIN for ratio in ratios)
    return slower > 1 or no_gain > ROUNDS // 2
