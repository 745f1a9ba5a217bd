"""The ladder's rungs as data: which corrections a recipe makes and which rewrites of the float graph come before them.

A rewrite is a pure function from a Base to a Base that computes the same; it carries the statistics along, as if they had been
gathered on the new graph, so that one calibration pass serves every rung.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx

from repzoo.quant import balance, equalize, layers
from repzoo.quant.observe import Statistics
from repzoo.quant.plan import Corrections


@dataclass(frozen=True)
class Base:
    """A float graph, what its activations are like, and how the target will represent it.

    places  node that a rewrite added (its first output) -> the node on whose side, INT8 or float, it is
    """

    model: onnx.ModelProto
    seen: Statistics
    places: Mapping[str, str] = field(default_factory=dict)
    per_channel: bool = True


Rewrite = Callable[[Base], Base]


@dataclass(frozen=True)
class Recipe:
    """One rung.

    rewrites  applied to the float graph, in this order
    slower    whether the result takes longer to run, so that it comes after all that do not, and is timed
    package   what must be installed for it, "" where the core is enough
    """

    name: str
    corrections: Corrections
    rewrites: tuple[Rewrite, ...] = ()
    slower: bool = False
    package: str = ""


def equalised(base: Base) -> Base:
    """Cross-layer equalisation (equalize.py) for least noise (balance.py); ReLU6 holds still (channels.py says why)."""
    start = equalize.equalised(base.model)
    made = balance.balanced(base.model, start, base.seen, tuple(base.seen.histograms), base.per_channel)
    return replace(base, model=made.model, seen=base.seen.over(made.factors, layers.layers(made.model).values()))


RUNGS = (  # from cheap to dear
    Recipe("rounding", Corrections(second_order=False)),
    Recipe("second-order", Corrections()),
    Recipe("equalised", Corrections(), (equalised,)),
)
