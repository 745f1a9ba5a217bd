"""Latency and throughput in interleaved rounds.

Each round runs every case for the same short time. Ratios are taken within a round, and their
median is reported with an interval. A noisy machine then widens intervals and does not reverse
an order.

*Steady state.* First rounds are dropped until the kept ones show no trend in any case
(`stats.trend`: their first eighth, quarter or half differs from the rest by more than 2 %, and
a rank test confirms it). If any were dropped, an eighth more is. After as many dropped rounds
as are kept the search ends, and the Record says that no steady state was found.

*Sessions.* Two sessions of one file differ: where their memory lies makes up to 4 % on small
models, in all rounds alike (benchmarks/harness.py). `openings` is how often every session is
opened anew in a run. The interval of a ratio is then taken over the sessions, because rounds of
one session are not independent.

*Scenarios.* A case is a session, a batch, a number of client threads and a scenario:

closed-loop    each client sends its next call as soon as its last is answered
single-stream  one client, one image per query; MLPerf reports the 90th percentile
multi-stream   one client, QUERY images per query, in calls of `batch` images over `streams`
               threads; MLPerf reports the 99th percentile of the query
offline        all images of a round are there at its start, shared by the streams; the figure is
               images per second

Source: MLPerf Inference Rules, section "Scenarios". LoadGen runs them for 600 s, and offline
with at least 24,576 samples; here `seconds` says how long.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from repzoo.engines import arithmetic
from repzoo.errors import InputError
from repzoo.measure import stats
from repzoo.measure import system_noise as noise
from repzoo.measure.client_threads import (
    ClientThreads,
    Clock,
    OnError,
    for_each,
    reopen_all,
)
from repzoo.measure.host import host
from repzoo.measure.latency_case import (
    DRIFT,
    LEAST_ROUNDS,
    MLPERF,
    PERCENTILES,
    QUERY,
    Case,
    Samples,
    case,
    inputs_for,
    is_steady,
    random_input,
)
from repzoo.measure.record import Record, identity_of
from repzoo.measure.results import Latency, LatencyRatio
from repzoo.progress import Progress, silent

__all__ = [
    "DRIFT",
    "LEAST_ROUNDS",
    "MLPERF",
    "OPENINGS",
    "PERCENTILES",
    "QUERY",
    "ROUNDS",
    "Case",
    "Samples",
    "case",
    "inputs_for",
    "is_steady",
    "openings_for",
    "race",
    "race_ratio",
    "random_input",
    "ratio",
    "run",
    "time_for_ratios",
]

# The fewest rounds, and the longest round: more seconds make more rounds.
ROUNDS = 24
ROUND_SECONDS = 0.25
# Sessions per run: the fewest whose order statistics bound a median at 95 %.
OPENINGS = 6
# Shortest and longest round of a race, in nanoseconds.
RACE_ROUND_NS = (2e7, 7e7)

Side = Literal["first", "second"]


def openings_for(cases: Sequence[Case], seconds: float) -> int:
    """OPENINGS, or 1 if opening that often would take longer than timing for `seconds` per case."""
    opening_seconds = OPENINGS * sum(item.open_seconds for item in cases)
    return OPENINGS if opening_seconds <= seconds * len(cases) else 1


def run(
    cases: Sequence[Case],
    seconds: float = 2.0,
    rounds: int | None = None,
    progress: Progress = silent,
    clock: Clock = time.perf_counter_ns,
    openings: int = 1,
    on_error: OnError | None = None,
) -> list[Record[Latency]]:
    """Time every case for at least `seconds`, in interleaved rounds (see the module).

    A round ends after seconds / rounds, but not before one call of each client.

    rounds    how many to keep; None: ROUNDS, or so many that none is longer than ROUND_SECONDS
    openings  sessions per case; 0: see `openings_for`
    on_error  called with a case whose session fails. The others continue; the case has no Record

    Raises:
        InputError: a setting out of range, or, without `on_error`, a session that fails.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds must be positive; got {seconds}")
    rounds = rounds or max(ROUNDS, math.ceil(seconds / ROUND_SECONDS))
    length = round(seconds / rounds * 1e9)
    before = noise.read_counters()
    with contextlib.ExitStack() as stack:
        clients = _start_clients(cases, clock, stack)
        progress("bench", 0, rounds)
        live = for_each(clients, ClientThreads.warm_up, on_error)
        # After the warm-up, whose first calls count as opening: engines compile in them.
        if openings == 0:
            openings = openings_for([client.case for client in live], seconds)
        per_session = math.ceil(rounds / openings)
        done = 0
        while live and _needs_round(live, done, rounds):
            live = _one_round(live, done, per_session, length, on_error)
            done += 1
            progress("bench", done, max(done, rounds))
        # One or two unusual rounds at the beginning show no trend.
        extra = rounds // 8 if done > rounds else 0
        for _ in range(extra):
            live = _one_round(live, done, per_session, length, on_error)
            done += 1
    disturbed = noise.between(before, noise.read_counters())
    for client in live:
        client.finish(done - rounds, disturbed)
    return [client.case.record() for client in live]


