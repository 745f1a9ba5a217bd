"""The threads that call a case's session, round by round.

The same threads are used in every round, because engines keep state per thread. Python's garbage
collector is off while calls are timed, as in timeit.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from repzoo.data.batches import map_in_order
from repzoo.engines import Array, Feeds
from repzoo.errors import InputError
from repzoo.measure.latency_case import LEAST_ROUNDS, Case, Samples, is_steady

# Warm-up of each client: ends with whichever is over first. Compilation and first touches of memory
# are not timed.
WARM_UP_CALLS = 5
WARM_UP_SECONDS = 0.5
# Calls of one client in one round: bounds memory and Records when calls take microseconds.
MAX_CALLS = 4096

Clock = Callable[[], int]  # nanoseconds since an arbitrary moment
OnError = Callable[[Case, InputError], None]
# Fills an array with nanoseconds per call from a start time on. Returns the number of calls.
_Work = Callable[["array[int]", int], int]


class ClientThreads:
    """The client threads of one case. Use as a context manager."""

    def __init__(self, case: Case, clock: Clock) -> None:
        self.case = case
        self._clock = clock
        self._pool = ThreadPoolExecutor(case.streams) if case.streams > 1 else None
        # A multi-stream query has one caller, which divides its calls among the threads.
        self._callers = 1 if case.scenario == "multi-stream" else case.streams
        self._nanoseconds = [
            array("q", bytes(8 * MAX_CALLS)) for _ in range(self._callers)
        ]
        self._call = self._timed_call()
        # A case that was timed before goes on with the session that it has.
        self._session_number = case.rounds_of[-1] if case.rounds_of else 0
        self._rate = 1.0

    @property
    def rate(self) -> float:
        """Calls per nanosecond of all callers, as last measured."""
        return self._rate

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown()

    def reopen(self) -> None:
        """Continue with a fresh session of the same file, which is not warm yet.

        The first call is made here, since OpenVINO compiles in it.
        """
        case = self.case
        # Deleted first: two sessions of one model at once would be the peak of memory.
        del self._call, case.session
        case.session = case.engine.open(
            case.artifact.model, case.threads, streams=case.streams
        )
        case.session.run(case.inputs)
        self._call = self._timed_call()
        self._session_number += 1

    def warm_up(self) -> None:
        """Let every client call a few times: some engines prepare memory for each thread."""
        limit = round(WARM_UP_SECONDS * 1e9)
        _, counts = self._run_together(
            lambda nanoseconds, start: self._call_until(
                nanoseconds, start + limit, WARM_UP_CALLS
            )
        )
        self._rate = self._rate_of(counts)

    def time_round(self, length: int) -> None:
        """Time one round of about `length` nanoseconds, and store its samples in the case."""
        with _garbage_collector_off():
            if self.case.scenario == "offline":
                counts, rate = self._time_offline(length)
            else:
                _, counts = self._run_together(
                    lambda nanoseconds, start: self._call_until(
                        nanoseconds, start + length, MAX_CALLS
                    )
                )
                rate = self._rate_of(counts)
        self._rate = rate
        pairs = zip(self._nanoseconds, counts, strict=True)
        samples = np.concatenate([nanoseconds[:count] for nanoseconds, count in pairs])
        images_per_call = self.case.batch * self.case.calls_a_query
        self.case.rounds_us.append(to_microseconds(samples))
        self.case.rounds_fps.append(rate * 1e9 * images_per_call)
        self.case.rounds_of.append(self._session_number)

    def finish(self, warm_up_rounds: int, disturbed: Mapping[str, Any]) -> None:
        """Drop the first rounds, and note whether the rest is steady."""
        case = self.case
        del case.rounds_us[:warm_up_rounds]
        del case.rounds_fps[:warm_up_rounds]
        del case.rounds_of[:warm_up_rounds]
        case.warm_up_rounds = warm_up_rounds
        case.disturbed = disturbed
        case.steady = None
        if len(case.rounds_us) >= LEAST_ROUNDS:
            case.steady = is_steady(case.medians_us())

    def last_medians(self, rounds: int) -> list[float]:
        """Medians of the last `rounds` rounds, in microseconds."""
        return self.case.medians_us()[-rounds:]

    def _timed_call(self) -> Callable[[Array], object]:
        return self._query if self.case.calls_a_query > 1 else self.case.session.run

    def _time_offline(self, length: int) -> tuple[list[int], float]:
        """(calls of each client, calls per nanosecond) when all clients share a fixed number."""
        capacity = MAX_CALLS * self._callers
        total = max(1, round(min(self._rate * length, capacity)))
        remaining = iter(range(total))
        elapsed, counts = self._run_together(
            lambda nanoseconds, _: self._call_shared(nanoseconds, remaining)
        )
        return counts, sum(counts) / max(1, elapsed)

    def _rate_of(self, counts: list[int]) -> float:
        """The sum of the clients' own rates: it does not matter which client finishes last."""
        rate = 0.0
        for nanoseconds, count in zip(self._nanoseconds, counts, strict=True):
            rate += count / max(1, sum(nanoseconds[:count]))
        return rate

    def _run_together(self, work: _Work) -> tuple[int, list[int]]:
        """(nanoseconds, calls of each client). All clients start at the same moment."""
        if self._callers == 1:
            start = self._clock()
            counts = [work(self._nanoseconds[0], start)]
            return self._clock() - start, counts
        assert self._pool
        starts: list[int] = []
        barrier = threading.Barrier(
            self._callers, action=lambda: starts.append(self._clock())
        )

        def client(nanoseconds: array[int]) -> int:
            barrier.wait()
            return work(nanoseconds, starts[0])

        counts = list(self._pool.map(client, self._nanoseconds))
        return self._clock() - starts[0], counts

    def _call_until(self, nanoseconds: array[int], end: int, limit: int) -> int:
        """Call until the time `end`: at least once, at most `limit` times. Returns the calls."""
        # Local names: attribute look-ups would be timed too.
        call = self._call
        inputs = self.case.inputs
        clock = self._clock
        count = 0
        now = clock()
        while not count or (now < end and count < limit):
            call(inputs)
            then = now
            now = clock()
            nanoseconds[count] = now - then
            count += 1
        return count

    def _call_shared(self, nanoseconds: array[int], remaining: Iterator[int]) -> int:
        """Like `_call_until`, taking turns from `remaining` until it is used up."""
        call = self._call
        inputs = self.case.inputs
        clock = self._clock
        count = 0
        now = clock()
        for _ in remaining:
            call(inputs)
            then = now
            now = clock()
            nanoseconds[count % MAX_CALLS] = now - then
            count += 1
        return count

    def _query(self, inputs: Array | Feeds) -> None:
        """All calls of one multi-stream query."""
        run = self.case.session.run
        calls = range(self.case.calls_a_query)
        if self._pool is None:
            for _ in calls:
                run(inputs)
            return
        futures = [self._pool.submit(run, inputs) for _ in calls]
        for future in futures:
            future.result()


