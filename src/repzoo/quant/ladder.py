"""The quantiser's decisions: calibrate once, place by measured latency, climb the recipes until the accuracy holds.

Rungs, from cheap to dear; each is tried only when the one before it does not hold, those that cost latency only when none before
is enough (see gate.py):

    rounding       ranges by downstream loss, weights to nearest, biases corrected
    second-order   the same with second-order rounding (rounding.py)
    equalised      the same on the equalised network (equalize.py)
    escape N       the best of these, with the N noisiest layers (diagnose.py) left in float
    a placement    the best of these on the other placements, the next fastest first

Placement: the candidates are timed interleaved with the float model on the target engine, and the fastest is taken. Where none is
faster than float beyond noise the fastest is taken all the same, with a warning: INT8 is still smaller.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset
from repzoo.engines import Engine
from repzoo.errors import InputError
from repzoo.measure.host import host
from repzoo.measure.record import Record
from repzoo.progress import Progress, silent
from repzoo.quant import diagnose, equalize, gate, layers, place, plan, qdq
from repzoo.quant.gate import Attempt, Budget, Context, Gate, QuantReport, Rung
from repzoo.quant.observe import Statistics, observe
from repzoo.quant.place import Placement
from repzoo.quant.plan import Corrections, Plan
from repzoo.quant.scheme import QuantScheme

DIAGNOSED_IMAGES = 64
ESCAPES = (1, 3, 8)  # layers left in float, one rung each
_Timed = tuple[Placement, Record]  # with its latency over float


@dataclass(frozen=True)
class _Recipe:
    name: str
    corrections: Corrections
    equalise: bool = False


RECIPES = (
    _Recipe("rounding", Corrections(second_order=False)),
    _Recipe("second-order", Corrections()),
    _Recipe("equalised", Corrections(), equalise=True),
)
TIMED = _Recipe("timed", Corrections(second_order=False, bias=False, ranges="minmax"))  # latency does not depend on the numbers


class _Climb:
    """One model's way up: what every rung shares."""

    def __init__(self, gate: Gate, scheme: QuantScheme) -> None:
        self.gate, self.scheme, self.artifact = gate, scheme, gate.artifact
        self.model = qdq.prepared(gate.artifact.model)
        self.layers = layers.layers(self.model)
        self.placements = place.candidates(self.model)
        self._equalised: equalize.Equalised | None = None
        self._gate_seen: Statistics | None = None

    def calibrate(self, calibration: Dataset) -> ReadReport:
        """Gather all that any placement and recipe may need, in one pass."""
        nodes = frozenset[str]().union(*(one.nodes for one in self.placements))
        self.reads = [one for name, one in self.layers.items() if name in nodes]
        named = [*(name for one in self.placements for name in one.tensors), *(one.source for one in self.reads)]
        self.tensors, report = list(dict.fromkeys(named)), ReadReport()
        self.seen = self._observed(calibration, "calibrate", report)
        report.check(calibration.name, len(calibration))
        return report

    def _observed(self, images: Dataset, stage: str, report: ReadReport) -> Statistics:
        inputs = _inputs(images, self.artifact, report, self.gate.progress, stage)
        return observe(self.model, self.tensors, self.reads, inputs, self.gate.engine, host()["affinity"], len(images))

    def gate_statistics(self) -> Statistics:
        """Of a few of the gate's images: what the diagnosis of a broken model looks at, since calibration images may mislead."""
        if self._gate_seen is None:
            images = self.gate.images
            self._gate_seen = self._observed(images.subset(images.balanced_sample(DIAGNOSED_IMAGES, 0)), "diagnose", ReadReport())
        return self._gate_seen

    def base(self, recipe: _Recipe) -> equalize.Equalised:
        """The float graph that a recipe starts from."""
        if not recipe.equalise:
            return equalize.Equalised(self.model, {})
        self._equalised = self._equalised or equalize.equalised(self.model)
        return self._equalised

    def write(self, recipe: _Recipe, placement: Placement) -> tuple[Artifact, Plan]:
        """The QDQ artifact of a recipe on a placement."""
        base = self.base(recipe)
        seen = self.seen.over(base.factors, self.layers.values())
        made = plan.planned(base.model, placement, seen, self.scheme, self._corrections(recipe))
        graph = plan.write(made, placement, self.scheme)
        return self.artifact.then(graph, Step("quantize", __version__)), made

    def _corrections(self, recipe: _Recipe) -> Corrections:
        """A scheme that asks for one way of choosing ranges gets it on the first rung; later ones may take any of its ways."""
        asked = self.scheme.ranges
        return replace(recipe.corrections, ranges=asked) if recipe is RECIPES[0] and asked != "mse" else recipe.corrections

    def rung(self, recipe: _Recipe, name: str, timed: _Timed) -> Attempt:
        """Make, check and judge one rung."""
        started, (placement, ratio) = time.perf_counter(), timed
        artifact, made = self.write(recipe, placement)
        paired = self.gate.paired(artifact)
        verdict = self.gate.judged(paired)
        seen = (self.seen if verdict[-1] else self.gate_statistics()).over(self.base(recipe).factors, self.layers.values())
        noise = tuple(diagnose.diagnosed(made, seen))
        seconds = round(time.perf_counter() - started, 2)
        return Attempt(artifact, Rung(name, placement.name, paired, ratio, *verdict, seconds, noise))

    def timed(self, placements: Sequence[Placement], seconds: float) -> list[_Timed]:
        """The placements, fastest first."""
        ratios = self.gate.timed([self.write(TIMED, one)[0] for one in placements], seconds)
        return sorted(zip(placements, ratios, strict=True), key=lambda one: float(one[1].values["ratio"]))


