"""Tables in documents, rendered from the Records in results/: one row for each model, from its newest job; or, for Records of
quantizers side by side, one for each recipe (sidebyside.py).

A document marks the place with `<!-- table: NAME -->` and `<!-- end -->`, where NAME is a file below results/ (beside the
document, without .jsonl). `python -m repzoo.report.tables README.md README_cn.md` renders; with --check it only compares.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repzoo.errors import InputError
from repzoo.measure import record
from repzoo.measure.record import Record
from repzoo.report import card
from repzoo.report import quantizer_comparison as sidebyside
from repzoo.storage import read_bounded, write_atomically

MARKED = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEADS = {
    "en": ("Model", "Size", "Parameters (M), training → deploy", "MACs (M)", "Float Top-1 (%)", "INT8 Top-1 (%)", "Drop (points)",
           "Latency, 1 thread (ms), float → INT8", "Latency, {n} threads (ms)", "FPS, {n} threads", "INT8 / float latency"),
    "zh": ("模型", "尺寸", "参数量(M)，训练 → 部署", "乘加(M)", "浮点 Top-1 (%)", "量化 Top-1 (%)", "精度损失（百分点）",
           "单线程延迟 (ms)，浮点 → INT8", "{n} 线程延迟 (ms)", "{n} 线程帧率 (FPS)", "INT8 / 浮点延迟比"),
}  # fmt: skip


def rendered(document: str, results: Path, language: str) -> str:
    """`document` with every marked table made anew.

    Raises:
        InputError: a marked table has no Records.
    """

    def table(match: re.Match[str]) -> str:
        found = record.read(results / f"{match['name']}.jsonl")
        lines = (sidebyside.table if sidebyside.belongs(found) else _table)(found, language)
        return match.group(1) + "\n".join(lines) + "\n" + match.group(3)

    return MARKED.sub(table, document)


def _table(records: Sequence[Record], language: str) -> list[str]:
    newest: dict[str, list[Record]] = {}
    for job in dict.fromkeys(one.job for one in records if one.job):
        own = [one for one in records if one.job == job]
        newest[str(card.summary(own)["name"])] = own
    if not newest:
        raise InputError(
            "no job's Records to make a table of; make some with: repzoo card MODEL --data DIR --append FILE.jsonl"
        )
    rows = [card.summary(own) for own in newest.values()]
    heads = [head.format(n=rows[0]["many"]["threads"]) for head in HEADS[language]]
    return [
        "| " + " | ".join(cells) + " |"
        for cells in (heads, ["---"] * len(heads), *map(_cells, rows))
    ]


def _cells(facts: dict[str, Any]) -> list[str]:
    cost, accuracy, paired, many = (facts[key] for key in ("cost", "accuracy", "paired", "many"))
    ratio = facts["ratios"]["int8"]
    parameters = " → ".join(
        card.millions(cost[form]["parameters"]) for form in ("train", "deploy") if form in cost
    )
    return [
        card.escape_markdown(f"{facts['name']}, {facts['classes']} classes"),
        f"{facts['size']}x{facts['size']}",
        parameters,
        f"{cost['deploy']['macs'] / 1e6:.1f}",
        *(_with_interval(card.percent, accuracy[form], "top1") for form in ("deploy", "int8")),
        f"{_with_interval(card.points, paired, 'drop')}, n = {paired['n']}",
        _latencies(facts),
        card.ms(many["int8"]["p50_ms"]),
        card.rate(many["int8"]["fps"]),
        _with_interval(card.ratio_of, ratio, "ratio"),
    ]


def _latencies(facts: dict[str, Any]) -> str:
    """Float → INT8 milliseconds on the engine of the job; on each that it was timed on, named, where these are several."""
    found = {facts["engine"]["name"]: facts["single"]} | {
        one["engine"]["name"]: one["single"] for one in facts["beside"]
    }
    shown = {
        name: " → ".join(
            card.ms(single[form]["p50_ms"]) if form in single else "–" for form in card.BOTH
        )
        for name, single in found.items()
    }
    return "<br>".join(
        f"{card.escape_markdown(name)} {times}" if len(shown) > 1 else times
        for name, times in shown.items()
    )


def _with_interval(shown: Any, values: Any, key: str) -> str:
    return f"{shown(values[key])} ({shown(values[f'{key}_low'])} .. {shown(values[f'{key}_high'])})"


def main() -> None:
    """Render, or with --check compare and exit 1 when a document is stale."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("documents", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for path in options.documents:
        old = read_bounded(path, 2**24).decode()
        new = rendered(old, path.parent / "results", "zh" if "_cn" in path.stem else "en")
        if options.check and new != old:
            sys.exit(f"{path} is stale; run: make tables")
        if new != old:
            write_atomically(path, new)


if __name__ == "__main__":
    main()
