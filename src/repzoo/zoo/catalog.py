"""The zoo's catalog: `catalog.toml`, read strictly into frozen dataclasses.

The dataclasses are the schema of the file. Every figure names its source, and a source says
what its columns count. Tests recompute each count to the digits that the source prints. A
figure that does not agree is kept as printed and named in `Figure.wrong`. No torch here: a
board can look up models.
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
    "deploy": "deploy form: every BatchNorm folded, every parallel branch merged, RepViT's two "
    "heads averaged into one",
    "onnx": "initializers of the exported ONNX: BatchNorm folded, except RepGhost's fusion "
    "BatchNorms (four vectors each)",
}
FLOP_COUNTS = {
    "macs": "multiply-accumulates of the deploy form's convolutions and linear layers",
    "ops": "two operations for each multiply-accumulate of `macs`",
    "mmcls": "convolutions with their biases and ReLUs, and the inputs of average pools; without "
    "the classifier",
    "mmpretrain": "convolutions and the inputs of average pools; without the classifier",
}
ROUNDINGS = ("nearest", "down", "either")
PRECISIONS = ("float32", "int8")
_SCALE = {"": 0, "K": 3, "M": 6, "G": 9}

Record = TypeVar("Record")


@dataclass(frozen=True)
class FigureSource:
    """Who published figures, and what the columns count.

    base        prefix of the `files` of its figures
    parameters  what its parameter column counts: a key of PARAMETER_COUNTS, or "" without one
    flops       what its FLOPs column counts: a key of FLOP_COUNTS, or "" without one
    rounding    "nearest", "down", or "either" if its table mixes both
    host        device that its latencies are of, as `repzoo match --host` takes it; "" without any
    precision   number format that the device runs: of PRECISIONS, or "" without `host`
    saturating_threads  threads behind `latency_multithread_ms`; 0 without such figures
    conditions  under which the figures hold, one sentence each
    """

    title: str
    url: str
    base: str = ""
    parameters: str = ""
    flops: str = ""
    rounding: str = "nearest"
    host: str = ""
    precision: str = ""
    saturating_threads: int = 0
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """One row of one published table, with the printed digits. Missing values are None or empty.

    setting      distinguishes this figure from others of the source, such as "450 epochs"
    size         side of the square input in pixels; None: the model's own
    parameters,  as printed, with the unit's letter: "2.3M", "0.34G", "8309384"; see `as_number`
    flops
    *top1, top5  percent of ImageNet's validation images, unless the source's conditions differ
    int8_drop    float Top-1 minus INT8 Top-1 in percentage points, if only this is published
    latency_*    milliseconds per image; "1thread": one frame in flight; "multithread": engine
                 saturated
    fps          images per second, engine saturated
    files        addresses of checkpoints, compiled models and logs
    wrong        fields of this figure that recomputation refutes (the notes say why)
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

    name               timm's variant name, or one in its style if timm lacks the variant
    title              the paper's name
    preprocess         the reference source's preprocessing for its reported accuracy
    parameters_train   training form; RepViT with two heads, as timm builds it by default
    parameters_deploy  deploy form, see PARAMETER_COUNTS
    macs, macs_train   multiply-accumulates of convolutions and linear layers at
                       `preprocess.size`, deploy and training form
    notes              what a reader must know, such as which figures are wrong and why
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
        """The row as JSON values. Missing values are left out; printed digits become floats."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Checkpoint:
    """A set of weights that comes with the package, or that a command makes.

    name     `variant.tag`
    file     below repzoo/zoo/weights, or "" if it is too large for the package
    classes  number of classes
    labels   where the class names come from
    size     side of the square input in pixels
    command  the command that reproduces the file in a checkout
    sha256   of the weights.safetensors that the figures were measured on. The same processor,
             versions and one thread reproduce it; others agree up to rounding
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
    """The whole file, in its order."""

    sources: Mapping[str, FigureSource]
    models: Mapping[str, ModelSpec]
    checkpoints: Mapping[str, Checkpoint]


def models(pattern: str = "*") -> list[ModelSpec]:
    """The variants whose names match `pattern`, by family, small to large.

    pattern  a glob such as "repvgg_b*", or a part of the name
    """
    known = _packaged().models
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [spec for name, spec in known.items() if fnmatchcase(name, glob.lower())]


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
    """The weights that come with the package, and those that a command trains."""
    return list(_packaged().checkpoints.values())


def sources() -> Mapping[str, FigureSource]:
    """The sources of figures, by the key in `Figure.source`."""
    return _packaged().sources


def as_number(text: str) -> Decimal:
    """A printed count as a number with its precision.

    "0.34G" is Decimal("3.4E+8"), whose last digit stands for 1E+7.

    Raises:
        ValueError: not a decimal number with an optional K, M or G.
    """
    digits = text.rstrip("KMG")
    if (
        text.removeprefix(digits) not in _SCALE
        or not digits.replace(".", "", 1).isdecimal()
    ):
        raise ValueError(f"not a count: {text!r}")
    return Decimal(digits).scaleb(_SCALE[text.removeprefix(digits)])


@cache
def _packaged() -> Catalog:
    return parse(
        files("repzoo.zoo").joinpath("catalog.toml").read_text(encoding="utf-8")
    )


