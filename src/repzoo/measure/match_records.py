"""Figures of Records for `match`: latencies of one host, accuracies on given images, counts.

Among measurements of the same model the last counts. Figures that cannot be what they are called,
such as a latency of NaN, are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from repzoo.artifact import size_text
from repzoo.engines import DEFAULT_ENGINE
from repzoo.graph.tools.cost_result import Cost
from repzoo.measure.board import BoardAccuracy, BoardLatency
from repzoo.measure.match_hosts import THIS, MatchHost, machine_of, this_machine
from repzoo.measure.matching import Basis, Evidence
from repzoo.measure.record import Record
from repzoo.measure.results import Accuracy, Latency
from repzoo.zoo import catalog

PRECISIONS = {"deploy": "float32", "int8": "int8", "fp16": "fp16", "bf16": "bf16"}
PARAMETER_BYTES = {"float32": 4, "fp16": 2, "bf16": 2, "int8": 1}
IMAGENET_CLASSES = 1000
# Scenarios whose latency is that of a single call.
SINGLE_CALLS = ("closed-loop", "single-stream")

Key = tuple[str, str, str]  # model, precision, size


@dataclass(frozen=True)
class Wanted:
    """Which figures count.

    Attributes:
        engine: of measurements on machines; devices have their own.
        threads: of a session, or threads that call a board at once.
        size: of the image in pixels; None: each model's own.
        families: of the catalog; empty: all.
        images: SHA-256 of the images that Top-1 must be measured on, as Records have it; "":
            ImageNet's, as published.
    """

    engine: str = DEFAULT_ENGINE
    threads: int = 1
    size: int | None = None
    families: tuple[str, ...] = ()
    images: str = ""


@dataclass
class Measurements:
    """Figures of Records by model, precision and size."""

    latencies: dict[Key, Evidence] = field(default_factory=dict)
    accuracies: dict[Key, Evidence] = field(default_factory=dict)
    parameters: dict[Key, int] = field(default_factory=dict)
    macs: dict[Key, int] = field(default_factory=dict)


def read_measurements(
    host: MatchHost, records: Sequence[Record[Any]], wanted: Wanted
) -> Measurements:
    """The figures of `records` that were measured on `host` as `wanted` says."""
    measured = Measurements()
    for record in records:
        values = record.values
        if isinstance(values, Latency):
            _add_latency(measured, record, host, wanted)
        elif isinstance(values, BoardLatency):
            _add_board_latency(measured, record, host, wanted)
        elif isinstance(values, Accuracy):
            _add_accuracy(measured, record, wanted)
        elif isinstance(values, BoardAccuracy):
            _add_board_accuracy(measured, record, host, wanted)
        elif isinstance(values, Cost):
            _add_cost(measured, record, wanted)
    return measured


def _add_latency(
    measured: Measurements, record: Record[Latency], host: MatchHost, wanted: Wanted
) -> None:
    setting = record.values.setting
    is_single = setting.scenario in SINGLE_CALLS and setting.streams == 1
    if not is_single or setting.batch != 1 or setting.threads != wanted.threads:
        return
    if host.machine is None or machine_of(record.host) != host.machine:
        return
    key = _key(record, wanted)
    milliseconds = record.values.p50_ms
    if record.engine.get("name") != wanted.engine or not _is_positive(milliseconds):
        return
    if key is not None:
        basis = _where(host)
        measured.latencies[key] = Evidence(milliseconds, basis, host.name)


def _add_board_latency(
    measured: Measurements,
    record: Record[BoardLatency],
    host: MatchHost,
    wanted: Wanted,
) -> None:
    values = record.values
    if values.target != host.name or values.batch != 1:
        return
    if values.threads not in (None, wanted.threads):
        return
    if values.latency_ms is None or not _is_positive(values.latency_ms):
        return
    basis = _board_basis(values.source)
    for key in _board_keys(record, wanted):
        known = measured.latencies.get(key)
        # A compiler's estimate never replaces what a board measured.
        if known is None or basis == "board log" or known.basis == basis:
            measured.latencies[key] = Evidence(values.latency_ms, basis, host.name)


def _add_accuracy(
    measured: Measurements, record: Record[Accuracy], wanted: Wanted
) -> None:
    # Without images of the user's, only figures on ImageNet count: see `match_figures`.
    if not wanted.images or record.data.get("sha256") != wanted.images:
        return
    key = _key(record, wanted)
    if key is None or not _is_percent(record.values.top1):
        return
    is_here = machine_of(record.host) == this_machine().machine
    basis: Basis = "measured here" if is_here else "measured elsewhere"
    source = f"{record.data.get('name', '')}, {record.values.n} images"
    measured.accuracies[key] = Evidence(record.values.top1, basis, source)


def _add_board_accuracy(
    measured: Measurements,
    record: Record[BoardAccuracy],
    host: MatchHost,
    wanted: Wanted,
) -> None:
    values = record.values
    if values.target != host.name or not _is_percent(values.top1):
        return
    # A log does not say which images it is of. A model of ImageNet's classes was run on ImageNet.
    if wanted.images or record.artifact.get("classes") != IMAGENET_CLASSES:
        return
    images = "an unknown number of" if values.n is None else str(values.n)
    evidence = Evidence(
        values.top1, _board_basis(values.source), f"{host.name}, {images} images"
    )
    for key in _board_keys(record, wanted):
        measured.accuracies[key] = evidence


def _add_cost(measured: Measurements, record: Record[Cost], wanted: Wanted) -> None:
    # Those of the float graph count for all formats: an INT8 graph also holds scales.
    if record.artifact.get("form") != "deploy":
        return
    for precision in PARAMETER_BYTES:
        key = (model_name(record, wanted), precision, image_size(record))
        measured.parameters[key] = record.values.parameters
        measured.macs[key] = record.values.macs


def _key(record: Record[Any], wanted: Wanted) -> Key | None:
    """Model, precision and size of a Record; None of a form or class count that does not count."""
    form = record.artifact.get("form")
    precision = PRECISIONS.get(form) if isinstance(form, str) else None
    if precision is None:
        return None
    # Models of ImageNet are compared; a head of other classes has another size and accuracy.
    if not wanted.images and record.artifact.get("classes") != IMAGENET_CLASSES:
        return None
    return model_name(record, wanted), precision, image_size(record)


def _board_keys(record: Record[Any], wanted: Wanted) -> list[Key]:
    """What a board's Record is about. It may lack the size: it is then the model's own."""
    if (
        record.artifact.get("classes") not in (None, IMAGENET_CLASSES)
        and not wanted.images
    ):
        return []
    name = model_name(record, wanted)
    size = image_size(record)
    if not size:
        specs = {spec.name: spec for spec in catalog.models()}
        if name not in specs:
            return []
        size = size_text(specs[name].preprocess.size)
    # What a board's tools compile is INT8 unless they say otherwise.
    precision = getattr(record.values, "precision", "") or "int8"
    return [(name, precision, size)]


def model_name(record: Record[Any], wanted: Wanted) -> str:
    """The name of the Record's model; without images of the user's, that of its variant.

    Other weights of a variant, such as `repghostnet_100.in1k`, take the same time.
    """
    name = str(record.artifact.get("name", ""))
    return name if wanted.images else name.partition(".")[0]


def image_size(record: Record[Any]) -> str:
    """The size of the model's images, such as "224x224"; "" where the Record does not say."""
    size = record.artifact.get("size")
    if isinstance(size, int):
        return size_text(size)
    if isinstance(size, list | tuple) and len(size) == 2:
        return size_text((size[0], size[1]))
    return ""


def _where(host: MatchHost) -> Basis:
    return "measured here" if host.name == THIS else "measured elsewhere"


def _board_basis(source: str) -> Basis:
    return "board log" if source == "board log" else "vendor's estimate"


def unusable_records(records: Iterable[Record[Any]]) -> int:
    """How many of `records` hold a latency or an accuracy that cannot be one, such as NaN."""
    count = 0
    for record in records:
        values = record.values
        if isinstance(values, Latency):
            count += not _is_positive(values.p50_ms)
        elif isinstance(values, BoardLatency) and values.latency_ms is not None:
            count += not _is_positive(values.latency_ms)
        elif isinstance(values, Accuracy | BoardAccuracy):
            count += not _is_percent(values.top1)
    return count


def in_time_order(records: Iterable[Record[Any]]) -> list[Record[Any]]:
    """The Records, oldest first; those of the same time stay in the order of their files."""
    return sorted(records, key=lambda record: record.time)


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _is_percent(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= 100
