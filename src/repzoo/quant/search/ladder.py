"""The quantizer's decisions: calibrate once, place by measured latency, climb the rungs until the accuracy holds, judge the choice.

Three sets of images, none in common (data.dataset.Split): *ranges* sets ranges and rounding, *selection* says which attempt is the
best, *gate* judges that one, once. The rule, the same for the same images and placement:

1. The rungs that cost no latency (rungs.py) are tried in their order on the placement that search.py found, each compared with
   the float model on the selection images; then the best of them on placements that are nearly as fast with fewer layers in INT8.
   The first that holds there (see gate.py) is chosen.
2. Where none holds, the best of them is (that of least noise on the logits for its latency), if it is *enough*: its drop within
   the budget, and 95 % of predictions unchanged.
3. Where it is not, and fine-tuning was asked for, the best of them is fine-tuned on the images of the ranges (finetune.py).
4. Where nothing is enough, what costs latency follows, one after another until something is enough, and the best of all is chosen:
   rungs that add work, the best recipe with 1, 3, 8 layers left in float or in 16 bits (those whose return to float takes most
   noise off the logits of selection images), the best recipe on a few placements with less in INT8.
5. The gate images refuse the choice or let it pass. They lead to no other choice: that would make of them selection images.

The floor under all: where no placement is faster than float beyond noise the fastest is taken all the same, with a warning, since
INT8 is still smaller.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset, QuantizationSplit
from repzoo.engines import Engine
from repzoo.errors import InputError
from repzoo.graph.tools.pieces import initializer_bytes, trim_heap
from repzoo.measure.host import host
from repzoo.progress import Progress, silent
from repzoo.quant.calibration.calibrate import (
    PROBED_BYTES,
    CalibrationStream,
    batch_size,
    collect_statistics,
)
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network import layers
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters import compute as plan
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.parameters import sqnr as diagnose
from repzoo.quant.parameters.compute import Corrections, QuantizationPlan
from repzoo.quant.parameters.sqnr import LayerSqnr
from repzoo.quant.rewrites import stages as rungs
from repzoo.quant.rewrites.stages import STAGES, FloatModel, Stage
from repzoo.quant.search import gate
from repzoo.quant.search import placement_search as search
from repzoo.quant.search.gate import (
    Budget,
    Candidate,
    CandidateModel,
    FloatComparison,
    Gate,
    QuantReport,
    ReportContext,
)
from repzoo.quant.search.placement_search import PlacementRace, SearchResult, TimedPlacement

DIAGNOSED_IMAGES = 64
WEIGHED_IMAGES = 16  # on which escapes are weighed
WEIGHED_LAYERS = 8  # of the noisiest, of which escapes are chosen
ESCAPES = (1, 3, 8)  # layers that leave INT8, one rung each
OTHERS = 3  # placements that are tried for the sake of accuracy
SEARCH_SECONDS = 30.0
Inputs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Target:
    """What INT8 is made for, and how hard it is tried.

    search    the most seconds for a better placement than the best of the usual ones; never more than half those of calibration
    finetune  epochs of fine-tuning where no correction is enough; needs torch
    """

    engine: Engine
    scheme: QuantScheme
    search_seconds: float = SEARCH_SECONDS
    finetune_epochs: int = 0


@dataclass(frozen=True)
class _Made:
    """A rung's model, how it came about, and what measured it."""

    recipe: Stage
    timed: TimedPlacement
    plan: QuantizationPlan
    attempt: CandidateModel


