"""Several real processes on this machine: the result of one process, and one message on failure."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PROCESS_SECONDS

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


def run_together(
    commands: Sequence[Sequence[object]],
) -> list[subprocess.CompletedProcess[str]]:
    """One process for each command, which find each other as those that torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        **os.environ,
        "WORLD_SIZE": str(len(commands)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "repzoo", *map(str, command)],
            env={**shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    done = []
    for process in started:
        out, err = process.communicate(timeout=PROCESS_SECONDS)
        done.append(
            subprocess.CompletedProcess(process.args, process.returncode, out, err)
        )
    return done


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
    run: Run, model_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    data = copy_some(digits_folder, tmp_path / "two", 2)
    command = ("evaluate", model_file, "--data", data, "--json")
    first, second, third = run_together([command] * 3)
    assert [process.returncode for process in (first, second, third)] == [0, 0, 0], (
        first.stderr
    )
    assert first.stdout == run(*command).out
    assert (second.stdout, second.stderr, third.stdout, third.stderr) == (
        "",
        "",
        "",
        "",
    )


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
    model_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    good = ("evaluate", model_file, "--data", digits_folder)
    first, second = run_together(
        [good, ("evaluate", model_file, "--data", tmp_path / "absent")]
    )
    assert (first.returncode, second.returncode) == (2, 2)
    described, sentence = first.stderr.splitlines()
    assert described.startswith("data: ")
    assert f"the folder {tmp_path / 'absent'} does not exist" in sentence
    assert (first.stdout, second.stdout, second.stderr) == ("", "", "")


def test_processes_with_different_images_are_refused(
    model_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    data = copy_some(digits_folder, tmp_path / "numbers", 30)
    first, second = run_together(
        [("evaluate", model_file, "--data", folder) for folder in (digits_folder, data)]
    )
    assert (first.returncode, second.returncode) == (2, 2)
    assert "process 1 of 2 on" in first.stderr
    assert "has other data than process 0" in first.stderr
    assert second.stderr == ""
