"""Read a pickle of tensors without executing it.

Python's unpickler calls whatever a file names. This one calls nothing. It walks the opcodes
with the standard library's `pickletools.genops` and builds None, bool, int, float, str, bytes,
list, tuple, dict and arrays. A few globals stand for these types in files of NumPy, PyTorch and
Paddle; they are matched by name (`pickle_allowlist.BUILDERS`). Settings that training scripts
store beside the weights (`argparse.Namespace`, configuration and log classes:
`pickle_allowlist.INERT`) become `Opaque` placeholders. Any other global is `Refused` by name.

Limits: MAX_STEPS opcodes; integers of MAX_BITS bits; copies of text no longer than the file; array
sizes compared with the bytes that are there; only plain keys are hashed. Time and memory grow
linearly with the file, and deep nesting does not recurse.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, Protocol

from repzoo.zoo.pickle_allowlist import (
    BUILDERS,
    AnyArray,
    Array,
    DType,
    Global,
    Opaque,
    Refused,
    StorageRef,
    Storages,
    admitted,
    array_from_state,
    fill,
    is_count,
    storage_dtype,
)

# A training checkpoint of 3,000 tensors with its optimizer and EMA takes about 400,000 opcodes.
MAX_STEPS = 2_000_000
MAX_BITS = 128  # torch's magic number has 77
# Besides the file's length: what a small file may copy.
COPY_ALLOWANCE = 2**16

_MARK = object()


class Readable(Protocol):
    """A binary file that never allocates more than it holds: BytesIO or mmap."""

    def read(self, n: int = -1, /) -> bytes:
        """At most `n` bytes."""

    def readline(self) -> bytes:
        """Up to the next line end."""

    def tell(self) -> int:
        """Position."""


# What damaged content makes the steps below raise.
_DAMAGE = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    UnicodeError,
    MemoryError,
)


def unpickle(file: Readable, length: int, storages: Storages | None = None) -> Any:
    """The data of the next pickle in `file`. The position is left behind it.

    length    bytes of the whole file; all limits are relative to it
    storages  returns the elements of a torch storage; None if the format has no storages

    Returns:
        Plain Python data, with arrays as `Array` and anything that is not data as `Opaque`.

    Raises:
        Refused: not a pickle, truncated, or more than data.
    """
    machine = _Machine(length, storages)
    steps = 0
    try:
        for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
            steps += 1
            if steps > MAX_STEPS:
                raise Refused(
                    f"its pickle has more than {MAX_STEPS:,} steps, which no checkpoint needs"
                )
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except _DAMAGE as error:
        why = "a step does not fit its content"
        if isinstance(error, ValueError) and str(error):
            why = str(error).splitlines()[0][:100]
        raise Refused(
            f"its pickle is damaged, truncated or not a pickle ({why})"
        ) from None
    raise Refused("its pickle has no end")


class _Machine:
    """The pickle machine: a stack, a memo, and one method per kind of opcode.

    Source of the opcodes: Python's Lib/pickletools.py.
    """

    def __init__(self, length: int, storages: Storages | None) -> None:
        self._stack: list[Any] = []
        # A dict, since a file may name any index: a list would have to be as long as the largest.
        self._memo: dict[int, Any] = {}
        # Bytes of text that may still be copied, and elements that may be listed again.
        self._budget = length + COPY_ALLOWANCE
        self._storages = storages

    def pop(self) -> Any:
        """Remove and return the top of the stack."""
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        if name in _LITERALS:
            self._stack.append(_literal(name, argument))
        elif name in _ACTIONS:
            _ACTIONS[name](self)
        elif name in _ACTIONS_WITH_ARGUMENT:
            _ACTIONS_WITH_ARGUMENT[name](self, argument)
        else:
            raise Refused(
                f"its pickle uses the opcode {name}, which data does not need"
            )

    def marked(self) -> list[Any]:
        """Remove and return what lies above the topmost mark. The mark is removed too."""
        items: list[Any] = []
        value = self._stack.pop()
        while value is not _MARK:
            items.append(value)
            value = self._stack.pop()
        return items[::-1]

    def drop(self) -> None:
        """Remove the top of the stack."""
        self._stack.pop()

    def drop_marked(self) -> None:
        """Remove everything above the topmost mark, and the mark."""
        self.marked()

    def spend(self, count: int) -> None:
        """Account for `count` copied bytes or elements."""
        self._budget -= count
        if self._budget < 0:
            raise Refused("its pickle unpacks to more than the file holds")

    # Containers

    def push(self, value: Any) -> None:
        """Put `value` on the stack."""
        self._stack.append(value)

    def tuple_of(self, count: int) -> None:
        """Replace the top `count` values by a tuple of them."""
        items = [self.pop() for _ in range(count)]
        self._stack.append(tuple(items[::-1]))

    def dict_of(self) -> None:
        """Replace keys and values above the mark by a dict."""
        items = self.marked()
        table: dict[Any, Any] = {}
        fill(table, items[0::2], items[1::2])
        self._stack.append(table)

    def append(self, items: list[Any]) -> None:
        """Append `items` to the list on top of the stack."""
        self._list().extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add `items` (key, value, key, value, ...) to the dict on top of the stack."""
        target = self._stack[-1]
        # What a settings object holds is dropped with it.
        if isinstance(target, Opaque):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items for something that is no table")
        fill(target, items[0::2], items[1::2])

    def _list(self) -> list[Any]:
        target = self._stack[-1]
        if isinstance(target, Opaque):
            return []
        if not isinstance(target, list):
            raise ValueError("elements for something that is no list")
        return target

    # The memo

    def put(self, index: int) -> None:
        """Remember the top of the stack under `index`."""
        if self._stack[-1] is _MARK:
            raise ValueError("a mark where a value belongs")
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        """Remember the top of the stack under the next free index."""
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        """Push what was remembered under `index`."""
        self._stack.append(self._memo[index])

    # Globals and what is made of them: by name only

    def global_(self, name: str) -> None:
        """Push the name of the allowed global "module name", not the object."""
        self._stack.append(Global(admitted(name)))

    def stack_global(self) -> None:
        """Like `global_`, with module and name on the stack."""
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global without a name")
        self.global_(f"{module} {name}")

    def reduce(self) -> None:
        """Replace (callable, arguments) by what the allow-list builds for them."""
        arguments, target = self.pop(), self.pop()
        if isinstance(target, Opaque):
            self._stack.append(target)
            return
        if not isinstance(target, Global) or not isinstance(arguments, tuple):
            raise Refused("its pickle calls something that it made itself")
        self._stack.append(self._built(target.name, arguments))

    def _built(self, name: str, arguments: tuple[Any, ...]) -> Any:
        builder = BUILDERS.get(name)
        return builder(self, *arguments) if builder else Opaque(name)

    def new_object(self, with_keywords: bool) -> None:
        """Replace (class, arguments) by an empty placeholder."""
        if with_keywords:
            self.pop()
        self.pop()
        target = self.pop()
        if not isinstance(target, Global) or target.name in BUILDERS:
            raise Refused(
                "its pickle makes an object of something that is not a class of settings"
            )
        self._stack.append(Opaque(target.name))

    def build(self) -> None:
        """Set the state of an object: the content of an array. Placeholders and dicts ignore it."""
        state, target = self.pop(), self._stack[-1]
        if isinstance(target, Array):
            target.value = array_from_state(state)
        elif isinstance(target, DType):
            target.set_order(state)
        elif not isinstance(target, Opaque | dict):
            raise Refused("its pickle sets the state of something that has none")

    def persistent(self) -> None:
        """Push a torch storage: ("storage", type, key, device, element count[, view])."""
        reference = self.pop()
        if self._storages is None:
            raise Refused(
                "its pickle refers to bytes outside of it, which only PyTorch's own format has"
            )
        if not isinstance(reference, tuple) or len(reference) not in (5, 6):
            raise Refused("it refers to a storage in an unknown way")
        tag, kind, key, _device, count = reference[:5]
        if tag != "storage":
            raise Refused("it refers to a storage in an unknown way")
        if (
            not isinstance(kind, Global)
            or not isinstance(key, str)
            or not is_count(count)
        ):
            raise Refused("it refers to a storage in an unknown way")
        if len(reference) == 6 and reference[5] is not None:
            raise Refused(
                "it holds views of storages in the form of torch before 0.4; load and save it with "
                "a newer torch"
            )
        self._stack.append(StorageRef(storage_dtype(kind.name), key, count))

    def storage(self, reference: Any) -> AnyArray:
        """The elements of a torch storage."""
        if not isinstance(reference, StorageRef) or self._storages is None:
            raise Refused("a tensor without a storage")
        return self._storages(reference)


