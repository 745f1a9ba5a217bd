"""What a folder holds, at any depth: images, other files and folders. No image is decoded.

Names that begin with a dot are ignored: caches, version control, and the `._x.jpg` that macOS
writes beside x.jpg. So are the folders that systems put beside people's files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from repzoo.data.image_file import is_image
from repzoo.errors import InputError

SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information"}
MAX_DEPTH = 32  # folders within folders


@dataclass
class Folder:
    """A folder and all below it.

    path     relative to the folder that was read, "" for itself, with "/" on every system
    images   names of the images directly in it, sorted
    others   names of other files directly in it, sorted
    folders  by name, sorted
    """

    path: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """The path of the file `name` directly in this folder."""
        return f"{self.path}/{name}" if self.path else name

    def all_images(self) -> Iterator[str]:
        """Paths of the images here and below, the folder's own first."""
        for name in self.images:
            yield self.key(name)
        for folder in self.folders.values():
            yield from folder.all_images()

    def all_others(self) -> Iterator[str]:
        """Paths of the files here and below that are no images."""
        for name in self.others:
            yield self.key(name)
        for folder in self.folders.values():
            yield from folder.all_others()

    @property
    def holds_images(self) -> bool:
        """Whether there is an image here or below."""
        return next(self.all_images(), None) is not None

    def folders_with_images(self) -> dict[str, Folder]:
        """The folders directly here that hold images at any depth."""
        return {name: item for name, item in self.folders.items() if item.holds_images}


def read_tree(root: Path) -> Folder:
    """Everything below `root` that does not begin with a dot.

    Raises:
        InputError: a folder that cannot be read, a name that is not UTF-8, or folders nested
            deeper than MAX_DEPTH.
    """
    try:
        return _read_folder(root, "", ())
    except OSError as error:
        raise InputError(f"{root} cannot be read: {error.strerror}") from None


def entries(path: Path) -> list[tuple[str, bool]]:
    """Sorted (name, whether it is a folder) of everything in `path` that does not begin with a dot.

    Raises:
        InputError: a name that is not UTF-8.
        OSError: `path` cannot be read.
    """
    listed = []
    with os.scandir(path) as scan:
        for entry in scan:
            if not entry.name.startswith("."):
                listed.append((entry.name, entry.is_dir()))
    for name, _ in listed:
        if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
            raise InputError(
                f"{path} has a name that is not UTF-8: {name!r}; rename it"
            )
    return sorted(listed)


def image_names(folder: Path) -> list[str]:
    """Names of the images directly in `folder`, sorted."""
    names = [name for name, is_folder in entries(folder) if not is_folder]
    return [name for name in names if is_image(folder / name)]


def _read_folder(root: Path, path: str, parents: tuple[os.stat_result, ...]) -> Folder:
    folder = Folder(path)
    here = root / path
    own = here.stat()
    # A link to a folder above would go round for ever.
    if any(os.path.samestat(own, parent) for parent in parents):
        return folder
    if len(parents) > MAX_DEPTH:
        raise InputError(
            f"{root} has folders nested deeper than {MAX_DEPTH}; give the folder that holds the "
            "class folders"
        )
    for name, is_folder in entries(here):
        if is_folder:
            if name.casefold() not in SYSTEM_FOLDERS:
                below = folder.key(name)
                folder.folders[name] = _read_folder(root, below, (*parents, own))
        elif is_image(here / name):
            folder.images.append(name)
        else:
            folder.others.append(name)
    return folder
