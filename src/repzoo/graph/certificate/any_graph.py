"""Compare the training form and its fold where the graph is no image classifier.

Such a graph may have several inputs and outputs of any rank and type: detection, segmentation,
feature extractors. Values are made up for every input, twice. Every output is compared on its own:
floats within a bound that is measured (comparison.py), integers by the share of elements that
differ, because an ArgMax flips where two values are as good as equal. An output whose shape depends
on values, as that of NonMaxSuppression does, may have another shape for the same reason; then it
says nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from repzoo.graph.certificate.number_types import FLOATS
from repzoo.graph.certificate.whole_graph import (
    LOUD,
    coarsest_roundoff,
    require_finite,
)
from repzoo.graph.tools.pieces import split_model
from repzoo.onnx_file import IMAGE_RANK, classifier_input, model_inputs

Values = npt.NDArray[Any]
Feeds = Mapping[str, Values]
# All outputs of a model without graph optimization, for the arrays of its inputs.
FeedRunner = Callable[[onnx.ModelProto, Feeds], list[Values]]

# Sides that a graph leaves open. Names that occur twice get one number.
IMAGES = 2
IMAGE_SIDE = 224  # of [N, C, H, W]; most strides divide it
OTHER_SIDE = 8
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
    moved_model = _copy_with_jitter(before, seed + 1)
    roundoff = coarsest_roundoff(before.graph)
    is_float = []
    for item in before.graph.output:
        is_float.append(item.type.tensor_type.elem_type in FLOATS)
    comparisons: list[Comparison] = []
    for feeds in groups:
        expected = run(before, feeds)
        actual = run(after, feeds)
        moved = run(moved_model, feeds)
        for index, floats in enumerate(is_float):
            output = _Output(expected[index], actual[index], moved[index])
            if output.is_empty:
                continue
            require_finite([output.expected, output.actual])
            comparisons.append(output.compare(floats, roundoff))
    if not comparisons:
        raise InputError(
            "the graph computes no output for random inputs, so nothing can be compared; "
            "check what it cuts away"
        )
    return combine(comparisons, inputs=len(groups))


@dataclass(frozen=True)
class _Output:
    """One output on one group of inputs.

    expected  of the training form
    actual    of the folded graph
    moved     of the training form with every weight moved by one unit in the last place
    """

    expected: Values
    actual: Values
    moved: Values

    @property
    def is_empty(self) -> bool:
        return self.expected.size == self.actual.size == self.moved.size == 0

    def compare(self, floats: bool, roundoff: float) -> Comparison:
        """The comparison of `actual` with `expected`; `floats`: by values, else by shares."""
        if self.expected.shape != self.moved.shape:
            return _unitless_comparison(error=0.0, bound=sys.float_info.max)
        if self.expected.shape != self.actual.shape:
            return _unitless_comparison(error=sys.float_info.max, bound=0.0)
        if floats:
            return compare(
                self.expected, self.actual, self.moved, roundoff, has_classes=False
            )
        moved = float(np.mean(self.expected != self.moved))
        return _unitless_comparison(
            error=float(np.mean(self.expected != self.actual)),
            bound=max(SAFETY * moved, TIES),
            floor=TIES,
        )


def _unitless_comparison(error: float, bound: float, floor: float = 0.0) -> Comparison:
    """The comparison of outputs that have no magnitude of their own: shares, or shapes."""
    return Comparison(
        error=error,
        bound=bound,
        magnitude=1.0,
        spread=1.0,
        floor=floor,
        agrees=np.zeros(0, bool),
    )


def _copy_with_jitter(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
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
        values = _random_values(item, shape, random)
        quiet[item.name] = values
        loud[item.name] = values
        if item.type.tensor_type.elem_type in FLOATS and len(shape) > 1:
            loud[item.name] = (LOUD * values).astype(values.dtype)
    return [quiet, loud]


def _shape(item: onnx.ValueInfoProto, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of an input, with a number for each open side.

    sizes  of sides that have a name, so far
    """
    tensor = item.type.tensor_type
    dims = list(tensor.shape.dim)
    rank = len(dims)
    # A scalar has no sides at all.
    usual = [IMAGES] + [OTHER_SIDE] * max(rank - 1, 0)
    if rank == IMAGE_RANK:
        usual = [IMAGES, 3, IMAGE_SIDE, IMAGE_SIDE]
    shape = []
    for dim, default in zip(dims, usual[:rank], strict=True):
        side = dim.dim_value if dim.dim_value > 0 else default
        if dim.dim_param:
            side = sizes.setdefault(dim.dim_param, side)
        shape.append(side)
    return tuple(shape)


def _random_values(
    item: onnx.ValueInfoProto, shape: Sequence[int], random: np.random.Generator
) -> Values:
    """Random values of the type of an input. Integers are 0 or 1: indices of any table."""
    _require_feasible(item, shape)
    element = item.type.tensor_type.elem_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element)
    if element == TensorProto.UINT8:
        return random.integers(0, 256, shape, np.uint8)
    if element not in FLOATS:
        return np.asarray(random.integers(0, 2, shape)).astype(dtype)
    if len(shape) < 3 and all(side <= SIZE_COLUMNS for side in shape[1:]):
        # Beside an image these are its size or its scale, which are positive.
        return np.asarray(random.uniform(0.5, 1.5, shape)).astype(dtype)
    return np.asarray(random.standard_normal(shape)).astype(dtype)


def _require_feasible(item: onnx.ValueInfoProto, shape: Sequence[int]) -> None:
    """Refuse an input that is no tensor of numbers, or too large.

    Raises:
        InputError: says which.
    """
    element = item.type.tensor_type.elem_type
    is_tensor = item.type.HasField("tensor_type") and element != TensorProto.STRING
    if not is_tensor or element == TensorProto.UNDEFINED:
        raise InputError(
            f"the input {item.name!r} is no tensor of numbers, so no value can be made up for it "
            "and the fold cannot be checked"
        )
    if math.prod(shape) > MOST_ELEMENTS:
        raise InputError(
            f"the input {item.name!r} of {'x'.join(map(str, shape))} is too large to be made up "
            "for the certificate; export the graph with a smaller input"
        )
