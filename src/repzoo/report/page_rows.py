"""Rows of the page: one for each model, precision, engine, host and setting, joined from Records.

Figures are joined by the hash of the model file. An accuracy that was measured on another engine
or host than the latency beside it says so. Nothing is computed that no Record holds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repzoo.graph.tools.cost_result import Cost
from repzoo.measure.board import BoardAccuracy, BoardLatency
from repzoo.measure.comparison_results import EngineComparison, QuantizerComparison
from repzoo.measure.host import describe
from repzoo.measure.record import Record, line, select
from repzoo.measure.results import (
    Accuracy,
    Latency,
    LatencyRatio,
    PairedAccuracy,
    Setting,
)
from repzoo.printable import one_line
from repzoo.report.quantizer_comparison import newest_rows
from repzoo.zoo import catalog

PRECISIONS = {
    "train": "float32, training form",
    "deploy": "float32",
    "int8": "INT8",
    "fp16": "float16",
    "bf16": "bfloat16",
}
MEASURED = "measured"
# What tells hosts apart. Load and versions of packages differ between runs on one host.
HOST_KEYS = ("kind", "cpu", "machine", "cores", "affinity", "int8")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the page. None: no Record says it.

    family       of the catalog; "" for other models
    precision    number format; "" where a maker's tool does not say
    quantizer    that made the model, where several are compared
    threads      of a session; "2 x 1": two clients with one thread each
    images       name of the data set
    top1         percent, with its 95 % interval
    ms           median latency of a call, with its 95 % interval
    ratio        latency over the float model's, with its 95 % interval
    mb           size of the weights as stored, in units of 10^6 bytes
    macs, parameters  in millions
    source       measured, or who says so, as in `measure.board`
    accuracy_on  engine and host of the accuracy, where they are not those of the row
    """

    model: str
    family: str = ""
    precision: str = ""
    quantizer: str = ""
    engine: str = ""
    version: str = ""
    host: str = ""
    threads: str = ""
    images: str = ""
    top1: float | None = None
    top1_low: float | None = None
    top1_high: float | None = None
    n: int | None = None
    ms: float | None = None
    ms_low: float | None = None
    ms_high: float | None = None
    fps: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    mb: float | None = None
    macs: float | None = None
    parameters: float | None = None
    source: str = MEASURED
    accuracy_on: str = ""
    sha256: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What one row is of; a newer row replaces an older one of the same key."""
        return (
            self.model,
            self.precision,
            self.quantizer,
            self.engine,
            self.host,
            self.threads,
            self.images,
            self.source,
        )


@dataclass(frozen=True)
class _Part:
    """One Record with what it is joined by; `figures` are fields of Row."""

    record: Record[Any]
    identity: str
    engine: str
    host: str
    is_board: bool
    figures: Mapping[str, Any]
    images: str = ""


def each_once(records: Sequence[Record[Any]]) -> list[Record[Any]]:
    """`records` without copies: a job's may be in its folder and where they were appended."""
    distinct = {line(row): row for row in records}
    return list(distinct.values())


def newest_runs(records: Sequence[Record[Any]]) -> list[Record[Any]]:
    """`records` by time; of jobs only the newest on a model, host and images.

    Of comparisons, those that `quantizer_comparison.newest_rows` keeps.
    """
    ordered = sorted(records, key=lambda row: row.time)
    jobs: dict[str, list[Record[Any]]] = {}
    for row in ordered:
        # benchmarks/int8.py makes rows that are told apart by their quantizer.
        if row.job and not isinstance(row.values, QuantizerComparison):
            jobs.setdefault(row.job, []).append(row)
    newest: dict[Any, str] = {}
    for name, rows in jobs.items():
        images = {str(row.data.get("sha256")) for row in select(rows, Accuracy)}
        newest[model_name(rows[0]), host_key(rows[0]), frozenset(images)] = name
    kept_jobs = set(newest.values())
    compared = {id(row) for row in newest_rows(ordered)}
    kept: list[Record[Any]] = []
    for row in ordered:
        if isinstance(row.values, QuantizerComparison):
            is_newest = id(row) in compared
        else:
            is_newest = row.job not in jobs or row.job in kept_jobs
        if is_newest:
            kept.append(row)
    return kept


