"""Two multi-label models on the same images, compared label by label.

A head of sigmoids decides each label on its own: it holds where its probability is above a
threshold. Which output is the largest decides nothing, so Top-1 says little about such a head.

What two models agree on is counted over the labels that at least one of them gives:

    agreement = 2 both / (labels of the first + labels of the second)

This is the F1 score of one model's labels against the other's. Decisions that both models make
against a label do not enter: with 80 labels of which 3 hold, a model that never gives any would
agree in 96 % of its decisions. Where every image has exactly one label, the agreement is the share
of images with the same prediction.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from repzoo.measure import stats
from repzoo.measure.results import LabelAgreement, MeanAveragePrecision
from repzoo.measure.stats import Interval

# Groups of images that the jackknife leaves out in turn.
GROUPS = 20

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Outputs = npt.NDArray[np.float32]


def compare_labels(
    first: Outputs,
    second: Outputs,
    threshold: float,
    targets: npt.NDArray[np.int64] | None = None,
) -> LabelAgreement:
    """How far the labels of `second` agree with those of `first`.

    first, second  probabilities float32 [n, labels] of both models, on the same images
    threshold      a label holds where its probability is above
    targets        int [n]: the label that each image is known to have; None: not known
    """
    first_holds = first > threshold
    second_holds = second > threshold
    changed = first_holds != second_holds
    agreement = _agreement(changed, first_holds, second_holds)
    average_precision = None
    if targets is not None:
        truth = np.zeros(first.shape, np.bool_)
        truth[np.arange(len(truth)), targets] = True
        average_precision = _average_precisions(first, second, truth)
    return LabelAgreement(
        threshold=threshold,
        labels=first.shape[1],
        agreement=100 * agreement.value,
        agreement_low=100 * agreement.low,
        agreement_high=100 * agreement.high,
        decisions_changed=100 * float(changed.mean()),
        images_changed=100 * float(changed.any(axis=1).mean()),
        given=int(first_holds.sum()),
        lost=int((first_holds & changed).sum()),
        gained=int((second_holds & changed).sum()),
        mean_average_precision=average_precision,
    )


def mean_average_precision(scores: Outputs, truth: Bools) -> float:
    """Mean over the labels that any image has of their average precision, 0..1.

    Equal scores are ranked together: outputs of INT8 models take few values.

    scores  [n, labels]
    truth   bool, same shape: the labels that each image has

    Source: average precision without interpolation, as in scikit-learn's
    `average_precision_score`.
    """
    precisions = []
    for label in np.flatnonzero(truth.any(axis=0)):
        precisions.append(_label_precision(scores[:, label], truth[:, label]))
    return float(np.mean(precisions)) if precisions else math.nan


def _label_precision(scores: Outputs, truth: Bools) -> float:
    """The average precision of one label: sum of precision times gained recall."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    hits = np.cumsum(truth[order])
    # The last rank of each group of equal scores.
    changes = np.flatnonzero(np.diff(ordered))
    ends = np.append(changes, len(ordered) - 1)
    hits_at_ends = hits[ends]
    precision = hits_at_ends / (ends + 1)
    recall = hits_at_ends / hits[-1]
    gained_recall = np.diff(recall, prepend=0.0)
    return float((gained_recall * precision).sum())


def _agreement(changed: Bools, first: Bools, second: Bools) -> Interval:
    """The agreement (0..1) with a Wilson interval that knows that labels of an image are alike.

    By the spread between images, the labels count as so many independent ones.

    Source: as `stats.quantile_interval` (Korn and Graubard, 1998), for the ratio of two sums.
    """
    disagreements = changed.sum(axis=1).astype(float)
    labels = first.sum(axis=1) + second.sum(axis=1).astype(float)
    total = labels.sum()
    if not total:
        return Interval(1.0, 0.0, 1.0)  # no label is given, so nothing is known
    share = float(disagreements.sum() / total)
    # Half: the labels of both models were added up.
    independent = max(1, round(total / 2))
    variance = _variance_of_ratio(disagreements, labels, share)
    if variance:
        effective = round(share * (1 - share) / variance)
        independent = min(independent, max(1, effective))
    value = 1 - share
    interval = stats.wilson(round(value * independent), independent)
    # The counts were rounded, which must not put the value itself outside.
    low = min(value, interval.low)
    high = max(value, interval.high)
    return Interval(value, low, high)


def _variance_of_ratio(parts: Floats, wholes: Floats, ratio: float) -> float:
    """The variance of sum(parts) / sum(wholes) = `ratio`; both have a value for each image."""
    images = len(wholes)
    residuals = parts - ratio * wholes
    squares = float((residuals**2).sum())
    correction = images / max(1, images - 1)
    return float(correction * squares / wholes.sum() ** 2)


def _average_precisions(
    first: Outputs, second: Outputs, truth: Bools
) -> MeanAveragePrecision:
    """The mean average precision of both, and the drop with its interval.

    The interval is from a jackknife over groups of images, with Student's t.

    Source: P. S. Kott, "The delete-a-group jackknife", Journal of Official Statistics 17 (2001).
    """
    first_map = mean_average_precision(first, truth)
    second_map = mean_average_precision(second, truth)
    drop = first_map - second_map
    reach = _jackknife_reach(drop, _drops_without_groups(first, second, truth))
    return MeanAveragePrecision(
        first=100 * first_map,
        second=100 * second_map,
        drop=100 * drop,
        drop_low=100 * (drop - reach),
        drop_high=100 * (drop + reach),
    )


def _drops_without_groups(first: Outputs, second: Outputs, truth: Bools) -> list[float]:
    """The drop of mean average precision without each group of images in turn."""
    # In turns: folders are read class by class, and each group needs images of all.
    groups = np.arange(len(truth)) % GROUPS
    drops = []
    for group in range(min(GROUPS, len(truth))):
        kept = groups != group
        known = truth[kept]
        if known.any():
            first_map = mean_average_precision(first[kept], known)
            second_map = mean_average_precision(second[kept], known)
            drops.append(first_map - second_map)
    return drops


def _jackknife_reach(drop: float, drops: list[float]) -> float:
    """Half the 95 % interval of `drop`; NaN where there are too few groups to tell."""
    count = len(drops)
    if count < 2:
        return math.nan
    deviations = np.array(drops) - drop
    squares = float((deviations**2).sum())
    variance = (count - 1) / count * squares
    return stats.student(count - 1) * math.sqrt(variance)
