"""Load the weights of any known source into a catalog model.

A file is read (`containers`), its tensors are renamed (`naming`) and compared with the shapes
of the model, which is built without memory on torch's meta device. Every tensor of the file
gets exactly one place, or a remark says why it was left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from repzoo import __version__
from repzoo.errors import InputError, MissingExtra
from repzoo.storage import cached_file
from repzoo.zoo import catalog, embedded, families
from repzoo.zoo.containers import Table, read
from repzoo.zoo.download import resolve
from repzoo.zoo.naming import (
    COUNTER,
    HEADS,
    CheckpointOptions,
    RenamedWeights,
    to_catalog_names,
)

Shapes = Mapping[str, tuple[int, ...]]
WEIGHT_TYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Loaded:
    """Weights of `model` under the catalog's names.

    form     "train" or "deploy": the form of the checkpoint
    source   who named the tensors, as a phrase
    state    name -> float32 array (counters: int64), complete for the model in `form`
    remarks  what was chosen, filled in, converted or left out, one sentence each
    """

    model: str
    form: str
    source: str
    classes: int
    two_heads: bool
    state: dict[str, npt.NDArray[Any]]
    remarks: tuple[str, ...] = field(default=())


def load(path: Path, model: str, options: CheckpointOptions | None = None) -> Loaded:
    """The weights in the file at `path` for the catalog model `model`.

    Raises:
        InputError: an unreadable or refused file, weights of another model (the error names those
            that fit), missing or additional tensors, another number of classes without
            `reset_head`, values that are not finite.
    """
    options = options or CheckpointOptions()
    spec = catalog.spec(model)
    weights = _read_renamed(path, spec.family, options)
    if weights.scheme.family != spec.family:
        fitting = _fitting_models(weights)
        raise InputError(
            f"{path} is of {weights.scheme.title}, not of {model}{fitting}"
        )
    table = dict(weights.table)
    remarks = list(weights.remarks)
    if weights.classes is None:
        classes = _classes_of_new_head(path, model, weights, options)
        target = shapes(model, weights.form, classes, weights.two_heads)
        table.update(_new_last_layer(weights, target, options.seed))
        remarks.append(
            f"the file has no last layer: one for {classes} classes starts anew"
        )
    else:
        classes = weights.classes
        target = shapes(model, weights.form, classes, weights.two_heads)
    _add_counters(table, target, remarks)
    _require_shapes(path, model, weights, table, target)
    state = {
        name: _as_float32(path, name, weights, table[name], remarks) for name in target
    }
    if options.num_classes not in (None, classes):
        state = _with_new_head(path, model, weights, state, options)
        remarks.append(
            f"the last layer starts anew: {classes} classes in the checkpoint, "
            f"{options.num_classes} wanted"
        )

    form = "training" if weights.form == "train" else "deploy"
    return Loaded(
        model=model,
        form=weights.form,
        source=f"{weights.scheme.title}, {form} form",
        classes=options.num_classes or classes,
        two_heads=weights.two_heads,
        state=state,
        # `_as_float32` makes the same remark for each tensor.
        remarks=tuple(dict.fromkeys(remarks)),
    )


def locate(checkpoint: str | Path) -> Path:
    """The file of a checkpoint: a path, weights that ship, or a published name.

    Weights that ship are put into the cache as .safetensors.

    Raises:
        InputError: no such file or name.
        MissingExtra: safetensors is not installed.
    """
    name = str(checkpoint)
    if name not in embedded.names():
        return resolve(checkpoint)
    artifact = embedded.read(name)

    def write(path: Path) -> None:
        """Write the weights as .safetensors."""
        save = _safetensors_writer()
        path.write_bytes(save(_exported_weights(artifact.model)))

    # The cache outlives this version of repzoo, and the next one may ship other weights.
    return cached_file(
        "checkpoints", f"{name}.{artifact.sha256[:16]}.safetensors", write
    )


def _exported_weights(model: onnx.ModelProto) -> Table:
    """The weights in a training form that torch exported, by their names in torch."""
    state: Table = {}
    for item in model.graph.initializer:
        state[item.name] = onnx.numpy_helper.to_array(item)
    # The exporter merges tensors of equal values, such as the zero shifts of two BatchNorms, and
    # makes the second from the first with an Identity.
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in state:
            state[node.output[0]] = state[node.input[0]]
    return state


def _safetensors_writer() -> Callable[..., bytes]:
    try:
        from safetensors.numpy import save
    except ModuleNotFoundError as error:
        raise MissingExtra("writing .safetensors", "torch") from error
    writer: Callable[..., bytes] = save
    return writer


def module_of(loaded: Loaded) -> torch.nn.Module:
    """The torch module of these weights, in their form, in evaluation mode."""
    module = _build_on_meta(loaded.model, loaded.form, loaded.classes, loaded.two_heads)
    state = {name: torch.from_numpy(value) for name, value in loaded.state.items()}
    # The module is on the meta device: it has no memory to copy into, so its tensors are replaced.
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


def to_safetensors(loaded: Loaded, sha256: str) -> bytes:
    """The weights as a .safetensors file.

    Its metadata names the model, the form, the source and the SHA-256 of the original file.

    Raises:
        MissingExtra: safetensors is not installed.
    """
    save = _safetensors_writer()
    metadata = {
        "model": loaded.model,
        "form": loaded.form,
        "source": loaded.source,
        "input_sha256": sha256,
        "repzoo": __version__,
    }
    return _sorted_header(bytes(save(loaded.state, metadata)))


def _sorted_header(data: bytes) -> bytes:
    """A .safetensors file with the keys of its header in order.

    safetensors writes the metadata in the order of a hash table, which differs from run to run.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    ordered = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    # The format aligns the tensors behind the header to 8 bytes, with spaces.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@cache
