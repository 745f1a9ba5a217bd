"""One thing to time: a session, a batch, a number of client threads and a scenario."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.artifact import Artifact
from repzoo.engines import Array, Engine, Feeds, Session, arithmetic
from repzoo.errors import InputError
from repzoo.measure import stats
from repzoo.measure.host import host
from repzoo.measure.record import Record, identity_of
from repzoo.measure.results import EarlyStopping, Latency, Scenario, Setting
from repzoo.onnx_file import (
    IMAGE_RANK,
    MAX_INPUT_ELEMENTS,
    fixed_batch,
    model_inputs,
)

QUERY = 8  # images of a multi-stream query
# The quantile that MLPerf reports for a scenario.
MLPERF = {"single-stream": 0.90, "multi-stream": 0.99}
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
    batch           images in each call
    """

    artifact: Artifact
    engine: Engine
    session: Session
    inputs: Any  # Array, or Feeds of a graph with several inputs
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
    batch: int = 1

    @property
    def setting(self) -> Setting:
        """What distinguishes this case from others of the same file and engine."""
        return Setting(self.scenario, self.threads, self.streams, self.batch)

    @property
    def calls_a_query(self) -> int:
        """Number of session calls that are timed together."""
        return QUERY // self.batch if self.scenario == "multi-stream" else 1

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
        engine = {**arithmetic.facts(self.engine), "threads": self.threads}
        samples = [list(map(_compact, values_us)) for values_us in self.rounds_us]
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
    batch: int | None = None,
    seed: int = 0,
    scenario: Scenario = "closed-loop",
) -> Case:
    """Compile `artifact` and make its random input.

    streams  client threads that call the session
    threads  threads of the session
    batch    images in each call; None: those of a file with a fixed batch, else 1

    Raises:
        InputError: settings below 1, a batch that the file or the scenario does not allow, or a
            model that the engine cannot compile or run.
    """
    if batch is None:
        batch = fixed_batch(artifact.model) or 1
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
    session.run(inputs)  # OpenVINO compiles in the first call
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
        batch=batch,
    )


def inputs_for(
    artifact: Artifact, batch: int | None = None, seed: int = 0
) -> Array | Feeds:
    """Random inputs as `artifact` takes them: an array, or one for each of several inputs.

    batch  images at once; None: the file's own batch, or 1

    Raises:
        InputError: a batch that the file does not allow, sides that neither the graph nor the
            metadata give, or an input that is no tensor of numbers.
    """
    fixed = fixed_batch(artifact.model)
    if batch is None:
        batch = fixed or 1
    if fixed not in (0, batch):
        raise InputError(
            f"{artifact.name} has a fixed batch of {fixed}; asked for {batch}; give --batch "
            f"{fixed}, or export it with a dynamic batch"
        )
    inputs = model_inputs(artifact.model)
    feeds: dict[str, Array] = {}
    for item in inputs:
        sides = _sides(artifact, item, batch)
        feeds[item.name] = _random(item, sides, seed, artifact.name)
    return feeds[inputs[0].name] if len(inputs) == 1 else feeds


def _sides(
    artifact: Artifact, item: onnx.ValueInfoProto, batch: int
) -> tuple[int, ...]:
    """The sides of one input: those of the graph, and for an image those of the preprocessing."""
    tensor = item.type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]
    is_only = len(model_inputs(artifact.model)) == 1
    if not tensor.HasField("shape") and is_only:
        dims = [0] * IMAGE_RANK
    if dims:
        dims[0] = dims[0] or batch
    is_image = is_only and len(dims) == IMAGE_RANK
    if is_image and artifact.preprocess is None and not all(dims):
        raise InputError(
            f"{artifact.name} leaves the size of its images open; give it with --size, such as "
            "--size 224"
        )
    # A file that says how its images are made must take what is made.
    if is_image and artifact.preprocess is not None:
        usual = (batch, *artifact.require_preprocess().input_shape)
        pairs = zip(dims, usual, strict=True)
        return tuple(dim or side for dim, side in pairs)
    if not all(dims) or (item.type.HasField("tensor_type") and not dims and is_only):
        raise InputError(
            f"{artifact.name} leaves sizes of its input {item.name!r} open ({dims}, 0: open); fix "
            "them: python -m onnxruntime.tools.make_dynamic_shape_fixed IN.onnx OUT.onnx "
            f"--input_name {item.name} --input_shape ..."
        )
    return tuple(dims)


def random_input(model: onnx.ModelProto, shape: tuple[int, ...], seed: int) -> Array:
    """Random bytes for a model with uint8 input, else normal floats of the input's type."""
    return _random(model_inputs(model)[0], shape, seed, "the model")


def _random(
    item: onnx.ValueInfoProto, shape: tuple[int, ...], seed: int, name: str
) -> Array:
    """Random values for one input. Integers are zeros: they may be indices of any table."""
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
    except KeyError:
        dtype = np.dtype(object)
    if dtype.hasobject:
        raise InputError(
            f"{name} takes something other than a tensor of numbers as {item.name!r}, so no input "
            "can be made up for it"
        )
    if math.prod(shape) > MAX_INPUT_ELEMENTS:
        raise InputError(
            f"{name} would be given {list(shape)} as {item.name!r}, more than "
            f"{MAX_INPUT_ELEMENTS:,} numbers; give a smaller --batch"
        )
    random = np.random.default_rng(seed)
    if dtype == np.uint8:
        return random.integers(0, 256, shape, np.uint8)
    if dtype.kind in "iub":
        return np.zeros(shape, dtype)
    return random.standard_normal(shape).astype(np.float32).astype(dtype, copy=False)


def is_steady(medians: Sequence[float]) -> bool:
    """Whether round medians have no trend above DRIFT, or are too few to show one."""
    return len(medians) < LEAST_ROUNDS or abs(stats.trend(medians)) <= DRIFT


def _compact(microseconds: float) -> float | int:
    value = float(microseconds)
    # Shorter in Records, which hold every sample.
    return int(value) if value.is_integer() else value
