"""Files that fix their batch, and yet compute each image apart from the others.

repzoo writes files for one image, since engines run them faster. Calibration shows many images to
the same graph, and one call for several of them takes two thirds of the time.

Shape inference says whether a graph takes any number of images. Whether it keeps them apart is
seen on the first of them: a Softmax over the batch keeps its size, and mixes the images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx

from repzoo.engines import Array, Session
from repzoo.engines.batches import run_in_batches
from repzoo.graph.tools.skeleton import without_weights
from repzoo.onnx_file import fixed_batch, model_inputs

OPEN_BATCH = "N"
# Of outputs of an image alone and among others: sums may be added in another order.
TOLERANCE = 1e-3


def can_open_batch(model: onnx.ModelProto) -> bool:
    """Whether each tensor of `model`, which fixes its batch, would have any batch of its input.

    A tensor of which shape inference says nothing counts as one that would not.
    """
    if not fixed_batch(model):
        return False
    skeleton = without_weights(model)
    del skeleton.graph.value_info[:]  # shapes with the batch that is fixed
    for output in skeleton.graph.output:
        output.type.tensor_type.ClearField("shape")
    with open_batch(skeleton):
        inferred = onnx.shape_inference.infer_shapes(skeleton).graph
    batches: dict[str, str] = {}
    for value in [*inferred.value_info, *inferred.output]:
        sides = value.type.tensor_type.shape.dim
        batches[value.name] = sides[0].dim_param if sides else ""
    computed = [name for node in inferred.node for name in node.output if name]
    return all(batches.get(name) == OPEN_BATCH for name in computed)


@contextlib.contextmanager
def open_batch(model: onnx.ModelProto) -> Iterator[None]:
    """Leave open the batch that the input of `model` fixes, for as long as it is compiled."""
    # in place, since a copy would hold the weights twice
    sides = model_inputs(model)[0].type.tensor_type.shape.dim
    fixed = sides[0].dim_value if sides else 0
    stated = list(model.graph.value_info)
    try:
        if fixed:
            sides[0].dim_param = OPEN_BATCH
            del model.graph.value_info[:]  # shapes with the batch that is fixed
        yield
    finally:
        if fixed:
            sides[0].dim_value = fixed
            model.graph.value_info.extend(stated)


def mixes_images(session: Session, inputs: Array, batch: int) -> bool:
    """Whether images have other outputs together than in batches of `batch`."""
    few = inputs[: 2 * batch]
    together = session.run_all(few)
    apart = run_in_batches(session, few, batch)
    for first, second in zip(together, apart, strict=True):
        if first.shape != second.shape:
            return True
        largest = float(np.abs(second).max(initial=0))
        error = float(np.abs(first - second).max(initial=0))
        # Nor are values that are not finite the same.
        if not error <= TOLERANCE * largest:
            return True
    return False
