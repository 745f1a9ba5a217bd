"""Download published weights by name or address. Needs no torch.

`weights.toml` lists them. A file grows as `NAME.part` beside its target. The next run continues
it only if the server confirms that it still has the same file (its ETag, by If-Range), and
otherwise starts again. The file gets its name when its length is the stated one and its SHA-256
the known one. If nobody states a hash, the result says that the file is not verified.

Only http and https are followed, and never from https to http.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import tomllib
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from repzoo import __version__
from repzoo.errors import InputError
from repzoo.plugins import unknown
from repzoo.progress import Progress, silent
from repzoo.storage import (
    cache_folder,
    make_folder,
    require_writable_folder,
    sha256_of_file,
)
from repzoo.zoo import catalog

MAX_BYTES = 8 * 2**30
PIECE = 2**20
TIMEOUT_S = 30
TRIES = 4
HUB = "https://huggingface.co"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PublishedWeights:
    """One file of published weights.

    name         MODEL.TAG, or the last part of an address
    url          "" if the authors offer no direct address; `page` is then for a person
    sha256       expected hash: 64 hex digits, the first eight, or "" if unknown
    hash_source  who states the hash, as a phrase; "" for nobody
    """

    name: str
    model: str
    title: str
    url: str = ""
    page: str = ""
    sha256: str = ""
    hash_source: str = ""

    @property
    def file(self) -> str:
        """Name of its file in the cache."""
        last = unquote(urlsplit(self.url).path.rpartition("/")[2])
        return f"{self.name}{Path(last).suffix}" if self.model else last


@dataclass(frozen=True)
class Fetched:
    """A downloaded file.

    verified  whose hash was compared; "" if nobody states one
    status    "downloaded", "resumed" or "present"
    """

    name: str
    file: Path
    bytes: int
    sha256: str
    verified: str
    status: str


@cache
def published() -> tuple[PublishedWeights, ...]:
    """Every row of weights.toml, groups in its order."""
    document = tomllib.loads(
        files("repzoo.zoo").joinpath("weights.toml").read_text(encoding="utf-8")
    )
    rows: list[PublishedWeights] = []
    for group in document["group"]:
        for model, file in group["files"].items():
            rows.append(_row(group, model, file))
    for group in document["by_hand"]:
        for model in group["models"]:
            name = f"{model}.{group['tag']}"
            rows.append(
                PublishedWeights(name, model, group["title"], page=group["page"])
            )
    return tuple(rows)


def _row(group: dict[str, Any], model: str, file: str) -> PublishedWeights:
    # The hub states hashes in its answers; torch's hub ends file names with eight digits of theirs.
    stem = file.rpartition(".")[0]
    known = {
        "hub": ("", "the Hugging Face hub"),
        "name": (stem[-8:], "the file's name (eight digits)"),
        "": ("", ""),
    }
    sha256, hash_source = known[group["hash"]]
    return PublishedWeights(
        name=f"{model}.{group['tag']}",
        model=model,
        title=group["title"],
        url=group["base"] + file,
        sha256=sha256,
        hash_source=hash_source,
    )


def matching(wanted: str, sha256: str = "") -> list[PublishedWeights]:
    """The weights that `wanted` names: an address, `all`, a family, a model, a name or a glob.

    Raises:
        InputError: no such weights; an address that is not http or https, or plain http without
            a hash; a malformed hash.
    """
    if sha256 and not _HASH.fullmatch(sha256):
        raise InputError(f"a SHA-256 has 64 hex digits, in lower case; got {sha256!r}")
    if "://" in wanted:
        return [_at_address(wanted, sha256)]
    rows = _rows_matching(wanted)
    if not rows:
        known = [row.name for row in published()]
        raise InputError(unknown("set of published weights", wanted, known))
    with_address = [row for row in rows if row.url]
    if not with_address:
        row = rows[0]
        raise InputError(
            f"{row.title} has no direct address: fetch {row.name} at {row.page} in a browser and "
            "give the file to --checkpoint"
        )
    if not sha256:
        return with_address
    if len(with_address) > 1:
        raise InputError(
            f"one hash was given for {len(with_address)} files; name one of them"
        )
    return [
        replace(row, sha256=sha256, hash_source="the given hash")
        for row in with_address
    ]


def _at_address(url: str, sha256: str) -> PublishedWeights:
    _require_address(url, sha256)
    hash_source = "the given hash" if sha256 else ""
    return PublishedWeights(
        name=_file_name(url),
        model="",
        title="the given address",
        url=url,
        sha256=sha256,
        hash_source=hash_source,
    )


def _rows_matching(wanted: str) -> list[PublishedWeights]:
    family_of = {spec.name: spec.family for spec in catalog.models()}
    rows: list[PublishedWeights] = []
    for row in published():
        names = ("all", row.name, row.model, family_of[row.model])
        if wanted in names or fnmatchcase(row.name, wanted):
            rows.append(row)
    return rows


def fetch(
    weights: PublishedWeights, folder: Path | None = None, progress: Progress = silent
) -> Fetched:
    """Download `weights` to `folder` (default: the cache) unless they are there.

    Raises:
        InputError: no network (the error says where to put the file), an answer that is not a
            file, a wrong length or hash, more than MAX_BYTES, or a folder that cannot be written.
    """
    folder = cache_folder() if folder is None else folder
    target = folder / weights.file
    if target.is_file():
        return _present(weights, target)
    require_writable_folder(folder)
    make_folder(folder)
    part = target.with_name(f"{target.name}.part")
    stated, resumed_bytes = _transfer_with_retries(weights, target, part, progress)
    sha256 = _verified_hash(weights, part, stated)
    part.replace(target)
    _facts_file(part).unlink(missing_ok=True)
    return Fetched(
        name=weights.name,
        file=target,
        bytes=target.stat().st_size,
        sha256=sha256,
        # Of the hub's files a hash is known only where an answer stated it.
        verified=weights.hash_source if weights.sha256 or stated else "",
        status="resumed" if resumed_bytes else "downloaded",
    )


def fetch_all(
    rows: Sequence[PublishedWeights], folder: Path | None, progress: Progress = silent
) -> tuple[list[Fetched], list[str]]:
    """(downloaded files, one sentence per failure). A failure does not stop the others."""
    done: list[Fetched] = []
    failed: list[str] = []
    for row in rows:
        try:
            done.append(fetch(row, folder, progress))
        except InputError as error:
            failed.append(f"{row.name}: {error}")
    return done, failed


def resolve(checkpoint: str | Path, progress: Progress = silent) -> Path:
    """The file that `checkpoint` names: a path, or published weights, downloaded if necessary."""
    path = Path(checkpoint)
    if path.exists() or isinstance(checkpoint, Path):
        return path
    if checkpoint not in {row.name for row in published()}:
        return path
    return fetch(matching(str(checkpoint))[0], None, progress).file


def _file_name(url: str) -> str:
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    # The name becomes a file in the cache: no folder, no leading dot.
    if not re.fullmatch(r"[\w][\w.+=-]{0,200}", name):
        raise InputError(
            f"the address {url} does not end in a plain file name; fetch it with another program"
        )
    return name


def _require_address(url: str, sha256: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{url} is not an http or https address")
    if parts.scheme == "http" and not sha256 and not _is_loopback(parts.hostname):
        raise InputError(
            f"{url} can be changed on its way; use https, or give --sha256"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, never from https to http.

    stated  hash that the hub gave in one of the redirects; "" if none
    """

    stated = ""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """See urllib.request.HTTPRedirectHandler."""
        old_scheme = urlsplit(req.full_url).scheme
        new_scheme = urlsplit(newurl).scheme
        is_downgrade = old_scheme == "https" and new_scheme == "http"
        if new_scheme not in ("http", "https") or is_downgrade:
            raise InputError(
                f"{req.full_url} leads to {newurl[:200]}, which is not followed: only http and "
                "https are, and never from https to http"
            )
        # The hub states the hash in its redirect, not where the file is then fetched.
        self.stated = _linked_hash(headers) or self.stated
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _linked_hash(headers: http.client.HTTPMessage) -> str:
    # The SHA-256 of a large file, but Git's own, shorter hash of a small one.
    tag = (headers.get("X-Linked-ETag") or "").strip('"')
    return tag if _HASH.fullmatch(tag) else ""


