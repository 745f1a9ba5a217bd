"""The float-on-grid model: a float file that a closed tool rounds to the integers chosen here.

Vendors' tools take a float model, round its weights by their largest magnitude and calibrate
activations by themselves. They cannot be told which integers to use. But weights that lie on the
tool's own grid already, and reach its ends, are rounded to themselves: equalization, GPTQ and bias
correction then survive a tool that has none of them.

1. The ladder's stages are measured in the target's arithmetic, with all layers in INT8 (ladder.py).
   All are tried, since the tool may choose worse ranges than are chosen here.
2. The weights of the best stage are rounded onto the target's grid (parameters/grid_rounding.py),
   and biases corrected for it.
3. Proof: the file's weights are rounded once more as the target does it, and the integers compared.
4. The gate images say what the file costs in float, and what to expect of it in INT8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.dataset import QuantizationSplit
from repzoo.errors import GateError, RepzooError
from repzoo.graph.tools.older_opset import limit_version
from repzoo.graph.tools.onnx_edit import add_initializer, remove_unused_initializers
from repzoo.measure.record import Record
from repzoo.measure.results import PairedAccuracy
from repzoo.progress import Progress, silent
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
from repzoo.quant.parameters import compute, qdq_writer, weight_grid
from repzoo.quant.parameters.grid_rounding import round_onto_grid
from repzoo.quant.parameters.noise import clipping_shift, rounding_shift
from repzoo.quant.parameters.scales import ActivationParameters
from repzoo.quant.parameters.stored_activations import KEY, as_document
from repzoo.quant.rewrites.stages import STAGES, FloatModel
from repzoo.quant.search import gate as gating
from repzoo.quant.search import ladder, messages
from repzoo.quant.search.candidate import Candidate
from repzoo.quant.search.evaluator import BuiltCandidate, Evaluator, free_memory
from repzoo.quant.search.gate import Gate
from repzoo.quant.search.placement_search import TimedPlacement
from repzoo.quant.search.verdict import Budget, Verdict

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
class KeptLayer:
    """A layer with weights that is not on the grid, and why."""

    layer: str
    op: str
    reason: str


@dataclass(frozen=True)
class GridProof:
    """The file's weights rounded as the target does it, against the integers that were chosen.

    Attributes:
        layers, weights: how many were compared.
        mismatches: weights that come out as another integer.
        channels: output channels with weights other than 0.
        ends_reached: those that reach the end of their grid; with one grid for each tensor, those
            of tensors that do.
    """

    layers: int
    weights: int
    mismatches: int
    channels: int
    ends_reached: int

    @property
    def holds(self) -> bool:
        """Whether the target finds the same integers, at the ends of every grid."""
        return not self.mismatches and self.ends_reached == self.channels


@dataclass(frozen=True)
class HardenReport:
    """What was chosen, what changed, and what it costs.

    Attributes:
        target: the scheme.
        stage: the stage of the ladder that the weights come from.
        candidates: all stages, measured in the target's arithmetic.
        layers: those on the grid, in graph order.
        kept: layers with weights that are not.
        proof: the comparison of integers.
        in_float: the written file against the model that it was made from, both in float.
        predicted: the same, with the file in the target's arithmetic: a prediction.
        verdict: of the budget, on `predicted`.
        warnings: sentences for the user.
    """

    target: QuantScheme
    stage: str
    candidates: tuple[Candidate, ...]
    layers: tuple[HardenedLayer, ...]
    kept: tuple[KeptLayer, ...]
    proof: GridProof
    in_float: Record[PairedAccuracy]
    predicted: Record[PairedAccuracy]
    verdict: Verdict
    warnings: tuple[str, ...] = ()


def harden(
    artifact: Artifact,
    split: QuantizationSplit,
    target: ladder.Target,
    budget: Budget,
    progress: Progress = silent,
) -> tuple[Artifact, HardenReport]:
    """The float-on-grid form of the folded float `artifact`, with the report.

    Raises:
        InputError: not a folded float model, images that cannot be used, or an operator that the
            target's opset lacks.
        GateError: the drop in the target's arithmetic is proven above the budget.
    """
    gating.require_folded(artifact)
    scheme = target.scheme
    # Before the work: it may refuse an operator.
    limit_version(artifact.model, scheme.opset, scheme.ir_version)
    gate = Gate(artifact, split.gate, target.engine, budget, progress)
    evaluator, remarks = ladder.calibrate(gate, split, target)
    best = _best_stage(evaluator)
    hardened = _Hardener(evaluator, best).harden()
    free_memory()
    simulated = artifact.then(hardened.simulated, Step("harden", __version__))
    predicted = gate.comparison.compare(simulated)
    verdict = budget.judge(predicted.values)
    if verdict is Verdict.REFUSED and not budget.force:
        layers = evaluator.diagnose(best, split.gate)
        raise GateError(
            messages.refusal(artifact.name, layers, predicted.values, budget.max_drop)
        )
    ranges = {KEY: as_document(best.build.plan.activations)}
    result = artifact.then(hardened.model, _step(evaluator, best), **ranges)
    in_float = gate.comparison.compare(result)
    remarks += gate.comparison.report.sentences()
    report = HardenReport(
        target=scheme,
        stage=best.candidate.stage,
        candidates=tuple(evaluator.candidates),
        layers=hardened.layers,
        kept=kept_layers(result.model, hardened.layers, scheme),
        proof=_require_proof(result, hardened.layers, scheme),
        in_float=in_float,
        predicted=predicted,
        verdict=verdict,
        warnings=tuple(dict.fromkeys(remarks)),
    )
    return result, report


def _step(evaluator: Evaluator, best: BuiltCandidate) -> Step:
    """What the file's history says of how it was hardened."""
    scheme = evaluator.builder.scheme
    settings = {
        "target": scheme.name,
        "weight_rule": scheme.weight_rule,
        "per_channel": scheme.per_channel,
        "stage": best.candidate.stage,
        "calibration_images": evaluator.builder.cache.original.statistics.images,
    }
    return Step("harden", __version__, settings)


