"""Class folders: DIR/<class>/*.jpg, optionally with train/ validation/ test/ between them. Names that begin with a dot are not
looked at: they are caches, version control and the `._x.jpg` that macOS leaves beside x.jpg.

A file DIR/classes.tsv, whose lines begin with a folder's name, gives the order of the model's outputs; without it the order
is that of the sorted names, as in torchvision's ImageFolder.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from repzoo.data.dataset import GONE, HELD_OUT, Dataset, DataSource, Stamp, UnreadableImage
from repzoo.errors import InputError
from repzoo.storage import read_lines

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
ORDER_FILE = "classes.tsv"
# What may stand behind any suffix. Not all that Pillow opens: PostScript, for one, would start another program.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000  # a decoded RGB image of 192 MB; more is refused before it is decoded


def read(root: Path) -> DataSource:
    """Scan the folder `root` (names only; no image is opened).

    Raises:
        InputError: unreadable, no images, fewer than two classes, or a name that is not UTF-8.
    """
    root = root.resolve() if root.name in ("", "..") else root  # "." has no name of its own
    parts = [name for name in ("train", *HELD_OUT) if _has_folders(root / name)]
    try:
        found = (
            {part: _files_by_class(root / part) for part in parts}
            if parts
            else {"all": _files_by_class(root)}
        )
    except OSError as error:
        raise InputError(f"{root} cannot be read: {error.strerror}") from None
    classes = sorted({name for files in found.values() for name, inside in files.items() if inside})
    empty = sorted({name for files in found.values() for name in files} - set(classes))
    if len(classes) < 2:
        got = f"only the class {classes[0]!r}" if classes else "no images in subfolders"
        raise InputError(
            f"{root} has {got}; expected one subfolder of images ({', '.join(sorted(SUFFIXES))}) for each of 2 or more classes"
        )
    order = _listed_order(root / ORDER_FILE, classes)
    parts_found = {
        part: {name: inside for name, inside in files.items() if inside}
        for part, files in found.items()
    }
    made = {
        part: _dataset(root, part, order or classes, files, bool(order))
        for part, files in parts_found.items()
        if files
    }
    return DataSource(root.name, made, tuple(empty))


def read_unlabeled(root: Path) -> DataSource | None:
    """Images that lie in `root` itself, of which nobody says what is in them; None where there are none or class folders beside them.

    Raises:
        InputError: unreadable, or a name that is not UTF-8.
    """
    root = root.resolve() if root.name in ("", "..") else root
    try:
        images = [
            name
            for name, is_dir in entries(root)
            if not is_dir and Path(name).suffix.lower() in SUFFIXES
        ]
        if not images or any(_files_by_class(root).values()):
            return None
    except OSError as error:
        raise InputError(f"{root} cannot be read: {error.strerror}") from None
    part = _dataset(root, "all", ["?"], {"?": images}, ordered=False)
    return DataSource(
        root.name, {"all": replace(part, classes=(), keys=tuple(images), labeled=False)}
    )


def load_image(path: Path) -> Image.Image:
    """Decode the image at `path` in full, refused before decoding when it has more than MAX_PIXELS.

    Raises:
        UnreadableImage: truncated, not an image, too large, or gone.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(
                    f"{path} has {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are decoded"
                )
            image.load()
            return image
    except UnreadableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImage(
            f"{path} has too many pixels; at most {MAX_PIXELS:,} are decoded"
        ) from None
    except UnidentifiedImageError:
        raise UnreadableImage(f"{path} is not an image that can be decoded") from None
    except Exception as error:  # on damaged files Pillow's decoders raise of every kind: struct.error, IndexError, zlib.error ...
        raise UnreadableImage(f"{path} cannot be decoded: {error}") from None


def stamp_of(path: Path) -> Stamp:
    """What tells that the file at `path` was changed: its size in bytes and when it was last written, in nanoseconds."""
    try:
        found = path.stat()
    except OSError:
        return GONE
    return found.st_size, found.st_mtime_ns


def load_under(root: Path, key: str) -> Image.Image:
    """`Dataset.load` of files below `root`; a function of the module, as is the next, since worker processes are sent a Dataset."""
    return load_image(root / key)


def stamp_under(root: Path, key: str) -> Stamp:
    """`Dataset.stamp` of files below `root`."""
    return stamp_of(root / key)


def _has_folders(path: Path) -> bool:
    """Whether `path` is a part (a folder of class folders), and not a class that is called "train"."""
    return path.is_dir() and any(item.is_dir() for item in path.iterdir())


def _files_by_class(root: Path) -> dict[str, list[str]]:
    folders = (name for name, is_dir in entries(root) if is_dir)
    return {
        folder: [
            name
            for name, is_dir in entries(root / folder)
            if not is_dir and Path(name).suffix.lower() in SUFFIXES
        ]
        for folder in folders
    }


def entries(path: Path) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of what is in `path`, sorted, without names that begin with a dot."""
    with os.scandir(path) as entries:
        found = sorted(
            (entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")
        )
    if strange := [
        name
        for name, _ in found
        if not name.isascii() and name.encode("utf-8", "replace").decode() != name
    ]:
        raise InputError(f"{path} has a name that is not UTF-8: {strange[0]!r}; rename it")
    return found


def _listed_order(path: Path, classes: list[str]) -> list[str]:
    """The class names of classes.tsv in their order, or [] where there is no such file."""
    if not path.is_file():
        return []
    listed = [line.split("\t")[0].strip() for line in read_lines(path)]
    if twice := [name for name, times in Counter(listed).items() if times > 1]:
        raise InputError(
            f"{path} lists {twice[0]!r} twice; each line is one output of the model, so names must differ"
        )
    if missing := sorted(set(classes) - set(listed)):
        raise InputError(
            f"{path} does not list the folder {missing[0]!r}; add it, or remove the file to take the sorted order"
        )
    return listed


def _dataset(
    root: Path, part: str, classes: list[str], files: dict[str, list[str]], ordered: bool
) -> Dataset:
    index = {label: position for position, label in enumerate(classes)}
    inside = "" if part == "all" else f"{part}/"
    pairs = [(f"{inside}{label}/{file}", index[label]) for label in files for file in files[label]]
    keys, targets = zip(*pairs, strict=True)
    name = f"{root.name}/{part}"
    return Dataset(
        name,
        tuple(classes),
        keys,
        targets,
        partial(load_under, root),
        ordered,
        partial(stamp_under, root),
    )
