"""The allow-list of `unpickle`: what NumPy, PyTorch and Paddle write for data, matched by name and built from checked arguments.

Nothing here calls what a file names. A name has a builder of ours (`BUILDERS`), or stands for settings that are left empty
(`INERT`), or ends the reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

MAX_AXES = 16
MAX_SIDE = 2**48

AnyArray = npt.NDArray[Any]


class Refused(Exception):
    """The bytes are not a pickle of data alone; the message says why, without the file's name."""


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
class Global:
    """A name that the file gives and the allow-list has: a mark, never the thing."""

    name: str


class Reading(Protocol):
    """What builders ask of the machine."""

    def spend(self, count: int) -> None:
        """Account for `count` copied bytes or elements; raises Refused when they are more than the file can hold."""

    def storage(self, reference: Any) -> AnyArray:
        """The elements of a torch storage; raises Refused."""


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
_TORCH_DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)


def fill(table: dict[Any, Any], keys: Sequence[Any], values: Sequence[Any]) -> None:
    """Add items to `table`; raises Refused when a key is there already."""
    if len(keys) != len(values):
        raise ValueError("a key without a value")
    for key, value in zip(keys, values, strict=True):
        if not isinstance(key, str | int | float | bytes | None):
            continue  # a table of settings, such as of optimizers: hashing its keys could take for ever
        if key in table:
            raise Refused(f"it gives {str(key)[:80]!r} twice")
        table[key] = value


def admitted(name: str) -> str:
    """ "module.name" of the global "module name", if data or settings have it."""
    module, _, attribute = name.partition(" ")
    dotted = f"{module}.{attribute}"
    if module == "torch" and attribute.endswith("Storage") and "." not in attribute:
        storage_dtype(dotted)
        return dotted
    plain = "." not in attribute
    if plain and (
        dotted in BUILDERS
        or dotted in INERT
        or dotted in _KNOWN
        or (module == "torch" and attribute in _TORCH_DTYPES)
    ):
        return dotted
    if plain and any(module == one or module.startswith(f"{one}.") for one in INERT_PACKAGES):
        return dotted
    raise Refused(
        f"it names {dotted[:80]!r}, which is no data: nothing of it was run; if you trust its source, "
        "save the table of tensors alone (torch.save(model.state_dict(), F)) and give that"
    )


_KNOWN = frozenset({"numpy.ndarray", "torch.nn.parameter.Parameter", "torch.Tensor"})


def storage_dtype(name: str) -> np.dtype[Any]:
    """The element type of torch's storage class `name`; raises Refused."""
    kind = name.removeprefix("torch.").removesuffix("Storage")
    if kind not in _STORAGE:
        raise Refused(
            f"it holds a storage of type {name[:80]!r}; read are {', '.join(sorted(_STORAGE))}"
        )
    found: np.dtype[Any] = _STORAGE[kind]
    return found


def is_count(value: Any) -> bool:
    """Whether `value` is an integer from 0 to far beyond any array."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_SIDE


def _shape(value: Any) -> tuple[int, ...]:
    if (
        not isinstance(value, tuple | list)
        or len(value) > MAX_AXES
        or not all(is_count(side) for side in value)
    ):
        raise Refused("an array whose shape is not a short row of counts")
    return tuple(value)


# What NumPy, PyTorch and Paddle write for data. Each takes the arguments that the file gives and checks them.


def _tuple(reading: Reading, items: Any = ()) -> tuple[Any, ...]:
    if not isinstance(items, tuple | list):
        raise ValueError("a tuple of no items")
    reading.spend(len(items))
    return tuple(items)


def _no_bytes(_reading: Reading) -> bytes:
    """How protocols 0 to 2 write b""; with an argument it would be a length."""
    return b""


def _table(reading: Reading, items: Any = ()) -> dict[Any, Any]:
    pairs: Iterable[Any] = items.items() if isinstance(items, dict) else items
    if not isinstance(items, dict | list | tuple):
        raise ValueError("a table of no items")
    reading.spend(len(items))
    found: dict[Any, Any] = {}
    for pair in pairs:
        key, value = pair
        fill(found, [key], [value])
    return found


def _default_table(_reading: Reading, _factory: Any = None) -> dict[Any, Any]:
    return {}


def _encode(reading: Reading, text: Any, encoding: Any = "latin1") -> bytes:
    """How protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("text that is not latin-1")
    reading.spend(len(text))
    return text.encode("latin-1")


