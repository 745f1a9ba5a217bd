"""Run a target's tool chain on a pack: `repzoo pack --compile`.

A target that can be compiled here has a member `compiler`, an object as the protocol `Compiler`
describes it. It works in a folder aside, so that a tool that crashes or hangs leaves nothing but
its output, in a file beside the pack.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from repzoo.errors import InputError
from repzoo.packs.pack import MANIFEST, TARGETS, open_target
from repzoo.packs.parts import file_name
from repzoo.progress import Progress, silent
from repzoo.storage import json_text, read_bounded, sha256_of_file
from repzoo.vendors.environment import require_installed
from repzoo.vendors.program import run_logged
from repzoo.vendors.recipes import Recipe, find_recipe

OUTPUT = "model_output"  # folder of the pack with all that the tool made
TOOL_LOG = f"{OUTPUT}/compile.log"
MAX_MANIFEST = 2**24


class Run(Protocol):
    """Runs one command of a tool."""

    def __call__(
        self, command: Sequence[str], stages: Mapping[str, str], until: str = ""
    ) -> None:
        """`stages`: {text in its output: what it then does}; it is ended when it prints `until`."""


@dataclass(frozen=True)
class Products:
    """What a compiler made; paths below the pack's folder.

    Attributes:
        simulated: what the vendor's simulator opens on a PC.
        binary: what the board runs.
        logs: files with figures, as vendors/logs reads them.
    """

    simulated: str
    binary: str
    logs: tuple[str, ...] = ()


class Compiler(Protocol):
    """How a target's tool chain is run.

    toolchain  its name in vendors/toolchains.toml
    """

    toolchain: str

    def build(self, folder: Path, run: Run) -> Products:
        """Compile the pack in `folder` into its folder model_output.

        Raises:
            InputError: a pack that the tool cannot be trusted with, or output that is not there.
        """

    def quantize(self, folder: Path, run: Run) -> str:
        """Make only what the simulator opens, as `Products.simulated` names it.

        Raises:
            InputError: as `build`.
        """


@dataclass(frozen=True)
class CompiledPack:
    """A pack with the output of its tool chain.

    Attributes:
        folder: of the pack.
        target: its name.
        version: of the tool chain.
        model: the float ONNX in it.
        products: what the tool made.
        sha256: of `products.simulated`.
        binary_sha256: of `products.binary`.
    """

    folder: Path
    target: str
    version: str
    model: Path
    products: Products
    sha256: str
    binary_sha256: str

    @property
    def logs(self) -> list[Path]:
        """Files with figures."""
        return [self.folder / name for name in self.products.logs]


def compiler_of(target: str) -> Compiler:
    """The compiler of a target, whose tool chain is installed.

    Raises:
        InputError: repzoo cannot run it, it is not installed, or in another version.
    """
    compiler: Compiler | None = getattr(open_target(target), "compiler", None)
    if compiler is None:
        able = [name for name in TARGETS.names() if _is_compiled_here(name)]
        raise InputError(
            f"repzoo cannot run the tool chain of {target}, only those of {', '.join(able)}; leave "
            "--compile out, and run the pack's numbered steps where that tool is installed"
        )
    require_installed(find_recipe(compiler.toolchain))
    return compiler


def compile_pack(
    source: Path,
    folder: Path,
    minutes: float,
    progress: Progress = silent,
) -> CompiledPack:
    """Compile the pack in `source`; `folder` then holds it with the output.

    Args:
        source: a pack without the output of a tool, or with that of an earlier run.
        folder: where the result appears, complete; may be `source`.
        minutes: after which the tool is ended.
        progress: is told what the tool does.

    Raises:
        InputError: no pack, no tool chain, or one that fails, crashes or hangs; its output is then
            in the file FOLDER.compile.log.
    """
    manifest = read_manifest(source)
    compiler = compiler_of(str(manifest["target"]))
    recipe = find_recipe(compiler.toolchain)
    log = folder.with_name(f"{folder.name}.compile.log")
    try:
        log.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix=".repzoo.", dir=folder.parent) as aside:
            root = Path(aside) / folder.name
            shutil.copytree(
                source, root, ignore=shutil.ignore_patterns(OUTPUT), symlinks=True
            )
            run = _runner(recipe, root, log, minutes, progress)
            products = compiler.build(root, run)
            shutil.move(log, root / TOOL_LOG)
            manifest["compiled"] = _description(root, recipe, products)
            text = json_text(manifest, indent=1, ensure_ascii=False) + "\n"
            (root / MANIFEST).write_text(text, "utf-8")
            if folder.exists():
                # Renamed first: between the two renames the old pack is still whole.
                folder.replace(Path(aside) / "old")
            root.replace(folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror or error}; free room or give another "
            "place"
        ) from None
    return read_compiled(folder)


def quantize_pack(
    folder: Path, log: Path, minutes: float, progress: Progress = silent
) -> Path:
    """Only quantize the pack in `folder`, in it; the file that the simulator opens.

    Raises:
        InputError: as `compile_pack`; the tool's output is then in `log`.
    """
    compiler = compiler_of(str(read_manifest(folder)["target"]))
    recipe = find_recipe(compiler.toolchain)
    run = _runner(recipe, folder, log, minutes, progress)
    return folder / compiler.quantize(folder, run)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a pack.

    Raises:
        InputError: the folder is no pack, or of an unknown target.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder} is not a pack: it has no {MANIFEST}; write one with repzoo pack"
        )
    try:
        manifest = json.loads(read_bounded(path, MAX_MANIFEST))
    except (ValueError, RecursionError):
        manifest = None
    is_pack = isinstance(manifest, dict) and isinstance(manifest.get("target"), str)
    if not is_pack:
        raise InputError(f"{path} is damaged; write the pack again with repzoo pack")
    return dict(manifest)


def packed_model(folder: Path) -> Path:
    """The float ONNX of a pack.

    Raises:
        InputError: no pack, or one without its model.
    """
    name = file_name(str(read_manifest(folder).get("model")))
    path = folder / f"{name}.onnx"
    if not path.is_file():
        raise InputError(
            f"{folder} has no {path.name}, which its {MANIFEST} names; write it again with repzoo "
            "pack"
        )
    return path


def read_compiled(folder: Path) -> CompiledPack:
    """The pack in `folder` with what its tool chain made.

    Raises:
        InputError: no pack, one that is not compiled, or whose compiled file was changed since.
    """
    manifest = read_manifest(folder)
    compiled = manifest.get("compiled")
    if compiled is None:
        raise InputError(
            f"{folder} is not compiled yet; type: repzoo pack {folder} --compile"
        )
    try:
        products = Products(
            str(compiled["simulated"]),
            str(compiled["binary"]),
            tuple(map(str, compiled["logs"])),
        )
        version = str(compiled["version"])
        digests: dict[str, str] = {}
        for name in (products.simulated, products.binary):
            digests[name] = str(compiled["files"][name])
    except (KeyError, TypeError):
        raise InputError(
            f"{folder / MANIFEST} is damaged; type: repzoo pack {folder} --compile"
        ) from None
    _require_inside(folder, (products.simulated, products.binary, *products.logs))
    for name, digest in digests.items():
        if sha256_of_file(folder / name) != digest:
            raise InputError(
                f"{folder / name} was changed since it was compiled; type: repzoo pack {folder} "
                "--compile"
            )
    return CompiledPack(
        folder,
        str(manifest["target"]),
        version,
        packed_model(folder),
        products,
        digests[products.simulated],
        digests[products.binary],
    )


def _is_compiled_here(target: str) -> bool:
    return hasattr(TARGETS.load(target)(), "compiler")


def _runner(
    recipe: Recipe, root: Path, log: Path, minutes: float, progress: Progress
) -> Run:
    def run(command: Sequence[str], stages: Mapping[str, str], until: str = "") -> None:
        """Run one command of the tool."""

        def watch(text: str) -> bool:
            """Tell the stage that the newest lines begin; whether the tool has done enough."""
            newest = ""
            for line in text.splitlines():
                for marker, stage in stages.items():
                    newest = stage if marker in line else newest
            shown["stage"] = newest or shown["stage"]
            progress(f"{recipe.name}: {shown['stage']}", 0, 0)
            return bool(until) and until in text

        shown = {"stage": command[0]}
        run_logged(recipe, command, root, log, 60 * minutes, watch)

    return run


def _description(root: Path, recipe: Recipe, products: Products) -> dict[str, Any]:
    files: dict[str, str] = {}
    for path in sorted((root / OUTPUT).rglob("*")):
        if path.is_file():
            files[path.relative_to(root).as_posix()] = sha256_of_file(path)
    return {
        "toolchain": recipe.name,
        "version": recipe.version,
        **asdict(products),
        "sha256": files[products.simulated],
        "files": files,
    }


def _require_inside(folder: Path, names: Sequence[str]) -> None:
    """Refuse a manifest that names files outside of its pack, or that are not there."""
    root = folder.resolve()
    for name in names:
        path = (folder / name).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise InputError(
                f"{folder / MANIFEST} names {name}, which is no file of the pack; type: repzoo "
                f"pack {folder} --compile"
            )
