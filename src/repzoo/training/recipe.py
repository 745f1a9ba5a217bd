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

AMP, DISTILL, CLIP, TRAINABLE = (
    ("off", "on", "bf16", "fp16"),
    ("", "soft", "hard"),
    ("norm", "value", "agc"),
    ("all", "head"),
)
MAX_RECIPE_BYTES = 2**20
_KINDS = {
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float),
    "str": (str,),
    "bool": (bool,),
}


@dataclass(frozen=True)
class Recipe:
    """One training's settings; the command line, the history in the artifact and the log are derived from it.

    source           where it was published, or why it is so
    batch            images a step, over all processes and accumulated parts
    lr               peak learning rate: for `batch` images a step, or, with `lr_per`, for that many and scaled by `batch` / `lr_per`
    min_lr           where the cosine ends; None: 1 % of the peak
    warmup_lr        where the linear warm-up begins; None: 1 % of the peak
    optimizer        timm's name: "sgd" has Nesterov's momentum of 0.9, "momentum" the plain one; no decay on biases and norms
    drop_rate        dropout before the last layer
    drop_path        stochastic depth (arXiv:1603.09382), for models that have it
    scale            area range of the random resized crop
    hflip            probability of a horizontal flip
    auto_augment     timm's policy string, "" for none
    erase            probability of random erasing, pixel mode (Zhong et al., arXiv:1708.04896)
    mixup, cutmix    alphas (arXiv:1710.09412, arXiv:1905.04899); 0 turns them off; both off in the last `mix_off_epochs`
    repeats          augmented copies of an image in an epoch of as many images as ever (arXiv:1902.05509)
    small_size       side in pixels until the last `full_size_epochs`; 0: the full size all the time
    ema_decay        of the exponential moving average of weights that is validated and exported
    clip, clip_mode  gradient clipping: none at 0, else by "norm", "value" or "agc" (arXiv:2102.06171)
    amp              mixed precision: "on" is float16 with loss scaling on CUDA, bfloat16 elsewhere
    distill          "", "soft" (arXiv:1503.02531) or "hard" (arXiv:2012.12877), with a share of `distill_weight` in the loss
    teacher          timm's name of the teacher that the source had
    finetune         starts from given weights; the last layer starts anew where the classes are others
    trainable        "all" or "head": only the last layer, the rest as in evaluation (a linear probe)
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
        if self.epochs < 1 or self.batch < 2 or self.batch % 2 or not self.lr > 0:
            raise InputError(
                f"recipe {self.name}: epochs >= 1, an even batch >= 2 and lr > 0 are needed; got {self}"
            )
        for key, accepted in (
            ("amp", AMP),
            ("distill", DISTILL),
            ("clip_mode", CLIP),
            ("trainable", TRAINABLE),
        ):
            if getattr(self, key) not in accepted:
                raise InputError(
                    f"recipe {self.name}: {key} must be one of {', '.join(map(repr, accepted))}; got {getattr(self, key)!r}"
                )
        for key in (
            "label_smoothing",
            "ema_decay",
            "drop_rate",
            "drop_path",
            "hflip",
            "erase",
            "distill_weight",
        ):
            if not 0 <= getattr(self, key) <= 1:
                raise InputError(
                    f"recipe {self.name}: {key} must lie in 0..1; got {getattr(self, key)}"
                )
        if self.repeats < 1 or self.clip < 0 or not self.temperature > 0:
            raise InputError(
                f"recipe {self.name}: repeats >= 1, clip >= 0 and temperature > 0 are needed; got {self}"
            )

    def changed(self, **overrides: Any) -> Recipe:
        """This recipe with every override that is not None."""
        return dataclasses.replace(
            self, **{key: value for key, value in overrides.items() if value is not None}
        )

    def for_model(self, model: str) -> Recipe:
        """This recipe as it is for the catalog model `model`."""
        return dataclasses.replace(self, **{**self.per_model.get(model, {}), "per_model": {}})

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.lr * self.batch / self.lr_per if self.lr_per else self.lr

    def size_at(self, epoch: int, full: int) -> int:
        """Side of the training images in `epoch` (from 0), of a model for `full` pixels."""
        return (
            self.small_size
            if self.small_size and epoch < self.epochs - self.full_size_epochs
            else full
        )


@functools.cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    tables = tomllib.loads((files("repzoo.training") / "recipes.toml").read_text("utf-8"))
    return {name: from_table(name, table) for name, table in tables.items()}


def recipe(name: str) -> Recipe:
    """The recipe called `name`, or in the file NAME.toml; an InputError offers the nearest, or says what is wrong with the file."""
    if name.endswith(".toml"):
        try:
            return from_table(
                Path(name).stem, tomllib.loads(read_bounded(Path(name), MAX_RECIPE_BYTES).decode())
            )
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{name} is not TOML: {error}") from None
    if name not in recipes():
        raise InputError(unknown("recipe", name, recipes()))
    return recipes()[name]


def from_table(name: str, table: Mapping[str, Any]) -> Recipe:
    """The recipe in a table of TOML.

    Raises:
        InputError: keys that are not fields, fields that are missing or of another type.
    """
    found = _checked(name, table)
    for model, changes in found.get("per_model", {}).items():
        _checked(f"{name} for {model}", changes)
    required = [
        one.name
        for one in dataclasses.fields(Recipe)
        if one.default is one.default_factory is dataclasses.MISSING
    ]
    if missing := [key for key in required if key not in found and key != "name"]:
        raise InputError(f"recipe {name} lacks {', '.join(missing)}")
    made = Recipe(name=name, **found)
    for model in made.per_model:
        made.for_model(model)
    return made


def _checked(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {one.name: str(one.type) for one in dataclasses.fields(Recipe) if one.name != "name"}
    for key, value in table.items():
        if key not in kinds:
            raise InputError(f"recipe {name}: {unknown('setting', key, kinds)}")
        expected = _KINDS.get(
            kinds[key], (list, tuple) if kinds[key].startswith("tuple") else (Mapping,)
        )
        if not isinstance(value, expected) or (isinstance(value, bool) and kinds[key] != "bool"):
            raise InputError(
                f"recipe {name}: {key} must be of the kind {kinds[key]}; got {value!r}"
            )
    scale = {"scale": _range(name, table["scale"])} if "scale" in table else {}
    return {**table, **scale}


def _range(name: str, given: Any) -> tuple[float, float]:
    if (
        len(given) != 2
        or not all(isinstance(one, int | float) for one in given)
        or not 0 < given[0] <= given[1] <= 1
    ):
        raise InputError(
            f"recipe {name}: scale must be two shares of the area, such as [0.35, 1.0]; got {given!r}"
        )
    return float(given[0]), float(given[1])
