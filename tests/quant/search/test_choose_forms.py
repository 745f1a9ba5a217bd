"""GELU becomes a polynomial, Gemm a convolution, and zero points go, only where a race says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from repzoo.measure.stats import Interval
from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.network.scheme import QuantScheme, load_scheme
from repzoo.quant.search import placement_choice

OPENVINO = load_scheme("openvino-cpu")
BOARD = replace(OPENVINO, engine="")
GELU = "output = Gelu (data)"
GEMM = "output = Gemm (data, weights)"
NEITHER = "output = Relu (data)"


def chosen(
    scheme: QuantScheme, body: str, ratio: Interval, patch: Any, lowest: float = 0.0
) -> set[str]:
    """The forms that are kept for a network of one node, all of them raced with this result.

    lowest  value of its input
    """
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[1, 2] data) => (float[1, 2] output)
        <float[2, 2] weights = {{1, 2, 3, 4}}> {{ {body} }}"""
    )

    def form_ratios(_: Any, forms: Sequence[QuantScheme]) -> list[Interval]:
        counts = []
        for form in forms:  # all, beside all but each
            names = [name for name in placement_choice.FORMS if getattr(form, name)]
            counts.append(len(names))
        assert counts == [len(forms) - 1] + [len(forms) - 2] * (len(forms) - 1)
        return [ratio] * (len(forms) - 1)

    histograms = {}
    for name, low in (("data", lowest), ("output", 0.0)):
        flat = np.array([[low, 1.0]], np.float32)
        histograms[name] = Histogram(1)
        histograms[name].add(flat, flat.min(1), flat.max(1))
    statistics = SimpleNamespace(histograms=histograms)
    original = SimpleNamespace(model=model, statistics=statistics)
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
LIKELY = Interval(0.9, 0.8, 1.1)
SLOWER = Interval(1.2, 1.1, 1.3)


@pytest.mark.parametrize(
    ("scheme", "body", "ratio", "kept"),
    [
        (OPENVINO, GELU, FASTER, {"gelu_polynomial"}),
        (OPENVINO, GELU, UNSURE, set()),
        (OPENVINO, GELU, LIKELY, {"gelu_polynomial"}),
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


@pytest.mark.parametrize(
    ("lowest", "ratio", "kept"),
    [
        (-0.5, FASTER, {"signed_activations"}),
        (-0.5, UNSURE, {"signed_activations"}),
        (-0.5, SLOWER, set()),
        # No more than where memory happens to lie.
        (-0.5, Interval(0.99, 0.985, 0.995), set()),
        # Nothing is negative, so that nothing has a zero point.
        (0.0, FASTER, set()),
    ],
)
def test_zero_points_go_where_that_is_faster(
    lowest: float, ratio: Interval, kept: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(OPENVINO, NEITHER, ratio, monkeypatch, lowest) == kept
