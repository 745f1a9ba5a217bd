"""A finding of the lint: what is wrong, where, what it costs, and what to write instead."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import Any, Literal

from repzoo.artifact import Preprocess

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SHOWN_NAMES = 3


@dataclass(frozen=True)
class Mistake:
    """Images as the model would see them with the mistake, for measuring its cost.

    Attributes:
        numbers: the arithmetic that the file asks for: mean, std, color.
        geometry: its size, resize and crop.
        swapped: R and B are swapped on the way.
    """

    numbers: Preprocess
    geometry: Preprocess
    swapped: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: stable name, a key of `codes.toml`, which states its severity.
        message: what was read, what was expected, and from what that was computed.
        fix: what to write or to type instead; "" where the message says it.
        file: path as a person would type it; "" where it concerns no single file.
        key: key in the file, dotted; "" for none.
        line: counted from 1; 0 where it is not known.
        cost: what it costs, measured or counted; "" where it is not known.
        mistake: how images would be prepared, where `cost` can be measured on images.
    """

    code: str
    message: str
    fix: str = ""
    file: str = ""
    key: str = ""
    line: int = 0
    cost: str = ""
    mistake: Mistake | None = None

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        severity: Severity = codes()[self.code]["severity"]
        return severity

    @property
    def place(self) -> str:
        """File and line, as editors know them."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "code": self.code,
            "severity": self.severity,
            "file": self.file,
            "line": self.line or None,
            "key": self.key,
            "message": self.message,
            "fix": self.fix,
            "cost": self.cost,
        }


@functools.cache
def codes() -> dict[str, dict[str, Any]]:
    """Every code with its severity and what it stands for."""
    text = (package_files("repzoo.packs.lint") / "codes.toml").read_text("utf-8")
    return tomllib.loads(text)


def some_of(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:SHOWN_NAMES])
    more = len(names) - SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then by place; each finding once."""
    unique = dict.fromkeys(findings)

    def rank(finding: Finding) -> tuple[int, str, int, str]:
        severity = SEVERITIES.index(finding.severity)
        return severity, finding.file, finding.line, finding.code

    return sorted(unique, key=rank)
