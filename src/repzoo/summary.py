"""What a result prints: tables and sentences, as text for a terminal and as HTML for a notebook.

Jupyter asks a value for `_repr_html_`; `print` asks it for `__str__`.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from repzoo.printable import one_line

RIGHT = ">"  # before the heading of a column of numbers
GAP = "   "  # between columns


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; a heading that begins with ">" aligns its column right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Aligned columns."""
        headings = [heading.removeprefix(RIGHT) for heading in self.headings]
        rows = [headings, *[list(map(one_line, row)) for row in self.rows]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(self._text_row(row, widths) for row in rows)

    def _text_row(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = []
        for heading, cell, width in zip(self.headings, row, widths, strict=True):
            is_number = heading.startswith(RIGHT)
            cells.append(cell.rjust(width) if is_number else cell.ljust(width))
        return GAP.join(cells).rstrip()

    def html(self) -> str:
        """A <table>; what others named in it cannot act as markup."""
        headings = [heading.removeprefix(RIGHT) for heading in self.headings]
        lines = ["<table>", "<thead>", *self._html_row("th", headings), "</thead>"]
        lines.append("<tbody>")
        for row in self.rows:
            lines.extend(self._html_row("td", row))
        return "\n".join([*lines, "</tbody>", "</table>"])

    def _html_row(self, tag: str, row: Sequence[str]) -> Iterator[str]:
        yield "<tr>"
        for heading, cell in zip(self.headings, row, strict=True):
            side = "right" if heading.startswith(RIGHT) else "left"
            text = html.escape(one_line(cell))
            yield f'<{tag} style="text-align: {side}">{text}</{tag}>'
        yield "</tr>"


@dataclass(frozen=True)
class Summary:
    """Tables, then sentences."""

    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()

    def text(self) -> str:
        """For a terminal."""
        parts = [table.text() for table in self.tables]
        if self.lines:
            parts.append("\n".join(map(one_line, self.lines)))
        return "\n\n".join(parts)

    def html(self) -> str:
        """For a notebook."""
        parts = [table.html() for table in self.tables]
        for line in self.lines:
            parts.append(f"<p>{html.escape(one_line(line))}</p>")
        return "\n".join(parts)


class Summarized:
    """A result that prints its summary; `repr` still shows every field."""

    def _summary(self) -> Summary:
        """What is shown of the result."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The summary as text."""
        return self._summary().text()

    def _repr_html_(self) -> str:
        """The summary as Jupyter shows it."""
        return self._summary().html()
