"""Reading a pickle of tensors without running it: a small machine that knows data, and nothing that acts.

Python's own unpickler calls whatever a file names. This one has no call at all. It walks the opcodes (`pickletools.genops`, the
standard library's reader) and builds None, bool, int, float, str, bytes, list, tuple, dict and arrays; the few globals that stand
for these in files of NumPy, PyTorch and Paddle are matched by name (`_BUILDERS`). Settings that training scripts put beside the
weights (`argparse.Namespace`, configuration and log classes: `INERT`) become `Opaque` marks without content. Every other global
ends the reading with a `Refused` that names it.

Bounds: no more than MAX_STEPS opcodes; integers of at most MAX_BITS bits; copies of text at most as long as the file; array sizes
checked against the bytes that are there; no element is hashed but plain keys. Time and memory grow with the file, and no deeper
nesting of the content makes any of this recurse.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

MAX_STEPS = 4_000_000  # a training checkpoint of 3,000 tensors with its optimiser and EMA has about 400,000
MAX_BITS = 128  # torch's magic number has 77
MAX_AXES = 16
MAX_SIDE = 2**48

AnyArray = npt.NDArray[Any]


class Refused(Exception):
    """The bytes are not a pickle of data alone; the message says why, without the file's name."""


class Readable(Protocol):
    """A binary file that never allocates more than it holds: BytesIO or mmap."""

    def read(self, n: int = -1, /) -> bytes:
        """At most `n` bytes."""

    def readline(self) -> bytes:
        """Up to the next line end."""

    def tell(self) -> int:
        """Position."""


@dataclass(frozen=True)
class StorageRef:
    """What a torch pickle says of one storage: the element type and the key of its bytes, `count` elements."""

    dtype: np.dtype[Any]
    key: str
    count: int


Storages = Callable[[StorageRef], AnyArray]  # -> its elements, one axis; raises Refused


@dataclass
class Array:
    """An array of the file; None until its content has been read."""

    value: AnyArray | None = None


@dataclass(frozen=True)
class Opaque:
    """Something that is not data and was not built: `name` is the global that the file gives."""

    name: str


@dataclass(frozen=True)
class _Global:
    name: str


_MARK = object()
_BF16 = np.dtype(ml_dtypes.bfloat16)
_STORAGE = {
    "Float": np.dtype("<f4"), "Double": np.dtype("<f8"), "Half": np.dtype("<f2"), "BFloat16": _BF16, "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"), "Short": np.dtype("<i2"), "Char": np.dtype("i1"), "Byte": np.dtype("u1"), "Bool": np.dtype("?"),
}  # fmt: skip
INERT = (
    "argparse.Namespace", "types.SimpleNamespace", "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath",
    "datetime.datetime", "datetime.timedelta", "builtins.set", "builtins.frozenset", "builtins.object", "builtins.complex",
    "torch.device", "torch.dtype", "numpy.random._pickle.__randomstate_ctor", "copy_reg._reconstructor", "copyreg._reconstructor",
    "builtins.slice", "__builtin__.object", "__builtin__.set",
)  # fmt: skip
INERT_PACKAGES = (
    "yacs.config", "omegaconf", "mmcv.utils.config", "mmengine.config", "mmengine.logging", "addict", "easydict", "timm.optim",
    "timm.scheduler", "torch.optim", "pytorch_lightning.utilities", "pytorch_lightning.callbacks", "lightning_fabric.utilities",
    "lightning.fabric.utilities", "lightning.pytorch.callbacks",
)  # fmt: skip
_TORCH_DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def unpickle(file: Readable, length: int, storages: Storages | None = None) -> Any:
    """The data of the next pickle in `file`, whose position is left behind it.

    length    bytes of the whole file, the measure of all bounds
    storages  gives the elements of a torch storage; None where persistent ids have no business

    Returns:
        Plain Python data; arrays as `Array`, what is not data as `Opaque`.

    Raises:
        Refused: not a pickle, cut short, or more than data.
    """
    machine = _Machine(length, storages)
    steps = 0
    try:
        for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
            steps += 1
            if steps > MAX_STEPS:
                raise Refused(f"its pickle has more than {MAX_STEPS:,} steps, which no checkpoint needs")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, UnicodeError, MemoryError) as error:
        why = str(error).splitlines()[0][:100] if isinstance(error, ValueError) and str(error) else "a step does not fit its content"
        raise Refused(f"its pickle is damaged, cut short or not a pickle ({why})") from None
    raise Refused("its pickle has no end")


