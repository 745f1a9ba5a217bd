"""What noise on a model's logits will do to its predictions, told from few images.

Of 256 images two or three change their class when a good model is quantized, and which ones is luck. But the noise can be measured on
every image and so can the margins that it has to overcome. So each image's margins meet the noise of every image, as if that were
drawn anew: n images tell what n^2 would. It takes the noise to be the same for images of wide and of narrow margins, and to stay
among the best classes: good models' is; where it is as large as the signal, what is told may be twice or half the truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

RIVALS = 5  # best classes of a model, among which the prediction is thought to move
MOST = 2048  # margins, and noises: of more, evenly spaced ones, since each of these meets each of those
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Margins:
    """Of a model on some images: its best classes, [n, up to RIVALS], the best first, and their logits less the best one's."""

    classes: Index
    values: Float

    @classmethod
    def of(cls, logits: Logits) -> Margins:
        """Those of `logits` [n, classes]."""
        classes = np.argsort(-logits, axis=1, kind="stable")[:, :RIVALS]
        values = np.take_along_axis(logits, classes, 1).astype(np.float64)
        return cls(classes, values - values[:, :1])

    @classmethod
    def joined(cls, parts: Sequence[Margins]) -> Margins:
        """Of the images of all `parts`."""
        return cls(
            np.concatenate([one.classes for one in parts]),
            np.concatenate([one.values for one in parts]),
        )


def expected_drop_values(
    margins: Margins, targets: Index, first: Logits, second: Logits
) -> dict[str, float]:
    """What `expected` and `snr_db` find, as values of a Record."""
    found = expected_drop(margins, targets, first, second)
    return {
        **{f"expected_{name}": value for name, value in asdict(found).items()},
        "logits_snr_db": snr_db(first, second),
    }


@dataclass(frozen=True)
class ExpectedDrop:
    """In percent of images, each with its standard error: predictions that change, and Top-1 lost (less what is gained)."""

    changed: float
    changed_error: float
    drop: float
    drop_error: float


def expected_drop(margins: Margins, targets: Index, first: Logits, second: Logits) -> ExpectedDrop:
    """Of a model with the logits `second` in place of `first`, both [n, classes], where the margins are `margins` and the right classes
    `targets`; that may be on other images than those of the logits.

    Standard errors are those of a two-sample U-statistic, the margins one sample and the noise the other: E. L. Lehmann, "Consistency
    and unbiasedness of certain nonparametric tests", Annals of Mathematical Statistics 22 (1951).
    """
    some, all_margins = _spaced(len(first)), _spaced(len(targets))
    first, second = first[some], second[some]
    change = np.take_along_axis(second.astype(np.float64) - first, Margins.of(first).classes, 1)
    noise = change - change[:, :1]
    values = margins.values[all_margins]
    moved = np.array(
        [(one + noise).argmax(1).astype(np.int8) for one in values]
    )  # [margins, noise]: which of the best it is now
    found = margins.classes[all_margins] == targets[all_margins, None]
    right = np.where(found.any(1), found.argmax(1), -1)[:, None]
    return ExpectedDrop(
        *_percent(moved != 0), *_percent((right == 0).astype(float) - (moved == right))
    )


def drop_interval(values: Mapping[str, float]) -> tuple[float, float]:
    """95 % interval of the drop to be expected, from a Record's `expected_drop` and its standard error `expected_drop_error`."""
    drop, reach = values["expected_drop"], 1.96 * values["expected_drop_error"]
    return drop - reach, drop + reach


def _spaced(count: int) -> Index:
    return np.linspace(0, count - 1, min(count, MOST)).round().astype(np.int64)


def snr_db(first: Logits, second: Logits) -> float:
    """Signal of `first` over its noise in `second`, both [n, classes], in dB, up to 200; what all classes of an image share left out, as
    it decides nothing. Of two models the one with less noise is told by fewer images than by `expected`, which looks at a few classes.
    """
    signal, noise = (
        one - one.mean(1, keepdims=True)
        for one in (first.astype(np.float64), second.astype(np.float64) - first)
    )
    power, wrong = np.square(signal).mean(), np.square(noise).mean()
    return float(10 * np.log10(power / max(wrong, 1e-20 * power))) if power else 0.0


def _percent(cases: npt.NDArray[np.bool_] | Float) -> tuple[float, float]:
    """Mean of `cases` [margins, noise], and its standard error, in percent."""
    rows, columns = cases.shape
    error = math.sqrt(cases.mean(1).var() / rows + cases.mean(0).var() / columns)
    return 100 * float(cases.mean()), 100 * error
