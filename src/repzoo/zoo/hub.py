"""Models on Hugging Face: `hf:owner/name`. Nothing that is fetched is executed.

Only files whose name says that they hold data are fetched, and none whose size is not known to be
within its limit before. What is fetched is read as any other file: by readers that trust nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from repzoo.errors import InputError, MissingExtra, first_line
from repzoo.printable import one_line
from repzoo.storage import cache_folder

PREFIX = "hf:"
HUGGING_FACE = "https://huggingface.co"
# Bytes of a file that is fetched, by its suffix. Others are not fetched.
MAX_BYTES = {
    ".onnx": 2**31,  # one protobuf holds no more
    ".safetensors": 2**32,
    ".json": 2**22,
    ".md": 2**22,
}
SHOWN_FILES = 8
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_NAME = re.compile(
    rf"hf:(?P<repository>{_PART}/{_PART})(?:/(?P<file>[^@]+))?(?:@(?P<revision>[^@\s]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Of a repository with several files: the INT8 file is the one to run.
PREFERRED = (".int8.onnx", ".deploy.onnx")


@dataclass(frozen=True)
class HubName:
    """A model on Hugging Face: `hf:owner/name[/path/file.onnx][@revision]`.

    file      path in the repository; "" for the only model, or the one in INT8
    revision  branch, tag or commit; "" for the default branch
    """

    repository: str
    file: str = ""
    revision: str = ""


@dataclass(frozen=True)
class HubFile:
    """A file that was fetched, of a commit of a repository."""

    name: HubName
    file: str
    commit: str
    path: Path

    @property
    def origin(self) -> str:
        """Where it came from, for the history: `hf:owner/name/file@commit`."""
        return f"{PREFIX}{self.name.repository}/{self.file}@{self.commit}"


@dataclass(frozen=True)
class _Listing:
    """The files of a commit, with their sizes in bytes; None where the server states none."""

    commit: str
    sizes: Mapping[str, int | None]
    folder: Path | None = (
        None  # of what is in the cache, where the server is not reached
    )


def is_hub_name(source: object) -> bool:
    """Whether `source` names a model on Hugging Face."""
    return str(source).startswith(PREFIX)


def parse(name: str) -> HubName:
    """The parts of `hf:owner/name[/file][@revision]`.

    Raises:
        InputError: it is not of that form.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"{one_line(name)} is no model on Hugging Face; expected hf:owner/name, "
            "hf:owner/name@revision or hf:owner/name/file.onnx"
        )
    return HubName(match["repository"], match["file"] or "", match["revision"] or "")


def require_repository(repository: str) -> None:
    """Refuse what is not owner/name.

    Raises:
        InputError: says what was expected.
    """
    if re.fullmatch(rf"{_PART}/{_PART}", repository) is None:
        raise InputError(
            f"{one_line(repository)} is no repository on Hugging Face; expected owner/name"
        )


def fetch(name: str, suffixes: Sequence[str] = (".onnx",)) -> HubFile:
    """Fetch the model `name` into the cache; offline, what is in the cache serves.

    suffixes  of the files that may be the model, the preferred first

    Raises:
        InputError: no such repository, revision or file; several that may be meant; a file that is
            not fetched or too large; a server that is not reached or answers nonsense.
        MissingExtra: huggingface_hub is not installed.
    """
    wanted = parse(name)
    listing = _list(wanted)
    file = _choose(wanted, listing, suffixes)
    return _fetch(wanted, listing, file)


def fetch_beside(model: HubFile, file: str) -> Path | None:
    """Another `file` of the same commit, such as config.json; None where there is none.

    Raises:
        InputError: as `fetch`.
    """
    pinned = HubName(model.name.repository, revision=model.commit)
    listing = _list(pinned)
    if file not in listing.sizes:
        return None
    return _fetch(pinned, listing, file).path


