"""A model as the bytes of its file, one weight at a time: hashing and writing then need no second copy of the whole.

Source: protobuf's encoding (protobuf.dev/programming-guides/encoding): fields in the order of their numbers, a message inside
another as its key, its length as a varint, its bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import onnx
from google.protobuf.message import Message

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_LENGTH_DELIMITED = 2

Kind = TypeVar("Kind", bound=Message)


def chunks(model: onnx.ModelProto, **replaced: Sequence[Message]) -> Iterator[bytes]:
    """What `model.SerializeToString(deterministic=True)` gives, in pieces; the lists in `replaced` stand for its own fields.

    Fields that this version of ONNX does not know are left out.
    """
    graph = model.graph
    head, tail = (
        _part(graph, chosen)
        for chosen in (lambda number: number < _INITIALIZER, lambda number: number > _INITIALIZER)
    )
    keys = [_key(_INITIALIZER, item.ByteSize()) for item in graph.initializer]
    length = (
        len(head)
        + sum(map(len, keys))
        + sum(item.ByteSize() for item in graph.initializer)
        + len(tail)
    )
    yield _part(model, lambda number: number < _GRAPH, **replaced)
    if model.HasField("graph"):
        yield _key(_GRAPH, length) + head
        yield from itertools.chain.from_iterable(
            (key, item.SerializeToString(deterministic=True))
            for key, item in zip(keys, graph.initializer, strict=True)
        )
        yield tail
    yield _part(model, lambda number: number > _GRAPH, **replaced)


def without(message: Kind, *names: str) -> Kind:
    """A copy of `message` without the fields `names`, which are not copied on the way."""
    made = type(message)()
    for field, value in message.ListFields():
        if field.name not in names:
            _set(made, field.name, value)
    return made


def _part(message: Message, chosen: Callable[[int], bool], **replaced: Sequence[Message]) -> bytes:
    """The bytes of the fields whose numbers are `chosen`."""
    left_out = [field.name for field in type(message).DESCRIPTOR.fields if not chosen(field.number)]
    made = without(message, *left_out, *replaced)
    for name, values in replaced.items():
        if name not in left_out:
            _set(made, name, values)
    return bytes(made.SerializeToString(deterministic=True))


def _set(message: Message, name: str, value: object) -> None:
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
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
