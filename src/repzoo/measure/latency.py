"""Latency and throughput, round by round over all cases, so that a noisy machine widens intervals and never swaps an order.

Each round runs every case for the same short time; ratios are taken within a round and their median is reported with its
interval. The first rounds are dropped until those that are kept show no trend in any case (`stats.trend`: their first eighth,
quarter or half lies more than 2 % off the rest, and a rank test sees it); when any had to be dropped, an eighth more is. After
as many dropped rounds as are kept the search ends, and the Record says that no steady state was found.

Two sessions of one file differ: where their memory happens to lie makes up to 4 % on small models, in all rounds alike (measured:
benchmarks/harness.py). So `openings` opens every session anew several times in a run, and a ratio's interval is then taken over
the openings, of which the rounds between are not independent.

A case is a session, a batch, a number of client threads and a scenario:

closed-loop    each client sends its next call as soon as its last is answered. One client: what a single caller sees;
               several: latency and rate under load
single-stream  closed loop of one client and one image a query; MLPerf's figure is the 90th percentile
multi-stream   closed loop of one client and QUERY images a query, which may be split into calls of `batch` images over `streams`
               threads; MLPerf's figure is the 99th percentile of the query
offline        all images of a round are there at its start and shared by the streams; the figure is images a second

Source of the three: MLPerf Inference Rules, section "Scenarios" (LoadGen runs them for 600 s and offline with 24,576 samples or
more; here `seconds` says how long).
"""

from __future__ import annotations

import contextlib
import gc
import math
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.artifact import Artifact, classifier_input
from repzoo.engines import Array, Engine, Session
from repzoo.errors import InputError
from repzoo.measure import stats
from repzoo.measure import system_noise as noise
from repzoo.measure.host import host
from repzoo.measure.record import Record, identity_of
from repzoo.measure.results import EarlyStopping, Latency, LatencyRatio, Scenario, Setting
from repzoo.progress import Progress, silent

ROUNDS, ROUND_SECONDS = (
    24,
    0.25,
)  # the fewest rounds, and the longest: more seconds make more rounds, and finer interleaving
LEAST_ROUNDS, DRIFT = 10, 0.02  # fewer rounds show no trend; a smaller change is none
WARM_UP_CALLS, WARM_UP_SECONDS = (
    5,
    0.5,
)  # of each client, whichever is over first; compiling and first touches are not timed
MAX_CALLS = 4096  # a client's calls in one round: what bounds memory and Records where calls take microseconds
OPENINGS = 6  # of each session in a run: the fewest whose order statistics bound a median at 95 %
RACED_NS = (2e6, 7e7)  # a round's length in a race, at least and at most
QUERY = 8  # samples of a multi-stream query
Side = Literal["first", "second"]
MLPERF = {"single-stream": 0.90, "multi-stream": 0.99}  # the quantile that MLPerf reports
PERCENTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
Clock = Callable[[], int]  # nanoseconds from any moment on
Samples = npt.NDArray[np.float64]


