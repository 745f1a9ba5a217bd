"""Engines that compute float32 models in another type say so, and do."""

from __future__ import annotations

import numpy as np
import onnx.numpy_helper
import onnx.parser
import pytest

from repzoo import processor
from repzoo.engines import Engine, arithmetic, engine

PRODUCT = """
<ir_version: 10, opset_import: ["" : 17]>
product (float[1, 64] x) => (float[1, 64] y)
{ y = MatMul(x, weight) }
"""


class Fake:
    """What `arithmetic` asks of an engine."""

    def __init__(self, name: str, computed: str) -> None:
        self.name = name
        self._computed = computed

    def version(self) -> str:
        return "1"

    def computes_float32_in(self) -> str:
        return self._computed


def fake(name: str, computed: str) -> Engine:
    return Fake(name, computed)  # type: ignore[return-value]


def test_a_record_and_a_remark_say_so() -> None:
    other, usual = fake("fast", "bfloat16"), fake("plain", "float32")
    assert arithmetic.facts(usual) == {"name": "plain", "version": "1"}
    assert arithmetic.facts(other) == {
        "name": "fast",
        "version": "1",
        "float32": "bfloat16",
    }
    (remark,) = arithmetic.remarks([other, usual, other])
    assert "fast computes float32 models in bfloat16" in remark
    assert arithmetic.float_type(engine("onnxruntime")) == "float32"


def test_openvino_says_what_it_does() -> None:
    pytest.importorskip("openvino")
    random = np.random.default_rng(1)
    model = onnx.parser.parse_model(PRODUCT)
    weight = random.standard_normal((64, 64)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    inputs = random.standard_normal((1, 64)).astype(np.float32)
    runner = engine("openvino")
    expected = inputs @ weight
    default = np.abs(runner.open(model).run(inputs) - expected).max()
    exact = np.abs(runner.open(model, exact=True).run(inputs) - expected).max()
    assert exact < 1e-4
    assert (default < 1e-4) == (arithmetic.float_type(runner) == "float32")


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        ("", False),
        ("AVX2", True),
        ("avx512_core_vnni", True),
        ("AVX512_CORE_BF16", False),
        ("AVX512_CORE_AMX", False),
        ("DEFAULT", False),
    ],
)
def test_a_limit_of_instructions_keeps_openvino_from_bfloat16(
    limit: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("repzoo.engines.openvino")
    monkeypatch.setenv(processor.ISA_LIMIT, limit)
    settings = openvino._cpu_settings(1, 1, False)
    assert settings.get("INFERENCE_PRECISION_HINT") == ("f32" if kept else None)
    if kept:
        assert arithmetic.float_type(engine("openvino")) == "float32"
