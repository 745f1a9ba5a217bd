"""Labeled images: what every data set looks like to the rest of repzoo, and how it is split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from repzoo.errors import InputError

HELD_OUT = ("validation", "val", "test")
# The most images used to choose among candidates: more would only lengthen the search.
SELECTION = 256

# (size in bytes, time of last modification in nanoseconds) of an image file.
Stamp = tuple[int, int]
GONE: Stamp = (-1, -1)


class UnreadableImage(InputError):
    """One image is broken. Commands count it, name it and continue."""


@dataclass(frozen=True)
class Dataset:
    """Labeled images in a fixed order.

    name     shown to people and stored in Records
    classes  class names; a target is an index into them
    keys     one stable identifier per image, such as a relative path
    targets  class index of each image
    load     key -> image. Raises UnreadableImage. Must be picklable for training with workers
    ordered  True if the data set itself says that `classes` is in the order of the model's outputs
    stamp    key -> Stamp of the image file, or GONE; None if the images are not files
    labeled  False for images without labels: `classes` is empty and every target is 0
    """

    name: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    targets: tuple[int, ...]
    load: Callable[[str], Image.Image]
    ordered: bool = False
    stamp: Callable[[str], Stamp] | None = None
    labeled: bool = True

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


@dataclass(frozen=True)
class DataSource:
    """A data set and its parts.

    parts  {"train", "validation", "test"} or some of these; {"all"} for a folder without parts
    empty  classes that have a folder but no image in any part
    """

    name: str
    parts: Mapping[str, Dataset]
    empty: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the same in every part."""
        first = next(iter(self.parts.values()))
        return first.classes

    def join(self, *names: str) -> Dataset:
        """The named parts as one data set.

        Raises:
            InputError: an unknown part, or the same part twice.
        """
        missing = [name for name in names if name not in self.parts]
        if missing:
            known = ", ".join(self.parts)
            raise InputError(f"{self.name} has no part {missing[0]!r}; it has {known}")
        if len(set(names)) < len(names):
            raise InputError(
                f"a part of {self.name} is named twice in {', '.join(names)}, so its images would "
                "count twice; name each part once"
            )
        keys: list[str] = []
        targets: list[int] = []
        for name in names:
            keys += self.parts[name].keys
            targets += self.parts[name].targets
        return replace(
            self.parts[names[0]],
            name=f"{self.name}[{'+'.join(names)}]",
            keys=tuple(keys),
            targets=tuple(targets),
        )

    def held_out(self) -> Dataset:
        """Images that were not trained on: validation and test if they exist, else everything."""
        names = [name for name in self.parts if name in HELD_OUT]
        return self.join(*(names or self.parts))

    def calibration_split(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """(calibration, gate) of `split_for_quantization`."""
        split = self.split_for_quantization(count, seed)
        return split.calibration, split.gate

    def split_for_quantization(self, count: int, seed: int) -> QuantizationSplit:
        """`count` images for calibration, up to SELECTION for selection, the rest for the gate.

        With a `train` part beside others, calibration and selection are drawn from it and the
        gate is what was held out. If `train` is too small for both, calibration gets three
        quarters of it. A folder without parts gives at most a quarter of its images to
        calibration and an eighth to selection.

        Raises:
            InputError: `count` below 1, or too few images for three sets.
        """
        if count < 1:
            raise InputError(f"at least 1 calibration image is needed; got {count}")
        has_train = "train" in self.parts and len(self.parts) > 1
        pool = self.join("train") if has_train else self.join(*self.parts)
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
        return QuantizationSplit(
            pool.subset(
                calibration, pool.name if has_train else f"{pool.name} calibration"
            ),
            pool.subset(selection, f"{pool.name} selection"),
            gate,
        )


def _split_sizes(pool: int, count: int, has_train: bool) -> tuple[int, int]:
    """(calibration images, selection images) for a pool of `pool` images."""
    if has_train:
        calibration = min(count, max(pool * 3 // 4, 1))
        return calibration, min(SELECTION, pool - calibration)
    return min(count, pool // 4), min(SELECTION, max(pool // 8, 1))
