"""Results of measurements: one frozen dataclass for each kind of Record.

`record.py` writes them to JSON and reads them back.

Conventions, in code and in JSON alike:

- Accuracies, shares of images and drops are in percent of images; a difference of two is in
  percentage points.
- `NAME_low` and `NAME_high` bound the 95 % interval of `NAME`.
- Units are part of the name: `p50_ms` is in milliseconds. Ratios have no unit; below 1 means that
  the first takes less.
- A float that was not recorded, or that was not finite, is NaN. Other fields that older rows lack
  are None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from repzoo.measure.race_result import RaceSummary

INLINE = "inline"  # metadata: the fields of this nested dataclass stand in the JSON object itself
FORMERLY = "formerly"  # metadata: the name that older rows have for this field

Scenario = Literal["closed-loop", "single-stream", "multi-stream", "offline"]


def inline(prefix: str = "") -> dict[str, str]:
    """Metadata of a nested dataclass without a level of its own in JSON.

    Its fields, each with `prefix`, stand in the outer object.
    """
    return {INLINE: prefix}


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracy of one model on `n` images, with Wilson intervals.

    top1  percent of images whose best class is right
    top5  percent of images whose right class is among the five best
    """

    n: int
    top1: float
    top1_low: float
    top1_high: float
    top5: float
    top5_low: float
    top5_high: float


@dataclass(frozen=True, kw_only=True)
class ExpectedDrop:
    """The loss to expect on new images.

    It is estimated by pairing every image's logit margin with every image's quantization error.

    changed  predictions that change, in percent of images
    drop     Top-1 lost less Top-1 gained, in percentage points
    *_error  standard error of each, in the same unit

    Source: `expected_drop.py`.
    """

    changed: float
    changed_error: float
    drop: float
    drop_error: float

    def drop_interval(self) -> tuple[float, float]:
        """95 % interval of `drop`: 1.96 standard errors to either side."""
        reach = 1.96 * self.drop_error
        return self.drop - reach, self.drop + reach


@dataclass(frozen=True, kw_only=True)
class MeanAveragePrecision:
    """Mean average precision of two models on the same images, in percent.

    drop  of `first` minus `second`, in points
    """

    first: float
    second: float
    drop: float
    drop_low: float
    drop_high: float


@dataclass(frozen=True, kw_only=True)
class LabelAgreement:
    """Two multi-label models on the same images, compared label by label.

    threshold          a label holds where its probability is above
    labels             outputs of an image
    agreement          F1 score of the second model's labels against the first's, in percent
    decisions_changed  percent of all decisions, for and against a label
    images_changed     percent of images with at least one changed label
    given              labels that the first model gives, on all images together
    lost, gained       of these, those that the second does not give; those that only it gives
    mean_average_precision  against known labels; None where the images have none

    Source: `multi_label.py`.
    """

    threshold: float
    labels: int
    agreement: float
    agreement_low: float
    agreement_high: float
    decisions_changed: float
    images_changed: float
    given: int
    lost: int
    gained: int
    mean_average_precision: MeanAveragePrecision | None = None

    @property
    def is_known(self) -> bool:
        """Whether any of the two models gives any label; else nothing was compared."""
        return self.given + self.gained > 0


@dataclass(frozen=True, kw_only=True)
class PairedAccuracy:
    """Two models on the same `n` images, compared image by image.

    `first` is usually the float model and `second` its INT8 form.

    mismatch         the wrong way of preparing images that `second` was given, where that is what
                     was measured
    top1             Top-1 of `second` in percent; None where there are no labels
    first_top1       the same of `first`
    drop             Top-1 of `first` minus Top-1 of `second`, in percentage points; Newcombe's
                     paired interval
    p_value          exact McNemar test of no drop, 0..1
    same_prediction  percent of images that both models assign to the same class
    lost, gained     images that only `first`, or only `second`, classifies correctly
    needed           images that would show a drop of `needed_drop` points
    visible          the drop in points that `n` images would show
    power            probability with which `needed` and `visible` are to detect it, 0..1
    expected         the drop to expect on new images; None where logits were not kept
    logits_snr_db    signal-to-noise ratio of the logits of `second` against those of `first`, in dB
    labeled          False: there were no labels, and the predictions of `first` stand in for them;
                     None: not stated
    multi_label      comparison label by label, where each output is a label of its own. Without
                     labels, `drop` is then the percentage of labels that changed
    unjudged         why neither classes nor labels can be compared, as a clause
    """

    mismatch: str | None = None
    top1: float | None = None
    first_top1: float | None = None
    n: int
    drop: float
    drop_low: float
    drop_high: float
    p_value: float
    same_prediction: float
    lost: int | None = None
    gained: int | None = None
    needed: int | None = None
    needed_drop: float | None = None
    visible: float | None = None
    power: float | None = None
    expected: ExpectedDrop | None = field(default=None, metadata=inline("expected_"))
    logits_snr_db: float | None = None
    labeled: bool | None = None
    multi_label: LabelAgreement | None = None
    unjudged: str | None = None

    @property
    def discordant(self) -> int:
        """Images that exactly one of the two models classifies correctly.

        Raises:
            ValueError: an old row, which does not hold the two counts.
        """
        if self.lost is None or self.gained is None:
            raise ValueError(
                "this paired row does not record how many images were lost and gained"
            )
        return self.lost + self.gained


