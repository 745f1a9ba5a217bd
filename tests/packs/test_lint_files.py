"""The lint of whole folders: calibration files, manifests, steps, hostile files, measured costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.packs import lint_samples as samples
from tests.small_model import sets

import repzoo
from repzoo.artifact import Artifact
from repzoo.data.source import open_source
from repzoo.errors import InputError
from repzoo.packs import pack as packs
from repzoo.packs.lint.finding import Finding
from repzoo.packs.pack import TARGETS
from repzoo.preprocessing import Color

Run = Callable[..., Any]
Pixels = np.ndarray[Any, np.dtype[np.float32]]


def codes(path: Path, **options: Any) -> set[str]:
    return {item.code for item in repzoo.check_pack(path, **options).findings}


def rewrite(folder: Path, change: Callable[[Pixels], Any]) -> None:
    for path in (folder / "calibration_data_rgb_f32").iterdir():
        pixels = np.frombuffer(path.read_bytes(), np.float32).reshape(3, 8, 8)
        path.write_bytes(change(pixels).tobytes())


def test_a_right_folder_is_clean(tmp_path: Path) -> None:
    samples.write_x5(tmp_path)
    report = repzoo.check_pack(tmp_path)
    assert not report.findings
    assert report.models == ("net.onnx",)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda x: x.astype(np.uint8), "calibration-size", "that is uint8"),
        (lambda x: x[:, :7, :7], "calibration-size", "an image of 7x7"),
        (lambda x: x / 255, "calibration-normalized", "divided by 255"),
        (lambda x: (x - 120) / 58, "calibration-normalized", "normalized already"),
        (lambda x: x * 257, "calibration-values", "pixels 0..255"),
        (lambda x: x * np.float32(np.nan), "calibration-values", "finite"),
        (lambda x: np.full_like(x, 7), "calibration-identical", "repeat others"),
        (lambda x: np.full_like(x, 7), "calibration-values", "one value 7"),
    ],
)
def test_calibration_files(
    tmp_path: Path, change: Callable[[Pixels], Any], code: str, words: str
) -> None:
    samples.write_x5(tmp_path)
    rewrite(tmp_path, change)
    found = [x for x in repzoo.check_pack(tmp_path).findings if x.code == code]
    assert found
    assert words in found[0].message
    assert found[0].file == "calibration_data_rgb_f32"


def test_few_and_no_calibration_files(tmp_path: Path) -> None:
    samples.write_x5(tmp_path, files=3)
    assert codes(tmp_path) == {"calibration-few"}
    for path in (tmp_path / "calibration_data_rgb_f32").iterdir():
        path.unlink()
    assert codes(tmp_path) == {"calibration-empty"}


def test_calibration_files_with_a_header(tmp_path: Path) -> None:
    samples.write_x5(tmp_path)
    folder = tmp_path / "calibration_data_rgb_f32"
    for path in folder.iterdir():
        pixels = np.frombuffer(path.read_bytes(), np.float32)
        np.save(path.with_suffix(".npy"), pixels)
        path.unlink()
    assert codes(tmp_path) == {"calibration-size"}


def test_a_calibration_folder_by_itself(tmp_path: Path) -> None:
    samples.write_x5(tmp_path)
    folder = tmp_path / "calibration_data_rgb_f32"
    assert not codes(folder, model=samples.artifact())
    rewrite(tmp_path, lambda x: x.astype(np.uint8))
    assert codes(folder, model=samples.artifact()) == {"calibration-size"}
    assert codes(folder) == {"calibration-size"}


def photographs(folder: Path, seed: int) -> None:
    """Two classes of photographs that are redder than blue."""
    random = np.random.default_rng(seed)
    for number in range(40):
        pixels = random.integers(0, 160, (20, 20, 3)) + np.array([90, 40, 0])
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def files_of(data: Path, folder: Path, order: int) -> None:
    """Calibration files of the data's images, channels in the order 1 or -1."""
    images = open_source(str(data)).split_for_quantization(256, 0).calibration
    job = packs.PackJob(samples.artifact(), images)
    target = folder / "calibration_data_rgb_f32"
    for number, pixels in enumerate(packs.pixel_images(job)):
        values = pixels[::order].astype(np.float32)
        (target / f"{number:03d}.rgb").write_bytes(values.tobytes())


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_channels_of_calibration_files(tmp_path: Path, order: int, same: bool) -> None:
    """By the very images where they are there, else by their averages."""
    photographs(tmp_path / "data", 0)
    photographs(tmp_path / "other", 1)
    samples.write_x5(tmp_path / "pack", files=0)
    files_of(tmp_path / "data", tmp_path / "pack", order)
    data = tmp_path / ("data" if same else "other")
    found = codes(tmp_path / "pack", data=data)
    assert ("calibration-color" in found) == (order == -1)


