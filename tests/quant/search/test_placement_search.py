"""The search for a placement, on machines whose costs are known: it finds what is fastest, gets no slower, and believes no noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.quant.network.test_placement import graph
from tests.sample_results import latency_ratio

from repzoo.measure import stats
from repzoo.measure.record import Record
from repzoo.measure.results import LatencyRatio
from repzoo.measure.stats import Interval
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.search import placement_search as search

MODEL = graph(
    "a = Conv <pads = [1, 1, 1, 1], group = 8> (x, deep) c = Conv <pads = [1, 1, 1, 1]> (a, w)"
    " d = Conv <pads = [1, 1, 1, 1], strides = [2, 2], group = 8> (c, deep) e = Conv <pads = [1, 1, 1, 1]> (d, w)"
    " s = Add (d, e) p = GlobalAveragePool (s) f = Flatten (p) y = Gemm <transB = 1> (f, gemm)",
    "float[N, 10] y",
)
FLOAT = {"a": 10.0, "c": 40.0, "d": 10.0, "e": 30.0, "s": 2.0, "p": 1.0, "f": 0.1, "y": 4.0}


class Machine(search.PlacementRace):
    """Each node costs what FLOAT says, or `int8` of that; each Q/DQ pair costs `pair`; every reading is off by up to `noise`."""

    def __init__(self, int8: Mapping[str, float], pair: float = 0.5, noise: float = 0.0) -> None:
        self.places, self._int8, self._pair, self._noise = PlacementSpace(MODEL), int8, pair, noise
        self._random, self.races, self.together = np.random.default_rng(0), 0, search.TOGETHER[0]

    def cost(self, placement: Placement) -> float:
        nodes = sum(
            cost * (self._int8.get(name, 1.0) if name in placement.nodes else 1)
            for name, cost in FLOAT.items()
        )
        return nodes + self._pair * len(placement.tensors)

    def _ratio(self, one: float, two: float) -> Interval:
        readings = one / two * (1 + self._noise * self._random.uniform(-1, 1, 9))
        low, *_, high = sorted(readings)[1:8]
        return Interval(float(np.median(readings)), low, high)

    def over_float(
        self, placements: Sequence[Placement], seconds: float
    ) -> list[Record[LatencyRatio]]:
        found = [self._ratio(self.cost(one), sum(FLOAT.values())) for one in placements]
        return [Record({}, latency_ratio(one.value, one.low, one.high)) for one in found]

    def over(
        self, base: Placement, placements: Sequence[Placement], openings: int = 1
    ) -> list[Interval]:
        self.races += 1
        return [self._ratio(self.cost(one), self.cost(base)) for one in placements]


def searched(machine: Machine, seconds: float = 60.0) -> search.SearchResult:
    return search.find_fastest(machine, machine.places.starting_placements(), 0.1, seconds)


def test_what_costs_more_in_int8_stays_float_and_the_rest_does_not() -> None:
    """Only the depthwise convolution at 8 px is slow in INT8, which no start leaves out alone."""
    found = searched(
        Machine({"a": 3.0, "c": 0.3, "d": 0.3, "e": 0.3, "s": 0.3, "y": 0.3, "p": 0.5, "f": 1.0})
    )
    assert found.best.placement.nodes == set(FLOAT) - {"a"}
    assert found.best.placement.name == "searched, float: depthwise at 8 px"
    kept = [one for one in found.trials if one.kept]
    assert [(one.group, one.int8) for one in kept] == [
        ("depthwise at 4 px", True)
    ]  # begun with all depthwise ones in float
    assert kept[0].sentence().startswith("depthwise at 4 px (1) in INT8: 0.")


def test_two_gains_are_taken_together() -> None:
    machine = Machine(
        {"a": 0.3, "c": 0.3, "d": 0.3, "e": 3.0, "s": 0.3, "y": 3.0, "p": 1.0, "f": 1.0}, pair=0.0
    )
    found = searched(machine)
    assert {one.group for one in found.trials if one.kept} == {"3x3 convolution at 4 px", "Gemm"}
    assert (
        machine.races == 1 + 2 + 1 + 2
    )  # the starts, trials, both together against the first alone, and trials that find no more


def test_groups_come_back_into_int8() -> None:
    """Depthwise ones, pooling and sums are slow, except the depthwise one at 4 px: it is put back."""
    machine = Machine(
        {"a": 5.0, "c": 0.3, "d": 0.2, "e": 0.3, "s": 20.0, "p": 20.0, "f": 9.0, "y": 0.5}
    )
    found = searched(machine).best.placement
    assert {"c", "d", "e", "y"} <= found.nodes
    assert not {"a", "s", "p"} & found.nodes


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_costs_it_is_never_slower_than_any_start(seed: int) -> None:
    random = np.random.default_rng(seed)
    machine = Machine(
        {name: float(random.uniform(0.2, 3)) for name in FLOAT}, pair=float(random.uniform(0, 5))
    )
    found = searched(machine)
    assert machine.cost(found.best.placement) <= min(
        map(machine.cost, machine.places.starting_placements())
    )
    assert any(node.output[0] in found.best.placement.nodes for node in machine.places.layers)


def test_noise_moves_nothing() -> None:
    """All sides cost the same and readings are off by 5 %: what was fastest at the start stays."""
    machine = Machine({}, pair=0.0, noise=0.05)
    found = searched(machine)
    assert not any(one.kept for one in found.trials)
    assert found.best.placement in machine.places.starting_placements()


def test_without_time_the_first_race_decides() -> None:
    machine = Machine({"a": 3.0})
    assert searched(machine, seconds=0).trials == ()
    assert machine.races == 1


def test_one_that_obviously_wins_costs_one_round_of_trials() -> None:
    machine = Machine(dict.fromkeys(FLOAT, 0.3), pair=0.1)
    assert searched(machine).best.placement.name == "everything"
    assert machine.races == 3  # the starts, and eight groups, four at a time


@given(
    st.lists(st.floats(0.9, 1.1), min_size=search.ROUNDS, max_size=search.ROUNDS),
    st.integers(1, search.ROUNDS),
)
def test_what_leaves_a_race_could_not_have_won_it(ratios: list[float], seen: int) -> None:
    """The decision is the one that all rounds would have given: nothing that they would have kept is let go."""
    whole = stats.median_interval(ratios)
    wins = whole.high < 1 and whole.value <= search.SMALLEST_GAIN
    assert not (wins and search.cannot_win(ratios[:seen]))
    assert wins or search.cannot_win(ratios)


def test_a_start_that_is_slow_is_not_timed_with_care_but_stays_among_the_others() -> None:
    timed: list[Placement] = []

    class Watched(Machine):
        def over_float(
            self, placements: Sequence[Placement], seconds: float
        ) -> list[Record[LatencyRatio]]:
            timed.extend(placements)
            return super().over_float(placements, seconds)

    machine = Watched(dict.fromkeys(FLOAT, 0.2), pair=0.0)
    found, starts = searched(machine), machine.places.starting_placements()
    assert len(timed) < len(starts)
    assert {one.name for one in (found.best.placement, *found.others)} == {
        one.name for one in starts
    }
    costs = [machine.cost(one) for one in found.others]
    assert costs == sorted(costs)


def test_what_is_nearly_as_fast_with_fewer_layers_in_int8_is_told_of() -> None:
    """Depthwise ones cost the same on either side: without them it is as fast, and more accurate, which is not the search's to say."""
    machine = Machine(
        {"a": 0.99, "d": 0.99, "c": 0.3, "e": 0.3, "s": 0.3, "y": 0.3, "p": 0.3, "f": 0.3}, pair=0.0
    )
    found = searched(machine)
    assert found.best.placement.name == "everything"
    assert "everything but depthwise" in [one.placement.name for one in found.alike]
    layers = [len(one.placement.nodes & {"a", "c", "d", "e", "y"}) for one in found.alike]
    assert layers == sorted(layers)
    assert all(
        machine.cost(one.placement) <= machine.cost(found.best.placement) / search.NEAR
        for one in found.alike
    )


def test_what_is_slower_or_has_as_many_layers_in_int8_is_not() -> None:
    assert searched(Machine(dict.fromkeys(FLOAT, 0.2), pair=0.0)).alike == ()
    same = Machine(
        {**dict.fromkeys(FLOAT, 0.2), "s": 1.0, "p": 1.0, "f": 1.0}, pair=0.0
    )  # "layers" is as fast, with all of them
    assert searched(same).alike == ()
