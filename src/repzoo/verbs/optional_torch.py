"""What a verb says where torch is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from repzoo.errors import MissingExtra


@contextmanager
def needs_torch(feature: str) -> Iterator[None]:
    """Turn a missing torch, torchvision, timm or safetensors into a sentence about `feature`.

    Raises:
        MissingExtra: says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "repzoo":
            raise  # a module of our own: a defect, not a missing package
        raise MissingExtra(feature, "torch") from error
