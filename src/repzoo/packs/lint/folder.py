"""Findings about a pack as a folder: its manifest, its steps, its labels."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from repzoo.packs.lint.document import Unreadable, read_json, read_text
from repzoo.packs.lint.facts import Workspace
from repzoo.packs.lint.finding import Finding, some_of
from repzoo.packs.pack import MANIFEST
from repzoo.storage import read_lines, sha256_of_file

STEP = re.compile(r"\d\d_\w+\.sh")
# Files that a step reads, by the end of their names; others may be outputs of a step before.
INPUTS = (".onnx", ".yaml", ".yml", ".json", ".txt", ".py", ".alls")

PATTERN_SIGNS = set("$*?[{=")  # of variables, globs and assignments
# --mlir and --model are inputs of some tools too; a file that is only read is then not missed.
WRITTEN = re.compile(
    r"(?:>>?|--?(?:o|output|result|save\w*|text_path|path_output|calibration_table|"
    r"mlir|model|quantize_table)[ =])\s*['\"]?([\w./+-]+)"
)


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
    scripts = sorted(workspace.folder.glob("*.sh"))
    written = _written(scripts)
    for path in scripts:
        if STEP.fullmatch(path.name):
            yield from _step(path, written, workspace)
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
                f"{words}: {some_of(names)} (by the hashes in {MANIFEST})",
                "write the pack again, or accept your changes by deleting the line in the "
                "manifest",
                MANIFEST,
            )


def _step(path: Path, written: set[str], workspace: Workspace) -> Iterator[Finding]:
    """Files that a step reads and that neither are there nor are `written` by a step."""
    try:
        text = read_text(path)
    except Unreadable:
        return
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # a quote that ends on another line
        for word in words:
            name = word.removeprefix("./")
            is_missing = not (workspace.folder / name).exists()
            if _is_input(name) and Path(name).name not in written and is_missing:
                yield Finding(
                    "missing-file",
                    f"the step names {name}, which is not there",
                    file=workspace.shown(path),
                    line=number,
                )


def _is_input(name: str) -> bool:
    """Whether a word of a step is the name of a file below the pack, and no pattern or option."""
    if name.startswith("-") or Path(name).is_absolute():
        return False
    return name.endswith(INPUTS) and not set(name) & PATTERN_SIGNS


def _written(scripts: Sequence[Path]) -> set[str]:
    """Names behind options and redirections that write, in all scripts."""
    names: set[str] = set()
    for path in scripts:
        try:
            text = read_text(path)
        except Unreadable:
            continue
        names |= {Path(name).name for name in WRITTEN.findall(text)}
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
