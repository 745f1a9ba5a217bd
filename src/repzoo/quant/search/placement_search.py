"""The placement that runs fastest, found by timing on the target engine.

Begins with the fastest of a few placements (place.Places.candidates): all are timed in turns with the most quantized, then this and
the next of those that come near it and the least quantized of these in turns with the float model, over several openings of their
sessions. Then groups of like
nodes, by kind and resolution, change sides one at a time: out of INT8 where they are in it, into it where they are not. Each is
timed in turns with the placement as it stands, and those that make it faster beyond noise (the whole interval of the ratio lies
below 1) are taken together, or the best of them alone, whichever a second race says is faster, again beyond noise. So the
placement only ever gets faster, and a group whose change is neutral stays where it is. It ends when no group gains, or when the
seconds are used up. What can win no more, whatever the rounds to come say, leaves its race at once: most do after a few rounds.

Latency does not depend on the numbers, so weights are rounded plainly, once for all, and ranges are min-max here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from repzoo.artifact import Artifact
from repzoo.graph.tools.pieces import initializer_bytes
from repzoo.measure import latency
from repzoo.measure.record import Record
from repzoo.measure.results import LatencyRatio, PlacementTrial
from repzoo.measure.stats import Interval
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.parameters import ranges, scales
from repzoo.quant.search.gate import Gate

ROUNDS = 9  # of each race: their median's 95 % interval is from the 2nd to the 8th
CALLS = 3  # of each model in a round, about
# Models in a race, least and most, besides the one that they are compared with: each is a session with the weights.
TOGETHER = 4, 12
TOGETHER_BYTES = 2**26  # of these weights, from which on there are fewer than the most
NEAR, FINALISTS = (
    0.94,
    3,
)  # of the fastest's speed: which starts are timed with care, and how many at most
SMALLEST_GAIN = 0.98  # of a ratio's middle: less may be where a session's memory happens to lie, see measure.latency


@dataclass(frozen=True)
class TimedPlacement:
    """A placement with its latency over the float model's."""

    placement: Placement
    ratio: Record[LatencyRatio]


@dataclass(frozen=True)
class SearchResult:
    """The fastest placement, the others that began with it (those timed with care, then the next fastest), and what was tried.

    alike  of the others that have fewer layers in INT8, those nearly as fast (NEAR), with their latency, the least quantized first
    """

    best: TimedPlacement
    others: tuple[Placement, ...]
    trials: tuple[PlacementTrial, ...] = ()
    seconds: float = 0.0
    alike: tuple[TimedPlacement, ...] = ()