def for_each(
    clients: Sequence[ClientThreads],
    work: Callable[[ClientThreads], None],
    on_error: OnError | None,
) -> list[ClientThreads]:
    """Do `work` with each. Returns those that did not fail.

    Raises:
        InputError: one fails and there is no `on_error`.
    """
    survivors: list[ClientThreads] = []
    for client in clients:
        try:
            work(client)
            survivors.append(client)
        except InputError as error:
            if on_error is None:
                raise
            on_error(client.case, error)
    return survivors


def reopen_all(
    clients: Sequence[ClientThreads], on_error: OnError | None
) -> list[ClientThreads]:
    """As `for_each`: a fresh session for each. All cores open them: OpenVINO compiles on one."""
    errors: dict[int, InputError] = {}

    def reopen(client: ClientThreads) -> None:
        try:
            client.reopen()
        except InputError as error:
            errors[id(client)] = error

    for _ in map_in_order(reopen, clients):
        pass

    def warm_up(client: ClientThreads) -> None:
        if id(client) in errors:
            raise errors[id(client)]
        # Here, since an OpenVINO session has a request for each thread that calls it.
        client.warm_up()

    return for_each(clients, warm_up, on_error)


def to_microseconds(nanoseconds: npt.NDArray[np.int64]) -> Samples:
    """Microseconds with one decimal below a millisecond, whole ones above; at least 0.1.

    Statistics are computed from these rounded values, so Records reproduce them exactly.
    """
    exact = np.maximum(nanoseconds, 100) / 1000
    return np.where(exact < 1000, np.round(exact, 1), np.round(exact))


@contextlib.contextmanager
def _garbage_collector_off() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
