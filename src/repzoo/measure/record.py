"""Record: one measured row, and the only place where results become JSON and come back from it.

A file of Records has one JSON object a line. Cards and tables are rendered from Records and from
nothing else.

Reading is strict about what it knows: a field that a result needs must be there, with its type.
Fields that it does not know are ignored, since rows of other versions hold some and no reader asks
for them.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Generic,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.graph.tools.cost_result import Cost
from repzoo.graph.tools.int8_share import Int8Share, int8_share
from repzoo.measure import system_noise as noise
from repzoo.measure.board import BoardAccuracy, BoardLatency, BoardSimilarity
from repzoo.measure.comparison_results import QuantizerComparison
from repzoo.measure.host import host
from repzoo.measure.peer_latency import PeerLatency
from repzoo.measure.results import (
    FORMERLY,
    INLINE,
    Accuracy,
    FoldSummary,
    Latency,
    LatencyRatio,
    PairedAccuracy,
    QuantizeSummary,
)
from repzoo.measure.sentences import sentence
from repzoo.storage import append_lines, json_text, read_bounded

Kind = Literal[
    "cost",
    "fold",
    "quantize",
    "accuracy",
    "paired",
    "latency",
    "ratio",
    "board_latency",
    "board_accuracy",
    "board_similarity",
    "peer",
]
MAX_RECORDS_BYTES = 256 * 2**20

RESULT_KINDS: dict[type, Kind] = {
    Cost: "cost",
    FoldSummary: "fold",
    QuantizeSummary: "quantize",
    QuantizerComparison: "quantize",
    Accuracy: "accuracy",
    PairedAccuracy: "paired",
    Latency: "latency",
    LatencyRatio: "ratio",
    BoardLatency: "board_latency",
    BoardAccuracy: "board_accuracy",
    BoardSimilarity: "board_similarity",
    PeerLatency: "peer",
}

T = TypeVar("T")
ResultT_co = TypeVar("ResultT_co", covariant=True)


@dataclass(frozen=True, repr=False)
class Record(Generic[ResultT_co]):
    """What was measured, on what, where and when.

    artifact  identity of the model, or of both as `first` and `second`
    values    the result; its type is one of RESULT_KINDS
    engine    name and version
    data      the images, see `predictions.describe_images`
    samples   raw measurements from which `values` were derived; units are in the names
              (`latency_us`)
    job       ties together the Records of one run of the whole job; empty for a measurement of its
              own
    """

    artifact: Mapping[str, Any]
    values: ResultT_co
    engine: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=lambda: {**host(), **noise.loads()})
    job: str = ""
    time: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(
            timespec="seconds"
        )
    )

    @property
    def kind(self) -> Kind:
        """The name of the result's type in files."""
        return RESULT_KINDS[type(self.values)]

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the model, or of both; with their forms where the names are the same."""
        sides = [self.artifact.get(side) for side in ("first", "second")]
        models = [side for side in sides if side] or [self.artifact]
        names = [str(model.get("name", "")) for model in models]
        if len(set(names)) == len(names):
            return tuple(names)
        return tuple(f"{model.get('name')} ({model.get('form')})" for model in models)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that stands in files."""
        return {"kind": self.kind, **to_json(self)}

    def __repr__(self) -> str:
        """One line; all that it holds, host and samples among it, is in `to_json`."""
        text = sentence(self.values, *self.names) or ", ".join(self.names)
        return f"<Record {self.kind}: {text}>"


def select(records: Iterable[Record[Any]], result_type: type[T]) -> list[Record[T]]:
    """The Records whose values are a `result_type`, in order."""
    return [record for record in records if isinstance(record.values, result_type)]


def identity_of(artifact: Artifact) -> dict[str, Any]:
    """What identifies an artifact in a Record, and how its input is prepared."""
    preprocess = (
        dataclasses.asdict(artifact.preprocess) if artifact.preprocess else None
    )
    identity = {
        "name": artifact.name,
        "form": artifact.form,
        "sha256": artifact.sha256,
        "classes": artifact.num_classes,
        "preprocess": preprocess,
        "size": preprocess["size"] if preprocess else None,
    }
    # Of a model that was fetched: the repository, the file and the commit.
    origin = getattr(artifact, "origin", "")
    return {**identity, "origin": origin} if origin else identity


def full_identity_of(artifact: Artifact) -> dict[str, Any]:
    """As `identity_of`; of an INT8 model also how much of it runs in INT8 (Int8Share).

    Counting that infers all shapes, which takes part of a second. So measurements that are made
    while candidates are compared leave it out.
    """
    identity = identity_of(artifact)
    if artifact.form == "int8":
        identity["int8"] = dataclasses.asdict(int8_share(artifact))
    return identity


def share_of(identity: Mapping[str, Any]) -> Int8Share | None:
    """How much of the model runs in INT8, from its `full_identity_of`; None where that is unknown.

    Records of older versions do not have it.
    """
    document = identity.get("int8")
    return read_result(Int8Share, document) if document else None


def append(path: Path, records: Sequence[Record[Any]]) -> None:
    """Append `records` to the JSON-lines file `path`."""
    append_lines(path, [line(record) for record in records])


def line(record: Record[Any]) -> str:
    """`record` as one line of JSON."""
    return json_text(record.to_json(), ensure_ascii=False, sort_keys=True)


