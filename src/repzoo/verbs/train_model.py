"""The verb `train`: a catalog model, or any of timm's, trained on labeled images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repzoo.artifact import Orientation
from repzoo.data.dataset import DataSource
from repzoo.measure.distributed import ALONE, Group
from repzoo.progress import Progress, silent
from repzoo.settings import at_least, merge_keywords, setting, split_keywords, validate
from repzoo.storage import require_writable_folder
from repzoo.training.options import Running, TrainOptions
from repzoo.training.recipe import recipe as load_recipe
from repzoo.verbs.image_data import open_data_source
from repzoo.verbs.optional_torch import needs_torch
from repzoo.verbs.public_artifact import Artifact

if TYPE_CHECKING:
    from repzoo.training.recipe import Recipe


# The settings of a recipe that count epochs, besides `epochs` itself.
PHASES = ("warmup_epochs", "mix_off_epochs", "full_size_epochs")


@dataclass(frozen=True)
class RecipeChanges:
    """Values that replace those of a training recipe; None leaves the recipe's."""

    epochs: int | None = setting(
        None,
        help="Epochs, instead of the recipe's; fewer shorten its warm-up too.",
        range=at_least(1),
    )
    batch: int | None = setting(
        None,
        help="Images in a step over all processes, instead of the recipe's.",
        range=at_least(2),
    )
    lr: float | None = setting(
        None,
        help="Peak learning rate, instead of the recipe's (for the recipe's batch size).",
    )
    amp: str | None = setting(
        None,
        help="Mixed precision, instead of the recipe's.",
        choices=("off", "on", "bf16", "fp16"),
    )
    distill: str | None = setting(
        None,
        help="Distillation from --teacher, instead of the recipe's.",
        choices=("none", "soft", "hard"),
    )
    size: int | None = setting(
        None, help="Input size in pixels, instead of the recipe's.", range=at_least(32)
    )
    orientation: Orientation | None = setting(
        None,
        help="EXIF orientation tag of training and held-out images: ignored (the default), or "
        "applied.",
    )

    def __post_init__(self) -> None:
        """Refuse values outside the accepted ranges."""
        validate(self)

    def apply(self, recipe: Recipe) -> Recipe:
        """`recipe` with these values."""
        changes = dataclasses.asdict(self)
        preprocess = dict(recipe.preprocess)
        for name in ("size", "orientation"):
            value = changes.pop(name)
            if value is not None:
                preprocess[name] = value
        if self.distill == "none":
            changes["distill"] = ""
        # Phases of a recipe are shares of its length: a warm-up of 5 epochs out of 300 must not
        # take most of 8.
        if self.epochs is not None and self.epochs < recipe.epochs:
            share = self.epochs / recipe.epochs
            for phase in PHASES:
                changes[phase] = round(getattr(recipe, phase) * share)
        return recipe.changed(**changes, preprocess=preprocess)


def train(
    model: str,
    data: str | Path | DataSource,
    *,
    recipe: str = "",
    output: str | Path | None = None,
    progress: Progress = silent,
    group: Group = ALONE,
    **settings: Any,
) -> Artifact:
    """Train a model on the `train` part of the data; the result's `training` has the log.

    Validation and test images are scored, never trained on. A run that was stopped goes on when
    it is started again with the same arguments.

    model     a catalog model, or any of timm's
    recipe    the name of a training recipe, or FILE.toml; default: `digits` for digits, else
              `photos`
    output    the run's folder; default: runs/MODEL.DATA
    group     the processes that train together; only the first writes files
    settings  fields of TrainOptions and RecipeChanges, such as `epochs=10, device="cpu"`

    Raises:
        InputError: an unknown model, recipe or setting, no training part, broken images, weights
            or a teacher that do not fit, the folder of another run, or a loss that is NaN.
        MissingExtra: torch or timm is not installed.
    """
    changes, own = split_keywords(settings, "train", RecipeChanges, TrainOptions)
    recipe_changes = merge_keywords(RecipeChanges, None, changes)
    options = merge_keywords(TrainOptions, None, own)
    name = recipe or ("digits" if str(data) == "digits" else "photos")
    changed_recipe = recipe_changes.apply(load_recipe(name).for_model(model))
    source = open_data_source(data)
    folder = Path(output) if output else Path("runs") / f"{model}.{source.name}"
    # Of several processes only the first writes.
    if not group.rank:
        require_writable_folder(folder)
    # After the checks, which need no torch and answer at once.
    with needs_torch("training"):
        from repzoo.training.run import train as run_training
    running = Running(output=folder, **dataclasses.asdict(options))
    result = run_training(model, source, changed_recipe, running, group, progress)
    return Artifact.wrap(result.artifact, training=result)
