"""Labeled images: what every data set looks like to the rest of repzoo, and how it is split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from repzoo.data.description import WHOLE, DataDescription, PassedOver, uses_of
from repzoo.data.names import TRAIN, part_role
from repzoo.errors import InputError
from repzoo.remark import Remark

# The most images used to choose among candidates: more would only lengthen the search.
SELECTION = 256
SORTED = "sorted by name"

# (size in bytes, time of last modification in nanoseconds) of an image file.
Stamp = tuple[int, int]
GONE: Stamp = (-1, -1)


class UnreadableImage(InputError):
    """One image is broken. Commands count it, name it and continue."""


@dataclass(frozen=True)
class Dataset:
    """Labeled images in a fixed order.

    name      shown to people and stored in Records
    classes   class names; a target is an index into them
    keys      one stable identifier per image, such as a relative path
    targets   class index of each image
    load      key -> image. Raises UnreadableImage. Must be picklable for training with workers
    ordered   True if the data set itself says that `classes` is in the order of the model's outputs
    stamp     key -> Stamp of the image file, or GONE; None if the images are not files
    labeled   False for images without labels: `classes` is empty and every target is 0
    training  True if some of the images are of a part for training
    path      key -> the image file; None if the images are not files
    """

    name: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    targets: tuple[int, ...]
    load: Callable[[str], Image.Image]
    ordered: bool = False
    stamp: Callable[[str], Stamp] | None = None
    labeled: bool = True
    training: bool = False
    path: Callable[[str], Path] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.keys)

    def subset(self, indices: Sequence[int], name: str | None = None) -> Dataset:
        """The images at `indices`, in that order."""
        return replace(
            self,
            name=name or self.name,
            keys=tuple(self.keys[index] for index in indices),
            targets=tuple(self.targets[index] for index in indices),
        )

    def without_labels(self) -> Dataset:
        """The same images; what they show is not known."""
        targets = (0,) * len(self)
        return replace(self, classes=(), targets=targets, ordered=False, labeled=False)

    def balanced_sample(self, count: int, seed: int) -> list[int]:
        """Sorted indices of `count` images (or all), spread evenly over the classes.

        The same seed gives the same images.
        """
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        # Position of each image within its class: taking the lowest ranks first takes one image
        # of each class, then a second of each, and so on.
        rank: dict[int, int] = {}
        class_sizes: dict[int, int] = {}
        for index in order:
            target = self.targets[index]
            rank[index] = class_sizes.get(target, 0)
            class_sizes[target] = rank[index] + 1
        round_robin = sorted(order, key=lambda index: rank[index])
        return sorted(round_robin[:count])

    def remarks(self) -> list[str]:
        """What a person must know before he believes an accuracy on these images."""
        if not self.training:
            return []
        return [
            Remark(
                "{data} holds training images: accuracy on images that the model was trained on "
                "says nothing about new ones; keep some apart: DIR/train, DIR/validation, DIR/test",
                data=self.name,
            )
        ]


@dataclass(frozen=True)
class QuantizationSplit:
    """Three disjoint sets of images for quantization.

    calibration  sets ranges and rounding; labels are not used
    selection    compares candidates; from the same pool as calibration
    gate         judges the chosen candidate, once
    """

    calibration: Dataset
    selection: Dataset
    gate: Dataset

    def without_labels(self) -> QuantizationSplit:
        """The same images; what they show is not known."""
        return QuantizationSplit(
            self.calibration.without_labels(),
            self.selection.without_labels(),
            self.gate.without_labels(),
        )


@dataclass(frozen=True)
class DataSource:
    """A data set and its parts.

    parts        by the names that their folders have, such as "train", "valid" and "test"; {"all"}
                 for a folder without parts
    empty        classes that have a folder but no image in any part
    order        where the order of the classes comes from
    passed_over  files and folders that do not count
    """

    name: str
    parts: Mapping[str, Dataset]
    empty: tuple[str, ...] = ()
    order: str = SORTED
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the same in every part."""
        first = next(iter(self.parts.values()))
        return first.classes

    def join(self, *names: str) -> Dataset:
        """The named parts as one data set.

        "validation" also names a part whose folder is called "val", and so on.

        Raises:
            InputError: an unknown part, or the same part twice.
        """
        resolved = [part for name in names for part in self.resolve_part(name)]
        if len(set(resolved)) < len(resolved):
            raise InputError(
                f"a part of {self.name} is named twice in {', '.join(names)}, so its images would "
                "count twice; name each part once"
            )
        keys: list[str] = []
        targets: list[int] = []
        for name in resolved:
            keys += self.parts[name].keys
            targets += self.parts[name].targets
        return replace(
            self.parts[resolved[0]],
            name=f"{self.name}[{'+'.join(resolved)}]",
            keys=tuple(keys),
            targets=tuple(targets),
            training=any(self.parts[name].training for name in resolved),
        )

    def resolve_part(self, name: str) -> list[str]:
        """The parts that `name` means: the one of that name, or those of the same role.

        Raises:
            InputError: there is none.
        """
        if name in self.parts:
            return [name]
        role = part_role(name)
        same_role = [part for part in self.parts if role and part_role(part) == role]
        if not same_role:
            known = ", ".join(self.parts)
            raise InputError(f"{self.name} has no part {name!r}; it has {known}")
        return same_role

    def training_parts(self) -> list[str]:
        """Names of the parts for training; the whole of a data set without parts."""
        return [
            name for name in self.parts if name == WHOLE or part_role(name) == TRAIN
        ]

    def held_out_parts(self) -> list[str]:
        """Names of the parts that were not trained on; all where there is no such part."""
        names = [name for name in self.parts if part_role(name) not in ("", TRAIN)]
        return names or list(self.parts)

    @property
    def separates_training(self) -> bool:
        """Whether some parts are for training and others are held out."""
        training = self.training_parts()
        return bool(training) and set(training).isdisjoint(self.held_out_parts())

    def held_out(self) -> Dataset:
        """Images that were not trained on: validation and test if they exist, else everything."""
        return self.join(*self.held_out_parts())

    def describe_evaluation(
        self, parts: Sequence[str] = (), use: str = "evaluated"
    ) -> DataDescription:
        """What the data set was taken for by a command that reads `parts`, or the held out."""
        names = [name for part in parts for name in self.resolve_part(part)]
        return self._describe(dict.fromkeys(names or self.held_out_parts(), use))

    def describe_quantization(self) -> DataDescription:
        """What the data set was taken for by `split_for_quantization`."""
        if not self.separates_training:
            return self._describe(dict.fromkeys(self.parts, "calibration and gate"))
        uses = dict.fromkeys(self.training_parts(), "calibration")
        uses.update(dict.fromkeys(self.held_out_parts(), "gate"))
        return self._describe(uses)

    def describe_training(self) -> DataDescription:
        """What the data set was taken for by a training."""
        uses = {}
        if self.separates_training:
            uses = dict.fromkeys(self.held_out_parts(), "scored")
        uses.update(dict.fromkeys(self.training_parts(), "trained on"))
        return self._describe(uses)

    def _describe(self, uses: Mapping[str, str]) -> DataDescription:
        counts = {name: len(part) for name, part in self.parts.items()}
        return DataDescription(
            self.name, uses_of(counts, uses), self.classes, self.order, self.passed_over
        )

    def calibration_split(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """(calibration, gate) of `split_for_quantization`."""
        split = self.split_for_quantization(count, seed)
        return split.calibration, split.gate

    def split_for_quantization(self, count: int, seed: int) -> QuantizationSplit:
        """`count` images for calibration, up to SELECTION for selection, the rest for the gate.

        With parts for training beside others, calibration and selection are drawn from them and
        the gate is what was held out. If they are too small for both, calibration gets three
        quarters of them. A folder without parts gives at most a quarter of its images to
        calibration and an eighth to selection.

        Raises:
            InputError: `count` below 1, or too few images for three sets.
        """
        if count < 1:
            raise InputError(f"at least 1 calibration image is needed; got {count}")
        has_train = self.separates_training
        pool = self.join(*(self.training_parts() if has_train else self.parts))
        calibration_count, selection_count = _split_sizes(len(pool), count, has_train)
        if calibration_count < 1 or selection_count < 1:
            least = "2 in train" if has_train else "4"
            raise InputError(
                f"{self.name} has {len(pool)} images; at least {least} are needed to calibrate "
                "and evaluate"
            )

        calibration = pool.balanced_sample(calibration_count, seed)
        remaining = sorted(set(range(len(pool))) - set(calibration))
        chosen = pool.subset(remaining).balanced_sample(selection_count, seed)
        selection = [remaining[index] for index in chosen]
        if has_train:
            gate = self.held_out()
        else:
            rest = sorted(set(remaining) - set(selection))
            gate = pool.subset(rest, f"{pool.name} minus calibration")
        calibration_name = pool.name if has_train else f"{pool.name} calibration"
        return QuantizationSplit(
            pool.subset(calibration, calibration_name),
            pool.subset(selection, f"{pool.name} selection"),
            gate,
        )


def _split_sizes(pool: int, count: int, has_train: bool) -> tuple[int, int]:
    """(calibration images, selection images) for a pool of `pool` images."""
    if has_train:
        calibration = min(count, max(pool * 3 // 4, 1))
        return calibration, min(SELECTION, pool - calibration)
    return min(count, pool // 4), min(SELECTION, max(pool // 8, 1))
