"""The result of counting a graph. It stands apart from the counting, which imports onnx-ir: who
reads or shows a result need not wait for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Operators whose MACs are counted, with the index of the weight among their inputs. Those on
# integers count as their float forms. Source: ONNX operators; the fused ones are ONNX Runtime's.
COUNTED = {
    "Conv": 1,
    "ConvInteger": 1,
    "FusedConv": 1,
    "FusedGemm": 1,
    "FusedMatMul": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "QGemm": 3,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}


@dataclass(frozen=True)
class Cost:
    """Costs for one image.

    parameters  learnable values
    macs        multiply-accumulates of convolutions and linear layers
    bytes       size of all constants as stored, those of subgraphs included
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

    @property
    def unsized(self) -> dict[str, int]:
        """Convolutions and linear layers of unknown sizes: `macs` lacks theirs."""
        return {
            name: number for name, number in self.uncounted.items() if name in COUNTED
        }
