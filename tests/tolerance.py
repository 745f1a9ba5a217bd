"""How far an engine's results may be from exact ones."""

from __future__ import annotations

from repzoo.engines import Engine, arithmetic

# bfloat16 has 8 bits: each result is rounded by up to 0.4 % of itself, over a few layers.
BFLOAT16 = 0.03


def relative(runner: Engine, usual: float) -> float:
    """`usual`, or what is left of it where `runner` computes float32 models in fewer bits."""
    is_float32 = arithmetic.float_type(runner) == arithmetic.FLOAT32
    return usual if is_float32 else max(usual, BFLOAT16)
