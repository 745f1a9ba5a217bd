"""Probes: the inputs on which a folded node and the expression that it replaces are compared."""

from __future__ import annotations

import math

import numpy as np
import onnx

from repzoo.errors import InputError
from repzoo.graph.certificate.attributes import integer
from repzoo.graph.certificate.operators import Stored
from repzoo.graph.certificate.window import Array, UnknownExpression, Window

PROBES = ("noise", "large mean", "large amplitude", "constant", "sparse")
LARGE_MEAN = 1e3
LARGE_AMPLITUDE = 1e4  # standard deviation
SPARSE = 1 / 16  # share of values that are not zero
# Of one probe: a window of 2**26 values is far beyond any layer's.
MAX_PROBE_ELEMENTS = 2**26
LINEAR_ROWS = 4  # in a probe of a linear layer


def make_probes(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """All of PROBES in order, [len(PROBES) * shape[0], *shape[1:]].

    Raises:
        InputError: more than MAX_PROBE_ELEMENTS in one of them.
    """
    if math.prod(shape) > MAX_PROBE_ELEMENTS:
        raise InputError(
            f"a layer takes at least {list(shape)} values, too many to check it; look at its pads, "
            "dilations and kernel"
        )
    noise = random.standard_normal(shape)
    signs = random.choice([-1.0, 1.0], shape)
    sparse = signs * (random.random(shape) < SPARSE)
    # At least one value is not zero.
    sparse.flat[random.integers(sparse.size)] = 1.0
    probes = [
        noise,
        LARGE_MEAN + noise,
        LARGE_AMPLITUDE * noise,
        np.ones(shape),
        sparse,
    ]
    return np.concatenate(probes)


def gaussian_deviations(images: int) -> Array:
    """The standard deviation of each probe, each for so many images.

    It is infinite for a probe that is not Gaussian around zero.
    """
    gaussian = {"noise": 1.0, "large amplitude": LARGE_AMPLITUDE}
    deviations = [gaussian.get(probe, math.inf) for probe in PROBES]
    return np.repeat(deviations, images)


def probe_shape(
    node: onnx.NodeProto,
    weight: Stored,
    image: tuple[int, ...] | None,
) -> tuple[int, ...]:
    """The shape of one probe of a folded Conv or Gemm.

    weight  [outputs, inputs per group, ...]
    image   the shape of the real input, where padding depends on its size: the probe leaves the
            same remainder by the stride, and so gets the same padding

    Raises:
        UnknownExpression: it is neither a linear layer nor a 2-D convolution, or its padding
            depends on a size that is not known.
    """
    if weight.ndim == 2:
        return LINEAR_ROWS, weight.shape[1]
    if weight.ndim != 4:
        raise UnknownExpression(node.name)
    channels = weight.shape[1] * integer(node, "group", 1)
    sides = None if image is None else image[2:]
    window = Window.of(node, weight.shape[2:], sides)
    height, width = _probe_sides(window)
    if image is not None:
        height += (image[2] - height) % window.strides[0]
        width += (image[3] - width) % window.strides[1]
        if height == width:
            height += window.strides[0]
    return 1, channels, height, width


def _probe_sides(window: Window) -> tuple[int, int]:
    """Room for windows that touch one border, the other, and none.

    The height is greater than the width, so that swapping the axes shows.
    """
    sides = []
    for span, stride in zip(window.spans, window.strides, strict=True):
        sides.append(span + stride if stride > 1 else span)
    height, width = sides
    return height + 1, width
