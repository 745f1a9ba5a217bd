"""Fitting in sequence: the closed form is the least-squares one, and later layers undo what earlier ones did wrong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repzoo.engines import engine
from repzoo.quant import layers, place, plan, sequential
from repzoo.quant.observe import observe
from repzoo.quant.place import Placement
from repzoo.quant.plan import Corrections, Plan
from repzoo.quant.scheme import scheme

Float = npt.NDArray[np.float64]

# A chain of 3x3s with a residual, a depthwise one and two branches that do not depend on each other.
NET = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 10, 10] data) => (float[N, 5] output)
    {
        stem = Conv <pads = [1, 1, 1, 1]> (data, stem_w, b8)
        live = Relu (stem)
        one = Conv <pads = [1, 1, 1, 1]> (live, one_w, b8)
        oned = Relu (one)
        deep = Conv <group = 8, pads = [1, 1, 1, 1]> (live, deep_w)
        sum = Add (oned, deep)
        last = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (sum, last_w, b8)
        lasted = Relu (last)
        pooled = GlobalAveragePool (lasted)
        flat = Flatten (pooled)
        output = Gemm <transB = 1> (flat, fc_w, b5)
    }"""
SHAPES = {
    "stem_w": (8, 3, 3, 3), "one_w": (8, 8, 3, 3), "deep_w": (8, 1, 3, 3), "last_w": (8, 8, 3, 3), "fc_w": (5, 8), "b8": (8,), "b5": (5,),
}  # fmt: skip


def net() -> onnx.ModelProto:
    rng, model = np.random.default_rng(1), onnx.parser.parse_model(NET)
    for name, shape in SHAPES.items():
        values = rng.standard_normal(shape) / np.sqrt(int(np.prod(shape[1:])))
        if name in ("one_w", "last_w"):
            values[0, 0] *= 30  # one grid for the tensor is then coarse for the rest
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def images(count: int = 96, seed: int = 9) -> npt.NDArray[np.float32]:
    smooth = np.random.default_rng(seed).standard_normal((count, 3, 5, 5)).repeat(2, 2).repeat(2, 3)
    return np.asarray(smooth, np.float32)


def started(model: onnx.ModelProto) -> tuple[Placement, Plan]:
    placed = place.candidates(model)[0]
    seen = observe(model, list(placed.tensors), list(layers.layers(model).values()), [images()], engine("onnxruntime"), 1, 96)
    return placed, plan.planned(model, placed, seen, scheme("per-tensor"), Corrections())


def loss(model: onnx.ModelProto, made: Plan, placed: Placement) -> float:
    """On other images than it was fitted on."""
    runs = [engine("onnxruntime").open(one, exact=True).run(images(seed=4)) for one in (model, plan.write(made, placed, scheme("per-tensor")))]
    return float(np.square(runs[0] - runs[1]).mean())


def test_it_is_nearer_to_float_and_the_same_every_time() -> None:
    model = net()
    placed, start = started(model)
    made, again = (
        sequential.refined(model, start, placed, scheme("per-tensor"), images(), engine("onnxruntime")) for _ in range(2)
    )
    assert loss(model, made, placed) < 0.7 * loss(model, start, placed)
    assert made.rounded.keys() == start.rounded.keys()
    for name, one in made.rounded.items():
        np.testing.assert_array_equal(one.values, again.rounded[name].values)


def test_the_target_is_the_least_squares_fit() -> None:
    """Against numpy's own solver, with a column of ones for the bias."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + 1
    given = np.round(x * 2) / 2 + 0.1
    rows = rng.standard_normal((3, 6))
    seen = sequential.Paired(
        x.mean(0)[None], given.mean(0)[None], np.cov(given.T, bias=True)[None], ((x - x.mean(0)).T @ (given - given.mean(0)) / 400)[None]
    )
    found = sequential.target(rows[None], seen, damping=0.0)[0]
    best = np.linalg.lstsq(np.column_stack([given, np.ones(400)]), x @ rows.T, rcond=None)[0].T
    np.testing.assert_allclose(found, best[:, :-1], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(sequential.bias(rows[None], found[None], seen), best[:, -1], rtol=1e-8, atol=1e-10)


def test_constant_inputs_move_only_the_bias() -> None:
    rows = np.ones((1, 2, 3))
    seen = sequential.Paired(np.full((1, 3), 2.0), np.full((1, 3), 1.5), np.zeros((1, 3, 3)), np.zeros((1, 3, 3)))
    np.testing.assert_array_equal(sequential.target(rows, seen), rows)
    np.testing.assert_allclose(sequential.bias(rows, rows, seen), [1.5, 1.5])


@pytest.mark.parametrize("most", [1, 2, 32])
def test_stages_keep_the_order(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "STAGES", most)
    found = layers.layers(net())
    stages = [[one.name for one in stage] for stage in sequential._stages(net(), list(found.values()))]
    assert sum(stages, []) == list(found) or most == 32
    if most == 32:
        assert stages == [["stem"], ["one", "deep"], ["last"], ["output"]]
    assert len(stages) <= most


def test_a_layer_too_wide_keeps_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "WIDEST", 30)
    model = net()
    placed, start = started(model)
    made = sequential.refined(model, start, placed, scheme("per-tensor"), images(), engine("onnxruntime"))
    np.testing.assert_array_equal(made.rounded["one"].values, start.rounded["one"].values)
    assert (made.rounded["output"].values != start.rounded["output"].values).any()
    assert loss(model, made, placed) < 2 * loss(model, start, placed)
