"""Rules for hb_mapper's configuration (RDK X5, bayes-e).

The tool computes (x - mean_value) * scale_value of pixels 0..255, so mean_value = 255 mean and
scale_value = 1 / (255 std). Source: D-Robotics' guide ptq_process.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from repzoo.packs.lint import graph, rdk_x5_calibration, rdk_x5_nodes, schema
from repzoo.packs.lint.common import (
    Spelling,
    color_finding,
    named_files,
    normalization_findings,
    reciprocal,
)
from repzoo.packs.lint.document import Document
from repzoo.packs.lint.facts import Workspace, fits, sides_text
from repzoo.packs.lint.finding import Finding, Mistake
from repzoo.packs.lint.normalization import Normalization, expected_for, numbers
from repzoo.packs.lint.rdk_x5_values import (
    CALIBRATION,
    COMPILER,
    INPUT,
    MODEL,
    color_of,
    input_sides,
    number_of_inputs,
    parts,
    takes_images,
)

MARCH = "bayes-e"
SHAPE = re.compile(r"\d{1,6}(x\d{1,6})+")
SMALL_FACTOR = 1 / 20  # of pixels 0..255 to values that networks take
BOARDS = {"bernoulli2": "the RDK X3", "bayes": "the RDK Ultra"}
EVEN_SIDES = ("nv12", "yuv444")
LIMITS = graph.Limits(
    "hb_mapper",
    (10, 11),
    7,
    32,
    "repzoo harden MODEL.onnx -o out.onnx --data DIR --target rdk-x5",
    fixed_batch=True,
)
# Of norm_type: which of mean_value and scale_value the tool then uses.
USES = {
    "no_preprocess": (False, False),
    "data_mean": (True, False),
    "data_scale": (False, True),
    "data_mean_and_scale": (True, True),
}
SPELLING = Spelling(
    (INPUT, "mean_value"),
    (INPUT, "scale_value"),
    write_std=reciprocal,
    formula="mean_value = 255 mean, scale_value = 1 / (255 std)",
)


def is_configuration(value: Any) -> bool:
    """Whether parsed YAML is meant for hb_mapper, misspelled groups included."""
    if not isinstance(value, dict):
        return False
    words = ("model", "input", "calibration", "compiler")
    keys = [str(key).lower() for key in value]
    return any(key.startswith(words) and "param" in key for key in keys)


def lint(document: Document, workspace: Workspace) -> Iterator[Finding]:
    """All findings in a configuration, and in the calibration folder that it names."""
    yield from schema.check(document, "rdk_x5")
    yield from schema.unknown_groups(document, "rdk_x5")
    for rule in RULES:
        yield from rule(document, workspace)
    yield from rdk_x5_calibration.calibration_files(document, workspace)
    if workspace.model:
        stated = bool(document.text(INPUT, "input_shape"))
        yield from graph.check(workspace.model, LIMITS, states_shape=stated)
        yield from graph.cpu_operators(workspace.model, rdk_x5_nodes.on_bpu(document))


def _march(document: Document, workspace: Workspace) -> Iterator[Finding]:
    march = document.text(MODEL, "march")
    if march not in BOARDS:
        return
    # A configuration by itself may be meant for that board.
    is_for_x5 = workspace.is_pack or workspace.model is not None
    yield document.finding(
        "march" if is_for_x5 else "other-board",
        f"march is {march}, which is {BOARDS[march]}; the RDK X5 loads {MARCH} only",
        MODEL,
        "march",
        fix=f"march: '{MARCH}'",
    )


def _files(document: Document, workspace: Workspace) -> Iterator[Finding]:
    named = [((MODEL, "onnx_model"), document.text(MODEL, "onnx_model"))]
    if document.text(CALIBRATION, "calibration_type") not in ("load", "skip"):
        for name in document.text(CALIBRATION, "cal_data_dir").split(";"):
            named.append(((CALIBRATION, "cal_data_dir"), name.strip()))
    yield from named_files(document, workspace, named)
    if not any(document.text(MODEL, key) for key in ("onnx_model", "caffe_model")):
        yield document.finding(
            "missing-key",
            "onnx_model is missing; the tool needs a model",
            MODEL,
            "onnx_model",
            fix="onnx_model: './MODEL.onnx'",
        )


def _color(document: Document, workspace: Workspace) -> Iterator[Finding]:
    model = workspace.model
    fix = ""
    if model and model.preprocess:
        preprocess = model.preprocess
        right = expected_for(preprocess)
        # All three, or the numbers would be those of the other order.
        fix = (
            f"input_type_train: '{preprocess.color.lower()}', with mean_value: "
            f"'{numbers(right.mean)}' and scale_value: '{reciprocal(right.std)}'"
        )
    yield from color_finding(
        document, model, color_of(document), INPUT, "input_type_train", fix=fix
    )


def _layout(document: Document, workspace: Workspace) -> Iterator[Finding]:
    model, layout = workspace.model, document.text(INPUT, "input_layout_train")
    if model is None or len(model.inputs) != 1:
        return
    shape = next(iter(model.inputs.values()))
    if len(shape) != 4 or layout not in ("NCHW", "NHWC"):
        return
    is_last = shape[1] not in (1, 3) and shape[3] in (1, 3)
    stated = "NHWC" if is_last else "NCHW"
    if stated != layout:
        yield document.finding(
            "layout",
            f"input_layout_train is {layout}, but the model's input is "
            f"{sides_text(shape)}, which is {stated}",
            INPUT,
            "input_layout_train",
            fix=f"input_layout_train: '{stated}'",
        )


def _normalization(document: Document, workspace: Workspace) -> Iterator[Finding]:
    # Where it is missing, the tool does nothing.
    kind = document.text(INPUT, "norm_type") or "no_preprocess"
    if kind not in USES or number_of_inputs(document) > 1 or not takes_images(document):
        return
    uses_mean, uses_scale = USES[kind]
    yield from _unused(document, "mean_value", uses_mean, kind)
    yield from _unused(document, "scale_value", uses_scale, kind)
    mean = schema.parse_numbers(document.get(INPUT, "mean_value")) or [()]
    scale = schema.parse_numbers(document.get(INPUT, "scale_value")) or [()]
    if len(mean) > 1 or len(scale) > 1:
        yield document.finding(
            "value-count",
            "mean_value or scale_value has values for several inputs; ; stands between inputs, "
            "blanks stand between channels",
            INPUT,
            "mean_value" if len(mean) > 1 else "scale_value",
        )
        return
    if (uses_mean and not mean[0]) or (uses_scale and not scale[0]):
        return
    if uses_scale and 0 in scale[0]:
        yield document.finding(
            "wrong-scale",
            "scale_value is 0, which erases a channel",
            INPUT,
            "scale_value",
        )
        return
    actual = Normalization(
        mean[0] if uses_mean else (0.0,),
        tuple(1 / value for value in scale[0]) if uses_scale else (1.0,),
    )
    yield from normalization_findings(
        document, workspace.model, actual, color_of(document), SPELLING
    )
    yield from _twice(document, workspace, actual)


def _unused(
    document: Document, key: str, is_used: bool, kind: str
) -> Iterator[Finding]:
    value = document.text(INPUT, key)
    if is_used and not value:
        yield document.finding(
            "missing-key",
            f"norm_type is {kind}, which needs {key}",
            INPUT,
            key,
            fix=f"{key}:",
        )
    elif value and not is_used and value.strip("0. "):
        yield document.finding(
            "unused-value",
            f"{key} is given, but norm_type {kind} does not use it",
            INPUT,
            key,
            fix=f"norm_type: 'data_mean_and_scale', or delete {key}",
        )


def _twice(
    document: Document, workspace: Workspace, actual: Normalization
) -> Iterator[Finding]:
    if workspace.model is None:
        return
    inside = graph.normalization_in_graph(workspace.model)
    subtracts = inside.subtracts and any(actual.mean)
    # Pixels that are divided by about 255 twice.
    scales = inside.factor < SMALL_FACTOR and 1 / min(actual.std) < SMALL_FACTOR
    if not subtracts and not scales:
        return
    yield document.finding(
        "normalized-twice",
        f"the graph begins with {inside.nodes}, which normalizes, and norm_type "
        f"{document.text(INPUT, 'norm_type')} makes the tool normalize in front of it as well",
        INPUT,
        "norm_type",
        fix="norm_type: 'no_preprocess', or export the model without these nodes",
    )


def _shape(document: Document, workspace: Workspace) -> Iterator[Finding]:
    model = workspace.model
    if model is None:
        return
    names = parts(document.text(INPUT, "input_name"))
    for name in names:
        if name not in model.inputs:
            yield document.finding(
                "input-name",
                f"input_name is {name}; the model's input is called {', '.join(model.inputs)}",
                INPUT,
                "input_name",
                fix="input_name: '', or the model's name",
            )
    shapes = parts(document.text(INPUT, "input_shape"))
    for text in shapes:
        if not SHAPE.fullmatch(text):
            yield document.finding(
                "wrong-type",
                f"input_shape is {text}; expected sides with x between them",
                INPUT,
                "input_shape",
                fix="input_shape: '1x3x224x224'",
            )
            return
    if not shapes or len(shapes) != len(model.inputs):
        return
    for text, stated in zip(shapes, model.inputs.values(), strict=True):
        sides = tuple(int(side) for side in re.findall(r"\d+", text))
        if not fits(sides, stated):
            yield document.finding(
                "input-shape",
                f"input_shape is {text}, but the model's input is {sides_text(stated)}",
                INPUT,
                "input_shape",
                fix=f"input_shape: '{sides_text(stated)}'",
            )


def _camera(document: Document, workspace: Workspace) -> Iterator[Finding]:
    runtime = document.text(INPUT, "input_type_rt")
    sides = input_sides(document, workspace.model)
    if runtime in EVEN_SIDES and sides and (sides[1] % 2 or sides[2] % 2):
        yield document.finding(
            "odd-sides",
            f"input_type_rt is {runtime}, but the input has {sides[1]}x{sides[2]} pixels; NV12 "
            "has one color for 2x2 pixels, so sides must be even",
            INPUT,
            "input_type_rt",
            fix="export the model at an even --size, or input_type_rt: 'rgb' with input_layout_rt",
        )
    if runtime and runtime != "nv12" and not document.text(INPUT, "input_layout_rt"):
        yield document.finding(
            "missing-key",
            f"input_type_rt is {runtime}, which needs input_layout_rt",
            INPUT,
            "input_layout_rt",
            fix="input_layout_rt: 'NHWC', as cameras give it, or 'NCHW'",
        )
    train = document.text(INPUT, "input_type_train")
    if train == "gray" and runtime not in ("gray", ""):
        yield document.finding(
            "input-type",
            f"input_type_rt is {runtime}, but the model takes gray images",
            INPUT,
            "input_type_rt",
            fix="input_type_rt: 'gray'",
        )
    if (train == "featuremap") != (runtime == "featuremap") and train and runtime:
        yield document.finding(
            "input-type",
            f"input_type_rt is {runtime} and input_type_train is {train}; a featuremap is not "
            "converted, so both must be",
            INPUT,
            "input_type_rt",
        )
    yield from _range(document, workspace, runtime)


def _range(document: Document, workspace: Workspace, runtime: str) -> Iterator[Finding]:
    space = document.text(INPUT, "input_space_and_range")
    if space != "bt601_video":
        return
    if runtime != "nv12":
        yield document.finding(
            "space-and-range",
            f"input_space_and_range is {space}, which is for nv12 only; input_type_rt is "
            f"{runtime}",
            INPUT,
            "input_space_and_range",
            fix="input_space_and_range: 'regular'",
        )
        return
    yield document.finding(
        "limited-range",
        "input_space_and_range is bt601_video: luma 16..235. NV12 that OpenCV or a JPEG decoder "
        "makes has 0..255",
        INPUT,
        "input_space_and_range",
        fix="input_space_and_range: 'regular', unless the camera gives 16..235",
        mistake=_limited(workspace),
    )


def _limited(workspace: Workspace) -> Mistake | None:
    """Pixels of 0..255 taken for 16..235: every pixel becomes (x - 16) * 255 / 219."""
    preprocess = workspace.preprocess
    if preprocess is None:
        return None
    factor = 219 / 255
    mean = [value * factor + 16 / 255 for value in preprocess.mean]
    std = [value * factor for value in preprocess.std]
    document = {**preprocess.document(), "mean": mean, "std": std}
    return Mistake(type(preprocess).from_mapping(document), preprocess)


def _compiler(document: Document, _: Workspace) -> Iterator[Finding]:
    level = document.text(COMPILER, "optimize_level")
    if level in ("", "O0", "O1", "O2"):
        stated = f"is {level}" if level else "is missing, which stands for O0"
        yield document.finding(
            "optimize-level",
            f"optimize_level {stated}; the compiler may make slower code than with O3",
            COMPILER,
            "optimize_level",
            fix="optimize_level: 'O3'",
        )
    mode = document.text(COMPILER, "compile_mode")
    factor = document.text(COMPILER, "balance_factor")
    if mode == "balance" and not factor:
        yield document.finding(
            "missing-key",
            "compile_mode is balance, which needs balance_factor (0 is bandwidth, 100 latency)",
            COMPILER,
            "balance_factor",
            fix="compile_mode: 'latency', or balance_factor: 50",
        )
    elif factor and mode != "balance":
        yield document.finding(
            "unused-value",
            f"balance_factor is for compile_mode balance; it is {mode or 'latency'}",
            COMPILER,
            "balance_factor",
            fix="delete balance_factor",
        )


RULES = (
    _march,
    _files,
    _color,
    _layout,
    _normalization,
    _shape,
    _camera,
    rdk_x5_calibration.method,
    rdk_x5_nodes.node_rules,
    rdk_x5_nodes.removed_nodes,
    _compiler,
    rdk_x5_calibration.stated_type,
)
