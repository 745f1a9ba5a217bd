"""Weights from a file into a catalogue model. Nothing in a checkpoint is executed."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from repzoo.errors import InputError


def load_into(module: torch.nn.Module, path: Path) -> None:
    """Load the state dict at `path` (.safetensors, or a .pth of tensors only) strictly into `module`, in timm's naming.

    Raises:
        InputError: absent, damaged, executable content, or keys and shapes that are not the module's; the first ones are named.
    """
    state = _read(path)
    own = module.state_dict()
    missing, strange = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or strange:
        lines = [
            f"{kind} {len(keys)} tensors, such as {keys[0]!r}" for kind, keys in (("lacks", missing), ("adds", strange)) if keys
        ]
        raise InputError(
            f"{path} does not fit this model: it {' and '.join(lines)}; check the model's name and the source's naming"
        )
    for key, value in own.items():
        if state[key].shape != value.shape:
            raise InputError(
                f"{path}: {key} has shape {tuple(state[key].shape)} where the model has {tuple(value.shape)}; "
                "give the --num-classes and model that the checkpoint was trained with"
            )
    module.load_state_dict(state)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(f"the checkpoint {path} does not exist; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's version: what torch cannot read safely it refuses anyway
            loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        why = (str(error).strip().splitlines() or ["it ends too early"])[0]
        raise InputError(f"{path} is not a readable file of tensors: {why}") from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path} does not hold a table of tensors")
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}
