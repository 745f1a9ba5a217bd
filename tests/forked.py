"""Several processes that share the imports of one: importing torch takes most of a short run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.conftest import PROCESS_SECONDS

COMMAND_LINE = "from repzoo import cli; cli.main()"

# Forks one child for each task of a group. A child's streams are files; it ends as a process does.
FORKING = """
import importlib, json, os, sys

def run_group(number, tasks, folder):
    children = []
    for rank, task in enumerate(tasks):
        child = os.fork()
        if not child:
            for stream, name in ((1, "out"), (2, "err")):
                path = f"{folder}/{number}.{rank}.{name}"
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
            os.environ.update(task["environment"])
            sys.argv[1:] = task["arguments"]
            exec(task["program"], {"__name__": "__main__"})
            sys.exit()
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

work = json.loads(sys.argv[1])
for name in work["modules"]:
    importlib.import_module(name)
groups = enumerate(work["groups"])
codes = [run_group(number, tasks, work["folder"]) for number, tasks in groups]
print(json.dumps(codes))
"""


@dataclass(frozen=True)
class Task:
    """What one process does: `program` is Python code, which reads `arguments` in sys.argv."""

    arguments: Sequence[str]
    program: str = COMMAND_LINE
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """What a process left; the code of one that signal 9 ended is -9."""

    code: int
    out: str
    err: str


def run_groups(
    groups: Sequence[Sequence[Task]], modules: Sequence[str], folder: Path
) -> list[list[Ended]]:
    """Run one group after the other, the tasks of each at once, with `modules` imported."""
    tasks = [[asdict(task) for task in group] for group in groups]
    work = json.dumps({"modules": modules, "groups": tasks, "folder": str(folder)})
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING, work],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=PROCESS_SECONDS)
    finally:
        # A child that hangs must not outlive the test.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0
    ended: list[list[Ended]] = []
    for number, codes in enumerate(json.loads(out)):
        ended.append([])
        for rank, code in enumerate(codes):
            texts = [folder / f"{number}.{rank}.{name}" for name in ("out", "err")]
            ended[-1].append(Ended(code, *(path.read_text("utf-8") for path in texts)))
    return ended


def as_torchrun(tasks: Sequence[Task]) -> list[Task]:
    """`tasks` with the variables that torchrun gives to the processes of one group."""
    port = free_port()
    together: list[Task] = []
    for rank, task in enumerate(tasks):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": len(tasks),
            "LOCAL_WORLD_SIZE": len(tasks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        texts = {name: str(value) for name, value in variables.items()}
        together.append(
            Task(task.arguments, task.program, {**texts, **task.environment})
        )
    return together


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
