"""Class folders on disk as a data set; `layout` says which layouts are read, and `label_files`
which tables of labels take the place of class folders.

Every file that Pillow can read is an image, at any depth below its class folder.

The file DIR/classes.tsv gives the order of the model's outputs: the first column of each line is
a folder name. Without it, classes are sorted by name, as in torchvision's ImageFolder. Folders
called 0 to n - 1 are in numeric order.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from PIL import Image

from repzoo.data.dataset import GONE, SORTED, Dataset, DataSource, Stamp
from repzoo.data.description import WHOLE
from repzoo.data.image_file import load_image
from repzoo.data.label_files import TABLES, SeveralLabels, labeled_layout
from repzoo.data.layout import ClassFiles, Layout, find_layout
from repzoo.data.names import TRAIN, are_indices, match_names, part_role
from repzoo.data.tree import Folder, read_tree
from repzoo.errors import InputError
from repzoo.storage import read_lines

ORDER_FILE = "classes.tsv"
NUMERIC = "in numeric order"
LISTED = f"as listed in {ORDER_FILE}"


def read(root: Path) -> DataSource:
    """List the class folders of `root`. No image is decoded.

    Raises:
        InputError: unreadable folder, no images, fewer than two classes, a classes.tsv that does
            not fit, or a name that is not UTF-8.
    """
    root = _with_name(root)
    tree = read_tree(root)
    labeled = labeled_layout(root, tree)
    layout = labeled or find_layout(tree)
    _require_two_classes(root, sorted(layout.classes()))
    empty = layout.empty_classes()
    layout.pass_over("folder", "without images", empty)
    layout.pass_over("file", "that Pillow cannot read", _other_files(tree, labeled))

    classes, order = _class_order(root, layout)
    parts: dict[str, Dataset] = {}
    for part, files in layout.parts.items():
        if any(files.values()):
            parts[part] = _dataset(root, part, classes, files, order == LISTED)
    return DataSource(root.name, parts, tuple(empty), order, tuple(layout.passed_over))


def read_unlabeled(root: Path) -> DataSource | None:
    """The images of `root` without labels; None if there are none, or folders for two classes.

    Raises:
        InputError: unreadable folder, or a name that is not UTF-8.
    """
    root = _with_name(root)
    tree = read_tree(root)
    images = list(tree.all_images())
    if not images or _has_labels(root, tree):
        return None
    # "?" is a placeholder class: a Dataset without labels has no classes and targets of 0.
    part = _dataset(root, WHOLE, ["?"], {"?": images}, ordered=False)
    layout = Layout(tree, {})
    layout.pass_over("file", "that Pillow cannot read", _other_files(tree, None))
    passed_over = tuple(layout.passed_over)
    return DataSource(
        root.name, {WHOLE: part.without_labels()}, passed_over=passed_over
    )


def _has_labels(root: Path, tree: Folder) -> bool:
    try:
        if labeled_layout(root, tree) is not None:
            return True
    except SeveralLabels:
        return False  # the images serve without labels
    return len(find_layout(tree).classes()) >= 2


# Functions of the module and not lambdas: a Dataset is pickled for worker processes.
def load_under(root: Path, key: str) -> Image.Image:
    """`Dataset.load` for files below `root`."""
    return load_image(root / key)


def path_under(root: Path, key: str) -> Path:
    """`Dataset.path` for files below `root`."""
    return root / key


def stamp_under(root: Path, key: str) -> Stamp:
    """`Dataset.stamp` for files below `root`."""
    return stamp_of(root / key)


def stamp_of(path: Path) -> Stamp:
    """Size and modification time of the file at `path`, which show whether it has changed."""
    try:
        status = path.stat()
    except OSError:
        return GONE
    return status.st_size, status.st_mtime_ns


def _with_name(root: Path) -> Path:
    """`root`, resolved if it has no name of its own, such as "."."""
    return root.resolve() if root.name in ("", "..") else root


def _other_files(tree: Folder, labeled: Layout | None) -> list[str]:
    known = (ORDER_FILE, *TABLES) if labeled else (ORDER_FILE,)
    return [path for path in tree.all_others() if Path(path).name not in known]


def _require_two_classes(root: Path, classes: list[str]) -> None:
    if len(classes) >= 2:
        return
    what = f"only the class {classes[0]!r}" if classes else "no images in subfolders"
    raise InputError(
        f"{root} has {what}; expected one subfolder of images for each of 2 or more classes"
    )


def _class_order(root: Path, layout: Layout) -> tuple[list[str], str]:
    """(classes in the order of their indices, where that order comes from).

    With a classes.tsv, the classes of `layout` get the names that it lists.
    """
    classes = sorted(layout.classes())
    for path in (root / ORDER_FILE, root / layout.top.path / ORDER_FILE):
        if path.is_file():
            listed = _listed_order(path)
            layout.rename_classes(_listed_names(path, classes, listed))
            return listed, LISTED
    if are_indices(classes):
        return sorted(classes, key=int), NUMERIC
    return classes, SORTED


def _listed_order(path: Path) -> list[str]:
    """The class names of a classes.tsv in their order."""
    listed = [line.split("\t")[0].strip() for line in read_lines(path)]
    repeated = [name for name, times in Counter(listed).items() if times > 1]
    if repeated:
        raise InputError(
            f"{path} lists {repeated[0]!r} twice; each line is one output of the model, so names "
            "must differ"
        )
    return listed


def _listed_names(path: Path, classes: list[str], listed: list[str]) -> dict[str, str]:
    """folder name -> the listed name that it means."""
    names = match_names(classes, listed)
    missing = [name for name in classes if name not in names]
    if missing:
        raise InputError(
            f"{path} does not list the folder {missing[0]!r}; add it, or remove the file to use "
            "sorted order"
        )
    return names


def _dataset(
    root: Path, part: str, classes: list[str], files: ClassFiles, ordered: bool
) -> Dataset:
    index_of = {label: index for index, label in enumerate(classes)}
    keys: list[str] = []
    targets: list[int] = []
    for label, images in files.items():
        if images:
            keys += images
            targets += [index_of[label]] * len(images)
    # A part may be given as the whole: --data photos/train.
    role = part_role(root.name if part == WHOLE else part)
    return Dataset(
        name=f"{root.name}/{part}",
        classes=tuple(classes),
        keys=tuple(keys),
        targets=tuple(targets),
        load=partial(load_under, root),
        ordered=ordered,
        stamp=partial(stamp_under, root),
        training=role == TRAIN,
        path=partial(path_under, root),
    )
