"""Which kind of checkpoint file it is, and the tables of arrays in it. Needs no torch; nothing in a file is run.

Read: `.safetensors`; PyTorch's zip form (`torch.save` since 1.6) and its older form of consecutive pickles; a bare pickle of NumPy
arrays, as Paddle's `.pdparams` (with Paddle's tuples of name and array). The kind is told by the content, not by the name.
Refused with what to do: compressed files, TorchScript archives, tar files of torch before 0.1.10, web pages saved as weights,
pointers of Git LFS, files cut short.

Zip archives are read in place: torch stores its entries uncompressed, so that no entry can unpack to more than the file.
"""

from __future__ import annotations

import io
import mmap
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from repzoo.errors import InputError, MissingExtra
from repzoo.zoo.pickled import Array, Refused, StorageRef
from repzoo.zoo.unpickle import unpickle

MAX_BYTES = 16 * 2**30
MAX_PICKLE_BYTES = 256 * 2**20  # of a zip form's data.pkl, which holds names and shapes only
MAX_ENTRIES = 200_000
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

Table = dict[str, npt.NDArray[Any]]
_AGAIN = "download it again and compare its size with the source's"
_SAFE_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_FOREIGN = (
    (b"\x1f\x8b", "compressed with gzip; unpack it first (gunzip)"),
    (b"BZh", "compressed with bzip2; unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first (unzstd)"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras?), which is not read"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the weights; fetch them: git lfs pull"),
)  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds.

    kind    "safetensors", "torch zip", "torch legacy" or "pickle"
    tables  the tables of arrays, outermost first, by where they are: "" for the file itself, else keys joined by "."
    beside  what else the file has at its top, by name
    """

    kind: str
    tables: Mapping[str, Table]
    beside: tuple[str, ...] = ()


def read(path: Path) -> Contents:
    """The tables of arrays in the checkpoint at `path`. Arrays are views of the mapped file as far as possible.

    Raises:
        InputError: absent, not a checkpoint, damaged, cut short, or holding more than data; nothing of it was run.
        MissingExtra: a .safetensors file without the safetensors package.
    """
    _require_file(path)
    with path.open("rb") as file:
        mapped = mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_READ
        )  # stays as long as an array looks at it
    _refuse_foreign(path, mapped[:512])
    try:
        return _opened(path, mapped)
    except Refused as error:
        raise InputError(f"{path} is refused: {error}") from None


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"the checkpoint {path} does not exist or is no file; check the path")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path} is empty; {_AGAIN}")
    if size > MAX_BYTES:
        raise InputError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read")


def _refuse_foreign(path: Path, head: bytes) -> None:
    for start, what in _FOREIGN:
        if head.startswith(start):
            raise InputError(f"{path} is {what}")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputError(
            f"{path} is a web page, not weights: its server answered with a page (log-in? quota?); {_AGAIN}"
        )
    if head[257:262] == b"ustar":
        raise InputError(
            f"{path} is a tar archive (or torch's form before 0.1.10); unpack it, or save it with a newer torch"
        )


def _opened(path: Path, mapped: mmap.mmap) -> Contents:
    if path.suffix == ".safetensors" or _is_safetensors(mapped):
        return Contents("safetensors", {"": _safetensors(mapped)})
    if mapped[:2] == b"PK":
        return _contents("torch zip", _torch_zip(path, mapped))
    if mapped[:1] != b"\x80":
        raise Refused(
            "it starts like no checkpoint that is read (.safetensors, PyTorch's .pth, or a pickle as Paddle's .pdparams)"
        )
    if _is_legacy(mapped):
        return _contents("torch legacy", _torch_legacy(mapped))
    mapped.seek(0)
    found = unpickle(mapped, len(mapped))
    if mapped.tell() != len(mapped):
        raise Refused(f"{len(mapped) - mapped.tell():,} bytes follow its pickle")
    return _contents("pickle", found)


def _contents(kind: str, found: Any) -> Contents:
    """The tables in what was read: the whole, or what lies one or two keys below it; each value or its (name, array) pair."""
    tables = {".".join(where): table for where, table in _tables(found, ())}
    if not tables:
        raise Refused("it does not hold a table of tensors")
    beside = (
        [key for key in found if isinstance(key, str) and key not in tables]
        if "" not in tables
        else []
    )
    return Contents(kind, tables, tuple(sorted(beside)))


def _tables(found: Any, where: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Table]]:
    if not isinstance(found, dict):
        return
    arrays = {
        key: array
        for key, value in found.items()
        if isinstance(key, str) and (array := _array_of(value)) is not None
    }
    strange = [
        key for key, value in found.items() if key not in arrays and not _is_remark(key, value)
    ]
    if arrays and not strange:
        yield where, arrays
    elif len(where) < 2:
        for key, value in found.items():
            if isinstance(key, str):
                yield from _tables(value, (*where, key))


def _array_of(value: Any) -> npt.NDArray[Any] | None:
    if (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
    ):  # Paddle: (parameter's name, array)
        value = value[1]
    return value.value if isinstance(value, Array) else None


def _is_remark(key: Any, value: Any) -> bool:
    """Paddle's table of structured names to parameter names, and its kin."""
    return isinstance(key, str) and key.endswith("@@") and isinstance(value, dict)


