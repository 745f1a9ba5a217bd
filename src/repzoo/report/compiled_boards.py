"""The table of models compiled for the RDK X5, beside what D-Robotics published of its own.

Its Records are those of benchmarks/boards.py: of each model and variant the compiler's estimate
and the costs. The published figures are the catalog's.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repzoo.errors import InputError
from repzoo.graph.tools.cost_result import Cost
from repzoo.measure.board import BoardLatency
from repzoo.measure.record import Record
from repzoo.printable import escape_markdown
from repzoo.report import figures
from repzoo.zoo import catalog

FOLDED = "folded"
TRAINING = "training form"
INT16 = "int16"
O3 = "folded, O3"
PUBLISHER = "rdk_"  # what the catalog's keys of D-Robotics' tables begin with
MIN_CORRELATED = 3  # through two points there is always a line
HEADINGS = (
    "Model",
    "Parameters (M)",
    "Nodes on BPU",
    "on CPU",
    "Estimated latency (ms)",
    "Estimated FPS",
    "Published latency, 1 thread (ms)",
    "Published FPS, 4 threads",
    "Published − estimated latency (ms)",
)
VARIANT_HEADINGS = (
    "Model",
    "Variant",
    "Parameters (M)",
    "Nodes on BPU",
    "on CPU",
    "Estimated latency (ms)",
    "Estimated FPS",
    "Compiled at",
)
Key = tuple[str, str]  # model, variant


@dataclass(frozen=True)
class CompiledRow:
    """What is known of one model in one variant.

    estimate  by the compiler
    cost      of the model that it compiled
    level     of the compiler's optimization
    on_cpu    operators that run on the CPU
    """

    model: str
    variant: str
    estimate: BoardLatency
    cost: Cost
    level: str
    on_cpu: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedFigures:
    """One row of the publisher's table; milliseconds of one thread, FPS of four."""

    latency_ms: float
    fps: float


def is_compilation(records: Sequence[Record[Any]]) -> bool:
    """Whether `records` are those of benchmarks/boards.py, and of nothing else."""
    for row in records:
        if not isinstance(row.values, BoardLatency | Cost):
            return False
        if "variant" not in row.artifact:
            return False
    return bool(records)


def rows_of(records: Sequence[Record[Any]]) -> dict[Key, CompiledRow]:
    """The newest complete row of each model and variant."""
    estimates: dict[Key, Record[BoardLatency]] = {}
    costs: dict[Key, Cost] = {}
    for row in records:
        key = (str(row.artifact["name"]), str(row.artifact["variant"]))
        if isinstance(row.values, BoardLatency):
            estimates[key] = row
        else:
            costs[key] = row.values
    rows: dict[Key, CompiledRow] = {}
    for key, estimate in estimates.items():
        if key in costs:
            level = str(estimate.data.get("optimize_level", ""))
            on_cpu = tuple(map(str, estimate.samples.get("cpu_operators", ())))
            rows[key] = CompiledRow(*key, estimate.values, costs[key], level, on_cpu)
    return rows


def published_figures() -> dict[str, PublishedFigures]:
    """What D-Robotics published of the catalog's models, the fastest first."""
    by_model: dict[str, PublishedFigures] = {}
    for spec in catalog.models():
        for figure in spec.figures:
            latency, rate = figure.latency_1thread_ms, figure.fps
            is_publisher = figure.source.startswith(PUBLISHER)
            if is_publisher and latency is not None and rate is not None:
                measured = PublishedFigures(float(latency), float(rate))
                by_model.setdefault(spec.name, measured)
    return dict(sorted(by_model.items(), key=lambda item: item[1].latency_ms))


def published_models() -> list[str]:
    """The models of the catalog that D-Robotics published figures of, the fastest first."""
    return list(published_figures())


def table(records: Sequence[Record[Any]]) -> list[str]:
    """Lines of Markdown: the models beside their published figures, correlations, variants.

    Raises:
        InputError: no model is complete.
    """
    rows = rows_of(records)
    compared: list[tuple[CompiledRow, PublishedFigures]] = []
    missing: list[str] = []
    for model, figure in published_figures().items():
        row = rows.get((model, FOLDED))
        if row is None:
            missing.append(model)
        else:
            compared.append((row, figure))
    if not compared:
        raise InputError("no model is compiled yet; type: python -m benchmarks.boards")
    cells = [_compared_cells(row, figure) for row, figure in compared]
    lines = figures.markdown_table(HEADINGS, cells)
    for paragraph in _correlations(compared):
        lines += ["", paragraph]
    if missing:
        lines += ["", f"Not compiled yet: {', '.join(missing)}."]
    return lines + _variants(rows)