class _Climb:
    """One model's way up: what every rung shares."""

    def __init__(self, gate: Gate, target: Target, split: QuantizationSplit) -> None:
        self.gate, self.scheme, self.split, self.artifact = (
            gate,
            target.scheme,
            split,
            gate.artifact,
        )
        self.target, self.engine, self.threads = target, target.engine, int(host()["affinity"])
        self.model = qdq.prepare_for_qdq(gate.artifact.model)
        self.layers = layers.find_layers(self.model)
        self.places = PlacementSpace(self.model, target.scheme)
        self.starts = self.places.starting_placements()
        self.judge = FloatComparison(gate.artifact, split.selection, target.engine, gate.progress)
        self._bases: dict[tuple[rungs.Rewrite, ...], FloatModel | None] = {}
        self._chosen: dict[
            tuple[tuple[rungs.Rewrite, ...], Placement, str], plan.ChosenRanges
        ] = {}  # the last
        self._weighed: list[Inputs] | None = None

    def calibrate(self) -> list[str]:
        """Gather all that any placement and recipe may need, in one pass; remarks on the images."""
        nodes = frozenset[str]().union(*(one.nodes for one in self.starts))
        reads = [one for name, one in self.layers.items() if name in nodes]
        named = [
            *(name for one in self.starts for name in one.tensors),
            *(one.source for one in reads),
        ]
        report = ReadReport()
        read = list[int]()
        seen = self._observed(
            self.model, list(dict.fromkeys(named)), reads, self.split.calibration, report, read
        )
        report.check(self.split.calibration.name, len(self.split.calibration))
        self._bases[()] = FloatModel(self.model, seen, per_channel=self.scheme.per_channel)
        self.judge.add_margins(self.split.calibration.subset(read), seen.margins)
        return report.sentences()

    def _observed(
        self,
        model: onnx.ModelProto,
        tensors: list[str],
        reads: Sequence[layers.Layer],
        images: Dataset,
        report: ReadReport,
        read: list[int] | None = None,
    ) -> Statistics:
        """Statistics of `model` on `images`; the numbers of those that could be read are put into `read`."""
        trim_heap()  # here and elsewhere: what models and sessions took, which else adds up to more than the statistics
        crowded = (
            4 if self._bases else 1
        )  # a rewritten graph: the first one's statistics are held beside
        room = PROBED_BYTES // (
            crowded * (2 if initializer_bytes(model) > PROBED_BYTES else 1)
        )  # or large weights are
        size = batch_size(model, [*tensors, *(one.source for one in reads)], room)
        inputs = self._inputs(images, report, size, [] if read is None else read)
        seen = collect_statistics(
            model,
            tensors,
            reads,
            CalibrationStream(inputs, len(images), self.gate.progress),
            self.engine,
            self.threads,
        )
        trim_heap()
        return seen

    def _inputs(
        self, images: Dataset, report: ReadReport, size: int, read: list[int]
    ) -> Iterator[Inputs]:
        for batch in batches(images, self.artifact.require_preprocess(), size, report):
            read.extend(batch.indices)
            yield batch.inputs

    def _shown(self, stage: str, images: Dataset, size: int) -> Iterator[Inputs]:
        """The inputs of `images`, with progress."""
        done = 0
        for inputs in self._inputs(images, ReadReport(), size, []):
            yield inputs
            done += len(inputs)
            self.gate.progress(stage, done, len(images))

    def base(self, rewrites: tuple[rungs.Rewrite, ...] = ()) -> FloatModel:
        """The float graph that a recipe that changes something starts from, with its statistics."""
        made = self._rewritten(rewrites)
        assert made
        return made

    def changes(self, recipe: Stage) -> bool:
        """Whether the rewrites of `recipe` find anything to do in this model."""
        return self._rewritten(recipe.rewrites) is not None

    def forget(self, *needed: Stage) -> None:
        """Let go of the graphs and statistics that none of the recipes `needed` begins with."""
        kept = {one.rewrites[:count] for one in needed for count in range(len(one.rewrites) + 1)}
        self._bases = {
            rewrites: base
            for rewrites, base in self._bases.items()
            if rewrites in kept or not rewrites
        }

    def _rewritten(self, rewrites: tuple[rungs.Rewrite, ...]) -> FloatModel | None:
        if rewrites not in self._bases:
            before = self._rewritten(rewrites[:-1])
            made = rewrites[-1](before) if before else None
            trim_heap()
            self._bases[rewrites] = self._refreshed(made) if made and made.stale else made
        return self._bases[rewrites]

    def _refreshed(self, base: FloatModel) -> FloatModel:
        """`base` with the statistics of what is stale, from a pass over the same images."""
        reads = [one for one in layers.find_layers(base.model).values() if one.source in base.stale]
        fresh = self._observed(
            base.model, sorted(base.stale), reads, self.split.calibration, ReadReport()
        )
        seen = replace(
            base.statistics,
            histograms={**base.statistics.histograms, **fresh.histograms},
            moments={**base.statistics.moments, **fresh.moments},
        )
        return replace(base, statistics=seen, stale=frozenset())

    def raced(self, seconds: float) -> SearchResult:
        """The fastest placement, searched for so long, and the others that the search began with."""
        race = PlacementRace(
            self.gate, self.model, self.base().statistics, self.scheme, self.places
        )
        found = search.find_fastest(race, self.starts, gate.BENCH_SECONDS / 2, seconds)
        self._bases[()] = replace(self.base(), placed=found.best.placement.nodes)
        trim_heap()
        return found

    def write(self, recipe: Stage, placement: Placement) -> tuple[Artifact, QuantizationPlan]:
        """The QDQ artifact of a recipe on a placement."""
        base = self.base(recipe.rewrites)
        placement = self._placed(base, placement)
        corrections = self._corrections(recipe)
        key = recipe.rewrites, placement, corrections.range_method
        if key not in self._chosen:  # two recipes may differ in what is rounded only
            self._chosen = {
                key: plan.choose_ranges(
                    base.model, placement, base.statistics, self.scheme, corrections.range_method
                )
            }
        made = plan.compute_parameters(
            base.model, placement, base.statistics, self.scheme, corrections, self._chosen[key]
        )
        return self._written(made, placement), made

    def _placed(self, base: FloatModel, placement: Placement) -> Placement:
        if not base.places:
            return placement
        added = {new for new, old in base.places.items() if old in placement.nodes}
        made = PlacementSpace(base.model, self.scheme).placement(
            placement.name, placement.nodes | added
        )
        return replace(made, int16_tensors=placement.int16_tensors & {*made.tensors})

    def _written(self, made: QuantizationPlan, placement: Placement) -> Artifact:
        return self.artifact.then(
            plan.write_qdq(made, placement, self.scheme), Step("quantize", __version__)
        )

    def _corrections(self, recipe: Stage) -> Corrections:
        """A scheme that asks for one way of choosing ranges gets it on the first rung; later ones may take any of its ways."""
        asked = self.scheme.ranges
        return (
            replace(recipe.corrections, range_method=asked)
            if recipe is STAGES[0] and asked != "mse"
            else recipe.corrections
        )

    def moved(self, one: _Made, placement: Placement) -> tuple[Artifact, QuantizationPlan]:
        """The recipe of `one` on another placement. What a layer's numbers are does not depend on where the others run, so where
        `one` has all that are asked for they are taken over, and a layer that is float again gets its own bias back; else, and for 16
        bits, all is made anew.
        """
        base = self.base(one.recipe.rewrites)
        placed = self._placed(base, placement)
        known = placed.nodes & layers.find_layers(base.model).keys() <= one.plan.weights.keys()
        if (
            placed.int16_tensors
            or not known
            or not one.plan.activations.keys() >= {*placed.tensors}
        ):
            return self.write(one.recipe, placement)
        own = {
            node.output[0]: node.input
            for node in base.model.graph.node
            if node.output[0] not in placed.nodes
        }
        model = onnx.ModelProto()
        model.CopyFrom(one.plan.model)
        for node in model.graph.node:
            if node.output[0] in one.plan.weights and node.output[0] in own:
                node.input[:] = own[node.output[0]]
        kept = {name: numbers for name, numbers in one.plan.weights.items() if name in placed.nodes}
        made = replace(
            one.plan,
            model=model,
            weights=kept,
            activations={name: one.plan.activations[name] for name in placed.tensors},
        )
        return self._written(made, placed), made

    def rung(
        self, recipe: Stage, name: str, timed: TimedPlacement, origin: _Made | None = None
    ) -> _Made:
        """Make a rung, anew or from the `origin`, another of the same recipe, and compare it with the float model on the selection
        images.
        """
        started = time.perf_counter()
        written = (
            self.moved(origin, timed.placement) if origin else self.write(recipe, timed.placement)
        )
        return self._made(recipe, name, timed, written, started)

    def timed_rung(
        self, recipe: Stage, name: str, placement: Placement, origin: _Made | None = None
    ) -> _Made:
        """As `rung`, of a placement whose latency is not known."""
        started = time.perf_counter()
        written = self.moved(origin, placement) if origin else self.write(recipe, placement)
        trim_heap()
        timed = TimedPlacement(placement, self.gate.timed(written[:1], gate.BENCH_SECONDS / 2)[0])
        return self._made(recipe, name, timed, written, started)

    def finetuned(self, best: _Made) -> _Made:
        """`best`, whose numbers learn from the float model on the images of the ranges."""
        from repzoo.quant.parameters import finetune

        started, images = time.perf_counter(), self.split.calibration

        def epoch(number: int) -> Iterator[Inputs]:
            order = np.random.default_rng(number).permutation(len(images))
            return self._shown(
                f"images of epoch {number + 1}", images.subset([int(at) for at in order]), 32
            )

        base = self.base(best.recipe.rewrites)
        options = finetune.FinetuneOptions(self.target.finetune_epochs)
        made = finetune.distill(
            base.model,
            best.plan,
            self.scheme,
            finetune.DistillationImages(len(images), epoch),
            options,
            self.gate.progress,
        )
        artifact = self._written(made, self._placed(base, best.timed.placement))
        name = f"{best.recipe.name}, {self.target.finetune_epochs} epochs of fine-tuning"
        return self._made(best.recipe, name, best.timed, (artifact, made), started)

    def _made(
        self,
        recipe: Stage,
        name: str,
        timed: TimedPlacement,
        written: tuple[Artifact, QuantizationPlan],
        started: float,
    ) -> _Made:
        artifact, made = written
        trim_heap()
        noise = tuple(diagnose.layer_sqnr(made, self.base(recipe.rewrites).statistics))
        trim_heap()
        rung = self.gate.rung(
            name, timed.placement.name, self.judge.compare(artifact), timed.ratio, started
        )
        trim_heap()
        return _Made(recipe, timed, made, CandidateModel(artifact, replace(rung, layers=noise)))

    def blamed(self, one: _Made) -> tuple[LayerSqnr, ...]:
        """The noise of each layer of `one` on a few of the gate's images."""
        images, base = self.split.gate, self.base(one.recipe.rewrites)
        some = images.subset(images.balanced_sample(DIAGNOSED_IMAGES, 0))
        reads = [
            item
            for name, item in layers.find_layers(base.model).items()
            if name in base.statistics.moments
        ]
        seen = self._observed(base.model, list(one.plan.activations), reads, some, ReadReport())
        return tuple(diagnose.layer_sqnr(one.plan, seen))

    def weighed(self, one: _Made) -> list[str]:
        """The noisiest layers of `one`, first those whose return to float takes most noise off the logits."""
        if self._weighed is None:
            images = self.split.selection
            some = images.subset(images.balanced_sample(WEIGHED_IMAGES, 0))
            self._weighed = list(
                self._shown("weigh layers", some, batch_size(self.model, self.starts[0].tensors))
            )
        truth = self._logits(self.artifact, self._weighed)
        left, noisy = (
            {},
            [it.layer for it in one.attempt.rung.layers if it.layer in one.plan.weights],
        )
        for name in noisy[:WEIGHED_LAYERS]:
            fewer = self.without(one.timed.placement, [name])
            logits = self._logits(self.moved(one, fewer)[0], self._weighed)
            left[name] = float(np.square(logits - truth).mean())
        return [*sorted(left, key=lambda name: left[name]), *noisy[WEIGHED_LAYERS:]]

    def _logits(self, artifact: Artifact, inputs: Sequence[Inputs]) -> Inputs:
        session = self.engine.open(artifact.model, self.threads)
        return np.concatenate([session.run(one) for one in inputs])

    def without(self, placement: Placement, names: Sequence[str]) -> Placement:
        """`placement` with the layers `names` in what the scheme's target has beside INT8."""
        said = f"{placement.name}, {self.scheme.escape}: {', '.join(names)}"
        if self.scheme.escape == "int16":
            touched = self.places.placement(said, names).tensors
            return replace(
                placement,
                name=said,
                int16_tensors=placement.int16_tensors | (frozenset(touched) & {*placement.tensors}),
            )
        return self.places.placement(said, placement.nodes - set(names))


