"""The proof that a target's own rounding finds the integers that were chosen in a written file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.errors import RepzooError
from repzoo.quant.network.layers import find_layers, initializer_arrays
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters import weight_grid
from repzoo.quant.search.on_grid import WEIGHTED, HardenedLayer

Float = npt.NDArray[np.float64]


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


def require_proof(
    name: str,
    model: onnx.ModelProto,
    layers: Sequence[HardenedLayer],
    scheme: QuantScheme,
) -> GridProof:
    """The proof of `model`, which is called `name`.

    Raises:
        RepzooError: it does not hold, which is a defect.
    """
    proof = prove(model, layers, scheme)
    if not proof.holds:
        short = proof.channels - proof.ends_reached
        raise RepzooError(
            f"{name}: {scheme.name} would round {proof.mismatches} of {proof.weights} weights to "
            f"another integer, and {short} channels do not reach the end of their grid; please "
            "report this model"
        )
    return proof


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
