"""The allow-list of `unpickle`: the names that NumPy, PyTorch and Paddle use for data.

Nothing here calls what a file names. A name either has a builder of ours (`BUILDERS`), which checks
its arguments, or stands for settings that become an empty placeholder (`INERT`), or is refused.
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
    """The bytes are not a pickle of data alone. The message says why, without the file's name."""


@dataclass(frozen=True)
class StorageRef:
    """A reference to a torch storage: element type, key of its bytes, number of elements."""

    dtype: np.dtype[Any]
    key: str
    count: int


# Returns the elements of a storage as a one-dimensional array. Raises Refused.
Storages = Callable[[StorageRef], AnyArray]


@dataclass
class Array:
    """An array of the file; None until its content has been read."""

    value: AnyArray | None = None


@dataclass(frozen=True)
class Opaque:
    """A placeholder for an object that is not data. `name` is the global that the file names."""

    name: str


@dataclass(frozen=True)
class Global:
    """An allowed name in the file. It is a name only and never the object."""

    name: str


class Reading(Protocol):
    """What builders need from the unpickling machine."""

    def spend(self, count: int) -> None:
        """Account for `count` copied bytes or elements. Raises Refused beyond the file's size."""

    def storage(self, reference: Any) -> AnyArray:
        """The elements of a torch storage; raises Refused."""


_BF16 = np.dtype(ml_dtypes.bfloat16)
# Little-endian, as torch stores them; `torch_files` handles the files that say otherwise.
_STORAGE = {
    "Float": np.dtype("<f4"),
    "Double": np.dtype("<f8"),
    "Half": np.dtype("<f2"),
    "BFloat16": _BF16,
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
# Settings and other objects that training scripts store beside the weights.
INERT = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "datetime.datetime",
    "datetime.timedelta",
    "builtins.set",
    "builtins.frozenset",
    "builtins.object",
    "builtins.complex",
    "builtins.slice",
    "__builtin__.object",
    "__builtin__.set",
    "torch.device",
    "torch.dtype",
    "numpy.random._pickle.__randomstate_ctor",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
)
# Packages whose classes are settings, optimizer or logger state.
INERT_PACKAGES = (
    "yacs.config",
    "omegaconf",
    "mmcv.utils.config",
    "mmengine.config",
    "mmengine.logging",
    "addict",
    "easydict",
    "timm.optim",
    "timm.scheduler",
    "torch.optim",
    "pytorch_lightning.utilities",
    "pytorch_lightning.callbacks",
    "lightning_fabric.utilities",
    "lightning.fabric.utilities",
    "lightning.pytorch.callbacks",
)
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
_NUMPY_CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
# Classes that are only compared with, never built.
_KNOWN = frozenset({"numpy.ndarray", "torch.nn.parameter.Parameter", "torch.Tensor"})


def fill(table: dict[Any, Any], keys: Sequence[Any], values: Sequence[Any]) -> None:
    """Add items to `table`. Raises Refused if a key is there already."""
    if len(keys) != len(values):
        raise ValueError("a key without a value")
    for key, value in zip(keys, values, strict=True):
        # Other keys occur in settings, such as an optimizer's. Hashing them could take forever.
        if not isinstance(key, str | int | float | bytes | None):
            continue
        if key in table:
            raise Refused(f"it gives {str(key)[:80]!r} twice")
        table[key] = value


def admitted(name: str) -> str:
    """The allowed global "module name" as "module.name".

    Raises:
        Refused: neither data nor settings.
    """
    module, _, attribute = name.partition(" ")
    dotted = f"{module}.{attribute}"
    # A name with dots would be looked up within an allowed class.
    if "." not in attribute:
        if module == "torch" and attribute.endswith("Storage"):
            storage_dtype(dotted)
            return dotted
        if dotted in BUILDERS or dotted in INERT or dotted in _KNOWN:
            return dotted
        if module == "torch" and attribute in _TORCH_DTYPES:
            return dotted
        if any(
            # With the dot: a module called `addict_evil` is no part of addict.
            module == name or module.startswith(f"{name}.")
            for name in INERT_PACKAGES
        ):
            return dotted
    raise Refused(
        f"it names {dotted[:80]!r}, which is no data: nothing of it was run; if you trust its "
        "source, save the table of tensors alone (torch.save(model.state_dict(), F)) and give that"
    )


