"""Rules for shell steps of Sophgo's tpu-mlir: model_transform, run_calibration, model_deploy.

The steps are split into words as a shell would, never run. The tool computes (x - mean) * scale of
pixels 0..255.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from repzoo.packs.lint import graph, schema
from repzoo.packs.lint.calibration import MIN_FILES
from repzoo.packs.lint.common import (
    Spelling,
    beside,
    color_finding,
    named_files,
    normalization_findings,
    reciprocal,
)
from repzoo.packs.lint.document import Document, read_text
from repzoo.packs.lint.facts import Workspace, fits
from repzoo.packs.lint.finding import Finding
from repzoo.packs.lint.normalization import Normalization, Values, numbers

LIMITS = graph.Limits("tpu-mlir")
TOOLS = ("model_transform", "run_calibration", "model_deploy")
TYPES = (
    "F32",
    "F16",
    "BF16",
    "INT8",
    "INT4",
    "W8F16",
    "W8BF16",
    "W4F16",
    "W4BF16",
    "QDQ",
)
FORMATS = ("rgb", "bgr", "gray", "rgba")
PROCESSORS = (
    "bm1684",
    "bm1684x",
    "bm1688",
    "bm1690",
    "cv181x",
    "cv182x",
    "cv183x",
    "cv180x",
    "cv186x",
    "mars3",
    "sg2260",
)


@dataclass(frozen=True)
class Step:
    """One call of a tool: its options by name, and the line where it begins."""

    tool: str
    options: dict[str, str]
    line: int


def is_script(text: str) -> bool:
    """Whether a shell script calls one of the tools."""
    return any(re.search(rf"\b{tool}(\.py)?\b", text) for tool in TOOLS)


def read_steps(path: Path, shown: str) -> tuple[Document, list[Step]]:
    """The calls in a script, in order.

    Raises:
        Unreadable: not text.
    """
    steps: list[Step] = []
    for number, line in _logical_lines(read_text(path)):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # a quote that ends on another line; no step of the tools needs one
        for place, word in enumerate(words):
            tool = Path(word).name.removesuffix(".py")
            if tool in TOOLS:
                steps.append(Step(tool, _options(words[place + 1 :]), number))
                break
    value = {step.tool: dict(step.options) for step in steps}
    lines: dict[tuple[str, ...], int] = {(step.tool,): step.line for step in steps}
    return Document(path, shown, value, lines), steps


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines joined where they end in a backslash, with the number of the first."""
    start, joined = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        start = start or number
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        yield start, joined + line
        start, joined = 0, ""
    if joined:
        yield start, joined


