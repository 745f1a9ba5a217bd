"""Models for the verbs that take any graph: `--size` fills in what an image input leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from repzoo.errors import InputError
from repzoo.onnx_file import IMAGE_RANK, classifier_input, model_inputs
from repzoo.preprocessing import Size, is_channels_last
from repzoo.protobuf_stream import clone
from repzoo.verbs.model_files import load_file, with_preprocess
from repzoo.verbs.public_artifact import Artifact


def load_any_graph(
    source: str | Path,
    labels: Path | Sequence[str] | None = None,
    **preprocess: Any,
) -> Artifact:
    """As `load_file`; `size` also serves a graph that is no classifier, such as a detector.

    Raises:
        InputError: as `load_file`, or a size for a graph that takes no image of open size.
    """
    model = load_file(source, labels)
    stated = {name for name, value in preprocess.items() if value is not None}
    # A classifier has a preprocessing that the size belongs to, and must agree with.
    if stated != {"size"} or _is_classifier(model.model):
        return with_preprocess(model, preprocess)
    sized = _with_size(model.model, preprocess["size"], model.name)
    return Artifact.wrap(replace(model, model=sized))


def _is_classifier(model: onnx.ModelProto) -> bool:
    try:
        classifier_input(model)
    except InputError:
        return False
    return True


def _with_size(model: onnx.ModelProto, size: Size, name: str) -> onnx.ModelProto:
    """A copy of `model` whose open heights and widths are those of `size`."""
    height, width = (size, size) if isinstance(size, int) else size
    sized = clone(model)
    is_changed = False
    for value in model_inputs(sized):
        dims = value.type.tensor_type.shape.dim
        # Detectors may also take inputs that are no images.
        if len(dims) != IMAGE_RANK:
            continue
        is_last = is_channels_last(tuple(dim.dim_value for dim in dims[1:]))
        axes = (1, 2) if is_last else (2, 3)
        for axis, side in zip(axes, (height, width), strict=True):
            if dims[axis].dim_value <= 0:
                dims[axis].dim_value = side
                is_changed = True
    if not is_changed:
        raise InputError(
            f"{name} takes no image whose height or width is open; leave out --size"
        )
    return sized
