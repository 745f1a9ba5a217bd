"""Published weights by name or address: resumed where a transfer broke, checked, and put in place in one rename. Needs no torch.

`weights.toml` says where they are. A file grows beside its place as `NAME.part`; the next run goes on from there only if the
server says that it still has the same file (its ETag, by If-Range), and otherwise starts again. It takes its place when its length
is the one that was stated and its SHA-256 the known one; where nobody states a hash, the result says that it is not verified.
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
from repzoo.storage import make_folder, require_writable_folder, sha256_of_file
from repzoo.zoo import catalog

MAX_BYTES = 8 * 2**30
PIECE = 2**20
TIMEOUT_S = 30
TRIES = 4
HUB = "https://huggingface.co"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PublishedWeights:
    """Published weights.

    name         MODEL.TAG, or the last part of an address
    url          "" where the authors offer no address for programs; then `page` is for a person
    sha256       what the content must be: 64 hex digits, its first eight, or "" when unknown
    hash_source  who states the hash, a phrase; "" for nobody
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
    """A file in its place. status: "downloaded", "resumed" or "present"; verified: by whose hash, "" when nobody states one."""

    name: str
    file: Path
    bytes: int
    sha256: str
    verified: str
    status: str


def cache_folder() -> Path:
    """Where downloads go: $REPZOO_CACHE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("REPZOO_CACHE") or Path(base) / "repzoo")


@cache
def published() -> tuple[PublishedWeights, ...]:
    """Every row of weights.toml, groups in its order."""
    document = tomllib.loads(
        files("repzoo.zoo").joinpath("weights.toml").read_text(encoding="utf-8")
    )
    found = [
        _row(group, model, file)
        for group in document["group"]
        for model, file in group["files"].items()
    ]
    found += [
        PublishedWeights(f"{model}.{group['tag']}", model, group["title"], page=group["page"])
        for group in document["by_hand"]
        for model in group["models"]
    ]
    return tuple(found)


def _row(group: dict[str, Any], model: str, file: str) -> PublishedWeights:
    stem = file.rpartition(".")[0]
    known = {
        "hub": ("", "the Hugging Face hub"),
        "name": (stem[-8:], "the file's name (eight digits)"),
        "": ("", ""),
    }
    sha256, hash_source = known[group["hash"]]
    return PublishedWeights(
        f"{model}.{group['tag']}",
        model,
        group["title"],
        group["base"] + file,
        "",
        sha256,
        hash_source,
    )


def matching(wanted: str, sha256: str = "") -> list[PublishedWeights]:
    """The weights that `wanted` names: an address, `all`, a family, a model, a name, or a glob of names.

    Raises:
        InputError: nothing of that name; an address that is not http or https, or plain http without a hash; an ill-formed hash.
    """
    if sha256 and not _HASH.fullmatch(sha256):
        raise InputError(f"a SHA-256 has 64 hex digits, in lower case; got {sha256!r}")
    if "://" in wanted:
        _require_address(wanted, sha256)
        return [
            PublishedWeights(
                _file_name(wanted),
                "",
                "the given address",
                wanted,
                "",
                sha256,
                "the given hash" if sha256 else "",
            )
        ]
    families = {row.name: row.family for row in catalog.models()}
    rows = [
        row
        for row in published()
        if wanted in ("all", row.name, row.model, families[row.model])
        or fnmatchcase(row.name, wanted)
    ]
    by_address = [row for row in rows if row.url]
    if not rows:
        raise InputError(
            unknown("set of published weights", wanted, [row.name for row in published()])
        )
    if not by_address:
        raise InputError(
            f"{rows[0].title} is for people: fetch {rows[0].name} at {rows[0].page} and give the file to --checkpoint"
        )
    if sha256 and len(by_address) > 1:
        raise InputError(f"one hash was given for {len(by_address)} files; name one of them")
    return (
        [replace(row, sha256=sha256, hash_source="the given hash") for row in by_address]
        if sha256
        else by_address
    )


def fetch(
    weights: PublishedWeights, folder: Path | None = None, progress: Progress = silent
) -> Fetched:
    """`weights` in `folder` (default: the cache), fetched unless they are there.

    Raises:
        InputError: no network (says where to put the file), an answer that is no file, another length or hash than stated, more
            than MAX_BYTES, or a folder that cannot be written.
    """
    folder = cache_folder() if folder is None else folder
    place = folder / weights.file
    if place.is_file():
        return _present(weights, place)
    require_writable_folder(folder)
    make_folder(folder)
    part = place.with_name(f"{place.name}.part")
    stated, kept = _transferred(weights, place, part, progress)
    found = _checked(weights, part, stated)
    part.replace(place)
    _facts(part).unlink(missing_ok=True)
    verified = weights.hash_source if weights.sha256 or stated else ""
    return Fetched(
        weights.name,
        place,
        place.stat().st_size,
        found,
        verified,
        "resumed" if kept else "downloaded",
    )


def _transferred(
    weights: PublishedWeights, place: Path, part: Path, progress: Progress
) -> tuple[str, int]:
    """As `_transfer`, tried again where the connection breaks."""
    broken: Exception | None = None
    for _ in range(TRIES):
        try:
            return _transfer(weights, part, progress)
        except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
            broken = error
        except urllib.error.HTTPError as error:
            raise InputError(
                f"{weights.url} answered {error.code} {error.reason}; check the address, or fetch it as {place}"
            ) from None
        except urllib.error.URLError as error:
            raise InputError(_offline(weights, place, error.reason)) from None
        except OSError as error:
            raise InputError(
                f"{part} cannot be written: {error.strerror or error}; free room or give another folder with -o"
            ) from None
    raise InputError(
        f"{weights.url} broke off {TRIES} times ({broken}); the same command goes on from there"
    )


def resolve(checkpoint: str | Path, progress: Progress = silent) -> Path:
    """The file that `checkpoint` means: a path, or the name of published weights, which are fetched unless they are there."""
    path = Path(checkpoint)
    if (
        path.exists()
        or isinstance(checkpoint, Path)
        or str(checkpoint) not in {row.name for row in published()}
    ):
        return path
    return fetch(matching(str(checkpoint))[0], None, progress).file


def _file_name(url: str) -> str:
    name = unquote(urlsplit(url).path.rpartition("/")[2])
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
        raise InputError(f"{url} can be changed on its way; use https, or give --sha256")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows http and https only, never down from https; keeps the hash that the hub states on the way."""

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
        to, was = urlsplit(newurl).scheme, urlsplit(req.full_url).scheme
        if to not in ("http", "https") or (was == "https" and to == "http"):
            raise InputError(
                f"{req.full_url} leads to {newurl[:200]}, which is not followed: only http and https are, and not downwards"
            )
        self.stated = _linked_hash(headers) or self.stated
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _linked_hash(headers: http.client.HTTPMessage) -> str:
    tag = (headers.get("X-Linked-ETag") or "").strip('"')
    return tag if _HASH.fullmatch(tag) else ""