def _address(weights: PublishedWeights) -> str:
    """The address of `weights`, at the hub's mirror if HF_ENDPOINT names one."""
    url = weights.url
    mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if mirror and url.startswith(f"{HUB}/"):
        url = url.replace(HUB, mirror, 1)
    _require_address(url, weights.sha256)
    return url


def _transfer_with_retries(
    weights: PublishedWeights, target: Path, part: Path, progress: Progress
) -> tuple[str, int]:
    """`_transfer`, repeated when the connection breaks."""
    broken: Exception | None = None
    for _ in range(TRIES):
        try:
            return _transfer(weights, part, progress)
        # These may pass on a second try; an answer such as 404 or a full disk will not. All but
        # the first are OSErrors, so the widest clause comes last.
        except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
            broken = error
        except urllib.error.HTTPError as error:
            raise InputError(
                f"{weights.url} answered {error.code} {error.reason}; check the address, or "
                f"fetch it as {target}"
            ) from None
        except urllib.error.URLError as error:
            raise InputError(_offline_advice(weights, target, error.reason)) from None
        except OSError as error:
            raise InputError(
                f"{part} cannot be written: {error.strerror or error}; free room or give another "
                "folder with -o"
            ) from None
    raise InputError(
        f"{weights.url} broke off {TRIES} times ({broken}); the same command continues from there"
    )