def push(
    repository: str,
    files: Mapping[str, Path],
    message: str,
    *,
    private: bool = True,
    revision: str = "",
) -> tuple[str, str]:
    """Upload `files` (by their path in the repository) as one commit; its (hash, address).

    The repository is made where it does not exist.

    Raises:
        InputError: no owner/name, not logged in, no right to write, or a server that is not
            reached.
        MissingExtra: huggingface_hub is not installed.
    """
    require_repository(repository)
    hub = _library()
    api = hub.HfApi(endpoint=endpoint())
    operations = [
        hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
        for name, path in files.items()
    ]
    unreached = "so nothing is uploaded; check the network"
    with _reachable(), _sentences(HubName(repository, revision=revision), unreached):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repository,
            operations,
            commit_message=message,
            revision=revision or None,
        )
    return str(commit.oid), str(commit.commit_url)


def endpoint() -> str:
    """The address of the server: $HF_ENDPOINT, else Hugging Face's own."""
    return (os.environ.get("HF_ENDPOINT") or HUGGING_FACE).rstrip("/")


def _library() -> Any:
    # Read on import. It would otherwise ask the server for a list of agents, and name the one
    # that runs it, and the version of torch, in every request.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub.errors
    except ImportError:
        raise MissingExtra("Hugging Face", "hub") from None
    return huggingface_hub


def _cache() -> Path:
    return cache_folder() / "hub"


def _list(wanted: HubName) -> _Listing:
    """The files of the revision that is wanted."""
    hub = _library()
    try:
        with _sentences(wanted):
            info = hub.HfApi(endpoint=endpoint()).model_info(
                wanted.repository, revision=wanted.revision or None, files_metadata=True
            )
            sizes = {str(item.rfilename): item.size for item in info.siblings or ()}
            commit = str(info.sha)
    except _Unreachable as error:
        cached = _list_cache(hub, wanted)
        if cached is None:
            raise InputError(str(error)) from None
        return cached
    if not _COMMIT.fullmatch(commit):
        raise InputError(
            f"{endpoint()} states no commit of {wanted.repository}; got {one_line(commit)[:60]}"
        )
    return _Listing(commit, sizes)


def _list_cache(hub: Any, wanted: HubName) -> _Listing | None:
    """What an earlier call has fetched of it; of several commits the newest."""
    try:
        repositories = hub.scan_cache_dir(_cache()).repos
    except hub.errors.CacheNotFound:
        return None
    commits = [
        revision
        for repository in repositories
        if repository.repo_id == wanted.repository
        for revision in repository.revisions
    ]
    if wanted.revision:
        commits = [item for item in commits if item.commit_hash == wanted.revision]
    if not commits:
        return None
    newest = max(commits, key=lambda item: item.last_modified)
    folder = Path(newest.snapshot_path)
    sizes: dict[str, int | None] = {}
    for item in newest.files:
        sizes[Path(item.file_path).relative_to(folder).as_posix()] = item.size_on_disk
    return _Listing(newest.commit_hash, sizes, folder)


def _choose(wanted: HubName, listing: _Listing, suffixes: Sequence[str]) -> str:
    """The path of the model in the repository."""
    if wanted.file:
        if wanted.file not in listing.sizes:
            raise InputError(
                f"{wanted.repository} has no file {one_line(wanted.file)}; "
                f"{_shown(listing.sizes)}"
            )
        return wanted.file
    for suffix in suffixes:
        models = [name for name in listing.sizes if name.endswith(suffix)]
        chosen = _preferred(models)
        if chosen:
            return chosen
        if models:
            raise InputError(
                f"{wanted.repository} has several models; say which, such as "
                f"hf:{wanted.repository}/{models[0]}; {_shown(models)}"
            )
    raise InputError(
        f"{wanted.repository} has no {' or '.join(suffixes)} file; {_shown(listing.sizes)}"
    )


def _preferred(models: Sequence[str]) -> str:
    """The only model, or the only one of the first kind that there is; "" for none."""
    if len(models) == 1:
        return models[0]
    for ending in PREFERRED:
        matching = [name for name in models if name.endswith(ending)]
        if len(matching) == 1:
            return matching[0]
    return ""


