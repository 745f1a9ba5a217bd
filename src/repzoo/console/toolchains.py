"""View of `repzoo toolchains`."""

from __future__ import annotations

from collections.abc import Sequence

from repzoo.console.output import View, make_table
from repzoo.vendors.environment import Status


def toolchains(statuses: Sequence[Status]) -> View:
    """A row for each tool chain, and what to type for those that are not there."""
    table = make_table("tool chain", "version", ">GB", "what it is")
    lines: list[str] = []
    for item in statuses:
        size = item.size / 1e9 if item.installed else item.recipe.gigabytes
        version = item.version or "not installed"
        table.add_row(item.recipe.name, version, f"{size:.1f}", item.recipe.about)
        if item.installed:
            lines.append(f"{item.recipe.name}: {item.folder}")
        else:
            lines.append(f"{item.recipe.name}: {item.install_command}")
        # Each tool is its maker's: whoever installs it should have seen the terms.
        lines.append(f"  terms: {item.recipe.terms}")
    document = {"toolchains": [_document(item) for item in statuses]}
    return View(document, table, *lines)


def _document(item: Status) -> dict[str, object]:
    return {
        "name": item.recipe.name,
        "about": item.recipe.about,
        "installed": item.installed,
        "version": item.version,
        "expected_version": item.recipe.version,
        "folder": str(item.folder),
        "bytes": item.size,
        "python": list(item.recipe.python),
        "terms": item.recipe.terms,
        "install": item.install_command,
    }
