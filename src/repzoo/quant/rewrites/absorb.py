"""Bias absorption: a channel that never falls below c carries a constant that the next layer can add by itself.

For a channel that layer A writes, a ReLU cuts and layer B alone reads, and c >= 0 with A's output x >= c,

    ReLU(x - c) = ReLU(x) - c,   so   b_A - c   and   b_B + W_B c   leave the function as it is,

and the activation in between needs c less of its range. Nagel et al. take c = max(0, beta - 3 gamma) from batch normalization, which
holds for 99.87 % of Gaussian values; here c is the least value that calibration images show, so it holds on all of them.
Source: M. Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.1.3.

Where B pads its input with zeros, those would have to be -c: its border would differ, so such layers are left alone (the paper does
not say this). That, and that a ReLU is there to cut, leaves little: no channel of RepVGG-A0, whose every layer pads, and 8 of 932 of
RepGhost 0.5x, all inside squeeze-and-excitation gates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.quant.network import layers as layering
from repzoo.quant.network.layers import Layer
from repzoo.quant.parameters.compute import replace_biases

Float = npt.NDArray[np.float64]


def absorbed(
    model: onnx.ModelProto, least: Mapping[str, Float]
) -> tuple[onnx.ModelProto, dict[str, Float]]:
    """(`model` with what can be absorbed; c [C] of each activation that became smaller, by name of the ReLU's output).

    least  the smallest value of each channel [C] of ReLU outputs on calibration images; those not named are left alone
    """
    found, values = layering.find_layers(model), layering.initializer_arrays(model)
    biases = {name: layering.bias_vector(one, values) for name, one in found.items()}
    moved: dict[str, Float] = {}
    for first, middle, second in _chains(model, found):
        shift = np.maximum(least.get(middle, np.zeros(0)), 0.0)
        if len(shift) == first.out_channels == second.in_channels and shift.any():
            rows = layering.weight_rows(second, values)
            biases[first.name] = biases[first.name] - shift
            biases[second.name] = biases[second.name] + np.einsum(
                "gok,gk->go", rows, second.per_column(shift)
            ).reshape(-1)
            moved[middle] = shift
    touched = {
        one.name
        for first, middle, second in _chains(model, found)
        if middle in moved
        for one in (first, second)
    }
    return replace_biases(model, found, {name: biases[name] for name in touched}), moved


def _chains(model: onnx.ModelProto, found: Mapping[str, Layer]) -> list[tuple[Layer, str, Layer]]:
    """(layer, output of the ReLU behind it, the one layer that reads that, without padding), in graph order."""
    readers: dict[str, list[onnx.NodeProto]] = {item.name: [] for item in model.graph.output}
    outputs = set(readers)
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    chains = []
    for first in found.values():
        after = readers.get(first.name, [])
        if (
            len(after) == 1
            and after[0].op_type == "Relu"
            and not outputs & {first.name, after[0].output[0]}
        ):
            last = readers.get(after[0].output[0], [])
            second = found.get(last[0].output[0]) if len(last) == 1 else None
            if second and not any(second.pads) and second.auto_pad in ("NOTSET", "VALID"):
                chains.append((first, after[0].output[0], second))
    return chains
