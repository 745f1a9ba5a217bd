"""Compare the training form and its fold where the graph is no image classifier.

Such a graph may have several inputs and outputs of any rank and type: detection, segmentation,
feature extractors. Values are made up for every input, twice. Every output is compared on its own:
floats within a bound that is measured (comparison.py), integers by the share of elements that
differ, because an ArgMax flips where two values are as good as equal. An output whose shape depends
on values, as that of NonMaxSuppression does, may have another shape for the same reason; then it
says nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from repzoo.errors import InputError
from repzoo.graph.certificate.comparison import (
    SAFETY,
    Comparison,
    GraphComparison,
    combine,
    compare,
)
from repzoo.graph.certificate.jitter import jitter, jitter_constants
from repzoo.graph.certificate.whole_graph import coarsest_roundoff, require_finite
from repzoo.graph.tools.pieces import split_model
from repzoo.onnx_file import classifier_input, model_inputs

Values = npt.NDArray[Any]
Feeds = Mapping[str, Values]
# All outputs of a model without graph optimization, for the arrays of its inputs.
FeedRunner = Callable[[onnx.ModelProto, Feeds], list[Values]]

FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)
# Sides that a graph leaves open. Names that occur twice get one number.
IMAGES = 2
IMAGE_SIDE = 224  # of [N, C, H, W]; most strides divide it
OTHER_SIDE = 8
LOUD = 30  # amplitude of the second group, in standard deviations of the first
# Share of an integer output that may differ where moving the weights changes nothing.
TIES = 1e-3
SIZE_COLUMNS = 4  # at most, of an input that describes images
MOST_ELEMENTS = 2**28  # of a made-up input


def is_classifier(model: onnx.ModelProto) -> bool:
    """Whether the graph takes one image and gives one row of numbers for it."""
    try:
        classifier_input(model)
    except InputError:
        return False
    return True


def compare_any_graphs(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    run: FeedRunner,
    seed: int,
) -> GraphComparison:
    """Compare all outputs of `before` and `after` on made-up inputs.

    Raises:
        InputError: an input or output is no tensor of numbers, or all outputs are empty.
        CertificateError: an output is not finite.
    """
    groups = make_inputs(before, seed)
    jittered_model = _jittered(before, seed + 1)
    roundoff = coarsest_roundoff(before.graph)
    is_float = []
    for item in before.graph.output:
        is_float.append(item.type.tensor_type.elem_type in FLOATS)
    comparisons: list[Comparison] = []
    for feeds in groups:
        expected, actual = run(before, feeds), run(after, feeds)
        jittered = run(jittered_model, feeds)
        for index, floats in enumerate(is_float):
            triple = expected[index], actual[index], jittered[index]
            if not any(values.size for values in triple):
                continue
            require_finite(triple[:2])
            comparisons.append(_compare_output(*triple, floats, roundoff))
    if not comparisons:
        raise InputError(
            "the graph computes no output for random inputs, so nothing can be compared; "
            "check what it cuts away"
        )
    return combine(comparisons, inputs=len(groups))


def _compare_output(
    expected: Values, actual: Values, jittered: Values, floats: bool, roundoff: float
) -> Comparison:
    """The comparison of one output on one group of inputs."""
    if not expected.shape == actual.shape == jittered.shape:
        return _of_other_shape(expected.shape != jittered.shape)
    if floats:
        return compare(expected, actual, jittered, roundoff, has_classes=False)
    moved = float(np.mean(expected != jittered))
    return Comparison(
        error=float(np.mean(expected != actual)),
        bound=max(SAFETY * moved, TIES),
        magnitude=1.0,
        spread=1.0,
        floor=TIES,
        agrees=np.zeros(0, bool),
    )


def _of_other_shape(depends_on_rounding: bool) -> Comparison:
    """The comparison of outputs of different shapes.

    depends_on_rounding  whether the shape changes with a move of the weights too
    """
    largest = sys.float_info.max
    return Comparison(
        error=0.0 if depends_on_rounding else largest,
        bound=largest if depends_on_rounding else 0.0,
        magnitude=1.0,
        spread=1.0,
        floor=0.0,
        agrees=np.zeros(0, bool),
    )


def _jittered(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """A copy of `model` with every weight moved by one unit in the last place."""
    random = np.random.default_rng(seed)
    (copy,) = split_model(
        model, sys.maxsize, change=lambda tensor: jitter(tensor, random)
    )
    jitter_constants(copy.graph, random)
    return copy


# --- inputs ---------------------------------------------------------------------------------------


def make_inputs(model: onnx.ModelProto, seed: int) -> list[dict[str, Values]]:
    """Two groups of values for all inputs: noise, and loud noise.

    Raises:
        InputError: an input is no tensor of numbers, or too large.
    """
    random = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    quiet: dict[str, Values] = {}
    loud: dict[str, Values] = {}
    for item in model_inputs(model):
        shape = _shape(item, sizes)
        values = _made_up(item, shape, random)
        quiet[item.name] = values
        is_loud = item.type.tensor_type.elem_type in FLOATS and len(shape) > 1
        loud[item.name] = (LOUD * values).astype(values.dtype) if is_loud else values
    return [quiet, loud]


def _shape(item: onnx.ValueInfoProto, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of an input, with a number for each open side.

    sizes  of sides that have a name, so far
    """
    tensor = item.type.tensor_type
    dims = list(tensor.shape.dim)
    rank = len(dims)
    usual = [IMAGES] + [OTHER_SIDE] * max(rank - 1, 0)
    if rank == 4:
        usual = [IMAGES, 3, IMAGE_SIDE, IMAGE_SIDE]
    shape = []
    for dim, default in zip(dims, usual[:rank], strict=True):
        side = dim.dim_value if dim.dim_value > 0 else default
        if dim.dim_param:
            side = sizes.setdefault(dim.dim_param, side)
        shape.append(side)
    return tuple(shape)


def _made_up(
    item: onnx.ValueInfoProto, shape: Sequence[int], random: np.random.Generator
) -> Values:
    """Random values of the type of an input. Integers are 0 or 1: indices of any table."""
    element = item.type.tensor_type.elem_type
    is_tensor = item.type.HasField("tensor_type") and element != TensorProto.STRING
    if not is_tensor or element == TensorProto.UNDEFINED:
        raise InputError(
            f"the input {item.name!r} is no tensor of numbers, so no value can be made up for it "
            "and the fold cannot be checked"
        )
    count = int(np.prod([float(side) for side in shape]))
    if count > MOST_ELEMENTS:
        raise InputError(
            f"the input {item.name!r} of {'x'.join(map(str, shape))} is too large to be made up "
            "for the certificate; export the graph with a smaller input"
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element)
    is_small = len(shape) < 3 and all(side <= SIZE_COLUMNS for side in shape[1:])
    if element in FLOATS and is_small:
        # Beside an image these are its size or its scale, which are positive.
        return np.asarray(random.uniform(0.5, 1.5, shape)).astype(dtype)
    if element in FLOATS:
        return np.asarray(random.standard_normal(shape)).astype(dtype)
    if element == TensorProto.UINT8:
        return random.integers(0, 256, shape, np.uint8)
    return np.asarray(random.integers(0, 2, shape)).astype(dtype)