class _Machine:
    """The stack, the memo, and one method a kind of opcode."""

    def __init__(self, length: int, storages: Storages | None) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._budget = length + 2**16  # bytes of text that may be copied, elements that may be listed again
        self._storages = storages

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(_literal(name, argument))
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise Refused(f"its pickle uses the opcode {name}, which data does not need")

    def marked(self) -> list[Any]:
        """What lies above the topmost mark, which goes too."""
        items: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def drop(self) -> None:
        self._stack.pop()

    def drop_marked(self) -> None:
        self.marked()

    def spend(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise Refused("its pickle unpacks to more than the file holds")

    # Containers

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def tuple_of(self, count: int | None) -> None:
        items = self.marked() if count is None else [self.pop() for _ in range(count)][::-1]
        self._stack.append(tuple(items))

    def dict_of(self) -> None:
        items = self.marked()
        found: dict[Any, Any] = {}
        _fill(found, items[0::2], items[1::2])
        self._stack.append(found)

    def append(self, items: list[Any]) -> None:
        self._list().extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Opaque):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items for something that is no table")
        _fill(target, items[0::2], items[1::2])

    def _list(self) -> list[Any]:
        target = self._stack[-1]
        if isinstance(target, Opaque):
            return []
        if not isinstance(target, list):
            raise ValueError("elements for something that is no list")
        return target

    # The memo

    def put(self, index: int | None) -> None:
        if self._stack[-1] is _MARK:
            raise ValueError("a mark where a value belongs")
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    # Globals and what is made of them: by name only

    def global_(self, name: str) -> None:
        self._stack.append(_Global(_admitted(name)))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global without a name")
        self.global_(f"{module} {name}")

    def reduce(self) -> None:
        arguments, target = self.pop(), self.pop()
        if isinstance(target, Opaque):
            self._stack.append(target)
            return
        if not isinstance(target, _Global) or not isinstance(arguments, tuple):
            raise Refused("its pickle calls something that it made itself")
        self._stack.append(self._built(target.name, arguments))

    def _built(self, name: str, arguments: tuple[Any, ...]) -> Any:
        builder = _BUILDERS.get(name)
        return builder(self, *arguments) if builder else Opaque(name)

    def new_object(self, with_keywords: bool) -> None:
        if with_keywords:
            self.pop()
        self.pop()
        target = self.pop()
        if not isinstance(target, _Global) or target.name in _BUILDERS:
            raise Refused("its pickle makes an object of something that is not a class of settings")
        self._stack.append(Opaque(target.name))

    def build(self) -> None:
        """Give an object its state: an array its content; settings and tables nothing."""
        state, target = self.pop(), self._stack[-1]
        if isinstance(target, Array):
            target.value = _from_state(state)
        elif isinstance(target, _DType):
            target.set_order(state)
        elif not isinstance(target, Opaque | dict):
            raise Refused("its pickle sets the state of something that has none")

    def persistent(self) -> None:
        """torch: ("storage", type, key, device, element count[, view])."""
        given = self.pop()
        if self._storages is None:
            raise Refused("its pickle refers to bytes outside of it, which only PyTorch's own format has")
        if not isinstance(given, tuple) or len(given) not in (5, 6) or given[0] != "storage":
            raise Refused("it refers to a storage in an unknown way")
        kind, key, count = given[1], given[2], given[4]
        if not isinstance(kind, _Global) or not isinstance(key, str) or not _is_count(count):
            raise Refused("it refers to a storage in an unknown way")
        if len(given) == 6 and given[5] is not None:
            raise Refused("it holds views of storages in the form of torch before 0.4; load and save it with a newer torch")
        self._stack.append(StorageRef(_storage_dtype(kind.name), key, count))

    def storage(self, reference: Any) -> AnyArray:
        if not isinstance(reference, StorageRef) or self._storages is None:
            raise Refused("a tensor without a storage")
        return self._storages(reference)


def _literal(name: str, argument: Any) -> Any:
    if name in ("NONE", "NEWTRUE", "NEWFALSE"):
        return {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name]
    if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
        raise Refused(f"its pickle holds an integer of {argument.bit_length():,} bits, which no checkpoint needs")
    return argument


