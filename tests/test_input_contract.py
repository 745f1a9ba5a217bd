"""Models that take bytes: every verb reads their input from the metadata; mistakes are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from repzoo.artifact import Artifact, Preprocess
from repzoo.data.preprocess import resized_and_cropped, resized_without_antialiasing
from repzoo.measure import mismatch

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("kind", "shape"), [("uint8", [32, 32, 3]), ("nv12", [48, 32, 1])]
)
def test_a_model_with_a_byte_input_works_with_every_verb(
    run: Run,
    kind: str,
    shape: list[int],
    model_file: Path,
    digits_folder: Path,
    tmp_path: Path,
) -> None:
    deploy, with_bytes = tmp_path / "deploy.onnx", tmp_path / "bytes.onnx"
    assert run("fold", model_file, "-o", deploy).code == 0
    document = run(
        "embed-input",
        deploy,
        "-o",
        with_bytes,
        "--input",
        kind,
        "--data",
        digits_folder,
        "--json",
    ).document
    assert (document["input"], document["shape"], document["certificate"]["equal"]) == (
        kind,
        shape,
        True,
    )
    assert "origin subtracted" in document["placed"]
    assert run("info", with_bytes, "--json").document["preprocess"]["input"] == kind
    result = run(
        "evaluate", with_bytes, "--data", digits_folder, "--against", deploy, "--json"
    ).document
    assert (
        result["paired"]["same_prediction"] == 100
    )  # digits are gray, so NV12 loses at most rounding
    picture = next(digits_folder.rglob("*.png"))
    best = [
        run("predict", file, picture, "--json").document["predictions"][0]["top"]
        for file in (deploy, with_bytes)
    ]
    assert best[0][0]["class"] == best[1][0]["class"]
    assert (
        run("bench", with_bytes, "--seconds", "0.1", "--json").document["runs"][0][
            "samples"
        ]
        > 0
    )
    again = run(
        "embed-input", with_bytes, "-o", tmp_path / "again.onnx", "--input", kind
    )
    assert (again.code, again.out) == (2, "")
    assert f"takes {kind} already; start from the float model" in again.err


def test_a_training_form_can_be_folded_after_embedding_its_input(
    run: Run, model_file: Path, tmp_path: Path
) -> None:
    early, folded = tmp_path / "early.onnx", tmp_path / "folded.onnx"
    assert (
        run(
            "embed-input", model_file, "-o", early, "--input", "uint8", "--order", "BGR"
        ).code
        == 0
    )
    certificate = run("fold", early, "-o", folded, "--json").document
    assert certificate["equal"]
    artifact = Artifact.read(folded)
    assert artifact.preprocess is not None
    assert (artifact.preprocess.input, artifact.preprocess.color) == ("uint8", "BGR")
    assert [step.verb for step in artifact.steps][-2:] == ["embed-input", "fold"]
    assert "input_certificate" in artifact.extras
    assert [node.op_type for node in artifact.model.graph.node].count("Sub") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["embed-input", "{model}", "-o", "{out}"],
            "give --input uint8 or --input nv12",
        ),
        (
            ["embed-input", "{model}", "-o", "{out}", "--input", "float"],
            "the input to embed is uint8 or nv12; got 'float'",
        ),
        (
            [
                "embed-input",
                "{model}",
                "-o",
                "{out}",
                "--input",
                "uint8",
                "--yuv",
                "bt709-full",
            ],
            "yuv belongs to the input nv12",
        ),
        (
            [
                "embed-input",
                "{model}",
                "-o",
                "{out}",
                "--input",
                "nv12",
                "--order",
                "BGR",
            ],
            "NV12 has no channel order",
        ),
        (
            ["embed-input", "{int8}", "-o", "{out}", "--input", "nv12"],
            "embed the input of the float model, then quantize",
        ),
        (
            [
                "export",
                "repghostnet_050",
                "-o",
                "{out}",
                "--size",
                "65",
                "--input",
                "nv12",
            ],
            "its sides must be even; got size 65",
        ),
        (["bench", "{odd}"], "but its preprocessing makes uint8 [N, 32, 32, 3]"),
        (
            ["predict", "{model}", "{picture}", "--input", "uint8"],
            "takes float [N, 3, 32, 32], but its preprocessing makes uint8",
        ),
        (
            ["predict", "{model}", "{picture}", "--size", "64"],
            "takes images of 32x32 pixels (height x width), but its preprocessing makes 64x64; "
            "give --size 32, or export it again",
        ),
    ],
)
def test_contradictory_inputs_are_refused_in_one_sentence(
    run: Run,
    arguments: list[str],
    message: str,
    model_file: Path,
    int8_file: Path,
    digits_folder: Path,
    tmp_path: Path,
) -> None:
    odd = Artifact.read(model_file)
    opened = onnx.ModelProto()
    opened.CopyFrom(odd.model)
    for dim in opened.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "S"
    Artifact(opened, "odd", Preprocess(size=32, input="uint8")).save(
        tmp_path / "odd.onnx"
    )
    places = {
        "model": model_file,
        "int8": int8_file,
        "out": tmp_path / "out.onnx",
        "odd": tmp_path / "odd.onnx",
    }
    ran = run(
        *(
            item.format(**places, picture=next(digits_folder.rglob("*.png")))
            for item in arguments
        )
    )
    assert (ran.code, ran.out) == (2, ""), ran.err
    *described, sentence = ran.err.splitlines()
    assert [line[:6] for line in described] in ([], ["data: "])
    assert message in sentence
    assert not (tmp_path / "out.onnx").exists()


def test_mismatch_names_every_mistake_once_and_agrees_with_evaluate(
    run: Run, model_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    log = tmp_path / "records.jsonl"
    document = run(
        "mismatch", model_file, "--data", digits_folder, "--append", log, "--json"
    ).document
    names = [row["mismatch"] for row in document["wrong"]]
    assert len(set(names)) == len(names) > 20
    assert len(log.read_text().splitlines()) == len(names) + 1
    expected = run("evaluate", model_file, "--data", digits_folder, "--json").document[
        "runs"
    ][0]
    assert (
        (document["right"]["top1"], document["right"]["n"])
        == (expected["top1"], expected["n"])
        == (expected["top1"], 200)
    )
    rows = {row["mismatch"]: row for row in document["wrong"]}
    assert rows["R and B swapped"]["same_prediction"] == 100  # digits are gray
    for row in rows.values():
        assert row["drop_low"] <= row["drop"] <= row["drop_high"]
        assert row["drop"] == pytest.approx(expected["top1"] - row["top1"])


@pytest.mark.parametrize(
    "more", [{}, {"input": "uint8"}, {"input": "nv12", "yuv": "bt709-limited"}]
)
def test_each_wrong_preprocessing_changes_the_input(
    photograph: Callable[..., Image.Image], more: dict[str, str]
) -> None:
    right = Preprocess.from_mapping({"size": 32, "interpolation": "bicubic", **more})
    first, *wrong = mismatch.variants(right)
    image = photograph(90, 61)
    expected = first.to_input(first.resize(image)[None])
    for variant in wrong:
        actual = variant.to_input(variant.resize(image)[None])
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        assert not np.array_equal(actual, expected), variant.name


def test_resizing_without_antialiasing_is_plain_bilinear(
    photograph: Callable[..., Image.Image],
) -> None:
    """Enlarging, Pillow's filter has nothing to antialias; at half the size, each pixel is the
    mean of the two by two around it.
    """
    grown = Preprocess(size=48, crop_fraction=1.0)
    image = photograph(30, 41)
    apart = resized_without_antialiasing(image, grown).astype(
        int
    ) - resized_and_cropped(image, grown)
    assert np.abs(apart).max() <= 1
    halved = resized_without_antialiasing(
        photograph(64, 64), Preprocess(size=32, crop_fraction=1.0)
    )
    blocks = np.asarray(photograph(64, 64), float).reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(halved - blocks).max() <= 0.5
