"""Run the training form and its fold on images, and compare what they compute.

Large graphs run piece by piece (graph/tools/pieces.py), so the check needs little memory besides
the two models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from repzoo.artifact import Artifact
from repzoo.errors import CertificateError, InputError
from repzoo.graph.certificate.comparison import GraphComparison, combine, compare
from repzoo.graph.certificate.jitter import jitter, jitter_constants, layer_constants
from repzoo.graph.certificate.number_types import (
    FLOAT32_ROUNDOFF,
    FLOATS,
    unit_roundoff,
)
from repzoo.graph.tools.cost_result import Cost
from repzoo.graph.tools.pieces import split_model, trim_heap
from repzoo.onnx_file import classifier_input, fixed_batch
from repzoo.progress import Progress, silent

Images = npt.NDArray[Any]  # float32, or uint8 for a model that takes bytes
Runner = Callable[[onnx.ModelProto, Images], Images]  # exact: no graph optimization

# Images of each random kind: as many as MACS_BUDGET allows.
FEWEST_IMAGES = 1
MOST_IMAGES = 4
MACS_BUDGET = 2**34
LOUD = 30  # amplitude of the loud noise, in standard deviations of an image
DEFAULT_SHAPE = (3, 224, 224)


def random_inputs(
    artifact: Artifact,
    cost: Cost,
    images: Images | None,
    seed: int,
) -> list[Images]:
    """Groups of inputs to compare one by one: noise, loud noise, and `images` where there are any.

    Raises:
        InputError: `images` are of another size than the model takes.
    """
    source = classifier_input(artifact.model).type.tensor_type
    real = [] if images is None or len(images) == 0 else [images]
    usual = artifact.preprocess.input_shape if artifact.preprocess else DEFAULT_SHAPE
    if real:
        usual = real[0].shape[1:]
    shape = _input_shape(source, (_image_count(cost), *usual))
    if real and tuple(shape[1:]) != usual:
        raise InputError(
            f"the images are {list(usual)}, but {artifact.name} takes {shape[1:]}; "
            "prepare them at that size"
        )
    random = np.random.default_rng(seed)
    if source.elem_type == TensorProto.UINT8:
        noise = random.integers(0, 256, shape, np.uint8)
        black_and_white = 255 * random.integers(0, 2, shape, np.uint8)
        return [noise, black_and_white, *real]
    normal = random.standard_normal(shape).astype(np.float32)
    return [normal, LOUD * normal, *real]


def _image_count(cost: Cost) -> int:
    """How many images of each random kind a graph of that cost runs on."""
    affordable = MACS_BUDGET // max(cost.macs, 1)
    return min(max(affordable, FEWEST_IMAGES), MOST_IMAGES)


def _input_shape(source: onnx.TypeProto.Tensor, defaults: tuple[int, ...]) -> list[int]:
    """The shape of the input `source`, with `defaults` for sides that are open."""
    if not source.shape.dim:
        return list(defaults)
    sides = []
    for dim, default in zip(source.shape.dim, defaults, strict=True):
        sides.append(dim.dim_value or default)
    return sides


def compare_graphs(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    groups: Sequence[Images],
    run: Runner,
    seed: int,
    after_groups: Sequence[Images] | None = None,
    progress: Progress = silent,
) -> GraphComparison:
    """Compare `before` on `groups` with `after` on `after_groups`, by default the same.

    Raises:
        InputError: a graph computes no output.
        CertificateError: an output is not finite.
    """
    stage = "compare outputs"
    progress(stage, 0, 3)
    expected = _run_groups(before, groups, run)
    progress(stage, 1, 3)
    actual = _run_groups(after, after_groups or groups, run)
    progress(stage, 2, 3)
    _require_comparable([*expected, *actual])
    jittered = _run_groups(before, groups, run, np.random.default_rng(seed + 1))
    progress(stage, 3, 3)
    roundoff = coarsest_roundoff(before.graph)
    comparisons = []
    for outputs in zip(expected, actual, jittered, strict=True):
        comparisons.append(compare(*outputs, roundoff))
    return combine(comparisons)


def _require_comparable(outputs: Sequence[Images]) -> None:
    """Refuse outputs from which nothing follows."""
    for values in outputs:
        if not values.size:
            raise InputError(
                "the graph computes no output for some images, so nothing can be compared; "
                "check what it cuts away"
            )
    require_finite(outputs)


def require_finite(outputs: Sequence[Images]) -> None:
    """Refuse outputs with infinite values or NaN.

    Raises:
        CertificateError: an output is not finite.
    """
    for values in outputs:
        if not np.isfinite(values).all():
            raise CertificateError(
                "an output is not finite (overflow or NaN), so nothing can be proven; "
                "check the weights of the model"
            )


def coarsest_roundoff(graph: onnx.GraphProto) -> float:
    """The largest unit roundoff among the number types of the weights."""
    roundoffs = []
    for tensor in (*graph.initializer, *layer_constants(graph)):
        if tensor.data_type in FLOATS:
            roundoffs.append(unit_roundoff(tensor.data_type))
    return max(roundoffs, default=FLOAT32_ROUNDOFF)


def _run_groups(
    model: onnx.ModelProto,
    groups: Sequence[Images],
    run: Runner,
    random: np.random.Generator | None = None,
) -> list[Images]:
    """The outputs of `model` for each group; with `random`, its weights are moved."""
    batches = _batches(groups, fixed_batch(model))
    if random is None:
        pieces = split_model(model)
    else:
        pieces = split_model(model, change=lambda tensor: jitter(tensor, random))
    for piece in pieces:
        if random is not None:
            jitter_constants(piece.graph, random)
        batches = [np.atleast_1d(run(piece, batch)) for batch in batches]
        # Without this the next piece would be made while this one is still in memory.
        del piece
        trim_heap()
    ends = np.cumsum([len(group) for group in groups])
    return np.split(np.concatenate(batches), ends)[:-1]


def _batches(groups: Sequence[Images], batch: int) -> list[Images]:
    """All images in batches of `batch`, the last filled with copies of the first; 0: in one."""
    images = np.concatenate(groups)
    if not batch:
        return [images]
    missing = -len(images) % batch
    copies = np.repeat(images[:1], missing, axis=0)
    filled = np.concatenate([images, copies])
    return np.split(filled, len(filled) // batch)