def quantize(
    artifact: Artifact,
    calibration: Dataset,
    images: Dataset,
    engine: Engine,
    scheme: QuantScheme,
    budget: Budget,
    progress: Progress = silent,
) -> tuple[Artifact, QuantReport]:
    """The INT8 artifact of the folded, float `artifact`, with the report.

    calibration  images whose activations set the ranges (labels unused)
    images       labelled images, disjoint from `calibration`, on which the drop is measured

    Raises:
        InputError: not a folded float model, or images that cannot be used.
        GateError: the drop is proven above the budget, whatever the recipe.
    """
    gate.require_deploy(artifact)
    started = time.perf_counter()
    climb = _Climb(Gate(artifact, images, engine, budget, progress), scheme)
    if not climb.placements:
        raise InputError(
            f"{artifact.name} has no convolution or linear layer with constant weights, so there is nothing to quantise"
        )
    remarks = climb.calibrate(calibration).sentences()
    attempts = list(_climbed(climb))
    settings = {"scheme": asdict(scheme), "calibration_images": climb.seen.images, **asdict(budget)}
    data = {"calibration": calibration.name, "images": len(calibration)}
    return climb.gate.concluded(attempts, Context(settings, data, budget, remarks, started))


def _inputs(
    images: Dataset, artifact: Artifact, report: ReadReport, progress: Progress, stage: str
) -> Iterator[npt.NDArray[np.float32]]:
    done = 0
    for batch in batches(images, artifact.needing_preprocess(), 16, report):
        yield batch.inputs
        done += len(batch.indices)
        progress(stage, done, len(images))


def _climbed(climb: _Climb) -> Iterator[Attempt]:
    """Rung after rung until one holds: recipes on the fastest placement, then fewer layers, then the other placements."""
    fastest, *others = climb.timed(climb.placements, gate.BENCH_SECONDS)
    made: list[Attempt] = []
    for recipe in RECIPES:
        made.append(climb.rung(recipe, recipe.name, fastest))
        yield made[-1]
        if made[-1].rung.holds:
            return
    best = max(made, key=lambda one: one.merit).rung
    if best.enough:
        return
    recipe = next(one for one in RECIPES if one.name == best.recipe)
    for name, timed in itertools.chain(_escapes(climb, fastest[0], best), ((timed[0].name, timed) for timed in others)):
        attempt = climb.rung(recipe, f"{recipe.name}, {name}", timed)
        yield attempt
        if attempt.rung.enough:
            return


def _escapes(climb: _Climb, placement: Placement, rung: Rung) -> Iterator[tuple[str, _Timed]]:
    """`placement` with more and more of the noisiest layers of `rung` in float, timed."""
    noisiest = [one.layer for one in rung.layers]
    for count in ESCAPES:
        if count < len(noisiest):
            left = noisiest[:count]
            fewer = place.placement(climb.model, f"{placement.name}, float: {', '.join(left)}", placement.nodes - set(left))
            yield f"escape {count}", climb.timed([fewer], gate.BENCH_SECONDS / 2)[0]
