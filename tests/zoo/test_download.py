"""Downloads against a real server on this machine: resumed, checked, bounded, refused with a
sentence.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import Run

from repzoo import storage
from repzoo.errors import InputError
from repzoo.zoo import catalog, download
from repzoo.zoo.download import PublishedWeights, fetch, matching, published

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What it does, and what it was asked."""

    address: str = ""
    content: bytes = CONTENT
    tag: str = '"one"'
    breaks_after: list[int] = field(
        default_factory=list
    )  # bytes of each answer in turn, then whole answers
    headers: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    claims: int | None = None
    ranges: list[str | None] = field(default_factory=list)

    def url(self, name: str = "w.pth") -> str:
        return f"{self.address}/{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if to := state.redirects.get(self.path):
                self.send_response(302)
                self.send_header("Location", to)
                for key, value in state.headers.items():
                    self.send_header(key, value)
                self.end_headers()
                return
            if "missing" in self.path:
                self.send_error(404)
                return
            requested = self.headers.get("Range")
            state.ranges.append(requested)
            start = 0
            if requested and self.headers.get("If-Range") == state.tag:
                start = int(requested.removeprefix("bytes=").removesuffix("-"))
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range",
                    f"bytes {start}-{len(state.content) - 1}/{len(state.content)}",
                )
            self.send_header(
                "Content-Length",
                str(len(body) if state.claims is None else state.claims),
            )
            self.send_header("ETag", state.tag)
            for key, value in state.headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(
                body[: state.breaks_after.pop(0)] if state.breaks_after else body
            )
            self.close_connection = True

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{served.server_address[1]}"
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(
        target=served.serve_forever, kwargs={"poll_interval": 0.01}
    )
    thread.start()
    yield state
    served.shutdown()
    served.server_close()
    thread.join()


def remaining_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_file_by_address_with_its_hash(
    server: Server, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = run("download", server.url(), "--sha256", SHA256, "-o", out, "--json")
    assert ran.code == 0
    (row,) = ran.document["files"]
    assert (row["status"], row["sha256"], row["bytes"], row["verified"]) == (
        "downloaded",
        SHA256,
        len(CONTENT),
        "the given hash",
    )
    assert (out / "w.pth").read_bytes() == CONTENT
    assert remaining_files(out) == ["w.pth"]
    again = run("download", server.url(), "--sha256", SHA256, "-o", out, "--json")
    assert again.document["files"][0]["status"] == "present"
    assert len(server.ranges) == 1


def test_what_nobody_states_a_hash_of_is_said_to_be_unverified(
    server: Server, run: Run, tmp_path: Path
) -> None:
    ran = run("download", server.url(), "-o", tmp_path)
    assert ran.code == 0
    assert "unverified" in ran.out


def test_a_broken_transfer_goes_on_within_one_run(
    server: Server, tmp_path: Path
) -> None:
    server.breaks_after = [1_000_000, 500_000]
    (rows,) = [matching(server.url(), SHA256)]
    result = fetch(rows[0], tmp_path)
    assert (result.status, result.file.read_bytes() == CONTENT) == ("resumed", True)
    assert server.ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_transfer_that_broke_off_goes_on_in_the_next_run(
    server: Server, tmp_path: Path
) -> None:
    server.breaks_after = [100_000] * 4
    row = matching(server.url(), SHA256)[0]
    with pytest.raises(
        InputError, match=r"broke off 4 times .* the same command continues from there"
    ):
        fetch(row, tmp_path)
    assert remaining_files(tmp_path) == ["w.pth.part", "w.pth.part.json"]
    assert fetch(row, tmp_path).status == "resumed"
    assert server.ranges[-1] == "bytes=400000-"
    assert remaining_files(tmp_path) == ["w.pth"]


def test_another_file_at_the_address_is_fetched_from_its_start(
    server: Server, tmp_path: Path
) -> None:
    server.breaks_after = [100_000] * 4
    with pytest.raises(InputError):
        fetch(matching(server.url())[0], tmp_path)
    server.content, server.tag = CONTENT[::-1], '"two"'
    assert fetch(matching(server.url())[0], tmp_path).file.read_bytes() == CONTENT[::-1]


def test_a_part_without_its_facts_is_not_trusted(
    server: Server, tmp_path: Path
) -> None:
    for facts in (
        "",
        "[]",
        json.dumps({"url": "http://other/w.pth", "etag": server.tag}),
    ):
        (tmp_path / "w.pth.part").write_bytes(b"x" * 1000)
        (tmp_path / "w.pth.part.json").write_text(facts)
        assert fetch(matching(server.url())[0], tmp_path).file.read_bytes() == CONTENT
        (tmp_path / "w.pth").unlink()
    assert server.ranges == [None] * 3


def test_a_wrong_hash_keeps_nothing(server: Server, run: Run, tmp_path: Path) -> None:
    ran = run("download", server.url(), "--sha256", "0" * 64, "-o", tmp_path / "out")
    assert (ran.code, remaining_files(tmp_path / "out")) == (2, [])
    assert "is not what was published" in ran.err
    (tmp_path / "w.pth").write_bytes(b"other")
    with pytest.raises(InputError, match=r"is there but its SHA-256 is .*remove it"):
        fetch(matching(server.url(), SHA256)[0], tmp_path)


def test_redirects(server: Server, tmp_path: Path) -> None:
    server.redirects = {
        "/a.pth": "/w.pth",
        "/file.pth": "file:///etc/passwd",
        "/ftp.pth": "ftp://127.0.0.1/x",
        "/loop.pth": "/loop.pth",
    }
    assert fetch(matching(server.url("a.pth"))[0], tmp_path).bytes == len(CONTENT)
    for name in ("file.pth", "ftp.pth"):
        with pytest.raises(InputError, match=r"is not (followed|allowed)"):
            fetch(matching(server.url(name))[0], tmp_path)
    with pytest.raises(InputError, match="answered 302"):
        fetch(matching(server.url("loop.pth"))[0], tmp_path)
    assert remaining_files(tmp_path) == ["a.pth"]


def test_answers_that_are_no_file_of_bounded_length(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="answered 404"):
        fetch(matching(server.url("missing.pth"))[0], tmp_path)
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(InputError, match="a web page, not a file"):
        fetch(matching(server.url())[0], tmp_path)
    server.headers, server.claims = {}, 2**50
    with pytest.raises(InputError, match=r"at most .* are fetched"):
        fetch(matching(server.url())[0], tmp_path)
    server.claims = None
    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="at most 1,000 are fetched"):
        fetch(matching(server.url())[0], tmp_path)
    assert remaining_files(tmp_path) == []


