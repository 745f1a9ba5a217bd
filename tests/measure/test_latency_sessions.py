"""Latency with several clients, failing engines and sessions that are opened again."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from itertools import cycle

import numpy as np
import onnx
import pytest
from tests.conftest import PROCESS_SECONDS
from tests.measure.test_latency import WARM_UP, Hands, Timed, artifact, case

from repzoo.artifact import Artifact, Preprocess
from repzoo.engines import Array, engine
from repzoo.errors import InputError
from repzoo.measure import latency, system_noise


class Meeting(Timed):
    """A session whose calls return only when `clients` are running at once, but for the first.

    The first is that of the thread that opens it.
    """

    def __init__(self, clients: int) -> None:
        super().__init__(Hands(), [0.0])
        self._meeting = threading.Barrier(clients, timeout=PROCESS_SECONDS)
        self._opened = False
        self.met = False
        self.threads: set[int] = set()

    def run(self, inputs: Array) -> Array:
        if not self._opened:
            self._opened = True
            return np.zeros((len(inputs), 2), np.float32)
        self._meeting.wait()
        self.met = True
        self.threads.add(threading.get_ident())
        return np.zeros((len(inputs), 2), np.float32)


def test_clients_call_at_the_same_time() -> None:
    session = Meeting(3)
    (record,) = latency.run([case(session, streams=3)], seconds=1e-9, rounds=2)
    assert session.met
    assert len(session.threads) == 3  # the same ones in every round
    assert [len(kept) for kept in record.samples["latency_us"]] == [
        3,
        3,
    ]  # the calls of all clients, each at least one
    assert record.values.setting.streams == 3


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


def test_a_case_that_fails_leaves_the_others_to_go_on() -> None:
    hands, failed = Hands(), list[tuple[latency.Case, str]]()
    session = Failing(WARM_UP + 3)
    session.hands = hands
    cases = [
        case(Timed(hands, cycle([1.0]))),
        case(session),
        case(Timed(hands, cycle([2.0]))),
    ]
    records = latency.run(
        cases,
        1e-9,
        8,
        clock=hands,
        on_error=lambda failing, error: failed.append((failing, str(error))),
    )
    assert [record.values.p50_ms for record in records] == [1.0, 2.0]
    assert failed == [(cases[1], "the device went away")]
    assert latency.ratio(cases[2], cases[0]).values.rounds == 8


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_an_error_in_any_client_is_an_error(streams: int) -> None:
    session = Failing(WARM_UP + 3)
    with pytest.raises(InputError, match="the device went away"):
        latency.run([case(session, streams)], seconds=5, rounds=4, clock=session.hands)


def test_a_fixed_batch_is_kept_to() -> None:
    fixed = artifact("2, 3, 4, 4")
    assert latency.case(fixed, engine("onnxruntime"), batch=2).inputs.shape == (
        2,
        3,
        4,
        4,
    )
    with pytest.raises(InputError, match="fixed batch of 2; asked for 1"):
        latency.case(fixed, engine("onnxruntime"), batch=1)


def test_open_dimensions_come_from_the_preprocessing() -> None:
    assert latency.case(artifact("N, 3, H, W"), Timed(Hands(), [0.0])).inputs.shape == (
        1,
        3,
        4,
        4,
    )


def test_initializers_among_the_inputs_are_not_the_input() -> None:
    """Exporters of old list the weights as inputs too, sometimes first."""
    text = """<ir_version: 3, opset_import: ["" : 8]> g (float[3] w, float[N, 3, 4, 4] data) => (float[N, 3] output)
        <float[3] w = {1, 2, 3}> { pooled = GlobalAveragePool (data) flat = Flatten (pooled) output = Mul (flat, w) }"""
    old = Artifact(onnx.parser.parse_model(text), "old", Preprocess(size=4))
    assert latency.case(old, engine("onnxruntime")).inputs.shape == (1, 3, 4, 4)


@pytest.mark.parametrize("setting", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_settings_below_one_are_refused(setting: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        latency.case(artifact(), Timed(Hands(), [0.0]), *setting)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_seconds_must_be_positive(seconds: float) -> None:
    with pytest.raises(InputError, match="positive"):
        latency.run([], seconds)


def test_the_record_says_what_the_machine_did() -> None:
    (record,) = latency.run(
        [case(Timed(Hands(), cycle([1.0])))], 1e-9, 6, clock=Hands()
    )
    assert {
        "cpu",
        "affinity",
        "load_before",
        "load_after",
        "used_by_others",
        "stolen",
    } <= set(record.host)
    assert record.engine["threads"] == 1


def test_an_image_of_another_size_than_the_metadata_says_is_refused() -> None:
    with pytest.raises(InputError, match="takes images of 8x8"):
        latency.case(artifact("N, 3, 8, 8"), Timed(Hands(), [0.0]))


def test_a_real_engine_gives_samples_for_every_round() -> None:
    timed = latency.case(artifact(), engine("onnxruntime"), streams=2, batch=3)
    (record,) = latency.run([timed], seconds=0.06, rounds=6)
    assert len(record.samples["latency_us"]) == 6
    assert record.values.samples == sum(map(len, record.samples["latency_us"]))
    assert record.values.p50_low_ms <= record.values.p50_ms <= record.values.p50_high_ms
    assert record.values.p90_ms <= record.values.p99_ms


@pytest.mark.parametrize(
    ("others", "names", "faster"),
    [
        (0.5, "ab", None),
        (0.05, "ab", "second"),
        (0.5, "aa", "second"),
        (None, "ab", "second"),
    ],
)
def test_two_engines_on_a_busy_machine_have_no_winner(
    others: float | None,
    names: str,
    faster: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Engines are held up unequally by others' work; two files on one engine are held up alike."""
    monkeypatch.setattr(system_noise, "OTHERS", 0.1)
    hands = Hands()
    slow, fast = (
        case(Timed(hands, cycle([milliseconds]))) for milliseconds in (2.0, 1.0)
    )
    latency.run([slow, fast], seconds=1e-9, rounds=12, clock=hands)
    for timed, name in zip((slow, fast), names, strict=True):
        engine = Timed(hands, [])
        engine.name = name
        timed.engine, timed.disturbed = engine, {"used_by_others": others}
    ratio = latency.ratio(slow, fast).values
    assert (ratio.faster, ratio.busy) == (faster, faster is None)
    assert ratio.ratio == 2.0


