"""Latency by a clock that only the sessions move, so that every figure is exact; threads by a
barrier, so that none can be late.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import cycle

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repzoo.artifact import Artifact, Preprocess
from repzoo.engines import Array, Engine
from repzoo.errors import InputError
from repzoo.measure import client_threads, latency, stats
from repzoo.measure.results import EarlyStopping, Scenario


class Hands:
    """A clock of nanoseconds that stands still until a session takes its time."""

    def __init__(self) -> None:
        self.now = 1_000_000_000
        self.calls: list[str] = []

    def __call__(self) -> int:
        return self.now


class Timed:
    """An engine and session that takes the given milliseconds, one after the other, of `hands`."""

    name = "timed"

    def __init__(
        self, hands: Hands, latencies_ms: Iterable[float], label: str = ""
    ) -> None:
        self.hands, self.label, self._latencies = hands, label, iter(latencies_ms)
        self.shapes: set[tuple[int, ...]] = set()

    def version(self) -> str:
        return "1"

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> Timed:
        return self

    def run(self, inputs: Array) -> Array:
        self.shapes.add(inputs.shape)
        self.hands.now += round(next(self._latencies) * 1e6)
        self.hands.calls.append(self.label)
        return np.zeros((len(inputs), 2), np.float32)

    def run_all(self, inputs: Array) -> list[Array]:
        return [self.run(inputs)]


def artifact(shape: str = "N, 3, 4, 4") -> Artifact:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] data) => (float[N, 48] output) {{
        output = Flatten (data) }}"""
    return Artifact(onnx.parser.parse_model(text), "flat", Preprocess(size=4))


def case(session: Engine, streams: int = 1, batch: int = 1) -> latency.Case:
    return latency.case(artifact(), session, streams, batch=batch)


WARM_UP = 1 + client_threads.WARM_UP_CALLS  # the first call is apart


def with_warm_up(
    latencies: Iterable[float], warm_up_ms: float = 9.0
) -> Iterator[float]:
    """A slow warm-up, which must not be counted, and then `latencies`."""
    yield from [warm_up_ms] * WARM_UP
    yield from latencies


def test_percentiles_and_rate_of_known_latencies() -> None:
    hands, known = Hands(), [1.0, 2, 3, 4, 10]
    timed = case(Timed(hands, with_warm_up(cycle(known))))
    (record,) = latency.run(
        [timed], seconds=0.095 * 6, rounds=6, clock=hands
    )  # a round: 5 times the 5 calls
    assert record.values.samples == 6 * 25
    assert (
        record.values.p50_ms
        == record.values.p50_low_ms
        == record.values.p50_high_ms
        == 3.0
    )
    assert record.values.p90_ms == 10.0
    assert record.values.fps == pytest.approx(250)
    assert record.samples["latency_us"] == [[1000, 2000, 3000, 4000, 10000] * 5] * 6
    assert record.engine == {"name": "timed", "version": "1", "threads": 1}


def test_a_batch_counts_as_that_many_images() -> None:
    hands = Hands()
    session = Timed(hands, cycle([8.0]))
    (record,) = latency.run(
        [case(session, batch=4)], seconds=0.8, rounds=4, clock=hands
    )
    assert session.shapes == {(4, 3, 4, 4)}
    assert record.values.setting.batch == 4
    assert record.values.p50_ms == 8.0
    assert record.values.fps == pytest.approx(500)


def test_a_fast_session_keeps_at_most_max_calls_a_round() -> None:
    hands = Hands()
    (record,) = latency.run(
        [case(Timed(hands, cycle([0.001])))], seconds=3, rounds=3, clock=hands
    )
    assert [len(kept) for kept in record.samples["latency_us"]] == [
        client_threads.MAX_CALLS
    ] * 3


def test_a_call_too_short_to_see_still_has_a_ratio() -> None:
    hands = Hands()
    first, second = (case(Timed(hands, cycle([0.0001]))) for _ in range(2))
    latency.run([first, second], seconds=1e-9, rounds=6, clock=hands)
    assert latency.ratio(first, second).values.ratio == 1.0


def test_rounds_interleave_and_turn_the_order() -> None:
    hands = Hands()
    cases = [
        case(Timed(hands, with_warm_up(cycle([5.0]), 0), label)) for label in "abc"
    ]
    latency.run(cases, seconds=1e-9, rounds=4, clock=hands)
    assert "".join(hands.calls[3 * WARM_UP :]) == "abc" + "cba" + "abc" + "cba"