def _address(weights: PublishedWeights) -> str:
    """Its address, at the mirror of the hub that the user may have set."""
    mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    url = (
        weights.url.replace(HUB, mirror, 1)
        if mirror and weights.url.startswith(f"{HUB}/")
        else weights.url
    )
    _require_address(url, weights.sha256)
    return url


def _transfer(weights: PublishedWeights, part: Path, progress: Progress) -> tuple[str, int]:
    """(hash that the hub states or "", bytes that an earlier transfer left) after appending to `part` all that it lacks."""
    redirects = _Redirects()
    request = urllib.request.Request(
        _address(weights),
        headers={"User-Agent": f"repzoo/{__version__}", "Accept-Encoding": "identity"},
    )
    have, tag = _left(weights, part)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag)
    opener = urllib.request.build_opener(redirects)
    try:
        answer = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink(missing_ok=True)  # longer than the file: not of this transfer
        raise ConnectionError("the server has fewer bytes than were kept") from None
    with answer:
        stated = _linked_hash(answer.headers) or redirects.stated
        start = _start(answer, have)
        total = _total(weights, answer, start)
        _facts(part).write_text(
            json.dumps({"url": weights.url, "etag": answer.headers.get("ETag", "")}),
            encoding="utf-8",
        )
        _append(weights, answer, part, (start, total), progress)
    return stated, start