# .safetensors


def _is_safetensors(mapped: mmap.mmap) -> bool:
    return (
        len(mapped) > 9
        and int.from_bytes(mapped[:8], "little") <= len(mapped) - 8
        and mapped[8:9] == b"{"
    )


def _safetensors(mapped: mmap.mmap) -> Table:
    try:
        from safetensors import SafetensorError, deserialize
    except ModuleNotFoundError as error:
        raise MissingExtra("reading .safetensors", "torch") from error
    if len(mapped) < 9 or int.from_bytes(mapped[:8], "little") > len(mapped) - 8:
        raise Refused(
            f"it is not a readable .safetensors file: cut short, or another format; {_AGAIN}"
        )
    try:
        entries = deserialize(bytes(mapped))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise Refused(
            f"it is not a readable .safetensors file: cut short or damaged ({error}); {_AGAIN}"
        ) from None
    return {name: _safe_array(name, entry) for name, entry in entries}


def _safe_array(name: str, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    kind = entry["dtype"]
    if kind != "BF16" and kind not in _SAFE_TYPES:
        raise Refused(
            f"{name[:80]!r} has elements of type {kind}; read are {', '.join(_SAFE_TYPES)} and BF16"
        )
    dtype = np.dtype(ml_dtypes.bfloat16) if kind == "BF16" else np.dtype(_SAFE_TYPES[kind])
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


# PyTorch


@contextmanager
def _zip_of(path: Path, mapped: mmap.mmap) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            _require_plain(archive, len(mapped))
            yield archive
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
    ) as error:
        raise Refused(
            f"its zip archive is damaged or cut short ({str(error)[:100]}); {_AGAIN}"
        ) from None


def _require_plain(archive: zipfile.ZipFile, length: int) -> None:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(entries) > MAX_ENTRIES or len(set(names)) < len(names):
        raise Refused("its zip archive has an entry twice, or too many")
    for entry in entries:
        if (
            entry.filename.startswith(("/", "\\"))
            or "\\" in entry.filename
            or ".." in entry.filename.split("/")
        ):
            raise Refused(
                f"its zip archive has an entry outside of itself, {entry.filename[:80]!r}"
            )
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused(
                f"its zip entry {entry.filename[:80]!r} is compressed or encrypted, which PyTorch never writes"
            )
    if sum(entry.file_size for entry in entries) > length:
        raise Refused("its zip entries claim more bytes than the file has")


