"""Several images at once through a file that fixes its batch: where that may be, and where not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repzoo.engines import Array, engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.calibration.open_batch import can_open_batch, open_batch

# What follows the mean, each with a batch of 1.
FREE = "y = Flatten (mean)"
MIXES_IMAGES = """flat = Flatten (mean)
    y = Softmax <axis = 0> (flat)"""
MIXES_ALL_BUT_THE_FIRST = """flat = Flatten (mean)
    y = CumSum (flat, zero)"""
STATES_THE_BATCH = "y = Reshape (mean, sides)"
MOVES_THE_BATCH = """moved = Transpose <perm = [1, 0, 2, 3]> (mean)
    y = Flatten (moved)"""


def network(body: str) -> onnx.ModelProto:
    """A global mean of three channels, and `body` behind it; shapes say that the batch is 1."""
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 3, 4, 4] data) => (float[1, 3] y)
        <int64[2] sides = {{1, 3}}, int64 zero = {{0}}> {{
            mean = GlobalAveragePool (data)
            {body}
        }}""")
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (FREE, True),
        # Seen only when it runs.
        (MIXES_IMAGES, True),
        (MIXES_ALL_BUT_THE_FIRST, True),
        (STATES_THE_BATCH, False),
        (MOVES_THE_BATCH, False),
    ],
)
def test_shapes_say_whether_a_graph_takes_any_number(body: str, expected: bool) -> None:
    model = network(body)
    before = model.SerializeToString(deterministic=True)
    assert can_open_batch(model) is expected
    assert model.SerializeToString(deterministic=True) == before


def test_the_file_is_as_before_even_if_it_does_not_compile() -> None:
    model = network(FREE)
    before = model.SerializeToString(deterministic=True)

    def fail() -> None:
        with open_batch(model):
            assert model.SerializeToString(deterministic=True) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "body",
    [FREE, MIXES_IMAGES, MIXES_ALL_BUT_THE_FIRST, STATES_THE_BATCH, MOVES_THE_BATCH],
)
def test_statistics_are_those_of_images_that_run_alone(body: str) -> None:
    """Whatever the network does with its batch."""
    model = network(body)
    random = np.random.default_rng(1)
    images = random.standard_normal((6, 3, 4, 4)).astype(np.float32)
    session = engine("onnxruntime").open(model)
    alone = [session.run(images[index : index + 1]) for index in range(len(images))]

    def batches() -> Iterator[npt.NDArray[np.float32]]:
        yield images[:4]
        yield images[4:]

    seen = collect_statistics(
        model,
        ["y"],
        [],
        CalibrationStream(batches(), len(images)),
        engine("onnxruntime"),
        1,
    ).histograms["y"]
    expected: Array = np.concatenate(alone)
    assert float(seen.low.min()) == pytest.approx(float(expected.min()), rel=1e-5)
    assert float(seen.high.max()) == pytest.approx(float(expected.max()), rel=1e-5)
    assert seen.total == expected.size
