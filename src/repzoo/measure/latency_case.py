"""One thing to time: a session, a batch, a number of client threads and a scenario."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.artifact import Artifact
from repzoo.engines import Array, Engine, Session
from repzoo.errors import InputError
from repzoo.measure import stats
from repzoo.measure.host import host
from repzoo.measure.record import Record, identity_of
from repzoo.measure.results import EarlyStopping, Latency, Scenario, Setting
from repzoo.onnx_file import classifier_input

QUERY = 8  # images of a multi-stream query
MLPERF = {
    "single-stream": 0.90,
    "multi-stream": 0.99,
}  # the quantile that MLPerf reports
PERCENTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
# Fewer rounds than this show no trend; a relative change below DRIFT is none.
LEAST_ROUNDS = 10
DRIFT = 0.02

Samples = npt.NDArray[np.float64]


@dataclass
class Case:
    """A session to time, and its samples.

    rounds_us       microseconds of every call (multi-stream: every query) of each kept round
    rounds_fps      images per second of each kept round
    rounds_of       number of the session that ran each kept round
    open_seconds    time of opening the session and of its first call
    warm_up_rounds  rounds that were dropped
    steady          whether the kept rounds have no trend; None if they are too few to tell
    disturbed       facts about what else used the machine
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
        """Number of session calls that are timed together."""
        return QUERY // len(self.inputs) if self.scenario == "multi-stream" else 1

    def medians_us(self) -> list[float]:
        """The median of each round, in microseconds."""
        return [float(np.median(samples)) for samples in self.rounds_us]

    def record(self) -> Record[Latency]:
        """Percentiles in milliseconds and images per second, with the raw samples."""
        times: dict[str, float] = {}
        for name, quantile in PERCENTILES.items():
            interval = stats.quantile_interval(self.rounds_us, quantile)
            times[f"{name}_ms"] = interval.value / 1000
            times[f"{name}_low_ms"] = interval.low / 1000
            times[f"{name}_high_ms"] = interval.high / 1000
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
        samples = [
            [_compact(value) for value in values_us] for values_us in self.rounds_us
        ]
        return Record(
            identity_of(self.artifact),
            values,
            engine,
            samples={"latency_us": samples},
            host={**host(), **self.disturbed},
        )

    def _early_stopping(self) -> EarlyStopping | None:
        """MLPerf's early-stopping estimate of the scenario's percentile; None without one."""
        if self.scenario not in MLPERF:
            return None
        quantile = MLPERF[self.scenario]
        ordered = np.sort(np.concatenate(self.rounds_us))
        allowed = stats.overlatency_allowed(len(ordered), quantile)
        estimate = float(ordered[len(ordered) - allowed]) / 1000 if allowed else None
        return EarlyStopping(percentile=quantile, ms=estimate)


def case(
    artifact: Artifact,
    engine: Engine,
    streams: int = 1,
    threads: int = 1,
    batch: int = 1,
    seed: int = 0,
    scenario: Scenario = "closed-loop",
) -> Case:
    """Compile `artifact` and make its random input.

    streams  client threads that call the session
    threads  threads of the session

    Raises:
        InputError: settings below 1, a batch that the file or the scenario does not allow, or a
            model that the engine cannot compile.
    """
    if batch < 1 or streams < 1 or threads < 1:
        raise InputError(
            f"threads, streams and batch must be at least 1; got {threads}, {streams}, {batch}"
        )
    if scenario == "single-stream" and (batch, streams) != (1, 1):
        raise InputError(
            f"single-stream is one client and a batch of 1; got {streams} and {batch}; take "
            "closed-loop"
        )
    if scenario == "multi-stream" and QUERY % batch:
        raise InputError(
            f"a multi-stream query has {QUERY} images, which calls of {batch} do not make up; "
            "take 1, 2, 4 or 8"
        )
    inputs = inputs_for(artifact, batch, seed)
    began = time.perf_counter()
    session = engine.open(artifact.model, threads, streams=streams)
    seconds = time.perf_counter() - began
    return Case(
        artifact=artifact,
        engine=engine,
        session=session,
        inputs=inputs,
        threads=threads,
        streams=streams,
        scenario=scenario,
        open_seconds=seconds,
    )


def inputs_for(artifact: Artifact, batch: int, seed: int = 0) -> Array:
    """Random images as `artifact` takes them, `batch` at once.

    Raises:
        InputError: a batch that the file does not allow, or sides that neither the graph nor the
            metadata give.
    """
    tensor = classifier_input(artifact.model).type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim] or [0, 0, 0, 0]
    if dims[0] not in (0, batch):
        raise InputError(
            f"{artifact.name} has a fixed batch of {dims[0]}; asked for {batch}; export it with a "
            "dynamic batch"
        )
    defaults: Sequence[int] = dims[1:]
    if artifact.preprocess or not all(dims[1:]):
        defaults = artifact.require_preprocess().input_shape
    sides = [dim or default for dim, default in zip(dims[1:], defaults, strict=True)]
    return random_input(artifact.model, (batch, *sides), seed)


def random_input(model: onnx.ModelProto, shape: tuple[int, ...], seed: int) -> Array:
    """Random bytes for a model with uint8 input, else normal float32."""
    random = np.random.default_rng(seed)
    element = classifier_input(model).type.tensor_type.elem_type
    if element == onnx.TensorProto.UINT8:
        return random.integers(0, 256, shape, np.uint8)
    return random.standard_normal(shape).astype(np.float32)


def is_steady(medians: Sequence[float]) -> bool:
    """Whether round medians have no trend above DRIFT, or are too few to show one."""
    return len(medians) < LEAST_ROUNDS or abs(stats.trend(medians)) <= DRIFT


def _compact(microseconds: float) -> float | int:
    return (
        int(microseconds) if float(microseconds).is_integer() else float(microseconds)
    )
