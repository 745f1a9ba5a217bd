"""Latency by a clock that only the sessions move, so that every figure is exact; threads by a barrier, so that none can be late."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from itertools import cycle

import numpy as np
import onnx
import pytest

from repzoo.artifact import Artifact, Preprocess
from repzoo.engines import Array, Engine, engine
from repzoo.errors import InputError
from repzoo.measure import latency, stats


class Hands:
    """A clock that stands still until a session takes its time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now


class Timed:
    """An engine and session that takes the given milliseconds, one after the other, of `hands`."""

    name = "timed"

    def __init__(self, hands: Hands, latencies_ms: Iterable[float], label: str = "") -> None:
        self.hands, self.label, self._latencies = hands, label, iter(latencies_ms)
        self.shapes: set[tuple[int, ...]] = set()

    def version(self) -> str:
        return "1"

    def open(self, model: onnx.ModelProto, threads: int = 1, exact: bool = False) -> Timed:  # noqa: ARG002
        return self

    def run(self, inputs: Array) -> Array:
        self.shapes.add(inputs.shape)
        self.hands.now += next(self._latencies) / 1000
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


def warm(latencies: Iterable[float], warm_up_ms: float = 999.0) -> Iterator[float]:
    """A slow warm-up, which must not be counted, and then `latencies`."""
    yield from [warm_up_ms] * latency.WARM_UP_CALLS
    yield from latencies


def test_percentiles_and_rate_of_known_latencies() -> None:
    hands, known = Hands(), [1.0, 2, 3, 4, 10]
    one = case(Timed(hands, warm(cycle(known))))
    (record,) = latency.run([one], seconds=0.095 * 6, rounds=6, clock=hands)  # a round: 5 times the 5 calls
    assert record.values["samples"] == 6 * 25
    assert record.values["p50_ms"] == record.values["p50_low_ms"] == record.values["p50_high_ms"] == 3.0
    assert record.values["p90_ms"] == 10.0
    assert record.values["fps"] == pytest.approx(250)
    assert record.samples["latency_us"] == [[1000, 2000, 3000, 4000, 10000] * 5] * 6
    assert record.engine == {"name": "timed", "version": "1", "threads": 1}


def test_the_interval_is_that_of_the_rounds_medians() -> None:
    hands = Hands()
    one = case(Timed(hands, warm([1.0, 2, 3, 4, 5, 6, 7, 8])))
    (record,) = latency.run([one], seconds=1e-9, rounds=8, clock=hands)  # so short that a round is one call
    expected = stats.median_interval([1.0, 2, 3, 4, 5, 6, 7, 8])
    found = (record.values["p50_ms"], record.values["p50_low_ms"], record.values["p50_high_ms"])
    assert found == (expected.value, expected.low, expected.high)


def test_a_batch_counts_as_that_many_images() -> None:
    hands = Hands()
    session = Timed(hands, cycle([8.0]))
    (record,) = latency.run([case(session, batch=4)], seconds=0.8, rounds=4, clock=hands)
    assert session.shapes == {(4, 3, 4, 4)}
    assert record.values["batch"] == 4
    assert record.values["p50_ms"] == 8.0
    assert record.values["fps"] == pytest.approx(500)


def test_a_fast_session_keeps_at_most_max_calls_a_round() -> None:
    hands = Hands()
    (record,) = latency.run([case(Timed(hands, cycle([0.001])))], seconds=3, rounds=3, clock=hands)
    assert [len(kept) for kept in record.samples["latency_us"]] == [latency.MAX_CALLS] * 3


def test_a_call_too_short_to_see_still_has_a_ratio() -> None:
    hands = Hands()
    one, two = (case(Timed(hands, cycle([0.0001]))) for _ in range(2))
    latency.run([one, two], seconds=1e-9, rounds=6, clock=hands)
    assert latency.ratio(one, two).values["ratio"] == 1.0


def test_rounds_interleave_and_turn_the_order() -> None:
    hands = Hands()
    cases = [case(Timed(hands, warm(cycle([5.0]), 0), label)) for label in "abc"]
    latency.run(cases, seconds=1e-9, rounds=4, clock=hands)
    assert "".join(hands.calls[3 * latency.WARM_UP_CALLS :]) == "abc" + "cba" + "abc" + "cba"


