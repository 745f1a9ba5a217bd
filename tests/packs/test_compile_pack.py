"""`repzoo pack --compile` with scripts in the place of the vendor's programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.packs.toolchain import (
    install_toolchain,
    mapper_script,
    opset_11,
    write_program,
    write_small_pack,
)

from repzoo.artifact import Step
from repzoo.packs.compile import quantize_pack
from repzoo.packs.rdk_x5 import RdkX5

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small_pack(RdkX5(), tmp_path / "pack")


def state(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_pack_is_compiled_and_its_estimates_become_records(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    programs = install_toolchain("rdk-x5")
    write_program(programs / "hb_mapper", mapper_script(opset_11()))
    before = state(folder)
    rows = tmp_path / "rows.jsonl"
    command = ("pack", folder, "--compile", "--append", rows, "--json")
    assert run(*command).code == 0
    ran = run(*command)  # once more, over the first output
    assert ran.code == 0, ran.err
    compiled = ran.document["compiled"]
    assert compiled["version"] == "1.24.3"
    assert Path(compiled["binary"]).read_text() == "binary\n"
    after = state(folder)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {
        "manifest.json",
        "model_output/compile.log",
        "model_output/tiny.bin",
        "model_output/tiny_quantized_model.onnx",
    }
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(records) == 4
    estimates = [row["values"] for row in records if "latency_ms" in row["values"]]
    assert estimates[0]["source"] == "compiler estimate"
    assert estimates[0]["latency_ms"] == pytest.approx(0.3076)
    assert estimates[0]["cpu_nodes"] == 1
    assert not list(tmp_path.glob("*.log"))
    assert not list(tmp_path.glob(".repzoo*"))


@pytest.mark.parametrize(
    ("script", "minutes", "words"),
    [
        ("echo 'ERROR no such layer'; echo bye; exit 3", 1, "failed with 3: ERROR no"),
        ("kill -SEGV $$", 1, "crashed (SIGSEGV)"),
        ("sleep 60 & sleep 60", 0.005, "did not end within 0.005 minutes"),
        ("mkdir model_output; echo done", 1, "wrote 0 files *_quantized_model.onnx"),
    ],
)
def test_a_tool_that_fails_leaves_the_pack_as_it_was(
    run: Run, folder: Path, script: str, minutes: float, words: str
) -> None:
    write_program(install_toolchain("rdk-x5") / "hb_mapper", script)
    before = state(folder)
    began = time.monotonic()
    ran = run("pack", folder, "--compile", "--compile-minutes", minutes)
    assert time.monotonic() - began < 30
    assert ran.code == 2
    assert words in " ".join(ran.err.split())
    assert state(folder) == before
    assert not list(folder.parent.glob(".repzoo*"))
    assert folder.with_name("pack.compile.log").is_file()


def test_a_pack_is_quantized_without_being_compiled(
    folder: Path, tmp_path: Path
) -> None:
    script = f"""{mapper_script(opset_11())}
echo Start to compile the model
sleep 60"""
    write_program(install_toolchain("rdk-x5") / "hb_mapper", script)
    began = time.monotonic()
    path = quantize_pack(folder, tmp_path / "log", minutes=1)
    assert time.monotonic() - began < 30
    assert path.read_text() == "quantized\n"


def test_a_new_pack_is_compiled_at_once(
    run: Run, small_model: Path, tmp_path: Path
) -> None:
    programs = install_toolchain("rdk-x5")
    write_program(programs / "hb_mapper", mapper_script(opset_11()))
    output, rows = tmp_path / "new", tmp_path / "rows.jsonl"
    data = ("--data", "digits", "--images", 64, "--calibration", 2)
    ran = run("pack", small_model, "-o", output, *data, "--compile", "--append", rows)
    assert ran.code == 0, ran.err
    assert json.loads((output / "manifest.json").read_text())["compiled"]
    lines = rows.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 2


def test_a_new_pack_is_not_left_half_made(
    run: Run, small_model: Path, tmp_path: Path
) -> None:
    write_program(install_toolchain("rdk-x5") / "hb_mapper", "echo broken; exit 1")
    output = tmp_path / "new"
    data = ("--data", "digits", "--images", 64, "--calibration", 2)
    ran = run("pack", small_model, "-o", output, *data, "--compile")
    assert ran.code == 2
    assert "broken; its output is in" in " ".join(ran.err.split())
    assert not output.exists()
    assert (tmp_path / "new.compile.log").read_text() == "broken\n"


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    # Hardened, it says: this file is about what comes after that.
    hardened = replace(opset_11(), steps=(Step("harden", "0"),))
    path.write_bytes(hardened.to_bytes())
    return path


def test_a_tool_chain_that_is_missing_is_named_before_the_work(
    run: Run, folder: Path, small_model: Path, tmp_path: Path
) -> None:
    ran = run("pack", folder, "--compile")
    assert ran.code == 2
    assert "repzoo toolchains rdk-x5 --install" in " ".join(ran.err.split())
    # The output would show that it had hardened first.
    ran = run(
        "pack", small_model, "-o", tmp_path / "p", "--data", "digits", "--compile"
    )
    assert ran.code == 2
    assert "is not installed" in ran.err


def test_a_tool_chain_of_another_version_is_refused(run: Run, folder: Path) -> None:
    install_toolchain("rdk-x5", "hb_mapper, version 9.9")
    ran = run("pack", folder, "--compile")
    assert ran.code == 2
    assert "version 9.9; expected 1.24.3" in " ".join(ran.err.split())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("compiler_parameters:", "custom_op:\n  a: b\ncompiler_parameters:", "custom_"),
        ("./model_output", "/etc", "expected working_dir once"),
        ("./tiny.onnx", "../other.onnx", "expected onnx_model once"),
        ("  debug:", "  cal_data_dir: './x'\n  debug:", "expected cal_data_dir once"),
    ],
)
def test_a_configuration_that_leaves_the_pack_is_refused(
    run: Run, folder: Path, old: str, new: str, words: str
) -> None:
    write_program(install_toolchain("rdk-x5") / "hb_mapper", mapper_script(opset_11()))
    path = folder / "tiny.yaml"
    path.write_text(path.read_text().replace(old, new))
    ran = run("pack", folder, "--compile")
    assert ran.code == 2
    assert words in " ".join(ran.err.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{folder}"], "add --compile"),
        (["{folder}", "--compile", "--compile-minutes", "0"], "compile-minutes"),
        (["{folder}/..", "--compile"], "has no manifest.json"),
        (["{folder}/tiny.onnx", "-o", "{folder}/x"], "Missing --data"),
        (["{folder}/tiny.onnx", "--append", "{folder}/r"], "give --compile too"),
    ],
)
def test_commands_that_lack_something(
    run: Run, folder: Path, arguments: list[str], words: str
) -> None:
    ran = run("pack", *(text.format(folder=folder) for text in arguments))
    assert ran.code == 2
    assert words in " ".join(ran.err.split())


@pytest.mark.parametrize("text", ["", "[]", '{"target": 3}', "[" * 100_000])
def test_a_damaged_manifest(run: Run, folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    ran = run("pack", folder, "--compile")
    assert ran.code == 2
    assert "is damaged" in " ".join(ran.err.split())
