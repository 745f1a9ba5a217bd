"""The gate: what an INT8 model must keep, how that is measured, and what is said about it. Every recipe goes through it.

Two sets of images, neither of which set a range. On the *selection* images attempts are compared with the float model and one is
chosen; on the *gate* images the chosen one is measured, once, and that measurement is the verdict: since nothing was chosen by
these images, the drop that is reported is no better than what other images of the kind will show.

An attempt *holds* on the selection images when its paired drop, but for chance, is at most the budget, and enough predictions are
to be expected to stay the float model's own: a few hundred labeled images cannot tell a drop of 0.3 points from none, nor 98 % of
unchanged predictions from all, but the noise on their logits and the margins that it has to overcome can (measure.expected). The
chosen one is *refused* when its paired drop on the gate images is proven above the budget, that is when the whole 95 % interval
lies above it. What lies between is let through with a warning.

Without labels the float model's predictions stand for them. The drop is then the share of predictions that changed: the most that
Top-1 can have lost, were every changed prediction right before and wrong now. Since many of them are not, a share of up to the
budget and CHANGES points passes; what was lost of that is not known, and this is said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.engines import Engine
from repzoo.errors import GateError, InputError
from repzoo.measure import accuracy, latency
from repzoo.measure.expected_drop import Margins, expected_drop, snr_db
from repzoo.measure.record import Record, identity_of
from repzoo.measure.results import (
    CandidateSummary,
    LatencyRatio,
    PairedAccuracy,
    PlacementTrial,
    QuantizeSummary,
)
from repzoo.progress import Progress, silent
from repzoo.quant.parameters import sqnr as diagnose
from repzoo.quant.parameters.sqnr import LayerSqnr

BENCH_SECONDS = 1.0
# % of predictions that must be expected to be the float model's own for an attempt to hold; a further rung costs seconds alone.
UNCHANGED = 99.0
ENOUGH = 95.0  # % from which on no layer is taken out of INT8 for the sake of more: that would cost latency
CHANGES = 100 - ENOUGH  # points that predictions may change without labels, beyond the budget
WORTH_DB = 0.3  # less noise on the logits that 1 % of latency must buy: about 3 % fewer changed predictions
SHORT_DB = 0.1  # the same where accuracy is what is short
BLAMED = 3  # layers that a refusal names
LOGITS = 2**23  # of one model on all images, that are held in memory: 32 MB
CLASSES = 2**14  # of a model that does not say how many it has


@dataclass(frozen=True)
class Budget:
    """What the result must keep: at most `max_drop` points of Top-1; `force` writes it even so, marked."""

    max_drop: float = 0.3
    force: bool = False

    def refuses(self, paired: Record[PairedAccuracy]) -> bool:
        """Whether `paired` proves a drop above the budget."""
        allowed = self.max_drop + (0 if paired.values.labeled else CHANGES)
        return paired.values.drop_low > allowed

    def holds(self, paired: Record[PairedAccuracy]) -> bool:
        """Whether `paired` leaves nothing to be wished for: the budget met, and hardly a prediction changed. Where it is known what is to
        be expected, that is what counts, and its error with it: more rungs cost seconds, not latency. The predictions that did change
        may be more by chance (one standard deviation).
        """
        values, most = paired.values, 100 - UNCHANGED
        changed = 100 - values.same_prediction
        expected = values.expected
        if expected is None:
            return self.meets(paired) and changed <= most
        chance = math.sqrt(100 * changed / values.n)
        lost = 0.0
        if values.labeled:
            lost = min(expected.changed, expected.drop + expected.drop_error)
        is_unchanged = expected.changed <= most and changed - chance <= most
        return self.meets(paired) and is_unchanged and lost <= self.max_drop

    def meets(self, paired: Record[PairedAccuracy]) -> bool:
        """Whether the drop less what chance makes of so many changed answers (one standard deviation: each is lost or gained) is within
        the budget: one image of 256 is more than 0.3 points. So must be the drop to be expected, less its error, where it is known.
        Without labels, all that counts are the predictions.
        """
        values, expected = paired.values, paired.values.expected
        if not values.labeled:
            return True
        chance = 100 * math.sqrt(values.discordant) / values.n
        expected_drop = expected.drop - expected.drop_error if expected else 0.0
        return max(values.drop - chance, expected_drop) <= self.max_drop


@dataclass(frozen=True)
class Candidate:
    """One attempt and what it gave.

    paired   against the float model, on the selection images (those of the gate where there was no choice); ratio: latency over float
    passes   not proven above the budget; within: so is the drop as measured, but for chance; holds: no further rung is needed
    seconds  what making and checking it cost
    layers   its noise, worst first; empty where the recipe does not say
    """

    stage: str
    placement: str
    paired: Record[PairedAccuracy]
    ratio: Record[LatencyRatio]
    passes: bool
    within: bool
    holds: bool
    seconds: float = 0.0
    layers: tuple[LayerSqnr, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether it passes and nothing that costs latency need be tried."""
        return self.holds or (self.within and self.paired.values.same_prediction >= ENOUGH)

    def summary(self) -> CandidateSummary:
        """Without samples, and of the layers only the culprits, where it does not hold."""
        culprits = [] if self.holds else diagnose.noisiest_layers(self.layers, BLAMED)
        return CandidateSummary(
            recipe=self.stage,
            placement=self.placement,
            passes=self.passes,
            within=self.within,
            holds=self.holds,
            seconds=self.seconds,
            culprits=tuple(one.to_json() for one in culprits),
            paired=self.paired.values,
            ratio=self.ratio.values,
        )


