"""The frontier of latency, drop and size over all candidates that were measured.

Latency depends on engine and placement alone. Placements that were in the race of engines have the
latency of that race. Others were timed against float on their engine, so theirs is that ratio times
float's time in the race. The drop of a candidate is the one to
expect on new images where the logits are known, else the counted one, both on the selection images.
The gate's images judge the chosen model alone, so they stay unused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.engines import Engine, arithmetic
from repzoo.measure.record import Record, full_identity_of, identity_of
from repzoo.measure.results import Latency, PairedAccuracy
from repzoo.quant.search.candidate import Candidate
from repzoo.quant.search.engine_race import RaceResult
from repzoo.quant.search.evaluator import Keep
from repzoo.storage import sha256_of, write_together

FLOAT_FILE = "float.onnx"


@dataclass(frozen=True)
class Point:
    """A file with its three coordinates: less of each is better.

    file         its name in the folder; "" for one that is not on the frontier
    form         deploy (float) or int8
    stage        how it was made; "" for float
    ms           latency of one image in milliseconds, with its 95 % interval
    drop         points of Top-1
    verdict      of the budget, on the selection images; "" for float
    on_frontier  no other point is as good in everything and better in something
    records      what all of this is derived from
    """

    file: str
    engine: str
    form: str
    stage: str
    placement: str
    ms: float
    ms_low: float
    ms_high: float
    drop: float
    bytes: int
    verdict: str = ""
    on_frontier: bool = True
    records: tuple[Record[Any], ...] = ()

    @property
    def coordinates(self) -> tuple[float, float, int]:
        """Latency, drop and size."""
        return self.ms, self.drop, self.bytes


@dataclass(frozen=True)
class _Stored:
    """A candidate whose model waits in a file. Its Records are without those of the race."""

    path: Path
    engine: Engine
    candidate: Candidate
    bytes: int
    records: tuple[Record[Any], ...]
    identity: dict[str, Any]


@dataclass
class CandidateStore:
    """Keeps the model of every candidate as a file in `folder`: memory holds the best alone."""

    folder: Path
    stored: list[_Stored] = field(default_factory=list)

    def keep_for(self, engine: Engine) -> Keep:
        """What stores a candidate that was made for `engine`."""

        def keep(
            candidate: Candidate, model: Artifact, paired: Record[PairedAccuracy]
        ) -> None:
            """Write the model with what is known of it."""
            number = len(self.stored) + 1
            name = f"int8.{engine.name.replace(':', '-')}.{number}.onnx"
            path = self.folder / name
            named = _with_step(model, engine, candidate)
            write_together(named.files(path))
            size = sum(len(chunk) for chunk in named.chunks())
            identity = full_identity_of(named)
            artifact = {**paired.artifact, "second": identity}
            record = Record(artifact, paired.values, paired.engine, paired.data)
            self.stored.append(
                _Stored(path, engine, candidate, size, (record,), identity)
            )

        return keep


def _with_step(model: Artifact, engine: Engine, candidate: Candidate) -> Artifact:
    """`model`, whose last step is its quantization, with the settings of that step."""
    settings = {
        "recipe": candidate.stage,
        "placement": candidate.placement,
        "engine": engine.name,
    }
    last = model.steps[-1]
    step = Step("quantize", __version__, settings, last.input_sha256)
    named = replace(model, steps=(*model.steps[:-1], step), sha256="")
    return replace(named, sha256=sha256_of(named.chunks()))


def frontier(
    store: CandidateStore, model: Artifact, result: RaceResult
) -> tuple[Point, ...]:
    """All points, fastest first: float on each engine, and the candidates in `store`.

    The files of those that are not on the frontier are deleted; float.onnx is written where float
    is on it.
    """
    points = _float_points(result)
    raced: dict[tuple[str, str | None], Record[Latency]] = {}
    for index, record in result.timings.items():
        entry = result.summary.entries[index]
        raced[entry.engine, entry.placement] = record
    for stored in store.stored:
        timing = _timing(stored, model, raced)
        if timing is not None:
            points.append(_point(stored, timing))
    marked = mark_frontier(points)
    kept = {point.file for point in marked if point.on_frontier}
    for stored in store.stored:
        if stored.path.name not in kept:
            for path in stored.path.parent.glob(f"{stored.path.name}*"):
                path.unlink()
    if FLOAT_FILE in kept:
        write_together(model.files(store.folder / FLOAT_FILE))
    return marked


def _float_points(result: RaceResult) -> list[Point]:
    points = []
    for index, record in result.timings.items():
        entry = result.summary.entries[index]
        if entry.form != "deploy":
            continue
        assert entry.bytes is not None
        points.append(
            Point(
                file=FLOAT_FILE,
                engine=entry.engine,
                form="deploy",
                stage="",
                placement="",
                ms=record.values.p50_ms,
                ms_low=record.values.p50_low_ms,
                ms_high=record.values.p50_high_ms,
                drop=0.0,
                bytes=entry.bytes,
                records=(record,),
            )
        )
    return points


@dataclass(frozen=True)
class _Timing:
    """Milliseconds with their interval, and the Record that they are derived from."""

    ms: float
    low: float
    high: float
    record: Record[Any]


def _timing(
    stored: _Stored,
    model: Artifact,
    raced: Mapping[tuple[str, str | None], Record[Latency]],
) -> _Timing | None:
    """The latency of a stored candidate; None where its engine could not be timed."""
    engine_name = stored.engine.name
    own = raced.get((engine_name, stored.candidate.placement))
    if own is not None:
        values = own.values
        record = replace(own, artifact=stored.identity)
        return _Timing(values.p50_ms, values.p50_low_ms, values.p50_high_ms, record)
    fastest = raced.get((engine_name, None))
    ratio = stored.candidate.ratio
    if fastest is None or ratio is None:
        return None
    artifact = {"first": stored.identity, "second": identity_of(model)}
    engine = arithmetic.facts(stored.engine)
    ms = fastest.values.p50_ms
    return _Timing(
        ratio.ratio * ms,
        ratio.ratio_low * ms,
        ratio.ratio_high * ms,
        Record(artifact, ratio, {**engine, "second": engine}),
    )


def _point(stored: _Stored, timing: _Timing) -> Point:
    """The point of a stored candidate."""
    candidate = stored.candidate
    paired = candidate.paired
    return Point(
        file=stored.path.name,
        engine=stored.engine.name,
        form="int8",
        stage=candidate.stage,
        placement=candidate.placement,
        ms=timing.ms,
        ms_low=timing.low,
        ms_high=timing.high,
        drop=paired.expected.drop if paired.expected else paired.drop,
        bytes=stored.bytes,
        verdict=candidate.verdict.name.lower(),
        records=(*stored.records, timing.record),
    )


def mark_frontier(points: Sequence[Point]) -> tuple[Point, ...]:
    """`points`, fastest first, each marked; the files of the others are no longer named."""
    marked = []
    for point in sorted(points, key=lambda point: point.coordinates):
        if any(_dominates(other, point) for other in points):
            point = replace(point, on_frontier=False, file="")
        marked.append(point)
    return tuple(marked)


def _dominates(first: Point, second: Point) -> bool:
    """Whether `first` is as good as `second` in everything, and better in something."""
    pairs = list(zip(first.coordinates, second.coordinates, strict=True))
    as_good = all(above <= below for above, below in pairs)
    return as_good and first.coordinates != second.coordinates
