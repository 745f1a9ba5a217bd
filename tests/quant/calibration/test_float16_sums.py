"""Sums in float16: known answers, and the operators of a network that they spoil."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repzoo.engines import engine
from repzoo.progress import silent
from repzoo.quant.calibration.calibrate import CalibrationStream, run_observers
from repzoo.quant.calibration.float16_analysis import Float16Analysis, Float16Observers
from repzoo.quant.calibration.float16_sums import (
    Reduction,
    noise_db,
    running_dot,
    running_sum,
)

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(0)


def test_a_sum_of_ones_ends_at_2048() -> None:
    assert running_sum(np.ones((4000, 1), np.float16)) == 2048
    assert running_sum(np.full((2000, 1), 40, np.float16)) == np.inf


def test_a_dot_product_rounds_after_each_term() -> None:
    rows = RANDOM.standard_normal((3, 40)).astype(np.float32)
    columns = RANDOM.standard_normal((40, 5)).astype(np.float32)
    w, x = rows.astype(np.float16), columns.astype(np.float16)
    total = np.zeros((3, 5), np.float16)
    for k in range(40):
        exact = total.astype(float) + np.outer(
            w[:, k].astype(float), x[k].astype(float)
        )
        total = exact.astype(np.float16)
    np.testing.assert_array_equal(running_dot(rows, columns), total)


@pytest.mark.parametrize(
    ("kind", "row", "exact"),
    [
        ("mean", [1.0, 2.0, 6.0], 3.0),
        ("sum", [1.0, 2.0, 6.0], 9.0),
        ("squares", [1.0, 2.0, 6.0], 41.0),
        ("softmax", [0.0, 0.0], [0.5, 0.5]),
        ("normalize", [1.0, -1.0], [1.0, -1.0]),
    ],
)
def test_small_sums_are_right(kind: Any, row: list[float], exact: Any) -> None:
    reduction = Reduction(kind)
    rows = np.array([row], np.float32)
    np.testing.assert_allclose(reduction.exact(rows)[..., 0], exact)
    np.testing.assert_allclose(reduction.in_float16(rows)[..., 0], exact)


def test_squares_overflow_inside_a_normalization() -> None:
    rows = RANDOM.standard_normal((4, 64)).astype(np.float32) * 400
    reduction = Reduction("normalize", 1e-5)
    exact = reduction.exact(rows)
    assert np.abs(exact).max() < 10
    assert noise_db(exact, reduction.in_float16(rows)) < 1


def analysis(body: str, inputs: Array, **constants: float | Array) -> Float16Analysis:
    model = onnx.parser.parse_model(body)
    for name, values in constants.items():
        item = numpy_helper.from_array(np.asarray(values, np.float32), name)
        model.graph.initializer.append(item)
    observers = Float16Observers(model)
    stream = CalibrationStream(iter([inputs]), len(inputs), silent)
    run_observers(model, observers.all(), stream, engine("onnxruntime"), 1)
    return observers.analyze()


HEAD = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4, 64, 64] x) => (float[N, 4] y) """
IMAGES = RANDOM.uniform(1, 2, (2, 4, 64, 64)).astype(np.float32)


def test_the_mean_of_a_large_map_is_named() -> None:
    found = analysis(HEAD + "{ p = GlobalAveragePool (x)\n y = Flatten (p) }", IMAGES)
    (kept,) = found.kept
    assert (kept.node, kept.op, kept.cause) == ("p", "GlobalAveragePool", "noise")
    assert "its sums of 4096 terms keep" in kept.reason
    small = analysis(
        HEAD + "{ q = MaxPool <kernel_shape = [8, 8], strides = [8, 8]> (x)\n"
        " p = GlobalAveragePool (q)\n y = Flatten (p) }",
        IMAGES,
    )
    assert small.kept == ()
    assert set(small.ranked) == {"q", "p", "y"}


def test_a_range_near_the_end_of_float16_is_named_on_both_sides() -> None:
    body = (
        HEAD
        + """{ q = MaxPool <kernel_shape = [8, 8], strides = [8, 8]> (x)
        big = Mul (q, up) s = Mul (big, down) p = GlobalAveragePool (s) y = Flatten (p) }"""
    )
    found = analysis(body, IMAGES, up=2e4, down=1 / 2e4)
    kept = {item.node: item.reason for item in found.because("overflow")}
    assert set(kept) == {"big", "s"}
    assert kept["big"] == "its output reaches 4e+04; float16 ends at 65504"
    assert found.because("noise") == ()


def test_weights_below_float16_are_counted_or_their_layer_is_named() -> None:
    weight = RANDOM.standard_normal((4, 4, 1, 1))
    body = (
        HEAD
        + """{ q = MaxPool <kernel_shape = [8, 8], strides = [8, 8]> (x)
        c = Conv (q, w) p = GlobalAveragePool (c) y = Flatten (p) }"""
    )
    tiny = analysis(body, IMAGES, w=weight * 1e-7)
    kept = tiny.because("noise")[0]
    assert kept.node == "c"
    assert "its constant w keeps" in kept.reason
    # A layer that stays in float32 keeps its weights.
    assert tiny.weights.weights == 0
    weight[0, 0] = 1e-4
    small = analysis(body, IMAGES, w=weight * 1e-4)
    assert "c" not in {item.node for item in small.kept}
    found = small.weights
    subnormal = int((np.abs(weight * 1e-4) < 2.0**-14).sum())
    assert (found.weights, found.subnormal, found.zeroed) == (16, subnormal, 1)