def _require_proof(
    result: Artifact, layers: Sequence[HardenedLayer], scheme: QuantScheme
) -> GridProof:
    """The proof of `result`.

    Raises:
        RepzooError: it does not hold, which is a defect.
    """
    proof = prove(result.model, layers, scheme)
    if not proof.holds:
        short = proof.channels - proof.ends_reached
        raise RepzooError(
            f"{result.name}: {scheme.name} would round {proof.mismatches} of {proof.weights} "
            f"weights to another integer, and {short} channels do not reach the end of their "
            "grid; please report this model"
        )
    return proof


def _best_stage(evaluator: Evaluator) -> BuiltCandidate:
    """The best stage with all that the target computes in INT8."""
    placement = evaluator.builder.space.starting_placements()[0]
    everything = TimedPlacement(placement, None)  # latency here says nothing of a board
    for stage in STAGES:
        if evaluator.changes(stage):
            evaluator.evaluate(stage, everything, stage.name)
    return evaluator.best


@dataclass(frozen=True)
class _Hardened:
    """`model` in the target's opset, its layers, and the same model with Q/DQ on activations."""

    model: onnx.ModelProto
    simulated: onnx.ModelProto
    layers: tuple[HardenedLayer, ...]


class _Hardener:
    """Puts the weights of a candidate of the ladder on its target's grid."""

    def __init__(self, evaluator: Evaluator, best: BuiltCandidate) -> None:
        self.scheme = evaluator.builder.scheme
        self.placement: Placement = best.timed.placement
        self.plan = best.build.plan
        self.gptq = best.build.stage.corrections.gptq
        self.float_model: FloatModel = evaluator.builder.cache.get(best.build.stage)

    def harden(self) -> _Hardened:
        """All layers of the placement on the grid, the others as they are."""
        source = self.float_model.model
        values = initializer_arrays(source)
        weights: dict[str, npt.NDArray[np.float32]] = {}
        biases: dict[str, Float] = {}
        hardened: list[HardenedLayer] = []
        layers = find_layers(source)
        for name, layer in layers.items():
            if name in self.placement.nodes:
                rows = weight_rows(layer, values)
                bias = bias_vector(layer, values)
                item, weights[name], biases[name] = self._round(layer, rows, bias)
                hardened.append(item)
        model = _replace_weights(source, weights)
        model = compute.replace_biases(model, layers, biases)
        limited = limit_version(model, self.scheme.opset, self.scheme.ir_version)
        return _Hardened(
            fix_batch(limited, self.scheme.batch),
            self._simulate(model),
            tuple(hardened),
        )

    def _round(
        self, layer: Layer, rows: Float, bias: Float
    ) -> tuple[HardenedLayer, npt.NDArray[np.float32], Float]:
        """(the layer's part of the report, its weights on the grid, its corrected bias [O])."""
        statistics = self.float_model.statistics
        moments = statistics.moments[layer.name]
        codes, grid = round_onto_grid(rows, moments, self.scheme, self.gptq)
        on_grid = codes * grid.scale
        source = self.plan.activations[layer.source]
        shift = self._input_shift(layer, source)
        correction = compute.bias_correction(rows, on_grid, moments.mean, shift)
        signal = float(output_power(rows, moments).sum())
        noise = float(output_power(on_grid - rows, moments).sum())
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
        weight = layer.from_rows(on_grid).astype(np.float32)
        return item, weight, bias + correction

    def _input_shift(self, layer: Layer, source: ActivationParameters) -> Float:
        """E[x'] - E[x] of the layer's columns, [G, K], by clipping and rounding its input."""
        histogram = self.float_model.statistics.histograms[layer.source]
        clipping = clipping_shift(histogram, *source.bounds)
        rounding = rounding_shift(histogram, source)
        return np.asarray(layer.per_column(clipping + rounding))

    def _simulate(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """`model` in the target's arithmetic: its activations quantized, its weights on the grid.

        The weights stay float, whatever the rule of their grid: their values are those of integers.
        """
        layers = {
            node.output[0] for node in model.graph.node if node.op_type in WEIGHTED
        }
        around = replace(self.placement, nodes=self.placement.nodes - layers)
        return qdq_writer.insert_qdq(
            model,
            around,
            self.plan.activations,
            self.scheme.per_channel,
            signed=self.scheme.activation_type == "int8",
        )


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


def fix_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """`model` for a fixed number of images, as boards' tools want it; 0 leaves it as it is."""
    if not batch:
        return model
    result = clone(model)
    for value in (*result.graph.input, *result.graph.output):
        sides = value.type.tensor_type.shape.dim
        if len(sides):
            sides[0].Clear()
            sides[0].dim_value = batch
    del result.graph.value_info[:]  # they may state another batch
    return result


def prove(
    model: onnx.ModelProto, hardened: Sequence[HardenedLayer], scheme: QuantScheme
) -> GridProof:
    """Round the weights of `model` as the target does, and compare with the chosen integers."""
    values = initializer_arrays(model)
    layers = find_layers(model)
    weights = mismatches = channels = ends_reached = 0
    for item in hardened:
        layer = layers[item.layer]
        rows = np.asarray(layer.to_rows(values[layer.weight]), np.float32)
        codes, scale = weight_grid.requantize(rows, scheme)
        same = (codes == item.codes) & (codes * scale == rows)
        weights += codes.size
        mismatches += int((~same).sum())
        channels += item.channels - item.zero_channels
        ends_reached += int((_reaches_end(codes, scheme) & codes.any(2)).sum())
    return GridProof(len(hardened), weights, mismatches, channels, ends_reached)


def _reaches_end(codes: Float, scheme: QuantScheme) -> npt.NDArray[np.bool_]:
    """Which channels [G, O/G] use their grid so far that the target cannot choose a finer one."""
    if scheme.weight_rule == "minmax":
        low = np.minimum(codes, 0).min(2)
        high = np.maximum(codes, 0).max(2)
        span = high - low
    else:
        span = np.abs(codes).max(2)
    if not scheme.per_channel:
        whole = np.abs(codes).max()
        if scheme.weight_rule == "minmax":
            whole = np.maximum(codes, 0).max() - np.minimum(codes, 0).min()
        span = np.full(span.shape, whole)
    required = {
        "largest": scheme.weight_max,
        "power-of-two": scheme.weight_max // 2 + 1,
        "minmax": 2**scheme.weight_bits - 1,
    }
    return np.asarray(span >= required[scheme.weight_rule])


def kept_layers(
    model: onnx.ModelProto, hardened: Sequence[HardenedLayer], scheme: QuantScheme
) -> tuple[KeptLayer, ...]:
    """The layers with weights that are not on the grid."""
    names = {item.layer for item in hardened}
    constants = {item.name for item in model.graph.initializer}
    kept: list[KeptLayer] = []
    for node in model.graph.node:
        name = node.output[0]
        if node.op_type not in WEIGHTED or name in names:
            continue
        if node.op_type not in scheme.quantized:
            reason = f"{scheme.name} computes {node.op_type} in float"
        elif not set(node.input[1:]) <= {*constants, ""}:
            reason = "its weights are computed"
        else:
            reason = "it scales or transposes what it reads"
        kept.append(KeptLayer(name, node.op_type, reason))
    return tuple(kept)
