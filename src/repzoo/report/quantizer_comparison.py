"""The table that compares quantizers, from the Records of benchmarks/int8.py.

It shows the newest row of each model and quantizer.

Rows of one model are shown together only where images, float model and kind of host are the same;
rows of an older run that differ in one of them are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repzoo.errors import InputError
from repzoo.measure.comparison_results import EngineComparison, QuantizerComparison
from repzoo.measure.record import Record, select
from repzoo.printable import escape_markdown
from repzoo.report import figures

HEADINGS = {
    "en": (
        "Model",
        "Quantizer",
        figures.SHARE_HEADING["en"],
        "Drop (points)",
        "Expected drop (points)",
        "Same prediction as float (%)",
        "Size (MB), float → INT8",
        "Latency over float, {engine}",
        "Drop on {engine} (points)",
        "Seconds to quantize",
    ),
    "zh": (
        "模型",
        "量化方法",
        figures.SHARE_HEADING["zh"],
        "精度损失（百分点）",
        "预期精度损失（百分点）",
        "与浮点预测一致 (%)",
        "大小 (MB)，浮点 → INT8",
        "{engine} 上相对浮点的延迟",
        "{engine} 上的精度损失（百分点）",
        "量化用时 (s)",
    ),
}
REFUSED = {"en": "refused", "zh": "拒绝"}


def table(records: Sequence[Record[Any]], language: str) -> list[str]:
    """The table as lines of Markdown.

    Accuracy is that on the first engine; of the others only the drop is shown.

    Raises:
        InputError: there is no Record of a quantizer comparison.
    """
    rows = newest_rows(records)
    if not rows:
        raise InputError(
            "there are no Records of a quantizer comparison; "
            "make some with: python -m benchmarks.int8 MODEL=DATA"
        )
    by_name: dict[str, None] = {}
    measured: list[EngineComparison] = []
    for row in rows:
        by_name |= dict.fromkeys(row.values.engines)
        measured.extend(row.values.engines.values())
    engines = list(by_name)
    headings = _headings(language, engines)
    cells = [_cells(row, engines, language) for row in rows]
    is_known = any(item.int8 for item in measured)
    omitted = "" if is_known else figures.SHARE_HEADING[language]
    return figures.markdown_table(headings, cells, omitted)


def newest_rows(
    records: Sequence[Record[Any]],
) -> list[Record[QuantizerComparison]]:
    """The last row of each model and quantizer; another setting replaces all rows of its model."""
    by_model: dict[str, dict[str, Record[QuantizerComparison]]] = {}
    for record in select(records, QuantizerComparison):
        rows = by_model.setdefault(str(record.artifact["name"]), {})
        # Figures of other images or of another CPU cannot be compared row by row.
        if any(_setting(row) != _setting(record) for row in rows.values()):
            rows.clear()
        # In a dict, a quantizer that was run again keeps its place.
        rows[record.values.recipe] = record
    newest: list[Record[QuantizerComparison]] = []
    for rows in by_model.values():
        newest.extend(rows.values())
    return newest


def _setting(record: Record[QuantizerComparison]) -> tuple[Any, ...]:
    """What rows must share to be compared: images, kind of host, float model (by its size)."""
    host = [record.host.get(key) for key in ("cpu", "cores", "int8")]
    return dict(record.data), host, record.values.float_bytes


def _headings(language: str, engines: Sequence[str]) -> list[str]:
    *headings, ratio, drop, seconds = HEADINGS[language]
    for name in engines:
        headings.append(ratio.format(engine=name))
    # The drop on the first engine is among the columns before.
    for name in engines[1:]:
        headings.append(drop.format(engine=name))
    return [*headings, seconds]


def _cells(
    record: Record[QuantizerComparison], engines: Sequence[str], language: str
) -> list[str]:
    values = record.values
    by_engine = [values.engines.get(name) for name in engines]
    main = by_engine[0] if by_engine else None
    to = figures.TO[language]
    size = REFUSED[language]
    if values.bytes:
        size = f"{values.float_bytes / 1e6:.1f} → {values.bytes / 1e6:.1f}"
    ratios = [_latency_ratio(measured, to) for measured in by_engine]
    drops = [_drop(measured, to) for measured in by_engine[1:]]
    return [
        escape_markdown(record.artifact["name"]),
        escape_markdown(values.recipe),
        figures.int8_share(main.int8 if main else None, language),
        f"{_drop(main, to)}, n = {main.n}" if main else figures.ABSENT,
        _expected_drop(main, to),
        figures.percent(main.same_prediction) if main else figures.ABSENT,
        size,
        *ratios,
        *drops,
        f"{values.seconds:.0f}",
    ]


def _drop(measured: EngineComparison | None, to: str) -> str:
    if measured is None:
        return figures.ABSENT
    return figures.interval(
        figures.points, measured.drop, measured.drop_low, measured.drop_high, to
    )


def _expected_drop(measured: EngineComparison | None, to: str) -> str:
    if measured is None or measured.expected is None:
        return figures.ABSENT
    low, high = measured.expected.drop_interval()
    return figures.interval(figures.points, measured.expected.drop, low, high, to)


def _latency_ratio(measured: EngineComparison | None, to: str) -> str:
    if measured is None:
        return figures.ABSENT
    low, high = measured.latency_ratio_low, measured.latency_ratio_high
    return figures.interval(figures.ratio_of, measured.latency_ratio, low, high, to)