def _torch_zip(path: Path, mapped: mmap.mmap) -> Any:
    with _zip_of(path, mapped) as archive:
        roots = [
            name.removesuffix("data.pkl")
            for name in archive.namelist()
            if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(roots) != 1:
            raise Refused(
                "it is a zip archive, but not one of torch.save (it has no data.pkl); unpack it and give the weights inside"
            )
        root = roots[0]
        if f"{root}constants.pkl" in archive.namelist():
            raise Refused(
                "it is a TorchScript program, which holds code; save the weights alone: torch.save(model.state_dict(), F)"
            )
        swapped = (
            f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") == b"big"
        )
        if archive.getinfo(f"{root}data.pkl").file_size > MAX_PICKLE_BYTES:
            raise Refused("its data.pkl is larger than names and shapes need")
        data = archive.read(f"{root}data.pkl")
        return unpickle(io.BytesIO(data), len(data), _zip_storages(archive, root, swapped))


def _zip_storages(
    archive: zipfile.ZipFile, root: str, swapped: bool
) -> Callable[[StorageRef], npt.NDArray[Any]]:
    """Each storage is read once, at its first use, and its size compared before its bytes are asked for."""
    known: dict[str, tuple[StorageRef, npt.NDArray[Any]]] = {}

    def elements(reference: StorageRef) -> npt.NDArray[Any]:
        if reference.key not in known:
            name = f"{root}data/{reference.key}"
            if not reference.key.isalnum() or name not in archive.NameToInfo:
                raise Refused(
                    f"it refers to the storage {reference.key[:40]!r}, which it does not have"
                )
            size = archive.getinfo(name).file_size
            if size != reference.count * reference.dtype.itemsize:
                raise Refused(
                    f"its storage {reference.key!r} has {size:,} bytes, not those of {reference.count:,} {reference.dtype}"
                )
            kind = reference.dtype.newbyteorder(">") if swapped else reference.dtype
            known[reference.key] = reference, np.frombuffer(archive.read(name), kind)
        first, found = known[reference.key]
        if first != reference:
            raise Refused(f"it gives its storage {reference.key!r} two types")
        return found

    return elements


def _is_legacy(mapped: mmap.mmap) -> bool:
    mapped.seek(0)
    try:
        return bool(unpickle(io.BytesIO(mapped[:64]), 64) == LEGACY_MAGIC)
    except Refused:
        return False


def _torch_legacy(mapped: mmap.mmap) -> Any:
    """Magic number, protocol, machine, data, storage keys: a pickle each; then the storages, each its count and its elements.

    The pickle refers to storages whose bytes follow it, so that it is read twice: once for what it refers to, once for good.
    """
    mapped.seek(0)
    magic, protocol, machine = (unpickle(mapped, len(mapped)) for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not isinstance(machine, dict):
        raise Refused("it is not of PyTorch's older form")
    if machine.get("little_endian") is not True:
        raise Refused("it was written on a big-endian machine; save it again with a newer torch")
    start, wanted = mapped.tell(), {}

    def blank(reference: StorageRef) -> npt.NDArray[Any]:
        wanted[reference.key] = reference
        return np.broadcast_to(
            np.zeros((), reference.dtype), reference.count
        )  # no memory, whatever the count

    unpickle(mapped, len(mapped), blank)
    keys = unpickle(mapped, len(mapped))
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or len(set(keys)) < len(keys)
    ):
        raise Refused("its list of storages is not a list of names")
    found = _legacy_storages(mapped, keys, wanted)
    mapped.seek(start)

    def elements(reference: StorageRef) -> npt.NDArray[Any]:
        if reference.key not in found or wanted[reference.key] != reference:
            raise Refused(
                f"it refers to the storage {reference.key[:40]!r}, which it does not have, or with two types"
            )
        return found[reference.key]

    return unpickle(mapped, len(mapped), elements)


def _legacy_storages(
    mapped: mmap.mmap, keys: list[str], wanted: Mapping[str, StorageRef]
) -> dict[str, npt.NDArray[Any]]:
    found, place = {}, mapped.tell()
    for key in keys:
        if key not in wanted:
            raise Refused(f"its storage {key[:40]!r} belongs to no tensor")
        count, kind = int.from_bytes(mapped[place : place + 8], "little"), wanted[key].dtype
        end = place + 8 + count * kind.itemsize
        if count != wanted[key].count or end > len(mapped):
            raise Refused(
                f"its storage {key[:40]!r} is cut short or has another size than its tensors say; {_AGAIN}"
            )
        found[key], place = np.frombuffer(mapped, kind, count, place + 8), end
    if place != len(mapped):
        raise Refused(f"{len(mapped) - place:,} bytes follow its last storage")
    return found
