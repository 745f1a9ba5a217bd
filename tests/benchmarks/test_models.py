"""The models that benchmarks time have weights like trained ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("timm", reason="the torch extra is not installed")

from onnx import numpy_helper

from benchmarks import fold_latency, models


def test_no_two_layers_of_a_timed_file_have_the_same_weights(tmp_path: Path) -> None:
    """RepViT's second 1x1 convolutions begin as 0, and would be written once for all."""
    module, _ = models.create("repvit_m0_6")
    assert any(not weight.any() for weight in module.parameters() if weight.ndim == 1)
    for file in fold_latency.pair("repvit_m0_6", tmp_path):
        contents = []
        for item in file.model.graph.initializer:
            if len(item.dims) == 4:
                values = numpy_helper.to_array(item)
                assert values.any()
                contents.append(values.tobytes())
        assert len(contents) > 10
        assert all(one != other for one, other in pairwise(sorted(contents)))
        layers = sum(node.op_type == "Conv" for node in file.model.graph.node)
        assert len(contents) == layers
