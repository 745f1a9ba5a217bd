"""A session that takes any number of images, of a file that fixes its batch.

repzoo writes files for one image, since engines run them faster. Calibration shows many images to
the same graph, and one call for several of them takes two thirds of the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx

from repzoo.engines import Engine, Session
from repzoo.errors import InputError
from repzoo.graph.tools.skeleton import without_weights
from repzoo.onnx_file import model_inputs

OPEN_BATCH = "N"
# Of outputs of one image alone and among others: sums may be added in another order.
TOLERANCE = 1e-3


def open_batch_session(
    model: onnx.ModelProto, engine: Engine, threads: int, exact: bool
) -> Session | None:
    """`model`, whose input has a fixed batch, compiled for any; None where it needs its own.

    For the arguments see `Engine.open`.
    """
    sides = model_inputs(model)[0].type.tensor_type.shape.dim
    shape = [side.dim_value for side in sides]
    try:
        with _with_open_batch(model):
            if not all_have_open_batch(model):
                return None
            session = engine.open(model, threads, exact)
        return None if _mixes_images(session, shape) else session
    except InputError:
        return None


@contextlib.contextmanager
def _with_open_batch(model: onnx.ModelProto) -> Iterator[None]:
    """Leave open the batch of the input of `model` for as long as it is being compiled."""
    # in place, since a copy would hold the weights twice
    side = model_inputs(model)[0].type.tensor_type.shape.dim[0]
    fixed = side.dim_value
    stated = list(model.graph.value_info)
    try:
        side.dim_param = OPEN_BATCH
        del model.graph.value_info[:]  # shapes with the batch that was fixed
        yield
    finally:
        side.dim_value = fixed
        model.graph.value_info.extend(stated)


def all_have_open_batch(model: onnx.ModelProto) -> bool:
    """Whether all tensors of a `model` whose input has the batch OPEN_BATCH have that batch too.

    By shape inference: a tensor of unknown shape counts as one that has not.
    """
    skeleton = without_weights(model)
    for output in skeleton.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(skeleton).graph
    batches: dict[str, str] = {}
    for value in [*inferred.value_info, *inferred.output]:
        sides = value.type.tensor_type.shape.dim
        batches[value.name] = sides[0].dim_param if sides else ""
    computed = [name for node in inferred.node for name in node.output if name]
    return all(batches.get(name) == OPEN_BATCH for name in computed)


def _mixes_images(session: Session, shape: list[int]) -> bool:
    """Whether an image of `shape` has other outputs among others than alone.

    A Softmax over the batch keeps its size, and mixes the images all the same.
    """
    batch, *sides = shape
    noise = np.random.default_rng(0).standard_normal((2 * batch, *sides))
    inputs = noise.astype(np.float32)
    together = session.run_all(inputs)
    alone = session.run_all(inputs[:batch])
    for many, few in zip(together, alone, strict=True):
        largest = float(np.abs(few).max(initial=0))
        error = np.abs(many[:batch] - few)
        if not error.max(initial=0) <= TOLERANCE * largest:
            return True
    return False
