"""Label-by-label comparison against hand counts, and against Top-1 where an image has one label."""

from __future__ import annotations

import numpy as np
import pytest

from repzoo.measure import stats
from repzoo.measure.multi_label import compare_labels, mean_average_precision

RANDOM = np.random.default_rng(0)


def test_changes_are_counted_label_by_label() -> None:
    first = np.array([[0.9, 0.6, 0.1], [0.2, 0.3, 0.4]], np.float32)
    second = np.array([[0.8, 0.4, 0.6], [0.2, 0.3, 0.5]], np.float32)
    labels = compare_labels(first, second, threshold=0.5)
    assert (labels.given, labels.lost, labels.gained) == (2, 1, 1)
    assert labels.agreement == 50  # 1 of 2 labels in each
    assert labels.decisions_changed == pytest.approx(100 * 2 / 6)
    assert labels.images_changed == 50
    assert labels.mean_average_precision is None


def test_with_one_label_for_each_image_it_is_the_share_of_equal_predictions() -> None:
    classes = RANDOM.integers(0, 10, 500)
    others = np.where(RANDOM.random(500) < 0.1, (classes + 1) % 10, classes)
    first = np.eye(10, dtype=np.float32)[classes]
    second = np.eye(10, dtype=np.float32)[others]
    labels = compare_labels(first, second, threshold=0.5)
    assert labels.agreement == pytest.approx(100 * (classes == others).mean())
    interval = stats.wilson(int((classes == others).sum()), 500)
    assert labels.agreement_low == pytest.approx(100 * interval.low, abs=0.1)


def test_a_model_that_gives_no_label_agrees_in_nothing() -> None:
    first = (RANDOM.random((200, 80)) < 3 / 80).astype(np.float32)
    labels = compare_labels(first, np.zeros_like(first), threshold=0.5)
    assert labels.decisions_changed < 5
    assert labels.agreement == 0
    assert labels.agreement_high < 2


def test_without_any_label_nothing_is_known() -> None:
    none = np.zeros((4, 3), np.float32)
    labels = compare_labels(none, none, threshold=0.5)
    assert not labels.is_known
    assert (labels.agreement_low, labels.agreement_high) == (0, 100)


def test_labels_of_an_image_are_not_independent() -> None:
    """The same share of changes is less certain where whole images change."""
    ones = np.ones((100, 50), np.float32)
    scattered = ones - (RANDOM.random((100, 50)) < 0.1)
    whole = ones - (np.arange(100) < 10)[:, None]
    widths = []
    for second in (scattered, whole.astype(np.float32)):
        labels = compare_labels(ones, second.astype(np.float32), threshold=0.5)
        widths.append(labels.agreement_high - labels.agreement_low)
    assert widths[1] > 3 * widths[0]


def test_average_precision_by_hand() -> None:
    """Ranks 1 and 3 are right: (1/1 + 2/3) / 2. Of equal scores, all are ranked together."""
    truth = np.array([[1], [0], [1], [0]], bool)
    scores = np.array([[0.9], [0.8], [0.7], [0.1]], np.float32)
    assert mean_average_precision(scores, truth) == pytest.approx(5 / 6)
    assert mean_average_precision(np.ones_like(scores), truth) == pytest.approx(0.5)


def test_average_precision_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="the demo extra is missing")
    truth = RANDOM.random((60, 4)) < 0.3
    scores = RANDOM.integers(0, 20, (60, 4)).astype(np.float32)
    expected = metrics.average_precision_score(truth, scores, average="macro")
    assert mean_average_precision(scores, truth) == pytest.approx(expected)


def test_known_labels_give_a_drop_with_an_interval() -> None:
    targets = RANDOM.integers(0, 4, 200)
    first = np.eye(4, dtype=np.float32)[targets] * 0.8 + 0.1
    noise = RANDOM.normal(size=first.shape) / 2
    second = (first + noise).astype(np.float32)
    average = compare_labels(first, second, 0.5, targets).mean_average_precision
    same = compare_labels(first, first, 0.5, targets).mean_average_precision
    assert average is not None
    assert same is not None
    assert average.first == 100
    assert 0 < average.drop_low < average.drop < average.drop_high < 100
    assert (same.drop_low, same.drop, same.drop_high) == (0, 0, 0)
