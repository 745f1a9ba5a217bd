"""Result of a race: float and INT8 on several engines, timed in the same interleaved rounds.

And how sessions are used in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Objective = Literal["latency", "throughput", "size"]


@dataclass(frozen=True)
class Load:
    """How a session is used while it is timed.

    threads  of the session
    clients  threads that call it at once
    """

    threads: int = 1
    clients: int = 1

    def __str__(self) -> str:
        """What differs from one client and one thread: "2 threads, 4 clients"; "" for nothing."""
        parts = []
        for name in ("threads", "clients"):
            count = getattr(self, name)
            if count > 1:
                parts.append(f"{count} {name}")
        return ", ".join(parts)


ALONE = Load()


@dataclass(frozen=True, kw_only=True)
class RaceEntry:
    """One form of a model on one engine.

    engine, version  the runtime
    form             deploy (float) or int8
    bytes            size of the file; None where there is none, as for what was not judged
    p50_ms, fps      median latency of a call and images a second; None where it was not timed
    ratio            time of an image over that of the fastest float: below 1 is faster. Of
                     throughput it is that float's images a second over those of this entry
    drop             Top-1 points lost against float on the gate images; None for float
    verdict          the gate's, as in QuantizeSummary; None for float, and for INT8 that was not
                     judged, since it could not win
    placement        name of the Q/DQ placement; None for float
    problem          why it is not in the race; "" for one that is
    """

    engine: str
    version: str
    form: Literal["deploy", "int8"]
    bytes: int | None = None
    p50_ms: float | None = None
    fps: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    drop: float | None = None
    verdict: str | None = None
    placement: str | None = None
    problem: str = ""

    @property
    def is_timed(self) -> bool:
        """Whether it ran in the race."""
        return self.ratio is not None

    @property
    def could_not_win(self) -> bool:
        """Whether it is INT8 of which nothing but the time is known, slower than another's."""
        return self.form == "int8" and self.is_timed and not self.is_judged

    @property
    def is_judged(self) -> bool:
        """Whether it is INT8 of which the gate knows the accuracy."""
        return self.verdict is not None


@dataclass(frozen=True, kw_only=True)
class RaceSummary:
    """A race with its winner.

    clients  threads that called each session at once
    threads  of each session
    entries  all that was tried
    winner   index in `entries`
    reason   why it won, in a sentence
    busy     other processes used the machine, which holds engines up unequally
    """

    objective: Objective
    clients: int
    entries: tuple[RaceEntry, ...]
    winner: int
    reason: str
    busy: bool = False
    threads: int = 1

    @property
    def load(self) -> Load:
        """How each session was used."""
        return Load(self.threads, self.clients)

    @property
    def chosen(self) -> RaceEntry:
        """The entry that won."""
        return self.entries[self.winner]
