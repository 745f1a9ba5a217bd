"""Findings about a pack as a folder: its manifest, its steps, its labels."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repzoo.packs.lint.document import Unreadable, read_json, read_text
from repzoo.packs.lint.facts import Workspace
from repzoo.packs.lint.finding import Finding
from repzoo.packs.pack import MANIFEST
from repzoo.storage import read_lines, sha256_of_file

STEP = re.compile(r"\d\d_\w+\.sh")
SHOWN_FILES = 3
# Files that a step reads, by the end of their names; others may be outputs of a step before.
INPUTS = (".onnx", ".yaml", ".yml", ".json", ".txt", ".py", ".alls")


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a pack; {} where there is none that can be read."""
    try:
        value = read_json(folder / MANIFEST).value
    except Unreadable:
        return {}
    return value if isinstance(value, dict) else {}


def check(workspace: Workspace) -> Iterator[Finding]:
    """All findings that no configuration explains."""
    yield from _manifest(workspace)
    for path in sorted(workspace.folder.glob("*.sh")):
        if STEP.fullmatch(path.name):
            yield from _step(path, workspace)
    yield from _labels(workspace)


def _manifest(workspace: Workspace) -> Iterator[Finding]:
    files = manifest_of(workspace.folder).get("files")
    if not isinstance(files, dict):
        return
    missing, changed = [], []
    for name, digest in files.items():
        path = workspace.folder / name
        # A name that leads out of the folder is none that repzoo wrote.
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
            missing.append(name)
        elif sha256_of_file(path) != digest:
            changed.append(name)
    for code, names, words in (
        ("missing-file", missing, "gone"),
        ("changed-file", changed, "changed since the pack was written"),
    ):
        if names:
            yield Finding(
                code,
                f"{words}: {_names(names)} (by the hashes in {MANIFEST})",
                "write the pack again, or accept your changes by deleting the line in the "
                "manifest",
                MANIFEST,
            )


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN_FILES])
    more = len(names) - SHOWN_FILES
    return f"{shown} and {more} more" if more > 0 else shown


def _step(path: Path, workspace: Workspace) -> Iterator[Finding]:
    """Files that a step reads and that are not there; files that another step writes are none."""
    written = _written(workspace.folder)
    try:
        text = read_text(path)
    except Unreadable:
        return
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        for word in words:
            name = word.removeprefix("./")
            is_plain = not any(
                sign in name for sign in "$*?[{="
            ) and not name.startswith("-")
            if not is_plain or not name.endswith(INPUTS) or Path(name).is_absolute():
                continue
            if (
                not (workspace.folder / name).exists()
                and Path(name).name not in written
            ):
                yield Finding(
                    "missing-file",
                    f"the step names {name}, which is not there",
                    file=workspace.shown(path),
                    line=number,
                )


def _written(folder: Path) -> set[str]:
    """Names behind options and redirections that write, in all steps."""
    names: set[str] = set()
    for path in sorted(folder.glob("*.sh")):
        try:
            text = read_text(path)
        except Unreadable:
            continue
        pattern = (
            r"(?:>>?|--?(?:o|output|result|save\w*|text_path|path_output|calibration_table|"
            r"mlir|model|quantize_table)[ =])\s*['\"]?([\w./+-]+)"
        )
        names |= {Path(name).name for name in re.findall(pattern, text)}
    return names


def _labels(workspace: Workspace) -> Iterator[Finding]:
    path = workspace.folder / "labels.txt"
    model = workspace.model
    if model is None or not model.classes or not path.is_file():
        return
    labels = len(read_lines(path))
    if labels != model.classes and (labels, model.classes) != (2, 1):
        yield Finding(
            "labels",
            f"labels.txt has {labels} lines, but the model has {model.classes} outputs",
            "one label a line, in the order of the outputs",
            workspace.shown(path),
        )
