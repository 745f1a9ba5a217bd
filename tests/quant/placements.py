"""Placements of a model in one call, for tests."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from repzoo.quant.network.placement import DEFAULT, Placement, PlacementSpace
from repzoo.quant.network.scheme import QuantScheme


def candidates(
    model: onnx.ModelProto, scheme: QuantScheme = DEFAULT
) -> list[Placement]:
    """The starting placements of `model`, the most quantized first."""
    return PlacementSpace(model, scheme).starting_placements()


def placement(
    model: onnx.ModelProto,
    name: str,
    nodes: Iterable[str],
    scheme: QuantScheme = DEFAULT,
) -> Placement:
    """The placement called `name` that runs `nodes` (by first output) in INT8."""
    return PlacementSpace(model, scheme).placement(name, nodes)
