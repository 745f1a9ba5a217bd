"""Coarse and fine: the sum is the layer, the grid is finer, in INT8 too, and what has no center to split stays whole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.network import layers
from repzoo.quant.network import placement as place
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import compute as plan
from repzoo.quant.parameters import scales
from repzoo.quant.parameters.compute import Corrections
from repzoo.quant.rewrites import split

Images = npt.NDArray[np.float32]


def net(
    groups: int = 1,
    strides: int = 1,
    dilation: int = 1,
    pad: int | None = None,
    small: float = 0.02,
) -> onnx.ModelProto:
    """A folded block: a 3x3 kernel of small weights, and an identity of gain 3 on its center tap."""
    rng, pads = np.random.default_rng(4), dilation if pad is None else pad
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 8, 9, 9] data) => (float[N, 5] output)
        {{
            block = Conv <group = {groups}, strides = [{strides}, {strides}], dilations = [{dilation}, {dilation}],
                          pads = [{pads}, {pads}, {pads}, {pads}]> (data, block_w, block_b)
            live = Relu (block)
            pooled = GlobalAveragePool (live)
            flat = Flatten (pooled)
            output = Gemm <transB = 1> (flat, fc_w)
        }}""")
    block = rng.standard_normal((8, 8 // groups, 3, 3)) * small
    for row in range(8):
        block[row, row % (8 // groups), 1, 1] += rng.uniform(2, 4)
    tensors = {
        "block_w": block,
        "block_b": rng.standard_normal(8),
        "fc_w": rng.standard_normal((5, 8)),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()
    )
    return model


def images(count: int = 32) -> Images:
    return np.random.default_rng(9).standard_normal((count, 8, 9, 9)).astype(np.float32)


def run(model: onnx.ModelProto) -> Images:
    return engine("onnxruntime").open(model, exact=True).run(images())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("groups", "strides", "dilation"), [(1, 1, 1), (1, 2, 1), (8, 1, 1), (4, 2, 2)]
)
def test_the_sum_is_the_layer(groups: int, strides: int, dilation: int, per_channel: bool) -> None:
    model = net(groups, strides, dilation)
    made = split.split(model, ["block"], per_channel)
    assert made.parts == {"block": ("block:coarse", "block:fine")}
    onnx.checker.check_model(made.model, full_check=True)
    assert np.abs(run(made.model) - run(model)).max() < 1e-5 * np.abs(run(model)).max()
    values, found = layers.initializer_arrays(made.model), layers.find_layers(made.model)
    coarse, fine = (found[name] for name in made.parts["block"])
    assert np.abs(values[coarse.weight]).max() < 0.1 < 1 < np.abs(values[fine.weight]).max()
    assert (fine.kernel, fine.bias) == ((1, 1), "")


def test_a_center_counted_twice_is_caught() -> None:
    """The mutant: the coarse half keeps the whole kernel."""
    model = net()
    made = split.split(model, ["block"], True).model
    next(node for node in made.graph.node if node.name == "block:coarse").input[1] = "whole"
    made.graph.initializer.append(
        numpy_helper.from_array(layers.initializer_arrays(model)["block_w"], "whole")
    )
    assert np.abs(run(made) - run(model)).max() > 0.1 * np.abs(run(model)).max()


@pytest.mark.parametrize("what", ["no outlier", "padding", "name"])
def test_what_gains_nothing_or_has_no_center_stays_whole(what: str) -> None:
    model = net(pad=0 if what == "padding" else None)
    if what == "no outlier":
        weight = next(item for item in model.graph.initializer if item.name == "block_w")
        weight.CopyFrom(
            numpy_helper.from_array(
                np.random.default_rng(0).uniform(-1, 1, (8, 8, 3, 3)).astype(np.float32), "block_w"
            )
        )
    made = split.split(model, ["live" if what == "name" else "block"], True)
    assert not made.parts
    assert [node.output[0] for node in made.model.graph.node] == [
        node.output[0] for node in model.graph.node
    ]


def test_both_halves_in_int8_are_nearer_to_float() -> None:
    """What it is for: one grid per tensor, and a 3x3 kernel whose small weights it would round away."""
    model, errors = net(small=0.01), []
    for one in (model, split.split(model, ["block"], False).model):
        placed = place.candidates(one)[0]
        reads = list(layers.find_layers(one).values())
        seen = collect_statistics(
            one,
            list(placed.tensors),
            reads,
            CalibrationStream([images()], 32),
            engine("onnxruntime"),
            1,
        )
        made = plan.compute_parameters(
            one, placed, seen, load_scheme("per-tensor"), Corrections(gptq=False)
        )
        quantized = plan.write_qdq(made, placed, load_scheme("per-tensor"))
        errors.append(float(np.square(run(quantized) - run(model)).mean()))
    assert errors[1] < 0.75 * errors[0]  # the rest is activations


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_grids_are_finer(per_channel: bool) -> None:
    def restored(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        made = scales.quantize_weight(values, 0 if per_channel else None)
        return made.values * made.scale.reshape(
            -1, *([1] * (values.ndim - 1)) if per_channel else (1,)
        )

    model = net()
    made = split.split(model, ["block"], per_channel)
    values, found = layers.initializer_arrays(made.model), layers.find_layers(made.model)
    coarse, fine = (restored(values[found[name].weight]) for name in made.parts["block"])
    whole = layers.initializer_arrays(model)["block_w"]
    both = coarse + np.pad(fine, ((0, 0), (0, 0), (1, 1), (1, 1)))
    assert np.square(both - whole).mean() < 0.1 * np.square(restored(whole) - whole).mean()