def storage_dtype(name: str) -> np.dtype[Any]:
    """The element type of torch's storage class `name`. Raises Refused if unknown."""
    kind = name.removeprefix("torch.").removesuffix("Storage")
    if kind not in _STORAGE:
        raise Refused(
            f"it holds a storage of type {name[:80]!r}; supported are {', '.join(sorted(_STORAGE))}"
        )
    dtype: np.dtype[Any] = _STORAGE[kind]
    return dtype


def is_count(value: Any) -> bool:
    """Whether `value` is an integer from 0 to far beyond any array."""
    return (
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_SIDE
    )


def _shape(value: Any) -> tuple[int, ...]:
    is_short = isinstance(value, tuple | list) and len(value) <= MAX_AXES
    if not is_short or not all(is_count(side) for side in value):
        raise Refused("an array whose shape is not a short row of counts")
    return tuple(value)


# --- builders: each checks the arguments that the file gives --------------------------------------


def _tuple(reading: Reading, items: Any = ()) -> tuple[Any, ...]:
    if not isinstance(items, tuple | list):
        raise ValueError("a tuple of no items")
    # One remembered list can be copied many times: a small file could fill the memory.
    reading.spend(len(items))
    return tuple(items)


def _no_bytes(_reading: Reading) -> bytes:
    """Protocols 0 to 2 write b"" this way. With an argument it would be a length."""
    return b""


def _table(reading: Reading, items: Any = ()) -> dict[Any, Any]:
    pairs: Iterable[Any] = items.items() if isinstance(items, dict) else items
    if not isinstance(items, dict | list | tuple):
        raise ValueError("a table of no items")
    reading.spend(len(items))
    table: dict[Any, Any] = {}
    for pair in pairs:
        key, value = pair
        fill(table, [key], [value])
    return table


def _default_table(_reading: Reading, _factory: Any = None) -> dict[Any, Any]:
    # Its items follow in steps of their own, and the factory of missing items is never called.
    return {}


def _encode(reading: Reading, text: Any, encoding: Any = "latin1") -> bytes:
    """Protocols 0 to 2 write bytes this way."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("text that is not latin-1")
    reading.spend(len(text))
    return text.encode("latin-1")


def _paddle_eval(_reading: Reading, text: Any = None, names: Any = None) -> Any:
    """Paddle writes a dense tensor as `eval("data", {"data": array})`.

    This one form is matched. Nothing is evaluated.
    """
    is_known_form = (
        text == "data" and isinstance(names, dict) and list(names) == ["data"]
    )
    if not is_known_form or not isinstance(names["data"], Array):
        raise Refused(
            "it names 'builtins.eval', which is no data: nothing of it was run"
        )
    return names["data"]


class DType:
    """A numpy.dtype being read: first its kind, then its byte order."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def set_order(self, state: Any) -> None:
        """Set the byte order from numpy.dtype's pickled state."""
        if (
            not isinstance(state, tuple)
            or len(state) < 2
            or state[1] not in ("<", ">", "|", "=")
        ):
            raise Refused("an array whose element type is not plain")
        # The description of a subarray, then names and fields of records (numpy.dtype.__reduce__).
        if any(part is not None for part in state[2:5]):
            raise Refused("an array whose elements are records")
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


def _dtype(_reading: Reading, code: Any, *_flags: Any) -> DType:
    if code == "bfloat16":
        return DType(_BF16)
    if isinstance(code, str) and code in _NUMPY_CODES:
        return DType(np.dtype(code))
    raise Refused(
        f"an array of elements {str(code)[:20]!r}; supported are real numbers of 1 to 8 bytes"
    )


