"""Times placements of Q/DQ pairs in turns on the target engine, and profiles them.

Latency does not depend on the values of weights, but for the bits that they have: where ONNX
Runtime's sessions are exact, 8 bits take longer than 7. So weights are rounded to nearest with the
scheme's bits, once for all placements. Ranges are min-max here, and shared as in the file that is
written: what a Concat joins has one range, without which OpenVINO computes what reads it in float.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace

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
from repzoo.quant.parameters.activation_ranges import RangeChooser
from repzoo.quant.parameters.compute import activation_parameters, in_form
from repzoo.quant.parameters.gemm_convolution import layer_of
from repzoo.quant.search.gate import Gate

# Rounds of each race: the 95 % interval of a median of 9 is from the 2nd to the 8th.
ROUNDS = 9
# The race of forms decides for all placements, so it opens sessions anew: where their memory lies
# outweighs a form on some hosts. It is run so often, at most, where it is undecided.
FORM_ROUNDS = 4 * latency.OPENINGS
FORM_RACES = 2
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
UNRIVALED = Interval(0.0, 0.0, 0.0)


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
        self._refusals: dict[Placement, InputError] = {}
        self._gate = gate
        self._model = model
        self._scheme = scheme
        self._statistics = statistics
        self._choosers: dict[QuantScheme, RangeChooser] = {}
        parameters = {
            name: scales.parameters_of(*ranges.minmax(histogram), scheme)
            for name, histogram in statistics.histograms.items()
        }
        self._weights = qdq_writer.round_weights(
            model,
            layer_names(space),
            parameters,
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
                model = self.write(placement).model
            return engines.profiler(
                self._gate.engine, model, inputs, self._gate.load.threads
            )

        profiles: list[list[ExecutedOperator] | None] = []
        for profiler in list(map_in_order(open_profiler, placements)):
            profiles.append(_run(profiler))
        return profiles

    def refusal(self, placement: Placement) -> InputError | None:
        """What the engine complained of when `placement` was to be timed; None: of nothing."""
        return self._refusals.get(placement)

    def ratios_to_float(
        self, placements: Sequence[Placement], seconds: float
    ) -> list[LatencyRatio | None]:
        """The latency of each placement over the float model's; None if the engine refuses it.

        seconds  of timing for each

        Raises:
            InputError: the engine refuses the float model.
        """
        artifacts = self._write_all(placements)
        results = self._gate.try_against_float(artifacts, seconds)
        ratios: list[LatencyRatio | None] = []
        for placement, result in zip(placements, results, strict=True):
            if isinstance(result, InputError):
                self._refusals[placement] = result
                ratios.append(None)
            else:
                ratios.append(result)
        return ratios

    def ratios_to(
        self, base: Placement, placements: Sequence[Placement], openings: int = 1
    ) -> list[Interval]:
        """The latency of each placement over that of `base`.

        REFUSED where the engine refuses a placement, or `base`.

        openings  of each session; with 1, a placement leaves the race when it cannot win it
        """
        rounds = max(ROUNDS, 2 * openings)
        lost = cannot_win if openings == 1 else None
        intervals: list[Interval] = []
        for start in range(0, len(placements), self.group_size):
            group = placements[start : start + self.group_size]
            cases = self._open([base, *group])
            first = cases.get(base)
            if first is not None and len(cases) > 1:
                latency.race(list(cases.values()), rounds, CALLS, openings, lost)
            for placement in group:
                case = cases.get(placement)
                interval = REFUSED
                if case is not None and first is not None:
                    interval = latency.race_ratio(case, first)
                intervals.append(interval)
        return intervals

    def _open(self, placements: Sequence[Placement]) -> dict[Placement, latency.Case]:
        """Those of `placements` that the engine accepts, in their order."""
        cases: dict[Placement, latency.Case] = {}
        opened = self._gate.try_cases(self._write_all(placements))
        for placement, case in zip(placements, opened, strict=True):
            if isinstance(case, InputError):
                self._refusals[placement] = case
            else:
                cases[placement] = case
        return cases

    def form_ratios(
        self, placement: Placement, forms: Sequence[QuantScheme]
    ) -> list[Interval]:
        """The latency of `placement` as the first of `forms` writes it over that of each other.

        REFUSED where the engine refuses the first. Where it refuses another, there is nothing to
        compare with, and the first has won.

        forms  the scheme with different settings
        """
        artifacts = [self.write(placement, form) for form in forms]
        first, *others = self._gate.try_cases(artifacts)
        if isinstance(first, InputError):
            return [REFUSED] * len(others)
        live = [case for case in others if isinstance(case, latency.Case)]
        intervals: list[Interval] = []
        for _ in range(FORM_RACES):
            latency.race([first, *live], FORM_ROUNDS, CALLS, latency.OPENINGS)
            intervals = [_over(first, case) for case in others]
            if not any(map(is_undecided, intervals)):
                break
        return intervals

    def probe(self, placement: Placement, forms: Sequence[QuantScheme]) -> None:
        """Run `placement`, as each of `forms` writes it, in child processes.

        Raises:
            CrashError: the engine crashes or hangs. One that it only refuses is left to the search.
        """
        models = [self.write(placement, form).model for form in forms]
        inputs = latency.inputs_for(self._gate.artifact)

        def run(model: onnx.ModelProto) -> None:
            try:
                probing.probe(self._gate.engine.name, model, inputs)
            except probing.CrashError:
                raise
            except InputError:
                return

        list(map_in_order(run, models))

    def _write_all(self, placements: Sequence[Placement]) -> list[Artifact]:
        """The QDQ model of each placement."""
        return [self.write(placement) for placement in placements]

    def write(self, placement: Placement, form: QuantScheme | None = None) -> Artifact:
        """The QDQ model, with min-max ranges and weights rounded to nearest.

        form  the scheme with other settings; None: as it is
        """
        scheme = form or self._scheme
        graph = qdq_writer.insert_qdq(
            self._model,
            placement,
            self._parameters(placement, scheme),
            scheme.per_channel,
            self._weights,
        )
        return replace(self._gate.artifact, model=in_form(graph, scheme), sha256="")

    def _parameters(
        self, placement: Placement, scheme: QuantScheme
    ) -> dict[str, scales.ActivationParameters]:
        """Of each activation that `placement` quantizes."""
        if scheme not in self._choosers:
            self._choosers[scheme] = RangeChooser(self._model, self._statistics, scheme)
        chosen = self._choosers[scheme].choose(placement, "minmax")
        return activation_parameters(placement, scheme, chosen)


def _over(first: latency.Case, second: latency.Case | InputError) -> Interval:
    """The latency of `first` over that of `second`."""
    if isinstance(second, InputError):
        return UNRIVALED
    return latency.race_ratio(first, second)


def is_undecided(ratio: Interval) -> bool:
    """Whether it may well be a gain, and may be none."""
    return ratio.value <= SMALLEST_GAIN and ratio.high >= 1


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
