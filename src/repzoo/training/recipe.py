"""Recipes: the settings of one training, as data."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from repzoo.errors import InputError
from repzoo.plugins import unknown
from repzoo.storage import read_bounded

AMP = ("off", "on", "bf16", "fp16")
DISTILL = ("", "soft", "hard")
CLIP = ("norm", "value", "agc")
TRAINABLE = ("all", "head")
MAX_RECIPE_BYTES = 2**20
# Python types that a TOML value may have, by the type of the field.
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float),
    "str": (str,),
    "bool": (bool,),
    "tuple[float, float]": (list, tuple),
}


_CHOICES = {"amp": AMP, "distill": DISTILL, "clip_mode": CLIP, "trainable": TRAINABLE}
_SHARES = (
    "label_smoothing",
    "ema_decay",
    "drop_rate",
    "drop_path",
    "hflip",
    "erase",
    "distill_weight",
)


@dataclass(frozen=True)
class Recipe:
    """The settings of one training.

    The command line, the history in the artifact and the log are derived from it.

    source           where it was published, or the reason for its values
    batch            images per step, over all processes and accumulation steps
    lr               peak learning rate for `batch` images per step; with `lr_per`, for that many
                     images, scaled by `batch` / `lr_per`
    min_lr           end of the cosine; None: 1 % of the peak
    warmup_lr        start of the linear warm-up; None: 1 % of the peak
    optimizer        timm's name: "sgd" has Nesterov momentum 0.9, "momentum" the plain one; no
                     weight decay on biases and norms
    drop_rate        dropout before the last layer
    drop_path        stochastic depth (arXiv:1603.09382), for models that have it
    scale            area range of the random resized crop
    hflip            probability of a horizontal flip
    auto_augment     timm's policy string, "" for none
    erase            probability of random erasing, pixel mode (Zhong et al., arXiv:1708.04896)
    mixup, cutmix    alphas (arXiv:1710.09412, arXiv:1905.04899); 0: off; both are off in the last
                     `mix_off_epochs`
    repeats          augmented copies of an image in an epoch of unchanged length
                     (arXiv:1902.05509)
    small_size       side in pixels until the last `full_size_epochs`; 0: always the full size
    ema_decay        of the moving average of weights that is validated and exported
    clip, clip_mode  gradient clipping: none at 0, else "norm", "value" or "agc"
                     (arXiv:2102.06171)
    amp              mixed precision: "on" is float16 with loss scaling on CUDA, else bfloat16
    distill          "", "soft" (arXiv:1503.02531) or "hard" (arXiv:2012.12877), with weight
                     `distill_weight` in the loss
    teacher          timm's name of the source's teacher
    finetune         starts from given weights; the last layer starts anew if the classes differ
    trainable        "all", or "head" for the last layer only (a linear probe)
    preprocess       evaluation preprocessing fields that differ from the model's
    per_model        fields that differ for a model of the catalog
    """

    name: str
    about: str
    epochs: int
    batch: int
    lr: float
    source: str = ""
    lr_per: int = 0
    min_lr: float | None = None
    warmup_lr: float | None = None
    optimizer: str = "sgd"
    weight_decay: float = 0.0
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    ema_decay: float = 0.999
    drop_rate: float = 0.0
    drop_path: float = 0.0
    scale: tuple[float, float] = (0.35, 1.0)
    hflip: float = 0.5
    auto_augment: str = ""
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_off_epochs: int = 0
    repeats: int = 1
    small_size: int = 0
    full_size_epochs: int = 0
    clip: float = 0.0
    clip_mode: str = "norm"
    amp: str = "off"
    distill: str = ""
    distill_weight: float = 0.5
    temperature: float = 1.0
    teacher: str = ""
    finetune: bool = False
    trainable: str = "all"
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    per_model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        # Even, since timm's Mixup pairs the images of a batch.
        if self.epochs < 1 or self.batch < 2 or self.batch % 2 or not self.lr > 0:
            raise InputError(
                f"recipe {self.name}: epochs >= 1, an even batch >= 2 and lr > 0 are needed; got "
                f"{self}"
            )
        for key, accepted in _CHOICES.items():
            value = getattr(self, key)
            if value not in accepted:
                choices = ", ".join(map(repr, accepted))
                raise InputError(
                    f"recipe {self.name}: {key} must be one of {choices}; got {value!r}"
                )
        for key in _SHARES:
            value = getattr(self, key)
            if not 0 <= value <= 1:
                raise InputError(
                    f"recipe {self.name}: {key} must lie in 0..1; got {value}"
                )
        if self.repeats < 1 or self.clip < 0 or not self.temperature > 0:
            raise InputError(
                f"recipe {self.name}: repeats >= 1, clip >= 0 and temperature > 0 are needed; got "
                f"{self}"
            )

    def changed(self, **overrides: Any) -> Recipe:
        """This recipe with every override that is not None."""
        return dataclasses.replace(
            self,
            **{key: value for key, value in overrides.items() if value is not None},
        )

    def for_model(self, model: str) -> Recipe:
        """This recipe with its changes for the catalog model `model`."""
        changes = self.per_model.get(model, {})
        # Emptied: `training.run` asks again, which must not undo changes from the command line.
        return dataclasses.replace(self, **{**changes, "per_model": {}})

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.lr * self.batch / self.lr_per if self.lr_per else self.lr

    def size_at(self, epoch: int, full: int) -> int:
        """Side in pixels of the training images in `epoch` (from 0); `full` is the model's own."""
        if self.small_size and epoch < self.epochs - self.full_size_epochs:
            return self.small_size
        return full


