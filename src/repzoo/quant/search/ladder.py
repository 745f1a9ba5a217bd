"""The ladder of the quantizer: stages from cheap to dear, until one is accurate enough.

Three disjoint sets of images are used (data.dataset.QuantizationSplit): *calibration* sets ranges
and rounding, *selection* chooses among candidates, *gate* judges the chosen one, once.

The strategy, deterministic for the same images and placement:

1. The float model is calibrated once, and the fastest placement of Q/DQ pairs is searched
   (placement_search.py).
2. The stages that cost no latency are tried on that placement, in their order. Then the best
   stage is tried on placements that are nearly as fast with fewer layers in INT8. The first
   candidate that holds (verdict.py) is chosen.
3. Where none holds, the best is chosen if it is accurate enough: its drop is within the budget,
   and at least 95 % of predictions are unchanged.
4. Otherwise, if fine-tuning was asked for, the best is fine-tuned on the calibration images.
5. If that is not enough either, what costs latency follows until something is enough: the best
   stage with zero points, where the search left them out; it with 1, 3 and 8 layers out of INT8
   (fallback.py), then on a few placements with less in INT8. The best of all is chosen.
6. The gate refuses the choice or lets it pass. It leads to no other choice, since images that
   choose would no longer be a fair test.

Where no placement is faster than float beyond noise, the fastest one is used with a warning: INT8
is still smaller.

Several engines share one calibration pass (`share_calibration`), since statistics are the float
model's; each has a ladder of its own (contenders.py).

A placement that the user asked for (`Target.placement`) is not searched, and stays: of steps 1 and
5 the zero points alone are left.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from repzoo.artifact import Artifact
from repzoo.data.dataset import QuantizationSplit
from repzoo.engines import Engine, arithmetic
from repzoo.engines.executed import ExecutedOperator
from repzoo.measure.race_result import ALONE, Load
from repzoo.progress import Progress, silent
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.rewrites.single_nodes import single_node_remarks, with_single_nodes
from repzoo.quant.rewrites.stages import STAGES, FloatModel
from repzoo.quant.search.builder import Builder
from repzoo.quant.search.calibrator import Calibrator
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.evaluator import BuiltCandidate, Evaluator, Keep
from repzoo.quant.search.fallback import rank_layers, with_fallback
from repzoo.quant.search.gate import (
    Gate,
    QuantReport,
    ReportContext,
    require_folded,
)
from repzoo.quant.search.operator_times import operator_times
from repzoo.quant.search.placement_choice import (
    PlacementChoice,
    SearchLimits,
    choose_forms,
    fastest_placement,
    gelu_remarks,
    model_for_timing,
    probe_int8,
    requested_placement,
)
from repzoo.quant.search.placement_search import SearchResult
from repzoo.quant.search.rewrite_cache import RewriteCache
from repzoo.quant.search.shared_calibration import (
    SharedCalibration,
    form_for,
    share_calibration,
    starting_placements,
)
from repzoo.quant.search.verdict import Budget, Verdict

FALLBACK_COUNTS = (1, 3, 8)  # layers that leave INT8, one candidate each
# Placements with less in INT8 that are tried for accuracy, at most.
SMALLER_PLACEMENTS = 3


@dataclass(frozen=True)
class Target:
    """What the INT8 model is made for, and how hard the ladder tries.

    search_seconds   after which the placement search tries no further change; it ends before
                     where nothing gains. None: see SearchLimits
    finetune_epochs  epochs of distillation where no correction is enough; needs torch
    load             how sessions are used while they are timed
    placement        which nodes run in INT8. fastest: those that make the model fastest on
                     `engine`, by timing. layers: all convolutions and linear layers. everything:
                     also all other operators that the scheme knows in INT8
    may_fall_back    whether layers may leave a placement that was not searched, where no correction
                     is enough
    new_search       whether to search even where a search of the same graph is kept
    """

    engine: Engine
    scheme: QuantScheme
    search_seconds: float | None = None
    finetune_epochs: int = 0
    placement: PlacementChoice = "fastest"
    may_fall_back: bool = False
    load: Load = ALONE
    new_search: bool = False


@dataclass(frozen=True)
class Sharing:
    """What a ladder shares with those of other engines. Each part may be absent.

    calibration   see `share_calibration`
    float_engine  computes what the float model predicts; None: the target's engine
    keep          is called with each candidate and its model, which are let go otherwise
    """

    calibration: SharedCalibration | None = None
    float_engine: Engine | None = None
    keep: Keep | None = None


class Ladder:
    """The ladder of one engine for the folded float `artifact`: `place` first, then `climb`.

    search   what `place` found
    profile  what the engine executes for the model that `climb` made, where that is known
    """

    search: SearchResult
    profile: Sequence[ExecutedOperator] | None = None

    def __init__(
        self,
        artifact: Artifact,
        split: QuantizationSplit,
        target: Target,
        budget: Budget,
        progress: Progress = silent,
        sharing: Sharing | None = None,
    ) -> None:
        """Runs the calibration pass, unless it is shared.

        Raises:
            InputError: not a folded float model, or images that cannot be used.
        """
        require_folded(artifact)
        sharing = sharing or Sharing()
        self._started = time.perf_counter()
        self.target = target
        self._split = split
        self._budget = budget
        images = FloatComparison(
            artifact,
            split.gate,
            target.engine,
            progress,
            float_engine=sharing.float_engine,
        )
        self._gate = Gate(images, budget, load=target.load)
        self._evaluator, self._remarks = calibrate(
            self._gate, split, target, sharing.calibration
        )
        self._evaluator.keep = sharing.keep
        seconds = time.perf_counter() - self._started
        if sharing.calibration is not None:
            seconds = sharing.calibration.seconds
        self._phases = {"calibrate": seconds}

    def place(self, probe_first: bool = False) -> None:
        """Find what runs in INT8.

        probe_first  whether INT8 runs in a child process first: an engine that crashes must not
                     end what others have a part in

        Raises:
            InputError: the engine runs no INT8 model.
        """
        started = time.perf_counter()
        if probe_first:
            probe_int8(self._evaluator)
        self.search, remarks = _place(
            self._evaluator, self.target, self._phases["calibrate"]
        )
        self._remarks += remarks
        self._phases["place"] = time.perf_counter() - started

    def timing_model(self) -> Artifact:
        """The placement that `place` found, for timing alone: no image set its rounding."""
        return model_for_timing(self._evaluator, self.search.best.placement)

    def know_float(self, comparisons: Sequence[FloatComparison]) -> None:
        """Take what the float model predicts from the `comparisons` of another ladder, if any."""
        for own, known in zip(self.comparisons, comparisons, strict=False):
            own.learn_from(known)

    @property
    def comparisons(self) -> tuple[FloatComparison, FloatComparison]:
        """With the float model, on the selection and on the gate images."""
        return self._evaluator.comparison, self._gate.comparison

    def climb(self) -> tuple[Artifact, QuantReport]:
        """Try one candidate after another; the chosen INT8 model, judged by the gate.

        Raises:
            InputError: the engine cannot run a candidate, or images cannot be read.
            Refusal: the drop is proven above the budget on the gate images.
        """
        evaluator = self._evaluator
        placed_scheme = evaluator.builder.scheme
        try_candidates(evaluator, self.search, self._split, self.target)
        best = evaluator.best
        started = time.perf_counter()
        paired = self._gate.comparison.compare(best.artifact)
        # Another form of the same placement is another model.
        if best.build.scheme == placed_scheme:
            self.profile = _known_profile(self.search, best.timed.placement)
        self._phases["gate"] = time.perf_counter() - started
        remarks = [
            *self._remarks,
            *evaluator.comparison.report.sentences(),
            *gelu_remarks(evaluator),
        ]
        phases = {name: round(seconds, 2) for name, seconds in self._phases.items()}
        context = ReportContext(
            _step_settings(evaluator, self.target, self._budget, best.build.scheme),
            describe_images(self._split),
            self._budget,
            remarks,
            self._started,
            self.search.trials,
            phases,
        )
        return self._gate.conclude(
            best,
            evaluator.candidates,
            paired,
            context,
            lambda: evaluator.diagnose(best, self._split.gate),
        )


def quantize(
    artifact: Artifact,
    split: QuantizationSplit,
    target: Target,
    budget: Budget,
    progress: Progress = silent,
) -> tuple[Artifact, QuantReport]:
    """The INT8 artifact of the folded float `artifact`, with the report.

    Raises:
        InputError: not a folded float model, or images that cannot be used.
        GateError: the drop of the chosen candidate is proven above the budget on the gate images.
    """
    started = time.perf_counter()
    ladder = Ladder(artifact, split, target, budget, progress)
    ladder.place()
    int8, report = ladder.climb()
    if not target.scheme.runs_on_board:
        operators = operator_times(
            target.engine, artifact, int8, target.load.threads, ladder.profile
        )
        report = report.with_values(operators=operators)
    return int8, report.with_values(seconds=round(time.perf_counter() - started, 1))


def _place(
    evaluator: Evaluator, target: Target, calibrate_seconds: float
) -> tuple[SearchResult, list[str]]:
    """(what runs in INT8, remarks on how it was found)."""
    if target.placement == "fastest":
        limits = SearchLimits(
            target.search_seconds, calibrate_seconds, target.new_search
        )
        return fastest_placement(evaluator, limits)
    choose_forms(evaluator)
    return requested_placement(evaluator, target.placement), []


def _known_profile(
    search: SearchResult, placement: Placement
) -> Sequence[ExecutedOperator] | None:
    """The operators of `placement`, where the search profiled it."""
    if placement.int16_tensors:  # no profiled placement has any
        return None
    return search.profiles.get(placement.nodes)


def _step_settings(
    evaluator: Evaluator, target: Target, budget: Budget, scheme: QuantScheme
) -> dict[str, Any]:
    """What the model's history says of how it was quantized, under `scheme`."""
    statistics = evaluator.builder.cache.original.statistics
    return {
        "engine": target.engine.name,
        "scheme": asdict(scheme),
        "calibration_images": statistics.images,
        **asdict(budget),
    }


