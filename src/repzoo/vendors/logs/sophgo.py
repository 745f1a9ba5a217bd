"""What Sophgo's tools print: model_deploy's comparisons, run_calibration's table and bmrt_test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from repzoo.errors import InputError
from repzoo.vendors.logs.text import (
    MAX_NAME,
    NUMBER,
    last_part,
    lines_of,
    milliseconds_of,
    number_of,
    unreadable,
)

MAX_ROWS = 100_000
COMPARE = re.compile(r"npz_tool(?:\.py)? compare\s+(\S+)\s+(\S+)")
# The tool itself writes NOT_SIMLIAR.
TENSOR = re.compile(
    r"^\s*\[(?P<name>.+?)\s*\]\s+(?P<verdict>EQUAL|CLOSE|SIMILAR|NOT_EQUAL|NOT_SIM\w+)"
    r"\s+\[\s*(?P<passed>PASSED|FAILED)\s*\]"
)
FIGURE = re.compile(
    rf"^\s*(?P<key>cosine|euclidean|sqnr)_similarity\s*=\s*(?P<value>-?(?:{NUMBER}|inf|nan))\s*$"
)
FIGURE_LABEL = re.compile(r"^\s*(?:cosine|euclidean|sqnr)_similarity\s*=")
# Before the comparison the tool prints its command, after it the command with its success.
COMPARED = re.compile(r"\[(?:Success|Failed)\]", re.IGNORECASE)
SIDE = re.compile(r"^(?P<side>Target|Reference)\s+(?P<file>\S+\.npz)\s*$")
RESULT = re.compile(r"npz compare (?P<result>PASSED|FAILED)")
TABLE = re.compile(r"^#\s*op_name\s+threshold\s+min\s+max")
TABLE_ROW = re.compile(
    rf"^(?P<name>\S+)\s+(?P<threshold>{NUMBER})\s+(?P<min>{NUMBER})\s+(?P<max>{NUMBER})$"
)
VERSION = re.compile(r"(?:^TPU-MLIR|^SOPHGO Toolchain|# mlir version:)\s*(v[\w.-]+)")
METHOD = re.compile(r"^#\s*quantization threshold calculation method\s*:\s*\[?'?(\w+)")
SAMPLES = re.compile(r"^#\s*sample number\s*:\s*(\d+)")
LAUNCH = re.compile(
    rf"net\[(?P<net>[^\[\]]*)\].{{0,40}}?launch total time is"
    rf"\s+(?P<time>{NUMBER})\s*(?P<unit>us|ms|s)\b"
)
CALCULATE = re.compile(rf"calculate\s+time\(s\)\s*:\s*(?P<time>{NUMBER})")


@dataclass(frozen=True)
class TensorSimilarity:
    """A tensor of one file against the same of another.

    Attributes:
        name: of the tensor, with its operator after the last underscore.
        passed: whether it is within the tolerance of the comparison.
        cosine, euclidean: similarities up to 1; None where the tool did not have to compute them.
        snr_db: signal-to-noise ratio.
    """

    name: str
    passed: bool
    cosine: float | None = None
    euclidean: float | None = None
    snr_db: float | None = None


@dataclass
class Comparison:
    """A comparison of two files of tensors.

    Attributes:
        target, reference: file names; "" where the log does not say.
        passed: whether all tensors are within the tolerance.
    """

    target: str = ""
    reference: str = ""
    tensors: list[TensorSimilarity] = field(default_factory=list)
    passed: bool = False


@dataclass(frozen=True)
class Threshold:
    """A row of a calibration table: what the symmetric grid covers, and the range that was seen."""

    name: str
    threshold: float
    low: float
    high: float


@dataclass(frozen=True)
class Launch:
    """One run of a network on the chip, without loading inputs and fetching outputs."""

    network: str
    latency_ms: float


@dataclass
class SophgoLog:
    """All that a log says.

    Attributes:
        version: of tpu-mlir; "" where the log does not say.
        method: by which the thresholds were chosen, such as "kl"; "" where it does not say.
        samples: calibration images that the table is from; None where it does not say.
    """

    version: str = ""
    method: str = ""
    comparisons: list[Comparison] = field(default_factory=list)
    thresholds: list[Threshold] = field(default_factory=list)
    samples: int | None = None
    launches: list[Launch] = field(default_factory=list)

    @property
    def quantized(self) -> Comparison | None:
        """The comparison of the quantized model with the float model; None without one.

        model_deploy also compares the compiled model with the quantized one, and model_transform
        the float model with itself in another form: those say nothing of quantization.
        """
        for comparison in reversed(self.comparisons):
            if comparison.target.endswith("tpu_outputs.npz"):
                return comparison
        known = any(comparison.target for comparison in self.comparisons)
        return None if known or not self.comparisons else self.comparisons[-1]


def is_log(lines: Sequence[str]) -> bool:
    """Whether these are lines that Sophgo's tools printed."""
    return any(
        TABLE.match(line)
        or "launch total time is" in line
        or CALCULATE.search(line)
        or TENSOR.match(line)
        or VERSION.match(line)
        for line in lines
    )


