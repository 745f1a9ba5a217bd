"""What noise on logits will do to predictions, against drawing that noise again and again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from repzoo.measure.expected_drop import (
    MOST,
    ExpectedDrop,
    Margins,
    drop_interval,
    expected_drop,
    snr_db,
)

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


def noisy(logits: npt.NDArray[np.float32], size: float, seed: int) -> npt.NDArray[np.float32]:
    return (logits + np.random.default_rng(seed).normal(0, size, logits.shape)).astype(np.float32)


def told(
    logits: npt.NDArray[np.float32],
    other: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64] | None = None,
) -> ExpectedDrop:
    found = Margins.of(logits)
    return expected_drop(found, found.classes[:, 0] if targets is None else targets, logits, other)


@pytest.mark.parametrize("size", [0.02, 0.1, 0.4])
def test_it_is_what_many_draws_of_the_noise_give(size: float) -> None:
    logits, targets = model()
    drawn = [noisy(logits, size, seed).argmax(1) for seed in range(1, 301)]
    changed = 100 * np.mean([one != logits.argmax(1) for one in drawn])
    drop = 100 * (np.mean(logits.argmax(1) == targets) - np.mean([one == targets for one in drawn]))
    one = told(logits, noisy(logits, size, 1000), targets)
    assert one.changed == pytest.approx(changed, rel=0.2)
    assert one.drop == pytest.approx(drop, rel=0.3, abs=0.1)


def test_its_error_is_that_of_other_images() -> None:
    found = []
    for seed in range(200):
        logits, targets = model(seed)
        found.append(told(logits, noisy(logits, 0.1, 1000 + seed), targets))
    for name in ("changed", "drop"):
        spread = np.std([getattr(one, name) for one in found])
        assert np.mean([getattr(one, f"{name}_error") for one in found]) == pytest.approx(
            spread, rel=0.25
        ), name


def test_it_varies_less_than_counting() -> None:
    counted, foretold = [], []
    for seed in range(200):
        logits, targets = model(seed)
        other = noisy(logits, 0.05, 1000 + seed)
        counted.append(100 * np.mean(logits.argmax(1) != other.argmax(1)))
        foretold.append(told(logits, other, targets).changed)
    assert np.mean(foretold) == pytest.approx(np.mean(counted), rel=0.1)
    assert np.std(foretold) < 0.7 * np.std(counted)


def test_the_margins_may_be_those_of_other_images() -> None:
    (logits, _), (others, right) = model(1), model(2, images=2000)
    other = noisy(logits, 0.1, 3)
    wide = expected_drop(Margins.of(others), right, logits, other)
    assert wide.changed == pytest.approx(
        told(others, noisy(others, 0.1, 4), right).changed, rel=0.15
    )
    assert wide.changed_error < told(logits, other).changed_error
    parts = Margins.joined([Margins.of(others[:500]), Margins.of(others[500:])])
    assert expected_drop(parts, right, logits, other) == wide


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_what_moves_no_class_past_another_changes_nothing(shift: float) -> None:
    logits, targets = model()
    one = told(logits, logits + np.float32(shift), targets)
    assert (one.changed, one.changed_error, one.drop, one.drop_error) == (0, 0, 0, 0)


def test_a_model_that_always_says_the_same_is_expected_to_be_wrong() -> None:
    logits, targets = model()
    constant = np.zeros_like(logits)
    constant[:, 0] = 50
    one = told(logits, constant, targets)
    assert one.changed > 50
    assert one.drop > 30


def test_without_targets_what_changes_is_what_is_lost() -> None:
    logits, _ = model(classes=2)  # fewer classes than rivals
    one = told(logits, noisy(logits, 0.5, 1))
    assert one.changed > 0
    assert one.drop == pytest.approx(one.changed)


def test_what_was_wrong_can_be_gained() -> None:
    """Two classes; the model always says the first, just so, and the second is always right: noise can only gain."""
    logits, targets = np.tile(np.array([0.1, 0.0], np.float32), (100, 1)), np.ones(100, np.int64)
    assert told(logits, noisy(logits, 0.3, 1), targets).drop < -20


def test_signal_to_noise_of_known_noise() -> None:
    logits, _ = model(images=2000)
    signal = np.square(logits - logits.mean(1, keepdims=True)).mean()
    other = noisy(logits, 0.1, 1) + np.random.default_rng(2).normal(0, 9, (len(logits), 1)).astype(
        np.float32
    )  # shared: no matter
    known = 10 * np.log10(signal / (0.01 * (1 - 1 / CLASSES)))
    assert snr_db(logits, other) == pytest.approx(known, abs=0.1)
    assert snr_db(logits, logits) == pytest.approx(200)
    assert snr_db(0 * logits, logits) == 0


def test_of_very_many_images_some_tell_the_same_in_bounded_memory() -> None:
    logits, targets = model(images=5 * MOST)
    other = noisy(logits, 0.1, 1)
    one, some = told(logits, other, targets), slice(None, None, 5)
    assert one.changed == pytest.approx(
        told(logits[some], other[some], targets[some]).changed, rel=0.1
    )
    assert one.changed_error < told(logits[:300], other[:300], targets[:300]).changed_error


def test_the_interval_is_two_standard_errors_wide_on_either_side() -> None:
    assert drop_interval({"expected_drop": 0.5, "expected_drop_error": 0.1}) == pytest.approx(
        (0.304, 0.696)
    )
