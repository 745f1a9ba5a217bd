"""What is known of each tool chain: toolchains.toml as dataclasses."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from repzoo.errors import InputError
from repzoo.plugins import unknown


@dataclass(frozen=True)
class InstallStep:
    """One call of pip.

    Attributes:
        packages: requirements.
        alone: install them without what they require themselves.
    """

    packages: tuple[str, ...]
    alone: bool = False


@dataclass(frozen=True)
class Recipe:
    """How one tool chain is installed.

    Attributes:
        name: of the tool chain and of its environment.
        about: one line.
        python: versions of Python that its wheels are made for, the best first.
        steps: calls of pip, in order.
        check: a command of the environment that prints the version.
        version: what it must print.
        terms: what its makers say about its use.
        gigabytes: disk space that it takes.
        remove: files of the wheels that keep them from working, by paths in the environment.
    """

    name: str
    about: str
    python: tuple[str, ...]
    steps: tuple[InstallStep, ...]
    check: tuple[str, ...]
    version: str
    terms: str
    gigabytes: float
    remove: tuple[str, ...] = ()


@functools.cache
def recipes() -> dict[str, Recipe]:
    """The tool chains by name."""
    resource = files("repzoo.vendors") / "toolchains.toml"
    tables = tomllib.loads(resource.read_text("utf-8"))
    return {name: _from_table(name, table) for name, table in tables.items()}


def find_recipe(name: str) -> Recipe:
    """The tool chain called `name`.

    Raises:
        InputError: there is none; similar names are offered.
    """
    if name not in recipes():
        raise InputError(unknown("tool chain", name, recipes()))
    return recipes()[name]


def _from_table(name: str, table: Mapping[str, Any]) -> Recipe:
    steps: list[InstallStep] = []
    for step in table["steps"]:
        steps.append(InstallStep(tuple(step["packages"]), step.get("alone", False)))
    return Recipe(
        name=name,
        about=table["about"],
        python=tuple(table["python"]),
        steps=tuple(steps),
        check=tuple(table["check"]),
        version=table["version"],
        terms=table["terms"],
        gigabytes=float(table["gigabytes"]),
        remove=tuple(table.get("remove", ())),
    )