def test_the_hub_by_name_with_the_hash_that_it_states(
    server: Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As huggingface.co answers: a redirect that carries the hash, then the file elsewhere."""
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    server.redirects = {
        "/timm/repghostnet_100.in1k/resolve/main/model.safetensors": "/blob"
    }
    server.headers = {"X-Linked-ETag": f'"{SHA256}"'}
    ran = run("download", "repghostnet_100.in1k", "--json")
    (row,) = ran.document["files"]
    assert row["verified"] == "the Hugging Face hub"
    assert Path(row["file"]) == tmp_path / "cache" / "repghostnet_100.in1k.safetensors"
    server.content = CONTENT[:-1]
    Path(row["file"]).unlink()
    ran = run("download", "repghostnet_100.in1k")
    assert (ran.code, "is not what was published" in ran.err) == (2, True)


def test_offline_says_where_to_put_the_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A port of this machine where nobody listens stands for no network."""
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    place = tmp_path / "repghostnet_100.in1k.safetensors"
    ran = run("download", "repghostnet_100.in1k")
    assert ran.code == 2
    assert "cannot be reached" in ran.err
    assert f"put the file at {place}" in ran.err.replace("\n", " ")
    place.write_bytes(b"anything")
    assert run("download", "repghostnet_100.in1k").code == 0


def test_names_globs_families_and_all() -> None:
    assert [row.name for row in matching("repghostnet_100.in1k")] == [
        "repghostnet_100.in1k"
    ]
    assert {row.name for row in matching("repvgg_a0")} == {
        "repvgg_a0.rvgg_in1k",
        "repvgg_a0.mmpretrain",
        "repvgg_a0.paddle",
    }
    assert {row.model for row in matching("fasternet_t*.official")} == {
        "fasternet_t0",
        "fasternet_t1",
        "fasternet_t2",
    }
    assert len(matching("repghost")) == 8
    assert len(matching("all")) == sum(bool(row.url) for row in published())


@pytest.mark.parametrize(
    ("wanted", "sha256", "sentence"),
    [
        ("repghostnet_100.in1", "", "did you mean repghostnet_100.in1k"),
        (
            "repghostnet_100.official",
            "",
            "has no direct address: fetch .* at https://github.com/ChengpengChen/RepGhost",
        ),
        ("file:///etc/passwd", "", "is not an http or https address"),
        ("http://example.com/w.pth", "", "use https, or give --sha256"),
        ("https://example.com/", "", "does not end in a plain file name"),
        ("https://example.com/..%2Fx", "", "does not end in a plain file name"),
        ("repvgg_a0", SHA256, "one hash was given for 3 files"),
        ("repvgg_a0.paddle", "abc", "64 hex digits"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    wanted: str, sha256: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        matching(wanted, sha256)


def test_the_table_of_weights_agrees_with_the_catalog() -> None:
    names = [row.name for row in published()]
    assert len(set(names)) == len(names)
    assert {row.model for row in published()} <= {row.name for row in catalog.models()}
    assert all(re.match(r"https://", row.url or row.page) for row in published())
    hashed = [row for row in published() if row.sha256]
    assert len(hashed) == 12
    assert all(re.fullmatch(r"[0-9a-f]{8}", row.sha256) for row in hashed)
    links = {
        link
        for row in catalog.models()
        for item in row.figures
        for link in item.files
        if link.endswith(".pth")
    }
    assert links <= {row.url for row in published()}


def test_the_table_has_every_set_that_timm_publishes() -> None:
    timm = pytest.importorskip("timm", reason="the torch extra is not installed")
    ours = {row.name for row in published() if row.title.startswith("timm")}
    assert ours == {
        name
        for family in ("repvgg_*", "repghostnet_*", "repvit_*", "fasternet_*")
        for name in timm.list_pretrained(family)
    }


def test_weights_in_the_cache_are_loaded_by_name(server: Server) -> None:
    row = PublishedWeights(
        "repvgg_a0.rvgg_in1k",
        "repvgg_a0",
        "",
        "https://huggingface.co/timm/x/model.safetensors",
    )
    place = storage.cache_folder() / row.file
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert download.resolve(row.name) == place
    assert download.resolve("no-such-file.pth") == Path("no-such-file.pth")
    assert server.ranges == []
