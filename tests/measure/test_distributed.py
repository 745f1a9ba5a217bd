"""Several real processes on this machine: the result of one process, and one message on failure."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PROCESS_SECONDS
from tests.forked import Ended, Task, as_torchrun, run_groups

from repzoo.measure import distributed

pytest.importorskip("torch", reason="the torch extra is not installed")

Run = Callable[..., Any]


def copy_some(source: Path, target: Path, count: int) -> Path:
    """The first `count` images of `source`, in turns over its classes."""
    files = sorted(
        source.glob("*/*.png"),
        key=lambda path: (sorted(path.parent.iterdir()).index(path), path.parent.name),
    )
    for path in files[:count]:
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target / path.parent.name)
    return target


@pytest.fixture(scope="module")
def ended(
    model_file: Path, digits_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[list[Ended]]:
    """Groups of processes: more than images, one that fails, two with different images."""
    folder = tmp_path_factory.mktemp("groups")
    two = copy_some(digits_folder, folder / "two", 2)
    numbers = copy_some(digits_folder, folder / "numbers", 30)
    absent = folder / "absent"
    groups: list[list[Task]] = []
    for data in ([two] * 3, [digits_folder, absent], [digits_folder, numbers]):
        tasks: list[Task] = []
        for images in data:
            command = ("evaluate", model_file, "--data", images, "--json")
            tasks.append(Task([*map(str, command)]))
        groups.append(as_torchrun(tasks))
    modules = ["torch.distributed", "repzoo.engines.onnxruntime"]
    modules += ["repzoo.console.commands.measure", "repzoo.verbs.evaluate_models"]
    return run_groups(groups, modules, folder)


def test_two_processes_give_the_result_of_one_and_one_can_resume_their_journal(
    run: Run, model_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    data = copy_some(digits_folder, tmp_path / "odd", 45)
    command = ("evaluate", str(model_file), "--data", str(data), "--json")
    alone = run(*command)
    journal = tmp_path / "j.jsonl"
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "repzoo",
    ]
    two = subprocess.run(
        [*start, *command, "--resume", str(journal)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PROCESS_SECONDS,
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout == alone.out
    parts = [journal, tmp_path / "j.jsonl.1"]
    evaluated = [
        [json.loads(line)["i"] for line in path.read_text().splitlines()[1:]]
        for path in parts
    ]
    assert sorted(evaluated[0] + evaluated[1]) == list(range(45))
    assert all(evaluated)
    parts[1].write_text(
        "".join(line + "\n" for line in parts[1].read_text().splitlines()[:9])
    )  # as if killed after one chunk
    resumed = run(*command, "--resume", journal)
    assert (resumed.code, resumed.out) == (0, alone.out)


def test_more_processes_than_images(
    run: Run,
    ended: list[list[Ended]],
    model_file: Path,
    digits_folder: Path,
    tmp_path: Path,
) -> None:
    data = copy_some(digits_folder, tmp_path / "two", 2)
    first, second, third = ended[0]
    assert [process.code for process in ended[0]] == [0, 0, 0], first.err
    assert first.out == run("evaluate", model_file, "--data", data, "--json").out
    assert (second.out, second.err, third.out, third.err) == ("", "", "", "")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"MASTER_ADDR": "no-such-host.invalid"},
            "MASTER_ADDR is 'no-such-host.invalid', and no host of that name is known",
        ),
        ({"MASTER_PORT": "9"}, "timed out"),
        ({"MASTER_PORT": ""}, "MASTER_PORT"),
        ({"RANK": "first"}, "invalid literal"),
        (
            {"WORLD_SIZE": "two"},
            "WORLD_SIZE is 'two'; expected the number of processes",
        ),
    ],
)
def test_a_wrong_environment_is_refused_in_one_sentence(
    changed: dict[str, str],
    message: str,
    run: Run,
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "RENDEZVOUS_SECONDS", 1.0)
    for name, value in (
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
        | changed
    ).items():
        monkeypatch.setenv(name, value)
    ran = run("evaluate", model_file, "--data", "digits")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert message in ran.err


def test_a_failure_in_one_process_ends_all_and_is_printed_once(
    ended: list[list[Ended]],
) -> None:
    first, second = ended[1]
    assert (first.code, second.code) == (2, 2)
    described, sentence = first.err.splitlines()
    assert described.startswith("data: ")
    assert re.search(r"the folder \S+/absent does not exist", sentence)
    assert (first.out, second.out, second.err) == ("", "", "")


def test_processes_with_different_images_are_refused(ended: list[list[Ended]]) -> None:
    first, second = ended[2]
    assert (first.code, second.code) == (2, 2)
    assert "process 1 of 2 on" in first.err
    assert "has other data than process 0" in first.err
    assert second.err == ""
