"""Plug-ins by name: built-in ones, those of third parties, and which extra a missing one needs."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from repzoo.errors import InputError, MissingExtra

# So many names of a kind an error message lists. Of more it shows a few, as examples.
LISTED_NAMES = 12
SAMPLE_NAMES = 4
# Similarity (0..1) from which on a name is offered as a correction. Below it the guess is
# wrong more often than right: "tensorrt" and "pytorch" have 0.4.
SPELLED_ALIKE = 0.6


@dataclass(frozen=True)
class Plugin:
    """A plug-in.

    target  where it is: "module:Object"
    extra   extra of repzoo that its imports need; "" for none
    """

    target: str
    extra: str = ""


class PluginTable:
    """The plug-ins of one kind. Nothing is imported before `load`.

    kind   singular noun for messages, such as "engine"
    group  entry-point group that third parties declare, such as "repzoo.engines"
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, Plugin]) -> None:
        self.kind = kind
        self._group = group
        self._builtin = dict(builtin)

    def names(self) -> list[str]:
        """Every known name, installed or not, built-in ones first."""
        return list(self._all())

    def load(self, name: str) -> Any:
        """Import and return the object called `name`.

        Raises:
            InputError: an unknown name (similar ones are offered), or a third party's plug-in
                that cannot be imported.
            MissingExtra: a dependency is not installed.
        """
        plugins = self._all()
        if name not in plugins:
            raise InputError(unknown(self.kind, name, plugins))
        target = plugins[name].target
        module, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name not in self._builtin:
                raise InputError(
                    f"the {self.kind} {name!r} ({target}) cannot be loaded: {error}; repair or "
                    "uninstall it"
                ) from error
            extra = plugins[name].extra
            if extra and _is_other_package_missing(error):
                raise MissingExtra(f"the {self.kind} {name!r}", extra) from error
            raise

    def _all(self) -> dict[str, Plugin]:
        plugins = dict(self._builtin)
        for point in entry_points(group=self._group):
            if point.name in plugins:
                first = plugins[point.name].target
                raise InputError(
                    f"two {self.kind}s are called {point.name!r}: {first} and {point.value}; "
                    "uninstall one"
                )
            plugins[point.name] = Plugin(point.value)
        return plugins


def _is_other_package_missing(error: Exception) -> bool:
    """Whether a package other than repzoo itself is not installed."""
    if not isinstance(error, ModuleNotFoundError):
        return False
    return (error.name or "").split(".")[0] != "repzoo"


def unknown(kind: str, name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """The error message for an unknown `name`.

    It offers names that are spelled alike, and lists all known ones where they are few.
    """
    names = list(known)
    hints = []
    near = difflib.get_close_matches(name, names, n=3, cutoff=SPELLED_ALIKE)
    if near:
        hints.append(f"did you mean {' or '.join(near)}?")
    if len(names) <= LISTED_NAMES:
        hints.append(f"known: {', '.join(names)}")
    elif not near:
        more = len(names) - SAMPLE_NAMES
        hints.append(f"known: {', '.join(names[:SAMPLE_NAMES])} and {more} more")
    return f"no {kind} is called {name!r}; {' '.join(hints)}"
