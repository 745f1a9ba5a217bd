"""Progress of long work, reported to a callable that may show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Called with a stage's name, the units done and the total (0 if unknown)."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show or ignore it."""


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


def tracked(
    items: Iterable[T], stage: str, total: int, progress: Progress
) -> Iterator[T]:
    """Yield `items` and report progress after each."""
    progress(stage, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        progress(stage, done, total)