@dataclass
class Case:
    """One thing to time. `rounds_us` has, for each kept round, the microseconds of every call (multi-stream: of every query);
    `rounds_fps` images a second; `rounds_of` which opening of the session. steady: no trend in the rounds; None: too few rounds to
    tell. open_seconds: what opening and the first call took, in which some engines compile.
    """

    artifact: Artifact
    engine: Engine
    session: Session
    inputs: Array
    threads: int = 1
    streams: int = 1
    scenario: Scenario = "closed-loop"
    rounds_us: list[Samples] = field(default_factory=list)
    rounds_fps: list[float] = field(default_factory=list)
    rounds_of: list[int] = field(default_factory=list)
    open_seconds: float = 0.0
    warm_up_rounds: int = 0
    steady: bool | None = None
    disturbed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> Setting:
        """What distinguishes this case from others of the same file and engine."""
        return Setting(self.scenario, self.threads, self.streams, len(self.inputs))

    @property
    def calls_a_query(self) -> int:
        """How many calls of the session are timed together."""
        return QUERY // len(self.inputs) if self.scenario == "multi-stream" else 1

    def medians_us(self) -> list[float]:
        """The median of each round."""
        return [float(np.median(one)) for one in self.rounds_us]

    def record(self) -> Record[Latency]:
        """Percentiles in milliseconds and images a second over all rounds, with the raw samples."""
        times: dict[str, float] = {}
        for name, q in PERCENTILES.items():
            found = stats.quantile_interval(self.rounds_us, q)
            times[f"{name}_ms"] = found.value / 1000
            times[f"{name}_low_ms"] = found.low / 1000
            times[f"{name}_high_ms"] = found.high / 1000
        fps = stats.median_interval(self.rounds_fps)
        values = Latency(
            setting=self.setting,
            **times,
            fps=fps.value,
            fps_low=fps.low,
            fps_high=fps.high,
            early_stopping=self._early_stopping(),
            samples=sum(map(len, self.rounds_us)),
            rounds=len(self.rounds_us),
            openings=len(set(self.rounds_of)),
            warm_up_rounds=self.warm_up_rounds,
            steady=self.steady,
            spread=stats.spread(self.medians_us()),
        )
        engine = {
            "name": self.engine.name,
            "version": self.engine.version(),
            "threads": self.threads,
        }
        samples = {"latency_us": [[_compact(one) for one in kept] for kept in self.rounds_us]}
        return Record(
            identity_of(self.artifact),
            values,
            engine,
            samples=samples,
            host={**host(), **self.disturbed},
        )

    def _early_stopping(self) -> EarlyStopping | None:
        """MLPerf's early-stopping estimate of the scenario's percentile; None for scenarios that have none."""
        if self.scenario not in MLPERF:
            return None
        ordered = np.sort(np.concatenate(self.rounds_us))
        allowed = stats.overlatency_allowed(len(ordered), MLPERF[self.scenario])
        estimate = float(ordered[len(ordered) - allowed]) / 1000 if allowed else None
        return EarlyStopping(percentile=MLPERF[self.scenario], ms=estimate)


def case(
    artifact: Artifact,
    engine: Engine,
    streams: int = 1,
    threads: int = 1,
    batch: int = 1,
    seed: int = 0,
    scenario: Scenario = "closed-loop",
) -> Case:
    """Compile `artifact` and make its random input; `streams` clients call one session of `threads` threads.

    Raises:
        InputError: settings below 1, a batch that the file or the scenario does not have, or a model the engine cannot compile.
    """
    if batch < 1 or streams < 1 or threads < 1:
        raise InputError(
            f"threads, streams and batch must be at least 1; got {threads}, {streams}, {batch}"
        )
    if scenario == "single-stream" and (batch, streams) != (1, 1):
        raise InputError(
            f"single-stream is one client and a batch of 1; got {streams} and {batch}; take closed-loop"
        )
    if scenario == "multi-stream" and QUERY % batch:
        raise InputError(
            f"a multi-stream query has {QUERY} images, which calls of {batch} do not make up; take 1, 2, 4 or 8"
        )
    inputs, began = inputs_for(artifact, batch, seed), time.perf_counter()
    session = engine.open(artifact.model, threads, streams=streams)
    return Case(
        artifact,
        engine,
        session,
        inputs,
        threads,
        streams,
        scenario,
        open_seconds=time.perf_counter() - began,
    )


def openings_for(cases: Sequence[Case], seconds: float) -> int:
    """OPENINGS, or as many as take no longer to open than the timing of `seconds` a case takes; 1 when that is too few for an interval."""
    return (
        OPENINGS if OPENINGS * sum(one.open_seconds for one in cases) <= seconds * len(cases) else 1
    )


def inputs_for(artifact: Artifact, batch: int, seed: int = 0) -> Array:
    """Random images as `artifact` takes them, `batch` at once.

    Raises:
        InputError: a batch that the file does not have, or sides that neither graph nor metadata give.
    """
    dims = [
        dim.dim_value for dim in classifier_input(artifact.model).type.tensor_type.shape.dim
    ] or [0] * 4
    if dims[0] not in (0, batch):
        raise InputError(
            f"{artifact.name} has a fixed batch of {dims[0]}; asked for {batch}; export it with a dynamic batch"
        )
    usual = (
        artifact.require_preprocess().input_shape
        if artifact.preprocess or not all(dims[1:])
        else dims[1:]
    )
    return random_input(
        artifact.model,
        (batch, *(dim or side for dim, side in zip(dims[1:], usual, strict=True))),
        seed,
    )


