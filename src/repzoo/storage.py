"""Reading and writing files so that nothing is half-written, lost or unbounded."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from repzoo.errors import InputError

_APPENDING = threading.Lock()
CACHE_BYTES = 2**30  # of one kind; the oldest beyond this are deleted

Data = bytes | str | Iterable[bytes]  # text is written as UTF-8; pieces one after another


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


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of `path`, refused before reading when there are more than `limit`.

    Raises:
        InputError: no such file, not a regular file, unreadable, or larger than `limit` bytes.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path} is a directory; expected a file")
        if not path.is_file():  # a device or pipe has no size, and may never end
            raise InputError(f"{path} is not a regular file; copy its content to one")
        if size > limit:
            raise InputError(f"{path} has {size:,} bytes; at most {limit:,} are accepted here")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_lines(path: Path, limit: int = 2**24) -> list[str]:
    """The lines of a small UTF-8 text (a byte-order mark is dropped) that hold more than spaces.

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
    """Create the folder `path` and its parents; an InputError says why it cannot be."""
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
    aside: Path | None = None
    try:
        handle, name = tempfile.mkstemp(
            prefix=".repzoo.", suffix=".part", dir=path.parent
        )  # as long as `path` may be longer
        os.close(handle)
        aside = Path(name)
        yield aside
        aside.chmod(0o666 & ~_umask())
        aside.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def write_atomically(path: Path, data: Data) -> None:
    """Write `data` to `path` in one rename; see `written_aside` for errors."""
    with written_aside(path) as aside:
        _fill(aside, data)


def write_together(contents: Sequence[tuple[Path, Data]]) -> None:
    """Write several files: all are complete beside their places before the first is renamed.

    Raises:
        InputError: as `written_aside`, or one place named twice.
    """
    if len({path.resolve() for path, _ in contents}) < len(contents):
        raise InputError(
            f"two outputs would both be written to {contents[0][0]}; give each its own file"
        )
    with contextlib.ExitStack() as stack:
        for path, data in contents:
            _fill(stack.enter_context(written_aside(path)), data)


def require_writable(path: Path) -> None:
    """Refuse, before any work is done, an output file `path` that could not be written at its end. Makes nothing.

    Raises:
        InputError: a directory, a device, a folder that cannot be made or is read-only.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory; give a file name with -o")
    if path.exists() and not path.is_file():  # renaming over /dev/null would replace the device
        raise InputError(f"{path} is not a regular file; give another name with -o")
    require_writable_folder(path.parent)


def require_writable_folder(path: Path) -> None:
    """As `require_writable`, for a folder that may not exist yet."""
    above = path.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise InputError(
            f"the folder {path} cannot be made: {above} is a file; give another with -o"
        )
    try:
        tempfile.TemporaryFile(
            dir=above
        ).close()  # the only true test: permissions say nothing of file systems or of root
    except OSError as error:
        raise InputError(
            f"the folder {path} cannot be written: {error.strerror or error}; give another with -o"
        ) from None


def append_lines(path: Path, lines: list[str]) -> None:
    """Append whole lines to `path` in one write, so that a kill leaves whole lines; a full disk leaves the file as it was.

    A last line that another hand left without its end is ended first. Writers take turns, so that none sees half of another's.
    """
    make_folder(path.parent)
    try:
        with path.open("a+b", buffering=0) as file, _turn(path):
            before, done = file.seek(0, os.SEEK_END), 0
            data = memoryview(
                (_missing_end(file, before) + "".join(line + "\n" for line in lines)).encode()
            )
            try:
                while done < len(data):
                    done += file.write(data[done:]) or 0
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise _unwritable(path, error) from None


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """This writer's turn at `path`, among threads and, where the system has fcntl, among processes."""
    with _APPENDING, contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            import fcntl

            folder = os.open(
                path.parent, os.O_RDONLY
            )  # not the file itself, which a reader may hold locked for its whole run
            stack.callback(os.close, folder)  # gives the lock back
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def _missing_end(file: io.FileIO, size: int) -> str:
    if size:
        file.seek(size - 1)
    return "\n" if size and file.read(1) != b"\n" else ""


def _fill(path: Path, data: Data) -> None:
    with path.open("wb") as file:
        file.writelines(
            [data.encode()]
            if isinstance(data, str)
            else [data]
            if isinstance(data, bytes)
            else data
        )
        file.flush()
        os.fsync(file.fileno())


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written: {error.strerror or error}; free room or give another place"
    )


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def cache_folder() -> Path:
    """Where what can be made again is kept: $REPZOO_CACHE, else repzoo in the user's cache folder (XDG)."""
    if own := os.environ.get("REPZOO_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "repzoo"


def cached_file(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The file `name` of the cache's folder `kind`, made by `make(path)` when it is not there; the oldest go beyond CACHE_BYTES.

    Raises:
        InputError: whatever `make` raises, or a cache that cannot be written; nothing is left half-made.
    """
    path = cache_folder() / kind / name
    if not path.is_file():
        try:
            with written_aside(path) as aside:
                make(aside)
        except InputError as error:
            if isinstance(error.__context__, OSError):
                raise InputError(
                    f"the cache {path.parent} cannot be written; set REPZOO_CACHE to a folder with room"
                ) from None
            raise
    with contextlib.suppress(OSError):
        path.touch()  # the one just used is the youngest
        _trim(path)
    return path


def _trim(newest: Path) -> None:
    """Delete the files used longest ago until the folder of `newest` holds at most CACHE_BYTES."""
    facts = sorted(
        ((one.stat().st_mtime, one.stat().st_size, one) for one in newest.parent.glob("[!.]*")),
        reverse=True,
    )
    total = 0
    for _, size, one in facts:
        total += size
        if total > CACHE_BYTES and one != newest:
            one.unlink(missing_ok=True)