def _left(weights: PublishedWeights, part: Path) -> tuple[int, str]:
    """(bytes kept, ETag) of an earlier transfer from the same address; (0, "") when going on would not be safe."""
    try:
        facts = json.loads(_facts(part).read_text(encoding="utf-8"))
        size, tag = part.stat().st_size, facts["etag"]
        return (
            (size, tag)
            if facts["url"] == weights.url and tag and not tag.startswith("W/")
            else (0, "")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0, ""


def _start(answer: Any, have: int) -> int:
    """Where the answer's bytes begin: `have`, or 0 when the server sends the whole file."""
    if answer.status != 206:
        return 0
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if not match or int(match[1]) != have:
        raise InputError(
            "the server answered with another part of the file than was asked for; delete the .part file and try again"
        )
    return have


def _total(weights: PublishedWeights, answer: Any, start: int) -> int:
    length = answer.headers.get("Content-Length", "")
    if "text/html" in answer.headers.get("Content-Type", ""):
        raise InputError(
            f"{weights.url} answered with a web page, not a file (log-in? quota?); fetch it by hand"
        )
    if not length.isdecimal():
        raise InputError(f"{weights.url} does not say how long its file is; fetch it by hand")
    if start + int(length) > MAX_BYTES:
        raise InputError(
            f"{weights.url} has {start + int(length):,} bytes; at most {MAX_BYTES:,} are fetched"
        )
    return start + int(length)


def _append(
    weights: PublishedWeights, answer: Any, part: Path, span: tuple[int, int], progress: Progress
) -> None:
    """Write the bytes from span[0] to span[1]; what came before a break stays for the next try."""
    done, total = span
    with part.open("r+b" if done else "wb") as file:
        file.seek(done)
        while done < total:
            piece = answer.read(min(PIECE, total - done))
            if not piece:
                raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")
            file.write(piece)
            done += len(piece)
            progress(f"fetch {weights.name}", done, total)
        file.truncate(done)
        file.flush()
        os.fsync(file.fileno())


def _checked(weights: PublishedWeights, part: Path, stated: str) -> str:
    found, wanted = sha256_of_file(part), weights.sha256 or stated
    if not found.startswith(wanted):
        part.unlink()
        _facts(part).unlink(missing_ok=True)
        raise InputError(
            f"{weights.url} is not what was published: its SHA-256 is {found}, expected {wanted}{'' if len(wanted) == 64 else '...'}; "
            "nothing was kept; try again, and ask its source if it stays so"
        )
    return found


def _present(weights: PublishedWeights, place: Path) -> Fetched:
    found = sha256_of_file(place)
    if not found.startswith(weights.sha256):
        raise InputError(
            f"{place} is there but its SHA-256 is {found}, expected {weights.sha256}; remove it and try again"
        )
    return Fetched(
        weights.name,
        place,
        place.stat().st_size,
        found,
        weights.hash_source if weights.sha256 else "",
        "present",
    )


def _offline(weights: PublishedWeights, place: Path, reason: object) -> str:
    host = urlsplit(weights.url).hostname
    return f"{host} cannot be reached ({reason}); fetch {weights.url} on a machine that can, and put the file at {place}"


def _facts(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def fetch_all(
    rows: Sequence[PublishedWeights], folder: Path | None, progress: Progress = silent
) -> tuple[list[Fetched], list[str]]:
    """(what is in its place, sentences on what is not): one failure does not stop the others."""
    done: list[Fetched] = []
    failed: list[str] = []
    for row in rows:
        try:
            done.append(fetch(row, folder, progress))
        except InputError as error:
            failed.append(f"{row.name}: {error}")
    return done, failed
