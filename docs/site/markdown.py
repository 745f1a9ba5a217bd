"""Docstrings, links and tables as Markdown of the documentation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

# "name  text": an entry of an aligned list, as the docstrings of repzoo have them.
_ENTRY = re.compile(r"(\S+(?:,? \S+){0,3}?) {2,}(\S.*)")
_SECTION = re.compile(r"(Raises|Attributes|Returns|Args):\s*$")
_NAMED = re.compile(r"([\w.*, ]+): (.*)")
_CODE = re.compile(r"(`[^`]*`)")


def docstring(value: object) -> str:
    """The docstring of `value` as Markdown; aligned lists and sections become bullets."""
    return from_docstring(inspect.getdoc(value) or "")


def from_docstring(text: str) -> str:
    """A docstring, dedented by inspect.cleandoc, as Markdown."""
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(_block(block.split("\n")) for block in blocks)


def _block(lines: Sequence[str]) -> str:
    section = _SECTION.match(lines[0])
    if section:
        rest = inspect.cleandoc("\n".join(["", *lines[1:]])).split("\n")
        return f"**{section[1]}**\n\n{_bullets(rest, _NAMED)}"
    if all(line.startswith("    ") for line in lines):
        return "```python\n" + inspect.cleandoc("\n".join(["", *lines])) + "\n```"
    if any(_ENTRY.match(line) for line in lines):
        return _bullets(lines, _ENTRY)
    return escape("\n".join(lines))


def _bullets(lines: Iterable[str], entry: re.Pattern[str]) -> str:
    """A bullet for each line that is an `entry`; other lines go on with the bullet before."""
    bullets: list[str] = []
    for line in lines:
        match = None if line.startswith(" ") else entry.match(line)
        if match:
            bullets.append(f"- `{match[1].strip()}`: {escape(match[2])}")
        elif bullets:
            bullets[-1] += " " + escape(line.strip())
        else:
            bullets.append(escape(line) + "\n")
    return "\n".join(bullets)


def escape(text: str) -> str:
    """`text` with what Markdown or HTML would take for markup escaped, outside of `code`."""
    parts = _CODE.split(text)
    for index in range(0, len(parts), 2):
        part = parts[index].replace("&", "&amp;").replace("<", "&lt;")
        parts[index] = re.sub(r"([*_\[\]|])", r"\\\1", part)
    return "".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Cells are Markdown themselves; their bars are escaped here."""
    lines = [_row(head), _row(["---"] * len(head))]
    lines += [_row(row) for row in rows]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    # Python-Markdown splits at every bar outside of code that has no backslash.
    joined = " | ".join(
        re.sub(r"(?<!\\)\|", r"\|", cell.replace("\n", " ")) for cell in cells
    )
    return f"| {joined} |"


def code(text: str) -> str:
    """`text` as inline code; empty for nothing."""
    return f"`{text}`" if text else ""
