"""Open labeled images: class folders, ImageNet's validation layout, or a data set by name."""

from __future__ import annotations

from pathlib import Path

from repzoo.data import folder, imagenet
from repzoo.data.dataset import DataSource
from repzoo.errors import InputError
from repzoo.plugins import Plugin, PluginTable

# Data sets by name. Each target is a function without arguments that returns a DataSource.
NAMED = PluginTable(
    "data set", "repzoo.datasets", {"digits": Plugin("repzoo.data.digits:read", "demo")}
)


def open_source(where: str | Path, unlabeled: bool = False) -> DataSource:
    """Open a folder of images or a named data set such as `digits`.

    unlabeled  also accept a folder with images and no class folders

    Raises:
        InputError: neither a folder nor a known name; an empty folder, or one with one class.
        MissingExtra: the named data set needs a package that is not installed.
    """
    path = Path(where)
    if path.is_dir():
        return _open_folder(path, unlabeled)
    if path.exists():
        raise InputError(
            f"{where} is a file; --data takes a folder with one subfolder per class, or a name "
            "such as 'digits'"
        )
    known = NAMED.names()
    if str(where) not in known:
        raise InputError(
            f"the folder {where} does not exist, and there is no data set of that name; known "
            f"names: {', '.join(known)}"
        )
    source: DataSource = NAMED.load(str(where))()
    return source


def _open_folder(path: Path, unlabeled: bool) -> DataSource:
    if unlabeled:
        source = folder.read_unlabeled(path)
        if source is not None:
            return source
    if imagenet.is_layout(path):
        return imagenet.read(path)
    return folder.read(path)
