"""Finds the placement of Q/DQ pairs that runs fastest, by timing on the target engine.

1. The starting placements (network/placement.py) are profiled on the engine, operator by operator
   (node_costs.py). From what each node costs in INT8 and in float, and what a change between both
   costs, the cheapest placements follow; they are starting placements too. An engine without
   profiles does without.
2. The most quantized start, and the cheapest of the others, are timed in turns with the float
   model, over several openings of their sessions; those that a noisy machine leaves undecided, once
   more beside the fastest. Without profiles, a short race against the most quantized start chooses
   those that come near the fastest, and the least quantized of these.
3. Groups of like nodes, by kind and resolution, change sides one at a time (placement_moves.py):
   out of INT8 where they are in it, into it where they are not. Each change is timed against the
   placement as it is, the most promising by the profiles first. Those that the profiles expect to
   gain nothing are not.
4. The changes that are faster beyond noise (the whole interval of the ratio is below 1) are applied
   together, or the best of them alone, whichever is faster in a second race, again beyond noise.
   Steps 3 and 4 repeat until no group gains or the time is up.

So the placement only ever gets faster, and a group whose change makes no difference stays where it
is. A placement that can no longer win its race leaves it at once: most do after a few rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from repzoo.engines.executed import ExecutedOperator
from repzoo.errors import InputError
from repzoo.measure import latency
from repzoo.measure.results import LatencyRatio, PlacementTrial
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.search.node_costs import NodeCosts
from repzoo.quant.search.placement_moves import improve
from repzoo.quant.search.placement_race import (
    PlacementRace,
    layer_names,
)

# Starting placements are timed with care where they reach this share of the fastest one's speed.
NEAR = 0.94
FINALISTS = 3  # of these, at most
# With two, searches of FasterNet-T0 on OpenVINO ended 11 % slower: a node's cost is the median of
# what profiles say, and they are noisy.
PROFILED_STARTS = 4
TIMED_STARTS = 3  # besides the first, where there are profiles
# Starts that profiles expect to take so many times as long as the cheapest are not timed, but for
# one: opening a session takes longer than timing it.
EXPECTED_LOSS = 1.05
# Nor are placements by profile that are expected to take as long as another, but for this share.
# Most of them differ in a node or two.
ALIKE = 0.003
# Of two placements, the one that looked slower is timed again where it may be faster by so much.
UNDECIDED = 1.05
# Cheapest placements are computed as if conversions cost so many times what profiles say: within a
# mixed model they differ from where they were seen.
CONVERSION_FACTORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class TimedPlacement:
    """A placement with its latency over the float model's.

    ratio  None where it was not timed: only a board runs the model
    """

    placement: Placement
    ratio: LatencyRatio | None

    @property
    def relative_latency(self) -> float:
        """Latency over the float model's, of a placement that was timed."""
        assert self.ratio is not None
        return self.ratio.ratio


@dataclass(frozen=True)
class SearchResult:
    """The fastest placement, and others to try for accuracy.

    others          other placements: those timed with care, then those that the search left out,
                    the fastest first. None that the engine refuses
    trials          the group changes that were timed
    seconds         time that the search took
    nearly_as_fast  of the others, those with fewer layers in INT8 that reach NEAR of the speed of
                    the best, least quantized first
    finished        whether the search ended since nothing gained, and not since its time was up
    profiles        what the engine executes for placements that were profiled, by nodes in INT8
    """

    best: TimedPlacement
    others: tuple[Placement, ...]
    trials: tuple[PlacementTrial, ...] = ()
    seconds: float = 0.0
    nearly_as_fast: tuple[TimedPlacement, ...] = ()
    finished: bool = True
    profiles: Mapping[frozenset[str], Sequence[ExecutedOperator]] = field(
        default_factory=dict
    )


