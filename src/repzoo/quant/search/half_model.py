"""The ladder of half precision: which operators compute in float16, and what that costs.

The images are those of the INT8 ladder: *calibration* measures ranges and sums, *selection*
compares candidates, *gate* judges the chosen one, once.

1. Everything that has a float16 form computes in it.
2. Operators whose values overflow on calibration images stay in float32.
3. So do those whose sums or weights lose too much (calibration/float16_analysis.py).
4. Where that is not accurate enough, the noisiest 1, 3, 8 and 20 others stay as well, until it is.

Candidates are compared in the arithmetic of hardware that computes in float16: ONNX Runtime runs a
float32 graph that rounds every value (graph/tools/half_precision.py). A CPU that computes float16
by casts would hide an overflow. For the same reason 2 and 3 are never given up, however accurate 1
looks: not all hardware accumulates in float16, but the file does not know where it will run.

The gate judges the chosen model in that arithmetic, and the file itself on the engine. The worse of
the two decides.

bfloat16 has the range of float32, and its hardware accumulates in float32. So steps 2 and 3 have
nothing to do there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.dataset import Dataset, QuantizationSplit
from repzoo.engines import DEFAULT_ENGINE, Engine, arithmetic, engine
from repzoo.errors import InputError, NotFinite
from repzoo.graph.tools.half_precision import (
    BFLOAT16,
    FLOAT16,
    Half,
    HalfPlan,
    name_of,
    plan_half,
    write_half,
    write_rounded,
)
from repzoo.measure.expected_drop import Margins
from repzoo.measure.predictions import ModelPredictions
from repzoo.measure.race_result import ALONE, Load
from repzoo.measure.record import Record
from repzoo.measure.results import HalfSummary, LatencyRatio, PairedAccuracy
from repzoo.progress import Progress, silent
from repzoo.quant.calibration.float16_analysis import (
    Float16Analysis,
    Float16Observers,
    KeptOperator,
    names_of,
)
from repzoo.quant.parameters import qdq_writer
from repzoo.quant.search.calibrator import Calibrator, ImageReader
from repzoo.quant.search.candidate import Candidate, CandidateModel
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.evaluator import free_memory
from repzoo.quant.search.gate import (
    Gate,
    QuantReport,
    ReportContext,
    require_folded,
)
from repzoo.quant.search.ladder import describe_images
from repzoo.quant.search.verdict import Budget, Verdict
from repzoo.remark import Remark

TYPES = {"fp16": FLOAT16, "bf16": BFLOAT16}
KEPT_FOR_ACCURACY = (1, 3, 8, 20)  # of the noisiest operators, one candidate each
# Latency over float's from which on half precision wins nothing worth naming.
NO_GAIN = 0.95
BFLOAT16_OPSET = 22  # the first with Conv and pooling in bfloat16


@dataclass(frozen=True)
class Measured:
    """The calibration pass: what float16 does to each operator.

    model     the float graph that was observed
    analysis  of its operators
    images    those that could be read
    margins   the float model's, on these images
    remarks   on images that could not be read
    """

    model: onnx.ModelProto
    analysis: Float16Analysis
    images: Dataset
    margins: Margins
    remarks: list[str]


@dataclass(frozen=True)
class Float16Prediction:
    """What to expect of hardware that casts a whole float model to float16 by itself.

    analysis  which operators overflow or lose too much
    paired    all of it in float16 against float, on the images of the gate; None where its outputs
              are not finite. Sums are taken to be accumulated in float32: `analysis` names those
              that lose where they are not.
    """

    analysis: Float16Analysis
    paired: PairedAccuracy | None


def measure(
    artifact: Artifact,
    images: Dataset,
    runner: Engine,
    progress: Progress = silent,
    half: Half = FLOAT16,
) -> Measured:
    """Run calibration `images` through the folded float `artifact`, to convert it to `half`.

    Raises:
        InputError: no image can be read, or activations are not finite.
    """
    model = qdq_writer.prepare_for_qdq(artifact.model)
    if half is BFLOAT16:
        model = qdq_writer.upgrade_opset(model, BFLOAT16_OPSET)
    observers = Float16Observers(model)
    if not observers.plan.inputs:
        raise InputError(
            f"{artifact.name} has no float32 operator with a half-precision form, so there is "
            "nothing to convert"
        )
    reader = ImageReader(artifact, images)
    calibrator = Calibrator(artifact, runner, progress)
    margins = calibrator.run_observers(model, observers.all(), reader)
    reader.report.check(images.name, len(images))
    free_memory()
    return Measured(
        model,
        observers.analyze(),
        images.subset(reader.indices),
        margins,
        reader.report.sentences(),
    )


def predict_float16(
    artifact: Artifact,
    split: QuantizationSplit,
    progress: Progress = silent,
    known: ModelPredictions | None = None,
) -> Float16Prediction:
    """Which operators of the folded float `artifact` overflow in float16, and the drop of it all.

    Vendors' compilers cast to float16 by themselves, without a look at ranges.

    known  predictions of `artifact` on images among which are those of the gate

    Raises:
        InputError: not a folded float model, or images that cannot be used.
    """
    require_folded(artifact)
    runner = engine(DEFAULT_ENGINE)
    measured = measure(artifact, split.calibration, runner, progress)
    comparison = FloatComparison(artifact, split.gate, runner, progress)
    if known is not None:
        comparison.know_float(known)
    comparison.add_margins(measured.images, measured.margins)
    rounded = write_rounded(measured.model, plan_half(measured.model))
    paired = _compare(comparison, _unfinished(artifact, rounded))
    return Float16Prediction(measured.analysis, paired.values if paired else None)


@dataclass(frozen=True)
class HalfCandidate(CandidateModel):
    """A measured candidate.

    kept     its operators in float32
    plan     the others
    rounded  the float32 graph that rounds as its hardware does
    """

    kept: tuple[KeptOperator, ...]
    plan: HalfPlan
    rounded: Artifact


def quantize(
    artifact: Artifact,
    split: QuantizationSplit,
    runner: Engine,
    precision: str,
    budget: Budget,
    progress: Progress = silent,
    load: Load = ALONE,
) -> tuple[Artifact, QuantReport]:
    """The folded float `artifact` in half precision, with the report.

    precision  fp16 or bf16
    load       how sessions are used while they are timed

    Raises:
        InputError: not a folded float model, images that cannot be used, or an engine that cannot
            run the result.
        GateError: the drop is proven above the budget.
    """
    require_folded(artifact)
    half = TYPES[precision]
    if half is BFLOAT16:
        _require_bfloat16(runner)
    started = time.perf_counter()
    comparison = FloatComparison(artifact, split.gate, runner, progress)
    gate = Gate(comparison, budget, precision.upper(), load)
    measured = measure(artifact, split.calibration, runner, progress, half)
    calibrated = time.perf_counter()
    ladder = _Ladder(gate, split, measured, half)
    best = ladder.climb()
    climbed = time.perf_counter()
    best = ladder.time(best)
    on_engine = gate.comparison.compare(best.artifact)
    in_arithmetic = ladder.gate_comparison().compare(best.rounded)
    phases = {
        "calibrate": round(calibrated - started, 2),
        "place": round(climbed - calibrated, 2),
        "gate": round(time.perf_counter() - climbed, 2),
    }
    summary = _summarize(precision, measured, best, in_arithmetic, on_engine)
    remarks = [*arithmetic.remarks([runner]), *measured.remarks, *ladder.remarks]
    remarks += _remarks(summary, best.candidate.ratio, runner.name)
    settings = _step_settings(summary, len(measured.images), budget)
    images = describe_images(split)
    context = ReportContext(settings, images, budget, remarks, started, phases=phases)
    paired = _worse(budget, in_arithmetic, on_engine)
    converted, report = gate.conclude(best, ladder.candidates, paired, context)
    return converted, report.with_values(half=summary)


def _require_bfloat16(runner: Engine) -> None:
    """Refuse an engine, or a host, without bfloat16 arithmetic.

    Raises:
        InputError: it has none.
    """
    computes_bfloat16 = getattr(runner, "computes_bfloat16", None)
    if computes_bfloat16 is None or not computes_bfloat16():
        raise InputError(
            f"{runner.name} has no bfloat16 arithmetic on this host; it takes --engine openvino "
            "and a processor with AVX512_BF16 or AMX; use --precision fp16"
        )


def _step_settings(summary: HalfSummary, images: int, budget: Budget) -> dict[str, Any]:
    """What the model's history says of how it was converted."""
    return {
        "precision": summary.precision,
        "float32": list(summary.kept),
        "calibration_images": images,
        **asdict(budget),
    }


