"""How long work tells how far it is, without knowing who watches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Called with the stage's name, the units done and the units in all (0 when unknown)."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show or ignore it."""


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


def tracked(items: Iterable[T], stage: str, total: int, progress: Progress) -> Iterator[T]:
    """Yield `items`, reporting after each."""
    progress(stage, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        progress(stage, done, total)
