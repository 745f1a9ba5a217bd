"""Recipes: the settings of one training, as data."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from repzoo.errors import InputError
from repzoo.plugins import unknown


@dataclass(frozen=True)
class Recipe:
    """One training's settings; the command line, the history in the artifact and the log are derived from it.

    lr             peak learning rate for `batch` images a step; cosine to 1 % of it after a linear warm-up
    scale          area range of the random resized crop
    hflip          probability of a horizontal flip
    auto_augment   timm's policy string, "" for none
    erase          probability of random erasing, pixel mode (Zhong et al., arXiv:1708.04896)
    mixup, cutmix  alphas (arXiv:1710.09412, arXiv:1905.04899); 0 turns them off; both off in the last `mix_off_epochs`
    ema_decay      of the exponential moving average of weights that is validated and exported
    preprocess     evaluation preprocessing fields that differ from the model's
    """

    name: str
    about: str
    epochs: int
    batch: int
    lr: float
    optimizer: str = "sgd"
    weight_decay: float = 0.0
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    ema_decay: float = 0.999
    drop_rate: float = 0.0
    scale: tuple[float, float] = (0.35, 1.0)
    hflip: float = 0.5
    auto_augment: str = ""
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_off_epochs: int = 0
    preprocess: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        if self.epochs < 1 or self.batch < 2 or self.batch % 2 or not self.lr > 0:
            raise InputError(f"recipe {self.name}: epochs >= 1, an even batch >= 2 and lr > 0 are needed; got {self}")

    def changed(self, **overrides: Any) -> Recipe:
        """This recipe with every override that is not None."""
        return dataclasses.replace(self, **{key: value for key, value in overrides.items() if value is not None})


@functools.cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    tables = tomllib.loads((files("repzoo.train") / "recipes.toml").read_text("utf-8"))
    return {name: Recipe(name=name, **{**table, "scale": tuple(table["scale"])}) for name, table in tables.items()}


def recipe(name: str) -> Recipe:
    """The recipe called `name`, or an InputError that offers the nearest."""
    if name not in recipes():
        raise InputError(unknown("recipe", name, recipes()))
    return recipes()[name]