def _compared_cells(row: CompiledRow, figure: PublishedFigures) -> list[str]:
    estimated = row.estimate.latency_ms
    return [
        escape_markdown(row.model),
        *_estimate_cells(row),
        f"{figure.latency_ms:.2f}",
        figures.rate(figure.fps),
        figures.ABSENT if estimated is None else f"{figure.latency_ms - estimated:.2f}",
    ]


def _estimate_cells(row: CompiledRow) -> list[str]:
    """Parameters, nodes on BPU and CPU, latency and FPS."""
    estimate = row.estimate
    on_bpu = estimate.accelerator_nodes
    cells = [
        figures.millions(row.cost.parameters),
        figures.ABSENT if on_bpu is None else str(on_bpu),
        _nodes_on_cpu(row),
    ]
    latency, rate = estimate.latency_ms, estimate.fps
    cells.append(figures.ABSENT if latency is None else figures.ms(latency))
    cells.append(figures.ABSENT if rate is None else figures.rate(rate))
    return cells


def _nodes_on_cpu(row: CompiledRow) -> str:
    """Their number, and which operators they are."""
    if row.estimate.cpu_nodes is None:
        return figures.ABSENT
    number = str(row.estimate.cpu_nodes)
    if not row.on_cpu:
        return number
    return escape_markdown(f"{number} ({', '.join(sorted(set(row.on_cpu)))})")


def _correlations(
    compared: Sequence[tuple[CompiledRow, PublishedFigures]],
) -> list[str]:
    """A sentence on how far the estimates follow the published figures."""
    latencies: list[tuple[float, float]] = []
    rates: list[tuple[float, float]] = []
    for row, figure in compared:
        if row.estimate.latency_ms is not None:
            latencies.append((row.estimate.latency_ms, figure.latency_ms))
        if row.estimate.fps is not None:
            rates.append((row.estimate.fps, figure.fps))
    words: list[str] = []
    for name, pairs in (("latency", latencies), ("FPS", rates)):
        if len(pairs) >= MIN_CORRELATED:
            pearson, ranked = correlation(pairs)
            words.append(
                f"{name} of {len(pairs)} models: Pearson {pearson:.3f}, of ranks {ranked:.3f}"
            )
    if not words:
        return []
    return [f"Correlation of estimated and published {'; '.join(words)}."]


def correlation(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(Pearson's, Spearman's) correlation of the two columns of `pairs`; 0 of a constant one."""
    first, second = zip(*pairs, strict=True)
    return _pearson(first, second), _pearson(ranks(first), ranks(second))


def _pearson(first: Sequence[float], second: Sequence[float]) -> float:
    try:
        return statistics.correlation(first, second)
    except statistics.StatisticsError:  # a constant column
        return 0.0


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value from 1 on; equal values share their mean rank."""
    result: list[float] = []
    for value in values:
        below = sum(other < value for other in values)
        equal = sum(other == value for other in values)
        result.append(below + (equal + 1) / 2)
    return result


def _variants(rows: Mapping[Key, CompiledRow]) -> list[str]:
    """The models of which other variants than the folded one were compiled, with it."""
    cells: list[list[str]] = []
    for model in published_models():
        variants = [row for key, row in rows.items() if key[0] == model]
        if {row.variant for row in variants} <= {FOLDED}:
            continue
        for row in sorted(variants, key=_place):
            words = [escape_markdown(row.model), escape_markdown(row.variant)]
            cells.append([*words, *_estimate_cells(row), row.level])
    if not cells:
        return []
    return ["", *figures.markdown_table(VARIANT_HEADINGS, cells)]


def _place(row: CompiledRow) -> tuple[int, str]:
    """Where a row stands among those of its model; variants that are not known come last."""
    order = (TRAINING, INT16, FOLDED, O3)
    known = order.index(row.variant) if row.variant in order else len(order)
    return known, row.variant
