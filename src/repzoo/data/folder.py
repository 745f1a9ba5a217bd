"""Class folders: DIR/<class>/*.jpg, optionally with train/ validation/ test/ between them.

A file DIR/classes.tsv, whose lines begin with a folder's name, gives the order of the model's outputs; without it the order
is that of the sorted names, as in torchvision's ImageFolder.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from repzoo.data.dataset import HELD_OUT, Dataset, Source, UnreadableImage
from repzoo.errors import InputError
from repzoo.storage import read_bounded

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
ORDER_FILE = "classes.tsv"
MAX_PIXELS = 64_000_000  # a decoded RGB image of 192 MB; more is refused before it is decoded


def read(root: Path) -> Source:
    """Scan the folder `root` (names only; no image is opened).

    Raises:
        InputError: unreadable, no images, or fewer than two classes.
    """
    parts = [name for name in ("train", *HELD_OUT) if (root / name).is_dir()]
    try:
        found = {part: _files_by_class(root / part) for part in parts} if parts else {"all": _files_by_class(root)}
    except OSError as error:
        raise InputError(f"{root} cannot be read: {error.strerror}") from None
    classes = sorted({name for files in found.values() for name in files})
    if len(classes) < 2:
        got = f"only the class {classes[0]!r}" if classes else "no images in subfolders"
        raise InputError(
            f"{root} has {got}; expected one subfolder of images ({', '.join(sorted(SUFFIXES))}) for each of 2 or more classes"
        )
    order = _listed_order(root / ORDER_FILE, classes)
    parts_found = {part: files for part, files in found.items() if files}
    return Source(
        root.name, {part: _dataset(root, part, order or classes, files, bool(order)) for part, files in parts_found.items()}
    )


def load_image(path: Path) -> Image.Image:
    """Decode the image at `path` in full, refused before decoding when it has more than MAX_PIXELS.

    Raises:
        UnreadableImage: truncated, not an image, too large, or gone.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"{path} has {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are decoded")
            image.load()
            return image
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImage(f"{path} is not an image that can be decoded") from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        raise UnreadableImage(f"{path} cannot be decoded: {error}") from None


def _files_by_class(root: Path) -> dict[str, list[str]]:
    folders = sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    found = {folder.name: sorted(item.name for item in folder.iterdir() if item.suffix.lower() in SUFFIXES) for folder in folders}
    return {name: files for name, files in found.items() if files}


def _listed_order(path: Path, classes: list[str]) -> list[str]:
    """The class names of classes.tsv in their order, or [] where there is no such file."""
    if not path.is_file():
        return []
    listed = [
        line.split("\t")[0].strip() for line in read_bounded(path, 2**24).decode("utf-8", "replace").splitlines() if line.strip()
    ]
    if missing := sorted(set(classes) - set(listed)):
        raise InputError(f"{path} does not list the folder {missing[0]!r}; add it, or remove the file to take the sorted order")
    return listed


def _dataset(root: Path, part: str, classes: list[str], files: dict[str, list[str]], ordered: bool) -> Dataset:
    index = {label: position for position, label in enumerate(classes)}
    inside = "" if part == "all" else f"{part}/"
    pairs = [(f"{inside}{label}/{file}", index[label]) for label in files for file in files[label]]
    keys, targets = zip(*pairs, strict=True)
    return Dataset(f"{root.name}/{part}", tuple(classes), keys, targets, lambda key: load_image(root / key), ordered)
