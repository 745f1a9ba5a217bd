"""Measures candidates against float on the selection images, and keeps the best one.

It frees memory in between. Models and sessions come and go with every candidate, and the allocator
keeps their pages: together these would take more than the calibration statistics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from repzoo.artifact import Artifact
from repzoo.data.dataset import Dataset
from repzoo.errors import InputError
from repzoo.graph.tools.pieces import trim_heap
from repzoo.measure.record import Record
from repzoo.measure.results import PairedAccuracy
from repzoo.quant.network import layers
from repzoo.quant.network.placement import Placement
from repzoo.quant.parameters import sqnr
from repzoo.quant.parameters.sqnr import LayerSqnr
from repzoo.quant.rewrites.stages import Stage
from repzoo.quant.search.builder import Build, Builder
from repzoo.quant.search.calibrator import Calibrator
from repzoo.quant.search.candidate import Candidate, CandidateModel
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.gate import Gate
from repzoo.quant.search.placement_search import TimedPlacement
from repzoo.quant.search.verdict import Verdict

# Takes a candidate, its model, and the Record of its comparison with float.
Keep = Callable[[Candidate, Artifact, Record[PairedAccuracy]], None]
DIAGNOSED_IMAGES = 64  # gate images on which the noise of a refused model is measured


@dataclass(frozen=True)
class BuiltCandidate(CandidateModel):
    """A measured model of the ladder, with what it was built from: others can be built from it."""

    build: Build
    timed: TimedPlacement

    @property
    def verdict(self) -> Verdict:
        """The verdict on the selection images."""
        return self.candidate.verdict


class Evaluator:
    """Builds and measures candidates one after another.

    candidates  the measurements of all, in the order in which they were tried
    best        the best so far, with its model. The models of all others are let go at once.
    keep        called with every candidate and its model, before that is let go; None: nothing is
    """

    def __init__(
        self,
        gate: Gate,
        comparison: FloatComparison,
        builder: Builder,
        calibrator: Calibrator,
    ) -> None:
        self.gate = gate
        self.comparison = comparison
        self.builder = builder
        self.calibrator = calibrator
        self.candidates: list[Candidate] = []
        self.keep: Keep | None = None
        self._best: BuiltCandidate | None = None

    @property
    def best(self) -> BuiltCandidate:
        """The best candidate so far; of equals the first, which was cheaper to make."""
        assert self._best is not None
        return self._best

    def is_worth_trying(self, stage: Stage) -> bool:
        """Whether `stage` rewrites anything in this model, and the scheme has its ranges."""
        method = stage.corrections.range_method
        if method not in ("auto", *self.builder.scheme.range_methods):
            return False
        changes = self.builder.cache.changes(stage)
        free_memory()
        return changes

    def evaluate(
        self,
        stage: Stage,
        timed: TimedPlacement,
        label: str,
        origin: BuiltCandidate | None = None,
    ) -> BuiltCandidate:
        """Build and measure `stage` on a placement whose latency is known.

        label   for the report
        origin  a candidate of the same stage, whose parameters are reused
        """
        started = time.perf_counter()
        build = self._build(stage, timed.placement, origin)
        return self._measure(build, timed, label, started)

    def time_and_evaluate(
        self,
        stage: Stage,
        placement: Placement,
        label: str,
        origin: BuiltCandidate | None = None,
    ) -> BuiltCandidate | None:
        """As `evaluate`, on a placement whose latency is not known yet.

        None where the engine refuses it. It is not timed where only a board runs it.
        """
        started = time.perf_counter()
        build = self._build(stage, placement, origin)
        ratio = None
        if not self.builder.scheme.runs_on_board:
            seconds = self.gate.candidate_seconds
            (timed,) = self.gate.try_against_float([build.artifact], seconds)
            if isinstance(timed, InputError):
                return None
            ratio = timed
        return self._measure(build, TimedPlacement(placement, ratio), label, started)

    def finetune(
        self, origin: BuiltCandidate, epochs: int, images: Dataset
    ) -> BuiltCandidate:
        """`origin` after distillation from the float model on `images`, measured."""
        started = time.perf_counter()
        placement = origin.timed.placement
        build = self.builder.finetune(
            origin.build, placement, epochs, images, self.calibrator
        )
        label = f"{origin.build.stage.name}, {epochs} epochs of fine-tuning"
        return self._measure(build, origin.timed, label, started)

    def diagnose(
        self, candidate: BuiltCandidate, images: Dataset
    ) -> tuple[LayerSqnr, ...]:
        """The SQNR of each layer of `candidate` on a few of `images`, noisiest first."""
        float_model = self.builder.cache.get(candidate.build.stage)
        sample = images.subset(images.balanced_sample(DIAGNOSED_IMAGES, 0))
        observed = []
        for name, layer in layers.find_layers(float_model.model).items():
            if name in float_model.statistics.moments:
                observed.append(layer)
        tensors = list(candidate.build.plan.activations)
        free_memory()
        statistics = self.calibrator.observe_again(
            float_model.model, tensors, observed, sample
        )
        free_memory()
        return tuple(sqnr.layer_sqnr(candidate.build.plan, statistics))

    def _build(
        self, stage: Stage, placement: Placement, origin: BuiltCandidate | None
    ) -> Build:
        if origin is None:
            build = self.builder.build(stage, placement)
        else:
            build = self.builder.build_from(origin.build, placement)
        free_memory()
        return build

    def _measure(
        self, build: Build, timed: TimedPlacement, label: str, started: float
    ) -> BuiltCandidate:
        """Measure `build`, and keep it if it is the best. `started` is time.perf_counter()."""
        statistics = self.builder.cache.get(build.stage).statistics
        noise = tuple(sqnr.layer_sqnr(build.plan, statistics))
        free_memory()
        paired = self.comparison.compare(build.artifact)
        candidate = self.gate.judge(
            label, timed.placement.name, paired.values, timed.ratio, started
        )
        candidate = replace(candidate, layers=noise)
        same = f"{candidate.paired.same_prediction:.1f} % of the predictions unchanged"
        line = f"{label}: {same}, {candidate.seconds:.1f} s"
        self.gate.progress(line, 1, 1)
        free_memory()
        if self.keep is not None:
            self.keep(candidate, build.artifact, paired)
        built = BuiltCandidate(build.artifact, candidate, build, timed)
        # Only the measurements of a candidate are kept, unless it is the best: its model, plan and
        # weights would add up over a dozen candidates.
        self.candidates.append(candidate)
        if self._best is None or built.rank > self._best.rank:
            self._best = built
        return built


def free_memory() -> None:
    """Return the memory of models and sessions that are no longer used to the system."""
    trim_heap()