def shapes(model: str, form: str, classes: int, two_heads: bool) -> Shapes:
    """Names and shapes of the tensors of `model` in `form`."""
    state = _build_on_meta(model, form, classes, two_heads).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


def _build_on_meta(
    model: str, form: str, classes: int, two_heads: bool
) -> torch.nn.Module:
    is_repvit = catalog.spec(model).family == "repvit"
    # Only RepViT has a second head; timm's other models do not know the argument.
    heads = {"distillation": two_heads} if is_repvit else {}
    # Only names and shapes are wanted: the tensors of RepVGG-B3 alone would take 493 MB.
    with torch.device("meta"):
        module = families.build(model, classes, **heads)
        return families.deploy_form(module) if form == "deploy" else module


def _read_renamed(
    path: Path, family: str, options: CheckpointOptions
) -> RenamedWeights:
    contents = read(path)
    try:
        return to_catalog_names(contents, family, options.source, options.ema)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _fitting_models(weights: RenamedWeights) -> str:
    """ "; it fits X" for the catalog models with exactly these tensors; "" if there are none."""
    own = _without_counters(
        {name: value.shape for name, value in weights.table.items()}
    )
    classes = weights.classes or 1000
    fitting: list[str] = []
    for spec in catalog.models():
        if spec.family != weights.scheme.family:
            continue
        target = shapes(spec.name, weights.form, classes, weights.two_heads)
        if _without_counters(target) == own:
            fitting.append(spec.name)
    return f"; it fits {' and '.join(fitting)}" if fitting else ""


def _without_counters(target: Shapes) -> Shapes:
    return {name: shape for name, shape in target.items() if not name.endswith(COUNTER)}


def _classes_of_new_head(
    path: Path, model: str, weights: RenamedWeights, options: CheckpointOptions
) -> int:
    """The number of classes of the last layer, which the file does not have."""
    classes = options.num_classes or catalog.spec(model).num_classes
    target = shapes(model, weights.form, classes, weights.two_heads)
    own = _without_counters(
        {name: value.shape for name, value in weights.table.items()}
    )
    body = {
        name: shape
        for name, shape in _without_counters(target).items()
        if not _is_last_layer(weights, name)
    }
    differing = sorted(
        name for name in body.keys() | own.keys() if body.get(name) != own.get(name)
    )
    if differing:
        raise InputError(
            f"{path} has no last layer that is known of {model}, and {len(differing)} of its other "
            f"tensors do not fit either, such as {differing[0]!r}; check the model's name"
        )
    if not options.reset_head or options.num_classes is None:
        raise InputError(
            f"{path} holds {model} without its last layer; give --reset-head and --num-classes N "
            "to start one for N classes"
        )
    return classes


def _is_last_layer(weights: RenamedWeights, name: str) -> bool:
    top = HEADS[weights.scheme.family][0].partition(".")[0]
    return name.startswith(f"{top}.")


