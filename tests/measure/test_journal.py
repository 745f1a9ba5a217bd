"""Resuming after a kill: real processes, killed by SIGKILL, against one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from repzoo.artifact import Artifact
from repzoo.data import folder
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.measure import accuracy
from repzoo.measure.journal import (
    CHUNK,
    ImagePrediction,
    Journal,
    PredictionTable,
    chunk_numbers,
    chunk_range,
)

Run = Callable[..., Any]


def image_indices(path: Path) -> list[int]:
    """The images that a journal holds, in its order."""
    return [json.loads(line)["i"] for line in path.read_bytes().split(b"\n")[1:-1]]


@contextlib.contextmanager
def start_command(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the command line; its end is awaited."""
    command = [sys.executable, "-m", "repzoo", *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        yield process


def kill_at(images: int, journal: Path, *arguments: object) -> None:
    """Start the command and kill it when its journal holds `images` images."""
    with start_command(*arguments) as process:
        while process.poll() is None and (
            not journal.exists() or journal.read_bytes().count(b"\n") - 1 < images
        ):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)


def test_an_evaluation_killed_twice_ends_as_an_undisturbed_one(
    run: Run, model_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    some = tmp_path / "some"
    for path in digits_folder.glob("*/*.png"):
        if len(list((some / path.parent.name).glob("*"))) < 5:
            (some / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, some / path.parent.name)
    command = (
        "evaluate",
        model_file,
        "--data",
        some,
        "--engine",
        "reference,onnxruntime",
        "--json",
    )  # reference is slow
    alone = run(*command, "--resume", tmp_path / "alone.jsonl")
    journal = tmp_path / "killed.jsonl"
    sizes = []
    for images in (1, 24):
        kill_at(images, journal, *command, "--resume", journal)
        sizes.append(len(image_indices(journal)))
    assert 0 < sizes[0] < sizes[1] < 50  # it was killed in the middle, and went on
    with journal.open("ab") as file:
        file.write(b'{"i":')  # as a write that was cut would leave it
    resumed = run(*command, "--resume", journal)
    assert (resumed.code, resumed.out) == (0, alone.out)
    assert image_indices(journal) == list(range(50))
    assert journal.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_a_finished_evaluation_is_not_repeated(
    run: Run, model_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    command = (
        "evaluate",
        model_file,
        "--data",
        digits_folder,
        "--json",
        "--resume",
        tmp_path,
    )
    first = run(*command)
    before = (tmp_path / "evaluation.jsonl").read_bytes()
    assert run(*command).out == first.out
    assert (tmp_path / "evaluation.jsonl").read_bytes() == before


# Journal and table


def dataset(
    count: int, stamp: Callable[[str], tuple[int, int]] | None = None
) -> Dataset:
    keys = tuple(f"{number}.png" for number in range(count))
    return Dataset(
        "d",
        ("a", "b"),
        keys,
        tuple(number % 2 for number in range(count)),
        lambda _: Image.new("RGB", (2, 2)),
        stamp=stamp,
    )


HEADER = {"data": {"name": "d"}, "runs": [{"file": "m", "sha256": "0"}]}


def predictions(number: int, images: int) -> list[ImagePrediction]:
    chunk = []
    for index in chunk_range(number, images):
        prediction = ImagePrediction(
            index, ((index % 2, 1 - index % 2),), "L" if index == 4 else "RGB"
        )
        chunk.append(
            ImagePrediction(3, why="3.png is broken") if index == 3 else prediction
        )
    return chunk


def fill_journal(path: Path, images: int = 21) -> tuple[Dataset, PredictionTable]:
    data, table = dataset(images), PredictionTable(1, images)
    with Journal(path, HEADER, data) as journal:
        journal.restore(table)
        for number in chunk_numbers(images):
            journal.append(predictions(number, images))
            table.add(predictions(number, images))
    return data, table


def test_a_journal_cut_anywhere_restores_its_whole_chunks_and_can_be_completed(
    tmp_path: Path,
) -> None:
    data, whole = fill_journal(tmp_path / "whole.jsonl")
    content = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "cut.jsonl"
    for end in range(0, len(content) + 1, 7):
        path.write_bytes(content[:end])
        table = PredictionTable(1, len(data))
        with Journal(path, HEADER, data) as journal:
            journal.restore(table)
            lines = content[:end].count(b"\n") - 1
            assert int(table.known.sum()) == (
                max(0, lines) if lines == len(data) else max(0, lines) // CHUNK * CHUNK
            )
            for number in set(chunk_numbers(len(data))) - table.chunks():
                journal.append(predictions(number, len(data)))
                table.add(predictions(number, len(data)))
        assert path.read_bytes() == content
        assert np.array_equal(table.top, whole.top)
        report, expected = ReadReport(), ReadReport()
        table.fill_report(report)
        whole.fill_report(expected)
        assert report == expected
        assert report.sentences() == [
            "left out: 3.png is broken",
            "converted to RGB: 1 L",
        ]


def swap_lines(lines: list[bytes]) -> None:
    lines[2], lines[3] = lines[3], lines[2]


def set_values(number: int, **values: object) -> Callable[[list[bytes]], None]:
    def change(lines: list[bytes]) -> None:
        lines[number] = json.dumps({**json.loads(lines[number]), **values}).encode()

    return change


DAMAGES: list[tuple[Callable[[list[bytes]], object], str]] = [
    (swap_lines, "line 3 is not the image that should follow"),
    (lambda lines: lines.pop(2), "line 3 is not the image that should follow"),
    (lambda lines: lines.extend(lines[1:9]), "repeats an image"),
    (lambda lines: lines.__setitem__(5, b"{"), "line 6 is damaged"),
    (lambda lines: lines.__setitem__(5, b"[]"), "line 6 is damaged"),
    (set_values(2, key="x.png"), "line 3 is damaged"),
    (set_values(2, target=0), "line 3 is damaged"),
    (set_values(2, top=[[1, -1]]), "line 3 is damaged"),
    (set_values(2, top=[]), "line 3 is damaged"),
    (set_values(2, top=[[0] * 6]), "line 3 is damaged"),
    (set_values(2, i=-20), "line 3 is damaged"),
    (set_values(2, i=99), "line 3 is damaged"),
    (
        set_values(0, runs=[{"file": "m", "sha256": "1"}]),
        'belongs to another evaluation: its runs 1: sha256 was "1", now "0"',
    ),
    (set_values(0, data={"name": "e"}), 'its data name was "e", now "d"'),
    (set_values(0, chunk=99), "its chunk was 99"),
    (lambda lines: lines.__setitem__(0, b"{}"), "is not the journal of an evaluation"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_journal_is_refused_in_one_sentence_and_left_as_it_is(
    damage: Callable[[list[bytes]], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "j.jsonl"
    data, _ = fill_journal(path)
    lines = path.read_bytes().split(b"\n")[:-1]
    damage(lines)
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(content)
    with (
        Journal(path, HEADER, data) as journal,
        pytest.raises(InputError, match=message),
    ):
        journal.restore(PredictionTable(1, len(data)))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"notes of mine", b"notes\n of mine", b"\x00" * 100, b"{}\n"]
)
def test_a_file_that_is_not_a_journal_is_left_as_it_is(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with (
        Journal(path, HEADER, dataset(3)) as journal,
        pytest.raises(InputError, match=r"give another file|start again"),
    ):
        journal.restore(PredictionTable(1, 3))
    assert path.read_bytes() == content


def test_two_processes_cannot_write_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with (
        Journal(path, HEADER, dataset(3)),
        pytest.raises(InputError, match="another process is writing"),
        Journal(path, HEADER, dataset(3)),
    ):
        pass


def test_a_table_is_packed_for_another_process_and_unpacked() -> None:
    whole, other = PredictionTable(1, 21), PredictionTable(1, 21)
    for number in chunk_numbers(21):
        whole.add(predictions(number, 21))
    for share in ([0, 2], [1]):
        other.unpack(whole.pack(share))
    assert np.array_equal(other.top, whole.top)
    assert other.known.all()
    assert (
        other.readable().tolist()
        == whole.readable().tolist()
        == [index for index in range(21) if index != 3]
    )
    assert PredictionTable(1, 21).pack([]) is not None


# Images that change, and a full disk


def folder_of(root: Path, count: int) -> Path:
    for number in range(count):
        target = root / "0123456789"[number % 10]
        target.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(target / f"{number:03}.png")
    return root


def test_an_image_changed_since_its_evaluation_is_named(
    run: Run, model_file: Path, tmp_path: Path
) -> None:
    data = folder_of(tmp_path / "data", 20)
    command = ("evaluate", model_file, "--data", data, "--resume", tmp_path / "j.jsonl")
    assert run(*command).code == 0
    Image.new("L", (9, 9), 1).save(data / "3" / "003.png")
    ran = run(*command)
    assert ran.code == 2
    assert "the image 3/003.png was changed after it was evaluated into" in ran.err


@pytest.mark.parametrize("change", ["was changed", "vanished"])
def test_an_image_that_changes_during_the_evaluation_is_named_and_predictions_are_kept(
    change: str, trained: Artifact, tmp_path: Path
) -> None:
    data = folder.read(folder_of(tmp_path / "data", 80)).held_out()
    victim = data.keys[-1]
    load = data.load

    def change_folder(key: str) -> Image.Image:
        if key == data.keys[40]:
            path = tmp_path / "data" / victim
            path.unlink() if change == "vanished" else path.write_bytes(
                path.read_bytes() + b" "
            )
        return load(key)

    runs = [accuracy.open_run(trained, engine("onnxruntime"))]
    with pytest.raises(
        InputError, match=f"the image {victim} {change} during the evaluation"
    ):
        accuracy.evaluate(
            runs,
            replace(data, load=change_folder),
            ReadReport(),
            journal=tmp_path / "j.jsonl",
        )
    evaluated = image_indices(tmp_path / "j.jsonl")
    assert evaluated == list(range(len(evaluated)))
    assert 40 <= len(evaluated) < 80


def test_a_full_disk_is_reported_in_one_sentence_and_leaves_whole_chunks(
    model_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "j.jsonl"
    code = f"""if True:
        import resource, signal
        from repzoo.cli import main

        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, {resource.RLIM_INFINITY}))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        main()
    """
    command = [
        sys.executable,
        "-c",
        code,
        "evaluate",
        model_file,
        "--data",
        digits_folder,
        "--resume",
        journal,
    ]
    ran = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2, ran.stderr
    *_, sentence = ran.stderr.splitlines()
    assert f"{journal} cannot be written: File too large; free room" in sentence
    evaluated = image_indices(journal)
    assert evaluated == list(range(len(evaluated)))
    assert len(evaluated) % CHUNK == 0 < len(evaluated) < 200
    assert journal.read_bytes().endswith(b"\n")


def test_other_preprocessing_is_another_evaluation(
    run: Run, model_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    command = (
        "evaluate",
        model_file,
        "--data",
        digits_folder,
        "--resume",
        tmp_path / "j.jsonl",
    )
    assert run(*command).code == 0
    ran = run(*command, "--interpolation", "nearest")
    assert ran.code == 2
    assert "its preprocess interpolation was" in ran.err
