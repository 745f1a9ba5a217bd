"""The view of `repzoo match`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from repzoo.console import screen
from repzoo.console.output import View, make_table
from repzoo.measure.matching import (
    NEAREST,
    Evidence,
    Match,
    MatchCandidate,
    Miss,
    NearMiss,
    unknown_figures,
)
from repzoo.report import figures

# Rows of a table: as many as leave room for the notes. --json has all.
SHOWN = 8
FEWEST = 3
MARKS = "abcdefghijklmnopqrstuvwxyz"
UNITS = {"top1": "points", "latency_ms": "ms", "weights_mb": "MB", "macs": "M MACs"}
NAMES = {"top1": "Top-1", "latency_ms": "ms", "weights_mb": "MB", "macs": "MACs M"}
FORMATS: dict[str, Callable[[float], str]] = {
    "top1": figures.percent,
    "latency_ms": figures.ms,
    "weights_mb": lambda value: f"{value:.1f}",
    "macs": lambda value: f"{value / 1e6:.0f}",
}


class _Notes:
    """Footnotes: a letter for each thing that figures rest on."""

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}

    def cell(self, candidate: MatchCandidate, name: str) -> str:
        """The figure `name` of `candidate` with the letter of what it rests on."""
        evidence: Evidence | None = getattr(candidate, name)
        if evidence is None:
            return figures.ABSENT
        shown = FORMATS[name](evidence.value)
        # Counts need no source: anyone can repeat them.
        if evidence.basis == "counted":
            return shown
        text = _rests_on(candidate, name, evidence)
        if text not in self._marks:
            self._marks[text] = _mark(len(self._marks))
        return f"{shown} {self._marks[text]}"

    def lines(self) -> list[str]:
        """The footnotes, in the order of their letters."""
        return [f"{mark}: {text}" for text, mark in self._marks.items()]


def _mark(number: int) -> str:
    """The letters a to z, then aa, ab, and so on."""
    rounds, place = divmod(number, len(MARKS))
    return (_mark(rounds - 1) if rounds else "") + MARKS[place]


def _rests_on(candidate: MatchCandidate, name: str, evidence: Evidence) -> str:
    """What a figure rests on; of a latency also the host."""
    text = f"{evidence.basis}, {evidence.source}"
    if name != "latency_ms":
        return text
    if evidence.basis == "measured here":
        return "measured here"
    # The others name their host; a published figure of a phone or a GPU names a paper.
    return f"{text}; host {candidate.host}" if evidence.basis == "published" else text


def match(result: Match) -> View:
    """What fits, or what is nearest, as a table with footnotes: at most a screen."""
    room = screen.LINES - screen.ASIDES
    rows = SHOWN
    shown = _shown(result, rows)
    while rows > FEWEST and _height(shown, result) > room:
        rows -= 1
        shown = _shown(result, rows)
    return View(_document(result), *shown, remarks=result.remarks, rest="--json")


def _height(shown: Sequence[Any], result: Match) -> int:
    return screen.line_count(shown) + screen.note_lines(result.remarks)


def _shown(result: Match, rows: int) -> list[Any]:
    """What `match` shows, with tables of at most `rows` rows."""
    notes = _Notes()
    shown: list[Any] = []
    if result.fits:
        count = len(result.fits)
        models = "1 model keeps" if count == 1 else f"{count} models keep"
        shown.append(f"{models} every limit, best first:")
        shown.append(_fitting(result.fits, result, notes, rows))
    else:
        shown += _near(result, notes, rows)
    shown += notes.lines()
    if result.fits and result.unknown:
        shown.append(
            f"{len(result.unknown)} more may fit, but figures are missing (--json lists them)"
        )
    return shown


def _near(result: Match, notes: _Notes, rows: int) -> list[Any]:
    """Tables of what is nearest, and of what cannot be judged."""
    if not result.unknown:
        if not result.misses:
            return ["nothing fits"]
        nearest = result.nearest or result.misses[:NEAREST]
        return ["nothing fits; the nearest:", _nearest(nearest, result, notes, rows)]
    shown: list[Any] = []
    if result.nearest:
        table = _nearest(result.nearest, result, notes, rows)
        shown += ["nothing is known to fit; the nearest:", table]
    heading = f"{len(result.unknown)} may fit, but figures are missing:"
    return [*shown, heading, _unknown(result, notes, rows)]


def summary_of_failure(result: Match) -> str:
    """One sentence on why nothing fits, for the error."""
    if result.unknown and not result.nearest:
        lacking = {
            NAMES[name]
            for candidate in result.unknown
            for name in unknown_figures(candidate, result.limits)
        }
        return (
            f"nothing is known to fit: {len(result.unknown)} candidates lack a figure "
            f"({', '.join(sorted(lacking))})"
        )
    if not result.misses:
        return "nothing fits: there is no candidate with any figure"
    near = result.misses[0]
    claim = "nothing is known to fit" if result.unknown else "nothing fits"
    return (
        f"{claim}: the nearest, {near.candidate.model} in {near.candidate.precision}, misses "
        f"by {_misses(near.misses)}"
    )


def _columns(result: Match) -> list[str]:
    """The figures of a row; MACs only where they are limited, since rows have 80 columns."""
    names = ["top1", "latency_ms", "weights_mb"]
    if result.limits.max_macs is not None:
        names.append("macs")
    return names


def _table(result: Match, *further: str) -> Table:
    headings = [f">{NAMES[name]}" for name in _columns(result)]
    return make_table("model", "format", *headings, *further)


def _cells(candidate: MatchCandidate, result: Match, notes: _Notes) -> list[str]:
    cells = [notes.cell(candidate, name) for name in _columns(result)]
    return [candidate.model, candidate.precision, *cells]


def _fitting(
    candidates: Sequence[MatchCandidate], result: Match, notes: _Notes, rows: int
) -> Table:
    table = _table(result)
    for candidate in candidates[:rows]:
        table.add_row(*_cells(candidate, result, notes))
    _say_rest(table, len(candidates), rows)
    return table


def _unknown(result: Match, notes: _Notes, rows: int) -> Table:
    table = _table(result, "not known")
    for candidate in result.unknown[:rows]:
        names = unknown_figures(candidate, result.limits)
        lacking = ", ".join(NAMES[name] for name in names)
        table.add_row(*_cells(candidate, result, notes), lacking)
    _say_rest(table, len(result.unknown), rows)
    return table


def _nearest(
    nearest: Sequence[NearMiss], result: Match, notes: _Notes, rows: int
) -> Table:
    table = _table(result, "misses by")
    for near in nearest[:rows]:
        cells = _cells(near.candidate, result, notes)
        table.add_row(*cells, _misses(near.misses))
    _say_rest(table, len(nearest), rows)
    return table


def _say_rest(table: Table, count: int, rows: int) -> None:
    if count > rows:
        table.add_row(f"and {count - rows} more")


def _misses(misses: Sequence[Miss]) -> str:
    """Such as "0.75 points, 0.24 MB"."""
    parts: list[str] = []
    for miss in misses:
        by = miss.by / 1e6 if miss.figure == "macs" else miss.by
        parts.append(f"{by:.3g} {UNITS[miss.figure]}")
    return ", ".join(parts)


def _document(result: Match) -> dict[str, Any]:
    return {
        "limits": dataclasses.asdict(result.limits),
        "fits": [dataclasses.asdict(candidate) for candidate in result.fits],
        "unknown": [
            {
                **dataclasses.asdict(candidate),
                "lacks": unknown_figures(candidate, result.limits),
            }
            for candidate in result.unknown
        ],
        "misses": [_near_document(near) for near in result.misses],
    }


def _near_document(near: NearMiss) -> dict[str, Any]:
    misses = [dataclasses.asdict(miss) for miss in near.misses]
    return {**dataclasses.asdict(near.candidate), "misses": misses}
