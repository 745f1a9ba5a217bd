"""Bias absorption: the function stays wherever the guard holds, the range shrinks, and borders and other readers forbid it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.rewrites.absorb import absorbed

NET = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] data) => (float[N, 5] output)
    {
        first = Conv <pads = [1, 1, 1, 1]> (data, first_w, first_b)
        live = Relu (first)
        second = Conv <pads = [PAD, PAD, PAD, PAD]> (live, second_w, second_b)
        alive = Relu (second)
        last = Conv (alive, last_w)
        pooled = GlobalAveragePool (last)
        output = Flatten (pooled)
    }"""
SHAPES = {
    "first_w": (6, 3, 3, 3),
    "first_b": (6,),
    "second_w": (4, 6, 3, 3),
    "second_b": (4,),
    "last_w": (5, 4, 1, 1),
}


def net(pad: int = 0, high: float = 20.0) -> onnx.ModelProto:
    """Channels 0 and 3 of `live` have a bias so high that they never come near 0."""
    rng = np.random.default_rng(2)
    model = onnx.parser.parse_model(NET.replace("PAD", str(pad)))
    for name, shape in SHAPES.items():
        values = rng.standard_normal(shape) / np.sqrt(int(np.prod(shape[1:])))
        if name == "first_b":
            values[[0, 3]] += high
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def images(count: int = 16, seed: int = 9) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def seen(model: onnx.ModelProto) -> Statistics:
    return collect_statistics(
        model, ["live", "alive"], [], CalibrationStream([images()], 16), engine("onnxruntime"), 1
    )


def least(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.float64]]:
    return {name: one.low for name, one in seen(model).histograms.items()}


def run(model: onnx.ModelProto, given: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return engine("onnxruntime").open(model, exact=True).run(given)


def test_the_function_stays_and_the_range_shrinks() -> None:
    model = net()
    made, moved = absorbed(model, least(model))
    assert set(np.flatnonzero(moved["live"])) >= {0, 3}
    assert moved["live"][0] > 10
    expected = run(model, images())
    assert np.abs(run(made, images()) - expected).max() < 1e-5 * np.abs(expected).max()
    before, after = (seen(one).histograms["live"].high.max() for one in (model, made))
    assert after < 0.5 * before


def test_a_constant_beyond_what_was_seen_is_caught() -> None:
    """The mutant: twice the least value is absorbed."""
    model = net()
    made, _ = absorbed(model, {name: 2 * values for name, values in least(model).items()})
    expected = run(model, images())
    assert np.abs(run(made, images()) - expected).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("what", ["padding", "nothing below", "two readers", "output"])
def test_where_it_would_change_the_function_it_is_left(what: str) -> None:
    model = net(pad=1 if what == "padding" else 0, high=0.0 if what == "nothing below" else 20.0)
    if what == "two readers":
        model.graph.node.append(onnx.helper.make_node("Relu", ["live"], ["again"]))
    found = least(model)
    if what == "output":
        model.graph.output.append(
            onnx.helper.make_tensor_value_info("live", onnx.TensorProto.FLOAT, None)
        )
    _, moved = absorbed(model, found)
    assert "live" not in moved
