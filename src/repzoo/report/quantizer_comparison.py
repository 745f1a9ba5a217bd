"""The table that compares quantizers, from the Records of benchmarks/int8.py.

It shows the newest row of each model and quantizer.

Rows of one model are shown together only where images, float model and kind of host are the same;
rows of an older run that differ in one of them are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repzoo.errors import InputError
from repzoo.measure.record import Record, select
from repzoo.measure.results import EngineComparison, QuantizerComparison
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
    rows = _newest_rows(select(records, QuantizerComparison))
    if not rows:
        raise InputError(
            "there are no Records of a quantizer comparison; "
            "make some with: python -m benchmarks.int8 MODEL=DATA"
        )
    engines: dict[str, None] = {}
    for row in rows:
        engines |= dict.fromkeys(row.values.engines)
    headings = _headings(language, list(engines))
    cells = [_cells(row, list(engines), language) for row in rows]
    is_known = any(_knows_share(row.values) for row in rows)
    omitted = "" if is_known else figures.SHARE_HEADING[language]
    return figures.markdown_table(headings, cells, omitted)


def _knows_share(values: QuantizerComparison) -> bool:
    return any(measured.int8 for measured in values.engines.values())


def _newest_rows(
    records: Sequence[Record[QuantizerComparison]],
) -> list[Record[QuantizerComparison]]:
    """The last row of each model and quantizer; another setting replaces all rows of its model."""
    by_model: dict[str, dict[str, Record[QuantizerComparison]]] = {}
    for record in records:
        rows = by_model.setdefault(str(record.artifact["name"]), {})
        # Figures of other images or of another CPU cannot be compared row by row.
        if any(_setting(row) != _setting(record) for row in rows.values()):
            rows.clear()
        rows[record.values.recipe] = record
    return [row for rows in by_model.values() for row in rows.values()]


def _setting(record: Record[QuantizerComparison]) -> tuple[Any, ...]:
    """What rows must share to be compared: images, kind of host, float model (by its size)."""
    host = {key: record.host.get(key) for key in ("cpu", "cores", "int8")}
    return dict(record.data), host, record.values.float_bytes


def _headings(language: str, engines: Sequence[str]) -> list[str]:
    *first, ratio, drop, seconds = HEADINGS[language]
    ratios = [ratio.format(engine=name) for name in engines]
    drops = [drop.format(engine=name) for name in engines[1:]]
    return [*first, *ratios, *drops, seconds]


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
    return [
        figures.escape_markdown(record.artifact["name"]),
        figures.escape_markdown(values.recipe),
        figures.int8_share(main.int8 if main else None, language),
        f"{_drop(main, to)}, n = {main.n}" if main else figures.ABSENT,
        _expected_drop(main, to),
        figures.percent(main.same_prediction) if main else figures.ABSENT,
        size,
        *(_latency_ratio(measured, to) for measured in by_engine),
        *(_drop(measured, to) for measured in by_engine[1:]),
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
