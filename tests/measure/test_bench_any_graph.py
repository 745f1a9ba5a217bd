"""Graphs of any kind are counted and timed; only what needs classes asks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from repzoo.artifact import Artifact
from repzoo.engines import engine
from repzoo.engines.probe import probe
from repzoo.errors import InputError
from repzoo.graph.tools.cost import count
from repzoo.measure import latency

Run = Callable[..., Any]

DETECTOR = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[1,3,8,8] image, int64[2] index) => (float[1,2,8,8] map, int64[2] index_out)
<float[2,3,1,1] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> {
  map = Conv (image, w)
  index_out = Abs (index)
}
"""
SEQUENCE = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (int64[n, length] ids) => (int64[n, length] out) { out = Abs (ids) }
"""
FIXED = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[4,3,2,2] x) => (float[4,12] y) { y = Flatten (x) }
"""
# A pad whose size is computed, as frameworks with dynamic "same" padding export it.
DYNAMIC_PAD = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[n,3,9,9] x) => (float[n,2,4,4] y)
<float[2,3,3,3] w, int64[1] two = {2}, int64[1] from = {2}, int64[1] to = {4},
 int64[4] zeros = {0, 0, 0, 0}> {
  shape = Shape (x)
  sides = Slice (shape, from, to)
  half = Mod (sides, two)
  pads = Concat <axis = 0> (zeros, half, zeros_short)
  padded = Pad (x, all_pads)
  y = Conv <strides = [2, 2]> (padded, w)
}
"""


def model(text: str) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(text)
    onnx.checker.check_model(parsed)
    return parsed


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """A graph with two inputs and two outputs, of several ranks and types."""
    path = tmp_path / "detector.onnx"
    path.write_bytes(model(DETECTOR).SerializeToString())
    return path


def test_several_inputs_and_outputs_are_counted_and_timed(
    detector: Path, run: Run
) -> None:
    counted = run("count", detector, "--json")
    assert counted.code == 0, counted.err
    assert counted.document["macs"] == 2 * 8 * 8 * 3
    assert counted.document["parameters"] == 6
    timed = run("bench", detector, "--seconds", "0.01", "--json")
    assert timed.code == 0, timed.err
    assert timed.document["runs"][0]["samples"] >= 1
    refused = run("predict", detector, detector)
    assert refused.code == 2
    assert "detector is not a classifier" in refused.err


def test_an_engine_with_one_input_says_so(detector: Path) -> None:
    artifact = Artifact.read(detector)
    with pytest.raises(InputError, match="use onnxruntime"):
        latency.case(artifact, engine("reference"))


def test_a_child_process_gets_every_input(detector: Path) -> None:
    artifact = Artifact.read(detector)
    inputs = latency.inputs_for(artifact)
    assert isinstance(inputs, dict)
    assert inputs["image"].shape == (1, 3, 8, 8)
    assert inputs["index"].dtype == np.int64
    probe("onnxruntime", artifact.model, inputs)


def test_open_sides_of_no_image_are_named() -> None:
    artifact = Artifact(model(SEQUENCE), "text")
    with pytest.raises(InputError, match="leaves sizes of its input 'ids' open"):
        latency.inputs_for(artifact)


def test_a_fixed_batch_is_used_and_named(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "fixed.onnx"
    path.write_bytes(model(FIXED).SerializeToString())
    timed = run("bench", path, "--seconds", "0.01", "--json")
    assert timed.code == 0, timed.err
    assert timed.document["runs"][0]["batch"] == 4
    refused = run("bench", path, "--seconds", "0.01", "--batch", "2")
    assert refused.code == 2
    assert "give --batch 4" in refused.err


def test_an_input_beyond_memory_is_refused(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "huge.onnx"
    huge = FIXED.replace("4,3,2,2", "1,3,4000000,4000000").replace("4,12", "1,n")
    path.write_bytes(model(huge).SerializeToString())
    for arguments in (["bench", path], ["count", path], ["fold", path, "-o", path]):
        refused = run(*arguments)
        assert refused.code == 2
        assert "export it with a smaller input" in refused.err
    path.write_bytes(model(FIXED.replace("[4,", "[n,")).SerializeToString())
    refused = run("bench", path, "--batch", 10**9)
    assert refused.code == 2
    assert "give a smaller --batch" in refused.err


def test_layers_behind_computed_sizes_are_counted() -> None:
    text = DYNAMIC_PAD.replace(
        "int64[4] zeros", "int64[2] none = {0, 0}, int64[4] zeros"
    )
    text = text.replace("(zeros, half, zeros_short)", "(zeros, none, half)")
    text = text.replace("(x, all_pads)", "(x, pads)")
    proto = onnx.parser.parse_model(text.replace("float[2,3,3,3] w, ", ""))
    weight = np.ones((2, 3, 3, 3), np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    cost = count(Artifact(proto, "dynamic"))
    # 9 x 9 pixels padded to 10 x 10 give 4 x 4.
    assert cost.macs == 4 * 4 * 2 * 3 * 9
    assert "Conv" not in cost.uncounted
