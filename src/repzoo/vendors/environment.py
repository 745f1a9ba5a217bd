"""Environments of tool chains in the cache folder: whether they work, and making them.

An environment counts as installed when its check printed the version of its recipe. A folder that
was left half-made has no note of that, and is made anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repzoo.errors import InputError
from repzoo.progress import Progress, silent
from repzoo.storage import cache_folder, make_folder, write_atomically
from repzoo.vendors.recipes import InstallStep, Recipe

NOTE = "repzoo-version.txt"  # what the check printed when it last worked
LOG = "repzoo-install.log"
CHECK_SECONDS = 120.0
INSTALL_SECONDS = 3600.0
# What may lead an environment's Python to the packages or the limits of another one.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True)
class Status:
    """A tool chain on this machine.

    Attributes:
        recipe: what it is.
        folder: where its environment is, or would be.
        version: that is installed; "" where it is not.
        size: bytes on disk; 0 where it is not installed.
    """

    recipe: Recipe
    folder: Path
    version: str
    size: int = 0

    @property
    def installed(self) -> bool:
        """Whether it worked when it was installed."""
        return bool(self.version)

    @property
    def install_command(self) -> str:
        """What to type."""
        return install_command(self.recipe)


def folder_of(recipe: Recipe) -> Path:
    """Where the environment of a tool chain is."""
    return cache_folder() / "toolchains" / recipe.name


def install_command(recipe: Recipe) -> str:
    """What to type to install a tool chain."""
    return f"repzoo toolchains {recipe.name} --install"


def installed_version(recipe: Recipe) -> str:
    """What the check printed when it last worked; "" where nothing is installed."""
    try:
        return (folder_of(recipe) / NOTE).read_text("utf-8").strip()
    except OSError:
        return ""


def status(recipe: Recipe) -> Status:
    """What is there of a tool chain. Nothing of it is run; its size takes a second or more."""
    folder = folder_of(recipe)
    version = installed_version(recipe)
    return Status(recipe, folder, version, _folder_bytes(folder) if version else 0)


def require_installed(recipe: Recipe) -> Path:
    """The folder of an installed tool chain.

    Raises:
        InputError: it is not installed, or in another version; the message says what to type.
    """
    version = installed_version(recipe)
    if not version:
        raise InputError(
            f"the tool chain {recipe.name} is not installed; type: {install_command(recipe)} "
            f"(about {recipe.gigabytes:g} GB; {recipe.terms})"
        )
    if recipe.version not in version:
        raise InputError(
            f"the tool chain {recipe.name} is installed in version {version}; expected "
            f"{recipe.version}; type: {install_command(recipe)}"
        )
    return folder_of(recipe)


def install(recipe: Recipe, python: str = "", progress: Progress = silent) -> Status:
    """Make the environment of a tool chain, or make it anew.

    Args:
        recipe: what to install.
        python: interpreter to make it from; "": one that is found.
        progress: is told of each step.

    Raises:
        InputError: no fitting Python, too little room, a step that fails, or a check that prints
            another version. What was made then stays without its note, and does not count.
    """
    folder = folder_of(recipe)
    interpreter = find_python(recipe, python)
    _require_room(recipe, make_folder(folder.parent))
    steps = len(recipe.steps) + 2
    progress(f"install {recipe.name}", 0, steps)
    (folder / NOTE).unlink(missing_ok=True)
    make_command = [interpreter, "-m", "venv", "--clear", str(folder)]
    if not recipe.steps:
        make_command.insert(4, "--without-pip")
    _run(recipe, make_command, INSTALL_SECONDS)
    log = folder / LOG
    for number, step in enumerate(recipe.steps, 1):
        progress(f"install {recipe.name}", number, steps)
        output = _run(recipe, _pip_command(folder, step), INSTALL_SECONDS)
        with log.open("a", encoding="utf-8") as file:
            file.write(output)
    for name in recipe.remove:
        (folder / name).unlink(missing_ok=True)
    progress(f"install {recipe.name}", steps - 1, steps)
    version = check(recipe)
    write_atomically(folder / NOTE, f"{version}\n")
    progress(f"install {recipe.name}", steps, steps)
    return status(recipe)


def check(recipe: Recipe) -> str:
    """The last line that the check of an environment prints.

    Raises:
        InputError: it fails, or prints another version than the recipe's.
    """
    output = run(recipe, recipe.check, CHECK_SECONDS)
    lines = output.strip().splitlines() or [""]
    if recipe.version not in lines[-1]:
        raise InputError(
            f"the tool chain {recipe.name} says {lines[-1]!r} where version {recipe.version} was "
            f"expected; type: {install_command(recipe)}"
        )
    return lines[-1]


def run(
    recipe: Recipe,
    command: Sequence[str],
    seconds: float,
    working_folder: Path | None = None,
) -> str:
    """What a command of a tool chain's environment prints, stderr included.

    Args:
        recipe: the tool chain.
        command: a program of the environment with its arguments.
        seconds: after which it is ended.
        working_folder: where it runs.

    Raises:
        InputError: it is not there, fails, or does not end in time.
    """
    program = _programs(folder_of(recipe)) / command[0]
    return _run(recipe, [str(program), *command[1:]], seconds, working_folder)


def program_of(recipe: Recipe, name: str) -> str:
    """The path of a program in a tool chain's environment."""
    return str(_programs(folder_of(recipe)) / name)


