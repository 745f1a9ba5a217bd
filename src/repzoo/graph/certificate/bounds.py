"""How far a folded node may be from what it replaces: what one rounding of its weights can change.

The derivation is in proof.py.
"""

from __future__ import annotations

import numpy as np

from repzoo.graph.certificate.folded_node import FoldedNode
from repzoo.graph.certificate.number_types import smallest_number, unit_roundoff
from repzoo.graph.certificate.probes import PROBES, gaussian_deviations
from repzoo.graph.certificate.window import Array

SIGMAS = 10.0  # one value in 10^23 of a Gaussian lies further from its mean


def cast_bound(folded: FoldedNode, probes: Array, output: Array) -> Array:
    """What casting kernel and bias to the number type of the graph can change in `output`.

    probes  [PROBES * images, ...]
    output  of the folded node on them; the bound has its shape
    """
    roundoff = unit_roundoff(folded.element_type)
    linear = roundoff * folded.evaluate(np.abs(probes), absolute=True)
    gaussian = _gaussian_bound(folded, output)
    bound: Array = np.minimum(linear, gaussian) + _underflow_bound(folded, probes)
    return bound


def _gaussian_bound(folded: FoldedNode, output: Array) -> Array:
    """The bound for Gaussian probes, infinite on others; its shape broadcasts with `output`."""
    roundoff = unit_roundoff(folded.element_type)
    images = len(output) // len(PROBES)
    deviations = gaussian_deviations(images)[:, None]
    spread = SIGMAS * deviations * _kernel_lengths(folded)
    bound: Array = roundoff * (spread + folded.bias_magnitude())
    ones = [1] * (output.ndim - 2)
    if folded.node.op_type == "MatMul":
        return bound.reshape(len(bound), *ones, -1)  # channels are the last axis
    return bound.reshape(*bound.shape, *ones)


def _kernel_lengths(folded: FoldedNode) -> Array:
    """The Euclidean length of the kernel of each output channel, [outputs]."""
    rows = folded.weight.reshape(len(folded.weight), -1)
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    # The smallest float stands for 0: an infinite deviation times 0 would be NaN.
    return np.asarray(np.maximum(np.sqrt(squares), np.finfo(float).tiny))


def _underflow_bound(folded: FoldedNode, probes: Array) -> Array:
    """What weights below the normal range add: at most the smallest number for each."""
    smallest = smallest_number(folded.element_type)
    taps = folded.weight[0].size
    largest = np.abs(probes).reshape(len(probes), -1).max(1)
    bound: Array = smallest * (taps * largest + 1)
    ones = [1] * (probes.ndim - 1)
    return bound.reshape(-1, *ones)