def _blank(_reading: Reading, kind: Any, _shape: Any, _code: Any) -> Array:
    # Shape and type are placeholders here: NumPy sends the true ones with the state.
    if not isinstance(kind, Global) or kind.name != "numpy.ndarray":
        raise Refused("an array of a class of its own")
    return Array()


def array_from_state(state: Any) -> AnyArray:
    """The array of numpy.ndarray's state: (version, shape, dtype, in Fortran order, bytes)."""
    if (
        not isinstance(state, tuple)
        or len(state) != 5
        or not isinstance(state[2], DType)
    ):
        raise Refused("an array whose state is not NumPy's")
    _, shape, kind, fortran, data = state
    return _from_bytes(data, kind.dtype, shape, "F" if fortran else "C")


def _from_bytes(data: Any, dtype: np.dtype[Any], shape: Any, order: Any) -> AnyArray:
    sides = _shape(shape)
    if not isinstance(data, bytes | bytearray) or math.prod(
        sides
    ) * dtype.itemsize != len(data):
        raise Refused(
            f"an array of shape {sides} and type {dtype} whose bytes are not that many"
        )
    if order not in ("C", "F"):
        raise Refused("an array in an unknown order")
    return np.frombuffer(data, dtype).reshape(sides, order=order)


def _buffer(_reading: Reading, data: Any, kind: Any, shape: Any, order: Any) -> Array:
    if not isinstance(kind, DType):
        raise Refused("an array whose element type is not plain")
    return Array(_from_bytes(data, kind.dtype, shape, order))


def _scalar(_reading: Reading, kind: Any, data: Any) -> Any:
    """A NumPy number, such as an accuracy beside the weights, as a Python number."""
    if not isinstance(kind, DType):
        raise Refused("a number whose type is not plain")
    return _from_bytes(data, kind.dtype, (), "C").item()


def _tensor(
    reading: Reading, storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any
) -> Array:
    """A view of a storage, within its bounds and with no more elements than it.

    A torch tensor never needs more: torch stores expanded tensors with strides of 0.
    """
    sides = _shape(size)
    steps = _shape(stride)
    elements = reading.storage(storage)
    if not is_count(offset) or len(sides) != len(steps):
        raise Refused("a tensor whose offset or strides are not counts")
    count = math.prod(sides)
    # Of no elements there is no last one whose position could be checked.
    if not count:
        return Array(np.empty(sides, elements.dtype))
    reach = sum((side - 1) * step for side, step in zip(sides, steps, strict=True))
    if count > len(elements) or offset + reach >= len(elements):
        raise Refused(
            f"a tensor of shape {sides} that reaches beyond its storage of {len(elements)} elements"
        )
    # A placeholder for bytes that come later in the file has a stride of 0.
    if not elements.strides[0]:
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


def _typed_tensor(
    reading: Reading, rebuild: Any, _kind: Any, arguments: Any, _state: Any
) -> Array:
    """The data of a tensor of a subclass."""
    is_known = isinstance(rebuild, Global) and rebuild.name in _TENSOR_REBUILDS
    if not is_known or not isinstance(arguments, tuple):
        raise Refused("a tensor of a class of its own")
    return _tensor(reading, *arguments)


def _list(reading: Reading, items: Any = ()) -> list[Any]:
    return list(_tuple(reading, items))


# "__builtin__" is the name of `builtins` in files of Python 2; NumPy 2 renamed its core.
BUILDERS: dict[str, Callable[..., Any]] = {
    "builtins.tuple": _tuple,
    "__builtin__.tuple": _tuple,
    "builtins.list": _list,
    "__builtin__.list": _list,
    "builtins.dict": _table,
    "__builtin__.dict": _table,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,
    "builtins.eval": _paddle_eval,
    "__builtin__.eval": _paddle_eval,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _table,
    "collections.Counter": _table,
    "collections.defaultdict": _default_table,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _blank,
    "numpy._core.multiarray._reconstruct": _blank,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _buffer,
    "numpy._core.numeric._frombuffer": _buffer,
    "torch.Size": _tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed_tensor,
}
