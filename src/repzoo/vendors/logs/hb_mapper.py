"""The log of D-Robotics' hb_mapper: `checker` and `makertbin`, from its file or the terminal.

Its table of nodes is read by the names of its columns, since versions differ in them. A node's name
is cut there to its last characters after "..."; `quant_info.json` has names in full.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from repzoo.errors import InputError
from repzoo.vendors.logs.text import (
    ABSENT,
    MAX_NAME,
    NUMBER,
    PROGRESS,
    count_of,
    last_part,
    lines_of,
    milliseconds_of,
    number_of,
    unreadable,
)

Device = Literal["BPU", "CPU"]

START = "Start hb_mapper"
NODES = "quantized node information"
OUTPUTS = "quantized model output"
CONVERTED = "End to Horizon NN Model Convert"
ENDS = ("End Model Convert", "End model checking")
MAX_NODES = 100_000
MAX_NOTES = 100

TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d")
# In the file: "file: X.py func: X line No: 72 "; in the terminal: the level.
PREFIX = re.compile(
    r"^\S+ \S+ +(?:file: .*? line No: ?\d+ ?|(?P<level>[A-Z]{4,8})\b:? ?)"
)
VERSION = re.compile(r"\b(hb_mapper|hbdk|horizon_nn) version\s*:?\s*(\d[\w.]*)")
# Of a row whose columns are one blank apart.
ROW = re.compile(
    r"^(?P<name>\S.*?) (?P<device>BPU|CPU) (?P<subgraph>id\(\d+\)|--) (?P<rest>\S.*)$"
)
ESTIMATE = re.compile(
    rf"FPS\s*=\s*(?P<fps>{NUMBER})\s*,\s*latency\s*=\s*(?P<latency>{NUMBER})\s*(?P<unit>us|ms|s)\b"
    rf"\s*,\s*DDR\s*=\s*(?P<ddr>{NUMBER})\s*bytes"
)
TENSOR = re.compile(
    r"^\s+(?P<name>\S.*?):\s+shape=\[(?P<shape>[^\]]*)\],\s*dtype=(?P<dtype>\w+)"
)
COLUMNS = ("Cosine Similarity", "Threshold", "DataType")
DISTANCES = (
    "Cosine Similarity",
    "L1 Distance",
    "L2 Distance",
    "Chebyshev Distance",
)


@dataclass(frozen=True)
class Node:
    """A row of the table of nodes.

    Attributes:
        name: its last characters after "..." where it is long.
        device: BPU is the accelerator.
        subgraph: "id(0)"; "" on the CPU.
        op_type: such as HzSQuantizedConv.
        cosine: cosine similarity of its output with the float model's; None from `checker`.
        threshold: absolute value of its input that becomes 127 (32767 for int16); None for nodes
            without one. `checker` does not calibrate and prints 1.0.
        in_dtype, out_dtype: "int8", "int16", "int32", "float"; "" where the log has none. Most
            versions of the tool print one type, which then stands in both.
    """

    name: str
    device: Device
    subgraph: str
    op_type: str
    cosine: float | None
    threshold: float | None
    in_dtype: str
    out_dtype: str


@dataclass(frozen=True)
class OutputSimilarity:
    """An output of the quantized model against the same of the float model, on one image.

    Attributes:
        l1, l2, chebyshev: distances as hb_mapper computes them, in the output's unit.
    """

    name: str
    cosine: float | None
    l1: float | None
    l2: float | None
    chebyshev: float | None


@dataclass(frozen=True)
class Tensor:
    """An input or output of the ONNX model; a dimension that is not fixed is 0."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Estimate:
    """What the compiler expects of one subgraph on the accelerator. Nothing was run.

    Attributes:
        fps: frames a second.
        latency_ms: of one frame.
        ddr_bytes: read from and written to memory for one frame.
    """

    fps: float
    latency_ms: float
    ddr_bytes: int


@dataclass
class HbMapperLog:
    """What one run of hb_mapper said.

    Attributes:
        command: which of its commands.
        versions: of hb_mapper, hbdk and horizon_nn, by name.
        march: "bayes-e" on RDK X5; "" where the log does not say.
        model: file name of the ONNX model, without folders.
        prefix: of the files it wrote; the model's name on the board.
        calibration: the method that its search chose, such as "kl:num_bin=1024".
        estimates: of each subgraph; empty where nothing was compiled. `checker` compiles without
            optimizing, so that its estimate says little of what `makertbin` makes.
        warnings, errors: messages of these levels; the log in a file does not mark them, the
            terminal's does.
        finished: whether the tool came to its end.
    """

    command: Literal["checker", "makertbin"]
    versions: dict[str, str] = field(default_factory=dict)
    march: str = ""
    model: str = ""
    prefix: str = ""
    calibration: str = ""
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    similarities: list[OutputSimilarity] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    finished: bool = False

    def nodes_on(self, device: Device) -> list[Node]:
        """The nodes that run on `device`."""
        return [node for node in self.nodes if node.device == device]

    @property
    def total(self) -> Estimate | None:
        """All subgraphs one after the other; None where there is no estimate.

        Nodes on the CPU between them are not in it: the compiler does not estimate those.
        """
        if not self.estimates:
            return None
        if len(self.estimates) == 1:
            return self.estimates[0]
        latency_ms = sum(estimate.latency_ms for estimate in self.estimates)
        ddr_bytes = sum(estimate.ddr_bytes for estimate in self.estimates)
        return Estimate(1000 / latency_ms, latency_ms, ddr_bytes)