def table_rows(records: Sequence[Record[Any]]) -> list[Row]:
    """The rows of `records`, which `newest_runs` has sorted."""
    hosts = host_names(records)
    timed = [_timed(row, hosts) for row in records if _is_timed(row)]
    judged = [_judged(row, hosts) for row in records if _is_judged(row)]
    costs: dict[str, Cost] = {}
    for counted in select(records, Cost):
        costs[_identity(counted.artifact)] = counted.values
    ratios = _ratios(records, hosts)
    rows: dict[tuple[str, ...], Row] = {}
    used: set[int] = set()
    for part in timed:
        beside = _nearest(part, judged)
        used.update(id(other.record) for other in beside if _is_same_run(part, other))
        accuracies: list[_Part | None] = [*beside] or [None]
        for accuracy in accuracies:
            row = _join(part, accuracy, costs, ratios)
            rows[row.key] = row
    for part in judged:
        if id(part.record) not in used:
            row = _join(part, part, costs, ratios)
            rows[row.key] = row
    for row in _compared(records, hosts):
        rows[row.key] = row
    return list(rows.values())


def model_name(record: Record[Any]) -> str:
    """The name of the Record's model, or of the second of two."""
    artifact = record.artifact
    if "name" not in artifact:
        artifact = part_of(artifact, "second")
    return one_line(artifact.get("name", ""))


