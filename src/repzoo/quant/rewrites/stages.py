"""The stages of the ladder as data: corrections, and rewrites of the float graph before them.

A rewrite is a pure function from a FloatModel to one that computes the same, or to None where it
would change nothing; the ladder then skips the stage. It only scales channels, so it carries the
statistics along as if they had been collected on the new graph: one calibration pass serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network import layers
from repzoo.quant.parameters.compute import Corrections
from repzoo.quant.rewrites import equalize
from repzoo.quant.rewrites import smooth as balance

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FloatModel:
    """A float graph with the statistics of its activations.

    per_channel  whether the target takes one weight scale per output channel
    """

    model: onnx.ModelProto
    statistics: Statistics
    per_channel: bool = True


Rewrite = Callable[[FloatModel], FloatModel | None]


@dataclass(frozen=True)
class Stage:
    """One stage of the ladder.

    rewrites  applied to the float graph, in this order
    """

    name: str
    corrections: Corrections
    rewrites: tuple[Rewrite, ...] = ()


def equalize_stage(base: FloatModel) -> FloatModel:
    """Cross-layer equalization (equalize.py) for least noise (balance.py); ReLU6 holds still."""
    return _equalized(base, {})


def _equalized(base: FloatModel, reached: Mapping[str, Float]) -> FloatModel:
    start = equalize.equalize_ranges(base.model, reached)
    made = balance.smooth(
        base.model,
        start,
        base.statistics,
        tuple(base.statistics.histograms),
        base.per_channel,
        reached,
    )
    return replace(
        base,
        model=made.model,
        statistics=base.statistics.rescaled(made.factors, layers.find_layers(made.model).values()),
    )


STAGES = (  # from cheap to dear
    Stage("rounding", Corrections(gptq=False)),
    Stage("gptq", Corrections()),
    Stage("equalized", Corrections(), (equalize_stage,)),
)