def is_log(lines: Sequence[str]) -> bool:
    """Whether these are lines of an hb_mapper log."""
    return any(START in line or NODES in line for line in lines)


def parse(data: bytes, name: str) -> HbMapperLog:
    """The last run of hb_mapper in a log.

    Args:
        data: content of the log.
        name: of the file, for errors.

    Raises:
        InputError: not such a log, a table that is cut, or a line that is not as the tool writes
            it. A run that failed is no error: see `finished` and `errors`.
    """
    lines = lines_of(data)
    if not is_log(lines):
        raise InputError(
            f"{name} is not a log of hb_mapper: it has neither {START!r} nor a table of nodes"
        )
    starts = [number for number, line in enumerate(lines) if START in line]
    # Logs that were appended to one file: the last run is what the user has now.
    first = starts[-1] if starts else 0
    reader = _Reader(name, first, lines[first:])
    return reader.read()


class _Reader:
    """Reads the lines of one run, from first to last."""

    def __init__(self, name: str, first: int, lines: Sequence[str]) -> None:
        self._name = name
        self._first = first
        self._lines = lines
        self._last = max((i for i, line in enumerate(lines) if line), default=-1)
        is_checker = any(
            "model checking" in line or "hb_mapper_checker" in line for line in lines
        )
        self._log = HbMapperLog("checker" if is_checker else "makertbin")
        self._tensors: list[Tensor] | None = None

    def read(self) -> HbMapperLog:
        """All that the run said."""
        index = 0
        while index < len(self._lines):
            line = self._lines[index]
            if NODES in line:
                index = self._read_nodes(index + 1)
                continue
            if OUTPUTS in line:
                index = self._read_outputs(index + 1)
                continue
            self._read_line(line, index)
            index += 1
        return self._log

    def _read_line(self, line: str, index: int) -> None:
        log = self._log
        if not TIMESTAMP.match(line):
            self._read_tensor(line)
            return
        self._tensors = None
        prefix = PREFIX.match(line)
        message = line[prefix.end() :].strip() if prefix else line
        self._note_level(prefix.group("level") if prefix else None, message)
        version = VERSION.search(message)
        if version:
            log.versions[version.group(1)] = version.group(2)
        if "FPS" in message and "DDR" in message:
            log.estimates.append(self._estimate(message, index))
        _read_setting(log, message)
        log.finished = log.finished or message.startswith(ENDS)

    def _note_level(self, level: str | None, message: str) -> None:
        notes = self._log.warnings if level == "WARNING" else self._log.errors
        is_noted = level in ("WARNING", "ERROR", "CRITICAL", "FATAL")
        if is_noted and len(notes) < MAX_NOTES:
            notes.append(message[:MAX_NAME])

    def _read_tensor(self, line: str) -> None:
        """A line of the block about the ONNX model's inputs and outputs."""
        if line.strip() == "Graph input:":
            self._tensors = self._log.inputs
        elif line.strip() == "Graph output:":
            self._tensors = self._log.outputs
        elif self._tensors is not None:
            tensor = TENSOR.match(line)
            if tensor:
                self._tensors.append(_tensor(tensor))

    def _estimate(self, message: str, index: int) -> Estimate:
        match = ESTIMATE.search(message)
        try:
            if not match:
                raise ValueError
            fps = number_of(match["fps"]) or 0.0
            latency_ms = milliseconds_of(match["latency"], match["unit"])
            ddr_bytes = count_of(match["ddr"])
            if fps <= 0 or not latency_ms:
                raise ValueError
        except ValueError:
            expected = "FPS=…, latency = … us, DDR = … bytes"
            raise self._unreadable(index, expected) from None
        return Estimate(fps, latency_ms, ddr_bytes)

    def _read_nodes(self, index: int) -> int:
        """Read the table of nodes from line `index`; returns the index of the line after it."""
        columns: list[str] | None = None
        self._log.nodes.clear()
        while index < len(self._lines):
            line = self._lines[index]
            if OUTPUTS in line or CONVERTED in line:
                return index
            if index == self._last:
                break
            if columns is None and line.split()[:2] == ["Node", "ON"]:
                columns = _columns_of(line, COLUMNS)
            elif columns is not None and not _is_between_rows(line):
                self._log.nodes.append(self._node(line, columns, index))
            if len(self._log.nodes) > MAX_NODES:
                raise InputError(
                    f"{self._name} has a table of more than {MAX_NODES:,} nodes; no model has that"
                )
            index += 1
        raise self._cut("nodes", len(self._log.nodes))

    def _node(self, line: str, columns: Sequence[str], index: int) -> Node:
        row = ROW.match(" ".join(line.split()))
        rest = row["rest"].split() if row else []
        if row is None or len(rest) != 1 + len(columns):
            names = ", ".join(("Node", "ON", "Subgraph", "Type", *columns))
            raise self._unreadable(index, f"a row of {names}")
        cells = dict(zip(columns, rest[1:], strict=True))
        in_dtype, _, out_dtype = _unless_absent(cells.get("DataType", "")).partition(
            "/"
        )
        return Node(
            name=row["name"][:MAX_NAME],
            device="BPU" if row["device"] == "BPU" else "CPU",
            subgraph=_unless_absent(row["subgraph"]),
            op_type=rest[0][:MAX_NAME],
            cosine=self._cosine(cells.get("Cosine Similarity", ""), index),
            threshold=self._number(cells.get("Threshold", ""), index),
            in_dtype=in_dtype,
            out_dtype=out_dtype or in_dtype,
        )

    def _read_outputs(self, index: int) -> int:
        """Read the table of outputs from line `index`; returns the index of the line after it."""
        columns: list[str] | None = None
        self._log.similarities.clear()
        while index < len(self._lines):
            line = self._lines[index]
            if TIMESTAMP.match(line):
                return index
            if index == self._last:
                break
            if columns is None and line.split()[:1] == ["Output"]:
                columns = _columns_of(line, DISTANCES)
            elif columns and not _is_between_rows(line):
                self._log.similarities.append(self._similarity(line, columns, index))
            index += 1
        raise self._cut("outputs", len(self._log.similarities))

    def _similarity(
        self, line: str, columns: Sequence[str], index: int
    ) -> OutputSimilarity:
        name, *values = line.strip().rsplit(maxsplit=len(columns))
        if len(values) != len(columns):
            names = ", ".join(("Output", *columns))
            raise self._unreadable(index, f"a row of {names}")
        cells = dict(zip(columns, values, strict=True))
        cosine = self._cosine(cells.get("Cosine Similarity", ""), index)
        l1, l2, chebyshev = (
            self._number(cells.get(column, ""), index) for column in DISTANCES[1:]
        )
        return OutputSimilarity(name[:MAX_NAME], cosine, l1, l2, chebyshev)

    def _cosine(self, text: str, index: int) -> float | None:
        value = self._number(text, index)
        # Float32 sums may exceed 1 by their rounding.
        if value is not None and abs(value) > 1.001:
            raise self._unreadable(index, "a cosine similarity within -1 .. 1")
        return value

    def _number(self, text: str, index: int) -> float | None:
        try:
            return number_of(text)
        except ValueError:
            raise self._unreadable(index, f"a number instead of {text!r}") from None

    def _cut(self, rows: str, count: int) -> InputError:
        # The last row may have lost its last digits, so none of the table can be trusted.
        return InputError(
            f"{self._name} ends within its table of {rows}, after {count} of them; copy the whole "
            "log"
        )

    def _unreadable(self, index: int, expected: str) -> InputError:
        number = self._first + index + 1
        return unreadable(self._name, number, self._lines[index], expected)