def variables_of(recipe: Recipe) -> dict[str, str]:
    """The environment variables for programs of a tool chain."""
    return _environment(_programs(folder_of(recipe)))


def cannot_run(recipe: Recipe, program: str, error: OSError) -> InputError:
    """The error for a program of a tool chain that the system does not start."""
    return InputError(
        f"the tool chain {recipe.name} cannot be run ({error.strerror}: {program}); type: "
        f"{install_command(recipe)}"
    )


def find_python(recipe: Recipe, python: str = "") -> str:
    """An interpreter of a version that the tool chain's wheels are made for.

    Raises:
        InputError: there is none, or `python` is not one.
    """
    if python:
        version = _python_version(python)
        if version in recipe.python:
            return python
        raise InputError(
            f"{recipe.name} needs Python {' or '.join(recipe.python)}; {python} is "
            f"{version or 'no Python that runs'}"
        )
    for version in recipe.python:
        for candidate in _candidates(version):
            if _python_version(candidate) == version:
                return candidate
    first = recipe.python[0]
    raise InputError(
        f"{recipe.name} needs Python {' or '.join(recipe.python)}, and none was found; install "
        f"one (uv python install {first}, or pyenv install {first}), or give it with --python"
    )


def _candidates(version: str) -> list[str]:
    """Where a Python of `version` may be: on the PATH, or among those of pyenv and uv."""
    candidates: list[str] = []
    on_path = shutil.which(f"python{version}")
    if on_path:
        candidates.append(on_path)
    homes = (
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions",
        Path.home() / ".local" / "share" / "uv" / "python",
    )
    for home in homes:
        for folder in sorted(home.glob(f"*{version}.*"), reverse=True):
            candidates.append(str(folder / "bin" / "python"))
    return candidates


def _python_version(python: str) -> str:
    """The version of an interpreter, such as 3.10; "" for what is none."""
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        ran = subprocess.run(
            [python, "-c", code],
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=True,
            env=_environment(),
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout.strip()


def _require_room(recipe: Recipe, folder: Path) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < recipe.gigabytes:
        raise InputError(
            f"{recipe.name} takes about {recipe.gigabytes:g} GB and {folder} has {free:.1f} GB "
            "free; make room, or set REPZOO_CACHE to another folder"
        )


def _pip_command(folder: Path, step: InstallStep) -> list[str]:
    python = str(_programs(folder) / "python")
    command = [python, "-m", "pip", "install", "--no-cache-dir"]
    if step.alone:
        command.append("--no-deps")
    return [*command, *step.packages]


def _run(
    recipe: Recipe,
    command: Sequence[str],
    seconds: float,
    working_folder: Path | None = None,
) -> str:
    try:
        ran = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
            cwd=working_folder,
            env=_environment(Path(command[0]).parent),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{recipe.name}: {Path(command[0]).name} did not end within {seconds:.0f} s"
        ) from None
    except OSError as error:
        raise cannot_run(recipe, command[0], error) from None
    output = ran.stdout.decode(errors="replace")
    if ran.returncode:
        lines = output.strip().splitlines() or ["it printed nothing"]
        raise InputError(
            f"{recipe.name}: {Path(command[0]).name} failed with {ran.returncode}: {lines[-1]}"
        )
    return output


def _environment(programs: Path | None = None) -> dict[str, str]:
    """The variables for a tool chain: nothing that leads to another Python's packages."""
    variables = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    variables["PIP_CONSTRAINT"] = ""  # limits of this machine, for other projects
    variables["PYTHONNOUSERSITE"] = "1"
    if programs is not None:
        # hb_mapper starts other programs of its own environment by name
        variables["PATH"] = f"{programs}{os.pathsep}{variables.get('PATH', '')}"
    return variables


def _programs(folder: Path) -> Path:
    return folder / "bin"


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            total += path.stat().st_size
    return total