@dataclass(frozen=True)
class Setting:
    """How a model is timed: threads of a session, client threads, images in a call."""

    scenario: Scenario = "closed-loop"
    threads: int = 1
    streams: int = 1
    batch: int = 1

    def __str__(self) -> str:
        """As a person reads it; the usual scenario goes without saying."""
        kind = "" if self.scenario == "closed-loop" else f"{self.scenario}, "
        return (
            f"{kind}threads {self.threads}, streams {self.streams}, batch {self.batch}"
        )


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """MLPerf's early-stopping estimate of a scenario's percentile.

    percentile  the quantile that MLPerf reports for the scenario, 0..1
    ms          the estimate in milliseconds; None: too few queries for one
    """

    percentile: float
    ms: float | None


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency and throughput of one model on one engine in one setting.

    p50_ms, p90_ms, p99_ms  percentiles of a call, or of a multi-stream query; a bound may be
                            infinite
    fps                     images a second, all clients together
    early_stopping          MLPerf's figure; None for scenarios that have none
    samples                 calls or queries that were timed in the rounds that were kept
    rounds                  interleaved rounds that were kept
    openings                how often the session was opened anew
    warm_up_rounds          rounds dropped before the first that was kept
    steady                  whether the rounds show no trend; None: too few rounds to tell
    spread                  interquartile range of the per-round medians, relative to their median
    """

    setting: Setting = field(metadata=inline())
    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p90_ms: float
    p90_low_ms: float = math.nan
    p90_high_ms: float = math.nan
    p99_ms: float
    p99_low_ms: float = math.nan
    p99_high_ms: float = math.nan
    fps: float
    fps_low: float
    fps_high: float
    early_stopping: EarlyStopping | None = field(
        default=None, metadata=inline("early_stopping_")
    )
    samples: int
    rounds: int | None = None
    openings: int = 1
    warm_up_rounds: int = 0
    steady: bool | None
    spread: float = math.nan


@dataclass(frozen=True, kw_only=True)
class LatencyRatio:
    """Two models timed in the same interleaved rounds; ratios are taken round by round.

    ratio      median latency of `first` over that of `second`: below 1, `first` is faster
    fps_ratio  images a second of `first` over those of `second`
    faster     the side that is faster beyond doubt, by the scenario's own figure; None: undecided
    busy       two engines were timed while other processes used more than 10 % of the processors'
               time; they are then not compared
    """

    setting: Setting = field(metadata=inline())
    ratio: float
    ratio_low: float
    ratio_high: float
    fps_ratio: float = math.nan
    fps_ratio_low: float = math.nan
    fps_ratio_high: float = math.nan
    faster: Literal["first", "second"] | None
    busy: bool = False
    rounds: int
    openings: int = 1


@dataclass(frozen=True, kw_only=True)
class GraphSummary:
    """One side of a fold.

    sha256  of the graph without metadata; the other fields are those of `graph.tools.cost.Cost`
    """

    sha256: str
    parameters: int
    macs: int
    bytes: int
    nodes: int
    operators: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class FoldSummary:
    """A fold's certificate, with folds and refusals counted instead of listed.

    equal              None: the comparison of the whole graphs cannot tell
    max_abs_error      largest difference of the outputs, in units of the output; `bound` is what it
                       may be
    max_rel_error      the same relative to the largest output
    top1_agreement     share of inputs with the same best class, 0..1; None: no classifier
    inputs             images that were compared
    proven             folded nodes recomputed one by one in float64
    proof_ratio        the largest error among them over its own bound
    adversarial_cases  kinds of expressions that were also folded and recomputed with adversarial
                       BatchNorms
    """

    equal: bool | None
    max_abs_error: float
    max_rel_error: float
    bound: float
    top1_agreement: float | None
    inputs: int
    proven: int
    proof_ratio: float
    folds: int
    refusals: int
    before: GraphSummary
    after: GraphSummary
    adversarial_cases: int = field(default=0, metadata={FORMERLY: "specimens"})


@dataclass(frozen=True, kw_only=True)
class CandidateSummary:
    """One INT8 model that quantizing tried, as measured against the float model.

    recipe     the stage of the ladder, or the quantizer, that made it
    placement  name of the Q/DQ placement
    verdict    `quant.search.verdict.Verdict` in lower case; None in older rows. The next three are
               derived from it
    passes     its drop is not proven above the budget
    within     its measured drop, but for chance, is within the budget
    holds      within the budget, and at least 99 % of predictions are expected to stay
    seconds    what making and checking it took
    culprits   its noisiest layers, as `quant.parameters.sqnr.LayerSqnr` has them; empty where it
               holds
    paired     accuracy against the float model
    ratio      latency over the float model's; None where only a board runs it
    """

    recipe: str = ""
    placement: str
    verdict: str | None = None
    passes: bool
    within: bool | None = None
    holds: bool | None = None
    seconds: float = math.nan
    culprits: tuple[Mapping[str, Any], ...] = ()
    paired: PairedAccuracy = field(metadata=inline())
    ratio: LatencyRatio | None = field(default=None, metadata=inline())


@dataclass(frozen=True)
class PlacementTrial:
    """What moving a group of nodes into or out of INT8 did.

    group  kind and resolution of the nodes; `nodes`: how many they are
    int8   the side that was tried: True is INT8
    ratio  latency over that before the move, with its interval `low` .. `high`
    kept   whether the placement was changed accordingly
    """

    group: str
    nodes: int
    int8: bool
    ratio: float
    low: float
    high: float
    kept: bool = False

    def sentence(self) -> str:
        """The trial in words."""
        side = "in INT8" if self.int8 else "in float"
        move = f"{self.group} ({self.nodes}) {side}"
        interval = f"{self.low:.2f} .. {self.high:.2f}"
        return f"{move}: {self.ratio:.2f} of the time ({interval})"


@dataclass(frozen=True, kw_only=True)
class HalfSummary:
    """What is known of a model in half precision besides its figures.

    precision      fp16 or bf16; `operators` compute in it
    kept           operators that stay in float32: node, op, cause and reason of each
    weights        other than 0; `subnormal` of them have fewer digits in float16, `zeroed` none
    in_arithmetic  against float where every value is rounded to it, whatever the engine does
    on_engine      the file against float on the engine
    """

    precision: str
    operators: int
    kept: tuple[Mapping[str, Any], ...]
    weights: int
    subnormal: int
    zeroed: int
    in_arithmetic: PairedAccuracy
    on_engine: PairedAccuracy


@dataclass(frozen=True)
class OperatorTime:
    """The time of one kind of operator, as the engine executes it.

    form           float | int8: the model
    kind           the engine's name and kernel
    microseconds   in one run
    share          of the time of all operators, 0..1
    is_conversion  whether it only quantizes, dequantizes, converts or reorders
    """

    form: str
    kind: str
    microseconds: float
    share: float
    is_conversion: bool


@dataclass(frozen=True, kw_only=True)
class QuantizeSummary:
    """What quantizing one model gave: the candidate that was chosen, measured on the gate's images.

    drop ... expected  as in PairedAccuracy
    latency_ratio      latency over the float model's; None where only a board runs it
    recipe, placement  what was chosen
    verdict            the gate's `quant.search.verdict.Verdict` in lower case; None in older rows
    rungs              every candidate that was tried, in order
    seconds            all of it together
    culprits           noisiest layers of the chosen candidate; empty where the budget holds
    layers             every layer of the chosen candidate, as `quant.parameters.sqnr.LayerSqnr` has
                       it
    max_drop           the budget in points of Top-1
    placement_trials   moves that the placement search tried
    stages             seconds that calibration, placement and gate took
    float_top1, top1   Top-1 of the float and the INT8 model in percent; None without labels
    multi_label, unjudged  as in PairedAccuracy
    half               of a model in half precision; None for INT8
    operators          time by kind of operator; None where the engine has no profiles
    race               of engines and forms; None where none was held
    """

    drop: float
    drop_low: float
    drop_high: float
    p_value: float
    same_prediction: float
    expected: ExpectedDrop | None = field(default=None, metadata=inline("expected_"))
    logits_snr_db: float | None = None
    labeled: bool | None = None
    latency_ratio: float | None
    latency_ratio_low: float | None
    latency_ratio_high: float | None
    recipe: str
    placement: str
    verdict: str | None = None
    rungs: tuple[CandidateSummary, ...]
    seconds: float
    culprits: tuple[Mapping[str, Any], ...]
    layers: tuple[Mapping[str, Any], ...] = ()
    max_drop: float | None = None
    placement_trials: tuple[PlacementTrial, ...] | None = None
    stages: Mapping[str, float] | None = None
    float_top1: float | None = None
    top1: float | None = None
    multi_label: LabelAgreement | None = None
    unjudged: str | None = None
    half: HalfSummary | None = None
    operators: tuple[OperatorTime, ...] | None = None
    race: RaceSummary | None = None
