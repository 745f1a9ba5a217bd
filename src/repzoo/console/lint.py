"""View of `repzoo pack --check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich.text

from repzoo.console.output import View, make_table
from repzoo.packs.lint.finding import SEVERITIES, Finding
from repzoo.printable import one_line

# It would import the fold, for which `repzoo --help` need not wait.
if TYPE_CHECKING:
    from repzoo.packs.lint.run import LintReport


def findings(report: LintReport) -> View:
    """A row for each finding: where, what, what it costs, and what to write instead."""
    document = {
        "path": str(report.path),
        "files": list(report.files),
        "models": list(report.models),
        **{f"{severity}s": report.count(severity) for severity in SEVERITIES},
        "findings": [item.document() for item in report.findings],
    }
    shown: list[Any] = []
    if report.findings:
        table = make_table("", "finding")
        for item in report.findings:
            table.add_row(item.severity, _text(item))
        shown.append(table)
    shown.append(report.sentence())
    if not report.models:
        shown.append(
            "without a model: give --model to compare mean, scale, color and size"
        )
    elif any(item.mistake and not item.cost for item in report.findings):
        shown.append("--data DIR measures what these cost")
    return View(document, *shown)


def _text(item: Finding) -> rich.text.Text:
    place = f"{item.place} " if item.place else ""
    lines = [f"{place}[{item.code}]", item.message]
    if item.cost:
        lines.append(f"costs: {item.cost}")
    if item.fix:
        lines.append(f"write: {item.fix}" if _is_text(item.fix) else f"fix: {item.fix}")
    # Each by itself: text of others must not begin a line of its own.
    return rich.text.Text("\n".join(map(one_line, lines)))


def _is_text(fix: str) -> bool:
    """Whether a fix is what to write, such as `march: 'bayes-e'`, and no sentence."""
    return ":" in fix.split(" ")[0] or fix.startswith(("repzoo ", "--"))