def test_a_ratio_is_taken_within_rounds() -> None:
    """Both sessions slow down and speed up together, by far more than they differ: the ratio
    does not move.
    """
    hands, drift = Hands(), [1.0, 9, 2, 7, 3, 8, 1, 6]
    slow = case(Timed(hands, with_warm_up([3 * factor for factor in drift])))
    fast = case(Timed(hands, with_warm_up([2 * factor for factor in drift])))
    latency.run([slow, fast], seconds=1e-9, rounds=len(drift), clock=hands)
    values = latency.ratio(slow, fast).values
    assert (values.ratio, values.ratio_low, values.ratio_high) == pytest.approx(
        (1.5, 1.5, 1.5)
    )
    assert values.rounds == len(drift)
    assert latency.ratio(fast, slow).values.ratio == pytest.approx(1 / 1.5)


def test_a_case_that_has_lost_a_race_leaves_its_further_rounds() -> None:
    """Rounds are as long as three calls of the first; once two ratios are above 1 there is
    nothing left to find out of a case.
    """
    hands = Hands()
    first, slow = (
        case(Timed(hands, cycle([8.0]), "f")),
        case(Timed(hands, cycle([12.0]), "s")),
    )
    odd = case(
        Timed(hands, with_warm_up([16.0, 16, *[4.0] * 60], 4.0), "o")
    )  # slower in its first round only
    latency.race(
        [first, slow, odd],
        9,
        3,
        1,
        lambda ratios: sum(ratio >= 1 for ratio in ratios) > 1,
        hands,
    )
    assert [len(timed.rounds_us) for timed in (first, slow, odd)] == [9, 2, 9]
    assert [len(round_us) for round_us in first.rounds_us] == [3] * 9
    assert latency.race_ratio(slow, first) == stats.Interval(1.5, 1.5, 1.5)
    ratio = latency.race_ratio(odd, first)
    assert (ratio.value, ratio.high) == (0.5, 0.5)
    assert first.rounds_us[0].tolist() == [8000.0] * 3


def test_a_race_ends_when_all_others_have_lost() -> None:
    hands = Hands()
    cases = [case(Timed(hands, cycle([time]), "x")) for time in (1.0, 2.0, 3.0)]
    latency.race(cases, 9, 3, 1, lambda ratios: ratios[-1] > 1, hands)
    assert [len(timed.rounds_us) for timed in cases] == [1, 1, 1]


def shuffle(known: npt.NDArray[np.float64], times: int) -> list[float]:
    """`known` again and again, each time in another order."""
    random = np.random.default_rng(0)
    return [float(value) for _ in range(times) for value in random.permutation(known)]


def rank(ordered: npt.NDArray[np.float64], q: float) -> float:
    """The smallest that the share `q` does not exceed."""
    return float(np.sort(ordered)[math.ceil(q * len(ordered)) - 1])


@pytest.mark.parametrize(
    "known",
    [
        np.arange(1, 1001) / 100,
        np.where(np.arange(1000) < 700, 2.0, 5.0)
        + np.arange(1000) / 1e3,  # a clock of two speeds
        np.exp(np.random.default_rng(1).normal(0, 0.5, 1000)),
        np.where(
            np.arange(1000) % 50 == 7, 40.0, 1.0
        ),  # one call in 50 takes 40 times as long: p90 does not see it, p99 does
    ],
    ids=["even", "two speeds", "lognormal", "outliers"],
)
def test_percentiles_of_a_known_distribution(known: npt.NDArray[np.float64]) -> None:
    hands = Hands()
    timed = case(Timed(hands, with_warm_up(shuffle(known, 30))))
    (record,) = latency.run(
        [timed], seconds=24 * float(known.sum()) / 1000 - 0.001, rounds=24, clock=hands
    )
    for name, q in (("p50", 0.50), ("p90", 0.90), ("p99", 0.99)):
        assert getattr(record.values, f"{name}_ms") == pytest.approx(
            rank(known, q), rel=0.01
        ), name  # the last round ends within a shuffle
        assert (
            getattr(record.values, f"{name}_low_ms")
            <= rank(known, q)
            <= getattr(record.values, f"{name}_high_ms")
        )
    assert record.values.fps == pytest.approx(1000 / known.mean(), rel=0.01)
    assert record.values.steady is True