def parse(text: str) -> Catalog:
    """Read a catalog.

    Raises:
        RepzooError: not TOML, an unknown key, a missing or ill-typed value, or a reference to an
            unknown name.
    """
    try:
        # Decimal keeps the digits as printed: the last one says how precise a figure is.
        document = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise RepzooError(f"the catalog is not TOML: {error}") from None
    _only(document, ("sources", "families", "model", "checkpoint"), "the catalog")
    sources: dict[str, FigureSource] = {}
    for key, table in document.get("sources", {}).items():
        sources[key] = _record(FigureSource, table, f"source {key}")
    families = document.get("families", {})
    models = [_model(table, families, sources) for table in document.get("model", [])]
    checkpoints = [
        _checkpoint(table, sources) for table in document.get("checkpoint", [])
    ]
    catalog = Catalog(sources, _by_name(models), _by_name(checkpoints))
    _check(catalog)
    return catalog


def _model(
    table: Mapping[str, Any],
    families: Mapping[str, Any],
    known: Mapping[str, FigureSource],
) -> ModelSpec:
    key = str(table.get("family", ""))
    family = families.get(key, {})
    _only(family, ("paper", "repository", "preprocess"), f"family {key}")
    # A model states only what differs from its family.
    preprocess = {**family.get("preprocess", {}), **table.get("preprocess", {})}
    merged = {**family, **table, "preprocess": preprocess}
    return _record(ModelSpec, _with_figures(merged, known), _label(table))


def _checkpoint(
    table: Mapping[str, Any], known: Mapping[str, FigureSource]
) -> Checkpoint:
    return _record(Checkpoint, _with_figures(table, known), _label(table))


def _with_figures(
    table: Mapping[str, Any], known: Mapping[str, FigureSource]
) -> dict[str, Any]:
    where = _label(table)
    figures = tuple(_figure(item, known, where) for item in table.get("figures", ()))
    return {**table, "figures": figures}


def _figure(
    table: Mapping[str, Any], known: Mapping[str, FigureSource], where: str
) -> Figure:
    figure = _record(Figure, table, f"a figure of {where}")
    if figure.source not in known:
        raise RepzooError(unknown(f"source (in {where})", figure.source, dict(known)))
    # A misspelled name in `wrong` would leave the refuted figure unmarked.
    absent = [name for name in figure.wrong if name not in table]
    if absent:
        raise RepzooError(
            f"{where}: the {figure.source} figure calls {absent[0]!r} wrong but does not give it"
        )
    base = known[figure.source].base
    return dataclasses.replace(
        figure, files=tuple(base + name for name in figure.files)
    )


def _record(kind: type[Record], table: Mapping[str, Any], where: str) -> Record:
    hints = get_type_hints(kind)
    _only(table, hints, where)
    values = {
        key: _typed(hints[key], value, f"{key} of {where}")
        for key, value in table.items()
    }
    try:
        return kind(**values)
    except TypeError as error:
        raise RepzooError(f"{where} is not complete: {error}") from None


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value` of a TOML file as the field type `kind`."""
    # A bool is an int in Python: `top1 = true` must not be read as 1.
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    # Decimals are for printed figures; preprocessing computes with floats.
    if kind is Preprocess and isinstance(value, dict):
        return Preprocess.from_mapping(
            {key: _float(item) for key, item in value.items()}
        )
    if kind == Decimal | None and (is_integer or isinstance(value, Decimal)):
        return Decimal(value)
    if kind in (int, int | None) and is_integer:
        return value
    if kind is str and isinstance(value, str):
        return value
    is_text_list = isinstance(value, list) and all(
        isinstance(item, str) for item in value
    )
    if kind == tuple[str, ...] and is_text_list:
        return tuple(value)
    if kind == tuple[Figure, ...] and isinstance(value, tuple):
        return value
    raise RepzooError(f"{where} must be of type {kind}; got {value!r}")


def _float(value: Any) -> Any:
    if isinstance(value, list):
        return [_float(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value


def _only(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    unexpected = sorted(set(table) - set(known))
    if unexpected:
        raise RepzooError(unknown(f"key of {where}", unexpected[0], list(known)))


def _by_name(rows: list[Row]) -> dict[str, Row]:
    by_name: dict[str, Row] = {}
    for row in rows:
        if row.name in by_name:
            raise RepzooError(f"the catalog has two rows called {row.name!r}")
        by_name[row.name] = row
    return by_name


def _check(catalog: Catalog) -> None:
    for key, source in catalog.sources.items():
        _one_of(
            source.parameters, ("", *PARAMETER_COUNTS), f"parameters of source {key}"
        )
        _one_of(source.flops, ("", *FLOP_COUNTS), f"flops of source {key}")
        _one_of(source.rounding, ROUNDINGS, f"rounding of source {key}")
        precisions = PRECISIONS if source.host else ("",)
        _one_of(source.precision, precisions, f"precision of source {key}")
    for row in catalog.checkpoints.values():
        _one_of(row.variant, tuple(catalog.models), f"variant of {row.name}")
        # Messages and `export` take what stands before the dot for the catalog model.
        if row.name.partition(".")[0] != row.variant:
            raise RepzooError(
                f"checkpoint {row.name!r} must be called {row.variant}.<tag>"
            )


def _one_of(value: str, known: tuple[str, ...], where: str) -> None:
    if value not in known:
        raise RepzooError(
            f"{where} must be one of {', '.join(map(repr, known))}; got {value!r}"
        )


def _label(table: Mapping[str, Any]) -> str:
    return str(table.get("name", "a row without a name"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        known = {key: item for key, item in value.items() if item not in (None, "", ())}
        return {key: _plain(item) for key, item in known.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # JSON has no Decimal.
    return float(value) if isinstance(value, Decimal) else value