def _options(words: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    name = ""
    for word in words:
        if word in ("&&", "||", ";", "|"):
            break
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            options[name] = value
        elif re.match(r"-[A-Za-z]", word):
            name = ""  # a short option; none of them is checked
        elif name:
            options[name] = f"{options[name]} {word}".strip()
    return options


def lint(
    document: Document, steps: list[Step], workspace: Workspace
) -> Iterator[Finding]:
    """All findings in a script."""
    for step in steps:
        if step.tool == "model_transform":
            yield from _transform(document, step, workspace)
        elif step.tool == "model_deploy":
            yield from _deploy(document, step)
        else:
            yield from _calibration(document, step)
    if workspace.model and any(step.tool == "model_transform" for step in steps):
        yield from graph.check(workspace.model, LIMITS)


def _transform(
    document: Document, step: Step, workspace: Workspace
) -> Iterator[Finding]:
    tool, options = step.tool, step.options
    color = options.get("pixel_format", "bgr").upper()
    if options.get("pixel_format", "bgr") not in FORMATS:
        yield document.finding(
            "unknown-value",
            f"--pixel_format is {options['pixel_format']}; the tool knows {', '.join(FORMATS)}",
            tool,
            "pixel_format",
        )
        color = ""
    actual = _normalization(options)
    if actual is None:
        yield document.finding(
            "wrong-type",
            "--mean and --scale need numbers with commas between them, and no scale of 0",
            tool,
            "mean",
        )
        return
    spelling = Spelling(
        (tool, "mean"),
        (tool, "scale"),
        _commas,
        lambda values: reciprocal(values).replace(" ", ","),
        "mean = 255 mean, scale = 1 / (255 std)",
    )
    # Without mean and scale the tool leaves pixels as they are, which a float test may want.
    if workspace.preprocess or "mean" in options:
        yield from normalization_findings(
            document, workspace.model, actual, color, spelling
        )
    if "pixel_format" in options or workspace.preprocess:
        preprocess = workspace.preprocess
        wanted = preprocess.color.lower() if preprocess else ""
        yield from color_finding(
            document,
            workspace.model,
            color,
            tool,
            "pixel_format",
            fix=f"--pixel_format {wanted}",
        )
    yield from _shape(document, step, workspace)
    yield from _geometry(document, step, workspace)
    named = [((tool, "model_def"), options.get("model_def", ""))]
    yield from named_files(document, workspace, named)


def _commas(values: Values) -> str:
    return numbers(values).replace(" ", ",")


def _normalization(options: dict[str, str]) -> Normalization | None:
    mean = schema.parse_numbers(options.get("mean", "0")) or [()]
    scale = schema.parse_numbers(options.get("scale", "1")) or [()]
    if not mean[0] or not scale[0] or 0 in scale[0]:
        return None
    return Normalization(mean[0], tuple(1 / value for value in scale[0]))


def _shape(document: Document, step: Step, workspace: Workspace) -> Iterator[Finding]:
    model = workspace.model
    text = step.options.get("input_shapes", "")
    if model is None or not text:
        return
    sides = tuple(int(side) for side in re.findall(r"\d{1,6}", text))
    stated = tuple(side for shape in model.inputs.values() for side in shape)
    if not fits(sides, stated):
        shapes = str([list(shape) for shape in model.inputs.values()])
        yield document.finding(
            "input-shape",
            f"--input_shapes is {text}, but the model's input is {shapes}",
            step.tool,
            "input_shapes",
            fix="--input_shapes " + shapes.replace(" ", ""),
        )


def _geometry(
    document: Document, step: Step, workspace: Workspace
) -> Iterator[Finding]:
    """resize_dims and keep_aspect_ratio, for which test images are resized."""
    model, preprocess = workspace.model, workspace.preprocess
    keeps = "keep_aspect_ratio" in step.options
    if model is None or preprocess is None or preprocess.resize == "squash":
        return
    if not keeps and "resize_dims" in step.options:
        yield document.finding(
            "squash",
            "--resize_dims without --keep_aspect_ratio squashes images that are not square; the "
            f"model was made for a resize of the short side ({model.source})",
            step.tool,
            "resize_dims",
            fix="--keep_aspect_ratio, or prepared images as .npz",
        )


def _deploy(document: Document, step: Step) -> Iterator[Finding]:
    tool, options = step.tool, step.options
    kind = options.get("quantize", "")
    variable = "$" in kind + options.get("processor", "") + options.get("chip", "")
    if not variable and kind.upper() not in TYPES:
        yield document.finding(
            "unknown-value",
            f"--quantize is {kind or 'missing'}; the tool knows {', '.join(TYPES)}",
            tool,
            "quantize",
            fix="--quantize INT8",
        )
    chip = options.get("processor") or options.get("chip", "")
    if not variable and chip.lower() not in PROCESSORS:
        yield document.finding(
            "unknown-value",
            f"--processor is {chip or 'missing'}; the tool knows {', '.join(PROCESSORS)}",
            tool,
            "processor",
            fix="--processor bm1684x",
        )
    if kind.upper() == "INT8" and "calibration_table" not in options:
        yield document.finding(
            "missing-key",
            "--quantize INT8 needs --calibration_table, which run_calibration writes",
            tool,
            "calibration_table",
            fix="--calibration_table MODEL_cali_table",
        )


def _calibration(document: Document, step: Step) -> Iterator[Finding]:
    number = step.options.get("input_num", "")
    dataset = step.options.get("dataset", "")
    if number.isdigit() and int(number) < MIN_FILES:
        yield document.finding(
            "calibration-few",
            f"--input_num is {number}; expected at least {MIN_FILES}",
            step.tool,
            "input_num",
            fix="--input_num 100",
        )
    folder = beside(document, dataset) if dataset else None
    if folder and folder.is_dir() and number.isdigit():
        files = sum(path.is_file() for path in folder.iterdir())
        if files < int(number):
            yield document.finding(
                "calibration-few",
                f"--input_num is {number}, but {dataset} has {files} files",
                step.tool,
                "input_num",
                fix=f"--input_num {files}",
            )
