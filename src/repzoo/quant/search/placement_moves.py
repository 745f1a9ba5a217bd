"""Changes of a placement that are timed: groups of like nodes that go into INT8 or out of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repzoo.measure import latency
from repzoo.measure.results import PlacementTrial
from repzoo.measure.stats import Interval
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.search.node_costs import NodeCosts
from repzoo.quant.search.placement_race import (
    REFUSED,
    SMALLEST_GAIN,
    PlacementRace,
    layer_names,
)

# Changes that profiles expect to gain less than this share of the whole are not timed. Of 165 that
# were expected to cost or gain up to 2 %, in 12 searches, a few looked faster and none was in the
# second race.
EXPECTED_GAIN = 0.005


@dataclass(frozen=True)
class _Move:
    """A group of nodes, all on one side, that changes to the other. int8: whether into INT8."""

    group: str
    nodes: frozenset[str]
    int8: bool


@dataclass(frozen=True)
class _TriedMove:
    """A move with what it did to the latency."""

    move: _Move
    ratio: Interval

    @property
    def gains(self) -> bool:
        """Whether it is faster beyond noise, and by more than where memory happens to lie."""
        return self.ratio.high < 1 and self.ratio.value <= SMALLEST_GAIN

    def to_trial(self, kept: bool) -> PlacementTrial:
        """The row of the report."""
        return PlacementTrial(
            group=self.move.group,
            nodes=len(self.move.nodes),
            int8=self.move.int8,
            ratio=self.ratio.value,
            low=self.ratio.low,
            high=self.ratio.high,
            kept=kept,
        )


def improve(
    race: PlacementRace,
    base: Placement,
    deadline: float,
    trials: list[PlacementTrial],
    costs: NodeCosts | None,
) -> tuple[Placement | None, bool]:
    """(a placement faster than `base` beyond noise, or None; whether all changes were tried).

    What was tried is added to `trials`.
    """
    moves = _promising_moves(race.space, base, costs)
    tried = _try_moves(race, base, moves, deadline)
    gains = [item for item in tried if item.gains]
    gains.sort(key=lambda item: item.ratio.value)
    applied, faster = _confirm(race, base, [item.move for item in gains])
    for item in tried:
        if item.ratio != REFUSED:
            trials.append(item.to_trial(kept=item.move in applied))
    return faster, len(tried) == len(moves)


def _promising_moves(
    space: PlacementSpace, base: Placement, costs: NodeCosts | None
) -> list[_Move]:
    """The moves from `base` to time, the cheapest by `costs` first; None: all of them."""
    layers = set(layer_names(space))
    moves: list[_Move] = []
    for move in _moves(space.groups(), base):
        # A move that leaves no layer in INT8 is none that could be written.
        if (base.nodes ^ move.nodes) & layers:
            moves.append(move)
    if costs is None:
        return moves
    most = costs.total(base) * (1 - EXPECTED_GAIN)
    expected: list[tuple[float, _Move]] = []
    for move in moves:
        total = costs.total(_apply(space, base, [move]))
        if total <= most:
            expected.append((total, move))
    expected.sort(key=lambda item: item[0])
    return [move for _, move in expected]


def _try_moves(
    race: PlacementRace, base: Placement, moves: Sequence[_Move], deadline: float
) -> list[_TriedMove]:
    """Each of `moves` from `base` alone, timed against it, until the time is up."""
    tried: list[_TriedMove] = []
    for start in range(0, len(moves), race.group_size):
        if time.perf_counter() >= deadline:
            break
        batch = moves[start : start + race.group_size]
        placements = [_apply(race.space, base, [move]) for move in batch]
        intervals = race.ratios_to(base, placements)
        tried.extend(map(_TriedMove, batch, intervals))
    return tried


def _confirm(
    race: PlacementRace, base: Placement, gains: Sequence[_Move]
) -> tuple[Sequence[_Move], Placement | None]:
    """The moves to apply, and the placement with them applied.

    All of `gains` (the best first), or the best alone, whichever is faster in a race of their own.
    None of them where neither is faster than `base` beyond noise.
    """
    if not gains:
        return [], None
    choices = [gains[:1]]
    if len(gains) > 1:
        choices.append(gains)
    layers = set(layer_names(race.space))
    placements = []
    for choice in choices:
        placement = _apply(race.space, base, choice)
        # All moves together may leave no layer in INT8. One move alone never does.
        if placement.nodes & layers:
            placements.append(placement)
    intervals = race.ratios_to(base, placements, latency.OPENINGS)
    best = min(range(len(placements)), key=lambda index: intervals[index].value)
    if intervals[best].high >= 1:
        return [], None
    return choices[best], placements[best]


def _moves(groups: Mapping[str, frozenset[str]], base: Placement) -> list[_Move]:
    """The moves from `base`. A group that is on both sides is two of them."""
    moves = []
    for group, nodes in groups.items():
        inside = nodes & base.nodes
        outside = nodes - base.nodes
        if inside:
            moves.append(_Move(group, inside, int8=False))
        if outside:
            moves.append(_Move(group, outside, int8=True))
    return moves


def _apply(space: PlacementSpace, base: Placement, moves: Sequence[_Move]) -> Placement:
    """`base` with every node of `moves` on its other side."""
    nodes = base.nodes
    for move in moves:
        nodes ^= move.nodes
    in_float = []
    for group, members in space.groups().items():
        if not members & nodes:
            in_float.append(group)
    name = f"searched, float: {', '.join(in_float)}" if in_float else "everything"
    return space.placement(name, nodes)
