"""Candidates: the quantized forms of one model that were measured, and which of two is better."""

from __future__ import annotations

import math
from dataclasses import dataclass

from repzoo.artifact import Artifact
from repzoo.measure.results import CandidateSummary, LatencyRatio, PairedAccuracy
from repzoo.quant.parameters import sqnr
from repzoo.quant.parameters.sqnr import LayerSqnr
from repzoo.quant.search.verdict import Verdict

# How many dB of noise on the logits 1 % of latency must save: about 3 % fewer changed predictions.
DB_PER_PERCENT_LATENCY = 0.3
# The same for a candidate that is not accurate enough, where accuracy is what is short.
DB_PER_PERCENT_LATENCY_SHORT = 0.1
NAMED_LAYERS = 3  # noisiest layers that a refusal and the JSON of a candidate name


@dataclass(frozen=True)
class Candidate:
    """The measurements of one quantized model, without the model.

    stage      how it was made: the stage of the ladder with what was added to it, or the name of
               another quantizer
    placement  name of the placement of Q/DQ pairs
    paired     its Top-1 against float, image by image, on the selection images; on the gate
               images where nothing was selected
    ratio      its latency over float; None where only a board runs it
    verdict    what `Budget.judge` says of `paired`
    seconds    time to make and measure it
    layers     SQNR of each layer, noisiest first; empty where it is not known
    """

    stage: str
    placement: str
    paired: PairedAccuracy
    ratio: LatencyRatio | None
    verdict: Verdict
    seconds: float = 0.0
    layers: tuple[LayerSqnr, ...] = ()

    def latency_cost_db(self) -> float:
        """The noise on the logits, in dB, that its latency must be worth; 0 if not timed."""
        if self.ratio is None:
            return 0.0
        per_percent = DB_PER_PERCENT_LATENCY_SHORT
        if self.verdict >= Verdict.ENOUGH:
            per_percent = DB_PER_PERCENT_LATENCY
        return per_percent * 100 * math.log(self.ratio.ratio)

    def summarize(self) -> CandidateSummary:
        """What Records and `--json` keep; of the layers only the noisiest, if it does not hold."""
        holds = self.verdict >= Verdict.HOLDS
        # Without labels no drop is measured, and `within` says nothing.
        within = self.verdict >= Verdict.WITHIN or self.paired.labeled is False
        noisiest = [] if holds else sqnr.noisiest_layers(self.layers, NAMED_LAYERS)
        return CandidateSummary(
            recipe=self.stage,
            placement=self.placement,
            verdict=self.verdict.name.lower(),
            passes=self.verdict.passes,
            within=within,
            holds=holds,
            seconds=self.seconds,
            culprits=tuple(layer.to_json() for layer in noisiest),
            paired=self.paired,
            ratio=self.ratio,
        )


@dataclass(frozen=True)
class CandidateModel:
    """A quantized model with its measurements."""

    artifact: Artifact
    candidate: Candidate

    @property
    def rank(self) -> tuple[bool, bool, bool, float, float]:
        """A key that is larger for the better model.

        In order: it holds; it is accurate enough; it passes; less noise on the logits for its
        latency; a smaller drop.
        """
        candidate = self.candidate
        verdict = candidate.verdict
        snr_db = candidate.paired.logits_snr_db or 0.0
        return (
            verdict >= Verdict.HOLDS,
            verdict >= Verdict.ENOUGH,
            verdict.passes,
            snr_db - candidate.latency_cost_db(),
            -candidate.paired.drop,
        )