def test_changed_and_missing_files_of_a_pack(tmp_path: Path) -> None:
    samples.write_x5(tmp_path)
    (tmp_path / "01_build.sh").write_text(
        "hb_mapper makertbin --config other.yaml > log.txt\n"
    )
    files = {
        "net.yaml": "0" * 64,
        "gone.txt": "0" * 64,
        "../up.txt": "0" * 64,
    }
    manifest = {"target": "rdk-x5", "files": files}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    found = repzoo.check_pack(tmp_path).findings
    messages = {item.code: item.message for item in found if item.file}
    assert set(messages) == {"changed-file", "missing-file", "labels"}
    gone = " ".join(item.message for item in found)
    assert "gone: gone.txt, ../up.txt" in gone
    assert "other.yaml" in gone
    assert "3 lines, but the model has 2 outputs" in messages["labels"]


class Plugged:
    name = "plugged"
    scheme = "rdk-x5"

    def lint(self, folder: Path) -> Iterator[Finding]:
        yield Finding("missing-file", f"{folder.name} has no weights.bin", file="x")


def test_a_target_of_others_brings_its_own_lint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.write_x5(tmp_path)
    (tmp_path / "manifest.json").write_text('{"target": "plugged", "files": {}}')
    monkeypatch.setattr(TARGETS, "names", lambda: ["plugged"])
    monkeypatch.setattr(TARGETS, "load", lambda _: Plugged)
    assert codes(tmp_path) == {"missing-file"}


BIG = "9" * 400
DEEP = "a: " + "[" * 5000
ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.yaml", "a: [1", "is not valid YAML"),
        ("x.yaml", "a: !!python/object/apply:os.system ['true']", "asks for an object"),
        ("x.yaml", ALIASES, "aliases"),
        ("x.yaml", DEEP, "nests too deeply"),
        ("x.yaml", "&a [*a]", "aliases"),
        ("x.yaml", "? [a]\n: 1", "a key that is no text"),
        ("x.yaml", "a: 1\n---\nb: 2", "is not valid YAML"),
        ("x.yaml", "#" * 2**19, "bytes; at most"),
        ("x.json", '{"OpConfig": {', "is not valid JSON"),
        ("x.json", '{"OpConfig": {"CropX": NaN}}', "is not a number"),
        ("x.json", '{"OpConfig": {"CropX": ' + BIG + "}}", "is too large"),
        ("x.json", '{"OpConfig":' * 800 + "1" + "}" * 800, "nests too deeply"),
        ("x.yaml", "a: " + BIG, "is too large"),
        ("x.py", "rknn.config( load_onnx", "is not valid Python"),
        ("x.yaml", "a: 1", "holds nothing that repzoo can check"),
        ("x.txt", "a", "holds nothing that repzoo can check"),
    ],
)
def test_what_cannot_be_read(
    run: Run, tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    ran = run("pack", "--check", tmp_path / name)
    assert ran.code == 2
    assert words in " ".join(ran.err.split())
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("mean", [BIG, "+".join("1" * 700)])
def test_numbers_of_a_script_that_are_not_read(
    run: Run, tmp_path: Path, mean: str
) -> None:
    script = f"r.config(mean_values=[[{mean}, 1, 1]])\nr.load_onnx('rknn')\n"
    (tmp_path / "x.py").write_text(script)
    assert run("pack", "--check", tmp_path / "x.py").code == 0
    (tmp_path / "x.alls").write_text(f"normalization1 = normalization([{mean}], [1])\n")
    assert codes(tmp_path / "x.alls") == {"wrong-type"}


def test_a_folder_of_very_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.write_x5(tmp_path)
    monkeypatch.setattr("repzoo.packs.lint.run.MAX_FILES", 5)
    with pytest.raises(InputError, match="more than 5 files"):
        repzoo.check_pack(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--check", "nowhere"], "does not exist"),
        (["--check", ".", "-o", "out"], "leave out -o"),
        (["--check", ".", "--mean", "0", "0", "0"], "give --model too"),
        ([], "Missing FILE"),
        (["net.onnx", "-o", "out"], "Missing --data"),
        (["net.onnx", "-o", "out", "--data", "digits", "--model", "m"], "--check"),
    ],
)
def test_usage(run: Run, arguments: list[str], words: str) -> None:
    ran = run("pack", *arguments)
    assert ran.code == 2
    assert words in " ".join(ran.err.replace("│", "").split())