def to_json(value: Any) -> Any:
    """`value` with every dataclass in it, at any depth, as a JSON object.

    An optional field (None by default) that is None is left out. See `results.inline` for nested
    objects without a level of their own.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _object(value)
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def _object(value: Any) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for entry in dataclasses.fields(value):
        item = getattr(value, entry.name)
        # A field without a default is written even when None: it then means "undecided".
        if item is None and entry.default is None:
            continue
        prefix = entry.metadata.get(INLINE)
        if prefix is None:
            document[entry.name] = to_json(item)
            continue
        for name, inner in _object(item).items():
            document[prefix + name] = inner
    return document


def read(path: Path) -> list[Record[Any]]:
    """Read a JSON-lines file of Records.

    Raises:
        InputError: no such file, or a damaged line, which is named.
    """
    # Bounded, since a file of someone else's results may be anything.
    content = read_bounded(path, MAX_RECORDS_BYTES)
    lines = content.split(b"\n")  # not splitlines: a name may hold U+2028
    if not lines[-1]:
        lines.pop()
    return [_parse(text, path, number) for number, text in enumerate(lines, 1)]


def _parse(text: bytes, path: Path, number: int) -> Record[Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(
            f"{path} line {number} is not a Record: it is not JSON; remove that line"
        ) from None
    try:
        return _read_record(document)
    except UnexpectedJson as error:
        raise InputError(
            f"{path} line {number} is not a Record: {error}; remove that line"
        ) from None


class UnexpectedJson(Exception):
    """JSON that is not of the expected type; the message names the field."""


def _read_record(document: Any) -> Record[Any]:
    required = {"kind", "artifact", "values"}
    if not isinstance(document, dict) or not required <= document.keys():
        raise UnexpectedJson("it is not an object with kind, artifact and values")
    names = {entry.name for entry in dataclasses.fields(Record)}
    unknown = sorted(document.keys() - names - {"kind"})
    if unknown:
        raise UnexpectedJson(f"it has an unknown field {unknown[0]!r}")
    for name in ("artifact", "values", "engine", "data", "samples", "host"):
        _read_value(dict, document.get(name, {}), name)
    for name in ("job", "time"):
        _read_value(str, document.get(name, ""), name)
    kind = document.pop("kind")
    values = document.pop("values")
    result_type = _result_type(kind, values)
    return Record(values=read_result(result_type, values), **document)


def _result_type(kind: Any, values: Mapping[str, Any]) -> type:
    # One kind, two producers: the quantizer and benchmarks/int8.py.
    if kind == "quantize":
        return QuantizerComparison if "engines" in values else QuantizeSummary
    for result_type, name in RESULT_KINDS.items():
        if name == kind:
            return result_type
    raise UnexpectedJson(
        f"its kind is {kind!r}; expected one of {', '.join(get_args(Kind))}"
    )


def read_result(
    result_type: type[T], document: Mapping[str, Any], prefix: str = ""
) -> T:
    """A `result_type` from the JSON object that `to_json` makes of one.

    prefix  before the name of every field, where the object is nested without a level of its own
    """
    arguments: dict[str, Any] = {}
    dataclass_type: Any = result_type
    hints = _type_hints(dataclass_type)
    for entry in dataclasses.fields(dataclass_type):
        expected = hints[entry.name]
        if INLINE in entry.metadata:
            arguments[entry.name] = _read_inline(
                expected, document, prefix + entry.metadata[INLINE]
            )
            continue
        name = prefix + entry.name
        if name not in document:
            name = prefix + entry.metadata.get(FORMERLY, entry.name)
        if name in document:
            arguments[entry.name] = _read_value(expected, document[name], name)
        elif type(None) in get_args(expected):
            arguments[entry.name] = None  # older rows lack some optional fields
        elif entry.default is dataclasses.MISSING:
            raise UnexpectedJson(f"it has no {name!r}")
    return result_type(**arguments)


@functools.cache
def _type_hints(result_type: type) -> dict[str, Any]:
    return get_type_hints(result_type)


def _read_inline(expected: Any, document: Mapping[str, Any], prefix: str) -> Any:
    """A nested dataclass from fields of the outer object; None if optional and all are missing."""
    is_optional = type(None) in get_args(expected)
    inner = get_args(expected)[0] if is_optional else expected
    names = {prefix + entry.name for entry in dataclasses.fields(inner)}
    if is_optional and not names & document.keys():
        return None
    return read_result(inner, document, prefix)


def _read_value(expected: Any, value: Any, name: str) -> Any:
    """`value` of JSON as the annotated type `expected` has it."""
    origin = get_origin(expected)
    arguments = get_args(expected)
    if origin in (Union, types.UnionType):
        return None if value is None else _read_value(arguments[0], value, name)
    if expected is float and value is None:
        return math.nan  # what was not finite when it was written
    if dataclasses.is_dataclass(expected) and isinstance(value, dict):
        return read_result(expected, value)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        return tuple(_read_value(arguments[0], item, name) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {
            key: _read_value(arguments[1], item, key) for key, item in value.items()
        }
    if _is_plain(expected, value):
        return value
    raise UnexpectedJson(f"its {name!r} is {json.dumps(value)[:40]}")


def _is_plain(expected: Any, value: Any) -> bool:
    """Whether `value` is of the plain type `expected`; a float may be written as 1."""
    if expected is Any:
        return True
    if get_origin(expected) is Literal:
        return value in get_args(expected)
    # Not isinstance: bool is a subclass of int, and true is not a count.
    if expected is float:
        return type(value) in (int, float)
    return type(value) is expected
