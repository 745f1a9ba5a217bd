"""The search for a placement on machines whose costs are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quant.network.test_placement import graph

from repzoo.engines.executed import ExecutedOperator
from repzoo.errors import InputError
from repzoo.measure import stats
from repzoo.measure.results import LatencyRatio, Setting
from repzoo.measure.stats import Interval
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.search import placement_moves, placement_race, placement_search
from repzoo.quant.search.placement_race import PlacementRace
from repzoo.quant.search.placement_search import SearchResult

MODEL = graph(
    "a = Conv <pads = [1, 1, 1, 1], group = 8> (x, deep)"
    " c = Conv <pads = [1, 1, 1, 1]> (a, w)"
    " d = Conv <pads = [1, 1, 1, 1], strides = [2, 2], group = 8> (c, deep)"
    " e = Conv <pads = [1, 1, 1, 1]> (d, w)"
    " s = Add (d, e) p = GlobalAveragePool (s) f = Flatten (p)"
    " y = Gemm <transB = 1> (f, gemm)",
    "float[N, 10] y",
)
FLOAT = {
    "a": 10.0,
    "c": 40.0,
    "d": 10.0,
    "e": 30.0,
    "s": 2.0,
    "p": 1.0,
    "f": 0.1,
    "y": 4.0,
}
LAYERS = {"a", "c", "d", "e", "y"}


def latency_ratio(ratio: float, low: float, high: float) -> LatencyRatio:
    return LatencyRatio(
        setting=Setting(),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        faster=None,
        rounds=9,
    )


class Machine(PlacementRace):
    """A machine on which each node costs what FLOAT says, or `int8` times that in INT8.

    pair   cost of each Q/DQ pair
    noise  every reading is off by up to this share
    """

    def __init__(
        self, int8: Mapping[str, float], pair: float = 0.5, noise: float = 0.0
    ) -> None:
        self.space = PlacementSpace(MODEL)
        self.group_size = placement_race.SMALLEST_RACE
        self.races = 0
        self._refusals = {}
        self._int8 = int8
        self._pair = pair
        self._noise = noise
        self._random = np.random.default_rng(0)

    def cost(self, placement: Placement) -> float:
        total = self._pair * len(placement.tensors)
        for name, cost in FLOAT.items():
            factor = self._int8.get(name, 1.0) if name in placement.nodes else 1.0
            total += cost * factor
        return total

    def profile(self, placement: Placement | None) -> list[ExecutedOperator] | None:
        return None

    def profiles(
        self, placements: Sequence[Placement | None]
    ) -> list[list[ExecutedOperator] | None]:
        return list(map(self.profile, placements))

    def _ratio(self, first: float, second: float) -> Interval:
        noise = 1 + self._noise * self._random.uniform(-1, 1, 9)
        readings = np.sort(first / second * noise)
        return Interval(
            float(np.median(readings)), float(readings[1]), float(readings[7])
        )

    def ratios_to_float(
        self,
        placements: Sequence[Placement],
        seconds: float,
    ) -> list[LatencyRatio | None]:
        ratios: list[LatencyRatio | None] = []
        for placement in placements:
            interval = self._ratio(self.cost(placement), sum(FLOAT.values()))
            ratios.append(latency_ratio(interval.value, interval.low, interval.high))
        return ratios

    def ratios_to(
        self,
        base: Placement,
        placements: Sequence[Placement],
        openings: int = 1,
    ) -> list[Interval]:
        self.races += 1
        return [
            self._ratio(self.cost(placement), self.cost(base))
            for placement in placements
        ]


def search(
    machine: Machine,
    seconds: float = 60.0,
    known: Sequence[Placement] = (),
    keep: Callable[[Placement], None] | None = None,
) -> SearchResult:
    starts = machine.space.starting_placements()
    return placement_search.find_fastest(machine, starts, 0.1, seconds, known, keep)


def test_what_is_slower_in_int8_stays_in_float_and_the_rest_does_not() -> None:
    """Only the depthwise convolution at 8 px is slow in INT8; no start leaves out it alone."""
    costs = {
        "a": 3.0,
        "c": 0.3,
        "d": 0.3,
        "e": 0.3,
        "s": 0.3,
        "y": 0.3,
        "p": 0.5,
        "f": 1.0,
    }
    result = search(Machine(costs))
    assert result.best.placement.nodes == set(FLOAT) - {"a"}
    assert result.best.placement.name == "searched, float: depthwise at 8 px"
    kept = [trial for trial in result.trials if trial.kept]
    # The search began with all depthwise convolutions in float.
    assert [(trial.group, trial.int8) for trial in kept] == [
        ("depthwise at 4 px", True)
    ]
    assert kept[0].sentence().startswith("depthwise at 4 px (1) in INT8: 0.")


def test_two_gains_are_applied_together() -> None:
    costs = {
        "a": 0.3,
        "c": 0.3,
        "d": 0.3,
        "e": 3.0,
        "s": 0.3,
        "y": 3.0,
        "p": 1.0,
        "f": 1.0,
    }
    machine = Machine(costs, pair=0.0)
    result = search(machine)
    kept = {trial.group for trial in result.trials if trial.kept}
    assert kept == {"3x3 convolution at 4 px", "Gemm"}
    # The starts, two races of trials, both gains against the first alone, and two races of trials
    # that find no more.
    assert machine.races == 1 + 2 + 1 + 2


def test_groups_return_to_int8() -> None:
    """Depthwise, pooling and sums are slow, except the depthwise at 4 px, which is put back."""
    costs = {
        "a": 5.0,
        "c": 0.3,
        "d": 0.2,
        "e": 0.3,
        "s": 20.0,
        "p": 20.0,
        "f": 9.0,
        "y": 0.5,
    }
    placement = search(Machine(costs)).best.placement
    assert {"c", "d", "e", "y"} <= placement.nodes
    assert not {"a", "s", "p"} & placement.nodes


@pytest.mark.parametrize("seed", range(5))
def test_the_result_is_never_slower_than_any_start(seed: int) -> None:
    random = np.random.default_rng(seed)
    costs = {name: float(random.uniform(0.2, 3)) for name in FLOAT}
    machine = Machine(costs, pair=float(random.uniform(0, 5)))
    best = search(machine).best.placement
    assert machine.cost(best) <= min(
        map(machine.cost, machine.space.starting_placements())
    )
    assert best.nodes & LAYERS


def test_noise_changes_nothing() -> None:
    """All sides cost the same and readings are off by 5 %: the fastest start stays."""
    machine = Machine({}, pair=0.0, noise=0.05)
    result = search(machine)
    assert not any(trial.kept for trial in result.trials)
    assert result.best.placement in machine.space.starting_placements()


def test_without_time_the_first_race_decides() -> None:
    machine = Machine({"a": 3.0})
    assert search(machine, seconds=0).trials == ()
    assert machine.races == 1


def test_a_clear_winner_costs_one_round_of_trials() -> None:
    machine = Machine(dict.fromkeys(FLOAT, 0.3), pair=0.1)
    assert search(machine).best.placement.name == "everything"
    assert machine.races == 3  # the starts, and eight groups, four at a time


@given(
    st.lists(
        st.floats(0.9, 1.1),
        min_size=placement_race.ROUNDS,
        max_size=placement_race.ROUNDS,
    ),
    st.integers(1, placement_race.ROUNDS),
)
def test_a_placement_that_leaves_a_race_could_not_have_won_it(
    ratios: list[float], rounds: int
) -> None:
    """The decision is the one that all rounds would have given."""
    interval = stats.median_interval(ratios)
    wins = interval.high < 1 and interval.value <= placement_race.SMALLEST_GAIN
    assert not (wins and placement_race.cannot_win(ratios[:rounds]))
    assert wins or placement_race.cannot_win(ratios)


def test_a_slow_start_is_not_timed_with_care_but_stays_among_the_others() -> None:
    timed: list[Placement] = []

    class Watched(Machine):
        def ratios_to_float(
            self, placements: Sequence[Placement], seconds: float
        ) -> list[LatencyRatio | None]:
            timed.extend(placements)
            return super().ratios_to_float(placements, seconds)

    machine = Watched(dict.fromkeys(FLOAT, 0.2), pair=0.0)
    result = search(machine)
    starts = machine.space.starting_placements()
    assert len(timed) < len(starts)
    names = {placement.name for placement in (result.best.placement, *result.others)}
    assert names == {placement.name for placement in starts}
    costs = [machine.cost(placement) for placement in result.others]
    assert costs == sorted(costs)


def test_placements_nearly_as_fast_with_fewer_layers_in_int8_are_reported() -> None:
    """Depthwise convolutions cost the same on either side: in float they are more accurate."""
    costs = {
        "a": 0.99,
        "d": 0.99,
        "c": 0.3,
        "e": 0.3,
        "s": 0.3,
        "y": 0.3,
        "p": 0.3,
        "f": 0.3,
    }
    machine = Machine(costs, pair=0.0)
    result = search(machine)
    near = [timed.placement for timed in result.nearly_as_fast]
    assert result.best.placement.name == "everything"
    assert "everything but depthwise" in [placement.name for placement in near]
    layers = [len(placement.nodes & LAYERS) for placement in near]
    assert layers == sorted(layers)
    slowest = machine.cost(result.best.placement) / placement_search.NEAR
    assert all(machine.cost(placement) <= slowest for placement in near)


def test_slower_placements_and_those_with_as_many_layers_in_int8_are_not_reported() -> (
    None
):
    costs = dict.fromkeys(FLOAT, 0.2)
    assert search(Machine(costs, pair=0.0)).nearly_as_fast == ()
    # "layers" is as fast as the best here, with all layers in INT8.
    same = Machine({**costs, "s": 1.0, "p": 1.0, "f": 1.0}, pair=0.0)
    assert search(same).nearly_as_fast == ()


# The nodes that read each tensor, by the node that writes it; "" is the caller.
READERS = {
    "": ["a"],
    "a": ["c"],
    "c": ["d"],
    "d": ["e", "s"],
    "e": ["s"],
    "s": ["p"],
    "p": ["f"],
    "f": ["y"],
    "y": [""],
}


class ProfiledMachine(Machine):
    """A machine that tells what each node and each conversion costs.

    pair  cost of each tensor that one side writes and the other reads
    """

    def conversions(self, inside: frozenset[str]) -> int:
        changing = 0
        for writer, readers in READERS.items():
            sides = {reader in inside for reader in readers}
            changing += sides != {writer in inside}
        return changing

    def node_costs(self, inside: frozenset[str]) -> dict[str, float]:
        costs = {}
        for name, cost in FLOAT.items():
            factor = self._int8.get(name, 1.0) if name in inside else 1.0
            costs[name] = cost * factor
        return costs

    def cost(self, placement: Placement) -> float:
        conversions = self._pair * self.conversions(placement.nodes)
        return conversions + sum(self.node_costs(placement.nodes).values())

    def profile(self, placement: Placement | None) -> list[ExecutedOperator]:
        inside = placement.nodes if placement else frozenset()
        operators = []
        for name, cost in self.node_costs(inside).items():
            operators.append(ExecutedOperator("Node", "", (name,), cost))
        conversions = self._pair * self.conversions(inside)
        operators.append(ExecutedOperator("Quantize", "", (), conversions))
        return operators


def every_placement(space: PlacementSpace) -> Iterator[Placement]:
    """All that have a layer in INT8."""
    for size in range(1, len(FLOAT) + 1):
        for nodes in itertools.combinations(FLOAT, size):
            if LAYERS.intersection(nodes):
                yield space.placement("any", nodes)


@settings(max_examples=25)
@given(st.lists(st.sampled_from([0.3, 0.9, 1.5, 3.0]), min_size=8, max_size=8))
def test_the_cheapest_placement_by_profile_is_the_cheapest_of_all(
    factors: list[float],
) -> None:
    machine = ProfiledMachine(dict(zip(FLOAT, factors, strict=True)), pair=0.0)
    costs = map(machine.cost, every_placement(machine.space))
    starts = machine.space.starting_placements()
    profiled = placement_search.profile_costs(machine, starts)
    assert profiled is not None
    found = placement_search.cheapest_by_profile(machine, profiled, starts)
    if min(factors[node] for node in (0, 1, 2, 3, 7)) > 1:
        # no layer gains: a start with one layer is as good as it gets
        assert not found
    else:
        assert min(map(machine.cost, [*starts, *found])) == pytest.approx(min(costs))


def test_a_lone_gain_is_not_worth_its_conversions() -> None:
    """`e` gains 3 in INT8; two conversions cost 4. No start has it right, the profile does."""
    costs = {"a": 0.5, "c": 0.5, "d": 2.0, "e": 0.9, "s": 1.0, "p": 1.0, "y": 1.0}
    machine = ProfiledMachine(costs, pair=2.0)
    starts = machine.space.starting_placements()
    profiled = placement_search.profile_costs(machine, starts)
    assert profiled is not None
    found = placement_search.cheapest_by_profile(machine, profiled, starts)
    assert found[0].nodes & LAYERS == {"a", "c"}
    best = min(map(machine.cost, every_placement(machine.space)))
    assert machine.cost(found[0]) == pytest.approx(best)


def test_an_engine_without_profiles_is_searched_all_the_same() -> None:
    machine = Machine({"c": 0.3})
    result = search(machine)
    assert machine.races
    assert not result.profiles
    assert result.best.placement.nodes >= {"c"}


class RefusingMachine(Machine):
    """Refuses what has any of `refused` in INT8."""

    refused = frozenset({"d", "s"})

    def refusal(self, placement: Placement) -> InputError | None:
        is_refused = bool(self.refused & placement.nodes)
        return InputError("refused") if is_refused else None

    def ratios_to_float(
        self, placements: Sequence[Placement], seconds: float
    ) -> list[LatencyRatio | None]:
        ratios = super().ratios_to_float(placements, seconds)
        refused = map(self.refusal, placements)
        return [
            None if is_refused else ratio
            for ratio, is_refused in zip(ratios, refused, strict=True)
        ]

    def ratios_to(
        self, base: Placement, placements: Sequence[Placement], openings: int = 1
    ) -> list[Interval]:
        intervals = super().ratios_to(base, placements, openings)
        for index, placement in enumerate(placements):
            if self.refusal(base) or self.refusal(placement):
                intervals[index] = placement_race.REFUSED
        return intervals


def test_what_an_engine_refuses_is_neither_found_nor_kept_nor_reported() -> None:
    """All of it would be fastest with everything in INT8."""
    machine = RefusingMachine(dict.fromkeys(FLOAT, 0.5))
    result = search(machine)
    found = [result.best.placement, *result.others]
    assert not any(map(machine.refusal, found))
    assert result.best.placement.nodes >= {"c", "e", "y"}
    assert all(trial.ratio < 10 for trial in result.trials)


def test_an_engine_that_fails_at_the_very_end_leaves_the_fastest_start() -> None:
    class Failing(Machine):
        def ratios_to_float(
            self, placements: Sequence[Placement], seconds: float
        ) -> list[LatencyRatio | None]:
            ratios = super().ratios_to_float(placements, seconds)
            if placements[0].name.startswith("searched"):
                return [None]
            return ratios

    costs = {**dict.fromkeys(FLOAT, 0.3), "a": 3.0}
    assert search(Machine(costs)).best.placement.name.startswith("searched")
    starts = Failing(costs).space.starting_placements()
    assert search(Failing(costs)).best.placement in starts


def test_a_kept_search_whose_finalists_are_refused_is_no_result() -> None:
    machine = RefusingMachine({})
    first, *others = machine.space.starting_placements()
    assert machine.refusal(first)
    assert placement_search.time_again(machine, [first], others, 0.1) is None


@given(
    st.lists(st.sampled_from([0.3, 0.9, 1.5, 3.0]), min_size=8, max_size=8),
    st.lists(st.sets(st.sampled_from(sorted(LAYERS)), min_size=1), max_size=3),
    st.booleans(),
)
@settings(max_examples=25)
def test_a_search_ends_no_slower_than_what_was_known_before(
    factors: list[float], layers: list[set[str]], has_profiles: bool
) -> None:
    costs = dict(zip(FLOAT, factors, strict=True))
    machine = (ProfiledMachine if has_profiles else Machine)(costs, pair=0.3)
    known = [machine.space.placement("known", names) for names in layers]
    result = search(machine, seconds=0.0, known=known)
    fastest = min(map(machine.cost, known), default=np.inf)
    assert machine.cost(result.best.placement) <= fastest
    found = [result.best.placement, *result.others]
    assert {placement.nodes for placement in known} <= {item.nodes for item in found}
    assert len({placement.nodes for placement in found}) == len(found)


@pytest.mark.parametrize(("spread", "races"), [(1.02, 0), (1.4, 1)])
def test_starts_that_float_leaves_undecided_are_timed_beside_each_other(
    spread: float, races: int
) -> None:
    """Beside float, what is fastest looks a little slower than what is not."""

    class Misleading(Machine):
        def ratios_to_float(
            self, placements: Sequence[Placement], seconds: float
        ) -> list[LatencyRatio | None]:
            order = sorted(placements, key=self.cost)
            ratios: list[LatencyRatio | None] = []
            for placement in placements:
                value = 0.95 - 0.01 * order.index(placement)
                low, high = value / spread, value * spread
                ratios.append(latency_ratio(value, low, high))
            return ratios

    machine = Misleading(dict.fromkeys(FLOAT, 0.3))
    starts = machine.space.starting_placements()[:2]
    fast, slow = sorted(starts, key=machine.cost)
    timed = placement_search._time_against_float(machine, starts, 0.1)
    assert timed[0].placement == slow
    settled = placement_search._settled(machine, timed)
    assert machine.races == races
    assert settled[0].placement == (fast if races else slow)
    assert {item.placement for item in settled} == {fast, slow}


def test_what_is_known_and_refused_is_left_out() -> None:
    machine = RefusingMachine({})
    known = machine.space.starting_placements()[0]
    assert machine.refusal(known)
    assert search(machine, known=[known]).best.placement.nodes != known.nodes


def test_each_faster_placement_is_kept_as_soon_as_it_is_found() -> None:
    machine = Machine({**dict.fromkeys(FLOAT, 0.3), "a": 3.0})
    kept: list[Placement] = []
    result = search(machine, keep=kept.append)
    costs = [machine.cost(placement) for placement in kept]
    assert len(kept) > 1
    assert costs == sorted(set(costs), reverse=True)
    assert kept[-1].nodes == result.best.placement.nodes


def test_an_engine_that_refuses_all_placements_says_so() -> None:
    class Stubborn(RefusingMachine):
        refused = frozenset(LAYERS)

    with pytest.raises(InputError, match="refused"):
        search(Stubborn({}))


@given(st.lists(st.sampled_from([0.3, 0.9, 1.5, 3.0]), min_size=8, max_size=8))
@settings(max_examples=25)
def test_with_profiles_few_starts_are_opened_and_the_cheapest_is_among_them(
    factors: list[float],
) -> None:
    machine = ProfiledMachine(dict(zip(FLOAT, factors, strict=True)), pair=0.3)
    starts = machine.space.starting_placements()
    costs = placement_search.profile_costs(machine, starts)
    assert costs is not None
    timed, others = placement_search.choose_by_profile(machine, starts, costs)
    assert timed[0] == starts[0]
    assert 1 < len(timed) <= 1 + placement_search.TIMED_STARTS
    assert set(starts) <= {*timed, *others}
    fastest = min(map(costs.total, timed))
    assert all(costs.total(placement) >= fastest for placement in others)
    assert min(map(costs.total, starts)) >= fastest
    limit = placement_search.EXPECTED_LOSS * fastest
    if costs.total(timed[1]) > limit:  # none comes near
        assert len(timed) == 2
        assert timed[1].nodes in costs.profiles


@given(st.lists(st.sampled_from([0.3, 0.9, 1.5, 3.0]), min_size=8, max_size=8))
@settings(max_examples=25)
def test_changes_that_are_hopeless_by_profile_are_not_timed(
    factors: list[float],
) -> None:
    """A machine whose profile is exact: no trial loses more than the share that is allowed."""
    machine = ProfiledMachine(dict(zip(FLOAT, factors, strict=True)), pair=0.3)
    result = search(machine)
    limit = 1 - placement_moves.EXPECTED_GAIN + 1e-6
    assert all(trial.ratio <= limit for trial in result.trials)
    blind = search(Machine(dict(zip(FLOAT, factors, strict=True)), pair=0.3))
    assert len(result.trials) <= len(blind.trials)
