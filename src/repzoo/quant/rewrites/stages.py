"""The ladder's rungs as data: which corrections a recipe makes and which rewrites of the float graph come before them.

A rewrite is a pure function from a Base to a Base that computes the same, or to None where it would change nothing, so that the
rung is passed over. Where it only scales channels it carries the statistics along, as if they had been gathered on the new graph:
one calibration pass serves all those rungs. What it cannot know of the new graph it names as `stale`, and the ladder gathers that
in a pass of its own, which only a model pays for that nothing cheaper helps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network import layers
from repzoo.quant.network.channels import link_channels
from repzoo.quant.parameters.compute import Corrections
from repzoo.quant.rewrites import absorb, equalize, split
from repzoo.quant.rewrites import smooth as balance

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FloatModel:
    """A float graph, what its activations are like, and how the target will represent it.

    places  node that a rewrite added (its first output) -> the node on whose side, INT8 or float, it is
    placed  nodes that the ladder's placement runs in INT8
    stale   tensors of `model` whose statistics, and those of the layers that read them, are still to be gathered
    """

    model: onnx.ModelProto
    statistics: Statistics
    places: Mapping[str, str] = field(default_factory=dict)
    per_channel: bool = True
    placed: frozenset[str] = frozenset()
    stale: frozenset[str] = frozenset()


Rewrite = Callable[[FloatModel], FloatModel | None]


@dataclass(frozen=True)
class Stage:
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


def equalize_stage(base: FloatModel) -> FloatModel:
    """Cross-layer equalization (equalize.py) for least noise (balance.py); ReLU6 holds still."""
    return _equalized(base, {})


def opened(base: FloatModel) -> FloatModel | None:
    """The same through each ReLU6 whose channels stay well below 6 on the calibration images (channels.py says how exact that is)."""
    reached = {name: one.high for name, one in base.statistics.histograms.items()}
    found = layers.find_layers(base.model)
    opens = link_channels(base.model, found, reached).count > link_channels(base.model, found).count
    return _equalized(base, reached) if opens else None


def absorbed(base: FloatModel) -> FloatModel | None:
    """Bias absorption (absorb.py)."""
    model, moved = absorb.absorbed(
        base.model, {name: one.low for name, one in base.statistics.histograms.items()}
    )
    return replace(base, model=model, stale=frozenset(moved)) if moved else None


def split_centers(base: FloatModel) -> FloatModel | None:
    """Coarse and fine (split.py) for every layer in INT8 whose grid that makes finer."""
    made = split.split(base.model, base.placed, base.per_channel)
    if not made.parts:
        return None
    found, moments = layers.find_layers(base.model), dict(base.statistics.moments)
    for name, (coarse, fine) in made.parts.items():
        moments |= {coarse: moments[name], fine: split.centerd(found[name], moments[name])}
    halves = {half: layer for layer, pair in made.parts.items() for half in pair}
    seen = replace(base.statistics, moments=moments)
    return replace(
        base,
        model=made.model,
        statistics=seen,
        places={**base.places, **halves},
        stale=frozenset(halves),
    )


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
    Stage("second-order", Corrections()),
    Stage("equalized", Corrections(), (equalize_stage,)),
    Stage("equalized through ReLU6", Corrections(), (opened,)),
    Stage("absorbed", Corrections(), (equalize_stage, absorbed)),
    Stage("coarse and fine", Corrections(), (equalize_stage, split_centers), slower=True),
)