def quantize(
    artifact: Artifact,
    split: QuantizationSplit,
    target: Target,
    budget: Budget,
    progress: Progress = silent,
) -> tuple[Artifact, QuantReport]:
    """The INT8 artifact of the folded, float `artifact`, with the report.

    Raises:
        InputError: not a folded float model, or images that cannot be used.
        GateError: the drop of the rung that the selection images chose is proven above the budget on the gate's.
    """
    gate.require_folded(artifact)
    started = time.perf_counter()
    climb = _Climb(Gate(artifact, split.gate, target.engine, budget, progress), target, split)
    if not climb.starts:
        raise InputError(
            f"{artifact.name} has no convolution or linear layer with constant weights, so there is nothing to quantize"
        )
    remarks = climb.calibrate()
    calibrated = time.perf_counter() - started
    found = climb.raced(min(target.search_seconds, calibrated / 2))
    best, tried = _chosen(_climbed(climb, found))
    judged = time.perf_counter()
    paired = climb.gate.judge.compare(best.attempt.artifact)
    seconds = {
        "calibrate": calibrated,
        "place": found.seconds,
        "gate": time.perf_counter() - judged,
    }
    context = ReportContext(
        {
            "scheme": asdict(target.scheme),
            "calibration_images": climb.base().statistics.images,
            **asdict(budget),
        },
        {
            "calibration": split.calibration.name,
            "images": len(split.calibration),
            "selection_images": len(split.selection),
        },
        budget,
        (*remarks, *climb.judge.report.sentences(), *_left_out()),
        started,
        found.trials,
        {name: round(value, 2) for name, value in seconds.items()},
    )
    return climb.gate.concluded(best.attempt, tried, paired, context, lambda: climb.blamed(best))


