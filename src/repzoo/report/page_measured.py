"""Sections of the page on one model: accuracy, latency, size, and what INT8 answers differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repzoo.graph.tools.cost_result import Cost
from repzoo.measure.board import BoardAccuracy, BoardLatency
from repzoo.measure.comparison_results import QuantizerComparison
from repzoo.measure.record import Record, select
from repzoo.measure.results import (
    Accuracy,
    ExpectedDrop,
    Latency,
    LatencyRatio,
    PairedAccuracy,
)
from repzoo.printable import one_line
from repzoo.report import figures
from repzoo.report.page_cells import (
    Cell,
    Hosts,
    Section,
    engine_of,
    figure,
    form_of,
    interval,
    number,
    table,
    word,
)
from repzoo.report.page_rows import host_key, part_of, setting_text

MAX_FLIPS = 60  # of a model; thousands would make the page slow and tell no more


def accuracy(records: Sequence[Record[Any]], hosts: Hosts) -> Section:
    """Top-1 and Top-5 of every form, engine, host and data set; those of boards too."""
    rows: list[list[Cell]] = []
    for record in select(records, Accuracy):
        values = record.values
        rows.append(
            [
                form_of(record.artifact),
                engine_of(record.engine),
                hosts[host_key(record)],
                one_line(record.data.get("name", "")),
                str(values.n),
                interval(
                    figures.percent, values.top1, values.top1_low, values.top1_high
                ),
                interval(
                    figures.percent, values.top5, values.top5_low, values.top5_high
                ),
            ]
        )
    for board in select(records, BoardAccuracy):
        on_board = board.values
        rows.append(
            [
                one_line(on_board.precision),
                f"{engine_of(board.engine)} ({on_board.source})",
                one_line(on_board.target),
                one_line(board.data.get("log", "")),
                number(on_board.n),
                interval(
                    figures.percent,
                    on_board.top1,
                    on_board.top1_low,
                    on_board.top1_high,
                ),
                figure(figures.percent, on_board.top5),
            ]
        )
    return table(("precision", "engine", "host", "images", "n", "top1", "top5"), rows)


def float_and_int8(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """Every model against the float model on the same images."""
    rows: list[list[Cell]] = []
    for record in select(records, PairedAccuracy):
        second = part_of(record.artifact, "second")
        engine = part_of(record.engine, "second") or record.engine
        name = str(second.get("variant") or form_of(second))
        rows.append([one_line(name), engine_of(engine), *_paired(record.values)])
    for comparison in select(records, QuantizerComparison):
        for engine_name, values in comparison.values.engines.items():
            name = one_line(comparison.values.recipe)
            rows.append([name, one_line(engine_name), *_paired(values)])
        if not comparison.values.engines:
            reason = one_line(comparison.values.reason)
            rows.append([one_line(comparison.values.recipe), reason, *[""] * 6])
    head = ("second", "engine", "n", "drop", "expected", "same", "lost_gained", "snr")
    return table(head, rows)


def _paired(values: Any) -> list[Cell]:
    """The cells of a PairedAccuracy or an EngineComparison."""
    lost, gained = getattr(values, "lost", None), getattr(values, "gained", None)
    return [
        str(values.n),
        interval(figures.points, values.drop, values.drop_low, values.drop_high),
        _expected(values.expected),
        figures.percent(values.same_prediction),
        "" if lost is None else f"{lost} / {gained}",
        figure(figures.percent, values.logits_snr_db),
    ]


def _expected(expected: ExpectedDrop | None) -> str:
    if expected is None:
        return ""
    return interval(figures.points, expected.drop, *expected.drop_interval())


def latency(records: Sequence[Record[Any]], hosts: Hosts) -> Section:
    """Latency of every form, engine, host and setting; that of boards too."""
    rows: list[list[Cell]] = []
    for record in select(records, Latency):
        values = record.values
        rows.append(
            [
                form_of(record.artifact),
                engine_of(record.engine),
                hosts[host_key(record)],
                setting_text(values.setting),
                interval(
                    figures.ms, values.p50_ms, values.p50_low_ms, values.p50_high_ms
                ),
                figures.ms(values.p90_ms),
                figures.ms(values.p99_ms),
                figures.rate(values.fps),
                _steady(values.steady),
            ]
        )
    for board in select(records, BoardLatency):
        on_board = board.values
        rows.append(
            [
                "",
                f"{engine_of(board.engine)} ({on_board.source})",
                one_line(on_board.target),
                number(on_board.threads),
                figure(figures.ms, on_board.latency_ms),
                "",
                "",
                figure(figures.rate, on_board.fps),
                "",
            ]
        )
    head = ("precision", "engine", "host", "threads", "ms", "p90", "p99", "fps")
    return table((*head, "steady"), rows)


def _steady(steady: bool | None) -> Cell:
    return "" if steady is None else word("yes" if steady else "no")


def ratios(records: Sequence[Record[Any]], hosts: Hosts) -> Section:
    """Latency of one form over that of another."""
    rows: list[list[Cell]] = []
    for record in select(records, LatencyRatio):
        values = record.values
        sides = [part_of(record.artifact, side) for side in ("first", "second")]
        rows.append(
            [
                " / ".join(map(form_of, sides)),
                engine_of(record.engine),
                hosts[host_key(record)],
                setting_text(values.setting),
                interval(
                    figures.ratio_of, values.ratio, values.ratio_low, values.ratio_high
                ),
            ]
        )
    return table(("pair", "engine", "host", "threads", "ratio"), rows)


def size(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """Parameters, MACs and bytes of every form."""
    rows: list[list[Cell]] = []
    for record in select(records, Cost):
        values = record.values
        rows.append(
            [
                form_of(record.artifact),
                figures.millions(values.parameters),
                f"{values.macs / 1e6:.1f}",
                f"{values.bytes / 1e6:.2f}",
                str(values.nodes),
            ]
        )
    return table(("precision", "parameters", "macs", "mb", "nodes"), rows)


def flips(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """The images that float and INT8 answer differently, by name: Records hold no pictures."""
    rows: list[list[Cell]] = []
    for record in select(records, PairedAccuracy):
        for flip in record.samples.get("flips", ()):
            labels = [_label(flip, side) for side in ("target", "first", "second")]
            rows.append([one_line(flip.get("key", "")), *labels])
    shown = rows[:MAX_FLIPS]
    section = table(("image", "truth", "float_says", "int8_says"), shown)
    left = len(rows) - len(shown)
    if left:
        section["note"] = {
            "en": f"{left} more are in the Records.",
            "zh": f"另有 {left} 张见记录。",
        }
    return section


def _label(flip: Mapping[str, Any], side: str) -> str:
    label = flip.get(f"{side}_label")
    return one_line(flip.get(side, "") if label is None else label)


def classes(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """The classes that the INT8 model finds hardest."""
    rows: list[list[Cell]] = []
    for record in select(records, Accuracy):
        if record.artifact.get("form") != "int8":
            continue
        for item in list(record.samples.get("classes", ()))[:5]:
            ends = item.get("top1_low"), item.get("top1_high")
            top1 = interval(figures.percent, item.get("top1"), *ends)
            mistaken = one_line(item.get("taken_for") or "")
            label, n = one_line(item.get("class", "")), number(item.get("n"))
            rows.append([label, n, top1, mistaken])
    return table(("class", "n", "top1", "taken_for"), rows)