def _shown(names: Mapping[str, Any] | Sequence[str]) -> str:
    listed = ", ".join(one_line(name) for name in list(names)[:SHOWN_FILES])
    more = ", ..." if len(names) > SHOWN_FILES else ""
    return f"it has {listed}{more}" if names else "it is empty"


def _fetch(wanted: HubName, listing: _Listing, file: str) -> HubFile:
    """Fetch one file, if its name and its size are within the limits."""
    _require_safe(wanted, file, listing.sizes[file])
    if listing.folder is not None:
        return HubFile(wanted, file, listing.commit, listing.folder / file)
    hub = _library()
    # The commit, not the branch: another may be pushed meanwhile.
    place = {"revision": listing.commit, "endpoint": endpoint()}
    with _reachable(), _sentences(wanted):
        url = hub.hf_hub_url(wanted.repository, file, **place)
        headers = hub.get_hf_file_metadata(url)
        _require_stated(wanted, listing, file, headers.size)
        # The library takes it for the name of a file in the cache.
        if not re.fullmatch(r"[\w-]{1,128}", str(headers.etag), re.ASCII):
            raise InputError(f"{wanted.repository}/{file}: {endpoint()} names no hash")
        path = hub.hf_hub_download(wanted.repository, file, cache_dir=_cache(), **place)
    _require_stated(wanted, listing, file, Path(path).stat().st_size)
    return HubFile(wanted, file, listing.commit, Path(path))


def _require_stated(
    wanted: HubName, listing: _Listing, file: str, actual: int | None
) -> None:
    """Refuse a file of another size than the listing states, which is within the limit."""
    stated = listing.sizes[file]
    if actual != stated:
        raise InputError(
            f"{wanted.repository}/{file} has {actual} bytes, and the list of files states "
            f"{stated}; it is not used"
        )


def _require_safe(wanted: HubName, file: str, size: int | None) -> None:
    """Refuse files of other kinds, names that leave the folder, and sizes beyond the limit."""
    where = f"{wanted.repository}/{one_line(file)}"
    path = PurePosixPath(file)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in file
        or one_line(file) != file
    ):
        raise InputError(f"{where} is not fetched: its name is no path in a repository")
    limit = MAX_BYTES.get(path.suffix)
    if limit is None:
        raise InputError(
            f"{where} is not fetched; only {', '.join(MAX_BYTES)} files are, which hold no code"
        )
    if size is None or not 0 <= size <= limit:
        stated = "of unknown size" if size is None else f"of {size:,} bytes"
        raise InputError(
            f"{where} is a file {stated}; at most {limit:,} bytes are fetched"
        )


class _Unreachable(Exception):
    """The server is not reached: what is in the cache may serve."""


@contextlib.contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except _Unreachable as error:
        raise InputError(str(error)) from None


@contextlib.contextmanager
def _sentences(wanted: HubName, unreached: str = "") -> Iterator[None]:
    """Turn the errors of huggingface_hub into sentences; `unreached` ends that of no network."""
    unreached = unreached or (
        f"and {wanted.repository} is not in the cache; check the network, or give the model's file"
    )
    errors = _library().errors
    # The HTTP client is another one in each major version of huggingface_hub.
    transport_error = errors.HfHubHTTPError.__bases__[0]
    where = f"{wanted.repository} on {endpoint()}"
    try:
        yield
    except errors.RevisionNotFoundError:
        raise InputError(
            f"{where} has no revision {wanted.revision}; leave @{wanted.revision} out, or give "
            "another branch, tag or commit"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"{where} does not exist, or is private or gated; check the name, or log in with: "
            "hf auth login"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = "; log in with: hf auth login" if status in (401, 403) else ""
        raise InputError(
            f"{where}: the server answered {status}: {one_line(first_line(error))[:200]}{advice}"
        ) from None
    except (errors.LocalEntryNotFoundError, ConnectionError, transport_error):
        raise _Unreachable(f"{endpoint()} is not reached, {unreached}") from None
    # What the library raises where an answer is not what it expects.
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(
            f"{where}: {type(error).__name__}: {one_line(first_line(error))[:200]}"
        ) from None
