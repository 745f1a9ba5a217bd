"""GELU becomes a polynomial, and Gemm a convolution, only where the race on this host says so."""

from __future__ import annotations

from collections.abc import Sequence
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
GELU = "output = Gelu (data)"
GEMM = "output = Gemm (data, weights)"
NEITHER = "output = Relu (data)"


def chosen(scheme: QuantScheme, body: str, ratio: Interval, patch: Any) -> set[str]:
    """The forms that are kept for a network of one node, all of them raced with this result."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[1, 2] data) => (float[1, 2] output)
        <float[2, 2] weights = {{1, 2, 3, 4}}> {{ {body} }}"""
    )

    def form_ratios(_: Any, forms: Sequence[QuantScheme]) -> list[Interval]:
        for form in forms:  # each is timed alone
            names = [name for name in placement_choice.FORMS if getattr(form, name)]
            assert len(names) == 1
        return [ratio] * len(forms)

    original = SimpleNamespace(model=model)
    space = SimpleNamespace(starting_placements=lambda: [None])
    cache = SimpleNamespace(original=original)
    builder = SimpleNamespace(scheme=scheme, space=space, cache=cache)
    race = SimpleNamespace(form_ratios=form_ratios)
    patch.setattr(placement_choice, "_race", lambda _: race)
    evaluator: Any = SimpleNamespace(builder=builder)
    placement_choice.choose_forms(evaluator)
    return {name for name in placement_choice.FORMS if getattr(builder.scheme, name)}


FASTER = Interval(0.9, 0.85, 0.95)
UNSURE = Interval(0.97, 0.93, 1.01)
SLOWER = Interval(1.2, 1.1, 1.3)


@pytest.mark.parametrize(
    ("scheme", "body", "ratio", "kept"),
    [
        (OPENVINO, GELU, FASTER, {"gelu_polynomial"}),
        (OPENVINO, GELU, UNSURE, set()),
        (OPENVINO, GELU, SLOWER, set()),
        # The same to the bit, so that nothing speaks against it.
        (OPENVINO, GEMM, UNSURE, {"gemm_convolution"}),
        (OPENVINO, GEMM, SLOWER, set()),
        (OPENVINO, NEITHER, FASTER, set()),
        (BOARD, GELU, FASTER, set()),
        (BOARD, GEMM, FASTER, set()),
        (load_scheme("ort-cpu"), GELU, FASTER, set()),
        (load_scheme("ort-cpu"), GEMM, FASTER, set()),
    ],
)
def test_the_race_decides(
    scheme: QuantScheme,
    body: str,
    ratio: Interval,
    kept: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen(scheme, body, ratio, monkeypatch) == kept
