"""Candidates of `match` with their figures, from the catalog and from Records.

Pure but for reading the packaged catalog. Where several sources have a figure, a measurement comes
before a published one, and that before a vendor's estimate; among measurements the last counts,
among published ones the best. Figures that the catalog knows to be wrong do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from repzoo.artifact import Size, size_text
from repzoo.engines import DEFAULT_ENGINE
from repzoo.graph.tools.cost_result import Cost
from repzoo.measure.board import BoardAccuracy, BoardLatency
from repzoo.measure.match_hosts import THIS, MatchHost, machine_of
from repzoo.measure.matching import Basis, Evidence, MatchCandidate
from repzoo.measure.record import Record, select
from repzoo.measure.results import Accuracy, Latency
from repzoo.zoo import catalog
from repzoo.zoo.catalog import Figure, FigureSource, ModelSpec

PRECISIONS = {"deploy": "float32", "int8": "int8", "fp16": "fp16", "bf16": "bf16"}
PARAMETER_BYTES = {"float32": 4, "fp16": 2, "bf16": 2, "int8": 1}
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


@dataclass(frozen=True)
class _Model:
    """A model that candidates are made of; `spec` is None outside the catalog.

    Attributes:
        size: as Records are compared by it, such as "224x224".
        scale: pixels of the image over those that the catalog's counts are for.
    """

    name: str
    size: str
    spec: ModelSpec | None = None
    scale: float = 1.0


@dataclass
class _Measurements:
    """Figures of Records by model, precision and size."""

    latencies: dict[Key, Evidence] = field(default_factory=dict)
    accuracies: dict[Key, Evidence] = field(default_factory=dict)
    parameters: dict[Key, int] = field(default_factory=dict)
    macs: dict[Key, int] = field(default_factory=dict)


def match_candidates(
    hosts: Sequence[MatchHost], records: Sequence[Record[Any]], wanted: Wanted
) -> list[MatchCandidate]:
    """Every model in every number format on each of `hosts`, with the figures that are known.

    Args:
        hosts: of several, only models with a latency are listed.
        records: measured figures; those that are not finite are passed over.
        wanted: which figures count.
    """
    records = _in_time_order(records)
    candidates: list[MatchCandidate] = []
    for host in hosts:
        measured = _measurements(host, records, wanted)
        for model in _models(records, wanted):
            for precision in _precisions(model, host, measured):
                candidate = _candidate(model, precision, host, measured, wanted)
                if _is_worth_listing(candidate, host, len(hosts)):
                    candidates.append(candidate)
    return candidates


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


def _is_worth_listing(
    candidate: MatchCandidate, host: MatchHost, number_of_hosts: int
) -> bool:
    """Whether anything about the host is known; this machine can measure what it lacks."""
    if candidate.latency_ms is not None:
        return True
    if number_of_hosts > 1:
        return False
    return host.name == THIS or (host.machine is None and candidate.top1 is not None)


def _in_time_order(records: Iterable[Record[Any]]) -> list[Record[Any]]:
    """The Records, oldest first; those of the same time stay in the order of their files."""
    return sorted(records, key=lambda record: record.time)


def _models(records: Sequence[Record[Any]], wanted: Wanted) -> list[_Model]:
    """The models to choose from: the catalog's, or with images of the user's, those measured."""
    if wanted.images:
        return _measured_models(records, wanted)
    models: list[_Model] = []
    for spec in catalog.models():
        if wanted.families and spec.family not in wanted.families:
            continue
        own = spec.preprocess.size
        size = wanted.size or own
        scale = _pixels(size) / _pixels(own)
        models.append(_Model(spec.name, size_text(size), spec, scale))
    return models


def _measured_models(records: Sequence[Record[Any]], wanted: Wanted) -> list[_Model]:
    """The models whose accuracy on the wanted images is in `records`."""
    specs = {spec.name: spec for spec in catalog.models()}
    models: dict[tuple[str, str], _Model] = {}
    for record in select(records, Accuracy):
        name = _name(record)
        size = _size(record)
        spec = specs.get(name.partition(".")[0])
        is_wanted = wanted.size is None or size == size_text(wanted.size)
        if wanted.families and (spec is None or spec.family not in wanted.families):
            is_wanted = False
        if is_wanted and record.data.get("sha256") == wanted.images:
            # Its counts are those of another number of classes than the catalog's.
            models[name, size] = _Model(name, size)
    return list(models.values())


def _precisions(
    model: _Model, host: MatchHost, measured: _Measurements
) -> tuple[str, ...]:
    """The number formats of `model` that are worth a row on `host`."""
    figures = {**measured.latencies, **measured.accuracies}
    precisions: dict[str, None] = {}
    if host.name == THIS and model.spec is not None:
        # Both can be measured here.
        precisions.update({"float32": None, "int8": None})
    if host.machine is None:
        for source in _sources_of(host).values():
            precisions[source.precision] = None
    for name, precision, size in figures:
        if (name, size) == (model.name, model.size):
            precisions[precision] = None
    return tuple(precisions)


def _candidate(
    model: _Model,
    precision: str,
    host: MatchHost,
    measured: _Measurements,
    wanted: Wanted,
) -> MatchCandidate:
    key = (model.name, precision, model.size)
    latency = measured.latencies.get(key)
    if latency is None or latency.basis == "vendor's estimate":
        latency = _published_latency(model, precision, host, wanted) or latency
    top1 = measured.accuracies.get(key)
    if top1 is None:
        top1 = _published_top1(model, precision, host)
    return MatchCandidate(
        model.name,
        precision,
        host.name,
        model.size,
        top1,
        latency,
        _weights(model, key, measured),
        _macs(model, key, measured),
    )


# Records


def _measurements(
    host: MatchHost, records: Sequence[Record[Any]], wanted: Wanted
) -> _Measurements:
    """The figures of `records` that were measured on `host` as `wanted` says."""
    measured = _Measurements()
    for record in records:
        values = record.values
        if isinstance(values, Latency):
            _add_latency(measured, record, host, wanted)
        elif isinstance(values, BoardLatency):
            _add_board_latency(measured, record, host, wanted)
        elif isinstance(values, Accuracy):
            _add_accuracy(measured, record, host, wanted)
        elif isinstance(values, BoardAccuracy):
            _add_board_accuracy(measured, record, host, wanted)
        elif isinstance(values, Cost):
            _add_cost(measured, record)
    return measured


def _add_latency(
    measured: _Measurements, record: Record[Latency], host: MatchHost, wanted: Wanted
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
    measured: _Measurements,
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
    measured: _Measurements, record: Record[Accuracy], host: MatchHost, wanted: Wanted
) -> None:
    # Without images of the user's, only figures on ImageNet count: see `_published_top1`.
    if not wanted.images or record.data.get("sha256") != wanted.images:
        return
    key = _key(record, wanted)
    if key is None or not _is_percent(record.values.top1):
        return
    is_here = machine_of(record.host) == host.machine and host.name == THIS
    basis: Basis = "measured here" if is_here else "measured elsewhere"
    source = f"{record.data.get('name', '')}, {record.values.n} images"
    measured.accuracies[key] = Evidence(record.values.top1, basis, source)


def _add_board_accuracy(
    measured: _Measurements,
    record: Record[BoardAccuracy],
    host: MatchHost,
    wanted: Wanted,
) -> None:
    values = record.values
    if values.target != host.name or not _is_percent(values.top1):
        return
    # A log does not say which images it is of. A model of ImageNet's classes was run on ImageNet.
    if wanted.images or record.artifact.get("classes") != 1000:
        return
    images = "an unknown number of" if values.n is None else str(values.n)
    evidence = Evidence(
        values.top1, _board_basis(values.source), f"{host.name}, {images} images"
    )
    for key in _board_keys(record, wanted):
        measured.accuracies[key] = evidence


def _add_cost(measured: _Measurements, record: Record[Cost]) -> None:
    form = record.artifact.get("form")
    precision = PRECISIONS.get(form) if isinstance(form, str) else None
    if precision is None:
        return
    key = (_name(record), precision, _size(record))
    # The INT8 graph holds scales and zero points besides; parameters are those of the float one.
    if precision == "float32":
        for other in PARAMETER_BYTES:
            measured.parameters[key[0], other, key[2]] = record.values.parameters
            measured.macs[key[0], other, key[2]] = record.values.macs


def _key(record: Record[Any], wanted: Wanted) -> Key | None:
    """Model, precision and size of a Record; None of a form or class count that does not count."""
    form = record.artifact.get("form")
    precision = PRECISIONS.get(form) if isinstance(form, str) else None
    if precision is None:
        return None
    # Models of ImageNet are compared; a head of other classes has another size and accuracy.
    if not wanted.images and record.artifact.get("classes") != 1000:
        return None
    return _name(record), precision, _size(record)


def _board_keys(record: Record[Any], wanted: Wanted) -> list[Key]:
    """What a board's Record is about. It may lack the size: it is then the model's own."""
    if record.artifact.get("classes") not in (None, 1000) and not wanted.images:
        return []
    name = _name(record)
    size = _size(record)
    if not size:
        specs = {spec.name: spec for spec in catalog.models()}
        if name not in specs:
            return []
        size = size_text(specs[name].preprocess.size)
    # What a board's tools compile is INT8 unless they say otherwise.
    precision = getattr(record.values, "precision", "") or "int8"
    return [(name, precision, size)]


def _name(record: Record[Any]) -> str:
    return str(record.artifact.get("name", ""))


def _size(record: Record[Any]) -> str:
    size = record.artifact.get("size")
    if isinstance(size, int):
        return size_text(size)
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    return size_text((size[0], size[1])) if is_pair else ""


def _where(host: MatchHost) -> Basis:
    return "measured here" if host.name == THIS else "measured elsewhere"


def _board_basis(source: str) -> Basis:
    return "board log" if source == "board log" else "vendor's estimate"


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _is_percent(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= 100


# The catalog


def _sources_of(host: MatchHost) -> Mapping[str, FigureSource]:
    """The sources of figures of a device, by their keys."""
    known = catalog.sources()
    return {key: source for key, source in known.items() if source.host == host.name}


def _figures(model: _Model, name: str) -> list[tuple[Figure, FigureSource]]:
    """The published figures of `model` that have the field `name`, at its size."""
    if model.spec is None:
        return []
    own = model.spec.preprocess.size
    found: list[tuple[Figure, FigureSource]] = []
    for figure in model.spec.figures:
        size = size_text(figure.size or own)
        if getattr(figure, name) is None or name in figure.wrong or size != model.size:
            continue
        found.append((figure, catalog.sources()[figure.source]))
    return found


def _published_latency(
    model: _Model, precision: str, host: MatchHost, wanted: Wanted
) -> Evidence | None:
    """The latency that a device's source gives for the wanted number of threads."""
    if host.machine is not None:
        return None
    names = ["latency_1thread_ms", "latency_ms"] if wanted.threads == 1 else []
    for name in [*names, "latency_multithread_ms"]:
        for figure, source in _figures(model, name):
            if (source.host, source.precision) != (host.name, precision):
                continue
            is_saturated = name == "latency_multithread_ms"
            if is_saturated and source.saturating_threads != wanted.threads:
                continue
            return _published(figure, name, source)
    return None


