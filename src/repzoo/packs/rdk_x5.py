"""The pack for D-Robotics' RDK X5 (bayes-e): what hb_mapper, the board and its notebook need.

The model comes in two forms. In the first, hb_mapper calibrates activations by itself and rounds
each weight to itself, since they lie on its grid. In the second, Q/DQ pairs hold the scales that
`repzoo harden` chose, which hb_mapper takes as they are (`calibration_type: load`).

The folder has the layout of D-Robotics' model zoo; rdk_x5_samples.py adds its newer one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.graph.tools.cost import count
from repzoo.graph.tools.onnx_edit import unused_name
from repzoo.packs import board_files
from repzoo.packs import rdk_x5_yaml as configuration
from repzoo.packs.compile_rdk_x5 import RdkX5Compiler
from repzoo.packs.families import catalog_row, family_words
from repzoo.packs.pack import PackFile, PackJob, pixel_images
from repzoo.packs.parts import (
    Step,
    fallback_nodes,
    file_name,
    script_name,
    shared_files,
)
from repzoo.packs.ranges import activation_ranges
from repzoo.packs.rdk_x5_load import load_form
from repzoo.packs.rdk_x5_notebook import notebook
from repzoo.packs.rdk_x5_samples import sample_files
from repzoo.packs.rdk_x5_steps import steps
from repzoo.packs.rdk_x5_yaml import yaml_text
from repzoo.protobuf_stream import clone


class RdkX5:
    """The target `rdk-x5`."""

    name = "rdk-x5"
    scheme = "rdk-x5"
    compiler = RdkX5Compiler()

    def check(self, artifact: Artifact) -> None:
        """Refuse what NV12 cannot take; limits.py refuses what no board takes.

        Raises:
            InputError: names it, and what to do.
        """
        preprocess = artifact.require_preprocess()
        height, width = preprocess.height, preprocess.width
        if preprocess.color != "GRAY" and (height % 2 or width % 2):
            raise InputError(
                f"{artifact.name} takes {height}x{width} pixels; NV12 needs even sides: export it "
                "with another --size"
            )

    def files(self, job: PackJob) -> Iterator[PackFile]:
        """The model, its configuration, calibration files, steps, labels and READMEs."""
        content = _content(job)
        yield from _model_files(content)
        yield from _calibration_files(job, content)
        yield from board_files.program_files(content.artifact)
        yield "sample.png", content.sample
        listed = steps(content.artifact, content.scales is not None)
        facts = _facts(content, listed)
        on_board = facts["script_of"]["evaluate_on_board"]
        yield f"test_{content.name}.ipynb", notebook(content.artifact, on_board)
        yield from shared_files(job, "rdk_x5", listed, **facts)
        facts |= _sample_facts(job, content)
        yield from sample_files(
            content.artifact, content.sample, content.fallback, facts
        )


@dataclass(frozen=True)
class Content:
    """What a pack is written from.

    Attributes:
        artifact: the packed model, all of its nodes with names.
        name: of the model, as a file name.
        fallback: names of the nodes that compute in int16.
        scales: of activations, for the form that brings its own; None where none are known, or
            where layers compute in int16, which opset 11 cannot express.
        sample: an image for the notebook, as PNG.
    """

    artifact: Artifact
    name: str
    fallback: tuple[str, ...]
    scales: dict[str, float] | None
    sample: bytes


def _content(job: PackJob) -> Content:
    artifact = replace(job.artifact, model=_with_names(job.artifact.model))
    fallback = [node.name for node in fallback_nodes(replace(job, artifact=artifact))]
    scales = own_scales(artifact)
    return Content(
        artifact=artifact,
        name=file_name(artifact.name),
        fallback=tuple(fallback),
        scales=None if fallback or not scales else scales,
        sample=board_files.sample_image(job.images, artifact.require_preprocess()),
    )


def own_scales(artifact: Artifact) -> dict[str, float]:
    """The scale of each activation whose range the file states."""
    scales: dict[str, float] = {}
    for name, parameters in activation_ranges(artifact).items():
        scales[name] = parameters.scale
    return scales


def _with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with a name for each node: hb_mapper's logs and `node_info` go by them."""
    if all(node.name for node in model.graph.node):
        return model
    result = clone(model)
    used = {node.name for node in result.graph.node}
    for node in result.graph.node:
        if not node.name:
            node.name = unused_name(f"{node.op_type}_{node.output[0]}", used)
            used.add(node.name)
    return result


def _model_files(content: Content) -> Iterator[PackFile]:
    """Each form of the model with its configuration."""
    artifact, fallback = content.artifact, content.fallback
    yield f"{content.name}.onnx", artifact.to_bytes()
    yield f"{content.name}.yaml", yaml_text(artifact, fallback)
    if content.scales is not None:
        model = load_form(artifact.model, content.scales)
        name = f"{content.name}{configuration.LOAD}"
        yield f"{name}.onnx", replace(artifact, model=model).to_bytes()
        yield f"{name}.yaml", configuration.load_yaml_text(artifact)


def _calibration_files(job: PackJob, content: Content) -> Iterator[PackFile]:
    folder = configuration.calibration_folder(content.artifact)
    channels_last = content.artifact.require_preprocess().layout == "NHWC"
    for number, pixels in enumerate(pixel_images(job)):
        values = pixels.transpose(1, 2, 0) if channels_last else pixels
        yield f"{folder}/{number:04d}.rgb", values.astype(np.float32).tobytes()


def _facts(content: Content, listed: Sequence[Step]) -> dict[str, Any]:
    """What the READMEs say of this target."""
    artifact = content.artifact
    origin = catalog_row(artifact)
    scripts: dict[str, str] = {}
    for number, step in enumerate(listed, 1):
        scripts[step.name] = script_name(number, step)
    return {
        "origin": origin,
        "words": family_words()[origin.family] if origin else {},
        "calibration": configuration.calibration_folder(artifact),
        "load": content.scales is not None,
        "binary": configuration.binary_path(artifact),
        "runtime": configuration.runtime_type(artifact),
        "preprocess": artifact.require_preprocess(),
        "probabilities": board_files.gives_probabilities(artifact),
        "history": artifact.steps,
        "script_of": scripts,
    }


def _sample_facts(job: PackJob, content: Content) -> dict[str, Any]:
    """What the READMEs of the newer layout say beside `_facts`."""
    preprocess = content.artifact.require_preprocess()
    figures = job.figures
    return {
        "name": content.name,
        "height": preprocess.height,
        "width": preprocess.width,
        "classes": content.artifact.num_classes,
        "millions": count(content.artifact).parameters / 1e6,
        "binary_name": configuration.prefix(content.artifact) + ".bin",
        "float_top1": _percent(figures.float_top1),
        "predicted_top1": _percent(figures.predicted_top1),
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
