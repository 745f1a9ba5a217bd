"""The verb `demo`: a model that classifies pictures in a browser, as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from repzoo.progress import Progress, silent
from repzoo.report import demo as report
from repzoo.report import web_runtime
from repzoo.storage import require_writable, write_atomically
from repzoo.verbs.assumed_preprocess import for_images
from repzoo.verbs.model_files import ModelLike, open_model


@dataclass(frozen=True)
class Demo:
    """A demo that was written.

    bytes    its size
    runtime  what runs the model in it, with its version
    """

    path: Path
    bytes: int
    runtime: str


def demo(model: ModelLike, output: str | Path, *, progress: Progress = silent) -> Demo:
    """Write one HTML file in which `model` classifies pictures, in a browser and offline.

    It holds the model and onnxruntime-web, which npm fetches the first time. A picture is prepared
    as in Python.

    model   a classifier in INT8 or float: an Artifact, the path of an ONNX file, a name
    output  file to write

    Raises:
        InputError: no classifier, a preprocessing or tensors that a browser cannot make, a model
            that is too large, no npm, or a place that cannot be written.
    """
    path = Path(output)
    require_writable(path)
    artifact = for_images(open_model(model))
    # Before npm is asked: what is wrong with the model is known at once.
    contents = report.contents(artifact)
    html = report.render(contents, web_runtime.load(progress)).encode()
    write_atomically(path, html)
    return Demo(path, len(html), f"{web_runtime.NAME} {web_runtime.VERSION}")