_LITERALS = frozenset(
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES"
    " SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "MARK": lambda machine, argument: machine.push(_MARK),
    "POP": lambda machine, argument: machine.drop(),
    "POP_MARK": lambda machine, argument: machine.drop_marked(),
    "EMPTY_LIST": lambda machine, argument: machine.push([]),
    "EMPTY_SET": lambda machine, argument: machine.push([]),
    "EMPTY_DICT": lambda machine, argument: machine.push({}),
    "EMPTY_TUPLE": lambda machine, argument: machine.push(()),
    "LIST": lambda machine, argument: machine.push(machine.marked()),
    "FROZENSET": lambda machine, argument: machine.push(machine.marked()),
    "TUPLE": lambda machine, argument: machine.tuple_of(None),
    "TUPLE1": lambda machine, argument: machine.tuple_of(1),
    "TUPLE2": lambda machine, argument: machine.tuple_of(2),
    "TUPLE3": lambda machine, argument: machine.tuple_of(3),
    "DICT": lambda machine, argument: machine.dict_of(),
    "APPEND": lambda machine, argument: machine.append([machine.pop()]),
    "APPENDS": lambda machine, argument: machine.append(machine.marked()),
    "ADDITEMS": lambda machine, argument: machine.append(machine.marked()),
    "SETITEM": lambda machine, argument: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, argument: machine.set_items(machine.marked()),
    "GET": lambda machine, argument: machine.get(int(argument)),
    "BINGET": lambda machine, argument: machine.get(argument),
    "LONG_BINGET": lambda machine, argument: machine.get(argument),
    "PUT": lambda machine, argument: machine.put(int(argument)),
    "BINPUT": lambda machine, argument: machine.put(argument),
    "LONG_BINPUT": lambda machine, argument: machine.put(argument),
    "MEMOIZE": lambda machine, argument: machine.put(None),
    "GLOBAL": lambda machine, argument: machine.global_(argument),
    "STACK_GLOBAL": lambda machine, argument: machine.stack_global(),
    "REDUCE": lambda machine, argument: machine.reduce(),
    "NEWOBJ": lambda machine, argument: machine.new_object(with_keywords=False),
    "NEWOBJ_EX": lambda machine, argument: machine.new_object(with_keywords=True),
    "BUILD": lambda machine, argument: machine.build(),
    "BINPERSID": lambda machine, argument: machine.persistent(),
}


def _fill(table: dict[Any, Any], keys: Sequence[Any], values: Sequence[Any]) -> None:
    if len(keys) != len(values):
        raise ValueError("a key without a value")
    for key, value in zip(keys, values, strict=True):
        if not isinstance(key, str | int | float | bytes | None):
            continue  # a table of settings, such as of optimisers: hashing its keys could take for ever
        if key in table:
            raise Refused(f"it gives {str(key)[:80]!r} twice")
        table[key] = value


def _admitted(name: str) -> str:
    """ "module.name" of the global "module name", if data or settings have it."""
    module, _, attribute = name.partition(" ")
    dotted = f"{module}.{attribute}"
    if module == "torch" and attribute.endswith("Storage"):
        _storage_dtype(dotted)
        return dotted
    if dotted in _BUILDERS or dotted in INERT or dotted in _KNOWN or (module == "torch" and attribute in _TORCH_DTYPES):
        return dotted
    if "." not in attribute and any(module == one or module.startswith(f"{one}.") for one in INERT_PACKAGES):
        return dotted
    raise Refused(
        f"it names {dotted[:80]!r}, which is no data: nothing of it was run; if you trust its source, "
        "save the table of tensors alone (torch.save(model.state_dict(), F)) and give that"
    )


_KNOWN = frozenset({"numpy.ndarray", "torch.nn.parameter.Parameter", "torch.Tensor"})


def _storage_dtype(name: str) -> np.dtype[Any]:
    kind = name.removeprefix("torch.").removesuffix("Storage")
    if kind not in _STORAGE:
        raise Refused(f"it holds a storage of type {name[:80]!r}; read are {', '.join(sorted(_STORAGE))}")
    return _STORAGE[kind]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_SIDE


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > MAX_AXES or not all(_is_count(side) for side in value):
        raise Refused("an array whose shape is not a short row of counts")
    return tuple(value)


# What NumPy, PyTorch and Paddle write for data. Each takes the arguments that the file gives and checks them.


def _tuple(machine: _Machine, items: Any = ()) -> tuple[Any, ...]:
    if not isinstance(items, tuple | list):
        raise ValueError("a tuple of no items")
    machine.spend(len(items))
    return tuple(items)


def _table(machine: _Machine, items: Any = ()) -> dict[Any, Any]:
    pairs: Iterable[Any] = items.items() if isinstance(items, dict) else items
    if not isinstance(items, dict | list | tuple):
        raise ValueError("a table of no items")
    machine.spend(len(items))
    found: dict[Any, Any] = {}
    for pair in pairs:
        key, value = pair
        _fill(found, [key], [value])
    return found


def _default_table(machine: _Machine, factory: Any = None) -> dict[Any, Any]:
    return {}


def _encode(machine: _Machine, text: Any, encoding: Any = "latin1") -> bytes:
    """How protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("text that is not latin-1")
    machine.spend(len(text))
    return text.encode("latin-1")


def _paddle_eval(machine: _Machine, text: Any = None, names: Any = None) -> Any:
    """Paddle writes a dense tensor as `eval("data", {"data": array})`. That one form is matched; nothing is evaluated."""
    if text != "data" or not isinstance(names, dict) or list(names) != ["data"] or not isinstance(names["data"], Array):
        raise Refused("it names 'builtins.eval', which is no data: nothing of it was run")
    return names["data"]


class _DType:
    """numpy.dtype being read: first its kind, then its byte order."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def set_order(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise Refused("an array whose element type is not plain")
        if any(part is not None for part in state[2:5]):
            raise Refused("an array whose elements are records")
        self.dtype = self.dtype.newbyteorder({"=": "<"}.get(state[1], state[1]))


