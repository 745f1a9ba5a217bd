"""Activation functions in NumPy, float64, any shape. Operators that are not here count as linear.

Sources: ONNX operators of these names, HardSigmoid with the slope 1/6 that PyTorch exports;
GELU (tanh approximation) and swish as in D. Hendrycks and K. Gimpel, arXiv:1606.08415.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Function = Callable[[Float], Float]


def identity(x: Float) -> Float:
    """x."""
    return x


def relu(x: Float) -> Float:
    """max(x, 0)."""
    return np.asarray(np.maximum(x, 0.0))


def sigmoid(x: Float) -> Float:
    """1 / (1 + exp(-x))."""
    # tanh does not overflow, exp(-x) does
    return np.asarray((1 + np.tanh(x / 2)) / 2)


def hard_sigmoid(x: Float) -> Float:
    """x / 6 + 1 / 2, clipped to 0..1."""
    return np.asarray(np.clip(x / 6 + 0.5, 0.0, 1.0))


def hard_swish(x: Float) -> Float:
    """x hard_sigmoid(x)."""
    return x * hard_sigmoid(x)


def swish(x: Float) -> Float:
    """x sigmoid(x), also called SiLU."""
    return x * sigmoid(x)


def gelu(x: Float) -> Float:
    """x Phi(x), by its tanh approximation."""
    # Beyond 10 the result is x or 0; the cube of larger numbers could overflow.
    bounded = np.clip(x, -10, 10)
    cubic = bounded + 0.044715 * bounded**3
    tanh = np.tanh(np.sqrt(2 / np.pi) * cubic)
    phi = (1 + tanh) / 2
    return np.asarray(x * phi)


# By ONNX operator, or by kind of composite activation (graph/tools/composites.py).
FUNCTIONS: dict[str, Function] = {
    "Relu": relu,
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Swish": swish,
    "Gelu": gelu,
}