def random_input(model: onnx.ModelProto, shape: tuple[int, ...], seed: int) -> Array:
    """Bytes for a model of uint8 input, else normal float32."""
    random = np.random.default_rng(seed)
    if classifier_input(model).type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        return random.integers(0, 256, shape, np.uint8)
    return random.standard_normal(shape).astype(np.float32)


def run(
    cases: Sequence[Case],
    seconds: float = 2.0,
    rounds: int | None = None,
    progress: Progress = silent,
    clock: Clock = time.perf_counter_ns,
    openings: int = 1,
    on_error: Callable[[Case, InputError], None] | None = None,
) -> list[Record[Latency]]:
    """Time every case for at least `seconds` in all, in interleaved rounds once they are steady (see the module).

    A round is over after seconds / rounds, but not before one call of each client, and after MAX_CALLS of them.

    openings  how often each session is opened in so many rounds; 0: see `openings_for`
    rounds    how many to keep; None: ROUNDS, or so many that none is longer than ROUND_SECONDS
    on_error  is told of a case whose session fails; the others go on, and no Record is made of it

    Raises:
        InputError: a setting out of range, or, without `on_error`, a session that fails, in whichever client it does.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds must be positive; got {seconds}")
    rounds = rounds or max(ROUNDS, math.ceil(seconds / ROUND_SECONDS))
    before = noise.read_counters()
    with contextlib.ExitStack() as stack:
        live = _each(
            [stack.enter_context(_Clients(one, clock)) for one in cases], _Clients.warm_up, on_error
        )
        each = math.ceil(rounds / (openings or openings_for([one.case for one in live], seconds)))
        done, turn = (
            0,
            partial(_turn, each=each, nanoseconds=round(seconds / rounds * 1e9), on_error=on_error),
        )
        while live and (
            done < rounds
            or (done < 2 * rounds and not all(is_steady(one.last(rounds)) for one in live))
        ):
            live, done = turn(live, done), done + 1
            progress("bench", done, max(done, rounds))
        for _ in range(
            rounds // 8 if done > rounds else 0
        ):  # one or two odd rounds at the beginning show no trend
            live, done = turn(live, done), done + 1
    disturbed = noise.between(before, noise.read_counters())
    for one in live:
        one.settle(done - rounds, disturbed)
    return [one.case.record() for one in live]


def race(
    cases: Sequence[Case],
    rounds: int,
    calls: int,
    openings: int = 1,
    lost: Callable[[Sequence[float]], bool] = lambda _: False,
    clock: Clock = time.perf_counter_ns,
) -> None:
    """So many rounds of all `cases`, each of about so many calls of the first, which the others are compared with.

    lost  is told, after each round, the ratios of a case to the first so far; when it says so, the case is left out of those that follow
    """
    with contextlib.ExitStack() as stack:
        live = _each(
            [stack.enter_context(_Clients(one, clock)) for one in cases], _Clients.warm_up, None
        )
        nanoseconds = round(np.clip(calls / live[0].rate, *RACED_NS))
        for done in range(rounds):
            live = _turn(live, done, math.ceil(rounds / openings), nanoseconds, None)
            live = live[:1] + [one for one in live[1:] if not lost(_ratios(one.case, cases[0]))]
            if len(live) == 1:
                break


def _ratios(one: Case, first: Case) -> list[float]:
    """Latency of `one` over that of `first` in the rounds that it has."""
    return [
        above / below for above, below in zip(one.medians_us(), first.medians_us(), strict=False)
    ]


def raced(one: Case, first: Case) -> stats.Interval:
    """Latency of `one` over that of `first` after a race, over the openings where they are enough, else over the rounds of `one`."""
    return _over_openings(_ratios(one, first), one.rounds_of)


def _turn(
    live: list[_Clients],
    done: int,
    each: int,
    nanoseconds: int,
    on_error: Callable[[Case, InputError], None] | None,
) -> list[_Clients]:
    """One round of each, in an order that turns, on new sessions after `each` rounds; those that do not fail, in their own order."""
    if done and done % each == 0:
        live = _each(live, _Clients.reopen, on_error)
    survived = _each(
        live if done % 2 == 0 else live[::-1], lambda one: one.round(nanoseconds), on_error
    )
    return [one for one in live if one in survived]


def is_steady(medians: Sequence[float]) -> bool:
    """Whether a sequence of round medians has no trend above DRIFT; any sequence too short to show one."""
    return len(medians) < LEAST_ROUNDS or abs(stats.trend(medians)) <= DRIFT


def ratio(first: Case, second: Case) -> Record[LatencyRatio]:
    """Median latency of `first` over that of `second`, round by round: below 1, first is faster; likewise images a second.

    faster: "first" or "second" by the scenario's figure, None where its interval contains 1, or where two engines were timed on
    a busy machine: one that hands its work to threads of its own is held up more than one that does not (measured: 29 times), in
    every round alike, which no interval shows.
    """
    busy = (
        first.engine.name != second.engine.name
        and (first.disturbed.get("used_by_others") or 0) > noise.OTHERS
    )
    pairs = zip(first.medians_us(), second.medians_us(), strict=True)
    times = _over_openings([one / two for one, two in pairs], first.rounds_of)
    rates = _over_openings(
        [one / two for one, two in zip(first.rounds_fps, second.rounds_fps, strict=True)],
        first.rounds_of,
    )
    faster = (
        _faster(rates, "second", "first")
        if first.scenario == "offline"
        else _faster(times, "first", "second")
    )
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
    artifact = {"first": identity_of(first.artifact), "second": identity_of(second.artifact)}
    engines = [
        {"name": one.engine.name, "version": one.engine.version()} for one in (first, second)
    ]
    return Record(
        artifact,
        values,
        {**engines[0], "second": engines[1]},
        host={**host(), **first.disturbed},
    )


def _over_openings(ratios: Sequence[float], rounds_of: Sequence[int]) -> stats.Interval:
    """Median and interval of the openings' medians where they are enough, else of the rounds'."""
    openings = sorted(set(rounds_of))
    medians = [
        float(np.median([one for one, of in zip(ratios, rounds_of, strict=True) if of == opening]))
        for opening in openings
    ]
    return stats.median_interval(medians if len(openings) >= OPENINGS else ratios)


def _faster(found: stats.Interval, below: Side, above: Side) -> Side | None:
    return below if found.high < 1 else above if found.low > 1 else None


class _Clients:
    """The threads that call a case's session: the same ones in every round, since engines keep state for each thread.

    Python's collector rests while calls are timed, as in timeit; between rounds it may run.
    """

    def __init__(self, one: Case, clock: Clock) -> None:
        self.case, self._clock = one, clock
        self._pool = ThreadPoolExecutor(one.streams) if one.streams > 1 else None
        self._callers = 1 if one.scenario == "multi-stream" else one.streams
        self._kept = [array("q", bytes(8 * MAX_CALLS)) for _ in range(self._callers)]
        self._run = self._query if one.calls_a_query > 1 else one.session.run
        self._opening = 0
        self._rate = 1.0  # calls a nanosecond of all callers

    @property
    def rate(self) -> float:
        """Calls a nanosecond of all callers, when last measured."""
        return self._rate

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown()

    def reopen(self) -> None:
        """Go on with a new session of the same file."""
        one = self.case
        del (
            self._run,
            one.session,
        )  # two sessions of one model at once would be the most that timing holds
        one.session = one.engine.open(one.artifact.model, one.threads, streams=one.streams)
        self._run = self._query if one.calls_a_query > 1 else one.session.run
        self._opening += 1
        self.warm_up()

    def warm_up(self) -> None:
        """Let every client call a few times; the first call, in which some engines compile, is not among them."""
        began = time.perf_counter()
        self._together(lambda kept, _: self._until(kept, 0, 1))
        self.case.open_seconds += time.perf_counter() - began if self._opening == 0 else 0.0
        _, counts = self._together(
            lambda kept, start: self._until(
                kept, start + round(WARM_UP_SECONDS * 1e9), WARM_UP_CALLS
            )
        )
        self._rate = self._rate_of(counts)

    def round(self, nanoseconds: int) -> None:
        """Time one round."""
        with _collector_rests():
            if self.case.scenario == "offline":
                calls = iter(
                    range(max(1, round(min(self._rate * nanoseconds, MAX_CALLS * self._callers))))
                )
                elapsed, counts = self._together(lambda kept, _: self._shared(kept, calls))
                rate = sum(counts) / max(1, elapsed)
            else:
                _, counts = self._together(
                    lambda kept, start: self._until(kept, start + nanoseconds, MAX_CALLS)
                )
                rate = self._rate_of(counts)
        self._rate = rate
        self.case.rounds_us.append(
            _microseconds(
                np.concatenate([kept[:n] for kept, n in zip(self._kept, counts, strict=True)])
            )
        )
        self.case.rounds_fps.append(rate * 1e9 * len(self.case.inputs) * self.case.calls_a_query)
        self.case.rounds_of.append(self._opening)

    def settle(self, begun: int, disturbed: Mapping[str, Any]) -> None:
        """Drop the rounds before `begun`."""
        one = self.case
        del one.rounds_us[:begun], one.rounds_fps[:begun], one.rounds_of[:begun]
        one.warm_up_rounds, one.disturbed = begun, disturbed
        one.steady = is_steady(one.medians_us()) if len(one.rounds_us) >= LEAST_ROUNDS else None

    def last(self, rounds: int) -> list[float]:
        """Medians of the last `rounds` rounds."""
        return self.case.medians_us()[-rounds:]

    def _rate_of(self, counts: list[int]) -> float:
        """Calls a nanosecond: each client's own, added up, so that it does not matter who finishes last."""
        return sum(
            count / max(1, sum(kept[:count]))
            for kept, count in zip(self._kept, counts, strict=True)
        )

    def _together(self, work: Callable[[array[int], int], int]) -> tuple[int, list[int]]:
        """(nanoseconds, calls of each client): all start at one moment."""
        if self._callers == 1:
            started = self._clock()
            counts = [work(self._kept[0], started)]
            return self._clock() - started, counts
        assert self._pool
        starts: list[int] = []
        line = threading.Barrier(self._callers, action=lambda: starts.append(self._clock()))

        def client(kept: array[int]) -> int:
            line.wait()
            return work(kept, starts[0])

        counts = [
            future.result() for future in [self._pool.submit(client, kept) for kept in self._kept]
        ]
        return self._clock() - starts[0], counts

    def _until(self, kept: array[int], until: int, most: int) -> int:
        """Call until the time is over, at least once and at most `most` times; leaves nanoseconds in `kept`, returns the calls."""
        run, inputs, clock, count = self._run, self.case.inputs, self._clock, 0
        now = clock()
        while not count or (now < until and count < most):
            run(inputs)
            then, now = now, clock()
            kept[count] = now - then
            count += 1
        return count

    def _shared(self, kept: array[int], calls: Iterator[int]) -> int:
        """As `_until`, taking turns from `calls` until they are used up."""
        run, inputs, clock, count = self._run, self.case.inputs, self._clock, 0
        now = clock()
        for _ in calls:
            run(inputs)
            then, now = now, clock()
            kept[count % MAX_CALLS] = now - then
            count += 1
        return count

    def _query(self, inputs: Array) -> None:
        """All calls of one multi-stream query."""
        calls, run = range(self.case.calls_a_query), self.case.session.run
        if self._pool is None:
            for _ in calls:
                run(inputs)
        else:
            for future in [self._pool.submit(run, inputs) for _ in calls]:
                future.result()


def _each(
    live: Sequence[_Clients],
    work: Callable[[_Clients], None],
    on_error: Callable[[Case, InputError], None] | None,
) -> list[_Clients]:
    """Do `work` with each; those that do not fail."""
    survived = []
    for one in live:
        try:
            work(one)
            survived.append(one)
        except InputError as error:
            if on_error is None:
                raise
            on_error(one.case, error)
    return survived


@contextlib.contextmanager
def _collector_rests() -> Iterator[None]:
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _microseconds(nanoseconds: npt.NDArray[np.int64]) -> Samples:
    """With one decimal below a millisecond, whole above; at least 0.1. Statistics are made of these and of nothing finer."""
    exact = np.maximum(nanoseconds, 100) / 1000
    return np.where(exact < 1000, np.round(exact, 1), np.round(exact))


def _compact(microseconds: float) -> float | int:
    return int(microseconds) if float(microseconds).is_integer() else float(microseconds)
