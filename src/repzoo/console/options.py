"""Command-line options, derived from the fields of the settings dataclasses that they fill."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import rich_click as click
from click.types import FloatParamType, convert_type

from repzoo.artifact import Preprocess
from repzoo.settings import (
    FINITE,
    Field,
    Range,
    Setting,
    alternatives,
    element_types,
    fields_of,
)

Command = TypeVar("Command", bound=Callable[..., Any])
# `--help` has 80 columns for the flag, the metavar and the help text.
LONGEST_METAVAR = 24
METAVARS = {int: "N", float: "X", Path: "PATH"}


def options_of(kind: type[Any]) -> Callable[[Command], Command]:
    """A decorator that adds an option for every field of the settings dataclass `kind`."""

    def decorate(command: Command) -> Command:
        """Add the options to `command`."""
        # Decorators apply from the last to the first, so that `--help` lists them in field order.
        for field in reversed(fields_of(kind)):
            command = _option(field, field.default)(command)
        return command

    return decorate


def preprocess_options(command: Command) -> Command:
    """Add --labels and an option for every field of Preprocess: what other tools' files lack.

    One that is not set keeps the model's value.
    """
    for field in reversed(fields_of(Preprocess)):
        command = _option(field, default=None)(command)
    labels = click.option(
        "--labels",
        type=click.Path(path_type=Path),
        help="Text file with the name of one output a line, where the model has none.",
    )
    return labels(command)


def split_options(
    kind: type[Any], values: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """(settings of the dataclass `kind`, the remaining values) from a command's option values."""
    names = [field.name for field in fields_of(kind)]
    own = {name: values[name] for name in names}
    rest = {name: value for name, value in values.items() if name not in own}
    return kind(**own), rest


def comma_separated(item_type: click.ParamType[Any]) -> dict[str, Any]:
    """click's arguments for an option that takes values separated by commas, or is repeated."""
    return {"type": _CommaSeparated(item_type), "callback": _flatten, "multiple": True}


def _option(field: Field, default: Any) -> Callable[[Command], Command]:
    flag = f"--{field.name.replace('_', '-')}"
    if field.default is True:  # a flag that is on by default needs a way to turn it off
        flag = f"{flag}/--no-{field.name.replace('_', '-')}"
    return click.option(
        flag,
        field.name,
        default=default,
        show_default=_is_worth_showing(default),
        help=_help(field),
        metavar=_metavar(field),
        **_click_arguments(field),
    )


def _is_worth_showing(default: Any) -> bool:
    """Whether `--help` says the default: not of flags, and not where it is None or empty."""
    return not isinstance(default, bool) and default not in (None, "", ())


def _help(field: Field) -> str:
    """The field's help text, with choices that are too long for a metavar."""
    choices = _choices(field)
    if not choices or _fits_metavar(choices):
        return field.setting.help
    return f"{field.setting.help} One of {', '.join(choices)}."


def _metavar(field: Field) -> str | None:
    """A short name of the value, which leaves room for the help text; None: click's own."""
    hint = _value_type(field)
    choices = _choices(field)
    if field.setting.parse is not None:
        return "TEXT"
    if hint is bool or (choices and _fits_metavar(choices)):
        return None
    elements = element_types(hint)
    item = elements[0] if elements else hint
    name = "NAME" if choices else METAVARS.get(item, "TEXT")
    if elements is None:
        return name
    return (
        f"{name},{name},.."
        if elements[-1] is Ellipsis
        else " ".join([name] * len(elements))
    )


def _choices(field: Field) -> tuple[str, ...]:
    hint = _value_type(field)
    elements = element_types(hint)
    item = elements[0] if elements else hint
    return get_args(item) if get_origin(item) is Literal else field.setting.choices


def _fits_metavar(choices: tuple[str, ...]) -> bool:
    return len("|".join(choices)) <= LONGEST_METAVAR


def _value_type(field: Field) -> Any:
    """The type of the field's values other than None; of a union such as `str | Path` the first."""
    return next(item for item in alternatives(field.hint) if item is not types.NoneType)


def _click_arguments(field: Field) -> dict[str, Any]:
    """click's arguments for the type of a field and the values it accepts."""
    hint = _value_type(field)
    if hint is bool:
        return {"is_flag": True}
    elements = element_types(hint)
    if elements is None:
        return {"type": _click_type(hint, field.setting)}
    item_type = _click_type(elements[0], field.setting)
    if elements[-1] is Ellipsis:
        return comma_separated(item_type)
    return {"type": click.Tuple([item_type] * len(elements))}


def _click_type(hint: Any, stated: Setting) -> click.ParamType[Any]:
    """click's type for one value of the type `hint`."""
    if stated.parse is not None:
        return _Parsed(stated.parse)
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if stated.choices:
        return click.Choice(stated.choices)
    if hint is Path:
        return click.Path(path_type=Path)
    if stated.range is None:
        plain: click.ParamType[Any] = convert_type(hint)
        return plain
    if hint is int:
        return _IntegerRange(_bound(stated.range.low), _bound(stated.range.high))
    return _FiniteNumber() if stated.range == FINITE else _FiniteRange(stated.range)


def _bound(value: float) -> Any:
    """The bound of a range as click wants it: None where there is none."""
    return None if math.isinf(value) else int(value)


class _IntegerRange(click.IntRange):
    """An integer in a range. click would call text "not a valid integer range"."""

    name = "integer"


class _FiniteNumber(FloatParamType):
    """A number that is neither NaN nor infinite."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """The number in the text `value`."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class _FiniteRange(click.FloatRange):
    """A range without NaN and infinity, which click compares as if they lay inside."""

    def __init__(self, accepted: Range) -> None:
        low = None if math.isinf(accepted.low) else accepted.low
        high = None if math.isinf(accepted.high) else accepted.high
        super().__init__(min=low, max=high, min_open=accepted.excludes_low)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """The number in the text `value`."""
        number = super().convert(value, param, ctx)
        return _FiniteNumber().convert(number, param, ctx)


class _Parsed(click.ParamType[Any]):
    """A value that a function of the settings field reads from the text."""

    name = "text"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self._parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """The value in the text `value`."""
        try:
            # click also converts defaults, which are values already.
            return self._parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _CommaSeparated(click.ParamType[Any]):
    """Values separated by commas."""

    def __init__(self, item_type: click.ParamType[Any]) -> None:
        self.name = item_type.name
        self._item_type = item_type

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """The values in the text `value`."""
        parts = str(value).split(",")
        return tuple(
            self._item_type.convert(part.strip(), param, ctx) for part in parts
        )


def _flatten(
    _context: click.Context,
    _parameter: click.Parameter,
    groups: tuple[tuple[Any, ...], ...],
) -> tuple[Any, ...]:
    """The values of all repetitions of an option, in order; `validate` refuses doubles."""
    values: list[Any] = []
    for group in groups:
        values.extend(group)
    return tuple(values)