def _dtype(machine: _Machine, code: Any, *flags: Any) -> _DType:
    if code == "bfloat16":
        return _DType(_BF16)
    if isinstance(code, str) and code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
        return _DType(np.dtype(code))
    raise Refused(f"an array of elements {str(code)[:20]!r}; read are real numbers of 1 to 8 bytes")


def _blank(machine: _Machine, kind: Any, shape: Any, code: Any) -> Array:
    if not isinstance(kind, _Global) or kind.name != "numpy.ndarray":
        raise Refused("an array of a class of its own")
    return Array()


def _from_state(state: Any) -> AnyArray:
    """numpy.ndarray's state: (version, shape, dtype, in Fortran order, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _DType):
        raise Refused("an array whose state is not NumPy's")
    _, shape, kind, fortran, data = state
    return _from_bytes(data, kind.dtype, shape, "F" if fortran else "C")


def _from_bytes(data: Any, dtype: np.dtype[Any], shape: Any, order: Any) -> AnyArray:
    sides = _shape(shape)
    if not isinstance(data, bytes | bytearray) or math.prod(sides) * dtype.itemsize != len(data):
        raise Refused(f"an array of shape {sides} and type {dtype} whose bytes are not that many")
    if order not in ("C", "F"):
        raise Refused("an array in an unknown order")
    return np.frombuffer(data, dtype).reshape(sides, order=order)


def _buffer(machine: _Machine, data: Any, kind: Any, shape: Any, order: Any) -> Array:
    if not isinstance(kind, _DType):
        raise Refused("an array whose element type is not plain")
    return Array(_from_bytes(data, kind.dtype, shape, order))


def _scalar(machine: _Machine, kind: Any, data: Any) -> Any:
    """A NumPy number, such as an accuracy beside the weights, as Python's."""
    if not isinstance(kind, _DType):
        raise Refused("a number whose type is not plain")
    return _from_bytes(data, kind.dtype, (), "C").item()


def _tensor(machine: _Machine, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Array:
    """A view of a storage, within its bounds, and with no more elements than it: a tensor of torch never needs more."""
    sides, steps = _shape(size), _shape(stride)
    elements = machine.storage(storage)
    if not _is_count(offset) or len(sides) != len(steps):
        raise Refused("a tensor whose offset or strides are not counts")
    count = math.prod(sides)
    last = offset + sum((side - 1) * step for side, step in zip(sides, steps, strict=True)) if count else offset
    if count > len(elements) or (count and last >= len(elements)):
        raise Refused(f"a tensor of shape {sides} that reaches beyond its storage of {len(elements)} elements")
    if not count:
        return Array(np.empty(sides, elements.dtype))
    if not elements.strides[0]:  # a stand-in for bytes that come later in the file
        return Array()
    width = elements.itemsize
    view = np.lib.stride_tricks.as_strided(elements[offset:], sides, [step * width for step in steps], writeable=False)
    return Array(view)


def _parameter(machine: _Machine, data: Any, *rest: Any) -> Array:
    if not isinstance(data, Array):
        raise Refused("a parameter without a tensor")
    return data


_TENSOR_REBUILDS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")


def _typed_tensor(machine: _Machine, rebuild: Any, kind: Any, arguments: Any, state: Any) -> Array:
    """A tensor of a subclass: its data alone."""
    if not isinstance(rebuild, _Global) or rebuild.name not in _TENSOR_REBUILDS or not isinstance(arguments, tuple):
        raise Refused("a tensor of a class of its own")
    return _tensor(machine, *arguments)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "builtins.tuple": _tuple, "__builtin__.tuple": _tuple, "builtins.list": lambda machine, items=(): list(_tuple(machine, items)),
    "builtins.dict": _table, "torch.Size": _tuple,
    "collections.OrderedDict": _table, "collections.Counter": _table, "collections.defaultdict": _default_table,
    "_codecs.encode": _encode, "builtins.eval": _paddle_eval, "__builtin__.eval": _paddle_eval,
    "numpy.dtype": _dtype,
    **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), _blank),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _buffer),
    **dict.fromkeys(_TENSOR_REBUILDS, _tensor),
    "torch._utils._rebuild_parameter": _parameter, "torch._tensor._rebuild_from_type_v2": _typed_tensor,
}  # fmt: skip
