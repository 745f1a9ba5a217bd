"""Run a program of a tool chain for minutes: its output goes to a file, and it can be ended.

A compiler starts programs of its own, so it is ended with all of them: as a process group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from repzoo.errors import InputError
from repzoo.vendors.environment import cannot_run, program_of, variables_of
from repzoo.vendors.recipes import Recipe

POLL_SECONDS = 0.5
MAX_LINE = 200  # characters of a complaint that are shown
TAIL_BYTES = 65536
# Words that tools put before the reason, in the order of their weight.
COMPLAINTS = ("error", "fail", "exception", "killed")


def run_logged(
    recipe: Recipe,
    command: Sequence[str],
    folder: Path,
    log: Path,
    seconds: float,
    watch: Callable[[str], bool] | None = None,
) -> None:
    """Run a program of a tool chain's environment; all that it prints goes to `log`.

    Args:
        recipe: the tool chain.
        command: a program of its environment with its arguments.
        folder: where it runs.
        log: file that its output is appended to.
        seconds: after which it is ended.
        watch: called now and then with the lines that were printed since the last call; True
            says that it has done enough, and it is ended.

    Raises:
        InputError: it cannot be started, crashes, fails or does not end in time; names `log`.
    """
    with log.open("ab") as output:
        process = start(recipe, command, folder, output, stdin=subprocess.DEVNULL)
        try:
            ended = _wait(process, log, seconds, watch)
            is_enough = ended and process.poll() is None
        finally:
            end(process)
    name = command[0]
    if is_enough:
        return
    if not ended:
        raise InputError(
            f"{recipe.name}: {name} did not end within {seconds / 60:.3g} minutes; its output is "
            f"in {log}"
        )
    if process.returncode:
        raise InputError(
            f"{recipe.name}: {name} {how_it_ended(process.returncode)}: {complaint(log)}; its "
            f"output is in {log}"
        )


def start(
    recipe: Recipe,
    command: Sequence[str],
    folder: Path | None,
    output: IO[bytes],
    **pipes: Any,
) -> subprocess.Popen[bytes]:
    """A program of a tool chain's environment, in a process group of its own.

    Raises:
        InputError: it cannot be started.
    """
    program = program_of(recipe, command[0])
    pipes.setdefault("stdout", output)
    try:
        return subprocess.Popen(
            [program, *command[1:]],
            stderr=output,
            cwd=folder,
            env=variables_of(recipe),
            start_new_session=True,
            **pipes,
        )
    except OSError as error:
        raise cannot_run(recipe, program, error) from None


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of `start` and all that it started, and wait for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # Even where it has ended itself: what it started may still run.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return f"failed with {code}"


def complaint(log: Path) -> str:
    """The line of a log that says most likely why a program failed."""
    lines: list[str] = []
    for line in _tail(log).splitlines():
        if line.strip():
            lines.append(line.strip()[-MAX_LINE:])
    for word in COMPLAINTS:
        for line in reversed(lines):
            if word in line.casefold():
                return line
    return lines[-1] if lines else "it printed nothing"


def _wait(
    process: subprocess.Popen[bytes],
    log: Path,
    seconds: float,
    watch: Callable[[str], bool] | None,
) -> bool:
    """Whether it ended, or has done enough, in time."""
    deadline = time.monotonic() + seconds
    seen = log.stat().st_size
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
            return True
        if watch:
            lines = _whole_lines(log, seen)
            seen += len(lines)
            if watch(lines.decode(errors="replace")):
                return True
    return False


def _whole_lines(log: Path, start: int) -> bytes:
    """The lines after byte `start` that are complete, at most TAIL_BYTES of them."""
    with log.open("rb") as file:
        file.seek(start)
        data = file.read(TAIL_BYTES)
    if len(data) == TAIL_BYTES and b"\n" not in data:
        return data  # a line that never ends must not hide those after it
    return data[: data.rfind(b"\n") + 1]


def _tail(log: Path) -> str:
    """The last TAIL_BYTES of a log."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        return file.read(TAIL_BYTES).decode(errors="replace")