def _transfer(
    weights: PublishedWeights, part: Path, progress: Progress
) -> tuple[str, int]:
    """Append to `part` what it lacks.

    Returns:
        (hash that the hub states or "", bytes that an earlier transfer had left)
    """
    redirects = _Redirects()
    # Offsets and lengths count the bytes of the file, so the server must not compress them.
    headers = {"User-Agent": f"repzoo/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(_address(weights), headers=headers)
    offset, etag = _resumable(weights, part)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", etag)
    opener = urllib.request.build_opener(redirects)
    try:
        answer = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # 416, range not satisfiable: the part is longer than the file, so it is of another file.
        part.unlink(missing_ok=True)
        # As for a broken connection: the next try starts at the first byte.
        raise ConnectionError("the server has fewer bytes than were kept") from None
    with answer:
        stated = _linked_hash(answer.headers) or redirects.stated
        start = _start_of(answer, offset)
        total = _total_bytes(weights, answer, start)
        facts = {"url": weights.url, "etag": answer.headers.get("ETag", "")}
        # Before the bytes: without these facts a part is never continued, see `_resumable`.
        _facts_file(part).write_text(json.dumps(facts), encoding="utf-8")
        _append(weights, answer, part, (start, total), progress)
    return stated, start


def _resumable(weights: PublishedWeights, part: Path) -> tuple[int, str]:
    """(bytes kept, ETag) of an earlier transfer from the same address; (0, "") if unusable."""
    try:
        facts = json.loads(_facts_file(part).read_text(encoding="utf-8"))
        size = part.stat().st_size
        etag = facts["etag"]
        # A weak ETag (W/) does not promise identical bytes.
        if facts["url"] == weights.url and etag and not etag.startswith("W/"):
            return size, etag
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return 0, ""


def _start_of(answer: Any, offset: int) -> int:
    """Where the answer's bytes begin: `offset`, or 0 if the server sends the whole file."""
    # 206: partial content. A changed file comes whole, with 200 (RFC 9110, section 13.1.5).
    if answer.status != 206:
        return 0
    match = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "")
    )
    if not match or int(match[1]) != offset:
        raise InputError(
            "the server answered with another part of the file than was asked for; delete the "
            ".part file and try again"
        )
    return offset


def _total_bytes(weights: PublishedWeights, answer: Any, start: int) -> int:
    length = answer.headers.get("Content-Length", "")
    if "text/html" in answer.headers.get("Content-Type", ""):
        raise InputError(
            f"{weights.url} answered with a web page, not a file (log-in? quota?); fetch it by hand"
        )
    # Without a length, a transfer that breaks off would look complete.
    if not length.isdecimal():
        raise InputError(
            f"{weights.url} does not say how long its file is; fetch it by hand"
        )
    if start + int(length) > MAX_BYTES:
        raise InputError(
            f"{weights.url} has {start + int(length):,} bytes; at most {MAX_BYTES:,} are fetched"
        )
    return start + int(length)


def _append(
    weights: PublishedWeights,
    answer: Any,
    part: Path,
    span: tuple[int, int],
    progress: Progress,
) -> None:
    """Write the bytes from span[0] to span[1]. What arrives before a break is kept."""
    done, total = span
    with part.open("r+b" if done else "wb") as file:
        file.seek(done)
        while done < total:
            piece = answer.read(min(PIECE, total - done))
            if not piece:
                raise ConnectionError(
                    f"the connection ended after {done:,} of {total:,} bytes"
                )
            file.write(piece)
            done += len(piece)
            progress(f"fetch {weights.name}", done, total)
        file.truncate(done)
        file.flush()
        # Before the rename: after a power cut the name must not stand for a file without content.
        os.fsync(file.fileno())


def _verified_hash(weights: PublishedWeights, part: Path, stated: str) -> str:
    """The SHA-256 of `part`, which is deleted if it is not the expected one."""
    sha256 = sha256_of_file(part)
    expected = weights.sha256 or stated
    if not sha256.startswith(expected):
        part.unlink()
        _facts_file(part).unlink(missing_ok=True)
        shown = expected if len(expected) == 64 else f"{expected}..."
        raise InputError(
            f"{weights.url} is not what was published: its SHA-256 is {sha256}, expected {shown}; "
            "nothing was kept; try again, and ask its source if it stays so"
        )
    return sha256


def _present(weights: PublishedWeights, target: Path) -> Fetched:
    sha256 = sha256_of_file(target)
    if not sha256.startswith(weights.sha256):
        raise InputError(
            f"{target} is there but its SHA-256 is {sha256}, expected {weights.sha256}; remove it "
            "and try again"
        )
    return Fetched(
        name=weights.name,
        file=target,
        bytes=target.stat().st_size,
        sha256=sha256,
        verified=weights.hash_source if weights.sha256 else "",
        status="present",
    )


def _offline_advice(weights: PublishedWeights, target: Path, reason: object) -> str:
    host = urlsplit(weights.url).hostname
    return (
        f"{host} cannot be reached ({reason}); fetch {weights.url} on a machine that can, and put "
        f"the file at {target}"
    )


def _facts_file(part: Path) -> Path:
    """Where the address and ETag of an unfinished transfer are kept."""
    return part.with_name(f"{part.name}.json")
