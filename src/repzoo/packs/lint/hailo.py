"""Rules for Hailo's files: a network's YAML, and its model script (.alls).

The model script's normalization(mean, std) computes (x - mean) / std of pixels 0..255 on the chip.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repzoo.packs.lint.common import Spelling, named_files, normalization_findings
from repzoo.packs.lint.document import Document, read_text
from repzoo.packs.lint.facts import Workspace
from repzoo.packs.lint.finding import Finding
from repzoo.packs.lint.normalization import Normalization, Values
from repzoo.packs.lint.rknn import parse_python, plain_value
from repzoo.packs.lint.schema import number_row

CALL = re.compile(r"^\s*(?:[A-Za-z_][\w/]*\s*=\s*)?([a-z_0-9]+)\((.*)\)\s*;?\s*$")
PARAMETERS = ("parser", "normalization_params")
MAX_SCRIPT = 2**23  # scripts of large networks list every layer
MIN_CALIBRATION = 16  # some networks of Hailo's zoo take so few


def is_configuration(value: Any) -> bool:
    """Whether parsed YAML describes a network of Hailo's model zoo."""
    if not isinstance(value, dict):
        return False
    return "network" in value and ("paths" in value or "base" in value)


def read_alls(path: Path, shown: str) -> Document:
    """The commands of a model script: arguments as text, by the command's name."""
    value: dict[str, str] = {}
    lines: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(read_text(path, MAX_SCRIPT).splitlines(), 1):
        match = CALL.match(line)
        if match and not line.lstrip().startswith("#"):
            command, arguments = match.groups()
            value.setdefault(command, arguments)
            lines.setdefault((command,), number)
    return Document(path, shown, value, lines)


def lint_alls(document: Document, workspace: Workspace) -> Iterator[Finding]:
    """All findings in a model script."""
    text = document.text("normalization")
    if text:
        rows = _rows(text)
        if rows is None:
            yield document.finding(
                "wrong-type",
                f"normalization({text[:40]}) needs two lists of numbers, and no std of 0",
                "normalization",
            )
            return
        spelling = Spelling(("normalization",), ("normalization",))
        yield from normalization_findings(
            document, workspace.model, Normalization(*rows), "", spelling
        )
    elif workspace.preprocess is not None and workspace.model is not None:
        yield document.finding(
            "not-normalized",
            "the model script has no normalization(...), so the program must feed normalized "
            f"floats ({workspace.model.source})",
            fix=_expected(workspace),
        )
    size = re.search(
        r"calibset_size\s*=\s*(\d+)", document.text("model_optimization_config")
    )
    if size and int(size.group(1)) < MIN_CALIBRATION:
        yield document.finding(
            "calibration-few",
            f"calibset_size is {size.group(1)}; expected at least {MIN_CALIBRATION}",
            "model_optimization_config",
            fix="calibset_size=1024",
        )


def _expected(workspace: Workspace) -> str:
    preprocess = workspace.preprocess
    assert preprocess is not None
    mean = [round(255 * value, 4) for value in preprocess.mean]
    std = [round(255 * value, 4) for value in preprocess.std]
    return f"normalization1 = normalization({mean}, {std})"


def _rows(text: str) -> tuple[Values, Values] | None:
    tree = parse_python(f"f({text})")
    statement = tree.body[0] if tree and len(tree.body) == 1 else None
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or len(call.args) < 2:
        return None
    mean, std = (number_row(plain_value(node)) for node in call.args[:2])
    if mean is None or std is None or 0 in std:
        return None
    return mean, std


def lint(document: Document, workspace: Workspace) -> Iterator[Finding]:
    """All findings in a network's YAML."""
    if not document.text("network", "network_name"):
        yield document.finding(
            "missing-key", "network.network_name is missing", "network", "network_name"
        )
    yield from _parameters(document, workspace)
    yield from _size(document, workspace)
    named = []
    script = document.text("paths", "alls_script")
    if script and workspace.is_pack:
        named.append((("paths", "alls_script"), script))
    networks = document.get("paths", "network_path")
    for name in networks if isinstance(networks, list) else []:
        if isinstance(name, str) and workspace.is_pack:
            named.append((("paths", "network_path"), name))
    yield from named_files(document, workspace, named)


def _parameters(document: Document, workspace: Workspace) -> Iterator[Finding]:
    values = document.get(*PARAMETERS)
    if not isinstance(values, dict):
        return
    if not values.get("mean_list") or not values.get("std_list"):
        return  # the model script normalizes, or the program
    mean, std = number_row(values["mean_list"]), number_row(values["std_list"])
    if mean is None or std is None or 0 in std:
        yield document.finding(
            "wrong-type",
            "mean_list and std_list need numbers, and no std of 0",
            *PARAMETERS,
            "mean_list" if mean is None else "std_list",
        )
        return
    spelling = Spelling((*PARAMETERS, "mean_list"), (*PARAMETERS, "std_list"))
    yield from normalization_findings(
        document, workspace.model, Normalization(mean, std), "", spelling
    )


def _size(document: Document, workspace: Workspace) -> Iterator[Finding]:
    preprocess = workspace.preprocess
    text = document.text("info", "input_shape")
    sides = [int(side) for side in re.findall(r"\d{1,6}", text)]
    if preprocess is None or len(sides) != 3 or workspace.model is None:
        return
    expected = [preprocess.height, preprocess.width, preprocess.channels]
    if sides != expected:
        words = "x".join(map(str, expected))
        yield document.finding(
            "input-shape",
            f"info.input_shape is {text}, expected {words} ({workspace.model.source})",
            "info",
            "input_shape",
            fix=f"input_shape: {words}",
        )
