"""Coarse and fine: the outliers on a kernel's center tap get a convolution of their own.

Folding an identity or a 1x1 branch into a kxk kernel adds its weights to the center tap, and only there: an identity adds a whole
gamma / sigma to one weight of each row, beside k k C - 1 small ones. One grid for both wastes its steps on the few. So

    W = W_coarse + W_fine,   W_coarse = W but for the center tap, which is cut to -t..t,   W_fine = the rest of the center tap,

where t is the largest weight off the center (of the row, or of the whole tensor where that has one scale), and

    W * x + b = (W_coarse * x + b) + (W_fine *_1x1 x),   strides alike, W_fine without padding.

Both grids then fit what they hold. The sum is exact in real numbers. It costs 1 / (k k) more multiplications, one more weight
tensor of O C bytes, an Add and one more quantized activation: a late resort.

On a RepVGG-A0 equalized for one scale a tensor it lifts the signal-to-noise ratio of the logits from 18.7 to 20.4 dB
where weights are rounded to nearest; with second-order rounding the two sums that are quantized on the way cost more than it gains
(25.4 to 23.5 dB).
Source: the decomposition of RepVGG's own branches (X. Ding et al., arXiv:2101.03697, section 3.3) read backwards; splitting an
outlier in two so that the grid can shrink is R. Zhao et al., "Improving Neural Network Quantization without Retraining using
Outlier Channel Splitting", arXiv:1901.09504. What is a branch's is read off the weights, so a graph that someone else folded, whose
branches nobody remembers, is split as well.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from repzoo.quant.calibration.statistics import Moments
from repzoo.quant.network import layers as layering
from repzoo.quant.network.layers import Layer

Float = npt.NDArray[np.float64]
WORTH = 1.5  # a layer is split when its grid becomes so many times finer


@dataclass(frozen=True)
class Split:
    """`model` computes what the given one did; layer -> (coarse, fine), both layers of `model`, whose Add has the layer's name."""

    model: onnx.ModelProto
    parts: dict[str, tuple[str, str]]


def gain(one: Layer, rows: Float, per_channel: bool) -> float:
    """How many times finer the coarse grid is than the layer's own, for the rows that gain most in the mean; 1 where it cannot be."""
    if not _has_center(one):
        return 1.0
    center, around = _taps(one, rows)
    peaks, least = np.abs(rows).max(2), np.abs(around).max((2, 3))
    if not per_channel:
        peaks, least = peaks.max(keepdims=True), least.max(keepdims=True)
    return (
        float(np.mean(peaks[least > 0] / least[least > 0]))
        if (least > 0).any() and center.any()
        else 1.0
    )


def split(model: onnx.ModelProto, names: Collection[str], per_channel: bool) -> Split:
    """`model` (float, folded) with the layers `names` in two, where that makes their grid finer by WORTH; others stay.

    per_channel  whether each row has a grid of its own
    """
    made, found, values = (
        onnx.ModelProto(),
        layering.find_layers(model),
        layering.initializer_arrays(model),
    )
    made.CopyFrom(model)
    parts: dict[str, tuple[str, str]] = {}
    taken = {item.name for item in made.graph.initializer}.union(
        *(node.output for node in made.graph.node)
    )
    nodes = []
    for node in model.graph.node:
        one = found.get(node.output[0])
        rows = (
            layering.weight_rows(one, values) if one and one.name in names else np.zeros((1, 1, 1))
        )
        if one and one.name in names and gain(one, rows, per_channel) >= WORTH:
            coarse, fine = _halves(one, rows, per_channel)
            pair = _convolutions(node, one, taken)
            for part, rest in zip(
                pair, (one.from_rows(coarse), fine.reshape(*one.shape[:2], 1, 1)), strict=True
            ):
                made.graph.initializer.append(
                    numpy_helper.from_array(rest.astype(np.float32), part.input[1])
                )
            parts[one.name] = (pair[0].output[0], pair[1].output[0])
            nodes += [
                *pair,
                helper.make_node("Add", list(parts[one.name]), [one.name], name=f"{one.name}:sum"),
            ]
        else:
            nodes.append(node)
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(copied)
    read = {value for node in made.graph.node for value in node.input}
    kept = [item for item in made.graph.initializer if item.name in read]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return Split(made, parts)


def centerd(one: Layer, seen: Moments) -> Moments:
    """The moments of the fine half of `one`, whose columns are those of the center tap among its own."""
    taps = int(np.prod(one.kernel))
    middle = slice(taps // 2, None, taps)
    return Moments(
        seen.mean[:, middle],
        tuple(gram[:, middle, middle] for gram in seen.stored),
        tuple((a // taps, b // taps) for a, b in seen.blocks),  # blocks hold whole channels
        seen.rows,
        None if seen.factors is None else seen.factors[:, middle],
    )


def _has_center(one: Layer) -> bool:
    """Whether a 1x1 convolution with the same strides reads the same centers: an odd kernel, padded to keep them."""
    odd = (
        one.op == "Conv"
        and one.auto_pad == "NOTSET"
        and all(k % 2 for k in one.kernel)
        and int(np.prod(one.kernel)) > 1
    )
    halves = tuple((k // 2) * d for k, d in zip(one.kernel, one.dilations, strict=True))
    return odd and one.pads == (*halves, *halves)


def _taps(one: Layer, rows: Float) -> tuple[Float, Float]:
    """(the center tap [G, O/G, C/G], all others [G, O/G, C/G, taps - 1])."""
    taps = rows.reshape(*rows.shape[:2], -1, int(np.prod(one.kernel)))
    middle = taps.shape[3] // 2
    return taps[..., middle], np.delete(taps, middle, axis=3)


def _halves(one: Layer, rows: Float, per_channel: bool) -> tuple[Float, Float]:
    """(W_coarse as rows, W_fine [G, O/G, C/G])."""
    center, around = _taps(one, rows)
    most = np.abs(around).max((2, 3) if per_channel else None, keepdims=True)
    most = most.reshape(*most.shape[:2], 1) if per_channel else most.reshape(1, 1, 1)
    cut = np.clip(center, -most, most)
    coarse = rows.copy().reshape(*rows.shape[:2], -1, int(np.prod(one.kernel)))
    coarse[..., coarse.shape[3] // 2] = cut
    return coarse.reshape(rows.shape), center - cut


def _convolutions(
    node: onnx.NodeProto, one: Layer, taken: set[str]
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The two nodes, which read weights that are still to be stored."""
    names = [
        _fresh(f"{one.name}:{part}", taken)
        for part in ("coarse", "fine", "coarse:weight", "fine:weight")
    ]
    coarse, fine = onnx.NodeProto(), onnx.NodeProto()
    for made, name, weight in ((coarse, names[0], names[2]), (fine, names[1], names[3])):
        made.CopyFrom(node)
        made.name, made.output[0], made.input[1] = name, name, weight
    del fine.input[2:]
    kept = [item for item in fine.attribute if item.name in ("strides", "group")]
    del fine.attribute[:]
    fine.attribute.extend([*kept, helper.make_attribute("kernel_shape", [1] * len(one.kernel))])
    return coarse, fine


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
