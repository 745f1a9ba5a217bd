"""Checkpoint files: which kind a file is, and the tables of arrays in it.

Needs no torch. Nothing in a file is executed. The kind is detected from the content, not the name:

- `.safetensors`;
- PyTorch's zip format (`torch.save` since 1.6) and its older format of consecutive pickles
  (torch_files.py);
- a bare pickle of NumPy arrays, such as Paddle's `.pdparams`.

Other files are refused with advice: compressed files, TorchScript archives, tar files of torch
before 0.1.10, web pages saved as weights, Git LFS pointers, truncated files.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from repzoo.errors import InputError, MissingExtra
from repzoo.zoo import torch_files
from repzoo.zoo.pickle_allowlist import Array, Refused
from repzoo.zoo.torch_files import DOWNLOAD_AGAIN
from repzoo.zoo.unpickle import unpickle

MAX_BYTES = 16 * 2**30

Table = dict[str, npt.NDArray[Any]]

# The format is little-endian on every host. BF16 is handled apart, since NumPy has no such type.
_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
# First bytes of files that people mistake for checkpoints, and what they are.
_OTHER_FORMATS = (
    (b"\x1f\x8b", "compressed with gzip; unpack it first (gunzip)"),
    (b"BZh", "compressed with bzip2; unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first (unzstd)"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras?), which is not read"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the weights; fetch them: git lfs pull",
    ),
)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds.

    kind    "safetensors", "torch zip", "torch legacy" or "pickle"
    tables  tables of arrays, outermost first, by position: "" for the file itself, else keys
            joined by "."
    beside  names of what else the file has at its top level
    """

    kind: str
    tables: Mapping[str, Table]
    beside: tuple[str, ...] = ()


def read(path: Path) -> Contents:
    """The tables of arrays in the checkpoint at `path`. Most arrays are views of the mapped file.

    Raises:
        InputError: absent, not a checkpoint, damaged, truncated, or holding more than data.
        MissingExtra: a .safetensors file without the safetensors package.
    """
    _require_file(path)
    with path.open("rb") as file:
        # The mapping outlives this function: arrays refer to it.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # A tar archive has its magic farthest from the start, within the first block of 512 bytes.
    _refuse_other_formats(path, mapped[:512])
    try:
        return _read_mapped(path, mapped)
    except Refused as error:
        raise InputError(f"{path} is refused: {error}") from None


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(
            f"the checkpoint {path} does not exist or is no file; check the path"
        )
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path} is empty; {DOWNLOAD_AGAIN}")
    if size > MAX_BYTES:
        raise InputError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read")


def _refuse_other_formats(path: Path, head: bytes) -> None:
    for magic, description in _OTHER_FORMATS:
        if head.startswith(magic):
            raise InputError(f"{path} is {description}")
    # A web page may begin with a byte-order mark and blank lines.
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputError(
            f"{path} is a web page, not weights: its server answered with a page (log-in? "
            f"quota?); {DOWNLOAD_AGAIN}"
        )
    # The magic of a tar archive follows its first 257 bytes.
    if head[257:262] == b"ustar":
        raise InputError(
            f"{path} is a tar archive (or torch's form before 0.1.10); unpack it, or save it with "
            "a newer torch"
        )


def _read_mapped(path: Path, mapped: mmap.mmap) -> Contents:
    # Its name counts too: a truncated file is then called that, and not an unknown format.
    if path.suffix == ".safetensors" or _is_safetensors(mapped):
        return Contents("safetensors", {"": _read_safetensors(mapped)})
    if mapped[:2] == b"PK":
        return _contents("torch zip", torch_files.read_zip(path, mapped))
    # Every pickle of protocol 2 or later begins with 0x80.
    if mapped[:1] != b"\x80":
        raise Refused(
            "it does not begin like a supported checkpoint (.safetensors, PyTorch's .pth, or a "
            "pickle such as Paddle's .pdparams)"
        )
    if torch_files.is_legacy(mapped):
        return _contents("torch legacy", torch_files.read_legacy(mapped))
    mapped.seek(0)
    data = unpickle(mapped, len(mapped))
    if mapped.tell() != len(mapped):
        raise Refused(f"{len(mapped) - mapped.tell():,} bytes follow its pickle")
    return _contents("pickle", data)


# --- tables in unpickled data -------------------------------------------------------------------


def _contents(kind: str, data: Any) -> Contents:
    """The tables in `data`: the whole, or what lies one or two keys below it."""
    tables = {".".join(where): table for where, table in _find_tables(data, ())}
    if not tables:
        raise Refused("it does not hold a table of tensors")
    if "" in tables:
        return Contents(kind, tables)
    beside = [key for key in data if isinstance(key, str) and key not in tables]
    return Contents(kind, tables, tuple(sorted(beside)))


def _find_tables(
    data: Any, where: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Table]]:
    if not isinstance(data, dict):
        return
    arrays: Table = {}
    has_other_values = False
    for key, value in data.items():
        array = _array_of(value) if isinstance(key, str) else None
        if array is not None:
            arrays[key] = array
        elif not _is_paddle_remark(key, value):
            has_other_values = True
    # A dict with anything else in it is what a trainer wrote around the tables.
    if arrays and not has_other_values:
        yield where, arrays
    # `model_ema.module` is the deepest table that a known trainer writes.
    elif len(where) < 2:
        for key, value in data.items():
            if isinstance(key, str):
                yield from _find_tables(value, (*where, key))


def _array_of(value: Any) -> npt.NDArray[Any] | None:
    # Paddle stores (parameter name, array).
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    return value.value if isinstance(value, Array) else None


def _is_paddle_remark(key: Any, value: Any) -> bool:
    """Whether it is metadata such as Paddle's table of structured names to parameter names."""
    return isinstance(key, str) and key.endswith("@@") and isinstance(value, dict)


# --- .safetensors -------------------------------------------------------------------------------


def _is_safetensors(mapped: mmap.mmap) -> bool:
    """Whether it begins with the length of a JSON header that fits the file."""
    return _header_fits(mapped) and mapped[8:9] == b"{"


def _header_fits(mapped: mmap.mmap) -> bool:
    return len(mapped) > 9 and int.from_bytes(mapped[:8], "little") <= len(mapped) - 8


def _read_safetensors(mapped: mmap.mmap) -> Table:
    try:
        from safetensors import SafetensorError, deserialize
    except ModuleNotFoundError as error:
        raise MissingExtra("reading .safetensors", "torch") from error
    # Checked before the library is called, which would copy the whole file first.
    if not _header_fits(mapped):
        raise Refused(
            "it is not a readable .safetensors file: truncated, or another format; "
            f"{DOWNLOAD_AGAIN}"
        )
    try:
        entries = deserialize(bytes(mapped))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise Refused(
            f"it is not a readable .safetensors file: truncated or damaged ({error}); "
            f"{DOWNLOAD_AGAIN}"
        ) from None
    return {name: _safetensors_array(name, entry) for name, entry in entries}


def _safetensors_array(name: str, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    kind = entry["dtype"]
    if kind == "BF16":
        dtype = np.dtype(ml_dtypes.bfloat16)
    elif kind in _SAFETENSORS_TYPES:
        dtype = np.dtype(_SAFETENSORS_TYPES[kind])
    else:
        known = ", ".join(_SAFETENSORS_TYPES)
        raise Refused(
            f"{name[:80]!r} has elements of type {kind}; supported are {known} and BF16"
        )
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
