"""View of `repzoo import`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repzoo.console.output import View, make_table
from repzoo.measure.board import (
    BoardAccuracy,
    BoardLatency,
    BoardSimilarity,
    NodeSimilarity,
)
from repzoo.measure.record import Record, to_json
from repzoo.report import figures
from repzoo.vendors.logs.hrt_model_exec import HrtLog
from repzoo.vendors.logs.reading import VendorLog
from repzoo.verbs.import_board_logs import ImportedLogs

# Nodes that a person is shown; --json has all.
SHOWN_NODES = 5
COLUMNS = (">cosine", ">L1", ">dB", ">threshold", "type")


def imported(result: ImportedLogs) -> View:
    """Each Record in a sentence or a small table."""
    shown: list[Any] = []
    for log in result.logs:
        shown.append(f"{log.path.name}: {log.tool}, SHA-256 {log.sha256[:12]}")
        if isinstance(log.content, HrtLog) and log.content.inputs:
            shown.append(f"  {_model_info(log.content)}")
        for record in result.records:
            if record.data["sha256"] == log.sha256:
                shown += record_lines(record)
    document = {
        "logs": [_log_document(log) for log in result.logs],
        "records": [record.to_json() for record in result.records],
    }
    return View(document, *shown, remarks=result.remarks)


def _log_document(log: VendorLog) -> dict[str, Any]:
    document = {"file": str(log.path), "sha256": log.sha256, "tool": log.tool}
    if isinstance(log.content, HrtLog):
        # Of a log of model_info alone there is no Record.
        document |= to_json(log.content)
    return document


def _model_info(log: HrtLog) -> str:
    """Inputs and outputs of the .bin in a line."""
    parts = []
    for name, tensors in (("input", log.inputs), ("output", log.outputs)):
        for tensor in tensors[:SHOWN_NODES]:
            sizes = "x".join(map(str, tensor.shape))
            parts.append(f"{name} {tensor.name} {sizes} {tensor.type}")
    return f"{log.model}: {'; '.join(parts)}"


def record_lines(record: Record[Any]) -> list[Any]:
    """A Record of a board or a vendor's tool: a sentence, and small tables."""
    values = record.values
    head = f"  {values.target}, {values.source}:"
    if isinstance(values, BoardLatency):
        return [f"{head} {latency_text(values)}"]
    if isinstance(values, BoardAccuracy):
        return [f"{head} {_accuracy(values)}"]
    return [f"{head} {_counts(values)}", *_similarities(values)]


def latency_text(values: BoardLatency) -> str:
    """Latency, frame rate and memory as a line; figures that are not there are left out."""
    parts = []
    if values.threads:
        parts.append(f"{values.threads} threads" if values.threads > 1 else "1 thread")
    if values.latency_ms is not None:
        parts.append(f"{figures.ms(values.latency_ms)} ms on average")
    if values.min_ms is not None and values.max_ms is not None:
        parts.append(f"{figures.ms(values.min_ms)} to {figures.ms(values.max_ms)} ms")
    for name, time in (values.percentiles_ms or {}).items():
        parts.append(f"{name} {figures.ms(time)} ms")
    if values.fps is not None:
        parts.append(f"{figures.rate(values.fps)} FPS")
    if values.ddr_bytes is not None:
        parts.append(f"{values.ddr_bytes / 1e6:.2f} MB read and written an image")
    if values.memory_bytes is not None:
        parts.append(f"{values.memory_bytes / 1e6:.2f} MB of memory")
    if values.cpu_nodes is not None:
        parts.append(f"{values.accelerator_nodes} nodes on the accelerator")
        parts.append(f"{values.cpu_nodes} on the CPU")
    if values.latency_ms is not None:
        parts.append("no interval: the log has one number")
    return "; ".join(parts)


def _accuracy(values: BoardAccuracy) -> str:
    name = f"{values.precision} " if values.precision else ""
    text = f"{name}Top-1 {figures.percent(values.top1)} %"
    if values.top1_low is not None and values.top1_high is not None:
        span = figures.span(figures.percent, values.top1_low, values.top1_high)
        text += f" ({span}, n = {values.n})"
    if values.top5 is not None:
        text += f", Top-5 {figures.percent(values.top5)} %"
    if values.n is None:
        text += "; no interval: the log does not say how many images (--images)"
    return text


def _counts(values: BoardSimilarity) -> str:
    parts = [f"{len(values.nodes)} nodes"]
    if any(node.device for node in values.nodes):
        parts.append(f"{values.cpu_nodes} of them on the CPU")
    if values.calibration:
        parts.append(f"calibration {values.calibration}")
    return ", ".join(parts)


def _similarities(values: BoardSimilarity) -> list[Any]:
    """Tables of the outputs and of the nodes with the lowest cosine similarity."""
    tables = []
    if values.outputs:
        tables.append(_table("output", values.outputs[:SHOWN_NODES]))
    compared = [node for node in values.nodes if node.cosine is not None]
    compared.sort(key=lambda node: node.cosine or 0.0)
    if compared:
        tables.append(_table("least similar nodes", compared[:SHOWN_NODES]))
    return tables


def _table(heading: str, nodes: Sequence[NodeSimilarity]) -> Any:
    """A table of `nodes`, without the columns that are empty."""
    rows = [_cells(node) for node in nodes]
    shown = [
        index for index in range(len(COLUMNS)) if any(cells[index] for cells in rows)
    ]
    table = make_table(heading, *(COLUMNS[index] for index in shown))
    for node, cells in zip(nodes, rows, strict=True):
        table.add_row(node.name, *(cells[index] for index in shown))
    return table


def _cells(node: NodeSimilarity) -> tuple[str, ...]:
    """The cells of COLUMNS; an empty one where the tool has no such figure."""
    numbers = []
    for value, digits in ((node.cosine, 6), (node.l1, 4), (node.snr_db, 1)):
        numbers.append("" if value is None else f"{value:.{digits}f}")
    threshold = "" if node.threshold is None else f"{node.threshold:.4g}"
    return (*numbers, threshold, node.dtype)
