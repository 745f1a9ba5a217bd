"""Record: one measured row, artifact x engine x host. Cards and tables are rendered from Records and from nothing else."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.measure import system_noise as noise
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
    host: Mapping[str, Any] = field(default_factory=lambda: {**host(), **noise.loads()})
    job: str = ""
    time: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )


def identity_of(artifact: Artifact) -> dict[str, Any]:
    """What identifies an artifact in a Record, and how its input is made."""
    preprocess = dataclasses.asdict(artifact.preprocess) if artifact.preprocess else None
    identity = {
        "name": artifact.name,
        "form": artifact.form,
        "sha256": artifact.sha256,
        "classes": artifact.num_classes,
    }
    return {
        **identity,
        "preprocess": preprocess,
        "size": preprocess["size"] if preprocess else None,
    }


def append(path: Path, records: Sequence[Record]) -> None:
    """Append `records` to the JSON-lines file `path`."""
    append_lines(path, [line(record) for record in records])


def line(record: Record) -> str:
    """`record` as one line of JSON. A number that is not finite has no JSON: it becomes null, as what was not measured."""
    return json.dumps(
        finite(dataclasses.asdict(record)), ensure_ascii=False, sort_keys=True, allow_nan=False
    )


def read(path: Path) -> list[Record]:
    """Read a JSON-lines file of Records; a damaged line is an InputError that names it."""
    lines = read_bounded(path, MAX_RECORDS_BYTES).split(
        b"\n"
    )  # not splitlines: a name may hold U+2028
    return [
        _parsed(text, path, number)
        for number, text in enumerate(lines[:-1] if not lines[-1] else lines, 1)
    ]


def _parsed(text: bytes, path: Path, number: int) -> Record:
    try:
        made = Record(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        made = None
    tables = (
        (made.artifact, made.values, made.engine, made.data, made.samples, made.host)
        if made
        else ()
    )
    if (
        made is None
        or made.kind not in get_args(Kind)
        or not all(isinstance(table, dict) for table in tables)
    ):
        raise InputError(f"{path} line {number} is not a Record; remove that line")
    return made


def finite(value: Any) -> Any:
    """`value` with every number that is not finite replaced by None, at any depth."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
