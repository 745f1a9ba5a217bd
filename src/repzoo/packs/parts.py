"""Parts that packs share: shell steps, labels, READMEs, numbers and images as files."""

from __future__ import annotations

import functools
import io
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image

from repzoo.artifact import Artifact, Preprocess
from repzoo.errors import InputError
from repzoo.packs.pack import PackFile, PackJob
from repzoo.printable import code_span, escape_markdown, one_line, signed
from repzoo.storage import json_text

SHELL_HEAD = """\
#!/usr/bin/env bash
# {about}
set -euo pipefail
cd "$(dirname "$0")"
"""
LANGUAGES = {"en": "README.md", "zh": "README_cn.md"}
UNKNOWN = {"en": "not known", "zh": "未知"}


@dataclass(frozen=True)
class Step:
    """A numbered shell script of a pack.

    Attributes:
        name: what it does, such as "build"; a part of the file's name.
        about: a line for people, in the script and in the README.
        about_zh: the same in Chinese.
        commands: what it runs, in the pack's folder.
    """

    name: str
    about: str
    about_zh: str
    commands: str


def step_files(steps: Sequence[Step]) -> Iterator[PackFile]:
    """The scripts `01_NAME.sh`, `02_NAME.sh` and so on, executable by bash."""
    for number, step in enumerate(steps, 1):
        head = SHELL_HEAD.format(about=one_line(step.about))
        yield script_name(number, step), f"{head}{step.commands.rstrip()}\n"


def script_name(number: int, step: Step) -> str:
    """The file name of a step, counted from 1."""
    return f"{number:02d}_{step.name}.sh"


def quoted(*words: object) -> str:
    """`words` as arguments for bash."""
    return shlex.join(map(str, words))


def yaml_blocks(document: Mapping[str, object], indent: int = 0) -> str:
    """YAML in blocks, whose keys are plain words; values are written as JSON, a part of YAML 1.2.

    So no name can end its line or become another type.
    """
    lines: list[str] = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            lines.append(f"{' ' * indent}{key}:\n{yaml_blocks(value, indent + 2)}")
        else:
            lines.append(f"{' ' * indent}{key}: {json_text(value)}\n")
    return "".join(lines)


def png(pixels: npt.NDArray[np.uint8], color: str) -> bytes:
    """An image [channels, height, width] in the order of `color` as a PNG file, without loss."""
    channels_last = pixels.transpose(1, 2, 0)
    if color == "BGR":
        channels_last = channels_last[..., ::-1]
    if color == "GRAY":
        channels_last = channels_last[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(channels_last)).save(buffer, "PNG")
    return buffer.getvalue()


def npy(values: npt.NDArray[Any]) -> bytes:
    """An array as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def label_files(job: PackJob) -> Iterator[PackFile]:
    """`labels.txt`, a label a line, where the model has labels."""
    text = labels_text(job.artifact)
    if text:
        yield "labels.txt", text


def labels_text(artifact: Artifact) -> str:
    """A label a line; "" for a model without labels."""
    return "".join(f"{one_line(label)}\n" for label in artifact.labels)


def fallback_nodes(job: PackJob) -> list[onnx.NodeProto]:
    """The nodes that stay out of INT8, in graph order.

    Raises:
        InputError: the model has no node of one of these names.
    """
    names = set(job.fallback)
    nodes: list[onnx.NodeProto] = []
    for node in job.artifact.model.graph.node:
        if names & {node.name, *node.output}:
            nodes.append(node)
            names -= {node.name, *node.output}
    if names:
        raise InputError(
            f"{job.artifact.name} has no node called {min(names)}, which was to stay out of INT8"
        )
    return nodes


def pixel_mean(preprocess: Preprocess) -> list[float]:
    """Mean of each channel of the input, in units of pixels 0..255."""
    return _of_channels(preprocess, preprocess.mean)


def pixel_std(preprocess: Preprocess) -> list[float]:
    """Standard deviation of each channel of the input, in units of pixels 0..255."""
    return _of_channels(preprocess, preprocess.std)


def numbers(values: Sequence[float], separator: str) -> str:
    """`values` in a line, with 8 digits: about as many as a float32 has."""
    return separator.join(f"{value:.8g}" for value in values)


def _of_channels(preprocess: Preprocess, values: Sequence[float]) -> list[float]:
    if preprocess.color == "GRAY":  # one channel has the average, see Preprocess
        values = [sum(values) / len(values)]
    return [255 * value for value in values]


def file_name(name: str) -> str:
    """A model's name as a file name that means nothing to a shell or to YAML."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".-")
    return plain or "model"


def shared_files(
    job: PackJob, target: str, steps: Sequence[Step], **values: Any
) -> Iterator[PackFile]:
    """What every pack has: the steps, the labels, README.md and README_cn.md.

    Args:
        job: what the pack is made from.
        target: name of the READMEs' templates, `TARGET.en.md.j2` and `TARGET.zh.md.j2`.
        steps: shell steps of the pack; the templates list them.
        values: further names for the templates.
    """
    yield from step_files(steps)
    yield from label_files(job)
    folder = package_files("repzoo.packs") / "templates"
    for language in LANGUAGES:
        template = (folder / f"{target}.{language}.md.j2").read_text("utf-8")
        yield (
            LANGUAGES[language],
            render_readme(job, language, template, steps, **values),
        )


def render_readme(
    job: PackJob,
    language: str,
    template: str,
    steps: Sequence[Step],
    **values: Any,
) -> str:
    """A README from the text of a Jinja template, which may extend `readme.en.md.j2`.

    That one has the sections introduction, performance, files, deployment and quantization, with a
    block for each. It knows `name`, `height`, `width`, `classes`, `millions` (parameters), `images`
    and `data` of the calibration, `figures`, `fallback`, `scripts` (pairs of file name and what it
    does) and `values`; the filters `plain` and `code` make text of others safe for Markdown.
    """
    preprocess = job.artifact.require_preprocess()
    about = "about_zh" if language == "zh" else "about"
    scripts: list[tuple[str, str]] = []
    for number, step in enumerate(steps, 1):
        scripts.append((script_name(number, step), getattr(step, about)))
    text: str = (
        _environment()
        .from_string(template)
        .render(
            name=file_name(job.artifact.name),
            height=preprocess.height,
            width=preprocess.width,
            classes=job.artifact.num_classes,
            millions=_parameters(job.artifact) / 1e6,
            images=len(job.images),
            data=job.images.name,
            figures=job.figures,
            fallback=job.fallback,
            scripts=scripts,
            known=functools.partial(_percent, language),
            **values,
        )
    )
    return text


def render(template: str, **values: Any) -> str:
    """The text of a built-in template; names that it lacks are an error.

    The filter `literal` writes texts, numbers and lists as Python does.
    """
    text: str = _environment().get_template(template).render(**values)
    return text


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("repzoo.packs"),
        undefined=jinja2.StrictUndefined,  # a name that is missing is an error, not a gap
        autoescape=False,  # the output is Markdown; `plain` and `code` escape it
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        plain=escape_markdown, code=code_span, signed=signed, literal=ascii
    )
    return environment


def _percent(language: str, value: float | None) -> str:
    if value is None:
        return UNKNOWN[language]
    return f"{value:.2f}"


def _parameters(artifact: Artifact) -> int:
    # Here, since commands load this module and counting imports onnx-ir, which takes a second.
    from repzoo.graph.tools.cost import count

    return count(artifact).parameters