def describe_images(split: QuantizationSplit) -> dict[str, Any]:
    """Names and counts of the images that a report states."""
    return {
        "calibration": split.calibration.name,
        "images": len(split.calibration),
        "selection_images": len(split.selection),
    }


def calibrate(
    gate: Gate,
    split: QuantizationSplit,
    target: Target,
    shared: SharedCalibration | None = None,
) -> tuple[Evaluator, list[str]]:
    """Run the calibration pass, unless it is `shared`.

    Returns what builds and measures candidates from its statistics, and remarks on the images and
    the opset.

    Raises:
        InputError: the model has no layer to quantize, or no image can be read.
    """
    artifact = gate.artifact
    if shared is None:
        shared = share_calibration(
            artifact, split.calibration, [target.scheme], target.engine, gate.progress
        )
    model = form_for(shared.model, target.scheme)
    remarks = [*arithmetic.remarks([target.engine]), *shared.calibration.remarks]
    if target.scheme.single_nodes:
        model = with_single_nodes(model)
        remarks += single_node_remarks(shared.model, model)
    space = PlacementSpace(model, target.scheme)
    calibrator = Calibrator(artifact, target.engine, gate.progress)
    calibration = shared.for_placements(model, starting_placements(artifact, space))
    statistics = calibration.statistics
    comparison = gate.comparison.on(split.selection)
    comparison.add_margins(calibration.images, statistics.margins)
    original = FloatModel(model, statistics, per_channel=target.scheme.per_channel)
    builder = Builder(artifact, space, target.scheme, RewriteCache(original))
    return Evaluator(gate, comparison, builder, calibrator), remarks