@dataclass(frozen=True)
class QuantReport:
    """What was tried and what was chosen, `paired` on the gate images; `record` goes to the results, `warnings` to the person."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    paired: Record[PairedAccuracy]
    passes: bool
    record: Record[QuantizeSummary]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class CandidateModel:
    """A quantized model with the rung that measured it."""

    artifact: Artifact
    rung: Candidate

    @property
    def merit(self) -> tuple[bool, bool, bool, float, float]:
        """What makes it the better: it holds, it is enough, it passes, less noise on the logits for its latency, smaller drop."""
        rung, values = self.rung, self.rung.paired.values
        price = WORTH_DB if rung.enough else SHORT_DB
        worth = (values.logits_snr_db or 0.0) - price * 100 * math.log(rung.ratio.values.ratio)
        return rung.holds, rung.enough, rung.passes, worth, -values.drop


@dataclass(frozen=True)
class ReportContext:
    """What a report says besides measurements.

    settings          of the step that is written into the model
    data              names and counts of the images
    remarks           on the images
    started           time.perf_counter() when the work began
    placement_trials  moves that the placement search tried; None where there was no search
    stages            seconds that each part of the work took; None where they were not timed
    """

    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    budget: Budget
    remarks: Sequence[str]
    started: float
    placement_trials: tuple[PlacementTrial, ...] | None = None
    stages: Mapping[str, float] | None = None


class FloatComparison:
    """INT8 forms of one float model, compared with it on the same images; the float model's answers are asked for once.

    Where all logits fit LOGITS, what they say is to be expected is told too (measure.expected).
    """

    def __init__(
        self, artifact: Artifact, images: Dataset, engine: Engine, progress: Progress = silent
    ) -> None:
        self.artifact, self.images, self.engine, self.progress = (
            artifact,
            classed(images, artifact),
            engine,
            progress,
        )
        self._keeping = len(images) * (artifact.num_classes or CLASSES) <= LOGITS
        self._more: list[tuple[Margins, npt.NDArray[np.int64]]] = []
        self.report = ReadReport()
        self._float: accuracy.ModelPredictions | None = None

    def compare(self, made: Artifact) -> Record[PairedAccuracy]:
        """`made` against the float model, image by image."""
        runs = [
            accuracy.open_run(one, self.engine)
            for one in ([made] if self._float else [self.artifact, made])
        ]
        report = self.report if not self._float else ReadReport()
        found = accuracy.evaluate(runs, self.images, report, self.progress, logits=self._keeping)
        first, second = self._float or found[0], found[-1]
        self._float = first
        if not self.images.labeled:
            first, second = (replace(one, targets=self._float.top[:, 0]) for one in (first, second))
        paired = accuracy.compare(first, second)
        values = replace(paired.values, labeled=self.images.labeled)
        if self._keeping:
            values = self._with_expected_drop(values, first, second)
        return replace(paired, values=values)

    def add_margins(self, images: Dataset, found: Margins) -> None:
        """Count with the float model's margins on other `images` of the kind, too."""
        indices = accuracy.class_indices(self.images, self.artifact)
        targets = (
            np.array([indices[one] for one in images.targets])
            if self.images.labeled
            else found.classes[:, 0]
        )
        self._more.append((found, targets))

    def _with_expected_drop(
        self,
        values: PairedAccuracy,
        first: accuracy.ModelPredictions,
        second: accuracy.ModelPredictions,
    ) -> PairedAccuracy:
        """`values` with what the logits of both models say (measure.expected_drop)."""
        assert first.logits is not None
        assert second.logits is not None
        known, targets = zip(
            (Margins.from_logits(first.logits), first.targets), *self._more, strict=True
        )
        margins, all_targets = Margins.concatenate(known), np.concatenate(targets)
        return replace(
            values,
            expected=expected_drop(margins, all_targets, first.logits, second.logits),
            logits_snr_db=snr_db(first.logits, second.logits),
        )


