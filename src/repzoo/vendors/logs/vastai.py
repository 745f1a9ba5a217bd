"""What Vastai's tools print: eval_topk.py's rates, and the profile of a model's speed.

The layout of the profile is that of the profilers in VastModelZOO.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from repzoo.errors import InputError
from repzoo.vendors.logs.text import (
    NUMBER,
    count_of,
    lines_of,
    milliseconds_of,
    number_of,
    unreadable,
)

# NumPy 2 prints np.float64(70.628).
RATE_NUMBER = rf"(?:np\.float\d+\()?({NUMBER})"
RATES = re.compile(
    rf"top1_rate\s*:\s*{RATE_NUMBER}\)?(?:\s*,?\s*top5_rate\s*:\s*{RATE_NUMBER}\)?)?",
    re.IGNORECASE,
)
PRECISION = re.compile(r"^\W*(fp16|bf16|int8|fp32)\W*$", re.IGNORECASE)
THROUGHPUT = re.compile(
    rf"throughput\s*\((?:qps|fps)\)\s*:\s*({NUMBER})", re.IGNORECASE
)
# vamp prints two lists: of the whole call ("e2e") and of the model alone.
SECTION = re.compile(
    r"^\W*(?P<part>e2e|model)?\s*latency\s*\((?P<unit>\w+)\)\s*:", re.IGNORECASE
)
LATENCY = re.compile(
    rf"\b(avg|average|min|max|p\d+(?:\.\d+)?)\s+latency\s*:\s*({NUMBER})", re.IGNORECASE
)
SAMPLES = re.compile(rf"^\W*samples\s*:\s*({NUMBER})", re.IGNORECASE)
BATCH = re.compile(rf"\bbatch size\s*:\s*({NUMBER})", re.IGNORECASE)
INSTANCES = re.compile(
    rf"\bnumber of instances(?: in each device)?\s*:\s*({NUMBER})", re.IGNORECASE
)


@dataclass(frozen=True)
class Rates:
    """Accuracy of one model in percent of images.

    Attributes:
        precision: "fp16" or "int8" where a line before says so, else "".
        top5: None where it is not printed.
    """

    precision: str
    top1: float
    top5: float | None


@dataclass
class Profile:
    """The speed of one model on the card.

    Attributes:
        instances: that ran at once; None where it is not printed.
        batch: images in a call.
        throughput: images a second.
        samples: calls that were timed; None where it is not printed.
        latencies_ms: of calls by name: "avg", "min", "max", "p50" and so on.
        model_ms: the same of the model alone, where that is printed beside the whole call.
    """

    throughput: float = 0.0
    instances: int | None = None
    batch: int = 1
    samples: int | None = None
    latencies_ms: dict[str, float] = field(default_factory=dict)
    model_ms: dict[str, float] = field(default_factory=dict)


@dataclass
class VastaiLog:
    """All that a log says; it may hold several rates and profiles."""

    rates: list[Rates] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)


def is_log(lines: Sequence[str]) -> bool:
    """Whether these are lines of one of Vastai's tools."""
    return any(
        "top1_rate" in line.casefold() or THROUGHPUT.search(line) for line in lines
    )


def parse(data: bytes, name: str) -> VastaiLog:
    """All rates and profiles in a log; `name` is of the file.

    Raises:
        InputError: not such a log, or a line that is not as the tools write it.
    """
    lines = lines_of(data)
    if not is_log(lines):
        raise InputError(
            f"{name} is not a log of Vastai's tools: it has neither top1_rate nor throughput (qps)"
        )
    reader = _Reader()
    for number, line in enumerate(lines, 1):
        try:
            reader.add(line)
        except (ValueError, KeyError, OverflowError):
            expected = "a rate in percent, a throughput or a latency"
            raise unreadable(name, number, line, expected) from None
    return reader.finish(name)


class _Reader:
    def __init__(self) -> None:
        self._log = VastaiLog()
        self._precision = ""
        self._unit = "us"
        self._part = ""
        self._next = Profile()  # what is printed before the throughput

    def add(self, line: str) -> None:
        """Read one line."""
        precision = PRECISION.match(line)
        if precision:
            self._precision = precision[1].casefold()
        if "top1_rate" in line.casefold():
            self._log.rates.append(self._rates(line))
        instances = INSTANCES.search(line)
        if instances:
            self._next = Profile(instances=count_of(instances[1]))
        batch = BATCH.search(line)
        if batch:
            self._next.batch = count_of(batch[1])
        throughput = THROUGHPUT.search(line)
        if throughput:
            self._next.throughput = number_of(throughput[1]) or 0.0
            self._log.profiles.append(self._next)
            self._next = Profile()
        samples = SAMPLES.match(line)
        if samples:
            self._next.samples = count_of(samples[1])
        section = SECTION.match(line)
        if section:
            self._unit = section["unit"]
            self._part = (section["part"] or "").casefold()
        latency = LATENCY.search(line)
        if latency and self._log.profiles:
            kind = latency[1].casefold().replace("average", "avg")
            profile = self._log.profiles[-1]
            times = profile.model_ms if self._part == "model" else profile.latencies_ms
            times[kind] = milliseconds_of(latency[2], self._unit)

    def finish(self, name: str) -> VastaiLog:
        """The log, when all lines are read."""
        for profile in self._log.profiles:
            profile.latencies_ms = profile.latencies_ms or profile.model_ms
            if profile.throughput <= 0 or "avg" not in profile.latencies_ms:
                raise InputError(
                    f"{name} has a throughput without an average latency; copy the whole log"
                )
        return self._log

    def _rates(self, line: str) -> Rates:
        match = RATES.search(line)
        is_cut = match is not None and match[2] is None and "top5" in line.casefold()
        if match is None or is_cut:
            raise ValueError("no rate")
        top1 = number_of(match[1]) or 0.0
        top5 = number_of(match[2]) if match[2] else None
        highest = 100.0 if top5 is None else top5
        if not 0 <= top1 <= highest <= 100:
            raise ValueError("no rate in percent")
        return Rates(self._precision, top1, top5)
