"""Layers that leave INT8: which ones, and the placement without them.

A layer falls back to what the scheme's target offers beside INT8: float, or 16-bit activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from repzoo.data.dataset import Dataset
from repzoo.quant.network.placement import Placement
from repzoo.quant.search.builder import Builder
from repzoo.quant.search.calibrator import Calibrator
from repzoo.quant.search.evaluator import BuiltCandidate

RANKED_LAYERS = 8  # noisiest layers, which are tried in float one at a time
RANKING_IMAGES = 16  # on which they are tried


def with_fallback(
    builder: Builder, placement: Placement, layers: Sequence[str]
) -> Placement:
    """`placement` with `layers` (named by their outputs) out of INT8."""
    space = builder.space
    fallback = builder.scheme.escape
    name = f"{placement.name}, {fallback}: {', '.join(layers)}"
    if fallback != "int16":
        return space.placement(name, placement.nodes - set(layers))
    touched = set(space.placement(name, layers).tensors) & set(placement.tensors)
    return replace(
        placement, name=name, int16_tensors=placement.int16_tensors | touched
    )


def rank_layers(
    builder: Builder,
    calibrator: Calibrator,
    candidate: BuiltCandidate,
    images: Dataset,
) -> list[str]:
    """The layers of `candidate`, most worth leaving in float first.

    Each of the noisiest is left out of INT8 alone, and the error of the outputs that then remains
    is measured on a few `images`. The others follow by their SQNR: it does not say how much of a
    layer's noise reaches the outputs, but it is free.
    """
    sample = images.subset(images.balanced_sample(RANKING_IMAGES, 0))
    float_model = builder.cache.original.model
    tensors = builder.space.starting_placements()[0].tensors
    inputs = calibrator.prepare_sample("rank layers", sample, float_model, tensors)
    float_outputs = calibrator.run(builder.artifact.model, inputs)
    quantized = []
    for layer in candidate.candidate.layers:  # noisiest first
        if layer.layer in candidate.build.plan.weights:
            quantized.append(layer.layer)
    errors: dict[str, float] = {}
    for name in quantized[:RANKED_LAYERS]:
        smaller = with_fallback(builder, candidate.timed.placement, [name])
        build = builder.build_from(candidate.build, smaller)
        difference = calibrator.run(build.artifact.model, inputs) - float_outputs
        errors[name] = float(np.square(difference).mean())
    ranked = sorted(errors, key=lambda name: errors[name])
    return ranked + quantized[RANKED_LAYERS:]
