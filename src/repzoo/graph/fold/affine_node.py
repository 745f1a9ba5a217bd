"""What a rule of the fold answers for a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from repzoo.graph.fold.algebra import AffineMap
from repzoo.graph.fold.geometry import Geometry
from repzoo.graph.fold.tensors import node_name
from repzoo.graph.tools.fold_result import Refusal


@dataclass(frozen=True)
class AffineNode:
    """A node that computes one affine map of one tensor.

    node      computes the result
    source    the tensor that is mapped
    geometry  the shape of the map, known at once
    build     computes the values of the map in float64, only when the fold is written
    flat      tensors are [..., C], rows of channels: [N, C], or what a linear layer makes of
              [N, length, C]; else they are [N, C, H, W]
    moves     it only moves values (padding, choosing channels) and costs no arithmetic
    more      other nodes that belong to it; the last one reads `source`
    """

    node: ir.Node
    source: ir.Value
    geometry: Geometry
    build: Callable[[], AffineMap]
    flat: bool = False
    moves: bool = False
    more: tuple[ir.Node, ...] = ()

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """From the one that gives the output to the one that reads `source`."""
        return (self.node, *self.more)


# None: the node is not affine, and nobody would expect it to be.
Answer = AffineNode | Refusal | None


def refuse(node: ir.Node, reason: str) -> Refusal:
    """A node that would be affine, but for a `reason` that a person should hear."""
    return Refusal(node_name(node), reason)