class PlacementRace:
    """Times placements of one float `model`, `together` at a time."""

    def __init__(
        self,
        gate: Gate,
        model: onnx.ModelProto,
        seen: Statistics,
        scheme: QuantScheme,
        places: PlacementSpace,
    ) -> None:
        self._gate, self._model, self._scheme, self.places = gate, model, scheme, places
        spans = {name: ranges.minmax(one) for name, one in seen.histograms.items()}
        self._numbers = {
            name: scales.uint8_parameters(*span, scheme.activation_symmetric)
            for name, span in spans.items()
        }
        layers = [node.output[0] for node in places.layers]
        self._rounded = qdq.round_weights(model, layers, self._numbers, scheme.per_channel)
        self.together = int(
            np.clip(TOGETHER_BYTES // max(1, initializer_bytes(gate.artifact.model)), *TOGETHER)
        )

    def over_float(
        self, placements: Sequence[Placement], seconds: float
    ) -> list[Record[LatencyRatio]]:
        """Latency of each over the float model's."""
        return self._gate.timed([*map(self._made, placements)], seconds)

    def over(
        self, base: Placement, placements: Sequence[Placement], openings: int = 1
    ) -> list[Interval]:
        """Latency of each over that of `base`, over so many openings of their sessions; with one, until it cannot be the faster."""
        found: list[Interval] = []
        rounds, lost = (
            (ROUNDS, cannot_win) if openings == 1 else (max(ROUNDS, 2 * openings), lambda _: False)
        )
        for start in range(0, len(placements), self.together):
            cases = self._gate.cases(
                [*map(self._made, (base, *placements[start : start + self.together]))]
            )
            latency.race(cases, rounds, CALLS, openings, lost)
            found += [latency.raced(one, cases[0]) for one in cases[1:]]
        return found

    def _made(self, placement: Placement) -> Artifact:
        signed = self._scheme.activation_type == "int8"
        graph = qdq.insert_qdq(
            self._model, placement, self._numbers, self._scheme.per_channel, self._rounded, signed
        )
        return replace(self._gate.artifact, model=graph)


def cannot_win(ratios: Sequence[float]) -> bool:
    """Whether no further rounds, up to ROUNDS, can bring the interval of these ratios below 1 and their median to SMALLEST_GAIN."""
    return (
        sum(one >= 1 for one in ratios) > 1
        or sum(one > SMALLEST_GAIN for one in ratios) > ROUNDS // 2
    )


def find_fastest(
    race: PlacementRace, starts: Sequence[Placement], screening: float, seconds: float
) -> SearchResult:
    """The fastest placement that can be found from `starts` in about `seconds`, the first race apart.

    screening  seconds for each of `starts` in the first race
    """
    started = time.perf_counter()
    timed, rest = _begun(race, starts, screening)
    deadline = time.perf_counter() + seconds
    first = best = timed[0]
    trials = list[PlacementTrial]()
    while step := _step(race, best.placement, deadline, trials):
        best = replace(best, placement=step)
    if best.placement is not first.placement:
        best = TimedPlacement(best.placement, race.over_float([best.placement], screening)[0])
    ranked = (*(one.placement for one in timed[1:]), *rest)
    return SearchResult(
        best,
        ranked,
        tuple(trials),
        round(time.perf_counter() - started, 2),
        _alike(race, best, timed),
    )


def _alike(
    race: PlacementRace, best: TimedPlacement, timed: Sequence[TimedPlacement]
) -> tuple[TimedPlacement, ...]:
    """See Found."""
    ours, most = race.places.count(best.placement), best.ratio.values.ratio / NEAR
    near = [
        one
        for one in timed
        if race.places.count(one.placement) < ours and one.ratio.values.ratio <= most
    ]
    return tuple(sorted(near, key=lambda one: race.places.count(one.placement)))


def _begun(
    race: PlacementRace, starts: Sequence[Placement], screening: float
) -> tuple[list[TimedPlacement], list[Placement]]:
    """(the fastest of `starts`; the others, the next fastest first). Of those as fast the most quantized is first."""
    ratios = [1.0, *(one.value for one in race.over(starts[0], starts[1:]))]
    order = sorted(range(len(starts)), key=lambda index: ratios[index])
    near = [starts[index] for index in order if ratios[index] <= ratios[order[0]] / NEAR]
    least = min(near, key=race.places.count)
    near = list(dict.fromkeys([*near[: FINALISTS - 1], least]))
    near += [starts[0]] if starts[0] not in near else []  # all others were only compared with it
    timed = sorted(
        map(TimedPlacement, near, race.over_float(near, screening)),
        key=lambda one: one.ratio.values.ratio,
    )
    alike = [
        one
        for one in timed
        if one.ratio.values.ratio <= timed[0].ratio.values.ratio / SMALLEST_GAIN
    ]
    first = min(alike, key=lambda one: starts.index(one.placement))
    timed = [first, *(one for one in timed if one is not first)]
    return timed, [starts[index] for index in order if starts[index] not in near]


def _step(
    race: PlacementRace, base: Placement, deadline: float, trials: list[PlacementTrial]
) -> Placement | None:
    """A placement faster than `base` beyond noise; None where there is none, or the time is over."""
    tried = list[tuple[PlacementTrial, frozenset[str]]]()
    layers = {node.output[0] for node in race.places.layers}
    flips = [one for one in _flips(race.places.groups(), base) if (base.nodes ^ one[1]) & layers]
    for start in range(0, len(flips), race.together):
        if time.perf_counter() >= deadline:
            break
        some = flips[start : start + race.together]
        found = race.over(base, [_changed(race, base, [group]) for _, group, _ in some])
        tried += [
            (PlacementTrial(name, len(group), into, one.value, one.low, one.high), group)
            for (name, group, into), one in zip(some, found, strict=True)
        ]
    gains = sorted(
        (one for one in tried if one[0].high < 1 and one[0].ratio <= SMALLEST_GAIN),
        key=lambda one: one[0].ratio,
    )
    taken, made = _proven(race, base, gains)
    trials += [replace(one, kept=one in taken) for one, _ in tried]
    return made


def _proven(
    race: PlacementRace, base: Placement, gains: Sequence[tuple[PlacementTrial, frozenset[str]]]
) -> tuple[list[PlacementTrial], Placement | None]:
    """(what was taken, the placement): all of `gains` together or the first alone, if a race of their own says so."""
    if not gains:
        return [], None
    layers = {node.output[0] for node in race.places.layers}
    choices = [gains[:1], *([gains] if len(gains) > 1 else [])]
    made = [_changed(race, base, [group for _, group in one]) for one in choices]
    made = [one for one in made if one.nodes & layers]
    found = race.over(base, made, latency.OPENINGS)
    best = min(range(len(made)), key=lambda index: found[index].value)
    if found[best].high >= 1:
        return [], None
    return [trial for trial, _ in choices[best]], made[best]


def _flips(
    groups: Mapping[str, frozenset[str]], base: Placement
) -> Iterator[tuple[str, frozenset[str], bool]]:
    """(name, nodes that change sides, whether into INT8) of each group; one that is on both sides changes with each part."""
    for name, nodes in groups.items():
        inside, outside = nodes & base.nodes, nodes - base.nodes
        if inside:
            yield name, inside, False
        if outside:
            yield name, outside, True


def _changed(race: PlacementRace, base: Placement, groups: Sequence[frozenset[str]]) -> Placement:
    """`base` with every node of `groups` on its other side."""
    nodes = base.nodes
    for group in groups:
        nodes ^= group
    names = [name for name, group in race.places.groups().items() if not group & nodes]
    return race.places.placement(
        f"searched, float: {', '.join(names)}" if names else "everything", nodes
    )
