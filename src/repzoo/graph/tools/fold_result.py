"""The record of a fold: the folded model, what was replaced, and what was refused.

The fold writes it and the certificate reads it. It is all that the two have in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class Fold:
    """One fold: several nodes became one.

    output       the tensor that the new node computes
    nodes        names of the nodes that it replaces
    kind         their operators
    macs_before  multiply-accumulates of those nodes for each pixel of their source
    macs_after   the same of the new node
    """

    output: str
    nodes: tuple[str, ...]
    kind: str
    macs_before: float
    macs_after: float


@dataclass(frozen=True)
class Refusal:
    """A fold that was not made: the name of the node, and a sentence that says why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Respelling:
    """A function of one tensor that was written in other operators, before all folds.

    source     the tensor that it is a function of
    output     the tensor that it computes
    nodes      the new ones, in order
    constants  that only these read
    """

    source: str
    output: str
    nodes: tuple[onnx.NodeProto, ...]
    constants: tuple[onnx.TensorProto, ...]


@dataclass(frozen=True)
class FoldResult:
    """A folded model with what was done and what was refused, in graph order."""

    model: onnx.ModelProto
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]
    respellings: tuple[Respelling, ...] = ()

    @property
    def outputs(self) -> list[str]:
        """The tensors that folds computed, also those that a later fold removed again."""
        return [fold.output for fold in self.folds]