def _read_setting(log: HbMapperLog, message: str) -> None:
    """What the run worked on and how, from a message that says so."""
    if message.startswith(("Using onnx model file:", "onnx_model ")):
        log.model = last_part(message.partition(":")[2])
    elif message.startswith("output_model_file_prefix"):
        log.prefix = message.partition(":")[2].strip()[:MAX_NAME]
    elif message.startswith("The specified model compilation architecture:"):
        log.march = message.partition(":")[2].strip(" .")[:MAX_NAME]
    elif message.startswith("Select ") and message.endswith(" method."):
        log.calibration = message[len("Select ") : -len(" method.")][:MAX_NAME]


def _tensor(match: re.Match[str]) -> Tensor:
    sizes = [size.strip() for size in match["shape"].split(",") if size.strip()]
    shape = tuple(int(size) if size.isdecimal() else 0 for size in sizes[:16])
    return Tensor(match["name"][:MAX_NAME], shape, match["dtype"])


def _columns_of(header: str, known: Sequence[str]) -> list[str]:
    """The columns of `known` that a table has, in its order."""
    words = " ".join(header.split())
    present = [column for column in known if column in words]
    return sorted(present, key=words.index)


def _is_between_rows(line: str) -> bool:
    """Whether a line within a table is none of its rows: a rule, a progress bar, a message."""
    text = line.strip()
    is_rule = not text.strip("=-")
    return is_rule or bool(TIMESTAMP.match(text) or _is_progress(text))


def _is_progress(text: str) -> bool:
    # A node's name may hold a percent sign; its row also has a device.
    return bool(PROGRESS.search(text)) and ROW.match(" ".join(text.split())) is None


def _unless_absent(text: str) -> str:
    return "" if text.casefold() in ABSENT else text[:MAX_NAME]
