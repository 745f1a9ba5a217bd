"""Rules for a script that calls rknn-toolkit2, and for its list of calibration images.

The script is parsed, never run: arguments that are plain numbers and texts are read, also as
products such as 255*0.485. rknn computes (x - mean_values) / std_values of pixels 0..255.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repzoo.packs.lint import graph
from repzoo.packs.lint.calibration import MIN_FILES, SOURCES
from repzoo.packs.lint.common import (
    Spelling,
    beside,
    color_finding,
    named_files,
    normalization_findings,
)
from repzoo.packs.lint.document import MAX_INTEGER, Document, Unreadable, read_text
from repzoo.packs.lint.facts import Workspace, fits
from repzoo.packs.lint.finding import Finding
from repzoo.packs.lint.normalization import Normalization, Values
from repzoo.packs.lint.schema import number_row
from repzoo.plugins import unknown
from repzoo.storage import read_lines

LIMITS = graph.Limits("rknn-toolkit2", tuple(range(7, 20)))
METHODS = {
    "config": {
        "mean_values",
        "std_values",
        "target_platform",
        "quantized_algorithm",
        "quantized_method",
        "quantized_dtype",
        "quant_img_RGB2BGR",
        "float_dtype",
        "optimization_level",
        "custom_string",
        "remove_weight",
        "compress_weight",
        "single_core_mode",
        "dynamic_input",
        "model_pruning",
        "op_target",
        "remove_reshape",
        "sparse_infer",
        "enable_flash_attention",
        "disable_rules",
        "inputs_yuv_fmt",
        "auto_hybrid_cos_thresh",
        "auto_hybrid_euc_thresh",
    },
    "build": {
        "do_quantization",
        "dataset",
        "rknn_batch_size",
        "auto_hybrid",
        "expand_batch_size",
    },
}
VALUES = {
    "quantized_algorithm": ("normal", "mmse", "kl_divergence", "gdq"),
    "quantized_method": ("channel", "layer"),
}
SPELLING = Spelling(
    ("config", "mean_values"),
    ("config", "std_values"),
    formula="mean_values = 255 mean, std_values = 255 std",
)


@dataclass
class Calls:
    """Calls of the toolkit in a script: arguments by method, and where they stand.

    Attributes:
        arguments: values of keyword arguments; those that are no plain values are left out.
        lines: line of each call.
        repeated: methods that are called more than once, such as in branches.
    """

    arguments: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)


def is_script(text: str) -> bool:
    """Whether a Python file converts a model with the toolkit."""
    return "rknn" in text.lower() and ".config(" in text and "load_onnx" in text


def read_script(path: Path, shown: str) -> tuple[Document, Calls]:
    """The calls in a script.

    Raises:
        Unreadable: not Python.
    """
    tree = parse_python(read_text(path))
    if tree is None:
        raise Unreadable(f"{path} is not valid Python")
    calls = Calls()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        method = node.func.attr
        if method not in {*METHODS, "load_onnx"}:
            continue
        if method in calls.arguments:
            calls.repeated.add(method)
        calls.arguments[method] = _arguments(node, method, calls)
    return Document(path, shown, calls.arguments, calls.lines), calls


def parse_python(text: str) -> ast.Module | None:
    """The syntax tree of a program, which is not run; None where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about code of others
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _arguments(node: ast.Call, method: str, calls: Calls) -> dict[str, Any]:
    calls.lines[(method,)] = node.lineno
    values: dict[str, Any] = {}
    for item in node.keywords:
        if item.arg is None:
            continue
        calls.lines[(method, item.arg)] = item.value.lineno
        values[item.arg] = plain_value(item.value)
    return values


def plain_value(node: ast.expr) -> Any:
    """A number, text or list written in Python; None where it is computed."""
    try:
        return _value(node)
    except RecursionError:
        return None  # a sum of hundreds of terms, which no configuration has


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        is_too_large = isinstance(node.value, int) and abs(node.value) > MAX_INTEGER
        return None if is_too_large else node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        return -value if isinstance(value, int | float) else None
    if isinstance(node, ast.BinOp):
        return _arithmetic(node)
    return None


def _arithmetic(node: ast.BinOp) -> float | None:
    left, right = _value(node.left), _value(node.right)
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return None
    try:
        if isinstance(node.op, ast.Mult):
            result = float(left) * float(right)
        elif isinstance(node.op, ast.Div):
            result = float(left) / float(right)
        elif isinstance(node.op, ast.Add):
            result = float(left) + float(right)
        elif isinstance(node.op, ast.Sub):
            result = float(left) - float(right)
        else:
            return None
    except (OverflowError, ZeroDivisionError):
        return None
    return result if math.isfinite(result) else None


def lint(document: Document, calls: Calls, workspace: Workspace) -> Iterator[Finding]:
    """All findings in a script."""
    yield from _keywords(document)
    yield from _values(document)
    if "config" not in calls.repeated:
        yield from _normalization(document, workspace)
    yield from _shape(document, calls, workspace)
    yield from _files(document, workspace)
    if workspace.model:
        yield from graph.check(workspace.model, LIMITS)


def _keywords(document: Document) -> Iterator[Finding]:
    for method, known in METHODS.items():
        for name in document.value.get(method, {}):
            if name not in known:
                yield document.finding(
                    "unknown-key",
                    f"rknn.{method} has no argument {name}; "
                    + unknown("argument", name, sorted(known)).split("; ", 1)[-1],
                    method,
                    name,
                )