def test_statistics_follow_from_the_stored_samples() -> None:
    hands = Hands()
    (record,) = latency.run(
        [case(Timed(hands, with_warm_up(shuffle(np.linspace(0.02, 3, 300), 40))))],
        2.0,
        12,
        clock=hands,
    )
    kept = np.concatenate(record.samples["latency_us"])
    assert record.values.samples == len(kept)
    assert [
        getattr(record.values, f"{name}_ms") * 1000 for name in ("p50", "p90", "p99")
    ] == [rank(kept, q) for q in (0.5, 0.9, 0.99)]
    assert all(value == round(value, 1) for value in kept)


def test_rounds_before_the_steady_state_are_dropped() -> None:
    """Twenty per cent slower for seven rounds of one call, then steady: none of the seven is
    kept.
    """
    hands = Hands()
    timed = case(
        Timed(
            hands,
            with_warm_up(
                [12.0, 11.8, 11.9, 12, 11.7, 12, 11.9] + [10, 10.01, 9.99, 10.02] * 20
            ),
        )
    )
    (record,) = latency.run([timed], seconds=1e-9, rounds=24, clock=hands)
    assert record.values.steady is True
    assert record.values.rounds == 24
    assert 7 <= record.values.warm_up_rounds <= 10
    assert record.values.p50_ms == pytest.approx(10, abs=0.02)


def test_the_search_for_a_steady_state_waits_for_every_case() -> None:
    hands = Hands()
    cold = case(
        Timed(hands, with_warm_up([20.0 - index for index in range(10)] + [10.0] * 60))
    )
    still = case(Timed(hands, with_warm_up(cycle([10.0]))))
    records = latency.run([still, cold], seconds=1e-9, rounds=12, clock=hands)
    assert {record.values.warm_up_rounds for record in records} == {
        len(cold.rounds_us) and records[0].values.warm_up_rounds
    }
    assert records[0].values.warm_up_rounds >= 7
    assert latency.ratio(cold, still).values.ratio == 1.0


def test_a_measurement_that_never_settles_ends_with_a_remark() -> None:
    hands = Hands()
    timed = case(Timed(hands, with_warm_up([1.05**index for index in range(200)])))
    (record,) = latency.run([timed], seconds=1e-9, rounds=12, clock=hands)
    assert record.values.steady is False
    assert (record.values.rounds, record.values.warm_up_rounds) == (12, 13)


def test_noise_without_a_trend_is_steady() -> None:
    hands, noise = Hands(), np.random.default_rng(3).normal(10, 2, 200)
    (record,) = latency.run(
        [case(Timed(hands, with_warm_up(noise)))], seconds=1e-9, rounds=24, clock=hands
    )
    assert record.values.steady is True
    assert record.values.spread > 0.1


def test_more_seconds_are_more_rounds_not_longer_ones() -> None:
    hands = Hands()
    (record,) = latency.run(
        [case(Timed(hands, cycle([10.0])))], seconds=12, clock=hands
    )
    assert record.values.rounds == 48
    assert sum(map(sum, record.samples["latency_us"])) >= 12e6


def test_multi_stream_times_queries_of_eight_images() -> None:
    hands = Hands()
    session = Timed(hands, cycle([1.0, 2, 3, 6]))
    timed = latency.case(artifact(), session, batch=2, scenario="multi-stream")
    (record,) = latency.run([timed], seconds=0.6, rounds=6, clock=hands)
    assert record.values.p50_ms == record.values.p99_ms == 12.0
    assert record.values.fps == pytest.approx(8 / 0.012)
    few_queries = EarlyStopping(percentile=0.99, ms=None)  # 54
    assert record.values.early_stopping == few_queries
    with pytest.raises(InputError, match="calls of 3"):
        latency.case(artifact(), session, batch=3, scenario="multi-stream")


def test_single_stream_reports_what_loadgen_does() -> None:
    """Of 100 queries LoadGen discards the two slowest and reports the third (its p90 estimate
    at 99 % confidence).
    """
    hands, known = Hands(), shuffle(np.arange(1.0, 101), 1)
    timed = latency.case(
        artifact(), Timed(hands, with_warm_up(known)), scenario="single-stream"
    )
    (record,) = latency.run([timed], seconds=1e-9, rounds=100, clock=hands)
    assert record.values.early_stopping == EarlyStopping(percentile=0.90, ms=98.0)
    assert record.values.p90_ms == 90.0
    with pytest.raises(InputError, match="one client"):
        latency.case(artifact(), Timed(hands, []), streams=2, scenario="single-stream")


