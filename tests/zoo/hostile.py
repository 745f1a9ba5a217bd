"""Pickles that would act, and files that would cost, if a reader believed them.

Each builder takes the canary file to touch.
"""

from __future__ import annotations

import copyreg
import functools
import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class Calls:
    """Pickled, this is a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.reduced


def touch(mark: Path) -> str:
    return f"touch {mark}"


def code(mark: Path) -> str:
    return f"open({str(mark)!r}, 'w').close()"


def text(value: str) -> bytes:
    """SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def global_reference(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def whole_pickle(content: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + content + b"."


def table(*items: bytes) -> bytes:
    return b"}(" + b"".join(items) + b"u"


def array() -> np.ndarray[Any, Any]:
    return np.ones((2, 3), np.float32)


def weights(**more: Any) -> dict[str, Any]:
    return {"conv_stem.weight": array(), **more}


def _extension(mark: Path) -> bytes:
    """A number that a process may have registered for a global."""
    return whole_pickle(call(b"\x82\x2a", text(touch(mark))))


def _nested(mark: Path) -> bytes:
    """Inside a call that is allowed, five deep in tuples and lists."""
    inner: Any = Calls(os.system, touch(mark))
    for _ in range(5):
        inner = [(inner,)]
    return pickle.dumps(OrderedDict(a=inner), 4)


def _memo(mark: Path) -> bytes:
    """The function goes into the memo under an allowed-looking place and is called from there."""
    return whole_pickle(
        global_reference("os", "system")
        + b"q\x00"
        + b"0"
        + global_reference("collections", "OrderedDict")
        + b"q\x01"
        + b"0"
        + call(b"h\x00", text(touch(mark)))
    )


def _getattr_chain(mark: Path) -> bytes:
    module = call(global_reference("builtins", "__import__"), text("os"))
    return whole_pickle(
        call(
            call(global_reference("builtins", "getattr"), module, text("system")),
            text(touch(mark)),
        )
    )


def _dotted(mark: Path) -> bytes:
    """Protocol 4 walks dots: an allowed module that happens to import os."""
    return whole_pickle(
        call(text("argparse") + text("_os.system") + b"\x93", text(touch(mark)))
    )


def _build_state(mark: Path) -> bytes:
    """A partial whose function and arguments come by BUILD, then its call."""
    partial = call(
        global_reference("functools", "partial"), global_reference("os", "getpid")
    )
    state = (
        b"(" + global_reference("os", "system") + b"(" + text(touch(mark)) + b"t}Ntb"
    )
    return whole_pickle(partial + state + b")R")


def _in_numpy(mark: Path) -> bytes:
    """An array of objects: the elements are pickles of anything."""
    return pickle.dumps(np.array([Calls(os.system, touch(mark))], object), 4)


def _inner_torch(mark: Path) -> bytes:
    """torch's own loader for storages within pickles, which unpickles its bytes without
    restriction.
    """
    inner = pickle.dumps(Calls(os.system, touch(mark)))
    return (
        pickle.dumps(Calls(_global("torch.storage", "_load_from_bytes"), inner))
        if _has_torch()
        else pickle.dumps(Calls(pickle.loads, inner))
    )


def _system(protocol: int, mark: Path) -> bytes:
    return pickle.dumps(Calls(os.system, touch(mark)), protocol)


def _methodcaller(mark: Path) -> bytes:
    caller = call(
        global_reference("operator", "methodcaller"), text("system"), text(touch(mark))
    )
    return whole_pickle(
        call(caller, call(global_reference("builtins", "__import__"), text("os")))
    )


def _many_copies() -> bytes:
    copied = call(global_reference("_codecs", "encode"), b"h\x00", text("latin1"))
    return whole_pickle(
        b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x000" + copied * 50
    )


def _has_torch() -> bool:
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return bool(torch)


def _global(module: str, name: str) -> Any:
    return getattr(__import__(module, fromlist=[name]), name)


# Those that Python's own unpickler would obey.
ACTING: dict[str, Callable[[Path], bytes]] = {
    **{f"os.system, protocol {n}": functools.partial(_system, n) for n in range(6)},
    "eval": lambda mark: pickle.dumps(Calls(eval, code(mark)), 2),
    "eval as Paddle calls it, with other text": lambda mark: pickle.dumps(Calls(eval, code(mark), {"data": 1}), 2),
    "exec": lambda mark: pickle.dumps(Calls(exec, code(mark)), 4),
    "exec through a partial": lambda mark: pickle.dumps(Calls(functools.partial(exec, code(mark))), 4),
    "subprocess": lambda mark: pickle.dumps(Calls(_global("subprocess", "check_call"), ["touch", str(mark)]), 4),
    "getattr chain": _getattr_chain,
    "dotted name of an allowed module": _dotted,
    "nested in an OrderedDict": _nested,
    "memo": _memo,
    "INST": lambda mark: b"(" + b"S" + repr(touch(mark)).encode() + b"\n" + b"ios\nsystem\n.",
    "OBJ": lambda mark: whole_pickle(b"(" + global_reference("os", "system") + text(touch(mark)) + b"o", 2),
    "operator.methodcaller": _methodcaller,
    "runpy": lambda mark: pickle.dumps(Calls(_global("runpy", "_run_code"), code(mark), {}), 4),
    "beside weights": lambda mark: pickle.dumps({"state_dict": weights(), "args": Calls(os.system, touch(mark))}, 4),
    "as a weight": lambda mark: pickle.dumps(weights(bias=Calls(os.system, touch(mark))), 4),
    "as a key": lambda mark: whole_pickle(table(call(global_reference("os", "system"), text(touch(mark))), b"N")),
    "array of objects": _in_numpy,
    "pickle within torch's storage loader": _inner_torch,
    "partial with a state": _build_state,
    "extension registered in this process": _extension,
}  # fmt: skip


def zip_archive(entries: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tensor(
    offset: int = 0,
    size: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
    count: int = 6,
) -> bytes:
    """torch's pickle of one tensor."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return (
            b"("
            + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values)
            + b"t"
        )

    number = numbers((count,))[1:-1]
    storage = (
        b"("
        + text("storage")
        + global_reference("torch", "FloatStorage")
        + text("0")
        + text("cpu")
        + number
        + b"tQ"
    )
    rebuilt = call(
        global_reference("torch._utils", "_rebuild_tensor_v2"),
        storage,
        numbers((offset,))[1:-1],
        numbers(size),
        numbers(stride),
        b"\x89",
        b"}",
    )
    return whole_pickle(table(text("w"), rebuilt), 2)


def archive(
    data: bytes, elements: int = 6, more: dict[str, bytes] | None = None
) -> bytes:
    return zip_archive(
        {
            "archive/data.pkl": data,
            "archive/version": b"3\n",
            "archive/data/0": b"\0" * 4 * elements,
            **(more or {}),
        }
    )


def _laughs() -> bytes:
    """Thirty lists, each of ten of the one before."""
    return whole_pickle(
        b"]"
        + b"q\x00"
        + b"".join(
            b"]("
            + b"h"
            + bytes([n])
            + (b"h" + bytes([n])) * 9
            + b"e"
            + b"q"
            + bytes([n + 1])
            for n in range(30)
        )
    )


def _hash_bomb() -> bytes:
    """A key of tuples doubled sixty times: hashing it would take 2**60 steps. It is left out;
    no table of tensors remains.
    """
    return whole_pickle(
        b"}" + b")" + b"".join(b"q\x00h\x00\x86" for _ in range(60)) + b"Ns"
    )


def _raw_array(dtype: str, shape: tuple[int, ...], data: bytes) -> bytes:
    """numpy.ndarray as NumPy pickles it, with any claim."""
    kind = call(global_reference("numpy", "dtype"), text(dtype), b"\x89", b"\x88")
    blank = call(
        global_reference("numpy.core.multiarray", "_reconstruct"),
        global_reference("numpy", "ndarray"),
        b"(K\x00t",
        b"C\x01b",
    )
    sides = (
        b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", side) for side in shape) + b"t"
    )
    return whole_pickle(
        table(
            text("w"),
            blank
            + b"(K\x01"
            + sides
            + kind
            + b"\x89"
            + b"B"
            + struct.pack("<I", len(data))
            + data
            + b"tb",
        )
    )


# Those that would cost memory or time, reach outside, or lie; with a part of the sentence that
# refuses them.
COSTLY: dict[str, tuple[bytes, str]] = {
    "gzip": (gzip.compress(pickle.dumps(weights())), "compressed with gzip"),
    "zlib": (zlib.compress(pickle.dumps(weights())), "does not begin like a supported checkpoint"),
    "zip bomb": (zip_archive({"a/data.pkl": tensor(), "a/data/0": b"\0" * 50_000_000}, zipfile.ZIP_DEFLATED), "compressed or encrypted"),
    "path out of the archive": (archive(tensor(), more={"archive/../../etc/passwd": b"x"}), "outside of itself"),
    "absolute path": (archive(tensor(), more={"/etc/passwd": b"x"}), "outside of itself"),
    "TorchScript": (archive(tensor(), more={"archive/constants.pkl": whole_pickle(b"N"), "archive/code/a.py": b"x"}), "TorchScript"),
    "another zip": (zip_archive({"a.txt": b"x"}), "no data.pkl"),
    "offset beyond the storage": (archive(tensor(offset=1)), "beyond its storage"),
    "stride beyond the storage": (archive(tensor(stride=(1000, 1))), "beyond its storage"),
    "negative stride": (archive(tensor(stride=(-3, 1))), "row of counts"),
    "a million views of one element": (archive(tensor(size=(2**20, 2**20), stride=(0, 0))), "beyond its storage"),
    "shape that overflows": (archive(tensor(size=(2**40, 2**40), stride=(1, 1))), "beyond its storage"),
    "storage that is not there": (zip_archive({"a/data.pkl": tensor()}), "does not have"),
    "storage of another size": (archive(tensor(), elements=5), "not those of 6"),
    "persistent id of nonsense": (archive(whole_pickle(b"(" + text("storage") + b"tQ", 2)), "storage in an unknown way"),
    "persistent id outside of torch": (whole_pickle(table(text("w"), b"(" + text("storage") + b"tQ")), "PyTorch's own format"),
    "persistent id in text": (b"\x80\x02Pstorage\n.", "opcode PERSID"),
    "extension": (whole_pickle(b"\x82\x2a" + b"N\x85R"), "opcode EXT1"),
    "object of a class that is no settings": (whole_pickle(global_reference("subprocess", "Popen") + b")\x81"), "no data"),
    "object of what makes data": (whole_pickle(global_reference("collections", "OrderedDict") + b")\x81"), "not a class of settings"),
    "call of what was made": (whole_pickle(b"})R"), "made itself"),
    "bytes of a given length": (whole_pickle(call(global_reference("builtins", "bytes"), b"J\xff\xff\xff\x7f")), "damaged"),
    "integer of a megabyte": (whole_pickle(table(text("n"), b"\x8b" + struct.pack("<I", 2**20) + b"\x7f" * 2**20)), "integer of"),
    "integer in words": (whole_pickle(b"L" + b"9" * 100_000 + b"L\n"), "damaged, truncated|integer of"),
    "string longer than the file": (whole_pickle(b"\x8d" + struct.pack("<Q", 2**62) + b"x"), "damaged, truncated"),
    "bytes longer than the file": (whole_pickle(b"\x8e" + struct.pack("<Q", 2**40) + b"x"), "damaged, truncated"),
    "bytearray longer than the file": (whole_pickle(b"\x96" + struct.pack("<Q", 2**40) + b"x", 5), "damaged, truncated"),
    "buffer outside of the file": (whole_pickle(b"\x97", 5), "opcode NEXT_BUFFER"),
    "lists of lists of lists": (_laughs(), "table of tensors"),
    "key that takes for ever to hash": (_hash_bomb(), "table of tensors"),
    "ten thousand brackets": (whole_pickle(b"]" * 10_000 + b"a" * 9_999), "table of tensors"),
    "memo index of two thousand million": (whole_pickle(b"]r\xff\xff\xff\x7f"), "table of tensors"),
    "copies of a long text": (_many_copies(), "unpacks to more"),
    "text through another codec": (whole_pickle(call(global_reference("_codecs", "encode"), text("x"), text("rot13"))), "damaged"),
    "a key twice": (whole_pickle(table(text("w"), b"N", text("w"), b"N")), "twice"),
    "array of objects from raw bytes": (_raw_array("O8", (1,), b"\x01" * 8), "elements 'O8'"),
    "array of records": (_raw_array("V8", (1,), b"\x01" * 8), "elements 'V8'"),
    "array larger than its bytes": (_raw_array("f4", (2**30,), b"\0" * 4), "bytes are not that many"),
    "array that overflows": (_raw_array("f4", (2**40, 2**40), b"\0" * 4), "bytes are not that many"),
    "a second pickle behind the first": (pickle.dumps(weights()) + pickle.dumps(Calls(os.system, "true")), "follow its pickle"),
    "no end": (pickle.dumps(weights())[:-1], "truncated|no end"),
    "nothing on the stack": (whole_pickle(b""), "damaged"),
    "mark as a value": (whole_pickle(b"("), "damaged"),
    "items for a number": (whole_pickle(b"K\x01(NNu"), "damaged"),
}  # fmt: skip


def register_extension() -> None:
    """What EXT1 42 would mean in this process."""
    copyreg.add_extension("os", "system", 42)
