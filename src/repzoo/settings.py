"""Settings: frozen dataclasses whose fields state their help text and accepted values once.

    @dataclass(frozen=True)
    class ExportOptions:
        opset: int = setting(17, help="ONNX opset version.", range=between(11, 20))

        def __post_init__(self) -> None:
            validate(self)

The command line derives its options from these fields, and `validate` checks the values whoever
set them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from repzoo.errors import InputError
from repzoo.plugins import unknown

Settings = TypeVar("Settings")
_METADATA_KEY = "setting"
# What a value of a type is called in messages; any other type is a path.
NOUNS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string",
}


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`; `low` itself is accepted unless `excludes_low`."""

    low: float = -math.inf
    high: float = math.inf
    excludes_low: bool = False

    def __contains__(self, number: float) -> bool:
        """Whether `number` is accepted; NaN and infinity never are."""
        if not math.isfinite(number):
            return False
        above_low = number > self.low if self.excludes_low else number >= self.low
        return above_low and number <= self.high

    def __str__(self) -> str:
        """The condition in words, to stand after "an integer" or "a number"."""
        if self.high < math.inf:
            start = "above" if self.excludes_low else "from"
            end = "and at most" if self.excludes_low else "to"
            return f"{start} {self.low:g} {end} {self.high:g}"
        if self.low == -math.inf:
            return "that is finite"
        if self.excludes_low:
            return f"above {self.low:g}"
        return f"of at least {self.low:g}"


FINITE = Range()


def at_least(low: float) -> Range:
    """Numbers of at least `low`."""
    return Range(low)


def above(low: float, high: float = math.inf) -> Range:
    """Numbers above `low`, and at most `high`."""
    return Range(low, high, excludes_low=True)


def between(low: float, high: float) -> Range:
    """Numbers from `low` to `high`, both included."""
    return Range(low, high)