def part_of(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object at `key` of a Record; empty where there is none."""
    inner = value.get(key)
    return inner if isinstance(inner, Mapping) else {}


def host_key(record: Record[Any]) -> tuple[str, ...]:
    """What tells the Record's host from others."""
    return tuple(str(record.host.get(key)) for key in HOST_KEYS)


def host_names(records: Sequence[Record[Any]]) -> dict[tuple[str, ...], str]:
    """A name for every host: its processor, with what tells it from another of that name."""
    facts = {host_key(record): record.host for record in records}
    plain = {key: _processor(host) for key, host in facts.items()}
    names: dict[tuple[str, ...], str] = {}
    for key, name in plain.items():
        if list(plain.values()).count(name) > 1:
            features = ", ".join(map(str, facts[key].get("int8") or ()))
            name = f"{name}, {features or facts[key].get('machine', '?')}"
        namesakes = sum(other.partition(" #")[0] == name for other in names.values())
        names[key] = f"{name} #{namesakes + 1}" if namesakes else name
    return names


def _processor(host: Mapping[str, Any]) -> str:
    return str(describe(host).get("processor") or host.get("kind") or "?")


def family_of(model: str) -> str:
    """The family in the catalog, by the part of the name before the first dot; "" if none."""
    variant = model.partition(".")[0]
    known = {spec.name: spec.family for spec in catalog.models()}
    return known.get(variant, "")


def _identity(artifact: Mapping[str, Any]) -> str:
    """What joins the Records of one file. A vendor's log may name no file."""
    name = f"{artifact.get('name')} {artifact.get('form')}"
    return str(artifact.get("sha256") or name) + str(artifact.get("variant", ""))


def _is_timed(record: Record[Any]) -> bool:
    return isinstance(record.values, Latency | BoardLatency)


def _is_judged(record: Record[Any]) -> bool:
    """Whether it is the accuracy of one model, perhaps beside another."""
    if isinstance(record.values, PairedAccuracy):
        # Of two models on one engine, each has a Record of its own.
        first, second = record.engine.get("first"), record.engine.get("second")
        return record.values.top1 is not None and bool(second) and first != second
    return isinstance(record.values, Accuracy | BoardAccuracy)


def _timed(record: Record[Any], hosts: Mapping[tuple[str, ...], str]) -> _Part:
    values = record.values
    if isinstance(values, BoardLatency):
        threads = "" if values.threads is None else str(values.threads)
        figures = {
            "threads": threads + _batch(values.batch),
            "ms": values.latency_ms,
            "fps": values.fps,
            "source": values.source,
        }
        return _part(record, values.target, figures, is_board=True)
    figures = {
        "threads": setting_text(values.setting),
        "ms": values.p50_ms,
        "ms_low": values.p50_low_ms,
        "ms_high": values.p50_high_ms,
        "fps": values.fps,
    }
    return _part(record, hosts[host_key(record)], figures)


def setting_text(setting: Setting) -> str:
    """Threads of a session, or clients and threads: "1", "2 x 1", "4, batch 8, offline"."""
    text = f"{setting.threads}"
    if setting.streams > 1:
        text = f"{setting.streams} x {setting.threads}"
    scenario = "" if setting.scenario == "closed-loop" else f", {setting.scenario}"
    return text + _batch(setting.batch) + scenario


def _batch(batch: int) -> str:
    return f", batch {batch}" if batch > 1 else ""


def _judged(record: Record[Any], hosts: Mapping[tuple[str, ...], str]) -> _Part:
    values = record.values
    figures: dict[str, Any] = {"n": values.n, "top1": values.top1}
    images = str(record.data.get("name", ""))
    if isinstance(values, PairedAccuracy):
        second = part_of(record.artifact, "second")
        figures["quantizer"] = str(second.get("variant", ""))
        return _part(record, hosts[host_key(record)], figures, images, is_board=True)
    figures |= {"top1_low": values.top1_low, "top1_high": values.top1_high}
    if isinstance(values, BoardAccuracy):
        figures |= {"source": values.source, "precision": values.precision}
        return _part(record, values.target, figures, images, is_board=True)
    return _part(record, hosts[host_key(record)], figures, images)


def _part(
    record: Record[Any],
    host: str,
    figures: Mapping[str, Any],
    images: str = "",
    is_board: bool = False,
) -> _Part:
    paired = isinstance(record.values, PairedAccuracy)
    artifact = part_of(record.artifact, "second") if paired else record.artifact
    engine = part_of(record.engine, "second") if paired else record.engine
    form = str(artifact.get("form", ""))
    # A maker's tool makes a model of its own from the file that it is given.
    precision = "" if is_board and form != "int8" else PRECISIONS.get(form, form)
    common = {
        "model": model_name(record),
        "precision": precision,
        "version": str(engine.get("version", "")),
        "sha256": str(artifact.get("sha256", "")),
        "date": record.time[: len("2000-01-01")],
    }
    return _Part(
        record=record,
        identity=_identity(artifact),
        engine=str(engine.get("name", "")),
        host=host,
        is_board=is_board,
        figures={**common, **figures},
        images=images,
    )


def _is_same_run(part: _Part, other: _Part) -> bool:
    return (part.engine, part.host) == (other.engine, other.host)


def _nearest(part: _Part, judged: Sequence[_Part]) -> list[_Part]:
    """The accuracies of the same file, one for each data set: those of the same engine first."""
    nearest: dict[str, _Part] = {}
    for other in judged:
        if other.identity != part.identity or other.is_board != part.is_board:
            continue
        # What one board's compiler makes of a file says nothing of another board.
        if part.is_board and other.host != part.host:
            continue
        known = nearest.get(other.images)
        if known is None or _closeness(part, other) >= _closeness(part, known):
            nearest[other.images] = other
    return list(nearest.values())


def _closeness(part: _Part, other: _Part) -> tuple[bool, bool]:
    return part.engine == other.engine, part.host == other.host


def _join(
    part: _Part,
    accuracy: _Part | None,
    costs: Mapping[str, Cost],
    ratios: Mapping[Any, LatencyRatio],
) -> Row:
    """The row of `part` with the accuracy, size and latency ratio of the same file."""
    fields = dict(part.figures)
    if accuracy is not None and accuracy is not part:
        for name in ("n", "top1", "top1_low", "top1_high"):
            fields[name] = accuracy.figures.get(name)
        fields["precision"] = fields["precision"] or accuracy.figures["precision"]
        if not part.is_board and not _is_same_run(part, accuracy):
            fields["accuracy_on"] = f"{accuracy.engine}, {accuracy.host}"
    cost = None if part.is_board else costs.get(part.identity)
    if cost is not None:
        fields["mb"] = cost.bytes / 1e6
        fields["macs"] = cost.macs / 1e6
        fields["parameters"] = cost.parameters / 1e6
    values = part.record.values
    if isinstance(values, Latency):
        place = (part.identity, part.engine, part.host, str(values.setting))
        ratio = ratios.get(place)
        if ratio is not None:
            fields["ratio"] = ratio.ratio
            fields["ratio_low"], fields["ratio_high"] = (
                ratio.ratio_low,
                ratio.ratio_high,
            )
    row = Row(
        engine=part.engine,
        host=part.host,
        images=accuracy.images if accuracy else "",
        family=family_of(fields["model"]),
        **fields,
    )
    return _printable(row)


def _printable(row: Row) -> Row:
    """`row` with None for what was not finite, and with text that prints as it stands."""
    changed: dict[str, Any] = {}
    for name, value in vars(row).items():
        if isinstance(value, float) and not math.isfinite(value):
            changed[name] = None
        elif isinstance(value, str):
            changed[name] = one_line(value)
    return dataclasses.replace(row, **changed)


def _ratios(
    records: Sequence[Record[Any]], hosts: Mapping[tuple[str, ...], str]
) -> dict[Any, LatencyRatio]:
    """Latency over the float model's by file, engine, host and setting."""
    ratios: dict[Any, LatencyRatio] = {}
    for record in select(records, LatencyRatio):
        first = part_of(record.artifact, "first")
        second = part_of(record.artifact, "second")
        # Two engines with one file, or a fold, are no question of precision.
        if second.get("form") != "deploy" or first.get("form") in ("deploy", "train"):
            continue
        place = (
            _identity(first),
            str(record.engine.get("name", "")),
            hosts[host_key(record)],
            str(record.values.setting),
        )
        ratios[place] = record.values
    return ratios


def _compared(
    records: Sequence[Record[Any]], hosts: Mapping[tuple[str, ...], str]
) -> list[Row]:
    """A row for each quantizer and engine of benchmarks/int8.py, and for the float model."""
    rows: list[Row] = []
    for record in newest_rows(records):
        for engine, measured in record.values.engines.items():
            common = Row(
                model=model_name(record),
                family=family_of(model_name(record)),
                engine=engine,
                version=str(record.engine.get(engine, "")),
                host=hosts[host_key(record)],
                images=str(record.data.get("gate", "")),
                n=measured.n,
                date=record.time[: len("2000-01-01")],
            )
            rows += _float_and_int8(common, record, measured)
    return [_printable(row) for row in rows]


def _float_and_int8(
    common: Row, record: Record[QuantizerComparison], measured: EngineComparison
) -> list[Row]:
    comparison = record.values
    in_float = dataclasses.replace(
        common,
        precision=PRECISIONS["deploy"],
        top1=measured.float_top1,
        mb=comparison.float_bytes / 1e6,
    )
    size = None if comparison.bytes is None else comparison.bytes / 1e6
    in_int8 = dataclasses.replace(
        common,
        precision=PRECISIONS["int8"],
        quantizer=comparison.recipe,
        # The interval is that of the drop, image by image: narrower than that of the accuracy.
        top1=measured.float_top1 - measured.drop,
        top1_low=measured.float_top1 - measured.drop_high,
        top1_high=measured.float_top1 - measured.drop_low,
        ratio=measured.latency_ratio,
        ratio_low=measured.latency_ratio_low,
        ratio_high=measured.latency_ratio_high,
        mb=size,
        sha256=str(record.artifact.get("sha256", "")),
    )
    return [in_float, in_int8]