def find_fastest(
    race: PlacementRace,
    starts: Sequence[Placement],
    screening: float,
    seconds: float,
    known: Sequence[Placement] = (),
    keep: Callable[[Placement], None] | None = None,
) -> SearchResult:
    """The fastest placement that is found from `starts`.

    screening  seconds of timing for each of the nearest of `starts`
    seconds    after which no further trial begins, not counting the timing of `starts`
    known      other starts, which were the fastest before: all are timed with care
    keep       is called with each placement that is faster than all before
    """
    started = time.perf_counter()
    keep = keep or _forget
    costs = profile_costs(race, starts)
    if costs is None:
        chosen, others = choose_by_race(race, starts)
    else:
        chosen, others = choose_by_profile(race, starts, costs)
    chosen, others = _with_known(known, chosen, others)
    timed = _settled(race, _time_starts(race, chosen, others, screening))
    deadline = time.perf_counter() + seconds
    first = timed[0].placement
    placement = first
    keep(first)
    trials: list[PlacementTrial] = []
    while True:
        faster, finished = improve(race, placement, deadline, trials, costs)
        if faster is None:
            break
        placement = faster
        keep(placement)
    best = timed[0]
    if placement is not first:
        again = _time_against_float(race, [placement], screening)
        if again:  # an engine that fails only now leaves the fastest start
            best = again[0]
    careful = {candidate.placement for candidate in timed}
    slower = [
        start for start in others if start not in careful and not race.refusal(start)
    ]
    return SearchResult(
        best,
        (*(candidate.placement for candidate in timed[1:]), *slower),
        tuple(trials),
        round(time.perf_counter() - started, 2),
        _nearly_as_fast(race.space, best, timed),
        finished,
        costs.profiles if costs else {},
    )


def _forget(_: Placement) -> None:
    """Keep nothing."""


def _with_known(
    known: Sequence[Placement], chosen: Sequence[Placement], others: Sequence[Placement]
) -> tuple[list[Placement], list[Placement]]:
    """`chosen` with `known`, `others` without them; none twice."""
    nodes = {placement.nodes for placement in chosen}
    more: dict[frozenset[str], Placement] = {}
    for placement in known:
        if placement.nodes not in nodes:
            more.setdefault(placement.nodes, placement)
    rest = [placement for placement in others if placement.nodes not in more]
    return [*chosen, *more.values()], rest


def time_again(
    race: PlacementRace,
    finalists: Sequence[Placement],
    others: Sequence[Placement],
    screening: float,
) -> SearchResult | None:
    """What an earlier search found, timed against float as it is now.

    None where the engine refuses all finalists.

    finalists  the fastest placement, and those that were nearly as fast
    """
    started = time.perf_counter()
    timed = _time_against_float(race, finalists, screening)
    if not timed:
        return None
    best, *slower = timed
    return SearchResult(
        best,
        (*(candidate.placement for candidate in slower), *others),
        seconds=round(time.perf_counter() - started, 2),
        nearly_as_fast=_nearly_as_fast(race.space, best, slower),
    )


def choose_by_profile(
    race: PlacementRace, starts: Sequence[Placement], costs: NodeCosts
) -> tuple[list[Placement], list[Placement]]:
    """(the placements to time with care, the others, the cheapest first).

    The first of `starts` is among them, and at least one of the others.
    """
    first, *others = starts
    # Alike ones are dropped for good: for accuracy they would be tried in vain too.
    cheapest = _unlike(costs, first, cheapest_by_profile(race, costs, starts))
    totals = {start: costs.total(start) for start in (*others, *cheapest)}
    order = sorted(totals, key=lambda start: totals[start])
    limit = EXPECTED_LOSS * min([costs.total(first), *totals.values()])
    timed = [start for start in order if totals[start] <= limit][:TIMED_STARTS]
    if not timed:
        # One is timed all the same, since profiles may err. What was profiled opens quickly.
        profiled = [start for start in order if start.nodes in costs.profiles]
        timed = (profiled or order)[:1]
    return [first, *timed], [start for start in order if start not in timed]


def _unlike(
    costs: NodeCosts, first: Placement, cheapest: Sequence[Placement]
) -> list[Placement]:
    """Those of `cheapest` that are expected to take another time than those before, and `first`."""
    known = [costs.total(first)]
    unlike: list[Placement] = []
    for placement in cheapest:
        total = costs.total(placement)
        if all(abs(total - other) > ALIKE * total for other in known):
            known.append(total)
            unlike.append(placement)
    return unlike


def profile_costs(race: PlacementRace, starts: Sequence[Placement]) -> NodeCosts | None:
    """What nodes and conversions cost, from profiles of the float model and of some of `starts`.

    None where the engine has no profiles.
    """
    # From most to least in INT8: they differ in their conversions.
    positions = np.linspace(0, len(starts) - 1, PROFILED_STARTS).round()
    placements: list[Placement | None] = [None]
    for position in dict.fromkeys(positions.astype(int).tolist()):
        placements.append(starts[position])
    profiles = race.profiles(placements)
    if profiles[0] is None:
        return None
    costs = NodeCosts(race.space)
    for placement, operators in zip(placements, profiles, strict=True):
        if operators is not None:
            costs.add(placement, operators)
    return costs


