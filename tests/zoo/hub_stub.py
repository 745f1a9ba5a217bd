"""A server on loopback that answers as Hugging Face does, as far as repzoo asks."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Stub:
    """One repository, `owner/name`, and all requests that came.

    files      its files by path
    sizes      sizes that it states instead of the real ones
    revisions  that it knows, besides COMMIT
    raw        bytes that it answers to every question about the repository instead
    etag       that it states instead of a file's hash
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.sizes: dict[str, int | None] = {}
        self.revisions = {"main", "v1"}
        self.raw: bytes | None = None
        self.etag = ""
        self.requests: list[str] = []
        self.address = ""
        self.created: dict[str, Any] = {}

    @property
    def is_private(self) -> bool:
        """Whether the repository was made to be private; versions of the library differ."""
        return self.created.get("visibility") == "private" or bool(
            self.created.get("private")
        )

    def info(self) -> dict[str, Any]:
        """The answer about the repository."""
        siblings = []
        for name, data in self.files.items():
            size = self.sizes.get(name, len(data))
            siblings.append({"rfilename": name, "size": size, "blobId": "0"})
        return {"id": "owner/name", "sha": COMMIT, "siblings": siblings, "tags": []}

    def commit(self, lines: bytes) -> None:
        """Take the files of a commit."""
        for line in lines.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                value = item["value"]
                self.files[value["path"]] = base64.b64decode(value["content"])


class _Handler(BaseHTTPRequestHandler):
    stub: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._resolve(with_body=False)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if not path.startswith("/api/models/owner/name"):
            self._resolve(with_body=True)
            return
        self.stub.requests.append(f"GET {path}")
        revision = path.partition("/revision/")[2]
        if revision and revision not in {*self.stub.revisions, COMMIT}:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif self.stub.raw is not None:
            self._send(200, self.stub.raw)
        else:
            self._json(self.stub.info())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        self.stub.requests.append(f"POST {path}")
        if path == "/api/repos/create":
            self.stub.created = json.loads(body)
            self._json({"url": f"{self.stub.address}/owner/name"})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": item["path"], "uploadMode": "regular", "shouldIgnore": False}
                for item in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif path.endswith("/commit/main"):
            self.stub.commit(body)
            url = f"{self.stub.address}/owner/name/commit/{COMMIT}"
            self._json({"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            self._json({"errors": [], "warnings": []})

    def _resolve(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.stub.requests.append(f"{self.command} {path}")
        prefix = f"/owner/name/resolve/{COMMIT}/"
        data = self.stub.files.get(path.removeprefix(prefix))
        if data is None or not path.startswith(prefix):
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        headers = {
            "ETag": f'"{self.stub.etag or hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
        }
        self._send(200, data, headers, with_body)

    def _json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode())

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        with_body: bool = True,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextmanager
def serve() -> Iterator[Stub]:
    """The stub, which answers on a port of its own while the block runs."""
    stub = Stub()
    handler = type("Handler", (_Handler,), {"stub": stub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    stub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