@dataclass(frozen=True)
class Setting:
    """What a settings field says about itself.

    help     one sentence for `--help`
    range    accepted numbers; of a tuple, of each element
    choices  accepted strings; empty: any, or those of the field's Literal type
    parse    the value in a text of the command line; None: as the field's type says
    """

    help: str
    range: Range | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    range: Range | None = None,
    choices: Sequence[str] = (),
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A field of a settings dataclass with its default value, help text and accepted values."""
    stated = Setting(help, range, tuple(choices), parse)
    return dataclasses.field(default=default, metadata={_METADATA_KEY: stated})


def same_setting(kind: type[Any], name: str) -> Any:
    """A field with the default, help text and accepted values of the field `name` of `kind`."""
    by_name = {item.name: item for item in dataclasses.fields(kind)}
    field = by_name[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclass(frozen=True)
class Field:
    """A settings field as the command line needs it: name, type, default and what it accepts."""

    name: str
    hint: Any
    default: Any
    setting: Setting


def fields_of(kind: type[Any]) -> tuple[Field, ...]:
    """The fields of the settings dataclass `kind` that `setting` made, in order."""
    hashable: Any = kind
    return _cached_fields(hashable)


@functools.cache
def _cached_fields(kind: Any) -> tuple[Field, ...]:
    hints = get_type_hints(kind)
    fields: list[Field] = []
    for item in dataclasses.fields(kind):
        # a dataclass may also have fields that are no settings
        stated = item.metadata.get(_METADATA_KEY)
        if stated is not None:
            fields.append(Field(item.name, hints[item.name], item.default, stated))
    return tuple(fields)


def validate(settings: Any, owner: str = "") -> None:
    """Check the type and the value of every field of `settings`; call it from `__post_init__`.

    owner  stands before the field's name in the message, such as "preprocess"

    Raises:
        InputError: names the field, what it accepts and what it got.
    """
    for field in fields_of(type(settings)):
        value = getattr(settings, field.name)
        if not _accepts(field.hint, field.setting, value):
            expected = _expectation(field.hint, field.setting)
            name = f"{owner} {field.name}".strip()
            raise InputError(f"{name} must be {expected}; got {value!r}")
        if repeated := _repeated_value(field.hint, value):
            raise InputError(
                f"{field.name} names {repeated} twice; name each value once"
            )


def merge_keywords(
    kind: type[Settings], options: Settings | None, keywords: Mapping[str, Any]
) -> Settings:
    """The settings `options`, or the defaults of `kind`, with the fields in `keywords` replaced.

    A single value is accepted where the field is a tuple, and a string where it is a Path.

    Raises:
        InputError: an unknown keyword (the nearest are offered), or a value that is not accepted.
    """
    if options is not None and not isinstance(options, kind):
        raise InputError(
            f"options must be {kind.__name__}(...); got {type(options).__name__}; "
            "settings can also be given as keywords"
        )
    fields = {field.name: field for field in fields_of(kind)}
    changes = {}
    for name, value in keywords.items():
        if name not in fields:
            raise InputError(unknown(f"setting of {kind.__name__}", name, list(fields)))
        changes[name] = _coerce(fields[name].hint, value)
    if options is None:
        return kind(**changes)
    return dataclasses.replace(options, **changes)  # type: ignore[type-var]


def split_keywords(
    keywords: Mapping[str, Any], verb: str, first: type[Any], second: type[Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(those that are fields of `first`, those of `second`) of the keywords of `verb`.

    Raises:
        InputError: a field of neither; the nearest are offered.
    """
    names = [field.name for field in fields_of(first)]
    other_names = [field.name for field in fields_of(second)]
    for name in keywords:
        if name not in names and name not in other_names:
            raise InputError(
                unknown(f"setting of {verb}", name, [*names, *other_names])
            )
    own: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in keywords.items():
        target = own if name in names else rest
        target[name] = value
    return own, rest


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union type such as `int | None`; of any other type, itself."""
    is_union = isinstance(hint, types.UnionType) or get_origin(hint) is Union
    return get_args(hint) if is_union else (hint,)


def element_types(hint: Any) -> tuple[Any, ...] | None:
    """The element types of a tuple type, (X, ...) where any number is accepted; else None."""
    return get_args(hint) if get_origin(hint) is tuple else None


def _accepts(hint: Any, stated: Setting, value: Any) -> bool:
    return any(_accepts_one(option, stated, value) for option in alternatives(hint))


def _accepts_one(hint: Any, stated: Setting, value: Any) -> bool:
    """As `_accepts`, for a type that is no union."""
    elements = element_types(hint)
    if elements is not None:
        return isinstance(value, tuple) and _accepts_elements(elements, stated, value)
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    # bool is a subclass of int, but True is no number of images
    if isinstance(value, bool):
        return hint is bool
    if hint in (int, float):
        return _accepts_number(hint, stated.range, value)
    if not isinstance(value, hint):
        return False
    has_choices = hint is str and bool(stated.choices)
    return not has_choices or value in stated.choices


def _accepts_number(hint: Any, accepted: Range | None, value: Any) -> bool:
    """Whether `value` is an int, or a float where `hint` is float, within the `accepted` range."""
    kinds = (int, float) if hint is float else (int,)
    if not isinstance(value, kinds):
        return False
    return accepted is None or value in accepted


def _accepts_elements(
    elements: tuple[Any, ...], stated: Setting, values: tuple[Any, ...]
) -> bool:
    if elements[-1] is Ellipsis:
        elements = (elements[0],) * len(values)
    if len(values) != len(elements):
        return False
    pairs = zip(elements, values, strict=True)
    return all(_accepts(element, stated, value) for element, value in pairs)


def _repeated_value(hint: Any, value: Any) -> str:
    """A value that a tuple of any length holds twice, as text; "" if there is none.

    If it were dropped silently, it would look as if it had been measured twice.
    """
    elements = element_types(alternatives(hint)[0])
    if elements is None or elements[-1] is not Ellipsis:
        return ""
    seen = set()
    for item in value:
        if item in seen:
            return str(item)
        seen.add(item)
    return ""


def _expectation(hint: Any, stated: Setting) -> str:
    """What is accepted, in words: "an integer from 11 to 20", "one of train, deploy"."""
    # None stands for "not given", which nobody types
    options = [option for option in alternatives(hint) if option is not types.NoneType]
    first = options[0]
    elements = element_types(first)
    if elements is not None:
        inner = _expectation(elements[0], stated)
        if elements[-1] is Ellipsis:
            return f"a tuple, each element {inner}"
        return f"{len(elements)} values, each {inner}"
    choices = stated.choices
    if get_origin(first) is Literal:
        choices = get_args(first)
    if choices:
        return f"one of {', '.join(choices)}"
    nouns: list[str] = []
    for option in options:
        # a tuple beside a single value is named by its elements
        if element_types(option) is None:
            nouns.append(NOUNS.get(option, "a path"))
    words = " or ".join(nouns)
    return words if stated.range is None else f"{words} {stated.range}"


def _coerce(hint: Any, value: Any) -> Any:
    """`value` in the form that `hint` wants: a Path for a string, a tuple for a list or an item."""
    options = alternatives(hint)
    elements = element_types(options[0])
    if elements is not None:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_coerce(elements[0], item) for item in items)
    if isinstance(value, str) and Path in options and str not in options:
        return Path(value)
    return value
