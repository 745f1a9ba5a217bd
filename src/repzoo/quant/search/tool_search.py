"""Chooses weights for a target's own tool, as that tool will run them.

A tool chooses one method of calibration for the whole model (`QuantScheme.searched_ranges`), not a
range for each activation as the ladder does. So each stage is simulated with every method, the one
with the least error of the logits stands for the tool's choice, and stages are compared under it.
All operators that the scheme lists are quantized in the simulation.

A simulation is not the tool itself. A stage therefore has to win by MIN_GAIN_DB over those before
it, and rounding to nearest, what the tool does by itself, comes first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx
from threadpoolctl import threadpool_limits

from repzoo import __version__
from repzoo.artifact import Step
from repzoo.data.batches import map_in_order
from repzoo.data.dataset import Dataset
from repzoo.quant.network.placement import Placement
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters import sqnr
from repzoo.quant.parameters.activation_ranges import RangeChooser
from repzoo.quant.parameters.compute import Corrections, QuantizationPlan
from repzoo.quant.parameters.scales import ActivationParameters
from repzoo.quant.rewrites.stages import STAGES, FloatModel, Stage
from repzoo.quant.search.builder import Build
from repzoo.quant.search.candidate import Candidate
from repzoo.quant.search.evaluator import BuiltCandidate, Evaluator, free_memory
from repzoo.quant.search.fallback import RANKED_LAYERS, with_fallback
from repzoo.quant.search.on_grid import OnGrid, put_on_grid
from repzoo.quant.search.placement_search import TimedPlacement
from repzoo.quant.search.verdict import Verdict

Outputs = npt.NDArray[np.float32]  # logits [n, classes]
AS_IT_IS = "as it is"
NEAREST = Stage("nearest", Corrections(gptq=False, bias=False))
# The ladder's stages on the grid, whose ranges the tool chooses. The ladder's first differs from
# NEAREST in biases only.
GRID_STAGES = (
    NEAREST,
    *(stage for stage in STAGES[1:] if stage.corrections.range_method == "auto"),
)
# Gain of a stage on the logits that a simulation can be trusted with.
MIN_GAIN_DB = 0.5
# A layer whose input, in more bits, gains this much adds half of all noise.
DOMINANT_DB = 3.0
FALLBACK_COUNTS = (1, 2, 3, 5, 8)  # layers out of INT8, one candidate each
# How ranges of activations are chosen where the tool takes scales: any range can be written.
OWN_RANGES = "mse"
SAMPLED_IMAGES = 32  # calibration images on which ranges and layers are compared
# Images in a call of the engine. The activations of more leave the processor's cache: RepGhost 1.0x
# with Q/DQ pairs takes 14 ms an image with 4, 16 with 8 and 23 with 16 (32 MB of cache).
SIMULATED_BATCH = 4


@dataclass(frozen=True)
class FallbackLayer:
    """A layer that the target should keep out of INT8.

    Attributes:
        layer: its name (its output).
        node: the name of its node in the file.
        precision: what it falls back to: float or int16.
        gain_db: of the logits' SQNR, if it alone falls back.
    """

    layer: str
    node: str
    precision: str
    gain_db: float

    def with_node(self, node: str) -> FallbackLayer:
        """The same layer as a node of this name."""
        return replace(self, node=node)


@dataclass(frozen=True)
class ToolChoice:
    """Weights with the ranges that the tool is expected to choose.

    Attributes:
        on_grid: the weights.
        method: how the tool chooses ranges.
        fallback: layers out of INT8, most gain first.
        built: the simulated model, measured on the selection images.
        first_image: key of the calibration image on which `method` wins most clearly.
        as_it_is: the written file keeps the weights of the folded model, and the tool rounds them.
    """

    on_grid: OnGrid
    method: str
    fallback: tuple[FallbackLayer, ...]
    built: BuiltCandidate
    first_image: str = ""
    as_it_is: bool = False

    @property
    def stage_name(self) -> str:
        """Of the weights in the written file."""
        return AS_IT_IS if self.as_it_is else self.on_grid.stage.name

    @property
    def snr_db(self) -> float:
        """Of the logits, on the selection images."""
        return self.built.candidate.paired.logits_snr_db or 0.0

    def own_scales(self, scheme: QuantScheme) -> Mapping[str, ActivationParameters]:
        """Scales of activations for a tool that takes them: each chosen on its own."""
        placement = self.built.timed.placement
        return self.on_grid.plan(placement, OWN_RANGES, scheme).activations


@dataclass(frozen=True)
class PlannedStage:
    """A stage before it is measured.

    Attributes:
        on_grid: its weights.
        plans: with the ranges of each method that the tool may choose.
        seconds: that it took.
    """

    on_grid: OnGrid
    plans: Mapping[str, QuantizationPlan]
    seconds: float


Pick = Callable[[Sequence[ToolChoice]], ToolChoice]
# Whether a stage's rewrites change anything; made in the background.
Changing = dict[Stage, Future[bool]]


class ToolSearch:
    """Tries stages and fallbacks in a target's arithmetic.

    candidates  the measurements of all, in the order in which they were tried
    """

    def __init__(self, evaluator: Evaluator, calibration: Dataset) -> None:
        self._evaluator = evaluator
        self._builder = evaluator.builder
        self._scheme = evaluator.builder.scheme
        self._placement = evaluator.builder.space.starting_placements()[0]
        self.candidates: list[Candidate] = []
        self._ranges: RangeChooser | None = None
        count = min(SAMPLED_IMAGES, len(calibration))
        # Those of calibration: it is on them that a tool compares methods.
        sample = calibration.subset(calibration.balanced_sample(count, 0))
        original = evaluator.builder.cache.original.model
        calibrator = evaluator.calibrator
        self._inputs = calibrator.prepare_sample(
            "choose ranges", sample, original, self._placement.tensors, SIMULATED_BATCH
        )
        self._keys = sample.keys
        artifact = evaluator.builder.artifact
        self._outputs = calibrator.run(artifact.model, self._inputs)

    def choose(self, pick: Pick | None = None) -> ToolChoice:
        """The best stage, with layers out of INT8 where that is worth it.

        pick  chooses among all stages; None: the simulation does
        """
        choices: list[ToolChoice] = []
        # Weights are rounded by one core, those of the next stage while this one is measured on
        # all cores: more threads of BLAS would wait for these.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(1) as pool:
            # Rewrites take longest, and need nothing of the stages before.
            changing: Changing = {}
            for stage in GRID_STAGES:
                if stage.rewrites:
                    changing[stage] = pool.submit(
                        self._evaluator.is_worth_trying, stage
                    )
            plan = partial(self._plan_stage, changing)
            for planned in map_in_order(plan, GRID_STAGES, 1):
                if planned is not None:
                    choices.append(self._try_stage(planned))
                if pick is None:
                    choices = [_best_simulated(choices)]
        self._builder.cache.keep_only(())
        best = pick(choices) if pick else choices[0]
        return self._fall_back(best)

    def _plan_stage(self, changing: Changing, stage: Stage) -> PlannedStage | None:
        """`stage` on the grid; None where it would change nothing."""
        if stage in changing and not changing[stage].result():
            return None
        started = time.perf_counter()
        float_model = self._builder.cache.get(stage)
        on_grid = put_on_grid(
            stage,
            float_model,
            self._placement,
            self._scheme,
            self._range_chooser(float_model),
        )
        free_memory()
        plans: dict[str, QuantizationPlan] = {}
        for method in self._scheme.searched_ranges or (self._scheme.ranges,):
            plans[method] = on_grid.plan(self._placement, method, self._scheme)
        return PlannedStage(on_grid, plans, time.perf_counter() - started)

    def _range_chooser(self, float_model: FloatModel) -> RangeChooser:
        """That of the last stage, where its float model was the same one."""
        if self._ranges is None or self._ranges.model is not float_model.model:
            self._ranges = RangeChooser(
                float_model.model, float_model.statistics, self._scheme
            )
        return self._ranges

    def _try_stage(self, planned: PlannedStage) -> ToolChoice:
        """A stage with the ranges of the least error, measured."""
        started = time.perf_counter() - planned.seconds
        on_grid, plans = planned.on_grid, planned.plans
        outputs: dict[str, Outputs] = {}
        best = next(iter(plans))
        if len(plans) > 1:
            outputs = self._compare_ranges(on_grid, plans)
            best = min(outputs, key=lambda name: self._error(outputs[name]))
        label = f"{on_grid.stage.name}, {best}"
        built = self._measure(on_grid, plans[best], self._placement, label, started)
        return ToolChoice(on_grid, best, (), built, self._first_image(best, outputs))

    def _compare_ranges(
        self, on_grid: OnGrid, plans: Mapping[str, QuantizationPlan]
    ) -> dict[str, Outputs]:
        """The logits on the sample with each of `plans`, by the names of their methods."""
        simulate = partial(self._simulate, on_grid, placement=self._placement)
        models = map(simulate, plans.values())
        outputs: dict[str, Outputs] = {}
        runs = self._evaluator.calibrator.run_each(models, self._inputs)
        for method, logits in zip(plans, runs, strict=True):
            outputs[method] = logits
            free_memory()
        return outputs

    def _first_image(self, best: str, outputs: Mapping[str, Outputs]) -> str:
        """The key of the image on which the outputs of `best` beat those of the others most."""
        others = [name for name in outputs if name != best]
        # an image that cannot be read has no outputs
        if not others or len(self._outputs) != len(self._keys):
            return ""
        own = cosines(outputs[best], self._outputs)
        rivals = [cosines(outputs[name], self._outputs) for name in others]
        lead = own - np.max(rivals, axis=0)
        return self._keys[int(np.argmax(lead))]

    def _simulate(
        self, on_grid: OnGrid, plan: QuantizationPlan, placement: Placement
    ) -> onnx.ModelProto:
        return on_grid.simulate(plan, placement, self._scheme)

    def _run(self, model: onnx.ModelProto) -> Outputs:
        """The logits of `model` on the sample."""
        outputs = self._evaluator.calibrator.run(model, self._inputs)
        free_memory()
        return outputs

    def _error(self, outputs: Outputs) -> float:
        """Mean squared error of logits on the sample."""
        return float(np.square(outputs - self._outputs).mean())

    def _measure(
        self,
        on_grid: OnGrid,
        plan: QuantizationPlan,
        placement: Placement,
        label: str,
        started: float,
    ) -> BuiltCandidate:
        """Measure the simulated model on the selection images; `started` is perf_counter()."""
        model = self._simulate(on_grid, plan, placement)
        artifact = self._builder.artifact.then(model, Step("harden", __version__))
        paired = self._evaluator.comparison.compare(artifact)
        gate = self._evaluator.gate
        candidate = gate.judge(label, placement.name, paired.values, None, started)
        noise = sqnr.layer_sqnr(plan, on_grid.float_model.statistics)
        candidate = replace(candidate, layers=tuple(noise))
        self.candidates.append(candidate)
        free_memory()
        same = f"{paired.values.same_prediction:.1f} % of the predictions unchanged"
        gate.progress(f"{label}: {same}, {candidate.seconds:.1f} s", 1, 1)
        build = Build(artifact, on_grid.stage, plan, self._scheme)
        return BuiltCandidate(
            artifact, candidate, build, TimedPlacement(placement, None)
        )

    def _fall_back(self, best: ToolChoice) -> ToolChoice:
        """`best` with the fewest layers out of INT8 that are enough; itself where none is needed.

        Where not even the most are enough, with the most, if they gain anything.
        """
        verdict = best.built.verdict
        if verdict >= Verdict.HOLDS:
            return best
        ranked = self._rank(best)
        if not ranked:
            return best
        if verdict >= Verdict.ENOUGH and ranked[0].gain_db < DOMINANT_DB:
            return best
        choice = best
        for count in FALLBACK_COUNTS:
            # without its only noisy layers nothing would be left in INT8
            if count > len(ranked):
                break
            choice = self._without(best, ranked[:count])
            if choice.built.verdict >= Verdict.ENOUGH:
                return choice
        return choice if choice.snr_db > best.snr_db + MIN_GAIN_DB else best

    def _rank(self, best: ToolChoice) -> list[FallbackLayer]:
        """The noisiest layers of `best`, those first that gain most by leaving INT8 alone."""
        on_grid_layers = {layer.layer for layer in best.on_grid.layers}
        noisiest: list[str] = []
        for noisy in best.built.candidate.layers:
            if noisy.layer in on_grid_layers:
                noisiest.append(noisy.layer)
        if len(noisiest) < 2:
            return []
        before = self._error(self._run(best.built.artifact.model))
        ranked: list[FallbackLayer] = []
        for name in noisiest[:RANKED_LAYERS]:
            placement = with_fallback(self._builder, self._placement, [name])
            plan = best.on_grid.plan(placement, best.method, self._scheme)
            model = self._simulate(best.on_grid, plan, placement)
            error = self._error(self._run(model))
            gain = 10 * np.log10(max(before, 1e-30) / max(error, 1e-30))
            layer = FallbackLayer(name, "", self._scheme.escape, round(float(gain), 1))
            ranked.append(layer)
        ranked.sort(key=lambda layer: -layer.gain_db)
        return [layer for layer in ranked if layer.gain_db > 0]

    def _without(self, best: ToolChoice, layers: Sequence[FallbackLayer]) -> ToolChoice:
        """`best` with `layers` out of INT8, measured."""
        started = time.perf_counter()
        names = [layer.layer for layer in layers]
        placement = with_fallback(self._builder, self._placement, names)
        plan = best.on_grid.plan(placement, best.method, self._scheme)
        label = f"{best.built.candidate.stage}, {len(names)} in {self._scheme.escape}"
        built = self._measure(best.on_grid, plan, placement, label, started)
        return replace(best, fallback=tuple(layers), built=built)


def _best_simulated(choices: Sequence[ToolChoice]) -> ToolChoice:
    best = choices[0]
    for choice in choices[1:]:
        if choice.snr_db >= best.snr_db + MIN_GAIN_DB:
            best = choice
    return best


def cosines(first: Outputs, second: Outputs) -> npt.NDArray[np.float64]:
    """The cosine similarity of each row, by which tools compare methods."""
    a = first.astype(np.float64)
    b = second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(lengths, 1e-30))
