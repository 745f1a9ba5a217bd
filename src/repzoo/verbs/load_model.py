"""The verb `load`: a model from whatever a person has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from repzoo.errors import InputError
from repzoo.verbs.export_model import export
from repzoo.verbs.model_files import (
    ModelLike,
    is_checkpoint,
    load_file,
    open_model,
    with_preprocess,
)
from repzoo.verbs.optional_torch import needs_torch
from repzoo.verbs.public_artifact import Artifact
from repzoo.zoo import catalog, hub


def load(source: ModelLike, *, model: str = "", **preprocess: Any) -> Artifact:
    """Load a classifier.

    source      an ONNX file; an embedded model (`repghostnet_050.digits`); a catalog model
                (`repvit_m0_9`), exported with random weights; a checkpoint file, together with
                `model`; an onnx.ModelProto; a model on Hugging Face (`hf:owner/name`, with
                `@revision` or `/file.onnx` where needed), in ONNX or as .safetensors
    model       the catalog model that a checkpoint file belongs to
    preprocess  fields of Preprocess such as `size=224`; they replace what the file says

    Catalog models and checkpoints need torch and timm. `export` has more settings for both.

    Raises:
        InputError: no such file or model (the nearest names are offered), an unreadable file,
            or an unknown preprocessing field.
        MissingExtra: torch or timm is needed and not installed.
    """
    if not isinstance(source, str | Path):
        return with_preprocess(open_model(source), preprocess)
    if hub.is_hub_name(source):
        return _from_hub(str(source), model, preprocess)
    if is_checkpoint(Path(source)):
        return _from_checkpoint(Path(source), model, preprocess)
    if model:
        raise InputError(
            f"model={model!r} is for checkpoint files such as .pth or .safetensors; "
            f"{source} is not one"
        )
    if _is_catalog_model(source):
        return export(str(source), **preprocess)
    return load_file(source, **preprocess)


def _is_catalog_model(source: str | Path) -> bool:
    names = {row.name for row in catalog.models()}
    # A user's file may be called like a catalog model.
    return str(source) in names and not Path(source).exists()


def _from_hub(name: str, model: str, preprocess: dict[str, Any]) -> Artifact:
    """A model on Hugging Face. Of weights, config.json may name the architecture, as timm's do."""
    fetched = hub.fetch(name, (".onnx", ".safetensors"))
    if fetched.path.suffix == ".safetensors":
        model = model or _architecture(fetched)
        loaded = _from_checkpoint(fetched.path, model, preprocess)
    else:
        loaded = load(fetched.path, model=model, **preprocess)
    return replace(loaded, origin=fetched.origin)


def _architecture(weights: hub.HubFile) -> str:
    """The catalog model that the configuration beside the weights names; "" for none."""
    path = hub.fetch_beside(weights, "config.json")
    if path is None:
        return ""
    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        return ""
    name = document.get("architecture") if isinstance(document, dict) else None
    known = [row.name for row in catalog.models()]
    return name if isinstance(name, str) and name in known else ""


def _from_checkpoint(path: Path, model: str, preprocess: dict[str, Any]) -> Artifact:
    if not model:
        raise InputError(
            f"{path} is a checkpoint; name the catalog model it belongs to, for example: "
            f"load({path.name!r}, model='repvgg_a0')"
        )
    with needs_torch("loading a checkpoint"):
        from repzoo.zoo import checkpoints

        # `export` would take the catalog's number of classes where none is given.
        num_classes = checkpoints.load(path, model).classes
    return export(model, checkpoint=path, num_classes=num_classes, **preprocess)
