"""The network to train, from the catalog or timm, and its teacher."""

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
from repzoo.zoo.naming import CheckpointOptions


@dataclass(frozen=True)
class Student:
    """A network to train.

    facts    where its weights come from, for the history
    remarks  about its weights, for a person
    """

    module: torch.nn.Module
    preprocess: Preprocess
    facts: Mapping[str, Any]
    remarks: tuple[str, ...] = ()


def student(model: str, classes: int, recipe: Recipe, options: TrainOptions) -> Student:
    """The catalog's or timm's `model` for `classes` classes.

    Weights are random (from `options.seed`) unless a checkpoint or timm's weights are asked for.

    Raises:
        InputError: an unknown model, weights that do not fit, or a recipe that needs weights
            without any.
    """
    _require_weights(recipe, options)
    settings: dict[str, Any] = {"drop_rate": recipe.drop_rate}
    # Models without stochastic depth do not know the argument.
    if recipe.drop_path:
        settings["drop_path_rate"] = recipe.drop_path
    in_catalog = model in {spec.name for spec in catalog.models()}
    if not in_catalog and not timm.is_model(model):
        catalog.spec(model)  # raises, and offers similar names
    preprocess = _preprocess(model, in_catalog, recipe)
    torch.manual_seed(options.seed)
    if options.checkpoint is None:
        build = families.build if in_catalog else _timm_model
        module = build(model, classes, options.pretrained, **settings)
        weights = "pretrained" if options.pretrained else "random"
        return Student(module, preprocess, {"weights": weights})

    path = checkpoints.locate(options.checkpoint)
    loading = CheckpointOptions(
        source=options.source,
        num_classes=classes,
        reset_head=options.reset_head or recipe.finetune,
        seed=options.seed,
    )
    load = _load_into_catalog_model if in_catalog else _load_into_timm_model
    module, remarks = load(path, model, loading, settings)
    facts = {"weights": path.name, "sha256": sha256_of_file(path)}
    return Student(module, preprocess, facts, remarks)


def teacher(
    name: str, classes: tuple[str, ...], recipe: Recipe
) -> torch.nn.Module | None:
    """The teacher `name`: FILE.onnx, a model NAME with timm's weights, or NAME=FILE.

    Raises:
        InputError: an absent teacher, one with other classes, or a recipe without distillation.
    """
    require_teacher(recipe, name)
    if not name:
        return None
    if name.endswith(".onnx"):
        return OnnxTeacher(Path(name), classes)
    model, _, file = name.partition("=")
    weights = TrainOptions(checkpoint=file) if file else TrainOptions(pretrained=True)
    # A recipe without training settings: only the network and its weights are needed.
    network = student(model, len(classes), Recipe("teacher", "", 1, 2, 1.0), weights)
    module = network.module.eval()
    # timm's distillation tasks read the teacher's normalization from here.
    normalization = {"mean": network.preprocess.mean, "std": network.preprocess.std}
    module.pretrained_cfg = normalization  # type: ignore[assignment]
    return module


def head_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The last layer, or both if there are two heads.

    For a module without timm's `get_classifier` this is its last child.
    """
    if hasattr(module, "get_classifier"):
        heads = module.get_classifier()  # type: ignore[operator]
    else:
        heads = list(module.children())[-1]
    # RepViT has two.
    return list(heads) if isinstance(heads, tuple | list) else [heads]


def _require_weights(recipe: Recipe, options: TrainOptions) -> None:
    if recipe.finetune and not options.given_weights:
        raise InputError(
            f"the recipe {recipe.name} starts from trained weights; give --checkpoint FILE or "
            "--pretrained"
        )


def _preprocess(model: str, in_catalog: bool, recipe: Recipe) -> Preprocess:
    """The model's own preprocessing, with the recipe's changes."""
    if in_catalog:
        values = asdict(catalog.spec(model).preprocess)
    else:
        pretrained = timm.get_pretrained_cfg(model, allow_unregistered=False)
        config = timm.data.resolve_data_config(pretrained.to_dict())
        values = asdict(Preprocess.from_timm(config))
    return Preprocess.from_mapping({**values, **recipe.preprocess})


def _timm_model(
    model: str, classes: int, pretrained: bool = False, **options: Any
) -> torch.nn.Module:
    return families.timm_model(model, classes, pretrained, **options)


def _load_into_catalog_model(
    path: Path, model: str, loading: CheckpointOptions, settings: Mapping[str, Any]
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    loaded = checkpoints.load(path, model, loading)
    if loaded.form != "train":
        raise InputError(
            f"{path} is of {model} in deploy form, whose branches are merged; training needs the "
            "training form"
        )
    is_repvit = catalog.spec(model).family == "repvit"
    heads = {"distillation": loaded.two_heads} if is_repvit else {}
    module = families.build(model, loaded.classes, **heads, **settings)
    state = {name: torch.from_numpy(value) for name, value in loaded.state.items()}
    module.load_state_dict(state)
    return module, (f"weights of {path.name}: {loaded.source}", *loaded.remarks)


def _load_into_timm_model(
    path: Path, model: str, loading: CheckpointOptions, settings: Mapping[str, Any]
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """Load a file in timm's naming. The last layer may start anew with other classes."""
    module = _timm_model(model, loading.num_classes or 1000, **settings)
    head = f"{timm.get_pretrained_cfg_value(model, 'classifier')}."
    tables = containers.read(path).tables
    table = tables.get("", next(iter(tables.values())))
    own = module.state_dict()
    differing = sorted(set(own) ^ set(table))
    if not differing:
        differing = [
            name for name in own if tuple(table[name].shape) != tuple(own[name].shape)
        ]
    shared = own.keys() & table.keys()
    renewed = [name for name in differing if name.startswith(head) and name in shared]
    wrong = [name for name in differing if name not in renewed]
    if wrong:
        raise InputError(
            f"{path} does not fit {model}: {len(wrong)} tensors differ, such as {wrong[0]!r}; "
            "check the model's name"
        )
    if renewed and not loading.reset_head:
        raise InputError(
            f"{path} is of another number of classes than {loading.num_classes}; give "
            "--reset-head to start the last layer anew"
        )
    state: dict[str, torch.Tensor] = {}
    for name, values in own.items():
        # A new last layer is zero: timm initializes some so large that a short fine-tuning would
        # mostly unlearn it.
        is_new = name in renewed
        state[name] = (
            torch.zeros_like(values) if is_new else torch.from_numpy(table[name].copy())
        )
    module.load_state_dict(state)
    return module, ("the last layer starts anew",) if renewed else ()
