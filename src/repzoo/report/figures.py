"""Figures and names as cards, tables and the command line print them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from repzoo.graph.tools.int8_share import Int8Share, percent_of_share
from repzoo.printable import signed, significant

TO = {"en": "to", "zh": "至"}  # between the ends of an interval
SHARE = {
    "en": "{int8} of {layers} layers, {macs} of MACs",
    "zh": "{int8}/{layers} 层，{macs} 乘加",
}
ABSENT = "–"  # in a cell of a table whose figure is not known
# The column of tables that is left out where no Record says how much runs in INT8.
SHARE_HEADING = {"en": "In INT8", "zh": "INT8 部分"}

Show = Callable[[float], str]


def millions(count: float) -> str:
    """A count in millions, two decimals as the vendors' cards print it."""
    return f"{count / 1e6:.2f}"


def percent(value: float) -> str:
    """A percentage with the digits that a few hundred to a few thousand images carry."""
    return f"{value:.2f}"


def points(value: float) -> str:
    """A signed difference in percentage points, with a minus sign; never "−0.00"."""
    return signed(value)


def ms(value: float) -> str:
    """Milliseconds with three significant digits."""
    return significant(value, 3)


def rate(value: float) -> str:
    """Images a second with three significant digits, without a thousands separator."""
    return significant(value, 3)


def ratio_of(value: float) -> str:
    """A ratio with two decimals."""
    return f"{value:.2f}"


def interval(show: Show, value: float, low: float, high: float, to: str = "to") -> str:
    """`value (low to high)`, each printed by `show`, a function of this module."""
    return f"{show(value)} ({span(show, low, high, to)})"


def span(show: Show, low: float, high: float, to: str = "to") -> str:
    """`low to high`, each printed by `show`; `to` is that word in the language of the text."""
    return f"{show(low)} {to} {show(high)}"


def int8_share(share: Int8Share | None, language: str) -> str:
    """How much runs in INT8, for a cell of a table; a dash where that is unknown."""
    if share is None:
        return ABSENT
    return SHARE[language].format(
        int8=share.int8_layers,
        layers=share.layers,
        macs=percent_of_share(share.macs),
    )


def markdown_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], omitted: str = ""
) -> list[str]:
    """A table as lines of Markdown, without the column that has the heading `omitted`."""
    is_shown = [heading != omitted for heading in headings]
    rule = ["---"] * len(headings)
    lines = []
    for cells in (headings, rule, *rows):
        shown = itertools.compress(cells, is_shown)
        lines.append("| " + " | ".join(shown) + " |")
    return lines


def pixels(size: object) -> str:
    """The size of an input as "height x width" in pixels; `size` is one side or both."""
    if isinstance(size, list | tuple):
        return "x".join(map(str, size))
    return f"{size}x{size}"
