"""The verb `benchmark`: latency and throughput of models on engines, with ratios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from repzoo.engines import DEFAULT_ENGINE
from repzoo.measure import sweep
from repzoo.measure.record import Record
from repzoo.measure.results import Scenario
from repzoo.onnx_file import fixed_batch
from repzoo.progress import Progress, silent
from repzoo.settings import above, at_least, merge_keywords, setting, validate
from repzoo.verbs.model_files import ModelLike, open_models
from repzoo.verbs.public_artifact import Artifact


@dataclass(frozen=True)
class BenchOptions:
    """Settings of `benchmark`: every combination is timed. For scenarios see `measure.latency`."""

    engine: tuple[str, ...] = setting(
        (DEFAULT_ENGINE,),
        help="Engines that run every model: a,b or repeat the option; see `repzoo engines`.",
    )
    scenario: tuple[Scenario, ...] = setting(
        ("closed-loop",),
        help="closed-loop, or MLPerf's single-stream, multi-stream, offline.",
    )
    threads: tuple[int, ...] = setting(
        (1,), help="Threads of a session.", range=at_least(1)
    )
    streams: tuple[int, ...] = setting(
        (1,), help="Client threads that share a session.", range=at_least(1)
    )
    batch: tuple[int, ...] = setting(
        (),
        help="Images in each call.  [default: the file's fixed batch; else 1, multi-stream: 8]",
        range=at_least(1),
    )
    seconds: float = setting(
        2.0,
        help="Least measuring time of each case, in seconds, over all rounds.",
        range=above(0),
    )

    def __post_init__(self) -> None:
        """Refuse values outside the accepted ranges."""
        validate(self)


def _ignore(_records: Sequence[Record[Any]]) -> None:
    """A `on_records` that does nothing."""


def benchmark(
    models: ModelLike | Sequence[ModelLike],
    *,
    options: BenchOptions | None = None,
    progress: Progress = silent,
    on_records: Callable[[Sequence[Record[Any]]], None] = _ignore,
    **settings: Any,
) -> sweep.SweepResult:
    """Time every model on every engine, interleaved round by round.

    The result's `records` hold latencies, its `ratios` the time of each case over that of the
    first case of the same setting.

    on_records  is called with the Records of each setting as it ends
    settings    fields of BenchOptions, such as `engine="openvino", threads=(1, 2)`

    Raises:
        InputError: an unknown engine, or nothing could be measured. Where other cases could, the
            failed one is in `left_out`, with the reason.
    """
    options = merge_keywords(BenchOptions, options, settings)
    opened = open_models(models)
    combinations = sweep.settings(
        options.scenario,
        options.threads,
        options.streams,
        # A graph with a fixed batch runs with no other.
        options.batch or _fixed_batches(opened),
    )
    return sweep.run(
        opened,
        options.engine,
        combinations,
        options.seconds,
        progress,
        on_records,
    )


def _fixed_batches(models: Sequence[Artifact]) -> tuple[int, ...]:
    """The batch sizes that the models fix; empty if each leaves it open."""
    sizes = {fixed_batch(model.model) for model in models} - {0}
    return tuple(sorted(sizes))
