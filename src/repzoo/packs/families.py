"""What the READMEs of packs say of a model's family: families.toml, and the catalog's row."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files as package_files
from typing import Any

from repzoo.artifact import Artifact
from repzoo.zoo.catalog import ModelSpec, models


@functools.cache
def family_words() -> Mapping[str, Mapping[str, Any]]:
    """Sentences on each family: paper (its title), about, about_zh, features, features_zh."""
    text = (package_files("repzoo.packs") / "families.toml").read_text("utf-8")
    return tomllib.loads(text)


def catalog_row(artifact: Artifact) -> ModelSpec | None:
    """The model's row in the catalog, if its history names one."""
    known = {row.name: row for row in models()}
    for step in artifact.steps:
        row = known.get(str(step.settings.get("model", "")).partition(".")[0])
        if row is not None:
            return row
    return None
