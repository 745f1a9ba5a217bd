"""Weights from any known source into a catalog model: strict, and said.

A file is read (`containers`), its tensors renamed (`naming`), and laid against the shapes of the model's own module, which is built
without memory on torch's meta device. Every tensor of the file gets exactly one place, or a sentence says why it was left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from repzoo import __version__
from repzoo.errors import InputError, MissingExtra
from repzoo.zoo import catalog, families
from repzoo.zoo.containers import Table, read
from repzoo.zoo.naming import COUNTER, HEADS, CheckpointOptions, RenamedWeights, to_catalog_names

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Loaded:
    """Weights of `model` in the catalog's naming.

    state    name -> float32 array, counters int64; complete for the model in `form`
    form     "train" or "deploy": the form that the checkpoint has
    source   who named it, a phrase
    remarks  what was taken, filled in, changed in type or left out, a sentence each
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
        InputError: unreadable or refused file, weights of another model (which one fits is said), tensors that are missing or too
            many, another number of classes without `reset_head`, values that are not finite.
    """
    options, row = options or CheckpointOptions(), catalog.spec(model)
    found = _named(path, row.family, options)
    if found.classes is None or found.scheme.family != row.family:
        raise InputError(f"{path} is of {found.scheme.title}, not of {model}{_fitting(found)}")
    target = shapes(model, found.form, found.classes, found.two_heads)
    table, remarks = dict(found.table), list(found.remarks)
    _add_counters(table, target, remarks)
    _require_shapes(path, model, found, table, target)
    state = {name: _plain(path, name, found, table[name], remarks) for name in target}
    if options.num_classes not in (None, found.classes):
        state = _with_new_head(path, model, found, state, options)
        remarks.append(
            f"the last layer starts anew: {found.classes} classes in the checkpoint, {options.num_classes} wanted"
        )
    said = f"{found.scheme.title}, {'training' if found.form == 'train' else 'deploy'} form"
    classes = options.num_classes or found.classes
    return Loaded(
        model, found.form, said, classes, found.two_heads, state, tuple(dict.fromkeys(remarks))
    )


def module_of(loaded: Loaded) -> torch.nn.Module:
    """The torch module of these weights, in their form, in evaluation mode."""
    module = _on_meta(loaded.model, loaded.form, loaded.classes, loaded.two_heads)
    module.load_state_dict(
        {name: torch.from_numpy(value) for name, value in loaded.state.items()},
        strict=True,
        assign=True,
    )
    return module.eval()


def to_safetensors(loaded: Loaded, sha256: str) -> bytes:
    """The weights as a .safetensors file, whose metadata says what they are and of which file (`sha256`) they were made.

    Raises:
        MissingExtra: safetensors is not installed.
    """
    try:
        from safetensors.numpy import save
    except ModuleNotFoundError as error:
        raise MissingExtra("writing .safetensors", "torch") from error
    facts = {
        "model": loaded.model,
        "form": loaded.form,
        "source": loaded.source,
        "input_sha256": sha256,
        "repzoo": __version__,
    }
    return bytes(save(loaded.state, facts))


@cache
def shapes(model: str, form: str, classes: int, two_heads: bool) -> Shapes:
    """Names and shapes of the tensors of `model` in `form`."""
    return {
        name: tuple(value.shape)
        for name, value in _on_meta(model, form, classes, two_heads).state_dict().items()
    }


def _on_meta(model: str, form: str, classes: int, two_heads: bool) -> torch.nn.Module:
    heads = {"distillation": two_heads} if catalog.spec(model).family == "repvit" else {}
    with torch.device("meta"):
        module = families.build(model, classes, **heads)
        return families.deploy_form(module) if form == "deploy" else module


def _named(path: Path, family: str, options: CheckpointOptions) -> RenamedWeights:
    contents = read(path)
    try:
        return to_catalog_names(contents, family, options.source, options.ema)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _fitting(found: RenamedWeights) -> str:
    """ "; it fits X" for the catalog models whose tensors are exactly these, counters and classes aside; "" when none is."""
    own = {name: value.shape for name, value in found.table.items() if not name.endswith(COUNTER)}
    rows = [row.name for row in catalog.models() if row.family == found.scheme.family]
    fits = [
        name
        for name in rows
        if _without_counters(shapes(name, found.form, found.classes or 1000, found.two_heads))
        == own
    ]
    return f"; it fits {' and '.join(fits)}" if fits else ""


def _without_counters(target: Shapes) -> Shapes:
    return {name: shape for name, shape in target.items() if not name.endswith(COUNTER)}


def _add_counters(table: Table, target: Shapes, remarks: list[str]) -> None:
    """Paddle and torch before 0.4.1 do not count batches; the count matters to no result."""
    absent = [name for name in target if name.endswith(COUNTER) and name not in table]
    table.update({name: np.zeros((), np.int64) for name in absent})
    if absent:
        remarks.append(
            f"{len(absent)} counters of batches, which this source does not keep, start at 0"
        )


def _require_shapes(
    path: Path, model: str, found: RenamedWeights, table: Table, target: Shapes
) -> None:
    missing, strange = (
        [name for name in target if name not in table],
        [name for name in table if name not in target],
    )
    wrong = [name for name in target if name in table and table[name].shape != target[name]]
    if not (missing or strange or wrong):
        return
    parts = [
        *([f"lacks {len(missing)} tensors, such as {missing[0]!r}"] if missing else []),
        *(
            [f"adds {len(strange)} tensors, such as {found.origin[strange[0]]!r}"]
            if strange
            else []
        ),
        *(
            [
                f"has {len(wrong)} of other shapes, such as {_difference(found, table, target, wrong[0])}"
            ]
            if wrong
            else []
        ),
    ]
    hint = _fitting(found) or "; check the model's name, and that the file is whole"
    raise InputError(
        f"{path} ({found.scheme.title}) does not fit {model}: it {', '.join(parts)}{hint}"
    )


def _difference(found: RenamedWeights, table: Table, target: Shapes, name: str) -> str:
    return f"{found.origin.get(name, name)!r}, {table[name].shape} where {target[name]} is expected"


def _plain(
    path: Path, name: str, found: RenamedWeights, value: npt.NDArray[Any], remarks: list[str]
) -> npt.NDArray[Any]:
    """A copy of `value` as float32 (a counter: int64), in C order and this machine's byte order."""
    if name.endswith(COUNTER):
        return np.array(value, np.int64, order="C")
    kind = value.dtype.name
    if kind not in ("float32", "float16", "bfloat16", "float64"):
        hint = "; Paddle stores bfloat16 so: save it as float32" if kind == "uint16" else ""
        raise InputError(
            f"{path}: {found.origin[name]!r} has elements of type {kind} where weights are real numbers{hint}"
        )
    if kind != "float32":
        remarks.append(f"weights of type {kind} became float32")
    made = np.array(value, np.float32, order="C")
    if not np.isfinite(made).all():
        raise InputError(
            f"{path}: {found.origin[name]!r} holds values that are not finite; the training that made it failed"
        )
    return made


def _with_new_head(
    path: Path, model: str, found: RenamedWeights, state: Table, options: CheckpointOptions
) -> Table:
    if not options.reset_head:
        raise InputError(
            f"{path} has {found.classes} classes where {options.num_classes} are wanted; give --num-classes {found.classes}, "
            "or --reset-head to start the last layer anew"
        )
    heads = {f"{head}.{part}" for head in HEADS[found.scheme.family] for part in ("weight", "bias")}
    classes = options.num_classes or 0
    target = shapes(model, found.form, classes, found.two_heads)
    random = np.random.default_rng(options.seed)
    fresh = {name: _fresh(target[name], random) for name in target if name in heads}
    return {name: fresh.get(name, state[name]) for name in target}


def _fresh(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """As timm starts a last layer: normal of deviation 0.02, biases 0."""
    return np.asarray(
        random.normal(0, 0.02, shape) if len(shape) > 1 else np.zeros(shape), np.float32
    )
