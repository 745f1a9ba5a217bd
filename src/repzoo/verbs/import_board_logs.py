"""The verb `import_logs`: Records from what boards and vendors' tools printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repzoo.errors import InputError
from repzoo.measure.board import BoardAccuracy
from repzoo.measure.board_logs import board_records
from repzoo.measure.log_model import require_same_model
from repzoo.measure.record import Record, select
from repzoo.settings import at_least, merge_keywords, setting, validate
from repzoo.vendors.logs.reading import VendorLog, read_log
from repzoo.verbs.model_files import ModelLike, open_model


@dataclass(frozen=True)
class ImportOptions:
    """Settings of `import_logs`."""

    target: str = setting(
        "",
        help="Board that the logs are from, where they do not say; by default the one that the "
        "tool belongs to: rdk-x5, vastai, rknn or sophgo.",
    )
    images: int = setting(
        0,
        help="Images that a printed accuracy was measured on; it then gets an interval. 0: not "
        "known.",
        range=at_least(0),
    )

    def __post_init__(self) -> None:
        """Refuse values that are not accepted."""
        validate(self)


@dataclass(frozen=True)
class ImportedLogs:
    """What `import_logs` read.

    logs     each file with the tool that wrote it
    records  of all files, in order; each has the file's name and SHA-256 in `data`
    remarks  what was left out, and why
    """

    logs: tuple[VendorLog, ...]
    records: tuple[Record[Any], ...]
    remarks: tuple[str, ...] = ()


def import_logs(
    logs: str | Path | Sequence[str | Path],
    model: ModelLike | None = None,
    *,
    options: ImportOptions | None = None,
    **settings: Any,
) -> ImportedLogs:
    """Records of latency, accuracy and similarity from the logs of boards and vendors' tools.

    Which tool wrote a file is found by its content. Figures are taken over as they are; each says
    whether a board's log or a compiler's estimate is its source.

    logs      files; see `repzoo.vendors.logs`
    model     that the logs are of. Those of another are refused, where the log says its names
    settings  fields of ImportOptions

    Raises:
        InputError: a file that is no such log, is cut or damaged, is of another model or board, or
            of a run that failed; images without an accuracy.
    """
    options = merge_keywords(ImportOptions, options, settings)
    paths = [logs] if isinstance(logs, str | Path) else list(logs)
    artifact = None if model is None else open_model(model)
    read: list[VendorLog] = []
    records: list[Record[Any]] = []
    remarks: list[str] = []
    for path in paths:
        log = read_log(Path(path))
        if log.sha256 in {other.sha256 for other in read}:
            raise InputError(f"{path} is there twice; give every log once")
        if artifact is not None:
            remarks += require_same_model(log, artifact)
        results, noted = board_records(
            log, artifact, options.target, options.images or None
        )
        read.append(log)
        records += results
        remarks += noted
    if options.images and not select(records, BoardAccuracy):
        raise InputError(
            "the images (--images) are those of a printed accuracy, and no log has one; leave them "
            "out"
        )
    return ImportedLogs(tuple(read), tuple(records), tuple(remarks))
