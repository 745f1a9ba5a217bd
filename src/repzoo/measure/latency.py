"""Latency and throughput, round by round over all models, so that a noisy machine widens intervals and never swaps an order.

Each round runs every case for the same short time. A case is a session, a batch and a number of client threads that call the
same session; one thread gives the latency that a single caller sees, several give the throughput. Ratios are taken within a
round and their median is reported with its interval.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import onnx

from repzoo.artifact import Artifact, classifier_input
from repzoo.engines import Array, Engine, Session
from repzoo.errors import InputError
from repzoo.measure import stats
from repzoo.measure.host import load
from repzoo.measure.record import Record, identity_of
from repzoo.progress import Progress, silent

ROUNDS = 24
WARM_UP_CALLS = 5
Clock = Callable[[], float]  # seconds from any moment on
MAX_CALLS = 100  # a client's calls in one round: enough for its median, few enough to keep every sample


@dataclass
class Case:
    """One thing to time. `rounds_us` collects, for each round, the microseconds of every call; `rounds_fps` images a second."""

    artifact: Artifact
    engine: Engine
    session: Session
    inputs: Array
    threads: int = 1
    streams: int = 1
    rounds_us: list[list[int]] = field(default_factory=list)
    rounds_fps: list[float] = field(default_factory=list)

    def record(self) -> Record:
        """Percentiles in milliseconds and images a second over all rounds, with the raw samples."""
        samples = np.concatenate([np.asarray(one) for one in self.rounds_us]) / 1000
        p50 = stats.median_interval([float(np.median(one)) / 1000 for one in self.rounds_us])
        fps = stats.median_interval(self.rounds_fps)
        values = {
            "threads": self.threads,
            "streams": self.streams,
            "batch": len(self.inputs),
            "p50_ms": p50.value,
            "p50_low_ms": p50.low,
            "p50_high_ms": p50.high,
            "p90_ms": float(np.percentile(samples, 90)),
            "p99_ms": float(np.percentile(samples, 99)),
            "fps": fps.value,
            "fps_low": fps.low,
            "fps_high": fps.high,
            "samples": len(samples),
            "load": load(),
        }
        engine = {"name": self.engine.name, "version": self.engine.version(), "threads": self.threads}
        return Record("latency", identity_of(self.artifact), values, engine, samples={"latency_us": self.rounds_us})


def case(artifact: Artifact, engine: Engine, streams: int = 1, threads: int = 1, batch: int = 1, seed: int = 0) -> Case:
    """Compile `artifact` and make its random input; each of `streams` clients calls a session of `threads` threads."""
    dims = [dim.dim_value for dim in classifier_input(artifact.model).type.tensor_type.shape.dim] or [0] * 4
    if batch < 1 or streams < 1 or threads < 1:
        raise InputError(f"threads, streams and batch must be at least 1; got {threads}, {streams}, {batch}")
    if dims[0] not in (0, batch):
        raise InputError(f"{artifact.name} has a fixed batch of {dims[0]}; asked for {batch}; export it with a dynamic batch")
    usual = artifact.needing_preprocess().input_shape if not all(dims[1:]) else dims[1:]
    shape = (batch, *(dim or side for dim, side in zip(dims[1:], usual, strict=True)))
    inputs = random_input(artifact.model, shape, seed)
    return Case(artifact, engine, engine.open(artifact.model, threads), inputs, threads, streams)


def random_input(model: onnx.ModelProto, shape: tuple[int, ...], seed: int) -> Array:
    """Bytes for a model of uint8 input, else normal float32."""
    random = np.random.default_rng(seed)
    if classifier_input(model).type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        return random.integers(0, 256, shape, np.uint8)
    return random.standard_normal(shape).astype(np.float32)


def run(
    cases: Sequence[Case],
    seconds: float = 2.0,
    rounds: int = ROUNDS,
    progress: Progress = silent,
    clock: Clock = time.perf_counter,
) -> list[Record]:
    """Time every case for about `seconds` in all, split over interleaved `rounds`, after a warm-up.

    Raises:
        InputError: a setting out of range, or a session that fails, in whichever client it does.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds must be positive; got {seconds}")
    for one in cases:
        for _ in range(WARM_UP_CALLS):
            one.session.run(one.inputs)
    for done in range(rounds):
        for one in cases if done % 2 == 0 else list(reversed(cases)):
            _round(one, seconds / rounds, clock)
        progress("bench", done + 1, rounds)
    return [one.record() for one in cases]


def ratio(first: Case, second: Case) -> Record:
    """Median latency of `first` over that of `second`, round by round: below 1, first is faster."""
    pairs = zip(first.rounds_us, second.rounds_us, strict=True)
    interval = stats.median_interval([float(np.median(one) / np.median(two)) for one, two in pairs])
    values = {"ratio": interval.value, "ratio_low": interval.low, "ratio_high": interval.high, "rounds": len(first.rounds_us)}
    values |= {"threads": first.threads, "streams": first.streams, "batch": len(first.inputs)}
    artifact = {"first": identity_of(first.artifact), "second": identity_of(second.artifact)}
    return Record("ratio", artifact, values, {"name": first.engine.name, "version": first.engine.version()})


def _round(one: Case, seconds: float, clock: Clock) -> None:
    """One round of `one`; an error in any client is raised here."""
    if one.streams == 1:
        started = clock()
        clients = [_client(one, started + seconds, clock)]
        elapsed = clock() - started
    else:
        clients, elapsed = _together(one, seconds, clock)
    one.rounds_us.append([sample for kept in clients for sample in kept])
    one.rounds_fps.append(len(one.rounds_us[-1]) * len(one.inputs) / elapsed)


def _together(one: Case, seconds: float, clock: Clock) -> tuple[list[list[int]], float]:
    """(samples of each client, seconds): all clients start at one moment, after the threads have been made."""
    starts: list[float] = []
    line = threading.Barrier(one.streams, action=lambda: starts.append(clock()))

    def client() -> list[int]:
        line.wait()
        return _client(one, starts[0] + seconds, clock)

    with ThreadPoolExecutor(one.streams) as pool:
        clients = [future.result() for future in [pool.submit(client) for _ in range(one.streams)]]
    return clients, clock() - starts[0]


def _client(one: Case, until: float, clock: Clock) -> list[int]:
    """Call the session until the time is over, at least once and at most MAX_CALLS times; microseconds of each call, at least 1."""
    kept: list[int] = []
    now = clock()
    while not kept or (now < until and len(kept) < MAX_CALLS):
        one.session.run(one.inputs)
        then, now = now, clock()
        kept.append(max(1, round((now - then) * 1e6)))
    return kept
