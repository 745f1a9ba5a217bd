"""One stage of the ladder with its weights on the target's grid, in float and as a target runs it.

The tool chooses activation ranges by itself, from images that are not known here. So what is
written must not depend on ranges: biases are corrected for the rounding of weights,

    b' = b - (W' - W) E[x]

and not for the rounding and clipping of activations. That correction is as large as the noise, and
of the wrong sign where the tool's scale differs by a few percent (measured in hb_mapper).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.graph.tools.onnx_edit import add_initializer, remove_unused_initializers
from repzoo.protobuf_stream import clone
from repzoo.quant.calibration.statistics import output_power
from repzoo.quant.network.layers import (
    Layer,
    bias_vector,
    find_layers,
    initializer_arrays,
    weight_rows,
)
from repzoo.quant.network.placement import Placement
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters import compute, qdq_writer
from repzoo.quant.parameters.activation_ranges import RangeChooser
from repzoo.quant.parameters.compute import QuantizationPlan
from repzoo.quant.parameters.grid_rounding import round_onto_grid
from repzoo.quant.parameters.scales import QuantizedWeight
from repzoo.quant.rewrites.stages import FloatModel, Stage

Float = npt.NDArray[np.float64]
WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")
# Signal-to-noise ratio of weights that did not change, which is infinite.
UNCHANGED_DB = 200.0


@dataclass(frozen=True)
class HardenedLayer:
    """One layer whose weights lie on the target's grid.

    Attributes:
        layer: its name.
        op: Conv or Gemm.
        groups, kernel: of the layer.
        channels: output channels.
        zero_channels: channels whose weights are all 0.
        codes: integers [G, O/G, K] that the target finds.
        weight_db: signal-to-noise ratio of the layer's output after rounding its weights.
        bias_change: largest change of a bias.
    """

    layer: str
    op: str
    groups: int
    kernel: tuple[int, ...]
    channels: int
    zero_channels: int
    codes: Float
    weight_db: float
    bias_change: float

    def to_json(self) -> dict[str, Any]:
        """Everything but the integers."""
        return {
            "layer": self.layer,
            "op": self.op,
            "groups": self.groups,
            "kernel": list(self.kernel),
            "channels": self.channels,
            "zero_channels": self.zero_channels,
            "weight_db": round(self.weight_db, 1),
            "bias_change": float(f"{self.bias_change:.3g}"),
        }


@dataclass(frozen=True)
class OnGrid:
    """The model of a stage with its weights on the target's grid.

    Attributes:
        stage: what its weights were computed by.
        placement: what the target computes in INT8.
        float_model: the stage's float model, before rounding.
        model: float, on the grid, biases corrected.
        layers: those on the grid, in graph order.
        weights: their integers, by layer.
        ranges: chooses those of activations, for several methods and placements.
    """

    stage: Stage
    placement: Placement
    float_model: FloatModel
    model: onnx.ModelProto
    layers: tuple[HardenedLayer, ...]
    weights: Mapping[str, QuantizedWeight]
    ranges: RangeChooser

    def plan(
        self, placement: Placement, method: str, scheme: QuantScheme
    ) -> QuantizationPlan:
        """The parameters with which the target runs `placement`, with ranges by `method`."""
        ranges = self.ranges.choose(placement, method)
        activations = compute.activation_parameters(placement, scheme, ranges)
        weights = {
            name: item for name, item in self.weights.items() if name in placement.nodes
        }
        return QuantizationPlan(self.float_model.model, activations, weights, ranges)

    def simulate(
        self, plan: QuantizationPlan, placement: Placement, scheme: QuantScheme
    ) -> onnx.ModelProto:
        """`model` in the target's arithmetic: its activations quantized, its weights on the grid.

        The weights stay float, whatever the rule of their grid: their values are those of integers.
        """
        layers: set[str] = set()
        for node in self.model.graph.node:
            if node.op_type in WEIGHTED:
                layers.add(node.output[0])
        around = replace(placement, nodes=placement.nodes - layers)
        return qdq_writer.insert_qdq(
            self.model,
            around,
            plan.activations,
            scheme.per_channel,
        )


def put_on_grid(
    stage: Stage,
    float_model: FloatModel,
    placement: Placement,
    scheme: QuantScheme,
    ranges: RangeChooser | None = None,
) -> OnGrid:
    """All layers of `placement` on the grid of `scheme`, the others as they are.

    ranges  of `float_model`; None: a new one. Stages with the same float model may share one, which
            keeps what it has chosen
    """
    source = float_model.model
    values = initializer_arrays(source)
    on_grid: dict[str, npt.NDArray[np.float32]] = {}
    weights: dict[str, QuantizedWeight] = {}
    biases: dict[str, Float] = {}
    hardened: list[HardenedLayer] = []
    layers = find_layers(source)
    rounding = _Rounding(stage, float_model, scheme)
    for name, layer in layers.items():
        if name not in placement.nodes:
            continue
        rounded = rounding.round(layer, weight_rows(layer, values))
        weights[name] = rounded.weight
        on_grid[name] = rounded.on_grid
        hardened.append(rounded.layer)
        if stage.corrections.bias:
            biases[name] = bias_vector(layer, values) + rounded.correction
    model = _replace_weights(source, on_grid)
    if biases:
        model = compute.replace_biases(model, layers, biases)
    ranges = ranges or RangeChooser(source, float_model.statistics, scheme)
    return OnGrid(
        stage, placement, float_model, model, tuple(hardened), weights, ranges
    )


@dataclass(frozen=True)
class _Rounded:
    """`layer` for the report, `weight` as integers and `on_grid` in float, `correction` [O]."""

    layer: HardenedLayer
    weight: QuantizedWeight
    on_grid: npt.NDArray[np.float32]
    correction: Float


@dataclass(frozen=True)
class _Rounding:
    """Rounds one layer after another."""

    stage: Stage
    float_model: FloatModel
    scheme: QuantScheme

    def round(self, layer: Layer, rows: Float) -> _Rounded:
        """`layer`, whose float weights are `rows` [G, O/G, K], on the grid."""
        moments = self.float_model.statistics.moments[layer.name]
        gptq = self.stage.corrections.gptq
        codes, grid = round_onto_grid(rows, moments, self.scheme, gptq)
        rounded = codes * grid.scale
        correction = np.zeros(layer.out_channels)
        if self.stage.corrections.bias:
            no_shift = np.zeros_like(moments.mean)
            correction = compute.bias_correction(rows, rounded, moments.mean, no_shift)
        signal = float(output_power(rows, moments).sum())
        noise = float(output_power(rounded - rows, moments).sum())
        item = HardenedLayer(
            layer=layer.name,
            op=layer.op,
            groups=layer.groups,
            kernel=layer.kernel,
            channels=layer.out_channels,
            zero_channels=int((codes == 0).all(2).sum()),
            codes=codes,
            weight_db=_decibels(signal, noise),
            bias_change=float(np.abs(correction).max(initial=0)),
        )
        # 16 bits: codes without their zero point reach from -255 to 255
        integers = layer.from_rows(codes).astype(np.int16)
        scales = np.broadcast_to(grid.scale, codes.shape)[:, :, 0]
        weight = QuantizedWeight(scales.reshape(-1), integers)
        on_grid = layer.from_rows(rounded).astype(np.float32)
        return _Rounded(item, weight, on_grid, correction)


def _decibels(signal: float, noise: float) -> float:
    if noise <= 0 or signal <= 0:
        return UNCHANGED_DB
    return min(float(10 * np.log10(signal / noise)), UNCHANGED_DB)


def _replace_weights(
    model: onnx.ModelProto, weights: Mapping[str, npt.NDArray[np.float32]]
) -> onnx.ModelProto:
    """A copy of `model` with new `weights` for some layers, each an initializer of its own."""
    result = clone(model)
    used = {item.name for item in result.graph.initializer}
    for node in result.graph.node:
        name = node.output[0]
        if name in weights:
            # another layer may share the old initializer
            node.input[1] = add_initializer(
                result.graph, f"{node.input[1]}:on-grid", weights[name], used
            )
    remove_unused_initializers(result.graph)
    return result
