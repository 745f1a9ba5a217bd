"""A graph with several inputs is refused by name where an engine takes one."""

from __future__ import annotations

import onnx
import pytest

from repzoo.engines import engine
from repzoo.errors import InputError

TWO_INPUTS = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[1,3] image, float[1,3] state) => (float[1,3] y) { y = Add (image, state) }
"""


@pytest.mark.parametrize("name", ["openvino", "mnn", "pytorch"])
def test_several_inputs_are_named(name: str) -> None:
    pytest.importorskip({"mnn": "MNN", "pytorch": "torch"}.get(name, name))
    model = onnx.parser.parse_model(TWO_INPUTS)
    with pytest.raises(InputError, match=r"takes 2 \(image, state\); use onnxruntime"):
        engine(name).open(model)
