"""The table of folds beside timm's own, from the Records of benchmarks/fold_latency.py.

It shows the newest ratio of each model and engine. The models of a ratio are called
`NAME by repzoo` and `NAME by timm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repzoo.measure.record import Record, select
from repzoo.measure.results import LatencyRatio
from repzoo.printable import escape_markdown
from repzoo.report import figures

OURS = " by repzoo"
THEIRS = " by timm"
MODEL = {"en": "Model", "zh": "模型"}


def is_fold_latency(records: Sequence[Record[Any]]) -> bool:
    """Whether the Records are of that benchmark."""
    return any(_name(row).endswith(OURS) for row in select(records, LatencyRatio))


def table(records: Sequence[Record[Any]], language: str) -> list[str]:
    """The table as lines of Markdown: a row for each model, a column for each engine."""
    newest: dict[tuple[str, str], LatencyRatio] = {}
    for row in select(records, LatencyRatio):
        name = _name(row).removesuffix(OURS)
        newest[name, row.engine["name"]] = row.values
    names = list(dict.fromkeys(name for name, _ in newest))
    engines = list(dict.fromkeys(engine for _, engine in newest))
    rows: list[list[str]] = []
    for name in names:
        cells = [escape_markdown(name)]
        for engine in engines:
            cells.append(_cell(newest.get((name, engine)), language))
        rows.append(cells)
    headings = [MODEL[language], *map(escape_markdown, engines)]
    return figures.markdown_table(headings, rows, "")


def _name(row: Record[LatencyRatio]) -> str:
    """The name of the model whose time is divided by the other's."""
    first = row.artifact.get("first")
    return str(first["name"]) if first else ""


def _cell(ratio: LatencyRatio | None, language: str) -> str:
    if ratio is None:
        return figures.ABSENT
    return figures.interval(
        figures.ratio_of,
        ratio.ratio,
        ratio.ratio_low,
        ratio.ratio_high,
        figures.TO[language],
    )
