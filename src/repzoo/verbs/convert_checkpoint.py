"""The verb `convert`: a checkpoint of any known source in the catalog's naming."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repzoo.errors import InputError
from repzoo.settings import merge_keywords
from repzoo.storage import sha256_of, sha256_of_file, write_atomically
from repzoo.verbs.optional_torch import needs_torch
from repzoo.zoo.naming import CheckpointOptions

if TYPE_CHECKING:
    from repzoo.zoo.checkpoints import Loaded


@dataclass(frozen=True, repr=False)
class ConvertedCheckpoint:
    """Weights in the catalog's naming.

    weights  the tensors by name, with their source and remarks
    data     the .safetensors file as bytes
    """

    weights: Loaded
    data: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the .safetensors file."""
        return sha256_of(self.data)

    def save(self, path: str | Path) -> Path:
        """Write the .safetensors file to `path`, and return the path.

        Raises:
            InputError: another suffix than .safetensors, or a place that cannot be written.
        """
        path = require_safetensors(path)
        write_atomically(path, self.data)
        return path

    def __repr__(self) -> str:
        """A short description; the weights themselves would fill the screen."""
        weights = self.weights
        return f"<ConvertedCheckpoint of {weights.model}: {len(weights.state)} tensors>"


def convert(
    checkpoint: str | Path,
    model: str,
    *,
    options: CheckpointOptions | None = None,
    **settings: Any,
) -> ConvertedCheckpoint:
    """Convert a checkpoint of any known source to the catalog's naming. Nothing in it is run.

    checkpoint  a .pth, .pt, .pdparams or .safetensors file, or the name of published weights
    model       the catalog model that the weights belong to
    settings    fields of CheckpointOptions

    Raises:
        InputError: not a checkpoint, or one of another model (the message names which fits).
        MissingExtra: torch, timm or safetensors is not installed.
    """
    options = merge_keywords(CheckpointOptions, options, settings)
    # The file itself is read without torch; the shapes to compare with come from its models.
    with needs_torch("convert"):
        from repzoo.zoo import checkpoints

        path = checkpoints.locate(checkpoint)
        weights = checkpoints.load(path, model, options)
        data = checkpoints.to_safetensors(weights, sha256_of_file(path))
    return ConvertedCheckpoint(weights, data)


def require_safetensors(path: str | Path) -> Path:
    """`path`, or an InputError where its suffix is not .safetensors."""
    if Path(path).suffix != ".safetensors":
        raise InputError(
            f"the output is a .safetensors file; got {path}; give it that suffix"
        )
    return Path(path)
