"""What fits a screen of 80 columns and 24 lines: a summary and its notes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import rich.console

LINES = 24
COLUMNS = 80
FEWEST_NOTE_LINES = 2
# The lines before and after a summary: the data that was read, and what to type next.
ASIDES = 3

_MEASURE = rich.console.Console(
    width=COLUMNS, markup=False, emoji=False, highlight=False
)


def line_count(items: Iterable[Any]) -> int:
    """How many lines `items` take: texts, which break between words, and tables."""
    return sum(len(_MEASURE.render_lines(item)) for item in items)


def note_lines(remarks: Iterable[str]) -> int:
    """How many lines `remarks` take as notes."""
    return line_count(f"note: {remark}" for remark in remarks)


def fitting_notes(shown: Sequence[Any], remarks: Sequence[str], rest: str) -> list[str]:
    """The `remarks` that fit a screen below `shown`, and how many more there are.

    rest  where all of them can be read
    """
    room = max(FEWEST_NOTE_LINES, LINES - ASIDES - line_count(shown))
    if note_lines(remarks) <= room:
        return list(remarks)
    fitting: list[str] = []
    for remark in remarks:
        # One line is for what is left out.
        if note_lines([*fitting, remark]) > room - 1:
            break
        fitting.append(remark)
    if not fitting:
        width = COLUMNS * (room - 1) - len("note: ")
        start = textwrap.shorten(remarks[0], width, placeholder=" ...")
        return [start, f"{_counted(len(remarks), 'note')} in {rest}"]
    hidden = len(remarks) - len(fitting)
    return [*fitting, f"{_counted(hidden, 'more note')} in {rest}"]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
