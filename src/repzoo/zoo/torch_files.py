"""PyTorch's two checkpoint formats, read without torch and without executing anything.

The zip format (`torch.save` since 1.6) holds a pickle, data.pkl, and one entry per storage.
torch stores entries uncompressed, so no entry can unpack to more than the file. The older
format is a row of pickles (magic number, protocol, machine, data, storage keys) followed by the
storages.
"""

from __future__ import annotations

import io
import mmap
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.zoo.pickle_allowlist import Refused, StorageRef
from repzoo.zoo.unpickle import unpickle

MAX_PICKLE_BYTES = 256 * 2**20  # of data.pkl, which holds names and shapes only
MAX_ENTRIES = 200_000
# MAGIC_NUMBER and PROTOCOL_VERSION of torch/serialization.py.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

DOWNLOAD_AGAIN = "download it again and compare its size with the source's"

Elements = npt.NDArray[Any]

# What zipfile raises on damaged archives.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
)


# --- the zip format -----------------------------------------------------------------------------


def read_zip(path: Path, mapped: mmap.mmap) -> Any:
    """The unpickled data of a zip-format file.

    Raises:
        Refused: not of torch.save, a TorchScript program, damaged, or holding more than data.
    """
    with _open_zip(path, mapped) as archive:
        root = _root_folder(archive)
        names = archive.namelist()
        # Older versions of torch do not write it; their files are taken for little-endian.
        byteorder = f"{root}byteorder"
        is_big_endian = byteorder in names and archive.read(byteorder) == b"big"
        if archive.getinfo(f"{root}data.pkl").file_size > MAX_PICKLE_BYTES:
            raise Refused("its data.pkl is larger than names and shapes need")
        data = archive.read(f"{root}data.pkl")
        storages = _zip_storages(archive, root, is_big_endian)
        return unpickle(io.BytesIO(data), len(data), storages)


@contextmanager
def _open_zip(path: Path, mapped: mmap.mmap) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            # First, for its code is compressed, which the next check refuses less helpfully.
            _refuse_programs(archive)
            _require_safe_entries(archive, len(mapped))
            yield archive
    except _ZIP_ERRORS as error:
        reason = str(error)[:100]
        raise Refused(
            f"its zip archive is damaged or truncated ({reason}); {DOWNLOAD_AGAIN}"
        ) from None


