"""The quantizer's work grows in proportion to the nodes of a graph. Steps are counted, not timed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.calibration.sensitivity import SensitivityPropagation
from repzoo.quant.network.layers import find_layers
from repzoo.quant.network.placement import PlacementSpace
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import compute, sqnr
from repzoo.quant.rewrites import equalize


def chain(blocks: int, residual: bool) -> onnx.ModelProto:
    """`blocks` convolutions with ReLU, one after another, each with a shortcut if `residual`."""
    random = np.random.default_rng(0)
    body = ["c0 = Conv (x, w0)"]
    weights = {"w0": random.normal(size=(4, 3, 1, 1))}
    last = "c0"
    for index in range(blocks):
        weights[f"w{index + 1}"] = random.normal(size=(4, 4, 1, 1)) / 40
        body.append(
            f"k{index} = Conv ({last}, w{index + 1})  r{index} = Relu (k{index})"
        )
        if residual:
            body.append(f"a{index} = Add ({last}, r{index})")
        last = f"a{index}" if residual else f"r{index}"
    body.append(f"p = GlobalAveragePool ({last})  y = Flatten (p)")
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 4, 4] x) => (float[N, 4] y) {'
        + "\n".join(body)
        + "}"
    )
    for name, values in weights.items():
        tensor = numpy_helper.from_array(values.astype(np.float32), name)
        model.graph.initializer.append(tensor)
    return model


def propagation_steps(blocks: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Nodes that costs pass through while noise is attributed to the layers."""
    model = chain(blocks, residual=True)
    scheme = load_scheme("ort-cpu")
    placement = PlacementSpace(model, scheme).starting_placements()[0]
    layers = list(find_layers(model).values())
    images = np.random.default_rng(1).normal(size=(2, 3, 4, 4)).astype(np.float32)
    statistics = collect_statistics(
        model,
        placement.tensors,
        layers,
        CalibrationStream(iter([images]), 2),
        engine("onnxruntime"),
        threads=1,
    )
    rounding = compute.Corrections(gptq=False)
    plan = compute.compute_parameters(model, placement, statistics, scheme, rounding)
    steps: Counter[str] = Counter()
    original = SensitivityPropagation._input_costs

    def counted(self: SensitivityPropagation, node: onnx.NodeProto, costs: Any) -> Any:
        steps["all"] += 1
        return original(self, node, costs)

    with monkeypatch.context() as patch:
        patch.setattr(SensitivityPropagation, "_input_costs", counted)
        sqnr.layer_sqnr(plan, statistics)
    return steps["all"]


def test_attributing_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    short = propagation_steps(10, monkeypatch)
    long = propagation_steps(40, monkeypatch)
    assert short > 0
    assert long < 5 * short


def test_equalizing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each label set holds the layers that touch it, and one round visits each of them once."""
    members: list[int] = []
    original = equalize._label_sets

    def counted(magnitudes: Any) -> Any:
        label_sets = original(magnitudes)
        members.append(sum(len(layers) for _, layers in label_sets))
        return label_sets

    monkeypatch.setattr(equalize, "_label_sets", counted)
    for blocks in (10, 40):
        equalize.equalize_ranges(chain(blocks, residual=False))
    short, long = members
    assert long < 5 * short
