"""Files of others as plain values, with the line of each key. Nothing in them is executed.

YAML is composed to nodes and turned into plain values here: a tag that asks for an object is
refused, a repeated key is reported, and aliases, which can multiply to any size, are counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from repzoo.errors import InputError, first_line
from repzoo.packs.lint.finding import Finding, Mistake
from repzoo.storage import read_bounded

MAX_BYTES = 2**17  # configurations of vendors' zoos have at most 20 kB
MAX_VALUES = 20_000
MAX_DEPTH = 50
# Rules compute with float, which larger whole numbers would overflow.
MAX_INTEGER = 2**63 - 1
Keys = tuple[str, ...]


class Unreadable(InputError):
    """A file that cannot be parsed, or that asks for too much."""


@dataclass(frozen=True)
class Document:
    """A parsed file.

    Attributes:
        path: of the file.
        shown: its path as messages name it.
        value: plain values: dict, list, str, int, float, bool, None. Keys are texts.
        lines: line of each key, by the keys on the way to it.
        repeated: keys that occur twice in one mapping, and whether with the same value; of these
            the last value counts.
        not_text: keys that YAML reads as something else, such as ON as True.
    """

    path: Path
    shown: str
    value: Any
    lines: Mapping[Keys, int] = field(default_factory=dict)
    repeated: tuple[tuple[Keys, bool], ...] = ()
    not_text: tuple[Keys, ...] = ()

    def get(self, *keys: str) -> Any:
        """The value below `keys`; None where it is not there."""
        value = self.value
        for key in keys:
            if not isinstance(value, dict):
                return None
            value = value.get(key)
        return value

    def text(self, *keys: str) -> str:
        """The value below `keys` as text without blanks around it; "" where it is not there."""
        value = self.get(*keys)
        return (
            ""
            if value is None or isinstance(value, dict | list)
            else str(value).strip()
        )

    def line(self, *keys: str) -> int:
        """The line of the key, or of the nearest one above it; 0 for none."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 0)

    def finding(
        self,
        code: str,
        message: str,
        *keys: str,
        fix: str = "",
        cost: str = "",
        mistake: Mistake | None = None,
    ) -> Finding:
        """A finding at the key."""
        return Finding(
            code,
            message,
            fix=fix,
            file=self.shown,
            key=".".join(keys),
            line=self.line(*keys),
            cost=cost,
            mistake=mistake,
        )


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The text of a small file.

    Raises:
        Unreadable: absent, larger than `limit` bytes, or not UTF-8.
    """
    try:
        return read_bounded(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except InputError as error:
        raise Unreadable(str(error)) from None


def read_yaml(path: Path, shown: str = "") -> Document:
    """A YAML file.

    Raises:
        Unreadable: not YAML, several documents, tags of Python objects, too many values.
    """
    text = _shallow_text(path)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        raise Unreadable(f"{path} is not valid YAML: {_yaml_problem(error)}") from None
    except RecursionError:
        raise Unreadable(f"{path} nests too deeply; expected a few levels") from None
    reader = _NodeReader(path, loader)
    value = reader.read(root, ()) if root is not None else None
    return Document(
        path,
        shown or str(path),
        value,
        reader.lines,
        tuple(reader.repeated),
        tuple(reader.not_text),
    )


def read_json(path: Path, shown: str = "") -> Document:
    """A JSON file; lines are those where a key's name first occurs.

    Raises:
        Unreadable: not JSON.
    """
    text = _shallow_text(path)
    repeated: list[tuple[Keys, bool]] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                repeated.append(((key,), values[key] == value))
            values[key] = value
        return values

    try:
        value = json.loads(
            text,
            object_pairs_hook=mapping,
            parse_int=_integer,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path} is not valid JSON: {first_line(error)}") from None
    lines: dict[Keys, int] = {}
    for keys in _paths(value):
        place = text.find(json.dumps(keys[-1], ensure_ascii=False))
        if place >= 0:
            lines[keys] = text.count("\n", 0, place) + 1
    return Document(path, shown or str(path), value, lines, tuple(repeated))


def _shallow_text(path: Path) -> str:
    """The text of a file; one that nests deeply is refused before it is parsed.

    PyYAML takes seconds to give up on it, and what walks the values would run out of stack.
    """
    text = read_text(path)
    if _brackets(text) > MAX_DEPTH:
        raise Unreadable(f"{path} nests too deeply; expected a few levels")
    return text


def _brackets(text: str) -> int:
    """The most brackets that are open at once, those in quoted texts included."""
    depth = deepest = 0
    for sign in re.findall(r"[\[\]{}]", text):
        depth += 1 if sign in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _integer(text: str) -> int:
    number = int(text)
    if abs(number) > MAX_INTEGER:
        raise ValueError(f"a whole number of {len(text)} digits is too large")
    return number


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number of JSON")


def _paths(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*keys, key)
            yield from _paths(item, (*keys, key))


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or first_line(error)
    return f"{problem}, line {mark.line + 1}" if mark else str(problem)


@dataclass
class _NodeReader:
    """Turns composed nodes into plain values."""

    path: Path
    loader: yaml.SafeLoader
    lines: dict[Keys, int] = field(default_factory=dict)
    repeated: list[tuple[Keys, bool]] = field(default_factory=list)
    not_text: list[Keys] = field(default_factory=list)
    values: int = 0

    def read(self, node: yaml.Node, keys: Keys) -> Any:
        # Each visit counts, so an alias costs what it stands for.
        self.values += 1
        if self.values > MAX_VALUES or len(keys) > MAX_DEPTH:
            raise Unreadable(
                f"{self.path} holds more than {MAX_VALUES} values or {MAX_DEPTH} levels once its "
                "aliases are followed; write them out"
            )
        if isinstance(node, yaml.MappingNode):
            self._require_plain(node, "map")
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            self._require_plain(node, "seq")
            return [self.read(item, (*keys, "[]")) for item in node.value]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise Unreadable(
                    f"{self.path} has a key that is no text, line "
                    f"{key_node.start_mark.line + 1}"
                )
            key = key_node.value
            path = (*keys, key)
            if not isinstance(self._scalar(key_node), str):
                self.not_text.append(path)
            self.lines[path] = key_node.start_mark.line + 1
            value = self.read(value_node, path)
            if key in values:
                self.repeated.append((path, values[key] == value))
            values[key] = value
        return values

    def _scalar(self, node: yaml.Node) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind in ("str", "timestamp", "merge", "value"):
            return node.value
        self._require_plain(node, "int", "float", "bool", "null")
        try:
            value = self.loader.yaml_constructors[node.tag](self.loader, node)
        except (ValueError, KeyError, yaml.YAMLError):
            raise Unreadable(
                f"{self.path} has the value {node.value[:40]!r}, which is no {kind}, line "
                f"{node.start_mark.line + 1}"
            ) from None
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise Unreadable(
                f"{self.path} has a whole number that is too large, line "
                f"{node.start_mark.line + 1}"
            )
        return value

    def _require_plain(self, node: yaml.Node, *kinds: str) -> None:
        if node.tag.removeprefix("tag:yaml.org,2002:") not in kinds:
            raise Unreadable(
                f"{self.path} asks for an object ({node.tag}), line "
                f"{node.start_mark.line + 1}; repzoo reads plain values only"
            )
