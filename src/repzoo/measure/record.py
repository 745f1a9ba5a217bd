"""Record: one measured row, artifact x engine x host. Cards and tables are rendered from Records and from nothing else."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.measure.host import host
from repzoo.storage import append_lines, read_bounded

Kind = Literal["cost", "fold", "quantize", "accuracy", "paired", "latency", "ratio"]
MAX_RECORDS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Record:
    """What was measured (`kind`, `values`), on what (`artifact`, `engine`, `data`), where (`host`) and when (UTC).

    samples holds raw measurements, from which `values` were derived; units are in the names (`latency_us`).
    job ties together the Records of one run of the whole job; empty for a measurement of its own.
    """

    kind: Kind
    artifact: Mapping[str, Any]
    values: Mapping[str, Any]
    engine: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=host)
    job: str = ""
    time: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


def identity_of(artifact: Artifact) -> dict[str, Any]:
    """What identifies an artifact in a Record."""
    size = artifact.preprocess.size if artifact.preprocess else None
    return {"name": artifact.name, "form": artifact.form, "sha256": artifact.sha256, "size": size, "classes": artifact.num_classes}


def append(path: Path, records: Sequence[Record]) -> None:
    """Append `records` to the JSON-lines file `path`."""
    append_lines(path, [json.dumps(dataclasses.asdict(record), ensure_ascii=False, sort_keys=True) for record in records])


def read(path: Path) -> list[Record]:
    """Read a JSON-lines file of Records; a damaged line is an InputError that names it."""
    records = []
    for number, line in enumerate(read_bounded(path, MAX_RECORDS_BYTES).decode("utf-8", "replace").splitlines(), 1):
        try:
            records.append(Record(**json.loads(line)))
        except (ValueError, TypeError):
            raise InputError(f"{path} line {number} is not a Record; remove that line") from None
    return records
