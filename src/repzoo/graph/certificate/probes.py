"""Probes: the inputs on which a folded node and the expression that it replaces are compared."""

from __future__ import annotations

import math

import numpy as np
import onnx

from repzoo.graph.certificate.attributes import integer
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.operators import Stored
from repzoo.graph.certificate.window import Array, Window

PROBES = ("noise", "large mean", "large amplitude", "constant", "sparse")
FAR = 1e3  # mean of the probe of a large mean
LOUD = 1e4  # standard deviation of the probe of a large amplitude
SPARSE = 1 / 16  # share of values that are not zero in the sparse probe
LINEAR_ROWS = 4  # in a probe of a linear layer


def make_probes(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """All of PROBES in order, [len(PROBES) * shape[0], *shape[1:]]."""
    noise = random.standard_normal(shape)
    spikes = random.choice([-1.0, 1.0], shape) * (random.random(shape) < SPARSE)
    spikes.flat[random.integers(spikes.size)] = 1.0
    return np.concatenate([noise, FAR + noise, LOUD * noise, np.ones(shape), spikes])


def gaussian_deviations(images: int) -> Array:
    """The standard deviation of each probe, each for so many images.

    It is infinite for a probe that is not Gaussian around zero.
    """
    return np.repeat([1.0, math.inf, LOUD, math.inf, math.inf], images)


def probe_shape(
    node: onnx.NodeProto, weight: Stored, image: tuple[int, ...] | None
) -> tuple[int, ...]:
    """The shape of one probe of a folded Conv or Gemm.

    It is taller than it is wide, and has just the room for windows that touch one border, the
    other, and none. Where padding depends on the size, `image` is the shape of the real tensor: the
    probe leaves the same remainder by the stride, and so gets the same padding.
    """
    if weight.ndim == 2:
        return LINEAR_ROWS, weight.shape[1]
    window = Window.of(node, (weight.shape[2], weight.shape[3]))
    sides = []
    for span, stride in zip(window.spans, window.strides, strict=True):
        sides.append(span + stride if stride > 1 else span)
    height, width = sides
    height += 1
    if image is not None:
        height += (image[2] - height) % window.strides[0]
        width += (image[3] - width) % window.strides[1]
        if height == width:
            height += window.strides[0]
    return 1, weight.shape[1] * integer(node, "group", 1), height, width


def weight_of(node: onnx.NodeProto, index: TensorIndex) -> Stored | None:
    """The weight [outputs, inputs per group, ...] of a node that a fold may have written."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    weight = index.stored(node.input[1])
    if weight is None:
        return None
    if node.op_type == "MatMul":
        return weight.T if weight.ndim == 2 else None
    if node.op_type == "Gemm" and not integer(node, "transB", 0):
        return weight.T
    return weight
