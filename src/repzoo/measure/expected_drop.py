"""The accuracy drop to expect on new images, estimated from the logits of a few hundred.

Of 256 images, two or three change their class when a good model is quantized, and which ones is a
matter of chance. But the quantization error of the logits can be measured on every image, and so
can the margins that it has to overcome. So every image's margins are paired with every image's
error, as if the error were drawn anew: n images give n^2 pairs.

For an image with margins m_k <= 0 (logit of class k less the largest logit; m_0 = 0) and an error
e_k (relative to e_0), the prediction becomes argmax_k (m_k + e_k).

This assumes that images of wide and of narrow margins have the same error, and that the prediction
stays among the best classes. Both hold for good models. Where the error is as large as the signal,
the estimate may be twice or half the truth.

The first does not hold for probabilities, whose errors vanish where they are near 0 or 1: pairing
them gives half of the changes that occur. So the outputs of a softmax or a sigmoid are turned back
into logits first (`Head.logits`), and a model gets the same figures with and without its softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from repzoo.measure.results import ExpectedDrop

RIVALS = 5  # best classes of a model, among which the prediction may move
# Margins, and errors, that are used at most: every one of each is paired with every one of the
# other. Of more, evenly spaced ones are taken.
MAX_PAIRED = 2048
SMALLEST_NOISE = 1e-20  # of the signal's power: no ratio is above 200 dB
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Margins:
    """The best classes of a model on some images, and how far they lie behind the best one.

    classes  int64 [n, up to RIVALS]: best first
    values   float64, same shape: their logits less the best one's, so at most 0
    """

    classes: Index
    values: Float

    @classmethod
    def from_logits(cls, logits: Logits) -> Margins:
        """The margins of `logits` [n, classes]."""
        order = np.argsort(-logits, axis=1, kind="stable")
        classes = order[:, :RIVALS]
        values = np.take_along_axis(logits, classes, 1)
        values = values.astype(np.float64)
        return cls(classes, np.asarray(values - values[:, :1]))

    @classmethod
    def concatenate(cls, parts: Sequence[Margins]) -> Margins:
        """The margins of the images of all `parts`."""
        classes = [part.classes for part in parts]
        values = [part.values for part in parts]
        return cls(np.concatenate(classes), np.concatenate(values))


def expected_drop(
    margins: Margins, targets: Index, first: Logits, second: Logits
) -> ExpectedDrop:
    """The drop to expect when a model gives the logits `second` in place of `first`.

    margins  of the first model, on these or on other images of the kind
    targets  int64: the correct class of each image of `margins`
    first    float32 [n, classes]; `second` likewise

    The standard errors are those of a two-sample U-statistic, with the margins as one sample and
    the errors as the other: E. L. Lehmann, "Consistency and unbiasedness of certain nonparametric
    tests", Annals of Mathematical Statistics 22 (1951).
    """
    # Which margins and which errors are taken does not matter, as every pair is formed.
    error_rows = _evenly_spaced(len(first))
    first, second = first[error_rows], second[error_rows]
    best_classes = Margins.from_logits(first).classes
    differences = second.astype(np.float64) - first
    errors = np.take_along_axis(differences, best_classes, 1)
    errors = errors - errors[:, :1]

    margin_rows = _evenly_spaced(len(targets))
    predicted = _predicted_ranks(margins.values[margin_rows], errors)
    is_target = margins.classes[margin_rows] == targets[margin_rows, None]
    # -1 where the correct class is not among the best ones.
    target_rank = np.where(is_target.any(1), is_target.argmax(1), -1)[:, None]

    changed, changed_error = _percent(predicted != 0)
    was_correct = (target_rank == 0).astype(float)
    is_correct = predicted == target_rank
    drop, drop_error = _percent(was_correct - is_correct)
    return ExpectedDrop(
        changed=changed, changed_error=changed_error, drop=drop, drop_error=drop_error
    )


def _predicted_ranks(margins: Float, errors: Float) -> npt.NDArray[np.int8]:
    """The rank, before quantization, of the class that is best after it, [margins, errors].

    Every row of `margins` [m, rivals] is paired with every row of `errors` [n, rivals].
    """
    # A row at a time, and int8: there are up to 2048 x 2048 pairs.
    ranks = np.empty((len(margins), len(errors)), np.int8)
    for index, row in enumerate(margins):
        ranks[index] = (row + errors).argmax(1)
    return ranks


def _evenly_spaced(count: int) -> Index:
    spaced = np.linspace(0, count - 1, min(count, MAX_PAIRED))
    return spaced.round().astype(np.int64)


def snr_db(first: Logits, second: Logits) -> float:
    """Signal-to-noise ratio of the logits `second` against `first`, both [n, classes], in dB.

    The mean over the classes of an image is left out, as it decides nothing. At most 200; 0
    where there is no signal. Fewer images tell two models apart by this figure than by
    `expected_drop`, which looks at a few classes only.
    """
    signal = _centered(first.astype(np.float64))
    noise = _centered(second.astype(np.float64) - first)
    return _power_ratio_db(signal, noise)


def output_snr_db(first: Logits, second: Logits) -> float:
    """Signal-to-noise ratio of any outputs [n, outputs], in dB.

    The signal is what differs between images: the mean of each output is left out. At most 200; 0
    where there is no signal.
    """
    signal = first.astype(np.float64)
    noise = second.astype(np.float64) - first
    return _power_ratio_db(signal - signal.mean(0), noise)


def _power_ratio_db(signal: Float, noise: Float) -> float:
    signal_power = np.square(signal).mean()
    noise_power = np.square(noise).mean()
    if not signal_power:
        return 0.0
    least_power = SMALLEST_NOISE * signal_power
    ratio = signal_power / max(noise_power, least_power)
    return float(10 * np.log10(ratio))


def _centered(logits: Float) -> Float:
    means: Float = logits.mean(1, keepdims=True)
    return logits - means


def _percent(cases: npt.NDArray[np.bool_] | Float) -> tuple[float, float]:
    """Mean of `cases` [margins, errors], and its standard error, in percent."""
    rows, columns = cases.shape
    margin_variance = cases.mean(1).var() / rows
    error_variance = cases.mean(0).var() / columns
    error = math.sqrt(margin_variance + error_variance)
    return 100 * float(cases.mean()), 100 * error
