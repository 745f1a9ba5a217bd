"""The demo: one HTML file in which a model classifies pictures, in the browser and offline.

The model and onnxruntime-web are in the file. Its scripts prepare a picture as repzoo does in
Python, bit for bit: `demo_pixels.js` resizes as Pillow, with weights of 22 bits for each pass.
"""

from __future__ import annotations

import base64
import functools
import gzip
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import onnx
import PIL

from repzoo.artifact import Artifact, Preprocess
from repzoo.data import nv12
from repzoo.data.preprocess import statistics
from repzoo.errors import InputError
from repzoo.graph.tools.head import SUM_TOLERANCE, THRESHOLD
from repzoo.measure.class_mapping import class_labels, require_classes
from repzoo.onnx_file import classifier_input
from repzoo.preprocessing import size_text
from repzoo.report import html_file, web_runtime
from repzoo.report.page_rows import PRECISIONS
from repzoo.report.web_runtime import WebRuntime

# A page of more would take a browser longer to read than to run.
MAX_MODEL_BYTES = 200_000_000
SCRIPTS = ("demo_pixels.js", "demo_pictures.js", "demo.js")
# The first version that resizes a picture along its columns before its rows, where it loses far
# more rows than columns. Each pass rounds to bytes, so the order shows.
PILLOW_TALL_FIRST = 13
ELEMENTS = {"float": onnx.TensorProto.FLOAT, "uint8": onnx.TensorProto.UINT8}


@dataclass(frozen=True)
class DemoContents:
    """What a demo is made of, but for the runtime.

    model  bytes of the ONNX file
    data   what the scripts read: `spec`, labels, words and facts
    """

    name: str
    model: bytes
    data: Mapping[str, Any]


def contents(artifact: Artifact) -> DemoContents:
    """The contents of a demo of `artifact`.

    Raises:
        InputError: no preprocessing, outputs that are no classes, an input or output in another
            type than the browser gives, or more than MAX_MODEL_BYTES.
    """
    own = spec(artifact)
    model = _model_bytes(artifact)
    data = {
        "spec": own,
        "labels": class_labels(artifact),
        "words": words(),
        "facts": _facts(artifact, len(model)),
    }
    return DemoContents(artifact.name, model, data)


def render(demo: DemoContents, runtime: WebRuntime) -> str:
    """The HTML file."""
    script = "".join(html_file.read_template(name) for name in SCRIPTS)
    style = html_file.read_template("demo.css")
    scripts = [html_file.inline_script(text) for text in (runtime.script, script)]
    policy = html_file.policy(
        scripts,
        # To compile WebAssembly; it admits no JavaScript (WebAssembly CSP proposal).
        script_src="'wasm-unsafe-eval'",
        style_src=html_file.source_hash(style),
        # The size of a picture is read before it is decoded.
        img_src="data: blob:",
    )
    return html_file.render(
        "demo.html.j2",
        name=demo.name,
        words=words()["en"],
        policy=policy,
        style=style,
        data=html_file.json_element(demo.data),
        model=_packed(demo.model),
        wasm=_packed(runtime.wasm),
        runtime=scripts[0],
        script=scripts[1],
    )


def spec(artifact: Artifact) -> dict[str, Any]:
    """What the scripts must know to run `artifact`.

    head, threshold, sum_tolerance   what outputs are, and when (see `graph.tools.head`)
    input_name, dims                 the input tensor, N included
    height, width                    of the input, in pixels
    resize, resize_to                how, and to [height, width]; equal sides mean a short side
    interpolation, orientation, color, input, layout    as in Preprocess
    tall_first                       whether Pillow resizes tall pictures first along their columns
    mean, std                        float32, one for each channel
    matrix, offset                   RGB to YUV, for nv12
    """
    head = require_classes(artifact)
    preprocess = artifact.require_preprocess()
    resize_to = preprocess.resize_to
    sides = (resize_to, resize_to) if isinstance(resize_to, int) else resize_to
    mean, std = statistics(preprocess)
    matrix, offset = nv12.encoding(preprocess.yuv)
    names = ("resize", "interpolation", "orientation", "color", "input", "layout")
    return {
        "head": head.kind.value,
        "threshold": THRESHOLD,
        "sum_tolerance": SUM_TOLERANCE,
        "input_name": artifact.input_name,
        "dims": [_batch(artifact), *preprocess.input_shape],
        "height": preprocess.height,
        "width": preprocess.width,
        "resize_to": sides,
        **{name: getattr(preprocess, name) for name in names},
        "tall_first": int(PIL.__version__.partition(".")[0]) >= PILLOW_TALL_FIRST,
        "mean": np.asarray(mean, np.float64).tolist(),
        "std": np.asarray(std, np.float64).tolist(),
        "matrix": matrix.tolist(),
        "offset": offset.tolist(),
    }


@functools.cache
def words() -> dict[str, dict[str, str]]:
    """The words of the demo by language and key."""
    return tomllib.loads((files("repzoo.report") / "demo.toml").read_text("utf-8"))


def _model_bytes(artifact: Artifact) -> bytes:
    _require_types(artifact)
    content = artifact.to_bytes()
    if len(content) > MAX_MODEL_BYTES:
        raise InputError(
            f"{artifact.name} has {len(content):,} bytes; a demo holds models of at most "
            f"{MAX_MODEL_BYTES:,}; quantize it first: repzoo quantize"
        )
    return content


def _require_types(artifact: Artifact) -> None:
    """Refuse a model whose input or output the browser's arrays cannot hold as they are."""
    wanted = ELEMENTS.get(artifact.require_preprocess().input, ELEMENTS["uint8"])
    values = {
        "input": (classifier_input(artifact.model), wanted),
        "output": (artifact.model.graph.output[0], ELEMENTS["float"]),
    }
    name_of = onnx.TensorProto.DataType.Name
    for side, (value, expected) in values.items():
        actual = value.type.tensor_type.elem_type
        if actual != expected:
            raise InputError(
                f"the {side} {value.name} of {artifact.name} is {name_of(actual).lower()}; a demo "
                f"takes {name_of(expected).lower()}; export it so (repzoo quantize --precision "
                "fp16 leaves both in float32)"
            )


def _batch(artifact: Artifact) -> int:
    """The images of one run: N where the graph fixes it, else 1."""
    dims = classifier_input(artifact.model).type.tensor_type.shape.dim
    return max(1, dims[0].dim_value) if dims else 1


def _packed(content: bytes) -> str:
    """`content` as gzip in base64: the same text for the same bytes."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _facts(artifact: Artifact, size: int) -> list[tuple[str, str]]:
    """What the page says of the model: keys of the words, and values."""
    preprocess = artifact.require_preprocess()
    facts = [
        ("precision", PRECISIONS.get(artifact.form, artifact.form)),
        ("bytes", f"{size / 1e6:.2f} MB"),
        ("classes", str(len(class_labels(artifact)) or artifact.num_classes or "?")),
        ("input", f"{size_text(preprocess.size)} {preprocess.color}"),
        ("preprocess", _preprocess_text(preprocess)),
        ("sha256", artifact.sha256),
        ("runtime", f"{web_runtime.NAME} {web_runtime.VERSION} (wasm)"),
    ]
    if artifact.assumed:
        facts.append(("assumed", ", ".join(artifact.assumed)))
    return facts


def _preprocess_text(preprocess: Preprocess) -> str:
    """Its fields as `name value`, those of other inputs left out."""
    return ", ".join(f"{name} {value}" for name, value in preprocess.document().items())
