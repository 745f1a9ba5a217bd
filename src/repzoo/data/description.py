"""What a data set was taken for, in one line for a person and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repzoo.data.names import enumeration

NOT_USED = "not used"
WHOLE = "all"  # the name of the only part of a data set without parts


@dataclass(frozen=True)
class PassedOver:
    """Files or folders that do not count.

    reason  completes "3 files ...", such as "that Pillow cannot read"
    noun    "file", "image" or "folder"
    names   all of them
    """

    noun: str
    reason: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        """Count, reason and the first names."""
        count = len(self.names)
        plural = "" if count == 1 else "s"
        return (
            f"{count:,} {self.noun}{plural} {self.reason} ({enumeration(self.names)})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the first names only."""
        return {
            "what": f"{self.noun}s {self.reason}",
            "count": len(self.names),
            "names": list(self.names[:100]),
        }


@dataclass(frozen=True)
class PartUse:
    """A part of a data set: how many images it has, and what a command uses it for."""

    name: str
    images: int
    use: str

    def __str__(self) -> str:
        """Such as "val (713 images, evaluated)", or "713 images (evaluated)" without parts."""
        plural = "" if self.images == 1 else "s"
        count = f"{self.images:,} image{plural}"
        if self.name == WHOLE:
            return f"{count} ({self.use})"
        return f"{self.name} ({count}, {self.use})"


@dataclass(frozen=True)
class DataDescription:
    """What a data set was taken for.

    classes      names in the order of their indices; empty where the images have no labels
    order        where that order comes from, such as "sorted by name"
    passed_over  what was left out
    """

    name: str
    parts: tuple[PartUse, ...]
    classes: tuple[str, ...]
    order: str
    passed_over: tuple[PassedOver, ...] = ()

    def __str__(self) -> str:
        """One line for a person."""
        # Sorting keeps the order otherwise: what is used comes first.
        by_use = sorted(self.parts, key=lambda part: part.use == NOT_USED)
        parts = ", ".join(map(str, by_use))
        if self.classes:
            listed = enumeration(self.classes)
            classes = f"{len(self.classes)} classes {self.order}: {listed}"
        else:
            classes = "no labels"
        sentences = [f"{self.name}: {parts}", classes]
        if self.passed_over:
            sentences.append(f"passed over: {', '.join(map(str, self.passed_over))}")
        return "; ".join(sentences)

    def to_json(self) -> dict[str, Any]:
        """Plain values, and the line for a person as `summary`."""
        parts = []
        for part in self.parts:
            parts.append({"name": part.name, "images": part.images, "use": part.use})
        return {
            "name": self.name,
            "summary": str(self),
            "parts": parts,
            "classes": len(self.classes),
            "class_order": self.order,
            "class_names": list(self.classes),
            "passed_over": [item.to_json() for item in self.passed_over],
        }


def uses_of(parts: Mapping[str, int], uses: Mapping[str, str]) -> tuple[PartUse, ...]:
    """Each part with its number of images and its use, NOT_USED where `uses` has none."""
    return tuple(
        PartUse(name, count, uses.get(name, NOT_USED)) for name, count in parts.items()
    )
