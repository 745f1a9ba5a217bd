"""Bad input ends with exit code 2, one sentence on stderr, no output and no file."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from tests.conftest import PROCESS_SECONDS

from repzoo.artifact import Artifact

Run = Callable[..., Any]
Photograph = Callable[..., Image.Image]
PREPROCESS = [
    "--size",
    "32",
    "--resize",
    "squash",
    "--crop-fraction",
    "1",
    "--interpolation",
    "bilinear",
]


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """`refused("fold", ...)` runs a command that must be refused, and returns its sentence.

    `{out}` in an argument becomes a path to write to, where nothing may be written.
    """
    folder = tmp_path / "outputs"
    folder.mkdir()

    def check(*arguments: object, usage: bool = False) -> str:
        ran = run(*(str(item).format(out=folder / "out.onnx") for item in arguments))
        assert (ran.code, ran.out) == (2, "")
        assert "Traceback" not in ran.err
        if usage:
            assert "Usage:" in ran.err
            return " ".join(ran.err.replace("│", " ").split())
        *described, sentence = ran.err.splitlines(keepends=True)
        # Where the data set was read, a line says first what it was taken for.
        assert [line[:6] for line in described] in ([], ["data: "])
        assert sentence.startswith("repzoo: ")
        return str(sentence)

    yield check
    assert [item.name for item in folder.iterdir()] == []


def numbered_photographs(root: Path, count: int, photograph: Photograph) -> Path:
    """`count` JPEG photographs in the folders 0 and 1."""
    for number in range(count):
        folder = root / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        photograph(40, 36, number).save(folder / f"{number:03}.jpg")
    return root


# Files that are not models


@pytest.mark.parametrize(
    "verb",
    ["fold", "quantize", "evaluate", "bench", "predict", "count", "info", "card"],
)
def test_a_missing_model_file_is_named(
    refused: Callable[..., str], verb: str, tmp_path: Path
) -> None:
    rest: dict[str, list[object]] = {
        "fold": ["-o", "{out}"],
        "quantize": ["-o", "{out}", "--data", "digits"],
        "evaluate": ["--data", "digits"],
        "predict": [tmp_path / "none.jpg"],
        "card": ["-o", "{out}"],
    }
    sentence = refused(verb, tmp_path / "none.onnx", *rest.get(verb, []))
    assert "none.onnx does not exist; check the path" in sentence


def test_a_missing_image_and_a_missing_data_folder_are_named(
    refused: Callable[..., str], model_file: Path, tmp_path: Path
) -> None:
    assert "none.jpg does not exist" in refused(
        "predict", model_file, tmp_path / "none.jpg"
    )
    assert "there is no data set of that name; known names: digits" in refused(
        "evaluate", model_file, "--data", tmp_path / "none"
    )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.onnx", b"", "holds no ONNX graph"),
        ("text.onnx", b"hello there", "not a readable ONNX file"),
        (
            "no_graph.onnx",
            onnx.ModelProto(ir_version=8).SerializeToString(),
            "holds no ONNX graph",
        ),
    ],
)
def test_a_file_that_is_not_onnx_is_refused(
    refused: Callable[..., str], tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    for arguments in (
        ["fold", tmp_path / name, "-o", "{out}"],
        ["info", tmp_path / name],
        ["count", tmp_path / name],
    ):
        assert message in refused(*arguments)


def test_a_truncated_model_and_a_folder_are_refused(
    refused: Callable[..., str], model_file: Path, tmp_path: Path
) -> None:
    data = model_file.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    assert "not a readable ONNX file" in refused(
        "fold", tmp_path / "cut.onnx", "-o", "{out}"
    )
    assert "is a directory; expected a file" in refused("count", tmp_path)


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (
            "(float[N,3,4,4] data, float[N,2] other) => (float[N,2] output)",
            "other of rank 2",
        ),
        ("(float[N,3,4,4] data) => (float[N,2,2] output)", "output of rank 3"),
    ],
)
def test_a_model_that_is_not_a_classifier_is_refused(
    refused: Callable[..., str], tmp_path: Path, signature: str, message: str
) -> None:
    body = "pooled = GlobalAveragePool (data) flat = Flatten (pooled)"
    end = "thin = Gemm (flat, weight) axes = Constant <value = int64[1] {2}> () column = Unsqueeze (thin, axes) output = Concat <axis = 2> (column, column)"
    if "other" in signature:
        end = "thin = Gemm (flat, weight) output = Add (thin, other)"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net {signature} {{ {body} {end} }}'
    )
    model.graph.initializer.append(
        numpy_helper.from_array(np.ones((3, 2), np.float32), "weight")
    )
    onnx.checker.check_model(model)
    path = tmp_path / "other.onnx"
    path.write_bytes(model.SerializeToString())
    image = tmp_path / "1.png"
    Image.new("RGB", (4, 4)).save(image)
    for arguments in (
        ["quantize", path, "-o", "{out}", "--data", "digits"],
        ["evaluate", path, "--data", "digits"],
        ["predict", path, image],
    ):
        sentence = refused(*arguments)
        assert (
            "not a classifier: expected one input [N, 3, H, W] and one output [N, classes]"
            in sentence
        )
        assert message in sentence


def test_a_model_without_preprocessing_can_be_told_its_own(
    run: Run, foreign_file: Path, model_file: Path, digits_folder: Path
) -> None:
    image = next((digits_folder / "7").iterdir())
    explicit = run(
        "predict",
        foreign_file,
        image,
        "--json",
        "--top",
        "10",
        *_options_of(model_file),
    )
    own = run("predict", model_file, image, "--json", "--top", "10")
    assert explicit.code == own.code == 0
    assert explicit.err == ""
    assert (
        explicit.document == own.document
    )  # outputs without labels are named by their index: here the same words


def _options_of(file: Path) -> list[object]:
    own = Artifact.read(file).require_preprocess()
    single: list[tuple[str, object]] = [
        ("--size", own.size),
        ("--resize", own.resize),
        ("--crop-fraction", own.crop_fraction),
    ]
    single += [("--interpolation", own.interpolation), ("--color", own.color)]
    return [
        *(part for pair in single for part in pair),
        "--mean",
        *own.mean,
        "--std",
        *own.std,
    ]


@pytest.mark.parametrize(
    ("arguments", "offered"),
    [
        (["info", "repghostnet_05"], "repghostnet_050"),
        (["count", "repghostnet_050.digit"], "repghostnet_050.digits"),
        (["card", "repghostnet_050.digit", "-o", "{out}"], "repghostnet_050.digits"),
        (["export", "repvgg_a9", "-o", "{out}"], "repvgg_a"),
        (
            [
                "train",
                "repvgg_a9",
                "--data",
                "digits",
                "--recipe",
                "digit",
                "-o",
                "{out}",
            ],
            "digits",
        ),
    ],
)
def test_an_unknown_name_offers_the_nearest(
    refused: Callable[..., str], arguments: list[str], offered: str
) -> None:
    sentence = refused(*arguments)
    assert "did you mean" in sentence
    assert offered in sentence.partition("did you mean")[2]


@pytest.mark.parametrize("option", ["--engine", "--scheme"])
def test_an_unknown_engine_or_scheme_is_named(
    refused: Callable[..., str], model_file: Path, digits_folder: Path, option: str
) -> None:
    sentence = refused(
        "quantize",
        model_file,
        "-o",
        "{out}",
        "--data",
        digits_folder,
        option,
        "onnxruntim",
    )
    assert f"no {option[2:]} is called 'onnxruntim'" in sentence


# Images


def test_an_empty_folder_and_a_single_class_are_refused(
    refused: Callable[..., str], model_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    assert "no images" in refused("evaluate", model_file, "--data", tmp_path / "data")
    (tmp_path / "data" / "0").mkdir()
    assert "no images" in refused("evaluate", model_file, "--data", tmp_path / "data")
    Image.new("RGB", (9, 9)).save(tmp_path / "data" / "0" / "1.png")
    one_class = refused("evaluate", model_file, "--data", tmp_path / "data")
    assert "only the class '0'" in one_class
    for verb in ("quantize", "card"):
        arguments = [verb, model_file, "-o", "{out}", "--data", tmp_path / "data"]
        sentence = refused(*arguments)
        assert (
            "1 images; at least 4 are needed" in sentence
            or "only the class '0'" in sentence
        )


def test_a_file_instead_of_a_data_folder_is_refused(
    refused: Callable[..., str], model_file: Path
) -> None:
    assert "is a file; --data takes a folder" in refused(
        "evaluate", model_file, "--data", model_file
    )


def test_one_broken_image_in_a_hundred_is_left_out_and_two_are_refused(
    run: Run,
    refused: Callable[..., str],
    model_file: Path,
    tmp_path: Path,
    photograph: Photograph,
) -> None:
    root = numbered_photographs(tmp_path / "data", 100, photograph)
    for number, expected in ((7, 0), (8, 2)):
        path = root / str(number % 2) / f"{number:03}.jpg"
        path.write_bytes(path.read_bytes()[:400])
        if expected == 0:
            ran = run("evaluate", model_file, "--data", root, "--json")
            assert ran.code == 0
            assert ran.document["runs"][0]["n"] == 99
            described, note = ran.err.splitlines()
            assert ran.document["remarks"] == [note.removeprefix("note: ")]
            assert described.startswith("data: data: 100 images (evaluated); 2 classes")
            assert note.startswith("note: left out: ")
            assert "007.jpg" in note
        else:
            sentence = refused("evaluate", model_file, "--data", root)
            assert (
                "2 of 100 images of data[all] cannot be read (at most 1% may be)"
                in sentence
            )
            assert "007.jpg" in sentence
            assert "008.jpg" in sentence


def test_cmyk_and_palette_images_are_converted_with_a_remark(
    run: Run, model_file: Path, tmp_path: Path, photograph: Photograph
) -> None:
    root = numbered_photographs(tmp_path / "data", 10, photograph)
    photograph(40, 36, 0).convert("CMYK").save(root / "0" / "000.jpg")
    photograph(40, 36, 1).convert("P").save(root / "1" / "extra.png")
    ran = run("evaluate", model_file, "--data", root)
    assert ran.code == 0
    notes = [line for line in ran.err.splitlines() if line.startswith("note: ")]
    assert notes == ["note: converted to RGB: 1 CMYK, 1 P"]


def test_data_with_other_classes_than_the_model_is_refused(
    refused: Callable[..., str], model_file: Path, tmp_path: Path
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (9, 9)).save(tmp_path / "data" / name / f"{number}.png")
    for verb in (
        ["evaluate", model_file],
        ["quantize", model_file, "-o", "{out}", "--images", "2"],
        ["card", model_file, "-o", "{out}"],
    ):
        assert (
            "(2, such as 'cat') are not those of digits (10, such as '0')"
            in refused(*verb, "--data", tmp_path / "data")
        )
    assert "no embedded model knows the classes cat, dog" in refused(
        "card", "--data", tmp_path / "data", "-o", "{out}"
    )


# Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "nothing"], "no engine is called 'nothing'"),
        (["--part", "train"], "has no part 'train'; it has all"),
        (["--part", "all", "--part", "all"], "named twice"),
    ],
)
def test_wrong_settings_of_evaluate_are_explained(
    refused: Callable[..., str],
    model_file: Path,
    digits_folder: Path,
    options: list[str],
    message: str,
) -> None:
    assert message in refused("evaluate", model_file, "--data", digits_folder, *options)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("export", ["--opset", "10"]),
        ("export", ["--opset", "21"]),
        ("export", ["--opset", "x"]),
        ("export", ["--num-classes", "0"]),
        ("export", ["--form", "folded"]),
        ("quantize", ["--images", "0"]),
        ("quantize", ["--images", "-4"]),
        ("quantize", ["--max-drop", "nan"]),
        ("quantize", ["--seed", "-1"]),
        ("bench", ["--seconds", "0"]),
        ("bench", ["--seconds", "nan"]),
        ("bench", ["--seconds", "inf"]),
        ("bench", ["--threads", "0"]),
        ("bench", ["--batch", "0"]),
        ("card", ["--streams", "-1"]),
        ("card", ["--seconds", "0"]),
        ("predict", ["--top", "0"]),
        ("train", ["--epochs", "0"]),
        ("evaluate", ["--color", "rgb"]),
        ("evaluate", ["--size", "0"]),
        ("evaluate", ["--size", "5000"]),
        ("evaluate", ["--mean", "nan", "0", "0"]),
        ("evaluate", ["--std", "0", "1", "1"]),
        ("evaluate", ["--crop-fraction", "nan"]),
        ("list", ["--nothing"]),
    ],
)
def test_values_outside_the_range_of_an_option_are_refused(
    refused: Callable[..., str],
    model_file: Path,
    digits_folder: Path,
    verb: str,
    options: list[str],
) -> None:
    image = next((digits_folder / "7").iterdir())
    rest: dict[str, list[object]] = {
        "export": ["repghostnet_050", "-o", "{out}"],
        "quantize": [model_file, "-o", "{out}", "--data", digits_folder],
        "card": [model_file, "-o", "{out}", "--data", digits_folder],
        "bench": [model_file],
        "predict": [model_file, image],
        "train": ["repghostnet_050", "--data", "digits", "-o", "{out}"],
        "evaluate": [model_file, "--data", digits_folder],
    }
    assert options[0] in refused(verb, *rest.get(verb, []), *options, usage=True)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fold"],
        ["fold", "x.onnx"],
        ["nothing"],
        ["--nothing"],
        ["evaluate", "x.onnx"],
    ],
)
def test_wrong_usage_shows_the_usage(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert "Usage: repzoo" in ran.out + ran.err


def test_an_int8_model_is_refused_where_a_float_model_is_needed(
    refused: Callable[..., str], int8_file: Path, digits_folder: Path
) -> None:
    assert "is quantized already" in refused("fold", int8_file, "-o", "{out}")
    for verb in ("quantize", "card"):
        sentence = refused(verb, int8_file, "-o", "{out}", "--data", digits_folder)
        assert "is quantized already; give the float model it was made from" in sentence


# Output paths


@pytest.mark.parametrize("verb", ["fold", "quantize", "card", "export", "train"])
@pytest.mark.parametrize("location", ["below a file", "/proc/repzoo-test"])
def test_an_output_that_cannot_be_written_is_refused(
    refused: Callable[..., str],
    model_file: Path,
    digits_folder: Path,
    tmp_path: Path,
    verb: str,
    location: str,
) -> None:
    (tmp_path / "file").write_text("in the way")
    parent = Path(location) if location[0] == "/" else tmp_path / "file"
    output = parent / "below" / "out.onnx"
    name = "repghostnet_050" if verb in ("export", "train") else model_file
    data = [] if verb in ("export", "fold") else ["--data", digits_folder]
    quick = {
        "train": ["--epochs", 1],
        "card": ["--seconds", 0.1, "--images", 10, "--force"],
        "quantize": ["--images", 10, "--force"],
    }
    sentence = refused(verb, name, "-o", output, *data, *quick.get(verb, []))
    assert "give another with -o" in sentence
    assert (tmp_path / "file").read_text() == "in the way"


def test_two_outputs_with_the_same_path_are_refused(
    refused: Callable[..., str], model_file: Path
) -> None:
    assert "two outputs would both be written" in refused(
        "fold", model_file, "-o", "{out}", "--certificate", "{out}"
    )


def test_no_model_is_written_when_its_certificate_cannot_be(
    refused: Callable[..., str], model_file: Path, tmp_path: Path
) -> None:
    assert "is a directory" in refused(
        "fold", model_file, "-o", "{out}", "--certificate", tmp_path
    )


# The gate


def test_a_model_above_the_budget_is_not_written(
    run: Run, small_training_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    """A negative budget demands a gain, and a gain of 100 points is impossible."""
    output, report = tmp_path / "out" / "int8.onnx", tmp_path / "out" / "report.json"
    files = [small_training_file, "-o", output, "--report", report]
    options = ["--images", 20, "--max-drop", -100, "--placement", "everything"]
    ran = run("quantize", *files, "--data", digits_folder, *options)
    assert (ran.code, ran.out) == (4, "")
    # What the images were taken for may be the very reason.
    described, sentence = ran.err.splitlines()
    assert described.startswith("data: numbers: 200 images (calibration and gate)")
    assert sentence.startswith("repzoo: small: INT8 loses ")
    assert not output.parent.exists()


def test_force_writes_the_model_and_marks_it(quantized: Any) -> None:
    assert quantized.ran.code == 0
    assert "note: forced: INT8 loses" in quantized.ran.err
    step = Artifact.read(quantized.file).steps[-1]
    assert (step.verb, step.settings["force"], step.settings["max_drop"]) == (
        "quantize",
        True,
        -100,
    )
    assert (
        json.loads(quantized.report.read_text())["values"]["drop"]
        == quantized.ran.document["drop"]
    )
    assert sorted(quantized.file.parent.iterdir()) == [quantized.file, quantized.report]


# In processes of their own


def run_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "repzoo", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
        check=False,
        **options,
    )


def test_a_process_prints_one_sentence(tmp_path: Path) -> None:
    ran = run_process("fold", tmp_path / "none.onnx", "-o", tmp_path / "out.onnx")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert (
        ran.stderr
        == f"repzoo: {tmp_path / 'none.onnx'} does not exist; check the path\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_process_with_a_full_disk_leaves_no_file(
    model_file: Path, tmp_path: Path
) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    ran = run_process(
        "fold",
        model_file,
        "-o",
        tmp_path / "out.onnx",
        "--certificate",
        tmp_path / "c.json",
        preexec_fn=small_files,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    # A busy machine takes more than two seconds, and then says what it does.
    *progress, error = ran.stderr.splitlines()
    assert error.startswith(
        f"repzoo: {tmp_path / 'out.onnx'} cannot be written: File too large"
    )
    assert not any("repzoo:" in line for line in progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_whose_reader_closes_the_pipe_is_silent() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "repzoo", "list"],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=PROCESS_SECONDS,
        check=False,
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (141, b"")


@pytest.mark.parametrize("verb", ["bench", "predict", "count", "evaluate", "quantize"])
def test_an_input_of_a_type_that_onnx_does_not_know_is_refused(
    verb: str,
    refused: Callable[..., str],
    model_file: Path,
    digits_folder: Path,
    tmp_path: Path,
) -> None:
    model = onnx.load(model_file)
    model.graph.input[0].type.tensor_type.elem_type = 99
    path = tmp_path / "odd.onnx"
    onnx.save(model, path)
    arguments: dict[str, list[object]] = {
        "predict": [next(digits_folder.glob("*/*.png"))],
        "evaluate": ["--data", digits_folder],
        "quantize": ["--data", digits_folder, "-o", "{out}"],
    }
    assert "99" in refused(verb, path, *arguments.get(verb, []))


def test_a_process_prints_names_that_its_encoding_lacks(
    digits_folder: Path, tmp_path: Path, model_file: Path
) -> None:
    image = tmp_path / "猫[red].png"
    shutil.copy(next((digits_folder / "7").iterdir()), image)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown, explicit = (
        run_process("predict", model_file, image, "--top", 1, *flags, env=environment)
        for flags in ([], ["--json"])
    )
    assert (shown.returncode, explicit.returncode) == (0, 0)
    # On a slow machine stderr also has progress.
    assert "Error" not in shown.stderr + explicit.stderr
    assert "[red].png" in shown.stdout.replace("\n", "")
    prediction = json.loads(explicit.stdout)["predictions"][0]
    assert (prediction["image"], prediction["top"][0]["class"]) == (str(image), "7")


def test_only_a_defect_of_repzoo_shows_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("repzoo.zoo.catalog.models", broken)
    with pytest.raises(ZeroDivisionError):
        run("list")


def test_an_interrupt_exits_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("repzoo.zoo.catalog.models", interrupt)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    ran = run("list")
    assert (ran.code, ran.out, ran.err) == (130, "", "")


def test_a_size_that_the_graph_does_not_take_is_refused_by_fold_too(
    refused: Callable[..., str], model_file: Path
) -> None:
    """`fold` reads no image, but writes the size into the file."""
    assert "32x32" in refused("fold", model_file, "-o", "{out}", "--size", 33)


def test_an_engine_named_twice_is_refused(
    refused: Callable[..., str], model_file: Path
) -> None:
    twice = ["--engine", "onnxruntime,onnxruntime"]
    assert "engine names onnxruntime twice" in refused("bench", model_file, *twice)


def test_a_datalist_without_results_is_refused(
    refused: Callable[..., str], model_file: Path, digits_folder: Path
) -> None:
    arguments = ["--data", digits_folder, "--datalist", model_file]
    assert "leave --datalist out" in refused("evaluate", model_file, *arguments)
