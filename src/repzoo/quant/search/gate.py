"""The gate: measures the chosen quantized model once more, on images that nothing was chosen by.

Two sets of images decide, and neither sets a range. On the *selection* images candidates are
compared with the float model, and one is chosen. On the *gate* images the chosen one is measured
once, and that measurement is final. Nothing was chosen by these images, so other images of the
same kind will show a drop about as large.

A model is refused when its drop on the gate images is proven above the budget. A drop that lies
above the budget but is not proven passes with a warning. verdict.py has the rules.

Models of other quantizers (quant/baselines) go through the same gate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.batches import map_in_order
from repzoo.engines import Engine, arithmetic
from repzoo.errors import GateError, InputError
from repzoo.measure import latency
from repzoo.measure.race_result import ALONE, Load
from repzoo.measure.record import Record, full_identity_of, share_of
from repzoo.measure.results import (
    LatencyRatio,
    PairedAccuracy,
    PlacementTrial,
    QuantizeSummary,
)
from repzoo.measure.sentences import gate_sentence
from repzoo.printable import signed
from repzoo.progress import Progress
from repzoo.quant.parameters import sqnr
from repzoo.quant.parameters.sqnr import LayerSqnr
from repzoo.quant.search import messages
from repzoo.quant.search.candidate import Candidate, CandidateModel
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.verdict import Budget, Verdict
from repzoo.summary import Summarized, Summary, Table

BENCH_SECONDS = 1.0  # of timing for a model that is timed once
SHOWN_LAYERS = 5  # of the noisiest, in a report that is printed
SHOWN_CHANNELS = 3


@dataclass(frozen=True)
class ReportContext:
    """What a report says besides its measurements.

    settings  of the step that is written into the model's history
    data      names and counts of the images
    budget    what the model may lose
    remarks   on the images and on what could not be tried
    started   time.perf_counter() when the work began
    trials    moves that the placement search timed; None where there was no search
    phases    seconds that calibration, placement search and gate took, where there are these
    """

    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    budget: Budget
    remarks: Sequence[str]
    started: float
    trials: tuple[PlacementTrial, ...] | None = None
    phases: Mapping[str, float] | None = None


@dataclass(frozen=True)
class QuantReport(Summarized):
    """What was tried, what was chosen, and what the gate says of it.

    chosen      the candidate that was written, as measured on the selection images
    candidates  all that were measured, in the order in which they were tried
    paired      the Record of the chosen model against float on the gate images
    verdict     the gate's verdict, from `paired`
    record      the Record of the whole quantization
    warnings    sentences for the user
    int8        the INT8 model that all of this is about, where a race handed out float instead
    int8_warnings  sentences on that model; `warnings` are on what is written
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    paired: Record[PairedAccuracy]
    verdict: Verdict
    record: Record[QuantizeSummary]
    warnings: tuple[str, ...] = ()
    int8: Artifact | None = None
    int8_warnings: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether the gate let the model pass without force."""
        return self.verdict.passes

    def with_values(self, **changes: Any) -> QuantReport:
        """This report with other values in its Record."""
        values = replace(self.record.values, **changes)
        return replace(self, record=replace(self.record, values=values))

    @property
    def engine_name(self) -> str:
        """The engine that the written model is for."""
        race = self.record.values.race
        return race.chosen.engine if race else str(self.record.engine["name"])

    @property
    def precision(self) -> str:
        """The number format as people write it: INT8, FP16 or BF16."""
        half = self.record.values.half
        return half.precision.upper() if half else "INT8"

    def _summary(self) -> Summary:
        """The candidates and the noisiest layers; then accuracy, what is in INT8, and notes."""
        tables = [self._candidate_table()]
        rows = []
        # Where nothing is wrong no layer is to blame, and the list would mislead.
        shown = () if self.verdict is Verdict.HOLDS else self.chosen.layers
        for layer in shown[:SHOWN_LAYERS]:
            channels = ", ".join(map(str, layer.channels[:SHOWN_CHANNELS]))
            sides = (f"{layer.weight_db:.0f}", f"{layer.activation_db:.0f}")
            rows.append([layer.layer, *sides, layer.side, channels])
        headings = [
            "noisiest layers",
            ">weights dB",
            ">input dB",
            "worst side",
            "channels",
        ]
        lines = [gate_sentence(self.paired.values, self.precision)]
        share = share_of(self.record.artifact)
        if share is not None:
            lines.append(str(share))
        lines.append(
            f"made by: {self.chosen.stage}; placement: {self.chosen.placement}"
        )
        notes = [f"note: {warning}" for warning in self.warnings]
        if rows:
            tables.append(Table(headings, rows))
        return Summary(tables, [*lines, *notes])

    def _candidate_table(self) -> Table:
        """A row for each candidate, on the images that candidates are compared on."""
        rows = []
        for candidate in self.candidates:
            paired = candidate.paired
            interval = f"{signed(paired.drop_low)} to {signed(paired.drop_high)}"
            figures = [signed(paired.drop), interval, f"{paired.same_prediction:.2f}"]
            mark = "" if candidate.verdict.passes else "refused"
            if candidate is self.chosen:
                mark = "chosen"
            rows.append([candidate.stage, *figures, mark])
        headings = ["tried", ">drop", ">95 % interval", ">same prediction %", ""]
        return Table(headings, rows)


class Refusal(GateError):
    """What the gate says of a model that it refuses; `paired` is that model against float."""

    def __init__(self, message: str, paired: PairedAccuracy) -> None:
        super().__init__(message)
        self.paired = paired


class Gate:
    """The gate images, the engine and the budget by which quantized forms of a model are judged."""

    def __init__(
        self,
        comparison: FloatComparison,
        budget: Budget,
        precision: str = "INT8",
        load: Load = ALONE,
    ) -> None:
        """What is judged on the images of `comparison`, by its engine.

        precision  what the models that it judges are called
        load       how sessions are used while they are timed
        """
        self.comparison = comparison
        self.budget = budget
        self.precision = precision
        self.load = load

    @property
    def artifact(self) -> Artifact:
        """The float model."""
        return self.comparison.artifact

    @property
    def engine(self) -> Engine:
        """The engine that will run what is judged."""
        return self.comparison.engine

    @property
    def progress(self) -> Progress:
        """What is told how far the work is."""
        return self.comparison.progress

    @property
    def candidate_seconds(self) -> float:
        """Seconds of timing for each candidate of the ladder, which tries several."""
        return BENCH_SECONDS / 2

    def try_cases(self, models: Sequence[Artifact]) -> list[latency.Case | InputError]:
        """Each of `models`, ready to be timed under `load`, or why the engine refuses it.

        OpenVINO compiles a model in a second of one core, longer than it is timed. So all cores
        open sessions.
        """

        def opened(model: Artifact) -> latency.Case | InputError:
            try:
                return latency.case(
                    model, self.engine, self.load.clients, self.load.threads
                )
            except InputError as error:
                return error.with_traceback(None)  # it would keep the model

        return list(map_in_order(opened, models))

    def try_against_float(
        self, models: Sequence[Artifact], seconds: float
    ) -> list[LatencyRatio | InputError]:
        """The latency of each model over that of the float model, or why the engine refuses it.

        seconds  of timing for each model. Sessions are opened anew as often as these allow.

        Raises:
            InputError: the engine refuses the float model.
        """
        float_case, *opened = self.try_cases([self.artifact, *models])
        if isinstance(float_case, InputError):
            raise float_case
        cases = [case for case in opened if isinstance(case, latency.Case)]
        if cases:
            # It opens sessions anew in between: two sessions of one file can differ by 4 %.
            latency.time_for_ratios([float_case, *cases], seconds, self.progress)
        results: list[LatencyRatio | InputError] = []
        for item in opened:
            if isinstance(item, InputError):
                results.append(item)
            else:
                results.append(latency.ratio(item, float_case).values)
        return results

    def time_once(self, model: Artifact) -> LatencyRatio:
        """The latency of `model`, which no search timed, over that of the float model."""
        (result,) = self.try_against_float([model], BENCH_SECONDS)
        if isinstance(result, InputError):
            raise result
        return result

    def judge(
        self,
        stage: str,
        placement: str,
        paired: PairedAccuracy,
        ratio: LatencyRatio | None,
        started: float,
    ) -> Candidate:
        """The candidate with these measurements; `started` is time.perf_counter()."""
        seconds = round(time.perf_counter() - started, 2)
        verdict = self.budget.judge(paired)
        return Candidate(stage, placement, paired, ratio, verdict, seconds)

    def measure(
        self, quantizer: str, quantized: Artifact
    ) -> tuple[CandidateModel, Record[PairedAccuracy]]:
        """Measure on the gate images what another quantizer made.

        Returns the candidate, and the Record of its comparison with float. Its placement and the
        noise of its layers are not known.
        """
        started = time.perf_counter()
        paired = self.comparison.compare(quantized)
        ratio = self.time_once(quantized)
        candidate = self.judge(quantizer, quantizer, paired.values, ratio, started)
        return CandidateModel(quantized, candidate), paired

    def conclude(
        self,
        best: CandidateModel,
        candidates: Sequence[Candidate],
        paired: Record[PairedAccuracy],
        context: ReportContext,
        diagnose: Callable[[], tuple[LayerSqnr, ...]] = tuple,
    ) -> tuple[Artifact, QuantReport]:
        """The chosen model with its history, and the report.

        best      chosen among `candidates`
        paired    the Record of `best` against float on the gate images
        diagnose  measures the noise of its layers on the gate images. It is called when the gate
                  refuses: calibration images that mislead also mislead about the noise.

        Raises:
            Refusal: the drop is proven above the budget, and `force` is off.
        """
        verdict = self.budget.judge(paired.values)
        chosen = best.candidate
        settings = {
            "recipe": chosen.stage,
            "placement": chosen.placement,
            **context.settings,
        }
        if verdict is Verdict.REFUSED:
            chosen = replace(chosen, layers=diagnose() or chosen.layers)
            refusal = messages.refusal(
                self.artifact.name,
                chosen.layers,
                paired.values,
                self.budget.max_drop,
                self.precision,
            )
            if not self.budget.force:
                raise Refusal(refusal, paired.values)
            settings["gate"] = refusal
        step = Step("quantize", __version__, settings)
        quantized = self.artifact.then(best.artifact.model, step)
        shown = _replace_candidate(candidates, best.candidate, chosen)
        summary = summarize(shown, chosen, paired.values, verdict, context)
        record = self._record(quantized, summary, context)
        warnings = messages.warnings(
            chosen.ratio,
            paired.values,
            verdict,
            self.budget.max_drop,
            self.precision,
        )
        # An image that cannot be read may be reported by more than one pass.
        remarks = (*context.remarks, *self.comparison.report.sentences(), *warnings)
        without_repeats = tuple(dict.fromkeys(remarks))
        return quantized, QuantReport(
            chosen, shown, paired, verdict, record, without_repeats
        )

    def _record(
        self, quantized: Artifact, summary: QuantizeSummary, context: ReportContext
    ) -> Record[QuantizeSummary]:
        images = self.comparison.images
        data = {
            **context.data,
            "gate": images.name,
            "gate_images": len(images),
            "labeled": images.labeled,
        }
        engine = arithmetic.facts(self.engine)
        return Record(full_identity_of(quantized), summary, engine, data)


def _replace_candidate(
    candidates: Sequence[Candidate], old: Candidate, new: Candidate
) -> tuple[Candidate, ...]:
    replaced = []
    for candidate in candidates:
        replaced.append(new if candidate is old else candidate)
    return tuple(replaced)


def summarize(
    candidates: Sequence[Candidate],
    chosen: Candidate,
    paired: PairedAccuracy,
    verdict: Verdict,
    context: ReportContext,
) -> QuantizeSummary:
    """The result of the whole quantization; `paired` and `verdict` are the gate's."""
    # Where nothing is wrong no layer is to blame, and the list would mislead.
    noisiest = [] if verdict is Verdict.HOLDS else sqnr.noisiest_layers(chosen.layers)
    ratio = chosen.ratio
    return QuantizeSummary(
        drop=paired.drop,
        drop_low=paired.drop_low,
        drop_high=paired.drop_high,
        p_value=paired.p_value,
        same_prediction=paired.same_prediction,
        expected=paired.expected,
        logits_snr_db=paired.logits_snr_db,
        labeled=paired.labeled,
        latency_ratio=ratio.ratio if ratio else None,
        latency_ratio_low=ratio.ratio_low if ratio else None,
        latency_ratio_high=ratio.ratio_high if ratio else None,
        recipe=chosen.stage,
        placement=chosen.placement,
        verdict=verdict.name.lower(),
        rungs=tuple(candidate.summarize() for candidate in candidates),
        seconds=round(time.perf_counter() - context.started, 1),
        culprits=tuple(layer.to_json() for layer in noisiest),
        layers=tuple(layer.to_json() for layer in chosen.layers),
        max_drop=context.budget.max_drop,
        placement_trials=context.trials,
        stages=context.phases,
        float_top1=paired.first_top1,
        top1=paired.top1,
        multi_label=paired.multi_label,
        unjudged=paired.unjudged,
    )


def require_folded(artifact: Artifact) -> None:
    """Refuse what is not a folded float model.

    Raises:
        InputError: the artifact is in training form or in INT8 already.
    """
    if artifact.form != "deploy":
        raise InputError(
            f"{artifact.name} is in {artifact.form} form; quantization starts from the folded "
            "float model: run repzoo fold first"
        )