class _Ladder:
    """Builds and compares candidates, and keeps the best one."""

    def __init__(
        self, gate: Gate, split: QuantizationSplit, measured: Measured, half: Half
    ) -> None:
        self.gate = gate
        self.measured = measured
        self.half = half
        everything = plan_half(measured.model, half=half)
        self.operators = len(everything.inputs) + len(everything.unsupported)
        self.candidates: list[Candidate] = []
        self.remarks: list[str] = []
        self.rounding_engine = engine(DEFAULT_ENGINE)
        self.comparison = FloatComparison(
            gate.artifact, split.selection, self.rounding_engine, gate.progress
        )
        self.comparison.add_margins(measured.images, measured.margins)

    def climb(self) -> HalfCandidate:
        """The candidate to judge."""
        analysis = self.measured.analysis
        unsupported = analysis.because("unsupported")
        if self.half is not FLOAT16:
            return self._require(self._try(f"all in {self.half.name}", unsupported))
        overflow = analysis.because("unsupported", "overflow")
        steps = {
            "all in float16": unsupported,
            "overflow in float32": overflow,
            "lossy sums in float32": analysis.kept,
        }
        best: HalfCandidate | None = None
        # Where nothing overflows, two steps are the same graph.
        tried: set[frozenset[str]] = set()
        for label, kept in steps.items():
            if names_of(kept) not in tried:
                tried.add(names_of(kept))
                best = self._try(label, kept)
        return self._keep_more(self._require(best))

    def _keep_more(self, best: HalfCandidate) -> HalfCandidate:
        """`best` with more operators in float32, until it is accurate enough."""
        analysis = self.measured.analysis
        operators = {name_of(node): node for node in self.measured.model.graph.node}
        for count in KEPT_FOR_ACCURACY:
            is_enough = best.candidate.verdict >= Verdict.ENOUGH
            if is_enough or count >= len(analysis.ranked):
                return best
            more = []
            for name in analysis.ranked[:count]:
                reason = Remark("the model loses too much while it is in float16")
                kind = operators[name].op_type
                more.append(KeptOperator(name, kind, "accuracy", reason))
            label = f"{count} noisy operators in float32"
            # More in float32 costs time on the hardware, so only a better model is taken.
            candidate = self._try(label, (*analysis.kept, *more))
            if candidate is not None and candidate.rank > best.rank:
                best = candidate
        return best

    def _try(self, label: str, kept: Sequence[KeptOperator]) -> HalfCandidate | None:
        """The measured candidate with `kept` in float32; None if its outputs are not finite."""
        started = time.perf_counter()
        model = self.measured.model
        plan = plan_half(model, names_of(kept), self.half)
        rounded = _unfinished(self.gate.artifact, write_rounded(model, plan))
        paired = _compare(self.comparison, rounded)
        if paired is None:
            self.remarks.append(
                Remark("{stage}: its outputs are not finite", stage=label)
            )
            return None
        placement = (
            f"{len(plan.inputs)} of {self.operators} operators in {self.half.name}"
        )
        candidate = self.gate.judge(label, placement, paired.values, None, started)
        self.candidates.append(candidate)
        free_memory()
        artifact = _unfinished(self.gate.artifact, write_half(model, plan))
        return HalfCandidate(artifact, candidate, tuple(kept), plan, rounded)

    def time(self, best: HalfCandidate) -> HalfCandidate:
        """`best` with the latency of its file over the float model's, on the engine."""
        ratio = self.gate.time_once(best.artifact)
        timed = replace(best.candidate, ratio=ratio)
        self.candidates[self.candidates.index(best.candidate)] = timed
        return replace(best, candidate=timed)

    def _require(self, candidate: HalfCandidate | None) -> HalfCandidate:
        if candidate is None:
            raise InputError(
                f"{self.gate.artifact.name} overflows in {self.half.name} on images that "
                "calibration did not see; give more of them with --images"
            )
        return candidate

    def gate_comparison(self) -> FloatComparison:
        """What compares the arithmetic of a candidate on the gate images."""
        if self.gate.engine.name == self.rounding_engine.name:
            return self.gate.comparison
        images = self.gate.comparison.images
        return FloatComparison(
            self.gate.artifact, images, self.rounding_engine, self.gate.progress
        )


