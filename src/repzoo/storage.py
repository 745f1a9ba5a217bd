"""Read and write files so that nothing is half-written, lost or unbounded."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import platform
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from repzoo.errors import InputError

_APPENDING = threading.Lock()
# Size of one kind of cached files. Beyond it the least recently used are deleted.
CACHE_BYTES = 2**30

# Names of files that are being written: the machine and the process stand between.
ASIDE_PREFIX = ".repzoo."
ASIDE_SUFFIX = ".part"

# Text is written as UTF-8. Pieces are written one after another.
Data = bytes | str | Iterable[bytes]


def sha256_of(data: bytes | Iterable[bytes]) -> str:
    """Hex SHA-256 of `data`, whole or in pieces."""
    digest = hashlib.sha256()
    for piece in [data] if isinstance(data, bytes) else data:
        digest.update(piece)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of the file at `path`, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """`value` with every number that is not finite replaced by None, at any depth."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any, **layout: Any) -> str:
    """`value` as a JSON text. NaN and infinity become null, since JSON has no such numbers.

    layout  arguments of `json.dumps`, such as `indent`
    """
    return json.dumps(finite(value), allow_nan=False, **layout)


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of `path`. More than `limit` are refused before reading.

    Raises:
        InputError: no such file, not a regular file, unreadable, or larger than `limit` bytes.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path} is a directory; expected a file")
        # A device or pipe has no size and may never end.
        if not path.is_file():
            raise InputError(f"{path} is not a regular file; copy its content to one")
        if size > limit:
            raise InputError(
                f"{path} has {size:,} bytes; at most {limit:,} are accepted here"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_lines(path: Path, limit: int = 2**24) -> list[str]:
    """The non-empty lines of a small UTF-8 text, without its byte-order mark.

    Raises:
        InputError: as `read_bounded`, or not UTF-8.
    """
    try:
        text = read_bounded(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def make_folder(path: Path) -> Path:
    """Create the folder `path` and its parents.

    Raises:
        InputError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder {path} cannot be made: {error.strerror}; give another with -o"
        ) from None
    return path


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` only if the block succeeds.

    Raises:
        InputError: the folder is missing, read-only or full; `path` is then as it was.
    """
    require_writable(path)
    make_folder(path.parent)
    remove_abandoned(path.parent)
    aside: Path | None = None
    try:
        # A fixed short name: a suffix to `path` could exceed the file system's limit.
        handle, name = tempfile.mkstemp(
            prefix=f"{ASIDE_PREFIX}{_writer()}.", suffix=ASIDE_SUFFIX, dir=path.parent
        )
        os.close(handle)
        aside = Path(name)
        yield aside
        # mkstemp makes files that only their owner may read.
        aside.chmod(0o666 & ~_umask())
        aside.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Delete half-written files in `folder` whose writers, processes of this machine, are dead."""
    for part in folder.glob(f"{ASIDE_PREFIX}*{ASIDE_SUFFIX}"):
        writer = part.name.removeprefix(ASIDE_PREFIX).partition(".")[0]
        host, _, process = writer.rpartition("-")
        is_ours = host == _writer().rpartition("-")[0] and process.isdigit()
        if is_ours and not _is_alive(int(process)):
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _writer() -> str:
    """The machine, as a short hash of its name, and this process."""
    # A folder may be shared by machines, each with processes of its own.
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    return f"{host}-{os.getpid()}"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True


def write_atomically(path: Path, data: Data) -> None:
    """Write `data` to `path` in one rename. Errors are those of `written_aside`."""
    with written_aside(path) as aside:
        _fill(aside, data)


def write_together(contents: Sequence[tuple[Path, Data]]) -> None:
    """Write several files. All are complete beside their targets before the first is renamed.

    Raises:
        InputError: as `written_aside`, or one target named twice.
    """
    require_different(path for path, _ in contents)
    with contextlib.ExitStack() as stack:
        for path, data in contents:
            _fill(stack.enter_context(written_aside(path)), data)


def require_writable(path: Path, option: str = "-o") -> None:
    """Refuse an output file that could not be written, before any work is done.

    Nothing is created.

    option  that named `path`, for the message

    Raises:
        InputError: a directory, a device, a folder that cannot be made or is read-only.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory; give a file name with {option}")
    # Renaming over a device such as /dev/null would replace it.
    if path.exists() and not path.is_file():
        raise InputError(
            f"{path} is not a regular file; give another name with {option}"
        )
    require_writable_folder(path.parent, option)


def require_writable_folder(path: Path, option: str = "-o") -> None:
    """Like `require_writable`, for a folder that may not exist yet."""
    above = path.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise InputError(
            f"the folder {path} cannot be made: {above} is a file; give another with {option}"
        )
    try:
        # The only reliable test: permissions do not show read-only file systems, nor apply to root.
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise InputError(
            f"the folder {path} cannot be written: {error.strerror or error}; give another with "
            f"{option}"
        ) from None


def require_empty_folder(path: Path, option: str) -> None:
    """Like `require_writable_folder`, for a folder that must not hold anything yet.

    Files of an earlier run would look like those of this one.
    """
    require_writable_folder(path, option)
    if path.is_dir() and any(path.iterdir()):
        raise InputError(
            f"the folder {path} is not empty; give a new or an empty one with {option}"
        )


@contextlib.contextmanager
def new_folder(path: Path, option: str) -> Iterator[Path]:
    """A folder to fill, which becomes `path` at the end; after an error nothing is left of it.

    path  see `require_empty_folder`

    Raises:
        InputError: it cannot be written, or is no longer empty.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    make_folder(aside)
    try:
        yield aside
        try:
            # Onto an empty folder this is one step.
            aside.replace(path)
        except OSError as error:
            raise InputError(
                f"the folder {path} cannot be written: {error.strerror or error}; give another "
                f"with {option}"
            ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def require_different(paths: Iterable[Path]) -> None:
    """Refuse two outputs of the same path.

    Raises:
        InputError: a path is named twice.
    """
    seen = set()
    for path in paths:
        if path.resolve() in seen:
            raise InputError(
                f"two outputs would both be written to {path}; give each its own file"
            )
        seen.add(path.resolve())


def append_lines(path: Path, lines: list[str]) -> None:
    """Append lines to `path` in one write, so that an interruption leaves whole lines.

    A full disk leaves the file as it was. A last line without a line end is ended first.
    Threads and processes write one after another.

    Raises:
        InputError: the file cannot be written.
    """
    make_folder(path.parent)
    try:
        with path.open("a+b", buffering=0) as file, _exclusive(path):
            size = file.seek(0, os.SEEK_END)
            text = _missing_line_end(file, size) + "".join(
                f"{line}\n" for line in lines
            )
            # An unbuffered write may take a part of it only.
            data = memoryview(text.encode())
            written = 0
            try:
                while written < len(data):
                    written += file.write(data[written:]) or 0
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise _unwritable(path, error) from None


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Exclude other threads and, on systems with fcntl, other processes from writing `path`."""
    with _APPENDING, contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            import fcntl

            # The folder is locked and not the file, which a reader may lock for its whole run.
            folder = os.open(path.parent, os.O_RDONLY)
            stack.callback(os.close, folder)  # closing releases the lock
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def _missing_line_end(file: io.FileIO, size: int) -> str:
    if size == 0:
        return ""
    file.seek(size - 1)
    return "" if file.read(1) == b"\n" else "\n"


def _fill(path: Path, data: Data) -> None:
    if isinstance(data, str):
        data = data.encode()
    pieces = [data] if isinstance(data, bytes) else data
    with path.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        # Before the rename: after a power cut the name must not stand for a file without content.
        os.fsync(file.fileno())


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written: {error.strerror or error}; free room or give another place"
    )


def _umask() -> int:
    # There is no other way to ask for it.
    current = os.umask(0)
    os.umask(current)
    return current


def cache_folder() -> Path:
    """Folder of downloads and other files that can be made again.

    $REPZOO_CACHE, else "repzoo" in the user's cache folder (XDG base directory specification).
    """
    override = os.environ.get("REPZOO_CACHE")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "repzoo"


def cached_file(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The cached file `kind`/`name`, created by `make(path)` if it is absent.

    Raises:
        InputError: what `make` raises, or a cache that cannot be written. Nothing is half-written.
    """
    path = cache_folder() / kind / name
    if not path.is_file():
        try:
            with written_aside(path) as aside:
                make(aside)
        except InputError as error:
            # Where `make` itself refuses, its sentence says what to do.
            if isinstance(error.__context__, OSError):
                raise InputError(
                    f"the cache {path.parent} cannot be written; set REPZOO_CACHE to another "
                    "folder, with room"
                ) from None
            raise
    with contextlib.suppress(OSError):
        path.touch()  # marks it as the most recently used
        _trim(path)
    return path


def _trim(newest: Path) -> None:
    """Delete the least recently used files beside `newest` until CACHE_BYTES hold the rest."""
    # Names with a dot in front are files that are being written.
    files = list(newest.parent.glob("[!.]*"))
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > CACHE_BYTES and file != newest:
            file.unlink(missing_ok=True)
