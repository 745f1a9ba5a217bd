"""The result of counting a graph. It stands apart from the counting, which imports onnx-ir: who
reads or shows a result need not wait for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Costs for one image.

    parameters  learnable values
    macs        multiply-accumulates of convolutions and linear layers
    bytes       size of all constants as stored
    nodes       operators that compute (constants excluded)
    operators   how often each occurs
    uncounted   operators whose arithmetic is not in `macs`
    """

    parameters: int
    macs: int
    bytes: int
    nodes: int
    operators: Mapping[str, int]
    uncounted: Mapping[str, int]