def _published_top1(model: _Model, precision: str, host: MatchHost) -> Evidence | None:
    """The best published Top-1: of a device that runs INT8, its own; else the authors' of float."""
    if host.machine is None and precision != "float32":
        figures: list[tuple[Figure, FigureSource]] = []
        for figure, source in _figures(model, "int8_top1"):
            if (source.host, source.precision) == (host.name, precision):
                figures.append((figure, source))
        return _best(figures, "int8_top1")
    floats = _figures(model, "top1")
    # A board's maker exports weights anew; its float figure is not that of the weights one gets.
    authors = [pair for pair in floats if pair[1].precision != "int8"]
    best = _best(authors or floats, "top1")
    if best is None or precision == "float32":
        return best
    return Evidence(best.value, "published for the float model", best.source)


def _best(figures: Sequence[tuple[Figure, FigureSource]], name: str) -> Evidence | None:
    if not figures:
        return None
    figure, source = max(figures, key=lambda pair: float(getattr(pair[0], name)))
    return _published(figure, name, source)


def _published(figure: Figure, name: str, source: FigureSource) -> Evidence:
    setting = f" ({figure.setting})" if figure.setting else ""
    is_board = source.precision == "int8" and name != "top1"
    basis: Basis = "published for the board" if is_board else "published"
    return Evidence(float(getattr(figure, name)), basis, f"{source.title}{setting}")


def _weights(model: _Model, key: Key, measured: _Measurements) -> Evidence | None:
    parameters = measured.parameters.get(key)
    if model.spec is not None:
        parameters = model.spec.parameters_deploy
    if parameters is None:
        return None
    return Evidence(parameters * PARAMETER_BYTES[key[1]] / 1e6, "counted", key[1])


def _macs(model: _Model, key: Key, measured: _Measurements) -> Evidence | None:
    if model.spec is not None and model.scale == 1:
        return Evidence(float(model.spec.macs), "counted")
    if key in measured.macs:
        return Evidence(float(measured.macs[key]), "counted")
    if model.spec is None:
        return None
    # Convolutions take nearly all of it, and grow with the area.
    usual = size_text(model.spec.preprocess.size)
    return Evidence(model.spec.macs * model.scale, "scaled", f"from {usual}")


def _pixels(size: Size) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    return height * width