def _offered(slower: bool) -> list[Stage]:
    """The rungs whose packages are installed."""
    return [one for one in STAGES if one.slower == slower and not _is_missing(one)]


def _is_missing(recipe: Stage) -> bool:
    return bool(recipe.package) and importlib.util.find_spec(recipe.package) is None


def _left_out() -> list[str]:
    return [
        f"the rung {one.name} was left out: it needs the package {one.package}"
        for one in STAGES
        if _is_missing(one)
    ]


def _chosen(made: Iterator[_Made]) -> tuple[_Made, list[Candidate]]:
    """(the best, what all gave); the models of the others are let go at once."""
    best, tried = next(made), list[Candidate]()
    tried.append(best.attempt.rung)
    for one in made:
        tried.append(one.attempt.rung)
        best = _better(best, one)
        del one  # while the next is made, no more than the best is held
    return best, tried


def _better(first: _Made, second: _Made) -> _Made:
    """The one of more merit; of equals the first, which was cheaper to make."""
    return second if second.attempt.merit > first.attempt.merit else first


def _climbed(climb: _Climb, found: SearchResult) -> Iterator[_Made]:
    """Rung after rung until one is good enough: see the module."""
    best = None
    for one in _level(climb, found):
        yield one
        best = _better(best, one) if best else one
        del one  # as in _chosen
    assert best
    if best.attempt.rung.enough:  # what holds is enough
        return
    if climb.target.finetune_epochs:
        one = climb.finetuned(best)
        yield one
        if one.attempt.rung.enough:
            return
    for one in _dearer(climb, best, _fewer(climb, best, found)):
        yield one
        if one.attempt.rung.enough:
            return