class Gate:
    """What decides about INT8 forms of one float model: the images of the gate, the engine and the budget."""

    def __init__(
        self,
        artifact: Artifact,
        images: Dataset,
        engine: Engine,
        budget: Budget,
        progress: Progress = silent,
    ) -> None:
        self.artifact, self.engine, self.budget, self.progress = artifact, engine, budget, progress
        self.judge = FloatComparison(artifact, images, engine, progress)

    def cases(self, models: Sequence[Artifact]) -> list[latency.Case]:
        """Each of `models`, to be timed on one thread."""
        return [latency.case(one, self.engine) for one in models]

    def timed(
        self, models: Sequence[Artifact], seconds: float | None = None
    ) -> list[Record[LatencyRatio]]:
        """Latency of each model over the float one's, over as many openings as the seconds allow."""
        cases = self.cases([self.artifact, *models])
        latency.run(
            cases, BENCH_SECONDS if seconds is None else seconds, progress=self.progress, openings=0
        )
        return [latency.ratio(one, cases[0]) for one in cases[1:]]

    def rung(
        self,
        recipe: str,
        placement: str,
        paired: Record[PairedAccuracy],
        ratio: Record[LatencyRatio],
        started: float,
    ) -> Candidate:
        """A Rung with its verdicts; `started` by time.perf_counter()."""
        verdict = (
            not self.budget.refuses(paired),
            self.budget.meets(paired),
            self.budget.holds(paired),
        )
        return Candidate(
            recipe, placement, paired, ratio, *verdict, round(time.perf_counter() - started, 2)
        )

    def attempt(self, recipe: str, made: Artifact) -> CandidateModel:
        """A model that another recipe made, whose placement and noise are not known, measured on the gate's images."""
        started = time.perf_counter()
        return CandidateModel(
            made,
            self.rung(recipe, recipe, self.judge.compare(made), self.timed([made])[0], started),
        )

    def concluded(
        self,
        best: CandidateModel,
        rungs: Sequence[Candidate],
        paired: Record[PairedAccuracy],
        context: ReportContext,
        blame: Callable[[], tuple[LayerSqnr, ...]] = tuple,
    ) -> tuple[Artifact, QuantReport]:
        """`best`, chosen among `rungs`, with its history and report; `paired` is what it gave on the gate's images.

        blame  the noise of its layers on the gate's images, asked for when these refuse it: calibration images may mislead

        Raises:
            GateError: the drop is proven above the budget.
        """
        passes = not self.budget.refuses(paired)
        rung = best.rung if passes else replace(best.rung, layers=blame() or best.rung.layers)
        said = "" if passes else self._refusal(rung, paired)
        if said and not self.budget.force:
            raise GateError(said)
        settings = {
            "recipe": rung.stage,
            "placement": rung.placement,
            **context.settings,
            **({"gate": said} if said else {}),
        }
        made = self.artifact.then(best.artifact.model, Step("quantize", __version__, settings))
        shown = tuple(rung if one is best.rung else one for one in rungs)
        values = _values(shown, rung, paired, context)
        images = self.judge.images
        data = {
            **context.data,
            "gate": images.name,
            "gate_images": len(images),
            "labeled": images.labeled,
        }
        engine = {"name": self.engine.name, "version": self.engine.version()}
        record = Record(identity_of(made), values, engine, data)
        remarks = (
            *context.remarks,
            *self.judge.report.sentences(),
            *_warnings(rung, paired, self.budget),
        )
        return made, QuantReport(rung, shown, paired, passes, record, tuple(dict.fromkeys(remarks)))

    def _refusal(self, rung: Candidate, paired: Record[PairedAccuracy]) -> str:
        values, budget = paired.values, self.budget.max_drop
        blamed = [one.sentence() for one in diagnose.noisiest_layers(rung.layers, BLAMED)]
        where = f"Most noise comes from {'; '.join(blamed)}. " if blamed else ""
        interval = (
            f"{values.drop:.2f} %s (95 %% interval {values.drop_low:.2f} to {values.drop_high:.2f}, "
            f"{values.n} images)"
        )
        loses = (
            f"loses {interval % 'points of Top-1'}, above the budget of {budget}"
            if values.labeled
            else f"changes {interval % '% of the predictions'}, more than the {budget + CHANGES:g} % that pass without labels"
        )
        return (
            f"{self.artifact.name}: INT8 {loses}; nothing was written. {where}Raise --max-drop, calibrate on images like those that "
            "it was checked on, or write it with --force"
        )


