"""Serialize a model one weight at a time: hashing and writing need no second copy of the whole.

Source: protobuf's encoding (protobuf.dev/programming-guides/encoding). Fields are written in
the order of their numbers; a nested message is its key, its length as a varint, then its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import onnx
from google.protobuf.message import Message

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_LENGTH_DELIMITED = 2

Kind = TypeVar("Kind", bound=Message)


def chunks(model: onnx.ModelProto, **replaced: Sequence[Message]) -> Iterator[bytes]:
    """`model.SerializeToString(deterministic=True)` in pieces.

    replaced  lists that take the place of the model's own fields of those names

    Fields that this version of ONNX does not know are left out.
    """
    graph = model.graph
    head = _part(graph, lambda number: number < _INITIALIZER)
    tail = _part(graph, lambda number: number > _INITIALIZER)
    # The length of the graph stands before its bytes, so all sizes are needed first.
    length = len(head) + len(tail)
    keys: list[bytes] = []
    for item in graph.initializer:
        size = item.ByteSize()  # takes as long as writing it
        keys.append(_key(_INITIALIZER, size))
        length += len(keys[-1]) + size
    yield _part(model, lambda number: number < _GRAPH, **replaced)
    if model.HasField("graph"):
        yield _key(_GRAPH, length) + head
        for key, item in zip(keys, graph.initializer, strict=True):
            yield key
            yield item.SerializeToString(deterministic=True)
        yield tail
    yield _part(model, lambda number: number > _GRAPH, **replaced)


def clone(message: Kind) -> Kind:
    """A deep copy of `message`."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def without(message: Kind, *names: str) -> Kind:
    """A copy of `message` without the fields `names`, which are never copied."""
    copy = type(message)()
    for field, value in message.ListFields():
        if field.name not in names:
            _set(copy, field.name, value)
    return copy


def _part(
    message: Message, chosen: Callable[[int], bool], **replaced: Sequence[Message]
) -> bytes:
    """The bytes of the fields whose numbers are `chosen`."""
    fields = type(message).DESCRIPTOR.fields
    omitted = [field.name for field in fields if not chosen(field.number)]
    part = without(message, *omitted, *replaced)
    for name, values in replaced.items():
        if name not in omitted:
            _set(part, name, values)
    return bytes(part.SerializeToString(deterministic=True))


def _set(message: Message, name: str, value: object) -> None:
    # protobuf refuses assignments to messages and lists.
    if isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    elif isinstance(value, str | bytes | int | float):
        setattr(message, name, value)
    else:
        getattr(message, name).extend(value)


def _key(number: int, length: int) -> bytes:
    """A field's number and wire type, then the length of what follows."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    """Seven bits per byte, lowest first. The eighth bit says that more bytes follow."""
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
