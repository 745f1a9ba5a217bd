"""What rknn-toolkit2 prints: accuracy_analysis (error_analysis.txt), eval_perf and eval_memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from repzoo.errors import InputError
from repzoo.vendors.logs.text import (
    MAX_NAME,
    NUMBER,
    PROGRESS,
    lines_of,
    milliseconds_of,
    number_of,
    unreadable,
)

MAX_NODES = 100_000
TABLE = re.compile(r"^[#\s]*layer_name\s+simulator_error")
COMMENT = r"^[#\s]*"  # examples quote the table as a comment
PAIR = rf"(?:{NUMBER}|nan|-?inf)\s*\|\s*(?:{NUMBER}|nan|-?inf)"
ROW = re.compile(
    rf"{COMMENT}\[(?P<op>[^\]]+)\]\s+(?P<name>\S.*?)(?P<pairs>(?:\s+{PAIR})*)\s*\*?$"
)
LABEL = r"\bTotal\s+(?:Operator\s+Elapsed\s+(?:Per\s+Frame\s+)?)?Time\s*\(us\)\s*:"
TIME = re.compile(rf"{LABEL}\s*(?P<time>{NUMBER})", re.IGNORECASE)
TIME_LABEL = re.compile(LABEL, re.IGNORECASE)
TRAFFIC = re.compile(
    rf"\bTotal\s+Memory\s+(?:Read/Write|RW)\s+(?:Per\s+Frame\s*)?Size\s*\(KB\)\s*:"
    rf"\s*(?P<size>{NUMBER})",
    re.IGNORECASE,
)
FPS = re.compile(rf"^\s*FPS\s*:\s*(?P<fps>{NUMBER})", re.IGNORECASE)
MEMORY = re.compile(
    rf"\bTotal\s+Memory\s*:\s*(?P<size>{NUMBER})\s*(?P<unit>bytes|B|KiB|KB|MiB|MB)\b",
    re.IGNORECASE,
)
OPERATOR = re.compile(
    r"^\s*\d+\s+(?P<op>[A-Za-z]\w*)\s+(?P<dtype>[A-Z]+\d+)\s+(?P<device>NPU|CPU|GPU)\b"
)
VERSION = re.compile(r"rknn-toolkit2? version:?\s*([\w.+-]+)", re.IGNORECASE)
BYTES = {"b": 1, "bytes": 1, "kib": 1024, "kb": 1024, "mib": 2**20, "mb": 2**20}


@dataclass(frozen=True)
class LayerError:
    """A row of accuracy_analysis.

    Attributes:
        op: operator of the converted graph.
        name: of the tensor that it computes.
        cosine, euclid: of its output against the float model's, errors of all layers before it
            included; None where the tool fused it into the next one.
        cosine_alone, euclid_alone: the same with float inputs.
        board_cosine, board_euclid: as the first two, from the board; None without a board.
    """

    op: str
    name: str
    cosine: float | None = None
    euclid: float | None = None
    cosine_alone: float | None = None
    euclid_alone: float | None = None
    board_cosine: float | None = None
    board_euclid: float | None = None


@dataclass(frozen=True)
class Performance:
    """What eval_perf printed.

    Attributes:
        latency_ms: of one frame, all operators together.
        fps: None where it is not printed.
        traffic_bytes: read and written for one frame; None where it is not printed.
        npu_nodes, cpu_nodes: operators by where they run; None without the table of operators.
    """

    latency_ms: float
    fps: float | None = None
    traffic_bytes: int | None = None
    npu_nodes: int | None = None
    cpu_nodes: int | None = None


@dataclass
class RknnLog:
    """All that a log says.

    Attributes:
        version: of rknn-toolkit2; "" where the log does not say.
        memory_bytes: that the model takes, from eval_memory.
    """

    version: str = ""
    layers: list[LayerError] = field(default_factory=list)
    performance: list[Performance] = field(default_factory=list)
    memory_bytes: int | None = None


def is_log(lines: Sequence[str]) -> bool:
    """Whether these are lines that rknn-toolkit2 printed."""
    return any(
        TABLE.match(line) or TIME_LABEL.search(line) or "Memory Profile Info" in line
        for line in lines
    )


def parse(data: bytes, name: str) -> RknnLog:
    """The table of layers, times and memory in a log; `name` is of the file.

    Raises:
        InputError: none of them is there, or a line is not as the tool writes it.
    """
    lines = lines_of(data)
    if not is_log(lines):
        raise InputError(
            f"{name} is not a log of rknn-toolkit2: it has no table of accuracy_analysis, no time "
            "and no memory"
        )
    reader = _Reader(name)
    for number, line in enumerate(lines, 1):
        try:
            reader.add(line)
        except (ValueError, OverflowError):
            expected = "figures as rknn-toolkit2 prints them"
            raise unreadable(name, number, line, expected) from None
    return reader.finish()


class _Reader:
    def __init__(self, name: str) -> None:
        self._name = name
        self._log = RknnLog()
        self._in_table = False
        self._devices: list[str] = []  # of the table above the next time

    def add(self, line: str) -> None:
        """Read one line."""
        version = VERSION.search(line)
        if version:
            self._log.version = version[1]
        if TABLE.match(line):
            self._in_table = True
            self._log.layers.clear()
        elif self._in_table:
            self._add_row(line)
        self._add_performance(line)
        memory = MEMORY.search(line)
        if memory:
            size = number_of(memory["size"]) or 0.0
            self._log.memory_bytes = round(size * BYTES[memory["unit"].casefold()])

    def finish(self) -> RknnLog:
        """The log, when all lines are read."""
        log = self._log
        if self._in_table and not any(layer.cosine is not None for layer in log.layers):
            raise InputError(
                f"{self._name} has a table without rows; copy the whole log"
            )
        return log

    def _add_row(self, line: str) -> None:
        text = line.strip(" #\t")
        if not text.startswith("["):
            # The head of the table, its rules, and whatever comes after it.
            return
        row = ROW.match(line)
        # A figure that is missing leaves its line to the name.
        if row is None or " |" in row["name"]:
            raise ValueError("no row")
        if PROGRESS.search(row["name"]):
            return
        cosine, euclid, alone, euclid_alone, board, board_euclid = _figures(
            row["pairs"]
        )
        layer = LayerError(
            op=row["op"][:MAX_NAME],
            name=row["name"][:MAX_NAME],
            cosine=cosine,
            euclid=euclid,
            cosine_alone=alone,
            euclid_alone=euclid_alone,
            board_cosine=board,
            board_euclid=board_euclid,
        )
        self._log.layers.append(layer)
        if len(self._log.layers) > MAX_NODES:
            raise InputError(
                f"{self._name} has more than {MAX_NODES:,} layers; no model has that"
            )

    def _add_performance(self, line: str) -> None:
        operator = OPERATOR.match(line)
        if operator:
            self._devices.append(operator["device"])
        if TIME_LABEL.search(line):
            time = TIME.search(line)
            if time is None:
                raise ValueError("a time that cannot be read")
            self._begin_run(milliseconds_of(time["time"], "us"))
        fps = FPS.match(line)
        if fps:
            self._complete_run(fps=number_of(fps["fps"]))
        traffic = TRAFFIC.search(line)
        if traffic:
            size = number_of(traffic["size"]) or 0.0
            self._complete_run(traffic_bytes=round(size * 1024))

    def _begin_run(self, latency_ms: float) -> None:
        cpu = self._devices.count("CPU")
        has_table = bool(self._devices)
        run = Performance(
            latency_ms=latency_ms,
            npu_nodes=len(self._devices) - cpu if has_table else None,
            cpu_nodes=cpu if has_table else None,
        )
        self._log.performance.append(run)
        self._devices.clear()

    def _complete_run(self, **figures: Any) -> None:
        # The tool prints the time first, then these.
        if self._log.performance:
            self._log.performance[-1] = replace(self._log.performance[-1], **figures)


def _figures(pairs: str) -> list[float | None]:
    """The first six figures of a row: three pairs of cosine similarity and Euclidean distance.

    A fourth pair compares the board with the simulator, which says nothing of quantization.

    Raises:
        ValueError: a pair is not whole, or a cosine similarity is beyond 1.
    """
    figures = [number_of(text) for text in re.split(r"[\s|]+", pairs.strip()) if text]
    if len(figures) % 2 or len(figures) > 8:
        raise ValueError("not in pairs")
    padded = (figures + [None] * 6)[:6]
    for cosine in padded[::2]:
        # Float32 sums may exceed 1 by their rounding.
        if cosine is not None and abs(cosine) > 1.001:
            raise ValueError("not a cosine similarity")
    return padded
