"""The verb `toolchains`: vendors' tools in environments of their own."""

from __future__ import annotations

from collections.abc import Sequence

from repzoo.errors import InputError
from repzoo.progress import Progress, silent
from repzoo.vendors.environment import Status, install, status
from repzoo.vendors.recipes import find_recipe, recipes


def toolchains(
    names: Sequence[str] = (),
    *,
    install_missing: bool = False,
    python: str = "",
    progress: Progress = silent,
) -> list[Status]:
    """The tool chains called `names`, or all: whether each is installed, where, and what to type.

    install_missing  install those that are not there; `names` must then say which
    python           interpreter to make the environments from; "": one that is found

    Raises:
        InputError: an unknown name, or as `vendors.environment.install`.
    """
    if install_missing and not names:
        raise InputError(
            f"say which tool chains to install: {', '.join(recipes())}; each takes gigabytes"
        )
    chosen = [find_recipe(name) for name in names] or list(recipes().values())
    statuses: list[Status] = []
    for recipe in chosen:
        current = status(recipe)
        is_current = recipe.version in current.version
        if install_missing and not is_current:
            current = install(recipe, python, progress)
        statuses.append(current)
    return statuses
