"""Candidates of `match` with their figures, from the catalog and from Records.

Pure but for reading the packaged catalog. Where several sources have a figure, a measurement comes
before a published one, and that before a vendor's estimate; among measurements the last counts,
among published ones the best. Figures that the catalog knows to be wrong do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repzoo.artifact import Size, size_text
from repzoo.measure.match_hosts import THIS, MatchHost
from repzoo.measure.match_records import (
    PARAMETER_BYTES,
    Key,
    Measurements,
    Wanted,
    image_size,
    in_time_order,
    model_name,
    read_measurements,
)
from repzoo.measure.matching import Basis, Evidence, MatchCandidate
from repzoo.measure.record import Record, select
from repzoo.measure.results import Accuracy
from repzoo.zoo import catalog
from repzoo.zoo.catalog import Figure, FigureSource, ModelSpec


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


def match_candidates(
    hosts: Sequence[MatchHost], records: Sequence[Record[Any]], wanted: Wanted
) -> list[MatchCandidate]:
    """Every model in every number format on each of `hosts`, with the figures that are known.

    Args:
        hosts: of several, only models with a latency are listed.
        records: measured figures; those that are not finite are passed over.
        wanted: which figures count.
    """
    records = in_time_order(records)
    candidates: list[MatchCandidate] = []
    models = _models(records, wanted)
    for host in hosts:
        measured = read_measurements(host, records, wanted)
        for model in models:
            for precision in _precisions(model, host, measured):
                candidate = _candidate(model, precision, host, measured, wanted)
                if _is_worth_listing(candidate, host, len(hosts)):
                    candidates.append(candidate)
    return candidates


def _is_worth_listing(
    candidate: MatchCandidate, host: MatchHost, number_of_hosts: int
) -> bool:
    """Whether anything about the host is known; this machine can measure what it lacks."""
    if candidate.latency_ms is not None:
        return True
    if number_of_hosts > 1:
        return False
    return host.name == THIS or (host.machine is None and candidate.top1 is not None)


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
        name = model_name(record, wanted)
        size = image_size(record)
        spec = specs.get(name.partition(".")[0])
        is_wanted = wanted.size is None or size == size_text(wanted.size)
        if wanted.families and (spec is None or spec.family not in wanted.families):
            is_wanted = False
        if is_wanted and record.data.get("sha256") == wanted.images:
            # Its counts are those of another number of classes than the catalog's.
            models[name, size] = _Model(name, size)
    return list(models.values())


def _precisions(
    model: _Model, host: MatchHost, measured: Measurements
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
    measured: Measurements,
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


def _sources_of(host: MatchHost) -> Mapping[str, FigureSource]:
    """The sources of figures of a device, by their keys."""
    known = catalog.sources()
    return {key: source for key, source in known.items() if source.host == host.name}


def _figures(model: _Model, name: str) -> list[tuple[Figure, FigureSource]]:
    """The published figures of `model` that have the field `name`, at its size."""
    if model.spec is None:
        return []
    own = model.spec.preprocess.size
    figures: list[tuple[Figure, FigureSource]] = []
    for figure in model.spec.figures:
        size = size_text(figure.size or own)
        if getattr(figure, name) is None or name in figure.wrong or size != model.size:
            continue
        figures.append((figure, catalog.sources()[figure.source]))
    return figures


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


def _weights(model: _Model, key: Key, measured: Measurements) -> Evidence | None:
    parameters = measured.parameters.get(key)
    if model.spec is not None:
        parameters = model.spec.parameters_deploy
    if parameters is None:
        return None
    return Evidence(parameters * PARAMETER_BYTES[key[1]] / 1e6, "counted", key[1])


def _macs(model: _Model, key: Key, measured: Measurements) -> Evidence | None:
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
