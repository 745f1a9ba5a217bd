"""The network to train, from the catalog or else timm's, with random or given weights; and the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch

from repzoo.artifact import Preprocess
from repzoo.errors import InputError
from repzoo.storage import sha256_of_file
from repzoo.training.distill import OnnxTeacher, require_teacher
from repzoo.training.options import TrainOptions
from repzoo.training.recipe import Recipe
from repzoo.zoo import catalog, checkpoints, containers, families
from repzoo.zoo.download import resolve
from repzoo.zoo.naming import CheckpointOptions


@dataclass(frozen=True)
class Student:
    """A network with its preprocessing; `facts` say where its weights are from, `remarks` what a person should know of them."""

    module: torch.nn.Module
    preprocess: Preprocess
    facts: Mapping[str, Any]
    remarks: tuple[str, ...] = ()


def student(model: str, classes: int, recipe: Recipe, options: TrainOptions) -> Student:
    """The catalog's or timm's `model` for `classes`, with random weights (of `options.seed`) or the given ones.

    Raises:
        InputError: unknown model, weights that do not fit, a recipe that needs weights without any, or two sets of them.
    """
    _require_weights(recipe, options)
    settings = {
        "drop_rate": recipe.drop_rate,
        **({"drop_path_rate": recipe.drop_path} if recipe.drop_path else {}),
    }
    known = model in {row.name for row in catalog.models()}
    if not known and not timm.is_model(model):
        catalog.spec(model)  # says what is near
    preprocess = _preprocess(model, known, recipe)
    torch.manual_seed(options.seed)
    if options.checkpoint is None:
        made = (families.build if known else _timm_model)(
            model, classes, options.pretrained, **settings
        )
        return Student(
            made, preprocess, {"weights": "pretrained" if options.pretrained else "random"}
        )
    path = resolve(options.checkpoint)
    loading = CheckpointOptions(
        options.source, classes, options.reset_head or recipe.finetune, seed=options.seed
    )
    load = _from_catalog if known else _from_timm
    module, remarks = load(path, model, loading, settings)
    return Student(
        module, preprocess, {"weights": path.name, "sha256": sha256_of_file(path)}, remarks
    )


def teacher(name: str, classes: tuple[str, ...], recipe: Recipe) -> torch.nn.Module | None:
    """The teacher called `name`: an artifact FILE.onnx, a model NAME with timm's weights, or NAME=FILE with given ones.

    Raises:
        InputError: one that is not there or has other classes, or a recipe that has no use for one.
    """
    require_teacher(recipe, name)
    if not name:
        return None
    if name.endswith(".onnx"):
        return OnnxTeacher(Path(name), classes)
    model, _, file = name.partition("=")
    weights = TrainOptions(checkpoint=file) if file else TrainOptions(pretrained=True)
    made = student(model, len(classes), Recipe("teacher", "", 1, 2, 1.0), weights)
    module = made.module.eval()
    module.pretrained_cfg = {"mean": made.preprocess.mean, "std": made.preprocess.std}  # type: ignore[assignment]
    return module


def head_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The last layer, or layers where there are two heads; what has no `get_classifier` ends in its last child."""
    if hasattr(module, "get_classifier"):
        found = module.get_classifier()  # type: ignore[operator]
    else:
        found = list(module.children())[-1]
    return list(found) if isinstance(found, tuple | list) else [found]


def _require_weights(recipe: Recipe, options: TrainOptions) -> None:
    if recipe.finetune and not options.given_weights:
        raise InputError(
            f"the recipe {recipe.name} starts from trained weights; give --checkpoint FILE or --pretrained"
        )


def _preprocess(model: str, known: bool, recipe: Recipe) -> Preprocess:
    if known:
        own = asdict(catalog.spec(model).preprocess)
    else:
        found = timm.data.resolve_data_config(
            timm.get_pretrained_cfg(model, allow_unregistered=False).to_dict()
        )
        own = {
            "size": found["input_size"][-1], "crop_fraction": found["crop_pct"], "interpolation": found["interpolation"],
            "mean": tuple(found["mean"]), "std": tuple(found["std"]),
        }  # fmt: skip
    return Preprocess.from_mapping({**own, **recipe.preprocess})


def _timm_model(
    model: str, classes: int, pretrained: bool = False, **options: Any
) -> torch.nn.Module:
    made = timm.create_model(model, pretrained=pretrained, num_classes=classes, **options)
    if not isinstance(made, torch.nn.Module):
        raise InputError(f"timm's {model} is no torch module")
    return made


def _from_catalog(
    path: Path, model: str, loading: CheckpointOptions, settings: Mapping[str, Any]
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    found = checkpoints.load(path, model, loading)
    if found.form != "train":
        raise InputError(
            f"{path} is of {model} in deploy form, whose branches are merged; training needs the training form"
        )
    heads = {"distillation": found.two_heads} if catalog.spec(model).family == "repvit" else {}
    module = families.build(model, found.classes, **heads, **settings)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in found.state.items()})
    return module, (f"weights of {path.name}: {found.source}", *found.remarks)


def _from_timm(
    path: Path, model: str, loading: CheckpointOptions, settings: Mapping[str, Any]
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """A file in timm's own naming; the last layer may be of other classes where it may start anew."""
    module = _timm_model(model, loading.num_classes or 1000, **settings)
    head = f"{timm.get_pretrained_cfg_value(model, 'classifier')}."
    tables = containers.read(path).tables
    table = tables.get("", next(iter(tables.values())))
    own = module.state_dict()
    odd = sorted(set(own) ^ set(table)) or [
        name for name in own if tuple(table[name].shape) != tuple(own[name].shape)
    ]
    fresh = [name for name in odd if name.startswith(head) and name in own and name in table]
    if wrong := [name for name in odd if name not in fresh]:
        raise InputError(
            f"{path} does not fit {model}: {len(wrong)} tensors differ, such as {wrong[0]!r}; check the model's name"
        )
    if fresh and not loading.reset_head:
        raise InputError(
            f"{path} is of another number of classes than {loading.num_classes}; give --reset-head to start the last layer anew"
        )
    # A last layer of zeros: timm starts some so large that a short fine-tuning would only unlearn it.
    module.load_state_dict(
        {
            name: torch.zeros_like(own[name])
            if name in fresh
            else torch.from_numpy(table[name].copy())
            for name in own
        }
    )
    return module, ("the last layer starts anew",) if fresh else ()
