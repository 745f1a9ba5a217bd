"""GELU becomes a polynomial only where the race on this host says so."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from repzoo.measure.stats import Interval
from repzoo.quant.network.scheme import QuantScheme, load_scheme
from repzoo.quant.search import placement_choice

OPENVINO = load_scheme("openvino-cpu")
BOARD = replace(OPENVINO, engine="")


def chosen(scheme: QuantScheme, function: str, ratio: Interval, patch: Any) -> bool:
    """Whether polynomials are kept for a network of one `function`, raced with this result."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[N, 4] data) => (float[N, 4] output) {{ output = {function} (data) }}"""
    )
    original = SimpleNamespace(model=model)
    space = SimpleNamespace(starting_placements=lambda: [None])
    cache = SimpleNamespace(original=original)
    builder = SimpleNamespace(scheme=scheme, space=space, cache=cache)
    race = SimpleNamespace(polynomial_ratio=lambda _: ratio)
    patch.setattr(placement_choice, "_race", lambda _: race)
    evaluator: Any = SimpleNamespace(builder=builder)
    placement_choice.choose_gelu(evaluator)
    return bool(builder.scheme.gelu_polynomial)


@pytest.mark.parametrize(
    ("scheme", "function", "ratio", "kept"),
    [
        (OPENVINO, "Gelu", Interval(0.9, 0.85, 0.95), True),
        (OPENVINO, "Gelu", Interval(0.97, 0.93, 1.01), False),
        (OPENVINO, "Gelu", Interval(1.2, 1.1, 1.3), False),
        (OPENVINO, "Relu", Interval(0.9, 0.85, 0.95), False),
        (BOARD, "Gelu", Interval(0.9, 0.85, 0.95), False),
        (load_scheme("ort-cpu"), "Gelu", Interval(0.9, 0.85, 0.95), False),
    ],
)
def test_the_race_decides(
    scheme: QuantScheme,
    function: str,
    ratio: Interval,
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen(scheme, function, ratio, monkeypatch) == kept
