"""Results that other tools wrote as a CSV: `path,class` or `path,class,score`.

A class is a name or the index of an output. An image may have several lines. They are ordered by
score; without scores the best class comes first. The header line is optional. In it `id` or `index`
as the second word says that classes are indices, `name` or `label` that they are names.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repzoo.data.names import reading_key, unique_by_key
from repzoo.errors import InputError

FORM = "path,class or path,class,score"
MAX_DIGITS = 7  # of the index of an output
DELIMITERS = ",;\t"
IMAGE_HEADERS = {"path", "image", "file", "filename", "file_name", "image_path", "key"}
INDEX_HEADERS = {"id", "index", "class_id", "class_index"}
NAME_HEADERS = {"name", "label", "class_name"}


@dataclass(frozen=True)
class CsvResults:
    """The classes of each image as they are written, best first.

    header  the second word of the header line, "" without one
    """

    images: dict[str, list[str]]
    header: str


def is_csv(first_line: str) -> bool:
    """Whether a text that begins with this line has the form of such a CSV."""
    try:
        cells = next(csv.reader([first_line], delimiter=_delimiter(first_line)), [])
    except csv.Error:
        return False
    return len(cells) in (2, 3)


def read_csv(lines: Sequence[str], path: Path) -> CsvResults:
    """The results in the lines of a CSV.

    Raises:
        InputError: lines of another form, scores that are no finite numbers, or a class that an
            image has twice.
    """
    try:
        rows = list(csv.reader(lines, delimiter=_delimiter(lines[0])))
    except csv.Error as error:  # a NUL, or a cell of more than 128 kB
        raise InputError(f"{path} is not a CSV: {error}; expected {FORM}") from None
    header = ""
    start = 0
    if rows[0][0].strip().casefold() in IMAGE_HEADERS:
        header = rows[0][1].strip().casefold()
        start = 1
    width = len(rows[-1])
    scores: dict[str, dict[str, float]] = {}
    for number, row in enumerate(rows[start:], start + 1):
        if len(row) != width or width not in (2, 3):
            text = ",".join(row)[:60]
            raise InputError(f"{path} line {number} is {text!r}; expected {FORM}")
        image = row[0].strip()
        label = row[1].strip()
        classes = scores.setdefault(image, {})
        if label in classes:
            raise InputError(
                f"{path} line {number} gives {image} the class {label!r} twice; each class of an "
                "image may stand once"
            )
        classes[label] = _score(row[2], path, number) if width == 3 else 0.0
    best_first = {image: _best_first(classes) for image, classes in scores.items()}
    return CsvResults(best_first, header)


def output_indices(
    results: CsvResults, names: Sequence[str], path: Path
) -> tuple[dict[str, int], bool]:
    """(index of the output that each written class means, whether the classes are names).

    names  of the outputs, in order

    Raises:
        InputError: a class that is neither a name nor an index, or all are both and differ.
    """
    written: dict[str, None] = {}
    for classes in results.images.values():
        written.update(dict.fromkeys(classes))
    by_name = _indices_by_name(list(written), names)
    by_index = {label: int(label) for label in written if _is_index(label)}
    all_names = len(by_name) == len(written) and results.header not in INDEX_HEADERS
    all_indices = len(by_index) == len(written) and results.header not in NAME_HEADERS
    if all_names and all_indices:
        _require_agreement(by_name, by_index, path)
    if all_names:
        return by_name, True
    if all_indices:
        return by_index, False
    label = next(label for label in written if label not in by_name)
    raise InputError(
        f"{path} gives the class {label!r}, which is neither the index of an output nor one of the "
        f"{len(names)} classes, such as {', '.join(map(repr, names[:3]))}; name the classes as the "
        "data or the model does"
    )


def _require_agreement(
    by_name: dict[str, int], by_index: dict[str, int], path: Path
) -> None:
    """Refuse classes that mean one output as a name and another one as an index."""
    for label, output in by_name.items():
        if by_index[label] != output:
            raise InputError(
                f"{path}: the class {label!r} is the name of output {output} and the index of "
                "another; begin the file with the line path,name or path,index"
            )


def _indices_by_name(written: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """The index of the name that each written class means, where it is one name only."""
    counts = Counter(names)
    # A name that two outputs share says nothing: ImageNet has two called "crane".
    exact = {name: index for index, name in enumerate(names) if counts[name] == 1}
    by_key = unique_by_key(names)
    indices = {}
    for label in written:
        name = label if label in exact else by_key.get(reading_key(label), "")
        if name in exact:
            indices[label] = exact[name]
    return indices


def _is_index(label: str) -> bool:
    return label.isascii() and label.isdecimal() and len(label) <= MAX_DIGITS


def _delimiter(line: str) -> str:
    # The most frequent, since a path or a label may hold one of the others.
    return max(DELIMITERS, key=line.count)


def _score(text: str, path: Path, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"{path} line {number} gives the score {text!r}; expected a number"
        )
    return value


def _best_first(scores: dict[str, float]) -> list[str]:
    # Sorting is stable: without scores, all 0, the order of the lines stays.
    return sorted(scores, key=lambda label: -scores[label])
