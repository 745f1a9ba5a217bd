"""Predictions of one run on the images of a data set, and the paired comparison of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Artifact
from repzoo.data.dataset import Dataset
from repzoo.errors import InputError
from repzoo.measure import stats
from repzoo.measure.record import Record, full_identity_of
from repzoo.measure.results import Accuracy, PairedAccuracy
from repzoo.storage import sha256_of

VISIBLE_DROP = 0.3  # points of Top-1; the quantizer's default budget


@dataclass(frozen=True)
class Predictions:
    """The best classes that one run gave for each image that could be read.

    identity  of the model or of the results' file, as in a Record
    labels    of the outputs; empty when unknown
    engine    name and version
    data      the images: name, number, hash of their keys
    keys      of the images, in order
    targets   int [n]: the correct output index
    top       int [n, min(5, classes)]: output indices, best first
    """

    identity: Mapping[str, Any]
    labels: tuple[str, ...]
    engine: Mapping[str, Any]
    data: Mapping[str, Any]
    keys: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    top: npt.NDArray[np.int64]

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether Top-1 is correct, bool [n]."""
        return np.asarray(self.top[:, 0] == self.targets)

    def record(self) -> Record[Accuracy]:
        """Top-1 and Top-5 in percent with Wilson intervals; samples: the same for each class."""
        n = len(self.keys)
        in_top5 = (self.top == self.targets[:, None]).any(1)
        top1 = stats.wilson(int(self.correct.sum()), n)
        top5 = stats.wilson(int(in_top5.sum()), n)
        values = Accuracy(
            n=n,
            top1=100 * top1.value,
            top1_low=100 * top1.low,
            top1_high=100 * top1.high,
            top5=100 * top5.value,
            top5_low=100 * top5.low,
            top5_high=100 * top5.high,
        )
        samples = {"classes": self.by_class()}
        return Record(self.identity, values, self.engine, self.data, samples)

    def by_class(self) -> list[dict[str, Any]]:
        """A row for each class that has images, worst first, for the samples of a Record.

        Each has the class's index and label, n, Top-1 in percent with its interval, and the class
        that its images are most often mistaken for (None when no image is).
        """
        rows = [self._class_row(int(target)) for target in np.unique(self.targets)]
        # By the upper bound: one wrong image out of one is no evidence of a bad class.
        return sorted(rows, key=lambda row: (row["top1_high"], row["index"]))

    def _class_row(self, target: int) -> dict[str, Any]:
        in_class = self.targets == target
        n = int(in_class.sum())
        interval = stats.wilson(int(self.correct[in_class].sum()), n)
        mistakes = np.bincount(self.top[in_class & ~self.correct, 0])
        return {
            "index": target,
            "class": self.label(target),
            "n": n,
            "top1": 100 * interval.value,
            "top1_low": 100 * interval.low,
            "top1_high": 100 * interval.high,
            "taken_for": self.label(int(mistakes.argmax())) if len(mistakes) else None,
        }

    def label(self, index: int) -> str:
        """The label of an output, or its number where it has none."""
        return self.labels[index] if index < len(self.labels) else str(index)


@dataclass(frozen=True)
class ModelPredictions(Predictions):
    """Predictions of a model on an engine.

    logits  the outputs as the graph gives them, float32 [n, classes], where they were kept
    """

    artifact: Artifact
    logits: npt.NDArray[np.float32] | None = None

    def of_images(
        self, images: Dataset, targets: npt.NDArray[np.int64]
    ) -> ModelPredictions:
        """The same predictions for `images`, which are some of its own.

        targets  int [n]: the correct output index of each
        """
        positions = {key: position for position, key in enumerate(self.keys)}
        chosen = [positions[key] for key in images.keys]
        return replace(
            self,
            keys=images.keys,
            data=describe_images(images.name, images.keys),
            targets=targets,
            top=self.top[chosen],
            logits=None if self.logits is None else self.logits[chosen],
        )

    def record(self) -> Record[Accuracy]:
        """As of all predictions; of an INT8 model it says how much of it runs in INT8."""
        identity = {**full_identity_of(self.artifact), **self.identity}
        return replace(super().record(), artifact=identity)


def describe_images(
    name: str, keys: Sequence[str], unreadable: int = 0
) -> dict[str, Any]:
    """The images `keys` of the data set `name`, as a Record has them: equal for equal images."""
    digest = sha256_of("\n".join(keys).encode())
    return {"name": name, "n": len(keys), "sha256": digest, "unreadable": unreadable}


def best_classes(logits: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` largest logits of each row, best first; ties go to the lower index."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :count]


def compare(
    first: Predictions, second: Predictions, *, drop: float = VISIBLE_DROP
) -> Record[PairedAccuracy]:
    """Top-1 of `first` minus Top-1 of `second`, on the same images.

    This is the accuracy drop when `first` is the float model and `second` its INT8 form.

    drop  in points: `needed` is how many images would show it; `visible` is the drop that these
          images would show

    Source of the interval: stats.paired_difference; of the p-value: stats.mcnemar; of `needed`:
    stats.pairs_needed.

    Raises:
        InputError: the two runs are of different images, or order their classes differently.
    """
    if first.keys != second.keys:
        raise InputError("the two runs are of different images; evaluate them together")
    if not np.array_equal(first.targets, second.targets):
        raise InputError(
            "the two models have their classes in different orders, "
            "so their outputs cannot be compared one to one"
        )
    n = len(first.keys)
    both = int(np.sum(first.correct & second.correct))
    lost = int(np.sum(first.correct & ~second.correct))
    gained = int(np.sum(~first.correct & second.correct))
    neither = n - both - lost - gained
    # Paired: most images are answered alike, so that the interval is far narrower than that of two
    # independent accuracies.
    interval = stats.paired_difference(both, lost, gained, neither)
    discordant = (lost + gained) / n
    flips = _flips(first, second)
    values = PairedAccuracy(
        top1=100 * float(second.correct.mean()),
        first_top1=100 * float(first.correct.mean()),
        n=n,
        drop=100 * interval.value,
        drop_low=100 * interval.low,
        drop_high=100 * interval.high,
        p_value=stats.mcnemar(lost, gained),
        same_prediction=100 * (1 - len(flips) / n),
        lost=lost,
        gained=gained,
        needed=stats.pairs_needed(discordant, drop / 100),
        needed_drop=drop,
        visible=100 * stats.visible_difference(discordant, n),
        power=stats.POWER,
    )
    artifact = {"first": first.identity, "second": second.identity}
    return Record(artifact, values, second.engine, first.data, {"flips": flips})


def _flips(first: Predictions, second: Predictions) -> list[dict[str, Any]]:
    """A row for each image whose predicted class differs, for the samples of a Record."""
    flips = []
    for position in np.flatnonzero(first.top[:, 0] != second.top[:, 0]):
        target = int(first.targets[position])
        first_class = int(first.top[position, 0])
        second_class = int(second.top[position, 0])
        flips.append(
            {
                "key": first.keys[position],
                "target": target,
                "first": first_class,
                "second": second_class,
                "target_label": first.label(target),
                "first_label": first.label(first_class),
                "second_label": second.label(second_class),
            }
        )
    return flips