def cheapest_by_profile(
    race: PlacementRace, costs: NodeCosts, starts: Sequence[Placement]
) -> list[Placement]:
    """The placements that are cheapest by `costs`, none of which is in `starts`.

    The second time, the profile of the cheapest one is known too: there, nodes and conversions are
    seen next to those that they will stand next to.
    """
    cheapest: dict[frozenset[str], Placement] = {}
    known = {start.nodes for start in starts}
    layers = set(layer_names(race.space))
    for factors in ((1.0,), CONVERSION_FACTORS):
        for factor in factors:
            nodes = costs.cheapest(factor)
            if nodes in known or not nodes & layers:
                continue
            known.add(nodes)
            name = f"cheapest by profile, conversions x {factor:g}"
            cheapest[nodes] = race.space.placement(name, nodes)
            if factors == (1.0,):
                operators = race.profiles([cheapest[nodes]])[0]
                if operators is not None:
                    costs.add(cheapest[nodes], operators)
    return list(cheapest.values())


def _nearly_as_fast(
    space: PlacementSpace, best: TimedPlacement, timed: Sequence[TimedPlacement]
) -> tuple[TimedPlacement, ...]:
    """See `SearchResult`."""
    layers = space.count(best.placement)
    slowest = best.relative_latency / NEAR
    near = []
    for candidate in timed:
        has_fewer = space.count(candidate.placement) < layers
        if has_fewer and candidate.relative_latency <= slowest:
            near.append(candidate)
    return tuple(sorted(near, key=lambda candidate: space.count(candidate.placement)))


def _time_starts(
    race: PlacementRace,
    chosen: Sequence[Placement],
    others: Sequence[Placement],
    screening: float,
) -> list[TimedPlacement]:
    """`chosen`, timed against float, the fastest first; `others` where the engine refuses them all.

    Raises:
        InputError: the engine refuses the others too.
    """
    timed = _time_against_float(race, chosen, screening)
    for start in range(0, len(others), FINALISTS):
        if timed:
            break
        timed = _time_against_float(race, others[start : start + FINALISTS], screening)
    if not timed:
        raise race.refusal(chosen[0]) or InputError("the engine runs no INT8 model")
    return timed


def _settled(
    race: PlacementRace, timed: Sequence[TimedPlacement]
) -> list[TimedPlacement]:
    """`timed`, with the fastest in front also where the interval to float's time leaves it open.

    Those that may be faster than the first by more than UNDECIDED are timed beside it once more.
    """
    first, *others = timed
    assert first.ratio is not None
    rivals: list[TimedPlacement] = []
    for other in others:
        assert other.ratio is not None
        if first.ratio.ratio_high > UNDECIDED * other.ratio.ratio_low:
            rivals.append(other)
    if not rivals:
        return list(timed)
    placements = [rival.placement for rival in rivals]
    direct = race.ratios_to(first.placement, placements, latency.OPENINGS)
    fastest, smallest = first, 1.0
    for rival, interval in zip(rivals, direct, strict=True):
        # Both measurements say how much longer it takes than the first.
        product = rival.relative_latency / first.relative_latency * interval.value
        if product < smallest:
            fastest, smallest = rival, product
    return [fastest, *(item for item in timed if item is not fastest)]


def _time_against_float(
    race: PlacementRace, placements: Sequence[Placement], seconds: float
) -> list[TimedPlacement]:
    """Those of `placements` that the engine accepts, the fastest first."""
    timed: list[TimedPlacement] = []
    ratios = race.ratios_to_float(placements, seconds)
    for placement, ratio in zip(placements, ratios, strict=True):
        if ratio is not None:
            timed.append(TimedPlacement(placement, ratio))
    timed.sort(key=lambda candidate: candidate.relative_latency)
    return timed


def choose_by_race(
    race: PlacementRace, starts: Sequence[Placement]
) -> tuple[list[Placement], list[Placement]]:
    """(those of `starts` to time with care, the others), the fastest of a short race first."""
    intervals = race.ratios_to(starts[0], starts[1:])
    if race.refusal(starts[0]) and len(starts) > 1:
        return choose_by_race(race, starts[1:])
    ratios = [1.0, *(interval.value for interval in intervals)]
    order = sorted(range(len(starts)), key=lambda index: ratios[index])
    slowest = ratios[order[0]] / NEAR
    near = [starts[index] for index in order if ratios[index] <= slowest]
    least_quantized = min(near, key=race.space.count)
    finalists = near[: FINALISTS - 1]
    # The first start too: all others were compared with it alone.
    for placement in (least_quantized, starts[0]):
        if placement not in finalists:
            finalists.append(placement)
    slower = [starts[index] for index in order if starts[index] not in finalists]
    return finalists, slower
