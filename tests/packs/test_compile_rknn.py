"""`repzoo pack --compile` and `evaluate --engine rknn` with a module in the toolkit's place."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.packs.toolchain import install_rknn, opset_11, write_small_pack
from tests.small_model import sets

from repzoo.engines import engine
from repzoo.engines.rknn import Rknn as Engine
from repzoo.errors import InputError
from repzoo.packs.compile import Compiler, compile_pack
from repzoo.packs.pack import PackJob, open_target, write_pack
from repzoo.storage import sha256_of_file

Run = Callable[..., Any]
FILES = ("build.json", "compile.log", "error_analysis.txt", "tiny.rknn")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = open_target("rknn:layer")
    return write_small_pack(target, tmp_path_factory.mktemp("packed") / "pack")


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    # The tool splits the lines of dataset.txt at blanks.
    return Path(shutil.copytree(packed, tmp_path / "my pack"))


@pytest.fixture
def compiled(folder: Path, tmp_path: Path) -> Path:
    install_rknn(tmp_path)
    compile_pack(folder, folder, minutes=1)
    return folder


def test_a_pack_is_compiled_and_measured(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    install_rknn(tmp_path)
    ranges = folder / "tiny.ranges.cfg"
    document = json.loads(ranges.read_text())
    document["custom_quantize_layers"] = {'a "b"': "float16"}
    ranges.write_text(json.dumps(document))
    rows = tmp_path / "rows.jsonl"
    ran = run("pack", folder, "--compile", "--append", rows, "--json")
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in (folder / "model_output").iterdir()) == [*FILES]
    (record,) = [json.loads(line) for line in rows.read_text().splitlines()]
    assert record["kind"] == "board_similarity"
    assert record["values"]["nodes"][1]["cosine"] == pytest.approx(0.991)
    build = json.loads((folder / "model_output" / "build.json").read_text())
    assert build["method"] == "layer"
    assert build["mean"] == [127.5, 127.5, 127.5]
    log = (folder / "model_output" / "compile.log").read_text()
    assert 'custom_quantize_layers: {"a \\"b\\"": "float16"}' in log

    model = folder / "tiny.onnx"
    ran = run(
        *("evaluate", folder, "--engine", "rknn", "--data", "digits", "--part", "test"),
        *("--against", model, "--append", rows, "--json"),
    )
    assert ran.code == 0, ran.err
    facts = [json.loads(line)["engine"] for line in rows.read_text().splitlines()]
    binary = sha256_of_file(folder / "model_output" / "tiny.rknn")
    assert facts[1]["version"] == "2.5.0"
    assert facts[1]["binary_sha256"] == binary


@pytest.mark.parametrize(
    ("fault", "minutes", "words"),
    [
        ("operator", 1, "failed with 1: ValueError: operator Odd is not supported"),
        ("crash", 1, "crashed (SIGSEGV)"),
        ("hang", 0.01, "did not end within 0.01 minutes"),
        ("nothing", 1, "did not write model_output/tiny.rknn"),
    ],
)
def test_a_tool_that_fails_leaves_the_pack_as_it_was(
    run: Run, folder: Path, tmp_path: Path, fault: str, minutes: float, words: str
) -> None:
    install_rknn(tmp_path, fault)
    before = sorted(folder.rglob("*"))
    ran = run("pack", folder, "--compile", "--compile-minutes", minutes)
    assert ran.code == 2
    assert words in " ".join(ran.err.split())
    assert sorted(folder.rglob("*")) == before


def write_objects(folder: Path) -> None:
    (folder / "calibration" / "0.npy").write_bytes(pickle.dumps(opset_11))
    (folder / "dataset.txt").write_text("calibration/0.npy\n")


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: (p / "dataset.txt").write_text("/etc/passwd\n"), "'/etc/passwd'"),
    (lambda p: (p / "dataset.txt").write_text("calibration/x.png\n"), "no file of the"),
    (lambda p: (p / "dataset.txt").write_text(""), "names no calibration image"),
    (lambda p: (p / "convert.py").write_text("exit()"), "not as this repzoo writes it"),
    (lambda p: (p / "tiny.ranges.cfg").write_text("[]"), "ranges.cfg is not as"),
    (write_objects, "is no array of numbers"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_a_pack_that_the_tool_must_not_get(
    run: Run,
    folder: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    install_rknn(tmp_path)
    damage(folder)
    ran = run("pack", folder, "--compile")
    assert ran.code == 2
    assert words in " ".join(ran.err.split())


def test_the_simulator_gets_pixels(compiled: Path) -> None:
    preprocess = opset_11().require_preprocess()
    path = compiled / "model_output" / "build.json"
    session = Engine().open_pack(path, preprocess)
    pixels = np.random.default_rng(0).integers(0, 250, (2, 16, 16, 3), np.uint8)
    normalized = ((pixels / 255 - 0.5) / 0.5).astype(np.float32).transpose(0, 3, 1, 2)
    means = normalized.mean((2, 3))
    np.testing.assert_allclose(session.run(normalized)[:, :3], means, atol=1e-6)
    with pytest.raises(InputError, match="inference gave no outputs"):
        session.run(np.ones((1, 3, 16, 16), np.float32))
    with pytest.raises(InputError, match=r"crashed \(SIGSEGV\)"):
        session.run(np.full((1, 3, 16, 16), 127 / 127.5, np.float32) - 1e-3)


def test_another_model_is_not_simulated_in_its_place(compiled: Path) -> None:
    preprocess = opset_11().require_preprocess()
    build = compiled / "model_output" / "build.json"
    changes = (
        (build, b'"2.5.0"', b'"2.4.0"', "is of rknn-toolkit2 2.4.0"),
        (build, b'"tiny.onnx",', b'"../tiny.onnx",', "no file of a pack"),
        (build, b'"layer"', b'"odd"', "is damaged"),
        (build, b"{", b"[", "is damaged"),
        (compiled / "tiny.onnx", b"Conv", b"Gemm", "was changed since it was compiled"),
        (compiled / "calibration/0000.png", b"PNG", b"GIF", "was changed since"),
    )
    for path, old, new, words in changes:
        content = path.read_bytes()
        path.write_bytes(content.replace(old, new))
        with pytest.raises(InputError, match=words):
            Engine().open_pack(build, preprocess)
        path.write_bytes(content)


def test_a_plain_model_is_refused_with_what_to_type() -> None:
    with pytest.raises(InputError, match="--compile, then give the folder PACK"):
        engine("rknn").open(opset_11().model)


def test_channels_last_are_refused_before_the_work() -> None:
    artifact = opset_11()
    last = replace(artifact.require_preprocess(), layout="NHWC")
    model = copy.deepcopy(artifact.model)
    sides = model.graph.input[0].type.tensor_type.shape.dim
    sides[1].dim_value, sides[3].dim_value = 16, 3
    with pytest.raises(InputError, match="second axis"):
        open_target("rknn").check(replace(artifact, model=model, preprocess=last))


def test_both_methods_have_a_compiler() -> None:
    for name, method in (("rknn", "channel"), ("rknn:layer", "layer")):
        target: Any = open_target(name)
        compiler: Compiler = target.compiler
        assert compiler.toolchain == "rknn"
        assert target.compiler.method == method


def test_a_pack_is_for_a_chip(run: Run, tmp_path: Path) -> None:
    install_rknn(tmp_path)
    folder = tmp_path / "chip"
    target = open_target("rknn")
    images = sets().calibration.subset(range(2))
    write_pack(target, PackJob(opset_11(), images, chip="rk3566"), folder)
    assert "default='rk3566'" in (folder / "convert.py").read_text()
    assert "PLATFORM:-rk3566" in (folder / "01_build.sh").read_text()
    ran = run("pack", folder, "--compile")
    assert ran.code == 0, ran.err
    build = json.loads((folder / "model_output" / "build.json").read_text())
    assert build["platform"] == "rk3566"

    ran = run("pack", folder, "--compile", "--chip", "rk3588")
    assert ran.code == 2
    assert "says for which chip it is" in ran.err
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "chip": "rk1"}))
    ran = run("pack", folder, "--compile")
    assert ran.code == 2
    assert "is for the chip 'rk1'" in ran.err


@pytest.mark.parametrize(
    ("target", "chip", "words"),
    [
        ("rknn", "rk3599", "rk3588"),
        ("rdk-x5", "x3", "compiles for one chip only"),
    ],
)
def test_a_chip_that_a_tool_does_not_know(
    run: Run, tmp_path: Path, target: str, chip: str, words: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(opset_11().to_bytes())
    ran = run(
        *("pack", tmp_path / "model.onnx", "-o", tmp_path / "out", "--data", "digits"),
        *("--target", target, "--chip", chip),
    )
    assert ran.code == 2
    assert words in ran.err


def test_the_tool_judges_candidates(run: Run, tmp_path: Path) -> None:
    install_rknn(tmp_path)
    model, output = tmp_path / "small.onnx", tmp_path / "hard.onnx"
    model.write_bytes(opset_11().to_bytes())
    command = ("harden", model, "-o", output, "--data", "digits", "--images", 32)
    ran = run(*command, "--target", "rknn", "--judge", "tool", "--force", "--json")
    assert ran.code == 0, ran.err
    # Whatever it is given, this tool answers the same: then the weights stay.
    assert ran.document["stage"] == "as it is"
    assert len(ran.document["in_tool"]) >= 3
    assert output.exists()

    ran = run(*command, "--target", "vastai", "--judge", "tool")
    assert ran.code == 2
    assert "cannot run the tool of vastai, only those of rdk-x5, rknn" in ran.err
