"""Where the form with our scales has Q/DQ pairs: where hb_mapper rounds once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime

from repzoo.packs.rdk_x5_load import load_form, loaded_scales, with_means

# Two convolutions that are added, a residual sum behind a ReLU, and the pool of a classifier.
MODEL = """<ir_version: 7, opset_import: ["" : 11]>
    g (float[1, 2, 4, 4] data) => (float[1, 2] output)
    <float[2, 2, 1, 1] w = {1, 2, 3, 4}> {
    early = Conv (data, w)
    late = Conv (data, w)
    sum = Add (late, early)
    inner = Conv (sum, w)
    active = Relu (inner)
    residual = Add (active, sum)
    last = Conv (residual, w)
    again = Add (last, residual)
    pooled = GlobalAveragePool (again)
    output = Flatten (pooled) }"""
NAMES = ("data", "early", "late", "sum", "inner", "active", "residual", "last", "again")


def model(text: str = MODEL) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def run(item: onnx.ModelProto) -> Any:
    onnx.checker.check_model(item)
    session = onnxruntime.InferenceSession(item.SerializeToString())
    images = np.random.default_rng(0).normal(size=(1, 2, 4, 4))
    return session.run(None, {"data": images.astype(np.float32)})[0]


def test_a_convolution_that_computes_a_sum_has_no_pair() -> None:
    scales = dict.fromkeys(NAMES, 0.1)
    loaded = loaded_scales(model(), scales)
    # "early" is ready before "late" runs; a ReLU stands between "inner" and its sum.
    assert set(scales) - set(loaded) == {"late", "last"}


def test_a_convolution_that_others_read_keeps_its_pair() -> None:
    text = MODEL.replace("Add (last, residual)", "Add (last, last)")
    assert "last" in loaded_scales(model(text), {"last": 0.1})


def test_means_are_exact_and_have_scales_of_their_own() -> None:
    item = model()
    before = item.SerializeToString()
    np.testing.assert_allclose(run(with_means(item)), run(item), rtol=1e-5)
    assert item.SerializeToString() == before
    result = load_form(item, {"again": 1.0, "pooled": 0.25})
    assert "GlobalAveragePool" not in [node.op_type for node in result.graph.node]
    # Logits are steps of the pool's scale, not of the coarse one of what it reads.
    steps = run(result) / 0.25
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-5)
    assert not np.allclose(steps % 4, 0)


def test_an_average_pool_keeps_the_scale_of_its_input() -> None:
    text = MODEL.replace(
        "GlobalAveragePool (again)",
        "AveragePool <kernel_shape = [4, 4]> (again)",
    )
    scales = loaded_scales(model(text), {"again": 1.0, "pooled": 0.25})
    assert scales == {"again": 1.0, "pooled": 1.0}
    assert loaded_scales(model(text), {"pooled": 0.25}) == {"pooled": 0.25}