def _level(climb: _Climb, found: SearchResult) -> Iterator[_Made]:
    """What costs no latency, or hardly any, until one holds."""
    first, *others = _offered(slower=False)
    best = climb.rung(first, first.name, found.best)
    yield best
    for place, recipe in enumerate(others, 1):
        if best.attempt.rung.holds:
            return
        if climb.changes(recipe):
            one = climb.rung(recipe, recipe.name, found.best)
            yield one
            best = _better(best, one)
            del one
        climb.forget(best.recipe, *others[place:], *_offered(slower=True))
    for alike in found.alike:
        if best.attempt.rung.holds:
            return
        one = climb.rung(best.recipe, f"{best.recipe.name}, {alike.placement.name}", alike, best)
        yield one
        best = _better(best, one)
        del one


def _fewer(climb: _Climb, best: _Made, found: SearchResult) -> list[Placement]:
    """A few of the placements with less in INT8 than `best` that were not tried yet, spread evenly down to the least."""

    def size(one: Placement) -> tuple[int, int]:
        return climb.places.count(one), len(one.tensors)

    tried = {one.placement for one in found.alike}
    left = sorted(
        (
            one
            for one in found.others
            if one not in tried and size(one) < size(best.timed.placement)
        ),
        key=size,
    )[::-1]
    if len(left) <= OTHERS:
        return left
    return [left[round(at)] for at in np.linspace(0, len(left) - 1, OTHERS + 1)[1:].tolist()]


def _dearer(climb: _Climb, best: _Made, placements: Sequence[Placement]) -> Iterator[_Made]:
    """What costs latency: more work in the graph, less in INT8, another of the `placements`."""
    placement, recipe = best.timed.placement, best.recipe
    for slower in _offered(slower=True):
        if climb.changes(slower):
            one = climb.timed_rung(slower, slower.name, placement)
            yield one
            climb.forget(recipe, _better(best, one).recipe)
            del one
    if len(best.attempt.rung.layers) > 1:
        ranked = climb.weighed(best)
        for count in (one for one in ESCAPES if one < len(ranked)):
            yield climb.timed_rung(
                recipe,
                f"{recipe.name}, escape {count}",
                climb.without(placement, ranked[:count]),
                best,
            )
    for other in placements:
        yield climb.timed_rung(recipe, f"{recipe.name}, {other.name}", other, best)
