"""Reading and writing files so that nothing is half-written, lost or unbounded."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from repzoo.errors import InputError


def sha256_of(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of `path`, refused before reading when there are more than `limit`.

    Raises:
        InputError: no such file, a directory, unreadable, or larger than `limit` bytes.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path} is a directory; expected a file")
        if size > limit:
            raise InputError(f"{path} has {size:,} bytes; at most {limit:,} are accepted here")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def make_folder(path: Path) -> Path:
    """Create the folder `path` and its parents; an InputError says why it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {path} cannot be made: {error.strerror}; give another with -o") from None
    return path


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` only if the block succeeds.

    Raises:
        InputError: the folder is missing, read-only or full; `path` is then as it was.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory; give a file name with -o")
    make_folder(path.parent)
    aside: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        aside = Path(name)
        yield aside
        aside.chmod(0o666 & ~_umask())
        aside.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; free room or give another place with -o") from None
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` in one rename; see `written_aside` for errors."""
    with written_aside(path) as aside, aside.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())


def append_lines(path: Path, lines: list[str]) -> None:
    """Append whole lines to `path` in one write, so that a kill leaves whole lines."""
    make_folder(path.parent)
    try:
        with path.open("ab") as file:
            file.write("".join(line + "\n" for line in lines).encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; free room or give another place with -o") from None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
