"""Cells and tables of what the page says of a model.

A cell is text of a Record, a figure printed as cards print it, or words in every language.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from repzoo.printable import one_line
from repzoo.report import figures
from repzoo.report.page_rows import PRECISIONS

Cell = str | dict[str, str]
Section = dict[str, Any]
Hosts = Mapping[tuple[str, ...], str]  # names of hosts by `page_rows.host_key`


def word(key: str) -> dict[str, str]:
    """A cell that page.toml has in every language."""
    return {"w": key}


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Section:
    """A section of one table; an empty section where there are no rows."""
    return {"head": list(head), "rows": [list(row) for row in rows]} if rows else {}


def form_of(artifact: Mapping[str, Any]) -> str:
    """The number format of an artifact in a Record."""
    form = str(artifact.get("form", ""))
    return one_line(PRECISIONS.get(form, form))


def engine_of(engine: Mapping[str, Any]) -> str:
    """Name and version of an engine in a Record."""
    return one_line(f"{engine.get('name', '')} {engine.get('version', '')}")


def number(value: float | None) -> str:
    """`value` as text; "" where it is not known."""
    return "" if value is None else str(value)


def figure(show: figures.Show, value: Any) -> str:
    """`value` printed by `show`; "" where it is not known."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    return show(value)


def interval(show: figures.Show, value: Any, low: Any, high: Any) -> str:
    """As `figures.interval`, in every language; without the ends where they are not known."""
    ends = [figure(show, low), figure(show, high)]
    shown = figure(show, value)
    return f"{shown} ({ends[0]} … {ends[1]})" if all(ends) else shown