def _literal(name: str, argument: Any) -> Any:
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
        raise Refused(
            f"its pickle holds an integer of {argument.bit_length():,} bits, which no checkpoint "
            "needs"
        )
    return argument


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_FLOATS = ("FLOAT", "BINFLOAT")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_TEXTS = (
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
)
_LITERALS = frozenset((*_CONSTANTS, *_INTEGERS, *_FLOATS, *_BYTES, *_TEXTS))
_ACTIONS: dict[str, Callable[[_Machine], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda _machine: None),
    "MARK": lambda machine: machine.push(_MARK),
    "POP": lambda machine: machine.drop(),
    "POP_MARK": lambda machine: machine.drop_marked(),
    "EMPTY_LIST": lambda machine: machine.push([]),
    # Sets stand in settings only. As lists they cost no hashing.
    "EMPTY_SET": lambda machine: machine.push([]),
    "EMPTY_DICT": lambda machine: machine.push({}),
    "EMPTY_TUPLE": lambda machine: machine.push(()),
    "LIST": lambda machine: machine.push(machine.marked()),
    "FROZENSET": lambda machine: machine.push(machine.marked()),
    "TUPLE": lambda machine: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine: machine.tuple_of(1),
    "TUPLE2": lambda machine: machine.tuple_of(2),
    "TUPLE3": lambda machine: machine.tuple_of(3),
    "DICT": lambda machine: machine.dict_of(),
    "APPEND": lambda machine: machine.append([machine.pop()]),
    "APPENDS": lambda machine: machine.append(machine.marked()),
    "ADDITEMS": lambda machine: machine.append(machine.marked()),
    "SETITEM": lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine: machine.set_items(machine.marked()),
    "MEMOIZE": lambda machine: machine.memoize(),
    "STACK_GLOBAL": lambda machine: machine.stack_global(),
    "REDUCE": lambda machine: machine.reduce(),
    "NEWOBJ": lambda machine: machine.new_object(with_keywords=False),
    "NEWOBJ_EX": lambda machine: machine.new_object(with_keywords=True),
    "BUILD": lambda machine: machine.build(),
    "BINPERSID": lambda machine: machine.persistent(),
}
_ACTIONS_WITH_ARGUMENT: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"),
        lambda machine, argument: machine.get(int(argument)),
    ),
    **dict.fromkeys(
        ("PUT", "BINPUT", "LONG_BINPUT"),
        lambda machine, argument: machine.put(int(argument)),
    ),
    "GLOBAL": lambda machine, argument: machine.global_(argument),
}
