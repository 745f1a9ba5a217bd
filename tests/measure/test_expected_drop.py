"""The expected drop against the mean over many draws of the same noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from repzoo.measure.expected_drop import MAX_PAIRED, Margins, expected_drop, snr_db
from repzoo.measure.results import ExpectedDrop

IMAGES, CLASSES = 300, 12


def model(
    seed: int = 0, classes: int = CLASSES, images: int = IMAGES
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Logits of a model that is often right, and the right classes."""
    draws = np.random.default_rng(seed)
    targets = draws.integers(0, classes, images)
    logits = draws.normal(0, 1, (images, classes))
    logits[np.arange(images), targets] += 2
    return logits.astype(np.float32), targets


def add_noise(
    logits: npt.NDArray[np.float32], size: float, seed: int
) -> npt.NDArray[np.float32]:
    return (logits + np.random.default_rng(seed).normal(0, size, logits.shape)).astype(
        np.float32
    )


def estimate(
    logits: npt.NDArray[np.float32],
    other: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64] | None = None,
) -> ExpectedDrop:
    margins = Margins.from_logits(logits)
    if targets is None:
        targets = margins.classes[:, 0]
    return expected_drop(margins, targets, logits, other)


@pytest.mark.parametrize("size", [0.02, 0.1, 0.4])
def test_the_estimate_is_the_mean_over_many_draws_of_the_noise(size: float) -> None:
    logits, targets = model()
    drawn = [add_noise(logits, size, seed).argmax(1) for seed in range(1, 301)]
    changed = 100 * np.mean([predicted != logits.argmax(1) for predicted in drawn])
    accuracy = np.mean([predicted == targets for predicted in drawn])
    drop = 100 * (np.mean(logits.argmax(1) == targets) - accuracy)
    expected = estimate(logits, add_noise(logits, size, 1000), targets)
    assert expected.changed == pytest.approx(changed, rel=0.2)
    assert expected.drop == pytest.approx(drop, rel=0.3, abs=0.1)


def test_the_standard_error_is_the_spread_over_other_images() -> None:
    estimates = []
    for seed in range(200):
        logits, targets = model(seed)
        estimates.append(estimate(logits, add_noise(logits, 0.1, 1000 + seed), targets))
    for name in ("changed", "drop"):
        spread = np.std([getattr(expected, name) for expected in estimates])
        errors = [getattr(expected, f"{name}_error") for expected in estimates]
        assert np.mean(errors) == pytest.approx(spread, rel=0.25), name


def test_the_estimate_varies_less_than_the_counted_changes() -> None:
    counted, estimated = [], []
    for seed in range(200):
        logits, targets = model(seed)
        other = add_noise(logits, 0.05, 1000 + seed)
        counted.append(100 * np.mean(logits.argmax(1) != other.argmax(1)))
        estimated.append(estimate(logits, other, targets).changed)
    assert np.mean(estimated) == pytest.approx(np.mean(counted), rel=0.1)
    assert np.std(estimated) < 0.7 * np.std(counted)


def test_margins_of_more_images_lower_the_standard_error() -> None:
    (logits, _), (others, right) = model(1), model(2, images=2000)
    other = add_noise(logits, 0.1, 3)
    wide = expected_drop(Margins.from_logits(others), right, logits, other)
    assert wide.changed == pytest.approx(
        estimate(others, add_noise(others, 0.1, 4), right).changed, rel=0.15
    )
    assert wide.changed_error < estimate(logits, other).changed_error
    parts = Margins.concatenate(
        [Margins.from_logits(others[:500]), Margins.from_logits(others[500:])]
    )
    assert expected_drop(parts, right, logits, other) == wide


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_a_shift_of_all_logits_changes_no_prediction(shift: float) -> None:
    logits, targets = model()
    expected = estimate(logits, logits + np.float32(shift), targets)
    assert (
        expected.changed,
        expected.changed_error,
        expected.drop,
        expected.drop_error,
    ) == (
        0,
        0,
        0,
        0,
    )


def test_constant_logits_lose_most_of_the_accuracy() -> None:
    logits, targets = model()
    constant = np.zeros_like(logits)
    constant[:, 0] = 50
    expected = estimate(logits, constant, targets)
    assert expected.changed > 50
    assert expected.drop > 30


def test_with_predictions_as_targets_every_change_is_a_loss() -> None:
    logits, _ = model(classes=2)  # fewer classes than rivals
    expected = estimate(logits, add_noise(logits, 0.5, 1))
    assert expected.changed > 0
    assert expected.drop == pytest.approx(expected.changed)


def test_noise_can_correct_wrong_predictions() -> None:
    """Of two classes the model narrowly predicts the first; the second is always correct."""
    logits, targets = (
        np.tile(np.array([0.1, 0.0], np.float32), (100, 1)),
        np.ones(100, np.int64),
    )
    assert estimate(logits, add_noise(logits, 0.3, 1), targets).drop < -20


def test_the_snr_of_known_noise() -> None:
    logits, _ = model(images=2000)
    signal = np.square(logits - logits.mean(1, keepdims=True)).mean()
    other = add_noise(logits, 0.1, 1) + np.random.default_rng(2).normal(
        0, 9, (len(logits), 1)
    ).astype(np.float32)  # shared: no matter
    known = 10 * np.log10(signal / (0.01 * (1 - 1 / CLASSES)))
    assert snr_db(logits, other) == pytest.approx(known, abs=0.1)
    assert snr_db(logits, logits) == pytest.approx(200)
    assert snr_db(0 * logits, logits) == 0


def test_of_many_images_an_evenly_spaced_subset_gives_the_same_estimate() -> None:
    logits, targets = model(images=5 * MAX_PAIRED)
    other = add_noise(logits, 0.1, 1)
    expected, subset = estimate(logits, other, targets), slice(None, None, 5)
    assert expected.changed == pytest.approx(
        estimate(logits[subset], other[subset], targets[subset]).changed, rel=0.1
    )
    assert (
        expected.changed_error
        < estimate(logits[:300], other[:300], targets[:300]).changed_error
    )


def test_the_interval_reaches_1_96_standard_errors_to_either_side() -> None:
    expected = ExpectedDrop(changed=1.0, changed_error=0.2, drop=0.5, drop_error=0.1)
    assert expected.drop_interval() == pytest.approx((0.304, 0.696))
