"""A session for several images of a file that fixes its batch: where there is one, and where not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from repzoo.engines import engine
from repzoo.quant.calibration.open_batch import open_batch_session

RUNTIME = engine("onnxruntime")

# Each has the batch 1. What follows the mean is the body.
FREE = "y = Flatten (mean)"
MIXES_IMAGES = """flat = Flatten (mean)
    y = Softmax <axis = 0> (flat)"""
STATES_THE_BATCH = "y = Reshape (mean, sides)"
MOVES_THE_BATCH = """moved = Transpose <perm = [1, 0, 2, 3]> (mean)
    y = Flatten (moved)"""


def network(body: str) -> onnx.ModelProto:
    """A global mean of three channels, and `body` behind it."""
    return onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 3, 4, 4] data) => (float[1, 3] y) <int64[2] sides = {{1, 3}}> {{
            mean = GlobalAveragePool (data)
            {body}
        }}""")


def test_each_image_has_the_outputs_that_it_has_alone() -> None:
    model = network(FREE)
    session = open_batch_session(model, RUNTIME, 1, exact=False)
    assert session is not None
    images = np.random.default_rng(1).standard_normal((5, 3, 4, 4)).astype(np.float32)
    alone = RUNTIME.open(model)
    expected = np.concatenate(
        [alone.run(images[index : index + 1]) for index in range(5)]
    )
    np.testing.assert_allclose(session.run(images), expected, rtol=1e-6)


@pytest.mark.parametrize("body", [MIXES_IMAGES, STATES_THE_BATCH, MOVES_THE_BATCH])
def test_a_network_that_needs_its_batch_has_none(body: str) -> None:
    assert open_batch_session(network(body), RUNTIME, 1, exact=False) is None


@pytest.mark.parametrize("body", [FREE, MIXES_IMAGES, STATES_THE_BATCH])
def test_the_file_stays_as_it_is(body: str) -> None:
    model = network(body)
    before = model.SerializeToString(deterministic=True)
    open_batch_session(model, RUNTIME, 1, exact=False)
    assert model.SerializeToString(deterministic=True) == before
