"""Which of two candidates is better."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from tests.quant.search.test_verdict import add_expected_drop, paired_accuracy

from repzoo.artifact import Artifact
from repzoo.measure.record import to_json
from repzoo.measure.results import LatencyRatio, PairedAccuracy, Setting
from repzoo.quant.search.candidate import Candidate, CandidateModel
from repzoo.quant.search.verdict import Budget, Verdict


def candidate(paired: PairedAccuracy, ratio: float = 0.5) -> CandidateModel:
    """A model with these measurements; `ratio` is its latency over float."""
    timed = LatencyRatio(
        setting=Setting(),
        ratio=ratio,
        ratio_low=ratio - 0.1,
        ratio_high=ratio + 0.1,
        faster=None,
        rounds=9,
    )
    measured = Candidate("stage", "everything", paired, timed, Budget().judge(paired))
    return CandidateModel(Artifact(onnx.ModelProto(), "model"), measured)


def noisy(
    paired: PairedAccuracy, changed: float, drop: float, snr_db: float
) -> PairedAccuracy:
    return replace(add_expected_drop(paired, changed, drop), logits_snr_db=snr_db)


def test_among_candidates_that_do_not_hold_less_noise_is_better() -> None:
    lucky = noisy(paired_accuracy(), 1.5, 0.2, snr_db=22.8)
    better = noisy(paired_accuracy(changed=2), 1.6, 0.2, snr_db=24.2)
    assert candidate(better).rank > candidate(lucky).rank


def test_a_candidate_that_holds_is_better_than_a_less_noisy_candidate_that_does_not() -> (
    None
):
    better = noisy(paired_accuracy(changed=2), 1.6, 0.2, snr_db=24.2)
    holding = noisy(paired_accuracy(changed=2), 0.9, 0.15, snr_db=22.0)
    assert candidate(holding).rank > candidate(better).rank


def test_a_slower_candidate_must_be_clearly_more_accurate() -> None:
    fast = candidate(noisy(paired_accuracy(), 1.5, 0.2, snr_db=30.0), 0.63)
    slightly = candidate(noisy(paired_accuracy(), 1.5, 0.2, snr_db=30.5), 0.65)
    clearly = candidate(noisy(paired_accuracy(), 1.5, 0.2, snr_db=32.0), 0.65)
    assert slightly.rank < fast.rank < clearly.rank


def test_where_nothing_is_enough_accuracy_counts_more_than_latency() -> None:
    """EfficientNet-Lite0 with 7-bit weights: a layer in float, or only wide layers in INT8."""
    fast = candidate(noisy(paired_accuracy(changed=5), 4.0, 1.7, snr_db=13.8), 0.68)
    slow = candidate(noisy(paired_accuracy(changed=2), 1.7, 0.7, snr_db=20.6), 0.88)
    assert fast.candidate.verdict < Verdict.ENOUGH
    assert slow.candidate.verdict < Verdict.ENOUGH
    assert slow.rank > fast.rank
    slower = candidate(noisy(paired_accuracy(changed=2), 1.7, 0.7, snr_db=20.8), 1.01)
    assert slower.rank < slow.rank  # a small gain is not worth much latency


@pytest.mark.parametrize("changed", [0, 3, 20])
def test_json_has_the_verdict_and_the_flags_derived_from_it(changed: int) -> None:
    measured = candidate(paired_accuracy(changed=changed)).candidate
    document = to_json(measured.summarize())
    assert document["verdict"] == measured.verdict.name.lower()
    assert document["recipe"] == "stage"
    assert document["passes"] is True
    assert document["within"] is True
    assert document["holds"] is (measured.verdict is Verdict.HOLDS)
