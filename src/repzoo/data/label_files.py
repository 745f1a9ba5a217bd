"""Labels in a table beside the images, where no class folders say them.

    metadata.csv, metadata.jsonl   columns `file_name` and `label` (Hugging Face's imagefolder)
    _classes.csv                   a column `filename` and one of 0 or 1 for each class (Roboflow)

A table speaks of the images of its own folder and below. Names in it are only compared with the
images that were listed: none is opened as a path, so none can leave the folder.

Sources: Hugging Face datasets, "Create an image dataset"; Roboflow, "Multi-Label Classification".
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from repzoo.data.description import WHOLE
from repzoo.data.layout import Layout
from repzoo.data.names import part_role, shown
from repzoo.data.tree import Folder
from repzoo.errors import InputError
from repzoo.storage import read_bounded

METADATA = ("metadata.csv", "metadata.jsonl")
ONE_HOT = "_classes.csv"
TABLES = (*METADATA, ONE_HOT)
MAX_BYTES = 2**26  # of one table: a million images
NAME = "file_name"
LABEL = "label"

# (name of an image in the table, its label).
Row = tuple[str, str]


class SeveralLabels(InputError):
    """A table gives an image several labels, or none; a Dataset has one for each image."""


@dataclass
class _Labels:
    """What the tables say.

    by_image  path of an image -> its label
    absent    names that are no image
    """

    by_image: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def labeled_layout(root: Path, tree: Folder) -> Layout | None:
    """The parts and classes that tables in `tree` state; None where none has labels.

    Raises:
        SeveralLabels: an image with several labels, or with none.
        InputError: a table that cannot be read, names no image, or contradicts class folders.
    """
    images = list(tree.all_images())
    labels = _Labels()
    tables = list(_tables(root, tree))
    for table, rows in tables:
        _add(table, rows, set(images), labels)
    if not tables:
        return None
    names = ", ".join(table for table, _ in tables)
    if not labels.by_image:
        raise InputError(
            f"{root} has labels in {names}, but none of the files that it names is an image there; "
            "names are relative to the table's folder"
        )
    _require_no_contradiction(root, names, labels)
    layout = _divided(tree, labels)
    unlisted = [path for path in images if path not in labels.by_image]
    layout.pass_over("image", f"not listed in {names}", unlisted)
    layout.pass_over("file", f"listed in {names} but no image here", labels.absent)
    return layout


def _divided(tree: Folder, labels: _Labels) -> Layout:
    """The labeled images by part and class."""
    layout = Layout(tree, {})
    for path, label in labels.by_image.items():
        files = layout.parts.setdefault(_part_of(path), {})
        files.setdefault(label, []).append(path)
    # Beside parts, images in none of them would be a part that nobody asked for.
    if len(layout.parts) > 1:
        outside = layout.parts.pop(WHOLE, {})
        layout.pass_over("image", "in no part", chain(*outside.values()))
        layout.sort_parts()
    return layout


def _tables(root: Path, folder: Folder) -> Iterator[tuple[str, list[Row]]]:
    """(path of a table with labels, its rows) in `folder` and below."""
    present = [name for name in TABLES if name in folder.others]
    tables = []
    for name in present:
        rows = _read(root / folder.key(name))
        if rows is not None:
            tables.append((folder.key(name), rows))
    if len(tables) > 1:
        both = " and ".join(path for path, _ in tables)
        raise InputError(f"{root} has labels in {both}; keep one of them")
    yield from tables
    for inner in folder.folders.values():
        yield from _tables(root, inner)


def _read(path: Path) -> list[Row] | None:
    """The rows of a table; None where it has no labels, such as one of captions."""
    try:
        text = read_bounded(path, MAX_BYTES).decode("utf-8-sig")
        if path.suffix == ".jsonl":
            return _json_rows(text)
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [cell.strip() for cell in next(lines, [])]
        if path.name == ONE_HOT:
            return _one_hot_rows(path, header, lines)
        return _csv_rows(header, lines)
    except (ValueError, RecursionError, csv.Error) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} cannot be read as a table of labels: {reason}; repair or remove it"
        ) from None


def _csv_rows(header: list[str], lines: Iterable[list[str]]) -> list[Row] | None:
    if NAME not in header or LABEL not in header:
        return None
    name = header.index(NAME)
    label = header.index(LABEL)
    rows = []
    for cells in _whole_rows(header, lines):
        rows.append((cells[name], cells[label].strip()))
    return rows


def _one_hot_rows(
    path: Path, header: list[str], lines: Iterable[list[str]]
) -> list[Row]:
    if not header or header[0].casefold() not in ("filename", NAME):
        raise ValueError("its first column is not called filename")
    rows = []
    for name, *cells in _whole_rows(header, lines):
        flags = [cell.strip() for cell in cells]
        if not set(flags) <= {"0", "1"}:
            raise ValueError(f"the row of {shown(name)} has other values than 0 and 1")
        count = flags.count("1")
        if count != 1:
            raise SeveralLabels(
                f"{path} gives {shown(name)} {count} labels, and accuracy here is of one label an "
                "image; leave such images out of the table (quantize needs no labels, and takes "
                "the folder as it is)"
            )
        rows.append((name, header[1 + flags.index("1")]))
    return rows


def _whole_rows(header: list[str], lines: Iterable[list[str]]) -> Iterator[list[str]]:
    """The rows without empty lines; all must be as long as the header."""
    for cells in lines:
        if cells and len(cells) != len(header):
            raise ValueError("a row has another number of columns than the header")
        if cells:
            yield cells


def _json_rows(text: str) -> list[Row] | None:
    documents: list[dict[str, object]] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        document = json.loads(line)
        if not isinstance(document, dict):
            raise ValueError("a line is no JSON object")
        documents.append(document)
    if not any(LABEL in document for document in documents):
        return None
    rows = []
    for document in documents:
        name = document.get(NAME)
        label = document.get(LABEL)
        is_index = isinstance(label, int) and not isinstance(label, bool)
        if not isinstance(name, str) or not (is_index or isinstance(label, str)):
            raise ValueError(f"{NAME} must be a text, and {LABEL} a text or an integer")
        rows.append((name, str(label).strip()))
    return rows


def _add(table: str, rows: list[Row], images: set[str], labels: _Labels) -> None:
    """Note the rows of one table."""
    folder = table.rpartition("/")[0]
    for name, label in rows:
        plain = name.replace("\\", "/").removeprefix("./")
        path = f"{folder}/{plain}" if folder else plain
        if not label:
            raise SeveralLabels(f"{table} gives {shown(name)} no label; add it")
        if path not in images:
            labels.absent.append(name)
        elif labels.by_image.setdefault(path, label) != label:
            raise SeveralLabels(
                f"{shown(path)} is called {shown(label)} and "
                f"{shown(labels.by_image[path])} in {table}; keep one label for each image"
            )


def _part_of(path: str) -> str:
    """The folder of `path` that names a part; WHOLE where there is none."""
    for folder in path.split("/")[:-1]:
        if part_role(folder):
            return folder
    return WHOLE


def _require_no_contradiction(root: Path, names: str, labels: _Labels) -> None:
    """Refuse a table that calls an image by the name of another class folder."""
    classes = set(labels.by_image.values())
    for path, label in labels.by_image.items():
        folders = path.split("/")[:-1]
        contradicting = [name for name in folders if name in classes - {label}]
        if contradicting and label not in folders:
            raise InputError(
                f"{names} in {root} calls {shown(path)} {shown(label)}, but it lies in the folder "
                f"of another class; remove the table, or move the image"
            )