def classed(images: Dataset, artifact: Artifact) -> Dataset:
    """`images`; without labels, with the model's own classes, which evaluation asks for (their targets mean nothing)."""
    if images.labeled:
        return images
    return replace(
        images,
        classes=tuple(map(str, range(artifact.num_classes or len(artifact.labels)))),
        ordered=True,
    )


def require_folded(artifact: Artifact) -> None:
    """Refuse what is not a folded float model."""
    if artifact.form != "deploy":
        raise InputError(
            f"{artifact.name} is in {artifact.form} form; quantizing starts from the folded float model (repzoo fold)"
        )


def _warnings(rung: Candidate, found: Record[PairedAccuracy], budget: Budget) -> list[str]:
    paired, ratio, said = found.values, rung.ratio.values, []
    if budget.refuses(found):
        said.append(
            f"forced: the drop of {paired.drop:.2f} points is above the budget of {budget.max_drop}"
        )
    elif not paired.labeled:
        said.append(
            f"the images have no labels: at most {paired.drop_high:.2f} points can be lost ({paired.drop:.2f} % of the "
            f"predictions changed); whether it is {budget.max_drop} takes labeled images"
        )
    elif paired.drop_high > budget.max_drop:
        said.append(
            f"{paired.n} images cannot exclude a drop of up to {paired.drop_high:.2f} points (budget {budget.max_drop})"
            f"{_to_be_expected(paired)}"
        )
    if paired.same_prediction < UNCHANGED:
        said.append(
            f"{100 - paired.same_prediction:.1f} % of the predictions differ from the float model's"
        )
    if ratio.ratio_low > 1:
        said.append(f"INT8 takes {ratio.ratio:.2f} times as long as float on this engine and host")
    return said


def _to_be_expected(paired: PairedAccuracy) -> str:
    if paired.expected is None:
        return ""
    low, high = paired.expected.drop_interval()
    return (
        f"; from the noise on their logits {paired.expected.drop:z.2f} is to be expected "
        f"(95 % interval {low:z.2f} to {high:z.2f})"
    )


def _values(
    rungs: Sequence[Candidate],
    chosen: Candidate,
    paired: Record[PairedAccuracy],
    context: ReportContext,
) -> QuantizeSummary:
    values, ratio = paired.values, chosen.ratio.values
    blamed = () if context.budget.holds(paired) else diagnose.noisiest_layers(chosen.layers)
    return QuantizeSummary(
        drop=values.drop,
        drop_low=values.drop_low,
        drop_high=values.drop_high,
        p_value=values.p_value,
        same_prediction=values.same_prediction,
        expected=values.expected,
        logits_snr_db=values.logits_snr_db,
        labeled=values.labeled,
        latency_ratio=ratio.ratio,
        latency_ratio_low=ratio.ratio_low,
        latency_ratio_high=ratio.ratio_high,
        recipe=chosen.stage,
        placement=chosen.placement,
        rungs=tuple(rung.summary() for rung in rungs),
        seconds=round(time.perf_counter() - context.started, 1),
        culprits=tuple(one.to_json() for one in blamed),
        layers=tuple(one.to_json() for one in chosen.layers),
        max_drop=context.budget.max_drop,
        placement_trials=context.placement_trials,
        stages=context.stages,
    )
