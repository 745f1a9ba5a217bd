"""What every source of labelled images looks like to the verbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from repzoo.errors import InputError

HELD_OUT = ("validation", "val", "test")
Stamp = tuple[int, int]
GONE: Stamp = (-1, -1)


class UnreadableImage(InputError):
    """One image is broken; the verbs count it and go on."""


@dataclass(frozen=True)
class Dataset:
    """Labelled images, in a fixed order.

    name     for people and Records
    classes  class names; a target is an index into them
    keys     one stable identifier an image (a relative path)
    targets  class index of each image
    load     key -> image; raises UnreadableImage
    ordered  True when the order of `classes` is the model's output order, said by the data itself
    stamp    key -> (bytes, time of the last change) of its file, where there are files; GONE where it is not there
    """

    name: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    targets: tuple[int, ...]
    load: Callable[[str], Image.Image]
    ordered: bool = False
    stamp: Callable[[str], Stamp] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.keys)

    def subset(self, indices: Sequence[int], name: str | None = None) -> Dataset:
        """The images at `indices`, in that order."""
        keys = tuple(self.keys[index] for index in indices)
        return replace(self, name=name or self.name, keys=keys, targets=tuple(self.targets[index] for index in indices))

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
class Source:
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
            raise InputError(f"{self.name} has no part {missing[0]!r}; it has {', '.join(self.parts)}")
        if len(set(names)) < len(names):
            raise InputError(f"a part of {self.name} is named twice in {', '.join(names)}; its images would count twice")
        chosen = [self.parts[name] for name in names]
        keys, targets = (tuple(item for part in chosen for item in getattr(part, field)) for field in ("keys", "targets"))
        return replace(chosen[0], name=f"{self.name}[{'+'.join(names)}]", keys=keys, targets=targets)

    def held_out(self) -> Dataset:
        """What was not trained on: validation and test where they exist, else everything."""
        return self.join(*([name for name in self.parts if name in HELD_OUT] or self.parts))

    def calibration_split(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """(calibration, evaluation), disjoint: calibration from `train`, or at most a quarter of a flat folder.

        Raises:
            InputError: count below 1, or fewer than four images.
        """
        if count < 1:
            raise InputError(f"at least 1 calibration image is needed; got {count}")
        if "train" in self.parts and len(self.parts) > 1:
            train = self.join("train")
            return train.subset(train.balanced_sample(count, seed)), self.held_out()
        whole = self.join(*self.parts)
        chosen = whole.balanced_sample(min(count, len(whole) // 4), seed)
        if not chosen:
            raise InputError(f"{self.name} has {len(whole)} images; at least 4 are needed to calibrate and evaluate")
        rest = sorted(set(range(len(whole))) - set(chosen))
        return whole.subset(chosen, f"{whole.name} calibration"), whole.subset(rest, f"{whole.name} minus calibration")
