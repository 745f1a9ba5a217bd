"""The view of `repzoo bench`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from repzoo.console.output import View, make_table
from repzoo.measure.record import Record, share_of, to_json
from repzoo.measure.results import Latency, LatencyRatio
from repzoo.measure.sentences import ratio_sentence
from repzoo.measure.sweep import SweepResult
from repzoo.report import figures

NUMBER_COLUMNS = ("threads", "streams", "batch")


def bench(result: SweepResult) -> View:
    """A row for each case, a sentence for each comparison, and remarks on what to doubt."""
    rows = [_row(record) for record in result.records]
    # What all cases share stands in a line above the table instead of in a column.
    columns = [name for name in rows[0] if len({row[name] for row in rows}) > 1]
    shared = [
        f"{name} {value}" for name, value in rows[0].items() if name not in columns
    ]
    lines = [
        *_int8_lines(result.records),
        *_early_stopping_lines(result.records),
        *_comparison_lines(result.ratios),
    ]
    return View(
        _document(result),
        ", ".join(shared),
        _table(result.records, rows, columns),
        *lines,
        remarks=[*map(str, result.left_out), *result.remarks],
    )


def _row(record: Record[Latency]) -> dict[str, Any]:
    """What identifies a case, by column."""
    setting = dataclasses.asdict(record.values.setting)
    return {"file": record.artifact["name"], "engine": record.engine["name"], **setting}


def _table(
    records: Sequence[Record[Latency]],
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
) -> Table:
    headings = [f">{name}" if name in NUMBER_COLUMNS else name for name in columns]
    table = make_table(*headings, ">p50 ms", ">p90", ">p99", ">FPS")
    for record, row in zip(records, rows, strict=True):
        latency = record.values
        percentiles = map(figures.ms, (latency.p50_ms, latency.p90_ms, latency.p99_ms))
        cells = [str(row[name]) for name in columns]
        table.add_row(*cells, *percentiles, figures.rate(latency.fps))
    return table


def _document(result: SweepResult) -> dict[str, Any]:
    runs = []
    for record in result.records:
        names = {
            "file": record.artifact["name"],
            "engine": record.engine["name"],
            "version": record.engine["version"],
        }
        run = {**names, **to_json(record.values), **record.samples, "host": record.host}
        share = share_of(record.artifact)
        if share is not None:
            run["int8"] = to_json(share)
        runs.append(run)
    return {
        "runs": runs,
        "ratios": [
            {**_sides(record), **to_json(record.values)} for record in result.ratios
        ],
        "left_out": [dataclasses.asdict(item) for item in result.left_out],
        "remarks": result.remarks,
        "interrupted": result.interrupted,
    }


def _int8_lines(records: Sequence[Record[Latency]]) -> list[str]:
    """How much of each quantized file runs in INT8, once for each file."""
    # A file has a case for each setting, but its share does not depend on them.
    lines: dict[str, None] = {}
    for record in records:
        share = share_of(record.artifact)
        if share is not None:
            lines[f"{record.artifact['name']}: {share}"] = None
    return list(lines)


def _early_stopping_lines(records: Sequence[Record[Latency]]) -> list[str]:
    """MLPerf's early-stopping estimate of each single-stream and multi-stream run."""
    lines = []
    for record in records:
        stopping = record.values.early_stopping
        if stopping is None:
            continue
        figure = f"needs more than {record.values.samples} queries"
        # From too few queries MLPerf gives no estimate.
        if stopping.ms:
            figure = f"{figures.ms(stopping.ms)} ms"
        case = f"{record.artifact['name']} on {record.engine['name']}"
        rank = f"p{100 * stopping.percentile:.0f} by MLPerf's early stopping"
        lines.append(f"{case}, {record.values.setting.scenario}: {rank} {figure}")
    return lines


def _sides(record: Record[LatencyRatio]) -> dict[str, str]:
    """The names of both sides of a comparison and of their engines."""
    return {
        "first": record.artifact["first"]["name"],
        "second": record.artifact["second"]["name"],
        "first_engine": record.engine["name"],
        "second_engine": record.engine["second"]["name"],
    }


def _comparison_lines(ratios: Sequence[Record[LatencyRatio]]) -> list[str]:
    """A sentence for each comparison. It names engines and settings only where they differ."""
    engines = set()
    for record in ratios:
        sides = _sides(record)
        engines |= {sides["first_engine"], sides["second_engine"]}
    # What all comparisons share would only make the sentences longer.
    has_settings = len({record.values.setting for record in ratios}) > 1
    lines = []
    for record in ratios:
        sentence = _comparison(record, with_engines=len(engines) > 1)
        lines.append(
            f"{record.values.setting}: {sentence}" if has_settings else sentence
        )
    return lines


def _comparison(record: Record[LatencyRatio], with_engines: bool) -> str:
    """The ratio of both sides in a sentence, with its interval."""
    sides = _sides(record)
    first, second = sides["first"], sides["second"]
    if with_engines:
        first += f" on {sides['first_engine']}"
        second += f" on {sides['second_engine']}"
    return ratio_sentence(record.values, first, second)
