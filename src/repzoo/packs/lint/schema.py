"""Keys and values that a tool accepts, from `keys/*.toml`, against a parsed file."""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files as package_files
from typing import Any

from repzoo.packs.lint.document import Document, Keys
from repzoo.packs.lint.finding import Finding

SPELLED_ALIKE = 0.75  # similarity (0..1) from which on a known key is offered
Table = Mapping[str, Any]


@functools.cache
def load(name: str) -> dict[Keys, Table]:
    """The groups of a tool by their path, each with `keys`, `required` and `closed`."""
    text = (package_files("repzoo.packs.lint") / "keys" / f"{name}.toml").read_text(
        "utf-8"
    )
    return dict(_groups(tomllib.loads(text), ()))


def _groups(table: Table, path: Keys) -> Iterator[tuple[Keys, Table]]:
    if "keys" in table:
        yield path, table
    for name, value in table.items():
        if name != "keys" and isinstance(value, dict):
            yield from _groups(value, (*path, name))


def check(document: Document, name: str) -> Iterator[Finding]:
    """Missing and unknown groups and keys, repeated keys, values that are not accepted."""
    groups = load(name)
    yield from _readable_keys(document)
    for path, group in groups.items():
        yield from _group(document, path, group, groups)


def unknown_groups(
    document: Document, name: str, known: tuple[str, ...] = ()
) -> Iterator[Finding]:
    """Keys at the top that the tool does not know; `known` are others that it takes there."""
    names = [path[0] for path in load(name) if len(path) == 1]
    closed = any(group.get("closed") for group in load(name).values())
    for key in document.value:
        if key not in names and key not in known:
            yield from _unknown(document, (key,), [*names, *known], closed=closed)


def _readable_keys(document: Document) -> Iterator[Finding]:
    for keys, is_same in document.repeated:
        values = "with the same value" if is_same else "with another value"
        yield document.finding(
            "repeated-key" if is_same else "duplicate-key",
            f"{keys[-1]} occurs twice, {values}; most readers drop all but the last",
            *keys,
            fix="delete one of them",
        )
    for keys in document.not_text:
        yield document.finding(
            "key-not-text",
            f"YAML reads the bare key {keys[-1]} as a truth value or a number, so the tool does "
            "not find it",
            *keys,
            fix=f"'{keys[-1]}':",
        )


def _group(
    document: Document, path: Keys, group: Table, groups: Mapping[Keys, Table]
) -> Iterator[Finding]:
    value = document.get(*path)
    above = document.get(*path[:-1])
    if value is None:
        is_there = isinstance(above, dict) and path[-1] in above
        if group.get("required") and not is_there:
            yield _missing(document, path, "missing-group")
        value = {}
        if not is_there:
            return  # its keys are missing with it
    if not isinstance(value, dict):
        yield document.finding(
            "wrong-type",
            f"{path[-1]} is {_short(value)}; expected keys below it",
            *path,
        )
        return
    yield from _keys(document, path, group, value, groups)


def _keys(
    document: Document,
    path: Keys,
    group: Table,
    value: Table,
    groups: Mapping[Keys, Table],
) -> Iterator[Finding]:
    keys: Table = group["keys"]
    for key, rule in keys.items():
        if rule.get("required") and value.get(key) in (None, ""):
            yield _missing(document, (*path, key), "missing-key")
    closed = bool(group.get("closed"))
    for key, item in value.items():
        if key not in keys and (*path, key) not in groups:
            yield from _unknown(document, (*path, key), list(keys), closed=closed)
        elif key in keys and item not in (None, ""):
            yield from _value(document, (*path, key), keys[key], item)


def _missing(document: Document, path: Keys, code: str) -> Finding:
    above = ".".join(path[:-1])
    where = f" below {above}" if above else ""
    return document.finding(
        code,
        f"{path[-1]} is missing{where}; the tool needs it",
        *path,
        fix=f"{path[-1]}:",
    )


def _unknown(
    document: Document, path: Keys, known: list[str], *, closed: bool
) -> Iterator[Finding]:
    near = difflib.get_close_matches(path[-1], known, n=1, cutoff=SPELLED_ALIKE)
    if not near and not closed:
        return
    code = "unknown-key" if closed else "misspelled-key"
    hint = f"; did you mean {near[0]}?" if near else ""
    stops = "the tool refuses it" if closed else "the tool passes over it"
    where = f" below {'.'.join(path[:-1])}" if path[:-1] else ""
    yield document.finding(
        code,
        f"there is no key {path[-1]}{where}{hint} ({stops})",
        *path,
        fix=f"{near[0]}:" if near else f"delete {path[-1]}",
    )


def _value(
    document: Document, path: Keys, rule: Table, value: Any
) -> Iterator[Finding]:
    problem = _type_problem(rule, value)
    if problem:
        yield document.finding(
            "wrong-type", f"{path[-1]} is {_short(value)}; expected {problem}", *path
        )
        return
    accepted: list[str] = rule.get("values") or rule.get("list") or []
    parts = str(value).split(";") if rule.get("list") else [str(value)]
    if isinstance(value, dict | list):
        return
    for part in parts:
        if accepted and part.strip() and part.strip() not in accepted:
            yield _not_accepted(document, path, part.strip(), accepted)


def _not_accepted(
    document: Document, path: Keys, value: str, accepted: list[str]
) -> Finding:
    same = [item for item in accepted if item.lower() == value.lower()]
    near = same or difflib.get_close_matches(value, accepted, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    return document.finding(
        "unknown-value",
        f"{path[-1]} is {value!r}; the tool knows {', '.join(accepted)}{hint}",
        *path,
        fix=f"{path[-1]}: {near[0]}" if near else "",
    )


def _type_problem(rule: Table, value: Any) -> str:
    """What was expected instead of `value`; "" where it fits."""
    kind = rule["type"]
    accepts, expected = TYPES[kind]
    if not accepts(value):
        return expected
    if kind in ("integer", "number", "count"):
        number = float(value)
        low, high = rule.get("low", number), rule.get("high", number)
        if not low <= number <= high:
            return f"{low} to {high}" if "high" in rule else f"at least {low}"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Of each type: what it accepts, and how messages name it.
TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "any": (lambda _: True, ""),
    "boolean": (
        lambda value: isinstance(value, bool),
        "True or False, without quotes",
    ),
    "count": (lambda value: str(value).strip().isdigit(), "a whole number"),
    "integer": (_is_integer, "a whole number, without quotes"),
    "map": (lambda value: isinstance(value, dict), "keys below it"),
    "number": (_is_number, "a number"),
    "numbers": (
        lambda value: parse_numbers(value) is not None,
        "numbers with blanks between them",
    ),
    "text": (lambda value: not isinstance(value, dict | list | bool), "a text"),
}


def parse_numbers(value: Any) -> list[tuple[float, ...]] | None:
    """The numbers in a text such as "123.675 116.28 103.53", for each input between `;`.

    None where it is no such text.
    """
    if isinstance(value, bool | dict | list) or value is None:
        return None
    inputs: list[tuple[float, ...]] = []
    for part in str(value).split(";"):
        words = part.replace(",", " ").split()
        try:
            row = tuple(map(float, words))
        except ValueError:
            return None
        if not all(abs(number) < 1e12 for number in row):
            return None
        inputs.append(row)
    return inputs


def number_row(value: Any) -> tuple[float, ...] | None:
    """The numbers of a list that is not empty; None for anything else."""
    if not isinstance(value, list) or not value or not all(map(_is_number, value)):
        return None
    return tuple(map(float, value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
