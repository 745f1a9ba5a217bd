"""Tables in documents, rendered from the Records in results/.

A document marks the place of a table with `<!-- table: NAME -->` and `<!-- end -->`, where NAME is
a file of the folder results/, without its `.jsonl`. Records of jobs make a
table with a row for each model, from its newest job; Records of benchmarks/int8.py make one with a
row for each quantizer (quantizer_comparison.py), those of benchmarks/boards.py one of compiled
models beside published figures (compiled_boards.py), those of benchmarks/peers.py one for each
model beside other tools (peers.py), and those of benchmarks/fold_latency.py one of folds beside
timm's (fold_latency.py).

`python -m repzoo.report.tables docs/results.md docs/boards.md` renders the tables; with --check it
only compares.
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
from repzoo.measure.comparison_results import QuantizerComparison
from repzoo.measure.peer_latency import PeerLatency
from repzoo.measure.record import Record
from repzoo.measure.results import Latency, LatencyRatio
from repzoo.printable import escape_markdown
from repzoo.report import (
    card_facts,
    compiled_boards,
    figures,
    fold_latency,
    peers,
    quantizer_comparison,
)
from repzoo.report.card_facts import CardFacts
from repzoo.storage import read_bounded, write_atomically

MARKED = re.compile(
    r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL
)
MAX_DOCUMENT_BYTES = 2**24
# Below latencies of sessions with more threads than the heading says.
THREADS = {"en": "({n} threads)", "zh": "（{n} 线程）"}
HEADINGS = {
    "en": (
        "Model",
        "Size",
        "Parameters (M), training → deploy",
        "MACs (M)",
        "Float Top-1 (%)",
        "INT8 Top-1 (%)",
        figures.SHARE_HEADING["en"],
        "Drop (points)",
        "Latency, 1 thread (ms), float → INT8",
        "Latency, {n} threads (ms)",
        "FPS, {n} threads",
        "INT8 / float latency",
    ),
    "zh": (
        "模型",
        "尺寸",
        "参数量 (M)，训练 → 部署",
        "乘加 (M)",
        "浮点 Top-1 (%)",
        "INT8 Top-1 (%)",
        figures.SHARE_HEADING["zh"],
        "精度损失（百分点）",
        "单线程延迟 (ms)，浮点 → INT8",
        "{n} 线程延迟 (ms)",
        "{n} 线程帧率 (FPS)",
        "INT8 / 浮点延迟比",
    ),
}


def render(document: str, results: Path, language: str) -> str:
    """`document` with every marked table rendered anew from the files of the folder `results`.

    Raises:
        InputError: a marked table has no Records.
    """

    def render_match(match: re.Match[str]) -> str:
        """The marks with the table between them."""
        records = record.read(results / f"{match['name']}.jsonl")
        if compiled_boards.is_compilation(records):
            lines = compiled_boards.table(records)
        elif record.select(records, PeerLatency):
            lines = peers.table(records, language)
        elif fold_latency.is_fold_latency(records):
            lines = fold_latency.table(records, language)
        elif record.select(records, QuantizerComparison):
            lines = quantizer_comparison.table(records, language)
        else:
            lines = _job_table(records, language)
        return match.group(1) + "\n".join(lines) + "\n" + match.group(3)

    # By a function, since a label may hold what `sub` reads as a reference to a group.
    return MARKED.sub(render_match, document)


def newest_jobs(records: Sequence[Record[Any]]) -> list[CardFacts]:
    """The newest job of each model, in the order in which the models came first.

    Raises:
        InputError: there is none.
    """
    by_job: dict[str, list[Record[Any]]] = {}
    for row in records:
        # Rows without one are of single commands, such as `evaluate --append`.
        if row.job:
            by_job.setdefault(row.job, []).append(row)
    by_name: dict[str, CardFacts] = {}
    for rows in by_job.values():
        facts = card_facts.summary(rows)
        by_name[facts.name] = facts  # files are append-only: the last job is the newest
    newest = list(by_name.values())
    if not newest:
        raise InputError(
            "there are no Records of a job to make a table of; "
            "make some with: repzoo card MODEL --data DIR --append FILE.jsonl"
        )
    return newest


def _job_table(records: Sequence[Record[Any]], language: str) -> list[str]:
    newest = newest_jobs(records)
    threads = newest[0].client_threads
    headings = [heading.format(n=threads) for heading in HEADINGS[language]]
    cells = [_cells(facts, language) for facts in newest]
    # Records of older versions do not say how much runs in INT8.
    is_known = any(facts.int8 is not None for facts in newest)
    omitted = "" if is_known else figures.SHARE_HEADING[language]
    return figures.markdown_table(headings, cells, omitted)


def _cells(facts: CardFacts, language: str) -> list[str]:
    cost = facts.cost
    paired = facts.paired
    many = facts.many.get("int8")
    ratio = facts.ratios.get("int8")
    to = figures.TO[language]
    parameters = []
    for form in ("train", "deploy"):
        if form in cost:
            parameters.append(figures.millions(cost[form].parameters))
    drop = figures.interval(
        figures.points, paired.drop, paired.drop_low, paired.drop_high, to
    )
    return [
        escape_markdown(f"{facts.name}, {facts.classes} classes"),
        figures.pixels(facts.size),
        " → ".join(parameters),
        f"{cost['deploy'].macs / 1e6:.1f}",
        _top1(facts, "deploy", to),
        _top1(facts, "int8", to),
        figures.int8_share(facts.int8, language),
        f"{drop}, n = {paired.n}",
        _latencies(facts, language),
        figures.ms(many.p50_ms) if many else figures.ABSENT,
        figures.rate(many.fps) if many else figures.ABSENT,
        _latency_ratio(ratio, to),
    ]


def _latency_ratio(ratio: LatencyRatio | None, to: str) -> str:
    if ratio is None:
        return figures.ABSENT
    return figures.interval(
        figures.ratio_of, ratio.ratio, ratio.ratio_low, ratio.ratio_high, to
    )


def _top1(facts: CardFacts, form: str, to: str) -> str:
    accuracy = facts.accuracy[form]
    return figures.interval(
        figures.percent, accuracy.top1, accuracy.top1_low, accuracy.top1_high, to
    )


def _latencies(facts: CardFacts, language: str) -> str:
    """Float → INT8 milliseconds on the job's engine; of several engines, each with its name.

    Where a session has more threads than the one of the heading, their number follows.
    """
    by_engine = {facts.engine["name"]: facts.single}
    for other in facts.beside:
        by_engine[other.engine["name"]] = other.single
    shown = []
    for name, single in by_engine.items():
        times = " → ".join(_p50(single.get(form)) for form in card_facts.BOTH)
        if len(by_engine) > 1:
            times = f"{escape_markdown(name)} {times}"
        shown.append(times)
    threads = facts.single["deploy"].setting.threads
    if threads > 1:
        shown.append(THREADS[language].format(n=threads))
    return "<br>".join(shown)


def _p50(latency: Latency | None) -> str:
    return figures.ms(latency.p50_ms) if latency else figures.ABSENT


def main() -> None:
    """Render the tables of documents; with --check, exit with 1 when a document is stale."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("documents", nargs="+", type=Path)
    parser.add_argument(
        "--check", action="store_true", help="compare only, and write nothing"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of the Records"
    )
    options = parser.parse_args()
    for path in options.documents:
        old = read_bounded(path, MAX_DOCUMENT_BYTES).decode()
        new = render(old, options.results, "zh" if "_cn" in path.stem else "en")
        # The tests call --check, so that a table cannot disagree with the results.
        if options.check and new != old:
            sys.exit(f"{path} is stale; run: make tables")
        if new != old:
            write_atomically(path, new)


if __name__ == "__main__":
    main()
