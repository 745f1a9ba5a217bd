"""The zoo's catalog: `catalog.toml` read strictly into frozen dataclasses. The dataclasses are the file's schema.

Every figure says who published it (`Figure.source`, a key of `sources()`), and a source says what its columns count, so that the
tests recompute each count to the digits it prints. One that does not survive this is kept as printed and named in `Figure.wrong`.
No torch here: a board can list and look up models.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar, get_type_hints

from repzoo.artifact import Preprocess
from repzoo.errors import InputError, RepzooError
from repzoo.plugins import unknown

PARAMETER_COUNTS = {
    "train": "training form, BatchNorm scales and shifts included; RepViT with both heads",
    "deploy": "deploy form: every BatchNorm folded, every parallel branch merged, RepViT's two heads averaged into one",
    "onnx": "initializers of the exported ONNX: BatchNorm folded, except RepGhost's fusion BatchNorms (four vectors each)",
}
FLOP_COUNTS = {
    "macs": "multiply-accumulates of the deploy form's convolutions and linear layers",
    "ops": "two operations for each multiply-accumulate of `macs`",
    "mmcls": "convolutions with their biases and ReLUs, and the inputs of average pools; classifier left out",
    "mmpretrain": "convolutions and the inputs of average pools; classifier left out",
}
ROUNDINGS = ("nearest", "down", "either")
_SCALE = {"": 0, "K": 3, "M": 6, "G": 9}

Record = TypeVar("Record")


@dataclass(frozen=True)
class FigureSource:
    """Who published figures, and what they count.

    base        prefix of the `files` of its figures
    parameters  what its parameter column counts: a key of PARAMETER_COUNTS, or "" when it prints none
    flops       what its FLOPs column counts: a key of FLOP_COUNTS, or ""
    rounding    how it cuts digits: "nearest", "down", or "either" when its table mixes both
    conditions  under which the figures hold, a sentence each
    """

    title: str
    url: str
    base: str = ""
    parameters: str = ""
    flops: str = ""
    rounding: str = "nearest"
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """One row of one published table, with the digits it prints; what the source does not give is None or empty.

    setting      what tells this figure from the source's others, such as "450 epochs"
    size         side of the square input, pixels; None: the model's own
    parameters,  as printed, with the unit's letter: "2.3M", "0.34G", "8309384"; see `as_number`
    flops
    *top1, top5  percent of ImageNet's validation images, unless the source's conditions say otherwise
    int8_drop    float Top-1 minus INT8 Top-1, percentage points, where only the difference is published
    latency_*    milliseconds per image; "1thread": one frame in flight; "multithread": the engine kept full
    fps          images per second, engine kept full
    files        addresses of checkpoints, compiled models and logs
    wrong        names of fields of this figure that recomputing refutes (the row's notes say why)
    """

    source: str
    setting: str = ""
    size: int | None = None
    classes: int | None = None
    parameters: str = ""
    flops: str = ""
    top1: Decimal | None = None
    top5: Decimal | None = None
    fp16_top1: Decimal | None = None
    fp16_top5: Decimal | None = None
    int8_top1: Decimal | None = None
    int8_top5: Decimal | None = None
    int8_drop: Decimal | None = None
    latency_ms: Decimal | None = None
    latency_1thread_ms: Decimal | None = None
    latency_multithread_ms: Decimal | None = None
    fps: Decimal | None = None
    files: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """A variant of the zoo.

    name              timm's variant name, or one of its kind where timm lacks the variant
    title             the paper's name
    preprocess        how the reference source prepares images for its reported accuracy
    parameters_train  of the training form; RepViT with two heads, as timm builds it by default
    parameters_deploy of the deploy form, see PARAMETER_COUNTS
    macs, macs_train  multiply-accumulates of convolutions and linear layers at `preprocess.size`, deploy and training form
    notes             what a reader of the figures must know, such as which are wrong and why
    """

    name: str
    family: str
    title: str
    paper: str
    repository: str
    preprocess: Preprocess
    parameters_train: int
    parameters_deploy: int
    macs: int
    macs_train: int
    num_classes: int = 1000
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The row as plain JSON values; what a figure does not give is left out, and printed digits become floats."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Checkpoint:
    """A set of weights that comes with the package, or that a command makes.

    name     `variant.tag`
    file     below repzoo/zoo/weights, or "" when it is too large to come with the package
    classes  number of classes
    labels   where the class names come from
    size     side of the square input, pixels
    command  what makes the file again, in a checkout
    sha256   of the weights.safetensors that the figures were measured on: the same processor, versions and one thread make the
             same bits, others the same up to rounding
    """

    name: str
    variant: str
    file: str
    classes: int
    labels: str
    size: int
    command: str
    sha256: str = ""
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()


Row = TypeVar("Row", ModelSpec, Checkpoint)


@dataclass(frozen=True)
class Catalog:
    """Everything in the file, in its order."""

    sources: Mapping[str, FigureSource]
    models: Mapping[str, ModelSpec]
    checkpoints: Mapping[str, Checkpoint]


def models(pattern: str = "*") -> list[ModelSpec]:
    """The variants whose names match the glob `pattern`, family by family, small to large; none is not an error."""
    return [row for name, row in _packaged().models.items() if fnmatchcase(name, pattern)]


def spec(name: str) -> ModelSpec:
    """The variant called `name`.

    Raises:
        InputError: unknown; the nearest names are offered.
    """
    known = _packaged().models
    if name not in known:
        raise InputError(unknown("model", name, known))
    return known[name]


def checkpoints() -> list[Checkpoint]:
    """The weights that come with the package, and those that a command makes."""
    return list(_packaged().checkpoints.values())


def sources() -> Mapping[str, FigureSource]:
    """Who published the figures, by the key that `Figure.source` gives."""
    return _packaged().sources


def as_number(text: str) -> Decimal:
    """What a printed count says, with its precision: "0.34G" is Decimal("3.4E+8"), whose last digit stands for 1E+7.

    Raises:
        ValueError: not a decimal number with an optional K, M or G.
    """
    digits = text.rstrip("KMG")
    if text.removeprefix(digits) not in _SCALE or not digits.replace(".", "", 1).isdecimal():
        raise ValueError(f"not a count: {text!r}")
    return Decimal(digits).scaleb(_SCALE[text.removeprefix(digits)])


@cache
def _packaged() -> Catalog:
    return parse(files("repzoo.zoo").joinpath("catalog.toml").read_text(encoding="utf-8"))


def parse(text: str) -> Catalog:
    """Read a catalog.

    Raises:
        RepzooError: not TOML, a key that the dataclasses do not have, a missing or ill-typed value, or a name that leads nowhere.
    """
    try:
        document = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise RepzooError(f"the catalog is not TOML: {error}") from None
    _only(document, ("sources", "families", "model", "checkpoint"), "the catalog")
    found = {
        key: _record(FigureSource, table, f"source {key}")
        for key, table in document.get("sources", {}).items()
    }
    families = document.get("families", {})
    rows = [_model(table, families, found) for table in document.get("model", [])]
    weights = [
        _record(Checkpoint, _with_figures(table, found), _label(table))
        for table in document.get("checkpoint", [])
    ]
    catalog = Catalog(found, _by_name(rows), _by_name(weights))
    _check(catalog)
    return catalog


def _model(
    table: Mapping[str, Any], families: Mapping[str, Any], known: Mapping[str, FigureSource]
) -> ModelSpec:
    key = str(table.get("family", ""))
    family = families.get(key, {})
    _only(family, ("paper", "repository", "preprocess"), f"family {key}")
    preprocess = {**family.get("preprocess", {}), **table.get("preprocess", {})}
    merged = {**family, **table, "preprocess": preprocess}
    return _record(ModelSpec, _with_figures(merged, known), _label(table))


def _with_figures(table: Mapping[str, Any], known: Mapping[str, FigureSource]) -> dict[str, Any]:
    where = _label(table)
    return {
        **table,
        "figures": tuple(_figure(item, known, where) for item in table.get("figures", ())),
    }


def _figure(table: Mapping[str, Any], known: Mapping[str, FigureSource], where: str) -> Figure:
    figure = _record(Figure, table, f"a figure of {where}")
    if figure.source not in known:
        raise RepzooError(unknown(f"source (in {where})", figure.source, dict(known)))
    if lost := [name for name in figure.wrong if name not in table]:
        raise RepzooError(
            f"{where}: the {figure.source} figure calls {lost[0]!r} wrong but does not give it"
        )
    return dataclasses.replace(
        figure, files=tuple(known[figure.source].base + name for name in figure.files)
    )


def _record(kind: type[Record], table: Mapping[str, Any], where: str) -> Record:
    hints = get_type_hints(kind)
    _only(table, hints, where)
    values = {key: _typed(hints[key], value, f"{key} of {where}") for key, value in table.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise RepzooError(f"{where} is not complete: {error}") from None


def _typed(kind: Any, value: Any, where: str) -> Any:
    if kind is Preprocess and isinstance(value, dict):
        return Preprocess.from_mapping({key: _float(item) for key, item in value.items()})
    if kind == Decimal | None and isinstance(value, int | Decimal) and not isinstance(value, bool):
        return Decimal(value)
    if kind in (int, int | None) and isinstance(value, int) and not isinstance(value, bool):
        return value
    if (
        kind == tuple[str, ...]
        and isinstance(value, list)
        and all(isinstance(item, str) for item in value)
    ):
        return tuple(value)
    if (kind is str and isinstance(value, str)) or (
        kind == tuple[Figure, ...] and isinstance(value, tuple)
    ):
        return value
    raise RepzooError(f"{where} must be of type {kind}; got {value!r}")


def _float(value: Any) -> Any:
    if isinstance(value, list):
        return [_float(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value


def _only(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    if strange := sorted(set(table) - set(known)):
        raise RepzooError(unknown(f"key of {where}", strange[0], list(known)))


def _by_name(rows: list[Row]) -> dict[str, Row]:
    found = {row.name: row for row in rows}
    if len(found) != len(rows):
        names = [row.name for row in rows]
        raise RepzooError(
            f"the catalog has two rows called {next(name for name in names if names.count(name) > 1)!r}"
        )
    return found


def _check(catalog: Catalog) -> None:
    for key, source in catalog.sources.items():
        _one_of(source.parameters, ("", *PARAMETER_COUNTS), f"parameters of source {key}")
        _one_of(source.flops, ("", *FLOP_COUNTS), f"flops of source {key}")
        _one_of(source.rounding, ROUNDINGS, f"rounding of source {key}")
    for row in catalog.checkpoints.values():
        _one_of(row.variant, tuple(catalog.models), f"variant of {row.name}")
        if row.name.partition(".")[0] != row.variant:
            raise RepzooError(f"checkpoint {row.name!r} must be called {row.variant}.<tag>")


def _one_of(value: str, known: tuple[str, ...], where: str) -> None:
    if value not in known:
        raise RepzooError(f"{where} must be one of {', '.join(map(repr, known))}; got {value!r}")


def _label(table: Mapping[str, Any]) -> str:
    return str(table.get("name", "a row without a name"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _plain(item)
            for key, item in value.items()
            if item is not None and item not in ("", ())
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value