def try_candidates(
    evaluator: Evaluator, search: SearchResult, split: QuantizationSplit, target: Target
) -> None:
    """Try one candidate after another until one is good enough (steps 2 to 5 of the module)."""
    try_stages(evaluator, search)
    try_nearly_as_fast(evaluator, search)
    best = evaluator.best
    if best.verdict >= Verdict.ENOUGH:
        return
    if target.finetune_epochs:
        evaluator.finetune(best, target.finetune_epochs, split.calibration)
        if evaluator.best.verdict >= Verdict.ENOUGH:
            return
    best = try_zero_points(evaluator, best)
    if evaluator.best.verdict >= Verdict.ENOUGH:
        return
    if target.placement != "fastest" and not target.may_fall_back:
        return  # the user wants all of it in INT8, whatever that costs in accuracy
    # Both start from the best candidate without fine-tuning, whose parameters can be reused.
    try_fallback(evaluator, best, split)
    try_smaller_placements(evaluator, best, search)


def try_stages(evaluator: Evaluator, search: SearchResult) -> None:
    """Each stage on the fastest placement, until one holds."""
    first, *others = STAGES
    evaluator.evaluate(first, search.best, first.name)
    for index, stage in enumerate(others, 1):
        if evaluator.best.verdict >= Verdict.HOLDS:
            return
        if evaluator.is_worth_trying(stage):
            evaluator.evaluate(stage, search.best, stage.name)
        evaluator.builder.cache.keep_only([evaluator.best.build.stage, *others[index:]])