def race(
    cases: Sequence[Case],
    rounds: int,
    calls: int,
    openings: int = 1,
    lost: Callable[[Sequence[float]], bool] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> None:
    """Time all cases for `rounds` rounds of about `calls` calls of the first case.

    lost  called after each round with the ratios of a case to the first so far. If it returns
          True, the case is left out of the following rounds. None: all stay
    """
    with contextlib.ExitStack() as stack:
        clients = _start_clients(cases, clock, stack)
        live = for_each(clients, ClientThreads.warm_up, None)
        length = round(np.clip(calls / live[0].rate, *RACE_ROUND_NS))
        per_session = math.ceil(rounds / openings)
        for done in range(rounds):
            live = _one_round(live, done, per_session, length, None)
            first, *others = live
            live = [first]
            for other in others:
                if lost is None or not lost(_ratios(other.case, cases[0])):
                    live.append(other)
            if len(live) == 1:
                break


def time_for_ratios(
    cases: Sequence[Case], seconds: float, progress: Progress = silent
) -> None:
    """Time every case for `seconds`, for ratios alone.

    As `run` with openings=0, but the first rounds stay: a trend slows the cases of a round alike.
    """
    rounds = max(ROUNDS, math.ceil(seconds / ROUND_SECONDS))
    length = round(seconds / rounds * 1e9)
    with contextlib.ExitStack() as stack:
        clients = _start_clients(cases, time.perf_counter_ns, stack)
        live = for_each(clients, ClientThreads.warm_up, None)
        per_session = math.ceil(rounds / openings_for(cases, seconds))
        for done in range(rounds):
            progress("bench", done, rounds)
            live = _one_round(live, done, per_session, length, None)
        progress("bench", rounds, rounds)


def race_ratio(second: Case, first: Case) -> stats.Interval:
    """Latency of `second` over that of `first` after a race."""
    return _over_sessions(_ratios(second, first), second.rounds_of)


def ratio(first: Case, second: Case) -> Record[LatencyRatio]:
    """Median latency and throughput of `first` over those of `second`, round by round.

    A latency ratio below 1 means that first is faster. `faster` is None if the interval contains
    1, or if two engines were timed on a busy machine: an engine that hands its work to threads of
    its own is held up more than one that does not (measured: 29 times), in every round alike,
    which no interval shows.
    """
    others = first.disturbed.get("used_by_others") or 0
    # Two files on one engine are held up alike, so these stay comparable.
    busy = others > noise.OTHERS and first.engine.name != second.engine.name
    time_quotients = _quotients(first.medians_us(), second.medians_us())
    times = _over_sessions(time_quotients, first.rounds_of)
    rate_quotients = _quotients(first.rounds_fps, second.rounds_fps)
    rates = _over_sessions(rate_quotients, first.rounds_of)
    if first.scenario == "offline":
        faster = _faster(rates, "second", "first")
    else:
        faster = _faster(times, "first", "second")
    values = LatencyRatio(
        setting=first.setting,
        ratio=times.value,
        ratio_low=times.low,
        ratio_high=times.high,
        fps_ratio=rates.value,
        fps_ratio_low=rates.low,
        fps_ratio_high=rates.high,
        faster=None if busy else faster,
        busy=busy,
        rounds=len(first.rounds_us),
        openings=len(set(first.rounds_of)),
    )
    engine = {
        **arithmetic.facts(first.engine),
        "second": arithmetic.facts(second.engine),
    }
    artifact = {
        "first": identity_of(first.artifact),
        "second": identity_of(second.artifact),
    }
    return Record(artifact, values, engine, host={**host(), **first.disturbed})


def _start_clients(
    cases: Sequence[Case], clock: Clock, stack: contextlib.ExitStack
) -> list[ClientThreads]:
    """The client threads of each case; they end with `stack`."""
    return [stack.enter_context(ClientThreads(item, clock)) for item in cases]


def _needs_round(live: Sequence[ClientThreads], done: int, rounds: int) -> bool:
    """Whether too few rounds are done, or they are not steady and the search may go on."""
    if done < rounds:
        return True
    if done >= 2 * rounds:
        return False
    return not all(is_steady(client.last_medians(rounds)) for client in live)


def _one_round(
    live: list[ClientThreads],
    done: int,
    per_session: int,
    length: int,
    on_error: OnError | None,
) -> list[ClientThreads]:
    """One round of every case. Returns those that did not fail, in their own order.

    done         rounds before this one; every second round runs in reverse order
    per_session  rounds after which sessions are opened anew
    length       of the round in nanoseconds
    """
    if done and done % per_session == 0:
        live = reopen_all(live, on_error)
    # In turns, so that no case is always timed right after the same other one.
    ordered = live if done % 2 == 0 else live[::-1]
    survivors = for_each(ordered, lambda client: client.time_round(length), on_error)
    return [client for client in live if client in survivors]


def _ratios(second: Case, first: Case) -> list[float]:
    """Latency of `second` over that of `first` in the rounds that both have."""
    above = second.medians_us()
    below = first.medians_us()
    common = min(len(above), len(below))
    return _quotients(above[:common], below[:common])


def _quotients(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [above / below for above, below in zip(first, second, strict=True)]


def _over_sessions(ratios: Sequence[float], rounds_of: Sequence[int]) -> stats.Interval:
    """Median and interval of the sessions' medians; of the rounds if sessions are too few."""
    by_session: dict[int, list[float]] = {}
    for value, session in zip(ratios, rounds_of, strict=True):
        by_session.setdefault(session, []).append(value)
    if len(by_session) < OPENINGS:
        return stats.median_interval(ratios)
    medians = [float(np.median(values)) for values in by_session.values()]
    return stats.median_interval(medians)


def _faster(interval: stats.Interval, below: Side, above: Side) -> Side | None:
    """`below` if the interval lies below 1, `above` if above, None if it contains 1."""
    if interval.high < 1:
        return below
    return above if interval.low > 1 else None
