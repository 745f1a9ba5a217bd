"""Class folders: DIR/<class>/*.jpg, or DIR/{train,validation,test}/<class>/*.jpg.

Names that begin with a dot are ignored: caches, version control, and the `._x.jpg` that macOS
writes beside x.jpg.

The file DIR/classes.tsv gives the order of the model's outputs: the first column of each line is
a folder name. Without it, class names are sorted, as in torchvision's ImageFolder.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from repzoo.data.dataset import (
    GONE,
    HELD_OUT,
    Dataset,
    DataSource,
    Stamp,
    UnreadableImage,
)
from repzoo.errors import InputError
from repzoo.storage import read_lines

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
ORDER_FILE = "classes.tsv"
# Formats that are decoded, whatever the suffix. Pillow opens more; PostScript, for one, would
# start another program.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000  # a decoded RGB image of 192 MB; checked before decoding

# Class name -> file names.
ClassFiles = dict[str, list[str]]


def read(root: Path) -> DataSource:
    """List the class folders of `root`. No image is opened.

    Raises:
        InputError: unreadable folder, no images, fewer than two classes, or a name that is not
            UTF-8.
    """
    root = _with_name(root)
    part_files = _files_by_part(root)

    folders: set[str] = set()
    classes_with_images: set[str] = set()
    for files in part_files.values():
        folders |= files.keys()
        classes_with_images |= {name for name, images in files.items() if images}
    classes = sorted(classes_with_images)
    _require_two_classes(root, classes)

    listed = _listed_order(root / ORDER_FILE, classes)
    parts: dict[str, Dataset] = {}
    for part, files in part_files.items():
        with_images = {name: images for name, images in files.items() if images}
        if with_images:
            parts[part] = _dataset(
                root, part, listed or classes, with_images, bool(listed)
            )
    return DataSource(root.name, parts, tuple(sorted(folders - classes_with_images)))


def read_unlabeled(root: Path) -> DataSource | None:
    """Images directly in `root`, without labels; None if there are none, or class folders too.

    Raises:
        InputError: unreadable folder, or a name that is not UTF-8.
    """
    root = _with_name(root)
    try:
        images = image_names(root)
        if not images or any(_files_by_class(root).values()):
            return None
    except OSError as error:
        raise _unreadable_folder(root, error) from None
    # "?" is a placeholder class: a Dataset without labels has no classes and targets of 0.
    part = _dataset(root, "all", ["?"], {"?": images}, ordered=False)
    part = replace(part, classes=(), keys=tuple(images), labeled=False)
    return DataSource(root.name, {"all": part})


def load_image(path: Path) -> Image.Image:
    """Decode the image at `path` completely.

    Raises:
        UnreadableImage: truncated, not an image, more than MAX_PIXELS pixels, or gone.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(
                    f"{path} has {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are "
                    "decoded"
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
    # On damaged files Pillow's decoders raise any error: struct.error, IndexError, zlib.error.
    except Exception as error:
        raise UnreadableImage(f"{path} cannot be decoded: {error}") from None


def stamp_of(path: Path) -> Stamp:
    """Size and modification time of the file at `path`, which show whether it has changed."""
    try:
        status = path.stat()
    except OSError:
        return GONE
    return status.st_size, status.st_mtime_ns


# Functions of the module and not lambdas: a Dataset is pickled for worker processes.
def load_under(root: Path, key: str) -> Image.Image:
    """`Dataset.load` for files below `root`."""
    return load_image(root / key)


def stamp_under(root: Path, key: str) -> Stamp:
    """`Dataset.stamp` for files below `root`."""
    return stamp_of(root / key)


def entries(path: Path) -> list[tuple[str, bool]]:
    """Sorted (name, whether it is a folder) of everything in `path` that does not begin with a dot.

    Raises:
        InputError: a name that is not UTF-8.
        OSError: `path` cannot be read.
    """
    with os.scandir(path) as scan:
        visible = [entry for entry in scan if not entry.name.startswith(".")]
        found = sorted((entry.name, entry.is_dir()) for entry in visible)
    for name, _ in found:
        if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
            raise InputError(
                f"{path} has a name that is not UTF-8: {name!r}; rename it"
            )
    return found


def image_names(folder: Path) -> list[str]:
    """Names of the images directly in `folder`, sorted."""
    names = [name for name, is_folder in entries(folder) if not is_folder]
    return [name for name in names if Path(name).suffix.lower() in SUFFIXES]


def _with_name(root: Path) -> Path:
    """`root`, resolved if it has no name of its own, such as "."."""
    return root.resolve() if root.name in ("", "..") else root


def _unreadable_folder(root: Path, error: OSError) -> InputError:
    return InputError(f"{root} cannot be read: {error.strerror}")


def _files_by_part(root: Path) -> dict[str, ClassFiles]:
    names = [name for name in ("train", *HELD_OUT) if _is_part(root / name)]
    try:
        if not names:
            return {"all": _files_by_class(root)}
        return {name: _files_by_class(root / name) for name in names}
    except OSError as error:
        raise _unreadable_folder(root, error) from None


def _is_part(path: Path) -> bool:
    """Whether `path` holds class folders. A class may be called "train" too."""
    return path.is_dir() and any(item.is_dir() for item in path.iterdir())


def _files_by_class(root: Path) -> ClassFiles:
    folders = [name for name, is_folder in entries(root) if is_folder]
    return {folder: image_names(root / folder) for folder in folders}


def _require_two_classes(root: Path, classes: list[str]) -> None:
    if len(classes) >= 2:
        return
    found = f"only the class {classes[0]!r}" if classes else "no images in subfolders"
    suffixes = ", ".join(sorted(SUFFIXES))
    raise InputError(
        f"{root} has {found}; expected one subfolder of images ({suffixes}) for each of 2 or more "
        "classes"
    )


def _listed_order(path: Path, classes: list[str]) -> list[str]:
    """The class names of classes.tsv in their order; [] without the file."""
    if not path.is_file():
        return []
    listed = [line.split("\t")[0].strip() for line in read_lines(path)]
    repeated = [name for name, times in Counter(listed).items() if times > 1]
    if repeated:
        raise InputError(
            f"{path} lists {repeated[0]!r} twice; each line is one output of the model, so names "
            "must differ"
        )
    missing = sorted(set(classes) - set(listed))
    if missing:
        raise InputError(
            f"{path} does not list the folder {missing[0]!r}; add it, or remove the file to use "
            "sorted order"
        )
    return listed


def _dataset(
    root: Path, part: str, classes: list[str], files: ClassFiles, ordered: bool
) -> Dataset:
    index_of = {label: index for index, label in enumerate(classes)}
    prefix = "" if part == "all" else f"{part}/"
    keys: list[str] = []
    targets: list[int] = []
    for label, names in files.items():
        keys += [f"{prefix}{label}/{name}" for name in names]
        targets += [index_of[label]] * len(names)
    return Dataset(
        name=f"{root.name}/{part}",
        classes=tuple(classes),
        keys=tuple(keys),
        targets=tuple(targets),
        load=partial(load_under, root),
        ordered=ordered,
        stamp=partial(stamp_under, root),
    )