def test_the_command_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = samples.write_x5(tmp_path)
    ran = run("pack", "--check", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert "net.yaml against net.onnx: nothing is wrong" in ran.out
    path.write_text(samples.X5.replace("123.675 116.28 103.53", "0.485 0.456 0.406"))
    ran = run("pack", "--check", tmp_path)
    assert ran.code == 4
    assert "has 1 error" in ran.err
    assert "[wrong-mean]" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    ran = run("pack", "--check", tmp_path, "--json")
    assert ran.code == 4
    (found,) = ran.document["findings"]
    assert found["severity"] == "error"
    assert found["line"] == 14
    assert found["fix"] == "mean_value: 123.675 116.28 103.53"
    (tmp_path / "bad.yaml").write_text("a: [")
    ran = run("pack", "--check", tmp_path, "--json")
    assert ran.code == 2
    assert {x["code"] for x in ran.document["findings"]} == {"unreadable", "wrong-mean"}


def test_a_model_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    samples.write_x5(tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"no model")
    assert "unreadable" in codes(tmp_path)


def test_names_that_steer_a_terminal(run: Run, tmp_path: Path) -> None:
    samples.write_x5(tmp_path, samples.X5.replace("mean_value:", '"\\e[2J\\n":'))
    ran = run("pack", "--check", tmp_path)
    assert "\x1b" not in ran.out
    assert ran.code == 4


def test_costs_are_measured_where_images_are(tmp_path: Path) -> None:
    model = repzoo.load("repghostnet_050.digits")
    text = samples.X5.replace("'123.675 116.28 103.53'", "'255 255 255'")
    (tmp_path / "net.yaml").write_text(text)
    data = open_source("digits").held_out().subset(range(40))
    source = replace(open_source("digits"), parts={"test": data})
    report = repzoo.check_pack(tmp_path / "net.yaml", model, source)
    (found,) = [item for item in report.findings if item.code == "wrong-mean"]
    assert found.cost.startswith("Top-1 ")
    assert "40 images)" in found.cost


# What is quantized already has no configuration that could be wrong.
CONFIGURED = [
    name
    for name in TARGETS.names()
    if getattr(TARGETS.load(name), "form", "float") == "float"
]


@pytest.mark.parametrize("color", ["RGB", "GRAY"])
@pytest.mark.parametrize("name", CONFIGURED)
def test_our_own_packs_are_clean(tmp_path: Path, name: str, color: Color) -> None:
    """What each target of ours writes has no error and no warning but the card's squash."""
    channels = 1 if color == "GRAY" else 3
    text = samples.TEXT.replace("3, 8, 8", f"{channels}, 16, 16")
    model = samples.parse(
        text.replace("[1, 2]", "[1, 10]"),
        w=samples.weights()["w"][:, :channels],
        v=np.ones((4, 10)),
    )
    preprocess = replace(samples.IMAGENET, size=16, color=color)
    artifact = Artifact(model, "net", preprocess, tuple(map(str, range(10))))
    target = TARGETS.load(name)()
    try:
        target.check(artifact)
    except repzoo.InputError as error:
        pytest.skip(str(error))
    images = sets().calibration.subset(range(20))
    packs.write_pack(target, packs.PackJob(artifact, images), tmp_path / "pack")
    report = repzoo.check_pack(tmp_path / "pack")
    serious = [
        item
        for item in report.findings
        if item.severity != "note" and item.code not in ("squash", "calibration-few")
    ]
    assert not serious, serious
