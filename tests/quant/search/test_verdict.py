"""Each boundary between verdicts, by what was counted and by what the logits say is expected."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repzoo.measure.results import (
    ExpectedDrop,
    LabelAgreement,
    MeanAveragePrecision,
    PairedAccuracy,
)
from repzoo.quant.search import verdict
from repzoo.quant.search.verdict import Budget, Verdict


def paired_accuracy(
    n: int = 256, changed: int = 0, lost: int = 0, labeled: bool = True
) -> PairedAccuracy:
    """Of `changed` predictions `lost` were right before, and none of them is right now."""
    drop = 100 * lost / n
    return PairedAccuracy(
        n=n,
        drop=drop,
        drop_low=drop - 1,
        drop_high=drop + 1,
        p_value=1.0,
        lost=lost,
        gained=0,
        same_prediction=100 * (1 - changed / n),
        labeled=labeled,
    )


def add_expected_drop(
    paired: PairedAccuracy, changed: float, drop: float, error: float = 0.1
) -> PairedAccuracy:
    """`paired`, with what the logits say is expected on new images, in percent."""
    expected = ExpectedDrop(
        changed=changed, changed_error=0.1, drop=drop, drop_error=error
    )
    return replace(paired, expected=expected)


def judge(paired: PairedAccuracy, max_drop: float = 0.3) -> Verdict:
    return Budget(max_drop).judge(paired)


def test_verdicts_are_ordered_from_worst_to_best() -> None:
    order = [
        Verdict.REFUSED,
        Verdict.UNCLEAR,
        Verdict.WITHIN,
        Verdict.ENOUGH,
        Verdict.HOLDS,
    ]
    assert sorted(Verdict) == order
    assert [verdict for verdict in Verdict if verdict.passes] == order[1:]


def test_refused_only_where_the_whole_interval_is_above_the_budget() -> None:
    paired = replace(paired_accuracy(n=1000, changed=50, lost=20), drop_low=0.31)
    assert judge(paired) is Verdict.REFUSED
    assert judge(replace(paired, drop_low=0.3)) is Verdict.UNCLEAR
    assert judge(paired, max_drop=0.31) is Verdict.UNCLEAR


def test_a_large_expected_drop_alone_does_not_refuse() -> None:
    assert (
        judge(add_expected_drop(paired_accuracy(changed=3, lost=3), changed=9, drop=9))
        is Verdict.UNCLEAR
    )


def test_within_allows_the_counted_drop_one_standard_deviation_of_chance() -> None:
    # 3 lost of 1,000 are 0.3 points; one standard deviation is sqrt(3) / 10 = 0.173 points.
    paired = paired_accuracy(n=1000, changed=60, lost=3)
    assert judge(paired, max_drop=0.127) is Verdict.WITHIN
    assert judge(paired, max_drop=0.126) is Verdict.UNCLEAR


def test_within_allows_the_expected_drop_its_standard_error() -> None:
    paired = paired_accuracy(changed=13)
    assert (
        judge(add_expected_drop(paired, changed=2, drop=0.5, error=0.2))
        is Verdict.WITHIN
    )
    assert (
        judge(add_expected_drop(paired, changed=2, drop=0.5, error=0.1))
        is Verdict.UNCLEAR
    )


def test_a_measured_drop_above_the_budget_fails_with_any_expected_drop() -> None:
    paired = paired_accuracy(changed=12, lost=12)
    assert judge(add_expected_drop(paired, changed=2, drop=0.1)) < Verdict.WITHIN


def test_enough_needs_95_percent_of_predictions_unchanged() -> None:
    assert judge(paired_accuracy(n=1000, changed=50)) is Verdict.ENOUGH
    assert judge(paired_accuracy(n=1000, changed=51)) is Verdict.WITHIN


def test_holds_needs_99_percent_of_predictions_unchanged_where_only_counts_are_known() -> (
    None
):
    assert judge(paired_accuracy(changed=2)) is Verdict.HOLDS
    assert judge(paired_accuracy(changed=3)) is Verdict.ENOUGH


def test_holds_needs_few_expected_changes_even_where_no_prediction_changed() -> None:
    assert (
        judge(add_expected_drop(paired_accuracy(), changed=0.9, drop=0.15))
        is Verdict.HOLDS
    )
    assert (
        judge(add_expected_drop(paired_accuracy(), changed=1.1, drop=0.15))
        is Verdict.ENOUGH
    )


def test_holds_needs_the_expected_drop_with_its_error_within_the_budget() -> None:
    paired = add_expected_drop(paired_accuracy(), changed=0.9, drop=0.15, error=0.16)
    assert judge(paired) is Verdict.ENOUGH
    assert judge(paired, max_drop=0.5) is Verdict.HOLDS


def test_no_more_can_be_lost_than_changes() -> None:
    assert (
        judge(add_expected_drop(paired_accuracy(), changed=0.3, drop=0.25, error=0.2))
        is Verdict.HOLDS
    )


def test_holds_allows_counted_changes_one_standard_deviation_of_chance() -> None:
    """2 of 125 are 1.6 %, but one more or less is chance; 5 are more than what was expected."""
    few = paired_accuracy(n=125, changed=2)
    many = paired_accuracy(n=125, changed=5)
    assert judge(add_expected_drop(few, changed=0.5, drop=0.1)) is Verdict.HOLDS
    assert judge(add_expected_drop(many, changed=0.5, drop=0.1)) is Verdict.ENOUGH


def test_without_labels_only_predictions_decide_whether_it_holds() -> None:
    paired = paired_accuracy(changed=1, lost=1, labeled=False)
    assert judge(add_expected_drop(paired, changed=0.9, drop=0.9)) is Verdict.HOLDS
    assert judge(add_expected_drop(paired, changed=1.1, drop=1.1)) is Verdict.ENOUGH


@pytest.mark.parametrize(
    ("low", "expected"), [(5.3, Verdict.WITHIN), (5.31, Verdict.REFUSED)]
)
def test_without_labels_five_points_more_may_change(
    low: float, expected: Verdict
) -> None:
    assert verdict.CHANGED_ALLOWED == 5
    paired = replace(
        paired_accuracy(n=1000, changed=80, lost=80, labeled=False), drop_low=low
    )
    assert judge(paired) is expected


def labels(agreement: float, drop_low: float | None = None) -> LabelAgreement:
    """Labels with intervals of one point to either side; `drop_low` of mean average precision."""
    precision = None
    if drop_low is not None:
        precision = MeanAveragePrecision(
            first=80,
            second=79 - drop_low,
            drop=drop_low + 1,
            drop_low=drop_low,
            drop_high=drop_low + 2,
        )
    return LabelAgreement(
        threshold=0.5,
        labels=6,
        agreement=agreement,
        agreement_low=agreement - 1,
        agreement_high=agreement + 1,
        decisions_changed=1,
        images_changed=5,
        given=500,
        lost=5,
        gained=5,
        mean_average_precision=precision,
    )


@pytest.mark.parametrize(
    ("agreement", "drop_low", "expected"),
    [
        (99.5, -1.0, Verdict.HOLDS),
        (96.0, -1.0, Verdict.ENOUGH),
        (94.5, -1.0, Verdict.WITHIN),
        (99.5, 0.2, Verdict.UNCLEAR),
        (99.5, 0.31, Verdict.REFUSED),
        (93.6, -1.0, Verdict.REFUSED),
    ],
)
def test_known_labels_are_refine_precision_and_by_what_changed(
    agreement: float, drop_low: float, expected: Verdict
) -> None:
    multi_label = labels(agreement, drop_low)
    assert judge(replace(paired_accuracy(), multi_label=multi_label)) is expected


def test_a_worse_best_class_is_refused_however_well_labels_agree() -> None:
    paired = replace(paired_accuracy(n=1000, changed=50, lost=50), drop_low=3.0)
    assert judge(replace(paired, multi_label=labels(99.5, -1.0))) is Verdict.REFUSED


@pytest.mark.parametrize(
    ("snr_db", "expected"),
    [(31, Verdict.HOLDS), (25, Verdict.ENOUGH), (5, Verdict.UNCLEAR)],
)
def test_outputs_of_unknown_meaning_are_refine_their_error_and_never_refused(
    snr_db: float, expected: Verdict
) -> None:
    paired = replace(paired_accuracy(changed=200, lost=200), logits_snr_db=snr_db)
    assert judge(replace(paired, unjudged="one output")) is expected