@functools.cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    tables = tomllib.loads(
        (files("repzoo.training") / "recipes.toml").read_text("utf-8")
    )
    return {name: from_table(name, table) for name, table in tables.items()}


def recipe(name: str) -> Recipe:
    """The recipe `name`, or the one in the file NAME.toml.

    Raises:
        InputError: an unknown name (similar ones are offered), or a file that is not a recipe.
    """
    if name.endswith(".toml"):
        path = Path(name)
        try:
            table = tomllib.loads(read_bounded(path, MAX_RECIPE_BYTES).decode())
            return from_table(path.stem, table)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{name} is not TOML: {error}") from None
    if name not in recipes():
        raise InputError(unknown("recipe", name, recipes()))
    return recipes()[name]


def from_table(name: str, table: Mapping[str, Any]) -> Recipe:
    """The recipe in a table of TOML.

    Raises:
        InputError: unknown, missing or ill-typed settings.
    """
    values = _checked(name, table)
    for model, changes in values.get("per_model", {}).items():
        _checked(f"{name} for {model}", changes)
    missing = [key for key in _required_fields() if key not in values]
    if missing:
        raise InputError(f"recipe {name} lacks {', '.join(missing)}")
    recipe = Recipe(name=name, **values)
    # Refuses changes for a model that make a recipe invalid.
    for model in recipe.per_model:
        recipe.for_model(model)
    return recipe


def _required_fields() -> list[str]:
    missing = dataclasses.MISSING
    fields = [item for item in dataclasses.fields(Recipe) if item.name != "name"]
    return [
        item.name for item in fields if item.default is item.default_factory is missing
    ]


def _checked(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """`table`, with known settings of the right types only."""
    kinds = {item.name: str(item.type) for item in dataclasses.fields(Recipe)}
    del kinds["name"]
    for key, value in table.items():
        if key not in kinds:
            raise InputError(f"recipe {name}: {unknown('setting', key, kinds)}")
        kind = kinds[key]
        # In Python a bool is an int, in TOML it is not.
        is_bool = isinstance(value, bool)
        if not isinstance(value, _KINDS.get(kind, (Mapping,))) or (
            is_bool and kind != "bool"
        ):
            raise InputError(
                f"recipe {name}: {key} must be of the kind {kind}; got {value!r}"
            )
    values = dict(table)
    if "scale" in values:
        values["scale"] = _area_range(name, values["scale"])
    return values


def _area_range(name: str, value: Any) -> tuple[float, float]:
    are_numbers = all(isinstance(item, int | float) for item in value)
    if len(value) == 2 and are_numbers and 0 < value[0] <= value[1] <= 1:
        return float(value[0]), float(value[1])
    raise InputError(
        f"recipe {name}: scale must be two shares of the area, such as [0.35, 1.0]; got {value!r}"
    )
