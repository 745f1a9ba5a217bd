"""The verb `page`: Records as one HTML file to look at, sort and filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repzoo.errors import InputError
from repzoo.measure.record import Record, read
from repzoo.progress import Progress, silent
from repzoo.report import page as report
from repzoo.storage import require_writable, write_atomically


@dataclass(frozen=True)
class Page:
    """A page that was written.

    bytes    its size
    models   of which it shows all that Records hold
    rows     of its table: one for each model, precision, engine, host and setting
    remarks  what was left out, and why
    """

    path: Path
    bytes: int
    models: int
    rows: int
    remarks: tuple[str, ...] = ()


def page(
    records: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    images: str | Path | None = None,
    progress: Progress = silent,
) -> Page:
    """Write one HTML file of Records: a chart, a table to sort and filter, all on each model.

    It needs no network. Without the extra `page` it has no charts.

    records  files of Records, such as `repzoo card --append` writes
    output   file to write
    images   folder of the images that were evaluated: small pictures of those that two models
             answer differently are then in the page

    Raises:
        InputError: a file that holds no Records, no such folder, or a place that cannot be written.
    """
    paths = [records] if isinstance(records, str | Path) else list(records)
    path = Path(output)
    require_writable(path)
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder} is no folder; --images takes the one of the images")
    rows: list[Record[Any]] = []
    for file in map(Path, paths):
        if file.resolve() == path.resolve():
            raise InputError(f"{path} holds the Records; give another file with -o")
        rows += read(file)
    progress("page", 0, 0)
    rendered = report.render(rows, images=folder)
    content = rendered.html.encode()
    write_atomically(path, content)
    return Page(path, len(content), rendered.models, rendered.rows, rendered.remarks)
