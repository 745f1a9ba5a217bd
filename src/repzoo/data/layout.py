"""How a tree of folders is divided into parts and classes.

    DIR/<class>/**/*.jpg             a flat folder
    DIR/<part>/<class>/**/*.jpg      parts, named as in `names.PART_ROLES`
    DIR/<class>/<part>/**/*.jpg      the same, turned around

Archives often hold one folder that holds everything: it is stepped into.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from repzoo.data.description import WHOLE, PassedOver
from repzoo.data.names import TRAIN, part_role, reading_key
from repzoo.data.tree import Folder

MAX_WRAPPERS = 4  # folders around the data that are stepped into

# Class folder -> paths of its images.
ClassFiles = dict[str, list[str]]


@dataclass
class Layout:
    """The images of each class in each part.

    top          the folder that holds the parts, or the class folders
    parts        by name; {"all"} without parts
    passed_over  files and folders that belong to no class
    """

    top: Folder
    parts: dict[str, ClassFiles]
    passed_over: list[PassedOver] = field(default_factory=list)

    def pass_over(self, noun: str, reason: str, names: Iterable[str]) -> None:
        """Record what does not count; nothing where `names` is empty."""
        listed = tuple(names)
        if listed:
            self.passed_over.append(PassedOver(noun, reason, listed))

    def classes(self) -> set[str]:
        """Names of the class folders that hold an image in some part."""
        names: set[str] = set()
        for files in self.parts.values():
            names.update(name for name, images in files.items() if images)
        return names

    def empty_classes(self) -> list[str]:
        """Names of the class folders that hold no image in any part, sorted."""
        names = {name for files in self.parts.values() for name in files}
        return sorted(names - self.classes())

    def sort_parts(self) -> None:
        """Put the parts in order: training, validation, test."""
        by_role = sorted(self.parts, key=_role_order)
        self.parts = {name: self.parts[name] for name in by_role}

    def rename_classes(self, names: dict[str, str]) -> None:
        """Rename the classes in `names`; those that get the same name become one class."""
        for part, files in self.parts.items():
            renamed: ClassFiles = {}
            for name, images in files.items():
                renamed.setdefault(names.get(name, name), []).extend(images)
            self.parts[part] = renamed


def find_layout(tree: Folder) -> Layout:
    """The layout of `tree`. Class folders of several parts that read alike have one name."""
    top = _step_in(tree)
    layout = _with_parts(top)
    if len(layout.classes()) < 2:
        layout = _turned_around(top) or _flat(top)
    layout.rename_classes(_common_names(layout.parts))
    return layout


def _step_in(tree: Folder) -> Folder:
    """The folder that holds the parts or the classes, where one folder holds everything."""
    for _ in range(MAX_WRAPPERS):
        folders = tree.folders_with_images()
        if tree.images or len(folders) != 1:
            break
        name, inner = next(iter(folders.items()))
        if part_role(name) or not inner.folders_with_images():
            break
        tree = inner
    return tree


def _with_parts(top: Folder) -> Layout:
    """The layout DIR/<part>/<class>; without parts where there is none."""
    layout = Layout(top, {})
    outside: list[str] = [top.key(name) for name in top.images]
    for name, folder in top.folders.items():
        # A class may be called "train" too: a part holds class folders.
        if part_role(name) and folder.folders_with_images():
            layout.parts[name] = _class_files(folder)
            outside += [folder.key(image) for image in folder.images]
        else:
            outside += folder.all_images()
    layout.sort_parts()
    layout.pass_over("image", "in no class folder of a part", outside)
    return layout


def _turned_around(top: Folder) -> Layout | None:
    """The layout DIR/<class>/<part>; None where any class folder holds something else."""
    layout = Layout(top, {})
    for name, folder in top.folders_with_images().items():
        parts = folder.folders_with_images()
        if folder.images or not all(part_role(part) for part in parts):
            return None
        for part, images in parts.items():
            layout.parts.setdefault(part, {})[name] = list(images.all_images())
    layout.sort_parts()
    layout.pass_over("image", "in no class folder", map(top.key, top.images))
    return layout if layout.parts else None


def _flat(top: Folder) -> Layout:
    """The layout DIR/<class>."""
    layout = Layout(top, {WHOLE: _class_files(top)})
    layout.pass_over("image", "in no class folder", map(top.key, top.images))
    return layout


def _class_files(folder: Folder) -> ClassFiles:
    return {name: list(inner.all_images()) for name, inner in folder.folders.items()}


def _role_order(name: str) -> tuple[int, str]:
    """Training parts first, then validation and test."""
    roles = (TRAIN, "validation", "test")
    return roles.index(part_role(name)), name


def _common_names(parts: dict[str, ClassFiles]) -> dict[str, str]:
    """folder name -> class name: one name for folders of different parts that read alike.

    Folders of one part that read alike, such as "Dog" and "dog", are different classes.
    """
    by_key: dict[str, list[str]] = {}
    ambiguous = set()
    for files in parts.values():
        keys = set()
        for name in files:
            key = reading_key(name)
            if key in keys:
                ambiguous.add(key)
            keys.add(key)
            by_key.setdefault(key, []).append(name)
    common = {}
    for key, names in by_key.items():
        if key not in ambiguous:
            common.update(dict.fromkeys(names, names[0]))
    return common