def _new_last_layer(weights: RenamedWeights, target: Shapes, seed: int) -> Table:
    """Initial values of the last layer, and of the BatchNorm that RepViT has before it."""
    random = np.random.default_rng(seed)
    values: Table = {}
    for name, shape in target.items():
        if not _is_last_layer(weights, name) or name.endswith(COUNTER):
            continue
        values[name] = _initial_values(shape, random)
        # A new BatchNorm changes nothing: as in torch, its scale and variance are 1.
        if name.endswith(("bn.weight", "running_var")):
            values[name] = np.ones(shape, np.float32)
    return values


def _add_counters(table: Table, target: Shapes, remarks: list[str]) -> None:
    """Add missing batch counters. Paddle and torch before 0.4.1 have none; nothing needs them."""
    absent = [name for name in target if name.endswith(COUNTER) and name not in table]
    table.update({name: np.zeros((), np.int64) for name in absent})
    if absent:
        remarks.append(
            f"{len(absent)} counters of batches, which this source does not keep, start at 0"
        )


def _require_shapes(
    path: Path, model: str, weights: RenamedWeights, table: Table, target: Shapes
) -> None:
    missing = [name for name in target if name not in table]
    extra = [name for name in table if name not in target]
    misshapen = [
        name for name in target if name in table and table[name].shape != target[name]
    ]
    if not (missing or extra or misshapen):
        return
    parts: list[str] = []
    if missing:
        parts.append(f"lacks {len(missing)} tensors, such as {missing[0]!r}")
    if extra:
        parts.append(f"adds {len(extra)} tensors, such as {weights.origin[extra[0]]!r}")
    if misshapen:
        name = misshapen[0]
        key = weights.origin.get(name, name)
        example = f"{key!r}, {table[name].shape} where {target[name]} is expected"
        parts.append(f"has {len(misshapen)} of other shapes, such as {example}")
    hint = (
        _fitting_models(weights)
        or "; check the model's name, and that the file is whole"
    )
    raise InputError(
        f"{path} ({weights.scheme.title}) does not fit {model}: it {', '.join(parts)}{hint}"
    )


def _as_float32(
    path: Path,
    name: str,
    weights: RenamedWeights,
    value: npt.NDArray[Any],
    remarks: list[str],
) -> npt.NDArray[Any]:
    """A copy of `value` as float32 (a counter: int64) in C order and native byte order."""
    if name.endswith(COUNTER):
        return np.array(value, np.int64, order="C")
    kind = value.dtype.name
    if kind not in WEIGHT_TYPES:
        hint = (
            "; Paddle stores bfloat16 so: save it as float32"
            if kind == "uint16"
            else ""
        )
        raise InputError(
            f"{path}: {weights.origin[name]!r} has elements of type {kind} where weights are real "
            f"numbers{hint}"
        )
    if kind != "float32":
        remarks.append(f"weights of type {kind} became float32")
    # Checked after the cast: what float64 holds may be infinite in float32.
    converted = np.array(value, np.float32, order="C")
    if not np.isfinite(converted).all():
        raise InputError(
            f"{path}: {weights.origin[name]!r} holds values that are not finite; the training "
            "that made it failed"
        )
    return converted


def _with_new_head(
    path: Path,
    model: str,
    weights: RenamedWeights,
    state: Table,
    options: CheckpointOptions,
) -> Table:
    """`state` with a new last layer for `options.num_classes` classes."""
    if not options.reset_head:
        raise InputError(
            f"{path} has {weights.classes} classes where {options.num_classes} are wanted; give "
            f"--num-classes {weights.classes}, or --reset-head to start the last layer anew"
        )
    heads = HEADS[weights.scheme.family]
    target = shapes(model, weights.form, options.num_classes or 0, weights.two_heads)
    random = np.random.default_rng(options.seed)
    renewed: Table = {}
    for name, shape in target.items():
        layer, _, parameter = name.rpartition(".")
        # RepViT's BatchNorm before this layer is of features, not of classes: it stays.
        is_head = layer in heads and parameter in ("weight", "bias")
        renewed[name] = _initial_values(shape, random) if is_head else state[name]
    return renewed


def _initial_values(
    shape: tuple[int, ...], random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """timm's initialization of a last layer: weights from N(0, 0.02), biases 0."""
    values = random.normal(0, 0.02, shape) if len(shape) > 1 else np.zeros(shape)
    return np.asarray(values, np.float32)
