"""Which models keep within limits on accuracy, latency, size and arithmetic, best first.

Pure: the figures come from `match_figures.py`. A limit whose figure is not known is neither met
nor missed. Such a candidate does not fit, but it is not the nearest one that fails either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

NEAREST = 5  # candidates that are shown where none fits

# counted: in the graph. scaled: from the count at another image size. published for the float
# model: of an INT8 form whose own accuracy nobody has measured.
Basis = Literal[
    "counted",
    "scaled",
    "published",
    "published for the float model",
    "published for the board",
    "board log",
    "measured here",
    "measured elsewhere",
    "vendor's estimate",
]


@dataclass(frozen=True)
class Evidence:
    """A figure and what it rests on.

    source  who says so, or where it was measured
    """

    value: float
    basis: Basis
    source: str = ""


@dataclass(frozen=True)
class Limits:
    """What a model must keep within; None: no limit.

    max_ms    milliseconds of a call with one image
    min_top1  percent of images
    max_mb    megabytes (10^6 bytes) of weights
    max_macs  multiply-accumulates of one image
    """

    max_ms: float | None = None
    min_top1: float | None = None
    max_mb: float | None = None
    max_macs: float | None = None


@dataclass(frozen=True)
class MatchCandidate:
    """A model in one number format on one host. A figure that nobody has is None.

    precision   float32, fp16, bf16 or int8
    size        of its images in pixels, such as "224"
    top1        percent
    latency_ms  of a call with one image
    weights_mb  parameters times the bytes of one, in 10^6 bytes
    macs        multiply-accumulates of one image
    """

    model: str
    precision: str
    host: str
    size: str
    top1: Evidence | None = None
    latency_ms: Evidence | None = None
    weights_mb: Evidence | None = None
    macs: Evidence | None = None


@dataclass(frozen=True)
class Miss:
    """A limit that a candidate does not keep.

    figure    name of the candidate's field
    by        how much is missing, in the figure's unit
    relative  the same as a share of the limit; of Top-1, as a share of the errors it allows
    """

    figure: str
    by: float
    relative: float


@dataclass(frozen=True)
class NearMiss:
    """A candidate that does not fit, with the limits it misses."""

    candidate: MatchCandidate
    misses: tuple[Miss, ...]

    @property
    def distance(self) -> float:
        """How far it is from fitting: the sum of its relative misses."""
        return sum(miss.relative for miss in self.misses)


@dataclass(frozen=True)
class Match:
    """What `match` found.

    fits      keep every limit, best first
    unknown   miss no limit that can be judged, but lack the figure for another; best first
    misses    the others, nearest first; those that lack a figure come after the others
    remarks   what to know before figures are compared
    """

    limits: Limits
    fits: tuple[MatchCandidate, ...]
    unknown: tuple[MatchCandidate, ...]
    misses: tuple[NearMiss, ...]
    remarks: tuple[str, ...] = ()

    @property
    def nearest(self) -> tuple[NearMiss, ...]:
        """The first of `misses`, where figures for all limits are known."""
        known: list[NearMiss] = []
        for near in self.misses[:NEAREST]:
            if not unknown_figures(near.candidate, self.limits):
                known.append(near)
        return tuple(known)

    @property
    def best(self) -> MatchCandidate | None:
        """The best model that fits; None where none does."""
        return self.fits[0] if self.fits else None


# The figure that each limit bounds.
FIGURES = {
    "max_ms": "latency_ms",
    "min_top1": "top1",
    "max_mb": "weights_mb",
    "max_macs": "macs",
}


def choose(
    candidates: Iterable[MatchCandidate], limits: Limits, remarks: Sequence[str] = ()
) -> Match:
    """Sort `candidates` into those that fit, those that cannot be judged, and the others."""
    fits: list[MatchCandidate] = []
    unknown: list[MatchCandidate] = []
    misses: list[NearMiss] = []
    for candidate in candidates:
        missed = missed_limits(candidate, limits)
        if missed:
            misses.append(NearMiss(candidate, missed))
        elif unknown_figures(candidate, limits):
            unknown.append(candidate)
        else:
            fits.append(candidate)
    fits.sort(key=_rank)
    unknown.sort(key=_rank)
    misses.sort(key=lambda near: _nearness(near, limits))
    shown = fits or [*unknown, *(near.candidate for near in misses[:NEAREST])]
    noted = (*remarks, *_comparison_remarks(shown))
    return Match(limits, tuple(fits), tuple(unknown), tuple(misses), noted)


def missed_limits(candidate: MatchCandidate, limits: Limits) -> tuple[Miss, ...]:
    """The limits that the known figures of `candidate` do not keep."""
    misses: list[Miss] = []
    for name, limit in _stated(limits):
        evidence: Evidence | None = getattr(candidate, FIGURES[name])
        if evidence is None:
            continue
        is_least = name.startswith("min")
        by = limit - evidence.value if is_least else evidence.value - limit
        if by > 0:
            # A point of Top-1 weighs more where fewer errors are allowed; 100 % allows none.
            scale = max(100 - limit, 1) if is_least else limit
            misses.append(Miss(FIGURES[name], by, by / scale))
    return tuple(misses)


def unknown_figures(candidate: MatchCandidate, limits: Limits) -> list[str]:
    """Names of the figures that `limits` bounds and `candidate` lacks."""
    names = [FIGURES[name] for name, _ in _stated(limits)]
    return [name for name in names if getattr(candidate, name) is None]


def _stated(limits: Limits) -> list[tuple[str, float]]:
    """The limits that there are, by name."""
    values = dataclasses.asdict(limits)
    return [(name, value) for name, value in values.items() if value is not None]


def _rank(candidate: MatchCandidate) -> tuple[float, str, float, float, str]:
    """Highest Top-1 first. Latencies decide only between figures of the same host."""
    top1 = candidate.top1.value if candidate.top1 else -math.inf
    latency = candidate.latency_ms.value if candidate.latency_ms else math.inf
    size = candidate.weights_mb.value if candidate.weights_mb else math.inf
    return (-top1, candidate.host, latency, size, candidate.model)


def _nearness(near: NearMiss, limits: Limits) -> tuple[Any, ...]:
    """Smaller is nearer. What may miss further limits cannot be called near."""
    lacks_figures = bool(unknown_figures(near.candidate, limits))
    return (lacks_figures, near.distance, _rank(near.candidate))


def _comparison_remarks(shown: Sequence[MatchCandidate]) -> list[str]:
    """Which of the figures that stand side by side must not be compared."""
    remarks: list[str] = []
    timed = [candidate for candidate in shown if candidate.latency_ms]
    hosts = list(dict.fromkeys(candidate.host for candidate in timed))
    if len(hosts) > 1:
        remarks.append(
            f"latencies of different hosts are not comparable: {', '.join(hosts)}"
        )
    bases = {candidate.top1.basis for candidate in shown if candidate.top1}
    if "published for the float model" in bases:
        remarks.append(
            "the Top-1 of INT8 rows is that of the float model, since no INT8 accuracy is known: "
            "repzoo quantize --max-drop bounds what INT8 loses"
        )
    if "published for the board" in bases:
        remarks.append(
            "Top-1 that is published for a board may rest on a few hundred images, which leaves 4 "
            "points open to each side; repzoo info MODEL has the conditions"
        )
    is_on_board = bases & {"published for the board", "board log"}
    if is_on_board and bases - {"published for the board", "board log"}:
        remarks.append(
            "Top-1 figures of boards and of the models' authors rest on different images"
        )
    return remarks
