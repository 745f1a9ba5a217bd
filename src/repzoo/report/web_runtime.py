"""The runtime of the demo: onnxruntime-web, fetched once by npm and checked against its hash.

npm is the client because it knows the user's registry, mirror and proxy. No script of the package
is run. What is not byte for byte the version named here is refused.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from repzoo.errors import InputError
from repzoo.progress import Progress, silent
from repzoo.storage import cache_folder, cached_file, read_bounded

NAME = "onnxruntime-web"
VERSION = "1.30.0"
# `npm view onnxruntime-web@1.30.0 dist.integrity`, without its prefix.
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
TARBALL = f"{NAME}-{VERSION}.tgz"
# The build without GPU back ends, whose loader is in the same file: a page from file:// may import
# no other.
SCRIPT = "package/dist/ort.wasm.bundle.min.mjs"
WASM = "package/dist/ort-wasm-simd-threaded.wasm"
KIND = "web-runtime"  # its folder in the cache
MAX_BYTES = 2**26
NPM_SECONDS = 600
_EXPORTS = re.compile(r"export\s*{([^{}]*)};?\s*(?://[^\n]*)?\s*$")


@dataclass(frozen=True)
class WebRuntime:
    """The runtime's two parts.

    script  JavaScript of a module; it sets the global `ort`
    wasm    the WebAssembly binary
    """

    script: str
    wasm: bytes


def load(progress: Progress = silent) -> WebRuntime:
    """The runtime from the cache, where npm puts it first.

    Raises:
        InputError: npm is missing, cannot reach its registry or brings another package.
    """

    def fetch(path: Path) -> None:
        progress(f"fetch {NAME}", 0, 0)
        path.write_bytes(_packed())

    path = cached_file(KIND, TARBALL, fetch)
    content = read_bounded(path, MAX_BYTES)
    if not is_published(content):
        raise InputError(
            f"{path} is not {NAME} {VERSION} as it was published (its SHA-512 differs); remove it "
            "and try again"
        )
    return unpack(content)


def is_published(content: bytes) -> bool:
    """Whether these are the bytes of the package that is expected."""
    return base64.b64encode(hashlib.sha512(content).digest()).decode() == SHA512


def unpack(content: bytes) -> WebRuntime:
    """The two parts in the package's bytes.

    Raises:
        InputError: they are not in there.
    """
    parts = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as package:
            for name in (SCRIPT, WASM):
                parts[name] = _member(package, name)
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise InputError(f"{TARBALL} cannot be unpacked: {error}") from None
    return WebRuntime(_as_global(parts[SCRIPT].decode("utf-8")), parts[WASM])


def _member(package: tarfile.TarFile, name: str) -> bytes:
    entry = package.getmember(name)
    file = package.extractfile(entry)
    if file is None or entry.size > MAX_BYTES:
        raise KeyError(f"{name} is no file of at most {MAX_BYTES:,} bytes")
    return file.read()


def _as_global(module: str) -> str:
    """`module` with its exports as properties of the global `ort`.

    An import of it would need an address, and the page's policy admits none.
    """
    match = _EXPORTS.search(module)
    if match is None:
        raise InputError(f"{SCRIPT} of {TARBALL} exports nothing")
    properties = []
    for item in match[1].split(","):
        inner, _, outer = item.strip().partition(" as ")
        properties.append(f"{outer or inner}:{inner}")
    return f"{module[: match.start()]}globalThis.ort={{{','.join(properties)}}};\n"


def _packed() -> bytes:
    """The package's bytes, as `npm pack` writes them to an empty folder."""
    program = shutil.which("npm")
    if program is None:
        raise InputError(f"npm is not installed, which fetches {NAME}; {_advice()}")
    wanted = f"{NAME}@{VERSION}"
    options = ["--ignore-scripts", "--silent", "--pack-destination", "."]
    with tempfile.TemporaryDirectory() as folder:
        # In a folder of its own, npm reads the settings of no project.
        try:
            ran = subprocess.run(
                [program, "pack", wanted, *options],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=NPM_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"npm cannot be run ({error}); {_advice()}") from None
        path = Path(folder) / TARBALL
        if ran.returncode or not path.is_file():
            raise InputError(
                f"npm brings no {wanted} (exit code {ran.returncode}); is its registry out of "
                f"reach? `npm view {wanted}` says more; or {_advice()}"
            )
        content = read_bounded(path, MAX_BYTES)
    if not is_published(content):
        raise InputError(
            f"npm brought a {TARBALL} that is not what was published (its SHA-512 differs); "
            "nothing was kept; check npm's registry with: npm config get registry"
        )
    return content


def _advice() -> str:
    path = cache_folder() / KIND / TARBALL
    return f"on a machine with npm, type `npm pack {NAME}@{VERSION}` and put {TARBALL} at {path}"
