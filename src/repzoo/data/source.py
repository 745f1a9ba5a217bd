"""Opening labeled images: class folders, ImageNet's validation layout, or a set known by name."""

from __future__ import annotations

from pathlib import Path

from repzoo.data import folder, imagenet
from repzoo.data.dataset import DataSource
from repzoo.errors import InputError
from repzoo.plugins import Plugin, PluginTable

# A name that is not a folder is one of these; each target is a function without arguments that returns a Source.
NAMED = PluginTable(
    "data set", "repzoo.datasets", {"digits": Plugin("repzoo.data.digits:read", "demo")}
)


def open_source(where: str | Path, unlabeled: bool = False) -> DataSource:
    """Open a folder of images or a named set such as `digits`; with `unlabeled`, one with images and no class folders too.

    Raises:
        InputError: neither a folder nor a known name; a folder that is empty or has one class.
    """
    path = Path(where)
    if unlabeled and path.is_dir() and (found := folder.read_unlabeled(path)):
        return found
    if path.is_dir():
        return imagenet.read(path) if imagenet.is_layout(path) else folder.read(path)
    if path.exists():
        raise InputError(
            f"{where} is a file; --data takes a folder with one subfolder a class, or a name such as 'digits'"
        )
    if str(where) not in NAMED.names():
        raise InputError(
            f"the folder {where} does not exist, and no data set is called so; known: {', '.join(NAMED.names())}"
        )
    named: DataSource = NAMED.load(str(where))()
    return named