def test_offline_counts_images_until_the_last_is_done() -> None:
    hands = Hands()
    timed = latency.case(
        artifact(), Timed(hands, cycle([4.0])), batch=2, scenario="offline"
    )
    (record,) = latency.run([timed], seconds=2.4, rounds=6, clock=hands)
    assert [len(kept) for kept in record.samples["latency_us"]] == [100] * 6
    assert record.values.fps == pytest.approx(500)
    assert record.values.early_stopping is None


class Machine:
    """A clock that drifts, jumps between two speeds for seconds on end, and now and then is
    held up; it moves as work is done.
    """

    def __init__(self, seed: int) -> None:
        self.random, self.now, self.slow = np.random.default_rng(seed), 0, False

    def __call__(self) -> int:
        return self.now

    def work(self, milliseconds: float) -> None:
        """Let the time pass that work of `milliseconds` takes now."""
        self.slow ^= self.random.random() < 0.01
        held_up = self.random.exponential(20) if self.random.random() < 0.01 else 0.0
        factor = (
            (1 + self.now / 2e10)
            * (1.4 if self.slow else 1.0)
            * self.random.lognormal(0, 0.05)
        )
        self.now += round((milliseconds * factor + held_up) * 1e6)


class Worker(Timed):
    """Takes `milliseconds` of a machine's work."""

    def __init__(self, machine: Machine, milliseconds: float) -> None:
        super().__init__(Hands(), [])
        self.machine, self.milliseconds = machine, milliseconds

    def run(self, inputs: Array) -> Array:
        self.machine.work(self.milliseconds)
        return inputs


@pytest.mark.parametrize("truth", [1.0, 1.03])
def test_ratio_intervals_cover_the_truth_on_a_bad_machine(truth: float) -> None:
    """Under drift (5 % a second), two clock speeds and outliers together; and never the wrong
    order where one is named.
    """
    covered, wrong, trials = 0, 0, 120
    for seed in range(trials):
        machine = Machine(seed)
        first, second = (
            case(Worker(machine, milliseconds)) for milliseconds in (truth, 1.0)
        )
        latency.run([first, second], seconds=0.24, rounds=24, clock=machine)
        values = latency.ratio(first, second).values
        covered += values.ratio_low <= truth <= values.ratio_high
        wrong += values.faster == "first"
    assert covered >= 0.93 * trials
    assert wrong <= 0.05 * trials


class Sleeping(Timed):
    """Really sleeps, in turn, the given milliseconds; notes how long each call took by its own
    clock.
    """

    def __init__(self, latencies_ms: Iterable[float]) -> None:
        super().__init__(Hands(), latencies_ms)
        self.slept_us: list[float] = []
        self._lock = threading.Lock()

    def run(self, inputs: Array) -> Array:
        with self._lock:
            wanted = next(self._latencies) / 1000
        began = time.perf_counter_ns()
        time.sleep(wanted)
        self.slept_us.append((time.perf_counter_ns() - began) / 1000)
        return np.zeros((len(inputs), 2), np.float32)


@pytest.mark.parametrize(
    ("scenario", "streams"),
    [("closed-loop", 1), ("closed-loop", 3), ("offline", 3), ("multi-stream", 4)],
)
def test_a_sleeping_engine_is_timed_within_hard_bounds(
    scenario: Scenario, streams: int
) -> None:
    """A sleep is never shorter than asked, so what is reported has hard bounds below; the
    engine's own clock bounds it above.
    """
    session = Sleeping(cycle([2.0, 2, 2, 6]))
    timed = latency.case(artifact(), session, streams, scenario=scenario)
    began = time.perf_counter()
    (record,) = latency.run([timed], seconds=0.24, rounds=12)
    elapsed = time.perf_counter() - began
    assert record.values.p50_ms >= 2
    assert record.values.p90_ms >= 6
    calls = (
        record.values.samples * timed.calls_a_query / 12
    )  # of a round; k of them sleep 3 k - 3 ms or more: the 6 may be left over
    assert record.values.fps <= streams * 1000 / (3 - 3 / min(calls, 6 * streams))
    assert record.values.samples * timed.calls_a_query / elapsed <= record.values.fps
    if streams == 1:
        kept, own = (
            np.sort(np.concatenate(record.samples["latency_us"])),
            np.sort(session.slept_us),
        )
        assert np.all(
            kept + 0.5 >= own[: len(kept)]
        )  # rounding; and the slowest that it slept are not undercut by the slowest kept
        assert kept[-1] + 0.5 >= own[-len(kept)]