def _unfinished(artifact: Artifact, model: onnx.ModelProto) -> Artifact:
    """`artifact` with another graph, to be measured."""
    return artifact.then(model, Step("quantize", __version__))


def _compare(
    comparison: FloatComparison, artifact: Artifact
) -> Record[PairedAccuracy] | None:
    """`artifact` against the float model; None where its outputs are not finite."""
    try:
        return comparison.compare(artifact)
    except NotFinite:
        return None


def _worse(
    budget: Budget, first: Record[PairedAccuracy], second: Record[PairedAccuracy]
) -> Record[PairedAccuracy]:
    """The comparison with the worse verdict; of equal ones, that with more changed predictions."""

    def quality(record: Record[PairedAccuracy]) -> tuple[int, float]:
        return budget.judge(record.values), record.values.same_prediction

    return min(first, second, key=quality)


def _summarize(
    precision: str,
    measured: Measured,
    best: HalfCandidate,
    in_arithmetic: Record[PairedAccuracy],
    on_engine: Record[PairedAccuracy],
) -> HalfSummary:
    weights = measured.analysis.weights
    return HalfSummary(
        precision=precision,
        operators=len(best.plan.inputs),
        kept=tuple(item.to_json() for item in best.kept),
        weights=weights.weights,
        subnormal=weights.subnormal,
        zeroed=weights.zeroed,
        in_arithmetic=in_arithmetic.values,
        on_engine=on_engine.values,
    )


def _remarks(
    summary: HalfSummary, ratio: LatencyRatio | None, engine_name: str
) -> list[str]:
    """What to know of a file in half precision besides its accuracy."""
    remarks: list[str] = []
    if summary.zeroed and summary.precision == "fp16":
        remarks.append(
            Remark(
                "{zeroed} of {weights} weights become 0 in float16, and {subnormal} are below "
                "6e-5, where it has fewer digits and some hardware has 0",
                zeroed=summary.zeroed,
                weights=summary.weights,
                subnormal=summary.subnormal,
            )
        )
    if ratio is not None and ratio.ratio_high > NO_GAIN:
        remarks.append(
            Remark(
                "on {engine} and this host {precision} was not measured to gain time (latency "
                "{ratio:.2f} of float's): it makes the file smaller, and is for hardware that "
                "computes in it",
                precision=summary.precision.upper(),
                ratio=ratio.ratio,
                engine=engine_name,
            )
        )
    return remarks
