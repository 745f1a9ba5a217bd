"""The floating-point types of weights: how much each rounds, and the smallest number of each."""

from __future__ import annotations

from onnx import TensorProto

FLOAT32_ROUNDOFF = 2.0**-24
# The largest relative error of rounding to the nearest number, by ONNX element type.
UNIT_ROUNDOFF: dict[int, float] = {
    TensorProto.FLOAT: FLOAT32_ROUNDOFF,
    TensorProto.FLOAT16: 2.0**-11,
    TensorProto.BFLOAT16: 2.0**-8,
    TensorProto.DOUBLE: 2.0**-53,
}
FLOATS = frozenset(UNIT_ROUNDOFF)

# The smallest numbers above zero (subnormal ones).
FLOAT32_SMALLEST = 2.0**-149
SMALLEST: dict[int, float] = {
    TensorProto.FLOAT16: 2.0**-24,
    TensorProto.DOUBLE: 0.0,  # the proof itself computes in float64
}


def unit_roundoff(element_type: int) -> float:
    """The unit roundoff of a number type; that of float32 for a type that is no float."""
    return UNIT_ROUNDOFF.get(element_type, FLOAT32_ROUNDOFF)


def smallest_number(element_type: int) -> float:
    """The smallest number above zero.

    For bfloat16 it is that of float32, which is stricter: bfloat16's own is 2**-133.
    """
    return SMALLEST.get(element_type, FLOAT32_SMALLEST)