def _refuse_programs(archive: zipfile.ZipFile) -> None:
    """Refuse archives of torch.jit.save and torch.export.save by what they are."""
    names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise Refused(
            "it is a TorchScript program, which holds code; save the weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    if any(name.endswith("archive_format") for name in names):
        raise Refused(
            "it is a program of torch.export, which holds more than weights; save them alone: "
            "torch.save(torch.export.load(FILE).state_dict, NEW_FILE)"
        )


def _require_safe_entries(archive: zipfile.ZipFile, length: int) -> None:
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    # Readers differ in which of two entries of one name they take.
    if len(entries) > MAX_ENTRIES or len(names) < len(entries):
        raise Refused("its zip archive has an entry twice, or too many")
    for entry in entries:
        name = entry.filename
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise Refused(
                f"its zip archive has an entry outside of itself, {name[:80]!r}"
            )
        is_encrypted = entry.flag_bits & 1
        if entry.compress_type != zipfile.ZIP_STORED or is_encrypted:
            raise Refused(
                f"its zip entry {name[:80]!r} is compressed or encrypted, which PyTorch never "
                "writes"
            )
    # Entries that overlap would be read many times over, however small the file is.
    if sum(entry.file_size for entry in entries) > length:
        raise Refused("its zip entries claim more bytes than the file has")


def _root_folder(archive: zipfile.ZipFile) -> str:
    """The one folder with a data.pkl, "/" included."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    roots = [name.removesuffix("data.pkl") for name in pickles if name.count("/") == 1]
    if len(roots) != 1:
        raise Refused(
            "it is a zip archive, but not one of torch.save (it has no data.pkl); unpack it and "
            "give the weights inside"
        )
    return roots[0]


def _zip_storages(
    archive: zipfile.ZipFile, root: str, is_big_endian: bool
) -> Callable[[StorageRef], Elements]:
    """A function that reads a storage once, at its first use, after checking its size."""
    known: dict[str, tuple[StorageRef, Elements]] = {}

    def elements(reference: StorageRef) -> Elements:
        if reference.key not in known:
            known[reference.key] = (
                reference,
                _read_entry(archive, root, reference, is_big_endian),
            )
        first_reference, values = known[reference.key]
        if first_reference != reference:
            raise Refused(f"it gives its storage {reference.key!r} two types")
        return values

    return elements


def _read_entry(
    archive: zipfile.ZipFile, root: str, reference: StorageRef, is_big_endian: bool
) -> Elements:
    name = f"{root}data/{reference.key}"
    # The key comes from the file and becomes part of a path in the archive.
    if not reference.key.isalnum() or name not in archive.NameToInfo:
        raise Refused(
            f"it refers to the storage {reference.key[:40]!r}, which it does not have"
        )
    size = archive.getinfo(name).file_size
    if size != reference.count * reference.dtype.itemsize:
        raise Refused(
            f"its storage {reference.key!r} has {size:,} bytes, not those of "
            f"{reference.count:,} {reference.dtype}"
        )
    dtype = reference.dtype.newbyteorder(">") if is_big_endian else reference.dtype
    return np.frombuffer(archive.read(name), dtype)


# --- the older format ---------------------------------------------------------------------------


def is_legacy(mapped: mmap.mmap) -> bool:
    """Whether the file begins with the magic number of the older format."""
    mapped.seek(0)
    try:
        # The magic number is a pickle of its own, of one integer with ten bytes.
        return bool(unpickle(io.BytesIO(mapped[:64]), 64) == LEGACY_MAGIC)
    except Refused:
        return False


def read_legacy(mapped: mmap.mmap) -> Any:
    """The unpickled data of a file of the older format.

    The data pickle refers to storages that follow it. It is therefore read twice: first to learn
    which storages it refers to, then with their elements.

    Raises:
        Refused: damaged, truncated, or holding more than data.
    """
    mapped.seek(0)
    _check_legacy_header(mapped)
    start = mapped.tell()

    references: dict[str, StorageRef] = {}

    def placeholder(reference: StorageRef) -> Elements:
        """Zeros in place of the elements, which come later in the file."""
        references[reference.key] = reference
        # A broadcast zero takes no memory, whatever count the file claims.
        return np.broadcast_to(np.zeros((), reference.dtype), reference.count)

    unpickle(mapped, len(mapped), placeholder)
    keys = unpickle(mapped, len(mapped))
    is_list_of_names = isinstance(keys, list) and all(
        isinstance(key, str) for key in keys
    )
    if not is_list_of_names or len(set(keys)) < len(keys):
        raise Refused("its list of storages is not a list of names")
    storages = _read_legacy_storages(mapped, keys, references)

    def elements(reference: StorageRef) -> Elements:
        if reference.key not in storages or references[reference.key] != reference:
            raise Refused(
                f"it refers to the storage {reference.key[:40]!r}, which it does not have, or "
                "with two types"
            )
        return storages[reference.key]

    mapped.seek(start)
    return unpickle(mapped, len(mapped), elements)


def _check_legacy_header(mapped: mmap.mmap) -> None:
    magic = unpickle(mapped, len(mapped))
    protocol = unpickle(mapped, len(mapped))
    machine = unpickle(mapped, len(mapped))
    if (
        magic != LEGACY_MAGIC
        or protocol != LEGACY_PROTOCOL
        or not isinstance(machine, dict)
    ):
        raise Refused("it is not of PyTorch's older form")
    if machine.get("little_endian") is not True:
        raise Refused(
            "it was written on a big-endian machine; save it again with a newer torch"
        )


def _read_legacy_storages(
    mapped: mmap.mmap, keys: list[str], references: Mapping[str, StorageRef]
) -> dict[str, Elements]:
    """The storages from the current position on: each is its element count, then its elements."""
    storages: dict[str, Elements] = {}
    position = mapped.tell()
    for key in keys:
        if key not in references:
            raise Refused(f"its storage {key[:40]!r} belongs to no tensor")
        dtype = references[key].dtype
        first = position + 8
        count = int.from_bytes(mapped[position:first], "little")
        end = first + count * dtype.itemsize
        if count != references[key].count or end > len(mapped):
            raise Refused(
                f"its storage {key[:40]!r} is truncated or has another size than its tensors "
                f"say; {DOWNLOAD_AGAIN}"
            )
        storages[key] = np.frombuffer(mapped, dtype, count, first)
        position = end
    if position != len(mapped):
        raise Refused(f"{len(mapped) - position:,} bytes follow its last storage")
    return storages