def parse(data: bytes, name: str) -> SophgoLog:
    """Comparisons, thresholds and times in a log; `name` is of the file.

    Raises:
        InputError: none of them is there, a line is not as the tools write it, or times of several
            networks.
    """
    lines = lines_of(data)
    if not is_log(lines):
        raise InputError(
            f"{name} is not a log of Sophgo's tools: it has no comparison, no calibration table "
            "and no time"
        )
    reader = _Reader(name)
    for number, line in enumerate(lines, 1):
        try:
            reader.add(line)
        except (ValueError, OverflowError):
            expected = (
                "figures as model_deploy, run_calibration and bmrt_test print them"
            )
            raise unreadable(name, number, line, expected) from None
    return reader.finish()


class _Reader:
    def __init__(self, name: str) -> None:
        self._name = name
        self._log = SophgoLog()
        self._comparison: Comparison | None = None
        self._tensor: tuple[str, str, bool] | None = None
        self._figures: dict[str, float | None] = {}
        self._in_table = False
        self._calculated: list[float] = []

    def add(self, line: str) -> None:
        """Read one line."""
        self._add_comparison(line)
        for name, pattern in (("version", VERSION), ("method", METHOD)):
            setting = pattern.match(line)
            if setting:
                setattr(self._log, name, setting[1])
        samples = SAMPLES.match(line)
        if samples:
            self._log.samples = int(samples[1])
        if TABLE.match(line):
            self._in_table = True
        elif self._in_table:
            self._add_threshold(line)
        launch = LAUNCH.search(line)
        if launch:
            time = milliseconds_of(launch["time"], launch["unit"])
            self._log.launches.append(Launch(launch["net"][:MAX_NAME], time))
        elif "launch total time is" in line:
            raise ValueError("a time that cannot be read")
        calculated = CALCULATE.search(line)
        if calculated:
            self._calculated.append(milliseconds_of(calculated["time"], "s"))
        if len(self._log.launches) + len(self._log.thresholds) > MAX_ROWS:
            raise InputError(
                f"{self._name} has more than {MAX_ROWS:,} rows; give a part of it"
            )

    def finish(self) -> SophgoLog:
        """The log, when all lines are read."""
        self._end_tensor()
        log = self._log
        # The sum over all launches of a run; where these are there, it says nothing new.
        if not log.launches:
            log.launches = [Launch("", time) for time in self._calculated]
        networks = sorted({launch.network for launch in log.launches})
        if len(networks) > 1:
            # Their times would become one average.
            raise InputError(
                f"{self._name} is of several networks, {networks[0]!r} and {networks[1]!r} among "
                "them; give the runs of each network as a file of their own"
            )
        if self._in_table and not log.thresholds:
            raise InputError(f"{self._name} has a calibration table without rows")
        if self._comparison is not None:
            raise InputError(
                f"{self._name} ends before the result of a comparison; copy the whole log"
            )
        return log

    def _add_comparison(self, line: str) -> None:
        command = COMPARE.search(line)
        if command and not COMPARED.search(line):
            self._end_tensor()
            self._comparison = Comparison(last_part(command[1]), last_part(command[2]))
        side = SIDE.match(line)
        if side and self._comparison:
            setattr(self._comparison, side["side"].lower(), last_part(side["file"]))
        tensor = TENSOR.match(line)
        if tensor:
            self._end_tensor()
            passed = tensor["passed"] == "PASSED"
            self._tensor = (tensor["name"][:MAX_NAME], tensor["verdict"], passed)
        if FIGURE_LABEL.match(line) and self._tensor:
            figure = FIGURE.match(line)
            if figure is None:
                raise ValueError("a similarity that cannot be read")
            self._figures[figure["key"]] = number_of(figure["value"])
        result = RESULT.search(line)
        if result:
            self._end_tensor()
            if self._comparison:
                self._comparison.passed = result["result"] == "PASSED"
                self._log.comparisons.append(self._comparison)
            self._comparison = None

    def _end_tensor(self) -> None:
        """Keep the tensor whose lines are read."""
        if self._tensor is None:
            return
        name, verdict, passed = self._tensor
        cosine = self._figures.get("cosine")
        if verdict == "EQUAL":
            cosine = 1.0  # bit by bit, so that the tool prints no figures
        if cosine is not None and abs(cosine) > 1.001:
            raise ValueError("not a cosine")
        self._comparison = self._comparison or Comparison()
        self._comparison.tensors.append(
            TensorSimilarity(
                name,
                passed,
                cosine,
                self._figures.get("euclidean"),
                self._figures.get("sqnr"),
            )
        )
        self._tensor = None
        self._figures = {}
        if len(self._comparison.tensors) > MAX_ROWS:
            raise InputError(f"{self._name} compares more than {MAX_ROWS:,} tensors")

    def _add_threshold(self, line: str) -> None:
        if not line.strip() or line.startswith("#"):
            # Tables of int4 weights may follow.
            self._in_table = not self._log.thresholds
            return
        row = TABLE_ROW.match(line.strip())
        if row is None:
            raise ValueError("no row of a calibration table")
        threshold, low, high = (
            number_of(row[key]) or 0.0 for key in ("threshold", "min", "max")
        )
        if threshold < 0 or low > high:
            raise ValueError("no range")
        self._log.thresholds.append(
            Threshold(row["name"][:MAX_NAME], threshold, low, high)
        )