def try_nearly_as_fast(evaluator: Evaluator, search: SearchResult) -> None:
    """The best stage on placements that are nearly as fast with fewer layers in INT8."""
    for timed in search.nearly_as_fast:
        best = evaluator.best
        if best.verdict >= Verdict.HOLDS:
            return
        stage = best.build.stage
        evaluator.evaluate(stage, timed, f"{stage.name}, {timed.placement.name}", best)


def try_zero_points(evaluator: Evaluator, best: BuiltCandidate) -> BuiltCandidate:
    """`best` with zero points, where it has none for the sake of latency, or `best` itself.

    The better of both; the builder goes on with its scheme.
    """
    builder = evaluator.builder
    scheme = builder.scheme
    if not scheme.signed_activations:
        return best
    builder.scheme = replace(scheme, signed_activations=False)
    stage = best.build.stage
    placement = best.timed.placement
    # Its latency is another one, so it has another name.
    named = replace(placement, name=f"{placement.name}, zero points")
    tried = evaluator.time_and_evaluate(stage, named, f"{stage.name}, zero points")
    if tried is not None and tried.rank > best.rank:
        return tried
    builder.scheme = scheme
    return best


def try_fallback(
    evaluator: Evaluator, best: BuiltCandidate, split: QuantizationSplit
) -> None:
    """`best` with a few layers out of INT8, until one is accurate enough."""
    if len(best.candidate.layers) <= 1:
        return  # without its only noisy layer nothing would be left in INT8
    builder = evaluator.builder
    placement = best.timed.placement
    stage = best.build.stage
    ranked = rank_layers(builder, evaluator.calibrator, best, split.selection)
    for count in FALLBACK_COUNTS:
        if count >= len(ranked) or evaluator.best.verdict >= Verdict.ENOUGH:
            return
        smaller = with_fallback(builder, placement, ranked[:count])
        label = f"{stage.name}, fallback {count}"
        evaluator.time_and_evaluate(stage, smaller, label, best)


def try_smaller_placements(
    evaluator: Evaluator, best: BuiltCandidate, search: SearchResult
) -> None:
    """The stage of `best` on placements with less in INT8, until one is accurate enough."""
    stage = best.build.stage
    space = evaluator.builder.space
    for placement in choose_smaller_placements(space, best.timed.placement, search):
        if evaluator.best.verdict >= Verdict.ENOUGH:
            return
        label = f"{stage.name}, {placement.name}"
        evaluator.time_and_evaluate(stage, placement, label, best)


def choose_smaller_placements(
    space: PlacementSpace, placement: Placement, search: SearchResult
) -> list[Placement]:
    """At most SMALLER_PLACEMENTS with less in INT8 than `placement` that were not tried yet.

    They are spread evenly down to the one with least in INT8, which is among them: even where the
    others lose as much as the first, the last one may not.
    """

    def size(candidate: Placement) -> tuple[int, int]:
        """Layers in INT8, then tensors with Q/DQ pairs."""
        return space.count(candidate), len(candidate.tensors)

    tried = {timed.placement for timed in search.nearly_as_fast}
    smaller = []
    for candidate in search.others:
        if candidate not in tried and size(candidate) < size(placement):
            smaller.append(candidate)
    smaller.sort(key=size)
    smaller.reverse()  # not sort(reverse=True): the later of two equal ones comes first
    if len(smaller) <= SMALLER_PLACEMENTS:
        return smaller
    # Without the first, which is the largest.
    positions = np.linspace(0, len(smaller) - 1, SMALLER_PLACEMENTS + 1)[1:]
    return [smaller[round(position)] for position in positions.tolist()]
