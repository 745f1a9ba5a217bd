"""What the page says of one model when it is opened: sections with tables, from its Records.

A section is plain data: a title, headings and rows. Titles, headings and `word(...)` cells are keys
of page.toml; other cells are text of a Record, or figures printed as cards print them.
A section whose figures no Record holds is left out, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from repzoo.measure.record import Record
from repzoo.printable import one_line
from repzoo.report import page_measured, page_quantized
from repzoo.report.page_cells import Cell, Hosts, Section, form_of, table, word
from repzoo.report.page_rows import host_key


def sections(records: Sequence[Record[Any]], hosts: Hosts) -> list[Section]:
    """The sections of one model's `records`; of those without figures only the title."""
    built: list[Section] = []
    for title, build in SECTIONS.items():
        built.append({"title": title, **build(records, hosts)})
    return built


def _provenance(records: Sequence[Record[Any]], hosts: Hosts) -> Section:
    """Every file, data set, engine and host that a figure rests on; each once."""
    rows: dict[tuple[str, ...], list[Cell]] = {}

    def add(kind: str, name: object, detail: object) -> None:
        """Note it, unless it is there."""
        shown = (kind, one_line(name), one_line(detail))
        rows.setdefault(shown, [word(kind), shown[1], shown[2]])

    for record in records:
        for artifact in _artifacts(record):
            add("file", form_of(artifact), artifact.get("sha256") or "")
    for record in records:
        data = record.data
        name = data.get("name") or data.get("log") or data.get("calibration")
        if name:
            add("images", name, data.get("sha256") or "")
    for record in records:
        add("host", hosts[host_key(record)], _software(record.host))
    for job, times in _times(records).items():
        add("run", " … ".join(dict.fromkeys([min(times), max(times)])), job)
    return table(("what", "name", "detail"), list(rows.values()))


def _times(records: Sequence[Record[Any]]) -> dict[str, list[str]]:
    """When the Records of each job were made."""
    times: dict[str, list[str]] = {}
    for record in records:
        times.setdefault(record.job, []).append(record.time)
    return times


def _artifacts(record: Record[Any]) -> list[Mapping[str, Any]]:
    if "name" in record.artifact:
        return [record.artifact]
    return [item for item in record.artifact.values() if isinstance(item, Mapping)]


def _software(host: Mapping[str, Any]) -> str:
    versions = []
    for key in ("system", "repzoo", "python", "numpy"):
        if key in host:
            versions.append(f"{host[key]}" if key == "system" else f"{key} {host[key]}")
    return ", ".join(versions)


Build = Callable[[Sequence[Record[Any]], Hosts], Section]
# The titles are keys of page.toml; their order is that of the page.
SECTIONS: dict[str, Build] = {
    "accuracy": page_measured.accuracy,
    "float_and_int8": page_measured.float_and_int8,
    "latency": page_measured.latency,
    "ratios": page_measured.ratios,
    "size": page_measured.size,
    "fold": page_quantized.fold,
    "candidates": page_quantized.candidates,
    "placements": page_quantized.placements,
    "noise": page_quantized.noise,
    "in_float": page_quantized.in_float,
    "similarity": page_quantized.similarity,
    "flips": page_measured.flips,
    "classes": page_measured.classes,
    "provenance": _provenance,
}