class Lying:
    """An engine whose sessions are each as fast as their memory happens to lie: the opening
    decides, for all rounds alike.
    """

    name = "lying"

    def __init__(self, hands: Hands, latencies_ms: Iterable[float]) -> None:
        self.hands, self._each = hands, iter(latencies_ms)
        self.streams: list[int] = []

    def version(self) -> str:
        return "1"

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> Timed:
        self.streams.append(streams)
        return Timed(self.hands, cycle([next(self._each)]))


def test_an_interval_counts_sessions_not_rounds_of_the_same_session() -> None:
    """Twice the same file: one opening says 10 % slower in all its rounds, which must not look
    proven.
    """
    hands, placed = Hands(), [1.0, 1.03, 1.1, 1.05, 1.02, 1.0]
    alone, other = Lying(hands, placed), Lying(hands, cycle([1.0]))
    first, second = (latency.case(artifact(), engine) for engine in (alone, other))
    latency.run([first, second], seconds=1e-9, rounds=24, clock=hands, openings=6)
    ratio = latency.ratio(first, second).values
    assert (ratio.openings, ratio.rounds) == (6, 24)
    assert (ratio.ratio_low, ratio.ratio_high) == (1.0, 1.1)  # the whole range of six
    assert ratio.faster is None
    assert first.rounds_of == [opening for opening in range(6) for _ in range(4)]
    once = [latency.case(artifact(), Lying(hands, cycle([ms]))) for ms in (1.1, 1.0)]
    latency.run(once, seconds=1e-9, rounds=24, clock=hands)
    assert latency.ratio(*once).values.ratio_low == pytest.approx(
        1.1
    )  # what the openings are for


def test_a_session_is_opened_for_its_clients_again_and_again() -> None:
    hands = Hands()
    runner = Lying(hands, cycle([1.0]))
    timed = latency.case(artifact(), runner, streams=1)
    latency.run([timed], seconds=1e-9, rounds=12, clock=hands, openings=6)
    assert runner.streams == [1] * 6
    latency.case(artifact(), runner, streams=3)
    assert runner.streams[-1] == 3


def test_sessions_that_take_long_to_open_are_opened_once() -> None:
    quick, slow = (case(Timed(Hands(), [0.0])) for _ in range(2))
    quick.open_seconds, slow.open_seconds = 0.01, 5.0
    assert latency.openings_for([quick, quick], 2.0) == latency.OPENINGS
    assert latency.openings_for([quick, slow], 2.0) == 1
