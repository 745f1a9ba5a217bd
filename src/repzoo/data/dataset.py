"""What every source of labeled images looks like to the verbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from repzoo.errors import InputError

HELD_OUT = ("validation", "val", "test")
SELECTION = 256  # images among which a quantizer's attempts are chosen, where there are so many
Stamp = tuple[int, int]
GONE: Stamp = (-1, -1)


class UnreadableImage(InputError):
    """One image is broken; the verbs count it and go on."""


@dataclass(frozen=True)
class Dataset:
    """Labeled images, in a fixed order.

    name     for people and Records
    classes  class names; a target is an index into them
    keys     one stable identifier an image (a relative path)
    targets  class index of each image
    load     key -> image; raises UnreadableImage; for training in worker processes one that can be pickled
    ordered  True when the order of `classes` is the model's output order, said by the data itself
    stamp    key -> (bytes, time of the last change) of its file, where there are files; GONE where it is not there
    labeled False when nobody said what is in the images: there are no classes, and every target is 0
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
        keys = tuple(self.keys[index] for index in indices)
        return replace(
            self,
            name=name or self.name,
            keys=keys,
            targets=tuple(self.targets[index] for index in indices),
        )

    def balanced_sample(self, count: int, seed: int) -> list[int]:
        """Indices of `count` images (or all), drawn round-robin over the classes; same seed, same images."""
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        rank: dict[int, int] = {}
        seen: dict[int, int] = {}
        for index in order:
            target = self.targets[index]
            rank[index] = seen.get(target, 0)
            seen[target] = rank[index] + 1
        return sorted(sorted(order, key=lambda index: rank[index])[:count])


@dataclass(frozen=True)
class QuantizationSplit:
    """What a quantizer is given, no image of it twice.

    ranges     images that set ranges and rounding; their labels are not looked at
    selection  images on which attempts are compared, of the same pool
    gate       images on which the chosen attempt is judged, once
    """

    calibration: Dataset
    selection: Dataset
    gate: Dataset


@dataclass(frozen=True)
class DataSource:
    """A data set with its parts: {"train", "validation", "test"} or some of them, or {"all"} for a flat folder.

    empty  classes that have a folder but in no part an image
    """

    name: str
    parts: Mapping[str, Dataset]
    empty: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the same in every part."""
        return next(iter(self.parts.values())).classes

    def join(self, *names: str) -> Dataset:
        """The named parts as one data set."""
        if missing := [name for name in names if name not in self.parts]:
            raise InputError(
                f"{self.name} has no part {missing[0]!r}; it has {', '.join(self.parts)}"
            )
        if len(set(names)) < len(names):
            raise InputError(
                f"a part of {self.name} is named twice in {', '.join(names)}; its images would count twice"
            )
        chosen = [self.parts[name] for name in names]
        keys, targets = (
            tuple(item for part in chosen for item in getattr(part, field))
            for field in ("keys", "targets")
        )
        return replace(
            chosen[0], name=f"{self.name}[{'+'.join(names)}]", keys=keys, targets=targets
        )

    def held_out(self) -> Dataset:
        """What was not trained on: validation and test where they exist, else everything."""
        return self.join(*([name for name in self.parts if name in HELD_OUT] or self.parts))

    def calibration_split(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """(calibration, evaluation), disjoint: the ranges and the gate of `quantizing_split`."""
        found = self.split_for_quantization(count, seed)
        return found.calibration, found.gate

    def split_for_quantization(self, count: int, seed: int) -> QuantizationSplit:
        """`count` images for ranges, up to SELECTION to choose by, the rest to judge by.

        With a part `train` beside others, the first two are drawn from it (where it is too small for both, three quarters of it go
        to the ranges) and what was held out judges. A flat folder gives at most a quarter of its images to the ranges and an
        eighth to the choice.

        Raises:
            InputError: count below 1, or fewer images than one for each.
        """
        if count < 1:
            raise InputError(f"at least 1 calibration image is needed; got {count}")
        apart = "train" in self.parts and len(self.parts) > 1
        pool = self.join("train") if apart else self.join(*self.parts)
        first = min(count, max(len(pool) * 3 // 4, 1)) if apart else min(count, len(pool) // 4)
        second = min(SELECTION, len(pool) - first if apart else max(len(pool) // 8, 1))
        if first < 1 or second < 1:
            least = "2 in train" if apart else "4"
            raise InputError(
                f"{self.name} has {len(pool)} images; at least {least} are needed to calibrate and evaluate"
            )
        ranges = pool.balanced_sample(first, seed)
        left = sorted(set(range(len(pool))) - set(ranges))
        others = pool.subset(left)
        chosen = [left[index] for index in others.balanced_sample(second, seed)]
        rest = sorted(set(left) - set(chosen))
        gate = self.held_out() if apart else pool.subset(rest, f"{pool.name} minus calibration")
        return QuantizationSplit(
            pool.subset(ranges, pool.name if apart else f"{pool.name} calibration"),
            pool.subset(chosen, f"{pool.name} selection"),
            gate,
        )
