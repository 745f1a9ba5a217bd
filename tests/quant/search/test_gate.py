"""When an attempt holds, is enough, or is refused: by what was counted, and by what the logits say is to be expected."""

from __future__ import annotations

from dataclasses import replace

import onnx
from tests.sample_results import latency_ratio, paired_accuracy

from repzoo.artifact import Artifact
from repzoo.measure.record import Record
from repzoo.measure.results import ExpectedDrop, PairedAccuracy
from repzoo.quant.search.gate import Budget, Candidate, CandidateModel

Paired = Record[PairedAccuracy]


def counted(n: int = 256, changed: int = 0, lost: int = 0, labeled: bool = True) -> Paired:
    """Of `changed` predictions `lost` were right before, and none of them is now."""
    same_prediction = 100 * (1 - changed / n)
    values = paired_accuracy(
        100 * lost / n, n=n, lost=lost, same_prediction=same_prediction, labeled=labeled
    )
    return Record({}, values)


def told(
    record: Paired, changed: float, drop: float, error: float = 0.1, snr_db: float = 30.0
) -> Paired:
    """`record`, with what the logits say is to be expected, in percent."""
    expected = ExpectedDrop(changed=changed, changed_error=0.1, drop=drop, drop_error=error)
    values = replace(record.values, expected=expected, logits_snr_db=snr_db)
    return replace(record, values=values)


def attempt(record: Paired, ratio: float = 0.5) -> CandidateModel:
    budget, timed = Budget(), Record({}, latency_ratio(ratio))
    verdict = not budget.refuses(record), budget.meets(record), budget.holds(record)
    return CandidateModel(
        Artifact(onnx.ModelProto(), "model"),
        Candidate("one", "everything", record, timed, *verdict),
    )


def test_counted_alone_one_in_a_hundred_may_change() -> None:
    assert Budget().holds(counted(changed=2))
    assert not Budget().holds(counted(changed=3))


def test_that_nothing_changed_by_luck_does_not_hold_where_more_is_expected() -> None:
    assert Budget().holds(told(counted(), changed=0.9, drop=0.15))
    assert not Budget().holds(told(counted(), changed=1.1, drop=0.15))
    assert not Budget().holds(told(counted(), changed=0.9, drop=0.15, error=0.16))
    assert Budget(max_drop=0.5).holds(told(counted(), changed=0.9, drop=0.15, error=0.16))


def test_no_more_can_be_lost_than_changes() -> None:
    assert Budget().holds(told(counted(), changed=0.3, drop=0.25, error=0.2))


def test_that_a_few_changed_by_chance_holds_where_less_is_expected() -> None:
    """2 of 125 are 1.6 %, but one more or less is nothing; 5 are not what was expected, so it cannot be relied on."""
    assert Budget().holds(told(counted(n=125, changed=2), changed=0.5, drop=0.1))
    assert not Budget().holds(told(counted(n=125, changed=5), changed=0.5, drop=0.1))


def test_without_labels_only_predictions_count() -> None:
    record = counted(changed=1, lost=1, labeled=False)
    assert Budget().holds(told(record, changed=0.9, drop=0.9))
    assert not Budget().holds(told(record, changed=1.1, drop=1.1))


def test_an_expected_drop_is_within_the_budget_but_for_its_error() -> None:
    assert Budget().meets(told(counted(), changed=2, drop=0.5, error=0.2))
    assert not Budget().meets(told(counted(), changed=2, drop=0.5, error=0.1))
    assert not Budget().meets(told(counted(changed=12, lost=12), changed=2, drop=0.1))


def test_of_two_that_do_not_hold_the_one_with_less_noise_is_better_whatever_changed_by_luck() -> (
    None
):
    lucky, better = (
        told(counted(), 1.5, 0.2, snr_db=22.8),
        told(counted(changed=2), 1.6, 0.2, snr_db=24.2),
    )
    assert attempt(better).merit > attempt(lucky).merit
    holding = told(counted(changed=2), 0.9, 0.15, snr_db=22.0)
    assert attempt(holding).merit > attempt(better).merit


def test_what_takes_longer_must_be_clearly_better() -> None:
    fast = attempt(told(counted(), 1.5, 0.2, snr_db=30.0), 0.63)
    assert attempt(told(counted(), 1.5, 0.2, snr_db=30.5), 0.65).merit < fast.merit
    assert attempt(told(counted(), 1.5, 0.2, snr_db=32.0), 0.65).merit > fast.merit


def test_where_nothing_is_enough_accuracy_counts_more_than_latency() -> None:
    """EfficientNet-Lite0 with 7-bit weights, one scale a tensor: a layer in float, and only wide layers in INT8."""
    fast = attempt(told(counted(changed=5), 4.0, 1.7, snr_db=13.8), 0.68)
    slow = attempt(told(counted(changed=2), 1.7, 0.7, snr_db=20.6), 0.88)
    assert not fast.rung.enough
    assert not slow.rung.enough
    assert slow.merit > fast.merit
    assert (
        attempt(told(counted(changed=2), 1.7, 0.7, snr_db=20.8), 1.01).merit < slow.merit
    )  # but what is hardly better may not be slow


def test_refused_is_what_is_proven_alone() -> None:
    assert not Budget().refuses(
        told(counted(changed=3, lost=3), changed=9, drop=9)
    )  # an interval that reaches down to the budget
    assert Budget().refuses(counted(changed=9, lost=9))