def _values(document: Document) -> Iterator[Finding]:
    for key, accepted in VALUES.items():
        value = document.get("config", key)
        if isinstance(value, str) and value not in accepted:
            yield document.finding(
                "unknown-value",
                f"{key} is {value!r}; the toolkit knows {', '.join(accepted)}",
                "config",
                key,
                fix=f"{key}='{accepted[0]}'",
            )
    if document.get("config", "quantized_method") == "layer":
        yield document.finding(
            "per-tensor",
            "quantized_method is layer: one scale for all channels of a layer. Networks with "
            "merged branches lose most of their accuracy",
            "config",
            "quantized_method",
            fix="quantized_method='channel'",
        )


def _row(value: Any) -> Values | None:
    """The one list in [[a, b, c]], or [a, b, c]."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    return number_row(value)


def _normalization(document: Document, workspace: Workspace) -> Iterator[Finding]:
    config = document.value.get("config")
    if config is None:
        return
    mean, std = config.get("mean_values", [0]), config.get("std_values", [1])
    rows = _row(mean), _row(std)
    if rows[0] is None or rows[1] is None:
        return
    if 0 in rows[1]:
        yield document.finding(
            "wrong-scale", "std_values holds 0", "config", "std_values"
        )
        return
    color = "" if workspace.preprocess else "RGB"
    if "mean_values" not in config and workspace.preprocess is None:
        return
    yield from normalization_findings(
        document, workspace.model, Normalization(rows[0], rows[1]), color, SPELLING
    )
    yield from _color(document, workspace)


def _color(document: Document, workspace: Workspace) -> Iterator[Finding]:
    """Calibration images are read as RGB; quant_img_RGB2BGR turns them for models of BGR."""
    stated = document.get("config", "quant_img_RGB2BGR")
    key = ("config", "quant_img_RGB2BGR")
    if stated is None and "quant_img_RGB2BGR" in document.value["config"]:
        return  # computed, so it cannot be read
    preprocess = workspace.preprocess
    if preprocess and preprocess.color in ("RGB", "BGR"):
        is_bgr = preprocess.color == "BGR"
        color = "BGR" if stated is True else "RGB"
        fix = f"quant_img_RGB2BGR={is_bgr}"
        yield from color_finding(document, workspace.model, color, *key, fix=fix)


def _shape(document: Document, calls: Calls, workspace: Workspace) -> Iterator[Finding]:
    model, names = workspace.model, document.get("load_onnx", "inputs")
    if model is None or "load_onnx" in calls.repeated:
        return
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name not in model.inputs:
            yield document.finding(
                "input-name",
                f"inputs names {name}; the model's input is called {', '.join(model.inputs)}",
                "load_onnx",
                "inputs",
                fix=f"inputs={list(model.inputs)}",
            )
    sizes = document.get("load_onnx", "input_size_list")
    stated = next(iter(model.inputs.values()))
    if not isinstance(sizes, list) or len(sizes) != 1 or not isinstance(sizes[0], list):
        return
    # Scripts for the first toolkit leave out the batch.
    if len(sizes[0]) == len(stated) and not fits(sizes[0], stated):
        yield document.finding(
            "input-shape",
            f"input_size_list is {sizes}, but the model's input is {list(stated)}",
            "load_onnx",
            "input_size_list",
            fix=f"input_size_list=[{list(stated)}]",
        )


def _files(document: Document, workspace: Workspace) -> Iterator[Finding]:
    named = []
    for keys in (("load_onnx", "model"), ("build", "dataset")):
        value = document.get(*keys)
        if isinstance(value, str):
            named.append((keys, value))
    yield from named_files(document, workspace, named)
    dataset = document.text("build", "dataset")
    path = beside(document, dataset) if dataset else None
    if path and path.is_file():
        yield from lint_dataset(path, workspace)


def lint_dataset(path: Path, workspace: Workspace) -> Iterator[Finding]:
    """A list of images, one a line; several inputs with blanks between."""
    shown = workspace.shown(path)
    lines = read_lines(path)
    missing: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        absent = [name for name in _images(path, line) if not _exists(path, name)]
        missing += [(number, absent[0])] if absent else []
    is_alone = len(missing) == len(lines) and not workspace.is_pack
    if missing:
        number, name = missing[0]
        yield Finding(
            "file-elsewhere" if is_alone else "missing-file",
            f"images of {len(missing)} of {len(lines)} lines are not there, such as {name}",
            "paths are relative to the folder of the list",
            shown,
            line=number,
        )
    if len(lines) < MIN_FILES:
        yield Finding(
            "calibration-few",
            f"{len(lines)} calibration images; expected at least {MIN_FILES}. Ranges from so few "
            "images clip what others need",
            SOURCES,
            shown,
        )
    if len(set(lines)) < len(lines):
        yield Finding(
            "calibration-identical",
            f"{len(lines) - len(set(lines))} lines repeat others",
            SOURCES,
            shown,
        )


def _images(path: Path, line: str) -> list[str]:
    """The names in a line. A name may hold blanks where it stands by itself."""
    name = line.strip()
    return [name] if _exists(path, name) else line.split()


def _exists(path: Path, name: str) -> bool:
    try:
        return (path.parent / name).exists()
    except (OSError, ValueError):
        return False