def _paddle_eval(_reading: Reading, text: Any = None, names: Any = None) -> Any:
    """Paddle writes a dense tensor as `eval("data", {"data": array})`. That one form is matched; nothing is evaluated."""
    if (
        text != "data"
        or not isinstance(names, dict)
        or list(names) != ["data"]
        or not isinstance(names["data"], Array)
    ):
        raise Refused("it names 'builtins.eval', which is no data: nothing of it was run")
    return names["data"]


class DType:
    """numpy.dtype being read: first its kind, then its byte order."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def set_order(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise Refused("an array whose element type is not plain")
        if any(part is not None for part in state[2:5]):
            raise Refused("an array whose elements are records")
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


def _dtype(_reading: Reading, code: Any, *_flags: Any) -> DType:
    if code == "bfloat16":
        return DType(_BF16)
    if isinstance(code, str) and code in (
        "f2",
        "f4",
        "f8",
        "i1",
        "i2",
        "i4",
        "i8",
        "u1",
        "u2",
        "u4",
        "u8",
        "b1",
    ):
        return DType(np.dtype(code))
    raise Refused(f"an array of elements {str(code)[:20]!r}; read are real numbers of 1 to 8 bytes")


def _blank(_reading: Reading, kind: Any, _shape: Any, _code: Any) -> Array:
    if not isinstance(kind, Global) or kind.name != "numpy.ndarray":
        raise Refused("an array of a class of its own")
    return Array()


def array_from_state(state: Any) -> AnyArray:
    """numpy.ndarray's state: (version, shape, dtype, in Fortran order, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], DType):
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


def _buffer(_reading: Reading, data: Any, kind: Any, shape: Any, order: Any) -> Array:
    if not isinstance(kind, DType):
        raise Refused("an array whose element type is not plain")
    return Array(_from_bytes(data, kind.dtype, shape, order))


def _scalar(_reading: Reading, kind: Any, data: Any) -> Any:
    """A NumPy number, such as an accuracy beside the weights, as Python's."""
    if not isinstance(kind, DType):
        raise Refused("a number whose type is not plain")
    return _from_bytes(data, kind.dtype, (), "C").item()


def _tensor(
    reading: Reading, storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any
) -> Array:
    """A view of a storage, within its bounds, and with no more elements than it: a tensor of torch never needs more."""
    sides, steps = _shape(size), _shape(stride)
    elements = reading.storage(storage)
    if not is_count(offset) or len(sides) != len(steps):
        raise Refused("a tensor whose offset or strides are not counts")
    count = math.prod(sides)
    last = (
        offset + sum((side - 1) * step for side, step in zip(sides, steps, strict=True))
        if count
        else offset
    )
    if count > len(elements) or (count and last >= len(elements)):
        raise Refused(
            f"a tensor of shape {sides} that reaches beyond its storage of {len(elements)} elements"
        )
    if not count:
        return Array(np.empty(sides, elements.dtype))
    if not elements.strides[0]:  # a stand-in for bytes that come later in the file
        return Array()
    width = elements.itemsize
    view = np.lib.stride_tricks.as_strided(
        elements[offset:], sides, [step * width for step in steps], writeable=False
    )
    return Array(view)


def _parameter(_reading: Reading, data: Any, *_rest: Any) -> Array:
    if not isinstance(data, Array):
        raise Refused("a parameter without a tensor")
    return data


_TENSOR_REBUILDS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")


def _typed_tensor(reading: Reading, rebuild: Any, _kind: Any, arguments: Any, _state: Any) -> Array:
    """A tensor of a subclass: its data alone."""
    if (
        not isinstance(rebuild, Global)
        or rebuild.name not in _TENSOR_REBUILDS
        or not isinstance(arguments, tuple)
    ):
        raise Refused("a tensor of a class of its own")
    return _tensor(reading, *arguments)


BUILDERS: dict[str, Callable[..., Any]] = {
    "builtins.tuple": _tuple, "__builtin__.tuple": _tuple, "builtins.list": lambda reading, items=(): list(_tuple(reading, items)),
    "__builtin__.list": lambda reading, items=(): list(_tuple(reading, items)),
    "__builtin__.dict": _table,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,
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