def test_a_ratio_is_taken_within_rounds() -> None:
    """Both sessions slow down and speed up together, by far more than they differ: the ratio does not move."""
    hands, drift = Hands(), [1.0, 9, 2, 7, 3, 8, 1, 6]
    slow = case(Timed(hands, warm([3 * factor for factor in drift])))
    fast = case(Timed(hands, warm([2 * factor for factor in drift])))
    latency.run([slow, fast], seconds=1e-9, rounds=len(drift), clock=hands)
    values = latency.ratio(slow, fast).values
    assert (values["ratio"], values["ratio_low"], values["ratio_high"]) == pytest.approx((1.5, 1.5, 1.5))
    assert values["rounds"] == len(drift)
    assert latency.ratio(fast, slow).values["ratio"] == pytest.approx(1 / 1.5)


class Meeting(Timed):
    """A session whose call returns only when `clients` calls are running at once."""

    def __init__(self, clients: int) -> None:
        super().__init__(Hands(), [])
        self._meeting = threading.Barrier(clients, timeout=30)
        self.met = False

    def run(self, inputs: Array) -> Array:
        if threading.current_thread() is not threading.main_thread():  # the warm-up has one client
            self._meeting.wait()
            self.met = True
        return np.zeros((len(inputs), 2), np.float32)


def test_clients_call_at_the_same_time() -> None:
    session = Meeting(3)
    (record,) = latency.run([case(session, streams=3)], seconds=1e-9, rounds=2)
    assert session.met
    assert [len(kept) for kept in record.samples["latency_us"]] == [3, 3]  # the calls of all clients, each at least one
    assert record.values["streams"] == 3


class Failing(Timed):
    """Fails in its `number`-th call."""

    def __init__(self, number: int) -> None:
        super().__init__(Hands(), cycle([1.0]))
        self._left, self._lock = number, threading.Lock()

    def run(self, inputs: Array) -> Array:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                raise InputError("the device went away")
            return super().run(inputs)


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_an_error_in_any_client_is_an_error(streams: int) -> None:
    session = Failing(latency.WARM_UP_CALLS + 3)
    with pytest.raises(InputError, match="the device went away"):
        latency.run([case(session, streams)], seconds=5, rounds=4, clock=session.hands)


def test_a_fixed_batch_is_kept_to() -> None:
    fixed = artifact("2, 3, 4, 4")
    assert latency.case(fixed, engine("onnxruntime"), batch=2).inputs.shape == (2, 3, 4, 4)
    with pytest.raises(InputError, match="fixed batch of 2; asked for 1"):
        latency.case(fixed, engine("onnxruntime"), batch=1)


def test_open_dimensions_come_from_the_preprocessing() -> None:
    assert latency.case(artifact("N, 3, H, W"), Timed(Hands(), [])).inputs.shape == (1, 3, 4, 4)


def test_initializers_among_the_inputs_are_not_the_input() -> None:
    """Exporters of old list the weights as inputs too, sometimes first."""
    text = """<ir_version: 3, opset_import: ["" : 8]> g (float[3] w, float[N, 3, 4, 4] data) => (float[N, 3] output)
        <float[3] w = {1, 2, 3}> { pooled = GlobalAveragePool (data) flat = Flatten (pooled) output = Mul (flat, w) }"""
    old = Artifact(onnx.parser.parse_model(text), "old", Preprocess(size=4))
    assert latency.case(old, engine("onnxruntime")).inputs.shape == (1, 3, 4, 4)


@pytest.mark.parametrize("setting", [{"threads": 0}, {"streams": 0}, {"batch": 0}])
def test_settings_below_one_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        latency.case(artifact(), Timed(Hands(), []), **setting)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_seconds_must_be_positive(seconds: float) -> None:
    with pytest.raises(InputError, match="positive"):
        latency.run([], seconds)


def test_a_real_engine_gives_samples_for_every_round() -> None:
    one = latency.case(artifact(), engine("onnxruntime"), streams=2, batch=3)
    (record,) = latency.run([one], seconds=0.06, rounds=6)
    assert len(record.samples["latency_us"]) == 6
    assert record.values["samples"] == sum(map(len, record.samples["latency_us"]))
    assert record.values["p50_low_ms"] <= record.values["p50_ms"] <= record.values["p50_high_ms"]
    assert record.values["p90_ms"] <= record.values["p99_ms"]
