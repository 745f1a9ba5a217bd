"""The log of D-Robotics' hrt_model_exec on the board: `perf` and `model_info`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from repzoo.errors import InputError
from repzoo.vendors.logs.text import (
    MAX_NAME,
    NUMBER,
    count_of,
    last_part,
    lines_of,
    milliseconds_of,
    number_of,
    unreadable,
)

MAX_RUNS = 10_000
TIME = rf"(?P<value>{NUMBER})\s*(?P<unit>us|ms|s)\b"
# Words of a label are apart by any white space: the tool aligns its colons with it.
THREADS = re.compile(
    rf"\bThread\s+number\s+is\s*:\s*(?P<value>{NUMBER})", re.IGNORECASE
)
FRAMES = re.compile(rf"\bFrame\s+count\s+is\s*:\s*(?P<value>{NUMBER})", re.IGNORECASE)
AVERAGE = re.compile(rf"\bAverage\s+latency\s+is\s*:\s*{TIME}", re.IGNORECASE)
RATE = re.compile(
    rf"\bFrame\s+rate\s+is\s*:\s*(?P<value>{NUMBER})\s*FPS", re.IGNORECASE
)
FASTEST = re.compile(rf"\bmin\s+latency\s*:\s*{TIME}", re.IGNORECASE)
SLOWEST = re.compile(rf"\bmax\s+latency\s*:\s*{TIME}", re.IGNORECASE)
RESULT = re.compile(r"\b(?:Average\s+latency|Frame\s+rate)\s+is\b", re.IGNORECASE)
CONDITION = re.compile(r"\bRunning\s+condition\b", re.IGNORECASE)
FILE = re.compile(r"--model_file[= ]\s*(\S+)")
RUNTIME = re.compile(r"\[DNN\]\s*Runtime version\s*=\s*([\w.]+?)_?(?:\s*\(|$)")
BUILDER = re.compile(r"model builder version\s*=\s*([\w.]+)")
TENSOR = re.compile(r"^\s*(?P<kind>input|output)\[\d+\]\s*:")
FIELD = re.compile(r"^\s*(?P<key>name|valid shape|tensor type)\s*:\s*(?P<value>.*)$")


@dataclass(frozen=True)
class PerfRun:
    """One run of `hrt_model_exec perf`. Its latency has no percentiles.

    Attributes:
        threads: that called the model at once.
        frames: that were run.
        average_ms, min_ms, max_ms: of the calls; None where the log has lost them.
        fps: frames a second, all threads together.
    """

    threads: int
    frames: int
    average_ms: float
    min_ms: float | None
    max_ms: float | None
    fps: float


@dataclass
class BoardTensor:
    """An input or output as the .bin has it.

    Attributes:
        shape: NCHW or NHWC, as the .bin has it.
        type: such as HB_DNN_IMG_TYPE_NV12.
    """

    name: str = ""
    shape: tuple[int, ...] = ()
    type: str = ""


@dataclass
class HrtLog:
    """What hrt_model_exec said; several runs may stand in one log.

    Attributes:
        model: file name of the .bin, without folders; "" where the log does not say.
        runtime, builder: versions of the library on the board, and of the tool that made the .bin.
        runs: of `perf`; empty where only `model_info` ran.
        inputs, outputs: from `model_info`.
    """

    model: str = ""
    runtime: str = ""
    builder: str = ""
    runs: list[PerfRun] = field(default_factory=list)
    inputs: list[BoardTensor] = field(default_factory=list)
    outputs: list[BoardTensor] = field(default_factory=list)


def is_log(lines: Sequence[str]) -> bool:
    """Whether these are lines of an hrt_model_exec log."""
    return any(
        "hrt_model_exec" in line or RESULT.search(line) or "[HorizonRT]" in line
        for line in lines
    )


def parse(data: bytes, name: str) -> HrtLog:
    """All runs in a log; `name` is of the file.

    Raises:
        InputError: not such a log, a run that ends before its result, or a line that is not as the
            tool writes it, or runs of several models.
    """
    lines = lines_of(data)
    if not is_log(lines):
        raise InputError(f"{name} is not a log of hrt_model_exec")
    reader = _Reader(name)
    for number, line in enumerate(lines, 1):
        reader.add(number, line)
    return reader.finish()


class _Reader:
    def __init__(self, name: str) -> None:
        self._name = name
        self._log = HrtLog()
        self._numbers: dict[str, float] = {}
        self._is_open = False  # a run has begun and has not ended
        self._tensor: BoardTensor | None = None

    def add(self, number: int, line: str) -> None:
        """Read one line."""
        if "hrt_model_exec" in line or "version" in line:
            self._add_version(line)
        self._add_tensor(line)
        try:
            self._add_figures(line)
        except (ValueError, OverflowError):
            expected = "numbers as hrt_model_exec perf prints them"
            raise unreadable(self._name, number, line, expected) from None

    def finish(self) -> HrtLog:
        """The log, when all lines are read."""
        if self._is_open:
            raise InputError(
                f"{self._name} ends before the frame rate of its last run; copy the whole log"
            )
        return self._log

    def _add_version(self, line: str) -> None:
        for name, pattern in (("runtime", RUNTIME), ("builder", BUILDER)):
            match = pattern.search(line)
            if match:
                setattr(self._log, name, last_part(match.group(1)))
        file = FILE.search(line)
        if file:
            self._set_model(last_part(file.group(1)))

    def _set_model(self, model: str) -> None:
        # Results would go to the wrong model.
        if self._log.model not in ("", model):
            raise InputError(
                f"{self._name} is of two models, {self._log.model[:80]!r} and {model[:80]!r}; give "
                "the runs of each model as a file of their own"
            )
        self._log.model = model

    def _add_tensor(self, line: str) -> None:
        tensor = TENSOR.match(line)
        if tensor:
            self._tensor = BoardTensor()
            side = self._log.inputs if tensor["kind"] == "input" else self._log.outputs
            side.append(self._tensor)
            return
        entry = FIELD.match(line)
        if self._tensor is None or entry is None:
            return
        value = entry["value"].strip()[:MAX_NAME]
        if entry["key"] == "name":
            self._tensor.name = value
        elif entry["key"] == "tensor type":
            self._tensor.type = value
        else:
            sizes = re.findall(r"\d+", value)
            self._tensor.shape = tuple(int(size) for size in sizes[:16])

    def _add_figures(self, line: str) -> None:
        numbers = self._numbers
        # The tool prints these every 200 frames.
        fastest = FASTEST.search(line)
        if fastest:
            time = milliseconds_of(fastest["value"], fastest["unit"])
            numbers["min"] = min(numbers.get("min", time), time)
        slowest = SLOWEST.search(line)
        if slowest:
            time = milliseconds_of(slowest["value"], slowest["unit"])
            numbers["max"] = max(numbers.get("max", time), time)
        if CONDITION.search(line):
            self._is_open = True
        for key, pattern in (("threads", THREADS), ("frames", FRAMES)):
            count = pattern.search(line)
            if count:
                numbers[key] = count_of(count["value"])
        average = AVERAGE.search(line)
        if average:
            numbers["average"] = milliseconds_of(average["value"], average["unit"])
        rate = RATE.search(line)
        if rate:
            numbers["fps"] = number_of(rate["value"]) or 0.0
            self._end_run()
        elif RESULT.search(line) and not average:
            raise ValueError("a result that cannot be read")

    def _end_run(self) -> None:
        numbers = self._numbers
        if "average" not in numbers or numbers["fps"] <= 0:
            raise ValueError("no result")
        if len(self._log.runs) == MAX_RUNS:
            raise InputError(
                f"{self._name} has more than {MAX_RUNS:,} runs; give some of them"
            )
        run = PerfRun(
            threads=int(numbers.get("threads", 1)),
            frames=int(numbers.get("frames", 0)),
            average_ms=numbers["average"],
            min_ms=numbers.get("min"),
            max_ms=numbers.get("max"),
            fps=numbers["fps"],
        )
        self._log.runs.append(run)
        self._numbers = {}
        self._is_open = False
